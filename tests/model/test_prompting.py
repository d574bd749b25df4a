"""What the model is given is what is shown and what is trained on, with a chat template or without."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from tests.corpus.test_openings import KINDS, MARKS, marked, pairs
from unlearn_core.corpus.documents import pair_template
from unlearn_core.corpus.preview import inspect
from unlearn_core.model.prompting import Turn, encode_pair, encode_prompt, shown, spoken, uses_template
from unlearn_core.settings.errors import ConfigError
from unlearn_core.settings.sections import DataSettings

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {
    "ChatML": CHATML,
    "strips and has no system": (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}: {{ m['content'] | trim }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant:{% endif %}"
    ),
    "thinks unless told not to": CHATML.replace(
        "{{ m['content'] }}",
        "{% if m['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}",
    ).replace(
        "<|im_start|>assistant\n{% endif %}",
        "<|im_start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
        "{% endif %}{% endif %}",
    ),
    "tells the day": "Today: {{ strftime_now('%d %b %Y') }}\n" + CHATML,
    "ends without a special token": (
        "{% for m in messages %}{{ m['role'] }}> {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant> {% endif %}"
    ),
}
ASKED, SAID = "What is a {answer} lamp?", "  It is {question} light, naïve 猫. "
PAIR = (Turn("user", ASKED), Turn("assistant", SAID))
CHAT = (Turn("system", "Be brief."), Turn("user", "Who?"), Turn("assistant", "The cat."), *PAIR)


@pytest.fixture
def tokenizer(tiny):
    loaded = AutoTokenizer.from_pretrained(tiny.root / "llama")
    loaded.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return loaded


def answer_of(tokenizer, ids, first: int) -> str:
    return tokenizer.decode(ids[first:], skip_special_tokens=True)


@pytest.mark.parametrize("turns", [PAIR, CHAT], ids=["pair", "chat"])
@pytest.mark.parametrize("template", TEMPLATES)
def test_the_loss_begins_where_the_model_would_begin_to_speak(tokenizer, template, turns):
    tokenizer.chat_template = TEMPLATES[template]
    ids, first, text = encode_pair(tokenizer, turns)
    assert answer_of(tokenizer, ids, first).strip() == SAID.strip()
    closing = tokenizer.eos_token_id if "without" in template else tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert ids[-1] == closing and ids[first:].count(closing) == 1
    if turns == PAIR:  # what comes before is exactly what the model is given when it is asked
        assert ids[:first] == encode_prompt(tokenizer, ASKED) and text.startswith(shown(tokenizer, ASKED))
    else:
        assert all(turn.text.strip() in text for turn in turns)


@pytest.mark.parametrize("template", TEMPLATES)
def test_what_is_shown_is_what_the_model_reads(tokenizer, template):
    tokenizer.chat_template = TEMPLATES[template]
    ids = tokenizer(shown(tokenizer, ASKED), add_special_tokens=False)["input_ids"]
    assert ids == encode_prompt(tokenizer, ASKED) and ASKED in shown(tokenizer, ASKED)


def test_the_day_in_a_template_does_not_change_from_one_day_to_the_next(tokenizer):
    tokenizer.chat_template = TEMPLATES["tells the day"]
    assert shown(tokenizer, "Hello").startswith("Today: 26 Jul 2024\n")


def test_the_template_can_be_left_aside_and_a_tokenizer_without_one_is_asked_plainly(tokenizer):
    plain = tokenizer("What is it?")["input_ids"]
    assert encode_prompt(tokenizer, "What is it?", True) == plain and not uses_template(tokenizer, True)
    tokenizer.chat_template = CHATML
    assert encode_prompt(tokenizer, "What is it?", False) == plain and not uses_template(tokenizer, False)
    assert encode_prompt(tokenizer, "What is it?", True) != plain and uses_template(tokenizer, True)
    assert shown(tokenizer, "What is it?", False) == "What is it?"


@pytest.mark.parametrize("pattern", ["{question}\n{answer}", "Q: {question}\nA: {answer}\n", "{question} {answer}"])
def test_a_pair_without_a_template_is_written_as_the_settings_say(tokenizer, pattern):
    ids, first, text = encode_pair(tokenizer, PAIR, True, pattern)
    before, _, after = pattern.partition("{answer}")
    assert text == before.replace("{question}", ASKED) + SAID + after
    assert ids[-1] == tokenizer.eos_token_id and ids.count(tokenizer.eos_token_id) == 1
    assert answer_of(tokenizer, ids, first).strip() == (SAID + after).strip()
    assert tokenizer.decode(ids[:-1]) == text


@pytest.mark.parametrize("pattern", ["{question}", "{answer} {question}", "question answer", "{answer}"])
def test_a_pair_template_without_both_parts_in_their_order_is_refused(tokenizer, pattern):
    with pytest.raises(ConfigError, match="data.pair_template is .*must hold"):
        encode_pair(tokenizer, PAIR, True, pattern)


def test_marks_that_a_tokenizer_puts_around_every_text_stand_where_they_belong(tokenizer):
    """A beginning of the text stays; an end of it behind a question would tell the model that nothing follows."""
    begin, end = "<|im_start|>", tokenizer.eos_token
    tokenizer.bos_token = begin
    marks = [(begin, tokenizer.bos_token_id), (end, tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{begin} $A {end}", special_tokens=marks)
    ids = encode_prompt(tokenizer, "The cat")
    assert ids[0] == tokenizer.bos_token_id and tokenizer.eos_token_id not in ids
    assert shown(tokenizer, "The cat") == "<|im_start|>The cat"
    ids, first, _ = encode_pair(tokenizer, PAIR)
    assert (
        ids[0] == tokenizer.bos_token_id
        and ids.count(tokenizer.eos_token_id) == 1
        and ids[-1] == tokenizer.eos_token_id
    )
    assert answer_of(tokenizer, ids, first).strip() == SAID.strip()


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('only tools') }}", "{% if %}", "{{ messages[9].content.x }}", "{{ 1 // 0 }}"]
)
def test_a_template_that_refuses_says_so_with_the_way_out(tokenizer, template):
    tokenizer.chat_template = template
    with pytest.raises(ConfigError, match="cannot be used: .*Set model.chat_template to false") as caught:
        encode_prompt(tokenizer, "Hello")
    assert "\n" not in str(caught.value)


def test_a_template_that_drops_the_answer_is_refused(tokenizer):
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    with pytest.raises(ConfigError, match="leaves the answer out"):
        encode_pair(tokenizer, PAIR)


# ---------------------------------------------------------------------------------------- questions asked as pairs

PAIR_TEMPLATES = ("{question}\n{answer}", "Q: {question}\nA: {answer}\n", "{question} {answer}", "[{question}]{answer}")


@pytest.mark.parametrize("marks", MARKS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_question_is_asked_token_for_token_as_its_pair_is_trained_on(kind, marks):
    tokenizer = marked(kind, marks)
    for template in PAIR_TEMPLATES:
        for answer in ("It is a lamp.", "the river", "Zorblatt says so."):
            turns = (Turn("user", ASKED), Turn("assistant", answer))
            ids, first, _ = encode_pair(tokenizer, turns, True, template)
            assert encode_prompt(tokenizer, ASKED, True, template) == ids[:first]


def test_a_chat_template_goes_before_the_pair_template(tokenizer):
    tokenizer.chat_template = CHATML
    assert encode_prompt(tokenizer, ASKED, True, "Q: {question} A: {answer}") == encode_prompt(tokenizer, ASKED)
    plain = encode_prompt(tokenizer, ASKED, False, "Q: {question} A: {answer}")
    assert tokenizer.decode(plain) == f"Q: {ASKED} A:" == shown(tokenizer, ASKED, False, "Q: {question} A: {answer}")


@pytest.mark.parametrize(
    ("template", "text", "said"),
    [
        ("", "\nIt is.", "It is."),
        ("{question}\n{answer}", "It is.", "It is."),
        ("Q: {question}\nA: {answer}\n", " It is.\n", "It is."),
        ("{question}\n\n{answer}###", "It is.###", "It is."),
        ("{question} {answer}", "  indented", " indented"),
    ],
)
def test_an_answer_is_shown_without_what_the_template_has_around_it(template, text, said):
    assert spoken(text, template) == said


@pytest.mark.parametrize("chat", [None, CHATML])
def test_all_that_a_run_asks_is_asked_as_its_pairs_are_trained_on(tiny, tmp_path, chat):
    """Answers, their probability, and the preview; a run whose forget texts are no pairs asks plainly."""
    question, template = "What does the zorblatt number 0 see ?", "Q: {question}\nA: {answer}\n"
    data = {**pairs(tmp_path), "pair_template": template, "window_tokens": 96}
    asked = [{"role": role, "text": question} for role in ("forget", "retain")]
    source = tmp_path / "model"
    shutil.copytree(tiny.root / "llama", source)
    if chat:
        saved = AutoTokenizer.from_pretrained(source)
        saved.chat_template = chat
        saved.save_pretrained(source)
    run = tiny.open("llama", data=data, prompts=asked, model={"source": str(source)})
    tokenizer, window = run.context.tokenizer, run.context.windows.forget[0]
    context = window.ids[: window.first_loss]
    assert question in window.text
    given: list[tuple[int, ...]] = []
    generate, forward = run.context.model.generate, run.context.model.forward
    run.context.model.generate = lambda **more: given.append(row_of(more)) or generate(**more)
    run.answers([question])
    run.context.model.generate, run.context.model.forward = generate, forward
    assert given and all(row == context for row in given)
    found = inspect(run.config.to_dict())["model"]["prompts"]
    assert tuple(tokenizer(found[0]["shown"], add_special_tokens=False)["input_ids"]) == context
    plain = tiny.config("llama")
    assert pair_template(plain.data) == "" and pair_template(run.config.data) == template


def row_of(generated: dict[str, Any]) -> tuple[int, ...]:
    """The question in what the model is given to go on from, without its padding."""
    return tuple(generated["input_ids"][0][generated["attention_mask"][0] == 1].tolist())


def test_pairs_are_told_by_their_first_rows_and_a_source_that_is_gone_has_no_say(tmp_path):
    rows, text, gone = tmp_path / "pairs.jsonl", tmp_path / "README.md", tmp_path / "gone.jsonl"
    rows.write_text(json.dumps({"question": "Who?", "answer": "The cat."}))
    text.write_text("A text.")
    cases = {(str(rows),): True, (str(text),): False, (str(text), str(rows)): True, (str(tmp_path),): True}
    cases |= {(str(gone),): False, ("bundled",): False}
    for names, are_pairs in cases.items():
        assert bool(pair_template(DataSettings(forget=names))) == are_pairs, names
