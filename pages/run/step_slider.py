"""The slider that chooses the step that is looked at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import streamlit as st

from pages.run.view import View

KEY = "step"

# Not st.slider: the page moves it at every tick, and a widget's value that the browser sends before it has heard of
# the move counts as a choice of the person. This one speaks only when a person moves it.
step_slider = st.components.v2.component(
    "step_slider",
    html="<div class='steps'><input type='range' min='0' step='1' aria-label='step'><output></output></div>",
    js=Path(__file__).with_name("step_slider.js").read_text(encoding="utf-8"),
    isolate_styles=False,
)


def draw(view: View, step: int, on_moved: Callable[[int], None]) -> None:
    """Shows `step`, and says to which step a person has moved it, before the page is drawn anew."""
    state = st.session_state

    def moved() -> None:
        report = state[KEY].moved
        if report and report["nonce"] != state.get("step_nonce"):  # a move that is reported again is no new one
            state["step_nonce"] = report["nonce"]
            on_moved(int(report["step"]))

    data = {"step": step, "last": view.last_step, "total": view.total, "heard": state.get("step_nonce")}
    step_slider(data=data, key=KEY, width=230, height="content", on_moved_change=moved)
