"""Two accounts are held against each other: after a move nothing differs, and whatever is then changed is found."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from click.testing import CliRunner, Result
from test_pairs import PAIRS, after, moved, once, two
from test_plan import SMALL, broken, environment, other_words

from crmclient import Client, Company, Contact, Deal, FieldValue, Kind, Misconfigured, Ref, Tag, Verb
from crmclient.cli import commands
from crmclient.cli.demo import client_of
from crmclient.clock import SystemClock
from crmclient.entities import FieldType, Id, origin
from crmclient.migration.matching import MOVED, company_key, kind_of, mark, named_company
from crmclient.migration.plan import Plan, draft, from_toml, plan, to_toml
from crmclient.migration.translation import Translation
from crmclient.migration.verify import Finding, Sign, Verdict, check
from crmclient.registry import dialect
from crmclient.sandbox.server import Running, face, served
from crmclient.sandbox.world import World, populate


@asynccontextmanager
async def done(origin: str, goal: str, **more: Any) -> AsyncIterator[tuple[Client, Client, Running, Running]]:
    """Two accounts, of which one was moved into the other, and no row says so."""
    stood = await once(origin, goal, "off", **({} if "contacts" in more else SMALL), **more)
    assert stood.done.verdict.equal
    async with after(stood) as sides:
        yield sides


async def found(reading: Client, writing: Client, *given: Any, **more: Any) -> tuple[Verdict, list[Finding]]:
    """The verdict, and the rows that are not the same."""
    rows: list[Finding] = []
    verdict = await check(reading, writing, *given, each=rows.append, **more)
    for kind, counts in verdict.kinds.items():
        assert sum(counts.values()) == sum(row.kind == kind for row in rows)
    return verdict, [row for row in rows if row.sign is not Sign.SAME]


# ------------------------------------------------------------------------------------------------ nothing differs


@pytest.mark.parametrize("origin, goal", PAIRS)
@pytest.mark.asyncio
async def test_after_a_move_all_that_could_be_carried_is_the_same(origin: str, goal: str) -> None:
    stood = await once(origin, goal, "off", **SMALL)
    made, written = stood.done.plan, stood.done.written
    assert [side.refused for side in stood.stats] == [0, 0]
    async with after(stood) as (reading, writing, source, target):
        for given in (made, None):
            before = [source.stats.requests, target.stats.requests]
            verdict, rows = await found(reading, writing, given)
            assert verdict.equal, rows
            assert rows == []
            assert {kind: counts[Sign.SAME] for kind, counts in verdict.kinds.items() if counts} == written
            assert source.stats.requests > before[0]
            assert target.stats.requests > before[1]
        # What is lost on the way is what the plan has said, and it is no difference.
        lost = {loss.what: loss.rows for loss in made.losses if loss.choice == "drop" and "." in loss.what}
        owners = {"task.owner"} if goal == "amoxml" else set[str]()
        assert {name: n for name, n in verdict.dropped.items() if name not in owners and ".fields" not in name} == {
            name: n for name, n in lost.items() if name not in owners and ".fields" not in name
        }
        assert source.stats.refused == target.stats.refused == 0


@pytest.mark.parametrize("goal", ["amoxml", "electrum", "kommo"])
@pytest.mark.asyncio
async def test_an_empty_target_lacks_everything_and_holds_nothing_else(goal: str) -> None:
    async with two("amocrm", goal, **SMALL) as (reading, writing, *_):
        verdict, rows = await found(reading, writing)
        assert not verdict.equal
        assert {row.sign for row in rows} == {Sign.MISSING}
        assert verdict.number(Sign.MISSING) == sum((await plan(reading, writing)).moves.values())
        # Of what is not there, no single value was dropped.
        assert not any("." in what for what in verdict.dropped)


# ------------------------------------------------------------------------------------------- whatever is changed

# By what a field is called in the sandbox, what it is changed to, and what the difference is then called.
CHANGES = [
    ("company", "name", "Another", "name"),
    ("contact", "name", "Another Person", "name"),
    ("contact", "phones", [{"value": "+70000000000", "label": "work"}], "phones"),
    ("contact", "emails", [], "emails"),
    ("contact", "tags", ["foreign"], "tags"),
    ("contact", "position", "Nobody", "position"),
    ("contact", "company_id", None, "company"),
    ("deal", "name", "Another deal", "name"),
    ("deal", "price", 77, "price"),
    ("deal", "contacts", [], "contacts"),
    ("deal", "company_id", None, "company"),
    ("deal", "stage_id", "another", "stage"),
    ("deal", "fields", {}, "fields"),
    ("deal", "owner", "another", "owner"),
    ("deal", "created_at", 1, "created_at"),
    ("task", "text", "Do something else", "text"),
    ("task", "due", 1_800_000_000, "due"),
    ("task", "done", "another", "done"),
    ("note", "text", "Nothing was said", "text"),
    ("note", "created_at", 1, "created_at"),
]


@pytest.mark.parametrize("kind, name, value, told", CHANGES)
@pytest.mark.asyncio
async def test_one_changed_field_of_one_row_is_found_by_its_name(kind: str, name: str, value: Any, told: str) -> None:
    async with done("kommo", "kommo") as (reading, writing, _, target):
        world = target.world
        rows = [each for each in world.select(kind) if each[name] not in (None, [], {}, value)]
        # A due date of a day after the beginning was made up: it is not the source's, and not compared.
        row = next(each for each in reversed(rows) if name != "due" or each["due"] != each["created_at"] + 86_400)
        if value == "another":
            value = {
                "stage_id": lambda: next(
                    stage["id"]
                    for stage in world.select("stage", where={"pipeline_id": row["pipeline_id"]})
                    if stage["id"] != row["stage_id"]
                ),
                "owner": lambda: next(user["id"] for user in world.select("user") if user["id"] != row["owner"]),
                "done": lambda: not row["done"],
            }[name]()
        world.update(kind, row["id"], {name: value})
        verdict, rows = await found(reading, writing)
        assert [(each.sign, each.target) for each in rows] == [(Sign.DIFFERS, row["id"])], rows
        assert told in rows[0].fields
        # Closing a deal dates its closing; nothing else follows from a change.
        assert {*rows[0].fields} <= {told, "closed_at"}
        assert not verdict.equal


@pytest.mark.parametrize("origin, goal", PAIRS)
@pytest.mark.asyncio
async def test_a_row_too_few_one_too_many_and_one_that_differs_are_found_in_every_pair(origin: str, goal: str) -> None:
    async with done(origin, goal) as (reading, writing, source, target):
        deals = target.world.select("deal")
        target.world.update("deal", deals[0]["id"], {"price": 987_654})
        target.world.delete("task", (gone := target.world.select("task")[-1])["id"])
        more = target.world.add("contact", {"name": "Nobody Sent Me", "phones": [{"value": "+7999", "label": "work"}]})
        verdict, rows = await found(reading, writing)
        told = {(row.kind, row.sign): row for row in rows}
        assert told.keys() == {("deals", Sign.DIFFERS), ("tasks", Sign.MISSING), ("contacts", Sign.EXTRA)}, rows
        assert told["deals", Sign.DIFFERS].fields == ("price",)
        assert told["deals", Sign.DIFFERS].target == deals[0]["id"]
        assert told["contacts", Sign.EXTRA].target == more
        lost = source.world.row("task", told["tasks", Sign.MISSING].source or 0)
        assert lost["text"].splitlines()[0] == gone["text"].splitlines()[0]
        assert [verdict.number(sign) for sign in (Sign.DIFFERS, Sign.MISSING, Sign.EXTRA)] == [1, 1, 1]


@pytest.mark.asyncio
async def test_a_doubled_row_is_one_too_many() -> None:
    async with done("electrum", "kommo") as (reading, writing, _, target):
        first = target.world.select("deal")[0]
        twin = target.world.add("deal", {name: part for name, part in first.items() if name != "id"})
        _, rows = await found(reading, writing)
        assert [(row.sign, row.target) for row in rows] == [(Sign.EXTRA, twin)]


@pytest.mark.asyncio
async def test_identical_rows_are_as_many_as_there_are() -> None:
    def furnish(full: World, empty: World) -> None:
        contact = full.add("contact", {"name": "one"})
        for _ in range(5):
            full.add("note", {"text": "called", "target_kind": "contact", "target_id": contact, "created_at": 1})

    async with done("kommo", "kommo", furnish=furnish, contacts=1) as (reading, writing, _, target):
        notes = target.world.select("note")
        assert len(notes) == 5
        target.world.delete("note", notes[2]["id"])
        verdict, rows = await found(reading, writing)
        assert [row.sign for row in rows] == [Sign.MISSING]
        assert verdict.kinds["notes"] == {Sign.SAME: 4, Sign.MISSING: 1}


@pytest.mark.asyncio
async def test_rows_that_say_the_same_are_told_from_each_other_by_what_hangs_on_them() -> None:
    def twins(world: World, names: list[str]) -> None:
        for name in names:
            contact = world.add("contact", {"name": "Ivan", "created_at": 1})
            world.add("task", {"text": name, "target_kind": "contact", "target_id": contact, "created_at": 1, "due": 9})

    def furnish(full: World, empty: World) -> None:
        twins(full, ["one", "two", "three"])
        twins(empty, ["three", "one", "two"])

    async with two("kommo", "kommo", furnish=furnish, contacts=0) as (reading, writing, *_):
        verdict, rows = await found(reading, writing)
        assert verdict.equal, rows
        assert verdict.number(Sign.SAME) == 6


@pytest.mark.asyncio
async def test_a_link_that_leads_to_another_row_is_a_difference() -> None:
    async with done("kommo", "kommo") as (reading, writing, _, target):
        world = target.world
        note = world.select("note", where={"target_kind": "contact"})[0]
        other = next(row["id"] for row in world.select("contact") if row["id"] != note["target_id"])
        world.update("note", note["id"], {"target_id": other})
        deal = next(row for row in world.select("deal") if len(row["contacts"]) > 1)
        turned = [{**link, "main": not link["main"]} for link in deal["contacts"][:2]]
        world.update("deal", deal["id"], {"contacts": [*turned, *deal["contacts"][2:]]})
        _, rows = await found(reading, writing)
        assert {(row.kind, row.target, row.fields) for row in rows} == {
            ("notes", note["id"], ("target",)),
            ("deals", deal["id"], ("contacts",)),
        }


@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.asyncio
async def test_what_cannot_be_read_is_said_on_either_side_and_is_not_equal(side: str) -> None:
    async with done("amocrm", "kommo") as (reading, writing, source, target):
        crm, world = (reading, source.world) if side == "source" else (writing, target.world)
        id = world.select("contact")[-1]["id"]
        broken(crm, crm.dialect.resource(Contact), id)
        verdict, rows = await found(reading, writing)
        bad = [row for row in rows if row.sign is Sign.UNREADABLE]
        assert [(row.kind, getattr(row, side), row.said) for row in bad] == [
            ("contacts", id, f"contact {id} has another shape")
        ]
        assert not verdict.equal
        # Its other half has nobody to be compared with.
        other = Sign.EXTRA if side == "source" else Sign.MISSING
        assert verdict.kinds["contacts"][other] == 1


@pytest.mark.asyncio
async def test_what_the_list_does_not_tell_is_not_taken_for_empty() -> None:
    async with done("amocrm", "amocrm") as (reading, writing, _, target):
        for row in target.world.select("contact"):
            target.world.update("contact", row["id"], {"position": "Changed"})
        resource = writing.dialect.resource(Contact)

        def decode(row: Any, context: Any) -> Any:
            return evolve(resource.decode(row, context), position=None, unread=frozenset({"position"}))

        short = evolve(resource, decode=decode)
        writing._session._dialect = writing.dialect = evolve(  # pyright: ignore[reportPrivateUsage]
            writing.dialect, resources={**writing.dialect.resources, Contact: short}
        )
        verdict, rows = await found(reading, writing)
        assert verdict.equal, rows


# --------------------------------------------------------------------------------------- which row became which


@pytest.mark.asyncio
async def test_a_ledgers_pairs_decide_and_are_not_guessed_at() -> None:
    async with done("kommo", "kommo") as (reading, writing, source, target):
        ids = [[row["id"] for row in side.world.select("deal")] for side in (source, target)]
        verdict, rows = await found(reading, writing, pairs={"deals": dict(zip(*ids, strict=True))})
        assert verdict.equal, rows
        crossed = dict(zip(ids[0], [ids[1][1], ids[1][0], *ids[1][2:-1]], strict=False))
        verdict, rows = await found(reading, writing, pairs={"deals": crossed})
        told = {(row.source, row.target): row.sign for row in rows if row.kind == "deals"}
        assert told == {
            (ids[0][0], ids[1][1]): Sign.DIFFERS,
            (ids[0][1], ids[1][0]): Sign.DIFFERS,
            # Of these two the ledger says nothing.
            (ids[0][-1], None): Sign.MISSING,
            (None, ids[1][-1]): Sign.EXTRA,
        }


@pytest.mark.asyncio
async def test_a_pair_of_a_row_that_is_gone_is_a_row_too_few() -> None:
    async with done("kommo", "kommo") as (reading, writing, source, target):
        ids = [[row["id"] for row in side.world.select("task")] for side in (source, target)]
        target.world.delete("task", ids[1][0])
        _, rows = await found(reading, writing, pairs={"tasks": dict(zip(*ids, strict=True))})
        assert [(row.sign, row.source) for row in rows] == [(Sign.MISSING, ids[0][0])]


@pytest.mark.parametrize("by", ["tag", "field"])
@pytest.mark.asyncio
async def test_a_mark_of_its_origin_finds_a_row_that_says_something_else_and_is_no_difference(by: str) -> None:
    def furnish(full: World, empty: World) -> None:
        empty.add("field", {"entity": "contact", "code": "CRMCLIENT_ORIGIN", "name": "Origin", "type": "text"})

    async with two("kommo", "kommo", furnish=furnish, contacts=4) as (reading, writing, _, target):
        prepared = await draft(reading, writing)
        there = {row["name"]: row["id"] for row in target.world.select("field", where={"entity": "contact"})}
        async for contact in reading.contacts.list():
            mark = origin("kommo", prepared.source.account, contact.ref)
            kept, _ = writing.carried(evolve(contact, company=None))
            changed = (
                {"tags": (*kept.tags, Tag(mark))}
                if by == "tag"
                else {"fields": (*kept.fields, FieldValue(mark, field=Ref(Kind.FIELD, there["Origin"])))}
            )
            await writing.contacts.create(evolve(kept, **{**changed, "name": "all of one name", "phones": ()}))
        _, rows = await found(reading, writing)
        contacts = [row for row in rows if row.kind == "contacts"]
        assert {row.sign for row in contacts} == {Sign.DIFFERS}
        assert len(contacts) == 4
        assert all({"name"} <= {*row.fields} <= {"name", "phones", "company"} for row in contacts)


@pytest.mark.asyncio
async def test_two_rows_with_the_mark_of_one_are_one_too_many() -> None:
    async with two("kommo", "kommo", contacts=1) as (reading, writing, *_):
        prepared = await draft(reading, writing)
        contact = await anext(aiter(reading.contacts.list(prefetch=1)))
        kept, _ = writing.carried(evolve(contact, company=None))
        marked = evolve(kept, tags=(*kept.tags, Tag(origin("kommo", prepared.source.account, contact.ref))))
        first, second = [await writing.contacts.create(marked) for _ in "12"]
        _, rows = await found(reading, writing)
        assert [row.target for row in rows if row.sign is Sign.EXTRA] == [second.id]
        assert first.id != second.id


@pytest.mark.asyncio
async def test_a_mark_comes_after_the_ledger_and_before_any_guess() -> None:
    async with two("kommo", "kommo", contacts=2) as (reading, writing, *_):
        prepared = await draft(reading, writing)
        contacts = [row async for row in reading.contacts.list()]
        made: list[Id] = []
        # Both say they came from the first one, and the second of them is what the ledger knows of.
        for _ in contacts:
            kept, _gone = writing.carried(evolve(contacts[0], company=None))
            origin = mark(prepared.source.origin, Kind.CONTACT, contacts[0].id or 0)
            made.append((await writing.contacts.create(evolve(kept, tags=(*kept.tags, Tag(origin))))).id or 0)
        told: list[tuple[str, Id, Id]] = []

        def paired(kind: str, *ids: Id) -> None:
            told.append((kind, *ids))  # pyright: ignore[reportArgumentType]

        pairs = {"contacts": iter([(contacts[0].id or 0, made[1])])}
        _, rows = await found(reading, writing, pairs=pairs, paired=paired)
        assert [(row.sign, row.source, row.target) for row in rows if row.kind == "contacts"] == [
            (Sign.MISSING, contacts[1].id, None),
            (Sign.EXTRA, None, made[0]),
        ]
        assert told == []
        _, rows = await found(reading, writing, paired=paired)
        assert ("contacts", contacts[0].id, made[0]) in told


@pytest.mark.asyncio
async def test_a_company_that_was_but_a_word_is_known_by_its_mark() -> None:
    async with two("electrum", "kommo", contacts=6, companies=2) as (reading, writing, *_):
        prepared = await draft(reading, writing)
        names = {row.company.name async for row in reading.contacts.list() if row.company is not None}
        ids: dict[Any, Any] = {}
        for number, name in enumerate(sorted(map(str, names))):
            tag = Tag(mark(prepared.source.origin, Kind.COMPANY, name))
            ids[name] = (await writing.companies.create(Company(name=f"renamed {number}", tags=[tag]))).id
        told: dict[Any, Any] = {}

        def paired(kind: str, source: Id, target: Id) -> None:
            told.update({source: target} if kind == "companies" else {})

        read: list[Any] = []
        _, rows = await found(reading, writing, paired=paired, source_row=read.append)
        assert told == ids
        assert {row.fields for row in rows if row.kind == "companies"} == {("name",)}
        companies = [row.id for row in read if isinstance(row, Company)]
        assert sorted(companies) == sorted(ids)


@pytest.mark.asyncio
async def test_pairs_that_were_told_are_what_a_ledger_would_have_said() -> None:
    async with done("kommo", "amocrm") as (reading, writing, *_):
        told: dict[str, dict[Id, Id]] = {}

        def paired(kind: str, source: Id, target: Id) -> None:
            told.setdefault(kind, {})[source] = target

        read: Counter[str] = Counter()
        verdict, rows = await found(reading, writing, paired=paired, source_row=lambda row: read.update([kind_of(row)]))
        assert verdict.equal, rows
        assert {kind: len(pairs) for kind, pairs in told.items()} == SMALL == dict(read)
        verdict, rows = await found(reading, writing, pairs={kind: iter(pairs.items()) for kind, pairs in told.items()})
        assert verdict.equal, rows


# --------------------------------------------------------------------------------------------- both sides at once


@pytest.mark.asyncio
async def test_both_sides_are_read_side_by_side() -> None:
    async with done("electrum", "kommo", contacts=250, companies=0, deals=0, tasks=0, notes=0) as (
        reading,
        writing,
        *_,
    ):
        seen: list[str] = []
        await check(reading, writing, told=lambda side, kind, rows: seen.append(side))
        assert seen.index("target") < len(seen) - seen[::-1].index("source")
        assert seen != sorted(seen)


@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.asyncio
async def test_where_one_side_fails_the_other_is_not_left_behind(side: str) -> None:
    async with done("kommo", "kommo") as (reading, writing, source, target):
        made = await draft(reading, writing)
        world = (source if side == "source" else target).world
        crm = reading if side == "source" else writing
        broken(crm, crm.dialect.resource(Contact), world.select("contact")[0]["id"])
        before = asyncio.all_tasks()

        def give_up(finding: Finding) -> None:
            raise RuntimeError(finding.said)

        with pytest.raises(RuntimeError, match="has another shape"):
            await check(reading, writing, made, each=give_up)
        assert asyncio.all_tasks() <= before


# ------------------------------------------------------------------------------------- what is done with what is lost


class Ids:
    """What became of the rows of the source."""

    def __init__(self) -> None:
        self.known: dict[str, dict[Id, Any]] = {kind: {} for kind in MOVED}
        self.archived: dict[str, list[Any]] = {}

    def made(self, kind: str, id: Id) -> Id | None:
        return self.known[kind].get(id, (None, None))[0]

    def company_name(self, id: Id) -> str:
        return next((row.name for known, (_, row) in self.known["companies"].items() if known == id), "")

    def company_of(self, contact: Id) -> Any:
        return self.known["contacts"][contact][1].company if contact in self.known["contacts"] else None

    def keep(self, archived: Any) -> None:
        for what, part in archived.items():
            self.archived.setdefault(what, []).append(part)


async def carried_out(reading: Client, writing: Client, made: Plan) -> Ids:
    """A move by a plan, one row after the other."""
    for _, wanted in made.fields_to_make():
        await writing.fields.create(wanted)
    there = [each async for each in writing.fields.list()] if made.fields_to_make() else []
    ids, rows = Ids(), dict[str, list[Any]]({kind: [] for kind in MOVED})
    translate = Translation(reading.dialect, writing.dialect, made.words(made.made_fields(there)), ids)
    async for row in reading.together(*(entity for entity in MOVED.values() if reading.can(entity, Verb.LIST))):
        rows[kind_of(row)].append(row)
        rows["notes"] += translate.besides(row)
        if isinstance(row, Contact) and not reading.can(Company, Verb.LIST) and writing.can(Company, Verb.CREATE):
            key = company_key(row.company)
            known = {each.id for each in rows["companies"]}
            rows["companies"] += [Company(id=key, name=named_company(row.company))] if key not in {None, *known} else []
    for kind, entity in MOVED.items():
        for row in rows[kind]:
            if not writing.can(entity, Verb.CREATE):
                ids.known[kind][row.id] = (None, row)
                ids.keep(translate.kept_whole(kind, row))
                continue
            new = translate(row)
            ids.keep(new.archived)
            if new.left_out is None:
                ids.known[kind][row.id] = ((await writing.of(entity).create(new.row)).id, new.row)
                if new.later:
                    await writing.tasks.complete(ids.known[kind][row.id][0], result=new.later.get("result"))
    return ids


WAYS = ("fold", "field", "archive")


def counted(made: Plan, *ways: str) -> dict[str, int]:
    return {loss.what: loss.rows for loss in made.losses if loss.choice in ways and loss.rows}


# Each way for a third of the pairs, and each pair in one way.
@pytest.mark.parametrize("origin, goal, way", [(*pair, way) for pair, way in zip(PAIRS, cycle(WAYS), strict=False)])
@pytest.mark.asyncio
async def test_whatever_is_chosen_for_what_is_lost_is_counted_so_and_is_no_difference(
    origin: str, goal: str, way: str
) -> None:
    async with two(origin, goal, furnish=ugly, contacts=8, companies=2, deals=6, tasks=5, notes=4) as (
        reading,
        writing,
        *more,
    ):
        someone = more[1].world.select("user")[0]["id"]
        made = await plan(reading, writing, choose={"*": way}, unmatched=someone)
        assert from_toml(to_toml(made)) == made
        ids = await carried_out(reading, writing, made)
        moved = {kind: sum(id is not None for id, _ in known.values()) for kind, known in ids.known.items()}
        assert made.moves == {kind: number for kind, number in moved.items() if number}
        verdict, rows = await found(reading, writing, made)
        assert verdict.equal, rows
        assert verdict.folded == counted(made, "fold")
        assert verdict.in_fields == counted(made, "field")
        assert verdict.archived == counted(made, "archive")
        assert {**verdict.dropped, **verdict.no_place} == counted(made, "drop") | verdict.no_place
        assert {what: len(parts) for what, parts in ids.archived.items()} == counted(made, "archive")
        assert json.loads(json.dumps(ids.archived)) == ids.archived


def ugly(full: World, empty: World) -> None:
    """More of everything that one CRM or another does not carry."""
    other_words(full, empty)
    phones = [{"value": f"+7 {number}", "label": label} for number, label in ((1, "work"), (2, "home"))]
    owner = full.select("user")[1]["id"]
    full.add("contact", {"name": "one\ntwo", "phones": phones, "position": "Chief, of all", "owner": owner})


async def notes_on(writing: Client, name: str) -> list[str]:
    """What is told of a contact of this name."""
    at = [each.ref async for each in writing.contacts.list() if each.name == name]
    return [str(note.text) async for note in writing.notes.list() if note.target in at]


@pytest.mark.asyncio
async def test_what_is_folded_is_told_line_by_line_in_a_note_on_the_row() -> None:
    def furnish(full: World, empty: World) -> None:
        anna = next(row["id"] for row in full.select("user") if row["name"] == "Anna Lindqvist")
        age = full.add("field", {"entity": "contact", "code": "AGE", "name": "Age", "type": "numeric"})
        full.add(
            "contact",
            {
                "name": "Ivan",
                "position": "head",
                "owner": anna,
                "created_by": anna,
                "created_at": 1_700_000_000,
                "fields": {str(age): [{"value": "41"}]},
            },
        )

    async with two("kommo", "amoxml", furnish=furnish, contacts=0) as (reading, writing, _, target):
        someone = target.world.select("user")[0]["id"]
        made = await plan(
            reading, writing, choose={"contact.*": "fold", "contact.updated_*": "drop"}, unmatched=someone
        )
        assert made.moves == {"contacts": 1, "notes": 1}
        assert made.target_cost.requests["write notes"] == 1
        await carried_out(reading, writing, made)
        assert await notes_on(writing, "Ivan") == [
            "created at: 2023-11-14 22:13:20 UTC\ncreated by: Anna Lindqvist\nAge: 41"
        ]


@pytest.mark.asyncio
async def test_what_is_folded_of_tasks_and_notes_is_told_in_their_own_text() -> None:
    def furnish(full: World, empty: World) -> None:
        contact = full.add("contact", {"name": "Ivan"})
        on = {"target_kind": "contact", "target_id": contact, "created_at": 1_700_000_000}
        full.add("task", {"text": "ask", "due": 1_700_009_000, "duration": 5400, **on})
        full.add("note", {"text": "asked", **on})

    async with two("kommo", "amoxml", furnish=furnish, contacts=0) as (reading, writing, _, target):
        someone = target.world.select("user")[0]["id"]
        rules = {"task.duration": "fold", "note.created_at": "fold"}
        made = await plan(reading, writing, choose=rules, unmatched=someone)
        await carried_out(reading, writing, made)
        assert [each.text async for each in writing.tasks.list()] == ["ask\nduration: 1:30:00"]
        assert await notes_on(writing, "Ivan") == ["asked\ncreated at: 2023-11-14 22:13:20 UTC"]
        verdict, rows = await found(reading, writing, made)
        assert verdict.equal, rows


@pytest.mark.asyncio
async def test_a_field_is_made_for_what_is_kept_in_one_with_the_type_and_the_choices_it_had() -> None:
    async with two("kommo", "kommo", furnish=other_words, **SMALL) as (reading, writing, source, target):
        made = await plan(reading, writing, choose={"*": "field"})
        wanted = {what: (each.entity, each.name, each.type) for what, each in made.fields_to_make()}
        assert wanted["contact.fields: Город"] == (Kind.CONTACT, "Город", FieldType.TEXT)
        # Some of its choices are there: what is not goes as a text.
        assert wanted["contact.fields: Источник"] == (Kind.CONTACT, "Источник", FieldType.TEXT)
        await carried_out(reading, writing, made)
        town = {row["name"]: str(row["id"]) for row in source.world.select("field", where={"entity": "contact"})}[
            "Город"
        ]
        new = {row["name"]: str(row["id"]) for row in target.world.select("field", where={"entity": "contact"})}[
            "Город"
        ]
        there = {row["name"]: row["fields"].get(new) for row in target.world.select("contact")}
        here = {row["name"]: row["fields"].get(town) for row in source.world.select("contact")}
        assert there == here
        assert any(here.values())
        verdict, rows = await found(reading, writing, made)
        assert verdict.equal, rows
        # Whoever changes what is in such a field is found.
        row = next(row for row in target.world.select("contact") if new in row["fields"])
        target.world.update("contact", row["id"], {"fields": {**row["fields"], new: [{"value": "elsewhere"}]}})
        _, rows = await found(reading, writing, made)
        assert [(each.target, each.fields) for each in rows] == [(row["id"], ("fields",))]


@pytest.mark.asyncio
async def test_cents_that_the_target_cannot_keep_are_in_a_field_of_their_own() -> None:
    async with two("electrum", "kommo", contacts=2, deals=1) as (reading, writing, _, target):
        resource = reading.dialect.resource(Deal)

        def decode(row: Any, context: Any) -> Any:
            return evolve(resource.decode(row, context), price="12.50")

        cents = evolve(resource, decode=decode)
        reading._session._dialect = reading.dialect = evolve(  # pyright: ignore[reportPrivateUsage]
            reading.dialect, resources={**reading.dialect.resources, Deal: cents}
        )
        made = await plan(reading, writing, choose={"deal.price": "field"})
        assert [what for what, _ in made.fields_to_make()] == ["deal.price"]
        await carried_out(reading, writing, made)
        field = str(target.world.select("field", where={"entity": "deal", "name": "price"})[0]["id"])
        assert [row["fields"][field] for row in target.world.select("deal")] == [[{"value": "12.50"}]]


@pytest.mark.asyncio
async def test_what_is_archived_is_kept_as_the_source_had_it() -> None:
    async with two("kommo", "electrum", furnish=ugly, contacts=3, companies=1, notes=2) as (reading, writing, *_):
        made = await plan(reading, writing, choose={"*": "archive"})
        ids = await carried_out(reading, writing, made)
        assert "Chief, of all" in ids.archived["contact.position"]
        phones = [[each["value"] for each in part] == ["+7 1", "+7 2"] for part in ids.archived["contact.phones"]]
        assert any(phones)
        # Rows of which there are none there are kept whole.
        notes = {each.id: each.text async for each in reading.notes.list()}
        assert {each["id"]: each["text"] for each in ids.archived["notes"]} == notes
        verdict, _ = await found(reading, writing, made)
        assert verdict.sentence.endswith("3 rows have no place there and 3 of them are in the archive.")


# ------------------------------------------------------------------------------------------------- by which plan


@pytest.mark.asyncio
async def test_the_plans_words_are_what_is_compared_by() -> None:
    async with done("kommo", "kommo") as (reading, writing, _, target):
        made = await plan(reading, writing)
        users = [row["id"] for row in target.world.select("user")]
        turned = dict(zip(users, [*users[1:], users[0]], strict=True))
        edited = evolve(made, users=tuple(evolve(user, target=turned[user.source]) for user in made.users))
        verdict, rows = await found(reading, writing, edited)
        assert {row.sign for row in rows} == {Sign.DIFFERS}
        assert all("owner" in row.fields for row in rows)
        assert verdict.number(Sign.DIFFERS) >= 12 + 8 + 7


@pytest.mark.asyncio
async def test_a_plan_of_other_accounts_is_refused() -> None:
    async with two("kommo", "amocrm") as (reading, writing, *_):
        made = await draft(reading, writing)
        with pytest.raises(Misconfigured, match="the source of the plan is kommo"):
            await check(writing, reading, made)


# ------------------------------------------------------------------------------------------------- the sentence


@pytest.mark.asyncio
async def test_one_sentence_says_all_of_it() -> None:
    async with done("kommo", "electrum") as (reading, writing, _, target):
        verdict, _ = await found(reading, writing)
        assert verdict.sentence.startswith(
            "All 27 rows of localhost:8000 that localhost:8001 has a place for are on localhost:8001. "
            "0 differ, 0 missing, 0 extra, 0 unreadable. "
        )
        assert verdict.sentence.endswith("values were dropped, 9 rows have no place there.")
        assert verdict.no_place == {"companies": 3, "notes": 6}
        target.world.delete("task", target.world.select("task")[0]["id"])
        verdict, _ = await found(reading, writing)
        assert verdict.sentence.startswith(
            "26 of 27 rows of localhost:8000 that localhost:8001 has a place for are on localhost:8001 as they should be. "
            "0 differ, 1 missing, 0 extra, 0 unreadable. "
        )
        tree = json.loads(json.dumps(verdict.as_tree()))
        assert (tree["equal"], tree["kinds"]["tasks"]["missing"]) == (False, 1)


def test_many_rows_are_told_in_groups_of_three() -> None:
    counts = {"deals": {Sign.SAME: 41_280}}
    verdict = Verdict(
        source="a", target="b", kinds=counts, no_place={}, dropped={}, folded={"note.kind": 312}, restamped={}
    )
    assert verdict.sentence == (
        "All 41 280 rows of a are on b. 0 differ, 0 missing, 0 extra, 0 unreadable. 312 values were folded into texts."
    )


# -------------------------------------------------------------------------------------------------- the command


def run(*words: str, env: dict[str, str]) -> Result:
    return CliRunner().invoke(commands(), ["check", *words], env=env)


@pytest.mark.e2e
def test_the_command_ends_with_what_it_found(tmp_path: Path, unpaced: None) -> None:
    async def go(*sides: Client) -> Any:
        async with sides[0], sides[1]:
            made = await plan(*sides, marker="off")
            assert (await moved(*sides, made)).verdict.equal
            return made

    with World(clock=SystemClock()) as full, World(clock=SystemClock()) as empty:
        populate(full, contacts=5, companies=2, deals=3, tasks=2, notes=3, seed=4)
        with served(face("kommo"), full, limits=False) as old, served(face("electrum"), empty, limits=False) as new:
            env = environment(tmp_path, old=old, new=new)
            made = asyncio.run(go(*(client_of(dialect(each.face.name), each, rate=()) for each in (old, new))))
            file = tmp_path / "plan.toml"
            file.write_text(to_toml(made), encoding="utf-8")

            same = run("old", "new", "--plan", str(file), "--show", "all", env=env)
            assert same.exit_code == 0, same.output
            assert sum(line.startswith("= ") for line in same.stdout.splitlines()) == 10
            assert "All 10 rows of" in same.stdout

            deal = empty.select("deal")[0]
            empty.update("deal", deal["id"], {"price": 1})
            empty.add("contact", {"name": "\x1b[31mred"})
            old_plan = evolve(made, source=evolve(made.source, capabilities="0"))
            file.write_text(to_toml(old_plan), encoding="utf-8")
            differs = run("old", "new", "--plan", str(file), "--show", "differs", env=env)
            assert "warning: what Kommo can do has changed since the plan was made" in differs.stderr
            assert differs.exit_code == 1
            line = next(line for line in differs.stdout.splitlines() if line.startswith("* "))
            assert line.startswith("* deals ")
            assert line.endswith("  price")
            assert "\x1b" not in differs.stdout

            lines = run("old", "new", "--json", "--show", "differs", env=env).stdout.splitlines()
            assert [json.loads(each).get("sign") for each in lines] == ["-", "*", None]
            assert json.loads(lines[-1])["equal"] is False
            late = run("old", "new", "--within", "0.001", env=env)
            assert (late.exit_code, late.stderr) == (10, "error: both accounts could not be read in 0.001 s\n")
            assert run("old", "new", "--plan", str(tmp_path / "no.toml"), env=env).exit_code == 7
            assert run("new", "old", "--plan", str(file), env=env).exit_code == 7
            bad = run("old", "new", env={**env, "CRMCLIENT_OLD_TOKEN": "wrong"})
            assert (bad.exit_code, bad.stderr.startswith("error: ")) == (3, True)
        gone = run("old", "new", env=env)
        assert gone.exit_code == 5
        assert full.count("deal") == empty.count("deal") == 3
