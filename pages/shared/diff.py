"""The difference of two texts, word by word; characters that cannot be seen are made visible."""

from __future__ import annotations

import re
import unicodedata
from difflib import SequenceMatcher
from functools import lru_cache
from typing import NamedTuple

MOST_CELLS = 250_000  # words x words that are compared exactly; beyond that only the common ends are found
LONE_WORDS = 1


class Segment(NamedTuple):
    """A stretch of text and what became of it: `same`, `ins` (new) or `del` (gone)."""

    kind: str
    text: str


def visible(text: str) -> str:
    """The text with what cannot be seen made visible: control characters, and white space at either end."""
    body = text.strip(" \t\n\r")
    start = text.index(body) if body else len(text)
    shown = "".join(map(_picture, body))
    return _edge(text[:start]) + shown + _edge(text[start + len(body) :])


def inner(text: str) -> str:
    """The same for a stretch out of a text: white space is as it is, at its ends too."""
    return "".join(map(_picture, text))


def _edge(space: str) -> str:
    return "".join({" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍"}[character] for character in space)


def _picture(character: str) -> str:
    if character in "\n\t" or character.isprintable():
        return character
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    if 0xD800 <= code <= 0xDFFF:
        return "\ufffd"
    # Spaces of other widths are harmless; what turns or joins text (bidi marks, zero width) is named.
    return character if unicodedata.category(character) == "Zs" else f"⟨U+{code:04X}⟩"


def words(text: str) -> list[str]:
    """The words, spaces and punctuation marks of a text; joined they are the text again."""
    return re.findall(r"\w+|\s+|[^\w\s]", text)


@lru_cache(maxsize=2048)
def segments(before: str, now: str) -> tuple[Segment, ...]:
    """How `before` became `now`: joined without `ins` it is `before`, joined without `del` it is `now`."""
    old, new = words(before), words(now)
    head = _common(old, new)
    tail = _common(old[head:][::-1], new[head:][::-1])
    old_middle, new_middle = old[head : len(old) - tail], new[head : len(new) - tail]
    pairs = [("same", old[:head]), *_middle(old_middle, new_middle), ("same", old[len(old) - tail :])]
    return tuple(_joined(pairs))


def _common(one: list[str], other: list[str]) -> int:
    pairs = zip(one, other, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _middle(old: list[str], new: list[str]) -> list[tuple[str, list[str]]]:
    if len(old) * len(new) > MOST_CELLS:
        return [("del", old), ("ins", new)]
    pairs: list[tuple[str, list[str]]] = []
    changes = SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    for place, (tag, a, b, c, d) in enumerate(changes):
        between = 0 < place < len(changes) - 1
        # A lone word or mark between two changes says nothing: it changes with them, so that marks are whole phrases.
        if tag == "equal" and not (between and len("".join(old[a:b]).split()) <= LONE_WORDS):
            pairs.append(("same", old[a:b]))
        else:
            pairs += [("del", old[a:b]), ("ins", new[c:d])]
    return pairs


def _joined(pairs: list[tuple[str, list[str]]]) -> list[Segment]:
    """Neighbours of one kind made one; between two unchanged stretches what is gone comes before what is new."""
    joined: list[Segment] = []
    gone = new = ""

    def flush() -> None:
        nonlocal gone, new
        joined.extend(Segment(kind, text) for kind, text in (("del", gone), ("ins", new)) if text)
        gone = new = ""

    for kind, pieces in pairs:
        text = "".join(pieces)
        if kind == "del":
            gone += text
        elif kind == "ins":
            new += text
        elif text:
            flush()
            if joined and joined[-1].kind == "same":
                joined[-1] = Segment("same", joined[-1].text + text)
            else:
                joined.append(Segment("same", text))
    flush()
    return joined


def side(before: str, now: str, kind: str) -> list[Segment]:
    """One side of the difference, ready to be shown: `del` gives the text before, `ins` the text now."""
    return [segment for segment in segments(visible(before), visible(now)) if segment.kind in ("same", kind)]


def folded(segments: list[Segment], most_words: int) -> tuple[list[Segment], int]:
    """The first `most_words` words, and how many there are beyond them."""
    shown: list[Segment] = []
    left = most_words
    total = sum(len(segment.text.split()) for segment in segments)
    for segment in segments:
        count = len(segment.text.split())
        if count > left:
            cut = re.match(rf"(?:\s*\S+){{{left}}}", segment.text) if left else None
            if cut:
                shown.append(Segment(segment.kind, cut.group()))
            return shown, total - most_words
        shown.append(segment)
        left -= count
    return shown, 0
