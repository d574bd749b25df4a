"""Metrics against what the library computes, one value per example in the store, and one file per metric."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pages.shared.recorded import RECORDED
from storage import RunStore
from tests.conftest import ROOT, Tiny
from tests.scripted import until
from unlearn_core.methods import METHODS
from unlearn_core.metrics import LOSS, METRICS, SETS, budgeted
from unlearn_core.metrics.shared.evaluate import evaluate
from unlearn_core.running.worker import Worker
from unlearn_core.training.engine import open_unlearner

pytestmark = pytest.mark.usefixtures("one_thread")
EXAMPLE = re.compile(r"```python\n# (unlearn_core/metrics/top_token_share\.py)\n(.*?)```", re.DOTALL)
NEVER = {"retain_budget": 0.0, "forgotten_enough": False, "collapse": False}
LOOK = """
import json, sys
from pages.run.gauges import GAUGES
print(json.dumps({"label": GAUGES["holdout_top_token_share"].label, "torch": "torch" in sys.modules}))
"""


def test_a_window_s_loss_is_the_library_s_and_a_set_s_is_the_mean_over_its_tokens(tiny: Tiny):
    run = tiny.open()
    for _ in range(2):
        run.step()
    windows, model = run.evaluation, run.context.model.eval()
    measured = evaluate(model, windows)
    totals, counts = dict.fromkeys(windows.names, 0.0), dict.fromkeys(windows.names, 0)
    assert set(windows.names) == set(SETS) and len(set(windows.ids)) == len(windows.ids)
    for name, id, window in zip(windows.names, windows.ids, windows.tokens.windows, strict=True):
        ids = torch.tensor([window.ids])
        labels = ids.clone()
        labels[:, : window.first_loss] = -100
        with torch.no_grad():
            theirs = model(input_ids=ids, labels=labels).loss.item()
        assert measured[LOSS.point(name)].examples[id] == pytest.approx(theirs, rel=1e-4)
        count = int((labels[:, 1:] != -100).sum())
        totals[name], counts[name] = totals[name] + theirs * count, counts[name] + count
    for name in SETS:
        assert measured[LOSS.point(name)].value == pytest.approx(totals[name] / counts[name], rel=1e-4)
        assert len(measured[LOSS.point(name)].examples) == windows.names.count(name)


def test_the_probability_of_answers_is_a_geometric_mean_and_none_without_any():
    metric = METRICS["answer_probability"]
    assert metric.of_answers([0.25, 1.0]) == pytest.approx(0.5)
    assert metric.of_answers([]) is None and metric.of_answers([0.0]) is None
    assert metric.of_answers([0.0, 0.3]) == pytest.approx(0.3), "an answer without a probability is left out"


def test_the_budget_is_counted_on_the_holdout_where_there_is_one():
    assert budgeted({"holdout_loss", "retain_loss"}) == "holdout_loss" and budgeted(["retain_loss"]) == "retain_loss"


def test_everything_that_a_page_shows_is_in_the_docs_with_a_help_that_is_a_sentence():
    documented = set(re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "metrics.md").read_text("utf-8"), re.MULTILINE))
    assert RECORDED.keys() <= documented
    assert all(gauge.help.endswith(".") and gauge.help[0].isupper() for gauge in RECORDED.values())


def test_a_value_per_example_is_stored_with_the_answers_and_taken_back_with_the_step(tiny: Tiny, tmp_path: Path):
    store = RunStore(tmp_path)
    config = tiny.config(schedule={"steps": 3, "sample_every": 2, "checkpoint_every": 1}, guard=NEVER).to_dict()
    facts = {"target": tiny.target, "method": "grad_ascent", "config": config, "provenance": {}, "seed": 0}
    run_id = store.create_run(name="a", prompts=config["prompts"], **facts)
    worker = Worker(store, open_unlearner)
    worker.start()
    until(lambda: store.run(run_id)["status"] == "finished", 60)
    worker.stop()
    assert {row["step"] for row in store.examples(run_id)} == {0, 2, 3}
    points = store.points(run_id).set_index(["step", "name"])["value"]
    for step in (0, 2, 3):
        of_step = [row["value"] for row in store.examples(run_id, step) if row["metric"] == "retain_loss"]
        assert min(of_step) <= points[step, "retain_loss"] <= max(of_step) and len(of_step) > 1
    store.truncate_after(run_id, 2)
    assert {row["step"] for row in store.examples(run_id)} == {0, 2}
    store.close()


@pytest.mark.slow
def test_a_metric_is_added_by_one_file(program_with: Callable[[str, str], Path]):
    example = EXAMPLE.search((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    assert example
    root = program_with(example[1], example[2])
    look = subprocess.run([sys.executable, "-c", LOOK], cwd=root, capture_output=True, text=True, check=True)
    assert json.loads(look.stdout) == {"label": "holdout top-token share", "torch": False}
    settings = ("schedule.steps=2", "schedule.batch_size=2", "guard_rail.kind=none")
    chosen = [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, "cli.py", "run", *chosen, "--home", "data", "--json"]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    facts = json.loads(run.stdout)
    assert 0.9 < facts["baseline"]["forget_top_token_share"] <= 1, "the bundled model knows its texts by heart"
    show = [sys.executable, "cli.py", "show", facts["id"], "--home", "data"]
    shown = subprocess.run(show, cwd=root, capture_output=True, text=True, check=True).stdout
    assert "top-token share (%)" in shown


@pytest.mark.slow
def test_methods_say_what_they_record_beside_the_numbers_of_every_run(tiny: Tiny):
    run = tiny.open(method={"name": "ssd"}, where={"kind": "full"}, guard_rail={"kind": "none"})
    recorded = run.step().values.keys()
    assert {*METHODS["ssd"].facts.gauges, "dial"} <= recorded
