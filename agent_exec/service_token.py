"""Our own bearer token, for the neighbours and the WebSocket: the setting, or a file that is read again when it changes.

Owns where it comes from and what it may look like. Does not know to whom it is shown.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

from agent_exec.errors import SettingsInvalid
from agent_exec.settings import Settings

log = logging.getLogger(__name__)

#: Signed tokens are some kilobytes long. It is a bound on what is read of a file that holds something else.
MAX_TOKEN_BYTES = 8_192
_SENDABLE = re.compile(r"[\x21-\x7e]*")


class ServiceToken:
    """The token of this moment. A file is looked at whenever it is asked for, so that a change counts at once."""

    def __init__(self, settings: Settings) -> None:
        """Take the settings; a file need not be there yet."""
        self._path = settings.service_token_file
        self._token = settings.service_token.get_secret_value()
        self._before = ""
        self._seen: tuple[int, ...] | None = None

    def current(self) -> str:
        """Return it, empty where there is none. Of a file that cannot be read, or holds no token, the last one stays."""
        if self._path is not None:
            seen = _version(self._path)
            if seen != self._seen:
                self._seen = seen  # before the log is told: it asks for what is to be struck out
                try:
                    self._before, self._token = self._token, _read(self._path)
                except SettingsInvalid as error:
                    log.error("%s The last token that could be read is used.", error)
        return self._token

    def secrets(self) -> tuple[str, ...]:
        """Return what must not be seen: the token, and the one before it, which may hold for a while."""
        return tuple(token for token in (self.current(), self._before) if token)

    def check(self) -> None:
        """Check what there is now, before anything starts.

        Raises:
            SettingsInvalid: it cannot be read, or no header could carry it.
        """
        if self._path is not None:
            _read(self._path)
        else:
            _checked(self._token, "AGENT_EXEC_SERVICE_TOKEN")


def _version(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_ino, status.st_mtime_ns, status.st_size


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_TOKEN_BYTES + 1)
    except OSError as error:
        raise SettingsInvalid(f"AGENT_EXEC_SERVICE_TOKEN_FILE cannot be read: {error}.") from None
    name = f"AGENT_EXEC_SERVICE_TOKEN_FILE ({path})"
    if len(content) > MAX_TOKEN_BYTES:
        raise SettingsInvalid(f"{name} is longer than {MAX_TOKEN_BYTES} bytes: it holds no token.")
    token = content.decode("utf-8", "replace").strip()  # in a file it ends with a line
    if not token:
        raise SettingsInvalid(f"{name} is empty.")
    return _checked(token, name)


def _checked(token: str, name: str) -> str:
    if not _SENDABLE.fullmatch(token):
        raise SettingsInvalid(f"{name} holds a space, a line's end or a letter that no header can carry.")
    return token
