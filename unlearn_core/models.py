"""Base model + LoRA: load_model(), the reference = adapter off, and the adapter as one vector."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from unlearn_core.config import ConfigError, LoraSettings, ModelSettings
from unlearn_core.windows import Window
from unlearn_core.world import FULL

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


PASS_TOKENS = 64  # what a forward pass is taken to cost beside its arithmetic, in tokens
MOST_TOKENS = 2048  # in one forward pass


@dataclass(frozen=True)
class NLL:
    """Negative log-likelihood of the labelled tokens, in nats: `tokens` (rows, positions), 0 without a label."""

    tokens: Tensor
    count: Tensor  # (rows,) labelled tokens, at least 1

    @property
    def sum(self) -> Tensor:
        return self.tokens.sum(1)

    @property
    def mean_per_token(self) -> Tensor:
        return self.sum / self.count


@dataclass(frozen=True)
class Tokens:
    """Windows as tensors, each (rows, longest row). Padding (right) has no label and no attention."""

    ids: Tensor
    labels: Tensor
    mask: Tensor
    windows: tuple[Window, ...]
    groups: tuple[tuple[int, ...], ...]  # rows of similar length, which go through the model together


@dataclass(frozen=True)
class Batch:
    """What one step learns from; a set that the data does not have is None."""

    forget: Tokens
    retain: Tokens | None
    neighbour: Tokens | None


def collate(windows: Sequence[Window], pad_id: int, device: torch.device | str = "cpu") -> Tokens:
    """Pads on the right. The mask comes from true lengths, never from `id != pad`: that token may be in the text."""
    longest = max(len(window) for window in windows)
    ids = torch.full((len(windows), longest), pad_id)
    labels = torch.full((len(windows), longest), -100)
    mask = torch.zeros((len(windows), longest), dtype=torch.long)
    for row, window in enumerate(windows):
        length, first = len(window), max(1, window.first_loss)
        ids[row, :length] = torch.tensor(window.ids)
        labels[row, first:length] = ids[row, first:length]
        mask[row, :length] = 1
    groups = rows_of_similar_length([len(window) for window in windows])
    return Tokens(ids.to(device), labels.to(device), mask.to(device), tuple(windows), groups)


def rows_of_similar_length(lengths: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """The cheapest partition of rows into forward passes: a pass costs its rows times its longest row, and PASS_TOKENS.

    Short questions beside a long passage would otherwise be mostly padding. No group holds more than MOST_TOKENS
    (unless a single row does).
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    cheapest, cut = [0], [0]  # cheapest[j]: cost of the j shortest rows; cut[j]: where their last group begins
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        starts = [s for s in range(end) if (end - s) * longest <= MOST_TOKENS] or [end - 1]
        costs = [cheapest[start] + (end - start) * longest + PASS_TOKENS for start in starts]
        best = min(range(len(starts)), key=costs.__getitem__)
        cheapest.append(costs[best])
        cut.append(starts[best])
    groups, end = [], len(order)
    while end:
        groups.append(tuple(order[cut[end] : end]))
        end = cut[end]
    return tuple(groups)


def nll(model: nn.Module, tokens: Tokens) -> NLL:
    """The loss of every labelled token, in one forward pass per group of rows of similar length."""
    positions = tokens.ids.shape[1] - 1
    found = []
    for group in tokens.groups:
        rows = list(group)
        width = max(len(tokens.windows[row]) for row in rows)
        ids, mask, labels = (part[rows, :width] for part in (tokens.ids, tokens.mask, tokens.labels))
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
        losses = nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100, reduction="none"
        ).view(len(rows), width - 1)
        found.append(nn.functional.pad(losses, (0, positions - (width - 1))))
    order = [row for group in tokens.groups for row in group]
    back = sorted(range(len(order)), key=order.__getitem__)
    count = (tokens.labels[:, 1:] != -100).sum(1).clamp(min=1)
    return NLL(torch.cat(found)[back], count)


def token_mean(losses: NLL) -> Tensor:
    """Mean over all labelled tokens of a batch: every token counts the same, however long its text."""
    return losses.sum.sum() / losses.count.sum()


def keep_loss(model: nn.Module, batch: Batch, retain_weight: float, neighbour_weight: float) -> Tensor | None:
    """The weighted NLL of what shall be kept, or None where both weights are 0 (or the sets are empty)."""
    weighted = ((retain_weight, batch.retain), (neighbour_weight, batch.neighbour))
    terms = [weight * token_mean(nll(model, tokens)) for weight, tokens in weighted if weight and tokens is not None]
    return sum(terms[1:], terms[0]) if terms else None


class Reference:
    """The model as it was before step 1: the same weights with the adapter switched off, no second copy."""

    def __init__(self, model: PeftModel) -> None:
        self.model = model
        self._known: dict[Window, Tensor] = {}

    @contextmanager
    def __call__(self) -> Iterator[PeftModel]:
        """Within: adapter off, dropout off, no gradients."""
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad(), self.model.disable_adapter():
                yield self.model
        finally:
            self.model.train(was_training)

    def nll(self, tokens: Tokens) -> NLL:
        """Its NLL of the same rows; measured once per window, since it never changes.

        Each window by itself: rounding depends on the rows beside it, and a resumed run meets it beside other rows.
        """
        if unknown := [window for window in tokens.windows if window not in self._known]:
            with self() as model:
                for window in unknown:
                    self._known[window] = nll(model, collate([window], 0, tokens.ids.device)).tokens[0]
        losses = nn.utils.rnn.pad_sequence([self._known[window] for window in tokens.windows], batch_first=True)
        return NLL(losses, (tokens.labels[:, 1:] != -100).sum(1).clamp(min=1))


class AdapterVector:
    """All trainable parameters as one float32 vector (P,): `values` and `gradient` share memory with the model's own.

    One vector makes an optimizer step, a projection, a snapshot and a comparison each a single operation.
    """

    def __init__(self, model: nn.Module) -> None:
        parameters = [p for p in model.parameters() if p.requires_grad]
        total = sum(p.numel() for p in parameters)
        self.values = nn.Parameter(torch.cat([p.detach().float().reshape(-1) for p in parameters]))
        self.gradient = torch.zeros(total, device=self.values.device)
        offset = 0
        for parameter in parameters:
            part = slice(offset, offset + parameter.numel())
            parameter.data = self.values.data[part].view_as(parameter)
            parameter.grad = self.gradient[part].view_as(parameter)
            offset += parameter.numel()
        self.values.grad = self.gradient

    def gradient_of(self, loss: Tensor) -> Tensor:
        """The gradient of `loss` as a new vector (P,). What was accumulated before is cleared first, and afterwards."""
        self.gradient.zero_()
        loss.backward()
        found = self.gradient.clone()
        self.gradient.zero_()
        return found


@dataclass
class LoadedModel:
    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    limit: int  # tokens that the model can read
    fingerprint: str  # SHA-256 of the weights
    modules: tuple[str, ...]  # names of the adapted layers' kinds


def folder_of(settings: ModelSettings) -> Path:
    """Where the model lies. Raises ConfigError where there is none, or none in safetensors."""
    folder = FULL if settings.source == "bundled" else Path(settings.source).expanduser()
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"model.source is {settings.source!r}; there is no folder of that name with a config.json in it."
        )
    if not list(folder.glob("*.safetensors")):
        raise ConfigError(f"model.source is {settings.source!r}; it has no weights in safetensors format.")
    return folder


def load_base(folder: Path, dtype: str = "auto") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model on the CPU, dropout off, and its tokenizer, which has a padding token afterwards."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)  # any will do: it is masked
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32 if dtype == "auto" else getattr(torch, dtype), use_safetensors=True)
    return model.eval(), tokenizer


def with_adapter(base: PreTrainedModel, lora: LoraSettings, seed: int) -> PeftModel:
    """A fresh LoRA adapter on `base`: A drawn from `seed`, B zero, so that nothing has changed yet."""
    torch.manual_seed(seed)
    names = None if lora.modules == "auto" else [name.strip() for name in lora.modules.split(",") if name.strip()]
    adapter = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # PEFT takes any number
        lora_dropout=lora.dropout,
        target_modules=names,
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(base, adapter)
    except ValueError:
        kinds = sorted(
            {name.rsplit(".", 1)[-1] for name, module in base.named_modules() if isinstance(module, nn.Linear)}
        )
        raise ConfigError(f"lora.modules is {lora.modules!r}; this model has {', '.join(kinds)}.") from None


def device_of(settings: ModelSettings) -> str:
    """The device that was asked for, or the best that torch sees. Raises ConfigError where it is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if settings.device == "auto":
        return next(name for name, available in there.items() if available)
    if not there[settings.device]:
        found = ", ".join(name for name, available in there.items() if available)
        raise ConfigError(f"model.device is {settings.device!r}; torch sees only {found} on this machine.")
    return settings.device


def load_model(settings: ModelSettings, lora: LoraSettings, seed: int) -> LoadedModel:
    """The base model frozen, a fresh adapter on it, and its tokenizer. Raises ConfigError where it cannot be."""
    folder, device = folder_of(settings), device_of(settings)
    try:
        base, tokenizer = load_base(folder, settings.dtype)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ConfigError(f"model.source is {settings.source!r}; it cannot be loaded: {reason}.") from error
    model = with_adapter(base, lora, seed).to(device)
    limit = int(getattr(model.config, "max_position_embeddings", 0) or getattr(model.config, "n_positions", 1024))
    modules = tuple(sorted(getattr(model.peft_config["default"], "target_modules", ())))
    return LoadedModel(model, tokenizer, limit, fingerprint(folder), modules)


def fingerprint(folder: Path) -> str:
    """SHA-256 of the weights in a folder, as hexadecimal digits."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def save_adapter(model: PeftModel, folder: Path) -> None:
    """In PEFT's own format; `PeftModel.from_pretrained(base, folder)` loads it."""
    model.save_pretrained(str(folder))


def read_adapter(model: PeftModel, folder: Path) -> None:
    """Puts a saved adapter's numbers into `model`, in place (the one vector stays one vector).

    Raises ConfigError where the file is gone, damaged or that of an adapter of another shape.
    """
    try:
        saved: dict[str, Any] = load_file(folder / "adapter_model.safetensors")
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(saved[name.replace(".default.weight", ".weight")])
    except (OSError, KeyError, RuntimeError, SafetensorError) as error:
        raise ConfigError(f"The adapter of {folder.name} cannot be read: {error}.") from None
