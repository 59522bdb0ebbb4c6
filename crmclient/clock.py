"""Time is a value passed in: what waits or dates anything is handed a Clock.

``monotonic()`` is for waiting and never goes back; ``now()`` is for what people and servers call the time and may jump.
"""

import heapq
import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

import anyio
import anyio.lowlevel
from attrs import define, field


class Clock(Protocol):
    """What the session, the pacer, the keeper and the sandboxes know of time."""

    def monotonic(self) -> float:
        """Seconds from an arbitrary start; never goes back."""
        ...

    def now(self) -> datetime:
        """The wall clock, aware, UTC."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait; zero or less only lets others run."""
        ...


class SystemClock:
    """The machine's own time."""

    def monotonic(self) -> float:
        return time.monotonic()

    def now(self) -> datetime:
        return datetime.now(UTC)

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(max(0.0, seconds))


SYSTEM_CLOCK = SystemClock()
"""The one clock of those who were given none: they share what is kept by the clock, an account's pace say."""


class FakeClock:
    """Time for tests: it stands still while anybody works and jumps to the next sleeper once everybody waits.

    ``idle`` is how many turns of the event loop must pass without a new sleeper before everybody counts as waiting;
    it only has to exceed the longest chain of bare ``await``s between two sleeps. Who sleeps for no time is at work.
    """

    def __init__(self, start: datetime = datetime(2026, 3, 20, 10, 15, tzinfo=UTC), *, idle: int = 100) -> None:
        self._start = start
        self._elapsed = 0.0
        self._skew = timedelta()
        self._idle = idle
        self._sleepers: list[_Sleeper] = []
        self._count = 0

    def monotonic(self) -> float:
        return self._elapsed

    def now(self) -> datetime:
        return self._start + timedelta(seconds=self._elapsed) + self._skew

    def advance(self, seconds: float) -> None:
        """Let time pass without anybody sleeping."""
        self._elapsed += seconds
        self._wake()

    def step(self, by: timedelta) -> None:
        """Move the wall clock only, as NTP or a person does."""
        self._skew += by

    async def sleep(self, seconds: float) -> None:
        self._count += 1
        if seconds <= 0:
            await anyio.lowlevel.checkpoint()
            return
        sleeper = _Sleeper(self._elapsed + seconds, self._count)
        heapq.heappush(self._sleepers, sleeper)
        try:
            while not sleeper.woken:
                if self._sleepers[0] is not sleeper:
                    # Only the next to wake watches whether anybody works.
                    sleeper.stirred = anyio.Event()
                    await sleeper.stirred.wait()
                    continue
                seen = self._count
                for _ in range(self._idle):
                    await anyio.lowlevel.checkpoint()
                    if sleeper.woken or self._count != seen:
                        break
                else:
                    self._elapsed = max(self._elapsed, sleeper.at)
                    self._wake()
        finally:
            if not sleeper.woken:
                self._sleepers.remove(sleeper)
                heapq.heapify(self._sleepers)
                self._stir()

    def _wake(self) -> None:
        while self._sleepers and self._sleepers[0].at <= self._elapsed:
            sleeper = heapq.heappop(self._sleepers)
            sleeper.woken = True
            sleeper.stirred.set()
            # Who is woken has something to do now: the others count their idle turns anew.
            self._count += 1
        self._stir()

    def _stir(self) -> None:
        if self._sleepers:
            self._sleepers[0].stirred.set()


@define(order=True)
class _Sleeper:
    at: float
    number: int
    woken: bool = field(default=False, order=False)
    stirred: anyio.Event = field(factory=anyio.Event, order=False)
