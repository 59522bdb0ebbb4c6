"""A sandbox is a face over a world: this module serves, counts and limits, and knows no face by name."""

import asyncio
import errno
import re
import socket
import threading
from array import array
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Mapping, MutableMapping
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from enum import Enum
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

import anyio
import anyio.lowlevel
from attrs import Factory, define, field, frozen

from crmclient.clock import Clock
from crmclient.sandbox.faults import Dropped, Fault, Faults, faulty
from crmclient.sandbox.world import Condition, Range, World

if TYPE_CHECKING:
    import httpx

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
Setting: TypeAlias = str | bool

GROUP: Final = "crmclient.sandboxes"
_EXTRA: Final = "pip install 'crmclient[sandbox]'"


class PortInUse(OSError):
    """Somebody listens on this port already."""

    def __init__(self, port: int) -> None:
        super().__init__(errno.EADDRINUSE, f"port {port} is in use; choose another, or 0 for any free one")
        self.port = port


class NoSuchFace(LookupError):
    """No installed distribution brings a sandbox of this name."""

    def __init__(self, name: str, known: list[str]) -> None:
        super().__init__(f"no sandbox {name!r}; there are {', '.join(known) or 'none'}")
        self.name = name
        self.known = known


LAGS: Final = ("none", "3", "10", "5s", "60s")
"""How far behind a search index may be: so many requests, or seconds."""


# --- what a face is --------------------------------------------------------------------------------------------------


@frozen
class Switch:
    """One question the reference leaves open: what the sandbox does, what else it can do, and why."""

    default: Setting
    choices: tuple[Setting, ...]
    why: str


@frozen
class Face:
    """A vendor's side of the wire, over any world."""

    name: str
    title: str
    switches: Mapping[str, Switch]
    build: "Callable[[Account], App]"
    credentials: "Callable[[Account], Mapping[str, str]]"
    """Issues what a client needs to come in, printed for whoever started the sandbox."""
    script: Callable[[str, Mapping[str, str]], str]
    """A program to paste, from the base address and the credentials."""
    prefix: str = ""
    """What follows the origin in the base address a client is given."""


@define
class Account:
    """What a face is given: the data, the time, what was decided, and where to keep what it issues."""

    world: World
    clock: Clock
    switches: Mapping[str, Setting]
    limits: bool = True
    stats: "Stats" = field(factory=lambda: Stats())
    issued: dict[str, Any] = field(factory=dict[str, Any])
    """Tokens, sessions, clients, codes: the face's own shape, in memory only."""
    faults: Faults = field(factory=Faults)
    """What is to go wrong, and what has."""
    colleagues: list[tuple[int, Callable[[World], object]]] = Factory(list[tuple[int, Callable[[World], object]]])
    """Who else works in the account, and before every how-manieth request is answered."""
    _newest: "array[int]" = field(factory=lambda: array("q"), init=False)
    """The last id there was when each request arrived."""

    @classmethod
    def open(
        cls,
        face: Face,
        world: World,
        *,
        switches: Mapping[str, Setting] | None = None,
        clock: Clock | None = None,
        limits: bool = True,
        faults: Faults | Iterable[Fault | str] = (),
    ) -> "Account":
        script = faults if isinstance(faults, Faults) else Faults()
        if not isinstance(faults, Faults):
            script.add(*faults)
        return cls(world, clock or world.clock, _decided(face, switches or {}), limits, faults=script)

    def arrived(self, method: str, path: str) -> None:
        """Count a request, and let the colleagues whose turn it is work before it is answered."""
        self.stats.arrived(method, path, _came_in(self.clock))
        self._newest.append(self.world.newest)
        for every, work in self.colleagues:
            if self.stats.requests % every == 0:
                work(self.world)

    def indexed(self, lag: Setting) -> Mapping[str, Condition]:
        """What a search adds to its conditions when its index lags behind: one of ``LAGS``.

        A row is hidden from the next so many requests, or for so many seconds, by whatever it came.
        """
        if lag == "none":
            return {}
        text = str(lag)
        if text.endswith("s"):
            newest = self.world.newest_at(self.world.clock.monotonic() - float(text[:-1]))
        else:
            newest = self._newest[max(0, len(self._newest) - 1 - int(text))]
        return {"indexed": Range(high=newest)}


def _decided(face: Face, given: Mapping[str, Setting]) -> dict[str, Setting]:
    for name, value in given.items():
        switch = face.switches.get(name)
        if switch is None:
            raise ValueError(f"{face.name} has no switch {name!r}; there are {', '.join(face.switches) or 'none'}")
        if value not in switch.choices or isinstance(value, bool) != isinstance(switch.default, bool):
            choices = ", ".join(repr(choice) for choice in switch.choices)
            raise ValueError(f"switch {name} of {face.name} is one of {choices}, not {value!r}")
    return {name: given.get(name, switch.default) for name, switch in face.switches.items()}


# --- counting --------------------------------------------------------------------------------------------------------

_NUMBER: Final = re.compile(r"(?<=/)\d+(?=/|$)")


@define
class Stats:
    """What arrived and how it was answered, as the server saw it."""

    requests: int = 0
    calls: Counter[str] = field(factory=Counter[str])
    """By method and path, numbers in the path replaced: ``GET /contacts/{id}``."""
    statuses: Counter[int] = field(factory=Counter[int])
    banned: int = 0
    """Calls answered by a ban; the face counts them, a 403 may be a matter of rights."""
    arrivals: list[float] = field(factory=list[float])
    """When each request arrived, in the clock's monotonic seconds."""

    @property
    def refused(self) -> int:
        """Calls over the limit, answered with 429."""
        return self.statuses[429]

    def arrived(self, method: str, path: str, at: float) -> None:
        self.requests += 1
        self.calls[f"{method} {_NUMBER.sub('{id}', path)}"] += 1
        self.arrivals.append(at)

    def answered(self, status: int) -> None:
        self.statuses[status] += 1

    def worst(self, seconds: float) -> int:
        """The most requests that arrived within any window of this length, its far end excluded."""
        return max((n - self._first_within(n, seconds) + 1 for n in range(len(self.arrivals))), default=0)

    def over(self, limit: int, seconds: float) -> int:
        """How many requests came when ``limit`` others had arrived within the last ``seconds``; refused ones count."""
        return sum(n - self._first_within(n, seconds) >= limit for n in range(len(self.arrivals)))

    def _first_within(self, n: int, seconds: float) -> int:
        return bisect_right(self.arrivals, self.arrivals[n] - seconds, hi=n)


# --- limiting --------------------------------------------------------------------------------------------------------


class Verdict(Enum):
    """What a limit says of a request that has just arrived."""

    WELCOME = "welcome"
    REFUSED = "refused"
    BANNED = "banned"


# When the request in hand came in: a limit counts arrivals, not the moments at which a busy face got round to them.
_ARRIVAL: ContextVar[float | None] = ContextVar("sandbox_arrival", default=None)


def _came_in(clock: Clock) -> float:
    at = _ARRIVAL.get()
    return clock.monotonic() if at is None else at


class SlidingLimit:
    """So many in any window. Refused calls count too, so a client that hammers stays out, and enough of it is banned.

    ``violations=None`` never bans.
    """

    def __init__(self, limit: int, seconds: float, clock: Clock, *, violations: int | None = None) -> None:
        self.limit = limit
        self.seconds = seconds
        self.violations = violations
        self.broken = 0
        """How often it was violated since the ban was last lifted."""
        self._clock = clock
        self._recent: deque[float] = deque(maxlen=limit + 1)

    @property
    def banned(self) -> bool:
        return self.violations is not None and self.broken >= self.violations

    def arrive(self) -> Verdict:
        """Count the request in hand, at the time it came in."""
        now = _came_in(self._clock)
        if self.banned:
            return Verdict.BANNED
        self._recent.append(now)
        # The log keeps one more than the limit: if even its oldest is within the window, there is one too many.
        if len(self._recent) <= self.limit or self._recent[0] <= now - self.seconds:
            return Verdict.WELCOME
        self.broken += 1
        return Verdict.REFUSED

    def wait(self) -> float:
        """Seconds until a request would be welcome, if nobody asks before."""
        if len(self._recent) < self.limit:
            return 0.0
        return max(0.0, self._recent[-self.limit] + self.seconds - self._clock.monotonic())

    def lift(self) -> None:
        """What the vendor's support does when asked nicely."""
        self.broken = 0
        self._recent.clear()


class FixedMinute:
    """So many in a minute of the clock's face: the count starts anew when the next one begins."""

    def __init__(self, limit: int, clock: Clock) -> None:
        self.limit = limit
        self._clock = clock
        self._minute = -1
        self._count = 0

    def arrive(self) -> Verdict:
        """Count the request in hand, at the time it came in."""
        minute = int(_came_in(self._clock) // 60)
        if minute != self._minute:
            self._minute, self._count = minute, 0
        self._count += 1
        return Verdict.WELCOME if self._count <= self.limit else Verdict.REFUSED

    def wait(self) -> float:
        """Seconds until the next minute begins."""
        return 60 - self._clock.monotonic() % 60


# --- serving ---------------------------------------------------------------------------------------------------------


@frozen
class Running:
    """A face over a world that can be talked to."""

    face: Face
    account: Account
    app: App
    origin: str
    credentials: Mapping[str, str]

    @property
    def base_url(self) -> str:
        """What a client is given as its base address."""
        return self.origin + self.face.prefix

    @property
    def world(self) -> World:
        return self.account.world

    @property
    def stats(self) -> Stats:
        return self.account.stats

    @property
    def faults(self) -> Faults:
        return self.account.faults

    def meanwhile(self, work: Callable[[World], object], *, every: int = 1) -> None:
        """Somebody else works in this account: ``work`` gets the world before every so-manieth request is answered."""
        self.account.colleagues.append((every, work))

    @property
    def script(self) -> str:
        """A program that talks to this sandbox, to paste."""
        return self.face.script(self.base_url, self.credentials)

    def transport(self) -> "httpx.AsyncBaseTransport":
        """A transport for httpx that reaches the face without a socket."""
        import httpx

        class Reaching(httpx.ASGITransport):
            """A connection that was to end ends as one does on a wire."""

            async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
                try:
                    return await super().handle_async_request(request)
                except Dropped as cut:
                    if not cut.messages:
                        raise httpx.RemoteProtocolError("Server disconnected without sending a response.") from None
                    start, body = cut.messages
                    return httpx.Response(start["status"], headers=start["headers"], stream=Torn(body["body"]))

        class Torn(httpx.AsyncByteStream):
            def __init__(self, half: bytes) -> None:
                self._half = half

            async def __aiter__(self) -> AsyncGenerator[bytes]:
                yield self._half
                raise httpx.RemoteProtocolError("peer closed connection without sending complete message body")

        return Reaching(self.app)


def in_process(
    face: Face,
    world: World,
    *,
    switches: Mapping[str, Setting] | None = None,
    clock: Clock | None = None,
    limits: bool = True,
    faults: Faults | Iterable[Fault | str] = (),
) -> Running:
    """A sandbox without a socket: everything happens in the caller's own event loop, through ``transport()``."""
    account = Account.open(face, world, switches=switches, clock=clock, limits=limits, faults=faults)
    return _started(face, account, "http://localhost")


@asynccontextmanager
async def serve(
    face: Face,
    world: World,
    *,
    port: int = 0,
    switches: Mapping[str, Setting] | None = None,
    clock: Clock | None = None,
    limits: bool = True,
    faults: Faults | Iterable[Fault | str] = (),
) -> AsyncGenerator[Running]:
    """Serve over real HTTP on loopback while the block runs. The world stays open; closing it is its owner's affair."""
    account = Account.open(face, world, switches=switches, clock=clock, limits=limits, faults=faults)
    listener = _listen(port)
    try:
        running = _started(face, account, f"http://127.0.0.1:{listener.getsockname()[1]}")
        with _aside(running.app, account.clock) as app:
            async with _listening(app, listener):
                yield running
    finally:
        listener.close()


@contextmanager
def served(chosen: Face, world: World, *, limits: bool = True) -> Generator[Running]:
    """``serve`` in a thread and a loop of its own: what keeps the client busy must not make the server's clock late."""
    ready: Future[tuple[Running, Callable[[], None]]] = Future()

    async def serving() -> None:
        leaving, loop = asyncio.Event(), asyncio.get_running_loop()
        async with serve(chosen, world, limits=limits) as running:
            ready.set_result((running, lambda: cast("None", loop.call_soon_threadsafe(leaving.set))))
            await leaving.wait()

    def run() -> None:
        try:
            asyncio.run(serving())
        except BaseException as error:
            if ready.done():
                raise
            ready.set_exception(error)

    thread = threading.Thread(target=run, name=f"sandbox {chosen.name}", daemon=True)
    thread.start()
    running, leave = ready.result()
    try:
        yield running
    finally:
        with suppress(RuntimeError):  # its loop has ended by itself
            leave()
        thread.join(timeout=10)


def _started(face: Face, account: Account, origin: str) -> Running:
    credentials = face.credentials(account)
    app = faulty(face.build(account), account.faults, account.clock)
    return Running(face, account, _counted(app, account), origin, credentials)


def _counted(app: App, account: Account) -> App:
    async def counted(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        account.arrived(scope["method"], scope["path"])

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                account.stats.answered(message["status"])
            await send(message)

        await app(scope, receive, answer)

    return counted


@contextmanager
def _aside(app: App, clock: Clock) -> Generator[App]:
    """The face in an event loop of its own, one request after the other, as the world wants it.

    The loop that serves only takes requests in and hands answers out, so that a request is stamped when it comes and not
    when a long write before it is done: a vendor's gateway counts that way too.
    """
    loop = asyncio.new_event_loop()

    def run() -> None:
        loop.run_forever()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()

    thread = threading.Thread(target=run, name="sandbox face", daemon=True)
    thread.start()

    async def face_of(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        at, body, more = clock.monotonic(), b"", True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return  # the client went away before it had said what it wanted
            body += message.get("body", b"")
            more = message.get("more_body", False)
        answering = asyncio.run_coroutine_threadsafe(_answer(app, scope, body, at), loop)
        try:
            for message in await asyncio.wrap_future(answering):
                await send(message)
        except Dropped as cut:
            for message in cut.messages:
                await send(message)
            await _hang_up(send)

    try:
        yield face_of
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


async def _hang_up(send: Send) -> None:
    """End the connection. ASGI has no word for it: uvicorn's own transport is asked, after what it holds has gone out."""
    cycle: Any = getattr(send, "__self__", None)
    if not hasattr(cycle, "transport"):
        raise RuntimeError("this server's connections cannot be ended from inside: faults need uvicorn")
    cycle.transport.close()
    for _ in range(1_000):
        # Until the server knows: it would answer 500 to a request that nobody has answered.
        if cycle.disconnected:
            return
        await anyio.lowlevel.checkpoint()


async def _answer(app: App, scope: Scope, body: bytes, at: float) -> list[Message]:
    """What the face answers to a request that came in at that time."""
    _ARRIVAL.set(at)
    messages: list[Message] = []
    asked: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return asked.pop() if asked else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        messages.append(message)

    await app(scope, receive, send)
    return messages


def _listen(port: int) -> socket.socket:
    # Bound here and not by uvicorn, which leaves the whole process with sys.exit when the port is taken.
    # The protocol is named because asyncio sets TCP_NODELAY only where it is: without it every answer takes 40 ms longer.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(128)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(port) from error
        raise
    return listener


@asynccontextmanager
async def _listening(app: App, listener: socket.socket) -> AsyncGenerator[None]:
    try:
        import uvicorn
    except ImportError as error:
        raise ImportError(f"the sandbox server needs uvicorn: {_EXTRA}") from error

    ready, leaving = anyio.Event(), anyio.Event()

    class Server(uvicorn.Server):
        """uvicorn inside somebody else's event loop: no signal handlers, and it leaves when it is told to."""

        @contextmanager
        def capture_signals(self) -> Generator[None]:
            yield

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready.set()

        async def main_loop(self) -> None:
            ticks = 0
            while not leaving.is_set():
                await self.on_tick(ticks)
                ticks = (ticks + 1) % 864_000
                with anyio.move_on_after(0.1):
                    await leaving.wait()

    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="critical",
        access_log=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=2,
    )
    serving = asyncio.create_task(Server(config).serve(sockets=[listener]), name="sandbox server")
    starting = asyncio.create_task(ready.wait(), name="sandbox start")
    try:
        await asyncio.wait((serving, starting), return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            await serving
            raise RuntimeError("the sandbox server ended before it began")
        yield
    finally:
        leaving.set()
        starting.cancel()
        with anyio.CancelScope(shield=True):
            await asyncio.wait((serving, starting))
    await serving


# --- which faces there are -------------------------------------------------------------------------------------------


def faces() -> dict[str, Face]:
    """Every sandbox that is installed, by name."""
    return {point.name: _load(point) for point in sorted(entry_points(group=GROUP), key=lambda point: point.name)}


@cache
def face(name: str) -> Face:
    """The sandbox of this name; no other is imported."""
    points = entry_points(group=GROUP)
    found = [point for point in points if point.name == name]
    if not found:
        raise NoSuchFace(name, sorted(point.name for point in points))
    return _load(found[0])


def _load(point: EntryPoint) -> Face:
    try:
        loaded = point.load()
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("starlette", "uvicorn"):
            raise ImportError(f"the {point.name} sandbox needs {missing}: {_EXTRA}") from error
        raise
    if not isinstance(loaded, Face):
        raise TypeError(f"the entry point {point.value} of {GROUP} is not a Face")
    return loaded
