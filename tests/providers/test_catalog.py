"""Which providers there are, and with whose key each is asked."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from agent_exec.errors import ProviderAuth, ProviderKeyUnusable, ProviderNotConfigured, SettingsInvalid
from agent_exec.settings import Settings
from providers.catalog import Providers
from providers.provider import Provider
from tests.providers.asking import DONE, ask, failure, request
from tests.providers.wire_server import KEY, TENANT, Exchange, WireServer, chunk, event, settings_at, text_turn

NOTHING = {"openai_api_key": None, "groq_api_key": None, "providers": {}}
ACME_KEY = "sk-CANARY-acme-0123456789"
GLOBEX_KEY = "sk-CANARY-globex-0123456789"


class Vault:
    """A source of keys that is neither environment nor files."""

    def __init__(self, **keys: str) -> None:
        self.keys = keys

    async def key(self, provider: str, *, tenant_id: str) -> SecretStr | None:
        return SecretStr(key) if (key := self.keys.get(tenant_id)) else None


@pytest.fixture
def vault() -> Vault:
    return Vault(acme=ACME_KEY, globex=GLOBEX_KEY)


@pytest.fixture
async def providers(name: str, wire: WireServer, vault: Vault) -> AsyncIterator[Providers]:
    """The one provider `name`, at `wire`, with keys of the vault."""
    providers = Providers(settings_at(wire.url, name=name), keys=[vault])
    yield providers
    await providers.aclose()


async def by_tenant(providers: Providers, name: str, *tenants: str) -> list[Provider]:
    return [await providers.named(name, tenant_id=tenant) for tenant in tenants]


def sent_keys(wire: WireServer) -> list[str]:
    return [call.headers["authorization"].removeprefix("Bearer ") for call in wire.calls]


async def says_hello(exchange: Exchange) -> None:
    await exchange.whole(text_turn("hello"), headers={"set-cookie": "session=of-the-first-key; Path=/"})


async def test_every_provider_that_is_set_has_its_name() -> None:
    endpoint = {"base_url": "http://127.0.0.1:1/v1"}
    settings = Settings(openai_api_key="sk-1\n", groq_api_key="gsk-1", providers={"local": endpoint, "other": endpoint})
    providers = Providers(settings)
    names = ["openai", "groq", "local", "other"]
    assert [(await providers.named(name, tenant_id=TENANT)).name for name in names] == names
    await providers.aclose()


@pytest.mark.parametrize(
    ("name", "setting"),
    [("openai", "OPENAI_API_KEY"), ("groq", "GROQ_API_KEY"), ("local", "AGENT_EXEC_PROVIDERS with an entry 'local'")],
)
async def test_a_missing_provider_names_its_setting(name: str, setting: str) -> None:
    with pytest.raises(ProviderNotConfigured, match=f"Set {setting}") as caught:
        await Providers(Settings(**NOTHING)).named(name, tenant_id=TENANT)
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


class TestKeysOfTenants:
    async def test_each_tenant_asks_with_its_own_over_the_same_connection(
        self, providers: Providers, wire: WireServer, name: str
    ) -> None:
        wire.answer = says_hello
        for provider in await by_tenant(providers, name, "acme", "globex", "acme"):
            await ask(provider)
        assert sent_keys(wire) == [ACME_KEY, GLOBEX_KEY, ACME_KEY]
        assert wire.connections == 1
        assert not any("cookie" in call.headers for call in wire.calls), "a cookie may stand for a key"

    async def test_a_provider_for_a_key_costs_no_connection_and_is_kept_by_nobody(
        self, providers: Providers, wire: WireServer, vault: Vault, name: str
    ) -> None:
        wire.answer = says_hello
        for number in range(50):
            vault.keys["acme"] = f"{ACME_KEY}-{number}"
            await ask(await providers.named(name, tenant_id="acme"))
        assert (len(set(sent_keys(wire))), wire.connections) == (50, 1)

    async def test_a_changed_key_counts_from_the_next_call_on_and_breaks_no_stream(
        self, providers: Providers, wire: WireServer, vault: Vault, name: str
    ) -> None:
        wire.answer = says_hello
        before = await providers.named(name, tenant_id="acme")
        async with before.stream(request()) as deltas:
            vault.keys["acme"] = "sk-CANARY-acme-second"
            after = await providers.named(name, tenant_id="acme")
            await ask(after)
            assert len([delta async for delta in deltas]) == 2
        assert sent_keys(wire) == [ACME_KEY, "sk-CANARY-acme-second"]
        assert before.key_fingerprint != after.key_fingerprint

    async def test_a_fingerprint_tells_keys_apart_and_nothing_of_them(
        self, providers: Providers, vault: Vault, name: str
    ) -> None:
        vault.keys["initech"] = ACME_KEY
        acme, globex, initech = await by_tenant(providers, name, "acme", "globex", "initech")
        assert acme.key_fingerprint == initech.key_fingerprint != globex.key_fingerprint
        assert len(acme.key_fingerprint) == 16
        assert acme.key_fingerprint.isalnum()

    async def test_a_tenant_without_one_asks_with_the_service_s(
        self, wire: WireServer, name: str, tmp_path: Path
    ) -> None:
        (tmp_path / "acme").mkdir()
        (tmp_path / "acme" / name).write_text(f"{ACME_KEY}\n")
        (tmp_path / "globex").mkdir()
        providers = Providers(settings_at(wire.url, name=name, provider_keys_dir=tmp_path))
        wire.answer = says_hello
        for provider in await by_tenant(providers, name, "globex", "acme", "initech"):
            await ask(provider)
        assert sent_keys(wire) == [KEY, ACME_KEY, KEY]
        await providers.aclose()

    @pytest.mark.parametrize("name", ["openai", "groq"])
    async def test_a_provider_that_only_tenants_have_keys_for(
        self, wire: WireServer, name: str, tmp_path: Path
    ) -> None:
        (tmp_path / "acme").mkdir()
        (tmp_path / "acme" / name).write_text(ACME_KEY)
        settings = settings_at(wire.url, name=name, provider_keys_dir=tmp_path)
        providers = Providers(settings.model_copy(update={f"{name}_api_key": None}))
        wire.answer = says_hello
        await ask(await providers.named(name, tenant_id="acme"))
        assert sent_keys(wire) == [ACME_KEY]
        with pytest.raises(ProviderNotConfigured):
            await providers.named(name, tenant_id="globex")
        await providers.aclose()

    async def test_a_key_that_cannot_be_used_is_not_replaced_by_the_service_s(
        self, wire: WireServer, name: str, tmp_path: Path
    ) -> None:
        (tmp_path / "acme").mkdir()
        (tmp_path / "acme" / name).write_text("")
        providers = Providers(settings_at(wire.url, name=name, provider_keys_dir=tmp_path))
        with pytest.raises(ProviderKeyUnusable, match=r"tenant 'acme'.*it is empty"):
            await providers.named(name, tenant_id="acme")
        assert wire.calls == []
        await providers.aclose()

    async def test_no_failure_tells_a_tenant_s_key(self, providers: Providers, wire: WireServer, name: str) -> None:
        async def refuse(exchange: Exchange) -> None:
            await exchange.refuse(
                401, {"message": f"Incorrect API key provided: {ACME_KEY}", "code": "invalid_api_key"}
            )

        async def break_off(exchange: Exchange) -> None:
            await exchange.whole(event(chunk({"content": "a"})) + event({"error": {"message": ACME_KEY}}) + DONE)

        provider = await providers.named(name, tenant_id="acme")
        for wire.answer in (refuse, break_off):
            assert ACME_KEY not in str(await failure(provider))
        wire.answer = refuse
        assert type(await failure(provider)) is ProviderAuth

    async def test_nothing_that_holds_a_key_shows_it(self, providers: Providers, wire: WireServer, name: str) -> None:
        wire.answer = says_hello
        provider = await providers.named(name, tenant_id="acme")
        call = provider.stream(request())
        async with call as deltas:
            shown = [repr(thing) for holder in (providers, provider, call) for thing in (holder, vars(holder))]
            assert len([delta async for delta in deltas]) == 2
        assert not any("CANARY" in text for text in shown)
