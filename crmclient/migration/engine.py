"""Moves one account into another: every row once, killed and resumed wherever it may be, at the pace both sides allow.

What has been done is in the ledger; whoever runs it again goes on from there. A create is written down before it is
sent, sent once, and never sent again while anybody might still be working on it (``reconcile``). It names no vendor: what
can be done, and how, is read off the two dialects.
"""

import asyncio
import json
from collections import Counter, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Hashable, Iterable, Mapping, Sequence, Set
from contextlib import aclosing
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, TypeVar
from uuid import uuid4

from attrs import define, evolve, field, frozen

from crmclient import flows
from crmclient.client import Client, Together
from crmclient.clock import SYSTEM_CLOCK, Clock
from crmclient.dialect import (
    START,
    Flow,
    Made,
    Need,
    NotApplied,
    Receipt,
    Refused,
    Row,
    Unknown,
    Verb,
    Writing,
    mapping,
)
from crmclient.entities import Company, Contact, FieldType, Id, Kind, Ref, Task, is_empty
from crmclient.errors import (
    AmbiguousWrite,
    Banned,
    CRMError,
    IncompleteRead,
    Invalid,
    Misconfigured,
    NotFound,
    PartlyDone,
    RateLimited,
    Rejected,
    TransportError,
    Unavailable,
    Unreadable,
    Unsupported,
)
from crmclient.migration.ledger import Batch, Fresh, Item, Ledger, Run, Settled, State, digest
from crmclient.migration.matching import (
    KINDS,
    MARKER,
    MOVED,
    company_key,
    kind_at,
    kind_of,
    mark,
    match_fields,
    named_company,
)
from crmclient.migration.plan import Plan, Told, silent, to_toml, vocabulary
from crmclient.migration.reconcile import Found, Prints, completed, newest, seek
from crmclient.migration.seen import Seen
from crmclient.migration.translation import FieldThere, Translated, Translation, Words, folded, marked, same
from crmclient.migration.verify import Comparison, Finding, Sign, Verdict, check, compared, content, own, side_by_side
from crmclient.serial import cursor_from_tree, cursor_to_tree
from crmclient.vocabulary import Field

T = TypeVar("T")

# What passes by itself, so that trying again later helps.
_PASSING: Final = (TransportError, Unavailable, RateLimited, Unreadable)
# What is wrong with a row, or with one of its request: it is told, and the others go on.
_OF_THE_ROW: Final = (Rejected, NotFound, Invalid, Unsupported, IncompleteRead, PartlyDone)
# So many failures in a row without one success are no accident any more.
_TRIES: Final = 6
# A row that has vanished so often, the last times alone and while others arrived, is not sent a further time.
_VANISHING: Final = 3
# What follows a row that was made: a move may have been killed before it.
_FOLLOWING: Final = frozenset({"done", "result", "company", "contacts"})
# A server that is told one of them makes up the others, or empties them.
_NAMES: Final = frozenset({"name", "first_name", "last_name"})
# How a run stands that has not died.
_STOPPED: Final = "stopped"
_ENDED: Final = "ended"
# So many rows of a page are noted together.
_PORTION: Final = 40
# After so many rows that are made ready others have their turn.
_TURN: Final = 10
# So many rows are looked at again together.
_LOOKED_AT: Final = 100
# What is said of a row that the ledger knows from the target alone.
ADOPTED: Final = "adopted"
_WITHOUT: Final = "it goes without "
# A row is read at most so often again because something was changed meanwhile.
_ROUNDS: Final = 3


@frozen(kw_only=True)
class Event:
    """How a move stands. ``phase`` is ``words``, ``moving``, ``verifying`` or ``ended``; ``read`` and ``counts`` are by
    kind; ``requests`` are those that this run has spent on the source and the target; ``said`` is worth a line.
    ``waits_for`` is what nobody can know before ``until``: ``40 rows in doubt``, say.
    """

    phase: str
    read: Mapping[str, int]
    counts: Mapping[str, Mapping[State, int]]
    requests: tuple[int, int]
    said: str | None = None
    waits_for: str | None = None
    until: datetime | None = None


@frozen(eq=False)
class _Quarantine:
    """So many rows, or whatever it is, are in doubt until then."""

    number: int
    what: str
    until: datetime


@frozen
class _Ready:
    """A row of the source that can be sent now, and as it is sent. ``without`` says what it is tied to and goes without."""

    source: Id
    row: Any
    there: Translated
    sent: Any
    print: Hashable
    without: str | None = None


@define
class _Waiting:
    """A row of the source that is not dealt with, and as it is sent once all that it hangs on is there."""

    row: Any
    ready: _Ready | None = None


@define
class _Front:
    """The next rows of a kind that are not dealt with, as many as a few requests hold."""

    rows: dict[Id, _Waiting] = field(factory=dict[Id, _Waiting])
    after: int = 0
    whole: bool = False
    """Nothing that has been read lies beyond."""


class Migration:
    """A move of ``source`` into ``target`` by a plan, written down in a ledger::

        with Ledger("acme.ledger") as ledger:
            migration = Migration(source, target, plan, ledger)
            async for event in migration:
                print(event.phase, event.counts)
            print(migration.verdict.sentence)

    Make another, with the same plan and ledger, after whatever stopped it, and it goes on; after ``ledger.retry()`` it
    tries once more what was refused. ``stop()`` lets what is in flight end, and so does leaving the loop early, once its
    iterator is closed (``contextlib.aclosing``).
    ``lanes`` is how many requests are under way on the target at once. Iterating raises Misconfigured, before anything is
    sent, for what ``prepare`` finds; LedgerFailed; and what the CRMs raise when it is no use to go on.
    """

    def __init__(
        self,
        source: Client,
        target: Client,
        plan: Plan,
        ledger: Ledger,
        *,
        clock: Clock = SYSTEM_CLOCK,
        lanes: int = 8,
    ) -> None:
        self.source, self.target, self.plan, self.ledger, self.clock = source, target, plan, ledger, clock
        self.ended = False
        self.verdict: Verdict | None = None
        self._lanes = lanes
        self._stopping = False
        self._begun = self._prepared = False
        self._failure: BaseException | None = None
        self._events: deque[Event] = deque(maxlen=1000)
        self._news = asyncio.Event()
        self._changed = asyncio.Event()
        self._preparing = asyncio.Lock()
        self._phase = "words"
        self._read: Counter[str] = Counter()
        self._counts: dict[str, Counter[State]] = {}
        self._base = source.spent.requests, target.spent.requests
        self._translate = Translation(source.dialect, target.dialect, plan.words(), ledger)
        self._marks: dict[Kind, FieldThere] = {}
        self._fronts: dict[str, _Front] = {}
        self._prints: dict[str, Prints] = {}
        self._watermarks: dict[str, int] = {}
        self._open: dict[str, Counter[Hashable]] = {}
        self._again: deque[tuple[str, tuple[Id, ...]]] = deque()
        self._unfinished: dict[str, deque[tuple[Id, Id]]] = {}
        self._found: dict[str, deque[tuple[Id, Id]]] = {}
        self._coming: frozenset[type[Any]] = frozenset()
        self._busy = 0
        self._doubts = 0
        self._quarantined: list[_Quarantine] = []
        self._failures: Counter[str] = Counter()
        self._failed_at: dict[str, float] = {}
        self._arrived: dict[str, float] = {}
        self._tried: dict[tuple[str, Id], float] = {}
        self._group: asyncio.TaskGroup | None = None
        self._altered: dict[tuple[str, Id], Any] = {}
        self._new: list[Fresh] = []
        self._coming_late: set[tuple[str, Id]] = set()
        self._early: Comparison | None = None
        self._looked = False
        self._sent = 0
        self._reopened, self._last_look = 0, False
        self._asking = False
        self._died = self._unsure = False
        self._me_told = asyncio.Event()

    # -------------------------------------------------------------------------------------------------------- driving

    async def __aiter__(self) -> AsyncGenerator[Event]:
        if self._begun:
            raise Misconfigured("a Migration runs once: make another with the same plan and ledger to go on")
        self._begun = True
        task = asyncio.create_task(self._run())
        task.add_done_callback(lambda _: self._news.set())
        try:
            while True:
                while self._events:
                    yield self._events.popleft()
                if task.done():
                    break
                self._news.clear()
                if not self._events:
                    await self._news.wait()
            await task
        finally:
            if not task.done():
                # Whoever looks away stops it, as stop() does: what is in flight ends.
                self.stop()
                try:
                    await asyncio.wait([task])
                finally:
                    # Whoever asks a second time wants it at once.
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)

    def stop(self) -> None:
        """Send nothing new, and end once what is in flight has ended. Running again goes on."""
        self._stopping = True
        self._wake()

    async def _run(self) -> None:
        try:
            await self.prepare()
            await self._know_the_words()
            if self._stopping:
                # Which fields hold what is not known, so that nothing can be looked for; what the dead sent may still land.
                self._unsure = self._died
            else:
                self._tell("moving")
                await self._move()
            if not self._stopping:
                await self._verify()
            if self._stopping:
                self.ledger.note_state("stopped, unsure" if self._unsure else _STOPPED)
        except CRMError as error:
            if self._prepared and not isinstance(error, Misconfigured):
                self._note_failure(error)
            raise
        finally:
            if self._early is not None:
                self._early.seen.db.close()

    def _note_failure(self, error: CRMError) -> None:
        try:
            self.ledger.note_state(f"stopped: {type(error).__name__}: {error.message}")
        except CRMError:
            return  # a ledger that cannot be written says nothing new, and the error is raised anyway

    def _tell(self, phase: str | None = None, said: str | None = None) -> None:
        self._phase = phase or self._phase
        spent = self.source.spent.requests - self._base[0], self.target.spent.requests - self._base[1]
        counts = {kind: Counter(each) for kind, each in self._counts.items()}
        waits = max(self._quarantined, key=lambda each: each.until, default=None)
        doubtful = sum(each.number for each in self._quarantined)
        self._events.append(
            Event(
                phase=self._phase,
                read=dict(self._read),
                counts=counts,
                requests=spent,
                said=said,
                waits_for=f"{doubtful} {waits.what} in doubt" if waits is not None else None,
                until=waits.until if waits is not None else None,
            )
        )
        self._news.set()

    def _wake(self) -> None:
        self._changed.set()

    # ------------------------------------------------------------------------------------------------------ preparing

    async def prepare(self) -> None:
        """See that this plan may be carried out now, by this ledger. Nothing is written to either account.

        Raises Misconfigured, which says what is wrong and what to do about it.
        """
        if self._prepared:
            return
        plan, ledger = self.plan, self.ledger
        wrong = plan.of_others(self.source, self.target)
        if wrong:
            raise Misconfigured("; ".join(wrong))
        begun = ledger.run()
        if begun is not None and (begun.source, begun.target) != (plan.source.address, plan.target.address):
            raise Misconfigured(
                f"{ledger.path} is the ledger of another move, from {begun.source} to {begun.target}: "
                "give each move a ledger of its own"
            )
        if outdated := plan.outdated(self.source, self.target):
            raise Misconfigured(f"{'; '.join(outdated)}: make a new plan, and look at its losses again")
        if begun is not None and begun.plan_hash != plan.digest:
            raise Misconfigured(
                f"the plan was edited since the move of {ledger.path} began at {begun.started_at:%Y-%m-%d %H:%M}: what is "
                "moved already went by the old one. Go on with that (it is in the ledger: `crmclient report`), or begin "
                "anew with another ledger and an empty target"
            )
        if begun is None and ledger.counts():
            raise Misconfigured(
                f"{ledger.path} was being adopted and is not whole: remove it, and adopt into a new one"
            )
        if begun is None:
            rows = await self._there()
            if hindrances := plan.hindrances(rows):
                raise Misconfigured("; ".join(hindrances))
            for kind, number in rows.items():
                if number:
                    await self._know_the_newest(kind)
            ledger.begin(_run_of(plan, self.clock))
        else:
            # Whoever stopped knows that nothing of it is under way; whoever died knows nothing.
            self._died = begun.state not in (_STOPPED, _ENDED)
            ledger.note_state("running")
        self._counts = ledger.counts()
        self._prepared = True

    async def _there(self) -> dict[str, int]:
        """How many rows the first page of each kind shows in the target; of what shows only on cards, none."""
        spoken = self.target.dialect
        listed = {kind: each for kind, each in MOVED.items() if self.target.can(each, Verb.LIST)}
        kinds = {kind: each for kind, each in listed.items() if not flows.only_on_cards(spoken, each)}
        # Side by side: far away, one after the other is less than the limit allows.
        return dict(zip(kinds, await asyncio.gather(*map(self._first_rows, kinds.values())), strict=True))

    async def _first_rows(self, entity: type[Any]) -> int:
        async with aclosing(self.target.of(entity).pages(prefetch=1)) as pages:
            async for page in pages:
                if page.items:
                    return len(page.items)
        return 0

    async def _know_the_newest(self, kind: str) -> None:
        """The largest id of a kind before anything of ours is there."""
        found = await self.target.run(newest(self.target.dialect, MOVED[kind]))
        self.ledger.learn("watermark", kind, found, "the largest id before anything was moved")

    # ------------------------------------------------------------------------------------------------------- the words

    async def _know_the_words(self) -> None:
        """The custom fields that have to be there: for origins, and for what the plan keeps in fields of its own."""
        self._tell("words")
        wanted = {("field", what): each for what, each in self.plan.fields_to_make()}
        if self.plan.marker == "field":
            for entity in MOVED.values():
                resource = self.target.dialect.resources.get(entity)
                if resource is not None and "fields" in resource.survivors(Verb.CREATE) & resource.survivors(Verb.LIST):
                    marker = Field(entity=entity.KIND, name=MARKER, code=MARKER, type=FieldType.TEXT)
                    wanted["marker", str(entity.KIND)] = marker
        there = await self._fields(wanted)
        if self._stopping:
            return
        self._marks = {Kind(what): each for (how, what), each in there.items() if how == "marker"}
        words, me = self._translate.words, self.ledger.mapped("me", "me")
        made = {what: each for (how, what), each in there.items() if how == "field"}
        self._translate.words = evolve(words, made_fields=made) if made else words
        if words.me is None and me is not None:
            self._translate.words = self._with_me(Ref(Kind.USER, me))
        for kind, entity in MOVED.items():
            if self.target.can(entity, Verb.CREATE):
                self._prints[kind] = Prints(self.target.dialect, entity, self._is_marked(kind))

    def _is_marked(self, kind: str) -> bool:
        if self.plan.marker == "field":
            return MOVED[kind].KIND in self._marks
        resource = self.target.dialect.resource(MOVED[kind])
        both = resource.survivors(Verb.CREATE) & resource.survivors(Verb.LIST)
        return self.plan.marker == "tag" and "tags" in both

    async def _fields(self, wanted: Mapping[tuple[str, str], Field]) -> dict[tuple[str, str], FieldThere]:
        """Custom fields of the target by their codes or names; those that are not there are made, once."""
        lacking, waited = dict(wanted), False
        for _ in range(_TRIES):
            known: Sequence[Field] = await vocabulary(self.target, Field) if wanted else ()
            found = {key: [*match_fields([want], known).values()] for key, want in wanted.items()}
            there = {key: alike[0] for key, alike in found.items() if alike}
            for how, what in lacking.keys() & there.keys():
                self.ledger.learn(how, what, there[how, what].id, "the field of this name")
            lacking = {key: each for key, each in wanted.items() if key not in there}
            if not lacking:
                return {key: FieldThere(each.id, each.code, each.name, each.type) for key, each in there.items()}
            asked = any(self.ledger.mapped(f"making {how}", what) is not None for how, what in lacking)
            if asked and not waited:
                # It may have been asked for before we died, and may still land.
                await self._quarantine(len(lacking), "custom fields", self.plan.quarantine)
                if self._stopping:
                    return {}
                waited = True
                self.target.forget()
                continue
            for how, what in lacking:
                self.ledger.learn(f"making {how}", what, 1, "asked for")
            receipts = await self.target.fields.create_many(lacking.values())
            for receipt in receipts:
                if isinstance(receipt, Refused):
                    raise receipt.error
            await self._heed("fields", receipts, self.clock.monotonic())
            # What may have been made is waited for, even where a list lags behind.
            waited = all(isinstance(each, NotApplied) for each in receipts)
        named = ", ".join(str(each.name) for each in lacking.values())
        raise Misconfigured(f"{self.target.dialect.title} does not show the custom fields that were made: {named}")

    def _with_me(self, me: Ref) -> Words:
        words = self._translate.words
        return evolve(words, me=me, nobody=me if self.plan.unmatched == "me" else words.nobody)

    async def _know_me(self) -> None:
        """Who the target takes us for, where it does not tell: whom it gave a row for which nobody was named."""
        for kind in KINDS:
            entity = MOVED[kind]
            resource = self.target.dialect.resources.get(entity)
            if resource is None or "owner" not in resource.survivors(Verb.LIST) or not self.ledger.watermark(kind):
                continue
            async with aclosing(self.target.of(entity).pages(prefetch=1)) as pages:
                async for page in pages:
                    for row in page:
                        ours = row.id is not None and self.ledger.owned(kind, row.id)
                        if ours and row.owner is not None and row.owner not in self._translate.words.users.values():
                            self.ledger.learn("me", "me", row.owner.id, "given to our rows")
                            self._translate.words = self._with_me(row.owner)
                            return

    # -------------------------------------------------------------------------------------------------------- moving

    async def _move(self) -> None:
        """Read, and write what has been read, until all of it is dealt with."""
        self._fronts = {kind: _Front() for kind in KINDS if kind in self._prints}
        self._open = {kind: Counter() for kind in self._fronts}
        self._unfinished = {kind: deque() for kind in self._fronts}
        self._found = {kind: deque() for kind in self._fronts}
        self._watermarks = {kind: self.ledger.watermark(kind) for kind in self._fronts}
        self._busy = self._doubts = 0
        self._failure = None
        made: dict[str, list[tuple[Id, Id]]] = {}
        for item in self.ledger.items(State.MADE):
            if item.target is not None:
                made.setdefault(item.kind, []).append((item.source, item.target))
        lost = self.ledger.open_batches()
        if lost:
            rows = sum(len(batch.sources) for batch in lost)
            self._tell(said=f"{rows} rows may or may not have been made before this run: looking for them")
        # Known before anybody asks whether more is to come.
        walk = self._walk([])
        text, ended = self.ledger.position()
        start = START if text is None else cursor_from_tree(json.loads(text))
        self._coming = frozenset() if ended else self._derived(walk.coming(start))
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                for batch in lost:
                    self._doubt(batch)
                for kind, rows in made.items():
                    # What follows them may have been sent before we died, and may still land.
                    self._later(partial(self._look_after_a_while, kind, rows, unsure=self._died))
                group.create_task(self._guarded(self._read_source))
                for _ in range(self._lanes):
                    group.create_task(self._lane())
        except BaseExceptionGroup as several:
            raise _first_of(several) from several
        finally:
            self._group = None
        if self._failure is not None:
            raise self._failure

    async def _guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        """Whatever cannot go on stops everything else where it is safe to stop."""
        try:
            await work()
        except CRMError as error:
            self._fail(error)
        finally:
            self._wake()

    def _fail(self, error: CRMError) -> None:
        if self._failure is None:
            self._failure = error
        self._wake()

    @property
    def _halted(self) -> bool:
        return self._stopping or self._failure is not None

    async def _lane(self) -> None:
        while (work := await self._next()) is not None:
            await self._guarded(work)
            self._busy -= 1
            self._wake()
            await self.clock.sleep(0)

    async def _next(self) -> Callable[[], Awaitable[None]] | None:
        while not self._halted:
            async with self._preparing:
                await self._prepare()
                if self._halted:
                    return None
                self._changed.clear()
                work = self._choose()
            self._look_ahead()
            if work is not None:
                self._busy += 1
                return work
            if not self._busy and not self._doubts and not self._coming and self._exhausted():
                self._wake()
                return None
            if not self._changed.is_set():
                await self._changed.wait()
        return None

    def _exhausted(self) -> bool:
        if self._again or any(self._found.values()) or any(self._unfinished.values()):
            return False
        return all(front.whole and not front.rows for front in self._fronts.values())

    # ------------------------------------------------------------------------------------------------------- reading

    def _walk(self, unreadable: list[Fresh], *, patient: bool = True) -> Together:
        def bad(entity: type[Any], wrong: Unreadable) -> None:
            if wrong.passing and patient:  # a maintenance page in place of a card says nothing of the card
                raise wrong
            id, kind = mapping(wrong.raw).get("id"), kind_of(entity)
            self._read["unreadable"] += 1
            source: Id = id if isinstance(id, int | str) else f"unreadable {self._read['unreadable']}"
            told = Fresh(kind=kind, source=source, row=None, state=State.REJECTED, error=f"it cannot be read: {wrong}")
            unreadable.append(told)

        kinds = [kind for kind, entity in MOVED.items() if self.source.can(entity, Verb.LIST)]
        return self.source.together(*(MOVED[kind] for kind in kinds), on_bad=bad)

    async def _read_source(self) -> None:
        """What fails in passing goes on a little later from the last page that was noted."""
        failures = 0
        while True:
            before = self.ledger.position()
            try:
                # What is no card so often never will be one: it is told, and the others go on.
                await self._read_on(patient=failures < _TRIES - 1)
                return
            except _PASSING as error:
                failures = failures + 1 if self.ledger.position() == before else 1
                if failures >= _TRIES or self._halted:
                    raise
                self._tell(said=f"the source: {error.message}: going on in {2**failures} s")
                await self._pause(float(2**failures))
                if self._halted:
                    return

    async def _read_on(self, *, patient: bool) -> None:
        text, ended = self.ledger.position()
        if ended:
            return
        unreadable: list[Fresh] = []
        walk = self._walk(unreadable, patient=patient)
        async with aclosing(walk.pages(START if text is None else cursor_from_tree(json.loads(text)))) as pages:
            async for page in pages:
                fresh: list[Fresh] = []
                for number, row in enumerate(page, 1):
                    fresh += self._fresh(row)
                    if number % _PORTION == 0 and number < len(page.items):
                        # A page is noted in portions, so that what is paced has its turns; where it ends is noted last.
                        self._note(fresh, cursor=json.dumps(cursor_to_tree(page.cursor)))
                        fresh = []
                        self._wake()
                        await self.clock.sleep(0)
                following = None if page.next is None else json.dumps(cursor_to_tree(page.next))
                self._note([*fresh, *unreadable], cursor=following, ended=page.next is None)
                unreadable.clear()
                self._coming = self._derived(walk.coming(page.next))
                self._tell()
                self._wake()
                if self._halted:
                    return

    def _derived(self, coming: frozenset[type[Any]]) -> frozenset[type[Any]]:
        """Companies that are but words come with the contacts, and what is folded into notes with whatever it is of."""
        more: set[type[Any]] = set()
        if Contact in coming and Company not in self.source.dialect.resources:
            more.add(Company)
        if coming and self._folds:
            more.add(MOVED["notes"])
        return coming | more

    @property
    def _folds(self) -> bool:
        return any(loss.choice == "fold" for loss in self.plan.losses)

    def _fresh(self, row: Any) -> Iterable[Fresh]:
        """A row as it comes to the ledger, after what comes with it and before what follows it."""
        kind, source = kind_of(row), row.id
        self._read[kind] += 1
        company = row.company if isinstance(row, Contact) else None
        above = company_key(company)
        if above is not None and Company not in self.source.dialect.resources and "companies" in self._prints:
            name = named_company(company)
            yield Fresh(kind="companies", source=above, row=Company(id=above, name=name), name=name)
        named = getattr(row, "name", None) if kind == "companies" else None
        if kind not in self._prints:
            words = "company" in self.target.dialect.resource(Contact).survivors(Verb.CREATE)
            state = State.FOLDED if kind == "companies" and words else State.SKIPPED
            why = "it stays as words on its contacts" if state is State.FOLDED else "no such rows there"
            kept = self._translate.kept_whole(kind, row)
            yield Fresh(kind=kind, source=source, row=row, state=state, name=named, error=why, kept=kept)
            return
        yield Fresh(kind=kind, source=source, row=row, above=above, name=named)
        for note in self._translate.besides(row):
            yield Fresh(kind="notes", source=note.id or 0, row=note)

    def _note(self, fresh: Sequence[Fresh], *, cursor: str | None = None, ended: bool = False) -> None:
        for each in self.ledger.ingest(fresh, cursor=cursor, ended=ended):
            self._counts.setdefault(each.kind, Counter())[each.state] += 1
            if each.kind in self._fronts:
                self._fronts[each.kind].whole = False

    # ------------------------------------------------------------------------------------------------------- choosing

    async def _prepare(self) -> None:
        """Make ready what goes next, a few rows at a time: a request's rows at once would keep from its turn what is due."""
        for kind in self._fronts:
            waiting = self._fill(kind).rows
            number = sum(each.ready is not None for each in waiting.values())
            for source, each in [*waiting.items()]:
                if number >= self._size(kind):
                    return
                if each.ready is None:
                    ready = self._ready(kind, source, each.row)
                    if ready is None:
                        break  # what it hangs on is not there, and those after it came later
                    if isinstance(ready, _Ready):
                        each.ready = ready
                        number += 1
                    if number % _TURN == 0:
                        await self.clock.sleep(0)

    def _choose(self) -> Callable[[], Awaitable[None]] | None:
        """What to do next: whatever is due of earlier kinds first, as many rows at once as a request takes."""
        for kind, rows in self._found.items():
            if rows:
                return partial(self._look_after, kind, [rows.popleft() for _ in range(min(_LOOKED_AT, len(rows)))])
        while self._again:
            kind, sources = self._again.popleft()
            ready = self._all_ready(kind, sources)
            if ready is None:
                self._again.append((kind, sources))
                break
            if ready:
                return self._sending(kind, ready)
        left: list[tuple[str, list[_Ready]]] = []
        for kind in self._fronts:
            ready, rest = self._first_of(kind)
            if ready:
                return self._sending(kind, ready)
            if rest:
                left.append((kind, rest))
            finishing = self._finishing(kind, over=not rest)
            if finishing is not None:
                return finishing
        if not self._busy and not self._coming and left:
            # Nothing else will make them more.
            kind, ready = left[0]
            return self._sending(kind, ready)
        if not self._busy and not self._coming and not self._again:
            for kind, rows in self._unfinished.items():
                if rows:
                    return self._finishing(kind, over=True, due=True)
        return None

    def _size(self, kind: str) -> int:
        return self.plan.target_cost.batches.get(kind) or flows.batch_of(self.target.dialect, MOVED[kind])

    def _fill(self, kind: str) -> _Front:
        front, wanted = self._fronts[kind], max(2 * self._size(kind), 100)
        while len(front.rows) < wanted and not front.whole:
            found = self.ledger.waiting(kind, front.after, wanted)
            front.whole = not found
            for place, source, row in found:
                front.after = place
                item = self.ledger.item(kind, source)
                if item is not None and item.state is State.PENDING:
                    front.rows[source] = _Waiting(row)
        return front

    def _first_of(self, kind: str) -> tuple[list[_Ready], list[_Ready]]:
        """Rows for a full request; or none, and those that would make the last one, where no more will come."""
        front, size, groups = self._fill(kind), self._size(kind), dict[Hashable, list[_Ready]]()
        blocked, settled = False, dict[Id, Settled]()
        for source, waiting in front.rows.items():
            ready = waiting.ready or self._ready(kind, source, waiting.row)
            if isinstance(ready, Settled):
                settled[source] = ready
                continue
            waiting.ready = ready
            if ready is None or not self._free(kind, ready):
                blocked = True
                continue
            group = groups.setdefault(self._group_of(kind, ready.sent), [])
            group.append(ready)
            if len(group) == size:
                self._become(kind, settled)
                return group, []
        self._become(kind, settled)
        best: list[_Ready] = max(groups.values(), key=len, default=list[_Ready]())
        last = front.whole and MOVED[kind] not in self._coming and not blocked
        return (best, []) if last and best and not self._more(kind) else ([], best)

    def _more(self, kind: str) -> bool:
        """Whether rows of a kind are elsewhere that may yet go into its last request."""
        return any(kind == other for other, _ in self._again)

    def _group_of(self, kind: str, row: Any) -> Hashable:
        route = self.target.dialect.route(MOVED[kind], Verb.CREATE)
        if not isinstance(route, Writing) or route.group_by is None:
            return None
        return route.group_by(Row(number=0, wire={}, entity=row, target=getattr(row, "target", None)))

    def _all_ready(self, kind: str, sources: Sequence[Id]) -> list[_Ready] | None:
        """Rows that go together, or None while one of them has to wait."""
        found: list[_Ready] = []
        for source in sources:
            row = self.ledger.row(kind, source)
            item = self.ledger.item(kind, source)
            if row is None or item is None or item.state is not State.PENDING:
                continue
            ready = self._ready(kind, source, row)
            if ready is None:
                return None
            if isinstance(ready, Settled):
                self._become(kind, {source: ready})
            elif not self._free(kind, ready):
                return None
            else:
                found.append(ready)
        return found

    def _free(self, kind: str, ready: _Ready) -> bool:
        """Rows that cannot be told apart are never under way at once: else one is taken for the other."""
        return not self._open[kind][ready.print]

    def _ready(self, kind: str, source: Id, row: Any) -> _Ready | Settled | None:
        """A row as it is sent; why it never will be; or None while it has to wait."""
        lacks = False
        for at, id, hard in _hangs_on(row):
            item = self.ledger.item(at, id)
            if item is None:
                if MOVED[at] in self._coming:
                    return None
                continue  # nobody has seen it
            if item.state is State.DOUBT and item.target is None and hard:
                return Settled(state=State.REJECTED, error=f"its {MOVED[at].KIND} {id} is in doubt")
            if item.state is State.REJECTED and hard:
                return Settled(state=State.REJECTED, error=_hung_on(at, id))
            if item.state in (State.PENDING, State.INTENT):
                return None
            lacks = lacks or _did_not_arrive(item)
        there = self._translate(row)
        if there.left_out is not None:
            return Settled(state=State.SKIPPED, error=there.left_out, kept=there.archived)
        if "owner" in there.lacks and not self._me_told.is_set():
            self._ask_me()
            return None
        sent = self._as_sent(kind, source, row, there)
        return _Ready(source, row, there, sent, self._prints[kind].of(sent), self._without(row) if lacks else None)

    def _without(self, row: Any) -> str | None:
        """What a row is tied to and goes without, in words."""
        above = ((at, id, self.ledger.item(at, id)) for at, id, hard in _hangs_on(row) if not hard)
        lost = [f"{MOVED[at].KIND} {id}" for at, id, item in above if item is not None and _did_not_arrive(item)]
        return f"{_WITHOUT}{', '.join(lost)}, which did not arrive" if lost else None

    def _ask_me(self) -> None:
        """Whoever needs an owner waits until we know who we are, or that nobody tells."""
        if self._asking:
            return
        self._asking = True

        async def ask() -> None:
            await self._know_me()
            self._me_told.set()

        self._later(ask)

    def _as_sent(self, kind: str, source: Id, row: Any, there: Translated) -> Any:
        sent = there.row
        if self.ledger.mapped(f"text {kind}", source) is not None:
            sent = folded(sent) or sent
        if not self._is_marked(kind):
            return sent
        origin = mark(self.plan.source.origin, row.KIND, source)
        return marked(sent, origin, self.plan.marker, self._marks.get(row.KIND))

    def _sending(self, kind: str, ready: list[_Ready]) -> Callable[[], Awaitable[None]]:
        for each in ready:
            self._fronts[kind].rows.pop(each.source, None)
            self._open[kind][each.print] += 1
        return partial(self._send, kind, ready)

    def _finishing(self, kind: str, *, over: bool, due: bool = False) -> Callable[[], Awaitable[None]] | None:
        """Rows that were made and are to be finished, once there are enough of them or no more will be made."""
        rows, most = self._unfinished[kind], self._finished_at_once(kind)
        if not rows:
            return None
        front = self._fronts[kind]
        last = over and front.whole and not front.rows and MOVED[kind] not in self._coming and not self._open[kind]
        if len(rows) < most and not last and not due:
            return None
        return partial(self._finish, kind, [rows.popleft() for _ in range(min(most, len(rows)))])

    def _finished_at_once(self, kind: str) -> int:
        route = self.target.dialect.route(MOVED[kind], Verb.CREATE)
        return route.batch if isinstance(route, Writing) else 1

    # -------------------------------------------------------------------------------------------------------- sending

    async def _send(self, kind: str, ready: list[_Ready]) -> None:
        """One request: written down, sent once, and what came of it written down."""
        entity, rows, begun = MOVED[kind], {each.source: each for each in ready}, self.clock.monotonic()
        at = await self.target.run(_server_time())
        batch = self.ledger.intend(kind, list(rows), self._watermarks[kind], at, [each.sent for each in ready])
        self._moved(kind, State.PENDING, State.INTENT, len(rows))
        making = flows.create_many(
            self.target.dialect, entity, [each.sent for each in ready], batch=len(ready), finish=False
        )
        receipts = dict(zip(rows, await self.target.run(making), strict=True))
        became, again, certain = self._told(kind, rows, receipts)
        unknown = len(rows) - len(became)
        self.ledger.settle(batch, became, _outcome(became) if not unknown else None, certain=certain)
        for source, told in became.items():
            self._moved(kind, State.INTENT, told.state, 1)
            self._sent += told.state is not State.PENDING
            self._release(kind, [rows[source].print])
            self._after(kind, source, told)
        if again:
            self._again += [(kind, part) for part in again]
        if unknown:
            self._tell(said=f"{unknown} {kind} may or may not have been made: looking for them")
            self._doubt(evolve(batch, sources=tuple(rows.keys() - became.keys()), certain=certain), held=True)
        self._tell()
        await self._heed(kind, list(receipts.values()), begun)

    def _told(
        self, kind: str, rows: Mapping[Id, _Ready], receipts: Mapping[Id, Receipt[Any]]
    ) -> tuple[dict[Id, Settled], list[tuple[Id, ...]], bool]:
        """What the receipts say of each row; who goes again with whom; and whether rows were made that nobody can name."""
        became: dict[Id, Settled] = {}
        again: list[Id] = []
        refused, certain = False, False
        for source, receipt in receipts.items():
            if isinstance(receipt, Made):
                if receipt.id is None:
                    certain = True
                    continue
                told = [*map(str, receipt.issues), *filter(None, [rows[source].without])]
                became[source] = evolve(self._made(kind, rows[source], receipt.id), error="; ".join(told) or None)
            elif isinstance(receipt, Refused):
                if folded(rows[source].sent) is not None and self.ledger.mapped(f"text {kind}", source) is None:
                    # A call may lack what makes it one there; what it says goes as a text.
                    self.ledger.learn(f"text {kind}", source, None, str(receipt.error))
                    became[source] = Settled(state=State.PENDING, struck=True)
                    again.append(source)
                else:
                    became[source] = Settled(state=State.REJECTED, error=str(receipt.error))
            elif isinstance(receipt, NotApplied) and isinstance(receipt.error, Invalid) and len(rows) == 1:
                became[source] = Settled(state=State.REJECTED, error=str(receipt.error), struck=True)
            elif isinstance(receipt, NotApplied):
                became[source] = Settled(state=State.PENDING, error=str(receipt.error), struck=True)
                refused = refused or isinstance(receipt.error, Rejected | NotFound | Invalid)
                again.append(source)
        if not refused or len(again) < 2:
            return became, [tuple(again)] if again else [], certain
        # The request was refused and no row was named: whose fault it is shows in halves.
        half = len(again) // 2
        return became, [tuple(again[:half]), tuple(again[half:])], certain

    def _after(self, kind: str, source: Id, told: Settled) -> None:
        if told.target is not None and isinstance(told.target, int):
            self._watermarks[kind] = max(self._watermarks[kind], told.target)
        if told.state is State.MADE and told.target is not None:
            self._unfinished[kind].append((source, told.target))

    def _moved(self, kind: str, before: State, after: State, number: int) -> None:
        counts = self._counts.setdefault(kind, Counter())
        counts[before] -= number
        counts[after] += number

    def _become(self, kind: str, became: Mapping[Id, Settled]) -> None:
        """Rows that will never be sent."""
        if not became:
            return
        self.ledger.become(kind, became)
        for source, told in became.items():
            self._fronts[kind].rows.pop(source, None)
            self._moved(kind, State.PENDING, told.state, 1)
        self._wake()

    def _release(self, kind: str, prints: Iterable[Hashable]) -> None:
        counts = self._open[kind]
        for each in prints:
            counts[each] -= 1
            if counts[each] <= 0:
                del counts[each]

    async def _heed(self, kind: str, receipts: Sequence[Receipt[Any]], begun: float) -> None:
        """Whatever was not applied through no fault of its rows: wait, or stop where waiting is no use.

        ``begun`` is when it was sent: what fails together fails once.
        """
        errors = [each.error for each in receipts if isinstance(each, NotApplied | Unknown)]
        for each in errors:
            if isinstance(each, Banned) or not isinstance(each, (*_PASSING, AmbiguousWrite, *_OF_THE_ROW)):
                raise each
        if any(isinstance(each, Made) for each in receipts):
            self._failures[kind], self._arrived[kind] = 0, self.clock.monotonic()
        passing = next((each for each in errors if isinstance(each, (*_PASSING, AmbiguousWrite))), None)
        if passing is None:
            return
        if begun >= self._failed_at.get(kind, float("-inf")):
            self._failures[kind] += 1
            self._failed_at[kind] = self.clock.monotonic()
        if self._failures[kind] >= _TRIES:
            raise passing
        if not isinstance(passing, AmbiguousWrite):
            wait = float(2 ** self._failures[kind])
            self._tell(said=f"{passing.message}: trying again in {wait:g} s")
            await self._pause(wait)

    # ------------------------------------------------------------------------------------------------------ finishing

    async def _finish(self, kind: str, rows: Sequence[tuple[Id, Id]]) -> None:
        """What follows rows that were made: ties, and that a task is done. All of it may be said again."""
        begun = self.clock.monotonic()
        there, sent = dict[Id, Translated](), dict[Id, Any]()
        for number, (source, _) in enumerate(rows, 1):
            row = self.ledger.row(kind, source)
            there[source] = self._translate(row)
            sent[source] = self._as_sent(kind, source, row, there[source])
            if number % _TURN == 0:
                await self.clock.sleep(0)
        failed = await self._follow(kind, rows, sent)
        later = [(source, target) for source, target in rows if there[source].later and source not in failed]
        failed |= await self._complete(kind, later, there)
        became = {source: Settled(state=State.DONE) for source, _ in rows if source not in failed}
        self.ledger.become(kind, became)
        self._moved(kind, State.MADE, State.DONE, len(became))
        for source, target in rows:
            if source in failed:
                await self._unfinishable(kind, source, target, failed[source])
        self._tell()
        passing = [NotApplied(error=each) for each in failed.values() if isinstance(each, _PASSING)]
        await self._heed(f"finish {kind}", passing or [Made()], begun)

    async def _follow(self, kind: str, rows: Sequence[tuple[Id, Id]], sent: Mapping[Id, Any]) -> dict[Id, CRMError]:
        """What follows rows once they are made; where one is refused for another's sake, halves tell which."""
        if not flows.finishes(self.target.dialect, MOVED[kind]):
            return {}
        given = [(target, sent[source]) for source, target in rows]
        try:
            wrong = await self.target.run(flows.finish_many(self.target.dialect, MOVED[kind], given))
        except _PASSING as error:  # the settings that are read for it
            wrong = [error] * len(given)
        failed = {source: error for (source, _), error in zip(rows, wrong, strict=True) if error is not None}
        refused = [pair for pair in rows if isinstance(failed.get(pair[0]), Rejected | NotFound)]
        if len(rows) > 1 and refused:
            half = (len(refused) + 1) // 2
            for part in (refused[:half], refused[half:]):
                failed = {source: error for source, error in failed.items() if source not in dict(part)}
                failed |= await self._follow(kind, part, sent) if part else {}
        return failed

    async def _complete(
        self, kind: str, rows: Sequence[tuple[Id, Id]], there: Mapping[Id, Translated]
    ) -> dict[Id, CRMError]:
        if not rows:
            return {}
        entity, failed = MOVED[kind], dict[Id, CRMError]()
        made: Any = entity
        names = {name for source, _ in rows for name in there[source].later}
        if (
            names <= self.target.dialect.resource(entity).survivors(Verb.UPDATE)
            and flows.batch_of(self.target.dialect, entity, Verb.UPDATE) > 1
        ):
            changes = [made(id=target, **there[source].later) for source, target in rows]
            receipts = await self.target.of(entity).update_many(changes)
            told = zip(rows, receipts, strict=True)
            return {source: receipt.error for (source, _), receipt in told if not isinstance(receipt, Made)}
        for source, target in rows:
            try:
                await self.target.of(entity).complete(target, result=there[source].later.get("result"))
            except CRMError as error:
                failed[source] = error
        return failed

    async def _unfinishable(self, kind: str, source: Id, target: Id, error: CRMError) -> None:
        """What follows a row was not done, or nobody knows whether it was."""
        unsure = isinstance(error, AmbiguousWrite)
        self._unsure = self._unsure or unsure
        tries = int(self.ledger.mapped(f"finishing {kind}", source) or 0) + unsure
        if isinstance(error, _PASSING) or (unsure and tries < _TRIES):
            if unsure:
                self.ledger.learn(f"finishing {kind}", source, tries, str(error))
            self._later(partial(self._look_after_a_while, kind, [(source, target)], unsure=unsure))
            return
        if not isinstance(error, (AmbiguousWrite, *_OF_THE_ROW)):
            raise error
        self.ledger.become(kind, {source: Settled(state=State.DONE, error=f"not finished: {error}")})
        self._moved(kind, State.MADE, State.DONE, 1)

    def _later(self, work: Callable[[], Awaitable[None]]) -> None:
        """Beside the lanes, which are for what can be done now."""
        assert self._group is not None  # noqa: S101  lanes run in it
        self._doubts += 1

        async def waiting() -> None:
            try:
                await work()
            finally:
                self._doubts -= 1

        self._group.create_task(self._guarded(waiting))

    async def _look_after_a_while(self, kind: str, rows: Sequence[tuple[Id, Id]], *, unsure: bool) -> None:
        if unsure:
            await self._quarantine(len(rows), "rows", self.plan.quarantine)
        else:
            await self._pause(float(2 ** self._failures[f"finish {kind}"] - 1))
        if self._halted:
            self._unsure = self._unsure or unsure
        else:
            self._found[kind] += rows

    async def _look_after(self, kind: str, rows: Sequence[tuple[Id, Id]]) -> None:
        """Rows that are there, and nobody knows whether they were finished: only what they lack is done."""
        there = await self._stored(kind, [target for _, target in rows])
        left: list[tuple[Id, Id]] = []
        became: dict[Id, Settled] = {}
        for source, target in rows:
            found = there.get(target) if there is not None else None
            if there is None or (found is not None and self._lacks(kind, source, found)):
                left.append((source, target))
            else:
                why = None if found is not None else "the target does not show it any more, so that nothing followed it"
                became[source] = Settled(state=State.DONE, error=why)
        self.ledger.become(kind, became)
        self._moved(kind, State.MADE, State.DONE, len(became))
        if left:
            await self._finish(kind, left)
        self._tell()

    async def _stored(self, kind: str, ids: Sequence[Id]) -> dict[Id, Any] | None:
        """Rows of the target by their ids; None where it shows none by its id: there all of it may be said again."""
        entity, found = MOVED[kind], dict[Id, Any]()
        of: Any = self.target.of(entity)
        if flows.filtered_by(self.target.dialect, entity, "ids"):
            # What cannot be read is not said again either: nobody knows what it lacks.
            unreadable: list[Unreadable] = []
            return {row.id: row async for row in of.list(ids=ids, on_bad=unreadable.append)}
        if not self.target.can(entity, Verb.GET):
            return None
        for id in ids:
            try:
                found[id] = await of.get(id)
            except NotFound:
                continue
        return found

    def _lacks(self, kind: str, source: Id, found: Any) -> bool:
        whole = self._translate(self.ledger.row(kind, source)).whole
        return any(
            not is_empty(getattr(whole, name, None)) and not same(getattr(whole, name), getattr(found, name))
            for name in _FOLLOWING - found.unread
        )

    # ----------------------------------------------------------------------------------------------------- reconciling

    def _doubt(self, batch: Batch, *, held: bool = False) -> None:
        """Find out what a request did, beside the lanes; ``held``: its rows count as under way already."""
        rows: dict[Id, _Ready] = {}
        for source in batch.sources:
            row = self.ledger.row(batch.kind, source)
            there = self._translate(row)
            sent = self._as_sent(batch.kind, source, row, there)
            rows[source] = _Ready(source, row, there, sent, self._prints[batch.kind].of(sent))
            if not held:
                self._open[batch.kind][rows[source].print] += 1
        self._later(partial(self._resolve, batch, rows))

    async def _resolve(self, batch: Batch, rows: dict[Id, _Ready]) -> None:
        """Look at once, and once more when nobody can be working on it any longer: only then is "not there" an answer."""
        kind, began = batch.kind, self.clock.monotonic()
        until, found_any = began + self.plan.quarantine, self.ledger.partly(batch)
        first = min(self._tried.setdefault((kind, source), began) for source in rows)
        # Others came through between its first sending and its last: it is not the vendor who fails.
        poison = len(rows) == 1 and self._arrived.get(kind, float("-inf")) > first
        while rows:
            # What began before the time was up may have looked where the row was not yet.
            over = self.clock.monotonic() >= until
            found, alike, blind = await self._seen(batch, rows, last=over)
            found_any = found_any or bool(found)
            became = {source: self._made(kind, rows[source], target) for source, target in found.items()}
            if over:
                lost = [source for source in rows if source not in found]
                became |= self._given_up(batch, lost, alike, found_any=found_any, blind=blind, poison=poison)
            if became:
                self.ledger.settle(batch, became, _outcome(became) if len(became) == len(rows) else None)
            for source, told in became.items():
                self._moved(kind, State.INTENT, told.state, 1)
                self._release(kind, [rows[source].print])
                self._after_doubt(kind, source, told)
                del rows[source]
                if told.state is not State.PENDING:
                    del self._tried[kind, source]
            self._send_again(kind, [source for source, told in became.items() if told.state is State.PENDING])
            self._tell()
            self._wake()
            if self._halted or not rows:
                return
            await self._quarantine(len(rows), "rows", until - self.clock.monotonic())
            if self._halted:
                return

    def _send_again(self, kind: str, rows: Sequence[Id]) -> None:
        """Rows that were certainly not made go together once more, and then in halves: one of them may be what is wrong."""
        if not rows:
            return
        tried = max(item.attempts for source in rows if (item := self.ledger.item(kind, source)) is not None)
        half = len(rows) if tried < 2 else (len(rows) + 1) // 2
        self._again += [(kind, part) for part in (tuple(rows[:half]), tuple(rows[half:])) if part]

    async def _patiently(self, looking: Callable[[], Flow[T]]) -> T:
        """Reading harms nobody: what fails in passing is read again a little later, so often and no more."""
        failures = 0
        while True:
            try:
                return await self.target.run(looking())
            except _PASSING as error:
                failures += 1
                if failures == _TRIES or self._halted:
                    raise
                wait = getattr(error, "after", None) or float(2**failures)
                self._tell(said=f"{error.message}: looking again in {wait:g} s")
                await self._pause(wait)

    async def _pause(self, seconds: float) -> None:
        """Wait, but not while everything else has stopped."""
        until = self.clock.monotonic() + seconds
        while not self._halted and (left := until - self.clock.monotonic()) > 0:
            await self.clock.sleep(min(left, 1.0))

    async def _quarantine(self, number: int, what: str, seconds: float) -> None:
        """Wait until nobody can be working on something any longer, and let it be seen how long that is."""
        if seconds <= 0:
            return
        waiting = _Quarantine(number, what, self.clock.now() + timedelta(seconds=seconds))
        self._quarantined.append(waiting)
        self._tell()
        try:
            await self._pause(seconds)
        finally:
            self._quarantined.remove(waiting)
            self._tell()

    async def _seen(
        self, batch: Batch, rows: Mapping[Id, _Ready], *, last: bool
    ) -> tuple[dict[Id, Id], frozenset[Id], bool]:
        """Which rows of a batch are in the target; which of the others are much like one there; and whether rows are there
        that cannot be read.
        """
        kind, entity, prints = batch.kind, MOVED[batch.kind], self._prints[batch.kind]
        sent = {source: each.sent for source, each in rows.items()}
        needs, owned = prints.needs(sent.values()), partial(self.ledger.owned, kind)

        def looking() -> Flow[Found]:
            spoken, every = self.target.dialect, list(sent.values())
            seen = yield from seek(spoken, entity, every, batch.watermark, batch.sent_at, last=last)
            return (yield from completed(spoken, entity, seen, needs, owned))

        seen = await self._patiently(looking)
        # While it was looked, others may have become somebody's.
        free = [row for row in seen.rows if not owned(row.id)]
        matched = prints.matched(sent, free)
        left = [row for row in free if row.id not in matched.values()]
        alike = prints.resembling({source: row for source, row in sent.items() if source not in matched}, left)
        return matched, alike, seen.blind

    def _made(self, kind: str, row: _Ready, target: Id) -> Settled:
        more = flows.finishes(self.target.dialect, MOVED[kind]) or row.there.later
        state = State.MADE if more else State.DONE
        return Settled(state=state, target=target, wrote=self._says(kind, row.there), kept=row.there.archived)

    def _says(self, kind: str, there: Translated) -> str:
        """What tells later whether anybody but us has changed the row in the target."""
        spoken = self.target.dialect
        return own(spoken, kind, content(spoken, there.whole, compared(spoken, kind)))

    def _given_up(
        self, batch: Batch, lost: Sequence[Id], alike: Set[Id], *, found_any: bool, blind: bool, poison: bool
    ) -> dict[Id, Settled]:
        """Rows that are not there and will not be: to be sent again, unless there is reason to think that they are."""
        route = self.target.dialect.route(MOVED[batch.kind], Verb.CREATE)
        whole = found_any and isinstance(route, Writing) and route.atomic
        why = (
            "it was made, and the answer did not tell its id"
            if batch.certain
            else "others of its request were made, and that makes all or none"
            if whole
            else "rows are there that cannot be read, and it may be one of them"
            if blind
            else None
        )
        became: dict[Id, Settled] = {}
        for source in lost:
            item = self.ledger.item(batch.kind, source)
            tried = item.attempts if item is not None else 0
            if said := why or ("a row much like it is there, with other dates" if source in alike else None):
                became[source] = Settled(state=State.DOUBT, error=f"{said}: look for it in the target by hand")
            elif poison and tried >= _VANISHING:
                became[source] = Settled(
                    state=State.REJECTED, error=f"it vanishes: sent {tried} times, and never there"
                )
            else:
                became[source] = Settled(state=State.PENDING)
        return became

    def _after_doubt(self, kind: str, source: Id, told: Settled) -> None:
        if told.state is State.MADE and told.target is not None:
            self._found[kind].append((source, told.target))
        if isinstance(told.target, int):
            self._watermarks[kind] = max(self._watermarks[kind], told.target)

    # ------------------------------------------------------------------------------------------------------ verifying

    def _compare(self, *, last: bool = False) -> Comparison:
        """Another look at both sides; what the source has new or changed is noticed as it is read."""
        self._altered.clear()
        self._new.clear()
        self._coming_late.clear()
        self._reopened, self._last_look = 0, last
        words, seen = self._translate.words, Seen()
        plan = evolve(self.plan, me=words.me.id if words.me is not None else None)
        return Comparison(self.source, self.target, plan, words, seen, source_row=self._noticed, before=self._was_there)

    def _look_ahead(self) -> None:
        """Read the source once more while the last rows are being written: as late as its reading takes, and no later."""
        if self._early is not None or self._looked or self._coming or self._group is None or self._halted:
            return
        left = sum(counts[State.PENDING] + counts[State.INTENT] for counts in self._counts.values())
        spent = [crm.spent.requests - base for crm, base in zip((self.source, self.target), self._base, strict=True)]
        reading, writing = (
            requests * max(rate.seconds / rate.limit for rate in crm.dialect.rate)
            for requests, crm in zip(spent, (self.source, self.target), strict=True)
        )
        # Beside the writing it takes about twice as long as it took alone.
        if left * writing > (2.0 * reading + 2.0) * max(1, self._sent):
            return
        self._early = self._compare()
        self._group.create_task(self._guarded(self._read_again))

    async def _read_again(self) -> None:
        assert self._early is not None  # noqa: S101  it was just made
        await self._unless_stopped(self._early.read_source(self._reading))

    async def _verify(self) -> None:
        """Read both sides whole. What has come to the source meanwhile, or was changed there, is moved too."""
        self._looked = True
        for last in (*[False] * (_ROUNDS - 1), True):
            self._tell("verifying")
            early, self._early = self._early, None
            comparison = early or self._compare(last=last)
            with comparison.seen:
                sides = [comparison.read_target(self._reading)]
                sides += [] if early is not None else [comparison.read_source(self._reading)]
                await self._unless_stopped(side_by_side(*sides))
                if self._stopping:
                    return
                differing: list[Finding] = []

                def each(finding: Finding, differing: list[Finding] = differing) -> None:
                    if finding.sign is Sign.DIFFERS and (finding.kind, finding.source) in self._altered:
                        differing.append(finding)

                comparison.each = each
                self.verdict = comparison.verdict(_Pairs(self.ledger))
            new, self._new = self._new, []
            if last or not (new or differing or self._reopened):
                break
            self._tell("moving", f"{len(new)} rows are new in the source since, {len(differing)} were changed")
            self._note(new, ended=True)
            await self._move()
            await self._update(differing)
            if self._stopping:
                return
        assert self.verdict is not None  # noqa: S101  there is one round at least
        self.ledger.note_state(_ENDED, self.clock.now(), json.dumps(self.verdict.as_tree(), ensure_ascii=False))
        self.ended = True
        self._tell("ended", self.verdict.sentence)

    async def _unless_stopped(self, looking: Coroutine[Any, Any, T]) -> T | None:
        """What only reads is left where it stands when it is told to stop."""
        task = asyncio.ensure_future(looking)
        try:
            while not task.done():
                self._changed.clear()
                waking = asyncio.ensure_future(self._changed.wait())
                await asyncio.wait((task, waking), return_when=asyncio.FIRST_COMPLETED)
                waking.cancel()
                if self._halted and not task.done():
                    return None
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    def _was_there(self, kind: str, target: Id) -> bool:
        """Whether a row of the target was there before anything was moved."""
        known = self.ledger.mapped("watermark", kind)
        return isinstance(target, int) and isinstance(known, int) and target <= known

    def _reading(self, side: str, kind: str, rows: int) -> None:
        self._tell()

    def _noticed(self, row: Any) -> None:
        """A row of the source as it is read once more."""
        item = self.ledger.item(kind_of(row), row.id)
        if item is None:
            fresh = list(self._fresh(row))
            self._new += fresh
            self._coming_late.update((each.kind, each.source) for each in fresh)
        else:
            late = any((at, id) in self._coming_late for at, id, _ in _hangs_on(row)) or self._has_come(item, row)
            if item.state in (State.SKIPPED, State.REJECTED) and (late or item.digest != digest(row)):
                if item.kind in self._prints and not self._last_look:
                    self.ledger.reopen(
                        Fresh(kind=item.kind, source=item.source, row=row, above=item.above, name=item.name)
                    )
                    self._moved(item.kind, item.state, State.PENDING, 1)
                    self._reopened += 1
            elif late or item.digest != digest(row) or item.error == ADOPTED:
                if late:
                    self.ledger.outdate(item.kind, item.source)
                self._altered[item.kind, item.source] = row

    def _has_come(self, item: Item, row: Any) -> bool:
        """Whether something that a row was refused for, or goes without, was refused and is not any more."""
        if item.error is None or not (item.state is State.REJECTED or _WITHOUT in item.error):
            return False
        for at, id, hard in _hangs_on(row):
            above = self.ledger.item(at, id)
            if above is None:
                continue
            if hard and item.error == _hung_on(at, id) and above.state is not State.REJECTED:
                return True
            if not hard and f" {MOVED[at].KIND} {id}, " in item.error and above.target is not None:
                return True
        return False

    async def _update(self, differing: Sequence[Finding]) -> None:
        """What was changed in the source since it was moved is changed in the target, unless somebody changed it there."""
        unread: dict[str, dict[Id | None, Finding]] = {}
        for finding in differing:
            if self._stopping:
                return
            try:
                await self._follow_change(finding)
            except IncompleteRead:
                unread.setdefault(finding.kind, {})[finding.target] = finding
        # Where an edit replaces the whole row and no row can be read alone, one reading is for all of its kind.
        for kind, findings in unread.items():
            of: Any = self.target.of(MOVED[kind])
            unreadable: list[Unreadable] = []
            async with aclosing(of.list(on_bad=unreadable.append)) as rows:
                async for row in rows:
                    if self._stopping:
                        return
                    if row.id in findings:
                        await self._follow_change(findings.pop(row.id), row)
                    if not findings:
                        break

    async def _follow_change(self, finding: Finding, found: Any = None) -> None:
        """Raises IncompleteRead where the row as it is ``found`` in the target has to be said again beside the change."""
        if finding.source is None or finding.target is None:
            return
        row, item = self._altered[finding.kind, finding.source], self.ledger.item(finding.kind, finding.source)
        there = self._translate(row)
        adopted = item is None or item.error == ADOPTED
        if not adopted and item is not None and item.wrote != finding.there:
            error, wrote = "it was changed on both sides since: the target keeps its own", None
        else:
            # Of what was adopted nobody knows who changed it; what a move was killed before, it may still do.
            names = [name for name in finding.fields if not adopted or name in _FOLLOWING]
            whole = evolve(self._as_sent(finding.kind, finding.source, row, there), **there.later)
            apart = "result" in names and self._results_apart
            told = [name for name in names if not (apart and name == "result")]
            error = await self._change(finding.kind, finding.target, whole, told, found)
            if apart and error is None:
                error = await self._say_result(finding.source, finding.target, whole)
                if self._stopping:
                    return
            wrote = self._says(finding.kind, there) if error is None else None
        said = error or self._without(row)
        self.ledger.changed(finding.kind, finding.source, digest(row), wrote=wrote, error=said)
        if error is not None:
            self._tell(said=f"{finding.kind} {finding.source} was changed in the source: {error}")

    async def _change(self, kind: str, target: Id, whole: Any, names: Sequence[str], found: Any) -> str | None:
        """Tell the target what these fields say by now; why it cannot be, if it cannot."""
        entity: Any = MOVED[kind]
        survivors = self.target.dialect.resource(entity).survivors(Verb.UPDATE)
        stuck = [name for name in names if name not in survivors]
        sent = [name for name in names if name in survivors]
        if _NAMES & {*sent}:
            sent += [name for name in sorted(_NAMES & survivors - {*sent}) if getattr(whole, name, None)]
        if sent and self.target.can(entity, Verb.UPDATE):
            home = {"target": whole.target} if getattr(whole, "target", None) is not None else {}
            told = {name: getattr(whole, name) for name in sent}
            change = entity(id=target, **home | told) if found is None else evolve(found, **told)
            try:
                await self.target.of(entity).update(
                    change, clear=[name for name in sent if is_empty(getattr(whole, name))]
                )
            except _OF_THE_ROW as wrong:
                if isinstance(wrong, IncompleteRead) and found is None:
                    raise
                return f"its change cannot be moved: {wrong}"
        if "done" in stuck and whole.done and self.target.can(entity, Verb.COMPLETE):
            try:
                await self.target.of(entity).complete(target, result=whole.result or None)
            except _OF_THE_ROW as wrong:
                return f"its change cannot be moved: {wrong}"
            stuck = [name for name in stuck if name not in ("done", "result")]
        return f"{self.target.dialect.title} cannot change its {', '.join(stuck)}" if stuck else None

    @property
    def _results_apart(self) -> bool:
        """Whether what came of a task is a request of its own, which no update can take the place of."""
        tasks = self.target.dialect.resource(Task)
        told = tasks.survivors(Verb.CREATE) & tasks.survivors(Verb.LIST) - tasks.survivors(Verb.UPDATE)
        return "result" in told and flows.finishes(self.target.dialect, Task)

    async def _say_result(self, source: Id, target: Id, whole: Task) -> str | None:
        """Once, where the target has none yet; why not, if it cannot be."""
        error: CRMError | None = None
        for _ in range(_TRIES):
            if self.ledger.mapped("result", source) is not None:
                # It was said and the answer is lost, or we died: it may still land.
                await self._quarantine(1, "results", self.plan.quarantine)
            if self._stopping:
                break
            there = (await self._stored("tasks", [target]) or {}).get(target)
            if there is None or there.result == whole.result:
                return "the target does not show it any more" if there is None else None
            if there.result or not whole.result:
                return f"{self.target.dialect.title} cannot change its result"
            self.ledger.learn("result", source, 1, "said")
            error = (await self._follow("tasks", [(source, target)], {source: whole})).get(source)
            if error is None:
                return None
            if isinstance(error, _OF_THE_ROW):
                break
            if not isinstance(error, AmbiguousWrite):
                raise error
        return f"its result cannot be moved: {error}"


def _run_of(plan: Plan, clock: Clock) -> Run:
    return Run(
        id=uuid4().hex,
        source=plan.source.address,
        target=plan.target.address,
        plan=to_toml(plan),
        plan_hash=plan.digest,
        caps_hash=f"{plan.source.capabilities} {plan.target.capabilities}",
        started_at=clock.now(),
    )


async def adopt(
    source: Client,
    target: Client,
    plan: Plan,
    ledger: Ledger,
    *,
    told: Told = silent,
    clock: Clock = SYSTEM_CLOCK,
) -> dict[str, int]:
    """Fill an empty ledger from what is in the target, where the one that a move went by is lost: how many rows of each
    kind were found again, by their marks or, where there are none, by what they say.

    Both sides are only read, once the plan's quarantine is over. What is not found again is made by the next run. Raises
    Misconfigured for a ledger that has begun and for a plan of other accounts.
    """
    if ledger.run() is not None or ledger.counts():
        raise Misconfigured(f"{ledger.path} is the ledger of a move that has begun: adopt into a new one")
    found, waiting = Counter[str](), list[tuple[str, Id, Id]]()
    # What the lost run has sent may still land, and what is not found now is made anew.
    await clock.sleep(plan.quarantine)

    def each(finding: Finding) -> None:
        # What a killed move had not finished yet differs in nothing else; what is marked is ours whatever it says.
        known = finding.sign is Sign.SAME or finding.marked or {*finding.fields} <= _FOLLOWING
        if finding.source is None or finding.target is None or not known:
            return
        waiting.append((finding.kind, finding.source, finding.target))
        if len(waiting) == 500:
            keep()

    def keep() -> None:
        found.update(kind for kind, _, _ in waiting)
        ledger.adopt(waiting)
        waiting.clear()

    await check(source, target, plan, each=each, told=told, clock=clock)
    keep()
    # Last: a ledger that knows a part of it must not be gone on with.
    ledger.begin(_run_of(plan, clock))
    return dict(found)


def _first_of(several: BaseExceptionGroup[BaseException]) -> BaseException:
    """What really happened: the rest was cancelled for it."""
    first = several.exceptions[0]
    return _first_of(first) if isinstance(first, BaseExceptionGroup) else first  # pyright: ignore[reportUnknownArgumentType]


@frozen
class _Pairs(Mapping[str, Iterable[tuple[Id, Id]]]):
    """What the ledger knows, kind by kind, without holding it."""

    ledger: Ledger

    def __getitem__(self, kind: str) -> Iterable[tuple[Id, Id]]:
        return self.ledger.pairs(kind)

    def __iter__(self) -> Any:
        return iter(KINDS)

    def __len__(self) -> int:
        return len(KINDS)


def _hangs_on(row: Any) -> Iterable[tuple[str, Id, bool]]:
    """What has to be made before a row is: kind, the source's id, and whether the row is nothing without it."""
    target: Ref | None = getattr(row, "target", None)
    at = kind_at(target)
    if at is not None and target is not None and target.id is not None:
        yield at, target.id, True
    key = company_key(getattr(row, "company", None))
    if key is not None:
        yield "companies", key, False
    for link in getattr(row, "contacts", ()) if row.KIND is Kind.DEAL else ():
        if link.ref.id is not None:
            yield "contacts", link.ref.id, False


def _hung_on(at: str, id: Id) -> str:
    return f"its {MOVED[at].KIND} {id} was rejected"


def _did_not_arrive(item: Item) -> bool:
    return item.state in (State.REJECTED, State.DOUBT) and item.target is None


def _outcome(became: Mapping[Id, Settled]) -> str:
    states = {told.state for told in became.values()}
    if states <= {State.MADE, State.DONE}:
        return "applied"
    return "not applied" if states == {State.PENDING} else "refused" if states == {State.REJECTED} else "mixed"


def _server_time() -> Flow[datetime]:
    """What the server calls now."""
    context = yield Need()
    return context.now
