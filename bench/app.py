"""The app while a browser watches: from Start to the first step, the time of a step watched, reruns of the page."""

from __future__ import annotations

import base64
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import ROOT, Measure, Skipped
from pages.shared.format import three
from unlearn_core.settings.run_config import RunConfig

if TYPE_CHECKING:
    from storage import RunStore

PHASE_SECONDS = 12.0
RERUN_SECONDS = 20.0
PATIENCE = 60.0
FACTS = "header.strip .facts"  # where Watch says which step the run is at
WINDOW = {"width": 1280, "height": 900}
CHROMIUM = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def app(home: Path) -> Iterator[str]:
    """`streamlit run app.py` on a free local port with its own home; yields its address."""
    with served(home) as (address, _):
        yield address


@contextmanager
def served(home: Path, root: Path = ROOT) -> Iterator[tuple[str, int]]:
    """The same of the program in `root`; yields the address and the id of the process that serves it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    options = ["--server.port", str(port), "--server.headless", "true"]
    command = [sys.executable, "-m", "streamlit", "run", str(root / "app.py"), *options]
    with (home / "app.log").open("w") as log:
        environment = {**os.environ, "LETHE_HOME": str(home), "PYTHONPATH": str(root)}
        process = subprocess.Popen(command, cwd=root, env=environment, stdout=log, stderr=log)
        try:
            until(lambda: is_up(f"{address}/_stcore/health") or process.poll() is not None)
            if process.poll() is not None:
                raise Skipped("The app did not start: " + (home / "app.log").read_text()[-300:].strip())
            yield address, process.pid
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def is_up(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=2) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def until(condition: Callable[[], Any]) -> Any:
    """The condition's first true value. Raises Skipped after PATIENCE seconds."""
    end = time.monotonic() + PATIENCE
    while not (value := condition()):
        if time.monotonic() > end:
            raise Skipped(f"The app did not reach the expected state within {PATIENCE:.0f} s.")
        time.sleep(0.05)
    return value


@contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium. Raises Skipped where there is none."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        raise Skipped("Playwright is not installed (pip install -r requirements-dev.txt).") from None
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as driver:
        try:
            opened = driver.chromium.launch(executable_path=chromium, args=CHROMIUM)
        except Error:
            raise Skipped("There is no Chromium here (playwright install chromium).") from None
        try:
            yield opened
        except Error as error:
            raise Skipped(f"The page did not behave as expected: {' '.join(str(error).split())}") from None
        finally:
            opened.close()


class Reruns:
    """Listens to a page's websocket: milliseconds from each request for a rerun to the message that it has finished."""

    def __init__(self, page: Any) -> None:
        self.ticks: list[float] = []
        self.whole: list[float] = []
        self._asked: list[tuple[float, bool]] = []
        session = page.context.new_cdp_session(page)
        session.send("Network.enable")
        session.on("Network.webSocketFrameSent", self._sent)
        session.on("Network.webSocketFrameReceived", self._received)

    def forget(self) -> None:
        for times in (self.ticks, self.whole, self._asked):
            times.clear()

    def _sent(self, event: dict[str, Any]) -> None:
        from streamlit.proto.BackMsg_pb2 import BackMsg

        message = BackMsg.FromString(base64.b64decode(event["response"]["payloadData"]))
        if message.WhichOneof("type") == "rerun_script":
            self._asked.append((event["timestamp"], bool(message.rerun_script.fragment_id)))

    def _received(self, event: dict[str, Any]) -> None:
        from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

        message = ForwardMsg.FromString(base64.b64decode(event["response"]["payloadData"]))
        if message.WhichOneof("type") == "script_finished" and self._asked:
            # Requests that came while the script was busy may be answered together: the oldest counts.
            asked, is_tick = self._asked[0]
            self._asked.clear()
            (self.ticks if is_tick else self.whole).append(1000 * (event["timestamp"] - asked))


def measure() -> list[Measure]:
    """Start, watched and rerun, in one app and one browser."""
    from storage import RunStore

    with tempfile.TemporaryDirectory(prefix="lethe-bench-", ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        with browser() as chromium, app(home) as address:
            store = RunStore(home)
            try:
                first = start(chromium, address, store)
                for run in store.runs():
                    store.request(run["id"], "stop")
                run_id = long_run(store)
                until(lambda: (store.run(run_id) or {})["last_step"] >= 5)
                ticks: list[float] = []
                steps = watched(chromium, f"{address}/?run={run_id}", store, run_id, ticks)
                return [first, steps, *rerun(chromium, f"{address}/?run={run_id}", ticks)]
            finally:
                store.close()


def start(chromium: Any, address: str, store: RunStore) -> Measure:
    """From the click on Start, on a first card with the model's present answers, to the first step on the page."""
    page = chromium.new_page(viewport=WINDOW)
    page.goto(address)
    button = page.get_by_role("button", name="Start", exact=True)
    button.wait_for(timeout=PATIENCE * 1000)
    until(lambda: (asked := store.commands("any")) and all(command["done_at"] for command in asked))
    page.wait_for_timeout(1500)
    began = time.perf_counter()
    button.click()
    page.locator(FACTS, has_text=re.compile("step [1-9]")).wait_for(timeout=PATIENCE * 1000)
    seconds = time.perf_counter() - began
    page.close()
    detail = "the app open, and the model's present answers on its card"
    return Measure("from Start to the first step on the page", seconds, 5.0, " s", detail)


def long_run(store: RunStore) -> str:
    """A run of the bundled preset that no guard pauses and that does not end by itself."""
    guard = {"not_finite": False, "retain_budget": 0.0, "forgotten_enough": False, "collapse": False}
    config = RunConfig.from_dict({"name": "bench", "guard": guard, "schedule": {"steps": 100_000}})
    plain = config.to_dict()
    return store.create_run(
        name=config.name,
        target=config.data.target,
        method=config.method.name,
        config=plain,
        provenance={},
        seed=config.seed,
        prompts=plain["prompts"],
    )


def last_step(store: RunStore, run_id: str) -> int:
    """The newest step of a run."""
    run = store.run(run_id)
    assert run
    return int(run["last_step"])


def opened(chromium: Any, address: str) -> tuple[Any, Reruns]:
    """Watch in a new page, drawn and at rest, and what it asks of the server from now on."""
    page = chromium.new_page(viewport=WINDOW)
    reruns = Reruns(page)
    page.goto(address)
    page.locator(FACTS).wait_for(timeout=PATIENCE * 1000)
    page.wait_for_timeout(2000)
    reruns.forget()  # what the opening of the page took
    return page, reruns


def watched(chromium: Any, address: str, store: RunStore, run_id: str, ticks: list[float]) -> Measure:
    """Steps with the page open against steps without, in turns. The page's ticks are added to `ticks`."""
    seconds: dict[bool, list[float]] = {False: [], True: []}
    paces: dict[bool, list[float]] = {False: [], True: []}
    for is_open in (False, True, False, True):
        page, reruns = opened(chromium, address) if is_open else (None, None)
        first, began = last_step(store, run_id), time.perf_counter()
        if page and reruns:
            page.wait_for_timeout(PHASE_SECONDS * 1000)
        else:
            time.sleep(PHASE_SECONDS)
        last, took = last_step(store, run_id), time.perf_counter() - began
        points = store.points(run_id, after_step=first + 1, names=["step_seconds"])
        seconds[is_open] += points.value[points.step <= last].tolist()
        paces[is_open].append((last - first) / took)
        if page and reruns:
            ticks += reruns.ticks
            page.close()
    mean = {is_open: statistics.fmean(values) for is_open, values in seconds.items()}
    pace = {is_open: three(statistics.fmean(values)) for is_open, values in paces.items()}
    detail = (
        f"{mean[True]:.3f} s against {mean[False]:.3f} s a step, {len(seconds[True])} and {len(seconds[False])} steps; "
        f"with answers and writing {pace[True]} against {pace[False]} steps/s"
    )
    return Measure("engine step with the app watched in a browser", mean[True] / mean[False], 1.25, "x", detail)


def rerun(chromium: Any, address: str, ticks: list[float]) -> list[Measure]:
    """How long a tick and a whole rerun of Watch take while the run trains."""
    page, reruns = opened(chromium, address)
    end = time.monotonic() + RERUN_SECONDS
    while time.monotonic() < end:
        page.keyboard.press("r")
        page.wait_for_timeout(500)
    page.close()
    measures = []
    for name, times in (("tick", [*ticks, *reruns.ticks]), ("whole rerun", reruns.whole)):
        if len(times) > 1:
            p95 = statistics.quantiles(times, n=20, method="inclusive")[-1]
            detail = f"median {statistics.median(times):.0f} ms, longest {max(times):.0f} ms, of {len(times)}"
            measures.append(Measure(f"{name} of Watch while training, p95", p95, 150.0, " ms", detail))
    return measures
