"""Files in which a line is a row, as blocks of whole lines; and bytes for the parsers of libraries."""

from __future__ import annotations

from collections.abc import Iterator

from unlearn_core.corpus.reading.document import File, Kind, ReadReport
from unlearn_core.corpus.reading.encodings import utf8
from unlearn_core.corpus.reading.unpack import BLOCK, blocks

LONGEST_ROW = 16 * BLOCK  # bytes of one row; a long book has one or two million


def whole_lines(file: File, kind: Kind, report: ReadReport) -> Iterator[str]:
    """The text of a file in blocks of whole lines."""
    pieces: list[bytes] = []
    size = 0
    for block in utf8(blocks(file, kind.packing, report), file.name, report):
        end = len(block) if block.endswith(b"\n") else block.rfind(b"\n") + 1
        if not end:
            pieces.append(block)
            size += len(block)
            if size > LONGEST_ROW:
                report.note(f"{file.name}: rows of more than 16 MiB, cut into pieces that may not be read")
                yield b"".join(pieces).decode("utf-8")
                pieces, size = [], 0
            continue
        yield b"".join((*pieces, block[:end])).decode("utf-8")
        pieces, size = [block[end:]], len(block) - end
    if size:
        yield b"".join(pieces).decode("utf-8")


class TooLong(Exception):
    """A row larger than what is held in memory."""


class Readable:
    """Blocks as a file object. `given`: bytes since the start of a row, where it is to be set to 0."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self.blocks, self.rest, self.given = blocks, b"", 0

    def read(self, size: int) -> bytes:
        """At most `size` bytes. Raises TooLong within a row of more than 64 MiB."""
        if size and not self.rest:
            self.rest = next(self.blocks, b"")
        piece, self.rest = self.rest[:size], self.rest[size:]
        self.given += len(piece)
        if self.given > 4 * LONGEST_ROW:
            raise TooLong
        return piece
