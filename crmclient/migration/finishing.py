"""What follows a row that a move has made: its ties, that a task is done, what came of it. All of it may be said again."""

from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from crmclient import flows
from crmclient.dialect import Made, NotApplied, Verb, Writing
from crmclient.entities import Id, is_empty
from crmclient.errors import AmbiguousWrite, CRMError, NotFound, Rejected, Unreadable
from crmclient.migration.ledger import Settled, State
from crmclient.migration.matching import MOVED
from crmclient.migration.move import OF_THE_ROW, PASSING, TRIES, TURN, Move
from crmclient.migration.queue import Queue, Ready
from crmclient.migration.translation import Translated, same
from crmclient.migration.wording import Wording

# What follows a row that was made: a move may have been killed before it.
FOLLOWING: Final = frozenset({"done", "result", "company", "contacts"})
# So many rows are looked at again together.
_LOOKED_AT: Final = 100

_Pair = tuple[Id, Id]


class Finishing:
    def __init__(self, move: Move, wording: Wording, queue: Queue) -> None:
        self._move, self._wording, self._queue = move, wording, queue
        self._unfinished: dict[str, deque[_Pair]] = {}
        self._found: dict[str, deque[_Pair]] = {}

    def begin(self) -> None:
        self._unfinished = {kind: deque() for kind in self._queue.kinds}
        self._found = {kind: deque() for kind in self._queue.kinds}

    def go_on(self) -> None:
        """With rows that were made before: what follows them may have been sent before we died, and may still land."""
        made: dict[str, list[_Pair]] = {}
        for item in self._move.ledger.items(State.MADE):
            if item.target is not None:
                made.setdefault(item.kind, []).append((item.source, item.target))
        for kind, rows in made.items():
            self._move.later(partial(self._look_after_a_while, kind, rows, unsure=self._move.died))

    @property
    def exhausted(self) -> bool:
        return not any(self._found.values()) and not any(self._unfinished.values())

    def settled(self, kind: str, row: Ready, target: Id) -> Settled:
        """A row that is there now: done, or made and to be finished."""
        more = flows.finishes(self._move.target.dialect, MOVED[kind]) or row.there.later
        wrote = self._wording.says(kind, row.there)
        state = State.MADE if more else State.DONE
        return Settled(state=state, target=target, wrote=wrote, kept=row.there.archived, error=row.without)

    def finish(self, kind: str, source: Id, told: Settled) -> None:
        """Once there are enough of them."""
        if told.state is State.MADE and told.target is not None:
            self._unfinished[kind].append((source, told.target))

    def look_after(self, kind: str, source: Id, told: Settled) -> None:
        """A row was found, and nobody knows whether it was finished."""
        if told.state is State.MADE and told.target is not None:
            self._found[kind].append((source, told.target))

    # ---------------------------------------------------------------------------------------------------- what is next

    def found(self) -> Callable[[], Awaitable[None]] | None:
        for kind, rows in self._found.items():
            if rows:
                return partial(self._look_after, kind, [rows.popleft() for _ in range(min(_LOOKED_AT, len(rows)))])
        return None

    def due(self, kind: str, *, last: bool) -> Callable[[], Awaitable[None]] | None:
        """Rows that were made and are to be finished, once there are enough of them or these are the ``last``."""
        rows, route = self._unfinished[kind], self._move.target.dialect.route(MOVED[kind], Verb.CREATE)
        most = route.batch if isinstance(route, Writing) else 1
        if not rows or (len(rows) < most and not last):
            return None
        return partial(self._finish, kind, [rows.popleft() for _ in range(min(most, len(rows)))])

    def left(self) -> Callable[[], Awaitable[None]] | None:
        return next((work for kind in self._unfinished if (work := self.due(kind, last=True)) is not None), None)

    # ------------------------------------------------------------------------------------------------------ finishing

    async def _finish(self, kind: str, rows: Sequence[_Pair]) -> None:
        move, begun = self._move, self._move.clock.monotonic()
        there, sent = dict[Id, Translated](), dict[Id, Any]()
        for number, (source, _) in enumerate(rows, 1):
            row = move.ledger.row(kind, source)
            there[source] = self._wording.translate(row)
            sent[source] = self._wording.as_sent(kind, source, row, there[source])
            if number % TURN == 0:
                await move.clock.sleep(0)
        failed = await self.follow(kind, rows, sent)
        later = [(source, target) for source, target in rows if there[source].later and source not in failed]
        failed |= await self._complete(kind, later, there)
        self._done(kind, {source: Settled(state=State.DONE) for source, _ in rows if source not in failed})
        for source, target in rows:
            if source in failed:
                await self._unfinishable(kind, source, target, failed[source])
        move.tell()
        passing = [NotApplied(error=each) for each in failed.values() if isinstance(each, PASSING)]
        await move.heed(f"finish {kind}", passing or [Made()], begun)

    def _done(self, kind: str, became: Mapping[Id, Settled]) -> None:
        self._move.ledger.become(kind, became)
        self._move.count(kind, State.MADE, State.DONE, len(became))

    async def follow(self, kind: str, rows: Sequence[_Pair], sent: Mapping[Id, Any]) -> dict[Id, CRMError]:
        """What follows rows once they are made; where one is refused for another's sake, halves tell which."""
        target = self._move.target
        if not flows.finishes(target.dialect, MOVED[kind]):
            return {}
        given = [(id, sent[source]) for source, id in rows]
        try:
            wrong = await target.run(flows.finish_many(target.dialect, MOVED[kind], given))
        except PASSING as error:  # the settings that are read for it
            wrong = [error] * len(given)
        failed = {source: error for (source, _), error in zip(rows, wrong, strict=True) if error is not None}
        refused = [pair for pair in rows if isinstance(failed.get(pair[0]), Rejected | NotFound)]
        if len(rows) > 1 and refused:
            half = (len(refused) + 1) // 2
            for part in (refused[:half], refused[half:]):
                failed = {source: error for source, error in failed.items() if source not in dict(part)}
                failed |= await self.follow(kind, part, sent) if part else {}
        return failed

    async def _complete(self, kind: str, rows: Sequence[_Pair], there: Mapping[Id, Translated]) -> dict[Id, CRMError]:
        if not rows:
            return {}
        target, entity, failed = self._move.target, MOVED[kind], dict[Id, CRMError]()
        made: Any = entity
        names = {name for source, _ in rows for name in there[source].later}
        if (
            names <= target.dialect.resource(entity).survivors(Verb.UPDATE)
            and flows.batch_of(target.dialect, entity, Verb.UPDATE) > 1
        ):
            changes = [made(id=id, **there[source].later) for source, id in rows]
            receipts = await target.of(entity).update_many(changes)
            told = zip(rows, receipts, strict=True)
            return {source: receipt.error for (source, _), receipt in told if not isinstance(receipt, Made)}
        for source, id in rows:
            try:
                await target.of(entity).complete(id, result=there[source].later.get("result"))
            except CRMError as error:
                failed[source] = error
        return failed

    async def _unfinishable(self, kind: str, source: Id, target: Id, error: CRMError) -> None:
        """What follows a row was not done, or nobody knows whether it was."""
        move, unsure = self._move, isinstance(error, AmbiguousWrite)
        move.unsure = move.unsure or unsure
        tries = int(move.ledger.mapped(f"finishing {kind}", source) or 0) + unsure
        if isinstance(error, PASSING) or (unsure and tries < TRIES):
            if unsure:
                move.ledger.learn(f"finishing {kind}", source, tries, str(error))
            move.later(partial(self._look_after_a_while, kind, [(source, target)], unsure=unsure))
            return
        if not isinstance(error, (AmbiguousWrite, *OF_THE_ROW)):
            raise error
        self._done(kind, {source: Settled(state=State.DONE, error=f"not finished: {error}")})

    # ------------------------------------------------------------------------------------------------- looking at them

    async def _look_after_a_while(self, kind: str, rows: Sequence[_Pair], *, unsure: bool) -> None:
        move = self._move
        if unsure:
            await move.quarantine(len(rows), "rows")
        else:
            await move.pause(move.backoff(f"finish {kind}") - 1)
        if move.halted:
            move.unsure = move.unsure or unsure
        else:
            self._found[kind] += rows

    async def _look_after(self, kind: str, rows: Sequence[_Pair]) -> None:
        """Rows that are there, and nobody knows whether they were finished: only what they lack is done."""
        there = await self.stored(kind, [target for _, target in rows])
        left: list[_Pair] = []
        became: dict[Id, Settled] = {}
        for source, target in rows:
            found = there.get(target) if there is not None else None
            if there is None or (found is not None and self._lacks(kind, source, found)):
                left.append((source, target))
            else:
                why = None if found is not None else "the target does not show it any more, so that nothing followed it"
                became[source] = Settled(state=State.DONE, error=why)
        self._done(kind, became)
        if left:
            await self._finish(kind, left)
        self._move.tell()

    async def stored(self, kind: str, ids: Sequence[Id]) -> dict[Id, Any] | None:
        """Rows of the target by their ids; None where it shows none by its id: there all of it may be said again."""
        target, entity, found = self._move.target, MOVED[kind], dict[Id, Any]()
        of: Any = target.of(entity)
        if flows.filtered_by(target.dialect, entity, "ids"):
            # What cannot be read is not said again either: nobody knows what it lacks.
            unreadable: list[Unreadable] = []
            return {row.id: row async for row in of.list(ids=ids, on_bad=unreadable.append)}
        if not target.can(entity, Verb.GET):
            return None
        for id in ids:
            try:
                found[id] = await of.get(id)
            except NotFound:
                continue
        return found

    def _lacks(self, kind: str, source: Id, found: Any) -> bool:
        whole = self._wording.translate(self._move.ledger.row(kind, source)).whole
        return any(
            not is_empty(getattr(whole, name, None)) and not same(getattr(whole, name), getattr(found, name))
            for name in FOLLOWING - found.unread
        )
