from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from providers.catalog import Providers
from providers.provider import Provider
from tests.providers.wire_server import TENANT, WireServer, settings_at, wire_server


@pytest.fixture
async def wire() -> AsyncIterator[WireServer]:
    async with wire_server() as server:
        yield server


@pytest.fixture
def limits() -> dict[str, float]:
    """Settings beside the address; a test overrides it with `parametrize("limits", [{…}])`."""
    return {}


@pytest.fixture(params=["openai", "groq", "local"])
def name(request: pytest.FixtureRequest) -> str:
    """Each kind of provider in turn."""
    return str(request.param)


@pytest.fixture
async def providers(name: str, wire: WireServer, limits: dict[str, float]) -> AsyncIterator[Providers]:
    """The one provider `name`, at `wire`."""
    providers = Providers(settings_at(wire.url, name=name, **limits))
    yield providers
    await providers.aclose()


@pytest.fixture
async def provider(providers: Providers, name: str) -> Provider:
    return await providers.named(name, tenant_id=TENANT)
