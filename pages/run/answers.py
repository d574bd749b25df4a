"""Answers of the model before step 1 and now."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import streamlit as st

from pages.run.view import BEFORE_STEP_ONE, LIVE, View
from pages.shared import diff
from unlearn_core.training.collapse import DRAWN, SURPRISING

TAGS = {"forget": "forget", "neighbour": "neighbour", "retain": "retain", "free": "free"}
ORDER = ("forget", "neighbour", "retain", "free")
NO_ANSWER = "(no answer: it ended at once)"

answers_component = st.components.v2.component(
    "answers",
    html="<div class='answers'></div>",
    js=Path(__file__).with_name("answers.js").read_text(encoding="utf-8"),
    isolate_styles=False,
)


def card(view: View, prompt: dict[str, Any], step: int) -> dict[str, Any]:
    """One question with its answers at step 0 and at `step`, both given to this very wording."""
    before, now = view.answer(prompt["id"], 0), view.answer(prompt["id"], step)
    shown: dict[str, Any] = {
        "key": f"{view.id} {prompt['slot']}",
        "slot": prompt["slot"],
        "role": prompt["role"],
        "tag": TAGS[prompt["role"]],
        "prompt": diff.visible(prompt["text"]),
        "before": [],
        "before_name": "before",
        "now_name": "now" if now is None or now["step"] >= view.last_step else f"step {now['step']}",
        "note": _note(view, prompt, now),
    }
    if before is None or now is None:
        live = view.status in LIVE or view.run["lease_owner"]
        waiting = (
            "not asked yet" if view.status in BEFORE_STEP_ONE else "being asked" if live else "it was not answered"
        )
        return {**shown, "state": "waiting", "now_name": "…", "now": [("same", waiting)]}
    old, new = before["text"] or NO_ANSWER, now["text"] or NO_ANSWER
    if asked := view.about_a_stand_in(prompt["text"]):
        shown["stand_in"] = [diff.visible(text or NO_ANSWER) for text in asked]
    if now["step"] == 0:
        return {**shown, "state": "baseline", "now_name": "before", "now": [("same", diff.visible(new))]}
    if old == new:
        return {**shown, "state": "unchanged", "now_name": "unchanged", "now": [("same", diff.visible(new))]}
    return {**shown, "state": "changed", "before": diff.side(old, new, "del"), "now": diff.side(old, new, "ins")}


def verdict(view: View, prompt: dict[str, Any], answer: str) -> str:
    """Whether an answer to a forget question still names what was answered before step 1; "": it is no such question.

    A word-for-word difference is shown beside it; this is what the milestones count.
    """
    question = view.course.questions.get(prompt["id"])
    if question is None or not question.has_answer:
        return ""
    named = question.named(answer)
    return f"Still names: {', '.join(named)}." if named else "Forgotten: it names nothing of the old answer."


def likelihood(view: View, prompt: dict[str, Any], now: dict[str, Any]) -> str:
    """Of a changed answer that should not have changed: whether the model as it was would give it too.

    A likeliest answer may flip between two that the model has always found likely, which is no damage.
    """
    before, surprise = view.answer(prompt["id"], 0), now.get("surprise")
    if prompt["role"] == "forget" or before is None or before["text"] == now["text"]:
        return ""
    if surprise is None or not math.isfinite(surprise):
        return ""
    also = "The model before step 1 would say this too" if surprise <= SURPRISING else "It would hardly have said this"
    share = now.get("typical_share")
    drawn = ""
    if share is not None and not math.isnan(share):
        drawn = f" Of {DRAWN} answers drawn now, it would give {share * DRAWN:.0f}."
    return f"{also} ({surprise:+.1f} standard deviations from its own answers).{drawn}"


def _note(view: View, prompt: dict[str, Any], now: dict[str, Any] | None) -> str:
    notes = []
    if now is not None and now["step"]:
        notes = [verdict(view, prompt, now["text"]), likelihood(view, prompt, now)]
    if prompt["version"] > 1:
        notes.append(f"Asked in these words since step {prompt['from_step']}.")
    return " ".join(filter(None, notes))


def with_asked_for(view: View, cards: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The cards of the newest step: a wording that is asked for stands in the place of the one before, at once.

    A new question that is asked for stands below the others.
    """
    open_questions = [command for command in view.commands if command["kind"] == "prompt" and not command["done_at"]]
    of_slot = {command["payload"].get("slot"): command for command in open_questions}
    new = [command for command in open_questions if command["payload"].get("slot") is None]
    shown = [{**card, **_asked_for(of_slot[card["slot"]])} if card["slot"] in of_slot else card for card in cards]
    for command in new:
        role = command["payload"].get("role", "free")
        facts = {"key": f"{view.id} asked {command['id']}", "slot": None, "role": role, "tag": TAGS[role]}
        shown.append({**facts, "before_name": "before", **_asked_for(command)})
    return shown


def _asked_for(command: dict[str, Any]) -> dict[str, Any]:
    """What a card shows of a wording that the worker has not answered yet."""
    return {
        "prompt": diff.visible(str(command["payload"]["text"])),
        "before": [],
        "now_name": "…",
        "now": [("same", "being asked" if command["acknowledged_at"] else "asked for")],
        "note": "It is answered between two steps, before and now.",
        "state": "waiting",
        "stand_in": None,
    }


def draw(view: View, step: int, key: str, reason: str | None, on_asked: Callable[[dict[str, Any]], None]) -> None:
    """Shows the answers at `step`; `on_asked` is given a new question or wording {slot, role, text}.

    It is called before the page is drawn anew, so that the wording is on it. `reason` says why nothing can be asked
    now, None where it can.
    """
    prompts = sorted(view.asked_at(step), key=lambda p: (ORDER.index(p["role"]), p["slot"]))
    cards = [card(view, prompt, step) for prompt in prompts]
    if step == view.last_step:
        cards = with_asked_for(view, cards)
    data = {"cards": cards, "editable": reason is None, "reason": reason or "", "adding": True}
    answers_component(data=data, key=key, on_asked_change=lambda: on_asked(st.session_state[key].asked))


def fresh(answers: list[tuple[str, str, str]], key: str, waiting: bool) -> None:
    """Answers without a run: (role, question, answer or what is being waited for), not to be edited."""
    cards = [
        {
            "key": str(place),
            "slot": place,
            "role": role,
            "tag": TAGS[role],
            "prompt": diff.visible(prompt),
            "before": [],
            "before_name": "",
            "now_name": "…" if waiting else "now",
            "state": "waiting" if waiting else "baseline",
            "now": [("same", diff.visible(text))],
            "note": "",
        }
        for place, (role, prompt, text) in enumerate(answers)
    ]
    data = {"cards": cards, "editable": False, "reason": "It can be asked once a run has begun.", "adding": False}
    answers_component(data=data, key=key, on_asked_change=lambda: None)
