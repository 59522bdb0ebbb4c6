"""Dialects by name, from entry points: third parties come in by the same door as our own."""

from functools import cache
from importlib.metadata import EntryPoint, entry_points

from crmclient.dialect import Dialect
from crmclient.errors import UnknownDialect

GROUP = "crmclient.dialects"


@cache
def _found() -> dict[str, EntryPoint]:
    return {point.name: point for point in sorted(entry_points(group=GROUP), key=lambda point: point.name)}


def dialect_names() -> tuple[str, ...]:
    """The names of the dialects that are installed."""
    return tuple(_found())


@cache
def dialect(name: str) -> Dialect:
    """A dialect by its name. Raises UnknownDialect, which lists the known ones."""
    point = _found().get(name)
    if point is None:
        raise UnknownDialect(f"there is no dialect {name!r}; installed are: {', '.join(_found()) or 'none'}")
    loaded = point.load()
    if not isinstance(loaded, Dialect):
        raise UnknownDialect(f"the entry point {point.value!r} of {name!r} is no Dialect")
    return loaded
