"""Hidden states after a layer, without running the layers behind it, in any architecture."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from unlearn_core.model.adapters import NOT_LANGUAGE
from unlearn_core.settings.errors import ConfigError


class _Reached(Exception):
    """Raised after the layer, so that later layers are not run."""


def blocks(model: nn.Module) -> nn.ModuleList:
    """The decoder's layers, whatever the architecture calls them: the longest list of modules that is in no other list.

    Experts are lists within a layer, and towers that no text goes through are left out. An adapter around the model
    changes nothing. Raises ConfigError where there is no such list.
    """
    lists = {name: m for name, m in model.named_modules() if isinstance(m, nn.ModuleList)}
    outer = {n: m for n, m in lists.items() if not any(n.startswith(f"{other}.") for other in lists)}
    candidates = [m for name, m in outer.items() if not any(part in name.lower() for part in NOT_LANGUAGE)]
    if not candidates:
        raise ConfigError("This model keeps its layers in no list, so no hidden state after one of them can be read.")
    return max(candidates, key=len)


def hidden_after(model: nn.Module, layer: int, ids: Tensor, mask: Tensor) -> Tensor:
    """Hidden states (rows, positions, width) after `layer` (1 = the first), in float32, where the ids lie.

    Nothing behind that layer is computed: no memory, no gradient there.
    """
    states: list[Tensor] = []

    def stop(module: nn.Module, inputs: Any, output: Any) -> None:
        states.append(output if isinstance(output, Tensor) else output[0])
        raise _Reached

    handle = blocks(model)[layer - 1].register_forward_hook(stop)
    try:
        model(input_ids=ids, attention_mask=mask, use_cache=False)
    except _Reached:
        pass
    finally:
        handle.remove()
    return states[0].to(ids.device).float()
