"""Values to plain trees and back, strictly: what is not of the declared type is an error with its path, never a guess.

Plain cattrs turns None into 'None', 'false' into True and 1.9 into 1. ``strict()`` is the converter that does not; an
adapter's wire classes are read with it. ``to_tree`` shows any value as plain JSON; tokens and cursors come back too.
"""

from collections.abc import Mapping
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


def _exactly(*kinds: type) -> Any:
    def structure(given: Any, _: type) -> Any:
        if isinstance(given, kinds) and (bool in kinds or not isinstance(given, bool)):
            return given
        raise TypeError(f"expected {' or '.join(kind.__name__ for kind in kinds)}, got {given!r:.80}")

    return structure


def strict() -> Converter:
    """A cattrs converter whose scalars are only themselves; lists only lists, maps only maps, None only Optional."""
    made = Converter(detailed_validation=True)
    for kind in (str, int, bool, Decimal):
        # A whole JSON number is an int; where a Decimal is declared it is meant too.
        made.register_structure_hook(kind, _exactly(Decimal, int) if kind is Decimal else _exactly(kind))
    made.register_structure_hook(int | str, _exactly(int, str))
    made.register_structure_hook(int | str | None, _exactly(int, str, type(None)))

    def only_maps(wanted: Any) -> Any:
        inner: Any = make_dict_structure_fn(wanted, made, _cattrs_use_alias=True)

        def structure(given: Any, kind: Any) -> Any:
            if not isinstance(given, Mapping):
                raise TypeError(f"expected an object, got {given!r:.80}")
            return inner(given, kind)

        return structure

    made.register_structure_hook_factory(has, only_maps)

    def only_lists(wanted: Any) -> Any:
        (part,) = wanted.__args__

        def structure(given: Any, _: Any) -> Any:
            if not isinstance(given, list):
                raise TypeError(f"expected a list, got {given!r:.80}")
            return [made.structure(each, part) for each in given]  # pyright: ignore[reportUnknownVariableType]

        return structure

    made.register_structure_hook_factory(lambda kind: getattr(kind, "__origin__", None) is list, only_lists)
    return made


def structured(converter: Converter, row: Any, wire: type[T], what: str) -> T:
    """A row in the vendor's shape. Raises Unreadable that names the kind, the id and the path, and keeps the row."""
    try:
        return converter.structure(row, wire)
    except (BaseValidationError, TypeError, ValueError, KeyError) as wrong:
        known = dict[str, Any](row).get("id") if isinstance(row, Mapping) else None  # pyright: ignore[reportUnknownArgumentType]
        told = "; ".join(transform_error(wrong, path=what)) if isinstance(wrong, BaseValidationError) else str(wrong)
        raise Unreadable(f"{what} {known} has another shape than expected: {told}", raw=row) from None


@cache
def _plain() -> Converter:
    made = strict()
    made.register_unstructure_hook(datetime, lambda moment: moment.isoformat())
    made.register_structure_hook(datetime, lambda text, _: datetime.fromisoformat(text).astimezone(UTC))
    made.register_unstructure_hook(Secret, lambda hidden: hidden.reveal())
    made.register_structure_hook(Secret, lambda text, _: Secret(text))
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
    return _plain().unstructure(token)


def token_from_tree(tree: Any) -> Token:
    return structured(_plain(), tree, Token, "token")


def cursor_to_tree(cursor: Cursor) -> dict[str, Any]:
    return _plain().unstructure(cursor)


def cursor_from_tree(tree: Any) -> Cursor:
    return structured(_plain(), tree, Cursor, "cursor")
