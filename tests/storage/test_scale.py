"""Runs of any length are read along an index, and lists of them read few points of each: no wall time is asserted."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench import big_store
from bench.big_store import Size
from pages.run import view
from pages.shared.standing import standing_of, standings
from storage import RunStore
from terminal.look import answers_at, side
from unlearn_core.training.milestones import milestones

LONG, SHORT = Size(runs=3, steps=4000, sample_every=400), Size(runs=3, steps=400, sample_every=40)
RUN = "00000001"


class Recorder:
    """A connection that notes every statement, and how many rows of points it gave."""

    def __init__(self, conn: sqlite3.Connection, store: RecordingStore) -> None:
        self._conn, self._store = conn, store

    def execute(self, query: str, values: Any = ()) -> Any:
        self._store.statements.append((query, values))
        cursor = self._conn.execute(query, values)
        if "points" not in query:
            return cursor
        rows = cursor.fetchall()
        self._store.points_read += len(rows)
        return self._conn.execute(query, values)


class RecordingStore(RunStore):
    """A store that counts what is read from it: statements, rows of points, and SQLite's own steps."""

    def __init__(self, home: Path) -> None:
        self.statements: list[tuple[str, Any]] = []
        self.points_read = self.work = 0
        super().__init__(home)

    @contextmanager
    def read(self) -> Iterator[Any]:
        with super().read() as conn:
            conn.set_progress_handler(self._worked, 10)
            yield Recorder(conn, self)

    def _worked(self) -> int:
        self.work += 10
        return 0


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two homes with runs of the same kind, of which one has ten times the steps."""
    made = {}
    for name, size in (("long", LONG), ("short", SHORT)):
        made[name] = tmp_path_factory.mktemp(name)
        big_store.make(made[name], size).close()
    return made


@pytest.fixture
def stores(homes: dict[str, Path]) -> Iterator[dict[str, RecordingStore]]:
    opened = {name: RecordingStore(home) for name, home in homes.items()}
    yield opened
    for store in opened.values():
        store.close()


READERS: dict[str, Callable[[RunStore], Any]] = {
    "last_points": lambda store: store.last_points(RUN),
    "last_points at a step": lambda store: store.last_points(RUN, 100),
    "earliest_points": lambda store: store.earliest_points(RUN),
    "first_points": lambda store: store.first_points(RUN),
    "series": lambda store: store.series(RUN, ["forget_loss"], after_step=100),
    "series_at": lambda store: store.series_at(RUN, ["forget_loss"], [0, 7, 90]),
    "above_since": lambda store: store.above_since(RUN, "holdout_loss", 0.4),
    "points": lambda store: store.points(RUN, after_step=100),
    "answers": lambda store: store.answers(RUN, after_step=100),
    "answers at a step": lambda store: store.answers(RUN, step=0),
    "responses at a step": lambda store: store.responses(RUN, step=0),
    "answered_step": lambda store: store.answered_step(RUN, 100),
    "examples": lambda store: store.examples(RUN, 0),
    "prompts": lambda store: store.prompts(RUN),
    "events": lambda store: store.events(RUN, after_id=1),
    "checkpoints": lambda store: store.checkpoints(RUN),
    "commands": lambda store: store.commands(RUN),
    "step_seconds_like": lambda store: store.step_seconds_like((store.run(RUN) or {})["config"]),
}
TABLES = ("points", "responses", "examples", "events", "checkpoints", "prompts", "commands")


@pytest.mark.parametrize("name", READERS)
def test_a_reader_of_one_run_searches_an_index_and_scans_no_table(stores: dict[str, RecordingStore], name: str) -> None:
    store = stores["short"]
    READERS[name](store)
    assert store.statements
    with sqlite3.connect(store.path) as conn:
        plans = [row[3] for each in store.statements for row in conn.execute(f"EXPLAIN QUERY PLAN {each[0]}", each[1])]
    conn.close()
    aliases = (*TABLES, "r", "p")
    assert not [plan for plan in plans if plan.split()[0] == "SCAN" and plan.split()[1] in aliases]
    assert any(plan.startswith("SEARCH") for plan in plans)


@pytest.mark.parametrize("name", ["last_points", "last_points at a step", "earliest_points", "first_points",
                                  "series_at", "answers at a step", "answered_step", "examples"])  # fmt: skip
def test_what_one_step_needs_costs_the_same_in_a_run_of_ten_times_the_steps(
    stores: dict[str, RecordingStore], name: str
) -> None:
    """Counted in SQLite's own steps. A name that stands at step 0 only is among those of `last_points`."""
    for store in stores.values():
        READERS[name](store)
    assert stores["long"].work <= 2 * stores["short"].work + 100
    assert "masked_share" in stores["long"].last_points(RUN)


def test_the_newest_and_the_first_of_each_name_equal_what_all_points_say(stores: dict[str, RecordingStore]) -> None:
    store = stores["short"]
    points = store.points(RUN)
    for step in (0, 1, 57, 400, 10**9):
        some = points[points.step <= step].groupby("name").last()["value"].to_dict()
        assert store.last_points(RUN, step) == some
    rows = points.groupby("name").first()
    assert store.earliest_points(RUN) == {name: (row.step, row.value) for name, row in rows.iterrows()}
    assert store.last_points("none") == {} == store.earliest_points("none")
    steps, values = store.series(RUN, ["tokens", "none"], after_step=390)["tokens"]
    tail = points[(points.name == "tokens") & (points.step > 390)]
    assert (list(steps), list(values)) == (tail.step.tolist(), tail.value.tolist())
    steps, values = store.series_at(RUN, ["tokens"], [-1, 5, 5, 10**9])["tokens"]
    assert list(steps) == [5, 400] and values[1] == tail.value.iloc[-1]


def test_a_list_of_runs_reads_no_more_points_of_longer_runs(stores: dict[str, RecordingStore]) -> None:
    read = {}
    for name, store in stores.items():
        standings(store, store.runs())
        read[name] = store.points_read
    assert 0 < read["long"] <= 1.1 * read["short"] < 3 * 400
    store, once = stores["long"], read["long"]
    standings(store, store.runs())
    assert store.points_read == once, "what did not change is not read again"
    store.claim(RUN, "elsewhere:1:x", 60)
    standings(store, store.runs())
    assert store.points_read > once, "one that is driven is read every time"


def test_a_view_reads_its_curves_once_and_then_only_what_is_new(stores: dict[str, RecordingStore]) -> None:
    store = stores["short"]
    first = view.load(store, RUN)
    assert first is not None and len(first.numbers) == len(view.CURVES) == 5
    curves = sum(len(steps) for steps, _ in first.numbers.values())
    assert store.points_read <= curves + 2 * 13
    before = store.points_read
    assert view.load(store, RUN) is first and store.points_read == before
    store.rename(RUN, "another name")
    second = view.load(store, RUN)
    assert second is not None and second.run["name"] == "another name"
    assert store.points_read - before <= 2 * (5 + 13) and second.numbers == first.numbers


def test_the_terminal_reads_one_step_of_a_run(stores: dict[str, RecordingStore]) -> None:
    for store in stores.values():
        assert side(store, f"{RUN}@40")["answers"] == answers_at(store, RUN, 40)
    assert stores["long"].points_read == stores["short"].points_read <= 13


def test_a_run_s_milestones_out_of_few_points_are_those_of_all_its_points(stores: dict[str, RecordingStore]) -> None:
    for store in stores.values():
        for run in store.runs():
            loaded = view.load(store, run["id"])
            assert loaded is not None and loaded.milestones() == standing_of(store, run).milestones
            assert loaded.milestones() == milestones(loaded.course, run["last_step"])
    assert any(standing_of(store, run).milestones.damaged for run in store.runs())


@pytest.mark.parametrize("seed", range(6))
def test_milestones_of_runs_with_gaps_relapses_damage_and_collapse_need_no_more_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Series that are measured now and then, that go up and down over every limit, against all their points."""
    monkeypatch.setattr("pages.shared.standing.TAIL", 5)
    chance, store = random.Random(seed), RunStore(tmp_path)
    run_id = store.create_run(
        name="r", target="word", method="grad_ascent", config={"guard": {"retain_budget": 0.05}}, provenance={}, seed=0,
        prompts=[{"role": "forget", "text": "What?"}, {"role": "retain", "text": "Who?"}],
    )  # fmt: skip
    every = {name: chance.choice((1, 2, 5)) for name in ("forget_loss", "holdout_loss", "retain_loss", "answers")}
    if seed % 4 == 0:
        every.pop("holdout_loss")
    asked, (held, loss) = store.prompts(run_id), (1.0, 0.1)
    store.add_event(run_id, "baseline", {"uniform_loss": 3.0, "forget_level": 2.0}, step=0)
    for step in range(60):
        held += chance.choice((-0.02, 0.0, 0.02, 0.03)) if step else 0.0
        loss = chance.choice((loss, loss + 0.5, 7.0, 1.0))
        points = {"forget_loss": loss, "holdout_loss": held, "retain_loss": held}
        there = {name: value for name, value in points.items() if name in every and step % every[name] == 0}
        text = chance.choice(("Mary Poppins", "a word", "no no no no no no no no no")) if step else "Mary Poppins"
        rows = [{"prompt_id": prompt["id"], "text": text} for prompt in asked] if step % every["answers"] == 0 else []
        store.append_step(run_id, step, points=there, responses=rows)
        if step % 12 == 11:
            run = store.run(run_id) or {}
            loaded = view.load(store, run_id)
            assert loaded is not None and standing_of(store, run).milestones == loaded.milestones()
    store.close()
