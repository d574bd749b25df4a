"""A branch has the numbers of an uninterrupted run with its change: from a whole state, between two, before any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from storage import RunStore, StoreError
from storage.branches import branch_run
from unlearn_core.running.worker import Worker
from unlearn_core.settings.run_config import RunConfig
from unlearn_core.training.engine import open_unlearner

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

STEPS = 8
FASTER = {"optimizer.learning_rate": 3e-3}


def driven(store: RunStore, run_id: str, resume: bool = False) -> None:
    worker = Worker(store, lambda config, report: open_unlearner(config, report), only=run_id, resume=resume)
    worker.start()
    worker.join(120)
    assert (store.run(run_id) or {})["status"] == "finished", store.run(run_id)


def begun(store: RunStore, config: RunConfig) -> str:
    prompts = [{"role": prompt.role, "text": prompt.text} for prompt in config.prompts]
    facts: dict[str, Any] = {"target": config.data.target, "method": config.method.name, "seed": config.seed}
    return store.create_run(name=config.name, config=config.to_dict(), provenance={}, prompts=prompts, **facts)


def picture(store: RunStore, run_id: str) -> dict[str, Any]:
    """Numbers, answers and values per example of a run, but not how long anything took."""
    points, answers = store.points(run_id), store.responses(run_id)
    with store.read() as conn:
        query = "SELECT step, metric, example_id, value FROM examples WHERE run_id = ? ORDER BY 1, 2, 3"
        examples = conn.execute(query, (run_id,)).fetchall()
    return {
        "points": points[points.name != "step_seconds"].to_csv(index=False, float_format="%r"),
        "answers": answers.drop(columns=["seconds", "prompt_id"]).to_csv(index=False),
        "examples": [tuple(row) for row in examples],
    }


@pytest.fixture(scope="module")
def config(tiny) -> RunConfig:
    schedule = {"steps": STEPS, "checkpoint_every": 3, "sample_every": 2, "evaluate_every": 2, "answer_tokens": 4}
    few = {"retain_chunks": 10, "holdout_chunks": 3, "neighbour_chunks": 3}
    unguarded = {"collapse": False, "forgotten_enough": False, "retain_budget": 0.0}
    return tiny.config(method={"name": "npo"}, schedule=schedule, data=few, guard=unguarded)


@pytest.fixture(scope="module")
def parent(config, tmp_path_factory) -> tuple[RunStore, str]:
    store = RunStore(tmp_path_factory.mktemp("branches"))
    run_id = begun(store, config)
    driven(store, run_id)
    yield store, run_id
    store.close()


@pytest.mark.parametrize("step", [6, 7, 2])
def test_a_branch_has_the_numbers_of_an_uninterrupted_run_with_its_change(parent, config, step):
    """At a whole state, between two, and before the oldest that is kept."""
    store, run_id = parent
    before = picture(store, run_id)
    changed = config.changed(step + 1, FASTER)
    child, resume = branch_run(store, run_id, step, changed.to_dict(), "a branch")
    whole = [row["step"] for row in store.checkpoints(run_id) if row["complete"]]
    assert resume == (step >= min(whole)) and (store.run(child) or {})["parent_step"] == step
    driven(store, child, resume)
    twin = begun(store, changed)
    driven(store, twin)
    assert picture(store, child) == picture(store, twin)
    assert picture(store, run_id) == before and picture(store, child)["points"] != before["points"]
    assert [event["step"] for event in store.events(child) if event["kind"] == "changed"] == [step + 1]


def test_a_branch_of_a_damaged_state_takes_the_one_before_and_one_of_no_step_is_refused(parent, config):
    store, run_id = parent
    whole = [row for row in store.checkpoints(run_id) if row["complete"]]
    state: Path = store.home / whole[-1]["path"] / "state.safetensors"
    kept = state.read_bytes()
    state.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    child, resume = branch_run(store, run_id, STEPS, config.to_dict(), "a branch")
    assert resume and (store.run(child) or {})["last_step"] == whole[-2]["step"]
    state.write_bytes(kept)
    runs = len(store.runs())
    for step in (-1, STEPS + 1):
        with pytest.raises(StoreError, match="its steps are 0 to 8"):
            branch_run(store, run_id, step, config.to_dict(), "a branch")
    assert len(store.runs()) == runs
