"""Runs: all runs of this store; open, resume, rename, export, delete."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st

from pages.run import controls, headline, story, view
from pages.setup import about, session, sources
from pages.setup.draft import of_run
from pages.shared import banner, choices, diff, page
from pages.shared.banner import Banner
from pages.shared.choices import Cell, Heading
from pages.shared.deleting import lost
from pages.shared.format import percent, setting, three
from pages.shared.html import element
from pages.shared.recorded import RECORDED
from pages.shared.standing import standings
from unlearn_core.methods import METHODS
from unlearn_core.metrics import budgeted, budgeted_set
from unlearn_core.settings.presets import PRESETS
from unlearn_core.settings.run_config import settings_at

if TYPE_CHECKING:
    from storage import RunStore

TICK = 3.0
LONGEST = 60  # characters of a text in the table
MOST_PACKED = 1 << 28  # bytes of an adapter or a model that are offered as one file


def main() -> None:
    store = page.begin()
    if not store.runs():
        page.heading("Runs", "No run yet. The first one takes a word, two questions and a click.")
        st.page_link("pages/watch.py", label="Begin the first run", icon=":material/arrow_forward:")
        return

    @st.fragment(run_every=TICK)
    @page.in_one_sentence()
    def live() -> None:
        draw(store)

    live()


HEADINGS = (
    Heading("name"),
    Heading("state"),
    Heading("word"),
    Heading("recipe"),
    Heading("method"),
    Heading("model"),
    Heading("learning rate", True),
    Heading("step", True, "How far it has got, of how many steps."),
    Heading("forget loss", True, f"{RECORDED['forget_loss'].explained} Before step 1, and now: sorted by now."),
    Heading(
        "holdout loss",
        True,
        f"{RECORDED['holdout_loss'].explained} Its change; without a holdout, that of retain loss.",
    ),
    Heading("forgotten", True, "The step from which on no forget question is given its old answer."),
    Heading("best step", True, "Forgotten, within the budget, and of those steps the furthest along."),
    Heading("damage", True, "The step from which on the budget is exceeded."),
    Heading("collapsed", True, "The step from which on it is collapsed: damage, not forgetting."),
    Heading("begun", True),
)


def rows_of(store: RunStore, runs: list[dict[str, Any]]) -> dict[str, list[Cell]]:
    """Run -> its cells, newest first."""
    rows = {}
    standing = standings(store, runs)
    for run in runs:
        first, last, at = standing[run["id"]].first, standing[run["id"]].last, standing[run["id"]].milestones
        loss, which = budgeted(first), budgeted_set(first)
        config = settings_at(run["config"], run["last_step"] + 1)
        step, steps = run["last_step"], config.get("schedule", {}).get("steps", "?")
        forget, before = last.get("forget_loss"), first.get("forget_loss")
        change = last[loss] / first[loss] - 1 if first.get(loss) and loss in last else None
        rate = _learning_rate(run["method"], config)
        begun = datetime.fromisoformat(run["created_at"]).astimezone()
        rows[run["id"]] = [
            _text(run["name"]),
            _text(headline.status_words(run["status"]), run["status"]),
            _text(run["target"]),
            _text(PRESETS[config["preset"]].label if config.get("preset") in PRESETS else "–"),
            _text(about.label(run["method"])),
            _text(_model(store, config)),
            ("–" if rate is None else setting(rate), rate),
            (f"{step} of {steps}", float(step)),
            ("–" if forget is None else f"{three(before)} → {three(forget)}", forget),
            (percent(change) + (" (retain)" if which == "retain" and change is not None else ""), change),
            *(_since(milestone) for milestone in (at.forgotten, at.best, at.damaged, at.collapsed)),
            (f"{begun:%Y-%m-%d %H:%M}", begun.timestamp()),
        ]
    return rows


def _text(shown: str, sorted_by: str | None = None) -> Cell:
    return diff.visible(shown[:LONGEST]), (sorted_by or shown).casefold()


def _model(store: RunStore, config: Mapping[str, Any]) -> str:
    source = str(config.get("model", {}).get("source", "bundled"))
    return "bundled" if source == "bundled" else sources.short(source, store.home)


def _learning_rate(method: str, config: Mapping[str, Any]) -> float | None:
    """Of a method that takes gradient steps."""
    rate = config.get("optimizer", {}).get("learning_rate")
    trains = method not in METHODS or METHODS[method].facts.trains
    return float(rate) if trains and rate is not None else None


def _since(step: int | None) -> Cell:
    return ("–", None) if step is None else (f"{step}", float(step))


def draw(store: RunStore) -> None:
    """One tick: the table and the run that is chosen in it."""
    runs = store.runs()
    if not runs:
        st.rerun(scope="app")
    busy = sum(run["status"] in view.LIVE for run in runs)
    count = f"{len(runs)} run{'s' if len(runs) > 1 else ''}"
    sentence = f"{count}, {busy} of them moving." if busy else f"{count}, none of them moving."
    page.heading("Runs", sentence)
    if (opened := st.session_state.pop("runs_opened", None)) in {run["id"] for run in runs}:
        _go("pages/watch.py", {"id": opened})
    chosen = _table(store, runs)
    page.refused()
    with st.container(border=True, key="chosen_run"):
        _chosen(store, chosen)


def _table(store: RunStore, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The table; the run that is chosen in it, else that of the address, else the one that was looked at last."""
    by_id, state = {run["id"]: run for run in runs}, st.session_state
    wanted = st.query_params.get("run")
    of_address, picked = state.get("runs_picked", (None, None))
    gone = wanted is not None and wanted not in by_id and of_address != wanted
    sentence = f"There is no run {str(wanted)[:40]} in this store any more."
    banner.draw(Banner("calm", sentence, "These are the runs that there are.") if gone else None)
    offered = [picked if of_address == wanted else None, wanted, state.get("run")]
    chosen = next((run_id for run_id in offered if run_id in by_id), runs[0]["id"])
    choices.draw(
        HEADINGS,
        rows_of(store, runs),
        str(chosen),
        label="All runs: choose one to open, rename, export or delete it",
        key="runs_table",
        on_picked=lambda run_id: state.update(runs_picked=(wanted, run_id)),
        on_opened=lambda run_id: state.update(runs_opened=run_id),
    )
    meanings = [(element("dt", head.name), element("dd", head.help)) for head in HEADINGS if head.help]
    st.html(element("details.meanings", element("summary", "What the columns mean"), element("dl.sheet", *meanings)))
    return by_id[str(chosen)]


def _chosen(store: RunStore, run: dict[str, Any]) -> None:
    loaded = view.load(store, run["id"])
    if loaded is None:
        return
    about = (
        story.sentence(loaded.facts(loaded.last_step)) if loaded.answers else run["status_reason"] or "Not begun yet."
    )
    title = element("h2", f"{run['name']} ", element("small", run["target"]))
    st.html(element("div.column-head", title, element("p", about)))
    ro = page.read_only(store)
    why = controls.reasons(loaded, ro)["resume"]
    with st.container(horizontal=True):
        if st.button("Open", key="run_open", type="primary", width=110):
            _go("pages/watch.py", run)
        if st.button("Compare", key="run_compare"):
            st.session_state["run"] = run["id"]
            last = run["last_step"]
            st.switch_page("pages/compare.py", query_params={"a": f"{run['id']}@0", "b": f"{run['id']}@{last}"})
        if st.button("Resume", key="run_resume", disabled=bool(why), help=why):
            page.attempt(store.request, run["id"], "resume")
            _go("pages/watch.py", run)
        if st.button("New run like this", key="run_again", help="To the card on Watch, filled in as this run was."):
            session.take(store, of_run(run["config"]))
            st.session_state.pop("card_ticket", None)
            st.switch_page("pages/watch.py", query_params={"new": "1"})
        _rename(store, run, ro)
        _export(store, loaded)
        held = view_held(loaded)
        st.button(
            "Delete …",
            key="run_delete",
            type="tertiary",
            disabled=bool(ro or held),
            help=ro or held,
            on_click=_ask_delete,
            args=(run["id"],),
        )
    if st.session_state.get("deleting") == run["id"]:
        _really(store, loaded)
    st.html(element("p.told", controls.outcome(loaded.commands), role="status"))


def view_held(loaded: view.View) -> str | None:
    """Why the run cannot be deleted: somebody drives it."""
    if loaded.run["lease_owner"] and loaded.status in (*view.LIVE, "paused"):
        return f"It is {loaded.status} and held by the worker; stop it first."
    return None


def _go(path: str, run: dict[str, Any]) -> None:
    st.session_state["run"] = run["id"]
    st.switch_page(path, query_params={"run": run["id"]})


def _rename(store: RunStore, run: dict[str, Any], why: str | None) -> None:
    with st.popover("Rename", disabled=bool(why), help=why, key="run_rename"), st.form("rename", border=False):
        name = st.text_input("New name", value=run["name"], key=f"name {run['id']}", max_chars=80)
        if st.form_submit_button("Rename"):
            if name.strip():
                page.attempt(store.rename, run["id"], name.strip())
            else:
                st.session_state["refused"] = "A run needs a name: write at least one letter."
            st.rerun(scope="app")


# ------------------------------------------------------------------------------------------------------- deleting


def _ask_delete(run_id: str) -> None:
    st.session_state["deleting"] = run_id


def _keep() -> None:
    st.session_state.pop("deleting", None)


def _delete(store: RunStore, run_id: str) -> None:
    _keep()
    page.attempt(store.delete_run, run_id)
    if st.session_state.get("run") == run_id:
        del st.session_state["run"]
    if st.query_params.get("run") == run_id:
        del st.query_params["run"]


def _really(store: RunStore, loaded: view.View) -> None:
    answers = sum(len(rows) for rows in loaded.answers.values())
    banner.draw(Banner("bad", lost(loaded.run, answers, loaded.checkpoints)))
    with st.container(horizontal=True):
        st.button("Delete it for good", key="run_delete_yes", on_click=_delete, args=(store, loaded.id))
        st.button("Keep it", key="run_delete_no", on_click=_keep)


# ------------------------------------------------------------------------------------------------------ taking away


def zipped(folder: Path, full: bool) -> bytes:
    """The adapter's own files (or the whole model's) as a zip archive; the state for resuming stays behind."""
    packed = io.BytesIO()
    patterns = ("*",) if full else ("adapter*", "README*")
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(path for pattern in patterns for path in folder.glob(pattern)):
            if path.is_file() and not path.name.startswith("state."):
                archive.write(path, f"{'model' if full else 'adapter'}/{path.name}")
    return packed.getvalue()


def _export(store: RunStore, loaded: view.View) -> None:
    """The files for download. Made when the box is opened and kept as it is: the page's ticks must not replace a file
    that is just being clicked at (a deferred download of Streamlit's is lost so, now and then)."""
    box = st.popover("Export", key="run_export", on_change="rerun")
    state = st.session_state
    if not box.open:
        state.pop("export_made", None)
        return
    if state.get("export_made", {}).get("run") != loaded.id:
        state["export_made"] = _made(store, loaded)
    made = state["export_made"]
    with box:
        for label, ending, mime, data in made["files"]:
            st.download_button(
                label, data, f"{made['name']}{ending}", mime, key=f"export_{ending}", on_click="ignore", width="stretch"
            )
        if made["folder"] is None:
            st.html(element("p.quiet", made["why"]))
            return
        what = (
            "The weights lie here, as transformers loads them"
            if made["full"]
            else "The adapter lies here, in PEFT's own format"
        )
        st.html(element("p.quiet", f"As of step {made['step']}. {what}:"))
        st.code(made["folder"], language=None, wrap_lines=True)


def _saved(store: RunStore, loaded: view.View, file: str) -> tuple[Path | None, int, str]:
    """The newest adapter's folder and its step; where it is damaged, why it cannot be taken away."""
    for row in reversed(loaded.checkpoints):
        if (folder := view.adapter_in(store, row, file)) is not None:
            try:
                store.verified_checkpoint(row)
            except store.Error as error:
                return None, row["step"], str(error)
            return folder, row["step"], ""
    return None, 0, "There is nothing to take away: no checkpoint is on the disk."


def _made(store: RunStore, loaded: view.View) -> dict[str, Any]:
    """The files as they are now."""
    export = st.session_state.get("export")
    full = loaded.run["config"].get("where", {}).get("kind") == "full"
    folder, step, why = _saved(store, loaded, "model.safetensors" if full else "adapter_config.json")
    name = "".join(c if c.isalnum() else "-" for c in loaded.run["name"]).strip("-")[:40] or loaded.id
    files: list[tuple[str, str, str, Any]] = []
    if export is not None:
        files += [
            ("Numbers, CSV", "-points.csv", "text/csv", export.points_csv(store, loaded.id)),
            ("Answers, CSV", "-answers.csv", "text/csv", export.responses_csv(store, loaded.id)),
            ("Everything, JSON", ".json", "application/json", export.run_json(store, loaded.id)),
        ]
    # A large model is taken from its folder: packed, it would be in memory several times.
    if folder is not None and sum(path.stat().st_size for path in folder.iterdir()) < MOST_PACKED:
        kind = "model" if full else "adapter"
        files.append((f"{kind.capitalize()}, zip", f"-{kind}.zip", "application/zip", zipped(folder, full)))
    place = str(folder.resolve()) if folder else None
    return {"run": loaded.id, "name": name, "files": files, "folder": place, "full": full, "step": step, "why": why}


main()
