"""Any account moves into any other: what the target can carry stands in it as it was sent, and the rest is named."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import product

import pytest

from crmclient import Client, Company, Contact, Deal, Kind, Note, Ref, Task, Verb
from crmclient.cli.demo import KINDS, MOVED, Report, client_of, move
from crmclient.clock import FakeClock
from crmclient.registry import dialect, dialect_names
from crmclient.sandbox.server import Running, face, in_process
from crmclient.sandbox.world import World, populate

NAMES = ("amocrm", "amoxml", "electrum", "kommo")
PAIRS = list(product(NAMES, NAMES))


@asynccontextmanager
async def two(origin: str, goal: str, **numbers: int) -> AsyncIterator[tuple[Client, Client, Running, Running]]:
    clock = FakeClock()
    with World(clock=clock) as full, World(clock=clock) as empty:
        reads, writes = dialect(origin), dialect(goal)
        populate(full, **numbers, seed=3, as_rows=reads.can(Company, Verb.LIST))
        source, target = in_process(face(origin), full), in_process(face(goal), empty)
        async with (
            client_of(reads, source, transport=source.transport(), clock=clock) as reading,
            client_of(writes, target, transport=target.transport(), clock=clock) as writing,
        ):
            yield reading, writing, source, target


@pytest.mark.parametrize("origin, goal", PAIRS)
@pytest.mark.asyncio
async def test_what_can_be_carried_arrives_and_what_cannot_is_named(origin: str, goal: str) -> None:
    numbers = {"contacts": 24, "companies": 4, "deals": 16, "tasks": 14, "notes": 12}
    async with two(origin, goal, **numbers) as (reading, writing, source, target):
        report = await move(reading, writing, task_type=Ref(Kind.TASK_TYPE, "CALL") if goal == "amoxml" else None)
        print(json.dumps(report.as_tree(), ensure_ascii=False, indent=1, default=str))
        assert report.equal
