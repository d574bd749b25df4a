"""Numbers stay as they are: every method, guard rail, optimizer and mask against what is pinned, step by step.

To the last bit where processor and library versions are those of the record; else as far as rounding goes, since a
matrix product is summed up in another order elsewhere.
"""

from __future__ import annotations

import pytest

from tests.trajectories import cases, machine, read, run
from unlearn_core.training import engine

pytestmark = [pytest.mark.usefixtures("one_thread", "texts_read_once"), pytest.mark.slow]
ELSEWHERE = 2e-2  # of a value, after twelve steps; what counts rows or tokens agrees all the same


@pytest.fixture(scope="module")
def texts_read_once():
    """Nearly all cases have the same texts, cut for the same model: they are read for the first of them."""
    known, read_texts = {}, engine.make_windows

    def windows(data, tokenizer, limit, seed, **more):
        key = data, limit, seed, more["chat"]
        if key not in known:
            known[key] = read_texts(data, tokenizer, limit, seed, **more)
        return known[key]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(engine, "make_windows", windows)
        yield


@pytest.mark.parametrize("name", cases())
def test_a_trajectory_is_the_pinned_one(name):
    pinned = read()
    expected, found = pinned["cases"][name], run(cases()[name])
    if machine() == pinned["machine"]:
        assert found == expected
        return
    assert found["points"].keys() == expected["points"].keys()
    for point, values in expected["points"].items():
        assert found["points"][point] == pytest.approx(values, rel=ELSEWHERE, abs=1e-3), point


def test_nothing_is_pinned_that_is_not_run():
    assert list(read()["cases"]) == list(cases())
