"""Unlearner: one step() -> StepRecord from outside; its whole state out and in: a resumed run is the same run."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from unlearn_core import checkpoint
from unlearn_core.adapters import is_saved
from unlearn_core.config import ConfigError, RunConfig, check_prompt
from unlearn_core.evaluation import EvaluationWindows, evaluate, forget_level, uniform_loss
from unlearn_core.guard import Guard, Verdict
from unlearn_core.logits import labelled, loss_of_sampled_labels, per_token
from unlearn_core.memory import check_before_loading, check_step
from unlearn_core.methods import METHODS, Objective
from unlearn_core.models import (
    AdapterVector,
    Batch,
    Reference,
    Tokens,
    collate,
    load_model,
    nll,
    read_adapter,
    token_mean,
)
from unlearn_core.optimizers import OPTIMIZERS
from unlearn_core.optimizers.sophia import Sophia
from unlearn_core.prompting import encode_prompt, uses_template
from unlearn_core.provenance import versions
from unlearn_core.rails import Rail, make_rail
from unlearn_core.sampling import Response, answer
from unlearn_core.seek import Progress
from unlearn_core.subspace import removed_share
from unlearn_core.where import held, make_mask, masked, masked_share
from unlearn_core.windows import Window, Windows, make_windows

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
    steps is the adapter, the optimizers, the guard rail, the mask, what the method keeps and the guard's memory; `save`
    and `restore` carry it. `model` is a PeftModel, or the bare model where its own weights are trained.
    """

    config: RunConfig
    report: Callable[[str], None] = lambda message: None
    step_number: int = 0
    baseline: dict[str, float] = field(default_factory=dict)
    guard: Guard | None = None
    cache: Path | None = None  # folder in which what was found in texts is kept by their content

    def __post_init__(self) -> None:
        config = self.config
        self.report("loading the model")
        self.loaded = load_model(
            config.model, config.lora, config.seed, self._fits, self.report, config.where.kind == "full", config.method
        )
        self.model, self.tokenizer = self.loaded.model, self.loaded.tokenizer
        self.device = self.model.device
        self.adapter = AdapterVector(self.model)
        self.reference = Reference(self.model, self.loaded.start)
        self.optimizer = self._new_optimizer()
        # An alternating method's descent has an optimizer of its own.
        self.descender = self._new_optimizer() if hasattr(config.method, "descent") else None
        self.rail: Rail | None = make_rail(self)
        self.mask: Tensor | None = None  # (P,) True where numbers may change; None: everywhere
        self.kept: dict[str, Tensor] = {}  # what the method prepared before step 1
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

    def stands_for(self, method: str) -> bool:
        """True where this model, with another adapter in it, is that of a run with `method`; "": the model as given.

        A method that begins with another model, has more adapters, or changes what is read, speaks for no other run.
        """
        if not method:
            return not hasattr(self.config.method, "begin")
        apart = ("begin", "extra_adapters", "reading", "context")
        return not any(hasattr(one, name) for one in (self.config.method, METHODS.get(method)) for name in apart)

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

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """The optimizers of the run, by the names that a checkpoint gives them."""
        return {"optimizer": self.optimizer, **({"descender": self.descender} if self.descender else {})}

    # ------------------------------------------------------------------------------------------------ measuring

    def measure_baseline(self) -> StepRecord:
        """Step 0: every loss before anything has changed, and the level that counts as forgotten.

        Then what is made once before step 1: the mask, the method's preparations, the guard rail's start.
        """
        self.baseline = evaluate(self.model, self.evaluation)
        level, source = forget_level(self.config, self.loaded, self.evaluation)
        self.guard = Guard(self.config.guard, self.baseline, level, source, uniform_loss(self.model.config.vocab_size))
        torch.manual_seed(self.config.seed)
        self.mask = make_mask(self)
        if self.rail:
            self.rail.start()
        if hasattr(self.config.method, "prepare"):
            self.kept = self.config.method.prepare(self)
        return StepRecord(0, dict(self.baseline))

    @contextmanager
    def as_it_answers(self, step: int) -> Iterator[None]:
        """Within: the model answers as the method has it at `step`, where that is more than its weights."""
        reading = getattr(self.config.method, "reading", None)
        with reading(self, self.kept, step) if reading and step else nullcontext():
            yield

    def _context(self, step: int) -> str:
        """What the method puts before every question at `step`."""
        method = self.config.method
        return method.context(self, self.kept, step) if step and hasattr(method, "context") else ""

    def _measure(self, step: int) -> dict[str, float]:
        """The losses of the evaluation windows at `step`, as the method has the model answer."""
        windows = self.evaluation
        if context := self._context(step):
            ids = tuple(self.tokenizer(context + "\n")["input_ids"])
            windows = windows.behind(ids, self.loaded.limit)
        with self.as_it_answers(step):
            return evaluate(self.model, windows)

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
            "versions": versions(),
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

    def answers(self, prompts: Sequence[str], step: int | None = None) -> list[Answer]:
        """The model's answers as it stands, beside those before step 1. Raises ConfigError for a prompt too long."""
        before = [a.response for a in self.baseline_answers(prompts)]
        step = self.step_number if step is None else step
        context = self._context(step)
        asked = [f"{context}\n{prompt}" if context else prompt for prompt in prompts]
        for prompt in asked:
            self._check_length(prompt, written=not context)
        with self.as_it_answers(step):
            said, likely = self._ask(asked), self._probabilities(asked, before)
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

    def _check_length(self, prompt: str, written: bool = True) -> None:
        """Raises ConfigError where a question is too long; one that was not `written` has a context before it."""
        if written:
            check_prompt(prompt)
        if (length := len(encode_prompt(self.tokenizer, prompt, self.chat))) >= self.loaded.limit:
            behind = "" if written else ", with what the method puts before it,"
            raise ConfigError(
                f"The question{behind} has {length:,} tokens; this model reads {self.loaded.limit:,}. Shorten it."
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
        """Refresh the guard rail where it is due, take the gradient, keep it off, apply, measure."""
        began = time.perf_counter()
        assert self.guard, "measure_baseline() or restore() comes before the first step"
        number = self.step_number + 1
        torch.manual_seed(self.config.seed * 1_000_003 + number)
        self.model.train()
        method = self.config.method
        values: dict[str, float] = {}
        before = self.adapter.values.detach().clone()
        if hasattr(method, "loss"):
            values, stopped = self._train(number, before)
            if stopped is not None:
                return stopped
        verdict = None
        if hasattr(method, "edit"):
            values |= method.edit(self, self.kept, number)
            self.adapter.scatter()
            values["update_norm"] = (self.adapter.values.detach() - before).norm().item()
            if values.pop("end", 0):
                verdict = Verdict("dial", f"{method.facts.label} has come to the end of its dial at step {number}.")
        self.step_number = number
        if number % self.config.schedule.evaluate_every == 0:
            values |= self._measure(number)
        values["step_seconds"] = time.perf_counter() - began
        return StepRecord(number, values, verdict)

    def _train(self, number: int, before: Tensor) -> tuple[dict[str, float], StepRecord | None]:
        """A gradient step: what it measured; and the record to end with where it was not taken."""
        assert self.guard
        processed = self.rail.refresh(number) if self.rail else 0
        batch = self._batch(number)
        processed += sum(int(tokens.mask.sum()) for tokens in (batch.forget, batch.retain, batch.neighbour) if tokens)
        values, kept = self._gradient(self.config.method.loss(self.model, batch, self.reference))
        checked = {name: values[name] for name in ("objective", "gradient_norm")}
        if stopped := self.guard.not_finite({**checked, "gradient": self.adapter.gradient.norm().item()}):
            self.adapter.gradient.zero_()
            if not self.config.guard.not_finite:
                self.step_number = number
                return values, StepRecord(number, values, None, applied=False)
            return values, StepRecord(number, values, stopped, applied=False)
        processed += self._measure_curvature(number, batch)
        values |= self._apply(number, kept, before)
        if self.descender:
            self._descend(number, batch)
        if number == 1:
            self._check_moved(batch, before)
        return {**values, "tokens": float(processed)}, None

    def _check_moved(self, batch: Batch, before: Tensor) -> None:
        """After step 1, B must have moved in every adapted layer. Raises ConfigError with those where it cannot.

        A method may have no gradient by itself (every token beyond its ceiling): then that of the plain loss tells. And
        of two tokens, the first looks at nothing but itself: its query has none either, which proves nothing. A mask or
        a method that routes its gradient leaves layers as they are, and means to.
        """
        if self.mask is not None or hasattr(self.config.method, "route"):
            return
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

        forget = tokens("forget", self._filled_up if self.config.as_run.padding_trained else self.windows.forget)
        assert forget
        method = self.config.method
        retain = tokens("retain", self.windows.retain) if method.retain_weight else None
        neighbour = tokens("neighbour", self.windows.neighbour) if method.neighbour_weight else None
        refusals: tuple = ()
        if getattr(method, "wants_refusals", False):
            refusals = tuple(self._draw("refusals", self.refusals, number, len(forget.windows)))
        level = self.guard.forget_level if self.guard else 0.0
        shadow = int(self.kept["shadow"]) if "shadow" in self.kept else -1
        return Batch(forget, retain, neighbour, self.pad_id, refusals, level, shadow, number)

    @cached_property
    def _filled_up(self) -> Sequence[Window]:
        """Forget windows as the published code had them: filled up with ends of text, as if these were text."""
        longest = min(self.loaded.limit, self.config.data.window_tokens)
        end = self.tokenizer.eos_token_id if self.tokenizer.eos_token_id is not None else self.pad_id
        return [replace(w, ids=(*w.ids, *[end] * (longest - len(w)))) for w in self.windows.forget]

    @cached_property
    def refusals(self) -> list[tuple[int, ...]]:
        """What a method that refuses may answer, as token ids that end as an answer ends."""
        end = self.tokenizer.eos_token_id
        lines = REFUSALS.read_text(encoding="utf-8").splitlines()
        found = [self.tokenizer(line, add_special_tokens=False)["input_ids"] for line in lines]
        return [(*ids, end) if end is not None else tuple(ids) for ids in found]

    def _gradient(self, objective: Objective) -> tuple[dict[str, float], Tensor | None]:
        """Leaves in the adapter's gradient what the optimizer shall see; what there is to record; the retain part's.

        A guard rail keeps the forget part off; the retain part would lose its descent along the very rows it follows.
        """
        rail = self.rail
        forget, kept = self.adapter.gradient_of(objective.forget), None
        if hasattr(self.config.method, "route"):
            forget *= self.config.method.route(self)
        if self.config.as_run.leftover_gradients and rail and rail.leftover is not None:
            forget += rail.leftover
        forget = masked(forget, self.mask)
        if objective.keep is not None:
            kept = masked(self.adapter.gradient_of(objective.keep), self.mask)
        total = forget if kept is None else forget + kept
        if rail and self.config.guard_rail.apply_to == "gradient":
            before, after = forget, rail.on_gradient(forget)
            self.adapter.gradient.copy_(after if kept is None else after + kept)
        else:
            before, after = total, rail.on_gradient(total) if rail else total
            self.adapter.gradient.copy_(total)
        norms = {"gradient_norm": before.norm().item(), "projected_gradient_norm": after.norm().item()}
        loss = objective.forget.item() + (objective.keep.item() if objective.keep is not None else 0.0)
        values = {"objective": loss, **objective.values, **norms, "removed_share": removed_share(*norms.values())}
        return {**values, **(rail.values() if rail else {})}, kept

    def _measure_curvature(self, number: int, batch: Batch) -> int:
        """Gives optimizers that want it the gradient on labels drawn from the model itself; the tokens that took.

        Gauss-Newton-Bartlett (arXiv 2305.14342, algorithm 2). What the optimizer shall see is kept meanwhile.
        """
        wanting = [each for each in self.optimizers().values() if isinstance(each, Sophia) and each.is_due(number)]
        if not wanting:
            return 0
        training = self.adapter.gradient.clone()
        sets = [tokens for tokens in (batch.forget, batch.retain, batch.neighbour) if tokens]
        count = sum(int(labelled(tokens)) for tokens in sets)
        drawn = [per_token(self.model, tokens, loss_of_sampled_labels).sum() for tokens in sets]
        estimate = self.adapter.gradient_of(torch.stack(drawn).sum() / count)
        for optimizer in wanting:
            optimizer.curvature(estimate, count)
        self.adapter.gradient.copy_(training)
        return sum(int(tokens.mask.sum()) for tokens in sets)

    def _apply(self, number: int, kept: Tensor | None, before: Tensor) -> dict[str, float]:
        """The optimizer's step; with `apply_to = "update"` what it really did is kept off what the guard rail protects.

        Adam scales every entry by itself and carries momentum from older bases, so a projected gradient alone does not
        keep its step off the subspace (methods.md 1.3). What a mask holds fixed stays so under momentum and decay.
        """
        seen = self.adapter.gradient.norm().item()
        rate = self.learning_rate(number)
        update = self._take(self.optimizer, rate, before)
        recorded = {"learning_rate": rate}
        if isinstance(self.optimizer, Sophia):
            recorded["unclipped_share"] = self.optimizer.unclipped_share
        if self.mask is not None:
            recorded["masked_share"] = masked_share(self.mask)
        if self.rail and self.config.guard_rail.apply_to == "update":
            length = update.norm().item()
            off = self.rail.on_update(update, kept, length / seen if seen else 0.0)
            recorded["removed_share"] = removed_share(length, off.norm().item())
            with torch.no_grad():
                self.adapter.values.copy_(before + off)
            self._hold(before)
            update = off
        self.adapter.scatter()
        return {**recorded, "update_norm": update.norm().item()}

    def _take(self, optimizer: torch.optim.Optimizer, rate: float, before: Tensor) -> Tensor:
        """One step of an optimizer along the adapter's gradient, which it clears; the change from `before` (P,)."""
        limit, norm = self.config.optimizer.max_gradient_norm, self.adapter.gradient.norm().item()
        if limit and norm > limit:
            self.adapter.gradient.mul_(limit / norm)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        self.adapter.gradient.zero_()
        self._hold(before)
        return self.adapter.values.detach() - before

    def _hold(self, before: Tensor) -> None:
        """What a mask fixes is as it was, to the bit, whatever an optimizer or a rail has done to it."""
        if self.mask is not None:
            with torch.no_grad():
                self.adapter.values.copy_(held(self.adapter.values, before, self.mask))

    def _descend(self, number: int, batch: Batch) -> None:
        """The other half of an alternating step: down on what is to be kept, by an optimizer of its own."""
        assert self.descender
        self.adapter.scatter()
        found = self.adapter.gradient_of(self.config.method.descent(self.model, batch, self.reference))
        if torch.isfinite(found).all():  # else the next step's loss tells
            self.adapter.gradient.copy_(masked(found, self.mask))
            rate = self.learning_rate(number) * self.config.method.descent_rate
            self._take(self.descender, rate, self.adapter.values.detach().clone())
            self.adapter.scatter()

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
        checkpoint.save(self, folder, whole)

    def restore(self, folder: Path) -> None:
        """Continues from a whole checkpoint. Raises ConfigError where it is incomplete or of another model."""
        facts = checkpoint.restore(self, folder)
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
        """The answers of a saved adapter; the run's own adapter is as before afterwards, to the bit.

        The folder's name (step-000012) tells of which step it is, for methods that change more than weights.
        """
        if not is_saved(folder):
            raise ConfigError(
                f"The adapter of {folder.name} is not there any more; its answers can be read, not asked anew."
            )
        own, kept = self.adapter.values.detach().clone(), self.kept
        try:
            read_adapter(self.model, folder)
            self.adapter.gather()
            self.kept = checkpoint.read_kept(folder) or kept
            step = folder.name.rpartition("-")[2]
            return self.answers(prompts, int(step) if step.isdigit() else None)
        finally:
            self.kept = kept
            with torch.no_grad():
                self.adapter.values.copy_(own)
            self.adapter.scatter()


def open_unlearner(config: Mapping[str, Any], report: Callable[[str], None], cache: Path | None = None) -> Unlearner:
    """What the worker is given: the run that a config describes, one core left free for the page."""
    transformers.utils.logging.disable_progress_bar()  # a bar for every loading and saving says nothing
    torch.set_num_threads(max(1, (os.cpu_count() or 2) - 1))
    return Unlearner(RunConfig.from_dict(config), report, cache=cache)
