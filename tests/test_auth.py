"""A token is renewed once, saved before it is used, never lost with a task, and never shown to anybody."""

import asyncio
import json
import logging
import os
import pickle
import stat
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from attrs import define, evolve, field, frozen

from crmclient import (
    AuthFailed,
    Contact,
    CRMError,
    FileTokens,
    MemoryTokens,
    Misconfigured,
    OAuthApp,
    ReauthorizationRequired,
    Secret,
    connect,
)
from crmclient.auth import AccessToken, Bearer, Login, LoginEachCall, LoginInBody, LoginNames
from crmclient.client import Client
from crmclient.clock import FakeClock
from crmclient.dialect import Call, Token, read
from crmclient.registry import dialect
from crmclient.sandbox.server import Running, in_process
from crmclient.sandbox.world import World
from crmclient.serial import to_tree, token_from_tree, token_to_tree
from crmclient.session import Limits
from crmclient.tokens import TokenStore, stored_as
from crmclient_kommo.sandbox import FACE, Grants, grants

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


@define
class Noted(MemoryTokens):
    """A store that tells the wire's story when it saved."""

    events: list[str] = field(factory=list)

    def __attrs_post_init__(self) -> None:
        super().__init__()

    async def save(self, account: str, token: Token) -> None:
        self.events.append(f"saved {token.access.reveal()}")
        await super().save(account, token)


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


# ------------------------------------------------------------------------------------------------------ code and refresh


@pytest.mark.asyncio
async def test_a_code_is_spent_once_and_the_token_kept_for_the_next_client():
    async with shop() as given:
        async with given.client(given.grants.mint_code()) as crm:
            await crm.account()
            await crm.me()
        assert given.token_calls == 1
        async with given.client() as crm:
            await crm.account()
        assert given.token_calls == 1


@pytest.mark.asyncio
async def test_without_a_token_and_a_code_a_person_is_asked_and_nothing_is_sent():
    async with shop() as given, given.client() as crm:
        with pytest.raises(ReauthorizationRequired, match="crmclient login"):
            await crm.account()
        assert given.wire.events == []


@pytest.mark.asyncio
async def test_a_token_that_has_expired_is_renewed_before_it_is_tried():
    async with shop() as given:
        old = await given.enter()
        given.clock.advance(24 * 3600)
        given.wire.events.clear()
        async with given.client() as crm:
            await crm.account()
        new = await given.held()
        assert given.wire.events == ["token call", new.access.reveal()]
        assert new.access != old.access
        assert new.refresh != old.refresh


@pytest.mark.asyncio
@pytest.mark.parametrize("told_by", ["the clock", "a 401"])
async def test_fifty_tasks_on_an_expired_token_make_one_refresh(told_by):
    async with shop() as given:
        old = await given.enter()
        if told_by == "the clock":
            given.clock.advance(24 * 3600)
        else:
            given.grants.revoke_access(old.access.reveal())
        async with given.client() as crm:
            await asyncio.gather(*(crm.call(read("/api/v4/account")) for _ in range(50)))
        assert given.grants.refreshes == 1
        assert given.grants.refused_refreshes == 0
        assert given.token_calls == 1


@pytest.mark.asyncio
async def test_a_401_to_a_token_that_another_task_has_replaced_renews_nothing():
    async with shop() as given:
        old = await given.enter()
        late = asyncio.Event()
        async with given.client() as crm:
            original = given.wire.inner

            class Slow(httpx.AsyncBaseTransport):
                async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
                    answer = await original.handle_async_request(request)
                    if request.url.params.get("late"):
                        await late.wait()  # its 401 arrives when the token has long been renewed
                    return answer

            given.wire.inner = Slow()
            given.grants.revoke_access(old.access.reveal())
            slow = asyncio.create_task(crm.call(read("/api/v4/account", ("late", "1"))))
            await settle()
            assert given.wire.events[-1] == old.access.reveal()
            await crm.account()
            assert given.grants.refreshes == 1
            late.set()
            assert (await slow).ok
        assert given.grants.refreshes == 1


@pytest.mark.asyncio
async def test_a_renewed_token_is_saved_before_it_is_used():
    store = Noted()
    async with shop(store) as given:
        old = await given.enter()
        given.grants.revoke_access(old.access.reveal())
        given.wire.events.clear()
        store.events = given.wire.events
        async with given.client() as crm:
            await crm.account()
        new = (await given.held()).access.reveal()
        assert given.wire.events == [old.access.reveal(), "token call", f"saved {new}", new]


@pytest.mark.asyncio
@pytest.mark.parametrize("strict_rotation", [False, True])
@pytest.mark.parametrize("when", ["before_token", "after_token"])
async def test_a_caller_cancelled_during_the_renewal_does_not_take_the_new_token_with_it(when, strict_rotation):
    async with shop(strict_rotation=strict_rotation) as given:
        old = await given.enter()
        given.clock.advance(24 * 3600)
        reached = asyncio.Event()

        async def linger() -> None:
            reached.set()
            await given.clock.sleep(5)

        setattr(given.wire, when, linger)
        async with given.client() as crm:
            caller = asyncio.create_task(crm.account())
            await reached.wait()
            caller.cancel()
            with pytest.raises(asyncio.CancelledError):
                await caller
            assert await given.held() == old
            await given.clock.sleep(10)
            assert await given.held() != old
            await crm.account()
            assert given.grants.refreshes == 1
            assert others() == set()


@pytest.mark.asyncio
async def test_a_caller_may_be_cancelled_at_any_point_of_a_renewal():
    async with shop(strict_rotation=True) as given:
        await given.enter()
        for turns in range(0, 120, 3):
            given.clock.advance(24 * 3600)
            async with given.client() as crm:
                caller = asyncio.create_task(crm.account())
                for _ in range(turns):
                    await asyncio.sleep(0)
                caller.cancel()
                await asyncio.gather(caller, return_exceptions=True)
                await crm.account()
        assert given.grants.refused_refreshes == 0
        assert given.grants.knows_refresh((await given.held()).refresh.reveal())


@pytest.mark.asyncio
async def test_closing_a_client_lets_its_renewal_end():
    async with shop(strict_rotation=True) as given:
        await given.enter()
        given.clock.advance(24 * 3600)
        reached = asyncio.Event()

        async def linger() -> None:
            reached.set()
            await given.clock.sleep(5)

        given.wire.after_token = linger
        crm = given.client()
        caller = asyncio.create_task(crm.account())
        await reached.wait()
        caller.cancel()
        await asyncio.gather(caller, return_exceptions=True)
        await crm.aclose()
        assert given.grants.knows_refresh((await given.held()).refresh.reveal())


# ------------------------------------------------------------------------------------------- siblings, losses, refusals


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


@pytest.mark.asyncio
async def test_a_refused_refresh_reads_the_store_again_and_uses_what_a_faster_sibling_saved():
    store = Unguarded()
    async with shop(store, strict_rotation=True) as given:
        old = await given.enter()
        given.clock.advance(24 * 3600)

        async def sibling() -> None:
            given.wire.before_token = None
            pair = await ask(given, old.refresh.reveal())
            now = given.clock.now()
            await store.save(
                ACCOUNT,
                Token(
                    access=Secret(pair["access_token"]),
                    refresh=Secret(pair["refresh_token"]),
                    issued_at=now,
                    expires_at=now + timedelta(days=1),
                ),
            )

        given.wire.before_token = sibling
        async with given.client() as crm:
            await crm.account()
        assert given.grants.refused_refreshes == 1


@pytest.mark.asyncio
async def test_a_token_that_a_sibling_has_renewed_is_taken_from_the_store():
    async with shop(strict_rotation=True) as given:
        await given.enter()
        async with given.client() as one, given.client() as other:
            await one.account()
            await other.account()
            given.clock.advance(24 * 3600)
            await one.account()
            other._session.forget("account")
            await other.account()
        assert given.grants.refreshes == 1


@pytest.mark.asyncio
async def test_two_clients_on_one_token_file_make_one_refresh(tmp_path):
    async with shop(FileTokens(tmp_path), strict_rotation=True) as given:
        await given.enter()
        given.clock.advance(24 * 3600)
        async with given.client(tokens=FileTokens(tmp_path)) as one, given.client(tokens=FileTokens(tmp_path)) as other:
            await asyncio.gather(*(crm.call(read("/api/v4/account")) for crm in [one, other] * 10))
        assert (given.grants.refreshes, given.grants.refused_refreshes) == (1, 0)


@pytest.mark.asyncio
async def test_closing_does_not_wait_for_ever_for_a_sibling_that_hangs_with_the_lock(tmp_path):
    async with shop(FileTokens(tmp_path)) as given:
        await given.enter()
        crm = given.client(limits=Limits(read=0.05))
        await crm.account()
        given.clock.advance(24 * 3600)
        async with FileTokens(tmp_path).lock(ACCOUNT):
            caller = asyncio.create_task(crm.me())
            await settle()
            caller.cancel()
            await asyncio.gather(caller, return_exceptions=True)
            closing = asyncio.create_task(crm.aclose())
            done, _ = await asyncio.wait([closing], timeout=1)
        await closing
        assert done, "it waits for as long as the sibling hangs"
        assert others() == set()


@pytest.mark.asyncio
async def test_a_renewal_whose_answer_was_lost_is_asked_for_again_with_the_old_refresh_token():
    async with shop() as given:
        await given.enter()
        given.clock.advance(24 * 3600)

        async def drop() -> None:
            given.wire.after_token = None
            raise httpx.ReadError("reset")

        given.wire.after_token = drop
        async with given.client() as crm:
            await crm.account()
        assert given.grants.refreshes == 2
        assert given.grants.knows_refresh((await given.held()).refresh.reveal())


@pytest.mark.asyncio
async def test_a_dead_refresh_token_is_not_hammered():
    async with shop() as given:
        old = await given.enter()
        given.grants.revoke_refresh(old.refresh.reveal())
        given.clock.advance(24 * 3600)
        async with given.client() as crm:
            told = await asyncio.gather(*(crm.account() for _ in range(50)), return_exceptions=True)
            assert {type(error) for error in told} == {ReauthorizationRequired}
            for _ in range(5):
                with pytest.raises(ReauthorizationRequired):
                    await crm.account()
            assert given.token_calls == 1
            given.clock.advance(61)
            with pytest.raises(ReauthorizationRequired):
                await crm.account()
            assert given.token_calls == 2
        assert await given.held() == old, "a refused token may be mended by a person; it is never wiped"


@pytest.mark.asyncio
async def test_a_spent_code_is_not_hammered():
    async with shop() as given:
        code = given.grants.mint_code()
        async with given.client(code, tokens=MemoryTokens()) as crm:
            await crm.account()
        async with given.client(code, tokens=MemoryTokens()) as crm:
            told = await asyncio.gather(*(crm.account() for _ in range(10)), return_exceptions=True)
            assert {type(error) for error in told} == {ReauthorizationRequired}
            with pytest.raises(ReauthorizationRequired):
                await crm.account()
        assert given.token_calls == 2


@pytest.mark.asyncio
async def test_a_person_who_logs_in_again_brings_a_dead_client_back():
    async with shop() as given:
        old = await given.enter()
        given.grants.revoke_refresh(old.refresh.reveal())
        given.grants.revoke_access(old.access.reveal())
        async with given.client() as crm:
            with pytest.raises(ReauthorizationRequired):
                await crm.account()
            async with given.client(given.grants.mint_code(), tokens=MemoryTokens()) as login:
                await login.account()
                await given.store.save(ACCOUNT, login._session._keeper.held)
            await crm.account()


@pytest.mark.asyncio
async def test_an_error_of_one_renewal_does_not_stick_to_the_next():
    async with shop() as given:
        await given.enter()
        given.clock.advance(24 * 3600)

        async def down() -> None:
            raise httpx.ConnectError("refused")

        given.wire.before_token = down
        async with given.client() as crm:
            with pytest.raises(CRMError):
                await crm.account()
            given.wire.before_token = None
            await crm.account()


class Full(MemoryTokens):
    """A store whose disk is full."""

    full = False

    async def save(self, account: str, token: Token) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        await super().save(account, token)


@pytest.mark.asyncio
async def test_a_renewed_token_that_cannot_be_saved_is_not_lost():
    store = Full()
    async with shop(store, strict_rotation=True) as given:
        await given.enter()
        given.clock.advance(24 * 3600)
        store.full = True
        async with given.client() as crm:
            await asyncio.gather(crm.account(), return_exceptions=True)  # it may complain; it may not forget
            store.full = False
            await crm.account()
        assert given.grants.refused_refreshes == 0


class Watched(MemoryTokens):
    """A store that fails once and then watches who saves: only whoever holds the lock, and one at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.fails = False
        self.locked = self.saving = 0
        self.seen: list[str] = []

    @asynccontextmanager
    async def lock(self, account: str) -> AsyncGenerator[None]:
        async with super().lock(account):
            self.locked += 1
            yield
            self.locked -= 1

    async def save(self, account: str, token: Token) -> None:
        if not self.locked:
            self.seen.append("saved without the lock")
        if self.saving:
            self.seen.append("saved twice at once")
        self.saving += 1
        await settle()
        self.saving -= 1
        if self.fails:
            raise OSError(28, "No space left on device")
        await super().save(account, token)


@pytest.mark.asyncio
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
async def test_a_token_is_saved_under_its_lock_and_by_one_task_at_a_time():
    store = Watched()
    async with shop(store, strict_rotation=True) as given:
        await given.enter()
        given.clock.advance(24 * 3600)
        store.fails = True
        async with given.client() as crm:
            await asyncio.gather(crm.account(), return_exceptions=True)
            store.fails = False
            await asyncio.gather(*(crm.call(read("/api/v4/account")) for _ in range(10)))
        assert store.seen == []
        assert given.grants.knows_refresh((await given.held()).refresh.reveal()), "it was never saved after all"


# ---------------------------------------------------------------------------------------------- what token answers hold


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


DAY = 24 * 3600.0


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "more, lives",
    [
        ({"expires_in": 86400}, DAY),
        ({"expires_in": "3600"}, 3600),
        ({}, DAY),
        ({"expires_in": None}, DAY),
        ({"expires_in": 0}, DAY),
        ({"expires_in": -5}, DAY),
        ({"expires_in": "soon"}, DAY),
        ({"expires_in": 10**12}, DAY),
        ({"expires_in": [1]}, DAY),
        ({"expires_in": True}, DAY),
        ({"expires_in": 3600, "scope": "crm", "server_time": 1}, 3600),
    ],
)
@pytest.mark.parametrize("rotates", [True, False])
async def test_a_token_answer_is_read_for_what_it_holds(more, lives, rotates):
    clock = FakeClock()
    store = await stale(clock)
    body = {"access_token": "new", **({"refresh_token": "rotated"} if rotates else {}), **more}
    async with at(Vendor([body]), clock, store) as crm:
        await crm.call(read("/x"))
    token = await store.load(ACCOUNT)
    assert token is not None
    assert token.access.reveal() == "new"
    assert token.refresh is not None
    assert token.refresh.reveal() == ("rotated" if rotates else "CANARY-old-refresh")
    assert token.expires_at == clock.now() + timedelta(seconds=lives)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "body",
    [
        {},
        {"access_token": ""},
        {"access_token": None, "refresh_token": "CANARY-new"},
        {"access_token": 7, "refresh_token": "CANARY-new"},
        ["CANARY-new"],
        b"<html>CANARY-new</html>",
        b'{"token_type":"Bearer","access_token":"CANARY-new","refresh_token":"CANARY-ne',
        b"",
    ],
)
async def test_a_token_answer_that_holds_no_token_changes_nothing_and_is_not_shown(body):
    clock = FakeClock()
    store = await stale(clock)
    vendor = Vendor([body, {"access_token": "good"}])
    async with at(vendor, clock, store) as crm:
        with pytest.raises(CRMError) as told:
            await crm.call(read("/x"))
        assert "CANARY" not in told_of(told.value)
        assert (await store.load(ACCOUNT)).refresh.reveal() == "CANARY-old-refresh"
        await crm.call(read("/x"))
    assert {asked["refresh_token"] for asked in vendor.asked} == {"CANARY-old-refresh"}


@pytest.mark.asyncio
async def test_a_short_lived_token_is_not_renewed_at_every_call():
    clock = FakeClock()
    store = await stale(clock)
    vendor = Vendor([{"access_token": f"a{n}", "expires_in": 30} for n in range(20)])
    async with at(vendor, clock, store) as crm:
        for _ in range(25):
            await crm.call(read("/x"))
            clock.advance(1)
        assert len(vendor.asked) == 1
        clock.advance(4)
        await crm.call(read("/x"))
        assert len(vendor.asked) == 2


@pytest.mark.asyncio
@pytest.mark.parametrize("off", [timedelta(days=-2), timedelta(days=2)])
async def test_a_machine_whose_clock_is_days_off_does_not_renew_at_every_call(off):
    clock = FakeClock()
    theirs = (clock.now() + off).strftime("%a, %d %b %Y %H:%M:%S GMT")
    store = await stale(clock)
    vendor = Vendor([{"access_token": f"a{n}", "expires_in": 86400} for n in range(20)], date=theirs)
    async with at(vendor, clock, store) as crm:
        for _ in range(10):
            await crm.call(read("/x"))
    assert len(vendor.asked) == 1


# --------------------------------------------------------------------------------------------------------- token files

TOKEN = Token(access=Secret("CANARY-a"), refresh=Secret("CANARY-r"))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.asyncio
@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
async def test_a_token_file_is_for_its_user_only_whatever_the_umask(tmp_path, umask):
    store = FileTokens(tmp_path / "deep" / "tokens")
    before = os.umask(umask & 0o077)  # a umask that locks out oneself is nobody's
    try:
        async with store.lock("kommo-x"):
            await store.save("kommo-x", TOKEN)
    finally:
        os.umask(before)
    files = list(store.folder.iterdir())
    assert {mode(file) for file in files} == {0o600}
    assert mode(store.folder) == 0o700
    assert await store.load("kommo-x") == TOKEN


@pytest.mark.asyncio
async def test_a_token_comes_back_as_it_went(tmp_path):
    clock = FakeClock()
    token = evolve(TOKEN, issued_at=clock.now(), expires_at=clock.now() + timedelta(days=1))
    assert token_from_tree(token_to_tree(token)) == token
    store = FileTokens(tmp_path)
    assert await store.load("kommo-x") is None
    await store.save("kommo-x", token)
    assert await FileTokens(str(tmp_path)).load("kommo-x") == token


@pytest.mark.asyncio
@pytest.mark.parametrize("account", ["../../etc/passwd", "kommo-a:8080", "a/b", "..", "Ы", "a\0b", ""])
async def test_whatever_an_account_is_called_its_file_stays_in_the_folder(tmp_path, account):
    store = FileTokens(tmp_path / "tokens")
    await store.save(account, TOKEN)
    assert await store.load(account) == TOKEN
    assert [path.parent for path in tmp_path.rglob("*") if path.is_file()] == [store.folder]


@pytest.mark.asyncio
@pytest.mark.parametrize("name", ["kommo-x.json", "kommo-x.new", "kommo-x.lock"])
async def test_a_symlink_in_place_of_a_file_leads_nowhere(tmp_path, name):
    victim = tmp_path / "victim"
    victim.write_text('{"access":"precious"}')
    store = FileTokens(tmp_path / "tokens")
    store.folder.mkdir(mode=0o700)
    (store.folder / name).symlink_to(victim)
    if name.endswith(".json"):
        with pytest.raises(Misconfigured, match="cannot be read"):
            await store.load("kommo-x")
    try:
        async with asyncio.timeout(1), store.lock("kommo-x"):
            await store.save("kommo-x", TOKEN)
    except (OSError, Misconfigured):
        assert name.endswith(".lock")
    assert victim.read_text() == '{"access":"precious"}'


DAMAGED = {
    "empty": b"",
    "cut": b'{"access":"CANARY-a","refr',
    "binary": bytes(range(256)),
    "NUL": b"\0" * 100,
    "a list": b'["CANARY-a"]',
    "null": b"null",
    "no access": b'{"refresh":"CANARY-r"}',
    "of another type": b'{"access":7,"refresh":"CANARY-r"}',
    "a date that is none": b'{"access":"CANARY-a","expires_at":"soon"}',
    "deep": b"[" * 100_000,
    "large": b'{"access":"' + b"x" * (2 << 20) + b'"}',
}


@pytest.mark.asyncio
@pytest.mark.parametrize("how", DAMAGED)
async def test_a_damaged_token_file_is_said_to_be_and_left_in_place(tmp_path, how):
    store, file = FileTokens(tmp_path), tmp_path / f"{ACCOUNT}.json"
    file.write_bytes(DAMAGED[how])
    async with at(Vendor([]), FakeClock(), store) as crm:
        with pytest.raises(Misconfigured, match="damaged") as told:
            await crm.call(read("/x"))
    assert str(file) in str(told.value)
    assert "CANARY" not in told_of(told.value)
    assert file.read_bytes() == DAMAGED[how]


@pytest.mark.asyncio
async def test_a_folder_in_place_of_a_token_file_is_said_to_be_none(tmp_path):
    (tmp_path / "kommo-x.json").mkdir()
    with pytest.raises(Misconfigured, match="no regular file"):
        await FileTokens(tmp_path).load("kommo-x")


@pytest.mark.asyncio
async def test_a_pipe_in_place_of_a_token_file_does_not_hang_the_client(tmp_path):
    pipe = tmp_path / "kommo-x.json"
    os.mkfifo(pipe)
    loading = asyncio.create_task(FileTokens(tmp_path).load("kommo-x"))
    done, _ = await asyncio.wait([loading], timeout=1)
    if not done:
        os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))  # lets the stuck thread go
        await asyncio.gather(loading, return_exceptions=True)
    assert done, "opening the pipe waits for a writer, for ever"
    with pytest.raises(Misconfigured):
        loading.result()


@pytest.mark.asyncio
@pytest.mark.parametrize("step", ["os.fsync", "pathlib.Path.replace", "json.dump"])
async def test_a_save_that_breaks_off_leaves_the_old_token_whole(tmp_path, monkeypatch, step):
    store = FileTokens(tmp_path)
    await store.save("kommo-x", TOKEN)
    with monkeypatch.context() as patched:

        def fail(*_: Any, **__: Any) -> None:
            raise OSError(28, "No space left on device")

        patched.setattr(step, fail)
        with pytest.raises(OSError, match="space"):
            await store.save("kommo-x", evolve(TOKEN, access=Secret("new")))
    assert await store.load("kommo-x") == TOKEN
    await store.save("kommo-x", evolve(TOKEN, access=Secret("new")))
    assert (await store.load("kommo-x")).access.reveal() == "new"
    assert len(list(tmp_path.iterdir())) == 1, "what the broken save left behind is still there"


@pytest.mark.asyncio
async def test_a_token_file_is_replaced_and_never_written_over(tmp_path):
    store, file = FileTokens(tmp_path), tmp_path / "kommo-x.json"
    await store.save("kommo-x", TOKEN)
    with file.open("rb") as reader:  # somebody is reading while it is replaced
        await store.save("kommo-x", evolve(TOKEN, access=Secret("other")))
        assert json.load(reader)["access"] == "CANARY-a"


# ------------------------------------------------------------------------------------------------ nothing shows a secret


def told_of(error: BaseException) -> str:
    """Everything an error would print, its causes included."""
    shown = "".join(traceback.format_exception(error))
    seen: BaseException | None = error
    while seen is not None:
        shown += f"{seen}{seen!r}{seen.args!r}{vars(seen)!r}"
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return shown


def test_a_secret_shows_itself_only_when_asked():
    secret = Secret("CANARY")
    shown = [repr(secret), str(secret), f"{secret}", "%s %r" % (secret, secret), repr([secret]), repr({secret: secret})]  # noqa: UP031
    shown += [repr(AccessToken(secret)), repr(TOKEN), repr(APP), str(to_tree(TOKEN)), repr(Login("u", hash=secret))]
    shown += [repr(LoginEachCall("u", password="CANARY"))]
    assert "CANARY" not in " ".join(shown)
    assert secret.reveal() == "CANARY"
    assert Secret(secret) == secret == Secret("CANARY") != "CANARY"
    assert hash(secret) == hash(Secret("CANARY"))
    assert bool(secret) is True
    assert bool(Secret("")) is False


@pytest.mark.parametrize(
    "value", [Secret("CANARY"), AccessToken("CANARY"), APP, TOKEN], ids=lambda value: type(value).__name__
)
def test_a_secret_is_not_pickled(value):
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="not pickled"):
            pickle.dumps(value, protocol)
    with pytest.raises(TypeError):
        json.dumps(value)


def test_a_secret_does_not_stand_in_a_traceback_that_shows_locals():
    def use(secret: Secret) -> None:
        held = {"secret": secret, "app": APP, "token": TOKEN}
        raise RuntimeError(f"{len(held)} {secret}")

    def shown(canary: str) -> str:
        try:
            use(Secret(canary))
        except RuntimeError as error:
            canary = ""
            return "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
        return ""

    told = shown("CANARY")
    assert "Secret(…)" in told
    assert "CANARY" not in told


@pytest.mark.asyncio
async def test_no_repr_of_what_a_client_is_made_of_shows_a_token():
    clock = FakeClock()
    store = await stale(clock)
    vendor = Vendor([{"access_token": "CANARY-new", "refresh_token": "CANARY-newer"}])
    async with at(vendor, clock, store) as crm:
        await crm.call(read("/x"))
        session = crm._session
        parts = [crm, session, session._setup, session._keeper, store, session._setup.credentials, crm.contacts]
        parts += [session._keeper.held, crm.spent, session._http, session._pacer]
        assert "CANARY" not in " ".join(f"{part!r} {part}" for part in parts)


def test_a_signed_call_does_not_show_what_it_was_signed_with():
    token = Token(access=Secret("CANARY"))
    signed = Bearer().sign(read("/x"), token)
    assert signed.headers["Authorization"] == "Bearer CANARY"
    assert "CANARY" not in f"{signed!r} {signed}"
    names = LoginNames("USER_LOGIN", "USER_HASH", "USER_PASSWORD")
    scheme = LoginInBody(names=names)
    login = scheme.at_hand(LoginEachCall("u", hash="CANARY"))
    assert login is not None
    assert "CANARY" not in repr(scheme.sign(Call("POST", "/x"), login))


ECHOES = {
    "an HTML page": lambda sent: (200, f"<html>you sent {sent}</html>"),
    "broken JSON": lambda sent: (200, f'{{"you sent": "{sent}'),
    "a JSON error": lambda sent: (400, json.dumps({"title": "Bad", "detail": f"token {sent} is odd", "hint": sent})),
    "a validation error": lambda sent: (
        400,
        json.dumps(
            {"validation-errors": [{"request_id": "0", "errors": [{"code": sent, "path": "name", "detail": sent}]}]}
        ),
    ),
    "a 401": lambda sent: (401, json.dumps({"title": sent, "detail": f"the token {sent} has expired"})),
    "a 500": lambda sent: (500, json.dumps({"detail": sent})),
    "an odd list": lambda sent: (200, json.dumps({"_embedded": {"contacts": sent}})),
}


@pytest.mark.asyncio
@pytest.mark.parametrize("length", [20, 1000])
@pytest.mark.parametrize("how", ECHOES)
@pytest.mark.parametrize("write", [False, True])
async def test_a_server_that_echoes_the_token_does_not_get_it_into_an_error(how, length, write):
    token = "CANARY" * (length // 6)

    def echo(request: httpx.Request) -> httpx.Response:
        status, text = ECHOES[how](request.headers["authorization"].removeprefix("Bearer "))
        return httpx.Response(status, stream=httpx.ByteStream(text.encode()))

    transport = httpx.MockTransport(echo)
    async with connect("kommo", base_url=BASE, credentials=token, transport=transport, clock=FakeClock()) as crm:
        with pytest.raises(CRMError) as told:
            if write:
                await crm.contacts.create(Contact(name="Ivan"))
            else:
                await anext(aiter(crm.contacts.pages()))
    assert "CANARY" not in told_of(told.value)


@pytest.mark.asyncio
@pytest.mark.parametrize("status", [401, 500])
async def test_a_traceback_that_shows_locals_shows_no_token(status):
    """Error trackers collect the locals of every frame; of ours none may hold a credential in the open."""

    def fail(request: httpx.Request) -> httpx.Response:
        return httpx.Response(status, stream=httpx.ByteStream(b"{}"))

    clock = FakeClock()
    store = await stale(clock)
    wire = httpx.MockTransport(fail)
    shown = ""
    for credentials in ("CANARY-by-hand", APP):
        async with connect(
            "kommo", base_url=BASE, credentials=credentials, tokens=store, transport=wire, clock=clock
        ) as crm:
            with pytest.raises(CRMError) as told:
                await crm.account()
        found = traceback.TracebackException.from_exception(told.value, capture_locals=True)
        shown += "".join(
            line for line in found.format() if "/crmclient/" in line
        )  # frames of ours; httpx's own are cut off by `from None`
    assert shown
    assert "CANARY" not in shown


@pytest.mark.asyncio
async def test_a_token_no_header_may_hold_stands_in_no_local_either():
    transport = httpx.MockTransport(lambda request: httpx.Response(200))
    async with connect("kommo", base_url=BASE, credentials="CANARY\nX: 1", transport=transport) as crm:
        with pytest.raises(Misconfigured) as told:
            await crm.account()
    found = traceback.TracebackException.from_exception(told.value, capture_locals=True)
    assert not [line for line in found.format() if "/crmclient/" in line and "CANARY" in line]


@pytest.mark.asyncio
async def test_no_secret_gets_into_a_log_at_any_level(caplog):
    caplog.set_level(logging.DEBUG)
    for name in ("httpx", "httpcore", "crmclient", "asyncio", "filelock"):
        caplog.set_level(logging.DEBUG, logger=name)
    async with shop() as given:
        code = given.grants.mint_code()
        secrets = {code, given.grants.integration.client_secret}
        async with given.client(code) as crm:
            await crm.account()
            first = await given.held()
            given.grants.revoke_access(first.access.reveal())
            await crm.me()
            second = await given.held()
            secrets |= {first.access.reveal(), first.refresh.reveal()}
            secrets |= {second.access.reveal(), second.refresh.reveal()}
            given.grants.disable()
            with pytest.raises(AuthFailed):
                await crm.call(read("/api/v4/account"))
    told = "\n".join(f"{record.getMessage()} {record.args!r} {record.exc_text}" for record in caplog.records)
    assert "access_token" in told or "HTTP Request" in told, "nothing was logged at all: this test sees nothing"
    assert not [secret[:12] for secret in secrets if secret in told]


@frozen(kw_only=True)
class InQuery(Bearer):
    """As the legacy API of one vendor wants it: the key in the address."""

    def sign(self, call: Call, token: Token) -> Call:
        return call.with_query(("USER_HASH", token.access.reveal()))


@pytest.mark.asyncio
@pytest.mark.parametrize("fails", [False, True])
async def test_a_key_in_the_address_gets_neither_into_a_log_nor_into_an_error(caplog, fails):
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, logger="httpx")

    def handler(request: httpx.Request) -> httpx.Response:
        if fails:
            raise httpx.ReadError(f"reset while talking to {request.url}")
        return httpx.Response(200, stream=httpx.ByteStream(b'{"id":1}'))

    spoken = evolve(dialect("kommo"), auth=(InQuery(),))
    transport = httpx.MockTransport(handler)
    shown = ""
    async with connect(spoken, base_url=BASE, credentials="CANARY-hash", transport=transport, clock=FakeClock()) as crm:
        try:
            await crm.call(read("/x"))
        except CRMError as error:
            shown = told_of(error)
    shown += "\n".join(f"{record.getMessage()} {record.args!r}" for record in caplog.records)
    assert "CANARY" not in shown


@pytest.mark.asyncio
async def test_a_vendors_cookie_signs_nothing_unless_a_scheme_says_so():
    seen: list[str | None] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("cookie"))
        return httpx.Response(200, headers={"set-cookie": "s=1; Path=/"}, stream=httpx.ByteStream(b'{"id":1}'))

    transport = httpx.MockTransport(handler)
    async with connect("kommo", base_url=BASE, credentials="t", transport=transport, clock=FakeClock()) as crm:
        await crm.call(read("/x"))
        await crm.call(read("/x"))
    assert seen == [None, None]
