"""The calls about a batch: store it, look, list, read its results, cancel it.

Owns the Python side of these scripts. Does not know who calls, nor how its items become executions: `feeding.py`.

A batch is stored in three moves: `create`, `add` for each slice of its items, `seal`. Before `seal` nothing of it runs, and
it is soon forgotten; each move may be repeated after a lost reply.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic_core import to_json

from agent_exec import keys
from agent_exec.batches.item import BatchRef, Item
from agent_exec.callbacks.callbacks import KEEP_MS as KEEP_CALLBACK_MS
from agent_exec.contract.batch import BatchResult, BatchStatus, BatchView
from agent_exec.contract.execution import ErrorDetail, FinalResponse
from agent_exec.errors import Cancelled, Conflict, NotFound, StorageUnavailable, TooManyBatches
from agent_exec.ledger.record import at
from agent_exec.script import Call, Script

#: A batch whose sender has gone silent in the middle is forgotten after this long.
UNSEALED_MS = 3_600_000
#: A page of results: as many lines, and no more bytes than one answer may hold in memory.
RESULTS_AT_ONCE = 100
RESULT_BYTES_AT_ONCE = 500_000

_LUA = Path(__file__).parent / "lua"
_CREATE = Script.load(_LUA / "create.lua")
_ADD = Script.load(_LUA / "add.lua")
_SEAL = Script.load(_LUA / "seal.lua")
_LOOK = Script.load(_LUA / "look.lua")
_PAGE = Script.load(_LUA / "page.lua")
_RESULTS = Script.load(_LUA / "results.lua")
_CANCEL = Script.load(_LUA / "cancel.lua")


@dataclass(frozen=True, slots=True)
class Listed:
    """A batch in a tenant's list: its place there in ms, and how it stands, None where it has expired."""

    created_ms: int
    view: BatchView | None


@dataclass(frozen=True, slots=True)
class Came:
    """What one item came to: `json` is its final response, or the error for which there is none."""

    item: Item
    outcome: Literal["completed", "failed", "refused"]
    json: str

    @property
    def line(self) -> bytes:
        """The result as a line of JSON; the response is not read for that."""
        is_refused = self.outcome == "refused"
        return (
            f'{{"index":{self.item.index},"execution_id":"{self.item.execution_id}",'
            f'"status":"{"failed" if is_refused else self.outcome}",'
            f'"response":{"null" if is_refused else self.json},"error":{self.json if is_refused else "null"}}}\n'
        ).encode()

    @property
    def result(self) -> BatchResult:
        """The result as a model."""
        is_refused = self.outcome == "refused"
        return BatchResult(
            index=self.item.index,
            execution_id=self.item.execution_id,
            status="completed" if self.outcome == "completed" else "failed",
            response=None if is_refused else FinalResponse.model_validate_json(self.json),
            error=ErrorDetail.model_validate_json(self.json) if is_refused else None,
        )


@dataclass(frozen=True, slots=True)
class Results:
    """A page of results, behind one another; `over` where no more will come behind them."""

    came: tuple[Came, ...]
    over: bool


def create(ref: BatchRef, *, digest: str, count: int, callback_url: str | None, max_open: int) -> Call[bool]:
    """Begin a batch of so many items; True where it was stored whole before, by the same request.

    Raises:
        Conflict: (when run) its idempotency key came before with another request.
        TooManyBatches: (when run) the tenant has `max_open` batches that are not over.
    """

    def parse(reply: bytes) -> bool:
        verdict = reply.decode()
        if verdict == "mismatch":
            raise Conflict(
                f"Batch '{ref.batch_id}': its idempotency key came before with another request; send a new one."
            )
        if verdict == "full":
            raise _too_many(ref, max_open)
        return verdict == "sealed"

    return Call(
        _CREATE,
        [ref.record, keys.open_batches(ref.tenant_id)],
        [ref.tenant_id, ref.batch_id, digest, count, callback_url or "", UNSEALED_MS, max_open],
        parse,
    )


def add(ref: BatchRef, items: Sequence[str], *, start: int) -> Call[int]:
    """Add items behind the `start` that there are; return how many there are now."""
    return Call(_ADD, [ref.record, ref.items], [start, UNSEALED_MS, *items], int)


def seal(ref: BatchRef, *, keep_s: int, max_open: int) -> Call[None]:
    """Store the batch: when this returns it will be run. It is forgotten when nothing of it ends or begins for `keep_s`.

    Raises:
        StorageUnavailable: (when run) items are missing, for it was forgotten meanwhile.
        TooManyBatches: (when run) others were sealed meanwhile, and it is forgotten.
    """

    def parse(reply: bytes) -> None:
        if reply == b"short":
            raise StorageUnavailable(f"Batch '{ref.batch_id}': Redis has lost a part of it; submit it again.")
        if reply == b"full":
            raise _too_many(ref, max_open)

    due, its_open, all_of_tenant = keys.due_batches(), keys.open_batches(ref.tenant_id), keys.batches(ref.tenant_id)
    return Call(
        _SEAL,
        [ref.record, ref.items, due, its_open, all_of_tenant],
        [ref.tenant_id, ref.batch_id, keep_s * 1000, max_open],
        parse,
    )


def look(ref: BatchRef) -> Call[BatchView]:
    """Read where a batch stands.

    Raises:
        NotFound: (when run) this tenant has no such batch.
    """

    def parse(flat: list[bytes]) -> BatchView:
        view = _view(ref, flat)
        if view is None:
            raise _not_found(ref)
        return view

    return Call(_LOOK, [ref.record], [], parse)


def page(tenant_id: str, *, before_ms: int | None = None, skip: int = 0, limit: int) -> Call[list[Listed]]:
    """Read where a tenant's batches stand, newest first: those stored at or before `before_ms`, less the first `skip`."""

    def parse(reply: list[Any]) -> list[Listed]:
        return [Listed(int(ms), _view(BatchRef(tenant_id, name.decode()), flat)) for name, ms, flat in reply]

    args: list[str | int] = ["+inf" if before_ms is None else before_ms, skip, limit, keys.batch(tenant_id, "")]
    return Call(_PAGE, [keys.batches(tenant_id)], args, parse)


def results(ref: BatchRef, *, after: int = 0, limit: int = RESULTS_AT_ONCE) -> Call[Results]:
    """Read at most `limit` results behind the first `after`; before the batch is over, those that are there without a gap.

    Raises:
        NotFound: (when run) this tenant has no such batch.
    """

    def parse(reply: list[Any]) -> Results:
        if not reply:
            raise _not_found(ref)
        count, is_over, *texts = reply
        came = tuple(_came(ref.item(index), text) for index, text in enumerate(texts, start=after))
        return Results(came, over=bool(is_over) and after + len(came) >= count)

    return Call(_RESULTS, [ref.record, ref.results], [after, limit, RESULT_BYTES_AT_ONCE], parse)


def cancel(ref: BatchRef, *, keep_s: int) -> Call[bool]:
    """Ask for the end of a batch; durable. False: it was over. Where nothing of it has begun it is kept for `keep_s`.

    Raises:
        NotFound: (when run) this tenant has no such batch.
    """

    def parse(reply: bytes) -> bool:
        if reply == b"gone":
            raise _not_found(ref)
        return reply == b"requested"

    return Call(_CANCEL, ref.keys, [ref.tenant_id, ref.batch_id, keep_s * 1000, KEEP_CALLBACK_MS], parse)


def _too_many(ref: BatchRef, max_open: int) -> TooManyBatches:
    return TooManyBatches(
        f"Tenant '{ref.tenant_id}' has {max_open} batches under way, and at most so many may be; send again when one has "
        "ended."
    )


def _not_found(ref: BatchRef) -> NotFound:
    return NotFound(f"Batch '{ref.batch_id}': there is none, or none any more.")


def _view(ref: BatchRef, flat: Sequence[bytes]) -> BatchView | None:
    """Return what a caller sees of a batch; None where it has expired, or was never sealed."""
    fields = {name.decode(): text.decode() for name, text in zip(flat[::2], flat[1::2], strict=True)}
    if "sealed_ms" not in fields:
        return None
    count, submitted = int(fields["count"]), int(fields["next"])
    is_cancelled, is_over = "cancel_ms" in fields, "finished_ms" in fields
    status: BatchStatus = "processing" if submitted or is_cancelled else "pending"
    if is_over:
        status = "cancelled" if is_cancelled else "completed"
    return BatchView(
        batch_id=ref.batch_id,
        tenant_id=ref.tenant_id,
        status=status,
        count=count,
        submitted=submitted,
        completed=int(fields["completed"]),
        failed=int(fields["failed"]),
        cancelled=count - int(fields["taken"]) if is_cancelled else 0,
        cancel_requested=is_cancelled,
        created_at=at(fields["created_ms"]),
        finished_at=at(fields["finished_ms"]) if is_over else None,
    )


def error_json(code: str, message: str, *, retryable: bool) -> str:
    """Return why an item came to no execution, as it is stored."""
    return to_json(ErrorDetail(code=code, message=message, retryable=retryable)).decode()


_NEVER_SUBMITTED = error_json(
    Cancelled.code, "The batch was cancelled before this request became an execution.", retryable=Cancelled.retryable
)


def _came(item: Item, text: bytes | None) -> Came:
    if text is None:
        return Came(item, "refused", _NEVER_SUBMITTED)
    outcome, _, json = text.decode().partition(" ")
    return Came(item, outcome, json)  # type: ignore[arg-type]  # the scripts write no other
