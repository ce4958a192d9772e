"""The service as production runs it: each process its own user of Redis; and what nobody but its owner may ever see.

Two tenants work at once, by every door. Afterwards every byte that was stored, logged, sent or shown is searched.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
import redis
from celery import Celery
from redis.exceptions import NoPermissionError

from agent_exec import AgentExecClient, ExecutionRequest, api_keys
from sandbox.app import sandbox_environment
from tests.processes import ROOT, Process, answers, free_port, wait_until
from tests.service.conftest import Service
from tests.service.guarded_redis import GuardedRedis
from tests.service.test_follow_one_execution import standard_message

pytestmark = pytest.mark.timeout(180)

#: Each tenant, and an agent of it that has tools.
AGENTS = {"acme": "desk", "globex": "researcher"}
TENANTS = tuple(AGENTS)
LOGIN = ("operator", "secret-of-flower-7d1e9a")
#: Of no form by which logs know a secret, so that nothing but our care keeps them out.
SERVICE_TOKEN = "CANARYtokenOfTheService4e1f"
PROVIDER_KEY = "CANARYkeyOfTheService8b2c"
ACME_KEY = "CANARYkeyOfAcme9d3e"
CALLBACK_SECRET = "whsec_" + "Q0FOQVJZ" * 4
QUESTION = "What is 17 * 23, and what time is it in Tokyo?"


def prompt(tenant_id: str, door: str) -> str:
    """Return a question that names its tenant and the way by which it came."""
    return f"{QUESTION} CANARYprompt-{tenant_id}-{door}"


class Receiver(BaseHTTPRequestHandler):
    """Whoever is told of the end of executions: it keeps what it gets."""

    told: list[tuple[str, bytes]] = []  # noqa: RUF012 one server, one list

    def do_POST(self) -> None:
        """Take it."""
        self.told.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing."""


@dataclass
class Guarded:
    """Everything running, and all that came out of it."""

    service: Service
    redis: GuardedRedis
    flower: httpx.Client
    receiver_url: str
    #: Whose each execution is.
    owners: dict[str, str] = field(default_factory=dict)
    #: What each tenant was answered.
    answered: dict[str, list[str]] = field(default_factory=lambda: {tenant_id: [] for tenant_id in TENANTS})

    def start(self, name: str, *command: str, user: str, **env: str) -> Process:
        """Start a process as one of Redis's users."""
        return self.service.start(name, *command, AGENT_EXEC_REDIS_URL=self.redis.url(user), **env)

    def ask(self, tenant_id: str, method: str, path: str, **options: Any) -> httpx.Response:
        """Ask the shim, and keep the answer."""
        with self.service.http(tenant_id) as http:
            answer = http.request(method, path, **options)
        self.answered[tenant_id].append(f"{answer.headers} {answer.text}")
        return answer

    def submit(self, tenant_id: str, door: str, **fields: Any) -> str:
        """Submit by HTTP; return the execution."""
        asked = {"agent_id": AGENTS[tenant_id], "query": prompt(tenant_id, door), **fields}
        execution_id = str(
            self.ask(tenant_id, "POST", "/v1/executions", json=asked).raise_for_status().json()["execution_id"]
        )
        self.owners[execution_id] = tenant_id
        return execution_id

    def ended(self, execution_id: str) -> dict[str, Any]:
        """Wait for the end; return the final response."""
        tenant_id = self.owners[execution_id]

        def response() -> Any:
            return self.ask(tenant_id, "GET", f"/v1/executions/{execution_id}").json()["response"]

        final: dict[str, Any] = wait_until(response, what="the end", within_s=40)
        return final

    def run(self, *arguments: str, user: str) -> Process:
        """Run a verb of the CLI to its end."""
        command = (sys.executable, "-c", "from agent_exec.cli import main; main()", *arguments)
        process = self.start(f"cli-{arguments[0]}", *command, user=user)
        wait_until(lambda: not process.running, what=f"{arguments} to end")
        return process


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    directory = tmp_path_factory.mktemp("guarded")
    (directory / "redis").mkdir()
    provider_keys = directory / "provider-keys" / "acme"
    provider_keys.mkdir(parents=True)
    (provider_keys / "openai").write_text(ACME_KEY)
    keys = {tenant: api_keys.create(directory / "keys.json", tenant_id=tenant) for tenant in TENANTS}
    neighbours, shim, flower = free_port(), free_port(), free_port()
    Receiver.told.clear()
    with contextlib.ExitStack() as stack:
        receiver = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Receiver))
        thread = threading.Thread(target=receiver.serve_forever)
        thread.start()
        stack.callback(thread.join)
        stack.callback(receiver.shutdown)
        server = stack.enter_context(GuardedRedis(directory / "redis"))
        url = f"http://127.0.0.1:{neighbours}"
        env = {
            **sandbox_environment(url, SERVICE_TOKEN),
            "AGENT_EXEC_ENVIRONMENT": "production",
            "AGENT_EXEC_API_KEYS_FILE": str(directory / "keys.json"),
            "AGENT_EXEC_PROVIDER_KEYS_DIR": str(provider_keys.parent),
            "OPENAI_API_KEY": PROVIDER_KEY,
            "AGENT_EXEC_CALLBACK_SECRET": CALLBACK_SECRET,
            "AGENT_EXEC_CALLBACK_ALLOW_HTTP": "true",
            "AGENT_EXEC_CALLBACK_ALLOWED_NETWORKS": "127.0.0.0/8",
            "AGENT_EXEC_LOG_LEVEL": "DEBUG",
            "AGENT_EXEC_LEASE_S": "2",
        }
        service = Service(None, directory, env, url, f"http://127.0.0.1:{shim}", keys)  # type: ignore[arg-type]  # its own
        stack.callback(service.stop)
        client = stack.enter_context(
            httpx.Client(base_url=f"http://127.0.0.1:{flower}", auth=LOGIN, timeout=20, trust_env=False)
        )
        all_of_it = Guarded(service, server, client, f"http://127.0.0.1:{receiver.server_port}")
        sandbox = ("-m", "sandbox", "neighbours", "--port", str(neighbours), "--pace", "1", "--token", SERVICE_TOKEN)
        service.start("neighbours", *sandbox)
        all_of_it.start("shim", "-m", "uvicorn", "api_shim.app:app", "--port", str(shim), user="shim")
        all_of_it.start("notifier", "-m", "notifier", user="notifier")
        service.worker("guarded", AGENT_EXEC_REDIS_URL=server.url("worker"))
        flags = ("--address=127.0.0.1", f"--port={flower}", "--read_only")
        login = {"FLOWER_BASIC_AUTH": ":".join(LOGIN)}  # as compose.yaml has it
        all_of_it.start("flower", "-m", "celery", "-A", "tasks", "flower", *flags, user="flower", **login)
        for one in (f"{url}/health", f"{service.shim_url}/health/ready", f"http://127.0.0.1:{flower}/healthcheck"):
            wait_until(lambda one=one: answers(one), what=one, within_s=30)  # type: ignore[misc]
        wait_until(
            lambda: client.get("/api/workers", params={"refresh": "1"}).json(),
            what="flower to see the worker",
            within_s=30,
        )
        yield all_of_it


def test_every_process_does_its_work_as_its_own_user(guarded: Guarded) -> None:
    service = guarded.service
    # By HTTP, with a callback, a stream, a socket's command and a list; to the end and to a cancel.
    for tenant_id in TENANTS:
        told = guarded.submit(tenant_id, "http", callback_url=f"{guarded.receiver_url}/{tenant_id}")
        cancelled = guarded.submit(tenant_id, "cancelled")
        assert guarded.ask(tenant_id, "POST", f"/v1/executions/{cancelled}/cancel").status_code == 202
        final = guarded.ended(told)
        assert (final["status"], bool(final["tool_calls"])) == ("completed", True), final
        assert guarded.ended(cancelled)["error"]["code"] == "cancelled"
        assert "agent_execution_completed" in guarded.ask(tenant_id, "GET", f"/v1/executions/{told}/events").text
        assert guarded.ask(tenant_id, "GET", "/v1/executions").status_code == 200
        assert guarded.ask(tenant_id, "GET", "/metrics").status_code == 200
    wait_until(lambda: len(Receiver.told) >= len(TENANTS), what="the callbacks", within_s=20)

    # By the orchestrator's own process, with our client.
    with AgentExecClient(guarded.redis.url("client")) as client:
        for tenant_id in TENANTS:
            request = ExecutionRequest(agent_id=AGENTS[tenant_id], query=prompt(tenant_id, "client"))
            execution_id = client.submit(request, tenant_id=tenant_id)
            guarded.owners[execution_id] = tenant_id
            client.prioritise(tenant_id, execution_id, 7)
            assert client.wait(tenant_id, execution_id, timeout_s=40).status == "completed"
            assert len(list(client.events(tenant_id, execution_id))) > 3

            waits = client.submit(
                ExecutionRequest(agent_id="editor", query="Publish a note to everybody saying the office is closed."),
                tenant_id="acme",
            )
            guarded.owners[waits] = "acme"
            [call] = wait_until(lambda: client.get("acme", waits).awaiting_approval, what="the call", within_s=30)  # noqa: B023
            command = {
                "command": "resolve_approval",
                "execution_id": waits,
                "tool_call_id": call,
                "approved": tenant_id == "acme",
                "reason": "Because.",
            }
            with service.neighbours() as http:  # the notifier carries it out
                http.post("/orchestrator/_send", json=command).raise_for_status()
            assert client.wait("acme", waits, timeout_s=40).status == "completed"

    # By a Celery app that has nothing of ours.
    url = guarded.redis.url("client")
    celery = Celery(broker=url, backend=url, set_as_current=False)
    for tenant_id in TENANTS:
        message = standard_message(tenant_id, AGENTS[tenant_id], prompt(tenant_id, "celery"))
        guarded.owners[message["execution_id"]] = tenant_id
        celery.send_task(
            "agent_exec.execute", kwargs={"message": message}, task_id=message["execution_id"], queue="agent_execution"
        )
        assert celery.AsyncResult(message["execution_id"]).get(timeout=40)["status"] == "completed"
    celery.close()

    wait_until(lambda: all(_is_told(service, one) for one in guarded.owners), what="all frames", within_s=30)
    of_one = ("--tenant", "acme")
    for verb in (("queues",), ("dead-letters",), ("usage", *of_one), ("why", next(iter(guarded.owners)), *of_one)):
        process = guarded.run(*verb, user="operator")
        assert process.stop() == 0, process.output
    assert guarded.redis.refused() == []


def _is_told(service: Service, execution_id: str) -> bool:
    frames = service.frames(execution_id)
    return bool(frames) and frames[-1]["event"] in ("agent_execution_completed", "agent_execution_failed")


#: What no process of the service ever needs.
NEVER: list[tuple[str, ...]] = [
    ("FLUSHALL",),
    ("FLUSHDB",),
    ("CONFIG", "GET", "*"),
    ("CONFIG", "SET", "dir", "/tmp"),
    ("CONFIG", "REWRITE"),
    ("KEYS", "*"),
    ("SCAN", "0"),
    ("RANDOMKEY",),
    ("SHUTDOWN", "NOSAVE"),
    ("MODULE", "LIST"),
    ("FUNCTION", "LIST"),
    ("SCRIPT", "FLUSH"),
    ("SCRIPT", "KILL"),
    ("ACL", "LIST"),
    ("ACL", "SETUSER", "default", "on", "nopass"),
    ("SAVE",),
    ("BGSAVE",),
    ("BGREWRITEAOF",),
    ("REPLICAOF", "NO", "ONE"),
    ("MONITOR",),
    ("CLIENT", "LIST"),
    ("CLIENT", "KILL", "TYPE", "normal"),
    ("SWAPDB", "0", "1"),
    ("MIGRATE", "127.0.0.1", "1", "ax:pending", "0", "1"),
    ("RESTORE", "ax:pending", "0", "x"),
    ("DUMP", "ax:pending"),
    ("RENAME", "ax:pending", "ax:pending2"),
    ("SORT", "ax:pending"),
    ("SLOWLOG", "GET"),
    ("LATENCY", "RESET"),
]
READ_PROMPT = ("HGETALL", "ax:execution:acme:x")
SPEND = ("HSET", "ax:spending:acme:day:1", "usd", "0")
LANE = ("SET", "ax:lane:openai:x:y", "1")
REMOTE_CONTROL = ("PUBLISH", "/0.celery.pidbox", "x")
#: What is beyond a role's work, beside that.
BEYOND: dict[str, list[tuple[str, ...]]] = {
    "worker": [("GET", "another-service"), ("PSUBSCRIBE", "*"), ("SUBSCRIBE", "another-service")],
    "notifier": [
        SPEND,
        LANE,
        REMOTE_CONTROL,
        ("GET", "celery-task-meta-x"),
        ("SUBSCRIBE", "celery-task-meta-x"),
        ("LRANGE", "unacked", "0", "1"),
    ],
    "shim": [LANE, REMOTE_CONTROL, ("GET", "ax:notifier:acks"), ("PSUBSCRIBE", "*"), ("HGETALL", "unacked")],
    "client": [
        SPEND,
        LANE,
        REMOTE_CONTROL,
        ("SET", "ax:notifier", "me"),
        ("HSET", "ax:configuration:acme", "*", "1"),
        ("PSUBSCRIBE", "*"),
    ],
    "flower": [
        READ_PROMPT,
        SPEND,
        LANE,
        ("XRANGE", "agent_streaming:acme:x", "-", "+"),
        ("GET", "celery-task-meta-x"),
        ("PSUBSCRIBE", "celery-task-meta-*"),
        ("LPUSH", "agent_execution", "message"),
        ("HGETALL", "ax:queue:message"),
        ("EVAL", "return 1", "0"),
    ],
}


def test_there_is_a_role_for_every_process_and_none_by_default(guarded: Guarded) -> None:
    """S05, S23."""
    assert set(guarded.redis.passwords) == {*BEYOND, "operator"}
    with redis.Redis(port=guarded.redis.port) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()


@pytest.mark.parametrize("role", BEYOND)
def test_a_role_may_not_do_what_is_not_its_work(role: str, guarded: Guarded) -> None:
    """S05; no word to the workers' remote control either but from Flower and the workers themselves (S24)."""
    with guarded.redis.client(role, name="probe") as client:
        for command in [*NEVER, *BEYOND[role]]:
            with pytest.raises(NoPermissionError):
                client.execute_command(*command)
        assert client.ping()
    with guarded.redis.client(
        "operator"
    ) as operator:  # a server may refuse DEBUG to everybody, before it asks who it is
        assert b"permissions to run" in operator.execute_command("ACL", "DRYRUN", role, "DEBUG", "SLEEP", "0")


def test_every_command_of_a_script_is_its_users_to_run(guarded: Guarded) -> None:
    """A new script's command fails here before it fails in production, whoever runs it."""
    scripts = [
        path for folder in ("agent_exec", "notifier", "providers", "tasks") for path in (ROOT / folder).rglob("*.lua")
    ]
    commands = {command for path in scripts for command in re.findall(r"redis\.p?call\(\s*'(\w+)'", path.read_text())}
    assert len(commands) > 30
    with guarded.redis.client("operator") as operator:
        for command in commands:
            [known] = operator.execute_command("COMMAND", "INFO", command).values()
            for role in ("worker", "notifier", "shim", "client"):
                said = operator.execute_command(
                    "ACL", "DRYRUN", role, command, *["ax:queue"] * (abs(known["arity"]) - 1)
                )
                assert b"permissions to run" not in said, f"{role}: {command}"


def test_flower_shows_nobody_anything_without_the_password(guarded: Guarded) -> None:
    """S24, S25: remote control is on, for Flower; and Flower is for operators alone."""
    for path in ("/", "/tasks", "/workers", "/broker", "/api/tasks", "/api/workers", "/api/task/info/x"):
        for auth in (None, ("operator", "guessed")):
            assert httpx.get(f"{guarded.flower.base_url}{path}", auth=auth, trust_env=False).status_code == 401
    sent = httpx.post(
        f"{guarded.flower.base_url}/api/task/send-task/agent_exec.execute", json={"args": []}, trust_env=False
    )
    assert sent.status_code == 401


def _shown(flower: httpx.Client, execution_ids: list[str]) -> str:
    """Return every page of Flower's that could show something."""
    tasks = flower.get("/api/tasks", params={"limit": "1000"}).json()
    pages = ["/tasks", "/workers", "/broker", "/api/workers?refresh=1", "/api/queues/length"]
    pages += [path for task_id in tasks for path in (f"/task/{task_id}", f"/api/task/info/{task_id}")]
    assert all(any(task_id.startswith(one) for task_id in tasks) for one in execution_ids)
    return json.dumps(tasks) + "".join(flower.get(path).text for path in pages)


def _values(database: Any, key: bytes) -> str:
    readers = {
        b"string": database.get,
        b"hash": database.hgetall,
        b"list": lambda name: database.lrange(name, 0, -1),
        b"set": database.smembers,
        b"zset": lambda name: database.zrange(name, 0, -1, withscores=True),
        b"stream": database.xrange,
    }
    return str(readers[database.type(key)](key))


def test_what_is_a_tenants_or_secret_is_seen_nowhere_else(guarded: Guarded) -> None:
    """Runs after the work of the first test (S26, S28, S30: prompts and snapshots hold no secret either)."""
    if not guarded.owners:
        test_every_process_does_its_work_as_its_own_user(guarded)
    ours = [path for path in guarded.service.directory.glob("*.log") if path.stem != "neighbours"]
    logs = "".join(path.read_text(errors="replace") for path in ours)
    aof = b"".join(path.read_bytes() for path in (guarded.redis.directory / "appendonlydir").iterdir())
    shown = _shown(guarded.flower, list(guarded.owners))
    answered = {tenant_id: "".join(answers) for tenant_id, answers in guarded.answered.items()}
    told = {
        tenant_id: "".join(f"{body!r}" for path, body in Receiver.told if path == f"/{tenant_id}")
        for tenant_id in TENANTS
    }
    frames = {execution_id: json.dumps(guarded.service.frames(execution_id)) for execution_id in guarded.owners}
    with guarded.redis.client("operator") as operator:
        stored = {key.decode(): _values(operator, key) for key in operator.scan_iter(count=1_000)}
    assert all(told.values())
    assert all(answered.values())
    assert b"CANARYprompt-acme-http" in aof, "it is looked for where it is"

    # A prompt is nobody's but its tenant's, and no operator's either.
    assert "CANARYprompt" not in logs
    assert "CANARYprompt" not in shown
    for tenant_id in TENANTS:
        canary = f"CANARYprompt-{tenant_id}"
        assert any(canary in value for value in stored.values())
        for key, value in stored.items():
            if canary in value:
                owner = guarded.owners.get(key.removeprefix("celery-task-meta-"), key)
                assert tenant_id in owner, key
        for other in set(TENANTS) - {tenant_id}:
            assert canary not in answered[other]
            assert canary not in told[other]
            of_other = [text for one, text in frames.items() if guarded.owners[one] == other]
            assert of_other
            assert canary not in "".join(of_other)
            assert not any(
                one in answered[other] + told[other] for one, owner in guarded.owners.items() if owner == tenant_id
            )

    # A secret is nowhere but where it is needed: on its way to those whom it is for.
    hidden = {
        "the service's token": SERVICE_TOKEN,
        "the service's provider key": PROVIDER_KEY,
        "a tenant's provider key": ACME_KEY,
        "what callbacks are signed with": CALLBACK_SECRET.removeprefix("whsec_"),
        "Flower's password": LOGIN[1],
        **{f"the API key of {tenant_id}": key.split("_", 2)[2] for tenant_id, key in guarded.service.keys.items()},
        **{f"Redis's password of {user}": word for user, word in guarded.redis.passwords.items()},
    }
    everywhere = {"logs": logs, "the append-only file": aof.decode(errors="replace"), "Flower": shown}
    everywhere |= {f"answers to {one}": text for one, text in answered.items()}
    everywhere |= {f"callbacks to {one}": text for one, text in told.items()}
    everywhere |= {f"frames of {one}": text for one, text in frames.items()}
    everywhere |= {f"{key} in Redis": key + value for key, value in stored.items()}
    seen = [
        f"{what} in {where}" for what, secret in hidden.items() for where, text in everywhere.items() if secret in text
    ]
    assert seen == []
