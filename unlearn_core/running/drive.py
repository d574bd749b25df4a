"""Drive: one run, from opening to its end. Every step of it, and all that belongs to the step, is one transaction.

Standard library only, like `worker.py`, which holds the thread that a drive runs in.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from unlearn_core.running.commands import Refused, carry_out, explain, probe, prompt_text, response_row, value_of
from unlearn_core.running.protocols import Answer, Config, Host, Row, Session, StepRecord
from unlearn_core.settings.provenance import differences, warning

log = logging.getLogger(__name__)

ASKED_BY = ("forget", "pair_template", "text_field", "question_field", "answer_field")  # how questions are put
KEEP_ROLES = ("neighbour", "retain")  # of questions whose answers should stay
ROLES = ("forget", *KEEP_ROLES, "free")  # that a question can have
WHOLE_STATES = 2  # that stay; an older checkpoint shrinks to its adapter


class Left(Exception):
    """The run was left while it was being loaded; the store knows why."""


class Drive:
    """One run from opening to its end (or to its being set aside).

    Everything that it writes, files that others may read included, is written inside `_owned()`: a process that stood
    still while another took its run over changes nothing more, wherever it goes on.
    """

    def __init__(self, host: Host, run_id: str, config: Config) -> None:
        self.host, self.store, self.run_id, self.config = host, host.store, run_id, config
        self.paused = False
        self.passed_over: frozenset[str] = frozenset()  # what waited already when a person paused the run
        self.ended = False
        self.lost = False  # the heartbeat found the run in other hands
        self._session: Session | None = None

    @property
    def session(self) -> Session:
        assert self._session, "the run is opened before anything is asked of it"
        return self._session

    def same_base_model(self, config: Config) -> bool:
        """True where this run's model, with another adapter in it, answers as that of `config`; {}: the bundled one."""
        name = _section(config, "method").get("name", "")
        if not self._session or not isinstance(name, str) or not self._session.same_base_model(name):
            return False
        model = self.config["model"]
        if not config:
            return bool(model["source"] == "bundled" and not model.get("adapter") and not model.get("earlier"))
        own, other = _section(self.config, "data"), _section(config, "data")
        if "data" in config and any(other.get(key) != own.get(key) for key in ASKED_BY):
            return False  # questions are put otherwise
        usual = {**self.config, "model": {"source": "bundled"}}
        return all(self.config.get(part) == config.get(part, usual.get(part)) for part in ("model", "lora", "where"))

    def go(self, resume: bool) -> None:
        try:
            self._open(resume)
            while not self.ended:
                if self.lost:
                    with self._owned():
                        self.lost = False
                if self.host.stopping and self.paused:
                    return None  # it was saved whole when it paused: it stays paused, and Resume brings it back
                if self.host.stopping:
                    return self._close("interrupted", "Lethe was closed; Resume goes on where it stood.", "interrupted")
                self._serve()
                if self.ended:
                    return None
                if not self.paused:
                    self._step()
                elif self.host.waiting() - self.passed_over:
                    return self._set_status(
                        "paused",
                        f"Paused at step {self.session.step_number} and set aside whole; Resume brings it back.",
                    )
                else:
                    self.host.rest()
        except Left:
            pass
        except Exception as error:
            self._fail(error)
        finally:
            self._session = None
            self._quietly(self._let_go)

    def _owned(self) -> AbstractContextManager[None]:
        """One transaction, in which this process is known to hold the run; raises `store.NotHeld` where it does not."""
        return self.store.owned(self.run_id, self.host.owner)

    def _set_status(self, *given: Any) -> None:
        with self._owned():
            self.store.set_status(self.run_id, *given)

    # ----------------------------------------------------------------------------------------------- opening

    def _open(self, resume: bool) -> None:
        stage = ""

        def report(now: str, detail: str = "") -> None:
            """A new stage is stored as an event; its progress is only shown."""
            nonlocal stage
            event, stage = "loading" if now != stage else None, now
            message = f"{now}: {detail}" if detail else now
            self._set_status("loading", message, event, {"message": message})
            self._leave_loading()

        self._clear_up()
        report("importing PyTorch")
        checkpoint, damaged = self._whole_checkpoint() if resume else (None, [])
        self._session = self.host.opener(self.config, report)
        self.session.read_texts()
        gc.collect()
        gc.freeze()  # Streamlit collects after every rerun, and would walk all that torch imported each time
        if checkpoint:
            self.session.restore(self.store.verified_checkpoint(checkpoint, whole=True))
            began = (self.store.run(self.run_id) or {}).get("provenance", {})
            changed = differences(began, self.session.provenance())
            event = {"from_step": checkpoint["step"], **({"sentence": warning(changed)} if changed else {})}
            with self._owned():
                self._rewind(checkpoint["step"])
                for row, sentence in damaged:
                    payload = {
                        "checkpoint": row["step"],
                        "sentence": f"{sentence} The run goes on from step {checkpoint['step']}.",
                    }
                    self.store.add_event(self.run_id, "checkpoint_damaged", payload, checkpoint["step"])
                self.store.set_status(self.run_id, "running", None, "resumed", event)
        else:
            self._baseline()

    def _clear_up(self) -> None:
        """What an earlier driver of the run left half done: commands, and checkpoints that it was writing."""
        with self._owned():
            for command in self.store.commands(self.run_id, open_only=True):
                if command["acknowledged_at"]:
                    reason = "The program that was to do it ended before it was done."
                    self.store.finish(command["id"], reason, "driver_gone")
            self.store.tidy_checkpoints(self.run_id, after_a_driver=True)

    def _rewind(self, step: int) -> None:
        """Back to how things stood at `step`, inside a transaction: the files go before another can write new ones."""
        self.store.remove_checkpoints(self.run_id, self.store.truncate_after(self.run_id, step))

    def _leave_loading(self) -> None:
        """Reading a large corpus takes its time: Stop, and closing the program, do not wait for the end of it."""
        stop = next((c for c in self.store.commands(self.run_id, open_only=True) if c["kind"] == "stop"), None)
        if stop:
            with self._owned():
                self.store.finish(stop["id"])
                self.store.set_status(self.run_id, "stopped", "Stopped by hand while it was being loaded.", "stopped")
        elif self.host.stopping:
            self._set_status("interrupted", "Lethe was closed while it was being loaded.", "interrupted")
        else:
            return
        self.ended = True
        raise Left

    def _whole_checkpoint(self) -> tuple[Row | None, list[tuple[Row, str]]]:
        """The newest checkpoint whose state is there and as it was saved, and those passed over with the reason.

        None where the run has not begun. Raises Refused where no checkpoint can be gone on from.
        """
        rows = [row for row in self.store.checkpoints(self.run_id) if row["complete"]]
        passed: list[tuple[Row, str]] = []
        for row in reversed(rows):
            try:
                self.store.verified_checkpoint(row, whole=True)
                return row, passed
            except self.store.Error as error:
                passed.append((row, str(error)))
        if not rows:
            return None, []
        if not any(self.store.has_checkpoint(row) for row in rows):
            raise Refused(
                "checkpoints_deleted",
                "Its checkpoints were deleted from the disk, so it cannot go on. What it measured can still be read.",
            )
        raise Refused(
            "checkpoints_damaged",
            f"None of its checkpoints can be gone on from. {passed[0][1]} What it measured can still be read; a run "
            "with the same settings begins anew.",
        )

    def _baseline(self) -> None:
        with self._owned():
            self.store.set_status(self.run_id, "baseline", "asking the questions before step 1")
            self._rewind(0)
        record = self.session.measure_baseline()
        with self._owned():
            self.store.set_provenance(self.run_id, self.session.provenance())
        answers, rows = self._ask_prompts()
        saved = self._checkpoint(whole=True)
        events: list[tuple[str, Mapping[str, Any]]] = [("baseline", self.session.levels()), ("started", {})]
        if stand_in := self.session.about_a_stand_in([prompt["text"] for prompt in self.store.prompts(self.run_id, 0)]):
            events.append(("stand_in", stand_in))
        self._append(
            0,
            points=record.values,
            responses=rows,
            events=events,
            checkpoint=saved,
            examples=_examples(record),
            status="running",
            status_reason=None,
        )

    # ---------------------------------------------------------------------------------------------- stepping

    def _step(self, pause_after: bool = False) -> None:
        """One step, with all that belongs to it, in one transaction."""
        record = self.session.step()
        schedule = self.session.schedule
        last = record.step >= schedule.steps
        answers: Sequence[Answer] = []
        rows: list[Row] = []
        if record.applied and (record.step % schedule.sample_every == 0 or last or pause_after):
            answers, rows = self._ask_prompts()
        texts = [(answer.baseline, answer.response.text) for answer in answers]
        verdict = record.verdict or self.session.judge(record.values, texts)
        if verdict and record.applied and not rows:
            answers, rows = self._ask_prompts()
        step = self.session.step_number
        status, reason = "running", None
        events: list[tuple[str, Mapping[str, Any]]] = [("changed", record.changed)] if record.changed else []
        if verdict:
            reason = verdict.sentence
            events.append(("guard", {"rule": verdict.rule, "sentence": reason}))
        if last and step == record.step:  # the last step may have been left out, but not left to be tried again
            status, reason = "finished", f"It went through its {step} steps."
            events.append(("finished", {}))
        elif verdict or pause_after:
            status, reason = "paused", reason or "One step was taken."
            events.append(("paused", {"reason": reason}))
        whole = status != "running" or step % schedule.checkpoint_every == 0
        saved = self._checkpoint(whole) if rows or whole else None
        self._append(
            step,
            points=record.values if record.applied or not verdict else {},
            responses=rows,
            events=events,
            checkpoint=saved,
            examples=_examples(record) if rows else {},  # as often as answers: a value per example is for a close look
            status=status,
            status_reason=reason,
        )
        self.paused, self.ended = status == "paused", status == "finished"
        self._hold(by_hand=pause_after and not verdict)
        if whole:
            self._prune()

    def _append(self, step: int, *, checkpoint: Row | None, **more: Any) -> None:
        """The rows of the step, and its checkpoint's folder in its place, while this process holds the run."""
        try:
            with self._owned():
                if checkpoint:
                    self.store.place_checkpoint(checkpoint, self.host.owner)
                self.store.append_step(self.run_id, step, checkpoint=checkpoint, **more)
        finally:
            if checkpoint:
                self.store.discard_checkpoint(checkpoint, self.host.owner)

    def _ask_prompts(self) -> tuple[Sequence[Answer], list[Row]]:
        prompts = self.store.prompts(self.run_id, at_step=self.session.step_number)
        keep = {prompt["text"] for prompt in prompts if prompt["role"] in KEEP_ROLES}
        texts = [prompt["text"] for prompt in prompts]
        answers: Sequence[Answer] = self.session.answers(texts, keep=keep) if prompts else []
        return answers, [response_row(prompt["id"], a) for prompt, a in zip(prompts, answers, strict=True)]

    def _checkpoint(self, whole: bool) -> Row:
        """Writes the checkpoint of the current step beside its place; returns its row, for `_append`."""
        write = partial(self.session.save, whole=whole)
        return self.store.write_checkpoint(self.run_id, self.session.step_number, whole, write, self.host.owner)

    def _save_whole(self, event: str, payload: Row, **more: Any) -> None:
        """The whole state of the current step and its event, in one transaction; no step was taken."""
        step, saved = self.session.step_number, self._checkpoint(whole=True)
        self._append(step, points={}, checkpoint=saved, events=[(event, payload)], **more)

    def _prune(self) -> None:
        """Older whole states shrink to their adapters; the newest few stay, and those that were pinned."""
        whole = [row for row in self.store.checkpoints(self.run_id) if row["complete"] and not row["pinned"]]
        for row in whole[:-WHOLE_STATES]:
            with self._owned():
                self.store.shrink_checkpoint(row["id"])
        with self._owned():
            self.store.tidy_checkpoints(self.run_id)

    # ---------------------------------------------------------------------------------------------- commands

    def _serve(self) -> None:
        for command in self.store.commands(self.run_id, open_only=True):
            carry_out(self.store, command, self._carry_out, self.host.owner, self._owned)
            if self.ended:
                return
        self.host.serve_others()

    def _carry_out(self, command: Row) -> int:
        """Does it; returns the step at which it took effect: of settings, the first that is taken with them."""
        COMMANDS.get(command["kind"], Drive.unknown)(self, command)
        step = self.session.step_number
        return step + 1 if command["kind"] == "set" else step

    def pause(self, command: Row) -> None:
        if self.paused:
            return
        answered = len(self.store.responses(self.run_id, step=self.session.step_number))
        rows = [] if answered else self._ask_prompts()[1]
        reason = "Paused by hand."
        self._save_whole("paused", {"reason": reason}, responses=rows, status="paused", status_reason=reason)
        self.paused = True
        self._hold(by_hand=True)
        self._prune()

    def _hold(self, by_hand: bool) -> None:
        """A person who pauses keeps the model against all that waits already; a guard leaves it to the next in line."""
        self.passed_over = self.host.waiting() if by_hand else frozenset()

    def resume(self, command: Row) -> None:
        if self.paused:
            self._set_status("running", None, "resumed", {})
            self.paused = False

    def single_step(self, command: Row) -> None:
        if not self.paused:
            raise Refused("running", "It is running; pause it to go step by step.")
        try:
            self._step(pause_after=True)
        except Exception as error:  # half a step is no place to go on from
            self._fail(error)
            raise

    def change(self, command: Row) -> None:
        """Other settings from the next step on."""
        settings = value_of(command["payload"], "set", dict, {})
        if not settings:
            raise Refused("invalid", "The command names no settings.")
        config = self.session.changed(settings)
        with self._owned():
            self.store.set_config(self.run_id, config)
        self.session.replan(config)
        self.config = config

    def stop(self, command: Row) -> None:
        self._close("stopped", f"Stopped by hand at step {self.session.step_number}.", "stopped")

    def edit_prompt(self, command: Row) -> None:
        """A new wording (or a new question), asked of the model as it was before step 1 and as it is now."""
        payload, step = command["payload"], self.session.step_number
        text, slot, role = prompt_text(payload), self._slot(payload), value_of(payload, "role", str, "free")
        if role not in ROLES:
            raise Refused("invalid", f"A question has one of the roles {', '.join(ROLES)}, and not {role[:40]!r}.")
        now = self.session.answers([text])[0]
        answers = {0: self.session.baseline_answers([text])[0], step: now}
        stand_in = self.session.about_a_stand_in([text])
        with self._owned():
            prompt_id = self.store.edit_prompt(self.run_id, slot, role, text, step)
            rows = [{"step": at, **response_row(prompt_id, answer)} for at, answer in answers.items()]
            self.store.add_responses(self.run_id, rows)
            if stand_in:
                self.store.add_event(self.run_id, "stand_in", stand_in, step)

    def _slot(self, payload: Row) -> int | None:
        """The question that is replaced; None: it is one more. Raises Refused where there is none in that place."""
        if payload.get("slot") is None:
            return None
        slot, known = value_of(payload, "slot", int, 0), {row["slot"] for row in self.store.prompts(self.run_id)}
        if slot not in known:
            raise Refused("no_prompt", f"This run has no question in slot {slot}.")
        return slot

    def probe(self, command: Row) -> None:
        probe(self.store, self.run_id, self.session, command["payload"], self._owned)

    def unknown(self, command: Row) -> None:
        raise Refused("unknown_command", f"“{command['kind']}” is not something a run can do.")

    # ------------------------------------------------------------------------------------------------- ending

    def _close(self, status: str, reason: str, event: str) -> None:
        self._save_whole(event, {}, status=status, status_reason=reason)
        self._prune()
        self.ended = True

    def _fail(self, error: Exception) -> None:
        """Stores the end of the run; where that fails (a full disk), retries until it succeeds, or another has it."""
        if isinstance(error, self.store.NotHeld):
            return self._lose(error)
        if self.ended:
            return None
        self.ended = True
        code, reason = explain(self.store, error)
        payload = {"sentence": reason, "code": code}
        while not self._quietly(lambda: self._set_status("failed", reason, "failed", payload)):
            if self.lost or self.host.rest(2.0):
                return None
        self.host.failure = None

    def _lose(self, error: Exception) -> None:
        """Another process has taken the run over: this one says so, and writes nothing more to it."""
        if not (self.ended and self.lost):
            log.error("%s", error)
        self.ended = self.lost = True
        self.host.failure = str(error)

    def _let_go(self) -> None:
        """Ends the lease; it stays this driver's where the end of the run could not be stored."""
        run = self.store.run(self.run_id)
        if run and run["status"] not in ("loading", "baseline", "running"):
            self.store.release(self.run_id, self.host.owner)

    def _quietly(self, act: Callable[[], None]) -> bool:
        """Whether the store took it; `host.failure` says why not."""
        try:
            act()
        except self.store.NotHeld as error:
            self._lose(error)
            return False
        except Exception as error:
            self.host.failure = explain(self.store, error)[1]
            return False
        return True


def _section(config: Config, name: str) -> Mapping[str, Any]:
    """A table of a config that another program may have written; empty where there is none."""
    section = config.get(name)
    return section if isinstance(section, Mapping) else {}


def _examples(record: StepRecord) -> dict[str, Mapping[str, float]]:
    """The values per example of what a step measured, by metric."""
    return {name: measurement.examples for name, measurement in record.measured.items()}


COMMANDS: Mapping[str, Callable[[Drive, Row], None]] = {
    "pause": Drive.pause,
    "resume": Drive.resume,
    "step": Drive.single_step,
    "set": Drive.change,
    "stop": Drive.stop,
    "prompt": Drive.edit_prompt,
    "probe": Drive.probe,
}  # of the live run, by the kind in the store's table `commands`
