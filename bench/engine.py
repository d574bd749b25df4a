"""A step of the bundled run against a plain PyTorch loop that makes the same passes."""

from __future__ import annotations

import os
import statistics
import time
from typing import Any

from bench import Measure
from unlearn_core.guard_rails.shared.settings import RetainRowSettings
from unlearn_core.settings.run_config import RunConfig

ENGINE_SECONDS = 40.0

Pass = tuple[Any, Any, bool, bool]  # token ids, attention mask, dropout on?, gradient wanted?


def measure() -> Measure:
    """The engine's step against a bare loop."""
    import torch

    from unlearn_core.model.load import load_model
    from unlearn_core.settings.report import silent
    from unlearn_core.training.engine import open_unlearner

    config = RunConfig.from_dict({})
    run = open_unlearner(config.to_dict(), silent)
    run.measure_baseline()
    bare = load_model(config.model, config.lora, config.seed).model
    optimizer = torch.optim.AdamW([p for p in bare.parameters() if p.requires_grad], config.optimizer.learning_rate)
    passes: list[Pass] = []

    def remember(module: Any, args: Any, given: dict[str, Any]) -> None:
        passes.append((given["input_ids"], given["attention_mask"], module.training, torch.is_grad_enabled()))

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
    return Measure("engine step against a bare torch loop", ratio, 1.05, "x", detail)


def bare_step(model: Any, optimizer: Any, passes: list[Pass]) -> None:
    """The same forward passes, a backward pass where the engine made one, and AdamW."""
    import torch
    from torch.nn.functional import cross_entropy

    for ids, mask, training, learns in passes:
        model.train(training)
        with torch.set_grad_enabled(learns):
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
            labels = ids.masked_fill(mask == 0, -100)[:, 1:]
            loss = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        if learns:
            loss.backward()
    optimizer.step()
    optimizer.zero_grad()
