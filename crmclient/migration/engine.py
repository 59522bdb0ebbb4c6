"""Moves one account into another: every row once, killed and resumed wherever it may be, at the pace both sides allow.

What has been done is in the ledger; whoever runs it again goes on from there. A create is written down before it is
sent (``sending``), sent once, and never sent again while anybody might still be working on it (``doubts``). It names no
vendor: what can be done, and how, is read off the two dialects.
"""

import asyncio
import json
import shlex
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any, Final

from attrs import evolve, frozen

from crmclient import flows
from crmclient.client import Client
from crmclient.clock import SYSTEM_CLOCK, Clock
from crmclient.dialect import Verb
from crmclient.entities import Id
from crmclient.errors import CRMError, Misconfigured
from crmclient.migration.delta import Delta
from crmclient.migration.doubts import Doubts
from crmclient.migration.finishing import Finishing
from crmclient.migration.ledger import Ledger, State
from crmclient.migration.matching import KINDS, MOVED
from crmclient.migration.move import PASSING, Event, Move, run_of
from crmclient.migration.plan import Plan
from crmclient.migration.queue import Queue, Ready
from crmclient.migration.reading import Reading
from crmclient.migration.reconcile import newest
from crmclient.migration.seen import Seen
from crmclient.migration.sending import Sending
from crmclient.migration.verify import Comparison, Finding, Verdict, side_by_side
from crmclient.migration.wording import Wording

# How a run stands that has not died.
_STOPPED: Final = "stopped"
_ENDED: Final = "ended"
# The two sides are compared at most so often, because something was changed meanwhile.
_ROUNDS: Final = 3


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
        self._begun = self._prepared = False
        self._busy = 0
        self._preparing = asyncio.Lock()
        self._early: Comparison | None = None
        self._looked = False
        self._move = move = Move(source, target, plan, ledger, clock)
        self._wording = words = Wording(move)
        self._queue = queue = Queue(move, words)
        self._reading = Reading(move, words, queue)
        self._finishing = Finishing(move, words, queue)
        self._doubts = Doubts(move, words, queue, self._finishing)
        self._sending = Sending(move, queue, self._finishing, self._doubts)
        self._delta = Delta(move, words, queue, self._reading, self._finishing)

    # -------------------------------------------------------------------------------------------------------- driving

    async def __aiter__(self) -> AsyncGenerator[Event]:
        if self._begun:
            raise Misconfigured("a Migration runs once: make another with the same plan and ledger to go on")
        self._begun = True
        events, news = self._move.events, self._move.news
        task = asyncio.create_task(self._run())
        task.add_done_callback(lambda _: news.set())
        try:
            while True:
                while events:
                    yield events.popleft()
                if task.done():
                    break
                news.clear()
                if not events:
                    await news.wait()
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
        self._move.stop()

    async def _run(self) -> None:
        move = self._move
        try:
            await self.prepare()
            move.tell("words")
            await self._wording.know()
            if move.stopping:
                # Which fields hold what is not known, so that nothing can be looked for; what the dead sent may still land.
                move.unsure = move.died
            else:
                move.tell("moving")
                await self._go()
            if not move.stopping:
                await self._verify()
            if move.stopping:
                self.ledger.note_state("stopped, unsure" if move.unsure else _STOPPED)
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

    # ------------------------------------------------------------------------------------------------------ preparing

    async def allowed(self) -> Mapping[str, int]:
        """See that this plan may be carried out now, by this ledger: how many rows of each kind a first look finds in a
        target that nothing was moved into yet. Nothing is written, not even to the ledger.

        Raises Misconfigured, which says what is wrong and what to do about it.
        """
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
            written = shlex.join(["crmclient", "report", str(ledger.path)])
            raise Misconfigured(
                f"the plan was edited since the move of {ledger.path} began at {begun.started_at:%Y-%m-%d %H:%M}: what is "
                f"moved already went by the old one. Go on with that (`{written} --plan old.toml` writes it, and says how), "
                "or begin anew with another ledger and an empty target"
            )
        if begun is None and ledger.counts():
            raise Misconfigured(
                f"{ledger.path} was being adopted and is not whole: remove it, and adopt into a new one"
            )
        if begun is not None:
            return {}
        rows = await self._there()
        if hindrances := plan.hindrances(rows):
            raise Misconfigured("; ".join(hindrances))
        return rows

    async def prepare(self) -> None:
        """What is ``allowed`` begins, or goes on: nothing is written yet save to the ledger. Raises what that raises."""
        if self._prepared:
            return
        rows, ledger, plan = await self.allowed(), self.ledger, self.plan
        begun = ledger.run()
        if begun is None:
            for kind, number in rows.items():
                if number:
                    await self._know_the_newest(kind)
            ledger.begin(run_of(plan, self.clock))
        else:
            # Whoever stopped knows that nothing of it is under way; whoever died knows nothing.
            self._move.died = begun.state not in (_STOPPED, _ENDED)
            ledger.note_state("running")
        self._move.counts = ledger.counts()
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

    def _was_there(self, kind: str, target: Id) -> bool:
        """Whether a row of the target was there before anything was moved."""
        known = self.ledger.mapped("watermark", kind)
        return isinstance(target, int) and isinstance(known, int) and target <= known

    # -------------------------------------------------------------------------------------------------------- moving

    async def _go(self) -> None:
        """Read, and write what has been read, until all of it is dealt with."""
        move = self._move
        self._queue.begin()
        self._finishing.begin()
        self._reading.begin()
        move.watermarks = {kind: self.ledger.watermark(kind) for kind in self._queue.kinds}
        if lost := sum(len(batch.sources) for batch in self.ledger.open_batches()):
            move.tell(said=f"{lost} rows may or may not have been made before this run: looking for them")
        try:
            async with asyncio.TaskGroup() as group:
                move.group = group
                self._doubts.go_on()
                self._finishing.go_on()
                group.create_task(move.guarded(self._reading.read))
                for _ in range(self._lanes):
                    group.create_task(self._lane())
        except BaseExceptionGroup as several:
            raise _first_of(several) from several
        finally:
            move.group = None
        if move.failure is not None:
            raise move.failure

    async def _lane(self) -> None:
        while (work := await self._next()) is not None:
            await self._move.guarded(work)
            self._busy -= 1
            self._move.wake()
            await self.clock.sleep(0)

    async def _next(self) -> Callable[[], Awaitable[None]] | None:
        move, queue = self._move, self._queue
        while not move.halted:
            async with self._preparing:
                await queue.prepare()
                if move.halted:
                    return None
                move.changed.clear()
                work = self._choose()
            self._look_ahead()
            if work is not None:
                self._busy += 1
                return work
            nothing_under_way = not self._busy and not move.beside
            if nothing_under_way and not queue.coming and queue.exhausted and self._finishing.exhausted:
                move.wake()
                return None
            if not move.changed.is_set():
                await move.changed.wait()
        return None

    def _choose(self) -> Callable[[], Awaitable[None]] | None:
        """What to do next: whatever is due of earlier kinds first, as many rows at once as a request takes."""
        queue, finishing = self._queue, self._finishing
        if (looking := finishing.found()) is not None:
            return looking
        if (again := queue.together_again()) is not None:
            return self._to_send(*again)
        left: tuple[str, list[Ready]] | None = None
        for kind in queue.kinds:
            ready, rest = queue.full(kind)
            if ready:
                return self._to_send(kind, ready)
            if rest:
                left = left or (kind, rest)
            due = finishing.due(kind, last=not rest and queue.over(kind))
            if due is not None:
                return due
        if self._busy or queue.coming:
            return None
        # Nothing else will make them more.
        if left is not None:
            return self._to_send(*left)
        return finishing.left() if not queue.waits_again else None

    def _to_send(self, kind: str, ready: list[Ready]) -> Callable[[], Awaitable[None]]:
        self._queue.take(kind, ready)
        return partial(self._sending.send, kind, ready)

    # ------------------------------------------------------------------------------------------------------ verifying

    def _compare(self, *, last: bool = False) -> Comparison:
        """Another look at both sides; what the source has new or changed is noticed as it is read."""
        self._delta.begin(last=last)
        words, noticed = self._wording.translate.words, self._delta.notice
        plan = evolve(self.plan, me=words.me.id if words.me is not None else None)
        return Comparison(self.source, self.target, plan, words, Seen(), source_row=noticed, before=self._was_there)

    def _look_ahead(self) -> None:
        """Read the source once more while the last rows are being written: as late as its reading takes, and no later."""
        move = self._move
        if self._early is not None or self._looked or self._queue.coming or move.group is None or move.halted:
            return
        left = sum(counts[State.PENDING] + counts[State.INTENT] for counts in move.counts.values())
        reading, writing = (
            requests * max(rate.seconds / rate.limit for rate in crm.dialect.rate)
            for requests, crm in zip(move.spent, (self.source, self.target), strict=True)
        )
        # Beside the writing it takes about twice as long as it took alone.
        if left * writing > (2.0 * reading + 2.0) * max(1, self._sending.sent):
            return
        self._early = self._compare()
        move.group.create_task(move.guarded(self._read_again))

    async def _read_again(self) -> None:
        early = self._early
        assert early is not None  # noqa: S101  it was just made
        try:
            await self._move.unless_halted(early.read_source(self._told))
        except PASSING as error:
            # Nobody needs it yet: it is read when all is written.
            self._move.tell(said=f"the source: {error.message}: looking again at the end")
            self._early, self._looked = None, True
            early.seen.db.close()

    async def _verify(self) -> None:
        """Read both sides whole. What has come to the source meanwhile, or was changed there, is moved too."""
        move, delta = self._move, self._delta
        self._looked = True
        for last in (*[False] * (_ROUNDS - 1), True):
            move.tell("verifying")
            early, self._early = self._early, None
            comparison = early or self._compare(last=last)
            with comparison.seen:
                sides = [comparison.read_target(self._told)]
                sides += [] if early is not None else [comparison.read_source(self._told)]
                await move.unless_halted(side_by_side(*sides))
                if move.stopping:
                    return
                differing: list[Finding] = []

                def each(finding: Finding, differing: list[Finding] = differing) -> None:
                    if delta.is_change(finding):
                        differing.append(finding)

                comparison.each = each
                self.verdict = comparison.verdict(_Pairs(self.ledger))
            new = delta.new
            if last or not (new or differing or delta.reopened):
                break
            again = f", {delta.reopened} are tried once more" if delta.reopened else ""
            move.tell("moving", f"{len(new)} rows are new in the source since, {len(differing)} were changed{again}")
            delta.reopened = 0
            self._reading.note(new, ended=True)
            await self._go()
            await delta.update(differing)
            if move.stopping:
                return
        assert self.verdict is not None  # noqa: S101  there is one round at least
        self.ledger.note_state(_ENDED, self.clock.now(), json.dumps(self.verdict.as_tree(), ensure_ascii=False))
        self.ended = True
        move.tell("ended", self.verdict.sentence)

    def _told(self, side: str, kind: str, rows: int) -> None:
        self._move.tell()


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
