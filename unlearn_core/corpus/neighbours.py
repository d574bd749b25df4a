"""Which texts share a subject with the forget passages, and which texts are near duplicates of another."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from unlearn_core.settings.sections import DataSettings

if TYPE_CHECKING:
    from unlearn_core.corpus.passages import Passage

DUPLICATE = 0.9  # Jaccard similarity of the word trigrams from which on two texts are near duplicates
HASHES = 64
BANDS = (5, 11)  # bands, and hashes in each: the library's choice for a threshold of 0.8, which takes it a while
LEAST_COSINE = 0.05
LEAST_CONTEXT = 40  # characters before the target that make a text of their own
COMPARED = 500  # forget passages that candidates are compared with, evenly spread
COMMON = 0.1  # document frequency from which on a word is ignored
WORD = r"(?u)\b[^\W\d_]{3,}\b"


def nearest(
    forget: Sequence[Passage], rest: Sequence[Passage], beside: Sequence[Passage], data: DataSettings
) -> list[tuple[Passage, str]]:
    """At most `neighbour_chunks` (text, why): first the text before an occurrence, then what shares rare words with it.

    Of `rest`, the texts drawn at random, at most a third is taken: the others are the retain set.
    """
    before = [replace(p, text=p.text[: p.occurrences[0].start].rstrip(), whole=False, occurrences=()) for p in forget
              if p.occurrences and not p.turns]  # fmt: skip
    before = without_near_duplicates([passage for passage in before if len(passage.text) >= LEAST_CONTEXT])
    before = _spread(before, max(1, data.neighbour_chunks // 2))
    chosen = [(passage, "text before the target") for passage in before]
    share = len(rest) // 3
    drawn = {id(passage) for passage in rest}
    for passage, why in _ranked(forget, [*beside, *rest]):
        if len(chosen) >= data.neighbour_chunks:
            break
        if id(passage) in drawn:
            if not share:
                continue
            share -= 1
        chosen.append((passage, why))
    return chosen


def _ranked(forget: Sequence[Passage], candidates: Sequence[Passage]) -> list[tuple[Passage, str]]:
    """The candidates that share rare words with a forget passage, the nearest (TF-IDF cosine) first."""
    if not candidates:
        return []
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer

    forget_texts = [_without_target(passage) for passage in _spread(forget, COMPARED)]
    texts = [passage.text for passage in candidates]
    vectorizer = TfidfVectorizer(
        token_pattern=WORD,
        stop_words="english",
        sublinear_tf=True,
        min_df=2,
        max_df=max(2, int(COMMON * (len(texts) + len(forget_texts)))),
    )
    try:
        vectors = vectorizer.fit_transform([*texts, *forget_texts])
    except ValueError:  # no word is in more than one text and in few enough
        return []
    queries = vectors[len(texts) :]
    cosines = (vectors[: len(texts)] @ queries.T).tocsr()
    words = vectorizer.get_feature_names_out()
    best = cosines.max(axis=1).toarray().ravel()
    ranked = []
    for index in np.argsort(-best, kind="stable"):
        if best[index] < LEAST_COSINE:
            break
        query = queries[int(cosines[index].argmax())]
        shared = vectors[index].multiply(query).tocoo()
        order = np.argsort(-shared.data, kind="stable")[:3]
        ranked.append((candidates[index], "shares: " + ", ".join(words[shared.col[place]] for place in order)))
    return ranked


def _without_target(passage: Passage) -> str:
    text, parts, end = passage.text, [], 0
    for mark in passage.occurrences:
        parts.append(text[end : mark.start])
        end = mark.end
    return " ".join([*parts, text[end:]])


def _spread(passages: Sequence[Passage], count: int) -> list[Passage]:
    count = min(count, len(passages))
    return [passages[index * len(passages) // count] for index in range(count)]


def without_near_duplicates(passages: Sequence[Passage]) -> list[Passage]:
    """The passages without near duplicates of an earlier one; those of the bundled world, which has none, all stay."""
    candidates = [passage for passage in passages if not passage.topic]
    if len(candidates) < 2:
        return list(passages)
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(num_perm=HASHES, params=BANDS)
    trigrams_of: dict[int, set[int]] = {}
    dropped: set[int] = set()
    empty = MinHash(num_perm=HASHES, hashfunc=int)
    for number, passage in enumerate(candidates):
        trigrams = _trigrams(passage.text)
        sketch = empty.copy()
        sketch.update_batch(list(trigrams))
        if any(_jaccard(trigrams, trigrams_of[other]) >= DUPLICATE for other in index.query(sketch)):
            dropped.add(id(passage))
        else:
            index.insert(number, sketch)
            trigrams_of[number] = trigrams
    return [passage for passage in passages if id(passage) not in dropped]


def _trigrams(text: str) -> set[int]:
    """Hashes of the word trigrams of a text."""
    words = text.lower().split()
    return {zlib.crc32(" ".join(words[at : at + 3]).encode("utf-8", "replace")) for at in range(max(1, len(words) - 2))}


def _jaccard(one: set[int], other: set[int]) -> float:
    return len(one & other) / max(1, len(one | other))
