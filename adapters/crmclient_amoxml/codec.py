"""Neutral to XML and back: pure functions, one pair an entity.

Elements are read and PHP-style forms are written, so ``whole_…`` turns a reading into the form that says the same: an
edit sends everything, what the neutral model does not name too.
"""

import re
from collections.abc import Container, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from attrs import evolve

from crmclient import entities
from crmclient.dialect import Context, mapping
from crmclient.entities import Email, FieldType, FieldValue, Kind, Label, Link, Money, Phone, Ref, Tag
from crmclient.errors import Invalid, Issue
from crmclient_amoxml import wire
from crmclient_amoxml.wire import (
    ELEMENTS,
    EMAIL_LABELS,
    KINDS,
    PHONE_LABELS,
    SHORT_LABELS,
    TASK_TYPES,
    Element,
    Entry,
    Words,
)

# ------------------------------------------------------------------------------------------------------- contacts

# Which section of a row tells a neutral field.
_CONTACT = {
    "name": "name",
    "phones": "phones",
    "emails": "emails",
    "tags": "tags",
    "owner": "user",
    "deals": "deals",
    "created_at": "date_create",
    "updated_at": "date_modify",
}


def decode_contact(words: Words, row: Element, context: Context) -> entities.Contact:
    read = wire.contact(row, words)
    unread = _unread(read.told, _CONTACT, context)
    if "emails" not in read.told:
        # §6: a short row brings no e-mails; then a position that is missing is not told, elsewhere it is empty.
        unread |= {"position", "company"} - read.told
    if not {"webs", "addresses", "messengers"} <= read.told:
        unread |= {"fields"}
    return entities.Contact(
        id=read.id,
        name=read.name,
        position=read.position,
        phones=tuple(Phone(each.value, **_label(each, PHONE_LABELS)) for each in read.phones),
        emails=tuple(Email(each.value, **_label(each, EMAIL_LABELS)) for each in read.emails),
        # §4: a company is known by its id and name; it is no row of its own.
        company=Link(Ref(Kind.COMPANY, read.company.id), name=read.company.name) if read.company else None,
        deals=_links(Kind.DEAL, read.deals),
        tags=tuple(Tag(name) for name in read.tags),
        fields=_fields(read),
        owner=_user(read),
        created_at=_utc(read.date_create, context),
        updated_at=_utc(read.date_modify, context),
        raw=row,
        unread=unread,
    )


# The seed's web_addresses, addresses and instant_messengers, under the codes the vendor's later APIs know them by.
WEB, ADDRESS, MESSENGER = "WEB", "ADDRESS", "IM"
CODES: Mapping[str, FieldType] = {WEB: FieldType.URL, ADDRESS: FieldType.STREET, MESSENGER: FieldType.MULTITEXT}


def _fields(read: wire.Contact) -> tuple[FieldValue, ...]:
    """There are no custom fields, only these three sections."""
    said: Mapping[str, list[Any]] = {
        WEB: [each.value for each in read.webs],
        ADDRESS: [each.value for each in read.addresses],
        MESSENGER: [_messenger(each) for each in read.messengers],
    }
    return tuple(FieldValue(parts, code=code, type=CODES[code]) for code, parts in said.items() if parts)


def _messenger(each: Entry) -> str | dict[str, str]:
    """A map where its protocol is told, as with a labelled value of any dialect."""
    return {"value": each.value, "enum": each.label} if each.label else each.value


def encode_contact(contact: entities.Contact, fields: frozenset[str], context: Context) -> dict[str, Any]:
    found: dict[str, Any] = {}
    data: dict[str, Any] = {}
    if "name" in fields:
        found["person_name"] = contact.name or ""
    if "position" in fields:
        found["person_position"] = contact.position or ""
    if "company" in fields:
        # Both, always: an old id beside a new name would be the old company.
        found["person_company_name"] = (contact.company.name if contact.company else None) or ""
        found["person_company_id"] = (contact.company.ref.id if contact.company else None) or ""
    if "phones" in fields:
        data["phone_numbers"] = _paired(_entries(contact.phones, PHONE_LABELS), "number", "location")
    if "emails" in fields:
        data["email_addresses"] = _paired(_entries(contact.emails, EMAIL_LABELS), "address", "location")
    if "fields" in fields:
        data |= _sections(contact)
    found |= _owner_and_tags(contact, fields)
    return {**found, **({"contact_data": data} if data else {})}


def _sections(contact: entities.Contact) -> dict[str, Any]:
    """The three sections as forms: those that are named, and of a contact that was read whole those that went."""
    read_whole = (contact.raw is not None or contact.written is not None) and "fields" not in contact.unread
    parts = {code: list[Entry]() for code in CODES if read_whole or not contact.fields}
    for value in contact.fields:
        if value.code is not None and value.code in CODES:
            parts.setdefault(value.code, []).extend(_entry(part) for part in value.values)
    return {_SECTIONS[code]: _section(code, given) for code, given in parts.items()}


_SECTIONS = {WEB: "web_addresses", ADDRESS: "addresses", MESSENGER: "instant_messengers"}


def _section(code: str, given: Sequence[Entry]) -> Any:
    if code == ADDRESS:
        return _streets(given)
    return _paired(given, "url", "") if code == WEB else _paired(given, "address", "protocol")


def _entry(part: Any) -> Entry:
    said = mapping(part)
    return Entry(said["value"], said.get("enum") or "") if said else Entry(part)


def _streets(given: Sequence[Entry]) -> Any:
    """§4: addresses are a map {street} in the seed, and a list of them in a live client."""
    streets = [{"street": each.value} for each in given]
    return streets if len(streets) > 1 else {"street": "", **(streets[0] if streets else {})}


def surviving_contact(contact: entities.Contact) -> entities.Contact:
    """Labels of the vendor's list, no empty phones or e-mails, a company without a role, and of custom fields the three
    sections that there are for web pages, addresses and messengers.
    """
    company = contact.company and evolve(contact.company, main=False, name=_sayable(contact.company.name))
    return evolve(
        contact,
        name=_sayable(contact.name),
        position=_sayable(contact.position),
        phones=_reachable(contact.phones, PHONE_LABELS),
        emails=_reachable(contact.emails, EMAIL_LABELS),
        company=company if company and (company.name or company.ref.id is not None) else None,
        tags=_surviving_tags(contact.tags),
        fields=tuple(filter(None, map(_surviving_field, contact.fields))),
    )


def _surviving_field(value: FieldValue) -> FieldValue | None:
    if value.code not in CODES or value.field is not None:
        return None
    kept = tuple(part for part in value.values if _is_text(part) or (value.code == MESSENGER and _is_messenger(part)))
    return evolve(value, values=kept) if kept or not value.values else None


def _is_messenger(part: Any) -> bool:
    said = mapping(part)
    return said.keys() <= {"value", "enum"} and all(map(_is_text, (said.get("value"), said.get("enum") or "-")))


def _is_text(part: Any) -> bool:
    return isinstance(part, str) and bool(part.strip()) and _sayable(part) == part


def whole_contact(words: Words, reading: Element) -> dict[str, Any]:
    """seed, "Editing a contact": "you need to transfer all the contact information"."""
    read = wire.contact(reading, words)
    return {
        "person_name": read.name or "",
        "person_position": read.position or "",
        "person_company_name": (read.company.name if read.company else None) or "",
        "person_company_id": (read.company.id if read.company else None) or "",
        "contact_data": {
            "phone_numbers": _paired(read.phones, "number", "location"),
            "email_addresses": _paired(read.emails, "address", "location"),
            "web_addresses": _paired(read.webs, "url", ""),
            "addresses": _streets(read.addresses),
            "instant_messengers": _paired(read.messengers, "address", "protocol"),
        },
        "main_user_id": (read.user.id if read.user else None) or "",
        "tags": ",".join(read.tags),
    }


# By section of a reading, the key under which an edit says it.
_CONTACT_KEYS = {
    "name": "person_name",
    "phones": "phone_numbers",
    "emails": "email_addresses",
    "webs": "web_addresses",
    "addresses": "addresses",
    "messengers": "instant_messengers",
    "tags": "tags",
    "user": "main_user_id",
}


def contact_lacks(words: Words, reading: Element, change: Mapping[str, Any]) -> tuple[str, ...]:
    """What an edit would erase, because the detail does not tell it. A position and a company may be left out (§6)."""
    said = {*change, *change.get("contact_data", ())}
    return _untold(wire.contact(reading, words).told, _CONTACT_KEYS, said)


# ---------------------------------------------------------------------------------------------------------- deals

_DEAL = {
    "name": "name",
    "price": "price",
    "stage": "status",
    "contacts": "contacts",
    "tags": "tags",
    "owner": "user",
    "created_at": "date_create",
    "updated_at": "date_modify",
}


def decode_deal(words: Words, row: Element, context: Context) -> entities.Deal:
    read = wire.deal(row, words)
    return entities.Deal(
        id=read.id,
        name=read.name,
        price=Money(read.price) if read.price is not None else None,
        # There are statuses and no pipelines; which of them is won, nobody tells.
        stage=Ref(Kind.STAGE, read.status.id) if read.status and read.status.id is not None else None,
        contacts=_links(Kind.CONTACT, read.contacts),
        tags=tuple(Tag(name) for name in read.tags),
        owner=_user(read),
        created_at=_utc(read.date_create, context),
        updated_at=_utc(read.date_modify, context),
        raw=row,
        unread=_unread(read.told, _DEAL, context),
    )


def encode_deal(deal: entities.Deal, fields: frozenset[str], context: Context) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "name" in fields:
        found["name"] = deal.name or ""
    if "price" in fields:
        found["price"] = format(deal.price.amount, "f") if deal.price else ""
    if "stage" in fields:
        found["status_id"] = (deal.stage.id if deal.stage else None) or ""
    if "contacts" in fields:
        found["linked_contact"] = deal.contacts[0].ref.id if deal.contacts else ""
    return found | _owner_and_tags(deal, fields)


def surviving_deal(deal: entities.Deal) -> entities.Deal:
    """seed: `linked_contact` is one id, and so the main one; a price is a number without a currency."""
    known = [link for link in deal.contacts if link.ref.id is not None]
    main = [link for link in known if link.main] or known
    return evolve(
        deal,
        name=_sayable(deal.name),
        contacts=tuple(Link(link.ref, main=True) for link in main[:1]),
        price=Money(deal.price.amount) if deal.price else None,
        tags=_surviving_tags(deal.tags),
    )


def whole_deal(words: Words, reading: Element) -> dict[str, Any]:
    """seed, "Editing deal": "must pass all of these"."""
    read = wire.deal(reading, words)
    return {
        "name": read.name or "",
        "status_id": (read.status.id if read.status else None) or "",
        "price": format(read.price, "f") if read.price is not None else "",
        "main_user_id": (read.user.id if read.user else None) or "",
        "tags": ",".join(read.tags),
        "linked_contact": (read.contacts[0].id if read.contacts else None) or "",
    }


_DEAL_KEYS = {
    "name": "name",
    "price": "price",
    "status": "status_id",
    "user": "main_user_id",
    "tags": "tags",
    "contacts": "linked_contact",
}


def deal_lacks(words: Words, reading: Element, change: Mapping[str, Any]) -> tuple[str, ...]:
    """What an edit would erase; it writes one contact, and what it does to the others nobody knows (§7.12)."""
    read = wire.deal(reading, words)
    more = ("contacts besides the first",) if len(read.contacts) > 1 else ()
    return _untold(read.told, _DEAL_KEYS, change) + more


# ---------------------------------------------------------------------------------------------------------- notes


def decode_note(words: Words, row: Element, context: Context) -> entities.Note:
    read = wire.note(row, words)
    return entities.Note(
        id=read.id,
        text=read.body,
        target=_target(read, context),
        owner=_user(read),
        created_at=_utc(read.date_create, context),
        raw=row,
        unread=_unread(read.told, {"owner": "user", "created_at": "date_create"}, context),
    )


def encode_note(note: entities.Note, fields: frozenset[str], context: Context) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "text" in fields:
        found["BODY"] = note.text or ""
    if "target" in fields and note.target is not None:
        found |= {"ID": note.target.id, "ELEMENT_TYPE": ELEMENTS[note.target.kind]}
    return found


def surviving_note(note: entities.Note) -> entities.Note:
    """A note hangs on a contact or a deal."""
    return evolve(note, target=_held(note.target), text=_sayable(note.text))


# ---------------------------------------------------------------------------------------------------------- tasks


def decode_task(words: Words, row: Element, context: Context) -> entities.Task:
    read = wire.task(row, words)
    return entities.Task(
        id=read.id,
        text=read.body,
        type=Ref(Kind.TASK_TYPE, read.task_type.upper()) if read.task_type else None,
        due=_utc(read.end_date, context),
        done=read.completed,
        target=_target(read, context),
        owner=_user(read),
        raw=row,
        unread=_unread(read.told, {"type": "task_type", "due": "end_date", "owner": "user"}, context),
    )


def encode_task(task: entities.Task, fields: frozenset[str], context: Context) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "text" in fields:
        found["BODY"] = task.text or ""
    if "due" in fields:
        found["END_DATE"] = _written(_local(task.due, context)) if task.due else ""
    if "owner" in fields:
        found["MAIN_USER"] = (task.owner.id if task.owner else None) or ""
    if "type" in fields:
        if task.type is None:
            raise Invalid("Task", [Issue(field="type", rule=f"a task is a {', '.join(TASK_TYPES)}")])
        found["TASK_TYPE"] = task.type.id
    if "target" in fields:
        if task.target is None:
            raise Invalid("Task", [Issue(field="target", rule="a task about nothing could never be read again")])
        found |= linked(task.target)
    return found


def surviving_task(task: entities.Task) -> entities.Task:
    """A task hangs on a contact or a deal, is of one of three types, and due on the second."""
    due = task.due.replace(microsecond=0) if task.due else None
    type = task.type if task.type and task.type.id in TASK_TYPES else None
    return evolve(task, target=_held(task.target), due=due, type=type, text=_sayable(task.text))


def whole_task(words: Words, reading: Element) -> dict[str, Any]:
    """seed, "Editing tasks": everything again. A reading is an element, or the form we sent ourselves."""
    if "tag" not in reading:
        return {key: part for key, part in reading.items() if key in _TASK_KEYS}
    read = wire.task(reading, words)
    kind = KINDS.get(read.element_type or 0)
    return {
        "BODY": read.body or "",
        # The account's own clock, as it was told: no zone is needed for that.
        "END_DATE": _written(read.end_date) if read.end_date else "",
        "MAIN_USER": (read.user.id if read.user else None) or "",
        "TASK_TYPE": (read.task_type or "").upper(),
        **(linked(Ref(kind, read.element_id)) if kind and read.element_id else {}),
    }


_TASK_KEYS = ("BODY", "END_DATE", "MAIN_USER", "TASK_TYPE", "TASK_OBJECT", "ELEMENT_TYPE")


def task_lacks(words: Words, reading: Element, change: Mapping[str, Any]) -> tuple[str, ...]:
    if "tag" not in reading:
        return tuple(key for key in _TASK_KEYS[:4] if key not in reading and key not in change)
    keys = {"body": "BODY", "end_date": "END_DATE", "user": "MAIN_USER", "task_type": "TASK_TYPE"}
    return _untold(wire.task(reading, words).told, keys, change)


def linked(target: Ref | None) -> dict[str, Any]:
    """What a task is about, as its edit names it (seed)."""
    if target is None or target.kind not in ELEMENTS:
        return {}
    return {"TASK_OBJECT": target.id, "ELEMENT_TYPE": ELEMENTS[target.kind]}


# ---------------------------------------------------------------------------------------------------------- parts


def _unread(told: frozenset[str], sections: Mapping[str, str], context: Context) -> frozenset[str]:
    """Fields whose section the row has not; and times, where nobody has told whose clock they are read off."""
    times = {"created_at", "updated_at", "due"} & set(sections) if context.given_zone is None else set[str]()
    return frozenset(name for name, section in sections.items() if section not in told) | times


def _untold(told: frozenset[str], keys: Mapping[str, str], said: Container[str]) -> tuple[str, ...]:
    """Sections that neither the reading tells nor the change says."""
    return tuple(section for section, key in keys.items() if section not in told and key not in said)


def _utc(clock: datetime | None, context: Context) -> datetime | None:
    if clock is None or context.given_zone is None:
        return None
    return clock.replace(tzinfo=context.given_zone).astimezone(UTC)


def _local(due: datetime, context: Context) -> datetime:
    """§7.5: whose time END_DATE is in is not said; the account's, and no page tells which that is."""
    if context.given_zone is None:
        rule = "no page of this API tells the account's time zone: give connect(zone=ZoneInfo('Europe/Moscow')), say"
        raise Invalid("Task", [Issue(field="due", rule=rule)])
    return due.astimezone(context.given_zone)


def _written(clock: datetime) -> str:
    return clock.strftime("%d.%m.%Y %H:%M:%S")


def _user(read: Any) -> Ref | None:
    return Ref(Kind.USER, read.user.id) if read.user and read.user.id is not None else None


def _links(kind: Kind, rows: Sequence[wire.Named]) -> tuple[Link, ...]:
    return tuple(Link(Ref(kind, row.id)) for row in rows if row.id is not None)


def _target(read: wire.Note | wire.Task, context: Context) -> Ref | None:
    kind = KINDS.get(read.element_type or 0)
    return Ref(kind, read.element_id) if kind and read.element_id else context.parent


def _held(target: Ref | None) -> Ref | None:
    return target if target is not None and target.kind in ELEMENTS else None


def _label(entry: Entry, labels: Mapping[str, Label]) -> dict[str, Any]:
    """A location's label; an unknown one keeps the vendor's word."""
    if not entry.label:
        return {"label": Label.WORK}
    word = entry.label.casefold()
    known = {each.casefold(): label for each, label in labels.items()}.get(SHORT_LABELS.get(word, word))
    return {"label": Label.OTHER, "raw_label": entry.label} if known is None else {"label": known}


def _entries(parts: Sequence[Phone] | Sequence[Email], labels: Mapping[str, Label]) -> list[Entry]:
    words = {label: word for word, label in labels.items()}
    return [Entry(part.value, part.raw_label or words.get(part.label, "Other")) for part in parts]


def _reachable(parts: Sequence[Any], labels: Mapping[str, Label]) -> tuple[Any, ...]:
    allowed = set(labels.values())
    kept = [evolve(part, value=value) for part in parts if (value := _sayable(part.value)) and value.strip()]
    return tuple(part if part.label in allowed else evolve(part, label=Label.OTHER) for part in kept)


def _paired(given: Sequence[Entry], value: str, label: str) -> list[dict[str, str]]:
    """§4: `0:{number}, 1:{location}`, the documented form. None left is said with an empty one, as live clients do."""
    pairs = [((value, each.value), *(((label, each.label),) if each.label and label else ())) for each in given]
    return [{key: part} for pair in pairs for key, part in pair] or [{value: ""}]


def _owner_and_tags(entity: entities.Contact | entities.Deal, fields: frozenset[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "owner" in fields:
        found["main_user_id"] = (entity.owner.id if entity.owner else None) or ""
    if "tags" in fields:
        found["tags"] = ",".join(tag.name for tag in entity.tags)
    return found


def _surviving_tags(tags: Sequence[Tag]) -> tuple[Tag, ...]:
    """§4: a comma is what parts tags, so a tag with one would become two."""
    return tuple(evolve(tag, name=name) for tag in tags if (name := _sayable(tag.name.replace(",", ";"))))


_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _sayable(text: str | None) -> str | None:
    """Without what XML cannot say: it could not be read again, nor could the page that it is on."""
    return _NOT_XML.sub("", text) if text else text
