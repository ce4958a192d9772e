"""What ties a child, an execution that another one has asked for, to its parent: its id, and the word of its end. Pure.

Owns these names, and the text in which a parent is kept. Does not know why an execution asks for another.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Self

#: Words of other kinds, such as a person's approval, are no ends of children.
_WORD = "child:"


@dataclass(frozen=True, slots=True)
class Parent:
    """Who asked for an execution: which one, the name of the word that it is sent at the end, and the agents that stand
    above, the outermost first and its own last.
    """

    execution_id: str
    word: str
    agents: tuple[str, ...] = ()

    @classmethod
    def read(cls, stored: str) -> Self:
        """Return what `text` wrote."""
        execution_id, word, *agents = stored.split(" ")
        return cls(execution_id, word, tuple(agents))

    @property
    def text(self) -> str:
        """The parent as it is kept in the record of its child."""
        return " ".join((self.execution_id, self.word, *self.agents))


def child_id(parent_id: str, step: str) -> str:
    """Return the id of the child that a step asks for: the same for all its attempts."""
    return str(uuid.uuid5(uuid.UUID(parent_id), step))


def word_for(execution_id: str) -> str:
    """Return the name of the word that tells of this child's end."""
    return f"{_WORD}{execution_id}"


def child_of(word: str) -> str | None:
    """Return the child for whose end a step waits; None where it is no child that is awaited."""
    return word.removeprefix(_WORD) if word.startswith(_WORD) else None
