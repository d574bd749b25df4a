"""Which reader reads a file: by its first bytes and the ending of its name."""

from __future__ import annotations

from unlearn_core.corpus.readers import READERS
from unlearn_core.corpus.readers.base import Reader
from unlearn_core.corpus.reading.document import File, Kind
from unlearn_core.corpus.reading.encodings import is_wide
from unlearn_core.corpus.reading.unpack import EXTENSIONS, head, packing
from unlearn_core.settings.errors import ConfigError

HEAD = 1 << 20  # bytes that decide on the format
PLAIN = READERS["plain_text"]
# Of files that are not text although their first bytes may hold no zero.
SIGNATURES = (
    b"%PDF-",
    b"PK\x03\x04",
    b"\x89PNG",
    b"GIF8",
    b"\xff\xd8\xff",
    b"7z\xbc\xaf",
    b"Rar!",
    b"ARROW1",
    b"\x7fELF",
)


NOT_IN_TEXT = bytes({*range(32)} - set(b"\t\n\r\f\b\x1b\x1a"))  # control characters


class NotText(ConfigError):
    """A file of a format that holds no text."""


def recognize(file: File) -> tuple[Reader, Kind]:
    """The reader of a file and its kind. Raises ConfigError for a file that cannot be read as text."""
    try:
        packed = packing(file.path)
        first = head(file.path, packed, HEAD)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"{file.source!r} cannot be read: {reason}. Check the file and who may read it.") from None
    endings = [suffix.lower() for suffix in file.path.suffixes]
    if endings and endings[-1] in EXTENSIONS:
        if not packed and file.size:
            raise ConfigError(f"{file.source!r} is not {EXTENSIONS[endings[-1]]}, as its name says. Fetch it again.")
        if packed:
            endings.pop()
    if not first:
        damaged = "holds nothing that can be unpacked" if packed else "is empty"
        raise ConfigError(f"{file.source!r} {damaged}; choose a file with text in it.")
    reader, name = _reader(endings[-1] if endings else "", first, file)
    return reader, Kind(name, packed, first)


def _reader(ending: str, first: bytes, file: File) -> tuple[Reader, str]:
    """The reader and the name of the format. Of two readers that claim a file, the first by name."""
    claimed = "text"
    for reader in filter(lambda reader: reader.binary, READERS.values()):
        if name := reader.format_of(ending, first):
            return reader, name
        claimed = reader.formats.get(ending, claimed)
    if claimed != "text" or first.startswith(SIGNATURES) or not (is_wide(first) or _is_text(first[: 1 << 16])):
        raise NotText(
            f"{file.source!r} is not {claimed}: its bytes are of another kind. Choose a file that holds text."
        )
    for reader in READERS.values():
        if not reader.binary and (name := reader.format_of(ending, first)):
            return reader, name
    return PLAIN, "plain text"


def _is_text(beginning: bytes) -> bool:
    """Whether bytes are text: without NUL, or with so few control characters that they are slips (1 in 100, or one)."""
    if b"\0" not in beginning:
        return True
    slips = len(beginning) - len(beginning.translate(None, NOT_IN_TEXT))
    return slips <= max(1, len(beginning) // 100)
