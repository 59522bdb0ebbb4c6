"""What Electrum sends: seven JSON events, each with flat data of its own. Source: reference electrum-v2 §5, §6."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from attrs import evolve, frozen

from crmclient.dialect import Context, mapping
from crmclient.entities import Entity, Id, Kind, Outcome, Ref
from crmclient.errors import Unreadable
from crmclient.serial import structured
from crmclient.webhooks import Action, Delivery, Event, Webhook, by_token, json_of, partial
from crmclient_electrum import codec
from crmclient_electrum.wire import ALIASES, CONVERTER

# §5: these seven and no others.
EVENTS: Mapping[str, tuple[Kind, Action]] = {
    "contact.created": (Kind.CONTACT, Action.ADDED),
    "contact.updated": (Kind.CONTACT, Action.UPDATED),
    "deal.created": (Kind.DEAL, Action.ADDED),
    "deal.stage_changed": (Kind.DEAL, Action.STAGE_CHANGED),
    "deal.won": (Kind.DEAL, Action.WON),
    "deal.lost": (Kind.DEAL, Action.LOST),
    "task.completed": (Kind.TASK, Action.COMPLETED),
}

# The neutral fields each of the vendor's words brings.
_BRINGS: Mapping[Kind, Mapping[str, Sequence[str]]] = {
    Kind.CONTACT: {
        "name": ("name",),
        "phone": ("phones",),
        "email": ("emails",),
        "company": ("company",),
        "tags": ("tags",),
        "created_at": ("created_at",),
        "updated_at": ("updated_at",),
    },
    Kind.DEAL: {
        "name": ("name",),
        "amount": ("price",),
        "pipeline_id": ("pipeline",),
        "stage": ("stage",),
        "assigned_to": ("owner",),
        "contact_id": ("contacts",),
        "created_at": ("created_at",),
        "updated_at": ("updated_at",),
    },
    Kind.TASK: {
        "title": ("text",),
        "description": ("text",),
        "due_date": ("due",),
        "assigned_to": ("owner",),
        "contact_id": ("target",),
        "deal_id": ("target",),
        "completed": ("done",),
        "created_at": ("created_at",),
        "updated_at": ("updated_at",),
    },
}

# Only one event's data is shown (§5). How a stage that was left would be called no source tells; these names are read.
_STAGE_BEFORE = ("old_stage", "previous_stage", "from_stage")


@frozen(kw_only=True)
class Told:
    """§5: "{event, timestamp, data}"."""

    event: str
    timestamp: datetime | None = None
    data: Any = None


def read(delivery: Delivery, context: Context) -> tuple[Event, ...]:
    """One delivery is one event. An event that is not one of the seven is OTHER, of the kind its name begins with."""
    tree = json_of(delivery)
    told = structured(CONVERTER, tree, Told, "event")
    kind, action = EVENTS.get(told.event, (_kind_of(told.event), Action.OTHER))
    at = told.timestamp.astimezone(UTC) if told.timestamp is not None else None
    event = Event(action=action, word=told.event, kind=kind, at=at, raw=tree)
    if kind is None:
        return (event,)
    data = mapping(told.data)
    id = data.get(f"{kind}_id", data.get("id"))
    if not isinstance(id, int) or isinstance(id, bool):
        return (evolve(event, problem=Unreadable(f"{told.event} does not say which {kind} it is about", raw=tree)),)
    event = evolve(event, ref=Ref(kind, id), extra=_before(data))
    try:
        return (evolve(event, entity=_entity(kind, action, id, data, context)),)
    except Unreadable as bad:
        return (evolve(event, problem=bad),)


def _kind_of(word: str) -> Kind | None:
    first = word.partition(".")[0]
    return next((kind for kind in _BRINGS if kind == first), None)


def _entity(kind: Kind, action: Action, id: Id, data: Mapping[str, Any], context: Context) -> Entity:
    row = {**{name: part for name, part in data.items() if name != f"{kind}_id"}, "id": id}
    aliases = ALIASES[kind]
    brought = {
        neutral
        for word, names in _BRINGS[kind].items()
        for neutral in names
        if any(alias in row for alias in aliases.get(word, (word,)))
    }
    if kind is Kind.CONTACT:
        return partial(codec.decode_contact(row, context), brought, data)
    if kind is Kind.TASK:
        task = codec.decode_task(row, context)
        if action is Action.COMPLETED:
            task, brought = evolve(task, done=True), brought | {"done"}
        return partial(task, brought, data)
    # How a deal stands, its stage tells by the pipelines; where they were not read, only won and lost are known.
    deal = codec.decode_deal(row, evolve(context, parts={"pipelines": (), **context.parts}))
    stands = {Action.WON: Outcome.WON, Action.LOST: Outcome.LOST}.get(action, deal.outcome)
    return partial(evolve(deal, outcome=stands), brought | ({"outcome"} if stands else set()), data)


def _before(data: Mapping[str, Any]) -> dict[str, Any]:
    stages = [data[name] for name in _STAGE_BEFORE if isinstance(data.get(name), int | str)]
    return {"old_stage": Ref(Kind.STAGE, stages[0])} if stages else {}


# §6: "Webhook auth, signature, retries, timeout, id: nothing"; so a secret in the address it is.
WEBHOOK = Webhook(verify=by_token, read=read)
