"""Unlearner: one step() -> StepRecord from outside; its whole state out and in: a resumed run is the same run."""

from __future__ import annotations

import json
import os
import platform
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from unlearn_core.config import ConfigError, RunConfig, check_prompt
from unlearn_core.evaluation import EvaluationWindows, evaluate, forget_level, uniform_loss
from unlearn_core.guard import Guard, Verdict
from unlearn_core.logits import labelled, loss_of_sampled_labels, per_token
from unlearn_core.memory import check_before_loading, check_step
from unlearn_core.methods import Objective
from unlearn_core.models import (
    AdapterVector,
    Batch,
    Reference,
    Tokens,
    collate,
    load_model,
    nll,
    read_adapter,
    save_adapter,
    token_mean,
)
from unlearn_core.optimizers import OPTIMIZERS
from unlearn_core.optimizers.sophia import Sophia
from unlearn_core.prompting import encode_prompt, uses_template
from unlearn_core.sampling import Response, answer
from unlearn_core.seek import Progress
from unlearn_core.subspace import RetainSubspace, removed_share
from unlearn_core.windows import Window, Windows, make_windows

FIRST_REFRESHES = (
    3  # B is zero at first, so the first rows say nothing about A: the basis is renewed at each of these steps
)
STATE = "state.safetensors"
REFUSALS = Path(__file__).with_name("refusals.txt")


@dataclass(frozen=True)
class StepRecord:
    """What one step measured. `values` by the names of the store's points; `verdict` where a guard asks for a pause."""

    step: int
    values: dict[str, float]
    verdict: Verdict | None = None
    applied: bool = True


@dataclass(frozen=True)
class Answer:
    """A response, what was answered before step 1, and how likely that still is (geometric mean per token)."""

    response: Response
    baseline: str
    target_probability: float


@dataclass
class Unlearner:
    """A run that is stepped from outside: `measure_baseline()` once, then `step()` as often as wanted.

    Everything random in step k (which windows, dropout) follows from the seed and k alone, so the state between two
    steps is the adapter, the optimizer, the retained subspace and the guard's memory; `save` and `restore` carry it.
    """

    config: RunConfig
    report: Callable[[str], None] = lambda message: None
    step_number: int = 0
    subspace: RetainSubspace | None = None
    baseline: dict[str, float] = field(default_factory=dict)
    guard: Guard | None = None
    cache: Path | None = None  # folder in which what was found in texts is kept by their content

    def __post_init__(self) -> None:
        config = self.config
        self.report("loading the model")
        self.loaded = load_model(config.model, config.lora, config.seed, self._fits, self.report)
        self.model, self.tokenizer = self.loaded.model, self.loaded.tokenizer
        self.device = self.model.device
        self.adapter = AdapterVector(self.model)
        self.reference = Reference(self.model, self.loaded.start)
        self.optimizer = self._new_optimizer()
        self._before: dict[str, Answer] = {}

    @cached_property
    def windows(self) -> Windows:
        """The run's texts, read when they are first wanted: only to answer a question, they never are."""
        self.report("reading the corpus")
        limit, chat = self.loaded.limit, self.chat
        found = make_windows(
            self.config.data, self.tokenizer, limit, self.config.seed, chat=chat, report=self._read, cache=self.cache
        )
        check_step(self.config, self.shape, found)
        return found

    def read_texts(self) -> None:
        """Reads what a run needs and a question does not, with progress; else that comes with the first measurement."""
        assert self.windows

    @cached_property
    def evaluation(self) -> EvaluationWindows:
        """Those of them that every measurement reads."""
        return EvaluationWindows(self.windows, self.pad_id, self.device)

    def _read(self, progress: Progress) -> None:
        """How far the reading is, in words; `report` may raise to end it."""
        share = f"{progress.bytes_read / progress.bytes_total:.0%}, " if progress.bytes_total else ""
        left = f", about {progress.seconds_left:.0f} s left" if progress.seconds_left else ""
        self.report(f"reading the corpus: {share}{progress.hits:,} found{left}")

    def _fits(self, folder: Path) -> None:
        self.shape = check_before_loading(self.config, folder)

    @property
    def chat(self) -> bool:
        return self.config.model.chat_template

    @property
    def pad_id(self) -> int:
        return int(self.tokenizer.pad_token_id)

    def _new_optimizer(self) -> torch.optim.Optimizer:
        settings = self.config.optimizer
        if settings.name == "sgd":
            return torch.optim.SGD(
                [self.adapter.values],
                settings.learning_rate,
                momentum=settings.momentum,
                weight_decay=settings.weight_decay,
            )
        made = torch.optim.AdamW if settings.name == "adamw" else OPTIMIZERS[settings.name]
        return made([self.adapter.values], settings.learning_rate, weight_decay=settings.weight_decay)

    # ------------------------------------------------------------------------------------------------ measuring

    def measure_baseline(self) -> StepRecord:
        """Step 0: every loss before anything has changed, and the level that counts as forgotten."""
        self.baseline = evaluate(self.model, self.evaluation)
        level, source = forget_level(self.config, self.loaded, self.evaluation)
        self.guard = Guard(self.config.guard, self.baseline, level, source, uniform_loss(self.model.config.vocab_size))
        return StepRecord(0, dict(self.baseline))

    def levels(self) -> dict[str, Any]:
        """What the chart draws as lines: forgotten, guessing, the retain budget."""
        assert self.guard
        return {
            "forget_level": self.guard.forget_level,
            "forget_level_source": self.guard.level_source,
            "uniform_loss": self.guard.uniform_loss,
            "collapse_level": self.guard.collapse_level,
            "retain_budget": self.config.guard.retain_budget,
        }

    def provenance(self) -> dict[str, Any]:
        """What must be equal for the same numbers."""
        return {
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "peft": peft.__version__,
            },
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "model_fingerprint": self.loaded.fingerprint,
            "model_origin": self.loaded.origin,
            "model_dtype": str(self.model.dtype).removeprefix("torch."),
            "chat_template": uses_template(self.tokenizer, self.chat),
            "lora_modules": list(self.loaded.modules),
            "adapted_layers": len(self.adapter.layers),
            "trainable_parameters": self.adapter.values.numel(),
            "windows": {name: len(found) for name, found in self.windows.sets().items()},
            "occurrences": self.windows.occurrences,
        }

    def answers(self, prompts: Sequence[str]) -> list[Answer]:
        """The model's answers as it stands, beside those before step 1. Raises ConfigError for a prompt too long."""
        before = [a.response for a in self.baseline_answers(prompts)]
        said, likely = self._ask(prompts), self._probabilities(prompts, before)
        return [Answer(now, was.text, p) for now, was, p in zip(said, before, likely, strict=True)]

    def baseline_answers(self, prompts: Sequence[str]) -> list[Answer]:
        """What the model says with the adapter switched off; asked once per prompt, since it never changes."""
        if unknown := [prompt for prompt in prompts if prompt not in self._before]:
            for prompt in unknown:
                self._check_length(prompt)
            with self.reference():
                said = self._ask(unknown)
                likely = self._probabilities(unknown, said)
            for prompt, response, probability in zip(unknown, said, likely, strict=True):
                self._before[prompt] = Answer(response, response.text, probability)
        return [self._before[prompt] for prompt in prompts]

    def _ask(self, prompts: Sequence[str]) -> list[Response]:
        longest = self.config.schedule.answer_tokens
        return answer(self.model, self.tokenizer, prompts, longest, limit=self.loaded.limit, chat=self.chat)

    def _check_length(self, prompt: str) -> None:
        check_prompt(prompt)
        if (length := len(encode_prompt(self.tokenizer, prompt, self.chat))) >= self.loaded.limit:
            raise ConfigError(
                f"The question has {length:,} tokens; this model reads {self.loaded.limit:,}. Shorten it."
            )

    def _probabilities(self, prompts: Sequence[str], answers: Sequence[Response]) -> list[float]:
        """exp(-NLL per token) of each answer after its prompt, in one forward pass. An empty answer: 1."""
        rows = []
        for prompt, given in zip(prompts, answers, strict=True):
            asked = encode_prompt(self.tokenizer, prompt, self.chat)
            rows.append(Window((*asked, *given.ids), len(asked), prompt, ""))
        if not rows:
            return []
        was_training = self.model.training
        self.model.eval()
        with torch.no_grad():
            losses = nll(self.model, collate(rows, self.pad_id, self.device)).mean_per_token
        self.model.train(was_training)
        return torch.exp(-losses).tolist()

    # ------------------------------------------------------------------------------------------------- stepping

    def step(self) -> StepRecord:
        """Refresh the subspace where it is due, take the gradient, keep it off the subspace, apply, measure."""
        began = time.perf_counter()
        assert self.guard, "measure_baseline() or restore() comes before the first step"
        number = self.step_number + 1
        torch.manual_seed(self.config.seed * 1_000_003 + number)
        self.model.train()
        processed = self._refresh(number)
        batch = self._batch(number)
        processed += sum(int(tokens.mask.sum()) for tokens in (batch.forget, batch.retain, batch.neighbour) if tokens)
        objective = self.config.method.loss(self.model, batch, self.reference)
        values = self._gradient(objective)
        checked = {name: values[name] for name in ("objective", "gradient_norm")}
        if stopped := self.guard.not_finite({**checked, "gradient": self.adapter.gradient.norm().item()}):
            self.adapter.gradient.zero_()
            if not self.config.guard.not_finite:
                self.step_number = number
                return StepRecord(number, values, None, applied=False)
            return StepRecord(number, values, stopped, applied=False)
        before = self.adapter.values.detach().clone() if number == 1 else None
        processed += self._measure_curvature(number, batch)
        values |= self._apply(number, values)
        if before is not None:
            self._check_moved(batch, before)
        self.step_number = number
        if number % self.config.schedule.evaluate_every == 0:
            values |= evaluate(self.model, self.evaluation)
        values |= {"tokens": float(processed), "step_seconds": time.perf_counter() - began}
        return StepRecord(number, values)

    def _check_moved(self, batch: Batch, before: Tensor) -> None:
        """After step 1, B must have moved in every adapted layer. Raises ConfigError with those where it cannot.

        A method may have no gradient by itself (every token beyond its ceiling): then that of the plain loss tells. And
        of two tokens, the first looks at nothing but itself: its query has none either, which proves nothing.
        """
        still = self.adapter.untouched(self.adapter.values.detach() - before)
        if still and batch.forget.ids.shape[1] > 2:
            plain = self.adapter.untouched(self.adapter.gradient_of(token_mean(nll(self.model, batch.forget))))
            if still := [layer for layer in still if layer in plain]:
                raise ConfigError(
                    f"Step 1 did not move {len(still)} of {len(self.adapter.layers)} adapted layers, such as "
                    f"{still[0]}: no gradient reaches them. Name others in lora.modules."
                )

    def judge(self, record: StepRecord, answers: Sequence[Answer] = ()) -> Verdict | None:
        """What the guard says to a step and the answers that were taken after it."""
        assert self.guard
        return record.verdict or self.guard.judge(record.values, [(a.baseline, a.response.text) for a in answers])

    def _draw(self, name: str, windows: Sequence[Any], number: int, count: int) -> list[Any]:
        """`count` windows of step `number`: the set is gone through in a fresh order each time round."""
        drawn = []
        orders: dict[int, list[int]] = {}
        for position in range((number - 1) * count, number * count):
            lap, place = divmod(position, len(windows))
            if lap not in orders:
                orders[lap] = list(range(len(windows)))
                random.Random(f"{self.config.seed} {name} {lap}").shuffle(orders[lap])
            drawn.append(windows[orders[lap][place]])
        return drawn

    def _batch(self, number: int) -> Batch:
        def tokens(name: str, windows: Sequence[Window]) -> Tokens | None:
            if not windows:
                return None
            return collate(self._draw(name, windows, number, self.config.schedule.batch_size), self.pad_id, self.device)

        forget = tokens("forget", self.windows.forget)
        assert forget
        method = self.config.method
        retain = tokens("retain", self.windows.retain) if method.retain_weight else None
        neighbour = tokens("neighbour", self.windows.neighbour) if method.neighbour_weight else None
        refusals: tuple = ()
        if getattr(method, "wants_refusals", False):
            refusals = tuple(self._draw("refusals", self.refusals, number, len(forget.windows)))
        level = self.guard.forget_level if self.guard else 0.0
        return Batch(forget, retain, neighbour, self.pad_id, refusals, level)

    @cached_property
    def refusals(self) -> list[tuple[int, ...]]:
        """What a method that refuses may answer, as token ids that end as an answer ends."""
        end = self.tokenizer.eos_token_id
        lines = REFUSALS.read_text(encoding="utf-8").splitlines()
        found = [self.tokenizer(f"\n{line}", add_special_tokens=False)["input_ids"] for line in lines]
        return [(*ids, end) if end is not None else tuple(ids) for ids in found]

    def _refresh(self, number: int) -> int:
        """A fresh subspace from fresh retain samples where it is due; returns the tokens that took.

        The samples go through the model in the same mode (dropout on) as the forget windows of the step.
        """
        rail = self.config.guard_rail
        if rail.kind == "none" or (number > FIRST_REFRESHES and (number - 1) % rail.every):
            return 0
        count = rail.batches * rail.batch_size
        near = self.windows.neighbour if rail.neighbours else ()
        drawn = self._draw("rail", self.windows.retain, number, count - count // 2 if near else count)
        if near:
            drawn = [
                w for pair in zip(drawn, self._draw("rail near", near, number, count), strict=False) for w in pair
            ][:count]
        groups = (
            [[window] for window in drawn]
            if rail.rows == "sample"
            else [drawn[i :: rail.groups] for i in range(rail.groups)]
        )
        batches = [collate(group, self.pad_id, self.device) for group in groups if group]
        rows = [self.adapter.gradient_of(token_mean(nll(self.model, tokens))) for tokens in batches]
        self.subspace = RetainSubspace.fit(torch.stack(rows))
        return sum(int(tokens.mask.sum()) for tokens in batches)

    def _gradient(self, objective: Objective) -> dict[str, float]:
        """Leaves in the adapter's gradient what the optimizer shall see; returns what there is to record of it."""
        rail, keep = self.config.guard_rail, objective.keep
        total = objective.forget + keep if keep is not None else objective.forget
        if rail.apply_to == "gradient" and self.subspace:
            # Only the forget part is projected: the retain part would lose its descent along the very rows it follows.
            before = self.adapter.gradient_of(objective.forget)
            after = self.subspace.project_out(before)
            kept = self.adapter.gradient_of(keep) if keep is not None else torch.zeros_like(before)
            self.adapter.gradient.copy_(after + kept)
        else:
            before = self.adapter.gradient_of(total)
            after = self.subspace.project_out(before) if self.subspace else before
            self.adapter.gradient.copy_(before)
        norms = {"gradient_norm": before.norm().item(), "projected_gradient_norm": after.norm().item()}
        values = {"objective": total.item(), **norms, "removed_share": removed_share(*norms.values())}
        if self.subspace:
            values["retain_condition_number"] = self.subspace.condition_number
            values["retain_gradient_norm_median"] = self.subspace.gradient_norm_median
        return values

    def _measure_curvature(self, number: int, batch: Batch) -> int:
        """Gives an optimizer that wants it the gradient on labels drawn from the model itself; the tokens that took.

        Gauss-Newton-Bartlett (arXiv 2305.14342, algorithm 2). What the optimizer shall see is kept meanwhile.
        """
        wants = self.optimizer if isinstance(self.optimizer, Sophia) and self.optimizer.hessian_every else None
        if wants is None or (number - 1) % wants.hessian_every:
            return 0
        training = self.adapter.gradient.clone()
        sets = [tokens for tokens in (batch.forget, batch.retain, batch.neighbour) if tokens]
        count = sum(int(labelled(tokens)) for tokens in sets)
        drawn = [per_token(self.model, tokens, loss_of_sampled_labels).sum() for tokens in sets]
        wants.curvature(self.adapter.gradient_of(torch.stack(drawn).sum() / count), count)
        self.adapter.gradient.copy_(training)
        return sum(int(tokens.mask.sum()) for tokens in sets)

    def _apply(self, number: int, values: Mapping[str, float]) -> dict[str, float]:
        """The optimizer's step; with `apply_to = "update"` what it really did is freed of its part in the subspace.

        Adam scales every entry by itself and carries momentum from older bases, so a projected gradient alone does not
        keep its step off the subspace (methods.md 1.3).
        """
        limit, norm = self.config.optimizer.max_gradient_norm, self.adapter.gradient.norm().item()
        if limit and norm > limit:
            self.adapter.gradient.mul_(limit / norm)
        rate = self.learning_rate(number)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        before = self.adapter.values.detach().clone()
        self.optimizer.step()
        self.adapter.gradient.zero_()
        recorded = {"learning_rate": rate}
        if isinstance(self.optimizer, Sophia):
            recorded["unclipped_share"] = self.optimizer.unclipped_share
        update = self.adapter.values.detach() - before
        if self.subspace and self.config.guard_rail.apply_to == "update":
            projected = self.subspace.project_out(update)
            recorded["removed_share"] = removed_share(update.norm().item(), projected.norm().item())
            update = projected
            with torch.no_grad():
                self.adapter.values.copy_(before + update)
        self.adapter.scatter()
        return {**recorded, "update_norm": update.norm().item()}

    def learning_rate(self, number: int) -> float:
        schedule, rate = self.config.schedule, self.config.optimizer.learning_rate
        if number <= schedule.warmup:
            return rate * number / schedule.warmup
        if schedule.decay == "linear":
            return rate * max(0, schedule.steps - number + 1) / max(1, schedule.steps - schedule.warmup)
        return rate

    # ------------------------------------------------------------------------------------------- state out and in

    def save(self, folder: Path, whole: bool) -> None:
        """The adapter in PEFT's format; with `whole`, all else that the next step depends on as well."""
        folder.mkdir(parents=True, exist_ok=True)
        save_adapter(self.model, folder)
        if not whole:
            return
        tensors: dict[str, Tensor] = {}
        for name, value in self.optimizer.state.get(self.adapter.values, {}).items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{name}"] = value
        if self.subspace:
            tensors |= {f"subspace.{name}": value for name, value in self.subspace.tensors().items()}
        assert self.guard
        facts = {
            "step": self.step_number,
            "model_fingerprint": self.loaded.fingerprint,
            "model_origin": self.loaded.origin,
            "baseline": self.baseline,
            "forget_level": self.guard.forget_level,
            "level_source": self.guard.level_source,
            "spoken": sorted(self.guard.spoken),
        }
        tensors["none"] = torch.zeros(1)  # safetensors wants at least one
        save_file({name: value.contiguous() for name, value in tensors.items()}, folder / STATE)
        (folder / "state.json").write_text(json.dumps(facts))

    def restore(self, folder: Path) -> None:
        """Continues from a whole checkpoint. Raises ConfigError where it is incomplete or of another model."""
        try:
            facts = json.loads((folder / "state.json").read_text())
            tensors = load_file(folder / STATE)
        except (OSError, ValueError, SafetensorError) as error:
            raise ConfigError(f"The checkpoint {folder.name} cannot be read: {error}.") from None
        if facts["model_fingerprint"] != self.loaded.fingerprint:
            raise ConfigError(
                f"The checkpoint {folder.name} was made with other weights than those of {self.config.model.source}."
            )
        made_with, here = facts.get("model_origin", {}), self.loaded.origin
        for part in ("tokenizer", "adapter"):
            if made_with and made_with.get(part) != here.get(part):
                source = self.config.model.source if part == "tokenizer" else self.config.model.adapter
                raise ConfigError(f"The checkpoint {folder.name} was made with another {part} than that of {source}.")
        read_adapter(self.model, folder)
        self.adapter.gather()
        state = {name.removeprefix("optimizer."): v for name, v in tensors.items() if name.startswith("optimizer.")}
        self.optimizer.state.clear()
        if state:
            # The step count stays on the CPU, where torch's optimizers keep it.
            placed = {name: value if name == "step" else value.to(self.device) for name, value in state.items()}
            self.optimizer.state[self.adapter.values] = placed
        kept = {name.removeprefix("subspace."): v for name, v in tensors.items() if name.startswith("subspace.")}
        self.subspace = RetainSubspace.from_tensors(kept, self.device) if kept else None
        self.step_number, self.baseline = facts["step"], facts["baseline"]
        self.guard = Guard(
            self.config.guard,
            self.baseline,
            facts["forget_level"],
            facts["level_source"],
            uniform_loss(self.model.config.vocab_size),
            set(facts["spoken"]),
        )

    def answers_at(self, folder: Path, prompts: Sequence[str]) -> list[Answer]:
        """The answers of a saved adapter; the run's own adapter is as before afterwards, to the bit."""
        if not (folder / "adapter_model.safetensors").is_file():
            raise ConfigError(
                f"The adapter of {folder.name} is not there any more; its answers can be read, not asked anew."
            )
        own = self.adapter.values.detach().clone()
        try:
            read_adapter(self.model, folder)
            self.adapter.gather()
            return self.answers(prompts)
        finally:
            with torch.no_grad():
                self.adapter.values.copy_(own)
            self.adapter.scatter()


def open_unlearner(config: Mapping[str, Any], report: Callable[[str], None], cache: Path | None = None) -> Unlearner:
    """What the worker is given: the run that a config describes, one core left free for the page."""
    torch.set_num_threads(max(1, (os.cpu_count() or 2) - 1))
    return Unlearner(RunConfig.from_dict(config), report, cache=cache)
