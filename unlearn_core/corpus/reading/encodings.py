"""Bytes of any encoding -> UTF-8, lines ended by a line feed. The report says what was guessed or left out."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from unlearn_core.corpus.reading.document import ReadReport
from unlearn_core.corpus.reading.unpack import at_lines

if TYPE_CHECKING:
    from charset_normalizer import CharsetMatch

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
LONE_RETURN = re.compile(rb"\r(?!\n)")


def utf8(blocks: Iterable[bytes], name: str, report: ReadReport) -> Iterator[bytes]:
    """The same text as valid UTF-8, without a byte order mark or NUL bytes, lines ended by line feeds."""
    waiting = b""  # a block, until it is known what follows its end
    for block in _decoded_blocks(blocks, name, report):
        if b"\0" in block:
            report.note(f"{name}: NUL bytes, left out", block.count(b"\0"))
            block = block.replace(b"\0", b"")
        if waiting and block:
            yield _with_line_feeds(waiting, block[:1])
        waiting = block or waiting
    if waiting:
        yield _with_line_feeds(waiting, b"")


def _with_line_feeds(block: bytes, following: bytes) -> bytes:
    """A block whose lines end in a line feed, where they ended in a carriage return alone."""
    lone = block.count(b"\r") - block.count(b"\r\n")
    if not lone or (lone == 1 and block.endswith(b"\r") and following == b"\n"):
        return block
    last = block[-1:] if following == b"\n" and block.endswith(b"\r") else b""
    return LONE_RETURN.sub(b"\n", block.removesuffix(last)) + last


def _decoded_blocks(blocks: Iterable[bytes], name: str, report: ReadReport) -> Iterator[bytes]:
    blocks = iter(blocks)
    first = next(blocks, b"")
    for mark, codec, called in MARKS:
        if first.startswith(mark):
            report.note(f"{name} is read as {called}")
            yield from at_lines(_wide(first[len(mark) :], blocks, codec, name, report))
            return
    mend = _Mend(name, report)
    first = first.removeprefix(codecs.BOM_UTF8)
    if first:
        yield mend(first)
    yield from map(mend, blocks)


def _wide(first: bytes, blocks: Iterator[bytes], codec: str, name: str, report: ReadReport) -> Iterator[bytes]:
    """Text whose characters have two or four bytes; a block may end inside of one."""
    decoder = codecs.getincrementaldecoder(codec)("replace")
    block: bytes | None = first
    while block is not None:
        following = next(blocks, None)
        text = decoder.decode(block, following is None)
        if lost := text.count(UNKNOWN):
            report.note(f"{name}: characters that cannot be decoded, read as {UNKNOWN}", lost)
        yield text.encode("utf-8")
        block = following


class _Mend:
    """Blocks -> valid UTF-8; the encoding is detected where UTF-8 first fails."""

    def __init__(self, name: str, report: ReadReport):
        self.name, self.report = name, report
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
            self.report.note(f"{self.name} is read as {called}")
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
            self.report.note(f"{self.name}: bytes that cannot be decoded (mixed encodings?), read as {UNKNOWN}", count)


def is_wide(head: bytes) -> bool:
    """Whether a byte order mark of UTF-16 or UTF-32 is at the beginning."""
    return head.startswith(tuple(mark for mark, _, _ in MARKS))


def decoded(head: bytes) -> str:
    """The beginning of a file as text, good enough to tell its format."""
    if is_wide(head):
        utf32 = head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE))
        return head.decode("utf-32" if utf32 else "utf-16", "replace")
    return head.removeprefix(codecs.BOM_UTF8).decode("utf-8", "replace")


def is_utf8(block: bytes) -> bool:
    """Whether the bytes are valid UTF-8; ASCII, the most frequent case, is tested first."""
    try:
        return block.isascii() or bool(block.decode("utf-8"))
    except UnicodeDecodeError:
        return False


def detect(block: bytes) -> tuple[str, str]:
    """(codec, its usual name) of text that is not UTF-8. Western European unless another one fits better."""
    from charset_normalizer import from_bytes

    telling = b"\n".join(line for line in block.splitlines() if not is_utf8(line))[:SAMPLE]
    matches = from_bytes(telling, cp_isolation=list(CANDIDATES))
    best, western = matches.best(), telling.decode("cp1252", "replace")
    if best is None or str(best) == western or any(_as_good(match, best) for match in matches):
        return "cp1252", "Windows-1252" if re.search(rb"[\x80-\x9f]", telling) else "Latin-1"
    return best.encoding, NAMES.get(best.encoding, best.encoding.upper().replace("_", "-"))


def _as_good(match: CharsetMatch, best: CharsetMatch) -> bool:
    western = {"cp1252", "latin_1"} & {match.encoding, *match.could_be_from_charset}
    return bool(western) and match.chaos <= best.chaos and match.coherence >= best.coherence
