"""Any account moves into any other: what the target can carry stands in it as it was sent, and the rest is named."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import product
from typing import Any

import pytest

from crmclient import Client, Company, Contact, Kind, Link, Note, Ref, Task, Verb
from crmclient.cli.demo import KINDS, MOVED, Report, client_of, move
from crmclient.clock import FakeClock
from crmclient.dialect import Dialect, Survives
from crmclient.entities import filled
from crmclient.registry import dialect, dialect_names
from crmclient.sandbox.server import Running, face, in_process
from crmclient.sandbox.world import World, populate

NAMES = ("amocrm", "amoxml", "electrum", "kommo")
PAIRS = list(product(NAMES, NAMES))
NUMBERS = {"contacts": 24, "companies": 4, "deals": 16, "tasks": 14, "notes": 12}
# What the other end of a tie says too, and what goes with the stage: neither is lost when it is not written here.
ELSEWHERE = {"companies": {"contacts", "deals"}, "contacts": {"deals"}, "deals": {"outcome", "pipeline"}}
CALL = Ref(Kind.TASK_TYPE, "CALL")


@asynccontextmanager
async def two(
    origin: str, goal: str, furnish: Callable[[World, World], None] | None = None, **numbers: int
) -> AsyncIterator[tuple[Client, Client, Running, Running]]:
    """Both sandboxes, with their limits, in a time that only passes when everybody waits."""
    clock = FakeClock()
    with World(clock=clock) as full, World(clock=clock) as empty:
        reads, writes = dialect(origin), dialect(goal)
        populate(full, **(numbers or NUMBERS), seed=3, as_rows=reads.can(Company, Verb.LIST))
        if furnish is not None:
            furnish(full, empty)
        source, target = in_process(face(origin), full), in_process(face(goal), empty)
        async with (
            client_of(reads, source, transport=source.transport(), clock=clock) as reading,
            client_of(writes, target, transport=target.transport(), clock=clock) as writing,
        ):
            yield reading, writing, source, target


_told: dict[str, dict[str, list[Any]]] = {}


async def told_by(origin: str) -> dict[str, list[Any]]:
    """What a client reads of the account that is moved, wherever it goes: read once."""
    if origin not in _told:
        async with two(origin, origin) as (reading, *_):
            _told[origin] = {
                kind: [row async for row in reading.of(entity).list()]
                for kind, entity in MOVED.items()
                if reading.can(entity, Verb.LIST)
            }
    return _told[origin]


async def moved(reading: Client, writing: Client) -> Report:
    required = writing.dialect.resource(Task).required
    return await move(reading, writing, task_type=CALL if "type" in required else None)


def test_the_four_are_all_there_are() -> None:
    assert dialect_names() == NAMES


@pytest.mark.parametrize("origin, goal", PAIRS)
@pytest.mark.asyncio
async def test_what_can_be_carried_arrives_and_what_cannot_is_named(origin: str, goal: str) -> None:
    async with two(origin, goal) as (reading, writing, source, target):
        kept = await told_by(origin)
        report = await moved(reading, writing)
        assert report.equal, report.as_tree()
        assert not report.troubles
        assert not report.different
        # Not one of either vendor's limits is broken, as the client and as the sandboxes tell it.
        assert report.rate_limited == {"source": 0, "target": 0}
        assert source.stats.refused == target.stats.refused == 0
        assert all(report.requests[side] >= report.least[side] for side in ("source", "target"))
        named_are_all_lost_kinds(report, writing.dialect, kept)
        named_are_all_lost_fields(report, writing.dialect, kept)
        the_worlds_agree(report, source.world, target.world)


def named_are_all_lost_kinds(report: Report, spoken: Dialect, kept: dict[str, list[Any]]) -> None:
    for kind, rows in kept.items():
        if spoken.can(MOVED[kind], Verb.CREATE):
            tally = report.kinds[kind]
            assert (tally.read, tally.written + tally.left_out) == (len(rows), len(rows))
            assert bool(tally.left_out) == any(name.startswith(f"{kind[:-1]} that") for name in report.lost)
        else:
            assert report.lost_kinds[kind] == len(rows)
            assert kind not in report.kinds


def named_are_all_lost_fields(report: Report, spoken: Dialect, kept: dict[str, list[Any]]) -> None:
    """Whatever the source tells of rows that moved and the target has no field for is in the report by its name."""
    named = {*report.lost, *report.invented}
    for kind in report.kinds:
        resource = spoken.resource(MOVED[kind])
        finished = {name for name, through in resource.fields.items() if Survives.COMPLETE in through}
        told = {name for row in kept.get(kind, ()) for name in filled(row)} - ELSEWHERE.get(kind, set())
        for name in told - resource.survivors(Verb.CREATE) - finished:
            assert f"{MOVED[kind].KIND}.{name}" in named
    for entity, kind in ((Company, "companies"), (Note, "notes")):
        assert spoken.can(entity, Verb.CREATE) or kind not in kept or report.lost_kinds[kind] == len(kept[kind])


def the_worlds_agree(report: Report, source: World, target: World) -> None:
    """Nothing is taken from the report alone."""
    for kind, tally in report.kinds.items():
        row = {"companies": "company"}.get(kind, kind[:-1])
        # A vendor may keep more as notes than its notes: what came of a task.
        assert kind == "notes" or target.count(row) == tally.written
    for kind, key in (("contact", "name"), ("deal", "name"), ("deal", "price")):
        assert sorted(row[key] for row in target.select(kind)) == sorted(row[key] for row in source.select(kind))
    named = sorted(str(row["company"] or "").strip() for row in source.select("contact"))
    assert sorted(company_of(target, row) for row in target.select("contact")) == named
    phones = {row["name"]: [phone["value"] for phone in row["phones"][:1]] for row in source.select("contact")}
    for row in target.select("contact"):
        assert [phone["value"] for phone in row["phones"][:1]] == phones[row["name"]]
    done = [(row["text"].splitlines()[0], row["done"]) for row in source.select("task")]
    for row in target.select("task"):
        done.remove((row["text"].splitlines()[0], row["done"]))


def company_of(world: World, contact: dict[str, Any]) -> str:
    return world.row("company", contact["company_id"])["name"] if contact["company_id"] else contact["company"] or ""


@pytest.mark.parametrize("origin, goal", [("amocrm", "kommo"), ("kommo", "amocrm"), ("kommo", "kommo")])
@pytest.mark.asyncio
async def test_custom_fields_owners_and_stages_are_those_of_the_target(origin: str, goal: str) -> None:
    def shift(full: World, empty: World) -> None:
        # The target has the same words under other ids, and one field of the source is unknown there.
        for kind in ("user", "field"):
            for row in empty.select(kind):
                empty.delete(kind, row["id"])
                if row["name"] != gone["name"]:
                    empty.add(kind, {**row, "id": row["id"] + 90_000})

    with World(clock=FakeClock()) as any_world:
        gone = next(row for row in any_world.select("field", where={"entity": "contact"}) if row["code"] is None)
    async with two(origin, goal, furnish=shift) as (reading, writing, source, target):
        report = await moved(reading, writing)
        assert report.equal, report.as_tree()
        assert report.mapped["users by e-mail"] == 3
        assert {row["owner"] for row in target.world.select("deal")} <= {
            user["id"] for user in target.world.select("user")
        }
        by_id = {row["id"]: row["name"] for world in (source.world, target.world) for row in world.select("field")}
        held, there = (
            {row["name"]: {by_id[int(id)] for id in row["fields"]} for row in world.select("deal")}
            for world in (source.world, target.world)
        )
        assert there == held
        lost = sum(gone["name"] in {by_id[int(id)] for id in row["fields"]} for row in source.world.select("contact"))
        assert report.lost["contact.fields"] == lost > 0


@pytest.mark.asyncio
async def test_a_task_made_open_is_completed_with_its_result() -> None:
    async with two("amocrm", "kommo", contacts=2, tasks=20) as (reading, writing, source, target):
        report = await moved(reading, writing)
        results = sorted(row["result"] or "" for row in source.world.select("task", where={"done": True}))
        assert sorted(row["result"] or "" for row in target.world.select("task", where={"done": True})) == results
        assert report.kinds["tasks"].completed == sum(bool(result) for result in results) > 0
        assert report.equal


@pytest.mark.asyncio
async def test_what_a_call_says_goes_as_a_text_where_its_words_mean_nothing() -> None:
    async with two("kommo", "amoxml", contacts=3, notes=12) as (reading, writing, source, target):
        report = await moved(reading, writing)
        calls = source.world.select("note", where={"kind": ["call_in", "call_out"]})
        assert report.lost["note.params"] == len(calls) > 0
        texts = " ".join(row["text"] for row in target.world.select("note"))
        assert all(call["params"]["phone"] in texts for call in calls)


@pytest.mark.asyncio
async def test_a_company_that_is_an_id_in_one_account_is_a_name_in_the_next() -> None:
    async with two("amoxml", "electrum") as (reading, writing, *_):
        await moved(reading, writing)
        companies = [row.company async for row in writing.contacts.list()]
        assert any(companies)
        assert all(company == Link(Ref(Kind.COMPANY, None), name=company.name) for company in companies if company)


@pytest.mark.asyncio
async def test_nobody_is_made_the_author_of_what_he_did_not_write() -> None:
    def stranger(full: World, empty: World) -> None:
        anna = full.add("user", {"name": "Nobody Knows", "email": "n@elsewhere.example"})
        full.add("contact", {"name": "hers", "owner": anna, "created_by": anna})

    async with two("kommo", "kommo", furnish=stranger, contacts=2) as (reading, writing, *_):
        report = await moved(reading, writing)
        assert report.mapped["users by nothing, so they are me"] == 1
        assert report.lost["contact.created_by"] == 1
        assert [row.name async for row in writing.contacts.list() if row.owner == (await writing.me()).ref].count(
            "hers"
        )
        assert report.equal


def test_every_kind_is_written_after_what_it_hangs_on() -> None:
    assert KINDS == ("companies", "contacts", "deals", "tasks", "notes")
    assert MOVED["contacts"] is Contact
