"""THE ONLY MODULE THAT AWAITS HTTP. It signs a call, waits its turn, sends, has the reply judged and feeds it back.

It names no vendor: what a reply means is the dialect's judge's to say, how a call is signed the scheme's, how fast the
pacer's. Whatever httpx 0.28.1 does not do well is contained here.
"""

import asyncio
import logging
import random
import zlib
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextvars import ContextVar
from datetime import UTC, timedelta, tzinfo
from email.utils import parsedate_to_datetime
from http.cookiejar import DefaultCookiePolicy
from http.cookies import CookieError, SimpleCookie
from importlib.metadata import version
from ipaddress import ip_address
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit

import httpx
from attrs import define, field, frozen

from crmclient.clock import Clock, SystemClock
from crmclient.dialect import (
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
)
from crmclient.errors import (
    AuthFailed,
    Banned,
    ClientClosed,
    ConnectionLost,
    CRMError,
    Misconfigured,
    OriginRefused,
    RateLimited,
    ReadOnly,
    Unavailable,
    Unreachable,
    Unreadable,
    Unsupported,
)
from crmclient.pacing import Pacer, Turn, shared_pacer
from crmclient.retry import Quota, Retry
from crmclient.tokens import Keeper, TokenStore

T = TypeVar("T")

_log = logging.getLogger("crmclient.session")

USER_AGENT = f"crmclient/{version('crmclient')}"


@frozen(kw_only=True)
class Limits:
    """Bounds of one exchange, in seconds and bytes."""

    connect: float = 5.0
    read: float = 30.0
    whole: float = 90.0
    body: int = 64 << 20
    connections: int = 20
    # Shorter than a server's usual keep-alive, so that a connection is rarely reused just as the server closes it.
    idle: float = 10.0
    prefetch: int = 8


@define
class Spent:
    """What a client has cost so far."""

    requests: int = 0
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
    rates: Sequence[Any]
    clock: Clock = field(factory=SystemClock)
    zone: tzinfo | None = None
    read_only: bool = False
    retry: Retry = field(factory=Retry)
    limits: Limits = field(factory=Limits)
    pacer: Pacer | None = None
    transport: httpx.AsyncBaseTransport | None = None
    chance: Callable[[], float] = random.random


class Session:
    """One account's conversation with its server."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._dialect, self._clock = setup.dialect, setup.clock
        parts = urlsplit(setup.base_url)
        self._origin = f"{parts.scheme}://{parts.netloc}"
        self._base = setup.base_url.rstrip("/")
        self._http: httpx.AsyncClient | None = None
        self._pacer: Pacer | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._parts: dict[str, Any] = {}
        self._part_locks: dict[str, asyncio.Lock] = {}
        self._skew = timedelta()
        self._latency = 0.0
        self._quota = Quota()
        self._exchanges: set[asyncio.Task[Any]] = set()
        self.spent = Spent()
        scheme, credentials = setup.scheme, setup.credentials
        self._keeper = Keeper(
            setup.account,
            setup.store,
            self._clock,
            at_hand=scheme.at_hand(credentials),
            obtain=lambda: self.run(scheme.obtain(credentials)),
            renew=lambda token: self._renewed(scheme.renew(credentials, token)),
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
            limits = self._setup.limits
            self._http = httpx.AsyncClient(
                transport=self._setup.transport,
                timeout=httpx.Timeout(limits.read, connect=limits.connect),
                limits=httpx.Limits(
                    max_connections=limits.connections,
                    max_keepalive_connections=limits.connections,
                    keepalive_expiry=limits.idle,
                ),
                follow_redirects=False,
                # A proxy from the environment is never asked to reach this machine.
                trust_env=not is_loopback(urlsplit(self._origin).hostname),
            )
            # A cookie signs calls only where a scheme says so: the jar keeps none of its own accord.
            self._http.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=()))
            self._pacer = self._setup.pacer or shared_pacer(self._setup.account, self._setup.rates, self._clock)
        return self._http, self._pacer

    async def aclose(self) -> None:
        """Close; what is being written is let end within its bounds, and so is a renewal. Closing twice is nothing."""
        self._closed = True
        await self._keeper.aclose(self._setup.limits.read)
        if self._exchanges:
            await asyncio.wait(self._exchanges, timeout=self._setup.limits.read)
            for task in self._exchanges:
                task.cancel()
        if self._http is not None:
            http, self._http = self._http, None
            await http.aclose()

    # ------------------------------------------------------------------------------------------------------- flows

    async def run(self, flow: Flow[T]) -> T:
        """Drive a flow to its end: answer its calls, throw its errors in."""
        answer: Any = None
        error: CRMError | None = None
        try:
            while True:
                try:
                    step: Step = flow.send(answer) if error is None else flow.throw(error)
                except StopIteration as stop:
                    return stop.value
                answer = error = None
                try:
                    answer = await self._answer(step)
                except CRMError as raised:
                    error = raised
        finally:
            flow.close()

    async def _answer(self, step: Step) -> Any:
        if isinstance(step, Call):
            return await self.send(step)
        if isinstance(step, Need):
            return await self.context(step.part)
        return await self._together(step)

    async def _together(self, calls: tuple[Call, ...]) -> tuple[Reply | CRMError, ...]:
        async def one(call: Call) -> Reply | CRMError:
            try:
                return await self.send(call)
            except CRMError as raised:
                return raised

        if len(calls) == 1:
            return (await one(calls[0]),)
        tasks = [asyncio.create_task(one(call)) for call in calls]
        try:
            return tuple(await asyncio.gather(*tasks))
        finally:
            await _cancelled(tasks)

    async def context(self, part: str | None = None) -> Context:
        """What codecs may know; with a part, that part too, read once."""
        if part is not None and part not in self._parts:
            async with self._part_locks.setdefault(part, asyncio.Lock()):
                if part not in self._parts:
                    self._parts[part] = await self._read_part(part)
        return Context(self._parts, now=self._clock.now() + self._skew, given_zone=self._setup.zone)

    async def _read_part(self, part: str) -> Any:
        made = self._dialect.settings.get(part)
        if made is None:
            raise Unsupported(f"{self._dialect.title} does not tell its {part}")
        return await self.run(made())

    def forget(self, part: str) -> None:
        """A settings part has changed: read it again when it is needed again."""
        self._parts.pop(part, None)

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
        under_way: deque[tuple[Cursor, asyncio.Task[tuple[Reply, Sequence[Any], tuple[T, ...]]]]] = deque()
        bound: Cursor | None = None
        before: tuple[int, Sequence[Any]] | None = None
        try:
            while cursor is not None:
                if not under_way:
                    under_way.append((cursor, asyncio.create_task(self._page(walk, cursor))))
                at, task = under_way.popleft()
                reply, rows, items = await task
                cursor = walk.after(at, reply, len(rows))
                bound = walk.last(at, reply) or bound
                if rows and before == (at.part, rows):
                    raise Unreadable(f"the listing does not go on: the page at {at.at} is the one before it again")
                if cursor == at:
                    raise Unreadable(f"the listing does not go on: after {at.at} comes {at.at}")
                before = (at.part, rows)
                if cursor is None or (under_way and under_way[0][0] != cursor):
                    # The end, or the listing goes on elsewhere than was computed: what was read ahead is of no use.
                    await _cancelled([ahead for _, ahead in under_way])
                    under_way.clear()
                window = min(most, self._window())
                if cursor is not None and window > 1:
                    self._read_ahead(walk, cursor, under_way, window, bound)
                yield Page(items=items, cursor=at, next=cursor)
        finally:
            await _cancelled([task for _, task in under_way])

    def _read_ahead(
        self, walk: Walk[T], cursor: Cursor, under_way: deque[Any], window: int, bound: Cursor | None
    ) -> None:
        while len(under_way) < window:
            place = walk.ahead(under_way[-1][0], 1) if under_way else cursor
            if place is None or (bound is not None and place.part == bound.part and _beyond(place, bound)):
                return
            under_way.append((place, asyncio.create_task(self._page(walk, place))))

    def _window(self) -> int:
        """How many pages must be under way to use the pace at the latency seen (Little's law)."""
        interval = self._pacer.interval if self._pacer is not None else 0.0
        return 1 + int(self._latency / interval) if interval else 1

    async def _page(self, walk: Walk[T], cursor: Cursor) -> tuple[Reply, Sequence[Any], tuple[T, ...]]:
        reply = await self.send(walk.call(cursor))
        rows = walk.rows(cursor, reply)
        return reply, rows, await self.run(walk.items(cursor, rows))

    # --------------------------------------------------------------------------------------------------- one call

    async def send(self, call: Call) -> Reply:
        """Send one call, as often as is harmless, and give the reply that the dialect's judge finds nothing against.

        Raises what the judge says; AmbiguousWrite for a write that may have been applied.
        """
        if self._setup.read_only and call.signed and not call.safe:
            raise ReadOnly(f"{call.method} {call.path} would write, and this client was opened with read_only=True")
        attempt, renewed = 0, False
        while True:
            attempt += 1
            token = await self._keeper.current() if call.signed else None
            signed = call if token is None else self._setup.scheme.sign(call, token)
            try:
                answer = await self._exchange(signed)
            except (Unreachable, ConnectionLost, Unreadable) as raised:
                answer = raised
            if isinstance(answer, Reply):
                self._quota.give_back(attempt - 1)
                return answer
            if isinstance(answer, AuthFailed) and answer.status == 401 and token is not None and not renewed:
                if self._keeper.by_hand:
                    answer.message = f"{answer.message}; a token made by hand is not renewed: make a new one"
                    raise answer
                # Refused before it was executed, so a write is safe to repeat too.
                renewed, attempt = True, attempt - 1
                await self._keeper.after(token)
                continue
            await self._wait_or_raise(call, answer, attempt)

    async def _wait_or_raise(self, call: Call, verdict: CRMError, attempt: int) -> None:
        certainly_not_applied = isinstance(verdict, Unreachable | RateLimited)
        in_doubt = isinstance(verdict, ConnectionLost | Unavailable | Unreadable)
        if in_doubt and not call.replayable:
            raise lost(verdict, f"{call.method} {call.path}") from verdict
        if not (certainly_not_applied or in_doubt) or isinstance(verdict, Unreadable):
            raise verdict
        asked = verdict.after if isinstance(verdict, RateLimited) else None
        wait = self._setup.retry.delay(attempt, self._setup.chance(), asked)
        if wait is None or not self._quota.spend():
            raise verdict
        self.spent.retries += 1
        _log.info("%s %s: %s; again in %.1f s", call.method, call.path, type(verdict).__name__, wait)
        # After a 429 the pacer makes everybody wait; what chance adds keeps them from coming back as one.
        await self._clock.sleep(wait if asked is None else 0)

    def _noted(self, call: Call, reply: Reply) -> Reply | CRMError:
        """What the reply is, and what it means for everybody who uses the account: whoever asked may have gone."""
        verdict = self._verdict(call, reply)
        if verdict is None:
            return reply
        assert self._pacer is not None  # noqa: S101  a reply came, so the session is open
        if isinstance(verdict, RateLimited):
            self.spent.rate_limited += 1
            # At least a second, as the shortest window is one.
            # … and no longer than an hour, whatever is asked: a wait for ever is no answer to anybody.
            self._pacer.pause(min(max(1.0, verdict.after or 0.0), 3600.0))
        elif isinstance(verdict, Banned):
            self._pacer.ban(verdict)
        return verdict

    def _verdict(self, call: Call, reply: Reply) -> CRMError | None:
        if reply.ok and isinstance(reply.body, Unparsed):
            return Unreadable(
                f"{call.method} {call.path} was answered with {reply.body.reason}",
                # What a token endpoint answers is not shown, whatever it is.
                preview=reply.body.preview if call.signed else None,
                status=reply.status,
                request_id=reply.request_id,
            )
        if reply.status == 200 and reply.body is None and call.method == "GET":
            return Unreadable(
                f"{call.method} {call.path} was answered with an empty body", status=200, request_id=reply.request_id
            )
        return self._dialect.judge(call, reply)

    def _redacted(self, content: bytes) -> bytes:
        """A server may echo what it was sent: before anybody reads the answer, our secrets are out of it."""
        for secret in self._secrets():
            hidden = secret.reveal().encode()
            # Shorter ones are no secrets, and would be found in any text.
            if len(hidden) >= 6 and hidden in content:
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
        return await self.run(flow)

    # ----------------------------------------------------------------------------------------------- one exchange

    async def _exchange(self, call: Call) -> Reply | CRMError:
        http, pacer = self._open()
        request = self._request(http, call)
        turn = await pacer.turn()
        if self._closed:
            turn.over()
            raise ClientClosed("this client was closed while the call waited for its turn; nothing was sent")
        self.spent.requests += 1
        # In a task of its own: httpx 0.28.1 loses a slot of its pool for good when a request is cancelled while it
        # connects, and a write that has begun had better end. Whoever waits may be cancelled; the exchange goes on.
        task = asyncio.create_task(self._bounded(http, request, turn, call))
        self._exchanges.add(task)
        task.add_done_callback(self._ended)
        started = self._clock.monotonic()
        try:
            reply = await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled() and self._closed:
                raise ConnectionLost("the client was closed before the answer came") from None
            raise
        taken = self._clock.monotonic() - started
        self._latency = taken if not self._latency else 0.7 * self._latency + 0.3 * taken
        return reply

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._exchanges.discard(task)
        if not task.cancelled():
            task.exception()  # looked at, so that an abandoned exchange does not complain at the end

    def _request(self, http: httpx.AsyncClient, call: Call) -> httpx.Request:
        if not call.path.startswith("/") or call.path.startswith("//"):
            raise OriginRefused(f"{call.path!r} is no path on {self._origin}")
        headers = {"User-Agent": USER_AGENT, "Accept": self._dialect.format.accept, "Accept-Encoding": "gzip"}
        content: bytes | None = None
        if call.body is not None:
            content, headers["Content-Type"] = self._dialect.format.encode(call.body)
        headers.update(call.headers)
        if bad := _unfit(headers):
            del headers
            raise Misconfigured(f"the header {bad} would hold characters that no header may hold")
        query = f"?{urlencode(call.query)}" if call.query else ""
        request = http.build_request(call.method, f"{self._base}{call.path}{query}", headers=headers, content=content)
        there = request.url
        if f"{there.scheme}://{there.netloc.decode()}" != str(httpx.URL(self._origin)).rstrip("/"):
            raise OriginRefused(f"the request would leave for {there.host}, not for {self._origin}")
        return request

    async def _bounded(
        self, http: httpx.AsyncClient, request: httpx.Request, turn: Turn, call: Call
    ) -> Reply | CRMError:
        _OURS.set(True)
        try:
            # A timeout per read never fires on a drip of bytes; this one bounds the whole exchange.
            async with asyncio.timeout(self._setup.limits.whole):
                return self._noted(call, await self._over_the_wire(http, request, turn, call.signed))
        except TimeoutError:
            raise ConnectionLost(f"no whole answer within {self._setup.limits.whole:g} s") from None
        finally:
            turn.over()

    async def _over_the_wire(self, http: httpx.AsyncClient, request: httpx.Request, turn: Turn, signed: bool) -> Reply:
        leaving = _Leaving(turn)
        request.extensions["trace"] = leaving
        if self._setup.transport is not None:
            # A transport of the caller's may not tell when a request leaves: it leaves now.
            leaving.sent = True
            turn.sent()
        where = urlsplit(self._origin).netloc
        try:
            response = await http.send(request, stream=True)
            try:
                content = await self._content(response)
            finally:
                await response.aclose()
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as wrong:
            raise Unreachable(f"{where} cannot be reached: {_told(wrong, request)}") from None
        except httpx.PoolTimeout:
            raise Unreachable("all connections of this client's own pool are in use") from None
        except httpx.TransportError as wrong:
            kind = ConnectionLost if leaving.sent else Unreachable
            raise kind(f"the connection to {where} broke off: {_told(wrong, request)}") from None
        self._note_the_time(response.headers)
        kind = response.headers.get("content-type", "")
        body = self._dialect.format.decode(content, kind) if content.strip() else None
        if signed and (not response.is_success or isinstance(body, Unparsed)):
            # What is shown of an answer is shown without what we sent; what is data stays as it is.
            body = self._dialect.format.decode(self._redacted(content), kind) if content.strip() else None
        headers = {name.lower(): part for name, part in response.headers.items()}
        return Reply(response.status_code, headers, body, self._origin, self._cookies(response))

    async def _content(self, response: httpx.Response) -> bytes:
        """The body, bounded while it is inflated: httpx inflates a whole network chunk without bound."""
        if response.is_stream_consumed:
            # A transport of the caller's that has read it already: mocks and recorders do.
            return response.content
        coding = response.headers.get("content-encoding", "identity").strip().lower()
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

    def _cookies(self, response: httpx.Response) -> dict[str, str]:
        """The cookies for this host, or for a parent of it within the vendor's own domains."""
        host = (urlsplit(self._origin).hostname or "").lower()
        found: dict[str, str] = {}
        for line in response.headers.get_list("set-cookie"):
            try:
                morsels = SimpleCookie(line).items()
            except CookieError:
                continue
            for name, morsel in morsels:
                domain = morsel["domain"].lower().lstrip(".")
                parents = (each for each in self._dialect.domains if host.endswith(f".{each}"))
                if not domain or domain == host or domain in parents:
                    found[name] = morsel.value
        return found

    def _note_the_time(self, headers: Mapping[str, str]) -> None:
        try:
            theirs = parsedate_to_datetime(headers["date"])
        except (KeyError, ValueError, TypeError):
            return
        self._skew = theirs.replace(tzinfo=theirs.tzinfo or UTC) - self._clock.now()


class _Leaving:
    """httpx's trace hook: the moment the request's head goes out is the moment that counts for the pace."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self.sent = False

    async def __call__(self, event: str, details: Mapping[str, Any]) -> None:
        if event.endswith(".send_request_headers.started"):
            self.sent = True
            self._turn.sent()


def _told(wrong: httpx.TransportError, request: httpx.Request) -> str:
    """What the transport says, without the address: a query may hold a key."""
    return str(wrong).replace(str(request.url), request.url.host) or type(wrong).__name__


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


def _unfit(headers: Mapping[str, str]) -> str | None:
    """The name of a header that cannot be sent."""
    return next((name for name, part in headers.items() if not part.isascii() or not part.isprintable()), None)


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
