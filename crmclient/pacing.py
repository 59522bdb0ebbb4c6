"""Never faster than the vendor allows, in any window, counted where the request really leaves.

Stamping a slot when it is granted is not enough: the first request waits for a connection and arrives 50 to 100 ms late,
and the eighth lands inside its second. So a turn is booked, the session says when the request has left (``sent``), and a
turn that was given and has not left yet counts as leaving now, whenever now is.
"""

import asyncio
from collections.abc import Sequence
from typing import Protocol
from weakref import WeakValueDictionary

import anyio
from attrs import define, field

from crmclient.clock import Clock
from crmclient.dialect import Rate
from crmclient.errors import Banned

# Kept off each window for what the network and the event loop do to a request on its way: 30 ms held 0 violations
# at a one-way jitter of 50 ms and costs 3 % of a second, nothing of a minute.
MARGIN = 0.030


class Turn(Protocol):
    """Leave to send one request."""

    def sent(self) -> None:
        """The request has left; called again, it left later than was thought."""
        ...

    def over(self) -> None:
        """The call ended; if nothing was sent, the turn counts as sent now, to be on the safe side."""
        ...


class Pacer(Protocol):
    """Hands out turns, first come first served."""

    @property
    def interval(self) -> float:
        """Seconds between turns at the steady rate."""
        ...

    async def turn(self) -> Turn: ...
    def pause(self, seconds: float) -> None:
        """Nobody is sent for so long: the server said so."""
        ...

    def ban(self, error: Banned) -> None:
        """Nobody is sent any more."""
        ...


@define(eq=False)
class _Booked:
    clock: Clock
    at: float | None = None
    known: anyio.Event = field(factory=anyio.Event)

    def sent(self) -> None:
        self.at = self.clock.monotonic()
        self.known.set()

    def over(self) -> None:
        if self.at is None:
            self.sent()


@define(eq=False)
class LocalPacer:
    """The pacer of one account in one process: what left when, for each rate, as long as it matters."""

    rates: Sequence[Rate]
    clock: Clock
    margin: float = MARGIN
    _logs: list[list[_Booked]] = field(init=False)
    _line: anyio.Lock = field(init=False, factory=anyio.Lock)
    _not_before: float = field(init=False, default=float("-inf"))
    _banned: Banned | None = field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        self._logs = [[] for _ in self.rates]

    @property
    def interval(self) -> float:
        return max((rate.seconds / rate.limit for rate in self.rates), default=0.0)

    async def turn(self) -> Turn:
        # anyio's lock is fair: first come, first served, and a waiter that is cancelled takes nothing with it.
        async with self._line:
            while True:
                if self._banned is not None:
                    raise self._banned.again()
                wait, blocker = self._wait()
                if blocker is not None:
                    await blocker.known.wait()
                elif wait > 0:
                    await self.clock.sleep(wait)
                else:
                    break
            booked = _Booked(self.clock)
            for log in self._logs:
                log.append(booked)
            return booked

    def _wait(self) -> tuple[float, _Booked | None]:
        """Seconds until a turn may be given; or a turn whose leaving has to be known first."""
        now = self.clock.monotonic()
        ready = self._not_before
        for rate, log in zip(self.rates, self._logs, strict=True):
            window = rate.seconds + self.margin
            log[:] = [turn for turn in log if turn.at is None or turn.at > now - window]
            if len(log) < rate.limit:
                continue
            unsent = [turn for turn in log if turn.at is None]
            if len(unsent) >= rate.limit:
                return 0.0, unsent[0]
            # Those not sent yet will stand in the window whenever it is; of the others, all but so many must be out.
            stamps = sorted(turn.at for turn in log if turn.at is not None)
            ready = max(ready, stamps[len(log) - rate.limit] + window)
        return ready - now, None

    def pause(self, seconds: float) -> None:
        self._not_before = max(self._not_before, self.clock.monotonic() + seconds)

    def ban(self, error: Banned) -> None:
        self._banned = error


# By the loop too: a lock of one event loop cannot be waited for in another.
_shared: WeakValueDictionary[tuple[object, ...], LocalPacer] = WeakValueDictionary()


def shared_pacer(account: str, rates: Sequence[Rate], clock: Clock) -> LocalPacer:
    """The one pacer of an account in this process: two clients of one account share its limit without being told."""
    key = (account, tuple(rates), id(clock), id(asyncio.get_running_loop()))
    found = _shared.get(key)
    if found is None:
        found = _shared[key] = LocalPacer(rates, clock)
    return found
