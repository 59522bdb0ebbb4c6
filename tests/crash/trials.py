"""One move between two sandboxes, taken apart at chosen points, begun again until it ends, and scored by what stands there.

Everything is in this process: requests, the ledger's commits and time itself, so that a case costs milliseconds. A point is
named by the run it is in, where it is and its number there: ``target 7`` is the seventh request that the target gets.

    python tests/crash/trials.py amoxml kommo "1 target 7 kill-after" "2 commit 3 before"     one case, told at length
"""

import asyncio
import hashlib
import os
import random
import shutil
import sqlite3
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx
from attrs import define, evolve, field, frozen

from crmclient import Client
from crmclient.cli.demo import client_of
from crmclient.clock import FakeClock
from crmclient.dialect import Verb
from crmclient.entities import Company
from crmclient.errors import CRMError
from crmclient.migration.adoption import adopt
from crmclient.migration.engine import Migration
from crmclient.migration.ledger import Ledger, State
from crmclient.migration.matching import MOVED
from crmclient.migration.plan import NOT_EMPTY, Plan, markers, plan
from crmclient.pacing import SharedPacers
from crmclient.registry import dialect
from crmclient.sandbox.faults import Action, Fault, Faults
from crmclient.sandbox.server import Running, Setting, face, in_process
from crmclient.sandbox.world import KINDS as HELD
from crmclient.sandbox.world import World
from crmclient.testing.crash import CrashingLedger, CrashingTransport, CrashPoints, SimulatedCrash

NAMES: Final = ("amocrm", "amoxml", "electrum", "kommo")
QUARANTINE: Final = 1.0
# Shorter than the quarantine, or the assumption that it stands on would not hold.
LATE: Final = 0.9
RESTARTS: Final = 40
# What a process takes to be started again: what the dead one has sent lands in the life of the next.
AGAIN: Final = 0.1
# So long where the vendors count: a process knows nothing of the pace of the one before, and would be banned in the end.
PACED: Final = 1.1
# A move that does nothing any more, by the clock on the wall.
STANDSTILL: Final = 20.0

FAULTS: Final[Mapping[str, Fault]] = {
    "kill-before": Fault(action=Action.KILL_BEFORE),
    "kill-after": Fault(action=Action.KILL_AFTER),
    "kill-late": Fault(action=Action.KILL_LATE, requests=None, seconds=LATE),
    "drop-before": Fault(action=Action.DROP_BEFORE),
    "drop-after": Fault(action=Action.DROP_AFTER),
    "late": Fault(action=Action.LATE, requests=None, seconds=LATE),
    "504-after": Fault(action=Action.STATUS_AFTER, status=504),
    "html-after": Fault(action=Action.HTML_AFTER),
}
ACTS: Final = tuple(FAULTS)
# Somebody asks it to stop, and it goes on another time.
STOP: Final = "stop"


@frozen(order=True)
class Point:
    """``where`` is ``source`` or ``target`` for a request and ``commit`` for what the ledger writes; numbered from 1."""

    run: int
    where: str
    number: int

    def __str__(self) -> str:
        return f"{self.run} {self.where} {self.number}"


Decide = Callable[[Point, str], str | None]
"""What happens at a point, which is also told by what it does: ``POST /api/v4/leads``, ``intent deals``."""


def nothing(point: Point, what: str) -> None:
    return None


def just(hits: Mapping[Point, str]) -> Decide:
    return lambda point, what: hits.get(point)


@define
class Life(CrashPoints):
    """One run of the process: it dies once, and does nothing any more."""

    run: int = 1
    decide: Decide = nothing
    commits: int = 0
    passing: str = ""

    def __call__(self, point: str) -> None:
        if self.dead:
            raise SimulatedCrash(point)
        self.passing, _, what = point.partition(" ")
        if what.startswith("request"):
            return
        self.commits += self.passing == "before"
        if self.decide(Point(self.run, "commit", self.commits), what) == self.passing:
            self.die_now(point)

    def die_now(self, point: str) -> None:
        self.dead = True
        raise SimulatedCrash(point)


# ------------------------------------------------------------------------------------------------------- two accounts

_BEGAN: Final = 1_700_000_000
RESULT: Final = "Agreed"


def eight_rows(world: World, companies: bool) -> None:
    """A company, two namesakes in it, their deal, two tasks on that and two notes on one of them which are alike."""
    when: dict[str, Any] = {"created_at": _BEGAN, "updated_at": _BEGAN}
    company = world.add("company", {"name": "Acme", **when}) if companies else None
    people = [
        world.add(
            "contact",
            {
                "name": "Ann Lee",
                "first_name": "Ann",
                "last_name": "Lee",
                "phones": [{"value": f"+7900000000{number}", "label": "work"}],
                "company": "Acme",
                "company_id": company,
                **when,
            },
        )
        for number in (1, 2)
    ]
    stage = world.select("stage", where={"name": "Переговоры"})[0]
    deal = world.add(
        "deal",
        {
            "name": "Delivery",
            "price": 1500,
            "company_id": company,
            "pipeline_id": stage["pipeline_id"],
            "stage_id": stage["id"],
            **when,
            "contacts": [{"id": people[0], "main": True}, {"id": people[1], "main": False}],
        },
    )
    on_deal, on_contact = (
        {"target_kind": kind, "target_id": id} for kind, id in (("deal", deal), ("contact", people[0]))
    )
    for done in (True, False):
        task = {"text": "Call back", "due": _BEGAN + 86_400, "done": done, "result": RESULT if done else None}
        world.add("task", {**task, **on_deal, **when})
    for _ in range(2):
        world.add("note", {"text": "ok", **on_contact, **when})


def twins(world: World, companies: bool) -> None:
    """Two namesakes and nothing to tell them by, each with a deal like the other's, and on one of these all said twice."""
    when: dict[str, Any] = {"created_at": _BEGAN, "updated_at": _BEGAN}
    people = [
        world.add("contact", {"name": "Ann Lee", "first_name": "Ann", "last_name": "Lee", **when}) for _ in range(2)
    ]
    stage = world.select("stage", where={"name": "Переговоры"})[0]
    where = {"pipeline_id": stage["pipeline_id"], "stage_id": stage["id"]}
    deals = [
        world.add("deal", {"name": "Delivery", "price": 1500, "contacts": [{"id": id, "main": True}], **where, **when})
        for id in people
    ]
    for deal in (deals[0], deals[0], deals[1]):
        on_deal = {"target_kind": "deal", "target_id": deal}
        world.add("task", {"text": "Call back", "due": _BEGAN + 86_400, **on_deal, **when})
    for person in (people[0], people[0], people[1]):
        world.add("note", {"text": "ok", "target_kind": "contact", "target_id": person, **when})


@define
class Stage:
    """Two accounts as they are before anything has happened, and the plan between them; what a faultless move leaves."""

    origin: str
    goal: str
    full: World
    empty: World
    plan: Plan
    switches: Mapping[str, Setting]
    expected: "Seen" = field(init=False)
    written: frozenset[str] = frozenset()
    """The kinds whose rows come by requests of ours alone: never more of them are there than were meant to be."""
    points: dict[str, list[str]] = field(factory=dict[str, list[str]])
    """What the faultless move does, by where."""
    known: "dict[bytes, Score]" = field(factory=lambda: dict[bytes, Score]())
    """What has come of all that the first process may leave as it dies: of the same comes the same."""


_stages: dict[Any, Stage] = {}


async def stage_of(
    origin: str,
    goal: str,
    furnish: Callable[[World, bool], None] = eight_rows,
    *,
    sparse: int | None = None,
    marker: str | None = None,
    already: Callable[[World], None] | None = None,
    **switches: Setting,
) -> Stage:
    """Made once: a plan costs as much as a move. Without a ``marker`` it is the best that the target can keep; ``already``
    makes what the target holds before.
    """
    key = (origin, goal, furnish, sparse, marker, already, *sorted(switches.items()))
    if key in _stages:
        return _stages[key]
    clock = FakeClock()
    full, empty = World(clock=clock), World(clock=clock, sparse=sparse)
    furnish(full, dialect(origin).can(Company, Verb.LIST))
    if already is not None:
        already(empty)
    source, target = in_process(face(origin), full), in_process(face(goal), empty)
    async with _client(origin, source, clock) as reading, _client(goal, target, clock) as writing:
        made = evolve(await plan(reading, writing), quarantine=QUARANTINE, allow=(NOT_EMPTY,))
        if marker in markers(dialect(goal)):
            made = evolve(made, marker=marker)
    known = {name: value for name, value in switches.items() if name in face(goal).switches}
    stage = Stage(origin, goal, full, empty, made, known)
    seen: dict[str, list[str]] = {"source": [], "target": [], "commit": []}

    def look(point: Point, what: str) -> None:
        # A commit is asked about on both of its sides.
        if point.number > len(seen[point.where]):
            seen[point.where].append(what)

    stage.expected = Seen({}, Counter(), Counter(), 0)
    score = await trial(stage, look)
    stage.expected, stage.points = score.seen, seen
    # Notes that a vendor makes of results by itself are not ours.
    own = {kind for kind, entity in MOVED.items() if dialect(goal).can(entity, Verb.CREATE)}
    results = any(kind == "note" and row["text"] == RESULT for (kind, _), row in score.seen.rows.items())
    stage.written = frozenset(own - {"notes"} if results else own)
    assert not score.wrong, f"{origin} to {goal} without any fault: {score.wrong}"
    _as_in_the_source(stage)
    _stages[key] = stage
    return stage


@define
class _Slow(httpx.AsyncBaseTransport):
    """A wire that takes a while, each way, and now and then ten times as long."""

    inner: httpx.AsyncBaseTransport
    clock: FakeClock
    most: float
    dice: random.Random = field(factory=lambda: random.Random(1))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await self._travel()
        answer = await self.inner.handle_async_request(request)
        await self._travel()
        return answer

    async def _travel(self) -> None:
        await self.clock.sleep(self.dice.uniform(0, self.most) / self.dice.choice((1, 10, 10, 10)))


def _client(
    name: str, running: Running, clock: FakeClock, life: Life | None = None, latency: float = 0.0, **more: Any
) -> Client:
    transport = running.transport()
    if latency:
        transport = _Slow(transport, clock, latency)
    if life is not None:
        transport = CrashingTransport(life, transport)
    # A process that is started anew knows nothing of the pace of the one before.
    return client_of(dialect(name), running, transport=transport, clock=clock, pacer=SharedPacers(), **more)


# ---------------------------------------------------------------------------------------------------------- the trial


@frozen(kw_only=True)
class Way:
    """How a move is made. ``latency`` are the seconds that a request takes at most to the server, and its answer back;
    without ``limits`` neither side counts nor paces. A ``foreign`` writer makes rows in the target meanwhile; who is
    ``forgetful`` loses the ledger with each life, and adopts what is there; ``late`` is how late what is late lands.
    """

    lanes: int = 8
    limits: bool = False
    latency: float = 0.0
    foreign: bool = False
    forgetful: bool = False
    late: Callable[[], float] = lambda: LATE
    told: Callable[[str], None] = lambda line: None


USUAL: Final = Way()
# A file that no disk has to do with.
_FAST: Final = "/dev/shm" if os.path.isdir("/dev/shm") else None


async def trial(
    stage: Stage, decide: Decide = nothing, way: Way = USUAL, known: "dict[bytes, Score] | None" = None
) -> "Score":
    """Move until it ends, whatever is decided on the way, and look at what stands in the target then.

    ``known`` is for cases in which the first process dies, nothing lands after it, and nothing happens to the next one.
    """
    clock, folder = FakeClock(), Path(tempfile.mkdtemp(dir=_FAST))
    try:
        with stage.full.copy(clock=clock) as full, stage.empty.copy(clock=clock) as empty:
            empty.sparse = stage.empty.sparse
            worlds = {"source": full, "target": empty}
            return await _Trial(stage, decide, way, clock, folder / "ledger", worlds, known).score()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@define
class _Trial:
    stage: Stage
    decide: Decide
    way: Way
    clock: FakeClock
    path: Path
    worlds: Mapping[str, World]
    known: "dict[bytes, Score] | None" = None
    sides: dict[str, Running] = field(factory=dict[str, Running])
    life: Life = field(factory=Life)
    counted: Counter[str] = field(factory=Counter[str])
    hits: int = 0
    raised: list[str] = field(factory=list[str])
    violations: list[str] = field(factory=list[str])
    migration: Migration | None = None

    async def score(self) -> "Score":
        for where, name in (("source", self.stage.origin), ("target", self.stage.goal)):
            faults = Faults(kill=self._kill)
            faults.decide = partial(self._decided, where)
            switches = self.stage.switches if where == "target" else {}
            more = {"faults": faults, "switches": switches, "limits": self.way.limits}
            self.sides[where] = in_process(face(name), self.worlds[where], **more)
        if self.way.foreign:
            self.sides["target"].meanwhile(_walk_in, every=2)
        left: bytes | None = None
        for run in range(1, RESTARTS + 2):
            self.life = Life(run=run, decide=self._at_commit)
            self.counted.clear()
            async with asyncio.timeout(STANDSTILL):
                if await self._ended():
                    break
            if run == 1 and self.known is not None:
                left = self._left()
                if left in self.known:
                    same = self.known[left]
                    return evolve(same, hits=self.hits, violations=(*self.violations, *same.violations))
            self.clock.advance(PACED if self.way.limits else AGAIN)
        else:
            self.raised.append(f"not at its end after {RESTARTS} restarts")
        self.life.dead = True
        for side in self.sides.values():
            await side.faults.land()
        score = self._scored()
        if left is not None and self.known is not None:
            self.known[left] = score
        return score

    def _left(self) -> bytes:
        """All that outlives a process: what is in its ledger, but for the number of the run, and what is in the accounts."""
        with closing(sqlite3.connect(f"{self.path.as_uri()}?mode=ro", uri=True)) as ledger:
            tables = [name for (name,) in ledger.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            rows = [(each, [*ledger.execute(f"SELECT * FROM {each}")]) for each in tables]
        held: list[Any] = [(each, [row[1:] if each == "run" else row for row in found]) for each, found in rows]
        for world in self.worlds.values():
            held += [world.newest, *((kind, world.select(kind)) for kind in HELD)]
        return hashlib.sha256(repr((self.clock.monotonic(), held)).encode()).digest()

    async def _ended(self) -> bool:
        """One process, from its start to its end, or to its death."""
        life, ledger = self.life, None
        pace = {} if self.way.limits else {"rate": ()}
        reading, writing = (
            _client(name, self.sides[where], self.clock, life, self.way.latency, **pace)
            for where, name in (("source", self.stage.origin), ("target", self.stage.goal))
        )
        try:
            forgotten = self.way.forgetful and life.run > 1
            if forgotten:
                for file in self.path.parent.iterdir():
                    file.unlink()
            ledger = CrashingLedger(life, self.path, durable=False)
            if forgotten:
                await adopt(reading, writing, self.stage.plan, ledger, clock=self.clock)
            self.migration = Migration(
                reading, writing, self.stage.plan, ledger, clock=self.clock, lanes=self.way.lanes
            )
            async for event in self.migration:
                if event.said:
                    self.way.told(f"    {event.phase}: {event.said}")
            if life.dead:
                self.raised.append(f"run {life.run} was killed and went on to its end")
            return self.migration.ended
        except CRMError as error:
            self.raised.append(f"run {life.run}: {type(error).__name__}: {error}")
            self.way.told(self.raised[-1])
            return False
        except BaseException as error:
            if not life.dead:
                raise
            self.way.told(f"run {life.run} died: {error!r:.200}")
            return False
        finally:
            life.dead = True
            await reading.aclose()
            await writing.aclose()
            if ledger is not None:
                ledger.close()
                with Ledger.read(self.path) as left:
                    self.violations += [f"run {life.run}: {each}" for each in self._violations(left)]

    def _violations(self, ledger: Ledger) -> Iterator[str]:
        yield from ledger.violations()
        for kind, counts in ledger.counts().items():
            table, world = str(MOVED[kind].KIND), self.worlds["target"]
            there = world.count(table) - self.stage.empty.count(table) - _walked_in(world, table)
            intended = sum(counts.values()) - counts[State.PENDING] - counts[State.SKIPPED] - counts[State.FOLDED]
            if there > intended and kind in self.stage.written and not self.way.forgetful:
                yield f"I3: {there} {kind} are there, and {intended} were intended"

    def _decided(self, where: str, method: str, what: str, number: int) -> Fault | None:
        self.counted[where] += 1
        point = Point(self.life.run, where, self.counted[where])
        act = self.decide(point, f"{method} {what}")
        if act is None:
            return None
        self.hits += 1
        self.way.told(f"{point} {method} {what}: {act}")
        if act == STOP:
            return self._stop()
        return evolve(FAULTS[act], seconds=self.way.late()) if "late" in act else FAULTS[act]

    def _at_commit(self, point: Point, what: str) -> str | None:
        act = self.decide(point, what)
        if act is not None and self.life.passing == (act if act != STOP else "after"):
            self.hits += 1
            self.way.told(f"{point} {what}: {act}")
            if act == STOP:
                return self._stop()
        return act

    def _stop(self) -> None:
        if self.migration is not None:
            self.migration.stop()

    def _kill(self, fault: Fault) -> None:
        self.life.die_now(str(fault.action))

    def _scored(self) -> "Score":
        target, verdict = self.worlds["target"], self.migration.verdict if self.migration is not None else None
        with Ledger.read(self.path) as left:
            unsettled = [
                f"{item.kind} {item.source} is {item.state}: {item.error}"
                for item in left.items()
                if item.state not in (State.DONE, State.SKIPPED, State.FOLDED)
            ]
            self.violations += _taken(left, target)
        return Score(
            stage=self.stage,
            seen=Seen.of(target),
            ended=self.migration is not None and self.migration.ended,
            sentence=verdict.sentence if verdict else "",
            equal=verdict is not None and _equal(verdict, self.way.foreign),
            violations=tuple(self.violations),
            unsettled=tuple(unsettled),
            raised=tuple(self.raised),
            runs=self.life.run,
            hits=self.hits,
        )


WALK_IN: Final = "Walk-in"


def _walk_in(world: World) -> None:
    """A colleague makes a contact, and a task and a note that say what ours say."""
    person = world.add("contact", {"name": WALK_IN, "phones": []})
    for kind, text in (("task", "Call back"), ("note", "ok")):
        world.add(kind, {"text": text, "target_kind": "contact", "target_id": person})


def _walked_in(world: World, table: str) -> int:
    theirs = [row["id"] for row in world.select("contact", where={"name": WALK_IN})]
    return (
        len(theirs)
        if table == "contact"
        else 0
        if table in ("company", "deal")
        else world.count(table, {"target_kind": "contact", "target_id": theirs})
    )


def _taken(ledger: Ledger, world: World) -> Iterator[str]:
    theirs = {row["id"] for row in world.select("contact", where={"name": WALK_IN})}
    for kind, table in (("contacts", "contact"), ("tasks", "task"), ("notes", "note")):
        for source, target in ledger.pairs(kind):
            row = world.get(table, target) if isinstance(target, int) else None
            if row is not None and (row["id"] in theirs or row.get("target_id") in theirs):
                yield f"{kind} {source} took a colleague's row {target} for its own"


def _equal(verdict: Any, foreign: bool) -> bool:
    from crmclient.migration.verify import Sign

    return verdict.equal if not foreign else not any(verdict.number(sign) for sign in (Sign.DIFFERS, Sign.MISSING))


# -------------------------------------------------------------------------------------------------------------- score

_TOLD: Final[Mapping[str, tuple[str, ...]]] = {
    "company": ("name",),
    "contact": ("name", "phones", "emails"),
    "deal": ("name", "price"),
    "task": ("text", "done", "result"),
    "note": ("kind", "text"),
    "field": ("entity", "name", "type"),
    "pipeline": ("name",),
    "stage": ("name",),
}


@frozen
class Seen:
    """A world without its ids: what its rows say, and what they say with all that they are tied to."""

    rows: Mapping[tuple[str, int], Any]
    said: Counter[Any]
    tied: Counter[Any]
    late_parents: int
    """Rows that are older than what they hang on."""

    @classmethod
    def of(cls, world: World) -> "Seen":
        rows = {(kind, row["id"]): row for kind in _TOLD for row in world.select(kind)}
        theirs = {key for key, row in rows.items() if row["name" if "name" in row else "text"] == WALK_IN}
        theirs |= {key for key, row in rows.items() if (row.get("target_kind"), row.get("target_id")) in theirs}
        rows = {key: row for key, row in rows.items() if key not in theirs}
        ties = [(way, key, there) for key, row in rows.items() for way, there in _ties(key[0], row)]
        colour = {key: hash((key[0], *(repr(row[name]) for name in _TOLD[key[0]]))) for key, row in rows.items()}
        said = Counter((key[0], *(repr(row[name]) for name in _TOLD[key[0]])) for key, row in rows.items())
        for _ in range(3):
            around: dict[Any, list[tuple[str, Any]]] = defaultdict(list)
            for way, one, other in ties:
                around[one].append((way, colour.get(other)))
                around[other].append((f"of {way}", colour[one]))
            colour = {key: hash((mine, *sorted(around[key], key=repr))) for key, mine in colour.items()}
        tied = Counter((key[0], colour[key]) for key in rows)
        late = sum(one[1] < other[1] for way, one, other in ties if way != "stage")
        return cls(rows, said, tied, late)


def _ties(kind: str, row: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, int]]]:
    if row.get("company_id"):
        yield "company", ("company", row["company_id"])
    for link in row.get("contacts", ()):
        yield f"contact {link['main']}", ("contact", link["id"])
    if row.get("target_id"):
        yield "target", (row["target_kind"], row["target_id"])


def _as_in_the_source(stage: Stage) -> None:
    """What every case is held against is held against the source: each row that has a place there, once, and no other."""
    for kind in made_kinds(stage):
        before, mine, theirs = (
            Counter(_gist(kind, row) for (at, _), row in seen.rows.items() if at == kind)
            for seen in (Seen.of(stage.empty), Seen.of(stage.full), stage.expected)
        )
        if kind == "note":  # a vendor may keep what came of a task as a note on it
            theirs -= Counter((task["result"],) for task in stage.full.select("task") if task["result"])
        assert before + mine == theirs, f"{stage.origin} to {stage.goal}: {kind} {mine} became {theirs}"


def made_kinds(stage: Stage) -> list[str]:
    """The kinds of rows that both of them have, by the names that worlds have for them."""
    both = [entity for entity in MOVED.values() if dialect(stage.goal).can(entity, Verb.CREATE)]
    return [str(entity.KIND) for entity in both if dialect(stage.origin).can(entity, Verb.LIST)]


def _gist(kind: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    told = {"contact": ("name",), "company": ("name",), "deal": ("name", "price"), "task": ("done",), "note": ("text",)}
    return tuple(str(row[name]) for name in told[kind])


@frozen(kw_only=True)
class Score:
    """What a case has come to. It is right when nothing is wrong."""

    stage: Stage
    seen: Seen
    ended: bool
    sentence: str
    equal: bool
    violations: tuple[str, ...]
    unsettled: tuple[str, ...]
    raised: tuple[str, ...]
    """The errors that runs ended with; how many runs there were, and how many points something happened at."""
    runs: int
    hits: int

    @property
    def duplicates(self) -> int:
        return (self.seen.said - self.stage.expected.said).total()

    @property
    def lost(self) -> int:
        return (self.stage.expected.said - self.seen.said).total()

    @property
    def links(self) -> int:
        """Rows that are there once and tied otherwise."""
        return 0 if self.duplicates or self.lost else (self.stage.expected.tied - self.seen.tied).total()

    @property
    def wrong(self) -> list[str]:
        """Everything that is not as it should be, in words; ``raised`` apart, which a case may be made for."""
        found = [
            f"{number} {what}"
            for number, what in (
                (self.duplicates if self.stage.expected.rows else 0, f"too many: {self._more(self.seen)}"),
                (self.lost, f"lost: {self._more(self.stage.expected, self.seen)}"),
                (self.links if self.stage.expected.rows else 0, "tied otherwise"),
                (self.seen.late_parents, "made before what they hang on"),
            )
            if number
        ]
        if not self.ended:
            found.append("it did not end")
        elif not self.equal:
            found.append(self.sentence)
        return [*found, *self.violations, *self.unsettled]

    def _more(self, one: Seen, other: Seen | None = None) -> str:
        more = one.said - (other or self.stage.expected).said
        return ", ".join(" ".join(map(str, each)) for each in more)[:300]


# ------------------------------------------------------------------------------------------------------------ by hand


async def _by_hand(origin: str, goal: str, *words: str) -> None:
    hits: dict[Point, str] = {}
    more: dict[str, Any] = {"told": print}
    for word in words:
        if "=" in word:
            name, _, value = word.partition("=")
            more[name] = float(value) if "." in value else int(value)
            continue
        run, where, number, act = word.split()
        hits[Point(int(run), where, int(number))] = act
    silenced()
    stage = await stage_of(origin, goal)
    if not hits:
        for where, passed in stage.points.items():
            for number, what in enumerate(passed, 1):
                print(where, number, what)
    score = await trial(stage, just(hits), Way(**more))
    print("wrong:", *(score.wrong or ["nothing"]), *score.raised, sep="\n  ")


def silenced() -> None:
    """The loop does not complain of what the dead leave: tasks that nobody waits for, ended by their own death."""
    loop = asyncio.get_running_loop()
    usual = loop.default_exception_handler
    loop.set_exception_handler(
        lambda _, context: None if isinstance(context.get("exception"), SimulatedCrash) else usual(context)
    )


if __name__ == "__main__":
    asyncio.run(_by_hand(*sys.argv[1:]))
