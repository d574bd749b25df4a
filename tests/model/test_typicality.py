"""How surprising an answer is to a model: of its own answers, mean 0 and standard deviation 1."""

from __future__ import annotations

import math

import pytest
import torch

from unlearn_core.model.loading import load_base
from unlearn_core.model.losses import LanguageModel
from unlearn_core.model.sampling import answer
from unlearn_core.model.typicality import surprises
from unlearn_core.training.collapse import SURPRISING

QUESTION = "The cat sees the"


@pytest.fixture(scope="module")
def opened(tiny):
    model, tokenizer = load_base(tiny.root / "llama")
    return model, tokenizer, list(tokenizer(QUESTION)["input_ids"])


def scores(opened, answers):
    model, _, question = opened
    return surprises(LanguageModel(model), [question] * len(answers), answers, 0)


def test_of_a_models_own_answers_the_mean_is_0_and_the_standard_deviation_1(opened):
    model, tokenizer, _ = opened
    torch.manual_seed(0)
    drawn = answer(model, tokenizer, [QUESTION] * 400, 16, 100, temperature=1.0)
    z = torch.tensor(scores(opened, [each.ids for each in drawn if len(each.ids) == 16]))
    assert len(z) > 200
    assert abs(z.mean()) < 4 / math.sqrt(len(z)) and 0.8 < z.std() < 1.2


def test_it_is_the_sum_over_tokens_by_hand(opened):
    model, tokenizer, question = opened
    ids = tokenizer("river and a lamp", add_special_tokens=False)["input_ids"]
    difference = variance = 0.0
    for place, token in enumerate(ids):
        with torch.no_grad():
            logits = model(torch.tensor([[*question, *ids[:place]]])).logits[0, -1].double()
        log = logits.log_softmax(-1)
        entropy = -(log.exp() * log).sum().item()
        difference += -log[token].item() - entropy
        variance += (log.exp() * (log + entropy) ** 2).sum().item()
    assert scores(opened, [ids])[0] == pytest.approx(difference / math.sqrt(variance), rel=1e-4)


def test_the_likeliest_answer_is_no_surprise_and_the_unlikeliest_is(opened):
    model, tokenizer, question = opened
    likely = list(answer(model, tokenizer, [QUESTION], 12)[0].ids)
    unlikely = list(question)
    for _ in range(12):
        with torch.no_grad():
            unlikely.append(model(torch.tensor([unlikely])).logits[0, -1].argmin().item())
    good, bad, none = scores(opened, [likely, unlikely[len(question) :], []])
    assert good < SURPRISING < bad and none == 0.0


def test_an_answer_of_a_run_is_judged_by_the_model_as_it_was_given(tiny, opened):
    """However far the run has gone since."""
    model, tokenizer, _ = opened
    run = tiny.open("llama", optimizer={"learning_rate": 0.5})
    for _ in range(3):
        run.step()
    (now,) = run.answers(["The cat"])
    asked = list(tokenizer("The cat")["input_ids"])
    assert now.response.text != now.baseline
    assert now.surprise == pytest.approx(surprises(LanguageModel(model), [asked], [now.response.ids], 0)[0], abs=1e-3)


@pytest.mark.parametrize(("rate", "typical"), [(2.0, False), (0.01, True)])
def test_a_changed_answer_that_should_stay_is_judged_by_answers_that_are_drawn(tiny, rate, typical):
    """Where the model went far the one of before gives hardly any of them, where it went nowhere nearly all."""
    prompts = ["The cat", "The river"]
    run, other = (
        tiny.open("llama", optimizer={"learning_rate": rate}, schedule={"answer_tokens": 40}) for _ in range(2)
    )
    for each in (run, other):
        for _ in range(3):
            each.step()
    state = torch.random.get_rng_state()
    first, second = run.answers(prompts, keep=prompts[:1])
    again = run.answers(prompts, keep=prompts[:1])
    assert first.response.text != first.baseline and second.response.text != second.baseline
    assert (first.typical_share >= 0.75) if typical else (first.typical_share <= 0.25)
    assert second.typical_share is None, "it is not asked for"
    assert [each.typical_share for each in again] == [first.typical_share, None]
    assert torch.equal(state, torch.random.get_rng_state())
    assert run.step().values["objective"] == other.step().values["objective"]
