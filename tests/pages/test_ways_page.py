"""The card's third row and the Methods page: what is offered, what is made of it, what is refused and taken back."""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from bench.table import report as measured_report
from pages.run import gauges
from pages.setup import about, first_card, knobs, measured, session
from pages.setup.draft import UNTOUCHED, base, own_method, with_method
from pages.setup.session import METHOD
from storage import RunStore
from tests.pages.test_data_page import write
from tests.pages.test_pages import CutOff, app, begin, button, fill, opened, shown, table_of  # noqa: F401
from unlearn_core.methods import METHODS
from unlearn_core.settings.compatibility import refusals, settle, with_values
from unlearn_core.settings.errors import ConfigError
from unlearn_core.settings.presets import PRESETS
from unlearn_core.settings.run_config import RunConfig
from unlearn_core.settings.sections import RAILS
from unlearn_core.world import TARGET

pytestmark = pytest.mark.slow

OWN = own_method("portmanteau")
RATE, STEPS, RAIL = "card_set optimizer.learning_rate", "card_set schedule.steps", "card_set guard_rail.kind"


@pytest.fixture
def store(tmp_path: Path) -> Any:
    opened = RunStore(tmp_path / "home")
    yield opened
    opened.close()


@pytest.fixture
def card(store: RunStore) -> AppTest:
    return opened("watch", store)


def choose(at: AppTest, method: str) -> AppTest:
    at.selectbox(key=METHOD).set_value(method).run()
    assert not at.exception, at.exception
    return at


def made(at: AppTest, store: RunStore) -> dict[str, Any]:
    """The config of the run that Start makes of the card."""
    before = {run["id"] for run in store.runs()}
    button(at, "start_run").click().run()
    (run,) = [run for run in store.runs() if run["id"] not in before]
    return dict(run["config"])


def same(config: dict[str, Any], **given: Any) -> bool:
    """Whether a config is what a run file with just these settings is, but for what the card words itself."""
    other = RunConfig.from_dict(given).to_dict()
    return all(config[key] == value for key, value in other.items() if key not in ("name", "prompts"))


# ---------------------------------------------------------------------------------------------------- untouched


def test_untouched_the_row_is_the_recipe_and_the_run_is_that_of_an_empty_file(card: AppTest, store: RunStore) -> None:
    assert card.selectbox(key=METHOD).value == OWN
    assert card.number_input(key=RATE).value == PRESETS["portmanteau"].values["optimizer"]["learning_rate"]
    assert "All as the recipe has it." in shown(card) and "Unlike the recipe" not in shown(card)
    assert not [found for found in card.button if found.key == "reset_ways"]
    assert same(made(card, store))


def test_another_recipe_fills_everything_with_its_values(card: AppTest, store: RunStore) -> None:
    card.number_input(key=STEPS).set_value(33).run()
    card.radio(key="card_preset").set_value("post").run()
    assert card.number_input(key=STEPS).value == 90
    assert card.selectbox(key="card_set guard_rail.apply_to").value == "gradient"
    assert "All as the recipe has it." in shown(card)
    assert same(made(card, store), preset="post")


def test_every_setting_of_these_sections_has_a_field_a_name_and_a_meaning() -> None:
    listed = {path: field for rail in RAILS for path, field in knobs.fields_of(OWN, rail).items()}
    named = {f"{section}.{name}" for section, names in knobs.NAMES.items() for name in names}
    assert named <= set(listed)  # what has no name here, as of a plug-in, is called by its own
    for name, rail in zip(METHODS, itertools.cycle(RAILS), strict=False):
        for field in knobs.fields_of(name, rail).values():
            assert field.meaning or field.choices or isinstance(field.default, bool), field.path
            assert "_" not in field.name
    for path, words in knobs.WORDS.items():
        assert path == "lora.modules" or set(words) == set(listed[path].choices)
    assert all(set(words) <= set(listed[path].choices) for path, words in knobs.DOES.items())


# -------------------------------------------------------------------------------------------------- what differs


def test_one_thing_changed_is_said_is_in_the_run_and_can_be_taken_back(card: AppTest, store: RunStore) -> None:
    card.number_input(key=RATE).set_value(4e-4).run()
    assert "Unlike the recipe: learning rate 4e-4 instead of 8e-4." in shown(card)
    button(card, "reset_ways").click().run()
    assert card.number_input(key=RATE).value == 8e-4 and "All as the recipe has it." in shown(card)
    card.number_input(key=RATE).set_value(4e-4).run()
    assert same(made(card, store), optimizer={"learning_rate": 4e-4})


def test_many_differences_are_counted_on_the_card_and_listed_in_the_row(card: AppTest) -> None:
    choose(card, "npo")
    card.number_input(key=RATE).set_value(3e-4).run()
    told = "Negative preference (NPO) instead of Counterfactual distillation; "
    assert f"Unlike the recipe: {told}" in shown(card) and " more." in shown(card)
    assert f"In all: {told}" in shown(card) and "learning rate 3e-4 instead of 8e-4" in shown(card)


def test_what_a_person_types_into_the_row_is_shown_as_text(card: AppTest) -> None:
    write(card, "card_set lora.modules", "<img src=x onerror=alert(1)>")
    assert not card.exception
    assert "adapted layers: &lt;img src=x" in shown(card) and "<img" not in shown(card)


def test_an_emptied_number_is_the_recipe_s(card: AppTest, store: RunStore) -> None:
    card.number_input(key=RATE).set_value(None).run()
    assert not card.exception and "All as the recipe has it." in shown(card)


# ------------------------------------------------------------------------------------------------------- methods


def test_every_method_can_be_chosen_and_is_a_config_with_its_own_settings(card: AppTest) -> None:
    assert len(card.selectbox(key=METHOD).options) == len(METHODS)
    for name in METHODS:
        choose(card, name)
        assert card.latex[0].value.strip("$ \n") == METHODS[name].facts.formula.strip()
        assert str(METHODS[name].facts.fails.split()[0]) in shown(card)
        assert card.session_state["draft"].draft == with_method(UNTOUCHED, name)


def test_a_method_is_listed_with_what_it_does_and_what_is_no_unlearning_is_called_so() -> None:
    for name in METHODS:
        line = about.option(name)
        assert METHODS[name].facts.label in line and about.does(name) in line
        assert METHODS[name].facts.unlearns or "not unlearning" in line
        assert not METHODS[name].control or "control" in line
    groups = [about.group(name) for name in about.ordered(METHODS)]
    assert groups == sorted(groups, key=(about.STEPS, about.EDITS, about.CONTROLS).index)


def test_papers_are_linked() -> None:
    assert about.papers("npo") == ["2404.05868"] and "https://arxiv.org/abs/2404.05868" in about.sheet("npo")


def test_a_method_that_begins_with_another_bundled_model_brings_it_and_takes_it_back(
    card: AppTest, store: RunStore
) -> None:
    choose(card, "gradient_routing")
    assert card.selectbox(key="card_model").value == "bundled-reference" and "never saw" in shown(card)
    choose(card, "npo")
    assert card.selectbox(key="card_model").value == "bundled"
    choose(card, "gradient_routing")
    assert not button(card, "start_run").disabled
    card.selectbox(key="card_model").set_value("bundled").run()
    assert not card.exception and "has learned the word already" in shown(card)  # and what else is offered stays
    assert len(card.selectbox(key="card_set optimizer.name").options) > 1
    card.number_input(key="card_set method.gradient_routing.negate").set_value(1.0).run()
    assert "has learned the word already" not in shown(card)
    config = made(card, store)
    assert config["method"]["negate"] == 1.0 and config["model"]["source"] == "bundled"


def test_a_number_beyond_its_range_is_told_beside_start_and_begins_nothing(card: AppTest, store: RunStore) -> None:
    card.number_input(key="card_set schedule.batch_size").set_value(1_000_000).run()
    assert not card.exception and "“batch size” is 1000000" in shown(card) and "1024" in shown(card)
    button(card, "start_run").click().run()
    assert not card.exception and not store.runs() and "“batch size” is 1000000" in shown(card)
    card.number_input(key="card_set schedule.batch_size").set_value(4).run()
    assert made(card, store)["schedule"]["batch_size"] == 4


def test_what_changes_no_weights_has_nothing_to_train(card: AppTest) -> None:
    choose(card, "guard_prompt")
    assert "This changes no weights" in shown(card)
    assert not [field for field in card.number_input if field.key and "lora." in field.key]


def test_a_run_says_what_is_unusual_about_it() -> None:
    assert knobs.unusual(RunConfig.from_dict({}).to_dict()) == [] == knobs.unusual({})
    given = {"method": {"name": "npo"}, "where": {"kind": "full", "mask": "saliency"}, "optimizer": {"name": "sophia"}}
    told = knobs.unusual(RunConfig.from_dict({**given, "guard_rail": {"kind": "none"}}).to_dict())
    assert told == ["all weights", "rows with the largest forget gradient (SalUn)", "no guard rail", "Sophia-G"]


# ------------------------------------------------------------------------------------------- what goes together


@pytest.mark.parametrize("name", METHODS)
def test_what_is_offered_goes_together_and_the_rest_has_a_reason_in_words(name: str) -> None:
    config, why = base("portmanteau", name)
    assert not why
    for path, field in knobs.fields_of(name, config.guard_rail.kind).items():
        if not field.choices:
            continue
        refused = refusals(config, path)
        for value in set(field.choices) - set(refused):
            RunConfig.from_dict(settle(with_values(config, {path: value}), path).to_dict())
        for error in refused.values():
            assert not any(f"{section}." in error.reason for section in knobs.NAMES)


def test_an_edit_offers_no_guard_rail_and_says_why(card: AppTest) -> None:
    name = next(name for name in METHODS if not METHODS[name].facts.trains)
    choose(card, name)
    assert card.selectbox(key=RAIL).options == [knobs.fields_of(name)["guard_rail.kind"].offered("none")]
    assert "Not offered here" in shown(card) and "takes no gradient steps" in shown(card)
    assert "positions of a dial" in shown(card)
    assert RATE not in [field.key for field in card.number_input]


def test_a_choice_that_excludes_another_makes_it_give_way(card: AppTest, store: RunStore) -> None:
    card.selectbox(key=RAIL).set_value("retain_subspace").run()
    card.selectbox(key="card_set guard_rail.rows").set_value("logit").run()
    card.selectbox(key=RAIL).set_value("one_sided").run()
    assert not card.exception and card.selectbox(key="card_set guard_rail.rows").value == "group"
    assert "guard rail: one-sided (GRU, A-GEM) instead of none" in shown(card)
    assert made(card, store)["guard_rail"]["kind"] == "one_sided"


def test_only_the_knobs_that_mean_something_are_there(card: AppTest) -> None:
    def keys() -> set[str]:
        return {str(field.key) for kind in (card.number_input, card.slider, card.selectbox) for field in kind}

    assert {key for key in keys() if "guard_rail" in key} == {RAIL}
    card.selectbox(key=RAIL).set_value("retain_subspace").run()
    assert "card_set guard_rail.groups" in keys() and "card_set guard_rail.energy" not in keys()
    card.selectbox(key=RAIL).set_value("null_space").run()
    assert "card_set guard_rail.groups" not in keys() and "card_set guard_rail.energy" in keys()
    card.selectbox(key=RAIL).set_value("none").run()
    assert {key for key in keys() if "guard_rail" in key} == {RAIL} and "All as the recipe has it." in shown(card)


def test_a_setting_that_does_nothing_stays_and_says_why(card: AppTest) -> None:
    momentum = card.slider(key="card_set optimizer.momentum")
    assert momentum.disabled and "Only SGD" in momentum.help
    card.selectbox(key="card_set optimizer.name").set_value("sgd").run()
    assert not card.slider(key="card_set optimizer.momentum").disabled


def test_earlier_adapters_of_this_store_can_stay_on_and_then_their_guard_rail_is_offered(store: RunStore) -> None:
    fill(store, begin(store, "the first request", 3), 3, "finished")
    at = opened("watch", store, new="1")
    rail = knobs.fields_of(OWN)["guard_rail.kind"].offered("earlier_adapters")
    assert rail not in at.selectbox(key=RAIL).options and "there are no earlier adapters" in shown(at)
    (folder,) = at.multiselect(key="card_earlier").options
    assert folder.startswith("the first request")
    at.multiselect(key="card_earlier").select(folder).run()
    assert not at.exception and rail in at.selectbox(key=RAIL).options
    assert "1 earlier adapter stays on" in shown(at)
    at.selectbox(key=RAIL).set_value("earlier_adapters").run()
    config = made(at, store)
    assert config["guard_rail"]["kind"] == "earlier_adapters" and Path(config["model"]["earlier"][0]).is_dir()


def test_an_earlier_adapter_from_outside_is_refused_in_a_sentence(store: RunStore, monkeypatch: Any) -> None:
    monkeypatch.setenv("LETHE_ROOTS", str(store.home))
    at = opened("watch", store)
    at.session_state["card_earlier"] = ["/etc"]
    at.run()
    assert not at.exception and "outside of the folders" in shown(at)
    button(at, "start_run").click().run()
    assert not store.runs()


# ---------------------------------------------------------------------------------------------- a run like this


def test_new_run_like_this_fills_the_card(app: AppTest, tmp_path: Path) -> None:  # noqa: F811
    store = app.session_state["store"]
    plain = RunConfig.from_dict({"method": {"name": "npo"}, "optimizer": {"learning_rate": 3e-4}}).to_dict()
    store.create_run(
        name="x", target=TARGET, method="npo", config=plain, provenance={}, seed=0, prompts=plain["prompts"]
    )
    app.switch_page("pages/runs.py").run()
    assert not app.exception and table_of(app)[0]["method"][0] == METHODS["npo"].facts.label
    button(app, "run_again").click().run()
    assert not app.exception and app.selectbox(key=METHOD).value == "npo"
    assert app.number_input(key=RATE).value == 3e-4


def test_a_start_that_is_cut_off_anywhere_has_all_that_was_chosen(tmp_path: Path, monkeypatch: Any) -> None:
    filled = session.widgets(with_method(UNTOUCHED, "npo"))
    filled |= {RATE: 3e-4, "card_ticket": "0badcafe", "card_word": TARGET, "card_forget_0": "What?"}
    for touches in range(1, 400, 13):
        store = RunStore(tmp_path / f"home-{touches}")
        state = CutOff(filled)
        state.left = touches
        monkeypatch.setattr(first_card.st, "session_state", state)
        monkeypatch.setattr(first_card.st, "query_params", CutOff(new="1"))
        with contextlib.suppress(InterruptedError):
            first_card.start_run(store)
        untouched, state.left = state.left > 0, 10_000
        first_card.start_run(store)
        (run,) = store.runs()
        assert same(run["config"], method={"name": "npo"}, optimizer={"learning_rate": 3e-4})
        store.close()
        if untouched:
            return
    pytest.fail("the callback was never gone through whole")


# ------------------------------------------------------------------------------------------------- the Methods page


def headings(at: AppTest) -> list[str]:
    return [name for name in METHODS if f"<h2>{about.heading(name)}</h2>" in shown(at)]


def test_every_method_stands_there_with_formula_knobs_cost_data_memory_and_failings(store: RunStore) -> None:
    at = opened("methods", store)
    assert headings(at) == list(METHODS) and len(at.latex) == len(METHODS)
    assert f"{len(METHODS)} methods" in shown(at)
    for name in METHODS:
        assert about.sheet(name) in shown(at) and about.knob_table(name) in shown(at)


def test_methods_can_be_searched_and_filtered_and_nothing_found_says_so(store: RunStore) -> None:
    at = opened("methods", store)
    at.text_input(key="find").set_value("2404.05868").run()
    assert "npo" in headings(at) and len(headings(at)) < len(METHODS)
    at.text_input(key="find").set_value("<b>zorb</b>").run()
    assert headings(at) == [] and "No method has “&lt;b&gt;zorb&lt;/b&gt;” in it." in shown(at)
    button(at, "show_all").click().run()
    assert headings(at) == list(METHODS)
    at.pills(key="groups").set_value([about.CONTROLS]).run()
    assert {about.group(name) for name in headings(at)} == {about.CONTROLS}
    at.text_input(key="find").set_value("2404.05868").run()
    others = sum(about.matches(name, "2404.05868") for name in METHODS)
    assert headings(at) == [] and f"No method of the kind “controls” has “2404.05868” in it; {others} of" in shown(at)


def test_a_method_is_taken_to_the_card(app: AppTest) -> None:  # noqa: F811
    app.switch_page("pages/methods.py").run()
    button(app, "by_simnpo").click().run()
    assert not app.exception and app.selectbox(key=METHOD).value == "simnpo"
    assert "NPO without a reference (SimNPO) instead of Counterfactual distillation" in shown(app)


def test_the_measured_row_is_shown_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts: dict[str, Any] = {
        "cut": None, "verdict": "forgotten_enough", "step": 12, "steps": 60, "forget_loss": 1.95, "forget_level": 1.9,
        "changes": {"holdout": 0.012, "neighbour": 0.02}, "distance": 0.4, "distance_before": 1.1, "mentions": 0,
        "asked": 2, "parts": 3, "training_seconds": 10, "preparing_seconds": 2, "seconds": 20, "memory": 2e8,
        "sentence": "", "cores": 2, "libraries": dict.fromkeys(("torch", "transformers", "peft"), "1"),
    }  # fmt: skip
    results = tmp_path / "methods.json"
    monkeypatch.setattr(measured, "RESULTS", results)
    assert measured.in_words("npo") == ""
    rows = {"npo": facts, "rmu": None, "simnpo": {"error": "It broke | there."}, "retain_only": facts, "post": facts}
    results.write_text(measured_report(rows).to_json())
    assert "forget loss: 1.95 · holdout loss: +1.2 %" in measured.in_words("npo")
    assert "forgotten enough, 12 of 60" in about.sheet("retain_only")
    assert "measured, at the settings it begins with" in about.sheet("npo") and "learning rate 8e-4" in about.sheet(
        "npo"
    )
    assert "measured, of this recipe" in about.sheet("grad_ascent", "post")
    assert measured.in_words("portmanteau") == "" == measured.in_words("grad_ascent")
    assert measured.in_words("rmu") == "" and "It broke | there" in measured.in_words("simnpo")


# ------------------------------------------------------------------------------------------------------- the gauges


def with_points(store: RunStore, name: str, **points: float) -> AppTest:
    """A run of this method with one step, and these numbers."""
    plain = RunConfig.from_dict({"method": {"name": name}}).to_dict()
    run_id = store.create_run(
        name="x", target=TARGET, method=name, config=plain, provenance={}, seed=0, prompts=plain["prompts"]
    )
    said = [{"prompt_id": p["id"], "text": "so", "tokens": 1, "seconds": 0.1} for p in store.prompts(run_id)]
    for step in (0, 1):
        store.append_step(
            run_id, step, points={"forget_loss": 0.1, "retain_loss": 0.2, **(points if step else {})}, responses=said
        )
    return opened("watch", store, run=run_id)


def test_numbers_of_some_runs_only_have_a_gauge_where_the_run_has_them(store: RunStore) -> None:
    at = with_points(store, "task_vector", dial=0.5, damped_share=0.25, update_norm=1.0)
    assert "<dt>dial</dt><dd>0.500" in shown(at) and "<dt>damped weights</dt><dd>25.0 %" in shown(at)
    assert "scale 0.500" in shown(at)
    assert all(f"<dt>{gauges.GAUGES[name].label}</dt>" not in shown(at) for name in ("gradient_norm", "removed_share"))
    at = with_points(store, "npo", gradient_norm=0.2, unclipped_share=0.1, masked_share=0.5)
    assert "<dt>unclipped</dt>" in shown(at) and "<dt>held fixed</dt><dd>50.0 %" in shown(at)
    assert "<dt>dial</dt>" not in shown(at) and "scale" not in shown(at)
    assert "<dt>condition number</dt>" in shown(at)


def test_a_config_that_is_refused_says_why_in_the_card_s_words() -> None:
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_dict({"guard_rail": {"kind": "one_sided", "rows": "logit"}})
    assert caught.value.worded(knobs.name_of) == (
        "“guard rail” is 'one_sided' and “one direction for each” is 'logit': the gradient of a logit has no harmful "
        "side. Set “one direction for each” to 'group' or choose the guard rail retain_subspace."
    )
    assert [knobs.name_of(path) for path in ("data.target", "prompts[2].text", "method.beta", "data.text_field")] == [
        "The word", "Question 3", "“beta”", "data.text_field",
    ]  # fmt: skip
