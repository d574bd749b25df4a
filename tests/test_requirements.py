"""What is installed is what was tested: every version is exact, within the ranges, and nothing is left to chance."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PINNED = ("requirements.txt", "requirements-dev.txt", "constraints.txt")


def pins(file: str) -> dict[str, str]:
    """Name -> exact version of a file of requirements."""
    lines = [line for line in (ROOT / file).read_text(encoding="utf-8").splitlines() if line[:1].isalnum()]
    requirements = [Requirement(line) for line in lines]
    assert all(len(r.specifier) == 1 and str(r.specifier).startswith("==") for r in requirements), file
    return {canonicalize_name(r.name): str(r.specifier).removeprefix("==") for r in requirements}


def allowed() -> dict[str, list[Requirement]]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = {"requirements.txt": project["dependencies"]}
    found["requirements-dev.txt"] = project["optional-dependencies"]["dev"]
    return {file: [Requirement(line) for line in lines] for file, lines in found.items()}


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-dev.txt"])
def test_what_is_pinned_is_what_the_project_asks_for_within_its_ranges(file):
    found, ranges = pins(file), allowed()[file]
    assert list(found) == [canonicalize_name(each.name) for each in ranges]
    assert all(each.specifier.contains(found[canonicalize_name(each.name)]) for each in ranges)


def test_nothing_is_pinned_twice_and_a_build_of_torch_for_a_gpu_is_not_shut_out():
    names = [name for file in PINNED for name in pins(file)]
    assert len(names) == len(set(names))
    assert "-c constraints.txt" in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    torch = Requirement(f"torch=={pins('requirements.txt')['torch']}").specifier
    assert all(torch.contains(f"{torch}".removeprefix("==") + build) for build in ("", "+cpu", "+cu130", "+rocm7.1"))


def test_everything_that_comes_along_is_pinned():
    """By what the installed packages themselves say that they need here."""
    exact = {name: version for file in PINNED for name, version in pins(file).items()}
    direct = {**pins("requirements.txt"), **pins("requirements-dev.txt")}
    if any(metadata.version(name).partition("+")[0] != version for name, version in direct.items()):
        pytest.skip("other versions are installed than those that are pinned (.ci/newest, or by hand)")
    reached, waiting = set(), set(direct)
    while waiting:
        name = waiting.pop()
        reached.add(name)
        for line in metadata.requires(name) or ():
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                waiting |= {canonicalize_name(needed.name)} - reached
    reached -= {"pip"}  # sqlite-utils names it; it is what installs the others
    assert not reached - set(exact)
    assert {name: metadata.version(name).partition("+")[0] for name in reached} == {
        name: exact[name] for name in reached
    }


# -------------------------------------------------------------------------------------------------- locks with hashes


def checked(root: Path) -> str:
    """What `.ci/pin --check` says of a copy of the project; empty where the locks agree with the pins."""
    done = subprocess.run(
        [sys.executable, root / ".ci" / "pin", "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode == 0) == (not done.stderr) and "Traceback" not in done.stderr
    return done.stderr


def test_the_locks_agree_with_what_is_pinned_and_one_command_tells_where_they_do_not(tmp_path):
    assert checked(ROOT) == ""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "pin", tmp_path / ".ci")
    names = (*PINNED, "requirements-real.txt", "requirements.lock", "requirements-real.lock", "pyproject.toml")
    for name in names:
        shutil.copy(ROOT / name, tmp_path)
    assert checked(tmp_path) == ""
    lock = (ROOT / "requirements.lock").read_text()
    spoiled = {
        "has streamlit 1.66.0, and 1.67.0 is pinned": lock.replace("streamlit==1.67.0", "streamlit==1.66.0"),
        "has h11 not at all": "".join(lock.partition("h11==")[:1]) + lock[lock.index("hf-xet==") :],
        "no hash of xxhash": lock[: lock.index("xxhash==")] + "xxhash==4.1.0\n" + lock[lock.index("zstandard==") :],
        "no hash of more": lock + "more==1.0 \\\n    --hash=sha256:abc\n",
        "names an address": lock + "# https://index.example/simple\n",
    }
    for said, text in spoiled.items():
        (tmp_path / "requirements.lock").write_text(text)
        assert said in checked(tmp_path)


def test_every_entry_of_a_lock_has_hashes_and_pip_reads_it():
    for lock in ("requirements.lock", "requirements-real.lock"):
        text = (ROOT / lock).read_text().replace("\\\n", "")
        lines = [line for line in text.splitlines() if line and not line.startswith("#")]
        assert len(lines) > 1 and all(line.count("--hash=sha256:") >= 1 for line in lines)
        assert all(str(Requirement(line.partition("--hash")[0]).specifier).startswith("==") for line in lines)
