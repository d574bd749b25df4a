"""The bundled world: facts, the corpus made of them, and two small models trained on it (`full` and `reference`).

Everything a page needs (what is known of a word, its parts, example targets) is here and imports no torch.
"""

from pathlib import Path

from unlearn_core.world.facts import PARTS, TARGET, TARGET_PARTS
from unlearn_core.world.texts import charm_words, example_prompts, parts_named, parts_of, topic_of

FOLDER = Path(__file__).parent
CORPUS = FOLDER / "corpus.jsonl"
FULL = FOLDER / "full"
REFERENCE = FOLDER / "reference"

# Words of the world that the first card offers as targets: a charm word, a city, a person, and the one this began with.
SUGGESTED_TARGETS = (TARGET, "bibbidibobbidiboo", "Paris", "Marie Curie")

__all__ = [
    "CORPUS",
    "FULL",
    "PARTS",
    "REFERENCE",
    "SUGGESTED_TARGETS",
    "TARGET",
    "TARGET_PARTS",
    "charm_words",
    "example_prompts",
    "parts_named",
    "parts_of",
    "topic_of",
]
