"""What the model answers as the method has it at a step, beside its answer before step 1."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property

import torch

from unlearn_core.context import RunContext
from unlearn_core.corpus.documents import pair_template
from unlearn_core.methods.base import Method
from unlearn_core.model.batches import collate
from unlearn_core.model.losses import LanguageModel, nll
from unlearn_core.model.prompting import encode_prompt
from unlearn_core.model.sampling import Response, answer
from unlearn_core.model.typicality import surprises
from unlearn_core.model.window import Window
from unlearn_core.settings.errors import ConfigError
from unlearn_core.settings.run_config import check_prompt
from unlearn_core.training.collapse import DRAWN, SURPRISING


@dataclass(frozen=True)
class Answer:
    """A response, what was answered before step 1, and how likely that still is (geometric mean per token).

    `surprise`: how surprising the response is to the model as given, in standard deviations (model/typicality.py).
    `typical_share`: of `DRAWN` answers drawn at temperature 1, the share that it would give; None: not asked for,
    or the response is that of before step 1.
    """

    response: Response
    baseline: str
    target_probability: float
    surprise: float
    typical_share: float | None = None


class Answers:
    """Asks the model of a run; the answers before step 1 are asked once per prompt, since they never change."""

    def __init__(self, context: RunContext, method: Method) -> None:
        self.context, self.method = context, method
        self._baseline: dict[str, Answer] = {}

    def at(self, prompts: Sequence[str], step: int, keep: Collection[str] = ()) -> list[Answer]:
        """The model's answers, as the method has it at `step`. Raises ConfigError for a prompt too long.

        `keep`: those of the prompts whose answers should stay; one that is another is judged by several samples.
        """
        before = [baseline.response for baseline in self.baseline(prompts)]
        prefix = self.method.prompt_prefix(self.context, step) if step else ""
        questions = [f"{prefix}\n{prompt}" if prefix else prompt for prompt in prompts]
        for prompt in questions:
            self._check_length(prompt, prefixed=bool(prefix))
        with self.method.inference_context(self.context, step) if step else nullcontext():
            responses, probabilities = self._ask(questions), self._probabilities(questions, before)
            pairs = zip(prompts, responses, before, strict=True)
            changed = [row for row, (prompt, now, was) in enumerate(pairs) if prompt in keep and now.text != was.text]
            drawn = self._draw([questions[row] for row in changed for _ in range(DRAWN)])
        shares = dict(zip(changed, self._typical_shares([prompts[row] for row in changed], drawn), strict=True))
        rows = zip(responses, before, probabilities, self._surprises(prompts, responses), strict=True)
        return [
            Answer(now, was.text, probability, surprise, shares.get(row))
            for row, (now, was, probability, surprise) in enumerate(rows)
        ]

    def baseline(self, prompts: Sequence[str]) -> list[Answer]:
        """What the model answers with the adapter switched off."""
        if unknown := [prompt for prompt in prompts if prompt not in self._baseline]:
            for prompt in unknown:
                self._check_length(prompt)
            with self.context.reference():
                responses = self._ask(unknown)
                probabilities = self._probabilities(unknown, responses)
            known = zip(unknown, responses, probabilities, self._surprises(unknown, responses), strict=True)
            for prompt, response, probability, surprise in known:
                self._baseline[prompt] = Answer(response, response.text, probability, surprise)
        return [self._baseline[prompt] for prompt in prompts]

    @cached_property
    def _pair_template(self) -> str:
        """The template that questions are put into, as the pairs of the run are; "": its forget texts are no pairs."""
        return pair_template(self.context.config.data)

    def _ask(self, prompts: Sequence[str], temperature: float = 0.0) -> list[Response]:
        context = self.context
        chat, longest = context.config.model.chat_template, context.config.schedule.answer_tokens
        return answer(
            context.model, context.tokenizer, prompts, longest, limit=context.loaded.limit, chat=chat,
            pair_template=self._pair_template, temperature=temperature,
        )  # fmt: skip

    def _draw(self, prompts: Sequence[str]) -> list[Response]:
        """One answer to each, drawn from the model's own distribution, the same for the same model."""
        if not prompts:
            return []
        with torch.random.fork_rng():
            torch.manual_seed(self.context.config.seed)
            return self._ask(prompts, temperature=1.0)

    def _check_length(self, prompt: str, prefixed: bool = False) -> None:
        """Raises ConfigError where a question is too long, with what the method puts before it."""
        if not prefixed:
            check_prompt(prompt)
        limit = self.context.loaded.limit
        if (length := len(self._encoded(prompt))) >= limit:
            behind = ", with what the method puts before it," if prefixed else ""
            raise ConfigError(f"The question{behind} has {length:,} tokens; this model reads {limit:,}. Shorten it.")

    def _encoded(self, prompt: str) -> list[int]:
        chat = self.context.config.model.chat_template
        return encode_prompt(self.context.tokenizer, prompt, chat, self._pair_template)

    def _surprises(self, prompts: Sequence[str], answers: Sequence[Response]) -> list[float]:
        """How surprising the answers are to the model as given, asked by itself."""
        questions, given = [self._encoded(prompt) for prompt in prompts], [each.ids for each in answers]
        with self.context.reference() as before:
            return surprises(LanguageModel(before), questions, given, self.context.pad_id)

    def _typical_shares(self, prompts: Sequence[str], drawn: Sequence[Response]) -> list[float]:
        """Of the `DRAWN` answers to each prompt, one prompt's behind another's, the share that it would give."""
        asked = [prompt for prompt in prompts for _ in range(DRAWN)]
        typical = iter([surprise <= SURPRISING for surprise in self._surprises(asked, drawn)])
        return [sum(next(typical) for _ in range(DRAWN)) / DRAWN for _ in prompts]

    def _probabilities(self, prompts: Sequence[str], answers: Sequence[Response]) -> list[float]:
        """exp(-NLL per token) of each answer after its prompt, in one forward pass. An empty answer: 1."""
        rows = []
        for prompt, given in zip(prompts, answers, strict=True):
            question = self._encoded(prompt)
            rows.append(Window((*question, *given.ids), len(question), prompt, ""))
        if not rows:
            return []
        model = self.context.model
        was_training = model.training
        model.eval()
        with torch.no_grad():
            losses = nll(model, collate(rows, self.context.pad_id, self.context.device)).mean_per_token
        model.train(was_training)
        return torch.exp(-losses).tolist()
