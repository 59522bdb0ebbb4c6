"""The demo believes nothing: what it counts is counted again here, and what it is refused it says."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from click.testing import CliRunner

import crmclient.cli.demo as demo_module
from crmclient import (
    Client,
    Contact,
    Kind,
    Outcome,
    Pipeline,
    Ref,
    Stage,
    Unavailable,
    User,
    connect,
)
from crmclient.cli import commands
from crmclient.cli.demo import Report, Tally, Told, client_of, least, move
from crmclient.clock import FakeClock
from crmclient.entities import FieldType
from crmclient.migration.costs import batch, batches, pages, reads
from crmclient.migration.matching import match_fields, match_stages, match_users, named_company
from crmclient.registry import dialect
from crmclient.sandbox.server import Running, face, in_process
from crmclient.sandbox.world import World, populate
from crmclient.vocabulary import Field


@asynccontextmanager
async def two(
    contacts: int, companies: int, deals: int, tasks: int, *, furnish: Callable[[World, World], None] | None = None
) -> AsyncIterator[tuple[Client, Client, Running, Running]]:
    """Both sandboxes, with their limits, in a time that only passes when everybody waits."""
    clock = FakeClock()
    with World(clock=clock) as full, World(clock=clock) as empty:
        populate(full, contacts=contacts, companies=companies, deals=deals, tasks=tasks, seed=1, as_rows=False)
        if furnish is not None:
            furnish(full, empty)
        source, target = in_process(face("electrum"), full), in_process(face("kommo"), empty)

        def client(name: str, sandbox: Running) -> Client:
            base_url = sandbox.base_url
            token = sandbox.credentials["token"]
            return connect(name, base_url=base_url, credentials=token, transport=sandbox.transport(), clock=clock)

        async with client("electrum", source) as reading, client("kommo", target) as writing:
            yield reading, writing, source, target


# ----------------------------------------------------------------------------------------------------------- moving


@pytest.mark.asyncio
async def test_everything_arrives_once_with_the_fewest_requests_and_no_429() -> None:
    async with two(330, 40, 220, 160) as (reading, writing, source, target):
        report = await move(reading, writing)
        assert report.equal, report.as_tree()
        assert {kind: tally.read_back for kind, tally in report.kinds.items()} == {
            "companies": 40,
            "contacts": 330,
            "deals": 220,
            "tasks": 160,
        }
        # users, pipelines; 4 + 3 + 2 pages of 100.
        assert report.requests["source"] == report.least["source"] == source.stats.requests == 11
        # users, pipelines; 1 + 2 + 1 + 1 batches and 1 of links and 1 of their dates (or 2, above 250 ties);
        # 1 + 2 + 1 + 1 pages of 250.
        ties = report.kinds["contacts"].links_expected
        assert report.least["target"] == 2 + 5 + 2 * batches(ties, 250) + 5
        assert report.requests["target"] == report.least["target"] == target.stats.requests
        assert source.stats.refused == target.stats.refused == 0
        assert report.rate_limited == {"source": 0, "target": 0}
        assert target.stats.worst(1.0) <= 7
        # The worlds agree: nothing is taken from the report alone.
        for kind in ("contact", "deal", "task"):
            assert target.world.count(kind) == source.world.count(kind)
        assert target.world.count("company") == 40
        assert {row["name"] for row in target.world.select("contact")} == {
            row["name"] for row in source.world.select("contact")
        }
        assert sum(row["company_id"] is not None for row in target.world.select("contact")) == ties


@pytest.mark.parametrize("origin, goal", [("amoxml", "kommo"), ("kommo", "amoxml"), ("amoxml", "amoxml")])
@pytest.mark.asyncio
async def test_each_card_is_opened_once_on_either_side_and_signing_in_is_counted(origin: str, goal: str) -> None:
    clock = FakeClock()
    with World(clock=clock) as full, World(clock=clock) as empty:
        populate(full, contacts=120, companies=3, deals=10, tasks=12, notes=12, seed=2, as_rows=origin != "amoxml")
        running = in_process(face(origin), full), in_process(face(goal), empty)
        sides = [
            client_of(dialect(name), each, transport=each.transport(), clock=clock)
            for name, each in zip((origin, goal), running, strict=True)
        ]
        async with sides[0] as reading, sides[1] as writing:
            report = await move(reading, writing)
        assert report.equal, report.as_tree()
        assert report.requests == report.least
        assert report.requests == {"source": running[0].stats.requests, "target": running[1].stats.requests}
        if origin == "amoxml":
            # A login, 2 + 1 pages of lists, and each card once, tasks and notes on it.
            assert report.requests["source"] == 1 + 2 + 1 + 120 + 10
        if goal == "amoxml" != origin:
            # Nobody has told the demo what a task is there: the first of what the vendor takes.
            assert report.invented["task.type"] == report.kinds["tasks"].written > 0


@pytest.mark.asyncio
async def test_what_the_target_requires_and_the_source_lacks_is_invented_and_said() -> None:
    async with two(20, 3, 10, 30) as (reading, writing, source, target):
        undated = {row["text"]: row for row in source.world.select("task") if row["due"] is None}
        report = await move(reading, writing)
        assert report.invented == {"task.due": len(source.world.select("task", where={"due": None}))}
        assert undated
        for row in target.world.select("task"):
            if row["text"] in undated and row["created_at"] == undated[row["text"]]["created_at"]:
                assert row["due"] == row["created_at"] + 86400
        done = [row["done"] for row in source.world.select("task")]
        assert [row["done"] for row in target.world.select("task")] == done
        assert report.equal


@pytest.mark.asyncio
async def test_a_refused_row_is_reported_and_the_others_go_on() -> None:
    def furnish(full: World, empty: World) -> None:
        contact = full.select("contact", limit=1)[0]["id"]
        full.add("task", {"text": "", "target_kind": "contact", "target_id": contact})

    async with two(5, 2, 3, 2, furnish=furnish) as (reading, writing, _, target):
        report = await move(reading, writing)
        tally = report.kinds["tasks"]
        assert (tally.read, tally.written, tally.refused, tally.read_back) == (3, 2, 1, 2)
        assert not report.equal
        assert any("text" in trouble for trouble in report.troubles)
        assert target.world.count("task") == 2


@pytest.mark.asyncio
async def test_a_nameless_contact_arrives_nameless() -> None:
    async with two(3, 1, 0, 0, furnish=lambda full, empty: _nameless(full)) as (reading, writing, _, target):
        report = await move(reading, writing)
        assert report.equal, report.as_tree()
        assert target.world.count("contact") == 4


def _nameless(full: World) -> None:
    full.add("contact", {"name": "", "company": "  Acme "})


@pytest.mark.asyncio
async def test_rows_that_were_there_before_are_too_many() -> None:
    async with two(3, 1, 2, 2, furnish=lambda full, empty: _one_deal(empty)) as (reading, writing, *_):
        report = await move(reading, writing)
        assert report.kinds["deals"].unexpected == 1
        assert not report.equal


def _one_deal(empty: World) -> None:
    pipeline = empty.select("pipeline")[0]["id"]
    stage = empty.select("stage", where={"pipeline_id": pipeline, "type": "open"})[0]["id"]
    empty.add("deal", {"name": "old", "pipeline_id": pipeline, "stage_id": stage})


@pytest.mark.asyncio
async def test_who_has_no_like_in_the_target_is_me_and_that_is_said() -> None:
    def furnish(full: World, empty: World) -> None:
        stranger = full.add("user", {"name": "Nobody Knows", "email": "n@elsewhere.example"})
        full.add("task", {"text": "call", "owner": stranger})

    async with two(3, 1, 2, 2, furnish=furnish) as (reading, writing, _, target):
        report = await move(reading, writing)
        assert report.mapped["users by nothing, so they are me"] == 1
        assert target.world.select("task", where={"owner": target.world.admin["id"]})
        assert report.equal


@pytest.mark.asyncio
async def test_progress_is_told_as_it_is_made() -> None:
    heard: list[tuple[str, str, int, int | None]] = []
    async with two(260, 2, 2, 2) as (reading, writing, *_):
        await move(reading, writing, lambda *told: heard.append(told))
    assert ("write", "contacts", 250, 260) in heard
    assert ("write", "contacts", 260, 260) in heard
    assert heard[-1][:2] == ("check", "tasks")


# --------------------------------------------------------------------------------------------------- pure functions


def pipeline(id: int, name: str, *stages: tuple[int | str, str, Outcome], main: bool = False) -> Pipeline:
    made = [Stage(id=at, name=label, sort=place, outcome=outcome) for place, (at, label, outcome) in enumerate(stages)]
    return Pipeline(id=id, name=name, main=main, stages=tuple(made))


OPEN, WON, LOST = Outcome.OPEN, Outcome.WON, Outcome.LOST
SALES = pipeline(
    1,
    "Sales",
    (10, "Unsorted", Outcome.UNSORTED),
    (11, "New", OPEN),
    (12, "Talks", OPEN),
    (142, "Won", WON),
    (143, "Lost", LOST),
    main=True,
)
OTHER = pipeline(2, "Other", (21, "New", OPEN), (142, "Won", WON), (143, "Lost", LOST))


def test_stages_go_by_name_within_the_pipeline_of_that_name() -> None:
    found = match_stages([pipeline(7, " other ", ("new", "NEW", OPEN))], [SALES, OTHER])
    assert found[7, "new"].pipeline == Ref(Kind.PIPELINE, 2)
    assert found[7, "new"].stage == Ref(Kind.STAGE, 21)
    assert found[7, "new"].how == "name"


def test_won_and_lost_go_by_outcome_whatever_they_are_called() -> None:
    found = match_stages([pipeline(7, "Sales", ("yes", "Hurra", WON), ("no", "Lost", LOST))], [SALES])
    assert (found[7, "yes"].stage.id, found[7, "yes"].how) == (142, "outcome")
    assert (found[7, "no"].stage.id, found[7, "no"].how) == (143, "name")


def test_a_stage_named_like_one_of_another_outcome_is_not_taken_for_it() -> None:
    found = match_stages([pipeline(7, "Sales", ("w", "Lost", WON))], [SALES])
    assert found[7, "w"].stage.id == 142


def test_open_stages_go_by_place_and_the_last_takes_the_rest() -> None:
    unknown = pipeline(7, "Nowhere", *((n, f"stage {n}", OPEN) for n in range(4)))
    found = match_stages([unknown], [OTHER, SALES])
    assert [found[7, n].stage.id for n in range(4)] == [11, 12, 12, 12]
    assert found[7, 0].how == "place, in the main pipeline"


def test_a_stage_without_a_like_is_left_out_and_an_account_without_pipelines_has_none() -> None:
    assert match_stages([pipeline(7, "Sales", ("u", "?", Outcome.UNSORTED))], [OTHER]) == {}
    assert match_stages([SALES], []) == {}


def test_users_go_by_e_mail_then_by_name() -> None:
    source = [User(id=1, name="A", email="A@x"), User(id=2, name=" b ", email="gone@x"), User(id=3, name="C")]
    target = [User(id=7, name="B", email="a@X"), User(id=8, name="A")]
    found = match_users(source, target)
    assert found[1] == (Ref(Kind.USER, 7), "e-mail")
    assert found[2] == (Ref(Kind.USER, 7), "name")
    assert 3 not in found


def test_companies_are_one_when_composed_and_trimmed_they_are_the_same() -> None:
    assert named_company(Contact(company=" Cafe\u0301 ").company) == named_company(Contact(company="Café").company)
    assert named_company(Contact(company="CAFÉ").company) != named_company(Contact(company="Café").company)
    assert named_company(None) == ""


def test_the_least_counts_full_pages_and_batches() -> None:
    assert [pages(n, 100) for n in (0, 1, 100, 101)] == [1, 1, 1, 2]
    assert [batches(n, 250) for n in (0, 1, 250, 251)] == [0, 1, 1, 2]
    electrum, kommo = dialect("electrum"), dialect("kommo")
    assert [batch(kommo, kind) for kind in ("companies", "contacts", "deals", "tasks", "notes")] == [250] * 5
    assert batch(electrum, "contacts") == 1
    report = Report(kinds={kind: Tally() for kind in ("companies", "contacts", "deals", "tasks")})
    contacts = report.kinds["contacts"]
    contacts.read = contacts.written = contacts.read_back = 251
    contacts.links_expected = 250
    found = least(electrum, kommo, report, settings={"source": 2, "target": 2})
    # Source: 3 pages, an empty one of deals and of tasks. Target: 2 batches, 1 of links, 1 of dates, 2 pages, 3 empty.
    assert found == {"source": 2 + 5, "target": 2 + 4 + 5}


def test_rows_that_live_under_others_cost_what_opening_those_costs() -> None:
    rows = {"contacts": 101, "deals": 20, "tasks": 10, "notes": 30}
    # Every contact and deal is opened, and both are listed to know which there are.
    assert reads(dialect("amoxml"), ["notes"], rows) == 2 + 101 + 1 + 20
    # Once, however many kinds of rows are on their cards, and their own list is read anyway.
    assert reads(dialect("amoxml"), rows, rows) == 2 + 101 + 1 + 20
    assert reads(dialect("amoxml"), ["contacts", "deals"], rows) == 2 + 1
    # One listing for each of three kinds of parents.
    assert reads(dialect("kommo"), ["notes"], rows) == 3
    # The empty page that ends a listing is asked for too.
    assert [reads(dialect("amocrm"), ["deals"], {"deals": n}) for n in (0, 1, 500, 501)] == [1, 2, 2, 3]


def test_custom_fields_go_by_code_then_by_name_and_type() -> None:
    def of(id: int, name: str, code: str | None = None, type: FieldType = FieldType.TEXT) -> Field:
        return Field(id=id, entity=Kind.CONTACT, name=name, code=code, type=type)

    source = [of(1, "A", "WEB"), of(2, " city"), of(3, "Age", type=FieldType.NUMBER), of(4, "Gone")]
    target = [of(11, "Site", "WEB"), of(12, "City"), of(13, "Age"), of(14, "A")]
    found = match_fields(source, target)
    assert {id: each.id for (_, id), each in found.items()} == {1: 11, 2: 12}


# ------------------------------------------------------------------------------------------------------ the command


def run(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "crmclient", *words], capture_output=True, text=True, check=False)


@pytest.mark.e2e
def test_the_command_prints_one_object_and_nothing_else() -> None:
    done = run("demo", "--rows", "60", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["equal"] is True
    assert found["kinds"]["contacts"]["read_back"] == 60
    for side in ("source", "target"):
        # None, on a clock of its own; here a machine that stands still for a while may stamp one too many.
        refused = found["rate_limited"][side]
        assert refused <= 1
        assert found["sandboxes"][side] == {"requests": found["requests"][side], "refused_429": refused}
        assert found["requests"][side] == found["least"][side] + refused


@pytest.mark.e2e
def test_the_table_says_what_arrived() -> None:
    done = run("demo", "--rows", "30")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert "lost fields     none" in done.stdout
    assert "Every row that was read is in the target as it was sent, once" in done.stdout


@pytest.mark.e2e
def test_any_dialect_moves_into_any_other_and_what_is_lost_is_named() -> None:
    done = run("demo", "--from", "kommo", "--to", "electrum", "--rows", "12")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Kommo API v4 → Electrum CRM REST v2" in done.stdout
    assert re.search(r"lost kinds +companies 2, notes 6: the target has no such rows", done.stdout)
    assert "companies as words on their contacts 2" in done.stdout
    assert "contact.first_name 12" in done.stdout
    assert "the kinds named above were lost, the fields named above were lost" in done.stdout


def test_a_dialect_that_is_not_there_is_one_line() -> None:
    done = CliRunner().invoke(commands(), ["demo", "--to", "nothing"])
    assert done.exit_code == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "kommo" in done.stderr


@pytest.mark.e2e
@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is sent another way there")
@pytest.mark.parametrize("seconds", [1.0, 2.0, 3.5])
def test_ctrl_c_ends_it_without_a_traceback(seconds: float) -> None:
    words = [sys.executable, "-m", "crmclient", "demo", "--rows", "3000"]
    demo = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(seconds)
    demo.send_signal(signal.SIGINT)
    out, err = demo.communicate(timeout=30)
    assert demo.returncode == 130
    assert out == ""
    assert "Traceback" not in err
    assert "interrupted" in err


@pytest.mark.e2e
def test_ctrl_c_says_what_was_done_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    running = threading.active_count()

    async def interrupted(source: Client, target: Client, told: Told, **more: Any) -> Report:
        def heard(doing: str, kind: str, rows: int, of: int | None) -> None:
            told(doing, kind, rows, of)
            if (doing, kind) == ("write", "contacts"):
                os.kill(os.getpid(), signal.SIGINT)

        return await move(source, target, heard)

    monkeypatch.setattr(demo_module, "move", interrupted)
    done = CliRunner().invoke(commands(), ["demo", "--rows", "300"])
    assert done.exit_code == 130
    assert done.stdout == ""
    assert "Read: 300 contacts, 200 deals, 150 tasks." in done.stderr
    assert "Known to be written: 40 companies, 250 contacts, no deals, no tasks." in done.stderr
    assert "Both sandboxes are stopped." in done.stderr
    assert threading.active_count() == running


@pytest.mark.e2e
def test_an_error_of_a_crm_ends_it_with_what_was_done(monkeypatch: pytest.MonkeyPatch) -> None:
    async def failing(source: Client, target: Client, told: Told, **more: Any) -> Report:
        told("write", "companies", 3, 3)
        raise Unavailable("the server failed", status=503)

    monkeypatch.setattr(demo_module, "move", failing)
    done = CliRunner().invoke(commands(), ["demo", "--rows", "3"])
    assert done.exit_code == 1
    assert "3 companies" in done.stderr
    assert "error: the server failed [HTTP 503]" in done.stderr


@pytest.mark.e2e
def test_an_account_of_forms_and_xml_moves_and_each_card_is_opened_once() -> None:
    done = run("demo", "--from", "amoxml", "--to", "kommo", "--rows", "12", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["equal"] is True
    assert found["requests"] == found["least"]
    # A login, two lists, and each contact and deal.
    assert found["requests"]["source"] == 3 + found["kinds"]["contacts"]["read"] + found["kinds"]["deals"]["read"]
