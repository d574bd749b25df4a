"""The draft of a browser session, and the form's widgets as views of it.

At each run of a page, what a person has changed in a widget is applied to the draft, and every widget is set to what
the draft has. No callback takes part in it: where a click cuts a run off, the next one does the same again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import streamlit as st

from pages.setup import drafts, sources
from pages.setup.draft import (
    CHANGING,
    TEXT_FIELDS,
    UNTOUCHED,
    Draft,
    Files,
    chosen,
    questions,
    with_method,
    with_model,
    with_preset,
    with_setting,
)
from pages.setup.knobs import value_of
from unlearn_core.settings.presets import suggested_targets

if TYPE_CHECKING:
    from storage import RunStore

METHOD, PRESET, MODEL, EARLIER = "card_method", "card_preset", "card_model", "card_earlier"
QUESTIONS = ("card_forget_0", "card_forget_1", "card_near", "card_keep")
FREE = "card_free_"


class Held(NamedTuple):
    """What the session keeps: the draft, what its widgets were last set to, and the draft as it is stored."""

    draft: Draft
    shown: Mapping[str, Any]
    stored: Draft


def widgets(draft: Draft) -> dict[str, Any]:
    """Key -> value, of every widget that shows the draft. Those that decide over others come first."""
    choice = chosen(draft)
    fields = sorted(choice.fields.values(), key=lambda field: field.path not in CHANGING)
    return {
        PRESET: draft.preset,
        MODEL: draft.model,
        METHOD: choice.method,
        EARLIER: list(draft.earlier),
        **{f"card_{name}": getattr(draft, name) for name in TEXT_FIELDS if name != "model"},
        "card_word": draft.word,
        "card_suggestion": draft.word if draft.word in suggested_targets(draft.model) else None,
        **dict(zip(QUESTIONS, questions(draft), strict=True)),
        **{f"{FREE}{place}": text for place, text in enumerate(draft.free)},
        **{field.key: value_of(choice.config, field.path) for field in fields},
    }


def edited(draft: Draft, key: str, value: Any) -> Draft:
    """The draft after a person has given a widget this value; None is what an emptied one has."""
    if key in QUESTIONS:
        place = QUESTIONS.index(key)
        return replace(draft, questions=(*draft.questions[:place], value or "", *draft.questions[place + 1 :]))
    if key.startswith(FREE):
        place = int(key.removeprefix(FREE))
        return replace(draft, free=(*draft.free[:place], value or "", *draft.free[place + 1 :]))
    path = next((field.path for field in chosen(draft).fields.values() if field.key == key), None)
    if path is not None:
        return with_setting(draft, path, value)
    name = key.removeprefix("card_")
    if name == "earlier":
        return replace(draft, earlier=tuple(value or ()))
    if name == "word" or (name == "suggestion" and value):
        return replace(draft, target=value or "")
    if name in ("preset", "model", "method"):
        change = {"preset": with_preset, "model": with_model, "method": with_method}[name]
        return change(draft, value or getattr(UNTOUCHED, name))
    if name == "everything" and value and draft.word in suggested_targets(draft.model):
        draft = replace(draft, target=None)  # an example of a word is no name for whole texts
    if name in TEXT_FIELDS:
        return replace(draft, **{name: getattr(UNTOUCHED, name) if value is None else value})
    return draft


def absorbed(draft: Draft, shown: Mapping[str, Any], state: Mapping[Any, Any]) -> Draft:
    """The draft with what was changed in its widgets since they were set to `shown`."""
    for key, usual in widgets(draft).items():
        if key in state and (value := state[key]) != shown.get(key, usual):
            draft = edited(draft, key, value)
    return draft


# ------------------------------------------------------------------------------------------------ in a session


def is_known(store: RunStore) -> bool:
    """Whether this session has a draft, or finds the one that the address names."""
    return "draft" in st.session_state or drafts.read(store.home, st.query_params.get("draft", "")) is not None


def now(store: RunStore) -> Draft:
    """The draft with all that was typed until now. Changes nothing."""
    return _now(store)[0]


def _now(store: RunStore) -> tuple[Draft, Draft]:
    """(the draft, the draft as it is stored)."""
    held: Held | None = st.session_state.get("draft")
    if held is None:
        stored = drafts.read(store.home, st.query_params.get("draft", "")) or UNTOUCHED
        held = Held(stored, {}, stored)
    draft = absorbed(held.draft, held.shown, st.session_state)
    if draft.everything and (draft.forget_from, True) != (held.draft.forget_from, held.draft.everything):
        draft = replace(draft, corpus_questions=tuple(sources.first_questions(draft.forget_from, store.home)))
    return draft, held.stored


def current(store: RunStore) -> Draft:
    """The draft; every widget is set to it, and it is stored. Called before any of them is drawn."""
    draft, stored = _now(store)
    shown, state = widgets(draft), st.session_state
    for key, value in shown.items():
        if key not in state or state[key] != value:
            state[key] = value
    state["draft"] = Held(draft, shown, stored)
    _store(store, state["draft"])
    return draft


def put(draft: Draft) -> None:
    """Another draft, for the next run of a page. Called after `current`."""
    st.session_state["draft"] = st.session_state["draft"]._replace(draft=draft)


def change(store: RunStore, act: Callable[[Draft], Draft]) -> None:
    """Changes the draft. For callbacks, and for pages that draw none of its widgets."""
    put(act(current(store)))


def take(store: RunStore, draft: Draft) -> None:
    """Fills the form with another draft."""
    change(store, lambda _: draft)


def _store(store: RunStore, held: Held) -> None:
    """An untouched form has no file, and its address no id."""
    known = st.query_params.get("draft", "")
    draft_id = st.session_state.get("draft_id") or (known if drafts.ID.fullmatch(known) else "")
    if not draft_id and held.draft == UNTOUCHED:
        return
    draft_id = st.session_state["draft_id"] = draft_id or drafts.new_id()
    if known != draft_id:
        st.query_params["draft"] = draft_id
    if held.draft != held.stored and not store.read_only:
        drafts.write(store.home, draft_id, held.draft)
        st.session_state["draft"] = held._replace(stored=held.draft)


def files(store: RunStore) -> Files:
    """What may be named from a browser: sources inside the roots."""
    home = store.home
    return Files(
        partial(sources.texts, home=home), partial(sources.model, home=home), partial(sources.adapters, home=home)
    )
