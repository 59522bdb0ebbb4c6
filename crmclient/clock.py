"""Time is a value passed in: what waits or dates anything is handed a Clock.

``monotonic()`` is for waiting and never goes back; ``now()`` is for what people and servers call the time and may jump.
"""

import heapq
import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

import anyio
import anyio.lowlevel


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
    it only has to exceed the longest chain of bare ``await``s between two sleeps.
    """

    def __init__(self, start: datetime = datetime(2026, 3, 20, 10, 15, tzinfo=UTC), *, idle: int = 100) -> None:
        self._start = start
        self._elapsed = 0.0
        self._skew = timedelta()
        self._idle = idle
        self._sleepers: list[tuple[float, int, anyio.Event]] = []
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
        if seconds <= 0:
            await anyio.lowlevel.checkpoint()
            return
        self._count += 1
        woken = anyio.Event()
        entry = (self._elapsed + seconds, self._count, woken)
        heapq.heappush(self._sleepers, entry)
        try:
            while not woken.is_set():
                seen = self._count
                for _ in range(self._idle):
                    await anyio.lowlevel.checkpoint()
                    if woken.is_set():
                        return
                if self._count == seen and self._sleepers[0] is entry:
                    self._elapsed = max(self._elapsed, entry[0])
                    self._wake()
        finally:
            if entry in self._sleepers:
                self._sleepers.remove(entry)
                heapq.heapify(self._sleepers)

    def _wake(self) -> None:
        while self._sleepers and self._sleepers[0][0] <= self._elapsed:
            # Whoever wakes now is at work: the others begin anew to wait for everybody to wait.
            self._count += 1
            heapq.heappop(self._sleepers)[2].set()
            # Who is woken has something to do now: the others count their idle turns anew.
            self._count += 1
