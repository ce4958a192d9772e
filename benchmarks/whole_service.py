"""The whole service against the bare SDK loop: CPU of an execution, all processes counted, and what durability adds in time.

An execution is two turns, one tool call and 100 tokens 50 ms apart. The two run in turn, A B A B, as many executions at
once, and are compared in pairs. Starting is not counted; what an idle process of ours uses meanwhile is. With `--notified`
every event also goes to an orchestrator that listens, which the loop does for nobody, and the notifier is counted too.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from agent_exec import AgentExecClient, ExecutionRequest
from agent_exec.embedded import free_port
from benchmarks import processes
from benchmarks.wire import TOKENS

#: Chunks beside the tokens that the model sends in both turns, each after a gap.
OTHER_CHUNKS = 13

#: What each process has used so far, in seconds of CPU.
Meters = dict[str, Callable[[], float]]


def run(arguments: Sequence[str] = ()) -> None:
    """Print the medians and the ratio."""
    options = _options(arguments)
    executions, port = options.executions, free_port()
    with _service(port, gap_s=options.gap_s, notified=options.notified) as (client, meters):
        _ours(client, meters, 2)  # warm
        pairs = [(_ours(client, meters, executions), _bare(port, executions)) for _ in range(options.rounds)]
    ours = [pair[0] for pair in pairs]
    for name in meters:
        print(f"  {name:<8} {statistics.median(one[name] for one in ours) * 1e3:7.2f} ms CPU an execution")
    print(f"  {'bare':<8} {statistics.median(bare['cpu'] for _, bare in pairs) * 1e3:7.2f} ms CPU an execution")
    ratios = [sum(one[name] for name in meters) / bare["cpu"] for one, bare in pairs]
    print(f"  ratio    {statistics.median(ratios):7.2f}    (rounds: {', '.join(f'{ratio:.2f}' for ratio in ratios)})")
    added = statistics.median(one["wall"] for one in ours) - statistics.median(bare["wall"] for _, bare in pairs)
    model_s = options.gap_s * (TOKENS + OTHER_CHUNKS)
    print(
        f"  {executions} at once take {added * 1e3:+.0f} ms against the bare loop, of {model_s:.1f} s of the model's own"
    )


@contextlib.contextmanager
def _service(port: int, *, gap_s: float, notified: bool = False) -> Iterator[tuple[AgentExecClient, Meters]]:
    with processes.server() as redis:
        address = f"http://127.0.0.1:{port}"
        env = {
            "AGENT_EXEC_REDIS_URL": redis.url,
            "AGENT_EXEC_TOOL_REGISTRY_URL": address,
            "OPENAI_BASE_URL": f"{address}/v1",
            "OPENAI_API_KEY": "x",
            "AGENT_EXEC_ORCHESTRATOR_WS_URL": f"ws://127.0.0.1:{port}/ws/task_updates",
            "AGENT_EXEC_LOG_LEVEL": "WARNING",
        }
        with contextlib.ExitStack() as stack:
            stack.enter_context(processes.process(["-m", "benchmarks.wire", "--port", str(port), "--gap", str(gap_s)]))
            worker = stack.enter_context(
                processes.process(processes.celery("tasks", "worker", "--loglevel", "WARNING"), env=env)
            )
            meters: Meters = {"worker": lambda: worker.cpu_s, "redis": lambda: redis.cpu_s}
            if notified:
                notifier = stack.enter_context(processes.process(["-m", "notifier"], env=env))
                meters["notifier"] = lambda: notifier.cpu_s
            yield stack.enter_context(AgentExecClient(redis.url)), meters


def _ours(client: AgentExecClient, meters: Meters, executions: int) -> dict[str, float]:
    request = ExecutionRequest.model_validate(
        {
            "agent_id": "weather",
            "query": "weather in Lima?",
            "agent_config": {
                "agent_id": "weather",
                "provider": "openai",
                "model": "script",
                "tools": ["get_weather"],
            },
        }
    )
    before = {name: used_s() for name, used_s in meters.items()}
    began = time.perf_counter()
    ids = client.submit_many([request] * executions, tenant_id="bench")
    for execution_id in ids:
        final = client.wait("bench", str(execution_id), timeout_s=120)
        assert final.status == "completed", final.error
    used = {name: (used_s() - before[name]) / executions for name, used_s in meters.items()}
    return used | {"wall": time.perf_counter() - began}


def _bare(port: int, executions: int) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.bare_loop", str(port), str(executions)], check=True, capture_output=True
    )
    told = json.loads(done.stdout)
    return {"cpu": told["cpu_s"] / executions, "wall": told["wall_s"]}


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--executions", type=int, default=60, help="at once")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--notified", action="store_true", help="with a notifier")
    parser.add_argument("--gap-s", type=float, default=0.05, help="between two tokens")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run(sys.argv[1:])
