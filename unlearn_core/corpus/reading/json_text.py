"""JSON as it is written in practice, made ready for a strict parser: NaN and Infinity, and no unbounded nesting."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import numpy as np

DEEPEST = 500  # lists and objects inside of one another; parsers need memory for each
NOT_NUMBERS = re.compile(rb"-?Infinity|NaN")  # as Python's json writes them, which no JSON has
WORD_AT_THE_END = re.compile(rb"[-A-Za-z]{1,9}\Z")
ESCAPED = re.compile(rb"\\.", re.DOTALL)
QUOTE, OPEN, CLOSE = ord('"'), ord("{"), ord("}")  # with bit 5 set, [ and ] are { and }
BIT_5 = 0x20


class TooDeep(Exception):
    """Lists and objects are nested deeper than is read."""


def strict(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The same JSON with null in place of NaN and Infinity.

    Raises TooDeep where more than DEEPEST lists and objects are open; what stands before is given first.
    """
    depth, inside, rest = 0, False, b""  # inside: of a string
    for block in blocks:
        block, rest = _at_a_boundary(rest + block)
        plain = ESCAPED.sub(b"__", block) if b"\\" in block else block  # of the same length
        signs = np.frombuffer(plain, np.uint8)
        in_string = np.bitwise_xor.accumulate(signs == QUOTE) ^ inside
        structure = np.flatnonzero(((signs | BIT_5 == OPEN) | (signs | BIT_5 == CLOSE)) & ~in_string)
        depths = depth + np.cumsum(np.where(signs[structure] | BIT_5 == OPEN, 1, -1))
        too_deep = np.flatnonzero(depths > DEEPEST)
        if len(too_deep):
            yield _without_nan(block[: structure[too_deep[0]]], in_string)
            raise TooDeep
        if len(depths):
            depth = max(0, int(depths[-1]))
        if len(in_string):
            inside = bool(in_string[-1])
        yield _without_nan(block, in_string)
    if rest:
        yield rest


def _at_a_boundary(block: bytes) -> tuple[bytes, bytes]:
    """The block, and what of its end may belong to the next: a backslash whose sign follows, a part of a word."""
    slashes = len(block) - len(block.rstrip(b"\\"))
    if slashes % 2:
        return block[:-1], block[-1:]
    word = WORD_AT_THE_END.search(block, max(0, len(block) - 9))
    return (block[: word.start()], block[word.start() :]) if word else (block, b"")


def _without_nan(block: bytes, in_string: np.ndarray) -> bytes:
    if b"NaN" not in block and b"Infinity" not in block:
        return block

    def replaced(word: re.Match[bytes]) -> bytes:
        return word[0] if in_string[word.start()] else b"null"

    return NOT_NUMBERS.sub(replaced, block)
