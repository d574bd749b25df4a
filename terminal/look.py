"""Read-only verbs: runs, one run, two steps side by side, windows."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pages.shared.diff import segments
from pages.shared.format import duration, size, step_time, three
from terminal.facts import find, summary, title
from terminal.text import FORGET, BadInput, answer, change, coloured, indented, marked, plain, table
from unlearn_core.metrics import METRICS, budgeted, budgeted_set
from unlearn_core.training.milestones import is_asked

if TYPE_CHECKING:
    from storage import RunStore

SHOWN_EVENTS = (
    "guard",
    "checkpoint_damaged",
    "resumed",
    "prompt_edited",
    "changed",
    "not_finite",
    "failed",
    "interrupted",
    "stopped",
)


def runs(args: argparse.Namespace, store: RunStore) -> int:
    summaries = [summary(store, run["id"], run) for run in store.runs()]
    rows = []
    for facts in summaries:
        now, first = facts["points"], facts["baseline"]
        moved = [change(point, now.get(point), first.get(point)) for point in (FORGET, budgeted(first))]
        place = f"{facts['step']}/{facts['steps']}"
        if budgeted_set(first) == "retain":
            moved[1] += " (retain)"
        since = ["–" if (at := facts["milestones"][name]) is None else str(at) for name in ("forgotten", "best")]
        rows.append([*(facts[key] for key in ("id", "name", "status")), place, *moved, *since])
        rows[-1] += [facts["method"], facts["target"]]
    heads = ("id", "name", "status", "step", "forget", "holdout", "forgotten", "best", "method", "target")
    nothing = f"There are no runs in {store.home} yet; python cli.py run begins one."
    answer(args.json, summaries, table(heads, rows) if rows else nothing)
    return 0


# ---------------------------------------------------------------------------------------------------- one run


def show(args: argparse.Namespace, store: RunStore) -> int:
    run = find(store, args.run)
    before, now = answers_at(store, run["id"], 0), answers_at(store, run["id"], run["last_step"])
    facts = {
        **summary(store, run["id"], run),
        "answers": [{**entry, "before": before.get(text, {}).get("text")} for text, entry in now.items()],
        "events": store.events(run["id"]),
        "checkpoints": store.checkpoints(run["id"]),
        "config": run["config"],
        "provenance": run["provenance"],
    }
    answer(args.json, facts, "\n".join(_shown(facts)))
    return 0


def _shown(facts: Mapping[str, Any]) -> Iterator[str]:
    """A run for a person: state, numbers against the baseline, what happened, answers with their changed words."""
    place = f"{facts['status']} at step {facts['step']} of {facts['steps']}"
    yield coloured(f"{title(facts)} {place}", "bold") + (f": {plain(facts['reason'])}" if facts["reason"] else "")
    yield f"forgets {plain(facts['target'])}  by {facts['method']}  preset {facts['preset']}  seed {facts['seed']}"
    yield from _milestones(facts["milestones"], budgeted_set(facts["baseline"]))
    yield from _numbers(facts["baseline"], facts["points"], ("before", "now"))
    for event in (event for event in facts["events"] if event["kind"] in SHOWN_EVENTS):
        payload = event["payload"]
        values = ", ".join(f"{path} = {value}" for path, value in payload.get("set", {}).items())
        words = next((payload[key] for key in ("sentence", "new", "name") if key in payload), values)
        yield f"step {event['step']}  {event['kind'].replace('_', ' ')}  {plain(words)}".rstrip()
    for entry in facts["answers"]:
        yield ""
        slot = "" if entry["slot"] is None else f"slot {entry['slot']}  "
        yield coloured(f"{slot}{entry['role'].upper()}  {plain(entry['prompt'])}", "bold")
        if entry["before"] == entry["text"]:
            yield f"  unchanged  {indented(plain(entry['text']), 13)}"
            continue
        if entry["before"] is not None:
            yield f"  before     {indented(plain(entry['before']), 13)}"
        yield f"  now        {indented(marked(entry['before'] or '', entry['text']), 13)}"
    whole = [str(row["step"]) for row in facts["checkpoints"] if row["complete"]]
    size = sum(row["bytes"] for row in facts["checkpoints"]) / 1e6
    if whole:
        yield f"\n{len(facts['checkpoints'])} checkpoints, {size:.1f} MB; whole states at step {', '.join(whole)}"


def _milestones(at: Mapping[str, Any], budgeted: str) -> Iterator[str]:
    """Where it was forgotten, damaged and collapsed, its relapses and its best step; nothing of what did not happen."""
    named = (
        ("forgotten", "forgotten since step {}"),
        ("best", "best step {}"),
        ("damaged", f"damage ({budgeted} loss) since step {{}}"),
        ("collapsed", "collapsed since step {}"),
    )
    if told := [words.format(at[name]) for name, words in named if at[name] is not None]:
        yield "; ".join(told)
    for step, question in at["relapses"]:
        yield f"step {step}  relapse  answered as before again: {plain(question)}"


def _numbers(first: Mapping[str, float], now: Mapping[str, float], heads: tuple[str, str]) -> Iterator[str]:
    """A table of every metric that both have: one row a set of windows."""
    for metric in METRICS.values():
        both = [(name, metric.point(name)) for name in metric.facts.sets if metric.point(name) in {*first} & {*now}]
        rows = [
            (name, three(first[point]), three(now[point]), change(point, now[point], first[point]))
            for name, point in both
        ]
        if rows:
            yield "\n" + table((f"{metric.facts.label} ({metric.facts.unit})", *heads, "change"), rows)


# ----------------------------------------------------------------------------------------------- two steps


def compare(args: argparse.Namespace, store: RunStore) -> int:
    a, b = side(store, args.one), side(store, args.other)
    entries = {**a["answers"], **b["answers"]}
    rows = []
    for text, entry in entries.items():
        before, now = (each["answers"].get(text, {}).get("text") for each in (a, b))
        changes = segments(before, now) if before is not None and now is not None else None
        rows.append({"prompt": text, "role": entry["role"], "a": before, "b": now, "changes": changes})
    facts: dict[str, Any] = {"prompts": rows}
    facts |= {name: {k: v for k, v in each.items() if k != "answers"} for name, each in (("a", a), ("b", b))}
    answer(args.json, facts, "\n".join(_compared(facts)))
    return 0


def side(store: RunStore, text: str) -> dict[str, Any]:
    """`RUN@STEP` (or RUN: its last step): the answers and numbers of the newest step up to it at which it was asked."""
    run, step = run_at(store, text)
    if step > run["last_step"]:
        raise BadInput(f"{title(run)} has got to step {run['last_step']}; it has no step {step}.")
    answers = answers_at(store, run["id"], step)
    if not answers:
        raise BadInput(f"{title(run)} has no answers yet.")
    answered_at = max(entry["answered_at"] for entry in answers.values())
    numbers = store.last_points(run["id"], answered_at)
    examples = store.examples(run["id"], answered_at)
    facts = {"id": run["id"], "name": run["name"], "step": answered_at, "points": numbers, "examples": examples}
    return {**facts, "answers": answers}


def run_at(store: RunStore, text: str) -> tuple[dict[str, Any], int]:
    """(run, step) of `RUN@STEP`, or of RUN and its last step; a name may have an @ in it.

    Raises BadInput where both readings are possible: `npo@1` is a run of this name, or step 1 of the run `npo`.
    """
    name, _, wanted = text.rpartition("@")
    is_step = bool(name) and wanted.isdecimal() and len(wanted) < 10
    runs = store.runs()
    if is_step and not any(text == run["name"] for run in runs):
        return find(store, name), int(wanted)
    run = find(store, text)
    other = next((run for run in runs if name in (run["id"], run["name"])), None)
    if is_step and other:
        ways = f"{run['id']} for {title(run)}, {other['id']}@{wanted} for step {wanted} of {title(other)}"
        raise BadInput(f"{text!r} can be a run of that name and a step of another: write {ways}.")
    return run, run["last_step"]


def answers_at(store: RunStore, run_id: str, step: int) -> dict[str, dict[str, Any]]:
    """Question -> its newest answer up to `step`, of the questions that are asked at `step`, by slot.

    At step 0 every wording has its answer before step 1. A question that was put to chosen steps (`probe`) is there
    where it was answered at that very step; it stands in no slot.
    """
    prompts = store.prompts(run_id)
    asked = {prompt["id"] for prompt in prompts if is_asked(prompt, step)}
    newest: dict[int, dict[str, Any]] = {}
    at = store.answered_step(run_id, step)
    while at is not None and not (newest and asked <= newest.keys()):
        rows = store.answers(run_id, step=at)
        newest = {row["prompt_id"]: row for row in rows if not row["sample"]} | newest
        at = store.answered_step(run_id, at - 1)
    answers = {}
    for prompt in prompts:
        row = newest.get(prompt["id"])
        if row is None:
            continue
        probed = prompt["from_step"] == prompt["to_step"] == 0
        if prompt["id"] in asked or (row["step"] == step and (step == 0 or probed)):
            slot = None if probed else prompt["slot"]
            facts = {"prompt": prompt["text"], "role": prompt["role"], "slot": slot, "text": row["text"]}
            answers[prompt["text"]] = {**facts, "answered_at": row["step"]}
    return answers


def _compared(facts: Mapping[str, Any]) -> Iterator[str]:
    a, b = facts["a"], facts["b"]
    heads = tuple(f"{plain(each['name'])} {each['id']}@{each['step']}" for each in (a, b))
    yield f"a  {heads[0]}\nb  {heads[1]}"
    yield from _numbers(a["points"], b["points"], ("a", "b"))
    for row in facts["prompts"]:
        yield "\n" + coloured(f"{row['role'].upper()}  {plain(row['prompt'])}", "bold")
        if row["a"] == row["b"]:
            yield f"  a = b  {indented(plain(row['a']), 9)}"
            continue
        for name in ("a", "b"):
            text = "(not asked at this step)" if row[name] is None else plain(row[name])
            yield f"  {name}      {indented(text, 9)}"
        if row["changes"]:
            yield f"  a → b  {indented(marked(row['a'], row['b']), 9)}"


# ------------------------------------------------------------------------------------------------------ windows


def looked_into(facts: Mapping[str, Any], everything: bool = False) -> Iterator[str]:
    """The result of a look: totals, sets, notes, and the windows with the trained text in [brackets]."""
    sets = facts["sets"]
    read = "known from an earlier look" if facts["cached"] else f"read in {duration(facts['seconds'])}"
    what, count = f"“{plain(facts['target'])}”", f"{facts['occurrences']:,}"
    many = f"{what} is all of {count} texts, of" if everything else f"{what} stands {count} times in"
    yield f"{many} {facts['documents']:,} texts ({size(facts['bytes'])}, {read})."
    pieces = " ".join(f"[{plain(piece)}]" for piece in facts["pieces"])
    yield f"The tokenizer cuts it into {len(facts['pieces'])}: {pieces}"
    if memory := facts.get("memory"):
        there = f" of {size(memory['available'])} that are there" if memory["available"] else ""
        took = f"{step_time(facts['step_seconds'])} ({facts['step_seconds_from']}; {facts['step_tokens']:,} tokens)"
        yield f"A step takes about {took}; a run takes {size(memory['total'])} of memory{there}."
    rows = [(name, each["windows"], each["tokens"], each["trained_tokens"]) for name, each in sets.items()]
    yield "\n" + table(("set", "windows", "tokens", "trained on"), rows)
    if facts["notes"]:
        yield ""
        yield from (f"- {plain(note)}" for note in facts["notes"])
    out = [each for each in facts["found"] if each["excluded"]]
    if out:
        yield f"\nExcluded by hand: {', '.join(plain(each['id']) for each in out)}"
    for name in sets:
        of_set = [window for window in facts["windows"] if window["set"] == name]
        if not of_set:
            continue
        some = f", {len(of_set):,} of them here" if len(of_set) < sets[name]["windows"] else ""
        yield "\n" + coloured(f"{name.upper()}: {sets[name]['windows']:,} windows{some}; {MEANING[name]}", "bold")
        yield from _readable(of_set)


MEANING = {
    "forget": "what stands in [brackets] is unlearned, what stands before it is only read",
    "retain": "what stands in [brackets] is held",
    "neighbour": "about the same things without the word; what stands in [brackets] is held",
    "holdout": "never trained on; what stands in [brackets] is measured",
}


def _readable(windows: list[Mapping[str, Any]]) -> Iterator[str]:
    for place_in_list, window in enumerate(windows, 1):
        place = ", ".join(plain(str(window[key])) for key in ("source", "place") if window[key])
        known = f" ({plain(window['occurrence'])})" if window["occurrence"] else ""
        why = f"; {plain(window['why'])}" if window["why"] else ""
        tokens = f"{window['trained_tokens']} of {window['tokens']} tokens"
        yield "\n" + coloured(f"{place_in_list}. {place}{known}, {tokens}{why}", "dim")
        context = coloured(plain(window["context"]), "dim")
        yield context + "[" + plain(window["trained"]) + "]"
