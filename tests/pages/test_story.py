"""The sentence above everything, and the curves: rules on plain data."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from pages.run import chart, story
from pages.run.view import View
from pages.shared.format import percent, three
from unlearn_core.training.milestones import Milestones
from unlearn_core.world import TARGET

NAMES = "It is a song from the film Mary Poppins."
EXPLAINS = 'It is a portmanteau. It joins "super" (above), "cali" (beauty) and "docious" (educable).'
BROKEN = "it " * 12
WORDS = ("Mary", "Poppins")
FACTS = story.Facts("running", 4, TARGET, answers=[NAMES], named=[WORDS], retain_change=0.0203, budget=0.05)


def told(**other: object) -> str:
    return story.sentence(replace(FACTS, **other))


def test_while_every_answer_still_names_the_old_one_the_sentence_says_so() -> None:
    assert told(named=[WORDS, WORDS]).startswith("Step 4: it still names Mary Poppins.")
    assert told(named=[("yellow",)]).startswith("Step 4: it still names “yellow”.")


def test_answers_that_still_name_it_are_counted() -> None:
    assert "it still names Mary Poppins in 1 of 2 answers" in told(named=[WORDS, ()])


def test_an_answer_that_stands_but_has_become_unlikely_is_told() -> None:
    assert "(the old answer is 25.0\u00a0% as likely per token as before)" in told(likely=0.25)
    assert "as likely" not in told(likely=0.95)


def test_forgotten_the_parts_the_price_and_the_best_step_are_told() -> None:
    at = Milestones(forgotten=2, best=3)
    said = told(answers=[EXPLAINS], named=[()], milestones=at, best_change=0.01, budgeted_set="holdout")
    assert said == (
        "Step 4: forgotten since step 2 and explains the word from 3 of its 5 parts."
        " Holdout loss +2.0\u00a0% of +5\u00a0% allowed. The best step so far is 3 (holdout loss +1.0\u00a0%)."
    )
    assert "This is the best step so far." in told(named=[()], milestones=Milestones(forgotten=2, best=4))


def test_damage_is_told_with_its_step_and_that_no_step_was_good() -> None:
    said = told(named=[()], milestones=Milestones(forgotten=4, damaged=3), retain_change=0.2)
    assert said.endswith("allowed; damage began at step 3. No step has forgotten it without damage.")


def test_of_answers_that_differ_the_fewest_and_the_most_parts_are_told() -> None:
    said = told(answers=[EXPLAINS, "It."], named=[(), ()], milestones=Milestones(forgotten=1))
    assert "and explains the word from 0 to 3 of its 5 parts." in said
    assert story.explained(TARGET, [EXPLAINS, "It."]) == (0, 3)


def test_a_relapse_is_told() -> None:
    assert "it still names Mary Poppins, again since step 3." in told(milestones=Milestones(relapses=((3, "What?"),)))


def test_a_question_that_told_nothing_before_step_1_is_not_called_forgotten() -> None:
    assert "no answer before step 1 told anything that could be forgotten" in told(answers=["It is."], named=[])


def test_collapse_is_called_collapse() -> None:
    at = Milestones(forgotten=1, collapsed=3)
    assert "it collapsed at step 3: its answers repeat themselves" in told(answers=[BROKEN], milestones=at)
    assert "it collapsed at step 3: it does worse than guessing" in told(answers=[EXPLAINS], milestones=at)


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (story.Facts("queued", 0, TARGET), "Waiting for the worker"),
        (story.Facts("queued", 0, TARGET, waits_for="“a run”"), "Waiting for “a run”."),
        (story.Facts("loading", 0, TARGET, reason="importing PyTorch"), "Importing PyTorch."),
        (story.Facts("baseline", 0, TARGET), "before step 1"),
        (story.Facts("failed", 0, TARGET), "It ended before its first answers."),
        (replace(FACTS, status="paused"), "Paused at step 4: "),
        (replace(FACTS, status="finished"), "Finished at step 4: "),
        (replace(FACTS, budget=None), "Retain loss +2.0\u00a0%."),
        (replace(FACTS, budgeted_set="holdout"), "Holdout loss +2.0"),
    ],
)
def test_every_state_has_its_words(facts: story.Facts, said: str) -> None:
    assert said in story.sentence(facts)


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
    run = {
        "id": "r",
        "status": "running",
        "last_step": steps,
        "target": TARGET,
        "config": {},
        "name": "r",
        "method": "npo",
    }
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


def test_milestones_are_marked_with_words_and_steps_and_the_budget_names_its_set() -> None:
    drawn = view(9)
    drawn.prompts = [
        {"id": 1, "slot": 0, "role": "forget", "text": "What?", "from_step": 0, "to_step": None, "version": 1}
    ]
    texts = [NAMES, NAMES, EXPLAINS, NAMES, EXPLAINS, EXPLAINS, EXPLAINS, EXPLAINS, BROKEN, BROKEN]
    drawn.answers = {s: [{"step": s, "prompt_id": 1, "sample": 0, "text": text}] for s, text in enumerate(texts)}
    drawn.run["config"] = {"guard": {"retain_budget": 0.065}}
    made = chart.figure(drawn, chart.Look(), [])
    labels = [note["text"] for note in made["layout"]["annotations"]]
    assert {"forgotten since 4", "holdout damage since 7", "collapsed since 8"} <= set(labels)
    assert any(label.startswith("holdout budget") for label in labels)
    signs = {trace["name"]: trace["x"] for trace in made["data"] if trace.get("mode") == "markers"}
    assert signs["relapse"] == [3] and signs["best step"] == [4]


def extent(note: dict[str, Any], layout: dict[str, Any]) -> tuple[float, float]:
    """(bottom, top) of a note at a place on paper, in pixels from the bottom of the plot."""
    inner = layout["height"] - layout["margin"]["t"] - layout["margin"]["b"]
    tall = 14 * (1 + note["text"].count("<br>"))
    at = note["y"] * inner + note.get("yshift", 0)
    bottom = {"top": at - tall, "bottom": at, "middle": at - tall / 2}[note["yanchor"]]
    return bottom, bottom + tall


def with_everything(steps: int = 30, estimated: bool = True) -> View:
    """A run with a level, a budget, and every milestone close to the others."""
    made = view(steps)
    made.run["config"] = {"guard": {"retain_budget": 0.05}}
    levels = {"forget_level": 1.2, "forget_level_source": "invented names", "forget_level_estimated": estimated}
    made.events = [{"id": 1, "kind": "baseline", "step": 0, "payload": levels}]
    made.__dict__["_milestones"] = {steps: Milestones(forgotten=12, best=13, damaged=13, collapsed=14)}
    return made


@pytest.mark.parametrize("height", [430, 320])
@pytest.mark.parametrize("zoom", [None, (5, 20)])
def test_no_label_of_the_chart_lies_on_a_curve_or_on_another_label(height: int, zoom: tuple[int, int] | None) -> None:
    layout = chart.figure(with_everything(), chart.Look(zoom=zoom), [(13, "step 13")], height)["layout"]
    inner = layout["height"] - layout["margin"]["t"] - layout["margin"]["b"]
    panels = [[edge * inner for edge in layout[axis]["domain"]] for axis in ("yaxis", "yaxis2")]
    assert all(note["yref"] == "paper" for note in layout["annotations"])
    at_the_ends = [note for note in layout["annotations"] if note["x"] == 1 and note["xref"] == "paper"]
    assert len(at_the_ends) == 6 and all(note["xanchor"] == "left" for note in at_the_ends)
    for note in layout["annotations"]:
        bottom, top = extent(note, layout)
        if note not in at_the_ends:  # those stand outside of the panels, at their right
            assert all(top <= low + 1 or bottom >= high - 1 for low, high in panels), note["text"]
    over_the_plot = [note for note in layout["annotations"] if note not in at_the_ends]
    for group in (at_the_ends, over_the_plot):
        rows = sorted(extent(note, layout) for note in group)
        assert all(upper[0] >= lower[1] - 1.5 for lower, upper in zip(rows, rows[1:], strict=False))


@pytest.mark.parametrize("estimated", [True, False])
def test_the_level_of_a_model_that_never_knew_the_word_is_called_an_estimate_where_it_is_one(estimated: bool) -> None:
    run = with_everything(estimated=estimated)
    labels = [note["text"] for note in chart.figure(run, chart.Look(), [])["layout"]["annotations"]]
    (level,) = [text for text in labels if "never knew it" in text]
    assert ("estimate" in level) is estimated
    assert "a model that never knew the word: 1.20 nats" in str(chart.legend(run))
    assert ("an estimate, from invented names" in str(chart.legend(run))) is estimated


def test_every_mark_on_the_chart_is_named_in_the_legend() -> None:
    run = with_everything()
    run.checkpoints = [{"step": 4, "complete": True}]
    names = {trace["name"] for trace in chart.figure(run, chart.Look(), [])["data"] if trace.get("mode") == "markers"}
    assert names == {"best step", "checkpoint"}
    assert all(name in str(chart.legend(run)) for name in names) and "relapse" not in str(chart.legend(run))
