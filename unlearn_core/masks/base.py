"""Mask: the contract of a rule on which trained parameters may change; and what a mask does to a vector."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from unlearn_core.masks.shared.rows import quiet
from unlearn_core.settings.discovery import plugins

if TYPE_CHECKING:
    from unlearn_core.context import RunContext


class Mask:
    """A rule that is applied once, before step 1, without dropout. A file sets `MASK` to its class.

    The best `where.share` of what is ranked may change, to the nearest whole number and at least one; of equals the
    first. A of an adapter stays free as long as its B is zero; of one that is gone on with it is fixed, since it would
    move the fixed rows of B times A.
    """

    label: ClassVar[str]

    def choose(self, context: RunContext) -> Tensor:
        """(P,) True where a parameter may change. Raises ConfigError where a gradient is not finite."""
        raise NotImplementedError


def make_mask(context: RunContext) -> Tensor | None:
    """The mask of the run's settings (where.mask), (P,) bool; None where all parameters may change."""
    name = context.config.where.mask
    if name == "none":
        return None
    with quiet(context.model):
        mask: Tensor = plugins("masks")[name]().choose(context)
    return mask


def masked(vectors: Tensor, mask: Tensor | None) -> Tensor:
    """`vectors` (..., P) with 0 where the mask fixes a parameter; as they are where there is no mask.

    For every gradient and every protected direction *before* a span is fitted to them. The directions then lie among
    the free parameters, so that projecting a masked step leaves it masked, and both hold exactly; masking a step
    after the projection would bring some of the span back.
    """
    return vectors if mask is None else torch.where(mask, vectors, torch.zeros((), device=vectors.device))


def held(values: Tensor, before: Tensor, mask: Tensor | None) -> Tensor:
    """`values` (P,) where the mask lets them change, `before` elsewhere; both to the bit."""
    return values if mask is None else torch.where(mask, values, before)


def masked_share(mask: Tensor | None) -> float:
    """The share of trained parameters that are fixed, 0 to 1."""
    return 0.0 if mask is None else 1 - int(mask.sum()) / mask.numel()
