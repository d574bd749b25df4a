"""The address of a page in the browser's history: an entry a page, a run and a card, none a step that is looked at."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

address = st.components.v2.component(
    "address",
    html="<div class='address'></div>",
    js=Path(__file__).with_name("address.js").read_text(encoding="utf-8"),
    isolate_styles=False,
)


def draw() -> None:
    """Takes no room; once on a page is enough."""
    address(key="address", height="content")
