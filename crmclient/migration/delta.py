"""What has come to a move's source since it was read, or was changed there, follows; what the target has since is kept."""

from collections.abc import Sequence
from contextlib import aclosing
from typing import Any, Final

from attrs import evolve

from crmclient import flows
from crmclient.dialect import Verb
from crmclient.entities import Id, Task, is_empty
from crmclient.errors import AmbiguousWrite, CRMError, IncompleteRead, Unreadable
from crmclient.migration.finishing import FOLLOWING, Finishing
from crmclient.migration.ledger import ADOPTED, Fresh, Item, State, digest
from crmclient.migration.matching import MOVED, kind_of
from crmclient.migration.move import OF_THE_ROW, TRIES, Move
from crmclient.migration.queue import WITHOUT, Queue, hangs_on, hung_on
from crmclient.migration.reading import Reading
from crmclient.migration.verify import Finding, Sign
from crmclient.migration.wording import Wording

# A server that is told one of them makes up the others, or empties them.
_NAMES: Final = frozenset({"name", "first_name", "last_name"})


class Delta:
    def __init__(self, move: Move, wording: Wording, queue: Queue, reading: Reading, finishing: Finishing) -> None:
        self._move, self._wording, self._queue = move, wording, queue
        self._reading, self._finishing = reading, finishing
        self.reopened = 0
        """Rows that were refused, or had no place, and wait to be moved once more."""
        self.begin(last=False)

    def begin(self, *, last: bool) -> None:
        """The source is read once more; what it has refused is not tried again where that is the ``last`` time."""
        self._last = last
        self.new: list[Fresh] = []
        self._coming: set[tuple[str, Id]] = set()
        self._altered: dict[tuple[str, Id], Any] = {}

    # ------------------------------------------------------------------------------------------- what is new over there

    def notice(self, row: Any) -> None:
        """A row of the source as it is read once more."""
        ledger, item = self._move.ledger, self._move.ledger.item(kind_of(row), row.id)
        if item is None:
            fresh = list(self._reading.fresh(row))
            self.new += fresh
            self._coming.update((each.kind, each.source) for each in fresh)
            return
        late = any((at, id) in self._coming for at, id, _ in hangs_on(row)) or self._has_come(item, row)
        changed = late or item.digest != digest(row)
        if item.state in (State.SKIPPED, State.REJECTED):
            if changed and item.kind in self._wording.prints and not self._last:
                ledger.reopen(Fresh(kind=item.kind, source=item.source, row=row, above=item.above, name=item.name))
                self._move.count(item.kind, item.state, State.PENDING, 1)
                self.reopened += 1
        elif changed or item.error == ADOPTED:
            if late:
                ledger.outdate(item.kind, item.source)
            self._altered[item.kind, item.source] = row

    def is_change(self, finding: Finding) -> bool:
        return finding.sign is Sign.DIFFERS and (finding.kind, finding.source) in self._altered

    def _has_come(self, item: Item, row: Any) -> bool:
        """Whether something that a row was refused for, or goes without, was refused and is not any more."""
        if item.error is None or not (item.state is State.REJECTED or WITHOUT in item.error):
            return False
        for at, id, hard in hangs_on(row):
            above = self._move.ledger.item(at, id)
            if above is None:
                continue
            if hard and item.error == hung_on(at, id) and above.state is not State.REJECTED:
                return True
            if not hard and f" {MOVED[at].KIND} {id}, " in item.error and above.target is not None:
                return True
        return False

    # ------------------------------------------------------------------------------------------------- what was changed

    async def update(self, differing: Sequence[Finding]) -> None:
        """What was changed in the source since it was moved is changed in the target, unless somebody changed it there."""
        unread: dict[str, dict[Id | None, Finding]] = {}
        for finding in differing:
            if self._move.stopping:
                return
            try:
                await self._follow(finding)
            except IncompleteRead:
                unread.setdefault(finding.kind, {})[finding.target] = finding
        # Where an edit replaces the whole row and no row can be read alone, one reading is for all of its kind.
        for kind, findings in unread.items():
            of: Any = self._move.target.of(MOVED[kind])
            unreadable: list[Unreadable] = []
            async with aclosing(of.list(on_bad=unreadable.append)) as rows:
                async for row in rows:
                    if self._move.stopping:
                        return
                    if row.id in findings:
                        await self._follow(findings.pop(row.id), row)
                    if not findings:
                        break

    async def _follow(self, finding: Finding, found: Any = None) -> None:
        """Raises IncompleteRead where the row as it is ``found`` in the target has to be said again beside the change."""
        if finding.source is None or finding.target is None:
            return
        ledger, kind, source = self._move.ledger, finding.kind, finding.source
        row, item = self._altered[kind, source], ledger.item(kind, source)
        there = self._wording.translate(row)
        adopted = item is None or item.error == ADOPTED
        if not adopted and item is not None and item.wrote != finding.there:
            error, wrote = "it was changed on both sides since: the target keeps its own", None
        else:
            # Of what was adopted nobody knows who changed it; what a move was killed before, it may still do.
            names = [name for name in finding.fields if not adopted or name in FOLLOWING]
            whole = evolve(self._wording.as_sent(kind, source, row, there), **there.later)
            apart = "result" in names and self._results_apart
            told = [name for name in names if not (apart and name == "result")]
            error = await self._change(kind, finding.target, whole, told, found)
            if apart and error is None:
                error = await self._say_result(source, finding.target, whole)
                if self._move.stopping:
                    return
            wrote = self._wording.says(kind, there) if error is None else None
        ledger.changed(kind, source, digest(row), wrote=wrote, error=error or self._queue.without(row))
        if error is not None:
            self._move.tell(said=f"{kind} {source} was changed in the source: {error}")

    async def _change(self, kind: str, id: Id, whole: Any, names: Sequence[str], found: Any) -> str | None:
        """Tell the target what these fields say by now; why it cannot be, if it cannot."""
        entity: Any = MOVED[kind]
        target = self._move.target
        survivors = target.dialect.resource(entity).survivors(Verb.UPDATE)
        stuck = [name for name in names if name not in survivors]
        sent = [name for name in names if name in survivors]
        if _NAMES & {*sent}:
            sent += [name for name in sorted(_NAMES & survivors - {*sent}) if getattr(whole, name, None)]
        if sent and target.can(entity, Verb.UPDATE):
            home = {"target": whole.target} if getattr(whole, "target", None) is not None else {}
            told = {name: getattr(whole, name) for name in sent}
            change = entity(id=id, **home | told) if found is None else evolve(found, **told)
            try:
                await target.of(entity).update(change, clear=[name for name in sent if is_empty(getattr(whole, name))])
            except OF_THE_ROW as wrong:
                if isinstance(wrong, IncompleteRead) and found is None:
                    raise
                return f"its change cannot be moved: {wrong}"
        if "done" in stuck and whole.done and target.can(entity, Verb.COMPLETE):
            try:
                await target.of(entity).complete(id, result=whole.result or None)
            except OF_THE_ROW as wrong:
                return f"its change cannot be moved: {wrong}"
            stuck = [name for name in stuck if name not in ("done", "result")]
        return f"{target.dialect.title} cannot change its {', '.join(stuck)}" if stuck else None

    @property
    def _results_apart(self) -> bool:
        """Whether what came of a task is a request of its own, which no update can take the place of."""
        spoken = self._move.target.dialect
        tasks = spoken.resource(Task)
        told = tasks.survivors(Verb.CREATE) & tasks.survivors(Verb.LIST) - tasks.survivors(Verb.UPDATE)
        return "result" in told and flows.finishes(spoken, Task)

    async def _say_result(self, source: Id, target: Id, whole: Task) -> str | None:
        """Once, where the target has none yet; why not, if it cannot be."""
        move = self._move
        error: CRMError | None = None
        for _ in range(TRIES):
            if move.ledger.mapped("result", source) is not None:
                # It was said and the answer is lost, or we died: it may still land.
                await move.quarantine(1, "results")
            if move.stopping:
                break
            there = (await self._finishing.stored("tasks", [target]) or {}).get(target)
            if there is None or there.result == whole.result:
                return "the target does not show it any more" if there is None else None
            if there.result or not whole.result:
                return f"{move.target.dialect.title} cannot change its result"
            move.ledger.learn("result", source, 1, "said")
            error = (await self._finishing.follow("tasks", [(source, target)], {source: whole})).get(source)
            if error is None:
                return None
            if isinstance(error, OF_THE_ROW):
                break
            if not isinstance(error, AmbiguousWrite):
                raise error
        return f"its result cannot be moved: {error}"
