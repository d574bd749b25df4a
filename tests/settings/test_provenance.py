"""What a run's numbers depend on, and how it is told when that has changed."""

from __future__ import annotations

import platform

import peft
import torch
import transformers

from unlearn_core.settings.provenance import differences, versions, warning


def test_the_versions_are_those_that_the_libraries_say_of_themselves():
    own = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
    assert versions() == {"python": platform.python_version(), **own}


def test_what_is_otherwise_is_named_with_both_values_and_what_is_not_told_is_left_out():
    before = {
        "versions": {"torch": "2.13.0", "peft": "0.21.2"},
        "device": "cpu",
        "threads": 1,
        "windows": {"forget": 3},
    }
    now = {"versions": {"torch": "2.13.0+cpu", "transformers": "5.24.0"}, "device": "cuda:0", "windows": {}}
    assert differences(before, now) == ["torch 2.13.0+cpu instead of 2.13.0", "the device cuda:0 instead of cpu"]
    assert differences(before, {**before, "threads": 2}) == ["the number of threads 2 instead of 1"]
    assert differences(before, before) == differences({}, now) == []


def test_without_a_difference_there_is_no_warning():
    assert warning([]) == warning([], resumed=False) == ""
    assert warning(["a 2 instead of 1"], resumed=False).startswith("It would go on with a 2 instead of 1: its numbers")
    assert warning(["a 2 instead of 1", "b 4 instead of 3"]).startswith("It goes on with a 2 instead of 1, b 4 instead")
