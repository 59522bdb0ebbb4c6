"""What every CRM has, in neutral words: values that hold no client, no session and no dialect.

All are attrs classes: frozen, keyword-only, slotted. Change one with ``evolve(contact, name="…")``.
Times are aware UTC, dates are dates, money is Decimal. A list is a tuple; an empty tuple and ``None`` both mean "empty",
and which of them a field uses follows from its type.
"""

from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from functools import cache
from operator import is_
from typing import Any, ClassVar, TypeAlias, TypeVar, cast

from attrs import NOTHING, field, fields, fields_dict, frozen

Id: TypeAlias = int | str


class Kind(StrEnum):
    """What a reference points at."""

    CONTACT = "contact"
    COMPANY = "company"
    DEAL = "deal"
    TASK = "task"
    NOTE = "note"
    USER = "user"
    PIPELINE = "pipeline"
    STAGE = "stage"
    FIELD = "field"
    TASK_TYPE = "task_type"
    TAG = "tag"
    SUBSCRIPTION = "subscription"


class Label(StrEnum):
    """Where a phone rings or a mailbox is read; ``OTHER`` keeps the vendor's word in ``raw_label``."""

    WORK = "work"
    WORK_DIRECT = "work_direct"
    MOBILE = "mobile"
    FAX = "fax"
    HOME = "home"
    PRIVATE = "private"
    OTHER = "other"


class NoteKind(StrEnum):
    """What a note records; ``OTHER`` keeps the vendor's word in ``raw_kind``."""

    TEXT = "text"
    CALL_IN = "call_in"
    CALL_OUT = "call_out"
    SMS_IN = "sms_in"
    SMS_OUT = "sms_out"
    SERVICE = "service"
    FILE = "file"
    LOCATION = "location"
    MAIL = "mail"
    OTHER = "other"


class Outcome(StrEnum):
    """How a deal stands."""

    OPEN = "open"
    WON = "won"
    LOST = "lost"
    UNSORTED = "unsorted"


class FieldType(StrEnum):
    """What a custom field holds; ``OTHER`` keeps the vendor's word in ``raw_type``."""

    TEXT = "text"
    TEXTAREA = "textarea"
    NUMBER = "number"
    BOOL = "bool"
    SELECT = "select"
    MULTISELECT = "multiselect"
    RADIO = "radio"
    DATE = "date"
    DATETIME = "datetime"
    BIRTHDAY = "birthday"
    URL = "url"
    MULTITEXT = "multitext"
    ADDRESS = "address"
    STREET = "street"
    LEGAL = "legal"
    MONEY = "money"
    FILE = "file"
    LINKED = "linked"
    CHAINED = "chained"
    ITEMS = "items"
    TRACKING = "tracking"
    OTHER = "other"


@frozen
class Ref:
    """A pointer to a row of the same account. ``id`` is None for something known by name only."""

    kind: Kind
    id: Id | None


def origin(dialect: str, account: str, ref: Ref) -> str:
    """The name of a row outside its account: ``crm:{dialect}:{account}:{kind}:{id}``."""
    return f"crm:{dialect}:{account}:{ref.kind}:{ref.id}"


@frozen(kw_only=True)
class Link:
    """A tie to another row. ``name`` is what a dialect gives where it has no row to point at (a company as a string)."""

    ref: Ref = field(kw_only=False)
    main: bool = False
    name: str | None = None


@frozen(kw_only=True)
class Money:
    """An exact amount. ``currency`` is an ISO 4217 word, or None for the account's own."""

    amount: Decimal = field(kw_only=False, converter=lambda given: _decimal(given))
    currency: str | None = None


@frozen(kw_only=True)
class Phone:
    """A number as it was typed, never reformatted."""

    value: str = field(kw_only=False)
    label: Label = Label.WORK
    raw_label: str | None = None


@frozen(kw_only=True)
class Email:
    """An address as it was typed."""

    value: str = field(kw_only=False)
    label: Label = Label.WORK
    raw_label: str | None = None


@frozen(kw_only=True)
class Tag:
    """A word stuck on a row. Tags are equal by name; the id belongs to one account and one kind of entity."""

    name: str = field(kw_only=False)
    id: Id | None = field(default=None, eq=False)


FieldContent: TypeAlias = str | Decimal | bool | date | datetime | Mapping[str, Any]


@frozen(kw_only=True)
class FieldValue:
    """What one custom field holds. Name it by ``field`` (an id of this account) or by ``code``.

    ``values`` are str, Decimal, bool, date or datetime by ``type``; of a select it is the option's text. An address is a
    map with any of line1, line2, city, region, postcode, country; legal entities, items, files and linked rows are maps
    in the vendor's words.
    """

    values: tuple[FieldContent, ...] = field(kw_only=False, converter=lambda given: _plain(given))
    field: Ref | None = None
    code: str | None = None
    name: str | None = None
    type: FieldType = FieldType.TEXT


T = TypeVar("T")


def _same(given: T) -> T:
    return given


def _decimal(given: object) -> Decimal:
    if isinstance(given, float):
        raise TypeError(f"money is exact: write Decimal('{given}') or '{given}', not a float")
    if not isinstance(given, Decimal | int | str) or isinstance(given, bool):
        raise TypeError(f"money is a Decimal, an int or a str of digits, not {type(given).__name__}")
    return Decimal(given)


def _parts(given: Any, make: Callable[[Any], Any]) -> tuple[Any, ...]:
    """A tuple of parts from whatever a person finds natural to write; a bare string is one part, never letters."""
    if given is None:
        return ()
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        return (make(given),)
    return tuple(make(each) for each in given)  # pyright: ignore[reportUnknownVariableType]


def _named(part: Callable[[str], Any]) -> Callable[[Any], Any]:
    def convert(given: Any) -> Any:
        return part(given) if isinstance(given, str) else given

    return convert


def _are(given: Any, kind: type[Any]) -> bool:
    """Whether these are the parts already, as codecs give them: it is asked of each row that is read."""
    return given == () or (type(given) is tuple and {*map(type, cast("tuple[Any, ...]", given))} == {kind})


def _phones(given: Any) -> tuple[Phone, ...]:
    return given if _are(given, Phone) else _parts(given, _named(Phone))


def _emails(given: Any) -> tuple[Email, ...]:
    return given if _are(given, Email) else _parts(given, _named(Email))


def _tags(given: Any) -> tuple[Tag, ...]:
    return given if _are(given, Tag) else _parts(given, _named(Tag))


def _plain(given: Any) -> tuple[Any, ...]:
    return given if type(given) is tuple else _parts(given, _same)  # pyright: ignore[reportUnknownVariableType]


def _price(given: Any) -> Money | None:
    return given if given is None or isinstance(given, Money) else Money(given)


def _to(kind: Kind) -> Any:
    """A link from what is at hand: a Link, a Ref, an entity that was read or made, an id, or a name."""

    def convert(given: Any) -> Any:
        if given is None or isinstance(given, Link):
            return given
        if isinstance(given, Ref):
            return Link(given)
        if isinstance(given, Entity):
            return Link(given.ref)
        if isinstance(given, int) and not isinstance(given, bool):
            return Link(Ref(kind, given))
        if isinstance(given, str):
            return Link(Ref(kind, None), name=given)
        raise TypeError(f"a link to a {kind} is a Link, Ref, {kind.title()}, id or name, not {type(given).__name__}")

    return convert


def _all_to(kind: Kind) -> Any:
    one = _to(kind)

    def convert(given: Any) -> tuple[Any, ...]:
        return given if _are(given, Link) else _parts(given, one)

    return convert


def _with_a_main(given: Any) -> tuple[Link, ...]:
    """Links to contacts, of which one is the main one: the first, where none is named."""
    links: tuple[Link, ...] = _all_to(Kind.CONTACT)(given)
    if links and not any(link.main for link in links):
        return (evolve(links[0], main=True), *links[1:])
    return links


def _ref_to(kind: Kind) -> Any:
    def convert(given: Any) -> Any:
        if given is None or isinstance(given, Ref):
            return given
        if isinstance(given, int | str) and not isinstance(given, bool):
            return Ref(kind, given)
        found = getattr(given, "ref", None)
        if isinstance(found, Ref):
            return found
        raise TypeError(f"a reference to a {kind} is a Ref, an id or a {kind}, not {type(given).__name__}")

    return convert


def _target(given: Any) -> Any:
    if given is None or isinstance(given, Ref):
        return given
    if isinstance(given, Entity):
        return given.ref
    raise TypeError(f"a target is a Ref or an entity, not {type(given).__name__}: an id alone does not say of what")


def _aware(instance: Any, attribute: Any, given: Any) -> None:
    if given is None:
        return
    if not isinstance(given, datetime):
        raise TypeError(f"{type(instance).__name__}.{attribute.name} is a datetime, not {type(given).__name__}")
    if given.tzinfo is None:
        raise ValueError(
            f"{type(instance).__name__}.{attribute.name} has no time zone: write datetime(…, tzinfo=UTC) or a ZoneInfo"
        )


def _moment() -> Any:
    return field(default=None, validator=_aware)


@frozen(kw_only=True)
class Entity:
    """What the five have in common.

    ``raw`` is what the server said, untouched; after a create, or an edit that sent everything, it is what was sent.
    ``unread`` names the fields this reading did not bring: unread is not empty. ``written`` is the row as we last wrote
    it: an update is compared with it, or else with the reading. These three count neither for equality nor for repr.
    """

    KIND: ClassVar[Kind]

    id: Id | None = None
    owner: Ref | None = field(default=None, converter=_ref_to(Kind.USER))
    created_at: datetime | None = _moment()
    updated_at: datetime | None = _moment()
    created_by: Ref | None = field(default=None, converter=_ref_to(Kind.USER))
    updated_by: Ref | None = field(default=None, converter=_ref_to(Kind.USER))
    deleted: bool = False
    raw: Any = field(default=None, eq=False, repr=False)
    unread: frozenset[str] = field(default=frozenset(), eq=False, repr=False)
    written: Any = field(default=None, eq=False, repr=False)

    @property
    def ref(self) -> Ref:
        return Ref(self.KIND, self.id)


@frozen(kw_only=True)
class Contact(Entity):
    """A person."""

    KIND = Kind.CONTACT

    name: str | None = None
    first_name: str | None = None
    last_name: str | None = None
    position: str | None = None
    phones: tuple[Phone, ...] = field(default=(), converter=_phones)
    emails: tuple[Email, ...] = field(default=(), converter=_emails)
    company: Link | None = field(default=None, converter=_to(Kind.COMPANY))
    deals: tuple[Link, ...] = field(default=(), converter=_all_to(Kind.DEAL))
    tags: tuple[Tag, ...] = field(default=(), converter=_tags)
    fields: tuple[FieldValue, ...] = field(default=(), converter=_plain)


@frozen(kw_only=True)
class Company(Entity):
    """An organisation."""

    KIND = Kind.COMPANY

    name: str | None = None
    phones: tuple[Phone, ...] = field(default=(), converter=_phones)
    emails: tuple[Email, ...] = field(default=(), converter=_emails)
    contacts: tuple[Link, ...] = field(default=(), converter=_all_to(Kind.CONTACT))
    deals: tuple[Link, ...] = field(default=(), converter=_all_to(Kind.DEAL))
    tags: tuple[Tag, ...] = field(default=(), converter=_tags)
    fields: tuple[FieldValue, ...] = field(default=(), converter=_plain)


@frozen(kw_only=True)
class Deal(Entity):
    """A sale on its way. A stage is known by (pipeline, stage): ids of won and lost repeat in each pipeline.

    One of its contacts is the main one; where none is named, the first.
    """

    KIND = Kind.DEAL

    name: str | None = None
    price: Money | None = field(default=None, converter=_price)
    pipeline: Ref | None = field(default=None, converter=_ref_to(Kind.PIPELINE))
    stage: Ref | None = field(default=None, converter=_ref_to(Kind.STAGE))
    outcome: Outcome | None = None
    closed_at: datetime | None = _moment()
    contacts: tuple[Link, ...] = field(default=(), converter=_with_a_main)
    company: Link | None = field(default=None, converter=_to(Kind.COMPANY))
    tags: tuple[Tag, ...] = field(default=(), converter=_tags)
    fields: tuple[FieldValue, ...] = field(default=(), converter=_plain)


@frozen(kw_only=True)
class Task(Entity):
    """Something to do by a time, about a contact, a company or a deal."""

    KIND = Kind.TASK

    text: str | None = None
    type: Ref | None = field(default=None, converter=_ref_to(Kind.TASK_TYPE))
    due: datetime | None = _moment()
    duration: timedelta | None = None
    done: bool = False
    result: str | None = None
    target: Ref | None = field(default=None, converter=_target)


@frozen(kw_only=True)
class Note(Entity):
    """Something that was said or happened, kept with a contact, a company or a deal.

    ``params`` holds what the kind needs beyond its text, in the vendor's words.
    """

    KIND = Kind.NOTE

    kind: NoteKind = NoteKind.TEXT
    raw_kind: str | None = None
    text: str | None = None
    params: Mapping[str, Any] = field(factory=dict[str, Any])
    target: Ref | None = field(default=None, converter=_target)


# Not the caller's to set: they say how the value came about.
_READING = frozenset({"id", "raw", "unread", "written"})


@cache
def _given(kind: type[Any]) -> tuple[tuple[str, str], ...]:
    return tuple((part.alias or part.name, part.name) for part in fields(kind) if part.init)


def evolve(entity: T, /, **changes: Any) -> T:
    """What ``attrs.evolve`` gives of a frozen value, which looks the names up anew for each of a million rows; the value
    itself where nothing of it changes.
    """
    for name, part in changes.items():
        held = getattr(entity, name, NOTHING)
        if held is not part and not _of_the_same(held, part):
            break
    else:
        return entity
    given = {alias: getattr(entity, name) for alias, name in _given(entity.__class__)}
    given.update(changes)
    return entity.__class__(**given)


def _of_the_same(held: Any, given: Any) -> bool:
    """Whether these are tuples of the very same parts: what is only equal may still differ (the id of a tag)."""
    return type(held) is type(given) is tuple and len(held) == len(given) and all(map(is_, held, given))


@cache
def field_names(entity: type[Any]) -> tuple[str, ...]:
    """The neutral fields of an entity or a vocabulary class, in order, without id and what tells of the reading."""
    return tuple(name for name in fields_dict(entity) if name not in _READING)


def filled(entity: Any) -> frozenset[str]:
    """The names of the fields that say something: neither empty nor what a new one has anyway (a note is a text)."""
    said: set[str] = set()
    for name, default in _defaults(entity.__class__):
        content = getattr(entity, name)
        # What a field has by itself is most often the very same object, and what is true is not empty.
        if content is default or content is None:
            continue
        # False says something where a new one is True: a user who is not active.
        empty = not content and is_empty(content) and not (content is False and default is True)
        if not empty and (default is None or content != default):
            said.add(name)
    return frozenset(said)


@cache
def _defaults(entity: type[Any]) -> tuple[tuple[str, Any], ...]:
    return tuple((name, part.default) for name, part in fields_dict(entity).items() if name not in _READING)


def on_the_second(entity: T) -> T:
    """The entity with its times as whole seconds, which is how most vendors keep them."""
    times = {name: getattr(entity, name, None) for name in ("created_at", "updated_at", "closed_at", "due")}
    changes = {name: at.replace(microsecond=0) for name, at in times.items() if at is not None and at.microsecond}
    return evolve(entity, **changes) if changes else entity  # pyright: ignore[reportArgumentType]


def fields_emptied(entity: T, names: Iterable[str]) -> T:
    """The entity with these fields as empty as a new one's; what a new one must have stays."""
    names = frozenset(names)
    if not names:
        return entity
    known = fields_dict(type(entity))  # pyright: ignore[reportArgumentType]
    emptied = {name: _empty(known[name].default) for name in names if known[name].default is not NOTHING}
    return evolve(entity, **emptied)  # pyright: ignore[reportArgumentType]


def _empty(default: Any) -> Any:
    return default.factory() if hasattr(default, "factory") else default


def is_empty(content: object) -> bool:
    return content is None or content is False or content == () or content == {} or content == ""
