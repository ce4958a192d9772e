"""Logging, the same in every process: one line a record, to standard error, with no secret in it.

Owns the form of a line and what is struck out of it. Does not know who logs what: processes call `configure` once;
modules take a logger from structlog or from the standard library, and both come out here. Needs the extra `service`.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable, Iterable
from typing import IO

import structlog
from pydantic import SecretStr
from structlog.typing import EventDict, Processor, WrappedLogger

from agent_exec.service_token import ServiceToken
from agent_exec.settings import Settings

#: Loggers that would write prompts, headers or every request below this level.
QUIET = {
    "websockets": logging.INFO,
    "openai": logging.INFO,
    "groq": logging.INFO,
    "httpcore": logging.INFO,
    "httpx": logging.WARNING,
    "httpx2": logging.WARNING,
    "mcp": logging.CRITICAL,  # it logs session ids and what it could not read; tasks/neighbours/mcp.py tells of both faults
}
STRUCK_OUT = "[redacted]"
#: A shorter secret is no secret, and would strike out words.
MIN_SECRET_CHARS = 8

#: What looks like a credential, with what may be kept in front of it: the scheme of a header, the id of an API key.
_CREDENTIAL = re.compile(
    r"(?P<keep>\b(?i:bearer)\s+)[\w.~+/=-]{8,}"
    r"|(?P<key_id>\baek_[a-z0-9]{8,32}_)[\w-]{8,}"
    r"|(?P<user>://[^/\s:@]*:)[^@\s/]+(?=@)"
    r"|\bg?sk[-_][\w-]{8,}"
    r"|\bwhsec_[\w+/=-]{8,}"
    r"|\beyJ[\w-]{5,}\.[\w-]+\.[\w-]*"
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"
    r"|\b(?:gh[opsur]_|github_pat_|xox[abeprs]-)[\w-]{10,}"
    # To its end; one that was cut off, as far as it goes. In a line of JSON its line ends are escaped.
    r"|-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----(?:[\w+/=:,.\s\\]|-(?!----))*(?:-----END [A-Z ]{0,40}PRIVATE KEY-----)?"
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def configure(settings: Settings, process: str) -> None:
    """Send every record of this process, structlog's and the standard library's, through one handler.

    Whatever handlers other libraries have put on their own loggers go: their records come out here too.
    """
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _named(process),
    ]
    rendering: list[Processor]
    if settings.log_format == "json":
        rendering = [
            structlog.processors.EventRenamer("message"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(default=repr),
        ]
    else:
        # Not the renderer's own choice of traceback: that shows local variables, and prompts among them.
        plain = structlog.dev.plain_traceback
        console = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)
        rendering = [_one_line, console]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
    )
    _only_handler(_Redacting(formatter, secrets_of(settings), ServiceToken(settings)), settings.log_level)
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def redact(text: str, *, secrets: Iterable[str] = ()) -> str:
    """Return `text` without anything that looks like a credential, and without the `secrets` that are known."""
    known = without(secrets)(text)
    return _CREDENTIAL.sub(lambda found: (found["keep"] or found["key_id"] or found["user"] or "") + STRUCK_OUT, known)


def without(secrets: Iterable[str]) -> Callable[[str], str]:
    """Return what strikes these secrets alone out of a text."""

    def strike(text: str) -> str:
        for secret in secrets:
            text = text.replace(secret, STRUCK_OUT)
        return text

    return strike


def secrets_of(settings: Settings) -> list[str]:
    """Return every secret that the settings hold, as it would stand in a line, longest first."""
    held = [getattr(settings, name) for name in type(settings).model_fields]
    held += [provider.api_key for provider in settings.providers.values()]
    held += [server.token for server in settings.mcp_servers.values()]
    plain = [value.get_secret_value() for value in held if isinstance(value, SecretStr)]
    return _spelt([*plain, *ServiceToken(settings).secrets()])


def _spelt(secrets: Iterable[str]) -> list[str]:
    """Return secrets as they would stand in a line, longest first."""
    forms = {form for one in secrets if len(one) >= MIN_SECRET_CHARS for form in (one, json.dumps(one)[1:-1])}
    return sorted(forms, key=len, reverse=True)


class _StandardError(logging.StreamHandler[IO[str]]):
    """Standard error as it is at the moment, which a test or a daemon may have replaced since."""

    @property
    def stream(self) -> IO[str]:
        return sys.stderr

    @stream.setter
    def stream(self, stream: IO[str]) -> None:
        pass  # the base class would keep the one of its birth

    #: Lines that could not be written: the disk is full, or nobody reads.
    lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line; the first that can be written after some that could not says how many they were."""
        lost = self.lost
        if lost:
            words = "%d log lines before this one could not be written"
            super().emit(logging.LogRecord(__name__, logging.WARNING, __file__, 0, words, (lost,), None))
            self.lost = 0 if self.lost == lost else lost
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Count a line that could not be written; a traceback could not be written either."""
        if isinstance(sys.exc_info()[1], OSError):
            self.lost += 1
        else:
            super().handleError(record)


class _Redacting(logging.Formatter):
    """Strikes secrets out of the finished line, so that message, arguments and traceback are all covered."""

    def __init__(self, inner: logging.Formatter, secrets: list[str], token: ServiceToken) -> None:
        super().__init__()
        self._inner = inner
        self._secrets = secrets
        self._token = token

    def format(self, record: logging.LogRecord) -> str:
        return redact(self._inner.format(record), secrets=[*_spelt(self._token.secrets()), *self._secrets])


def _only_handler(formatter: logging.Formatter, level: str) -> None:
    handler = _StandardError()
    handler.setFormatter(formatter)
    root = logging.getLogger()
    for earlier in [one for one in root.handlers if isinstance(one, _StandardError)]:
        root.removeHandler(earlier)
    root.addHandler(handler)
    root.setLevel(level)
    for logger in [one for one in root.manager.loggerDict.values() if isinstance(one, logging.Logger)]:
        if any(not isinstance(one, logging.NullHandler) for one in logger.handlers):
            logger.handlers.clear()
            logger.propagate = True
    for name, least in QUIET.items():
        logging.getLogger(name).setLevel(max(least, root.level))
    logging.captureWarnings(True)


def _named(process: str) -> Processor:
    def name(_: WrappedLogger, __: str, record: EventDict) -> EventDict:
        record["process"] = process
        return record

    return name


def _one_line(_: WrappedLogger, __: str, record: EventDict) -> EventDict:
    """Escape what would start a line of its own, or speak to the terminal; a traceback keeps its lines."""
    for name, value in record.items():
        if isinstance(value, str):
            record[name] = _CONTROL.sub(lambda found: _escaped(found[0]), value)
    return record


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
