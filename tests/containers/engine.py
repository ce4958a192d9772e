"""Whether containers can be built and run here. `python -m tests.containers.engine docker build …` says so, or why not.

Owns the question and its answer to a person. Does not know what is built or run.
"""

from __future__ import annotations

import shutil
import sys

import docker
from docker.errors import DockerException


def missing(build_command: str) -> str | None:
    """Return what is missing here and how to come by it, or None where all is there."""
    try:
        client = docker.from_env()
        try:
            client.ping()
        finally:
            client.close()
    except DockerException as error:
        return (
            f"No container engine answers ({error}). Start Docker, or Podman's socket (`systemctl --user start "
            "podman.socket`), and set DOCKER_HOST where it is not at /var/run/docker.sock."
        )
    if shutil.which(build_command) is None:
        return (
            f"The engine answers, but there is no command `{build_command}` to build images with. Install it, or name "
            'another: make test-containers BUILD="podman build".'
        )
    return None


def main(build: list[str]) -> int:
    """Say what is missing; 1 if anything is."""
    trouble = missing(build[0])
    if trouble is None:
        return 0
    print(f"The container tests did not run, and count as failed. {trouble}", file=sys.stderr)  # noqa: T201
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
