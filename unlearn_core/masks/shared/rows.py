"""Rows of layers, scored and chosen, as a mask over the trained vector."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from unlearn_core.model.adapters import chosen_layers
from unlearn_core.model.batches import collate
from unlearn_core.model.losses import nll
from unlearn_core.settings.errors import ConfigError

if TYPE_CHECKING:
    from unlearn_core.context import RunContext
    from unlearn_core.model.window import Window


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Within: no dropout, and gradients. Checkpointed layers then keep what they compute, for one text at a time."""
    was_training = model.training
    model.eval()
    try:
        with torch.enable_grad():
            yield
    finally:
        model.train(was_training)


def losses(context: RunContext, windows: Sequence[Window], stage: str, summed: bool = False) -> Iterator[Tensor]:
    """The loss of each window by itself, with its graph: nats a token, or with `summed` of all its labelled tokens."""
    for number, window in enumerate(windows, 1):
        context.report(f"{stage} for the mask", f"{number} of {len(windows)}")
        of_window = nll(context.model, collate([window], context.pad_id, context.device))
        yield (of_window.sum if summed else of_window.mean_per_token).sum()


def masked_layers(context: RunContext) -> dict[str, Any]:
    """The layers whose rows a mask chooses, by their names in `run.model`: the adapted ones, or all linear ones."""
    if context.config.where.kind == "full":
        return chosen_layers(context.model, "all-linear")
    adapted = {name.partition(".lora_")[0]: None for name in context.adapter.parts()}
    layers = {name: context.model.get_submodule(name) for name in adapted}
    return {name: layer for name, layer in layers.items() if isinstance(base_of(layer), nn.Linear | Conv1D)}


def base_of(layer: Any) -> Any:
    """The layer that an adapter is on, or the layer itself."""
    return layer.get_base_layer() if isinstance(layer, LoraLayer) else layer


def outputs_of(layer: Any) -> int:
    """Rows of a linear layer, whichever way its weight lies."""
    return int(layer.nf if isinstance(layer, Conv1D) else layer.out_features)


def finite(scores: Tensor, name: str) -> Tensor:
    """`scores`. Raises ConfigError where one is not a finite number."""
    if not scores.isfinite().all():
        raise ConfigError(
            f"No mask can be made: the gradient of the loss is not finite in {name}. Set model.dtype to 'float32' or "
            "'bfloat16', or where.mask to 'none'."
        )
    return scores


def top(scores: Tensor, share: float) -> Tensor:
    """True at the highest `share` of scores, to the nearest whole number and at least one; of equals the first."""
    flat = scores.detach().flatten().cpu()
    count = max(1, round(share * flat.numel()))
    limit = flat.kthvalue(flat.numel() - count + 1).values
    best = flat > limit
    equal = (flat == limit).nonzero().flatten()
    best[equal[: count - int(best.sum())]] = True
    return best.view(scores.shape).to(scores.device)


def chosen(scores: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """The best share of all scores, ranked together, by layer."""
    if not scores:
        return {}
    best = top(torch.cat(list(scores.values())), share)
    return dict(zip(scores, best.split([len(score) for score in scores.values()]), strict=True))


def mask_of_adapter(context: RunContext, rows: Mapping[str, Tensor]) -> Tensor:
    """(P,): the chosen rows of each B, and A as long as its B is zero."""
    parts, values = context.adapter.parts(), context.adapter.values.detach()
    mask = torch.zeros_like(values, dtype=torch.bool)
    for name, part in parts.items():
        layer = name.partition(".lora_")[0]
        if layer not in rows:
            continue
        if ".lora_A." in name:
            mask[part] = not values[parts[name.replace(".lora_A.", ".lora_B.")]].any()
        elif ".lora_B." in name:
            mask[part].view(len(rows[layer]), -1)[rows[layer]] = True
    return mask


def mask_of_weights(context: RunContext, rows: Mapping[str, Tensor]) -> Tensor:
    """(P,): the chosen rows of each linear layer's weight and bias, nothing else."""
    parts, mask = context.adapter.parts(), torch.zeros_like(context.adapter.values, dtype=torch.bool)
    names = {parameter: name for name, parameter in context.model.named_parameters()}
    for name, layer in masked_layers(context).items():
        for parameter in layer.parameters(recurse=False):
            place = mask[parts[names[parameter]]].view(parameter.shape)
            if isinstance(layer, Conv1D) and parameter.dim() == 2:
                place[:, rows[name]] = True
            else:
                place[rows[name]] = True
    return mask
