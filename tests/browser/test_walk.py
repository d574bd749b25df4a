"""The whole way in a real browser, with the real worker and the bundled model. Skips where there is no Chromium."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from storage import RunStore
from unlearn_core.world import FULL

ROOT = Path(__file__).parent.parent.parent
CHROMIUM = Path("/usr/bin/chromium")
SHOTS = ROOT / "test-output"
ARGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
ARGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="no Chromium at /usr/bin/chromium"),
]
if not (FULL / "model.safetensors").exists():
    pytest.skip("the bundled model is not built", allow_module_level=True)
sync_playwright = pytest.importorskip("playwright.sync_api").sync_playwright


class Server:
    """The app as a process of its own, on an empty home."""

    def __init__(self, home: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.home = home
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = (home.parent / "server.log").open("w")
        command = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.port", str(self.port)]
        self.process = subprocess.Popen(
            [*command, "--server.headless", "true"],
            cwd=ROOT,
            env={**os.environ, "LETHE_HOME": str(home)},
            stdout=self.log,
            stderr=self.log,
        )
        until(lambda: _answers(self.port), 30, "the server answers")

    def stop(self) -> float:
        """Seconds that the process took to go after SIGTERM."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=60)
        self.log.close()
        return time.monotonic() - began


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def until(true: Callable[[], Any], seconds: float, what: str) -> Any:
    """Waits until `true()` is; its value. Fails, saying what did not happen."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := true():
            return found
        time.sleep(0.1)
    pytest.fail(f"not within {seconds:.0f} s: {what}")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("lethe") / "home")
    yield running
    if running.process.poll() is None:
        running.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    SHOTS.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGS)
        yield launched
        launched.close()


@pytest.fixture
def tab(browser: Any, server: Server) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    yield context.new_page()
    context.close()


@pytest.fixture(scope="module")
def store(server: Server) -> Iterator[RunStore]:
    """The store as another process sees it."""
    until(lambda: (server.home / "lethe.db").exists(), 60, "the store is there")
    opened = RunStore(server.home)
    yield opened
    opened.close()


def shot(tab: Any, name: str) -> None:
    tab.screenshot(path=str(SHOTS / f"{name}.png"))


def step_of(tab: Any) -> int:
    found = re.search(r"step (\d+) of", tab.locator(".facts").inner_text())
    return int(found.group(1)) if found else -1


def state_of(tab: Any) -> str:
    return str(tab.locator(".strip").first.get_attribute("data-status"))


def start(tab: Any, recipe: str = "As published") -> None:
    tab.get_by_text(recipe, exact=True).click()
    button = tab.get_by_role("button", name="Start")
    button.dblclick()  # an impatient person: it is one run all the same
    tab.locator(".facts").wait_for(timeout=30_000)


def zoom(tab: Any) -> tuple[float, float]:
    left, right = tab.evaluate("document.querySelector('.live')._fullLayout.xaxis.range")
    return round(left, 2), round(right, 2)


def test_the_walk(tab: Any, server: Server) -> None:
    errors: list[str] = []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    _first_visit(tab, server)
    _ten_steps(tab)
    _zoom_is_kept(tab)
    _an_edit_survives_its_ticks(tab)
    _pause_and_compare(tab)
    _resume_reload_and_stop(tab)
    assert not errors
    assert len(RunStore(server.home).runs()) == 1


def _first_visit(tab: Any, server: Server) -> None:
    tab.goto(server.url)
    tab.get_by_text("What the model says now").wait_for(timeout=20_000)
    shot(tab, "1-first-visit")
    tab.wait_for_function("document.querySelector('.answers')?.innerText.includes('Mary Poppins')", timeout=60_000)
    tab.locator(".answers .card[data-state=baseline]").first.wait_for(timeout=60_000)
    shot(tab, "2-what-it-says-now")


def _ten_steps(tab: Any) -> None:
    start(tab)
    until(lambda: step_of(tab) >= 1, 60, "the first step")
    until(lambda: step_of(tab) >= 10, 60, "ten steps")
    assert state_of(tab) == "running"
    shot(tab, "3-running")


def _zoom_is_kept(tab: Any) -> None:
    tab.locator(".live .nsewdrag").first.wait_for()
    box = tab.locator(".live .nsewdrag").first.bounding_box()
    tab.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + box["height"] / 2)
    tab.mouse.down()
    tab.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] / 2, steps=8)
    tab.mouse.up()
    until(lambda: "x=" in tab.evaluate("location.href"), 5, "the zoom is in the address")
    zoomed, step = zoom(tab), step_of(tab)
    until(lambda: step_of(tab) >= step + 3, 30, "three more ticks")
    assert zoom(tab) == zoomed
    shot(tab, "4-zoomed")


def _an_edit_survives_its_ticks(tab: Any) -> None:
    card = tab.locator(".answers .card").first
    card.get_by_role("button", name="edit").click()
    area = card.locator("textarea")
    area.fill("Where does supercali")
    step = step_of(tab)
    until(lambda: step_of(tab) >= step + 2, 30, "two more ticks")
    assert area.input_value() == "Where does supercali"
    assert tab.evaluate("document.activeElement.tagName") == "TEXTAREA"
    area.fill("Where does supercalifragilisticexpialidocious come from?")
    shot(tab, "5-editing")
    card.get_by_role("button", name="Ask it this way").click()
    until(lambda: "come from?" in card.locator("h3").inner_text(), 20, "the new wording")
    until(lambda: card.get_attribute("data-state") != "waiting", 20, "its answers, before and now")
    assert "Asked in these words since step" in card.locator(".note").inner_text()


def _pause_and_compare(tab: Any) -> None:
    tab.locator("h1").first.click()
    tab.keyboard.press("p")
    until(lambda: state_of(tab) == "paused", 20, "it is paused")
    paused = step_of(tab)
    shot(tab, "6-paused")
    tab.get_by_role("link", name="Compare").click()
    tab.get_by_text(re.compile("^From A · step 0 to B · step")).wait_for(timeout=15_000)
    tab.get_by_label("Ask every column").fill("Who is Mary Poppins?")
    tab.get_by_role("button", name="Ask", exact=True).click()
    tab.get_by_text(re.compile("answered by this step's checkpoint")).first.wait_for(timeout=30_000)
    shot(tab, "7-compared")
    assert f"%40{paused}" in tab.url or f"@{paused}" in tab.url


def _resume_reload_and_stop(tab: Any) -> None:
    tab.get_by_role("link", name="Watch").click()
    tab.locator(".facts").wait_for()
    paused = step_of(tab)
    tab.get_by_role("button", name="Resume").click()
    until(lambda: step_of(tab) >= paused + 2, 30, "it goes on")
    tab.reload()
    tab.locator(".facts").wait_for(timeout=20_000)
    until(lambda: step_of(tab) >= paused + 2, 20, "the same run after a reload")
    assert "run=" in tab.url
    tab.get_by_role("button", name="Stop").click()
    until(lambda: state_of(tab) == "stopped", 30, "it is stopped")
    shot(tab, "8-stopped")


def test_a_killed_browser_leaves_the_run_going(browser: Any, server: Server, store: RunStore) -> None:
    context = browser.new_context()
    tab = context.new_page()
    tab.goto(f"{server.url}/?new=1")
    start(tab)
    run_id = store.runs()[0]["id"]
    until(lambda: store.run(run_id)["last_step"] >= 2, 60, "two steps")
    context.close()
    step = store.run(run_id)["last_step"]
    until(lambda: store.run(run_id)["last_step"] >= step + 3, 30, "three more without a browser")
    assert store.run(run_id)["status"] == "running"


def test_a_new_run_can_be_begun_while_one_is_watched(browser: Any, server: Server, store: RunStore) -> None:
    tab = browser.new_context().new_page()
    live = next(run for run in store.runs() if run["status"] in ("running", "paused"))
    tab.goto(f"{server.url}/?run={live['id']}")
    tab.get_by_role("button", name="New run").click()
    tab.get_by_role("button", name="Start").wait_for(timeout=10_000)
    assert "new=1" in tab.url
    tab.context.close()


def test_two_tabs_and_two_starts_have_one_worker(browser: Any, server: Server, store: RunStore) -> None:
    tabs = [browser.new_context().new_page() for _ in range(2)]
    for tab in tabs:
        tab.goto(f"{server.url}/?new=1")
        tab.get_by_text(re.compile("this run waits until it pauses")).wait_for(timeout=20_000)
        tab.keyboard.press("c")  # "Clear caches" is not within reach
        assert not tab.get_by_text("Clear caches").count()
    for tab in tabs:
        start(tab)
    until(lambda: [run["status"] for run in store.runs()].count("queued") == 2, 10, "both wait")
    assert [run["status"] for run in store.runs()].count("running") == 1
    assert len({run["lease_owner"] for run in store.runs() if run["lease_owner"]}) == 1
    tabs[0].get_by_text(re.compile("Waiting for “")).wait_for(timeout=10_000)
    shot(tabs[0], "9-waiting")
    for tab in tabs:
        tab.context.close()


def test_hostile_text_stays_text(tab: Any, server: Server, store: RunStore) -> None:
    run = next(run for run in store.runs() if run["status"] == "stopped")
    prompt = store.prompts(run["id"], at_step=run["last_step"])[0]
    text = "<img src=x onerror=\"document.title='owned'\"> :red[x] $$x$$ \x07 " + "word " * 10_000
    rows = [{"step": run["last_step"], "prompt_id": prompt["id"], "text": text}]
    store.add_responses(run["id"], rows)
    for address in (f"/?run={run['id']}", f"/compare?a={run['id']}@0&b={run['id']}@{run['last_step']}"):
        tab.goto(server.url + address)
        tab.get_by_text("<img src=x onerror").first.wait_for(timeout=20_000)
        assert tab.locator("img[src=x]").count() == 0 and tab.title() != "owned"
        assert tab.evaluate("document.documentElement.scrollWidth") <= 1280


def test_a_phone_shows_everything_without_sideways_scrolling(browser: Any, server: Server, store: RunStore) -> None:
    tab = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme="dark").new_page()
    run = next(run for run in store.runs() if run["last_step"] > 3)
    for page in ("", "compare", "runs"):
        tab.goto(f"{server.url}/{page}?run={run['id']}")
        tab.locator(".strip").first.wait_for(timeout=20_000)
        tab.wait_for_timeout(1500)
        shot(tab, f"10-phone-{page or 'watch'}")
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    tab.context.close()


def test_sigterm_saves_the_run_and_ends_the_process(server: Server) -> None:
    assert server.stop() < 30
    store = RunStore(server.home)
    (run,) = [run for run in store.runs() if run["status"] == "interrupted"]
    assert store.checkpoints(run["id"])[-1]["step"] == run["last_step"]
    assert store.checkpoints(run["id"])[-1]["complete"]
    store.close()
