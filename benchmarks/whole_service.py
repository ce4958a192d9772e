"""The whole service against the bare SDK loop: CPU of an execution, all processes counted, and what durability adds in time.

An execution is two turns, one tool call and 100 tokens 50 ms apart. The two run in turn, A B A B, and are compared in pairs.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from agent_exec import AgentExecClient, ExecutionRequest
from agent_exec.embedded import EmbeddedServer
from benchmarks.wire import TOKENS

EXECUTIONS = 60
ROUNDS = 3
GAP_S = 0.05
PORT = 8931
#: What the model itself takes: the chunks of both turns, each after a gap.
MODEL_S = GAP_S * (9 + TOKENS + 4)


def run() -> None:
    """Print the medians and the ratio."""
    with tempfile.TemporaryDirectory() as directory, _service(Path(directory)) as (client, processes):
        _ours(client, processes, 2)  # warm
        pairs = [(_ours(client, processes, EXECUTIONS), _bare(EXECUTIONS)) for _ in range(ROUNDS)]
    ours = [pair[0] for pair in pairs]
    for name in ("worker", "redis"):
        print(f"  {name:<8} {statistics.median(one[name] for one in ours) * 1e3:7.2f} ms CPU an execution")
    print(f"  {'bare':<8} {statistics.median(bare['cpu'] for _, bare in pairs) * 1e3:7.2f} ms CPU an execution")
    ratios = [(one["worker"] + one["redis"]) / bare["cpu"] for one, bare in pairs]
    print(f"  ratio    {statistics.median(ratios):7.2f}    (rounds: {', '.join(f'{ratio:.2f}' for ratio in ratios)})")
    added = statistics.median(one["wall"] for one in ours) - statistics.median(bare["wall"] for _, bare in pairs)
    print(
        f"  {EXECUTIONS} at once take {added * 1e3:+.0f} ms against the bare loop, of {MODEL_S:.1f} s of the model's own"
    )


@contextlib.contextmanager
def _service(directory: Path) -> Iterator[tuple[AgentExecClient, dict[str, psutil.Process]]]:
    with EmbeddedServer(directory / "redis") as redis, contextlib.ExitStack() as stack:
        address = f"http://127.0.0.1:{PORT}"
        env = {
            "AGENT_EXEC_REDIS_URL": redis.url,
            "AGENT_EXEC_TOOL_REGISTRY_URL": address,
            "OPENAI_BASE_URL": f"{address}/v1",
            "OPENAI_API_KEY": "x",
            "AGENT_EXEC_LOG_LEVEL": "WARNING",
        }
        _start(stack, ["-m", "benchmarks.wire", "--port", str(PORT), "--gap", str(GAP_S)], {})
        worker = _start(stack, ["-m", "celery", "-A", "tasks", "worker", "--loglevel", "WARNING"], env)
        with AgentExecClient(redis.url) as client:
            yield client, {"worker": psutil.Process(worker.pid), "redis": psutil.Process(redis.pid)}


def _start(stack: contextlib.ExitStack, arguments: list[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, *arguments], env={"PATH": "/usr/bin:/bin", **env})
    stack.callback(process.wait)
    stack.callback(process.terminate)
    return process


def _ours(client: AgentExecClient, processes: dict[str, psutil.Process], executions: int) -> dict[str, float]:
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
    before = {name: _cpu_s(process) for name, process in processes.items()}
    began = time.perf_counter()
    ids = client.submit_many([request] * executions, tenant_id="bench")
    for execution_id in ids:
        final = client.wait("bench", str(execution_id), timeout_s=120)
        assert final.status == "completed", final.error
    used = {name: (_cpu_s(process) - before[name]) / executions for name, process in processes.items()}
    return used | {"wall": time.perf_counter() - began}


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _bare(executions: int) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.bare_loop", str(PORT), str(executions)], check=True, capture_output=True
    )
    told = json.loads(done.stdout)
    return {"cpu": told["cpu_s"] / executions, "wall": told["wall_s"]}
