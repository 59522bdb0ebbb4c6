"""An account's data, whosever it is: neutral rows in SQLite; what a row looks like on the wire is a face's affair.

Rows are plain dicts that JSON can hold. A row always has every key of its kind (``KINDS`` lists them with their
defaults), so a face may index without asking. Times are epoch seconds. What only one face knows about a row lives in
its ``extra`` dict; what only one face knows as a kind of rows lives in ``record``, told apart by ``family``.

    phones      [{"value": "+7…", "label": "work" | "workdd" | "mobile" | "fax" | "home" | "other"}]
    emails      [{"value": "a@b", "label": "work" | "private" | "other"}]
    addresses   [{"value": "…"}]      urls, messengers likewise, a messenger with a "label" for its network
    fields      {"<field id>": [{"value": …, "enum_id": int?}]}: text as str, numeric as int or decimal string, a date
                as the epoch of its midnight in the account's zone, a select as the enum's text with its enum_id.
                Phones, e-mails, addresses, urls and the position are not here, though they have field rows (PHONE …).
    contacts    of a deal: [{"id": int, "main": bool}]
    tags        names; the tag rows that give names their ids come by themselves
"""

import json
import random
import sqlite3
import weakref
from array import array
from bisect import bisect_right
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from typing import Any, Final, TypeAlias, cast

from attrs import frozen

from crmclient.clock import SYSTEM_CLOCK, Clock

Row: TypeAlias = dict[str, Any]
Key: TypeAlias = int | tuple[int, int]
"""A row's id; a stage's is (pipeline_id, id), since every pipeline has its own won and lost under the same two ids."""

WON: Final = 142
LOST: Final = 143

_WHO: Row = {"created_by": None, "updated_by": None, "created_at": None, "updated_at": None}
_CARD: Row = {**_WHO, "owner": None, "tags": [], "fields": {}, "deleted": False, "extra": {}}

KINDS: Final[Mapping[str, Row]] = {
    "contact": {
        "name": "",
        "first_name": "",
        "last_name": "",
        "position": None,
        "phones": [],
        "emails": [],
        "messengers": [],
        "urls": [],
        "addresses": [],
        "company": None,
        "company_id": None,
        **_CARD,
    },
    "company": {"name": "", "phones": [], "emails": [], "urls": [], "addresses": [], **_CARD},
    "deal": {
        "name": "",
        "price": 0,
        "pipeline_id": None,
        "stage_id": None,
        "contacts": [],
        "company_id": None,
        "loss_reason_id": None,
        "closed_at": None,
        **_CARD,
    },
    "task": {
        "text": "",
        "type_id": 1,
        "due": None,
        "duration": 0,
        "done": False,
        "result": None,
        "target_kind": None,
        "target_id": None,
        "owner": None,
        **_WHO,
        "extra": {},
    },
    "note": {
        "kind": "common",
        "text": "",
        "params": {},
        "target_kind": None,
        "target_id": None,
        "owner": None,
        **_WHO,
        "extra": {},
    },
    "user": {"name": "", "email": "", "admin": False, "active": True, "role": "manager", "extra": {}},
    "pipeline": {"name": "", "sort": 0, "main": False, "archived": False, "extra": {}},
    "stage": {
        "pipeline_id": None,
        "name": "",
        "slug": "",
        "sort": 0,
        "color": "#fffeb2",
        "type": "open",
        "editable": True,
        "extra": {},
    },
    "field": {"entity": "", "code": None, "name": "", "type": "text", "sort": 0, "enums": [], "extra": {}},
    "tag": {"entity": "", "name": "", "extra": {}},
    "account": {
        "name": "",
        "subdomain": "",
        "currency": "RUB",
        "zone": "Europe/Moscow",
        "language": "ru",
        "created_at": None,
        "extra": {},
    },
    "task_type": {"name": "", "code": None, "extra": {}},
    "loss_reason": {"name": "", "sort": 0, "created_at": None, "updated_at": None, "extra": {}},
    "webhook": {"url": "", "events": [], "active": True, **_WHO, "extra": {}},
    "record": {"family": "", "name": "", **_WHO, "deleted": False, "extra": {}},
}
"""Every kind with every key a row of it has besides ``id``, and what the key is when nothing was given."""

# What can be asked of 100,000 rows without reading their documents. Everything else is asked of the JSON.
_CARD_COLUMNS: Final = ("created_at", "updated_at", "owner", "deleted")
_COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "contact": (*_CARD_COLUMNS, "name", "company", "company_id"),
    "company": (*_CARD_COLUMNS, "name"),
    "deal": (*_CARD_COLUMNS, "pipeline_id", "stage_id", "company_id", "closed_at"),
    "task": ("created_at", "updated_at", "owner", "done", "due", "target_kind", "target_id"),
    "note": ("created_at", "updated_at", "owner", "kind", "target_kind", "target_id"),
    "stage": ("pipeline_id",),
    "field": ("entity",),
    "tag": ("entity", "name"),
    "record": ("family", "created_at", "updated_at", "deleted"),
}
_SEARCHED: Final = frozenset({"contact", "company", "deal", "task", "note"})
_OWNED: Final = frozenset({"contact", "company", "deal", "task", "note"})


class Absent(LookupError):
    """There is no such row."""


@frozen
class Range:
    """At least ``low`` and at most ``high``; None leaves that side open."""

    low: int | str | None = None
    high: int | str | None = None


@frozen
class Contains:
    """The text occurs somewhere in the value, whatever its case. Asked of ``search`` it means anywhere in the card."""

    text: str


@frozen
class Not:
    """Anything but this value or these."""

    value: "Value | Collection[Value]"


Value: TypeAlias = str | int | float | bool | None
Condition: TypeAlias = Value | Range | Contains | Not | Collection[Value]
Where: TypeAlias = Mapping[str, Condition] | Sequence[Mapping[str, Condition]]
"""All conditions of a mapping hold; of several mappings at least one does."""


class World:
    """One account's rows. Used from one thread; every public write is one transaction.

    A fresh world holds the account, three users, two pipelines, task types and field definitions. Opened on a file that
    is a world already, it goes on with what is there. ``sparse`` is a seed: ids grow from here on by steps of up to a
    thousand that look like chance.
    """

    def __init__(self, path: str = ":memory:", *, clock: Clock, sparse: int | None = None) -> None:
        self._open(path, clock)
        self.sparse = sparse
        self._fresh = not self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'counter'").fetchone()
        if self._fresh:
            self._beginning()._db.backup(self._db)
        self._last = self._stored_last()

    @staticmethod
    @cache
    def _beginning() -> "World":
        """What every world begins as, made once and copied: none of its rows is dated by a clock."""
        world = World.__new__(World)
        world._open(":memory:", SYSTEM_CLOCK)
        world.sparse = None
        world._last = 4800
        with world.transaction():
            _create_tables(world._db)
            _furnish(world)
        return world

    def _open(self, path: str, clock: Clock) -> None:
        self.path = path
        self.clock = clock
        # isolation_level=None: no implicit transactions, ours are the only ones.
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        # A forgotten world closes quietly instead of warning (3.13 warns, and tests turn warnings into errors).
        self._finalizer = weakref.finalize(self, self._db.close)
        self._depth = 0
        self._tags: dict[tuple[str, str], int] = {}
        self._times, self._before = array("d"), array("q")
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")

    def close(self) -> None:
        self._finalizer()

    def __enter__(self) -> "World":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def copy(self, *, clock: Clock | None = None) -> "World":
        """A world in memory with the rows of this one: what is changed in either, the other does not know."""
        made = World.__new__(World)
        made._open(":memory:", clock or self.clock)
        made.sparse = self.sparse
        made.become(self)
        return made

    def become(self, other: "World") -> None:
        """Have the rows of another world and no others."""
        other._db.backup(self._db)
        self._last = self._stored_last()
        self._tags.clear()
        self._times, self._before = array("d"), array("q")
        self._fresh = False

    @property
    def untouched(self) -> bool:
        """Whether it is as every world begins."""
        return self._fresh and self._depth == 0 and self._db.total_changes == 0

    # --- reading -----------------------------------------------------------------------------------------------------

    @property
    def account(self) -> Row:
        return self.select("account")[0]

    @property
    def admin(self) -> Row:
        """The user in whose name things happen when nobody else is named."""
        return self.select("user", where={"admin": True}, limit=1)[0]

    @property
    def newest(self) -> int:
        """The last id that was given out."""
        return self._last

    def newest_at(self, at: float) -> int:
        """The last id that had been given out by then, in the clock's monotonic seconds."""
        place = bisect_right(self._times, at)
        return self._before[place] if place < len(self._times) else self._last

    def get(self, kind: str, id: Key) -> Row | None:
        clause, values = _key(kind, id)
        if not all(map(_fits, values)):
            return None
        found = self._db.execute(f"SELECT doc FROM {_table(kind)} WHERE {clause}", values).fetchone()
        return None if found is None else cast(Row, json.loads(found[0]))

    def row(self, kind: str, id: Key) -> Row:
        """A row that must be there, or ``Absent``."""
        found = self.get(kind, id)
        if found is None:
            raise Absent(f"there is no {kind} {id}")
        return found

    def select(
        self,
        kind: str,
        *,
        where: Where | None = None,
        order: str = "id",
        descending: bool = False,
        limit: int | None = None,
        offset: int = 0,
    ) -> list[Row]:
        """Rows in order, ties by id in the same direction. ``deleted`` rows are rows too: exclude them yourself.

        ``where`` names keys of the kind, and besides them ``search`` (with ``Contains``), ``indexed`` (the id once more,
        for what a search has got round to) and, for deals, ``contact`` (deals that have this contact, or one of these).
        A value means equal, a collection means one of, and then there are ``Range``, ``Contains`` and ``Not``.
        """
        table = _table(kind)
        clause, values = _clause(kind, where)
        way = "DESC" if descending else "ASC"
        ordering = f"{_column(kind, order)} {way}, id {way}" if order != "id" else f"id {way}"
        # The inner query walks an index alone, so a far offset does not read the documents it skips.
        sql = (
            f"SELECT doc FROM {table} WHERE rowid IN"
            f" (SELECT rowid FROM {table} WHERE {clause} ORDER BY {ordering} LIMIT ? OFFSET ?) ORDER BY {ordering}"
        )
        found = self._db.execute(sql, (*values, -1 if limit is None else limit, offset))
        return [cast(Row, json.loads(doc)) for (doc,) in found]

    def count(self, kind: str, where: Where | None = None) -> int:
        clause, values = _clause(kind, where)
        (number,) = self._db.execute(f"SELECT count(*) FROM {_table(kind)} WHERE {clause}", values).fetchone()
        return cast(int, number)

    # --- writing -----------------------------------------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Generator[None]:
        """All that is written inside is written, or nothing is. Do not await inside. An inner one joins the outer."""
        if self._depth:
            yield
            return
        self._db.execute("BEGIN IMMEDIATE")
        self._depth += 1
        last = self._last
        try:
            yield
            if self._last != last:
                self._db.execute("UPDATE counter SET last = ?", (self._last,))
            self._db.execute("COMMIT")
            if self._last != last:
                self._noted(last)
        except BaseException:
            self._db.execute("ROLLBACK")
            self._last = last
            self._tags.clear()
            raise
        finally:
            self._depth -= 1

    def next_id(self) -> int:
        """An id nobody has had. One sequence for the whole account, growing, with gaps as in any account with life."""
        with self.transaction():
            if self.sparse is None:
                self._last += 1 + (self._last * 2654435761 >> 9) % 3
            else:
                self._last += random.Random(f"{self.sparse} {self._last}").randrange(1, 1000)
            return self._last

    def add(self, kind: str, row: Mapping[str, Any]) -> int:
        """Add one row and give its id. An id in the row is kept."""
        return self.add_many(kind, [row])[0]

    def add_many(self, kind: str, rows: Iterable[Mapping[str, Any]]) -> list[int]:
        """Add all rows or none."""
        table = _table(kind)
        now = self._now()
        someone = self.admin["id"] if kind in _OWNED else None
        ids: list[int] = []
        with self.transaction():
            for given in rows:
                row = _complete(kind, given, now, someone)
                if row["id"] is None:
                    row["id"] = self.next_id()
                self._last = max(self._last, row["id"])
                names, values = _stored(kind, row)
                marks = ", ".join("?" * len(values))
                try:
                    self._db.execute(f"INSERT INTO {table} ({', '.join(names)}) VALUES ({marks})", values)
                except sqlite3.IntegrityError as error:
                    raise ValueError(f"there is a {kind} {row['id']} already") from error
                self._linked(kind, row)
                ids.append(row["id"])
        return ids

    def update(self, kind: str, id: Key, changes: Mapping[str, Any]) -> Row:
        """Change some keys of a row and give the whole of it. ``updated_at`` becomes now unless it is given."""
        return self.update_many(kind, [(id, changes)])[0]

    def update_many(self, kind: str, changes: Iterable[tuple[Key, Mapping[str, Any]]]) -> list[Row]:
        """Change all these rows or none; a row that is not there raises ``Absent``."""
        table = _table(kind)
        now = self._now()
        result: list[Row] = []
        with self.transaction():
            for id, change in changes:
                old = self.row(kind, id)
                if change.get("id", old["id"]) != old["id"]:
                    raise ValueError(f"the id of {kind} {id} cannot change")
                _check_keys(kind, change)
                row = {**old, **change}
                if "updated_at" in row and change.get("updated_at") is None:
                    row["updated_at"] = now
                names, values = _stored(kind, row)
                clause, key = _key(kind, id)
                sets = ", ".join(f"{name} = ?" for name in names)
                self._db.execute(f"UPDATE {table} SET {sets} WHERE {clause}", (*values, *key))
                self._linked(kind, row)
                # What is given back is what was stored, and shares nothing with what was handed in.
                result.append(cast(Row, json.loads(values[-1])))
        return result

    def delete(self, kind: str, id: Key) -> bool:
        """Remove the row for good and say whether it was there. The trash is ``update(…, {"deleted": True})``.

        A deal forgets a contact or company that is gone, a contact its company; whether notes and tasks go too differs
        between vendors and is left to the face.
        """
        clause, values = _key(kind, id)
        if not all(map(_fits, values)):
            return False
        with self.transaction():
            gone = self._db.execute(f"DELETE FROM {_table(kind)} WHERE {clause}", values).rowcount > 0
            if not gone:
                return False
            if kind == "deal":
                self._db.execute("DELETE FROM deal_contact WHERE deal_id = ?", values)
            if kind == "contact":
                for deal in self.select("deal", where={"contact": values[0]}):
                    left = [link for link in deal["contacts"] if link["id"] != values[0]]
                    self.update("deal", deal["id"], {"contacts": left, "updated_at": deal["updated_at"]})
            if kind == "company":
                for holder in ("contact", "deal"):
                    for row in self.select(holder, where={"company_id": values[0]}):
                        self.update(holder, row["id"], {"company_id": None, "updated_at": row["updated_at"]})
            if kind == "tag":
                self._tags.clear()
        return True

    def tag_id(self, entity: str, name: str) -> int:
        """The id of this tag name among the tags of this kind; the tag is made if it was not there."""
        known = self._tags.get((entity, name))
        if known is None:
            found = self.select("tag", where={"entity": entity, "name": name}, limit=1)
            known = found[0]["id"] if found else self.add("tag", {"entity": entity, "name": name})
            self._tags[entity, name] = known
        return known

    # --- inside ------------------------------------------------------------------------------------------------------

    def _now(self) -> int:
        return int(self.clock.now().timestamp())

    def _noted(self, before: int) -> None:
        """Remember when the ids after this one were given out."""
        now = self.clock.monotonic()
        if not self._times or self._times[-1] != now:
            self._times.append(now)
            self._before.append(before)

    def _stored_last(self) -> int:
        return cast(int, self._db.execute("SELECT last FROM counter").fetchone()[0])

    def _linked(self, kind: str, row: Row) -> None:
        for tag in row.get("tags", ()):
            self.tag_id(kind, tag)
        if kind == "deal":
            self._db.execute("DELETE FROM deal_contact WHERE deal_id = ?", (row["id"],))
            self._db.executemany(
                "INSERT OR IGNORE INTO deal_contact (deal_id, contact_id) VALUES (?, ?)",
                [(row["id"], link["id"]) for link in row["contacts"]],
            )


# --- rows and SQL ----------------------------------------------------------------------------------------------------


def _table(kind: str) -> str:
    if kind not in KINDS:
        raise ValueError(f"no kind {kind!r}; there are {', '.join(KINDS)}")
    return f'"{kind}"'


def _key(kind: str, id: Key) -> tuple[str, tuple[int, ...]]:
    if kind == "stage":
        if not isinstance(id, tuple):
            raise TypeError("a stage is found by (pipeline_id, id)")
        return "pipeline_id = ? AND id = ?", id
    if isinstance(id, tuple):
        raise TypeError(f"a {kind} is found by its id alone")
    return "id = ?", (id,)


def _fits(number: int) -> bool:
    """SQLite's integers have 64 bits; what is longer is nobody's id and no reason to fail."""
    return -(2**63) <= number < 2**63


def _check_keys(kind: str, row: Mapping[str, Any]) -> None:
    unknown = [key for key in row if key != "id" and key not in KINDS[kind]]
    if unknown:
        raise ValueError(f"a {kind} has no {', '.join(unknown)}; what only a face knows goes into extra")


def _complete(kind: str, given: Mapping[str, Any], now: int, someone: int | None) -> Row:
    _check_keys(kind, given)
    row: Row = {"id": None, **KINDS[kind], **given}
    if "created_at" in row:
        row["created_at"] = now if row["created_at"] is None else row["created_at"]
    if "updated_at" in row:
        row["updated_at"] = row["created_at"] if row["updated_at"] is None else row["updated_at"]
    if someone is not None:
        for key in ("owner", "created_by"):
            row[key] = someone if row[key] is None else row[key]
        row["updated_by"] = row["created_by"] if row["updated_by"] is None else row["updated_by"]
    return row


_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def _stored(kind: str, row: Row) -> tuple[list[str], list[Any]]:
    names: list[str] = ["id", *_COLUMNS.get(kind, ())]
    values: list[Any] = [row[name] for name in names]
    if kind in _SEARCHED:
        names.append("search")
        values.append(_haystack(row))
    names.append("doc")
    values.append(_ENCODER.encode(row))
    return names, values


def _haystack(row: Row) -> str:
    """What a person would expect to find this card by, casefolded, because SQLite folds ASCII only."""
    parts: list[str] = [
        str(row.get(key) or "") for key in ("name", "first_name", "last_name", "position", "company", "text")
    ]
    for phone in row.get("phones", ()):
        parts.append(str(phone["value"]))
        parts.append("".join(filter(str.isdigit, str(phone["value"]))))
    for key in ("emails", "urls", "addresses", "messengers"):
        parts += [str(item["value"]) for item in row.get(key, ())]
    for values in cast("dict[str, list[Row]]", row.get("fields", {})).values():
        parts += [str(item.get("value", "")) for item in values]
    return "\n".join(part for part in parts if part).casefold()


def _column(kind: str, key: str) -> str:
    if key == "id" or key in _COLUMNS.get(kind, ()) or (key == "search" and kind in _SEARCHED):
        return f'"{key}"'
    if key not in KINDS[kind]:
        raise ValueError(f"a {kind} has no {key}")
    return f"json_extract(doc, '$.{key}')"


def _clause(kind: str, where: Where | None) -> tuple[str, list[Any]]:
    if not where:
        # An empty list of alternatives is nothing at all, not everything.
        return ("1" if where is None or isinstance(where, Mapping) else "0"), []
    if isinstance(where, Mapping):
        return _all_of(kind, where)
    parts = [_all_of(kind, alternative) for alternative in where]
    return " OR ".join(f"({sql})" for sql, _ in parts), [value for _, values in parts for value in values]


def _all_of(kind: str, where: Mapping[str, Condition]) -> tuple[str, list[Any]]:
    clauses: list[str] = []
    values: list[Any] = []
    for key, condition in where.items():
        if key == "contact" and kind == "deal":
            sql, more = _compare("contact_id", condition)
            sql = f"id IN (SELECT deal_id FROM deal_contact WHERE {sql})"
        else:
            sql, more = _compare(_column(kind, "id" if key == "indexed" else key), condition)
        clauses.append(sql)
        values += more
    return " AND ".join(clauses) or "1", values


def _compare(column: str, condition: Condition) -> tuple[str, list[Any]]:
    match condition:
        case None:
            return f"{column} IS NULL", []
        case int() if not _fits(condition):
            return "0", []
        case str() | int() | float():
            return f"{column} = ?", [condition]
        case Range(low, high):
            bounds = [(">=", low), ("<=", high)]
            kept = [(sign, bound) for sign, bound in bounds if bound is not None]
            sql = " AND ".join(f"{column} {sign} ?" for sign, _ in kept)
            return sql or f"{column} IS NOT NULL", [bound for _, bound in kept]
        case Contains(text):
            # search is stored casefolded; any other column only folds ASCII in SQLite.
            return f"instr(lower({column}), ?) > 0" if column != '"search"' else 'instr("search", ?) > 0', [
                text.casefold()
            ]
        case Not(value):
            sql, values = _compare(column, value)
            return f"NOT coalesce(({sql}), 0)", values
        case _:
            given = list(condition)
            # One JSON array instead of a mark for each: SQLite limits how many marks a statement has.
            sql = f"{column} IN (SELECT value FROM json_each(?))"
            if None in given:
                sql = f"({sql} OR {column} IS NULL)"
            return sql, [json.dumps(given, ensure_ascii=False)]


def _create_tables(db: sqlite3.Connection) -> None:
    db.execute("CREATE TABLE counter (last INTEGER NOT NULL)")
    db.execute("INSERT INTO counter VALUES (0)")
    for kind in KINDS:
        trash = "deleted" in _COLUMNS.get(kind, ())
        columns = [f'"{name}"' for name in _COLUMNS.get(kind, ())]
        searched = ["search TEXT"] if kind in _SEARCHED else []
        key = ["id INTEGER", *columns] if kind == "stage" else ["id INTEGER PRIMARY KEY", *columns]
        unique = ["UNIQUE (pipeline_id, id)"] if kind == "stage" else ["UNIQUE (entity, name)"] if kind == "tag" else []
        db.execute(f'CREATE TABLE "{kind}" ({", ".join([*key, *searched, "doc TEXT NOT NULL", *unique])})')
        for name in _COLUMNS.get(kind, ()):
            # Nearly every question excludes the trash and ends in an order by id: an index that carries both answers it
            # without reading a row, while one that began with deleted would tempt the planner away from a better one.
            if name == "deleted":
                indexed = ("id", "deleted", "updated_at", "created_at")
            else:
                indexed = (name, "id", "deleted") if trash else (name, "id")
            db.execute(f'CREATE INDEX "{kind}_{name}" ON "{kind}" ({", ".join(indexed)})')
    db.execute(
        "CREATE TABLE deal_contact (deal_id INTEGER, contact_id INTEGER, PRIMARY KEY (deal_id, contact_id))"
        " WITHOUT ROWID"
    )
    db.execute("CREATE INDEX deal_contact_contact ON deal_contact (contact_id)")


# --- a new account ---------------------------------------------------------------------------------------------------

_BEGINNING: Final = datetime(2024, 1, 15, 6, 0, tzinfo=UTC)
_LATEST: Final = datetime(2026, 3, 1, 18, 0, tzinfo=UTC)

_PIPELINES: Final = (
    (
        "Продажи",
        (
            ("Неразобранное", "unsorted", "unsorted", "#c1c1c1"),
            ("Первичный контакт", "new", "open", "#fffeb2"),
            ("Переговоры", "negotiation", "open", "#ffdc7f"),
            ("Принимают решение", "decision", "open", "#98cbff"),
            ("Согласование договора", "contract", "open", "#ebffb1"),
        ),
    ),
    (
        "Партнёры & Partners",
        (
            ("Неразобранное", "unsorted", "unsorted", "#c1c1c1"),
            ("New", "new", "open", "#d6eaff"),
            ("Demo", "demo", "open", "#f3beff"),
            ("Pilot", "pilot", "open", "#87f2c0"),
        ),
    ),
)


def _furnish(world: World) -> None:
    world.add(
        "account",
        {
            "name": "Рога и Копыта",
            "subdomain": "roga",
            "currency": "RUB",
            "zone": "Europe/Moscow",
            "language": "ru",
            "created_at": int(_BEGINNING.timestamp()),
        },
    )
    world.add_many(
        "user",
        [
            {"name": "Ольга Смирнова", "email": "olga@roga.example", "admin": True, "role": "admin"},
            {"name": "Пётр Кузнецов", "email": "petr@roga.example"},
            {"name": "Anna Lindqvist", "email": "anna@roga.example"},
        ],
    )
    for number, (name, stages) in enumerate(_PIPELINES):
        pipeline = world.add("pipeline", {"name": name, "sort": number + 1, "main": number == 0})
        for place, (title, slug, sort, color) in enumerate(stages):
            open_stage = {"name": title, "slug": slug, "type": sort, "color": color, "editable": sort == "open"}
            world.add("stage", {**open_stage, "pipeline_id": pipeline, "sort": 10 + 10 * place})
        ends = (
            (WON, "Успешно реализовано", "won", 10000, "#CCFF66"),
            (LOST, "Закрыто и не реализовано", "lost", 11000, "#D5D8DB"),
        )
        for id, title, slug, place, color in ends:
            end = {"name": title, "slug": slug, "type": slug, "color": color, "sort": place, "editable": False}
            world.add("stage", {**end, "id": id, "pipeline_id": pipeline})
    world.add_many(
        "task_type",
        [{"id": 1, "name": "Связаться", "code": "FOLLOW_UP"}, {"id": 2, "name": "Встреча", "code": "MEETING"}],
    )
    reasons = [{"name": "Дорого", "sort": 1}, {"name": "Выбрали других", "sort": 2}]
    world.add_many("loss_reason", [{**reason, "created_at": int(_BEGINNING.timestamp())} for reason in reasons])
    phone_codes, email_codes = ("WORK", "WORKDD", "MOB", "FAX", "HOME", "OTHER"), ("WORK", "PRIV", "OTHER")
    for entity in ("contact", "company"):
        if entity == "contact":
            _field(world, entity, "Должность", "text", code="POSITION")
        _field(world, entity, "Телефон", "multitext", code="PHONE", enums=phone_codes, coded=True)
        _field(world, entity, "Email", "multitext", code="EMAIL", enums=email_codes, coded=True)
        if entity == "company":
            _field(world, entity, "Web", "url", code="WEB")
            _field(world, entity, "Адрес", "textarea", code="ADDRESS")
    _field(world, "contact", "Город", "text")
    _field(world, "contact", "Скидка, %", "numeric")
    _field(world, "contact", "Источник", "select", enums=("Сайт", "Звонок", "Выставка", "Рекомендация"))
    _field(world, "contact", "Дата первой покупки", "date")
    _field(world, "company", "ИНН", "text")
    _field(world, "company", "Сотрудников", "numeric")
    _field(world, "company", "Отрасль", "select", enums=("Торговля", "Производство", "Услуги", "IT"))
    _field(world, "company", "Клиент с", "date")
    _field(world, "deal", "Номер договора", "text")
    _field(world, "deal", "Количество", "numeric")
    _field(world, "deal", "Способ оплаты", "select", enums=("Безнал", "Карта", "Наличные"))
    _field(world, "deal", "Дата отгрузки", "date")


def _field(
    world: World,
    entity: str,
    name: str,
    type: str,
    *,
    code: str | None = None,
    enums: Sequence[str] = (),
    coded: bool = False,
) -> int:
    options = [
        {"id": world.next_id(), "value": value, "code": value if coded else None, "sort": place + 1}
        for place, value in enumerate(enums)
    ]
    sort = world.count("field", {"entity": entity}) + 1
    return world.add(
        "field", {"entity": entity, "name": name, "type": type, "code": code, "enums": options, "sort": sort}
    )


# --- people and firms at any size ------------------------------------------------------------------------------------

_RUSSIAN_FIRST: Final = (
    *("Иван", "Мария", "Алексей", "Елена", "Дмитрий", "Ольга", "Сергей"),
    *("Татьяна", "Фёдор", "Юлия", "Артём", "Наталья", "Ильдар", "Айгуль"),
)
_RUSSIAN_LAST: Final = (
    *("Петров", "Сидорова", "Кузнецов", "Смирнова", "Ёлкин", "Щербакова"),
    *("Попов", "Ким", "Гареев", "Дзержинская-Лунц", "Цой", "Жуков"),
)
_LATIN_FIRST: Final = (
    *("John", "Maria", "Søren", "Zoë", "Lukas", "Aisha"),
    *("Wei", "José", "Anna", "Patrick", "Chloé", "Nikolai"),
)
_LATIN_LAST: Final = (
    "Smith",
    "O'Brien",
    "Müller",
    "Jørgensen",
    "van der Berg",
    "García",
    "Lee",
    "Nowak",
    "Brown",
    "Łukasik",
)
_FIRM_FORMS: Final = ("ООО «{}»", "АО «{}»", "ИП {}", "{} LLC", "{} GmbH", 'ООО "{}"')
_FIRM_WORDS: Final = (
    *("Рога и Копыта", "Вектор", "Север-Юг", "Альфа", "Ромашка", "Стройинвест"),
    *("Тёплый Дом", "Acme", "Blue & Sons", "Nordwind", "Café Zürich", "Orion"),
)
_POSITIONS: Final = ("Директор", "Менеджер по закупкам", "CEO", "Sales Manager", "Бухгалтер", None, None)
_TAGS: Final = ("Новый", "Тёплый", "VIP", "постоянный клиент", "newsletter", "R&D", "до 100 тыс.", "не звонить")
_CITIES: Final = ("Москва", "Санкт-Петербург", "Казань", "Алматы", "Berlin", "São Paulo")
_DEAL_NAMES: Final = (
    "Поставка",
    "Внедрение CRM",
    "Продление договора",
    "Website",
    "Консультация",
    "Оборудование <срочно>",
)
_TASK_TEXTS: Final = (
    "Перезвонить",
    "Отправить КП",
    "Уточнить реквизиты",
    "Send the contract",
    "Поздравить\nс днём рождения",
    "",
)
_NOTE_TEXTS: Final = (
    "Просил перезвонить завтра",
    "Бюджет согласован & подписан",
    "Long talk, <b>no</b> result",
    "Скинул прайс 📎",
    "…",
)

# Rows as accounts really have them; one in twenty is one of these.
_UGLY: Final[Sequence[Row]] = (
    {"name": "Мадонна", "first_name": "Мадонна", "last_name": "", "phones": []},
    {"name": "Без Телефона", "first_name": "Без", "last_name": "Телефона", "phones": [], "emails": []},
    {"name": "Очень длинное имя " * 13 + "конец", "first_name": "Очень длинное имя " * 13, "last_name": "конец"},
    {"name": "Zoë 🦄 Ünïcødé 👨‍👩‍👧", "first_name": "Zoë 🦄", "last_name": "Ünïcødé 👨‍👩‍👧"},
    {"name": "محمد بن سلمان", "first_name": "محمد", "last_name": "بن سلمان"},
    {"name": 'Tom "Tommy" & <Jerry> O\'Neil', "first_name": 'Tom "Tommy" &', "last_name": "<Jerry> O'Neil"},
    {"name": "Иван Иванов", "first_name": "Иван", "last_name": "Иванов"},
    {
        "name": "  Пробелы  внутри ",
        "first_name": "  Пробелы ",
        "last_name": " внутри ",
        "tags": ["tag with  spaces", "a+b=c; d"],
    },
    {
        "name": "=HYPERLINK(1;2)",
        "first_name": "",
        "last_name": "=HYPERLINK(1;2)",
        "phones": [{"value": "доб. 12", "label": "other"}],
    },
    {"name": "0", "first_name": "0", "last_name": "", "emails": [{"value": "not-an-address", "label": "other"}]},
)
_CHUNK: Final = 2000
_REMEMBERED: Final = 1000


def populate(
    world: World,
    *,
    contacts: int,
    companies: int = 0,
    deals: int = 0,
    tasks: int = 0,
    notes: int = 0,
    seed: int = 1,
    as_rows: bool = True,
) -> None:
    """Fill an account with what accounts are full of. The same arguments give the same rows.

    ``companies`` is how many different company names there are. With ``as_rows`` each is a company row and contacts
    refer to it by ``company_id`` as well as by name; without, the name on the contact is all there is of a company.
    Every name is on some contact if there are as many contacts as names.
    """
    numbers = (contacts, companies, deals, tasks, notes)
    # No row is dated by a clock: what was made once for a small account can be copied into the next.
    if world.untouched and world.sparse is None and sum(numbers) <= _REMEMBERED:
        world.become(_populated(*numbers, seed, as_rows))
    else:
        _fill(world, *numbers, seed, as_rows)


@lru_cache(maxsize=8)
def _populated(contacts: int, companies: int, deals: int, tasks: int, notes: int, seed: int, as_rows: bool) -> World:
    world = World(clock=SYSTEM_CLOCK)
    _fill(world, contacts, companies, deals, tasks, notes, seed, as_rows)
    return world


def _fill(
    world: World, contacts: int, companies: int, deals: int, tasks: int, notes: int, seed: int, as_rows: bool
) -> None:
    dice = random.Random(seed)
    users = [user["id"] for user in world.select("user")]
    names = _firm_names(companies, dice)
    firms: list[tuple[str, int | None]] = [(name, None) for name in names]
    with world.transaction():
        if as_rows:
            fields = world.select("field", where={"entity": "company"})
            ids = _pour(world, "company", companies, lambda n: _company(names[n], n, companies, users, fields, dice))
            firms = list(zip(names, ids, strict=True))
        fields = world.select("field", where={"entity": "contact"})
        people = _pour(world, "contact", contacts, lambda n: _contact(n, contacts, firms, users, fields, dice))
        fields = world.select("field", where={"entity": "deal"})
        stages = [stage for stage in world.select("stage", order="sort") if stage["type"] != "unsorted"]
        reasons = [reason["id"] for reason in world.select("loss_reason")]
        firm_ids = [id for _, id in firms if id is not None]
        bargains = _pour(
            world, "deal", deals, lambda n: _deal(n, deals, people, firm_ids, stages, reasons, users, fields, dice)
        )
        _pour(world, "task", tasks, lambda n: _task(n, tasks, people, bargains, users, dice))
        _pour(world, "note", notes, lambda n: _note(n, notes, people, bargains, users, dice))


def _pour(world: World, kind: str, number: int, make: Callable[[int], Row]) -> list[int]:
    ids: list[int] = []
    for start in range(0, number, _CHUNK):
        ids += world.add_many(kind, [make(n) for n in range(start, min(start + _CHUNK, number))])
    return ids


def _firm_names(number: int, dice: random.Random) -> list[str]:
    pairs = [form.format(word) for form in _FIRM_FORMS for word in _FIRM_WORDS]
    dice.shuffle(pairs)
    rounds = range(number // len(pairs) + 1)
    return [name if turn == 0 else f"{name} {turn + 1}" for turn in rounds for name in pairs][:number]


def _when(n: int, total: int, users: Sequence[int], dice: random.Random) -> Row:
    """Who made a row and when: ids and creation times grow together, as they do where both are given by one server."""
    span = int((_LATEST - _BEGINNING).total_seconds())
    created = int(_BEGINNING.timestamp()) + span * (n + 1) // (total + 1)
    updated = created + (0 if dice.random() < 0.4 else dice.randrange(0, 30 * 86400))
    owner = dice.choice(users)
    return {
        "owner": owner,
        "created_by": owner,
        "updated_by": dice.choice(users),
        "created_at": created,
        "updated_at": min(updated, int(_LATEST.timestamp())),
    }


def _phone(dice: random.Random, label: str) -> Row:
    digits = f"{dice.randrange(10**9):09}"
    written = dice.choice(("+79{0}", "89{0}", "+7 (9{1}) {2}-{3}-{4}", "+4915{0}", "+1 9{1} {2} {3}{4}"))
    value = written.format(digits, digits[:2], digits[2:5], digits[5:7], digits[7:9])
    return {"value": value, "label": label}


def _field_values(fields: Sequence[Row], dice: random.Random) -> Row:
    filled: Row = {}
    for field in fields:
        if field["code"] is not None or dice.random() < 0.5:
            continue
        match field["type"]:
            case "text":
                filled[str(field["id"])] = [{"value": f"{dice.choice(_CITIES)} {dice.randrange(1, 99)}"}]
            case "numeric":
                filled[str(field["id"])] = [{"value": dice.choice((0, 5, 12, 250, "7.5"))}]
            case "select":
                enum = dice.choice(field["enums"])
                filled[str(field["id"])] = [{"value": enum["value"], "enum_id": enum["id"]}]
            case "date":
                # A date is its midnight in the account's zone, and a fresh world's is Moscow's: +03:00 all year.
                midnight = datetime(2025, 1, 1, tzinfo=UTC) - timedelta(hours=3) + timedelta(days=dice.randrange(400))
                filled[str(field["id"])] = [{"value": int(midnight.timestamp())}]
            case _:
                continue
    return filled


def _some_tags(dice: random.Random) -> list[str]:
    return dice.sample(_TAGS, dice.choice((0, 0, 1, 1, 2, 3)))


def _company(name: str, n: int, total: int, users: Sequence[int], fields: Sequence[Row], dice: random.Random) -> Row:
    return {
        **_when(n, total, users, dice),
        "name": name,
        "phones": [_phone(dice, "work")] if dice.random() < 0.8 else [],
        "emails": [{"value": f"info{n}@firm.example", "label": "work"}] if dice.random() < 0.7 else [],
        "urls": [{"value": f"https://firm{n}.example/?q=a&b"}] if dice.random() < 0.4 else [],
        "addresses": [{"value": f"{dice.choice(_CITIES)}, ул. Ленина, д. {n + 1}"}] if dice.random() < 0.4 else [],
        "tags": _some_tags(dice),
        "fields": _field_values(fields, dice),
    }


def _contact(
    n: int,
    total: int,
    firms: Sequence[tuple[str, int | None]],
    users: Sequence[int],
    fields: Sequence[Row],
    dice: random.Random,
) -> Row:
    russian = dice.random() < 0.65
    first = dice.choice(_RUSSIAN_FIRST if russian else _LATIN_FIRST)
    last = dice.choice(_RUSSIAN_LAST if russian else _LATIN_LAST)
    # The first contacts take one firm each, so that every firm has somebody; the rest are spread as chance has it.
    place = n if n < len(firms) else dice.randrange(len(firms)) if firms and dice.random() < 0.7 else None
    firm, firm_id = (None, None) if place is None else firms[place]
    row: Row = {
        **_when(n, total, users, dice),
        "name": f"{first} {last}",
        "first_name": first,
        "last_name": last,
        "position": dice.choice(_POSITIONS),
        "phones": [
            _phone(dice, label) for label in dice.sample(("work", "mobile", "home"), dice.choice((0, 1, 1, 1, 2)))
        ],
        "emails": [{"value": f"contact{n}@mail.example", "label": "work"}] if dice.random() < 0.75 else [],
        "company": firm,
        "company_id": firm_id,
        "tags": _some_tags(dice),
        "fields": _field_values(fields, dice),
    }
    if n % 20 == 7:
        row |= _UGLY[n // 20 % len(_UGLY)]
    return row


def _deal(
    n: int,
    total: int,
    people: Sequence[int],
    firms: Sequence[int],
    stages: Sequence[Row],
    reasons: Sequence[int],
    users: Sequence[int],
    fields: Sequence[Row],
    dice: random.Random,
) -> Row:
    when = _when(n, total, users, dice)
    stage = dice.choice(stages)
    members = dice.sample(people, min(len(people), dice.choice((0, 1, 1, 1, 2))))
    price = 0 if n % 10 == 3 else dice.choice((1500, 25000, 99990, 250000, 1, 12345678))
    return {
        **when,
        "name": f"{dice.choice(_DEAL_NAMES)} №{n + 1}" if n % 15 else "Сделка",
        "price": price,
        "pipeline_id": stage["pipeline_id"],
        "stage_id": stage["id"],
        "contacts": [{"id": id, "main": place == 0} for place, id in enumerate(members)],
        "company_id": dice.choice(firms) if firms and dice.random() < 0.5 else None,
        "closed_at": when["updated_at"] if stage["type"] in ("won", "lost") else None,
        "loss_reason_id": dice.choice(reasons) if stage["type"] == "lost" and reasons else None,
        "tags": _some_tags(dice),
        "fields": _field_values(fields, dice),
    }


def _target(people: Sequence[int], deals: Sequence[int], dice: random.Random) -> Row:
    if deals and (not people or dice.random() < 0.5):
        return {"target_kind": "deal", "target_id": dice.choice(deals)}
    return {"target_kind": "contact", "target_id": dice.choice(people)} if people else {}


def _task(
    n: int, total: int, people: Sequence[int], deals: Sequence[int], users: Sequence[int], dice: random.Random
) -> Row:
    when = _when(n, total, users, dice)
    done = dice.random() < 0.4
    return {
        **when,
        **({} if n % 7 == 5 else _target(people, deals, dice)),
        "text": dice.choice(_TASK_TEXTS) or f"Задача {n + 1}",
        "type_id": dice.choice((1, 2)),
        "due": None if n % 9 == 4 else when["created_at"] + dice.randrange(1, 21) * 3600,
        "duration": dice.choice((0, 0, 1800)),
        "done": done,
        "result": "Готово, договорились" if done and dice.random() < 0.5 else None,
    }


def _note(
    n: int, total: int, people: Sequence[int], deals: Sequence[int], users: Sequence[int], dice: random.Random
) -> Row:
    row: Row = {**_when(n, total, users, dice), **_target(people, deals, dice), "text": dice.choice(_NOTE_TEXTS)}
    if n % 6 == 2:
        row |= {"kind": dice.choice(("call_in", "call_out")), "text": ""}
        # All that the strictest vendor asks of a call, so that it can be written wherever it was read.
        row["params"] = {
            "uniq": f"ATC-{row['created_at']}-{n + 1}",
            "phone": _phone(dice, "work")["value"],
            "duration": dice.randrange(600),
            "source": "ATC",
            "link": f"https://pbx.example/records/{n + 1}.mp3",
        }
    return row
