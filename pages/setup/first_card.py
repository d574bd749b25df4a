"""The card that begins a run: the word, the questions, the recipe, Start. And what the model says before any of it.

Its fields are views of the session's draft.
"""

from __future__ import annotations

import json
import secrets
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import streamlit as st

from pages.run import answers, controls, view
from pages.setup import knobs, material, session, sources, ways
from pages.setup.draft import MOST_FREE, Draft, presets_for, prompts, resolve
from pages.shared import page
from pages.shared.html import element
from unlearn_core.corpus.documents import BUNDLED, MODEL
from unlearn_core.corpus.windows import check_target
from unlearn_core.settings.errors import ConfigError
from unlearn_core.settings.presets import PRESETS, suggested_targets

if TYPE_CHECKING:
    from storage import RunStore


def start_run(store: RunStore) -> None:
    """Makes the run of this card, once however often it is clicked: the card's ticket becomes the run's id.

    A second click cuts the first one's callback off at any touch of the session's state or the address, so nothing here
    may depend on having been gone through once.
    """
    state = st.session_state
    ticket = state.get("card_ticket") or secrets.token_hex(4)
    try:
        config = resolve(session.now(store), session.files(store))
        config = replace(config, name=_free_name(store.runs()))
        if not any(source.startswith("hf:") for source in config.data.forget):  # the worker asks the hub, not the page
            check_target(config)
    except ConfigError as error:
        state["refused"] = error.worded(knobs.name_of)
        return
    plain = config.to_dict()
    run_id = page.attempt(
        store.create_run,
        run_id=ticket,
        name=config.name,
        target=config.data.target,
        method=plain["method"]["name"],
        config=plain,
        provenance={},
        seed=config.seed,
        prompts=plain["prompts"],
    )
    if run_id:
        state["run"] = run_id
        for key in [key for key in st.query_params if key in ("new", "x", "step")]:
            del st.query_params[key]
        st.query_params["run"] = run_id


def _free_name(runs: list[dict[str, Any]]) -> str:
    taken = {run["name"] for run in runs}
    return next(n for n in ("first light", *(f"run {i}" for i in range(2, len(runs) + 3))) if n not in taken)


def _another_question(draft: Draft) -> Draft:
    return replace(draft, free=(*draft.free, "")[:MOST_FREE])


def what_happens_to_the_other(store: RunStore) -> str | None:
    """A sentence on the run that the worker is busy with, None where it is free."""
    runs = store.runs()
    live = next((run for run in runs if run["status"] in view.LIVE), None)
    paused = next((run for run in runs if run["status"] == "paused" and run["lease_owner"]), None)
    if live:
        where = f"“{live['name']}” is at step {live['last_step']} and goes on"
        return f"{where}; this run waits until it finishes or is stopped, or until a guard pauses it."
    if paused:
        where = f"“{paused['name']}” is paused at step {paused['last_step']}"
        return f"{where}; it is set aside whole, and Resume brings it back."
    return None


def draw(store: RunStore) -> None:
    """The card and, below it, what the model says now."""
    draft = session.current(store)
    st.session_state.setdefault("card_ticket", secrets.token_hex(4))
    runs = store.runs()
    page.heading(
        "Watch a language model forget a word",
        "Choose a word. The model is asked about it before, and at every step while it forgets.",
    )
    page.refused()
    with st.container(border=True, key="first_card"):
        left, right = st.columns([1, 1.15], gap="large")
        with left:
            _word_and_recipe(draft)
        with right:
            _questions(store, draft)
        material.draw(store, draft)
        ways.draw(store, draft)
        _start_row(store, draft, runs)
    # Not in the fragment, which runs every second: a pattern goes through its folder.
    _says_now(store, _pairs(draft, store.home))


def _word_and_recipe(draft: Draft) -> None:
    st.text_input("A name for what is forgotten" if draft.everything else "The word to forget", key="card_word")
    st.pills(
        "For example",
        suggested_targets(draft.model),
        key="card_suggestion",
        label_visibility="collapsed",
        disabled=draft.forget_from not in (BUNDLED, MODEL),  # in other texts they need not be
        wrap=True,
    )
    names = presets_for(draft.model)
    st.radio(
        "The recipe",
        names,
        key=session.PRESET,
        format_func=lambda name: PRESETS[name].label,
        captions=[page.escaped(PRESETS[name].caption) for name in names],
    )


def _questions(store: RunStore, draft: Draft) -> None:
    first, second, near, far = session.QUESTIONS
    st.text_input("Forget: two questions about the word", key=first)
    st.text_input("Forget: second question", key=second, label_visibility="collapsed")
    st.text_input(
        "Retain: one question near the word, one far from it", key=near, placeholder="a question near the word"
    )
    st.text_input("Retain: far from the word", key=far, label_visibility="collapsed")
    for place in range(len(draft.free)):
        st.text_input(
            f"Asked as well, question {place + 1}",
            key=f"{session.FREE}{place}",
            label_visibility="collapsed",
            placeholder="anything else you want to ask at every step",
        )
    full = len(draft.free) >= MOST_FREE
    st.button(
        "add a question",
        key="more_questions",
        icon=":material/add:",
        type="tertiary",
        on_click=session.change,
        args=(store, _another_question),
        disabled=full,
        help=f"At most {MOST_FREE} are asked beside the four." if full else None,
    )


def _start_row(store: RunStore, draft: Draft, runs: list[dict[str, Any]]) -> None:
    why = page.read_only(store)
    try:
        resolve(draft, session.files(store))
        cannot = ""
    except ConfigError as error:
        cannot = error.worded(knobs.name_of)
    with st.container(horizontal=True, vertical_alignment="center", key="start_row"):
        st.button(
            "Start",
            key="start_run",
            type="primary",
            icon=":material/play_arrow:",
            width=140,
            on_click=start_run,
            args=(store,),
            disabled=bool(why),
            help=why,
        )
        sentence = what_happens_to_the_other(store) or "It runs on this machine and nothing leaves it."
        differing = ways.in_words(draft)
        sentence = cannot or " ".join(filter(None, (differing, material.in_words(draft, store.home), sentence)))
        st.html(element("p.told", sentence), width="stretch")
        if st.button("See what would be forgotten", key="see_data", type="tertiary", icon=":material/manage_search:"):
            st.switch_page("pages/data.py")
        if differing:
            ways.reset_button(store)
        if runs:
            st.button("back to the run", key="back_to_run", type="tertiary", on_click=_back)


def _back() -> None:
    if "new" in st.query_params:
        del st.query_params["new"]


# ------------------------------------------------------------------------------------------ what it says before a run


def _pairs(draft: Draft, home: Any) -> dict[str, Any]:
    """The texts that are named, as a section of the run: questions are put as the pairs in them are; {}: none are."""
    with suppress(ConfigError):  # texts that cannot be are told of beside their field
        forget = sources.texts(draft.forget_from, home)
        if not {*forget} <= {BUNDLED, MODEL}:
            names = ("text_field", "question_field", "answer_field")
            return {"data": {"forget": forget, **{name: getattr(draft, name) for name in names}}}
    return {}


def _asked(texts: tuple[str, ...], model: str, pairs: dict[str, Any], home: Any) -> dict[str, Any]:
    """What the worker is asked: these questions, of the model on the card. Raises ConfigError in a sentence."""
    source = sources.model(model, home)
    config = {**({} if source == "bundled" else {"model": {"source": source}}), **pairs}
    return {"prompts": list(texts), **({"config": config} if config else {})}


def _command(store: RunStore, payload: dict[str, Any]) -> dict[str, Any] | None:
    """The request for these answers; asked once per model and set of questions."""
    ids: dict[str, int] = st.session_state.setdefault("card_asked", {})
    key = json.dumps(payload)
    known = {command["id"]: command for command in store.commands("any", limit=200)}
    command = known.get(ids.get(key, -1))
    if command is None and not store.read_only:
        ids[key] = page.attempt(store.request, None, "ask", payload) or -1
        command = {"id": ids[key], "done_at": None, "acknowledged_at": None, "error": None, "requested_at": None}
    return command


def _answered(store: RunStore, payload: dict[str, Any]) -> dict[str, str] | None:
    """Question -> answer, where this model was asked all of these before."""
    known = {command["id"]: command["payload"] for command in store.commands(None, limit=200)}
    for event in reversed(store.events(None)):
        replies = event["payload"].get("answers", []) if event["kind"] == "answered" else []
        same_model = known.get(event["payload"].get("command"), {}).get("config") == payload.get("config")
        if same_model and {answer["prompt"] for answer in replies} >= set(payload["prompts"]):
            return {a["prompt"]: a.get("refused") or a["text"] or answers.NO_ANSWER for a in replies}
    return None


def _waiting(command: dict[str, Any] | None, model: str) -> str:
    if command is None:
        return "nothing can be asked: the store is read-only"
    if command["error"]:
        return str(command["error"])
    if command["acknowledged_at"]:
        return f"loading {model} …"
    if command["requested_at"] and controls.seconds_since(command["requested_at"]) > controls.BUSY_SECONDS:
        return "the worker is busy; it answers as soon as it can"
    return "waking the worker …"


@st.fragment(run_every=1.0)
@page.in_one_sentence()
def _says_now(store: RunStore, pairs: dict[str, Any]) -> None:
    draft = session.now(store)
    questions = prompts(draft)
    texts = tuple(dict.fromkeys(prompt["text"] for prompt in questions))
    if not texts:
        st.html("<h2 class='quiet'>Write a question and the model answers it here.</h2>")
        return
    try:
        payload = _asked(texts, draft.model, pairs, store.home)
        replies = _answered(store, payload)
        name = "the bundled model" if draft.model == "bundled" else sources.short(draft.model, store.home)
        command = None if replies else _command(store, payload)
        waiting = "" if replies else _waiting(command, name)
        trouble = waiting if command and command.get("code") == "invalid" else ""
    except ConfigError as error:  # the model on the card cannot be
        replies, waiting, trouble = None, error.worded(knobs.name_of), ""
    st.html("<h2 class='over'>What the model says now</h2>")
    if trouble:  # the model cannot be: once is enough
        st.html(element("p.trouble", trouble, role="alert"))
        return
    answers.fresh(
        [(p["role"], p["text"], replies[p["text"]] if replies else waiting) for p in questions],
        "answers_now",
        bool(waiting),
    )
