"""The words an account has of its own: users, pipelines, stages, fields. Entities point at them and never copy them."""

from datetime import tzinfo
from typing import Any, ClassVar
from zoneinfo import ZoneInfo

from attrs import field, frozen

from crmclient.entities import FieldType, Id, Kind, Outcome, Ref


@frozen(kw_only=True)
class Account:
    """The account a client is connected to. ``zone`` is None where the dialect does not tell it."""

    id: Id | None = None
    name: str | None = None
    subdomain: str | None = None
    currency: str | None = None
    zone: tzinfo | None = None
    raw: Any = field(default=None, eq=False, repr=False)


@frozen(kw_only=True)
class User:
    """A person who works in the account."""

    KIND: ClassVar[Kind] = Kind.USER

    id: Id | None = None
    name: str | None = None
    email: str | None = None
    active: bool = True
    admin: bool = False
    raw: Any = field(default=None, eq=False, repr=False)

    @property
    def ref(self) -> Ref:
        return Ref(self.KIND, self.id)


@frozen(kw_only=True)
class Stage:
    """One step of a pipeline. Its key is (pipeline, id)."""

    KIND: ClassVar[Kind] = Kind.STAGE

    id: Id | None = None
    name: str | None = None
    sort: int = 0
    outcome: Outcome = Outcome.OPEN
    editable: bool = True
    color: str | None = None
    raw: Any = field(default=None, eq=False, repr=False)

    @property
    def ref(self) -> Ref:
        return Ref(self.KIND, self.id)


@frozen(kw_only=True)
class Pipeline:
    """The way deals go, stage by stage in order."""

    KIND: ClassVar[Kind] = Kind.PIPELINE

    id: Id | None = None
    name: str | None = None
    sort: int = 0
    main: bool = False
    archived: bool = False
    stages: tuple[Stage, ...] = ()
    raw: Any = field(default=None, eq=False, repr=False)

    @property
    def ref(self) -> Ref:
        return Ref(self.KIND, self.id)


@frozen(kw_only=True)
class Option:
    """One choice of a select field."""

    id: Id | None = None
    value: str
    code: str | None = None
    sort: int = 0


@frozen(kw_only=True)
class Field:
    """The definition of a custom field."""

    KIND: ClassVar[Kind] = Kind.FIELD

    id: Id | None = None
    entity: Kind
    code: str | None = None
    name: str | None = None
    type: FieldType = FieldType.TEXT
    raw_type: str | None = None
    options: tuple[Option, ...] = ()
    raw: Any = field(default=None, eq=False, repr=False)

    @property
    def ref(self) -> Ref:
        return Ref(self.KIND, self.id)


def zone_named(name: str | None) -> tzinfo | None:
    """An IANA zone by name, or None for a name this machine does not know."""
    if not name:
        return None
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        return None
