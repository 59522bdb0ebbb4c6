"""C. Trying again, and when not to; deadlines; writes whose answer was lost. The rows are those of the fault catalogue."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import suppress
from datetime import timedelta
from itertools import product
from typing import Any

import httpx
import pytest
from attrs import evolve
from toy import FAST, TOY, Login, Renewing, Server, answer, client, renewing

from crmclient import (
    AmbiguousWrite,
    AuthFailed,
    Contact,
    CRMError,
    DeadlineExceeded,
    Deal,
    Kind,
    Link,
    Made,
    Misconfigured,
    Note,
    Rate,
    RateLimited,
    Ref,
    Retry,
    Secret,
    Task,
    Unavailable,
    Unknown,
    Verb,
)
from crmclient.clock import FakeClock
from crmclient.dialect import Call, Token
from crmclient.hooks import AccountPaused, AttemptEnded, AttemptStarted, Happening, RetryPlanned, TokenRenewed
from crmclient.retry import Quota
from crmclient.sandbox.faults import Action, Fault
from crmclient.session import Limits, Session
from crmclient.testing.plugin import Sandboxed, Sandboxes
from crmclient.tokens import MemoryTokens

pytestmark = pytest.mark.asyncio


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def server(clock: FakeClock) -> Server:
    return Server(clock)


# ------------------------------------------------------------------------------------------------------------- trying


async def test_fault_053_an_outage_is_not_made_worse_by_those_who_wait_for_its_end(server) -> None:
    """Sixty reads on a dead server: the retries they share end long before their attempts do."""
    server.respond = lambda request: answer(503)
    async with client(server, rate=FAST) as crm:
        found = await asyncio.gather(*(crm.contacts.get(n + 1) for n in range(60)), return_exceptions=True)
    assert all(isinstance(each, Unavailable) for each in found)
    assert len(server.requests) <= 60 + Quota().capacity // Quota().price


async def test_fault_054_one_row_that_always_fails_ends_and_costs_the_others_nothing(server) -> None:
    server.respond = lambda request: (
        answer(500) if request.url.path.endswith("/13") else answer(body={"id": 1, "name": "n"})
    )
    async with client(server) as crm:
        outcomes: Counter[str] = Counter()
        for n in range(1, 60):
            try:
                await crm.contacts.get(13 if n % 3 == 0 else n)
                outcomes["read"] += 1
            except Unavailable:
                outcomes["failed"] += 1
    assert outcomes["failed"] == sum(n % 3 == 0 or n == 13 for n in range(1, 60))
    tries = Counter(request.url.path for request in server.requests)
    assert tries.pop("/api/contacts/13") <= 3 * outcomes["failed"]
    assert set(tries.values()) == {1}


async def test_fault_054_a_row_that_fails_for_ever_takes_no_retries_from_the_others(server) -> None:
    """A third of the calls are about it, and many more than the quota could pay for."""
    shaky: list[httpx.Response] = []

    def respond(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/13"):
            return answer(500)
        return shaky.pop() if shaky else answer(body={"id": 1, "name": "n"})

    server.respond = respond
    async with client(server) as crm:
        for _ in range(2 * Quota().capacity // Quota().price):
            with pytest.raises(Unavailable):
                await crm.contacts.get(13)
            await crm.contacts.get(1)
            await crm.contacts.get(2)
        shaky += [answer(503), answer(503)]
        assert (await crm.contacts.get(3)).id == 1


async def test_fault_056_any_number_of_tries_is_a_wait_and_no_overflow() -> None:
    patient = Retry(attempts=10_000)
    for attempt in (1, 31, 1_024, 5_000, 9_999):
        delay = patient.delay(attempt, 1.0)
        assert delay is not None
        assert 0 <= delay <= patient.cap
    assert patient.delay(10_000, 1.0) is None


@pytest.mark.parametrize("number", [0, -1, float("nan"), float("inf"), None])
async def test_fault_057_a_bound_that_is_none_is_refused_when_it_is_said(server, number) -> None:
    for name in ("connect", "read", "whole", "idle"):
        with pytest.raises((ValueError, TypeError)):
            Limits(**{name: number})
    with pytest.raises((ValueError, TypeError)):
        Retry(attempts=number)
    if number is not None:
        with pytest.raises(Misconfigured, match="deadline"):
            client(server, deadline=number)
        with pytest.raises(Misconfigured, match="deadline"), client(server).within(number):
            pass


async def test_fault_058_no_wait_is_begun_that_the_deadline_would_cut_off(server, clock) -> None:
    server.respond = lambda request: answer(503)
    async with client(server, retry=Retry(seconds=50, cap=50), limits=Limits()) as crm:
        crm._session._setup = evolve(crm._session._setup, chance=lambda: 0.9)  # pyright: ignore[reportPrivateUsage]
        with crm.within(seconds=10), pytest.raises(Unavailable):
            await crm.contacts.get(1)
    assert clock.monotonic() < 1, "it waited although there was no time for another try"


async def test_fault_058_a_429_that_asks_for_more_time_than_there_is_is_told_at_once(server, clock) -> None:
    server.respond = lambda request: answer(429, headers={"retry-after": "30"})
    async with client(server, deadline=5) as crm:
        with pytest.raises(RateLimited):
            await crm.contacts.get(1)
    assert clock.monotonic() < 1


async def test_fault_059_a_body_is_a_tree_and_goes_out_whole_each_time(server) -> None:
    server.script = [answer(429, headers={"retry-after": "1"}), answer(429, headers={"retry-after": "1"})]
    bodies: list[bytes] = []
    respond = server.__call__

    async def noted(request: httpx.Request) -> httpx.Response:
        bodies.append(request.content)
        return await respond(request)

    async with client(server, transport=httpx.MockTransport(noted)) as crm:
        await crm.contacts.create(Contact(name="Ivan"))
    assert [json.loads(body) for body in bodies] == [{"name": "Ivan"}] * 3


# ----------------------------------------------------------------------------------------------------------- deadlines


async def test_a_deadline_bounds_the_whole_of_what_is_called(server, clock) -> None:
    server.latency = 2
    async with client(server, deadline=5) as crm:
        with crm.within(seconds=3):
            await crm.contacts.get(1)
            with pytest.raises(DeadlineExceeded, match="waiting for the answer"):
                await crm.contacts.get(2)
            assert clock.monotonic() == pytest.approx(3)
        assert (await crm.contacts.get(3)).id == 1, "the bound was kept beyond its block"


async def test_a_deadline_says_that_nothing_was_sent_or_that_nobody_knows(server, clock) -> None:
    server.latency = 2
    async with client(server, deadline=1) as crm:
        with pytest.raises(AmbiguousWrite) as told:
            await crm.contacts.create(Contact(name="Ivan"))
        assert isinstance(told.value.__cause__, DeadlineExceeded)
    slow = client(server, deadline=1, rate=Rate(1, 60))
    async with slow as crm:
        server.latency = 0
        await crm.contacts.create(Contact(name="Ivan"))
        sent = len(server.requests)
        with pytest.raises(DeadlineExceeded, match="waiting for its turn"):
            await crm.contacts.create(Contact(name="Maria"))
        assert len(server.requests) == sent


async def test_a_write_that_could_not_leave_is_not_in_doubt_when_its_time_is_over(server) -> None:
    server.script = [httpx.ConnectError("refused")]
    async with client(server, deadline=30, rate=Rate(1, 60)) as crm:
        with pytest.raises(DeadlineExceeded, match="waiting for its turn"):
            await crm.contacts.create(Contact(name="Ivan"))
    assert len(server.requests) == 1


async def test_a_bound_in_a_generator_that_is_left_half_way_does_no_harm(server) -> None:
    async with client(server) as crm:

        async def rows() -> AsyncGenerator[int]:
            with crm.within(seconds=5):
                yield 1

        left = rows()
        await anext(left)
        await asyncio.create_task(left.aclose())  # as the event loop closes what was forgotten: in a context of its own


async def test_a_renewal_is_not_cut_off_by_the_hurry_of_who_needed_it(server, clock) -> None:
    async def slow(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/login"):
            await clock.sleep(10)
            return answer(body={"token": "new"})
        return answer(401) if request.headers["x-token"] == "old" else answer(body={"id": 1, "name": "n"})

    server.respond = slow
    async with await renewing(server) as crm:
        with crm.within(seconds=2), pytest.raises(DeadlineExceeded, match="token"):
            await crm.contacts.get(1)
        assert (await crm.contacts.get(1)).id == 1
        assert crm.spent.renewals == 1


# ------------------------------------------------------------------------------------- writes whose answer was lost


async def test_fault_060_061_a_create_whose_answer_was_lost_is_not_sent_again(
    crm_sandbox: Sandboxes, crm_faults: Any
) -> None:
    """The same error, whether the vendor has acted or not: nobody can tell, so nobody repeats."""
    for action, made in ((Action.DROP_AFTER, 1), (Action.DROP_BEFORE, 0), (Action.TEAR, 1), (Action.STATUS_AFTER, 1)):
        sandbox = crm_sandbox("kommo")
        async with sandbox.connect() as crm:
            await crm.account()
            before = sandbox.stats.requests
            crm_faults.script[:] = [Fault(action=action, on="POST *")]
            crm_faults.seen.clear()
            with pytest.raises(AmbiguousWrite, match="unknown whether"):
                await crm.contacts.create(Contact(name="Ivan"))
            assert sandbox.stats.requests == before + 1
            assert sandbox.world.count("contact") == made
            crm_faults.script.clear()
            [receipt] = await crm.contacts.create_many([Contact(name="Maria")])
            assert isinstance(receipt, Made)


async def act(crm: Any, kind: str, sandbox: Sandboxed) -> Any:
    """One call of each kind there is; whatever it needs to know beforehand has been read."""
    contact = Contact(id=one(sandbox), name="Changed") if kind == "update" else None
    match kind:
        case "get":
            return await crm.contacts.get(one(sandbox))
        case "list":
            return [each async for each in crm.contacts.list(prefetch=1)]
        case "create":
            return await crm.contacts.create(Contact(name="Ivan"))
        case "create_many":
            return await crm.contacts.create_many([Contact(name=f"Row {n}") for n in range(3)])
        case "update":
            return await crm.contacts.update(contact)
        case "update_many":
            found = sandbox.world.select("contact", limit=2)
            return await crm.contacts.update_many([Contact(id=row["id"], name=f"New {row['id']}") for row in found])
        case "delete":
            return await crm.contacts.delete(one(sandbox))
        case "complete":
            keeps = "result" in sandbox.dialect.resource(Task).survivors(Verb.COMPLETE)
            id = sandbox.world.select("task", limit=1)[0]["id"]
            return await crm.tasks.complete(id, result="called" if keeps else None)
        case "deal":
            link = Link(Ref(Kind.CONTACT, one(sandbox)), main=True)
            tags = ("new",) if "tags" in sandbox.dialect.resource(Deal).survivors(Verb.CREATE) else ()
            return await crm.deals.create(Deal(name="Row of a deal", contacts=(link,), tags=tags))
        case "note":
            return await crm.notes.create(Note(text="Row of text", target=Ref(Kind.CONTACT, one(sandbox))))
        case _:
            who = Ref(Kind.USER, sandbox.world.select("user", limit=1)[0]["id"])
            what = Ref(Kind.TASK_TYPE, "CALL" if sandbox.dialect.name == "amoxml" else 1)
            target = Ref(Kind.CONTACT, one(sandbox))
            keeps = {"owner", "type"} <= sandbox.dialect.resource(Task).survivors(Verb.CREATE)
            more: dict[str, Any] = {"owner": who, "type": what} if keeps else {}
            return await crm.tasks.create(Task(text="Call", due=crm_due(), target=target, **more))


def one(sandbox: Sandboxed) -> int:
    return sandbox.world.select("contact", limit=1)[0]["id"]


def crm_due() -> Any:
    return FakeClock().now() + timedelta(days=1)


CREATES = ("create", "create_many", "task", "deal", "note")
KINDS = ("get", "list", *CREATES, "update", "update_many", "delete", "complete")
NAMES = ("electrum", "amocrm", "amoxml", "kommo")
# What proves that the vendor has not acted: it says so itself, before it looks at what was asked.
CERTAIN = {Action.THROTTLE, Action.UNAUTHORIZED}
FAULTS = [action for action in Action if action not in (Action.KILL_BEFORE, Action.KILL_AFTER, Action.TWICE)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("action", FAULTS)
async def test_no_write_is_sent_twice_unless_it_certainly_was_not_applied(
    crm_sandbox: Sandboxes, crm_faults: Any, name, action, monkeypatch
) -> None:
    """Fault by kind of call, on every request that the call makes, in every dialect."""
    ended: set[str] = set()
    written: set[str] = set()
    cannot: set[str] = set()
    left: Counter[str] = Counter()
    exchange = Session._exchange  # pyright: ignore[reportPrivateUsage]

    async def counted(self: Session, call: Call, progress: Any, afresh: bool) -> Any:
        if call.signed and not call.replayable:
            left[f"{call.method} {call.path} {call.query} {call.body}"] += 1
        return await exchange(self, call, progress, afresh)

    monkeypatch.setattr(Session, "_exchange", counted)
    for nth, kind in product(range(1, 9), KINDS):
        if kind in ended:
            continue
        crm_faults.script.clear()
        crm_faults.seen.clear()
        sandbox = crm_sandbox(name, contacts=2, tasks=2, limits=False)
        left.clear()
        sent: list[tuple[str, bytes]] = []
        inner = sandbox.running.transport()

        async def noted(request: httpx.Request, inner: Any = inner, sent: Any = sent) -> httpx.Response:
            sent.append((request.method, request.content))
            return await inner.handle_async_request(request)

        def writes(sent: list[tuple[str, bytes]] = sent) -> Counter[tuple[str, bytes]]:
            return Counter(each for each in sent if each[0] != "GET")

        async with sandbox.connect(transport=httpx.MockTransport(noted), retry=Retry(seconds=0.01)) as crm:
            if not crm.can(*asked_of(kind)):
                ended.add(kind)
                cannot.add(kind)
                continue
            counts = {each: sandbox.world.count(each) for each in ("contact", "task", "deal", "note")}
            begun = len(crm_faults.done)
            crm_faults.add(Fault(action=action, nth=nth, seconds=0.5))
            outcome = await outcome_of(act(crm, kind, sandbox))
            if len(crm_faults.done) == begun:
                ended.add(kind)  # the call makes fewer requests
                continue
            crm_faults.script.clear()
            written |= {kind} if writes() else set()
            made = sum(sandbox.world.count(each) - count for each, count in counts.items())
            most = 3 if kind == "create_many" else 1 if kind in (*CREATES, "complete") else 0
            assert made <= most, f"{name} {kind}: {action} at request {nth} made {made} rows"
            if action not in CERTAIN:
                assert not [each for each, n in left.items() if n > 1], f"{name} {kind}: {action} at request {nth}"
            if kind in CREATES and action not in CERTAIN | {Action.DELAY}:
                # A login is repeated as it likes: it makes nothing. What makes rows goes out once.
                rows = [n for (_, body), n in writes().items() if b"Ivan" in body or b"Row" in body or b"Call" in body]
                assert all(n == 1 for n in rows), f"{name} {kind}: {action} at request {nth} was answered by a resend"
            if kind in CREATES:
                said, unknown = outcome
                assert said <= made <= said + unknown, (
                    f"{name} {kind}: {action} at request {nth}: {outcome}, made {made}"
                )

    assert written | cannot >= set(KINDS) - {"get", "list"}, (
        "a kind of write was never sent, so nothing was proved of it"
    )


def asked_of(kind: str) -> tuple[type[Any], Verb]:
    entity = {"task": Task, "complete": Task, "deal": Deal, "note": Note}.get(kind, Contact)
    verb = {"get": Verb.GET, "list": Verb.LIST, "update_many": Verb.UPDATE}.get(kind, Verb.CREATE)
    return entity, Verb(kind) if kind in tuple(Verb) else verb


async def outcome_of(call: Any) -> tuple[int, int]:
    """How many rows are said to be made, and of how many it is said that nobody knows."""
    try:
        found = await call
    except AmbiguousWrite:
        return 0, 1
    except CRMError:
        return 0, 0
    receipts = found if isinstance(found, list) else [Made(id=1)]
    return sum(isinstance(each, Made) for each in receipts), sum(isinstance(each, Unknown) for each in receipts)


# ---------------------------------------------------------------------------------------------------------------- time


@pytest.mark.parametrize("hours", [-1, 1, 24 * 365])
async def test_fault_062_a_wall_clock_that_jumps_changes_no_wait(server, clock, hours) -> None:
    server.script = [answer(429, headers={"retry-after": "3"})]

    async with client(server) as crm:
        calling = asyncio.create_task(crm.contacts.get(1))
        await clock.sleep(1)
        clock.step(timedelta(hours=hours))
        assert (await calling).id == 1
    assert 3 <= server.times[1] - server.times[0] < 4


async def test_fault_063_a_token_that_died_while_the_machine_slept_is_not_even_tried(server, clock) -> None:
    """Asleep, the wall clock goes on and the monotonic one stands still."""
    now = clock.now()
    tokens = MemoryTokens()
    old = Token(access=Secret("old"), refresh=Secret("r"), issued_at=now, expires_at=now + timedelta(hours=1))
    await tokens.save("toy-127.0.0.1:9", old)
    given: dict[str, Any] = {"credentials": Login(), "tokens": tokens}
    server.respond = lambda request: (
        answer(body={"token": "new"})
        if request.url.path.endswith("/login")
        else answer(body={"id": 1, "name": request.headers["x-token"]})
    )
    async with client(server, evolve(TOY, auth=(Renewing(),)), **given) as crm:
        assert (await crm.contacts.get(1)).name == "old"
        clock.step(timedelta(hours=8))
        assert clock.monotonic() < 1
        assert (await crm.contacts.get(1)).name == "new"
        assert crm.spent.renewals == 1


async def test_fault_064_a_401_of_a_wrong_clock_names_the_clock(server, clock) -> None:
    theirs = (clock.now() + timedelta(minutes=10)).strftime("%a, %d %b %Y %H:%M:%S GMT")

    def respond(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/login"):
            return answer(body={"token": "new"}, headers={"date": theirs})
        return answer(401, headers={"date": theirs})

    server.respond = respond
    async with await renewing(server) as crm:
        with pytest.raises(AuthFailed, match=r"clock is (59\d|600) s ahead of this machine's"):
            await crm.contacts.get(1)
        assert crm.spent.renewals == 1


# --------------------------------------------------------------------------------------------------------------- hooks


async def test_hooks_are_told_of_each_attempt_retry_pause_and_renewal(server) -> None:
    told: list[Happening] = []
    server.script = [
        answer(401),
        answer(body={"token": "CANARY"}),
        answer(503),
        answer(429, headers={"retry-after": "2"}),
        answer(body={"id": 1, "name": "n"}),
    ]
    async with await renewing(server, hooks=[told.append]) as crm:
        await crm.contacts.get(1)
    kinds = [type(each).__name__ for each in told]
    attempt = ["AttemptStarted", "AttemptEnded"]
    assert [kind for kind in kinds if kind in attempt] == attempt * 5
    [renewed] = [each for each in told if isinstance(each, TokenRenewed)]
    assert renewed.error is None
    [paused] = [each for each in told if isinstance(each, AccountPaused)]
    assert paused.seconds >= 2
    retries = [(each.error, each.attempt) for each in told if isinstance(each, RetryPlanned)]
    assert retries == [("Unavailable", 1), ("RateLimited", 2)]
    ended = [(each.call, each.status) for each in told if isinstance(each, AttemptEnded)]
    assert ended == [(1, 401), (2, 200), (1, 503), (1, 429), (1, 200)]
    assert {each.path for each in told if isinstance(each, AttemptStarted)} == {"/contacts/1", "/login"}
    assert not any(word in repr(told) for word in ("'old'", "CANARY"))


@pytest.mark.parametrize("raised", [asyncio.CancelledError, GeneratorExit, RuntimeError])
async def test_whatever_a_hook_raises_no_turn_is_lost(server, clock, raised) -> None:
    """At one a second the next call goes a second later, and not when the lost turn is given up for dead."""

    def hook(happening: Happening) -> None:
        if isinstance(happening, AttemptStarted) and happening.call == 1:
            raise raised

    async with client(server, hooks=hook, rate=Rate(1, 1)) as crm:
        if issubclass(raised, Exception | asyncio.CancelledError):
            assert (await crm.contacts.get(1)).id == 1, "the call was harmed"
        else:
            with suppress(BaseException):
                await crm.contacts.get(1)
        await crm.contacts.get(2)
    assert clock.monotonic() < 3


async def test_an_exchange_cancelled_before_it_began_gives_its_turn_back(server, clock) -> None:
    """As asyncio.run does with every task when it ends: another client of the account does not wait for it."""
    async with client(server, rate=Rate(1, 1)) as crm, client(server, rate=Rate(1, 1)) as other:
        call = asyncio.create_task(crm.contacts.get(1))
        exchanges = crm._session._exchanges  # pyright: ignore[reportPrivateUsage]
        for _ in range(100):
            if exchanges:
                break
            await asyncio.sleep(0)
        for exchange in exchanges:
            exchange.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert server.requests == [], "it had begun"
        await other.contacts.get(2)
    assert clock.monotonic() < 3


async def test_a_caller_cancelled_as_the_client_closes_is_cancelled(server, clock) -> None:
    server.latency = 1_000
    crm = client(server)
    call = asyncio.create_task(crm.contacts.create(Contact(name="Ivan")))
    await clock.sleep(1)
    crm._session._closed = True  # pyright: ignore[reportPrivateUsage]
    for exchange in crm._session._exchanges:  # pyright: ignore[reportPrivateUsage]
        exchange.cancel()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await crm.aclose()


async def test_fault_080_a_hook_that_fails_or_calls_back_harms_nobody(server, caplog) -> None:
    calls: list[asyncio.Task[Any]] = []
    crm = await renewing(server)

    def again(happening: Happening) -> None:
        if isinstance(happening, TokenRenewed):
            calls.append(asyncio.get_running_loop().create_task(crm.contacts.get(2)))
        raise RuntimeError("a hook's own fault")

    server.script = [answer(401), answer(body={"token": "new"})]
    crm._session._setup = evolve(crm._session._setup, hooks=(again,))  # pyright: ignore[reportPrivateUsage]
    async with crm:
        assert (await crm.contacts.get(1)).id == 1
        assert (await calls[0]).id == 1
    assert "a hook failed" in caplog.text
