"""Both accounts read whole and held against each other, field by field, through what the target cannot carry.

Which row became which is told by a ledger, by the origin a row was marked with, or else by what the rows say: those that
say the same are one, as many as there are of them, the lowest ids first. What no pair is found for is missing or too many.
"""

import asyncio
import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from functools import cache
from typing import Any, Final, TypeAlias, cast

from attrs import define, evolve, field, fields_dict, frozen, has

from crmclient.client import Client
from crmclient.clock import SYSTEM_CLOCK, Clock
from crmclient.dialect import Dialect, Verb, mapping
from crmclient.entities import Company, Contact, FieldValue, Id, Kind, Link, Note, Ref, Tag, filled
from crmclient.errors import Misconfigured, Unreadable
from crmclient.migration.losses import CHOICES
from crmclient.migration.matching import KINDS, MOVED, company_key, kind_at, kind_of, mark, named_company, unmarked
from crmclient.migration.plan import Plan, Told, draft, silent, vocabulary
from crmclient.migration.seen import Seen, sayable
from crmclient.migration.translation import MIRRORED, Translation, Words
from crmclient.serial import to_tree
from crmclient.vocabulary import Field

Pairs: TypeAlias = Mapping[str, Mapping[Id, Id] | Iterable[tuple[Id, Id]]]
"""What became of the rows of a kind: the target's id by the source's. A kind that is named here is not guessed at.

Each kind is asked for once both sides are read, and gone through once. A company that is but a word on contacts of the
source goes by that word.
"""


class Sign(StrEnum):
    """How a row stands in the other account."""

    SAME = "="
    DIFFERS = "*"
    MISSING = "+"
    EXTRA = "-"
    UNREADABLE = "!"


@frozen(kw_only=True)
class Finding:
    """One row: ``source`` and ``target`` are its ids there. ``fields`` differ; ``said`` is why it cannot be read.

    Of a row that differs, ``marked`` says whether it bears its origin, and ``there`` is a digest of what it says (``own``).
    """

    kind: str
    sign: Sign
    source: Id | None = None
    target: Id | None = None
    name: str | None = None
    fields: tuple[str, ...] = ()
    said: str | None = None
    marked: bool = field(default=False, eq=False, repr=False)
    there: str | None = field(default=None, eq=False, repr=False)


@frozen(kw_only=True)
class Verdict:
    """What came of it. ``kinds`` counts rows by kind and sign.

    ``no_place`` are rows of the source that the target cannot have, by why. ``dropped``, ``folded``, ``in_fields`` and
    ``archived`` count the values it cannot carry as they are, as ``deal.price``; of rows without a place ``archived`` has
    those that are kept whole. ``restamped`` is what the target dates and signs itself when a row is changed: that is no
    difference.
    """

    source: str
    target: str
    kinds: Mapping[str, Mapping[Sign, int]]
    no_place: Mapping[str, int]
    dropped: Mapping[str, int]
    folded: Mapping[str, int]
    restamped: Mapping[str, int]
    in_fields: Mapping[str, int] = field(factory=dict[str, int])
    archived: Mapping[str, int] = field(factory=dict[str, int])
    before: Mapping[str, int] = field(factory=dict[str, int])
    """Rows of the target that were there before anything was moved, by kind: nobody counts them as too many."""

    def number(self, sign: Sign) -> int:
        """Of all kinds together."""
        return sum(counts.get(sign, 0) for counts in self.kinds.values())

    @property
    def equal(self) -> bool:
        """Whether everything the target has a place for is there as it should be, and nothing else is."""
        return not any(self.number(sign) for sign in Sign if sign is not Sign.SAME)

    @property
    def sentence(self) -> str:
        """The whole of it in two or three sentences."""
        same, rows = self.number(Sign.SAME), sum(map(self.number, (Sign.SAME, Sign.DIFFERS, Sign.MISSING)))
        placed = f" that {self.target} has a place for" if self.no_place else ""
        begun = (
            f"All {_number(rows)} rows of {self.source}{placed} are on {self.target}."
            if self.equal
            else f"{_number(same)} of {_number(rows)} rows of {self.source}{placed} are on {self.target} as they should be."
        )
        wrong = (
            (Sign.DIFFERS, "differ"),
            (Sign.MISSING, "missing"),
            (Sign.EXTRA, "extra"),
            (Sign.UNREADABLE, "unreadable"),
        )
        counted = ", ".join(f"{_number(self.number(sign))} {said}" for sign, said in wrong)
        whole = sum(number for what, number in self.archived.items() if what in self.no_place)
        values = {
            "were folded into texts": sum(self.folded.values()),
            "are in fields made for them": sum(self.in_fields.values()),
            "are in the archive": sum(self.archived.values()) - whole,
            "were dropped": sum(self.dropped.values()),
        }
        lost = [f"{_number(number)} values {said}" for said, number in values.items() if number]
        if self.no_place:
            kept = f" and {_number(whole)} of them are in the archive" if whole else ""
            lost.append(f"{_number(sum(self.no_place.values()))} rows have no place there{kept}")
        if self.before:
            lost.append(f"{_number(sum(self.before.values()))} rows were there before")
        told = ", ".join(lost)
        return f"{begun} {counted}." + (f" {told[0].upper()}{told[1:]}." if told else "")

    def as_tree(self) -> dict[str, Any]:
        """For JSON."""
        kinds = {kind: {sign.name.lower(): counts.get(sign, 0) for sign in Sign} for kind, counts in self.kinds.items()}
        told = {
            name: dict(getattr(self, name))
            for name in ("no_place", "dropped", "folded", "in_fields", "archived", "restamped", "before")
        }
        return {
            "equal": self.equal,
            "sentence": self.sentence,
            "source": self.source,
            "target": self.target,
            "kinds": kinds,
            **told,
        }


# What the target dates and signs itself when a row is changed, and a link is a change.
STAMPS: Final = frozenset({"updated_at", "updated_by"})
# No CRM fills these by itself: where the source has none, there is to be none.
OURS: Final = (
    *("name", "text", "phones", "emails", "target", "company", "contacts"),
    *("position", "price", "tags", "fields", "done", "result", "params"),
)
# Except what a person must be able to click on.
_FILLED_IN: Final = frozenset({"name"})
LINKS: Final = frozenset({"company", "contacts", "target"})
OWN: Final = tuple(name for name in OURS if name not in LINKS)
# What tells a row from another when the rest is different.
TELLING: Final = frozenset({"name", "text", "phones", "emails", "created_at", "due", *LINKS})


async def check(
    source: Client,
    target: Client,
    plan: Plan | None = None,
    *,
    pairs: Pairs | None = None,
    each: Callable[[Finding], None] = lambda finding: None,
    source_row: Callable[[Any], None] = lambda row: None,
    paired: Callable[[str, Id, Id], None] = lambda kind, source, target: None,
    told: Told = silent,
    words: Words | None = None,
    before: Callable[[str, Id], bool] = lambda kind, target: False,
    clock: Clock = SYSTEM_CLOCK,
) -> Verdict:
    """Read both sides whole, side by side, and compare; ``each`` is told of every row, with its sign.

    Without a plan, users, stages and fields are matched as a new plan would match them. ``source_row`` is given each row
    of the source as it is read, and each company that is but a word on contacts as a row. ``paired`` is told of each pair,
    by kind and both ids, that a mark or a guess has made and that ``pairs`` do not have. ``words`` are better ones than the
    plan's. ``before`` knows the rows of the target, by kind and id, that were there before anything was moved. Memory
    stays the same however many rows there are. Raises Misconfigured for a plan of other accounts.
    """
    if plan is None:
        plan = await draft(source, target, clock=clock)
    elif wrong := [*plan.of_others(source, target), *plan.impossible(target.dialect)]:
        raise Misconfigured("; ".join(wrong))
    made = plan.made_fields(await vocabulary(target, Field)) if plan.fields_to_make() else {}
    with Seen() as seen:
        spoken = plan.words(made) if words is None else words
        comparison = Comparison(source, target, plan, spoken, seen, each, source_row, paired, before)
        await side_by_side(comparison.read_source(told), comparison.read_target(told))
        return comparison.verdict(pairs or {})


async def side_by_side(*doing: Coroutine[Any, Any, None]) -> None:
    """Side by side; where one fails the other is not left behind."""
    tasks = [asyncio.ensure_future(each) for each in doing]
    try:
        await asyncio.gather(*tasks)
    finally:
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


# What agrees, the lowest ids first, as often as it is there on both sides.
_NUMBERED: Final = "SELECT clue, id, row_number() OVER (PARTITION BY clue ORDER BY id) AS n FROM clue WHERE side ="
_AGREEING: Final = f"SELECT s.id, t.id FROM ({_NUMBERED} 'source') s JOIN ({_NUMBERED} 'target') t USING (clue, n)"  # noqa: S608  our own


@frozen
class _Stored:
    """A row as it is kept on disk: what it says, in a form that can be compared, and which fields are not to be."""

    id: Id
    name: str | None
    content: dict[str, Any]
    skip: frozenset[str]
    partner: Id | None


def _stored(row: Any) -> _Stored:
    _, _, id, name, content, skip, _, partner = row
    return _Stored(id, name, json.loads(content), frozenset(json.loads(skip)), partner)


def _sides(source: Id, target: Id) -> tuple[tuple[str, Id], ...]:
    return ("source", source), ("target", target)


@define
class Comparison:
    """Two accounts held against each other: each side is read when it suits, and then comes the verdict."""

    source: Client
    target: Client
    plan: Plan
    words: Words
    seen: Seen
    each: Callable[[Finding], None] = lambda finding: None
    source_row: Callable[[Any], None] = lambda row: None
    paired: Callable[[str, Id, Id], None] = lambda kind, source, target: None
    before: Callable[[str, Id], bool] = lambda kind, target: False
    kinds: dict[str, Counter[Sign]] = field(factory=dict[str, Counter[Sign]])
    no_place: Counter[str] = field(factory=Counter[str])
    lost: Counter[tuple[str, str]] = field(factory=Counter[tuple[str, str]])
    restamped: Counter[str] = field(factory=Counter[str])
    were_there: Counter[str] = field(factory=Counter[str])
    known: dict[str, frozenset[str]] = field(factory=dict[str, frozenset[str]])
    translate: Translation = field(init=False)
    read: list[str] = field(init=False)
    named: bool = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.translate = Translation(self.source.dialect, self.target.dialect, self.words, self.seen)
        self.read = [kind for kind, entity in MOVED.items() if self.source.can(entity, Verb.LIST)]
        self.named = "companies" not in self.read and self.target.can(Company, Verb.CREATE)
        both = (Verb.CREATE, Verb.LIST)
        there = [kind for kind in self.read if all(self.target.can(MOVED[kind], verb) for verb in both)]
        # Notes into which something is folded are there even where the source has none.
        folding = "fold" in self.words.choices.values() and all(self.target.can(Note, verb) for verb in both)
        there += [*(["companies"] if self.named else []), *(["notes"] if folding else [])]
        self.kinds = {kind: Counter() for kind in dict.fromkeys(there)}
        self.db.execute(
            "CREATE TABLE row (side, kind, id, name, content, skip, lost, partner, PRIMARY KEY (side, kind, id)) "
            "WITHOUT ROWID"
        )
        self.db.execute("CREATE TABLE clue (side, clue, id)")
        # Origins that rows of the target were marked with, and what they are of where an origin does not hold an id.
        self.db.execute("CREATE TABLE mark (kind, origin, id, PRIMARY KEY (kind, id, origin)) WITHOUT ROWID")
        self.db.execute("CREATE TABLE alias (origin PRIMARY KEY, id) WITHOUT ROWID")
        # What hangs on a row, as one number: it tells rows from each other that say the same.
        self.db.execute("CREATE TABLE brood (side, kind, id, sum, PRIMARY KEY (side, kind, id)) WITHOUT ROWID")

    @property
    def db(self) -> sqlite3.Connection:
        return self.seen.db

    # ------------------------------------------------------------------------------------------------------ reading

    async def read_source(self, told: Told) -> None:
        """Every row as it has to stand in the target."""
        async with aclosing(self._walk("source", self.source, self.read, told)) as rows:
            async for kind, row in rows:
                self.source_row(row)
                if kind not in self.kinds:
                    self.seen.add(kind, row.id, getattr(row, "name", None) or "", made=False)
                    self.no_place[kind] += 1
                    continue
                if self.named and isinstance(row, Contact):
                    self._company_named(row)
                self._expect(kind, row)
                for note in self.translate.besides(row):
                    self.source_row(note)
                    self._expect("notes", note)

    async def _walk(
        self, side: str, crm: Client, kinds: Iterable[str], told: Told
    ) -> AsyncGenerator[tuple[str, Any], None]:
        numbers: Counter[str] = Counter()
        walk = crm.together(*(MOVED[kind] for kind in kinds), on_bad=self._unreadable(side))
        async with aclosing(walk.pages()) as pages:
            async for page in pages:
                for row in page:
                    kind = kind_of(row)
                    numbers[kind] += 1
                    if numbers[kind] % 50 == 0:
                        told(side, kind, numbers[kind])
                    if numbers[kind] % 8 == 0:
                        await asyncio.sleep(0)  # a page is a quarter of a second's work, and others have turns to take
                    yield kind, row

    def _company_named(self, contact: Contact) -> None:
        """A company that is but a word on contacts becomes a row in the target."""
        key, name = company_key(contact.company), named_company(contact.company)
        if key is not None and self.seen.add("companies", key, name):
            company = Company(id=key, name=name)
            self.source_row(company)
            self._expect("companies", company)

    def _expect(self, kind: str, row: Any) -> None:
        there = self.translate(row)
        if there.left_out is not None:
            self.no_place[f"{row.KIND} that {there.left_out}"] += 1
            return
        whole = there.whole
        self.seen.add(kind, row.id, getattr(row, "name", None) or "", getattr(whole, "company", None))
        lost = [what for what, _ in there.losses()]
        self._put("source", kind, row.id, whole, {*there.invented, *row.unread}, lost)

    async def read_target(self, told: Told) -> None:
        """Every row as it stands there."""
        kinds = [kind for kind in KINDS if kind in self.kinds]
        async with aclosing(self._walk("target", self.target, kinds, told)) as rows:
            async for kind, row in rows:
                plain, origins = unmarked(row)
                self._put("target", kind, row.id, plain, row.unread)
                marks = ((kind, each, row.id) for each in origins)
                self.db.executemany("INSERT OR IGNORE INTO mark VALUES (?, ?, ?)", marks)

    def _unreadable(self, side: str) -> Callable[[type[Any], Unreadable], None]:
        def bad(entity: type[Any], wrong: Unreadable) -> None:
            kind = kind_of(entity)
            if kind not in self.kinds:
                self.no_place[kind] += 1  # whatever it says
                return
            id = mapping(wrong.raw).get("id")
            ids: dict[str, Any] = {side: id if isinstance(id, int | str) else None}
            self._found(Finding(kind=kind, sign=Sign.UNREADABLE, said=str(wrong), **ids))

        return bad

    # ------------------------------------------------------------------------------------------------------ on disk

    def _put(
        self, side: str, kind: str, id: Id, row: Any, skip: Iterable[str], lost: Sequence[str] | None = None
    ) -> None:
        said = content(self.target.dialect, row, self._compared(kind) if side == "target" else None)
        name = sayable(getattr(row, "name", None) or getattr(row, "text", None))
        told = (side, kind, id, name, json.dumps(said), json.dumps(sorted(skip)), json.dumps(lost) if lost else None)
        # A row that comes twice while the account is in use is the one that came first.
        if not self.db.execute("INSERT OR IGNORE INTO row VALUES (?, ?, ?, ?, ?, ?, ?, NULL)", told).rowcount:
            return
        if side == "source" and not (origin := mark(self.plan.source.origin, row.KIND, id)).endswith(f":{id}"):
            self.db.execute("INSERT OR IGNORE INTO alias VALUES (?, ?)", (origin, id))
        own = int.from_bytes(clue(said, OWN)[:6])
        sql = "INSERT INTO brood VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET sum = (sum + excluded.sum) & 0xFFFFFFFFFFFF"
        self.db.executemany(sql, ((side, *above, own) for above in _above(said)))

    def _compared(self, kind: str) -> frozenset[str]:
        if kind not in self.known:
            self.known[kind] = compared(self.target.dialect, kind)
        return self.known[kind]

    def _marked(self, kind: str) -> None:
        """Pair what is left and says where it came from, the lowest id first where several came from one."""
        begin = f"{self.plan.source.origin}{MOVED[kind].KIND}:"
        for origin, target in self.db.execute("SELECT origin, id FROM mark WHERE kind = ? ORDER BY id", (kind,)):
            if not origin.startswith(begin):
                continue
            text = origin.removeprefix(begin)
            known = self.db.execute("SELECT id FROM alias WHERE origin = ?", (origin,)).fetchone()
            ids: list[Id] = (
                [known[0]] if known else [int(text), text] if text.isascii() and text.isdecimal() else [text]
            )
            any(self._pair(kind, id, target, tell=True) for id in ids)

    def _pair(self, kind: str, source: Id, target: Id, *, tell: bool = False) -> bool:
        """Make two rows one, if both are there and neither has another partner; whether they are."""
        free = "SELECT 1 FROM row WHERE side = ? AND kind = ? AND id = ? AND partner IS NULL"
        if not all(self.db.execute(free, (side, kind, id)).fetchone() for side, id in _sides(source, target)):
            return False
        self._partners(kind, source, target, tell=tell)
        return True

    def _partners(self, kind: str, source: Id, target: Id, *, tell: bool) -> None:
        sql = "UPDATE row SET partner = ? WHERE side = ? AND kind = ? AND id = ?"
        self.db.execute(sql, (target, "source", kind, source))
        self.db.execute(sql, (source, "target", kind, target))
        if tell:
            self.paired(kind, source, target)

    def _rows(self, side: str, kind: str, *, paired: bool) -> Iterator[_Stored]:
        """Rows with what they are tied to as the target knows it, by their ids."""
        sql = "SELECT * FROM row WHERE side = ? AND kind = ? AND (partner IS NOT NULL) = ? ORDER BY id"
        for row in self.db.execute(sql, (side, kind, paired)):
            stored = _stored(row)
            yield evolve(stored, content=self._there(stored.content)) if side == "source" else stored

    def _there(self, content: dict[str, Any]) -> dict[str, Any]:
        """What a row of the source is tied to, as the target knows it."""

        def there(part: list[Any]) -> list[Any]:
            kind, id, *rest = part
            of = kind_at(Ref(Kind(kind), id))
            if id is None or of is None:
                return part
            found = self.db.execute("SELECT partner FROM row WHERE side = 'source' AND kind = ? AND id = ?", (of, id))
            partner = found.fetchone()
            return (
                [kind, partner[0], *rest] if partner and partner[0] is not None else [kind, None, f"no partner of {id}"]
            )

        changed: dict[str, Any] = {}
        for name in LINKS & content.keys():
            part = content[name]
            changed[name] = sorted(map(there, part), key=json.dumps) if name == "contacts" else there(part)
        return content | changed

    # ------------------------------------------------------------------------------------------------------- pairing

    def verdict(self, pairs: Pairs) -> Verdict:
        """Pair and compare, parents before children: by what they hang on, children are known."""
        for kind in KINDS:
            if kind not in self.kinds:
                continue
            if kind in pairs:
                given = pairs[kind]
                known = cast("Iterable[tuple[Id, Id]]", given.items() if isinstance(given, Mapping) else given)
                for source, target in known:
                    self._pair(kind, source, target)
            self._marked(kind)
            if kind not in pairs:
                self._guess(kind)
            self._compare(kind)
        self._count_lost()
        by = {way: {what: n for (what, chosen), n in self.lost.items() if chosen == way} for way in CHOICES}
        return Verdict(
            source=_place(self.source),
            target=_place(self.target),
            kinds=self.kinds,
            no_place=dict(self.no_place),
            dropped=by["drop"],
            folded=by["fold"],
            in_fields=by["field"],
            archived=by["archive"]
            | {what: number for what, number in self.no_place.items() if self.translate.choice(what) == "archive"},
            restamped=dict(self.restamped),
            before=dict(self.were_there),
        )

    def _guess(self, kind: str) -> None:
        """Rows that say the same are one: all they say at first, and then less and less of it."""
        compared = self._compared(kind) - STAMPS - untold(kind)
        ours = tuple(name for name in OURS if name in compared)
        dated = tuple(name for name in ("created_at", "due", "pipeline", "stage") if name in compared)
        self._match(kind, tuple(sorted(compared)), brood=True)
        self._match(kind, (*ours, *dated), brood=True)
        self._match(kind, ours, brood=True)
        self._match(kind, tuple(sorted(compared)))
        for more in (dated, *((name,) for name in dated), ()):
            self._match(kind, (*ours, *more))
        for but in reversed(ours):
            self._match(kind, tuple(name for name in (*ours, *dated) if name != but), told=2)
            self._match(kind, tuple(name for name in ours if name != but), told=2)
        called = tuple(name for name in ("name", "text") if name in ours)
        reached = tuple(name for name in ("phones", "emails") if name in ours)
        tied = tuple(name for name in ours if name in LINKS)
        for names in ((*called, *reached), (*called, *tied), called, reached, (*tied, *dated[:1])):
            self._match(kind, names, told=2 if names and names[0] in LINKS else 1)

    def _match(self, kind: str, names: Sequence[str], told: int = 0, brood: bool = False) -> None:
        """Pair what is left and agrees in these fields, as multisets; ``told`` of them at least have to say something.

        ``brood``: what hangs on them has to agree too.
        """
        left = "SELECT count(*) FROM row WHERE side = ? AND kind = ? AND partner IS NULL"
        if not names or not all(self.db.execute(left, (side, kind)).fetchone()[0] for side in ("source", "target")):
            return
        self.db.execute("DELETE FROM clue")
        for side in ("source", "target"):
            rows = self._rows(side, kind, paired=False)
            clues = (
                (side, clue(row.content, names) + (self._brood(side, kind, row.id) if brood else b""), row.id)
                for row in rows
                if _tells(row.content, names, told)
            )
            self.db.executemany("INSERT INTO clue VALUES (?, ?, ?)", clues)
        for source, target in self.db.execute(_AGREEING):
            self._partners(kind, source, target, tell=True)

    def _brood(self, side: str, kind: str, id: Id) -> bytes:
        sql = "SELECT sum FROM brood WHERE side = ? AND kind = ? AND id = ?"
        found = self.db.execute(sql, (side, kind, id)).fetchone()
        return b"" if found is None else int(found[0]).to_bytes(6)

    # ----------------------------------------------------------------------------------------------------- comparing

    def _compare(self, kind: str) -> None:
        listed = self.source.can(MOVED[kind], Verb.LIST)
        told = self.source.dialect.resource(MOVED[kind]).survivors(Verb.LIST) if listed else frozenset({"name"})
        compared, emptied = self._compared(kind), (told & {*OURS}) - _FILLED_IN
        one = "SELECT * FROM row WHERE side = 'target' AND kind = ? AND id = ?"
        for row in self._rows("source", kind, paired=True):
            there = _stored(self.db.execute(one, (kind, row.partner)).fetchone())
            asked = (compared & row.content.keys()) | (emptied & there.content.keys())
            wrong = {name for name in asked - row.skip - there.skip if row.content.get(name) != there.content.get(name)}
            self.restamped.update(f"{MOVED[kind].KIND}.{name}" for name in wrong & STAMPS)
            fields = tuple(sorted(wrong - STAMPS))
            finding = Finding(kind=kind, sign=Sign.SAME, source=row.id, target=there.id, name=row.name)
            if fields:
                marked = self.db.execute("SELECT 1 FROM mark WHERE kind = ? AND id = ?", (kind, there.id)).fetchone()
                says = own(self.target.dialect, kind, there.content)
                finding = evolve(finding, sign=Sign.DIFFERS, fields=fields, marked=marked is not None, there=says)
            self._found(finding)
        for row in self._rows("source", kind, paired=False):
            self._found(Finding(kind=kind, sign=Sign.MISSING, source=row.id, name=row.name))
        for row in self._rows("target", kind, paired=False):
            if self.before(kind, row.id):
                self.were_there[kind] += 1
            else:
                self._found(Finding(kind=kind, sign=Sign.EXTRA, target=row.id, name=row.name))

    def _count_lost(self) -> None:
        """What of the rows that are there did not come with them: of those that are not, all is missing."""
        sql = "SELECT lost, count(*) FROM row WHERE partner IS NOT NULL AND lost IS NOT NULL GROUP BY lost"
        for lost, rows in self.db.execute(sql):
            for what in json.loads(lost):
                self.lost[what, self.translate.choice(what)] += rows

    def _found(self, finding: Finding) -> None:
        self.kinds[finding.kind][finding.sign] += 1
        self.each(finding)


def _number(of: int) -> str:
    return f"{of:,}".replace(",", " ")


def _place(crm: Client) -> str:
    return crm.base_url.partition("://")[2].partition("/")[0]


def compared(target: Dialect, kind: str) -> frozenset[str]:
    """Fields of a kind that the target reads back, and that it can have been given."""
    resource = target.resource(MOVED[kind])
    written = resource.survivors(Verb.CREATE) | resource.survivors(Verb.COMPLETE)
    return resource.survivors(Verb.LIST) & written


def content(target: Dialect, row: Any, names: frozenset[str] | None = None) -> dict[str, Any]:
    """What a row says, or says of these fields, in a form that can be compared and kept as JSON."""
    rows_there, told = target.can(Company, Verb.CREATE), filled(row) - untold(kind_of(row))
    return {
        name: comparable(getattr(row, name), rows_there) for name in sorted(told if names is None else told & names)
    }


def own(target: Dialect, kind: str, content: Mapping[str, Any]) -> str:
    """A digest of what a row says and no CRM fills in by itself (``content``): ties apart, which come later."""
    written = compared(target, kind)
    said = {name: even(content[name]) for name in OWN if name in written and name in content}
    return clue(said, [name for name in OWN if name in written]).hex()


def even(part: Any) -> Any:
    """A content without the blanks that a server trims or joins."""
    if isinstance(part, str):
        return " ".join(part.split())
    if isinstance(part, list):
        return [even(each) for each in cast("list[Any]", part)]
    return part


@cache
def untold(kind: str) -> frozenset[str]:
    """What the other end of a tie tells too, what goes with the stage, and what nobody writes."""
    return frozenset({*MIRRORED.get(kind, ()), "outcome", "deleted"})


def _above(content: Mapping[str, Any]) -> Iterator[tuple[str, Id]]:
    """What a row is tied to, of what moves."""
    for name in LINKS & content.keys():
        for kind, id, *_ in content[name] if name == "contacts" else [content[name]]:
            of = kind_at(Ref(Kind(kind), id))
            if of is not None and id is not None:
                yield of, id


def clue(content: Mapping[str, Any], names: Sequence[str]) -> bytes:
    """A digest of what a row says of these fields (``content``): equal where it says the same."""
    told = [content.get(name) for name in names]
    return hashlib.blake2b(json.dumps(told).encode(), digest_size=16).digest()


def _tells(content: Mapping[str, Any], names: Sequence[str], number: int) -> bool:
    return sum(name in content for name in names if name in TELLING) >= number


def comparable(part: Any, rows_there: bool) -> Any:
    """A content as JSON that is equal where it says the same: in any order, and whatever a number's form is."""
    if part is None or isinstance(part, str | int):
        return part
    if isinstance(part, tuple):
        parts = [comparable(each, rows_there) for each in cast("tuple[Any, ...]", part)]
        return parts if len(parts) < 2 else sorted(parts, key=json.dumps)
    if isinstance(part, Link):
        if part.ref.kind is Kind.COMPANY:
            # Where companies are no rows, it is the name that counts.
            return [part.ref.kind, part.ref.id] if rows_there else [part.ref.kind, None, named_company(part)]
        return [part.ref.kind, part.ref.id, part.main]
    if isinstance(part, Ref):
        return [part.kind, part.id]
    if isinstance(part, Tag):
        return part.name
    if isinstance(part, FieldValue):
        known = part.field.id if part.field is not None else part.code
        return [known, [comparable(each, rows_there) for each in part.values]]
    if isinstance(part, Decimal):
        return f"{part.normalize():f}"
    if isinstance(part, datetime):
        return part.astimezone(UTC).isoformat()
    kind = cast(Any, type(part))
    if has(kind):
        return {name: comparable(getattr(part, name), rows_there) for name in fields_dict(kind)}
    return to_tree(part)
