"""Banner: a warning across the page, one sentence and one next action."""

from __future__ import annotations

from dataclasses import dataclass

import streamlit as st
from markupsafe import Markup

from pages.shared.html import element


@dataclass(frozen=True)
class Banner:
    """One sentence and one next action. `kind` is `warn`, `bad` or `calm`."""

    kind: str
    text: str
    action: str = ""


def markup(banner: Banner | None) -> Markup:
    """The banner as HTML; without one, nothing that takes room."""
    if banner is None:
        return element("div.banner.none")
    action = element("p", banner.action) if banner.action else None
    return element(f"div.banner.{banner.kind}", element("p", banner.text), action, role="alert")


def draw(banner: Banner | None) -> None:
    """The banner, or nothing in its place."""
    st.html(markup(banner))
