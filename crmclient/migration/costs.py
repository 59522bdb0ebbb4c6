"""The fewest requests that reading and writing so many rows can cost: every page and every batch full."""

from collections.abc import Iterable, Mapping, Sequence

from crmclient.dialect import Dialect, Listing, Rate, Verb, Writing
from crmclient.entities import Kind, Ref
from crmclient.flows import batch_of
from crmclient.migration.matching import MOVED, kind_of
from crmclient.paging import Offset, PageNumber


def pages(rows: int, size: int) -> int:
    """The fewest requests that read so many rows: an empty list costs one too."""
    return max(1, -(-rows // size))


def batches(rows: int, size: int) -> int:
    """The fewest requests that write so many rows: none costs none."""
    return -(-rows // size)


def under(kind: str, above: Ref | Kind) -> str:
    """Under which name the rows of a kind are counted that hang on one kind of parent."""
    return f"{kind} of a {above.kind if isinstance(above, Ref) else above}"


def reads(spoken: Dialect, kinds: Iterable[str], rows: Mapping[str, int]) -> int:
    """The fewest requests that read all rows of these kinds, in an account with so many of each.

    What shows only on the card of what it hangs on costs the opening of each card, once for all kinds, and their list.
    """
    listed, opened = dict.fromkeys(kinds), dict[str, None]()
    for kind in tuple(listed):
        nested = _listing(spoken, kind).nested
        if nested is not None and nested.every is None:
            del listed[kind]
            above = (spoken.entity_of(each) for each in nested.parents)
            opened |= dict.fromkeys(kind_of(each) for each in above if each is not None)
    return sum(_lists(spoken, kind, rows) for kind in listed | opened) + sum(rows.get(kind, 0) for kind in opened)


def _listing(spoken: Dialect, kind: str) -> Listing:
    route = spoken.route(MOVED[kind], Verb.LIST)
    assert isinstance(route, Listing)  # noqa: S101  that is what lists
    return route


def _lists(spoken: Dialect, kind: str, rows: Mapping[str, int]) -> int:
    route = _listing(spoken, kind)
    nested, paging = route.nested, route.paging or spoken.paging
    size = paging.size if isinstance(paging, PageNumber | Offset) else rows.get(kind, 0) or 1

    def fewest(number: int) -> int:
        # Where an empty page is the end, it is asked for too.
        return pages(number, size) + (isinstance(paging, Offset) and number > 0)

    if nested is None:
        return fewest(rows.get(kind, 0))
    return max(fewest(rows.get(kind, 0)), sum(fewest(rows.get(under(kind, above), 0)) for above in nested.parents))


def batch(spoken: Dialect, kind: str) -> int:
    """How many rows of a kind a request makes at most."""
    route = spoken.route(MOVED[kind], Verb.CREATE)
    return route.batch if isinstance(route, Writing) else 1


def advised(spoken: Dialect, kind: str) -> int:
    """How many rows of a kind a request makes as the vendor advises, where it does: with more it may time out."""
    return batch_of(spoken, MOVED[kind])


def writes(
    source: Dialect,
    target: Dialect,
    kind: str,
    rows: int,
    *,
    apart: Sequence[int] = (),
    completed: int = 0,
    ties: int = 0,
    size: int | None = None,
) -> int:
    """The fewest requests that make so many rows, ``size`` of them each: else as many as one can hold.

    ``apart`` are their numbers by what they hang on, for where a request holds rows of one such kind only; ``completed``
    are finished once they are there, and ``ties`` of contacts to companies are made once both are.
    """
    route, size = target.route(MOVED[kind], Verb.CREATE), size or batch(target, kind)
    grouped = isinstance(route, Writing) and route.group_by is not None and apart
    total = sum(batches(number, size) for number in (apart if grouped else [rows]))
    total += batches(completed, _completed_at_once(target, kind))
    if kind == "contacts" and isinstance(route, Writing) and route.then is not None:
        # What ties rows once they are made comes in batches as large as one can hold.
        told = source.resource(MOVED[kind]).survivors(Verb.LIST) & target.resource(MOVED[kind]).survivors(Verb.CREATE)
        # A tie dates its row anew, so who changed it and when has to be told once more.
        stamped = not route.redates and bool(told & {"updated_at", "updated_by"})
        total += batches(ties, batch(target, kind)) * (1 + stamped)
    return total


def _completed_at_once(target: Dialect, kind: str) -> int:
    """How many rows a request completes: many where an update can say all that completing says."""
    resource = target.resource(MOVED[kind])
    said = resource.survivors(Verb.COMPLETE) & {"done", "result"}
    return batch_of(target, MOVED[kind], Verb.UPDATE) if said and said <= resource.survivors(Verb.UPDATE) else 1


def minutes(requests: int, rates: Iterable[Rate]) -> float:
    """How long so many requests take at the least, by the narrowest of these limits."""
    return max((requests * rate.seconds / rate.limit for rate in rates), default=0.0) / 60
