"""The words an account has of its own: users, pipelines, stages, fields. Entities point at them and never copy them."""

from datetime import tzinfo
from typing import Any, ClassVar
from zoneinfo import ZoneInfo

from attrs import field, frozen

from crmclient.entities import FieldType, Id, Kind, Outcome, Ref


@frozen(kw_only=True)
class Account:
    """The account a client is connected to. ``zone`` is None where the dialect does not tell it, and ``filters`` where it
    does not tell whether it heeds them.
    """

    id: Id | None = None
    name: str | None = None
    subdomain: str | None = None
    currency: str | None = None
    zone: tzinfo | None = None
    filters: bool | None = None
    raw: Any = field(default=None, eq=False, repr=False)


@frozen(kw_only=True)
class Word:
    """What users, pipelines, stages and fields have in common. What ``raw``, ``unread`` and ``written`` are, Entity says."""

    KIND: ClassVar[Kind]

    id: Id | None = None
    raw: Any = field(default=None, eq=False, repr=False)
    unread: frozenset[str] = field(default=frozenset(), eq=False, repr=False)
    written: Any = field(default=None, eq=False, repr=False)

    @property
    def ref(self) -> Ref:
        return Ref(self.KIND, self.id)


@frozen(kw_only=True)
class User(Word):
    """A person who works in the account."""

    KIND = Kind.USER

    name: str | None = None
    email: str | None = None
    active: bool = True
    admin: bool = False


@frozen(kw_only=True)
class Stage(Word):
    """One step of a pipeline. Its key is (pipeline, id)."""

    KIND = Kind.STAGE

    name: str | None = None
    sort: int = 0
    outcome: Outcome = Outcome.OPEN
    editable: bool = True
    color: str | None = None


@frozen(kw_only=True)
class Pipeline(Word):
    """The way deals go, stage by stage in order."""

    KIND = Kind.PIPELINE

    name: str | None = None
    sort: int = 0
    main: bool = False
    archived: bool = False
    stages: tuple[Stage, ...] = ()


@frozen(kw_only=True)
class TaskType(Word):
    """What a task can be. ``code`` names those that accounts have from the beginning: FOLLOW_UP, MEETING, LETTER."""

    KIND = Kind.TASK_TYPE

    name: str | None = None
    code: str | None = None


@frozen(kw_only=True)
class Option:
    """One choice of a select field."""

    id: Id | None = None
    value: str
    code: str | None = None
    sort: int = 0


@frozen(kw_only=True)
class Field(Word):
    """The definition of a custom field."""

    KIND = Kind.FIELD

    entity: Kind
    code: str | None = None
    name: str | None = None
    type: FieldType = FieldType.TEXT
    raw_type: str | None = None
    options: tuple[Option, ...] = ()


@frozen(kw_only=True)
class KnownTag(Word):
    """A tag that the account knows for one kind of rows; on a row it is a Tag. ``color`` is six hex digits."""

    KIND = Kind.TAG

    entity: Kind
    name: str | None = None
    color: str | None = None


@frozen(kw_only=True)
class Subscription(Word):
    """Where the vendor sends word of what happens, and of what: ``events`` are in its own words.

    ``id`` is what the vendor ends it by: where that is the address, it is ``url`` again. One that failed too often is no
    longer ``active``.
    """

    KIND = Kind.SUBSCRIPTION

    url: str | None = None
    events: tuple[str, ...] = field(default=(), converter=tuple)
    active: bool = True


def zone_named(name: str | None) -> tzinfo | None:
    """An IANA zone by name, or None for a name this machine does not know."""
    if not name:
        return None
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        return None
