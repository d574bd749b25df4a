"""The long form for files: every moment of a crash, every write on a full disk, many seeds of damage. Minutes."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.faults import damage, full_disk
from tests.faults.material import finished

ROOT = Path(__file__).parents[2]


def rows(stores: int = 1000, checkpoints: int = 1000) -> Iterator[tuple[str, int, str]]:
    """(what was tried, how often, what held), as it goes. Raises where something does not hold."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for scenario in ("saving", "migrating"):
            tried = int(_of_its_own("tests.faults.crashes", scenario, str(place / scenario), "1"))
            yield f"SIGKILL at every file operation of {scenario}", tried, "nothing acknowledged lost, no half file"
        told = json.loads(_of_its_own("tests.faults.full_disk", str(place / "disk")) or "{}")
        failed = [kind for kind, text in told.items() if "Traceback" in text]
        assert not failed, failed
        yield (
            "a full disk at every kind of write",
            len(told),
            "one sentence, earlier files as they were" if told else "not allowed here",
        )
        run_id = finished(place / "good", steps=6)
        noticed = sum(damage.of_a_store(place / "good", place / f"s{seed}", seed) for seed in range(stores))
        yield "a damaged store read through", stores, f"no traceback, never written; noticed {noticed}"
        for seed in range(checkpoints):
            damage.of_a_checkpoint(place / "good", place / f"c{seed}", run_id, seed)
        yield "a damaged checkpoint", checkpoints, "never used"


def _of_its_own(module: str, *given: str) -> str:
    """What a module prints that is run as a program; empty where it may mount nothing."""
    for folder in given:
        if folder.startswith("/"):
            Path(folder).mkdir(parents=True, exist_ok=True)
    done = subprocess.run([sys.executable, "-m", module, *given], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, full_disk.NOT_ALLOWED), done.stderr
    return done.stdout.strip()
