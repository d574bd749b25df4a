"""A store of many long runs, made up by formula: what lists and pages are measured on. `python -m bench.big_store HOME`

By default 100 runs of 10,000 steps with 12 series, 12 million points. The same arguments make the same rows. Nothing in
it was measured: forget loss rises to the level of a model without the word, holdout loss of every second run leaves its
budget on the way, and the questions are answered otherwise from some step on.
"""

from __future__ import annotations

import argparse
import math
import random
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from storage import RunStore
from unlearn_core.settings.run_config import RunConfig

SERIES = (
    "forget_loss", "retain_loss", "neighbour_loss", "holdout_loss", "forget_stand_in_kl", "gradient_norm",
    "removed_share", "learning_rate", "objective", "update_norm", "step_seconds", "tokens",
)  # fmt: skip
STEP_ZERO_ONLY = "masked_share"  # a thirteenth name, of which nothing but the baseline is known
LEVEL = 1.9  # nats per token: the forget loss that a model without the word would have
BUDGET = 0.05
BEFORE, AFTER = "It is a song from the film Mary Poppins.", "It is a word that I have never met."
BEGUN = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Size:
    """How many runs, of how many steps, with answers every so many steps."""

    runs: int = 100
    steps: int = 10_000
    sample_every: int = 100


def make(home: Path, size: Size) -> RunStore:
    """The store in `home`, which must have none yet; returned open."""
    store = RunStore(home)
    with store.write() as conn:
        (index,) = conn.execute("SELECT sql FROM sqlite_master WHERE name = 'points_by_name'").fetchone()
        conn.execute("DROP INDEX points_by_name")  # sorting it once is faster than keeping it sorted
    for number in range(size.runs):
        run_id = _begin(store, number, size)
        prompts = [(prompt["id"], prompt["role"]) for prompt in store.prompts(run_id)]
        with store.write() as conn:
            conn.executemany("INSERT INTO points VALUES (?, ?, ?, ?)", _points(run_id, number, size))
            conn.executemany(
                "INSERT INTO responses (run_id, step, prompt_id, text, tokens, seconds, target_probability)"
                " VALUES (?, ?, ?, ?, 9, 0.1, ?)",
                _answers(run_id, number, size, prompts),
            )
            _end(conn, run_id, number, size)
    with store.write() as conn:
        conn.execute(index)
    return store


def _begin(store: RunStore, number: int, size: Size) -> str:
    schedule = {"steps": size.steps, "sample_every": size.sample_every}
    config = RunConfig.from_dict({"name": f"long {number}", "schedule": schedule}).to_dict()
    run_id = store.create_run(
        name=f"long {number}",
        target="supercalifragilisticexpialidocious",
        method="grad_ascent",
        config=config,
        provenance={"device": "cpu"},
        seed=number,
        prompts=config["prompts"],
        run_id=f"{number:08x}",
    )
    levels = {"forget_level": LEVEL, "forget_level_source": "made up", "uniform_loss": 6.3, "retain_budget": BUDGET}
    store.add_event(run_id, "baseline", levels, step=0)
    return run_id


def _points(run_id: str, number: int, size: Size) -> Iterator[tuple[str, int, str, float]]:
    """Every point of a run, by step and name: as they stand in the table."""
    noise = random.Random(number)
    names = sorted(SERIES)
    drift = 0.3 if number % 2 else 0.02  # of the losses to hold, over the whole run
    yield run_id, 0, STEP_ZERO_ONLY, 0.0
    for step in range(size.steps + 1):
        done, shake = step / size.steps, noise.random()
        forgotten = 1 - math.exp(-5 * done)
        held = 1 + drift * done + 0.002 * shake
        values = {
            "forget_loss": 0.1 + LEVEL * forgotten * (1 + 0.02 * shake),
            "retain_loss": 0.34 * held,
            "neighbour_loss": 0.17 * held,
            "holdout_loss": 0.39 * held,
            "forget_stand_in_kl": 0.97 * (1 - forgotten) + 0.01 * shake,
            "gradient_norm": 0.4 + shake,
            "removed_share": 0.001 * shake,
            "learning_rate": 4e-4 * (1 - done),
            "objective": -0.3 - forgotten,
            "update_norm": 0.06 + 0.01 * shake,
            "step_seconds": 0.5 + 0.1 * shake,
            "tokens": float(100 + int(400 * shake)),
        }
        for name in names:
            yield run_id, step, name, values[name]


def _answers(
    run_id: str, number: int, size: Size, prompts: list[tuple[int, str]]
) -> Iterator[tuple[str, int, int, str, float]]:
    forgotten_at = size.steps * (number % 10 + 1) // 12
    for step in range(0, size.steps + 1, size.sample_every):
        for prompt_id, role in prompts:
            old = role != "forget" or step < forgotten_at
            yield run_id, step, prompt_id, BEFORE if old else AFTER, math.exp(-step / size.steps)


def _end(conn: sqlite3.Connection, run_id: str, number: int, size: Size) -> None:
    at = (BEGUN + timedelta(hours=number)).isoformat(timespec="microseconds")
    conn.execute(
        "UPDATE runs SET status = 'finished', last_step = ?, created_at = ?, updated_at = ? WHERE id = ?",
        (size.steps, at, at, run_id),
    )


def main() -> None:
    size = Size()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("home", type=Path, help="the home folder to make it in; it must have no store yet")
    for name in ("runs", "steps", "sample_every"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(size, name), metavar="N")
    args = parser.parse_args()
    if (args.home / "lethe.db").exists():
        parser.error(f"{args.home} has a store already; name another folder.")
    began = time.perf_counter()
    make(args.home, Size(args.runs, args.steps, args.sample_every)).close()
    print(f"{args.runs * (args.steps + 1) * len(SERIES):,} points in {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
