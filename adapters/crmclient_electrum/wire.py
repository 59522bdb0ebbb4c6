"""Electrum's shapes, one to one, in its own words.

The vendor's page shows one contact and one webhook; everything else is our assumption (reference electrum-v2 §6,
DECISIONS). So a row is read under every name it may have, and written under the names of ``Words``, which a user can
change to what their installation really says.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

from attrs import frozen

from crmclient.dialect import Reply, array, mapping
from crmclient.errors import Unreadable
from crmclient.serial import strict

CONVERTER = strict()


def _moment(text: object) -> datetime:
    if not isinstance(text, str):
        raise TypeError(f"expected an ISO 8601 time, got {text!r:.80}")
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"the time {text!r} has no zone, and the page says UTC with Z")
    return moment


# "ISO 8601 UTC" (§1).
CONVERTER.hook(datetime, _moment)


@frozen(kw_only=True)
class Words:
    """The names no source evidences, as they are written. All known aliases are read."""

    deal_name: str = "name"
    task_title: str = "title"
    task_due: str = "due_date"


# DECISIONS, Electrum: "read also `text`, `name` for title and `due_at`, `deadline` for due_date".
ALIASES: Mapping[str, Mapping[str, Sequence[str]]] = {
    "contact": {},
    "deal": {"name": ("name", "title")},
    "task": {"title": ("title", "text", "name"), "due_date": ("due_date", "due_at", "deadline")},
    "user": {},
    "pipeline": {},
}


@frozen(kw_only=True)
class Contact:
    id: int
    name: str | None = None
    phone: str | None = None
    email: str | None = None
    company: str | None = None
    tags: list[str] | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None


@frozen(kw_only=True)
class Deal:
    id: int
    name: str | None = None
    amount: Decimal | None = None
    pipeline_id: int | None = None
    # "accept any scalar" (§6): a slug or an id.
    stage: int | str | None = None
    assigned_to: int | None = None
    contact_id: int | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None


@frozen(kw_only=True)
class Task:
    id: int
    title: str | None = None
    description: str | None = None
    due_date: datetime | None = None
    assigned_to: int | None = None
    contact_id: int | None = None
    deal_id: int | None = None
    completed: bool | None = None
    completed_at: datetime | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None


@frozen(kw_only=True)
class User:
    id: int
    name: str | None = None
    email: str | None = None
    role: str | None = None


@frozen(kw_only=True)
class Stage:
    id: int | str
    name: str | None = None
    type: str | None = None
    sort: int | None = None


@frozen(kw_only=True)
class Pipeline:
    id: int
    name: str | None = None
    stages: list[Stage] | None = None


def canonical(kind: str, row: Any) -> Any:
    """The row under our names, its empties None; what is not a row is left for the converter to complain of."""
    if not isinstance(row, Mapping):
        return row
    found: dict[str, Any] = {str(name): None if part == "" else part for name, part in row.items()}  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    for name, aliases in ALIASES[kind].items():
        found[name] = next((found[alias] for alias in aliases if found.get(alias) is not None), None)
    return found


def rows(reply: Reply) -> Sequence[Any]:
    """The rows of a list: ``data`` beside ``meta`` (§3), or a bare list, which §6 does not rule out."""
    body: Any = reply.body
    data: Any = mapping(body).get("data", body)
    if not isinstance(data, list):
        raise Unreadable("a list was due, with its rows in `data`", status=reply.status, preview=f"{body!r:.200}")
    return array(data)


def one(reply: Reply) -> Any:
    """The row of a single answer: bare, as the answer to a create is (§4), or wrapped in ``data``."""
    body = mapping(reply.body)
    if not body:
        raise Unreadable("one row was due", status=reply.status, preview=f"{reply.body!r:.200}")
    return body if "id" in body else mapping(body.get("data"))


def pages(reply: Reply) -> int | None:
    """How many pages the list has, where ``meta`` tells it (§3)."""
    total = mapping(mapping(reply.body).get("meta")).get("total_pages")
    return total if isinstance(total, int) and not isinstance(total, bool) else None
