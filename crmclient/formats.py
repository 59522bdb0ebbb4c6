"""Bytes to plain trees and back, bounded, and nothing is guessed: what cannot be read is Unparsed with the reason."""

import json
import re
from array import array as packed
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from functools import cache
from itertools import accumulate
from typing import Any, NoReturn
from urllib.parse import quote_plus, unquote_to_bytes
from xml.etree.ElementTree import Element, ParseError, TreeBuilder, XMLParser

from attrs import frozen

from crmclient.dialect import Tree, Unparsed, array, mapping
from crmclient.errors import Invalid, Unreadable

_PREVIEW = 200


def _unparsed(content: bytes, reason: str) -> Unparsed:
    text = content[:_PREVIEW].decode("utf-8", "replace")
    return Unparsed(preview="".join(letter if letter.isprintable() else " " for letter in text), reason=reason)


# ------------------------------------------------------------------------------------------------------------- JSON


class _Nonsense(ValueError):
    pass


def _no_constant(name: str) -> NoReturn:
    raise _Nonsense(f"{name} is no JSON number")


def _fraction(text: str) -> Decimal:
    try:
        number = Decimal(text)
    except ArithmeticError:
        raise _Nonsense(f"{text[:30]} is no number") from None
    if number and abs(number.adjusted()) > 308:
        raise _Nonsense(f"{text[:30]} is no number that a float could hold")
    return number


# What is left of JSON when only the marks of its structure are kept, and those as steps down and up.
_NO_MARKS = bytes(set(range(256)) - set(b'[]{}"'))
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_LEVELS = 12


def _deeper(content: bytes, most: int) -> bool:
    """Whether the brackets nest deeper, told before a recursive parser meets them."""
    if b"\\" in content and b'\\"' in content:
        content = (content.replace(b"\\\\", b"") if b"\\\\" in content else content).replace(b'\\"', b"")
    # Two quotes side by side held nothing of interest; what is left between others is text. Mostly none are left.
    marks = content.translate(_STEPS, _NO_MARKS)
    if 2 * marks.count(b'""') == marks.count(b'"'):
        marks = marks.translate(None, b'"')
    else:
        marks = b"".join(marks.replace(b'""', b"").split(b'"')[::2])
    # To take out the pairs that hold nothing makes it one level shallower at most; of an answer none is left soon.
    rest = marks
    for _ in range(_LEVELS):
        rest = rest.replace(b"\x01\xff", b"")
    return _LEVELS + rest.count(b"\x01") > most and max(accumulate(packed("b", marks)), default=0) > most


@cache
def _faster() -> Callable[[bytes], Any] | None:
    """What msgspec reads with, where ``crmclient[fast]`` has installed it; loaded when there is something to read."""
    try:
        from msgspec.json import Decoder
    except ImportError:
        return None
    return Decoder(float_hook=_fraction).decode


def _json(content: bytes) -> Any:
    faster = _faster()
    if faster is not None:
        try:
            return faster(content)
        except Exception:  # noqa: S110
            # It takes nothing that the standard library refuses, and not all that it takes: a byte order mark, half a
            # character. So what it refuses is read again, and whoever reads, the tree and the complaint are the same.
            pass
    return json.loads(content.decode("utf-8-sig"), parse_float=_fraction, parse_constant=_no_constant)


def _utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as wrong:
        raise Invalid(f"half a character cannot be sent: {wrong.object[wrong.start : wrong.end]!r}") from None


def _jsonable(part: object) -> Any:
    if not isinstance(part, Decimal):
        raise TypeError(f"{type(part).__name__} cannot be sent as JSON")
    if not part.is_finite() or abs(part.adjusted()) > 30:
        raise Invalid(f"{part} is no number that JSON carries")
    if part == part.to_integral_value():
        return int(part)
    number = float(part)
    if Decimal(repr(number)) != part:
        raise Invalid(f"{part} has more digits than a JSON number keeps exactly")
    return number


@frozen(kw_only=True)
class Json:
    """JSON both ways: whole numbers exact, fractions Decimal, NaN refused, depth bounded.

    It is read by msgspec where ``crmclient[fast]`` is installed, in half the time and to the same trees.
    """

    accept: str = "application/json"
    depth: int = 200

    def encode(self, body: Tree) -> tuple[bytes, str]:
        try:
            text = json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=_jsonable)
        except ValueError as wrong:
            raise Invalid(f"this cannot be sent as JSON: {wrong}") from None
        return _utf8(text), "application/json"

    def decode(self, content: bytes, content_type: str) -> Tree | Unparsed:
        start = content.lstrip()[:1]
        if start == b"<":
            return _unparsed(content, "HTML or XML where JSON was due")
        try:
            if _deeper(content, self.depth):
                return _unparsed(content, f"nested deeper than {self.depth}")
            return _json(content)
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
    pairs = ((quote_plus(_utf8(name)), quote_plus(_utf8(part))) for name, part in php_pairs(body))
    return "&".join(f"{name}={part}" for name, part in pairs).encode("ascii")


# A name and its brackets; an index as PHP writes one, short enough to count with.
_FIELD = re.compile(r"([^\[\]\x00-\x1f]+)((?:\[[^\[\]\x00-\x1f]*\])*)")
_INDEX = re.compile(r"0|[1-9][0-9]{0,17}", re.ASCII)


def php_tree(
    body: bytes,
    *,
    depth: int = 16,
    fields: int = 10_000,
    size: int = 1 << 20,
    also_parents: Iterable[Sequence[str]] = (),
) -> dict[str, Any]:
    """What PHP would read from a form, as maps of maps of str: an index is a key like any other, and no list is made.

    ``a[]`` takes the next index, and the last of two equal names wins. A name that holds a text and others below it is
    refused, but for the paths in ``also_parents`` (``*`` stands for any key): there the text is kept under ``""``.
    Raises Unreadable for what is not UTF-8, is deeper, longer or has more fields than allowed, or is no name at all.
    """
    if len(body) > size:
        raise Unreadable(f"a form of {len(body)} bytes; at most {size} are read")
    count = body.count(b"&") + 1
    if count > fields:
        raise Unreadable(f"a form of {count} fields; at most {fields} are read")
    allowed = tuple(also_parents)
    root: dict[str, Any] = {}
    following: dict[int, int] = {}  # the next free index of each map, by its id()
    for piece in body.split(b"&"):
        if piece:
            name, _, content = piece.partition(b"=")
            _put(root, _keys(_text(name), depth), _text(content), following, allowed)
    return root


def in_order(tree: Any) -> Iterator[Any]:
    """The values of a list, or of a map that stands for one: those with an index by their index, then the others."""
    if isinstance(tree, dict):
        named = mapping(tree)
        indexes = sorted((key for key in named if _INDEX.fullmatch(key)), key=int)
        yield from (named[key] for key in indexes)
        yield from (part for key, part in named.items() if not _INDEX.fullmatch(key))
    elif isinstance(tree, list):
        yield from array(tree)


def is_indexed(tree: Any) -> bool:
    """Whether a tree stands for a list: it is one, or a map with nothing but indexes for keys."""
    if isinstance(tree, dict):
        return all(_INDEX.fullmatch(key) for key in mapping(tree))
    return isinstance(tree, list)


def _text(quoted: bytes) -> str:
    try:
        return unquote_to_bytes(quoted.replace(b"+", b" ")).decode("utf-8")
    except UnicodeDecodeError as wrong:
        raise Unreadable(f"a form that is not UTF-8: {wrong.reason}") from None


def _keys(name: str, depth: int) -> list[str]:
    levels = name.count("[") + 1
    if levels > depth:
        raise Unreadable(f"a form with a field {levels} levels deep; at most {depth} are read")
    found = _FIELD.fullmatch(name)
    if found is None:
        raise Unreadable(f"{name[:80]!r} cannot be the name of a form field")
    return [found[1], *found[2][1:-1].split("][")] if found[2] else [found[1]]


def _put(
    root: dict[str, Any],
    keys: Sequence[str],
    content: str,
    following: dict[int, int],
    allowed: Sequence[Sequence[str]],
) -> None:
    node, path = root, [*keys]
    for place, key in enumerate(keys):
        if not key:
            key = path[place] = str(following.get(id(node), 0))
        if _INDEX.fullmatch(key):
            following[id(node)] = max(following.get(id(node), 0), int(key) + 1)
        held: Any = node.get(key)
        last = place == len(keys) - 1
        if held is not None and isinstance(held, str) is not last:
            if not any(_along(path[: place + 1], each) for each in allowed):
                raise Unreadable(
                    f"the form field {_written(path[: place + 1])} is a text and holds others, both at once"
                )
            if last:
                held[""] = content
                return
            held = node[key] = {"": held}
        if last:
            node[key] = content
            return
        if held is None:
            held = node[key] = {}
        node = held


def _along(path: Sequence[str], allowed: Sequence[str]) -> bool:
    return len(path) == len(allowed) and all(each in ("*", key) for key, each in zip(path, allowed, strict=True))


def _written(path: Sequence[str]) -> str:
    """A path as PHP writes it, cut short for a message."""
    return (path[0] + "".join(f"[{key}]" for key in path[1:]))[:80]


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
