"""A process that is killed: at a moment that is counted in file operations, so that every moment can be tried.

`python -m tests.faults.crashes SCENARIO FOLDER STRIDE` tries every STRIDE-th moment; it forks, so it has one thread.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from storage import RunStore, migrations
from storage.export import export_run
from tests.faults.material import begin, files_of, take_step

OPERATIONS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree", "shutil.copyfile")
OLD_STORE = Path(__file__).parents[1] / "storage" / "store_001.sql"


def cut_off(act: Callable[[Callable[[Any], None]], None], moment: int) -> tuple[list[Any], bool]:
    """Lets `act` run in a process of its own, which gets SIGKILL at its `moment`-th file operation.

    Returns what it has told by then, and whether it came to its end.
    """
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reads)
            counted = 0

            def count(event: str, given: tuple[Any, ...]) -> None:
                nonlocal counted
                if event in OPERATIONS and not (event == "open" and not _writes(given)):
                    counted += 1
                    if counted == moment:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(count)
            act(lambda what: os.write(writes, f"{json.dumps(what)}\n".encode()) and None)
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writes)
    with os.fdopen(reads, encoding="utf-8") as told:
        lines = [json.loads(line) for line in told if line.endswith("\n")]
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), f"the process failed by itself ({status})"
    return lines, status == 0


def _writes(given: tuple[Any, ...]) -> bool:
    """Whether a file is opened to be written, by the arguments of the audit event."""
    mode, flags = given[1], given[2]
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) or any(c in str(mode or "") for c in "wax+")


def every_moment(scenario: Callable[[int], bool], stride: int = 1, most: int = 400) -> int:
    """Tries a scenario at each moment, or each `stride`-th, until it comes to its end; returns how many were tried."""
    for tried, moment in enumerate(range(1, most, stride)):
        if scenario(moment):
            return tried
    raise AssertionError(f"it has more than {most} moments")


# ------------------------------------------------------------------------------------------------------- scenarios


def while_saving(home: Path, out: Path, moment: int) -> bool:
    """Steps, checkpoints that are replaced and shrink, and exports over exports, cut off at one moment.

    What was acknowledged is there, every checkpoint that the store names is whole, the export is that of one step, and
    the next one leaves nothing behind. Returns whether it came to its end.
    """

    def act(tell: Callable[[Any], None]) -> None:
        store = RunStore(home)
        run_id = begin(store)
        tell(run_id)
        for step in range(3):
            take_step(store, run_id, step, whole=False)
            take_step(store, run_id, step)  # as Pause does: whole, in the place of the adapter alone
            tell(step)
            if step == 2:
                store.shrink_checkpoint(store.checkpoints(run_id)[0]["id"])
                store.tidy_checkpoints(run_id)
            export_run(store, run_id, out)
        store.close()

    told, ended = cut_off(act, moment)
    if not told:
        return ended
    run_id, acknowledged = told[0], told[-1] if len(told) > 1 else -1
    store = RunStore(home)
    store.tidy_checkpoints(run_id, after_a_driver=True)
    rows = store.checkpoints(run_id)
    assert store.run(run_id) is not None and max((row["step"] for row in rows), default=-1) >= acknowledged
    for row in rows:
        folder = store.verified_checkpoint(row, whole=row["complete"])
        held = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert held == files_of(row["step"], row["complete"]), "files and row are of one moment"
    folder = home / "checkpoints" / run_id
    assert all(path.suffix == "" for path in (folder.iterdir() if folder.is_dir() else ())), "leftovers"
    check_export(out)
    if rows:
        export_run(store, run_id, out)
        assert sorted(path.name for path in out.iterdir()) == ["adapter", "points.csv", "responses.csv", "run.json"]
        assert read_adapter(out) == files_of(rows[-1]["step"], False)
    store.close()
    return ended


def read_adapter(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "adapter").iterdir()}


def check_export(out: Path) -> None:
    """Each file that stands in its place is whole."""
    if (out / "run.json").exists():
        json.loads((out / "run.json").read_text(encoding="utf-8"))
    for name in ("points.csv", "responses.csv"):
        assert not (out / name).exists() or (out / name).read_bytes().endswith(b"\n")
    if (out / "adapter").exists():
        held = read_adapter(out)
        assert held == files_of(json.loads(held["adapter_config.json"])["step"], False)


def while_migrating(home: Path, moment: int) -> bool:
    """A store of the first version that is opened, cut off at one moment: nothing is lost, and backups are whole."""
    before = old_store(home)
    ended = cut_off(lambda tell: RunStore(home).close(), moment)[1]
    check_migrated(home, before)
    return ended


def old_store(home: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Makes a store of the first version; returns its rows by table."""
    home.mkdir()
    with closing(sqlite3.connect(home / "lethe.db")) as old:
        old.executescript(OLD_STORE.read_text(encoding="utf-8"))
        old.commit()
    return dict(_contents(home / "lethe.db"))


def check_migrated(home: Path, before: dict[str, list[tuple[Any, ...]]]) -> None:
    """The store can be opened, has every row that it had, and every backup is a whole copy of it."""
    store = RunStore(home)
    assert not store.read_only, f"it is open for reading only: {store.notice}"
    assert store.runs(), "its run is gone"
    assert not list(home.glob(".lethe-backup-*")), "leftovers"
    store.close()
    after = dict(_contents(home / "lethe.db"))
    for backup in home.glob("lethe-backup-*.db"):
        assert dict(_contents(backup)) == before, f"{backup.name} is no copy of the store as it was"
    kept = {table: [row[: len(before[table][0])] for row in rows] for table, rows in after.items()}
    assert kept == before, "rows differ"
    assert list(home.glob("lethe-backup-001*.db")), "there is no backup"


def _contents(path: Path) -> Iterator[tuple[str, list[tuple[Any, ...]]]]:
    with sqlite3.connect(path) as conn:
        assert conn.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        for table in migrations.TABLES:
            yield table, sorted(conn.execute(f"SELECT * FROM {table}").fetchall(), key=repr)  # in whatever order
    conn.close()


SCENARIOS: dict[str, Callable[[Path, int], bool]] = {
    "saving": lambda folder, moment: while_saving(folder / f"{moment}", folder / f"out {moment}", moment),
    "migrating": lambda folder, moment: while_migrating(folder / f"{moment}", moment),
}


def main(scenario: str, folder: str, stride: str) -> None:
    print(every_moment(lambda moment: SCENARIOS[scenario](Path(folder), moment), int(stride)))


if __name__ == "__main__":
    main(*sys.argv[1:])
