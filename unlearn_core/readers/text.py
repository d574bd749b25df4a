"""Plain text and Markdown: whole lines by the block, never one by one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from unlearn_core.readers.document import Document, Tally
from unlearn_core.readers.encodings import utf8
from unlearn_core.readers.files import File, Kind
from unlearn_core.readers.unpack import BLOCK, blocks

LONGEST_ROW = 16 * BLOCK  # bytes of one row; a long book has one or two million
NEWLINE = 10


def read(file: File, kind: Kind, tally: Tally) -> Iterator[Document]:
    """The lines of a file in stretches of about 1 MiB."""
    line, held, inside = 1, None, False
    for block in utf8(blocks(file, kind.packing, tally), file.name, tally):
        if held is not None:
            yield Document(held, file.source, first_line=line, continues=True)
            line += lines_in(held)
            broken = not held.endswith((b"\n", b"\r"))
            if broken and not inside:
                tally.note(f"{file.name}: lines of more than 1 MiB, cut into pieces")
            inside = broken
        held = block
    if held is not None:
        yield Document(held, file.source, first_line=line)


def lines_in(block: bytes) -> int:
    """Line ends in a block, three times as fast as bytes.count."""
    return int(np.count_nonzero(np.frombuffer(block, np.uint8) == NEWLINE))


def whole_lines(file: File, kind: Kind, tally: Tally) -> Iterator[str]:
    """The text of a file in blocks of whole lines, for formats in which a line is a row."""
    pieces: list[bytes] = []
    size = 0
    for block in utf8(blocks(file, kind.packing, tally), file.name, tally):
        end = len(block) if block.endswith(b"\n") else block.rfind(b"\n") + 1
        if not end:
            pieces.append(block)
            size += len(block)
            if size > LONGEST_ROW:
                tally.note(f"{file.name}: rows of more than 16 MiB, cut into pieces that may not be read")
                yield b"".join(pieces).decode("utf-8")
                pieces, size = [], 0
            continue
        yield b"".join((*pieces, block[:end])).decode("utf-8")
        pieces, size = [block[end:]], len(block) - end
    if size:
        yield b"".join(pieces).decode("utf-8")


class TooLong(Exception):
    """A row that is larger than memory should be asked for."""


class Readable:
    """Blocks as a file that a parser of a library reads from. `given`: bytes since the last row, which have a limit."""

    def __init__(self, found: Iterator[bytes]):
        self.found, self.rest, self.given = found, b"", 0

    def read(self, size: int) -> bytes:
        """At most `size` bytes. Raises TooLong where they belong to a row that does not end."""
        if size and not self.rest:
            self.rest = next(self.found, b"")
        piece, self.rest = self.rest[:size], self.rest[size:]
        self.given += len(piece)
        if self.given > 4 * LONGEST_ROW:
            raise TooLong
        return piece
