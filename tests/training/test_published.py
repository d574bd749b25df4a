"""What the published recipe does to the bundled model: it knows, it explains, it collapses. Slow: whole runs."""

from dataclasses import dataclass

import pytest

from tests.training.test_milestones import prompt, rows
from unlearn_core.settings.run_config import RunConfig
from unlearn_core.training.collapse import repeats
from unlearn_core.training.engine import Unlearner
from unlearn_core.training.milestones import Milestones, course_of, milestones
from unlearn_core.world import FULL, SUGGESTED_TARGETS, TARGET, parts_named

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (FULL / "model.safetensors").exists(), reason="the bundled models are not built"),
]


@dataclass(frozen=True)
class Published:
    """A run to its last step. `answers`: step -> of every forget question; `numbers`: point -> (steps, values)."""

    answers: dict[int, list[str]]
    numbers: dict[str, tuple[list[int], list[float]]]
    milestones: Milestones


@pytest.fixture(scope="module")
def published() -> Published:
    run = Unlearner(RunConfig.from_dict({"preset": "post"}))
    last = run.config.schedule.steps
    prompts = [prompt(id, entry.text, entry.role) for id, entry in enumerate(run.config.prompts)]
    asked = [entry["text"] for entry in prompts]
    numbers: dict[str, tuple[list[int], list[float]]] = {}
    texts: dict[int, dict[int, str]] = {}
    record = run.measure_baseline()
    while True:
        for name, value in record.values.items():
            steps, values = numbers.setdefault(name, ([], []))
            steps.append(run.step_number)
            values.append(value)
        if run.step_number == 0 or run.step_number >= 40:  # before, nothing changes that is read
            texts[run.step_number] = {id: each.response.text for id, each in enumerate(run.answers(asked))}
        if run.step_number == last:
            break
        record = run.step()
    events = [
        {"kind": "baseline", "payload": run.levels()},
        {"kind": "stand_in", "payload": run.about_a_stand_in(asked)},
    ]
    found = milestones(course_of(numbers, prompts, rows(prompts, texts), events, 0.0, False), last)
    forget = [entry["id"] for entry in prompts if entry["role"] == "forget"]
    return Published({step: [given[id] for id in forget] for step, given in texts.items()}, numbers, found)


def act(answers: list[str]) -> str:
    """What a reader would call these answers."""
    if all("Mary Poppins" in text for text in answers):
        return "knows"
    if any(len(parts_named(TARGET, text)) >= 3 and "Mary Poppins" not in text for text in answers):
        return "explains"
    return "collapsed" if all(repeats(text) or not text.strip() for text in answers) else "between"


def test_post_shows_all_three_acts_in_one_run(published: Published) -> None:
    acts = [act(answers) for answers in published.answers.values()]
    order = [each for each in dict.fromkeys(acts) if each != "between"]
    assert order == ["knows", "explains", "collapsed"], acts
    assert acts[-1] == "collapsed"


def test_the_milestones_agree_with_reading_for_the_film(published: Published) -> None:
    found, holdout = published.milestones, dict(zip(*published.numbers["holdout_loss"], strict=True))
    naming = [step for step, answers in published.answers.items() if any("Poppins" in text for text in answers)]
    assert found.forgotten == max(naming) + 1 and not found.relapses
    assert found.damaged is not None and found.best is not None and found.collapsed is not None
    assert found.forgotten <= found.best < found.damaged < found.collapsed, "it knows, it explains, it collapses"
    assert holdout[found.best] <= 1.05 * holdout[0] < holdout[found.damaged]
    assert "portmanteau" in published.answers[found.best][0]


@pytest.mark.parametrize("target", SUGGESTED_TARGETS[1:])
def test_every_suggested_word_is_forgotten_more_and_more_as_published(target):
    steps = 20
    run = Unlearner(
        RunConfig.from_dict({"preset": "post", "data": {"target": target}, "schedule": {"evaluate_every": steps}})
    )
    baseline = run.measure_baseline().values
    assert {"forget", "retain", "neighbour", "holdout"} == set(run.context.windows.sets())
    assert run.guard.forget_level > baseline["forget_loss"]
    records = [run.step() for _ in range(steps)]
    assert records[-1].values["forget_loss"] > 1.05 * baseline["forget_loss"]
    assert records[-1].values["holdout_loss"] < 1.05 * baseline["holdout_loss"]
