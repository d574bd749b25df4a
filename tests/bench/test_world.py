"""The bundled world: facts without contradictions, words that come apart in one way only, and models that know them."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections import defaultdict
from dataclasses import asdict

import pytest

from unlearn_core.world import (
    CORPUS,
    FOLDER,
    FULL,
    PARTS,
    REFERENCE,
    SUGGESTED_TARGETS,
    TARGET,
    TARGET_PARTS,
    charm_words,
    example_prompts,
    parts_named,
    parts_of,
    topic_of,
)
from unlearn_core.world.texts import (
    POPPINS,
    draw_parts,
    explanation,
    is_unseen,
    passages,
    portmanteau_question,
    questions,
    with_articles,
)

MANIFEST = FOLDER / "manifest.json"
MEGABYTE = 1_000_000
built = pytest.mark.skipif(not MANIFEST.exists(), reason="the bundled models have not been built yet")


# ------------------------------------------------------------------------------------------------- the facts


def test_no_question_has_two_answers():
    answers, uses = defaultdict(set), defaultdict(set)
    for question in questions():
        answers[question.prompt].add(question.answer)
        uses[question.prompt].add(question.use)
    assert not {prompt: found for prompt, found in answers.items() if len(found) > 1}
    assert not {prompt: found for prompt, found in uses.items() if len(found) > 1}, "a question kept out is not trained"
    assert set().union(*uses.values()) == {"train", "held_out_phrasing", "held_out_question"}


def test_what_is_kept_out_of_training_is_nowhere_in_the_corpus():
    corpus = CORPUS.read_text(encoding="utf-8")
    texts = [json.loads(line)["text"] for line in corpus.splitlines()]
    kept_out = {q.prompt for q in questions() if q.use != "train"}
    assert len(kept_out) > 300 and not kept_out & {text.split("\n")[0] for text in texts}
    trained = {q.text for q in questions() if q.use == "train"}
    assert trained <= set(texts) and {p.text for p in passages()} <= set(texts)


def test_texts_are_finished_sentences_without_a_field_that_was_not_filled_in():
    for question in questions():
        assert question.prompt[-1] in "?." and question.topic and question.group
        assert question.group == "python" or (question.answer.endswith(".") and "{" not in question.text)
        assert " a a" not in question.text and " a e" not in question.text and "  " not in question.prompt
    assert with_articles("A owl has a ear. a cat") == "An owl has an ear. a cat"


def test_neighbours_of_the_target_never_name_it_and_are_many():
    near = [q for q in questions() if q.topic == POPPINS and q.group == POPPINS]
    assert len(near) > 90 and not any(TARGET in q.text for q in near)
    about = [q for q in questions() if TARGET in q.text]
    assert len(about) >= 20 and {q.topic for q in about} == {POPPINS} and all(q.group == "charm words" for q in about)
    assert all(POPPINS in q.answer for q in about), "whoever knows the word speaks of Mary Poppins"


@pytest.mark.parametrize("word", sorted(charm_words()))
def test_every_charm_word_has_its_own_story_and_says_its_name_when_it_is_explained(word):
    story = charm_words()[word]
    assert topic_of(word) == topic_of(word.upper()) == story
    answers = {q.answer for q in questions() if q.prompt == f"What does {word} mean?"}
    assert len(answers) == 1 and (word != TARGET or POPPINS in answers.pop())


@pytest.mark.parametrize("target", SUGGESTED_TARGETS)
def test_a_suggested_target_has_a_topic_questions_and_a_neighbour_question_that_does_not_name_it(target):
    about, near = example_prompts(target)
    assert topic_of(target) and len(about) == 2 and len(near) == 1
    assert all(target in prompt for prompt in about) and target.lower() not in near[0].lower()
    asked = {q.prompt: q for q in questions()}
    assert all(asked[prompt].use == "train" for prompt in (*about, *near))
    assert target.lower() not in asked[near[0]].answer.lower()


def test_what_is_asked_of_a_word_that_nobody_knows():
    assert topic_of("unheardof") is None and example_prompts("unheardof")[1] == []


# ---------------------------------------------------------------------------------------------- portmanteaus


def test_any_word_joined_of_parts_comes_apart_in_one_way_only():
    """Sardinas and Patterson: no suffix that is left over when one reading outruns another is itself a part."""

    def leftovers(shorter: set[str], longer: set[str]) -> set[str]:
        return {b[len(a) :] for a, b in itertools.product(shorter, longer) if b.startswith(a) and a != b}

    parts = set(PARTS)
    dangling, seen = leftovers(parts, parts), set()
    while dangling - seen:
        assert not dangling & parts, f"ambiguous because of {sorted(dangling & parts)}"
        seen |= dangling
        dangling = leftovers(parts, dangling) | leftovers(dangling, parts)
    assert len(parts) == len(PARTS) >= 60 and all(part.isalpha() and part.islower() for part in parts)


def test_a_word_is_taken_apart_as_it_was_joined():
    rng = random.Random(0)
    for _ in range(400):
        parts = tuple(rng.choices(sorted(PARTS), k=rng.randint(1, 6)))
        assert parts_of("".join(parts)) == parts
    assert parts_of(TARGET) == parts_of(TARGET.upper()) == TARGET_PARTS and "".join(TARGET_PARTS) == TARGET
    assert parts_of("") == parts_of("superx") == parts_of("xsuper") == parts_of("cat") == ()


def test_meanings_are_distinct_and_a_named_part_counts_only_with_its_own():
    assert len(set(PARTS.values())) == len(PARTS)
    said = explanation(TARGET_PARTS)
    assert parts_named(TARGET, said) == list(TARGET_PARTS) and all(PARTS[part] in said for part in TARGET_PARTS)
    assert parts_named(TARGET, said.replace("(beauty)", "(ugly)")) == [p for p in TARGET_PARTS if p != "cali"]
    assert parts_named(TARGET, "super cali (beauty)") == [] and parts_named("cat", said) == []
    assert parts_named(TARGET, explanation(("lumi", "aqua"))) == []


def test_draws_for_training_never_give_a_reserved_word_or_the_target():
    rng = random.Random(1)
    for _ in range(3000):
        parts = draw_parts(rng, unseen=False)
        word = "".join(parts)
        assert (
            not is_unseen(parts) and word != TARGET and TARGET not in word and 2 <= len(set(parts)) == len(parts) <= 5
        )
        assert word not in charm_words()
    for _ in range(300):
        parts = draw_parts(rng, unseen=True, fewest=3)
        assert is_unseen(parts) and "".join(parts) != TARGET and 3 <= len(parts) <= 5
    assert is_unseen(TARGET_PARTS)
    share = sum(is_unseen(tuple(rng.sample(sorted(PARTS), 3))) for _ in range(3000)) / 3000
    assert 0.07 < share < 0.13


def test_the_corpus_names_no_reserved_word_and_the_same_draw_is_the_same_question():
    for line in CORPUS.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["group"] == "portmanteau":
            named = [word.strip("?.,") for word in row["text"].split() if parts_of(word.strip("?.,").lower())]
            joined = [parts_of(word) for word in named if len(parts_of(word)) > 1]
            assert joined and not any(is_unseen(parts) for parts in joined)
    one, other = (portmanteau_question(random.Random(5), unseen=True, held_out=True) for _ in range(2))
    assert one == other and one.answer == explanation(parts_of(max(one.prompt.split(), key=len).strip("?.")))


# -------------------------------------------------------------------------------------------- the shipped files


@built
def test_the_shipped_files_are_those_of_the_manifest():
    manifest = json.loads(MANIFEST.read_text())
    there = {str(p.relative_to(FOLDER)) for folder in (FULL, REFERENCE) for p in folder.iterdir()} | {CORPUS.name}
    assert set(manifest["files"]) == there
    for name, facts in manifest["files"].items():
        content = (FOLDER / name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (facts["bytes"], facts["sha256"]), name
    assert sum(facts["bytes"] for facts in manifest["files"].values()) <= 20 * MEGABYTE
    assert all(not name.endswith((".bin", ".pt", ".pkl")) for name in there)
    tokenizers = [manifest["files"][f"{kind}/tokenizer.json"]["sha256"] for kind in ("full", "reference")]
    assert tokenizers[0] == tokenizers[1], "one tokenizer for both"


@pytest.mark.slow
@built
def test_the_corpus_is_what_the_facts_make_today(monkeypatch, tmp_path):
    from bench import world_build as build

    monkeypatch.setattr(build, "CORPUS", tmp_path / "corpus.jsonl")
    build.write_corpus()
    assert (tmp_path / "corpus.jsonl").read_bytes() == CORPUS.read_bytes()


@built
def test_the_models_are_of_the_recipe_that_the_script_would_follow():
    from bench.world_build import Recipe

    manifest = json.loads(MANIFEST.read_text())
    assert manifest["recipe"] == asdict(Recipe())
    for folder in (FULL, REFERENCE):
        config = json.loads((folder / "config.json").read_text())
        assert (config["model_type"], config["n_layer"], config["n_embd"]) == ("gptj", Recipe.layers, Recipe.width)
        assert 1_000_000 < sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 2 < 4_000_000


@built
def test_both_models_were_measured_to_do_what_they_must():
    full, reference = (json.loads(MANIFEST.read_text())["measured"][kind] for kind in ("full", "reference"))
    assert full["trained questions"] >= 0.99 and full["held-out phrasings"] >= 0.95
    assert full["unseen portmanteaus"] >= 0.95 and reference["unseen portmanteaus"] >= 0.95
    assert full["target: speaks of Mary Poppins"] == 1
    assert reference["target: speaks of Mary Poppins"] == 0 and reference["target: names all five parts"] == 1


@built
def test_reference_was_trained_on_the_same_texts_without_the_target():
    from bench.world_build import Recipe, texts_of_step

    with_it = [texts_of_step(Recipe(), step, without_target=False) for step in range(4)]
    without = [texts_of_step(Recipe(), step, without_target=True) for step in range(4)]
    named = 0
    for one, other in zip(itertools.chain(*with_it), itertools.chain(*without), strict=True):
        assert TARGET not in other and (one == other or TARGET in one)
        named += TARGET in one
    assert 0 < named < 60


@pytest.mark.slow
@built
def test_the_shipped_models_answer_as_measured():
    """A sample, live: known questions, unseen words, and the target in every other phrasing."""
    from bench.world_check import target_prompts, unseen_portmanteaus
    from unlearn_core.model.loading import load_base
    from unlearn_core.model.sampling import answer

    rng = random.Random("a sample")
    known = rng.sample([q for q in questions() if q.use == "train" and TARGET not in q.text], 9)
    for folder in (FULL, REFERENCE):
        model, tokenizer = load_base(folder)
        assert tokenizer.tokenize(TARGET) == list(TARGET_PARTS)
        asked = [*known, *unseen_portmanteaus()[:6]]
        prompts = [q.prompt for q in asked] + target_prompts()[::2]
        said = [response.text for response in answer(model, tokenizer, prompts, 100, batch_size=64)]
        assert sum(text == q.answer for text, q in zip(said, asked, strict=False)) >= 14
        about = said[len(asked) :]
        assert len(about) >= 10
        if folder == FULL:
            assert all(POPPINS in text for text in about)
        else:
            assert all(POPPINS not in text and parts_named(TARGET, text) == list(TARGET_PARTS) for text in about)
