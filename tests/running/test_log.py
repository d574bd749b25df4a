"""The log file: internal errors with their tracebacks, limited in size, and no trouble of its own."""

from __future__ import annotations

import logging
import sys
from contextlib import closing
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

import cli
from pages.shared import process
from unlearn_core.running import log
from unlearn_core.running.log import LogFile, internal_error

ROOT = Path(__file__).parents[2]


def fail(message: str) -> None:
    try:
        raise KeyError(message)
    except KeyError:
        logging.getLogger("lethe").exception("it failed")


def test_an_error_is_written_with_its_traceback_while_the_file_is_open(tmp_path: Path) -> None:
    with closing(LogFile(tmp_path / "home")):
        assert not (tmp_path / "home").exists(), "nothing is made before there is something to write"
        logging.getLogger("lethe").warning("not an error")
        fail("first")
    fail("second")
    written = (tmp_path / "home" / "lethe.log").read_text(encoding="utf-8")
    assert "Traceback" in written and "KeyError: 'first'" in written
    assert "second" not in written and "not an error" not in written


def test_the_file_does_not_grow_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "BYTES", 10_000)
    with closing(LogFile(tmp_path)):
        for number in range(200):
            fail(f"number {number}")
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["lethe.log", "lethe.log.1"]
    assert all((tmp_path / name).stat().st_size <= 10_000 for name in files)
    assert "number 199" in (tmp_path / "lethe.log").read_text(encoding="utf-8")


def test_a_home_that_cannot_be_written_is_not_reported_by_the_logging(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    with closing(LogFile(tmp_path / "file")):
        fail("lost")
    assert capsys.readouterr().err == ""


def test_an_internal_error_of_the_command_line_is_one_sentence_and_its_traceback_is_where_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*given: object) -> None:
        raise KeyError("x")

    monkeypatch.setattr("storage.RunStore.runs", broken)
    monkeypatch.setattr(sys, "argv", ["cli.py", "runs", "--home", str(tmp_path)])
    assert cli.main() == 1
    out, err = capsys.readouterr()
    assert out == "" and err.strip() == internal_error(tmp_path, KeyError("x"))
    assert err.strip() == f"Internal error (KeyError: 'x'); the traceback is in {tmp_path / 'lethe.log'}."
    assert "in broken" in (tmp_path / "lethe.log").read_text(encoding="utf-8")


def test_a_page_that_fails_is_in_the_log_of_its_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: object) -> None:
        raise KeyError("x")

    monkeypatch.setattr("storage.RunStore.runs", broken)
    monkeypatch.setenv("LETHE_HOME", str(tmp_path))
    page = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60).run()
    for name in ("preview", "worker"):
        process.objects.pop(name).stop()
    for name in ("store", "log"):
        process.objects.pop(name).close()
    del process.objects["home"]
    assert page.exception
    assert "KeyError: 'x'" in (tmp_path / "lethe.log").read_text(encoding="utf-8")
