"""Ends what a killed stack leaves behind. A process of its own, since whoever was killed can no longer do it.

Reads process groups from its standard input, `+1234` when one begins and `-1234` when it has ended, and `.` when all is
well. Input that ends without that ends with its writer's death: the groups still open are ended, and then the command in
the arguments, if any, is run. Knows nothing else, and imports nothing of ours: it starts with every stack and should cost
nothing.
"""

import os
import signal
import subprocess
import sys
import time

#: Longer than what any process of a stack gives its own work when it is asked to end.
GRACE_S = 10.0


def send(number: int, groups: set[int]) -> set[int]:
    """Send a signal to groups; return those that there still are."""
    reached = set()
    for group in groups:
        try:
            os.killpg(group, number)
        except (ProcessLookupError, PermissionError):  # macOS answers so for a group that is all zombies
            continue
        reached.add(group)
    return reached


def keep(*afterwards: str) -> None:
    """Read until all is well or the writer is gone; then end what it left, and run `afterwards`."""
    groups: set[int] = set()
    for line in sys.stdin:
        if line[0] == ".":
            return
        (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
    groups = send(signal.SIGTERM, groups)
    give_up_at = time.monotonic() + GRACE_S
    while groups and time.monotonic() < give_up_at:
        time.sleep(0.05)
        groups = send(0, groups)
    send(signal.SIGKILL, groups)
    if afterwards:
        subprocess.run(afterwards, check=False)


if __name__ == "__main__":
    keep(*sys.argv[1:])
