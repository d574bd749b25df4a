"""A file format is one file: readers are found by being there, and corpus imports nothing from above itself."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from unlearn_core.corpus.readers import READERS
from unlearn_core.corpus.readers.base import Reader

ROOT = Path(__file__).parents[2]
BELOW = ("corpus", "model", "settings", "world")  # what corpus may import, itself included
SUBTITLES = """
from unlearn_core.corpus.readers.base import Reader


class Subtitles(Reader):
    formats = {".srt": "subtitles"}

    def rows(self, file, kind, data, report):
        for part in file.path.read_text().split("\\n\\n"):
            number, _, *lines = part.splitlines()
            yield f"subtitle {number}", {"text": " ".join(lines), "speaker": lines[0].split(":")[0]}
        report.bytes_read += file.size


READER = Subtitles()
"""
READ = """
import sys
from unlearn_core.corpus.documents import documents
from unlearn_core.corpus.reading.document import ReadReport
report = ReadReport()
for document in documents([sys.argv[1]], report=report, where=sys.argv[2]):
    print(document.place, document.text, sep="|")
assert report.bytes_read == report.bytes_total
"""


def test_a_format_is_added_by_one_file(tmp_path):
    package = tmp_path / "unlearn_core"
    readers = package / "corpus" / "readers"
    readers.mkdir(parents=True)
    for here, source in ((package, ROOT / "unlearn_core"), (readers.parent, ROOT / "unlearn_core" / "corpus"),
                         (readers, ROOT / "unlearn_core" / "corpus" / "readers")):  # fmt: skip
        for path in source.iterdir():
            if not (here / path.name).exists():
                (here / path.name).symlink_to(path)
    (readers / "subtitles.py").write_text(SUBTITLES)
    film = tmp_path / "film.srt"
    film.write_text("1\n00:01 --> 00:02\nANN: Hello\nto you.\n\n2\n00:03 --> 00:04\nBOB: Bye.\n")

    def read(where: str) -> str:
        command = [sys.executable, "-c", READ, str(film), where]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    assert read("") == "subtitle 1|ANN: Hello to you.\nsubtitle 2|BOB: Bye.\n"
    assert read("speaker=BOB") == "subtitle 2|BOB: Bye.\n"


@pytest.mark.parametrize("name", READERS)
def test_a_reader_keeps_the_contract(name):
    reader = READERS[name]
    assert isinstance(reader, Reader) and reader.formats
    assert all(ending.startswith(".") and ending == ending.lower() for ending in reader.formats)
    overrides = type(reader).rows is not Reader.rows, type(reader).read is not Reader.read
    assert overrides == ((True, False) if reader.has_fields else (False, True))


def test_no_two_readers_claim_the_same_ending():
    endings = [ending for reader in READERS.values() for ending in reader.formats]
    assert len(endings) == len(set(endings))


def imported(path: Path) -> set[str]:
    """The modules of ours that a file imports, type-checking imports included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in names if name.split(".")[0] in ("unlearn_core", "storage", "pages", "terminal", "bench")}


def test_corpus_imports_nothing_from_above_itself_and_has_no_cycle():
    folder = ROOT / "unlearn_core" / "corpus"
    graph = {".".join(path.relative_to(ROOT).with_suffix("").parts): imported(path) for path in folder.rglob("*.py")}
    upwards = [
        (module, name)
        for module, names in graph.items()
        for name in names
        if name != "unlearn_core" and name.split(".")[1:2] not in [[below] for below in BELOW]
    ]
    assert not upwards

    def reach(module: str, seen: tuple[str, ...] = ()) -> None:
        assert module not in seen, " -> ".join((*seen, module))
        for name in graph[module] & set(graph):
            reach(name, (*seen, module))

    for module in graph:
        reach(module)
