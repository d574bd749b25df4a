"""The banner of a run: what makes it pointless is said, and nothing where all is well."""

from __future__ import annotations

import pytest

from pages.run.answers import likelihood
from pages.run.headline import banner
from pages.run.story import sentence
from pages.run.view import View


def run_with(forget: list[float], distance: float, level: float | None = 0.1) -> View:
    """A running run: its forget loss from step 0 on, and at step 0 its KL from stand-ins."""
    facts = {"id": "x", "target": "Lily", "status": "running", "status_reason": None, "lease_owner": "me", "config": {},
             "last_step": len(forget) - 1, "method": "npo", "provenance": {}}  # fmt: skip
    numbers = {"forget_loss": (list(range(len(forget))), forget)}
    baseline = {"forget_loss": forget[0], "forget_stand_in_kl": distance}
    events = [{"kind": "baseline", "step": 0, "payload": {"stand_in_level": level}}]
    return View(facts, numbers=numbers, baseline=baseline, events=events)


def test_what_was_answered_about_an_invented_name_is_that_of_the_newest_asking() -> None:
    view = run_with([1.0, 1.2], 5.0)
    old, new = ({"name": "Zorb", "answers": {"Who is Lily?": ["Who is Zorb?", text]}} for text in ("A man.", "A girl."))
    view.events += [{"kind": "stand_in", "step": 0, "payload": told} for told in (old, new)]
    assert view.about_a_stand_in("Who is Lily?") == ("Who is Zorb?", "A girl.")
    assert view.about_a_stand_in("Who is Tom?") is None


def test_the_sentence_says_when_the_target_is_treated_as_an_invented_name() -> None:
    for distance, level, words in ((0.09, 0.1, True), (0.2, 0.1, False), (0.09, None, False)):
        view = run_with([1.0, 2.0], 5.0, level)
        view.numbers["forget_stand_in_kl"] = ([0, 1], [5.0, distance])
        view.prompts = [{"id": 1, "slot": 0, "role": "forget", "text": "Who?", "from_step": 0, "to_step": None}]
        view.answers = {s: [{"prompt_id": 1, "sample": 0, "step": s, "text": t, "target_probability": 0.5}]
                        for s, t in ((0, "A girl."), (1, "A word."))}  # fmt: skip
        assert ("as about a word that it never met" in sentence(view.facts(1))) is words


@pytest.mark.parametrize(
    ("view", "words"),
    [
        (run_with([1.0, 1.2], 5.0), ""),
        (run_with([1.0, 1.2], 0.12), "does not seem to know Lily"),
        (run_with([1.0, 1.2], 0.12, level=None), ""),
        (run_with([1.44, 1.39], 5.0), "Forget loss falls (−3.5\u00a0%)"),
        (run_with([1.44, 1.43], 5.0), ""),
    ],
)  # fmt: skip
def test_a_run_that_is_pointless_is_warned_about(view: View, words: str) -> None:
    notice = banner(view)
    assert (notice is None) == (not words)
    assert notice is None or (words in notice.text and notice.kind == "warn" and notice.action.endswith("."))


def test_a_changed_answer_that_should_stay_is_judged_by_the_model_as_it_was() -> None:
    view = run_with([1.0, 1.2], 5.0)
    row = {"prompt_id": 1, "sample": 0, "target_probability": 0.5}
    view.answers = {0: [{**row, "step": 0, "text": "Rome.", "surprise": 0.1}]}

    def said(role: str, text: str, surprise: float | None) -> str:
        return likelihood(view, {"id": 1, "role": role}, {**row, "step": 1, "text": text, "surprise": surprise})

    assert said("retain", "It is Rome.", 1.3) == (
        "The model before step 1 would say this too (+1.3 standard deviations from its own answers)."
    )
    row["typical_share"] = 0.75
    assert said("retain", "It is Rome.", 1.3).endswith("own answers). Of 4 answers drawn now, it would give 3.")
    assert said("neighbour", "Paris.", 4.0).startswith("It would hardly have said this (+4.0")
    assert said("retain", "Rome.", 9.0) == said("forget", "Paris.", 9.0) == said("retain", "Paris.", None) == ""
