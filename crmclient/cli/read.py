"""Rows as they are, through a client that cannot write: a table where a person looks, JSON lines where a machine does."""

import asyncio
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any, Final, cast

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from crmclient.cli.terminal import account_options, ask, harmless, json_line, say
from crmclient.client import Client
from crmclient.entities import Company, Contact, Deal, Id, Kind, Link, Money, Note, Ref, Task
from crmclient.errors import Unreadable
from crmclient.profiles import connected, credentials, find, stored_token
from crmclient.serial import to_tree
from crmclient.vocabulary import Field, KnownTag, Pipeline, Subscription, User

ENTITIES: Final[dict[str, type[Any]]] = {
    "contacts": Contact,
    "companies": Company,
    "deals": Deal,
    "tasks": Task,
    "notes": Note,
    "users": User,
    "pipelines": Pipeline,
    "fields": Field,
    "tags": KnownTag,
    "webhooks": Subscription,
}
# Few columns: a table is for looking, `--json` for everything.
COLUMNS: Final[dict[str, tuple[str, ...]]] = {
    "contacts": ("id", "name", "phones", "emails", "company", "updated_at"),
    "companies": ("id", "name", "phones", "emails", "updated_at"),
    "deals": ("id", "name", "price", "pipeline", "stage", "outcome", "updated_at"),
    "tasks": ("id", "text", "due", "done", "target", "owner"),
    "notes": ("id", "kind", "text", "target", "created_at"),
    "users": ("id", "name", "email", "admin", "active"),
    "pipelines": ("id", "name", "main", "stages"),
    "fields": ("id", "entity", "name", "type", "code"),
    "tags": ("id", "entity", "name", "color"),
    "webhooks": ("id", "events", "active"),
}
_ELASTIC: Final = frozenset({"name", "text", "phones", "emails", "email", "company", "stages"})
# A table of a whole account helps nobody; how much of it is shown is said.
_FIRST: Final = 50


def as_id(given: str) -> Id:
    """An id as the rows hold it: a number where it is written as one."""
    return int(given) if given.isascii() and given.isdecimal() else given


def as_moment(given: str) -> datetime:
    """ISO 8601; a date is its midnight, and what names no zone is UTC."""
    try:
        moment = datetime.fromisoformat(given)
    except ValueError:
        raise click.BadParameter(f"{given!r} is no ISO 8601 time, like 2026-03-01 or 2026-03-01T09:00+03:00") from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def as_target(given: str) -> Ref:
    """What a row hangs on: ``deal:12``."""
    kind, _, id = given.partition(":")
    if not id or kind not in tuple(Kind):
        raise click.BadParameter(f"{given!r} is no kind:id, like deal:12; kinds are {', '.join(Kind)}")
    return Ref(Kind(kind), as_id(id))


def _output(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("--raw", is_flag=True, help="In JSON, also what the server said, untouched."),
        click.option("--json/--table", "as_json", default=None, help="By default a table on a terminal, else JSON."),
    ):
        command = option(command)
    return command


@click.command("list")
@click.argument("where")
@click.argument("entity", type=click.Choice(tuple(ENTITIES)), metavar="ENTITY")
@account_options
@click.option("--limit", type=click.IntRange(0), help="At most so many rows; 0 for all.")
@click.option("--updated-since", type=as_moment, metavar="TIME", help="2026-03-01, or with a time and a zone.")
@click.option("--created-since", type=as_moment, metavar="TIME")
@click.option("--owner", type=as_id, metavar="ID", help="A user's id.")
@click.option("--pipeline", type=as_id, metavar="ID")
@click.option("--stage", type=as_id, metavar="ID")
@click.option("--target", type=as_target, metavar="KIND:ID", help="What the rows hang on: deal:12.")
@click.option("--text", help="Rows that hold it.")
@_output
def list_rows(
    where: str,
    entity: str,
    account: str | None,
    base_url: str | None,
    limit: int | None,
    as_json: bool | None,
    raw: bool,
    **filters: Any,
) -> None:
    """List ENTITY of WHERE: a profile, or a dialect's name with --account or --base-url.

    ENTITY is contacts, companies, deals, tasks, notes, users, pipelines, fields, tags or webhooks. What the server
    cannot filter is filtered here.

    \b
    crmclient list acme deals --updated-since 2026-03-01
    crmclient list electrum contacts --base-url http://127.0.0.1:8080/api/v2 --json | jq .name
    """  # noqa: D301  (\b keeps click from joining lines)
    crm = _client(where, account, base_url)
    asked = _asked(**filters)
    machine = _for_a_machine(as_json, raw)
    most = (None if machine else _FIRST) if limit is None else (limit or None)
    if machine:
        bad = asyncio.run(_walked(crm, entity, asked, most, lambda row: click.echo(json_line(to_tree(row, raw=raw)))))
    else:
        rows: list[Any] = []
        bad = asyncio.run(_walked(crm, entity, asked, None if most is None else most + 1, rows.append))
        _show(entity, rows[:most])
        if most is not None and len(rows) > most and limit is None:
            say(f"the first {most} rows; --limit N shows more, --limit 0 all")
    if bad:
        raise click.exceptions.Exit(1)


def _asked(
    *,
    updated_since: datetime | None,
    created_since: datetime | None,
    owner: Id | None,
    pipeline: Id | None,
    stage: Id | None,
    target: Ref | None,
    text: str | None,
) -> dict[str, Any]:
    return {
        "updated_since": updated_since,
        "created_since": created_since,
        "owner": None if owner is None else Ref(Kind.USER, owner),
        "pipeline": None if pipeline is None else Ref(Kind.PIPELINE, pipeline),
        "stage": None if stage is None else Ref(Kind.STAGE, stage),
        "target": target,
        "text": text,
    }


async def _walked(
    client: Client, entity: str, asked: dict[str, Any], most: int | None, show: Callable[[Any], None]
) -> int:
    """Show the rows one by one, and give how many could not be read; those are told on stderr, and the walk goes on."""
    bad: list[Unreadable] = []

    def on_bad(row: Unreadable) -> None:
        bad.append(row)
        say(f"error: {row}")

    async with client as crm:
        # A few rows are a page: nothing is read ahead for them.
        ahead = None if most is None else 1
        rows = crm.of(ENTITIES[entity]).list(**asked, on_bad=on_bad, prefetch=ahead)
        shown = 0
        async with aclosing(cast("AsyncGenerator[Any]", rows)) as walk:
            async for row in walk:
                show(row)
                shown += 1
                if shown == most:
                    break
    return len(bad)


@click.command("get")
@click.argument("where")
@click.argument("entity", type=click.Choice(tuple(ENTITIES)), metavar="ENTITY")
@click.argument("id", type=as_id)
@account_options
@click.option(
    "--target", type=as_target, metavar="KIND:ID", help="What the row hangs on, where its dialect asks for it: deal:12."
)
@_output
def get_row(
    where: str,
    entity: str,
    id: Id,
    account: str | None,
    base_url: str | None,
    target: Ref | None,
    as_json: bool | None,
    raw: bool,
) -> None:
    """Show one row of WHERE: a profile, or a dialect's name with --account or --base-url.

    ENTITY is contacts, companies, deals, tasks, notes, users, pipelines, fields, tags or webhooks.
    """
    client = _client(where, account, base_url)

    async def read() -> Any:
        async with client as crm:
            return await crm.of(ENTITIES[entity]).get(id, target=target)

    row = asyncio.run(read())
    if _for_a_machine(as_json, raw):
        click.echo(json_line(to_tree(row, raw=raw)))
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name in to_tree(row):
        table.add_row(name, Text(_cell(getattr(row, name), name)))
    Console(highlight=False).print(table)


def _client(where: str, account: str | None, base_url: str | None) -> Client:
    profile = find(where, account=account, base_url=base_url)
    # Before any event loop runs: a prompt inside one would swallow Ctrl-C.
    given = credentials(profile, asyncio.run(stored_token(profile)), ask=ask())
    return connected(profile, given, read_only=True)


def _for_a_machine(as_json: bool | None, raw: bool) -> bool:
    return raw or (as_json if as_json is not None else not sys.stdout.isatty())


def _show(entity: str, rows: list[Any]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    columns = {name: [_cell(getattr(row, name), name) for row in rows] for name in COLUMNS[entity]}
    for name in columns:
        # Half a name still tells something; half an id or half a date does not, so those are never cut.
        # (rich narrows only the columns that may wrap; their texts are the ones that do not.)
        side = "right" if name in ("id", "price") else "left"
        table.add_column(name, no_wrap=name not in _ELASTIC, justify=side)
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*(Text(cell, no_wrap=True, overflow="ellipsis") for cell in cells))
    Console(highlight=False).print(table)


def _cell(part: Any, column: str = "target") -> str:
    """One value in a few letters."""
    if part is None or part == ():
        return ""
    if isinstance(part, bool):
        return "yes" if part else "no"
    if isinstance(part, datetime):
        return part.astimezone(UTC).strftime("%Y-%m-%d %H:%MZ")
    if isinstance(part, tuple | frozenset):
        each = cast("tuple[Any, ...]", part)
        return ", ".join(_cell(one) for one in each)
    if isinstance(part, Link):
        return _cell(part.name or str(part.ref.id))
    if isinstance(part, Ref):
        # What a column is named for need not be said again.
        return harmless(f"{part.kind}:{part.id}" if column == "target" else str(part.id))
    if isinstance(part, Money):
        return f"{part.amount:f}" + (f" {part.currency}" if part.currency else "")
    for name in ("value", "values", "name"):
        if hasattr(part, name):
            return _cell(getattr(part, name))
    return harmless(str(part))
