"""What did a create do whose answer was lost? It is looked for among the rows that came after it was sent, and every row
that is found is checked here: a server's filter is a help and never evidence.

That a row is there is final. That it is not there means something only once nobody can be working on the request any more.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from attrs import field, frozen

from crmclient import flows
from crmclient.dialect import (
    ChangedSince,
    Cursor,
    Dialect,
    Filter,
    Flow,
    LastPages,
    NewestFirst,
    Reply,
    Sought,
    Verb,
    Walk,
    Writing,
)
from crmclient.entities import Company, Id, is_empty
from crmclient.errors import NotFound, Unreadable, Unsupported
from crmclient.migration.matching import unmarked
from crmclient.migration.verify import STAMPS, comparable, even
from crmclient.paging import Trail

# What is compared also where the row sent says nothing: no server fills it in.
_SAID: Final = ("text", "phones", "emails", "price", "target")
# What is compared where the row sent says something: a server fills it in by itself.
_GIVEN: Final = ("name", "kind", "created_at", "due", "type")


@frozen(kw_only=True)
class Found:
    """Rows of the target that may be those of a request. ``blind``: some of them could not be read."""

    rows: tuple[Any, ...]
    blind: bool = False


class _OutOfOrder(Exception):
    """The rows do not come in the order that was asked for: a server that does not know an order says nothing."""


# ----------------------------------------------------------------------------------------------------------- looking


def seek(
    dialect: Dialect, entity: type[Any], sent: Sequence[Any], watermark: int, at: datetime, *, last: bool = False
) -> Flow[Found]:
    """The rows of a kind with ids above the watermark, as far as one of those sent can be among them.

    ``at`` is when they were sent, on the server's clock. How it is looked is what the dialect declares; where it does not
    declare anything, or its server does not do as it declares, the whole listing is read. ``last``: what is not found now
    is sent again, so that a search, which only the server understands, is not enough.
    """
    looking = _Looking(dialect, entity, watermark, last)
    try:
        yield from looking.by(dialect.resource(entity).evidence, sent, at)
    except (_OutOfOrder, Unsupported):
        yield from looking.everything()
    return Found(rows=tuple(looking.found.values()), blind=bool(looking.unreadable))


@frozen
class _Looking:
    dialect: Dialect
    entity: type[Any]
    watermark: int
    last: bool = False
    found: dict[Id, Any] = field(factory=dict[Id, Any])
    unreadable: list[Unreadable] = field(factory=list[Unreadable])

    def by(self, evidence: Any, sent: Sequence[Any], at: datetime) -> Flow[None]:
        match evidence:
            case NewestFirst(paging=paging):
                walk = flows.listing(self.dialect, self.entity, None, self.unreadable.append, paging)
                for first in walk.firsts:
                    yield from self._newest(walk, first)
            case ChangedSince(slack=slack):
                dated = "updated_at" in self.dialect.resource(self.entity).survivors(Verb.CREATE)
                # A row that was dated as it was written is as old as it says.
                since = min([at, *(row.updated_at for row in sent if dated and row.updated_at is not None)])
                asked = Filter(updated_since=since - timedelta(seconds=slack))
                yield from self._walked(flows.listing(self.dialect, self.entity, asked, self.unreadable.append))
            case LastPages():
                walk = flows.listing(self.dialect, self.entity, None, self.unreadable.append)
                for first in walk.firsts:
                    yield from self._last(walk, first)
            case Sought():
                yield from self._sought(sent)
            case _:
                yield from self.everything()

    def everything(self) -> Flow[None]:
        yield from self._walked(flows.listing(self.dialect, self.entity, None, self.unreadable.append))

    def page(
        self, walk: Walk[Any], cursor: Cursor, trail: Trail | None = None
    ) -> Flow[tuple[list[Id], Cursor | None, Reply]]:
        reply: Reply = yield walk.call(cursor)
        raw = walk.rows(cursor, reply)
        ids: list[Id] = []
        for row in (yield from walk.items(cursor, raw)):
            ids.append(row.id)
            # An id of letters has no order: then every row may be one of those.
            if not isinstance(row.id, int) or row.id > self.watermark:
                self.found[row.id] = row
        following = walk.after(cursor, reply, len(raw))
        if trail is not None:
            trail.step(cursor, raw, following)
        return ids, (following if following is not None and following.part == cursor.part else None), reply

    def _walked(self, walk: Walk[Any]) -> Flow[None]:
        for first in walk.firsts:
            cursor: Cursor | None = first
            trail = Trail()
            while cursor is not None:
                _, cursor, _ = yield from self.page(walk, cursor, trail)

    def _newest(self, walk: Walk[Any], first: Cursor) -> Flow[None]:
        cursor: Cursor | None = first
        trail = Trail()
        while cursor is not None:
            ids, cursor, _ = yield from self.page(walk, cursor, trail)
            numbers = [id for id in ids if isinstance(id, int)]
            if len(numbers) < len(ids) or numbers != sorted(numbers, reverse=True):
                raise _OutOfOrder
            if numbers and numbers[-1] <= self.watermark:
                return

    def _last(self, walk: Walk[Any], first: Cursor) -> Flow[None]:
        _, _, reply = yield from self.page(walk, first)
        cursor = last = walk.last(first, reply)
        if last is None or not isinstance(last.at, int):
            raise _OutOfOrder
        while cursor is not None and int(cursor.at) > int(first.at):
            ids, after, _ = yield from self.page(walk, cursor)
            numbers = [id for id in ids if isinstance(id, int)]
            if len(numbers) < len(ids) or numbers != sorted(numbers):
                raise _OutOfOrder
            while cursor == last and after is not None:  # rows have come since the number of pages was told
                _, after, _ = yield from self.page(walk, after)
            if numbers and numbers[0] <= self.watermark:
                return
            cursor = walk.ahead(cursor, -1)

    def _sought(self, sent: Sequence[Any]) -> Flow[None]:
        route = self.dialect.route(self.entity, Verb.CREATE)
        asked: list[Filter] = []
        for row in sent:
            wanted = route.find(row) if isinstance(route, Writing) and route.find is not None else None
            if wanted is None or (self.last and wanted.text is not None):  # it holds nothing that is certainly found
                yield from self.everything()
                return
            if wanted not in asked:
                asked.append(wanted)
        for each in asked:
            try:
                yield from self._walked(flows.listing(self.dialect, self.entity, each, self.unreadable.append))
            except NotFound:
                continue  # what it hangs on is gone, and it with that


def newest(dialect: Dialect, entity: type[Any]) -> Flow[int]:
    """The largest id of a kind: what is made from now on has a larger one. 0 where there is none."""
    looking = _Looking(dialect, entity, 0)
    evidence = dialect.resource(entity).evidence
    if isinstance(evidence, NewestFirst):
        walk = flows.listing(dialect, entity, None, looking.unreadable.append, evidence.paging)
        for first in walk.firsts:
            yield from looking.page(walk, first)
    else:
        yield from looking.everything()
    return max((id for id in looking.found if isinstance(id, int)), default=0)


# ---------------------------------------------------------------------------------------------------------- matching


@frozen
class Prints:
    """What a kind of rows is known by in the target, as far as it is written there and read back.

    Two rows of one print cannot be told apart. With ``marks``, rows bear the name of the row they were made of.
    """

    dialect: Dialect
    entity: type[Any]
    marks: bool

    @property
    def _rows_there(self) -> bool:
        return self.dialect.can(Company, Verb.CREATE)

    @property
    def _names(self) -> frozenset[str]:
        resource = self.dialect.resource(self.entity)
        return resource.survivors(Verb.CREATE) & resource.survivors(Verb.LIST)

    def needs(self, sent: Iterable[Any]) -> frozenset[str]:
        """The fields without which a row that was found cannot be held against those sent."""
        if self.marks:
            return frozenset({"tags", "fields"}) & self._names
        return frozenset(name for row in sent for name in self._told(row))

    def of(self, row: Any) -> Hashable:
        """The print of a row as it is sent: of what is always compared, as one row may say a part of what another says."""
        if self.marks:
            return unmarked(row)[1]
        return self._said(
            row, [name for name in (*_SAID, "name", "kind") if name in self._names and hasattr(row, name)]
        )

    def _told(self, row: Any) -> tuple[str, ...]:
        given = [name for name in _GIVEN if not is_empty(getattr(row, name, None))]
        return tuple(name for name in (*_SAID, *given) if name in self._names and hasattr(row, name))

    def _said(self, row: Any, names: Sequence[str]) -> str:
        said = {name: even(comparable(getattr(row, name), self._rows_there)) for name in names}
        return json.dumps(said, sort_keys=True)

    def matched(self, sent: Mapping[Id, Any], found: Iterable[Any]) -> dict[Id, Id]:
        """Which of the rows found is which of those sent: the lowest source's id goes with the lowest target's."""
        rows = sorted(found, key=lambda row: _in_order(row.id))
        if self.marks:
            bearing = {mark: row.id for row in reversed(rows) for mark in unmarked(row)[1]}
            told = {source: next(iter(unmarked(row)[1]), None) for source, row in sent.items()}
            return {source: bearing[mark] for source, mark in told.items() if mark in bearing}
        free, pairs = {row.id: row for row in rows if not unmarked(row)[1]}, dict[Id, Id]()
        alike: dict[tuple[tuple[str, ...], Hashable], list[Id]] = defaultdict(list)
        for source in sorted(sent, key=_in_order):
            alike[self._told(sent[source]), self._said(sent[source], self._told(sent[source]))].append(source)
        # Those that say most choose first: what they say fits fewer rows.
        for (names, said), sources in sorted(alike.items(), key=lambda each: -len(each[0][0])):
            fitting = {id: row for id, row in free.items() if self._said(row, names) == said}
            # Of those that are known by the same, whoever agrees in all the rest goes first: a task that is done, say.
            for whole in (True, False):
                for source in [source for source in sources if source not in pairs]:
                    rest = self._rest(sent[source]) if whole else ()
                    wanted = self._said(sent[source], rest)
                    target = next((id for id, row in fitting.items() if self._said(row, rest) == wanted), None)
                    if target is not None:
                        pairs[source] = target
                        del free[target], fitting[target]
        return pairs

    def resembling(self, sent: Mapping[Id, Any], found: Iterable[Any]) -> frozenset[Id]:
        """Rows sent of which one that was found says all that no server makes up by itself: it may have been dated anew."""
        if self.marks:
            return frozenset()
        there = {self.of(row) for row in found if not unmarked(row)[1]}
        return frozenset(source for source, row in sent.items() if self.of(row) in there)

    def _rest(self, row: Any) -> tuple[str, ...]:
        """All that a row says as it is sent, and whether it is done: a server adds to that and takes nothing of it."""
        said = (name for name in self._names - STAMPS if not is_empty(getattr(row, name, None)))
        return tuple(sorted({*said, *(["done"] if "done" in self._names and hasattr(row, "done") else [])}))


def _in_order(id: Id) -> tuple[bool, int, str]:
    return (False, id, "") if isinstance(id, int) else (True, 0, id)


def completed(
    dialect: Dialect, entity: type[Any], seen: Found, needs: frozenset[str], owned: Callable[[Id], bool]
) -> Flow[Found]:
    """The rows that are nobody's yet, each read whole where its listing does not tell what it is known by."""
    found, blind = list[Any](), seen.blind
    for row in seen.rows:
        if owned(row.id):
            continue
        if needs & row.unread and dialect.can(entity, Verb.GET):
            try:
                whole = yield from flows.get(dialect, entity, row.id, getattr(row, "target", None))
            except NotFound:
                continue
            except Unreadable as wrong:
                if wrong.passing:
                    raise
                blind = True
                continue
            found.append(whole)
            continue
        found.append(row)
    return Found(rows=tuple(found), blind=blind)
