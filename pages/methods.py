"""Methods: every way to make a model forget, with formula, knobs, cost, data, memory and ways of failing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from pages.setup import about, session
from pages.setup.draft import with_method
from pages.shared import page
from pages.shared.html import element
from unlearn_core.methods import METHODS

if TYPE_CHECKING:
    from storage import RunStore

GROUPS = (about.STEPS, about.EDITS, about.CONTROLS)


def main() -> None:
    store = page.begin()
    session.current(store)
    _head()
    search, groups = _filter()
    names = about.ordered(
        name for name in METHODS if about.matches(name, search) and (not groups or about.group(name) in groups)
    )
    if not names:
        _nothing(search, groups)
        return
    count = f"{len(names)} of {len(METHODS)} methods" if len(names) < len(METHODS) else f"{len(names)} methods"
    st.html(element("p.told", f"{count}. {about.PASSES}.", role="status"))
    for name in names:
        _method(store, name)


def _head() -> None:
    loose = sum(about.group(name) == about.CONTROLS for name in METHODS)
    sentence = f"{len(METHODS) - loose} ways to make a model forget, and {loose} that are there to be compared with."
    page.heading("Methods", sentence)


def _filter() -> tuple[str, list[str]]:
    """(what is searched for, the groups that are shown; none of them: all)."""
    with st.container(horizontal=True, vertical_alignment="bottom", key="methods_head"):
        search = st.text_input(
            "Find a method",
            key="find",
            type="search",
            placeholder="a name, an arXiv number, refusals, KL, reference …",
            width=420,
            bind="query-params",
        )
        groups = st.pills("Show", GROUPS, key="groups", selection_mode="multi", bind="query-params", wrap=True)
    return search or "", list(groups or ())


def _nothing(search: str, groups: list[str]) -> None:
    elsewhere = sum(about.matches(name, search) for name in METHODS)
    of_these = f" of the kind “{'” or “'.join(groups)}”" if groups else ""
    others = f"; {elsewhere} of the others {'has' if elsewhere == 1 else 'have'}" if groups and elsewhere else ""
    sought = f"No method{of_these} has “{search.strip()}” in it{others}."
    st.html(element("p.sentence", sought, role="status"))
    st.button("Show all methods", key="show_all", on_click=_show_all)


def _show_all() -> None:
    st.session_state.update(find="", groups=[])


def _method(store: RunStore, name: str) -> None:
    why = page.read_only(store)
    with st.container(key=f"method_{name}"):
        with st.container(horizontal=True, vertical_alignment="center"):
            title = element("h2", about.heading(name))
            st.html(element("div.method-head", title, element("p", about.does(name))), width="stretch")
            chosen = st.button(
                "Forget this way",
                key=f"by_{name}",
                type="tertiary",
                icon=":material/arrow_forward:",
                disabled=bool(why),
                help=why or "To the card on Watch, with this method and its own settings.",
            )
        about.formula(name)
        left, right = st.columns([1, 1.15], gap="large")
        with left:
            st.html(about.sheet(name))
        with right:
            st.html(about.knob_table(name))
    if chosen:
        st.session_state.pop("card_ticket", None)
        session.change(store, lambda draft: with_method(draft, name))
        st.switch_page("pages/watch.py", query_params={"new": "1"})


main()
