"""Move one account into another and believe nothing: what arrived is read back whole and held against what was sent."""

import asyncio
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, Final, Protocol, TypeVar, cast
from unicodedata import normalize

import attrs
import click
from attrs import define, field, frozen
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from crmclient.cli.terminal import harmless, json_line, say
from crmclient.client import Client, connect
from crmclient.clock import SystemClock
from crmclient.dialect import Dialect, Made, Receipt, Unknown, Verb, Writing
from crmclient.entities import Company, Contact, Deal, Entity, Id, Kind, Link, Outcome, Ref, Task, evolve, filled
from crmclient.errors import CRMError, Unreadable
from crmclient.paging import Offset, PageNumber
from crmclient.sandbox.server import Face, Running, face, serve
from crmclient.sandbox.world import World, populate
from crmclient.vocabulary import Pipeline, Stage, User

E = TypeVar("E", bound=Entity)

KINDS: Final = ("companies", "contacts", "deals", "tasks")
# A demo that is to be believed shows what it could not do, but not ten thousand times.
_SHOWN: Final = 10
_STAMPS: Final = frozenset({"updated_at", "updated_by"})
_SOURCE, _TARGET = "electrum", "kommo"

# ----------------------------------------------------------------------------------------- what became of the rows


@define
class Tally:
    """One kind of rows, from one account into the other. Companies are read as names on contacts."""

    read: int = 0
    unreadable: int = 0
    written: int = 0
    refused: int = 0
    unknown: int = 0
    read_back: int = 0
    unexpected: int = 0
    """Rows of the target that this move did not make: duplicates, if it was empty before."""
    links_expected: int = 0
    links_found: int = 0
    stages_expected: int = 0
    stages_found: int = 0

    @property
    def equal(self) -> bool:
        return (
            self.read == self.written == self.read_back
            and self.links_expected == self.links_found
            and self.stages_expected == self.stages_found
            and not (self.unreadable or self.refused or self.unknown or self.unexpected)
        )


@define
class Report:
    """What a move did, counted; a count that is not what it should be is shown, never explained away."""

    kinds: dict[str, Tally] = field(factory=lambda: {kind: Tally() for kind in KINDS})
    lost: Counter[str] = field(factory=Counter[str])
    """What the target cannot carry, as ``deal.price``, with the number of rows."""
    different: Counter[str] = field(factory=Counter[str])
    """What was sent and came back otherwise."""
    restamped: Counter[str] = field(factory=Counter[str])
    """What the target dates and signs itself when it changes a row of its own accord: tying a contact is a change of it."""
    invented: Counter[str] = field(factory=Counter[str])
    """What the target requires and the source did not have."""
    mapped: Counter[str] = field(factory=Counter[str])
    """How users and stages found their like: by e-mail, by name, by outcome, by place, or not."""
    troubles: list[str] = field(factory=list[str])
    """Row by row, what was refused, is unknown or could not be read."""
    requests: dict[str, int] = field(factory=dict[str, int])
    least: dict[str, int] = field(factory=dict[str, int])
    rate_limited: dict[str, int] = field(factory=dict[str, int])

    @property
    def equal(self) -> bool:
        """Whether every row that was read stands in the target as it was sent, stamps apart, and nothing else does."""
        return not self.different and all(tally.equal for tally in self.kinds.values())

    def as_tree(self) -> dict[str, Any]:
        kinds = {kind: {**attrs.asdict(tally), "equal": tally.equal} for kind, tally in self.kinds.items()}
        return {"equal": self.equal, **attrs.asdict(self), "kinds": kinds}


class Told(Protocol):
    """Hears how far a move is: what it does, with which rows, how many of how many."""

    def __call__(self, doing: str, kind: str, rows: int, of: int | None) -> None: ...


def _silent(doing: str, kind: str, rows: int, of: int | None) -> None:
    return None


# ------------------------------------------------------------------------------------------------- the least there is


@frozen(kw_only=True)
class Sizes:
    """How many rows a request carries at most: a page read, a batch written, a batch of links afterwards."""

    page: int
    batch: Mapping[type[Any], int] = field(factory=dict[type[Any], int])
    links: Mapping[type[Any], int] = field(factory=dict[type[Any], int])

    @classmethod
    def of(cls, spoken: Dialect) -> "Sizes":
        paging = spoken.paging
        page = paging.size if isinstance(paging, PageNumber | Offset) else 1
        writes = {entity: resource.routes.get(Verb.CREATE) for entity, resource in spoken.resources.items()}
        found = {entity: route for entity, route in writes.items() if isinstance(route, Writing)}
        # What finishes rows once they are made (a link) comes in batches as large as the rows' own.
        links = {entity: route.batch for entity, route in found.items() if route.then is not None}
        return cls(page=page, batch={entity: route.batch for entity, route in found.items()}, links=links)


def pages(rows: int, size: int) -> int:
    """The fewest requests that read so many rows: an empty list costs one too."""
    return max(1, -(-rows // size))


def batches(rows: int, size: int) -> int:
    """The fewest requests that write so many rows: none costs none."""
    return -(-rows // size)


def least(source: Sizes, target: Sizes, report: Report, *, settings: Mapping[str, int]) -> dict[str, int]:
    """The fewest requests such a move can cost on each side: nothing asked twice, every page and every batch full.

    ``settings`` are the requests for users, pipelines and the like.
    """
    kinds = dict(zip(KINDS, (Company, Contact, Deal, Task), strict=True))
    reading = sum(pages(report.kinds[kind].read, source.page) for kind in KINDS if kind != "companies")
    writing = 0
    for kind, entity in kinds.items():
        tally = report.kinds[kind]
        writing += batches(tally.written, target.batch[entity])
        writing += batches(tally.links_expected, target.links[entity]) if entity in target.links else 0
        writing += pages(tally.read_back + tally.unexpected, target.page)
    return {"source": reading + settings["source"], "target": writing + settings["target"]}


# ------------------------------------------------------------------------------------------------------ what is what


@frozen
class Place:
    """Where a deal of the source stands in the target, and how that was found out."""

    pipeline: Ref
    stage: Ref
    how: str


def match_users(source: Sequence[User], target: Sequence[User]) -> dict[Id | None, tuple[Ref, str]]:
    """Users of the source in the target: by e-mail, else by name. Who is in neither is not in the answer."""
    by_email = {_word(user.email): user.ref for user in reversed(target) if user.email}
    by_name = {_word(user.name): user.ref for user in reversed(target) if user.name}
    found: dict[Id | None, tuple[Ref, str]] = {}
    for user in source:
        if user.email and _word(user.email) in by_email:
            found[user.id] = by_email[_word(user.email)], "e-mail"
        elif user.name and _word(user.name) in by_name:
            found[user.id] = by_name[_word(user.name)], "name"
    return found


def match_stages(source: Sequence[Pipeline], target: Sequence[Pipeline]) -> dict[tuple[Id | None, Id | None], Place]:
    """Where each stage of the source is in the target, by (pipeline, stage).

    A pipeline is found by its name, else it is the main one. A won stage is the won one there and a lost one the lost
    one, whatever they are called; an open stage is found by its name, else by its place among the open ones. A stage
    for which the target has nothing of its outcome is not in the answer.
    """
    named = {_word(pipeline.name): pipeline for pipeline in reversed(target)}
    main = next((pipeline for pipeline in target if pipeline.main), target[0] if target else None)
    found: dict[tuple[Id | None, Id | None], Place] = {}
    for pipeline in source:
        there = named.get(_word(pipeline.name), main)
        if there is None:
            continue
        same = _word(there.name) == _word(pipeline.name)
        for stage in pipeline.stages:
            of_outcome = [each for each in _in_order(there.stages) if each.outcome is stage.outcome]
            if not of_outcome:
                continue
            alike = [each for each in of_outcome if _word(each.name) == _word(stage.name)]
            peers = [each.id for each in _in_order(pipeline.stages) if each.outcome is stage.outcome]
            chosen = alike[0] if alike else of_outcome[min(peers.index(stage.id), len(of_outcome) - 1)]
            how = "name" if alike else ("place" if stage.outcome is Outcome.OPEN else "outcome")
            found[pipeline.id, stage.id] = Place(there.ref, chosen.ref, how if same else f"{how}, in the main pipeline")
    return found


def _in_order(stages: Iterable[Stage]) -> list[Stage]:
    return sorted(stages, key=lambda stage: stage.sort)


def _word(name: str | None) -> str:
    return normalize("NFC", (name or "").strip()).casefold()


def company_name(contact: Contact) -> str:
    """The company a contact names: two are one when they are letter for letter the same, once composed and trimmed."""
    name = contact.company.name if contact.company is not None else None
    return normalize("NFC", name or "").strip()


# ------------------------------------------------------------------------------------------------------------ moving


async def move(source: Client, target: Client, told: Told = _silent) -> Report:
    """Move companies, contacts, deals and tasks, and read them back.

    The source's companies are names on its contacts; each distinct one becomes a row. What the target refuses is
    reported, and the rest goes on; what cannot be carried is reported by name.
    """
    return await _Move(source, target, told).run()


@define
class _Sent:
    """A row as it was sent, with the id it got."""

    row: Any
    id: Id | None


class _Move:
    def __init__(self, source: Client, target: Client, told: Told) -> None:
        self.source, self.target, self.told = source, target, told
        self.report = Report()
        self.users: dict[Id | None, tuple[Ref, str]] = {}
        self.me: Ref | None = None
        self.places: dict[tuple[Id | None, Id | None], Place] = {}
        # What became of the source's rows, by kind and by the source's id; a company's id is its name.
        self.sent: dict[str, dict[Id, _Sent]] = {kind: {} for kind in KINDS}

    async def run(self) -> Report:
        source_users, source_pipelines, target_users, target_pipelines = await asyncio.gather(
            _vocabulary(self.source, "users", User),
            _vocabulary(self.source, "pipelines", Pipeline),
            _vocabulary(self.target, "users", User),
            _vocabulary(self.target, "pipelines", Pipeline),
        )
        self.users = match_users(source_users, target_users)
        self.places = match_stages(source_pipelines, target_pipelines)
        for place in self.places.values():
            self.report.mapped[f"stages by {place.how}"] += 1

        contacts = await self._read("contacts", Contact)
        deals = await self._read("deals", Deal)
        tasks = await self._read("tasks", Task)
        await self._know_the_owners([*contacts, *deals, *tasks])

        # The order of the first one to name it; a company is read off contacts, so it is read as often as it is new.
        names = list(dict.fromkeys(name for contact in contacts if (name := company_name(contact))))
        self.report.kinds["companies"].read = len(names)
        await self._write("companies", Company, [(name, Company(name=name)) for name in names])
        # Those with a company first: they are tied 250 a request afterwards, and so only the last request is not full.
        contacts.sort(key=lambda contact: not company_name(contact))
        await self._write("contacts", Contact, [(_id(contact), self._contact(contact)) for contact in contacts])
        await self._write("deals", Deal, [(_id(deal), self._deal(deal)) for deal in deals])
        await self._write("tasks", Task, [(_id(task), self._task(task)) for task in tasks])

        for kind, entity in zip(KINDS, (Company, Contact, Deal, Task), strict=True):
            await self._check(kind, entity)
        self._account()
        return self.report

    # ------------------------------------------------------------------------------------------------------- reading

    async def _read(self, kind: str, entity: type[E]) -> list[E]:
        tally, rows = self.report.kinds[kind], list[E]()

        def on_bad(bad: Unreadable) -> None:
            tally.unreadable += 1
            self.report.troubles.append(f"{kind}: {bad}")

        async for row in self.source.of(entity).list(on_bad=on_bad):
            rows.append(row)
            if len(rows) % 50 == 0:
                self.told("read", kind, len(rows), None)
        tally.read = len(rows) + tally.unreadable
        self.told("read", kind, len(rows), len(rows))
        return rows

    async def _know_the_owners(self, rows: Iterable[Entity]) -> None:
        """Map each owner; who has no like in the target is me, and only then is asked who that is."""
        owners = dict.fromkeys(row.owner.id for row in rows if row.owner is not None)
        for id in owners:
            if id not in self.users:
                self.me = self.me or (await self.target.me()).ref
                self.users[id] = self.me, "nothing, so they are me"
            self.report.mapped[f"users by {self.users[id][1]}"] += 1

    # ------------------------------------------------------------------------------------------------------- mapping

    def _owner(self, row: Entity) -> Ref | None:
        return self.users[row.owner.id][0] if row.owner is not None else None

    def _made(self, kind: str, id: Id | None) -> Id | None:
        """The target's id of a row of the source, if it was made."""
        sent = self.sent[kind].get(id) if id is not None else None
        return sent.id if sent is not None else None

    def _contact(self, contact: Contact) -> Contact:
        name = company_name(contact)
        company = self._made("companies", name) if name else None
        if name and company is None:
            self.report.lost["contact.company"] += 1
        link = Link(Ref(Kind.COMPANY, company)) if company is not None else None
        return evolve(contact, company=link, owner=self._owner(contact))

    def _deal(self, deal: Deal) -> Deal:
        members = [(link, self._made("contacts", link.ref.id)) for link in deal.contacts]
        links = tuple(Link(Ref(Kind.CONTACT, id), main=link.main) for link, id in members if id is not None)
        if len(links) < len(members):
            self.report.lost["deal.contacts"] += 1
        moved = evolve(deal, contacts=links, company=self._company_of(deal), owner=self._owner(deal))
        if deal.stage is None:
            return moved
        place = self.places.get((deal.pipeline.id if deal.pipeline else None, deal.stage.id))
        if place is None:
            self.report.lost["deal.stage"] += 1
            return evolve(moved, pipeline=None, stage=None, outcome=None)
        # The outcome goes with the stage: nobody writes it.
        return evolve(moved, pipeline=place.pipeline, stage=place.stage, outcome=None)

    def _company_of(self, deal: Deal) -> Link | None:
        """The company of the deal's contact, as it was made."""
        for link in deal.contacts:
            sent = self.sent["contacts"].get(link.ref.id) if link.ref.id is not None else None
            if sent is not None and sent.id is not None and sent.row.company is not None:
                return sent.row.company
        return None

    def _task(self, task: Task) -> Task:
        target = None
        if task.target is not None:
            kind = {Kind.CONTACT: "contacts", Kind.DEAL: "deals"}.get(task.target.kind)
            id = self._made(kind, task.target.id) if kind else None
            target = Ref(task.target.kind, id) if id is not None else None
            if target is None:
                self.report.lost["task.target"] += 1
        due = task.due
        if due is None and "due" in self.target.dialect.resource(Task).required:
            self.report.invented["task.due"] += 1
            due = (task.created_at or SystemClock().now()) + timedelta(days=1)
        return evolve(task, target=target, due=due, owner=self._owner(task))

    # ------------------------------------------------------------------------------------------------------- writing

    async def _write(self, kind: str, entity: type[E], rows: Sequence[tuple[Id, E]]) -> None:
        tally, collection = self.report.kinds[kind], self.target.of(entity)
        ready: list[tuple[Id, E]] = []
        for id, row in rows:
            kept, gone = self.target.carried(row)
            ready.append((id, kept))
            self.report.lost.update(f"{entity.KIND}.{name}" for name in gone)
        size = Sizes.of(self.target.dialect).batch[entity]
        # One full request at a time: after a Ctrl-C it is known what was done, and a server that works through one
        # batch before it looks at the next sees each when it was sent, which is what its limit counts by.
        for start in range(0, len(ready), size):
            part = ready[start : start + size]
            receipts = await collection.create_many([row for _, row in part], batch=size)
            for (id, row), receipt in zip(part, receipts, strict=True):
                self.sent[kind][id] = _Sent(row, self._received(kind, id, row, receipt, tally))
            self.told("write", kind, tally.written, len(ready))

    def _received(self, kind: str, id: Id, row: Entity, receipt: Receipt[Any], tally: Tally) -> Id | None:
        named = f"{kind} {id} ({getattr(row, 'name', None) or getattr(row, 'text', None) or 'no name'})"
        if isinstance(receipt, Made):
            tally.written += 1
            self.report.troubles += [f"{named}: written, but {issue}" for issue in receipt.issues]
            return receipt.id
        if isinstance(receipt, Unknown):
            tally.unknown += 1
        else:
            tally.refused += 1
        self.report.troubles.append(f"{named}: {receipt.error}")
        return None

    # ------------------------------------------------------------------------------------------------------ checking

    async def _check(self, kind: str, entity: type[E]) -> None:
        """Read the target whole and hold each row that was sent against it."""
        tally = self.report.kinds[kind]
        expected: dict[Id | None, Any] = {sent.id: sent.row for sent in self.sent[kind].values() if sent.id is not None}
        seen = 0
        # Nothing is read ahead: a page too many would not be the least.
        async for found in self.target.of(entity).list(prefetch=1):
            row = expected.pop(found.id, None)
            if row is None:
                tally.unexpected += 1
                continue
            seen += 1
            tally.read_back += 1
            self._hold_against(row, found, tally)
            if seen % 50 == 0:
                self.told("check", kind, seen, tally.written)
        for row in expected.values():
            tally.links_expected += len(_links(row))
            tally.stages_expected += getattr(row, "stage", None) is not None
        self.told("check", kind, seen, tally.written)

    def _hold_against(self, row: Entity, found: Entity, tally: Tally) -> None:
        wanted, there = _links(row), _links(found)
        tally.links_expected += len(wanted)
        tally.links_found += len(wanted & there)
        if isinstance(row, Deal) and isinstance(found, Deal) and row.stage is not None:
            tally.stages_expected += 1
            tally.stages_found += (row.pipeline, row.stage) == (found.pipeline, found.stage)
        for name in filled(row):
            if _comparable(getattr(row, name)) != _comparable(getattr(found, name)):
                counts = self.report.restamped if name in _STAMPS else self.report.different
                counts[f"{row.KIND}.{name}"] += 1

    def _account(self) -> None:
        for side, client in (("source", self.source), ("target", self.target)):
            self.report.requests[side] = client.spent.requests
            self.report.rate_limited[side] = client.spent.rate_limited
        settings = {"source": 2, "target": 2 + (self.me is not None)}
        sizes = Sizes.of(self.source.dialect), Sizes.of(self.target.dialect)
        self.report.least = least(*sizes, self.report, settings=settings)


async def _vocabulary(crm: Client, part: str, entity: type[Any]) -> Sequence[Any]:
    """A list of the account's own words, by way of its settings where they keep it: it is read once then."""
    if part in crm.dialect.settings:
        return await crm.setting(part)
    return [row async for row in crm.of(entity).list()]


def _id(row: Entity) -> Id:
    assert row.id is not None  # noqa: S101  every row that was read has one
    return row.id


def _links(row: Entity) -> frozenset[Ref]:
    """What a row is tied to."""
    one = [getattr(row, "company", None)]
    links: list[Link] = [*(link for link in one if link is not None), *(getattr(row, "contacts", ()))]
    target = getattr(row, "target", None)
    return frozenset([*(link.ref for link in links), *([target] if target is not None else [])])


def _comparable(part: Any) -> object:
    """Links are the same when they lead to the same rows, lists of them and of tags in any order."""
    if isinstance(part, Link):
        return part.ref
    if isinstance(part, tuple):
        each = cast("tuple[Any, ...]", part)
        if each and hasattr(each[0], "ref"):
            return frozenset(link.ref for link in each)
        if each and hasattr(each[0], "name") and not hasattr(each[0], "values"):
            return frozenset(tag.name for tag in each)
    return cast("object", part)


# ------------------------------------------------------------------------------------------------------- two sandboxes


@contextmanager
def served(chosen: Face, world: World) -> Generator[Running]:
    """A sandbox in a thread and a loop of its own: what keeps the client busy must not make the server's clock late."""
    ready: Future[tuple[Running, Callable[[], None]]] = Future()

    async def serving() -> None:
        leaving, loop = asyncio.Event(), asyncio.get_running_loop()
        async with serve(chosen, world) as running:
            ready.set_result((running, lambda: cast("None", loop.call_soon_threadsafe(leaving.set))))
            await leaving.wait()

    def run() -> None:
        try:
            asyncio.run(serving())
        except BaseException as error:
            if ready.done():
                raise
            ready.set_exception(error)

    thread = threading.Thread(target=run, name=f"sandbox {chosen.name}", daemon=True)
    thread.start()
    running, leave = ready.result()
    try:
        yield running
    finally:
        with suppress(RuntimeError):  # its loop has ended by itself
            leave()
        thread.join(timeout=10)


def furnished(rows: int, seed: int) -> World:
    """An account with so many contacts that name 40 companies for each 300 of them, and deals and tasks in proportion."""
    world = World(clock=SystemClock())
    share = {"companies": 40, "deals": 200, "tasks": 150}
    scaled = {kind: max(1, round(rows * number / 300)) for kind, number in share.items()}
    populate(
        world,
        contacts=rows,
        companies=scaled["companies"],
        deals=scaled["deals"],
        tasks=scaled["tasks"],
        seed=seed,
        as_rows=False,
    )
    return world


# ---------------------------------------------------------------------------------------------------------- the command


@click.command("demo")
@click.option("--rows", default=300, type=click.IntRange(1), help="Contacts to move.", show_default=True)
@click.option("--seed", default=1, help="The same seed makes the same rows.", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout, and nothing else.")
@click.pass_context
def run_demo(ctx: click.Context, rows: int, seed: int, as_json: bool) -> None:
    """Move an account between two sandboxes on this machine, over HTTP and within the limits both vendors set.

    The target is read back whole and compared. The exit code is 0 only if everything arrived as it was sent.
    """
    seen = _Bar(sys.stderr.isatty() and not as_json)
    started = time.monotonic()
    try:
        with (
            furnished(rows, seed) as full,
            World(clock=SystemClock()) as empty,
            served(face(_SOURCE), full) as source,
            served(face(_TARGET), empty) as target,
            seen,
        ):
            report = asyncio.run(_moved(source, target, seen))
    except KeyboardInterrupt:
        say(f"interrupted after {time.monotonic() - started:.1f} s. {seen.so_far()} Both sandboxes are stopped.")
        ctx.exit(130)
    except CRMError:
        say(f"stopped after {time.monotonic() - started:.1f} s. {seen.so_far()}")
        raise
    tree = {
        **report.as_tree(),
        "sandboxes": {
            side: {"requests": run.stats.requests, "refused_429": run.stats.refused}
            for side, run in (("source", source), ("target", target))
        },
        "seconds": round(time.monotonic() - started, 2),
        "from": source.face.title,
        "to": target.face.title,
    }
    if as_json:
        click.echo(json_line(tree))
    else:
        _closing(report, tree)
    ctx.exit(0 if report.equal else 1)


async def _moved(source: Running, target: Running, told: Told) -> Report:
    async with (
        connect(_SOURCE, base_url=source.base_url, credentials=source.credentials["token"]) as reading,
        connect(_TARGET, base_url=target.base_url, credentials=target.credentials["token"]) as writing,
    ):
        return await move(reading, writing, told)


class _Bar:
    """Shows how far it is, where there is a terminal to show it on, and remembers it for Ctrl-C."""

    def __init__(self, shown: bool) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bars = Progress(*columns, console=Console(stderr=True), disable=not shown)
        self._tasks: dict[tuple[str, str], TaskID] = {}
        self._done: dict[tuple[str, str], tuple[int, int | None]] = {}

    def __enter__(self) -> "_Bar":
        self._bars.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._bars.stop()

    def __call__(self, doing: str, kind: str, rows: int, of: int | None) -> None:
        key = (doing, kind)
        self._done[key] = (rows, of)
        if key not in self._tasks:
            self._tasks[key] = self._bars.add_task(f"{doing:<5} {kind}", total=None)
        self._bars.update(self._tasks[key], completed=rows, total=of)

    def so_far(self) -> str:
        written = [
            f"{self._done['write', kind][0]} {kind}" if ("write", kind) in self._done else f"no {kind}"
            for kind in KINDS
        ]
        read = [f"{rows} {kind}" for (doing, kind), (rows, _) in self._done.items() if doing == "read"]
        return f"Read: {', '.join(read) or 'nothing'}. Known to be written: {', '.join(written)}."


def _closing(report: Report, tree: Mapping[str, Any]) -> None:
    console = Console(highlight=False)
    title = f"{tree['from']} → {tree['to']}, {tree['seconds']:.1f} s"
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE, pad_edge=False)
    table.add_column("", no_wrap=True)
    for heading in ("read", "written", "refused", "read back", "links", "stages"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("equal")
    for kind, tally in report.kinds.items():
        table.add_row(
            kind,
            str(tally.read),
            str(tally.written),
            str(tally.refused) + (f", {tally.unknown} unknown" if tally.unknown else ""),
            str(tally.read_back) + (f", {tally.unexpected} too many" if tally.unexpected else ""),
            _found(tally.links_found, tally.links_expected),
            _found(tally.stages_found, tally.stages_expected),
            "yes" if tally.equal else "NO",
        )
    console.print(table)
    for line in _lines(report, tree):
        console.print(harmless(line), markup=False, soft_wrap=True)


def _found(found: int, expected: int) -> str:
    return f"{found}/{expected}" if expected else "-"


def _lines(report: Report, tree: Mapping[str, Any]) -> Iterable[str]:
    yield f"lost fields     {_counted(report.lost) or 'none'}"
    yield f"came back other {_counted(report.different) or 'none'}"
    if report.restamped:
        yield f"dated anew      {_counted(report.restamped)}: the target dates its own changes, such as a link"
    for name, number in report.invented.items():
        yield f"{name.rpartition('.')[2]} invented    {name} {number}: the target requires it and the source has none"
    yield f"mapped          {_counted(report.mapped) or 'nothing'}"
    for side in ("source", "target"):
        yield f"{side} requests {report.requests[side]} spent, {report.least[side]} is the least possible"
    for side in ("source", "target"):
        refused = tree["sandboxes"][side]["refused_429"]
        yield f"{side} 429s     {report.rate_limited[side]} seen by the client, {refused} given by the sandbox"
    for trouble in report.troubles[:_SHOWN]:
        yield f"! {trouble}"
    if len(report.troubles) > _SHOWN:
        yield f"! and {len(report.troubles) - _SHOWN} more; --json lists all"
    but = [
        *(["the fields named above were lost"] if report.lost else []),
        *(["the values named above were invented"] if report.invented else []),
        *(["the target has dated its own changes"] if report.restamped else []),
    ]
    if report.equal:
        yield "Every row that was read is in the target as it was sent, once" + (f"; {', '.join(but)}." if but else ".")
    else:
        yield "NOT everything arrived as it was read: see above."


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in sorted(counts.items()))
