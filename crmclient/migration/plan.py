"""What a move will do, told before it begins: what is what on both sides, what is lost, how long it takes. It only reads.

A plan is a value and a TOML file that a person may edit: whom an unmatched user's rows go to, where a stage is, which
field a field becomes. ``Plan.words()`` is what a ``Translation`` goes by.
"""

import asyncio
import hashlib
import json
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any, Final, Protocol, TypeVar, cast
from urllib.parse import urlsplit

from attrs import define, evolve, field, frozen, validators

from crmclient.client import Client
from crmclient.clock import SYSTEM_CLOCK, Clock
from crmclient.dialect import Dialect, Listing, Verb, Writing, mapping
from crmclient.entities import Company, Contact, FieldType, FieldValue, Id, Kind, Ref
from crmclient.errors import AuthFailed, Invalid, Misconfigured, UnknownDialect, Unreadable
from crmclient.flows import finishes
from crmclient.migration.costs import advised, minutes, reads, under, writes
from crmclient.migration.losses import CHOICES, MAKEABLE, OF_ITS_KIND, What, choices, stage_named
from crmclient.migration.matching import (
    KINDS,
    MOVED,
    company_key,
    is_marker,
    kind_of,
    match_fields,
    match_options,
    match_stages,
    match_task_types,
    match_users,
    named_company,
    unmarked,
    word,
)
from crmclient.migration.seen import Seen
from crmclient.migration.translation import CHOSEN, FieldThere, Translation, Words, field_key
from crmclient.registry import dialect as dialect_named
from crmclient.serial import from_tree, to_tree
from crmclient.vocabulary import Account, Field, Option, Pipeline, Subscription, TaskType, User

K = TypeVar("K", bound=Hashable)
M = TypeVar("M", bound="UserMatch | StageMatch | FieldMatch | TypeMatch")

# Of this layout; another is not read.
VERSION: Final = 1
# What would stop a move unless the plan allows it.
NOT_EMPTY, OTHER_CURRENCY = ALLOWABLE = ("not empty", "other currency")
# How rows can be marked, the best first.
MARKERS: Final = ("field", "tag", "off")

# ------------------------------------------------------------------------------------------------------- the value


def _counts() -> Any:
    return field(factory=dict[str, int], validator=_are_counts)


def _are_counts(instance: Any, attribute: Any, given: Mapping[Any, Any]) -> None:
    for name, number in given.items():
        if type(number) is not int or number < 0:
            raise ValueError(f"{attribute.name}.{name} is a number of rows, not {number!r}")


def _are_texts(instance: Any, attribute: Any, given: Mapping[Any, Any]) -> None:
    for name, part in given.items():
        if not isinstance(part, str):
            raise TypeError(f"{attribute.name}.{name} is a text, not {part!r}")


@frozen(kw_only=True)
class Side:
    """One account. ``account`` is its name in its address, ``name`` what it calls itself.

    ``rows`` were counted; of those kinds named in ``at_least`` there are more. ``capabilities`` is a digest of what the
    dialect could do when the plan was made.
    """

    dialect: str
    address: str
    account: str
    name: str | None = None
    currency: str | None = None
    zone: str | None = None
    capabilities: str
    rows: Mapping[str, int] = _counts()
    at_least: tuple[str, ...] = ()
    unreadable: Mapping[str, int] = _counts()

    @property
    def origin(self) -> str:
        """How the names of its rows begin, outside of the account (``entities.origin``)."""
        return f"crm:{self.dialect}:{self.account}:"


@frozen(kw_only=True)
class UserMatch:
    """A user of the source, and who that is in the target: nobody, where ``target`` is None."""

    source: Id
    name: str | None = None
    email: str | None = None
    target: Id | None = None
    how: str | None = None
    rows: int = 0

    @property
    def key(self) -> Id:
        return self.source


@frozen(kw_only=True)
class StageMatch:
    """A stage of the source, known by its pipeline and its own id, and where its deals go."""

    pipeline: Id | None = None
    stage: Id
    name: str | None = None
    target_pipeline: Id | None = None
    target_stage: Id | None = None
    how: str | None = None
    rows: int = 0

    @property
    def key(self) -> tuple[Id | None, Id]:
        return self.pipeline, self.stage


@frozen(kw_only=True)
class FieldMatch:
    """A custom field of the source, known by its id or its code, and which it is in the target.

    ``options`` are its choices in the target's words; an empty word drops the choice. Where it has no like they are its
    own.
    """

    entity: Kind
    source: Id | None = None
    code: str | None = None
    name: str | None = None
    type: FieldType = FieldType.TEXT
    target: Id | None = None
    target_code: str | None = None
    target_name: str | None = None
    target_type: FieldType | None = None
    options: Mapping[str, str] = field(factory=dict[str, str], validator=_are_texts)
    how: str | None = None
    rows: int = 0

    @property
    def key(self) -> tuple[Kind, Id | None]:
        return self.entity, self.source if self.source is not None else self.code

    @property
    def found(self) -> bool:
        return self.target is not None or self.target_code is not None

    @property
    def label(self) -> str:
        """What its losses call it."""
        return self.name or self.code or f"field {self.source}"


@frozen(kw_only=True)
class TypeMatch:
    """A type of tasks."""

    source: Id
    name: str | None = None
    target: Id | None = None
    how: str | None = None
    rows: int = 0

    @property
    def key(self) -> Id:
        return self.source


@frozen(kw_only=True)
class Loss:
    """What of so many rows does not arrive as it is, and what is done with it.

    ``what`` is a kind (``notes``), a field (``deal.price``), a custom field (``contact.fields: Age``) or rows for which
    there is no place. ``choice`` is ``drop``; ``archive``, beside the ledger; ``fold``, into a note on the row, and of
    tasks and notes into their text; or ``field``, into a custom field that is made for it.
    """

    what: str
    rows: int
    why: str | None = None
    choice: str = field(default="drop", validator=validators.in_(CHOICES))


@frozen(kw_only=True)
class Invention:
    """What the target requires and so many rows do not have."""

    what: str
    rows: int
    how: str | None = None


@frozen(kw_only=True)
class Cost:
    """The fewest requests on one side by what they are for, how many rows one holds, and how long they take together."""

    requests: Mapping[str, int] = _counts()
    batches: Mapping[str, int] = _counts()
    rate: str | None = None
    minutes: float = 0.0


@frozen(kw_only=True)
class Plan:
    """What would move from ``source`` to ``target``.

    ``unmatched`` says whose the rows of users are that have no like in the target: ``me``, the owner of the credentials;
    a user's id there; or ``refuse``: then nothing is to be moved while there are such. ``allow`` names what would stop a
    move (``hindrances``) and does not. ``marker`` is how rows of the target say where they came from: in a custom field,
    by a tag or not at all. ``quarantine`` is how many seconds after its answer was lost a create may still land. ``moves``
    are the rows that will be made, ``task_type`` what a task is there whose type has no like. ``choices`` are the users,
    stages and types of tasks of the target in words, for whoever matches by hand.
    """

    version: int = field(default=VERSION, validator=validators.in_((VERSION,)))
    made: datetime
    source: Side
    target: Side
    unmatched: Id = "me"
    allow: tuple[str, ...] = field(default=(), validator=validators.deep_iterable(validators.in_(ALLOWABLE)))
    marker: str = field(default="off", validator=validators.in_(MARKERS))
    quarantine: float = field(
        default=60.0, converter=float, validator=validators.and_(validators.ge(0), validators.lt(float("inf")))
    )
    me: Id | None = None
    task_type: Id | None = None
    moves: Mapping[str, int] = _counts()
    users: tuple[UserMatch, ...] = ()
    stages: tuple[StageMatch, ...] = ()
    fields: tuple[FieldMatch, ...] = ()
    task_types: tuple[TypeMatch, ...] = ()
    choices: tuple[str, ...] = ()
    tags: Mapping[str, int] = _counts()
    losses: tuple[Loss, ...] = ()
    inventions: tuple[Invention, ...] = ()
    source_cost: Cost = field(factory=Cost)
    target_cost: Cost = field(factory=Cost)
    warnings: tuple[str, ...] = ()

    def __attrs_post_init__(self) -> None:
        if len({loss.choice for loss in self.losses if loss.what in OF_ITS_KIND}) > 1:
            raise ValueError(
                "what notes of a vendor's own kind say is folded, archived or dropped, all of it: choose one"
            )

    @property
    def strangers(self) -> tuple[UserMatch, ...]:
        """Users that rows are of and that have no like in the target."""
        return tuple(user for user in self.users if user.target is None and user.rows)

    @property
    def refused(self) -> bool:
        """Whether it is not to be carried out as it is, for want of users."""
        return self.unmatched == "refuse" and bool(self.strangers)

    def hindrances(self, target_rows: Mapping[str, int] | None = None) -> list[str]:
        """What stands in the way of carrying it out, each with what lets it go on: nothing, if nothing does.

        ``target_rows`` are those of the target now by kind; without them, those that it had when the plan was made.
        """
        found: list[str] = []
        there = _not_empty(self.target.rows if target_rows is None else target_rows, self.target.at_least)
        if there is not None and NOT_EMPTY not in self.allow:
            found.append(f'{there}: to move into it all the same, add "{NOT_EMPTY}" to allow')
        money = _other_currency(self.source, self.target)
        if money is not None and OTHER_CURRENCY not in self.allow:
            found.append(f'{money}: if that is meant, add "{OTHER_CURRENCY}" to allow')
        if self.refused:
            cure = 'give each a target, or set unmatched to "me" or to the id of a user of the target'
            found.append(f"{_refusing(len(self.strangers))}: {cure}")
        return found

    @property
    def digest(self) -> str:
        """Of what it decides, and not of what it counts: whoever has begun by one plan does not go on by another."""
        sides = [[side.dialect, side.address, side.capabilities] for side in (self.source, self.target)]
        matches = [evolve(each, rows=0) for each in (*self.users, *self.stages, *self.fields, *self.task_types)]
        chosen = sorted((loss.what, loss.choice) for loss in self.losses)
        ways = [self.unmatched, self.me, self.task_type, sorted(self.allow), self.marker, self.quarantine]
        return _digest([sides, ways, to_tree(matches), chosen])

    def fields_to_make(self) -> list[tuple[str, Field]]:
        """Custom fields that the target has to have, for what is kept in one: the loss, and the field for it.

        One for a custom field of the source that has no like there is of its type and has its options, where those mean
        something in any account; else it is a text.
        """
        found: list[tuple[str, Field]] = []
        for loss in self.losses:
            what = What(loss.what)
            if loss.choice != "field" or what.kind is None:
                continue
            like = [each for each in self.fields if (each.entity, each.label) == (what.kind, what.custom)]
            types = {FieldType.TEXT if each.found or each.type not in MAKEABLE else each.type for each in like}
            made = Field(entity=what.kind, name=what.label)
            if len(types) == 1:
                options = tuple(
                    Option(value=value) for value in dict.fromkeys(name for each in like for name in each.options)
                )
                type = types.pop()
                made = evolve(made, type=type, options=options if type in CHOSEN else ())
            found.append((loss.what, made))
        return found

    def made_fields(self, there: Iterable[Field]) -> dict[str, FieldThere]:
        """Those of ``fields_to_make`` that are there, by what is kept in them."""
        known = {(each.entity, word(each.name), each.type): each for each in reversed([*there])}
        found = {what: known.get((each.entity, word(each.name), each.type)) for what, each in self.fields_to_make()}
        return {
            what: FieldThere(each.id, each.code, each.name, each.type)
            for what, each in found.items()
            if each is not None
        }

    def impossible(self, target: Dialect) -> list[str]:
        """What it asks and the target cannot do: nothing, if all can be done."""
        found = [
            f'losses: {loss.what} cannot have choice = "{loss.choice}" in {target.title}: '
            + " or ".join(choices(target, loss.what))
            for loss in self.losses
            if loss.choice not in choices(target, loss.what)
        ]
        if self.marker not in markers(target):
            found.append(f'marker: {target.title} cannot keep "{self.marker}": {" or ".join(markers(target))}')
        return found

    def words(self, made_fields: Mapping[str, FieldThere] | None = None) -> Words:
        """What a translation goes by; ``made_fields`` are those of ``fields_to_make``, as the target has them."""
        nobody = self.me if self.unmatched == "me" else None if self.unmatched == "refuse" else self.unmatched
        return Words(
            users={each.source: Ref(Kind.USER, each.target) for each in self.users if each.target is not None},
            nobody=None if nobody is None else Ref(Kind.USER, nobody),
            me=None if self.me is None else Ref(Kind.USER, self.me),
            places={each.key: place for each in self.stages if (place := _place(each)) is not None},
            fields={each.key: _there(each) for each in self.fields if each.found},
            task_types={
                each.source: Ref(Kind.TASK_TYPE, each.target) for each in self.task_types if each.target is not None
            },
            task_type=None if self.task_type is None else Ref(Kind.TASK_TYPE, self.task_type),
            now=self.made,
            fold=all(loss.choice == "fold" for loss in self.losses if loss.what in OF_ITS_KIND),
            choices={
                loss.what: loss.choice
                for loss in self.losses
                if loss.choice != "drop" and (loss.what not in OF_ITS_KIND or loss.choice != "fold")
            },
            made_fields=made_fields or {},
            names=self._names(),
        )

    def _names(self) -> dict[Ref, str]:
        """What the source calls what its rows point at."""
        users = {Ref(Kind.USER, each.source): each.name or each.email for each in self.users}
        stages = {stage_named(each.pipeline, each.stage): each.name for each in self.stages}
        types = {Ref(Kind.TASK_TYPE, each.source): each.name for each in self.task_types}
        return {ref: name for ref, name in (users | stages | types).items() if name}

    def of_others(self, source: Client, target: Client) -> list[str]:
        """Why it is no plan of these two accounts: nothing, if it is."""
        sides = ("source", self.source, source), ("target", self.target, target)
        return [
            f"the {role} of the plan is {side.dialect} at {side.address}, and not {crm.dialect.name} at {crm.base_url}"
            for role, side, crm in sides
            if (side.dialect, side.address) != (crm.dialect.name, crm.base_url)
        ] + zoneless(source, target)

    def outdated(self, source: Client, target: Client) -> list[str]:
        """What has changed since it was made, so that nothing is to be moved by it: nothing, if it still holds."""
        return [
            f"what {crm.dialect.title} can do has changed since the plan was made"
            for side, crm in ((self.source, source), (self.target, target))
            if side.capabilities != capabilities(crm.dialect)
        ]


def _not_empty(rows: Mapping[str, int], at_least: Sequence[str]) -> str | None:
    there = [f"{'at least ' * (kind in at_least)}{number} {kind}" for kind, number in rows.items() if number]
    return f"the target is not empty: it has {', '.join(there)}" if there else None


def _other_currency(source: Side, target: Side) -> str | None:
    if None in (source.currency, target.currency) or source.currency == target.currency:
        return None
    return f"prices are in {source.currency} and go as they are into an account of {target.currency}"


def _refusing(strangers: int) -> str:
    return f'{strangers} users have no like in the target, and unmatched = "refuse": nothing is to be moved so'


def markers(spoken: Dialect) -> tuple[str, ...]:
    """How rows of a dialect can be marked with their origin, the best first."""
    kinds = [spoken.resource(entity) for entity in MOVED.values() if spoken.can(entity, Verb.CREATE)]
    both = [each.survivors(Verb.CREATE) & each.survivors(Verb.LIST) for each in kinds if Verb.LIST in each.routes]
    can = {
        "field": spoken.can(Field, Verb.CREATE) and any("fields" in names for names in both),
        "tag": any("tags" in names for names in both),
        "off": True,
    }
    return tuple(how for how in MARKERS if can[how])


def _place(match: StageMatch) -> tuple[Ref | None, Ref] | None:
    if match.target_stage is None:
        return None
    pipeline = None if match.target_pipeline is None else Ref(Kind.PIPELINE, match.target_pipeline)
    return pipeline, Ref(Kind.STAGE, match.target_stage)


def _there(match: FieldMatch) -> FieldThere:
    options = {source: target for source, target in match.options.items() if target} if match.options else None
    return FieldThere(match.target, match.target_code, match.target_name, match.target_type or match.type, options)


def capabilities(spoken: Dialect) -> str:
    """A digest of what a dialect can do: verbs, fields and their rules, batches, limits."""
    told = {
        entity.__name__: [
            sorted(resource.routes),
            {name: through.value for name, through in resource.fields.items()},
            list(resource.required),
            dict(resource.limits),
            [each.batch for each in resource.routes.values() if isinstance(each, Writing)],
        ]
        for entity, resource in spoken.resources.items()
    }
    return _digest([spoken.name, told, [[rate.limit, rate.seconds] for rate in spoken.rate]])


def _digest(tree: Any) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True, default=str).encode()).hexdigest()[:16]


# -------------------------------------------------------------------------------------------------------- the file

_ABOUT: Final = """\
# What would move. Nothing has been written.
# Edit what is decided here: unmatched, targets of users, stages, fields and task types, choices of losses.
# A match without a target is lost, or goes by what `unmatched` says. Counts and costs are told, not asked.
"""
_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")
_SAID: Final = {
    "allow": 'What is to be moved all the same: "not empty" (the target is not), "other currency" (than the source\'s).',
    "marker": 'How a row says where it came from: in a custom "field", by a "tag", or not at all ("off").',
    "quarantine": "How many seconds after its answer was lost a create may still land: as long nothing is made again.",
    "unmatched": 'Whose the rows of unmatched users are: "me", "refuse", or the id of a user of the target.',
    "me": "The user of the target whose credentials these are.",
    "task_type": "What a task is in the target whose own type has no like there.",
    "moves": "Rows that will be made.",
    "users": "Who is who: target is the id of a user of the target.",
    "stages": "Where deals go: target_pipeline and target_stage are ids of the target.",
    "task_types": "What tasks become: target is a type of the target.",
    "choices": "What there is in the target to choose from.",
    "losses": (
        'What does not arrive as it is. choice = "drop"; "archive", beside the ledger; "fold", into a note or its text;\n'
        '# or "field", into a custom field that is made for it: the last two where the target can.'
    ),
    "inventions": "What the target requires and the source does not have.",
}


def to_toml(plan: Plan) -> str:
    """The plan as a file that a person can edit: a line for each user, stage, field and loss."""
    tree: dict[str, Any] = {}
    for name, part in to_tree(plan).items():
        tree[name] = part
        if name == "unmatched":  # to be seen, even where nothing is allowed
            tree["allow"] = list(plan.allow)
    lines = [_ABOUT]
    for name, part in tree.items():
        if name in _SAID:
            lines.append(f"# {_SAID[name]}")
        if isinstance(part, dict):
            table: dict[str, Any] = part  # pyright: ignore[reportUnknownVariableType]
            lines += [f"{name}.{_name(key)} = {_toml(inside)}" for key, inside in table.items()]
        else:
            lines.append(f"{name} = {_toml(part)}")
        lines += [""] * (isinstance(part, dict | list) or name == "made")
    return "\n".join(lines).rstrip("\n") + "\n"


def _name(name: str) -> str:
    return name if _BARE.fullmatch(name) else _text(name)


def _toml(part: Any) -> str:
    if isinstance(part, dict):
        table: dict[str, Any] = part  # pyright: ignore[reportUnknownVariableType]
        return "{ " + ", ".join(f"{_name(name)} = {_toml(inside)}" for name, inside in table.items()) + " }"
    if isinstance(part, list):
        items: list[Any] = part  # pyright: ignore[reportUnknownVariableType]
        if any(isinstance(each, dict) or (isinstance(each, str) and len(each) > 40) for each in items):
            return "[\n" + "".join(f"  {_toml(each)},\n" for each in items) + "]"
        return "[" + ", ".join(map(_toml, items)) + "]"
    if isinstance(part, bool):
        return str(part).lower()
    return _text(part) if isinstance(part, str) else repr(part)


def _text(text: str) -> str:
    # A basic string of TOML is one of JSON, but for DEL and for halves of pairs, which are nothing at all there.
    quoted = json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
    return quoted.encode("utf-8", "replace").decode()


def from_toml(text: str, where: str = "the plan") -> Plan:
    """A plan that was written, and perhaps edited. Raises Misconfigured, which says where what is wrong."""
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as wrong:
        raise Misconfigured(f"{where} is no TOML: {wrong}") from None
    if tree.get("version") != VERSION:
        raise Misconfigured(f"{where}: version is {tree.get('version')!r}, and this reads plans of version {VERSION}")
    try:
        plan = from_tree(Plan, tree)
    except Invalid as wrong:
        told = "; ".join(f"{_place_of(issue.path)}: {issue.rule}" for issue in wrong.issues)
        raise Misconfigured(f"{where}: {told}") from None
    _checked(plan, where)
    return plan


def _place_of(path: str | None) -> str:
    """``users.2.target`` as people count: ``users[3].target``."""
    return re.sub(r"\.(\d+)", lambda found: f"[{int(found[1]) + 1}]", path) if path else "the whole of it"


def _checked(plan: Plan, where: str) -> None:
    """What no single value tells to be wrong."""
    for name, of in (("users", "source"), ("task_types", "source"), ("losses", "what")):
        keys = Counter(getattr(each, of) for each in getattr(plan, name))
        if twice := [key for key, number in keys.items() if number > 1]:
            raise Misconfigured(f"{where}: {name}: {twice[0]!r} is there twice")
    places = Counter((each.pipeline, each.stage) for each in plan.stages)
    if twice := [key for key, number in places.items() if number > 1]:
        raise Misconfigured(f"{where}: stages: stage {twice[0][1]!r} of pipeline {twice[0][0]!r} is there twice")
    for number, each in enumerate(plan.fields, 1):
        if each.source is None and each.code is None:
            raise Misconfigured(f"{where}: fields[{number}]: it has neither its id (source) nor a code")
    with suppress(UnknownDialect):  # one that is not installed here is asked when there is a client of it
        if wrong := plan.impossible(dialect_named(plan.target.dialect)):
            raise Misconfigured(f"{where}: {'; '.join(wrong)}")


# ----------------------------------------------------------------------------------------------------- what is what


class Told(Protocol):
    """Hears how far the reading is: of which side, which rows, how many."""

    def __call__(self, side: str, kind: str, rows: int) -> None: ...


def silent(side: str, kind: str, rows: int) -> None:
    return None


async def vocabulary(crm: Client, entity: type[Any]) -> Sequence[Any]:
    """A list of the account's own words, by way of its settings where they keep it: it is read once then."""
    parts = parts_of(crm.dialect, entity)
    if not parts:
        return [row async for row in crm.of(entity).list()]
    told = await asyncio.gather(*map(crm.setting, parts))
    # A part is a list of them, or a map of them by their ids.
    return [row for each in told for row in cast("Iterable[Any]", mapping(each).values() or each)]


def parts_of(spoken: Dialect, entity: type[Any]) -> list[str]:
    """The parts of the account's settings that hold these words: one, or one for each kind of rows."""
    name = {TaskType: "task_types"}.get(entity, f"{entity.__name__.lower()}s")
    known = spoken.settings
    return [name] if name in known else [part for part in known if part.startswith(f"{name}:")]


def tells(crm: Client, entity: type[Any]) -> bool:
    """Whether an account lists these words of its own."""
    return crm.can(entity, Verb.LIST) or bool(parts_of(crm.dialect, entity))


def zoneless(*sides: Client) -> list[str]:
    """Whose times nobody could read or write: all of them would be lost, and no row would show it."""
    return [
        f"{crm.dialect.title} tells times by the account's own clock, and nobody tells its zone: write "
        f'zone = "Europe/Moscow", say, into the profile of {crm.base_url}, or give connect(zone=…)'
        for crm in sides
        if crm.dialect.zoned and crm.zone is None
    ]


async def draft(
    source: Client,
    target: Client,
    *,
    people: Mapping[str, str] | None = None,
    unmatched: Id = "me",
    marker: str | None = None,
    allow: Iterable[str] = (),
    quarantine: float | None = None,
    clock: Clock = SYSTEM_CLOCK,
) -> Plan:
    """What is what in the two accounts; no row is read.

    ``people`` says who is who, before anything is matched: each by an id, an e-mail or a name. Where nothing is said,
    ``marker`` is the best the target can do and ``quarantine`` its dialect's. Raises Misconfigured for somebody who is
    not there, and for a marker that the target cannot keep.
    """
    if wrong := zoneless(source, target):
        raise Misconfigured("; ".join(wrong))
    ways = markers(target.dialect)
    if marker is not None and marker not in ways:
        raise Misconfigured(f"{target.dialect.title} can keep no origin by marker {marker!r}: {' or '.join(ways)}")
    notices: list[str] = []
    both = await asyncio.gather(_words(source, target, notices), _words(target, source, notices))
    here, there = both
    accounts = await asyncio.gather(*(_account(crm) for crm in (source, target)))
    me = (await target.me()).id if "me" in target.dialect.settings else None
    plan = Plan(
        made=clock.now().replace(microsecond=0),
        source=_side(source, accounts[0]),
        target=_side(target, accounts[1]),
        unmatched=unmatched,
        allow=tuple(allow),
        marker=marker or ways[0],
        quarantine=getattr(target.dialect, "quarantine", 60.0) if quarantine is None else quarantine,
        me=me,
        task_type=next((each.id for each in there[TaskType]), None),
        users=_users(here[User], there[User], people or {}),
        stages=_stages(here[Pipeline], there[Pipeline]),
        fields=_fields(*([each for each in side[Field] if not is_marker(each)] for side in both)),
        task_types=_task_types(here[TaskType], there[TaskType]),
        choices=tuple(_choices(there)),
        warnings=tuple(sorted(notices)),
    )
    if (said := _other_currency(plan.source, plan.target)) is not None:
        plan = evolve(plan, warnings=(*plan.warnings, said))
    unpaid = [
        f"the filters of {crm.dialect.title} are not switched on for the {role}, a paid option: it gives all rows where "
        "some are asked for, and looking for rows costs more requests"
        for role, crm, account in zip(("source", "target"), (source, target), accounts, strict=True)
        if account.filters is False
    ]
    plan = evolve(plan, warnings=(*plan.warnings, *unpaid, *target.dialect.warnings))
    if unmatched not in ("me", "refuse") and there[User] and unmatched not in {each.id for each in there[User]}:
        raise Misconfigured(f"the target has no user {unmatched!r} for the rows of unmatched ones")
    return plan


async def _words(crm: Client, other: Client, notices: list[str]) -> dict[type[Any], Sequence[Any]]:
    """The account's own words, as far as they are of use: fields are dear, and mean something only where both have any."""
    found: dict[type[Any], Sequence[Any]] = {User: (), Pipeline: (), Field: (), TaskType: ()}
    for entity in found:
        if not tells(crm, entity):
            if entity in (User, Pipeline) and tells(other, entity):
                notices.append(f"{crm.dialect.title} does not list its {entity.__name__.lower()}s: match them by hand")
            continue
        if entity is not Field or tells(other, entity):
            try:
                found[entity] = await vocabulary(crm, entity)
            except AuthFailed as refusal:
                if refusal.status != 403:
                    raise
                notices.append(
                    f"these credentials may not read the {entity.__name__.lower()}s of {crm.dialect.title}: "
                    "match them by hand"
                )
    return found


def _choices(there: Mapping[type[Any], Sequence[Any]]) -> Iterator[str]:
    yield from (f"user {each.id}: {each.name or each.email}" for each in there[User])
    for pipeline in there[Pipeline]:
        for stage in pipeline.stages:
            yield f"pipeline {pipeline.id}, stage {stage.id}: {pipeline.name} / {stage.name}"
    yield from (f"type of tasks {each.id}: {each.name}" for each in there[TaskType])


async def _account(crm: Client) -> Account:
    return await crm.account() if "account" in crm.dialect.settings else Account()


def _side(crm: Client, account: Account) -> Side:
    spoken, place = crm.dialect, urlsplit(crm.base_url).netloc
    domain = next((each for each in spoken.domains if place.endswith(f".{each}")), None)
    return Side(
        dialect=spoken.name,
        address=crm.base_url,
        account=place.removesuffix(f".{domain}") if domain is not None else place,
        name=account.name,
        currency=account.currency,
        zone=None if account.zone is None else str(account.zone),
        capabilities=capabilities(spoken),
    )


def _users(source: Sequence[User], target: Sequence[User], people: Mapping[str, str]) -> tuple[UserMatch, ...]:
    matched = match_users(source, target)
    by_hand = {_who(source, here, "source"): _who(target, there, "target") for here, there in people.items()}
    found = [
        UserMatch(source=each.id, name=each.name, email=each.email)
        if each.id not in matched and each.id not in by_hand
        else UserMatch(
            source=each.id,
            name=each.name,
            email=each.email,
            target=by_hand.get(each.id, matched[each.id][0].id if each.id in matched else None),
            how="by hand" if each.id in by_hand else matched[each.id][1],
        )
        for each in source
        if each.id is not None
    ]
    known = {each.source for each in found}
    found += [UserMatch(source=here, target=to, how="by hand") for here, to in by_hand.items() if here not in known]
    return tuple(found)


def _who(users: Sequence[User], said: str, side: str) -> Id:
    """A user by id, e-mail or name; where nobody is listed it can only be an id."""
    alike = [
        each.id for each in users if str(each.id) == said.strip() or word(said) in (word(each.email), word(each.name))
    ]
    if len(alike) == 1 and alike[0] is not None:
        return alike[0]
    if not users:
        return int(said) if said.strip().isascii() and said.strip().isdecimal() else said.strip()
    raise Misconfigured(f"{said!r} is {'nobody' if not alike else 'more than one'} of the users of the {side}")


def _stages(source: Sequence[Pipeline], target: Sequence[Pipeline]) -> tuple[StageMatch, ...]:
    places = match_stages(source, target)
    found: list[StageMatch] = []
    for pipeline in source:
        for stage in pipeline.stages:
            if stage.id is None:
                continue
            match = StageMatch(pipeline=pipeline.id, stage=stage.id, name=f"{pipeline.name} / {stage.name}")
            place = places.get((pipeline.id, stage.id))
            if place is not None:
                match = evolve(match, target_pipeline=place.pipeline.id, target_stage=place.stage.id, how=place.how)
            found.append(match)
    return tuple(found)


def _fields(source: Sequence[Field], target: Sequence[Field]) -> tuple[FieldMatch, ...]:
    matched = match_fields(source, target)
    found: list[FieldMatch] = []
    for each in source:
        own = {option.value: option.value for option in each.options}
        match = FieldMatch(
            entity=each.entity, source=each.id, code=each.code, name=each.name, type=each.type, options=own
        )
        there = matched.get((each.entity, each.id if each.id is not None else each.code))
        if there is not None:
            options = match_options(each, there)
            match = evolve(
                match,
                target=there.id,
                target_code=there.code,
                target_name=there.name,
                target_type=there.type,
                # A text there takes every choice as it is.
                options={option.value: options.get(option.value, "") for option in each.options if there.options},
                how="code" if each.code and each.code == there.code else "name and type",
            )
        found.append(match)
    return tuple(found)


def _task_types(source: Sequence[TaskType], target: Sequence[TaskType]) -> tuple[TypeMatch, ...]:
    matched = match_task_types(source, target)
    return tuple(
        TypeMatch(source=each.id, name=each.name)
        if each.id not in matched
        else TypeMatch(source=each.id, name=each.name, target=matched[each.id][0].id, how=matched[each.id][1])
        for each in source
        if each.id is not None
    )


# -------------------------------------------------------------------------------------------------------- the rows


async def plan(
    source: Client,
    target: Client,
    *,
    people: Mapping[str, str] | None = None,
    unmatched: Id = "me",
    marker: str | None = None,
    allow: Iterable[str] = (),
    quarantine: float | None = None,
    choose: Mapping[str, str] | None = None,
    told: Told = silent,
    clock: Clock = SYSTEM_CLOCK,
) -> Plan:
    """Read the source whole, in one walk in which nothing is asked twice, and look at the target.

    ``choose`` says what is done with what is lost, as ``{"deal.price": "fold", "contact.*": "archive"}``: a pattern means
    what it fits and what the target allows, and the last that fits counts. What it does not name is dropped, but for what
    notes of a vendor's own kind say: that is folded.

    Memory stays the same however many rows there are. Nothing is written on either side. Raises what reading raises, and
    Misconfigured for what ``draft`` does and for choices that the target does not allow.
    """
    rules = _rules(choose or {}, target.dialect)
    drawn = await draft(
        source,
        target,
        people=people,
        unmatched=unmatched,
        marker=marker,
        allow=allow,
        quarantine=quarantine,
        clock=clock,
    )
    rows, more = await _counted(target)
    drawn = evolve(drawn, target=evolve(drawn.target, rows=rows, at_least=more))
    warned = [*drawn.warnings, *await _listeners(target)]
    with Seen() as seen:
        reading = _Reading(source.dialect, target.dialect, drawn, seen, rules)
        kinds = [kind for kind, entity in MOVED.items() if source.can(entity, Verb.LIST)]
        reading.read.update(dict.fromkeys(kinds, 0))
        before = source.spent
        async for row in source.together(*(MOVED[kind] for kind in kinds), on_bad=reading.bad):
            reading.add(row)
            number = reading.read[kind_of(row)]
            if number % 50 == 0:
                told("source", kind_of(row), number)
        spent = source.spent.requests - before.requests - (source.spent.aside - before.aside)
        return reading.plan(spent, warned)


def _rules(choose: Mapping[str, str], target: Dialect) -> list[tuple[str, str]]:
    for what, to in choose.items():
        allowed = CHOICES if set(what) & set("*?[") else choices(target, what)
        if to not in allowed:
            raise Misconfigured(f"{what} cannot have choice {to!r} in {target.title}: {' or '.join(allowed)}")
    return list(choose.items())


def _ruled(words: Words, rules: Sequence[tuple[str, str]]) -> Words:
    """Words by which losses are chosen by rules; what notes of a vendor's own kind say is chosen all together."""
    own = [
        to
        for pattern, to in rules
        if any(pattern == each or fnmatchcase(each, pattern) for each in OF_ITS_KIND) and to != "field"
    ]
    together = dict.fromkeys(OF_ITS_KIND, own[-1]) if own and own[-1] != "fold" else {}
    return evolve(words, rules=rules, fold=not together, choices={**words.choices, **together})


async def _counted(crm: Client) -> tuple[dict[str, int], tuple[str, ...]]:
    """How many rows there are, as far as the first page that holds any tells; of which kinds there are more.

    What is seen only by opening other rows one by one is not looked at.
    """
    found: dict[str, int] = {}
    more: list[str] = []
    for kind, entity in MOVED.items():
        route = crm.dialect.route(entity, Verb.LIST) if crm.can(entity, Verb.LIST) else None
        if not isinstance(route, Listing) or (route.nested is not None and route.nested.every is None):
            continue
        found[kind] = 0
        # Closed by its end or by the break below.
        walk = crm.of(entity).pages(prefetch=1)
        try:
            async for page in walk:
                found[kind] += len(page.items)
                if found[kind]:
                    more += [kind] if page.next is not None else []
                    break
        finally:
            await walk.aclose()
    return found, tuple(more)


async def _listeners(crm: Client) -> list[str]:
    """Who will be told of every row that is made."""
    if not crm.can(Subscription, Verb.LIST):
        return []
    try:
        number = len([each async for each in crm.webhooks.list() if each.active])
    except AuthFailed:
        return []  # whoever may not see them is warned of nothing
    return [f"{number} webhooks of the target will be told of every row that is made"] if number else []


@define
class _Reading:
    """Counts what goes by."""

    source: Dialect
    target: Dialect
    drawn: Plan
    seen: Seen
    rules: Sequence[tuple[str, str]] = ()
    read: Counter[str] = field(factory=Counter[str])
    unreadable: Counter[str] = field(factory=Counter[str])
    under: Counter[str] = field(factory=Counter[str])
    moves: Counter[str] = field(factory=Counter[str])
    moves_under: Counter[str] = field(factory=Counter[str])
    completed: int = 0
    ties: int = 0
    users: Counter[Id] = field(factory=Counter[Id])
    stages: Counter[tuple[Id | None, Id]] = field(factory=Counter[tuple[Id | None, Id]])
    fields: Counter[tuple[Kind, Id | None]] = field(factory=Counter[tuple[Kind, Id | None]])
    values: dict[tuple[Kind, Id | None], FieldValue] = field(factory=dict[tuple[Kind, Id | None], FieldValue])
    types: Counter[Id] = field(factory=Counter[Id])
    losses: Counter[tuple[str, str, str]] = field(factory=Counter[tuple[str, str, str]])
    inventions: Counter[str] = field(factory=Counter[str])
    lacks: Counter[str] = field(factory=Counter[str])
    beside: Counter[str] = field(factory=Counter[str])
    translate: Translation = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.translate = Translation(self.source, self.target, _ruled(self.drawn.words(), self.rules), self.seen)

    def bad(self, entity: type[Any], wrong: Unreadable) -> None:
        self.unreadable[kind_of(entity)] += 1

    def add(self, row: Any) -> None:
        row, _ = unmarked(row)
        kind = kind_of(row)
        self.read[kind] += 1
        held = mapping(row.raw)
        self.beside.update(f"{row.KIND}.{key}" for key in self.source.resource(MOVED[kind]).beside if held.get(key))
        self._words_of(row)
        if not self.target.can(MOVED[kind], Verb.CREATE):
            self.seen.add(kind, row.id, getattr(row, "name", None) or "", made=False)
            words = kind == "companies" and "company" in self.target.resource(Contact).survivors(Verb.CREATE)
            why = "no such rows there" + (": they stay as words on their contacts" if words else "")
            self.losses[kind, why, self.translate.choice(kind)] += 1
            return
        if kind == "contacts":
            self._company_of(row)
        self._translated(kind, row)
        for note in self.translate.besides(row):
            self._translated("notes", note)

    def _translated(self, kind: str, row: Any) -> None:
        there = self.translate(row)
        if there.left_out is not None:
            what = f"{row.KIND} that {there.left_out}"
            self.losses[what, "no place for it there", self.translate.choice(what)] += 1
            return
        self.seen.add(kind, row.id, getattr(row, "name", None) or "", getattr(there.row, "company", None))
        self.moves[kind] += 1
        if there.row.KIND is Kind.NOTE or there.row.KIND is Kind.TASK:
            self.moves_under[under(kind, there.row.target)] += there.row.target is not None
        # Where a task's result is a request of its own, it is one however the task was made.
        told = kind == "tasks" and there.row.result is not None and finishes(self.target, MOVED[kind])
        self.completed += bool(there.later) or told
        self.ties += kind == "contacts" and there.row.company is not None
        for what, why in there.losses():
            self.losses[what, why, self.translate.choice(what)] += 1
        self.inventions.update(f"{row.KIND}.{name}" for name in there.invented)
        self.lacks.update(f"{row.KIND}.{name}" for name in there.lacks)

    def _company_of(self, contact: Any) -> None:
        """Where the source has companies only as words on contacts, each distinct one becomes a row in the target."""
        key = company_key(contact.company)
        if key is None or "companies" in self.read or not self.target.can(Company, Verb.CREATE):
            return
        if self.seen.add("companies", key, named_company(contact.company)):
            self.moves["companies"] += 1

    def _words_of(self, row: Any) -> None:
        held = {getattr(row, name) for name in ("owner", "created_by", "updated_by")} - {None}
        self.users.update(ref.id for ref in held if ref.id is not None)
        stage, type, target = (getattr(row, name, None) for name in ("stage", "type", "target"))
        if stage is not None:
            self.stages[row.pipeline.id if row.pipeline else None, stage.id] += 1
        if type is not None:
            self.types[type.id] += 1
        if target is not None:
            self.under[under(kind_of(row), target)] += 1
        for value in getattr(row, "fields", ()):
            key = row.KIND, field_key(value)
            self.fields[key] += 1
            self.values.setdefault(key, value)
        for tag in getattr(row, "tags", ()):
            self.seen.add("tags", tag.name)

    # ------------------------------------------------------------------------------------------------- summing up

    def plan(self, spent: int, warned: list[str]) -> Plan:
        drawn, losses = self.drawn, self.losses
        if not self.translate.words.fold and not OF_ITS_KIND & {what for what, _, _ in losses}:
            # Where nothing but such notes is left out for it, it is a decision all the same.
            losses["note.params", "not said in its text", self.translate.choice("note.params")] += 0
        return evolve(
            drawn,
            source=evolve(drawn.source, rows=dict(self.read), unreadable=dict(self.unreadable)),
            moves={kind: self.moves[kind] for kind in KINDS if self.moves[kind]},
            users=_with_rows(drawn.users, self.users, lambda id: UserMatch(source=id)),
            stages=_with_rows(drawn.stages, self.stages, lambda key: StageMatch(pipeline=key[0], stage=key[1])),
            fields=_with_rows(drawn.fields, self.fields, self._field_seen),
            task_types=_with_rows(drawn.task_types, self.types, self._type_seen),
            tags={"different": self.seen.count("tags")} if self.seen.count("tags") else {},
            losses=tuple(
                Loss(what=what, rows=rows, why=why, choice=choice)
                for (what, why, choice), rows in sorted(_merged(losses).items())
            ),
            inventions=tuple(
                Invention(what=what, rows=rows, how=self._made_up(what))
                for what, rows in sorted(self.inventions.items())
            ),
            source_cost=self._cost(self.source, {"read": spent}, {}),
            target_cost=self._target_cost(),
            warnings=(*warned, *self._warnings()),
        )

    def _field_seen(self, key: tuple[Kind, Id | None]) -> FieldMatch:
        value = self.values[key]
        source = value.field.id if value.field is not None else None
        return FieldMatch(entity=key[0], source=source, code=value.code, name=value.name, type=value.type)

    def _type_seen(self, id: Id) -> TypeMatch:
        if self.translate.same_words and not self.drawn.task_types:
            return TypeMatch(source=id, target=id, how="the same dialect")
        return TypeMatch(source=id)

    def _made_up(self, what: str) -> str:
        words = self.translate.words
        owner = words.nobody or words.me
        return {
            "name": "its phone, else its kind and id",
            "due": "a day after it was made",
            "owner": f"user {owner.id}" if owner is not None else "",
            "type": f"type {words.task_type.id}" if words.task_type is not None else "",
        }[what.partition(".")[2]]

    def _cost(self, spoken: Dialect, requests: dict[str, int], sizes: dict[str, int]) -> Cost:
        limits = [f"{rate.limit} in {rate.seconds:g} s" for rate in spoken.rate]
        lasting = round(minutes(sum(requests.values()), spoken.rate), 2)
        return Cost(requests=requests, batches=sizes, rate=", ".join(limits), minutes=lasting)

    def _target_cost(self) -> Cost:
        there, moves = self.drawn.target.rows, self.moves
        requests = {
            f"write {kind}": writes(
                self.source,
                self.target,
                kind,
                moves[kind],
                apart=[number for name, number in self.moves_under.items() if name.startswith(f"{kind} of ")],
                completed=self.completed if kind == "tasks" else 0,
                ties=self.ties,
                size=advised(self.target, kind),
            )
            for kind in KINDS
            if moves[kind]
        }
        seen = [kind for kind in moves if moves[kind] and self.target.can(MOVED[kind], Verb.LIST)]
        total = Counter(there) + moves + self.moves_under
        requests["read back"] = reads(self.target, seen, total) if seen else 0
        return self._cost(self.target, requests, {kind: advised(self.target, kind) for kind in KINDS if moves[kind]})

    def _warnings(self) -> Iterable[str]:
        drawn = self.drawn
        there = _not_empty(drawn.target.rows, drawn.target.at_least)
        if there is not None:
            yield there
        if self.unreadable:
            told = ", ".join(f"{number} {kind}" for kind, number in sorted(self.unreadable.items()))
            yield f"the source has rows that cannot be read, and they will not move: {told}"
        for what, rows in sorted(self.beside.items()):
            yield f"{rows} rows have {what} of {self.source.title}'s own: that does not move"
        strangers = [each for each in drawn.users if each.target is None and self.users[each.source]]
        number = len(strangers) + len(self.users.keys() - {each.source for each in drawn.users})
        if number and drawn.unmatched == "refuse":
            yield _refusing(number)
        elif number:
            whose = self.translate.words.nobody
            owner = f"user {whose.id} there" if whose is not None else "whoever these credentials are of"
            owned = f"their rows go to {owner}"
            yield f"{number} users have no like in the target: {owned}, and who made a row is not told"
        unplaced = sum(number for at, number in self.stages.items() if at not in self.translate.words.places)
        if unplaced:
            yield f"{unplaced} deals stand in stages that have no like in the target: it chooses one"
        finding = drawn.unmatched == "me" and drawn.me is None
        if finding and (number or any(what.endswith(".owner") for what in self.lacks)):
            yield (
                f"{self.target.title} does not tell whose these credentials are: a move finds it out by the first rows it "
                "makes, and those that need an owner wait for it; or set unmatched to a user's id"
            )
        for what, number in sorted(self.lacks.items()):
            name = what.partition(".")[2]
            if name == "owner" and finding:
                continue
            cure = {"owner": "set unmatched to a user's id, or ", "type": "set task_type, or "}.get(name, "")
            yield f"{number} rows lack {what}, which {self.target.title} requires: {cure}they may be refused"


def _with_rows(known: Iterable[M], counts: Counter[K], made: Callable[[K], M]) -> tuple[M, ...]:
    """Matches with the rows they concern; what rows speak of and no list has is there too."""
    matches: dict[Any, M] = {each.key: each for each in known}
    matches |= {strange: made(strange) for strange in counts if strange not in matches}
    return tuple(evolve(match, rows=counts[key]) for key, match in matches.items())


def _merged(losses: Counter[tuple[str, str, str]]) -> dict[tuple[str, str, str], int]:
    """One loss for each that is lost, whatever the reasons are."""
    whys: dict[str, list[str]] = {}
    rows: Counter[str] = Counter()
    chosen: dict[str, str] = {}
    for (what, why, choice), number in losses.items():
        whys.setdefault(what, []).append(why)
        rows[what] += number
        chosen[what] = choice
    return {(what, "; ".join(sorted(set(whys[what]))), chosen[what]): number for what, number in rows.items()}
