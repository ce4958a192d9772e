"""The peer: the same execution in one process with the SDK's own streaming loop; no queue, no durability.

`python -m benchmarks.bare_loop PORT EXECUTIONS` prints the CPU it used, in seconds, and the wall time.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import openai

from benchmarks.wire import TOOL

TOOLS = [{"type": "function", "function": {"name": TOOL["name"], "parameters": TOOL["parameters"]}}]


async def _turn(client: openai.AsyncOpenAI, messages: list[dict[str, object]]) -> tuple[str, dict[int, dict[str, str]]]:
    calls: dict[int, dict[str, str]] = {}
    text: list[str] = []
    stream = await client.chat.completions.create(
        model="script", messages=messages, tools=TOOLS, stream=True, stream_options={"include_usage": True}
    )  # type: ignore[call-overload]  # plain dicts, as most callers write them
    async for chunk in stream:
        if not chunk.choices:
            continue
        delta = chunk.choices[0].delta
        if delta.content:
            text.append(delta.content)
        for part in delta.tool_calls or ():
            call = calls.setdefault(part.index, {"id": part.id, "name": part.function.name, "arguments": ""})
            call["arguments"] += part.function.arguments or ""
    return "".join(text), calls


async def _execution(client: openai.AsyncOpenAI) -> str:
    messages: list[dict[str, object]] = [{"role": "user", "content": "weather in Lima?"}]
    while True:
        text, calls = await _turn(client, messages)
        if not calls:
            return text
        asked = [
            {"id": call["id"], "type": "function", "function": {"name": call["name"], "arguments": call["arguments"]}}
            for call in calls.values()
        ]
        messages.append({"role": "assistant", "tool_calls": asked})
        messages += [{"role": "tool", "tool_call_id": call["id"], "content": "sunny"} for call in calls.values()]


async def _main(port: int, executions: int) -> None:
    client = openai.AsyncOpenAI(api_key="x", base_url=f"http://127.0.0.1:{port}/v1", max_retries=0)
    await _execution(client)
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    await asyncio.gather(*[_execution(client) for _ in range(executions)])
    print(json.dumps({"cpu_s": time.process_time() - cpu_s, "wall_s": time.perf_counter() - wall_s}))
    await client.close()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), int(sys.argv[2])))
