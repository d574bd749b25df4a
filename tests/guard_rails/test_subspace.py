"""RetainSubspace by theorem: what is taken out is the span of the rows, all of it, and nothing else."""

from __future__ import annotations

import contextlib
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unlearn_core.guard_rails.shared.subspace import TOLERANCE, RetainSubspace, removed_share

EPS = torch.finfo(torch.float32).eps


def rows_of(count: int, size: int, seed: int = 0, spread: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(0, spread, count)[:, None]
    return torch.randn(count, size, generator=generator) * scales


def ill_conditioned(count: int, size: int, closeness: float) -> torch.Tensor:
    """Rows that all but coincide: one direction, and `closeness` of something else."""
    common, others = rows_of(1, size, 1), rows_of(count, size, 2, 0.0)
    return common / common.norm() + closeness * others / others.norm(dim=1, keepdim=True)


def cosines(space: RetainSubspace, rows: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    rows = rows[rows.norm(dim=1) > 0].double()
    return (rows @ vector.double()) / (rows.norm(dim=1) * vector.double().norm())


@pytest.mark.parametrize("count", [1, 2, 8, 16])
def test_the_gram_route_projects_as_the_qr_route_does(count):
    rows = rows_of(count, 400)
    space = RetainSubspace.fit(rows)
    basis, _ = torch.linalg.qr(rows.double().T)
    by_gram = (space.whitening.T @ space.rows.double()).T
    torch.testing.assert_close(by_gram @ by_gram.T, basis @ basis.T, rtol=0, atol=1e-6)
    vector = rows_of(1, 400, 9)[0]
    expected = vector.double() - basis @ (basis.T @ vector.double())
    torch.testing.assert_close(space.project_out(vector).double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "rows",
    [
        rows_of(4, 1_000_000), rows_of(16, 200_000, spread=8.0), ill_conditioned(8, 100_000, 1e-2),
        ill_conditioned(6, 50_000, 4e-3), rows_of(12, 30), torch.cat([rows_of(3, 5000), rows_of(3, 5000) * 7]),
    ],
    ids=["large", "very different norms", "close together", "closer", "few parameters", "duplicates"],
)  # fmt: skip
def test_what_is_left_is_orthogonal_to_every_row_to_float_precision(rows):
    space = RetainSubspace.fit(rows)
    inside = rows.T @ torch.ones(len(rows)) / rows.norm()
    for vector in (rows_of(1, rows.shape[1], 5)[0], inside + 0.1 * rows_of(1, rows.shape[1], 6)[0]):
        left = space.project_out(vector)
        assert left.dtype == torch.float32
        # The error of a float32 sum grows with the root of its length; against that, the vector before is the measure.
        residue = cosines(space, rows, left).abs().max() * left.norm() / vector.norm()
        assert residue < 20 * EPS, residue
        assert cosines(space, rows, left).abs().max() < 1e-5


def test_projecting_twice_is_projecting_once_and_what_is_orthogonal_stays_as_it_is():
    rows = rows_of(6, 20_000)
    space = RetainSubspace.fit(rows)
    once = space.project_out(rows_of(1, 20_000, 3)[0])
    torch.testing.assert_close(space.project_out(once), once, rtol=0, atol=1e-6)
    assert space.project_out(rows[2]).norm() < 1e-5 * rows[2].norm()
    assert torch.count_nonzero(space.project_out(torch.zeros(20_000))) == 0


@pytest.mark.parametrize("closeness", [1e-2, 4e-3])
@pytest.mark.parametrize("outside", [1e-3, 1e-4])
def test_of_a_vector_that_lies_almost_inside_the_span_what_is_left_is_outside(closeness, outside):
    """Of rows that nearly coincide: one projection alone leaves a twentieth to most of the rest inside the span."""
    rows = ill_conditioned(6, 20_000, closeness)
    inside, other = rows.T @ torch.tensor([1.0, -2.0, 3.0, 1.0, -1.0, 2.0]), rows_of(1, 20_000, 7)[0]
    left = RetainSubspace.fit(rows).project_out(inside / inside.norm() + outside * other / other.norm()).double()
    basis, _ = torch.linalg.qr(rows.double().T)
    assert (basis.T @ left).norm() < 1e-4 * left.norm() and left.norm() > 0.9 * outside


def test_the_size_of_a_gradient_does_not_matter():
    rows, vector = rows_of(5, 3000), rows_of(1, 3000, 4)[0]
    plain = RetainSubspace.fit(rows)
    scaled = RetainSubspace.fit(rows * torch.tensor([1e-9, 1.0, 1e7, 3.0, 1e-3])[:, None])
    torch.testing.assert_close(plain.project_out(vector), scaled.project_out(vector), rtol=0, atol=1e-5)
    for scale in (1e-20, 1e20):
        again = plain.project_out(vector * scale) / scale
        torch.testing.assert_close(again, plain.project_out(vector), atol=1e-5, rtol=0)


def test_duplicates_and_near_duplicates_are_one_direction():
    rows = rows_of(3, 2000)
    again = torch.cat([rows, rows[:2], -rows[1:2], rows[:1] + 1e-6 * rows_of(1, 2000, 8)])
    space = RetainSubspace.fit(again)
    assert space.rank == 3 and RetainSubspace.fit(rows).rank == 3
    vector = rows_of(1, 2000, 3)[0]
    expected = RetainSubspace.fit(rows).project_out(vector)
    torch.testing.assert_close(space.project_out(vector), expected, rtol=0, atol=1e-5)


def test_rows_that_vanish_are_left_out_and_where_all_do_there_is_no_subspace():
    rows = rows_of(4, 500)
    rows[1] = 0
    rows[3] = 1e-15 * rows[3]
    space = RetainSubspace.fit(rows)
    assert space.rank == 2 and space.rows.shape == (2, 500)
    assert space.gradient_norm_median == pytest.approx(rows.norm(dim=1).median().item())
    assert RetainSubspace.fit(torch.zeros(3, 500)) is None


def test_a_row_that_is_not_finite_is_left_out():
    rows = rows_of(4, 500)
    for broken in (float("nan"), float("inf")):
        spoilt = rows.clone()
        spoilt[2, 7] = broken
        space = RetainSubspace.fit(spoilt)
        assert space.rank == 3 and torch.isfinite(space.project_out(rows[0])).all()
    assert RetainSubspace.fit(torch.full((2, 9), float("nan"))) is None


def condition_of(rows: torch.Tensor) -> float:
    """By numpy, of the rows as they came, normalised in double precision."""
    wide = rows.double().numpy()
    return float(np.linalg.cond(wide / np.linalg.norm(wide, axis=1, keepdims=True)))


@pytest.mark.parametrize("rows", [rows_of(2, 300), rows_of(9, 4000, spread=5.0), ill_conditioned(5, 900, 0.02)])
def test_the_condition_number_is_that_of_the_normalised_rows(rows):
    assert RetainSubspace.fit(rows).condition_number == pytest.approx(condition_of(rows), rel=1e-5)
    assert RetainSubspace.fit(rows[:1]).condition_number == pytest.approx(1.0)


@given(exponent=st.floats(0.0, 10.0), count=st.integers(2, 6), seed=st.integers(0, 10**6))
def test_rows_that_differ_by_as_little_as_one_in_ten_thousand_million_have_the_condition_number_they_have(
    exponent, count, seed
):
    """Rows e_0 + 10^-x e_i, whose numbers single precision holds, of any lengths: sqrt(count) * 10^x and a bit."""
    lengths = 2.0 ** torch.randint(-20, 20, (count, 1), generator=torch.Generator().manual_seed(seed))
    rows = torch.zeros(count, 200_000)  # more than one slice
    rows[:, 0] = 1
    rows[range(count), torch.arange(1, count + 1) * 30_000] = 10.0**-exponent
    expected = condition_of(rows * lengths)
    assert expected >= 10**exponent
    assert RetainSubspace.fit(rows * lengths).condition_number == pytest.approx(expected, rel=1e-5)


@given(exponent=st.floats(0.0, 9.0), count=st.integers(2, 6), seed=st.integers(0, 10**6))
def test_the_condition_number_is_numpy_s_on_rows_of_any_kind(exponent, count, seed):
    """Of a chosen conditioning, until single precision rounds it away: what counts is the rows that there are."""
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.standard_normal((size, count)))[0] for size in (count, 500))
    rows = torch.tensor(left @ np.diag(np.geomspace(1, 10**-exponent, count)) @ right.T, dtype=torch.float32)
    assert RetainSubspace.fit(rows).condition_number == pytest.approx(condition_of(rows), rel=1e-4)


def test_rows_two_thousandths_apart_alarm_and_dependent_ones_are_at_the_end_of_the_scale():
    one, other = (row / row.norm() for row in rows_of(2, 1000, spread=0.0))
    close = torch.stack([one, one + 2e-3 * other])
    assert RetainSubspace.fit(close).condition_number == pytest.approx(condition_of(close), rel=1e-6)
    assert 900 < condition_of(close) < 1100
    assert 900 < RetainSubspace.fit(close[1:], RetainSubspace.fit(close[:1]), 2).condition_number < 1100
    for dependent in (torch.stack([one, one]), rows_of(5, 3)):
        assert 1e15 < RetainSubspace.fit(dependent).condition_number < 1e16


def test_the_median_of_the_norms_is_of_the_gradients_as_they_came():
    rows = rows_of(5, 100, spread=2.0)
    assert RetainSubspace.fit(rows).gradient_norm_median == pytest.approx(rows.norm(dim=1).median().item())


def test_a_direction_is_dropped_just_below_the_tolerance_and_kept_just_above():
    def pair(angle: float) -> torch.Tensor:
        rows = torch.zeros(2, 50, dtype=torch.float64)
        rows[0, 0] = 1
        rows[1, 0], rows[1, 1] = torch.cos(torch.tensor(angle)), torch.sin(torch.tensor(angle))
        return rows.float()

    angle = 2 * TOLERANCE**0.5  # eigenvalues 1 + cos and 1 - cos: their quotient is (angle / 2) squared
    assert RetainSubspace.fit(pair(1.5 * angle)).rank == 2
    assert RetainSubspace.fit(pair(0.5 * angle)).rank == 1


def test_memory_grows_with_rows_times_parameters_and_nothing_is_parameters_squared():
    count, size = 8, 100_000  # size squared would be forty gigabytes
    rows = rows_of(count, size)
    space = RetainSubspace.fit(rows)
    assert sum(tensor.numel() for tensor in space.tensors().values()) == count * size + count * (space.rank + count) + 3
    tracemalloc.start()
    _resident()
    before = _resident()
    for _ in range(3):
        RetainSubspace.fit(rows).project_out(rows[0])
    grown, (_, peak) = _resident() - before, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20 and grown < 20 * 4 * count * size


def _resident() -> int:
    """The peak of this process so far, in bytes; on Linux reset to what it has now, or earlier tests would hide all."""
    from bench import peak_memory

    peak = int(peak_memory() or 0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak


def test_a_saved_subspace_is_the_same_to_the_bit():
    space = RetainSubspace.fit(rows_of(4, 1000))
    again = RetainSubspace.from_tensors(space.tensors())
    vector = rows_of(1, 1000, 2)[0]
    assert torch.equal(space.project_out(vector), again.project_out(vector))
    assert (again.condition_number, again.gradient_norm_median, again.rank) == (
        space.condition_number, space.gradient_norm_median, space.rank,
    )  # fmt: skip


def test_the_removed_share_is_a_share():
    assert removed_share(2.0, 1.0) == 0.5 and removed_share(0.0, 0.0) == 0.0 and removed_share(1.0, 0.0) == 1.0
    assert removed_share(1.0, 1.0 + 1e-7) == 0.0, "rounding does not make it negative"
