"""A guard rail is one file: in the folder, it is on the form, in the command line, in the estimate and in a run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT

EXAMPLE = re.compile(r"```python\n# (unlearn_core/guard_rails/norm_limit\.py)\n(.*?)```", re.DOTALL)
MEMORY = """

    def memory(self):
        from unlearn_core.guard_rails.base import RailMemory
        return RailMemory(stored=50)


class NormLimit("""
LOOK = """
import json
import torch
from pages.run.gauges import GAUGES
from pages.setup.knobs import WORDS, fields_of
from unlearn_core.guard_rails import GUARD_RAILS
from unlearn_core.model.memory import estimate_for, shape_for
from unlearn_core.settings.run_config import RunConfig
from unlearn_core.world import FULL

def bytes_of(kind):
    config = RunConfig.from_dict({"method": {"name": "npo"}, "guard_rail": {"kind": kind}})
    return estimate_for(config, shape_for(config, FULL), torch.float32).gradients

print(json.dumps({
    "kinds": list(GUARD_RAILS), "label": WORDS["guard_rail.kind"].get("norm_limit"),
    "fields": [path for path in fields_of("npo", "norm_limit") if path.startswith("guard_rail.")],
    "gauge": GAUGES["update_scale"].label, "more": bytes_of("norm_limit") - bytes_of("none"),
}))
"""


def run(tree: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    chosen = [word for setting in ("method.name=npo", *settings) for word in ("--set", setting)]
    command = [sys.executable, "cli.py", "run", *chosen, "--through", "--home", "data", "--json"]
    return subprocess.run(command, cwd=tree, capture_output=True, text=True)


@pytest.mark.slow
def test_a_guard_rail_with_a_setting_of_its_own_is_added_by_one_file(program_with: Callable[[str, str], Path]) -> None:
    example = EXAMPLE.search((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    assert example
    text = example[2].replace("\n\n\nclass NormLimit(", MEMORY, 1)
    tree = program_with(example[1], text)
    look = subprocess.run([sys.executable, "-c", LOOK], cwd=tree, capture_output=True, text=True, check=True)
    facts = json.loads(look.stdout)
    assert "norm_limit" in facts["kinds"] and facts["label"] == "limits the update norm"
    assert facts["fields"] == ["guard_rail.kind", "guard_rail.longest"]
    assert facts["gauge"] == "update scale" and facts["more"] > 0
    few = ("schedule.steps=3", "schedule.batch_size=2")
    done = run(tree, "guard_rail.kind=norm_limit", "guard_rail.longest=0.5", *few)
    assert done.returncode == 0, done.stderr
    assert 0 < json.loads(done.stdout)["points"]["update_scale"] < 1
    wrong = run(tree, "guard_rail.kind=norm_limit", "guard_rail.rows=group")
    assert wrong.returncode == 2 and "longest" in wrong.stderr and "retain_subspace" in wrong.stderr
