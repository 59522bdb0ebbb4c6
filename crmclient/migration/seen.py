"""What was read of an account so far, kept on disk: memory stays the same however many rows there are."""

import json
import sqlite3
from typing import Any

from crmclient.entities import Id, Kind, Link, Ref


def sayable(text: str | None) -> str | None:
    """A text as a database can hold it: half of a letter, which some vendors send, is a question mark."""
    return None if text is None else text.encode(errors="replace").decode()


class Seen:
    """Rows that were read, each counting as made under its own id. Gone when closed.

    It answers what a ``Translation`` asks of other rows while nothing is written yet.
    """

    def __init__(self) -> None:
        # SQLite's own temporary file: it stays in memory while it is small, and nobody else sees it.
        self.db = sqlite3.connect("", isolation_level=None)
        self.db.execute("PRAGMA journal_mode = OFF")
        self.db.execute("PRAGMA synchronous = OFF")
        self.db.execute("CREATE TABLE seen (kind, id, name, company, made, PRIMARY KEY (kind, id)) WITHOUT ROWID")
        # One transaction to the end: what is gone when closed need not be safe before.
        self.db.execute("BEGIN")

    def __enter__(self) -> "Seen":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.db.close()

    def add(self, kind: str, id: Id, name: str = "", company: Link | None = None, *, made: bool = True) -> bool:
        """Note a row, or a word under a kind of its own; whether it is new. ``made=False``: it only has a name."""
        there = None if company is None else json.dumps([company.ref.id, company.name])
        row = (kind, id, sayable(name), there, made)
        return self.db.execute("INSERT OR IGNORE INTO seen VALUES (?, ?, ?, ?, ?)", row).rowcount > 0

    def count(self, kind: str) -> int:
        return int(self.db.execute("SELECT count(*) FROM seen WHERE kind = ?", (kind,)).fetchone()[0])

    def made(self, kind: str, id: Id) -> Id | None:
        return id if self._told("made", kind, id) else None

    def company_name(self, id: Id) -> str:
        return self._told("name", "companies", id) or ""

    def company_of(self, contact: Id) -> Link | None:
        told = self._told("company", "contacts", contact)
        if told is None:
            return None
        id, name = json.loads(told)
        return Link(Ref(Kind.COMPANY, id), name=name)

    def _told(self, column: str, kind: str, id: Id) -> Any:
        found = self.db.execute(f"SELECT {column} FROM seen WHERE kind = ? AND id = ?", (kind, id)).fetchone()  # noqa: S608  our own word
        return None if found is None else found[0]
