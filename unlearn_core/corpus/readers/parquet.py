"""Parquet, by pyarrow."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

from unlearn_core.corpus.readers.base import Reader
from unlearn_core.corpus.reading.arrow import rows_of
from unlearn_core.corpus.reading.document import File, Kind, ReadReport
from unlearn_core.corpus.reading.rows import MOST_FIELDS, too_wide
from unlearn_core.corpus.reading.unpack import blocks
from unlearn_core.settings.errors import ConfigError
from unlearn_core.settings.sections import DataSettings

if TYPE_CHECKING:
    from pyarrow import DataType

BATCH = 128  # rows at a time


class Parquet(Reader):
    """Rows of Parquet files, one row group at a time."""

    formats = {".parquet": "Parquet", ".pq": "Parquet"}
    binary = True

    def format_of(self, ending: str, head: bytes) -> str:
        return "Parquet" if head.startswith(b"PAR1") else ""

    def rows(self, file: File, kind: Kind, data: DataSettings, report: ReadReport) -> Iterator[tuple[str, Any]]:
        """The rows, in batches, without columns of pictures and other bytes."""
        import pyarrow.parquet as parquet
        from pyarrow import ArrowException

        start, number = report.bytes_read, 0
        with _seekable(file, kind, report) as handle:
            try:
                table = parquet.ParquetFile(handle)
                if len(table.schema_arrow) > MOST_FIELDS:
                    raise too_wide(file, len(table.schema_arrow))
                columns = [field.name for field in table.schema_arrow if not _is_bytes(field.type)]
                if left_out := [field.name for field in table.schema_arrow if field.name not in columns]:
                    report.note(f"{file.name}: columns of bytes, not read: {', '.join(left_out)}")
                for batch in table.iter_batches(batch_size=BATCH, columns=columns):
                    for row in rows_of(batch, file.name, report):
                        number += 1
                        yield f"row {number}", row
                    report.bytes_read = start + file.size * number // max(1, table.metadata.num_rows)
            except (ArrowException, OSError) as error:
                reason = " ".join(str(error).split())[:120]
                if not number:
                    raise ConfigError(
                        f"{file.source!r} cannot be read as Parquet ({reason}). Fetch it again."
                    ) from None
                report.note(f"{file.name} is damaged after row {number:,} ({reason}); what follows is left out")
        report.bytes_read = start + file.size


def _is_bytes(kind: DataType) -> bool:
    from pyarrow import types

    if types.is_struct(kind):  # a picture or a sound with its path
        return any(_is_bytes(field.type) for field in kind)
    return any((types.is_binary(kind), types.is_large_binary(kind), types.is_fixed_size_binary(kind)))


def _seekable(file: File, kind: Kind, report: ReadReport) -> BinaryIO:
    """The file itself, or a decompressed copy on the disk: Parquet is read from its end."""
    if not kind.packing:
        return file.path.open("rb")
    unpacked = tempfile.TemporaryFile()  # noqa: SIM115
    before = report.bytes_read
    for block in blocks(file, kind.packing, report):
        unpacked.write(block)
    report.bytes_read = before
    unpacked.seek(0)
    return unpacked


READER = Parquet()
