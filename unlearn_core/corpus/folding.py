"""Texts in plain signs: typographic ones, invisible ones and letters with a longer case folding, with the way back."""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass
from typing import NamedTuple

# Unicode's Default_Ignorable_Code_Point (soft hyphen, zero-width signs, direction and variation marks) and the Arabic
# tatweel, which only lengthens a letter.
INVISIBLE = (
    "\u00ad\u034f\u061c\u0640\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
BREAKS = "\u200b\u200c"  # invisible too, but between two words as often as inside one
DOT = "\u0307"  # behind an i: what lower-casing İ leaves
# A word that goes on in the next line.
DIVIDED = r"[-\u2010\u00ad](?<=[^\W\d_].)(?:\r\n?|\n)[^\S\r\n]*(?=[^\W\d_])"
# In UTF-8, a pattern for each hyphen: alternatives are searched for ten times more slowly.
DIVIDED_BYTES = [re.compile(sign.encode() + rb"(?:\r\n?|\n)[ \t]*") for sign in ("-", "\u2010", "\u00ad")]
TYPED = {
    "'": "‘’‚‛ʹʻʼʽˈ`´′‵＇\u1fef\ua78c",
    '"': "“”„‟″«»＂",
    "-": "‐‑‒–—―⁃−﹘﹣－",
    " ": "\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000",
    ";": "\u037e",
}
LIGATURES = "ﬀﬁﬂﬃﬄﬅﬆﬓﬔﬕﬖﬗ"
ONE_LETTER = {"İ": "i", "ı": "i", "ſ": "s", "\u212a": "k"}  # that count as ASCII where case does not matter


def _longer() -> dict[str, str]:
    """The letters whose case folding has several: ß -> ss (Unicode's CaseFolding.txt, status F)."""
    every = (chr(code) for block in (range(0x80, 0x2000), range(0xFB00, 0xFB18)) for code in block)
    return {letter: folded for letter in every if len(folded := letter.casefold()) > 1}


PLAIN = {sign: plain for plain, signs in TYPED.items() for sign in signs} | {s: s.casefold() for s in LIGATURES}
CASELESS = {
    letter: "".join(PLAIN.get(part, part) for part in folded) for letter, folded in (_longer() | ONE_LETTER).items()
}


class Change(NamedTuple):
    """Characters [start, end) of a text that are [at, until) of the folded one, which has more or fewer."""

    start: int
    end: int
    at: int
    until: int


@dataclass(frozen=True)
class Folded:
    """A folded text, and where in the text as it was its characters stand."""

    text: str
    changes: tuple[Change, ...] = ()

    def span(self, start: int, end: int) -> tuple[int, int]:
        """The characters [start, end) of the folded text in the text as it was; `end` is beyond `start`."""
        return self._place(start)[0], self._place(end - 1)[1]

    def _place(self, at: int) -> tuple[int, int]:
        """(start, end) in the text as it was of the character at `at`."""
        index = bisect_right(self.changes, at, key=lambda change: change.at) - 1
        if index < 0:
            return at, at + 1
        change = self.changes[index]
        if at < change.until:
            return change.start, change.end
        place = change.end + at - change.until
        return place, place + 1


class Folding:
    """Folds texts. `ignore_case`: also letters whose case folding is longer than they are."""

    def __init__(self, ignore_case: bool) -> None:
        self.table = PLAIN | CASELESS if ignore_case else PLAIN
        self._dotted = "iIİı" if ignore_case else ""
        signs = "".join(self.table) + (DOT if ignore_case else "")
        self._signs = re.compile(f"[{INVISIBLE}{re.escape(signs)}]")
        self._signs_or_divided = re.compile(f"{DIVIDED}|{self._signs.pattern}")

    def fold(self, text: str, between: str = "", undivided: bool = False) -> Folded:
        """The text in plain signs.

        `between` stands in place of an invisible sign that may part two words; `undivided`: words that a hyphen
        divides at the end of a line are whole.
        """
        if text.isascii() and not undivided:
            return Folded(text)
        pieces, changes, end, length = [], [], 0, 0
        for match in (self._signs_or_divided if undivided else self._signs).finditer(text):
            start, sign = match.start(), match.group()
            if sign == DOT and text[start - 1 : start] not in [*self._dotted]:
                continue
            plain = between if sign in BREAKS else self.table.get(sign, "")
            pieces += [text[end:start], plain]
            length += start - end
            if len(plain) != len(sign):
                changes.append(Change(start, match.end(), length, length + len(plain)))
            length, end = length + len(plain), match.end()
        return Folded("".join([*pieces, text[end:]]), tuple(changes))


class BytesFolding:
    """Folds UTF-8 for the search of one ASCII literal: only what can become a sign of it, and all that is invisible."""

    def __init__(self, literals: str) -> None:
        wanted = set(literals.lower())
        table = PLAIN | CASELESS
        self._replaced = [(s.encode(), p.encode()) for s, p in table.items() if not wanted.isdisjoint(p.lower())]
        invisible = _alternatives(INVISIBLE + (DOT if "i" in wanted else ""))
        self._invisible = re.compile(invisible)
        self._varied = re.compile(b"|".join([invisible, *(re.escape(sign) for sign, _ in self._replaced)]))

    def fold(self, raw: bytes) -> bytes | None:
        """The bytes folded; None where there is nothing to fold."""
        if raw.isascii() or not self._varied.search(raw.translate(None, ASCII)):
            return None
        for sign, plain in self._replaced:
            raw = raw.replace(sign, plain)
        return self._invisible.sub(b"", raw)


def undivided(raw: bytes) -> bytes:
    """UTF-8 in which words that a hyphen divides at the end of a line are whole."""
    for pattern in DIVIDED_BYTES[: 1 if raw.isascii() else None]:
        raw = pattern.sub(b"", raw)
    return raw


ASCII = bytes(range(128))


def _alternatives(ranges: str) -> bytes:
    """A pattern on UTF-8 for the characters of a character class, which may have ranges."""
    by_lead: dict[bytes, set[int]] = {}
    for first, last in re.findall(r"(.)(?:-(.))?", ranges, re.DOTALL):
        for code in range(ord(first), ord(last or first) + 1):
            encoded = chr(code).encode()
            by_lead.setdefault(encoded[:-1], set()).add(encoded[-1])
    parts = []
    for lead, ends in by_lead.items():
        among = b"".join(b"\\x%02x" % end for end in sorted(ends))
        parts.append(re.escape(lead) + b"[" + among + b"]")
    return b"|".join(parts)
