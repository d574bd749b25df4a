"""Methods that edit weights or change what is read: theorems of each, and twins computed another way."""

from __future__ import annotations

import gc
import inspect
import warnings
from itertools import islice

import pytest
import torch
from torch.nn import functional

from tests.quick import some_quick
from unlearn_core.methods import METHODS
from unlearn_core.methods.in_context import example, shown
from unlearn_core.methods.shared.fitted_adapter import negated, off_retain_gradients, put, reinforced
from unlearn_core.methods.shared.importance import (
    forget_share,
    importance,
    importance_ratio,
    memorized,
    output_norm,
    squared_outputs,
    threshold_for,
)
from unlearn_core.methods.ssd import threshold_at
from unlearn_core.methods.whp import held_back
from unlearn_core.model.adapters import save_adapter
from unlearn_core.model.batches import Tokens, collate
from unlearn_core.model.loading import load_base
from unlearn_core.model.losses import nll
from unlearn_core.model.sampling import answer

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]

FULL = ("ssd", "lfssd", "potion")
EDITS = ("task_vector", "whp", *FULL, "guard_prompt", "in_context")
QUICK = {
    "task_vector": {"fit_steps": 6, "fit_rate": 1e-2}, "whp": {"fit_steps": 6, "fit_rate": 1e-2},
    "ssd": {"samples": 6}, "lfssd": {"samples": 6}, "potion": {"samples": 6, "memory": 0.0},
    "potion_retain": {"samples": 6, "memory": 0.0, "tries": 3},
}  # fmt: skip


def opened(tiny, name: str, kind: str = "gptj", steps: int = 6, **sections):
    """A run of a method of this file on the tiny model, its preparations made."""
    where = METHODS[name].facts.where[0]
    sections["method"] = {"name": name, **QUICK.get(name, {}), **sections.get("method", {})}
    sections["schedule"] = {"steps": steps, **sections.get("schedule", {})}
    return tiny.open(kind, guard_rail={"kind": "none"}, where={"kind": where}, **sections)


def numbers(run) -> torch.Tensor:
    return run.context.adapter.values.detach().clone()


@torch.no_grad()
def logits_of(run, tokens: Tokens) -> torch.Tensor:
    run.context.model.eval()
    return run.context.model(input_ids=tokens.ids, attention_mask=tokens.mask, use_cache=False).logits


def some(run, count: int = 4) -> Tokens:
    return collate(sorted(run.context.windows.forget, key=len)[::3][:count], run.context.pad_id)


@pytest.fixture(scope="module")
def knowing(tiny, tmp_path_factory) -> str:
    """The tiny model after it has learned its forget and retain texts: what knows nothing cannot forget."""
    torch.set_num_threads(1)  # a module's fixture comes before `one_thread`
    folder = tmp_path_factory.mktemp("knowing")
    model, tokenizer = load_base(tiny.root / "gptj")
    windows = tiny.open().context.windows
    tokens = collate([*windows.forget, *windows.retain[:30]], tokenizer.pad_token_id)
    learner = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(80):
        learner.zero_grad()
        nll(model, tokens).token_mean.backward()
        learner.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


# --------------------------------------------------------------------------------------------------- what all share


@pytest.mark.slow
@pytest.mark.parametrize("name", some_quick(EDITS, 2))
def test_a_step_of_the_dial_depends_on_the_step_alone_and_is_the_same_in_a_run_that_was_restored(tiny, name, tmp_path):
    run = opened(tiny, name)
    records = [run.step().values for _ in range(3)]
    run.save(tmp_path, whole=True)
    other = opened(tiny, name)
    edited = other.method.apply_step(other.context, 3)
    assert edited.pop("end", 0) == 0 and edited == {key: records[2][key] for key in edited}
    assert torch.equal(numbers(other), numbers(run))
    other.method.apply_step(other.context, 5)
    other.restore(tmp_path)
    for again, first in zip(islice(iter(other.step, None), 2), islice(iter(run.step, None), 2), strict=True):
        assert {**again.values, "step_seconds": 0} == {**first.values, "step_seconds": 0}
    assert torch.equal(numbers(other), numbers(run))


@pytest.mark.parametrize("name", some_quick(["task_vector", "whp", "ssd", "potion_retain"]))
def test_preparing_leaves_the_model_as_it_began_and_says_how_far_it_is(tiny, name):
    run = opened(tiny, name)
    told: list[tuple[str, str]] = []
    run.report = lambda stage, detail="": told.append((stage, detail))
    before = numbers(run)
    first = run.method.prepare(run.context)
    assert torch.equal(numbers(run), before) and not run.context.adapter.gradient.any()
    assert all(
        torch.equal(first[key], run.context.method_state[key]) for key in run.context.method_state
    )  # twice the same
    assert told and all(stage and " of " in detail for stage, detail in told)

    def ends(stage: str, detail: str = "") -> None:
        if stage == told[-1][0] and detail.startswith("2 of"):
            raise InterruptedError

    run.report = ends
    with pytest.raises(InterruptedError):
        run.method.prepare(run.context)
    assert torch.equal(numbers(run), before)


# ----------------------------------------------------------------------------------------------------- task vectors


@pytest.fixture(params=["fresh", "continued"])
def vector(request, tiny, tmp_path):
    """A run of a task vector, on a fresh adapter and on one that it goes on from."""
    if request.param == "fresh":
        return opened(tiny, "task_vector")
    return opened(tiny, "task_vector", model={"adapter": continued_from(tiny, tmp_path)})


def continued_from(tiny, folder) -> str:
    """An adapter of an earlier run, which a run can go on from."""
    earlier = tiny.open(lora={"dropout": 0.0}, guard_rail={"kind": "none"})
    for _ in range(3):
        earlier.step()
    save_adapter(earlier.context.model, folder)
    return str(folder)


def weights_added(run, vector: torch.Tensor) -> dict[str, torch.Tensor]:
    """What an adapter's numbers add to the weights of each layer."""
    put(run.context, vector)
    layers = {name: m for name, m in run.context.model.named_modules() if hasattr(m, "get_delta_weight")}
    return {name: layer.get_delta_weight("default").detach().clone() for name, layer in layers.items()}


def test_a_task_vector_at_scale_0_is_the_base_model_to_the_bit(vector):
    tokens = some(vector)
    with vector.context.reference():
        base = logits_of(vector, tokens)
    put(vector.context, negated(vector.context, vector.context.method_state["fitted"], 0.0))
    assert torch.equal(logits_of(vector, tokens), base)
    put(vector.context, vector.context.method_state["fitted"])
    assert not torch.allclose(logits_of(vector, tokens), base)


def test_a_task_vector_takes_away_what_the_fit_added(vector):
    start, fitted = weights_added(vector, numbers(vector)), weights_added(vector, vector.context.method_state["fitted"])
    amount = vector.step().values["dial"]
    assert amount == pytest.approx(vector.config.method.strength / 6)
    for name, now in weights_added(vector, numbers(vector)).items():
        torch.testing.assert_close(now - start[name], -amount * (fitted[name] - start[name]), rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_the_fit_learns_the_forget_text_and_its_negative_forgets_it(tiny, knowing):
    settings = {
        "lora": {"dropout": 0.0},
        "method": {"fit_rate": 3e-3, "fit_steps": 12, "strength": 30.0},
        "schedule": {"batch_size": 12},
    }
    run = opened(tiny, "task_vector", model={"source": knowing}, **settings)
    tokens = collate(run.context.windows.forget, run.context.pad_id)
    put(run.context, run.context.method_state["fitted"])
    assert nll(run.context.model, tokens).token_mean < run.context.reference.nll(tokens).token_mean
    last = [run.step() for _ in range(6)][-1]
    assert last.values["forget_loss"] > run.baseline["forget_loss"] + 0.3


def test_an_orthogonal_task_vector_does_not_change_retain_loss_at_first_order(tiny):
    run = opened(tiny, "task_vector", lora={"dropout": 0.0})
    plain = run.context.method_state["fitted"]
    freed = off_retain_gradients(run.context, plain, 5)
    put(run.context, negated(run.context, plain, 0.0))
    for window in run.context.draw("orthogonal", run.context.windows.retain, 1, 5):
        row = run.context.adapter.gradient_of(
            nll(run.context.model.eval(), collate([window], run.context.pad_id)).token_mean
        )
        along = {name: row @ (each - numbers(run)) / row.norm() for name, each in (("plain", plain), ("freed", freed))}
        assert along["freed"].abs() < 1e-5 < along["plain"].abs()


def test_a_fit_that_breaks_is_refused_with_a_way_out(tiny):
    run = opened(tiny, "task_vector")
    with torch.no_grad():
        run.context.model.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"method\.fit_rate is 0\.5; after 0 of 3"):
        reinforced(run.context, 3, 0.5)


# ------------------------------------------------------------------------------------------------- logit arithmetic


@pytest.fixture(params=["gptj", "llama", "continued"])
def harry(request, tiny, tmp_path):
    kind, model = request.param, {}
    if kind == "continued":
        kind, model = "gptj", {"adapter": continued_from(tiny, tmp_path)}
    run = opened(tiny, "whp", kind, lora={"dropout": 0.0}, method={"fit_rate": 3e-2}, model=model)
    run.method.apply_step(run.context, 1)
    return run


def both(run, tokens: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits of the base model and of the reinforced one, in two passes of their own."""
    with run.context.reference():
        base = logits_of(run, tokens)
    return base, logits_of(run, tokens)


def test_whp_reads_the_logits_of_two_separate_passes(harry):
    tokens = some(harry)
    base, fitted = both(harry, tokens)
    assert not torch.allclose(base, fitted)
    for amount in (0.5, 3.0):
        with held_back(harry.context, amount):
            torch.testing.assert_close(logits_of(harry, tokens), base - amount * functional.relu(fitted - base))
    assert torch.equal(logits_of(harry, tokens), fitted)  # nothing is left of it


def test_whp_at_0_is_the_base_model_to_the_bit(harry):
    tokens = some(harry)
    with held_back(harry.context, 0.0):
        assert torch.equal(logits_of(harry, tokens), both(harry, tokens)[0])


@pytest.mark.slow
def test_whp_answers_with_its_caches_as_it_does_without_any(harry):
    """Greedy, by hand: every token from two whole passes over all that stands before it, one prompt at a time."""
    prompts = ["What is zorblatt?", "The cat", "In the river number 7 a lamp keeps"]
    with harry.method.inference_context(harry.context, 6):
        said = answer(harry.context.model, harry.context.tokenizer, prompts, 12)
    amount = harry.config.method.strength
    for prompt, response in zip(prompts, said, strict=True):
        ids = list(harry.context.tokenizer(prompt)["input_ids"])
        length = len(ids)
        while len(ids) < length + 12:
            alone = Tokens(torch.tensor([ids]), torch.tensor([ids]), torch.ones(1, len(ids)).long(), (), ())
            base, fitted = both(harry, alone)
            ids.append(int((base - amount * (fitted - base).relu())[0, -1].argmax()))
            if ids[-1] == harry.context.tokenizer.eos_token_id:
                ids.pop()
                break
        assert list(response.ids) == ids[length:]
    plain = answer(harry.context.model, harry.context.tokenizer, prompts, 12)
    assert [r.ids for r in said] != [r.ids for r in plain]


@torch.no_grad()
def test_whp_goes_on_from_a_cache_that_was_begun_within_it_and_from_no_other(harry):
    ids = some(harry, 1).ids
    harry.context.model.eval()
    accepted = inspect.signature(inspect.unwrap(type(harry.context.model.get_base_model()).forward)).parameters
    name = "cache" if "cache" in accepted else "past_key_values"  # transformers renames it, model by model
    begun_elsewhere = harry.context.model(input_ids=ids[:, :9], use_cache=True).past_key_values
    with held_back(harry.context, 2.0):
        whole = harry.context.model(input_ids=ids, use_cache=False).logits
        first = harry.context.model(input_ids=ids[:, :9], use_cache=True)
        rest = harry.context.model(input_ids=ids[:, 9:], **{name: first.past_key_values}).logits
        torch.testing.assert_close(torch.cat([first.logits, rest], 1), whole, rtol=1e-4, atol=1e-4)
        with pytest.raises(RuntimeError, match="begun elsewhere"):
            harry.context.model(input_ids=ids[:, 9:], **{name: begun_elsewhere})


# -------------------------------------------------------------------------------------------------------- dampening


def twin_importance(run, windows, loss, power) -> torch.Tensor:
    """The same by torch.autograd.grad, window after window, in one vector in the order of the parameters."""
    run.context.model.eval()
    parameters = [p for p in run.context.model.parameters() if p.requires_grad]
    total = 0.0
    for window in windows:
        found = torch.autograd.grad(
            loss(run.context.model, collate([window], run.context.pad_id)), parameters, allow_unused=True
        )
        flat = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
        total = total + power(torch.cat([g.reshape(-1) for g in flat]))
    return total / len(windows)


def mean_nll(model, tokens):
    return nll(model, tokens).token_mean


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "squared"), [(mean_nll, True), (squared_outputs, False), (output_norm, False)], ids=["ssd", "lf", "potion"]
)
def test_importance_is_that_of_every_window_by_itself(tiny, loss, squared):
    run = opened(tiny, "ssd")
    windows = run.context.windows.forget[:4]
    found = importance(run.context, windows, loss, squared, "weighing")
    power = torch.square if squared else torch.abs
    torch.testing.assert_close(found, twin_importance(run, windows, loss, power), rtol=1e-3, atol=1e-9)
    together = power(run.context.adapter.gradient_of(loss(run.context.model, collate(windows, run.context.pad_id))))
    assert not torch.allclose(found, together, rtol=0.1)  # what squaring the mean of a batch gives
    assert not run.context.adapter.gradient.any()


def test_the_label_free_sizes_are_those_of_the_logits_whatever_the_labels_are(tiny):
    run = opened(tiny, "lfssd")
    tokens = some(run)
    wrong = Tokens(tokens.ids, torch.where(tokens.labels < 0, -100, 5), tokens.mask, tokens.windows, tokens.groups)
    chosen = logits_of(run, tokens)[:, :-1][tokens.labels[:, 1:] >= 0]
    torch.testing.assert_close(squared_outputs(run.context.model, wrong), chosen.square().sum(1).mean())
    torch.testing.assert_close(output_norm(run.context.model, wrong), torch.linalg.vector_norm(chosen, dim=1).mean())


@pytest.mark.slow
@pytest.mark.parametrize("strength", [1.0, 30.0])
def test_ssd_damps_exactly_the_selected_entries(tiny, strength):
    run = opened(tiny, "ssd", steps=3, method={"alpha": 4.0, "alpha_from": 400.0, "damping": strength})
    start = numbers(run)
    ratio, share = run.context.method_state["ratio"], []
    for alpha in (400.0, 40.0, 4.0):
        values = run.step().values
        assert values["dial"] == pytest.approx(alpha)
        selected = ratio > values["dial"]
        assert torch.equal(numbers(run)[~selected], start[~selected])
        factor = (strength / ratio[selected]).clamp(max=1)
        torch.testing.assert_close(numbers(run)[selected], start[selected] * factor)
        share.append(values["damped_share"])
        assert share[-1] == pytest.approx(selected.float().mean().item())
    assert 0 < share[0] < share[1] < share[2] < 1 and torch.isfinite(numbers(run)).all()


@pytest.mark.slow
def test_a_ratio_compares_forget_text_with_text_to_keep_and_no_zero_makes_a_number_that_is_none(tiny):
    run = opened(tiny, "ssd")
    windows = (run.context.windows.forget, [*run.context.windows.retain, *run.context.windows.neighbour])
    forget, keep = (twin_importance(run, each, mean_nll, torch.square) for each in windows)
    ratio = importance_ratio(run.context, mean_nll, True, samples=10_000)
    assert not ratio.isnan().any()
    used = (keep > 1e-12) & (forget > 1e-12)
    torch.testing.assert_close(ratio[used], (forget / keep)[used], rtol=2e-2, atol=1e-6)
    assert used.any() and ((keep == 0) & (forget == 0)).any()
    assert (ratio[(keep == 0) & (forget == 0)] == -1).all()
    assert ratio[(keep == 0) & (forget > 0)].isinf().all()


def test_the_threshold_comes_down_by_equal_factors():
    dial = [threshold_at(step, 5, 1e4, 1.0) for step in range(1, 6)]
    assert dial == pytest.approx([1e4, 1e3, 1e2, 10, 1])
    assert threshold_at(1, 1, 1e4, 3.0) == 3.0


@pytest.mark.slow
def test_importances_take_two_numbers_a_weight_and_no_second_model(tiny):
    """Beside the weights, their start and the run's one gradient: what lies in memory while the second is measured."""
    run = opened(tiny, "ssd")
    run.context.method_state = {}
    count, most = run.context.adapter.values.numel(), []

    def look(parameter: torch.Tensor) -> None:
        with warnings.catch_warnings():  # some objects of torch warn when they are asked for their class
            warnings.simplefilter("ignore")
            tensors = [t for t in gc.get_objects() if isinstance(t, torch.Tensor)]
        large = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        most.append(sum(size >= 4 * count for size in large.values()))

    first = next(run.context.model.parameters())  # the one whose gradient comes last
    look(first)

    def watch(stage: str, detail: str = "") -> None:
        if stage.endswith("retain texts") and detail.startswith("1 of"):
            first.register_post_accumulate_grad_hook(look)

    run.report = watch
    importance_ratio(run.context, mean_nll, True, samples=2)
    assert len(most) > 2 and max(most) <= most[0] + 2


def test_potions_cut_off_is_a_percentile_of_the_ratios_that_are_numbers():
    ratio = torch.tensor([-1.0, float("inf"), *torch.arange(1001.0)])
    for share in (0.0, 0.01, 0.5):
        expected = torch.quantile(torch.arange(1001.0), 1 - torch.log1p(torch.tensor(100 * share)) / 100)
        assert threshold_for(ratio, share) == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.slow
def test_potion_tries_more_and_more_until_the_text_is_not_known_by_heart(tiny, knowing):
    settings = {"growth": 2.0, "memory": 0.43, "samples": 12}
    run = opened(tiny, "potion", steps=12, model={"source": knowing}, method=settings)
    start = memorized(run.context)
    assert start > 0.5 and run.context.method_state["known"] == start
    records = []
    while not records or records[-1].verdict is None:
        records.append(run.step())
    assert records[-1].verdict.rule == "dial" and len(records) > 1
    for number, record in enumerate(records):
        assert record.values["dial"] == pytest.approx(forget_share(run.context) / 25 * 2.0**number)
        assert (record.values["memorized"] <= 0.43 * start) == (record is records[-1])
    assert memorized(run.context) == records[-1].values["memorized"]
    assert records[-1].values["forget_loss"] > run.baseline["forget_loss"] + 0.3


@pytest.mark.slow
def test_potion_then_retain_text_damps_as_potion_ends_and_then_learns(tiny, knowing):
    settings = {"growth": 2.0, "memory": 0.43, "samples": 12}
    plain = opened(tiny, "potion", model={"source": knowing}, method=settings)
    while plain.step().verdict is None:
        pass
    slow = {"optimizer": {"learning_rate": 1e-3}, "schedule": {"batch_size": 8}}
    more = {**settings, "tries": 100}
    mended = opened(tiny, "potion_retain", model={"source": knowing}, method=more, **slow)
    first = mended.step()
    assert torch.equal(numbers(mended), numbers(plain)) and first.verdict is None
    assert mended.context.method_state["try"] == plain.step_number
    last = [mended.step() for _ in range(5)][-1].values
    assert last["retain_loss"] < first.values["retain_loss"] and "dial" not in last


# ---------------------------------------------------------------------------------------------------------- context


@pytest.mark.parametrize("name", ["guard_prompt", "in_context"])
def test_a_context_changes_no_weight_and_grows(tiny, name):
    run = opened(tiny, name, "llama", steps=4)
    run.context.loaded.limit = 400  # rotary positions: nothing but this number sets a limit
    before, method = numbers(run), run.config.method
    texts = [method.prompt_prefix(run.context, step) for step in range(1, 5)]
    assert all(later.startswith(earlier) for earlier, later in zip(texts, texts[1:], strict=False))
    assert len(texts[0]) < len(texts[-1]) and tiny.target in texts[0].lower()
    assert [run.step().values["dial"] for _ in range(4)] == [1, 2, 3, 4]
    assert torch.equal(numbers(run), before)
    assert method.control and not method.facts.unlearns and "not unlearning" in method.facts.label


def test_in_context_examples_are_right_for_what_is_kept_and_wrong_for_the_target(tiny):
    run = opened(tiny, "in_context", "llama", steps=2)
    run.context.loaded.limit = 400
    text = run.method.prompt_prefix(run.context, 2)
    found = run.context.windows.texts
    right = [shown(*example(passage)) for passage in found.retain]
    assert sum(each in text for each in set(right)) >= 2
    assert not any(shown(*example(passage)) in text for passage in found.forget if example(passage)[1])
    assert any(example(passage)[0] in text for passage in found.forget)
    assert len(run.context.tokenizer(text)["input_ids"]) <= run.context.loaded.limit
