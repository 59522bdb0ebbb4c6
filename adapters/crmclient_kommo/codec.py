"""Neutral to Kommo and back: pure functions, one pair an entity.

``encode`` gives the row as it would be read; what the server does not take on writing (a field's type, a contact's
company) is cut off by the route's envelope. ``surviving`` leaves nothing that ``encode`` refuses.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation
from functools import lru_cache
from typing import Any, TypeVar

from crmclient import entities, vocabulary
from crmclient.dialect import Context, array, is_mapping, is_tree, mapping
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
    evolve,
    on_the_second,
)
from crmclient.errors import IncompleteRead, Invalid, Issue
from crmclient.serial import maker, structured
from crmclient.vocabulary import zone_named
from crmclient_kommo import wire
from crmclient_kommo.wire import CONVERTER, KINDS, LABELS, NOTE_KINDS, TYPES, WRITABLE_NOTES, moment, span

T = TypeVar("T")

WON, LOST = 142, 143

# The fields of a person that are custom fields on the wire (§4.2).
PHONE, EMAIL, POSITION = "PHONE", "EMAIL", "POSITION"
_BUILT_IN = frozenset({PHONE, EMAIL, POSITION})

# §4.7. Where several words are one type, the first is the word of a card's field; the others are a catalog's.
# A type that is not here stays in `raw`.
FIELD_TYPES: Mapping[str, FieldType] = {
    "text": FieldType.TEXT,
    "textarea": FieldType.TEXTAREA,
    "numeric": FieldType.NUMBER,
    "checkbox": FieldType.BOOL,
    "select": FieldType.SELECT,
    "multiselect": FieldType.MULTISELECT,
    "radiobutton": FieldType.RADIO,
    "date": FieldType.DATE,
    "date_time": FieldType.DATETIME,
    "birthday": FieldType.BIRTHDAY,
    "url": FieldType.URL,
    "multitext": FieldType.MULTITEXT,
    "smart_address": FieldType.ADDRESS,
    "streetaddress": FieldType.STREET,
    "legal_entity": FieldType.LEGAL,
    "monetary": FieldType.MONEY,
    "file": FieldType.FILE,
    "linked_entity": FieldType.LINKED,
    "chained_list": FieldType.CHAINED,
    "items": FieldType.ITEMS,
    "tracking_data": FieldType.TRACKING,
    "price": FieldType.MONEY,
    "category": FieldType.SELECT,
    "payer": FieldType.LEGAL,
    "supplier": FieldType.LINKED,
}
FIELD_WORDS: Mapping[FieldType, str] = {type: word for word, type in reversed(FIELD_TYPES.items())}

_DAYS = frozenset({FieldType.DATE, FieldType.BIRTHDAY})
_NUMBERS = frozenset({FieldType.NUMBER, FieldType.MONEY})
# §4.8: their value is an object in the vendor's words; a chained list's has no `value` around it.
_OBJECTS = frozenset({FieldType.LEGAL, FieldType.ITEMS, FieldType.LINKED, FieldType.FILE, FieldType.CHAINED})
# What they hold is not, or not only, what stands in each `value`.
_NOT_IN_VALUE = frozenset({FieldType.ADDRESS, FieldType.CHAINED, FieldType.MULTITEXT})
_CHOICES = (FieldType.SELECT, FieldType.MULTISELECT, FieldType.RADIO)
# §4.8: the lines of a smart address, in the order of their enum ids 1 to 6.
_LINES: Mapping[str, str] = {
    "line1": "address_line_1",
    "line2": "address_line_2",
    "city": "city",
    "region": "state",
    "postcode": "zip",
    "country": "country",
}


# ------------------------------------------------------------------------------------------------------- contacts


def decode_contact(row: Any, context: Context) -> entities.Contact:
    read = structured(CONVERTER, row, wire.Contact, "contact")
    embedded, companies = read.embedded, read.embedded.companies
    position, phones, emails, values = _read_customs(read.custom_fields_values, context)
    return _contact(
        id=read.id,  # as in _owned; to unpack a map takes longer, and of contacts there are most
        owner=_user(read.responsible_user_id),
        created_by=_user(read.created_by),
        updated_by=_user(read.updated_by),
        created_at=moment(read.created_at),
        updated_at=moment(read.updated_at),
        name=read.name or None,
        first_name=read.first_name or None,  # "" when only `name` was given (§4.2)
        last_name=read.last_name or None,
        position=position,
        phones=phones,
        emails=emails,
        company=_link(_ref(_COMPANY, companies[0].id)) if companies else None,
        deals=_links(_DEAL, embedded.leads),
        tags=_tags(embedded),
        fields=values,
        deleted=read.is_deleted or False,
        raw=row,
        unread=_unread(deals=embedded.leads, company=companies),
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
    embedded = read.embedded
    _, phones, emails, values = _read_customs(read.custom_fields_values, context)
    return _company(
        **_owned(read),
        name=read.name or None,
        phones=phones,
        emails=emails,
        contacts=_links(_CONTACT, embedded.contacts),
        deals=_links(_DEAL, embedded.leads),
        tags=_tags(embedded),
        fields=values,
        deleted=read.is_deleted or False,
        raw=row,
        unread=_unread(contacts=embedded.contacts, deals=embedded.leads),
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
        contacts=_links(_CONTACT, read.embedded.contacts),
        company=_link(_ref(_COMPANY, companies[0].id)) if companies else None,
        tags=_tags(read.embedded),
        fields=_read_customs(read.custom_fields_values, context)[-1],
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
    """`price` is a whole number in the account's own currency (§4.1); a link needs an id."""
    linked = tuple(Link(link.ref, main=link.main) for link in deal.contacts if link.ref.id is not None)
    kept = evolve(_surviving(deal), contacts=linked)
    if deal.price is None:
        return kept
    try:
        whole = deal.price.amount.quantize(Decimal(1), ROUND_HALF_EVEN)
    except InvalidOperation:  # no number, or one of thirty digits
        return evolve(kept, price=None)
    return evolve(kept, price=Money(whole))


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
        duration=span(read.duration),
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


def _on_a_card(target: Ref | None) -> bool:
    return target is not None and target.kind in TYPES and target.id is not None


def surviving_task(task: entities.Task) -> entities.Task:
    """A task hangs on a contact, a company or a lead; its length is in whole seconds (§4.4)."""
    held = _on_a_card(task.target)
    duration = timedelta(seconds=int(task.duration.total_seconds())) if task.duration is not None else None
    return evolve(on_the_second(task), target=task.target if held else None, duration=duration or None)


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
        word = _note_word(note)
        if word is None:
            raise Invalid("a note of another kind needs raw_kind", [Issue(field="raw_kind", rule="the vendor's word")])
        if word not in WRITABLE_NOTES:
            issue = Issue(field="kind", rule=f"{word} can only be read")
            raise Invalid(f"Kommo takes no note of the kind {word}", [issue])
        # A note's params are written whole, and the type with them (§4.5).
        found["note_type"] = word
        params = {**note.params, **({"text": note.text} if note.text is not None else {})}
        found["params"] = {name: part for name, part in params.items() if name not in _TOLD.get(word, ())}
    if "target" in fields and note.target is not None:
        found["entity_id"] = note.target.id
    return found


# What Kommo tells of a note by itself, and takes from nobody (§4.5).
_TOLD = {"attachment": ("original_name", "is_drive_attachment", "text")}
_NOTE_WORDS = {kind: word for word, kind in NOTE_KINDS.items()}


def _note_word(note: entities.Note) -> str | None:
    return note.raw_kind or _NOTE_WORDS.get(note.kind)


def surviving_note(note: entities.Note) -> entities.Note:
    """A kind that can only be read (§4.5) survives as a text; without one, as its kind's name."""
    kept = evolve(on_the_second(note), target=note.target if _on_a_card(note.target) else None)
    word = _note_word(note)
    if word in WRITABLE_NOTES:
        known = NOTE_KINDS.get(word, NoteKind.OTHER)
        if word == "attachment" and note.text not in (None, *map(note.params.get, ("file_name", "original_name"))):
            kept = evolve(kept, text=None)  # all that it says is what the file is called
        return evolve(kept, kind=known, raw_kind=None if word in NOTE_KINDS else word)
    return evolve(kept, kind=NoteKind.TEXT, raw_kind=None, text=note.text or word, params={})


# ------------------------------------------------------------------------------------------------------ vocabulary


def decode_user(row: Any, context: Context) -> vocabulary.User:
    read = structured(CONVERTER, row, wire.User, "user")
    active = read.rights.is_active is not False
    return vocabulary.User(
        id=read.id, name=read.name, email=read.email, active=active, admin=bool(read.rights.is_admin), raw=row
    )


def decode_pipeline(row: Any, context: Context) -> vocabulary.Pipeline:
    read = structured(CONVERTER, row, wire.Pipeline, "pipeline")
    rows = array(mapping(mapping(row).get("_embedded")).get("statuses"))
    stages = sorted(
        (_stage(status, each) for status, each in zip(read.embedded.statuses or (), rows, strict=True)),
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
            for enum in read.enums or read.nested or ()
        ),
        raw=row,
    )


# §4.9: the colours a stage may have.
COLORS = (
    *("#fffeb2", "#fffd7f", "#fff000", "#ffeab2", "#ffdc7f", "#ffce5a", "#ffdbdb"),
    *("#ffc8c8", "#ff8f92", "#d6eaff", "#c1e0ff", "#98cbff", "#ebffb1", "#deff81"),
    *("#87f2c0", "#f9deff", "#f3beff", "#ccc8f9", "#eb93ff", "#f2f3f4", "#e6e8ea"),
)


def encode_pipeline(given: vocabulary.Pipeline, fields: frozenset[str], context: Context) -> dict[str, Any]:
    words = {"name": "name", "sort": "sort", "main": "is_main"}
    found: dict[str, Any] = {word: getattr(given, name) for name, word in words.items() if name in fields}
    if "stages" in fields:
        found["_embedded"] = {"statuses": [encode_stage(stage, at) for at, stage in enumerate(given.stages)]}
    return found


def encode_stage(stage: vocabulary.Stage, place: int = 0) -> dict[str, Any]:
    """§4.9: of the won and the lost one only the name may be told."""
    if stage.id in (WON, LOST):
        return {"id": stage.id, "name": stage.name}
    row = {"name": stage.name, "sort": stage.sort or 20 + 10 * place}
    return {**row, **({"color": stage_color(stage.color)} if stage.color else {})}


def stage_color(color: str | None) -> str | None:
    if color is not None and color.lower() not in COLORS:
        raise Invalid("a stage", [Issue(field="color", rule=f"one of kommo.COLORS, not {color!r}")])
    return color.lower() if color is not None else None


def decode_tag(row: Any, context: Context) -> vocabulary.KnownTag:
    read = structured(CONVERTER, row, wire.KnownTag, "tag")
    if context.parent is None:
        raise Invalid(f"whose tag {read.id} is only the address tells that it was read from")
    return vocabulary.KnownTag(id=read.id, entity=context.parent.kind, name=read.name, color=read.color, raw=row)


def encode_tag(tag: vocabulary.KnownTag, fields: frozenset[str], context: Context) -> dict[str, Any]:
    """§4.6: a colour is for leads only, and so is renaming, of which only the vendor's PHP library tells."""
    if tag.entity is not Kind.DEAL and (tag.color is not None or tag.id is not None):
        rule = "only a lead's tag has one" if tag.color is not None else "only a lead's tag can be renamed"
        raise Invalid("a tag", [Issue(field="color" if tag.color is not None else "name", rule=rule)])
    # A tag without its name cannot be told of.
    found: dict[str, Any] = {"name": tag.name}
    if "color" in fields:
        found["color"] = tag.color.lstrip("#").upper() if tag.color else None
    return found


def decode_subscription(row: Any, context: Context) -> vocabulary.Subscription:
    """§4.12. It is ended by its address, which is its id here; the vendor's number of it stays in `raw`."""
    read = structured(CONVERTER, row, wire.Hook, "webhook")
    # A list when read; the live answer to a subscription has an object, {"add_lead": 1}.
    said = mapping(read.settings)
    events = tuple(map(str, [name for name, on in said.items() if on] or array(read.settings)))
    url = read.destination
    return vocabulary.Subscription(id=url, url=url, events=events, active=not read.disabled, raw=row)


def encode_subscription(given: vocabulary.Subscription, fields: frozenset[str], context: Context) -> dict[str, Any]:
    """§4.12: told anew it is told whole."""
    if given.id is not None and given.url not in (None, given.id):
        raise Invalid("a subscription", [Issue(field="url", rule="another address is another subscription")])
    return {"destination": given.url or given.id, "settings": list(given.events)}


def encode_definition(given: vocabulary.Field, fields: frozenset[str], context: Context) -> dict[str, Any]:
    """§4.7: a type is due. What another account called its options is nothing to this one."""
    if given.id is not None:
        return encode_field(given, fields)
    row = encode_field(given, fields | {"type"})
    options = [{key: part for key, part in option.items() if key != "id"} for option in row.pop("enums", ())]
    return {**row, **({"enums": options} if options else {})}


def encode_field(given: vocabulary.Field, fields: frozenset[str]) -> dict[str, Any]:
    """§4.7. An option goes with its id: one sent without loses its old one, and every row's choice of it."""
    found: dict[str, Any] = {name: getattr(given, name) for name in ("name", "code") if name in fields}
    if fields & {"type", "raw_type"}:
        found["type"] = given.raw_type or FIELD_WORDS.get(given.type)
        if found["type"] is None:
            raise Invalid("a custom field", [Issue(field="raw_type", rule="the vendor's word for another type")])
    if "options" in fields:
        found["enums"] = [_option(option, place) for place, option in enumerate(given.options)]
    return found


def _option(option: vocabulary.Option, place: int) -> dict[str, Any]:
    known = {"id": option.id, "value": option.value, "sort": option.sort or 10 * (place + 1), "code": option.code}
    return {name: part for name, part in known.items() if part is not None}


def decode_stage(row: Any) -> vocabulary.Stage:
    return _stage(structured(CONVERTER, row, wire.Status, "status"), row)


def _stage(status: wire.Status, row: Any) -> vocabulary.Stage:
    return vocabulary.Stage(
        id=status.id,
        name=status.name,
        sort=status.sort or 0,
        outcome=Outcome.UNSORTED if status.type == 1 else _outcome(status.id) or Outcome.OPEN,
        editable=status.is_editable is not False,
        color=status.color,
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
        filters=read.is_api_filter_enabled,
        raw=row,
    )


def decode_task_types(row: Any) -> tuple[vocabulary.TaskType, ...]:
    """Those of the account (§4.11); of 1 and 2 every account has the same, whatever it calls them (§4.7)."""
    types = structured(CONVERTER, row, wire.Account, "account").embedded.task_types or ()
    codes = {1: "FOLLOW_UP", 2: "MEETING"}
    return tuple(vocabulary.TaskType(id=each.id, name=each.name, code=codes.get(each.id)) for each in types)


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
    return _ref(_USER, id) if id is not None else None


# Members of an enum are slow to get at, and these are asked for in each row.
_USER, _FIELD, _CONTACT, _COMPANY, _DEAL = Kind.USER, Kind.FIELD, Kind.CONTACT, Kind.COMPANY, Kind.DEAL
_WORK = Label.WORK

# Each row is made of a dozen of these, by code that gives each part as it is declared.
_contact, _company = maker(entities.Contact), maker(entities.Company)
_phone, _email, _a_link, _field_value = maker(Phone), maker(Email), maker(Link), maker(FieldValue)


@lru_cache(1 << 10)
def _ref(kind: Kind, id: int) -> Ref:
    """A reference to what many rows point at: an equal one is the same one."""
    return Ref(kind, id)


@lru_cache(1 << 10)
def _tag(name: str, id: int | None) -> Tag:
    return Tag(name, id=id)


def _plain(entity: Any, fields: frozenset[str], names: Mapping[str, str]) -> dict[str, Any]:
    return {
        word: "" if getattr(entity, name) is None else getattr(entity, name)
        for name, word in names.items()
        if name in fields
    }


def _owner_and_times(entity: Any, fields: frozenset[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    words = {"owner": "responsible_user_id"}
    for name in ("owner", "created_by", "updated_by", "created_at", "updated_at"):
        if name in fields:
            content = getattr(entity, name)
            if content is not None:
                found[words.get(name, name)] = _epoch(content) if isinstance(content, datetime) else content.id
            elif entity.id is not None:
                raise Invalid(entity.KIND, [Issue(field=name, rule="it can be changed, and not emptied")])
    return found


def _link(ref: Ref, main: bool = False) -> Link:
    return _a_link(ref=ref, main=main)


def _links(kind: Kind, linked: Sequence[wire.Linked] | None) -> tuple[Link, ...]:
    return tuple([_link(Ref(kind, each.id), each.is_main or False) for each in linked]) if linked else ()


def _tags(embedded: wire.Embedded) -> tuple[Tag, ...]:
    return tuple([_tag(tag.name or "", tag.id) for tag in embedded.tags or ()])


def _unread(**lists: object) -> frozenset[str]:
    return (
        frozenset([name for name, listed in lists.items() if listed is None]) if None in lists.values() else _ALL_READ
    )


_ALL_READ = frozenset[str]()


def _embedded(entity: Any, fields: frozenset[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "tags" in fields:
        # A tag by its name only: id and name together led to duplicates (§6).
        found["tags"] = [{"name": tag.name} for tag in entity.tags]
    for name in ("company", "contacts"):
        unseen = name in entity.unread or (entity.raw is None and entity.written is None)
        if name in fields and entity.id is not None and unseen and not getattr(entity, name):
            said = f"whom {entity.KIND} {entity.id} is tied to was not read, so nothing can be untied: read it first"
            raise IncompleteRead(said, (name,))
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


def _read_customs(
    customs: Iterable[wire.CustomField] | None, context: Context
) -> tuple[str | None, tuple[Phone, ...], tuple[Email, ...], tuple[FieldValue, ...]]:
    """The position, the phones, the e-mails, and the values of all other fields whose type is known."""
    position: str | None = None
    phones: list[Phone] = []
    emails: list[Email] = []
    values: list[FieldValue] = []
    for custom in customs or ():
        code, id = custom.field_code, custom.field_id
        if code not in _BUILT_IN:
            type = FIELD_TYPES.get(custom.field_type or "")
            if type is not None:
                values.append(
                    _field_value(
                        values=_values(type, custom.values or (), context),
                        field=_ref(_FIELD, id) if id is not None else None,
                        code=code,
                        name=custom.field_name,
                        type=type,
                    )
                )
        elif code == PHONE:
            phones += _labelled(custom, LABELS[PHONE], _phone)
        elif code == EMAIL:
            emails += _labelled(custom, LABELS[EMAIL], _email)
        elif custom.values and position is None:
            position = str(custom.values[0].get("value") or "") or None
    return position, tuple(phones), tuple(emails), tuple(values)


def _labelled(custom: wire.CustomField, labels: Mapping[str, Label], made: Callable[..., T]) -> list[T]:
    """Phones or e-mails, each with its label; an unknown one keeps the vendor's word."""
    found: list[T] = []
    for each in custom.values or ():
        word = each.get("enum_code") or each.get("enum")
        label = labels.get(str(word)) if word else _WORK
        raw_label = str(word) if label is None else None
        found.append(made(value=str(each.get("value") or ""), label=label or Label.OTHER, raw_label=raw_label))
    return found


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


def field_values(row: Any, context: Context) -> tuple[FieldValue, ...]:
    """The custom fields of any row that has `custom_fields_values`: of a catalog's element, say."""
    held = {"values": mapping(row).get("custom_fields_values")}
    return _read_customs(structured(CONVERTER, held, wire.CustomFields, "row").values, context)[-1]


def encode_field_values(values: Iterable[FieldValue], context: Context) -> list[dict[str, Any]]:
    return [_encoded(value, context) for value in values]


def _values(type: FieldType, items: Sequence[Mapping[str, Any]], context: Context) -> tuple[Any, ...]:
    """§4.8. What is not of its type's shape is left to `raw`."""
    if type in _NOT_IN_VALUE:
        if type is FieldType.ADDRESS:
            address = _address(items)
            return (address,) if address else ()
        if type is FieldType.CHAINED:
            return tuple([dict(each) for each in items if each])
        return tuple([text for each in items if (text := _labelled_text(each)) is not None])
    read = _CONTENTS.get(type, _text)
    found: list[Any] = []
    for each in items:
        given = each.get("value")
        if given is not None and given != "":
            value = read(given, context)
            if value is not None:
                found.append(value)
    return tuple(found)


def _address(items: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Six lines, each known by its code or by its number."""
    codes = tuple(_LINES.values())
    lines: dict[str, Any] = {}
    for each in items:
        id = each.get("enum_id")
        code = each.get("enum_code") or (codes[id - 1] if isinstance(id, int) and 0 < id <= len(codes) else None)
        lines[str(code)] = each.get("value")
    return {name: str(lines[code]) for name, code in _LINES.items() if lines.get(code) not in (None, "")}


def _labelled_text(item: Mapping[str, Any]) -> str | dict[str, Any] | None:
    """A messenger, say: a map with the vendor's label where it has one, so that none is lost."""
    text = item.get("value")
    if text is None or text == "":
        return None
    for key in ("enum_code", "enum_id"):
        if item.get(key) is not None:
            return {"value": str(text), key: item[key]}
    return str(text)


def _text(given: Any, _: Context) -> str | None:
    return given if given.__class__ is str else str(given) if _is_scalar(given) else None


def _object(given: Any, _: Context) -> dict[str, Any] | None:
    return mapping(given) or None


def _is_scalar(given: Any) -> bool:
    return not isinstance(given, (dict, list))


def _number(given: Any, _: Context) -> Decimal | str | None:
    """Read back as a string; what a person typed there may be no number at all, and is then kept as text."""
    if not _is_scalar(given):
        return None
    try:
        number = Decimal(str(given))
    except InvalidOperation:
        return str(given)
    return number if number.is_finite() else str(given)


def _yes_or_no(given: Any, _: Context) -> bool | None:
    """Documented as a bool; clients have met 1, 0 and "Y"."""
    return {"true": True, "1": True, "y": True, "false": False, "0": False, "n": False}.get(str(given).casefold())


def _day(given: Any, context: Context) -> date | None:
    """Midnight of the account's zone: in another zone it is another day."""
    zone = context.zone
    at = _instant(given, zone)
    return at.astimezone(zone).date() if at else None


def _time(given: Any, _: Context) -> datetime | None:
    at = _instant(given, UTC)
    return at.astimezone(UTC) if at else None


# Any other is a text.
_CONTENTS: Mapping[FieldType, Callable[[Any, Context], Any]] = {
    **dict.fromkeys(_NUMBERS, _number),
    FieldType.BOOL: _yes_or_no,
    **dict.fromkeys(_DAYS, _day),
    FieldType.DATETIME: _time,
    **dict.fromkeys(_OBJECTS, _object),
}


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _instant(given: Any, zone: tzinfo) -> datetime | None:
    """Unix seconds or RFC 3339."""
    try:
        if isinstance(given, int):
            return _EPOCH + timedelta(seconds=given)
        at = datetime.fromisoformat(str(given))
        at = at if at.tzinfo else at.replace(tzinfo=zone)
        at.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return at


def _encoded_fields(entity: Any, fields: frozenset[str], context: Context) -> list[dict[str, Any]]:
    """The custom fields that changed, and those that went; the others stay as they are (§4.8)."""
    if "fields" not in fields:
        return []
    before = _fields_before(entity, context)
    found = [_encoded(value, context) for value in entity.fields if value not in before]
    gone = [value for value in before if not any(_same_field(value, each) for each in entity.fields)]
    return found + [_encoded(evolve(value, values=()), context) for value in gone]


def _same_field(one: FieldValue, other: FieldValue) -> bool:
    if one.field is not None and other.field is not None:
        return one.field == other.field
    return one.code is not None and one.code == other.code


def _fields_before(entity: Any, context: Context) -> tuple[FieldValue, ...]:
    return entity.written.fields if entity.written is not None else field_values(entity.raw, context)


def _encoded(value: FieldValue, context: Context) -> dict[str, Any]:
    if not _is_named(value):
        raise Invalid("a custom field", [Issue(field="fields", rule="name it by field=Ref(Kind.FIELD, id) or by code")])
    word, called = FIELD_WORDS.get(value.type), value.name or value.code or (value.field and value.field.id)
    if word is None:
        rule = f"{called}: fields of type {value.type} are not written"
        raise Invalid("a custom field", [Issue(field="fields", rule=rule)])
    for part in value.values:
        if not _fits(value.type, part):
            rule = f"{called}: a field of type {value.type} does not hold {part!r:.80}"
            raise Invalid("a custom field", [Issue(field="fields", rule=rule)])
    known = {"field_id": value.field.id if value.field else None, "field_code": value.code, "field_name": value.name}
    try:
        values = [sent for part in value.values for sent in _sent(value.type, part, context)]
    except Invalid as wrong:  # a day is one of the account's zone, and nobody tells which that is
        raise Invalid("a custom field", [Issue(field="fields", rule=f"{called}: {wrong.message}")]) from None
    return {
        **{name: part for name, part in known.items() if part is not None},
        "field_type": word,
        "values": values or None,
    }


def check_card(entity: Any, fields: frozenset[str], context: Context) -> None:
    """An option is looked for among its field's, where the value says that it is one."""
    before = _fields_before(entity, context) if "fields" in fields else ()
    for value in entity.fields if "fields" in fields else ():
        if value.type in _CHOICES and value.values and value not in before:
            _check_options(entity, value, context.part_if_allowed(f"fields:{entity.KIND}") or {})


def _check_options(entity: Any, value: FieldValue, definitions: Mapping[Any, vocabulary.Field]) -> None:
    """§4.8, §8.7: an option is named by its text, exactly. Of a field that is not known the server may judge."""
    named = (
        (each for each in definitions.values() if each.code == value.code)
        if value.field is None
        else (each for each in (definitions.get(value.field.id),) if each)
    )
    known = next(named, None)
    options = [option.value for option in known.options] if known else []
    wrong = [part for part in value.values if part not in options]
    if known and options and wrong:
        said = ", ".join(f"{option!r}" for option in options[:10]) + (" …" if len(options) > 10 else "")
        rule = f"{known.name}: {wrong[0]!r:.80} is none of its options: {said}"
        issue = Issue(field="fields", rule=rule)
        raise Invalid(f"{type(entity).__name__} has a value that its field does not offer", [issue])


def _is_named(value: FieldValue) -> bool:
    return value.code is not None if value.field is None else value.field.id is not None


def _sent(type: FieldType, part: Any, context: Context) -> list[dict[str, Any]]:
    """§4.8: one value is one object, an address one a line."""
    if type is FieldType.ADDRESS:
        return [{"value": part[name], "enum_code": code} for name, code in _LINES.items() if name in part]
    if type is FieldType.CHAINED or (type is FieldType.MULTITEXT and is_mapping(part)):
        return [dict(part)]
    if isinstance(part, datetime):
        return [{"value": _stamp(part)}]
    if isinstance(part, date):
        return [{"value": _stamp(datetime.combine(part, time(), context.zone))}]
    if isinstance(part, Decimal):
        return [{"value": f"{part:f}"}]
    if type in _NUMBERS:
        return [{"value": str(part)}]
    return [{"value": dict(part) if is_mapping(part) else part}]


def _stamp(at: datetime) -> int | str:
    """Negative numbers are refused (§4.8), so what was before 1970 goes as RFC 3339."""
    seconds = int(at.timestamp())
    return seconds if seconds >= 0 else at.astimezone(UTC).isoformat()


def _fits(type: FieldType, part: Any) -> bool:
    """Whether it can be what a field of this type holds. Whether it is one of its options, only the server knows."""
    if type in _OBJECTS:
        return is_mapping(part) and bool(part) and is_tree(part)
    if type is FieldType.ADDRESS:
        return is_mapping(part) and bool(part) and part.keys() <= _LINES.keys() and all(map(_is_text, part.values()))
    if type is FieldType.MULTITEXT and is_mapping(part):
        return _is_text(part.get("value")) and part.keys() <= {"value", "enum_code", "enum_id"} and is_tree(part)
    if type in _NUMBERS:
        if isinstance(part, Decimal):
            return part.is_finite()
        return _is_text(part) or (isinstance(part, int) and not isinstance(part, bool))
    if type is FieldType.BOOL:
        return isinstance(part, bool)
    if type in _DAYS:
        # A day beside the first or the last there is may be none in another zone.
        return isinstance(part, date) and not isinstance(part, datetime) and 1 < part.year < 9999
    if type is FieldType.DATETIME:
        return isinstance(part, datetime) and part.tzinfo is not None and 1 < part.year < 9999
    return _is_text(part)


def _is_text(part: Any) -> bool:
    return isinstance(part, str) and part != ""


def _customs(customs: list[dict[str, Any]], fields: frozenset[str]) -> dict[str, Any]:
    return {"custom_fields_values": customs} if fields & {"position", "phones", "emails", "fields"} else {}


# ---------------------------------------------------------------------------------------------------- what survives


def _surviving(entity: Any) -> Any:
    changes: dict[str, Any] = {"fields": tuple(filter(None, map(_surviving_value, entity.fields)))}
    for name, code in (("phones", PHONE), ("emails", EMAIL)):
        parts = getattr(entity, name, None)
        if parts:
            allowed = set(LABELS[code].values())
            changes[name] = tuple(part if part.label in allowed else evolve(part, label=Label.OTHER) for part in parts)
    company = getattr(entity, "company", None)
    if company is not None:
        changes["company"] = evolve(company, name=None, main=False) if company.ref.id is not None else None
    return evolve(on_the_second(entity), **changes)


def _surviving_value(value: FieldValue) -> FieldValue | None:
    if not _is_named(value) or value.type not in FIELD_WORDS:
        return None
    kept = tuple(part for part in value.values if _fits(value.type, part))
    if value.type is FieldType.ADDRESS:
        kept = kept[:1]
    if value.type is FieldType.DATETIME:  # times travel as whole seconds
        kept = tuple(part.replace(microsecond=0) if isinstance(part, datetime) else part for part in kept)
    return evolve(value, values=kept) if kept or not value.values else None
