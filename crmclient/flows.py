"""What a user asks, as generators of calls: list, get, create, update, delete, complete. Nothing here does I/O.

A flow reads the dialect's routes and codecs and never names a vendor. Whatever breaks a rule that is known here is told
before anything is sent; whatever is refused later is told row by row, and loses nothing already done.
"""

import logging
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar

from attrs import evolve, frozen

from crmclient.dialect import (
    Call,
    Context,
    Cursor,
    Dialect,
    Filter,
    Flow,
    Getting,
    Listing,
    Made,
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
)
from crmclient.entities import Kind, Ref, field_names, fields_emptied, filled
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
from crmclient.paging import Unpaged

T = TypeVar("T")
R = TypeVar("R", bound=Listing | Getting | Writing | Merging)

_log = logging.getLogger("crmclient.flows")

# Calls of one wave go side by side; the next wave waits for them. Enough to fill 7 a second at a second's latency.
_WAVE = 8


def settled(pure: Callable[[Context], T], parent: Ref | None = None) -> Flow[T]:
    """Run a pure function; each settings part it turns out to need is read, then it runs again."""
    context: Context = yield Need()
    while True:
        try:
            return pure(evolve(context, parent=parent) if parent is not None else context)
        except MissingPart as missing:
            context = yield Need(missing.part)


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
    """One listing of a walk. ``opens``: its rows are parents of this kind, and each is opened for the rows asked for."""

    call: Call
    paging: Paging
    rows: Callable[[Reply], Sequence[Any]]
    parent: Ref | None = None
    opens: Kind | None = None


def listing(
    dialect: Dialect,
    entity: type[T],
    asked: Filter | None = None,
    on_bad: Callable[[Unreadable], None] | None = None,
) -> Walk[T]:
    """A walk over the rows of a kind.

    ``on_bad`` is called with each row that cannot be read, and the walk goes on; without it the first one is raised.
    Raises Unsupported for a filter that neither the server nor we can apply.
    """
    resource, route = dialect.resource(entity), _route(dialect, entity, Verb.LIST, Listing)
    asked = asked or Filter()
    names = _checked(dialect, resource, asked)
    parts = tuple(_parts(dialect, route, asked))

    def call(cursor: Cursor) -> Call:
        part = parts[cursor.part]
        made = part.paging.at(part.call, cursor.at)
        for name in names:
            if name in route.filters and part.opens is None:
                made = route.filters[name](made, asked)
        return made

    def rows(cursor: Cursor, reply: Reply) -> Sequence[Any]:
        return parts[cursor.part].rows(reply)

    def after(cursor: Cursor, reply: Reply, count: int) -> Cursor | None:
        position = parts[cursor.part].paging.after(cursor.at, reply, count)
        if position is not None:
            return Cursor(position, cursor.part)
        following = cursor.part + 1
        return Cursor(parts[following].paging.first, following) if following < len(parts) else None

    def ahead(cursor: Cursor, n: int) -> Cursor | None:
        position = parts[cursor.part].paging.ahead(cursor.at, n)
        return None if position is None else Cursor(position, cursor.part)

    def last(cursor: Cursor, reply: Reply) -> Cursor | None:
        position = parts[cursor.part].paging.last(reply)
        return None if position is None else Cursor(position, cursor.part)

    told: set[str] = set()

    def kept(row: Any) -> bool:
        for name, given in names.items():
            if _LOOKS_AT.get(name) in getattr(row, "unread", ()):
                raise Unsupported(f"{resource.vendor} cannot be filtered by {name}: this reading does not tell it")
            if name not in route.trusted and not matches(row, name, given):
                if name in route.filters and name not in told:
                    told.add(name)
                    _log.warning(
                        "%s ignored the filter %s of %s: its answer is filtered here",
                        dialect.title,
                        name,
                        resource.vendor,
                    )
                return False
        return True

    def decoded(rows: Iterable[Any], parent: Ref | None) -> Flow[list[T]]:
        found: list[T] = []
        context = evolve((yield Need()), parent=parent)
        waiting = list(reversed(list(rows)))
        while waiting:
            try:
                made = resource.decode(waiting[-1], context)
            except MissingPart as missing:
                context = evolve((yield Need(missing.part)), parent=parent)
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

    def items(cursor: Cursor, rows: Sequence[Any]) -> Flow[tuple[T, ...]]:
        part = parts[cursor.part]
        if part.opens is None:
            return tuple((yield from decoded(rows, part.parent)))
        assert route.nested is not None  # noqa: S101  only nested rows are opened for
        parents: list[Ref] = []
        above = dialect.entity_of(part.opens)
        assert above is not None  # noqa: S101  _parts has listed it
        for row in rows:
            made = yield from settled(lambda context, row=row: dialect.resource(above).decode(row, context))
            parents.append(made.ref)
        replies: tuple[Reply | CRMError, ...] = yield tuple(route.nested.of(ref) for ref in parents)
        found: list[T] = []
        for ref, reply in zip(parents, replies, strict=True):
            if isinstance(reply, NotFound):
                continue  # deleted since the list was read, and its rows with it
            if isinstance(reply, CRMError):
                raise reply
            found += yield from decoded(route.rows(reply), ref)
        return tuple(found)

    first = Cursor(parts[0].paging.first)
    return Walk(first=first, call=call, rows=rows, after=after, ahead=ahead, last=last, items=items)


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


def _parts(dialect: Dialect, route: Listing, asked: Filter) -> Iterator[_Part]:
    nested, paging = route.nested, route.paging or dialect.paging
    if nested is None:
        if route.call is None:
            raise TypeError("a listing needs a call or what it is nested in")
        yield _Part(call=route.call, paging=paging, rows=route.rows)
    elif asked.target is not None:
        _under(dialect, nested, asked.target)
        # A parent that is opened shows all its rows at once; only where they have a listing of their own are there pages.
        one_page = Unpaged() if nested.every is None else paging
        yield _Part(call=nested.of(asked.target), paging=one_page, rows=route.rows, parent=asked.target)
    else:
        for kind in nested.parents:
            if nested.every is not None:
                yield _Part(call=nested.every(kind), paging=paging, rows=route.rows, parent=Ref(kind, None))
            else:
                above = dialect.entity_of(kind)
                if above is None:
                    continue
                inner = _route(dialect, above, Verb.LIST, Listing)
                assert inner.call is not None  # noqa: S101  parents are not nested themselves
                yield _Part(call=inner.call, paging=inner.paging or dialect.paging, rows=inner.rows, opens=kind)


def _under(dialect: Dialect, nested: Nested, target: Ref) -> None:
    if target.kind not in nested.parents:
        known = ", ".join(nested.parents)
        raise Unsupported(f"{dialect.title} keeps these rows under {known}, not under a {target.kind}")


# ------------------------------------------------------------------------------------------------------- checking


def carried(dialect: Dialect, entity: T, verb: Verb = Verb.CREATE) -> tuple[T, frozenset[str]]:
    """What of an entity the dialect can carry, and the names of the fields it loses, whole or in part.

    The result has no id and no reading: it is a new row. Links still point where they pointed.
    """
    resource = dialect.resource(type(entity))
    through = resource.survivors(verb)
    left: Any = fields_emptied(entity, filled(entity) - through)
    left = resource.surviving(evolve(left, id=None, raw=None, unread=frozenset(), written=None))
    gone = {name for name in field_names(type(entity)) if getattr(left, name) != getattr(entity, name)}
    return left, frozenset(gone)


def _carriable(dialect: Dialect, resource: Resource[Any], entity: Any, fields: Iterable[str], verb: Verb) -> None:
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
    narrowed = [name for name in fields if not _same(getattr(kept, name), getattr(entity, name))]
    if narrowed:
        issues = [
            Issue(field=name, rule=f"{dialect.title} keeps of it only {getattr(kept, name)!r}") for name in narrowed
        ]
        raise Invalid(f"{resource.name} says more than {dialect.title} can keep", issues)


def _same(kept: object, given: object) -> bool:
    """Whether nothing worth a complaint is lost: of a moment, the part of a second that no CRM keeps."""
    if isinstance(kept, datetime) and isinstance(given, datetime):
        return abs(kept - given) < timedelta(seconds=1)
    return kept == given


def _is_one(resource: Resource[Any], entity: Any) -> None:
    if not isinstance(entity, resource.entity):
        raise Invalid(f"this takes a {resource.name}, not {type(entity).__name__}")


def _row_to_create(dialect: Dialect, resource: Resource[Any], number: int, entity: Any) -> Flow[Row]:
    _is_one(resource, entity)
    if entity.id is not None:
        raise Invalid(f"{resource.name} {entity.id} has an id already: update it, or create it with id=None")
    fields = filled(entity)
    missing = [name for name in resource.required if name not in fields]
    if missing:
        issues = [Issue(field=name, rule=f"{dialect.title} requires it", row=number) for name in missing]
        raise Invalid(f"{resource.name} lacks {', '.join(missing)}", issues)
    _carriable(dialect, resource, entity, fields, Verb.CREATE)
    wire = yield from settled(lambda context: resource.encode(entity, fields, context))
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
    dialect: Dialect, entity: type[T], given: Iterable[T], batch: int | None = None
) -> Flow[list[Receipt[T]]]:
    """Make rows, as many a request as the vendor advises (or ``batch``), and give one receipt a row, in order.

    Rows that break a rule known here are Refused without being sent; the others go on. A vendor that refuses a whole
    batch for one row gets the rest once more.
    """
    resource, route = dialect.resource(entity), _route(dialect, entity, Verb.CREATE, Writing)
    size = _batch_size(dialect, resource, route, batch)
    receipts: dict[int, Receipt[T]] = {}
    rows: list[Row] = []
    for number, each in enumerate(given):
        try:
            rows.append((yield from _row_to_create(dialect, resource, number, each)))
        except UsageError as wrong:
            receipts[number] = Refused(error=wrong)
    receipts.update((yield from _write(resource, route, rows, size)))
    return [receipts[number] for number in sorted(receipts)]


def _batch_size(dialect: Dialect, resource: Resource[Any], route: Writing, asked: int | None) -> int:
    if asked is None:
        return route.advised_batch or route.batch
    if not 1 <= asked <= route.batch:
        raise Invalid(f"{dialect.title} takes 1 to {route.batch} {resource.vendor} a request, not {asked}")
    return asked


def _chunks(route: Writing, rows: Sequence[Row], size: int) -> list[list[Row]]:
    groups: dict[Hashable, list[Row]] = {}
    for row in rows:
        groups.setdefault(route.group_by(row) if route.group_by else None, []).append(row)
    return [group[at : at + size] for group in groups.values() for at in range(0, len(group), size)]


def _write(resource: Resource[Any], route: Writing, rows: Sequence[Row], size: int) -> Flow[dict[int, Receipt[Any]]]:
    """Send rows and say what became of each, by its number."""
    receipts: dict[int, Receipt[Any]] = {}
    chunks = _chunks(route, rows, size)
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
    if route.then is not None:
        yield from _finish(route.then, rows, receipts)
    return receipts


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
    return {row.number: NotApplied(error=answer) for row in chunk}, []


def _completed(row: Row, receipt: Receipt[Any]) -> Receipt[Any]:
    """A receipt as the caller wants it: with the entity as it now stands."""
    if not isinstance(receipt, Made):
        return receipt
    id = row.id if receipt.id is None else receipt.id
    sent = {**row.wire, "id": id} if row.whole else row.entity.raw
    entity = evolve(row.entity, id=id, raw=sent, written=None, **receipt.known)
    return evolve(receipt, id=id, entity=evolve(entity, written=entity))


def _refusals(resource: Resource[Any], chunk: list[Row], refusal: Rejected) -> dict[int, Receipt[Any]]:
    rows = {row.number: row for row in chunk}
    complaints: dict[int, list[Issue]] = {}
    for issue in refusal.issues:
        if issue.row in rows:
            known = resource.names(issue.path, rows[issue.row].wire) if issue.path else None
            complaints.setdefault(issue.row, []).append(evolve(issue, field=known or issue.field or issue.path))
    vendor = {
        "status": refusal.status,
        "request_id": refusal.request_id,
        "code": refusal.code,
        "detail": refusal.detail,
    }
    return {
        number: Refused(error=Rejected(f"{resource.name} was refused", issues, **vendor))
        for number, issues in complaints.items()
    }


def _finish(
    then: Callable[[Sequence[Row]], Sequence[Any]], rows: Sequence[Row], receipts: dict[int, Receipt[Any]]
) -> Flow[None]:
    made = [evolve(row, id=receipt.id) for row in rows if isinstance(receipt := receipts[row.number], Made)]
    if not made:
        return
    steps = then(made)
    for at in range(0, len(steps), _WAVE):
        wave = steps[at : at + _WAVE]
        answers: tuple[Reply | CRMError, ...] = yield tuple(step.call for step in wave)
        for step, answer in zip(wave, answers, strict=True):
            if isinstance(answer, Reply):
                answer = step.refused(answer)
                if answer is None:
                    continue
            issue = Issue(field=step.field, rule=f"not done: {answer.message}", code=answer.code, detail=answer.detail)
            for number in step.rows:
                receipt = receipts[number]
                if isinstance(receipt, Made):
                    receipts[number] = evolve(receipt, issues=(*receipt.issues, issue))


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
    emptied = frozenset(clear)
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
                receipts.update((yield from _write(resource, route.write, [whole], 1)))
    elif isinstance(route, Writing):
        size = _batch_size(dialect, resource, route, batch)
        receipts.update((yield from _write(resource, route, rows, size)))
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
    hand_built = entity.raw is None and entity.written is None
    if hand_built:
        changed = filled(entity)
    else:
        before = entity.written
        if before is None:
            before = yield from settled(lambda context: resource.decode(entity.raw, context), target)
        changed = frozenset(
            name for name in field_names(resource.entity) if getattr(before, name) != getattr(entity, name)
        )
    if hand_built and "target" not in resource.survivors(Verb.UPDATE):
        changed -= {"target"}  # it says where the row lives, not what shall change
    changed |= clear
    if not changed:
        return None
    _carriable(dialect, resource, entity, changed, Verb.UPDATE)
    wire = yield from settled(lambda context: resource.encode(entity, changed, context))
    return Row(number=number, wire=wire, entity=entity, id=row_id, target=target)


def _merged(dialect: Dialect, resource: Resource[Any], route: Merging, row: Row, overwrite: bool) -> Flow[Row]:
    """The conversation of dialects whose edit sends everything: read, lay the change over, write."""
    reading = row.entity.raw
    if route.read is not None:
        assert row.id is not None  # noqa: S101  _row_to_update has checked
        reply: Reply = yield route.read(row.id)
        reading = route.row(reply)
        if reading is None:
            raise NotFound(f"{dialect.title} has no {resource.name.lower()} {row.id}", status=reply.status)
    lacking: Sequence[str] = ("everything",) if reading is None else tuple(route.lacks(reading))
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
    yield from _alone(route, row)


def complete(dialect: Dialect, entity: type[T], id: object, result: str | None = None) -> Flow[None]:
    """Mark a task done, with a result where the dialect keeps one (Unsupported otherwise)."""
    resource, route = dialect.resource(entity), _route(dialect, entity, Verb.COMPLETE, Writing)
    fields = frozenset({"done", "result"} if result else {"done"})
    row_id = resource.row_id(id)
    made: Any = resource.entity
    done = made(id=row_id, done=True, result=result)
    _carriable(dialect, resource, done, fields, Verb.COMPLETE)
    wire = yield from settled(lambda context: resource.encode(done, fields, context))
    receipt = yield from _alone(route, Row(number=0, wire=wire, entity=done, id=row_id))
    if receipt.issues:
        raise PartlyDone("the task is done, but its result was not kept", receipt.issues, entity=done)


def _alone(route: Writing, row: Row) -> Flow[Made[Any]]:
    reply: Reply = yield route.call([row])
    try:
        (receipt,) = route.unwrap(reply, [row])
    except Unreadable as bad:
        raise lost(bad, "the write") from bad
    if not isinstance(receipt, Made):
        raise receipt.error
    if route.then is not None:
        receipts: dict[int, Receipt[Any]] = {row.number: receipt}
        yield from _finish(route.then, [row], receipts)
        receipt = receipts[row.number]
        assert isinstance(receipt, Made)  # noqa: S101  what finishes a row takes nothing of it back
    return receipt


# ------------------------------------------------------------------------------------------------- whole listings


def everything(dialect: Dialect, entity: type[T]) -> Flow[tuple[T, ...]]:
    """All rows of a small listing, page after page, as one flow: for settings parts."""
    walk = listing(dialect, entity)
    cursor: Cursor | None = walk.first
    found: list[T] = []
    while cursor is not None:
        reply: Reply = yield walk.call(cursor)
        rows = walk.rows(cursor, reply)
        found += yield from walk.items(cursor, rows)
        cursor = walk.after(cursor, reply, len(rows))
    return tuple(found)
