"""A MediaWiki XML dump: its articles, as wikitext that is turned into plain text on demand."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from functools import partial
from typing import Any
from xml.parsers import expat

from unlearn_core.corpus.readers.base import Reader
from unlearn_core.corpus.reading.document import Document, File, Kind, ReadReport
from unlearn_core.corpus.reading.rows import Where
from unlearn_core.corpus.reading.unpack import blocks
from unlearn_core.settings.errors import ConfigError
from unlearn_core.settings.sections import DataSettings

FILE, CATEGORY = "6", "14"  # numbers of namespaces, the same in every language
REDIRECT = re.compile(r"\s*#[^\W\d]+\s*:?\s*\[\[")
NO_WORDS = {  # tags whose content is not text of the article
    *("ref", "references", "table", "gallery", "math", "chem", "score", "timeline", "imagemap", "style"),
    *("templatestyles", "hiero", "graph", "mapframe", "maplink"),
}
BREAKS = {"br", "hr", "p", "div", "blockquote", "poem", "li", "dd", "dt", "ul", "ol"}
REFERENCE = re.compile(r"<!--.*?-->|<ref\b[^<>]*?(?:/>|>(?:(?!</?ref\b).)*</ref\s*>)", re.DOTALL | re.IGNORECASE)
INNERMOST = re.compile(
    rb"\{\{[^{}]*\}\}|\{\|[^{}]*\|\}|<!--.*?-->|<ref\b[^<>]*?(?:/>|>[^<]*</ref\s*>)", re.DOTALL | re.I
)
SIGNS = re.compile(rb"'{2,}|\[\[(?:[^\[\]|]*\|)?|\[(?:[a-z]+:)?//[^\s\]]* ?|\]\]?|</?[a-zA-Z][^<>]*>|__[A-Z]+__")
NESTED = 8  # templates inside of templates
ANOTHER_LANGUAGE = re.compile(r"[a-z]{2,3}(-[a-z-]+)?|simple")


class _Pages:
    """Expat's callbacks: collects the pages of articles that the bytes given so far have closed."""

    def __init__(self) -> None:
        self.ready: list[tuple[str, str]] = []  # title, wikitext
        self.count = self.redirects = self.elsewhere = 0
        self.namespaces: dict[str, str] = {}  # name in this wiki -> number
        self.number = ""
        self.words: list[str] = []
        self.page: dict[str, str] = {}
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.buffer_size = 1 << 20
        self.parser.StartElementHandler = self.start
        self.parser.EndElementHandler = self.end

    def start(self, name: str, facts: dict[str, str]) -> None:
        if name in ("title", "ns", "text", "namespace"):
            self.words.clear()
            self.number = facts.get("key", "")
            if not (name == "text" and self.page.get("ns", "0") != "0"):
                self.parser.CharacterDataHandler = self.words.append
        elif name == "redirect":
            self.page["redirect"] = "yes"
        elif name == "page":
            self.page = {}

    def end(self, name: str) -> None:
        if name in ("title", "ns", "text"):
            self.page[name] = "".join(self.words)  # of several revisions the last
        elif name == "namespace":
            self.namespaces["".join(self.words).lower()] = self.number
        elif name == "page":
            self.close()
        else:
            return
        self.words.clear()
        self.parser.CharacterDataHandler = None

    def close(self) -> None:
        title, text = self.page.get("title", ""), self.page.get("text", "")
        prefix = title.partition(":")[0].lower() if ":" in title else ""
        if self.page.get("ns", self.namespaces.get(prefix, "0")) != "0":  # dumps before 2011 have no numbers
            self.elsewhere += 1
        elif "redirect" in self.page or REDIRECT.match(text):
            self.redirects += 1
        else:
            self.count += 1
            self.ready.append((title, text))

    def links_without_words(self) -> frozenset[str]:
        """What a link to a file or a category begins with, in this wiki's language and in English."""
        here = {name for name, number in self.namespaces.items() if number in (FILE, CATEGORY)}
        return frozenset(here | {"file", "image", "category"})


class MediaWikiDump(Reader):
    """Articles of a MediaWiki XML dump, as wikitext."""

    formats = {".xml": "MediaWiki dump"}
    has_fields = False

    def format_of(self, ending: str, head: bytes) -> str:
        return "MediaWiki dump" if ending in (".xml", "") and b"<mediawiki" in head[: 1 << 16] else ""

    def read(
        self, file: File, kind: Kind, data: DataSettings, where: Where | None, report: ReadReport
    ) -> Iterator[Document]:
        """The pages of namespace 0 that are no redirects, one after another."""
        pages = _Pages()
        try:
            for block in blocks(file, kind.packing, report):
                pages.parser.Parse(block, False)
                yield from _documents(pages, file)
            pages.parser.Parse(b"", True)
        except expat.ExpatError as error:
            yield from _documents(pages, file)
            reason = f"line {error.lineno:,}: {expat.ErrorString(error.code)}"
            if not (pages.count or pages.redirects or pages.elsewhere):
                raise ConfigError(
                    f"{file.source!r} cannot be read as a MediaWiki dump ({reason}). Fetch it again."
                ) from None
            if file.path not in report.truncated:
                report.note(f"{file.name} breaks off at {reason}; {pages.count:,} pages were read")
        for count, what in ((pages.redirects, "redirects"), (pages.elsewhere, "pages that are no articles")):
            if count:
                report.note(f"{file.name}: {what}, left out", count)


def _documents(pages: _Pages, file: File) -> Iterator[Document]:
    reduce = partial(plain, without=pages.links_without_words())
    for title, text in pages.ready:
        yield Document(text.encode("utf-8"), file.source, f"page {title}", reduce=reduce, skim=skim)
    pages.ready.clear()


def skim(wikitext: bytes) -> bytes:
    """An article without any markup that could be inside a word: far faster than parsing, for search only.

    Templates, tables, references and comments are removed; of links, tags and quotes only their signs.
    """
    for _ in range(NESTED):
        inner = INNERMOST.sub(b"", wikitext)
        if len(inner) == len(wikitext):
            break
        wikitext = inner
    bare = SIGNS.sub(b"", wikitext)
    return html.unescape(bare.decode("utf-8", "replace")).encode() if b"&" in bare else bare


def plain(wikitext: str, without: frozenset[str] = frozenset(("file", "image", "category"))) -> str:
    """The text of an article: no templates, tables, references, pictures and categories; of a link its words."""
    import mwparserfromhell

    # References hold most of a page's templates: without them the parser is done in half the time.
    # Quotes for bold and italics are taken off afterwards: where they do not pair, the parser would give up.
    text = _words(mwparserfromhell.parse(REFERENCE.sub("", wikitext), skip_style_tags=True), without)
    text = re.sub(r"'{2,5}|__[A-Z]+__", "", text)
    text = re.sub(r" ?\([\s,;:]*\)", "", text)  # brackets around a template that is gone
    lines = (re.sub(r"  +", " ", line.strip()) for line in text.splitlines())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def _words(code: Any, without: frozenset[str]) -> str:
    from mwparserfromhell.nodes import ExternalLink, Heading, HTMLEntity, Tag, Text, Wikilink

    words = []
    for node in code.nodes:
        if isinstance(node, Text):
            words.append(node.value)
        elif isinstance(node, Wikilink):
            words.append(_link(node, without))
        elif isinstance(node, ExternalLink) and node.title is not None:
            words.append(_words(node.title, without))
        elif isinstance(node, Heading):
            words.append(f"\n{_words(node.title, without).strip()}\n")
        elif isinstance(node, HTMLEntity):
            words.append(node.normalize())
        elif isinstance(node, Tag) and (name := str(node.tag).strip().lower()) not in NO_WORDS:
            inner = _words(node.contents, without) if node.contents is not None else ""
            words.append(f"\n{inner}" if name in BREAKS and not node.wiki_markup else inner)
    return "".join(words)


def _link(link: Any, without: frozenset[str]) -> str:
    title = str(link.title).strip()
    prefix = title.partition(":")[0].strip().lower() if ":" in title else ""
    if prefix in without or (link.text is None and prefix and ANOTHER_LANGUAGE.fullmatch(prefix)):
        return ""
    return _words(link.text, without) if link.text is not None else title.removeprefix(":")


READER = MediaWikiDump()
