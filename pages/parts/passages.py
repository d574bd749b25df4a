"""What a look found, as HTML: totals, sets, windows, occurrences. Texts of a corpus are shown, never obeyed."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pages.parts import diff, story

SETS = {"forget": "to forget", "retain": "to keep", "neighbour": "to keep · near", "holdout": "to measure"}
ABOUT = {
    "forget": "The model is taught not to know the underlined text. What comes before it is only read.",
    "retain": "The model is held to what it knows here.",
    "neighbour": "About the same things without the word: what forgetting damages first.",
    "holdout": "Never trained on: it tells whether what shall be kept is kept.",
}
CONTEXT_SHOWN, TRAINED_SHOWN = 280, 560  # characters, before "show all"
AROUND = 90  # characters either side of an occurrence


def size(count: float) -> str:
    """A number of bytes, as a person writes it."""
    units = ["bytes", "kB", "MB", "GB", "TB"]
    while count >= 999.5 and len(units) > 1:
        count, units = count / 1000, units[1:]
    return f"{count:.0f} bytes" if units[0] == "bytes" else f"{story.three(count)} {units[0]}"


def counted(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def sentence(facts: Mapping[str, Any], everything: bool) -> str:
    """What there is to forget and to keep, in a sentence."""
    sets = facts["sets"]
    forget = sets.get("forget", {}).get("windows", 0)
    keep = sum(sets.get(name, {}).get("windows", 0) for name in ("retain", "neighbour"))
    teaches = "teaches" if forget == 1 else "teach"
    way = f"{counted(forget, 'window')} {teaches} the model to forget it; {counted(keep, 'text')} hold it to the rest."
    if everything:
        return f"Everything is to be forgotten of {counted(facts['occurrences'] or facts['documents'], 'text')}. {way}"
    often = "once" if facts["occurrences"] == 1 else f"{facts['occurrences']:,} times"
    out = sum(bool(each["excluded"]) for each in facts["found"])
    left = f", {out:,} of them excluded by hand" if out else ""
    read = counted(facts["documents"], "text")
    return f"It stands {often} in what was read ({read}){left}. {way}"


def progress(told: Mapping[str, Any]) -> str:
    """How far a look is: bytes, hits, time left."""
    total, left = told.get("bytes_total") or 0, told.get("seconds_left")
    read = size(told.get("bytes_read", 0)) + (f" of {size(total)}" if total else " read")
    parts = [read, f"found {counted(told.get('hits', 0), 'time')}"]
    if left is not None:
        parts.append(f"{story.duration(left)} left")
    return " · ".join(parts)


def reading(facts: Mapping[str, Any]) -> str:
    """How the look went, once it is done."""
    seconds = facts.get("seconds", 0.0)
    way = f"read in {story.duration(seconds)}" if seconds >= 1 else "read at once"
    way = "known from an earlier look" if facts.get("cached") else way
    return f"{size(facts['bytes'])} of texts, {way}."


# ----------------------------------------------------------------------------------------------------- the totals


def gauges(facts: Mapping[str, Any], everything: bool = False) -> str:
    """Four tiles: how much was read, how often it stands there, what a step will take in time and in memory."""
    seconds, memory = facts.get("step_seconds"), facts.get("memory") or {}
    needed, there = memory.get("total"), memory.get("available")
    fits = memory.get("fits", True)
    tokens = facts.get("step_tokens")
    step = [facts.get("step_seconds_from") or "", f"{tokens:,} tokens a step" if tokens else ""]
    room = f"of {size(there)} that are there" if there else "what is there is not known"
    room = room if fits else f"more than the {size(there or 0)} that are there"
    tiles = [
        ("texts", f"{facts['documents']:,}", size(facts["bytes"])),
        (
            "to forget" if everything else "occurrences",
            f"{facts['occurrences']:,}",
            "texts, whole: no word is looked for" if everything else "of the word, in all its spellings",
        ),
        ("a step will take", _seconds(seconds), "; ".join(filter(None, step)) or "measured once a run has begun"),
        ("memory", size(needed) if needed else "–", room),
    ]
    found = "".join(
        f"<div class='gauge'><dt>{html.escape(label)}</dt><dd>{html.escape(value)}</dd>"
        f"<small>{html.escape(note)}</small></div>"
        for label, value, note in tiles
    )
    return f"<dl class='gauges'>{found}</dl>"


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{story.three(seconds)} s" if seconds < 60 else story.duration(seconds)


def table(facts: Mapping[str, Any]) -> str:
    """Windows, tokens and trained tokens of every set."""
    rows = "".join(
        f"<tr><th scope='row' data-role='{name}'>{label}</th>"
        + "".join(f"<td>{facts['sets'][name].get(key, 0):,}</td>" for key in ("windows", "tokens", "trained_tokens"))
        + "</tr>"
        for name, label in SETS.items()
        if name in facts["sets"]
    )
    heads = "".join(f"<th scope='col'>{head}</th>" for head in ("texts", "windows", "tokens", "trained on"))
    return f"<table class='sets'><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"


def pieces(facts: Mapping[str, Any]) -> str:
    """How the tokenizer cuts the target."""
    if not facts.get("pieces"):
        return ""
    cut = "".join(f"<code>{html.escape(diff.visible(piece))}</code>" for piece in facts["pieces"])
    many = counted(len(facts["pieces"]), "piece")
    return f"<p class='pieces'><span>The tokenizer cuts it into {many}:</span> {cut}</p>"


def notes(facts: Mapping[str, Any]) -> str:
    """What a person should know of the reading."""
    if not facts["notes"]:
        return ""
    rows = "".join(f"<li>{html.escape(diff.inner(note))}</li>" for note in facts["notes"])
    return f"<section class='notes'><h2 class='over'>Met on the way</h2><ul>{rows}</ul></section>"


def given(facts: Mapping[str, Any]) -> str:
    """What of the model is adapted, and the exact text that it is given; closed at first."""
    model = facts.get("model") or {}
    if not model:
        return ""
    modules = ", ".join(model.get("modules", ())) or "its query and value projections"
    limit = f" It reads at most {model['limit']:,} tokens." if model.get("limit") else ""
    memory = (facts.get("memory") or {}).get("parts") or {}
    parts = ", ".join(f"{name.replace('_', ' ')} {size(count)}" for name, count in memory.items())
    rows = "".join(
        f"<li><p>{html.escape(diff.inner(each['text']))}</p><pre>{html.escape(diff.inner(each['shown']))}</pre></li>"
        for each in model.get("prompts", ())
    )
    return (
        "<details class='given'><summary>What the model is given, and what of it learns</summary>"
        f"<p>What learns: small layers beside {html.escape(modules)}.{limit}</p>"
        + (f"<p>Memory: {html.escape(parts)}.</p>" if parts else "")
        + (f"<p>Each question, and the exact text that the model sees:</p><ul>{rows}</ul>" if rows else "")
        + "</details>"
    )


# ------------------------------------------------------------------------------------------------------ the windows


def legend(name: str) -> str:
    """The marks of a window in words."""
    verb = "measured" if name == "holdout" else "trained on"
    target = " · <b class='target'>the word</b>" if name == "forget" else ""
    return (
        f"<p class='legend'>{ABOUT[name]}<br><span class='context'>context: read, not {verb}</span> · "
        f"<span class='trained'>underlined: {verb}</span>{target}</p>"
    )


def wanted(windows: Iterable[Mapping[str, Any]], name: str, search: str) -> list[Mapping[str, Any]]:
    """The windows of a set that hold what is searched for, in text, place or reason."""
    needle = search.strip().casefold()
    of_set = [window for window in windows if window["set"] == name]
    keys = ("context", "trained", "source", "place", "why")
    return [w for w in of_set if not needle or any(needle in str(w.get(key, "")).casefold() for key in keys)]


def window(found: Mapping[str, Any], number: int, marks: re.Pattern[str] | None) -> str:
    """One window: context, where the training begins, what is trained on, where it came from and why."""
    verb = "measured" if found["set"] == "holdout" else "trained"
    context, trained = found["context"], found["trained"]
    start, end = context[-CONTEXT_SHOWN:], trained[:TRAINED_SHOWN]
    cut = len(start) < len(context) or len(end) < len(trained)

    def text(before: str, after: str, open_before: bool, open_after: bool) -> str:
        return (
            f"<p class='text'>{'<i>… </i>' if open_before else ''}<span class='context'>{_plain(before)}</span>"
            f"<b class='from'>{verb} from here</b><span class='trained'>{_marked(after, marks)}</span>"
            f"{'<i> …</i>' if open_after else ''}</p>"
        )

    body = text(start, end, len(start) < len(context), len(end) < len(trained))
    if cut:
        whole = text(context, trained, False, False)
        body = f"<div class='cut'>{body}</div><details><summary>show all</summary>{whole}</details>"
    size = f"{found['tokens']:,} tokens, {found['trained_tokens']:,} of them {verb}"
    return (
        f"<article class='window' data-role='{html.escape(found['set'])}'><h3>{number}. {_where(found)}</h3>{body}"
        f"<p class='why'>{_plain(found['why'])}{' · ' if found['why'] else ''}{size}</p></article>"
    )


def marks_of(facts: Mapping[str, Any]) -> re.Pattern[str] | None:
    """What the word looks like wherever it was found, to mark it in the windows."""
    spellings = sorted({each["target"] for each in facts["found"] if each["target"].strip()}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, spellings[:50]))) if spellings else None


def _marked(text: str, marks: re.Pattern[str] | None) -> str:
    if marks is None:
        return _plain(text)
    parts, at = [], 0
    for hit in marks.finditer(text):
        parts += [_plain(text[at : hit.start()]), f"<b class='target'>{_plain(hit.group())}</b>"]
        at = hit.end()
    return "".join([*parts, _plain(text[at:])])


def _plain(text: str) -> str:
    return html.escape(diff.inner(text))


def _where(found: Mapping[str, Any]) -> str:
    # Only the file's name: the folders above are the same for most, and too long for a line.
    source = str(found["source"]).rstrip("/").rsplit("/", 1)[-1]
    place = f", {_plain(found['place'])}" if found.get("place") else ""
    return f"<span title='{html.escape(str(found['source']), quote=True)}'>{_plain(source)}</span>{place}"


def occurrence(found: Mapping[str, Any], number: int) -> str:
    """One occurrence in its line."""
    before, after = str(found["before"])[-AROUND:], str(found["after"])[:AROUND]
    out = "<span class='out'>excluded</span> " if found["excluded"] else ""
    return (
        f"<div class='occurrence{' gone' if found['excluded'] else ''}'>"
        f"<p>{out}{_plain(before)}<b class='target'>{_plain(found['target'])}</b>{_plain(after)}</p>"
        f"<p class='why'>{number}. {_where(found)}</p></div>"
    )
