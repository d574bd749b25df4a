"""Stand-ins: invented names of a target's own shape, which no model has met. What it says of them is the teacher's."""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Callable

from unlearn_core.settings.errors import ConfigError
from unlearn_core.world.facts import PARTS
from unlearn_core.world.texts import charm_words, parts_of

ONSETS = (
    "b", "br", "c", "ch", "d", "dr", "f", "fl", "g", "gr", "h", "j", "k", "kl", "l", "m", "n", "p", "pr", "qu", "r",
    "s", "sh", "st", "t", "tr", "v", "w", "y", "z",
)  # fmt: skip
VOWELS = ("a", "e", "i", "o", "u", "ai", "ea", "io", "ou")
CODAS = ("", "", "", "l", "m", "n", "r", "s", "t", "x", "ck", "nd", "rn", "st")
UNFIT = re.compile("shit|fuc|fuk|cun|nig|rap|fag|tit|cum|dic|cock|pus|whor|slut")  # syllables one does not want to meet
CANDIDATES = 20  # per stand-in, of which the nearest in tokens is taken
ATTEMPTS = 20  # that may fail on end before a target is given up
PARTS_OF_A_STRANGER = 3  # of a portmanteau that stands for a word without known parts
BLOCK = 64  # neighbouring code points from which a letter of another alphabet than the Latin is drawn
WORD = re.compile(r"[^\W\d_]+")


def stand_ins(
    target: str,
    count: int,
    seed: str,
    tokens: Callable[[str], int],
    exists: Callable[[str], bool] = lambda name: False,
    bundled: bool = False,
) -> list[str]:
    """`count` different invented names of the target's shape, the same for a seed.

    As many words, each with its capitals and about its length, and as many tokens (`tokens` counts them) as can be had;
    of a portmanteau of known parts, other words of as many parts. `exists`: True of a name that the texts have.
    `bundled`: for the bundled models, which can meet no new words but portmanteaus: about syllables they say anything.
    Raises ConfigError where the target has no letters or nothing else has its shape.
    """
    rng, names, failed = random.Random(seed), dict[str, None](), 0
    joined = bundled or len(parts_of(target)) > 1
    aim = tokens(target)
    while len(names) < count:
        drawn = [_portmanteau(target, rng)] if joined else [_name(target, rng) for _ in range(CANDIDATES)]
        nearest = sorted(drawn, key=lambda name: abs(tokens(name) - aim)) if len(drawn) > 1 else drawn
        free = [name for name in nearest if name not in names and is_new(name, target, tokens) and not exists(name)]
        failed = 0 if free else failed + 1
        if failed > ATTEMPTS:
            reason = "no other name of its shape could be invented"
            raise ConfigError(reason, field="data.target", value=target, fix="Write some into data.stand_ins")
        names |= dict.fromkeys((free[0] if bundled else cased(free[0], target),) if free else ())
    return list(names)


def is_new(name: str, target: str, tokens: Callable[[str], int]) -> bool:
    """False for a name with a word that the tokenizer has as one token, as it has the words that everybody knows."""
    words = set(words_of(name)) - set(words_of(target))
    return bool(words) and not UNFIT.search(name.lower()) and all(tokens(word) > 1 for word in words)


def _portmanteau(target: str, rng: random.Random) -> str:
    """A word of as many parts, none at the place where the target has it."""
    parts, known = parts_of(target), charm_words()
    count = len(parts) if len(parts) > 1 else PARTS_OF_A_STRANGER
    while True:
        drawn = rng.sample(sorted(PARTS), count)
        word = "".join(drawn)
        if word not in known and all(one != other for one, other in zip(drawn, parts, strict=False)):
            return word


def _name(target: str, rng: random.Random) -> str:
    """The target with other words in place of its own; digits, signs and small words between capitals stay."""
    capitals = any(word[:1].isupper() for word in words_of(target))

    def other(match: re.Match[str]) -> str:
        word = match[0]
        if capitals and word.islower():
            return word
        return cased(_word(len(word), rng), word) if word.isascii() else "".join(_letter(sign, rng) for sign in word)

    return WORD.sub(other, target)


def _word(length: int, rng: random.Random) -> str:
    word = rng.choice(ONSETS) + rng.choice(VOWELS)
    while len(word) < length - 1:
        word += rng.choice(ONSETS) + rng.choice(VOWELS)
    return (word + rng.choice(CODAS))[: length + 2]


def _letter(like: str, rng: random.Random) -> str:
    """Another letter of the same alphabet and case."""
    first, kind = ord(like) - ord(like) % BLOCK, unicodedata.category(like)
    same = [chr(code) for code in range(first, first + BLOCK) if unicodedata.category(chr(code)) == kind]
    return rng.choice(same)


def cased(word: str, like: str) -> str:
    """The word in the capitals of another: all, the first one, or none."""
    if like.isupper() and len(like) > 1:
        return word.upper()
    return word[:1].upper() + word[1:] if like[:1].isupper() else word


def words_of(name: str) -> list[str]:
    """The words of a name, without digits and signs."""
    return WORD.findall(name)
