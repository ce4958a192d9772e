"""What follows an execution in the canvas of the app that sent it: taken off its message, kept, sent when it has ended.

Owns when links are sent, and that it is once: all that follows is written by one script, which takes the links away. Whoever
comes to them again, or beside another, finds none, or finds that something has changed, and plans anew. What follows is
decided by canvas.py. Does not know why an execution ends.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, NoReturn

import structlog
from celery.app.task import Context
from kombu.utils.json import dumps
from pydantic import ValidationError

from agent_exec import keys, submission, transaction
from agent_exec.contract.execution import FinalResponse
from agent_exec.contract.links import MAX_LINKS_BYTES, Links
from agent_exec.errors import AgentExecError, ExecutionFailed, InvalidMessage, StorageError
from agent_exec.ledger import ledger
from agent_exec.store import Store
from agent_exec.transaction import Transaction, Unread, Words
from tasks import response
from tasks.canvas import Canvas, bury

log = structlog.get_logger(__name__)

#: How often each worker looks for links whose sender has died.
LOOK_EVERY_S = 1.0
#: A refused message that comes again within a day is refused in silence.
REFUSED_S = 86_400

_TAKEN = ("callbacks", "errbacks", "chain", "chord")
_KEPT = (
    "group",
    "group_index",
    "root_id",
    "parent_id",
    "ignore_result",
    "replaced_task_nesting",
    "stamped_headers",
    "stamps",
)


def take_off(request: Context) -> dict[str, Any]:
    """Take the links off a Celery task that has begun, so that none is sent when it returns; return what there was."""
    taken = {name: found for name in _TAKEN if (found := getattr(request, name))}
    request.update(dict.fromkeys(_TAKEN))
    return taken


class Sender:
    """Sends links, for one process."""

    def __init__(self, store: Store, *, retention_s: int) -> None:
        """Take the store, and how long results are kept."""
        self._store = store
        self._retention_s = retention_s
        self._canvas = Canvas(result_expires_s=retention_s)

    def read(self, request: Context, taken: dict[str, Any], *, execution_id: str | None) -> str:
        """Return what is to be kept of a Celery message's links, as JSON; empty where nothing follows, and nobody is told.

        Raises:
            InvalidMessage: they cannot be sent, or must not.
        """
        if not taken and (request.id == execution_id or request.ignore_result):
            return ""
        kept = {name: found for name in _KEPT if (found := getattr(request, name)) is not None}
        try:
            text = dumps({"task_id": request.id, **kept, **taken})  # type: ignore[no-untyped-call]  # kombu's
            if len(text) > MAX_LINKS_BYTES:
                raise InvalidMessage(
                    f"The message's links have {len(text)} bytes; at most {MAX_LINKS_BYTES} are taken."
                )
            links = Links.model_validate_json(text)
        except ValidationError as error:
            raise InvalidMessage(f"The message's links cannot be sent: {submission.complaints(error)}.") from None
        except RecursionError:
            raise InvalidMessage("The message's links are nested far too deep.") from None
        if taken and (complaints := self._canvas.complaints(links)):
            raise InvalidMessage(f"The message's links cannot be sent: {'; '.join(dict.fromkeys(complaints))}.")
        return links.model_dump_json(exclude_defaults=True)

    async def send(self, tenant_id: str, execution_id: str) -> None:
        """Send what follows an execution that has ended, unless that was done."""
        kept = ("GET", keys.links(tenant_id, execution_id))
        ended = ("HGET", keys.execution(tenant_id, execution_id), "response")
        entry = f"{tenant_id} {execution_id}"

        def take_away(plan: Transaction) -> None:
            plan.write("DEL", kept[1])
            plan.write("ZREM", keys.unsent_links(), entry)

        def follow(plan: Transaction) -> None:
            links, final = plan.read(kept, ended)
            if links is not None and final is not None:
                self._follow(plan, links.decode(), FinalResponse.model_validate_json(final))
            take_away(plan)

        def give_up(plan: Transaction) -> None:
            links, final = plan.read(kept, ended)
            if links is not None and final is not None:
                why = "the links of this execution could not be sent; the workers' logs say why"
                bury(plan, f"{execution_id}: {why}", queue="", tag=execution_id, message=links.decode())
                self._tell(plan, execution_id, FinalResponse.model_validate_json(final))
            take_away(plan)

        if not await self._carry_out(follow):
            await self._carry_out(give_up)

    async def refuse(self, links: str, tag: str, error: AgentExecError) -> None:
        """Send what follows a message that was refused, once for each delivery `tag`."""
        told = keys.refused_links(tag)

        def follow(plan: Transaction) -> None:
            if plan.get(told) is None:
                failure = ExecutionFailed(error.code, str(error), {})
                self._canvas.fail(plan, links, failure, own_result=False)
                plan.write("SET", told, "1", "EX", REFUSED_S)

        await self._carry_out(follow)

    async def keep_sending(self) -> NoReturn:
        """Send, for ever, the links of executions whose worker died before it had."""
        while True:
            try:
                due = await self._store.run(ledger.due_links())
                await asyncio.gather(*[self.send(*one) for one in due])
            except StorageError:  # the store tells of it
                pass
            await asyncio.sleep(LOOK_EVERY_S)

    def _follow(self, plan: Transaction, links: str, final: FinalResponse) -> None:
        value, task_id, own = final.model_dump(mode="json"), json.loads(links)["task_id"], True
        if task_id != final.execution_id:
            self._tell(plan, final.execution_id, final)
            own = plan.get(keys.tenant_of(task_id)) is None  # else another execution's result stands there, or will
        if final.error is None:
            self._canvas.succeed(plan, links, value, own_result=own)
        else:
            failure = ExecutionFailed(final.error.code, final.error.message, value)
            self._canvas.fail(plan, links, failure, own_result=own)

    def _tell(self, plan: Transaction, execution_id: str, final: FinalResponse) -> None:
        """Have the response be the Celery result under the execution's own id."""
        result = response.celery_result(final)
        plan.write("SET", keys.celery_result(execution_id), result, "EX", self._retention_s)
        plan.write("PUBLISH", keys.celery_result(execution_id), result)

    async def _carry_out(self, follow: Callable[[Transaction], None]) -> bool:
        """Plan and write until nothing has changed in between; say whether a plan was possible."""
        seen: dict[Words, Any] = {}
        while True:
            plan = Transaction(seen)
            try:
                try:
                    follow(plan)
                except Unread as unread:
                    found = await self._store.insist(transaction.observe(unread.reads))
                    seen.update(found)
                    continue
                verdict = await self._store.insist(transaction.commit(plan))
            except Exception:
                log.exception("links not sent")
                return False
            if verdict == "written":
                return True
            if verdict != "changed":
                log.error("links not sent", reason=verdict)
                return False
            seen = {}
