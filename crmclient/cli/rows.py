"""Rows in by the line and rows out by the line: each line has its outcome, and no account is written to unasked."""

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable, Iterator
from contextlib import aclosing, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import click
from attrs import define, evolve, field, frozen
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from crmclient import flows
from crmclient.cli.lines import DELIMITERS, BadFile, Line, cells, columns, csv_lines, csv_row, json_lines
from crmclient.cli.read import ENTITIES, as_moment
from crmclient.cli.terminal import account_options, ask, fail, harmless, json_line, nowhere_to_write, say
from crmclient.client import Client
from crmclient.dialect import Call, Flow, Made, NotApplied, Receipt, Refused, Unknown, Verb
from crmclient.entities import Entity, Id
from crmclient.errors import CRMError, Invalid, Unreadable, UsageError
from crmclient.profiles import connected, credentials, find, stored_token
from crmclient.serial import from_tree, to_tree

F = TypeVar("F", bound=Callable[..., None])
T = TypeVar("T")

ROWS: Final = {name: kind for name, kind in ENTITIES.items() if issubclass(kind, Entity)}
# So many requests go side by side in the core; a Ctrl-C waits for these and no more.
_AT_ONCE: Final = 8

# ------------------------------------------------------------------------------------------------------------ writing


@frozen
class Ready:
    """A line that was understood, or the receipt of one that was not. ``lost`` was cut off, ``clear`` is to be emptied."""

    line: int
    row: Any = None
    receipt: Receipt[Any] | None = None
    lost: frozenset[str] = frozenset()
    clear: frozenset[str] = frozenset()


@define
class Work:
    """What is to be done with the lines of a file, and what became of them so far."""

    crm: Client
    kind: type[Any]
    verb: Verb
    without: frozenset[str]
    lossy: bool
    overwrite: bool
    dry_run: bool
    counts: Counter[str] = field(factory=Counter[str])
    under_way: tuple[int, int] | None = None
    """The first and the last line of what is being sent."""

    @property
    def done(self) -> str:
        return "checked" if self.dry_run else "made" if self.verb is Verb.CREATE else "updated"

    def so_far(self) -> str:
        told = [f"{number} {word}" for word, number in self.counts.items()]
        return ", ".join(told) or f"none {self.done}"


def _writing_options(command: F) -> F:
    for option in (
        click.option("--dry-run", is_flag=True, help="Check every line and send none."),
        click.option("--yes", is_flag=True, help="Do not ask whether this is the account that is meant."),
        click.option("--lossy", is_flag=True, help="Leave out what WHERE cannot carry, and name it in the outcome."),
        click.option("--without", metavar="FIELDS", default="", help="Leave these fields out: id,created_at."),
        click.option("--raw-cells", is_flag=True, help="Take CSV cells as they are: no ' in front of formulas."),
        click.option("--format", "form", type=click.Choice(("jsonl", "csv")), help="By default what FILE's name says."),
        account_options,
    ):
        command = option(command)
    return command


@click.command("create")
@click.argument("where")
@click.argument("entity", type=click.Choice(tuple(ROWS)), metavar="ENTITY")
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True), default="-")
@_writing_options
def create_rows(where: str, entity: str, file: str, **given: Any) -> None:
    """Make a row of each line of FILE (or stdin) in WHERE: JSON lines, or CSV under a line of column names.

    ENTITY is contacts, companies, deals, tasks or notes. Each line gives one JSON line with its outcome: made with its
    id, refused with the reasons, not_applied, or unknown: then look before sending it again. The others go on; the exit
    code is 0 only if every row was made. Ctrl-C ends it after the requests that are under way.

    \b
    echo '{"name": "Ivan", "phones": ["+79991234567"], "tags": ["new"]}' | crmclient create acme contacts --yes
    crmclient create acme deals deals.csv --dry-run
    crmclient export old contacts | crmclient create new contacts --lossy --yes
    """  # noqa: D301  (\b keeps click from joining lines)
    _write(where, entity, file, Verb.CREATE, **given)


@click.command("update")
@click.argument("where")
@click.argument("entity", type=click.Choice(tuple(ROWS)), metavar="ENTITY")
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True), default="-")
@click.option("--overwrite", is_flag=True, help="Go on where WHERE replaces whole rows and a part of one is not known.")
@_writing_options
def update_rows(where: str, entity: str, file: str, overwrite: bool, **given: Any) -> None:
    """Change the rows that the lines of FILE (or stdin) name by their id; of each, what its line holds and nothing else.

    In JSON null (or an empty text or list) empties a field; a cell of CSV that is empty leaves it. Outcomes and exit
    codes are those of create.

    \b
    echo '{"id": 12, "name": "Ivan", "tags": []}' | crmclient update acme contacts --yes
    """  # noqa: D301  (\b keeps click from joining lines)
    _write(where, entity, file, Verb.UPDATE, overwrite=overwrite, **given)


def _write(
    where: str,
    entity: str,
    file: str,
    verb: Verb,
    *,
    account: str | None,
    base_url: str | None,
    form: str | None,
    raw_cells: bool,
    without: str,
    lossy: bool,
    yes: bool,
    dry_run: bool,
    overwrite: bool = False,
) -> None:
    kind = ROWS[entity]
    left_out = frozenset(name.strip() for name in without.split(",") if name.strip())
    strange = sorted(left_out - set(columns(kind)))
    if strange:
        raise fail(f"--without: a {kind.__name__.lower()} has no {', '.join(strange)}")
    crm = _client(where, account, base_url, read_only=dry_run)
    crm.dialect.route(kind, verb)  # what it cannot do at all is said before anybody is asked anything
    work = Work(crm, kind, verb, left_out, lossy, overwrite, dry_run)
    try:
        with _opened(file) as content, _running(crm) as runner:
            lines = csv_lines(content, kind, raw_cells=raw_cells) if _is_csv(file, form) else json_lines(content)
            if not dry_run:
                _allowed(runner.run(_whose(crm)), f"{verb} {entity}", yes)
            # Lines are waited for outside of the event loop: inside, Ctrl-C would wait for a line too.
            for batch in _batches(work, lines):
                if not _sent(work, runner, batch):
                    break
    except BadFile as wrong:
        raise fail(f"{wrong}. {work.so_far()}") from None
    except KeyboardInterrupt:
        say(f"interrupted: {work.so_far()}{_unknown(work)}")
        raise click.exceptions.Exit(130) from None
    except CRMError:
        if work.counts or work.under_way:
            say(f"stopped: {work.so_far()}{_unknown(work)}")
        raise
    say(work.so_far())
    raise click.exceptions.Exit(0 if set(work.counts) <= {work.done} else 1)


def _unknown(work: Work) -> str:
    if work.under_way is None:
        return ""
    first, last = work.under_way
    return f"; of lines {first} to {last} it is not known: look before sending them again"


@contextmanager
def _running(crm: Client) -> Generator[asyncio.Runner]:
    """One event loop for all that is sent, and between two batches none: what waits there is interrupted at once."""
    with asyncio.Runner() as runner:
        try:
            yield runner
        finally:
            runner.run(crm.aclose())


@contextmanager
def _opened(file: str) -> Generator[Iterable[bytes]]:
    try:
        content = click.open_file(file, "rb")
    except OSError as wrong:
        raise fail(f"{file} cannot be read: {wrong.strerror}") from None
    with content:
        yield content


def _is_csv(file: str, form: str | None) -> bool:
    return form == "csv" or (form is None and file.lower().endswith(".csv"))


async def _whose(crm: Client) -> str:
    """The account, as far as the dialect tells whose it is."""
    place = f"{crm.dialect.title} at {crm.base_url}"
    name = (await crm.account()).name if "account" in crm.dialect.settings else None
    return f"{place} ({name})" if name else place


def _allowed(account: str, what: str, yes: bool) -> None:
    if yes:
        say(f"{what}: {account}")
    elif not sys.stdin.isatty():
        raise fail(f"this would {what} in {account}; there is nobody to ask whether that is meant: give --yes")
    elif not click.confirm(harmless(f"This will {what} in {account}. Go on?"), err=True):
        raise click.exceptions.Exit(1)


# ------------------------------------------------------------------------------------------------------ line by line


def _batches(work: Work, lines: Iterable[Line]) -> Iterator[list[Ready]]:
    """Lines in order, as many as go side by side; those of one batch empty the same fields, and no row is there twice."""
    route = work.crm.dialect.route(work.kind, work.verb)
    size = (getattr(route, "advised_batch", None) or getattr(route, "batch", 1)) * _AT_ONCE
    batch: list[Ready] = []
    seen: set[Id] = set()
    for line in lines:
        ready = _understood(work, line)
        id: Id | None = ready.row.id if ready.row is not None else None
        other = ready.row is not None and any(each.clear != ready.clear for each in batch if each.row is not None)
        if batch and (len(batch) >= size or other or id in seen):
            yield batch
            batch, seen = [], set()
        batch.append(ready)
        if id is not None:
            seen.add(id)
    if batch:
        yield batch


def _understood(work: Work, line: Line) -> Ready:
    if line.tree is None:
        return Ready(line.number, receipt=Refused(error=Invalid(f"line {line.number}: {line.wrong}")))
    tree = {name: part for name, part in line.tree.items() if name not in work.without}
    try:
        # A reading that came along would hide what the line says: it is written as if by hand.
        row = evolve(from_tree(work.kind, tree), raw=None, unread=frozenset())
    except Invalid as wrong:
        wrong.message = f"line {line.number}: {wrong.message}"
        return Ready(line.number, receipt=Refused(error=wrong))
    if work.verb is Verb.CREATE and row.id is not None and not work.lossy:
        said = f"line {line.number}: it has an id already: update it, or leave that out (--without id)"
        return Ready(line.number, receipt=Refused(error=Invalid(said)))
    writable = work.crm.dialect.resource(work.kind).survivors(work.verb)
    clear = frozenset[str]()
    if work.verb is Verb.UPDATE:
        empty = {name for name, part in tree.items() if part is None or part in ("", [], {})}
        # An exported row says `false` of much that nobody can write.
        off = {name for name, part in tree.items() if part is False} & writable
        clear = frozenset(empty | off) - {"raw", "unread"}
    if not work.lossy:
        return Ready(line.number, row, clear=clear)
    kept, lost = work.crm.carried(row, work.verb)
    id = row.id if work.verb is Verb.UPDATE else None
    return Ready(line.number, evolve(kept, id=id), lost=lost, clear=clear & writable)


def _sent(work: Work, runner: asyncio.Runner, batch: list[Ready]) -> bool:
    """Send a batch and tell its outcomes. False: there is no sense in going on."""
    rows = [ready for ready in batch if ready.row is not None]
    work.under_way = (rows[0].line, rows[-1].line) if rows and not work.dry_run else None
    receipts, interrupted = runner.run(_to_its_end(_receipts(work, rows)))
    work.under_way = None
    found = dict(zip((ready.line for ready in rows), receipts, strict=True))
    told = [_outcome(work, ready, ready.receipt or found[ready.line]) for ready in batch]
    work.counts.update(tree["outcome"].replace("_", " ") for tree in told)
    try:
        for tree in told:
            click.echo(json_line(tree))
    except OSError as wrong:
        # Whoever asked for rows to be written does not hear what became of them: that is no end to be quiet about.
        nowhere_to_write()
        say(f"error: the outcomes cannot be written: {wrong.strerror}")
        say(f"stopped: {work.so_far()}; the last line sent is {batch[-1].line}")
        raise click.exceptions.Exit(1) from None
    if interrupted:
        say(f"interrupted: {work.so_far()}; the last line sent is {batch[-1].line}")
        raise click.exceptions.Exit(130)
    last = receipts[-1] if receipts and all(isinstance(each, NotApplied) for each in receipts) else None
    if isinstance(last, NotApplied):
        say(f"error: {last.error}")
        say(f"stopped after line {batch[-1].line}: nothing of the last {len(rows)} rows was taken")
    return last is None


async def _receipts(work: Work, rows: list[Ready]) -> list[Receipt[Any]]:
    collection, entities = work.crm.of(work.kind), [ready.row for ready in rows]
    if work.dry_run:
        return [await _checked(work, ready) for ready in rows]
    if work.verb is Verb.CREATE:
        return await collection.create_many(entities)
    clear = rows[0].clear if rows else ()
    return await collection.update_many(entities, clear=clear, overwrite=work.overwrite)


async def _checked(work: Work, ready: Ready) -> Receipt[Any]:
    spoken = work.crm.dialect
    flow: Flow[Any] = (
        flows.create(spoken, ready.row)
        if work.verb is Verb.CREATE
        else flows.update(spoken, ready.row, ready.clear, work.overwrite)
    )
    try:
        await work.crm.run(_up_to_its_writing(flow))
    except (UsageError, CRMError) as wrong:
        return Refused(error=wrong)
    return Made(id=ready.row.id)


def _up_to_its_writing(flow: Flow[Any]) -> Flow[None]:
    """A flow as far as its first call that would write; what it reads before is read."""
    with suppress(StopIteration):
        step = next(flow)
        while True:
            calls = step if isinstance(step, tuple) else (step,)
            if any(isinstance(call, Call) and not call.safe for call in calls):
                break
            step = flow.send((yield step))
    flow.close()


async def _to_its_end(sending: Coroutine[Any, Any, T]) -> tuple[T, bool]:
    """What was begun is ended, so that its outcome is known; and whether somebody pressed Ctrl-C meanwhile."""
    task = asyncio.create_task(sending)
    try:
        return await asyncio.shield(task), False
    except asyncio.CancelledError:
        say("ending the requests that are under way; Ctrl-C again leaves them")
        return await task, True


def _outcome(work: Work, ready: Ready, receipt: Receipt[Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {"line": ready.line}
    if isinstance(receipt, Made):
        tree |= {"outcome": work.done, "id": receipt.id}
        issues = receipt.issues
        if issues:
            tree["outcome"] = f"partly_{work.done}"
    else:
        word = (
            "refused" if isinstance(receipt, Refused) else "unknown" if isinstance(receipt, Unknown) else "not_applied"
        )
        tree |= {"outcome": word, "error": receipt.error.message, "detail": receipt.error.detail}
        issues = getattr(receipt.error, "issues", ())
    told = [to_tree(evolve(issue, row=None, path=None)) for issue in issues]
    tree |= {"issues": told, "lost": sorted(ready.lost)}
    return {name: part for name, part in tree.items() if part not in (None, [])}


# ------------------------------------------------------------------------------------------------------------ export


@click.command("export")
@click.argument("where")
@click.argument("entity", type=click.Choice(tuple(ENTITIES)), metavar="ENTITY")
@account_options
@click.option(
    "--format", "form", type=click.Choice(("jsonl", "csv")), help="By default what --output says, else jsonl."
)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="A file, whole or not at all.")
@click.option("--updated-since", type=as_moment, metavar="TIME", help="2026-03-01, or with a time and a zone.")
@click.option("--raw", is_flag=True, help="In JSON, also what the server said, untouched.")
@click.option("--raw-cells", is_flag=True, help="In CSV, no ' in front of what a spreadsheet takes for a formula.")
@click.option("--bom", is_flag=True, help="In CSV, the mark by which Excel knows UTF-8.")
@click.option("--delimiter", type=click.Choice(tuple(DELIMITERS)), default=",", help="Of CSV; Excels differ.")
def export_rows(
    where: str,
    entity: str,
    account: str | None,
    base_url: str | None,
    form: str | None,
    output: Path | None,
    updated_since: datetime | None,
    raw: bool,
    raw_cells: bool,
    bom: bool,
    delimiter: str,
) -> None:
    """Write every row of ENTITY of WHERE as a line, as they come: JSON lines, or CSV.

    ENTITY is contacts, companies, deals, tasks, notes, users, pipelines, fields, tags or webhooks; what is exported of
    the first five comes back with create and update. In CSV parts are joined by "; " and a cell that begins with = + - @
    has a ' in front (phones too: a spreadsheet would make numbers of them), which create and update take off again;
    --raw-cells turns that off.

    \b
    crmclient export acme contacts --output contacts.csv --bom
    crmclient export acme deals | jq .name
    """  # noqa: D301  (\b keeps click from joining lines)
    crm, kind = _client(where, account, base_url, read_only=True), ENTITIES[entity]
    crm.dialect.route(kind, Verb.LIST)
    as_csv = _is_csv(str(output or ""), form)
    between = DELIMITERS[delimiter]

    def line(row: Any) -> str:
        return csv_row(cells(row, raw_cells=raw_cells), between) if as_csv else f"{json_line(to_tree(row, raw=raw))}\n"

    asked = {} if updated_since is None else {"updated_since": updated_since}
    with _into(output) as put, _counting(entity, shown=output is not None) as count:
        if as_csv:
            put(("\ufeff" if bom else "") + csv_row(columns(kind), between))

        def each(row: Any) -> None:
            put(line(row))
            count()

        bad = asyncio.run(_walked(crm, kind, asked, each))
    if bad:
        raise click.exceptions.Exit(1)


async def _walked(crm: Client, kind: type[Any], asked: dict[str, Any], each: Callable[[Any], None]) -> int:
    """Every row as it comes, and how many could not be read: those are told on stderr."""
    bad: list[Unreadable] = []

    def on_bad(row: Unreadable) -> None:
        bad.append(row)
        say(f"error: {row}")

    async with crm, aclosing(cast("AsyncGenerator[Any]", crm.of(kind).list(**asked, on_bad=on_bad))) as walk:
        async for row in walk:
            each(row)
    return len(bad)


@contextmanager
def _into(output: Path | None) -> Generator[Callable[[str], None]]:
    """Where the lines go: stdout, or a file that is there when it is whole."""
    if output is None:
        terminal = sys.stdout.isatty()

        def put(text: str) -> None:
            shown = harmless(text.replace("\r\n", "\n"), lines=True) if terminal else text
            sys.stdout.buffer.write(shown.encode(errors="backslashreplace"))

        yield put
        sys.stdout.buffer.flush()
        return
    part = output.with_name(f"{output.name}.part")
    try:
        with part.open("wb") as file:
            yield lambda text: cast("None", file.write(text.encode(errors="backslashreplace")))
        part.replace(output)
    except OSError as wrong:
        raise fail(f"{wrong.filename or output} cannot be written: {wrong.strerror}") from None
    except BaseException:
        say(f"{output} was not written; what came is in {part}")
        raise


@contextmanager
def _counting(entity: str, *, shown: bool) -> Generator[Callable[[], None]]:
    """How many came, on stderr where a person looks and stdout does not show it anyway."""
    bars = Progress(
        SpinnerColumn(),
        TextColumn("{task.completed:.0f} {task.description}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty() or (sys.stdout.isatty() and not shown),
    )
    with bars:
        task = bars.add_task(entity, total=None)
        yield lambda: bars.advance(task)


def _client(where: str, account: str | None, base_url: str | None, *, read_only: bool) -> Client:
    profile = find(where, account=account, base_url=base_url)
    # Before any event loop runs: a prompt inside one would swallow Ctrl-C.
    given = credentials(profile, asyncio.run(stored_token(profile)), ask=ask())
    return connected(profile, given, read_only=read_only)
