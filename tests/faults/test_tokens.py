"""D. Tokens: renewed once, saved before use, and never lost, whoever is cancelled or killed. Rows of the fault catalogue."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta

import httpx
import pytest
from attrs import define, field
from tokenshop import ACCOUNT, Unguarded, Vendor, ask, at, others, settle, shop, stale, told_of

from crmclient import CRMError, FileTokens, MemoryTokens, ReauthorizationRequired, Secret
from crmclient.clock import FakeClock
from crmclient.dialect import Token, read
from crmclient.session import Limits


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
async def test_fault_067_fifty_tasks_on_an_expired_token_make_one_refresh(told_by):
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
