"""Never more than the vendor allows in any window, first come first served, whoever is late, cancelled or banned."""

import asyncio
import fcntl
import gc
import itertools
import json
import logging
import os
import random
import signal
import stat
import sys
from collections.abc import Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import pytest
from attrs import frozen
from hypothesis import given, settings
from hypothesis import strategies as st

from crmclient import Banned, FilePacer, Misconfigured, Rate, RateLimited, bulk, connect
from crmclient.clock import Clock, FakeClock, SystemClock
from crmclient.dialect import Call, read
from crmclient.pacing import (
    BAN_LASTS,
    COVERED,
    DOUBT,
    GRACE,
    LOST,
    MARGIN,
    SHARED_PACERS,
    TRUSTED,
    Book,
    Booked,
    Line,
    LocalPacer,
)


def over(times: Sequence[float], rate: Rate) -> list[float]:
    """The lengths of the stretches in which one more than the limit went out within the window."""
    ordered = sorted(times)
    stretches = [late - early for early, late in zip(ordered, ordered[rate.limit :], strict=False)]
    return [stretch for stretch in stretches if stretch < rate.seconds]


async def settle() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


async def granted(pacer: LocalPacer, times: list[float]) -> None:
    turn = await pacer.turn()
    turn.sent()
    times.append(pacer.clock.monotonic())
    turn.over()


# ------------------------------------------------------------------------------------------------------------ the law

rates = st.builds(Rate, st.integers(1, 8), st.sampled_from([0.1, 0.5, 1.0, 3.0, 60.0]))
waits = st.one_of(st.just(0.0), st.floats(0, 0.1), st.floats(0, 3))


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    """One caller: when it comes, how late its request leaves, how long the network takes, whether it gives up."""
    return {
        "comes": draw(waits),
        "late": draw(waits),
        "again": draw(st.one_of(st.none(), st.floats(0, 0.01))),
        "travels": draw(st.floats(0, (MARGIN + DOUBT) * 0.99)),
        "never_leaves": draw(st.sampled_from([False, False, False, True])),
        "gives_up": draw(st.one_of(st.none(), st.none(), st.floats(0, 2))),
    }


@given(st.lists(rates, min_size=1, max_size=3), st.lists(requests(), min_size=1, max_size=24), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_no_window_at_the_server_ever_holds_more_than_the_limit(rates, callers, processes):
    """With 0 processes the book is in memory, else in a file that is all they share."""
    clock = FakeClock(idle=30)
    arrivals: list[float] = []
    served = 0

    async def call(pacer: LocalPacer, who: dict[str, Any]) -> None:
        nonlocal served
        await clock.sleep(who["comes"])
        turn = await pacer.turn()
        try:
            await clock.sleep(who["late"])
            if who["never_leaves"]:
                return
            turn.sent()
            if who["again"] is not None:
                # A connection turned out dead: the same request leaves once more, a moment later.
                await clock.sleep(who["again"])
                turn.sent()
            arrivals.append(clock.monotonic() + who["travels"])
        finally:
            turn.over()
        served += 1

    async def everybody() -> None:
        pacers = [FilePacer(folder).of("toy", rates, clock) for _ in range(processes)] or [LocalPacer(rates, clock)]
        tasks = [
            asyncio.create_task(call(pacer, who)) for pacer, who in zip(itertools.cycle(pacers), callers, strict=False)
        ]
        for task, who in zip(tasks, callers, strict=True):
            if who["gives_up"] is not None:
                cancelling.append(asyncio.create_task(cancel(task, who["gives_up"])))
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*cancelling)
        # Whatever happened, a turn is still to be had.
        for pacer in pacers:
            await granted(pacer, [])

    cancelling: list[asyncio.Task[None]] = []

    async def cancel(task: asyncio.Task[None], after: float) -> None:
        await clock.sleep(after)
        task.cancel()

    with TemporaryDirectory() as folder:
        asyncio.run(everybody())
    for rate in rates:
        assert over(arrivals, rate) == []


@pytest.mark.asyncio
async def test_the_law_of_the_test_bites():
    assert over([0, 0.5, 0.9, 1.1], Rate(3, 1)) == []
    assert over([0, 0.5, 0.9, 0.99], Rate(3, 1)) == [0.99]


@pytest.mark.asyncio
async def test_a_first_request_that_leaves_late_does_not_pull_an_eighth_into_its_second():
    clock, times = FakeClock(), list[float]()
    pacer = LocalPacer([Rate(7, 1)], clock)

    async def call(n: int) -> None:
        turn = await pacer.turn()
        await clock.sleep(0.1 if n == 0 else 0.0)  # imports, connection, TLS
        turn.sent()
        times.append(clock.monotonic())

    await asyncio.gather(*(call(n) for n in range(30)))
    assert over(times, Rate(7, 1)) == []
    assert max(times) < 30 / 7 + 0.5


@pytest.mark.asyncio
async def test_turns_given_and_not_sent_hold_the_rest_back_until_it_is_known_when_they_left():
    clock, times = FakeClock(), list[float]()
    pacer = LocalPacer([Rate(2, 1)], clock)
    held = [await pacer.turn(), await pacer.turn()]
    waiting = asyncio.create_task(granted(pacer, times))
    await clock.sleep(50)
    assert times == []
    held[0].sent()
    await clock.sleep(1)
    assert times == []
    held[1].over()
    await waiting
    assert times == [pytest.approx(51.03)]


@pytest.mark.asyncio
async def test_a_turn_that_is_sent_later_than_was_thought_counts_where_it_was_sent():
    clock, times = FakeClock(), list[float]()
    pacer = LocalPacer([Rate(1, 1)], clock)
    turn = await pacer.turn()
    turn.sent()
    waiting = asyncio.create_task(granted(pacer, times))
    await clock.sleep(0.9)
    turn.sent()
    await waiting
    assert times[0] >= 1.9


@pytest.mark.asyncio
async def test_a_turn_that_was_given_back_unused_counts_as_sent():
    clock, times = FakeClock(), list[float]()
    pacer = LocalPacer([Rate(1, 1)], clock)
    turn = await pacer.turn()
    await clock.sleep(5)
    turn.over()
    turn.over()
    await granted(pacer, times)
    assert times == [pytest.approx(6.03)]


@pytest.mark.asyncio
async def test_of_several_rates_the_strictest_rules_at_each_moment():
    clock, times = FakeClock(), list[float]()
    rates = [Rate(2, 1), Rate(5, 10)]
    pacer = LocalPacer(rates, clock)
    await asyncio.gather(*(granted(pacer, times) for _ in range(15)))
    for rate in rates:
        assert over(times, rate) == []
    assert [sum(at < 10 for at in times), sum(at < 20 for at in times)] == [5, 10]
    assert pacer.interval == 2.0


@pytest.mark.asyncio
async def test_without_a_rate_nobody_waits():
    clock, times = FakeClock(), list[float]()
    pacer = LocalPacer([], clock)
    await asyncio.gather(*(granted(pacer, times) for _ in range(100)))
    assert times == [0.0] * 100
    assert pacer.interval == 0.0


# ------------------------------------------------------------------------------------------------------------ fairness


@pytest.mark.asyncio
async def test_first_come_first_served():
    clock, order = FakeClock(), list[int]()
    pacer = LocalPacer([Rate(3, 1)], clock)

    async def call(n: int) -> None:
        turn = await pacer.turn()
        order.append(n)
        turn.sent()

    await asyncio.gather(*(call(n) for n in range(40)))
    assert order == list(range(40))


@pytest.mark.asyncio
async def test_a_waiter_that_is_cancelled_takes_no_turn_with_it():
    clock, times = FakeClock(), list[float]()
    pacer = LocalPacer([Rate(1, 1)], clock)
    waiting = [asyncio.create_task(granted(pacer, times)) for _ in range(6)]
    await settle()
    for gone in (1, 2, 4):  # the one at the head of the line, the one behind it, and one in the middle
        waiting[gone].cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert times == [0.0, pytest.approx(1.03), pytest.approx(2.06)]


@pytest.mark.asyncio
async def test_waiters_may_be_cancelled_at_any_moment():
    clock, times = FakeClock(), list[float]()
    pacer = LocalPacer([Rate(2, 1)], clock)
    dice = random.Random(7)
    for _ in range(40):
        tasks = [asyncio.create_task(granted(pacer, times)) for _ in range(3)]
        for _ in range(dice.randrange(6)):
            await asyncio.sleep(0)
        dice.choice(tasks).cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert len(times) >= 80
    assert over(times, Rate(2, 1)) == []
    assert max(times) < len(times) / 2 * 1.03 + 1


# ------------------------------------------------------------------------------------------------------ pause and ban


@pytest.mark.asyncio
async def test_a_pause_holds_everybody_back_and_a_shorter_one_does_not_end_it():
    clock, times = FakeClock(), list[float]()
    pacer = LocalPacer([Rate(1, 1)], clock, chance=lambda: 0.0)
    await granted(pacer, times)
    waiting = [asyncio.create_task(granted(pacer, times)) for _ in range(2)]
    await clock.sleep(0.5)
    pacer.pause(10)
    pacer.pause(1)
    await asyncio.gather(*waiting)
    # The pause widens the margin too: from 30 ms on.
    assert times == [0.0, pytest.approx(10.5), pytest.approx(11.555, abs=0.002)]


@pytest.mark.asyncio
async def test_a_ban_ends_the_wait_of_everybody_in_line_and_of_those_who_come_later():
    clock, times = FakeClock(), list[float]()
    pacer = LocalPacer([Rate(1, 60)], clock)
    await granted(pacer, times)
    waiting = [asyncio.create_task(granted(pacer, times)) for _ in range(3)]
    await settle()
    pacer.ban(Banned("blocked", status=403))
    told = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(error) for error in told] == [Banned] * 3
    with pytest.raises(Banned):
        await pacer.turn()
    assert times == [0.0]


# ---------------------------------------------------------------------------------------------------------- one account


def answers(clock: FakeClock, times: list[float], status: int = 200) -> httpx.MockTransport:
    def handler(request: httpx.Request) -> httpx.Response:
        times.append(clock.monotonic())
        return httpx.Response(
            status, stream=httpx.ByteStream(b'{"id":1}' if status == 200 else b"<html>blocked</html>")
        )

    return httpx.MockTransport(handler)


def client(transport: httpx.MockTransport, host: str = "127.0.0.1:9", **given: Any) -> Any:
    return connect("kommo", base_url=f"http://{host}", credentials="a-token-of-nobody", transport=transport, **given)


@pytest.mark.asyncio
async def test_two_clients_of_one_account_share_its_limit_without_being_told():
    clock, times = FakeClock(), list[float]()
    transport = answers(clock, times)
    async with client(transport, clock=clock) as one, client(transport, clock=clock) as other:
        await asyncio.gather(*(crm.call(read("/x")) for crm in [one, other] * 25))
    assert len(times) == 50
    assert over(times, Rate(7, 1)) == []


@pytest.mark.asyncio
async def test_two_clients_of_two_accounts_share_nothing():
    clock, times = FakeClock(), list[float]()
    transport = answers(clock, times)
    async with (
        client(transport, clock=clock, rate=Rate(1, 60)) as one,
        client(transport, "127.0.0.1:10", clock=clock, rate=Rate(1, 60)) as other,
    ):
        await asyncio.gather(one.call(read("/x")), other.call(read("/x")))
    assert times == [0.0, 0.0]


@pytest.mark.asyncio
async def test_two_clients_made_without_a_clock_share_their_account_too():
    times: list[float] = []
    transport = answers(FakeClock(), times, 403)
    async with client(transport) as one, client(transport) as other:
        with pytest.raises(Banned):
            await one.call(read("/x"))
        with pytest.raises(Banned):
            await other.call(read("/x"))
    assert len(times) == 1, "the second client of the account knew nothing of the first one's ban, nor of its pace"


@pytest.mark.asyncio
async def test_an_account_whose_clients_are_gone_is_forgotten_once_nothing_of_it_matters():
    clock, rates = FakeClock(), (Rate(1, 60),)
    kept = SHARED_PACERS.of("toy-forgotten", rates, clock)
    assert SHARED_PACERS.of("toy-forgotten", rates, clock) is kept
    (await kept.turn()).over()
    del kept
    gc.collect()
    # The window, by whoever comes next.
    (await SHARED_PACERS.of("toy-forgotten", rates, clock).turn()).over()
    assert clock.monotonic() >= 60
    SHARED_PACERS.of("toy-forgotten", rates, clock).ban(Banned("blocked"))
    gc.collect()
    with pytest.raises(Banned):
        await SHARED_PACERS.of("toy-forgotten", rates, clock).turn()
    clock.advance(3601)
    gc.collect()
    (await SHARED_PACERS.of("toy-forgotten", rates, clock).turn()).over()
    clock.advance(3601)
    gc.collect()
    SHARED_PACERS.of("toy-another", rates, clock)
    assert [key[0] for key in SHARED_PACERS._kept[clock]] == ["toy-another"]


def test_a_loop_that_comes_after_another_finds_what_that_one_left():
    """One `asyncio.run` after the other, a client each: twenty requests in a moment would be a ban."""
    clock, rates = FakeClock(), (Rate(7, 1),)

    async def one():
        (await SHARED_PACERS.of("toy-loops", rates, clock).turn()).over()
        return clock.monotonic()

    at = []
    for _ in range(20):
        at.append(asyncio.run(one()))
        gc.collect()
    assert all(later - earlier >= 1 for earlier, later in zip(at, at[7:], strict=False))


def test_two_loops_at_once_have_a_line_each():
    clock, rates = FakeClock(), (Rate(7, 1),)

    async def outer():
        mine = SHARED_PACERS.of("toy-threads", rates, clock)

        async def inner():
            return SHARED_PACERS.of("toy-threads", rates, clock)

        assert await asyncio.to_thread(asyncio.run, inner()) is not mine
        assert SHARED_PACERS.of("toy-threads", rates, clock) is mine

    asyncio.run(outer())


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "asked", [10**400, 10**18, -5, 0, "soon", True, None, [1], 1.5], ids=lambda asked: f"{asked!r:.20}"
)
async def test_a_429_with_an_absurd_wait_in_its_body_is_rate_limited_and_nothing_else(asked):
    clock = FakeClock()
    body = json.dumps({"title": "Too Many Requests", "retry_after": asked}).encode()
    transport = httpx.MockTransport(lambda request: httpx.Response(429, stream=httpx.ByteStream(body)))
    async with client(transport, clock=clock) as crm:
        for _ in range(2):
            with pytest.raises(RateLimited):
                await crm.call(read("/x"))
    assert clock.monotonic() < 24 * 3600, "nobody waits for years because a server said so"


@pytest.mark.asyncio
async def test_a_write_waits_for_its_turn_as_a_read_does():
    clock, times = FakeClock(), list[float]()
    async with client(answers(clock, times), clock=clock, rate=Rate(1, 1)) as crm:
        await asyncio.gather(*(crm.call(Call(method, "/x")) for method in ("POST", "GET", "PATCH")))
    # Each was answered at once, so nothing is left to doubt but the margin.
    assert times == [0.0, pytest.approx(1 + MARGIN), pytest.approx(2 + 2 * MARGIN)]


# ---------------------------------------------------------------------------------------------------------- utilisation


@pytest.mark.asyncio
@pytest.mark.parametrize("rate", [Rate(7, 1), Rate(100, 60), Rate(1, 1)])
async def test_the_limit_is_used_to_ninety_five_percent(rate):
    clock, times = FakeClock(idle=20), list[float]()
    pacer = LocalPacer([rate], clock)
    await asyncio.gather(*(granted(pacer, times) for _ in range(rate.limit * 30)))
    rounds = (len(times) - rate.limit) / rate.limit
    used = rounds * rate.seconds / max(times)
    assert 0.95 <= used <= 1.0


@pytest.mark.asyncio
async def test_requests_that_leave_up_to_fifty_milliseconds_late_still_use_nine_tenths_of_the_limit():
    clock, times, dice = FakeClock(idle=20), list[float](), random.Random(1)
    pacer = LocalPacer([Rate(7, 1)], clock)

    async def call() -> None:
        turn = await pacer.turn()
        await clock.sleep(dice.uniform(0, 0.05))
        turn.sent()
        times.append(clock.monotonic())

    await asyncio.gather(*(call() for _ in range(210)))
    assert over(times, Rate(7, 1)) == []
    used = (len(times) - 7) / 7 / max(times)
    assert used >= 0.90, f"{used:.3f}"


@pytest.mark.asyncio
async def test_after_an_idle_while_a_burst_is_no_larger_than_the_limit():
    clock, times = FakeClock(), list[float]()
    pacer = LocalPacer([Rate(7, 1)], clock)
    await asyncio.gather(*(granted(pacer, times) for _ in range(10)))
    clock.advance(3600)
    await asyncio.gather(*(granted(pacer, times) for _ in range(20)))
    assert over(times, Rate(7, 1)) == []
    assert all(len(list(group)) <= 7 for _, group in itertools.groupby(times))


# ------------------------------------------------------------------------------- each way of asking, on each kind of road

SEVEN = Rate(7, 1)


@frozen
class Scene:
    """Seconds there and back, and at the server, which serves one after the other; so many tasks in so many processes."""

    there: tuple[float, float] = (0.01, 0.01)
    back: tuple[float, float] = (0.01, 0.01)
    served: tuple[float, float] = (0.0, 0.0)
    workers: int = 1
    processes: int = 1
    idle: float = 0.0
    connecting: float = 0.0


SCENES = {
    "20 ms": Scene(),
    "300 ms, three pages ahead": Scene(there=(0.15, 0.15), back=(0.15, 0.15), workers=3),
    "jitter of 5 to 50 ms on the way": Scene(there=(0.005, 0.05), back=(0, 0)),
    "jitter of 5 to 50 ms and four tasks": Scene(there=(0.005, 0.05), back=(0, 0), workers=4),
    "jitter both ways": Scene(there=(0.0025, 0.025), back=(0.0025, 0.025), workers=8),
    "a cold start": Scene(workers=20, connecting=0.1),
    "an idle pool": Scene(workers=20, connecting=0.1, idle=15.0),
    "a long silence": Scene(there=(0.005, 0.05), back=(0, 0), workers=8, idle=600.0),
    "sixty at once": Scene(workers=60),
    "batches that take 30 to 60 ms": Scene(served=(0.03, 0.06), workers=8),
    "batches that take 90 to 120 ms": Scene(served=(0.09, 0.12), workers=8),
    "four processes": Scene(workers=15, processes=4),
    "four processes and jitter": Scene(there=(0.005, 0.05), back=(0, 0), workers=4, processes=4),
}


async def arrived(scene: Scene, clock: FakeClock, folder: Path, seed: int, requests: int = 210) -> list[list[float]]:
    """When each request came to the server, before and after it was left alone for a while."""
    dice, server, warm = random.Random(seed), Line(), set[int]()
    arrivals: list[float] = []
    pacers: list[Any] = [FilePacer(folder).of("toy", (SEVEN,), clock) for _ in range(scene.processes)]
    if scene.processes == 1:
        pacers = [LocalPacer((SEVEN,), clock, chance=dice.random)]

    async def call(pacer: LocalPacer, worker: int) -> None:
        turn = await pacer.turn()
        if scene.connecting and worker not in warm:
            warm.add(worker)
            await clock.sleep(dice.uniform(0, scene.connecting))
        turn.sent()
        await clock.sleep(dice.uniform(*scene.there))
        arrivals.append(clock.monotonic())
        if scene.served[1]:
            await server.acquire()
            await clock.sleep(dice.uniform(*scene.served))
            server.release()
        await clock.sleep(dice.uniform(*scene.back))
        turn.answered()
        turn.over()

    async def working(numbers: Any) -> None:
        async def work(pacer: LocalPacer, worker: int) -> None:
            for _ in numbers:
                await call(pacer, worker)

        tasks = itertools.product(pacers, range(scene.workers))
        await asyncio.gather(*(work(pacer, worker) for worker, (pacer, _) in enumerate(tasks)))

    before = list[float]()
    if scene.idle:
        await working(iter(range(21)))
        await clock.sleep(scene.idle)
        warm.clear()
        before, arrivals[:] = list(arrivals), []
    await working(iter(range(requests)))
    return [before, arrivals]


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("scene", SCENES.values(), ids=SCENES)
def test_wherever_the_requests_come_from_the_server_counts_seven_in_any_second_and_hardly_fewer(scene, seed, tmp_path):
    clock = FakeClock(idle=30)
    before, arrivals = asyncio.run(arrived(scene, clock, tmp_path, seed))
    assert over([*before, *arrivals], SEVEN) == []
    first, last = min(arrivals), max(arrivals)
    used = sum(at >= first + 1 for at in arrivals) / (7 * (last - first))
    assert used >= 0.95, f"{used:.3f}"


# -------------------------------------------------------------------------------------------- what is known of the arrival


def given_turn(book: Book, now: float, rate: Rate = SEVEN, owner: str = "") -> Booked:
    found = book.turn(owner, now, [rate], lambda owner: True)
    assert isinstance(found, Booked), found
    return found


def exchanged(book: Book, at: float, took: float, rate: Rate = SEVEN) -> Booked:
    turn = given_turn(book, at, rate)
    book.sent(turn, at)
    book.answered(turn, took, at + took, [rate])
    book.over(turn, at + took, True)
    return turn


def seasoned(took: float = 0.1, rate: Rate = SEVEN) -> tuple[Book, float]:
    """A book that has seen enough answers to trust the fastest, and when it saw the last."""
    book = Book()
    for n in range(TRUSTED + 1):
        exchanged(book, 100.0 + 2 * n, took, rate)
    return book, 100.0 + 2 * TRUSTED + took


def test_what_an_answer_took_longer_than_the_fastest_of_late_may_all_have_been_the_way_there():
    book, now = seasoned()
    assert exchanged(book, now + 2, 0.1).late == pytest.approx(0)
    late = exchanged(book, now + 4, 0.16).late
    assert late is not None
    assert 0.06 <= late + COVERED <= 0.16
    assert late + MARGIN > 0.06, "what the margin covers is no longer covered"


def test_a_late_arrival_holds_the_next_round_back_and_a_fast_one_does_not():
    rate = Rate(1, 1)
    book, now = seasoned(rate=rate)
    exchanged(book, now + 2, 0.1, rate)
    assert book.turn("", now + 2.1, [rate], lambda owner: True) == pytest.approx(now + 3 + MARGIN)
    book, now = seasoned(rate=rate)
    exchanged(book, now + 2, 0.5, rate)
    assert book.turn("", now + 2.6, [rate], lambda owner: True) >= now + 3.4


def test_until_enough_answers_came_and_again_after_a_long_silence_the_way_there_is_unknown():
    book = Book()
    assert [exchanged(book, 100.0 + 2 * n, 0.05).late for n in range(TRUSTED + 1)] == [0.05 - COVERED] * TRUSTED + [0.0]
    assert exchanged(book, 1000.0, 0.05).late == 0.05 - COVERED


def test_a_road_that_has_become_longer_for_good_is_the_road_after_two_minutes():
    book, now = seasoned(0.02)
    late = [exchanged(book, now + 2 * n, 0.3).late for n in range(120)]
    assert late[0] > 0.2
    assert late[-1] == 0.0


def test_what_late_arrivals_cost_is_bounded_in_the_long_run():
    """A server that takes its time at every other request loses us a few percent, not a third."""
    book, now = seasoned(0.02)
    late = [exchanged(book, now + n, 0.02 + 0.5 * (n % 2)).late or 0.0 for n in range(400)]
    assert sum(late[200:]) / 200 <= 0.035


def test_after_a_429_the_margin_widens_and_it_narrows_slowly():
    book, rate = Book(), SEVEN
    assert book.margin(rate, 100.0) == MARGIN
    book.pause(1, 100.0, 0.0)
    assert book.margin(rate, 101.0) == pytest.approx(0.030, abs=0.001)
    book.pause(1, 101.5, 0.0)
    assert book.margin(rate, 102.0) == pytest.approx(0.060, abs=0.001)
    for n in range(10):
        book.pause(1, 110.0 + 2 * n, 0.0)
    assert book.margin(rate, 130.0) == 0.1, "a tenth of the window, and no more"
    narrowing = [book.margin(rate, 130.0 + 60 * n) for n in range(60)]
    assert narrowing == sorted(narrowing, reverse=True)
    assert narrowing[1] > 0.06
    assert narrowing[-1] == pytest.approx(MARGIN, abs=0.001)


def test_refusals_while_everybody_waits_already_widen_nothing():
    book = Book()
    for n in range(7):
        book.pause(5, 100.0 + n / 10, 0.0)
    assert book.margin(SEVEN, 101.0) == pytest.approx(0.030, abs=0.001)


@pytest.mark.asyncio
async def test_a_trial_that_never_got_an_answer_is_followed_by_another_one():
    clock, times = FakeClock(), list[float]()
    pacer = LocalPacer([SEVEN], clock, chance=lambda: 0.0)
    pacer.pause(5)
    first = await pacer.turn()
    assert clock.monotonic() == 5.0
    first.sent()
    second = asyncio.create_task(pacer.turn())
    await clock.sleep(3)
    assert not second.done()
    first.over()
    turn = await second
    waiting = [asyncio.create_task(granted(pacer, times)) for _ in range(3)]
    await clock.sleep(3)
    assert times == []
    turn.sent()
    turn.answered()
    turn.over()
    await asyncio.gather(*waiting)
    assert times == [11.0] * 3


@pytest.mark.asyncio
async def test_a_ban_is_noticed_within_a_second_however_long_the_wait():
    clock = FakeClock()
    pacer = LocalPacer([Rate(1, 3600)], clock)
    await granted(pacer, [])
    waiting = asyncio.create_task(granted(pacer, []))
    await clock.sleep(10)
    pacer.ban(Banned("blocked"))
    with pytest.raises(Banned):
        await waiting
    assert clock.monotonic() <= 11.0


# ------------------------------------------------------------------------------------------------------------- the line


@pytest.mark.asyncio
async def test_in_the_line_bulk_stands_behind_the_others_and_gets_a_fourth_of_the_turns():
    line, order = Line(), list[str]()

    async def stand(name: str) -> None:
        await line.acquire()
        order.append(name)
        await asyncio.sleep(0)
        line.release()

    await line.acquire()
    with bulk():
        tasks = [asyncio.create_task(stand("b")) for _ in range(4)]
    tasks += [asyncio.create_task(stand("o")) for _ in range(8)]
    await settle()
    line.release()
    await asyncio.gather(*tasks)
    assert "".join(order) == "ooob" + "ooob" + "oo" + "bb"


@pytest.mark.asyncio
async def test_a_line_with_room_for_three_keeps_it_whoever_is_cancelled_when():
    line, dice, within, most = Line(3), random.Random(5), 0, 0

    async def stand() -> None:
        nonlocal within, most
        await line.acquire()
        within += 1
        most = max(most, within)
        try:
            await asyncio.sleep(0)
        finally:
            within -= 1
            line.release()

    for _ in range(200):
        tasks = [asyncio.create_task(stand()) for _ in range(9)]
        for _ in range(dice.randrange(6)):
            await asyncio.sleep(0)
        for task in dice.sample(tasks, 4):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert most == 3
    await asyncio.wait_for(asyncio.gather(*(stand() for _ in range(9))), 1)


# ------------------------------------------------------------------------------------------- several processes, one host


def on_disk(folder: Path, clock: Clock, *rates: Rate) -> LocalPacer:
    """What another process would make of the same folder: it shares nothing else."""
    return FilePacer(folder).of("toy", rates or (SEVEN,), clock)


@contextmanager
def held(file: Path) -> Any:
    """The file's lock, as another process holds it."""
    handle = os.open(file, os.O_RDWR)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(handle)


@pytest.mark.asyncio
async def test_the_folder_is_made_and_the_file_is_for_this_user_only(tmp_path):
    await granted(on_disk(tmp_path / "new" / "crm", FakeClock()), [])
    (file,) = (tmp_path / "new" / "crm").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


@pytest.mark.asyncio
async def test_what_one_process_was_told_the_others_keep_too(tmp_path):
    clock, times = FakeClock(), list[float]()
    one, other = on_disk(tmp_path, clock), on_disk(tmp_path, clock)
    assert 30 <= one.pause(30) <= 31
    await granted(other, times)
    assert 30 <= times[0] <= 31.1
    one.ban(Banned("blocked", status=403, code="x", detail="forbidden"))
    for pacer in (other, on_disk(tmp_path, clock)):
        with pytest.raises(Banned) as told:
            await pacer.turn()
        assert (told.value.status, told.value.code, told.value.detail) == (403, "x", "forbidden")
    await clock.sleep(BAN_LASTS)
    with pytest.raises(Banned):
        await one.turn()
    await granted(on_disk(tmp_path, clock), times)


@pytest.mark.asyncio
async def test_processes_with_rates_of_their_own_keep_both(tmp_path):
    clock, times = FakeClock(), list[float]()
    slow, fast = on_disk(tmp_path, clock, Rate(3, 10)), on_disk(tmp_path, clock, SEVEN)
    await asyncio.gather(*(granted(pacer, times) for pacer in (slow, fast) for _ in range(9)))
    assert over(times, SEVEN) == []
    await granted(slow, last := [])
    assert last[0] >= sorted(times)[-3] + 10


@pytest.mark.asyncio
async def test_a_turn_of_a_process_that_was_killed_counts_as_sent_when_that_is_seen(tmp_path):
    clock, times = FakeClock(), list[float]()
    gone = on_disk(tmp_path, clock, Rate(1, 1))
    gone.owner = f"{await a_pid_of_nobody()}:gone"
    await gone.turn()
    await clock.sleep(10)
    await granted(on_disk(tmp_path, clock, Rate(1, 1)), times)
    assert times == [pytest.approx(11 + MARGIN + DOUBT, abs=0.02)]


@pytest.mark.asyncio
async def test_a_turn_of_a_living_process_is_waited_for_but_not_for_ever(tmp_path):
    clock, times = FakeClock(idle=20), list[float]()
    await on_disk(tmp_path, clock, Rate(1, 1)).turn()
    waiting = asyncio.create_task(granted(on_disk(tmp_path, clock, Rate(1, 1)), times))
    await clock.sleep(60)
    assert times == []
    await waiting
    assert LOST <= times[0] <= LOST + 2


@pytest.mark.asyncio
async def test_whoever_stands_first_and_does_not_come_is_passed_by(tmp_path):
    """Its event loop hangs, or it was killed while it waited."""
    clock, times = FakeClock(), list[float]()
    lively = on_disk(tmp_path, clock, Rate(1, 1))
    await granted(lively, times)
    asked = await lively.shelf.ask(lambda book: book.turn("1:stuck", 0.0, lively.rates, lambda owner: True))
    assert asked == pytest.approx(1 + MARGIN)
    await granted(lively, times)
    assert asked < times[1] <= asked + DOUBT + GRACE + 0.02


@pytest.mark.asyncio
async def test_while_somebody_holds_the_lock_nobody_blocks_and_nothing_is_lost(tmp_path):
    clock, times = FakeClock(), list[float]()
    pacer = on_disk(tmp_path, clock, Rate(1, 1))
    turn = await pacer.turn()
    (file,) = tmp_path.iterdir()
    with held(file):
        turn.sent()
        turn.answered()
        turn.over()
        waiting = asyncio.create_task(granted(on_disk(tmp_path, clock, Rate(1, 1)), times))
        await clock.sleep(0.5)
        assert times == []
    await waiting
    assert times == [pytest.approx(1 + MARGIN, abs=0.01)]
    await clock.sleep(0.1)
    assert {task for task in asyncio.all_tasks() if task is not asyncio.current_task()} == set()


@pytest.mark.asyncio
async def test_a_waiter_for_the_lock_is_cancelled_without_a_trace(tmp_path):
    clock, times = FakeClock(), list[float]()
    pacer = on_disk(tmp_path, clock)
    await granted(pacer, times)
    (file,) = tmp_path.iterdir()
    before = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    with held(file):
        waiting = [asyncio.create_task(granted(pacer, times)) for _ in range(5)]
        await clock.sleep(0.1)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    await granted(pacer, times)
    assert len(times) == 2
    await clock.sleep(0.1)
    if sys.platform == "linux":
        assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.asyncio
@pytest.mark.parametrize("cut", ["torn", "garbled", "empty"])
async def test_a_write_that_was_cut_short_leaves_the_page_before_it(tmp_path, cut):
    clock, times = FakeClock(), list[float]()
    pacer = on_disk(tmp_path, clock, Rate(2, 1))
    await granted(pacer, times)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    await granted(pacer, times)
    written = file.read_bytes()
    half = 1 << 18
    changed = [at for at in (0, half) if written[at : at + 4096] != whole[at : at + 4096].ljust(4096, b"\0")]
    assert changed, "nothing was written"
    last = max(changed, key=lambda at: json.JSONDecoder().raw_decode(written[at + 8 : at + 4096].decode())[0]["count"])
    with file.open("r+b") as opened:
        opened.seek(last + (0 if cut == "empty" else 60))
        opened.write({"torn": b"\0" * 3000, "garbled": b"!", "empty": b"\0" * 8}[cut])
    # The page before holds the first turn and the second one as given but not yet known to be over, or left.
    await asyncio.gather(*(granted(on_disk(tmp_path, clock, Rate(2, 1)), times) for _ in range(2)))
    assert over(times, Rate(2, 1)) == []


@pytest.mark.asyncio
async def test_a_file_that_makes_no_sense_begins_anew_as_if_the_limit_were_used_up(tmp_path, caplog):
    clock, times = FakeClock(), list[float]()
    await granted(on_disk(tmp_path, clock, SEVEN, Rate(100, 60)), [])
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"what is this?" * 100)
    with caplog.at_level(logging.WARNING):
        await granted(on_disk(tmp_path, clock, SEVEN, Rate(100, 60)), times)
    assert times[0] >= 60
    assert "is damaged" in caplog.text


@pytest.mark.asyncio
async def test_a_file_that_was_removed_is_made_anew(tmp_path):
    clock = FakeClock()
    pacer = on_disk(tmp_path, clock)
    pacer.ban(Banned("blocked"))
    (file,) = tmp_path.iterdir()
    file.unlink()
    await granted(on_disk(tmp_path, clock), [])
    assert file.exists()


@pytest.mark.asyncio
@pytest.mark.parametrize("off", [0, 3], ids=["at once", "for three seconds"])
async def test_after_a_reboot_the_seconds_count_anew_and_what_was_sent_before_is_remembered(tmp_path, off):
    before, times = FakeClock(), list[float]()
    before.advance(10**6)
    rate = Rate(1, 20)
    pacer = on_disk(tmp_path, before, rate)
    await granted(pacer, [])
    pacer.pause(10)
    after = FakeClock(start=before.now() + timedelta(seconds=off))
    await granted(on_disk(tmp_path, after, rate), times)
    assert times == [pytest.approx(20 - off, abs=0.2)]


@pytest.mark.asyncio
@pytest.mark.parametrize("place", ["symlink", "folder", "no folder"])
async def test_where_no_pace_can_be_kept_it_is_said(tmp_path, place):
    file = tmp_path / "toy.pace"
    folder = tmp_path
    if place == "symlink":
        (tmp_path / "victim").write_text("precious")
        file.symlink_to(tmp_path / "victim")
    elif place == "folder":
        file.mkdir()
    else:
        folder = tmp_path / "file"
        folder.write_text("")
    with pytest.raises(Misconfigured, match="the pace cannot be kept in"):
        await on_disk(folder, FakeClock()).turn()
    if place == "symlink":
        assert (tmp_path / "victim").read_text() == "precious"


def test_a_book_on_paper_is_the_book():
    book, now = seasoned()
    book.pause(5, now, 0.5)
    book.turn("other", now, [SEVEN], lambda owner: True)
    book.ban(Banned("blocked", status=403), now)
    paper = json.loads(json.dumps(book.tree()))
    assert Book.read(paper, 0.0).tree() == book.tree()
    later = Book.read(paper, 50.0)
    assert (later.not_before, later.banned_until) == (book.not_before + 50, book.banned_until + 50)
    assert [turn.sent for turn in later.turns] == [turn.sent + 50 for turn in book.turns if turn.sent is not None]
    assert later.margin(SEVEN, now + 50) == pytest.approx(book.margin(SEVEN, now))


@pytest.mark.asyncio
async def test_two_clients_with_one_folder_share_their_account(tmp_path):
    clock, times = FakeClock(), list[float]()
    transport = answers(clock, times)
    given: Any = {"clock": clock, "rate": Rate(1, 1)}
    async with (
        client(transport, pacer=FilePacer(tmp_path), **given) as one,
        client(transport, pacer=FilePacer(str(tmp_path)), **given) as other,
    ):
        await asyncio.gather(*(crm.call(read("/x")) for crm in [one, other] * 2))
    assert over(times, Rate(1, 1)) == []
    assert max(times) <= 3.2


async def a_pid_of_nobody() -> int:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "")
    await process.wait()
    return process.pid


HOLDER = """
import asyncio, sys
from crmclient import FilePacer, Rate
from crmclient.clock import SYSTEM_CLOCK

async def main():
    pacer = FilePacer(sys.argv[1]).of("toy", (Rate(1, 1),), SYSTEM_CLOCK)
    if sys.argv[2] == "lock":
        with pacer.shelf._locked() as handle:
            print(handle is not None, flush=True)
            await asyncio.sleep(600)
    await pacer.turn()
    print(True, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.e2e
@pytest.mark.asyncio
@pytest.mark.parametrize("what", ["lock", "turn"])
async def test_who_is_killed_takes_neither_the_lock_nor_a_turn_with_it(tmp_path, what):
    command = [sys.executable, "-c", HOLDER, str(tmp_path), what]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    assert await process.stdout.readline() == b"True\n"
    clock = SystemClock()
    waiting = asyncio.create_task(on_disk(tmp_path, clock, Rate(1, 1)).turn())
    await asyncio.sleep(0.3)
    assert not waiting.done()
    process.send_signal(signal.SIGKILL)
    await process.wait()
    begun = clock.monotonic()
    (await waiting).over()
    assert clock.monotonic() - begun <= 5.0
