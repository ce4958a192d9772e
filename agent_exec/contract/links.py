"""What follows the end of an execution in the canvas of a Celery app: its callbacks, the rest of its chain, its chord.

Owns the shape in which this is kept until then, and which tasks may be named in it. Does not know how any of it is sent.

Source: Celery, "Message Protocol", version 2, and "Canvas: Designing Work-flows".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import AfterValidator, Field, JsonValue

from agent_exec.contract.model import MAX_BODY_BYTES, ContractModel
from agent_exec.routing import EXECUTE_TASK

#: As large as a message may be: a chain carries the messages of its later executions.
MAX_LINKS_BYTES = MAX_BODY_BYTES
#: Signatures within one another. Celery recurses through them, here and in the app's own workers.
MAX_NESTING = 20
#: All tasks of this service begin so; the app's may not.
OURS = EXECUTE_TASK.partition(".")[0] + "."

#: Where the signatures are that a signature of each type is made of; other types of signature are tasks.
_PARTS = {
    "chain": ("tasks",),
    "group": ("tasks",),
    "chord": ("header", "body"),
    "chunks": ("task",),
    "xmap": ("task",),
    "xstarmap": ("task",),
}
_OPTIONS = ("link", "link_error", "chain", "chord")


def _checked(signature: dict[str, JsonValue]) -> dict[str, JsonValue]:
    for name in _named(signature, MAX_NESTING):
        if name.startswith(OURS) and name != EXECUTE_TASK:
            raise ValueError(
                f"a link that names the task '{name}': of this service's, only '{EXECUTE_TASK}' may be linked"
            )
    return signature


def _named(signature: Any, nesting: int) -> Iterator[str]:
    """Return the names of all tasks in a signature.

    Raises:
        ValueError: it is none.
    """
    if nesting == 0:
        raise ValueError(f"links nested deeper than {MAX_NESTING}")
    match signature:
        case {"task": str(task), "args": list(), "kwargs": dict(kwargs), "options": dict(options)}:
            yield task
            kind = signature.get("subtask_type")
            parts = [kwargs.get(name) for name in _PARTS.get(kind if isinstance(kind, str) else "", ())]
            for part in (*parts, *(options.get(name) for name in _OPTIONS)):
                for one in part if isinstance(part, list) else [part]:
                    if one is not None:
                        yield from _named(one, nesting - 1)
        case _:
            raise ValueError("a link that is no signature")


Signature = Annotated[dict[str, JsonValue], AfterValidator(_checked)]


class Links(ContractModel):
    """What a Celery message says of its place in a canvas. `task_id` is Celery's; the execution may have another."""

    task_id: str = Field(min_length=1, max_length=200)
    callbacks: list[Signature] = Field(default_factory=list)
    errbacks: list[Signature] = Field(default_factory=list)
    #: The last is the next, as Celery has it.
    chain: list[Signature] = Field(default_factory=list)
    chord: Signature | None = None
    group: str | None = None
    group_index: int | None = None
    root_id: str | None = None
    parent_id: str | None = None
    ignore_result: bool = False
    replaced_task_nesting: int = 0
    stamped_headers: list[str] | None = None
    stamps: dict[str, JsonValue] | None = None
