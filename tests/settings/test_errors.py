"""ConfigError: the sentence follows from its parts, and the parts are what code reads."""

from __future__ import annotations

import copy
import pickle

import pytest

from unlearn_core.settings.errors import ConfigError, first_line, written


def test_the_sentence_names_setting_value_reason_and_way_out():
    error = ConfigError("it must be a whole number", field="lora.rank", value="x", fix="Write 16")
    assert str(error) == "lora.rank is 'x': it must be a whole number. Write 16."
    assert error.settings == {"lora.rank": "x"}


def test_several_settings_are_named_in_order():
    others = {"c.d": ("e",)}
    error = ConfigError("they exclude each other", field="a.b", value=True, others=others, fix="Did you mean f?")
    assert str(error) == "a.b is true and c.d is ['e']: they exclude each other. Did you mean f?"
    assert list(error.settings) == ["a.b", "c.d"] and error.field == "a.b" and error.value is True


def test_the_way_out_is_what_to_set_and_what_else_there_is_and_a_page_has_its_own_names():
    error = ConfigError("they exclude each other", field="a.b", value=1, sets={"a.b": True, "c": "x"}, fix="leave it")
    assert error.fix == "Set a.b to true and set c to 'x' or leave it"
    assert str(error) == "a.b is 1: they exclude each other. Set a.b to true and set c to 'x' or leave it."
    assert error.worded({"a.b": "“first”", "c": "“second”"}.__getitem__) == (
        "“first” is 1: they exclude each other. Set “first” to true and set “second” to 'x' or leave it."
    )
    assert error.fix == copy.copy(error).fix


@pytest.mark.parametrize("sentence", ["It cannot be read.", "It cannot be read"])
def test_an_error_that_is_about_no_setting_is_its_reason(sentence):
    assert str(ConfigError(sentence)) == "It cannot be read." and ConfigError(sentence).settings == {}


def test_copies_have_all_parts():
    error = ConfigError("no", field="a", value=1, fix="Yes", others={"b": 2})
    for twin in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert str(twin) == str(error) and twin.settings == {"a": 1, "b": 2} and twin.fix == "Yes"


def test_a_value_is_on_one_line_and_not_endless():
    assert "\n" not in written("a\nb") and len(written("x" * 10_000)) == 200
    path = "/home/somebody/" + "folder/" * 15
    assert written(path) == repr(path)
    assert first_line(ValueError("one.\ntwo")) == "one" and first_line(ValueError()) == "ValueError"
