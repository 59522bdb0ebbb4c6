"""The move is run as people and scripts run it: asked first, stopped in the middle, gone on with, told of afterwards."""

import asyncio
import json
import os
import pty
import re
import select
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from attrs import evolve, frozen
from click.testing import CliRunner, Result
from rich.console import Console
from test_plan import environment

from crmclient import (
    AmbiguousWrite,
    AuthFailed,
    Banned,
    CRMError,
    DeadlineExceeded,
    Misconfigured,
    RateLimited,
    ReauthorizationRequired,
    Unavailable,
    Unreachable,
    Unreadable,
)
from crmclient.cli import commands
from crmclient.cli import migrate as module
from crmclient.cli.demo import client_of
from crmclient.clock import SYSTEM_CLOCK, Clock, FakeClock, SystemClock
from crmclient.dialect import Rate
from crmclient.migration.ledger import Ledger, LedgerFailed, Settled, State
from crmclient.migration.move import Event, run_of
from crmclient.migration.plan import Plan, Side, capabilities, plan, to_toml
from crmclient.migration.report import Report
from crmclient.migration.verify import Sign, Verdict
from crmclient.registry import dialect
from crmclient.sandbox.server import Running, face, served
from crmclient.sandbox.world import World, populate
from crmclient_kommo.sandbox import grants

KINDS = ("company", "contact", "deal", "task", "note")
ON_POSIX = pytest.mark.skipif(os.name == "nt", reason="signals are sent another way there")


@frozen
class Pair:
    """Two sandboxes, and the plan of a move between them."""

    old: Running
    new: Running
    file: Path
    plan: Plan

    @property
    def ledger(self) -> Path:
        return self.file.with_suffix(".ledger")

    def complete(self) -> None:
        """Each row is there once."""
        for kind in KINDS:
            texts = [
                Counter(row.get("name") or row.get("text") for row in side.world.select(kind))
                for side in (self.old, self.new)
            ]
            assert texts[0] == texts[1], kind

    def words(self, *more: str) -> list[str]:
        return with_words(*more)


def with_words(*more: str) -> list[str]:
    return ["migrate", "old", "new", "--plan", "my plan.toml", *more]


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unpaced: None) -> Iterator[Pair]:
    with World(clock=SystemClock()) as full, World(clock=SystemClock()) as empty:
        populate(full, contacts=9, companies=2, deals=4, tasks=3, notes=4, seed=4)
        with served(face("kommo"), full, limits=False) as old, served(face("kommo"), empty, limits=False) as new:
            for name in [name for name in os.environ if name.startswith("CRMCLIENT_")]:
                monkeypatch.delenv(name)
            for name, value in environment(tmp_path, old=old, new=new).items():
                monkeypatch.setenv(name, value)
            monkeypatch.setenv("COLUMNS", "200")
            monkeypatch.chdir(tmp_path)
            made = _between(_seen[0] if _seen else asyncio.run(_looked_at(old, new)), old, new)
            _seen[:] = [made]
            file = tmp_path / "my plan.toml"
            file.write_text(to_toml(made), encoding="utf-8")
            yield Pair(old, new, file, made)


# The rows are the same each time, so they are looked at once.
_seen: list[Plan] = []


def _between(made: Plan, *running: Running) -> Plan:
    source, target = (
        evolve(side, address=each.base_url, account=urlsplit(each.base_url).netloc)
        for side, each in zip((made.source, made.target), running, strict=True)
    )
    return evolve(made, source=source, target=target, quarantine=0.5)


async def _looked_at(old: Running, new: Running) -> Plan:
    kommo = dialect("kommo")
    async with client_of(kommo, old, rate=()) as source, client_of(kommo, new, rate=()) as target:
        return await plan(source, target)


def invoke(*words: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(commands(), list(words), input=stdin)


def started(*words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "crmclient", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def command_to_go_on(said: str) -> list[str]:
    """What it says to run, as a shell would take it."""
    found = re.search(r"To go on: crmclient (.*)", said)
    assert found is not None, said
    return shlex.split(found[1])


def until(happened: Any, seconds: float = 30) -> None:
    by = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < by
        time.sleep(0.02)


# -------------------------------------------------------------------------------------------------- from end to end


@pytest.mark.e2e
def test_a_plan_is_carried_out_and_told_of(pair: Pair, tmp_path: Path) -> None:
    done = invoke(*pair.words("--yes"))
    assert done.exit_code == 0, done.output
    pair.complete()
    rows = sum(pair.plan.moves.values())
    assert f"this will write {rows} rows (" in done.stderr
    assert f"into Kommo at {pair.new.base_url} ({pair.plan.target.name})" in done.stderr
    assert re.fullmatch(r"All \d+ rows of .* are on .*\. 0 differ, .*\n", done.stdout)

    made = {kind: pair.new.world.count(kind) for kind in KINDS}
    again = invoke(*pair.words("--yes", "--json"))
    assert again.exit_code == 0, again.output
    tree = json.loads(again.stdout)
    assert (tree["ended"], tree["exit"], tree["error"], tree["again"]) == (True, 0, None, None)
    assert tree["verdict"]["equal"] is True
    assert sum(counts["done"] for counts in tree["kinds"].values()) == rows
    assert tree["requests"]["source"] > 0
    assert f"all {rows} rows are dealt with by my plan.ledger; only what is new or was changed since" in again.stderr
    assert "this will write" not in again.stderr
    assert made == {kind: pair.new.world.count(kind) for kind in KINDS}

    status = invoke("status", pair.ledger.name)
    assert status.exit_code == 0
    assert "ended    " in status.stdout
    tree = json.loads(invoke("status", pair.ledger.name, "--json").stdout)
    assert (tree["state"], tree["process"], tree["unknown"], tree["violations"]) == ("ended", None, [], [])

    told = invoke("report", pair.ledger.name, "--html", "page.html", "--json", "--all")
    tree = json.loads(told.stdout)
    assert told.stdout.count("\n") == 1
    assert len(tree["rows"]) == rows
    ids = {row["target"] for row in tree["rows"] if row["kind"] == "contacts"}
    assert ids == {row["id"] for row in pair.new.world.select("contact")}
    assert tree["verdict"]["sentence"] in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert tree["verdict"]["sentence"] in invoke("report", pair.ledger.name).stdout
    assert invoke("check", "old", "new", "--plan", pair.file.name).exit_code == 0


@pytest.mark.e2e
def test_a_lost_ledger_is_made_anew_and_nothing_is_made_twice(pair: Pair) -> None:
    assert invoke(*pair.words("--yes")).exit_code == 0
    pair.ledger.unlink()
    words = ["adopt", "old", "new", "--plan", pair.file.name, "--ledger", "new.ledger"]
    posts = sum(call.startswith("POST") for call in pair.new.stats.calls)
    told = invoke(*words, "--json")
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout) == pair.plan.moves
    assert sum(call.startswith("POST") for call in pair.new.stats.calls) == posts
    assert sorted(each.name for each in pair.file.parent.glob("*.ledger*") if "new" in each.name) == ["new.ledger"]
    assert "\nadopted  not gone on with yet\n" in invoke("status", "new.ledger").stdout
    on = invoke(*pair.words("--ledger", "new.ledger", "--yes"))
    assert on.exit_code == 0, on.output
    pair.complete()
    twice = invoke(*words)
    assert (twice.exit_code, "new.ledger is there already" in twice.stderr) == (7, True)


@pytest.mark.e2e
def test_what_an_adoption_that_failed_has_left_is_nothing_to_go_on_by(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["adopt", "old", "new", "--plan", pair.file.name, "--ledger", "new.ledger"]
    whole = module.adopt

    async def half(source: Any, target: Any, plan: Plan, ledger: Ledger, **more: Any) -> dict[str, int]:
        ledger.adopt([("contacts", 999, 999)])
        raise Unavailable("the server failed", status=503)

    monkeypatch.setattr(module, "adopt", half)
    assert invoke(*words).exit_code == 5
    assert not list(Path().glob("new.ledger*"))
    # A part of one that was killed is not gone on with either.
    with Ledger("new.ledger.part") as left:
        left.adopt([("contacts", 998, 998)])
        busy = invoke(*words)
    assert (busy.exit_code, "is in use by process" in busy.stderr) == (7, True)
    assert Path("new.ledger.part").exists()
    monkeypatch.setattr(module, "adopt", whole)
    done = invoke(*words)
    assert done.exit_code == 0, done.output
    with Report("new.ledger") as report:
        assert report.number() == 0
    assert "To go on: crmclient migrate old new --plan 'my plan.toml' --ledger new.ledger" in done.stderr


@pytest.mark.e2e
def test_an_adoption_that_cannot_go_well_is_refused_before_anybody_waits(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["adopt", "old", "new", "--plan", pair.file.name, "--ledger", "new.ledger"]
    long = evolve(pair.plan, quarantine=3600.0)
    for wrong, said in (
        (evolve(long, source=evolve(long.source, capabilities="0")), "has changed since the plan was made"),
        (evolve(long, target=evolve(long.target, address="https://other.example")), "and not kommo at"),
    ):
        pair.file.write_text(to_toml(wrong), encoding="utf-8")
        refused = invoke(*words)
        assert (refused.exit_code, said in refused.stderr) == (7, True), refused.output
        assert "still land" not in refused.stderr
    assert not pair.old.stats.requests + pair.new.stats.requests
    pair.file.write_text(to_toml(long), encoding="utf-8")
    for name in SIDES:
        with monkeypatch.context() as wrongly:
            wrongly.setenv(f"CRMCLIENT_{name.upper()}_TOKEN", "wrong")
            done = invoke(*words)
        assert (done.exit_code, "still land" in done.stderr) == (3, False), done.output
    assert not list(Path().glob("new.ledger*"))


# --------------------------------------------------------------------------------------------------- before it begins


@pytest.mark.e2e
def test_every_command_of_a_move_ends_by_the_same_codes(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    of_it = ("--plan", pair.file.name)
    commands_of_it = (
        ("plan", "old", "new"),
        ("check", "old", "new"),
        ("adopt", "old", "new", *of_it, "--ledger", "a.ledger"),
        ("migrate", "old", "new", *of_it, "--yes"),
    )
    for each in commands_of_it:
        unknown = invoke(each[0], "nobody", *each[2:])
        assert (unknown.exit_code, "no profile" in unknown.stderr) == (7, True), each
        with monkeypatch.context() as wrongly:
            wrongly.setenv("CRMCLIENT_NEW_TOKEN", "wrong")
            assert invoke(*each).exit_code == 3, each
        with monkeypatch.context() as down:
            gone = Path("gone.toml")
            text = Path("crmclient.toml").read_text(encoding="utf-8")
            gone.write_text(text.replace(pair.new.base_url, "http://127.0.0.1:9"), encoding="utf-8")
            down.setenv("CRMCLIENT_CONFIG", str(gone.absolute()))
            moved = evolve(pair.plan, target=evolve(pair.plan.target, address="http://127.0.0.1:9"))
            pair.file.write_text(to_toml(moved), encoding="utf-8")
            assert invoke(*each).exit_code == 5, each
        pair.file.write_text(to_toml(pair.plan), encoding="utf-8")
    assert not list(Path().glob("*.ledger*"))


@pytest.mark.e2e
def test_nobody_is_told_what_will_be_written_where_it_is_refused(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRMCLIENT_NEW_TOKEN", "wrong")
    done = invoke(*pair.words("--yes"))
    assert (done.exit_code, "this will write" in done.stderr) == (3, False), done.output


@pytest.mark.e2e
def test_with_nobody_to_ask_it_writes_nothing(pair: Pair) -> None:
    done = invoke(*pair.words())
    assert done.exit_code == 7
    assert "give --yes" in done.stderr
    assert f"{pair.new.base_url} (" in done.stderr
    assert not pair.ledger.exists()
    assert "To go on" not in done.stderr


@pytest.mark.e2e
@ON_POSIX
@pytest.mark.parametrize("answer", ["n", "y", "\x03"])
def test_a_person_is_asked_whether_this_is_the_account_and_sees_how_far_it_is(pair: Pair, answer: str) -> None:
    main, terminal = pty.openpty()
    words = [sys.executable, "-m", "crmclient", *pair.words()]
    pair.new.faults.add("delay=1.5 POST /api/v4/contacts#1")
    process = subprocess.Popen(
        words,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=_controlling,
    )
    os.close(terminal)
    seen = b""
    while b"Go on? [y/N]: " not in seen:
        seen += typed_out(main, seen)
    os.write(main, answer.encode() + (b"" if answer == "\x03" else b"\n"))
    while answer == "\x03" and process.poll() is None:
        time.sleep(0.5)
        os.write(main, b"\x03")  # one that comes just as the reading begins is heard at the next key only
    while more := typed_out(main, seen):
        seen += more
    os.close(main)
    code, said = process.wait(timeout=30), seen.decode()
    assert "Traceback" not in said
    if answer == "y":
        assert code == 0, said
        said = re.sub("\x1b\\[[0-9;?]*[a-zA-Z]", "", said)
        assert re.search(r"contacts +\S+ 0/9", said)
        assert re.search(
            r"moving · source \d+ requests, \d+% of its limit · target \d+ requests, \d+% of its limit", said
        )
        assert "less than a minute left" in said
        assert "are on" in said
        pair.complete()
    else:
        assert code == 130
        assert not pair.ledger.exists()
        assert pair.new.world.count("contact") == 0


def typed_out(terminal: int, before: bytes) -> bytes:
    """What more a terminal shows; nothing once the other side is closed."""
    assert select.select([terminal], [], [], 60)[0], before
    try:
        return os.read(terminal, 4096)
    except OSError:
        return b""


def _controlling() -> None:
    """The terminal is this process's own, so that its Ctrl-C is a signal."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.mark.e2e
def test_a_plan_that_does_not_hold_any_more_is_refused_before_anybody_is_asked(pair: Pair) -> None:
    for wrong, said in (
        (evolve(pair.plan, source=evolve(pair.plan.source, capabilities="0")), "has changed since the plan was made"),
        (evolve(pair.plan, target=evolve(pair.plan.target, address="https://other.example")), "and not kommo at"),
    ):
        pair.file.write_text(to_toml(wrong), encoding="utf-8")
        done = invoke(*pair.words("--yes"))
        assert (done.exit_code, said in done.stderr) == (7, True), done.output
        assert "To go on" not in done.stderr
    missing = invoke("migrate", "old", "new", "--plan", "none.toml", "--yes", "--json")
    assert missing.exit_code == 7
    assert "none.toml cannot be read" in json.loads(missing.stdout)["error"]
    assert "are the same account" in invoke("migrate", "old", "old", "--plan", pair.file.name, "--yes").stderr
    assert invoke("migrate", "old", "new", "--yes").exit_code == 2
    assert not pair.ledger.exists()


@pytest.mark.e2e
def test_a_target_that_is_not_empty_and_a_plan_that_was_edited_are_refused(pair: Pair) -> None:
    contact = pair.new.world.add("contact", {"name": "here before"})
    done = invoke(*pair.words("--yes"))
    assert (done.exit_code, "the target is not empty" in done.stderr) == (7, True), done.output
    assert "this will write" not in done.stderr
    assert not list(Path().glob("*.ledger*"))
    pair.new.world.delete("contact", contact)
    assert invoke(*pair.words("--yes")).exit_code == 0
    pair.file.write_text(to_toml(evolve(pair.plan, quarantine=7)), encoding="utf-8")
    edited = invoke(*pair.words("--yes"))
    assert (edited.exit_code, "the plan was edited since" in edited.stderr) == (7, True), edited.output
    assert "To go on" not in edited.stderr
    assert "will be written" not in edited.stderr
    assert json.loads(invoke(*pair.words("--yes", "--json")).stdout)["again"] is None
    # What it says to do then is done as it is said.
    named = re.search(r"`crmclient (report .* --plan old\.toml)`", edited.stderr)
    assert named is not None
    assert invoke(*shlex.split(named[1])).exit_code == 0
    on = invoke("migrate", "old", "new", "--plan", "old.toml", "--ledger", pair.ledger.name, "--yes")
    assert on.exit_code == 0, on.output


@pytest.mark.e2e
def test_the_same_move_started_twice_is_refused_by_the_name_of_the_first(pair: Pair) -> None:
    with Ledger(pair.ledger):
        done = invoke(*pair.words("--yes"))
    assert done.exit_code == 7
    assert f"is in use by process {os.getpid()}" in done.stderr
    assert not any(call.startswith("POST") for call in pair.new.stats.calls)


@pytest.mark.e2e
def test_a_file_of_something_else_is_not_taken_for_a_ledger(pair: Pair) -> None:
    before = pair.file.read_bytes()
    done = invoke(*pair.words("--yes", "--ledger", pair.file.name))
    assert done.exit_code == 7
    assert done.stderr.startswith("error: ")
    assert "To go on" not in done.stderr
    nowhere = invoke(*pair.words("--yes", "--ledger", "no/such.ledger"))
    assert (nowhere.exit_code, "there is no folder no" in nowhere.stderr, "To go on" in nowhere.stderr) == (
        7,
        True,
        False,
    )
    Path("empty.toml").touch()
    empty = invoke("check", "old", "new", "--plan", "empty.toml")
    assert (empty.exit_code, "empty.toml is no plan: make one with `crmclient plan" in empty.stderr) == (7, True)
    with closing(sqlite3.connect("other.db")) as other:
        other.execute("CREATE TABLE mine (x)")
    done = invoke(*pair.words("--yes", "--ledger", "other.db"))
    assert (done.exit_code, "a database of something else" in done.stderr) == (7, True)
    assert pair.file.read_bytes() == before


# -------------------------------------------------------------------------------------------------- stopped midway


@pytest.mark.e2e
@ON_POSIX
@pytest.mark.parametrize("signalled", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_finishes_what_is_in_flight_and_says_how_to_go_on(pair: Pair, signalled: signal.Signals) -> None:
    pair.new.faults.add("delay=2 POST /api/v4/contacts#1")
    moving = started(*pair.words("--yes"))
    until(lambda: pair.new.faults.done)
    status = invoke("status", pair.ledger.name)
    assert f"running  process {moving.pid} since " in status.stdout
    assert "? 9 contacts sent " in status.stdout
    assert status.exit_code == 0
    moving.send_signal(signalled)
    out, err = moving.communicate(timeout=30)
    assert moving.returncode == 130
    assert out == ""
    assert "finishing what is in flight; Ctrl-C again stops at once" in err
    assert "Traceback" not in err
    # What was in flight was waited for, and written down.
    assert pair.new.world.count("contact") == 9
    assert pair.new.world.count("note") == 0
    with Report(pair.ledger) as report:
        assert report.counts["contacts"][State.INTENT] == 0
        assert report.open_batches() == []
        assert report.violations() == []
    assert "stopped  the same command as before goes on" in invoke("status", pair.ledger.name).stdout

    words = command_to_go_on(err)
    assert words == pair.words("--yes")
    on = invoke(*words)
    assert on.exit_code == 0, on.output
    pair.complete()


@pytest.mark.e2e
@ON_POSIX
def test_a_second_ctrl_c_ends_it_at_once_and_it_still_goes_on(pair: Pair) -> None:
    pair.file.write_text(to_toml(evolve(pair.plan, quarantine=4)), encoding="utf-8")
    pair.new.faults.add("delay=3 POST /api/v4/contacts#1")
    moving = started(*pair.words("--yes"))
    assert moving.stderr is not None
    until(lambda: pair.new.faults.done)
    at = time.monotonic()
    moving.send_signal(signal.SIGINT)
    said = ""
    while "Ctrl-C again stops at once" not in said:
        said += moving.stderr.readline()
    moving.send_signal(signal.SIGINT)
    assert moving.wait(timeout=10) == 130
    assert time.monotonic() - at < 2.5
    out, err = moving.communicate()
    assert out == ""
    assert "Traceback" not in err
    status = invoke("status", pair.ledger.name)
    assert "killed   no process works by it: the same command as before goes on" in status.stdout
    assert status.exit_code == 0
    on = invoke(*command_to_go_on(err))
    assert on.exit_code == 0, on.output
    assert "may or may not have been made before this run: looking for them" in on.stderr
    pair.complete()


@pytest.mark.e2e
@ON_POSIX
def test_what_kill_9_leaves_is_gone_on_with_by_the_same_command(pair: Pair) -> None:
    moving = started(*pair.words("--yes", "--json"))
    pair.new.faults.add(evolve_kill(moving.pid))
    out, _ = moving.communicate(timeout=30)
    assert (moving.returncode, out) == (-signal.SIGKILL, "")
    assert "killed   " in invoke("status", pair.ledger.name).stdout
    on = invoke(*pair.words("--yes", "--json"))
    assert on.exit_code == 0, on.output
    assert json.loads(on.stdout)["verdict"]["equal"] is True
    pair.complete()


def evolve_kill(pid: int) -> Any:
    from crmclient.sandbox.faults import Action, Fault

    return Fault(action=Action.KILL_AFTER, on="POST /api/v4/leads*", pid=pid)


@pytest.mark.e2e
def test_a_token_that_dies_midway_is_said_and_the_move_goes_on_after_it(pair: Pair) -> None:
    from crmclient.sandbox.faults import Action, Fault

    pair.new.faults.add(Fault(action=Action.UNAUTHORIZED, on="POST /api/v4/leads*", times=5))
    done = invoke(*pair.words("--yes"))
    assert done.exit_code == 3, done.output
    assert "`crmclient login new`" in done.stderr
    assert "nothing that was done is lost" in done.stderr
    status = invoke("status", pair.ledger.name).stdout
    assert "the same command as before goes on" in status
    pair.new.faults.script.clear()
    on = invoke(*command_to_go_on(done.stderr))
    assert on.exit_code == 0, on.output
    pair.complete()


@pytest.mark.e2e
@pytest.mark.parametrize("side", ["old", "new"])
def test_an_integration_that_is_switched_off_midway_names_the_login_that_brings_it_back(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, side: str
) -> None:
    running: Running = getattr(pair, side)
    given = grants(running.account)
    card = given.integration
    config = Path("crmclient.toml")
    whose = f'[profiles.{side}]\nclient_id = "{card.client_id}"\nredirect_uri = "{card.redirect_uri}"\n'
    config.write_text(config.read_text(encoding="utf-8").replace(f"[profiles.{side}]\n", whose), encoding="utf-8")
    monkeypatch.delenv(f"CRMCLIENT_{side.upper()}_TOKEN")
    monkeypatch.setenv(f"CRMCLIENT_{side.upper()}_CLIENT_SECRET", card.client_secret)
    assert invoke("login", side, "--code-stdin", stdin=given.mint_code()).exit_code == 0
    begun, off = running.stats.requests, list[None]()

    def switch_off(world: World) -> None:
        if running.stats.requests > begun + 6 and not off:
            off.append(given.disable())

    running.meanwhile(switch_off)
    done = invoke(*pair.words("--yes"))
    assert (done.exit_code, off) == (3, [None]), done.output
    assert f"log in again: `crmclient login {side}`\n" in done.stderr
    words = command_to_go_on(done.stderr)
    # Before that it gets no further.
    again = invoke(*words)
    assert (again.exit_code, f"log in again: `crmclient login {side}`\n" in again.stderr) == (3, True), again.output
    assert invoke("login", side, "--code-stdin", stdin=given.mint_code()).exit_code == 0
    on = invoke(*words)
    assert on.exit_code == 0, on.output
    assert "0 differ, 0 missing, 0 extra" in on.stdout
    pair.complete()


@pytest.mark.e2e
def test_what_was_refused_is_tried_once_more_where_that_is_asked_for(pair: Pair) -> None:
    deal = pair.old.world.select("deal")[0]
    where: Any = next(each for each in pair.plan.stages if each.stage == deal["stage_id"])
    stage = (where.target_pipeline, where.target_stage)
    row = pair.new.world.row("stage", stage)
    pair.new.world.delete("stage", stage)
    done = invoke(*pair.words("--yes"))
    assert done.exit_code == 1, done.output
    told = "once that is put right, `crmclient migrate … --retry` tries them once more\n"
    assert re.search(rf"\d+ rows were refused: crmclient report 'my plan.ledger'; {told}", done.stderr)
    status, report = (invoke(name, pair.ledger.name).stdout for name in ("status", "report"))
    number = json.loads(invoke("status", pair.ledger.name, "--json").stdout)["kinds"]
    refused = sum(each["rejected"] for each in number.values())
    assert f"{refused} refused: {told}" in status
    assert f"  {told}" in report
    pair.new.world.add("stage", row)
    assert invoke(*pair.words("--yes")).exit_code == 1
    mended = invoke(*pair.words("--yes", "--retry"))
    assert f"{refused} rows were refused, or hung on such: they are tried once more\n" in mended.stderr
    assert (mended.exit_code, "refused:" in mended.stderr) == (0, False), mended.output
    pair.complete()
    with Report(pair.ledger) as told_of:
        assert told_of.number(State.REJECTED) == 0
        assert told_of.violations() == []
    assert "--retry" not in invoke("report", pair.ledger.name).stdout


@pytest.mark.e2e
def test_to_try_once_more_by_a_plan_of_another_move_asks_for_nothing(pair: Pair) -> None:
    assert invoke(*pair.words("--yes")).exit_code == 0
    with Ledger(pair.ledger) as ledger:
        source = next(iter(ledger.items(State.DONE, kind="notes"))).source
        ledger.db.execute("UPDATE item SET state = 'rejected', tgt = NULL WHERE kind = 'notes' AND src = ?", (source,))
        before = ledger.item("notes", source)
    pair.file.write_text(to_toml(evolve(pair.plan, quarantine=7)), encoding="utf-8")
    edited = invoke(*pair.words("--yes", "--retry"))
    assert (edited.exit_code, "the plan was edited since" in edited.stderr) == (7, True), edited.output
    with Ledger(pair.ledger) as ledger:
        assert ledger.item("notes", source) == before


# ------------------------------------------------------------------------------------- whatever the engine comes to

SIDES = ("old", "new")
VERDICT = Verdict(
    source="old",
    target="new",
    kinds={"contacts": {Sign.SAME: 9}},
    no_place={},
    dropped={},
    folded={},
    restamped={},
)


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """The plan of a move between two accounts that nobody will ask anything."""
    lines: list[str] = []
    for name in ("old", "new"):
        lines.append(f'[profiles.{name}]\ndialect = "kommo"\nbase_url = "https://{name}.example"\n')
        monkeypatch.setenv(f"CRMCLIENT_{name.upper()}_TOKEN", "secret")
    (tmp_path / "crmclient.toml").write_text("".join(lines), encoding="utf-8")
    monkeypatch.setenv("CRMCLIENT_CONFIG", str(tmp_path / "crmclient.toml"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    able = capabilities(dialect("kommo"))
    sides = [
        Side(dialect="kommo", address=f"https://{name}.example", account=name, capabilities=able)
        for name in ("old", "new")
    ]
    made = Plan(made=SystemClock().now(), source=sides[0], target=sides[1], moves={"contacts": 9})
    (tmp_path / "my plan.toml").write_text(to_toml(made), encoding="utf-8")
    return made


class Acted:
    """A move of which it is decided beforehand what comes of it."""

    error: CRMError | None = None
    counts: dict[str, Counter[State]]
    begins = True

    def __init__(self, source: Any, target: Any, plan: Plan, ledger: Ledger, *, lanes: int) -> None:
        self.plan, self.ledger, self.lanes = plan, ledger, lanes
        self.ended = False
        self.verdict: Verdict | None = None

    async def prepare(self) -> None:
        if self.ledger.run() is None:
            self.ledger.begin(run_of(self.plan, SYSTEM_CLOCK))

    async def __aiter__(self) -> AsyncIterator[Event]:
        if self.begins:
            yield Event(phase="moving", read={}, counts=self.counts, requests=(3, 4), said="looking for \x1b[31m them")
        if self.error is not None:
            raise self.error
        self.ended, self.verdict = True, VERDICT
        yield Event(phase="ended", read={}, counts=self.counts, requests=(3, 4), said=VERDICT.sentence)


def acted(monkeypatch: pytest.MonkeyPatch, **ways: Any) -> None:
    ways = {"counts": {"contacts": Counter({State.DONE: 9})}, **ways}
    monkeypatch.setattr(module, "Migration", type("Acted", (Acted,), ways))


@pytest.mark.parametrize(
    "error, code",
    [
        (AuthFailed("the credentials were not accepted"), 3),
        (ReauthorizationRequired("the token was spent"), 3),
        (Unavailable("the server failed", status=503), 5),
        (RateLimited("too fast"), 5),
        (Unreachable("no route"), 5),
        (Unreadable("it is a page of a maintenance", passing=True), 5),
        (Unreadable("it is of another shape"), 7),
        (AmbiguousWrite("nobody knows"), 5),
        (DeadlineExceeded("too late", phase="reading", elapsed=1, attempts=1), 5),
        (Banned("support can lift that"), 7),
        (LedgerFailed("the ledger cannot be used: disk full: make room", passing=True), 5),
        (LedgerFailed("the ledger cannot be used: no database"), 7),
    ],
)
def test_every_way_to_stop_has_its_code_and_its_command_to_go_on(
    planned: Plan, monkeypatch: pytest.MonkeyPatch, error: CRMError, code: int
) -> None:
    acted(monkeypatch, error=error)
    done = invoke(*with_words("--yes", "--lanes", "2", "--ledger", "a b.ledger"))
    assert done.exit_code == code
    assert done.stdout == ""
    assert str(error) in done.stderr
    assert "nothing that was done is lost" in done.stderr
    assert command_to_go_on(done.stderr) == with_words("--ledger", "a b.ledger", "--yes", "--lanes", "2")
    assert ("crmclient login" in done.stderr) == (code == 3)
    # Nobody was asked yet whose they are.
    both = [
        f"`crmclient login {name}`, once CRMCLIENT_{name.upper()}_TOKEN holds a new token or none" for name in SIDES
    ]
    assert (f"log in again: {' or '.join(both)}" in done.stderr) == (code == 3)
    assert "looking for ␛[31m them" in done.stderr
    told = invoke(*with_words("--yes", "--json"))
    tree = json.loads(told.stdout)
    assert (tree["ended"], tree["exit"], tree["error"], tree["verdict"]) == (False, code, str(error), None)
    assert tree["again"].startswith("crmclient migrate old new ")


def test_a_certificate_that_is_not_trusted_is_no_reason_to_try_again(
    planned: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = Unreachable("the certificate is not trusted")
    error.passing = False
    acted(monkeypatch, error=error)
    assert invoke(*with_words("--yes")).exit_code == 7


def test_what_is_wrong_before_it_begins_is_not_to_be_gone_on_with(
    planned: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    acted(monkeypatch, error=Misconfigured("this ledger is of another move"), begins=False)
    done = invoke(*with_words("--yes"))
    assert done.exit_code == 7
    assert "To go on" not in done.stderr


@pytest.mark.parametrize(
    "verdict, counts, code, said",
    [
        (VERDICT, {}, 0, ""),
        (evolve(VERDICT, kinds={"contacts": {Sign.SAME: 8, Sign.MISSING: 1}}), {}, 1, ""),
        (VERDICT, {State.REJECTED: 2}, 1, "2 rows were refused: crmclient report 'my plan.ledger'"),
        (VERDICT, {State.DOUBT: 1}, 1, "1 row is in doubt: crmclient report 'my plan.ledger'"),
    ],
)
def test_it_ends_with_0_only_if_all_is_there_and_nothing_was_refused(
    planned: Plan, monkeypatch: pytest.MonkeyPatch, verdict: Verdict, counts: dict[State, int], code: int, said: str
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "VERDICT", verdict)
    acted(monkeypatch, counts={"contacts": Counter({State.DONE: 7} | counts)})
    done = invoke(*with_words("--yes"))
    assert (done.exit_code, done.stdout) == (code, f"{verdict.sentence}\n")
    assert said in done.stderr
    assert ("crmclient report" in done.stderr) == bool(said)


def test_what_there_is_to_say_of_rows_that_moved_is_pointed_to(planned: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    with Ledger("my plan.ledger", durable=False) as ledger:
        ledger.adopt([("contacts", 1, 11), ("contacts", 2, 12)])
        ledger.become("contacts", {2: Settled(state=State.DONE, error="it goes without companies 5")})
    acted(monkeypatch)
    done = invoke(*with_words("--yes"))
    assert done.exit_code == 0
    assert "1 row moved, and there is something to say of it: crmclient report 'my plan.ledger'" in done.stderr


# ---------------------------------------------------------------------------------------- how far it is, in numbers


def bars(plan: Plan, clock: Clock = SYSTEM_CLOCK) -> Any:
    sides = dialect("amocrm"), dialect("kommo")
    return module._Bars(plan, *sides, silent=True, clock=clock)  # pyright: ignore[reportPrivateUsage]


def event(requests: tuple[int, int], **counts: dict[State, int]) -> Event:
    return Event(
        phase="moving", read={}, counts={kind: Counter(each) for kind, each in counts.items()}, requests=requests
    )


def test_what_is_left_is_what_the_plan_counts_at_the_pace_so_far(planned: Plan) -> None:
    cost = evolve(planned.target_cost, requests={"write contacts": 100, "write deals": 60, "read back": 40})
    shown = bars(evolve(planned, target_cost=cost, moves={"contacts": 1000, "deals": 600}))
    half = event((9, 70), contacts={State.DONE: 400, State.DOUBT: 50, State.REJECTED: 50, State.PENDING: 500})
    # 50 for contacts, 60 for deals, 40 to read back; 70 in 20 s so far.
    assert shown.minutes_left(half, 20) == pytest.approx(150 / 3.5 / 60)
    # Before there is a pace, the limit's own: 7 in a second.
    assert shown.minutes_left(event((0, 0)), 0.1) == pytest.approx(200 / 7 / 60)
    # And a burst is no pace that lasts.
    assert shown.minutes_left(evolve(half, requests=(9, 70)), 2) == pytest.approx(150 / 7 / 60)
    line = shown.line(half, 20)
    assert (
        line
        == "moving · source 9 requests, 6% of its limit · target 70 requests, 48% of its limit · less than a minute left"
    )
    assert shown.line(evolve(half, phase="verifying"), 20).startswith("reading both sides to compare · ")
    assert "left" not in shown.line(evolve(half, phase="verifying"), 20)


@pytest.mark.parametrize(
    ("spent", "elapsed", "rates", "share"),
    [
        (54, 1.5, [Rate(100, seconds=60)], 0.54),
        (100, 1.5, [Rate(100, seconds=60)], 1.0),
        (100, 61, [Rate(100, seconds=60)], 0.5),
        (14, 1.01, [Rate(7, seconds=1)], 1.0),
        (15, 1.01, [Rate(7, seconds=1)], 1.0),
        (70, 20, [Rate(7, seconds=1), Rate(100, seconds=60)], 0.7),
        (7, 0.1, [Rate(7, seconds=1), Rate(100, seconds=60)], 1.0),
    ],
)
def test_of_a_limit_is_used_what_its_windows_allow_and_never_more_than_all(
    spent: int, elapsed: float, rates: list[Rate], share: float
) -> None:
    assert module._share(spent, elapsed, rates) == pytest.approx(share)  # pyright: ignore[reportPrivateUsage]


def test_where_no_terminal_shows_it_a_line_says_now_and_then_how_far_it_is(
    planned: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = FakeClock()
    shown = bars(planned, clock)
    for seconds, requests in ((0, 1), (9, 20), (2, 30), (5, 40), (6, 50)):
        clock.advance(seconds)
        shown(event((3, requests), contacts={State.DONE: requests // 10, State.PENDING: 9 - requests // 10}))
    said = capsys.readouterr().err.splitlines()
    assert [line[:30] for line in said] == ["3 of 9 rows · moving · source ", "5 of 9 rows · moving · source "]
    assert "target 30 requests, 36% of its limit" in said[0]


def test_what_stands_still_says_until_when_and_how_long_that_still_is(
    planned: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = FakeClock()
    shown = bars(planned, clock)
    until = clock.now() + timedelta(seconds=85)
    at = f"{until.astimezone():%H:%M:%S}"
    waiting = evolve(event((9, 70)), waits_for="40 rows in doubt", until=until)
    assert shown.waiting(waiting) == f"40 rows in doubt: waiting 85 s, then looking again ({at})"
    assert shown.waiting(event((9, 70))) == ""
    # Where no terminal shows it: a line as it begins, whatever else happens meanwhile.
    for each in (event((9, 70)), waiting, waiting, evolve(waiting, requests=(9, 71))):
        shown(each)
    assert capsys.readouterr().err == f"40 rows in doubt: waiting 85 s, then looking again ({at})\n"
    # On a terminal the seconds go by, with no event in between.
    console = Console(width=100)

    def displayed() -> str:
        with console.capture() as caught:
            console.print(shown.display())
        return caught.get()

    assert f"40 rows in doubt: waiting 85 s, then looking again ({at})" in displayed()
    clock.advance(60)
    assert f"40 rows in doubt: waiting 25 s, then looking again ({at})" in displayed()
    clock.advance(60)
    assert "waiting 0 s" in displayed()
    shown(event((9, 72)))
    assert "in doubt" not in displayed()
    # And what is waited for next has a line of its own.
    shown(evolve(waiting, until=until + timedelta(seconds=300), waits_for="1 row in doubt"))
    assert "1 row in doubt: waiting 265 s" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ status and report


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from test_report import RUN, became, noted

    monkeypatch.chdir(tmp_path)
    with Ledger(tmp_path / "x.ledger", durable=False) as ledger:
        ledger.begin(RUN)
        noted(ledger, "contacts", *range(1, 31), name="\x1b[31mred")
        became(ledger, "contacts", 1, State.DONE, 101)
        for id in range(2, 20):
            became(ledger, "contacts", id, State.REJECTED, None, f"no {id}\nno more")
        became(ledger, "contacts", 20, State.DOUBT, 120, "two look like it")
        ledger.intend("contacts", [21, 22], 200, RUN.started_at + timedelta(minutes=1))
    return ledger.path


def test_status_says_what_is_in_doubt_and_ends_with_1_only_if_the_ledger_contradicts_itself(ledger: Path) -> None:
    done = invoke("status", "x.ledger")
    assert done.exit_code == 0
    assert "https://old.example → https://new.example" in done.stdout
    assert "begun    2026-11-22 03:04:00 UTC, by plan p1" in done.stdout
    assert "? 2 contacts sent 2026-11-22 03:05:00 UTC: not known yet what came of them" in done.stdout
    assert re.search(r"waiting +sent +moved +refused +in doubt *\n.*\n *contacts +8 +2 +1 +18 +1\b", done.stdout)
    tree = json.loads(invoke("status", "x.ledger", "--json").stdout)
    assert tree["unknown"] == [{"batch": 1, "kind": "contacts", "rows": 2, "sent_at": "2026-11-22T03:05:00+00:00"}]
    assert tree["kinds"]["contacts"]["rejected"] == 18
    with Ledger(ledger, durable=False) as writing:
        writing.db.execute("UPDATE item SET tgt = NULL WHERE state = 'done'")
    wrong = invoke("status", "x.ledger")
    assert wrong.exit_code == 1
    assert "✗ I1: made or done without a target id: contacts 1" in wrong.stdout
    assert json.loads(invoke("status", "x.ledger", "--json").stdout)["violations"]


def test_report_shows_people_a_few_and_says_where_the_rest_is(ledger: Path) -> None:
    done = invoke("report", "x.ledger")
    assert done.exit_code == 0
    assert "\x1b" not in done.stdout
    assert "  contacts 2  ␛[31mred: no 2⏎no more\n" in done.stdout
    assert "refused: 18\n" in done.stdout
    assert "  and 6 more; --json lists all\n" in done.stdout
    assert "  contacts 20 → 120  ␛[31mred: two look like it\n" in done.stdout
    whole = invoke("report", "x.ledger", "--json")
    assert "\x1b" not in whole.stdout
    assert len(json.loads(whole.stdout)["rejected"]) == 18
    assert invoke("report", "x.ledger", "--all").exit_code == 2


def test_a_page_is_written_over_a_page_and_over_nothing_else(ledger: Path) -> None:
    assert invoke("report", "x.ledger", "--html", "page.html").exit_code == 0
    first = Path("page.html").read_text(encoding="utf-8")
    with Ledger(ledger, durable=False) as writing:
        writing.become("contacts", {23: Settled(state=State.REJECTED, error="late")})
    assert invoke("report", "x.ledger", "--html", "page.html").exit_code == 0
    assert Path("page.html").read_text(encoding="utf-8") != first
    before = ledger.read_bytes()
    refused = invoke("report", "x.ledger", "--html", "x.ledger")
    assert (refused.exit_code, "is no page of this" in refused.stderr) == (1, True)
    assert ledger.read_bytes() == before
    nowhere = invoke("report", "x.ledger", "--html", "no/such/folder.html")
    assert (nowhere.exit_code, "cannot be written" in nowhere.stderr) == (1, True)
    assert not list(Path().glob("*.part"))


def test_the_plan_that_a_move_goes_by_is_written_out_and_over_nothing(ledger: Path) -> None:
    with Ledger(ledger, durable=False) as writing:
        writing.db.execute("UPDATE run SET plan = 'version = 1 # как было'")
    done = invoke("report", "x.ledger", "--plan", "the old.toml")
    assert (done.exit_code, done.stdout) == (0, "")
    assert Path("the old.toml").read_text(encoding="utf-8") == "version = 1 # как было"
    assert "crmclient migrate SOURCE TARGET --plan 'the old.toml' --ledger x.ledger" in done.stderr
    Path("the old.toml").write_text("edited", encoding="utf-8")
    again = invoke("report", "x.ledger", "--plan", "the old.toml")
    assert (again.exit_code, "is there already, and may have been edited" in again.stderr) == (7, True)
    assert Path("the old.toml").read_text(encoding="utf-8") == "edited"


@pytest.mark.parametrize("name", ["status", "report"])
def test_what_is_no_ledger_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text").write_text("no database at all, however long this line is made to be" * 40)
    for path in ("missing.ledger", "text"):
        done = invoke(name, path)
        assert done.exit_code == 7
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
    assert not Path("missing.ledger").exists()


def test_a_ledger_by_which_nothing_has_begun_has_a_status_and_no_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with Ledger("x.ledger", durable=False):
        assert f"no move has begun; process {os.getpid()} since " in invoke("status", "x.ledger").stdout
    assert invoke("status", "x.ledger").stdout == "no move has begun\n"
    assert json.loads(invoke("status", "x.ledger", "--json").stdout)["run"] is None
    assert "no move has begun by" in invoke("report", "x.ledger").stderr
