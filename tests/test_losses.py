"""What each loss promises in formulas: against the library's number, its relatives, at the reference, in the limit."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from unlearn_core.engine import REFUSALS
from unlearn_core.logits import kl_to_reference, labelled, per_token
from unlearn_core.methods import METHODS
from unlearn_core.models import Batch, collate, nll, token_mean, with_answers

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def run(tiny):
    return tiny.open(lora={"dropout": 0.0}, guard_rail={"kind": "none"})


@pytest.fixture
def moved(tiny):
    """A run some steps away from its reference."""
    run = tiny.open(lora={"dropout": 0.0}, guard_rail={"kind": "none"})
    for _ in range(6):
        run.step()
    return run


def some(run, count: int = 4):
    """Windows of different lengths, so that there is padding."""
    return collate(sorted(run.windows.forget, key=len)[:: max(1, len(run.windows.forget) // count)][:count], run.pad_id)


def gradient(run, method, tokens) -> torch.Tensor:
    return run.adapter.gradient_of(method.loss(run.model, Batch(tokens, None, None), run.reference).forget)


def test_a_value_at_every_labelled_token_is_found_where_nll_finds_it(moved):
    tokens = some(moved)
    found = per_token(
        moved.model, tokens, lambda logits, labels, _: functional.cross_entropy(logits, labels, reduction="none")
    )
    assert labelled(tokens) == nll(moved.model, tokens).count.sum()
    torch.testing.assert_close(found, nll(moved.model, tokens).tokens)


def test_the_divergence_from_the_reference_is_zero_at_it_and_torchs_number_away_from_it(run, moved):
    tokens = some(run)
    start = kl_to_reference(run.model, tokens, run.reference)
    assert start.item() == pytest.approx(0, abs=1e-6)
    assert run.adapter.gradient_of(start).abs().max() < 1e-6
    found = kl_to_reference(moved.model, some(moved), moved.reference).item()
    total = count = 0.0
    for window in some(moved).windows:
        alone = collate([window], moved.pad_id)
        with torch.no_grad():
            now = moved.model(input_ids=alone.ids).logits[0, window.first_loss - 1 : -1].log_softmax(-1)
            with moved.reference() as model:
                was = model(input_ids=alone.ids).logits[0, window.first_loss - 1 : -1].log_softmax(-1)
        # The published direction: KL(reference || model), as torch's kl_div takes it.
        total += functional.kl_div(now, was, reduction="sum", log_target=True).item()
        count += len(window) - window.first_loss
    assert found == pytest.approx(total / count, rel=1e-4) and found > 0.01


def test_simnpo_needs_no_reference_and_its_gradient_fades_with_the_loss(moved):
    windows = some(moved, 1)
    found = nll(moved.model, windows)
    mean, tokens = found.mean_per_token.item(), int(found.count)
    ascent = gradient(moved, METHODS["grad_ascent"](), windows)
    for beta, delta in ((0.5, 0.0), (2.5, 4.0)):
        method = METHODS["simnpo"](beta=beta, delta=delta)
        objective = method.loss(moved.model, Batch(windows, None, None), None)
        weight = 2 / (1 + math.exp(beta * (mean - delta)))
        torch.testing.assert_close(moved.adapter.gradient_of(objective.forget), weight * ascent, rtol=1e-3, atol=1e-6)
    assert tokens > 1


def test_weighted_ascent_is_plain_at_zero_and_leaves_a_forgotten_token_alone(moved):
    windows = some(moved)
    plain = moved.adapter.gradient_of(-token_mean(nll(moved.model, windows)))
    torch.testing.assert_close(gradient(moved, METHODS["wga"](beta=0.0), windows), plain, rtol=1e-4, atol=1e-6)
    believed = torch.exp(-nll(moved.model, windows).tokens.detach())
    again = nll(moved.model, windows)
    expected = moved.adapter.gradient_of(-(believed * again.tokens).sum() / again.count.sum())
    torch.testing.assert_close(gradient(moved, METHODS["wga"](beta=1.0), windows), expected, rtol=1e-4, atol=1e-7)


def test_gradient_difference_without_retain_text_is_scaled_ascent(moved):
    windows = some(moved)
    ascent = gradient(moved, METHODS["grad_ascent"](), windows)
    found = gradient(moved, METHODS["grad_diff"](forget_weight=0.3, retain_weight=0.0), windows)
    torch.testing.assert_close(found, 0.3 * ascent, rtol=1e-4, atol=1e-7)


def test_undial_with_nothing_lowered_stays_at_the_reference(run, moved):
    assert gradient(run, METHODS["undial"](beta=0.0), some(run)).abs().max() < 1e-6
    assert gradient(moved, METHODS["undial"](beta=0.0), some(moved)).norm() > 1e-3


def test_undial_aims_at_the_reference_with_the_right_words_logit_lowered(moved):
    """Against torch's cross-entropy with a distribution as its target, a window at a time."""
    tokens, total, count = some(moved), 0.0, 0
    for window in tokens.windows:
        ids = torch.tensor([window.ids])
        labels = ids[0, window.first_loss :]
        with torch.no_grad():
            now = moved.model(input_ids=ids).logits[0, window.first_loss - 1 : -1]
            with moved.reference() as model:
                aim = model(input_ids=ids).logits[0, window.first_loss - 1 : -1].clone()
        aim[range(len(labels)), labels] -= 7.0
        total += functional.cross_entropy(now, aim.softmax(-1), reduction="sum").item()
        count += len(labels)
    found = METHODS["undial"](beta=7.0).loss(moved.model, Batch(tokens, None, None), moved.reference).forget.item()
    assert found == pytest.approx(total / count, rel=1e-4)


def test_cross_entropy_unlearning_moves_away_from_the_right_word_toward_its_own_others(moved):
    """Its gradient on the logits: p - q, q = p without the right word: down by p there, up elsewhere in proportion."""
    seen: dict[str, torch.Tensor] = {}

    class Keeping(torch.nn.Module):
        def forward(self, **inputs):
            found = moved.model(**inputs)
            found.logits.retain_grad()
            seen["logits"] = found.logits
            return found

    window = max(moved.windows.forget, key=len)
    tokens = collate([window], moved.pad_id)
    METHODS["ce_u"]().loss(Keeping(), Batch(tokens, None, None), None).forget.backward()
    moved.adapter.gradient.zero_()
    place = window.first_loss - 1
    p = seen["logits"][0, place].detach().softmax(-1)
    q = p.clone()
    q[window.ids[window.first_loss]] = 0
    expected = (p - q / q.sum()) / (len(window) - window.first_loss)
    torch.testing.assert_close(seen["logits"].grad[0, place], expected, rtol=1e-3, atol=1e-7)


def test_the_self_stopping_form_gives_nothing_at_its_level_and_pulls_harder_further_below(moved):
    windows = some(moved)
    reached = nll(moved.model, windows).mean_per_token.mean().item()
    ascent = gradient(moved, METHODS["grad_ascent"](), windows)

    def pull(level: float, given: float = 0.0) -> torch.Tensor:
        method = METHODS["nabla_tau"](alpha=0.5, level=level)
        batch = Batch(windows, None, None, forget_level=given)
        return moved.adapter.gradient_of(method.loss(moved.model, batch, moved.reference).forget)

    assert torch.count_nonzero(pull(reached - 0.01)) == 0
    torch.testing.assert_close(pull(reached + 1.5), 0.5 * 2 * 1.5 * ascent, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(pull(0.0, given=reached + 1.5), pull(reached + 1.5), rtol=1e-4, atol=1e-7)


def test_the_self_stopping_form_stops_by_itself(tiny):
    settings = {"lora": {"dropout": 0.0}, "guard_rail": {"kind": "none"}, "optimizer": {"name": "sgd"}}
    start = tiny.open(**settings).baseline["forget_loss"]
    run = tiny.open(**settings, method={"name": "nabla_tau", "level": max(0.1, start - 3), "retain_weight": 0.0})
    record = run.step()
    assert record.values["gradient_norm"] == 0 and record.values["update_norm"] == 0 and record.applied


def test_other_answers_follow_the_same_contexts_and_alone_have_the_loss(run):
    tokens = some(run)
    answers = [(7, 8, 9), (5,), tuple(range(20, 50)), (3, 4)][: len(tokens.windows)]
    made = with_answers(tokens, answers, run.pad_id)
    for row, (window, answer, before) in enumerate(zip(made.windows, answers, tokens.windows, strict=True)):
        context = before.ids[: before.first_loss]
        assert window.ids == (*context, *answer)[-len(window.ids) :] and len(window.ids) > len(answer)
        assert made.labels[row][made.labels[row] != -100].tolist() == list(answer)


def test_random_answers_are_texts_to_keep_after_the_forget_contexts(moved):
    """The loss of every pairing, taken one at a time."""
    forget, retain = some(moved, 3), collate(moved.windows.retain[:3], moved.pad_id)
    batch = Batch(forget, retain, None, moved.pad_id)
    rows = len(forget.windows)
    total = 0.0
    for turn in range(2):
        texts = [retain.windows[(row + turn) % 3].ids for row in range(rows)]
        total += token_mean(nll(moved.model, with_answers(forget, texts, moved.pad_id))).item() / 2
    found = METHODS["random_mismatch"](mismatches=2).loss(moved.model, batch, moved.reference).forget
    assert found.item() == pytest.approx(total, rel=1e-5)


def test_the_three_terms_of_llmu_are_those_of_its_parts(moved):
    forget, retain = some(moved, 3), collate(moved.windows.retain[:3], moved.pad_id)
    batch = Batch(forget, retain, None, moved.pad_id)
    found = METHODS["llmu"](forget_weight=0.5, random_weight=2.0, mismatches=2, retain_weight=3.0)
    objective = found.loss(moved.model, batch, moved.reference)
    random = METHODS["random_mismatch"](mismatches=2).loss(moved.model, batch, moved.reference).forget
    ascent = METHODS["grad_ascent"]().loss(moved.model, batch, moved.reference).forget
    torch.testing.assert_close(objective.forget, 0.5 * ascent + 2 * random)
    torch.testing.assert_close(objective.keep, 3 * kl_to_reference(moved.model, retain, moved.reference))


def test_direct_preference_takes_sums_of_log_probabilities_and_is_npo_without_its_refusal(moved):
    forget = some(moved, 3)
    refusals = tuple(moved.refusals[: len(forget.windows)])
    batch = Batch(forget, None, None, moved.pad_id, refusals)
    refused = with_answers(forget, refusals, moved.pad_id)
    now, was = nll(moved.model, refused).sum, moved.reference.nll(refused).sum
    lost = nll(moved.model, forget).sum - moved.reference.nll(forget).sum
    for beta in (0.05, 0.5):
        found = METHODS["idk_dpo"](beta=beta).loss(moved.model, batch, moved.reference).forget
        expected = [-2 / beta * math.log(1 / (1 + math.exp(-beta * x))) for x in (was - now + lost).tolist()]
        assert found.item() == pytest.approx(sum(expected) / len(expected), rel=1e-4)
        npo = METHODS["npo"](beta=beta).loss(moved.model, batch, moved.reference).forget
        alone = 2 / beta * functional.softplus(-beta * lost).mean()
        torch.testing.assert_close(npo, alone)


def test_refusals_are_drawn_for_every_row_end_as_an_answer_ends_and_follow_the_seed(tiny):
    first, second = (tiny.open(method={"name": "idk"}) for _ in range(2))
    drawn = [first._batch(number).refusals for number in (1, 2, 3)]
    assert drawn == [second._batch(number).refusals for number in (1, 2, 3)] and len({*drawn}) > 1
    for row in drawn[0]:
        assert row[-1] == first.tokenizer.eos_token_id
        assert first.tokenizer.decode(row[:-1]).strip() in Path(REFUSALS).read_text().splitlines()
    assert tiny.open(method={"name": "npo"})._batch(1).refusals == ()


def test_idk_learns_to_refuse(tiny):
    run = tiny.open(method={"name": "idk", "retain_weight": 0.0}, lora={"dropout": 0.0}, guard_rail={"kind": "none"})
    losses = [run.step().values["objective"] for _ in range(12)]
    assert losses[-1] < losses[0] - 0.2


def test_the_control_looks_at_no_forget_window(tiny):
    run = tiny.open(method={"name": "retain_only"}, lora={"dropout": 0.0})
    batch = run._batch(1)
    objective = run.config.method.loss(run.model, replace(batch, forget=None), run.reference)  # type: ignore[arg-type]
    assert objective.forget.item() == 0
    torch.testing.assert_close(objective.keep, token_mean(nll(run.model, batch.retain)))
