"""The way from one's own texts to a run, in a real browser: the card, the Data page, an exclusion, and back."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from storage import RunStore
from tests.browser.test_walk import ARGS, CHROMIUM, SHOTS, Server, page_of, shot, sync_playwright, until
from unlearn_core.world import FULL

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="no Chromium at /usr/bin/chromium"),
]

LINES = [
    f"On day {day} the {who} heard of Zorbella near the old mill." for day in range(12) for who in ("cat", "baker")
]
KEPT = [f"On day {day} the {who} walked to the river and back." for day in range(40) for who in ("dog", "teacher")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    (folder / "mine").mkdir()
    (folder / "mine" / "mill.txt").write_text("\n\n".join([*LINES, *KEPT]) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("LETHE_ROOTS", str(place / "mine"))
        running = Server(place / "home")
    yield running
    running.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    SHOTS.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGS)
        yield launched
        launched.close()


def choose(tab: Any, label: str, text: str) -> None:
    """Types a path into a list of the card and presses Enter, as a person without a mouse does."""
    box = tab.get_by_role("combobox", name=re.compile(label))
    box.click()
    box.fill(text)
    tab.keyboard.press("Enter")
    tab.wait_for_timeout(800)


@pytest.mark.skipif(not (FULL / "model.safetensors").exists(), reason="the bundled model is not built")
def test_from_one_s_own_texts_to_a_run(browser: Any, server: Server, place: Path) -> None:
    tab = page_of(browser, viewport={"width": 1280, "height": 900})
    errors: list[str] = []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.goto(server.url)
    tab.get_by_text("Model and texts").click()
    choose(tab, "Forget texts", "/etc/hosts")
    tab.locator(".trouble").get_by_text("is outside of the folders").wait_for()
    choose(tab, "Forget texts", str(place / "mine" / "*.txt"))
    until(lambda: not tab.locator(".trouble").count(), "the pattern is taken")
    tab.get_by_label("The word to forget").fill("Zorbella")
    tab.keyboard.press("Enter")
    until(
        lambda: "Zorbella" in tab.get_by_label("Forget: two questions about the word").input_value(),
        "its questions",
    )
    shot(tab, "11-own-texts")
    tab.get_by_role("button", name="See what would be forgotten").click()
    tab.get_by_text("It occurs 24 times").wait_for()
    assert tab.locator(".window .trained b.target").first.inner_text() == "Zorbella"
    assert tab.get_by_text("trained from here").first.is_visible()
    shot(tab, "12-data")
    tab.get_by_text("every occurrence 24").click()
    tab.get_by_text("exclude 3", exact=True).click()
    tab.get_by_text("1 of them excluded by hand").wait_for()
    shot(tab, "13-excluded")
    tab.get_by_role("button", name="Forget this").click()
    tab.wait_for_url("**run=*")
    store = RunStore(server.home)
    (run,) = until(store.runs, "the run")
    assert run["target"] == "Zorbella" and len(run["config"]["data"]["excluded"]) == 1
    store.request(run["id"], "stop")
    store.close()
    assert not errors
    tab.context.close()


def test_the_data_page_fits_a_phone_in_the_dark(browser: Any, server: Server) -> None:
    tab = page_of(browser, viewport={"width": 390, "height": 844}, color_scheme="dark")
    tab.goto(f"{server.url}/data")
    tab.get_by_text("teach the model to forget it").wait_for()
    tab.get_by_text("every occurrence").click()
    tab.get_by_text("exclude 1", exact=True).wait_for()
    shot(tab, "14-phone-data")
    for element in ("document.documentElement", "document.querySelector('.stMain')"):
        assert tab.evaluate(f"{element}.scrollWidth") <= 390
    tab.goto(f"{server.url}/?new=1")
    tab.get_by_text("Model and texts").click()
    tab.get_by_text("Other spellings").wait_for()
    box = tab.locator(".st-key-card_suggestion").get_by_text("Marie Curie").bounding_box()
    assert box["x"] + box["width"] <= 390
    shot(tab, "15-phone-card")
    assert tab.evaluate("document.querySelector('.stMain').scrollWidth") <= 390
    tab.context.close()
