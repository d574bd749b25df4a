"""Commands: acknowledged, then done or refused with a code and a reason. The tables are in drive.py and worker.py."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

from unlearn_core.running.log import internal_error
from unlearn_core.running.protocols import Answer, Row, Session, Store
from unlearn_core.settings.disk import full_disk

log = logging.getLogger(__name__)

T = TypeVar("T")
WHOLE = 2**63  # whole numbers are smaller, as the store has them
KINDS: Mapping[type, str] = {str: "a text", int: "a whole number", list: "a list", dict: "a table"}

Owned = Callable[[], AbstractContextManager[None]]  # one transaction; raises where the run is another's by now


class Refused(Exception):
    """A command that is not done: `code` for programs, `reason` as a sentence."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


def carry_out(
    store: Store, command: Row, act: Callable[[Row], int | None], owner: str, owned: Owned = nullcontext
) -> None:
    """Acknowledges the command as `owner`'s, lets `act` do it, and writes down how it ended; both inside `owned`.

    `act` returns the step at which it took effect, where there is one.
    """
    with owned():
        if not store.acknowledge(command["id"], owner):
            return  # another process was first
    try:
        step = act(command)
    except Exception as error:
        code, reason = explain(store, error)
        with owned():
            store.finish(command["id"], reason, code)
    else:
        with owned():
            store.finish(command["id"], step=step)


def explain(store: Store, error: Exception) -> tuple[str, str]:
    """Code and sentence of whatever was raised; an internal error is logged with its traceback."""
    if isinstance(error, Refused):
        return error.code, error.reason
    if isinstance(error, ValueError):
        return "invalid", str(error)
    if isinstance(error, store.Error):
        return "store", str(error)
    if sentence := full_disk(error):
        return "store", sentence
    log.error("internal error", exc_info=error)
    return "internal", internal_error(store.home, error)


def prompt_text(payload: Mapping[str, Any]) -> str:
    """The question in a command's payload. Raises Refused where there is none."""
    text = value_of(payload, "text", str, "").strip()
    if not text:
        raise Refused("empty_prompt", "The question is empty; write a question for the model.")
    return text


def value_of(payload: Mapping[str, Any], key: str, kind: type[T], default: T) -> T:
    """A value of a command's payload, which another program may have written; `default` where it is missing or null.

    Raises Refused where it is of another kind. A truth value is no number here, as it is in Python.
    """
    value: Any = payload.get(key)
    if value is None:
        return default
    if not _fits(value, kind):
        raise Refused("invalid", f"The command's “{key}” is {_shown(value)}, where {KINDS[kind]} belongs.")
    fitting: T = value
    return fitting


def _fits(value: Any, kind: type) -> bool:
    if kind is int:
        return type(value) is int and -WHOLE <= value < WHOLE
    return isinstance(value, kind)


def list_of(payload: Mapping[str, Any], key: str, kind: type[T]) -> list[T]:
    """A list of a command's payload that has values of one kind, at least one. Raises Refused where it is none."""
    values = value_of(payload, key, list, [])
    if not values:
        raise Refused("invalid", f"The command names no “{key}”.")
    if others := [value for value in values if not _fits(value, kind)]:
        raise Refused("invalid", f"The command's “{key}” has {_shown(others[0])}, where {KINDS[kind]} belongs.")
    return values


def _shown(value: object) -> str:
    return " ".join(repr(value).split())[:60]


def probe(store: Store, run_id: str, session: Session, payload: Mapping[str, Any], owned: Owned = nullcontext) -> None:
    """One question to the adapter of each chosen step (its nearest checkpoint): answers become rows of that step."""
    text = prompt_text(payload)
    nearest: dict[int, Row] = {}
    for step in list_of(payload, "steps", int):
        checkpoint = store.nearest_checkpoint(run_id, step)
        if checkpoint is None:
            raise Refused("no_checkpoint", f"There is no checkpoint near step {step}.")
        nearest[step] = checkpoint
    paths = {row["step"]: store.verified_checkpoint(row) for row in nearest.values()}
    answers = {step: session.answers_at(path, [text])[0] for step, path in paths.items()}
    with owned():
        prompt_id = store.add_probe(run_id, text)
        store.add_responses(run_id, [{"step": step, **response_row(prompt_id, a)} for step, a in answers.items()])
        steps = {"steps": list(nearest), "checkpoint_steps": [row["step"] for row in nearest.values()]}
        store.add_event(run_id, "probed", {**steps, "prompt_id": prompt_id}, step=max(answers))


def response_row(prompt_id: int, answer: Answer) -> Row:
    """An answer as a row of the store's responses."""
    response = answer.response
    return {
        "prompt_id": prompt_id,
        "text": response.text,
        "tokens": response.tokens,
        "seconds": response.seconds,
        "target_probability": answer.target_probability,
        "surprise": answer.surprise,
        "typical_share": answer.typical_share,
    }
