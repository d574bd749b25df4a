"""Every kind of write of this program, to be tried on a full disk: each raises one sentence, or does without."""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from storage import RunStore
from storage.export import export_run
from tests.faults.crashes import OLD_STORE
from tests.faults.material import begin, finished, save_checkpoint

Attempt = Callable[[], Any]  # may be made again when there is room


def step(home: Path) -> Attempt:
    """The transaction of a step."""
    store = RunStore(home)
    run_id = begin(store)
    return lambda: store.append_step(run_id, 1, points={f"p{n}": 1.0 for n in range(20_000)})


def new_run(home: Path) -> Attempt:
    """The first of everything, in a home that is not there yet."""
    return lambda: RunStore(home / "new").close()


def checkpoint(home: Path) -> Attempt:
    """A checkpoint of plain files."""
    store = RunStore(home)
    run_id = begin(store)

    def write(folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "adapter_model.safetensors").write_bytes(bytes(500_000))

    return lambda: save_checkpoint(store, run_id, 1, write)


def tensors(home: Path) -> Attempt:
    """A checkpoint that safetensors writes, whose errors are its own."""
    import torch
    from safetensors.torch import save_file

    store = RunStore(home)
    run_id = begin(store)

    def write(folder: Path) -> None:
        folder.mkdir(parents=True)
        save_file({"a": torch.ones(200_000)}, folder / "adapter_model.safetensors")

    return lambda: save_checkpoint(store, run_id, 1, write)


def tokenizer(home: Path) -> Attempt:
    """A checkpoint with a tokenizer, as full weights have it: another library's own errors."""
    from tokenizers import Tokenizer, models

    store = RunStore(home)
    run_id = begin(store)
    words = {f"word {number}": number for number in range(30_000)}

    def write(folder: Path) -> None:
        folder.mkdir(parents=True)
        Tokenizer(models.WordLevel(words, unk_token="word 0")).save(str(folder / "tokenizer.json"))

    return lambda: save_checkpoint(store, run_id, 1, write)


def export(home: Path) -> Attempt:
    """An export over an earlier one."""
    run_id = finished(home)
    store = RunStore(home)
    export_run(store, run_id, home / "out")
    before = {path.name: path.read_bytes() for path in (home / "out").rglob("*") if path.is_file()}

    def again() -> None:
        try:
            export_run(store, run_id, home / "out")
        finally:
            after = {path.name: path.read_bytes() for path in (home / "out").rglob("*") if path.is_file()}
            assert before.keys() == after.keys() and all(before.values()), "the earlier export is as it was"

    return again


def scan_cache(home: Path) -> Attempt:
    """What was found in texts: kept where there is room, else found again."""
    from unlearn_core.corpus.passages import ScanResult
    from unlearn_core.corpus.scan_cache import ScanCache
    from unlearn_core.settings.sections import DataSettings

    empty: dict[str, Any] = dict.fromkeys(("forget", "neighbour", "retain", "holdout", "notes"), ())
    result = ScanResult(**{**dict.fromkeys(ScanResult.__dataclass_fields__, 0), **empty})

    def write() -> None:
        with closing(ScanCache(home / "cache", DataSettings(), 0)) as cache:
            cache.read()
            cache.write(result)

    return write


def preview(home: Path) -> Attempt:
    """A look into texts, whose result is a file."""
    from unlearn_core.running.commands import explain
    from unlearn_core.running.preview import PreviewThread

    store = RunStore(home)
    thread = PreviewThread(store, lambda config, report: {"text": "x" * 500_000})

    def look() -> None:
        try:
            thread.preview({"id": 1, "payload": {"config": {}}})
        except OSError as error:
            raise store.Error(explain(store, error)[1]) from error

    return look


def upload(home: Path) -> Attempt:
    """A file that a browser sends."""
    import io

    from pages.setup.sources import keep_upload

    return lambda: keep_upload("texts.txt", io.BytesIO(b"some text " * 50_000), home)


def draft(home: Path) -> Attempt:
    """The form's draft: a convenience, so nothing is said."""
    from pages.setup.draft import Draft
    from pages.setup.drafts import write

    return lambda: write(home, "abc", Draft())


def log(home: Path) -> Attempt:
    """An internal error in the log file: what cannot be logged is not reported again."""
    from unlearn_core.running.log import LogFile

    def fail() -> None:
        with closing(LogFile(home)):
            logging.getLogger("lethe").error("it failed")

    return fail


def conversion(home: Path) -> Attempt:
    """A converted model's weights, which safetensors writes: the sentence that its process ends with."""
    from unlearn_core.settings.disk import full_disk
    from unlearn_core.settings.errors import ConfigError

    def write() -> None:
        import torch
        from safetensors.torch import save_file

        try:
            save_file({"a": torch.ones(200_000)}, home / "model.safetensors")
        except Exception as error:
            (home / "model.safetensors").unlink(missing_ok=True)
            assert full_disk(error, home), error
            raise ConfigError(full_disk(error, home)) from error

    return write


def migration(home: Path) -> Attempt:
    """A store of the first version, whose backup copy finds no room: it can be read, and is as it was."""
    with closing(sqlite3.connect(home / "lethe.db")) as old:
        old.executescript(OLD_STORE.read_text(encoding="utf-8"))
        run_id = old.execute("SELECT id FROM runs").fetchone()[0]
        old.execute("UPDATE runs SET notes = ?", ("n" * 300_000,))
        old.commit()
    before = (home / "lethe.db").read_bytes()

    def open_it() -> None:
        with closing(RunStore(home)) as store:
            assert store.run(run_id) and store.checkpoints(run_id) is not None and len(store.points(run_id))
            if store.read_only:
                assert (home / "lethe.db").read_bytes() == before
                raise store.Error(store.notice)

    return open_it


def looking(home: Path) -> Attempt:
    """A store whose disk is full is looked at, whether it says so or needs no room."""
    run_id = finished(home)

    def look() -> None:
        with closing(RunStore(home)) as store:
            assert json.loads(json.dumps(store.run(run_id), default=str))["id"] == run_id
            assert len(store.points(run_id)) and len(store.responses(run_id))

    return look


SAYS = (step, new_run, checkpoint, tensors, tokenizer, export, preview, upload, conversion, migration)
DOES_WITHOUT = (scan_cache, draft, log, looking)
