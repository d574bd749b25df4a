"""What Lethe costs on this machine: the engine against a bare loop, and the app while a browser watches.

`python cli.py bench`, under four minutes. What is measured:

- **engine**: a step of the bundled run (its preset's settings; no questions, nothing written down) against a plain
  PyTorch loop that does the same forward and backward passes (those of the step, of the retain rows and of the
  evaluation, on the same batches) and then AdamW. Both take turns, step by step, in one process with the engine's
  number of threads; of every so many steps as lie between two refreshes of the retained subspace there is a ratio,
  and the median of these counts.
- **start**: from the click on Start, with the app open and what the model says now on its card, to step 1 on the page.
- **watched**: the time of a step, as the run records it, with Watch open in a headless Chromium against no page at all,
  in turns, in one run in the app's own process.
- **seek**: the pass that looks for a target over a text of 1 GiB without it, against `grep -c -F` on the same file.
- **rerun**: from the browser's request to rerun Watch to the server's word that the script has finished, as the
  browser sees both on its websocket, while the run trains: the page's own ticks, and whole reruns (key R).
"""

from __future__ import annotations

import base64
import json
import os
import platform
import random
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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from terminal.text import answer, number, say
from unlearn_core.config import RunConfig, method_name

ROOT = Path(__file__).parent
ENGINE_SECONDS = 40.0
PHASE_SECONDS = 12.0
RERUN_SECONDS = 20.0
PATIENCE = 60.0
ABSENT = "zorblatterex"  # a word that no text has
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

Pass = tuple[Any, Any, bool, bool]  # token ids, attention mask, dropout on?, gradient wanted?


class Skipped(Exception):
    """Why something could not be measured here, in one sentence."""


@dataclass(frozen=True)
class Measure:
    """One figure, and what it should at most be."""

    name: str
    value: float
    goal: float
    unit: str
    detail: str

    @property
    def met(self) -> bool:
        return self.value <= self.goal


# ------------------------------------------------------------------------------------------------------- the engine


def engine() -> Measure:
    """The engine's step against a bare loop."""
    import torch
    from transformers.utils import logging as transformers_logging

    from unlearn_core.engine import open_unlearner
    from unlearn_core.models import load_model

    transformers_logging.disable_progress_bar()
    config = RunConfig.from_dict({})
    run = open_unlearner(config.to_dict(), lambda message: None)
    run.measure_baseline()
    bare = load_model(config.model, config.lora, config.seed).model
    optimizer = torch.optim.AdamW([p for p in bare.parameters() if p.requires_grad], config.optimizer.learning_rate)
    passes: list[Pass] = []

    def remember(module: Any, args: Any, given: dict[str, Any]) -> None:
        passes.append((given["input_ids"], given["attention_mask"], module.training, torch.is_grad_enabled()))

    run.model.register_forward_pre_hook(remember, with_kwargs=True)
    cycle = config.guard_rail.every if config.guard_rail.kind != "none" else 1
    ours: list[float] = []
    plain: list[float] = []
    began = time.perf_counter()
    while len(ours) < 5 or time.perf_counter() - began < ENGINE_SECONDS:
        mine = its = 0.0
        for _ in range(cycle):
            start = time.perf_counter()
            run.step()
            between = time.perf_counter()
            bare_step(bare, optimizer, passes)
            mine, its = mine + between - start, its + time.perf_counter() - between
            passes.clear()
        ours.append(mine / cycle)
        plain.append(its / cycle)
    ours, plain = ours[1:], plain[1:]  # the first steps warm up
    ratio = statistics.median(mine / its for mine, its in zip(ours, plain, strict=True))
    detail = (
        f"{statistics.median(ours):.3f} s against {statistics.median(plain):.3f} s a step; {len(ours)} times {cycle} "
        f"steps, {torch.get_num_threads()} of {os.cpu_count()} threads"
    )
    return Measure("engine step against a bare torch loop", ratio, 1.05, "x", detail)


def bare_step(model: Any, optimizer: Any, passes: list[Pass]) -> None:
    """The same forward passes, a backward pass where the engine made one, and AdamW."""
    import torch
    from torch.nn.functional import cross_entropy

    for ids, mask, training, learns in passes:
        model.train(training)
        with torch.set_grad_enabled(learns):
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
            labels = ids.masked_fill(mask == 0, -100)[:, 1:]
            loss = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        if learns:
            loss.backward()
    optimizer.step()
    optimizer.zero_grad()


# ---------------------------------------------------------------------------------------------- the app in a browser


@contextmanager
def app(home: Path) -> Iterator[str]:
    """`streamlit run app.py` on a free local port with its own home; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    options = ["--server.port", str(port), "--server.headless", "true"]
    command = [sys.executable, "-m", "streamlit", "run", str(ROOT / "app.py"), *options]
    with (home / "app.log").open("w") as log:
        environment = {**os.environ, "LETHE_HOME": str(home)}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        try:
            until(lambda: is_up(f"{address}/_stcore/health") or process.poll() is not None)
            if process.poll() is not None:
                raise Skipped("The app did not start: " + (home / "app.log").read_text()[-300:].strip())
            yield address
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
    """The condition's first true value. Raises Skipped where it never comes."""
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        if time.monotonic() > end:
            raise Skipped(f"The app did not get there within {PATIENCE:.0f} s.")
        time.sleep(0.05)
    return found


@contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium. Raises Skipped where there is none."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        raise Skipped("Playwright is not installed (pip install -r requirements-dev.txt).") from None
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as driver:
        try:
            opened = driver.chromium.launch(executable_path=found, args=CHROMIUM)
        except Error:
            raise Skipped("There is no Chromium here (playwright install chromium).") from None
        try:
            yield opened
        except Error as error:
            raise Skipped(f"The page did not do what was expected: {' '.join(str(error).split())}") from None
        finally:
            opened.close()


class Reruns:
    """Listens to a page's websocket: milliseconds from each request for a rerun to the word that it has finished."""

    def __init__(self, page: Any) -> None:
        self.ticks: list[float] = []
        self.whole: list[float] = []
        self._asked: list[tuple[float, bool]] = []
        session = page.context.new_cdp_session(page)
        session.send("Network.enable")
        session.on("Network.webSocketFrameSent", self._sent)
        session.on("Network.webSocketFrameReceived", self._received)

    def forget(self) -> None:
        for heard in (self.ticks, self.whole, self._asked):
            heard.clear()

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


def in_the_app() -> list[Measure]:
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
                found = watched(chromium, f"{address}/?run={run_id}", store, run_id, ticks)
                return [first, found, *rerun(chromium, f"{address}/?run={run_id}", ticks)]
            finally:
                store.close()


def start(chromium: Any, address: str, store: Any) -> Measure:
    """The first card is open and has said what the model says now; then Start is clicked."""
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
    detail = "the app open, and on its card what the model says now"
    return Measure("from Start to the first step on the page", seconds, 5.0, " s", detail)


def long_run(store: Any) -> str:
    """A run of the bundled preset that no guard pauses and that does not end by itself."""
    guard = {"not_finite": False, "retain_budget": 0.0, "forgotten_enough": False, "collapse": False}
    config = RunConfig.from_dict({"name": "bench", "guard": guard, "schedule": {"steps": 100_000}})
    plain = config.to_dict()
    facts = {"name": config.name, "target": config.data.target, "method": method_name(config.method)}
    more = {"config": plain, "provenance": {}, "seed": config.seed, "prompts": plain["prompts"]}
    return str(store.create_run(**facts, **more))


def opened(chromium: Any, address: str) -> tuple[Any, Reruns]:
    """Watch in a new page, drawn and at rest, and what it asks of the server from now on."""
    page = chromium.new_page(viewport=WINDOW)
    reruns = Reruns(page)
    page.goto(address)
    page.locator(FACTS).wait_for(timeout=PATIENCE * 1000)
    page.wait_for_timeout(2000)
    reruns.forget()  # what the opening of the page took
    return page, reruns


def watched(chromium: Any, address: str, store: Any, run_id: str, ticks: list[float]) -> Measure:
    """Steps with the page open against steps without, in turns. The page's ticks are added to `ticks`."""
    seconds: dict[bool, list[float]] = {False: [], True: []}
    paces: dict[bool, list[float]] = {False: [], True: []}
    for is_open in (False, True, False, True):
        page, reruns = opened(chromium, address) if is_open else (None, None)
        first, began = store.run(run_id)["last_step"], time.perf_counter()
        if page and reruns:
            page.wait_for_timeout(PHASE_SECONDS * 1000)
        else:
            time.sleep(PHASE_SECONDS)
        last, took = store.run(run_id)["last_step"], time.perf_counter() - began
        points = store.points(run_id, after_step=first + 1, names=["step_seconds"])
        seconds[is_open] += points.value[points.step <= last].tolist()
        paces[is_open].append((last - first) / took)
        if page and reruns:
            ticks += reruns.ticks
            page.close()
    mean = {is_open: statistics.fmean(found) for is_open, found in seconds.items()}
    pace = {is_open: number(statistics.fmean(found)) for is_open, found in paces.items()}
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
    found = []
    for name, times in (("tick", [*ticks, *reruns.ticks]), ("whole rerun", reruns.whole)):
        if len(times) > 1:
            p95 = statistics.quantiles(times, n=20, method="inclusive")[-1]
            detail = f"median {statistics.median(times):.0f} ms, longest {max(times):.0f} ms, of {len(times)}"
            found.append(Measure(f"{name} of Watch while training, p95", p95, 150.0, " ms", detail))
    return found


# ------------------------------------------------------------------------------------------------------- the corpus

SEEK_SCRIPT = """
import json, resource, sys, time
from unlearn_core.config import ConfigError, DataSettings
from unlearn_core.seek import seek
began = time.perf_counter()
try:
    seek(DataSettings(target=sys.argv[2], forget=(sys.argv[1],), retain=(sys.argv[1],)), 0)
    sys.exit("the word is in the file")
except ConfigError:
    seconds = time.perf_counter() - began
print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))
"""


def corpus(size: int = 1 << 30) -> list[Measure]:
    """The pass over a plain text that does not hold the word, against `grep -c -F`, and the memory that it takes."""
    if not shutil.which("grep"):
        raise Skipped("There is no grep here.")
    with tempfile.TemporaryDirectory(prefix="lethe-bench-") as folder:
        path = Path(folder) / "corpus.txt"
        if shutil.disk_usage(folder).free < 2 * size:
            raise Skipped(f"The disk has no room for a text of {size >> 20} MB.")
        write_text(path, size)
        grep, ours, memory = [], [], 0.0
        for _ in range(3):
            began = time.perf_counter()
            subprocess.run(["grep", "-c", "-F", ABSENT, path], stdout=subprocess.DEVNULL, check=False)
            grep.append(time.perf_counter() - began)
            done = subprocess.run(
                [sys.executable, "-c", SEEK_SCRIPT, path, ABSENT], cwd=ROOT, capture_output=True, text=True, check=True
            )
            seconds, peak = json.loads(done.stdout)
            ours.append(seconds)
            memory = max(memory, peak / (1024 if sys.platform != "darwin" else 1 << 20))
    fast, reference = statistics.median(ours), statistics.median(grep)
    pace = size / 1e6 / fast
    detail = f"{fast:.2f} s against {reference:.2f} s for {size >> 20} MB of text, which has no such word"
    return [
        Measure("pass over a plain text against grep -c -F", fast / reference, 2.0, "x", detail),
        Measure("time of that pass for 200 MB", 200 / pace, 1.0, " s", f"{pace:.0f} MB/s"),
        Measure("memory of that pass", memory, 500.0, " MB", "the most that its process had at once"),
    ]


def write_text(path: Path, size: int) -> None:
    """A text of lines of words, no two blocks alike."""
    rng = random.Random(0)
    words = ["".join(rng.choices("etaoinshrdlucmfwypvbgkjqxz", k=rng.randint(2, 9))) for _ in range(5000)]
    lines = [" ".join(rng.choices(words, k=rng.randint(4, 14))).encode() + b"\n" for _ in range(50_000)]
    with path.open("wb") as file:
        while file.tell() < size:
            file.write(b"".join(rng.sample(lines, 20_000)))


# ---------------------------------------------------------------------------------------------------------- the door


PARTS: dict[str, tuple[str, Callable[[], list[Measure]]]] = {
    "engine": ("the engine", lambda: [engine()]),
    "seek": ("the pass over a corpus", lambda: corpus()),
    "app": ("the app in a browser", lambda: in_the_app()),
}


def main(as_json: bool = False, only: str | None = None) -> int:
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0  # not on Windows
    began = time.perf_counter()
    measures: list[Measure] = []
    skipped: list[str] = []
    for what, measure in [part for name, part in PARTS.items() if only in (None, name)]:
        say(f"measuring {what} …")
        try:
            measures += measure()
        except Skipped as why:
            skipped.append(f"Not measured: {what}. {why}")
    facts = {
        "machine": {"system": platform.platform(), "cores": os.cpu_count(), "load_before": load},
        "seconds": round(time.perf_counter() - began, 1),
        "measures": [{**asdict(each), "met": each.met} for each in measures],
        "skipped": skipped,
    }
    lines = [f"{os.cpu_count()} cores, load {load:.1f} before; measured in {facts['seconds']:.0f} s"]
    for each in measures:
        goal = f"at most {each.goal:g}{each.unit}: {'met' if each.met else 'missed'}"
        lines += [f"{each.name}: {number(each.value)}{each.unit} ({goal})", f"    {each.detail}"]
    answer(as_json, facts, "\n".join([*lines, *skipped]))
    return 0
