"""Streamlit entry point: opens the store, starts the one worker, draws the navigation. `streamlit run app.py`"""

from __future__ import annotations

import atexit
import logging
import shutil
import sys
import threading
import webbrowser
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import streamlit as st
from starlette.middleware import Middleware

from pages.serving.exposure import Exposure, exposure
from pages.serving.hosts import HostCheck, is_loopback
from pages.serving.sign_in import admit
from pages.serving.uploads import UploadLimit
from pages.shared import page, process
from storage import RunStore, StoreBusy, StoreError, export
from unlearn_core.running.log import LogFile
from unlearn_core.running.preview import PreviewThread
from unlearn_core.running.protocols import Config, Inspect, Progress, Session
from unlearn_core.running.worker import Worker
from unlearn_core.settings.home import CACHE, home_folder
from unlearn_core.settings.imports import load
from unlearn_core.settings.report import Report

ROOT = Path(__file__).parent


def open_session(config: Config, report: Report, cache: Path) -> Session:
    """Opens a run's model. Called in the worker's thread only: it alone pays for importing torch."""
    session: Session = load("unlearn_core.training.engine").open_unlearner(config, report, cache)
    return session


def inspector(store: RunStore) -> Inspect:
    """Reads the texts of a run before it starts. Called in the preview thread only."""

    def inspect(config: Config, report: Callable[[Progress], None]) -> dict[str, Any]:
        measured = store.step_seconds_like(config)
        facts: dict[str, Any] = load("unlearn_core.corpus.preview").inspect(
            config, report, store.home / CACHE, measured
        )
        return facts

    return inspect


def opened(home: str) -> RunStore:
    """The one store of this process, with its threads started; kept outside the caches, which can be cleared."""
    with process.lock:
        if process.objects.get("home") != home:
            close()
            fresh = RunStore(home, on_wait=page.told_to_wait)
            process.objects.update(home=home, store=fresh, worker=None, preview=None, log=LogFile(fresh.home))
        store: RunStore = process.objects["store"]
        worker = process.objects["worker"]
        if not store.read_only and (worker is None or not worker.alive):
            process.objects["worker"] = worker = Worker(store, partial(open_session, cache=store.home / CACHE))
            worker.start()
        preview = process.objects["preview"]
        if not store.read_only and (preview is None or not preview.alive):
            process.objects["preview"] = preview = PreviewThread(store, inspector(store))
            preview.start()
    return store


def close() -> None:
    """Stops preview thread and worker (a live run is saved whole first), then closes the store and the log file."""
    preview, worker, store, log = (process.objects.pop(name, None) for name in ("preview", "worker", "store", "log"))
    process.objects.pop("home", None)
    for thread in (preview, worker):
        if thread is not None:
            thread.stop()
    for file in (store, log):
        if file is not None:
            file.close()


def once(act: Callable[[], Any]) -> Any:
    """What `act` returned the first time in this process."""
    with process.lock:
        if act.__name__ not in process.objects:
            process.objects[act.__name__] = act()
        return process.objects[act.__name__]


def chart_library() -> str | None:
    """Puts plotly.js where the browser is served it from, offline; a sentence where that fails."""
    spec = find_spec("plotly")
    source = Path(str(spec.origin)).parent / "package_data" / "plotly.min.js" if spec else None
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
    glossary = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    st.set_page_config("Lethe", "🌊", "wide", "collapsed", menu_items={"About": glossary})
    admit(process.objects.get("exposure", Exposure()))
    home = str(home_folder())
    once(at_exit)
    try:
        st.session_state.update(store=opened(home), export=export)
    except StoreBusy as error:
        st.error(str(error), icon=":material/error:")
        st.stop()
    except StoreError as error:
        st.error(f"{error} Set LETHE_HOME to a folder that can be written, and start again.", icon=":material/error:")
        st.stop()
    if sentence := once(chart_library):
        st.warning(sentence)
    pages = [st.Page(path, title=title, default=title == "Watch") for path, title in page.PAGES]
    try:
        with page.in_one_sentence():
            st.navigation(pages, position="top").run()
    except Exception:
        logging.getLogger("lethe").exception("a page failed")
        raise


# ------------------------------------------------------------------------------------------------------- the server


def checked_exposure() -> Exposure:
    """Who can reach this server. Ends the process with a sentence where nobody should."""
    found = exposure()
    if found.refusal:
        print(found.refusal, file=sys.stderr)
        sys.exit(2)
    process.objects["exposure"] = found
    return found


def address() -> str:
    """Where a browser on this machine finds the server."""
    scheme = "https" if st.get_option("server.sslCertFile") else "http"
    listens = st.get_option("server.address") or ""
    host = listens if is_loopback(listens) else "localhost"
    base = (st.get_option("server.baseUrlPath") or "").strip("/")
    return f"{scheme}://{host}:{st.get_option('server.port')}/{base}"


@asynccontextmanager
async def serving(app: st.App) -> AsyncIterator[None]:
    """While the server runs: it warns of who can come in and opens a browser; at its end a live run is saved whole."""
    if warning := process.objects["exposure"].warning:
        print(warning, file=sys.stderr, flush=True)
    if not st.get_option("server.headless"):
        threading.Thread(target=webbrowser.open, args=[address()], daemon=True).start()
    yield
    close()


# Streamlit runs this file as a script for every visit; before, its server imports it once, as a module, for `app`.
if __name__ == "__main__":
    main()
else:
    reached = checked_exposure()
    check = Middleware(HostCheck, hosts=reached.hosts, beyond=reached.beyond)
    limit = Middleware(UploadLimit, largest=st.get_option("server.maxUploadSize") << 20)
    app = st.App(__file__, middleware=[check, limit], lifespan=serving)
