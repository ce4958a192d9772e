"""What lies open: a matrix of settings, what is refused, what is told, and that a refusal says how to mend it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agent_exec import exposure
from agent_exec.errors import SettingsInvalid
from agent_exec.settings import Settings, read_settings, variable
from sandbox.app import sandbox_environment
from tests.processes import Process, wait_until

FAR, NEAR, HERE = "redis.example.com", "redis", "127.0.0.1"


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without any of ours."""
    for field in Settings.model_fields:
        monkeypatch.delenv(variable(field), raising=False)


@pytest.mark.parametrize(
    ("host", "away"),
    [
        ("127.0.0.1", "here"),
        ("127.9.9.9", "here"),
        ("::1", "here"),
        ("0.0.0.0", "here"),
        ("localhost", "here"),
        ("shim.localhost", "here"),
        ("", "here"),
        (None, "here"),
        ("redis", "near"),
        ("agent-orchestrator", "near"),
        ("redis.agents.svc", "near"),
        ("redis.agents.svc.cluster.local", "near"),
        ("host.docker.internal", "near"),
        ("10.0.0.7", "near"),
        ("192.168.1.9", "near"),
        ("fd00::7", "near"),
        ("169.254.169.254", "near"),
        ("redis.example.com", "far"),
        ("REDIS.EXAMPLE.COM.", "far"),
        ("localhost.example.com", "far"),
        ("internal.example.com", "far"),
        ("8.8.8.8", "far"),
        ("2606:4700::1111", "far"),
    ],
)
def test_how_far_away_a_host_is_by_its_name(host: str | None, away: str) -> None:
    assert exposure.reach(host) == away


SECRET = "a-token-of-our-own-f00d"
#: Settings → what is refused about them, by a word of the text; None: they are safe. `~` before it: told, and not refused.
MATRIX: dict[str, tuple[dict[str, Any], str | None]] = {
    "nothing set": ({}, None),
    "redis here, no password": ({"redis_url": f"redis://{HERE}"}, None),
    "redis by a socket": ({"redis_url": "unix:///run/redis.sock"}, None),
    "redis near, no password": ({"redis_url": f"redis://{NEAR}"}, "AGENT_EXEC_REDIS_URL has no password"),
    "redis far, TLS, no password": ({"redis_url": f"rediss://{FAR}"}, "AGENT_EXEC_REDIS_URL has no password"),
    "redis near, a user, no password": (
        {"redis_url": f"redis://worker@{NEAR}"},
        "AGENT_EXEC_REDIS_URL has no password",
    ),
    "redis near, password": ({"redis_url": f"redis://worker:{SECRET}@{NEAR}"}, "~in clear text; rediss://"),
    "redis near, TLS": ({"redis_url": f"rediss://worker:{SECRET}@{NEAR}"}, None),
    "redis far, clear": ({"redis_url": f"redis://worker:{SECRET}@{FAR}"}, "past your own network. Use rediss://"),
    "redis far, TLS": ({"redis_url": f"rediss://worker:{SECRET}@{FAR}"}, None),
    "redis far, TLS unchecked": (
        {"redis_url": f"rediss://worker:{SECRET}@{FAR}?ssl_cert_reqs=none"},
        "Take ssl_cert_reqs out",
    ),
    "redis far, TLS checked, said so": (
        {"redis_url": f"rediss://worker:{SECRET}@{FAR}?ssl_cert_reqs=required&ssl_ca_certs=/ca.pem"},
        None,
    ),
    "redis with the example's password": (
        {"redis_url": f"rediss://worker:change-me-worker@{FAR}"},
        "the password of an example",
    ),
    "sentinels here": ({"redis_url": "sentinel://127.0.0.1:26379"}, None),
    "sentinels, no password": ({"redis_url": "sentinel://one;sentinel://two"}, "AGENT_EXEC_REDIS_URL has no password"),
    "sentinels, one password": ({"redis_url": f"sentinel://:{SECRET}@one;sentinel://two"}, "~in clear text"),
    "neighbours as they are, no token": ({}, None),
    "neighbours as they are, a token": (
        {"service_token": SECRET},
        "~AGENT_EXEC_ORCHESTRATOR_WS_URL: the service token",
    ),
    "a far orchestrator, clear, no token": ({"orchestrator_ws_url": f"ws://{FAR}/ws"}, None),
    "a far orchestrator, clear": (
        {"service_token": SECRET, "orchestrator_ws_url": f"ws://{FAR}/ws"},
        "AGENT_EXEC_ORCHESTRATOR_WS_URL: the service token .* Use wss://",
    ),
    "a far registry, clear, a token in a file": (
        {"service_token_file": "/run/secrets/token", "tool_registry_url": f"http://{FAR}"},
        "AGENT_EXEC_TOOL_REGISTRY_URL: the service token .* Use https://",
    ),
    "far neighbours, TLS": (
        {
            "service_token": SECRET,
            "orchestrator_ws_url": f"wss://{FAR}/ws",
            "orchestrator_url": f"https://{FAR}",
            "tool_registry_url": f"https://{FAR}",
            "agent_management_url": f"https://{FAR}",
        },
        None,
    ),
    "the sandbox's token elsewhere": (
        {"service_token": "sandbox-service-token", "tool_registry_url": f"https://{FAR}"},
        "AGENT_EXEC_TOOL_REGISTRY_URL is another machine, and the service token for it is the example's",
    ),
    "a far provider, clear": (
        {"openai_base_url": f"http://{FAR}/v1", "openai_api_key": SECRET},
        "OPENAI_BASE_URL: the provider's key",
    ),
    "a near provider, clear": (
        {"groq_base_url": "http://vllm:8000", "groq_api_key": SECRET},
        "~GROQ_BASE_URL: the provider's key",
    ),
    "a far provider without a key": ({"providers": {"local": {"base_url": f"http://{FAR}"}}}, None),
    "a far compatible provider, clear": (
        {"providers": {"azure": {"base_url": f"http://{FAR}", "api_key": SECRET}}},
        "AGENT_EXEC_PROVIDERS, 'azure',: the provider's key",
    ),
    "a far server of tools, clear": (
        {"mcp_servers": {"files": {"url": f"http://{FAR}/mcp", "token": SECRET}}},
        "AGENT_EXEC_MCP_SERVERS, 'files',: the server's token",
    ),
    "a far server of tools without a token": ({"mcp_servers": {"files": {"url": f"http://{FAR}/mcp"}}}, None),
    "the sandbox on this machine": (
        {
            "service_token": "sandbox-service-token",
            "orchestrator_ws_url": f"ws://{HERE}:8701",
            "orchestrator_url": f"http://{HERE}:8701",
            "tool_registry_url": f"http://{HERE}:8701",
            "agent_management_url": f"http://{HERE}:8701",
        },
        None,
    ),
    "callbacks by http": ({"callback_allow_http": True}, "~AGENT_EXEC_CALLBACK_ALLOW_HTTP"),
}


@pytest.mark.parametrize(("others", "words"), MATRIX.values(), ids=MATRIX)
def test_what_is_refused_and_what_is_told(
    others: dict[str, Any], words: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """S23, S41."""
    settings = read_settings(**others)
    told = [one.text for one in exposure.exposures(settings)]
    assert SECRET not in " ".join(told)
    if words is None:
        assert told == []
    if words is None or words.startswith("~"):
        exposure.check(settings)
        exposure.warn(settings)
        assert [record.getMessage() for record in caplog.records] == told
        assert words is None or words[1:] in told[0]
    else:
        with pytest.raises(SettingsInvalid, match=rf"not safe to start\. .*{words}.*AGENT_EXEC_ENVIRONMENT=sandbox"):
            exposure.check(settings)
        exposure.check(read_settings(**others, environment="sandbox"))


def test_all_that_is_refused_is_told_at_once() -> None:
    settings = read_settings(redis_url=f"redis://{FAR}", service_token=SECRET, tool_registry_url=f"http://{FAR}")
    with pytest.raises(SettingsInvalid, match=r"AGENT_EXEC_REDIS_URL.*AGENT_EXEC_TOOL_REGISTRY_URL"):
        exposure.check(settings)


@pytest.mark.parametrize("field", ["api_keys_file", "jwt_keys_file", "service_token_file", "provider_keys_dir"])
def test_a_file_that_anybody_may_write_is_refused(field: str, tmp_path: Path) -> None:
    path = tmp_path / "secret"
    if field.endswith("dir"):
        path.mkdir()
    else:
        path.touch()
    settings = read_settings(**{field: path})
    path.chmod(0o755)
    exposure.check(settings)
    path.chmod(0o777)
    with pytest.raises(SettingsInvalid, match=f"{variable(field)} can be written by every user.*chmod o-w {path}"):
        exposure.check(settings)
    exposure.check(read_settings(**{field: tmp_path / "not there yet"}))


def test_whatever_the_sandbox_publishes_is_known_to_be_public() -> None:
    secret = {name: value for name, value in sandbox_environment("http://x").items() if name.endswith(("KEY", "TOKEN"))}
    assert set(secret.values()) == exposure.PUBLISHED


@pytest.mark.parametrize(
    "command",
    [
        ["-m", "celery", "-A", "tasks", "worker"],
        ["-m", "celery", "-A", "tasks", "flower", "--port=0"],
        ["-m", "notifier"],
        ["-m", "uvicorn", "api_shim.app:app", "--port", "0"],
    ],
    ids=lambda command: command[-1] if command[1] == "notifier" else command[3],
)
def test_no_process_starts_with_what_is_refused(command: list[str], tmp_path: Path) -> None:
    """S41."""
    env = {"AGENT_EXEC_REDIS_URL": f"redis://{FAR}"}
    with Process("process", command, env=env, log=tmp_path / "log") as process:
        wait_until(lambda: not process.running, what="the process to give up", within_s=20)
        assert process.stop() != 0
        assert "AGENT_EXEC_REDIS_URL has no password" in process.output
        assert "Traceback" not in process.output
