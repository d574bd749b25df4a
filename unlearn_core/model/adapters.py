"""LoRA adapters: on which layers, fresh or continued, as one vector, and as files in PEFT's own format."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import regex
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFT_MAPPING
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from unlearn_core.model import hub_cache
from unlearn_core.settings.errors import ConfigError, first_line, written
from unlearn_core.settings.sections import LoraSettings, ModelSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTER = "adapter_model.safetensors"
WEIGHTS = "model.safetensors"  # where the weights themselves are trained
# How architectures name what makes queries and values; the first that a model has is taken.
QUERY_AND_VALUE = (
    ("q_proj", "v_proj"), ("q_b_proj", "kv_b_proj"), ("q_proj", "kv_b_proj"), ("query", "value"),
    ("query_proj", "value_proj"), ("q", "v"), ("wq", "wv"), ("q_lin", "v_lin"),
    ("query_key_value",), ("qkv_proj",), ("c_attn",), ("Wqkv",), ("qkv",), ("in_proj_qkv",), ("att_proj",),
)  # fmt: skip
NOT_LANGUAGE = ("vision", "visual", "image", "audio", "multi_modal")  # towers that no text goes through
# Of an adapter_config.json: what is taken over, and what does not matter. Anything else that is set is refused.
TAKEN = ("r", "target_modules", "exclude_modules", "lora_alpha", "fan_in_fan_out", "use_rslora", "layers_to_transform",
         "layers_pattern", "rank_pattern", "alpha_pattern")  # fmt: skip
PASSED_OVER = ("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
               "inference_mode", "lora_dropout", "init_lora_weights", "megatron_core", "qalora_group_size",
               "runtime_config", "loftq_config", "eva_config")  # fmt: skip
STARTS = (None, True, False, "gaussian", "eva", "orthogonal")  # other ways to start change the base weights as well
LOAD_ERRORS = (OSError, RuntimeError, ValueError, TypeError, SafetensorError)
SECONDS_A_NAME = 0.2  # in which a pattern tells whether it chooses a layer
TABLE, PREFIX = ".lora_embedding_", "base_model.model."  # in PEFT's names of an adapter's tensors
EARLIER = "earlier_"  # and a number: PEFT's names of the adapters of earlier requests, beside the run's own "default"


def linear_layers(base: nn.Module) -> dict[str, nn.Module]:
    """Every layer that an adapter can be put on, by its full name, the output layer included."""
    return {name: module for name, module in base.named_modules() if isinstance(module, nn.Linear | Conv1D)}


def kind(name: str) -> str:
    """The last part of a layer's name: q_proj, c_attn."""
    return name.rsplit(".", 1)[-1]


def chosen_layers(base: PreTrainedModel, modules: str) -> dict[str, nn.Module]:
    """The layers that `lora.modules` means in this model, by their full names. Raises ConfigError with those it has."""
    layers = linear_layers(base)
    output = base.get_output_embeddings()
    tied = output is not None and output.weight is base.get_input_embeddings().weight
    text = {name: layer for name, layer in layers.items() if not any(part in name.lower() for part in NOT_LANGUAGE)}
    inner = {name: layer for name, layer in text.items() if layer is not output}
    kinds = {kind(name) for name in inner}
    if modules == "all-linear":
        return inner
    if modules == "auto":
        mapped = PEFT_MAPPING.get(str(base.config.model_type), ())
        known = (*QUERY_AND_VALUE, tuple(mapped) if not isinstance(mapped, str) else ())
        names: Sequence[str] = next((family for family in known if family and kinds.issuperset(family)), ())
    else:
        names = [name.strip() for name in modules.split(",") if name.strip()]
    chosen = {layer: text[layer] for layer in text if any(f".{layer}".endswith(f".{name}") for name in names)}
    missing = [name for name in names if not any(f".{layer}".endswith(f".{name}") for layer in chosen)]
    if not chosen or missing:
        raise ConfigError(
            f"the layers of this model are {', '.join(sorted(kinds))}",
            field="lora.modules",
            value=modules,
            fix="Name those of queries and values" if modules == "auto" else "Name some of them, auto or all-linear",
        )
    if tied and any(layer is output for layer in chosen.values()):
        raise ConfigError(
            "the output layer of this model shares its weights with the input embedding, so it cannot have an adapter "
            "of its own",
            field="lora.modules",
            value=modules,
            fix="Leave it out",
        )
    return chosen


def with_adapter(base: PreTrainedModel, lora: LoraSettings, seed: int, start: Path | None = None) -> PeftModel:
    """A LoRA adapter on `base`, in float32 whatever the base is in.

    A fresh one: A drawn from `seed`, B zero, so that nothing has changed yet. Or that of the folder `start`, with its
    own rank, scale and layers: the export is then that adapter, gone on with, for the same base model.
    """
    torch.manual_seed(seed)
    if start is not None:
        return _continued(base, start, lora.dropout)
    layers = chosen_layers(base, lora.modules)
    kinds = {kind(name) for name in layers}
    # As short names where they mean just these layers, which is how PEFT's own adapters are written.
    short = {name for name in linear_layers(base) if kind(name) in kinds} == set(layers)
    adapter = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # PEFT takes any number
        lora_dropout=lora.dropout,
        target_modules=sorted(kinds if short else layers),
        fan_in_fan_out=all(isinstance(layer, Conv1D) for layer in layers.values()),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(base, adapter)


def adapter_settings(folder: Path, field: str = "model.adapter") -> dict[str, Any]:
    """PEFT's settings of the adapter in a folder. Raises ConfigError where it holds no adapter that can be trained on.

    `field`: the setting that names the folder.
    """

    def refusal(reason: str, fix: str = "") -> ConfigError:
        return ConfigError(reason, field=field, value=str(folder), fix=fix)

    if not (folder / "adapter_config.json").is_file():
        raise refusal("there is no folder of that name with an adapter_config.json in it")
    try:
        settings = dict(json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise refusal(f"its adapter_config.json cannot be read: {first_line(error)}") from None
    if settings.get("peft_type") != "LORA":
        raise refusal(f"its peft_type is {settings.get('peft_type')!r}, and only LORA can be continued")
    if not (folder / ADAPTER).is_file():
        others = ", ".join(sorted(path.name for path in folder.glob("adapter_model*"))) or "no weights"
        raise refusal(
            f"it has {others}, and only {ADAPTER} is read",
            "To convert one that you trust: load it with PeftModel.from_pretrained and call save_pretrained",
        )
    defaults = LoraConfig(target_modules=["any"]).to_dict()
    for key, value in settings.items():
        is_default = value == defaults.get(key) or not value or value == "none"
        if key not in (*TAKEN, *PASSED_OVER) and not is_default:
            raise refusal(f"its {key} is {value!r}, and only plain LoRA can be continued")
    start = settings.get("init_lora_weights")
    if start not in STARTS:
        raise refusal(f"it was initialized by {start!r}, which changes the base weights", "Merge it into them")
    if rank := _impossible_rank(settings, folder):
        raise refusal(f"its adapter_config.json says rank {rank}, which its weights do not have")
    if tables := sorted({name.rpartition(".lora_embedding_")[0] for name in _names(folder) if TABLE in name}):
        layers = ", ".join(name.removeprefix(PREFIX) for name in tables)
        raise refusal(
            f"it adapts {layers}, and only adapters of linear layers can be continued", "Merge it into the base"
        )
    return {key: settings[key] for key in TAKEN if settings.get(key) is not None}


def adapter_shapes(folder: Path) -> dict[str, list[int]]:
    """The shapes of a saved adapter's tensors, from the file's header. Raises ConfigError where it cannot be read."""
    adapter_settings(folder)
    try:
        with safe_open(folder / ADAPTER, "pt") as file:
            return {name: list(file.get_slice(name).get_shape()) for name in file.keys() if ".lora_" in name}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{ADAPTER} is damaged ({error})", field="model.adapter", value=str(folder)) from None


def _names(folder: Path) -> list[str]:
    """The names of an adapter's tensors; none where the file is damaged, which is told when it is loaded."""
    return list(_shapes(folder))


def _shapes(folder: Path) -> dict[str, list[int]]:
    """Name -> shape of an adapter's tensors, as `_names`."""
    try:
        with safe_open(folder / ADAPTER, "pt") as file:
            return {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return {}


def _impossible_rank(settings: Mapping[str, Any], folder: Path) -> str:
    """A rank that no tensor of the file has, for which PEFT would take memory all the same; empty without one."""
    widest = max((size for shape in _shapes(folder).values() for size in shape), default=0)
    pattern = settings.get("rank_pattern")
    ranks = [settings.get("r", 1), *(pattern.values() if isinstance(pattern, Mapping) else ())]
    wrong = [rank for rank in ranks if not isinstance(rank, int) or (widest and not 0 < rank <= widest)]
    return written(wrong[0]) if wrong else ""


def _check_patterns(model: nn.Module, settings: Mapping[str, Any]) -> None:
    """Raises ValueError where a pattern that chooses layers would take for ever on this model's names."""
    named = [
        settings[key]
        for key in ("target_modules", "exclude_modules", "layers_pattern")
        if isinstance(settings.get(key), str)
    ]
    patterns = [*named, *(key for name in ("rank_pattern", "alpha_pattern") for key in settings.get(name) or ())]
    try:
        for pattern in patterns:
            for name, _ in model.named_modules():
                regex.fullmatch(pattern, name, timeout=SECONDS_A_NAME)
    except (TimeoutError, regex.error):
        raise ValueError(f"the pattern {written(pattern)} in its adapter_config.json cannot be searched for") from None


def another_base(folder: Path, source: str, model: Path) -> str:
    """A sentence where the adapter in `folder` names another base than the model it is put on; empty where it does not.

    `source` and `model`: the model as it was named, and its folder. Names are compared without the folders in front of
    them; whether an adapter fits is a question of shapes, and two models may have the same.
    """
    try:
        settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        named = str(settings.get("base_model_name_or_path") or "")
    except (OSError, ValueError, AttributeError, RecursionError):
        return ""
    ours = {source, str(model), hub_cache.name(model), Path(source).name, model.name} - {""}
    theirs = {named, hub_cache.named_in(named), named.rstrip("/").rpartition("/")[2]} - {""}
    if not named or {name.lower() for name in ours} & {name.lower() for name in theirs}:
        return ""
    return f"the adapter in {folder} was made for {named} and is put on {source}, which may be another model"


def _continued(base: PreTrainedModel, folder: Path, dropout: float) -> PeftModel:
    settings = adapter_settings(folder)
    try:
        output = _tied_output(base)
        _check_patterns(base, settings)
        model = get_peft_model(base, LoraConfig(**settings, lora_dropout=dropout, task_type="CAUSAL_LM"))
        if output in adapted_layers(model):
            raise ValueError(f"it adapts {output}, which shares its weights with the input embedding here")
        _load_numbers(model, folder)
    except LOAD_ERRORS as error:
        raise _does_not_fit("model.adapter", folder, error) from None
    return model


def _tied_output(base: PreTrainedModel) -> str:
    """The name of the output layer where it shares its weights with the input embedding; else empty."""
    output = base.get_output_embeddings()
    if output is None or output.weight is not base.get_input_embeddings().weight:
        return ""
    return next(str(name) for name, module in base.named_modules() if module is output)


def _does_not_fit(field: str, folder: Path, error: Exception) -> ConfigError:
    return ConfigError(f"it does not fit this model: {first_line(error)}", field=field, value=str(folder))


def beside(model: nn.Module) -> list[str]:
    """PEFT's names of the adapters that a method trains beside "default"."""
    names = model.peft_config if isinstance(model, PeftModel) else ()
    return [name for name in names if name != "default" and not name.startswith(EARLIER)]


def add_beside(model: PeftModel, names: Sequence[str]) -> None:
    """Fresh adapters like "default", trained and in every forward pass with it. Saved in folders of their names."""
    for name in names:
        model.add_adapter(name, copy.deepcopy(model.peft_config["default"]))
    if names:
        model.base_model.set_adapter(["default", *names])  # type: ignore[operator]


def adapters_of(settings: ModelSettings) -> list[Path]:
    """The folders of the adapter to start from, if any, and of earlier ones."""
    return [Path(folder).expanduser() for folder in (settings.adapter, *settings.earlier) if folder]


def earlier_folders(settings: ModelSettings) -> list[Path]:
    """The folders of `model.earlier`. Raises ConfigError where one cannot be read, or would be added twice."""
    folders = [Path(folder).expanduser() for folder in settings.earlier]
    for index, folder in enumerate(folders):
        adapter_settings(folder, "model.earlier")
        doubled = "its effect would be doubled"
        if folder in folders[:index]:
            raise ConfigError(
                f"it is named twice, and {doubled}", field="model.earlier", value=str(folder), fix="Name it once"
            )
        if settings.adapter and folder == Path(settings.adapter).expanduser():
            raise ConfigError(
                f"they are the same, and {doubled}",
                field="model.earlier",
                value=str(folder),
                others={"model.adapter": settings.adapter},
                fix="Name it once",
            )
    return folders


def add_earlier(model: PeftModel, folders: Sequence[Path]) -> None:
    """Adapters of earlier requests beside the run's own: in every forward pass, in float32, and never trained.

    `disable_adapter` would switch them off as well, and makes them trainable when it ends: a run that has them knows
    the model as it began by its own adapter's numbers instead (LoadedModel.start). Raises ConfigError where one cannot
    be loaded.
    """
    names = [f"{EARLIER}{number}" for number in range(len(folders))]
    for name, folder in zip(names, folders, strict=True):
        settings = adapter_settings(folder, "model.earlier")
        try:
            _check_patterns(model, settings)
            model.add_adapter(name, LoraConfig(**settings, lora_dropout=0.0, task_type="CAUSAL_LM"))
            _load_numbers(model, folder, name)
        except LOAD_ERRORS as error:
            raise _does_not_fit("model.earlier", folder, error) from None
    model.base_model.set_adapter(["default", *beside(model), *names])  # type: ignore[operator]
    for key, parameter in model.named_parameters():
        if f".{EARLIER}" in key:
            parameter.requires_grad_(False)


def adapted_layers(model: nn.Module) -> list[str]:
    """The names of the layers that carry the run's own adapter, as the base model has them."""
    layers = (name for name, module in model.named_modules() if isinstance(module, LoraLayer) and "default" in module.r)
    return [name.removeprefix("base_model.model.") for name in layers]


def save_adapter(model: nn.Module, folder: Path) -> None:
    """In PEFT's own format; `PeftModel.from_pretrained(base, folder)` loads it. Asks the hub for nothing.

    Adapters of earlier requests stay in their own folders: each can be removed by itself.
    Of a model whose own weights are trained: as transformers has it, `AutoModelForCausalLM.from_pretrained(folder)`.
    """
    if isinstance(model, PeftModel):
        own = [name for name in model.peft_config if not name.startswith(EARLIER)]
        model.save_pretrained(str(folder), save_embedding_layers=False, selected_adapters=own)
        (folder / "README.md").unlink(missing_ok=True)  # a model card with nothing filled in
    else:
        model.save_pretrained(str(folder), max_shard_size="1000GB")  # type: ignore[operator]


def is_saved(folder: Path) -> bool:
    """True where a folder has an adapter or trained weights."""
    return (folder / ADAPTER).is_file() or (folder / WEIGHTS).is_file()


def read_adapter(model: nn.Module, folder: Path) -> None:
    """Copies a saved adapter's numbers (or saved weights) into `model`, in place (the one vector stays one vector).

    Raises ConfigError where the file is gone, damaged or that of an adapter of another shape; then nothing has changed.
    """
    try:
        _load_numbers(model, folder)
    except LOAD_ERRORS as error:
        raise ConfigError(f"The adapter of {folder.name} cannot be read: {first_line(error)}") from None


def _load_numbers(model: nn.Module, folder: Path, earlier: str = "") -> None:
    """`earlier`: PEFT's name of an earlier request's adapter, where it is not the run's own that is read.

    Raises one of LOAD_ERRORS, with nothing changed.
    """
    adapted = isinstance(model, PeftModel)
    saved: dict[str, Any] = load_file(folder / (ADAPTER if adapted else WEIGHTS))
    for name in () if earlier else beside(model):
        own = load_file(folder / name / ADAPTER).items()
        saved |= {f"{key.removesuffix('.weight')}.{name}.weight": value for key, value in own}
    parameters = {
        name.replace(f".{earlier or 'default'}.weight", ".weight"): parameter
        for name, parameter in model.named_parameters()
        if (f".{earlier}." in name if earlier else parameter.requires_grad and f".{EARLIER}" not in name)
    }
    if not adapted:  # buffers may be saved as well
        saved = {name: value for name, value in saved.items() if name in parameters}
    if adapted:  # PEFT writes whole layers beside adapters of the embeddings
        saved = _without_the_base(model, saved, set(parameters))
    if unmatched := sorted(set(saved) ^ set(parameters)):
        where = "only the file" if unmatched[0] in saved else "only the model"
        raise ValueError(f"{where} has {unmatched[0]}")
    for name, parameter in parameters.items():
        if saved[name].shape != parameter.shape:
            shapes = (list(saved[name].shape), list(parameter.shape))
            raise ValueError(f"{name} has the shape {shapes[0]}, where the model wants {shapes[1]}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(saved[name])


def _without_the_base(model: nn.Module, saved: dict[str, Tensor], own: set[str]) -> dict[str, Tensor]:
    """An adapter's tensors without those of whole layers, which must be this model's. Raises ValueError if not."""
    base = {name: tensor for name, tensor in model.named_parameters(remove_duplicate=False) if name not in own}
    others = [name for name in saved if name in base and not _same(saved[name], base[name])]
    if others:
        layers = ", ".join(name.removeprefix(PREFIX).replace(".base_layer", "") for name in sorted(others))
        raise ValueError(f"beside the adapter it has weights of {layers} that are not this model's")
    return {name: tensor for name, tensor in saved.items() if name not in base}


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same numbers, in the coarser of their formats."""
    if one.shape != other.shape:
        return False
    kind = min(one.dtype, other.dtype, key=lambda kind: (kind.itemsize, kind == torch.float16))
    return torch.equal(one.to(kind), other.detach().cpu().to(kind))


class AdapterVector:
    """All trainable parameters as one float32 vector (P,): `values` and `gradient` share memory with the model's own.

    One vector makes an optimizer step, a projection, a snapshot and a comparison each a single operation. Layers that
    lie on another device (model.spread) cannot share it: they get its numbers by `scatter`, and `gather` reads theirs.
    """

    def __init__(self, model: nn.Module) -> None:
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        home = next(model.parameters()).device
        total = sum(p.numel() for _, p in named)
        self.values = nn.Parameter(torch.cat([p.detach().to(home).float().reshape(-1) for _, p in named]))
        self.gradient = torch.zeros(total, device=home)
        self._parts: dict[str, slice] = {}
        self.apart: list[tuple[nn.Parameter, slice]] = []  # the layers on other devices
        offset = 0
        for name, parameter in named:
            part = self._parts[name] = slice(offset, offset + parameter.numel())
            if self.lies_apart(parameter):
                self.apart.append((parameter, part))
            else:
                parameter.data = self.values.data[part].view_as(parameter)
                parameter.grad = self.gradient[part].view_as(parameter)
            offset += parameter.numel()
        self.values.grad = self.gradient

    def lies_apart(self, parameter: nn.Parameter) -> bool:
        """Whether a parameter is on another device than the vector."""
        return parameter.device != self.values.device

    def scatter(self) -> None:
        """To be called when `values` has changed: layers on other devices follow."""
        for parameter, part in self.apart:
            parameter.data.copy_(self.values.data[part].view_as(parameter))

    def gather(self) -> None:
        """To be called when the model's parameters have changed: `values` follows those on other devices."""
        for parameter, part in self.apart:
            self.values.data[part].copy_(parameter.data.reshape(-1))

    def gradient_of(self, loss: Tensor) -> Tensor:
        """The gradient of `loss` as a new vector (P,). What was accumulated before is cleared first, and afterwards."""
        self.gradient.zero_()
        for parameter, _ in self.apart:
            parameter.grad = None
        loss.backward()
        for parameter, part in self.apart:
            if parameter.grad is not None:
                self.gradient[part].copy_(parameter.grad.reshape(-1))
        gradient = self.gradient.clone()
        self.gradient.zero_()
        return gradient

    def parts(self) -> dict[str, slice]:
        """Where each trainable tensor lies in the vector, by its name, in the vector's order."""
        return dict(self._parts)

    @property
    def layers(self) -> list[str]:
        """The adapted layers, as the base model names them."""
        return [name.removeprefix("base_model.model.").partition(".lora_B")[0] for name in self._b_parts()]

    def _b_parts(self) -> dict[str, slice]:
        """Where B of each layer's own adapter lies; that of experts not, which no token may have gone to."""
        own = {name: part for name, part in self._parts.items() if ".lora_B.default" in name}
        return {name: part for name, part in own.items() if ".experts." not in name}

    def untouched(self, change: Tensor) -> list[str]:
        """The layers whose B has no part in a change or a gradient (P,)."""
        parts = zip(self.layers, self._b_parts().values(), strict=True)
        return [layer for layer, part in parts if not change[part].any()]
