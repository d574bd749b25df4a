"""The model's answers as a table that a person can edit; what is saved is a file of one's own, forgotten instead."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import streamlit as st

from pages.setup import session, sources
from pages.setup.draft import BETWEEN, Draft
from pages.shared import page
from unlearn_core.settings.errors import ConfigError

if TYPE_CHECKING:
    from storage import RunStore

NAME = "answers.jsonl"  # of the file that is saved
FIELDS = ("question", "answer", "text")  # of a row: a question and its answer, or a text


def table(path: Path) -> pd.DataFrame:
    """The rows of a file of answers, without the columns that it does not have."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return pd.DataFrame([{name: row[name] for name in FIELDS if name in row} for row in rows])


def edited(rows: pd.DataFrame, edits: Mapping[str, Any]) -> bytes:
    """The rows after what was done in the table (as `st.data_editor` keeps it), as JSON lines.

    A row with an empty cell is left out. Raises ConfigError where none is left.
    """
    cells = rows.to_dict("records")
    for row, changed in edits.get("edited_rows", {}).items():
        cells[int(row)] |= changed
    gone = set(edits.get("deleted_rows", ()))
    cells = [row for number, row in enumerate(cells) if number not in gone]
    cells += [dict.fromkeys(rows.columns) | added for added in edits.get("added_rows", ())]
    whole = [row for row in cells if all(isinstance(value, str) and value.strip() for value in row.values())]
    if not whole:
        raise ConfigError("No answer is left; keep one at least, or take other texts on Watch.")
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in whole).encode()


def saved(draft: Draft, answers: bytes, keep: Mapping[str, Path], home: Path) -> Draft:
    """The draft with these answers as its forget texts. `keep`: name -> file, of the answers about other things.

    Those become files of one's own as well: asked anew they would miss what is near the target.
    """
    forget = sources.keep_upload(NAME, io.BytesIO(answers), home)
    retain = [sources.keep_upload(name, io.BytesIO(path.read_bytes()), home) for name, path in keep.items()]
    draft = replace(draft, forget_from=forget, excluded=())
    return replace(draft, keep_from=BETWEEN.join(retain)) if retain else draft


def draw(store: RunStore, facts: Mapping[str, Any], draft: Draft) -> None:
    """The table and its button, where the forget texts are the model's answers or were edited here before."""
    asked = facts.get("asked") or {}
    own = Path(draft.forget_from)
    path = Path(asked["forget"][0]) if asked.get("forget") else own
    if not path.is_file() or not (asked.get("forget") or own.name == NAME):
        return
    keep = {f"answers-{number}.jsonl": Path(each) for number, each in enumerate(asked.get("retain", []), 1)}
    rows, key = table(path), f"answers {path.parent.name} {path.name}"
    with st.expander("Edit the answers", key="edit_answers"):
        st.data_editor(rows, num_rows="dynamic", hide_index=True, key=key, width="stretch")
        st.button(
            "Forget these answers",
            key="save_answers",
            icon=":material/save:",
            disabled=bool(page.read_only(store)),
            help=page.read_only(store)
            or "They become a file of your own, beside the answers about other things, and are forgotten instead.",
            on_click=_save,
            args=(store, rows, key, keep),
        )


def _save(store: RunStore, rows: pd.DataFrame, key: str, keep: Mapping[str, Path]) -> None:
    # Not what the table returned: an edit that is made just before the click has not been through the page yet.
    edits = st.session_state.get(key) or {}
    try:
        answers = edited(rows, edits)
        session.change(store, lambda draft: saved(draft, answers, keep, store.home))
    except ConfigError as error:
        st.session_state["refused"] = str(error)
