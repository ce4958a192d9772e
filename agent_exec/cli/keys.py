"""`keys`: the API keys that the HTTP shim lets in."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click

from agent_exec import api_keys
from agent_exec.api_keys import Role
from agent_exec.cli.options import json_option
from agent_exec.cli.text import columns, moment
from agent_exec.errors import SettingsInvalid
from agent_exec.settings import read_settings

file_option = click.option(
    "--file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file of hashes; without this, AGENT_EXEC_API_KEYS_FILE.",
)


@click.group()
def keys() -> None:
    """Make, list and revoke API keys. The file holds hashes alone; the shim reads it again within 5 s."""


@keys.command()
@click.option("--tenant", "tenant_id", required=True, envvar="AGENT_EXEC_TENANT", show_envvar=True, metavar="T")
@click.option("--role", type=click.Choice(get_args(Role)), default="caller", show_default=True)
@file_option
def create(tenant_id: str, role: Role, file: Path | None) -> None:
    """Make a key and print it: the only time that it is seen."""
    click.echo(api_keys.create(_path(file), tenant_id=tenant_id, role=role))


@keys.command()
@click.argument("key_id", metavar="KEY_ID")
@file_option
def revoke(key_id: str, file: Path | None) -> None:
    """Revoke a key; the shim refuses it within 5 s."""
    record = api_keys.revoke(_path(file), key_id)
    click.echo(f"Key '{record.key_id}' of tenant '{record.tenant_id}': revoked since {moment(record.revoked_at)}.")


@keys.command("list")
@file_option
@json_option
def list_keys(file: Path | None, as_json: bool) -> None:
    """List every key by its id, revoked ones too; never a key itself."""
    records = api_keys.list_keys(_path(file))
    if as_json:
        for record in records:
            click.echo(record.model_dump_json(exclude={"secret_sha256"}))
    else:
        header = ("KEY ID", "TENANT", "ROLE", "CREATED", "REVOKED")
        rows = [
            (record.key_id, record.tenant_id, record.role, moment(record.created_at), moment(record.revoked_at))
            for record in records
        ]
        click.echo(columns([header, *rows]))


def _path(file: Path | None) -> Path:
    path = file or read_settings().api_keys_file
    if path is None:
        raise SettingsInvalid("No file of API keys: set AGENT_EXEC_API_KEYS_FILE, for the shim too, or pass --file.")
    return path
