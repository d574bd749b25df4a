"""What can be done with a run that has ended: compare it, ask it, take it away, begin another like it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from pages.run.view import View
from pages.setup import session
from pages.setup.draft import of_run
from pages.shared import page
from pages.shared.html import element

if TYPE_CHECKING:
    from storage import RunStore

AFTER = ("finished", "stopped")


def draw(store: RunStore, run: View) -> None:
    """A row of ways on; each leads to the page where it happens."""
    with st.container(horizontal=True, vertical_alignment="center", key="next_steps"):
        st.html(element("p.over", "What next?"), width="content")
        if st.button("Compare before and after", key="next_compare", icon=":material/compare:"):
            _compare(run)
        _ask(store, run)
        if st.button("Export", key="next_export", icon=":material/download:"):
            st.session_state["run_export"] = True  # the box on Runs is open
            st.switch_page("pages/runs.py", query_params={"run": run.id})
        if st.button("New run like this", key="next_again", icon=":material/add:"):
            session.take(store, of_run(run.run["config"]))
            st.session_state.pop("card_ticket", None)
            st.switch_page("pages/watch.py", query_params={"new": "1"})


def _compare(run: View) -> None:
    columns = {"a": f"{run.id}@0", "b": f"{run.id}@{run.last_step}"}
    st.session_state["run"] = run.id
    st.switch_page("pages/compare.py", query_params=columns)


def _ask(store: RunStore, run: View) -> None:
    """A question to the model before step 1 and after the last; Compare shows the two answers."""
    why = page.read_only(store) or (None if run.checkpoints else "It has no checkpoint that could answer.")
    box = st.popover("Ask it something", key="next_ask", icon=":material/chat:", disabled=bool(why), help=why)
    with box, st.form("next_question", border=False, clear_on_submit=True):
        text = st.text_input("A question, answered before step 1 and now", key="next_text", max_chars=4000)
        sent = st.form_submit_button("Ask")
    if sent and text.strip():
        payload = {"steps": sorted({0, run.last_step}), "text": text.strip()}
        if page.attempt(store.request, run.id, "probe", payload):
            _compare(run)
