"""What is installed is what was tested: every version is exact, within the ranges, and nothing is left to chance."""

from __future__ import annotations

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
