"""Bytes of a file in blocks that end where a line ends; a compressed file is unpacked in a thread of its own."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

if TYPE_CHECKING:
    from unlearn_core.corpus.reading.document import File, ReadReport

BLOCK = 1 << 20  # bytes; fits the processor's cache, where larger blocks are slower to search
NEWLINE = 10
PROBE = 4096  # bytes before a block's end that are searched for the end of a line
MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
# A zstd file may begin with frames that hold no text: sizes, an index, a version (RFC 8878, 3.1.2).
MAGIC |= {bytes((0x50 + number, 0x2A, 0x4D, 0x18)): "zstd" for number in range(16)}
EXTENSIONS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd"}


class Broken(Exception):
    """A compressed file that ends too early or does not unpack: `how` says which."""

    def __init__(self, how: str):
        super().__init__(how)
        self.how = how


def packing(path: Path) -> str:
    """How the file is compressed by its first bytes; empty where it is not."""
    with path.open("rb") as handle:
        first = handle.read(8)
    return next((name for magic, name in MAGIC.items() if first.startswith(magic)), "")


def head(path: Path, packed: str, count: int) -> bytes:
    """The first `count` bytes, unpacked; fewer where the file ends or breaks before."""
    with path.open("rb") as handle:
        if not packed:
            return handle.read(count)
        first = b""
        try:
            for piece in unpacked(handle, packed):
                first += piece
                if len(first) >= count:
                    break
        except Broken:
            pass
        return first[:count]


def blocks(file: File, packed: str, report: ReadReport) -> Iterator[bytes]:
    """The file's bytes, unpacked, in blocks of about 1 MiB. One that breaks off is read as far as it goes.

    A block ends where a line ends, or, in a line longer than a block, between two words or characters.
    """
    start, length = report.bytes_read, 0

    def counted(pieces: Iterable[tuple[bytes, int]]) -> Iterator[bytes]:
        nonlocal length
        try:
            for piece, position in pieces:
                length += len(piece)
                report.bytes_read = start + position
                yield piece
        except (Broken, OSError) as error:
            how = error.how if isinstance(error, Broken) else f"breaks off ({error.strerror or error})"
            report.note(f"{file.name} {how}; {length:,} bytes of it were read")
            report.truncated.add(file.path)

    yield from at_lines(counted(_in_thread(file.path, packed))) if packed else counted(_plain(file.path))
    report.bytes_read = start + file.size


def _plain(path: Path) -> Iterator[tuple[bytes, int]]:
    """Blocks as they are on the disk: finding a line's end first saves copying every block."""
    position = 0
    with path.open("rb", buffering=0) as handle:
        while True:
            handle.seek(position + BLOCK - PROBE)
            end = handle.read(PROBE).rfind(b"\n") + 1
            handle.seek(position)
            block = handle.read(BLOCK - PROBE + end if end else BLOCK)
            if not block:
                return
            if not end and len(block) == BLOCK:
                block = block[: cut(block)]
            position += len(block)
            yield block, position


def at_lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in blocks that end where a line ends."""
    rest = b""
    for piece in pieces:
        rest = rest + piece if rest else piece
        if len(rest) >= BLOCK:
            end = cut(rest)
            yield rest[:end]
            rest = rest[end:]
    if rest:
        yield rest


def lines_in(block: bytes) -> int:
    """Line ends in a block, three times as fast as bytes.count."""
    return int(np.count_nonzero(np.frombuffer(block, np.uint8) == NEWLINE))


def cut(block: bytes) -> int:
    """Where to cut: behind the last line end, else (a line longer than the block) behind a blank or a character."""
    if end := block.rfind(b"\n") + 1:
        return end
    end = block.rfind(b"\r", 0, len(block) - 1) + 1 or block.rfind(b" ", len(block) // 2) + 1
    if end:
        return end
    end = len(block)
    while end > len(block) - 4 and block[end - 1] & 0xC0 == 0x80:
        end -= 1
    return end - 1 if block[end - 1] >= 0xC0 else len(block)


def _in_thread(path: Path, packed: str) -> Iterator[tuple[bytes, int]]:
    """Unpacked pieces with the position in the file; a few are buffered while the last is read."""
    ready: Queue[Any] = Queue(4)
    stop = Event()

    def put(item: Any) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except Full:
                continue
        return False

    def unpack() -> None:
        end: Exception | None = None
        try:
            with path.open("rb", buffering=0) as handle:
                for piece in unpacked(handle, packed):
                    if not put((piece, handle.tell())):
                        return
        except Exception as error:  # is raised again in the thread that reads
            end = error
        put(end)

    thread = Thread(target=unpack, name=f"unpack {path.name}", daemon=True)
    thread.start()
    try:
        while isinstance(item := _get(ready, thread), tuple):
            yield item
        if item is not None:
            raise item
    finally:
        stop.set()
        thread.join()


def _get(ready: Queue[Any], thread: Thread) -> Any:
    while True:
        try:
            return ready.get(timeout=1.0)
        except Empty:
            if not thread.is_alive() and ready.empty():
                raise Broken("could not be unpacked") from None


def unpacked(handle: BinaryIO, packed: str) -> Iterator[bytes]:
    """Pieces of about 1 MiB, of one compressed stream after another. Raises Broken."""
    new, step, errors = _library(packed)
    machine: Any = None
    data = b""
    while True:
        data = data or handle.read(BLOCK // 4)
        if not data and machine is None:
            return
        if not data:
            raise Broken("is cut off")
        if machine is None:
            data = data.lstrip(b"\0") if packed in ("gzip", "xz") else data  # padding between streams
            if not data:
                continue
            machine = new()
        try:
            data = yield from step(machine, data)
        except errors as error:
            raise Broken(f"is damaged ({error})") from None
        machine = None if machine.eof else machine


Step = Callable[[Any, bytes], Generator[bytes, None, bytes]]  # yields what it unpacks, returns the rest


def _library(packed: str) -> tuple[Callable[[], Any], Step, tuple[type[Exception], ...]]:
    if packed == "gzip":
        return lambda: zlib.decompressobj(wbits=31), _step_zlib, (zlib.error,)
    if packed == "bz2":
        return bz2.BZ2Decompressor, _step, (OSError, EOFError, ValueError)
    if packed == "xz":
        return lzma.LZMADecompressor, _step, (lzma.LZMAError, EOFError)
    import zstandard

    window = 1 << 27  # bytes of memory; what the zstd command allows, too
    reader = zstandard.ZstdDecompressor(max_window_size=window)
    return reader.decompressobj, _step_zstd, (zstandard.ZstdError,)


def _step(machine: Any, data: bytes) -> Generator[bytes, None, bytes]:
    while True:
        if piece := machine.decompress(data, BLOCK):
            yield piece
        if machine.eof or machine.needs_input:
            return bytes(machine.unused_data)
        data = b""


def _step_zlib(machine: Any, data: bytes) -> Generator[bytes, None, bytes]:
    while True:
        if piece := machine.decompress(data, BLOCK):
            yield piece
        data = machine.unconsumed_tail
        if machine.eof or not (data or len(piece) == BLOCK):
            return bytes(machine.unused_data)


def _sliced(block: bytes) -> Iterator[bytes]:
    yield from (block[start : start + BLOCK] for start in range(0, len(block), BLOCK))


def _step_zstd(machine: Any, data: bytes) -> Generator[bytes, None, bytes]:
    # The library sets no limit on what one call gives: small bites keep a file of one repeated letter within bounds.
    ready, size, bite = [], 0, 1024
    for start in range(0, len(data), bite):
        ready.append(machine.decompress(data[start : start + bite]))
        size += len(ready[-1])
        if size >= BLOCK or machine.eof:
            yield from _sliced(b"".join(ready))
            ready, size = [], 0
        if machine.eof:
            return bytes(machine.unused_data) + data[start + bite :]
    if size:
        yield b"".join(ready)
    return b""
