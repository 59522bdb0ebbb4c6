"""What Kommo and amoCRM send: rows in v2's words, all of them text, read into the entities that v4 gives, partly.

Sources: reference kommo-v4, sections named. A row is lifted to v4's words and then decoded as v4's own.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

from attrs import evolve

from crmclient import vocabulary
from crmclient.dialect import ABSENT, Context, mapping
from crmclient.entities import FieldType, FieldValue, Id, Kind, Note, Ref
from crmclient.errors import AuthFailed, Unreadable
from crmclient.formats import in_order
from crmclient.webhooks import (
    Action,
    Delivery,
    Event,
    Secrets,
    Webhook,
    Word,
    amount,
    anything,
    by_hmac_sha256,
    by_token,
    form_of,
    json_of,
    label,
    lifted,
    partial,
    rows_of,
    text,
    whole,
)
from crmclient_kommo import codec
from crmclient_kommo.wire import TYPES, moment

# §7.2: the roots that hold what the neutral model names; companies come under `contacts`, `task` is singular. The seed
# has families of their own for companies, tasks and notes (§10): read too.
ROOTS: Mapping[str, Kind] = {
    "leads": Kind.DEAL,
    "contacts": Kind.CONTACT,
    "companies": Kind.COMPANY,
    "task": Kind.TASK,
    "tasks": Kind.TASK,
    "notes": Kind.NOTE,
}
ACTIONS: Mapping[str, Action] = {
    "add": Action.ADDED,
    "update": Action.UPDATED,
    "delete": Action.DELETED,
    "restore": Action.RESTORED,
    "status": Action.STAGE_CHANGED,
    "responsible": Action.RESPONSIBLE_CHANGED,
    "complete": Action.COMPLETED,
    "note": Action.ADDED,
}

# §7.2: "element_type (1 contact, 2 lead, 3 company, 12 customer)".
ELEMENTS: Mapping[int, Kind] = {1: Kind.CONTACT, 2: Kind.DEAL, 3: Kind.COMPANY}

# §4.5: the numbers of v2 that hooks still use, in v4's words. What is not here keeps its number in `raw_kind`.
NOTE_TYPES: Mapping[int, str] = {
    4: "common",
    5: "attachment",
    7: "amomail_message",
    8: "amomail_message",
    10: "call_in",
    11: "call_out",
    25: "service_message",
    102: "sms_in",
    103: "sms_out",
}

# §7.2: `[note][type]=3` and `[note][type][message_uuid]=…` come in one row.
ALSO_PARENTS = (("*", "note", "*", "note", "type"),)


# ------------------------------------------------------------------------------------------------------- the words


def _tags(given: Any) -> list[dict[str, Any]]:
    words = {"id": Word("id", whole), "name": Word("name", text)}
    return [lifted(mapping(each), words)[0] for each in in_order(given)]


def _linked(given: Any) -> list[dict[str, int]]:
    """§7.2: `linked_leads_id[ID][ID]=ID`."""
    return [{"id": whole(mapping(each).get("ID", each))} for each in in_order(given)]


def _customs(given: Any) -> list[dict[str, Any]]:
    words = {"id": Word("id", whole), "name": Word("name", text), "code": Word("code", text)}
    return [{**lifted(mapping(each), words)[0], "values": mapping(each).get("values")} for each in in_order(given)]


def _done(given: Any) -> bool:
    return whole(given) == 1


_OWNED = {
    "id": Word("id", whole),
    "responsible_user_id": Word("responsible_user_id", whole, ("owner",)),
    "old_responsible_user_id": Word("old_responsible_user_id", whole),
    "created_at": Word("created_at", whole, ("created_at",)),
    "updated_at": Word("updated_at", whole, ("updated_at",)),
}
_CARD = {
    # Hooks of 2016 have only these two, in seconds.
    "date_create": Word("created_at", whole, ("created_at",)),
    "last_modified": Word("updated_at", whole, ("updated_at",)),
    **_OWNED,
    "name": Word("name", text, ("name",)),
    "created_user_id": Word("created_by", whole, ("created_by",)),
    "modified_user_id": Word("updated_by", whole, ("updated_by",)),
    "tags": Word("tags", _tags, ("tags",)),
    "custom_fields": Word("custom_fields", _customs),
}
_PERSON = {**_CARD, "linked_leads_id": Word("leads", _linked, ("deals",))}

# §7.2.
WORDS: Mapping[Kind, Mapping[str, Word]] = {
    Kind.DEAL: {
        **_CARD,
        "price": Word("price", amount, ("price",)),
        "pipeline_id": Word("pipeline_id", whole, ("pipeline",)),
        "status_id": Word("status_id", whole, ("stage", "outcome")),
        "old_pipeline_id": Word("old_pipeline_id", whole),
        "old_status_id": Word("old_status_id", whole),
    },
    Kind.CONTACT: {**_PERSON, "linked_company_id": Word("company", whole, ("company",))},
    Kind.COMPANY: _PERSON,
    # `date_create`, `last_modified` and `complete_till` of tasks and notes are text, in two time zones: not read.
    Kind.TASK: {
        **_OWNED,
        "created_user_id": Word("created_by", whole, ("created_by",)),
        "modified_by": Word("updated_by", whole, ("updated_by",)),
        "text": Word("text", text, ("text",)),
        "old_text": Word("old_text", text),
        "task_type": Word("task_type_id", whole, ("type",)),
        "complete_before": Word("complete_till", whole, ("due",)),
        "status": Word("is_completed", _done, ("done",)),
        "action_close": Word("action_close", whole),
        "result": Word("result", mapping, ("result",)),
        "main_user": Word("main_user", whole),
        "element_type": Word("element_type", whole),
        "element_id": Word("entity_id", whole),
    },
    Kind.NOTE: {
        "id": Word("id", whole),
        "main_user_id": Word("responsible_user_id", whole, ("owner",)),
        "created_by": Word("created_by", whole, ("created_by",)),
        "modified_by": Word("updated_by", whole, ("updated_by",)),
        "created_at": Word("created_at", whole, ("created_at",)),
        "updated_at": Word("updated_at", whole, ("updated_at",)),
        "note_type": Word("note_type", whole, ("kind", "raw_kind")),
        "text": Word("text", text, ("text",)),
        "attachement": Word("attachement", text),
        "element_type": Word("element_type", whole),
        "element_id": Word("entity_id", whole),
    },
}


# ------------------------------------------------------------------------------------------------------- verifying


def verify(delivery: Delivery, secrets: Secrets) -> None:
    """§1.7: only the hook that tells of a switched-off integration is signed; account hooks carry a token of ours."""
    if delivery.method != "GET":
        return by_token(delivery, secrets)
    client, account = delivery.query.get("client_uuid"), delivery.query.get("account_id")
    if not client or not account:
        raise AuthFailed("the delivery does not prove where it comes from")
    return by_hmac_sha256(delivery.query.get("signature"), f"{client}|{account}", secrets)


# --------------------------------------------------------------------------------------------------------- reading


def read(delivery: Delivery, context: Context) -> tuple[Event, ...]:
    """All that one delivery tells, in its order: several rows and families may share it (§7.2).

    A hook tells neither the types of custom fields nor the words of labels. Where ``context`` holds the parts
    ``fields:contact``, ``fields:company``, ``fields:deal`` (the account's fields by id) they are as v4 gives them; without
    them a field has the type its shape tells, else OTHER, and a phone's label is the option's id. A day needs the part
    ``account`` too, for its zone: MissingPart says so, as in any codec.
    """
    if delivery.method == "GET":
        return (_switched_off(delivery),)
    as_json = delivery.media_type == "application/json"
    tree = json_of(delivery) if as_json else form_of(delivery, ALSO_PARENTS)
    account = _account(tree)
    # §10: the seed's JSON has a timestamp; a form has none.
    sent_at = _moment(tree.get("timestamp"))
    families = {root: part for root, part in tree.items() if root != "account"}
    events = [_event(root, action, row, account, sent_at, context) for root, action, row in rows_of(families)]
    if not events:
        raise Unreadable("the delivery tells of nothing")
    return tuple(events)


def _switched_off(delivery: Delivery) -> Event:
    account = delivery.query.get("account_id")
    if not account or not delivery.query.get("client_uuid"):
        raise Unreadable("a GET tells that an integration was switched off, and this one does not say where")
    id = _number(account) or account
    return Event(action=Action.OTHER, word="integration.disabled", account=id, raw=dict(delivery.query))


def _account(tree: Mapping[str, Any]) -> Id | None:
    block = mapping(tree.get("account"))
    subdomain = block.get("subdomain")
    named = subdomain if isinstance(subdomain, str) and subdomain else None
    return _number(block.get("id")) or _number(tree.get("account_id")) or named


def _number(given: Any) -> int | None:
    try:
        return whole(given)
    except TypeError:
        return None


def _moment(given: Any) -> datetime | None:
    try:
        return moment(_number(given))
    except Unreadable:
        return None


def _event(root: str, action: str, row: Any, account: Id | None, sent_at: datetime | None, context: Context) -> Event:
    told, kind = mapping(row), ROOTS.get(root)
    above = kind
    if root == "contacts" and told.get("type") == "company":
        kind = above = Kind.COMPANY
    if kind is not None and (action == "note" or kind is Kind.NOTE):
        # §7.2: a note's row stands one level deeper, and beside it of what kind the row is that it hangs on.
        told, kind = mapping(told.get("note")) or told, Kind.NOTE
    at = _moment(told.get("updated_at")) or _moment(told.get("last_modified")) or _moment(told.get("created_at"))
    event = Event(
        action=ACTIONS.get(action, Action.OTHER) if kind else Action.OTHER,
        word=f"{root}.{action}" if root else action,
        kind=kind,
        account=_number(told.get("account_id")) or account,
        at=at or sent_at,
        raw=row,
    )
    if kind is None:
        return event
    id = _number(told.get("id"))
    if id is None:
        return evolve(event, problem=Unreadable(f"{event.word} does not say which {kind} it is about", raw=row))
    event = evolve(event, ref=Ref(kind, id))
    try:
        wire, brought = lifted(told, WORDS[kind])
        if kind is Kind.NOTE:
            return _note(event, wire, brought, above, told, context)
        if kind is Kind.TASK:
            return _task(event, wire, brought, told, context)
        return _card(event, kind, wire, brought, told, context)
    except Unreadable as bad:
        return evolve(event, problem=bad)


def _marked(entity: Any, event: Event, brought: set[str]) -> Any:
    """A deletion and its undoing are told by the hook's name alone."""
    if event.action not in (Action.DELETED, Action.RESTORED):
        return entity
    brought.add("deleted")
    return evolve(entity, deleted=event.action is Action.DELETED)


def _handed_over(wire: Mapping[str, Any]) -> bool:
    """§7.2: a new owner of a contact, a company or a task arrives as `update`, with the old one beside.

    An update of something else may name the same user twice [webhook_contact_update.form].
    """
    old, new = wire.get("old_responsible_user_id"), {wire.get("responsible_user_id"), wire.get("main_user")}
    return old is not None and bool(new - {None, old})


def _before(wire: Mapping[str, Any]) -> dict[str, Any]:
    """What was before, as far as it came. No stage and no pipeline has the id 0; user 0 is the robot."""
    found: dict[str, Any] = {}
    for name, word, kind in (("stage", "old_status_id", Kind.STAGE), ("pipeline", "old_pipeline_id", Kind.PIPELINE)):
        if wire.get(word):
            found[f"old_{name}"] = Ref(kind, wire[word])
    if "old_responsible_user_id" in wire:
        found["old_owner"] = Ref(Kind.USER, wire["old_responsible_user_id"])
    if "old_text" in wire:
        found["old_text"] = wire["old_text"]
    return found


# -------------------------------------------------------------------------------------- leads, contacts, companies

_DECODE: Mapping[Kind, Callable[[Any, Context], Any]] = {
    Kind.DEAL: codec.decode_deal,
    Kind.CONTACT: codec.decode_contact,
    Kind.COMPANY: codec.decode_company,
}


def _card(
    event: Event, kind: Kind, wire: dict[str, Any], brought: set[str], told: Mapping[str, Any], context: Context
) -> Event:
    customs: list[dict[str, Any]] = wire.pop("custom_fields", [])
    known: Any = context.parts.get(f"fields:{kind}", ABSENT)
    definitions: Definitions = {} if known is ABSENT else known
    company: int = wire.get("company", 0)
    row = {
        **wire,
        "custom_fields_values": [
            _built_in(custom, definitions) for custom in customs if custom.get("code") in _BUILT_IN
        ],
        "_embedded": {
            "tags": wire.get("tags", []),
            "companies": [{"id": company}] if company else [],
            "leads": wire.get("leads", []),
        },
    }
    brought |= {_BUILT_IN[custom["code"]] for custom in customs if custom.get("code") in _BUILT_IN}
    fields = [_field(custom, definitions, context) for custom in customs if custom.get("code") not in _BUILT_IN]
    entity = evolve(_DECODE[kind](row, context), fields=fields)
    if fields:
        brought.add("fields")
    entity, action = _marked(entity, event, brought), event.action
    if action is Action.STAGE_CHANGED:
        action = {codec.WON: Action.WON, codec.LOST: Action.LOST}.get(wire.get("status_id", 0), action)
    elif action is Action.UPDATED and _handed_over(wire):
        action = Action.RESPONSIBLE_CHANGED
    return evolve(event, action=action, entity=partial(entity, brought, told), extra=_before(wire))


# ----------------------------------------------------------------------------------------------------------- tasks


def _task(event: Event, wire: dict[str, Any], brought: set[str], told: Mapping[str, Any], context: Context) -> Event:
    target = ELEMENTS.get(wire.get("element_type", 0))
    if target is not None and "entity_id" in wire:
        wire["entity_type"] = TYPES[target]
        brought.add("target")
    if wire.get("main_user") not in (None, wire.get("responsible_user_id")):
        # A hand-over names two users, and which of them has it no page says [kommo_hook_task_responsible.form].
        brought.discard("owner")
    task, action = _marked(codec.decode_task(wire, context), event, brought), event.action
    if action is Action.COMPLETED or (action is Action.UPDATED and wire.get("action_close") == 1):
        action, task, brought = Action.COMPLETED, evolve(task, done=True), brought | {"done"}
    elif action is Action.UPDATED and _handed_over(wire):
        action = Action.RESPONSIBLE_CHANGED
    return evolve(event, action=action, entity=partial(task, brought, told), extra=_before(wire))


# ----------------------------------------------------------------------------------------------------------- notes


def _note(
    event: Event,
    wire: dict[str, Any],
    brought: set[str],
    above: Kind | None,
    told: Mapping[str, Any],
    context: Context,
) -> Event:
    if "element_type" in wire:
        above = ELEMENTS.get(wire["element_type"])
    if above in TYPES and "entity_id" in wire:
        brought.add("target")
    if "note_type" in wire:
        wire["note_type"] = NOTE_TYPES.get(wire["note_type"], str(wire["note_type"]))
    params = _params(wire)
    if params is not None:
        brought.add("params")
    row = {**wire, "params": {"text": wire.get("text")} if params is None else params}
    parent = Ref(above, None) if above is not None and "target" in brought else None
    note: Note = codec.decode_note(row, evolve(context, parent=parent))
    return evolve(event, entity=partial(_marked(note, event, brought), brought, told))


def _params(wire: Mapping[str, Any]) -> dict[str, Any] | None:
    """A note's params in v4's words (§4.5), or None where the hook does not tell them."""
    word, said = wire.get("note_type"), wire.get("text")
    if word == "common":
        return {"text": said}
    if word in ("call_in", "call_out"):
        # §7.2: "`text` is a JSON string with upper-case keys".
        try:
            call = mapping(json.loads(said or "", parse_float=Decimal))
        except (ValueError, RecursionError):
            return None
        return {name.lower(): part for name, part in call.items()} or None
    if word == "attachment":
        # §7.2: "drive/{file_uuid}/{version_uuid}/{name}".
        drive, *parts = wire.get("attachement", "").split("/", 3)
        if drive == "drive" and len(parts) == 3:
            return {"text": said, "file_uuid": parts[0], "version_uuid": parts[1], "file_name": parts[2]}
    return None


# --------------------------------------------------------------------------------------------------- custom fields

_BUILT_IN: Mapping[Any, str] = {codec.PHONE: "phones", codec.EMAIL: "emails", codec.POSITION: "position"}

Definitions = Mapping[Any, vocabulary.Field]


_VALUE = {"value": Word("value", anything), "enum": Word("enum", label), "subtype": Word("subtype", label)}


def _values(given: Any) -> Iterator[dict[str, Any]]:
    """§7.2, the five shapes: `[{value}]`, `[{value, enum}]`, `[text]` (a date), `{value, enum}` (a radio button), and a
    birthday's `[{value}]` in d.m.Y; here each is a map.
    """
    for each in (given,) if "value" in mapping(given) else in_order(given):
        yield lifted(mapping(each) if isinstance(each, dict) else {"value": each}, _VALUE)[0]


def _built_in(custom: Mapping[str, Any], definitions: Definitions) -> dict[str, Any]:
    """A phone, an e-mail or a position as v4 has it."""
    codes = _codes(custom, definitions)
    values = [
        {"value": each.get("value"), "enum_code": codes.get(str(each.get("enum")), each.get("enum"))}
        for each in _values(custom["values"])
    ]
    return {"field_id": custom.get("id"), "field_code": custom["code"], "values": values}


def _codes(custom: Mapping[str, Any], definitions: Definitions) -> dict[str, str | None]:
    definition = definitions.get(custom.get("id"))
    return {str(option.id): option.code for option in definition.options} if definition else {}


def _field(custom: Mapping[str, Any], definitions: Definitions, context: Context) -> FieldValue:
    given = list(_values(custom["values"]))
    definition = definitions.get(custom.get("id"))
    type = definition.raw_type if definition is not None else _shown(custom, given)
    codes = _codes(custom, definitions)
    row = {
        "field_id": custom.get("id"),
        "field_code": custom.get("code"),
        "field_name": custom.get("name"),
        "field_type": type,
        "values": [_value(type, each, codes) for each in given],
    }
    read = codec.field_values({"custom_fields_values": [row]}, context)
    if read:
        return read[0]
    return FieldValue(
        [each["value"] for each in given if each.get("value") not in (None, "")],
        field=Ref(Kind.FIELD, custom["id"]) if "id" in custom else None,
        code=custom.get("code"),
        name=custom.get("name"),
        type=FieldType.OTHER,
    )


def _shown(custom: Mapping[str, Any], given: Sequence[Mapping[str, Any]]) -> str | None:
    """What the shape alone tells of the type, in v4's words."""
    if "value" in mapping(custom["values"]):
        return "radiobutton"
    if any("subtype" in each for each in given):
        return "smart_address"
    if not any("enum" in each for each in given):
        return None
    if custom.get("code") == "IM":
        return "multitext"  # a messenger has a label, as a phone has
    return "select" if len(given) == 1 else "multiselect"


_DAY = re.compile(r"([0-9]{2})\.([0-9]{2})\.([0-9]{4})", re.ASCII)


def _value(type: str | None, each: Mapping[str, Any], codes: Mapping[str, str | None]) -> dict[str, Any]:
    """One value as v4 has it: days and moments in seconds or ISO 8601, options by their numbers."""
    given = each.get("value")
    if isinstance(given, str) and type in ("date", "birthday", "date_time"):
        day = _DAY.fullmatch(given)
        given = f"{day[3]}-{day[2]}-{day[1]}" if day else _number(given) or given
    found: dict[str, Any] = {"value": given}
    option = each.get("enum", each.get("subtype"))
    if option is not None:
        code, number = codes.get(str(option)), _number(option)
        named = code or (None if number is not None else option)
        found |= {"enum_code": named} if named else {"enum_id": number}
    return found


WEBHOOK = Webhook(verify=verify, read=read)
