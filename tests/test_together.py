"""Several kinds of rows in one walk, and what a walk will cost: the same promises in every dialect."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from crmclient import Client, Contact, Deal, Filter, Invalid, Kind, Note, Ref, Tag, Unsupported, Verb
from crmclient.cli.demo import client_of
from crmclient.clock import FakeClock
from crmclient.dialect import Listing
from crmclient.migration.matching import MOVED
from crmclient.paging import Offset
from crmclient.registry import dialect, dialect_names
from crmclient.sandbox.server import Running, face, in_process
from crmclient.sandbox.world import World, populate

TELLING = ("amoxml", "electrum")
"""Those whose lists tell how many pages there are."""


@asynccontextmanager
async def account(name: str, **numbers: int) -> AsyncIterator[tuple[Client, Running]]:
    clock = FakeClock()
    with World(clock=clock) as world:
        # More than a page, but where each of them is a request.
        contacts = 23 if name == "amoxml" else 103
        rows = {"contacts": contacts, "companies": 5, "deals": 6, "tasks": 12, "notes": 12, **numbers}
        populate(world, **rows, seed=5)
        running = in_process(face(name), world)
        async with client_of(dialect(name), running, transport=running.transport(), clock=clock) as crm:
            yield crm, running


def kinds_of(crm: Client) -> list[type]:
    return [entity for entity in MOVED.values() if crm.can(entity, Verb.LIST)]


async def rows(walk: AsyncIterator) -> list:
    return [row async for row in walk]


async def spent(crm: Client, walk: AsyncIterator) -> int:
    before = crm.spent.requests
    await rows(walk)
    return crm.spent.requests - before


@pytest.mark.parametrize("name", dialect_names())
@pytest.mark.asyncio
async def test_together_the_rows_are_those_of_each_kind_alone_and_cost_no_more(name: str) -> None:
    async with account(name) as (crm, _):
        kinds = kinds_of(crm)
        alone = {kind: await rows(crm.of(kind).list(prefetch=1)) for kind in kinds}
        apart = sum([await spent(crm, crm.of(kind).list(prefetch=1)) for kind in kinds])
        before = crm.spent.requests
        found = await rows(aiter(crm.together(*kinds, prefetch=1)))
        assert crm.spent.requests - before <= apart
        for kind in kinds:
            mine = [row for row in found if isinstance(row, kind)]
            assert sorted(mine, key=lambda row: row.id) == sorted(alone[kind], key=lambda row: row.id)
        assert len(found) == sum(map(len, alone.values()))


@pytest.mark.parametrize("name", dialect_names())
@pytest.mark.asyncio
async def test_what_a_row_hangs_on_comes_before_it(name: str) -> None:
    async with account(name) as (crm, _):
        seen: set[Ref] = set()
        async for row in crm.together(*kinds_of(crm)):
            target = getattr(row, "target", None)
            assert target is None or target.kind not in (Kind.CONTACT, Kind.DEAL) or target in seen
            seen.add(row.ref)
        assert any(ref.kind is Kind.TASK for ref in seen)


@pytest.mark.parametrize("prefetch", [1, 8])
@pytest.mark.parametrize("name", dialect_names())
@pytest.mark.asyncio
async def test_what_a_walk_costs_is_told_before_it_starts_or_not_at_all(name: str, prefetch: int) -> None:
    async with account(name) as (crm, _):
        for kind in kinds_of(crm):
            listed = crm.of(kind)
            await rows(listed.list())  # signs in, and learns the account's words
            before = crm.spent.requests
            told = await listed.cost()
            asking = crm.spent.requests - before
            used = await spent(crm, listed.list(prefetch=prefetch))
            if told is None:
                assert name not in TELLING
                # Asking in vain is cheap.
                route = crm.dialect.route(kind, Verb.LIST)
                assert isinstance(route, Listing)
                assert asking <= len(route.nested.parents if route.nested else "1")
            else:
                assert (kind, told) == (kind, used)
                assert asking <= used


@pytest.mark.parametrize("name", TELLING)
@pytest.mark.asyncio
async def test_the_cost_of_several_kinds_is_that_of_the_one_walk(name: str) -> None:
    async with account(name, contacts=103) as (crm, _):
        both = crm.together(*kinds_of(crm), prefetch=1)
        await rows(aiter(both))  # signs in, and learns the account's words
        told = await both.cost()
        assert told == await spent(crm, aiter(both))
        assert told is not None
        assert told <= sum([await crm.of(kind).cost() or 0 for kind in kinds_of(crm)])


@pytest.mark.parametrize("name", ["amocrm", "kommo"])
@pytest.mark.asyncio
async def test_a_listing_that_ends_with_its_first_page_costs_one_wherever_the_end_is_told(name: str) -> None:
    async with account(name, contacts=3, deals=2, tasks=0, notes=0) as (crm, _):
        paging = crm.dialect.paging
        # Rows skipped: the end is an empty page, and how far it is nobody tells.
        assert await crm.contacts.cost() == (None if isinstance(paging, Offset) else 1)
        assert await crm.tasks.cost() == 1


@pytest.mark.parametrize("name", TELLING)
@pytest.mark.asyncio
async def test_a_filter_is_part_of_what_is_asked(name: str) -> None:
    async with account(name) as (crm, _):
        contact, *_ = await rows(crm.contacts.list())
        asked = Filter(target=contact.ref) if crm.can(Note, Verb.LIST) else Filter(text=contact.name)
        listed = crm.notes if crm.can(Note, Verb.LIST) else crm.contacts
        before = crm.spent.requests
        told = await listed.cost(asked)
        assert crm.spent.requests - before == 1
        before = crm.spent.requests
        async for _ in listed.pages(asked=asked, prefetch=1):
            pass
        assert told == crm.spent.requests - before


@pytest.mark.parametrize("name", ["amocrm", "amoxml", "kommo"])
@pytest.mark.asyncio
async def test_one_row_and_what_hangs_on_it(name: str) -> None:
    async with account(name) as (crm, _):
        notes = await rows(crm.notes.list(prefetch=1))
        target = next(note.target for note in notes if note.target.kind is Kind.DEAL)
        found = await rows(aiter(crm.together(Deal, Note, target=target)))
        assert [row for row in found if isinstance(row, Deal)] == [await crm.deals.get(target.id)]
        assert [row for row in found if isinstance(row, Note)] == [note for note in notes if note.target == target]
        assert len(found) > 1


@pytest.mark.parametrize("name", dialect_names())
@pytest.mark.asyncio
async def test_the_pages_of_several_kinds_can_be_gone_on_from(name: str) -> None:
    async with account(name, contacts=120, deals=10, tasks=3, notes=3) as (crm, _):
        kinds = [kind for kind in (Contact, Deal) if crm.can(kind, Verb.LIST)]
        pages = [page async for page in crm.together(*kinds).pages()]
        assert len(pages) >= 2
        for at, page in enumerate(pages):
            rest = [each async for each in crm.together(*kinds).pages(page.next)]
            assert [each.items for each in rest] == [each.items for each in pages[at + 1 :]]


@pytest.mark.parametrize("name", dialect_names())
@pytest.mark.asyncio
async def test_what_cannot_be_listed_is_refused_before_anything_is_sent(name: str) -> None:
    async with account(name, contacts=1, deals=0, tasks=0, notes=0) as (crm, running):
        with pytest.raises(Unsupported):
            crm.together(Contact, Tag)
        with pytest.raises(Invalid, match="kinds of rows"):
            crm.together()
        if crm.can(Note, Verb.LIST):
            with pytest.raises(Unsupported):
                crm.together(Note, target=Ref(Kind.USER, 1))
        assert running.stats.requests == 0
