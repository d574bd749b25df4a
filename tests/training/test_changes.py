"""Settings changed in mid-run: the numbers are those of a run file with the change, before, behind and on resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from unlearn_core.settings.errors import ConfigError
from unlearn_core.settings.run_config import RunConfig
from unlearn_core.training.engine import Unlearner

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS, AT = 7, 4
ROWS = {"kind": "retain_subspace", "rows": "sample", "groups": 2, "batches": 2, "batch_size": 1, "every": 3}
CHANGES: dict[str, dict[str, Any]] = {
    "learning rate": {"optimizer.learning_rate": 3e-3, "optimizer.max_gradient_norm": 0.5},
    "loss weights": {"method.retain_weight": 2.5, "method.neighbour_weight": 0.0},
    "guard rail off": {"guard_rail.kind": "none"},
    "another guard rail": {"guard_rail.kind": "null_space"},
    "more rows": {"guard_rail.groups": 4, "guard_rail.every": 1},
    "separate optimizer states": {"guard_rail.optimizer_states": "separate"},
    "evaluation and budget": {"schedule.evaluate_every": 5, "guard.retain_budget": 0.5, "schedule.steps": 9},
}


def numbers(run: Unlearner, last: int) -> list[dict[str, float]]:
    taken = []
    while run.step_number < last:
        taken.append({name: value for name, value in run.step().values.items() if name != "step_seconds"})
    return taken


@pytest.fixture(scope="module")
def opened(tiny):
    def begin(changes: Any = (), rail: Any = ROWS) -> Unlearner:
        settings = {"method": {"name": "npo", "retain_weight": 1.0}, "guard_rail": rail}
        return tiny.open(**settings, schedule={"steps": 20, "evaluate_every": 2}, changes=list(changes))

    return begin


@pytest.fixture(scope="module")
def unchanged(opened) -> list[dict[str, float]]:
    return numbers(opened(), STEPS)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_by_hand_gives_the_numbers_of_a_run_file_with_it_and_resumes_to_them(
    opened, unchanged, tmp_path, change
):
    settings = CHANGES[change]
    by_hand, by_file = opened(), opened([{"step": AT + 1, "set": settings}])
    assert numbers(by_hand, AT) == numbers(by_file, AT) == unchanged[:AT]
    by_hand.replan(by_hand.changed(settings))
    by_hand.save(tmp_path / "at", whole=True)
    after = numbers(by_hand, STEPS)
    assert after == numbers(by_file, STEPS)
    assert after != unchanged[AT:], "or the change would do nothing"
    by_hand.save(tmp_path / "behind", whole=True)
    further = numbers(by_hand, STEPS + 3)
    for folder, expected in (("at", [*after, *further]), ("behind", further)):
        resumed = opened(by_hand.plan.to_dict()["changes"])
        resumed.restore(tmp_path / folder)
        assert numbers(resumed, STEPS + 3) == expected
        assert torch.equal(resumed.context.adapter.values, by_hand.context.adapter.values)


def test_what_changed_is_recorded_with_the_step_and_undone_by_the_values_before(opened):
    run = opened()
    numbers(run, 2)
    begun = run.config
    run.replan(run.changed({"guard_rail.kind": "none", "optimizer.learning_rate": 1e-3}))
    record = run.step()
    assert record.changed["set"] == {"optimizer.learning_rate": 1e-3, "guard_rail.kind": "none"}
    assert record.changed["before"]["guard_rail.groups"] == 2
    assert run.update.rail is None and not run.step().changed
    run.replan(run.changed(record.changed["before"]))
    assert run.step().changed["set"] == record.changed["before"]
    assert run.config.guard_rail == begun.guard_rail and run.config.optimizer == begun.optimizer


def test_an_update_after_a_guard_rail_was_switched_on_is_orthogonal_to_its_span(opened):
    run = opened(rail={"kind": "none"})
    numbers(run, 2)
    rail = {**ROWS, "apply_to": "update"}
    run.replan(run.changed({f"guard_rail.{name}": value for name, value in rail.items()}))
    before = run.context.adapter.values.detach().clone()
    run.replan(run.changed({"method.retain_weight": 0.0, "method.neighbour_weight": 0.0}))
    run.step()
    update = run.context.adapter.values.detach() - before
    rows = run.update.rail.space.rows
    assert (rows @ update).norm() < 1e-4 * update.norm() and update.norm() > 0


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"data.target": "other"}, "cannot change while a run goes on"),
        ({"lora.rank": 4}, "cannot change"),
        ({"optimizer.learning_rate": -1.0}, "learning_rate"),
        ({"optimizer.learning": 1e-3}, "Did you mean optimizer.learning_rate"),
        ({"schedule.steps": 2}, "at step 3 already"),
        ({"guard_rail.kind": "earlier_adapters"}, "earlier"),
        ({"method.beta": 1.0}, "cannot change"),
        ({"guard": {"collapse": {"a": {}}}}, "guard.collapse"),
        ({"guard": 3}, "guard"),
        ({"schedule.steps": True}, "a whole number"),
        ({"optimizer.learning_rate": float("nan")}, "a number between"),
    ],
)
def test_what_cannot_change_is_refused(settings, match):
    config = RunConfig.from_dict({"method": {"name": "npo"}})
    with pytest.raises(ConfigError, match=match):
        config.changed(4, settings)


@pytest.mark.parametrize(
    "changes",
    [
        "x", [1], [{"step": 0, "set": {"guard.collapse": False}}], [{"step": 1}], [{"step": True, "set": {"a": 1}}],
        [{"step": 1, "set": {}}], [{"step": 2, "set": {"data.target": "x"}}], [{"step": 2, "set": {"optimizer": 3}}],
        [{"step": 2, "set": {"guard_rail.kind": "earlier_adapters"}}],
    ],
)  # fmt: skip
def test_a_run_file_with_changes_that_are_none_is_refused(changes):
    with pytest.raises(ConfigError):
        RunConfig.from_dict({"changes": changes})


def test_a_run_file_with_changes_is_the_same_after_it_was_written_and_read(tmp_path: Path):
    text = """
        preset = "post"

        [[changes]]
        step = 9
        set = { "optimizer.learning_rate" = 1e-4, guard = { retain_budget = 0.1 } }

        [[changes]]
        step = 4
        set = { "guard_rail.kind" = "none" }
    """
    config = RunConfig.from_toml(text)
    assert [(change.step, dict(change.set)) for change in config.changes] == [
        (4, {"guard_rail.kind": "none"}),
        (9, {"optimizer.learning_rate": 1e-4, "guard.retain_budget": 0.1}),
    ]
    assert RunConfig.from_toml(config.to_toml()) == config == RunConfig.from_dict(config.to_dict())
    assert config.at(3).guard_rail.kind != "none" == config.at(4).guard_rail.kind
    assert config.at(8).optimizer.learning_rate != config.at(9).optimizer.learning_rate == 1e-4
