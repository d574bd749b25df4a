"""The columns of Compare: which run at which step, and what was answered there. Plain data, no drawing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pages.run import answers
from pages.run.view import View
from unlearn_core.settings.home import lies_within

LETTERS = "abcd"


@dataclass(frozen=True)
class Column:
    """One run at one step. `letter` names it on the page and in the address."""

    letter: str
    view: View
    step: int

    @property
    def title(self) -> str:
        return f"{self.letter.upper()} · step {self.step}"

    def checkpoint(self, home: Path) -> dict[str, Any] | None:
        """The newest checkpoint at or before the step, else the first after it; None where its files are gone."""
        rows = self.view.checkpoints
        row = next((r for r in reversed(rows) if r["step"] <= self.step), rows[0] if rows else None)
        return row if row and lies_within(home, row["path"]) else None


@dataclass(frozen=True)
class Cell:
    """An answer (or, with `text` None, why there is none) and what there is to say about it."""

    text: str | None
    note: str = ""


@dataclass(frozen=True)
class Row:
    role: str
    prompt: str
    cells: tuple[Cell, ...]

    @property
    def differs(self) -> bool:
        return len({cell.text for cell in self.cells}) > 1


def step_in(text: str) -> int | None:
    """A step as it stands in an address; None where it is none."""
    return int(text) if text.isdecimal() and len(text) < 10 else None


def parse(address: Mapping[str, str]) -> list[tuple[str, int]]:
    """The columns named in the address, a=run@step ...; what cannot be read is left out."""
    return [column for letter in LETTERS if (column := _named(address.get(letter, "")))]


def unreadable(address: Mapping[str, str]) -> list[str]:
    """What stands in the address in a column's place and names no step of a run."""
    return [address[letter] for letter in LETTERS if address.get(letter) and not _named(address[letter])]


def _named(text: str) -> tuple[str, int] | None:
    run_id, _, written = text.rpartition("@")
    step = step_in(written)
    return (run_id, step) if run_id and step is not None else None


def rows(columns: list[Column], home: Path) -> list[Row]:
    """Every question that is asked in any column, then every one that was asked afterwards."""
    order = ("forget", "neighbour", "retain", "free")
    asked: dict[tuple[str, str], tuple[int, int]] = {}
    for column in columns:
        for prompt in column.view.asked_at(column.step):
            asked.setdefault((prompt["role"], prompt["text"]), (order.index(prompt["role"]), prompt["slot"]))
    of_prompts = [
        Row(role, text, tuple(_sampled(column, role, text) for column in columns))
        for role, text in sorted(asked, key=asked.__getitem__)
    ]
    probes = {p["text"]: None for column in columns for p in column.view.prompts if is_probe(p)}
    return of_prompts + [Row("free", text, tuple(_probed(column, text, home) for column in columns)) for text in probes]


def is_probe(prompt: Mapping[str, Any]) -> bool:
    """A question that was asked once of chosen steps and is not one of the run's."""
    return bool(prompt["role"] == "free" and prompt["from_step"] == 0 and prompt["to_step"] == 0)


def _sampled(column: Column, role: str, text: str) -> Cell:
    here = column.view.asked_at(column.step)
    prompt = next((p for p in here if p["text"] == text and p["role"] == role), None)
    if prompt is None:
        return _before_it_was_asked(column, role, text) or Cell(None, "not asked at this step")
    row = column.view.answer(prompt["id"], column.step)
    if row is None:
        return Cell(None, "not answered yet")
    notes = [answers.verdict(column.view, prompt, row["text"])] if row["step"] else []
    if row["step"] != column.step:
        notes.append(f"Answered at step {row['step']}, the last time it was asked.")
    return Cell(row["text"], " ".join(filter(None, notes)))


def _before_it_was_asked(column: Column, role: str, text: str) -> Cell | None:
    """What the model before step 1 answers to a wording that was asked later: each is put to it as well."""
    later = [p for p in column.view.prompts if p["text"] == text and p["role"] == role and not is_probe(p)]
    row = column.view.answer(later[0]["id"], 0) if later and column.step == 0 else None
    return Cell(row["text"], f"Asked in these words since step {later[0]['from_step']}.") if row else None


def _probed(column: Column, text: str, home: Path) -> Cell:
    prompt = next((p for p in column.view.prompts if is_probe(p) and p["text"] == text), None)
    checkpoint = column.checkpoint(home)
    given = column.view.answers
    if prompt is not None and checkpoint is not None:
        for row in given.get(checkpoint["step"], ()):
            if row["prompt_id"] == prompt["id"]:
                return Cell(row["text"], _answered_by(checkpoint["step"], column.step))
    waiting = [
        c for c in column.view.commands if c["kind"] == "probe" and not c["done_at"] and c["payload"]["text"] == text
    ]
    if waiting:
        return Cell(None, "being asked")
    if checkpoint is None and prompt is not None:
        for step in sorted(given, key=lambda step: abs(step - column.step)):
            for row in given[step]:
                if row["prompt_id"] == prompt["id"]:
                    return Cell(row["text"], f"answered by the checkpoint of step {step}, which is gone")
    return Cell(None, "not asked of this step")


def _answered_by(checkpoint_step: int, step: int) -> str:
    if checkpoint_step == step:
        return "answered by this step's checkpoint"
    return f"answered by the nearest checkpoint, of step {checkpoint_step}"


def cannot_ask(columns: list[Column], home: Path) -> str | None:
    """Why no new question can be asked of these columns, None where it can."""
    for column in columns:
        if not column.view.checkpoints:
            return f"{column.title} has no checkpoint yet, so nothing can answer there."
        if column.checkpoint(home) is None:
            return f"The checkpoint near {column.title} is gone from the disk; what it answered can still be read."
    return None
