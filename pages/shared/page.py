"""The beginning of every page: store, style, notice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from pages.shared import address, banner
from pages.shared.banner import Banner
from pages.shared.html import element

if TYPE_CHECKING:
    from storage import RunStore

PAGES = (
    ("pages/watch.py", "Watch"),
    ("pages/data.py", "Data"),
    ("pages/methods.py", "Methods"),
    ("pages/compare.py", "Compare"),
    ("pages/runs.py", "Runs"),
)
STYLE = Path(__file__).with_name("style.css")


def begin() -> RunStore:
    """The store, after the style and the store's notice are on the page."""
    st.html(STYLE)
    address.draw()
    store: RunStore = st.session_state.get("store") or _through_entry_point()
    if store.notice:  # opened read-only, say
        banner.draw(Banner("warn", store.notice, "Everything can be read; nothing can be changed."))
    elif notice := waiting(store):
        banner.draw(notice)
    return store


def _through_entry_point() -> NoReturn:
    """Runs app.py, which opens the store, when a page is the very first thing that a fresh server is asked for."""
    # Streamlit takes a folder named pages for pages of its own, and runs them without app.py, until st.navigation was
    # called once in the process. So it is called here, and the address is run again.
    if not st.session_state.get("at_the_entry_point"):
        st.session_state["at_the_entry_point"] = True
        st.navigation([st.Page(path, title=title) for path, title in PAGES], position="hidden")
        st.rerun()
    st.html("<p class='sentence'>The store is not open. Start Lethe with: streamlit run app.py</p>")
    st.stop()


def heading(title: str, sentence: str) -> None:
    """The top of a page without a run: its title and one sentence."""
    name = element("h1.plain", title) if title else None
    st.html(element("header.strip", name, element("p.sentence", sentence, role="status")))


def read_only(store: RunStore) -> str | None:
    """Why nothing can be changed, None where it can."""
    return store.notice if store.read_only else None


def escaped(text: str) -> str:
    """Text for a label or a button, which Streamlit reads as Markdown: shown as it is."""
    return "".join(f"\\{character}" if character in "\\`*_{}[]()#+-.!:$|<>~&" else character for character in text)


def told_to_wait(sentence: str) -> None:
    """Shows, in the page whose thread it is, that the store is waited for; other threads have no page."""
    if get_script_run_ctx(suppress_warning=True) is not None:
        st.toast(sentence, icon=":material/hourglass:")


def waiting(store: RunStore) -> Banner | None:
    """That another thread, the run's for one, waits for the store."""
    return Banner("warn", store.waiting, "The run goes on by itself then.") if store.waiting else None


@contextmanager
def in_one_sentence() -> Iterator[None]:
    """The sentence of the store's error in place of what could not be drawn, and of a traceback."""
    try:
        yield
    except Exception as error:
        if not _is_sentence(error):
            raise
        banner.draw(Banner("bad", str(error), "Reload the page to try again."))


def _is_sentence(error: Exception) -> bool:
    return any(kind.__name__ in ("StoreError", "ConfigError") for kind in type(error).__mro__)


def attempt(act: Any, *args: Any, **kwargs: Any) -> Any:
    """Calls `act`, or shows the sentence of the store's error and returns None."""
    try:
        return act(*args, **kwargs)
    except Exception as error:
        if not _is_sentence(error):
            raise
        st.session_state["refused"] = str(error)
        return None


def refused() -> None:
    """Shows the sentence of the last refusal once."""
    if sentence := st.session_state.pop("refused", None):
        banner.draw(Banner("bad", sentence))
