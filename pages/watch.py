"""Watch: a run live. Without a run, the card that starts one."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import streamlit as st

from pages.run import answers, chart, controls, gauges, headline, next_steps, settings, step_slider, story, view
from pages.run.columns import step_in
from pages.setup import first_card, knobs
from pages.shared import banner, page
from pages.shared.banner import Banner
from pages.shared.format import three
from pages.shared.html import element

if TYPE_CHECKING:
    from storage import RunStore

LIVE_TICK, IDLE_TICK = 1.0, 3.0


def chosen_run(store: RunStore) -> str | None:
    """The run in the address, else the one that was looked at last, else the one that lives, else the newest."""
    runs = {run["id"]: run for run in store.runs()}
    if "new" in st.query_params:
        # A second click on Start can still carry the card's address: its run is there already.
        made = st.session_state.get("card_ticket")
        if made not in runs:
            return None
        del st.query_params["new"]
        return str(made)
    wanted = st.query_params.get("run")
    if wanted is not None:
        return wanted
    if st.session_state.get("run") in runs:
        return str(st.session_state["run"])
    live = [run_id for run_id, run in runs.items() if run["status"] in (*view.LIVE, "queued")]
    return next(iter([*live, *runs]), None)


def missing(run_id: str) -> None:
    page.heading("", f"There is no run {run_id[:40]} any more.")
    st.page_link("pages/runs.py", label="See the runs that there are")


def look_of(run: view.View) -> chart.Look:
    """The settings of the chart in the page's address."""
    state = st.session_state
    zoom = state.get(f"zoom {run.id}")
    if zoom is None and f"zoom {run.id}" not in state:
        first, last = map(step_in, st.query_params.get("x", "").partition("-")[::2])
        zoom = (first, last) if first is not None and last is not None and last > first else None
        state[f"zoom {run.id}"] = zoom
    names = {label: name for name, (label, *_) in chart.LINES.items()}
    series = tuple(names[label] for label in state.get("series") or names if label in names)
    return chart.Look(bool(state.get("log")), float(state.get("smooth") or 0.0), series, zoom and (zoom[0], zoom[1]))


def remember_zoom(run_id: str, zoom: tuple[int, int] | None) -> None:
    """The zoom goes into the session and the address, from where a reload takes it."""
    st.session_state[f"zoom {run_id}"] = zoom
    if zoom:
        st.query_params["x"] = f"{zoom[0]}-{zoom[1]}"
    elif "x" in st.query_params:
        del st.query_params["x"]


# -------------------------------------------------------------------------------------------------- following a step


def selected_step(run: view.View) -> int:
    """The step that is looked at: the newest while following, else the one that was chosen."""
    state = st.session_state
    if state.get("of_run") != run.id:
        wanted = step_in(st.query_params.get("step", ""))
        state["of_run"] = run.id
        state["following"] = wanted is None
        state["chosen_step"] = run.last_step if wanted is None else wanted
    if state["following"]:
        state["chosen_step"] = run.last_step
    return max(0, min(int(state["chosen_step"]), run.last_step))


def looking_back(run: view.View, step: int) -> str:
    """That the page stands at a chosen step, in a sentence; empty while it follows the newest."""
    if st.session_state["following"]:
        return ""
    chosen = int(st.session_state["chosen_step"])
    if chosen > run.last_step:
        return f"There is no step {chosen} yet; the newest is shown."
    goes_on = f"The run is at step {run.last_step}" + (" and goes on. " if run.status in view.LIVE else ". ")
    return f"You look at step {step}. {goes_on if step < run.last_step else ''}“Follow latest” shows the newest again."


def _choose(step: int) -> None:
    st.session_state["following"] = False
    st.session_state["chosen_step"] = step
    st.query_params["step"] = str(step)


def _follow() -> None:
    st.session_state["following"] = True
    if "step" in st.query_params:
        del st.query_params["step"]


# ------------------------------------------------------------------------------------------------------- the page


def draw_controls(
    store: RunStore, run: view.View, step: int, notice: Banner | None, other: dict[str, Any] | None
) -> None:
    """`other`: the run that this one waits for."""
    run_id = run.id  # a session keeps its buttons' functions: what holds the run itself would keep it as long

    def ask(kind: str) -> None:
        page.attempt(store.request, run_id, kind)

    following = bool(st.session_state["following"])
    with st.container(horizontal=True, vertical_alignment="center", key="controls"):
        controls.draw(run, ask, page.read_only(store), other)
        reply = controls.outcome(run.commands, other)
        words = reply or (banner.markup(notice) if notice else "")
        looking = element("p.looking", looking_back(run, step))
        st.html(element("div.told", element("div", words, looking), role="status"), width="stretch")
        st.button(
            "follow latest",
            key="follow",
            type="tertiary" if following else "secondary",
            disabled=following,
            on_click=_follow,
            help="The slider, or a click into the chart, leads to an earlier step." if following else None,
        )
        step_slider.draw(run, step, _choose)


def draw_chart(run: view.View, step: int, why: str | None, change: settings.Change) -> None:
    """`why`: the reason why no setting can change now."""
    with st.container(horizontal=True, vertical_alignment="center", key="chart_head"):
        st.html("<h2 class='over'>losses</h2>", width="stretch")
        settings.draw(run, why, change)
        with st.popover("view", type="tertiary", key="chart_view"):
            st.toggle("logarithmic", key="log", bind="query-params")
            st.slider("smoothing", 0.0, 0.95, 0.0, 0.05, key="smooth", bind="query-params")
            labels = [label for label, *_ in chart.LINES.values()]
            st.pills("lines", labels, selection_mode="multi", default=labels, key="series", bind="query-params")
        zoomed = bool(st.session_state.get(f"zoom {run.id}"))
        st.button(
            "whole run",
            key="whole_run",
            type="tertiary",
            disabled=not zoomed,
            on_click=_unzoom,
            args=(run.id,),
            help=None if zoomed else "Drag across the chart to look at some steps only.",
        )
    marked = [] if st.session_state["following"] else [(step, f"step {step}")]
    chart.draw(
        run,
        look_of(run),
        marked,
        key="chart",
        alt=alternative(run, step),
        on_picked=_choose,
        on_zoomed=partial(remember_zoom, run.id),
        turn=st.session_state.get("chart_turn", 0),
    )
    st.html(chart.legend(run))


def _unzoom(run_id: str) -> None:
    remember_zoom(run_id, None)
    st.session_state["chart_turn"] = st.session_state.get("chart_turn", 0) + 1


def alternative(run: view.View, step: int) -> str:
    """A description of the chart for screen readers."""
    losses = [
        f"{chart.LINES[name][0]} loss {three(run.value(name, step))}" for name in chart.LINES if run.value(name, step)
    ]
    return f"Losses up to step {run.last_step}. At step {step}: {', '.join(losses) or 'nothing measured yet'}."


def draw_run(store: RunStore, run_id: str) -> bool:
    """One tick. False where the page must be drawn anew because it has to tick at another pace."""
    run = view.load(store, run_id)
    if run is None:
        missing(run_id)
        return True
    step = selected_step(run)
    waiting = run.status == "queued" or "resume" in controls.open_kinds(run.commands)
    other = view.holder(store, run_id) if waiting else None
    waits = story.waiting_for(other) if other else None
    with st.container(horizontal=True, key="head"):
        with st.container(width="stretch"):
            headline.draw(run, story.sentence(run.facts(step, waits)) or "", step)
        with st.container(width="content", horizontal_alignment="right", key="aside"):
            about = headline.circumstances(run, knobs.unusual(run.run["config"]))
            st.html(element("p.quiet.circumstances", about))
            st.button("New run", key="new_run", type="tertiary", icon=":material/add:", on_click=_new)
    page.refused()
    notice = page.waiting(store) or headline.banner(run)
    # What ends a run stands across the page; what happens on the way has a place kept free for it beside the buttons.
    banner.draw(notice if notice and run.status != "paused" else None)
    notice = notice or behind(store, run)
    draw_controls(store, run, step, notice if notice and run.status == "paused" else None, other)
    if run.status in next_steps.AFTER:
        next_steps.draw(store, run)
    left, right = st.columns([1.15, 1], gap="large")
    with left:
        reason = controls.reasons(run, page.read_only(store))["prompt"]
        answers.draw(run, step, "answers", reason, partial(_ask, store, run.id))
    with right:
        draw_chart(run, step, controls.reasons(run, page.read_only(store))["set"], partial(_change, store, run.id))
        gauges.draw(run, step)
        gauges.explain(run)
    return tick_of(run) == st.session_state.get("tick")


def behind(store: RunStore, run: view.View) -> Banner | None:
    """That another run waits for the model, which a paused one keeps."""
    waiting = store.next_queued() if run.status == "paused" and run.run["lease_owner"] else None
    if waiting is None:
        return None
    return Banner("calm", f"“{waiting['name']}” waits.", "It begins when this run goes on to its end or is stopped.")


def _ask(store: RunStore, run_id: str, question: dict[str, Any]) -> None:
    payload = {"slot": question.get("slot"), "role": question.get("role") or "free", "text": str(question["text"])}
    if page.attempt(store.request, run_id, "prompt", payload):
        _follow()  # it is answered at the newest step, and seen there


def _change(store: RunStore, run_id: str, wanted: Mapping[str, Any]) -> None:
    page.attempt(store.request, run_id, "set", {"set": dict(wanted)})


def _new() -> None:
    st.session_state.pop("card_ticket", None)
    st.session_state["leaves"] = True
    st.query_params["new"] = "1"


def tick_of(run: view.View | None) -> float:
    if run and (run.status in (*view.LIVE, "queued") or controls.open_kinds(run.commands)):
        return LIVE_TICK
    return IDLE_TICK


def main() -> None:
    store = page.begin()
    run_id = chosen_run(store)
    if run_id is None:
        first_card.draw(store)
        return
    st.session_state["run"] = run_id
    st.query_params["run"] = run_id
    tick = st.session_state["tick"] = tick_of(view.load(store, run_id))

    @st.fragment(run_every=tick)
    @page.in_one_sentence()
    def live() -> None:
        # A click in here reruns this fragment alone; what changes the whole page has to say so. Not by the address: a
        # tick that was under way when Start was clicked still carries the old one.
        if st.session_state.pop("leaves", False) or not draw_run(store, run_id):
            st.rerun(scope="app")

    live()


main()
