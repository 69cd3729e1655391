"""Reads a page with the parser of the standard library: tags, ids, tables, exact byte figures."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

_VOID = {"meta", "br", "wbr", "input", "link", "img", "hr"}
# The page leaves out end tags that HTML implies.
_IMPLIED = {"td": {"td", "th", "tr"}, "th": {"td", "th", "tr"}, "tr": {"tr"}, "li": {"li"}}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    children: list[Element | str] = field(default_factory=list)

    def walk(self) -> list[Element]:
        found = [self]
        for child in self.children:
            if isinstance(child, Element):
                found += child.walk()
        return found

    def all(self, tag: str, **attributes: str) -> list[Element]:
        return [
            e
            for e in self.walk()
            if e.tag == tag
            and all(e.attributes.get(k.rstrip("_")) == v for k, v in attributes.items())
        ]

    def by_id(self, name: str) -> Element:
        (found,) = [e for e in self.walk() if e.attributes.get("id") == name]
        return found

    def has(self, name: str) -> bool:
        return any(e.attributes.get("id") == name for e in self.walk())

    @property
    def text(self) -> str:
        parts = [c if isinstance(c, str) else c.text for c in self.children]
        return "".join(parts)

    @property
    def rows(self) -> list[list[Element]]:
        """Cells of the rows of the body of a table."""
        (body,) = self.all("tbody")
        return [[c for c in row.walk() if c.tag in ("td", "th")] for row in body.all("tr")]

    @property
    def figures(self) -> list[int]:
        """Exact byte figures inside, in order."""
        return [int(e.attributes["value"]) for e in self.all("data")]


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("#root", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> repeats an attribute: {names}"
        while self.open[-1].tag in ("td", "th", "tr", "li") and tag in _IMPLIED[self.open[-1].tag]:
            self.open.pop()
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(element)
        if tag not in _VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(element)

    def handle_endtag(self, tag: str) -> None:
        while self.open[-1].tag in _IMPLIED and self.open[-1].tag != tag:
            self.open.pop()
        closed = self.open.pop()
        assert closed.tag == tag, f"</{tag}> closes <{closed.tag}>"

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def read_page(html: str) -> Element:
    reader = _Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == [reader.root], f"not closed: {[e.tag for e in reader.open[1:]]}"
    return reader.root
