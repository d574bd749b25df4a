"""Whether a model would give an answer: how surprising its tokens are, against how surprising its own would be.

A greedy answer that is another than before is not yet damage: the model as given may find both likely. Of an answer
that a model draws itself, the negative log-likelihood of each token is on average the entropy of its prediction, so
that z = (sum of NLL - sum of entropy) / sqrt(sum of variances) has mean 0 and, of many tokens, standard deviation 1.
An answer that is more surprising than nearly all of its own is one that it would hardly give. (Typical sets: Cover and
Thomas 2006, chapter 3; of language: Meister et al. 2023, arXiv 2202.00666.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from unlearn_core.model.batches import collate
from unlearn_core.model.losses import LanguageModel
from unlearn_core.model.window import Window


@torch.no_grad()
def surprises(
    model: LanguageModel, questions: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], pad_id: int
) -> list[float]:
    """z of every answer behind its question, both as token ids; 0 for an answer without tokens."""
    rows = [row for row, given in enumerate(answers) if len(given)]
    windows = [Window((*questions[row], *answers[row]), len(questions[row]), "", "") for row in rows]
    scores = [0.0] * len(answers)
    if not windows:
        return scores
    labels = [list(range(window.first_loss, len(window))) for window in windows]
    was_training = model.module.training
    model.module.eval()
    try:
        logits = model.logits_at(collate(windows, pad_id, model.device), labels)
    finally:
        model.module.train(was_training)
    for row, predicted in zip(rows, logits, strict=True):
        nll = -predicted.double().log_softmax(-1)
        probability = (-nll).exp()
        entropy = (probability * nll).sum(-1)
        variance = (probability * nll**2).sum(-1) - entropy**2
        chosen = nll.gather(1, torch.tensor(answers[row], device=nll.device)[:, None])[:, 0]
        deviation = variance.sum().clamp(min=1e-12).sqrt()
        scores[row] = ((chosen - entropy).sum() / deviation).item()
    return scores
