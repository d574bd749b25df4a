"""Prompts -> responses: greedy, batched, cached; and how likely an answer is under the model as it stands."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import torch

from unlearn_core.model.loading import ends_of
from unlearn_core.model.prompting import encode_prompt, spoken, uses_template

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Response:
    """What the model answered. `seconds` is this answer's share of its batch; `ids` are its tokens, without the end."""

    text: str
    tokens: int
    seconds: float
    ids: tuple[int, ...] = ()


def pad_left(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both (len(rows), longest row); the padding on the left is not attended to."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad_id)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, longest - len(row) :] = torch.tensor(row)
        mask[index, longest - len(row) :] = 1
    return ids, mask


@torch.no_grad()
def answer(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int = 80,
    batch_size: int = 32,
    limit: int | None = None,
    chat: bool = True,
    temperature: float = 0.0,
    cutoff: float = 0.0,
    pair_template: str = "",
) -> list[Response]:
    """The greedy continuation of every prompt, dropout off, in batches of `batch_size`.

    With a `temperature`, one is drawn from the model's own distribution instead, by torch's random state, without
    the tokens that are less likely than `cutoff` (epsilon sampling, Hewitt et al. 2022, arXiv 2210.15191: no sorting).

    Left padding, no attention on it and its own positions: an answer does not depend on the other prompts of its batch
    (up to rounding). The text is raw: only special tokens and the newline after the question are removed.
    `limit`: tokens that the model can read; a longer question gets a shorter answer. `chat`: in the chat template,
    where the tokenizer has one; where it has none, in the `pair_template`, if there is one.
    """
    rows = [encode_prompt(tokenizer, prompt, chat, pair_template) for prompt in prompts]
    around = "" if uses_template(tokenizer, chat) else pair_template
    room = [max_new_tokens if limit is None else min(max_new_tokens, limit - len(row)) for row in rows]
    responses: dict[int, Response] = {}
    was_training = model.training
    model.eval()
    try:
        for longest, same in groupby(sorted(range(len(rows)), key=lambda i: -room[i]), key=lambda i: room[i]):
            places = list(same)  # rows whose answers may be equally long: none runs past what the model can read
            for start in range(0, len(places), batch_size):
                part = places[start : start + batch_size]
                asked = [rows[place] for place in part]
                answers = continuations(model, tokenizer, asked, longest, temperature, cutoff, around)
                responses.update(zip(part, answers, strict=True))
    finally:
        model.train(was_training)
    return [responses[place] for place in range(len(rows))]


def continuations(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float = 0.0,
    cutoff: float = 0.0,
    pair_template: str = "",
) -> list[Response]:
    """The answers to one batch of tokenized questions, without what the template has around answers."""
    drawn = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0, "epsilon_cutoff": cutoff}
    began = time.perf_counter()
    ids, mask = pad_left(rows, tokenizer.pad_token_id)
    ends = ends_of(model, tokenizer)
    generated: torch.Tensor = model.generate(  # type: ignore[operator]
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=max_new_tokens,
        num_beams=1,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=ends or None,
        **(drawn if temperature else {"do_sample": False}),
    )[:, ids.shape[1] :]
    seconds = (time.perf_counter() - began) / len(rows)
    responses = []
    for row in generated.tolist():
        ended = next((place for place, token in enumerate(row) if token in ends), len(row))
        text = spoken(str(tokenizer.decode(row[:ended], skip_special_tokens=True)), pair_template)
        responses.append(Response(text, ended, seconds, tuple(row[:ended])))
    return responses
