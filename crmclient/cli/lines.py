"""Rows as lines of a file, JSON for programs and CSV for spreadsheets: what is written comes back as it was.

A cell of CSV is what a person would write: ``+7 999; +7 812 (mobile)``, ``new; vip``, ``12.50 RUB``, ``deal:7``, an id.
What cannot be said so (a tag with a ``;``, a custom field) is JSON in its cell. An empty cell says nothing.

A cell that a spreadsheet would take for a formula (it begins with ``=``, ``+``, ``-``, ``@``, TAB or CR) is given a
``'`` in front, and loses exactly that when it is read. Phones too: without it ``+79991234567`` becomes a number that has
lost its plus.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from functools import cache
from typing import Any, Final, cast, get_args

from attrs import fields_dict, frozen

from crmclient.entities import Kind, Label, Link, Money, Ref
from crmclient.serial import to_tree


@frozen
class Line:
    """A line of a file: its number, and its tree or what is wrong with it."""

    number: int
    tree: Mapping[str, Any] | None = None
    wrong: str | None = None


class BadFile(ValueError):
    """The file as a whole cannot be read."""


# --------------------------------------------------------------------------------------------------------------- JSON


def json_lines(file: Iterable[bytes]) -> Iterator[Line]:
    """One object a line; empty lines are skipped."""
    for number, line in enumerate(file, 1):
        text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if text.strip():
            yield _json_line(number, text)


def _json_line(number: int, text: bytes) -> Line:
    try:
        tree = parsed(text.decode())
    except UnicodeDecodeError:
        return Line(number, wrong="it is no UTF-8")
    except ValueError as wrong:
        return Line(number, wrong=f"it is no JSON: {wrong}")
    except RecursionError:
        return Line(number, wrong="it is no JSON that anybody means: too many brackets")
    if not isinstance(tree, dict):
        return Line(number, wrong=f"expected an object, got {tree!r:.80}")
    return Line(number, cast("dict[str, Any]", tree))


def parsed(text: str) -> Any:
    """JSON with exact numbers; a key that is there twice and what is no number are refused."""
    return json.loads(text, parse_float=Decimal, parse_constant=_no_number, object_pairs_hook=_once)


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is no number")


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) < len(pairs):
        twice = next(name for place, (name, _) in enumerate(pairs) if name in dict(pairs[:place]))
        raise ValueError(f"the key {twice!r} is there twice")
    return tree


# --------------------------------------------------------------------------------------------------------------- CSV

_FORMULA: Final = re.compile("'*[=+\\-@\t\r]")
_GUARDED: Final = re.compile("'+[=+\\-@\t\r]")
DELIMITERS: Final = {",": ",", ";": ";", "tab": "\t"}


def guarded(cell: str) -> str:
    """A cell that no spreadsheet runs."""
    return f"'{cell}" if _FORMULA.match(cell) else cell


def unguarded(cell: str) -> str:
    """A cell as it was before ``guarded``."""
    return cell[1:] if _GUARDED.match(cell) else cell


@cache
def columns(kind: type[Any]) -> tuple[str, ...]:
    """The columns of a kind of row: its own fields, and the name of a company beside its id; then who and when."""
    names = [name for name in fields_dict(kind) if name not in ("raw", "unread", "written")]
    names.sort(key=lambda name: name in _WHO_AND_WHEN)
    told = (("company", "company_name") if name == "company" else (name,) for name in names)
    return tuple(name for pair in told for name in pair)


_WHO_AND_WHEN: Final = frozenset({"owner", "created_at", "updated_at", "created_by", "updated_by", "deleted"})


def csv_row(cells: Iterable[str], delimiter: str = ",") -> str:
    """A line of CSV with its line end, which may have line ends within."""
    line = io.StringIO()
    csv.writer(line, delimiter=delimiter).writerow(cells)
    return line.getvalue()


def cells(row: Any, *, raw_cells: bool = False) -> list[str]:
    """A row as the cells of its columns."""
    tree, kind = to_tree(row), cast("type[Any]", type(row))
    found = [_cell(kind, name, tree) for name in columns(kind)]
    return found if raw_cells else [guarded(cell) for cell in found]


def csv_lines(file: Iterable[bytes], kind: type[Any], *, raw_cells: bool = False) -> Iterator[Line]:
    """The rows under a line of column names. Raises BadFile for a name that is no column, and for what is no UTF-8."""
    text = _decoded(file)
    try:
        first = next(text)
    except StopIteration:
        return
    reader = csv.reader(_rest(first, text), delimiter=_delimiter(first, kind), strict=True)
    names = [name.strip() for name in next(reader)]
    while names and not names[-1]:
        names.pop()
    strange = [name for name in names if name not in columns(kind)]
    if strange or len(set(names)) < len(names):
        what = f"{strange[0]!r} is no column" if strange else "a column is there twice"
        raise BadFile(f"line 1: {what}; the columns of a {kind.__name__.lower()} are {', '.join(columns(kind))}")
    while True:
        number = reader.line_num + 1
        try:
            found = next(reader)
        except StopIteration:
            return
        except csv.Error as wrong:
            yield Line(number, wrong=f"it is no CSV: {wrong}")
            continue
        if any(found):
            yield _csv_line(number, kind, names, found if raw_cells else [unguarded(cell) for cell in found])


def _csv_line(number: int, kind: type[Any], names: Sequence[str], found: Sequence[str]) -> Line:
    if len(found) < len(names) or any(found[len(names) :]):
        return Line(number, wrong=f"it has {len(found)} cells for {len(names)} columns")
    tree: dict[str, Any] = {}
    for name, cell in zip(names, found, strict=False):
        if cell:
            try:
                tree[name] = cell if name == "company_name" else _shape(kind, name).read(cell)
            except ValueError as wrong:
                return Line(number, wrong=f"{name}: {wrong}")
    if "company_name" in tree:
        try:
            tree["company"] = _company(tree.get("company"), tree.pop("company_name"))
        except ValueError as wrong:
            return Line(number, wrong=str(wrong))
    return Line(number, tree)


def _decoded(file: Iterable[bytes]) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        try:
            yield (line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).decode()
        except UnicodeDecodeError:
            raise BadFile(f"line {number} is no UTF-8: save it as CSV UTF-8") from None


def _rest(first: str, text: Iterator[str]) -> Iterator[str]:
    yield first
    yield from text


def _delimiter(first: str, kind: type[Any]) -> str:
    """The one that parts the first line into columns: spreadsheets of many countries write a semicolon."""
    known = columns(kind)

    def parts(delimiter: str) -> int:
        return sum(name.strip(' "\r\n') in known for name in first.split(delimiter))

    return max(DELIMITERS.values(), key=parts)


# -------------------------------------------------------------------------------------------------------------- cells


def _same(tree: Any) -> Any:
    return tree


@frozen(kw_only=True)
class _Shape:
    """How one field is said in a cell.

    ``short`` is what of its tree there is to say, ``say`` says it (None: it cannot), ``read`` gives the short again.
    """

    short: Callable[[Any], Any] = _same
    say: Callable[[Any], str | None]
    read: Callable[[str], Any]

    def cell(self, tree: Any) -> str:
        """The tree as a person would write it; where that would not come back as it was, as JSON."""
        short = self.short(tree)
        plain = self.say(short)
        try:
            if plain is not None and self.read(plain) == short:
                return plain
        except ValueError:
            pass
        return json.dumps(tree, ensure_ascii=False)


def _cell(kind: type[Any], name: str, tree: Mapping[str, Any]) -> str:
    if name == "company_name":
        # Beside a company that is JSON it would be said twice.
        company = tree.get("company", {})
        return "" if _whole(company) else company.get("name", "")
    return _shape(kind, name).cell(tree[name]) if name in tree else ""


@cache
def _shape(kind: type[Any], name: str) -> _Shape:
    declared = fields_dict(kind)[name].type
    options = get_args(declared)
    if name in ("phones", "emails"):
        return _listed(_say_labelled, _read_labelled)
    if name == "tags":
        return _listed(_same, lambda part: part, lambda tag: tag["name"])
    if Link in options:
        return _COMPANY if name == "company" else _listed(_say_link, _read_link(_LINKED[name]))
    if Money in options:
        return _Shape(say=_say_money, read=_or_json(_read_money))
    if Ref in options:
        return _Shape(short=_said_of(name), say=str, read=_or_json(_same if name == "target" else _id))
    if declared is bool:
        return _Shape(say=lambda tree: str(tree).lower(), read=_read_bool)
    if declared in (int, timedelta | None):
        return _Shape(say=lambda tree: f"{Decimal(str(tree)).normalize():f}", read=_read_number)
    if name == "id":
        return _Shape(say=str, read=_or_json(_id))
    if declared in (str, str | None, datetime | None) or isinstance(declared, type):
        return _Shape(say=_same, read=_same)
    return _Shape(say=lambda tree: None, read=_or_json(_only_json))


def _or_json(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """A cell that begins as JSON of more than a number is JSON."""
    return lambda cell: parsed(cell) if cell.startswith(("[", "{", '"')) else read(cell)


def _only_json(cell: str) -> Any:
    raise ValueError(f"expected JSON, got {cell!r:.80}")


def _listed(
    say: Callable[[Any], str | None], read: Callable[[str], Any], short: Callable[[Any], Any] = _same
) -> _Shape:
    """Many parts with semicolons between them."""

    def all_said(parts: Sequence[Any]) -> str | None:
        told = [say(part) for part in parts]
        return None if None in told else "; ".join(part for part in told if part is not None)

    return _Shape(
        short=lambda tree: [short(part) for part in tree],
        say=all_said,
        read=_or_json(lambda cell: [read(part.strip()) for part in cell.split(";") if part.strip()]),
    )


_MARKED: Final = re.compile(r"(.*) \(([a-z_]+)\)", re.DOTALL)


def _say_labelled(tree: Any) -> str:
    return tree["value"] if tree["label"] == Label.WORK else f"{tree['value']} ({tree['label']})"


def _read_labelled(part: str) -> Any:
    marked = _MARKED.fullmatch(part)
    if marked is None or marked[2] not in tuple(Label):
        return {"value": part, "label": str(Label.WORK)}
    return {"value": marked[1], "label": marked[2]}


_LINKED: Final = {"contacts": Kind.CONTACT, "deals": Kind.DEAL}


def _say_link(tree: Any) -> str:
    return f"{tree['ref'].get('id')}{' (main)' if tree['main'] else ''}"


def _read_link(kind: Kind) -> Callable[[str], Any]:
    def read(part: str) -> Any:
        id = part.removesuffix(" (main)")
        return {"ref": {"kind": str(kind), "id": _id(id)}, "main": id != part}

    return read


def _whole(company: Mapping[str, Any]) -> bool:
    """Whether a company is more than an id and a name."""
    return bool(company.get("main")) or not isinstance(company.get("ref", {}).get("id", 0), int)


_COMPANY: Final = _Shape(
    # Its name has a column of its own, so one that is only a name leaves this cell empty.
    short=lambda tree: tree if _whole(tree) else tree["ref"].get("id", ""),
    say=lambda short: None if isinstance(short, Mapping) else str(short),
    read=_or_json(lambda cell: _id(cell)),
)


def _company(known: Any, called: str) -> Any:
    """What the columns ``company`` and ``company_name`` say together."""
    if known is None:
        return called
    if isinstance(known, int):
        return {"ref": {"kind": "company", "id": known}, "name": called}
    raise ValueError(f"company says {known!r:.80} already, and company_name {called!r:.80}")


def _say_money(tree: Any) -> str:
    return " ".join(filter(None, (tree["amount"], tree.get("currency"))))


def _read_money(cell: str) -> Any:
    amount, _, currency = cell.strip().partition(" ")
    return {"amount": amount, **({"currency": currency} if currency else {})}


def _said_of(name: str) -> Callable[[Any], Any]:
    """What is said of a reference: its id, or where that could be of any kind, its kind too."""

    def said(tree: Any) -> Any:
        if "id" not in tree:
            return tree
        return f"{tree['kind']}:{tree['id']}" if name == "target" else tree["id"]

    return said


def _id(cell: str) -> Any:
    return int(cell) if cell.isascii() and cell.isdecimal() else cell


# A spreadsheet writes the truth in the language of its owner.
_WORDS: Final = {"true": True, "false": False, "истина": True, "ложь": False, "yes": True, "no": False}


def _read_bool(cell: str) -> bool:
    found = _WORDS.get(cell.strip().lower())
    if found is None:
        raise ValueError(f"expected true or false, got {cell!r:.80}")
    return found


def _read_number(cell: str) -> Any:
    try:
        return Decimal(cell)
    except ArithmeticError:
        raise ValueError(f"{cell!r:.80} is no number") from None
