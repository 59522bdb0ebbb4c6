"""D. Tokens: renewed once, saved before use, and never lost, whoever is cancelled or killed. Rows of the fault catalogue."""

import asyncio
import errno
import json
import logging
import os
import stat
import sys
import threading
import warnings
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from attrs import define, evolve, field
from filelock import lock_descriptor
from tokenshop import (
    ACCOUNT,
    TOKENS,
    CutAt,
    FaultFS,
    Shop,
    Unguarded,
    Vendor,
    ask,
    at,
    others,
    settle,
    shop,
    stale,
    told_of,
)

from crmclient import (
    AuthFailed,
    ConnectionLost,
    Contact,
    CRMError,
    FileTokens,
    MemoryTokens,
    ReauthorizationRequired,
    Secret,
    Unavailable,
    Unreadable,
    connect,
)
from crmclient.auth import Login
from crmclient.client import Client
from crmclient.clock import FakeClock, SystemClock
from crmclient.dialect import Made, Token, Unknown, read
from crmclient.errors import AccountMoved, TokenStoreFailed
from crmclient.hooks import Happening, TokenRenewed
from crmclient.sandbox.server import Running, in_process, serve
from crmclient.sandbox.world import World
from crmclient.session import Limits
from crmclient.testing.crash import CrashingFiles, CrashingTransport, CrashPoints, SimulatedCrash
from crmclient.tokens import Files, Spending, TokenNotSaved, stored_as
from crmclient_amocrm.sandbox import FACE as OFFICE
from crmclient_amocrm.sandbox import logins
from crmclient_kommo.sandbox import FACE, Grants, grants


@define
class Noted(MemoryTokens):
    """A store that tells the wire's story when it saved."""

    events: list[str] = field(factory=list)

    def __attrs_post_init__(self) -> None:
        super().__init__()

    async def save(self, account: str, token: Token) -> None:
        self.events.append(f"saved {token.access.reveal()}")
        await super().save(account, token)


# ------------------------------------------------------------------------------------------------------ code and refresh


@pytest.mark.asyncio
async def test_fault_076_a_token_that_has_expired_is_renewed_before_it_is_tried():
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
@pytest.mark.parametrize("store", [MemoryTokens, Unguarded])
async def test_fault_067_fifty_tasks_on_an_expired_token_make_one_refresh(told_by, store):
    async with shop(store()) as given:
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
async def test_fault_078_a_401_to_a_token_that_another_task_has_replaced_renews_nothing():
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
async def test_fault_069_a_caller_cancelled_during_the_renewal_does_not_take_the_new_token_with_it(
    when, strict_rotation
):
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
async def test_fault_069_a_caller_may_be_cancelled_at_any_turn_of_the_loop_during_a_renewal():
    async with shop(strict_rotation=True) as given:
        await given.enter()
        for turns in range(120):
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


@define
class Slow(Noted):
    """A store that takes its time to save."""

    saving: asyncio.Event = field(factory=asyncio.Event)
    go_on: asyncio.Event = field(factory=asyncio.Event)

    async def save(self, account: str, token: Token) -> None:
        self.saving.set()
        await self.go_on.wait()
        await super().save(account, token)


@pytest.mark.asyncio
async def test_nobody_uses_a_renewed_token_while_it_is_being_saved():
    store = Slow()
    store.go_on.set()
    async with shop(store) as given:
        old = await given.enter()
        given.grants.revoke_access(old.access.reveal())
        given.wire.events.clear()
        store.events = given.wire.events
        store.saving.clear()
        store.go_on.clear()
        async with given.client() as crm:
            first = asyncio.create_task(crm.call(read("/api/v4/account")))
            await store.saving.wait()
            second = asyncio.create_task(crm.call(read("/api/v4/account")))
            await settle()
            assert set(given.wire.events) == {old.access.reveal(), "token call"}
            store.go_on.set()
            await asyncio.gather(first, second)
        new = (await given.held()).access.reveal()
        assert given.wire.events[-3:] == [f"saved {new}", new, new]


# ------------------------------------------------------------------------------------------- siblings, losses, refusals


@pytest.mark.asyncio
async def test_fault_073_a_refused_refresh_reads_the_store_again_and_uses_what_a_faster_sibling_saved():
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
async def test_fault_068_two_clients_on_one_token_file_make_one_refresh(tmp_path):
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
async def test_fault_071_a_renewal_whose_answer_was_lost_is_asked_for_again_with_the_old_refresh_token():
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
async def test_fault_074_a_dead_refresh_token_is_not_hammered():
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


class Full(MemoryTokens):
    """A store whose disk is full."""

    full = False

    async def save(self, account: str, token: Token) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        await super().save(account, token)


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


# ---------------------------------------------------------------------------------------------- what token answers hold


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
async def test_fault_075_a_token_answer_is_read_for_what_it_holds(more, lives, rotates):
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
async def test_fault_075_a_token_answer_that_holds_no_token_changes_nothing_and_is_not_shown(body):
    clock = FakeClock()
    store = await stale(clock)
    vendor = Vendor([body, body])
    async with at(vendor, clock, store) as crm:
        with pytest.raises(CRMError) as told:
            await crm.call(read("/x"))
        assert "CANARY" not in told_of(told.value)
        assert (await store.load(ACCOUNT)).refresh.reveal() == "CANARY-old-refresh"
        clock.advance(31)
        vendor.tokens = [{"access_token": "good"}]
        await crm.call(read("/x"))
    assert {asked["refresh_token"] for asked in vendor.asked} == {"CANARY-old-refresh"}


@pytest.mark.asyncio
async def test_fault_076_a_short_lived_token_is_not_renewed_at_every_call():
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


# --------------------------------------------------------------------------------------------- cancelled, killed, lost

DAY_AND_A_BIT = 24 * 3600.0
FILE = f"{ACCOUNT}.json"


@pytest.mark.asyncio
@pytest.mark.parametrize("files", [False, True])
async def test_fault_069_a_caller_cancelled_at_any_await_of_a_renewal_loses_no_token(tmp_path, files):
    store = FileTokens(tmp_path) if files else MemoryTokens()
    async with shop(store, strict_rotation=True) as given:
        await given.enter()
        step, cancelled = 0, 0
        while True:
            step += 1
            given.clock.advance(DAY_AND_A_BIT)
            async with given.client() as crm:
                caller = CutAt(crm.account(), step)
                try:
                    await caller
                except asyncio.CancelledError:
                    cancelled += 1
                await crm.account()
            assert given.grants.refreshes == step, "each round has one renewal and no more"
            assert given.grants.knows_refresh((await given.held()).refresh.reveal())
            if not caller.reached:
                break
        assert cancelled == step - 1 >= (3 if files else 2)
        assert given.grants.refused_refreshes == 0


async def spare(given: Shop) -> str:
    """The refresh token that is kept."""
    return (await given.held()).refresh.reveal()


async def life(given: Shop, folder: Path, points: CrashPoints) -> None:
    """One process: it opens the account, needs a renewal for that, and may die on the way."""
    store = FileTokens(folder, clock=given.clock, files=CrashingFiles(points))
    async with given.client(tokens=store, transport=CrashingTransport(points, given.run.transport())) as crm:
        await crm.account()


@asynccontextmanager
async def expired(folder: Path, **switches: Any) -> AsyncGenerator[Shop]:
    async with shop(FileTokens(folder), **switches) as given:
        await given.enter()
        given.clock.advance(DAY_AND_A_BIT)
        yield given


@pytest.mark.asyncio
async def test_fault_070_a_process_killed_at_any_point_costs_a_token_in_one_window_only_and_there_it_is_said(tmp_path):
    counted = CrashPoints()
    async with expired(tmp_path / "count") as given:
        await life(given, tmp_path / "count", counted)
    answered = counted.passed.index("after request /oauth2/access_token")
    kept = counted.passed.index(f"after replace {FILE}")
    assert counted.passed.index(f"after replace {ACCOUNT}.spent") < answered < kept, "first noted, then sent, then kept"
    for strict in (True, False):
        lost: list[str] = []
        for number, name in enumerate(counted.passed, 1):
            if not strict and not answered < number <= kept:
                continue  # nothing differs there
            folder = tmp_path / f"{number}-{strict}"
            async with expired(folder, strict_rotation=strict) as given:
                died = given.clock.now()
                with pytest.raises(SimulatedCrash):
                    await life(given, folder, CrashPoints(at=number))
                calls = given.token_calls
                given.clock.advance(5)
                rotated = given.grants.refreshes == 1 and not given.grants.knows_refresh(await spare(given))
                if not rotated:
                    await life(given, folder, CrashPoints())
                    assert given.grants.knows_refresh(await spare(given))
                    assert given.grants.refused_refreshes == 0
                    continue
                lost.append(name)
                for _ in range(2):
                    said = f"the refresh token was spent at {died:%Y-%m-%d %H:%M:%S} UTC; re-authorise"
                    with pytest.raises(ReauthorizationRequired, match=said):
                        await life(given, folder, CrashPoints())
                    assert given.token_calls == calls + 1, "tried once, and not hammered by the next process"
        window = counted.passed[answered:kept]
        assert lost == (window if strict else []), "with the vendor's grace nothing is ever lost"


@pytest.mark.asyncio
async def test_fault_071_where_the_server_is_strict_a_lost_answer_is_tried_once_more_and_then_said():
    async with shop(strict_rotation=True) as given:
        old = await given.enter()
        given.clock.advance(DAY_AND_A_BIT)

        async def drop() -> None:
            given.wire.after_token = None
            raise httpx.ReadError("reset")

        given.wire.after_token = drop
        at_that_time = f"{given.clock.now():%Y-%m-%d %H:%M:%S}"
        async with given.client() as crm:
            with pytest.raises(ReauthorizationRequired, match=f"was spent at {at_that_time} UTC; re-authorise") as told:
                await crm.account()
            assert told.value.status == 401
            assert given.token_calls == 2
            with pytest.raises(ReauthorizationRequired, match="was spent at"):
                await crm.account()
        assert given.token_calls == 2
        assert await given.held() == old


@pytest.mark.asyncio
async def test_fault_071_a_refusal_with_no_answer_lost_before_it_accuses_nobody_of_losing_one():
    async with shop() as given:
        old = await given.enter()
        for _ in range(3):  # one that succeeds leaves nothing behind that a later refusal could be blamed on
            given.clock.advance(DAY_AND_A_BIT)
            async with given.client() as crm:
                await crm.account()
        assert old != await given.held()
        given.grants.disable()
        given.clock.advance(DAY_AND_A_BIT)
        async with given.client() as crm:
            with pytest.raises(ReauthorizationRequired) as told:
                await crm.account()
        assert "spent" not in str(told.value)


# -------------------------------------------------------------------------------------------- a token endpoint that ails


def refused(request: httpx.Request) -> httpx.Response:
    raise httpx.ReadTimeout("", request=request)


AILMENTS = {
    "500": lambda request: httpx.Response(500, stream=httpx.ByteStream(b'{"title":"oops"}')),
    "503 HTML": lambda request: httpx.Response(503, stream=httpx.ByteStream(b"<html>503</html>")),
    "200 HTML": lambda request: httpx.Response(200, stream=httpx.ByteStream(b"<html>maintenance</html>")),
    "no answer": refused,
}


@define
class Sick(httpx.AsyncBaseTransport):
    """A sandbox whose token endpoint ails as long as ``ails`` says how."""

    inner: httpx.AsyncBaseTransport
    ails: Any = None
    asked: int = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/oauth2/access_token":
            self.asked += 1
            if self.ails is not None:
                return self.ails(request)
        return await self.inner.handle_async_request(request)


@pytest.mark.asyncio
@pytest.mark.parametrize("how", AILMENTS)
async def test_fault_072_while_the_token_endpoint_ails_a_living_token_goes_on_and_nobody_hammers(how, caplog):
    async with shop() as given:
        old = await given.enter()
        wire = Sick(given.run.transport(), AILMENTS[how])
        given.clock.advance(DAY_AND_A_BIT - 200)  # within the margin of 300 s, and alive
        async with given.client(transport=wire) as crm:
            await asyncio.gather(*(crm.call(read("/api/v4/account")) for _ in range(20)))
            assert wire.asked == 2, "once, and once more since the answer may have been lost"
            given.clock.advance(20)
            await crm.call(read("/api/v4/account"))
            assert wire.asked == 2, "it is left in peace for half a minute"
            given.clock.advance(15)
            await crm.call(read("/api/v4/account"))
            assert wire.asked == 4
            assert await given.held() == old
            given.clock.advance(200)
            with pytest.raises((Unavailable, Unreadable, ConnectionLost)):
                await crm.call(read("/api/v4/account"))
            assert await given.held() == old, "what may yet be exchanged is kept"
            wire.ails = None
            given.clock.advance(31)
            await crm.call(read("/api/v4/account"))
        assert given.grants.refreshes == 1
        assert "used to its end" in caplog.text


@pytest.mark.asyncio
async def test_fault_074_a_dead_refresh_token_is_not_hammered_by_one_process_after_the_other():
    async with shop() as given:
        old = await given.enter()
        given.grants.revoke_refresh(old.refresh.reveal())
        given.clock.advance(DAY_AND_A_BIT)
        for _ in range(5):
            async with given.client() as crm:
                with pytest.raises(ReauthorizationRequired):
                    await crm.account()
            given.clock.advance(5)
        assert given.token_calls == 1
        given.clock.advance(60)
        async with given.client() as crm:
            with pytest.raises(ReauthorizationRequired):
                await crm.account()
        assert given.token_calls == 2


@pytest.mark.asyncio
async def test_fault_077_a_401_to_a_fresh_token_is_an_error_and_no_reason_for_more_tokens():
    asked: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        if request.url.path == "/oauth2/access_token":
            return httpx.Response(200, stream=httpx.ByteStream(b'{"access_token":"new","refresh_token":"r"}'))
        return httpx.Response(401, stream=httpx.ByteStream(b'{"title":"Unauthorized"}'))

    clock, store = FakeClock(), MemoryTokens()
    await store.save(ACCOUNT, Token(access=Secret("old-old"), refresh=Secret("old-refresh")))
    async with at(handler, clock, store, rate=()) as crm:
        told = await asyncio.gather(*(crm.call(read("/x")) for _ in range(30)), return_exceptions=True)
    assert {type(error) for error in told} == {AuthFailed}
    assert asked.count("/oauth2/access_token") == 1
    assert asked.count("/x") == 60


# ------------------------------------------------------------------------------------------------- a store that ails


@pytest.mark.asyncio
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("saved_by", ["the next call", "closing"])
async def test_fault_079_a_token_that_cannot_be_saved_is_used_told_of_and_saved_later(tmp_path, error, saved_by):
    disk = FaultFS(error)
    store = FileTokens(tmp_path, files=disk)
    async with shop(store, strict_rotation=True) as given:
        old = await given.enter()
        given.clock.advance(DAY_AND_A_BIT)

        async def fill() -> None:
            disk.broken = {"replace .json"}

        given.wire.after_token = fill
        async with given.client() as crm:
            with pytest.warns(TokenNotSaved, match=os.strerror(error)):
                await crm.account()
            await asyncio.gather(*(crm.call(read("/api/v4/account")) for _ in range(10)))
            assert await crm._session._keeper.after(old) == crm._session._keeper.held, (
                "nor for a late 401 to the old one"
            )
            assert given.grants.refreshes == 1, "it is not thrown away for another"
            assert await given.held() == old
            spending = await store.marked(ACCOUNT)
            assert spending is not None
            assert spending.concerns(old), "if this process dies now, the next one knows"
            disk.broken = set()
            if saved_by == "the next call":
                given.clock.advance(6)
                await crm.call(read("/api/v4/account"))
                assert given.grants.knows_refresh((await given.held()).refresh.reveal())
        assert given.grants.knows_refresh((await given.held()).refresh.reveal())
        assert await store.marked(ACCOUNT) is None
        assert (given.grants.refreshes, given.grants.refused_refreshes) == (1, 0)


@pytest.mark.asyncio
@pytest.mark.filterwarnings("ignore::crmclient.tokens.TokenNotSaved")
@pytest.mark.parametrize("ended_by", ["the clock", "a 401"])
async def test_fault_079_a_token_that_lives_in_memory_only_is_renewed_from_there(tmp_path, ended_by):
    disk = FaultFS()
    async with shop(FileTokens(tmp_path, files=disk), strict_rotation=True) as given:
        old = await given.enter()
        given.grants.revoke_access(old.access.reveal())  # so that what is stored looks alive

        async def fill() -> None:
            disk.broken = {"replace .json"}

        given.wire.after_token = fill
        async with given.client() as crm:
            for round in range(3):
                await crm.call(read("/api/v4/account"))
                if ended_by == "the clock":
                    given.clock.advance(DAY_AND_A_BIT)
                elif round < 2:
                    given.grants.revoke_access(crm._session._keeper.held.access.reveal())
            await crm.call(read("/api/v4/account"))
            assert given.grants.refreshes == (4 if ended_by == "the clock" else 3)
            assert given.grants.refused_refreshes == 0
            disk.broken = set()
        assert given.grants.knows_refresh((await given.held()).refresh.reveal())


@pytest.mark.asyncio
async def test_fault_079_where_nothing_can_be_kept_no_refresh_token_is_spent(tmp_path, caplog):
    disk = FaultFS(errno.EROFS)
    async with shop(FileTokens(tmp_path, files=disk)) as given:
        await given.enter()
        disk.broken = {"write"}
        given.clock.advance(DAY_AND_A_BIT - 200)
        async with given.client() as crm:
            await crm.call(read("/api/v4/account"))  # the token lives
            given.clock.advance(300)
            with pytest.raises(TokenStoreFailed, match="was not renewed"):
                await crm.call(read("/api/v4/account"))
            assert given.token_calls == 0
            disk.broken = set()
            await crm.call(read("/api/v4/account"))
        assert given.grants.refreshes == 1


class Redis(MemoryTokens):
    """A store of the user's own, whose errors say more than they should."""

    async def save(self, account: str, token: Token) -> None:
        if account in self._tokens:
            raise RuntimeError(f"redis://:CANARY-password@host refused {token.access.reveal()}")
        await super().save(account, token)


@pytest.mark.asyncio
async def test_fault_079_whatever_a_store_says_when_it_fails_no_token_is_lost_and_no_secret_told(caplog):
    clock, store = FakeClock(), Redis()
    known = await (await stale(clock)).load(ACCOUNT)
    await store.save(ACCOUNT, known)
    vendor = Vendor([{"access_token": "CANARY-new", "refresh_token": "CANARY-newer"}])
    crm = at(vendor, clock, store)
    for _ in range(3):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            await crm.call(read("/x"))
        assert "CANARY" not in "".join(f"{each.message}" for each in said)
        clock.advance(6)
    with pytest.warns(TokenNotSaved, match=r"\(RuntimeError\)"):
        await crm.aclose()  # tries for the last time
    assert len(vendor.asked) == 1
    assert "cannot be saved" in caplog.text
    assert "CANARY" not in caplog.text


@pytest.mark.asyncio
async def test_fault_070_what_is_noted_of_a_refresh_token_does_not_tell_it(tmp_path):
    store = FileTokens(tmp_path)
    token = Token(access=Secret("CANARY-access"), refresh=Secret("CANARY-refresh"))
    await store.mark(ACCOUNT, Spending.of(token, at=FakeClock().now()))
    (file,) = tmp_path.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "CANARY" not in file.read_text()
    spending = await store.marked(ACCOUNT)
    assert spending == Spending.of(token, at=FakeClock().now())
    assert spending.concerns(token)
    assert not spending.concerns(evolve(token, refresh=Secret("another")))
    assert not spending.concerns(evolve(token, refresh=None))


@pytest.mark.asyncio
async def test_fault_080_a_hook_that_raises_or_calls_back_neither_hangs_the_renewal_nor_loses_the_token(
    tmp_path, caplog
):
    calls: list[asyncio.Task[Any]] = []
    seen: list[Any] = []

    async with shop(FileTokens(tmp_path)) as given:
        old = await given.enter()
        given.clock.advance(DAY_AND_A_BIT)

        def hook(told: Happening) -> None:
            if type(told) is TokenRenewed:
                with (tmp_path / f"{ACCOUNT}.lock").open() as file:
                    seen.append(lock_descriptor(file.fileno(), blocking=False))
                seen.append(old.access.reveal() in (tmp_path / FILE).read_text())
                calls.append(asyncio.create_task(crm.account()))
                raise RuntimeError("a hook of mine")

        async with given.client(hooks=[hook]) as crm:
            async with asyncio.timeout(20):
                await crm.account()
                await asyncio.gather(*calls)
        assert seen == [True, False], "the hook is called once the lock is free and the token kept"
        assert given.grants.refreshes == 1
        assert given.grants.knows_refresh((await given.held()).refresh.reveal())
        assert "a hook of mine" in caplog.text


# ----------------------------------------------------------------------------------------------------- session logins


@asynccontextmanager
async def office() -> AsyncGenerator[tuple[Client, Running, FakeClock]]:
    """An account where one comes in with a login and a key, for a session of cookies."""
    clock = FakeClock()
    with World(clock=clock) as world:
        run = in_process(OFFICE, world, limits=False)
        card = logins(run.account).of()
        credentials = Login(card["login"], hash=card["hash"])
        transport = run.transport()
        async with connect(
            "amocrm", base_url=run.base_url, credentials=credentials, transport=transport, clock=clock, rate=()
        ) as crm:
            yield crm, run, clock


@pytest.mark.asyncio
async def test_fault_081_a_session_that_ends_in_mid_batch_is_renewed_once_and_no_row_is_written_twice():
    async with office() as (crm, run, _):
        desk = logins(run.account)
        await crm.contacts.create(Contact(name="before"))
        count = run.world.count("contact")
        desk.expire()
        batches = ([Contact(name=f"{b}-{n}") for n in range(5)] for b in range(8))
        receipts = await asyncio.gather(*(crm.contacts.create_many(batch) for batch in batches))
        assert all(isinstance(receipt, Made) for each in receipts for receipt in each)
        assert run.world.count("contact") == count + 40
        assert desk.count == 2


@pytest.mark.asyncio
async def test_fault_081_a_batch_whose_answer_is_lost_is_not_sent_again_by_a_login():
    async with office() as (crm, run, _):
        await crm.contacts.create(Contact(name="before"))
        count, inner = run.world.count("contact"), crm._session._setup.transport

        class Drops(httpx.AsyncBaseTransport):
            async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
                await inner.handle_async_request(request)
                logins(run.account).expire()
                raise httpx.ReadError("reset")

        crm._session._http._transport = Drops()
        receipts = await crm.contacts.create_many([Contact(name="N"), Contact(name="M")])
        assert {type(receipt) for receipt in receipts} == {Unknown}
        assert run.world.count("contact") == count + 2


@pytest.mark.asyncio
async def test_fault_082_a_login_refused_inside_a_200_is_not_tried_again():
    async with office() as (crm, run, clock):
        desk = logins(run.account)
        desk.rotate()
        told = await asyncio.gather(
            *(crm.contacts.create(Contact(name="N")) for _ in range(10)), return_exceptions=True
        )
        assert {type(error) for error in told} == {AuthFailed}
        for _ in range(5):
            with pytest.raises(AuthFailed):
                await crm.contacts.create(Contact(name="N"))
            clock.advance(5)
        assert desk.refused == 1, "one more, and a captcha locks the user out"


# ----------------------------------------------------------------------------------------------------- two accounts


@pytest.mark.asyncio
async def test_fault_083_two_accounts_in_one_process_share_nothing():
    shared = MemoryTokens()
    async with shop(shared) as one, shop(shared) as other:
        clients = []
        for given, host in ((one, "https://one.test"), (other, "https://other.test")):
            crm = connect(
                "kommo",
                base_url=host,
                credentials=given.app(given.grants.mint_code()),
                tokens=shared,
                transport=given.wire,
                clock=one.clock,
            )
            clients.append(crm)
        async with clients[0] as crm, clients[1] as another:
            await asyncio.gather(*(each.call(read("/api/v4/account")) for each in [crm, another] * 5))
            assert crm._session._pacer is not another._session._pacer
            assert crm._session._http is not another._session._http
        tokens = [await shared.load(stored_as("kommo", host)) for host in ("one.test", "other.test")]
        for given, token, stranger in ((one, *tokens), (other, *reversed(tokens))):
            assert given.grants.bearer(token.access.reveal())
            assert given.grants.bearer(stranger.access.reveal()) is None
            assert {event for event in given.wire.events if event != "token call"} == {token.access.reveal()}
        assert stored_as("kommo", "ACME.kommo.com") == stored_as("kommo", "acme.kommo.com")
        assert stored_as("kommo", "acme.kommo.com") != stored_as("amocrm", "acme.kommo.com")


COOKIES = [
    ("s=1; Path=/", "s"),
    ("s=1; Domain=roga.amocrm.ru", "s"),
    ("s=1; Domain=.amocrm.ru", "s"),  # the vendor's own way (amocrm-v2 §2)
    ("s=1; Domain=ru", None),
    ("s=1; Domain=evil.test", None),
    ("s=1; Domain=sopog.amocrm.ru", None),
    ("s=1; Domain=mocrm.ru", None),
    ("s=1; Domain=www.roga.amocrm.ru", None),
    ("s=1; Secure", "s"),
    (f"s={'x' * 5000}", None),
    ("=1", None),
]


@pytest.mark.asyncio
@pytest.mark.parametrize("line, kept", COOKIES)
async def test_fault_084_only_the_cookies_of_the_host_are_kept(line, kept):
    assert list(await cookies("https://roga.amocrm.ru", line)) == ([kept] if kept else [])


@pytest.mark.asyncio
async def test_fault_084_a_secure_cookie_over_plain_http_is_not_kept_and_a_thousand_are_not():
    assert await cookies("http://127.0.0.1", "s=1; Secure") == {}
    assert len(await cookies("http://127.0.0.1", *(f"s{n}=1" for n in range(1000)))) == 50


async def cookies(base: str, *lines: str) -> dict[str, str]:
    def handler(request: httpx.Request) -> httpx.Response:
        headers = [("set-cookie", line) for line in lines]
        return httpx.Response(200, headers=headers, stream=httpx.ByteStream(b'{"id":1}'))

    transport = httpx.MockTransport(handler)
    async with connect("amocrm", base_url=base, credentials="t", transport=transport, clock=FakeClock()) as crm:
        return dict((await crm.call(read("/x"))).cookies)


# ------------------------------------------------------------------------------------------------------- waiting


async def is_free(folder: Path) -> bool:
    async with FileTokens(folder, clock=FakeClock(), patience=5).lock(ACCOUNT):
        return True


@pytest.mark.asyncio
async def test_fault_087_whoever_is_cancelled_while_it_takes_a_lock_leaves_none_behind(tmp_path):
    async def take(clock: FakeClock) -> None:
        async with FileTokens(tmp_path, clock=clock).lock(ACCOUNT):
            await clock.sleep(1)

    step = 0
    while True:
        step += 1
        caller = CutAt(take(FakeClock()), step)
        with suppress(asyncio.CancelledError):
            await caller
        assert await is_free(tmp_path)
        if not caller.reached:
            break
    assert step > 5
    for turns in range(1, 200, 7):
        async with FileTokens(tmp_path).lock(ACCOUNT):
            waiter = asyncio.create_task(take(FakeClock()))
            for _ in range(turns):
                await asyncio.sleep(0)
            waiter.cancel()
            await asyncio.gather(waiter, return_exceptions=True)
        assert await is_free(tmp_path)


@pytest.mark.asyncio
async def test_fault_087_a_lock_taken_in_a_thread_just_when_its_waiter_is_cancelled_is_given_back(tmp_path):
    taken, go_on = threading.Event(), threading.Event()

    class Late(Files):
        def lock(self, handle: int) -> bool:
            had = super().lock(handle)
            taken.set()
            go_on.wait(10)
            return had

    async def take() -> None:
        async with FileTokens(tmp_path, files=Late()).lock(ACCOUNT):
            pytest.fail("it was cancelled")

    waiter = asyncio.create_task(take())
    assert await asyncio.to_thread(taken.wait, 10)
    waiter.cancel()
    await asyncio.gather(waiter, return_exceptions=True)
    go_on.set()
    assert await is_free(tmp_path)


@pytest.mark.asyncio
async def test_fault_088_who_waits_for_a_slow_renewal_gets_its_token_and_makes_none(tmp_path):
    async with shop(FileTokens(tmp_path), strict_rotation=True) as given:
        await given.enter()
        given.clock.advance(DAY_AND_A_BIT)

        async def linger() -> None:
            await given.clock.sleep(20)

        given.wire.before_token = linger
        mine = [given.client(tokens=FileTokens(tmp_path, clock=given.clock)) for _ in range(3)]
        begun = given.clock.monotonic()
        await asyncio.gather(*(crm.call(read("/api/v4/account")) for crm in mine))
        assert given.clock.monotonic() - begun >= 20
        assert (given.grants.refreshes, given.grants.refused_refreshes) == (1, 0)
        for crm in mine:
            await crm.aclose()


@pytest.mark.asyncio
async def test_fault_088_a_live_lock_is_never_broken_and_the_store_is_looked_at_when_patience_ends(tmp_path):
    async with shop(FileTokens(tmp_path), strict_rotation=True) as given:
        old = await given.enter()
        given.clock.advance(DAY_AND_A_BIT)
        impatient = FileTokens(tmp_path, clock=given.clock, patience=2)
        async with FileTokens(tmp_path).lock(ACCOUNT), given.client(tokens=impatient) as crm:
            with pytest.raises(TokenStoreFailed, match="has been locked for 2 s"):
                await crm.account()
            assert given.token_calls == 0
            now = given.clock.now()
            new = evolve(old, access=Secret("of-a-sibling"), issued_at=now, expires_at=now + timedelta(days=1))
            await FileTokens(tmp_path).save(ACCOUNT, new)
            assert await crm._session._keeper.current() == new
        assert given.token_calls == 0


# ------------------------------------------------------------------------------------------------------ what it says


@pytest.mark.asyncio
@pytest.mark.parametrize("status", [400, 401, 404, 500])
@pytest.mark.parametrize("path", ["a renewal", "a code"])
async def test_a_token_endpoint_that_echoes_what_it_was_sent_gets_none_of_it_into_an_error_or_a_log(
    status, path, caplog
):
    caplog.set_level(logging.DEBUG)

    def echo(request: httpx.Request) -> httpx.Response:
        sent = " ".join(str(part) for part in json.loads(request.content).values())
        body = {"hint": sent, "title": sent, "detail": sent, "error": sent}
        return httpx.Response(status, stream=httpx.ByteStream(json.dumps(body).encode()))

    clock = FakeClock()
    store = await stale(clock) if path == "a renewal" else MemoryTokens()
    async with at(echo, clock, store) as crm:
        with pytest.raises(CRMError) as told:
            await crm.call(read("/x"))
    assert "CANARY" not in told_of(told.value)
    assert "CANARY" not in caplog.text


# ----------------------------------------------------------------------------------------------------- moved accounts


@pytest.mark.asyncio
@pytest.mark.parametrize("status", [301, 308])
@pytest.mark.parametrize("where", ["the token endpoint", "a read", "a write"])
async def test_a_moved_account_is_named_and_never_followed(status, where):
    seen: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request.url.host)
        return httpx.Response(
            status, headers={"location": "https://newname.kommo.com/x"}, stream=httpx.ByteStream(b"moved")
        )

    clock = FakeClock()
    store = await stale(clock)
    token = await store.load(ACCOUNT)
    if where != "the token endpoint":
        token = evolve(token, expires_at=clock.now() + timedelta(days=1))
    await store.save(stored_as("kommo", "oldname.kommo.com"), token)
    async with at(handler, clock, store, base_url="https://oldname.kommo.com") as crm:
        with pytest.raises(AccountMoved, match=r"newname\.kommo\.com") as told:
            await (crm.contacts.create(Contact(name="N")) if where == "a write" else crm.call(read("/x")))
    assert told.value.host == "newname.kommo.com"
    assert set(seen) == {"oldname.kommo.com"}
    assert await store.load(stored_as("kommo", "oldname.kommo.com")) == token


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "location", ["https://evil.test/", "https://a.b.kommo.com/", "https://oldname.kommo.com/y", "//["]
)
async def test_a_redirect_to_anywhere_else_is_no_move(location):
    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(301, headers={"location": location}, stream=httpx.ByteStream(b""))

    transport = httpx.MockTransport(handler)
    async with connect("kommo", account="oldname", credentials="t", transport=transport, clock=FakeClock()) as crm:
        with pytest.raises(Unreadable, match="redirect"):
            await crm.call(read("/x"))


@pytest.mark.asyncio
async def test_a_token_endpoint_that_is_gone_says_that_the_account_is():
    clock = FakeClock()
    store = await stale(clock)
    async with at(lambda request: httpx.Response(404, stream=httpx.ByteStream(b"{}")), clock, store) as crm:
        with pytest.raises(AuthFailed, match="renamed, moved or closed"):
            await crm.call(read("/x"))


# ------------------------------------------------------------------------------------------------------ real processes

CHILD = """
import asyncio, json, sys
import httpx
from crmclient import FileTokens, OAuthApp, Rate, connect
from crmclient.dialect import read
from crmclient.testing.crash import CrashingFiles, CrashingTransport, CrashPoints, kill

given = json.loads(sys.stdin.readline())
points = CrashPoints(at=given["at"], die=kill)

async def main():
    crm = connect(
        "kommo",
        base_url=given["base_url"],
        credentials=OAuthApp(**given["app"]),
        tokens=FileTokens(given["folder"], files=CrashingFiles(points)),
        transport=CrashingTransport(points, httpx.AsyncHTTPTransport()),
        rate=Rate(100_000, 1),
    )
    print("ready", flush=True)
    sys.stdin.readline()
    async with crm:
        await asyncio.gather(*(crm.call(read("/api/v4/account")) for _ in range(given["tasks"])))

try:
    asyncio.run(main())
except Exception as wrong:
    print(type(wrong).__name__, wrong, flush=True)
    sys.exit(1)
"""


@define
class Factory:
    """A sandbox over real HTTP, a folder with an expired token, and processes that need a new one."""

    run: Running
    folder: Path

    @property
    def grants(self) -> Grants:
        return grants(self.run.account)

    @property
    def account(self) -> str:
        return stored_as("kommo", urlsplit(self.run.base_url).netloc)

    @property
    def token_calls(self) -> int:
        return self.run.stats.calls[TOKENS]

    async def expire(self) -> None:
        card, now = self.grants.integration, SystemClock().now()
        asked = {"client_id": card.client_id, "client_secret": card.client_secret, "redirect_uri": card.redirect_uri}
        pair = self.grants.exchange({**asked, "grant_type": "authorization_code", "code": self.grants.mint_code()})
        token = Token(
            access=Secret(pair["access_token"]),
            refresh=Secret(pair["refresh_token"]),
            issued_at=now - timedelta(days=2),
            expires_at=now - timedelta(days=1),
        )
        await FileTokens(self.folder).save(self.account, token)

    async def processes(self, count: int, *, at: str | None = None, tasks: int = 1) -> list[tuple[int, str]]:
        """The exit status and the last words of each."""
        card = self.grants.integration
        app = {"client_id": card.client_id, "client_secret": card.client_secret, "redirect_uri": card.redirect_uri}
        given = {"base_url": self.run.base_url, "app": app, "folder": str(self.folder), "at": at, "tasks": tasks}
        pipe = asyncio.subprocess.PIPE
        begun = [
            await asyncio.create_subprocess_exec(sys.executable, "-c", CHILD, stdin=pipe, stdout=pipe)
            for _ in range(count)
        ]
        for each in begun:
            each.stdin.write(json.dumps(given).encode() + b"\n")
        assert {await each.stdout.readline() for each in begun} == {b"ready\n"}
        for each in begun:
            each.stdin.write(b"go\n")
        ended = await asyncio.gather(*(each.communicate() for each in begun))
        return [(each.returncode, out.decode()) for each, (out, _) in zip(begun, ended, strict=True)]


@asynccontextmanager
async def factory(folder: Path, **switches: Any) -> AsyncGenerator[Factory]:
    with World(clock=SystemClock()) as world:
        named = {name.replace("_", "-"): value for name, value in switches.items()}
        async with serve(FACE, world, switches=named, limits=False) as run:
            yield Factory(run, folder)


@pytest.mark.e2e
@pytest.mark.asyncio
async def test_fault_067_068_fifty_tasks_in_each_of_eight_processes_spend_one_refresh(tmp_path):
    async with factory(tmp_path, strict_rotation=True) as given:
        await given.expire()
        assert await given.processes(8, tasks=50) == [(0, "")] * 8
        assert (given.grants.refreshes, given.grants.refused_refreshes, given.token_calls) == (1, 0, 1)
        assert given.run.stats.calls["GET /api/v4/account"] == 400
        assert given.run.stats.statuses == {200: 401}


@pytest.mark.e2e
@pytest.mark.asyncio
@pytest.mark.parametrize("strict", [True, False])
async def test_fault_070_a_process_killed_for_good_loses_a_token_in_the_window_only(tmp_path, strict):
    async with factory(tmp_path, strict_rotation=strict) as given:
        json_file = FileTokens(tmp_path)._file(given.account).name
        points = {"after request /oauth2/access_token": True, f"before replace {json_file}": True}
        if strict:
            points[f"after replace {json_file}"] = False
        for point, in_window in points.items():
            await given.expire()
            assert await given.processes(1, at=point) == [(137, "")]
            ((status, told),) = await given.processes(1)
            if strict and in_window:
                assert status == 1
                assert told.startswith("ReauthorizationRequired the refresh token was spent at 20")
            else:
                assert (status, told) == (0, ""), point


HOLDER = """
import asyncio, sys
from crmclient import FileTokens

async def main():
    async with FileTokens(sys.argv[1]).lock(sys.argv[2]):
        print("held", flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.e2e
@pytest.mark.asyncio
async def test_fault_086_a_lock_whose_holder_is_killed_is_free_and_the_next_one_goes_on(tmp_path):
    async with factory(tmp_path) as given:
        await given.expire()
        pipe = asyncio.subprocess.PIPE
        holder = await asyncio.create_subprocess_exec(
            sys.executable, "-c", HOLDER, str(tmp_path), given.account, stdout=pipe
        )
        assert await holder.stdout.readline() == b"held\n"
        waiting = asyncio.create_task(given.processes(1))
        with pytest.raises(TokenStoreFailed, match="has been locked"):
            async with FileTokens(tmp_path, clock=FakeClock(), patience=1).lock(given.account):
                pass
        holder.kill()
        await holder.communicate()
        async with asyncio.timeout(60):
            assert await waiting == [(0, "")]
        assert given.grants.refreshes == 1
