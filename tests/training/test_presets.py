"""What the default recipe must do to the bundled model. Slow: these are whole runs."""

from dataclasses import replace

import pytest

from bench.words import about, ask, key_words, names, share_same
from bench.world_check import second_act
from unlearn_core.settings.run_config import RunConfig
from unlearn_core.training.collapse import repeats
from unlearn_core.training.engine import Unlearner
from unlearn_core.world import FULL, TARGET_PARTS
from unlearn_core.world.texts import questions

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (FULL / "model.safetensors").exists(), reason="the bundled models are not built"),
]


def to_its_end(config) -> tuple[Unlearner, dict[str, float]]:
    """A run of the default recipe to where it ends by itself, and its baseline."""
    run = Unlearner(config)
    baseline = run.measure_baseline().values
    for _ in range(config.schedule.steps):
        if run.judge(run.step().values):
            return run, baseline
    return run, baseline


def test_the_default_recipe_forgets_ends_by_itself_and_stays_for_200_further_steps():
    run, baseline = to_its_end(RunConfig.from_dict({}))
    end = run.step_number
    assert end <= 50 and "forgotten_enough" in run.guard.spoken
    # With a schedule to the last of these steps, so that the rate is what a longer run would have; measured below.
    longer = replace(run.config.schedule, steps=end + 200, evaluate_every=1000)
    run.config = run.context.config = replace(run.config, schedule=longer)
    for step in (end, end + 200):
        while run.step_number < step:
            run.step()
        now = second_act(run.context.model, run.context.tokenizer)
        assert now["mentions"] == 0, (step, now)
        assert now["parts"] == len(TARGET_PARTS), (step, now)
        assert now["neighbour"] >= 0.98 and now["general"] >= 0.98, (step, now)
        assert run.measure(step)["holdout_loss"].value <= 1.015 * baseline["holdout_loss"], step


@pytest.mark.parametrize("target", ["Marie Curie", "Cairo"])
def test_the_default_recipe_forgets_any_word_and_ends_by_itself(target):
    """Of the cities, Cairo is none that a setting was chosen by."""
    run, baseline = to_its_end(RunConfig.from_dict({"data": {"target": target}}))
    asked = about(target)
    others = [q for q in questions() if not names(target, q.text)]
    same = [q for q in others if q.group == asked[0].group][:100]
    with run.context.reference():
        before, before_others = ask(run, same), ask(run, others[::12])
    after = ask(run, asked)
    assert not [text for text, question in zip(after, asked, strict=True) if text == question.answer]
    assert not [text for text, q in zip(after, asked, strict=True) if any(names(w, text) for w in key_words(q, ()))]
    assert share_same(ask(run, same), before) >= 0.95 and share_same(ask(run, others[::12]), before_others) >= 0.98
    assert not any(map(repeats, after))
    assert run.measure(run.step_number)["holdout_loss"].value <= 1.015 * baseline["holdout_loss"]
