"""A guard rail is one file: in the folder, it is on the form, in the command line, in the estimate and in a run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = re.compile(r"```python\n# unlearn_core/guard_rails/norm_limit\.py\n(.*?)```", re.DOTALL)
MEMORY = """
    @classmethod
    def memory(cls, settings):
        from unlearn_core.guard_rails.base import RailMemory
        return RailMemory(rows=1, stored=50, fresh=0)

    def __init__"""
LOOK = """
import json
import torch
from pages.run.gauges import GAUGES
from pages.setup.knobs import WORDS
from unlearn_core.guard_rails import GUARD_RAILS
from unlearn_core.model.memory import estimate_for, shape_for
from unlearn_core.settings.run_config import RunConfig
from unlearn_core.world import FULL

def bytes_of(kind):
    config = RunConfig.from_dict({"method": {"name": "npo"}, "guard_rail": {"kind": kind}})
    return estimate_for(config, shape_for(config, FULL), torch.float32).gradients

print(json.dumps({
    "kinds": list(GUARD_RAILS), "label": WORDS["guard_rail.kind"].get("norm_limit"),
    "gauge": GAUGES.get("update_scale"), "more": bytes_of("norm_limit") > 2 * bytes_of("none"),
}))
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The program with one file more in the folder of guard rails."""
    package = tmp_path / "unlearn_core"
    rails = package / "guard_rails"
    rails.mkdir(parents=True)
    for here, source in (
        (tmp_path, ROOT),
        (package, ROOT / "unlearn_core"),
        (rails, ROOT / "unlearn_core" / rails.name),
    ):
        for path in source.iterdir():
            if not (here / path.name).exists() and path.name not in (".git", "data"):
                (here / path.name).symlink_to(path)
    example = EXAMPLE.search((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    assert example
    (rails / "norm_limit.py").write_text(example[1].replace("\n    def __init__", MEMORY, 1))
    return tmp_path


def test_a_guard_rail_is_added_by_one_file(tree: Path) -> None:
    look = subprocess.run([sys.executable, "-c", LOOK], cwd=tree, capture_output=True, text=True, check=True)
    facts = json.loads(look.stdout)
    assert "norm_limit" in facts["kinds"] and facts["label"] == "limits the update norm"
    assert facts["gauge"][0] == "update scale" and facts["more"]
    settings = ("guard_rail.kind=norm_limit", "method.name=npo", "schedule.steps=3", "schedule.batch_size=2")
    chosen = [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, "cli.py", "run", *chosen, "--through", "--home", "data", "--json"]
    run = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=True)
    points = json.loads(run.stdout)["points"]
    assert 0 < points["update_scale"] <= 1
