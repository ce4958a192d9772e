"""The sender of callbacks: each arrives, signed, at least once, under one id and with one body (F51, I5)."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import pytest
from standardwebhooks import Webhook, WebhookVerificationError
from structlog.testing import capture_logs

from agent_exec import keys
from agent_exec.callbacks import callbacks
from agent_exec.callbacks.callbacks import CallbackRef, Sending
from agent_exec.callbacks.destination import Rules
from agent_exec.callbacks.schedule import PAUSES_S
from agent_exec.callbacks.secrets import CallbackSecrets
from agent_exec.contract.callback import CallbackView
from agent_exec.settings import Settings, read_settings
from agent_exec.store import BlockingStore, Store
from notifier import egress as egress_module
from notifier.callbacks import CallbackSender, signature
from notifier.egress import Egress
from tests.callbacks.played_end import ended_soon, time_passes
from tests.notifier.played_orchestrator import until
from tests.notifier.played_receiver import OK, Arrival, Receiver, answer
from tests.notifier.played_work import eventually

SECRET = f"whsec_{base64.b64encode(bytes(range(32))).decode()}"
OTHER_SECRET = f"whsec_{base64.b64encode(os.urandom(24)).decode()}"
Running = Callable[..., AbstractAsyncContextManager[CallbackSender]]


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver().listening() as one:
        yield one


@pytest.fixture
def settings(redis_url: str) -> Settings:
    return read_settings(
        redis_url=redis_url,
        callback_secret=SECRET,
        callback_allow_http="1",
        callback_allowed_networks="127.0.0.0/8",
        notifier_drain_s=5,
    )


@pytest.fixture
def running(settings: Settings) -> Running:
    """A sender that runs inside of an `async with`, and drains at its end."""

    @asynccontextmanager
    async def run(**changes: object) -> AsyncIterator[CallbackSender]:
        own = settings.model_copy(update=changes)
        store = Store(own.redis_url or "")
        async with Egress(Rules.of(own)) as egress:
            sender = CallbackSender(own, store=store, secrets=CallbackSecrets(own), egress=egress)
            task = asyncio.create_task(sender.run())
            try:
                yield sender
            finally:
                sender.stop()
                await task
                await store.aclose()

    return run


class Ends:
    """Ends of executions that have a callback, and how it stands."""

    def __init__(self, store: Store, blocking: BlockingStore, settings: Settings) -> None:
        self.store = store
        self._blocking = blocking
        self._rules = Rules.of(settings)

    async def one(self, url: str, *, tenant_id: str = "acme", text: str = "") -> CallbackRef:
        return await ended_soon(self.store, url, rules=self._rules, tenant_id=tenant_id, text=text)

    async def stands(self, ref: CallbackRef, state: str) -> CallbackView:
        async def so() -> bool:
            return (await self.store.run(callbacks.look(ref))).state == state

        await eventually(so)
        return await self.store.run(callbacks.look(ref))

    async def tried(self, ref: CallbackRef, attempts: int) -> CallbackView:
        async def so() -> bool:
            return (await self.store.run(callbacks.look(ref))).attempts == attempts

        await eventually(so)
        return await self.store.run(callbacks.look(ref))

    def time_passes(self, *, seconds: float, tenant_id: str = "acme") -> None:
        time_passes(self._blocking, tenant_id, seconds=seconds)


@pytest.fixture
def ends(async_store: Store, store: BlockingStore, settings: Settings) -> Ends:
    return Ends(async_store, store, settings)


async def test_an_end_is_told_at_once_and_verifies_with_the_specifications_library(
    receiver: Receiver, running: Running, ends: Ends
) -> None:
    """S17."""
    async with running():
        ref = await ends.one(receiver.url, text="täglich ✓")
        await until(lambda: receiver.arrivals, within_s=0.9)
        view = await ends.stands(ref, "delivered")
    assert (view.attempts, view.last_status, view.last_fault) == (1, 200, None)
    [arrival] = receiver.arrivals
    arrival.verify(SECRET)
    assert arrival.callback_id == ref.callback_id
    assert arrival.headers["content-type"] == "application/json"
    assert "täglich ✓" in arrival.body.decode()


async def test_what_was_tampered_with_or_is_late_is_refused_by_the_receiver(
    receiver: Receiver, running: Running, ends: Ends
) -> None:
    """S17."""
    async with running():
        await ends.one(receiver.url)
        await until(lambda: receiver.arrivals)
    [arrival] = receiver.arrivals
    tampered = [
        Arrival("", arrival.headers, arrival.body.replace(b"completed", b"failed")),
        Arrival("", arrival.headers | {"webhook-id": "another"}, arrival.body),
        Arrival("", arrival.headers | {"webhook-timestamp": str(int(arrival.headers["webhook-timestamp"]) + 1)}, b""),
    ]
    for one in tampered:
        with pytest.raises(WebhookVerificationError):
            one.verify(SECRET)
    with pytest.raises(WebhookVerificationError):
        arrival.verify(OTHER_SECRET)
    sending = Sending(CallbackRef("acme", "x"), 1, 0, 0, "", b"{}")
    for off in (timedelta(minutes=6), timedelta(minutes=-6)):
        headers = signature(sending, (SECRET,), now=datetime.now(UTC) + off)
        with pytest.raises(WebhookVerificationError, match="too"):
            Arrival("", headers, b"{}").verify(SECRET)


async def test_while_secrets_change_each_of_them_verifies(receiver: Receiver, running: Running, ends: Ends) -> None:
    """S17."""
    both = CallbackSecrets(read_settings(callback_secret=f"{OTHER_SECRET} {SECRET}")).of("acme")
    headers = signature(Sending(CallbackRef("acme", "x"), 1, 0, 0, "", b"{}"), both, now=datetime.now(UTC))
    for secret in both:
        assert Webhook(secret).verify(b"{}", headers) == {}


async def test_a_tenants_own_secret_signs_its_callbacks(
    receiver: Receiver, running: Running, ends: Ends, tmp_path: Path
) -> None:
    (tmp_path / "globex").write_text(OTHER_SECRET)
    async with running(callback_secrets_dir=tmp_path):
        for tenant_id in ("acme", "globex"):
            await ends.one(receiver.url, tenant_id=tenant_id)
        await until(lambda: len(receiver.arrivals) == 2)
    for arrival in receiver.arrivals:
        arrival.verify(OTHER_SECRET if b'"globex"' in arrival.body else SECRET)


async def test_nothing_goes_unsigned(receiver: Receiver, running: Running, ends: Ends) -> None:
    async with running(callback_secret=None):
        ref = await ends.one(receiver.url)
        view = await ends.tried(ref, 1)
        assert (view.state, view.last_fault) == ("waiting", "unsigned")
    assert not receiver.arrivals


async def test_a_destination_that_is_not_allowed_any_more_is_not_connected_to(
    receiver: Receiver, running: Running, ends: Ends
) -> None:
    async with running(callback_allowed_networks=()):
        view = await ends.tried(await ends.one(receiver.url), 1)
        assert (view.state, view.last_fault) == ("waiting", "forbidden")
    assert not receiver.arrivals


@pytest.mark.parametrize("status", [301, 500])
async def test_it_is_tried_as_often_as_the_schedule_says_and_then_given_up(
    receiver: Receiver, running: Running, ends: Ends, status: int
) -> None:
    """S17: under one id, with one body."""
    receiver.answers = lambda _: answer(status)
    async with running():
        ref = await ends.one(receiver.url)
        for attempt, pause_s in enumerate(PAUSES_S, start=1):
            view = await ends.tried(ref, attempt)
            assert (view.state, view.last_status, view.last_fault) == ("waiting", status, "answered")
            assert view.due_at is not None
            assert view.last_attempt_at is not None
            assert 0.9 * pause_s - 0.01 <= (view.due_at - view.last_attempt_at).total_seconds() <= 1.1 * pause_s
            assert len(receiver.arrivals) == attempt
            ends.time_passes(seconds=1.1 * pause_s)
        view = await ends.stands(ref, "dead")
    assert view.attempts == len(PAUSES_S) + 1 == len(receiver.arrivals) == 10
    assert len({(arrival.callback_id, arrival.body_hash) for arrival in receiver.arrivals}) == 1
    for arrival in receiver.arrivals:
        arrival.verify(SECRET)


async def test_it_arrives_when_the_receiver_is_well_again(receiver: Receiver, running: Running, ends: Ends) -> None:
    answers = iter([b"", answer(500), answer(429, "Retry-After: 9"), OK])
    receiver.answers = lambda _: next(answers)
    async with running():
        ref = await ends.one(receiver.url)
        faults = []
        for attempt in range(1, 4):
            faults.append((await ends.tried(ref, attempt)).last_fault)
            ends.time_passes(seconds=2_000)
        view = await ends.stands(ref, "delivered")
    assert faults == ["unreachable", "answered", "answered"]
    assert view.attempts == 4
    assert len({arrival.headers["webhook-id"] for arrival in receiver.arrivals}) == 1
    assert len({arrival.body for arrival in receiver.arrivals}) == 1


async def test_a_receiver_that_asks_for_a_pause_gets_it(receiver: Receiver, running: Running, ends: Ends) -> None:
    receiver.answers = lambda _: answer(429, "Retry-After: 600")
    async with running():
        view = await ends.tried(await ends.one(receiver.url), 1)
    assert view.due_at is not None
    assert view.last_attempt_at is not None
    assert (view.due_at - view.last_attempt_at).total_seconds() == 600


async def test_gone_is_gone(receiver: Receiver, running: Running, ends: Ends) -> None:
    receiver.answers = lambda _: answer(410)
    async with running():
        ref = await ends.one(receiver.url)
        view = await ends.stands(ref, "dead")
        assert (view.attempts, view.last_status) == (1, 410)
        receiver.answers = lambda _: OK
        await ends.store.run(callbacks.redeliver(ref))
        await ends.stands(ref, "delivered")
    assert len({arrival.body for arrival in receiver.arrivals}) == 1


async def test_slow_receivers_of_one_tenant_hold_up_nobody_else(
    receiver: Receiver, running: Running, ends: Ends
) -> None:
    slow = Receiver()
    async with slow.listening(), running(callbacks_at_once=8, callbacks_of_a_tenant=4):
        slow.may_answer.clear()
        backlog = [await ends.one(slow.url) for _ in range(20)]
        await until(lambda: len(slow.arrivals) == 4)
        for _ in range(10):
            await ends.one(receiver.url, tenant_id="globex")
        await until(lambda: len(receiver.arrivals) == 10)
        assert len(slow.arrivals) == 4
        slow.may_answer.set()
        for ref in backlog:
            await ends.stands(ref, "delivered")


async def test_no_more_are_on_their_way_than_the_process_may_have(
    receiver: Receiver, running: Running, ends: Ends
) -> None:
    receiver.may_answer.clear()
    async with running(callbacks_at_once=3, callbacks_of_a_tenant=2):
        for tenant_id in ("acme", "globex", "initech"):
            for _ in range(3):
                await ends.one(receiver.url, tenant_id=tenant_id)
        await until(lambda: len(receiver.arrivals) == 3)
        receiver.may_answer.set()
        await until(lambda: len(receiver.arrivals) == 9)


async def test_two_senders_share_the_work_and_each_callback_arrives_once(
    receiver: Receiver, running: Running, ends: Ends
) -> None:
    async with running(), running():
        refs = [await ends.one(receiver.url) for _ in range(40)]
        for ref in refs:
            await ends.stands(ref, "delivered")
    assert sorted(arrival.callback_id for arrival in receiver.arrivals) == sorted(ref.callback_id for ref in refs)


async def test_what_is_on_its_way_arrives_before_the_end(receiver: Receiver, running: Running, ends: Ends) -> None:
    receiver.may_answer.clear()
    async with running() as sender:
        ref = await ends.one(receiver.url)
        await until(lambda: receiver.arrivals)
        sender.stop()
        await ends.one(receiver.url)
        asyncio.get_running_loop().call_later(0.2, receiver.may_answer.set)
    assert (await ends.store.run(callbacks.look(ref))).state == "delivered"
    assert len(receiver.arrivals) == 1, "nothing is begun any more"


async def test_what_does_not_arrive_in_time_is_handed_back_and_sent_by_another(
    receiver: Receiver, running: Running, ends: Ends
) -> None:
    receiver.may_answer.clear()
    async with running(notifier_drain_s=0.1):
        ref = await ends.one(receiver.url)
        await until(lambda: receiver.arrivals)
    view = await ends.store.run(callbacks.look(ref))
    assert (view.state, view.attempts) == ("waiting", 0)
    receiver.may_answer.set()
    async with running():
        await ends.stands(ref, "delivered")
    assert [arrival.callback_id for arrival in receiver.arrivals] == [ref.callback_id] * 2


async def test_a_try_that_nobody_foresaw_ends_one_callback_alone(
    receiver: Receiver, running: Running, ends: Ends
) -> None:
    ref = await ends.one(receiver.url)
    await ends.store.redis.hset(keys.callback("acme", ref.callback_id), "body", b"\xff")  # type: ignore[misc]
    with capture_logs() as logs:
        async with running():
            view = await ends.tried(ref, 1)
            await ends.stands(await ends.one(receiver.url), "delivered")
    assert (view.state, view.last_fault) == ("waiting", "broken")
    assert [line["log_level"] for line in logs if line["event"] == "a callback's try broke"] == ["error"]


async def test_the_log_has_the_host_and_never_the_url_or_the_secret(
    receiver: Receiver, running: Running, ends: Ends
) -> None:
    receiver.answers = lambda _: answer(410)
    with capture_logs() as logs:
        async with running():
            await ends.stands(await ends.one(receiver.url), "dead")
    text = str(logs)
    assert "127.0.0.1" in text
    assert "s3cret" not in text
    assert SECRET not in text
    assert {"dead": 1}.items() <= next(line for line in logs if line["event"] == "callbacks").items()


async def test_two_hundred_with_failing_receivers_arrive_each_at_least_once(
    receiver: Receiver, running: Running, ends: Ends
) -> None:
    turn = count()
    receiver.answers = lambda _: OK if next(turn) % 3 else answer(500)
    async with running(), running():
        refs = [await ends.one(receiver.url, tenant_id=("acme", "globex")[number % 2]) for number in range(200)]
        for ref in refs:
            while (await ends.store.run(callbacks.look(ref))).state != "delivered":
                for tenant_id in ("acme", "globex"):
                    ends.time_passes(seconds=400, tenant_id=tenant_id)
                await asyncio.sleep(0.02)
    for arrival in receiver.arrivals:
        arrival.verify(SECRET)
    bodies = {(arrival.callback_id, arrival.body_hash) for arrival in receiver.arrivals}
    assert len(bodies) == 200
    assert {callback_id for callback_id, _ in bodies} == {ref.callback_id for ref in refs}


async def test_a_time_out_is_tried_again(
    receiver: Receiver, running: Running, ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(egress_module, "TOTAL_TIMEOUT_S", 0.2)
    receiver.may_answer.clear()
    async with running():
        ref = await ends.one(receiver.url)
        view = await ends.tried(ref, 1)
        assert (view.state, view.last_fault, view.last_status) == ("waiting", "timed_out", None)
        receiver.may_answer.set()
        ends.time_passes(seconds=6)
        await ends.stands(ref, "delivered")
    assert receiver.arrivals[0].body == receiver.arrivals[-1].body
