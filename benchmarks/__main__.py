"""`python -m benchmarks [NAME …]`: run all benchmarks, or those named, and print their ratios."""

from __future__ import annotations

import importlib
import sys

#: Each is a module with `run()`; its docstring says what is compared with what.
NAMES = [
    "whole_service",
    "provider_stream",
    "hint_cost",
    "quiet_tenant",
    "streams",
    "relay",
    "accept",
    "chain_step",
    "simulation",
    "notifier_outage",
]


def main() -> None:
    """Run them."""
    for name in sys.argv[1:] or NAMES:
        module = importlib.import_module(f"benchmarks.{name}")
        assert module.__doc__ is not None
        print(f"{name}: {module.__doc__.splitlines()[0]}", flush=True)
        module.run()


if __name__ == "__main__":
    main()
