"""`python -m sandbox up` and `demo`, as a person starts them; and that nothing of them is left behind."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent_exec.embedded import free_port
from sandbox import keeper
from sandbox.supervised import Failed, Supervised
from tests.processes import Process, wait_until

QUESTION = "What is 17 * 23, and what time is it in Tokyo?"


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Start the sandbox's command with its state in a directory of the test; whatever is left is killed."""
    started: list[Process] = []

    def start(*arguments: str, **env: str) -> Process:
        process = Process(
            "sandbox",
            ["-m", "sandbox", *arguments],
            env={"AGENT_EXEC_STATE_DIR": str(tmp_path / "state"), **env},
            log=tmp_path / "output",
        )
        started.append(process)
        return process

    yield start
    for process in started:
        left = family(process.pid)
        process.kill()
        for pid in left:
            kill(pid)


def family(pid: int) -> set[int]:
    """Return the processes that stem from `pid`, itself not among them."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    children: dict[int, list[int]] = {}
    for line in listed.splitlines():
        child, parent = map(int, line.split())
        children.setdefault(parent, []).append(child)
    found, left = set[int](), [pid]
    while left:
        for child in children.get(left.pop(), []):
            found.add(child)
            left.append(child)
    return found


def command_of(pid: int) -> str:
    """Return a process's command line; empty when it is gone, or waits only for its exit code to be read."""
    asked = ["ps", "-ww", "-o", "stat=,command=", "-p", str(pid)]
    state, _, command = subprocess.run(asked, capture_output=True, text=True).stdout.strip().partition(" ")
    return "" if state.startswith("Z") else command


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def members(process: Process, *words: str) -> dict[str, int]:
    """Return the processes in whose command lines these words stand, once there is one for each."""

    def found() -> dict[str, int] | None:
        commands = {pid: command_of(pid) for pid in family(process.pid)}
        named = {word: pid for word in words for pid, command in commands.items() if word in command}
        return named if len(named) == len(words) else None

    return wait_until(found, what=f"{words} to run", within_s=30) or {}


def gone(pids: set[int]) -> bool:
    return not any(command_of(pid) for pid in pids)


def test_up_serves_until_it_is_interrupted_and_leaves_nothing(sandbox: Callable[..., Process], tmp_path: Path) -> None:
    base = free_port()
    up = sandbox("up", "--port-base", str(base))
    wait_until(lambda: "is ready." in up.output or not up.running, what="the stack", within_s=50)
    output = up.output
    assert up.running, output
    everything = family(up.pid)
    assert {command_of(pid).split()[0] for pid in everything} >= {sys.executable}

    key = re.search(r"Key of acme +(\S+)", output)
    assert key is not None
    asked = urllib.request.Request(
        f"http://127.0.0.1:{base}/v1/executions",
        json.dumps({"agent_id": "desk", "query": QUESTION}).encode(),
        {"Authorization": f"Bearer {key[1]}", "Content-Type": "application/json", "Prefer": "wait=30"},
    )
    with urllib.request.urlopen(asked, timeout=30) as answer:  # noqa: S310
        assert "391" in json.load(answer)["output"]["text"]

    # Another terminal finds the same store by the state directory alone, and leaves it running.
    tried = subprocess.run(
        [sys.executable, "-c", "from agent_exec.cli import main; main()", "run", "--tenant", "acme", "--agent", "desk"],
        input=QUESTION,
        env={"AGENT_EXEC_STATE_DIR": str(tmp_path / "state"), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (tried.returncode, "391" in tried.stdout) == (0, True), tried.stderr
    assert up.running

    flower = f"http://127.0.0.1:{base + 1}"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(flower, timeout=10)

    up.send(signal.SIGINT)
    assert up.stop() == 0
    assert "Everything is stopped." in up.output
    assert gone(everything)


def test_up_that_is_killed_takes_everything_with_it(sandbox: Callable[..., Process]) -> None:
    up = sandbox("up", "--port-base", str(free_port()))
    members(up, "celery -A tasks worker", "notifier", "uvicorn", "flower", "valkey-server")
    everything = family(up.pid)
    os.kill(up.pid, signal.SIGKILL)
    wait_until(lambda: gone(everything), what="everything to be gone", within_s=20)


def test_up_names_the_process_that_failed_and_its_log(sandbox: Callable[..., Process], tmp_path: Path) -> None:
    up = sandbox("up", "--port-base", str(free_port()))
    victim = members(up, "uvicorn")["uvicorn"]
    everything = family(up.pid)
    kill(victim)
    wait_until(lambda: not up.running, what="it to stop", within_s=20)
    assert up.stop() == 1
    assert f"shim ended with exit code -9. Its log: {tmp_path / 'state' / 'logs' / 'shim.log'}" in up.output
    assert gone(everything)


def test_up_says_which_port_is_taken_and_what_to_do(sandbox: Callable[..., Process]) -> None:
    base = free_port()
    with socket.create_server(("127.0.0.1", base + 1)):
        up = sandbox("up", "--port-base", str(base))
        wait_until(lambda: not up.running, what="it to stop")
    assert up.stop() == 1
    assert f"Port {base + 1}, for Flower, is taken" in up.output
    assert "--port-base" in up.output


def test_up_says_what_is_wrong_with_its_environment(sandbox: Callable[..., Process]) -> None:
    up = sandbox("up", AGENT_EXEC_REDIS_URL="redis://127.0.0.1:1/0")
    wait_until(lambda: not up.running, what="it to stop")
    assert up.stop() == 1
    assert "Redis does not answer" in up.output
    assert "Traceback" not in up.output


def test_the_demo_tells_one_execution_and_leaves_nothing(sandbox: Callable[..., Process], tmp_path: Path) -> None:
    demo = sandbox("demo", OPENAI_API_KEY="sk-real")
    everything = set[int]()

    def ended() -> bool:
        everything.update(family(demo.pid))
        return not demo.running

    wait_until(ended, what="the demo", within_s=50)
    told = demo.output
    assert demo.stop() == 0, told
    assert "--provider openai asks openai" in told
    for words in [
        'tool call   calculator {"expression":"17 * 23"}',
        'tool call   clock {"city":"Tokyo"}',
        'tool result calculator → {"expression":"17 * 23","value":391}',
        "\n17 * 23 is 391. In Tokyo it is ",
        "completed   2 turns",
        "tokens read",
        "agent_response_token",
        "in order, each once",
        "completion 2",
    ]:
        assert words in told, told
    assert len(everything) >= 5
    assert gone(everything)
    assert list((tmp_path / "state").iterdir()) == []


def test_the_demo_can_be_interrupted_at_any_time(sandbox: Callable[..., Process], tmp_path: Path) -> None:
    demo = sandbox("demo")
    members(demo, "celery -A tasks worker", "valkey-server")
    everything = family(demo.pid)
    demo.send(signal.SIGINT)
    wait_until(lambda: not demo.running, what="it to stop", within_s=20)
    assert demo.stop() == 130
    assert gone(everything)
    assert list((tmp_path / "state").iterdir()) == []


def test_the_demo_says_what_failed_and_keeps_the_logs(sandbox: Callable[..., Process], tmp_path: Path) -> None:
    demo = sandbox("demo")
    victim = members(demo, "celery -A tasks worker")["celery -A tasks worker"]
    everything = family(demo.pid)
    kill(victim)
    wait_until(lambda: not demo.running, what="it to stop", within_s=20)
    assert demo.stop() == 1
    (kept,) = (tmp_path / "state").iterdir()
    assert f"worker ended with exit code -9. Its log: {kept / 'logs' / 'worker.log'}" in demo.output
    assert gone(everything)


def test_a_real_provider_needs_its_key(sandbox: Callable[..., Process], tmp_path: Path) -> None:
    demo = sandbox("demo", "--provider", "groq")
    wait_until(lambda: not demo.running, what="it to stop")
    assert demo.stop() == 1
    assert "GROQ_API_KEY" in demo.output


def test_the_keeper_ends_what_its_writer_left(tmp_path: Path) -> None:
    left = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    deaf = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(1e3)",
        ],
        start_new_session=True,
        stdout=subprocess.PIPE,
    )
    spared = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    assert deaf.stdout is not None
    deaf.stdout.readline()
    groups = f"+{left.pid}\n+{spared.pid}\n+{deaf.pid}\n-{spared.pid}\n"
    folder = str(Path(keeper.__file__).parent)
    patient = (
        f"import sys; sys.path.insert(0, {folder!r}); import keeper; "
        "keeper.GRACE_S = 0.2; keeper.keep('touch', 'after')"
    )
    try:
        subprocess.run([sys.executable, "-c", patient], input=groups, text=True, check=True, timeout=20, cwd=tmp_path)
        assert (left.wait(), deaf.wait(), spared.poll()) == (-signal.SIGTERM, -signal.SIGKILL, None)
        assert (tmp_path / "after").exists()
    finally:
        spared.kill()
        spared.wait()
        deaf.stdout.close()


def test_processes_are_asked_to_end_in_order_and_their_output_is_kept(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ends = tmp_path / "ends"
    lives = f"trap 'echo $0 >> {ends}; exit 0' TERM; echo $0 is here; while :; do sleep 0.01; done"
    with Supervised(
        logs=tmp_path / "logs",
        environment={"PATH": "/usr/bin:/bin"},
        directory=tmp_path,
        echo=True,
        stop_order=[["b"], ["a"]],
    ) as group:
        for name in ("a", "b", "c"):
            group.start(name, "sh", "-c", lives, name, ready_words="is here")
        for member in group.members.values():
            assert member.is_ready.wait(20)
        group.check()
    assert ends.read_text().split() == ["b", "a", "c"]
    assert (tmp_path / "logs" / "a.log").read_text().startswith("a is here\n")
    assert re.search(r"\d\d:\d\d:\d\d b \| b is here", capfd.readouterr().out.replace("  ", " "))


def test_a_member_that_ends_by_itself_ends_the_wait(tmp_path: Path) -> None:
    with Supervised(logs=tmp_path, environment={"PATH": "/usr/bin:/bin"}, directory=tmp_path, echo=False) as group:
        group.start("steady", "sleep", "1000")
        group.start("short", "sh", "-c", "echo I am done for; exit 3")
        with pytest.raises(Failed, match=r"(?s)short ended with exit code 3.*I am done for"):
            group.wait()
