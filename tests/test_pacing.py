"""Never more than the vendor allows in any window, first come first served, whoever is late, cancelled or banned."""

import asyncio
import gc
import itertools
import json
import random
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crmclient import Banned, Rate, RateLimited, connect
from crmclient.clock import FakeClock
from crmclient.dialect import Call, read
from crmclient.pacing import MARGIN, LocalPacer, shared_pacer


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
        "travels": draw(st.floats(0, MARGIN * 0.99)),
        "never_leaves": draw(st.sampled_from([False, False, False, True])),
        "gives_up": draw(st.one_of(st.none(), st.none(), st.floats(0, 2))),
    }


@given(st.lists(rates, min_size=1, max_size=3), st.lists(requests(), min_size=1, max_size=24))
@settings(max_examples=50, deadline=None)
def test_no_window_at_the_server_ever_holds_more_than_the_limit(rates, callers):
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
        pacer = LocalPacer(rates, clock)
        tasks = [asyncio.create_task(call(pacer, who)) for who in callers]
        for task, who in zip(tasks, callers, strict=True):
            if who["gives_up"] is not None:
                cancelling.append(asyncio.create_task(cancel(task, who["gives_up"])))
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*cancelling)
        # Whatever happened, a turn is still to be had.
        await granted(pacer, [])

    cancelling: list[asyncio.Task[None]] = []

    async def cancel(task: asyncio.Task[None], after: float) -> None:
        await clock.sleep(after)
        task.cancel()

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
    pacer = LocalPacer([Rate(1, 1)], clock)
    await granted(pacer, times)
    waiting = [asyncio.create_task(granted(pacer, times)) for _ in range(2)]
    await clock.sleep(0.5)
    pacer.pause(10)
    pacer.pause(1)
    await asyncio.gather(*waiting)
    assert times == [0.0, pytest.approx(10.5), pytest.approx(11.53)]


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
async def test_an_account_whose_clients_are_gone_is_forgotten():
    clock = FakeClock()
    kept = shared_pacer("toy-forgotten", (Rate(1, 60),), clock)
    assert shared_pacer("toy-forgotten", (Rate(1, 60),), clock) is kept
    kept.ban(Banned("blocked"))
    del kept
    gc.collect()
    (await shared_pacer("toy-forgotten", (Rate(1, 60),), clock).turn()).over()


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
    assert times == [0.0, pytest.approx(1.03), pytest.approx(2.06)]


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
