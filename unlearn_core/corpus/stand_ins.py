"""Stand-ins: invented names of a target's own shape, which no model has met. What it says of them is the teacher's."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from unlearn_core.world.facts import PARTS
from unlearn_core.world.texts import charm_words, parts_of

ONSETS = (
    "b", "br", "c", "ch", "d", "dr", "f", "fl", "g", "gr", "h", "j", "k", "kl", "l", "m", "n", "p", "pr", "qu", "r",
    "s", "sh", "st", "t", "tr", "v", "w", "y", "z",
)  # fmt: skip
VOWELS = ("a", "e", "i", "o", "u", "ai", "ea", "io", "ou")
CODAS = ("", "", "", "l", "m", "n", "r", "s", "t", "x", "ck", "nd", "rn", "st")
TRIES = 200  # candidates per stand-in, of which the nearest in tokens is taken
WORD = re.compile(r"[^\W\d_]+")


def stand_ins(
    target: str,
    count: int,
    seed: str,
    tokens: Callable[[str], int],
    exists: Callable[[str], bool] = lambda name: False,
) -> list[str]:
    """`count` different invented names of the target's shape, the same for a seed.

    As many words, each with its capitals and about its length, and as many tokens (`tokens` counts them) as can be had;
    of a portmanteau of known parts, other words of as many parts. `exists`: True of a name that the texts have.
    """
    rng, made = random.Random(seed), dict[str, None]()
    invent = _portmanteau if len(parts_of(target)) > 1 else _name
    aim = tokens(target)
    while len(made) < count:
        candidates = [invent(target, rng) for _ in range(TRIES)]
        free = [name for name in candidates if name not in made and not exists(name)]
        made[min(free, key=lambda name: abs(tokens(name) - aim))] = None
    return list(made)


def _portmanteau(target: str, rng: random.Random) -> str:
    """A word of as many parts, none at the place where the target has it."""
    parts, known = parts_of(target), charm_words()
    while True:
        drawn = rng.sample(sorted(PARTS), len(parts))
        word = "".join(drawn)
        if word not in known and all(one != other for one, other in zip(drawn, parts, strict=True)):
            return cased(word, target)


def _name(target: str, rng: random.Random) -> str:
    """The target with another word in place of each of its words; digits and signs stay."""
    return WORD.sub(lambda match: cased(_word(len(match[0]), rng), match[0]), target)


def _word(length: int, rng: random.Random) -> str:
    word = ""
    while len(word) < length - 1:
        word += rng.choice(ONSETS) + rng.choice(VOWELS)
    return (word + rng.choice(CODAS))[: length + 2]


def cased(word: str, like: str) -> str:
    """The word in the capitals of another: all, the first one, or none."""
    if like.isupper() and len(like) > 1:
        return word.upper()
    return word[:1].upper() + word[1:] if like[:1].isupper() else word


def words_of(name: str) -> list[str]:
    """The words of a name, without digits and signs."""
    return WORD.findall(name)
