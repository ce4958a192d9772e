"""Where keys come from: files of tenants that change under us, and the service's own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from agent_exec.errors import ProviderKeyUnusable, SettingsInvalid
from agent_exec.settings import Settings
from providers import secrets
from providers.secrets import FRESH_S, MAX_KEY_BYTES, KeyFiles, ServiceKeys, fingerprint, key_sources


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def files(tmp_path: Path, clock: Clock) -> KeyFiles:
    put(tmp_path, "acme", "openai", "sk-acme-1")
    return KeyFiles(tmp_path, now_s=clock)


def put(directory: Path, tenant_id: str, provider: str, key: str | bytes) -> Path:
    path = directory / tenant_id / provider
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(key if isinstance(key, bytes) else key.encode())
    return path


async def key_of(source: KeyFiles | ServiceKeys, tenant_id: str = "acme", provider: str = "openai") -> str | None:
    key = await source.key(provider, tenant_id=tenant_id)
    return key if key is None else key.get_secret_value()


async def test_each_tenant_and_provider_has_a_file(files: KeyFiles, tmp_path: Path) -> None:
    put(tmp_path, "globex", "openai", "sk-globex-1\r\n")
    put(tmp_path, "acme", "groq", "  gsk-acme-1\n")
    (tmp_path / "initech").write_text("a file where a tenant's folder would be")
    assert await key_of(files) == "sk-acme-1"
    assert await key_of(files, "globex") == "sk-globex-1"
    assert await key_of(files, "acme", "groq") == "gsk-acme-1"
    assert [await key_of(files, tenant) for tenant in ("initech", "hooli")] == [None, None]
    assert await key_of(files, "globex", "groq") is None


async def test_changes_count_within_seconds(files: KeyFiles, tmp_path: Path, clock: Clock) -> None:
    """S26."""
    seen = []
    for key in ("sk-acme-2", "sk-acme-3", None, "sk-acme-4"):
        seen.append(await key_of(files))
        path = tmp_path / "acme" / "openai"
        put(tmp_path, "acme", "openai", key) if key else path.unlink()
        assert await key_of(files) == seen[-1], "what was read a moment ago is not read again"
        clock.now_s += FRESH_S
    assert [*seen, await key_of(files)] == ["sk-acme-1", "sk-acme-2", "sk-acme-3", None, "sk-acme-4"]


async def test_a_mounted_secret_is_swapped_as_a_whole(tmp_path: Path, clock: Clock) -> None:
    """Kubernetes mounts a folder of links through `..data`, and turns that one link to a new folder."""
    mount = tmp_path / "acme"
    put(tmp_path, "first", "openai", "sk-1")
    put(tmp_path, "second", "openai", "sk-2")
    mount.mkdir()
    (mount / "..data").symlink_to(tmp_path / "first")
    (mount / "openai").symlink_to(Path("..data") / "openai")
    files = KeyFiles(tmp_path, now_s=clock)
    assert await key_of(files) == "sk-1"
    (mount / "..new").symlink_to(tmp_path / "second")
    (mount / "..new").rename(mount / "..data")
    clock.now_s += FRESH_S
    assert await key_of(files) == "sk-2"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it is empty"),
        (b" \n", "it is empty"),
        (b"sk-1\nsk-2\n", "it has characters that no header takes"),
        (b"sk-1\0", "it has characters that no header takes"),
        (b"\xff\xfes\0k\0", "it has characters that no header takes"),
        ("sk-…".encode(), "it has characters that no header takes"),
        (b"x" * (MAX_KEY_BYTES + 1), "it is longer than 8192 bytes"),
    ],
)
async def test_a_file_that_holds_no_key(files: KeyFiles, tmp_path: Path, content: bytes, why: str) -> None:
    put(tmp_path, "acme", "openai", content)
    await refused(files, tmp_path, why=why)
    put(tmp_path, "acme", "openai", "sk-acme-2")
    assert await key_of(files) == "sk-acme-2", "a fault is not remembered"


async def test_a_file_that_is_none(files: KeyFiles, tmp_path: Path) -> None:
    (tmp_path / "acme" / "groq").mkdir()
    await refused(files, tmp_path, provider="groq", why="Is a directory")


@pytest.fixture
def locked(tmp_path: Path) -> str:
    """A key that nobody may read; returns what the system says to that."""
    path = put(tmp_path, "acme", "openai", "sk-CANARY-acme")
    path.chmod(0)
    if not os.access(path, os.R_OK):
        return "Permission denied"
    path.unlink()  # root reads everything but a link to itself
    path.symlink_to(path.name)
    return "Too many levels of symbolic links"


async def test_a_file_that_may_not_be_read(tmp_path: Path, locked: str) -> None:
    await refused(KeyFiles(tmp_path), tmp_path, why=locked)


async def refused(files: KeyFiles, directory: Path, *, why: str, provider: str = "openai") -> None:
    with capture_logs() as logs, pytest.raises(ProviderKeyUnusable) as caught:
        await files.key(provider, tenant_id="acme")
    words = f"The key of tenant 'acme' for provider '{provider}' cannot be used: {why}. Set it anew."
    assert (str(caught.value), caught.value.retryable) == (words, True)
    assert str(directory) not in str(caught.value)
    [logged] = logs
    assert (logged["tenant_id"], logged["provider"], logged["why"]) == ("acme", provider, why)
    assert "sk-" not in str(logs)


async def test_a_mount_that_is_gone_is_no_tenant_without_a_key(files: KeyFiles, tmp_path: Path, clock: Clock) -> None:
    assert await key_of(files) == "sk-acme-1"
    elsewhere = tmp_path.with_name(f"{tmp_path.name}-elsewhere")
    os.rename(tmp_path, elsewhere)
    clock.now_s += FRESH_S
    with pytest.raises(ProviderKeyUnusable, match="No such file or directory"):
        await key_of(files)
    os.rename(elsewhere, tmp_path)
    assert await key_of(files) == "sk-acme-1"


async def test_what_is_remembered_is_bounded(files: KeyFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "MAX_REMEMBERED", 3)
    for number in range(10):
        put(tmp_path, f"t{number}", "openai", f"sk-{number}")
        assert await key_of(files, f"t{number}") == f"sk-{number}"
    assert len(files._remembered) == 3
    assert "sk-9" not in repr(vars(files))


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_a_directory_that_is_none_is_told_at_the_start(tmp_path: Path, kind: str) -> None:
    directory = tmp_path / "keys"
    if kind == "file":
        directory.write_text("sk-1")
    with pytest.raises(SettingsInvalid, match=r"^AGENT_EXEC_PROVIDER_KEYS_DIR is '.*keys', which cannot be read"):
        KeyFiles(directory)


async def test_the_service_s_keys_are_everybody_s() -> None:
    endpoint = {"base_url": "http://127.0.0.1:1/v1"}
    keys = ServiceKeys(
        Settings(
            openai_api_key="sk-1\n",
            groq_api_key=None,
            providers={"local": endpoint | {"api_key": "l"}, "open": endpoint},
        )
    )
    assert [await key_of(keys, provider=name) for name in ("openai", "groq", "local", "open", "nobody")] == [
        "sk-1",
        None,
        "l",
        "none",
        None,
    ]
    assert "sk-1" not in repr(vars(keys))


def test_a_key_in_the_settings_that_could_not_be_sent() -> None:
    with pytest.raises(SettingsInvalid, match=r"^AGENT_EXEC_PROVIDERS, entry 'local', holds no key: it is empty"):
        ServiceKeys(Settings(providers={"local": {"base_url": "http://l", "api_key": ""}}))


def test_a_tenant_s_own_key_goes_first(tmp_path: Path) -> None:
    settings = Settings(openai_api_key="sk-1", groq_api_key=None, providers={})
    assert [type(source) for source in key_sources(settings)] == [ServiceKeys]
    settings = settings.model_copy(update={"provider_keys_dir": tmp_path})
    assert [type(source) for source in key_sources(settings)] == [KeyFiles, ServiceKeys]


def test_a_fingerprint_names_a_key() -> None:
    one, other = fingerprint(SecretStr("sk-1")), fingerprint(SecretStr("sk-2"))
    assert one == fingerprint(SecretStr("sk-1")) != other
    assert len(one) == len(other) == 16
