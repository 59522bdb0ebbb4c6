"""What can be done with what the target cannot carry as it is: told in a text, kept in a field, archived or dropped."""

from collections.abc import Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, Final, cast

from attrs import frozen

from crmclient import flows
from crmclient.dialect import Dialect, Listing, Verb
from crmclient.entities import (
    Email,
    FieldType,
    FieldValue,
    Id,
    Kind,
    Link,
    Money,
    Note,
    Phone,
    Ref,
    Tag,
    is_empty,
)
from crmclient.migration.matching import MOVED
from crmclient.vocabulary import Field

# In an order from the nearest to what it was to nothing of it.
CHOICES: Final = ("field", "fold", "archive", "drop")
# What a note of a vendor's own kind has beside its text: it goes into the text all together, or not at all.
OF_ITS_KIND: Final = frozenset({"note.kind", "note.raw_kind", "note.params"})
# Types of custom fields that mean the same in any account; of another, what it says goes into a text.
MAKEABLE: Final = frozenset(
    {
        *(FieldType.TEXT, FieldType.TEXTAREA, FieldType.NUMBER, FieldType.BOOL, FieldType.URL),
        *(FieldType.SELECT, FieldType.MULTISELECT, FieldType.RADIO, FieldType.STREET, FieldType.ADDRESS),
        *(FieldType.DATE, FieldType.DATETIME, FieldType.BIRTHDAY),
    }
)
_CUSTOM: Final = "fields: "
_ENTITIES: Final = {entity.KIND: entity for entity in MOVED.values()}


@frozen
class What:
    """What is lost: a field of a kind of rows, a custom field of theirs by its name, or rows as a whole."""

    said: str

    @property
    def kind(self) -> Kind | None:
        """The kind of rows whose field it is; None where it is whole rows."""
        kind, dot, _ = self.said.partition(".")
        return Kind(kind) if dot and kind in _ENTITIES else None

    @property
    def name(self) -> str:
        """The field; of custom fields all together, or one of them, ``fields``."""
        name = self.said.partition(".")[2]
        return "fields" if name.startswith(_CUSTOM) else name

    @property
    def custom(self) -> str | None:
        """What the custom field is called."""
        name = self.said.partition(".")[2]
        return name.removeprefix(_CUSTOM) if name.startswith(_CUSTOM) else None

    @property
    def label(self) -> str:
        """What it is called where it is told in words."""
        return self.custom or self.name.replace("_", " ")


def choices(target: Dialect, said: str) -> tuple[str, ...]:
    """What can be done with a loss, by what the target can do."""
    what = What(said)
    kind = what.kind
    if kind is None or what.name == "text":
        return "archive", "drop"
    if said in OF_ITS_KIND or kind in (Kind.TASK, Kind.NOTE):
        return "fold", "archive", "drop"
    can = {
        "field": what.said != f"{kind}.fields" and _makes_fields(target, kind),
        "fold": _takes_notes(target, kind),
    }
    return tuple(choice for choice in CHOICES if can.get(choice, True))


def _makes_fields(target: Dialect, kind: Kind) -> bool:
    resource = target.resources.get(_ENTITIES[kind])
    carried = resource is not None and "fields" in resource.survivors(Verb.CREATE) & resource.survivors(Verb.LIST)
    return carried and target.can(Field, Verb.CREATE)


def _takes_notes(target: Dialect, kind: Kind) -> bool:
    """Whether notes can be made that hang on rows of a kind."""
    if not target.can(Note, Verb.CREATE) or not target.can(_ENTITIES[kind], Verb.CREATE):
        return False
    listing = target.resource(Note).routes.get(Verb.LIST)
    if isinstance(listing, Listing) and listing.nested is not None and kind not in listing.nested.parents:
        return False
    kept, _ = flows.carried(target, Note(text="-", target=Ref(kind, 1)))
    return kept.target is not None


# -------------------------------------------------------------------------------------------------------- in words


def in_words(part: Any, names: Mapping[Ref, str]) -> str:
    """A content on one line, for a person; ``names`` are what users, stages and types are called."""
    if isinstance(part, tuple | list):
        parts = [in_words(each, names) for each in cast("tuple[Any, ...]", part)]
        return ", ".join(each for each in parts if each)
    if isinstance(part, Mapping):
        table = cast("Mapping[str, Any]", part)
        return ", ".join(f"{name} {in_words(each, names)}" for name, each in table.items() if not is_empty(each))
    if isinstance(part, bool):
        return "yes" if part else "no"
    if isinstance(part, Decimal):
        return f"{part:f}"
    if isinstance(part, datetime):
        return part.astimezone(UTC).replace(microsecond=0, tzinfo=None).isoformat(" ") + " UTC"
    if isinstance(part, date):
        return part.isoformat()
    if isinstance(part, FieldValue):
        return in_words(part.values, names)
    if isinstance(part, Ref):
        return names.get(part) or f"{part.kind.replace('_', ' ')} {part.id}"
    return " ".join("".join(letter if letter.isprintable() else " " for letter in _alone(part)).split())


def _alone(part: Any) -> str:
    if isinstance(part, Phone | Email):
        return f"{part.value} ({part.raw_label or part.label})"
    if isinstance(part, Tag):
        return part.name
    if isinstance(part, Link):
        return part.name or f"{part.ref.kind} {part.ref.id}"
    if isinstance(part, Money):
        return " ".join(filter(None, (f"{part.amount:f}", part.currency)))
    return str(part)


def stage_named(pipeline: Id | None, stage: Id | None) -> Ref:
    """Under which reference a stage has its name: its id alone may be one of every pipeline."""
    return Ref(Kind.STAGE, f"{pipeline}/{stage}")
