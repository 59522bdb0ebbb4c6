"""THE ONLY MODULE THAT AWAITS HTTP. It signs a call, waits its turn, sends, has the reply judged and feeds it back.

It names no vendor: what a reply means is the dialect's judge's to say, how a call is signed the scheme's, how fast the
pacer's. Whatever httpx 0.28.1 does not do well is contained here.
"""

import asyncio
import json
import logging
import random
import re
import zlib
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, timedelta, tzinfo
from email.utils import parsedate_to_datetime
from functools import partial
from html import escape
from http.cookiejar import CookieJar
from http.cookies import CookieError, SimpleCookie
from importlib.metadata import version
from ipaddress import ip_address
from itertools import count
from ssl import PROTOCOL_TLS_CLIENT, SSLCertVerificationError, SSLContext
from typing import Any, TypeAlias, TypeVar
from urllib.parse import quote, quote_plus, urlencode, urlsplit

import httpx
from attrs import define, field, frozen, validators

from crmclient.clock import Clock, SystemClock
from crmclient.dialect import (
    ABSENT,
    START,
    Call,
    Context,
    Cursor,
    Dialect,
    Flow,
    Need,
    Page,
    Reply,
    Scheme,
    Secret,
    Start,
    Step,
    Unparsed,
    Walk,
    lost,
    moved,
)
from crmclient.errors import (
    AuthFailed,
    Banned,
    ClientClosed,
    ConnectionLost,
    CRMError,
    DeadlineExceeded,
    Invalid,
    Misconfigured,
    OriginRefused,
    RateLimited,
    ReadOnly,
    Unavailable,
    Unreachable,
    Unreadable,
    Unsupported,
)
from crmclient.hooks import (
    AccountPaused,
    AttemptEnded,
    AttemptStarted,
    Happening,
    Hook,
    RetryPlanned,
    TokenRenewed,
    tell,
)
from crmclient.pacing import SHARED_PACERS, Line, Pacer, Pacers, Turn, bulk
from crmclient.paging import Trail
from crmclient.retry import Quota, Retry
from crmclient.tokens import Keeper, TokenStore

T = TypeVar("T")

_log = logging.getLogger("crmclient.session")

USER_AGENT = f"crmclient/{version('crmclient')}"


def _positive(default: float, most: float = 86_400.0) -> float:
    return field(default=default, validator=[validators.gt(0), validators.le(most)])


@frozen(kw_only=True)
class Limits:
    """Bounds of one exchange, in seconds, bytes and rows. ValueError for what is no positive number."""

    connect: float = _positive(5.0)
    read: float = _positive(30.0)
    whole: float = _positive(90.0)
    body: int = field(default=64 << 20, validator=validators.ge(1))
    # Twenty times what any vendor gives: a page that goes on beyond is no page.
    rows: int = field(default=10_000, validator=validators.ge(1))
    connections: int = field(default=20, validator=validators.ge(1))
    # Shorter than a server's usual keep-alive, so that a connection is rarely reused just as the server closes it.
    idle: float = _positive(10.0)
    prefetch: int = field(default=6, validator=validators.ge(1))


@define
class Spent:
    """What a client has cost so far. ``aside`` are those of the requests that signed in or read the account's settings."""

    requests: int = 0
    aside: int = 0
    retries: int = 0
    rate_limited: int = 0
    renewals: int = 0


@frozen(kw_only=True)
class Setup:
    """Everything a session is told: who, where, as whom, how fast. Made by ``connect``."""

    dialect: Dialect
    base_url: str
    scheme: Scheme
    credentials: Any
    store: TokenStore
    account: str
    kept_as: str
    rates: Sequence[Any]
    clock: Clock = field(factory=SystemClock)
    zone: tzinfo | None = None
    read_only: bool = False
    retry: Retry = field(factory=Retry)
    limits: Limits = field(factory=Limits)
    pacer: Pacers = SHARED_PACERS
    transport: httpx.AsyncBaseTransport | None = None
    chance: Callable[[], float] = random.random
    deadline: float | None = None
    hooks: Sequence[Hook] = ()


@define(eq=False)
class _Progress:
    """How far one logical call has come."""

    number: int
    call: Call
    begun: float
    until: float | None = None
    attempt: int = 0
    # What it is waiting for, in words.
    phase: str = "waiting for a token"
    # Something has left, and what became of it is not known.
    in_flight: bool = False
    last: CRMError | None = None


# Whether what runs in this context reads the account's settings.
_ASIDE: ContextVar[bool] = ContextVar("crmclient_aside", default=False)

# Until when what runs in this context has to be done, by the session's monotonic clock.
_UNTIL: ContextVar[float | None] = ContextVar("crmclient_until", default=None)

# A write is not trusted to a connection that nobody has used for so long, in seconds: if the server closes it just then,
# nobody knows whether the write was applied.
_WARM = 1.0

# What is cancelled as a client closes has so long to end, in seconds: a transport of the caller's may not listen.
_ENDING = 1.0


class _NoJar(CookieJar):
    """Keeps nothing."""

    def extract_cookies(self, response: Any, request: Any) -> None:
        pass


class Session:
    """One account's conversation with its server."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._dialect, self._clock = setup.dialect, setup.clock
        parts = urlsplit(setup.base_url)
        self._origin = f"{parts.scheme}://{parts.netloc}"
        self._base = setup.base_url.rstrip("/")
        there = httpx.URL(self._origin)
        self._there = there.scheme, there.netloc
        self._timeout = httpx.Timeout(setup.limits.read, connect=setup.limits.connect).as_dict()
        self._http: httpx.AsyncClient | None = None
        self._fresh: httpx.AsyncClient | None = None
        self._pacer: Pacer | None = None
        self._slots = Line(setup.limits.connections)
        self._numbers = count(1)
        self._last_answer = float("-inf")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._parts: dict[str, Any] = {}
        self._read_at: dict[str, float] = {}
        self._forgotten = 0
        self._part_locks: dict[str, asyncio.Lock] = {}
        self._computing = asyncio.Lock()
        self._skew = timedelta()
        self._latency = 0.0
        self._quota = Quota()
        self._ailing = True  # nothing has gone well yet
        self._exchanges: set[asyncio.Task[Any]] = set()
        self._abandoned: set[asyncio.Task[Any]] = set()
        self.spent = Spent()
        scheme, credentials = setup.scheme, setup.credentials
        self._keeper = Keeper(
            setup.kept_as,
            setup.store,
            self._clock,
            at_hand=scheme.at_hand(credentials),
            obtain=lambda: self._run(scheme.obtain(credentials)),
            renew=lambda token: self._renewed(scheme.renew(credentials, token)),
            told=self._renewal_ended,
        )

    # ------------------------------------------------------------------------------------------- opening and closing

    def _open(self) -> tuple[httpx.AsyncClient, Pacer]:
        if self._closed:
            raise ClientClosed("this client is closed")
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise ClientClosed("this client belongs to another event loop: connect once in each")
        if self._http is None or self._pacer is None:
            self._http = self._connections(keep=self._setup.limits.connections)
            # httpx cannot be asked for a new connection; a pool that keeps none gives nothing else.
            self._fresh = self._http if self._setup.transport is not None else self._connections(keep=0)
            self._pacer = self._setup.pacer.of(self._setup.account, self._setup.rates, self._clock)
        return self._http, self._pacer

    def _connections(self, *, keep: int) -> httpx.AsyncClient:
        limits, parts = self._setup.limits, urlsplit(self._origin)
        here = is_loopback(parts.hostname)
        return httpx.AsyncClient(
            transport=self._setup.transport,
            # Nobody asks it: a cookie signs calls only where a scheme says so. An ordinary one costs CPU at each answer.
            cookies=_NoJar(),
            # Plain http to this machine meets no certificate; to read those that are trusted takes 20 ms and 3 MB.
            verify=SSLContext(PROTOCOL_TLS_CLIENT) if here and parts.scheme == "http" else True,
            timeout=httpx.Timeout(limits.read, connect=limits.connect),
            limits=httpx.Limits(
                max_connections=limits.connections, max_keepalive_connections=keep, keepalive_expiry=limits.idle
            ),
            follow_redirects=False,
            # A proxy from the environment is never asked to reach this machine.
            trust_env=not here,
        )

    async def aclose(self) -> None:
        """Close; what is being written is let end within its bounds, and so is a renewal. Closing twice is nothing."""
        self._closed = True
        try:
            await self._keeper.aclose(self._setup.limits.read)
            for task in self._abandoned:
                task.cancel()
            if self._exchanges:
                await asyncio.wait(self._exchanges, timeout=self._setup.limits.read)
        finally:
            # Whoever closes may be cancelled as it waits; what is open is closed all the same.
            await self._drop()

    async def _drop(self) -> None:
        left = tuple(self._exchanges)
        for task in left:
            task.cancel()
        try:
            if left:
                await asyncio.wait(left, timeout=_ENDING)
        finally:
            opened = [http for http in (self._http, self._fresh) if http is not None]
            self._http = self._fresh = None
            for http in opened:
                await http.aclose()

    # ------------------------------------------------------------------------------------------------------- flows

    @contextmanager
    def within(self, seconds: float) -> Generator[None]:
        """All that is called inside has to be done in so many seconds. An outer bound that ends sooner stays."""
        if not 0 < seconds < float("inf"):
            raise Misconfigured(f"a deadline is a positive number of seconds, not {seconds}")
        until, outer = self._clock.monotonic() + seconds, _UNTIL.get()
        before = _UNTIL.set(until if outer is None else min(until, outer))
        try:
            yield
        finally:
            # An async generator that was left half way is closed in another context, where nothing was set.
            with suppress(ValueError):
                _UNTIL.reset(before)

    async def run(self, flow: Flow[T]) -> T:
        """Drive a flow to its end: answer its calls, throw its errors in."""
        if self._setup.deadline is None or _UNTIL.get() is not None:
            return await self._run(flow)
        with self.within(self._setup.deadline):
            return await self._run(flow)

    async def _run(self, flow: Flow[T]) -> T:
        answer: Any = None
        error: CRMError | None = None
        working = False
        try:
            while True:
                try:
                    step: Step = flow.send(answer) if error is None else flow.throw(error)
                except StopIteration as stop:
                    return stop.value
                answer = error = None
                if isinstance(step, Need) and step.turn:
                    # Of those who compute, the first goes on: the first page is of use before the fifth has begun.
                    if not working:
                        working = await self._computing.acquire()
                    await self._clock.sleep(0)
                elif working:
                    self._computing.release()
                    working = False
                try:
                    answer = await self._answer(step)
                except CRMError as raised:
                    error = raised
        finally:
            flow.close()
            if working:
                self._computing.release()

    async def _answer(self, step: Step) -> Any:
        if isinstance(step, Call):
            return await self.send(step)
        if isinstance(step, Need):
            return await self.context(step.part, step.fresh, optional=step.optional)
        return await self._together(step)

    async def _together(self, calls: tuple[Call, ...]) -> tuple[Reply | CRMError, ...]:
        async def one(call: Call) -> Reply | CRMError:
            try:
                return await self.send(call)
            except CRMError as raised:
                return raised

        if len(calls) == 1:
            return (await one(calls[0]),)
        todo, answers = iter(enumerate(calls)), dict[int, Reply | CRMError]()

        async def work() -> None:
            for place, call in todo:
                answers[place] = await one(call)

        with bulk():
            tasks = [asyncio.create_task(work()) for _ in calls[: self._setup.limits.connections]]
        try:
            await asyncio.gather(*tasks)
        finally:
            await _cancelled(tasks)
        return tuple(answers[place] for place in range(len(calls)))

    async def context(self, part: str | None = None, fresh: float | None = None, *, optional: bool = False) -> Context:
        """What codecs may know; with a part, that part too, read once, or again if it is older than ``fresh`` seconds.

        ``fresh`` without a part forgets every part. ``optional``: a part that may not be read (403) is ABSENT, and is not
        asked for again.
        """
        if part is None:
            if fresh is not None:
                self.forget()
        elif fresh is not None and self._clock.monotonic() - self._read_at.get(part, 0.0) > fresh:
            self.forget(part)
        if part is not None and self._lacks(part, optional):
            async with self._part_locks.setdefault(part, asyncio.Lock()):
                while self._lacks(part, optional):
                    forgotten = self._forgotten
                    found = await self._read_part(part, optional)
                    if forgotten == self._forgotten:  # else what was read may be from before what was written
                        self._parts[part], self._read_at[part] = found, self._clock.monotonic()
        return Context(self._parts, now=self._clock.now() + self._skew, given_zone=self._setup.zone)

    def _lacks(self, part: str, optional: bool) -> bool:
        return self._parts.get(part, ABSENT) is ABSENT and not (optional and part in self._parts)

    async def _read_part(self, part: str, optional: bool) -> Any:
        made = self._dialect.settings.get(part)
        if made is None:
            more = ": where its time zone is needed, give connect(zone=…)" if part == "account" else ""
            raise Unsupported(f"{self._dialect.title} does not tell its {part}{more}")
        before = _ASIDE.set(True)
        try:
            return await self.run(made())
        except AuthFailed as refusal:
            if not optional or refusal.status != 403:
                raise
            return ABSENT
        finally:
            _ASIDE.reset(before)

    def forget(self, *parts: str) -> None:
        """These settings parts have changed, or any of them: they are read again when they are needed again."""
        for part in parts or tuple(self._parts):
            self._parts.pop(part, None)
        self._forgotten += 0 if parts else 1

    # ------------------------------------------------------------------------------------------------------- walks

    async def pages(
        self, walk: Walk[T], start: Cursor | Start | None = START, prefetch: int | None = None
    ) -> AsyncGenerator[Page[T], None]:
        """The pages of a walk in order, read ahead as far as the pace allows.

        The first page is read alone: a listing of one page costs one request. Then as many go side by side as are
        needed to keep the pace at the latency seen, and never more than ``prefetch`` beyond the page in hand.
        """
        if start is None:
            return
        most = self._setup.limits.prefetch if prefetch is None else prefetch
        if most < 1:
            raise Misconfigured(f"prefetch is at least 1, not {most}")
        cursor: Cursor | None = walk.first if start is START else start
        under_way: deque[tuple[Cursor, asyncio.Task[_Answered[T]]]] = deque()
        bound: Cursor | None = None
        trail = Trail()
        reading: asyncio.Task[tuple[T, ...]] | None = None
        try:
            while cursor is not None:
                if not under_way:
                    under_way.append((cursor, asyncio.create_task(self._page(walk, cursor))))
                at, task = under_way[0]  # still among them while it is waited for: whoever waits may be cancelled
                reply, rows, reading = await task
                under_way.popleft()
                cursor = walk.after(at, reply, len(rows))
                bound = walk.last(at, reply) or bound
                trail.step(at, rows, cursor)
                if cursor is None or (under_way and under_way[0][0] != cursor):
                    # The end, or the listing goes on elsewhere than was computed: what was read ahead is of no use.
                    await _cancelled(_all_of(under_way))
                    under_way.clear()
                window = min(most, self._window())
                if cursor is not None and window > 1:
                    self._read_ahead(walk, cursor, under_way, window, bound)
                # Its rows may have to wait for a part of the settings: the pages after it are on their way by then.
                page = Page(items=await reading, cursor=at, next=cursor)
                del task, reply, rows, reading  # what has been handed out is not held while the next page comes
                reading = None
                yield page
                del page
        finally:
            await _cancelled([*_all_of(under_way), *([reading] if reading else [])])

    def _read_ahead(
        self, walk: Walk[T], cursor: Cursor, under_way: deque[Any], window: int, bound: Cursor | None
    ) -> None:
        while len(under_way) < window:
            place = walk.ahead(under_way[-1][0], 1) if under_way else cursor
            if place is None or (bound is not None and place.part == bound.part and _beyond(place, bound)):
                return
            with bulk():
                under_way.append((place, asyncio.create_task(self._page(walk, place))))

    def _window(self) -> int:
        """How many pages must be under way to use the pace at the latency seen.

        Little's law, and half as many again: turns do not come evenly (measured at 300 ms: 0.98 of the limit for 0.97).
        """
        interval = self._pacer.interval if self._pacer is not None else 0.0
        return 1 + int(1.5 * self._latency / interval) if interval else 1

    async def _page(self, walk: Walk[T], cursor: Cursor) -> "_Answered[T]":
        reply = await self.send(walk.call(cursor))
        rows = walk.rows(cursor, reply)
        if len(rows) > self._setup.limits.rows:
            raise Unreadable(
                f"a page of {len(rows)} rows came, and {self._setup.limits.rows} is the most a page may have"
            )
        return reply, rows, asyncio.create_task(self.run(walk.items(cursor, rows)))

    # --------------------------------------------------------------------------------------------------- one call

    async def send(self, call: Call) -> Reply:
        """Send one call, as often as is harmless, and give the reply that the dialect's judge finds nothing against.

        Raises what the judge says; AmbiguousWrite for a write that may have been applied; DeadlineExceeded.
        """
        if self._setup.read_only and call.signed and not call.safe:
            raise ReadOnly(f"{call.method} {call.path} would write, and this client was opened with read_only=True")
        begun = self._clock.monotonic()
        # What fetches a credential is for everybody: it is not cut off by the hurry of the one who happened to need it.
        until = _UNTIL.get() if call.signed else None
        if until is None and self._setup.deadline is not None and call.signed:
            until = begun + self._setup.deadline
        progress = _Progress(next(self._numbers), call, begun, until)
        try:
            return await (self._attempts(progress) if until is None else self._in_time(progress, until))
        except AuthFailed as refused:
            refused.account = self._setup.kept_as
            raise

    async def _in_time(self, progress: _Progress, until: float) -> Reply:
        attempts = asyncio.create_task(self._attempts(progress))
        alarm = asyncio.create_task(self._clock.sleep(max(0.0, until - self._clock.monotonic())))
        try:
            await asyncio.wait((attempts, alarm), return_when=asyncio.FIRST_COMPLETED)
            if attempts.done():
                return attempts.result()
        finally:
            await _cancelled([attempts, alarm])
        call, elapsed = progress.call, self._clock.monotonic() - progress.begun
        late = DeadlineExceeded(
            f"{call.method} {call.path} was not done in time: {progress.phase}, attempt {max(1, progress.attempt)}, "
            f"after {elapsed:.1f} s",
            phase=progress.phase,
            elapsed=elapsed,
            attempts=progress.attempt,
        )
        late.__cause__ = progress.last
        if progress.in_flight and not call.replayable:
            raise lost(late, f"{call.method} {call.path}") from late
        raise late

    async def _attempts(self, progress: _Progress) -> Reply:
        call, renewed, afresh, ailing = progress.call, False, False, self._ailing
        while True:
            progress.attempt += 1
            progress.phase = "waiting for a token"
            token = await self._keeper.current() if call.signed else None
            signed = call if token is None else self._setup.scheme.sign(call, token)
            try:
                answer = await self._exchange(signed, progress, afresh)
            except (Unreachable, ConnectionLost, Unreadable) as raised:
                answer, progress.in_flight = raised, False
            if isinstance(answer, Reply):
                self._quota.give_back(progress.attempt - 1)
                self._ailing = False
                return answer
            progress.last = answer
            if isinstance(answer, ConnectionLost) and answer.reused and call.replayable and not afresh:
                # The server had closed a connection nobody was using. That is no failure of the server's: at once again,
                # on a new one, and the retry quota pays nothing.
                afresh, progress.attempt = True, progress.attempt - 1
                self._planned(progress, answer, 0.0)
                continue
            signed_out = isinstance(answer, AuthFailed) and (answer.status == 401 or answer.status in _REDIRECTS)
            if signed_out and token is not None and not renewed:
                if self._keeper.by_hand:
                    answer.message = f"{answer.message}; a token made by hand is not renewed: make a new one"
                    raise answer
                # Refused before it was executed, so a write is safe to repeat too.
                renewed, progress.attempt = True, progress.attempt - 1
                progress.phase = "waiting for a token"
                await self._keeper.after(token)
                continue
            if isinstance(answer, AuthFailed) and renewed and abs(self._skew) > timedelta(minutes=1):
                seconds = self._skew.total_seconds()
                answer.message = (
                    f"{answer.message}; the server's clock is {abs(seconds):.0f} s "
                    f"{'ahead of' if seconds > 0 else 'behind'} this machine's: set this one right"
                )
            try:
                await self._wait_or_raise(progress, answer)
            except CRMError:
                if not ailing and progress.attempt > 1:
                    # What went before it went well: this is no outage, and one bad row takes no retries from the others.
                    self._quota.give_back(progress.attempt - 1)
                self._ailing = isinstance(answer, Unreachable | ConnectionLost | Unavailable | Unreadable)
                raise

    async def _wait_or_raise(self, progress: _Progress, verdict: CRMError) -> None:
        call = progress.call
        certainly_not_applied = isinstance(verdict, Unreachable | RateLimited)
        in_doubt = isinstance(verdict, ConnectionLost | Unavailable | Unreadable)
        if in_doubt and not call.replayable:
            raise lost(verdict, f"{call.method} {call.path}") from verdict
        if not (certainly_not_applied or in_doubt) or (
            isinstance(verdict, Unreadable) and not (verdict.passing and call.safe)
        ):
            raise verdict
        if isinstance(verdict, Unreachable) and not verdict.passing:
            raise verdict
        asked = verdict.after if isinstance(verdict, RateLimited) else None
        wait = self._setup.retry.delay(progress.attempt, self._setup.chance(), asked)
        if wait is None or not self._quota.spend():
            raise verdict
        if progress.until is not None and self._clock.monotonic() + wait >= progress.until:
            raise verdict  # there is no time for another try, so waiting for the deadline helps nobody
        self.spent.retries += 1
        self._planned(progress, verdict, wait)
        progress.phase = "waiting before another try"
        # After a 429 the pacer makes everybody wait; what chance adds keeps them from coming back as one.
        await self._clock.sleep(wait if asked is None else 0)

    def _planned(self, progress: _Progress, verdict: CRMError, wait: float) -> None:
        call = progress.call
        _log.info(
            "#%d %s %s: %s; again in %.1f s", progress.number, call.method, call.path, type(verdict).__name__, wait
        )
        self._tell(RetryPlanned, progress, error=type(verdict).__name__, wait=wait)

    def _tell(self, kind: type[Happening], progress: _Progress | None = None, **told: Any) -> None:
        if not self._setup.hooks:
            return
        told |= {} if progress is None else _named(progress)
        happening = kind(account=self._setup.account, at=self._clock.monotonic(), **told)
        for hook in self._setup.hooks:
            try:
                tell((hook,), happening)
            except asyncio.CancelledError:
                # Of a future that the hook looked at, and not ours: nothing is awaited here.
                _log.exception("a hook failed at %s", kind.__name__)

    def _noted(self, call: Call, reply: Reply) -> Reply | CRMError:
        """What the reply is, and what it means for everybody who uses the account: whoever asked may have gone."""
        verdict = self._verdict(call, reply)
        if verdict is None:
            return reply
        assert self._pacer is not None  # noqa: S101  a reply came, so the session is open
        if isinstance(verdict, RateLimited):
            self.spent.rate_limited += 1
            self._tell(AccountPaused, seconds=self._pacer.pause(verdict.after))
        elif isinstance(verdict, Banned):
            self._pacer.ban(verdict)
        return verdict

    def _verdict(self, call: Call, reply: Reply) -> CRMError | None:
        # Maintenance pages, proxies in between and cut answers pass; asking again is worth it where it does no harm.
        if reply.ok and isinstance(reply.body, Unparsed):
            return Unreadable(
                f"{call.method} {call.path} was answered with {reply.body.reason}",
                # What a token endpoint answers is not shown, whatever it is.
                preview=reply.body.preview if call.signed else None,
                status=reply.status,
                request_id=reply.request_id,
                passing=True,
            )
        if reply.status == 200 and reply.body is None and call.method == "GET":
            return Unreadable(
                f"{call.method} {call.path} was answered with an empty body",
                status=200,
                request_id=reply.request_id,
                passing=True,
            )
        if reply.status in _REDIRECTS and self._to_login(reply):
            return AuthFailed(
                f"{call.method} {call.path} was answered with a redirect to the login page",
                status=reply.status,
                request_id=reply.request_id,
            )
        return moved(reply, self._dialect.domains) or self._dialect.judge(call, reply)

    def _to_login(self, reply: Reply) -> bool:
        """A session that is over, as web applications say it; of another host it is a captive portal's."""
        try:
            there = urlsplit(reply.headers.get("location", ""))
        except ValueError:
            return False
        ours = not there.netloc or f"{there.scheme}://{there.netloc}" == self._origin
        return ours and _LOGIN.search(there.path) is not None

    def _told(self, wrong: httpx.TransportError, request: httpx.Request) -> str:
        """What the transport says, without the address, whose query may hold a key, and without our secrets."""
        told = str(wrong).replace(str(request.url), request.url.host) or type(wrong).__name__
        return self._redacted(told.encode(errors="replace")).decode(errors="replace")

    def _redacted(self, content: bytes) -> bytes:
        """A server may echo what it was sent: before anybody reads the answer, our secrets are out of it."""
        for secret in self._secrets():
            # Shorter ones are no secrets, and would be found in any text.
            if len(secret.reveal()) >= 6:
                for hidden in _written(secret):
                    content = content.replace(hidden, "…".encode())
        return content

    def _secrets(self) -> list[Secret]:
        held: list[Any] = [self._setup.credentials, self._keeper.held]
        found = [
            getattr(one, name, None)
            for one in held
            for name in ("token", "client_secret", "code", "hash", "password", "access", "refresh")
        ]
        return [one for one in found if isinstance(one, Secret) and one]

    async def _renewed(self, flow: Flow[T]) -> T:
        self.spent.renewals += 1
        return await self._run(flow)

    def _renewal_ended(self, seconds: float, error: CRMError | None) -> None:
        self._tell(TokenRenewed, seconds=seconds, error=None if error is None else type(error).__name__)

    # ----------------------------------------------------------------------------------------------- one exchange

    async def _exchange(self, call: Call, progress: _Progress, afresh: bool) -> Reply | CRMError:
        http, pacer = self._open()
        request = self._request(call)
        progress.phase = "waiting for its turn"
        # Here and not in the pool of connections: its waiting would be billed to the server's time.
        await self._slots.acquire()
        try:
            turn = await pacer.turn()
            if self._closed:
                turn.over()
                raise ClientClosed("this client was closed while the call waited for its turn; nothing was sent")
        except BaseException:
            self._slots.release()
            raise
        self.spent.requests += 1
        self.spent.aside += not call.signed or _ASIDE.get()
        progress.phase = "waiting for the answer"
        idle = self._clock.monotonic() - self._last_answer
        if self._fresh is not None and (afresh or (not call.replayable and idle > _WARM)):
            http = self._fresh
        # In a task of its own: httpx 0.28.1 loses a slot of its pool for good when a request is cancelled while it
        # connects, and a write that has begun had better end. Whoever waits may be cancelled; the exchange goes on.
        heard = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._bounded(http, request, turn, call, progress, heard))
        self._exchanges.add(task)
        task.add_done_callback(partial(self._ended, turn, heard))
        started = self._clock.monotonic()
        try:
            # Not shield(task), which costs another turn of the loop.
            await heard
        except asyncio.CancelledError:
            if call.safe and not task.done():
                # Nobody waits for what it reads: closing does not either.
                self._abandoned.add(task)
            raise
        if task.cancelled() and self._closed:
            raise ConnectionLost("the client was closed before the answer came")
        reply = task.result()
        progress.in_flight = False
        taken = self._clock.monotonic() - started
        self._latency = taken if not self._latency else 0.7 * self._latency + 0.3 * taken
        return reply

    def _ended(self, turn: Turn, heard: "asyncio.Future[None]", task: asyncio.Task[Any]) -> None:
        self._slots.release()
        self._exchanges.discard(task)
        self._abandoned.discard(task)
        if not heard.done():
            heard.set_result(None)
        if task.cancelled():
            turn.over()  # perhaps it never began
        else:
            task.exception()  # looked at, so that an abandoned exchange does not complain at the end

    def _request(self, call: Call) -> httpx.Request:
        if not call.path.startswith("/") or call.path.startswith("//"):
            raise OriginRefused(f"{call.path!r} is no path on {self._origin}")
        if not (call.method.isascii() and call.method.isalpha()):
            raise Misconfigured(f"{call.method!r} is no method of HTTP")
        if bad := _unfit(call.headers):
            raise Misconfigured(bad)
        headers = {"User-Agent": USER_AGENT, "Accept": self._dialect.format.accept, "Accept-Encoding": "gzip"}
        content: bytes | None = None
        if call.body is not None:
            content, headers["Content-Type"] = self._dialect.format.encode(call.body)
        told = {name.lower() for name in call.headers}
        headers = {name: part for name, part in headers.items() if name.lower() not in told} | dict(call.headers)
        try:
            request = httpx.Request(
                call.method,
                f"{self._base}{call.path}{'?' if call.query else ''}{urlencode(call.query)}",
                headers=headers,
                content=content,
                extensions={"timeout": self._timeout},
            )
        except (httpx.InvalidURL, UnicodeError) as wrong:
            del headers
            raise Invalid(f"{call.method} {call.path!r:.100} cannot be asked for: {wrong}") from None
        there = request.url
        if (there.scheme, there.netloc) != self._there:
            del headers, request
            raise OriginRefused(f"the request would leave for {there.host}, not for {self._origin}")
        return request

    async def _bounded(
        self,
        http: httpx.AsyncClient,
        request: httpx.Request,
        turn: Turn,
        call: Call,
        progress: _Progress,
        heard: "asyncio.Future[None]",
    ) -> Reply | CRMError:
        _OURS.set(True)
        begun, status, answer = self._clock.monotonic(), None, None
        try:
            self._tell(AttemptStarted, progress)
            # A timeout per read never fires on a drip of bytes; this one bounds the whole exchange.
            async with asyncio.timeout(self._setup.limits.whole):
                reply = await self._over_the_wire(http, request, _Leaving(turn, progress))
            status, answer = reply.status, self._noted(call, reply)
            return answer
        except TimeoutError:
            answer = ConnectionLost(f"no whole answer within {self._setup.limits.whole:g} s")
            raise answer from None
        except BaseException as failed:
            answer = failed
            raise
        finally:
            turn.over()
            self._last_answer = now = self._clock.monotonic()
            error = type(answer).__name__ if isinstance(answer, BaseException) else None
            _log.debug("#%d.%d %s %s: %s", progress.number, progress.attempt, call.method, call.path, error or status)
            self._tell(AttemptEnded, progress, seconds=now - begun, status=status, error=error)
            if not heard.done():
                heard.set_result(None)

    async def _over_the_wire(self, http: httpx.AsyncClient, request: httpx.Request, leaving: "_Leaving") -> Reply:
        request.extensions["trace"] = leaving
        if self._setup.transport is not None:
            # A transport of the caller's may not tell when a request leaves, nor over what: it leaves now, over a new one.
            leaving.connected = True
            leaving.left()
        where = urlsplit(self._origin).netloc
        try:
            response = await http.send(request, stream=True)
            leaving.answered()
            head, cookies = _head(response)
            self._note_the_time(head)
            try:
                content = await self._content(response, head)
            finally:
                await response.aclose()
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as wrong:
            unreachable = Unreachable(f"{where} cannot be reached: {self._told(wrong, request)}")
            unreachable.passing = not _untrusted(wrong)
            raise unreachable from None
        except httpx.PoolTimeout:
            raise Unreachable("all connections of this client's own pool are in use") from None
        except httpx.ReadTimeout:
            raise ConnectionLost(f"no answer from {where} within {self._setup.limits.read:g} s") from None
        except httpx.TransportError as wrong:
            told = f"the connection to {where} broke off: {self._told(wrong, request)}"
            if not leaving.sent:
                raise Unreachable(told) from None
            raise ConnectionLost(told, reused=leaving.reused) from None
        kind = head.get("content-type", "")
        body = self._dialect.format.decode(content, kind) if content.strip() else None
        if not response.is_success or isinstance(body, Unparsed):
            # What is shown of an answer is shown without what we sent; what is data stays as it is.
            body = self._dialect.format.decode(self._redacted(content), kind) if content.strip() else None
        return Reply(response.status_code, head, body, self._origin, self._cookies(cookies) if cookies else {})

    async def _content(self, response: httpx.Response, head: Mapping[str, str]) -> bytes:
        """The body, bounded while it is inflated: httpx inflates a whole network chunk without bound."""
        if response.is_stream_consumed:
            # A transport of the caller's that has read it already: mocks and recorders do.
            return response.content
        coding = head.get("content-encoding", "identity").strip().lower()
        if coding not in ("identity", "gzip", ""):
            raise Unreadable(
                f"the answer is coded as {coding!r:.60}, and only gzip was offered", status=response.status_code
            )
        inflate = zlib.decompressobj(31) if coding == "gzip" else None
        most, found, size = self._setup.limits.body, list[bytes](), 0
        async for chunk in response.aiter_raw():
            if inflate is not None and inflate.eof:
                raise Unreadable("the answer goes on after its gzip has ended", status=response.status_code)
            while chunk:
                piece = chunk
                if inflate is not None:
                    try:
                        piece = inflate.decompress(chunk, 1 << 20)
                    except zlib.error as wrong:
                        raise Unreadable(f"the answer is no gzip: {wrong}", status=response.status_code) from None
                chunk = inflate.unconsumed_tail if inflate is not None else b""
                size += len(piece)
                if size > most:
                    raise Unreadable(f"the answer is larger than {most} bytes", status=response.status_code)
                found.append(piece)
        if inflate is not None and inflate.unused_data:
            raise Unreadable("the answer goes on after its gzip has ended", status=response.status_code)
        if inflate is not None and found and not inflate.eof:
            raise ConnectionLost("the answer's gzip is cut off", status=response.status_code)
        return b"".join(found)

    def _cookies(self, lines: Sequence[str]) -> dict[str, str]:
        """The cookies for this host, or for a parent of it within the vendor's own domains; so many at the most."""
        where = urlsplit(self._origin)
        host = (where.hostname or "").lower()
        found: dict[str, str] = {}
        for line in lines:
            try:
                morsels = SimpleCookie(line).items()
            except CookieError:
                continue
            for name, morsel in morsels:
                domain = morsel["domain"].lower().lstrip(".")
                parents = (each for each in self._dialect.domains if host.endswith(f".{each}"))
                ours = not domain or domain == host or domain in parents
                plain = morsel["secure"] and where.scheme != "https"
                if ours and not plain and len(found) < 50 and len(name) + len(morsel.value) <= 4096:
                    found[name] = morsel.value
        return found

    def _note_the_time(self, headers: Mapping[str, str]) -> None:
        try:
            theirs = parsedate_to_datetime(headers["date"])
        except (KeyError, ValueError, TypeError, OverflowError):
            return
        skew = theirs.replace(tzinfo=theirs.tzinfo or UTC) - self._clock.now()
        # Neither clock is off by more than a lifetime; and what is added to a date has to stay one.
        if abs(skew) < _LIFETIME:
            self._skew = skew


_LIFETIME = timedelta(days=36_525)


def _head(response: httpx.Response) -> tuple[dict[str, str], list[str]]:
    """The headers by their lower-case names, and the cookies apart: one may be a key, and is kept where nobody shows it."""
    head, cookies = dict[str, str](), list[str]()
    for raw, part in response.headers.raw:
        name, text = raw.decode("latin-1").lower(), part.decode("latin-1")
        if name == "set-cookie":
            cookies.append(text)
        else:
            head[name] = f"{head[name]}, {text}" if name in head else text
    return head, cookies


class _Leaving:
    """httpx's trace hook: the moment the request's head goes out is the moment that counts for the pace."""

    def __init__(self, turn: Turn, progress: _Progress) -> None:
        self._turn, self._progress = turn, progress
        self.sent = False
        self.connected = self._answered = False

    @property
    def reused(self) -> bool:
        """The request went over a connection made for an earlier one, and nothing of an answer came."""
        return self.sent and not self.connected and not self._answered

    def left(self) -> None:
        self.sent = self._progress.in_flight = True
        self._turn.sent()

    def answered(self) -> None:
        self._turn.answered()

    async def __call__(self, event: str, details: Mapping[str, Any]) -> None:
        match event.partition(".")[2]:
            case "send_request_headers.started":
                self.left()
            case "connect_tcp.started":
                self.connected = True
            case "receive_response_headers.complete":
                self._answered = True
            case _:
                pass


def _written(secret: Secret) -> set[bytes]:
    """A secret as an answer may hold it: plain, in JSON, in an address, in HTML."""
    plain = secret.reveal()
    ways = (
        plain,
        json.dumps(plain)[1:-1],
        json.dumps(plain).replace("/", r"\/")[1:-1],
        quote(plain, safe=""),
        quote(plain),
    )
    return {way.encode(errors="replace") for way in (*ways, quote_plus(plain), escape(plain))}


def _untrusted(wrong: BaseException | None) -> bool:
    """Whether it was the certificate: nobody gets another by trying again."""
    while wrong is not None and not isinstance(wrong, SSLCertVerificationError):
        wrong = wrong.__cause__ or wrong.__context__
    return wrong is not None


_REDIRECTS = (302, 303, 307)
_LOGIN = re.compile(r"/(?:log-?in|sign-?in|auth)(?![a-z])", re.IGNORECASE)


def _named(progress: _Progress) -> dict[str, Any]:
    call = progress.call
    return {"call": progress.number, "attempt": progress.attempt, "method": call.method, "path": call.path}


# Set in the tasks that exchange for us, so that what httpx and httpcore log of others is left alone.
_OURS: ContextVar[bool] = ContextVar("crmclient_exchange", default=False)


def _discreet(record: logging.LogRecord) -> bool:
    """Of our requests: httpx logs whole addresses at INFO, httpcore cookies at DEBUG, and neither is anybody's business."""
    if _OURS.get():
        given = record.args if isinstance(record.args, tuple) else ()
        record.args = tuple(part.copy_with(query=None) if isinstance(part, httpx.URL) else part for part in given)
        if "cookie" in str(record.msg).lower():
            record.msg = "(an answer with cookies)"
    return True


for _logger in ("httpx", "httpcore.connection", "httpcore.http11", "httpcore.http2", "httpcore.proxy"):
    logging.getLogger(_logger).addFilter(_discreet)


# How long a request is and where it goes is the transport's to say; a second opinion is how one request becomes two.
_FRAMING = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "te", "trailer", "upgrade", "expect"}
)
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


def _unfit(headers: Mapping[str, str]) -> str | None:
    """Which header cannot be sent, in words that do not show what it holds."""
    for name, part in headers.items():
        if not part.isascii() or not part.isprintable():
            return f"the header {name!r} would hold characters that no header may hold"
        if not _NAME.fullmatch(name) or name.lower() in _FRAMING:
            return f"{name!r} is no header that a call may set"
    return None


_Answered: TypeAlias = tuple[Reply, Sequence[Any], asyncio.Task[tuple[T, ...]]]
"""The answer to a page's call, its raw rows, and the task that reads them."""


def _all_of(under_way: Iterable[tuple[Cursor, asyncio.Task[_Answered[Any]]]]) -> list[asyncio.Task[Any]]:
    """The tasks of pages read ahead, and those that read their rows already."""
    tasks: list[asyncio.Task[Any]] = [task for _, task in under_way]
    ended = [task for _, task in under_way if task.done() and not task.cancelled() and task.exception() is None]
    return tasks + [task.result()[2] for task in ended]


async def _cancelled(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancel what is still running and see it end."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.gather(*tasks, return_exceptions=True)


def _beyond(place: Cursor, bound: Cursor) -> bool:
    return isinstance(place.at, int) and isinstance(bound.at, int) and place.at > bound.at


def is_loopback(host: str | None) -> bool:
    """Whether a host is this machine, by its name or its address; never by asking anybody."""
    if host is None:
        return False
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
