"""A real shim for tests: uvicorn in a process of its own, as an operator starts it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.processes import Process, answers, free_port, wait_until


class ShimProcess(Process):
    """A running shim, and where it listens."""

    def __init__(self, folder: Path, *, port: int | None = None, **settings: object) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        environment = {f"AGENT_EXEC_{name.upper()}": str(value) for name, value in settings.items()}
        command = ["-m", "uvicorn", "api_shim.app:app", "--port", str(self.port)]
        super().__init__("shim", command, env=environment, log=folder / "shim.log")


@contextmanager
def shim_process(folder: Path, *, port: int | None = None, **settings: object) -> Iterator[ShimProcess]:
    """Run a shim with these settings; it must end cleanly when told to, whatever a test left open."""
    with ShimProcess(folder, port=port, **settings) as shim:
        wait_until(lambda: answers(f"{shim.url}/health/live") or not shim.running, what="the shim to answer")
        assert shim.running, shim.output
        yield shim
