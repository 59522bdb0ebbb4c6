"""Neutral to Kommo and back: pure functions, one pair an entity.

``encode`` gives the row as it would be read; what the server does not take on writing (a field's type, a contact's
company) is cut off by the route's envelope.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation
from typing import Any

from attrs import evolve

from crmclient import entities, vocabulary
from crmclient.dialect import Context, mapping
from crmclient.entities import (
    Email,
    FieldType,
    FieldValue,
    Kind,
    Label,
    Link,
    Money,
    NoteKind,
    Outcome,
    Phone,
    Ref,
    Tag,
)
from crmclient.errors import Invalid, Issue
from crmclient.serial import structured
from crmclient.vocabulary import zone_named
from crmclient_kommo import wire
from crmclient_kommo.wire import CONVERTER, KINDS, LABELS, NOTE_KINDS, TYPES, moment

WON, LOST = 142, 143

# The fields of a person that are custom fields on the wire (§4.2).
PHONE, EMAIL, POSITION = "PHONE", "EMAIL", "POSITION"
_BUILT_IN = (PHONE, EMAIL, POSITION)

# §4.7; the types this release carries. The others stay in `raw`.
FIELD_TYPES: Mapping[str, FieldType] = {
    "text": FieldType.TEXT,
    "textarea": FieldType.TEXTAREA,
    "numeric": FieldType.NUMBER,
    "select": FieldType.SELECT,
    "date": FieldType.DATE,
}
_WORDS = {type: word for word, type in FIELD_TYPES.items()}


# ------------------------------------------------------------------------------------------------------- contacts


def decode_contact(row: Any, context: Context) -> entities.Contact:
    read = structured(CONVERTER, row, wire.Contact, "contact")
    companies = read.embedded.companies
    return entities.Contact(
        **_owned(read),
        name=read.name or None,
        first_name=read.first_name or None,  # "" when only `name` was given (§4.2)
        last_name=read.last_name or None,
        position=_text_of(read.custom_fields_values, POSITION),
        phones=tuple(Phone(value, **label) for value, label in _labelled(read.custom_fields_values, PHONE)),
        emails=tuple(Email(value, **label) for value, label in _labelled(read.custom_fields_values, EMAIL)),
        company=Link(Ref(Kind.COMPANY, companies[0].id)) if companies else None,
        deals=_links(Kind.DEAL, read.embedded.leads),
        tags=_tags(read.embedded),
        fields=_fields(read.custom_fields_values, context),
        deleted=read.is_deleted or False,
        raw=row,
        unread=_unread(deals=read.embedded.leads, company=companies),
    )


def encode_contact(contact: entities.Contact, fields: frozenset[str], context: Context) -> dict[str, Any]:
    found = _plain(contact, fields, {"name": "name", "first_name": "first_name", "last_name": "last_name"})
    found |= _owner_and_times(contact, fields)
    customs: list[dict[str, Any]] = []
    if "position" in fields:
        customs.append(_custom(POSITION, [{"value": contact.position}] if contact.position else []))
    customs += _reachable(contact, fields)
    customs += _encoded_fields(contact, fields, context)
    return found | _customs(customs, fields) | _embedded(contact, fields)


def surviving_contact(contact: entities.Contact) -> entities.Contact:
    return _surviving(contact)


# ------------------------------------------------------------------------------------------------------ companies


def decode_company(row: Any, context: Context) -> entities.Company:
    read = structured(CONVERTER, row, wire.Contact, "company")
    return entities.Company(
        **_owned(read),
        name=read.name or None,
        phones=tuple(Phone(value, **label) for value, label in _labelled(read.custom_fields_values, PHONE)),
        emails=tuple(Email(value, **label) for value, label in _labelled(read.custom_fields_values, EMAIL)),
        contacts=_links(Kind.CONTACT, read.embedded.contacts),
        deals=_links(Kind.DEAL, read.embedded.leads),
        tags=_tags(read.embedded),
        fields=_fields(read.custom_fields_values, context),
        deleted=read.is_deleted or False,
        raw=row,
        unread=_unread(contacts=read.embedded.contacts, deals=read.embedded.leads),
    )


def encode_company(company: entities.Company, fields: frozenset[str], context: Context) -> dict[str, Any]:
    found = _plain(company, fields, {"name": "name"}) | _owner_and_times(company, fields)
    customs = _reachable(company, fields)
    customs += _encoded_fields(company, fields, context)
    return found | _customs(customs, fields) | _embedded(company, fields)


def surviving_company(company: entities.Company) -> entities.Company:
    return _surviving(company)


# ---------------------------------------------------------------------------------------------------------- deals


def decode_deal(row: Any, context: Context) -> entities.Deal:
    read = structured(CONVERTER, row, wire.Lead, "lead")
    companies = read.embedded.companies
    return entities.Deal(
        **_owned(read),
        name=read.name or None,
        price=Money(read.price) if read.price is not None else None,
        pipeline=Ref(Kind.PIPELINE, read.pipeline_id) if read.pipeline_id else None,
        stage=Ref(Kind.STAGE, read.status_id) if read.status_id else None,
        outcome=_outcome(read.status_id),
        closed_at=moment(read.closed_at),
        contacts=_links(Kind.CONTACT, read.embedded.contacts),
        company=Link(Ref(Kind.COMPANY, companies[0].id)) if companies else None,
        tags=_tags(read.embedded),
        fields=_fields(read.custom_fields_values, context),
        deleted=read.is_deleted or False,
        raw=row,
        unread=_unread(contacts=read.embedded.contacts, company=companies),
    )


def _outcome(status_id: int | None) -> Outcome | None:
    """§4.9. Whether a deal is unsorted only its pipeline tells; here it counts as open."""
    if status_id is None:
        return None
    return {WON: Outcome.WON, LOST: Outcome.LOST}.get(status_id, Outcome.OPEN)


def encode_deal(deal: entities.Deal, fields: frozenset[str], context: Context) -> dict[str, Any]:
    found = _plain(deal, fields, {"name": "name"}) | _owner_and_times(deal, fields)
    if "price" in fields:
        found["price"] = int(deal.price.amount) if deal.price else 0
    if "pipeline" in fields:
        found["pipeline_id"] = deal.pipeline.id if deal.pipeline else None
    if "stage" in fields:
        found["status_id"] = deal.stage.id if deal.stage else None
        if deal.pipeline is not None:
            # A stage is known by its pipeline: without it 142 and 143 go to whichever the deal is in (DECISIONS).
            found["pipeline_id"] = deal.pipeline.id
    if "closed_at" in fields:
        found["closed_at"] = _epoch(deal.closed_at)
    return found | _customs(_encoded_fields(deal, fields, context), fields) | _embedded(deal, fields)


def surviving_deal(deal: entities.Deal) -> entities.Deal:
    """`price` is a whole number in the account's own currency (§4.1)."""
    kept = _surviving(deal)
    if deal.price is None:
        return kept
    return evolve(kept, price=Money(deal.price.amount.quantize(Decimal(1), ROUND_HALF_EVEN)))


# ---------------------------------------------------------------------------------------------------------- tasks


def decode_task(row: Any, context: Context) -> entities.Task:
    read = structured(CONVERTER, row, wire.Task, "task")
    kind = KINDS.get(read.entity_type or "")
    said = mapping(read.result).get("text")
    return entities.Task(
        **_owned(read),
        text=read.text,
        type=Ref(Kind.TASK_TYPE, read.task_type_id) if read.task_type_id is not None else None,
        due=moment(read.complete_till),
        duration=timedelta(seconds=read.duration) if read.duration else None,
        done=read.is_completed or False,
        result=said if isinstance(said, str) and said else None,
        target=Ref(kind, read.entity_id) if kind and read.entity_id else None,
        raw=row,
    )


def encode_task(task: entities.Task, fields: frozenset[str], context: Context) -> dict[str, Any]:
    found = _plain(task, fields, {"text": "text", "done": "is_completed"}) | _owner_and_times(task, fields)
    if "type" in fields:
        found["task_type_id"] = task.type.id if task.type else None
    if "due" in fields:
        found["complete_till"] = _epoch(task.due)
    if "duration" in fields:
        found["duration"] = int(task.duration.total_seconds()) if task.duration else 0
    if "result" in fields:
        found["result"] = {"text": task.result or ""}
    if "target" in fields:
        found["entity_id"] = task.target.id if task.target else None
        found["entity_type"] = TYPES[task.target.kind] if task.target else None
    return found


def surviving_task(task: entities.Task) -> entities.Task:
    """A task hangs on a contact, a company or a lead; its length is in whole seconds (§4.4)."""
    held = task.target is not None and task.target.kind in TYPES
    duration = timedelta(seconds=int(task.duration.total_seconds())) if task.duration is not None else None
    return evolve(_on_the_second(task), target=task.target if held else None, duration=duration or None)


# ---------------------------------------------------------------------------------------------------------- notes


def decode_note(row: Any, context: Context) -> entities.Note:
    read = structured(CONVERTER, row, wire.Note, "note")
    word = read.note_type or "common"
    params = {name: part for name, part in mapping(read.params).items() if name != "text"}
    text = mapping(read.params).get("text")
    # The row names what it hangs on by its id only; of what kind that is, the path it was read from says.
    above = context.parent
    return entities.Note(
        **_owned(read),
        kind=NOTE_KINDS.get(word, NoteKind.OTHER),
        raw_kind=None if word in NOTE_KINDS else word,
        text=text if isinstance(text, str) and text else None,
        params=params,
        target=Ref(above.kind, read.entity_id or above.id) if above is not None else None,
        raw=row,
    )


def encode_note(note: entities.Note, fields: frozenset[str], context: Context) -> dict[str, Any]:
    found = _owner_and_times(note, fields)
    if fields & {"kind", "raw_kind", "text", "params"}:
        # A note's params are written whole, and the type with them (§4.5).
        found["note_type"] = note.raw_kind or _NOTE_WORDS.get(note.kind)
        if found["note_type"] is None:
            raise Invalid("a note of another kind needs raw_kind", [Issue(field="raw_kind", rule="the vendor's word")])
        found["params"] = {**note.params, **({"text": note.text} if note.text is not None else {})}
    if "target" in fields and note.target is not None:
        found["entity_id"] = note.target.id
    return found


_NOTE_WORDS = {kind: word for word, kind in NOTE_KINDS.items()}


def surviving_note(note: entities.Note) -> entities.Note:
    held = note.target is not None and note.target.kind in TYPES
    return evolve(_on_the_second(note), target=note.target if held else None)


# ------------------------------------------------------------------------------------------------------ vocabulary


def decode_user(row: Any, context: Context) -> vocabulary.User:
    read = structured(CONVERTER, row, wire.User, "user")
    active = read.rights.is_active is not False
    return vocabulary.User(
        id=read.id, name=read.name, email=read.email, active=active, admin=bool(read.rights.is_admin), raw=row
    )


def decode_pipeline(row: Any, context: Context) -> vocabulary.Pipeline:
    read = structured(CONVERTER, row, wire.Pipeline, "pipeline")
    stages = sorted(
        (
            vocabulary.Stage(
                id=status.id,
                name=status.name,
                sort=status.sort or 0,
                outcome=Outcome.UNSORTED if status.type == 1 else _outcome(status.id) or Outcome.OPEN,
                editable=status.is_editable is not False,
                color=status.color,
            )
            for status in read.embedded.statuses or ()
        ),
        key=lambda stage: stage.sort,
    )
    return vocabulary.Pipeline(
        id=read.id,
        name=read.name,
        sort=read.sort or 0,
        main=bool(read.is_main),
        archived=bool(read.is_archive),
        stages=tuple(stages),
        raw=row,
    )


def decode_field(row: Any, context: Context) -> vocabulary.Field:
    read = structured(CONVERTER, row, wire.FieldDefinition, "custom field")
    above = KINDS.get(read.entity_type or "") or (context.parent.kind if context.parent else None)
    if above is None:
        raise Invalid(f"custom field {read.id} belongs to {read.entity_type}, which this client does not carry")
    return vocabulary.Field(
        id=read.id,
        entity=above,
        code=read.code,
        name=read.name,
        type=FIELD_TYPES.get(read.type or "", FieldType.OTHER),
        raw_type=read.type,
        options=tuple(
            vocabulary.Option(id=enum.id, value=enum.value, code=enum.code, sort=enum.sort or 0)
            for enum in read.enums or ()
        ),
        raw=row,
    )


def decode_account(row: Any) -> vocabulary.Account:
    read = structured(CONVERTER, row, wire.Account, "account")
    settings = read.embedded.datetime_settings
    return vocabulary.Account(
        id=read.id,
        name=read.name,
        subdomain=read.subdomain,
        currency=read.currency,
        zone=zone_named(settings.timezone) if settings else None,
        raw=row,
    )


# ---------------------------------------------------------------------------------------------------------- parts


def _epoch(at: datetime | None) -> int | None:
    return int(at.timestamp()) if at is not None else None


def _owned(read: Any) -> dict[str, Any]:
    """Who and when. User 0 is the robot (§4.1), and stays user 0."""
    return {
        "id": read.id,
        "owner": _user(read.responsible_user_id),
        "created_by": _user(read.created_by),
        "updated_by": _user(read.updated_by),
        "created_at": moment(read.created_at),
        "updated_at": moment(read.updated_at),
    }


def _user(id: int | None) -> Ref | None:
    return Ref(Kind.USER, id) if id is not None else None


def _plain(entity: Any, fields: frozenset[str], names: Mapping[str, str]) -> dict[str, Any]:
    return {
        word: "" if getattr(entity, name) is None else getattr(entity, name)
        for name, word in names.items()
        if name in fields
    }


def _owner_and_times(entity: Any, fields: frozenset[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, word in (("owner", "responsible_user_id"), ("created_by", "created_by"), ("updated_by", "updated_by")):
        if name in fields and getattr(entity, name) is not None:
            found[word] = getattr(entity, name).id
    for name in ("created_at", "updated_at"):
        if name in fields and getattr(entity, name) is not None:
            found[name] = _epoch(getattr(entity, name))
    return found


def _links(kind: Kind, linked: Sequence[wire.Linked] | None) -> tuple[Link, ...]:
    return tuple(Link(Ref(kind, each.id), main=each.is_main or False) for each in linked or ())


def _tags(embedded: wire.Embedded) -> tuple[Tag, ...]:
    return tuple(Tag(tag.name or "", id=tag.id) for tag in embedded.tags or ())


def _unread(**lists: object) -> frozenset[str]:
    return frozenset(name for name, listed in lists.items() if listed is None)


def _embedded(entity: Any, fields: frozenset[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "tags" in fields:
        # A tag by its name only: id and name together led to duplicates (§6).
        found["tags"] = [{"name": tag.name} for tag in entity.tags]
    if "company" in fields:
        found["companies"] = [{"id": _linked_id("company", entity.company)}] if entity.company else []
    if "contacts" in fields:
        found["contacts"] = [
            {"id": _linked_id("contacts", link), **({"is_main": True} if link.main else {})} for link in entity.contacts
        ]
    return {"_embedded": found} if found else {}


def _linked_id(name: str, link: Link) -> Any:
    if link.ref.id is None:
        raise Invalid("a link needs an id", [Issue(field=name, rule=f"make {link.name!r} first and link it by its id")])
    return link.ref.id


# -------------------------------------------------------------------------------------------------- custom fields


def _labelled(customs: Iterable[wire.CustomField] | None, code: str) -> list[tuple[str, dict[str, Any]]]:
    """The values of PHONE or EMAIL, each with its label; an unknown one keeps the vendor's word."""
    found: list[tuple[str, dict[str, Any]]] = []
    for custom in customs or ():
        if custom.field_code == code:
            for each in custom.values or ():
                word = each.get("enum_code") or each.get("enum")
                label = LABELS[code].get(str(word)) if word else Label.WORK
                raw_label = {"label": Label.OTHER, "raw_label": str(word)} if label is None else {"label": label}
                found.append((str(each.get("value") or ""), raw_label))
    return found


def _text_of(customs: Iterable[wire.CustomField] | None, code: str) -> str | None:
    for custom in customs or ():
        if custom.field_code == code and custom.values:
            return str(custom.values[0].get("value") or "") or None
    return None


def _custom(code: str, values: list[dict[str, Any]]) -> dict[str, Any]:
    # `"values": null` clears (§4.8).
    return {"field_code": code, "values": values or None}


def _reachable(entity: Any, fields: frozenset[str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for name, code in (("phones", PHONE), ("emails", EMAIL)):
        if name in fields:
            words = {label: word for word, label in LABELS[code].items()}
            values = [
                {"value": each.value, "enum_code": each.raw_label or words.get(each.label, "OTHER")}
                for each in getattr(entity, name)
            ]
            found.append(_custom(code, values))
    return found


def _fields(customs: Iterable[wire.CustomField] | None, context: Context) -> tuple[FieldValue, ...]:
    found: list[FieldValue] = []
    for custom in customs or ():
        type = FIELD_TYPES.get(custom.field_type or "")
        if type is None or custom.field_code in _BUILT_IN:
            continue
        values = [_value(type, each.get("value"), context) for each in custom.values or ()]
        found.append(
            FieldValue(
                values=tuple(value for value in values if value is not None),
                field=Ref(Kind.FIELD, custom.field_id) if custom.field_id is not None else None,
                code=custom.field_code,
                name=custom.field_name,
                type=type,
            )
        )
    return tuple(found)


def _value(type: FieldType, given: Any, context: Context) -> Any:
    if given is None or given == "":
        return None
    if type is FieldType.NUMBER:
        # Read back as a string (§4.8); what a person typed there may be no number at all, and is then kept as text.
        try:
            return Decimal(str(given))
        except InvalidOperation:
            return str(given)
    if type is FieldType.DATE and isinstance(given, int):
        # Midnight of the account's zone (§4.8): in another zone it is another day.
        return datetime.fromtimestamp(given, context.zone).date()
    return str(given)


def _encoded_fields(entity: Any, fields: frozenset[str], context: Context) -> list[dict[str, Any]]:
    """The custom fields that are written; an update writes those that changed, and names the ones that went."""
    if "fields" not in fields:
        return []
    found = [_encoded(value, context) for value in entity.fields]
    named = {(value.field, value.code) for value in entity.fields}
    for value in _fields_before(entity, context):
        if (value.field, value.code) not in named:
            found.append(_encoded(evolve(value, values=()), context))
    return found


def _fields_before(entity: Any, context: Context) -> tuple[FieldValue, ...]:
    if entity.written is not None:
        return entity.written.fields
    held = {"values": mapping(entity.raw).get("custom_fields_values")}
    return _fields(structured(CONVERTER, held, wire.CustomFields, "row").values, context)


def _encoded(value: FieldValue, context: Context) -> dict[str, Any]:
    if value.field is None and value.code is None:
        raise Invalid("a custom field", [Issue(field="fields", rule="name it by field=Ref(Kind.FIELD, id) or by code")])
    word = _WORDS.get(value.type)
    if word is None:
        raise Invalid(
            "a custom field", [Issue(field="fields", rule=f"fields of type {value.type} are not written yet")]
        )
    known = {"field_id": value.field.id if value.field else None, "field_code": value.code, "field_name": value.name}
    values = [{"value": _sent(part, context)} for part in value.values]
    return {
        **{name: part for name, part in known.items() if part is not None},
        "field_type": word,
        "values": values or None,
    }


def _sent(part: Any, context: Context) -> Any:
    if isinstance(part, datetime):
        raise Invalid("a custom field", [Issue(field="fields", rule="a date, not a datetime")])
    if isinstance(part, date):
        # Negative numbers are refused (§4.8), so a date before 1970 could not be written as one: RFC 3339 can.
        midnight = datetime.combine(part, time(), context.zone)
        return int(midnight.timestamp()) if midnight.timestamp() >= 0 else midnight.isoformat()
    return str(part) if isinstance(part, Decimal) else part


def _customs(customs: list[dict[str, Any]], fields: frozenset[str]) -> dict[str, Any]:
    return {"custom_fields_values": customs} if fields & {"position", "phones", "emails", "fields"} else {}


# ---------------------------------------------------------------------------------------------------- what survives


def _surviving(entity: Any) -> Any:
    changes: dict[str, Any] = {}
    for name, code in (("phones", PHONE), ("emails", EMAIL)):
        allowed = set(LABELS[code].values())
        parts = getattr(entity, name, None)
        if parts:
            changes[name] = tuple(part if part.label in allowed else evolve(part, label=Label.OTHER) for part in parts)
    company = getattr(entity, "company", None)
    if company is not None:
        changes["company"] = Link(company.ref) if company.ref.id is not None else None
    return evolve(_on_the_second(entity), **changes)


def _on_the_second(entity: Any) -> Any:
    """Times travel as whole seconds."""
    changes: dict[str, Any] = {}
    for name in ("created_at", "updated_at", "closed_at", "due"):
        at = getattr(entity, name, None)
        if at is not None and at.microsecond:
            changes[name] = at.replace(microsecond=0)
    return evolve(entity, **changes)
