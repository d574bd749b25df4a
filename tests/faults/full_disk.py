"""Every kind of write on a full disk, and stores on a read-only one.

`python -m tests.faults.full_disk FOLDER` mounts a small disk there that it alone sees, and prints as JSON what each
kind has said, or how it has failed.
"""

from __future__ import annotations

import gc
import json
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from storage import RunStore, StoreError
from tests.faults import small_disk, writes
from tests.faults.material import finished
from unlearn_core.settings.errors import ConfigError

MEGABYTES = 12
NOT_ALLOWED = 3  # the exit code where nothing can be mounted


def tried(kind: Callable[[Path], writes.Attempt], home: Path) -> str:
    """The sentence of a write on a full disk; empty where none was needed. With room again, the same write works."""
    sentence = ""
    home.mkdir()
    attempt = kind(home)
    with small_disk.full(home.parent):
        before = {path for path in home.rglob("*") if path.is_file()}
        try:
            attempt()
        except (StoreError, ConfigError) as error:
            sentence = str(error)
        new = {path.name for path in home.rglob("*") if path.is_file()} - {path.name for path in before}
        assert not {name for name in new if "part" in name or "backup" in name}, f"leftovers: {new}"
    attempt()
    return sentence


def looked_at_read_only(disk: Path) -> list[str]:
    """What stores say that nobody may write: one as it was closed, one with a log, and one of the first version."""
    finished(disk / "clean")
    run_id = finished(disk / "open")
    (disk / "cut").mkdir()
    (disk / "old").mkdir()
    store = RunStore(disk / "open")
    store.rename(run_id, "in the log")
    for ending in ("", "-wal"):  # as they lie there when the machine loses its power
        shutil.copyfile(disk / "open" / f"lethe.db{ending}", disk / "cut" / f"lethe.db{ending}")
    store.close()
    writes.migration(disk / "old")
    gc.collect()  # what is still open for writing would keep the disk from it
    small_disk.make_read_only(disk)
    told = []
    for name in ("clean", "cut", "old"):
        looked = RunStore(disk / name)
        run = looked.runs()[0]
        assert len(looked.points(run["id"])) and len(looked.responses(run["id"])) and looked.checkpoints(run["id"])
        try:
            looked.rename(run["id"], "another")
        except StoreError as error:
            assert str(error) == looked.notice
        told.append(f"{run['name']}: {looked.notice}")
        looked.close()
    return told


def main(folder: str) -> int:
    disk = Path(folder)
    try:
        small_disk.mount(disk, MEGABYTES)
    except small_disk.NotAllowed:
        return NOT_ALLOWED
    answers: dict[str, Any] = {}
    for kind in (*writes.SAYS, *writes.DOES_WITHOUT):
        try:
            answers[kind.__name__] = tried(kind, disk / kind.__name__)
        except Exception:
            answers[kind.__name__] = traceback.format_exc()
        shutil.rmtree(disk / kind.__name__, ignore_errors=True)
    answers["read only"] = looked_at_read_only(disk)
    print(json.dumps(answers))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
