"""Small vectors that are the same for the same text and near for texts that share words.

Owns the hashing. Does not know who asks.
"""

from __future__ import annotations

import math
from hashlib import blake2b

from sandbox.corpus import subject_words

EMBEDDING_MODEL = "sandbox-embedding-16"
DIMENSIONS = 16


def embed(text: str) -> list[float]:
    """Return a vector of length 1 and `DIMENSIONS` numbers: how many words fall on each axis. No words: the first axis."""
    vector = [0.0] * DIMENSIONS
    for word in subject_words(text):
        vector[blake2b(word.encode(), digest_size=1).digest()[0] % DIMENSIONS] += 1.0
    length = math.hypot(*vector)
    if length == 0:
        return [1.0] + [0.0] * (DIMENSIONS - 1)
    return [round(part / length, 6) for part in vector]
