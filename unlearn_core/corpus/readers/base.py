"""The contract of a reader: which files it reads, and how they become documents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from unlearn_core.corpus.reading.document import Document, File, Kind, ReadReport
from unlearn_core.corpus.reading.rows import Where, documents
from unlearn_core.settings.sections import DataSettings


class Reader:
    """A file format. Override `rows` for a format whose rows have fields, else `read`."""

    formats: ClassVar[Mapping[str, str]] = {}  # ending of a file's name -> name of the format
    binary: ClassVar[bool] = False  # its bytes are not text
    has_fields: ClassVar[bool] = True  # `data.where` and the field settings apply

    def format_of(self, ending: str, head: bytes) -> str:
        """The name of the format of such a file; empty where another reader is to read it.

        `ending`: of its name, in lower case and without that of a compression; `head`: its first MiB, decompressed.
        """
        return self.formats.get(ending, "")

    def rows(self, file: File, kind: Kind, data: DataSettings, report: ReadReport) -> Iterator[tuple[str, Any]]:
        """(place, a text or a mapping of fields) of every row."""
        raise NotImplementedError

    def read(
        self, file: File, kind: Kind, data: DataSettings, where: Where | None, report: ReadReport
    ) -> Iterator[Document]:
        """The documents of a file; `where`, if any, is None for a format without fields.

        `report.bytes_read` grows by `file.size`. Raises ConfigError where nothing can be read; what is skipped, or
        lost behind a damage, is noted in the report.
        """
        return documents(self.rows(file, kind, data, report), file, data, where, report)
