"""The sandbox on a free port, without its pauses."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from groq import AsyncGroq
from openai import AsyncOpenAI

from sandbox.app import DEFAULT_TOKEN, create_app
from sandbox.serving import serving


@pytest.fixture
async def base_url() -> AsyncIterator[str]:
    """All four neighbours."""
    async with serving(create_app(pace=0)) as url:
        yield url


@pytest.fixture
async def http(base_url: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client that holds the token."""
    headers = {"Authorization": f"Bearer {DEFAULT_TOKEN}"}
    async with httpx.AsyncClient(base_url=base_url, headers=headers, timeout=30) as client:
        yield client


@pytest.fixture
async def openai_client(base_url: str) -> AsyncIterator[AsyncOpenAI]:
    """OpenAI's SDK, without its own retries."""
    async with AsyncOpenAI(api_key="sk-sandbox-test", base_url=f"{base_url}/openai/v1", max_retries=0) as client:
        yield client


@pytest.fixture
async def groq_client(base_url: str) -> AsyncIterator[AsyncGroq]:
    """Groq's SDK, without its own retries."""
    async with AsyncGroq(api_key="gsk-sandbox-test", base_url=f"{base_url}/groq", max_retries=0) as client:
        yield client
