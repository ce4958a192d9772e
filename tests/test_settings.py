"""The environment, read: names, errors that name the variable, and nothing that changes afterwards."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from agent_exec.errors import SettingsInvalid
from agent_exec.settings import Settings, read_settings, variable


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without any of ours."""
    for field in Settings.model_fields:
        monkeypatch.delenv(variable(field), raising=False)


def test_without_an_environment_every_setting_has_a_default() -> None:
    read = read_settings()
    assert (read.redis_url, read.openai_api_key, read.providers) == (None, None, {})
    assert read.orchestrator_ws_url == "ws://agent-orchestrator:8000/ws/task_updates"


def test_every_variable_is_ours_or_a_name_that_an_sdk_fixed() -> None:
    names = {variable(field) for field in Settings.model_fields}
    sdk = {"OPENAI_API_KEY", "OPENAI_BASE_URL", "GROQ_API_KEY", "GROQ_BASE_URL"}
    assert sdk < names
    assert all(name.startswith("AGENT_EXEC_") for name in names - sdk)
    assert len(names) == len(Settings.model_fields)


def test_what_stands_in_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "OPENAI_API_KEY": "sk-1",
        "GROQ_BASE_URL": "http://groq",
        "AGENT_EXEC_REDIS_URL": "rediss://u:p@host:6380/1",
        "AGENT_EXEC_WORKER_CONCURRENCY": "7",
        "AGENT_EXEC_CONFIG_TTL_S": "0",
        "AGENT_EXEC_SERVICE_TOKEN": "",
        "AGENT_EXEC_PROVIDERS": '{"local": {"base_url": "http://l"}, "azure": {"base_url": "https://a", "api_key": "k"}}',
        "AGENT_EXEC_API_ALLOWED_ORIGINS": '["https://a", "https://b"]',
        "AGENT_EXEC_NO_SUCH_SETTING": "x",
        "AGENT_EXEC_OPENAI_API_KEY": "not its name",
    }.items():
        monkeypatch.setenv(name, value)
    read = read_settings()
    assert read.openai_api_key is not None
    assert read.openai_api_key.get_secret_value() == "sk-1"
    assert (read.groq_base_url, read.redis_url) == ("http://groq", "rediss://u:p@host:6380/1")
    assert (read.worker_concurrency, read.config_ttl_s) == (7, 0.0)
    assert read.service_token.get_secret_value() == "", "set to nothing is not set"
    assert {name: one.api_key.get_secret_value() for name, one in read.providers.items()} == {
        "local": "none",
        "azure": "k",
    }
    assert read.api_allowed_origins == {"https://a", "https://b"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AGENT_EXEC_REDIS_URL", "http://CANARY"),
        ("AGENT_EXEC_WORKER_CONCURRENCY", "CANARY"),
        ("AGENT_EXEC_WORKER_CONCURRENCY", "0"),
        ("AGENT_EXEC_LEASE_S", "-1"),
        ("AGENT_EXEC_LOG_FORMAT", "CANARY"),
        ("AGENT_EXEC_PROVIDERS", "{CANARY"),
        ("AGENT_EXEC_PROVIDERS", "[]"),
        ("AGENT_EXEC_PROVIDERS", '{"local": {}}'),
        ("AGENT_EXEC_PROVIDERS", '{"local": {"base_url": "x", "key": "CANARY"}}'),
        ("AGENT_EXEC_API_ALLOWED_ORIGINS", "https://CANARY"),
        ("AGENT_EXEC_RETENTION_BY_PLAN_S", '{"CANARY": 3600}'),
        ("AGENT_EXEC_RETENTION_BY_PLAN_S", '{"free": 1}'),
    ],
)
def test_an_error_names_the_variable_and_never_repeats_its_value(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsInvalid, match=f"{name}: .*docs/operations.md") as invalid:
        read_settings()
    assert "CANARY" not in str(invalid.value)


def test_all_that_is_wrong_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_EXEC_LEASE_S", "0")
    monkeypatch.setenv("AGENT_EXEC_LOG_LEVEL", "loud")
    with pytest.raises(SettingsInvalid, match=r"AGENT_EXEC_LEASE_S: .*AGENT_EXEC_LOG_LEVEL: "):
        read_settings()


def test_retention_is_by_plan_where_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_settings().longest_retention_s == 86_400
    monkeypatch.setenv("AGENT_EXEC_RETENTION_BY_PLAN_S", '{"free": 3600, "enterprise": 604800}')
    read = read_settings()
    assert [read.retention_of_s(plan) for plan in ("free", "pro", "enterprise", None)] == [
        3_600,
        86_400,
        604_800,
        86_400,
    ]
    assert read.longest_retention_s == 604_800


def test_an_error_under_the_sdks_name_names_that(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsInvalid, match="OPENAI_API_KEY: "):
        read_settings(OPENAI_API_KEY=7)
    assert variable("OPENAI_API_KEY") == "OPENAI_API_KEY"


def test_settings_are_frozen_and_show_no_secret() -> None:
    read = read_settings(service_token="sk-CANARY", openai_api_key="sk-CANARY")
    with pytest.raises(ValidationError, match="frozen"):
        read.lease_s = 3.0
    assert "CANARY" not in repr(read) + str(read) + read.model_dump_json()
