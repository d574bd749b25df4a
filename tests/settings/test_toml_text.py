"""Run files that somebody else wrote: a sentence at once, before memory is taken."""

from __future__ import annotations

import time

import pytest

from unlearn_core.settings import toml_text
from unlearn_core.settings.errors import ConfigError, written
from unlearn_core.settings.run_config import RunConfig, with_settings

HOSTILE = {
    "lists": "x = " + "[" * 100_000,
    "whole lists": "x = " + "[" * 200 + "]" * 200,
    "tables": "x = " + "{a=" * 100_000,
    "a key of many letters": "a" * 3_000 + " = 1",
    "a key of several lines": '"a\\nb" = 1',
    "a long key": ".".join(["a"] * 200_000) + " = 1",
    "a long header": "[" + ".".join(["a"] * 200_000) + "]",
    "a long key with blanks": " . ".join(["a"] * 200_000) + " = 1",
    "a long key in quotation marks": ".".join(['"a"'] * 200_000) + " = 1",
    "a long key in a table": "x = {" + ".".join(["a"] * 200_000) + " = 1}",
    "a large number": f"seed = 1{'0' * 400}",
    "a larger number": f"seed = {'9' * 5_000}",
    "a large number in hexadecimal": f"seed = 0x{'f' * 100_000}",
    "a large learning rate": f"[optimizer]\nlearning_rate = 1{'0' * 400}",
    "beyond float": "[optimizer]\nlearning_rate = 1e999",
    "no number": "[optimizer]\nlearning_rate = nan",
    "many words": "a" * 1_000_000,
    "many quotation marks": '"' * 1_000_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_run_file_is_one_sentence_at_once(name: str, tmp_path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(HOSTILE[name])
    began = time.process_time()
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_dict(toml_text.read(path))
    assert time.process_time() - began < 2
    sentence = str(caught.value)
    assert "\n" not in sentence and len(sentence) < 600


def test_a_run_file_without_end_is_refused(tmp_path) -> None:
    path = tmp_path / "run.toml"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ConfigError, match="more than 4,000,000 bytes"):
        toml_text.read(path)


@pytest.mark.parametrize("value", ["[" * 100_000, "1" + "0" * 400, ".".join("a" * 100)])
def test_what_is_set_by_hand_is_bounded_too_and_a_target_may_be_any_text(value: str) -> None:
    with pytest.raises(ConfigError, match="--set|seed"):
        RunConfig.from_dict(with_settings({}, [f"seed={value}"]))
    assert with_settings({}, [f"data.target={value}"]) == {"data": {"target": value}}


def test_a_number_from_elsewhere_that_no_float_holds_is_a_sentence() -> None:
    for value in (10**400, -(10**5000)):
        with pytest.raises(ConfigError, match="optimizer.learning_rate"):
            RunConfig.from_dict({"optimizer": {"learning_rate": value}})
    assert written(10**5000) == "a int that is too large to be shown"


def test_what_a_run_file_has_is_read_whole() -> None:
    config = RunConfig.from_dict({})
    assert toml_text.parsed(config.to_toml()) == config.to_dict()
