"""Files whose bits have flipped: what a store still tells, and that no checkpoint is used that was not saved so."""

from __future__ import annotations

import contextlib
import io
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import cli
from storage import RunStore, StoreError
from storage.export import export_run

PAGE = 4096  # bytes of SQLite's unit


def flip(path: Path, chance: random.Random, bits: int = 1) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(bits):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def damage(path: Path, chance: random.Random) -> str:
    """Damages a file in one of the ways in which files are damaged; returns which."""
    size = path.stat().st_size
    way = chance.choice(["bits", "bits", "many bits", "page", "zeros", "cut"])
    if way in ("bits", "many bits"):
        flip(path, chance, 1 if way == "bits" else 40)
    elif way == "cut":
        with path.open("r+b") as file:
            file.truncate(chance.randrange(size))
    else:
        at = chance.randrange(max(1, size // PAGE)) * PAGE
        with path.open("r+b") as file:
            file.seek(at)
            file.write(chance.randbytes(PAGE) if way == "page" else bytes(PAGE))
    return way


def of_a_store(good: Path, home: Path, seed: int) -> bool:
    """A store is damaged by the seed, read through and exported: every failure is one sentence, nothing is changed.

    Returns whether the damage was noticed: SQLite keeps no check sums, so that of a number is not.
    """
    shutil.copytree(good, home)
    path = home / "lethe.db"
    way = damage(path, random.Random(seed))
    before, noticed = path.read_bytes(), False
    try:
        with contextlib.closing(RunStore(home)) as store:
            noticed = _read_through(store, home / "out")
            noticed |= store.damaged
    except StoreError as error:
        check_sentence(str(error), f"seed {seed}, {way}")
        noticed = True
    assert path.read_bytes() == before, f"seed {seed}, {way}: what is damaged is never overwritten"
    for verb in ("runs", "show"):
        error = _of_the_command_line(verb, home)
        assert "Traceback" not in error, f"seed {seed}, {way}: {error}"
    return noticed


def _read_through(store: RunStore, out: Path) -> bool:
    failed = False
    for run in store.runs():
        run_id = run["id"]
        for read in (
            lambda run_id=run_id: store.points(run_id), lambda run_id=run_id: store.responses(run_id),
            lambda run_id=run_id: store.events(run_id), lambda run_id=run_id: store.prompts(run_id),
            lambda run_id=run_id: store.checkpoints(run_id), lambda run_id=run_id: store.examples(run_id),
            lambda run_id=run_id: store.last_points(run_id), lambda run_id=run_id: store.commands(run_id),
            lambda run_id=run_id: export_run(store, run_id, out),
        ):  # fmt: skip
            try:
                read()
            except StoreError as error:
                check_sentence(str(error), run_id)
                failed = True
    return failed


def check_sentence(text: str, about: str) -> None:
    assert text.endswith(".") and "\n" not in text, f"{about}: {text}"


def _of_the_command_line(verb: str, home: Path) -> str:
    """What the command line says about a store on stderr, in this process."""
    given = ["cli.py", verb, *(["a run"] if verb == "show" else []), "--home", str(home)]
    before, error = sys.argv, io.StringIO()
    sys.argv = given
    try:
        with contextlib.redirect_stderr(_Reconfigurable(error)), contextlib.redirect_stdout(_Reconfigurable()):
            assert cli.main() in (0, 1, 2)
    finally:
        sys.argv = before
    return error.getvalue()


class _Reconfigurable(io.StringIO):
    """A stream in memory that takes what the command line asks of stdout."""

    def __init__(self, into: io.StringIO | None = None) -> None:
        super().__init__()
        self.into = into

    def write(self, text: str) -> int:
        return self.into.write(text) if self.into else len(text)

    def reconfigure(self, **settings: Any) -> None:
        pass


def of_a_checkpoint(good: Path, home: Path, run_id: str, seed: int) -> None:
    """One bit of one file of a checkpoint is flipped, or files are swapped, taken away or linked: it is not used."""
    shutil.copytree(good, home)
    chance = random.Random(seed)
    with contextlib.closing(RunStore(home)) as store:
        rows = store.checkpoints(run_id)
        row, other = chance.sample(rows, 2)
        folder, elsewhere = home / row["path"], home / other["path"]
        paths = sorted(folder.iterdir())
        path = chance.choice(paths)
        way = chance.choice(["bit", "bit", "swapped", "swapped whole", "gone", "link", "cut"])
        if way == "bit":
            flip(path, chance)
        elif way == "swapped":
            shutil.copyfile(elsewhere / path.name, path)
        elif way == "swapped whole":
            shutil.rmtree(folder)
            shutil.copytree(elsewhere, folder)
        elif way == "cut":
            path.write_bytes(path.read_bytes()[:-1])
        else:
            content = path.read_bytes()
            path.unlink()
            if way == "link":
                (home / "same").write_bytes(content)
                path.symlink_to(home / "same")
        state_alone = path.name.startswith("state.") and way != "swapped whole"
        for whole in (True, False):
            try:
                store.verified_checkpoint(row, whole=whole)
            except StoreError as error:
                check_sentence(str(error), f"seed {seed}")
                continue
            assert state_alone and not whole and way != "link", f"seed {seed}: {way} of {path.name} is accepted"
