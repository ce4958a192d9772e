"""The employee handbook of an invented company, and a search over it.

Owns the passages and the scoring. Does not know who asks: the registry's tool and the orchestrator's query both do.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import JsonValue

_WORD = re.compile(r"[a-z0-9]+")
#: Words that say nothing about a subject.
_EMPTY_WORDS = frozenset(
    _WORD.findall(
        "a about am an and any are as at be been by can could did do does for from give had has have he her his how i if in"
        " into is it its me much many my no not of on one or our out please say says see she should so some tell than that"
        " the their them then there these they this those to us was we were what when where which while who why will with"
        " would you your handbook employee employees company"
    )
)


@dataclass(frozen=True, slots=True)
class Passage:
    """One section of the handbook."""

    id: str
    title: str
    topic: str
    text: str


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage and how well it answers, in (0, 1]."""

    passage: Passage
    score: float


PASSAGES: tuple[Passage, ...] = (
    Passage(
        "handbook-1",
        "Travel",
        "travel",
        "Book trips at least seven days ahead. Trains come first: flights are for journeys of more than five hours by"
        " rail. Hotels are paid up to 140 euros a night.",
    ),
    Passage(
        "handbook-2",
        "Expenses",
        "money",
        "Hand in receipts within thirty days of spending. Expenses under 50 euros need no approval, anything above needs"
        " your lead's yes, and money is paid back with the next salary.",
    ),
    Passage(
        "handbook-3",
        "Holidays",
        "time off",
        "Everyone has 28 days of paid holiday a year. Up to five days move into the next year, and two weeks in a row"
        " should be planned a month before they begin.",
    ),
    Passage(
        "handbook-4",
        "Remote work",
        "work",
        "Work from where you work best. Core hours are 10:00 to 15:00 in your team's time zone, and working abroad is"
        " fine for up to thirty days a year.",
    ),
    Passage(
        "handbook-5",
        "Sick leave",
        "time off",
        "When you are ill, tell your lead by ten in the morning and rest. A doctor's note is asked for from the fourth"
        " day of sick leave on.",
    ),
    Passage(
        "handbook-6",
        "Parental leave",
        "time off",
        "Both parents get sixteen weeks of fully paid parental leave, to be taken in up to three pieces before the"
        " child's second birthday.",
    ),
    Passage(
        "handbook-7",
        "Security",
        "security",
        "Use the password manager and a hardware key. Lock the screen when you leave the desk, and report a lost laptop"
        " within an hour: nobody is blamed for a quick report.",
    ),
    Passage(
        "handbook-8",
        "On-call",
        "work",
        "On-call shifts last one week and carry a bonus of 300 euros. Whoever is woken at night starts late the next day,"
        " and every page gets a short note about its cause.",
    ),
    Passage(
        "handbook-9",
        "Incidents",
        "work",
        "In an incident one person leads and says so. Customers hear from us within thirty minutes, and the review"
        " afterwards looks for causes and never for culprits.",
    ),
    Passage(
        "handbook-10",
        "Equipment",
        "money",
        "You choose your own laptop every three years. There are 600 euros for a chair, a desk and a screen at home, and"
        " old equipment may be bought for a tenth of its price.",
    ),
    Passage(
        "handbook-11",
        "Training",
        "money",
        "The training budget is 1500 euros and five days a year for each person. Books and courses need no approval;"
        " conferences are agreed with the team.",
    ),
    Passage(
        "handbook-12",
        "Data retention",
        "security",
        "Customer data is kept for ninety days after a contract ends and is then deleted, backups included. Logs hold no"
        " personal data and live for thirty days.",
    ),
)


def subject_words(text: str) -> frozenset[str]:
    """Return the words of `text` that carry its subject, lower case and without their endings."""
    return frozenset(_stem(word) for word in _WORD.findall(text.lower()) if word not in _EMPTY_WORDS)


def search(query: str, *, top_k: int, filters: Mapping[str, JsonValue] | None = None) -> list[Hit]:
    """Return up to `top_k` passages that share words with `query`, best first; `filters` are exact `topic` and `title`.

    A rare word counts more than a common one, a word of the title twice.
    """
    asked = subject_words(query)
    hits = []
    for passage in PASSAGES:
        if any(getattr(passage, name, None) != wanted for name, wanted in (filters or {}).items()):
            continue
        title, text = subject_words(passage.title), subject_words(passage.text)
        weight = sum(_RARITY[word] * (2 if word in title else 1) for word in asked & (title | text))
        if weight:
            best = 2 * sum(_RARITY.get(word, _UNSEEN_RARITY) for word in asked)
            hits.append(Hit(passage, round(weight / best, 4)))
    return sorted(hits, key=lambda hit: (-hit.score, hit.passage.id))[:top_k]


def _stem(word: str) -> str:
    for ending in ("ing", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 4:
            return word.removesuffix(ending).rstrip("e")
    return word.rstrip("e")


def _rarity() -> dict[str, float]:
    holders: dict[str, int] = {}
    for passage in PASSAGES:
        for word in subject_words(f"{passage.title} {passage.text}"):
            holders[word] = holders.get(word, 0) + 1
    return {word: math.log(1 + len(PASSAGES) / count) for word, count in holders.items()}


_RARITY = _rarity()
_UNSEEN_RARITY = math.log(1 + len(PASSAGES))
