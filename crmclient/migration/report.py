"""What a move has come to, told from its ledger alone: as JSON, and as one page that whoever ordered the move can read.

It may be asked while the move goes on: all it tells is of one moment. However many rows there are, memory stays the same.
"""

import html
import json
import os
import re
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final

from attrs import asdict, frozen

from crmclient.entities import Id
from crmclient.errors import Misconfigured
from crmclient.migration.ledger import ADOPTED, Batch, Item, Ledger, LedgerFailed, Run, State
from crmclient.migration.losses import What
from crmclient.migration.matching import KINDS
from crmclient.migration.plan import Plan, Side, from_toml
from crmclient.serial import to_tree
from crmclient.tokens import FILES, Files

# More rows of a section than this are not for reading.
MOST: Final = 1000
_LONGEST: Final = 300
# Whose error this is hangs on a row that was refused: "its contact 7 was rejected".
_HUNG: Final = re.compile(r"its (\w+) (.+) was rejected", re.DOTALL)
# A ledger notes the class of what stopped it before what that says.
_CLASS: Final = re.compile(r"\A\w+: ")
# What became of rows, for people.
SAID: Final[Mapping[State, str]] = {
    State.PENDING: "waiting",
    State.INTENT: "sent",
    State.MADE: "unfinished",
    State.DONE: "moved",
    State.REJECTED: "refused",
    State.SKIPPED: "left out",
    State.FOLDED: "folded",
    State.DOUBT: "in doubt",
}
# How a move stands by which nobody works; in all other states it was stopped.
_STANDING: Final = {
    "running": ("killed", "no process works by it: the same command as before goes on"),
    ADOPTED: ("adopted", "not gone on with yet"),
}
_STOPPED: Final = ("stopped", "the same command as before goes on")
# Words that accounts have; whatever else the ledger has noted down is for itself.
_FOUND_OR_MADE: Final = {"marker": "fields", "field": "fields", "me": "users"}


@frozen(kw_only=True)
class Kept:
    """A value for which the target has no place, with the row that it is of, on both sides."""

    kind: str
    source: Id
    target: Id | None
    name: str | None
    what: str
    value: Any


@frozen(kw_only=True)
class Word:
    """A word of the source (a user, a stage, a field) and its like in the target, by the plan or made on the way."""

    kind: str
    source: Id | None
    target: Id | None
    name: str | None = None
    how: str | None = None
    rows: int | None = None


class Report:
    """The ledger at this path, as it is at this moment; it is only read, and another process may write it meanwhile.

    Raises Misconfigured where there is no ledger, LedgerFailed where it cannot be read.
    """

    def __init__(self, path: str | Path, *, files: Files = FILES) -> None:
        self.path, self._files = Path(path), files

    def __enter__(self) -> "Report":
        self._ledger = Ledger.read(self.path)
        self.db = self._ledger.db
        try:
            # One moment for all that is asked: what is written from now on is not seen.
            self.db.execute("BEGIN")
            self.run = self._ledger.run()
            self.counts = _in_order(self._ledger.counts())
        except BaseException as wrong:
            self.__exit__(type(wrong), wrong)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, wrong: BaseException | None, *traceback: object) -> None:
        self._ledger.close()
        if isinstance(wrong, sqlite3.DatabaseError):
            raise LedgerFailed(f"the ledger {self.path} cannot be read: {wrong}") from wrong

    # ----------------------------------------------------------------------------------------------------- what it is

    def begun(self) -> Run:
        """The move. Raises Misconfigured where none has begun."""
        if self.run is None:
            raise Misconfigured(f"no move has begun by the ledger {self.path}")
        return self.run

    def holder(self) -> str | None:
        """Which process works by it now, if one does."""
        try:
            handle = self._files.open(self.path.with_name(self.path.name + ".lock"), os.O_RDWR)
        except FileNotFoundError:
            return None
        try:
            if self._files.lock(handle):
                return None
            return self._files.read(handle, 200).decode(errors="replace").strip() or "another process"
        finally:
            self._files.close(handle)

    @property
    def standing(self) -> tuple[str, str, str]:
        """How it stands in a word, more of that, and what stopped it, which may be empty."""
        run = self.begun()
        if run.ended_at is not None:
            return "ended", on_the_second(run.ended_at), ""
        if (holder := self.holder()) is not None:
            return "running", holder, ""
        state, _, why = run.state.partition(": ")
        return *_STANDING.get(state, _STOPPED), _CLASS.sub("", why)

    @property
    def plan(self) -> Plan | None:
        """By which plan, if that can be read: a ledger outlives the layout of plans, and tells what it can without."""
        try:
            return from_toml(self.run.plan) if self.run is not None and self.run.plan else None
        except Misconfigured:
            return None

    def number(self, *states: State) -> int:
        """Rows of all kinds in these states, or all."""
        return sum(counts[state] for counts in self.counts.values() for state in states or State)

    @property
    def verdict(self) -> Mapping[str, Any] | None:
        """What verifying found, if it has come to that (``Verdict.as_tree``)."""
        return json.loads(self.run.verdict) if self.run is not None and self.run.verdict else None

    @property
    def sentences(self) -> str:
        """The whole of it in a few sentences."""
        run, there = self.begun(), self.number(State.DONE, State.MADE)
        told = [
            self.verdict["sentence"]
            if self.verdict is not None and run.ended_at is not None
            else f"The move has not ended: {_number(there)} of {_number(self.number())} rows read so far are in the target."
        ]
        for state, singular, plural in (
            (State.REJECTED, "row was refused", "rows were refused"),
            (State.DOUBT, "row is in doubt", "rows are in doubt"),
        ):
            if number := self.number(state):
                told.append(f"{_number(number)} {singular if number == 1 else plural}.")
        return " ".join(told)

    # ---------------------------------------------------------------------------------------------------- row by row

    def items(self, *states: State) -> Iterator[Item]:
        """Rows in these states, or all: kind by kind, by the source's ids."""
        wanted = [str(state) for state in states or State]
        marks = ", ".join("?" for _ in wanted)
        sql = f"SELECT {_ITEM} FROM item WHERE kind = ? AND state IN ({marks}) ORDER BY src"  # noqa: S608  marks alone
        for kind in self.counts:
            yield from map(_item, self.db.execute(sql, (kind, *wanted)))

    def refused(self) -> Iterator[tuple[int, Item]]:
        """Refused rows, each followed by those that hung on it; with how deep each hangs: 0 was refused itself."""
        if not self.number(State.REJECTED):
            return
        # SQLite's own temporary file: it stays in memory while it is small.
        kept = sqlite3.connect("", isolation_level=None)
        try:
            kept.execute("CREATE TABLE refused (id INTEGER PRIMARY KEY, key TEXT, above TEXT, item TEXT)")
            kept.execute("BEGIN")
            kept.executemany(
                "INSERT INTO refused (key, above, item) VALUES (?, ?, ?)",
                ((_key(each.kind, each.source), _above(each), _packed(each)) for each in self.items(State.REJECTED)),
            )
            kept.execute("CREATE INDEX by_key ON refused (key)")
            kept.execute("CREATE INDEX by_above ON refused (above)")
            roots = (
                "SELECT key, item FROM refused AS r WHERE above IS NULL "
                "OR NOT EXISTS (SELECT 1 FROM refused WHERE key = r.above) ORDER BY id"
            )
            under = "SELECT key, item FROM refused WHERE above = ? ORDER BY id"
            open_lists = [kept.execute(roots)]
            while open_lists:
                found = open_lists[-1].fetchone()
                if found is None:
                    open_lists.pop()
                    continue
                key, item = found
                yield len(open_lists) - 1, _item(json.loads(item))
                open_lists.append(kept.execute(under, (key,)))
        finally:
            kept.close()

    def kept(self) -> Iterator[Kept]:
        """Values for which the target has no place and that the plan said to keep."""
        sql = (
            "SELECT kept.kind, kept.src, item.tgt, item.name, kept.what, kept.value FROM kept "
            "LEFT JOIN item ON item.kind = kept.kind AND item.src = kept.src ORDER BY kept.kind, kept.src, kept.what"
        )
        for kind, source, target, name, what, value in self.db.execute(sql):
            yield Kept(kind=kind, source=source, target=target, name=name, what=what, value=json.loads(value))

    @property
    def remarks(self) -> int:
        """How many rows ``remarked`` gives."""
        sql = "SELECT count(*) FROM item WHERE state = 'done' AND error IS NOT NULL AND error != ?"
        return self.db.execute(sql, (ADOPTED,)).fetchone()[0]

    def remarked(self) -> Iterator[Item]:
        """Rows that moved, and of which there is something to say: what they go without, what was not finished."""
        for each in self.items(State.DONE):
            if each.error not in (None, ADOPTED):
                yield each

    def words(self) -> Iterator[Word]:
        """Words that rows are of, by the plan, then those that were found or made on the way."""
        plan = self.plan
        for kind in ("users", "stages", "fields", "task_types") if plan is not None else ():
            for each in getattr(plan, kind):
                if each.rows:
                    yield _word(kind, each)
        for what, source, target, how in self.db.execute("SELECT kind, src, tgt, how FROM map"):
            if what in _FOUND_OR_MADE:
                yield Word(kind=_FOUND_OR_MADE[what], source=source, target=target, how=how)

    def open_batches(self) -> list[Batch]:
        """Requests of which nobody knows what became of them."""
        return self._ledger.open_batches()

    def violations(self) -> list[str]:
        """What of the ledger's invariants does not hold: nothing, ever."""
        return self._ledger.violations()

    # ---------------------------------------------------------------------------------------------------- for machines

    def summary(self) -> dict[str, Any]:
        """Everything but the rows."""
        run, plan = self.begun(), self.plan
        return {
            "run": run.id,
            "source": _side(run.source, plan.source if plan is not None else None),
            "target": _side(run.target, plan.target if plan is not None else None),
            "plan": run.plan_hash,
            "state": run.state,
            "started_at": run.started_at.isoformat(),
            "ended_at": run.ended_at.isoformat() if run.ended_at is not None else None,
            "sentence": self.sentences,
            "kinds": counts_tree(self.counts),
            "losses": to_tree(plan.losses) if plan is not None else None,
            "verdict": self.verdict,
        }

    def json(self, *, every: bool = False, dumps: Callable[[Any], str] = json.dumps) -> Iterator[str]:
        """One JSON object, piece by piece: the summary, then lists of rows; with ``every`` those that moved too."""
        yield dumps(self.summary())[:-1]
        trees = partial(map, partial(_tree, dumps=dumps))
        lists: dict[str, Iterable[str]] = {
            "mapped": (dumps(asdict(word)) for word in self.words()),
            "rejected": self._nested(dumps),
            "in_doubt": trees(self.items(State.DOUBT)),
            "skipped": trees(self.items(State.SKIPPED)),
            "folded": trees(self.items(State.FOLDED)),
            "remarked": trees(self.remarked()),
            "kept": (dumps(asdict(each)) for each in self.kept()),
            **({"rows": trees(self.items())} if every else {}),
        }
        for name, rows in lists.items():
            yield f", {dumps(name)}: ["
            # Of what is nested, a piece is a part of a row and brings its own commas.
            yield from rows if name == "rejected" else _parted(rows)
            yield "]"
        yield "}"

    def _nested(self, dumps: Callable[[Any], str]) -> Iterator[str]:
        before = -1
        for depth, item in self.refused():
            closed = "]}" * (before - depth + 1)
            yield f"{closed}{', ' if before >= depth else ''}{_tree(item, dumps=dumps)[:-1]}, {dumps('children')}: ["
            before = depth
        yield "]}" * (before + 1)

    # ------------------------------------------------------------------------------------------------------ for people

    def html(self, *, most: int = MOST) -> Iterator[str]:
        """One page that needs nothing else, piece by piece; of no section more than ``most`` rows."""
        run, plan = self.begun(), self.plan
        (word, _, why), title = self.standing, f"{_place(run.source)} → {_place(run.target)}"
        yield _HEAD.format(title=_shown(title), style=_STYLE)
        yield f"<h1>{_shown(title)}</h1>\n<p class=headline>{_shown(self.sentences)}</p>\n"
        facts = {
            "From": _called(run.source, plan.source if plan is not None else None),
            "To": _called(run.target, plan.target if plan is not None else None),
            "Began": _when(run.started_at),
            "Ended": _when(run.ended_at),
            "State": ": ".join(filter(None, (word, why))),
            "Plan": run.plan_hash,
            "Run": run.id,
        }
        told = "".join(f"<dt>{name}</dt><dd>{_shown(said)}</dd>" for name, said in facts.items())
        yield f"<dl>{told}</dl>\n"
        yield from self._by_kind()
        yield from self._verified()
        yield from self._sections(most, plan)
        yield "</main>\n</html>\n"

    def _by_kind(self) -> Iterator[str]:
        yield "<h2>Rows by kind</h2>\n"
        rows: list[tuple[str, list[int]]] = [
            (kind, [counts.total(), *(sum(counts[state] for state in states) for _, states in _COLUMNS)])
            for kind, counts in self.counts.items()
        ]
        totals = [sum(column) for column in zip(*(numbers for _, numbers in rows), strict=True)]
        yield from _numbers(("read", *(name for name, _ in _COLUMNS)), [*rows, ("all", totals)] if rows else [])

    def _verified(self) -> Iterator[str]:
        verdict = self.verdict
        if verdict is None:
            return
        kinds: Mapping[str, Mapping[str, int]] = verdict["kinds"]
        signs = list(dict.fromkeys(sign for counts in kinds.values() for sign in counts))
        heading = "Verified" if verdict["equal"] else "Compared"
        yield f"<h2>{heading}</h2>\n<p>Both accounts were read whole afterwards and compared row by row.</p>\n"
        yield from _numbers(signs, [(kind, [counts.get(sign, 0) for sign in signs]) for kind, counts in kinds.items()])
        if stamps := verdict.get("restamped"):
            yield "<h3>What the target dates and signs itself</h3>\n"
            yield from _numbers(("rows",), [(_named(what), [number]) for what, number in sorted(stamps.items())])

    def _losses(self, plan: Plan | None) -> list[tuple[str, int, str, str]]:
        """What does not arrive as it is, of how many rows, what is done with it and why: as both sides were compared, or
        else as the plan said.
        """
        verdict, planned = self.verdict, {each.what: each for each in (plan.losses if plan is not None else ())}
        counted = {what: (each.choice, each.rows) for what, each in planned.items() if verdict is None}
        for name, choice in _COUNTED.items():
            counted.update({what: (choice, rows) for what, rows in (verdict or {}).get(name, {}).items()})
        return [
            (_named(what), rows, _CHOICES[choice], _why(planned[what].why or "") if what in planned else "")
            for what, (choice, rows) in sorted(counted.items())
            if rows
        ]

    def _sections(self, most: int, plan: Plan | None) -> Iterator[str]:
        both, refused = ("id in the source", "id in the target"), self.number(State.REJECTED)
        yield from _section(
            "Refused",
            "The target would not take these. What hung on a refused row stands under it and was not sent.",
            ("kind", *both, "name", "because"),
            ((_indented(depth, each), *_ids(each), each.name, because(each)) for depth, each in self.refused()),
            most,
            refused,
        )
        yield from _section(
            "Moved, but",
            "These are in the target, and there is something to say of them.",
            ("kind", *both, "name", "what"),
            ((each.kind, *_ids(each), each.name, each.error) for each in self.remarked()),
            most,
            self.remarks,
        )
        losses, by = self._losses(plan), "the plan said beforehand" if self.verdict is None else "the comparison found"
        yield from _section(
            "Not as it was",
            f"What the target cannot hold as the source does, as {by}.",
            ("what", "rows", "what is done with it", "because"),
            losses,
            most,
            len(losses),
        )
        for title, about, state in _SECTIONS:
            yield from _section(
                title,
                about,
                ("kind", *both, "name", "" if state is State.DONE else "because"),
                ((each.kind, *_ids(each), each.name, each.error) for each in self.items(state)),
                most,
                self.number(state),
                folded_up=state is State.DONE,
            )
        archived = self.db.execute("SELECT count(*) FROM kept").fetchone()[0]
        yield from _section(
            "Archived",
            "The target has no place for these values. They are kept in the ledger.",
            ("kind", *both, "name", "what", "value"),
            ((each.kind, *_ids(each), each.name, _named(each.what), _said(each.value)) for each in self.kept()),
            most,
            archived,
        )
        words = sum(1 for _ in self.words())
        yield from _section(
            "Words",
            "Users, stages, fields and types of tasks that rows are of, and what each is in the target.",
            ("kind", *both, "name", "found by", "rows"),
            (
                (each.kind.replace("_", " "), each.source, each.target, each.name, each.how, each.rows)
                for each in self.words()
            ),
            most,
            words,
        )


# ------------------------------------------------------------------------------------------------------------ as trees

_ITEM: Final = "kind, src, state, tgt, attempts, name, error"


def _item(found: Iterable[Any]) -> Item:
    kind, source, state, target, attempts, name, error = found
    state = State(state)
    return Item(kind=kind, source=source, state=state, target=target, attempts=attempts, name=name, error=error)


def _packed(item: Item) -> str:
    return json.dumps((item.kind, item.source, item.state, item.target, item.attempts, item.name, item.error))


def _key(kind: str, source: object) -> str:
    return f"{kind} {source}"


def _above(item: Item) -> str | None:
    """The refused row that this one hung on. What hangs on something is of a later kind, so nobody hangs on himself."""
    found = _HUNG.fullmatch(item.error or "")
    if found is None:
        return None
    kind = found[1] if found[1] in KINDS else _PLURALS.get(found[1])
    if kind is None or item.kind not in KINDS or KINDS.index(kind) >= KINDS.index(item.kind):
        return None
    return _key(kind, found[2])


_PLURALS: Final = {"company": "companies", "contact": "contacts", "deal": "deals", "task": "tasks", "note": "notes"}


def because(item: Item) -> str | None:
    """Why a row became what it is, for people."""
    hung = _HUNG.fullmatch(item.error or "")
    return f"its {hung[1]} {hung[2]} was refused, so this was not sent" if hung is not None else item.error


def _tree(item: Item, *, dumps: Callable[[Any], str]) -> str:
    told = {
        "kind": item.kind,
        "source": item.source,
        "target": item.target,
        "state": str(item.state),
        "name": item.name,
        "error": item.error,
        "attempts": item.attempts,
    }
    return dumps(told)


def _word(kind: str, match: Any) -> Word:
    """A match of a plan; of a stage, a field and a user each side has its own names for its id."""
    source = match.stage if kind == "stages" else match.source if match.source is not None else match.code
    target = match.target_stage if kind == "stages" else match.target
    if target is None and kind == "fields":
        target = match.target_code
    return Word(kind=kind, source=source, target=target, name=match.name, how=match.how, rows=match.rows)


def _side(address: str, side: Side | None) -> dict[str, Any]:
    known = {} if side is None else {"dialect": side.dialect, "account": side.account, "name": side.name}
    return {"address": address, **known}


def _parted(pieces: Iterable[str]) -> Iterator[str]:
    for number, piece in enumerate(pieces):
        yield f"{', ' if number else ''}{piece}"


def counts_tree(counts: Mapping[str, Mapping[State, int]]) -> dict[str, dict[str, int]]:
    """Rows by kind and state, for JSON: all states, in their order."""
    return {kind: {str(state): told.get(state, 0) for state in State} for kind, told in counts.items()}


def _in_order(counts: Mapping[str, Counter[State]]) -> dict[str, Counter[State]]:
    named = sorted(counts, key=lambda kind: (KINDS.index(kind) if kind in KINDS else len(KINDS), kind))
    return {kind: counts[kind] for kind in named}


def _number(number: int) -> str:
    return f"{number:,}".replace(",", " ")


# ------------------------------------------------------------------------------------------------------------ as a page

_COLUMNS: Final = (
    ("moved", (State.DONE,)),
    ("folded", (State.FOLDED,)),
    ("left out", (State.SKIPPED,)),
    ("refused", (State.REJECTED,)),
    ("in doubt", (State.DOUBT,)),
    ("not done yet", (State.PENDING, State.INTENT, State.MADE)),
)
_SECTIONS: Final = (
    ("In doubt", "These are perhaps in the target, and cannot be told from others there. Look for them.", State.DOUBT),
    ("Left out", "The target has no place for these rows.", State.SKIPPED),
    ("Folded", "These have no row of their own in the target: they stay as words on others.", State.FOLDED),
    ("Moved", "These are in the target.", State.DONE),
)
# What a verdict counts, by what was chosen; rows without a place that are kept whole are in two of them.
_COUNTED: Final = {
    "no_place": "drop",
    "dropped": "drop",
    "folded": "fold",
    "in_fields": "field",
    "archived": "archive",
}
_CHOICES: Final = {
    "drop": "left out",
    "fold": "told in a text",
    "field": "put into a field made for it",
    "archive": "kept in the ledger",
}
# Fields whose own names do not say it.
_FIELDS: Final = {
    "owner": "who is responsible",
    "created_at": "when it was made",
    "created_by": "who made it",
    "updated_at": "when it was changed last",
    "updated_by": "who changed it last",
    "closed_at": "when it was closed",
    "contacts": "whom it is about",
    "target": "what it belongs to",
    "due": "by when",
    "done": "whether it is done",
    "result": "what came of it",
    "kind": "of which kind it is",
    "raw_kind": "of which kind it is",
    "params": "what it holds beside its text",
    "fields": "further fields",
}
_WHYS: Final = {
    r"not taken for new .+": "this cannot be set there",
    r"said in its text": "the text says it",
    r"not said in its text": "the text does not say it",
}
# Neither obeyed by a browser nor shown by it as it is: control characters, what turns the direction of text.
_UNSEEN: Final = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u200e\\u200f\\u202a-\\u202e\\u2066-\\u2069\\ud800-\\udfff]")
_STYLE: Final = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0; }
main { max-width: 68rem; margin: 0 auto; padding: 1.5rem; }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin: 2rem 0 .3rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
.headline { font-size: 1.1rem; border-left: .25rem solid #888; padding-left: .8rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; } dt { opacity: .7; } dd { margin: 0; }
table { border-collapse: collapse; } th { text-align: left; font-weight: 600; }
th, td { padding: .2rem .8rem .2rem 0; border-bottom: 1px solid #8884; vertical-align: top; overflow-wrap: anywhere; }
.n { text-align: right; font-variant-numeric: tabular-nums; } summary { cursor: pointer; }
summary h2 { display: inline-block; } .cut { font-style: italic; }
"""
_HEAD: Final = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>{style}</style>
<main>
"""


def _shown(said: object) -> str:
    """What comes from outside, as text of a page and nothing else."""
    text = "" if said is None else str(said)
    cut = f"{text[:_LONGEST]}…" if len(text) > _LONGEST else text
    return html.escape(_UNSEEN.sub(lambda found: " " if found[0] in "\t\r\n" else "\ufffd", cut))


def _named(what: str) -> str:
    """``contact.updated_by`` in plain words; rows as a whole are said plainly already."""
    told = What(what)
    if told.kind is None:
        return what
    called = f"“{told.custom}”" if told.custom is not None else _FIELDS.get(told.name, told.label)
    return f"{told.kind.replace('_', ' ')}: {called}"


def _why(whys: str) -> str:
    """A plan joins its reasons."""
    told = (next((said for each, said in _WHYS.items() if re.fullmatch(each, why)), why) for why in whys.split("; "))
    return "; ".join(told)


def _said(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _place(address: str) -> str:
    return address.partition("://")[2] or address


def _called(address: str, side: Side | None) -> str:
    return f"{address} ({side.name})" if side is not None and side.name else address


def on_the_second(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} {moment.tzname() or ''}".strip()


def _when(moment: datetime | None) -> str:
    return "not yet" if moment is None else f"{moment:%Y-%m-%d %H:%M} {moment.tzname() or ''}".strip()


def _ids(each: Item | Kept) -> tuple[Id, Id | None]:
    return each.source, each.target


def _indented(depth: int, item: Item) -> str:
    return "\u2003" * depth + ("└ " if depth else "") + item.kind


def _numbers(columns: Iterable[str], rows: Iterable[tuple[str, Iterable[int]]]) -> Iterator[str]:
    heads = "".join(f"<th class=n>{_shown(column)}</th>" for column in columns)
    yield f"<table>\n<tr><th></th>{heads}</tr>\n"
    for name, numbers in rows:
        cells = "".join(f"<td class=n>{_number(number)}</td>" for number in numbers)
        yield f"<tr><td>{_shown(name)}</td>{cells}</tr>\n"
    yield "</table>\n"


def _section(
    title: str,
    about: str,
    columns: Iterable[str],
    rows: Iterable[Iterable[object]],
    most: int,
    number: int,
    *,
    folded_up: bool = False,
) -> Iterator[str]:
    """A heading with its number, and the rows under it; nothing where there are none."""
    if not number:
        return
    open_at_once = "" if folded_up else " open"
    yield f"<details{open_at_once}>\n<summary><h2>{title}: {_number(number)}</h2></summary>\n<p>{about}</p>\n<table>\n"
    yield f"<tr>{''.join(f'<th>{column}</th>' for column in columns)}</tr>\n"
    for row in islice(rows, most):
        yield f"<tr>{''.join(f'<td><bdi>{_shown(cell)}</bdi></td>' for cell in row)}</tr>\n"
    yield "</table>\n"
    if number > most:
        yield (
            f"<p class=cut>These are the first {_number(most)} of {_number(number)}; "
            "<code>crmclient report LEDGER --json --all</code> lists them all.</p>\n"
        )
    yield "</details>\n"
