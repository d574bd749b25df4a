"""The texts of a look as HTML: totals, sets, windows, occurrences."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from markupsafe import Markup

from pages.shared import diff
from pages.shared.format import counted, duration, size, step_time
from pages.shared.html import element, joined

SETS = ("forget", "retain", "neighbour", "holdout")
ABOUT = {
    "forget": "The underlined text is unlearned; the text before it is context and has no loss.",
    "retain": "The model should keep what it knows of these texts.",
    "neighbour": "About the same topics without the word: forgetting damages these texts first.",
    "holdout": "Never trained on: its loss shows whether retain texts are unlearned too.",
}
CONTEXT_SHOWN, TRAINED_SHOWN = 280, 560  # characters, before "show all"
AROUND = 90  # characters either side of an occurrence


def sentence(facts: Mapping[str, Any], everything: bool) -> str:
    """The sizes of the forget and retain sets in a sentence."""
    sets = facts["sets"]
    forget = sets.get("forget", {}).get("windows", 0)
    keep = sum(sets.get(name, {}).get("windows", 0) for name in ("retain", "neighbour"))
    teaches = f"{counted(forget, 'forget window')} {'teaches' if forget == 1 else 'teach'} the model to forget it"
    way = f"{teaches}; {counted(keep, 'retain text')} to keep the rest."
    if everything:
        return f"All of these are forget texts: {counted(facts['occurrences'] or facts['documents'], 'text')}. {way}"
    often = "once" if facts["occurrences"] == 1 else f"{facts['occurrences']:,} times"
    out = sum(bool(each["excluded"]) for each in facts["found"])
    left = f", {out:,} of them excluded by hand" if out else ""
    read = counted(facts["documents"], "text")
    return f"It occurs {often} in {read}{left}. {way}"


def progress(state: Mapping[str, Any]) -> str:
    """How far a look is: bytes, hits, time left; before it, what else has to be made ready."""
    if state.get("stage"):
        return f"{state['stage']} · {state['detail']}" if state.get("detail") else str(state["stage"])
    total, left = state.get("bytes_total") or 0, state.get("seconds_left")
    read = size(state.get("bytes_read", 0)) + (f" of {size(total)}" if total else " read")
    parts = [read, f"found {counted(state.get('hits', 0), 'time')}"]
    if left is not None:
        parts.append(f"{duration(left)} left")
    return " · ".join(parts)


def reading(facts: Mapping[str, Any]) -> str:
    """How the look went, once it is done."""
    seconds = facts.get("seconds", 0.0)
    way = f"read in {duration(seconds)}" if seconds >= 1 else "read at once"
    way = "known from an earlier look" if facts.get("cached") else way
    return f"{size(facts['bytes'])} of texts, {way}."


# ----------------------------------------------------------------------------------------------------- the totals


def gauges(facts: Mapping[str, Any], everything: bool = False) -> Markup:
    """Four tiles: texts read, occurrences, time of a step, memory of the run."""
    seconds, memory = facts.get("step_seconds"), facts.get("memory") or {}
    needed, there = memory.get("total"), memory.get("available")
    fits = memory.get("fits", True)
    tokens, step_takes = facts.get("step_tokens"), "–" if seconds is None else step_time(seconds)
    step = [facts.get("step_seconds_from") or "", f"{tokens:,} tokens a step" if tokens else ""]
    room = f"of {size(there)} that are there" if there else "what is there is not known"
    room = room if fits else f"more than the {size(there or 0)} that are there"
    tiles = [
        ("texts", f"{facts['documents']:,}", size(facts["bytes"])),
        (
            "to forget" if everything else "occurrences",
            f"{facts['occurrences']:,}",
            "whole texts: no word is searched for" if everything else "of the word, in all its spellings",
        ),
        ("a step will take", step_takes, "; ".join(filter(None, step)) or "measured once a run has begun"),
        ("memory", size(needed) if needed else "–", room),
    ]
    return element(
        "dl.gauges",
        (
            element("div.gauge", element("dt", label), element("dd", value), element("small", note))
            for label, value, note in tiles
        ),
    )


def table(facts: Mapping[str, Any]) -> Markup:
    """Windows, tokens and trained tokens of every set."""
    keys = ("windows", "tokens", "trained_tokens")
    rows = (
        element(
            "tr",
            element("th", name, scope="row", data_role=name),
            [element("td", f"{facts['sets'][name].get(key, 0):,}") for key in keys],
        )
        for name in SETS
        if name in facts["sets"]
    )
    heads = (element("th", head, scope="col") for head in ("texts", "windows", "tokens", "trained on"))
    return element("table.sets", element("thead", element("tr", heads)), element("tbody", rows))


def pieces(facts: Mapping[str, Any]) -> Markup | None:
    """How the tokenizer cuts the target."""
    if not facts.get("pieces"):
        return None
    cut = (element("code", diff.visible(piece)) for piece in facts["pieces"])
    many = counted(len(facts["pieces"]), "piece")
    return element("p.pieces", element("span", f"The tokenizer cuts it into {many}:"), " ", cut)


def notes(facts: Mapping[str, Any]) -> Markup | None:
    """What a person should know of the reading."""
    if not facts["notes"]:
        return None
    rows = (element("li", diff.inner(note)) for note in facts["notes"])
    return element("section.notes", element("h2.over", "Met on the way"), element("ul", rows))


def given(facts: Mapping[str, Any]) -> Markup | None:
    """The adapted layers and the exact input of the model; closed at first."""
    model = facts.get("model") or {}
    if not model:
        return None
    modules = ", ".join(model.get("modules", ())) or "its query and value projections"
    limit = f" It reads at most {model['limit']:,} tokens." if model.get("limit") else ""
    memory = (facts.get("memory") or {}).get("parts") or {}
    parts = ", ".join(f"{name.replace('_', ' ')} {size(count)}" for name, count in memory.items())
    rows = [
        element("li", element("p", diff.inner(each["text"])), element("pre", diff.inner(each["shown"])))
        for each in model.get("prompts", ())
    ]
    heading = element("p", "Each question, and the exact text that the model sees:")
    return element(
        "details.given",
        element("summary", "The model's input, and which layers are adapted"),
        element("p", f"What learns: small layers beside {modules}.{limit}"),
        element("p", f"Memory: {parts}.") if parts else None,
        (heading, element("ul", rows)) if rows else None,
    )


# ------------------------------------------------------------------------------------------------------ the windows


def legend(name: str) -> Markup:
    """The marks of a window in words."""
    verb = "measured" if name == "holdout" else "trained on"
    return element(
        "p.legend",
        ABOUT[name],
        Markup("<br>"),
        element("span.context", f"context: read, not {verb}"),
        " · ",
        element("span.trained", f"underlined: {verb}"),
        (" · ", element("b.target", "the word")) if name == "forget" else None,
    )


def wanted(windows: Iterable[Mapping[str, Any]], name: str, search: str) -> list[Mapping[str, Any]]:
    """The windows of a set that hold what is searched for, in text, place or reason."""
    needle = search.strip().casefold()
    of_set = [window for window in windows if window["set"] == name]
    keys = ("context", "trained", "source", "place", "why")
    return [w for w in of_set if not needle or any(needle in str(w.get(key, "")).casefold() for key in keys)]


def window(item: Mapping[str, Any], number: int, marks: re.Pattern[str] | None) -> Markup:
    """One window: context, where the training begins, what is trained on, where it came from and why."""
    verb = "measured" if item["set"] == "holdout" else "trained"
    context, trained = item["context"], item["trained"]
    start, end = context[-CONTEXT_SHOWN:], trained[:TRAINED_SHOWN]
    cut = len(start) < len(context) or len(end) < len(trained)

    def text(before: str, after: str, open_before: bool, open_after: bool) -> Markup:
        return element(
            "p.text",
            element("i", "… ") if open_before else None,
            element("span.context", diff.inner(before)),
            element("b.from", f"{verb} from here"),
            element("span.trained", _marked(after, marks)),
            element("i", " …") if open_after else None,
        )

    body = text(start, end, len(start) < len(context), len(end) < len(trained))
    if cut:
        whole = text(context, trained, False, False)
        body = joined(element("div.cut", body), element("details", element("summary", "show all"), whole))
    counts = f"{item['tokens']:,} tokens, {item['trained_tokens']:,} of them {verb}"
    why = " · ".join(filter(None, (diff.inner(item["why"]), counts)))
    heading = element("h3", f"{number}. ", _where(item))
    return element("article.window", heading, body, element("p.why", why), data_role=item["set"])


def marks_of(facts: Mapping[str, Any]) -> re.Pattern[str] | None:
    """A pattern of all spellings of the word in the texts, to mark it in the windows."""
    spellings = sorted({each["target"] for each in facts["found"] if each["target"].strip()}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, spellings[:50]))) if spellings else None


def _marked(text: str, marks: re.Pattern[str] | None) -> list[str]:
    if marks is None:
        return [diff.inner(text)]
    parts, at = [], 0
    for match in marks.finditer(text):
        parts += [diff.inner(text[at : match.start()]), element("b.target", diff.inner(match.group()))]
        at = match.end()
    return [*parts, diff.inner(text[at:])]


def _where(item: Mapping[str, Any]) -> Markup:
    # Only the file's name: the folders above are the same for most, and too long for a line.
    source = str(item["source"]).rstrip("/").rsplit("/", 1)[-1]
    place = f", {diff.inner(item['place'])}" if item.get("place") else None
    return joined(element("span", diff.inner(source), title=str(item["source"])), place)


def occurrence(item: Mapping[str, Any], number: int) -> Markup:
    """One occurrence in its line."""
    before, after = str(item["before"])[-AROUND:], str(item["after"])[:AROUND]
    out = (element("span.out", "excluded"), " ") if item["excluded"] else None
    target = element("b.target", diff.inner(item["target"]))
    return element(
        "div.occurrence.gone" if item["excluded"] else "div.occurrence",
        element("p", out, diff.inner(before), target, diff.inner(after)),
        element("p.why", f"{number}. ", _where(item)),
    )
