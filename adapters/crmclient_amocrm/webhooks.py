"""What amoCRM sends to those who speak v2: rows nearly in v2's words, all of them text, read into entities, partly.

Sources: reference amocrm-v2 §16, and kommo-v4 §7, which records the same deliveries. A row is lifted to the words of v2's
answers and then decoded as one.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

from attrs import evolve

from crmclient.dialect import Context, mapping
from crmclient.entities import Entity, Id, Kind, Note, Ref
from crmclient.errors import Unreadable
from crmclient.formats import in_order
from crmclient.webhooks import (
    Action,
    Delivery,
    Event,
    Webhook,
    Word,
    anything,
    by_token,
    form_of,
    label,
    lifted,
    partial,
    rows_of,
    text,
    whole,
)
from crmclient_amocrm import codec
from crmclient_amocrm.wire import ELEMENTS, moment

# kommo-v4 §7.2: companies come under `contacts`, `task` is singular.
ROOTS: Mapping[str, Kind] = {"leads": Kind.DEAL, "contacts": Kind.CONTACT, "task": Kind.TASK}
ACTIONS: Mapping[str, Action] = {
    "add": Action.ADDED,
    "update": Action.UPDATED,
    "delete": Action.DELETED,
    "restore": Action.RESTORED,
    "status": Action.STAGE_CHANGED,
    "responsible": Action.RESPONSIBLE_CHANGED,
    "note": Action.ADDED,
}

# kommo-v4 §7.2: `[note][type]=3` and `[note][type][message_uuid]=…` come in one row.
ALSO_PARENTS = (("*", "note", "*", "note", "type"),)


# ------------------------------------------------------------------------------------------------------- the words


def _tags(given: Any) -> list[dict[str, Any]]:
    words = {"id": Word("id", whole), "name": Word("name", text)}
    return [lifted(mapping(each), words)[0] for each in in_order(given)]


def _linked(given: Any) -> dict[str, list[int]]:
    """kommo-v4 §7.2: `linked_leads_id[ID][ID]=ID`."""
    return {"id": [whole(mapping(each).get("ID", each)) for each in in_order(given)]}


def _company(given: Any) -> dict[str, int]:
    return {"id": id} if (id := whole(given)) else {}


def _customs(given: Any) -> list[dict[str, Any]]:
    words = {"id": Word("id", whole), "name": Word("name", text), "code": Word("code", text)}
    return [
        {**lifted(mapping(each), words)[0], "values": list(_values(mapping(each).get("values")))}
        for each in in_order(given)
    ]


_VALUE = {"value": Word("value", anything), "enum": Word("enum", label), "subtype": Word("subtype", label)}


def _values(given: Any) -> Iterator[dict[str, Any]]:
    """kommo-v4 §7.2, the five shapes: `[{value}]`, `[{value, enum}]`, `[text]` (a date), `{value, enum}` (a radio
    button), and a birthday's `[{value}]` in d.m.Y; here each is a map.
    """
    for each in (given,) if "value" in mapping(given) else in_order(given):
        yield lifted(mapping(each) if isinstance(each, dict) else {"value": each}, _VALUE)[0]


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

# §16, kommo-v4 §7.2.
WORDS: Mapping[Kind, Mapping[str, Word]] = {
    Kind.DEAL: {
        **_CARD,
        # "POST key is `sale`, webhooks say `price`" (§11).
        "price": Word("sale", whole, ("price",)),
        "pipeline_id": Word("pipeline_id", whole, ("pipeline",)),
        "status_id": Word("status_id", whole, ("stage", "outcome")),
        "old_pipeline_id": Word("old_pipeline_id", whole),
        "old_status_id": Word("old_status_id", whole),
    },
    Kind.CONTACT: {**_PERSON, "linked_company_id": Word("company", _company, ("company",))},
    Kind.COMPANY: _PERSON,
    # `date_create`, `last_modified` and `complete_till` of tasks and notes are text, in two time zones: not read.
    Kind.TASK: {
        **_OWNED,
        "created_user_id": Word("created_by", whole, ("created_by",)),
        "modified_by": Word("updated_by", whole, ("updated_by",)),
        "text": Word("text", text, ("text",)),
        "old_text": Word("old_text", text),
        "task_type": Word("task_type", whole, ("type",)),
        "complete_before": Word("complete_till_at", whole, ("due",)),
        "status": Word("is_completed", _done, ("done",)),
        "action_close": Word("action_close", whole),
        "result": Word("result", mapping, ("result",)),
        "main_user": Word("main_user", whole),
        "element_type": Word("element_type", whole),
        "element_id": Word("element_id", whole),
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
        "element_id": Word("element_id", whole),
    },
}


# --------------------------------------------------------------------------------------------------------- reading


def read(delivery: Delivery, context: Context) -> tuple[Event, ...]:
    """All that one delivery tells, in its order: several rows and families may share it.

    A hook tells neither the types of custom fields nor the words of labels. Where ``context`` holds the parts
    ``fields:contact``, ``fields:company``, ``fields:deal`` (the account's fields by id) they are as v2 gives them; without
    them a field is OTHER, and a phone's label is the option's id. A day needs the part ``account`` too, for its zone:
    MissingPart says so, as in any codec.
    """
    tree = form_of(delivery, ALSO_PARENTS)
    account = _account(tree)
    unknown: dict[str, Any] = {f"fields:{kind}": {} for kind in (Kind.CONTACT, Kind.COMPANY, Kind.DEAL)}
    context = evolve(context, parts={**unknown, **context.parts})
    families = {root: part for root, part in tree.items() if root != "account"}
    events = [_event(root, action, row, account, context) for root, action, row in rows_of(families)]
    if not events:
        raise Unreadable("the delivery tells of nothing")
    return tuple(events)


def _account(tree: Mapping[str, Any]) -> Id | None:
    block = mapping(tree.get("account"))
    subdomain = block.get("subdomain")
    named = subdomain if isinstance(subdomain, str) and subdomain else None
    return _number(block.get("id")) or named


def _number(given: Any) -> int | None:
    try:
        return whole(given)
    except TypeError:
        return None


def _moment(given: Any) -> datetime | None:
    return moment(_number(given))


def _event(root: str, action: str, row: Any, account: Id | None, context: Context) -> Event:
    told, kind = mapping(row), ROOTS.get(root)
    above = kind
    if root == "contacts" and told.get("type") == "company":
        kind = above = Kind.COMPANY
    if kind is not None and action == "note":
        # kommo-v4 §7.2: a note's row stands one level deeper, and beside it of what kind the row is that it hangs on.
        told, kind = mapping(told.get("note")), Kind.NOTE
    at = _moment(told.get("updated_at")) or _moment(told.get("last_modified")) or _moment(told.get("created_at"))
    event = Event(
        action=ACTIONS.get(action, Action.OTHER) if kind else Action.OTHER,
        word=f"{root}.{action}" if root else action,
        kind=kind,
        account=_number(told.get("account_id")) or account,
        at=at,
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
            return evolve(event, entity=_note(wire, brought, above, told, context))
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
    """kommo-v4 §7.2: a new owner of a contact, a company or a task arrives as `update`, with the old one beside.

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
    entity = _DECODE[kind](wire, context)
    # Only filled fields are listed (§7), and a hook need not list all: what it does not name is unread.
    brought |= {name for name in ("phones", "emails", "position", "fields") if getattr(entity, name, None)}
    entity, action = _marked(entity, event, brought), event.action
    if action is Action.STAGE_CHANGED:
        action = {codec.WON: Action.WON, codec.LOST: Action.LOST}.get(wire.get("status_id", 0), action)
    elif action is Action.UPDATED and _handed_over(wire):
        action = Action.RESPONSIBLE_CHANGED
    return evolve(event, action=action, entity=partial(entity, brought, told), extra=_before(wire))


# ----------------------------------------------------------------------------------------------------------- tasks


def _task(event: Event, wire: dict[str, Any], brought: set[str], told: Mapping[str, Any], context: Context) -> Event:
    if wire.get("element_type") in ELEMENTS.values() and "element_id" in wire:
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
    wire: dict[str, Any], brought: set[str], above: Kind | None, told: Mapping[str, Any], context: Context
) -> Entity:
    if above is not None:
        wire.setdefault("element_type", ELEMENTS[above])
    if wire.get("element_type") in ELEMENTS.values() and "element_id" in wire:
        brought.add("target")
    params = _params(wire)
    if params is not None:
        brought.add("params")
    row = wire if not params else {**wire, "params": params, "text": None}
    note: Note = codec.decode_note(row, context)
    return partial(note, brought, told)


def _params(wire: Mapping[str, Any]) -> dict[str, Any] | None:
    """A note's params (§13), or None where the hook does not tell them."""
    if wire.get("note_type") == 4:
        return {}
    if wire.get("note_type") in (10, 11):
        # kommo-v4 §7.2: "`text` is a JSON string with upper-case keys", as the params are here.
        try:
            return mapping(json.loads(wire.get("text", ""), parse_float=Decimal)) or None
        except (ValueError, RecursionError):
            return None
    return None


# §16 knows of no signature: a token in the address.
WEBHOOK = Webhook(verify=by_token, read=read)
