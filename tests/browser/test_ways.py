"""Another method and its settings, chosen by keyboard in a real browser; the Methods page; both on a phone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from storage import RunStore
from tests.browser.test_walk import ARGS, CHROMIUM, SHOTS, Server, page_of, shot, sync_playwright, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="no Chromium at /usr/bin/chromium"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("ways") / "home")
    yield running
    running.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    SHOTS.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGS)
        yield launched
        launched.close()


def open_row(tab: Any) -> None:
    tab.get_by_text("Method and settings").click()
    tab.get_by_role("combobox", name=re.compile("^Method")).wait_for()


def choose(tab: Any, label: str, typed: str) -> None:
    """Types into a list to search it and presses Enter, as a person without a mouse does."""
    box = tab.get_by_role("combobox", name=re.compile(label))
    box.click()
    box.fill(typed)
    tab.keyboard.press("Enter")


def told(tab: Any, words: str) -> None:
    tab.locator(".st-key-start_row").get_by_text(words).wait_for()


def test_another_method_with_its_settings_becomes_the_run(browser: Any, server: Server) -> None:
    tab = page_of(browser, viewport={"width": 1280, "height": 1100})
    errors: list[str] = []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.goto(server.url)
    open_row(tab)
    choose(tab, "^Method", "NPO without")
    told(tab, "NPO without a reference (SimNPO) instead of Counterfactual distillation")
    assert tab.locator(".st-key-ways .katex").first.is_visible()
    shot(tab, "16-method")
    tab.get_by_role("tab", name="Optimizer and steps").click()
    rate = tab.get_by_label("Learning rate", exact=True)
    rate.fill("3.5e-4")
    tab.keyboard.press("Enter")
    told(tab, "learning rate 3.5e-4 instead of 8e-4")
    tab.get_by_role("tab", name="Guard rail").click()
    choose(tab, "^Guard rail", "one-sided")
    tab.locator(".st-key-ways").get_by_text("one-sided (GRU, A-GEM) instead of none").wait_for()
    tab.get_by_role("button", name="as the recipe has it").click()
    tab.locator(".st-key-ways").get_by_text("All as the recipe has it.").wait_for()
    tab.get_by_role("tab", name="Optimizer and steps").click()
    assert rate.input_value() == "8e-4"
    rate.fill("")
    tab.keyboard.press("Tab")  # an emptied field is the recipe's again
    until(lambda: rate.input_value() == "8e-4", "the recipe's learning rate is back")
    rate.fill("3.5e-4")
    tab.keyboard.press("Enter")
    told(tab, "learning rate 3.5e-4 instead of 8e-4")
    tab.get_by_role("button", name="Start").click()
    store = RunStore(server.home)
    (run,) = until(store.runs, "the run")
    assert run["config"]["optimizer"]["learning_rate"] == 3.5e-4 and run["method"] == "counterfactual"
    store.request(run["id"], "stop")
    store.close()
    assert not errors
    tab.context.close()


def test_methods_are_searched_and_taken_to_the_card(browser: Any, server: Server) -> None:
    tab = page_of(browser, viewport={"width": 1280, "height": 900})
    tab.goto(f"{server.url}/methods?find=arXiv+2404.05868")
    tab.get_by_role("heading", name="Negative preference (NPO)").wait_for()
    tab.locator(".st-key-method_npo .katex").first.wait_for()
    assert not tab.locator(".st-key-method_rmu").count()
    tab.get_by_label("Find a method").fill("nothing of this kind")
    tab.keyboard.press("Enter")
    tab.get_by_text("No method has “nothing of this kind” in it.").wait_for()
    tab.get_by_role("button", name="Show all methods").click()
    tab.locator(".st-key-method_rmu").wait_for()
    tab.locator(".st-key-by_npo button").first.click()
    told(tab, "Negative preference (NPO) instead of Counterfactual distillation")
    tab.context.close()


def test_a_phone_has_room_for_methods_and_their_settings(browser: Any, server: Server) -> None:
    tab = page_of(browser, viewport={"width": 390, "height": 844}, color_scheme="dark")
    tab.goto(f"{server.url}/methods")
    tab.get_by_text("one backward pass").wait_for()
    shot(tab, "17-phone-methods")
    assert tab.evaluate("document.querySelector('.stMain').scrollWidth") <= 390
    tab.goto(f"{server.url}/?new=1")
    open_row(tab)
    for name in ("Guard rail", "Optimizer and steps", "Where", "Pauses and defects", "Method"):
        tab.get_by_role("tab", name=name, exact=True).click()
        tab.wait_for_timeout(300)
        assert tab.evaluate("document.querySelector('.stMain').scrollWidth") <= 390
    shot(tab, "18-phone-ways")
    tab.context.close()
