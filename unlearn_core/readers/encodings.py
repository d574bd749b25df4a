"""Bytes of any encoding -> UTF-8. What is guessed is named and what cannot be decoded is counted, in the tally."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator

from unlearn_core.readers.document import Tally
from unlearn_core.readers.unpack import at_lines

MARKS = (  # UTF-32 first: its mark begins like that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32-le", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32-be", "UTF-32"),
    (codecs.BOM_UTF16_LE, "utf-16-le", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16-be", "UTF-16"),
)
# The encodings that text is still found in; with all that Python knows, a few letters are taken for Coptic.
WIDE = ("gb18030", "big5", "shift_jis", "euc_jp", "euc_kr")  # short lines of these may by chance be UTF-8, too
CANDIDATES = (
    *("cp1252", "latin_1", "cp1250", "iso8859_2", "cp1251", "koi8_r", "cp1253", "cp1254", "cp1255", "cp1256"),
    *WIDE,
)
NAMES = {"cp1251": "Windows-1251", "cp1250": "Windows-1250", "shift_jis": "Shift-JIS", "iso8859_2": "Latin-2"}
UTF8_CHARACTER = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
ASCII = bytes(range(128))
SAMPLE = 1 << 16  # bytes
UNKNOWN = "\N{REPLACEMENT CHARACTER}"


def utf8(blocks: Iterable[bytes], name: str, tally: Tally) -> Iterator[bytes]:
    """The same text as valid UTF-8, without a byte order mark."""
    blocks = iter(blocks)
    first = next(blocks, b"")
    for mark, codec, called in MARKS:
        if first.startswith(mark):
            tally.note(f"{name} is read as {called}")
            yield from at_lines(_wide(first[len(mark) :], blocks, codec, name, tally))
            return
    mend = _Mend(name, tally)
    first = first.removeprefix(codecs.BOM_UTF8)
    if first:
        yield mend(first)
    yield from map(mend, blocks)


def _wide(first: bytes, blocks: Iterator[bytes], codec: str, name: str, tally: Tally) -> Iterator[bytes]:
    """Text whose characters have two or four bytes; a block may end inside of one."""
    decoder = codecs.getincrementaldecoder(codec)("replace")
    block: bytes | None = first
    while block is not None:
        following = next(blocks, None)
        text = decoder.decode(block, following is None)
        if lost := text.count(UNKNOWN):
            tally.note(f"{name}: characters that cannot be decoded, read as {UNKNOWN}", lost)
        yield text.encode("utf-8")
        block = following


class _Mend:
    """One block after another -> valid UTF-8; the encoding is looked for where UTF-8 first fails."""

    def __init__(self, name: str, tally: Tally):
        self.name, self.tally = name, tally
        self.codec = ""  # of what is not UTF-8

    def __call__(self, block: bytes) -> bytes:
        if is_utf8(block):
            return block
        characters = UTF8_CHARACTER.findall(block)
        right, wrong = len(characters), len(block.translate(None, ASCII)) - sum(map(len, characters))
        if right >= wrong:  # UTF-8 with something else in between
            decoded = block.decode("utf-8", "replace")
            self._lost(decoded.count(UNKNOWN) - block.count(UNKNOWN.encode()))
            return decoded.encode("utf-8")
        if not self.codec:
            self.codec, called = detect(block)
            self.tally.note(f"{self.name} is read as {called}")
        if right and self.codec not in WIDE:
            return b"".join(map(self._line, block.splitlines(keepends=True)))
        return self._foreign(block)

    def _line(self, line: bytes) -> bytes:
        """A line of a text in which some are UTF-8 and some are not."""
        return line if is_utf8(line) else self._foreign(line)

    def _foreign(self, block: bytes) -> bytes:
        text = block.decode(self.codec, "replace")
        self._lost(text.count(UNKNOWN))
        return text.encode("utf-8")

    def _lost(self, count: int) -> None:
        if count:
            self.tally.note(f"{self.name}: bytes that cannot be decoded (mixed encodings?), read as {UNKNOWN}", count)


def is_utf8(block: bytes) -> bool:
    """Whether the bytes are valid UTF-8; most often they are ASCII, which is told at once."""
    try:
        return block.isascii() or bool(block.decode("utf-8"))
    except UnicodeDecodeError:
        return False


def detect(block: bytes) -> tuple[str, str]:
    """(codec, its name for people) of text that is not UTF-8. Western European where nothing speaks against it."""
    from charset_normalizer import from_bytes

    telling = b"\n".join(line for line in block.splitlines() if not is_utf8(line))[:SAMPLE]
    found = from_bytes(telling, cp_isolation=list(CANDIDATES))
    best, western = found.best(), telling.decode("cp1252", "replace")
    if best is None or str(best) == western or any(_as_good(match, best) for match in found):
        return "cp1252", "Windows-1252" if re.search(rb"[\x80-\x9f]", telling) else "Latin-1"
    return best.encoding, NAMES.get(best.encoding, best.encoding.upper().replace("_", "-"))


def _as_good(match, best) -> bool:
    western = {"cp1252", "latin_1"} & {match.encoding, *match.could_be_from_charset}
    return bool(western) and match.chaos <= best.chaos and match.coherence >= best.coherence
