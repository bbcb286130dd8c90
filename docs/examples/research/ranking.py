"""Which sentences answer a question: those with its rarer words. Plain counting, so that it runs everywhere.

A model would do better, and fits in the same place: see llm_agent.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

STOP_WORDS = frozenset({"and", "are", "does", "each", "for", "has", "how", "other", "that", "the", "they", "which"})
MAX_SENTENCES = 3


def words_of(text: str) -> set[str]:
    """Its words, without endings and without those that are in every sentence."""
    words = re.findall(r"[a-z]{3,}", text.lower())
    return {word.removesuffix("s") for word in words if word not in STOP_WORDS}


def relevance(text: str, question: str) -> int:
    """How many words of the question it has."""
    return len(words_of(text) & words_of(question))


def summary_of(notes: Sequence[tuple[str, str]], question: str) -> list[tuple[str, str]]:
    """The best few of some (sentence, source) pairs, best first. A word that few notes have counts for more."""
    asked = words_of(question)
    counts = Counter(word for text, _ in notes for word in words_of(text))

    def worth(note: tuple[str, str]) -> float:
        return sum(math.log(1 + len(notes) / counts[word]) for word in words_of(note[0]) & asked)

    return sorted(notes, key=lambda note: (-worth(note), note))[:MAX_SENTENCES]
