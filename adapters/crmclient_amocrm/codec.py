"""Neutral to amoCRM v2 and back: pure functions, one pair an entity.

``encode`` gives the row as it would be read; the envelope turns it into what is written (tags as one text, links as
``…_id`` and ``unlink``, a choice as the id of its option), which is another shape in this dialect. ``surviving`` leaves
nothing that ``encode`` refuses, except what only the account's own words can tell.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation
from typing import Any, NoReturn, TypeVar

from crmclient import entities, vocabulary
from crmclient.dialect import Context, is_mapping, is_tree, mapping
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
from crmclient.errors import Invalid, Issue, Unreadable
from crmclient.serial import structured
from crmclient.vocabulary import zone_named
from crmclient_amocrm import wire
from crmclient_amocrm.wire import CONVERTER, ELEMENTS, GROUPS, KINDS, LABELS, NOTE_KINDS, TYPES, canonical, moment

T = TypeVar("T")

WON, LOST = 142, 143
# §11: "contacts_id (int or array, ≤40)".
CONTACTS_A_LEAD = 40

# The fields of a person that are custom fields on the wire (§9).
PHONE, EMAIL, POSITION = "PHONE", "EMAIL", "POSITION"
_BUILT_IN = (PHONE, EMAIL, POSITION)

# §6. Of 17, ORG_LEGAL_NAME, there is no evidence beyond its name, which is that of a text.
FIELD_TYPES: Mapping[int, FieldType] = {
    1: FieldType.TEXT,
    2: FieldType.NUMBER,
    3: FieldType.BOOL,
    4: FieldType.SELECT,
    5: FieldType.MULTISELECT,
    6: FieldType.DATE,
    7: FieldType.URL,
    8: FieldType.MULTITEXT,
    9: FieldType.TEXTAREA,
    10: FieldType.RADIO,
    11: FieldType.STREET,
    13: FieldType.ADDRESS,
    14: FieldType.BIRTHDAY,
    15: FieldType.LEGAL,
    16: FieldType.ITEMS,
    17: FieldType.TEXT,
    19: FieldType.DATETIME,
}
# The items of catalogs are not written here.
FIELD_NUMBERS: Mapping[FieldType, int] = {
    type: number for number, type in reversed(FIELD_TYPES.items()) if type is not FieldType.ITEMS
}

_CHOICES = (FieldType.SELECT, FieldType.MULTISELECT, FieldType.RADIO)
_DAYS = (FieldType.DATE, FieldType.BIRTHDAY)
# §7: the lines of an address; by name in real data, by their places ("1","3","5","6") on the page of 2017.
_LINES: Mapping[str, str] = {
    "line1": "address_line_1",
    "line2": "address_line_2",
    "city": "city",
    "region": "state",
    "postcode": "zip",
    "country": "country",
}


def _refuse(name: str, rule: str) -> NoReturn:
    raise Invalid("amoCRM v2 cannot take this", [Issue(field=name, rule=rule)])


# ------------------------------------------------------------------------------------------------------- contacts


def decode_contact(row: Any, context: Context) -> entities.Contact:
    read = _structured(row, wire.Contact, "contact")
    words = _Words(context, Kind.CONTACT, read.custom_fields, row)
    return entities.Contact(
        **_owned(read),
        name=read.name or None,
        first_name=read.first_name or None,  # "" though name is full (§9)
        last_name=read.last_name or None,
        position=words.text(POSITION),
        phones=tuple(Phone(value, **label) for value, label in words.labelled(PHONE)),
        emails=tuple(Email(value, **label) for value, label in words.labelled(EMAIL)),
        company=_company(read.company),
        deals=_links(Kind.DEAL, read.leads),
        tags=_tags(read.tags),
        fields=words.values(context),
        raw=row,
    )


def encode_contact(contact: entities.Contact, fields: frozenset[str], context: Context) -> dict[str, Any]:
    found = _plain(contact, fields, {"name": "name", "first_name": "first_name", "last_name": "last_name"})
    found |= _who_and_when(contact, fields, context)
    if "deals" in fields:
        found["leads"] = _linked(contact, "deals")
    return found | _company_of(contact, fields) | _tags_of(contact, fields) | _customs(contact, fields, context)


def surviving_contact(contact: entities.Contact) -> entities.Contact:
    return _surviving(contact)


# ------------------------------------------------------------------------------------------------------ companies


def decode_company(row: Any, context: Context) -> entities.Company:
    read = _structured(row, wire.Contact, "company")
    words = _Words(context, Kind.COMPANY, read.custom_fields, row)
    return entities.Company(
        **_owned(read),
        name=read.name or None,
        phones=tuple(Phone(value, **label) for value, label in words.labelled(PHONE)),
        emails=tuple(Email(value, **label) for value, label in words.labelled(EMAIL)),
        contacts=_links(Kind.CONTACT, read.contacts),
        deals=_links(Kind.DEAL, read.leads),
        tags=_tags(read.tags),
        fields=words.values(context),
        raw=row,
    )


def encode_company(company: entities.Company, fields: frozenset[str], context: Context) -> dict[str, Any]:
    found = _plain(company, fields, {"name": "name"}) | _who_and_when(company, fields, context)
    if "contacts" in fields:
        found["contacts"] = _linked(company, "contacts")
    if "deals" in fields:
        found["leads"] = _linked(company, "deals")
    return found | _tags_of(company, fields) | _customs(company, fields, context)


def surviving_company(company: entities.Company) -> entities.Company:
    return _surviving(company)


# ---------------------------------------------------------------------------------------------------------- deals


def decode_deal(row: Any, context: Context) -> entities.Deal:
    read = _structured(row, wire.Lead, "lead")
    pipeline = read.pipeline_id or (read.pipeline.id if read.pipeline else None)
    return entities.Deal(
        **_owned(read),
        name=read.name or None,
        price=Money(read.sale) if read.sale is not None else None,
        pipeline=Ref(Kind.PIPELINE, pipeline) if pipeline else None,
        stage=Ref(Kind.STAGE, read.status_id) if read.status_id else None,
        outcome=_outcome(read.status_id),
        closed_at=moment(read.closed_at),
        contacts=_links(Kind.CONTACT, read.contacts, read.main_contact),
        company=_company(read.company),
        tags=_tags(read.tags),
        fields=_Words(context, Kind.DEAL, read.custom_fields, row).values(context),
        deleted=read.is_deleted or False,
        raw=row,
    )


def _outcome(status_id: int | None) -> Outcome | None:
    """§11. Whether a deal is unsorted only its pipeline tells; here it counts as open."""
    if not status_id:
        return None
    return {WON: Outcome.WON, LOST: Outcome.LOST}.get(status_id, Outcome.OPEN)


def encode_deal(deal: entities.Deal, fields: frozenset[str], context: Context) -> dict[str, Any]:
    found = _plain(deal, fields, {"name": "name"}) | _who_and_when(deal, fields, context)
    if "price" in fields:
        found["sale"] = int(deal.price.amount) if deal.price else 0
    found |= _place(deal, fields, context)
    if "contacts" in fields:
        if len(deal.contacts) > CONTACTS_A_LEAD:
            _refuse("contacts", f"a lead has at most {CONTACTS_A_LEAD} contacts")
        _main_stays(deal)
        found["contacts"] = _linked(deal, "contacts")
        main = [link.ref.id for link in deal.contacts if link.main]
        found["main_contact"] = {"id": main[0]} if main else {}
    return found | _company_of(deal, fields) | _tags_of(deal, fields) | _customs(deal, fields, context)


def _place(deal: entities.Deal, fields: frozenset[str], context: Context) -> dict[str, Any]:
    """§11: a deal moves by its stage; 142 and 143 are in every pipeline, so they do not say which."""
    for name in ("stage", "pipeline"):
        if name in fields and deal.id is not None and getattr(deal, name) is None:
            _refuse(name, "a lead is always in a pipeline, at a stage")
    stage, pipeline = deal.stage, deal.pipeline
    if "pipeline" in fields and "stage" not in fields and pipeline is not None:
        closed = stage is not None and stage.id in (WON, LOST)
        # The stage it was at is one of the pipeline it leaves.
        stage = stage if closed else _first_stage(pipeline, context)
    elif "stage" not in fields:
        return {}
    found: dict[str, Any] = {"pipeline_id": pipeline.id} if pipeline is not None else {}
    if stage is None:
        return found
    if pipeline is None and stage.id in (WON, LOST):
        _refuse("stage", f"{stage.id} is a stage of every pipeline: say which, with pipeline=")
    return {**found, "status_id": stage.id}


def _first_stage(pipeline: Ref, context: Context) -> Ref | None:
    for each in context.part_if_allowed("pipelines") or ():
        if each.id == pipeline.id:
            return next((stage.ref for stage in each.stages if stage.outcome is Outcome.OPEN), None)
    return None


def _main_stays(deal: entities.Deal) -> None:
    """§11: `main_contact` is read and not written; the server takes another only when the one it has is gone."""
    before: Mapping[Any, bool] = {}
    if deal.written is not None:
        before = {link.ref.id: link.main for link in deal.written.contacts}
    elif deal.id is not None and deal.raw is not None:
        read = _structured(deal.raw, wire.Lead, "lead")
        before = {link.ref.id: link.main for link in _links(Kind.CONTACT, read.contacts, read.main_contact)}
    held = [link.ref.id for link in deal.contacts if before.get(link.ref.id)]
    wanted = [link.ref.id for link in deal.contacts if link.main]
    if held and wanted and held != wanted:
        _refuse("contacts", f"contact {held[0]} stays the main one as long as it is linked: unlink it first")


def surviving_deal(deal: entities.Deal) -> entities.Deal:
    """`sale` is a whole number in the account's own currency (§11); 142 and 143 are in every pipeline."""
    kept = _surviving(deal)
    if deal.pipeline is None and deal.stage is not None and deal.stage.id in (WON, LOST):
        kept = evolve(kept, stage=None)
    if deal.price is None:
        return kept
    try:
        whole = deal.price.amount.quantize(Decimal(1), ROUND_HALF_EVEN)
    except InvalidOperation:  # no number, or one of thirty digits
        return evolve(kept, price=None)
    return evolve(kept, price=Money(whole))


# ---------------------------------------------------------------------------------------------------------- tasks


def decode_task(row: Any, context: Context) -> entities.Task:
    read = _structured(row, wire.Task, "task")
    return entities.Task(
        **_owned(read),
        text=read.text or None,
        type=Ref(Kind.TASK_TYPE, read.task_type) if read.task_type else None,
        due=moment(read.complete_till_at) or moment(read.complete_till),
        done=read.is_completed or False,
        result=(read.result.text or None) if read.result else None,
        target=_target(read),
        raw=row,
    )


def encode_task(task: entities.Task, fields: frozenset[str], context: Context) -> dict[str, Any]:
    found = _plain(task, fields, {"text": "text", "done": "is_completed"}) | _who_and_when(task, fields, context)
    if "type" in fields:
        found["task_type"] = task.type.id if task.type else None
    if "due" in fields:
        # The table says complete_till, the example complete_till_at, and the answer too (§12).
        found["complete_till_at"] = _epoch(task.due) or 0
    if "result" in fields:
        found["result"] = {"text": task.result or ""}
    return found | _target_of(task, fields)


def surviving_task(task: entities.Task) -> entities.Task:
    return _surviving(task)


# ---------------------------------------------------------------------------------------------------------- notes


def decode_note(row: Any, context: Context) -> entities.Note:
    read = _structured(row, wire.Note, "note")
    number = 4 if read.note_type is None else read.note_type
    text, params = read.text, mapping(read.params)
    if number in wire.TEXT_IN_PARAMS or not text:
        # §13: real keys may be in capitals.
        word = next((key for key in ("text", "TEXT") if isinstance(params.get(key), str)), None)
        text = params[word] if word else text
        params = {key: part for key, part in params.items() if key != word}
    return entities.Note(
        **_owned(read),
        kind=NOTE_KINDS.get(number, NoteKind.OTHER),
        raw_kind=None if number in NOTE_KINDS else str(number),
        text=text or None,
        params=params,
        target=_target(read),
        raw=row,
    )


_NOTE_NUMBERS = {kind: number for number, kind in NOTE_KINDS.items()}


def encode_note(note: entities.Note, fields: frozenset[str], context: Context) -> dict[str, Any]:
    found = _who_and_when(note, fields, context)
    number = _note_number(note)
    if fields & {"kind", "raw_kind", "text", "params"}:
        found["note_type"] = number
    if number in wire.TEXT_IN_PARAMS and fields & {"kind", "text", "params"}:
        found["params"] = {**note.params, "text": note.text or ""}
    else:
        if "text" in fields:
            found["text"] = note.text or ""
        if "params" in fields:
            found["params"] = dict(note.params)
    return found | _target_of(note, fields)


def _note_number(note: entities.Note) -> int:
    said = wire.number(note.raw_kind)
    return said if isinstance(said, int) else _NOTE_NUMBERS.get(note.kind, 4)


def surviving_note(note: entities.Note) -> entities.Note:
    """A new note of a kind that only the server writes (§13) is carried as a text; a text has no params."""
    kept = _surviving(note)
    if note.id is not None:
        return kept
    if _NOTE_NUMBERS.get(note.kind) in wire.ADDABLE:
        kept = evolve(kept, raw_kind=None)
    else:
        kept = evolve(kept, kind=NoteKind.TEXT, raw_kind=None, text=note.text or note.raw_kind or note.kind)
    # The note's own text is not one of its params.
    params = {key: part for key, part in note.params.items() if key not in ("text", "TEXT")}
    return evolve(kept, params={} if kept.kind is NoteKind.TEXT else params)


# ------------------------------------------------------------------------------------------------------ vocabulary


def decode_user(row: Any, context: Context) -> vocabulary.User:
    read = _structured(row, wire.User, "user")
    name = " ".join(filter(None, (read.name, read.last_name)))
    return vocabulary.User(
        id=read.id,
        name=name or None,
        email=read.login or None,
        active=read.is_active is not False,
        admin=bool(read.is_admin),
        raw=row,
    )


def decode_pipeline(row: Any, context: Context) -> vocabulary.Pipeline:
    read = _structured(row, wire.Pipeline, "pipeline")
    stages = sorted((_stage(status) for status in read.statuses or ()), key=lambda stage: stage.sort)
    return vocabulary.Pipeline(
        id=read.id, name=read.name, sort=read.sort or 0, main=bool(read.is_main), stages=tuple(stages), raw=row
    )


def _stage(status: wire.Status) -> vocabulary.Stage:
    editable = status.is_editable is not False and status.editable != "N"
    # §11: won, lost and the unsorted one are what cannot be edited.
    otherwise = Outcome.OPEN if editable else Outcome.UNSORTED
    return vocabulary.Stage(
        id=status.id,
        name=status.name,
        sort=status.sort or 0,
        outcome={WON: Outcome.WON, LOST: Outcome.LOST}.get(status.id, otherwise),
        editable=editable,
        color=status.color,
    )


def decode_task_type(row: Any) -> vocabulary.TaskType:
    read = _structured(row, wire.TaskType, "task type")
    code = {1: "FOLLOW_UP", 2: "MEETING", 3: "LETTER"}.get(read.id)  # §9
    return vocabulary.TaskType(id=read.id, name=read.name, code=code, raw=row)


def decode_subscription(row: Any, context: Context) -> vocabulary.Subscription:
    """It is ended by its address, which is its id here; the vendor's number of it stays in `raw` (§16)."""
    read = _structured(row, wire.Subscription, "webhook")
    return vocabulary.Subscription(id=read.url, url=read.url, events=read.events or (), raw=row)


def encode_subscription(given: vocabulary.Subscription, fields: frozenset[str], context: Context) -> dict[str, Any]:
    return {"url": given.url, "events": list(given.events)}


def decode_field(row: Any, context: Context) -> vocabulary.Field:
    """A definition under the name of its group (``wire.definitions``)."""
    read = _structured(mapping(row).get("definition"), wire.FieldDefinition, "custom field")
    return vocabulary.Field(
        id=read.id,
        entity=GROUPS[mapping(row)["group"]],
        code=read.code or _code(read),
        name=read.name,
        type=FIELD_TYPES.get(read.field_type or 0, FieldType.OTHER),
        raw_type=str(read.field_type) if read.field_type is not None else None,
        options=tuple(
            vocabulary.Option(id=enum.id, value=enum.value, sort=place)
            for place, enum in enumerate(read.enums or (), 1)
        ),
        raw=mapping(row).get("definition"),
    )


def _code(definition: wire.FieldDefinition) -> str | None:
    """The page of 2017 has no codes (§6); of the system's own fields the options, or else the type, tell which it is."""
    if not definition.is_system or definition.code is not None:
        return None
    options = {enum.value for enum in definition.enums or ()}
    known = next((code for code, word in ((PHONE, "MOB"), (EMAIL, "PRIV"), ("IM", "SKYPE")) if word in options), None)
    return known or {1: POSITION, 7: "WEB", 9: "ADDRESS"}.get(definition.field_type or 0)


def decode_account(row: Any) -> vocabulary.Account:
    read = _structured(row, wire.Account, "account")
    return vocabulary.Account(
        id=read.id,
        name=read.name,
        subdomain=read.subdomain,
        currency=read.currency,
        zone=zone_named(read.timezone) or _zone_at(read.timezone_offset),
        raw=row,
    )


def _zone_at(offset: str | None) -> tzinfo | None:
    """``+04:00`` (§1), for a zone this machine has no name of."""
    try:
        away = datetime.strptime(offset or "", "%z").utcoffset()
    except ValueError:
        return None
    return timezone(away) if away is not None else None


# ---------------------------------------------------------------------------------------------------------- parts


def _structured(row: Any, shape: type[T], what: str) -> T:
    """A row is read with its empties as one, and is kept as it came where it cannot be read."""
    try:
        return structured(CONVERTER, canonical(row), shape, what)
    except Unreadable as bad:
        bad.raw = row
        raise


def _epoch(at: datetime | None) -> int | None:
    return int(at.timestamp()) if at is not None else None


def _owned(read: Any) -> dict[str, Any]:
    """Who and when. User 0 is the robot, and stays user 0."""
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


def _who_and_when(entity: Any, fields: frozenset[str], context: Context) -> dict[str, Any]:
    """§4: an update whose `updated_at` is not greater than the stored one does nothing, and the stored one is ours.

    So a new row is dated too: whoever changes it next knows what to exceed.
    """
    found: dict[str, Any] = {}
    for name, word in (("owner", "responsible_user_id"), ("created_by", "created_by"), ("created_at", "created_at")):
        if name in fields:
            content = getattr(entity, name)
            if content is not None:
                found[word] = _epoch(content) if isinstance(content, datetime) else content.id
            elif entity.id is not None:
                _refuse(name, "it can be changed, and not emptied")
    if "updated_at" in fields:
        found["updated_at"] = _epoch(entity.updated_at)
    elif context.now is not None:
        stored = -1 if entity.id is None else _stored(entity)
        found["updated_at"] = max(stored + 1, int(context.now.timestamp()))
    return found


def _stored(entity: Any) -> int:
    """What was last known to be stored; a client's milliseconds are no moment of ours, and have to be exceeded too."""
    read = mapping(entity.raw).get("updated_at")
    return max(_epoch(entity.updated_at) or 0, read if isinstance(read, int) else 0)


def _target(read: wire.Task | wire.Note) -> Ref | None:
    kind = KINDS.get(read.element_type or 0)
    return Ref(kind, read.element_id) if kind and read.element_id else None


def _target_of(entity: Any, fields: frozenset[str]) -> dict[str, Any]:
    if "target" not in fields:
        return {}
    target: Ref | None = entity.target
    return {"element_id": target.id if target else 0, "element_type": ELEMENTS[target.kind] if target else 0}


def _company(linked: wire.Linked | None) -> Link | None:
    if linked is None:
        return None
    return Link(Ref(Kind.COMPANY, linked.id), name=linked.name if linked.id is None else None)


def _company_of(entity: Any, fields: frozenset[str]) -> dict[str, Any]:
    if "company" not in fields:
        return {}
    company: Link | None = entity.company
    if company is None:
        _known_before(entity, "company")
        return {"company": {}}
    # §9: company_name makes a company and links it.
    return {"company": {"id": company.ref.id} if company.ref.id is not None else {"name": company.name}}


def _links(kind: Kind, many: wire.LinkedMany | None, main: wire.Linked | None = None) -> tuple[Link, ...]:
    ids = (many.id if many else None) or ()
    return tuple(Link(Ref(kind, id), main=main is not None and id == main.id) for id in ids)


def _linked(entity: Any, name: str) -> dict[str, Any]:
    links: tuple[Link, ...] = getattr(entity, name)
    for link in links:
        if link.ref.id is None:
            _refuse(name, f"make {link.name!r} first and link it by its id")
    if not links:
        _known_before(entity, name)
    return {"id": [link.ref.id for link in links]} if links else {}


def _known_before(entity: Any, name: str) -> None:
    """§9: links are taken away by their ids, so whoever takes away all must know which there were."""
    if entity.id is not None and entity.raw is None and entity.written is None:
        _refuse(name, "links are taken away one by one, by id: read the row first")


def _tags(tags: Sequence[wire.Tag] | None) -> tuple[Tag, ...]:
    return tuple(Tag(tag.name or "", id=tag.id) for tag in tags or ())


def _tags_of(entity: Any, fields: frozenset[str]) -> dict[str, Any]:
    return {"tags": [{"name": tag.name} for tag in entity.tags]} if "tags" in fields else {}


# -------------------------------------------------------------------------------------------------- custom fields


class _Words:
    """The custom fields of one row, with what the account says of them: the row tells no label and, before 2021, no type."""

    def __init__(
        self, context: Context, kind: Kind, customs: Sequence[wire.CustomField] | None, row: Mapping[str, Any]
    ) -> None:
        self._kind, self._row = kind, row
        self._customs = customs or ()
        self._known: Mapping[Any, vocabulary.Field] = _definitions(context, kind) if customs else {}

    def _defined(self, custom: wire.CustomField) -> vocabulary.Field | None:
        return self._known.get(custom.id)

    def _code(self, custom: wire.CustomField) -> str | None:
        known = self._defined(custom)
        return custom.code or (known.code if known else None)

    def _of(self, code: str) -> list[tuple[wire.CustomField, Any]]:
        customs = [custom for custom in self._customs if self._code(custom) == code]
        return [(custom, each) for custom in customs for each in custom.values or ()]

    def text(self, code: str) -> str | None:
        return next((self._text(each) for _, each in self._of(code) if _content(each) not in (None, "")), None)

    def labelled(self, code: str) -> list[tuple[str, dict[str, Any]]]:
        """The values of PHONE or EMAIL, each with its label; an unknown one keeps the vendor's word, or its number."""
        found: list[tuple[str, dict[str, Any]]] = []
        for custom, each in self._of(code):
            word = self._word(custom, each)
            label = LABELS[code].get(word) if word else Label.WORK
            labels = {"label": Label.OTHER, "raw_label": word} if label is None else {"label": label}
            found.append((self._text(each), labels))
        return found

    def _word(self, custom: wire.CustomField, each: Any) -> str | None:
        enum = wire.number(mapping(each).get("enum") or None)
        if not isinstance(enum, int | str | None):
            raise self._unreadable("an enum is a number or a word", enum)
        known = self._defined(custom)
        words = {option.id: option.value for option in known.options} if known else {}
        return words.get(enum) or (str(enum) if enum is not None else None)

    def values(self, context: Context) -> tuple[FieldValue, ...]:
        found: list[FieldValue] = []
        for custom in self._customs:
            known, code = self._defined(custom), self._code(custom)
            if code in _BUILT_IN:
                continue
            said = FIELD_TYPES.get(custom.type_id) if custom.type_id else (known.type if known else None)
            type = said or FieldType.OTHER
            contents = tuple(self._contents(type, custom, context))
            if contents:
                name = custom.name or (known.name if known else None)
                found.append(
                    FieldValue(contents, field=Ref(Kind.FIELD, custom.id), code=code or None, name=name, type=type)
                )
        return tuple(found)

    def _contents(self, type: FieldType, custom: wire.CustomField, context: Context) -> Iterable[Any]:
        values = [each for each in custom.values or () if _content(each) not in (None, "")]
        if type is FieldType.ADDRESS:
            return (self._address(values),) if values else ()
        if type is FieldType.MULTITEXT:
            # A messenger, say: a map with the vendor's label where it has one, so that none is lost.
            labels = [(self._text(each), self._word(custom, each)) for each in values]
            return [{"value": text, "enum": word} if word else text for text, word in labels]
        return [_value(type, _content(each), context) for each in values]

    def _address(self, values: Iterable[Any]) -> dict[str, Any]:
        """Six lines, each known by its name or by its number; a line of another name keeps it."""
        names, codes = {code: name for name, code in _LINES.items()}, tuple(_LINES.values())
        lines: dict[str, Any] = {}
        for each in values:
            code = wire.number(mapping(each).get("subtype") or codes[0])
            if not isinstance(code, int | str):
                raise self._unreadable("a line of an address is a name or a number", code)
            if isinstance(code, int) and 0 < code <= len(codes):
                code = codes[code - 1]
            lines.setdefault(names.get(str(code), str(code)), self._text(each))
        return lines

    def _text(self, each: Any) -> str:
        content = _content(each)
        if not isinstance(content, str | int | Decimal | None):
            raise self._unreadable("a text was due", content)
        return "" if content is None else str(content)

    def _unreadable(self, rule: str, found: object) -> Unreadable:
        """A map told as if it were a text would be nobody's: the row is kept as it came."""
        said = f"{self._kind} {self._row.get('id')} has another shape than expected: {rule}, not {found!r:.80}"
        return Unreadable(said, raw=self._row)


def _definitions(context: Context, kind: Kind) -> Mapping[Any, vocabulary.Field]:
    return context.part(f"fields:{kind}")


def _content(each: Any) -> Any:
    return each.get("value") if is_mapping(each) else each


_PLAIN = re.compile(r"-?[0-9]+(\.[0-9]+)?", re.ASCII)


def _value(type: FieldType, given: Any, context: Context) -> Any:
    """What cannot be read as its type is kept as the text it came as: old values outlive a change of the field's type."""
    if is_mapping(given):
        return dict(given)
    text = str(given)
    try:
        if type is FieldType.NUMBER:
            # A taxpayer's number may begin with noughts (samples): what a Decimal would say otherwise stays a text.
            # (1e999999 is never written out to see.)
            exact = _PLAIN.fullmatch(text) and f"{Decimal(text):f}" == text
            return Decimal(text) if exact else text
        if type is FieldType.BOOL:
            return given is True or text == "1"
        if type in _DAYS:
            return _wall(given, context).date()
        if type is FieldType.DATETIME:
            return _wall(given, context).replace(tzinfo=context.zone).astimezone(UTC)
    except (ValueError, OverflowError, InvalidOperation):
        return text
    return text


def _wall(given: Any, context: Context) -> datetime:
    """§7: "2020-04-17 00:00:00" on the account's clock, "14.06.2014" in an example, Unix seconds in webhooks."""
    text = str(given).strip()
    if text.isascii() and text.isdecimal():
        return datetime.fromtimestamp(int(text), context.zone).replace(tzinfo=None)
    if text[2:3] == ".":
        return datetime.strptime(text, "%d.%m.%Y")
    return datetime.fromisoformat(text).replace(tzinfo=None)


def _customs(entity: Any, fields: frozenset[str], context: Context) -> dict[str, Any]:
    """The custom fields that are written; an update writes those that changed, and names the ones that went."""
    if not fields & {"position", "phones", "emails", "fields"}:
        return {}
    known = _definitions(context, entity.KIND)
    found: list[dict[str, Any]] = []
    if "position" in fields:
        found.append(_built_in(known, "position", POSITION, [{"value": entity.position}] if entity.position else []))
    for name, code in (("phones", PHONE), ("emails", EMAIL)):
        if name in fields:
            found.append(_built_in(known, name, code, _labelled_values(known, code, getattr(entity, name))))
    if "fields" in fields:
        found += [_encoded(value, known, context) for value in _changed(entity, known, context)]
    return {"custom_fields": found}


def _by_code(known: Mapping[Any, vocabulary.Field], code: str | None) -> vocabulary.Field | None:
    return next((field for field in known.values() if field.code == code), None) if code else None


def _built_in(known: Mapping[Any, vocabulary.Field], name: str, code: str, values: list[Any]) -> dict[str, Any]:
    defined = _by_code(known, code)
    if defined is None:
        _refuse(name, f"the account has no field {code}")
    return {"id": defined.id, "code": code, "type_id": wire.number(defined.raw_type), "values": values}


def _labelled_values(known: Mapping[Any, vocabulary.Field], code: str, parts: Iterable[Any]) -> list[Any]:
    words = {label: word for word, label in LABELS[code].items()}
    return [
        {"value": part.value, "enum": _option(_by_code(known, code), part.raw_label or words.get(part.label, "OTHER"))}
        for part in parts
    ]


def _option(defined: vocabulary.Field | None, word: str) -> Any:
    """The id of an option, or its word where the account does not tell: both are taken (§7)."""
    return next((option.id for option in defined.options if option.value == word), word) if defined else word


def _changed(entity: Any, known: Mapping[Any, vocabulary.Field], context: Context) -> list[FieldValue]:
    """§7: a field that is not named stays as it is."""
    if entity.id is None or (entity.written is None and entity.raw is None):
        return list(entity.fields)
    before = _by_id(known, _fields_before(entity, context))
    after = _by_id(known, entity.fields)
    gone = [evolve(value, values=()) for id, value in before.items() if id not in after]
    return [value for id, value in after.items() if before.get(id) != value] + gone


def _fields_before(entity: Any, context: Context) -> tuple[FieldValue, ...]:
    if entity.written is not None:
        return entity.written.fields
    read = _structured({"custom_fields": mapping(entity.raw).get("custom_fields")}, wire.CustomFields, "row")
    return _Words(context, entity.KIND, read.custom_fields, entity.raw).values(context)


def _by_id(known: Mapping[Any, vocabulary.Field], values: Iterable[FieldValue]) -> dict[Any, FieldValue]:
    return {_field_id(known, value): value for value in values}


def _field_id(known: Mapping[Any, vocabulary.Field], value: FieldValue) -> Any:
    """§7: a custom field is written by its id; a code is one of the account's."""
    if value.field is not None and value.field.id is not None:
        return value.field.id
    defined = _by_code(known, value.code)
    if defined is None:
        _refuse("fields", f"name it by field=Ref(Kind.FIELD, id): the account has no field of code {value.code!r}")
    return defined.id


def _encoded(value: FieldValue, known: Mapping[Any, vocabulary.Field], context: Context) -> dict[str, Any]:
    id = _field_id(known, value)
    # The account knows better than a hand-written value; what it does not know, the server refuses.
    defined = known.get(id)
    type = defined.type if defined is not None else value.type
    called = (defined.name if defined is not None else value.name) or id
    if type not in FIELD_NUMBERS:
        _refuse("fields", f"{called}: fields of type {type} are not written")
    for part in value.values:
        if not _fits(type, part):
            _refuse("fields", f"{called}: a field of type {type} does not hold {part!r:.80}")
    values = [sent for part in value.values for sent in _sent(type, part, defined, context)]
    return {"id": id, "type_id": FIELD_NUMBERS[type], "values": values}


def _sent(type: FieldType, part: Any, defined: vocabulary.Field | None, context: Context) -> list[dict[str, Any]]:
    """§7: one content as the values it is read as, an address one a line."""
    if type is FieldType.ADDRESS:
        return [{"value": part[name], "subtype": code} for name, code in _LINES.items() if name in part]
    if type is FieldType.MULTITEXT and is_mapping(part):
        enum = {"enum": _option(defined, part["enum"])} if part.get("enum") is not None else {}
        return [{"value": part["value"], **enum}]
    if type in _CHOICES and defined is not None:
        options = {option.value: option.id for option in defined.options}
        if part not in options:
            _refuse("fields", f"{defined.name} has no option {part!r}; it has {', '.join(map(repr, options))}")
        return [{"value": part, "enum": options[part]}]
    if isinstance(part, bool):
        return [{"value": "1"}] if part else []  # "absent when unset"
    if isinstance(part, datetime):
        return [{"value": part.astimezone(_zone(context)).strftime("%Y-%m-%d %H:%M:%S")}]
    if isinstance(part, date):
        return [{"value": f"{part} 00:00:00"}]
    if isinstance(part, Decimal):
        return [{"value": f"{part:f}"}]
    return [{"value": dict(part) if is_mapping(part) else str(part)}]


def _zone(context: Context) -> tzinfo:
    try:
        return context.zone
    except Invalid as wrong:
        _refuse("fields", wrong.message)


def _fits(type: FieldType, part: Any) -> bool:
    """Whether it can be what a field of this type holds. Whether it is one of its options, only the account knows."""
    if type is FieldType.LEGAL:
        return is_mapping(part) and bool(part) and is_tree(part)
    if type is FieldType.ADDRESS:
        return is_mapping(part) and bool(part) and part.keys() <= _LINES.keys() and all(map(_is_text, part.values()))
    if type is FieldType.MULTITEXT and is_mapping(part):
        return _is_text(part.get("value")) and part.keys() <= {"value", "enum"} and is_tree(part)
    if type is FieldType.NUMBER:
        if isinstance(part, Decimal):
            return part.is_finite()
        return _is_text(part) or (isinstance(part, int) and not isinstance(part, bool))
    if type is FieldType.BOOL:
        return isinstance(part, bool)
    if type in _DAYS:
        return isinstance(part, date) and not isinstance(part, datetime) and part.year >= 1000
    if type is FieldType.DATETIME:
        # A day beside the last there is may be none in another zone.
        return isinstance(part, datetime) and part.tzinfo is not None and 1000 < part.year < 9999
    return _is_text(part)


def _is_text(part: Any) -> bool:
    return isinstance(part, str) and part != ""


# ---------------------------------------------------------------------------------------------------- what survives


def _surviving(entity: Any) -> Any:
    changes: dict[str, Any] = {}
    for name, code in (("phones", PHONE), ("emails", EMAIL)):
        for part in getattr(entity, name, ()):
            changes.setdefault(name, ())
            label = part.label if part.label in LABELS[code].values() else Label.OTHER
            changes[name] += (evolve(part, label=label, raw_label=None),)
    company: Link | None = getattr(entity, "company", None)
    if company is not None:
        changes["company"] = _surviving_company(entity, company)
    for name in ("deals", "contacts"):
        if getattr(entity, name, ()):
            # Which contact is the main one only a lead tells (§11).
            main = isinstance(entity, entities.Deal)
            kept = [link for link in getattr(entity, name) if link.ref.id is not None]
            changes[name] = tuple(Link(link.ref, main=link.main and main) for link in kept)
    if getattr(entity, "tags", ()):
        changes["tags"] = _surviving_tags(entity.tags)
    if getattr(entity, "fields", ()):
        changes["fields"] = tuple(filter(None, map(_surviving_value, entity.fields)))
    target: Ref | None = getattr(entity, "target", None)
    if target is not None and (target.kind not in TYPES or target.id is None):
        changes["target"] = None
    return evolve(on_the_second(entity), **changes)


def _surviving_company(entity: Any, company: Link) -> Link | None:
    if company.ref.id is not None:
        return Link(company.ref)
    named = company.name and isinstance(entity, entities.Contact)
    return Link(Ref(Kind.COMPANY, None), name=company.name) if named else None


def _surviving_tags(tags: Iterable[Tag]) -> tuple[Tag, ...]:
    """§9: tags travel as one text with commas, so a tag with a comma would arrive as two."""
    names = (name.strip() for tag in tags for name in tag.name.split(","))
    ids = {tag.name: tag.id for tag in tags}
    return tuple(Tag(name, id=ids.get(name)) for name in dict.fromkeys(names) if name)


# The codes the system's own fields have (§7), besides those the model has fields of its own for.
_CODES = ("WEB", "ADDRESS", "IM")


def _surviving_value(value: FieldValue) -> FieldValue | None:
    """A field is written by its id (§7); only the system's own have codes to find it by."""
    named = value.code in _CODES if value.field is None else value.field.id is not None
    if not named or value.type not in FIELD_NUMBERS:
        return None
    kept = [part for part in value.values if _fits(value.type, part)]
    if value.type not in (FieldType.MULTISELECT, FieldType.MULTITEXT):
        kept = kept[:1]
    # Times travel as whole seconds.
    kept = [part.replace(microsecond=0) if isinstance(part, datetime) else part for part in kept]
    return evolve(value, values=kept) if kept or not value.values else None


def seconds_before(at: datetime) -> datetime:
    """§3: If-Modified-Since gives what changed LATER, so a second less is asked for what changed at that second too."""
    return at.astimezone(UTC).replace(microsecond=0) - timedelta(seconds=1)
