"""Compare: up to four steps of one run or more, side by side; the first is what the others are marked against."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import streamlit as st
from markupsafe import Markup

from pages.run import answers, chart, controls, view
from pages.run.columns import LETTERS, Cell, Column, Row, cannot_ask, parse, rows, unreadable
from pages.setup import about
from pages.shared import banner, diff, page
from pages.shared.banner import Banner
from pages.shared.format import begun, percent, three
from pages.shared.html import difference, element, joined
from pages.shared.recorded import RECORDED

if TYPE_CHECKING:
    from storage import RunStore

FOLD_WORDS = 80
HEIGHT = 320  # of the chart: here it is the map, not the territory


def wanted(store: RunStore) -> list[tuple[str, int]]:
    """The columns in the address that there are; where it names none, the run that was looked at last, before step 1
    and as it is now. Nothing stands in for a run that is missing: `left_out` tells of it."""
    known = {run["id"]: run for run in store.runs()}
    named = parse(st.query_params.to_dict())
    if named or unreadable(st.query_params.to_dict()) or not known:
        return [(run_id, step) for run_id, step in named if run_id in known]
    looked = st.session_state.get("run")
    moved = [run for run in known.values() if run["last_step"] > 0] or list(known.values())
    run = known[looked] if looked in known and known[looked]["last_step"] > 0 else moved[0]
    return [(run["id"], 0), (run["id"], run["last_step"])]


def left_out(store: RunStore) -> list[str]:
    """A sentence on everything in the address that cannot be shown."""
    known, address = {run["id"]: run for run in store.runs()}, st.query_params.to_dict()
    sentences = [f"“{text[:40]}” names no step of a run." for text in unreadable(address)]
    for run_id, step in dict.fromkeys(parse(address)):
        if run_id not in known:
            sentences.append(f"There is no run {run_id[:40]} in this store any more.")
        elif step > known[run_id]["last_step"]:
            name, last = known[run_id]["name"], known[run_id]["last_step"]
            sentences.append(f"“{name}” has got to step {last}; there is no step {step} yet.")
    return sentences


def remember(columns: list[tuple[str, int]]) -> None:
    """Writes the columns into the address."""
    for place, letter in enumerate(LETTERS):
        value = f"{columns[place][0]}@{columns[place][1]}" if place < len(columns) else None
        if value is None and letter in st.query_params:
            del st.query_params[letter]
        elif value is not None and st.query_params.get(letter) != value:
            st.query_params[letter] = value


def main() -> None:
    store = page.begin()
    if not wanted(store):
        _nothing(store)
        return
    columns = [Column(letter, loaded, step) for letter, loaded, step in _loaded(store)]
    ticking = any(watch_closely(column.view) for column in columns)
    st.session_state["compare_tick"] = tick = 1.0 if ticking else 3.0

    @st.fragment(run_every=tick)
    @page.in_one_sentence()
    def live() -> None:
        draw(store)

    live()


def _nothing(store: RunStore) -> None:
    """No column can be shown: nothing was run yet, or what the address names is not there."""
    if sentences := left_out(store):
        page.heading("Compare", " ".join(sentences))
        if store.runs():
            st.button("Compare the run that was looked at last", key="compare_last", on_click=remember, args=([],))
            st.page_link("pages/runs.py", label="See the runs that there are", icon=":material/arrow_forward:")
        return
    page.heading(
        "Compare",
        "There is nothing to compare yet. Begin a run: every step of it can be set beside every other.",
    )
    st.page_link("pages/watch.py", label="Begin a run", icon=":material/arrow_forward:")


def watch_closely(loaded: view.View) -> bool:
    return loaded.status in (*view.LIVE, "queued") or bool(controls.open_kinds(loaded.commands))


def _loaded(store: RunStore) -> list[tuple[str, view.View, int]]:
    columns = []
    for letter, (run_id, step) in zip(LETTERS, wanted(store), strict=False):
        loaded = view.load(store, run_id)
        if loaded:
            columns.append((letter, loaded, min(step, loaded.last_step)))
    return columns


def draw(store: RunStore) -> None:
    """One tick of the whole page."""
    columns = [Column(letter, loaded, step) for letter, loaded, step in _loaded(store)]
    if not columns:  # its runs were deleted meanwhile
        _nothing(store)
        return
    told, shown_columns = left_out(store), [(column.view.id, column.step) for column in columns]
    if told:  # the address becomes that of what is shown, so what it asked for beside that is kept here
        st.session_state["compare_left_out"] = (shown_columns, told)
    of_columns, told = st.session_state.get("compare_left_out", (None, []))
    remember(shown_columns)
    answers = rows(columns, store.home)
    page.heading("Compare", summary(columns, answers))
    page.refused()
    banner.draw(Banner("calm", " ".join(told)) if told and of_columns == shown_columns else None)
    draw_chart(store, columns)
    draw_heads(store, columns)
    shown = [row for row in answers if row.differs] if st.session_state.get("only_different") else answers
    st.html(table(columns, shown))
    if not shown:
        st.html("<p class='quiet'>Every answer is the same in all columns.</p>")
    draw_question(store, columns)


def summary(columns: list[Column], rows: list[Row]) -> str:
    """How the answers differ between the first column and the last, in a sentence."""
    first, last = columns[0], columns[-1]
    both = [row for row in rows if row.cells[0].text is not None and row.cells[-1].text is not None]
    if len(columns) == 1 or not both:
        return f"{first.view.run['name']} at step {first.step}. Add a step to set beside it."
    changed = sum(row.cells[0].text != row.cells[-1].text for row in both)
    where = "" if first.view.id == last.view.id else f" of {first.view.run['name']} and {last.view.run['name']}"
    price = last.view.change(last.view.budgeted, last.step)
    label = begun(RECORDED[last.view.budgeted].label)
    cost = f" {label} at {last.title}: {percent(price)} since its start." if price is not None else ""
    return f"From {first.title} to {last.title}{where}, {changed} of {len(both)} answers changed.{cost}"


# ------------------------------------------------------------------------------------------- choosing the columns


def _moved(place: int) -> None:
    state = st.session_state
    columns = parse(st.query_params.to_dict())
    columns[place] = (state[f"column_run_{place}"], int(state.get(f"column_step_{place}", 0)))
    state["moving"] = LETTERS[place].upper()
    remember(columns)


def _added(run_id: str, step: int) -> None:
    remember([*parse(st.query_params.to_dict()), (run_id, step)])


def next_step(columns: list[Column]) -> int:
    """A step worth adding: where it was forgotten, the best, the last, the middle; one that is not there yet."""
    newest = columns[-1].view
    taken = {column.step for column in columns if column.view.id == newest.id}
    at = newest.milestones()
    offered = [at.forgotten, at.best, newest.last_step, newest.last_step // 2]
    return next((step for step in offered if step is not None and step not in taken), newest.last_step)


def _removed(place: int) -> None:
    columns = parse(st.query_params.to_dict())
    columns.pop(place)
    remember(columns)


def draw_chart(store: RunStore, columns: list[Column]) -> None:
    """The chart of the run of the column that moves; a click on it moves that column."""
    letters = [column.letter.upper() for column in columns]
    if st.session_state.get("moving") not in letters:
        st.session_state["moving"] = letters[-1]
    with st.container(horizontal=True, vertical_alignment="center", key="compare_bar"):
        st.html("<p class='told'>A click on the chart moves</p>", width="content")
        st.segmented_control(
            "A click on the chart moves", letters, key="moving", required=True, label_visibility="collapsed"
        )
        newest = columns[-1]
        full = len(columns) == len(LETTERS)
        st.button(
            "add a step",
            key="column_add",
            icon=":material/add:",
            type="tertiary",
            on_click=_added,
            args=(newest.view.id, next_step(columns)),
            disabled=full,
            help="At most four stand side by side." if full else None,
        )
        st.toggle("different only", key="only_different")
        mover = next(column for column in columns if column.letter.upper() == st.session_state["moving"])
        zooms: dict[str, tuple[int, int] | None] = st.session_state.setdefault("compare_zooms", {})
        zoomed = bool(zooms.get(mover.view.id))
        st.button(
            "whole run",
            key="compare_whole",
            type="tertiary",
            disabled=not zoomed,
            on_click=_unzoom,
            args=(zooms, mover.view.id),
            help=None if zoomed else "Drag across the chart to look at some steps only.",
        )
    at: dict[int, str] = {}
    for column in columns:
        if column.view.id == mover.view.id:
            at[column.step] = f"{at.get(column.step, '')} {column.letter.upper()}".strip()
    marked = list(at.items())
    alt = f"Losses of {mover.view.run['name']}, with the compared steps marked."

    chosen, place = [(column.view.id, column.step) for column in columns], columns.index(mover)
    last_step = mover.view.last_step

    def picked(step: int) -> None:  # kept by the session, so it holds no run
        moved = (chosen[place][0], max(0, min(step, last_step)))
        remember([*chosen[:place], moved, *chosen[place + 1 :]])

    look = chart.Look(zoom=zooms.get(mover.view.id))
    chart.draw(
        mover.view,
        look,
        marked,
        key="compare_chart",
        alt=alt,
        on_picked=picked,
        on_zoomed=partial(zooms.__setitem__, mover.view.id),
        height=HEIGHT,
        turn=st.session_state.get("compare_turn", 0),
    )
    st.html(chart.legend(mover.view))


def _unzoom(zooms: dict[str, tuple[int, int] | None], run_id: str) -> None:
    zooms[run_id] = None
    st.session_state["compare_turn"] = st.session_state.get("compare_turn", 0) + 1


def draw_heads(store: RunStore, columns: list[Column]) -> None:
    """Over each column: its run, its step, its numbers."""
    names = labels(store.runs())
    for place, (spot, column) in enumerate(zip(st.columns(len(columns)), columns, strict=True)):
        st.session_state[f"column_run_{place}"] = column.view.id
        st.session_state[f"column_step_{place}"] = column.step
        with spot, st.container(key=f"column_head_{place}"):
            with st.container(horizontal=True, vertical_alignment="center"):
                _choice(names, place, column)
                if len(columns) > 1:
                    st.button("remove", key=f"column_remove_{place}", type="tertiary", on_click=_removed, args=(place,))
            st.slider(
                f"Step in column {column.letter.upper()}",
                0,
                max(column.view.last_step, 1),
                key=f"column_step_{place}",
                on_change=_moved,
                args=(place,),
                label_visibility="collapsed",
                disabled=column.view.last_step == 0,
            )
            st.html(head(column, store, first=place == 0))


def labels(runs: list[dict[str, Any]]) -> dict[str, str]:
    """Run -> what it is called in a list, with its method: two of one name are told apart by their ids."""
    taken = [run["name"] for run in runs]
    names = {r["id"]: r["name"] if taken.count(r["name"]) == 1 else f"{r['name']} ({r['id']})" for r in runs}
    return {run["id"]: f"{names[run['id']]} · {about.label(run['method'])}" for run in runs}


def _choice(names: dict[str, str], place: int, column: Column) -> None:
    st.selectbox(
        f"Run in column {column.letter.upper()}",
        list(names),
        key=f"column_run_{place}",
        on_change=_moved,
        args=(place,),
        format_func=lambda run_id: names.get(run_id, run_id),
        label_visibility="collapsed",
    )


def head(column: Column, store: RunStore, first: bool) -> Markup:
    """The step with its losses and badges."""
    loaded, step = column.view, column.step
    badges = []
    if first:
        badges.append("the others are marked against this")
    if step == 0:
        badges.append("before step 1")
    at = loaded.milestones()
    named = {"★ best step": at.best, "forgotten since here": at.forgotten}
    named |= {"damage began here": at.damaged, "collapsed since here": at.collapsed}
    badges += [label for label, there in named.items() if there == step]
    if any(relapsed == step for relapsed, _ in at.relapses):
        badges.append("relapse: answered as before again")
    checkpoint = column.checkpoint(store.home)
    if checkpoint is None:
        badges.append("no checkpoint")
    elif checkpoint["step"] == step:
        badges.append("checkpoint")
    numbers = [f"forget {three(loaded.value('forget_loss', step))}"]
    numbers += [
        f"{chart.LINES[name][0]} {percent(change)}"
        for name in chart.KEPT
        if (change := loaded.change(name, step)) is not None
    ]
    what = f"{loaded.run['target']} · {about.label(loaded.run['method'])}"
    return element(
        "div.column-head",
        element("h2", f"{column.title} ", element("small", what)),
        element("p.numbers", " · ".join(numbers)),
        element("p.badges", (element("span.badge", badge) for badge in badges)),
    )


# ------------------------------------------------------------------------------------------------- the answers


def table(columns: list[Column], rows: list[Row]) -> Markup:
    """All questions with their answers, as HTML."""
    lines = []
    for row in rows:
        role = element("span.role", answers.TAGS[row.role], data_role=row.role)
        question = element("div.question", role, " ", element("h3", diff.visible(row.prompt)))
        cells = (cell(columns, row, place) for place in range(len(columns)))
        lines.append(element("section.row", question, element("div.cells", cells, style=f"--n:{len(columns)}")))
    return element("div.compare", lines)


def cell(columns: list[Column], row: Row, place: int) -> Markup:
    here, reference = row.cells[place], row.cells[0]
    name = element("p.which", columns[place].title)
    note = element("p.note", here.note) if here.note else None
    return element("div.cell", name, _said(here, reference, place, row), note)


def _said(here: Cell, reference: Cell, place: int, row: Row) -> Markup:
    if here.text is None:
        return Markup("")
    text = here.text or answers.NO_ANSWER
    other = reference.text if place else row.cells[-1].text if len(row.cells) == 2 else None
    if place and here.text == reference.text:
        return element("p.said.quiet", "the same")
    segments = [diff.Segment("same", diff.visible(text))]
    if other is not None and other != here.text:
        other = other or answers.NO_ANSWER
        segments = diff.side(other, text, "ins") if place else diff.side(text, other, "del")
    first, beyond = diff.folded(segments, FOLD_WORDS)
    shown = element("p.said", difference(first), " …" if beyond else None)
    if not beyond:
        return shown
    more = element("summary", f"all of it, {beyond} more words")
    return joined(shown, element("details", more, element("p.said", difference(segments))))


# ------------------------------------------------------------------------------------------------- a new question


def draw_question(store: RunStore, columns: list[Column]) -> None:
    why = page.read_only(store) or cannot_ask(columns, store.home)
    with (
        st.form("compare_ask", clear_on_submit=True, border=False),
        st.container(horizontal=True, vertical_alignment="bottom"),
    ):
        text = st.text_input(
            "Ask every column",
            key="compare_question",
            max_chars=4000,
            disabled=bool(why),
            placeholder="a new question, answered by the checkpoint nearest to each step",
        )
        sent = st.form_submit_button("Ask", type="primary", disabled=bool(why), help=why, width=110)
    sentence = next(
        (
            outcome
            for column in columns
            if (outcome := controls.outcome([c for c in column.view.commands if c["kind"] == "probe"]))
        ),
        "",
    )
    st.html(element("p.told", why or sentence, role="status"))
    if sent and text.strip():
        for run_id in dict.fromkeys(column.view.id for column in columns):
            steps = sorted({column.step for column in columns if column.view.id == run_id})
            page.attempt(store.request, run_id, "probe", {"steps": steps, "text": text.strip()})
        st.rerun(scope="app")


main()
