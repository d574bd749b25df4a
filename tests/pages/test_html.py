"""HTML is built by one helper: what is not Markup becomes text, in a child as in an attribute."""

from __future__ import annotations

import ast
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markupsafe import Markup

from pages.shared.diff import segments, side
from pages.shared.html import difference, element, joined
from tests.pages.test_pages import HOSTILE

PAGES = Path(__file__).parents[2] / "pages"


class Reader(HTMLParser):
    """What a browser makes of HTML: the tags with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(str(text))  # of Markup, "+" would escape once more
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("path", sorted(PAGES.rglob("*.py")), ids=lambda path: str(path.relative_to(PAGES)))
def test_no_page_escapes_by_hand_or_writes_tags_around_a_value(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    assert "html" not in imported
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    for call in calls:
        if call.func.attr == "html":  # type: ignore[attr-defined]
            assert not any(isinstance(given, ast.JoinedStr) for given in call.args), f"line {call.lineno}"


@pytest.mark.parametrize(
    "text", [*HOSTILE[:3], "' onmouseover='alert(1)", '" autofocus onfocus="alert(1)', "&lt;b&gt;"]
)
def test_hostile_text_is_text_in_a_child_an_attribute_and_a_difference(text: str) -> None:
    read = Reader(element("p.told", "before ", text, title=text, data_role="x"))
    assert read.tags == [("p", {"class": "told", "title": text, "data-role": "x"})] and read.text == f"before {text}"
    read = Reader(joined(text, [text, element("b", text)], None))
    assert [tag for tag, _ in read.tags] == ["b"] and read.text == text * 3
    read = Reader(difference(side(f"old {text}", f"new {text}", "ins")))
    assert [tag for tag, _ in read.tags] == ["ins"] and read.text == f"new {text}"


def test_what_is_markup_already_is_not_escaped_again() -> None:
    assert element("p", element("b", "1 < 2"), Markup("<br>"), None) == "<p><b>1 &lt; 2</b><br></p>"
    assert element("i", style="width:3%", hidden=None) == "<i style='width:3%'></i>"
    assert difference(segments("a <b>", "a <i>")) == "a &lt;<del>b</del><ins>i</ins>&gt;"
