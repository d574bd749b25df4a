"""Preview of a run: its windows, its memory, the time of a step, and its questions as the model reads them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from unlearn_core.corpus.asking.answers import Asker, with_answers
from unlearn_core.corpus.documents import ASKED, pair_template
from unlearn_core.corpus.scan import Progress
from unlearn_core.corpus.windows import Windows, left_in, make_windows, tokens_of
from unlearn_core.model.adapters import adapters_of, another_base
from unlearn_core.model.batches import EVALUATED, PASS_TOKENS, spread
from unlearn_core.model.load import load_model
from unlearn_core.model.loading import device_of, dtype_of, folder_of, tokenizer_and_limit
from unlearn_core.model.memory import available, check_before_loading, estimate_for, shape_for
from unlearn_core.model.prompting import encode_with_offsets, shown
from unlearn_core.model.reference import Reference
from unlearn_core.settings.report import Report
from unlearn_core.settings.run_config import RunConfig
from unlearn_core.settings.sections import DataSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from unlearn_core.corpus.passages import Occurrence, Passage
    from unlearn_core.model.memory import Shape
    from unlearn_core.model.window import Window

LISTED = 2_000  # occurrences that are listed
SHOWN = 200  # windows of each set that are shown
AROUND = 200  # characters shown either side of an occurrence
MATRIX = 768  # rows of the matrices whose product measures the speed of the device
TRIAL_SECONDS = 0.15
ESTIMATED = "estimated from the speed of this machine"


def inspect(
    given: Mapping[str, Any],
    report: Callable[[Progress], None] = lambda progress: None,
    cache: Path | None = None,
    measured: tuple[float, str] | None = None,
) -> dict[str, Any]:
    """`describe` of a run file's content, with the memory, the time of a step and the prompts as the model reads them.

    `measured`: the seconds of a step of a run that costs the same, and which run that was; without, they are estimated.
    Plain values. Weights are loaded only where the model is asked for its texts. Raises ConfigError as the run itself
    would, and whatever `report` raises.
    """
    config = RunConfig.from_dict(given)

    def tell(stage: str, detail: str = "") -> None:
        report(Progress(0, 0, 0, 0.0, None, stage, detail))

    tokenizer, limit = tokenizer_and_limit(config.model, tell, cache)
    chat = config.model.chat_template
    data = with_answers(config, partial(asker, config, tell, cache), cache, tell)
    windows = make_windows(data, tokenizer, limit, config.seed, chat=chat, report=report, cache=cache)
    device, folder = device_of(config.model), folder_of(config.model, tell, cache)
    dtype, shape = dtype_of(config.model, device), shape_for(config, folder)
    lengths = {name: [len(window) for window in of_set] for name, of_set in windows.sets().items()}
    memory = estimate_for(config, shape, dtype, lengths)
    free = available(device, config.model.spread)
    parts = ("weights", "adapter", "optimizer", "gradients", "activations")
    tokens = tokens_of_a_step(config, windows)
    template = pair_template(config.data)
    notes = [another_base(adapter, config.model.source, folder) for adapter in adapters_of(config.model)]
    questions = list(dict.fromkeys(prompt.text for prompt in config.prompts))
    seconds, source = measured or (seconds_of_a_step(shape, tokens, device, dtype), ESTIMATED)
    return {
        **(described := describe(windows, tokenizer, config.data)),
        "notes": [*filter(None, notes), *described["notes"]],
        "memory": {
            "parts": {name: getattr(memory, name) for name in parts},
            "total": memory.total,
            "available": free,
            "fits": free is None or memory.total <= free,
        },
        "model": {
            "source": config.model.source,
            "modules": list(shape.modules),
            "limit": limit,
            "prompts": [{"text": text, "shown": shown(tokenizer, text, chat, template)} for text in questions],
        },
        "asked": {
            side: [name.removeprefix(ASKED) for name in getattr(data, side) if name.startswith(ASKED)]
            for side in ("forget", "retain")
        },
        "step_tokens": round(sum(tokens.values())),
        "step_seconds": seconds,
        "step_seconds_from": source,
    }


def asker(config: RunConfig, report: Report, cache: Path | None) -> Asker:
    """The run's model, opened to be asked. Raises ConfigError where it cannot be."""

    def check(folder: Path) -> None:
        check_before_loading(config, folder)

    report("loading the model")
    loaded = load_model(config.model, config.lora, config.seed, check, report, cache=cache)
    return Asker(Reference(loaded.model, loaded.start), loaded.tokenizer, loaded.limit, config.model.chat_template)


def describe(windows: Windows, tokenizer: PreTrainedTokenizerBase, data: DataSettings) -> dict[str, Any]:
    """The four sets as plain values: counts, the occurrences, and windows to read."""
    texts = windows.texts
    assert texts is not None, "windows of make_windows"
    excluded = frozenset(data.excluded)
    listed = [(passage, mark) for passage in texts.forget for mark in passage.occurrences]
    notes = list(texts.notes)
    if len(listed) > LISTED:
        notes.append(f"the first {LISTED:,} of {len(listed):,} occurrences are listed")
    named = {"forget": windows.forget, "retain": windows.retain, "neighbour": windows.neighbour}
    named["holdout"] = windows.holdout
    return {
        "target": data.target,
        "pieces": _pieces(texts.forget, excluded, tokenizer, data),
        "documents": texts.documents,
        "bytes": texts.bytes,
        "occurrences": texts.occurrences,
        "seconds": round(texts.seconds, 3),
        "cached": texts.cached,
        "notes": notes,
        "sets": {
            name: {
                "windows": len(each),
                "tokens": sum(map(len, each)),
                "trained_tokens": sum(len(window) - max(1, window.first_loss) for window in each),
            }
            for name, each in named.items()
        },
        "found": [_listed(passage, mark, mark.id in excluded) for passage, mark in listed[:LISTED]],
        "windows": [_shown(name, window, tokenizer) for name, each in named.items() for window in spread(each, SHOWN)],
    }


def _pieces(
    passages: Iterable[Passage], excluded: Collection[str], tokenizer: PreTrainedTokenizerBase, data: DataSettings
) -> list[str]:
    """The target's tokens as strings, as they are in the first passage that is not excluded."""
    passage = next((p for p in left_in(passages, excluded) if p.occurrences), None)
    if passage is None or data.everything:
        ids = tokenizer(data.target, add_special_tokens=False)["input_ids"]
    else:
        every, offsets = encode_with_offsets(tokenizer, passage.text)
        mark = passage.occurrences[0]
        ids = [every[i] for i in tokens_of(offsets, mark.start, mark.end)]
    decoded = [str(tokenizer.decode([piece])) for piece in ids]
    if any("\N{REPLACEMENT CHARACTER}" in piece for piece in decoded):  # a token is a part of a character
        return [str(piece) for piece in tokenizer.convert_ids_to_tokens(ids)]
    return decoded


def _listed(passage: Passage, mark: Occurrence, excluded: bool) -> dict[str, Any]:
    return {
        "id": mark.id,
        "source": passage.source,
        "place": mark.place,
        "before": passage.text[max(0, mark.start - AROUND) : mark.start],
        "target": passage.text[mark.start : mark.end],
        "after": passage.text[mark.end : mark.end + AROUND],
        "excluded": excluded,
    }


def _shown(name: str, window: Window, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    return {
        "set": name,
        "occurrence": window.occurrence if name == "forget" else "",
        "source": window.source,
        "place": window.place,
        "why": window.why,
        "context": tokenizer.decode(list(window.ids[: window.first_loss])),
        "trained": tokenizer.decode(list(window.ids[window.first_loss :])),
        "tokens": len(window),
        "trained_tokens": len(window) - max(1, window.first_loss),
    }


def tokens_of_a_step(config: RunConfig, windows: Windows) -> dict[str, float]:
    """Tokens that a step takes on average: `trained` with gradients, `read` without."""

    def mean(of_set: Sequence[Window]) -> float:
        return sum(map(len, of_set)) / max(1, len(of_set))

    schedule = config.schedule
    weights = {"retain": config.method.retain_weight, "neighbour": config.method.neighbour_weight}
    forget_passes = config.method.forget_passes if config.method.facts.trains else 0
    trained = schedule.batch_size * forget_passes * mean(windows.forget)
    trained += schedule.retain_rows * sum(mean(getattr(windows, name)) for name, weight in weights.items() if weight)
    trained += config.guard_rail.samples_per_step * mean(windows.retain)
    every = {name: getattr(windows, name) for name in EVALUATED}
    measured = sum(min(EVALUATED[name], len(of_set)) * mean(of_set) for name, of_set in every.items())
    answers = len(config.prompts) * schedule.answer_tokens
    return {"trained": trained, "read": measured / schedule.evaluate_every + answers / schedule.sample_every}


def seconds_of_a_step(shape: Shape, tokens: Mapping[str, float], device: str, dtype: torch.dtype) -> float:
    """By arithmetic: 2 operations a weight and token forward, as many backward (a frozen base), at this device's speed.

    Reads on the short side: what a pass costs beside its arithmetic is taken as PASS_TOKENS tokens.
    """
    passes = tokens["trained"] * 2 + tokens["read"] + PASS_TOKENS * 8
    return 2 * shape.weights * passes / operations_a_second(device, dtype)


def operations_a_second(device: str, dtype: torch.dtype) -> float:
    """What the device reaches on one matrix product: the fastest of a moment, in which other work counts least."""
    left = torch.randn(MATRIX, MATRIX, device=device).to(dtype)
    fastest, end = math.inf, time.perf_counter() + TRIAL_SECONDS
    while (began := time.perf_counter()) < end or fastest == math.inf:
        result = left @ left
        if device != "cpu":
            result[0, 0].item()  # waits for it
        fastest = min(fastest, time.perf_counter() - began)
    return 2 * MATRIX**3 / fastest
