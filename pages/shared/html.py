"""HTML for `st.html`, built so that text is escaped: only what is `Markup` already becomes markup."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from markupsafe import Markup, escape

from pages.shared.diff import Segment

Child = str | Iterable[str] | None


def element(selector: str, *children: Child, **attributes: str | float | None) -> Markup:
    """`element("p.told", text, role="status")` -> `<p class='told' role='status'>text</p>`.

    `selector` is a tag with its classes. A child is text (escaped), `Markup`, several of either, or None (left out). An
    attribute that is None is left out; `_` in its name stands for `-`.
    """
    tag, *classes = selector.split(".")
    named = {"class": " ".join(classes) or None, **attributes}
    pairs = Markup("").join(
        Markup(" {}='{}'").format(name.replace("_", "-"), value) for name, value in named.items() if value is not None
    )
    return Markup("<{}{}>{}</{}>").format(tag, pairs, joined(*children), tag)


def joined(*children: Child) -> Markup:
    """The children one after the other, text escaped."""
    return Markup("").join(
        escape(child) if isinstance(child, str) else joined(*child) for child in children if child is not None
    )


def difference(segments: Sequence[Segment]) -> Markup:
    """A word diff with `<ins>` and `<del>`."""
    return joined(each.text if each.kind == "same" else element(each.kind, each.text) for each in segments)
