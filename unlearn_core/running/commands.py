"""Commands: acknowledged, then done or refused with a code and a reason. The tables are in drive.py and worker.py."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from unlearn_core.running.log import internal_error
from unlearn_core.running.protocols import Answer, Row, Session, Store
from unlearn_core.settings.disk import full_disk

log = logging.getLogger(__name__)

Owned = Callable[[], AbstractContextManager[None]]  # one transaction; raises where the run is another's by now


class Refused(Exception):
    """A command that is not done: `code` for programs, `reason` as a sentence."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


def carry_out(store: Store, command: Row, act: Callable[[Row], None], owned: Owned = nullcontext) -> None:
    """Acknowledges the command, lets `act` do it, and writes down how that ended; both inside `owned`."""
    with owned():
        if not store.acknowledge(command["id"]):
            return  # another process was first
    try:
        act(command)
    except Exception as error:
        code, reason = explain(store, error)
        with owned():
            store.finish(command["id"], reason, code)
    else:
        with owned():
            store.finish(command["id"])


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
    """The question in a command's payload. Raises Refused where it is empty."""
    text = str(payload["text"]).strip()
    if not text:
        raise Refused("empty_prompt", "The question is empty; write a question for the model.")
    return text


def probe(store: Store, run_id: str, session: Session, payload: Mapping[str, Any], owned: Owned = nullcontext) -> None:
    """One question to the adapter of each chosen step (its nearest checkpoint): answers become rows of that step."""
    text = prompt_text(payload)
    nearest: dict[int, Row] = {}
    for step in payload["steps"]:
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
