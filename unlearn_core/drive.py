"""Drive: one run, from opening to its end. Every step of it, and all that belongs to the step, is one transaction.

Standard library only, like `worker.py`, which holds the thread that a drive runs in.
"""

from __future__ import annotations

import gc
import hashlib
import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn_core.provenance import differences, warning

if TYPE_CHECKING:
    from collections.abc import Callable

    from unlearn_core.worker import Worker

log = logging.getLogger(__name__)

WHOLE_STATES_KEPT = 2


class Left(Exception):
    """The run was left while it was being loaded; the store knows why."""


class Drive:
    """One run from opening to its end (or to its being set aside)."""

    def __init__(self, worker: Worker, run_id: str) -> None:
        self.worker, self.store, self.run_id = worker, worker.store, run_id
        self.config: dict = self.store.run(run_id)["config"]
        self.schedule = self.config["schedule"]
        self.session: Any = None
        self.paused = False
        self.ended = False
        self.lost = False

    def speaks_for(self, config: dict) -> bool:
        """True where this run's model, with another adapter in it, is the model of `config`."""
        if self.session is None or not self.session.stands_for(config.get("method", {}).get("name", "")):
            return False
        model = self.config["model"]
        if not config:  # the bundled model as it is
            return model["source"] == "bundled" and not model.get("adapter") and not model.get("earlier")
        usual = {**self.config, "model": {"source": "bundled"}}
        return all(self.config.get(part) == config.get(part, usual.get(part)) for part in ("model", "lora", "where"))

    def go(self, resume: bool) -> None:
        try:
            self._open(resume)
            while not self.ended and not self._taken_over():
                if self.worker.stopping and self.paused:
                    return None  # it was saved whole when it paused: it stays paused, and Resume brings it back
                if self.worker.stopping:
                    return self._close("interrupted", "Lethe was closed; Resume goes on where it stood.", "interrupted")
                self._serve()
                if self.ended:
                    return None
                if not self.paused:
                    self._step()
                elif self.worker.someone_waits():
                    return self.store.set_status(
                        self.run_id,
                        "paused",
                        f"Paused at step {self.session.step_number} and set aside whole; Resume brings it back.",
                    )
                else:
                    self.worker.rest()
        except Left:
            pass
        except Exception as error:
            self._fail(error)
        finally:
            self.session = None
            self._quietly(self._let_go)

    # ----------------------------------------------------------------------------------------------- opening

    def _open(self, resume: bool) -> None:
        stage = ""

        def report(message: str) -> None:
            """A new stage ("reading the corpus: ...", by its words before the colon) is an event; the rest is shown."""
            nonlocal stage
            before, stage = stage, message.partition(":")[0]
            event = ("loading", {"message": message}) if stage != before else (None, None)
            self.store.set_status(self.run_id, "loading", message, *event)
            self._leave_loading()

        for command in self.store.commands(self.run_id, open_only=True):
            if command["acknowledged_at"]:
                self.store.finish(command["id"], "The program that was to do it ended before it was done.")
        report("importing PyTorch")
        checkpoint = self._whole_checkpoint() if resume else None
        self.session = self.worker.opener(self.config, report)
        self.session.read_texts()
        gc.collect()
        gc.freeze()  # Streamlit collects after every rerun, and would walk all that torch imported each time
        if checkpoint:
            self.session.restore(self.store.home / checkpoint["path"])
            for path in self.store.truncate_after(self.run_id, checkpoint["step"]):
                shutil.rmtree(self.store.home / path, ignore_errors=True)
            began = (self.store.run(self.run_id) or {}).get("provenance", {})
            changed = differences(began, self.session.provenance())
            event = {"from_step": checkpoint["step"], **({"sentence": warning(changed)} if changed else {})}
            self.store.set_status(self.run_id, "running", None, "resumed", event)
        else:
            self._baseline()

    def _leave_loading(self) -> None:
        """Reading a large corpus takes its time: Stop, and closing the program, do not wait for the end of it."""
        stop = next((c for c in self.store.commands(self.run_id, open_only=True) if c["kind"] == "stop"), None)
        if stop:
            self.store.finish(stop["id"])
            self.store.set_status(self.run_id, "stopped", "Stopped by hand while it was being loaded.", "stopped")
        elif self.worker.stopping:
            self.store.set_status(
                self.run_id, "interrupted", "Lethe was closed while it was being loaded.", "interrupted"
            )
        else:
            return
        self.ended = True
        raise Left

    def _whole_checkpoint(self) -> dict | None:
        """The newest checkpoint with a whole state whose files are still there; None where the run has not begun."""
        rows = [row for row in self.store.checkpoints(self.run_id) if row["complete"]]
        for row in reversed(rows):
            if (self.store.home / row["path"] / "state.json").is_file():
                return row
        if rows:
            refuse(
                "Its checkpoints were deleted from the disk, so it cannot go on. What it measured can still be read."
            )
        return None

    def _baseline(self) -> None:
        self.store.set_status(self.run_id, "baseline", "asking the questions before step 1")
        self.store.truncate_after(self.run_id, 0)
        record = self.session.measure_baseline()
        self.store.set_provenance(self.run_id, self.session.provenance())
        answers, rows = self._ask_prompts()
        saved = self._checkpoint(whole=True)
        events = [("baseline", self.session.levels()), ("started", {})]
        self.store.append_step(
            self.run_id,
            0,
            points=record.values,
            responses=rows,
            events=events,
            checkpoint=saved,
            status="running",
            status_reason=None,
        )

    # ---------------------------------------------------------------------------------------------- stepping

    def _step(self, pause_after: bool = False) -> None:
        """One step, with all that belongs to it, in one transaction."""
        record = self.session.step()
        last = record.step >= self.schedule["steps"]
        answers: list = []
        rows: list[dict] = []
        if record.applied and (record.step % self.schedule["sample_every"] == 0 or last or pause_after):
            answers, rows = self._ask_prompts()
        verdict = self.session.judge(record, answers)
        if verdict and record.applied and not rows:
            answers, rows = self._ask_prompts()
        step = self.session.step_number
        status, reason, events = "running", None, []
        if verdict:
            reason = verdict.sentence
            events.append(("guard", {"rule": verdict.rule, "sentence": reason}))
        if last and step == record.step:  # the last step may have been left out, but not left to be tried again
            status, reason = "finished", f"It went through its {step} steps."
            events.append(("finished", {}))
        elif verdict or pause_after:
            status, reason = "paused", reason or "One step was taken."
            events.append(("paused", {"reason": reason}))
        if self._taken_over():
            return
        whole = status != "running" or step % self.schedule["checkpoint_every"] == 0
        saved = self._checkpoint(whole) if rows or whole else None
        self.store.append_step(
            self.run_id,
            step,
            points=record.values if record.applied or not verdict else {},
            responses=rows,
            events=events,
            checkpoint=saved,
            status=status,
            status_reason=reason,
        )
        self.paused, self.ended = status == "paused", status == "finished"
        if whole:
            self._prune()

    def _ask_prompts(self) -> tuple[list, list[dict]]:
        prompts = self.store.prompts(self.run_id, at_step=self.session.step_number)
        answers = self.session.answers([prompt["text"] for prompt in prompts]) if prompts else []
        return answers, [response_row(prompt["id"], a) for prompt, a in zip(prompts, answers, strict=True)]

    def _checkpoint(self, whole: bool) -> dict:
        """Writes the checkpoint of the current step beside its place, then moves it there; returns its row."""
        step = self.session.step_number
        relative = Path("checkpoints") / self.run_id / f"step-{step:06d}"
        folder = self.store.home / relative
        part = folder.with_name(folder.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        self.session.save(part, whole)
        files = sorted(path for path in part.rglob("*") if path.is_file())
        digest = hashlib.sha256()
        for path in files:
            digest.update(path.read_bytes())
            if whole:
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        return {"path": str(relative), "bytes": size, "sha256": digest.hexdigest(), "complete": whole}

    def _save_whole(self, event: str, payload: dict, **more: Any) -> None:
        """The whole state of the current step and its event, in one transaction; no step was taken."""
        step, saved = self.session.step_number, self._checkpoint(whole=True)
        self.store.append_step(self.run_id, step, points={}, checkpoint=saved, events=[(event, payload)], **more)

    def _prune(self) -> None:
        """Older whole states shrink to their adapters; the newest few stay, and those that were pinned."""
        whole = [row for row in self.store.checkpoints(self.run_id) if row["complete"] and not row["pinned"]]
        for row in whole[:-WHOLE_STATES_KEPT]:
            folder = self.store.home / row["path"]
            self.store.shrink_checkpoint(row["id"])
            for name in ("state.json", "state.safetensors"):
                (folder / name).unlink(missing_ok=True)

    # ---------------------------------------------------------------------------------------------- commands

    def _serve(self) -> None:
        for command in self.store.commands(self.run_id, open_only=True):
            act = getattr(self, f"_on_{command['kind']}", None)
            self.worker._do(
                command, act or (lambda _, kind=command["kind"]: refuse(f"“{kind}” is not something a run can do."))
            )
            if self.ended:
                return
        self.worker.serve_others(self)

    def _on_pause(self, payload: dict) -> None:
        if not self.paused:
            self.pause("Paused by hand.")

    def pause(self, reason: str) -> None:
        step = self.session.step_number
        asked = self.store.responses(self.run_id, step=step)
        rows = [] if len(asked) else self._ask_prompts()[1]
        self._save_whole("paused", {"reason": reason}, responses=rows, status="paused", status_reason=reason)
        self.paused = True
        self._prune()

    def _on_resume(self, payload: dict) -> None:
        if self.paused:
            self.paused = False
            self.store.set_status(self.run_id, "running", None, "resumed", {})

    def _on_step(self, payload: dict) -> None:
        if not self.paused:
            refuse("It is running; pause it to go step by step.")
        try:
            self._step(pause_after=True)
        except Exception as error:  # half a step is no place to go on from
            self._fail(error)
            raise

    def _on_stop(self, payload: dict) -> None:
        self._close("stopped", f"Stopped by hand at step {self.session.step_number}.", "stopped")

    def _on_checkpoint(self, payload: dict) -> None:
        saved = self._checkpoint(whole=True)
        self.store.append_step(
            self.run_id,
            self.session.step_number,
            points={},
            checkpoint=saved,
            events=[("checkpoint", {"path": saved["path"]})],
        )

    def _on_prompt(self, payload: dict) -> None:
        """A new wording (or a new question), asked of the model as it was before step 1 and as it is now."""
        text = str(payload["text"]).strip()
        if not text:
            refuse("The question is empty; write what the model shall be asked.")
        now = self.session.answers([text])
        before = self.session.baseline_answers([text])[0]
        step = self.session.step_number
        prompt_id = self.store.edit_prompt(self.run_id, payload.get("slot"), payload.get("role", "free"), text, step)
        asked = {0: before, step: now[0]}
        rows = [{"step": at, **response_row(prompt_id, answer)} for at, answer in asked.items()]
        self.store.add_responses(self.run_id, rows)

    def _on_probe(self, payload: dict) -> None:
        probe(self.store, self.run_id, self.session, payload)

    # ------------------------------------------------------------------------------------------------- ending

    def _close(self, status: str, reason: str, event: str) -> None:
        self._save_whole(event, {}, status=status, status_reason=reason)
        self._prune()
        self.ended = True

    def _taken_over(self) -> bool:
        """True where another process has taken the run over: this one must not write to it any more."""
        run = self.store.run(self.run_id)
        self.lost = self.lost or run is None or run["lease_owner"] != self.worker.owner
        return self.lost

    def _fail(self, error: Exception) -> None:
        """Says so in the store; where even that cannot be written (a full disk), tries again until it can."""
        if self.ended or self.lost:
            return
        self.ended = True
        if isinstance(error, ValueError):
            sentence = str(error)
        else:
            log.error("run %s failed", self.run_id, exc_info=error)
            text = str(error)
            sentence = text if text.endswith(".") else f"{type(error).__name__}: {text}".removesuffix(": ")
        while not self._quietly(
            lambda: self.store.set_status(self.run_id, "failed", sentence, "failed", {"sentence": sentence})
        ):
            if self.worker.rest(2.0):
                return

    def _let_go(self) -> None:
        """Ends the lease; where the store could not be told how the run ended, it is left to run out, which tells."""
        run = self.store.run(self.run_id)
        if run and run["status"] not in ("loading", "baseline", "running"):
            self.store.release(self.run_id, self.worker.owner)

    def _quietly(self, act: Callable[[], Any]) -> bool:
        try:
            act()
        except Exception:
            log.exception("run %s: the store refuses", self.run_id)
            return False
        return True


def probe(store: Any, run_id: str, session: Any, payload: dict) -> None:
    """One question to the adapter of each chosen step (its nearest checkpoint): answers become rows of that step."""
    text = str(payload["text"]).strip()
    if not text:
        refuse("The question is empty; write what the model shall be asked.")
    found = {step: store.nearest_checkpoint(run_id, step) for step in payload["steps"]}
    if missing := [step for step, row in found.items() if row is None]:
        refuse(f"There is no checkpoint near step {missing[0]}.")
    rows: dict[int, dict] = {}
    for row in found.values():
        if row["step"] not in rows:
            rows[row["step"]] = response_row(0, session.answers_at(store.home / row["path"], [text])[0])
    prompt_id = store.add_probe(run_id, text)
    store.add_responses(run_id, [{"step": step, **answer, "prompt_id": prompt_id} for step, answer in rows.items()])
    asked = {"steps": list(found), "checkpoint_steps": [row["step"] for row in found.values()], "prompt_id": prompt_id}
    store.add_event(run_id, "probed", asked, step=max(rows))


def response_row(prompt_id: int, answer: Any) -> dict:
    """An answer as a row of the store's responses."""
    response = answer.response
    return {
        "prompt_id": prompt_id,
        "text": response.text,
        "tokens": response.tokens,
        "seconds": response.seconds,
        "target_probability": answer.target_probability,
    }


def refuse(sentence: str) -> None:
    """Whatever was asked for is not done, for this reason: raises ValueError."""
    raise ValueError(sentence)
