"""A full disk is one sentence at every kind of write; what was there stays, and with room again it goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from storage import StoreError
from tests.faults import full_disk, small_disk, writes

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no such disks")


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What every kind of write says where there is no room, from one process."""
    command = [sys.executable, "-m", "tests.faults.full_disk", str(tmp_path_factory.mktemp("disk"))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    if done.returncode == full_disk.NOT_ALLOWED:
        pytest.skip("this process may mount nothing")
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


@pytest.mark.parametrize("kind", [kind.__name__ for kind in writes.SAYS])
def test_a_full_disk_is_one_sentence_and_goes_on_when_there_is_room(answers: dict[str, Any], kind: str) -> None:
    sentence = answers[kind]
    assert "full" in sentence or "No space left" in sentence, sentence
    assert sentence.endswith(".") and "\n" not in sentence and "Error" not in sentence and "[Errno" not in sentence


@pytest.mark.parametrize("kind", [kind.__name__ for kind in writes.DOES_WITHOUT])
def test_what_is_a_convenience_or_only_reads_does_without_room(answers: dict[str, Any], kind: str) -> None:
    assert "Traceback" not in answers[kind], answers[kind]


def test_a_read_only_home_can_be_looked_at_and_says_why_it_is_not_changed(answers: dict[str, Any]) -> None:
    clean, cut, old = answers["read only"]
    assert cut.startswith("in the log: "), "what is only in the log is read too"
    assert all("Read-only file system" in told and "reading only" in told for told in (clean, cut, old))


def test_files_that_may_not_grow_are_one_sentence_too(tmp_path: Path) -> None:
    """As on a FAT disk, and from below Python: what safetensors and SQLite write."""
    for kind in (writes.tensors, writes.step):
        attempt = kind(tmp_path / kind.__name__)
        with small_disk.no_larger_than(200_000), pytest.raises(StoreError) as error:
            attempt()
        assert str(error.value).endswith(".") and "rror(" not in str(error.value)
        attempt()
