"""RetainSubspace: the directions that retain gradients span, and a step freed of its part in them.

The K x K Gram route (methods.md 1.5): nothing of size P x P, and no P x K basis, is ever formed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

TOLERANCE = 1e-6  # of the largest eigenvalue of the Gram matrix: directions below it are rounding, and are dropped
SMALLEST_NORM = 1e-12
# Smallest quotient of the Gram matrix's eigenvalues that tells the condition number (up to 100) to five digits: the
# matrix squares it, and its rows are rounded to single precision. Beyond, it is computed from the rows as they came.
ACCURATE = 1e-4
SLICE = 65_536  # columns of the rows that are in double precision at once


@dataclass(frozen=True)
class RetainSubspace:
    """`rows` (K, P) normalised gradients; `whitening.T @ rows` is an orthonormal basis of their span.

    `whitening` (K, rank) and `gram` (K, K), the rows' inner products, are float64 and stay on the CPU: they are tiny,
    and not every device has double precision. `condition_number`: of all rows, those too that the basis leaves out as
    nearly dependent. `sizes`: rows of each refresh that is in it, the oldest first.
    """

    rows: Tensor
    whitening: Tensor
    condition_number: float
    gradient_norm_median: float  # of the newest gradients, as they came
    gram: Tensor = field(repr=False)
    sizes: tuple[int, ...]

    @classmethod
    def fit(cls, gradients: Tensor, before: RetainSubspace | None = None, history: int = 1) -> RetainSubspace | None:
        """The span of `gradients` (K, P), float32, and of those of the `history - 1` refreshes `before`.

        None where no gradient is left that is finite and not zero.
        """
        norms = gradients.norm(dim=1)
        usable = (norms > SMALLEST_NORM) & norms.isfinite()
        rows = gradients[usable]
        rows /= norms[usable, None]
        gram = products(rows, rows)
        sizes: tuple[int, ...] = (len(rows),)
        if before is not None and history > 1:
            rows, gram, sizes = before._followed_by(rows, gram, history - 1)
        if not len(rows):
            return None
        values, vectors = torch.linalg.eigh(gram)
        independent = values > TOLERANCE * values[-1]
        whitening = vectors[:, independent] / values[independent].sqrt()
        if values[0] > ACCURATE * values[-1]:
            condition = (values[-1] / values[0]).sqrt().item()
        else:
            condition = condition_number(rows[: len(rows) - sizes[-1]], gradients[usable])
        return cls(rows, whitening, condition, norms.median().item(), gram, sizes)

    def _followed_by(self, rows: Tensor, gram: Tensor, refreshes: int) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        """Rows, Gram matrix and sizes of the last `refreshes` in here and of newer rows. Only their products are new.

        One refresh at a time: its rows in double precision are all that this takes beside the result.
        """
        sizes, first = self.sizes[-refreshes:], sum(self.sizes[:-refreshes])
        older, old = self.rows[first:], self.gram[first:, first:]
        between = torch.cat([products(part, rows) for part in older.split(list(sizes))])
        gram = torch.cat([torch.cat([old, between], 1), torch.cat([between.T, gram], 1)])
        return torch.cat([older, rows]), gram, (*sizes, len(rows))

    @property
    def rank(self) -> int:
        return self.whitening.shape[1]

    def coordinates(self, vector: Tensor) -> Tensor:
        """`vector` (P,) in the orthonormal basis: (rank,), float64."""
        return self.whitening.T @ (self.rows @ vector).cpu().double()

    def part_inside(self, vector: Tensor) -> Tensor:
        """The part of `vector` (P,) that lies in the span."""
        return self.rows.T @ (self.whitening @ self.coordinates(vector)).to(vector)

    def project_out(self, vector: Tensor) -> Tensor:
        """`vector` (P,) without its part in the span. Twice, which brings the rest down to rounding."""
        for _ in range(2):
            vector = vector - self.part_inside(vector)
        return vector

    def tensors(self) -> dict[str, Tensor]:
        numbers = torch.tensor([self.condition_number, self.gradient_norm_median], dtype=torch.float64)
        small = {"whitening": self.whitening, "numbers": numbers, "gram": self.gram, "sizes": torch.tensor(self.sizes)}
        return {"rows": self.rows, **small}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], device: torch.device | str = "cpu") -> RetainSubspace:
        """Copies: where a file was mapped into memory decides how sums over its numbers round."""
        condition, median = tensors["numbers"].tolist()
        whitening, gram = (tensors[name].to("cpu", copy=True) for name in ("whitening", "gram"))
        rows, sizes = tensors["rows"].to(device, copy=True), tuple(tensors["sizes"].tolist())
        return cls(rows, whitening, condition, median, gram, sizes)


def condition_number(*rows: Tensor) -> float:
    """The condition number of all rows (K, P) together, each scaled to length 1: largest by smallest singular value.

    By QR in double precision, slice after slice, so that nothing is squared and no copy is made of the rows; nothing
    is cut off. At most 1 / eps (4.5e15), which double precision cannot tell from linear dependence.
    """
    triangle = torch.empty(0, sum(map(len, rows)), dtype=torch.float64)
    for start in range(0, rows[0].shape[1], SLICE):
        part = in_double(torch.cat([some[:, start : start + SLICE] for some in rows])).T
        triangle = torch.linalg.qr(torch.cat([triangle.to(part.device), part]), mode="r").R
    sizes = torch.linalg.svdvals(triangle.cpu() / triangle.cpu().norm(dim=0))
    smallest = sizes[-1].item() if len(sizes) == triangle.shape[1] else 0.0  # fewer columns than rows: dependent
    return float(sizes[0].item() / max(smallest, sizes[0].item() * torch.finfo(sizes.dtype).eps))


def products(left: Tensor, right: Tensor) -> Tensor:
    """The inner products (K, L) of rows (K, P) with rows (L, P), in float64 on the CPU."""
    wide = in_double(left)
    return (wide @ (wide if right is left else in_double(right)).T).cpu()


def in_double(values: Tensor) -> Tensor:
    """In float64, where they lie: Apple's GPU has no double precision, so from there they are brought over."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def removed_share(before: float, after: float) -> float:
    """The share by which projecting shortened a vector, 0 to 1 (what the first experiment logged, in percent)."""
    return max(0.0, 1 - after / before) if before > 0 else 0.0
