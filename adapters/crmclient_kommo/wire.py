"""Kommo's shapes, one to one, in its own words. Sources: reference kommo-v4, sections named beside each rule."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from attrs import evolve, field, frozen

from crmclient.dialect import Call, Receipt, Reply, Row, Unknown, array, mapping
from crmclient.dialect import Made as Written
from crmclient.entities import Kind, Label, NoteKind
from crmclient.errors import AmbiguousWrite, Unreadable
from crmclient.serial import strict

CONVERTER = strict()

API = "/api/v4"

# The vendor's plural of each kind; paths, links and `entity_type` use it (§4).
TYPES: Mapping[Kind, str] = {Kind.CONTACT: "contacts", Kind.COMPANY: "companies", Kind.DEAL: "leads"}
KINDS: Mapping[str, Kind] = {word: kind for kind, word in TYPES.items()}

# §4.8: "PHONE: WORK, WORKDD, MOB, FAX, HOME, OTHER; EMAIL: WORK, PRIV, OTHER".
LABELS: Mapping[str, Mapping[str, Label]] = {
    "PHONE": {
        "WORK": Label.WORK,
        "WORKDD": Label.WORK_DIRECT,
        "MOB": Label.MOBILE,
        "FAX": Label.FAX,
        "HOME": Label.HOME,
        "OTHER": Label.OTHER,
    },
    "EMAIL": {"WORK": Label.WORK, "PRIV": Label.PRIVATE, "OTHER": Label.OTHER},
}

# §4.5. What is not here keeps the vendor's word in `raw_kind`.
NOTE_KINDS: Mapping[str, NoteKind] = {
    "common": NoteKind.TEXT,
    "call_in": NoteKind.CALL_IN,
    "call_out": NoteKind.CALL_OUT,
    "sms_in": NoteKind.SMS_IN,
    "sms_out": NoteKind.SMS_OUT,
    "service_message": NoteKind.SERVICE,
    "geolocation": NoteKind.LOCATION,
    "attachment": NoteKind.FILE,
    "amomail_message": NoteKind.MAIL,
}

# §4.5; the others can only be read.
WRITABLE_NOTES = frozenset(
    {
        "common",
        "call_in",
        "call_out",
        "service_message",
        "extended_service_message",
        "message_cashier",
        "geolocation",
        "sms_in",
        "sms_out",
        "attachment",
    }
)


@frozen(kw_only=True)
class Tag:
    id: int | None = None
    name: str | None = None


@frozen(kw_only=True)
class Linked:
    id: int
    is_main: bool | None = None


@frozen(kw_only=True)
class Embedded:
    """What a row brings along. A list that is missing was not asked for with ``with`` (§3.3)."""

    tags: list[Tag] | None = None
    contacts: list[Linked] | None = None
    companies: list[Linked] | None = None
    leads: list[Linked] | None = None


@frozen(kw_only=True)
class CustomField:
    """§4.8. ``values`` stay as they came: their shape follows from the type, and there are twenty types."""

    field_id: int | None = None
    field_code: str | None = None
    field_name: str | None = None
    field_type: str | None = None
    values: list[dict[str, Any]] | None = None


@frozen(kw_only=True)
class CustomFields:
    values: list[CustomField] | None = None


@frozen(kw_only=True)
class _Owned:
    id: int
    responsible_user_id: int | None = None
    created_by: int | None = None
    updated_by: int | None = None
    created_at: int | None = None
    updated_at: int | None = None


@frozen(kw_only=True)
class Contact(_Owned):
    """§4.2; companies (§4.3) are the same without first and last name."""

    name: str | None = None
    first_name: str | None = None
    last_name: str | None = None
    is_deleted: bool | None = None
    custom_fields_values: list[CustomField] | None = None
    embedded: Embedded = field(factory=Embedded, alias="_embedded")


@frozen(kw_only=True)
class Lead(_Owned):
    """§4.1."""

    name: str | None = None
    price: Decimal | None = None
    status_id: int | None = None
    pipeline_id: int | None = None
    closed_at: int | None = None
    is_deleted: bool | None = None
    custom_fields_values: list[CustomField] | None = None
    embedded: Embedded = field(factory=Embedded, alias="_embedded")


@frozen(kw_only=True)
class Task(_Owned):
    """§4.4. ``result`` is ``[]`` when absent, ``{"text": …}`` when set: PHP's empty array."""

    text: str | None = None
    complete_till: int | None = None
    entity_id: int | None = None
    entity_type: str | None = None
    task_type_id: int | None = None
    duration: int | None = None
    is_completed: bool | None = None
    result: Any = None


@frozen(kw_only=True)
class Note(_Owned):
    """§4.5. ``params`` may be PHP's empty array."""

    entity_id: int | None = None
    note_type: str | None = None
    params: Any = None


@frozen(kw_only=True)
class Rights:
    is_admin: bool | None = None
    is_active: bool | None = None


@frozen(kw_only=True)
class User:
    """§4.10."""

    id: int
    name: str | None = None
    email: str | None = None
    rights: Rights = field(factory=Rights)


@frozen(kw_only=True)
class Status:
    """§4.9: type 1 is the unsorted stage; 142 is won and 143 lost in every pipeline."""

    id: int
    name: str | None = None
    sort: int | None = None
    is_editable: bool | None = None
    color: str | None = None
    type: int | None = None


@frozen(kw_only=True)
class Statuses:
    statuses: list[Status] | None = None


@frozen(kw_only=True)
class Pipeline:
    """§4.9."""

    id: int
    name: str | None = None
    sort: int | None = None
    is_main: bool | None = None
    is_archive: bool | None = None
    embedded: Statuses = field(factory=Statuses, alias="_embedded")


@frozen(kw_only=True)
class Enum:
    id: int
    value: str
    sort: int | None = None
    code: str | None = None


@frozen(kw_only=True)
class FieldDefinition:
    """§4.7."""

    id: int
    name: str | None = None
    code: str | None = None
    type: str | None = None
    entity_type: str | None = None
    enums: list[Enum] | None = None
    nested: list[Enum] | None = None


@frozen(kw_only=True)
class DatetimeSettings:
    timezone: str | None = None


@frozen(kw_only=True)
class TaskType:
    id: int
    name: str | None = None


@frozen(kw_only=True)
class AccountParts:
    datetime_settings: DatetimeSettings | None = None
    task_types: tuple[TaskType, ...] | None = None


@frozen(kw_only=True)
class Account:
    """§4.11."""

    id: int
    name: str | None = None
    subdomain: str | None = None
    current_user_id: int | None = None
    currency: str | None = None
    is_api_filter_enabled: bool | None = None
    embedded: AccountParts = field(factory=AccountParts, alias="_embedded")


# ------------------------------------------------------------------------------------- what the neutral client lacks


@frozen(kw_only=True)
class TieMetadata:
    main_contact: bool | None = None
    quantity: Decimal | None = None
    catalog_id: int | None = None
    price_id: int | None = None


@frozen(kw_only=True)
class Tie:
    """§4.13, of the listing over many, where each row says whose it is."""

    entity_id: int
    entity_type: str
    to_entity_id: int
    to_entity_type: str
    metadata: TieMetadata | None = None


@frozen(kw_only=True)
class Named:
    id: int
    name: str | None = None


@frozen(kw_only=True)
class KnownTag(Named):
    """§4.6: a colour is for leads only."""

    color: str | None = None


@frozen(kw_only=True)
class LossReason(Named):
    sort: int | None = None


@frozen(kw_only=True)
class Hook:
    """§4.12. ``settings`` is a list, or an object of codes."""

    id: int
    destination: str
    settings: Any = None
    disabled: bool | None = None
    created_at: int | None = None
    updated_at: int | None = None


@frozen(kw_only=True)
class Event:
    """§4.14. What changed is ``[]`` or a list of objects, each of another shape."""

    id: str
    type: str
    entity_id: int | None = None
    entity_type: str | None = None
    created_by: int | None = None
    created_at: int | None = None
    value_after: Any = None
    value_before: Any = None


@frozen(kw_only=True)
class Unsorted:
    """§4.15."""

    uid: str
    category: str | None = None
    source_uid: str | None = None
    source_name: str | None = None
    pipeline_id: int | None = None
    created_at: int | None = None
    metadata: Any = None


@frozen(kw_only=True)
class Catalog(Named):
    """§4.16."""

    type: str | None = None
    sort: int | None = None


@frozen(kw_only=True)
class Element(Named):
    """§4.16."""

    catalog_id: int | None = None
    created_at: int | None = None
    updated_at: int | None = None
    is_deleted: bool | None = None


# ------------------------------------------------------------------------------------------------------- envelopes


def rows(word: str) -> Callable[[Reply], Sequence[Any]]:
    """The rows of a list, ``_embedded.{word}``; a 204 without a body is an empty one (§3.1)."""

    def found(reply: Reply) -> Sequence[Any]:
        if reply.body is None:
            return ()
        listed = mapping(mapping(reply.body).get("_embedded")).get(word)
        if not isinstance(listed, list):
            raise Unreadable(f"a list was due, with its rows in _embedded.{word}", status=reply.status)
        return array(listed)  # pyright: ignore[reportUnknownArgumentType]

    return found


def one(reply: Reply) -> Any | None:
    """A single row; a 204 says there is none (§3.2)."""
    return reply.body


# §2.3: at most 250 rows a write.
TIES_A_CALL = 250


def tie(id: Any, to_type: str, to_id: Any, *, main: bool = False, **metadata: Any) -> dict[str, Any]:
    """§4.13: one row of a link or an unlink."""
    said = {
        **({"is_main": True} if main else {}),
        **{name: part for name, part in metadata.items() if part is not None},
    }
    row = {"entity_id": id, "to_entity_id": to_id, "to_entity_type": to_type}
    return {**row, **({"metadata": said} if said else {})}


def tie_calls(doing: str, type: str, ties: Sequence[dict[str, Any]]) -> list[Call]:
    """§4.13: ties of one type, 250 a request. Linking what is linked and unlinking what is not change nothing."""
    return [
        Call("POST", f"{API}/{type}/{doing}", body=list(ties[at : at + TIES_A_CALL]), replayable=True)
        for at in range(0, len(ties), TIES_A_CALL)
    ]


def next_link(reply: Reply) -> str | None:
    """§3.1: absent on the last page, where the method is not one that always sends it."""
    href = mapping(mapping(mapping(reply.body).get("_links")).get("next")).get("href")
    return href if isinstance(href, str) else None


def created(word: str) -> Callable[[Reply, Sequence[Row]], tuple[Receipt[Any], ...]]:
    """§5: rows come back in any order, each with the request_id it was sent with."""

    def matched(reply: Reply, sent: Sequence[Row]) -> tuple[Receipt[Any], ...]:
        ids = {str(each.get("request_id")): each.get("id") for each in map(mapping, rows(word)(reply))}
        return tuple(_written(ids.get(str(row.request_id)), reply) for row in sent)

    return matched


def updated(word: str) -> Callable[[Reply, Sequence[Row]], tuple[Receipt[Any], ...]]:
    """§5: an update's answer names the ids; only tasks' name the request_id too."""

    def matched(reply: Reply, sent: Sequence[Row]) -> tuple[Receipt[Any], ...]:
        told = (each for each in map(mapping, rows(word)(reply)) if isinstance(each.get("id"), int))
        known = {each["id"]: moment(each.get("updated_at")) for each in told}
        found: list[Receipt[Any]] = []
        for row in sent:
            receipt = _written(row.id if row.id in known else None, reply)
            at = known.get(row.id)
            found.append(evolve(receipt, known={"updated_at": at}) if isinstance(receipt, Written) and at else receipt)
        return tuple(found)

    return matched


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def moment(epoch: object) -> datetime | None:
    """Unix seconds; 0 is an empty one. Raises Unreadable for a time that no calendar has."""
    if not isinstance(epoch, int) or not epoch:
        return None
    try:
        # Not every system's fromtimestamp knows times before 1970.
        return datetime.fromtimestamp(epoch, UTC) if epoch > 0 else _EPOCH + timedelta(seconds=epoch)
    except (OverflowError, ValueError, OSError):
        raise Unreadable(f"{epoch} is no time in seconds") from None


def span(seconds: int | None) -> timedelta | None:
    """Seconds; 0 is an empty one. Raises Unreadable for more than anybody counts."""
    try:
        return timedelta(seconds=seconds) if seconds else None
    except OverflowError:
        raise Unreadable(f"{seconds} is no length of time in seconds") from None


def _written(id: Any, reply: Reply) -> Receipt[Any]:
    if isinstance(id, int) and not isinstance(id, bool):
        return Written(id=id)
    said = "the answer to the batch does not name this row: it is unknown whether it was applied"
    return Unknown(error=AmbiguousWrite(said, status=reply.status, request_id=reply.request_id))
