"""The settings of a run that can change while it goes on: as they are, changed from the next step on, and undone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import streamlit as st

from pages.run.view import View
from pages.setup.knobs import Field, fields_of, name_of, plain, step_of, text_of, value_of
from pages.shared import page
from pages.shared.html import element
from unlearn_core.settings.changes import CHANGEABLE
from unlearn_core.settings.errors import ConfigError
from unlearn_core.settings.run_config import RunConfig, settings_at

SHOWN_CHANGES = 8
Change = Callable[[Mapping[str, Any]], None]  # asks the worker for these settings, by their paths


def draw(view: View, why: str | None, ask: Change) -> None:
    """The popover. `why`: the reason why nothing can change now."""
    with st.popover("settings", type="tertiary", key="run_settings", disabled=bool(why), help=why):
        try:
            config = RunConfig.read(settings_at(view.run["config"], view.last_step + 1))
        except ConfigError as error:
            st.html(element("p.quiet", str(error)))
            return
        _draw_form(view, config, ask)
        _draw_changes(view, ask)


def _draw_form(view: View, config: RunConfig, ask: Change) -> None:
    fields = changeable(view, config)
    now = {path: value_of(config, path) for path in fields}
    with st.form(f"run_settings {view.id}", border=False):
        for path, field in fields.items():
            _draw_field(field, now[path], config.method.facts.rails)
        st.form_submit_button(
            f"Use from step {view.last_step + 1} on" if view.status == "paused" else "Use from the next step on",
            key="run_settings_use",
            on_click=_use,
            args=(fields, now, ask),
        )


def _draw_field(field: Field, value: Any, rails: Sequence[str]) -> None:
    """With its value as the widget's default, not in the session: the browser draws a popover when it is opened, and
    what the session has by then, a widget is told once."""
    title = field.name[:1].upper() + field.name[1:]
    about: dict[str, Any] = {"key": field.key, "help": page.escaped(field.meaning) or None}
    if isinstance(value, bool):
        st.toggle(title, value, **about)
    elif isinstance(value, str):
        choices = list(rails) if field.path == "guard_rail.kind" else list(field.choices)
        st.selectbox(title, choices, choices.index(value), format_func=field.offered, **about)
    else:
        step: float = 1 if isinstance(value, int) else step_of(field)
        tiny = isinstance(value, float) and 0 < field.default < 0.001
        st.number_input(title, value=value, step=step, format=None if step == 1 else "%e" if tiny else "%g", **about)


def changeable(view: View, config: RunConfig) -> dict[str, Field]:
    """The fields that are shown. Their keys have the number of changes in them: what changed elsewhere is seen here."""
    count = len(view.run["config"].get("changes", ()))
    known = fields_of(config.method.name, config.guard_rail.kind)
    paths = [path for path in known if path in CHANGEABLE or path == "guard_rail.kind" or path.startswith("guard.")]
    return {path: known[path]._replace(key=f"run_set {view.id} {count} {path}") for path in paths}


def _use(fields: Mapping[str, Field], now: Mapping[str, Any], ask: Change) -> None:
    wanted = {path: plain(field, st.session_state.get(field.key, now[path])) for path, field in fields.items()}
    if settings := {path: value for path, value in wanted.items() if value != now[path]}:
        ask(settings)


def _draw_changes(view: View, ask: Change) -> None:
    """What has changed and when, the newest first, each with a way back; before them, what will."""
    for change in view.run["config"].get("changes", ()):
        if change["step"] > view.last_step:
            names = ", ".join(f"{_name(path)} {text_of(path, value)}" for path, value in change["set"].items())
            st.html(element("p.quiet", f"From step {change['step']} on: {names}"))
    for event in [event for event in view.events if event["kind"] == "changed"][: -SHOWN_CHANGES - 1 : -1]:
        with st.container(horizontal=True, vertical_alignment="center"):
            st.html(element("p.quiet", f"Step {event['step']}: {words(event['payload'])}"), width="stretch")
            before = event["payload"]["before"]
            st.button("Undo", key=f"undo {event['id']}", type="tertiary", on_click=ask, args=(before,))


def words(payload: Mapping[str, Any]) -> str:
    """What a change changed, in words: `learning rate 1e-3 → 1e-4`; of another guard rail, its kind alone."""
    before, after = payload.get("before", {}), payload.get("set", {})
    kinds = "guard_rail.kind" in after
    shown = [path for path in after if not (kinds and path.startswith("guard_rail.") and path != "guard_rail.kind")]
    return ", ".join(
        f"{_name(path)} {text_of(path, before.get(path))} → {text_of(path, after[path])}" for path in shown
    )


def _name(path: str) -> str:
    return name_of(path).strip("“”")
