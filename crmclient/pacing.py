"""Never faster than the vendor allows, in any window, counted where the requests arrive.

Stamping a turn when it is given is not enough: the first request waits for a connection, leaves 50 to 100 ms late, and the
eighth lands inside its second. So a turn is booked, the session says when the request has left (``sent``), and a turn
that was given and has not left yet counts as leaving now, whenever now is.

Nor is the moment of leaving the moment of arrival. What is known of that is the time until the answer (``answered``): of
what it took longer than the fastest of late, all may have been spent on the way there, and nobody can tell, so the turn
counts as so much later. A request that left afterwards cannot have been faster than the fastest. This holds whatever the
network, the server and our own event loop do; where it would cost more than a few percent, a bounded part is kept.
"""

import asyncio
import json
import logging
import os
import random
import re
import struct
import zlib
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar
from weakref import WeakKeyDictionary
from weakref import ref as weakref

import anyio
from attrs import define, field, frozen

from crmclient.clock import Clock
from crmclient.dialect import Rate
from crmclient.errors import Banned, Misconfigured

T = TypeVar("T")

_log = logging.getLogger("crmclient.pacing")

# Seconds kept off each window, always: the fastest of late may not be the fastest of all.
MARGIN: Final = 0.005
# What of it late arrivals may use up; the rest is for clocks that do not agree how long a second is.
COVERED: Final = 0.004
# A request that is not answered yet may arrive later than it left by so much more than the next one: with the margin
# 30 ms, which held 0 violations at a one-way jitter of 50 ms.
DOUBT: Final = 0.025
# After a 429 the margin is at least this, doubles with every further one up to a tenth of the window, and goes back.
WIDER, WIDEST_SHARE, HALF_LIFE = 0.030, 0.1, 120.0
# What late arrivals may cost in the long run, as a share of the shortest window, and what may be saved up of it: a server
# that takes now 20, now 500 ms costs 3 % of the limit, not a third, and may see an eighth when it was the way that did.
ALLOWED_SHARE, SAVED_UP = 0.030, 1.0
# The fastest answer is remembered for one to two of these, and trusted once there were so many; the fewer
# they are and the more they differ, the faster one may yet come: by so many times their spread, divided by their number.
MEMORY, TRUSTED, UNSURE = 60.0, 14, 15.0
# Until then all of the time until an answer may have been the way there; what counts of it, as a share of the window.
UNKNOWN = 0.06
# Without a wish of the server's: 1, 2, 4 … and no longer. With one: no longer than an hour, whatever is asked.
LONGEST_BACKOFF, LONGEST_PAUSE = 60.0, 3600.0
# A ban outlives the process that was told of it: those who start within the hour ask nobody.
BAN_LASTS = 3600.0
# A place in line is kept so long for one who was called and did not come: it is blocked, or dead.
GRACE = 0.05
# A turn that has not left after so long never will: no exchange lasts longer.
LOST = 120.0


class Turn(Protocol):
    """Leave to send one request."""

    def sent(self) -> None:
        """The request has left; called again, it left later than was thought."""
        ...

    def answered(self) -> None:
        """The head of an answer is here."""
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

    async def turn(self) -> Turn:
        """Wait for a turn. Raises Banned."""
        ...

    def pause(self, seconds: float | None) -> float:
        """The server said that it was too much. Nobody is sent for so long, and then one to try; None: it is ours to say.

        Gives the seconds it will be, from now.
        """
        ...

    def ban(self, error: Banned) -> None:
        """Nobody is sent any more."""
        ...


class Pacers(Protocol):
    """Where the pacer of an account comes from."""

    def of(self, account: str, rates: Sequence[Rate], clock: Clock) -> Pacer: ...


# ------------------------------------------------------------------------------------------------------------- the line

_BULK: ContextVar[bool] = ContextVar("crmclient_bulk", default=False)
# While both wait, so many of the others go before one of these does: bulk is slowed down, not starved.
_BEFORE_BULK = 3


@contextmanager
def bulk() -> Generator[None]:
    """Calls made in this block let others go first: for a big job on an account that people wait for at the same time."""
    token = _BULK.set(True)
    try:
        yield
    finally:
        _BULK.reset(token)


class Line:
    """Room for so many at once: first come, first served, and those in ``bulk()`` behind the others.

    Whoever is cancelled takes no room with it.
    """

    def __init__(self, room: int = 1) -> None:
        self._room = room
        self._lanes: tuple[deque[asyncio.Future[None]], deque[asyncio.Future[None]]] = (deque(), deque())
        self._passed = 0

    async def acquire(self) -> None:
        if self._room > 0:
            self._room -= 1
            return
        lane = self._lanes[_BULK.get()]
        place = asyncio.get_running_loop().create_future()
        lane.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place in lane:
                lane.remove(place)
            if not place.cancelled():
                self.release()  # it was called up just as it left
            raise

    def release(self) -> None:
        while any(self._lanes):
            others, in_bulk = self._lanes
            if others and (not in_bulk or self._passed < _BEFORE_BULK):
                lane, self._passed = others, self._passed + 1 if in_bulk else 0
            else:
                lane, self._passed = in_bulk, 0
            place = lane.popleft()
            if not place.done():
                place.set_result(None)
                return
        self._room += 1


# ------------------------------------------------------------------------------------------------------------- the book


@define(eq=False)
class Booked:
    """One turn: when it was given, when its request left, and how much later than the fastest it may have arrived."""

    number: int
    owner: str
    given: float
    sent: float | None = None
    late: float | None = None

    def arrived(self, doubt: float) -> float:
        """When it counts as having arrived; with no answer yet, so much after it left."""
        assert self.sent is not None  # noqa: S101
        return self.sent + (doubt if self.late is None else self.late)


@define(eq=False)
class Fastest:
    """The answers of one stretch of time: since when, how many, how long in all, and the fastest."""

    since: float = 0.0
    count: int = 0
    total: float = 0.0
    least: float = 0.0

    def seen(self, took: float) -> None:
        self.least = took if not self.count else min(self.least, took)
        self.count, self.total = self.count + 1, self.total + took


@define(eq=False)
class Book:
    """What is known of everybody who shares one account's limits: plain data, and what follows from it.

    It waits for nobody and asks no clock; times are seconds that never go back. All who use it may use other rates.
    """

    turns: list[Booked] = field(factory=list[Booked])
    # Who stands in line, in order, and until when the place is kept.
    line: dict[str, float] = field(factory=dict[str, float])
    count: int = 0
    # The longest window of all who use the book.
    keep: float = 0.0
    not_before: float = 0.0
    # After a pause one goes to try, and the rest when that is known.
    trying: bool = False
    trial: tuple[int, str, float] | None = None
    strikes: int = 0
    wider: float = 0.0
    wider_since: float = 0.0
    saved: float | None = None
    now_fastest: Fastest = field(factory=Fastest)
    then_fastest: Fastest = field(factory=Fastest)
    banned: dict[str, Any] | None = None
    banned_until: float = 0.0

    # -- turns

    def turn(
        self, owner: str, now: float, rates: Sequence[Rate], alive: Callable[[str], bool]
    ) -> Booked | Banned | float | None:
        """A turn; or when to ask again; or None: when there is news. Or the ban."""
        if self.banned is not None and now < self.banned_until:
            return Banned(**self.banned)
        self._forget(now, rates, alive)
        ahead = 0
        for other, kept in self.line.items():
            if other == owner:
                break
            ahead += kept >= now
        when = self._when(now, rates, ahead)
        if when is not None and when <= now:
            self.line.pop(owner, None)
            booked = Booked(self.count, owner, now)
            self.count += 1
            self.turns.append(booked)
            if self.trying:
                self.trial = (booked.number, owner, now)
            return booked
        self.line[owner] = (now + 2 * GRACE if when is None else when) + GRACE
        return when

    def _when(self, now: float, rates: Sequence[Rate], ahead: int) -> float | None:
        if self.trying and self.trial is not None:
            return None
        # What an answer on its way may still better is hoped for: waiting is cheap, and oversleeping is not.
        hoped = surely = self.not_before
        for rate in rates:
            window = rate.seconds + self.margin(rate, now)
            held = [turn for turn in self.turns if turn.sent is None or turn.arrived(DOUBT) > now - window]
            too_many = len(held) - rate.limit + min(ahead, rate.limit - 1)
            if too_many < 0:
                continue
            # Those not sent yet will stand in the window whenever it is; of the others, all but so many must be out.
            sent = [turn for turn in held if turn.sent is not None]
            if too_many >= len(sent):
                return None
            hoped = max(hoped, sorted(turn.arrived(0.0) for turn in sent)[too_many] + window)
            surely = max(surely, sorted(turn.arrived(DOUBT) for turn in sent)[too_many] + window)
        if any(ahead >= rate.limit for rate in rates):
            return max(hoped, now + GRACE / 5)
        return hoped if now < hoped else surely

    def leave(self, owner: str) -> None:
        """Whoever stood in line does so no more."""
        self.line.pop(owner, None)

    def sent(self, booked: Booked, at: float) -> None:
        found = self._found(booked)
        if found is None:
            # It had been given up for lost, or had left long ago: it leaves now.
            found = Booked(booked.number, booked.owner, booked.given)
            self.turns.append(found)
        found.sent, found.late = at, None

    def answered(self, booked: Booked, took: float, now: float, rates: Sequence[Rate]) -> None:
        """An answer came so many seconds after the request had left."""
        window = min((rate.seconds for rate in rates), default=0.0)
        most = SAVED_UP * window
        saved = min(most, (most if self.saved is None else self.saved) + ALLOWED_SHARE * window)
        fastest = self._fastest(took, now)
        late = min(took, UNKNOWN * window) if fastest is None else took - fastest
        late = min(max(0.0, late - COVERED), saved)
        self.saved = saved - late
        found = self._found(booked)
        if found is not None and found.sent is not None:
            found.late = late

    def _fastest(self, took: float, now: float) -> float | None:
        """The fastest that a request and its answer can be; None while that is not known."""
        if now - self.now_fastest.since > MEMORY:
            fresh = now - self.now_fastest.since <= 2 * MEMORY
            self.then_fastest = self.now_fastest if fresh else Fastest()
            self.now_fastest = Fastest(since=now)
        self.now_fastest.seen(took)
        both = [each for each in (self.now_fastest, self.then_fastest) if each.count]
        count, least = sum(each.count for each in both), min(each.least for each in both)
        if count <= TRUSTED:
            # A careful start, and again after a long while of silence.
            return None
        spread = sum(each.total for each in both) / count - least
        return max(0.0, least - UNSURE * spread / count)

    def over(self, booked: Booked, now: float, answered: bool) -> None:
        found = self._found(booked)
        if found is not None and found.sent is None:
            found.sent = now
        if self.trial is not None and self.trial[0] == booked.number:
            self.trial = None
            if answered and now >= self.not_before:
                self.trying, self.strikes = False, 0

    def _found(self, booked: Booked) -> Booked | None:
        return next((turn for turn in reversed(self.turns) if turn.number == booked.number), None)

    def _forget(self, now: float, rates: Sequence[Rate], alive: Callable[[str], bool]) -> None:
        self.keep = max(self.keep, max((rate.seconds for rate in rates), default=0.0))
        for turn in self.turns:
            # Who was killed may have sent until the moment it was killed.
            if turn.sent is None and (now - turn.given > LOST or (now - turn.given > GRACE and not alive(turn.owner))):
                turn.sent = now
        if self.trial is not None and (now - self.trial[2] > LOST or not alive(self.trial[1])):
            self.trial = None
        window = self.keep * (1 + WIDEST_SHARE)
        self.turns[:] = [turn for turn in self.turns if turn.sent is None or turn.arrived(DOUBT) > now - window]
        for owner in [owner for owner, kept in self.line.items() if now - kept > 1]:
            del self.line[owner]

    def at_rest(self, now: float) -> bool:
        """Whether nothing in it matters any more to anybody who comes."""
        window = self.keep * (1 + WIDEST_SHARE)
        busy = any(turn.sent is None or turn.arrived(DOUBT) > now - window for turn in self.turns)
        wary = self.wider > 0 and now - self.wider_since < 5 * HALF_LIFE
        banned = self.banned is not None and now < self.banned_until
        return not (busy or wary or banned or now < self.not_before)

    # -- too much

    def margin(self, rate: Rate, now: float) -> float:
        """Seconds kept off the window."""
        wider = self.wider * 0.5 ** ((now - self.wider_since) / HALF_LIFE) if self.wider else 0.0
        return min(WIDEST_SHARE * rate.seconds, MARGIN + wider)

    def pause(self, seconds: float | None, now: float, chance: float) -> float:
        """Nobody before that, and then one to try. ``chance`` in [0, 1) keeps those who share no book from coming as one."""
        if now >= self.not_before:
            # The first of those that were under way together; the others tell nothing new.
            self.strikes += 1
            before = self.wider * 0.5 ** ((now - self.wider_since) / HALF_LIFE)
            self.wider, self.wider_since = max(WIDER, 2 * (MARGIN + before)) - MARGIN, now
        least = min(LONGEST_BACKOFF, 2.0 ** (min(self.strikes, 10) - 1)) if seconds is None else seconds
        # At least a second, as the shortest window is one.
        asked = min(max(1.0, least), LONGEST_PAUSE)
        self.not_before = max(self.not_before, now + asked + chance * min(1.0, 0.1 * asked))
        self.trying, self.trial = True, None
        return self.not_before - now

    def ban(self, error: Banned, now: float) -> None:
        told = {name: getattr(error, name) for name in ("message", "status", "request_id", "code", "detail")}
        self.banned, self.banned_until = told, now + BAN_LASTS

    # -- on paper

    def tree(self) -> dict[str, Any]:
        told = {name: getattr(self, name) for name in _PLAIN}
        told["turns"] = [[turn.number, turn.owner, turn.given, turn.sent, turn.late] for turn in self.turns]
        for name in _STRETCHES:
            each: Fastest = getattr(self, name)
            told[name] = [each.since, each.count, each.total, each.least]
        return told

    @classmethod
    def read(cls, tree: dict[str, Any], later: float) -> "Book":
        """The book of a tree, its times so many seconds later: a machine that starts counts its seconds anew."""
        made = cls(**{name: tree[name] for name in _PLAIN})
        for number, owner, given, sent, late in tree["turns"]:
            made.turns.append(Booked(number, owner, given + later, None if sent is None else sent + later, late))
        for name in _STRETCHES:
            since, *rest = tree[name]
            setattr(made, name, Fastest(since + later, *rest))
        made.line = {owner: kept + later for owner, kept in made.line.items()}
        made.trial = None if made.trial is None else (made.trial[0], made.trial[1], made.trial[2] + later)
        for name in ("not_before", "wider_since", "banned_until"):
            setattr(made, name, getattr(made, name) + later)
        return made


_STRETCHES = ("now_fastest", "then_fastest")
_PLAIN = (
    *("line", "count", "keep", "not_before", "trying", "trial", "strikes", "wider", "wider_since", "saved"),
    *("banned", "banned_until"),
)


# ------------------------------------------------------------------------------------------------------------ the pacers


class Shelf(Protocol):
    """Where a book is kept."""

    async def ask(self, change: Callable[[Book], T]) -> T:
        """What comes of a change, once the book is to be had."""
        ...

    def tell(self, change: Callable[[Book], T]) -> T | None:
        """Change the book now, or as soon as it is to be had; then there is no answer."""
        ...

    async def news(self, asked: int) -> None:
        """Wait until the book may have changed, having asked so often in vain."""
        ...

    def alive(self, owner: str) -> bool:
        """Whether somebody who uses the book can still do so."""
        ...


@define(eq=False)
class InMemory:
    """A book of this process's own."""

    book: Book = field(factory=Book)
    _news: anyio.Event | None = field(init=False, default=None)

    async def ask(self, change: Callable[[Book], T]) -> T:
        return change(self.book)

    def tell(self, change: Callable[[Book], T]) -> T:
        told = change(self.book)
        if self._news is not None:
            self._news.set()
            self._news = None
        return told

    async def news(self, asked: int) -> None:
        self._news = self._news or anyio.Event()
        await self._news.wait()

    def alive(self, owner: str) -> bool:
        return True


@define(eq=False)
class _Turn:
    pacer: "LocalPacer"
    booked: Booked
    at: float | None = None
    was_answered: bool = False

    def sent(self) -> None:
        at = self.at = self.pacer.clock.monotonic()
        self.pacer.shelf.tell(lambda book: book.sent(self.booked, at))

    def answered(self) -> None:
        self.was_answered = True
        if self.at is not None:
            now = self.pacer.clock.monotonic()
            took, rates = now - self.at, self.pacer.rates
            self.pacer.shelf.tell(lambda book: book.answered(self.booked, took, now, rates))

    def over(self) -> None:
        now = self.pacer.clock.monotonic()
        self.pacer.shelf.tell(lambda book: book.over(self.booked, now, self.was_answered))


@define(eq=False)
class LocalPacer:
    """The pacer of one account in one process and event loop; with another's book on its shelf, one of several."""

    rates: Sequence[Rate]
    clock: Clock
    chance: Callable[[], float] = random.random
    shelf: Shelf = field(factory=InMemory)
    owner: str = ""
    _line: Line = field(init=False, factory=Line)
    _banned: Banned | None = field(init=False, default=None)

    @property
    def interval(self) -> float:
        return max((rate.seconds / rate.limit for rate in self.rates), default=0.0)

    async def turn(self) -> Turn:
        await self._line.acquire()
        try:
            return _Turn(self, await self._booked())
        except BaseException:
            self.shelf.tell(lambda book: book.leave(self.owner))
            raise
        finally:
            self._line.release()

    async def _booked(self) -> Booked:
        in_vain = 0
        while True:
            if self._banned is not None:
                raise self._banned.again()
            found = await self.shelf.ask(
                lambda book: book.turn(self.owner, self.clock.monotonic(), self.rates, self.shelf.alive)
            )
            if isinstance(found, Booked):
                return found
            if isinstance(found, Banned):
                self._banned = found
            elif found is None:
                in_vain += 1
                await self.shelf.news(in_vain)
            else:
                # Not longer at once: a ban may come, or a pause.
                await self.clock.sleep(min(1.0, found - self.clock.monotonic()))

    def pause(self, seconds: float | None) -> float:
        now, chance = self.clock.monotonic(), self.chance()
        told = self.shelf.tell(lambda book: book.pause(seconds, now, chance))
        return max(1.0, seconds or 0.0) if told is None else told

    def ban(self, error: Banned) -> None:
        self._banned = error
        now = self.clock.monotonic()
        self.shelf.tell(lambda book: book.ban(error, now))


@define(eq=False)
class _Shared:
    """One account's book, the pacer that goes by it while anybody holds it, and the event loop that one belongs to."""

    book: Book
    loop: "weakref[asyncio.AbstractEventLoop]"
    pacer: "weakref[LocalPacer]"


class SharedPacers:
    """One pacer an account in this process: two clients of one account share its limits without being told.

    A client that comes after the other has gone, in a later event loop even, finds what that one left in the window, its
    pause and its ban. Two loops at once share nothing: that is what FilePacer is for.
    """

    def __init__(self) -> None:
        self._kept: WeakKeyDictionary[Clock, dict[tuple[object, ...], list[_Shared]]] = WeakKeyDictionary()

    def of(self, account: str, rates: Sequence[Rate], clock: Clock) -> LocalPacer:
        loop, kept = asyncio.get_running_loop(), self._kept.setdefault(clock, {})
        self._forget(kept, clock.monotonic())
        shared = kept.setdefault((account, tuple(rates)), [])
        mine = next((each for each in shared if each.loop() is loop), None)
        if mine is None:
            mine = next((each for each in shared if (other := each.loop()) is None or other.is_closed()), None)
        pacer = mine.pacer() if mine is not None and mine.loop() is loop else None
        if pacer is None:
            # Not the old one: a line of one event loop cannot be stood in from another.
            book = Book() if mine is None else mine.book
            pacer = LocalPacer(rates, clock, shelf=InMemory(book))
            if mine is not None:
                shared.remove(mine)
            shared.append(_Shared(book, weakref(loop), weakref(pacer)))
        return pacer

    def _forget(self, kept: dict[tuple[object, ...], list[_Shared]], now: float) -> None:
        for key, shared in [*kept.items()]:
            shared[:] = [each for each in shared if each.pacer() is not None or not each.book.at_rest(now)]
            if not shared:
                del kept[key]


SHARED_PACERS = SharedPacers()


# --------------------------------------------------------------------------------------------- several processes, one host


@frozen
class FilePacer:
    """The pacers of the accounts used on this host: processes that name the same folder share each account's limits.

    One small file an account, for this user only. Nobody blocks on its lock; a process that is killed takes neither the
    lock nor, for long, a turn with it. A ban is kept for an hour: whoever starts within it is told and sends nothing;
    remove the file once the vendor has lifted it. The folder has to be on a disk of this host, not on NFS.
    """

    folder: Path = field(converter=lambda given: Path(given).expanduser())

    def of(self, account: str, rates: Sequence[Rate], clock: Clock) -> LocalPacer:
        file = self.folder / (re.sub(r"[^A-Za-z0-9._-]", "_", account) + ".pace")
        window = max((rate.seconds for rate in rates), default=0.0)
        return LocalPacer(rates, clock, shelf=OnDisk(file, clock, window), owner=f"{os.getpid()}:{os.urandom(4).hex()}")


_HEAD = struct.Struct("<II")
_HALF = 1 << 18
_POLL = 0.002
_NEWS = 0.010


@define(eq=False)
class OnDisk:
    """A book in a file, changed under the file's lock, which dies with its holder.

    It is written twice over, in turn, each time with its length and checksum: a write that was cut short leaves the page
    before it, and whoever was cut short had not been told that it has a turn.
    """

    file: Path
    clock: Clock
    window: float
    _owed: deque[Callable[[Book], Any]] = field(init=False, factory=deque[Callable[[Book], Any]])
    _paying: asyncio.Task[None] | None = field(init=False, default=None)

    async def ask(self, change: Callable[[Book], T]) -> T:
        while True:
            with self._locked() as handle:
                if handle is not None:
                    return self._changed(handle, change)
            await self.clock.sleep(_POLL)

    def tell(self, change: Callable[[Book], T]) -> T | None:
        # In order: what is owed comes first.
        try:
            with self._locked() as handle:
                if handle is not None:
                    return self._changed(handle, change)
        except Misconfigured as wrong:
            # The exchange goes on; whoever asks next is told.
            _log.error("%s", wrong.message)
        self._owed.append(change)
        if self._paying is None or self._paying.done():
            self._paying = asyncio.get_running_loop().create_task(self._pay())
        return None

    async def _pay(self) -> None:
        try:
            while self._owed:
                await self.ask(lambda book: None)
        except Misconfigured as wrong:
            _log.error("%s", wrong.message)

    async def news(self, asked: int) -> None:
        await self.clock.sleep(min(_NEWS * asked, 2 * GRACE))

    def alive(self, owner: str) -> bool:
        try:
            os.kill(int(owner.partition(":")[0]), 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True

    @contextmanager
    def _locked(self) -> Generator[int | None]:
        """The file, opened and locked; None while somebody else has it. Raises Misconfigured."""
        import fcntl

        how = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            try:
                handle = os.open(self.file, how, 0o600)
            except FileNotFoundError:
                self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                handle = os.open(self.file, how, 0o600)
        except OSError as wrong:
            raise Misconfigured(f"the pace cannot be kept in {self.file}: {wrong.strerror}") from None
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Somebody removed it between the two: what is locked is nobody's.
                free = os.fstat(handle).st_nlink > 0
            except BlockingIOError:
                free = False
            except OSError as wrong:
                raise Misconfigured(f"{self.file} cannot be locked: {wrong.strerror}") from None
            yield handle if free else None
        finally:
            os.close(handle)

    def _changed(self, handle: int, change: Callable[[Book], T]) -> T:
        try:
            count, half, book = self._read(handle)
            while self._owed:
                self._owed.popleft()(book)
            told = change(book)
            self._write(handle, count, half, book)
        except OSError as wrong:
            raise Misconfigured(f"the pace cannot be kept in {self.file}: {wrong.strerror}") from None
        return told

    def _read(self, handle: int) -> tuple[int, int, Book]:
        """How often it was written, in which half last, and the book."""
        if os.fstat(handle).st_size == 0:
            return 0, 1, Book()
        now = self.clock.monotonic()
        try:
            pages = [(half, page) for half in (0, 1) if (page := _page(handle, half)) is not None]
            half, page = max(pages, key=lambda found: found[1]["count"])
            later = 0.0
            if page["boot"] != _boot() or now < page["monotonic"]:
                passed = max(0.0, self.clock.now().timestamp() - page["wall"])
                later = now - passed - page["monotonic"]
            return page["count"], half, Book.read(page["book"], later)
        except (LookupError, TypeError, ValueError):
            _log.warning("%s is damaged: the pace begins anew, as if the limit had just been used up", self.file)
            return 0, 1, Book(not_before=now + self.window)

    def _write(self, handle: int, count: int, half: int, book: Book) -> None:
        now, wall = self.clock.monotonic(), self.clock.now().timestamp()
        page = {"count": count + 1, "boot": _boot(), "monotonic": now, "wall": wall, "book": book.tree()}
        body = json.dumps(page, separators=(",", ":")).encode()
        if len(body) + _HEAD.size > _HALF:
            raise Misconfigured(f"{self.file}: too many requests a window to keep in a file")
        os.pwrite(handle, _HEAD.pack(len(body), zlib.crc32(body)) + body, (1 - half) * _HALF)


def _page(handle: int, half: int) -> Any:
    """What one half of the file holds, if it is whole."""
    head = os.pread(handle, _HEAD.size, half * _HALF)
    if len(head) < _HEAD.size:
        return None
    length, checksum = _HEAD.unpack(head)
    body = os.pread(handle, min(length, _HALF), half * _HALF + _HEAD.size)
    return json.loads(body) if body and len(body) == length and zlib.crc32(body) == checksum else None


@cache
def _boot() -> str:
    """Which start of the machine this is: its monotonic seconds mean nothing in the next."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
