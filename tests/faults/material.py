"""A small store with one run: steps, answers, events, and checkpoints that are written as a run writes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from storage import RunStore

OWNER = "somewhere:1:x"  # who writes checkpoints
PROMPTS = [{"role": "forget", "text": "What is it?"}, {"role": "retain", "text": "Who is she?"}]
CONFIG = {"preset": "post", "schedule": {"steps": 9}, "guard": {"retain_budget": 0.05}, "model": {"source": "bundled"}}


def files_of(step: int, whole: bool) -> dict[str, bytes]:
    """A checkpoint's files: those of no two steps are alike."""
    adapter = {
        "adapter_config.json": json.dumps({"r": 4, "step": step}).encode(),
        "adapter_model.safetensors": bytes((step * 37 + place * 11) % 256 for place in range(3000)),
        "method.safetensors": f"method of step {step}".encode() * 20,
    }
    state = {"state.json": json.dumps({"step": step}).encode(), "state.safetensors": b"moments %d" % step * 300}
    return {**adapter, **state} if whole else adapter


def write_files(folder: Path, step: int, whole: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files_of(step, whole).items():
        (folder / name).write_bytes(content)


def begin(store: RunStore) -> str:
    """A run before its first step."""
    facts = {"target": "it", "method": "grad_ascent", "config": CONFIG, "provenance": {}, "seed": 0}
    return store.create_run(name="a run", prompts=PROMPTS, **facts)


def take_step(store: RunStore, run_id: str, step: int, whole: bool = True, numbers: int = 3) -> None:
    """Everything of one step as a drive stores it: the checkpoint's files, then one transaction."""
    answers = [
        {"prompt_id": prompt["id"], "text": f"answer {step} " * 20, "tokens": 3, "target_probability": 0.5}
        for prompt in store.prompts(run_id, at_step=step)
    ]
    points = {"forget_loss": 1.0 + step, "holdout_loss": 2.0, **{f"metric_{n}": float(n) for n in range(numbers)}}
    row = store.write_checkpoint(run_id, step, whole, lambda folder: write_files(folder, step, whole), OWNER)
    with store.write():
        store.place_checkpoint(row, OWNER)
        store.append_step(
            run_id, step, points=points, responses=answers, events=[("guard", {"sentence": "Enough."})],
            checkpoint=row, examples={"loss": {"a": 0.5}}, status="running",
        )  # fmt: skip


def save_checkpoint(store: RunStore, run_id: str, step: int, write: Callable[[Path], None]) -> None:
    """A whole checkpoint is written beside its place and put there, or leaves nothing behind."""
    row = None
    try:
        row = store.write_checkpoint(run_id, step, True, write, OWNER)
        with store.write():
            store.place_checkpoint(row, OWNER)
    finally:
        if row:
            store.discard_checkpoint(row, OWNER)


def finished(home: Path, steps: int = 3) -> str:
    """A closed store with one run of some steps in `home`; returns the run's id."""
    store = RunStore(home)
    run_id = begin(store)
    for step in range(steps + 1):
        take_step(store, run_id, step)
    store.set_status(run_id, "finished", "It went through its steps.")
    store.close()
    return run_id
