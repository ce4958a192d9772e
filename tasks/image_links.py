"""Images that a text would have its reader's browser fetch: a way for an injected instruction to carry data out. Pure.

Owns what counts as one, in Markdown and HTML. Nothing is fetched here; who shows the text decides what to do about it.
"""

from __future__ import annotations

import re

#: More are not told.
MAX_HOSTS = 10

_HOST = r"""(?:[a-z][a-z0-9+.-]{0,20}:)?//(?P<%s>[^\s/?#<>()"'\\]{1,253})"""
#: None of these looks back: a megabyte of opening brackets costs no more than one of prose.
_MARKDOWN = re.compile(r"!\[[^\[\]\n]{0,500}\]\(\s{0,10}<?" + _HOST % "host", re.IGNORECASE)
_BY_REFERENCE = re.compile(r"!\[[^\[\]\n]{0,500}\](?!\()")
_DEFINITION = re.compile(r"^ {0,3}\[[^\[\]\n]{1,500}\]:\s{0,10}<?" + _HOST % "host", re.IGNORECASE | re.MULTILINE)
_HTML = re.compile(
    r"<(?:img|image|source|picture|video|audio|iframe|embed|object|link|input)\b[^<>]{0,2000}?"
    r"""\b(?:src|srcset|href|data|poster)\s{0,5}=\s{0,5}["']?\s{0,5}""" + _HOST % "host",
    re.IGNORECASE,
)


def image_hosts(text: str) -> list[str]:
    """Return the hosts, each once, that showing `text` as Markdown or HTML would fetch from."""
    patterns = [_MARKDOWN, _HTML, *([_DEFINITION] if _BY_REFERENCE.search(text) else [])]
    hosts = dict.fromkeys(found["host"] for pattern in patterns for found in pattern.finditer(text))
    return list(hosts)[:MAX_HOSTS]
