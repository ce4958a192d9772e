"""`python -m chaos`: holds the promise under fire, and says whether it held.

Owns the options and the exit code: 0 the promise held, 1 it is broken, 2 the run itself failed. Does not know what is run.
"""

from __future__ import annotations

import contextlib
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import click
from rich.console import Console

from agent_exec.errors import AgentExecError
from chaos import invariants, report
from chaos.nemesis import DEFAULT_KINDS, KINDS
from chaos.run import Options, run
from sandbox import ending
from sandbox.supervised import Failed

#: Enough for some twenty worker kills; a few minutes.
DEFAULT_EXECUTIONS = 500
ROLLING = ("rolling",)
SHARE = click.FloatRange(min=0, max=1)
POSITIVE = click.FloatRange(min=0, min_open=True)


class _Kinds(click.ParamType[tuple[str, ...]]):
    """Kinds of faults, with commas between them."""

    name = "kinds"

    def convert(
        self, value: str | tuple[str, ...], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """Return them, or fail with the names there are."""
        if isinstance(value, tuple):
            return value
        names = tuple(name.strip() for name in value.split(",") if name.strip() and name.strip() != "none")
        for name in names:
            if name not in KINDS:
                self.fail(f"{name!r} is none of {', '.join(KINDS)}.", param, ctx)
        return names


@click.command()
@click.option("--executions", metavar="N", type=click.IntRange(min=1), help="How many to submit.  [default: 500]")
@click.option("--duration-s", metavar="S", type=click.FloatRange(min=1), help="Submit for so long instead, or at most.")
@click.option("--seed", metavar="N", type=int, help="The schedule of faults; without it a new one, which is printed.")
@click.option("--workers", metavar="N", default=2, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--open",
    "open_at_once",
    metavar="N",
    default=40,
    show_default=True,
    type=click.IntRange(min=1),
    help="Open at once.",
)
@click.option(
    "--faults",
    metavar="KIND,…",
    type=_Kinds(),
    default=",".join(DEFAULT_KINDS),
    help=f"Of {', '.join(KINDS)}; or none.  [default: all but rolling]",
)
@click.option("--rolling", is_flag=True, help="Rolling SIGTERM restarts alone: no call may be repeated.")
@click.option(
    "--cancels", metavar="SHARE", default=0.05, show_default=True, type=SHARE, help="Of the executions, cancelled."
)
@click.option(
    "--lease-s", metavar="S", default=10.0, show_default=True, type=POSITIVE, help="AGENT_EXEC_LEASE_S of the workers."
)
@click.option(
    "--calm", metavar="X", default=1.0, show_default=True, type=POSITIVE, help="Stretches the times between faults."
)
@click.option(
    "--pace",
    metavar="X",
    default=1.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Stretches the model's pauses.",
)
@click.option(
    "--patience",
    metavar="X",
    default=1.0,
    show_default=True,
    type=POSITIVE,
    help="Stretches a cancel's promised times.",
)
@click.option("--keep", metavar="DIR", type=click.Path(path_type=Path), help="Keep data, logs and evidence there.")
@click.option("--json", "as_json", is_flag=True, help="Print figures and violations as JSON; progress goes to stderr.")
def main(
    executions: int | None,
    duration_s: float | None,
    seed: int | None,
    workers: int,
    open_at_once: int,
    faults: tuple[str, ...],
    rolling: bool,
    cancels: float,
    lease_s: float,
    calm: float,
    pace: float,
    patience: float,
    keep: Path | None,
    as_json: bool,
) -> None:
    """Run the whole service under continuous faults, heal it, and check the promise from ledgers outside of it.

    Redis, workers and notifier are killed with -9, connections are cut, replies dropped after they took effect, and Redis
    falls silent for moments. Each execution is two completions and two tool calls. Then it is checked that nothing is lost,
    doubled, out of order, mixed up among tenants or left behind (docs/operations.md, "The proof").

    Exits 0 when the promise held, 1 when it is broken, 2 when the run itself failed.
    """
    ending.raise_on_signals()
    if seed is None:
        seed = random.randrange(1_000_000)
    if executions is None and duration_s is None:
        executions = DEFAULT_EXECUTIONS
    options = Options(
        executions=executions,
        duration_s=duration_s,
        seed=seed,
        workers=workers,
        kinds=ROLLING if rolling else faults,
        open_at_once=open_at_once,
        cancels=cancels,
        calm=calm,
        pace=pace,
        lease_s=lease_s,
    )
    began = time.monotonic()
    click.echo(f"seed {seed} (--seed {seed} replays the schedule of faults)", err=True)
    try:
        with _directory(keep) as directory:
            outcome = run(options, directory=directory, tell=lambda text: click.echo(text, err=True))
            violations = invariants.check(outcome.evidence, patience=patience)
            if keep is not None:
                (directory / "evidence.json").write_text(report.evidence_json(outcome.evidence))
    except ending.Asked as asked:
        click.echo("\nEverything is stopped.", err=True)
        sys.exit(asked.exit_code)
    except (AgentExecError, Failed) as error:
        click.echo(f"\n{error}", err=True)
        sys.exit(2)
    found = {"seed": seed, **report.figures(outcome, violations), "time, s": round(time.monotonic() - began, 1)}
    if as_json:
        click.echo(json.dumps(report.as_json(found, violations), indent=1))
    else:
        report.show(found, violations, console=Console(highlight=False, soft_wrap=True))
    sys.exit(1 if violations else 0)


@contextlib.contextmanager
def _directory(keep: Path | None) -> Iterator[Path]:
    """Yield where data and logs go: kept, or gone at the end."""
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="chaos-") as directory:
            yield Path(directory)
        return
    keep.mkdir(parents=True, exist_ok=True)
    yield keep.absolute()
    click.echo(f"Data, logs and evidence: {keep}", err=True)


if __name__ == "__main__":
    main()
