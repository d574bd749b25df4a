"""What each loss promises in formulas: against the library's number, its relatives, at the reference, in the limit.

RMU has a file of its own; so have those that do more than take a loss. Where a published implementation was read, its
formula is put down here again, and either agrees with ours or differs by what is named as its defect.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from tests.quick import some_quick
from unlearn_core.corpus.windows import Windows
from unlearn_core.methods import METHODS
from unlearn_core.methods.boundary_expand import shadow_token
from unlearn_core.methods.shared.refusals import REFUSALS, refusals
from unlearn_core.model.batches import Batch, collate
from unlearn_core.model.losses import LanguageModel, kl_to_reference, nll, per_token
from unlearn_core.model.sampling import answer
from unlearn_core.model.window import Window
from unlearn_core.settings.errors import ConfigError

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]


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
    return collate(
        sorted(run.context.windows.forget, key=len)[:: max(1, len(run.context.windows.forget) // count)][:count],
        run.context.pad_id,
    )


def gradient(run, method, tokens) -> torch.Tensor:
    return run.context.adapter.gradient_of(
        method.loss(run.update.model, Batch(tokens, None, None), run.context.reference).forget
    )


def test_a_value_at_every_labelled_token_is_found_where_nll_finds_it(moved):
    tokens = some(moved)
    found = per_token(
        moved.context.model,
        tokens,
        lambda logits, labels, _: functional.cross_entropy(logits, labels, reduction="none"),
    )
    assert tokens.labelled == nll(moved.context.model, tokens).count.sum()
    torch.testing.assert_close(found, nll(moved.context.model, tokens).tokens)


def test_the_divergence_from_the_reference_is_zero_at_it_and_torchs_number_away_from_it(run, moved):
    tokens = some(run)
    start = kl_to_reference(run.context.model, tokens, run.context.reference)
    assert start.item() == pytest.approx(0, abs=1e-6)
    assert run.context.adapter.gradient_of(start).abs().max() < 1e-6
    found = kl_to_reference(moved.context.model, some(moved), moved.context.reference).item()
    total = count = 0.0
    for window in some(moved).windows:
        alone = collate([window], moved.context.pad_id)
        with torch.no_grad():
            now = moved.context.model(input_ids=alone.ids).logits[0, window.first_loss - 1 : -1].log_softmax(-1)
            with moved.context.reference() as model:
                was = model(input_ids=alone.ids).logits[0, window.first_loss - 1 : -1].log_softmax(-1)
        # The published direction: KL(reference || model), as torch's kl_div takes it.
        total += functional.kl_div(now, was, reduction="sum", log_target=True).item()
        count += len(window) - window.first_loss
    assert found == pytest.approx(total / count, rel=1e-4) and found > 0.01


def test_simnpo_needs_no_reference_and_its_gradient_fades_with_the_loss(moved):
    windows = some(moved, 1)
    found = nll(moved.context.model, windows)
    mean, tokens = found.mean_per_token.item(), int(found.count)
    ascent = gradient(moved, METHODS["grad_ascent"](), windows)
    for beta, delta in ((0.5, 0.0), (2.5, 4.0)):
        method = METHODS["simnpo"](beta=beta, delta=delta)
        objective = method.loss(moved.update.model, Batch(windows, None, None), None)
        weight = 2 / (1 + math.exp(beta * (mean - delta)))
        torch.testing.assert_close(
            moved.context.adapter.gradient_of(objective.forget), weight * ascent, rtol=1e-3, atol=1e-6
        )
    assert tokens > 1


def test_weighted_ascent_is_plain_at_zero_and_leaves_a_forgotten_token_alone(moved):
    windows = some(moved)
    plain = moved.context.adapter.gradient_of(-nll(moved.context.model, windows).token_mean)
    torch.testing.assert_close(gradient(moved, METHODS["wga"](beta=0.0), windows), plain, rtol=1e-4, atol=1e-6)
    believed = torch.exp(-nll(moved.context.model, windows).tokens.detach())
    again = nll(moved.context.model, windows)
    expected = moved.context.adapter.gradient_of(-(believed * again.tokens).sum() / again.count.sum())
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
            now = moved.context.model(input_ids=ids).logits[0, window.first_loss - 1 : -1]
            with moved.context.reference() as model:
                aim = model(input_ids=ids).logits[0, window.first_loss - 1 : -1].clone()
        aim[range(len(labels)), labels] -= 7.0
        total += functional.cross_entropy(now, aim.softmax(-1), reduction="sum").item()
        count += len(labels)
    found = (
        METHODS["undial"](beta=7.0)
        .loss(moved.update.model, Batch(tokens, None, None), moved.context.reference)
        .forget.item()
    )
    assert found == pytest.approx(total / count, rel=1e-4)


def test_cross_entropy_unlearning_moves_away_from_the_right_word_toward_its_own_others(moved):
    """Its gradient on the logits: p - q, q = p without the right word: down by p there, up elsewhere in proportion."""
    seen: dict[str, torch.Tensor] = {}

    class Keeping(torch.nn.Module):
        def forward(self, **inputs):
            found = moved.context.model(**inputs)
            found.logits.retain_grad()
            seen["logits"] = found.logits
            return found

    window = max(moved.context.windows.forget, key=len)
    tokens = collate([window], moved.context.pad_id)
    METHODS["ce_u"]().loss(LanguageModel(Keeping()), Batch(tokens, None, None), None).forget.backward()
    moved.context.adapter.gradient.zero_()
    place = window.first_loss - 1
    p = seen["logits"][0, place].detach().softmax(-1)
    q = p.clone()
    q[window.ids[window.first_loss]] = 0
    expected = (p - q / q.sum()) / (len(window) - window.first_loss)
    torch.testing.assert_close(seen["logits"].grad[0, place], expected, rtol=1e-3, atol=1e-7)


def test_the_self_stopping_form_gives_nothing_at_its_level_and_pulls_harder_further_below(moved):
    windows = some(moved)
    reached = nll(moved.context.model, windows).mean_per_token.mean().item()
    ascent = gradient(moved, METHODS["grad_ascent"](), windows)

    def pull(level: float, given: float = 0.0) -> torch.Tensor:
        method = METHODS["nabla_tau"](alpha=0.5, level=level)
        batch = Batch(windows, None, None, extras={"forget_level": given})
        return moved.context.adapter.gradient_of(method.loss(moved.update.model, batch, moved.context.reference).forget)

    assert torch.count_nonzero(pull(reached - 0.01)) == 0
    torch.testing.assert_close(pull(reached + 1.5), 0.5 * 2 * 1.5 * ascent, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(pull(0.0, given=reached + 1.5), pull(reached + 1.5), rtol=1e-4, atol=1e-7)


@pytest.mark.slow
def test_the_self_stopping_form_stops_by_itself(tiny):
    settings = {"lora": {"dropout": 0.0}, "guard_rail": {"kind": "none"}, "optimizer": {"name": "sgd"}}
    start = tiny.open(**settings).baseline["forget_loss"]
    run = tiny.open(**settings, method={"name": "nabla_tau", "level": max(0.1, start - 3), "retain_weight": 0.0})
    record = run.step()
    assert record.values["gradient_norm"] == 0 and record.values["update_norm"] == 0 and record.applied


def test_other_answers_follow_the_same_contexts_and_alone_have_the_loss(run):
    tokens = some(run)
    answers = [(7, 8, 9), (5,), tuple(range(20, 50)), (3, 4)][: len(tokens.windows)]
    made = tokens.with_answers(answers, run.context.pad_id)
    for row, (window, ids, before) in enumerate(zip(made.windows, answers, tokens.windows, strict=True)):
        context = before.ids[: before.first_loss + before.answer_offset]
        assert before.answer_offset > 0 and made.windows[row].answer_offset == 0
        assert window.ids == (*context, *ids)[-len(window.ids) :] and len(window.ids) > len(ids)
        assert made.labels[row][made.labels[row] != -100].tolist() == list(ids)


def test_random_answers_are_texts_to_keep_after_the_forget_contexts(moved):
    """The loss of every pairing, taken one at a time."""
    forget, retain = some(moved, 3), collate(moved.context.windows.retain[:3], moved.context.pad_id)
    batch = Batch(forget, retain, None, moved.context.pad_id)
    rows = len(forget.windows)
    total = 0.0
    for turn in range(2):
        texts = [retain.windows[(row + turn) % 3].ids for row in range(rows)]
        total += nll(moved.context.model, forget.with_answers(texts, moved.context.pad_id)).token_mean.item() / 2
    found = METHODS["random_mismatch"](mismatches=2).loss(moved.update.model, batch, moved.context.reference).forget
    assert found.item() == pytest.approx(total, rel=1e-5)


def test_the_three_terms_of_llmu_are_those_of_its_parts(moved):
    forget, retain = some(moved, 3), collate(moved.context.windows.retain[:3], moved.context.pad_id)
    batch = Batch(forget, retain, None, moved.context.pad_id)
    found = METHODS["llmu"](forget_weight=0.5, random_weight=2.0, mismatches=2, retain_weight=3.0)
    objective = found.loss(moved.update.model, batch, moved.context.reference)
    random = METHODS["random_mismatch"](mismatches=2).loss(moved.update.model, batch, moved.context.reference).forget
    ascent = METHODS["grad_ascent"]().loss(moved.update.model, batch, moved.context.reference).forget
    torch.testing.assert_close(objective.forget, 0.5 * ascent + 2 * random)
    torch.testing.assert_close(
        objective.retain, 3 * kl_to_reference(moved.context.model, retain, moved.context.reference)
    )


def test_direct_preference_takes_sums_of_log_probabilities_and_is_npo_without_its_refusal(moved):
    forget = some(moved, 3)
    answers = refusals(moved.context.tokenizer)[: len(forget.windows)]
    batch = Batch(forget, None, None, moved.context.pad_id, extras={"refusals": answers})
    refused = forget.with_answers(answers, moved.context.pad_id)
    now, was = nll(moved.context.model, refused).sum, moved.context.reference.nll(refused).sum
    lost = nll(moved.context.model, forget).sum - moved.context.reference.nll(forget).sum
    for beta in (0.05, 0.5):
        found = METHODS["idk_dpo"](beta=beta).loss(moved.update.model, batch, moved.context.reference).forget
        expected = [-2 / beta * math.log(1 / (1 + math.exp(-beta * x))) for x in (was - now + lost).tolist()]
        assert found.item() == pytest.approx(sum(expected) / len(expected), rel=1e-4)
        npo = METHODS["npo"](beta=beta).loss(moved.update.model, batch, moved.context.reference).forget
        alone = 2 / beta * functional.softplus(-beta * lost).mean()
        torch.testing.assert_close(npo, alone)


@pytest.mark.slow
def test_refusals_are_drawn_for_every_row_end_as_an_answer_ends_and_follow_the_seed(tiny):
    first, second = (tiny.open(method={"name": "idk"}) for _ in range(2))
    drawn = [tuple(first.draws.batch(number).extras["refusals"]) for number in (1, 2, 3)]
    assert drawn == [tuple(second.draws.batch(number).extras["refusals"]) for number in (1, 2, 3)] and len({*drawn}) > 1
    for row in drawn[0]:
        assert row[-1] == first.context.tokenizer.eos_token_id
        assert first.context.tokenizer.decode(row[:-1]).strip() in Path(REFUSALS).read_text().splitlines()
    assert "refusals" not in tiny.open(method={"name": "npo"}).draws.batch(1).extras


@pytest.mark.slow
def test_idk_learns_to_refuse(tiny):
    run = tiny.open(method={"name": "idk", "retain_weight": 0.0}, lora={"dropout": 0.0}, guard_rail={"kind": "none"})
    losses = [run.step().values["objective"] for _ in range(12)]
    assert losses[-1] < losses[0] - 0.2


def test_the_control_looks_at_no_forget_window(tiny):
    run = tiny.open(method={"name": "retain_only"}, lora={"dropout": 0.0})
    batch = run.draws.batch(1)
    objective = run.config.method.loss(run.update.model, replace(batch, forget=None), run.context.reference)  # type: ignore[arg-type]
    assert objective.forget.item() == 0
    torch.testing.assert_close(objective.retain, nll(run.context.model, batch.retain).token_mean)


# ------------------------------------------------------------------------------------- the retain term as a divergence

CHOOSING = ("grad_diff", "npo", "simnpo", "wga", "idk_dpo")


def with_text_to_keep(run) -> Batch:
    forget = some(run, 3)
    retain, neighbour = (
        collate(run.context.windows.retain[:3], run.context.pad_id),
        collate(run.context.windows.retain[3:5], run.context.pad_id),
    )
    return Batch(
        forget, retain, neighbour, run.context.pad_id, extras={"refusals": refusals(run.context.tokenizer)[:3]}
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", some_quick(CHOOSING, 2))
def test_text_to_keep_is_learned_or_the_reference_is_stayed_with(run, moved, name):
    given = {"retain_weight": 2.0, "neighbour_weight": 0.5}
    for each in (run, moved):
        batch = with_text_to_keep(each)
        learned = METHODS[name](**given).loss(each.update.model, batch, each.context.reference)
        stayed = METHODS[name](**given, retain_term="kl").loss(each.update.model, batch, each.context.reference)
        torch.testing.assert_close(stayed.forget, learned.forget)
        losses = [nll(each.context.model, tokens).token_mean for tokens in (batch.retain, batch.neighbour)]
        torch.testing.assert_close(learned.retain, 2 * losses[0] + 0.5 * losses[1])
        divergences = [
            kl_to_reference(each.context.model, tokens, each.context.reference)
            for tokens in (batch.retain, batch.neighbour)
        ]
        torch.testing.assert_close(stayed.retain, 2 * divergences[0] + 0.5 * divergences[1])
    assert stayed.retain.item() > 0.01
    batch = with_text_to_keep(run)
    start = METHODS[name](**given, retain_term="kl").loss(run.update.model, batch, run.context.reference).retain
    assert start.item() == pytest.approx(0, abs=1e-6) and run.context.adapter.gradient_of(start).abs().max() < 1e-6


def logits_of(run, tokens) -> tuple[torch.Tensor, torch.Tensor]:
    """The model's and the reference's logits of a batch, padding included, as one pass gives them."""
    with torch.no_grad():
        now = run.context.model(input_ids=tokens.ids, attention_mask=tokens.mask).logits
        with run.context.reference() as model:
            return now, model(input_ids=tokens.ids, attention_mask=tokens.mask).logits


def bare_text(run, length: int) -> Window:
    """A text that is trained on from its second token on: without a prompt, and by itself without padding."""
    return replace(
        max(run.context.windows.forget, key=len),
        ids=max(run.context.windows.forget, key=len).ids[:length],
        first_loss=1,
    )


def test_the_published_divergence_counts_padding_and_ours_does_not(moved):
    """OpenUnlearning takes the mean over all positions of a batch, so a short text beside a long one counts less."""

    def published(tokens) -> float:
        now, was = logits_of(moved, tokens)
        return functional.kl_div(
            now.log_softmax(-1).flatten(0, 1), was.log_softmax(-1).flatten(0, 1), reduction="batchmean", log_target=True
        ).item()

    def ours(tokens) -> float:
        return kl_to_reference(moved.context.model, tokens, moved.context.reference).item()

    text = bare_text(moved, 12)
    alone = collate([text], moved.context.pad_id)
    now, was = logits_of(moved, alone)
    last = functional.kl_div(now[0, -1].log_softmax(-1), was[0, -1].log_softmax(-1), reduction="sum", log_target=True)
    # By itself they differ by the last position alone, behind which there is nothing to predict.
    assert (12 * published(alone) - last.item()) / 11 == pytest.approx(ours(alone), rel=1e-4)
    wider = replace(
        alone,
        ids=functional.pad(alone.ids, (0, 20), value=moved.context.pad_id),
        labels=functional.pad(alone.labels, (0, 20), value=-100),
        mask=functional.pad(alone.mask, (0, 20)),
    )
    assert ours(wider) == pytest.approx(ours(alone), rel=1e-5)
    assert published(wider) != pytest.approx(published(alone), rel=0.05)


def test_on_a_text_without_prompt_and_padding_published_undial_is_ours_and_with_a_prompt_it_is_not(moved):
    """OpenUnlearning lowers the logit at index -100 (the hundredth from the end) where there is no label."""

    def published(tokens) -> torch.Tensor:
        now = moved.context.model(input_ids=tokens.ids, attention_mask=tokens.mask).logits
        was, labels = logits_of(moved, tokens)[1], tokens.labels[:, 1:]
        lowered = functional.one_hot(labels % was.shape[-1], was.shape[-1])
        aim = (was[:, :-1] - 10.0 * lowered).softmax(-1)
        return -(aim * now[:, :-1].log_softmax(-1)).sum(-1).mean()

    def apart(first: int) -> float:
        """How far the published gradient lies from ours, as a share of ours."""
        tokens = collate([replace(bare_text(moved, 14), first_loss=first)], moved.context.pad_id)
        ours = gradient(moved, METHODS["undial"](), tokens)
        return ((moved.context.adapter.gradient_of(published(tokens)) - ours).norm() / ours.norm()).item()

    assert apart(1) < 1e-3 and apart(9) > 0.2


def test_where_labels_alone_count_the_published_forms_agree(moved):
    """Weighted ascent, SimNPO, NPO and DPO of OpenUnlearning, from the logits of one padded batch."""
    forget = some(moved, 3)
    answers = refusals(moved.context.tokenizer)[: len(forget.windows)]
    refused = forget.with_answers(answers, moved.context.pad_id)
    batch = Batch(forget, None, None, moved.context.pad_id, extras={"refusals": answers})

    def losses(tokens):
        labels = tokens.labels[:, 1:]
        return [
            functional.cross_entropy(logits[:, :-1].transpose(1, 2), labels, ignore_index=-100, reduction="none")
            for logits in logits_of(moved, tokens)
        ]

    (now, was), (now_refused, was_refused) = losses(forget), losses(refused)
    labelled_ones = forget.labels[:, 1:] != -100
    ratio, ratio_refused = was.sum(1) - now.sum(1), was_refused.sum(1) - now_refused.sum(1)
    mean = now.sum(1) / labelled_ones.sum(1)
    expected = {
        "wga": -((-now).exp() * now)[labelled_ones].mean(),
        "simnpo": -2 / 2.5 * functional.logsigmoid(2.5 * mean).mean(),
        "npo": -2 / 0.1 * functional.logsigmoid(-0.1 * ratio).mean(),
        "idk_dpo": -2 / 0.1 * functional.logsigmoid(0.1 * (ratio_refused - ratio)).mean(),
    }
    for name, value in expected.items():
        found = METHODS[name]().loss(moved.update.model, batch, moved.context.reference).forget
        torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------------------------------- boundaries


def test_shrinking_aims_at_the_reference_s_best_other_word_whatever_the_model_has_become(moved):
    tokens, total, count = some(moved), 0.0, 0
    for window in tokens.windows:
        now, was = (
            part[0, window.first_loss - 1 : -1] for part in logits_of(moved, collate([window], moved.context.pad_id))
        )
        for place, label in enumerate(window.ids[window.first_loss :]):
            best = [token for token in was[place].topk(2).indices.tolist() if token != label][0]
            total -= now[place].log_softmax(0)[best].item()
            count += 1
    found = (
        METHODS["boundary_shrink"]().loss(moved.update.model, Batch(tokens, None, None), moved.context.reference).forget
    )
    assert found.item() == pytest.approx(total / count, rel=1e-4)


def test_expanding_is_the_loss_of_the_shadow_at_every_forget_token(moved):
    tokens = some(moved)
    relabelled = replace(tokens, labels=tokens.labels.where(tokens.labels == -100, 301))
    found = (
        METHODS["boundary_expand"]()
        .loss(moved.update.model, Batch(tokens, None, None, extras={"shadow": 301}), None)
        .forget
    )
    torch.testing.assert_close(found, nll(moved.context.model, relabelled).token_mean)


def test_the_shadow_is_the_highest_id_that_no_text_and_no_tokenizer_uses():
    def text(*ids: int) -> Window:
        return Window(ids, 1, "", "")

    found = Windows((text(1, 9),), (text(2, 7),), (text(3, 3),), (text(4, 5),), 1)
    assert shadow_token(found, 10) == 8 and shadow_token(found, 10, [8]) == 6
    assert shadow_token(found, 14, [13]) == 12 and shadow_token(found, 4) == 0
    with pytest.raises(ConfigError, match="every one of 8 token ids occurs"):
        shadow_token(found, 8, [0, 6])


@pytest.fixture
def expanding(tiny):
    return tiny.open(method={"name": "boundary_expand"}, lora={"dropout": 0.0}, guard_rail={"kind": "none"})


def test_the_shadow_is_prepared_and_given_to_every_step(expanding):
    shadow = int(expanding.context.method_state["shadow"])
    used = {token for found in expanding.context.windows.sets().values() for window in found for token in window.ids}
    assert shadow not in used and shadow not in expanding.context.tokenizer.all_special_ids
    assert expanding.draws.batch(1).extras == expanding.draws.batch(2).extras == {"shadow": shadow}
    losses = [expanding.step().values["objective"] for _ in range(10)]
    assert losses[-1] < losses[0] - 0.5


def test_where_it_is_read_the_shadow_has_no_share_and_the_others_keep_theirs(expanding):
    run, ids = expanding, torch.tensor([[5, 9, 30, 2]])
    with torch.no_grad():
        plain = run.context.model(input_ids=ids).logits
    said = int(plain[0, -1].argmax())  # what it would say is taken for the shadow
    run.context.method_state = {"shadow": torch.tensor([said])}
    with torch.no_grad(), run.method.inference_context(run.context, 1):
        for model in (run.context.model, run.context.model.get_base_model()):
            logits = model(input_ids=ids).logits
            p = plain.softmax(-1)
            expected = p.index_fill(-1, torch.tensor([said]), 0) / (1 - p[..., said : said + 1])
            torch.testing.assert_close(logits.softmax(-1), expected)
    assert torch.equal(run.context.model(input_ids=ids).logits, plain)


def test_the_shadow_is_never_an_answer(expanding):
    run = expanding

    def ids() -> tuple[int, ...]:
        return answer(run.context.model, run.context.tokenizer, ["The cat sees"], 6)[0].ids

    first = ids()[0]
    run.context.method_state = {"shadow": torch.tensor([first])}
    with run.method.inference_context(run.context, 1):
        assert first not in ids()
    assert ids()[0] == first


# ------------------------------------------------------------------------------------------------ ascent and descent


def alternating(tiny, **sections):
    settings = {"name": "ac_dc", "descent_rate": 3.0, "retain_weight": 2.0}
    plain = {"lora": {"dropout": 0.0}, "guard_rail": {"kind": "none"}, **sections}
    return tiny.open(method=settings, **plain)


def test_ascent_looks_at_what_is_forgotten_alone_and_descent_at_what_is_kept_alone(tiny):
    run = alternating(tiny)
    batch, method = with_text_to_keep(run), METHODS["ac_dc"](retain_weight=2.0, neighbour_weight=0.5)
    objective = method.loss(run.update.model, replace(batch, retain=None, neighbour=None), None)
    torch.testing.assert_close(objective.forget, -nll(run.context.model, batch.forget).mean_per_token.mean())
    assert objective.retain is None
    expected = (
        2 * nll(run.context.model, batch.retain).token_mean + 0.5 * nll(run.context.model, batch.neighbour).token_mean
    )
    torch.testing.assert_close(method.descent(run.update.model, replace(batch, forget=None), None), expected)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_step_is_one_of_each_optimizer_from_where_the_other_left_it(tiny):
    """Against two of torch's own optimizers on a twin: their momenta never meet."""
    run, twin = alternating(tiny), alternating(tiny)
    rate, limit = twin.config.optimizer.learning_rate, twin.config.optimizer.max_gradient_norm
    up, down = (torch.optim.AdamW([twin.context.adapter.values], r, weight_decay=0.0) for r in (rate, 3 * rate))
    for number in (1, 2, 3):
        run.step()
        batch, method = twin.draws.batch(number), twin.config.method
        for optimizer in (up, down):
            found = (
                method.loss(twin.update.model, batch, None).forget
                if optimizer is up
                else method.descent(twin.update.model, batch, None)
            )
            gradient = twin.context.adapter.gradient_of(found)
            twin.context.adapter.gradient.copy_(gradient * min(1, limit / gradient.norm().item()))
            optimizer.step()
            twin.context.adapter.gradient.zero_()
        torch.testing.assert_close(run.context.adapter.values, twin.context.adapter.values, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_of_the_two_halves_a_guard_rail_keeps_the_ascent_off_and_leaves_the_descent(tiny):
    """By plain SGD: the whole change, less the descent at its own place, has no part in the protected span."""
    rail = {"kind": "retain_subspace", "apply_to": "update", "rows": "sample"}
    run = alternating(tiny, guard_rail=rail, optimizer={"name": "sgd", "learning_rate": 0.1, "max_gradient_norm": 0.0})
    run.step()
    before = run.context.adapter.values.detach().clone()
    run.step()
    change, rail = run.context.adapter.values.detach() - before, run.update.rail
    batch, method = run.draws.batch(2), run.config.method
    with torch.no_grad():
        run.context.adapter.values.copy_(before)
    ascent = run.context.adapter.gradient_of(method.loss(run.update.model, batch, None).forget)
    kept_off = -0.1 * rail.project_gradient(ascent)
    with torch.no_grad():
        run.context.adapter.values.copy_(before + kept_off)
    descent = -0.3 * run.context.adapter.gradient_of(method.descent(run.update.model, batch, None))
    assert (kept_off + 0.1 * ascent).norm() > 0.01 * ascent.norm()
    torch.testing.assert_close(change, kept_off + descent, rtol=1e-3, atol=1e-6)
