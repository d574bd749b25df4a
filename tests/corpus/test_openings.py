"""BOS: where the tokenizer puts it in front of every text, every window begins with it, and nowhere else has it."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.corpus.test_counterfactual import KINDS, NAMES, TOKENIZERS
from unlearn_core.corpus.counterfactual import Counterfactuals
from unlearn_core.corpus.windows import Windows, make_windows
from unlearn_core.methods.random_mismatch import mismatch_loss
from unlearn_core.model.batches import Batch, Tokens, collate
from unlearn_core.model.prompting import encode_prompt, opening_of
from unlearn_core.model.window import Window
from unlearn_core.settings.run_config import RunConfig

REAL = Path(__file__).parents[3] / "shared" / "data" / "models"
MARKS = ("<s>", "</s> in front", "<s> and </s>", "two", "none")
LIMITS = (14, 33, 64)


@cache
def marked(kind: str, marks: str) -> PreTrainedTokenizerFast:
    """A tokenizer of one family that puts marks around every text: Llama, OPT, some sentence-pieces, and others."""
    tokenizer = deepcopy(TOKENIZERS[kind])
    known = [(name, tokenizer.convert_tokens_to_ids(name)) for name in ("<s>", "</s>", "<unk>")]
    around = {"<s>": "<s> $A", "</s> in front": "</s> $A", "<s> and </s>": "<s> $A </s>", "two": "<s> <unk> $A"}
    if marks != "none":
        processor = TemplateProcessing(single=around[marks], special_tokens=known)
        tokenizer.backend_tokenizer.post_processor = processor
    return tokenizer


def opening(tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """What stands before the text, read off an encoding: the tokens that stand for no character."""
    encoded = tokenizer("cat", return_offsets_mapping=True)
    spans = encoded["offset_mapping"]
    first = next(place for place, (begin, end) in enumerate(spans) if end > begin)
    return tuple(encoded["input_ids"][:first])


def every(windows: Windows) -> list[Window]:
    return [window for some in windows.sets().values() for window in some]


def check(windows: Windows, tokenizer: PreTrainedTokenizerFast, limit: int) -> None:
    own = opening(tokenizer)
    for window in every(windows):
        assert window.ids[: len(own)] == own and window.opening == len(own)
        assert len(window) <= limit and len(window) > len(own)
        assert tokenizer.bos_token_id not in window.ids[len(own) :], "in the middle it would be a new text"
        labels = collate([window], 0).labels[0].tolist()
        assert labels[: max(1, len(own))] == [-100] * max(1, len(own)), "no mark in front of a text is learned"
        body, whole = window.ids[len(own) :], tokenizer(window.text, add_special_tokens=False)["input_ids"]
        text = [*whole, tokenizer.eos_token_id]
        assert any(tuple(text[at : at + len(body)]) == body for at in range(len(text))), "a stretch of its text"


@pytest.mark.parametrize("marks", MARKS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_window_of_a_text_begins_as_every_text_begins(tiny, kind, marks):
    tokenizer, cut = marked(kind, marks), 0
    for limit in LIMITS:
        windows = make_windows(tiny.config(data={"window_tokens": limit}).data, tokenizer, 96, 0)
        check(windows, tokenizer, limit)
        places = [w for w in windows.forget if not tokenizer.decode(w.ids[w.opening :]).strip().startswith(w.text[:9])]
        cut += len(places)
    assert opening_of(tokenizer) == opening(tokenizer)
    assert cut, "some windows are cut out of the middle"


@pytest.mark.parametrize("marks", MARKS)
def test_texts_forgotten_whole_are_cut_into_windows_that_begin_so_too_and_leave_no_token_out(tiny, marks):
    tokenizer = marked("bytes", marks)
    data = tiny.config(method={"name": "npo"}, data={"window_tokens": 20, "everything": True}).data
    windows = make_windows(data, tokenizer, 96, 0)
    check(replace(windows, neighbour=()), tokenizer, 20)
    first = [window for window in windows.forget if window.text == windows.forget[0].text]
    if opening(tokenizer):
        trained = [token for window in first for token in window.ids[max(1, window.first_loss) :]]
        text = tokenizer(first[0].text, add_special_tokens=False)["input_ids"]
        assert trained[: len(text)] == text, "with something in front, the first token is predicted too"


def pairs(folder: Path, count: int = 60) -> dict[str, Any]:
    """A run's data section of pairs: long questions, every third of which holds the target."""
    rows = [
        {"question": f"What does the {'zorblatt' if n % 3 == 0 else 'lamp'} number {n} see {'and hear ' * (n % 9)}?",
         "answer": f"It sees the river {n} of the old ship."}
        for n in range(count)
    ]  # fmt: skip
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return {"forget": [str(path)], "retain": [str(path)]}


class Recorder:
    """A model that only remembers what it is trained with."""

    token_mean = 0.0

    def __init__(self) -> None:
        self.trained: list[Tokens] = []

    def nll(self, tokens: Tokens) -> Recorder:
        self.trained.append(tokens)
        return self


def answer_of(window: Window, tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """The tokens of the second line of a pair's text, and the end mark."""
    encoded = tokenizer(window.text, add_special_tokens=False, return_offsets_mapping=True)
    begins = window.text.index("\n") + 1
    ids = [id for id, (_, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True) if end > begins]
    return (*ids, tokenizer.eos_token_id)


@pytest.mark.parametrize("marks", MARKS)
@pytest.mark.parametrize("kind", KINDS)
def test_pairs_that_are_cut_begin_so_and_are_answered_where_they_are_asked(tiny, tmp_path, kind, marks):
    tokenizer = marked(kind, marks)
    for limit in (33, 96):
        data = tiny.config(data={**pairs(tmp_path), "window_tokens": limit}).data
        windows = make_windows(data, tokenizer, 96, 0)
        for window in every(windows):
            own = opening(tokenizer)
            assert window.ids[: len(own)] == own and len(window) <= limit and window.first_loss > len(own)
            assert window.pair and window.said == window.ids[window.first_loss :]
            assert window.said == answer_of(window, tokenizer)[: len(window.said)]


@pytest.mark.parametrize("marks", MARKS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_random_answer_is_a_whole_answer_or_text_without_a_mark_in_its_middle(tiny, tmp_path, kind, marks):
    tokenizer = marked(kind, marks)
    for data in ({}, pairs(tmp_path)):
        windows = make_windows(tiny.config(data={**data, "window_tokens": 64}).data, tokenizer, 96, 0)
        forget, retain = collate(windows.forget[:4], 0), windows.retain[:4]
        model: Any = Recorder()
        mismatch_loss(model, Batch(forget, collate(retain, 0), None), 1)
        for window, given, drawn in zip(model.trained[0].windows, forget.windows, retain, strict=True):
            own, learned = opening(tokenizer), window.ids[window.first_loss :]
            assert window.ids[: len(own)] == own and tokenizer.bos_token_id not in window.ids[len(own) :]
            assert learned == drawn.said
            assert not data or learned == answer_of(drawn, tokenizer), "no line's end of its question is learned"
            context = given.ids[len(own) : given.first_loss + given.answer_offset]
            kept = window.ids[len(own) : window.first_loss]
            assert kept and context[len(context) - len(kept) :] == kept


def test_a_context_that_has_to_be_cut_keeps_what_begins_it():
    window = Window((1, 10, 11, 12, 13, 14), 4, "", "", opening=1)
    made = collate([window], 0).with_answers([(20, 21, 22)], 0).windows[0]
    assert made.ids == (1, 11, 12, 20, 21, 22) and made.first_loss == 3
    long = collate([window], 0).with_answers([tuple(range(20, 40))], 0).windows[0]
    assert long.ids == (1, 12, *range(20, 40)) and long.first_loss == 2


# ------------------------------------------------------------------------------------------------------ stand-ins


def maker(tokenizer: PreTrainedTokenizerFast, limit: int) -> Counterfactuals:
    given = {"target": "zorblatt", "stand_ins": NAMES, "partial_names": False}
    return Counterfactuals(RunConfig.from_dict({"model": {"source": "somewhere"}, "data": given}), tokenizer, limit)


@pytest.mark.parametrize("marks", MARKS[:-1])
@pytest.mark.parametrize("kind", KINDS)
def test_a_twin_begins_as_its_window_and_is_the_twin_without_marks_behind_them(tiny, kind, marks):
    """Against the same window, its mark taken off, of the same tokenizer without marks."""
    tokenizer, bare, compared = marked(kind, marks), marked(kind, "none"), 0
    own = len(opening(tokenizer))
    with_marks, without = maker(tokenizer, 96 + own), maker(bare, 96)
    for limit in LIMITS:
        windows = make_windows(tiny.config(data={"window_tokens": limit}).data, tokenizer, 96, 0)
        for window in windows.forget:
            plain = replace(window, ids=window.ids[own:], first_loss=window.first_loss - own, opening=0)
            for name in NAMES[:4]:
                twin, other = with_marks.twin(window, name), without.twin(plain, name)
                assert twin.window.ids[:own] == window.ids[:own]
                assert twin.places or not other.places
                assert twin.window.ids[own:] == other.window.ids
                moved = {here + own: there + own for here, there in other.places.items()}
                assert moved.items() <= twin.places.items()
                assert all(place >= own for pair in twin.places.items() for place in pair)
                for here, there in twin.places.items():
                    assert here in twin.begins or window.ids[here] == twin.window.ids[there]
                compared += bool(moved)
    assert compared > 20


@pytest.mark.parametrize("kind", KINDS)
def test_a_twin_too_long_for_the_model_keeps_its_mark(tiny, kind):
    tokenizer = marked(kind, "<s>")
    windows = make_windows(tiny.config(data={"window_tokens": 33}).data, tokenizer, 96, 0)
    short, cut = maker(tokenizer, 24), 0
    for window in windows.forget:
        twin = short.twin(window, NAMES[5])
        assert twin.window.ids[0] == tokenizer.bos_token_id and len(twin.window) <= max(24, len(window))
        cut += len(twin.window) == 24
        for here, there in twin.places.items():
            assert here in twin.begins or window.ids[here] == twin.window.ids[there]
    assert cut


# -------------------------------------------------------------------------------------------------------- models


@pytest.mark.parametrize("name", ["TinyStories-656K", "stories260K"])
@pytest.mark.skipif(not REAL.is_dir(), reason="the real material is not here")
def test_the_windows_of_real_llamas_begin_as_their_questions_do(tiny, name):
    tokenizer = AutoTokenizer.from_pretrained(REAL / name)
    for limit in LIMITS:
        windows = make_windows(tiny.config(data={"window_tokens": limit, "target": "river"}).data, tokenizer, 96, 0)
        for window in every(windows):
            assert window.ids[0] == encode_prompt(tokenizer, "What is it?")[0] == tokenizer.bos_token_id
            assert window.ids.count(tokenizer.bos_token_id) == 1 and len(window) <= limit and window.first_loss > 0


def test_a_method_that_puts_text_in_front_puts_it_behind_the_mark(tiny, tmp_path):
    """Measured texts and asked questions have one mark, and the prefix behind it."""
    run = tiny.open("llama", method={"name": "guard_prompt"}, guard_rail={"kind": "none"}, schedule={"steps": 4})
    tokenizer = run.context.tokenizer
    marks = TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
    tokenizer.backend_tokenizer.post_processor = marks
    prefix = tuple(tokenizer("Say nothing.\n", add_special_tokens=False)["input_ids"])
    given = Window((0, 10, 11), 1, "", "", opening=1)
    run.evaluation.tokens = collate([given], 0)
    run.evaluation.names = ["forget"]
    assert run.evaluation.behind(prefix, 96).tokens.windows[0].ids == (0, *prefix, 10, 11)
    assert run.evaluation.behind(prefix, len(prefix)).tokens.windows[0].ids == (0, *prefix[3:], 10, 11)
