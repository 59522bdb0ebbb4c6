"""A. Connections: what breaks on the wire, over real sockets of loopback. The rows are those of the fault catalogue."""

import asyncio
import gc
import os
import socket
import ssl
from asyncio import events
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import trustme
from attrs import evolve
from toy import TOY

from crmclient import (
    AmbiguousWrite,
    ClientClosed,
    ConnectionLost,
    Contact,
    CRMError,
    DeadlineExceeded,
    Rate,
    Retry,
    Unreachable,
    Unreadable,
    connect,
)
from crmclient.client import Client
from crmclient.hooks import AttemptStarted, Happening, RetryPlanned
from crmclient.session import Limits
from crmclient.testing.faults import FaultProxy, RawServer, Say, http, leaks

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio]

ROW = '{"id":1,"name":"n1"}'
GOOD = http(ROW)


def client(origin: str, **given: Any) -> Client:
    settings: dict[str, Any] = {
        "credentials": "tok",
        "base_url": origin,
        "rate": Rate(100_000, 1),
        "retry": Retry(seconds=0.001),
    }
    return connect(TOY, **settings | given)


@asynccontextmanager
async def against(*script: Say, always: Any = GOOD, **given: Any) -> AsyncGenerator[tuple[RawServer, Client]]:
    async with RawServer(list(script), always).running() as server, client(server.origin, **given) as crm:
        yield server, crm


async def test_fault_001_a_connection_closed_while_idle_costs_a_read_one_try_more_and_no_wait() -> None:
    told: list[Happening] = []
    # It answers, keeps the connection for a moment, and ends it as the next request comes in.
    closing = evolve(GOOD, then="keep")
    async with against(closing, Say(then="close"), hooks=told.append) as (server, crm):
        await crm.contacts.get(1)
        assert (await crm.contacts.get(1)).id == 1
        assert server.connections == 2
        assert crm.spent.retries == 0, "the retry quota paid for a connection that was merely old"
        [planned] = [each for each in told if isinstance(each, RetryPlanned)]
        assert planned.wait == 0.0


async def test_fault_001_a_second_failure_on_a_new_connection_is_a_failure() -> None:
    async with against(GOOD, *[Say(then="close")] * 9) as (server, crm):
        await crm.contacts.get(1)
        with pytest.raises(ConnectionLost):
            await crm.contacts.get(1)
        assert len(server.heads) == 1 + 1 + 3


async def test_fault_001_a_write_does_not_trust_a_connection_nobody_has_used_for_a_while(monkeypatch) -> None:
    monkeypatch.setattr("crmclient.session._WARM", 0.0)
    async with against(GOOD, Say(then="close"), Say(then="close")) as (server, crm):
        await crm.contacts.get(1)
        server.script.clear()
        await crm.contacts.create(Contact(name="Ivan"))
        assert server.connections == 2, "a create went over an idle connection"


@pytest.mark.parametrize("sent", ["reset", "close"])
async def test_fault_002_an_end_before_any_answer_is_retried_where_that_does_no_harm(sent) -> None:
    async with against(Say(then=sent)) as (server, crm):
        assert (await crm.contacts.get(1)).id == 1
        assert len(server.heads) == 2
    async with against(Say(then=sent)) as (server, crm):
        with pytest.raises(AmbiguousWrite):
            await crm.contacts.create(Contact(name="Ivan"))
        assert len(server.heads) == 1


@pytest.mark.filterwarnings("ignore::crmclient.client.InsecureTransport")
async def test_fault_003_a_name_nobody_knows_sent_nothing_and_is_asked_for_again_for_a_write_too(monkeypatch) -> None:
    asked: list[str] = []
    real = asyncio.BaseEventLoop.getaddrinfo

    async def flaky(self: Any, host: Any, *args: Any, **more: Any) -> Any:
        asked.append(host)
        if len(asked) < 3:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return await real(self, "127.0.0.1", *args, **more)

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", flaky)
    async with RawServer(always=GOOD).running() as server:
        async with client(f"http://crm.test:{server.origin.rpartition(':')[2]}") as crm:
            await crm.contacts.create(Contact(name="Ivan"))
            assert len(asked) == 3
            assert len(server.heads) == 1
        monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", _unknown)
        async with client("http://crm.test:9") as crm:
            with pytest.raises(Unreachable, match=r"crm\.test.*name resolution") as told:
                await crm.contacts.create(Contact(name="Ivan"))
            assert not isinstance(told.value, AmbiguousWrite)


async def _unknown(self: Any, *args: Any, **more: Any) -> Any:
    raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")


async def test_fault_003_a_refused_connection_is_tried_again_for_a_write_too() -> None:
    told: list[Happening] = []
    async with RawServer().running() as server:
        gone = server.origin
    async with client(gone, hooks=told.append) as crm:
        with pytest.raises(Unreachable, match=r"127\.0\.0\.1"):
            await crm.contacts.create(Contact(name="Ivan"))
    assert len([each for each in told if type(each) is AttemptStarted]) == 3


async def test_fault_004_a_server_that_never_answers_is_told_with_its_time_and_the_number_of_tries() -> None:
    async with against(always=Say(then="hang"), limits=Limits(read=0.05)) as (server, crm):
        with pytest.raises(ConnectionLost, match=r"no answer from .* within 0.05 s"):
            await crm.contacts.get(1)
        assert len(server.heads) == 3
    async with against(always=Say(then="hang"), deadline=0.1) as (_, crm):
        with pytest.raises(DeadlineExceeded, match="waiting for the answer, attempt 1") as told:
            await crm.contacts.get(1)
        assert told.value.elapsed >= 0.1
        assert told.value.attempts == 1


async def test_fault_005_a_byte_now_and_then_does_not_hold_a_caller_for_ever() -> None:
    drip = evolve(GOOD, piece=1, between=0.02)
    async with against(always=drip, limits=Limits(whole=0.15, read=5), retry=Retry(attempts=1)) as (_, crm):
        with pytest.raises(ConnectionLost, match="whole answer within"):
            await crm.contacts.get(1)


async def test_fault_006_callers_cancelled_while_connecting_do_not_use_up_the_pool() -> None:
    limits = Limits(connections=10, read=2)
    async with against(always=evolve(GOOD, wait=0.002), limits=limits) as (_, crm):
        for round_ in range(20):
            tasks = [asyncio.create_task(crm.contacts.get(1)) for _ in range(20)]
            for task in tasks:
                await asyncio.sleep(0.0005 if round_ % 2 else 0)
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        found = await asyncio.gather(*(crm.contacts.get(1) for _ in range(20)))
        assert len(found) == 20


async def test_fault_006_the_guard_is_needed_bare_httpx_does_lose_its_slots() -> None:
    """What the session's own task is for: as soon as this fails, the guard may go."""
    async with RawServer(always=evolve(GOOD, wait=0.002)).running() as server:
        limits = httpx.Limits(max_connections=10, max_keepalive_connections=10)
        async with httpx.AsyncClient(limits=limits, timeout=httpx.Timeout(1, pool=0.2), trust_env=False) as bare:
            # How soon depends on the machine: each cancellation has to hit the moment of connecting.
            for round_ in range(400):
                tasks = [asyncio.create_task(bare.get(server.origin)) for _ in range(20)]
                for task in tasks:
                    await asyncio.sleep(round_ % 4 * 0.0003)
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                if round_ % 20 == 19:
                    after = await asyncio.gather(*(bare.get(server.origin) for _ in range(10)), return_exceptions=True)
                    if any(isinstance(each, httpx.PoolTimeout) for each in after):
                        return
        pytest.fail("8,000 cancellations, and bare httpx still has its pool")


@pytest.mark.parametrize("times", [1, 2])
async def test_fault_007_008_cancelled_while_the_body_comes_leaves_nothing_behind(times) -> None:
    slow = evolve(http("x" * 100), piece=10, between=0.02)
    async with RawServer(always=GOOD).running() as server:
        with leaks() as left:
            async with client(server.origin, limits=Limits(read=1, whole=1)) as crm:
                server.always = slow
                for _ in range(5):
                    task = asyncio.create_task(crm.contacts.get(1))
                    await asyncio.sleep(0.01)
                    for _ in range(times):
                        task.cancel()
                        await asyncio.sleep(0)
                    with pytest.raises(asyncio.CancelledError):
                        await task
                server.always = GOOD
                assert (await crm.contacts.get(1)).id == 1
            for _ in range(100):
                if not left():
                    break
                await asyncio.sleep(0.01)
            assert not left(), left()


async def test_fault_009_under_its_own_load_nobody_waits_in_the_pool() -> None:
    """Two hundred callers over ten connections and a read time-out shorter than the queue is long."""
    limits = Limits(connections=10, read=0.3)
    async with against(always=evolve(GOOD, wait=0.03), limits=limits) as (server, crm):
        found = await asyncio.gather(*(crm.contacts.get(1) for _ in range(200)))
        assert len(found) == 200
        assert crm.spent.retries == 0
        assert server.connections <= 10


async def test_fault_010_a_peer_that_lost_its_power_is_not_waited_for_longer_than_told() -> None:
    async with RawServer(always=GOOD).running() as server:
        async with FaultProxy(server.origin).running() as proxy:
            async with client(proxy.origin, limits=Limits(read=0.1), retry=Retry(attempts=1)) as crm:
                await crm.contacts.get(1)
                proxy.silent = True
                with pytest.raises(ConnectionLost, match="no answer"):
                    await crm.contacts.get(1)
                proxy.silent = False
                assert (await crm.contacts.get(1)).id == 1
    assert Limits().idle < 15, "an idle connection outlives a usual server's keep-alive"


@pytest.mark.parametrize("idle, connections", [(0.05, 2), (5, 1)])
async def test_fault_010_a_connection_nobody_uses_is_not_kept_longer_than_told(idle, connections) -> None:
    async with against(limits=Limits(idle=idle)) as (server, crm):
        await crm.contacts.get(1)
        await asyncio.sleep(0.1)
        await crm.contacts.get(1)
        assert server.connections == connections


CUT = {
    "a length too long": http(ROW[:5], length=100, then="close"),
    "no length": http(ROW[:9], length=None, headers={"Connection": "close"}, then="close"),
    "chunks broken off": Say(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n" + ROW[:5].encode() + b"\r\n", then="close"
    ),
}


@pytest.mark.parametrize("what", CUT)
async def test_fault_011_012_013_a_cut_answer_is_never_data_and_a_read_is_tried_again(what) -> None:
    async with against(CUT[what]) as (server, crm):
        assert (await crm.contacts.get(1)).name == "n1"
        assert len(server.heads) == 2
    async with against(always=CUT[what]) as (server, crm):
        with pytest.raises((ConnectionLost, Unreadable)):
            await crm.contacts.get(1)
        server.heads.clear()
        with pytest.raises(AmbiguousWrite):
            await crm.contacts.create(Contact(name="Ivan"))
        assert len(server.heads) == 1


WRONG = {
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\nContent-Length: 5\r\n\r\n" + ROW.encode(),
    "no status": b"HTTP/1.1 abc\r\nContent-Length: 20\r\n\r\n" + ROW.encode(),
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n",
}


@pytest.mark.parametrize("what", WRONG)
async def test_fault_014_what_is_no_http_is_an_error_and_the_connection_is_not_used_again(what) -> None:
    async with against(*[Say(WRONG[what], then="close")] * 3) as (server, crm):
        with pytest.raises(ConnectionLost):
            await crm.contacts.get(1)
        assert server.connections == 3
        assert (await crm.contacts.get(1)).id == 1


async def test_fault_015_headers_without_end_are_bounded() -> None:
    many = http(ROW, headers={f"X-{n}": "x" * 1000 for n in range(300)})
    async with against(always=many) as (_, crm):
        with pytest.raises(ConnectionLost):
            await crm.contacts.get(1)


@pytest.mark.parametrize("early", [b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"])
async def test_fault_016_what_comes_before_the_answer_is_not_the_answer(early) -> None:
    async with against(evolve(GOOD, content=early + GOOD.content)) as (_, crm):
        assert (await crm.contacts.get(1)).name == "n1"


YESTERDAY = datetime.now(UTC) - timedelta(days=1)


@pytest.mark.parametrize(
    "host, lived, reason",
    [
        ("127.0.0.1", {"not_after": YESTERDAY, "not_before": YESTERDAY - timedelta(days=9)}, "expired"),
        ("other.test", {}, "mismatch"),
    ],
    ids=["expired", "wrong host"],
)
async def test_fault_017_a_certificate_that_is_over_or_anothers_is_told_at_once(host, lived, reason) -> None:
    """By an authority that is trusted. A second try would meet the same certificate, so there is none."""
    authority = trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(host, **lived).configure_cert(tls)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    told: list[Happening] = []
    async with RawServer(always=GOOD).running(tls=tls) as server:
        transport = httpx.AsyncHTTPTransport(verify=trusting)
        async with client(server.origin, transport=transport, hooks=told.append) as crm:
            for call in (crm.contacts.get(1), crm.contacts.create(Contact(name="Ivan"))):
                with pytest.raises(Unreachable, match=rf"127\.0\.0\.1.*{reason}"):
                    await call
        assert server.heads == []
    assert len([each for each in told if type(each) is AttemptStarted]) == 2


async def test_fault_017_a_certificate_nobody_vouches_for_is_refused_by_name(tmp_path) -> None:
    authority = trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    async with RawServer(always=GOOD).running(tls=tls) as server:
        async with client(server.origin) as crm:
            with pytest.raises(Unreachable, match=r"127\.0\.0\.1.*certificate"):
                await crm.contacts.get(1)
            assert crm.spent.retries == 0
        assert server.heads == [], "a request went out over a connection that was not trusted"
        trusting = ssl.create_default_context()
        authority.configure_trust(trusting)
        async with client(server.origin, transport=httpx.AsyncHTTPTransport(verify=trusting)) as crm:
            assert (await crm.contacts.get(1)).id == 1


@pytest.mark.parametrize("name", ["HTTP_PROXY", "ALL_PROXY", "http_proxy"])
async def test_fault_018_no_proxy_of_the_environment_comes_between_us_and_this_machine(monkeypatch, name) -> None:
    async with RawServer(always=http("{}", 502)).running() as proxy:
        monkeypatch.setenv(name, proxy.origin)
        async with against() as (_, crm):
            assert (await crm.contacts.get(1)).id == 1
        assert proxy.heads == []


async def test_fault_019_a_client_of_another_loop_or_a_closed_one_says_so() -> None:
    async with against() as (_, crm):
        await crm.contacts.get(1)
        loop = asyncio.new_event_loop()
        try:
            with pytest.raises(ClientClosed, match="event loop"):
                await asyncio.to_thread(loop.run_until_complete, crm.contacts.get(1))
        finally:
            loop.close()
        await crm.aclose()
        with pytest.raises(ClientClosed, match="closed"):
            await crm.contacts.get(1)


async def test_fault_019_a_forked_child_is_told_that_the_client_is_its_parents() -> None:
    async with against() as (server, crm):
        await crm.contacts.get(1)

        def child(pipe: int) -> None:
            asyncio.set_event_loop(None)
            events._set_running_loop(None)
            try:
                asyncio.run(asyncio.wait_for(crm.contacts.get(1), 3))
            except BaseException as told:
                os.write(pipe, f"{type(told).__name__}: {told}".encode())

        reading, writing = os.pipe()
        if (pid := os.fork()) == 0:
            try:
                child(writing)
            finally:
                os._exit(0)
        os.close(writing)
        await asyncio.to_thread(os.waitpid, pid, 0)
        said = os.read(reading, 1000).decode()
        os.close(reading)
        assert said.startswith("ClientClosed: "), said
        assert len(server.heads) == 1
        assert (await crm.contacts.get(1)).id == 1, "the parent's client was harmed"


async def test_fault_020_whoever_closes_may_be_cancelled_and_nothing_stays_open() -> None:
    async with RawServer(always=Say(then="hang")).running() as server:
        with leaks() as left:
            crm = client(server.origin)
            call = asyncio.create_task(crm.contacts.create(Contact(name="Ivan")))
            await server.heard(1)
            closing = asyncio.create_task(crm.aclose())
            await asyncio.sleep(0.01)
            closing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await closing
            with pytest.raises(AmbiguousWrite, match="closed"):
                await call
        for _ in range(100):
            if not left():
                break
            await asyncio.sleep(0.01)
        assert not left(), left()


async def test_fault_020_closing_waits_for_a_while_and_then_ends_what_hangs() -> None:
    async with RawServer(always=Say(then="hang")).running() as server:
        crm = client(server.origin, limits=Limits(read=0.2))
        calls = [asyncio.create_task(crm.contacts.get(1)) for _ in range(5)]
        await server.heard(5)
        async with asyncio.timeout(3):
            await asyncio.gather(crm.aclose(), crm.aclose())
            await crm.aclose()
        ended = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(each, CRMError) for each in ended)


async def test_a_thousand_cancelled_calls_leave_no_task_file_or_slot_behind() -> None:
    async with RawServer(always=evolve(GOOD, wait=0.001)).running() as server:
        with leaks() as left:
            async with client(server.origin, limits=Limits(connections=10, read=2)) as crm:
                for n in range(50):
                    tasks = [asyncio.create_task(crm.contacts.get(1)) for _ in range(20)]
                    await asyncio.sleep(n % 5 * 0.0005)
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)
                assert len(await asyncio.gather(*(crm.contacts.get(1) for _ in range(20)))) == 20
            gc.collect()
            for _ in range(200):
                if not left():
                    break
                await asyncio.sleep(0.01)
            assert not left(), left()


async def test_every_attempt_is_told_with_the_number_of_its_call() -> None:
    told: list[Happening] = []
    async with against(http("{}", 500), hooks=told.append) as (_, crm):
        await crm.contacts.get(1)
        await crm.contacts.get(1)
    started = [(each.call, each.attempt) for each in told if type(each) is AttemptStarted]
    assert started == [(1, 1), (1, 2), (2, 1)]
    assert all("tok" not in repr(each) for each in told)
