"""The world keeps what it is given, all or nothing, and answers about 100,000 rows without reading them."""

import gc
import itertools
import re
from datetime import timedelta
from pathlib import Path

import pytest

import crmclient.sandbox
from crmclient.clock import FakeClock
from crmclient.sandbox import world as world_module
from crmclient.sandbox.server import FixedMinute, SlidingLimit, Stats, Verdict
from crmclient.sandbox.world import KINDS, LOST, WON, Absent, Contains, Not, Range, World, populate


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def world(clock):
    with World(clock=clock) as world:
        yield world


def now(clock):
    return int(clock.now().timestamp())


def test_a_fresh_world_has_what_an_account_begins_with(world):
    assert world.account["zone"] == "Europe/Moscow"
    users = world.select("user")
    assert [user["admin"] for user in users] == [True, False, False]
    assert world.admin == users[0]
    pipelines = world.select("pipeline")
    assert [pipeline["main"] for pipeline in pipelines] == [True, False]
    for pipeline in pipelines:
        stages = world.select("stage", where={"pipeline_id": pipeline["id"]}, order="sort")
        assert [stage["type"] for stage in stages][:2] == ["unsorted", "open"]
        assert [(stage["id"], stage["type"]) for stage in stages][-2:] == [(WON, "won"), (LOST, "lost")]
        assert len({stage["slug"] for stage in stages}) == len(stages)
    assert [kind["id"] for kind in world.select("task_type")] == [1, 2]
    codes = {field["code"]: field for field in world.select("field", where={"entity": "contact"}) if field["code"]}
    assert {code: field["type"] for code, field in codes.items()} == {
        "PHONE": "multitext",
        "EMAIL": "multitext",
        "POSITION": "text",
    }
    assert [enum["code"] for enum in codes["PHONE"]["enums"]] == ["WORK", "WORKDD", "MOB", "FAX", "HOME", "OTHER"]
    for entity in ("contact", "company", "deal"):
        types = {row["type"] for row in world.select("field", where={"entity": entity, "code": None})}
        assert types == {"text", "numeric", "select", "date"}


def test_no_two_rows_or_enums_of_an_account_share_an_id_but_the_ends_of_pipelines(world):
    ids = [row["id"] for kind in KINDS for row in world.select(kind) if row["id"] > LOST]
    ids += [enum["id"] for field in world.select("field") for enum in field["enums"]]
    assert len(set(ids)) == len(ids)


def test_ids_grow_and_have_gaps(world):
    ids = world.add_many("contact", [{"name": str(n)} for n in range(50)])
    assert ids == sorted(set(ids))
    assert ids[-1] - ids[0] > 60


def test_ids_can_grow_by_chance_and_the_same_seed_gives_the_same(clock):
    def ids(seed):
        with World(clock=clock, sparse=seed) as world:
            populate(world, contacts=40)
            with world.copy() as copy:
                assert copy.next_id() == world.next_id()
            return [row["id"] for row in world.select("contact")]

    grown = ids(7)
    steps = {after - before for before, after in itertools.pairwise(grown)}
    assert grown == sorted(grown) == ids(7) != ids(8)
    assert len(steps) > 30
    assert min(steps) >= 1
    assert max(steps) > 500


def test_what_a_lagging_search_has_not_got_round_to_is_asked_by_when_ids_were_given_out(world, clock):
    first = world.add("contact", {"name": "A"})
    clock.advance(10)
    second = world.add("contact", {"name": "A"})
    with pytest.raises(ZeroDivisionError), world.transaction():
        world.add("contact", {"name": "never"})
        raise ZeroDivisionError
    clock.advance(10)
    assert (world.newest_at(-1) < first, world.newest_at(5), world.newest_at(10)) == (True, first, second)
    assert world.newest_at(20) == world.newest == second
    where = {"name": "A", "id": [first, second], "indexed": Range(high=world.newest_at(5))}
    assert [row["id"] for row in world.select("contact", where=where)] == [first]


def test_a_row_comes_back_with_every_key_and_the_time_it_was_made(world, clock):
    id = world.add("contact", {"name": "Иван"})
    row = world.get("contact", id)
    assert set(row) == {"id", *KINDS["contact"]}
    assert row["created_at"] == row["updated_at"] == now(clock)
    assert row["owner"] == row["created_by"] == world.admin["id"]
    assert row["deleted"] is False


def test_a_row_shares_nothing_with_what_was_handed_in(world):
    given = {"name": "A", "tags": ["x"]}
    id = world.add("contact", given)
    given["tags"].append("y")
    changes = {"tags": ["z"]}
    world.update("contact", id, changes)["tags"].append("w")
    assert world.get("contact", id)["tags"] == ["z"]
    assert world.get("contact", world.add("contact", {}))["phones"] == []


def test_a_key_the_kind_does_not_have_is_refused_by_name(world):
    with pytest.raises(ValueError, match="phone"):
        world.add("contact", {"phone": "+7"})
    with pytest.raises(ValueError, match="no kind 'lead'"):
        world.add("lead", {})
    with pytest.raises(ValueError, match="has no colour"):
        world.select("deal", where={"colour": 1})


def test_many_are_added_or_none(world):
    before = world.next_id()
    taken = world.add("contact", {"name": "first"})
    with pytest.raises(ValueError, match="already"):
        world.add_many("contact", [{"name": "a", "tags": ["fresh"]}, {"name": "b", "id": taken}])
    assert world.count("contact") == 1
    assert world.count("tag", {"name": "fresh"}) == 0
    assert world.add("contact", {"tags": ["fresh"]}) > taken > before
    assert world.count("tag", {"name": "fresh"}) == 1


def test_many_are_changed_or_none(world):
    a, b = world.add_many("contact", [{"name": "a"}, {"name": "b"}])
    with pytest.raises(Absent):
        world.update_many("contact", [(a, {"name": "x"}), (b + 1000, {"name": "y"})])
    assert world.get("contact", a)["name"] == "a"
    assert [row["name"] for row in world.update_many("contact", [(a, {"name": "x"}), (b, {"name": "y"})])] == ["x", "y"]


def test_a_transaction_takes_everything_inside_back(world):
    def fail():
        with world.transaction():
            world.add("contact", {"name": "gone"})
            with world.transaction():
                world.tag_id("deal", "gone")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert world.count("contact") == world.count("tag") == 0


def test_a_change_moves_updated_at_unless_it_is_given(world, clock):
    id = world.add("deal", {"name": "d"})
    clock.advance(60)
    assert world.update("deal", id, {"price": "10.50"})["updated_at"] == now(clock)
    assert world.update("deal", id, {"updated_at": 5})["updated_at"] == 5
    assert world.get("deal", id)["created_at"] == now(clock) - 60
    with pytest.raises(ValueError, match="cannot change"):
        world.update("deal", id, {"id": id + 1})


def test_a_stage_is_found_by_its_pipeline_and_its_id(world):
    first, second = (pipeline["id"] for pipeline in world.select("pipeline"))
    world.update("stage", (first, WON), {"name": "Ура"})
    assert world.get("stage", (first, WON))["name"] == "Ура"
    assert world.get("stage", (second, WON))["name"] != "Ура"
    with pytest.raises(TypeError):
        world.get("stage", WON)
    assert world.delete("stage", (second, WON))
    assert world.get("stage", (first, WON)) is not None


def test_rows_are_asked_for_by_value_membership_range_and_text(world):
    ids = world.add_many(
        "contact",
        [
            {
                "name": "Ёлкин",
                "updated_at": 10,
                "position": "CEO",
                "phones": [{"value": "+7 (912) 000", "label": "work"}],
            },
            {"name": "Smith", "updated_at": 20, "company": "Acme"},
            {"name": "O'Brien", "updated_at": 30, "deleted": True},
        ],
    )

    def found(where):
        return [ids.index(row["id"]) for row in world.select("contact", where=where)]

    assert found({"name": "O'Brien"}) == [2]
    assert found({"deleted": False}) == [0, 1]
    assert found({"id": ids[:2]}) == [0, 1]
    assert found({"id": []}) == []
    assert found({"company": None}) == [0, 2]
    assert found({"company": {"Acme", None}}) == [0, 1, 2]
    assert found({"updated_at": Range(20)}) == [1, 2]
    assert found({"updated_at": Range(high=20), "deleted": False}) == [0, 1]
    assert found({"updated_at": Range(11, 19)}) == []
    assert found({"position": "CEO"}) == [0]
    assert found({"search": Contains("ёЛК")}) == [0]
    assert found({"search": Contains("7912")}) == [0]
    assert found({"name": Contains("smi")}) == [1]
    assert found({"company": Not("Acme")}) == [0, 2]
    assert found({"id": Not(ids[:2])}) == [2]
    assert found([{"name": "Smith"}, {"updated_at": 10}]) == [0, 1]
    assert found([]) == []
    assert world.count("contact", [{"name": "Smith"}, {"name": "Nobody"}]) == 1


def test_ids_longer_than_sqlite_has_bits_are_nobodys(world):
    assert world.get("contact", 10**30) is None
    assert not world.delete("contact", 10**30)
    assert world.select("contact", where={"id": 10**30}) == []
    assert world.select("contact", where={"id": [10**30]}) == []


def test_rows_come_in_order_with_ties_by_id(world):
    ids = world.add_many("contact", [{"updated_at": stamp} for stamp in (3, 1, 3, 2)])

    def order(**how):
        return [ids.index(row["id"]) for row in world.select("contact", **how)]

    assert order() == [0, 1, 2, 3]
    assert order(order="updated_at") == [1, 3, 0, 2]
    assert order(order="updated_at", descending=True) == [2, 0, 3, 1]
    assert order(order="updated_at", limit=2, offset=1) == [3, 0]
    assert order(offset=3) == [3]


def test_deals_are_found_by_their_contacts_and_forget_those_that_are_gone(world):
    a, b = world.add_many("contact", [{}, {}])
    both = world.add("deal", {"contacts": [{"id": a, "main": True}, {"id": b, "main": False}], "updated_at": 7})
    one = world.add("deal", {"contacts": [{"id": b, "main": True}]})
    assert [deal["id"] for deal in world.select("deal", where={"contact": a})] == [both]
    assert world.count("deal", {"contact": [a, b]}) == 2
    world.update("deal", one, {"contacts": []})
    assert world.count("deal", {"contact": b}) == 1
    assert world.delete("contact", a)
    assert not world.delete("contact", a)
    assert world.get("deal", both)["contacts"] == [{"id": b, "main": False}]
    assert world.get("deal", both)["updated_at"] == 7


def test_a_company_that_is_gone_is_nobodys_company(world):
    firm = world.add("company", {"name": "F"})
    person = world.add("contact", {"company_id": firm})
    world.delete("company", firm)
    assert world.get("contact", person)["company_id"] is None


def test_a_tag_has_one_id_for_each_kind_of_card(world):
    world.add_many("contact", [{"tags": ["VIP", "новый"]}, {"tags": ["VIP"]}])
    world.add("deal", {"tags": ["VIP"]})
    assert world.count("tag", {"entity": "contact"}) == 2
    assert world.tag_id("contact", "VIP") == world.tag_id("contact", "VIP") != world.tag_id("deal", "VIP")


def test_a_world_on_a_file_goes_on_where_it_was(tmp_path, clock):
    path = str(tmp_path / "world.db")
    with World(path, clock=clock) as world:
        last = world.add("contact", {"name": "kept", "tags": ["t"]})
        tag = world.tag_id("contact", "t")
    with World(path, clock=clock) as again:
        assert again.get("contact", last)["name"] == "kept"
        assert again.tag_id("contact", "t") == tag
        assert again.count("user") == 3
        assert again.add("contact", {}) > last


def test_a_forgotten_world_closes_itself(clock):
    World(clock=clock)
    gc.collect()


def test_populating_twice_gives_the_same_account_whatever_the_hour():
    def everything(seed, later):
        clock = FakeClock()
        clock.step(timedelta(days=later))
        with World(clock=clock) as world:
            populate(world, contacts=300, companies=20, deals=60, tasks=40, notes=40, seed=seed)
            return {kind: world.select(kind) for kind in KINDS}

    assert everything(1, 0) == everything(1, 100)
    assert everything(1, 0) != everything(2, 0)


def test_a_populated_account_has_what_was_asked_for_and_links_that_hold(world):
    populate(world, contacts=500, companies=40, deals=120, tasks=60, notes=60)
    sizes = {kind: world.count(kind) for kind in ("contact", "company", "deal", "task", "note")}
    assert sizes == {"contact": 500, "company": 40, "deal": 120, "task": 60, "note": 60}
    for contact in world.select("contact"):
        firm = contact["company_id"] and world.get("company", contact["company_id"])
        assert (firm["name"] if firm else None) == contact["company"]
    deals = world.select("deal")
    for deal in deals:
        stage = world.row("stage", (deal["pipeline_id"], deal["stage_id"]))
        assert (deal["closed_at"] is not None) == (stage["type"] in ("won", "lost"))
        assert all(world.get("contact", link["id"]) for link in deal["contacts"])
        assert [link["main"] for link in deal["contacts"]][:1] in ([], [True])
    assert len({deal["pipeline_id"] for deal in deals}) == 2
    assert {0} < {deal["price"] for deal in deals}
    tasks = world.select("task")
    assert {task["done"] for task in tasks} == {True, False}
    assert {task["target_kind"] for task in tasks} == {None, "deal", "contact"}
    assert all(world.get(task["target_kind"], task["target_id"]) for task in tasks if task["target_kind"])
    contacts = world.select("contact")
    assert [row["created_at"] for row in contacts] == sorted(row["created_at"] for row in contacts)
    assert all(row["created_at"] <= row["updated_at"] for row in contacts + deals + tasks)
    enums = {enum["id"]: enum["value"] for field in world.select("field") for enum in field["enums"]}
    chosen = [item for row in contacts for values in row["fields"].values() for item in values if "enum_id" in item]
    assert chosen
    assert all(enums[item["enum_id"]] == item["value"] for item in chosen)


def test_a_populated_account_has_ugly_rows(world):
    populate(world, contacts=400)
    rows = world.select("contact")
    names = [row["name"] for row in rows]
    assert any(len(name) > 200 for name in names)
    assert any("🦄" in name for name in names)
    assert any(re.search("[\u0600-\u06ff]", name) for name in names)
    assert any("&" in name and '"' in name for name in names)
    assert len(set(names)) < len(names)
    assert any(not row["phones"] for row in rows)
    assert any(not row["last_name"] for row in rows)
    assert any(" " in tag for row in rows for tag in row["tags"])


@pytest.mark.parametrize("companies", [1, 60, 250])
def test_there_are_exactly_as_many_company_names_as_asked(world, companies):
    populate(world, contacts=250, companies=companies, as_rows=False)
    rows = world.select("contact")
    assert len({row["company"] for row in rows if row["company"]}) == companies
    assert all(row["company_id"] is None for row in rows)
    assert world.count("company") == 0


@pytest.mark.parametrize(
    "where, order",
    [
        ("deleted = 0", "id"),
        ("deleted = 0", "updated_at DESC, id DESC"),
        ("deleted = 0 AND updated_at >= 5", "id"),
        ("deleted = 0 AND owner = 5", "id"),
    ],
)
def test_a_far_page_is_found_without_reading_the_rows_before_it(world, where, order):
    plan = world._db.execute(
        f"EXPLAIN QUERY PLAN SELECT rowid FROM contact WHERE {where} ORDER BY {order} LIMIT 100 OFFSET 99000"
    ).fetchall()
    assert "COVERING INDEX" in plan[0][3]
    assert not any("TEMP B-TREE" in step[3] for step in plan)


def test_the_world_and_its_server_name_no_vendor():
    folder = Path(crmclient.sandbox.__file__).parent
    for module in ("world.py", "server.py"):
        text = (folder / module).read_text().lower()
        assert not [name for name in ("kommo", "amocrm", "amoxml", "electrum") if name in text]
    assert world_module.__doc__


def test_a_sliding_limit_counts_refused_calls_and_bans_who_goes_on(clock):
    limit = SlidingLimit(2, 1.0, clock, violations=3)

    def arrive(after):
        clock.advance(after)
        return limit.arrive()

    assert [arrive(0), arrive(0.5), arrive(0.499)] == [Verdict.WELCOME, Verdict.WELCOME, Verdict.REFUSED]
    # At 1.25 the refused one of 0.999 and that of 0.5 are still within the second.
    assert arrive(0.251) is Verdict.REFUSED
    assert limit.wait() == pytest.approx(0.749)
    assert arrive(1.0) is Verdict.WELCOME
    assert [arrive(0), arrive(0), arrive(0)] == [Verdict.WELCOME, Verdict.REFUSED, Verdict.BANNED]
    clock.advance(1000)
    assert limit.arrive() is Verdict.BANNED
    limit.lift()
    assert limit.arrive() is Verdict.WELCOME


SMALL = {"contacts": 7, "companies": 3, "deals": 5, "tasks": 4, "notes": 6}


def contents(world):
    return {kind: world.select(kind) for kind in KINDS}


def test_a_copy_has_the_same_rows_and_goes_its_own_way(clock, world):
    populate(world, **SMALL)
    with world.copy() as copy:
        assert contents(copy) == contents(world)
        assert copy.clock is world.clock
        before, person = contents(world), copy.select("contact", limit=1)[0]["id"]
        copy.update("contact", person, {"name": "only here", "tags": ["only here"]})
        assert contents(world) == before
        # Both go on where the one stood: with the same next id, and each with tags of its own.
        assert world.tag_id("contact", "only here") == before_last(copy)
    with world.copy(clock=FakeClock()) as other:
        assert other.clock is not world.clock


def before_last(world):
    """The last id that was given out."""
    return max(row["id"] for rows in contents(world).values() for row in rows)


def test_what_is_populated_twice_is_the_same_and_not_shared(clock):
    with World(clock=clock) as first, World(clock=FakeClock()) as second:
        populate(first, **SMALL)
        populate(second, **SMALL)
        assert contents(first) == contents(second)
        first.delete("contact", first.select("contact", limit=1)[0]["id"])
        assert second.count("contact") == first.count("contact") + 1 == SMALL["contacts"]
        with World(clock=clock) as third:
            populate(third, **SMALL)
            assert contents(third) == contents(second)


def test_populating_a_world_that_has_rows_keeps_them(clock, tmp_path):
    file = str(tmp_path / "world.sqlite")
    with World(file, clock=clock) as world:
        hers = world.add("contact", {"name": "hers"})
        populate(world, **SMALL)
        populate(world, **SMALL)
        assert world.count("contact") == 1 + 2 * SMALL["contacts"]
    with World(file, clock=clock) as world:
        populate(world, **SMALL)
        assert world.count("contact") == 1 + 3 * SMALL["contacts"]
        assert world.row("contact", hers)["name"] == "hers"


def test_what_is_populated_from_memory_is_what_is_made_row_by_row(clock, world):
    # A transaction is open, so nothing can be copied into the world: each row is added.
    with world.transaction(), World(clock=clock) as copied:
        populate(world, **SMALL)
        populate(copied, **SMALL)
        assert contents(world) == contents(copied)
        assert world.next_id() == copied.next_id()


def test_a_fixed_minute_begins_anew_with_the_next(clock):
    limit = FixedMinute(2, clock)
    clock.advance(59)
    assert [limit.arrive(), limit.arrive(), limit.arrive()] == [Verdict.WELCOME, Verdict.WELCOME, Verdict.REFUSED]
    assert limit.wait() == 1
    clock.advance(1)
    assert limit.arrive() is Verdict.WELCOME


def test_stats_know_the_worst_window_and_who_came_too_early():
    stats = Stats()
    assert stats.worst(1) == 0
    for at in (0.0, 0.25, 0.5, 1.0, 1.25, 10.0):
        stats.arrived("GET", "/contacts/12/notes/3", at)
    stats.answered(200)
    stats.answered(429)
    # A window excludes its far end: the request at 1.0 does not meet the one at 0.0.
    assert stats.worst(1.0) == 3
    assert stats.over(3, 1.0) == 0
    assert stats.over(2, 1.0) == 3
    assert stats.requests == 6
    assert stats.refused == 1
    assert stats.calls == {"GET /contacts/{id}/notes/{id}": 6}
