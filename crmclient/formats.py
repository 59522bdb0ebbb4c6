"""Bytes to plain trees and back, bounded, and nothing is guessed: what cannot be read is Unparsed with the reason."""

import json
from collections.abc import Iterator, Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import Any, NoReturn
from urllib.parse import quote_plus
from xml.etree.ElementTree import Element, ParseError, TreeBuilder, XMLParser

from attrs import frozen

from crmclient.dialect import Tree, Unparsed
from crmclient.errors import Invalid

_PREVIEW = 200


def _unparsed(content: bytes, reason: str) -> Unparsed:
    text = content[:_PREVIEW].decode("utf-8", "replace")
    return Unparsed(preview="".join(letter if letter.isprintable() else " " for letter in text), reason=reason)


# ------------------------------------------------------------------------------------------------------------- JSON


class _Nonsense(ValueError):
    pass


def _no_constant(name: str) -> NoReturn:
    raise _Nonsense(f"{name} is no JSON number")


def _jsonable(part: object) -> Any:
    if not isinstance(part, Decimal):
        raise TypeError(f"{type(part).__name__} cannot be sent as JSON")
    if part == part.to_integral_value():
        return int(part)
    number = float(part)
    if Decimal(repr(number)) != part:
        raise Invalid(f"{part} has more digits than a JSON number keeps exactly")
    return number


@frozen(kw_only=True)
class Json:
    """JSON both ways: whole numbers exact, fractions Decimal, NaN refused; the parser itself bounds the depth."""

    accept: str = "application/json"

    def encode(self, body: Tree) -> tuple[bytes, str]:
        try:
            text = json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=_jsonable)
        except ValueError as wrong:
            raise Invalid(f"this cannot be sent as JSON: {wrong}") from None
        return text.encode("utf-8"), "application/json"

    def decode(self, content: bytes, content_type: str) -> Tree | Unparsed:
        start = content.lstrip()[:1]
        if start == b"<":
            return _unparsed(content, "HTML or XML where JSON was due")
        try:
            return json.loads(content.decode("utf-8-sig"), parse_float=Decimal, parse_constant=_no_constant)
        except UnicodeDecodeError as wrong:
            return _unparsed(content, f"not UTF-8 at byte {wrong.start}")
        except RecursionError:
            return _unparsed(content, "nested too deep")
        except ValueError as wrong:
            # Not only JSONDecodeError: an integer of 5,000 digits is a bare ValueError.
            return _unparsed(content, f"not JSON: {str(wrong)[:100]}")


# ------------------------------------------------------------------------------------------------- PHP-style forms


def php_pairs(body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The pairs PHP's http_build_query makes of nested maps and lists: ``contact[phones][0][number]=…``.

    None is left out, booleans are 1 and 0. Keys come from the schema only: one with brackets is refused.
    """
    for key, part in body.items():
        if not key or set("[]&=") & set(key):
            raise Invalid(f"{key!r} cannot be the name of a form field")
        yield from _branches(key, part)


def _branches(name: str, part: Any) -> Iterator[tuple[str, str]]:
    if part is None:
        return
    if isinstance(part, Mapping):
        for key, below in part.items():  # pyright: ignore[reportUnknownVariableType]
            key = str(key)  # pyright: ignore[reportUnknownArgumentType]
            if set("[]&=") & set(key):
                raise Invalid(f"{key!r} cannot be the name of a form field")
            yield from _branches(f"{name}[{key}]", below)
    elif isinstance(part, list | tuple):
        for place, below in enumerate(part):  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
            yield from _branches(f"{name}[{place}]", below)
    elif isinstance(part, bool):
        yield name, "1" if part else "0"
    elif isinstance(part, str | int | Decimal):
        yield name, str(part)
    else:
        raise Invalid(f"{name}: {type(part).__name__} cannot be sent in a form")


def form(body: Mapping[str, Any]) -> bytes:
    """A body of application/x-www-form-urlencoded, UTF-8."""
    return "&".join(f"{quote_plus(name)}={quote_plus(part)}" for name, part in php_pairs(body)).encode("ascii")


# -------------------------------------------------------------------------------------------------- guarded XML


class _Refused(Exception):
    pass


class _Guard(TreeBuilder):
    """Refuses a DTD before it can declare anything, and bounds depth, nodes and attributes.

    expat alone accepts 200,000 levels and 100,000 attributes, and expands entities for half a second first.
    """

    def __init__(self, depth: int, nodes: int, attributes: int) -> None:
        super().__init__()
        self._most = (depth, nodes, attributes)
        self._depth = self._nodes = 0

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise _Refused("it declares a document type")

    def start(self, tag: Any, attrs: Any, /) -> Element:
        self._depth += 1
        self._nodes += 1
        depth, nodes, attributes = self._most
        if self._depth > depth:
            raise _Refused(f"nested deeper than {depth}")
        if self._nodes > nodes:
            raise _Refused(f"more than {nodes} elements")
        if len(attrs) > attributes:
            raise _Refused(f"an element with more than {attributes} attributes")
        return super().start(tag, attrs)

    def end(self, tag: Any, /) -> Element:
        self._depth -= 1
        return super().end(tag)


@frozen(kw_only=True)
class FormsInXmlOut:
    """PHP-style forms are sent, XML is answered. A tree is the root's ``{"tag": …}`` with children as lists.

    An element becomes ``{"tag", "text", "attributes", "children"}``; comments inside a value are passed over, tags are
    lower case without a namespace.
    """

    accept: str = "application/xml, text/xml"
    depth: int = 64
    nodes: int = 500_000
    attributes: int = 64

    def encode(self, body: Tree) -> tuple[bytes, str]:
        return form(body or {}), "application/x-www-form-urlencoded"

    def decode(self, content: bytes, content_type: str) -> Tree | Unparsed:
        parser = XMLParser(target=_Guard(self.depth, self.nodes, self.attributes))  # noqa: S314  guarded
        try:
            parser.feed(content)
            root = parser.close()
        except _Refused as wrong:
            return _unparsed(content, f"XML refused: {wrong}")
        except (ParseError, ValueError, LookupError) as wrong:
            return _unparsed(content, f"not XML: {wrong}")
        if root.tag.rpartition("}")[2].lower() == "html":
            return _unparsed(content, "HTML where XML was due")
        return _plain(root)


def _plain(element: Element) -> dict[str, Any]:
    text = (element.text or "") + "".join(child.tail or "" for child in element)
    return {
        "tag": element.tag.rpartition("}")[2].lower(),
        "text": text.strip(),
        "attributes": {name.lower(): content for name, content in element.attrib.items()},
        "children": [_plain(child) for child in element],
    }


# --------------------------------------------------------------------------------------------------------- scalars


def iso(moment: datetime | date) -> str:
    """ISO 8601; a moment in UTC ends in Z."""
    return moment.isoformat().replace("+00:00", "Z")
