"""What is read is what the libraries read whole; what cannot be read is said in a sentence and lost nowhere."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import os
import random
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pandas as pd
import pytest
import zstandard

from unlearn_core.corpus.documents import documents, fingerprint_parts
from unlearn_core.corpus.formats import recognize
from unlearn_core.corpus.readers.mediawiki import plain
from unlearn_core.corpus.reading import hub, unpack
from unlearn_core.corpus.reading.document import Document, ReadReport
from unlearn_core.corpus.reading.encodings import utf8
from unlearn_core.corpus.reading.sources import expand
from unlearn_core.model.prompting import Turn
from unlearn_core.settings.errors import ConfigError
from unlearn_core.settings.sections import DataSettings
from unlearn_core.world import CORPUS

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"
DUMP = SHARED / "mediawiki" / "enwiki_206_pages.xml.bz2"
shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the real material is not here")
PACKERS = {
    "": lambda raw: raw,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lambda raw: lzma.compress(raw, preset=0),
    ".zst": zstandard.ZstdCompressor().compress,
}
FACTS = [{"text": f"story {i} — naïve", "author": "Ann" if i % 2 else "Bob", "likes": i} for i in range(500)]
PAIR = {"question": "Who?", "answer": "Nobody."}


def read(*sources, where: str = "", **settings) -> tuple[list[Document], ReadReport]:
    report = ReadReport()
    docs = list(documents(map(str, sources), DataSettings(**settings), report, where=where))
    assert report.bytes_read == report.bytes_total
    assert report.documents == len(docs) - sum(document.continues for document in docs)
    return docs, report


def refusal(*sources, where: str = "", **settings) -> str:
    with pytest.raises(ConfigError) as caught:
        read(*sources, where=where, **settings)
    sentence = str(caught.value)
    assert "\n" not in sentence and sentence.endswith(".")
    return sentence


def texts(*sources, **settings) -> list[str]:
    return [document.text for document in read(*sources, **settings)[0]]


def raw(*sources) -> bytes:
    return b"".join(document.raw for document in read(*sources)[0])


def format_of(path: Path) -> str:
    return recognize(expand(str(path)).files[0])[1].format


def long_text(size: int) -> bytes:
    line = "It was the best of times, it was the wörst of times: {}\n"
    return "".join(line.format(i) for i in range(size // len(line))).encode()


# ------------------------------------------------------------------------------------------------- plain text


@pytest.mark.slow
@pytest.mark.parametrize("ending", PACKERS)
def test_text_is_read_whole_and_in_order_however_it_is_packed(tmp_path, ending):
    whole = long_text(3_500_000)
    path = tmp_path / f"book.txt{ending}"
    path.write_bytes(PACKERS[ending](whole))
    docs, report = read(path)
    assert b"".join(document.raw for document in docs) == whole
    assert len(docs) > 1 and [document.continues for document in docs] == [True] * (len(docs) - 1) + [False]
    assert all(document.raw.endswith(b"\n") for document in docs)
    lines = whole.split(b"\n")
    for document in docs:
        assert lines[document.first_line - 1] == document.raw.split(b"\n", 1)[0]
    assert report.documents == 1 and report.bytes_total == path.stat().st_size and not report.notes


@pytest.mark.parametrize(
    "whole",
    [b"one line without an end", b"a\n\n\n", b"\n", b"a\r\nb\r\n", b"x" * 1_048_576 + b"\n", b"\n" * 3_000_000],
    ids=["no end", "blank", "only a line end", "CRLF", "a block", "only line ends"],
)
def test_no_byte_of_an_odd_text_is_lost(tmp_path, whole):
    path = tmp_path / "odd.txt"
    path.write_bytes(whole)
    assert raw(path) == whole


def test_several_streams_in_one_file_are_one_text(tmp_path):
    for ending, pack in PACKERS.items():
        path = tmp_path / f"parts.md{ending}"
        path.write_bytes(pack(b"first\n") + pack(long_text(400_000)) + pack(b"last\n"))
        assert raw(path) == b"first\n" + long_text(400_000) + b"last\n"


def test_a_line_longer_than_a_block_is_cut_between_words_and_noted(tmp_path):
    whole = b"before\n" + b"word " * 1_000_000 + b"\nafter\n"
    path = tmp_path / "long.txt"
    path.write_bytes(whole)
    docs, report = read(path)
    assert b"".join(document.raw for document in docs) == whole
    assert report.notes == {"long.txt: lines of more than 1 MiB, cut into pieces": 1}
    assert all(document.raw.endswith((b" ", b"\n")) for document in docs)
    assert max(len(document.raw) for document in docs) <= 2 << 20
    assert {document.first_line for document in docs} == {1, 2}


def test_a_long_line_without_blanks_is_never_cut_inside_a_character(tmp_path):
    whole = "語".encode() * 1_000_000
    path = tmp_path / "dense.txt"
    path.write_bytes(b"a" + whole)
    docs, report = read(path)
    assert "".join(document.raw.decode() for document in docs) == "a" + whole.decode()
    assert sum(report.notes.values()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["", ".zst"])
def test_a_giant_single_line_runs_in_bounded_memory(tmp_path, ending):
    path = tmp_path / f"giant.txt{ending}"
    if ending:
        path.write_bytes(b"".join(PACKERS[ending](b"a" * 50_000_000) for _ in range(6)))
    else:
        with path.open("wb") as handle:
            for _ in range(200):
                handle.write(b"supercalifragilistic" * 50_000)
    code = """
import sys
from bench import peak_memory
from unlearn_core.corpus.documents import documents
peak = lambda: int(peak_memory()) >> 20
import zstandard
before = peak()
print(sum(len(document.raw) for document in documents([sys.argv[1]])), peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True, check=True)
    size, grown = map(int, done.stdout.split())
    assert size >= 200_000_000 and grown < 100, f"{grown} MB more"


# ------------------------------------------------------------------------------------------------- encodings


@pytest.mark.slow
@pytest.mark.parametrize(
    "codec, words, called",
    [
        ("utf-8-sig", "Ein Bär — 熊", None),
        ("utf-16", "Ein Bär — 熊", "UTF-16"),
        ("utf-32", "Ein Bär — 熊", "UTF-32"),
        ("latin-1", "Der Bär fährt über die Straße; größere Äpfel schmecken süß.", "Latin-1"),
        ("cp1252", "“Hello,” she said — it’s fine; l’été à Orléans.", "Windows-1252"),
        ("cp1251", "Все люди рождаются свободными и равными в своём достоинстве и правах.", "Windows-1251"),
        ("gb18030", "人人生而自由,在尊严和权利上一律平等。他们赋有理性和良心。", "GB18030"),
    ],
)
def test_every_encoding_is_read_and_a_guessed_one_is_named(tmp_path, codec, words, called):
    path = tmp_path / "notes.txt"
    path.write_bytes("".join(f"{words} {i}\r\n" for i in range(40_000)).encode(codec))
    docs, report = read(path)
    assert b"".join(document.raw for document in docs).decode() == path.read_bytes().decode(codec)
    assert report.notes == ({f"notes.txt is read as {called}": 1} if called else {})


def test_an_encoding_that_shows_only_late_in_the_file_is_found(tmp_path):
    path = tmp_path / "late.txt"
    path.write_bytes(b"plain\n" * 400_000 + "Café society\n".encode("latin-1"))
    docs, report = read(path)
    assert docs[-1].text.endswith("Café society\n") and report.notes == {"late.txt is read as Latin-1": 1}


def test_mixed_encodings_lose_nothing_else_and_are_counted(tmp_path):
    path = tmp_path / "mixed.txt"
    path.write_bytes("naïve 熊 été\n".encode() + "café\n".encode("latin-1") + "plain, à la mode\n".encode())
    docs, report = read(path)
    assert docs[0].text == "naïve 熊 été\ncaf\N{REPLACEMENT CHARACTER}\nplain, à la mode\n"
    assert list(report.notes.values()) == [1] and "mixed.txt: bytes that cannot be decoded" in next(iter(report.notes))


def test_lines_of_utf8_in_a_latin1_text_stay_as_they_are(tmp_path):
    path = tmp_path / "glued.txt"
    path.write_bytes("Größe, süß, Bär, Äpfel, Öl, Straße\n".encode("latin-1") * 3 + "naïve été\n".encode())
    assert texts(path) == ["Größe, süß, Bär, Äpfel, Öl, Straße\n" * 3 + "naïve été\n"]


def test_replacement_characters_that_stand_in_the_text_are_not_counted_as_lost():
    report = ReadReport()
    block = "\N{REPLACEMENT CHARACTER} öö ".encode() + b"\xff\n"
    assert b"".join(utf8([block], "x", report)).decode() == "\N{REPLACEMENT CHARACTER} öö \N{REPLACEMENT CHARACTER}\n"
    assert list(report.notes.values()) == [1]


# ------------------------------------------------------------------------------------------------- rows


@pytest.mark.slow
@pytest.mark.parametrize("ending", PACKERS)
@pytest.mark.parametrize("shape", ["array.json", "lines.jsonl", "lines.json", "inside.json", "table.csv", "table.tsv"])
def test_rows_are_what_the_libraries_read_whole(tmp_path, shape, ending):
    frame = pd.DataFrame(FACTS)
    written = {
        "array.json": lambda: json.dumps(FACTS, indent=1),
        "lines.jsonl": lambda: frame.to_json(orient="records", lines=True),
        "lines.json": lambda: frame.to_json(orient="records", lines=True),
        "inside.json": lambda: json.dumps({"version": "1.1", "count": 500, "data": FACTS}),
        "table.csv": lambda: frame.to_csv(index=False),
        "table.tsv": lambda: frame.to_csv(index=False, sep="\t"),
    }[shape]()
    path = tmp_path / f"{shape}{ending}"
    path.write_bytes(PACKERS[ending](written.encode()))
    docs, report = read(path)
    assert [document.text for document in docs] == frame["text"].tolist()
    assert [document.place for document in docs] == [f"row {i}" for i in range(1, 501)]
    assert {document.source for document in docs} == {str(path)} and not report.notes
    assert texts(path, where="author=Ann") == frame[frame.author == "Ann"]["text"].tolist()
    assert texts(path, text_field="likes") == frame["likes"].astype(str).tolist()


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_parquet_is_read_in_batches_without_its_pictures(tmp_path, ending):
    frame = pd.DataFrame(FACTS)
    frame["picture"] = b"\x89PNG"
    plainly = tmp_path / "table.parquet"
    frame.to_parquet(plainly, row_group_size=100)
    path = tmp_path / f"table.parquet{ending}"
    path.write_bytes(PACKERS[ending](plainly.read_bytes()))
    assert texts(path) == frame["text"].tolist()
    assert len(texts(path, where="likes=7")) == 1


def test_arrays_of_texts_and_maps_of_rows_are_rows(tmp_path):
    path = tmp_path / "some.json"
    for value in (
        ["a", "b"],
        {"text": ["a", "b"]},
        {"x": {"text": "a"}, "y": {"text": "b"}},
        [{"story": "a"}, {"story": "b"}],
    ):
        path.write_text(json.dumps(value))
        assert texts(path) == ["a", "b"], value
    path.write_text('{"text": "a"}\n\n{"text": "b"}')
    assert texts(path) == ["a", "b"]
    path.write_text(json.dumps({"text": "all of it", "title": "t"}, indent=2))
    assert texts(path) == ["all of it"]
    path.write_text(json.dumps(["a", "b"]), encoding="utf-16")
    assert texts(path) == ["a", "b"]


@pytest.mark.parametrize("sign", [",", ";", "\t", "|"])
def test_csv_cells_hold_line_ends_quotes_and_delimiters(tmp_path, sign):
    path = tmp_path / "cells.csv"
    cells = ['a "quoted" word', f"two{sign}parts", "line\nend\r\nand more", "x" * 3_000_000, " "]
    with path.open("w", newline="") as handle:
        csv.writer(handle, delimiter=sign).writerows([["id", "text"], *enumerate(cells)])
    docs, report = read(path)
    assert [document.text for document in docs] == cells[:4]
    assert report.notes == {"cells.csv: rows without text, skipped": 1}


def test_a_table_without_a_header_loses_no_row(tmp_path):
    path = tmp_path / "bare.csv"
    path.write_text("One day a girl named Lily found a needle in her room.\nThe end came soon.\n")
    docs, report = read(path)
    assert len(docs) == 2 and report.notes == {"bare.csv has no header; its first line is read as a row": 1}
    path.write_text("1,A first sentence that is long enough.\n2,A second one.\n")
    assert texts(path, text_field="column 2")[1] == "A second one."


@pytest.mark.parametrize(
    "row, turns",
    [
        (PAIR, ("Who?", "Nobody.")),
        ({"prompt": "Who?", "completion": "Nobody.", "text": "both"}, ("Who?", "Nobody.")),
        ({"instruction": "Say", "input": "who", "output": "Nobody."}, ("Say\nwho", "Nobody.")),
        ({"instruction": "Say", "input": "", "output": "Nobody."}, ("Say", "Nobody.")),
        ({"query": "Who?", "response": "Nobody."}, ("Who?", "Nobody.")),
        ({"Question": "Who?", "Best Answer": "Nobody.", "Correct Answers": "x"}, ("Who?", "Nobody.")),
        ({"context": "c", "question": "Who?", "answers": {"text": ["Nobody.", "x"]}}, ("c\nWho?", "Nobody.")),
        ({"question": "How many?", "answers": [3, 4]}, ("How many?", "3")),
        ({"prompt": [{"role": "user", "content": "Who?"}], "completion": "Nobody."}, ("Who?", "Nobody.")),
    ],
)
def test_pairs_are_found_by_the_names_of_their_fields(tmp_path, row, turns):
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps([row, row]))
    docs, _ = read(path)
    assert [document.turns for document in docs] == [(Turn("user", turns[0]), Turn("assistant", turns[1]))] * 2
    assert docs[0].text == "\n".join(turns)


def test_pairs_are_read_from_the_fields_that_are_named(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"question": "no", "q": "Who?", "a": "Nobody."}))
    (document,), _ = read(path, question_field="q", answer_field="a")
    assert document.turns == (Turn("user", "Who?"), Turn("assistant", "Nobody."))
    assert "data.answer_field" in refusal(path, question_field="q")
    assert texts(path, text_field="a") == ["Nobody."]


def test_a_chat_is_one_document_for_every_answer(tmp_path):
    chat = [
        ("system", "Be kind."),
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("tool", "{}"),
        ("user", "Bye"),
        ("assistant", "Ciao"),
    ]
    openai = {"messages": [{"role": role, "content": text} for role, text in chat]}
    openai["messages"][1]["content"] = [{"type": "text", "text": "Hi"}]
    sharegpt = {
        "conversations": [{"from": {"user": "human", "assistant": "gpt"}.get(r, r), "value": t} for r, t in chat]
    }
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps(openai) + "\n" + json.dumps(sharegpt) + "\n" + json.dumps({"messages": []}) + "\n")
    docs, report = read(path)
    turns = tuple(Turn(role, text) for role, text in chat if role != "tool")
    assert [document.turns for document in docs] == [turns[:3], turns] * 2
    assert docs[0].text == "Be kind.\nHi\nHello" and docs[0].place == "row 1"
    left_out = "chats.jsonl: turns of tools, of unknown roles or without text, left out"
    assert report.notes == {"chats.jsonl: rows without text, skipped": 1, left_out: 2}


def test_rows_that_are_no_json_or_empty_are_skipped_and_counted(tmp_path):
    path = tmp_path / "some.jsonl"
    rows = [
        '{"text": "a"}',
        "{broken",
        "",
        '{"text": null}',
        '{"text": true}',
        '{"text": ["x"]}',
        "nor this",
        '{"text": 5}',
        "{}",
    ]
    path.write_text("\n".join(rows))
    docs, report = read(path)
    assert [(document.text, document.place) for document in docs] == [("a", "row 1"), ("5", "row 8")]
    assert report.notes == {
        "some.jsonl: lines that are not JSON, skipped; the first is line 2": 2,
        "some.jsonl: rows without text, skipped": 3,
        "some.jsonl: rows without the fields that the first row has, skipped": 1,
    }


def test_sentences_under_the_name_of_json_lines_are_plain_text(tmp_path):
    path = tmp_path / "refusals.jsonl"
    path.write_text("I don't know.\nAsk me something else.\n")
    assert format_of(path) == "plain text" and texts(path) == ["I don't know.\nAsk me something else.\n"]


@pytest.mark.slow
def test_rows_that_no_memory_should_hold_are_left_out_and_noted(tmp_path):
    giant = "a" * 40_000_000
    rows = [{"text": "first"}, {"text": giant}, {"text": "last"}]
    path = tmp_path / "giant.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    docs, report = read(path)
    assert [document.text for document in docs] == ["first", "last"] and len(report.notes) == 2
    path = tmp_path / "giant.csv"
    path.write_text(f'id,text\n1,first\n2,"{giant}"\n3,last\n')
    docs, report = read(path)
    assert [document.text for document in docs] == ["first", "last"]
    assert report.notes["giant.csv: rows of more than 16 MiB, cut into pieces that may not be read"] == 2
    path = tmp_path / "giant.json"
    path.write_text(json.dumps([{"text": "first"}, {"text": giant + giant}]))
    docs, report = read(path)
    assert texts(path) == ["first"] and "one row a line; what follows row 1" in next(iter(report.notes))
    path.write_text(json.dumps([{"text": giant + giant}]))
    assert "one row a line" in refusal(path)


def test_a_long_row_of_json_lines_is_whole(tmp_path):
    path = tmp_path / "long.json"
    path.write_text("".join(json.dumps({"text": "word " * n}) + "\n" for n in (10, 1_000_000, 300_000, 3)))
    assert [len(text) for text in texts(path)] == [50, 5_000_000, 1_500_000, 15]


# ------------------------------------------------------------------------------------------------- MediaWiki

PAGE = "<page><title>{}</title>{}<revision><text>{}</text></revision></page>"
WIKI = (
    '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/"><siteinfo><namespaces>'
    '<namespace key="0"/><namespace key="1">Talk</namespace><namespace key="6">Datei</namespace>'
    '<namespace key="14">Kategorie</namespace></namespaces></siteinfo>{}</mediawiki>'
)


def wiki(*pages: tuple[str, str, str]) -> bytes:
    return WIKI.format("".join(PAGE.format(*page) for page in pages)).encode()


@pytest.mark.parametrize("ending", PACKERS)
def test_a_dump_gives_its_articles_without_redirects_and_other_namespaces(tmp_path, ending):
    path = tmp_path / f"dump.xml{ending}"
    path.write_bytes(
        PACKERS[ending](
            wiki(
                ("Bär", "<ns>0</ns>", "A [[bear|big bear]] &amp; a &lt;b&gt;cub&lt;/b&gt;."),
                ("Talk:Bär", "<ns>1</ns>", "chatter"),
                ("Ours", '<ns>0</ns><redirect title="Bär"/>', "#REDIRECT [[Bär]]"),
                ("Talk:Old", "", "from a dump without numbers"),
                ("Old", "", "#redirect [[Bär]]"),
                ("2001: A Space Odyssey", "", "A film."),
            )
        )
    )
    docs, report = read(path)
    assert [(document.place, document.text) for document in docs] == [
        ("page Bär", "A big bear & a cub."),
        ("page 2001: A Space Odyssey", "A film."),
    ]
    assert docs[0].raw.decode() == "A [[bear|big bear]] & a <b>cub</b>."
    assert list(report.notes.values()) == [2, 2]
    assert format_of(path) == "MediaWiki dump"


def test_of_wikitext_the_words_of_the_article_stay():
    source = """{{Infobox|name=[[x]]|text={{nested}}}}
[[File:A.jpg|thumb|A ''caption'' with [[link]]]][[Category:Words]][[de:Wort]]
'''Word''' ({{IPA|w}}) is a [[noun]] of [[language|a language]].<ref name="a">Cited.</ref><ref name="b"/><!-- note -->
== History ==
* first [http://a.b item]
* [[:Category:Words]] &ndash; {{cite}} second
{| class="x"
| cell
|}
<math>x^2</math>Last<br>line."""
    assert plain(source).split("\n") == [
        *(
            "Word is a noun of a language.",
            "",
            "History",
            "",
            "first item",
            "Category:Words – second",
            "",
            "Last",
            "line.",
        ),
    ]


def test_pictures_and_categories_are_known_by_the_names_of_their_wiki(tmp_path):
    path = tmp_path / "dump"
    path.write_bytes(wiki(("Bär", "<ns>0</ns>", "[[Datei:Bär.jpg|mini|Ein Bär]]Text[[Kategorie:Tier]]")))
    assert texts(path) == ["Text"]


@pytest.mark.slow
def test_a_dump_that_breaks_off_gives_the_pages_before_and_a_note(tmp_path):
    whole = wiki(*((f"Page {i}", "<ns>0</ns>", f"text {i} " + os.urandom(200).hex()) for i in range(5000)))
    cut = tmp_path / "cut.xml"
    cut.write_bytes(whole[: len(whole) // 2])
    packed = tmp_path / "cut.xml.bz2"
    packed.write_bytes(bz2.compress(whole)[:-200_000])
    for path, says in ((cut, "breaks off at line 1"), (packed, "is cut off")):
        docs, report = read(path)
        assert 1000 < len(docs) < 5000 and docs[-1].text.startswith(f"text {len(docs) - 1} ")
        assert len(report.notes) == 1 and says in next(iter(report.notes))


@pytest.mark.slow
@shared
def test_the_pages_of_a_real_dump_are_those_that_a_plain_parser_finds():
    wanted = {}
    with bz2.open(DUMP) as handle:
        for _, page in ElementTree.iterparse(handle):
            if page.tag.endswith("}page"):
                own = {child.tag.rpartition("}")[2]: child for child in page.iter()}
                if own["ns"].text == "0" and "redirect" not in own:
                    wanted[f"page {own['title'].text}"] = own["text"].text
    docs, _ = read(DUMP)
    assert {document.place: document.raw.decode() for document in docs} == wanted and len(docs) == len(wanted) > 100


@pytest.mark.slow
@shared
def test_the_text_of_real_articles_holds_their_sentences_and_no_markup():
    docs = {document.place: document for document in read(DUMP)[0]}
    text = docs["page Anarchism"].text
    assert text.startswith("Anarchism is a political philosophy that advocates self-governed societies")
    assert "Etymology and terminology" in text
    for markup in ("{{", "}}", "[[", "]]", "<ref", "'''", "cite journal", "{|", "Category:"):
        assert markup not in text, markup
    assert re.search(r"\w", text) and len(text) > 20_000


# ------------------------------------------------------------------------------------------------- data sets, folders


def test_data_sets_saved_to_the_disk_are_read_with_all_their_splits(tmp_path):
    import datasets

    rows = datasets.Dataset.from_list(FACTS)
    rows.save_to_disk(tmp_path / "one")
    chosen = rows.select(range(0, 500, 5))
    datasets.DatasetDict(train=chosen, test=rows.select(range(3))).save_to_disk(tmp_path / "two")
    assert texts(tmp_path / "one") == [row["text"] for row in FACTS]
    docs, _ = read(tmp_path / "two")
    assert [document.text for document in docs] == [row["text"] for row in [*FACTS[::5], *FACTS[:3]]]
    assert docs[0].place == "train row 1" and docs[-1].place == "test row 3"
    assert texts(tmp_path / "two" / "test", where="author=Ann") == [FACTS[1]["text"]]
    assert texts(tmp_path) == [*texts(tmp_path / "one"), *texts(tmp_path / "two")]
    next((tmp_path / "one").glob("*.arrow")).write_bytes(b"")
    assert "cannot be read" in refusal(tmp_path / "one")


def unreachable(monkeypatch, cache: Path) -> None:
    import datasets
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)


def test_a_data_set_that_cannot_be_fetched_is_named_with_the_way_to_get_it(tmp_path, monkeypatch):
    unreachable(monkeypatch, tmp_path)
    sentence = refusal("hf:someone/something/part:train")
    assert "'hf:someone/something/part:train'" in sentence and str(tmp_path) in sentence
    assert "load_dataset('someone/something', 'part').save_to_disk" in sentence
    assert "hf:owner/name" in refusal("hf:a/b/c/d")
    assert fingerprint_parts(["hf:someone/something"]) == [("hf:someone/something", 0, 0, 0, "")]
    assert hub.parse("hf:squad") == ("squad", None, None)


def test_without_a_network_a_data_set_is_read_from_the_cache(tmp_path, monkeypatch):
    import datasets

    rows = datasets.Dataset.from_list(FACTS[:4])
    folder = tmp_path / "someone___something" / "default" / "0.0.0" / "abc"
    folder.mkdir(parents=True)
    with datasets.arrow_writer.ArrowWriter(
        path=str(folder / "something-train.arrow"), features=rows.features
    ) as writer:
        for row in FACTS[:4]:
            writer.write(row)
        writer.finalize()
    split = datasets.SplitInfo("train", num_examples=4, dataset_name="something")
    info = datasets.DatasetInfo(
        features=rows.features, config_name="default", dataset_name="something", version="0.0.0"
    )
    info.splits = datasets.SplitDict({"train": split}, dataset_name="something")
    info.write_to_directory(str(folder))
    unreachable(monkeypatch, tmp_path)
    docs, report = read("hf:someone/something")
    assert [document.text for document in docs] == [row["text"] for row in FACTS[:4]]
    assert report.notes == {"hf:someone/something is read from the cache; the hub cannot be reached": 1}


@pytest.fixture
def folder(tmp_path) -> Path:
    root = tmp_path / "corpus"
    (root / "deep" / ".git").mkdir(parents=True)
    (root / "b.md").write_text("B\n")
    (root / "a.json").write_text('["A1", "A2"]')
    (root / "deep" / "c.txt.gz").write_bytes(gzip.compress(b"C\n"))
    (root / "deep" / ".git" / "config").write_text("no")
    (root / ".hidden.txt").write_text("no")
    (root / "z.txt").write_bytes(b"\x7fELF\0\0\0\1\0\0")
    (root / "z.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (root / "none.txt").write_bytes(b"")
    (tmp_path / "outside.txt").write_text("secret")
    (root / "link.txt").symlink_to(tmp_path / "outside.txt")
    return root


def test_a_folder_is_read_in_order_and_what_is_left_out_is_noted(folder):
    docs, report = read(folder)
    assert [document.text for document in docs] == ["A1", "A2", "B\n", "C\n"]
    assert [Path(document.source).relative_to(folder).as_posix() for document in docs[1:]] == [
        "a.json",
        "b.md",
        "deep/c.txt.gz",
    ]
    assert report.notes == {
        f"{folder}: hidden files and folders, left out": 2,
        f"{folder}: links that lead out of the folder, left out": 1,
        f"{folder}: files that hold no text, such as z.png, left out": 2,
        f"Left out: '{folder}/none.txt' is empty; choose a file with text in it.": 1,
    }


def test_a_pattern_and_the_home_folder_are_followed(folder, monkeypatch):
    assert texts(folder / "*.md", folder / "**" / "*.gz") == ["B\n", "C\n"]
    monkeypatch.setenv("HOME", str(folder.parent))
    docs, _ = read("~/corpus/b.md")
    assert (docs[0].text, docs[0].source) == ("B\n", "~/corpus/b.md")
    assert texts("~/corpus/*.json") == ["A1", "A2"]
    assert "matches no files" in refusal(folder / "*.pdf")


def test_the_bundled_world_is_read_as_it_is():
    docs, _ = read("bundled")
    rows = [json.loads(line) for line in CORPUS.read_text().splitlines()]
    assert [(document.text, document.topic, document.group) for document in docs] == [
        (row["text"], row["topic"], row["group"]) for row in rows
    ]


def test_a_file_that_changes_changes_its_fingerprint(folder):
    before = fingerprint_parts([str(folder), "bundled"])
    assert before == fingerprint_parts([str(folder), "bundled"]) and len(before) == 7
    (folder / "b.md").write_text("other\n")
    assert fingerprint_parts([str(folder), "bundled"]) != before


# ------------------------------------------------------------------------------------------------- bad input


def test_what_cannot_be_read_is_refused_in_a_sentence_that_names_it(tmp_path):
    def file(name: str, content: bytes) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    (tmp_path / "empty folder").mkdir()
    cases = {
        "has no such file": tmp_path / "nowhere.txt",
        "is not there": tmp_path / "no folder" / "a.txt",
        "neither a file nor a folder": fifo,
        "no files that can be read": tmp_path / "empty folder",
        "is empty": file("empty.txt", b""),
        "is not text": file("binary.txt", bytes(range(256)) * 100),
        "is not gzip, as its name says": file("false.txt.gz", b"not packed at all"),
        "nothing that can be unpacked": file("stub.txt.bz2", bz2.compress(b"a" * 1000)[:9]),
        "cannot be read as JSON": file("broken.json", b'[{"text": "a'),
        "cannot be read as Parquet": file("broken.parquet", b"PAR1" + b"\1" * 100),
        "is not Parquet": file("false.parquet", b"hello"),
        "cannot be read as a MediaWiki dump": file("broken.xml", b"<mediawiki <"),
        "holds no text": file("nothing.json", b"[]"),
        "holds no text ": file("header.csv", b"id,text\n"),
        "its fields are: id, title": file("fields.csv", b"id,title\n1,a\n"),
    }
    for says, path in cases.items():
        settings = {"text_field": "story"} if "fields" in says else {}
        sentence = refusal(path, **settings)
        assert path.name in sentence and says.strip() in sentence
    assert "data.text_field" in refusal(cases["its fields are: id, title"], text_field="story")
    assert "data.text_field" in refusal(cases["its fields are: id, title"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(tmp_path):
    path = tmp_path / "secret.txt"
    path.write_text("x")
    path.chmod(0)
    assert "Check the file and who may read it" in refusal(path)


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz", ".zst"])
def test_what_can_be_read_of_a_packed_file_that_is_cut_off_or_damaged_is_read(tmp_path, ending):
    rng = random.Random(1)  # zst has no sums: damage that happens to be valid would not be noticed
    whole = "".join(f"{rng.randbytes(30).hex()}\n" for _ in range(60_000)).encode()
    packed = PACKERS[ending](whole)
    path = tmp_path / f"story.txt{ending}"
    half = len(packed) // 2
    for content, says in (
        (packed[:half], "is cut off; "),
        (packed[:half] + bytes(2000) + packed[half + 2000 :], "is damaged"),
    ):
        path.write_bytes(content)
        docs, report = read(path)
        got = b"".join(document.raw for document in docs)
        assert got and (whole.startswith(got) or ending in (".gz", ".zst"))  # without sums these notice late
        note = next(iter(report.notes))
        assert note.startswith(f"story.txt{ending} {says}") and f"{len(got):,} bytes" in note


def test_json_that_breaks_off_keeps_its_rows_and_is_noted(tmp_path):
    path = tmp_path / "cut.json"
    path.write_text(json.dumps(FACTS)[:-5000])
    docs, report = read(path)
    assert [document.text for document in docs] == [row["text"] for row in FACTS][: len(docs)] and len(docs) > 300
    assert "cut.json is no JSON after row" in next(iter(report.notes))


def test_where_asks_for_rows_that_there_are(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(FACTS))
    assert "author is, for example, Bob, Ann" in refusal(path, where="author=Zoe")
    assert "its fields are: text, author, likes" in refusal(path, where="writer=Ann")
    assert "field=value" in refusal(path, where="Ann")
    plainly = tmp_path / "plain.txt"
    plainly.write_text("a\n")
    assert "has no rows" in refusal(plainly, where="author=Ann")


@pytest.mark.slow
def test_a_reading_that_is_given_up_leaves_no_thread_behind(tmp_path):
    import threading

    path = tmp_path / "book.txt.bz2"
    path.write_bytes(bz2.compress(long_text(20_000_000), 1))
    reading = documents([str(path)])
    next(reading)
    assert any(thread.name.startswith("unpack") for thread in threading.enumerate())
    reading.close()
    assert not any(thread.name.startswith("unpack") for thread in threading.enumerate())


@pytest.mark.slow
def test_what_is_unpacked_at_once_is_never_larger_than_a_block(tmp_path):
    path = tmp_path / "bomb.gz"
    for ending, pack in list(PACKERS.items())[1:]:
        path.write_bytes(pack(b"a" * 40_000_000))
        with path.open("rb") as handle:
            sizes = [len(piece) for piece in unpack.unpacked(handle, unpack.packing(path))]
        assert sum(sizes) == 40_000_000 and max(sizes) <= 1 << 20, ending


# ------------------------------------------------------------------------------------------------- the real material


@pytest.mark.slow
@shared
def test_real_files_are_read_as_their_libraries_read_them():
    tofu = pd.read_json(SHARED / "tofu" / "forget05.json", lines=True)
    docs, _ = read(SHARED / "tofu" / "forget05.json")
    assert [document.turns[1].text for document in docs] == tofu["answer"].tolist() and len(docs) == 200
    stories = json.loads((SHARED / "text" / "tinystories_1000.json").read_text())
    assert texts(SHARED / "text" / "tinystories_1000.json") == [story for story in stories if story]
    truthful = pd.read_csv(SHARED / "text" / "TruthfulQA.csv")
    docs, _ = read(SHARED / "text" / "TruthfulQA.csv")
    assert [tuple(turn.text for turn in document.turns) for document in docs] == list(
        zip(truthful["Question"], truthful["Best Answer"], strict=True)
    )
    for name in ("alice_pg11.txt", "tinyshakespeare.txt", "wikitext2_raw_test.txt"):
        assert raw(SHARED / "text" / name) == (SHARED / "text" / name).read_bytes().removeprefix(b"\xef\xbb\xbf")
    report = ReadReport()
    assert (
        sum(1 for _ in documents([str(SHARED / "tofu")], report=report)) > 8000
        and report.bytes_read == report.bytes_total
    )
