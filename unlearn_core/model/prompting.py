"""Questions and pairs as the model reads them: in the tokenizer's chat template where it has one. Imports no torch.

Everything that is given to a model goes through here, so that what is asked, what is trained on and what is shown are
the same text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from unlearn_core.settings.errors import ConfigError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Turn:
    """One message of a pair or a chat. `role`: system, user or assistant."""

    role: str
    text: str


# Some templates write today's date: a run resumed tomorrow would be asked something else. They get this day instead
# (the one that Llama's own template falls back on).
DAY = {"%Y": "2024", "%y": "24", "%m": "07", "%B": "July", "%b": "Jul", "%d": "26", "%-d": "26", "%A": "Friday",
       "%a": "Fri", "%H": "12", "%I": "12", "%M": "00", "%S": "00", "%p": "PM"}  # fmt: skip
FIXED_DAY = (
    "{%- macro strftime_now(format) -%}{{ format"
    + "".join(f" | replace('{directive}', '{value}')" for directive, value in DAY.items())
    + " }}{%- endmacro -%}"
)


def uses_template(tokenizer: PreTrainedTokenizerBase, chat: bool) -> bool:
    """True where questions are put into a chat template: it is wanted, and there is one."""
    return bool(chat and getattr(tokenizer, "chat_template", None))


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: str, chat: bool = True, pair_template: str = ""
) -> list[int]:
    """The token ids that the model is given before it answers.

    Without a chat template: with a `pair_template`, what stands before the answer of a pair, token for token as it is
    trained on; "": the prompt alone. Raises ConfigError where the template refuses.
    """
    if uses_template(tokenizer, chat):
        return _encode(tokenizer, _rendered(tokenizer, (Turn("user", prompt),), opened=True), special=False)
    if pair_template:
        ids, first, _ = encode_pair(tokenizer, (Turn("user", prompt), Turn("assistant", "a")), chat, pair_template)
        return ids[:first]
    return _open_ended(tokenizer, _encode(tokenizer, prompt, special=True))


def spoken(text: str, pair_template: str = "") -> str:
    """An answer as it was generated, without the blanks and marks that the template has around answers."""
    before, _, after = pair_template.partition("{answer}")
    blank = before[len(before.rstrip()) :] or "\n"
    taken_in = blank if text.startswith(blank) else blank[-1]  # the answer's first word may have a part of it
    return text.removeprefix(taken_in).removesuffix(after)


def shown(tokenizer: PreTrainedTokenizerBase, prompt: str, chat: bool = True, pair_template: str = "") -> str:
    """The exact text that the model sees for a question, special tokens (and what it cannot read) included."""
    if uses_template(tokenizer, chat):
        return _rendered(tokenizer, (Turn("user", prompt),), opened=True)
    ids = encode_prompt(tokenizer, prompt, chat, pair_template)
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def encode_pair(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[Turn],
    chat: bool = True,
    pair_template: str = "{question}\n{answer}",
) -> tuple[list[int], int, str]:
    """Token ids of a pair or a chat, where in them its last turn (the answer) begins, and its text.

    The answer ends with the token that ends a turn (or a text), once. Raises ConfigError where the template refuses.
    """
    if uses_template(tokenizer, chat):
        question, text = _rendered(tokenizer, turns[:-1], opened=True), _rendered(tokenizer, turns, opened=False)
        begins, ends = _place_of_answer(question, text, turns[-1].text)
        ids, spans = _encode_with_spans(tokenizer, text, begins, special=False)
        count = _after_turn(tokenizer, ids, spans, ends)
        text = text[: spans[count - 1][1]] if count and count < len(ids) else text
        ids = ids[:count]
    else:
        text, begins = _paired(turns, pair_template)
        begins = len(text[:begins].rstrip(" "))  # most tokenizers have a blank in the answer's first token: so has it
        ids, spans = _encode_with_spans(tokenizer, text, begins, special=True)
        ids = _open_ended(tokenizer, ids)
    first = next((index for index, (_, end) in enumerate(spans[: len(ids)]) if end > begins), len(ids))
    special = _special(tokenizer) if uses_template(tokenizer, chat) else {tokenizer.eos_token_id}
    if tokenizer.eos_token_id is not None and (not ids or ids[-1] not in special):
        ids = [*ids, *((tokenizer.eos_token_id,) if uses_template(tokenizer, chat) else ending_of(tokenizer))]
    return ids, first, text


def _paired(turns: Sequence[Turn], pair_template: str) -> tuple[str, int]:
    """The pair written out, and where in it (in characters) the answer begins."""
    before, placeholder, after = pair_template.partition("{answer}")
    if not placeholder or "{question}" not in before:
        raise ConfigError(
            "it must hold {question} and behind it {answer}", field="data.pair_template", value=pair_template
        )
    question = "\n".join(turn.text for turn in turns[:-1])
    before = before.replace("{question}", question)
    return before + turns[-1].text + after, len(before)


# -------------------------------------------------------------------------------------------------- the template


def _rendered(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], opened: bool) -> str:
    """The chat in the tokenizer's template; `opened`: as far as the model's turn to speak.

    No thinking aloud: what is trained on and measured is the answer.
    """
    from jinja2 import TemplateError

    messages = [{"role": turn.role, "content": turn.text} for turn in turns]
    options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": opened, "enable_thinking": False}
    try:
        template = tokenizer.get_chat_template()
        if "strftime_now" in template:
            template = FIXED_DAY + template
        try:
            return str(tokenizer.apply_chat_template(messages, chat_template=template, **options))
        except TemplateError:
            if not turns or turns[0].role != "system":
                raise
            # Some templates have no place for a system turn: it goes before the first question, as their authors say.
            first = {"role": "user", "content": f"{turns[0].text}\n\n{turns[1].text if len(turns) > 1 else ''}".strip()}
            return str(tokenizer.apply_chat_template([first, *messages[2:]], chat_template=template, **options))
    except (TemplateError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        raise _bad_template(f"cannot be used: {first_line(error)}") from None


def _place_of_answer(question: str, text: str, answer: str) -> tuple[int, int]:
    """(begin, end) of the answer in the rendered chat. Templates may strip it, or write around what was asked."""
    begins = len(question) if text.startswith(question) else -1
    spoken = answer.strip()
    place = text.find(spoken, max(begins, 0)) if begins >= 0 else text.rfind(spoken)
    if place < 0:
        raise _bad_template("leaves the answer out")
    return (begins if begins >= 0 else place), place + len(spoken)


def _bad_template(reason: str) -> ConfigError:
    return ConfigError(
        f"the chat template of this model {reason}",
        field="model.chat_template",
        value=True,
        fix="Set model.chat_template to false",
    )


def _after_turn(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], spans: Sequence[tuple[int, int]], ends: int
) -> int:
    """How many tokens there are up to the first special one behind the answer: what follows, the model never says."""
    special = _special(tokenizer)
    for index, (token, (begin, _)) in enumerate(zip(ids, spans, strict=True)):
        if begin >= ends and token in special:
            return index + 1
    return len(ids)


@lru_cache(maxsize=8)
def _special(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(added | set(tokenizer.all_special_ids))


# ------------------------------------------------------------------------------------------------- token ids


def opening_of(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The special tokens (BOS) that the tokenizer puts in front of every text; most often none or one."""
    return _around(tokenizer)[0]


def closing_of(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The special tokens (EOS) that the tokenizer puts behind every text; most often none."""
    return _around(tokenizer)[1]


def ending_of(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokens that end a text: those that the tokenizer puts there, else its end-of-text token, if it has one."""
    end = tokenizer.eos_token_id
    return closing_of(tokenizer) or (() if end is None else (end,))


@lru_cache(maxsize=8)
def _around(tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[int, ...], tuple[int, ...]]:
    bare, whole = _encode(tokenizer, "a", special=False), _encode(tokenizer, "a", special=True)
    places = range(len(whole) - len(bare) + 1)
    at = next((at for at in places if whole[at : at + len(bare)] == bare), None)
    return ((), ()) if at is None else (tuple(whole[:at]), tuple(whole[at + len(bare) :]))


def opens(ids: Sequence[int], opening: Sequence[int]) -> int:
    """How many tokens of a text are its opening: all of `opening`, or none where a template writes none."""
    return len(opening) if tuple(ids[: len(opening)]) == tuple(opening) else 0


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text that may go on: with what the tokenizer puts in front of it, without what it puts behind."""
    return _open_ended(tokenizer, _encode(tokenizer, text, special=True))


def encode_with_offsets(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """`encode`, and the characters [start, end) of the text that each token stands for.

    Raises ConfigError where the tokenizer cannot say.
    """
    if not tokenizer.is_fast:
        raise ConfigError(
            f"its tokenizer ({type(tokenizer).__name__}) does not tell which characters a token stands for, so the "
            "target cannot be found in its tokens",
            field="model.source",
            value=tokenizer.name_or_path,
            fix="Choose a model with a tokenizer.json, or forget texts that are pairs of question and answer",
        )
    ids, spans = _encode_with_spans(tokenizer, text, 0, special=True)
    ids = _open_ended(tokenizer, ids)
    return ids, spans[: len(ids)]


def _encode(tokenizer: PreTrainedTokenizerBase, text: str, special: bool) -> list[int]:
    return list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])


def _encode_with_spans(
    tokenizer: PreTrainedTokenizerBase, text: str, begins: int, special: bool
) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids and the characters of `text` that each stands for.

    Where the tokenizer cannot say (those written in Python), the text is cut at `begins` and both halves are known.
    """
    if tokenizer.is_fast:
        encoded = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
        return list(encoded["input_ids"]), [(int(a), int(b)) for a, b in encoded["offset_mapping"]]
    before = _open_ended(tokenizer, _encode(tokenizer, text[:begins], special)) if begins else []
    behind = _encode(tokenizer, text[begins:], special=False)
    return [*before, *behind], [(0, begins)] * len(before) + [(begins, len(text))] * len(behind)


def _open_ended(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    """Without the tokens that some tokenizers put behind every text: the text is to go on."""
    closing = closing_of(tokenizer)
    return ids[: len(ids) - len(closing)] if closing and tuple(ids[-len(closing) :]) == closing else ids
