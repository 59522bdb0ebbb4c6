"""The demo is what it shows: a process that SIGKILL takes in the middle of a create, and one that goes on."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import crmclient.cli.demo as demo_module
from crmclient import Contact, Kind, Outcome, Pipeline, Ref, Stage, User
from crmclient.cli import commands
from crmclient.cli.demo import Killer, client_of, environment, furnished
from crmclient.clock import FakeClock
from crmclient.entities import FieldType
from crmclient.migration.costs import batch, batches, pages, reads, writes
from crmclient.migration.ledger import Fresh, Ledger
from crmclient.migration.matching import match_fields, match_stages, match_users, named_company
from crmclient.profiles import load
from crmclient.registry import dialect
from crmclient.sandbox.faults import Action
from crmclient.sandbox.server import face, in_process
from crmclient.sandbox.world import World
from crmclient.vocabulary import Field

# -------------------------------------------------------------------------------------------------------- the killing


class Shot:
    """A process that remembers being killed."""

    killed = 0

    def kill(self) -> None:
        self.killed += 1


@pytest.mark.parametrize("goal", ["amocrm", "amoxml", "electrum", "kommo"])
def test_it_dies_of_the_create_that_passes_the_middle_and_of_no_other_request(goal: str, tmp_path: Path) -> None:
    with World(clock=FakeClock()) as world, Ledger(tmp_path / "ledger", durable=False) as ledger:
        target, process = in_process(face(goal), world), Shot()
        killer = Killer(dialect(goal), target, ledger.path, rows=10)
        creates = {kind: at for at, kind in killer.creates.items()}
        assert target.faults.next(*creates["contacts"]) is None  # nobody to be shot at yet
        killer.process = process  # pyright: ignore[reportAttributeAccessIssue]
        rows = [Fresh(kind="contacts", source=id, row=Contact(id=id, name="A")) for id in range(1, 11)]
        ledger.ingest(rows)
        ledger.intend("contacts", (1, 2, 3), 0, world.clock.now())
        assert target.faults.next(*creates["contacts"]) is None  # three of ten
        ledger.intend("contacts", (4,), 0, world.clock.now())
        world.add("contact", {"name": "A"})
        assert target.faults.next("GET", creates["contacts"][1]) is None
        assert target.faults.next(*creates["deals"]) is None  # none of them is on its way
        assert process.killed == 0
        due = target.faults.next(*creates["contacts"])
        assert due is not None
        assert due.action is Action.KILL_AFTER
        target.faults.kill(due)
        assert (process.killed, killer.killed) == (1, True)
        assert target.faults.next(*creates["contacts"]) is None  # it dies once


@pytest.mark.parametrize("name", ["amocrm", "amoxml", "electrum", "kommo"])
def test_the_commands_find_the_sandboxes_and_no_secret_is_in_the_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRMCLIENT_TOKEN", "somebody's own")
    with World(clock=FakeClock()) as world:
        running = in_process(face(name), world)
        env = environment(tmp_path, {"source": (dialect(name), running)})
        file = Path(env["CRMCLIENT_CONFIG"])
        profile = load(file, env)["source"]
        assert profile.address == running.base_url
        assert (profile.zone is None) == ("account" in dialect(name).settings)
        secret = running.credentials.get("token") or running.credentials["hash"]
        assert secret in env.values()
        assert secret not in file.read_text("utf-8")
        # What is set for accounts of one's own has no say here, and their pace and tokens stay where they are.
        assert "CRMCLIENT_TOKEN" not in env
        assert profile.pace.is_relative_to(tmp_path)
        assert profile.tokens.is_relative_to(tmp_path)


@pytest.mark.asyncio
async def test_a_sandbox_is_furnished_in_proportion() -> None:
    with furnished(30, 1, dialect("kommo")) as world:
        assert Counter({kind: world.count(kind) for kind in ("company", "contact", "deal", "task", "note")}) == Counter(
            company=4, contact=30, deal=20, task=15, note=15
        )
        running = in_process(face("kommo"), world)
        async with client_of(dialect("kommo"), running, transport=running.transport()) as crm:
            assert len([row async for row in crm.deals.list()]) == 20


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
    # Two batches, one of ties and one of their dates.
    assert writes(electrum, kommo, "contacts", 251, ties=250) == 4
    assert reads(electrum, ["contacts", "deals"], {"contacts": 251}) == 3 + 1


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
@pytest.mark.parametrize("ways", [(), ("--from", "kommo", "--to", "electrum")])
def test_each_row_is_there_once_after_a_kill_in_the_middle(ways: tuple[str, ...]) -> None:
    done = run("demo", *ways, "--rows", "5", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["equal"] is True
    assert found["verdict"]["sentence"].startswith("All ")
    total: Counter[str] = Counter()
    for told in found["kinds"].values():
        assert told["moves"] == told["same"]
        assert told["in_doubt"] == told["found_again"] + told["sent_again"]
        total.update(told)
    # Killed in the middle, with a create on its way that the target had carried out.
    assert total["at_the_kill"] < total["moves"]
    assert 2 * (total["at_the_kill"] + total["in_doubt"]) >= total["moves"]
    assert total["found_again"] > 0
    for side in ("source", "target"):
        spent = found["requests"][side]
        assert set(spent) == {"plan", "until the kill", "after it", "least"}
        assert sum(spent.values()) - spent["least"] >= spent["least"]
        # None, on a clock of its own; here a machine that stands still for a while may stamp one too many.
        assert found["refused_429"][side] <= 1


@pytest.mark.e2e
def test_it_tells_what_is_lost_what_was_in_doubt_and_the_sentence() -> None:
    done = run("demo", "--from", "kommo", "--to", "electrum", "--rows", "3")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    assert lines[0].startswith("Kommo API v4 → Electrum CRM REST v2: 7 rows (3 contacts, 2 deals, 2 tasks), over HTTP")
    assert lines[1].startswith("plan      lost: companies 1, contact.created_at 3, ")
    assert lines[2] == "migrate   crmclient migrate source target --plan plan.toml --yes"
    assert lines[3].startswith("SIGKILL   before the target could say that it had made a request's rows: ")
    assert lines[4].startswith("migrate   the same command again; a create may still land for 1 s here")
    assert lines[5].split() == ["read", "at", "the", "kill", "in", "doubt", "found", "again", "sent", "again", "same"]
    assert any(line.startswith("contacts") and line.split()[1] == "3" for line in lines)
    assert lines[-1].startswith("All 7 rows of 127.0.0.1:")
    assert "0 differ, 0 missing, 0 extra, 0 unreadable" in lines[-1]


def test_a_dialect_that_is_not_there_is_one_line() -> None:
    done = CliRunner().invoke(commands(), ["demo", "--to", "nothing"])
    assert done.exit_code == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "kommo" in done.stderr


@pytest.mark.e2e
@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is sent another way there")
@pytest.mark.parametrize("seconds", [1.5, 4.0])
def test_ctrl_c_leaves_no_process_no_file_and_no_traceback(seconds: float, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "crmclient", "demo", "--rows", "60"]
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    demo = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    time.sleep(seconds)
    demo.send_signal(signal.SIGINT)
    _, err = demo.communicate(timeout=30)
    assert demo.returncode == 130
    assert "Traceback" not in err
    assert "interrupted" in err
    assert list(tmp_path.iterdir()) == []
    assert [line for line in _running() if str(tmp_path) in line] == []


def _running() -> list[str]:
    """The command lines of all processes, where there is a /proc to look into."""
    found: list[str] = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(file.read_text(errors="replace"))
        except OSError:
            continue  # it has ended meanwhile
    return found


@pytest.mark.e2e
def test_what_a_crm_refuses_before_anything_is_moved_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    running = threading.active_count()
    real = demo_module.environment

    def stranger(*given: Any) -> dict[str, str]:
        return {**real(*given), "CRMCLIENT_TARGET_TOKEN": "wrong"}

    monkeypatch.setattr(demo_module, "environment", stranger)
    done = CliRunner().invoke(commands(), ["demo", "--from", "electrum", "--rows", "3"])
    assert done.exit_code == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert threading.active_count() == running


@pytest.mark.e2e
def test_a_move_that_ends_before_it_could_be_killed_says_why_and_with_what(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_module, "to_toml", lambda plan: "version = 99")
    done = CliRunner().invoke(commands(), ["demo", "--from", "electrum", "--rows", "3"])
    assert done.exit_code == 7
    assert "version" in done.stderr
    assert "error: the move ended with 7 before it could be killed" in done.stderr
