"""The rows of a move's source as they come into its ledger: once each, and from where it stood when it was stopped."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from typing import Any, Final

from crmclient.client import Together
from crmclient.dialect import START, Cursor, Start, Verb, mapping
from crmclient.entities import Company, Contact, Id
from crmclient.errors import Unreadable
from crmclient.migration.ledger import Fresh, State
from crmclient.migration.matching import MOVED, company_key, kind_of, named_company
from crmclient.migration.move import PASSING, TRIES, Move
from crmclient.migration.queue import Queue
from crmclient.migration.wording import Wording
from crmclient.serial import cursor_from_tree, cursor_to_tree

# So many rows of a page are noted together.
_PORTION: Final = 40
# So much of a text says which row it is of.
_CALLED: Final = 60


class Reading:
    def __init__(self, move: Move, wording: Wording, queue: Queue) -> None:
        self._move, self._wording, self._queue = move, wording, queue

    def begin(self) -> None:
        """What is to come is known before anybody asks."""
        cursor = self._position()
        self._queue.coming = frozenset() if cursor is None else self._derived(self._walk([]).coming(cursor))

    def _position(self) -> Cursor | Start | None:
        """Where the source is to be read on; None at its end."""
        text, ended = self._move.ledger.position()
        return None if ended else START if text is None else cursor_from_tree(json.loads(text))

    def _walk(self, unreadable: list[Fresh], *, patient: bool = True) -> Together:
        read = self._move.read

        def bad(entity: type[Any], wrong: Unreadable) -> None:
            if wrong.passing and patient:  # a maintenance page in place of a card says nothing of the card
                raise wrong
            id, kind = mapping(wrong.raw).get("id"), kind_of(entity)
            read["unreadable"] += 1
            source: Id = id if isinstance(id, int | str) else f"unreadable {read['unreadable']}"
            told = Fresh(kind=kind, source=source, row=None, state=State.REJECTED, error=f"it cannot be read: {wrong}")
            unreadable.append(told)

        source = self._move.source
        kinds = [kind for kind, entity in MOVED.items() if source.can(entity, Verb.LIST)]
        return source.together(*(MOVED[kind] for kind in kinds), on_bad=bad)

    async def read(self) -> None:
        """What fails in passing goes on a little later from the last page that was noted."""
        move, failures = self._move, 0
        while True:
            before = move.ledger.position()
            try:
                # What is no card so often never will be one: it is told, and the others go on.
                await self._read_on(patient=failures < TRIES - 1)
                return
            except PASSING as error:
                failures = failures + 1 if move.ledger.position() == before else 1
                if failures >= TRIES or move.halted:
                    raise
                move.tell(said=f"the source: {error.message}: going on in {2**failures} s")
                await move.pause(float(2**failures))
                if move.halted:
                    return

    async def _read_on(self, *, patient: bool) -> None:
        move, cursor = self._move, self._position()
        if cursor is None:
            return
        unreadable: list[Fresh] = []
        walk = self._walk(unreadable, patient=patient)
        async with aclosing(walk.pages(cursor)) as pages:
            async for page in pages:
                fresh: list[Fresh] = []
                for number, row in enumerate(page, 1):
                    fresh += self.fresh(row)
                    if number % _PORTION == 0 and number < len(page.items):
                        # A page is noted in portions, so that what is paced has its turns; where it ends is noted last.
                        self.note(fresh, cursor=json.dumps(cursor_to_tree(page.cursor)))
                        fresh = []
                        move.wake()
                        await move.clock.sleep(0)
                following = None if page.next is None else json.dumps(cursor_to_tree(page.next))
                self.note([*fresh, *unreadable], cursor=following, ended=page.next is None)
                unreadable.clear()
                self._queue.coming = self._derived(walk.coming(page.next))
                move.tell()
                move.wake()
                if move.halted:
                    return

    def _derived(self, coming: frozenset[type[Any]]) -> frozenset[type[Any]]:
        """Companies that are but words come with the contacts, and what is folded into notes with whatever it is of."""
        more: set[type[Any]] = set()
        if Contact in coming and Company not in self._move.source.dialect.resources:
            more.add(Company)
        if coming and any(loss.choice == "fold" for loss in self._move.plan.losses):
            more.add(MOVED["notes"])
        return coming | more

    def fresh(self, row: Any) -> Iterable[Fresh]:
        """A row as it comes to the ledger, after what comes with it and before what follows it."""
        move, kind, source = self._move, kind_of(row), row.id
        taken = self._wording.prints
        move.read[kind] += 1
        company = row.company if isinstance(row, Contact) else None
        above = company_key(company)
        if above is not None and Company not in move.source.dialect.resources and "companies" in taken:
            name = named_company(company)
            yield Fresh(kind="companies", source=above, row=Company(id=above, name=name), name=name)
        named = _called(row)
        if kind not in taken:
            words = "company" in move.target.dialect.resource(Contact).survivors(Verb.CREATE)
            state = State.FOLDED if kind == "companies" and words else State.SKIPPED
            why = "it stays as words on its contacts" if state is State.FOLDED else "no such rows there"
            kept = self._wording.translate.kept_whole(kind, row)
            yield Fresh(kind=kind, source=source, row=row, state=state, name=named, error=why, kept=kept)
            return
        yield Fresh(kind=kind, source=source, row=row, above=above, name=named)
        for note in self._wording.translate.besides(row):
            yield Fresh(kind="notes", source=note.id or 0, row=note, name=_called(note))

    def note(self, fresh: Sequence[Fresh], *, cursor: str | None = None, ended: bool = False) -> None:
        for each in self._move.ledger.ingest(fresh, cursor=cursor, ended=ended):
            self._move.counts.setdefault(each.kind, Counter())[each.state] += 1
            self._queue.grown(each.kind)


def _called(row: Any) -> str | None:
    """What a person knows a row by, once all else of it is gone: its name, how its text begins, or that it was a call."""
    if isinstance(row, Company):
        return row.name  # whole: where companies are but words, it is what contacts are told
    parts = [getattr(row, name, None) for name in ("first_name", "last_name")]
    said = getattr(row, "name", None) or " ".join(filter(None, parts)) or getattr(row, "text", None)
    said = said or getattr(row, "kind", "").replace("_", " ")
    return " ".join(said[: 2 * _CALLED].split())[:_CALLED] or None
