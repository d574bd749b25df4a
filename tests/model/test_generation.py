"""Answers against a plain computation, token by token: one prompt, no cache, no padding, a whole pass for every token.

`generate`, its caches and masks, and PEFT's switches belong to libraries that change; what Lethe builds on them is
held here to the definition of greedy decoding.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.methods.test_edits import opened as opened_edit
from tests.methods.test_methods import earlier, opened  # noqa: F401
from tests.model.test_architectures import ARCHITECTURES, settings, zoo  # noqa: F401
from tests.model.test_models import started  # noqa: F401
from tests.quick import some_quick
from unlearn_core.methods import METHODS
from unlearn_core.methods.whp import held_back
from unlearn_core.model.loading import context_limit, load_base
from unlearn_core.model.prompting import encode_prompt
from unlearn_core.model.sampling import answer
from unlearn_core.settings.errors import ConfigError
from unlearn_core.training.engine import Unlearner

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]

PROMPTS = ["The cat", "What is zorblatt, and who keeps the old clock in the garden?", "a", "In the forest number 7"]
LENGTH = 8

Logits = Callable[[Tensor], Tensor]  # ids (1, n) -> logits (vocabulary,) of the next token


def plain(model) -> Logits:
    """The next token's logits from one pass over all tokens before it."""
    return lambda ids: model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0, -1]


@torch.no_grad()
def decode_greedily(
    tokenizer, prompts: Sequence[str], logits: Logits, length: int = LENGTH, read: Callable[[str], str] = str
) -> list[tuple[int, ...]]:
    """The `length` likeliest tokens after each prompt, one after the other; fewer where the text ends."""
    answers = []
    for prompt in prompts:
        ids = encode_prompt(tokenizer, read(prompt))
        begins = len(ids)
        while len(ids) < begins + length:
            following = int(logits(torch.tensor([ids])).argmax())
            if following == tokenizer.eos_token_id:
                break
            ids = [*ids, following]
        answers.append(tuple(ids[begins:]))
    return answers


def answered(run_or_model, tokenizer, prompts: Sequence[str] = PROMPTS, limit: int = 96) -> list[tuple[int, ...]]:
    return [each.ids for each in answer(run_or_model, tokenizer, prompts, LENGTH, limit=limit)]


# --------------------------------------------------------------------------- generate: padding, caches, attention


@pytest.mark.parametrize("name", some_quick(ARCHITECTURES, 2))
def test_an_answer_is_greedy_decoding_of_its_prompt_alone(zoo, name):  # noqa: F811
    """Left padding, its positions and masks, and every kind of cache (sliding windows shorter than the prompt too)."""
    model, tokenizer = load_base(zoo / name)
    found = answered(model, tokenizer, limit=context_limit(model.config))
    assert found == decode_greedily(tokenizer, PROMPTS, plain(model.eval()))
    assert len(set(found)) > 1


@pytest.mark.parametrize("name", some_quick(["gptj", "llama", "gemma3_text", "bloom"], 2))
def test_computing_activations_again_changes_no_answer_and_no_mode(tiny, zoo, name):  # noqa: F811
    run = Unlearner(settings(tiny, zoo, name, model={"gradient_checkpointing": True}))
    run.measure_baseline()
    run.step()
    run.context.model.train()
    found = answered(run.context.model, run.context.tokenizer)
    assert run.context.model.training
    assert found == decode_greedily(run.context.tokenizer, PROMPTS, plain(run.context.model.eval()))


# ------------------------------------------------------------------------------ the reference within generation


@pytest.mark.parametrize("start", ["fresh", "continued"])
def test_the_reference_answers_as_the_model_that_was_given(tiny, started, start):  # noqa: F811
    """Against the files, loaded anew by transformers and PEFT alone."""
    adapter = {"adapter": str(started)} if start == "continued" else {}
    run = tiny.open("llama", model=adapter, optimizer={"learning_rate": 0.1})
    for _ in range(3):
        run.step()
    given = AutoModelForCausalLM.from_pretrained(tiny.root / "llama")
    if adapter:
        given = PeftModel.from_pretrained(given, started)
    with run.context.reference():
        found = answered(run.context.model, run.context.tokenizer)
    assert found == decode_greedily(run.context.tokenizer, PROMPTS, plain(given.eval()))
    now = answered(run.context.model, run.context.tokenizer)
    assert now == decode_greedily(run.context.tokenizer, PROMPTS, plain(run.context.model.eval()))
    assert now != found


# --------------------------------------------------------------------------------------- what a method lays over it


def expected_logits(run) -> Logits:
    """The next token's logits by the method's own formula, from plain passes outside of its context manager."""
    method, step = run.config.method, run.step_number
    if isinstance(method, METHODS["whp"]):
        amount = method.strength * step / run.config.schedule.steps

        def held_back_by_hand(ids: Tensor) -> Tensor:
            with run.context.reference() as model:
                base = plain(model)(ids)
            return base - amount * (plain(run.context.model)(ids) - base).clamp(min=0)

        return held_back_by_hand
    if isinstance(method, METHODS["boundary_expand"]):
        shadow = int(run.context.method_state["shadow"])
        return lambda ids: plain(run.context.model)(ids).index_fill(0, torch.tensor([shadow]), -torch.inf)
    return plain(run.context.model)


@pytest.mark.parametrize("method", some_quick(METHODS, 2))
def test_every_methods_answers_are_greedy_decoding_and_their_probability_is_that_of_its_tokens(opened, method):  # noqa: F811
    run = opened(method, schedule={"answer_tokens": LENGTH, "steps": 3})
    for _ in range(3):
        run.step()
    run.context.model.train()
    answers = run.answers(PROMPTS)
    assert run.context.model.training
    before = {prompt: a.response.ids for prompt, a in zip(PROMPTS, run.baseline_answers(PROMPTS), strict=True)}
    run.context.model.eval()
    logits = expected_logits(run)
    if context := run.method.prompt_prefix(run.context, run.step_number):
        assert [a.response.ids for a in answers] == decode_greedily(
            run.context.tokenizer, PROMPTS, logits, read=lambda prompt: f"{context}\n{prompt}"
        )
    else:
        assert [a.response.ids for a in answers] == decode_greedily(run.context.tokenizer, PROMPTS, logits)
    for prompt, each in zip(PROMPTS, answers, strict=True):
        ids = encode_prompt(run.context.tokenizer, f"{context}\n{prompt}" if context else prompt)
        logs = []
        for token in before[prompt]:
            with torch.no_grad():
                logs.append(float(logits(torch.tensor([ids])).log_softmax(-1)[token]))
            ids = [*ids, token]
        expected = torch.tensor(logs).mean().exp().item() if logs else 1.0
        assert each.target_probability == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_a_shadow_that_would_have_been_said_is_passed_over_at_every_token(opened):  # noqa: F811
    run = opened("boundary_expand", schedule={"answer_tokens": LENGTH})
    run.step()
    run.context.model.eval()
    usual = answered(run.context.model, run.context.tokenizer)
    run.context.method_state = {"shadow": torch.tensor([usual[0][1]])}
    with run.method.inference_context(run.context, 1):
        found = answered(run.context.model, run.context.tokenizer)
    assert found == decode_greedily(run.context.tokenizer, PROMPTS, expected_logits(run))
    assert found[0] != usual[0]


@pytest.mark.parametrize("name", some_quick(ARCHITECTURES, 2))
def test_whp_answers_from_both_models_caches_on_every_architecture(tiny, zoo, name):  # noqa: F811
    sections = {"model": {"source": str(zoo / name)}, "lora": {"dropout": 0.0}, "method": {"fit_rate": 3e-2}}
    run = opened_edit(tiny, "whp", **sections, schedule={"answer_tokens": LENGTH})
    for _ in range(3):
        run.step()
    run.context.model.eval()
    said = [each.response.ids for each in run.answers(PROMPTS)]
    assert said == decode_greedily(run.context.tokenizer, PROMPTS, expected_logits(run))
    ids = torch.tensor([encode_prompt(run.context.tokenizer, PROMPTS[1])])
    with torch.no_grad():  # or one cache for both would not be noticed
        assert not torch.allclose(expected_logits(run)(ids), plain(run.context.model)(ids), atol=1e-2)


def test_the_base_has_a_cache_of_its_own_whatever_the_argument_is_called(tiny, monkeypatch):
    """The name of the argument differs between versions of transformers (`past_key_values` until 5.23)."""
    run = opened_edit(tiny, "whp", lora={"dropout": 0.0}, method={"fit_rate": 3e-2})
    run.step()
    run.context.model.eval()
    inner = run.context.model.get_base_model()
    native = inner.forward
    name = (
        "cache" if "cache" in inspect.signature(inspect.unwrap(type(inner).forward)).parameters else "past_key_values"
    )
    ids = torch.tensor([encode_prompt(run.context.tokenizer, PROMPTS[1])])
    with torch.no_grad(), held_back(run.context, 2.0):
        whole = inner(input_ids=ids, use_cache=False).logits
        monkeypatch.setattr(inner, "forward", lambda renamed=None, **more: native(**{name: renamed}, **more))
        first = inner(input_ids=ids[:, :9], use_cache=True)
        rest = inner(input_ids=ids[:, 9:], use_cache=True, renamed=first[name])
    torch.testing.assert_close(torch.cat([first.logits, rest.logits], 1), whole, rtol=1e-4, atol=1e-4)


def test_a_state_that_two_models_cannot_share_is_refused_with_a_way_out(tiny):
    """RWKV has no cache: its forward pass writes into the tensors that it is given."""
    run = opened_edit(tiny, "whp", lora={"dropout": 0.0})
    run.step()
    run.context.model.eval()
    inner = run.context.model.get_base_model()
    ids = torch.tensor([encode_prompt(run.context.tokenizer, PROMPTS[1])])

    def with_a_state(module, args, kwargs, output):
        output["state"] = [torch.zeros(1)]
        return output

    sentence = "carries 'state' from token to token.*'task_vector'"
    hook = inner.register_forward_hook(with_a_state, with_kwargs=True)
    with torch.no_grad(), hook, held_back(run.context, 2.0), pytest.raises(ConfigError, match=sentence):
        inner(input_ids=ids, use_cache=True)
