"""The creates of a move: each written down before it is sent, sent once, and what came of it written down."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from attrs import evolve

from crmclient import flows
from crmclient.dialect import Flow, Made, Need, NotApplied, Receipt, Refused
from crmclient.entities import Id
from crmclient.errors import Invalid, NotFound, Rejected
from crmclient.migration.doubts import Doubts, outcome
from crmclient.migration.finishing import Finishing
from crmclient.migration.ledger import Settled, State
from crmclient.migration.matching import MOVED
from crmclient.migration.move import Move
from crmclient.migration.queue import Queue, Ready
from crmclient.migration.translation import folded


class Sending:
    def __init__(self, move: Move, queue: Queue, finishing: Finishing, doubts: Doubts) -> None:
        self._move, self._queue, self._finishing, self._doubts = move, queue, finishing, doubts
        self.sent = 0
        """Rows whose answer told what became of them."""

    async def send(self, kind: str, ready: Sequence[Ready]) -> None:
        """One request."""
        move, rows, begun = self._move, {each.source: each for each in ready}, self._move.clock.monotonic()
        spoken, sent = move.target.dialect, [each.sent for each in ready]
        at = await move.target.run(_server_time())
        batch = move.ledger.intend(kind, list(rows), move.watermarks[kind], at, sent)
        move.count(kind, State.PENDING, State.INTENT, len(rows))
        making = flows.create_many(spoken, MOVED[kind], sent, batch=len(sent), finish=False, quiet=True)
        receipts = dict(zip(rows, await move.target.run(making), strict=True))
        became, again, certain = self._told(kind, rows, receipts)
        unknown = {source: each for source, each in rows.items() if source not in became}
        move.ledger.settle(batch, became, None if unknown else outcome(became), certain=certain)
        for source, told in became.items():
            move.count(kind, State.INTENT, told.state, 1)
            self.sent += told.state is not State.PENDING
            self._queue.release(kind, [rows[source]])
            self._finishing.finish(kind, source, told)
            move.saw(kind, told.target)
        self._queue.send_again(kind, again)
        if unknown:
            move.tell(said=f"{len(unknown)} {kind} may or may not have been made: looking for them")
            self._doubts.look_into(evolve(batch, sources=tuple(unknown), certain=certain), unknown)
        move.tell()
        await move.heed(kind, list(receipts.values()), begun)

    def _told(
        self, kind: str, rows: Mapping[Id, Ready], receipts: Mapping[Id, Receipt[Any]]
    ) -> tuple[dict[Id, Settled], list[list[Id]], bool]:
        """What the receipts say of each row; who goes again with whom; and whether rows were made that nobody can name."""
        ledger = self._move.ledger
        became: dict[Id, Settled] = {}
        again: list[Id] = []
        refused, certain = False, False
        for source, receipt in receipts.items():
            if isinstance(receipt, Made):
                if receipt.id is None:
                    certain = True
                    continue
                made = self._finishing.settled(kind, rows[source], receipt.id)
                told = [*map(str, receipt.issues), *filter(None, [made.error])]
                if folded(rows[source].there.row) is not None and folded(rows[source].sent) is None:
                    told.append("it went as a text: as it is, it was refused")
                became[source] = evolve(made, error="; ".join(told) or None)
            elif isinstance(receipt, Refused):
                if folded(rows[source].sent) is not None and ledger.mapped(f"text {kind}", source) is None:
                    # A call may lack what makes it one there; what it says goes as a text.
                    ledger.learn(f"text {kind}", source, 1, str(receipt.error))
                    became[source] = Settled(state=State.PENDING, struck=True)
                    again.append(source)
                else:
                    became[source] = Settled(state=State.REJECTED, error=str(receipt.error))
            elif isinstance(receipt, NotApplied) and isinstance(receipt.error, Invalid) and len(rows) == 1:
                became[source] = Settled(state=State.REJECTED, error=str(receipt.error), struck=True)
            elif isinstance(receipt, NotApplied):
                became[source] = Settled(state=State.PENDING, error=str(receipt.error), struck=True)
                refused = refused or isinstance(receipt.error, Rejected | NotFound | Invalid)
                again.append(source)
        if not refused or len(again) < 2:
            return became, [again], certain
        # The request was refused and no row was named: whose fault it is shows in halves.
        half = len(again) // 2
        return became, [again[:half], again[half:]], certain


def _server_time() -> Flow[datetime]:
    """What the server calls now."""
    context = yield Need()
    return context.now
