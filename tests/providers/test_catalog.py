from __future__ import annotations

import subprocess
import sys

import pytest

from agent_exec.errors import ProviderNotConfigured, SettingsInvalid
from agent_exec.settings import Settings
from providers.catalog import Providers

NOTHING = {"openai_api_key": None, "groq_api_key": None, "providers": {}}


async def test_each_name_has_one_client() -> None:
    endpoint = {"base_url": "http://127.0.0.1:1/v1"}
    settings = Settings(openai_api_key="sk-1\n", groq_api_key="gsk-1", providers={"local": endpoint, "other": endpoint})
    providers = Providers(settings)
    named = [providers.named(name) for name in ("openai", "groq", "local", "other")]
    assert [provider.name for provider in named] == ["openai", "groq", "local", "other"]
    assert [providers.named(provider.name) for provider in named] == named
    await providers.aclose()


@pytest.mark.parametrize(
    ("name", "setting"),
    [("openai", "OPENAI_API_KEY"), ("groq", "GROQ_API_KEY"), ("local", "AGENT_EXEC_PROVIDERS with an entry 'local'")],
)
async def test_a_missing_provider_names_its_setting(name: str, setting: str) -> None:
    with pytest.raises(ProviderNotConfigured, match=f"Set {setting}") as caught:
        Providers(Settings(**NOTHING)).named(name)
    assert caught.value.provider == name


@pytest.mark.parametrize("key", [" ", "sk-\u2026", "sk-1\nHost: elsewhere"])
@pytest.mark.parametrize("name", ["openai_api_key", "groq_api_key"])
async def test_a_key_that_is_none_is_refused(name: str, key: str) -> None:
    with pytest.raises(SettingsInvalid, match=f"^{name.upper()} holds no key") as caught:
        Providers(Settings(**{**NOTHING, name: key}))
    assert "sk-" not in str(caught.value)


def test_no_sdk_is_imported_for_nothing() -> None:
    script = """
import sys
from agent_exec.settings import Settings
from providers.catalog import Providers
Providers(Settings(openai_api_key=None, groq_api_key=None, providers={}))
assert not {"openai", "groq"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", script], check=True)
