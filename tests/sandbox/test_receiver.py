"""The receiver of callbacks verifies what comes, and fails as it is told."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import httpx
from standardwebhooks import Webhook

from sandbox.receiver import DEFAULT_SECRET

BODY = '{"type": "agent_execution.completed", "data": "canary-a1"}'


def signed(body: str = BODY, *, off: timedelta = timedelta(0), secret: str = DEFAULT_SECRET) -> dict[str, str]:
    now = datetime.now(UTC) + off
    signature = Webhook(secret).sign("id-1", now, body)
    return {"webhook-id": "id-1", "webhook-timestamp": str(int(now.timestamp())), "webhook-signature": signature}


async def test_a_callback_is_verified_and_noted(http: httpx.AsyncClient) -> None:
    assert (await http.post("/receiver/hooks/a/b", content=BODY, headers=signed())).status_code == 200
    journal = (await http.get("/receiver/callbacks")).json()
    [arrival] = journal["callbacks"]
    assert (arrival["path"], arrival["webhook_id"], arrival["fault"]) == ("a/b", "id-1", None)
    assert arrival["canaries"] == ["canary-a1"]


async def test_what_does_not_verify_is_refused_and_noted(http: httpx.AsyncClient) -> None:
    wrong = [
        (BODY.replace("completed", "failed"), signed()),
        (BODY, signed(off=timedelta(minutes=6))),
        (BODY, signed(off=timedelta(minutes=-6))),
        (BODY, signed() | {"webhook-signature": "nonsense"}),
        (BODY, {}),
    ]
    for body, headers in wrong:
        assert (await http.post("/receiver/hooks/x", content=body, headers=headers)).status_code == 401
    journal = (await http.get("/receiver/callbacks", params={"after": 0})).json()
    assert all(arrival["fault"] for arrival in journal["callbacks"])
    assert journal["last"] == len(wrong)


async def test_it_fails_as_it_is_told(http: httpx.AsyncClient) -> None:
    await http.post("/receiver/_mode", json={"status": 503, "retry_after_s": 7})
    answer = await http.post("/receiver/hooks/x", content=BODY, headers=signed())
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "7")
    await http.post("/receiver/_mode", json={})
    assert (await http.post("/receiver/hooks/x", content=BODY, headers=signed())).status_code == 200
