"""A move while it runs: both sides, its ledger, how it stands, and whether it has to stop. All that work on it share it."""

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar
from uuid import uuid4

from attrs import frozen

from crmclient.client import Client
from crmclient.clock import Clock
from crmclient.dialect import Flow, Made, NotApplied, Receipt, Unknown
from crmclient.entities import Id
from crmclient.errors import (
    AmbiguousWrite,
    Banned,
    CRMError,
    IncompleteRead,
    Invalid,
    NotFound,
    PartlyDone,
    RateLimited,
    Rejected,
    TransportError,
    Unavailable,
    Unreadable,
    Unsupported,
)
from crmclient.migration.ledger import Ledger, Run, State
from crmclient.migration.plan import Plan, to_toml

T = TypeVar("T")

# What passes by itself, so that trying again later helps.
PASSING: Final = (TransportError, Unavailable, RateLimited, Unreadable)
# What is wrong with a row, or with one of its request: it is told, and the others go on.
OF_THE_ROW: Final = (Rejected, NotFound, Invalid, Unsupported, IncompleteRead, PartlyDone)
# So many failures in a row without one success are no accident any more.
TRIES: Final = 6
# After so many rows that are computed others have their turn.
TURN: Final = 10


@frozen(kw_only=True)
class Event:
    """How a move stands. ``phase`` is ``words``, ``moving``, ``verifying`` or ``ended``; ``read`` and ``counts`` are by
    kind; ``requests`` are those that this run has spent on the source and the target; ``said`` is worth a line.
    ``waits_for`` is what nobody can know before ``until``: ``40 rows in doubt``, say.
    """

    phase: str
    read: Mapping[str, int]
    counts: Mapping[str, Mapping[State, int]]
    requests: tuple[int, int]
    said: str | None = None
    waits_for: str | None = None
    until: datetime | None = None


@frozen(eq=False)
class _Quarantine:
    """So many rows, or whatever it is, are in doubt until then."""

    number: int
    what: str
    until: datetime


class Move:
    """What is read from ``source`` and written to ``target`` by a plan. ``died``: whoever ran it before did not stop it."""

    def __init__(self, source: Client, target: Client, plan: Plan, ledger: Ledger, clock: Clock) -> None:
        self.source, self.target, self.plan, self.ledger, self.clock = source, target, plan, ledger, clock
        self.stopping = self.died = False
        self.unsure = False
        """Something was sent of which nobody knows what became, and no open request in the ledger says so."""
        self.failure: CRMError | None = None
        self.events: deque[Event] = deque(maxlen=1000)
        self.news = asyncio.Event()
        self.changed = asyncio.Event()
        self.read: Counter[str] = Counter()
        self.counts: dict[str, Counter[State]] = {}
        self.watermarks: dict[str, int] = {}
        self.group: asyncio.TaskGroup | None = None
        self.beside = 0
        """How many are at work beside the lanes."""
        self._halting = asyncio.Event()
        self._phase = "words"
        self._before = source.spent.requests, target.spent.requests
        self._quarantined: list[_Quarantine] = []
        self._failures: Counter[str] = Counter()
        self._failed_at: dict[str, float] = {}
        self._arrived: dict[str, float] = {}

    # ------------------------------------------------------------------------------------------------- how it stands

    @property
    def spent(self) -> tuple[int, int]:
        """Requests that this run has spent on the source and on the target."""
        return self.source.spent.requests - self._before[0], self.target.spent.requests - self._before[1]

    def tell(self, phase: str | None = None, said: str | None = None) -> None:
        self._phase = phase or self._phase
        counts = {kind: Counter(each) for kind, each in self.counts.items()}
        waits = max(self._quarantined, key=lambda each: each.until, default=None)
        doubtful = sum(each.number for each in self._quarantined)
        self.events.append(
            Event(
                phase=self._phase,
                read=dict(self.read),
                counts=counts,
                requests=self.spent,
                said=said,
                waits_for=f"{doubtful} {waits.what} in doubt" if waits is not None else None,
                until=waits.until if waits is not None else None,
            )
        )
        self.news.set()

    def wake(self) -> None:
        self.changed.set()

    def count(self, kind: str, before: State, after: State, number: int) -> None:
        counts = self.counts.setdefault(kind, Counter())
        counts[before] -= number
        counts[after] += number

    def saw(self, kind: str, target: Id | None) -> None:
        """A row of the target is there: what is sent from now on comes after it."""
        if isinstance(target, int):
            self.watermarks[kind] = max(self.watermarks[kind], target)

    # ------------------------------------------------------------------------------------------------------- stopping

    def stop(self) -> None:
        self.stopping = True
        self._halt()

    def fail(self, error: CRMError) -> None:
        if self.failure is None:
            self.failure = error
        self._halt()

    def _halt(self) -> None:
        self._halting.set()
        self.wake()

    @property
    def halted(self) -> bool:
        return self._halting.is_set()

    async def unless_halted(self, work: Coroutine[Any, Any, T]) -> T | None:
        """What only reads, or waits, is left where it stands when everything else stops."""
        doing, halting = asyncio.ensure_future(work), asyncio.ensure_future(self._halting.wait())
        try:
            await asyncio.wait((doing, halting), return_when=asyncio.FIRST_COMPLETED)
            return doing.result() if doing.done() else None
        finally:
            doing.cancel()
            halting.cancel()
            await asyncio.gather(doing, halting, return_exceptions=True)

    async def guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        """Whatever cannot go on stops everything else where it is safe to stop."""
        try:
            await work()
        except CRMError as error:
            self.fail(error)
        finally:
            self.wake()

    def later(self, work: Callable[[], Awaitable[None]]) -> None:
        """Beside the lanes, which are for what can be done now."""
        assert self.group is not None  # noqa: S101  lanes run in it
        self.beside += 1

        async def waiting() -> None:
            try:
                await work()
            finally:
                self.beside -= 1

        self.group.create_task(self.guarded(waiting))

    # -------------------------------------------------------------------------------------------------------- waiting

    async def pause(self, seconds: float) -> None:
        """Wait, but not while everything else has stopped."""
        until = self.clock.monotonic() + seconds
        # A loop may wake whoever sleeps a little early.
        while not self.halted and (left := until - self.clock.monotonic()) > 0:
            await self.unless_halted(self.clock.sleep(left))

    async def quarantine(self, number: int, what: str, seconds: float | None = None) -> None:
        """Wait until nobody can be working on something any longer, and let it be seen how long that is."""
        seconds = self.plan.quarantine if seconds is None else seconds
        if seconds <= 0:
            return
        waiting = _Quarantine(number, what, self.clock.now() + timedelta(seconds=seconds))
        self._quarantined.append(waiting)
        self.tell()
        try:
            await self.pause(seconds)
        finally:
            self._quarantined.remove(waiting)
            self.tell()

    async def patiently(self, looking: Callable[[], Flow[T]]) -> T:
        """Reading harms nobody: what fails in passing is read again a little later, so often and no more."""
        failures = 0
        while True:
            try:
                return await self.target.run(looking())
            except PASSING as error:
                failures += 1
                if failures == TRIES or self.halted:
                    raise
                wait = getattr(error, "after", None) or float(2**failures)
                self.tell(said=f"{error.message}: looking again in {wait:g} s")
                await self.pause(wait)

    def backoff(self, what: str) -> float:
        """Seconds to wait after so many failures of something."""
        return float(2 ** self._failures[what])

    def arrived_since(self, kind: str, when: float) -> bool:
        return self._arrived.get(kind, float("-inf")) > when

    async def heed(self, what: str, receipts: Sequence[Receipt[Any]], begun: float) -> None:
        """Whatever was not applied through no fault of its rows: wait, or stop where waiting is no use.

        ``begun`` is when it was sent: what fails together fails once.
        """
        errors = [each.error for each in receipts if isinstance(each, NotApplied | Unknown)]
        for each in errors:
            if isinstance(each, Banned) or not isinstance(each, (*PASSING, AmbiguousWrite, *OF_THE_ROW)):
                raise each
        if any(isinstance(each, Made) for each in receipts):
            self._failures[what], self._arrived[what] = 0, self.clock.monotonic()
        passing = next((each for each in errors if isinstance(each, (*PASSING, AmbiguousWrite))), None)
        if passing is None:
            return
        if begun >= self._failed_at.get(what, float("-inf")):
            self._failures[what] += 1
            self._failed_at[what] = self.clock.monotonic()
        if self._failures[what] >= TRIES:
            raise passing
        if not isinstance(passing, AmbiguousWrite):
            wait = self.backoff(what)
            self.tell(said=f"{passing.message}: trying again in {wait:g} s")
            await self.pause(wait)


def run_of(plan: Plan, clock: Clock) -> Run:
    """What a ledger says first: which move it is of."""
    return Run(
        id=uuid4().hex,
        source=plan.source.address,
        target=plan.target.address,
        plan=to_toml(plan),
        plan_hash=plan.digest,
        caps_hash=f"{plan.source.capabilities} {plan.target.capabilities}",
        started_at=clock.now(),
    )
