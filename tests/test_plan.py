"""A plan tells beforehand what a move will do: it is held against what the move then does, in every pair."""

import json
from collections import Counter
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from click.testing import CliRunner, Result
from test_pairs import BESIDE, CLOCKS, NAMES, PAIRS, Done, moved, once, two

from crmclient import (
    Client,
    Contact,
    Email,
    Field,
    FieldValue,
    Kind,
    Label,
    Link,
    Misconfigured,
    Money,
    Note,
    Phone,
    Ref,
    Tag,
    Task,
    Verb,
    connect,
)
from crmclient.auth import Login
from crmclient.cli import commands
from crmclient.clock import SystemClock
from crmclient.dialect import read
from crmclient.entities import FieldType, NoteKind
from crmclient.migration.engine import Migration
from crmclient.migration.ledger import Ledger
from crmclient.migration.losses import CHOICES, choices, in_words
from crmclient.migration.matching import KINDS, MOVED, mark, match_fields, unmarked
from crmclient.migration.plan import (
    FieldMatch,
    Loss,
    Plan,
    UserMatch,
    capabilities,
    draft,
    from_toml,
    markers,
    plan,
    to_toml,
)
from crmclient.migration.seen import Seen
from crmclient.migration.translation import FieldThere, Translation, Words, marked
from crmclient.registry import dialect
from crmclient.sandbox.server import Running, face, served
from crmclient.sandbox.world import World, populate
from crmclient_kommo import dialect as kommo

SMALL = {"contacts": 12, "companies": 3, "deals": 8, "tasks": 7, "notes": 6}
OTHERS = [(origin, goal) for origin, goal in PAIRS if origin != goal]


# ------------------------------------------------------------------------------------------------ told beforehand


def told(made: Plan) -> Counter[str]:
    """Losses by field; those of custom fields are told one by one, and a move tells how many rows had any."""
    return Counter({loss.what: loss.rows for loss in made.losses if ".fields: " not in loss.what})


def happened(done: Done) -> Counter[str]:
    return Counter({name: n for name, n in done.lost.items() if ".fields: " not in name})


@pytest.mark.parametrize("origin, goal", PAIRS)
@pytest.mark.asyncio
async def test_what_is_told_to_be_lost_is_what_a_move_then_loses(origin: str, goal: str) -> None:
    stood = await once(origin, goal)
    done, made = stood.done, stood.done.plan
    assert not stood.planning_wrote
    # Whose its rows are, an account without users tells only once it has some.
    owners = {"contact.owner", "deal.owner", "task.owner", "note.owner"} if goal == "amoxml" else set[str]()
    beforehand, then = told(made), happened(done)
    assert {name: n for name, n in beforehand.items() if name not in owners} == {
        name: n for name, n in then.items() if name not in owners
    }
    assert all(then[name] <= beforehand[name] for name in owners)
    invented = {each.what: each.rows for each in made.inventions}
    assert invented == {name: n for name, n in done.invented.items() if name not in owners}
    assert dict(made.moves) == done.written
    assert {loss.what: loss.rows for loss in made.losses if ".fields: " in loss.what} == {
        name: n for name, n in done.lost.items() if ".fields: " in name
    }
    assert [side.refused for side in stood.stats] == [0, 0]


@pytest.mark.parametrize("origin, goal", OTHERS)
@pytest.mark.asyncio
async def test_a_loss_is_named_where_and_only_where_the_target_cannot_carry_a_row_as_it_is(
    origin: str, goal: str
) -> None:
    """Row by row against ``carried``, which decides it when rows are written."""
    async with two(origin, goal, **SMALL) as (reading, writing, *_):
        made = await plan(reading, writing)
        cut: Counter[str] = Counter()
        unpointed = ("owner", "created_by", "updated_by", "company", "contacts", "deals", "stage", "pipeline", "target")
        with Seen() as nothing_read:
            words = Translation(reading.dialect, writing.dialect, made.words(), nothing_read)
            for kind in KINDS:
                if not (reading.can(MOVED[kind], Verb.LIST) and writing.can(MOVED[kind], Verb.CREATE)):
                    continue
                async for row in reading.of(MOVED[kind]).list():
                    if any(loss.what.startswith(f"{row.KIND} that") for loss in made.losses):
                        continue
                    _, gone = writing.carried(row)
                    finished = {*words(row).later}
                    cut.update(f"{row.KIND}.{name}" for name in gone - finished - {*unpointed, "fields", "type"})
        named = told(made)
        for what, rows in cut.items():
            # The outcome goes with the stage; a note's kind is folded before anything is cut.
            if what not in ("deal.outcome", "note.kind", "note.params", "note.raw_kind"):
                assert named[what] == rows, what


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.asyncio
async def test_nothing_is_asked_twice_and_the_reading_costs_what_the_plan_says(name: str) -> None:
    async with two(name, "kommo", **SMALL) as (reading, writing, source, _):
        made = await plan(reading, writing)
        reads = made.source_cost.requests["read"]
        assert reading.spent.requests == source.stats.requests == reads + reading.spent.aside + (name == "electrum")
        before = reading.spent.requests
        async for _ in reading.together(*(MOVED[kind] for kind in made.source.rows)):
            pass
        assert reading.spent.requests - before == reads


@pytest.mark.asyncio
async def test_the_target_pays_the_least_that_a_move_in_advised_batches_can_cost() -> None:
    async with two("electrum", "kommo", contacts=120, companies=9, deals=60) as (reading, writing, *_):
        made = await plan(reading, writing)
        done = await moved(reading, writing, made)
        assert made.target_cost.batches["contacts"] == 50
        assert made.target_cost.requests["write contacts"] >= 3
        # Whether the target is empty, and the fields by which rows are marked, are asked for beside that.
        assert 0 <= done.requests[1] - sum(made.target_cost.requests.values()) <= BESIDE["kommo"]
        assert made.target_cost.rate == "7 in 1 s, 50 in 1 s"
        assert made.target_cost.minutes == pytest.approx(sum(made.target_cost.requests.values()) / 7 / 60, abs=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_capabilities_have_a_digest_of_their_own_that_changes_with_them(name: str) -> None:
    spoken = dialect(name)
    resource = spoken.resource(Contact)
    poorer = evolve(resource, fields={each: through for each, through in resource.fields.items() if each != "phones"})
    assert capabilities(spoken) == capabilities(dialect(name))
    assert capabilities(evolve(spoken, resources={**spoken.resources, Contact: poorer})) != capabilities(spoken)
    assert len({capabilities(dialect(each)) for each in NAMES}) == len(NAMES)


# ------------------------------------------------------------------------------------------------------ who is who


def strangers(full: World, empty: World) -> None:
    nobody = full.add("user", {"name": "Nobody Knows", "email": "n@elsewhere.example"})
    full.add("contact", {"name": "hers", "owner": nobody, "created_by": nobody})
    # The same person under another address.
    anna = full.add("user", {"name": "Second Anna", "email": "anna@old.example"})
    empty.add("user", {"name": "second anna ", "email": "anna@new.example"})
    full.add("contact", {"name": "annas", "owner": anna})


@pytest.mark.asyncio
async def test_users_are_found_by_e_mail_then_by_name_and_a_stranger_goes_to_whom_the_plan_says() -> None:
    async with two("kommo", "kommo", furnish=strangers, contacts=2) as (reading, writing, *_):
        made = await plan(reading, writing)
        how = {user.name: user.how for user in made.users if user.rows}
        assert how["Second Anna"] == "name"
        assert how["Nobody Knows"] is None
        assert set(how.values()) == {"e-mail", "name", None}
        me = (await writing.me()).id
        assert made.words().nobody == Ref(Kind.USER, me)
        assert {loss.what: loss.rows for loss in made.losses}["contact.created_by"] == 1
        assert any(f"1 users have no like in the target: their rows go to user {me}" in each for each in made.warnings)


@pytest.mark.asyncio
async def test_whom_nobody_is_like_is_refused_or_given_to_a_named_user() -> None:
    async with two("kommo", "kommo", furnish=strangers, contacts=2) as (reading, writing, _, target):
        refusing = await plan(reading, writing, unmatched="refuse")
        assert refusing.refused
        assert [user.name for user in refusing.strangers] == ["Nobody Knows"]
        anybody = target.world.select("user")[1]["id"]
        given = await plan(reading, writing, unmatched=anybody)
        assert not given.refused
        assert given.words().nobody == Ref(Kind.USER, anybody)
        with pytest.raises(Misconfigured, match="the target has no user 7 for the rows of unmatched ones"):
            await plan(reading, writing, unmatched=7)


@pytest.mark.asyncio
async def test_a_map_says_who_is_who_before_anything_is_matched() -> None:
    async with two("kommo", "kommo", furnish=strangers, contacts=2) as (reading, writing, _, target):
        users = {row["name"]: row["id"] for row in target.world.select("user")}
        made = await draft(
            reading, writing, people={"n@elsewhere.example": "SECOND anna", "Second Anna": str(users["Anna Lindqvist"])}
        )
        matched = {user.name: (user.target, user.how) for user in made.users}
        assert matched["Nobody Knows"] == (users["second anna "], "by hand")
        assert matched["Second Anna"] == (users["Anna Lindqvist"], "by hand")
        with pytest.raises(Misconfigured, match=r"'nobody@at\.all' is nobody of the users of the source"):
            await draft(reading, writing, people={"nobody@at.all": "second anna"})
        with pytest.raises(Misconfigured, match="'Nobody Knows' is nobody of the users of the target"):
            await draft(reading, writing, people={"Nobody Knows": "Nobody Knows"})


@pytest.mark.asyncio
async def test_who_is_in_no_list_is_known_by_an_id() -> None:
    async with two("amoxml", "kommo") as (reading, writing, _, target):
        made = await plan(reading, writing, people={"4806": "Пётр Кузнецов"})
        petr = next(row["id"] for row in target.world.select("user") if row["name"] == "Пётр Кузнецов")
        assert {user.source: user.target for user in made.users}[4806] == petr
        assert "amoCRM XML does not list its users: match them by hand" in made.warnings


@pytest.mark.parametrize("goal", ["amoxml", "electrum"])
@pytest.mark.asyncio
async def test_a_target_that_does_not_tell_who_i_am_is_warned_of(goal: str) -> None:
    async with two("kommo", goal, furnish=strangers, **SMALL) as (reading, writing, _, target):
        made = await plan(reading, writing)
        said = "\n".join(made.warnings)
        assert ("does not tell whose these credentials are: a move finds it out" in said) == (goal == "amoxml")
        assert "they may be refused" not in said
        if goal == "amoxml":
            assert "their rows go to whoever these credentials are of" in said
        someone = target.world.select("user")[0]["id"]
        named = "\n".join((await plan(reading, writing, unmatched=someone)).warnings)
        assert "does not tell whose" not in named
        assert "whoever" not in named
        refusing = "\n".join((await plan(reading, writing, unmatched="refuse")).warnings)
        assert ("rows lack task.owner, which amoCRM XML requires: set unmatched" in refusing) == (goal == "amoxml")


# ----------------------------------------------------------------------------------------------- stages and fields


def other_words(full: World, empty: World) -> None:
    """The target has another pipeline, one field of another name, and one choice less."""
    for stage in empty.select("stage", where={"type": "open"}):
        empty.update("stage", (stage["pipeline_id"], stage["id"]), {"name": f"{stage['name']}!"})
    for field in empty.select("field"):
        if field["name"] == "Город":
            empty.update("field", field["id"], {"name": "Town"})
        if field["name"] == "Источник":
            empty.update("field", field["id"], {"enums": field["enums"][1:]})


@pytest.mark.asyncio
async def test_stages_are_matched_by_name_else_by_outcome_or_place_and_say_how() -> None:
    async with two("kommo", "amocrm", furnish=other_words) as (reading, writing, *_):
        made = await plan(reading, writing)
        how = {stage.name.rpartition(" / ")[2]: stage.how for stage in made.stages if stage.name and stage.rows}
        assert how["Успешно реализовано"] == "name"
        assert "place" in how.values()
        assert all(stage.target_stage is not None for stage in made.stages if stage.rows)


@pytest.mark.asyncio
async def test_a_field_without_a_like_and_a_choice_without_a_like_are_lost_by_their_names() -> None:
    async with two("kommo", "amocrm", furnish=other_words) as (reading, writing, source, _):
        made = await plan(reading, writing)
        fields = {(field.entity, field.name): field for field in made.fields}
        assert not fields[Kind.CONTACT, "Город"].found
        choices = fields[Kind.CONTACT, "Источник"].options
        lost = [choice for choice, there in choices.items() if not there]
        assert len(lost) == 1
        ids = {row["name"]: str(row["id"]) for row in source.world.select("field", where={"entity": "contact"})}
        rows = [row["fields"] for row in source.world.select("contact")]
        told = {loss.what: loss.rows for loss in made.losses}
        assert told["contact.fields: Город"] == sum(ids["Город"] in held for held in rows) > 0
        chosen = sum(any(v["value"] == lost[0] for v in held.get(ids["Источник"], ())) for held in rows)
        assert told.get("contact.fields: Источник", 0) == chosen > 0


@pytest.mark.asyncio
async def test_whoever_matches_by_hand_is_told_what_there_is_to_choose_from() -> None:
    async with two("amoxml", "kommo") as (reading, writing, _, target):
        made = await plan(reading, writing)
        written = to_toml(made)
        (user,) = [each for each in target.world.select("user") if each["name"] == "Anna Lindqvist"]
        assert f'"user {user["id"]}: Anna Lindqvist",' in written
        for stage in target.world.select("stage"):
            assert any(f"stage {stage['id']}: " in each and stage["name"] in each for each in made.choices)
        assert any(each.startswith("type of tasks 2: ") for each in made.choices)
        # They are there to be read, and decide nothing.
        assert evolve(made, choices=()).digest == made.digest
        assert from_toml(written) == made


# Types of two fields of one code, and what of the source's value is in the target's.
NO_LIKE = [("text", "select"), ("text", "numeric"), ("multiselect", "select")]
TAKEN = [
    ("select", "multiselect", "one"),
    ("numeric", "text", "5.5"),
    ("checkbox", "textarea", "yes"),
    ("date", "text", "2026-03-01"),
    ("date_time", "text", "2026-02-28 21:00:00 UTC"),
    ("multiselect", "text", "one, two"),
    ("url", "text", "one"),
]
VALUES: dict[str, list[Any]] = {
    "numeric": ["5.5"],
    "checkbox": [True],
    "date": [int(datetime(2026, 2, 28, 21, tzinfo=UTC).timestamp())],
    "date_time": [int(datetime(2026, 2, 28, 21, tzinfo=UTC).timestamp())],
    "multiselect": ["one", "two"],
}


def coded(here: str, there: str) -> Callable[[World, World], None]:
    """A contact with a value in a field that the target has another of under the same code, by another name and type."""

    def furnish(full: World, empty: World) -> None:
        options = [{"id": n, "value": word, "code": None, "sort": n} for n, word in ((1, "one"), (2, "two"))]
        for world, name, type in ((full, "Here", here), (empty, "There", there)):
            enums = options if type in ("select", "multiselect") else []
            world.add("field", {"entity": "contact", "code": "X", "name": name, "type": type, "enums": enums})
        id = str(full.select("field", where={"entity": "contact"})[-1]["id"])
        values = VALUES.get(here, ["one"])
        enums = {"one": 1, "two": 2} if here in ("select", "multiselect") else {}
        held = [{"value": each} | ({"enum_id": enums[each]} if enums else {}) for each in values]
        full.add("contact", {"name": "holds it", "fields": {id: held}})

    return furnish


def said_in(world: World, name: str) -> list[Any]:
    """What the contacts of an account have in a field."""
    ids = {str(row["id"]) for row in world.select("field") if row["name"] == name}
    rows = [row["fields"] for row in world.select("contact")]
    return [value["value"] for held in rows for id in ids & held.keys() for value in held[id]]


@pytest.mark.parametrize("choice", ["drop", "field", "fold"])
@pytest.mark.parametrize("here, there", NO_LIKE)
@pytest.mark.asyncio
async def test_fault_138_a_field_of_the_same_code_that_takes_no_such_values_is_a_loss_and_no_row_is_refused(
    here: str, there: str, choice: str
) -> None:
    async with two("kommo", "kommo", furnish=coded(here, there), contacts=0) as (reading, writing, source, target):
        made = await plan(reading, writing, choose={"contact.fields: Here": choice})
        (loss,) = [each for each in made.losses if "fields" in each.what]
        assert (loss.what, loss.rows, loss.choice) == ("contact.fields: Here", 1, choice)
        done = await moved(reading, writing, made)
        assert done.verdict.equal, done.verdict.as_tree()
        assert {400, 422}.isdisjoint(target.stats.statuses)
        assert [row["name"] for row in target.world.select("contact")] == ["holds it"]
        assert said_in(target.world, "There") == []
        assert said_in(target.world, "Here") == (said_in(source.world, "Here") if choice == "field" else [])
        folded = ["Here: " + ", ".join(said_in(source.world, "Here"))] if choice == "fold" else []
        assert [row["text"] for row in target.world.select("note")] == folded


@pytest.mark.parametrize("here, there, said", TAKEN)
@pytest.mark.asyncio
async def test_a_text_says_whatever_a_field_of_its_code_held_and_one_choice_is_one_of_many(
    here: str, there: str, said: str
) -> None:
    async with two("kommo", "kommo", furnish=coded(here, there), contacts=0) as (reading, writing, _, target):
        made = await plan(reading, writing)
        assert [each.what for each in made.losses if "fields" in each.what] == []
        done = await moved(reading, writing, made)
        assert done.verdict.equal, done.verdict.as_tree()
        assert said_in(target.world, "There") == [said]


def test_a_field_that_is_said_to_take_a_type_takes_it_in_every_dialect_that_has_both() -> None:
    T, day = FieldType, date(2026, 3, 1)
    values = dict.fromkeys(T, "one") | {
        **dict.fromkeys((T.NUMBER, T.MONEY), Decimal("5.5")),
        **dict.fromkeys((T.DATE, T.BIRTHDAY), day),
        **{each: {"name": "Acme"} for each in (T.LEGAL, T.FILE, T.LINKED, T.CHAINED, T.ITEMS)},
        T.BOOL: True,
        T.DATETIME: datetime(2026, 3, 1, tzinfo=UTC),
        T.ADDRESS: {"city": "Paris"},
    }
    gone: list[Any] = []
    for name, (here, content), there in product(("kommo", "amocrm"), values.items(), T):
        both = (Field(entity=Kind.CONTACT, id=1, code="X", type=here), Field(entity=Kind.CONTACT, code="X", type=there))
        # A vendor may have no fields of that type at all: of another there is nothing to be matched with.
        if here is there or not match_fields(both[:1], both[1:]):
            continue
        words = Words(fields={(Kind.CONTACT, 1): FieldThere(9, "X", None, there)})
        with Seen() as seen:
            row = Contact(id=1, name="A", fields=[FieldValue((content,), field=Ref(Kind.FIELD, 1), type=here)])
            translated = Translation(dialect("kommo"), dialect(name), words, seen)(row)
        gone += [(name, here, there)] if translated.lost or not translated.row.fields else []
    assert gone == []


def renamed(full: World, empty: World) -> None:
    """The target calls its types of tasks by other names; the source has tasks of both."""
    for id, name in ((1, "Ring them"), (2, "Coffee")):
        empty.update("task_type", id, {"name": name})
    target = {"target_kind": "contact", "target_id": full.add("contact", {"name": "c"})}
    full.add_many("task", [{"text": str(id), "type_id": id, "due": 1_780_000_000, **target} for id in (1, 2)])


@pytest.mark.parametrize(
    "origin, goal", [("kommo", "kommo"), ("amocrm", "kommo"), ("kommo", "amocrm"), ("amoxml", "kommo")]
)
@pytest.mark.asyncio
async def test_a_task_stays_a_call_or_a_meeting_whatever_the_accounts_call_it(origin: str, goal: str) -> None:
    async with two(origin, goal, furnish=renamed, contacts=0) as (reading, writing, source, target):
        made = await plan(reading, writing)
        assert {type.how for type in made.task_types if type.rows} == {"code"}
        assert "task.type" not in told(made)
        for side in (source, target):
            # Kommo tells them with the account: nothing more is asked for.
            assert side.stats.calls["GET /api/v4/account"] == (1 if side.face.name == "kommo" else 0)
        done = await moved(reading, writing, made)
        assert done.verdict.equal, done.verdict.as_tree()
        assert {row["text"]: row["type_id"] for row in target.world.select("task")} == {"1": 1, "2": 2}


def types_of_their_own(full: World, empty: World) -> None:
    """Both have lunches, each under its own id; errands has only the source."""
    target = {"target_kind": "contact", "target_id": full.add("contact", {"name": "c"}), "due": 1_780_000_000}
    for id, name in ((71, "Lunch"), (72, "Errand")):
        full.add("task_type", {"id": id, "name": name})
        full.add("task", {"text": name, "type_id": id, **target})
    empty.add("task_type", {"id": 81, "name": "lunch "})


@pytest.mark.asyncio
async def test_fault_138_a_task_of_a_type_that_the_target_does_not_have_goes_without_it_and_is_not_refused() -> None:
    async with two("kommo", "kommo", furnish=types_of_their_own, contacts=0) as (reading, writing, _, target):
        made = await plan(reading, writing)
        assert {type.name: (type.target, type.how) for type in made.task_types if type.rows} == {
            "Lunch": (81, "name"),
            "Errand": (None, None),
        }
        assert told(made)["task.type"] == 1
        done = await moved(reading, writing, made)
        assert done.verdict.equal, done.verdict.as_tree()
        assert done.lost["task.type"] == 1
        assert {400, 422}.isdisjoint(target.stats.statuses)
        assert {row["text"]: row["type_id"] for row in target.world.select("task")} == {"Lunch": 81, "Errand": 1}


@pytest.mark.parametrize("origin, goal", [("kommo", "kommo"), ("amocrm", "kommo"), ("kommo", "amocrm")])
@pytest.mark.asyncio
async def test_an_account_that_tells_no_types_of_tasks_moves_all_the_same(
    origin: str, goal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The answer is that of an account which was not asked for them.
    monkeypatch.setattr(kommo, "_account_call", lambda: read("/api/v4/account", ("with", "datetime_settings")))
    async with two(origin, goal, furnish=renamed, contacts=0) as (reading, writing, _, target):
        made = await plan(reading, writing)
        assert told(made)["task.type"] == (0 if origin == goal else 2)
        done = await moved(reading, writing, made)
        assert done.verdict.equal, done.verdict.as_tree()
        kept = {row["text"]: row["type_id"] for row in target.world.select("task")}
        assert kept == {"1": 1, "2": 2 if origin == goal else 1}


@pytest.mark.asyncio
async def test_a_task_type_goes_by_its_name_and_by_hand() -> None:
    async with two("amocrm", "amocrm") as (reading, writing, *_):
        made = await plan(reading, writing)
        assert {type.how for type in made.task_types if type.rows} == {"code"}
        assert "task.type" not in told(made)
    async with two("kommo", "amoxml") as (reading, writing, *_):
        made = await plan(reading, writing)
        assert made.task_type == "CALL"
        by_hand = evolve(made, task_types=tuple(evolve(each, target="MEETING") for each in made.task_types))
        assert set(by_hand.words().task_types.values()) == {Ref(Kind.TASK_TYPE, "MEETING")}


@pytest.mark.parametrize("fold", [True, False])
def test_what_a_call_says_is_folded_into_its_text_or_dropped_as_the_plan_says(fold: bool) -> None:
    call = Note(id=1, kind=NoteKind.CALL_IN, raw_kind="call_in", params={"phone": "+7"}, target=Ref(Kind.CONTACT, 5))
    with Seen() as seen:
        seen.add("contacts", 5)
        words = Translation(dialect("kommo"), dialect("amocrm"), words=_words(fold), rows=seen)
        there = words(evolve(call, text="about money"))
        assert there.row.text == ("about money\ncall_in: phone +7" if fold else "about money")
        assert there.row.kind is NoteKind.TEXT
        assert set(there.lost) == {"kind", "raw_kind", "params"}


def _words(fold: bool) -> Any:
    made = _nothing(losses=[{"what": "note.params", "rows": 1, "choice": "fold" if fold else "drop"}])
    return from_toml(made).words()


# ------------------------------------------------------------------------------------------- what is done with losses


@pytest.mark.parametrize(
    "goal, what, allowed",
    [
        ("kommo", "deal.price", "field fold archive drop"),
        ("kommo", "contact.fields: A.b: c", "field fold archive drop"),
        ("kommo", "contact.fields", "fold archive drop"),
        ("kommo", "task.duration", "fold archive drop"),
        ("kommo", "note.text", "archive drop"),
        ("kommo", "note.params", "fold archive drop"),
        ("kommo", "task that hangs on nothing", "archive drop"),
        ("amocrm", "company.name", "fold archive drop"),
        ("amoxml", "contact.owner", "fold archive drop"),
        ("amoxml", "companies", "archive drop"),
        ("amoxml", "company.name", "archive drop"),
        ("electrum", "contact.position", "archive drop"),
        ("electrum", "notes", "archive drop"),
    ],
)
def test_what_can_be_done_with_a_loss_is_read_off_the_target(goal: str, what: str, allowed: str) -> None:
    assert choices(dialect(goal), what) == tuple(allowed.split())
    made = from_toml(NOTHING)
    made = evolve(made, target=evolve(made.target, dialect=goal))
    for choice in CHOICES:
        loss = Loss(what=what, rows=1, choice=choice)
        text = to_toml(evolve(made, losses=(loss,)))
        if choice in choices(dialect(goal), what):
            assert from_toml(text).losses == (loss,)
        else:
            with pytest.raises(Misconfigured, match="cannot have choice"):
                from_toml(text)


def test_a_plan_for_a_dialect_that_is_not_installed_is_asked_when_it_is() -> None:
    made = from_toml(NOTHING.replace("amocrm", "other") + 'losses = [{what = "notes", rows = 1, choice = "field"}]')
    assert made.impossible(dialect("kommo")) == [
        'losses: notes cannot have choice = "field" in Kommo: archive or drop',
    ]


@pytest.mark.asyncio
async def test_choices_go_by_patterns_and_only_where_they_can() -> None:
    async with two("kommo", "amoxml", furnish=strangers, **SMALL) as (reading, writing, *_):
        made = await plan(reading, writing, choose={"*": "fold", "contact.*": "archive", "contact.created_by": "drop"})
        chosen = {loss.what: loss.choice for loss in made.losses}
        assert chosen["contact.created_by"] == "drop"
        assert {to for what, to in chosen.items() if what.startswith("contact.")} == {"archive", "drop"}
        assert {to for what, to in chosen.items() if what.startswith(("deal.", "note."))} == {"fold"}
        # Whole rows cannot be folded.
        assert chosen["companies"] == "drop"
        with pytest.raises(Misconfigured, match="companies cannot have choice 'fold' in amoCRM XML: archive or drop"):
            await plan(reading, writing, choose={"companies": "fold"})
        with pytest.raises(Misconfigured, match="cannot have choice 'burn'"):
            await plan(reading, writing, choose={"*": "burn"})


@pytest.mark.asyncio
async def test_what_calls_say_is_chosen_all_together() -> None:
    async with two("kommo", "amoxml", **SMALL) as (reading, writing, *_):
        for rule, way in (
            ({"note.kind": "archive"}, "archive"),
            ({"note.params": "drop"}, "drop"),
            ({"*": "field"}, "fold"),
        ):
            made = await plan(reading, writing, choose=rule)
            own = {loss.what: loss.choice for loss in made.losses if loss.what in ("note.kind", "note.params")}
            assert set(own.values()) == {way}
            assert made.words().fold == (way == "fold")


def test_fields_to_make_have_the_type_they_had_where_that_means_the_same_anywhere() -> None:
    contact, T = Kind.CONTACT, FieldType
    fields = (
        FieldMatch(entity=contact, source=1, name="Age", type=T.NUMBER),
        FieldMatch(entity=contact, source=2, name="Sort", type=T.SELECT, options={"a": "a", "b": "b"}),
        FieldMatch(entity=contact, source=3, name="Papers", type=T.FILE),
        FieldMatch(entity=contact, source=4, name="Twice", type=T.NUMBER),
        FieldMatch(entity=contact, source=5, name="Twice", type=T.DATE),
        FieldMatch(entity=contact, source=6, name="Part", type=T.SELECT, target=9, options={"a": ""}),
        FieldMatch(entity=Kind.DEAL, source=7, name="Age", type=T.BOOL),
    )
    made = evolve(from_toml(NOTHING.replace("amocrm", "kommo")), fields=fields)
    names = ("Age", "Sort", "Papers", "Twice", "Part")
    losses = [Loss(what=f"contact.fields: {name}", rows=1, choice="field") for name in names]
    made = evolve(made, losses=(*losses, Loss(what="deal.closed_at", rows=1, choice="field")))
    wanted = dict(made.fields_to_make())
    assert {what: (each.entity, each.name, each.type) for what, each in wanted.items()} == {
        "contact.fields: Age": (Kind.CONTACT, "Age", FieldType.NUMBER),
        "contact.fields: Sort": (Kind.CONTACT, "Sort", FieldType.SELECT),
        "contact.fields: Papers": (Kind.CONTACT, "Papers", FieldType.TEXT),
        "contact.fields: Twice": (Kind.CONTACT, "Twice", FieldType.TEXT),
        "contact.fields: Part": (Kind.CONTACT, "Part", FieldType.TEXT),
        "deal.closed_at": (Kind.DEAL, "closed at", FieldType.TEXT),
    }
    assert [option.value for option in wanted["contact.fields: Sort"].options] == ["a", "b"]
    there = [evolve(each, id=number) for number, each in enumerate(wanted.values(), 100)]
    assert {what: each.id for what, each in made.made_fields(there).items()} == dict(
        zip(wanted, range(100, 106), strict=True)
    )
    # Of another type it is another field.
    assert "contact.fields: Age" not in made.made_fields([evolve(there[0], type=FieldType.DATE)])


def test_what_has_no_field_yet_is_archived_and_not_lost() -> None:
    text = _nothing(losses=[{"what": "contact.fields: Age", "rows": 1, "choice": "field"}]).replace("amocrm", "kommo")
    age = FieldValue(("41",), field=Ref(Kind.FIELD, 1), name="Age")
    with Seen() as seen:
        there = Translation(dialect("kommo"), dialect("kommo"), from_toml(text).words(), seen)(
            Contact(name="A", fields=[age])
        )
    assert there.row.fields == ()
    assert there.archived["contact.fields: Age"][0]["values"] == ["41"]


def test_what_is_told_beside_a_row_does_not_hang_on_what_became_of_others() -> None:
    losses = [
        {"what": f"contact.{name}", "rows": 1, "choice": "fold"} for name in ("company", "created_by", "position")
    ]
    words = from_toml(_nothing(losses=losses)).words()
    row = Contact(id=1, name="A", company=Ref(Kind.COMPANY, 7), created_by=5, position="head")
    with Seen() as nobody, Seen() as all_of_them:
        all_of_them.add("companies", 7, "Acme")
        told = [
            Translation(dialect("kommo"), dialect("kommo"), words, rows).besides(row) for rows in (nobody, all_of_them)
        ]
        translated = Translation(dialect("kommo"), dialect("kommo"), words, nobody)(row)
    assert told[0] == told[1] == (Note(id="fold:contacts:1", text="created by: user 5", target=row.ref),)
    # The row itself has lost its company too, as long as that is not there.
    assert translated.told == ["created by: user 5", "company: company 7"]


def test_a_row_without_a_place_is_archived_whole_where_the_plan_says_so() -> None:
    losses = [{"what": what, "rows": 1, "choice": "archive"} for what in ("task that hangs on nothing", "notes")]
    words = from_toml(_nothing(losses=losses)).words()
    with Seen() as seen:
        translate = Translation(dialect("kommo"), dialect("amoxml"), words, seen)
        there = translate(Task(id=1, text="call"))
        assert there.left_out == "hangs on nothing"
        assert there.archived == {
            "task that hangs on nothing": {"id": 1, "text": "call", "done": False, "deleted": False}
        }
        assert translate.kept_whole("notes", Note(id=2, text="said"))["notes"]["text"] == "said"
        assert translate.kept_whole("companies", Note(id=2, text="said")) == {}


def test_whatever_is_told_in_words_is_one_line_that_a_person_can_read() -> None:
    anna = Ref(Kind.USER, 5)
    cases: list[tuple[Any, str]] = [
        (anna, "Anna"),
        (Ref(Kind.TASK_TYPE, 5), "task type 5"),
        (Money("12.50", currency="RUB"), "12.50 RUB"),
        (
            (Phone("+7 1", label=Label.HOME), Email("a@b", label=Label.OTHER, raw_label="SITE")),
            "+7 1 (home), a@b (SITE)",
        ),
        (FieldValue((Decimal("1E+2"), True, date(2026, 3, 1))), "100, yes, 2026-03-01"),
        ({"phone": "+7", "duration": 5, "link": None}, "phone +7, duration 5"),
        (datetime(2026, 3, 1, 12, 0, 5, 7, tzinfo=timezone(timedelta(hours=3))), "2026-03-01 09:00:05 UTC"),
        ("two\nlines\x00\tand  blanks ", "two lines and blanks"),
        ((Link(Ref(Kind.COMPANY, None), name="Acme"), Link(Ref(Kind.CONTACT, 7))), "Acme, contact 7"),
        (Tag("vip"), "vip"),
        ("Жанна", "Жанна"),
    ]
    for part, said in cases:
        assert in_words(part, {anna: "Anna"}) == said


# ------------------------------------------------------------------------------------------------------- the marks


def test_an_origin_is_one_short_word_whatever_a_row_is_known_by() -> None:
    begin = "crm:electrum:localhost:8080:"
    assert mark(begin, Kind.CONTACT, 4821) == f"{begin}contact:4821"
    named = {mark(begin, Kind.COMPANY, name) for name in ("ООО «Ромашка, Лютик»", "Acme Ltd", "x" * 300, "Acme, Ltd")}
    assert len(named) == 4
    assert all(each.isascii() and not {*each} & {*" ,"} and len(each) < 64 for each in named)
    assert all(unmarked(Contact(tags=[each]))[1] == (each,) for each in named)


def test_a_mark_is_no_content_in_whichever_form_it_was_left() -> None:
    one, other = "crm:kommo:old:contact:1", "crm:amoxml:older:8080:contact:7"
    age = FieldValue("5", field=Ref(Kind.FIELD, 3), name="Age")
    row = Contact(
        id=1,
        tags=["vip", one, "crm:mine", f"see {one}", "crm:kommo:old:car:1"],
        fields=[
            age,
            FieldValue(other, field=Ref(Kind.FIELD, 4), name="Origin"),
            FieldValue("x", code="CRMCLIENT_ORIGIN"),
        ],
    )
    plain, origins = unmarked(row)
    assert origins == (one, other)
    assert [tag.name for tag in plain.tags] == ["vip", "crm:mine", f"see {one}", "crm:kommo:old:car:1"]
    assert plain.fields == (age,)
    assert unmarked(plain) == (plain, ())
    assert unmarked(Task(text=one)) == (Task(text=one), ())


@pytest.mark.parametrize("how", ["field", "tag"])
def test_what_is_marked_is_unmarked_as_it_was(how: str) -> None:
    row, there = Contact(name="A", tags=["vip"]), FieldThere(9, "CRMCLIENT_ORIGIN", None, FieldType.TEXT)
    origin = mark("crm:kommo:old:", Kind.CONTACT, 1)
    with_it = marked(row, origin, how, there)
    assert with_it != row
    assert unmarked(with_it) == (row, (origin,))
    assert marked(row, origin, "off", there) == row
    assert marked(Task(text="a"), origin, how, there) == Task(text="a")
    if how == "field":
        assert marked(row, origin, how) == row


def test_marks_of_an_earlier_move_are_neither_carried_nor_lost() -> None:
    row = Contact(
        id=1, name="A", tags=["vip", "crm:kommo:old:contact:1"], fields=[FieldValue("x", code="CRMCLIENT_ORIGIN")]
    )
    with Seen() as seen:
        there = Translation(dialect("kommo"), dialect("electrum"), from_toml(_nothing()).words(), seen)(row)
    assert [tag.name for tag in there.row.tags] == ["vip"]
    assert not [*there.losses()]


@pytest.mark.parametrize("goal, way", [("kommo", "field"), ("amocrm", "tag"), ("amoxml", "tag"), ("electrum", "tag")])
@pytest.mark.asyncio
async def test_a_plan_marks_as_well_as_its_target_can_and_as_it_is_told(goal: str, way: str) -> None:
    def furnish(full: World, empty: World) -> None:
        for world in (full, empty):
            world.add("field", {"entity": "contact", "code": "CRMCLIENT_ORIGIN", "name": "Origin", "type": "text"})
        full.add("contact", {"name": "before", "tags": ["crm:kommo:old:contact:1"]})

    async with two("kommo", goal, furnish=furnish, contacts=2) as (reading, writing, *_):
        made = await plan(reading, writing)
        assert made.marker == way
        assert "CRMCLIENT_ORIGIN" not in {each.code for each in made.fields}
        assert not made.tags or made.tags["different"] == len(
            {tag.name async for each in reading.contacts.list() for tag in each.tags} - {"crm:kommo:old:contact:1"}
        )
        assert made.quarantine == writing.dialect.quarantine
        off = await draft(reading, writing, marker="off", quarantine=1, allow=["not empty"])
        assert (off.marker, off.quarantine, off.allow) == ("off", 1.0, ("not empty",))
        if way == "tag":
            with pytest.raises(Misconfigured, match="can keep no origin by marker 'field': tag or off"):
                await draft(reading, writing, marker="field")


def test_a_dialect_without_tags_and_fields_is_not_marked() -> None:
    spoken = dialect("electrum")
    contacts = spoken.resource(Contact)
    without = evolve(contacts, fields={name: through for name, through in contacts.fields.items() if name != "tags"})
    assert markers(evolve(spoken, resources={**spoken.resources, Contact: without})) == ("off",)


# ------------------------------------------------------------------------------------------------ what stands in the way


def test_what_would_stop_a_move_is_said_with_what_lets_it_go_on() -> None:
    made = from_toml(_nothing(users=[{"source": 1, "rows": 3}]))
    assert made.hindrances() == []
    made = evolve(
        made,
        unmatched="refuse",
        source=evolve(made.source, currency="RUB"),
        target=evolve(made.target, currency="EUR", rows={"contacts": 3, "deals": 0}, at_least=("contacts",)),
    )
    assert made.hindrances() == [
        'the target is not empty: it has at least 3 contacts: to move into it all the same, add "not empty" to allow',
        'prices are in RUB and go as they are into an account of EUR: if that is meant, add "other currency" to allow',
        '1 users have no like in the target, and unmatched = "refuse": nothing is to be moved so: give each a target, or '
        'set unmatched to "me" or to the id of a user of the target',
    ]
    allowed = evolve(made, allow=("other currency", "not empty"), unmatched="me")
    assert allowed.hindrances() == []
    # What is there now counts, not what was there.
    assert len(made.hindrances({"contacts": 0})) == 2
    assert len(evolve(made, unmatched="me", allow=("other currency",)).hindrances({"notes": 1})) == 1


def test_how_a_move_goes_is_a_decision_of_the_plan() -> None:
    made = from_toml(NOTHING)
    edits = [{"marker": "tag"}, {"quarantine": 1.0}, {"allow": ("not empty",)}, {"allow": ("other currency",)}]
    assert len({evolve(made, **edit).digest for edit in [{}, *edits]}) == 5
    again = from_toml(to_toml(evolve(made, quarantine=0.0)))
    assert (again.quarantine, again.marker, again.allow) == (0.0, "off", ())
    assert "\nallow = []\n" in to_toml(made)
    assert from_toml(NOTHING + "quarantine = 90\n").quarantine == 90


# ------------------------------------------------------------------------------------------------------ warnings


@pytest.mark.asyncio
async def test_what_stands_in_the_way_is_said() -> None:
    def furnish(full: World, empty: World) -> None:
        populate(empty, contacts=3, seed=9)
        empty.update("account", empty.account["id"], {"currency": "EUR"})
        empty.add("webhook", {"url": "https://x.example/", "events": ["add_lead"]})

    async with two("amocrm", "kommo", furnish=furnish) as (reading, writing, *_):
        made = await plan(reading, writing)
        assert made.target.rows["contacts"] == 3
        said = "\n".join(made.warnings)
        assert "the target is not empty: it has 3 contacts" in said
        assert "prices are in RUB and go as they are into an account of EUR" in said
        assert "1 webhooks of the target will be told of every row that is made" in said


def blind(crm: Client, running: Running) -> Client:
    """A client of the same account to which nobody tells its zone."""
    card = Login(running.credentials["login"], hash=running.credentials["hash"])
    through, clock = running.transport(), CLOCKS[id(crm)]
    return connect(crm.dialect.name, base_url=crm.base_url, credentials=card, transport=through, clock=clock)


@pytest.mark.parametrize("origin, goal", [("amoxml", "kommo"), ("kommo", "amoxml")])
@pytest.mark.asyncio
async def test_fault_143_an_account_whose_zone_nobody_tells_is_refused_before_anything_is_asked(
    origin: str, goal: str, tmp_path: Path
) -> None:
    wanted = r'^amoCRM XML tells times by .*: write zone = "Europe/Moscow", say, into the profile .*connect\(zone=…\)$'
    async with two(origin, goal, furnish=renamed, contacts=3) as (reading, writing, source, target):
        made = await plan(reading, writing)
        xml, running = (reading, source) if origin == "amoxml" else (writing, target)
        async with blind(xml, running) as nobody_told:
            sides = [nobody_told if each is xml else each for each in (reading, writing)]
            before = source.stats.requests, target.stats.requests
            with pytest.raises(Misconfigured, match=wanted):
                await plan(*sides)
            with pytest.raises(Misconfigured, match=wanted), Ledger(tmp_path / "ledger", durable=False) as ledger:
                async for _ in Migration(*sides, made, ledger, clock=CLOCKS[id(reading)]):
                    pass
            assert (source.stats.requests, target.stats.requests) == before
        done = await moved(reading, writing, made)
        assert done.verdict.equal, done.verdict.as_tree()
        for kind, key in (("task", "due"), ("contact", "created_at")):
            if (goal, key) != ("amoxml", "created_at"):  # it dates rows itself
                here, there = (sorted(row[key] for row in side.world.select(kind)) for side in (source, target))
                assert there == here


@pytest.mark.parametrize("goal", NAMES)
@pytest.mark.asyncio
async def test_who_moves_into_an_account_with_a_digital_pipeline_is_told_to_switch_it_off(goal: str) -> None:
    async with two("kommo", goal, contacts=1) as (reading, writing, *_):
        said = "\n".join((await draft(reading, writing)).warnings)
        assert ("Digital Pipeline" in said and "switch it off" in said) == (goal in ("kommo", "amocrm"))


@pytest.mark.parametrize("unpaid", ["source", "target", None])
@pytest.mark.asyncio
async def test_an_account_that_heeds_no_filters_is_told_as_such(unpaid: str | None) -> None:
    async with two("kommo", "kommo", contacts=1) as (reading, writing, source, target):
        for side, running in (("source", source), ("target", target)):
            running.account.switches["api-filter"] = side != unpaid
        said = [each for each in (await draft(reading, writing)).warnings if "filters" in each]
        assert [each.partition(", a paid")[0] for each in said] == (
            [f"the filters of Kommo are not switched on for the {unpaid}"] if unpaid else []
        )


@pytest.mark.parametrize("origin", ["kommo", "amocrm"])
@pytest.mark.asyncio
async def test_what_a_vendor_says_of_rows_and_no_field_holds_is_counted(origin: str) -> None:
    async with two(origin, "kommo", contacts=6, deals=20, notes=8) as (reading, writing, source, _):
        lost = sum(bool(row["loss_reason_id"]) for row in source.world.select("deal"))
        pinned = source.world.select("note")[:3]
        for row in pinned:
            source.world.update("note", row["id"], {"extra": {"pinned": True}, "updated_at": row["updated_at"]})
        title = reading.dialect.title
        said = [each for each in (await plan(reading, writing)).warnings if "'s own" in each]
        assert 0 < lost < 20
        assert said == [
            f"{lost} rows have deal.loss_reason_id of {title}'s own: that does not move",
            *[f"3 rows have note.is_pinned of {title}'s own: that does not move"][: origin == "kommo"],
        ]


@pytest.mark.asyncio
async def test_a_row_that_cannot_be_read_is_counted_and_the_rest_is_planned() -> None:
    async with two("amocrm", "kommo") as (reading, writing, source, _):
        resource = reading.dialect.resource(Contact)
        first = source.world.select("contact")[0]["id"]
        made = await plan(broken(reading, resource, first), writing)
        assert made.source.unreadable == {"contacts": 1}
        assert made.moves["contacts"] == source.world.count("contact") - 1
        assert any("cannot be read, and they will not move: 1 contacts" in each for each in made.warnings)


def broken(crm: Any, resource: Any, id: int) -> Any:
    """The client, for which one row has another shape than expected."""
    from crmclient import Unreadable

    def decode(row: Any, context: Any) -> Any:
        if row["id"] == id:
            raise Unreadable(f"contact {id} has another shape", raw=row)
        return resource.decode(row, context)

    spoken = evolve(crm.dialect, resources={**crm.dialect.resources, resource.entity: evolve(resource, decode=decode)})
    crm.dialect = crm._session._dialect = spoken
    return crm


def test_what_the_target_requires_and_nobody_has_is_said() -> None:
    with Seen() as seen:
        seen.add("contacts", 5)
        words = Translation(dialect("kommo"), dialect("amoxml"), from_toml(_nothing()).words(), seen)
        there = words(Task(id=1, text="call", target=Ref(Kind.CONTACT, 5)))
        assert set(there.lacks) == {"due", "owner", "type"} - {*there.invented}
        assert "owner" in there.lacks


def test_what_hangs_on_rows_that_the_target_does_not_have_hangs_on_nothing() -> None:
    with Seen() as seen:
        seen.add("companies", 7, "Acme", made=False)
        words = Translation(dialect("kommo"), dialect("electrum"), from_toml(_nothing()).words(), seen)
        assert words(Task(id=1, text="call", target=Ref(Kind.COMPANY, 7))).row.target is None
        assert words(Contact(id=1, name="A", company=7)).row.company.name == "Acme"


# -------------------------------------------------------------------------------------------------------- the file


@pytest.mark.parametrize("origin, goal", [("kommo", "electrum"), ("amoxml", "kommo"), ("amocrm", "amocrm")])
@pytest.mark.asyncio
async def test_a_plan_that_was_written_is_read_as_it_was(origin: str, goal: str) -> None:
    async with two(origin, goal, **SMALL) as (reading, writing, *_):
        made = await plan(reading, writing)
    again = from_toml(to_toml(made))
    assert again == made
    assert again.digest == made.digest


def test_what_people_are_called_survives_the_file() -> None:
    made = from_toml(_nothing())
    for name in ('"quoted" \\ back', "line\nend\ttab", "\x7f\x00\x1b", "Жанна 🙂", "a = 1 # no comment", "'''"):
        odd = evolve(made, users=(UserMatch(source="u/1", name=name),))
        assert from_toml(to_toml(odd)).users[0].name == name


@pytest.mark.asyncio
async def test_an_edited_plan_is_what_goes() -> None:
    async with two("kommo", "kommo", furnish=strangers, contacts=2) as (reading, writing, _, target):
        made = await plan(reading, writing)
        anna = next(row["id"] for row in target.world.select("user") if row["name"] == "Anna Lindqvist")
        stranger = next(user for user in made.users if user.name == "Nobody Knows")
        text = to_toml(made)
        line = next(line for line in text.splitlines() if "Nobody Knows" in line)
        edited = from_toml(text.replace(line, line.replace(", rows", f", target = {anna}, rows")))
        assert edited.words().users[stranger.source] == Ref(Kind.USER, anna)
        assert edited.digest != made.digest
        assert not edited.strangers
        # What it counts is no decision of its.
        assert evolve(made, made=SystemClock().now(), moves={}).digest == made.digest
        dropped = tuple(evolve(loss, what="deal.price") for loss in made.losses[:1])
        assert evolve(made, losses=(*made.losses, *dropped)).digest != made.digest


NOTHING = """\
version = 1
made = "2026-03-01T09:00:00Z"
source = {dialect = "kommo", address = "https://a.kommo.com", account = "a", capabilities = "1"}
target = {dialect = "amocrm", address = "https://b.amocrm.ru", account = "b", capabilities = "2"}
"""


def _nothing(**more: list[dict[str, Any]]) -> str:
    """A plan of nothing, and these rows."""
    tables = [
        f"[[{name}]]\n" + "\n".join(f"{key} = {json.dumps(part)}" for key, part in each.items())
        for name, rows in more.items()
        for each in rows
    ]
    return NOTHING + "\n".join(tables)


@pytest.mark.parametrize(
    "edit, where",
    [
        (lambda text: text + "users = = 5", "plan.toml is no TOML: .*line 5"),
        (lambda text: text.replace("version = 1", "version = 2"), "plan.toml: version is 2"),
        (lambda text: text.replace("version = 1\n", ""), "plan.toml: version is None"),
        (lambda text: text + "speed = 5\n", "plan.toml: speed: Plan has no such field"),
        (
            lambda text: text + "users = [{source = 1}, {name = 'B'}]\n",
            r"plan.toml: users\[2\]: UserMatch lacks source",
        ),
        (
            lambda text: text + "users = [{source = 1, targt = 2}]\n",
            r"plan.toml: users\[1\].targt: UserMatch has no such",
        ),
        (lambda text: text + "users = [{source = 1}, {source = 1}]\n", "plan.toml: users: 1 is there twice"),
        (lambda text: text + "users = [{source = 1, target = 1.5}]\n", r"plan.toml: users\[1\].target"),
        (lambda text: text + "users = 5\n", "plan.toml: users.*expected an object"),
        (lambda text: text + "moves.contacts = -1\n", "plan.toml: .*moves.contacts is a number of rows, not -1"),
        (
            lambda text: text + "stages = [{stage = 1}, {stage = 1}]\n",
            "stages: stage 1 of pipeline None is there twice",
        ),
        (lambda text: text + "fields = [{entity = 'contact'}]\n", r"fields\[1\]: it has neither its id"),
        (lambda text: text + "fields = [{entity = 'car', source = 1}]\n", r"fields\[1\].entity: 'car' is none of"),
        (
            lambda text: text + "fields = [{entity = 'deal', source = 1, options = {a = 1}}]\n",
            r"fields\[1\]: options.a is a",
        ),
        (
            lambda text: text + "losses = [{what = 'deal.price', rows = 1, choice = 'field'}]\n",
            'losses: deal.price cannot have choice = "field" in amoCRM v2: fold or archive or drop',
        ),
        (
            lambda text: text + "losses = [{what = 'notes', rows = 1, choice = 'fold'}]\n",
            'losses: notes cannot have choice = "fold" in amoCRM v2: archive or drop',
        ),
        (
            lambda text: text + "losses = [{what = 'deal.price', rows = 1, choice = 'burn'}]\n",
            r"losses\[1\].*'burn'",
        ),
        (lambda text: text + "marker = 'field'\n", 'marker: amoCRM v2 cannot keep "field": tag or off'),
        (
            lambda text: (
                text + "losses = [{what = 'note.kind', rows = 1, choice = 'fold'}, {what = 'note.params', rows = 1}]\n"
            ),
            "all of it: choose one",
        ),
        (lambda text: text + "quarantine = -1\n", "plan.toml: .*'quarantine' must be >= 0"),
        (lambda text: text + "quarantine = inf\n", "plan.toml: .*'quarantine' must be < inf"),
        (lambda text: text + "quarantine = true\n", "plan.toml: quarantine: expected int or float, got True"),
        (lambda text: text + "marker = 'label'\n", "plan.toml: .*'marker' must be in"),
        (lambda text: text + "allow = ['anything']\n", "plan.toml: .*'allow' must be in"),
        (lambda text: text.replace("2026-03-01T09:00:00Z", "yesterday"), "plan.toml: made: .*yesterday"),
        (lambda text: text.replace('account = "a", ', ""), "plan.toml: source: Side lacks account"),
    ],
)
def test_nonsense_in_the_file_is_named_with_its_place(edit: Callable[[str], str], where: str) -> None:
    assert from_toml(NOTHING).unmatched == "me"
    with pytest.raises(Misconfigured, match=where):
        from_toml(edit(NOTHING), "plan.toml")


@pytest.mark.asyncio
async def test_a_plan_of_other_accounts_and_one_that_is_outdated_say_so() -> None:
    async with two("kommo", "amocrm") as (reading, writing, *_):
        made = await draft(reading, writing)
        assert made.of_others(reading, writing) == made.outdated(reading, writing) == []
        swapped = made.of_others(writing, reading)
        assert len(swapped) == 2
        assert "the source of the plan is kommo at http://localhost:8000, and not amocrm" in swapped[0]
        old = evolve(made, target=evolve(made.target, capabilities="0"))
        assert old.outdated(reading, writing) == ["what amoCRM v2 can do has changed since the plan was made"]


def test_an_account_is_called_as_its_address_says() -> None:
    from crmclient import connect
    from crmclient.migration.plan import _side
    from crmclient.vocabulary import Account

    acme = _side(connect("kommo", "acme", credentials="x"), Account(currency="EUR"))
    assert (acme.account, acme.currency, acme.origin) == ("acme", "EUR", "crm:kommo:acme:")


def test_values_of_a_field_of_the_same_code_take_the_type_it_has_there() -> None:
    text = _nothing(fields=[{"entity": "contact", "source": 1, "type": "text", "target": 9, "target_type": "url"}])
    with Seen() as seen:
        words = Translation(dialect("kommo"), dialect("kommo"), from_toml(text).words(), seen)
        row = Contact(id=1, name="A", fields=FieldValue("x", field=Ref(Kind.FIELD, 1)))
        assert words(row).row.fields == (FieldValue("x", field=Ref(Kind.FIELD, 9), type=FieldType.URL),)


# ------------------------------------------------------------------------------------------------------ the command


def run(*words: str, env: dict[str, str]) -> Result:
    return CliRunner().invoke(commands(), ["plan", *words], env=env)


@pytest.mark.e2e
def test_the_command_writes_nothing_but_the_plan(tmp_path: Path, unpaced: None) -> None:
    with World(clock=SystemClock()) as full, World(clock=SystemClock()) as empty:
        populate(full, contacts=6, companies=2, deals=4, tasks=3, notes=3, seed=4)
        full.add(
            "contact", {"name": "\x1b[31mred", "owner": full.add("user", {"name": "Gone", "email": "g@x.example"})}
        )
        with served(face("kommo"), full, limits=False) as old, served(face("electrum"), empty, limits=False) as new:
            env = environment(tmp_path, old=old, new=new)
            out = tmp_path / "plan.toml"
            done = run("old", "new", "--out", str(out), env=env)
            assert done.exit_code == 0, done.output
            assert "\x1b" not in done.stdout
            assert "contact.position" in done.stdout
            assert "! 1 users have no like in the target" in done.stdout
            assert f"written to {out}" in done.stderr
            made = from_toml(out.read_text(encoding="utf-8"))
            assert made.moves == {"contacts": 7, "deals": 4, "tasks": 3}
            assert not any(call.startswith(("POST", "PUT", "PATCH")) for call in [*old.stats.calls, *new.stats.calls])
            assert "may have been edited" in run("old", "new", "--out", str(out), env=env).stderr

            users = tmp_path / "users.csv"
            users.write_text("# source,target\ng@x.example,Anna Lindqvist\n", encoding="utf-8")
            ways = ("--unmatched", "refuse", "--marker", "off", "--allow", "not empty", "--quarantine", "1.5")
            told = run("old", "new", "--users", str(users), *ways, "--json", env=env)
            assert told.exit_code == 0, told.output
            tree = json.loads(told.stdout)
            assert (tree["refused"], tree["moves"], tree["hindrances"]) == (False, dict(made.moves), [])
            assert (tree["marker"], tree["allow"], tree["quarantine"]) == ("off", ["not empty"], 1.5)
            kept = json.loads(run("old", "new", "--choose", "contact.*=archive", "--json", env=env).stdout)
            chosen = {loss["what"]: loss["choice"] for loss in kept["losses"]}
            assert (chosen["contact.position"], chosen["notes"]) == ("archive", "drop")
            for wrong, why in (("contact.position=burn", "a choice is"), ("notes=fold", "cannot have choice 'fold'")):
                assert why in run("old", "new", "--choose", wrong, env=env).stderr
            refused = run("old", "new", "--unmatched", "refuse", env=env)
            assert refused.exit_code == 1
            assert refused.stdout.count('unmatched = "refuse": nothing is to be moved so') == 1
            assert "✗ 1 users have no like in the target" in refused.stdout
            users.write_text("g@x.example\n", encoding="utf-8")
            assert (
                "users.csv, line 1: each line is source,target"
                in run("old", "new", "--users", str(users), env=env).stderr
            )
            same = run("old", "old", env=env)
            assert (same.exit_code, "are the same account" in same.stderr) == (7, True)
            # Where it cannot be written nothing is read for it.
            asked = old.stats.requests
            nowhere = run("old", "new", "--out", str(tmp_path / "no" / "plan.toml"), env=env)
            assert (nowhere.exit_code, "there is no folder" in nowhere.stderr) == (7, True)
            assert old.stats.requests == asked


def environment(folder: Path, **running: Any) -> dict[str, str]:
    """Two profiles of sandboxes, with their tokens."""
    lines = [
        f'[profiles.{name}]\ndialect = "{each.face.name}"\nbase_url = "{each.base_url}"\n'
        for name, each in running.items()
    ]
    file = folder / "crmclient.toml"
    file.write_text("\n".join(lines), encoding="utf-8")
    tokens = {f"CRMCLIENT_{name.upper()}_TOKEN": each.credentials["token"] for name, each in running.items()}
    return {"CRMCLIENT_CONFIG": str(file), "XDG_STATE_HOME": str(folder / "state"), **tokens}
