"""How the rows of a move are said in the target: in its words, with a mark of their origin, in fields made for them."""

from collections.abc import Mapping, Sequence
from contextlib import aclosing
from typing import Any

from attrs import evolve

from crmclient.dialect import NotApplied, Refused, Verb
from crmclient.entities import FieldType, Id, Kind, Ref
from crmclient.errors import Misconfigured
from crmclient.migration.matching import KINDS, MARKER, MOVED, mark, match_fields
from crmclient.migration.move import TRIES, Move
from crmclient.migration.plan import vocabulary
from crmclient.migration.reconcile import Prints
from crmclient.migration.translation import FieldThere, Translated, Translation, Words, folded, marked
from crmclient.migration.verify import compared, content, own
from crmclient.vocabulary import Field


class Wording:
    def __init__(self, move: Move) -> None:
        self._move = move
        self.translate = Translation(move.source.dialect, move.target.dialect, move.plan.words(), move.ledger)
        self.prints: dict[str, Prints] = {}
        """Of each kind that the target takes."""
        self._marks: dict[Kind, FieldThere] = {}
        self._asking = self._asked = False

    # ------------------------------------------------------------------------------------------ before anything moves

    async def know(self) -> None:
        """The custom fields that have to be there: for origins, and for what the plan keeps in fields of its own."""
        move = self._move
        wanted = {("field", what): each for what, each in move.plan.fields_to_make()}
        if move.plan.marker == "field":
            for entity in MOVED.values():
                resource = move.target.dialect.resources.get(entity)
                if resource is not None and "fields" in resource.survivors(Verb.CREATE) & resource.survivors(Verb.LIST):
                    marker = Field(entity=entity.KIND, name=MARKER, code=MARKER, type=FieldType.TEXT)
                    wanted["marker", str(entity.KIND)] = marker
        there = await self._fields(wanted)
        if move.stopping:
            return
        self._marks = {Kind(what): each for (how, what), each in there.items() if how == "marker"}
        words, me = self.translate.words, move.ledger.mapped("me", "me")
        made = {what: each for (how, what), each in there.items() if how == "field"}
        self.translate.words = evolve(words, made_fields=made) if made else words
        if words.me is None and me is not None:
            self.translate.words = self._with_me(Ref(Kind.USER, me))
        for kind, entity in MOVED.items():
            if move.target.can(entity, Verb.CREATE):
                self.prints[kind] = Prints(move.target.dialect, entity, self._is_marked(kind))

    async def _fields(self, wanted: Mapping[tuple[str, str], Field]) -> dict[tuple[str, str], FieldThere]:
        """Custom fields of the target by their codes or names; those that are not there are made, once."""
        move, lacking, waited = self._move, dict(wanted), False
        for _ in range(TRIES):
            known: Sequence[Field] = await vocabulary(move.target, Field) if wanted else ()
            found = {key: [*match_fields([want], known).values()] for key, want in wanted.items()}
            there = {key: alike[0] for key, alike in found.items() if alike}
            for how, what in lacking.keys() & there.keys():
                move.ledger.learn(how, what, there[how, what].id, "the field of this name")
            lacking = {key: each for key, each in wanted.items() if key not in there}
            if not lacking:
                return {key: FieldThere(each.id, each.code, each.name, each.type) for key, each in there.items()}
            asked = any(move.ledger.mapped(f"making {how}", what) is not None for how, what in lacking)
            if asked and not waited:
                # It may have been asked for before we died, and may still land.
                await move.quarantine(len(lacking), "custom fields")
                waited = True
                move.target.forget()
            elif not move.stopping:
                waited = await self._not_made(lacking)
            if move.stopping:
                return {}
        named = ", ".join(str(each.name) for each in lacking.values())
        raise Misconfigured(f"{move.target.dialect.title} does not show the custom fields that were made: {named}")

    async def _not_made(self, lacking: Mapping[tuple[str, str], Field]) -> bool:
        """Ask for them. What may have been made by that is waited for, even where a list lags behind."""
        move = self._move
        for how, what in lacking:
            move.ledger.learn(f"making {how}", what, 1, "asked for")
        begun = move.clock.monotonic()
        receipts = await move.target.fields.create_many(lacking.values())
        for receipt in receipts:
            if isinstance(receipt, Refused):
                raise receipt.error
        await move.heed("fields", receipts, begun)
        return all(isinstance(each, NotApplied) for each in receipts)

    # ----------------------------------------------------------------------------------------------------- who we are

    def waits_for_me(self, there: Translated) -> bool:
        """Whoever needs an owner waits until we know who we are, or that nobody tells."""
        if "owner" not in there.lacks or self._asked:
            return False
        if not self._asking:
            self._asking = True
            self._move.later(self._know_me)
        return True

    async def _know_me(self) -> None:
        await self._move.unless_halted(self._look_for_me())
        self._asked = True

    async def _look_for_me(self) -> None:
        """Who the target takes us for, where it does not tell: whom it gave a row for which nobody was named."""
        target, ledger = self._move.target, self._move.ledger
        for kind in KINDS:
            entity = MOVED[kind]
            resource = target.dialect.resources.get(entity)
            if resource is None or "owner" not in resource.survivors(Verb.LIST) or not ledger.watermark(kind):
                continue
            async with aclosing(target.of(entity).pages(prefetch=1)) as pages:
                async for page in pages:
                    for row in page:
                        ours = row.id is not None and ledger.owned(kind, row.id)
                        if ours and row.owner is not None and row.owner not in self.translate.words.users.values():
                            ledger.learn("me", "me", row.owner.id, "given to our rows")
                            self.translate.words = self._with_me(row.owner)
                            return

    def _with_me(self, me: Ref) -> Words:
        words = self.translate.words
        return evolve(words, me=me, nobody=me if self._move.plan.unmatched == "me" else words.nobody)

    # ------------------------------------------------------------------------------------------------------ each row

    def _is_marked(self, kind: str) -> bool:
        how = self._move.plan.marker
        if how == "field":
            return MOVED[kind].KIND in self._marks
        resource = self._move.target.dialect.resource(MOVED[kind])
        both = resource.survivors(Verb.CREATE) & resource.survivors(Verb.LIST)
        return how == "tag" and "tags" in both

    def as_sent(self, kind: str, source: Id, row: Any, there: Translated) -> Any:
        sent = there.row
        if self._move.ledger.mapped(f"text {kind}", source) is not None:
            sent = folded(sent) or sent
        if not self._is_marked(kind):
            return sent
        origin = mark(self._move.plan.source.origin, row.KIND, source)
        return marked(sent, origin, self._move.plan.marker, self._marks.get(row.KIND))

    def says(self, kind: str, there: Translated) -> str:
        """What tells later whether anybody but us has changed the row in the target."""
        spoken = self._move.target.dialect
        return own(spoken, kind, content(spoken, there.whole, compared(spoken, kind)))
