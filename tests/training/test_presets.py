"""What the two recipes must do to the bundled model. Slow: these are whole runs."""

import pytest

from bench.world_check import follow
from unlearn_core.settings.run_config import RunConfig
from unlearn_core.training.engine import Unlearner
from unlearn_core.training.stopping import repeats
from unlearn_core.world import FULL, SUGGESTED_TARGETS, TARGET, parts_named

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (FULL / "model.safetensors").exists(), reason="the bundled models are not built"),
]

LATE = {"Marie Curie": 250}  # steps of the default recipe until what is said of her has changed


def test_portmanteau_reaches_the_second_act_and_stays_for_200_further_steps():
    ends = RunConfig.from_dict({"preset": "portmanteau"}).schedule.steps
    further = {row["step"]: row for row in follow("portmanteau", ends + 200, every=50)}
    judged = [row for step, row in further.items() if step >= ends]
    assert max(further) == ends + 200 and len(judged) >= 4
    for row in judged:
        assert row["mentions"] == 0, row
        assert row["parts"] >= 3, row
        assert row["neighbour"] >= 0.95 and row["general"] >= 0.95, row
        assert row["holdout_loss change"] <= 0.05, row


def test_post_shows_all_three_acts_in_one_run():
    run = Unlearner(RunConfig.from_dict({"preset": "post", "schedule": {"evaluate_every": 1000}}))
    run.measure_baseline()
    prompts = [prompt.text for prompt in run.config.prompts if prompt.role == "forget"]
    acts = []
    for _ in range(run.config.schedule.steps):
        run.step()
        said = [entry.response.text for entry in run.answers(prompts)]
        acts.append(
            "knows"
            if all("Mary Poppins" in text for text in said)
            else "explains"
            if any(len(parts_named(TARGET, text)) >= 3 and "Mary Poppins" not in text for text in said)
            else "collapsed"
            if all(repeats(text) or not text.strip() for text in said)
            else "between"
        )
    order = [act for act in dict.fromkeys(acts) if act != "between"]
    assert order == ["knows", "explains", "collapsed"], acts
    assert acts[-1] == "collapsed"


@pytest.mark.parametrize("target", SUGGESTED_TARGETS[1:])
@pytest.mark.parametrize("preset", ["portmanteau", "post"])
def test_every_suggested_word_is_forgotten_more_and_more(target, preset):
    """The memory of a word that was learned by heart gives way late: first nothing is seen, then much."""
    steps = 20 if preset == "post" else LATE.get(target, 150)
    run = Unlearner(
        RunConfig.from_dict({"preset": preset, "data": {"target": target}, "schedule": {"evaluate_every": steps}})
    )
    baseline = run.measure_baseline().values
    assert {"forget", "retain", "neighbour", "holdout"} == set(run.context.windows.sets())
    assert run.guard.forget_level > baseline["forget_loss"]
    records = [run.step() for _ in range(steps)]
    assert records[-1].values["forget_loss"] > 1.05 * baseline["forget_loss"]
    assert records[-1].values["holdout_loss"] < 1.05 * baseline["holdout_loss"]
