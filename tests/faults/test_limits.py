"""C. Limits: one account, one pace, whoever asks; and what follows when a server says that it was too much."""

import asyncio
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from random import Random
from typing import Any

import httpx
import pytest
from toy import ORIGIN, SEVEN, Server, answer, client

from crmclient import Banned, Contact, FilePacer, Rate, RateLimited, bulk, connect
from crmclient.clock import FakeClock, SystemClock
from crmclient.dialect import Reply, by_status, read
from crmclient.pacing import Book, LocalPacer, SharedPacers
from crmclient.sandbox.server import in_process, serve
from crmclient.sandbox.world import World, populate
from crmclient_kommo.sandbox import FACE


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def server(clock: FakeClock) -> Server:
    return Server(clock)


def over(times: Sequence[float], rate: Rate = SEVEN) -> int:
    """How many came when as many as are allowed had come within the window before."""
    ordered = sorted(times)
    return sum(late - early < rate.seconds for early, late in zip(ordered, ordered[rate.limit :], strict=False))


# -------------------------------------------------------------------------------------------------------- 429, and a ban


@pytest.mark.asyncio
async def test_fault_047_after_a_429_the_account_waits_and_one_goes_to_try(server, clock):
    """All callers wait; the first to go when the time is up goes alone, and the others when its answer is here."""
    server.latency = 0.25
    server.script = [answer(429, headers={"retry-after": "5"})]
    async with client(server, rate=SEVEN) as crm, client(server, rate=SEVEN) as other:
        first = asyncio.create_task(crm.contacts.get(1))
        await clock.sleep(0.3)
        calls = [each.contacts.get(n) for each in (crm, other) for n in range(2, 12)]
        await asyncio.gather(first, *calls)
    resumed = server.times[1]
    assert 5.25 <= resumed <= 6.25
    assert server.times[2] >= resumed + 0.25, "more than one went to try"
    assert over(server.times) == 0


@pytest.mark.asyncio
async def test_fault_047_a_trial_that_is_refused_too_is_followed_by_another_wait(server, clock):
    server.script = [answer(429, headers={"retry-after": "5"}), answer(429, headers={"retry-after": "7"})]
    async with client(server, rate=SEVEN) as crm:
        await asyncio.gather(*(crm.contacts.get(n) for n in range(1, 2)))
    assert [round(later - earlier) for earlier, later in zip(server.times, server.times[1:], strict=False)] in (
        [[5, 7], [5, 8], [6, 7], [6, 8]]
    )


@pytest.mark.asyncio
async def test_fault_047_those_who_share_nothing_do_not_come_back_as_one(clock):
    """Ten hosts were refused at the same moment, for the same while."""
    resumed: list[float] = []
    for seed in range(10):
        pacer = LocalPacer([SEVEN], clock, chance=Random(seed).random)
        resumed.append(pacer.pause(30))
    assert min(resumed) >= 30
    assert max(resumed) - min(resumed) > 0.5
    assert len(set(resumed)) == 10


NOW = "Sat, 21 Nov 2026 10:00:00 GMT"


@pytest.mark.parametrize(
    "headers, seconds",
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": " 7 "}, 7.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "Sat, 21 Nov 2026 10:00:30 GMT", "date": NOW}, 30.0),
        ({"retry-after": "Sat, 21 Nov 2026 13:00:30 +0300", "date": NOW}, 30.0),
        ({"retry-after": "Sat, 21 Nov 2026 09:59:00 GMT", "date": NOW}, 0.0),
        # Beside no date of the server's own it would be measured by our clock, which may be hours off.
        ({"retry-after": "Sat, 21 Nov 2026 10:00:30 GMT"}, None),
        ({"retry-after": "Sat, 21 Nov 2026 10:00:30 GMT", "date": "soon"}, None),
        ({"retry-after": "Sat, 21 Nov 2326 10:00:30 GMT", "date": NOW}, None),
        ({"retry-after": "Sat, 99 Nov 2026 10:00:30 GMT", "date": NOW}, None),
        ({"retry-after": "Sat, 21 Nov 2026 10:00:30", "date": NOW}, None),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "abc", "date": NOW}, None),
        ({"retry-after": "1e9"}, None),
        ({"retry-after": "NaN"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "٧"}, None),
        ({"retry-after": "9" * 30}, None),
        ({"retry-after": "1, 2", "date": NOW}, None),
        ({"retry-after": "0x10"}, None),
        ({"retry-after": ""}, None),
        ({}, None),
    ],
    ids=str,
)
def test_fault_048_what_a_retry_after_says_in_seconds(headers, seconds):
    verdict = by_status(read("/x"), Reply(429, headers, None, ORIGIN, {}))
    assert isinstance(verdict, RateLimited)
    assert verdict.after == seconds


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "headers, least, most",
    [
        ({"retry-after": "Sat, 21 Nov 2026 10:00:30 GMT", "date": NOW}, 30, 31),
        ({"retry-after": "1.5"}, 1.5, 2.5),
        ({"retry-after": "abc"}, 1, 2.5),
        ({"retry-after": "-5"}, 1, 2.5),
    ],
    ids=str,
)
async def test_fault_048_the_account_waits_for_what_was_said_or_for_a_while_of_our_own(server, headers, least, most):
    server.script = [answer(429, headers=headers)]
    async with client(server) as crm:
        await crm.contacts.get(1)
    assert least <= server.times[1] <= most


@pytest.mark.asyncio
async def test_fault_048_a_wait_longer_than_patience_is_told_at_once(server, clock):
    server.script = [answer(429, headers={"retry-after": "121"})]
    async with client(server) as crm:
        with pytest.raises(RateLimited) as told:
            await crm.contacts.get(1)
    assert (told.value.after, clock.monotonic(), len(server.requests)) == (121.0, 0.0, 1)


def test_fault_049_without_a_retry_after_the_waits_double_to_a_minute():
    book, now, waits = Book(), 100.0, []
    for _ in range(9):
        waits.append(book.pause(None, now, 0.0))
        now = book.not_before
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    trial = book.turn("", now, [SEVEN], lambda owner: True)
    assert not isinstance(trial, Banned | float | None)
    book.sent(trial, now)
    book.over(trial, now + 1, answered=True)
    assert book.pause(None, now + 2, 0.0) == 1, "what went well ends the doubling"


def test_fault_049_seven_that_were_under_way_together_and_refused_are_one_refusal():
    book = Book()
    assert [book.pause(None, 100.0 + n / 100, 0.0) for n in range(7)] == pytest.approx([1.0] * 7)
    assert book.strikes == 1


@pytest.mark.asyncio
async def test_fault_049_a_server_that_refuses_everything_is_asked_less_and_less(server, clock):
    server.respond = lambda request: answer(429)

    async def on_and_on() -> None:
        while clock.monotonic() < 600:
            await asyncio.gather(*(crm.contacts.get(n + 1) for n in range(10)), return_exceptions=True)

    async with client(server, rate=SEVEN) as crm:
        await on_and_on()
    assert sum(at < 1 for at in server.times) <= 7
    waits = [later - earlier for earlier, later in pairwise(server.times) if later >= 1]
    assert all(wait >= due for wait, due in zip(waits, [1, 2, 4, 8, 16, 32, *[60] * len(waits)], strict=False)), waits
    assert len(waits) >= 12


@pytest.mark.asyncio
async def test_fault_049_a_ban_stops_everybody_and_nothing_more_is_sent(server, clock):
    server.latency = 0.1
    server.respond = lambda request: answer(403, b"<html>blocked</html>", headers={"content-type": "text/html"})
    async with client(server, rate=SEVEN) as crm, client(server, rate=SEVEN) as other:
        calls = [each.contacts.get(n + 1) for each in (crm, other) for n in range(30)]
        told = await asyncio.gather(*calls, return_exceptions=True)
        sent = len(server.requests)
        await clock.sleep(3600)
        with pytest.raises(Banned):
            await other.contacts.create(Contact(name="Ivan"))
    assert {type(each) for each in told} == {Banned}
    assert sent == len(server.requests) <= 7, "only those under way together when the first page came"


# ------------------------------------------------------------------------------------------------- the server's own count


class Road(httpx.AsyncBaseTransport):
    """The way to a sandbox in this process: there and back take what the dice say."""

    def __init__(self, inner: httpx.AsyncBaseTransport, clock: FakeClock, there: Any, back: Any, seed: int = 0) -> None:
        self._inner, self._clock, self._there, self._back = inner, clock, there, back
        self._dice = Random(seed)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await self._clock.sleep(self._dice.uniform(*self._there))
        response = await self._inner.handle_async_request(request)
        await self._clock.sleep(self._dice.uniform(*self._back))
        return response


def used(arrivals: Sequence[float]) -> float:
    first, last = min(arrivals), max(arrivals)
    return sum(at >= first + 1 for at in arrivals) / (7 * (last - first))


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "there, back, workers",
    [((0.01, 0.01), (0.01, 0.01), 1), ((0.005, 0.05), (0, 0), 4), ((0.01, 0.01), (0.01, 0.01), 60)],
    ids=["20 ms", "jitter", "60 at once"],
)
async def test_fault_050_the_sandbox_counts_seven_in_any_second_and_hardly_fewer(there, back, workers):
    """From the first request on, by its own count at arrival."""
    clock = FakeClock(idle=40)
    with World(clock=clock) as world:
        populate(world, contacts=20, companies=1, deals=1, tasks=1, notes=1)
        running = in_process(FACE, world, clock=clock)
        road = Road(running.transport(), clock, there, back)
        ids = iter([row["id"] for row in world.select("contact", limit=20)] * 11)
        given = {"base_url": running.base_url, "credentials": running.credentials["token"], "clock": clock}
        async with connect("kommo", transport=road, **given) as crm:

            async def work() -> None:
                for id in ids:
                    await crm.call(read(f"/api/v4/contacts/{id}"))

            await asyncio.gather(*(work() for _ in range(workers)))
        stats = running.stats
    assert (stats.requests, stats.over(7, 1.0), stats.worst(1.0), stats.refused) == (220, 0, 7, 0)
    assert used(stats.arrivals) >= 0.95


@pytest.mark.asyncio
@pytest.mark.parametrize("kept_by", ["memory", "file"])
async def test_fault_051_clients_of_one_account_keep_its_limit_together(server, clock, tmp_path, kept_by):
    """Four clients; with a file each stands for a process of its own, which shares nothing else with the others."""
    pacers: list[Any] = [FilePacer(tmp_path) for _ in range(4)] if kept_by == "file" else [SharedPacers()] * 4
    server.latency = 0.1
    crms = [client(server, rate=SEVEN, pacer=pacer) for pacer in pacers]
    sent = [0] * 4

    async def work(which: int) -> None:
        while clock.monotonic() < 20:
            await crms[which].contacts.get(1)
            sent[which] += 1

    await asyncio.gather(*(work(which) for which in range(4) for _ in range(6)))
    for crm in crms:
        await crm.aclose()
    assert over(server.times) == 0
    assert len(server.times) >= 0.95 * 7 * 20
    assert min(sent) >= max(sent) / 2, f"nobody starves: {sent}"


SHARE = """
import asyncio, sys
from crmclient import FilePacer, connect
from crmclient.dialect import read

async def main():
    url, token, folder = sys.argv[1:]
    async with connect("kommo", base_url=url, credentials=token, pacer=FilePacer(folder)) as crm:
        await asyncio.gather(*(crm.call(read("/api/v4/account")) for _ in range(9)))

asyncio.run(main())
"""


@pytest.mark.e2e
@pytest.mark.asyncio
async def test_fault_051_four_processes_keep_the_limit_together(tmp_path):
    with World(clock=SystemClock()) as world:
        populate(world, contacts=1, companies=1, deals=1, tasks=1, notes=1)
        async with serve(FACE, world) as running:
            command = [sys.executable, "-c", SHARE, running.base_url, running.credentials["token"], str(tmp_path)]
            processes = [await asyncio.create_subprocess_exec(*command, stderr=subprocess.PIPE) for _ in range(4)]
            told = await asyncio.gather(*(process.communicate() for process in processes))
            stats = running.stats
    assert [process.returncode for process in processes] == [0] * 4, told
    # Without the folder in common twenty-eight come in the first moment. A machine that stands still for a while may
    # stamp one too many.
    assert stats.refused <= 1
    assert stats.requests == 36 + stats.refused
    assert max(stats.arrivals) - min(stats.arrivals) >= 5.0


@pytest.mark.asyncio
async def test_fault_052_a_waiter_that_is_cancelled_takes_no_turn_with_it_and_the_order_stays(server, clock):
    """Twenty of forty-eight, while they stand in line."""
    async with client(server, rate=SEVEN) as crm:
        calls = [asyncio.create_task(crm.contacts.get(n + 1)) for n in range(48)]
        await clock.sleep(0.5)
        gone = set(Random(3).sample(range(7, 48), 20))
        for n in gone:
            calls[n].cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        assert [n for n, call in enumerate(calls) if call.cancelled()] == sorted(gone)
    assert server.paths == [f"GET /contacts/{n + 1}" for n in range(48) if n not in gone]
    assert over(server.times) == 0
    assert max(server.times) <= 3 * 1.04, "four rounds of seven, as if the others had never been there"


# ------------------------------------------------------------------------------------------------- late, and not in turn


@pytest.mark.asyncio
async def test_fault_065_an_event_loop_that_stood_still_makes_up_for_nothing(server, clock):
    server.latency = 0.05

    async def block() -> None:
        await clock.sleep(3.3)
        clock.advance(5.0)

    async with client(server, rate=SEVEN) as crm:
        await asyncio.gather(block(), *(crm.contacts.get(n + 1) for n in range(70)))
    assert over(server.times) == 0
    after = [at for at in server.times if at >= 8.3]
    assert sum(at < 9.3 for at in after) <= 7
    assert max(server.times) >= 13, "ten rounds, and five seconds in which nothing went"


@pytest.mark.asyncio
async def test_fault_066_a_call_outside_a_big_job_does_not_wait_for_its_end(server, clock):
    """A thousand calls of a job are queued, and somebody at a screen asks for one contact."""
    async with client(server, rate=SEVEN) as crm:
        with bulk():
            job = [asyncio.create_task(crm.contacts.get(n + 1)) for n in range(1000)]
        await clock.sleep(10)
        asked = clock.monotonic()
        await crm.contacts.get(5000)
        waited = clock.monotonic() - asked
        for call in job:
            call.cancel()
        await asyncio.gather(*job, return_exceptions=True)
    assert waited <= 1.1, f"{waited:.1f} s"


@pytest.mark.asyncio
async def test_fault_066_nor_does_the_job_starve_beside_those_who_ask_without_end(server, clock):
    async def asking() -> None:
        while not all(call.done() for call in job):
            await crm.contacts.get(5000)

    async with client(server, rate=SEVEN) as crm:
        with bulk():
            job = [asyncio.create_task(crm.contacts.get(n + 1)) for n in range(20)]
        await asyncio.gather(*(asking() for _ in range(30)), *job)
    assert clock.monotonic() <= 20 * 4 / 7 + 2, "a fourth of the turns is the job's"


@pytest.mark.asyncio
async def test_fault_066_what_is_read_ahead_waits_behind_what_is_asked_for(server, clock):
    server.latency = 0.8
    server.listing(1000)
    async with client(server, rate=Rate(2, 1)) as crm:
        pages = crm.contacts.pages(prefetch=8)
        for _ in range(6):
            await anext(pages)
        before = len(server.times)
        server.respond = None
        await crm.contacts.get(5000)
        ahead = [path for path in server.paths[before:] if path == "GET /contacts"]
        await pages.aclose()
    assert len(ahead) <= 3, "the pages not asked for yet went first"


@pytest.mark.asyncio
async def test_fault_066_a_batch_of_calls_is_a_big_job(server, clock):
    """create_many of a hundred rows, one a request here: the contact asked for meanwhile does not wait for their end."""
    async with client(server, rate=SEVEN) as crm:
        job = asyncio.create_task(crm.contacts.create_many([Contact(name=f"n{n}") for n in range(100)]))
        await clock.sleep(2.5)
        asked = clock.monotonic()
        await crm.contacts.get(5000)
        assert clock.monotonic() - asked <= 1.1
        assert len(await job) == 100
