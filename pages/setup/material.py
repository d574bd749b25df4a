"""Model and texts of a new run: the second row of the card, a view of the draft."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import streamlit as st

from pages.setup import session, sources
from pages.setup.draft import BETWEEN, SAME, TEXT_FIELDS, UNTOUCHED, Draft
from pages.shared import page
from pages.shared.format import begun
from pages.shared.html import element
from unlearn_core.settings.errors import ConfigError
from unlearn_core.settings.sections import BUNDLED_MODELS, KINDS

if TYPE_CHECKING:
    from storage import RunStore

RECENT = 8
KIND_NAMES = {"auto": "the model says", "person": "a person", "place": "a place", "work": "a work", "word": "a word"}
MATCHES = {"literal": "as it is written", "regex": "as a pattern"}


# ------------------------------------------------------------------------------------------------------- the row


def draw(store: RunStore, draft: Draft) -> None:
    """The row, closed at first."""
    home = store.home
    models, files = sources.offered(home)
    used_models, used_texts = _recent(store)
    with st.expander("Model and texts", key="card_material"):
        left, right = st.columns(2, gap="large")
        with left:
            _model(home, draft.model, [*used_models, *models])
            _texts(home, draft, [*used_texts, *files])
            _upload(home, draft)
        with right:
            _how(draft.everything)
            _fields()


def _recent(store: RunStore) -> tuple[list[str], list[str]]:
    """The models and texts of earlier runs, the newest first, as far as they lie inside the roots."""
    models: list[str] = []
    files: list[str] = []
    allowed = sources.roots(store.home)
    for run in store.runs():
        config = run["config"]
        models.append(config.get("model", {}).get("source", "bundled"))
        data = config.get("data", {})
        files += [BETWEEN.join(data[side]) for side in ("forget", "retain") if data.get(side)]
    far = [text for text in (*models, *files) if "/" in text and text.startswith("/")]
    outside = {t for t in far if not all(sources.inside(piece, allowed) for piece in t.split(BETWEEN))}
    recent = [[text for text in dict.fromkeys(written) if text not in outside][:RECENT] for written in (models, files)]
    return recent[0], recent[1]


def _options(first: list[str], more: list[str], present: str) -> list[str]:
    return list(dict.fromkeys([*first, present, *more]))


def _model(home: Any, present: str, known: list[str]) -> None:
    sentence, within = "", []
    try:
        sources.model(present, home)
    except ConfigError as error:
        sentence = str(error)
        within = sources.models_in(present, home) if present.startswith(("/", "~", ".")) else []
    st.selectbox(
        "The model",
        _options([*BUNDLED_MODELS, *sources.packaged_models()], [*within, *known], present),
        key=session.MODEL,
        format_func=lambda text: "the bundled model" if text == "bundled" else sources.named(text, home),
        accept_new_options=True,
        help="The bundled one, a folder with a model in Hugging Face's format, a GGUF file, or a hub id such as gpt2: "
        "type it and press Enter.",
    )
    _trouble(sentence)


def _texts(home: Any, draft: Draft, known: list[str]) -> None:
    def words(text: str) -> str:
        return "the same texts" if text == SAME else sources.named(text, home)

    for key, present, label, first in (
        ("card_forget_from", draft.forget_from, "Forget texts: searched for the word", ["bundled", "model"]),
        ("card_keep_from", draft.keep_from, "Retain texts: what the model should keep", [SAME, "bundled", "model"]),
    ):
        sentence, within = "", []
        if present != SAME:
            try:
                (source, *_) = sources.texts(present, home)
                within = sources.texts_in(source, home) if source not in ("bundled", "model") else []
            except ConfigError as error:
                sentence = str(error)
        st.selectbox(
            label,
            _options(first, [*known, *within], present),
            key=key,
            format_func=words,
            accept_new_options=True,
            help="A file, a folder, a pattern such as stories/*.txt, or hf: and the name of a data set: type it and "
            "press Enter. Several have a ; between them. Without any, the model is asked.",
        )
        _trouble(sentence)
    if "model" in draft.forget_from.split(BETWEEN):
        _asked()


def _asked() -> None:
    """How the model is asked about the target."""
    st.segmented_control(
        "The word is", KINDS, key="card_kind", format_func=KIND_NAMES.__getitem__, required=True,
        help="Decides what the model is asked about it. Its answers are the forget texts.",
    )  # fmt: skip
    st.text_area(
        "Ask the model instead, one question a line",
        key="card_ask_this",
        placeholder="Who is {target}?\nWhich school does {target} go to?",
        help="{target} stands for the word. Empty: two dozen questions of ours, by what the word is.",
    )


def _upload(home: Any, draft: Draft) -> None:
    turn = st.session_state.get("upload_turn", 0)
    upload = st.file_uploader(
        f"Or upload forget texts (one file, at most {sources.UPLOAD_MB} MB; it stays on this machine)",
        type=[ending.lstrip(".") for ending in (*sources.TEXTS, *sources.PACKED)],
        key=f"upload_{turn}",
        max_upload_size=sources.UPLOAD_MB,
    )
    if upload is None:
        return
    if (path := page.attempt(sources.keep_upload, upload.name, upload, home)) is not None:
        session.put(replace(draft, forget_from=path))
    st.session_state["upload_turn"] = turn + 1  # an uploader of its own: the old one's copy in memory is let go
    st.rerun()


def _trouble(sentence: str) -> None:
    if sentence:
        st.html(element("p.trouble", sentence, role="alert"))


def _how(every: bool) -> None:
    why = "Nothing is searched for: all of these texts are forget texts." if every else None
    st.segmented_control(
        "The word is matched", list(MATCHES), key="card_match", format_func=MATCHES.__getitem__, disabled=every,
        help=why, required=True,
    )  # fmt: skip
    with st.container(horizontal=True, key="card_matching"):
        st.checkbox("whole words only", key="card_whole_word", disabled=every)
        st.checkbox("ignore upper and lower case", key="card_ignore_case", disabled=every)
    st.text_input(
        "Other spellings, with commas between", key="card_spellings", disabled=every, placeholder="Dublin, Dubh Linn"
    )
    st.text_input(
        "Stand-ins, with commas between",
        key="card_stand_ins",
        disabled=every,
        placeholder="invented in the word's shape",
        help="Names that the model has never met. What it says of them is what it shall say of the word.",
    )
    st.checkbox(
        "words of a name stand for it",
        key="card_partial_names",
        disabled=every,
        help="As “Harry” for “Harry Potter”: where it is alone, a stand-in's first name takes its place.",
    )
    st.checkbox(
        "Everything in these texts",
        key="card_everything",
        help="No word is searched for: every text is a forget text, as with questions and answers about one author. "
        "The word above is then only its name.",
    )
    st.checkbox(
        "A neighbour set",
        key="card_neighbours",
        help="Texts about the same topics without the word: their loss shows whether forgetting spreads.",
    )


def _fields() -> None:
    usual = "recognised by its name"
    st.text_input(
        "Field of the text, in tables and JSON",
        key="card_text_field",
        placeholder=usual,
        help="Where each row holds one text.",
    )
    with st.container(horizontal=True, key="card_pair"):
        st.text_input("Field of the question", key="card_question_field", placeholder=usual)
        st.text_input(
            "Field of the answer", key="card_answer_field", placeholder=usual, help="Only the answer is trained on."
        )


def in_words(draft: Draft, home: Any) -> str:
    """The row in a sentence, for when it is closed. Empty where all is as at first."""
    count = len(draft.left_out)
    if not count and all(getattr(draft, name) == getattr(UNTOUCHED, name) for name in TEXT_FIELDS):
        return ""
    name = "The bundled model" if draft.model == "bundled" else sources.short(draft.model, home)
    own_words = draft.model in BUNDLED_MODELS  # else it is a name: a hub id begins as it is written
    words = f"{begun(name) if own_words else name} forgets it from {_short(draft.forget_from, home)}"
    if draft.keep_from not in (SAME, draft.forget_from):
        words += f" and keeps {_short(draft.keep_from, home)}"
    left_out = f"; {count} {'occurrence is' if count == 1 else 'occurrences are'} excluded" if count else ""
    return f"{words}{left_out}."


def _short(written: str, home: Any) -> str:
    return ", ".join(sources.short(each.strip(), home) for each in written.split(BETWEEN))
