"""RetainSubspace: the directions that retain gradients span, and a step freed of its part in them.

The K x K Gram route (methods.md 1.5): nothing of size P x P, and no P x K basis, is ever formed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

TOLERANCE = 1e-6  # of the largest eigenvalue of the Gram matrix: directions below it are rounding, and are dropped
SMALLEST_NORM = 1e-12


@dataclass(frozen=True)
class RetainSubspace:
    """`rows` (K, P) normalised gradients; `whitening.T @ rows` is an orthonormal basis of their span.

    `whitening` (K, rank) is float64 and stays on the CPU: it is tiny, and not every device has double precision.
    """

    rows: Tensor
    whitening: Tensor
    condition_number: float
    gradient_norm_median: float

    @classmethod
    def fit(cls, gradients: Tensor) -> RetainSubspace | None:
        """The span of `gradients` (K, P), float32. None where no gradient is left that is finite and not zero."""
        norms = gradients.norm(dim=1)
        kept = (norms > SMALLEST_NORM) & norms.isfinite()
        if not kept.any():
            return None
        rows = gradients[kept] / norms[kept, None]
        # Apple's GPU has no double precision: there the rows are brought over for this one product.
        wide = (rows.cpu() if rows.device.type == "mps" else rows).double()
        values, vectors = torch.linalg.eigh((wide @ wide.T).cpu())
        independent = values > TOLERANCE * values[-1]
        whitening = vectors[:, independent] / values[independent].sqrt()
        condition = (values[-1] / values[independent][0]).sqrt().item()
        return cls(rows, whitening, condition, norms.median().item())

    @property
    def rank(self) -> int:
        return self.whitening.shape[1]

    def coordinates(self, vector: Tensor) -> Tensor:
        """`vector` (P,) in the orthonormal basis: (rank,), float64."""
        return self.whitening.T @ (self.rows @ vector).cpu().double()

    def project_out(self, vector: Tensor) -> Tensor:
        """`vector` (P,) without its part in the span. Twice, which brings the rest down to rounding."""
        for _ in range(2):
            vector = vector - self.rows.T @ (self.whitening @ self.coordinates(vector)).to(vector)
        return vector

    def tensors(self) -> dict[str, Tensor]:
        numbers = torch.tensor([self.condition_number, self.gradient_norm_median], dtype=torch.float64)
        return {"rows": self.rows, "whitening": self.whitening, "numbers": numbers}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], device: torch.device | str = "cpu") -> RetainSubspace:
        condition, median = tensors["numbers"].tolist()
        return cls(tensors["rows"].to(device), tensors["whitening"], condition, median)


def removed_share(before: float, after: float) -> float:
    """The share by which projecting shortened a vector, 0 to 1 (what the first experiment logged, in percent)."""
    return max(0.0, 1 - after / before) if before > 0 else 0.0
