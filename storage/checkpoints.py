"""Checkpoints: their steps, their folders in the home, and whether these hold what was saved."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from storage import checkpoint_files
from storage.connection import Connection, StoreError, dicts
from unlearn_core.settings.disk import full_disk, remove
from unlearn_core.settings.home import Outside, within

FOLDER = "checkpoints"  # of the home


class Checkpoints(Connection):
    """The checkpoints of every run. Each path that the store has is resolved, and refused outside of their folder."""

    def checkpoints(self, run_id: str) -> list[dict[str, Any]]:
        """The run's checkpoints by step; `path` is relative to the home folder, `complete` means resumable."""
        with self.read() as conn:
            rows = dicts(conn.execute("SELECT * FROM checkpoints WHERE run_id = ? ORDER BY step, id", (run_id,)))
        return [{**row, "complete": bool(row["complete"]), "pinned": bool(row["pinned"])} for row in rows]

    def nearest_checkpoint(self, run_id: str, step: int, complete: bool | None = None) -> dict[str, Any] | None:
        """The newest checkpoint at or before `step`, else the first after it; `complete` narrows the choice."""
        rows = [row for row in self.checkpoints(run_id) if complete is None or row["complete"] == complete]
        before = [row for row in rows if row["step"] <= step]
        return before[-1] if before else rows[0] if rows else None

    # ------------------------------------------------------------------------------------------------ reading them

    def checkpoint_folder(self, row: Mapping[str, Any]) -> Path:
        """Where a checkpoint lies, all links followed. Raises StoreError where that is not among the checkpoints."""
        with suppress(Outside):
            folder, among = within(self.home, row["path"]), within(self.home, FOLDER)
            if folder != among and folder.is_relative_to(among):
                return folder
        path = str(row["path"])[:200]
        raise StoreError(
            f"The store says that the checkpoint of step {row['step']} is {path!r}, which leads out of "
            f"{self.home / FOLDER}: it is not used."
        )

    def has_checkpoint(self, row: Mapping[str, Any]) -> bool:
        """Whether its folder is there, with its state where it is complete. What the files hold is not looked at."""
        try:
            folder = self.checkpoint_folder(row)
        except StoreError:
            return False
        return (folder / checkpoint_files.STATE[0]).is_file() if row["complete"] else folder.is_dir()

    def verified_checkpoint(self, row: Mapping[str, Any], whole: bool = False) -> Path:
        """The folder of a checkpoint, after its files were found to be those that were saved, by their SHA-256.

        Of its adapter; with `whole`, of the state as well. Raises StoreError where they are gone, damaged or others.
        """
        folder, name = self.checkpoint_folder(row), f"The checkpoint of step {row['step']}"
        if not folder.is_dir() or (whole and not self.has_checkpoint(row)):
            gone = f"the adapter of {folder.name} is not there any more" if not folder.is_dir() else "its state is gone"
            raise StoreError(f"{name} cannot be used: {gone}; what it answered can be read, not asked anew.")
        try:
            all_files, adapter = checkpoint_files.seals(folder)
        except OSError as error:
            raise StoreError(f"{name} cannot be used: {error.strerror or error}.") from error
        if not (_is_whole(row, all_files) if whole else _has_its_adapter(row, all_files, adapter)):
            raise StoreError(
                f"{name} is damaged: the files of {folder.name} are not those that were saved (their SHA-256 is not "
                "the one in the store), so it is not used."
            )
        return folder

    # ------------------------------------------------------------------------------------------------ writing them

    def write_checkpoint(
        self, run_id: str, step: int, whole: bool, write: Callable[[Path], None], owner: str
    ) -> dict[str, Any]:
        """Has `write` fill a folder beside the checkpoint's place, the owner's own; returns the row for `append_step`.

        Raises StoreError where the disk refuses it.
        """
        path = f"{FOLDER}/{run_id}/step-{step:06d}"
        folder = self.checkpoint_folder({"step": step, "path": path})
        with self._refusals(step, folder):
            all_files, adapter = checkpoint_files.fill(checkpoint_files.part_of(folder, owner), write, flush=whole)
        row = {"path": path, "bytes": all_files.bytes, "sha256": all_files.sha256, "complete": whole}
        return {**row, "step": step, "adapter_sha256": adapter.sha256}

    def place_checkpoint(self, row: Mapping[str, Any], owner: str) -> None:
        """What `write_checkpoint` has written takes its place, inside the transaction that has its row.

        What it replaces stays beside it until `tidy_checkpoints`. Raises StoreError where the disk refuses it, with
        what stood there as it was.
        """
        folder = self.checkpoint_folder(row)
        with self._refusals(row["step"], folder):
            checkpoint_files.place(checkpoint_files.part_of(folder, owner), folder, flush=bool(row["complete"]))

    def discard_checkpoint(self, row: Mapping[str, Any], owner: str) -> None:
        """Removes what `write_checkpoint` has written where it has not got to its place."""
        with suppress(OSError, StoreError):
            remove(checkpoint_files.part_of(self.checkpoint_folder(row), owner))

    @contextmanager
    def _refusals(self, step: int, folder: Path) -> Iterator[None]:
        """What a disk refuses, in a sentence."""
        try:
            yield
        except Exception as error:
            name = f"The checkpoint of step {step}"
            if sentence := full_disk(error, folder.parent):
                raise StoreError(f"{name} could not be written. {sentence}") from error
            if isinstance(error, OSError):
                raise StoreError(f"{name} could not be written: {error.strerror or error}.") from error
            raise

    def shrink_checkpoint(self, checkpoint_id: int) -> None:
        """Leaves of a checkpoint its adapter alone."""
        with self.read() as conn:
            rows = dicts(conn.execute("SELECT * FROM checkpoints WHERE id = ?", (checkpoint_id,)))
        for row in rows:
            values = {"id": checkpoint_id, "bytes": row["bytes"], "adapter_sha256": row.get("adapter_sha256")}
            with suppress(OSError, StoreError):
                folder = self.checkpoint_folder(row)
                values["bytes"] = checkpoint_files.adapter_bytes(folder)
                if not values["adapter_sha256"]:  # of a store before 0.4
                    whole, adapter = checkpoint_files.seals(folder)
                    # Of a checkpoint that is damaged already, the damage must not become what it should be.
                    right = _has_its_adapter(row, whole, adapter)
                    values["adapter_sha256"] = adapter.sha256 if right else row["sha256"]
            with self.write() as conn:
                changes = "complete = 0, bytes = :bytes, adapter_sha256 = :adapter_sha256"
                conn.execute(f"UPDATE checkpoints SET {changes} WHERE id = :id", values)
            with suppress(OSError, StoreError):
                checkpoint_files.shrink(self.checkpoint_folder(row))

    def remove_checkpoints(self, run_id: str, paths: Iterable[str]) -> None:
        """Deletes the folders of checkpoints; one that does not lie in the run's own folder stays."""
        for path in paths:
            with suppress(Outside, OSError):
                folder, own = within(self.home, path), within(self.home, f"{FOLDER}/{run_id}")
                if folder.parent == own and own.parent == within(self.home, FOLDER):
                    remove(folder)

    def tidy_checkpoints(self, run_id: str, after_a_driver: bool = False) -> None:
        """Removes what was replaced, and what is half written. For who holds the run.

        `after_a_driver`: one that may have died between a checkpoint's row and its files, so that some did not shrink.
        """
        rows = {Path(row["path"]).name: row for row in self.checkpoints(run_id)}

        def is_right(folder: Path, name: str) -> bool:
            with suppress(OSError, KeyError):
                row, (whole, adapter) = rows[name], checkpoint_files.seals(folder)
                return _is_whole(row, whole) if row["complete"] else _has_its_adapter(row, whole, adapter)
            return False

        with suppress(Outside, OSError):
            folder = within(self.home, f"{FOLDER}/{run_id}")
            checkpoint_files.settle(folder, is_right)
            for name in (name for name, row in rows.items() if after_a_driver and not row["complete"]):
                with suppress(Outside):
                    checkpoint_files.shrink(within(folder, name))


def _is_whole(row: Mapping[str, Any], whole: checkpoint_files.Seal) -> bool:
    """Whether files are those of a checkpoint that a run can go on from."""
    return bool(row["complete"] and whole.sha256 == row["sha256"])


def _has_its_adapter(row: Mapping[str, Any], whole: checkpoint_files.Seal, adapter: checkpoint_files.Seal) -> bool:
    """Whether files have a checkpoint's adapter. What shrank before adapters had a hash counts as right."""
    if own := row.get("adapter_sha256"):
        return bool(adapter.sha256 == own)
    if row["complete"]:
        return bool(whole.sha256 == row["sha256"])
    return bool(adapter.sha256 == row["sha256"] or adapter.bytes < row["bytes"])
