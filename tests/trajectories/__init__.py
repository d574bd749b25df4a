"""The pinned trajectories: what every method, guard rail, optimizer and mask gives on the bundled model, step by step.

`python -m tests.trajectories` records them anew, which is right only where numbers are meant to change.
"""

from __future__ import annotations

import hashlib
import json
import platform
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

PINNED = Path(__file__).with_name("pinned.json")
STEPS = 12
SMALL = {"schedule": {"batch_size": 2, "retain_batch_size": 0, "evaluate_every": 4}}
SAMPLES = {"samples": 32}  # windows of each set that importances are estimated on, of 256: each costs a pass and back

GUARD_RAILS: dict[str, dict[str, Any]] = {
    "none": {"kind": "none"},
    "retain subspace, on the gradient": {"kind": "retain_subspace", "apply_to": "gradient"},
    "retain subspace, neighbours": {"kind": "retain_subspace", "neighbours": True},
    "a row per sample, history": {"kind": "retain_subspace", "rows": "sample", "history": 3},
    "a row per sample's logits, per layer": {"kind": "retain_subspace", "rows": "logit", "scope": "layer"},
    "by drift": {"kind": "retain_subspace", "refresh": "drift", "drift": 0.005},
    "one-sided": {"kind": "one_sided"},
    "one-sided, on the gradient, per layer": {"kind": "one_sided", "apply_to": "gradient", "scope": "layer"},
    "null space": {"kind": "null_space"},
    "earlier adapters": {"kind": "earlier_adapters"},
}
QUESTION = "What does supercalifragilisticexpialidocious mean?"
FEW_ROWS = {"batches": 4, "batch_size": 2, "groups": 2}
OPTIMIZERS = ("adamw", "sgd", "lion", "sophia", "sophia_soul")
PLACES: dict[str, dict[str, Any]] = {
    "rows that the target moves": {"mask": "saliency"},
    "heads and filters": {"mask": "structure"},
    "the weights themselves": {"kind": "full"},
    "the weights themselves, masked": {"kind": "full", "mask": "saliency"},
}


def cases() -> dict[str, dict[str, Any]]:
    """The run files, by name."""
    from dataclasses import asdict

    from unlearn_core.methods import METHODS
    from unlearn_core.settings.run_config import overlay

    found: dict[str, dict[str, Any]] = {}
    for name, method in METHODS.items():
        knobs = asdict(method())
        few = SAMPLES if "samples" in knobs else {}
        own = overlay(method.facts.settings, {"method": {"name": name, **knobs, **few}})
        if brought := method.facts.settings.get("method"):
            own = overlay(own, {"method": brought})
        found[f"method {name}"] = overlay(own, SMALL)
    npo = {"method": {"name": "npo", "retain_weight": 1.0, "neighbour_weight": 0.5}, **SMALL}
    for name, rail in GUARD_RAILS.items():
        found[f"guard rail {name}"] = {**npo, **overlay({"guard_rail": FEW_ROWS}, {"guard_rail": rail})}
    for name in OPTIMIZERS:
        found[f"optimizer {name}"] = {**npo, "guard_rail": FEW_ROWS, "optimizer": {"name": name, "learning_rate": 1e-4}}
    for name, where in PLACES.items():
        found[f"where {name}"] = {**npo, "guard_rail": {"kind": "none"}, "where": where}
    for preset in ("portmanteau", "post", "post_as_run"):
        found[f"preset {preset}"] = {"preset": preset, "schedule": {"batch_size": 2, "evaluate_every": 4}}
    return found


def machine() -> dict[str, str]:
    """What the last bit of a number depends on besides the program."""
    import torch

    from unlearn_core.settings.provenance import versions

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {
        "processor": model or platform.processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        **{name: version for name, version in versions().items() if name != "python"},
    }


def earlier_adapter(folder: Path) -> str:
    """The adapter of an earlier request, after two steps; the folder it lies in."""
    from unlearn_core.settings.run_config import RunConfig
    from unlearn_core.training.engine import Unlearner

    first = Unlearner(RunConfig.from_dict({**cases()["method npo"], "seed": 5}))
    first.measure_baseline()
    for _ in range(2):
        first.step()
    first.save(folder, whole=False)
    return str(folder)


def run(case: dict[str, Any], steps: int = STEPS) -> dict[str, Any]:
    """What a run gives: `points`, name -> values of all steps from the baseline on (None where not measured); what it
    answers at last; and a digest of the trained parameters.
    """
    from unlearn_core.settings.run_config import RunConfig
    from unlearn_core.training.engine import Unlearner

    if case.get("guard_rail", {}).get("kind") == "earlier_adapters" and "model" not in case:
        with TemporaryDirectory() as folder:
            return run({**case, "model": {"earlier": [earlier_adapter(Path(folder))]}}, steps)
    trained = Unlearner(RunConfig.from_dict(case))
    records = [trained.measure_baseline().values]
    while trained.step_number < steps and len(records) <= steps:
        records.append(trained.step().values)
    names = sorted(set().union(*records) - {"step_seconds"})
    digest = hashlib.sha256(trained.context.adapter.values.detach().numpy().tobytes()).hexdigest()
    points = {name: [record.get(name) for record in records] for name in names}
    return {"points": points, "answer": trained.answers([QUESTION])[0].response.text, "trained": digest}


def read() -> dict[str, Any]:
    """The pinned file: `machine`, and `cases` by name."""
    return dict(json.loads(PINNED.read_text(encoding="utf-8")))
