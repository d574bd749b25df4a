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
from unlearn_core.settings.run_config import RunConfig
from unlearn_core.world import FULL, TARGET

ROOT = Path(__file__).parent.parent.parent
CHROMIUM = Path("/usr/bin/chromium")
SHOTS = ROOT / "test-output"
PATIENCE = 300.0  # for what waits on the training of a busy machine; nothing here is measured by the clock
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
        until(lambda: _answers(self.port), "the server answers")

    def stop(self) -> None:
        """SIGTERM; the process goes by itself."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE)
        self.log.close()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def until(true: Callable[[], Any], what: str) -> Any:
    """Waits until `true()` is; its value. Fails, saying what did not happen."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if found := true():
            return found
        time.sleep(0.1)
    pytest.fail(f"not within {PATIENCE:.0f} s: {what}")


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


def page_of(browser: Any, **context: Any) -> Any:
    """A page of its own, as patient as `until`."""
    opened = browser.new_context(**context)
    opened.set_default_timeout(PATIENCE * 1000)
    return opened.new_page()


@pytest.fixture
def tab(browser: Any, server: Server) -> Iterator[Any]:
    page = page_of(browser, viewport={"width": 1280, "height": 900})
    yield page
    page.context.close()


@pytest.fixture(scope="module")
def store(browser: Any, server: Server) -> Iterator[RunStore]:
    """The store as another process sees it; a visit starts the worker."""
    page_of(browser).goto(server.url)
    until(lambda: (server.home / "lethe.db").exists(), "the store is there")
    opened = RunStore(server.home)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def live(server: Server, store: RunStore) -> str:
    """A run that goes on to the end of this file, whatever became of those before it."""
    for run in store.runs():
        if run["status"] not in ("stopped", "finished", "failed"):
            store.request(run["id"], "stop")
    config = RunConfig.from_dict({"preset": "post", "schedule": {"steps": 10_000}}).to_dict()
    facts = {"target": TARGET, "method": "grad_ascent", "config": config, "provenance": {}, "seed": 0}
    run_id = store.create_run(name="live", prompts=config["prompts"], **facts)
    until(lambda: store.run(run_id)["last_step"] >= 4, "its first steps")
    return run_id


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
    tab.locator(".facts").wait_for()


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
    tab.get_by_text("What the model says now").wait_for()
    shot(tab, "1-first-visit")
    tab.wait_for_function("document.querySelector('.answers')?.innerText.includes('Mary Poppins')")
    tab.locator(".answers .card[data-state=baseline]").first.wait_for()
    shot(tab, "2-what-it-says-now")


def _ten_steps(tab: Any) -> None:
    start(tab)
    until(lambda: step_of(tab) >= 1, "the first step")
    until(lambda: step_of(tab) >= 10, "ten steps")
    assert state_of(tab) == "running"
    shot(tab, "3-running")


def _zoom_is_kept(tab: Any) -> None:
    tab.locator(".live .nsewdrag").first.wait_for()
    box = tab.locator(".live .nsewdrag").first.bounding_box()
    tab.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + box["height"] / 2)
    tab.mouse.down()
    tab.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] / 2, steps=8)
    tab.mouse.up()
    until(lambda: "x=" in tab.evaluate("location.href"), "the zoom is in the address")
    zoomed, step = zoom(tab), step_of(tab)
    until(lambda: step_of(tab) >= step + 3, "three more ticks")
    assert zoom(tab) == zoomed
    shot(tab, "4-zoomed")


def _an_edit_survives_its_ticks(tab: Any) -> None:
    card = tab.locator(".answers .card").first
    card.get_by_role("button", name="edit").click()
    area = card.locator("textarea")
    area.fill("Where does supercali")
    step = step_of(tab)
    until(lambda: step_of(tab) >= step + 2, "two more ticks")
    assert area.input_value() == "Where does supercali"
    assert tab.evaluate("document.activeElement.tagName") == "TEXTAREA"
    area.fill("Where does supercalifragilisticexpialidocious come from?")
    shot(tab, "5-editing")
    card.get_by_role("button", name="Ask it this way").click()
    until(lambda: "come from?" in card.locator("h3").inner_text(), "the new wording, at once")
    until(lambda: card.get_attribute("data-state") != "waiting", "its answers, before and now")
    assert "Asked in these words since step" in card.locator(".note").inner_text()


def _pause_and_compare(tab: Any) -> None:
    tab.locator("h1").first.click()
    tab.keyboard.press("p")
    until(lambda: state_of(tab) == "paused", "it is paused")
    paused = step_of(tab)
    shot(tab, "6-paused")
    tab.get_by_role("link", name="Compare").click()
    tab.get_by_text(re.compile("^From A · step 0 to B · step")).wait_for()
    tab.get_by_label("Ask every column").fill("Who is Mary Poppins?")
    tab.get_by_role("button", name="Ask", exact=True).click()
    tab.get_by_text(re.compile("answered by this step's checkpoint")).first.wait_for()
    shot(tab, "7-compared")
    assert f"%40{paused}" in tab.url or f"@{paused}" in tab.url


def _resume_reload_and_stop(tab: Any) -> None:
    tab.get_by_role("link", name="Watch").click()
    tab.locator(".facts").wait_for()
    paused = step_of(tab)
    tab.get_by_role("button", name="Resume").click()
    until(lambda: step_of(tab) >= paused + 2, "it goes on")
    tab.reload()
    tab.locator(".facts").wait_for()
    until(lambda: step_of(tab) >= paused + 2, "the same run after a reload")
    assert "run=" in tab.url
    tab.get_by_role("button", name="Stop").click()
    until(lambda: state_of(tab) == "stopped", "it is stopped")
    shot(tab, "8-stopped")


def test_a_killed_browser_leaves_the_run_going(browser: Any, server: Server, store: RunStore, live: str) -> None:
    tab = page_of(browser)
    tab.goto(f"{server.url}/?run={live}")
    until(lambda: step_of(tab) >= 4, "it is watched")
    tab.context.close()
    step = store.run(live)["last_step"]
    until(lambda: store.run(live)["last_step"] >= step + 3, "three more without a browser")
    assert store.run(live)["status"] == "running"


def test_a_new_run_can_be_begun_while_one_is_watched(tab: Any, server: Server, live: str) -> None:
    tab.goto(f"{server.url}/?run={live}")
    tab.get_by_role("button", name="New run").click()
    tab.get_by_role("button", name="Start").wait_for()
    tab.wait_for_url("**new=1**")
    tab.reload()
    tab.get_by_role("button", name="Start").wait_for()
    assert "new=1" in tab.url


def test_the_page_looks_back_where_the_slider_was_moved_and_nowhere_else(tab: Any, server: Server, live: str) -> None:
    """Ticks move the slider as well; a click on another button must not be taken for a choice of the step before."""
    tab.goto(f"{server.url}/?run={live}")
    tab.get_by_role("button", name="view", exact=True).click()
    for _ in range(6):
        step = step_of(tab)
        until(lambda step=step: step_of(tab) > step, "a tick")
        tab.get_by_text("logarithmic", exact=True).click()
    tab.keyboard.press("Escape")
    assert "step=" not in tab.url and tab.get_by_role("button", name="follow latest").is_disabled()
    slider = tab.get_by_role("slider", name="step", exact=True)
    entries = tab.evaluate("history.length")
    slider.fill("3")
    tab.wait_for_url("**step=3")
    until(lambda: tab.locator(".sentence").first.inner_text().startswith("Step 3:"), "step 3")
    tab.keyboard.press("ArrowLeft")
    tab.wait_for_url("**step=2")
    tab.get_by_role("button", name="follow latest").click()
    tab.wait_for_url(lambda address: "step=" not in address)
    assert tab.evaluate("history.length") == entries, "a stop of the slider is no page to go back to"
    for pressed in ("Pause", "Resume") * 2:  # only a hand on the slider or the chart leaves the newest step
        button = tab.locator(".st-key-pause_or_resume button").filter(has_text=pressed)
        button.click()
        until(lambda button=button: not button.count(), f"{pressed} is done")
        assert "step=" not in tab.url and tab.get_by_role("button", name="follow latest").is_disabled()


def test_a_knob_is_turned_while_the_run_goes_on_and_turned_back_by_one_click(
    tab: Any, server: Server, store: RunStore, live: str
) -> None:
    def changes() -> list[dict[str, Any]]:
        return [event for event in store.events(live) if event["kind"] == "changed"]

    tab.goto(f"{server.url}/?run={live}")
    tab.get_by_role("button", name="settings", exact=True).click()
    rate = tab.get_by_label("Learning rate", exact=True)
    was = float(until(rate.input_value, "the field has its value"))
    rate.fill("0.0001")
    rate.press("Tab")
    step = step_of(tab)
    until(lambda: step_of(tab) > step, "a tick")
    assert float(rate.input_value()) == 1e-4, "a tick leaves what is typed"
    tab.get_by_role("button", name="Use from the next step on").click()
    tab.locator(".told").filter(has_text="Settings: in force from step").wait_for()
    until(changes, "a step with it")
    shot(tab, "settings")
    tab.get_by_role("button", name="Undo", exact=True).first.click()
    until(lambda: len(changes()) == 2, "a step with it as it was")
    assert [event["payload"]["set"] for event in changes()] == [
        {"optimizer.learning_rate": 1e-4}, {"optimizer.learning_rate": was}
    ]  # fmt: skip
    points = store.points(live)
    rates = points[points.name == "learning_rate"].set_index("step").value
    first, second = (event["step"] for event in changes())
    assert rates[first - 1] == was and rates[first] == 1e-4 and rates[second] == was


def test_two_tabs_and_two_starts_have_one_worker(browser: Any, server: Server, store: RunStore, live: str) -> None:
    tabs = [page_of(browser) for _ in range(2)]
    for tab in tabs:
        tab.goto(f"{server.url}/?new=1")
        tab.get_by_text(re.compile("this run waits until it finishes")).wait_for()
        tab.keyboard.press("c")  # "Clear caches" is not within reach
        assert not tab.get_by_text("Clear caches").count()
    for tab in tabs:
        start(tab)
    until(lambda: [run["status"] for run in store.runs()].count("queued") == 2, "both wait")
    assert [run["id"] for run in store.runs() if run["status"] == "running"] == [live]
    assert len({run["lease_owner"] for run in store.runs() if run["lease_owner"]}) == 1
    tabs[0].get_by_text(re.compile("Waiting for “")).wait_for()
    shot(tabs[0], "9-waiting")
    for tab in tabs:
        tab.context.close()


def test_hostile_text_stays_text(tab: Any, server: Server, store: RunStore, live: str) -> None:
    step = int(store.responses(live)["step"].max())
    prompt = store.prompts(live, at_step=step)[0]
    text = "<img src=x onerror=\"document.title='owned'\"> :red[x] $$x$$ \x07 " + "word " * 10_000
    store.add_responses(live, [{"step": step, "prompt_id": prompt["id"], "text": text}])
    for address in (f"/?run={live}&step={step}", f"/compare?a={live}@0&b={live}@{step}"):
        tab.goto(server.url + address)
        tab.get_by_text("<img src=x onerror").first.wait_for()
        assert tab.locator("img[src=x]").count() == 0 and tab.title() != "owned"
        assert tab.evaluate("document.documentElement.scrollWidth") <= 1280


def test_a_phone_shows_everything_within_reach_of_a_finger(browser: Any, server: Server, live: str) -> None:
    tab = page_of(browser, viewport={"width": 390, "height": 844}, color_scheme="dark", has_touch=True, is_mobile=True)
    for page in ("compare", "runs", ""):
        tab.goto(f"{server.url}/{page}?run={live}")
        tab.locator(".strip").first.wait_for()
        tab.wait_for_timeout(1500)
        shot(tab, f"10-phone-{page or 'watch'}")
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390
        assert not tab.evaluate(SMALL_TARGETS), page
    tab.locator(".live .nsewdrag").first.wait_for()
    tab.locator(".live").scroll_into_view_if_needed()
    place, step = tab.evaluate("document.querySelector('.stMain').scrollTop"), tab.url
    box = tab.locator(".live .nsewdrag").first.bounding_box()
    _swipe(tab, box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, -200)
    until(
        lambda: tab.evaluate("document.querySelector('.stMain').scrollTop") > place, "a finger on it scrolls the page"
    )
    assert tab.url == step, "and chooses nothing"
    pages = tab.get_by_test_id("stExpandSidebarButton")
    assert pages.evaluate("(each) => getComputedStyle(each, '::after').content") == '"Pages"'
    pages.click()
    tab.get_by_test_id("stSidebarNavLink").filter(has_text="Runs").click()
    tab.wait_for_url("**/runs*")
    tab.context.close()


SMALL_TARGETS = """[...document.querySelectorAll('.stMain :is(button, summary, input[type=text]), header button')]
    .filter((each) => each.offsetParent && each.getBoundingClientRect().height < 44)
    .map((each) => each.outerHTML.slice(0, 120))"""


def _swipe(tab: Any, x: float, y: float, by: int) -> None:
    """A finger that is put down, moved `by` pixels and lifted, as the browser hears of it."""
    session = tab.context.new_cdp_session(tab)
    for kind, moved in (("touchStart", 0), *(("touchMove", by * part // 8) for part in range(1, 9))):
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y + moved}]})
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


def test_sigterm_saves_the_run_and_ends_the_process(server: Server, live: str) -> None:
    server.stop()
    store = RunStore(server.home)
    run = store.run(live)
    assert run["status"] == "interrupted"
    assert store.checkpoints(run["id"])[-1]["step"] == run["last_step"]
    assert store.checkpoints(run["id"])[-1]["complete"]
    store.close()
