"""Plain text and Markdown: whole lines in blocks, never one by one. Also any other text that no reader claims."""

from __future__ import annotations

from collections.abc import Iterator

from unlearn_core.corpus.readers.base import Reader
from unlearn_core.corpus.reading.document import Document, File, Kind, ReadReport
from unlearn_core.corpus.reading.encodings import utf8
from unlearn_core.corpus.reading.rows import Where
from unlearn_core.corpus.reading.unpack import blocks, lines_in
from unlearn_core.settings.sections import DataSettings


class PlainText(Reader):
    """Whole lines of text, in blocks."""

    formats = dict.fromkeys((".txt", ".text", ".md", ".markdown"), "plain text")
    has_fields = False

    def read(
        self, file: File, kind: Kind, data: DataSettings, where: Where | None, report: ReadReport
    ) -> Iterator[Document]:
        """The lines of a file in stretches of about 1 MiB."""
        line, previous, inside = 1, None, False
        for block in utf8(blocks(file, kind.packing, report), file.name, report):
            if previous is not None:
                yield Document(previous, file.source, first_line=line, continues=True)
                line += lines_in(previous)
                cut = not previous.endswith((b"\n", b"\r"))
                if cut and not inside:
                    report.note(f"{file.name}: lines of more than 1 MiB, cut into pieces")
                inside = cut
            previous = block
        if previous is not None:
            yield Document(previous, file.source, first_line=line)


READER = PlainText()
