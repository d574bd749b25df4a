"""Unlearner: one step() -> StepRecord from outside; its whole state out and in: a resumed run is the same run."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import transformers
from torch import Tensor

from unlearn_core.context import RunContext
from unlearn_core.corpus.asking.answers import Asker, with_answers
from unlearn_core.corpus.counterfactual import Counterfactuals
from unlearn_core.corpus.scan import Progress
from unlearn_core.corpus.windows import Windows, make_windows
from unlearn_core.masks.base import make_mask
from unlearn_core.methods import METHODS
from unlearn_core.methods.base import Method
from unlearn_core.metrics.base import Measurement
from unlearn_core.metrics.shared.evaluate import evaluate, values_of
from unlearn_core.metrics.shared.forget_level import Level, forget_level, uniform_loss
from unlearn_core.metrics.shared.windows import EvaluationWindows
from unlearn_core.model.adapters import AdapterVector, is_saved, read_adapter
from unlearn_core.model.batches import Batch
from unlearn_core.model.load import load_model
from unlearn_core.model.losses import nll
from unlearn_core.model.memory import check_before_loading, check_step
from unlearn_core.model.prompting import uses_template
from unlearn_core.model.reference import Reference
from unlearn_core.settings.changes import differing
from unlearn_core.settings.errors import ConfigError
from unlearn_core.settings.provenance import versions
from unlearn_core.settings.report import Report, silent
from unlearn_core.settings.run_config import RunConfig
from unlearn_core.settings.sections import ScheduleSettings
from unlearn_core.training import checkpoint
from unlearn_core.training.answers import Answer, Answers
from unlearn_core.training.draws import Draws
from unlearn_core.training.stopping import Guard, Verdict
from unlearn_core.training.update import Update


@dataclass(frozen=True)
class StepRecord:
    """What one step measured, by the names of the store's points; `verdict` where a guard asks for a pause.

    `measured`: the metrics among `values`, with a value per example. `changed`: the settings that are others than
    those of the step before, as they were (`before`) and as they are (`set`).
    """

    step: int
    values: dict[str, float]
    verdict: Verdict | None = None
    applied: bool = True
    measured: Mapping[str, Measurement] = field(default_factory=dict)
    changed: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Unlearner:
    """A run that is stepped from outside: `measure_baseline()` once, then `step()` as often as wanted.

    Everything random in step k (which windows, dropout) follows from the seed and k alone, so the state between two
    steps is the adapter, the optimizers, the guard rail, the mask, what the method prepared and the guard's memory;
    `save` and `restore` carry it.
    """

    config: RunConfig
    report: Report = silent
    step_number: int = 0
    baseline: dict[str, float] = field(default_factory=dict)
    plan: RunConfig = field(init=False)  # with every change of its settings; `config` are those of the step
    guard: Guard | None = None
    forget_level: Level | None = None  # that of a model which never saw the target
    stand_in_level: float | None = None  # how far the model as given, about one stand-in, is from the others
    cache: Path | None = None  # folder of scan results, converted models and what models were asked

    def __post_init__(self) -> None:
        self.plan, config = self.config, self.config.at(0)
        self.config = config
        assert isinstance(config.method, Method)
        self.method: Method = config.method
        self.report("loading the model")
        loaded = load_model(
            config.model,
            config.lora,
            config.seed,
            self._check_memory,
            self.report,
            config.where.kind == "full",
            self.method.build_model,
            self.method.extra_adapters,
            self.cache,
        )
        adapter, reference = AdapterVector(loaded.model), Reference(loaded.model, loaded.start)
        self.context = RunContext(config, loaded, adapter, reference, self._read_windows, self._report)
        self.draws, self.update = Draws(self.context, self.method), Update(self.context, self.method)
        self._answers = Answers(self.context, self.method)

    def _report(self, stage: str, detail: str = "") -> None:
        self.report(stage, detail)

    def _check_memory(self, folder: Path) -> None:
        self.shape = check_before_loading(self.config, folder)

    def _read_windows(self) -> Windows:
        """The run's texts, with progress. Raises ConfigError where a step with them does not fit into memory."""
        loaded, config = self.context.loaded, self.config
        chat, limit = config.model.chat_template, loaded.limit
        asker = Asker(self.context.reference, loaded.tokenizer, limit, chat)
        data = with_answers(config, lambda: asker, self.cache, self.report)
        self.report("reading the corpus")
        windows = make_windows(
            data, loaded.tokenizer, limit, config.seed, chat=chat, report=self._read, cache=self.cache
        )
        self.lengths = {name: [len(window) for window in some] for name, some in windows.sets().items()}
        check_step(config, self.shape, self.lengths)
        return windows

    def _read(self, progress: Progress) -> None:
        """How far the reading is, in words; `report` may raise to end it."""
        share = f"{progress.bytes_read / progress.bytes_total:.0%}, " if progress.bytes_total else ""
        left = f", about {progress.seconds_left:.0f} s left" if progress.seconds_left else ""
        self.report("reading the corpus", f"{share}{progress.hits:,} found{left}")

    def read_texts(self) -> None:
        """Reads the texts and prepares the method, with progress; else the first measurement does it."""
        assert self.context.windows

    @cached_property
    def evaluation(self) -> EvaluationWindows:
        """The windows that every measurement reads."""
        context = self.context
        return EvaluationWindows(context.windows, context.pad_id, context.device, self._counterfactuals())

    def _counterfactuals(self) -> Counterfactuals | None:
        """What puts stand-ins into the windows; None where nothing can stand for the target.

        Raises ConfigError with the reason where the method needs them.
        """
        try:
            return None if self.config.data.everything else self.context.counterfactuals
        except ConfigError:
            if self.method.towards_stand_ins:
                raise
            return None

    def same_base_model(self, method: str) -> bool:
        """True where this model, with another adapter in it, is that of a run with `method`; "": the model as given.

        A method that begins with another model, has more adapters, or changes what is read, has a model of its own.
        """
        if not method:
            return not self.method.builds_model
        other = METHODS.get(method)
        return self.method.same_base_model and (other is None or other.same_base_model)

    # ------------------------------------------------------------------------------------------------ measuring

    def measure_baseline(self) -> StepRecord:
        """Step 0: every loss before anything has changed, and the level that counts as forgotten.

        Then what is made once before step 1: the mask, the guard rail's start, the method's preparations.
        """
        context = self.context
        measured = evaluate(context.model, self.evaluation, context.reference)
        self.baseline = values_of(measured)
        held_out = self.evaluation.held_out(context.reference)
        if self.method.towards_stand_ins and not (held_out and any(held_out.teacher.labels)):
            reason = "in none of its windows can another name stand in its place"
            raise ConfigError(reason, field="data.target", value=self.config.data.target, fix="Choose another method")
        level = forget_level(self.config, context.loaded, self.evaluation)
        self._begin_guard(level, held_out.level if held_out else None)
        torch.manual_seed(self.config.seed)
        context.mask = make_mask(context)
        if self.update.rail:
            self.update.rail.start()
        context.method_state = self.method.prepare(context)
        return StepRecord(0, dict(self.baseline), measured=measured)

    def _begin_guard(
        self, level: Level, stand_in_level: float | None, memory: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        guesses = uniform_loss(self.context.model.config.vocab_size)
        towards = stand_in_level if self.method.towards_stand_ins else None
        self.forget_level, self.stand_in_level = level, stand_in_level
        self.guard = Guard(self.config.guard, self.baseline, level.value, level.source, guesses, towards)
        self.guard.spoken = set(memory.get("spoken", ()))
        self.guard.course = [(step, value) for step, value in memory.get("course", ())]
        self.context.forget_level = level.value

    def measure(self, step: int) -> dict[str, Measurement]:
        """Every metric on the evaluation windows at `step`, as the method has the model answer."""
        windows, context = self.evaluation, self.context
        if prefix := self.method.prompt_prefix(context, step) if step else "":
            ids = tuple(context.tokenizer(prefix + "\n", add_special_tokens=False)["input_ids"])
            windows = windows.behind(ids, context.loaded.limit)
        with self.method.inference_context(context, step) if step else nullcontext():
            return evaluate(context.model, windows, context.reference)

    @property
    def schedule(self) -> ScheduleSettings:
        """That of the last step."""
        return self.config.schedule

    def levels(self) -> dict[str, Any]:
        """What the chart draws as lines: forgotten, guessing, the retain budget."""
        assert self.guard
        return {
            "forget_level": self.guard.forget_level,
            "forget_level_source": self.guard.level_source,
            "forget_level_estimated": self.forget_level is None or self.forget_level.estimated,
            "uniform_loss": self.guard.uniform_loss,
            "stand_in_level": self.stand_in_level,
            "collapse_level": self.guard.collapse_level,
            "retain_budget": self.config.guard.retain_budget,
        }

    def provenance(self) -> dict[str, Any]:
        """Versions, device and threads that the run's numbers depend on."""
        context, loaded = self.context, self.context.loaded
        return {
            "versions": versions(),
            "device": str(context.device),
            "threads": torch.get_num_threads(),
            "model_fingerprint": loaded.fingerprint,
            "model_origin": loaded.origin,
            "model_dtype": str(context.model.dtype).removeprefix("torch."),
            "chat_template": uses_template(context.tokenizer, self.config.model.chat_template),
            "lora_modules": list(loaded.modules),
            "adapted_layers": len(context.adapter.layers),
            "trainable_parameters": context.adapter.values.numel(),
            "windows": {name: len(windows) for name, windows in context.windows.sets().items()},
            "occurrences": context.windows.occurrences,
        }

    def answers(self, prompts: Sequence[str], step: int | None = None, keep: Collection[str] = ()) -> list[Answer]:
        """The model's answers as it stands, beside those before step 1. Raises ConfigError for a prompt too long.

        `keep`: those of the prompts whose answers should stay; one that is another is judged by several samples.
        """
        return self._answers.at(prompts, self.step_number if step is None else step, keep)

    def baseline_answers(self, prompts: Sequence[str]) -> list[Answer]:
        """What the model answers with the adapter switched off."""
        return self._answers.baseline(prompts)

    def about_a_stand_in(self, prompts: Sequence[str]) -> dict[str, Any]:
        """What the model as given answers to these questions about a held-out stand-in in the target's place.

        `name`: the stand-in; `answers`: question -> (the same about the stand-in, its answer), of those in which the
        target stands. Empty where nothing can stand for it.
        """
        counterfactuals = self.evaluation.counterfactuals
        if counterfactuals is None or not counterfactuals.held_out:
            return {}
        name = counterfactuals.held_out[0]
        changed = {prompt: counterfactuals.replaced(prompt, name)[0] for prompt in prompts}
        changed = {prompt: other for prompt, other in changed.items() if other != prompt}
        answers = [answer.response.text for answer in self._answers.baseline(list(changed.values()))]
        pairs = zip(changed.items(), answers, strict=True)
        return {"name": name, "answers": {prompt: [other, text] for (prompt, other), text in pairs}} if answers else {}

    # --------------------------------------------------------------------------------------- changes in mid-run

    def changed(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The run's config with these settings, by their paths, from the next step on; for `replan`.

        Raises ConfigError where they cannot be, or a step with them does not fit into memory.
        """
        plan = self.plan.changed(self.step_number + 1, settings)
        check_step(plan.at(self.step_number + 1), self.shape, self.lengths)
        return plan.to_dict()

    def replan(self, config: Mapping[str, Any]) -> None:
        """What `changed` returned is the run's config from now on."""
        self.plan = RunConfig.from_dict(config)

    def _settings_of(self, step: int) -> dict[str, Any]:
        """The settings of step `step` are in force from here on; as they were, and as they are, where they differ.

        Everything that is built of them is built anew; a new guard rail begins as before a first step.
        """
        if not any(change.step == step for change in self.plan.changes):
            return {}
        config = self.plan.at(step)
        before, after = differing(self.config.to_dict(), config.to_dict())
        self._take_settings(config)
        return {"before": before, "set": after} if after else {}

    def _take_settings(self, config: RunConfig, fresh: bool = True) -> None:
        assert self.guard and isinstance(config.method, Method)
        self.config = self.context.config = config
        self.method = self.draws.method = self._answers.method = config.method
        self.guard.settings = config.guard
        self.update.take_settings(config.method, fresh)

    # ------------------------------------------------------------------------------------------------- stepping

    def step(self) -> StepRecord:
        """Refresh the guard rail where it is due, take the gradient, project, apply, measure."""
        began = time.perf_counter()
        assert self.guard, "measure_baseline() or restore() comes before the first step"
        number, context = self.step_number + 1, self.context
        torch.manual_seed(self.config.seed * 1_000_003 + number)
        changed = self._settings_of(number)
        method = self.method
        context.model.train()
        values: dict[str, float] = {}
        before = context.adapter.values.detach().clone()
        if method.computes_loss:
            values, stopped = self._train(number, before)
            if stopped is not None:
                return replace(stopped, changed=changed)
        verdict = None
        if method.sets_weights:
            values |= method.apply_step(context, number)
            context.adapter.scatter()
            if values.pop("end", 0):
                verdict = Verdict("dial", f"{method.facts.label} has come to the end of its dial at step {number}.")
        # Of the weights themselves, whatever has moved them: an alternating method does it twice.
        values["update_norm"] = (context.adapter.values.detach() - before).norm().item()
        self.step_number = number
        measured = self.measure(number) if number % self.config.schedule.evaluate_every == 0 else {}
        values |= values_of(measured)
        values["step_seconds"] = time.perf_counter() - began
        return StepRecord(number, values, verdict, measured=measured, changed=changed)

    def _train(self, number: int, before: Tensor) -> tuple[dict[str, float], StepRecord | None]:
        """A gradient step: what it measured; and the record to end with where it was not taken."""
        assert self.guard
        context, update = self.context, self.update
        processed = update.rail.refresh(number) if update.rail else 0
        batch = self.draws.batch(number)
        processed += sum(int(tokens.mask.sum()) for tokens in (batch.forget, batch.retain, batch.neighbour) if tokens)
        values, retain = update.gradient(self.method.loss(update.model, batch, context.reference))
        checked = {name: values[name] for name in ("objective", "gradient_norm")}
        if stopped := self.guard.not_finite({**checked, "gradient": context.adapter.gradient.norm().item()}):
            context.adapter.gradient.zero_()
            if not self.config.guard.not_finite:
                self.step_number = number
                return values, StepRecord(number, values, None, applied=False)
            return values, StepRecord(number, values, stopped, applied=False)
        processed += update.measure_curvature(number, batch)
        values |= update.apply(number, retain, before)
        if update.descender:
            update.descend(number, batch)
        if number == 1:
            self._check_moved(batch, before)
        return {**values, "tokens": float(processed)}, None

    def _check_moved(self, batch: Batch, before: Tensor) -> None:
        """After step 1, B must have moved in every adapted layer. Raises ConfigError with those where it cannot.

        A method may have no gradient by itself (every token beyond its ceiling): then that of the plain loss tells. And
        of two tokens, the first looks at nothing but itself: its query has none either, which proves nothing. A mask or
        a method that scales its gradient by number leaves layers as they are, and means to.
        """
        adapter = self.context.adapter
        if self.context.mask is not None or self.method.scales_gradient:
            return
        still = adapter.untouched(adapter.values.detach() - before)
        if still and batch.forget.ids.shape[1] > 2:
            plain = adapter.untouched(adapter.gradient_of(nll(self.context.model, batch.forget).token_mean))
            if still := [layer for layer in still if layer in plain]:
                raise ConfigError(
                    f"Step 1 did not move {len(still)} of {len(adapter.layers)} adapted layers, such as "
                    f"{still[0]}: no gradient reaches them. Name others in lora.modules."
                )

    def judge(self, values: Mapping[str, float], answers: Sequence[tuple[str, str]] = ()) -> Verdict | None:
        """The stopping rules on one step's values and its answers, as (baseline, now) pairs."""
        assert self.guard
        return self.guard.judge(values, answers, self.step_number)

    # ------------------------------------------------------------------------------------------- state out and in

    def save(self, folder: Path, whole: bool) -> None:
        """The adapter in PEFT's format; with `whole`, all else that the next step depends on as well."""
        assert self.guard
        state = {
            "step": self.step_number,
            "baseline": self.baseline,
            "forget_level": self.guard.forget_level,
            "level_source": self.guard.level_source,
            "level_estimated": self.forget_level is None or self.forget_level.estimated,
            "stand_in_level": self.stand_in_level,
            "spoken": sorted(self.guard.spoken),
            "course": self.guard.course,
        }
        checkpoint.save(self.context, self.update, state, folder, whole)

    def restore(self, folder: Path) -> None:
        """Continues from a whole checkpoint. Raises ConfigError where it is incomplete or of another model."""
        facts = checkpoint.read_facts(self.context, folder)
        self.step_number, self.baseline = facts["step"], facts["baseline"]
        level = Level(facts["forget_level"], facts["level_source"], facts.get("level_estimated", True))
        self._begin_guard(level, facts.get("stand_in_level"), facts)
        self._take_settings(self.plan.at(self.step_number), fresh=False)
        checkpoint.restore(self.context, self.update, folder)

    def answers_at(self, folder: Path, prompts: Sequence[str]) -> list[Answer]:
        """The answers of a saved adapter; the run's own adapter is as before afterwards, to the bit.

        The folder's name (step-000012) tells of which step it is, for methods that change more than weights.
        """
        if not is_saved(folder):
            raise ConfigError(
                f"The adapter of {folder.name} is not there any more; its answers can be read, not asked anew."
            )
        context = self.context
        own, state = context.adapter.values.detach().clone(), context.method_state
        try:
            read_adapter(context.model, folder)
            context.adapter.gather()
            context.method_state = checkpoint.read_method_state(folder) or state
            step = folder.name.rpartition("-")[2]
            return self.answers(prompts, int(step) if step.isdecimal() else None)
        finally:
            context.method_state = state
            with torch.no_grad():
                context.adapter.values.copy_(own)
            context.adapter.scatter()


def open_unlearner(config: Mapping[str, Any], report: Report, cache: Path | None = None) -> Unlearner:
    """Opens the run of a config for the worker.

    It computes on all cores but one, which is the page's; of two on both, since the page needs little of it.
    """
    transformers.utils.logging.disable_progress_bar()  # a bar for every loading and saving says nothing
    # Not those of the machine: a container may have fewer.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(cores - 1, min(cores, 2)))
    return Unlearner(RunConfig.from_dict(config), report, cache=cache)
