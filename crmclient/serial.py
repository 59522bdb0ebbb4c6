"""Values to plain trees and back, strictly: what is not of the declared type is an error with its path, never a guess.

Plain cattrs turns None into 'None', 'false' into True and 1.9 into 1. ``strict()`` is the reader that does not; an
adapter's wire classes are read by it. ``to_tree`` shows any value as plain JSON; tokens and cursors come back too.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import cache
from typing import Any, TypeVar

from attrs import fields_dict, has
from cattrs import BaseValidationError, Converter, transform_error
from cattrs.gen import make_dict_structure_fn

from crmclient.dialect import Cursor, Secret, Token
from crmclient.errors import Unreadable

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


def _strict_converter(detailed: bool) -> Converter:
    made = Converter(detailed_validation=detailed)
    # A whole JSON number is an int; where a Decimal is declared it is meant too.
    scalars: tuple[tuple[type, tuple[type, ...]], ...] = ((str, ()), (int, ()), (bool, ()), (Decimal, (int,)))
    for kind, others in scalars:
        made.register_structure_hook(kind, _exactly(kind, *others))
        made.register_structure_hook(kind | None, _exactly(kind, *others, type(None)))
    made.register_structure_hook(int | str, _exactly(int, str))
    made.register_structure_hook(int | str | None, _exactly(int, str, type(None)))

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

    made.register_structure_hook_factory(lambda kind: getattr(kind, "__origin__", None) is list, only_lists)
    return made


class Strict:
    """Reads wire classes: scalars are only themselves, lists only lists, maps only maps, None only where declared.

    A good row is read by code that keeps no account of where it is; a bad one is read again by code that does, so that
    the complaint names the path.
    """

    def __init__(self) -> None:
        self._fast, self._slow = _strict_converter(detailed=False), _strict_converter(detailed=True)

    def hook(self, kind: type, structure: Callable[[Any], Any]) -> None:
        """Read a kind of scalar (and None, where that is declared) in the vendor's own way."""

        def read(given: Any, _: Any) -> Any:
            return structure(given)

        def read_or_none(given: Any, _: Any) -> Any:
            return None if given is None else structure(given)

        for converter in (self._fast, self._slow):
            converter.register_structure_hook(kind, read)
            converter.register_structure_hook(kind | None, read_or_none)

    def structure(self, row: Any, wire: type[T]) -> T:
        try:
            return self._fast.structure(row, wire)
        except Exception:  # whatever it was, reading again tells it with its path
            return self._slow.structure(row, wire)


def strict() -> Strict:
    """A reader for an adapter's wire classes."""
    return Strict()


def structured(reader: Strict, row: Any, wire: type[T], what: str) -> T:
    """A row in the vendor's shape. Raises Unreadable that names the kind, the id and the path, and keeps the row."""
    try:
        return reader.structure(row, wire)
    except (BaseValidationError, TypeError, ValueError, KeyError) as wrong:
        known = dict[str, Any](row).get("id") if isinstance(row, Mapping) else None  # pyright: ignore[reportUnknownArgumentType]
        told = "; ".join(transform_error(wrong, path=what)) if isinstance(wrong, BaseValidationError) else str(wrong)
        raise Unreadable(f"{what} {known} has another shape than expected: {told}", raw=row) from None


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
