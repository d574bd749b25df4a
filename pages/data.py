"""Data: the forget, retain, neighbour and holdout texts of a new run, before its first step."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

import streamlit as st
from markupsafe import Markup

from pages.run.columns import step_in
from pages.setup import first_card, looks, own_answers, passages, session, sources
from pages.setup.draft import leave_out, of_run, resolve
from pages.shared import banner, page
from pages.shared.banner import Banner
from pages.shared.format import counted, size
from pages.shared.html import element, joined
from unlearn_core.settings.errors import ConfigError
from unlearn_core.settings.presets import PRESETS
from unlearn_core.settings.run_config import RunConfig

if TYPE_CHECKING:
    from storage import RunStore

TICK = 1.0
PAGE = 20
EVERY = "occurrences"
WAY_OUT = "Change the word or the texts on Watch, or look again when what it names is mended."


def main() -> None:
    store = page.begin()
    if run_id := st.session_state.pop("data_began", None):
        st.switch_page("pages/watch.py", query_params={"run": run_id})
    _come_back(store)
    session.current(store)
    run = _run(store)
    try:
        config = _config(store, run)
    except ConfigError as error:
        _head(store, None, run, "", str(error))
        banner.draw(Banner("bad", str(error), "Change it on Watch."))
        return
    if (wanted := st.query_params.get("run")) and run is None:
        sentence = f"There is no run {wanted[:40]} in this store any more."
        banner.draw(Banner("calm", sentence, "These are the texts that the card on Watch names."))
    look = looks.current(store, config)
    if look.command and run is None:
        st.query_params["look"] = str(look.command["id"])  # from where a reload takes the choice
    if look.facts is not None:
        words = passages.sentence(look.facts, config["data"]["everything"])
    else:
        busy = "Counting anew …" if look.earlier else "Looking into the texts …"
        failed = "Nothing was changed." if look.cancelled else "The texts could not be looked into."
        words = failed if look.error else busy
    _head(store, config, run, words, None if look.facts else look.error or "The texts are being looked into.")
    page.refused()
    if look.error:
        banner.draw(Banner("calm", look.error, "") if look.cancelled else Banner("bad", look.error, WAY_OUT))
        st.button("Look again", key="look_anew", on_click=looks.again, args=(look.key,), icon=":material/refresh:")
        return
    # A place for the progress that stays: what is below it does not jump when an occurrence is left out.
    _following(store, config, look)
    shown = look.facts or look.earlier
    if shown is not None:
        _found(store, shown, run, config)


def _come_back(store: RunStore) -> None:
    """A look in the address says what was chosen for it, where this session has no draft of its own."""
    number = step_in(st.query_params.get("look", ""))
    if session.is_known(store) or number is None:
        return
    commands = (c for c in store.commands(None, limit=1000) if c["id"] == number and c["kind"] == "windows")
    if command := next(commands, None):
        session.take(store, of_run(command["payload"].get("config", {})))


def _run(store: RunStore) -> dict[str, Any] | None:
    """The run in the address, if the page is to show what that was made of."""
    wanted = st.query_params.get("run")
    return store.run(wanted) if wanted else None


def _config(store: RunStore, run: dict[str, Any] | None) -> dict[str, Any]:
    """What is looked into: the run's settings, or those of the card. Raises ConfigError in a sentence."""
    if run is None:
        return resolve(session.now(store), session.files(store)).to_dict()
    config = RunConfig.from_dict(sources.checked(run["config"], store.home)).to_dict()
    if ids := st.session_state.get(f"excluded {run['id']}"):
        config["data"]["excluded"] = ids
    return config


# -------------------------------------------------------------------------------------------------------- the head


def _head(
    store: RunStore, config: dict[str, Any] | None, run: dict[str, Any] | None, sentence: str, why_not: str | None
) -> None:
    title = config["data"]["target"] if config else session.now(store).word.strip() or "Data"
    with st.container(horizontal=True, key="head"):
        with st.container(width="stretch"):
            facts = element("p.facts", _facts_line(store, config, run))
            status = element("p.sentence", sentence, role="status")
            st.html(element("header.strip", element("h1", title), facts, status, data_page="data"))
        with st.container(width="content", horizontal_alignment="right", key="aside"):
            why = page.read_only(store) or why_not
            if store.run(st.session_state.setdefault("card_ticket", "")) or not st.session_state["card_ticket"]:
                st.session_state["card_ticket"] = secrets.token_hex(4)  # two clicks are one run, a later one is another
            st.button(
                "Forget this",
                key="forget_this",
                type="primary",
                icon=":material/arrow_forward:",
                disabled=bool(why),
                help=why or "Starts a run of these texts, and shows it on Watch.",
                on_click=_start,
                args=(store, config, run),
            )
            change = st.button("Change word or texts", key="change_data", type="tertiary")
            st.html(element("p.quiet.circumstances", _what_starts(store, config) if not why else ""))
    if change:
        if run is not None and config is not None:
            session.take(store, of_run(config))
        st.session_state.pop("card_ticket", None)
        st.switch_page("pages/watch.py", query_params={"new": "1"})


def _what_starts(store: RunStore, config: dict[str, Any] | None) -> str:
    """What “Forget this” begins, in a few words."""
    if config is None:
        return ""
    recipe = PRESETS[config["preset"]].label if config["preset"] in PRESETS else config["preset"]
    steps, questions = config["schedule"]["steps"], counted(len(config["prompts"]), "question")
    other = first_card.what_happens_to_the_other(store) or ""
    return f"Starts a run: recipe “{recipe}”, at most {steps:,} steps, {questions}. {other}".strip()


def _start(store: RunStore, config: dict[str, Any] | None, run: dict[str, Any] | None) -> None:
    """Begins a run of what is shown; a refusal is said on the page."""
    if run is not None and config is not None:
        session.take(store, of_run(config))
    first_card.start_run(store)
    if "refused" not in st.session_state:
        st.session_state["data_began"] = st.session_state["run"]


def _facts_line(store: RunStore, config: dict[str, Any] | None, run: dict[str, Any] | None) -> list[Markup]:
    parts = [f"of the run “{run['name']}”" if run else "as chosen on Watch"]
    if config:
        source, data = config["model"]["source"], config["data"]
        parts.append("the bundled model" if source == "bundled" else sources.short(source, store.home))
        about = [sources.short(each, store.home) for each in data["forget"]]
        keep = [sources.short(each, store.home) for each in data["retain"]]
        parts.append(f"from {', '.join(about)}" + (f", keeping {', '.join(keep)}" if keep != about else ""))
    return [element("span", part) for part in parts]


# ------------------------------------------------------------------------------------------------ while it is looked


def _following(store: RunStore, config: dict[str, Any], look: looks.Look) -> None:
    # One polling fragment, which stops by itself: run_every is read when it is declared.
    @st.fragment(run_every=TICK if look.open and look.command else None)
    @page.in_one_sentence()
    def follow() -> None:
        now = looks.current(store, config) if look.open else look
        if look.open and not now.open:
            st.rerun(scope="app")
        _progress(store, now)

    follow()


def _progress(store: RunStore, look: looks.Look) -> None:
    """How far the look is; once it is done, how it went, in the same place."""
    progress = look.progress
    with st.container(horizontal=True, vertical_alignment="center", key="looking"):
        if look.facts is not None:
            st.html(element("p.told", passages.reading(look.facts), role="status"), width="stretch")
            st.button(
                "Look again", key="look_again", icon=":material/refresh:", on_click=looks.again, args=(look.key,),
                disabled=bool(page.read_only(store)), help=page.read_only(store), type="tertiary",
            )  # fmt: skip
            return
        total = progress.get("bytes_total") or 0
        share = min(1.0, progress.get("bytes_read", 0) / total) if total else 0.0
        words = passages.progress(progress) if progress else look.waits
        bar = element(
            "div", element("i", style=f"width:{share * 100:.1f}%"), role="progressbar", aria_label="how much is read",
            aria_valuemin=0, aria_valuemax=100, aria_valuenow=round(share * 100),
        )  # fmt: skip
        st.html(element("div.reading", bar, element("p", words, role="status")), width="stretch")
        number = look.command["id"] if look.command else None
        st.button(
            "Stop", key="stop_look", icon=":material/stop:", disabled=number is None, type="tertiary",
            on_click=looks.stop, args=(store, number),
        )  # fmt: skip


# ------------------------------------------------------------------------------------------------------ what was found


def _found(store: RunStore, facts: dict[str, Any], run: dict[str, Any] | None, config: dict[str, Any]) -> None:
    everything = bool(config["data"]["everything"])
    st.html(passages.gauges(facts, everything))
    memory = facts.get("memory") or {}
    if memory and not memory.get("fits", True):
        needed, there = size(memory["total"]), size(memory["available"])
        text = f"A run needs about {needed} of memory, and {there} are there."
        way = "Take a smaller model, a lower rank, shorter windows, or fewer texts in a step."
        banner.draw(Banner("warn", text, way))
    left, right = st.columns([1, 1.1], gap="large")
    with left:
        st.html(passages.table(facts))
    with right:
        cut = None if everything else passages.pieces(facts)
        st.html(joined(cut, passages.notes(facts), passages.given(facts)))
    _texts(store, facts, run, config)
    if run is None:
        own_answers.draw(store, facts, session.now(store))


def _texts(store: RunStore, facts: dict[str, Any], run: dict[str, Any] | None, config: dict[str, Any]) -> None:
    """Every window, a set at a time, and every occurrence."""
    names = [name for name in passages.SETS if any(each["set"] == name for each in facts["windows"])]
    names += [EVERY] if facts["found"] else []
    if not names:
        return
    labels = {name: f"{name} {facts['sets'][name]['windows']:,}" for name in names if name != EVERY}
    labels[EVERY] = f"every occurrence {len(facts['found']):,}"
    if st.session_state.get("shown_set") not in names:
        st.session_state["shown_set"] = names[0]
    with st.container(horizontal=True, vertical_alignment="bottom", key="texts_head"):
        name = st.segmented_control(
            "Show", names, format_func=labels.__getitem__, required=True, key="shown_set", wrap=True
        )
        search = st.text_input(
            "Find in these texts", key="search_texts", type="search", placeholder="find in them", width=260
        )
    if name == EVERY:
        _occurrences(store, facts, search or "", run, config)
    else:
        _windows(facts, str(name), search or "")


def _windows(facts: dict[str, Any], name: str, search: str) -> None:
    matching = passages.wanted(facts["windows"], name, search)
    st.html(joined(passages.legend(name), _of_all(facts, name, matching, search)))
    first, of_page = _paged(matching, f"windows {name} {search}")
    marks = passages.marks_of(facts)
    st.html(joined(passages.window(each, first + place, marks) for place, each in enumerate(of_page, 1)))


def _of_all(facts: dict[str, Any], name: str, matching: list[Any], search: str) -> Markup | None:
    there = sum(each["set"] == name for each in facts["windows"])
    total = facts["sets"][name]["windows"]
    sentence = f"{there:,} of {total:,} are shown, drawn evenly. " if there < total else ""
    if search.strip():
        sentence += f"“{search.strip()}” is in {len(matching):,} of them."
    return element("p.told", sentence, role="status") if sentence else None


def _paged(rows: list[Any], key: str) -> tuple[int, list[Any]]:
    """(how many come before, the rows of the page that is chosen)."""
    pages = max(1, -(-len(rows) // PAGE))
    at = st.pagination(pages, key=f"page {pages} {key}") if pages > 1 else 1
    return (at - 1) * PAGE, rows[(at - 1) * PAGE : at * PAGE]


def _occurrences(
    store: RunStore, facts: dict[str, Any], search: str, run: dict[str, Any] | None, config: dict[str, Any]
) -> None:
    needle = search.strip().casefold()
    keys = ("before", "target", "after", "source", "place")
    rows = [(n, e) for n, e in enumerate(facts["found"], 1) if needle in " ".join(str(e[k]) for k in keys).casefold()]
    sentence = "What is excluded is not trained on; the windows are made anew without it. "
    sentence += f"“{search.strip()}” is in {len(rows):,} of them." if needle else ""
    st.html(element("p.legend", sentence, role="status"))
    out = set(config["data"]["excluded"])
    _, of_page = _paged(rows, f"found {needle}")
    for number, each in of_page:
        with st.container(horizontal=True, vertical_alignment="top", key=f"occurrence_{number}"):
            st.html(passages.occurrence({**each, "excluded": each["id"] in out}, number), width="stretch")
            key = f"exclude {each['id']}"
            st.session_state[key] = each["id"] in out
            st.checkbox(f"exclude {number}", key=key, on_change=_leave_out, args=(store, each["id"], key, run))


def _leave_out(store: RunStore, number: str, key: str, run: dict[str, Any] | None) -> None:
    out = bool(st.session_state.get(key))
    if run is None:
        session.change(store, lambda draft: leave_out(draft, number, out))
        return
    excluded = set(st.session_state.get(f"excluded {run['id']}") or run["config"].get("data", {}).get("excluded", ()))
    st.session_state[f"excluded {run['id']}"] = sorted(excluded | {number} if out else excluded - {number})


main()
