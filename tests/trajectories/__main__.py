"""Records the trajectories: all of them, or those whose names hold one of the words that are given."""

from __future__ import annotations

import json
import sys
import time

import torch

from tests.trajectories import PINNED, cases, machine, read, run

torch.set_num_threads(1)
pinned = read() if PINNED.exists() else {"cases": {}}
pinned["machine"] = machine()
every = cases()
for name, case in every.items():
    if len(sys.argv) > 1 and not any(word in name for word in sys.argv[1:]):
        continue
    began = time.monotonic()
    pinned["cases"][name] = run(case)
    print(f"{name}: {time.monotonic() - began:.1f} s", flush=True)
pinned["cases"] = {name: pinned["cases"][name] for name in every if name in pinned["cases"]}
lines = [f"{json.dumps(name)}: {json.dumps(case)}" for name, case in pinned["cases"].items()]
PINNED.write_text(
    f'{{"machine": {json.dumps(pinned["machine"])},\n"cases": {{\n' + ",\n".join(lines) + "\n}}\n", encoding="utf-8"
)
