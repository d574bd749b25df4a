"""Lethe in the browser: opens the store, starts the one worker, draws the navigation. `streamlit run app.py`"""

from __future__ import annotations

import atexit
import os
import shutil
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import streamlit as st

from pages.parts import kept
from pages.parts.page import PAGES
from storage import RunStore, StoreError, export
from unlearn_core.imports import load
from unlearn_core.scout import CACHE, Scout
from unlearn_core.worker import Worker

ROOT = Path(__file__).parent


def open_unlearner(*args: Any, **kwargs: Any) -> Any:
    """Opens a run's model. Called in the worker's thread only: it alone pays for importing torch."""
    return load("unlearn_core.engine").open_unlearner(*args, **kwargs)


def inspector(store: RunStore) -> Callable[..., dict[str, Any]]:
    """Looks into texts before a run. Called in the scout's thread only."""

    def inspect(config: dict[str, Any], report: Callable[[Any], None]) -> dict[str, Any]:
        found = load("unlearn_core.inspection").inspect(config, report, store.home / CACHE)
        measured = store.step_seconds_like(config)
        return {**found, "step_seconds": measured[0], "step_seconds_from": measured[1]} if measured else found

    return inspect


def opened(home: str) -> RunStore:
    """The one store of this process, with worker and scout started; kept outside the caches, which can be cleared."""
    with kept.lock:
        if kept.things.get("home") != home:
            close()
            store = RunStore(home)
            kept.things.update(home=home, store=store, worker=None, scout=None)
        store = kept.things["store"]
        worker = kept.things["worker"]
        if not store.read_only and (worker is None or not worker.alive):
            kept.things["worker"] = worker = Worker(store, partial(open_unlearner, cache=store.home / CACHE))
            worker.start()
        scout = kept.things["scout"]
        if not store.read_only and (scout is None or not scout.alive):
            kept.things["scout"] = scout = Scout(store, inspector(store))
            scout.start()
    return store


def close() -> None:
    """Stops scout and worker (a live run is saved whole first) and closes the store."""
    worker, store = kept.things.pop("worker", None), kept.things.pop("store", None)
    scout = kept.things.pop("scout", None)
    kept.things.pop("home", None)
    if scout is not None:
        scout.stop()
    if worker is not None:
        worker.stop()
    if store is not None:
        store.close()


def once(act: Callable[[], Any]) -> Any:
    """What `act` returned the first time in this process."""
    with kept.lock:
        if act.__name__ not in kept.things:
            kept.things[act.__name__] = act()
        return kept.things[act.__name__]


def chart_library() -> str | None:
    """Puts plotly.js where the browser is served it from, offline; a sentence where that fails."""
    found = find_spec("plotly")
    source = Path(str(found.origin)).parent / "package_data" / "plotly.min.js" if found else None
    target = ROOT / "static" / "plotly.min.js"
    try:
        if source is None:
            raise FileNotFoundError("the package plotly is not installed")
        if not target.exists() or target.stat().st_size != source.stat().st_size:
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(source, target)
    except OSError as error:
        return f"The chart cannot be drawn: {target} could not be written ({error.strerror or error})."
    return None


def at_exit() -> None:
    """A daemon thread with an orderly end: on Ctrl-C and SIGTERM the run is saved before the process goes."""
    atexit.register(close)


def main() -> None:
    st.set_page_config(page_title="Lethe", page_icon="🌊", layout="wide", initial_sidebar_state="collapsed")
    home = os.environ.get("LETHE_HOME", "data")
    once(at_exit)
    try:
        st.session_state.update(store=opened(home), export=export)
    except StoreError as error:
        st.error(f"{error} Set LETHE_HOME to a folder that can be written, and start again.", icon=":material/error:")
        st.stop()
    if sentence := once(chart_library):
        st.warning(sentence)
    pages = [st.Page(path, title=title, default=title == "Watch") for path, title in PAGES]
    st.navigation(pages, position="top").run()


main()
