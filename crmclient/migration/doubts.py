"""What became of rows that were sent and whose answer was lost: they are looked for, and not sent again before that."""

from collections.abc import Mapping, Sequence, Set
from functools import partial
from typing import Final

from crmclient.dialect import Flow, Verb, Writing
from crmclient.entities import Id
from crmclient.migration.finishing import Finishing
from crmclient.migration.ledger import Batch, Settled, State
from crmclient.migration.matching import MOVED
from crmclient.migration.move import Move
from crmclient.migration.queue import Queue, Ready
from crmclient.migration.reconcile import Found, completed, seek
from crmclient.migration.wording import Wording

# A row that has vanished so often, the last times alone and while others arrived, is not sent a further time.
_VANISHING: Final = 3


class Doubts:
    def __init__(self, move: Move, wording: Wording, queue: Queue, finishing: Finishing) -> None:
        self._move, self._wording, self._queue, self._finishing = move, wording, queue, finishing
        self._tried: dict[tuple[str, Id], float] = {}

    def go_on(self) -> None:
        """With what was open when whoever ran it before has ended."""
        for batch in self._move.ledger.open_batches():
            rows: dict[Id, Ready] = {}
            for source in batch.sources:
                row = self._move.ledger.row(batch.kind, source)
                there, without = self._wording.translate(row), self._queue.without(row)
                rows[source] = self._queue.as_sent(batch.kind, source, row, there, without=without)
            self._queue.take(batch.kind, rows.values())
            self.look_into(batch, rows)

    def look_into(self, batch: Batch, rows: dict[Id, Ready]) -> None:
        """Find out what a request did, beside the lanes."""
        self._move.later(partial(self._resolve, batch, rows))

    async def _resolve(self, batch: Batch, rows: dict[Id, Ready]) -> None:
        """Look at once, and once more when nobody can be working on it any longer: only then is "not there" an answer."""
        move, kind, began = self._move, batch.kind, self._move.clock.monotonic()
        until, found_any = began + move.plan.quarantine, move.ledger.partly(batch)
        first = min(self._tried.setdefault((kind, source), began) for source in rows)
        # Others came through between its first sending and its last: it is not the vendor who fails.
        poison = len(rows) == 1 and move.arrived_since(kind, first)
        while rows:
            # What began before the time was up may have looked where the row was not yet.
            over = move.clock.monotonic() >= until
            found, alike, blind = await self._seen(batch, rows, last=over)
            found_any = found_any or bool(found)
            became = {source: self._finishing.settled(kind, rows[source], id) for source, id in found.items()}
            if over:
                lost = [source for source in rows if source not in found]
                became |= self._given_up(batch, lost, alike, found_any=found_any, blind=blind, poison=poison)
            if became:
                move.ledger.settle(batch, became, outcome(became) if len(became) == len(rows) else None)
            for source, told in became.items():
                move.count(kind, State.INTENT, told.state, 1)
                self._queue.release(kind, [rows.pop(source)])
                self._finishing.look_after(kind, source, told)
                move.saw(kind, told.target)
                if told.state is not State.PENDING:
                    del self._tried[kind, source]
            self._send_again(kind, [source for source, told in became.items() if told.state is State.PENDING])
            move.tell()
            move.wake()
            if move.halted or not rows:
                return
            await move.quarantine(len(rows), "rows", until - move.clock.monotonic())
            if move.halted:
                return

    def _send_again(self, kind: str, rows: Sequence[Id]) -> None:
        """Rows that were certainly not made go together once more, and then in halves: one of them may be what is wrong."""
        if not rows:
            return
        tried = max(item.attempts for source in rows if (item := self._move.ledger.item(kind, source)) is not None)
        half = len(rows) if tried < 2 else (len(rows) + 1) // 2
        self._queue.send_again(kind, (rows[:half], rows[half:]))

    async def _seen(
        self, batch: Batch, rows: Mapping[Id, Ready], *, last: bool
    ) -> tuple[dict[Id, Id], frozenset[Id], bool]:
        """Which rows of a batch are in the target; which of the others are much like one there; and whether rows are there
        that cannot be read.
        """
        kind, entity, prints = batch.kind, MOVED[batch.kind], self._wording.prints[batch.kind]
        sent = {source: each.sent for source, each in rows.items()}
        needs, owned = prints.needs(sent.values()), partial(self._move.ledger.owned, kind)

        def looking() -> Flow[Found]:
            spoken, every = self._move.target.dialect, list(sent.values())
            seen = yield from seek(spoken, entity, every, batch.watermark, batch.sent_at, last=last)
            return (yield from completed(spoken, entity, seen, needs, owned))

        seen = await self._move.patiently(looking)
        # While it was looked, others may have become somebody's.
        free = [row for row in seen.rows if not owned(row.id)]
        matched = prints.matched(sent, free)
        left = [row for row in free if row.id not in matched.values()]
        alike = prints.resembling({source: row for source, row in sent.items() if source not in matched}, left)
        return matched, alike, seen.blind

    def _given_up(
        self, batch: Batch, lost: Sequence[Id], alike: Set[Id], *, found_any: bool, blind: bool, poison: bool
    ) -> dict[Id, Settled]:
        """Rows that are not there and will not be: to be sent again, unless there is reason to think that they are."""
        route = self._move.target.dialect.route(MOVED[batch.kind], Verb.CREATE)
        whole = found_any and isinstance(route, Writing) and route.atomic
        why = (
            "it was made, and the answer did not tell its id"
            if batch.certain
            else "others of its request were made, and that makes all or none"
            if whole
            else "rows are there that cannot be read, and it may be one of them"
            if blind
            else None
        )
        became: dict[Id, Settled] = {}
        for source in lost:
            item = self._move.ledger.item(batch.kind, source)
            tried = item.attempts if item is not None else 0
            if said := why or ("a row much like it is there, with other dates" if source in alike else None):
                became[source] = Settled(state=State.DOUBT, error=f"{said}: look for it in the target by hand")
            elif poison and tried >= _VANISHING:
                became[source] = Settled(
                    state=State.REJECTED, error=f"it vanishes: sent {tried} times, and never there"
                )
            else:
                became[source] = Settled(state=State.PENDING)
        return became


def outcome(became: Mapping[Id, Settled]) -> str:
    """What a request has come to, in a word."""
    states = {told.state for told in became.values()}
    if states <= {State.MADE, State.DONE}:
        return "applied"
    return "not applied" if states == {State.PENDING} else "refused" if states == {State.REJECTED} else "mixed"
