"""The spelling of keys: no two things under one name, whatever the ids (S02)."""

from __future__ import annotations

from fnmatch import fnmatch

from hypothesis import given, settings
from hypothesis import strategies as st

from agent_exec import keys, submission
from agent_exec.contract.agent import Tenant
from agent_exec.contract.execution import ExecutionRequest
from agent_exec.contract.model import EXECUTION_ID_PATTERN, ID_PATTERN
from agent_exec.ledger import ledger
from agent_exec.store import BlockingStore

EXECUTION_IDS = st.from_regex(EXECUTION_ID_PATTERN, fullmatch=True)
#: A tenant's id may look like an execution's.
TENANT_IDS = st.from_regex(ID_PATTERN, fullmatch=True) | EXECUTION_IDS


def spelt(tenant_id: str, execution_id: str) -> dict[tuple[str, ...], str]:
    """Every key of the ledger, under what it stands for."""
    of_both = (keys.execution, keys.streaming, keys.responses, keys.idempotency, keys.links, keys.callback)
    of_both += (keys.batch, keys.batch_items, keys.batch_results, keys.schedule)
    of_tenant = (
        keys.executions,
        keys.queued,
        keys.tenant,
        keys.configuration,
        keys.spending_open,
        keys.spending_looks,
        keys.spending_limit,
        keys.spending_day_prefix,
        keys.callbacks_waiting,
        keys.callbacks_sending,
        keys.callbacks_dead,
        keys.batches,
        keys.open_batches,
        keys.schedules,
    )
    of_execution = (keys.celery_result, keys.tenant_of)
    of_all = (
        keys.pending,
        keys.unsent_links,
        keys.outbox,
        keys.outbox_unacked,
        keys.outbox_wake,
        keys.orchestrator_acks,
        keys.notifier_lease,
        keys.notifier_report,
        keys.callbacks,
        keys.callbacks_wake,
        keys.callbacks_outcomes,
        keys.due_batches,
        keys.due_schedules,
    )
    return {
        **{(key.__name__, tenant_id, execution_id): key(tenant_id, execution_id) for key in of_both},
        **{(key.__name__, tenant_id): key(tenant_id) for key in of_tenant},
        **{(key.__name__, execution_id): key(execution_id) for key in of_execution},
        **{(key.__name__,): key() for key in of_all},
    }


@settings(deadline=None, max_examples=50)  # a regex is slow to draw from
@given(TENANT_IDS, EXECUTION_IDS, TENANT_IDS, EXECUTION_IDS)
def test_a_key_stands_for_one_thing(tenant_id: str, execution_id: str, other_tenant: str, other_id: str) -> None:
    everything = (
        spelt(tenant_id, execution_id)
        | spelt(other_tenant, other_id)
        | spelt(tenant_id, other_id)
        | spelt(execution_id, execution_id)
    )
    assert len(set(everything.values())) == len(everything)
    assert all(any(fnmatch(key, pattern) for pattern in keys.KNOWN) for key in everything.values())


def test_a_prefix_is_what_the_key_begins_with() -> None:
    assert keys.execution("t", "e").startswith(keys.execution_prefix())
    assert keys.streaming("t", "e").startswith(keys.streaming_prefix())
    assert keys.tenant_of("e").startswith(keys.tenant_of_prefix())
    assert keys.callback("t", "c").startswith(keys.callback_prefix())
    assert keys.schedule("t", "s").startswith(keys.schedule_prefix())
    for key in (keys.batch("t", "b"), keys.batch_items("t", "b"), keys.batch_results("t", "b"), keys.open_batches("t")):
        assert key.startswith(keys.batch_root())


def test_a_tenant_and_an_execution_of_one_id_do_not_meet(store: BlockingStore) -> None:
    request = ExecutionRequest(agent_id="desk", query="x")
    same = "6f1c0a52-5f6e-4f0b-9a44-0f6f2f6f8f10"
    store.run(ledger.note_tenant(Tenant(tenant_id=same, plan="pro"), keep_s=60))
    for tenant_id in ("globex", same):
        message = submission.message_of(
            request, tenant_id=tenant_id, execution_id=same if tenant_id == "globex" else None
        )
        store.run(submission.store(message, open_retention_s=3_600, max_queued=10))
    assert store.redis.hget(keys.tenant(same), "plan") == b"pro"
