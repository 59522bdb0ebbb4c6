"""The ledger of a move: what is in it is on the disk, what is damaged in it is told, and anybody can read it."""

import errno
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from crmclient import Contact, Note
from crmclient.entities import Company, Kind, Link, Ref
from crmclient.errors import Misconfigured
from crmclient.migration.ledger import (
    Batch,
    Fresh,
    Ledger,
    LedgerFailed,
    LedgerInUse,
    Run,
    Settled,
    State,
    as_text,
    digest,
)
from crmclient.tokens import Files

AT = datetime(2026, 3, 20, 10, 15, tzinfo=UTC)
RUN = Run(
    id="r",
    source="https://a.example",
    target="https://b.example",
    plan="version = 1",
    plan_hash="p",
    caps_hash="c",
    started_at=AT,
)


@pytest.fixture
def ledger(tmp_path: Path) -> Generator[Ledger]:
    with Ledger(tmp_path / "acme.ledger", durable=False) as opened:
        yield opened


def contacts(*ids: int | str) -> list[Fresh]:
    return [Fresh(kind="contacts", source=id, row=Contact(id=id, name=f"c{id}")) for id in ids]


def begun(ledger: Ledger) -> Batch:
    """Four contacts were read, two are made, one of the others is under way and one was refused."""
    ledger.begin(RUN)
    ledger.ingest(contacts(1, 2, 3, 4), cursor="next")
    made = ledger.intend("contacts", [1, 2], 100, AT)
    ledger.settle(
        made,
        {1: Settled(state=State.DONE, target=101), 2: Settled(state=State.MADE, target=102)},
        "applied",
    )
    ledger.become("contacts", {4: Settled(state=State.REJECTED, error="no name")})
    return ledger.intend("contacts", [3], 102, AT)


# ------------------------------------------------------------------------------------------------- what it remembers


def test_a_row_is_noted_once_however_often_its_page_is_read(ledger: Ledger) -> None:
    assert [each.source for each in ledger.ingest(contacts(1, 2), cursor="a")] == [1, 2]
    assert [each.source for each in ledger.ingest([*contacts(2, 3), *contacts(3)], cursor="b")] == [3]
    assert [source for _, source, _ in ledger.waiting("contacts", 0, 10)] == [1, 2, 3]
    assert ledger.position() == ("b", False)
    ledger.ingest([], ended=True)
    assert ledger.position() == (None, True)
    assert ledger.counts() == {"contacts": {State.PENDING: 3}}


def test_a_number_and_the_same_number_as_a_word_are_two_ids(ledger: Ledger) -> None:
    assert [each.source for each in ledger.ingest(contacts(5, "5"))] == [5, "5"]
    batch = ledger.intend("contacts", ["5"], 0, AT)
    ledger.settle(batch, {"5": Settled(state=State.DONE, target="x5")}, "applied")
    assert [(item.source, item.state) for item in ledger.items()] == [(5, State.PENDING), ("5", State.DONE)]
    assert (ledger.made("contacts", 5), ledger.made("contacts", "5")) == (None, "x5")


def test_a_row_is_kept_until_it_is_dealt_with_and_no_longer(ledger: Ledger) -> None:
    batch = begun(ledger)
    assert ledger.row("contacts", 1) is None
    assert ledger.row("contacts", 4) is None
    # What follows a row that was made is still to be told from it.
    assert ledger.row("contacts", 2) == Contact(id=2, name="c2")
    assert ledger.row("contacts", 3) == Contact(id=3, name="c3")
    ledger.settle(batch, {3: Settled(state=State.PENDING)}, "not applied")
    assert ledger.row("contacts", 3) == Contact(id=3, name="c3")
    item = ledger.item("contacts", 3)
    assert item is not None
    assert (item.state, item.attempts, item.digest) == (State.PENDING, 1, digest(Contact(id=3, name="c3")))


def test_rows_whose_fate_is_told_one_by_one_keep_their_request_open_until_the_last(ledger: Ledger) -> None:
    ledger.ingest(contacts(1, 2))
    batch = ledger.intend("contacts", [1, 2], 7, AT)
    assert ledger.open_batches() == [batch]
    ledger.settle(batch, {2: Settled(state=State.DONE, target=9)}, None, certain=True)
    (left,) = ledger.open_batches()
    assert (left.sources, left.watermark, left.certain, left.sent_at) == ((1,), 7, True, AT)
    assert not ledger.violations()
    ledger.settle(left, {1: Settled(state=State.DONE, target=8)}, "applied")
    assert ledger.open_batches() == []
    assert dict(ledger.pairs("contacts")) == {1: 8, 2: 9}


def test_whatever_is_made_from_now_on_has_an_id_above_the_watermark(ledger: Ledger) -> None:
    assert ledger.watermark("contacts") == 0
    ledger.learn("watermark", "contacts", 50, "before")
    assert ledger.watermark("contacts") == 50
    begun(ledger)
    assert ledger.watermark("contacts") == 102
    assert ledger.watermark("deals") == 0
    assert ledger.owned("contacts", 101)
    assert not ledger.owned("deals", 101)


def test_what_it_knows_of_a_company_a_translation_may_ask(ledger: Ledger) -> None:
    ledger.ingest(
        [
            Fresh(kind="companies", source=7, row=Company(id=7, name="Acme"), name="Acme"),
            Fresh(kind="contacts", source=1, row=Contact(id=1), above=7),
        ]
    )
    assert ledger.company_name(7) == "Acme"
    assert ledger.company_of(1) is None
    batch = ledger.intend("companies", [7], 0, AT)
    ledger.settle(batch, {7: Settled(state=State.DONE, target=70)}, "applied")
    assert ledger.company_of(1) == Link(Ref(Kind.COMPANY, 70))
    assert ledger.company_of(2) is None


def test_what_the_target_cannot_carry_is_kept_as_it_was_together_with_what_became_of_the_row(ledger: Ledger) -> None:
    ledger.ingest(contacts(4))
    batch = ledger.intend("contacts", [4], 0, AT)
    lost = {"contact.position": "boss", "contact.tags": ["горячий", "b"]}
    ledger.settle(batch, {4: Settled(state=State.DONE, target=9, kept=lost)}, "applied")
    assert sorted(ledger.kept()) == [("contacts", 4, what, value) for what, value in lost.items()]


def test_a_run_tells_how_it_stands_and_its_verdict_stays(ledger: Ledger) -> None:
    assert ledger.run() is None
    ledger.begin(RUN)
    ledger.note_state("ended", AT, '{"equal": true}')
    ledger.note_state("running")
    run = ledger.run()
    assert run is not None
    assert (run.state, run.ended_at, run.verdict, run.started_at) == ("running", None, '{"equal": true}', AT)


# ------------------------------------------------------------------------------------------------------- invariants


def test_nothing_is_wrong_with_a_ledger_at_any_of_its_steps(ledger: Ledger) -> None:
    batch = begun(ledger)
    assert ledger.violations() == []
    ledger.settle(batch, {3: Settled(state=State.DOUBT, error="?")}, "mixed")
    assert ledger.violations() == []


DAMAGE = {
    "I1: made or done without a target id: contacts 1": "UPDATE item SET tgt = NULL WHERE src = 1",
    "I1: made or done without a target id: contacts 2": "UPDATE item SET tgt = NULL WHERE src = 2",
    "I2: intent in a batch that has an outcome, or in none: contacts 3": "UPDATE item SET batch = NULL WHERE src = 3",
    "I2: intent in a batch that has an outcome, or in none: contacts 3 ": "UPDATE batch SET outcome = 'applied'",
    "I2: batch 2 has no outcome and no row in doubt": "UPDATE item SET state = 'pending' WHERE src = 3",
    "I4: an id below the watermark of its batch: contacts 2": "UPDATE item SET tgt = 100 WHERE src = 2",
    "contacts 3 is not dealt with, and what it says is gone": "DELETE FROM row WHERE src = 3",
    "contacts 2 is not dealt with, and what it says is gone": "DELETE FROM row WHERE src = 2",
}


@pytest.mark.parametrize("told, damage", DAMAGE.items())
def test_each_damage_is_told_and_of_what(ledger: Ledger, told: str, damage: str) -> None:
    begun(ledger)
    ledger.db.execute(damage)
    assert told.strip() in ledger.violations()


def test_two_rows_never_share_one_of_the_target_and_who_tries_changes_nothing(ledger: Ledger) -> None:
    batch = begun(ledger)
    before = list(ledger.items())
    with pytest.raises(LedgerFailed, match="two rows would share one target id"):
        ledger.settle(batch, {3: Settled(state=State.DONE, target=101)}, "applied")
    assert list(ledger.items()) == before
    assert ledger.open_batches() == [batch]
    # Of another kind it may be: ids are a kind's own.
    ledger.ingest([Fresh(kind="notes", source=1, row=Note(id=1, text="n"))])
    other = ledger.intend("notes", [1], 0, AT)
    ledger.settle(other, {1: Settled(state=State.DONE, target=101)}, "applied")


def test_a_commit_is_all_or_nothing(ledger: Ledger) -> None:
    with pytest.raises(ZeroDivisionError), ledger.commit("half"):
        ledger.db.execute("INSERT INTO map VALUES ('marker', 1, 2, 'made')")
        raise ZeroDivisionError
    assert ledger.mapped("marker", 1) is None
    ledger.begin(RUN)  # and the next one is not held up by it


# ----------------------------------------------------------------------------------------------------- on the disk


def test_what_is_committed_waits_for_the_disk_unless_told_not_to(tmp_path: Path) -> None:
    full, off = 2, 0
    for durable, synchronous in ((True, full), (False, off)):
        with Ledger(tmp_path / str(durable), durable=durable) as ledger:
            assert ledger.db.execute("PRAGMA synchronous").fetchone() == (synchronous,)
            assert ledger.db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


KILLED = """
import os, signal, sys
from datetime import UTC, datetime
from crmclient import Contact
from crmclient.migration.ledger import Fresh, Ledger, Settled, State
ledger = Ledger(sys.argv[1])
for number in range(1, 6):
    ledger.ingest([Fresh(kind="contacts", source=number, row=Contact(id=number, name="x" * 2000))], cursor=str(number))
    batch = ledger.intend("contacts", [number], number - 1, datetime.now(UTC))
    if number < 5:
        ledger.settle(batch, {number: Settled(state=State.DONE, target=number)}, "applied")
with ledger.commit("not to be"):
    ledger.db.execute("INSERT INTO map VALUES ('marker', 1, 2, 'made')")
    ledger.db.execute("UPDATE item SET state = 'done', tgt = 5 WHERE src = 5")
    print("within a commit", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.e2e
def test_who_is_killed_within_a_commit_loses_that_one_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "acme.ledger"
    child = subprocess.run([sys.executable, "-c", KILLED, path], capture_output=True, text=True, timeout=60)
    assert (child.returncode, child.stdout) == (-signal.SIGKILL, "within a commit\n"), child.stderr
    with Ledger.read(path) as seen:
        assert seen.counts() == {"contacts": {State.DONE: 4, State.INTENT: 1}}
    with Ledger(path) as ledger:  # whose lock the dead does not hold
        assert ledger.counts() == {"contacts": {State.DONE: 4, State.INTENT: 1}}
        assert ledger.position() == ("5", False)
        assert [batch.sources for batch in ledger.open_batches()] == [(5,)]
        assert ledger.mapped("marker", 1) is None
        assert ledger.violations() == []


def test_only_its_owner_may_read_it_whatever_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "acme.ledger"
    before = os.umask(0)
    try:
        with Ledger(path) as ledger:
            begun(ledger)
            files = sorted(tmp_path.iterdir())
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in files}
    finally:
        os.umask(before)
    assert modes == {f"acme.ledger{end}": 0o600 for end in ("", "-shm", "-wal", ".lock")}
    path.chmod(0o644)
    with Ledger(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_anybody_can_read_it_with_plain_sql(ledger: Ledger) -> None:
    begun(ledger)
    ledger.ingest([Fresh(kind="notes", source=9, row=Note(id=9, text="Звонил", created_at=AT))])
    with closing(sqlite3.connect(f"{ledger.path.as_uri()}?mode=ro", uri=True)) as plain:
        ask: Callable[[str], list[Any]] = lambda sql: plain.execute(sql).fetchall()  # noqa: E731
        assert ask("SELECT src, state, tgt, error FROM item WHERE kind = 'contacts' ORDER BY src") == [
            (1, "done", 101, None),
            (2, "made", 102, None),
            (3, "intent", None, None),
            (4, "rejected", None, "no name"),
        ]
        assert ask("SELECT source, target, started_at FROM run") == [
            ("https://a.example", "https://b.example", "2026-03-20T10:15:00+00:00")
        ]
        assert ask("SELECT kind, watermark, sent_at FROM batch WHERE outcome IS NULL") == [
            ("contacts", 102, "2026-03-20T10:15:00+00:00")
        ]
        # JSON, in which a moment is in UTC and letters are letters.
        assert ask("SELECT tree ->> '$.text', tree ->> '$.created_at.at' FROM row WHERE kind = 'notes'") == [
            ("Звонил", "2026-03-20T10:15:00+00:00")
        ]


def test_it_can_be_looked_at_while_another_writes(ledger: Ledger) -> None:
    batch = begun(ledger)
    with Ledger.read(ledger.path) as seen:
        with ledger.commit("under way"):
            ledger.db.execute("UPDATE item SET error = 'half' WHERE src = 3")
            assert seen.counts() == {"contacts": {State.DONE: 1, State.MADE: 1, State.INTENT: 1, State.REJECTED: 1}}
            assert {item.error for item in seen.items()} == {None, "no name"}
        ledger.settle(batch, {3: Settled(state=State.DONE, target=103, error="half")}, "applied")
        assert seen.counts() == {"contacts": {State.DONE: 2, State.MADE: 1, State.REJECTED: 1}}
        assert seen.violations() == []
        with pytest.raises(LedgerFailed, match="readonly"):
            seen.note_state("mine")
    ledger.note_state("running")  # looking took nothing from whoever writes


def test_two_may_look_at_once_and_looking_holds_nobody_up(tmp_path: Path) -> None:
    path = tmp_path / "l"
    with Ledger(path) as first:
        begun(first)
    with Ledger.read(path) as one, Ledger.read(path) as other, Ledger(path) as writer:
        writer.note_state("running")
        assert one.run() == other.run() == writer.run()


# ---------------------------------------------------------------------------------------------- when it cannot be had


def test_who_opens_one_that_is_in_use_is_told_by_whom_and_since_when(ledger: Ledger) -> None:
    with pytest.raises(
        LedgerInUse, match=rf"in use by process {os.getpid()} since 20\d\d-\d\d-\d\d .* UTC: wait until that run"
    ):
        Ledger(ledger.path)
    begun(ledger)  # who holds it is not disturbed
    ledger.close()
    with Ledger(ledger.path) as next_one:
        assert next_one.run() == RUN


def test_a_file_that_is_no_ledger_is_left_as_it_is(tmp_path: Path) -> None:
    garbage, other = tmp_path / "plan.toml", tmp_path / "other.sqlite"
    garbage.write_text("version = 1\n" * 200)
    with closing(sqlite3.connect(other)) as made:
        made.execute("CREATE TABLE mine (a)")
    other.chmod(0o644)
    before = garbage.read_bytes(), other.read_bytes()
    for opened in (Ledger, Ledger.read):
        with pytest.raises(LedgerFailed, match=r"plan\.toml cannot be used: file is not a database"):
            opened(garbage)
        with pytest.raises(Misconfigured, match=r"other\.sqlite is a database of something else, and no ledger"):
            opened(other)
    assert (garbage.read_bytes(), other.read_bytes()) == before
    assert stat.S_IMODE(other.stat().st_mode) == 0o644


def test_a_ledger_of_another_version_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "l"
    with Ledger(path) as ledger:
        begun(ledger)
        ledger.db.execute("PRAGMA user_version = 2")
    before = path.read_bytes()
    for opened in (Ledger, Ledger.read):
        with pytest.raises(Misconfigured, match="is a ledger of version 2, and this reads version 1"):
            opened(path)
    assert path.read_bytes() == before


def test_a_ledger_that_is_not_there_is_made_to_write_and_not_to_look(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="there is no ledger at"):
        Ledger.read(tmp_path / "none")
    assert not list(tmp_path.iterdir())
    (tmp_path / "empty").touch()
    with pytest.raises(Misconfigured, match="is an empty file: no move has begun by it"):
        Ledger.read(tmp_path / "empty")
    with Ledger(tmp_path / "empty") as ledger:
        begun(ledger)


class Denied(Files):
    """A folder in which nothing may be made: root, who runs tests, may everywhere."""

    def open(self, path: Path, flags: int) -> int:
        raise PermissionError(13, "Permission denied", str(path))


def test_where_it_cannot_be_is_told_by_its_path_and_why(tmp_path: Path) -> None:
    with pytest.raises(LedgerFailed, match=r"missing/l\.lock cannot be opened: there is no folder "):
        Ledger(tmp_path / "missing" / "l")
    with pytest.raises(LedgerFailed, match=r"l\.lock cannot be opened: Permission denied"):
        Ledger(tmp_path / "l", files=Denied())
    (tmp_path / "folder").mkdir()
    with pytest.raises(LedgerFailed, match=r"folder cannot be used: unable to open database file"):
        Ledger(tmp_path / "folder")


class Full(Files):
    """A disk with no room left for a single byte."""

    def write(self, handle: int, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_on_a_full_disk_not_even_the_lock_can_be_written_and_that_passes(tmp_path: Path) -> None:
    with pytest.raises(LedgerFailed, match="No space left on device: make room") as full:
        Ledger(tmp_path / "l", files=Full())
    assert full.value.passing
    Ledger(tmp_path / "l").close()


def test_a_ledger_whose_opening_fails_does_not_hold_the_lock(tmp_path: Path) -> None:
    (tmp_path / "l").write_text("no database" * 100)
    with pytest.raises(LedgerFailed):
        Ledger(tmp_path / "l")
    (tmp_path / "l").unlink()
    with Ledger(tmp_path / "l") as ledger:
        begun(ledger)


def test_a_torn_ledger_says_so(tmp_path: Path) -> None:
    path = tmp_path / "l"
    with Ledger(path) as ledger:
        begun(ledger)
        ledger.ingest(contacts(*range(10, 400)))
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    with pytest.raises(LedgerFailed, match="malformed"), Ledger(path) as ledger:
        list(ledger.items())


def test_a_copy_of_it_goes_on_by_itself(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l") as ledger:
        batch = begun(ledger)
    shutil.copy(tmp_path / "l", tmp_path / "copy")
    with Ledger(tmp_path / "l"), Ledger(tmp_path / "copy") as copy:
        assert copy.open_batches() == [batch]


# ------------------------------------------------------------------------------------------------------ rows as text


def test_a_row_says_something_else_only_when_it_does() -> None:
    row = Contact(id=1, name="Иван", created_at=AT, raw={"a": 1}, written=Contact(name="x"))
    berlin = datetime.fromisoformat("2026-03-20T11:15:00+01:00")
    assert digest(row) == digest(Contact(id=1, name="Иван", created_at=berlin))
    assert digest(row) != digest(Contact(id=1, name="иван", created_at=AT))
    assert len(digest(row)) == 8


def test_what_no_row_holds_cannot_be_kept() -> None:
    with pytest.raises(TypeError, match="cannot be kept in a ledger"):
        as_text(Contact(id=1, name=b"bytes"))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("row", [Contact(id=1, name="cut \ud83d"), Company(id=1, name="cut \ud83d")])
def test_half_a_letter_that_a_vendor_sent_is_kept_as_it_came(ledger: Ledger, row: Any) -> None:
    """JSON may hold half of a pair, as of an emoji that was cut in two; UTF-8 may not."""
    ledger.ingest([Fresh(kind="contacts", source=1, row=row, name=row.name)])
    assert ledger.row("contacts", 1) == row


def test_a_ledger_with_a_hole_in_it_says_so_whoever_asks(tmp_path: Path) -> None:
    path = tmp_path / "l"
    with Ledger(path) as ledger:
        begun(ledger)
        ledger.ingest(contacts(*range(10, 2000)))
        page = ledger.db.execute("PRAGMA page_size").fetchone()[0]
    with path.open("r+b") as file:
        file.seek(20 * page)
        file.write(b"\xff" * (path.stat().st_size - 20 * page))
    asked: list[Callable[[Ledger], Any]] = [
        lambda ledger: list(ledger.items()),
        lambda ledger: list(ledger.items(kind="contacts")),
        lambda ledger: ledger.counts(),
        lambda ledger: ledger.waiting("contacts", 0, 5000),
        lambda ledger: ledger.violations(),
        lambda ledger: [ledger.item("contacts", id) for id in range(2000)],
        lambda ledger: [ledger.row("contacts", id) for id in range(2000)],
    ]
    for ask in asked:
        with Ledger.read(path) as ledger, pytest.raises(LedgerFailed, match=r"cannot be used: .*malformed"):
            ask(ledger)
