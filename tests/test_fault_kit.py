"""The kit that others test with: sandboxes that fail by a script, the fixtures, the relay, the look for leaks."""

import asyncio
import os
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from crmclient import AmbiguousWrite, Contact, RateLimited, Retry, Unavailable, connect, dialect_names
from crmclient.clock import FakeClock, SystemClock
from crmclient.dialect import Call
from crmclient.sandbox.faults import Action, Fault, Faults
from crmclient.sandbox.server import face, serve
from crmclient.sandbox.world import World
from crmclient.testing.faults import FaultProxy, RawServer, leaks
from crmclient.testing.plugin import Sandboxes
from crmclient_electrum.sandbox import revoke_token

pytest_plugins = ["pytester"]

# ------------------------------------------------------------------------------------------------------------- a script


@pytest.mark.parametrize(
    "text, fault",
    [
        ("html", Fault(action=Action.HTML)),
        ("drop-after#3", Fault(action=Action.DROP_AFTER, nth=3)),
        ("status=502 POST /api/v4/leads#2", Fault(action=Action.STATUS, status=502, on="POST /api/v4/leads", nth=2)),
        ("throttle=2.5 GET *", Fault(action=Action.THROTTLE, seconds=2.5, on="GET *")),
        ("html-after POST *", Fault(action=Action.HTML_AFTER, status=200, on="POST *")),
        ("html-after=502", Fault(action=Action.HTML_AFTER, status=502)),
        ("late POST *#3", Fault(action=Action.LATE, requests=3, on="POST *", nth=3)),
        ("late=5", Fault(action=Action.LATE, requests=5)),
        ("late=20s", Fault(action=Action.LATE, requests=None, seconds=20)),
    ],
)
def test_a_fault_is_written_in_a_line(text: str, fault: Fault) -> None:
    assert Fault.parse(text) == fault


@pytest.mark.parametrize("text", ["", "explode", "status=abc", "html#0", "html#x", "delay=-1", "late=0", "late=-1s"])
def test_a_line_that_is_no_fault_says_so(text: str) -> None:
    with pytest.raises(ValueError, match="is no fault"):
        Fault.parse(text)


def test_every_request_can_be_decided_by_its_number_and_the_script_goes_before() -> None:
    asked: list[tuple[str, str, int]] = []

    def decide(method: str, path: str, number: int) -> Fault | None:
        asked.append((method, path, number))
        return Fault(action=Action.TEAR) if number in (2, 3) else None

    script = Faults(decide=decide)
    script.add("html POST /b")
    told = [script.next(*each) for each in (("GET", "/a"), ("POST", "/b"), ("POST", "/b"), ("GET", "/a"))]
    assert [fault and fault.action.value for fault in told] == [None, "html", "tear", None]
    assert asked == [("GET", "/a", 1), ("POST", "/b", 2), ("POST", "/b", 3), ("GET", "/a", 4)]
    assert script.count == 4


def test_each_fault_counts_the_requests_it_is_about() -> None:
    script = Faults()
    script.add("html GET */a#2", "throttle POST *", Fault(action=Action.TEAR, on="/b", times=2))
    asked = [("GET", "/a"), ("POST", "/a"), ("POST", "/b"), ("GET", "/a"), ("GET", "/b"), ("GET", "/b"), ("GET", "/a")]
    happened = [fault.action.value if (fault := script.next(*each)) else None for each in asked]
    # Of the two that are due for POST /b the first in the script happens: the throttle was over, the tear begins.
    assert happened == [None, "throttle", "tear", "html", "tear", None, None]
    assert [fault.action.value for fault in script.done] == ["throttle", "tear", "html", "tear"]


WHAT_COMES: dict[str, tuple[type[Exception] | None, int]] = {
    "drop-before": (AmbiguousWrite, 0),
    "drop-after": (AmbiguousWrite, 1),
    "tear": (AmbiguousWrite, 1),
    "status=502": (AmbiguousWrite, 0),
    "status-after=504": (AmbiguousWrite, 1),
    "html": (AmbiguousWrite, 0),
    "html-after": (AmbiguousWrite, 1),
    "html-after=502": (AmbiguousWrite, 1),
    "late": (AmbiguousWrite, 0),
    "kill-late": (AmbiguousWrite, 0),
    "throttle=1": (None, 1),
    "delay=3": (None, 1),
    "twice": (None, 2),
}


@pytest.mark.asyncio
@pytest.mark.parametrize("fault", WHAT_COMES)
@pytest.mark.parametrize("name", dialect_names())
async def test_every_face_fails_as_it_is_told(
    crm_sandbox: Sandboxes, crm_faults: Faults, name: str, fault: str
) -> None:
    """What was made is what counts, and what a request makes that outlived the connection."""
    sandbox = crm_sandbox(name, limits=False)
    async with sandbox.connect() as crm:
        await crm.contacts.create(Contact(name="To log in"))
        crm_faults.add(f"{fault} POST *")
        raised, made = WHAT_COMES[fault]
        if raised is None:
            await crm.contacts.create(Contact(name="Ivan"))
        else:
            with pytest.raises(raised):
                await crm.contacts.create(Contact(name="Ivan"))
    assert sandbox.world.count("contact") == 1 + made
    assert len(crm_faults.done) == 1
    late = fault in ("late", "kill-late")
    assert await crm_faults.land() == late
    assert sandbox.world.count("contact") == 1 + made + late


@pytest.mark.e2e
@pytest.mark.asyncio
@pytest.mark.parametrize("fault", WHAT_COMES)
async def test_a_real_connection_fails_as_one_without_a_socket_does(fault: str) -> None:
    with World(clock=SystemClock()) as world:
        told = fault.replace("delay=3", "delay=0.05").replace("throttle=1", "throttle=0.1")
        async with serve(face("kommo"), world, limits=False, faults=[f"{told} POST *"]) as running:
            async with connect("kommo", base_url=running.base_url, credentials=running.credentials["token"]) as crm:
                raised, made = WHAT_COMES[fault]
                if raised is None:
                    await crm.contacts.create(Contact(name="Ivan"))
                else:
                    with pytest.raises(raised):
                        await crm.contacts.create(Contact(name="Ivan"))
            assert world.count("contact") == made
            late = fault in ("late", "kill-late")
            assert await running.faults.land() == late
            assert world.count("contact") == made + late


@pytest.mark.e2e
def test_a_client_can_be_killed_once_the_vendor_has_acted(tmp_path: Path) -> None:
    """What a migration has to survive: the row is there, and whoever asked for it is gone."""

    async def killed() -> tuple[int, int]:
        with World(clock=SystemClock()) as world:
            async with serve(face("kommo"), world, limits=False) as running:
                script = tmp_path / "client.py"
                script.write_text(
                    "import asyncio\nfrom crmclient import Contact, connect\nasync def main():\n"
                    f"    async with connect('kommo', base_url='{running.base_url}', "
                    f"credentials='{running.credentials['token']}') as crm:\n"
                    "        input()\n        await crm.contacts.create(Contact(name='Ivan'))\nasyncio.run(main())\n"
                )
                child = await asyncio.create_subprocess_exec(sys.executable, str(script), stdin=asyncio.subprocess.PIPE)
                running.faults.add(Fault(action=Action.KILL_AFTER, on="POST *", pid=child.pid))
                await child.communicate(b"\n")
                return child.returncode or 0, world.count("contact")

    assert asyncio.run(killed()) == (-9, 1)


# ---------------------------------------------------------------------------------------------- what outlives its sender


@pytest.mark.asyncio
async def test_a_late_request_lands_before_the_last_of_so_many_further_ones_is_answered(
    crm_sandbox: Sandboxes, crm_faults: Faults
) -> None:
    sandbox = crm_sandbox("kommo", limits=False)
    async with sandbox.connect() as crm:
        await crm.account()
        crm_faults.add("late=2 POST *")
        with pytest.raises(AmbiguousWrite):
            await crm.contacts.create(Contact(name="Ivan"))
        assert [row.name async for row in crm.contacts.list()] == []
        assert [row.name async for row in crm.contacts.list()] == ["Ivan"]
        assert await crm_faults.land() == 0
        assert [row.name async for row in crm.contacts.list()] == ["Ivan"]


@pytest.mark.asyncio
async def test_a_late_request_may_go_by_the_sandboxs_clock(
    crm_sandbox: Sandboxes, crm_faults: Faults, crm_clock: FakeClock
) -> None:
    sandbox = crm_sandbox("electrum", limits=False)
    async with sandbox.connect() as crm:
        crm_faults.add("late=20s POST *")
        with pytest.raises(AmbiguousWrite):
            await crm.contacts.create(Contact(name="Ivan"))
        sent = int(crm_clock.now().timestamp())
        for seconds, found in ((19, []), (2, ["Ivan"])):
            crm_clock.advance(seconds)
            assert [row.name async for row in crm.contacts.list()] == found
    # It is dated by when it came, not by when it was sent.
    assert sandbox.world.select("contact")[0]["created_at"] == sent + 21


@pytest.mark.asyncio
async def test_a_late_request_is_judged_when_it_lands(crm_sandbox: Sandboxes, crm_faults: Faults) -> None:
    sandbox = crm_sandbox("electrum")
    async with sandbox.connect() as crm:
        crm_faults.add("late POST *")
        with pytest.raises(AmbiguousWrite):
            await crm.contacts.create(Contact(name="Ivan"))
    revoke_token(sandbox.running.account, sandbox.running.credentials["token"])
    assert await crm_faults.land() == 1
    assert sandbox.world.count("contact") == 0


class Killed(BaseException):
    """No ``except Exception`` outlives it."""


@pytest.mark.asyncio
@pytest.mark.parametrize("fault, made, landing", [("kill-before", 0, 0), ("kill-after", 1, 0), ("kill-late", 0, 1)])
async def test_in_one_process_a_kill_is_what_the_test_raises(
    crm_sandbox: Sandboxes, crm_faults: Faults, fault: str, made: int, landing: int
) -> None:
    def kill(fault: Fault) -> None:
        raise Killed(fault.action)

    sandbox = crm_sandbox("kommo")
    crm_faults.kill = kill
    crm_faults.add(f"{fault} POST *")
    with pytest.raises(Killed, match=fault):
        async with sandbox.connect() as crm:
            await crm.contacts.create(Contact(name="Ivan"))
    assert sandbox.world.count("contact") == made
    assert await crm_faults.land() == landing
    assert sandbox.world.count("contact") == made + landing


@pytest.mark.asyncio
@pytest.mark.parametrize("name", dialect_names())
async def test_somebody_else_works_in_the_account_meanwhile(crm_sandbox: Sandboxes, name: str) -> None:
    sandbox, rows = crm_sandbox(name, limits=False), list[str | None]()
    async with sandbox.connect() as crm:
        await crm.contacts.create(Contact(name="To log in"))
        before = sandbox.stats.requests
        sandbox.running.meanwhile(lambda world: world.add("contact", {"name": "Walk-in"}), every=2)
        while sandbox.stats.requests < before + 4:
            rows = [row.name async for row in crm.contacts.list()]
    walked_in = sandbox.stats.requests // 2 - before // 2
    # The last of them came before the last request was answered, if it was that one's turn.
    assert rows.count("Walk-in") == walked_in == sandbox.world.count("contact") - 1 >= 2


# ------------------------------------------------------------------------------------------------------------- fixtures


@pytest.mark.e2e
def test_the_fixtures_are_there_for_everybody_and_nothing_is_used_unasked(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import sys
        import pytest
        from crmclient import AmbiguousWrite, Contact

        def test_nothing_is_loaded_for_a_test_that_asks_for_nothing():
            assert "crmclient.session" not in sys.modules
            assert "crmclient.sandbox.server" not in sys.modules

        @pytest.mark.asyncio
        async def test_a_lost_answer(crm_sandbox, crm_faults, crm_clock):
            kommo, electrum = crm_sandbox("kommo", contacts=3), crm_sandbox("electrum", contacts=2)
            crm_faults.add("drop-after POST *contacts")
            begun = crm_clock.monotonic()
            async with kommo.connect() as crm, electrum.connect() as other:
                with pytest.raises(AmbiguousWrite):
                    await crm.contacts.create(Contact(name="Ivan"))
                assert len([each async for each in other.contacts.list()]) == 2
                await crm_clock.sleep(3600)
            assert kommo.world.count("contact") == 4
            assert kommo.stats.requests == 1
            assert crm_clock.monotonic() - begun >= 3600
        """
    )
    pytester.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:randomly").assert_outcomes(passed=2)


@pytest.mark.asyncio
async def test_a_sandbox_of_the_fixtures_keeps_its_vendors_limits(crm_sandbox: Sandboxes) -> None:
    sandbox = crm_sandbox("kommo", contacts=1)
    async with sandbox.connect() as crm:
        for _ in range(15):
            await crm.contacts.get(ids(sandbox)[0])
    assert sandbox.stats.refused == 0
    assert sandbox.stats.worst(1) <= 7
    async with sandbox.connect(rate=(), retry=Retry(attempts=1)) as hasty:
        with pytest.raises((RateLimited, Unavailable)):
            await asyncio.gather(*(hasty.contacts.get(ids(sandbox)[0]) for _ in range(20)))


def ids(sandbox: Any) -> list[int]:
    return [row["id"] for row in sandbox.world.select("contact")]


# -------------------------------------------------------------------------------------------------- the relay, the leaks


@pytest.mark.e2e
@pytest.mark.asyncio
async def test_the_relay_passes_on_what_it_is_not_told_to_spoil() -> None:
    with World(clock=SystemClock()) as world:
        async with (
            serve(face("kommo"), world, limits=False) as running,
            FaultProxy(running.base_url).running() as proxy,
        ):
            token = running.credentials["token"]
            async with connect("kommo", base_url=proxy.origin, credentials=token, retry=Retry(attempts=1)) as crm:
                made = await crm.contacts.create(Contact(name="Ivan"))
                proxy.slice, proxy.latency, proxy.jitter, proxy.chance = 7, 0.0001, 0.0002, random.Random(1).random
                assert (await crm.contacts.get(made.id)).name == "Ivan"
                proxy.reset_after = 100
                with pytest.raises(Exception, match=r"broke off|cannot be reached"):
                    await crm.contacts.get(made.id)
                proxy.reset_after, proxy.down = None, True
                with pytest.raises(Exception, match=r"broke off|cannot be reached"):
                    await crm.contacts.get(made.id)


@pytest.mark.asyncio
async def test_leaks_are_seen() -> None:
    with leaks() as left:
        assert not left()
        task = asyncio.create_task(asyncio.sleep(60), name="forgotten")
        handle = os.open("/dev/null", os.O_RDONLY)
        assert left().tasks == ("forgotten",)
        assert left().files == 1
        os.close(handle)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert not left()


@pytest.mark.e2e
@pytest.mark.asyncio
async def test_a_raw_server_keeps_what_it_was_sent() -> None:
    async with RawServer().running() as server:
        async with connect("kommo", base_url=server.origin, credentials="t") as crm:
            await crm.call(Call("GET", "/api/v4/account", (("with", "x"),), safe=True, replayable=True))
    assert server.requests == ["GET /api/v4/account?with=x"]
    assert b"Bearer t" in server.heads[0]


def test_a_fake_clock_wakes_its_sleepers_in_order_and_lets_the_woken_work_first() -> None:
    clock, order = FakeClock(), list[tuple[str, float]]()

    async def work(name: str, seconds: float, turns: int) -> None:
        await clock.sleep(seconds)
        for _ in range(turns):
            await asyncio.sleep(0)
        order.append((name, clock.monotonic()))

    async def main() -> None:
        await asyncio.gather(work("late", 2, 0), work("early", 1, 90), work("middle", 1.5, 90))

    asyncio.run(main())
    assert order == [("early", 1), ("middle", 1.5), ("late", 2)]
