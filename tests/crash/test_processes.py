"""The same with nothing simulated: a process that moves an account over HTTP is killed at a write, and a second goes on."""

import asyncio
import multiprocessing
import signal
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from moving import run
from trials import NAMES, Seen, Stage, silenced, stage_of

from crmclient.clock import SystemClock
from crmclient.migration.ledger import Ledger, State
from crmclient.migration.plan import to_toml
from crmclient.registry import dialect
from crmclient.sandbox.faults import Action, Fault, Faults
from crmclient.sandbox.server import Running, face, serve

THREE = (("amoxml", "kommo"), ("kommo", "electrum"), ("amocrm", "kommo"))
# So many cases at once: most of a case is a process that starts or waits.
ABREAST = 4
QUARANTINE = 0.5
# Forked off one that has imported everything: a process of its own, with a start of ten milliseconds.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["moving", "httpx", "anyio._backends._asyncio", *(f"crmclient_{name}" for name in NAMES)]
)


@pytest.mark.parametrize("origin, goal", THREE)
@pytest.mark.parametrize("act", [Action.KILL_BEFORE, Action.KILL_AFTER])
@pytest.mark.asyncio
async def test_each_row_arrives_once_whichever_write_kills_the_process(
    origin: str, goal: str, act: Action, tmp_path: Path
) -> None:
    silenced()
    stage = await stage_of(origin, goal)
    writes = sum(not what.startswith("GET") for what in stage.points["target"])
    turns, folders = asyncio.Semaphore(ABREAST), [tmp_path / str(number) for number in range(writes)]
    for folder in folders:
        folder.mkdir()

    async def one(number: int) -> list[str]:
        async with turns:
            return await killed_at(stage, act, number, folders[number - 1])

    assert writes > 4
    found = await asyncio.gather(*(one(number) for number in range(1, writes + 1)))
    wrong = [f"write {number}: {'; '.join(told)}" for number, told in enumerate(found, 1) if told]
    assert not wrong, "\n".join([f"{len(wrong)} of {writes} writes:", *wrong])


async def killed_at(stage: Stage, act: Action, number: int, folder: Path) -> list[str]:
    child: list[int] = []
    writes = 0

    def decide(method: str, path: str, count: int) -> Fault | None:
        nonlocal writes
        writes += bool(child) and method != "GET"
        if not child or writes != number or method == "GET":
            return None
        return Fault(action=act, pid=child.pop())

    clock, faults = SystemClock(), Faults()
    faults.decide = decide
    with stage.full.copy(clock=clock) as full, stage.empty.copy(clock=clock) as empty:
        async with (
            serve(face(stage.origin), full, limits=False) as source,
            serve(face(stage.goal), empty, limits=False, faults=faults) as target,
        ):
            told: dict[str, Any] = {"source": came_in(stage.origin, source), "target": came_in(stage.goal, target)}
            sides = {
                role: evolve(getattr(stage.plan, role), address=running.base_url)
                for role, running in (("source", source), ("target", target))
            }
            made = evolve(stage.plan, quarantine=QUARANTINE, **sides)
            (folder / "plan.toml").write_text(to_toml(made), "utf-8")
            told |= {"plan": str(folder / "plan.toml"), "ledger": str(folder / "ledger")}
            first = await ended({**told, "said": str(folder / "first")}, child)
            with Ledger.read(folder / "ledger") as left:
                broken = left.violations()
            second = await ended({**told, "said": str(folder / "second")})
        with Ledger.read(folder / "ledger") as ledger:
            settled = {State.DONE, State.SKIPPED, State.FOLDED}
            unsettled = [f"{item.kind} {item.source} is {item.state}" for item in ledger.items(*set(State) - settled)]
            broken += ledger.violations()
        seen = Seen.of(empty)
    wrong = [*broken, *unsettled]
    if first != -signal.SIGKILL:
        wrong.append(f"the first process was not killed, it ended with {first}")
    if second != 0:
        wrong.append(f"the second process ended with {second}: {(folder / 'second').read_text('utf-8')[-600:]}")
    for name, counted, known in (("said", seen.said, stage.expected.said), ("tied", seen.tied, stage.expected.tied)):
        if counted != known:
            wrong.append(f"{name}: {counted - known} too many, {known - counted} missing")
    return wrong


async def ended(told: dict[str, Any], child: list[int] | None = None) -> int | None:
    """A process, from its start to its end: what it ended with."""
    process = PROCESSES.Process(target=run, args=(told,))
    process.start()
    if child is not None:
        assert process.pid is not None
        child.append(process.pid)
    gone = asyncio.Event()
    asyncio.get_running_loop().add_reader(process.sentinel, gone.set)
    try:
        async with asyncio.timeout(120):
            await gone.wait()
    finally:
        asyncio.get_running_loop().remove_reader(process.sentinel)
        process.kill()
        process.join()
    return process.exitcode


def came_in(name: str, running: Running) -> dict[str, Any]:
    card = running.credentials
    zone = None if "account" in dialect(name).settings else running.world.account["zone"]
    return {
        **{part: card[part] for part in ("token", "login", "hash") if part in card},
        "dialect": name,
        "base_url": running.base_url,
        "zone": zone,
    }
