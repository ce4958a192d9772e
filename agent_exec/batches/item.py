"""A batch and its items, by their names. Pure.

Owns the ids, and an item as it is stored. Does not know what becomes of either.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from agent_exec import keys
from agent_exec.contract.execution import ExecutionRequest
from agent_exec.contract.message import Message
from agent_exec.submission import message_of

#: So many items, and no more bytes of them but for the first, are stored in one go.
STORED_AT_ONCE = 100
BYTES_AT_ONCE = 1_000_000
#: What an item gets that wishes for none.
LOWEST_PRIORITY = 0


@dataclass(frozen=True, slots=True)
class BatchRef:
    """One batch of one tenant."""

    tenant_id: str
    batch_id: str

    def item(self, index: int) -> Item:
        """Return one of its items."""
        return Item(self, index)

    @property
    def record(self) -> str:
        """The key of its record."""
        return keys.batch(self.tenant_id, self.batch_id)

    @property
    def items(self) -> str:
        """The key of its items."""
        return keys.batch_items(self.tenant_id, self.batch_id)

    @property
    def results(self) -> str:
        """The key of its results."""
        return keys.batch_results(self.tenant_id, self.batch_id)

    @property
    def keys(self) -> list[str]:
        """The nine keys of the scripts that may end it (`lua/_batch.lua`)."""
        return [
            self.record,
            self.items,
            self.results,
            keys.due_batches(),
            keys.open_batches(self.tenant_id),
            keys.callback(self.tenant_id, self.batch_id),
            keys.callbacks_waiting(self.tenant_id),
            keys.callbacks(),
            keys.callbacks_wake(),
        ]


@dataclass(frozen=True, slots=True)
class Item:
    """One request of a batch, and its place in it."""

    batch: BatchRef
    index: int

    @property
    def execution_id(self) -> str:
        """The id of its execution, the same whoever submits it."""
        return str(uuid.uuid5(uuid.UUID(self.batch.batch_id), str(self.index)))

    @property
    def mark(self) -> str:
        """How the execution's record names it."""
        return f"{self.batch.batch_id} {self.index}"

    def message(self, stored: str) -> Message:
        """Return its standard message.

        Raises:
            pydantic.ValidationError: a release with another contract has stored it.
        """
        request = ExecutionRequest.model_validate_json(stored)
        if "priority" not in request.model_fields_set:
            request = request.model_copy(update={"priority": LOWEST_PRIORITY})
        return message_of(request, tenant_id=self.batch.tenant_id, execution_id=self.execution_id)


class Fingerprint:
    """Tells a batch from another under the same idempotency key; made item by item, for they are many."""

    def __init__(self) -> None:
        """Begin with no item."""
        self._asked = hashlib.sha256()

    def add(self, item: str) -> None:
        """Go on with the next item."""
        self._asked.update(item.encode() + b"\n")

    def digest(self, *, callback_url: str | None) -> str:
        """Return the digest of all of them, and of who is told the end."""
        whole = self._asked.copy()
        whole.update((callback_url or "").encode())
        return whole.hexdigest()


def stored(request: ExecutionRequest) -> str:
    """Return an item as it is stored: what its sender said, and no more."""
    return request.model_dump_json(exclude_unset=True)


def slices(items: Sequence[str]) -> Iterator[tuple[int, Sequence[str]]]:
    """Cut the items into what one `add` stores; each with the index of its first."""
    start = size = 0
    for index, item in enumerate(items):
        if index > start and (index == start + STORED_AT_ONCE or size + len(item) > BYTES_AT_ONCE):
            yield start, items[start:index]
            start, size = index, 0
        size += len(item)
    yield start, items[start:]
