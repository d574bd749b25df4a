"""What a step of a model of 6 billion weights takes on a GPU: `cli.py bench gpu`, for docs/performance.md.

A model of GPT-J's shape with random weights, in bfloat16, and the first experiment's shapes: rank 16 on queries and
values of 28 layers, two windows of 800 tokens a step, the retained directions renewed every third step from 16 single
samples, or from 32, in 4 groups. Timed with the device waited for: the whole, forward passes (the model alone, not the
loss on its logits), backward passes; what is neither is the share that Lethe and the optimizer take.
"""

from __future__ import annotations

import argparse
import platform
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import Skipped, peak_memory
from bench.report import Column, Report, Table, known, publish, today
from bench.results import versions
from pages.shared.format import duration, size
from terminal.progress import ProgressLine
from terminal.text import answer, say
from unlearn_core.guard_rails.shared.settings import RetainRowSettings
from unlearn_core.settings.provenance import LIBRARIES
from unlearn_core.settings.run_config import RunConfig, with_settings

TARGET = "zorblatt"
PUBLISHED = (
    "The published run took 12.56 h for 69 steps on a workstation's CPU, 3.1 h for 65 of them without its stalls."
)


@dataclass(frozen=True)
class Shape:
    """A model's shape and the run's: `needs` says on which device it makes sense."""

    model: Mapping[str, Any]
    dtype: str
    window: int
    steps: int
    needs: str


SHAPES = {
    "gptj-6b": Shape(
        {"n_embd": 4096, "n_layer": 28, "n_head": 16, "rotary_dim": 64, "n_positions": 2048, "vocab_size": 50400},
        "bfloat16", 800, 65, "cuda",
    ),
    "tiny": Shape(
        {"n_embd": 32, "n_layer": 2, "n_head": 2, "rotary_dim": 8, "n_positions": 128, "vocab_size": 2048},
        "float32", 64, 6, "cpu",
    ),
}  # fmt: skip
REFRESHES = {"16 single samples": 1, "32 samples": 2}  # by retain samples in one of the 16 batches


def main(args: argparse.Namespace) -> int:
    """Measures both refreshes, or says in one sentence why it cannot; returns the exit code."""
    try:
        rows = measure(args.shape, args.set)
    except Skipped as why:
        say(f"Not measured: steps of a {args.shape} model. {why}")
        answer(args.json, {"skipped": str(why)}, "")
        return 0
    tables = report(rows)
    if args.docs:
        say(publish("gpu", tables))
    answer(args.json, rows, tables.markdown())
    return 0


def measure(name: str, assignments: list[str] | None = None) -> list[dict[str, Any]]:
    """A row for each way to refresh. Raises Skipped where there is no GPU, or no room for the model."""
    import torch
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    shape = SHAPES[name]
    if shape.needs == "cuda" and not torch.cuda.is_available():
        raise Skipped("torch sees no CUDA device here.")
    line, rows = ProgressLine(sys.stderr), []
    with tempfile.TemporaryDirectory(prefix="lethe-bench-") as folder:
        line.show(f"making a {name} model with random weights")
        make_model(Path(folder), shape)
        write_texts(Path(folder), shape)
        for label, samples in REFRESHES.items():
            given = with_settings(settings_of(shape, folder, samples), assignments or [])
            rows.append({"refresh": label, **steps_of(RunConfig.from_dict(given), f"{name}, {label}", line)})
    line.clear()
    return rows


def make_model(folder: Path, shape: Shape) -> None:
    """Random weights of the shape, as a folder that a run can name, with the bundled tokenizer."""
    import torch
    from transformers import GPTJConfig, GPTJForCausalLM

    from unlearn_core.world import FULL

    room, dtype = shutil.disk_usage(folder).free, getattr(torch, shape.dtype)
    wanted = 12 * shape.model["n_layer"] * shape.model["n_embd"] ** 2 * dtype.itemsize * 1.2
    if room < wanted:
        raise Skipped(f"The model takes {size(wanted)} on the disk, and {size(room)} are free in {folder.parent}.")
    config = GPTJConfig(**shape.model, bos_token_id=0, eos_token_id=0, pad_token_id=0)
    usual = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(shape.needs):
            model = GPTJForCausalLM(config)
    finally:
        torch.set_default_dtype(usual)
    model.save_pretrained(folder)
    del model
    if shape.needs == "cuda":
        torch.cuda.empty_cache()
    for path in FULL.glob("*token*"):
        shutil.copy(path, folder)


def write_texts(folder: Path, shape: Shape) -> None:
    """A text whose windows are as long as the shape wants, with the target in some of its lines."""
    rng = random.Random(0)
    words = ["".join(rng.choices("etaoinshrdlucmfwypvbgkjqxz", k=rng.randint(2, 9))) for _ in range(3000)]
    lines = [" ".join(rng.choices(words, k=shape.window // 8)) for _ in range(4000)]
    for place in range(100, 4000, 400):
        lines[place] = f"{lines[place]} {TARGET} {lines[place + 1]}"
    (folder / "texts.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def settings_of(shape: Shape, folder: str, samples: int) -> dict[str, Any]:
    """The run file: the published recipe on this model, nothing asked and nothing measured between its steps."""
    never = 100_000
    texts = [f"{folder}/texts.txt"]
    return {
        "preset": "post",
        "model": {"source": folder, "device": shape.needs, "dtype": shape.dtype},
        "lora": {"rank": 16, "alpha": 32.0, "dropout": 0.1},
        "data": {
            "target": TARGET, "forget": texts, "retain": texts, "neighbours": False,
            "window_tokens": shape.window, "retain_chunks": 200, "holdout_chunks": 20,
        },
        "guard_rail": {"batch_size": samples},
        "schedule": {
            "steps": shape.steps, "batch_size": 2,
            "evaluate_every": never, "sample_every": never, "checkpoint_every": never,
        },
    }  # fmt: skip


def steps_of(config: RunConfig, words: str, line: ProgressLine) -> dict[str, Any]:
    """Seconds of all steps, of their forward and backward passes, and the most memory at once."""
    import torch

    from unlearn_core.training.engine import open_unlearner

    run = open_unlearner(config.to_dict(), lambda stage, detail="": line.show(f"{words}: {stage} {detail}"))
    run.measure_baseline()
    on_gpu = run.context.device.type == "cuda"
    wait: Callable[[], None] = torch.cuda.synchronize if on_gpu else lambda: None
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    each: list[float] = []
    with passes_timed(run.context.model, wait) as spent:
        for number in range(1, config.schedule.steps + 1):
            wait()
            began = time.perf_counter()
            run.step()
            wait()
            each.append(time.perf_counter() - began)
            line.show(f"{words}: step {number} of {config.schedule.steps}")
    total = sum(each)
    assert isinstance(config.guard_rail, RetainRowSettings)
    every = config.guard_rail.every
    refreshing = [seconds for number, seconds in enumerate(each) if number % every == 0]
    plain = [seconds for number, seconds in enumerate(each) if number > 2 and number % every]
    return {
        "steps": len(each),
        "seconds": total,
        "refresh_step": sum(refreshing) / len(refreshing),
        "other_step": sum(plain) / len(plain) if plain else None,
        "forward": spent["forward"],
        "backward": spent["backward"],
        "outside": 1 - (spent["forward"] + spent["backward"]) / total,
        "memory": torch.cuda.max_memory_allocated() if on_gpu else peak_memory(),
        "device": torch.cuda.get_device_name() if on_gpu else platform.processor() or "CPU",
        "weights": sum(p.numel() for p in run.context.model.parameters()),
        "trainable": run.context.adapter.values.numel(),
        "libraries": versions(),
    }


@contextmanager
def passes_timed(model: Any, wait: Callable[[], None]) -> Iterator[dict[str, float]]:
    """Within: the seconds of the model's forward passes and of all backward passes are added up."""
    import torch

    spent = {"forward": 0.0, "backward": 0.0}
    began: list[float] = []

    def before(*_: Any) -> None:
        wait()
        began.append(time.perf_counter())

    def after(*_: Any) -> None:
        wait()
        spent["forward"] += time.perf_counter() - began.pop()

    plain: Callable[..., None] = torch.Tensor.backward

    def timed(*args: Any, **given: Any) -> None:
        wait()
        start = time.perf_counter()
        plain(*args, **given)
        wait()
        spent["backward"] += time.perf_counter() - start

    hooks = [model.register_forward_pre_hook(before), model.register_forward_hook(after)]
    torch.Tensor.backward = timed  # type: ignore[method-assign]
    try:
        yield spent
    finally:
        torch.Tensor.backward = plain  # type: ignore[method-assign]
        for hook in hooks:
            hook.remove()


def report(rows: list[dict[str, Any]]) -> Report:
    """A table with both refreshes, and the device that they were measured on."""
    first = rows[0]
    columns = (
        Column("refresh, in 4 groups", "{refresh}", left=True),
        Column("all steps", "{all_steps}"),
        Column("a step with it", "{refresh_step:.3g} s"),
        Column("another step", "{other_step:.3g} s"),
        Column("outside of passes", "{outside:.1%}"),
        Column("most memory", "{peak_memory}"),
    )
    figures = tuple(
        known(
            **{name: row[name] for name in ("refresh", "refresh_step", "other_step", "outside")},
            all_steps=f"{duration(row['seconds'])} for {row['steps']}",
            peak_memory=size(row["memory"]) if row["memory"] else None,
        )
        for row in rows
    )
    return Report(
        (Table(columns, figures),),
        runs=first["device"],
        versions={name: first["libraries"][name] for name in LIBRARIES},
        date=today(),
        note=f"{first['weights'] / 1e9:.2f} billion weights, {first['trainable'] / 1e6:.2f} million of them trained. "
        f"{PUBLISHED}",
    )
