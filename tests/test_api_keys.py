"""API keys: made once, held as hashes, revoked soon, and safe to change from two terminals at once."""

from __future__ import annotations

import hashlib
import json
import re
import resource
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import pytest

from agent_exec import api_keys
from agent_exec.api_keys import ApiKeys, Caller, Role
from agent_exec.errors import NotFound, SettingsInvalid, Unauthorized


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "keys.json"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time by which the file is looked at."""
    now_s = [100.0]
    monkeypatch.setattr("agent_exec.watched_file.time.monotonic", lambda: now_s[0])
    return now_s


def key_id(key: str) -> str:
    return key.split("_")[1]


@pytest.mark.parametrize("role", get_args(Role))
def test_a_key_says_who_its_caller_is(path: Path, role: Role) -> None:
    key = api_keys.create(path, tenant_id="acme", role=role)
    assert re.fullmatch(r"aek_[a-z0-9]{8,32}_[A-Za-z0-9_-]{43,}", key)
    assert ApiKeys(path).verify(key) == Caller("acme", role, key_id(key))


def test_the_file_has_the_form_of_the_contract_and_no_key(path: Path) -> None:
    """S08."""
    key = api_keys.create(path, tenant_id="acme")
    (record,) = json.loads(path.read_text())["keys"]
    secret = key.split("_", 2)[2]
    assert sorted(record) == ["created_at", "key_id", "revoked_at", "role", "secret_sha256", "tenant_id"]
    assert record["secret_sha256"] == hashlib.sha256(secret.encode()).hexdigest()
    assert (record["tenant_id"], record["role"], record["revoked_at"]) == ("acme", "caller", None)
    assert secret not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_file_written_by_hand_counts_as_well(path: Path) -> None:
    secret = "s" * 43
    record = {
        "key_id": "handmade1",
        "tenant_id": "acme",
        "role": "caller",
        "secret_sha256": hashlib.sha256(secret.encode()).hexdigest(),
        "created_at": "2026-01-01T00:00:00Z",
        "revoked_at": None,
    }
    path.parent.mkdir()
    path.write_text(json.dumps({"keys": [record]}))
    assert ApiKeys(path).verify(f"aek_handmade1_{secret}").tenant_id == "acme"


def test_what_is_no_key_lets_nobody_in(path: Path) -> None:
    key = api_keys.create(path, tenant_id="acme")
    other = api_keys.create(path, tenant_id="globex")
    keys = ApiKeys(path)
    crossed = f"aek_{key_id(key)}_{other.split('_', 2)[2]}"
    said = set()
    for presented in (
        "",
        "aek",
        key[:-1],
        key + "x",
        key.upper(),
        f" {key}",
        f"{key}\n",
        crossed,
        "aek_unknown0_" + "x" * 43,
    ):
        with pytest.raises(Unauthorized) as refusal:
            keys.verify(presented)
        said.add(str(refusal.value))
    assert len(said) == 1


def test_a_revoked_key_is_refused_within_five_seconds(path: Path, clock: list[float]) -> None:
    """S08."""
    key = api_keys.create(path, tenant_id="acme")
    keys = ApiKeys(path)
    caller = keys.verify(key)
    record = api_keys.revoke(path, key_id(key))
    assert record.revoked_at is not None
    assert api_keys.revoke(path, key_id(key)) == record
    assert keys.holds(caller)
    clock[0] += 5
    assert not keys.holds(caller)
    with pytest.raises(Unauthorized):
        keys.verify(key)
    assert [one.key_id for one in api_keys.list_keys(path)] == [key_id(key)]


def test_a_new_key_counts_within_five_seconds(path: Path, clock: list[float]) -> None:
    keys = ApiKeys(path)
    with pytest.raises(Unauthorized):
        keys.verify("aek_")
    key = api_keys.create(path, tenant_id="acme")
    clock[0] += 5
    assert keys.verify(key).tenant_id == "acme"
    assert keys.count() == 1


def test_two_keys_of_a_tenant_and_role_overlap_and_no_third(path: Path) -> None:
    """S08: a key is changed without a gap."""
    first, second = (api_keys.create(path, tenant_id="acme") for _ in range(2))
    keys = ApiKeys(path)
    assert keys.verify(first).tenant_id == keys.verify(second).tenant_id == "acme"
    with pytest.raises(SettingsInvalid, match=f"{key_id(first)}, {key_id(second)}.*Revoke one first"):
        api_keys.create(path, tenant_id="acme")
    api_keys.create(path, tenant_id="acme", role="operator")
    api_keys.create(path, tenant_id="globex")
    api_keys.revoke(path, key_id(first))
    api_keys.create(path, tenant_id="acme")


def test_keys_made_at_once_are_all_kept(path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda number: api_keys.create(path, tenant_id=f"tenant{number}"), range(40)))
    keys = ApiKeys(path)
    assert {keys.verify(key).tenant_id for key in made} == {f"tenant{number}" for number in range(40)}


def test_without_a_file_nobody_gets_in(path: Path) -> None:
    for keys in (ApiKeys(None), ApiKeys(path)):
        assert keys.count() == 0
        with pytest.raises(Unauthorized):
            keys.verify("aek_unknown0_" + "x" * 43)


def test_a_file_that_is_gone_lets_nobody_in(path: Path, clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    key = api_keys.create(path, tenant_id="acme")
    keys = ApiKeys(path)
    keys.verify(key)
    path.unlink()
    clock[0] += 5
    with pytest.raises(Unauthorized):
        keys.verify(key)
    assert "Nobody is let in by it" in caplog.text


def test_a_slip_of_an_editor_locks_nobody_out(path: Path, clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    key = api_keys.create(path, tenant_id="acme")
    keys = ApiKeys(path)
    keys.verify(key)
    path.write_text(path.read_text()[:-10])
    clock[0] += 5
    assert keys.verify(key).tenant_id == "acme"
    assert "is not a file of API keys" in caplog.text
    assert "What it said before stays in force" in caplog.text


@pytest.mark.parametrize("tenant_id", ["", "Acme", "a:b", "a*", "x" * 64])
def test_no_key_is_made_for_what_is_no_tenant(path: Path, tenant_id: str) -> None:
    with pytest.raises(SettingsInvalid, match="A tenant id is"):
        api_keys.create(path, tenant_id=tenant_id)
    assert not path.exists()


def test_errors_say_what_to_do(path: Path) -> None:
    with pytest.raises(SettingsInvalid, match="agent-exec keys create --tenant T"):
        api_keys.list_keys(path)
    key = api_keys.create(path, tenant_id="acme")
    with pytest.raises(NotFound, match=r"'unknown0': not in .* agent-exec keys list"):
        api_keys.revoke(path, "unknown0")
    path.write_text('{"keys": [{"key_id": "x"}]}')
    before = path.read_bytes()
    for change in (lambda: api_keys.create(path, tenant_id="acme"), lambda: api_keys.revoke(path, key_id(key))):
        with pytest.raises(SettingsInvalid, match=r"keys\.0\.key_id"):
            change()
    assert path.read_bytes() == before


def test_a_disk_that_is_full_changes_nothing(path: Path) -> None:
    key = api_keys.create(path, tenant_id="acme")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(SettingsInvalid, match=r"cannot be written: .*Nothing was changed"):
            api_keys.create(path, tenant_id="acme")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [one.key_id for one in api_keys.list_keys(path)] == [key_id(key)]
    api_keys.create(path, tenant_id="acme")


def test_a_path_that_is_no_files_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid, match="cannot be read"):
        api_keys.list_keys(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(SettingsInvalid, match="cannot be written"):
        api_keys.create(tmp_path / "file" / "keys.json", tenant_id="acme")
