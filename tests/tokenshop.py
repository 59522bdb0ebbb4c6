"""A shop with a sandbox, a wire that obeys and a clock that stands still: where the tests of tokens happen."""

import asyncio
import errno
import json
import os
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import httpx
from attrs import define, field, frozen

from crmclient import MemoryTokens, OAuthApp, Secret, connect
from crmclient.client import Client
from crmclient.clock import FakeClock
from crmclient.dialect import Token
from crmclient.sandbox.server import Running, in_process
from crmclient.sandbox.world import World
from crmclient.tokens import Files, TokenStore, stored_as
from crmclient_kommo.sandbox import FACE, Grants, grants

T = TypeVar("T")

BASE = "https://sandbox.test"
ACCOUNT = stored_as("kommo", "sandbox.test")
TOKENS = "POST /oauth2/access_token"

# ------------------------------------------------------------------------------------------------------ the other side


@define
class Wire(httpx.AsyncBaseTransport):
    """Between the client and the sandbox: remembers what went over it and does with token calls what a test wants."""

    inner: httpx.AsyncBaseTransport
    events: list[str] = field(factory=list)
    before_token: Callable[[], Awaitable[None]] | None = None
    after_token: Callable[[], Awaitable[None]] | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        token = request.url.path == "/oauth2/access_token"
        self.events.append("token call" if token else request.headers["authorization"].removeprefix("Bearer "))
        if token and self.before_token is not None:
            await self.before_token()
        answer = await self.inner.handle_async_request(request)
        if token and self.after_token is not None:
            await self.after_token()
        return answer


@frozen
class Shop:
    run: Running
    clock: FakeClock
    wire: Wire
    store: TokenStore

    @property
    def grants(self) -> Grants:
        return grants(self.run.account)

    @property
    def token_calls(self) -> int:
        return self.run.stats.calls[TOKENS]

    def app(self, code: str | None = None) -> OAuthApp:
        card = self.grants.integration
        return OAuthApp(
            client_id=card.client_id, client_secret=card.client_secret, redirect_uri=card.redirect_uri, code=code
        )

    def client(self, code: str | None = None, **given: Any) -> Client:
        settings = {"tokens": self.store, "transport": self.wire, "clock": self.clock, "base_url": BASE}
        return connect("kommo", credentials=self.app(code), **(settings | given))

    async def enter(self) -> Token:
        """Spend a code, so that the store holds a token."""
        async with self.client(self.grants.mint_code()) as crm:
            await crm.account()
        self.run.stats.calls.clear()
        return await self.held()

    async def held(self) -> Token:
        token = await self.store.load(ACCOUNT)
        assert token is not None
        return token


@asynccontextmanager
async def shop(store: TokenStore | None = None, **switches: Any) -> AsyncGenerator[Shop]:
    clock = FakeClock()
    with World(clock=clock) as world:
        named = {name.replace("_", "-"): value for name, value in switches.items()}
        run = in_process(FACE, world, switches=named, limits=False)
        yield Shop(run, clock, Wire(run.transport()), store or MemoryTokens())


async def settle() -> None:
    for _ in range(100):
        await asyncio.sleep(0)


def others() -> set[asyncio.Task[Any]]:
    return {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}


class Unguarded(MemoryTokens):
    """A store on a network share, say: its lock keeps nobody out."""

    @asynccontextmanager
    async def lock(self, account: str) -> AsyncGenerator[None]:
        yield


async def ask(given: Shop, refresh: str) -> dict[str, Any]:
    """What a sibling does: it renews with the same refresh token, past our client."""
    card = given.grants.integration
    return dict(
        given.grants.exchange(
            {
                "client_id": card.client_id,
                "client_secret": card.client_secret,
                "redirect_uri": card.redirect_uri,
                "grant_type": "refresh_token",
                "refresh_token": refresh,
            }
        )
    )


@define
class Vendor:
    """A token endpoint that answers with what a test says; any other call is fine while its token is the last one."""

    tokens: list[Any]
    date: str | None = None
    asked: list[dict[str, Any]] = field(factory=list)
    calls: int = 0

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        headers = {"date": self.date} if self.date else {}
        if request.url.path != "/oauth2/access_token":
            self.calls += 1
            return httpx.Response(200, headers=headers, stream=httpx.ByteStream(b'{"id":1}'))
        self.asked.append(json.loads(request.content))
        body = self.tokens.pop(0)
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return httpx.Response(200, headers=headers, stream=httpx.ByteStream(content))


TOKEN = Token(access=Secret("CANARY-a"), refresh=Secret("CANARY-r"))
APP = OAuthApp(client_id="id", client_secret="CANARY-secret", redirect_uri="https://x.test", code="CANARY-code")


def at(vendor: Vendor, clock: FakeClock, store: TokenStore, **given: Any) -> Client:
    settings = {"credentials": APP, "base_url": BASE}
    return connect("kommo", tokens=store, clock=clock, transport=httpx.MockTransport(vendor), **(settings | given))


async def stale(clock: FakeClock) -> MemoryTokens:
    store, now = MemoryTokens(), clock.now()
    token = Token(
        access=Secret("CANARY-old-access"),
        refresh=Secret("CANARY-old-refresh"),
        issued_at=now - timedelta(days=2),
        expires_at=now - timedelta(days=1),
    )
    await store.save(ACCOUNT, token)
    return store


def told_of(error: BaseException) -> str:
    """Everything an error would print, its causes included."""
    shown = "".join(traceback.format_exception(error))
    seen: BaseException | None = error
    while seen is not None:
        shown += f"{seen}{seen!r}{seen.args!r}{vars(seen)!r}"
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return shown


class FaultFS(Files):
    """A disk that fails where a test says: by the names of operations."""

    def __init__(self, error: int = errno.ENOSPC) -> None:
        self.error = error
        self.broken: set[str] = set()

    def _do(self, name: str) -> None:
        if name in self.broken:
            raise OSError(self.error, os.strerror(self.error))

    def open(self, path: Path, flags: int) -> int:
        self._do(f"open {path.suffix}")
        return super().open(path, flags)

    def write(self, handle: int, content: bytes) -> None:
        self._do("write")
        super().write(handle, content)

    def sync(self, handle: int) -> None:
        self._do("sync")
        super().sync(handle)

    def lock(self, handle: int) -> bool:
        self._do("lock")
        return super().lock(handle)

    def replace(self, old: Path, new: Path) -> None:
        self._do(f"replace {new.suffix}")
        super().replace(old, new)


class CutAt(Generic[T]):
    """Awaits something and has its own task cancelled at the n-th await on the way, as any caller may be."""

    def __init__(self, what: Coroutine[Any, Any, T], step: int) -> None:
        self._what, self._step = what, step
        self.reached = False

    def __await__(self) -> Generator[Any, None, T]:
        steps, go = 0, partial(self._what.send, None)
        while True:
            try:
                waits_for = go()
            except StopIteration as end:
                return end.value
            steps += 1
            if steps == self._step:
                self.reached = True
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            try:
                yield waits_for
            except BaseException as thrown:
                go = partial(self._what.throw, thrown)
            else:
                go = partial(self._what.send, None)
