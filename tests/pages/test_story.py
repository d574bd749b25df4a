"""The sentence above everything, and the curves: rules on plain data."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pages.run import chart, story
from pages.run.view import View
from pages.shared.format import percent, three
from unlearn_core.world import TARGET

NAMES = "It is a song from the film Mary Poppins."
EXPLAINS = 'It is a portmanteau. It joins "super" (above), "cali" (beauty) and "docious" (educable).'
BROKEN = "it " * 12
FACTS = story.Facts("running", 4, TARGET, topic="Mary Poppins", retain_change=0.0203, budget=0.05)


def told(*answers: list[str], **other: object) -> str:
    return story.sentence(replace(FACTS, answers=dict(enumerate(answers)), step=len(answers) - 1, **other))


def test_while_it_still_names_the_topic_the_sentence_says_so() -> None:
    assert told([NAMES, NAMES], [NAMES, NAMES]).startswith("Step 1: it still names Mary Poppins.")


def test_a_topic_in_some_answers_is_counted() -> None:
    assert "it names Mary Poppins in 1 of 2 answers" in told([NAMES, NAMES], [NAMES, "A word."])


def test_the_forgetting_moment_and_the_parts_are_told_with_the_price() -> None:
    said = told([NAMES], [NAMES], ["A word."], [EXPLAINS])
    assert said == (
        "Step 3: it stopped naming Mary Poppins at step 2 and explains the word from 3 of its 5 parts."
        " Retain loss +2.0\u00a0%; +5\u00a0% allowed."
    )


def test_of_answers_that_differ_the_fewest_and_the_most_parts_are_told() -> None:
    said = told([NAMES, NAMES], [EXPLAINS, "It."])
    assert "and explains the word from 0 to 3 of its 5 parts." in said
    assert story.explained(TARGET, [EXPLAINS, "It."]) == (0, 3)


def test_a_topic_that_comes_back_moves_the_forgetting_moment() -> None:
    answers = {0: [NAMES], 1: ["A word."], 2: [NAMES], 3: ["A word."], 4: ["A word."]}
    assert story.moment("Mary Poppins", answers, 4) == 3
    assert story.moment("Mary Poppins", answers, 2) is None
    assert story.moment("Mary Poppins", answers, 1) == 1


def test_a_topic_that_was_never_named_is_not_forgotten() -> None:
    assert story.moment("Mary Poppins", {0: ["A word."], 1: ["A word."]}, 1) is None
    assert "it does not name Mary Poppins, nor did it before step 1" in told(["A word."], ["A word."])


def test_collapse_is_called_collapse() -> None:
    assert "it has collapsed: its answers repeat themselves" in told([NAMES], [BROKEN])
    assert "it has collapsed: it does worse than guessing" in told([NAMES], [EXPLAINS], beyond_guessing=True)


def test_without_a_topic_changed_answers_are_counted() -> None:
    said = told(["a", "b"], ["a", "c"], topic=None, likely=0.25)
    assert (
        "1 of 2 answers about it has changed; the baseline answer is 25.0\u00a0% as likely per token as before" in said
    )


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (story.Facts("queued", 0, TARGET), "Waiting for the worker"),
        (story.Facts("queued", 0, TARGET, waits_for="“a run”"), "Waiting for “a run”."),
        (story.Facts("loading", 0, TARGET, reason="importing PyTorch"), "Importing PyTorch."),
        (story.Facts("baseline", 0, TARGET), "before step 1"),
        (story.Facts("failed", 0, TARGET), "It ended before its first answers."),
        (replace(FACTS, status="paused", answers={0: [NAMES]}), "Paused at step 4: "),
        (replace(FACTS, status="finished", answers={0: [NAMES]}), "Finished at step 4: "),
        (replace(FACTS, answers={0: [NAMES]}, budget=None), "Retain loss +2.0\u00a0% since the start."),
        (replace(FACTS, answers={0: [NAMES]}, unseen=True), "Holdout loss +2.0"),
    ],
)
def test_every_state_has_its_words(facts: story.Facts, said: str) -> None:
    assert said in story.sentence(facts)


def test_the_best_step_explains_most_at_the_least_price() -> None:
    answers = {0: [NAMES], 1: [EXPLAINS], 2: [EXPLAINS], 3: ["A word."], 4: [BROKEN]}
    kept = {0: 0.0, 1: 0.04, 2: 0.02, 3: 0.01, 4: 0.0}
    assert story.best_step("Mary Poppins", TARGET, answers, kept) == 2
    assert story.best_step("Mary Poppins", TARGET, {0: [NAMES], 1: [NAMES]}, {0: 0.0, 1: 0.0}) is None


@pytest.mark.parametrize(
    ("value", "said"),
    [(0, "0"), (1.14159, "1.14"), (123.4, "123"), (1234.5, "1,230"), (0.0003, "0.0003"), (1.2e-5, "1.2·10⁻⁵")],
)
def test_numbers_have_at_most_three_significant_figures(value: float, said: str) -> None:
    assert three(value) == said


@pytest.mark.parametrize(
    ("change", "said"), [(0.0203, "+2.0"), (-0.0203, "−2.0"), (0.00001, "0.0"), (8.3, "+830"), (float("nan"), "–")]
)
def test_changes_carry_their_direction(change: float, said: str) -> None:
    assert percent(change).removesuffix("\u00a0%") == said


# --------------------------------------------------------------------------------------------------------- curves


def view(steps: int) -> View:
    run = {"id": "r", "status": "running", "last_step": steps, "target": TARGET, "config": {}, "name": "r"}
    numbers = {name: (list(range(steps + 1)), [1 + step / 100 for step in range(steps + 1)]) for name in chart.LINES}
    return View(run, numbers=numbers, baseline=dict.fromkeys(chart.LINES, 1.0))


def test_thinning_keeps_the_ends_and_every_spike_and_moves_no_old_point() -> None:
    steps, values = list(range(5000)), [0.0] * 5000
    values[1234] = 9.0
    x, y = chart.thinned(steps, values)
    assert len(x) <= chart.MOST_POINTS + 2 and (x[0], x[-1]) == (0, 4999) and 9.0 in y
    longer, _ = chart.thinned([*steps, 5000], [*values, 0.0])
    assert set(x[:-1]) <= set(longer)


def test_smoothing_does_not_pull_the_start_to_zero() -> None:
    assert chart.smoothed([5.0, 5.0, 5.0], 0.9) == pytest.approx([5.0, 5.0, 5.0])


@pytest.mark.parametrize("look", [chart.Look(), chart.Look(log=True), chart.Look(smooth=0.9), chart.Look(zoom=(2, 5))])
@pytest.mark.parametrize("steps", [0, 1, 30])
def test_the_figure_is_json_in_every_look(look: chart.Look, steps: int) -> None:
    drawn = json.loads(json.dumps(chart.figure(view(steps), look, [(0, "step 0")]), allow_nan=False))
    assert {trace.get("name") for trace in drawn["data"]} >= {"forget", "retain", "neighbour", "holdout"}


def test_labels_at_the_ends_of_the_lines_do_not_cover_each_other() -> None:
    notes = chart.figure(view(30), chart.Look(), [])["layout"]["annotations"]
    places = sorted(note["y"] for note in notes if note.get("x") == 1)
    assert len(places) == 4
    assert min(b - a for a, b in zip(places, places[1:], strict=False)) * 354 >= 14
