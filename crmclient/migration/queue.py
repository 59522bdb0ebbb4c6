"""Which rows of a move go next: as many as a request takes, once all that they hang on is there."""

from collections import Counter, deque
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Final

from attrs import define, field, frozen

from crmclient import flows
from crmclient.dialect import Row, Verb, Writing
from crmclient.entities import Id, Kind, Ref
from crmclient.migration.ledger import Item, Settled, State
from crmclient.migration.matching import KINDS, MOVED, company_key, kind_at
from crmclient.migration.move import TURN, Move
from crmclient.migration.translation import Translated
from crmclient.migration.wording import Wording

WITHOUT: Final = "it goes without "


@frozen
class Ready:
    """A row of the source that can be sent now, and as it is sent. ``without`` says what it is tied to and goes without."""

    source: Id
    row: Any
    there: Translated
    sent: Any
    print: Hashable
    without: str | None = None


@define
class _Waiting:
    """A row of the source that is not dealt with, and as it is sent once all that it hangs on is there."""

    row: Any
    ready: Ready | None = None


@define
class _Front:
    """The next rows of a kind that are not dealt with, as many as a few requests hold."""

    rows: dict[Id, _Waiting] = field(factory=dict[Id, _Waiting])
    after: int = 0
    whole: bool = False
    """Nothing that has been read lies beyond."""


class Queue:
    def __init__(self, move: Move, wording: Wording) -> None:
        self._move, self._wording = move, wording
        self.coming: frozenset[type[Any]] = frozenset()
        """Of what more may yet be read."""
        self._fronts: dict[str, _Front] = {}
        self._under_way: dict[str, Counter[Hashable]] = {}
        self._again: deque[tuple[str, tuple[Id, ...]]] = deque()

    def begin(self) -> None:
        self._fronts = {kind: _Front() for kind in KINDS if kind in self._wording.prints}
        self._under_way = {kind: Counter() for kind in self._fronts}

    @property
    def kinds(self) -> Iterable[str]:
        """Those that the target takes, in the order in which they are made."""
        return self._fronts

    def grown(self, kind: str) -> None:
        """More of a kind has been read."""
        if kind in self._fronts:
            self._fronts[kind].whole = False

    @property
    def waits_again(self) -> bool:
        """Whether rows that were sent are to be sent once more."""
        return bool(self._again)

    @property
    def exhausted(self) -> bool:
        return not self._again and all(front.whole and not front.rows for front in self._fronts.values())

    def over(self, kind: str) -> bool:
        """Whether no row of a kind waits, is under way, or may yet come."""
        front = self._fronts[kind]
        return front.whole and not front.rows and MOVED[kind] not in self.coming and not self._under_way[kind]

    # ---------------------------------------------------------------------------------------------------- what is next

    async def prepare(self) -> None:
        """Make ready what goes next, a few rows at a time: a request's rows at once would keep from its turn what is due."""
        for kind in self._fronts:
            waiting = self._fill(kind).rows
            number = sum(each.ready is not None for each in waiting.values())
            for source, each in [*waiting.items()]:
                if number >= self._size(kind):
                    return
                if each.ready is None:
                    ready = self._ready(kind, source, each.row)
                    if ready is None:
                        break  # what it hangs on is not there, and those after it came later
                    if isinstance(ready, Ready):
                        each.ready = ready
                        number += 1
                    if number % TURN == 0:
                        await self._move.clock.sleep(0)
                        if self._move.halted:
                            return

    def together_again(self) -> tuple[str, list[Ready]] | None:
        """Rows that have been sent and were not applied: in the company they are to go in once more."""
        while self._again:
            kind, sources = self._again.popleft()
            ready = self._all_ready(kind, sources)
            if ready is None:
                self._again.append((kind, sources))
                return None
            if ready:
                return kind, ready
        return None

    def full(self, kind: str) -> tuple[list[Ready], list[Ready]]:
        """Rows for a full request; or none, and those that would make the last one, where no more will come."""
        front, size, groups = self._fill(kind), self._size(kind), dict[Hashable, list[Ready]]()
        blocked, settled = False, dict[Id, Settled]()
        for source, waiting in front.rows.items():
            ready = waiting.ready or self._ready(kind, source, waiting.row)
            if isinstance(ready, Settled):
                settled[source] = ready
                continue
            waiting.ready = ready
            if ready is None or not self._free(kind, ready):
                blocked = True
                continue
            group = groups.setdefault(self._group_of(kind, ready.sent), [])
            group.append(ready)
            if len(group) == size:
                self._become(kind, settled)
                return group, []
        self._become(kind, settled)
        best: list[Ready] = max(groups.values(), key=len, default=list[Ready]())
        last = front.whole and MOVED[kind] not in self.coming and not blocked
        return (best, []) if last and best and not self._more(kind) else ([], best)

    def _size(self, kind: str) -> int:
        spoken = self._move.target.dialect
        return self._move.plan.target_cost.batches.get(kind) or flows.batch_of(spoken, MOVED[kind])

    def _fill(self, kind: str) -> _Front:
        front, wanted = self._fronts[kind], max(2 * self._size(kind), 100)
        while len(front.rows) < wanted and not front.whole:
            found = self._move.ledger.waiting(kind, front.after, wanted)
            front.whole = not found
            for place, source, row in found:
                front.after = place
                item = self._move.ledger.item(kind, source)
                if item is not None and item.state is State.PENDING:
                    front.rows[source] = _Waiting(row)
        return front

    def _more(self, kind: str) -> bool:
        """Whether rows of a kind are elsewhere that may yet go into its last request."""
        return any(kind == other for other, _ in self._again)

    def _group_of(self, kind: str, row: Any) -> Hashable:
        route = self._move.target.dialect.route(MOVED[kind], Verb.CREATE)
        if not isinstance(route, Writing) or route.group_by is None:
            return None
        return route.group_by(Row(number=0, wire={}, entity=row, target=getattr(row, "target", None)))

    def _all_ready(self, kind: str, sources: Sequence[Id]) -> list[Ready] | None:
        """Rows that go together, or None while one of them has to wait."""
        found: list[Ready] = []
        for source in sources:
            row = self._move.ledger.row(kind, source)
            item = self._move.ledger.item(kind, source)
            if row is None or item is None or item.state is not State.PENDING:
                continue
            ready = self._ready(kind, source, row)
            if ready is None:
                return None
            if isinstance(ready, Settled):
                self._become(kind, {source: ready})
            elif not self._free(kind, ready):
                return None
            else:
                found.append(ready)
        return found

    def _free(self, kind: str, ready: Ready) -> bool:
        """Rows that cannot be told apart are never under way at once: else one is taken for the other."""
        return not self._under_way[kind][ready.print]

    def _ready(self, kind: str, source: Id, row: Any) -> Ready | Settled | None:
        """A row as it is sent; why it never will be; or None while it has to wait."""
        lacks = False
        for at, id, hard in hangs_on(row):
            item = self._move.ledger.item(at, id)
            if item is None:
                if MOVED[at] in self.coming:
                    return None
                continue  # nobody has seen it
            if item.state is State.DOUBT and item.target is None and hard:
                return Settled(state=State.REJECTED, error=f"its {MOVED[at].KIND} {id} is in doubt")
            if item.state is State.REJECTED and hard:
                return Settled(state=State.REJECTED, error=hung_on(at, id))
            if item.state in (State.PENDING, State.INTENT):
                return None
            lacks = lacks or _did_not_arrive(item)
        there = self._wording.translate(row)
        if there.left_out is not None:
            return Settled(state=State.SKIPPED, error=there.left_out, kept=there.archived)
        if self._wording.waits_for_me(there):
            return None
        return self.as_sent(kind, source, row, there, without=self.without(row) if lacks else None)

    def as_sent(self, kind: str, source: Id, row: Any, there: Translated, *, without: str | None = None) -> Ready:
        sent = self._wording.as_sent(kind, source, row, there)
        return Ready(source, row, there, sent, self._wording.prints[kind].of(sent), without)

    def without(self, row: Any) -> str | None:
        """What a row is tied to and goes without, in words."""
        above = ((at, id, self._move.ledger.item(at, id)) for at, id, hard in hangs_on(row) if not hard)
        lost = [f"{MOVED[at].KIND} {id}" for at, id, item in above if item is not None and _did_not_arrive(item)]
        return f"{WITHOUT}{', '.join(lost)}, which did not arrive" if lost else None

    # --------------------------------------------------------------------------------------------- what becomes of it

    def take(self, kind: str, rows: Iterable[Ready]) -> None:
        """They are under way."""
        for each in rows:
            self._fronts[kind].rows.pop(each.source, None)
            self._under_way[kind][each.print] += 1

    def release(self, kind: str, rows: Iterable[Ready]) -> None:
        """It is known what became of them."""
        under_way = self._under_way[kind]
        for each in rows:
            under_way[each.print] -= 1
            if under_way[each.print] <= 0:
                del under_way[each.print]

    def send_again(self, kind: str, parts: Iterable[Sequence[Id]]) -> None:
        """Each part in a request of its own."""
        self._again += [(kind, tuple(part)) for part in parts if part]

    def _become(self, kind: str, became: Mapping[Id, Settled]) -> None:
        """Rows that will never be sent."""
        if not became:
            return
        self._move.ledger.become(kind, became)
        for source, told in became.items():
            self._fronts[kind].rows.pop(source, None)
            self._move.count(kind, State.PENDING, told.state, 1)
        self._move.wake()


def hangs_on(row: Any) -> Iterable[tuple[str, Id, bool]]:
    """What has to be made before a row is: kind, the source's id, and whether the row is nothing without it."""
    target: Ref | None = getattr(row, "target", None)
    at = kind_at(target)
    if at is not None and target is not None and target.id is not None:
        yield at, target.id, True
    key = company_key(getattr(row, "company", None))
    if key is not None:
        yield "companies", key, False
    for link in getattr(row, "contacts", ()) if row.KIND is Kind.DEAL else ():
        if link.ref.id is not None:
            yield "contacts", link.ref.id, False


def hung_on(at: str, id: Id) -> str:
    """Why a row is refused that is nothing without another."""
    return f"its {MOVED[at].KIND} {id} was rejected"


def _did_not_arrive(item: Item) -> bool:
    return item.state in (State.REJECTED, State.DOUBT) and item.target is None
