"""What signs callbacks: the tenant's own secrets, else the service's, and never none."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest

from agent_exec.callbacks.secrets import MAX_SECRETS, CallbackSecrets
from agent_exec.errors import CallbacksNotConfigured, SettingsInvalid
from agent_exec.settings import read_settings


def a_secret(length: int = 24) -> str:
    return f"whsec_{base64.b64encode(os.urandom(length)).decode()}"


def test_a_tenants_own_secret_wins_over_the_services(tmp_path: Path) -> None:
    of_service, of_acme = a_secret(), a_secret()
    (tmp_path / "acme").write_text(f"{of_acme}\n")
    secrets = CallbackSecrets(read_settings(callback_secret=of_service, callback_secrets_dir=tmp_path))
    assert secrets.of("acme") == (of_acme,)
    assert secrets.of("globex") == (of_service,)


def test_a_change_of_a_file_counts_at_once(tmp_path: Path) -> None:
    secrets = CallbackSecrets(read_settings(callback_secrets_dir=tmp_path))
    with pytest.raises(CallbacksNotConfigured):
        secrets.of("acme")
    old, new = a_secret(), a_secret(64)
    for held in ((old,), (old, new), (new,)):
        (tmp_path / "acme").write_text("\n".join(held))
        assert secrets.of("acme") == held


@pytest.mark.parametrize("between", [" ", ",", ", ", "\n", "\t"])
def test_several_sign_while_one_takes_the_place_of_another(between: str) -> None:
    held = (a_secret(), a_secret(), a_secret())
    assert CallbackSecrets(read_settings(callback_secret=between.join(held))).of("acme") == held


def test_without_any_secret_nothing_is_signed() -> None:
    with pytest.raises(CallbacksNotConfigured, match="AGENT_EXEC_CALLBACK_SECRET"):
        CallbackSecrets(read_settings()).of("acme")


@pytest.mark.parametrize(
    ("secret", "says"),
    [
        (a_secret(23), "23 bytes"),
        (a_secret(65), "65 bytes"),
        (a_secret().removeprefix("whsec_"), "begin with"),
        ("whsec_!!!", "base64"),
        ("whsec_", "0 bytes"),
        (" ".join(a_secret() for _ in range(MAX_SECRETS + 1)), "at most"),
    ],
    ids=["short", "long", "no prefix", "no base64", "empty", "too many"],
)
def test_what_is_no_secret_is_told_without_repeating_it(secret: str, says: str, tmp_path: Path) -> None:
    """S17."""
    with pytest.raises(SettingsInvalid, match=f"AGENT_EXEC_CALLBACK_SECRET: .*{says}") as invalid:
        CallbackSecrets(read_settings(callback_secret=secret))
    assert secret == "whsec_" or secret not in str(invalid.value)
    (tmp_path / "acme").write_text(secret)
    of_files = CallbackSecrets(read_settings(callback_secret=a_secret(), callback_secrets_dir=tmp_path))
    with pytest.raises(CallbacksNotConfigured, match=says) as unusable:
        of_files.of("acme")
    assert secret == "whsec_" or secret not in str(unusable.value)


@pytest.mark.parametrize("content", ["", " \n", "x" * 5_000])
def test_a_file_without_a_secret_is_no_leave_to_use_the_services(content: str, tmp_path: Path) -> None:
    (tmp_path / "acme").write_text(content)
    secrets = CallbackSecrets(read_settings(callback_secret=a_secret(), callback_secrets_dir=tmp_path))
    with pytest.raises(CallbacksNotConfigured, match="cannot be used"):
        secrets.of("acme")


def test_a_directory_that_is_gone_is_no_leave_to_use_the_services(tmp_path: Path) -> None:
    directory = tmp_path / "secrets"
    with pytest.raises(SettingsInvalid, match="AGENT_EXEC_CALLBACK_SECRETS_DIR"):
        CallbackSecrets(read_settings(callback_secrets_dir=directory))
    directory.mkdir()
    secrets = CallbackSecrets(read_settings(callback_secret=a_secret(), callback_secrets_dir=directory))
    assert secrets.of("acme")
    directory.rmdir()
    with pytest.raises(CallbacksNotConfigured, match="cannot be used"):
        secrets.of("acme")
