"""Move one account into another and believe nothing: what arrived is read back whole and held against what was sent.

Which of the two speaks what is not asked here: what each can list, make, carry and finish is read off its dialect, and
whatever that leaves behind is counted by name.
"""

import asyncio
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import aclosing, contextmanager, suppress
from typing import Any, Final, Protocol, TypeVar, cast
from zoneinfo import ZoneInfo

import attrs
import click
from attrs import define, field
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from crmclient.auth import Login
from crmclient.cli.terminal import fail, harmless, json_line, say
from crmclient.client import Client, connect
from crmclient.clock import SystemClock
from crmclient.dialect import Dialect, Made, Receipt, Refused, Unknown, Verb
from crmclient.entities import Company, Contact, Deal, Entity, Id, Link, Note, Ref, evolve, filled
from crmclient.errors import CRMError, Unreadable
from crmclient.migration.costs import batch, reads, under, writes
from crmclient.migration.matching import KINDS, MOVED, company_key, kind_of, match_stages, match_users, named_company
from crmclient.migration.plan import parts_of, tells, vocabulary
from crmclient.migration.translation import Translation, Words, fields_there, folded, same
from crmclient.registry import dialect as dialect_named
from crmclient.registry import dialect_names
from crmclient.sandbox.server import Face, NoSuchFace, Running, face, serve
from crmclient.sandbox.world import World, populate
from crmclient.vocabulary import Field, Pipeline, User

E = TypeVar("E", bound=Entity)

# A demo that is to be believed shows what it could not do, but not ten thousand times.
_SHOWN: Final = 10
_STAMPS: Final = frozenset({"updated_at", "updated_by"})
# ----------------------------------------------------------------------------------------- what became of the rows


@define
class Tally:
    """One kind of rows, from one account into the other. Companies may be read as names on contacts."""

    read: int = 0
    unreadable: int = 0
    left_out: int = 0
    """Rows that say nothing, or hang on nothing where the target has a place only for those that hang on something."""
    written: int = 0
    refused: int = 0
    unknown: int = 0
    completed: int = 0
    """Rows that had to be finished by a call of their own: where a task is made open, it is then completed."""
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
            self.read == self.written + self.left_out
            and self.written == self.read_back
            and self.links_expected == self.links_found
            and self.stages_expected == self.stages_found
            and not (self.unreadable or self.refused or self.unknown or self.unexpected)
        )


@define
class Report:
    """What a move did, counted; a count that is not what it should be is shown, never explained away."""

    kinds: dict[str, Tally] = field(factory=lambda: {kind: Tally() for kind in KINDS})
    """The kinds that the source has and the target can make."""
    lost_kinds: Counter[str] = field(factory=Counter[str])
    """Rows of the kinds that the target has not."""
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
    unlisted: dict[str, list[str]] = field(factory=dict[str, list[str]])
    """The words of an account (users, pipelines) that a side does not list, so that nothing can be mapped by them."""
    troubles: list[str] = field(factory=list[str])
    """Row by row, what was refused, is unknown or could not be read."""
    under: dict[str, dict[str, int]] = field(factory=lambda: {side: {} for side in ("source", "written", "target")})
    """How many of the rows that hang on something hang on what kind: read, written and read back."""
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


def least(source: Dialect, target: Dialect, report: Report, *, settings: Mapping[str, int]) -> dict[str, int]:
    """The fewest requests such a move can cost on each side: nothing asked twice, every page and every batch full.

    ``settings`` are the requests that signed in and told the users, the pipelines and the like.
    """
    rows = {kind: tally.read for kind, tally in report.kinds.items()} | dict(report.lost_kinds) | report.under["source"]
    reading = reads(source, [kind for kind in MOVED if kind in rows and source.can(MOVED[kind], Verb.LIST)], rows)
    there = {kind: tally.read_back + tally.unexpected for kind, tally in report.kinds.items()} | report.under["target"]
    writing = reads(target, report.kinds, there)
    for kind, tally in report.kinds.items():
        apart = [number for name, number in report.under["written"].items() if name.startswith(f"{kind} of ")]
        ties = tally.links_expected if kind == "contacts" else 0
        writing += writes(source, target, kind, tally.written, apart=apart, completed=tally.completed, ties=ties)
    return {"source": reading + settings["source"], "target": writing + settings["target"]}


# ------------------------------------------------------------------------------------------------------------ moving


async def move(source: Client, target: Client, told: Told = _silent, *, task_type: Ref | None = None) -> Report:
    """Move companies, contacts, deals, tasks and notes, as far as both have them, and read them back.

    Where the source has companies only as words on its contacts and the target has rows for them, each distinct one
    becomes a row; where it is the other way round, contacts keep the words. What the target refuses is reported, and the
    rest goes on; what cannot be carried is reported by name. ``task_type`` is what a task is where the target requires
    a type and the source's means nothing there; else it is the first that the target tells.
    """
    return await _Move(source, target, told, task_type).run()


@define
class _Sent:
    """A row as it was sent, with the id it got."""

    row: Any
    id: Id | None


class _Move:
    def __init__(self, source: Client, target: Client, told: Told, task_type: Ref | None) -> None:
        self.source, self.target, self.told = source, target, told
        self.report = Report(kinds={})
        self.settings = {"source": 0, "target": 0}
        words = Words(now=SystemClock().now().replace(microsecond=0), task_type=task_type)
        self.translate = Translation(source.dialect, target.dialect, words, self)
        # How users of the source were found in the target.
        self.found: dict[Id | None, str] = {}
        self.company_names: dict[Id | None, str] = {}
        # What became of the source's rows, by kind and by the source's id; a company that is no row goes by its name.
        self.sent: dict[str, dict[Id, _Sent]] = {kind: {} for kind in KINDS}

    @property
    def words(self) -> Words:
        return self.translate.words

    @words.setter
    def words(self, better: Words) -> None:
        self.translate.words = better

    async def run(self) -> Report:
        await self._know_the_words()
        rows: dict[str, Sequence[Any]] = await self._read()
        self.company_names = {row.id: row.name or "" for row in rows.get("companies", ())}
        if "companies" not in rows and self.target.can(Company, Verb.CREATE):
            rows = {"companies": _companies_named(rows.get("contacts", ())), **rows}
        for kind in KINDS:
            if kind in rows and not self.target.can(MOVED[kind], Verb.CREATE):
                self.report.lost_kinds[kind] = len(rows.pop(kind))
                self.report.kinds.pop(kind)
        if "companies" in self.report.lost_kinds and "company" in self.target.dialect.resource(Contact).survivors(
            Verb.CREATE
        ):
            self.report.mapped["companies as words on their contacts"] = self.report.lost_kinds["companies"]
        self.report.kinds = {kind: self.report.kinds.get(kind) or Tally(read=len(rows[kind])) for kind in rows}
        await self._know_the_owners([row for each in rows.values() for row in each])
        for kind, each in rows.items():
            await self._write(kind, sorted(each, key=_alike_together))
        await self._check(tuple(rows))
        self._account()
        return self.report

    # ------------------------------------------------------------------------------------------------------- reading

    async def _know_the_words(self) -> None:
        """Map what both accounts list of their own; custom fields only where both do, for reading them is dear."""
        both = [each for each in (User, Pipeline) if tells(self.source, each) or tells(self.target, each)]
        both += [Field] if tells(self.source, Field) and tells(self.target, Field) else []
        asked = [(side, each) for side in ("source", "target") for each in both if self._lists(side, each)]
        answers = await asyncio.gather(*(vocabulary(getattr(self, side), each) for side, each in asked))
        known: dict[tuple[str, type[Any]], Sequence[Any]] = dict(zip(asked, answers, strict=True))
        for side, entity in asked:
            self.settings[side] += not parts_of(getattr(self, side).dialect, entity)
        users = match_users(known.get(("source", User), ()), known.get(("target", User), ()))
        places = match_stages(known.get(("source", Pipeline), ()), known.get(("target", Pipeline), ()))
        self.found = {id: how for id, (_, how) in users.items()}
        self.words = evolve(
            self.words,
            users={id: there for id, (there, _) in users.items()},
            places={at: (place.pipeline, place.stage) for at, place in places.items()},
            fields=fields_there(known.get(("source", Field), ()), known.get(("target", Field), ())),
        )
        for place in places.values():
            self.report.mapped[f"stages by {place.how}"] += 1

    def _lists(self, side: str, entity: type[Any]) -> bool:
        there: Client = getattr(self, side)
        if not tells(there, entity):
            self.report.unlisted.setdefault(there.dialect.title, []).append(f"{entity.__name__.lower()}s")
            return False
        return True

    async def _read(self) -> dict[str, Sequence[Any]]:
        """All the rows in one walk, so that what is told of several kinds at once is asked for once."""
        rows: dict[str, list[Any]] = {kind: [] for kind, entity in MOVED.items() if self.source.can(entity, Verb.LIST)}
        tallies = {kind: self.report.kinds.setdefault(kind, Tally()) for kind in rows}

        def on_bad(entity: type[Any], bad: Unreadable) -> None:
            kind = kind_of(entity)
            tallies[kind].unreadable += 1
            self.report.troubles.append(f"{kind}: {bad}")

        async for row in self.source.together(*(MOVED[kind] for kind in rows), on_bad=on_bad):
            kind = kind_of(row)
            rows[kind].append(row)
            self._count("source", row)
            if len(rows[kind]) % 50 == 0:
                self.told("read", kind, len(rows[kind]), None)
        for kind, found in rows.items():
            tallies[kind].read = len(found) + tallies[kind].unreadable
            self.told("read", kind, len(found), len(found))
        return dict(rows)

    def _count(self, side: str, row: Any) -> None:
        target: Ref | None = getattr(row, "target", None)
        if target is not None:
            counts, name = self.report.under[side], under(kind_of(row), target)
            counts[name] = counts.get(name, 0) + 1

    async def _know_the_owners(self, rows: Iterable[Entity]) -> None:
        """Map each owner; who has no like in the target is me, if it tells who that is, and only then is it asked."""
        owners = dict.fromkeys(row.owner.id for row in rows if row.owner is not None)
        for id in owners:
            how = self.found.get(id, "nothing")
            if id not in self.found and "me" in self.target.dialect.settings:
                if self.words.me is None:
                    me = (await self.target.me()).ref
                    self.words = evolve(self.words, me=me, nobody=me)
                how = "nothing, so they are me"
            self.report.mapped[f"users by {how}"] += 1

    async def _know_me(self) -> None:
        """Who the target takes me for, where it does not tell: whom it gave a row for which nobody was named."""
        for kind, made in self.sent.items():
            nobodys = {sent.id for sent in made.values() if sent.id is not None and sent.row.owner is None}
            if not nobodys or "owner" not in self.target.dialect.resource(MOVED[kind]).survivors(Verb.LIST):
                continue
            self.settings["target"] += 1
            async with aclosing(self.target.of(MOVED[kind]).pages(prefetch=1)) as found:
                async for page in found:
                    me = next((row.owner for row in page if row.id in nobodys and row.owner), None)
                    if me is not None:
                        self.words = evolve(self.words, me=me)
                        return

    async def _know_a_task_type(self) -> None:
        """The first type of task that the target tells, for tasks whose own means nothing there."""
        if "task_types" in self.target.dialect.settings:
            first = next((each.ref for each in await self.target.setting("task_types")), None)
            self.words = evolve(self.words, task_type=first)

    # ------------------------------------------------------------------------------- what the translation asks of rows

    def made(self, kind: str, id: Id) -> Id | None:
        sent = self.sent[kind].get(id)
        return sent.id if sent is not None else None

    def company_name(self, id: Id) -> str:
        return self.company_names.get(id, "")

    def company_of(self, contact: Id) -> Link | None:
        sent = self.sent["contacts"].get(contact)
        return sent.row.company if sent is not None and sent.id is not None else None

    # ------------------------------------------------------------------------------------------------------- writing

    async def _write(self, kind: str, rows: Sequence[Any]) -> None:
        tally, resource = self.report.kinds[kind], self.target.dialect.resource(MOVED[kind])
        if "owner" in resource.required and self.words.me is None:
            await self._know_me()
        if "type" in resource.required and self.words.task_type is None:
            await self._know_a_task_type()
        ready: list[tuple[Id, Any, Any]] = []
        for row in rows:
            there = self.translate(row)
            if there.left_out is not None:
                tally.left_out += 1
                self.report.lost[f"{row.KIND} that {there.left_out}"] += 1
                continue
            self.report.lost.update(f"{row.KIND}.{name}" for name in there.lost)
            self.report.invented.update(f"{row.KIND}.{name}" for name in there.invented)
            ready.append((_id(row), there.row, there.later))
        await self._send(kind, ready)

    async def _send(self, kind: str, ready: Sequence[tuple[Id, Any, Any]]) -> None:
        tally, size, again = self.report.kinds[kind], batch(self.target.dialect, kind), list[tuple[Id, Any, Any]]()
        # One full request at a time: after a Ctrl-C it is known what was done, and a server that works through one
        # batch before it looks at the next sees each when it was sent, which is what its limit counts by.
        for start in range(0, len(ready), size):
            part = ready[start : start + size]
            receipts = await self.target.of(MOVED[kind]).create_many([row for _, row, _ in part], batch=size)
            for (id, row, later), receipt in zip(part, receipts, strict=True):
                text = folded(row) if isinstance(receipt, Refused) else None
                if text is not None:
                    again.append((id, text, later))
                    continue
                made = self._received(kind, id, row, receipt, tally)
                self.sent[kind][id] = _Sent(await self._finished(row, made, later, tally), made)
            self.told("write", kind, tally.written, len(ready))
        if again:
            # A call may lack what makes it one there; what it says goes as a text.
            self.report.lost.update(f"{row.KIND}.{name}" for _, row, _ in again for name in ("kind", "params"))
            await self._send(kind, again)

    def _received(self, kind: str, id: Id, row: Entity, receipt: Receipt[Any], tally: Tally) -> Id | None:
        named = f"{kind} {id} ({getattr(row, 'name', None) or getattr(row, 'text', None) or 'no name'})"
        if isinstance(receipt, Made):
            tally.written += 1
            self._count("written", row)
            self.report.troubles += [f"{named}: written, but {issue}" for issue in receipt.issues]
            return receipt.id
        if isinstance(receipt, Unknown):
            tally.unknown += 1
        else:
            tally.refused += 1
        self.report.troubles.append(f"{named}: {receipt.error}")
        return None

    async def _finished(self, row: Any, made: Id | None, later: dict[str, Any], tally: Tally) -> Any:
        if made is None or not later:
            return row
        try:
            await self.target.tasks.complete(made, result=later.get("result"))
        except CRMError as error:
            self.report.troubles.append(f"task {made}: written, but not completed: {error}")
            self.report.lost.update(f"task.{name}" for name in later)
            return row
        tally.completed += 1
        return evolve(row, **later)

    # ------------------------------------------------------------------------------------------------------ checking

    async def _check(self, kinds: Sequence[str]) -> None:
        """Read the target whole and hold each row that was sent against it."""
        expected: dict[Ref, Any] = {
            Ref(MOVED[kind].KIND, sent.id): sent.row
            for kind in kinds
            for sent in self.sent[kind].values()
            if sent.id is not None
        }
        # Nothing is read ahead: a page too many would not be the least.
        async for found in self.target.together(*(MOVED[kind] for kind in kinds), prefetch=1):
            kind = kind_of(found)
            self._count("target", found)
            row, tally = expected.pop(found.ref, None), self.report.kinds[kind]
            if row is None:
                tally.unexpected += 1
                continue
            tally.read_back += 1
            self._hold_against(row, found, tally)
            if tally.read_back % 50 == 0:
                self.told("check", kind, tally.read_back, tally.written)
        for row in expected.values():
            tally = self.report.kinds[kind_of(row)]
            tally.links_expected += len(_links(row))
            tally.stages_expected += getattr(row, "stage", None) is not None
        for kind in kinds:
            self.told("check", kind, self.report.kinds[kind].read_back, self.report.kinds[kind].written)

    def _hold_against(self, row: Entity, found: Entity, tally: Tally) -> None:
        wanted, there = _links(row), _links(found)
        tally.links_expected += len(wanted)
        tally.links_found += len(wanted & there)
        if isinstance(row, Deal) and isinstance(found, Deal) and row.stage is not None:
            tally.stages_expected += 1
            tally.stages_found += (row.pipeline, row.stage) == (found.pipeline, found.stage)
        for name in filled(row):
            if not same(getattr(row, name), getattr(found, name)):
                counts = self.report.restamped if name in _STAMPS else self.report.different
                counts[f"{row.KIND}.{name}"] += 1

    def _account(self) -> None:
        for side, client in (("source", self.source), ("target", self.target)):
            self.report.requests[side] = client.spent.requests
            self.report.rate_limited[side] = client.spent.rate_limited
            self.settings[side] += client.spent.aside
        self.report.least = least(self.source.dialect, self.target.dialect, self.report, settings=self.settings)


def _companies_named(contacts: Iterable[Contact]) -> list[Company]:
    """A row for each company that contacts name, in the order of the first one to name it; its id is what it goes by."""
    named = {
        key: named_company(each.company)
        for each in reversed(list(contacts))
        if (key := company_key(each.company)) is not None
    }
    return [Company(id=key, name=named[key]) for key in reversed(named)]


def _alike_together(row: Any) -> tuple[bool, str]:
    """Rows that share a request side by side, so that only the last is not full: who is tied, and notes by their path."""
    target = row.target.kind if isinstance(row, Note) and row.target is not None else ""
    return isinstance(row, Contact) and company_key(row.company) is None, str(target)


def _id(row: Entity) -> Id:
    assert row.id is not None  # noqa: S101  every row that was read has one
    return row.id


def _links(row: Entity) -> frozenset[Ref]:
    """The rows that a row is tied to."""
    one = [getattr(row, "company", None)]
    links: list[Link] = [*(link for link in one if link is not None), *(getattr(row, "contacts", ()))]
    target = getattr(row, "target", None)
    refs = [*(link.ref for link in links), *([target] if target is not None else [])]
    return frozenset(ref for ref in refs if ref.id is not None)


# ------------------------------------------------------------------------------------------------------- two sandboxes


@contextmanager
def served(chosen: Face, world: World, *, limits: bool = True) -> Generator[Running]:
    """A sandbox in a thread and a loop of its own: what keeps the client busy must not make the server's clock late."""
    ready: Future[tuple[Running, Callable[[], None]]] = Future()

    async def serving() -> None:
        leaving, loop = asyncio.Event(), asyncio.get_running_loop()
        async with serve(chosen, world, limits=limits) as running:
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


def furnished(rows: int, seed: int, spoken: Dialect) -> World:
    """An account with so many contacts and 40 companies for each 300 of them, and deals, tasks and notes in proportion."""
    world = World(clock=SystemClock())
    share = {"companies": 40, "deals": 200, "tasks": 150, "notes": 150}
    scaled = {kind: max(1, round(rows * number / 300)) for kind, number in share.items()}
    populate(world, contacts=rows, **scaled, seed=seed, as_rows=spoken.can(Company, Verb.LIST))
    return world


def client_of(spoken: Dialect, running: Running, **more: Any) -> Client:
    """A client of a sandbox, with what its card gives to come in: a token, or else a login with its key."""
    card = running.credentials
    given = card["token"] if "token" in card else Login(card["login"], hash=card["hash"])
    # Where no page tells the account's time zone, whoever owns the account knows it.
    zone = None if "account" in spoken.settings else ZoneInfo(running.world.account["zone"])
    return connect(spoken, base_url=running.base_url, credentials=given, zone=zone, **more)


# ---------------------------------------------------------------------------------------------------------- the command


@click.command("demo")
@click.option("--from", "origin", default="electrum", help="The dialect to move from.", show_default=True)
@click.option("--to", "goal", default="kommo", help="The dialect to move to.", show_default=True)
@click.option("--rows", default=300, type=click.IntRange(1), help="Contacts to move.", show_default=True)
@click.option("--seed", default=1, help="The same seed makes the same rows.", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout, and nothing else.")
@click.pass_context
def run_demo(ctx: click.Context, origin: str, goal: str, rows: int, seed: int, as_json: bool) -> None:
    """Move an account between two sandboxes on this machine, over HTTP and within the limits both vendors set.

    The target is read back whole and compared. The exit code is 0 only if everything the target can carry arrived as it
    was sent; what it cannot carry is named. `crmclient dialects` names the dialects.
    """
    reads_from, writes_to = (_known(name) for name in (origin, goal))
    seen = _Bar(sys.stderr.isatty() and not as_json)
    started = time.monotonic()
    try:
        with (
            furnished(rows, seed, reads_from[0]) as full,
            World(clock=SystemClock()) as empty,
            served(reads_from[1], full) as source,
            served(writes_to[1], empty) as target,
            seen,
        ):
            report = asyncio.run(_moved(client_of(reads_from[0], source), client_of(writes_to[0], target), seen))
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


def _known(name: str) -> tuple[Dialect, Face]:
    try:
        return dialect_named(name), face(name)
    except NoSuchFace as wrong:
        raise fail(f"{wrong}; dialects: {', '.join(dialect_names())}") from None


async def _moved(source: Client, target: Client, told: Told) -> Report:
    async with source, target:
        return await move(source, target, told)


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
            if ("write", kind) in self._done or kind != "notes"
        ]
        read = [f"{rows} {kind}" for (doing, kind), (rows, _) in self._done.items() if doing == "read"]
        return f"Read: {', '.join(read) or 'nothing'}. Known to be written: {', '.join(written)}."


def _closing(report: Report, tree: Mapping[str, Any]) -> None:
    console = Console(highlight=False)
    title = f"{tree['from']} → {tree['to']}, {tree['seconds']:.1f} s"
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE, pad_edge=False)
    table.add_column("", no_wrap=True)
    for heading in ("read", "left out", "written", "refused", "read back", "links", "stages"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("equal")
    for kind, tally in report.kinds.items():
        table.add_row(
            kind,
            str(tally.read),
            str(tally.left_out or "-"),
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
    if report.lost_kinds:
        yield f"lost kinds      {_counted(report.lost_kinds)}: the target has no such rows"
    yield f"lost fields     {_counted(report.lost) or 'none'}"
    yield f"came back other {_counted(report.different) or 'none'}"
    if report.restamped:
        yield f"dated anew      {_counted(report.restamped)}: the target dates its own changes, such as a link"
    for name, number in report.invented.items():
        yield f"{name.rpartition('.')[2]} invented    {name} {number}: the target requires it and the source has none"
    yield f"mapped          {_counted(report.mapped) or 'nothing'}"
    for title, words in report.unlisted.items():
        yield f"not mapped      {' and '.join(words)}: {title} does not list them"
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
        *(["the kinds named above were lost"] if report.lost_kinds else []),
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
