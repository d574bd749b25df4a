"""A process that is killed at any file operation of saving, exporting or migrating loses nothing acknowledged."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="processes are forked and killed by signals")


def moments(scenario: str, folder: Path, stride: int) -> int:
    """How many moments were tried; what does not hold at one of them fails here with its traceback."""
    command = [sys.executable, "-m", "tests.faults.crashes", scenario, str(folder), str(stride)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.parametrize("stride", [17, pytest.param(1, marks=pytest.mark.slow)])
def test_saving_and_exporting_may_be_cut_off_at_any_file_operation(tmp_path: Path, stride: int) -> None:
    assert moments("saving", tmp_path, stride) > 60 // stride


def test_migrating_may_be_cut_off_at_any_file_operation(tmp_path: Path) -> None:
    assert moments("migrating", tmp_path, 1) > 2
