"""Batches over HTTP: hand one in, list, show, download its results, cancel.

Owns their parameters and answers. Does not know how a body is cut into requests, nor what makes executions of these.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Annotated, Any

import structlog
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Send

from agent_exec import submission
from agent_exec.batches import batch, item
from agent_exec.batches.batch import RESULTS_AT_ONCE, Results
from agent_exec.batches.item import BatchRef
from agent_exec.contract.batch import MAX_ITEMS, BatchId, BatchList, BatchRequest, BatchStatus
from agent_exec.contract.execution import ExecutionRequest
from agent_exec.contract.model import ContractModel
from agent_exec.errors import NotFound, StorageError
from agent_exec.script import Call
from api_shim.batch_body import Batch, read_batch
from api_shim.operation import (
    IDEMPOTENCY_KEY_PATTERN,
    Asked,
    Conditional,
    NoParameters,
    Parameters,
    Repeatable,
    json_response,
    tagged_response,
)
from api_shim.place import Place
from api_shim.shim import Shim

log = structlog.get_logger(__name__)

LINES = "application/jsonl"


class BatchParameters(Repeatable):
    """How a batch is handed in again safely."""

    idempotency_key: Annotated[
        str | None,
        Field(
            alias="Idempotency-Key",
            pattern=IDEMPOTENCY_KEY_PATTERN,
            description="the same key and requests name the same batch, for as long as it is kept; others are refused",
        ),
    ] = None


class BatchAccepted(ContractModel):
    """A batch is stored, and will be run."""

    batch_id: BatchId
    status: BatchStatus
    count: Annotated[int, Field(description="its requests")]
    replayed: Annotated[bool, Field(description="whether this Idempotency-Key had been accepted before")]
    links: Annotated[dict[str, str], Field(description="paths: self, results, cancel")]


class BatchListParameters(Parameters):
    """Which of a tenant's batches."""

    cursor: Annotated[str | None, Field(max_length=200, description="`next_cursor` of the page before")] = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20


class ResultsParameters(Parameters):
    """Which of a batch's results."""

    after: Annotated[
        int, Field(ge=0, le=MAX_ITEMS, description="how many are known already; the first has index 0")
    ] = 0
    limit: Annotated[int, Field(ge=1, le=MAX_ITEMS)] = MAX_ITEMS


async def submit_batch(asked: Asked[BatchParameters, BatchRequest]) -> Response:
    """Store a batch of up to 10,000 requests, as JSON or one a line; answered once it is stored.

    All are checked first: where one is wrong, none is stored. Its executions are the least urgent of the tenant, unless a
    request names another priority.
    """
    shim, tenant_id = asked.shim, asked.tenant_id
    assert isinstance(asked.connection, Request)

    def admit(request: ExecutionRequest) -> None:
        retention_s = shim.settings.open_retention_s
        submission.admit(request, tenant_id=tenant_id, open_retention_s=retention_s, callback_door=shim.callbacks)

    async with shim.upload(tenant_id):
        handed_in = await read_batch(
            asked.connection,
            admit=admit,
            max_bytes=shim.settings.api_max_batch_bytes,
            timeout_s=shim.settings.api_body_timeout_s,
        )
        if handed_in.callback_url is not None:
            shim.callbacks.admit(handed_in.callback_url, tenant_id=tenant_id)
        ref = BatchRef(
            tenant_id,
            submission.id_of_key("batch", tenant_id=tenant_id, idempotency_key=asked.parameters.idempotency_key),
        )
        is_replayed = await _store(shim, ref, handed_in)
    status: BatchStatus = "pending"
    if is_replayed:
        status = (await shim.run(batch.look(ref))).status
    path = f"/v1/batches/{ref.batch_id}"
    accepted = BatchAccepted(
        batch_id=ref.batch_id,
        status=status,
        count=len(handed_in.items),
        replayed=is_replayed,
        links={"self": path, "results": f"{path}/results", "cancel": f"{path}/cancel"},
    )
    return json_response(accepted, status=202, headers={"Location": path})


async def _store(shim: Shim, ref: BatchRef, handed_in: Batch) -> bool:
    """Store a batch; say whether it was before."""
    max_open = shim.settings.max_open_batches
    beginning = batch.create(
        ref,
        digest=handed_in.fingerprint.digest(callback_url=handed_in.callback_url),
        count=len(handed_in.items),
        callback_url=handed_in.callback_url,
        max_open=max_open,
    )
    if await shim.run(beginning):
        return True
    for start, some in item.slices(handed_in.items):
        await shim.run(batch.add(ref, some, start=start))
    await shim.run(batch.seal(ref, keep_s=shim.settings.open_retention_s, max_open=max_open))
    return False


async def list_batches(asked: Asked[BatchListParameters, None]) -> Response:
    """List batches, newest first."""
    of = f"{asked.tenant_id} batches"
    place, limit = Place.parse(asked.parameters.cursor, of=of), asked.parameters.limit
    listed = await asked.shim.run(batch.page(asked.tenant_id, before_ms=place.before_ms, skip=place.skip, limit=limit))
    for one in listed:
        place = place.behind(one.created_ms)
    return json_response(
        BatchList(
            batches=[one.view for one in listed if one.view is not None],
            next_cursor=place.text(of=of) if len(listed) == limit else None,
        )
    )


async def show_batch(asked: Asked[Conditional, None]) -> Response:
    """Show where a batch stands."""
    view = await asked.shim.run(batch.look(_ref(asked)))
    return tagged_response(view, known=asked.parameters.if_none_match)


async def download_results(asked: Asked[ResultsParameters, None]) -> Response:
    """Download what the requests of a batch came to, a JSON object a line, in their order.

    While the batch is not over, the download ends before the first request that has not ended. It may end earlier, too:
    go on with `after`, the number of whole lines that have come.
    """
    first = await asked.shim.run(_page(asked, after=asked.parameters.after))
    return Download(_lines(asked, first), shim=asked.shim, tenant_id=asked.tenant_id)


async def cancel_batch(asked: Asked[NoParameters, None]) -> Response:
    """Ask for the end of a batch; durable once answered.

    Requests that are no executions yet never become any; those that are, are cancelled.
    """
    ref = _ref(asked)
    await asked.shim.run(batch.cancel(ref, keep_s=asked.shim.settings.retention_s))
    view = await asked.shim.run(batch.look(ref))
    return json_response(view, status=202)


class Download(StreamingResponse):
    """Lines that count as a stream while they last, and let go of a reader who takes none."""

    def __init__(self, lines: AsyncGenerator[bytes], *, shim: Shim, tenant_id: str) -> None:
        """Take the lines, and whose they are."""
        super().__init__(lines, media_type=LINES, headers={"Cache-Control": "no-store"})
        self._shim = shim
        self._tenant_id = tenant_id

    async def stream_response(self, send: Send) -> None:
        """Send until the lines end, or the reader has taken none for too long.

        Raises:
            TooManyStreams: nothing was sent: the tenant has as many as it may.
        """
        timeout_s = self._shim.settings.api_send_timeout_s

        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(timeout_s):
                await send(message)

        with self._shim.streams.one_more(self._tenant_id):
            try:
                await super().stream_response(send_in_time)
            except TimeoutError:
                log.warning("reader dropped, it took nothing", for_s=timeout_s)


async def _lines(asked: Asked[ResultsParameters, None], page: Results) -> AsyncGenerator[bytes]:
    after, end = asked.parameters.after, asked.parameters.after + asked.parameters.limit
    while page.came:
        yield b"".join(came.line for came in page.came)
        after += len(page.came)
        if page.over or after == end or asked.shim.live.draining:
            return
        try:
            page = await asked.shim.run(_page(asked, after=after))
        except (StorageError, NotFound) as error:  # a reader that goes on is told by the status
            log.info("download of results ends early", code=error.code)
            return


def _page(asked: Asked[ResultsParameters, None], *, after: int) -> Call[Results]:
    left = asked.parameters.after + asked.parameters.limit - after
    return batch.results(_ref(asked), after=after, limit=min(RESULTS_AT_ONCE, left))


def _ref(asked: Asked[Any, None]) -> BatchRef:
    return BatchRef(asked.tenant_id, str(asked.connection.path_params["batch_id"]))
