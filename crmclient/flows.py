"""What a user asks, as generators of calls: list, get, create, update, delete, complete. Nothing here does I/O.

A flow reads the dialect's routes and codecs and never names a vendor. Whatever breaks a rule that is known here is told
before anything is sent; whatever is refused later is told row by row, and loses nothing already done.
"""

import logging
from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence, Set
from datetime import datetime, timedelta
from functools import partial
from itertools import accumulate
from typing import Any, TypeAlias, TypeVar, cast

from attrs import frozen

from crmclient.dialect import (
    Call,
    Context,
    Cursor,
    Dialect,
    Filter,
    Flow,
    FollowUp,
    Getting,
    Listing,
    Made,
    Mending,
    Merging,
    MissingPart,
    Need,
    Nested,
    NotApplied,
    Paging,
    Receipt,
    Refused,
    Reply,
    Resource,
    Row,
    Unknown,
    Verb,
    Walk,
    Writing,
    lost,
    read,
)
from crmclient.entities import Entity, FieldValue, Id, Kind, Link, Ref, evolve, field_names, fields_emptied, filled
from crmclient.errors import (
    AmbiguousWrite,
    ConnectionLost,
    CRMError,
    IncompleteRead,
    Invalid,
    Issue,
    NotFound,
    PartlyDone,
    Rejected,
    Unavailable,
    Unreadable,
    Unsupported,
    UsageError,
)
from crmclient.paging import Trail, Unpaged

T = TypeVar("T")
R = TypeVar("R", bound=Listing | Getting | Writing | Merging)

_log = logging.getLogger("crmclient.flows")

# Calls of one wave go side by side, as many at once as the session has connections; the next wave waits for them, which
# costs a latency: so rarely that it does not show at any pace.
_WAVE = 256

# After so many rows others have their turn: a page is a tenth of a second's work, and what is paced waits for nothing.
_TURN = 25

# So old, in seconds, a settings part may be by which something is refused: an option may have been added since.
_FRESH = 60.0


def settled(pure: Callable[[Context], T], parent: Ref | None = None) -> Flow[T]:
    """Run a pure function; each settings part it turns out to need is read, then it runs again.

    What it refuses after a look at a part is looked at again, with that part no older than a minute.
    """
    context: Context = yield Need()
    doubted = False
    while True:
        parts = _Noted(context.parts)
        try:
            return pure(evolve(context, parts=parts, parent=context.parent if parent is None else parent))
        except MissingPart as missing:
            context = yield Need(missing.part, optional=missing.optional)
        except Invalid:
            if doubted or not parts.looked_at:
                raise
            doubted = True
            for name in parts.looked_at:
                # What may no longer be read is missed again where it is needed, and raised then.
                context = yield Need(name, fresh=_FRESH, optional=True)


class _Noted(Mapping[str, Any]):
    """Settings parts that remember which of them were looked at."""

    def __init__(self, parts: Mapping[str, Any]) -> None:
        self._parts = parts
        self.looked_at: list[str] = []

    def __getitem__(self, name: str) -> Any:
        part = self._parts[name]
        if name not in self.looked_at:
            self.looked_at.append(name)
        return part

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


def _route(dialect: Dialect, entity: type[Any], verb: Verb, kind: type[R]) -> R:
    route = dialect.route(entity, verb)
    if not isinstance(route, kind):
        raise TypeError(f"{dialect.name}: the {verb} route of {entity.__name__} is no {kind.__name__}")
    return route


# ------------------------------------------------------------------------------------------------------- reading


def get(dialect: Dialect, entity: type[T], id: object, target: Ref | None = None) -> Flow[T]:
    """One row by its id; ``target`` where rows live under others. Raises NotFound."""
    resource, route = dialect.resource(entity), _route(dialect, entity, Verb.GET, Getting)
    row_id = resource.row_id(id)
    reply: Reply = yield route.call(row_id, target)
    row = route.row(reply)
    if row is None:
        raise NotFound(f"{dialect.title} has no {resource.name.lower()} {row_id}", status=reply.status)
    return (yield from settled(lambda context: resource.decode(row, context), target))


# The neutral field a filter looks at; `ids` looks at the id and `text` at whatever is text.
_LOOKS_AT = {
    "updated_since": "updated_at",
    "created_since": "created_at",
    "owner": "owner",
    "pipeline": "pipeline",
    "stage": "stage",
    "target": "target",
}


def matches(row: Any, name: str, asked: Any) -> bool:
    """Whether a neutral row is what a filter asks for."""
    if name == "ids":
        return row.id in asked
    if name == "text":
        return asked.casefold() in " ".join(_texts(row)).casefold()
    found = getattr(row, _LOOKS_AT[name])
    if name.endswith("_since"):
        return found is not None and found >= asked
    return found == asked


def _texts(row: Any) -> Iterator[str]:
    for name in ("name", "text", "email"):
        yield getattr(row, name, None) or ""
    for name in ("phones", "emails"):
        for part in getattr(row, name, ()):
            yield part.value
    company = getattr(row, "company", None)
    if company is not None and company.name:
        yield company.name


@frozen(kw_only=True)
class _Part:
    """One listing of a walk."""

    call: Call
    paging: Paging
    rows: Callable[[Reply], Sequence[Any]]
    parent: Ref | None = None


OnBad: TypeAlias = Callable[[type[Any], Unreadable], None]
Reader: TypeAlias = Callable[[Iterable[Any], Ref | None], Flow[list[Any]]]
"""Raw rows and what they live under, to the neutral rows that were asked for."""


def listing(
    dialect: Dialect,
    entity: type[T],
    asked: Filter | None = None,
    on_bad: Callable[[Unreadable], None] | None = None,
    paging: Paging | None = None,
) -> Walk[T]:
    """A walk over the rows of a kind.

    ``on_bad`` is called with each row that cannot be read, and the walk goes on; without it the first one is raised.
    ``paging`` is another than the route's own. Raises Unsupported for a filter that neither the server nor we can apply.
    """
    route = _route(dialect, entity, Verb.LIST, Listing)
    asked = asked or Filter()
    names = _checked(dialect, dialect.resource(entity), asked)
    if asked.target is None and _opened(route):

        def told(kind: type[Any], bad: Unreadable) -> None:
            if on_bad is None:
                raise bad
            on_bad(bad)

        parents = _parents(dialect, [entity])
        return chained([_opening(dialect, kind, (entity,), asked=asked, on_bad=told) for kind in parents])
    decoded = _reader(dialect, entity, asked, on_bad)
    parts = tuple(_parts(dialect, route, asked, paging))

    def call(cursor: Cursor) -> Call:
        part = parts[cursor.part]
        made = part.paging.at(part.call, cursor.at)
        for name in names:
            if name in route.filters:
                made = route.filters[name](made, asked)
        return made

    def rows(cursor: Cursor, reply: Reply) -> Sequence[Any]:
        return parts[cursor.part].rows(reply)

    def after(cursor: Cursor, reply: Reply, count: int) -> Cursor | None:
        position = parts[cursor.part].paging.after(cursor.at, reply, count)
        if position is not None:
            return Cursor(position, cursor.part)
        following = cursor.part + 1
        return firsts[following] if following < len(parts) else None

    def ahead(cursor: Cursor, n: int) -> Cursor | None:
        position = parts[cursor.part].paging.ahead(cursor.at, n)
        return None if position is None else Cursor(position, cursor.part)

    def last(cursor: Cursor, reply: Reply) -> Cursor | None:
        position = parts[cursor.part].paging.last(reply)
        return None if position is None else Cursor(position, cursor.part)

    def items(cursor: Cursor, rows: Sequence[Any]) -> Flow[tuple[T, ...]]:
        return tuple((yield from decoded(rows, parts[cursor.part].parent)))

    firsts = tuple(Cursor(part.paging.first, number) for number, part in enumerate(parts))
    brings = (frozenset[type[Any]]({entity}),) * len(firsts)
    return Walk(
        first=firsts[0],
        call=call,
        rows=rows,
        after=after,
        ahead=ahead,
        last=last,
        items=items,
        firsts=firsts,
        brings=brings,
    )


def _reader(dialect: Dialect, entity: type[Any], asked: Filter, on_bad: Callable[[Unreadable], None] | None) -> Reader:
    """How the rows of a kind are read, each checked against the filters."""
    resource, route, names = dialect.resource(entity), _route(dialect, entity, Verb.LIST, Listing), asked.asked()
    probe, told = read("/"), set[str]()

    def asked_of_the_server(name: str) -> bool:
        """A stage without its pipeline, say, is not sent, so it was not ignored. Ids may be the paging's to send."""
        narrow = route.filters.get(name)
        return narrow is not None and (name == "ids" or narrow(probe, asked) is not probe)

    def kept(row: Any) -> bool:
        for name, given in names.items():
            if _LOOKS_AT.get(name) in getattr(row, "unread", ()):
                raise Unsupported(f"{resource.vendor} cannot be filtered by {name}: this reading does not tell it")
            if name not in route.trusted and not matches(row, name, given):
                if name not in told and asked_of_the_server(name):
                    told.add(name)
                    _log.warning(
                        "%s ignored the filter %s of %s: its answer is filtered here",
                        dialect.title,
                        name,
                        resource.vendor,
                    )
                return False
        return True

    def decoded(rows: Iterable[Any], parent: Ref | None) -> Flow[list[Any]]:
        found: list[Any] = []
        context = evolve((yield Need()), parent=parent)
        waiting = list(reversed(list(rows)))
        while waiting:
            if len(waiting) % _TURN == 0:
                context = evolve((yield Need(turn=True)), parent=parent)
            try:
                made = resource.decode(waiting[-1], context)
            except MissingPart as missing:
                context = evolve((yield Need(missing.part, optional=missing.optional)), parent=parent)
                continue
            except Unreadable as bad:
                if on_bad is None:
                    raise
                on_bad(bad)
                waiting.pop()
                continue
            waiting.pop()
            if not names or kept(made):
                found.append(made)
        return found

    return decoded


def _checked(dialect: Dialect, resource: Resource[Any], asked: Filter) -> Mapping[str, Any]:
    names = asked.asked()
    readable = resource.survivors(Verb.LIST)
    for name in names:
        if name in ("ids", "text"):
            continue
        if _LOOKS_AT[name] not in readable:
            raise Unsupported(f"{dialect.title} {resource.vendor} cannot be filtered by {name}: they do not tell it")
    for name in ("updated_since", "created_since"):
        if name in names and names[name].tzinfo is None:
            raise Invalid(f"{name} has no time zone: write datetime(…, tzinfo=UTC) or a ZoneInfo")
    return names


def _parts(dialect: Dialect, route: Listing, asked: Filter, given: Paging | None) -> Iterator[_Part]:
    nested, paging = route.nested, given or route.paged(asked) or route.paging or dialect.paging
    if nested is None:
        if route.call is None:
            raise TypeError("a listing needs a call or what it is nested in")
        yield _Part(call=route.call, paging=paging, rows=route.rows)
    elif asked.target is not None:
        _under(dialect, nested, asked.target)
        # A parent that is opened shows all its rows at once; only where they have a listing of their own are there pages.
        one_page = Unpaged() if nested.every is None else paging
        yield _Part(call=nested.of(asked.target), paging=one_page, rows=route.rows, parent=asked.target)
    elif nested.every is not None:
        for kind in nested.parents:
            yield _Part(call=nested.every(kind), paging=paging, rows=route.rows, parent=Ref(kind, None))


def _under(dialect: Dialect, nested: Nested, target: Ref) -> None:
    if target.kind not in nested.parents:
        known = ", ".join(nested.parents)
        raise Unsupported(f"{dialect.title} keeps these rows under {known}, not under a {target.kind}")


# ------------------------------------------------------------------------------------------- several kinds in one walk


def together(
    dialect: Dialect,
    entities: Iterable[type[Any]],
    target: Ref | None = None,
    on_bad: OnBad | None = None,
) -> Walk[Any]:
    """One walk over the rows of several kinds, in which nothing is asked for twice; with ``target``, over what is there
    of that row and under it.

    Where rows show only when what they hang on is opened, each is opened once for all the kinds asked for, and comes
    before them as it is then read. ``on_bad`` is told whose row cannot be read, and why. Raises Unsupported for a kind
    that cannot be listed.
    """
    kinds = tuple(dict.fromkeys(entities))
    if not kinds:
        raise Invalid("together() takes the kinds of rows to read: together(Contact, Deal, Task, Note)")
    if target is not None:
        return _card(dialect, kinds, target, on_bad)
    held = [entity for entity in kinds if _opened(_route(dialect, entity, Verb.LIST, Listing))]
    above, done = _parents(dialect, held), set[Kind]()
    walks: list[Walk[Any]] = []
    for entity in kinds:
        mine = getattr(entity, "KIND", None)
        opened = _parents(dialect, [entity]) if entity in held else [kind for kind in above if kind == mine]
        for kind in opened:
            if kind not in done:
                done.add(kind)
                walks.append(_opening(dialect, kind, held, shows=dialect.entity_of(kind) in kinds, on_bad=on_bad))
        if not opened:
            walks.append(listing(dialect, entity, None, _of(entity, on_bad)))
    return chained(walks)


def _of(entity: type[Any], on_bad: OnBad | None) -> Callable[[Unreadable], None] | None:
    return None if on_bad is None else partial(on_bad, entity)


def _opened(route: Listing) -> bool:
    """Whether these rows show only in what they live under."""
    return route.nested is not None and route.nested.every is None


def _parents(dialect: Dialect, held: Iterable[type[Any]]) -> list[Kind]:
    """What is opened for these rows, as far as the dialect has it."""
    nests = (_route(dialect, entity, Verb.LIST, Listing).nested for entity in held)
    kinds = dict.fromkeys(kind for nested in nests if nested is not None for kind in nested.parents)
    return [kind for kind in kinds if dialect.entity_of(kind) is not None]


def _opening(
    dialect: Dialect,
    kind: Kind,
    held: Sequence[type[Any]],
    *,
    shows: bool = False,
    asked: Filter | None = None,
    on_bad: OnBad | None = None,
) -> Walk[Any]:
    """The parents of one kind, each opened once for the rows under it, however many kinds of them: calls are values, and
    two that are equal are one request. With ``shows`` the parents come too.
    """
    above = dialect.entity_of(kind)
    assert above is not None  # noqa: S101  _parents has looked
    parents_of = listing(dialect, above, None, _of(above, on_bad))
    readers = {entity: _reader(dialect, entity, asked or Filter(), _of(entity, on_bad)) for entity in held}
    under = _Under(dialect, kind, readers, above if shows else None)

    def items(cursor: Cursor, rows: Sequence[Any]) -> Flow[tuple[Any, ...]]:
        parents: tuple[Any, ...] = yield from parents_of.items(cursor, rows)
        asking = [under.calls(parent.ref) for parent in parents]
        replies: Iterator[Reply | CRMError] = iter((yield tuple(call for calls in asking for call in calls)))
        found: list[Any] = []
        for parent, calls in zip(parents, asking, strict=True):
            answers = [(call, next(replies)) for call in calls]
            try:
                found += yield from under.read(parent.ref, answers, parent)
            except NotFound:
                continue  # deleted since the list was read, and its rows with it
            except Unreadable as bad:
                if on_bad is None:
                    raise
                on_bad(above, bad)
                found += [parent] if shows else []
        return tuple(found)

    def opens(cursor: Cursor) -> int:
        return len(under.calls(Ref(kind, 1)))

    brings = frozenset[type[Any]]({*held, *([above] if shows else [])})
    return evolve(parents_of, items=items, opens=opens, brings=(brings,) * len(parents_of.firsts))


@frozen
class _Under:
    """What is read of one row and under it: the calls, and what their answers tell."""

    dialect: Dialect
    kind: Kind
    readers: Mapping[type[Any], Reader]
    shown: type[Any] | None

    def calls(self, ref: Ref, always: bool = False) -> list[Call]:
        """The distinct ones; the row itself is asked for ``always``, or else only if that is one of them anyway."""
        found: list[Call] = []
        for _, call in self.nests(ref):
            if call not in found:
                found.append(call)
        own = self.own(ref)
        return [*found, own] if always and own is not None and own not in found else found

    def read(self, ref: Ref, answers: Sequence[tuple[Call, Reply | CRMError]], listed: Any = None) -> Flow[list[Any]]:
        for _, reply in answers:
            if isinstance(reply, CRMError):
                raise reply

        def told(asked: Call | None) -> Any:
            return next((reply for call, reply in answers if call == asked), None)

        found: list[Any] = []
        if self.shown is not None:
            reply, row = told(self.own(ref)), None
            if reply is not None:
                row = _route(self.dialect, self.shown, Verb.GET, Getting).row(reply)
                if row is None:
                    raise NotFound(f"{self.dialect.title} has no {self.shown.__name__.lower()} {ref.id}")
            resource = self.dialect.resource(self.shown)
            found.append(listed if row is None else (yield from settled(lambda context: resource.decode(row, context))))
        for entity, call in self.nests(ref):
            rows = _route(self.dialect, entity, Verb.LIST, Listing).rows(told(call))
            found += yield from self.readers[entity](rows, ref)
        return found

    def nests(self, ref: Ref) -> Iterator[tuple[type[Any], Call]]:
        for entity in self.readers:
            nested = _route(self.dialect, entity, Verb.LIST, Listing).nested
            if nested is not None and self.kind in nested.parents:
                yield entity, nested.of(ref)

    def own(self, ref: Ref) -> Call | None:
        if self.shown is None or ref.id is None or not self.dialect.can(self.shown, Verb.GET):
            return None
        return _route(self.dialect, self.shown, Verb.GET, Getting).call(ref.id, None)


def _card(dialect: Dialect, kinds: Sequence[type[Any]], target: Ref, on_bad: OnBad | None) -> Walk[Any]:
    """One row and what hangs on it, as few calls as tell of them."""
    held, others, shown = list[type[Any]](), list[Walk[Any]](), None
    for entity in kinds:
        if target.kind == getattr(entity, "KIND", None):
            _route(dialect, entity, Verb.GET, Getting)
            shown = entity
            continue
        route = _route(dialect, entity, Verb.LIST, Listing)
        if route.nested is not None and _opened(route):
            _under(dialect, route.nested, target)
            held.append(entity)
        else:
            others.append(listing(dialect, entity, Filter(target=target), _of(entity, on_bad)))
    readers = {entity: _reader(dialect, entity, Filter(), _of(entity, on_bad)) for entity in held}
    under = _Under(dialect, target.kind, readers, shown)

    def alone(call: Call) -> Walk[Any]:
        def items(cursor: Cursor, rows: Sequence[Any]) -> Flow[tuple[Any, ...]]:
            mine = {entity: under.readers[entity] for entity, each in under.nests(target) if each == call}
            part = evolve(under, readers=mine, shown=shown if under.own(target) == call else None)
            return tuple((yield from part.read(target, [(call, rows[0])])))

        return Walk(
            first=Cursor(1),
            call=lambda cursor: call,
            rows=lambda cursor, reply: [reply],
            after=lambda cursor, reply, count: None,
            ahead=lambda cursor, n: None,
            last=lambda cursor, reply: cursor,
            items=items,
            brings=(frozenset(kinds),),
        )

    return chained([*(alone(call) for call in under.calls(target, always=True)), *others])


def chained(walks: Sequence[Walk[Any]]) -> Walk[Any]:
    """Walks one after another as one; its cursors say in which of them they are."""
    if len(walks) == 1:
        return walks[0]
    starts = list(accumulate((len(walk.firsts) for walk in walks), initial=0))

    def of(cursor: Cursor) -> tuple[int, Walk[Any], Cursor]:
        place = bisect_right(starts, cursor.part) - 1
        return place, walks[place], evolve(cursor, part=cursor.part - starts[place])

    def among(place: int, cursor: Cursor | None) -> Cursor | None:
        return None if cursor is None else evolve(cursor, part=cursor.part + starts[place])

    def call(cursor: Cursor) -> Call:
        _, walk, inner = of(cursor)
        return walk.call(inner)

    def rows(cursor: Cursor, reply: Reply) -> Sequence[Any]:
        _, walk, inner = of(cursor)
        return walk.rows(inner, reply)

    def after(cursor: Cursor, reply: Reply, count: int) -> Cursor | None:
        place, walk, inner = of(cursor)
        following = walk.after(inner, reply, count)
        if following is None and place + 1 < len(walks):
            return among(place + 1, walks[place + 1].first)
        return among(place, following)

    def ahead(cursor: Cursor, n: int) -> Cursor | None:
        place, walk, inner = of(cursor)
        return among(place, walk.ahead(inner, n))

    def last(cursor: Cursor, reply: Reply) -> Cursor | None:
        place, walk, inner = of(cursor)
        return among(place, walk.last(inner, reply))

    def items(cursor: Cursor, rows: Sequence[Any]) -> Flow[tuple[Any, ...]]:
        _, walk, inner = of(cursor)
        return (yield from walk.items(inner, rows))

    def opens(cursor: Cursor) -> int:
        _, walk, inner = of(cursor)
        return walk.opens(inner)

    return Walk(
        first=walks[0].first,
        call=call,
        rows=rows,
        after=after,
        ahead=ahead,
        last=last,
        items=items,
        firsts=tuple(
            evolve(first, part=first.part + start)
            for start, walk in zip(starts, walks, strict=False)
            for first in walk.firsts
        ),
        opens=opens,
        brings=tuple(each for walk in walks for each in walk.brings),
    )


def cost(walk: Walk[Any]) -> Flow[int | None]:
    """How many requests a walk will spend, told before it starts; None where the server does not tell its pages.

    It asks for the first page of each listing, and where rows are opened one by one, for all pages that list them.
    """
    total = 0
    for first in walk.firsts:
        each, cursor = walk.opens(first), first
        while True:
            reply: Reply = yield walk.call(cursor)
            rows = walk.rows(cursor, reply)
            total += 1 + each * len(rows)
            following = walk.after(cursor, reply, len(rows))
            if following is None or following.part != first.part:
                break
            if not each:
                last, step = walk.last(cursor, reply), walk.ahead(cursor, 1)
                if last is None or step is None:
                    return None
                total += (int(last.at) - int(cursor.at)) // (int(step.at) - int(cursor.at))
                break
            cursor = following
    return total


# ------------------------------------------------------------------------------------------------------- checking


def carried(dialect: Dialect, entity: T, verb: Verb = Verb.CREATE) -> tuple[T, frozenset[str]]:
    """What of an entity the dialect can carry, and the names of the fields it loses, whole or in part.

    The result has no id and no reading: it is a new row. Links still point where they pointed.
    """
    resource = dialect.resource(type(entity))
    through = resource.survivors(verb)
    left: Any = fields_emptied(entity, filled(entity) - through)
    if any(getattr(left, name, None) for name in ("id", "raw", "unread", "written")):
        left = _with_reading(left, id=None, raw=None, unread=frozenset[str](), written=None)
    left = resource.surviving(left)
    gone = {name for name in field_names(type(entity)) if getattr(left, name) != getattr(entity, name)}
    return left, frozenset(gone)


def _with_reading(entity: Any, **told: Any) -> Any:
    """The entity with what tells of its reading, as far as its class keeps any of that."""
    return evolve(entity, **{name: part for name, part in told.items() if hasattr(entity, name)})


def _carriable(
    dialect: Dialect, resource: Resource[Any], number: int, entity: Any, fields: Iterable[str], verb: Verb
) -> None:
    """Refuse what would be lost on the way: silently dropping it is not an answer."""
    through = resource.survivors(verb)
    stuck = sorted(set(fields) - through)
    if stuck:
        why = (
            "it takes it only on create"
            if verb is Verb.UPDATE and set(stuck) <= resource.survivors(Verb.CREATE)
            else ""
        )
        names = ", ".join(f"{resource.name}.{name}" for name in stuck)
        raise Unsupported(f"{dialect.title} cannot {verb} {names}" + (f": {why}" if why else ""))
    kept = resource.surviving(entity)
    narrowed = sorted(name for name in fields if not _same(getattr(kept, name), getattr(entity, name)))
    if narrowed:
        rules = {name: _limit(dialect, resource, name, getattr(kept, name), getattr(entity, name)) for name in narrowed}
        issues = [Issue(field=name, rule=rule, row=number) for name, rule in rules.items()]
        raise Invalid(f"{resource.name} says more than {dialect.title} can keep", issues)


def _limit(dialect: Dialect, resource: Resource[Any], name: str, kept: Any, given: Any) -> str:
    """The rule by which a field is cut, and what of it breaks the rule."""
    rule = resource.limits.get(name)
    if rule is None:
        return f"{dialect.title} keeps of it only {kept!r}"
    many: tuple[Any, ...] = given if isinstance(given, tuple) else ()  # pyright: ignore[reportUnknownVariableType]
    lost = [part for part in many if part not in kept] or [given]
    return f"{rule}, not {', '.join(f'{part!r:.160}' for part in lost)}"


def _same(kept: object, given: object) -> bool:
    """Whether nothing worth a complaint is lost: of a moment, the part of a second that no CRM keeps."""
    if isinstance(kept, datetime) and isinstance(given, datetime):
        return abs(kept - given) < timedelta(seconds=1)
    return kept == given


def encoded(resource: Resource[T], entity: T, fields: frozenset[str], context: Context) -> dict[str, Any]:
    """The wire row of these fields, once the account's own words allow them. Raises Invalid."""
    resource.check(entity, fields, context)
    return resource.encode(entity, fields, context)


def _is_one(resource: Resource[Any], entity: Any) -> None:
    if not isinstance(entity, resource.entity):
        raise Invalid(f"this takes a {resource.name}, not {type(entity).__name__}")


def _encoded(
    dialect: Dialect, resource: Resource[Any], number: int, entity: Any, fields: frozenset[str]
) -> Flow[dict[str, Any]]:
    """The wire row. What the codec refuses is told with the dialect, the entity and the row in it."""

    def encode(context: Context) -> dict[str, Any]:
        _placed(dialect, entity, fields, context)
        return encoded(resource, entity, fields, context)

    if number % _TURN == _TURN - 1:
        yield Need(turn=True)
    try:
        return (yield from settled(encode))
    except Invalid as wrong:
        raise _refusal(dialect, resource, number, wrong) from wrong


def _refusal(dialect: Dialect, resource: Resource[Any], number: int, wrong: Invalid) -> Invalid:
    said = f"{dialect.title} cannot take this {resource.name}"
    issues = [issue if issue.row is not None else evolve(issue, row=number) for issue in wrong.issues]
    return Invalid(said if issues else f"{said}: {wrong.message}", issues)


def _placed(dialect: Dialect, entity: Any, fields: Iterable[str], context: Context) -> None:
    """A stage is one of its pipeline's (Deal). What is not known of a pipeline its server may say."""
    stage, pipeline = getattr(entity, "stage", None), getattr(entity, "pipeline", None)
    if "stage" not in fields or stage is None or pipeline is None or "pipelines" not in dialect.settings:
        return
    for each in context.part_if_allowed("pipelines") or ():
        # Where stages have no ids, a stage is its name.
        if each.id == pipeline.id and not any(stage.id in (one.id, one.name) for one in each.stages):
            known = ", ".join(f"{one.id} ({one.name})" for one in each.stages)
            rule = f"{stage.id} is no stage of the pipeline {each.id} ({each.name}), which has {known}"
            raise Invalid(type(entity).__name__, [Issue(field="stage", rule=rule)])


def _row_to_create(dialect: Dialect, resource: Resource[Any], number: int, entity: Any) -> Flow[Row]:
    _is_one(resource, entity)
    if entity.id is not None:
        raise Invalid(f"{resource.name} {entity.id} has an id already: update it, or create it with id=None")
    fields = filled(entity)
    missing = [name for name in resource.required if name not in fields]
    if missing:
        rules = {name: f": {rule}" if (rule := resource.limits.get(name)) else "" for name in missing}
        issues = [Issue(field=name, rule=f"{dialect.title} requires it{rules[name]}", row=number) for name in missing]
        raise Invalid(f"{resource.name} lacks {', '.join(missing)}", issues)
    _carriable(dialect, resource, number, entity, fields, Verb.CREATE)
    wire = yield from _encoded(dialect, resource, number, entity, fields)
    return Row(number=number, wire=wire, entity=entity, target=getattr(entity, "target", None), whole=True)


# ------------------------------------------------------------------------------------------------------- creating


def create(dialect: Dialect, entity: T) -> Flow[T]:
    """Make one row and give it back with its id.

    What the server makes of the values (trimming, defaults) is seen only on reading again.
    """
    receipts = yield from create_many(dialect, type(entity), [entity])
    return _one(receipts[0])


def _one(receipt: Receipt[T]) -> T:
    made = receipt.made()
    if isinstance(receipt, Made) and receipt.issues:
        raise PartlyDone("the row was written, but not everything asked for beside it", receipt.issues, entity=made)
    return made


def create_many(
    dialect: Dialect,
    entity: type[T],
    given: Iterable[T],
    batch: int | None = None,
    *,
    finish: bool = True,
    quiet: bool = False,
) -> Flow[list[Receipt[T]]]:
    """Make rows, as many a request as the vendor advises (or ``batch``), and give one receipt a row, in order.

    Rows that break a rule known here are Refused without being sent; the others go on. A vendor that refuses a whole
    batch for one row gets the rest once more. Without ``finish``, what follows a row once it is made (a link) is left to
    ``finish_many``. ``quiet``: no automation of the vendor's is to start by them, as far as that can be asked for.
    """
    resource, route = dialect.resource(entity), _route(dialect, entity, Verb.CREATE, Writing)
    size = _batch_size(dialect, resource, route, batch)
    receipts: dict[int, Receipt[T]] = {}
    rows: list[Row] = []
    for number, each in enumerate(given):
        try:
            row = yield from _row_to_create(dialect, resource, number, each)
            rows.append(evolve(row, wire=route.quiet(row.wire)) if quiet and route.quiet is not None else row)
        except UsageError as wrong:
            receipts[number] = Refused(error=wrong)
    sending = route if finish else evolve(route, then=None)
    receipts.update((yield from _write(dialect, resource, sending, rows, size)))
    for row in rows:
        receipt = receipts[row.number]
        if isinstance(receipt, Made) and receipt.id is None and route.find is not None:
            receipts[row.number] = yield from _looked_up(dialect, resource, route.find, row, receipt)
    return [receipts[number] for number in sorted(receipts)]


def finish_many(dialect: Dialect, entity: type[T], given: Sequence[tuple[Id, T]]) -> Flow[list[CRMError | None]]:
    """What follows rows that ``create_many`` has made under these ids without finishing them; for each, in order, why not
    all of it was done. Nothing is sent where nothing follows.
    """
    resource, route = dialect.resource(entity), _route(dialect, entity, Verb.CREATE, Writing)
    rows, errors = list[Row](), dict[int, CRMError]()
    for number, (id, each) in enumerate(given):
        try:
            rows.append(evolve((yield from _row_to_create(dialect, resource, number, each)), id=id))
        except UsageError as wrong:  # an option that has been removed since, say
            errors[number] = wrong
    if route.then is not None and rows:
        _, failed = yield from _followed(route.then(rows))
        errors |= {number: error for (number, _), error in failed.items()}
    return [errors.get(number) for number in range(len(given))]


def finishes(dialect: Dialect, entity: type[Any]) -> bool:
    """Whether anything may follow a row of this kind once it is made."""
    return _route(dialect, entity, Verb.CREATE, Writing).then is not None


def batch_of(dialect: Dialect, entity: type[Any], verb: Verb = Verb.CREATE) -> int:
    """How many rows a request of a verb had best hold: 1 where there is no such route."""
    route = dialect.route(entity, verb) if dialect.can(entity, verb) else None
    return (route.advised_batch or route.batch) if isinstance(route, Writing) else 1


def filtered_by(dialect: Dialect, entity: type[Any], name: str) -> bool:
    """Whether the server itself narrows the listing by this filter."""
    return name in _route(dialect, entity, Verb.LIST, Listing).filters


def only_on_cards(dialect: Dialect, entity: type[Any]) -> bool:
    """Whether rows of this kind show only on the cards of what they hang on."""
    return _opened(_route(dialect, entity, Verb.LIST, Listing))


def _looked_up(
    dialect: Dialect,
    resource: Resource[Any],
    find: Callable[[Any], Filter | None],
    row: Row,
    receipt: Made[Any],
) -> Flow[Receipt[Any]]:
    """A row that was made and whose id was not told: it is looked for at once, and only one that alone says what was
    sent is it. Nothing is ever sent again.
    """
    asked = find(row.entity)
    if asked is None:
        why = "it holds nothing to be looked for by"
    else:
        try:
            alike = yield from _saying_the_same(dialect, resource, row.entity, asked)
        except CRMError as failed:
            why = f"looking for it failed: {failed.message}"
        else:
            if alike is not None and len(alike) == 1:
                return _completed(row, evolve(receipt, id=alike[0]))
            why = "too many rows are like it" if alike is None else f"{len(alike) or 'no'} rows say what was sent"
    issue = Issue(row=row.number, field="id", rule=f"the answer told none, and {why}")
    return evolve(receipt, issues=(*receipt.issues, issue))


# How many pages are looked through for one row, and how many rows are opened that a list tells in part only.
_LOOKED_THROUGH = 10


def _saying_the_same(
    dialect: Dialect, resource: Resource[Any], sent: Any, asked: Filter
) -> Flow[tuple[Id, ...] | None]:
    """The ids of the rows that say all that was sent; None where there are too many to look through."""
    fields, found = filled(sent), list[Id]()

    def alike(row: Any) -> bool:
        return all(_says(getattr(sent, name), getattr(row, name)) for name in fields - row.unread)

    walk = listing(dialect, resource.entity, asked)
    cursor: Cursor | None = walk.first
    for _ in range(_LOOKED_THROUGH):
        reply: Reply = yield walk.call(cursor)
        rows = walk.rows(cursor, reply)
        likely = [row for row in (yield from walk.items(cursor, rows)) if alike(row)]
        if len(likely) > _LOOKED_THROUGH:
            return None
        for row in likely:
            if fields & row.unread and dialect.can(resource.entity, Verb.GET):
                row = yield from get(dialect, resource.entity, row.id)
            if alike(row):
                found.append(row.id)
        cursor = walk.after(cursor, reply, len(rows))
        if cursor is None:
            return tuple(found)
    return None


def _says(sent: Any, found: Any) -> bool:
    """Whether a field that was read says what was sent: links lead to the same row or name, lists hold the same."""
    if isinstance(sent, Link) and isinstance(found, Link):
        return sent.ref.id == found.ref.id if sent.ref.id is not None else sent.name == found.name
    if isinstance(sent, FieldValue) and isinstance(found, FieldValue):
        return (sent.field or sent.code, sent.values) == (found.field or found.code, found.values)
    if isinstance(sent, tuple):
        mine, theirs = cast("list[tuple[Any, ...]]", [sent, found])
        return len(mine) == len(theirs) and all(any(_says(part, each) for each in theirs) for part in mine)
    return _same(sent, found)


def _batch_size(dialect: Dialect, resource: Resource[Any], route: Writing, asked: int | None) -> int:
    if asked is None:
        return route.advised_batch or route.batch
    if not 1 <= asked <= route.batch:
        rule = f"{dialect.title} takes 1 to {route.batch} {resource.vendor} a request, not {asked}"
        raise Invalid(f"{resource.name} rows cannot be sent so", [Issue(field="batch", rule=rule)])
    return asked


def _chunks(route: Writing, rows: Sequence[Row], size: int) -> list[list[Row]]:
    groups: dict[Hashable, list[Row]] = {}
    for row in rows:
        groups.setdefault(route.group_by(row) if route.group_by else None, []).append(row)
    return [group[at : at + size] for group in groups.values() for at in range(0, len(group), size)]


def _write(
    dialect: Dialect, resource: Resource[Any], route: Writing, rows: Sequence[Row], size: int
) -> Flow[dict[int, Receipt[Any]]]:
    """Send rows and say what became of each, by its number."""
    receipts = _homeless(dialect, resource, route, rows)
    rows = [row for row in rows if row.number not in receipts]
    quiet = frozenset(row.number for row in rows if not route.says(row))
    receipts.update((row.number, _completed(row, Made(id=row.id))) for row in rows if row.number in quiet)
    speaking = [row for row in rows if row.number not in quiet]
    chunks = _chunks(route, speaking, size)
    again: list[Row] = []
    for wave in _waves(chunks):
        answers: tuple[Reply | CRMError, ...] = yield tuple(route.call(chunk) for chunk in wave)
        for chunk, answer in zip(wave, answers, strict=True):
            told, rest = _judged(resource, route, chunk, answer)
            receipts.update(told)
            again += rest
    for wave in _waves(_chunks(route, again, size)):
        answers = yield tuple(route.call(chunk) for chunk in wave)
        for chunk, answer in zip(wave, answers, strict=True):
            told, rest = _judged(resource, route, chunk, answer)
            receipts.update(told)
            for row in rest:
                assert isinstance(answer, CRMError)  # noqa: S101  a rest is left only by a refusal
                receipts[row.number] = NotApplied(error=answer)
    if route.mending is not None:
        yield from _mend(resource, route, route.mending, chunks, receipts)
    if route.then is not None:
        yield from _finish(resource, route.then, rows, receipts, quiet)
    yield from _forgotten(resource)
    return receipts


def _homeless(
    dialect: Dialect, resource: Resource[Any], route: Writing, rows: Sequence[Row]
) -> dict[int, Receipt[Any]]:
    """The receipts of rows for which there is no path, looked for before any row is sent."""
    receipts: dict[int, Receipt[Any]] = {}
    for row in rows:
        try:
            route.path(row)
        except Invalid as wrong:
            receipts[row.number] = Refused(error=_refusal(dialect, resource, row.number, wrong))
        except UsageError as wrong:
            receipts[row.number] = Refused(error=wrong)
    return receipts


def _forgotten(resource: Resource[Any]) -> Flow[None]:
    """What the account's words are is read again once one of them may have changed."""
    if not issubclass(resource.entity, Entity):
        yield Need(fresh=0.0)


def _mend(
    resource: Resource[Any],
    route: Writing,
    mending: Mending,
    chunks: Sequence[Sequence[Row]],
    receipts: dict[int, Receipt[Any]],
) -> Flow[None]:
    """A refused row was certainly not applied, so it may go once more. What cannot be read stays refused."""

    def wanted(row: Row) -> bool:
        receipt = receipts[row.number]
        return isinstance(receipt, Refused) and mending.wanted(row, receipt.error)

    for chunk in chunks:
        wanting = [row for row in chunk if wanted(row)]
        if not wanting:
            continue
        (stored,) = yield (mending.read(wanting),)
        try:
            mended = list(mending.mended(wanting, stored)) if isinstance(stored, Reply) else []
        except Unreadable:
            continue
        if mended:
            (answer,) = yield (route.call(mended),)
            receipts.update(_judged(resource, route, mended, answer)[0])


def _waves(chunks: list[list[Row]]) -> Iterator[list[list[Row]]]:
    return (chunks[at : at + _WAVE] for at in range(0, len(chunks), _WAVE))


def _judged(
    resource: Resource[Any], route: Writing, chunk: list[Row], answer: Reply | CRMError
) -> tuple[dict[int, Receipt[Any]], list[Row]]:
    """The receipts of one request's rows, and the innocent rows of a batch that was refused for others."""
    if isinstance(answer, Reply):
        try:
            found = route.unwrap(answer, chunk)
        except Unreadable as bad:
            return {row.number: Unknown(error=lost(bad, "the write")) for row in chunk}, []
        return {row.number: _completed(row, receipt) for row, receipt in zip(chunk, found, strict=True)}, []
    if isinstance(answer, AmbiguousWrite):
        return {row.number: Unknown(error=answer) for row in chunk}, []
    if isinstance(answer, ConnectionLost | Unavailable | Unreadable):
        return {row.number: Unknown(error=lost(answer, "the write")) for row in chunk}, []
    if isinstance(answer, Rejected):
        refused = _refusals(resource, chunk, answer)
        if refused:
            innocent = [row for row in chunk if row.number not in refused]
            if route.atomic:
                return refused, innocent
            return refused | {row.number: NotApplied(error=answer) for row in innocent}, []
        if len(chunk) == 1:
            number, said = chunk[0].number, answer.detail or answer.message
            answer.issues = answer.issues or (Issue(row=number, rule=said, code=answer.code, detail=answer.detail),)
            return {number: Refused(error=answer)}, []
    if isinstance(answer, NotFound) and len(chunk) == 1:
        return {chunk[0].number: Refused(error=answer)}, []
    return {row.number: NotApplied(error=answer) for row in chunk}, []


def _completed(row: Row, receipt: Receipt[Any]) -> Receipt[Any]:
    """A receipt as the caller wants it: with the entity as it now stands."""
    if not isinstance(receipt, Made):
        return receipt
    id = row.id if receipt.id is None else receipt.id
    sent = {**row.wire, "id": id} if row.whole else getattr(row.entity, "raw", None)
    entity = _with_reading(row.entity, id=id, raw=sent, written=None, **receipt.known)
    return evolve(receipt, id=id, entity=_as_written(entity))


def _as_written(entity: Any) -> Any:
    return _with_reading(entity, written=_with_reading(entity, written=None))


def _refusals(resource: Resource[Any], chunk: list[Row], refusal: Rejected) -> dict[int, Receipt[Any]]:
    rows = {row.number: row for row in chunk}
    complaints: dict[int, list[Issue]] = {}
    for issue in refusal.issues:
        if issue.row in rows:
            known = resource.names(issue.path, rows[issue.row].wire) if issue.path else None
            complaints.setdefault(issue.row, []).append(evolve(issue, field=known or issue.field or issue.path))
    vendor: dict[str, Any] = {
        "status": refusal.status,
        "request_id": refusal.request_id,
        "code": refusal.code,
        "detail": refusal.detail,
    }
    return {
        number: Refused(
            error=NotFound(f"there is no {resource.name.lower()} {rows[number].id}", **vendor)
            # Of a row that is there nobody complains that its very id is wrong.
            if rows[number].id is not None and {issue.field for issue in issues} == {"id"}
            else Rejected(f"{resource.name} was refused", issues, **vendor)
        )
        for number, issues in complaints.items()
    }


def _finish(
    resource: Resource[Any],
    then: Callable[[Sequence[Row]], Sequence[FollowUp]],
    rows: Sequence[Row],
    receipts: dict[int, Receipt[Any]],
    quiet: Set[int] = frozenset(),
) -> Flow[None]:
    """What follows a row goes in its order, what follows other rows beside it; a field that failed is not gone on with.

    Of ``quiet`` rows nothing else was sent: those for which nothing could be done at all are not made.
    """
    made = {row.number: row for row in rows if isinstance(receipts[row.number], Made)}
    if not made:
        return
    done, failed = yield from _followed(then([evolve(row, id=_made_id(receipts[row.number])) for row in made.values()]))
    for (number, name), error in failed.items():
        receipt = receipts[number]
        if number in quiet and number not in done:
            receipts[number] = _not_done(resource, number, name, error)
        elif isinstance(receipt, Made):
            receipts[number] = _short_of(made[number], receipt, name, error)


def _followed(steps: Sequence[FollowUp]) -> Flow[tuple[set[int], dict[tuple[int, str], CRMError]]]:
    """The rows of which something was done, and by row and field why something was not."""
    done, failed = set[int](), dict[tuple[int, str], CRMError]()
    for wave in _in_order(steps):
        due: list[FollowUp] = []
        for step in wave:
            before = next((failed[number, step.field] for number in step.rows if (number, step.field) in failed), None)
            if before is None:
                due.append(step)
                continue
            for number in step.rows:
                failed.setdefault((number, step.field), before)
        answers: tuple[Reply | CRMError, ...] = (yield tuple(step.call for step in due)) if due else ()
        for step, answer in zip(due, answers, strict=True):
            error = step.refused(answer) if isinstance(answer, Reply) else answer
            if error is None:
                done.update(step.rows)
            else:
                failed.update(((number, step.field), error) for number in step.rows)
    return done, failed


def _made_id(receipt: Receipt[Any]) -> Id | None:
    return receipt.id if isinstance(receipt, Made) else None


def _in_order(steps: Sequence[FollowUp]) -> Iterator[list[FollowUp]]:
    """Waves of steps that have no row in common, each step after those before it that have."""
    places, at = list[list[FollowUp]](), dict[int, int]()
    for step in steps:
        place = max((at[number] + 1 for number in step.rows if number in at), default=0)
        at.update(dict.fromkeys(step.rows, place))
        if place == len(places):
            places.append([])
        places[place].append(step)
    return (together[start : start + _WAVE] for together in places for start in range(0, len(together), _WAVE))


def _undone(number: int, name: str, error: CRMError) -> Issue:
    rule = error.message if isinstance(error, AmbiguousWrite) else f"not done: {error.message}"
    return Issue(field=name, rule=rule, code=error.code, detail=error.detail, row=number)


def _short_of(row: Row, receipt: Made[Any], name: str, error: CRMError) -> Made[Any]:
    """The receipt of a row whose field could not be written: in its entity that is as it was, so it can be tried again."""
    entity: Any = receipt.entity
    if entity is not None and name in field_names(entity.__class__):
        before = fields_emptied(entity, {name}) if row.before is None else row.before
        entity = evolve(entity, **{name: getattr(before, name)})
        if row.before is None and row.id is not None:
            entity = _with_reading(entity, unread=getattr(entity, "unread", frozenset[str]()) | {name})
        entity = _as_written(entity)
    return evolve(receipt, entity=entity, issues=(*receipt.issues, _undone(row.number, name, error)))


def _not_done(resource: Resource[Any], number: int, name: str, error: CRMError) -> Receipt[Any]:
    if isinstance(error, ConnectionLost | Unavailable | Unreadable):
        return Unknown(error=lost(error, "the write"))
    if isinstance(error, AmbiguousWrite):
        return Unknown(error=error)
    if isinstance(error, UsageError | NotFound):
        return Refused(error=error)
    if not isinstance(error, Rejected):
        return NotApplied(error=error)
    refusal = Rejected(f"{resource.name} was refused", [_undone(number, name, error)])
    refusal.status, refusal.request_id = error.status, error.request_id
    refusal.code, refusal.detail = error.code, error.detail
    return Refused(error=refusal)


# ------------------------------------------------------------------------------------------------------- updating


def update(dialect: Dialect, entity: T, clear: Iterable[str] = (), overwrite: bool = False) -> Flow[T]:
    """Send what changed since the entity was read; an entity built by hand sends what it holds.

    ``clear`` names fields to empty on purpose. Nothing changed: nothing is sent. ``overwrite`` goes on where the
    dialect must send everything and the reading lacks a part.
    """
    receipts = yield from update_many(dialect, type(entity), [entity], clear=clear, overwrite=overwrite)
    return _one(receipts[0])


def update_many(
    dialect: Dialect,
    entity: type[T],
    given: Iterable[T],
    *,
    clear: Iterable[str] = (),
    overwrite: bool = False,
    batch: int | None = None,
) -> Flow[list[Receipt[T]]]:
    """Update rows; one receipt a row, in order."""
    resource, route = dialect.resource(entity), dialect.route(entity, Verb.UPDATE)
    writing = route.write if isinstance(route, Merging) else _route(dialect, entity, Verb.UPDATE, Writing)
    size, emptied = _batch_size(dialect, resource, writing, batch), frozenset(clear)
    receipts: dict[int, Receipt[T]] = {}
    rows: list[Row] = []
    for number, each in enumerate(given):
        try:
            row = yield from _row_to_update(dialect, resource, number, each, emptied)
        except UsageError as wrong:
            receipts[number] = Refused(error=wrong)
            continue
        if row is None:
            receipts[number] = Made(id=getattr(each, "id", None), entity=each)
        else:
            rows.append(row)
    if isinstance(route, Merging):
        for row in rows:
            try:
                whole = yield from _merged(dialect, resource, route, row, overwrite)
            except CRMError as wrong:
                receipts[row.number] = (Refused if isinstance(wrong, UsageError | NotFound) else NotApplied)(
                    error=wrong
                )
            else:
                receipts.update((yield from _write(dialect, resource, writing, [whole], size)))
    else:
        receipts.update((yield from _write(dialect, resource, writing, rows, size)))
    return [receipts[number] for number in sorted(receipts)]


def _row_to_update(
    dialect: Dialect, resource: Resource[Any], number: int, entity: Any, clear: frozenset[str]
) -> Flow[Row | None]:
    _is_one(resource, entity)
    if entity.id is None:
        raise Invalid(f"{resource.name} has no id: read it first, or build it with the id of the row to change")
    row_id, target = resource.row_id(entity.id), getattr(entity, "target", None)
    unknown = clear - set(field_names(resource.entity))
    if unknown:
        raise Invalid(f"{resource.name} has no field {', '.join(sorted(unknown))} to clear")
    entity = fields_emptied(entity, clear)
    raw, before = getattr(entity, "raw", None), getattr(entity, "written", None)
    hand_built = raw is None and before is None
    if hand_built:
        changed = filled(entity)
    else:
        if before is None:
            before = yield from settled(lambda context: resource.decode(raw, context), target)
        changed = frozenset(
            name for name in field_names(resource.entity) if getattr(before, name) != getattr(entity, name)
        )
    if hand_built:  # these say where the row lives, not what shall change
        changed -= {"target", "entity"} - resource.survivors(Verb.UPDATE)
    changed |= clear
    if not changed:
        return None
    _carriable(dialect, resource, number, entity, changed, Verb.UPDATE)
    wire = yield from _encoded(dialect, resource, number, entity, changed)
    return Row(number=number, wire=wire, entity=entity, id=row_id, target=target, before=before)


def _merged(dialect: Dialect, resource: Resource[Any], route: Merging, row: Row, overwrite: bool) -> Flow[Row]:
    """The conversation of dialects whose edit sends everything: read, lay the change over, write."""
    reading = getattr(row.entity, "raw", None)
    if route.read is not None:
        assert row.id is not None  # noqa: S101  _row_to_update has checked
        reply: Reply = yield route.read.call(row.id, row.target)
        reading = route.read.row(reply)
        if reading is None:
            raise NotFound(f"{dialect.title} has no {resource.name.lower()} {row.id}", status=reply.status)
    lacking: Sequence[str] = ("everything",) if reading is None else tuple(route.lacks(reading, row.wire))
    if lacking and not overwrite:
        raise IncompleteRead(
            f"{dialect.title} replaces the whole {resource.name.lower()}, and what was read of {row.id} lacks "
            f"{', '.join(lacking)}: what is left out may be erased. Read it whole first, or pass overwrite=True",
            lacking,
        )
    whole = {} if reading is None else route.whole(reading)
    return evolve(row, wire=overlaid(whole, row.wire), whole=True)


def overlaid(whole: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """``change`` over ``whole``: maps are merged, everything else is replaced."""
    merged = dict(whole)
    for name, part in change.items():
        under = merged.get(name)
        merged[name] = overlaid(under, part) if isinstance(under, Mapping) and isinstance(part, Mapping) else part  # pyright: ignore[reportUnknownArgumentType]
    return merged


# -------------------------------------------------------------------------------------------- deleting, completing


def delete(dialect: Dialect, entity: type[Any], id: object, target: Ref | None = None) -> Flow[None]:
    """Delete one row by its id. Raises NotFound."""
    resource, route = dialect.resource(entity), _route(dialect, entity, Verb.DELETE, Writing)
    row = Row(number=0, wire={}, entity=None, id=resource.row_id(id), target=target)
    yield from _alone(resource, route, row)


def complete(dialect: Dialect, entity: type[T], id: object, result: str | None = None) -> Flow[None]:
    """Mark a task done, with a result where the dialect keeps one (Unsupported otherwise)."""
    resource, route = dialect.resource(entity), _route(dialect, entity, Verb.COMPLETE, Writing)
    fields = frozenset({"done", "result"} if result else {"done"})
    row_id = resource.row_id(id)
    made: Any = resource.entity
    done = made(id=row_id, done=True, result=result)
    _carriable(dialect, resource, 0, done, fields, Verb.COMPLETE)
    wire = yield from _encoded(dialect, resource, 0, done, fields)
    receipt = yield from _alone(resource, route, Row(number=0, wire=wire, entity=done, id=row_id))
    if receipt.issues:
        raise PartlyDone("the task is done, but its result was not kept", receipt.issues, entity=done)


def _alone(resource: Resource[Any], route: Writing, row: Row) -> Flow[Made[Any]]:
    try:
        reply: Reply = yield route.call([row])
    except CRMError:
        yield from _forgotten(resource)
        raise
    yield from _forgotten(resource)
    try:
        (receipt,) = route.unwrap(reply, [row])
    except Unreadable as bad:
        raise lost(bad, "the write") from bad
    receipts: dict[int, Receipt[Any]] = {row.number: receipt}
    if route.mending is not None:
        yield from _mend(resource, route, route.mending, [[row]], receipts)
    if route.then is not None:
        yield from _finish(resource, route.then, [row], receipts)
    receipt = receipts[row.number]
    if not isinstance(receipt, Made):
        raise receipt.error
    return receipt


# ------------------------------------------------------------------------------------------------- whole listings


def everything(dialect: Dialect, entity: type[T]) -> Flow[tuple[T, ...]]:
    """All rows of a small listing, page after page, as one flow: for settings parts."""
    walk, trail = listing(dialect, entity), Trail()
    cursor: Cursor | None = walk.first
    found: list[T] = []
    while cursor is not None:
        at, reply = cursor, (yield walk.call(cursor))
        rows = walk.rows(at, reply)
        found += yield from walk.items(at, rows)
        cursor = walk.after(at, reply, len(rows))
        trail.step(at, rows, cursor)
    return tuple(found)
