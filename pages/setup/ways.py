"""Method and settings of a new run: the third row of the card, a view of the draft."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import streamlit as st

from pages.run import view
from pages.setup import about, knobs, session, sources
from pages.setup.draft import Choice, Draft, as_preset, chosen, differences, methods_offered
from pages.shared import page
from pages.shared.html import element
from unlearn_core.settings.compatibility import refusals, unused
from unlearn_core.settings.errors import ConfigError

if TYPE_CHECKING:
    from storage import RunStore

TABS = ("Method", "Guard rail", "Optimizer and steps", "Where", "Pauses and defects")
MOST_TOLD = 3
MOST_EARLIER = 30


def draw(store: RunStore, draft: Draft) -> None:
    """The row, closed at first."""
    choice = chosen(draft)
    with st.expander("Method and settings", key="ways"):
        method, rail, optimizer, where, rest = st.tabs(TABS)
        with method:
            _method(draft, choice)
        with rail:
            _rail(choice)
        with optimizer:
            _optimizer(choice)
        with where:
            _where(store, draft, choice)
        with rest:
            _rest(choice)
        _all_differences(differences(draft))


def _fields(choice: Choice, *sections: str, key: str, without: tuple[str, ...] = ()) -> None:
    """The settings of sections that mean something beside the others, as a grid of fields."""
    with st.container(key=f"knobs_{key}"):
        for path, field in choice.fields.items():
            entry = unused(choice.config, path)
            if path.split(".")[0] in sections and path not in without and not (entry and entry.hidden):
                knobs.draw(field, entry.because if entry else "", _offered(choice, path))


def _select(choice: Choice, path: str, label: str) -> None:
    """A choice of kind, and below it why some are not offered."""
    field = choice.fields[path]
    knobs.draw(field, options=_offered(choice, path), label=label)
    _left_out({field.text_of(value): error for value, error in refusals(choice.config, path).items()})


def _offered(choice: Choice, path: str) -> list[Any]:
    """The choices of a setting that go with the rest."""
    refused = refusals(choice.config, path) if choice.fields[path].choices else {}
    return [value for value in choice.fields[path].choices if value not in refused]


def _left_out(errors: dict[str, ConfigError]) -> None:
    together: dict[str, list[str]] = {}
    for name, error in errors.items():
        together.setdefault(error.reason, []).append(name)
    rows = [element("li", f"{', '.join(names)}: {reason}.") for reason, names in together.items()]
    if rows:
        st.html(element("div.left-out", element("p", "Not offered here:"), element("ul", rows)))


def _method(draft: Draft, choice: Choice) -> None:
    offered, left_out = methods_offered(draft.preset, draft.model)
    st.selectbox(
        "Method: type to search; it brings its own settings with it",
        about.ordered({*offered, choice.method}),
        key=session.METHOD,
        format_func=about.option,
    )
    _left_out({about.label(name): why for name, why in left_out.items()})
    name = choice.method
    st.html(element("p.does", about.does(name)))  # where the list above is too narrow for it
    about.formula(name)
    left, right = st.columns([1.1, 1], gap="large")
    with left:
        recipe = draft.preset if not differences(draft) else ""
        st.html(about.sheet(name, recipe))
    with right:
        _fields(choice, knobs.METHOD, key="method")
        if st.button("All methods beside each other", key="see_methods", type="tertiary", icon=":material/menu_book:"):
            st.switch_page("pages/methods.py")


def _rail(choice: Choice) -> None:
    _select(choice, "guard_rail.kind", "Guard rail: what the update is projected orthogonally to")
    _fields(choice, "guard_rail", key="rail", without=("guard_rail.kind",))


def _optimizer(choice: Choice) -> None:
    if not choice.config.method.facts.trains:
        st.html("<p class='told'>This method takes no gradient steps: its steps are the positions of a dial.</p>")
    else:
        _select(choice, "optimizer.name", "Optimizer")
    _fields(choice, "optimizer", "schedule", key="optimizer", without=("optimizer.name",))


def _where(store: RunStore, draft: Draft, choice: Choice) -> None:
    facts = choice.config.method.facts
    if not facts.trains and not facts.unlearns:
        st.html("<p class='told'>This changes no weights: only what is put before every question.</p>")
        return
    _select(choice, "where.kind", "What is trained")
    if unused(choice.config, "where.mask") is None:
        _select(choice, "where.mask", "Mask: which of it may change")
    _fields(choice, "where", "lora", key="where", without=("where.kind", "where.mask"))
    if choice.config.where.kind == "lora":
        _earlier(store, draft)
    else:
        schedule = choice.config.schedule
        copies = schedule.steps // schedule.sample_every
        st.html(
            element("p.told", f"Every step with answers keeps a copy of all weights on the disk: {copies:,} of them.")
        )


def _earlier(store: RunStore, draft: Draft) -> None:
    """Adapters of other runs of this model that stay on, each removable by itself."""
    there = _adapters(store, draft.model)
    offered = dict.fromkeys([*there, *draft.earlier])
    if not offered:
        return
    st.multiselect(
        "Earlier adapters that stay on, and are not trained",
        list(offered),
        key=session.EARLIER,
        format_func=lambda folder: there.get(folder) or sources.named(folder, store.home),
        placeholder="none: this request is the first",
        help="Of earlier runs of this model: what they made it forget stays forgotten.",
    )


def _adapters(store: RunStore, model: str) -> dict[str, str]:
    """Folder -> name, of the newest adapter of each of the newest runs of this model."""
    try:
        source = sources.model(model, store.home)
    except ConfigError:
        return {}
    adapters = {}
    for run in store.runs()[:MOST_EARLIER]:
        if run["last_step"] and run["config"].get("model", {}).get("source", "bundled") == source:
            folder = view.adapter_folder(store, store.checkpoints(run["id"]))
            if folder is not None:
                adapters[str(folder.resolve())] = f"{run['name']}: {run['target']}, to step {run['last_step']}"
    return adapters


def _rest(choice: Choice) -> None:
    _fields(choice, "guard", key="guard")
    st.html("<p class='told'>Two defects of the published code, to see what each of them does:</p>")
    _fields(choice, "as_run", key="as_run")


# ----------------------------------------------------------------------------------------------- what was changed


def in_words(draft: Draft) -> str:
    """The differences of the card from its recipe in a sentence; empty without any."""
    differing = differences(draft)
    if not differing:
        return ""
    rest = f"; {len(differing) - MOST_TOLD} more" if len(differing) > MOST_TOLD else ""
    return f"Unlike the recipe: {'; '.join(differing[:MOST_TOLD])}{rest}."


def _all_differences(differing: list[str]) -> None:
    """All differences, where the sentence beside Start lists only some."""
    words = (
        f"In all: {'; '.join(differing)}."
        if len(differing) > MOST_TOLD
        else ""
        if differing
        else "All as the recipe has it."
    )
    st.html(element("p.told", words, role="status"))


def reset_button(store: RunStore) -> None:
    """The button that resets all settings to the recipe."""
    st.button(
        "as the recipe has it",
        key="reset_ways",
        type="tertiary",
        icon=":material/undo:",
        on_click=session.change,
        args=(store, as_preset),
        help=page.escaped("Method, guard rail, optimizer, where: everything is as the recipe has it again."),
    )
