"""Values to plain trees and back, strictly: what is not of the declared type is an error with its path, never a guess.

Plain cattrs turns None into 'None', 'false' into True and 1.9 into 1. ``strict()`` is the reader that does not; an
adapter's wire classes are read by it. ``to_tree`` shows any value as plain JSON; tokens and cursors come back too.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from functools import cache, reduce
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, TypeVar, Union, cast, get_args, get_origin

from attrs import NOTHING, fields, fields_dict, has

from crmclient.dialect import Cursor, Secret, Token
from crmclient.entities import Email, FieldType, FieldValue, Id, Kind, Link, Money, Phone, Ref, Tag
from crmclient.errors import Invalid, Issue, Unreadable

if TYPE_CHECKING:
    from cattrs import Converter

T = TypeVar("T")


def _exactly(kind: type, *others: type) -> Any:
    kinds = (kind, *others)
    allowed = kinds if others else kind
    no_bools = bool not in kinds

    def structure(given: Any, _: type) -> Any:
        if isinstance(given, allowed) and not (no_bools and isinstance(given, bool)):
            return given
        names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
        raise TypeError(f"expected {names}, got {given!r:.80}")

    return structure


# A whole JSON number is an int; where a Decimal is declared it is meant too.
_SCALARS: Mapping[Any, tuple[type, ...]] = {
    str: (str,),
    int: (int,),
    bool: (bool,),
    Decimal: (Decimal, int),
    int | str: (int, str),
}


def _careful(hooks: Mapping[type, Callable[[Any], Any]]) -> "Converter":
    """Reads strictly, and tells the path of whatever is wrong. It is loaded when something is."""
    from cattrs import Converter
    from cattrs.gen import make_dict_structure_fn

    made = Converter(detailed_validation=True)
    for kind, allowed in _SCALARS.items():
        made.register_structure_hook(kind, _exactly(*allowed))
        made.register_structure_hook(kind | None, _exactly(*allowed, type(None)))

    def only_maps(wanted: Any) -> Any:
        inner: Any = make_dict_structure_fn(wanted, made, _cattrs_use_alias=True)

        def structure(given: Any, kind: Any) -> Any:
            if not isinstance(given, dict):
                raise TypeError(f"expected an object, got {given!r:.80}")
            return inner(given, kind)

        return structure

    made.register_structure_hook_factory(has, only_maps)

    def only_lists(wanted: Any) -> Any:
        (part,) = wanted.__args__
        of_part = made.get_structure_hook(part)

        def structure(given: Any, _: Any) -> Any:
            if not isinstance(given, list):
                raise TypeError(f"expected a list, got {given!r:.80}")
            return [of_part(each, part) for each in given]  # pyright: ignore[reportUnknownVariableType]

        return structure

    made.register_structure_hook_factory(lambda kind: get_origin(kind) is list, only_lists)
    for kind, structure in hooks.items():
        made.register_structure_hook(kind, lambda given, _, read=structure: read(given))
        made.register_structure_hook(
            kind | None, lambda given, _, read=structure: None if given is None else read(given)
        )
    return made


class Strict:
    """Reads wire classes: scalars are only themselves, lists only lists, maps only maps, None only where declared.

    A good row is read by code that was written for its class and keeps no account of where it is; what that refuses is
    read again by code that does, so that the complaint names the path.
    """

    def __init__(self) -> None:
        self._hooks: dict[type, Callable[[Any], Any]] = {}
        self._plans: dict[type, Callable[[Any], Any]] = {}
        self._slow: Converter | None = None

    def hook(self, kind: type, structure: Callable[[Any], Any]) -> None:
        """Read a kind of scalar (and None, where that is declared) in the vendor's own way."""
        self._hooks[kind] = structure
        self._plans.clear()
        self._slow = None

    def structure(self, row: Any, wire: type[T]) -> T:
        try:
            return (self._plans.get(wire) or self._plan(wire))(row)
        except Exception:  # whatever it was, reading again tells it with its path
            return self._careful().structure(row, wire)

    def _careful(self) -> "Converter":
        if self._slow is None:
            self._slow = _careful(self._hooks)
        return self._slow

    def _plan(self, wire: type[Any]) -> Callable[[Any], Any]:
        if wire not in self._plans:
            self._plans[wire] = _Plan(self._hooks, self._plan, self._careful).of(wire)
        return self._plans[wire]


_MISSING = object()


class _Unfit(Exception):
    """Something is not as declared; what, the careful reader tells."""


class _Plan:
    """The reader of one wire class, written out line by line: three times as fast as one that asks at each field.

    It takes nothing that the careful reader would refuse. What it may refuse in vain is a subclass of str, list or dict.
    """

    def __init__(
        self,
        hooks: Mapping[type, Callable[[Any], Any]],
        plan: Callable[[type[Any]], Any],
        careful: "Callable[[], Converter]",
    ) -> None:
        self._hooks, self._plan, self._careful = hooks, plan, careful
        self._named: dict[str, Any] = {"Unfit": _Unfit, "missing": _MISSING}

    def of(self, wire: type[Any]) -> Callable[[Any], Any]:
        lines = ["if row.__class__ is not dict: raise Unfit", "get = row.get"]
        names: dict[str, str] = {}
        for place, part in enumerate(each for each in fields(wire) if each.init):
            name, word = f"v{place}", part.alias
            names[word] = name
            inside = self._lines(part.type, name)
            if part.default is NOTHING:
                lines += [f"{name} = row[{word!r}]", *inside]
            elif part.default is None and _or_none(part.type):
                lines += [f"{name} = get({word!r})", *inside]  # missing and null are one here
            else:
                default: Any = part.default
                made = f"{self._name(default.factory)}()" if hasattr(default, "factory") else self._name(default)
                lines += [f"{name} = get({word!r}, missing)", f"if {name} is missing: {name} = {made}"]
                lines += ["else:", *_within(inside or ["pass"])]
        if _is_plain(wire):
            lines += _filled(wire, self._named, names)
        else:
            lines.append(f"return {self._name(wire)}({', '.join(f'{word}={name}' for word, name in names.items())})")
        return _written("row", lines, f"reader of {wire.__qualname__}", self._named)

    def _name(self, thing: Any) -> str:
        name = f"t{len(self._named)}"
        self._named[name] = thing
        return name

    def _lines(self, declared: Any, name: str) -> list[str]:
        """Lines that put what is read in place of what was given under ``name``."""
        if declared is Any:
            return []
        if declared in self._hooks:
            return [f"{name} = {self._name(self._hooks[declared])}({name})"]
        if declared in _SCALARS:
            kinds = (f"{name}.__class__ is not {self._name(kind)}" for kind in _SCALARS[declared])
            return [f"if {' and '.join(kinds)}: raise Unfit"]
        if get_origin(declared) in (Union, UnionType) and NoneType in get_args(declared):
            options: list[Any] = [kind for kind in get_args(declared) if kind is not NoneType]
            inside = self._lines(reduce(lambda one, other: one | other, options), name)
            return [f"if {name} is not None:", *_within(inside)] if inside else []
        if isinstance(declared, type) and has(declared):
            return [f"{name} = {self._name(self._plan(declared))}({name})"]
        if get_origin(declared) is list:
            return [f"if {name}.__class__ is not list: raise Unfit", *self._each(get_args(declared)[0], name)]
        if declared == dict[str, Any]:
            return [f"if {name}.__class__ is not dict: raise Unfit"]
        asked = self._name(self._careful().get_structure_hook(declared))
        return [f"{name} = {asked}({name}, {self._name(declared)})"]

    def _each(self, declared: Any, name: str) -> list[str]:
        each = f"{name}_"
        inside = self._lines(declared, each)
        if not inside:
            return []
        if len(inside) == 1 and inside[0].startswith(f"{each} = "):
            return [f"{name} = [{inside[0].removeprefix(f'{each} = ')} for {each} in {name}]"]
        if not any(line.lstrip().startswith(f"{each} = ") for line in inside):
            return [f"for {each} in {name}:", *_within(inside)]
        return [
            f"{each}s = []",
            f"for {each} in {name}:",
            *_within([*inside, f"{each}s.append({each})"]),
            f"{name} = {each}s",
        ]


def maker(kind: type[T]) -> Callable[..., T]:
    """Makes frozen values of parts that are certainly right: no converter and no validator is asked.

    For codecs, which make a dozen a row and give each part as it is declared: it takes a third of the time. Every field
    is given by its name, or has a default.
    """
    given = ["*"]
    named: dict[str, Any] = {}
    for place, part in enumerate(fields(cast(Any, kind))):
        if hasattr(part.default, "factory"):
            raise TypeError(
                f"{kind.__qualname__}.{part.name} has a default of its own each time: make it in its own way"
            )
        named[f"default__{place}"] = part.default
        given.append(part.alias if part.default is NOTHING else f"{part.alias}=default__{place}")
    lines = _filled(kind, named, {part.alias: part.alias for part in fields(cast(Any, kind))})
    return _written(", ".join(given), lines, f"maker of {kind.__qualname__}", named)


def _is_plain(kind: type[Any]) -> bool:
    """Whether making one is nothing but filling its slots."""
    parts = fields(kind)
    meant = all(part.init and part.converter is None and part.validator is None for part in parts)
    return meant and not hasattr(kind, "__attrs_post_init__") and kind.__dictoffset__ == 0


def _filled(kind: type[Any], named: dict[str, Any], given: Mapping[str, str]) -> list[str]:
    """Lines that make one of a slotted class, slot by slot: the own way of a frozen one takes three times as long."""
    # No field is called like these.
    named.update({"new__": object.__new__, "kind__": kind})
    lines = ["made__ = new__(kind__)"]
    for part in fields(kind):
        named[f"set__{part.name}"] = getattr(kind, part.name).__set__
        lines.append(f"set__{part.name}(made__, {given[part.alias]})")
    return [*lines, "return made__"]


def _written(given: str, lines: Sequence[str], name: str, named: dict[str, Any]) -> Callable[..., Any]:
    """A function of these lines. They hold names of attributes and nothing that anybody has sent."""
    text = "\n".join([f"def written({given}):", *_within(lines)])
    exec(compile(text, f"<{name}>", "exec"), named)  # noqa: S102
    return named["written"]


def _or_none(declared: Any) -> bool:
    return declared is Any or NoneType in get_args(declared)


def _within(lines: Sequence[str]) -> list[str]:
    return [f" {line}" for line in lines]


def strict() -> Strict:
    """A reader for an adapter's wire classes."""
    return Strict()


def structured(reader: Strict, row: Any, wire: type[T], what: str, raw: Any = None) -> T:
    """A row in the vendor's shape. Raises Unreadable that names the kind, the id and the path, and keeps the row.

    ``raw`` is the row as the server said it, where the one to be read was put right first.
    """
    try:
        return reader.structure(row, wire)
    except Exception as wrong:
        from cattrs import BaseValidationError, transform_error

        if not isinstance(wrong, BaseValidationError | TypeError | ValueError | KeyError):
            raise
        known = dict[str, Any](row).get("id") if isinstance(row, Mapping) else None  # pyright: ignore[reportUnknownArgumentType]
        told = "; ".join(transform_error(wrong, path=what)) if isinstance(wrong, BaseValidationError) else str(wrong)
        raise Unreadable(
            f"{what} {known} has another shape than expected: {told}", raw=row if raw is None else raw
        ) from None


def _secret(text: object) -> Secret:
    if not isinstance(text, str):
        raise TypeError("a secret is a string")
    return Secret(text)


@cache
def _reader() -> Strict:
    made = Strict()
    made.hook(datetime, lambda text: datetime.fromisoformat(text).astimezone(UTC))
    made.hook(Secret, _secret)
    return made


def to_tree(value: object, *, raw: bool = False) -> Any:
    """A value as plain JSON: moments in ISO 8601, money as text, empties and (unless asked for) ``raw`` left out."""
    if has(type(value)):
        named = {name: getattr(value, name) for name in fields_dict(type(value))}
        if not raw:
            named.pop("raw", None)
        named.pop("written", None)
        trees = {name: to_tree(part, raw=raw) for name, part in named.items()}
        return {name: tree for name, tree in trees.items() if tree not in (None, [], {}, "")}
    if isinstance(value, Mapping):
        return {str(name): to_tree(part, raw=raw) for name, part in value.items()}  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    if isinstance(value, list | tuple | frozenset):
        return [to_tree(part, raw=raw) for part in value]  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def token_to_tree(token: Token) -> dict[str, Any]:
    """A token with its secrets in the open: for a token store, and for nobody else."""
    tree = to_tree(token)
    held = {"access": token.access, "refresh": token.refresh}
    return {**tree, **{name: secret.reveal() for name, secret in held.items() if secret is not None}}


def token_from_tree(tree: Any) -> Token:
    return structured(_reader(), tree, Token, "token")


def cursor_to_tree(cursor: Cursor) -> dict[str, Any]:
    return {"at": cursor.at, "part": cursor.part}


def cursor_from_tree(tree: Any) -> Cursor:
    return structured(_reader(), tree, Cursor, "cursor")


# ------------------------------------------------------------------------------------- what to_tree showed, read back

# What a person writes for the whole of it: "+79991234567", "new", "12.50".
_SAID_ALONE: Mapping[type, str] = {Phone: "value", Email: "value", Tag: "name", Money: "amount"}
# Fields that point at rows of one kind, so that an id alone says enough.
_POINTS_AT: Mapping[str, Kind] = {
    **dict.fromkeys(("owner", "created_by", "updated_by"), Kind.USER),
    "pipeline": Kind.PIPELINE,
    "stage": Kind.STAGE,
    "type": Kind.TASK_TYPE,
    "field": Kind.FIELD,
    "company": Kind.COMPANY,
    "contacts": Kind.CONTACT,
    "deals": Kind.DEAL,
}


def from_tree(kind: type[T], tree: Any) -> T:
    """The value that ``to_tree`` has shown, or that a person wrote by hand.

    What is short to write is taken too: ``"phones": ["+7…"]``, ``"tags": ["new"]``, ``"price": "12.50"``, an id for what
    a field can only point at (``"owner": 5``, ``"company": 5``), a name for a company that is no row, ``"deal:7"`` for a
    target. Raises Invalid with an issue for everything that is wrong, a key that is no field among them.
    """
    issues: list[Issue] = []
    made = _made(kind, tree, "", issues)
    if issues:
        raise Invalid(f"this is no {kind.__name__.lower()}", issues)
    return made


def _made(kind: type[Any], tree: Any, path: str, issues: list[Issue]) -> Any:
    """A value of an attrs class, or None and issues."""
    alone = _SAID_ALONE.get(kind) if not isinstance(tree, Mapping) else None
    if alone is None and not isinstance(tree, Mapping):
        issues.append(_issue(path, f"expected an object, got {tree!r:.80}"))
        return None
    given: Mapping[Any, Any] = cast("Mapping[Any, Any]", tree) if alone is None else {alone: tree}
    known, before = fields_dict(kind), len(issues)
    for name in given:
        if name not in known or name == "written":
            fields = ", ".join(each for each in known if each not in ("raw", "unread", "written"))
            issues.append(_issue(_under(path, name), f"{kind.__name__} has no such field; it has {fields}"))
    if kind is FieldValue:
        given = {**given, "values": _contents(given, _under(path, "values"), issues)}
    parts = {
        name: _read(known[name].type, part, name, path if alone else _under(path, name), issues)
        for name, part in given.items()
        if name in known and part is not None
    }
    lacking = [name for name, part in known.items() if part.default is NOTHING and name not in parts]
    if lacking and len(issues) == before:
        issues.append(_issue(path or None, f"{kind.__name__} lacks {', '.join(lacking)}"))
    if len(issues) > before:
        return None
    try:
        return kind(**parts)
    except (TypeError, ValueError, ArithmeticError) as wrong:
        issues.append(_issue(path or None, str(wrong)))
        return None


def _read(declared: Any, tree: Any, name: str, path: str, issues: list[Issue]) -> Any:
    """One field's content; ``declared`` is its type."""
    if declared is Any or name == "values":
        return tree
    options = [each for each in get_args(declared) if each is not type(None)]
    kind = declared
    if get_origin(declared) in (Union, UnionType):
        kind = options[0] if len(options) == 1 else Id
    elif get_origin(declared) in (tuple, frozenset):
        each: list[Any] = cast("list[Any]", tree) if isinstance(tree, list) else [tree]
        inside = [_read(options[0], part, name, f"{path}.{place}", issues) for place, part in enumerate(each)]
        return get_origin(declared)(inside)
    try:
        if kind is Ref:
            return _pointer(tree, _POINTS_AT.get(name))
        if kind is Link and not isinstance(tree, Mapping):
            return _link(tree, _POINTS_AT[name])
        if isinstance(kind, type) and has(kind):
            return _made(kind, tree, path, issues)
        return _scalar(kind, tree)
    except (TypeError, ValueError, ArithmeticError) as wrong:
        issues.append(_issue(path, str(wrong)))
        return None


def _scalar(kind: Any, tree: Any) -> Any:
    if kind is datetime:
        return _moment(tree)
    if kind is timedelta:
        return timedelta(seconds=float(_exact(tree, int, float, Decimal)))
    if kind is float:
        return float(_exact(tree, int, float))
    if kind is Decimal:
        return tree if isinstance(tree, float) else _number(_exact(tree, str, int, Decimal))
    if kind == Id:
        return _exact(tree, int, str)
    if get_origin(kind) is Mapping:
        return _exact(tree, dict)
    if issubclass(kind, StrEnum):
        if tree not in tuple(kind):
            raise ValueError(f"{tree!r:.80} is none of {', '.join(kind)}")
        return kind(tree)
    return _exact(tree, kind)


def _exact(tree: Any, *kinds: type) -> Any:
    return _exactly(*kinds)(tree, kinds[0])


def _number(tree: str | int | Decimal) -> Decimal:
    try:
        return Decimal(tree)
    except ArithmeticError:
        raise ValueError(f"{tree!r:.80} is no number") from None


def _moment(tree: Any) -> datetime:
    at = datetime.fromisoformat(_exact(tree, str))
    if at.tzinfo is None:
        raise ValueError(f"{tree!r} has no time zone: write 2026-03-01T09:00:00+03:00, or Z for UTC")
    return at.astimezone(UTC)


def _pointer(tree: Any, kind: Kind | None) -> Ref:
    """A reference: as ``to_tree`` writes it, as an id where one kind can be meant, else as ``kind:id``."""
    if isinstance(tree, Mapping):
        given: Mapping[str, Any] = tree  # pyright: ignore[reportUnknownVariableType]
        strange = [name for name in given if name not in ("kind", "id")]
        if strange or "kind" not in given:
            raise ValueError(f"a reference is {{kind, id}}, not {dict(given)!r:.80}")
        found = Ref(_scalar(Kind, given["kind"]), None if given.get("id") is None else _scalar(Id, given["id"]))
        if kind is not None and found.kind is not kind:
            raise ValueError(f"this points at a {kind}, not at a {found.kind}")
        return found
    if kind is not None:
        return Ref(kind, _scalar(Id, tree))
    word, _, id = _exact(tree, str).partition(":")
    if word not in tuple(Kind) or not id:
        raise ValueError(f"{tree!r:.80} is no kind:id, like deal:7; kinds are {', '.join(Kind)}")
    return Ref(Kind(word), int(id) if id.isascii() and id.isdecimal() else id)


def _link(tree: Any, kind: Kind) -> Link:
    """A row by its id, or by a name where there is no row to point at."""
    said = _scalar(Id, tree)
    return Link(Ref(kind, None), name=said) if isinstance(said, str) else Link(Ref(kind, said))


def _contents(given: Mapping[Any, Any], path: str, issues: list[Issue]) -> tuple[Any, ...]:
    """What a custom field holds: a text that says exactly what ``to_tree`` writes of its type is that again."""
    values = given.get("values")
    found: list[Any] = []
    for place, part in enumerate(values if isinstance(values, list) else [] if values is None else [values]):  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        try:
            found.append(_content(part, given.get("type", "")))
        except (TypeError, ValueError) as wrong:
            issues.append(_issue(f"{path}.{place}", str(wrong)))
    return tuple(found)


def _content(part: Any, type: Any) -> Any:
    if isinstance(part, float):
        raise TypeError(f"a number is exact: write it in quotes, '{part}', or read JSON with parse_float=Decimal")
    if isinstance(part, int) and not isinstance(part, bool):
        return Decimal(part)
    reader = _CONTENTS.get(type)
    if not isinstance(part, str) or reader is None:
        return _exact(part, str, bool, Decimal, dict)
    try:
        found = reader(part)
    except (ValueError, ArithmeticError):
        return part
    if isinstance(found, datetime):
        return _moment(part)
    return found if str(to_tree(found)) == part else part


_CONTENTS: Mapping[Any, Callable[[str], Any]] = {
    FieldType.NUMBER: Decimal,
    FieldType.MONEY: Decimal,
    FieldType.DATE: date.fromisoformat,
    FieldType.BIRTHDAY: date.fromisoformat,
    FieldType.DATETIME: datetime.fromisoformat,
}


def _under(path: str, name: object) -> str:
    return f"{path}.{name}" if path else str(name)


def _issue(path: str | None, rule: str) -> Issue:
    return Issue(field=path, path=path, rule=rule)
