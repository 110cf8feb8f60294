"""HTML by plain functions: everything that is not markup already is escaped, and no path gets onto the page."""

import re
from collections.abc import Mapping, Sequence

_VOID = ("br", "img", "link", "meta")
# Control characters but for tab and newline, halves of surrogate pairs, and what turns the direction of text around.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#x27;"})


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def escaped(text: object) -> Markup:
    """Text as it may stand in HTML and in quoted attributes; `Markup` as it is."""
    if isinstance(text, Markup):
        return text
    return Markup(_UNPRINTABLE.sub("\ufffd", str(text)).translate(_ESCAPES))


def tag(name: str, attributes: Mapping[str, object], *children: object) -> Markup:
    """An element; attributes and children that are no `Markup` are escaped."""
    given = "".join(f' {key}="{escaped(value)}"' for key, value in attributes.items())
    if name in _VOID:
        return Markup(f"<{name}{given}>")
    return Markup(f"<{name}{given}>{joined(children)}</{name}>")


def joined(parts: Sequence[object]) -> Markup:
    """Parts one after the other."""
    return Markup("".join(escaped(part) for part in parts))


def table(caption: str, heads: Sequence[object], rows: Sequence[Sequence[object]]) -> Markup:
    """A table in a container that scrolls by itself; the first cell of a row is its heading."""
    top = tag("tr", {}, *(tag("th", {"scope": "col"}, head) for head in heads))
    body = [
        tag("tr", {}, tag("th", {"scope": "row"}, first), *(tag("td", {}, cell) for cell in rest))
        for first, *rest in rows
    ]
    inner = tag("table", {}, tag("caption", {}, caption), tag("thead", {}, top), tag("tbody", {}, *body))
    # The container can be reached and scrolled by the keyboard.
    return tag("div", {"class": "scroll", "tabindex": "0", "role": "region", "aria-label": caption}, inner)
