"""What a move has done, on disk before and after each thing it does: one SQLite file, readable with plain SQL.

::

    run    one row: which accounts, by which plan, since when, how it ended
    item   one row for each row of the source: what became of it, and its id in the target
    batch  one row for each request that made rows: its outcome is null while nobody knows it
    row    rows of the source that have been read and not yet been dealt with
    page   how far the source has been read
    map    words of the source and their likes in the target that were found or made on the way
    kept   values that the target cannot carry and that the plan says to keep

It holds at every moment: (I1) what is made or done has a target id, and no two of a kind
share one; (I2) a row is ``intent`` if and only if its batch has no outcome; (I3) intent is on disk before the first
byte is sent, and done after the last is read; (I4) a batch's watermark is below every id that its request could have
made; (I5) a row is sent only once what it hangs on is made. ``Ledger.violations()`` looks at what a file can tell: the first
two and the fourth.
"""

import errno
import hashlib
import json
import os
import re
import sqlite3
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any, Final, cast

from attrs import field, fields_dict, frozen, has

from crmclient import entities
from crmclient.entities import Id, Kind, Link, Ref
from crmclient.errors import CRMError, Misconfigured
from crmclient.migration.seen import sayable
from crmclient.tokens import FILES, Files

VERSION: Final = 1
_APPLICATION: Final = 0x63726D63  # "crmc"
# What is said of a row that is known from the target alone.
ADOPTED: Final = "adopted"


class LedgerFailed(CRMError):
    """The ledger cannot be written or read: nothing more is sent. What was sent before is in it, or in doubt.

    ``passing``: its disk is full, and there may be room again.
    """

    def __init__(self, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing


class LedgerInUse(Misconfigured):
    """Another process works by this ledger."""


class State(StrEnum):
    """What became of a row of the source."""

    PENDING = "pending"
    """Read, and not sent."""
    INTENT = "intent"
    """About to be sent, or sent, and nobody knows the answer."""
    MADE = "made"
    """In the target, with its id; what follows it (a link, its completion) is not done yet."""
    DONE = "done"
    REJECTED = "rejected"
    """Refused for good, or hung on a row that was; ``error`` says why."""
    SKIPPED = "skipped"
    """There is no place for it in the target; ``error`` says why."""
    FOLDED = "folded"
    """No row of its own there: it stays as words on others."""
    DOUBT = "doubt"
    """It is certainly or perhaps in the target and cannot be told from others there: it is never sent again."""


SETTLED: Final = frozenset({State.DONE, State.REJECTED, State.SKIPPED, State.FOLDED, State.DOUBT})

_SCHEMA: Final = """
CREATE TABLE run (id TEXT PRIMARY KEY, source TEXT, target TEXT, plan TEXT, plan_hash TEXT, caps_hash TEXT,
                  started_at TEXT, ended_at TEXT, state TEXT, verdict TEXT);
CREATE TABLE item (kind TEXT, src, state TEXT, tgt, batch INTEGER, digest BLOB, wrote TEXT, attempts INTEGER DEFAULT 0,
                   above, name TEXT, error TEXT, PRIMARY KEY (kind, src)) WITHOUT ROWID;
CREATE UNIQUE INDEX one_target ON item (kind, tgt) WHERE tgt IS NOT NULL;
CREATE INDEX in_doubt ON item (batch) WHERE state = 'intent';
CREATE INDEX unfinished ON item (kind) WHERE state = 'made';
CREATE TABLE batch (id INTEGER PRIMARY KEY, kind TEXT, body_hash BLOB, sent_at TEXT, watermark INTEGER,
                    certain INTEGER DEFAULT 0,
                    partly INTEGER DEFAULT 0, outcome TEXT);
CREATE TABLE row (seq INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT, src, tree TEXT);
CREATE INDEX in_order ON row (kind, seq);
CREATE UNIQUE INDEX one_row ON row (kind, src);
CREATE TABLE page (pass INTEGER PRIMARY KEY, cursor TEXT, rows INTEGER, ended INTEGER);
CREATE TABLE map (kind TEXT, src, tgt, how TEXT, PRIMARY KEY (kind, src)) WITHOUT ROWID;
CREATE TABLE kept (kind TEXT, src, what TEXT, value TEXT, PRIMARY KEY (kind, src, what)) WITHOUT ROWID;
"""


@frozen(kw_only=True)
class Run:
    """Which move this ledger is of. ``source`` and ``target`` are addresses; ``verdict`` is what verifying said, as JSON."""

    id: str
    source: str
    target: str
    plan: str
    plan_hash: str
    caps_hash: str
    started_at: datetime
    ended_at: datetime | None = None
    state: str = "running"
    verdict: str | None = None


@frozen(kw_only=True)
class Item:
    """What became of one row of the source."""

    kind: str
    source: Id
    state: State
    target: Id | None = None
    batch: int | None = None
    digest: bytes | None = None
    wrote: str | None = None
    attempts: int = 0
    above: Id | None = None
    name: str | None = None
    error: str | None = None


@frozen(kw_only=True)
class Fresh:
    """A row of the source as it comes to the ledger. ``above`` is the company a contact names, by the source's id."""

    kind: str
    source: Id
    row: Any
    state: State = State.PENDING
    above: Id | None = None
    name: str | None = None
    error: str | None = None
    kept: Mapping[str, Any] = field(factory=dict[str, Any])


@frozen(kw_only=True)
class Batch:
    """Rows that were to be made by one request. ``outcome`` is None while nobody knows it.

    ``certain``: the answer said that they were made, and did not tell their ids.
    """

    id: int
    kind: str
    sources: tuple[Id, ...]
    sent_at: datetime
    watermark: int
    certain: bool = False
    outcome: str | None = None


@frozen(kw_only=True)
class Settled:
    """What is known now of one row of a batch."""

    state: State
    target: Id | None = None
    error: str | None = None
    wrote: str | None = None
    """A digest of what the target was told (``verify.own``)."""
    struck: bool = False
    """It was certainly not applied, so that it does not count as a try."""
    kept: Mapping[str, Any] = field(factory=dict[str, Any])
    """What of it the target cannot carry and the plan says to keep, as JSON by what it is."""


class Ledger:
    """One move's ledger. Whoever opens it to write is alone; ``Ledger.read`` looks while another writes.

    ``durable`` waits until each commit has reached the disk itself, so that it survives a power cut and not only a kill.
    Raises LedgerInUse, which names the process that holds it; Misconfigured for a file that is no ledger or is
    of another version; LedgerFailed where it cannot be opened.
    """

    def __init__(self, path: str | Path, *, durable: bool = True, files: Files = FILES) -> None:
        self.path = Path(path)
        self._files = files
        self._lock = self._taken()
        try:
            self._open(f"{self.path.absolute().as_uri()}?mode=rwc", durable)
        except BaseException:
            self._files.close(self._lock)
            raise

    @classmethod
    def read(cls, path: str | Path) -> "Ledger":
        """The ledger of a run that may be going on, to look at."""
        ledger = cls.__new__(cls)
        ledger.path, ledger._files, ledger._lock = Path(path), FILES, None
        if not ledger.path.exists():
            raise Misconfigured(f"there is no ledger at {path}")
        ledger._open(f"{ledger.path.absolute().as_uri()}?mode=ro", durable=False)
        return ledger

    def _open(self, uri: str, durable: bool) -> None:
        with _told(self.path):
            self.db = sqlite3.connect(uri, uri=True, isolation_level=None)
        try:
            self._begin(durable)
        except BaseException:
            self.db.close()
            raise

    def _begin(self, durable: bool) -> None:
        writes = self._lock is not None
        with _told(self.path):
            self.db.execute("PRAGMA busy_timeout = 5000")
            version, application = (
                self.db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("user_version", "application_id")
            )
            empty = not self.db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if not empty and application != _APPLICATION:
            raise Misconfigured(f"{self.path} is a database of something else, and no ledger")
        if not empty and version != VERSION:
            raise Misconfigured(f"{self.path} is a ledger of version {version}, and this reads version {VERSION}")
        if empty and not writes:
            raise Misconfigured(f"{self.path} is an empty file: no move has begun by it")
        with _told(self.path):
            if writes:
                os.chmod(self.path, 0o600)
                self.db.execute("PRAGMA journal_mode = WAL")
                self.db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'OFF'}")
                self.db.execute("PRAGMA cache_size = -4000")
            if empty:
                with self.commit("schema"):
                    for statement in _SCHEMA.split(";"):
                        self.db.execute(statement)
                    self.db.execute(f"PRAGMA application_id = {_APPLICATION}")
                    self.db.execute(f"PRAGMA user_version = {VERSION}")

    def _taken(self) -> int:
        """A lock that ends with its process. Raises LedgerInUse."""
        file = self.path.with_name(self.path.name + ".lock")
        try:
            handle = self._files.open(file, os.O_RDWR | os.O_CREAT)
        except OSError as wrong:
            folder = "" if file.parent.is_dir() else f": there is no folder {file.parent}"
            raise LedgerFailed(f"{file} cannot be opened{folder or f': {wrong.strerror}'}") from None
        try:
            if not self._files.lock(handle):
                holder = self._files.read(handle, 200).decode(errors="replace").strip() or "another process"
                raise LedgerInUse(f"{self.path} is in use by {holder}: wait until that run ends, or end it")
            with _told(self.path):
                os.ftruncate(handle, 0)
                self._files.write(
                    handle, f"process {os.getpid()} since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC".encode()
                )
        except BaseException:
            self._files.close(handle)
            raise
        return handle

    def close(self) -> None:
        self.db.close()
        if self._lock is not None:
            self._files.close(self._lock)
            self._lock = None

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @contextmanager
    def commit(self, what: str) -> Generator[None]:
        """All of it or nothing. Raises LedgerFailed where it cannot be written; then nothing of it is."""
        with _told(self.path):
            self.db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.db.execute("COMMIT")
            except BaseException:
                if self.db.in_transaction:
                    self.db.execute("ROLLBACK")
                raise

    def _ask(self, sql: str, given: Sequence[Any] = ()) -> "_Asked":
        with _told(self.path):
            return _Asked(self.path, self.db.execute(sql, given))

    # ------------------------------------------------------------------------------------------------------- the run

    def run(self) -> Run | None:
        """The move that has begun by this ledger."""
        found = self._ask(f"SELECT {', '.join(_RUN)} FROM run").fetchone()  # noqa: S608  names of our own
        if found is None:
            return None
        told: dict[str, Any] = dict(zip(_RUN, found, strict=True))
        for name in ("started_at", "ended_at"):
            told[name] = datetime.fromisoformat(told[name]) if told[name] else None
        return Run(**told)

    def begin(self, run: Run) -> None:
        with self.commit("begin"):
            told = [getattr(run, name) for name in _RUN]
            marks = ", ".join("?" for _ in _RUN)
            self.db.execute(
                f"INSERT INTO run ({', '.join(_RUN)}) VALUES ({marks})",  # noqa: S608  names of our own
                [part.isoformat() if isinstance(part, datetime) else part for part in told],
            )

    def note_state(self, state: str, at: datetime | None = None, verdict: str | None = None) -> None:
        """How the run stands: ``running``, ``stopped: …`` or ``ended``."""
        with self.commit(f"state {state}"):
            self.db.execute(
                "UPDATE run SET state = ?, ended_at = ?, verdict = coalesce(?, verdict)",
                (state, at.isoformat() if at is not None else None, verdict),
            )

    # ------------------------------------------------------------------------------------------------------- reading

    def ingest(self, rows: Iterable[Fresh], *, cursor: str | None = None, ended: bool = False) -> list[Fresh]:
        """Note rows that were read, and how far; those that were not known before."""
        with self.commit("page"):
            new = [each for each in rows if self._noted(each)]
            self.db.execute(
                "INSERT INTO page VALUES (0, ?, ?, ?) ON CONFLICT (pass) DO UPDATE "
                "SET cursor = excluded.cursor, rows = rows + excluded.rows, ended = excluded.ended",
                (cursor, len(new), ended),
            )
        return new

    def _noted(self, fresh: Fresh) -> bool:
        text = None if fresh.row is None else as_text(fresh.row)
        hashed = None if text is None else _hashed(text)
        name, error = sayable(fresh.name), sayable(fresh.error)
        told = (fresh.kind, fresh.source, fresh.state, hashed, fresh.above, name, error)
        sql = "INSERT OR IGNORE INTO item (kind, src, state, digest, above, name, error) VALUES (?, ?, ?, ?, ?, ?, ?)"
        if not self.db.execute(sql, told).rowcount:
            # Of a row that was adopted it was not known yet what it says.
            known = "UPDATE item SET digest = ?, above = ?, name = ? WHERE kind = ? AND src = ? AND digest IS NULL"
            self.db.execute(known, (hashed, fresh.above, name, fresh.kind, fresh.source))
            return False
        self._keep(fresh.kind, fresh.source, fresh.kept)
        if fresh.state is State.PENDING:
            self.db.execute("INSERT INTO row (kind, src, tree) VALUES (?, ?, ?)", (fresh.kind, fresh.source, text))
        return True

    def position(self) -> tuple[str | None, bool]:
        """Where reading goes on, and whether it has ended."""
        found = self._ask("SELECT cursor, ended FROM page WHERE pass = 0").fetchone()
        return (None, False) if found is None else (found[0], bool(found[1]))

    def waiting(self, kind: str, after: int, most: int) -> list[tuple[int, Id, Any]]:
        """Rows of a kind that are not dealt with, beyond a place in the order they were read in."""
        sql = "SELECT seq, src, tree FROM row WHERE kind = ? AND seq > ? ORDER BY seq LIMIT ?"
        found = self._ask(sql, (kind, after, most)).fetchall()
        return [(seq, source, from_text(tree)) for seq, source, tree in found]

    def row(self, kind: str, source: Id) -> Any:
        """A row of the source that is not dealt with yet."""
        found = self._ask("SELECT tree FROM row WHERE kind = ? AND src = ?", (kind, source)).fetchone()
        return None if found is None else from_text(found[0])

    # -------------------------------------------------------------------------------------------------------- writing

    def intend(self, kind: str, sources: Sequence[Id], watermark: int, at: datetime, body: object = None) -> Batch:
        """Rows are about to be sent: on disk before the first byte leaves."""
        with self.commit(f"intent {kind}"):
            sql = "INSERT INTO batch (kind, body_hash, sent_at, watermark) VALUES (?, ?, ?, ?)"
            hashed = None if body is None else hashlib.blake2b(repr(body).encode(), digest_size=8).digest()
            id = self.db.execute(sql, (kind, hashed, at.isoformat(), watermark)).lastrowid
            assert id is not None  # noqa: S101  an INSERT has one
            self.db.executemany(
                "UPDATE item SET state = 'intent', batch = ?, attempts = attempts + 1 WHERE kind = ? AND src = ?",
                [(id, kind, source) for source in sources],
            )
        return Batch(id=id, kind=kind, sources=tuple(sources), sent_at=at, watermark=watermark)

    def settle(self, batch: Batch, became: Mapping[Id, Settled], outcome: str | None, *, certain: bool = False) -> None:
        """What became of a batch's rows; those not named stay in doubt, and then there is no outcome yet."""
        with self.commit(f"settle {batch.kind}"):
            if certain:
                self.db.execute("UPDATE batch SET certain = 1 WHERE id = ?", (batch.id,))
            for source, told in became.items():
                self._became(batch.kind, source, told, None if told.state is State.PENDING else batch.id)
            if outcome is None and any(told.target is not None for told in became.values()):
                self.db.execute("UPDATE batch SET partly = 1 WHERE id = ?", (batch.id,))
            if outcome is not None:
                self.db.execute("UPDATE batch SET outcome = ? WHERE id = ?", (outcome, batch.id))

    def become(self, kind: str, became: Mapping[Id, Settled]) -> None:
        """What became of rows for which no request was made, or that were made and are finished now."""
        with self.commit(f"become {kind}"):
            for source, told in became.items():
                self._became(kind, source, told, None)

    def _became(self, kind: str, source: Id, told: Settled, batch: int | None) -> None:
        self.db.execute(
            # What was said of a row as it was made is still true once it is finished.
            "UPDATE item SET state = ?, tgt = coalesce(?, tgt), batch = coalesce(?, batch), wrote = coalesce(?, wrote), "
            "attempts = attempts - ?, "
            "error = coalesce(?, CASE WHEN state = 'made' THEN error END) WHERE kind = ? AND src = ?",
            (told.state, told.target, batch, told.wrote, int(told.struck), sayable(told.error), kind, source),
        )
        self._keep(kind, source, told.kept)
        if told.state in SETTLED:
            self.db.execute("DELETE FROM row WHERE kind = ? AND src = ?", (kind, source))

    def changed(
        self, kind: str, source: Id, found: bytes, *, wrote: str | None = None, error: str | None = None
    ) -> None:
        """A row of the source says something else by now; ``wrote``: the target has been told."""
        with self.commit(f"changed {kind}"):
            sql = "UPDATE item SET digest = ?, wrote = coalesce(?, wrote), error = ? WHERE kind = ? AND src = ?"
            self.db.execute(sql, (found, wrote, sayable(error), kind, source))

    def outdate(self, kind: str, source: Id) -> None:
        """What a row hangs on has come since: it is looked at again, even if nobody lives to do it now."""
        with self.commit(f"outdate {kind}"):
            self.db.execute("UPDATE item SET digest = x'' WHERE kind = ? AND src = ?", (kind, source))

    def reopen(self, fresh: Fresh) -> None:
        """A row that had no place or was refused says something else by now, or what it hangs on has come: once more."""
        with self.commit(f"reopen {fresh.kind}"):
            sql = "UPDATE item SET state = 'pending', digest = ?, attempts = 0, error = NULL WHERE kind = ? AND src = ?"
            self.db.execute(sql, (digest(fresh.row), fresh.kind, fresh.source))
            row = (fresh.kind, fresh.source, as_text(fresh.row))
            self.db.execute("INSERT OR REPLACE INTO row (kind, src, tree) VALUES (?, ?, ?)", row)

    def retry(self) -> int:
        """Have the rows that were refused tried once more, and those that hung on them: how many they are.

        Whoever goes on does it as he reads the source again to verify, also where another run was killed before that.
        What could not be read, or had no place, stays as it is.
        """
        with self.commit("retry"):
            # What a row said that cannot be read was never known.
            sql = "UPDATE item SET digest = x'' WHERE state = 'rejected' AND digest IS NOT NULL"
            return self.db.execute(sql).rowcount

    def adopt(self, pairs: Iterable[tuple[str, Id, Id]]) -> int:
        """Rows that are in the target already, as their marks or what they say has told: kind and both ids. How many."""
        sql = "INSERT OR IGNORE INTO item (kind, src, state, tgt, error) VALUES (?, ?, 'done', ?, ?)"
        with self.commit("adopt"):
            return sum(self.db.execute(sql, (*pair, ADOPTED)).rowcount for pair in pairs)

    def _keep(self, kind: str, source: Id, values: Mapping[str, Any]) -> None:
        self.db.executemany(
            "INSERT OR REPLACE INTO kept VALUES (?, ?, ?, ?)",
            # Half of a letter is escaped, as JSON has it.
            [
                (kind, source, what, _HALF.sub(_escaped, json.dumps(value, ensure_ascii=False)))
                for what, value in values.items()
            ],
        )

    def learn(self, kind: str, source: Id, target: Id | None, how: str) -> None:
        """A word of the source and its like in the target."""
        with self.commit(f"map {kind}"):
            self.db.execute("INSERT OR REPLACE INTO map VALUES (?, ?, ?, ?)", (kind, source, target, sayable(how)))

    # -------------------------------------------------------------------------------------------------------- looking

    def item(self, kind: str, source: Id) -> Item | None:
        found = self._ask(f"{_ITEMS} WHERE kind = ? AND src = ?", (kind, source)).fetchone()
        return None if found is None else _item(found)

    def items(self, *states: State, kind: str | None = None) -> Iterator[Item]:
        """Rows by what became of them: of these states, or all; in no particular order of kinds."""
        # As literals: an index of some states is not used for what is only known later.
        wanted = ", ".join(f"'{state}'" for state in states or State)
        only = "" if len(states) != 1 else f"state = '{states[0]}'"
        sql = f"{_ITEMS} WHERE {only or f'state IN ({wanted})'}"
        if kind is not None:
            yield from map(_item, self._ask(f"{sql} AND kind = ?", (kind,)))
        else:
            yield from map(_item, self._ask(sql))

    def open_batches(self) -> list[Batch]:
        """Requests whose outcome nobody knows, the oldest first."""
        sql = "SELECT id, kind, sent_at, watermark, certain FROM batch WHERE outcome IS NULL ORDER BY id"
        return [
            Batch(
                id=id,
                kind=kind,
                sources=self._sources(id),
                sent_at=datetime.fromisoformat(at),
                watermark=mark,
                certain=bool(certain),
            )
            for id, kind, at, mark, certain in self._ask(sql).fetchall()
        ]

    def _sources(self, batch: int) -> tuple[Id, ...]:
        sql = "SELECT src FROM item WHERE state = 'intent' AND batch = ? ORDER BY src"
        return tuple(source for (source,) in self._ask(sql, (batch,)))

    def partly(self, batch: Batch) -> bool:
        """Whether some rows of a request whose outcome is unknown are known to have been made."""
        return bool(self._ask("SELECT partly FROM batch WHERE id = ?", (batch.id,)).fetchone()[0])

    def pairs(self, kind: str) -> Iterator[tuple[Id, Id]]:
        """What became of the rows of a kind that are in the target: the source's id and the target's."""
        sql = "SELECT src, tgt FROM item WHERE kind = ? AND tgt IS NOT NULL"
        yield from self._ask(sql, (kind,))

    def owned(self, kind: str, target: Id) -> bool:
        """Whether a row of the target is known to be one of ours."""
        sql = "SELECT 1 FROM item WHERE kind = ? AND tgt = ?"
        return self._ask(sql, (kind, target)).fetchone() is not None

    def watermark(self, kind: str) -> int:
        """The largest id of a kind that is known to be in the target: whatever is made from now on has a larger one."""
        known = self.mapped("watermark", kind)
        # Below every text: a range of the index, and its last.
        sql = "SELECT tgt FROM item WHERE kind = ? AND tgt IS NOT NULL AND tgt < '' ORDER BY tgt DESC LIMIT 1"
        found = self._ask(sql, (kind,)).fetchone()
        return max(found[0] if found is not None else 0, known if isinstance(known, int) else 0)

    def mapped(self, kind: str, source: Id) -> Id | None:
        found = self._ask("SELECT tgt FROM map WHERE kind = ? AND src = ?", (kind, source)).fetchone()
        return None if found is None else found[0]

    def counts(self) -> dict[str, Counter[State]]:
        """How many rows of each kind there are in each state."""
        told: dict[str, Counter[State]] = {}
        for kind, state, number in self._ask("SELECT kind, state, count(*) FROM item GROUP BY kind, state"):
            told.setdefault(kind, Counter())[State(state)] = number
        return told

    def kept(self) -> Iterator[tuple[str, Id, str, Any]]:
        """Values kept for want of a place: kind, the source's id, what it is, and what it says."""
        for kind, source, what, text in self._ask("SELECT kind, src, what, value FROM kept"):
            yield kind, source, what, json.loads(text)

    def violations(self) -> list[str]:
        """What of its invariants does not hold: nothing, ever."""
        asked = {
            "I1: made or done without a target id": "state IN ('made', 'done') AND tgt IS NULL",
            "I2: intent in a batch that has an outcome, or in none": "state = 'intent' AND "
            "(batch IS NULL OR batch NOT IN (SELECT id FROM batch WHERE outcome IS NULL))",
            "I4: an id below the watermark of its batch": "typeof(tgt) = 'integer' AND state IN ('made', 'done') AND "
            "tgt <= (SELECT watermark FROM batch WHERE batch.id = item.batch)",
        }
        sql = "SELECT kind, src FROM item WHERE "
        found = [f"{what}: {kind} {src}" for what, where in asked.items() for kind, src in self._ask(sql + where)]
        empty = (
            "SELECT id FROM batch WHERE outcome IS NULL AND id NOT IN (SELECT batch FROM item WHERE state = 'intent')"
        )
        found += [f"I2: batch {id} has no outcome and no row in doubt" for (id,) in self._ask(empty)]
        lost = (
            "SELECT kind, src FROM item WHERE state IN ('pending', 'intent', 'made') "
            "AND NOT EXISTS (SELECT 1 FROM row WHERE row.kind = item.kind AND row.src = item.src)"
        )
        found += [f"{kind} {src} is not dealt with, and what it says is gone" for kind, src in self._ask(lost)]
        return found

    # ----------------------------------------------------------------------------- what a translation asks of other rows

    def made(self, kind: str, id: Id) -> Id | None:
        found = self._ask("SELECT tgt FROM item WHERE kind = ? AND src = ?", (kind, id)).fetchone()
        return None if found is None else found[0]

    def company_name(self, id: Id) -> str:
        found = self._ask("SELECT name FROM item WHERE kind = 'companies' AND src = ?", (id,)).fetchone()
        return (found[0] or "") if found is not None else ""

    def company_of(self, contact: Id) -> Link | None:
        item = self.item("contacts", contact)
        made = self.made("companies", item.above) if item is not None and item.above is not None else None
        return None if made is None else Link(Ref(Kind.COMPANY, made))


@frozen
class _Asked:
    """What was asked of the database, with its complaints told as those of a ledger."""

    path: Path
    cursor: sqlite3.Cursor

    def fetchone(self) -> Any:
        with _told(self.path):
            return self.cursor.fetchone()

    def fetchall(self) -> list[Any]:
        with _told(self.path):
            return self.cursor.fetchall()

    def __iter__(self) -> Iterator[Any]:
        while (row := self.fetchone()) is not None:
            yield row


_RUN: Final = tuple(fields_dict(Run))
_ITEMS: Final = "SELECT kind, src, state, tgt, batch, digest, wrote, attempts, above, name, error FROM item"


def _item(found: tuple[Any, ...]) -> Item:
    kind, source, state, target, batch, hashed, wrote, attempts, above, name, error = found
    return Item(
        kind=kind,
        source=source,
        state=State(state),
        target=target,
        batch=batch,
        digest=hashed,
        wrote=wrote,
        attempts=attempts,
        above=above,
        name=name,
        error=error,
    )


@contextmanager
def _told(path: Path) -> Generator[None]:
    """What SQLite or the disk complains of, in words that say what to do."""
    try:
        yield
    except sqlite3.IntegrityError as wrong:
        raise LedgerFailed(f"{path}: two rows would share one target id: {wrong}") from wrong
    except (sqlite3.DatabaseError, OSError) as wrong:
        full = any(sign in str(wrong) for sign in ("full", "disk I/O", os.strerror(errno.ENOSPC)))
        cure = ": make room and run the same command again" if full else ""
        raise LedgerFailed(f"the ledger {path} cannot be used: {wrong}{cure}", passing=full) from wrong


# --------------------------------------------------------------------------------------------------- rows as text

_CLASSES: Final[Mapping[str, type[Any]]] = {
    each.__name__: each
    for each in (
        *(entities.Contact, entities.Company, entities.Deal, entities.Task, entities.Note),
        *(entities.Ref, entities.Link, entities.Money, entities.Phone, entities.Email, entities.Tag),
        entities.FieldValue,
    )
}
# Half of a letter beyond the first 65,536: a text that was cut by somebody who counts in UTF-16.
_HALF: Final = re.compile("[\ud800-\udfff]")
_WRITTEN: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode
_PLAIN: Final = frozenset({type(None), bool, int, float, str})
# What counts neither for a row's content nor for what is to be made of it.
_ASIDE: Final = frozenset({"raw", "written"})


def as_text(row: Any) -> str:
    """A row of the source, exactly, as JSON; what the server said of it is left out."""
    return _HALF.sub(_escaped, _WRITTEN(_tree(row)))


def _escaped(half: re.Match[str]) -> str:
    return f"\\u{ord(half[0]):04x}"


def from_text(text: str) -> Any:
    return _value(json.loads(text))


def digest(row: Any) -> bytes:
    """What tells whether a row says something else than it did."""
    return _hashed(as_text(row))


def _hashed(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


@cache
def _kept(kind: type[Any]) -> tuple[tuple[str, Any], ...] | None:
    """The fields of a class that are kept, with their defaults, if it has fields: looked up for every row."""
    if not has(kind):
        return None
    return tuple((name, known.default) for name, known in fields_dict(kind).items() if name not in _ASIDE)


def _tree(part: Any) -> Any:
    kind = cast("type[Any]", type(part))
    if kind in _PLAIN:
        return part
    if kind is tuple:
        return [_tree(each) for each in cast("tuple[Any, ...]", part)]
    if (kept := _kept(kind)) is not None:
        # What is as in a new one is left out; that a reference leads to no row is said.
        tree: dict[str, Any] = {"$": kind.__name__}
        for name, default in kept:
            held = getattr(part, name)
            if held is default or (not held and held == {}):
                continue
            if default is None or held != default:
                tree[name] = _tree(held)
        return tree
    if isinstance(part, bool | int | float):
        return part
    if isinstance(part, StrEnum):
        return str(part)
    if isinstance(part, datetime):
        # One without a zone is nobody's, and not this machine's.
        return {"$": "datetime", "at": (part if part.tzinfo is None else part.astimezone(UTC)).isoformat()}
    if isinstance(part, date):
        return {"$": "date", "at": part.isoformat()}
    if isinstance(part, timedelta):
        return {"$": "timedelta", "s": part.total_seconds()}
    if isinstance(part, Decimal):
        return {"$": "Decimal", "is": str(part)}
    if isinstance(part, frozenset | set):
        return sorted(cast("frozenset[str]", part))
    if isinstance(part, tuple):
        return [_tree(each) for each in cast("tuple[Any, ...]", part)]
    if isinstance(part, list):
        return {"$": "list", "of": [_tree(each) for each in cast("list[Any]", part)]}
    if isinstance(part, Mapping):
        return {"$": "map", "of": [[name, _tree(each)] for name, each in cast("Mapping[str, Any]", part).items()]}
    raise TypeError(f"{part!r:.80} cannot be kept in a ledger")


_KINDS: Final[Mapping[str, Callable[[dict[str, Any]], Any]]] = {
    "datetime": lambda tree: datetime.fromisoformat(tree["at"]),
    "date": lambda tree: date.fromisoformat(tree["at"]),
    "timedelta": lambda tree: timedelta(seconds=tree["s"]),
    "Decimal": lambda tree: Decimal(tree["is"]),
    "list": lambda tree: [_value(part) for part in tree["of"]],
    "map": lambda tree: {name: _value(part) for name, part in tree["of"]},
}
_ENUMS: Final[Mapping[tuple[str, str], type[StrEnum]]] = {
    ("Ref", "kind"): entities.Kind,
    ("Phone", "label"): entities.Label,
    ("Email", "label"): entities.Label,
    ("FieldValue", "type"): entities.FieldType,
    ("Note", "kind"): entities.NoteKind,
    ("Deal", "outcome"): entities.Outcome,
}


def _value(tree: Any) -> Any:
    if isinstance(tree, list):
        return tuple(_value(each) for each in tree)  # pyright: ignore[reportUnknownVariableType]
    if not isinstance(tree, dict):
        return tree
    told: dict[str, Any] = tree  # pyright: ignore[reportUnknownVariableType]
    name = told["$"]
    if name in _KINDS:
        return _KINDS[name](told)
    parts: dict[str, Any] = {
        key: _ENUMS[name, key](part) if (name, key) in _ENUMS else _value(part)
        for key, part in told.items()
        if key != "$"
    }
    if "unread" in parts:
        parts["unread"] = frozenset(parts["unread"])
    return _CLASSES[name](**parts)
