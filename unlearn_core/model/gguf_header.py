"""The header of a GGUF file, walked through once before a library takes memory for what it claims.

The format: github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import mmap
import struct
from math import prod
from pathlib import Path
from typing import Any

MAGIC = b"GGUF"
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}  # by type
TEXT, ARRAY = 8, 9
DEEPEST = 4  # arrays of arrays
MOST_DIMENSIONS = 8
LEAST_BITS = 1  # of a weight, however quantized
LONGEST_TEXT = 1 << 26


class _Header:
    """Reads on from a place in a file. Raises ValueError behind its end."""

    def __init__(self, content: Any) -> None:
        self.content, self.place, self.size = content, 0, len(content)

    def skip(self, count: int) -> int:
        """The place before `count` bytes that are passed."""
        before = self.place
        if count > self.size - before:
            raise ValueError("its header claims more than the file holds")
        self.place += count
        return before

    def number(self, letter: str) -> Any:
        return struct.unpack_from(f"<{letter}", self.content, self.skip(struct.calcsize(f"<{letter}")))[0]

    def text(self) -> bytes:
        length = self.number("Q")
        start = self.skip(length)
        return bytes(self.content[start : start + min(length, 256)])

    def value(self, kind: int, depth: int = 0) -> Any:
        """A number; of a text and an array only that it is there."""
        if kind in NUMBERS:
            return self.number(NUMBERS[kind])
        if kind == TEXT:
            self.skip(self.number("Q"))
            return None
        if kind != ARRAY or depth > DEEPEST:
            raise ValueError(f"its header has a value of type {kind}, which no version of the format knows")
        inner, count = self.number("I"), self.number("Q")
        if inner in NUMBERS:
            self.skip(count * struct.calcsize(f"<{NUMBERS[inner]}"))
            return None
        for _ in range(count):  # ends at the end of the file: each takes some bytes
            self.value(inner, depth + 1)
        return None


def claimed_beyond(path: Path) -> str:
    """What a file's header claims that the file cannot hold; empty where it holds all. Raises OSError."""
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            return "it is no GGUF file"
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                return _claimed_beyond(_Header(content))
            except ValueError as error:
                return str(error)


def _claimed_beyond(header: _Header) -> str:
    header.skip(len(MAGIC))
    version, tensors, values = header.number("I"), header.number("Q"), header.number("Q")
    if not 1 < version < 1 << 16:
        raise ValueError("it is of a version of GGUF that is not read")
    counts: dict[str, int] = {}
    for _ in range(values):
        name = header.text().decode("utf-8", "replace")
        number = header.value(header.number("I"))
        if isinstance(number, int):
            counts[name.rpartition(".")[2]] = max(number, counts.get(name.rpartition(".")[2], 0))
    weights, widest = 0, 0
    for _ in range(tensors):
        header.text()
        if (dimensions := header.number("I")) > MOST_DIMENSIONS:
            raise ValueError(f"its header has a tensor of {dimensions} dimensions")
        sizes = [header.number("Q") for _ in range(dimensions)]
        header.number("I"), header.number("Q")  # its type, its place
        weights, widest = weights + prod(sizes), max(widest, *sizes, 0)
    if weights * LEAST_BITS > header.size * 8:
        raise ValueError(f"its header claims {weights:,} weights, and it has {header.size:,} bytes")
    most = {"block_count": tensors, "expert_count": max(tensors, widest), "embedding_length": widest}
    most |= {"feed_forward_length": widest, "context_length": LONGEST_TEXT}
    wrong = [name for name, limit in most.items() if counts.get(name, 0) > limit]
    return f"its header says {wrong[0]} = {counts[wrong[0]]:,}, which its {tensors:,} tensors are not" if wrong else ""
