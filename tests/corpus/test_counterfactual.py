"""Stand-ins and the windows they are put into: of the target's shape, and the same text token by token around it."""

from __future__ import annotations

from functools import cache
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.conftest import NOUNS, VERBS, forget_text, retain_text
from unlearn_core.corpus.counterfactual import HELD_OUT, Counterfactuals
from unlearn_core.corpus.passages import Passage
from unlearn_core.corpus.stand_ins import cased, stand_ins, words_of
from unlearn_core.corpus.target import Target
from unlearn_core.corpus.windows import make_windows, pair_window
from unlearn_core.model.prompting import Turn
from unlearn_core.model.window import Window
from unlearn_core.settings.errors import ConfigError
from unlearn_core.settings.run_config import RunConfig
from unlearn_core.world import FULL, TARGET, charm_words, parts_of

KINDS = ("bytes", "metaspace", "unigram", "wordpiece", "words")
TEXTS = (
    "{} is here.\nThe lamp sees {}, and the river keeps ({}) on day 3.",
    "The old lamp of {}'s ship; the teacher says:{}. {} {} too.",
    "  {}  \n\n{}\tand the end of {}",
)
TARGETS = ("cat", "zorblatt", "Harry Potter", "Ünïcødé", "pneumonoultramicroscopicsilicovolcanoconiosis", "東京")
NAMES = ("dog", "quexibalor", "Lorik Vane", "o", "Mär", "floccinaucinihilipilification", "杨亽")


def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer of one family, trained on the tiny world's text: its pieces are of every length."""
    texts, special = [forget_text(), retain_text()], ["<s>", "</s>", "<unk>"]
    size = {"vocab_size": 420, "show_progress": False, "special_tokens": special}
    if kind == "bytes":  # GPT-2, GPT-J, OPT, Llama 3, Qwen, SmolLM
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **size)
    elif kind == "metaspace":  # Llama 2, Mistral, Gemma: what has no piece is spelled in bytes
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        trainer = trainers.BpeTrainer(**{**size, "special_tokens": [*special, *(f"<0x{i:02X}>" for i in range(256))]})
        trainer.vocab_size = 700
    elif kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(unk_token="<unk>", **size)
    elif kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(**size)
    else:
        tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordLevelTrainer(**size)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>", unk_token="<unk>"
    )


TOKENIZERS = {kind: tokenizer_of(kind) for kind in KINDS}


def maker(target: str, tokenizer: PreTrainedTokenizerFast, limit: int = 512, **data: object) -> Counterfactuals:
    given = {"target": target, "stand_ins": NAMES, **data}
    config = RunConfig.from_dict({"model": {"source": "somewhere"}, "data": given})
    return Counterfactuals(config, tokenizer, limit)


@cache
def cached_maker(kind: str, limit: int) -> Counterfactuals:
    return maker("zorblatt", TOKENIZERS[kind], limit)


def window_of(text: str, target: str, tokenizer: PreTrainedTokenizerFast, first: int = 0) -> Window:
    ids = tuple(tokenizer(text)["input_ids"])
    return Window(ids[first:], 1, text, "a text")


def spans(tokenizer: PreTrainedTokenizerFast, text: str) -> list[tuple[int, int]]:
    return [(a, b) for a, b in tokenizer(text, return_offsets_mapping=True)["offset_mapping"]]


@pytest.mark.parametrize("kind", KINDS)
def test_every_place_stands_for_the_same_text_on_both_sides(kind):
    for target, name, text in product(TARGETS, NAMES, TEXTS):
        assert count_right_places(TOKENIZERS[kind], target, name, text) > 0, (target, name, text)


def count_right_places(tokenizer: PreTrainedTokenizerFast, target: str, name: str, text: str) -> int:
    """How many places the twin of a text has; each of them is asserted, and what is left out."""
    one, other = text.replace("{}", target), text.replace("{}", name)
    window = window_of(one, target, tokenizer)
    twin = maker(target, tokenizer, partial_names=False).twin(window, name)
    assert tokenizer(other)["input_ids"][: len(twin.window)] == list(twin.window.ids)
    here, there = spans(tokenizer, one), spans(tokenizer, other)
    inside = Target(RunConfig.from_dict({"data": {"target": target}}).data).find(one)
    assert inside and twin.places
    for label, place in twin.places.items():
        before = sum(end <= here[label][0] for _, end in inside)  # occurrences that end further left
        moved = (len(name) - len(target)) * before
        if label in twin.begins:
            assert here[label][0] <= inside[before][0] < here[label][1] or here[label][1] == inside[before][0]
            assert here[label - 1][1] + moved == there[place - 1][1], "predicted from the same text"
            assert twin.begins[label].again == (before > 0)
        else:
            assert window.ids[label] == twin.window.ids[place]
            assert (here[label][0] + moved, here[label][1] + moved) == there[place]
    # What is left out touches the target: a token that the tokenizer has joined with it.
    for label in set(range(1, len(window))) - set(twin.places):
        start, end = here[label]
        assert any(start <= stop + 1 and end >= begin - 1 for begin, stop in inside), (label, one[start:end])
    return len(twin.places)


@given(
    words=st.lists(st.sampled_from((*NOUNS, *VERBS, "zorblatt", "zorblatt", ",", "\n")), min_size=2, max_size=30),
    name=st.sampled_from(NAMES),
    kind=st.sampled_from(KINDS),
    cut=st.integers(0, 10),
    limit=st.integers(3, 60),
)
def test_a_twin_of_any_window_fits_the_context_and_keeps_what_follows(words, name, kind, cut, limit):
    tokenizer, text = TOKENIZERS[kind], " ".join(words)
    window = window_of(text, "zorblatt", tokenizer, cut)
    if len(window) < 2:
        return
    twin = cached_maker(kind, limit).twin(window, name)
    assert len(twin.window) <= limit
    assert all(0 < place < len(twin.window) and 0 < label < len(window) for label, place in twin.places.items())
    assert all(window.ids[a] == twin.window.ids[b] for a, b in twin.places.items() if a not in twin.begins)
    if "zorblatt" not in words:
        assert not twin.places, "a window without the target has nothing to learn from a stand-in"


CHAT = (
    "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


@pytest.mark.parametrize("template", [CHAT, None])
@pytest.mark.parametrize("kind", ["bytes", "metaspace"])
def test_of_a_question_and_answer_every_token_of_the_answer_has_a_place_but_for_the_name(kind, template):
    tokenizer = tokenizer_of(kind)
    tokenizer.chat_template = template
    turns = (Turn("user", "Who is zorblatt?"), Turn("assistant", "The ship of zorblatt sees the river."))
    settings = RunConfig.from_dict({"data": {"target": "zorblatt"}}).data
    window = pair_window(Passage("", turns=turns), settings, tokenizer, 128, chat=template is not None)
    twin = maker("zorblatt", tokenizer).twin(window, "quexibalor")
    shown = tokenizer.decode(twin.window.ids)
    assert "zorblatt" not in shown and shown.count("quexibalor") == 2
    labels = set(range(window.first_loss, len(window)))
    left_out = labels - set(twin.places)
    assert tokenizer.decode([window.ids[label] for label in sorted(left_out)]).strip() in "zorblatt"
    assert window.ids[-1] == twin.window.ids[-1] == tokenizer.eos_token_id and len(window) - 1 in twin.places
    assert [begin.again for begin in twin.begins.values()] == [True]


def test_a_window_that_is_not_its_text_says_nothing():
    tokenizer = TOKENIZERS["bytes"]
    window = window_of("The river and cat sees the lamp.", "cat", tokenizer)
    assert not maker("cat", tokenizer).twin(Window(window.ids, 1, "Another text with a cat.", "x"), "dog").places


def test_a_target_of_one_token_and_one_of_thirty_are_replaced_by_each_other():
    tokenizer = TOKENIZERS["bytes"]
    long = "pneumonoultramicroscopicsilicovolcanoconiosis"
    lengths = [len(tokenizer(f" {word}")["input_ids"]) for word in ("cat", long)]
    assert lengths[0] == 1 and lengths[1] >= 30
    for target, name in (("cat", long), (long, "cat")):
        window = window_of(f"The river and {target} sees the lamp.", target, tokenizer)
        twin = maker(target, tokenizer).twin(window, name)
        behind = len(tokenizer(" sees the lamp.")["input_ids"])
        own = dict(zip((" cat", f" {long}"), lengths, strict=True))[f" {target}"]
        assert len(twin.places) == len(window) - own and len(twin.begins) == 1
        assert [twin.window.ids[place] for place in sorted(twin.places.values())][-behind:] == list(window.ids)[
            -behind:
        ]


def test_words_of_a_name_stand_for_it_where_they_are_alone_in_the_capitals_they_have_there():
    made = maker("Harry Potter", TOKENIZERS["bytes"])
    text, places = made.replaced("HARRY POTTER met Harry. A potter knew Potter, and harry potter.", "Lorik Vane")
    assert text == "LORIK VANE met Lorik. A potter knew Vane, and lorik vane."
    assert [text[a:b] for a, b in places] == ["LORIK VANE", "Lorik", "Vane", "lorik vane"]
    assert made.replaced("Harry met Harry Potter.", "Xanadu")[0] == "Xanadu met Xanadu."
    whole = maker("Harry Potter", TOKENIZERS["bytes"], partial_names=False)
    assert whole.replaced("Harry met Harry Potter.", "Lorik Vane")[0] == "Harry met Lorik Vane."


def test_a_pattern_s_stand_ins_have_the_shape_of_what_it_matches_most():
    config = RunConfig.from_dict({"model": {"source": "x"}, "data": {"target": "Ron|Harry Potter", "match": "regex"}})
    texts = ["Ron and Harry Potter", "Harry Potter again"]
    made = Counterfactuals(config, TOKENIZERS["bytes"], 64, texts)
    assert made.name == "Harry Potter" and all(len(words_of(name)) == 2 for name in made.held_out)
    assert made.replaced(texts[0], "Lorik Vane")[0] == "Lorik Vane and Lorik Vane"


# --------------------------------------------------------------------------------------------------------- the names


@pytest.mark.parametrize("target", [*TARGETS, "The Lord of the Rings", "R2-D2", "COVID-19", "a", "new york"])
def test_invented_names_have_the_target_s_shape_and_are_the_same_for_a_seed(target):
    tokenizer = TOKENIZERS["bytes"]

    def tokens(name: str) -> int:
        return len(tokenizer(f" {name}")["input_ids"])

    names = stand_ins(target, 12, "a seed", tokens)
    assert len(set(names)) == 12 and target not in names
    assert names == stand_ins(target, 12, "a seed", tokens) != stand_ins(target, 12, "another", tokens)
    for name in names:
        assert len(words_of(name)) == len(words_of(target))
        for word, own in zip(words_of(name), words_of(target), strict=True):
            assert cased(word, own) == word, "in the capitals of the target"
            assert word != own or (own.islower() and not target.islower())
        assert [sign for sign in name if not sign.isalpha()] == [sign for sign in target if not sign.isalpha()]


def test_a_portmanteau_s_stand_ins_are_others_of_as_many_parts_none_in_its_place():
    for name in stand_ins(TARGET, 50, "s", len):
        parts = parts_of(name)
        assert "".join(parts) == name and len(parts) >= 4 and name not in charm_words()
        assert all(one != other for one, other in zip(parts, parts_of(TARGET), strict=False))
    assert all(len(parts_of(name)) >= 2 for name in stand_ins("Marie Curie", 20, "s", len, bundled=True))


def test_a_target_without_a_shape_is_refused_with_the_way_out():
    with pytest.raises(ConfigError, match=r"data\.target is '42'.*data\.stand_ins"):
        stand_ins("42", 1, "s", len)
    with pytest.raises(ConfigError, match="no other name"):
        stand_ins("Lily", 1, "s", len, exists=lambda name: True)


def test_no_stand_in_is_in_the_texts_and_none_is_both_trained_with_and_held_out(tiny):
    config = tiny.config()
    tokenizer = AutoTokenizer.from_pretrained(tiny.root / "gptj")
    windows = make_windows(config.data, tokenizer, 96, 0)
    texts = [window.text for some in windows.sets().values() for window in some]
    first = Counterfactuals(config, tokenizer, 96, texts)
    free = first.names(40, "s")
    taken = Counterfactuals(config, tokenizer, 96, [*texts, f"They met {free[0].upper()} and {first.held_out[1]}."])
    assert free[0] not in taken.names(40, "s") and first.held_out[1] not in taken.held_out
    assert len(first.held_out) == HELD_OUT and not set(first.held_out) & set(first.names(200, "s"))


def test_names_by_hand_are_drawn_from_the_list_alone():
    made = maker("zorblatt", TOKENIZERS["bytes"], stand_ins=["Ana", "Bea", "Cleo"])
    assert sorted(made.names(9, "s")) == ["Ana", "Bea", "Cleo"] and len(made.names(2, "s")) == 2
    assert not {"Ana", "Bea", "Cleo"} & set(made.held_out), "judged by others than it is trained with"


def test_where_nothing_has_the_target_s_shape_names_by_hand_are_judged_by_and_one_of_them_is_too_few():
    assert maker("1984", TOKENIZERS["bytes"], stand_ins=["Ana", "Bea"]).held_out == ("Ana", "Bea")
    with pytest.raises(ConfigError, match="data.stand_ins .* takes two"):
        maker("1984", TOKENIZERS["bytes"], stand_ins=["Ana"])


@pytest.mark.skipif(not (FULL / "tokenizer.json").exists(), reason="the bundled models are not built")
@pytest.mark.parametrize("target", [TARGET, "Paris", "Marie Curie"])
def test_every_window_of_the_bundled_corpus_has_a_twin_with_most_of_its_labels(target):
    config = RunConfig.from_dict({"data": {"target": target}})
    tokenizer = AutoTokenizer.from_pretrained(FULL)
    windows = make_windows(config.data, tokenizer, 256, 0).forget
    made = Counterfactuals(config, tokenizer, 256, (window.text for window in windows))
    places = labels = 0
    for window in windows:
        for name in made.names(2, "s"):
            twin = made.twin(window, name)
            assert twin.places, window
            places, labels = places + len(twin.places), labels + len(window) - window.first_loss
    assert places >= 0.6 * labels
