"""What amoCRM v2 can do and the neutral client does not name, as flows for ``crm.run``."""

from collections.abc import Iterable
from typing import Any, TypeVar

from attrs import evolve

from crmclient import flows
from crmclient.dialect import Call, Flow, Need, Receipt, Reply, Step, mapping, read
from crmclient.entities import Entity, Id, Kind, Ref, Task
from crmclient.errors import CRMError, Invalid, Issue, NotFound, PartlyDone, Rejected, Unsupported
from crmclient.serial import structured
from crmclient_amocrm import wire
from crmclient_amocrm.dialect import BATCH, DIALECT, IDS_A_CALL, PAGING, result_call
from crmclient_amocrm.wire import API, CONVERTER, canonical

E = TypeVar("E", bound=Entity)
T = TypeVar("T")

# ------------------------------------------------------------------------------------------ adds and updates in one


def write(
    entity: type[E], *, add: Iterable[E] = (), update: Iterable[E] = ()
) -> Flow[tuple[list[Receipt[E]], list[Receipt[E]]]]:
    """Add rows and update others in one request, and give the receipts of both, each in order (§1, §4).

    Both are checked and told as by ``create_many`` and ``update_many``. Raises Invalid for more than 500 rows.
    """
    adding = flows.create_many(DIALECT, entity, add, batch=BATCH)
    updating = flows.update_many(DIALECT, entity, update, batch=BATCH)
    adds, added = yield from _driven(adding, None, to_the_write=True)
    updates, updated = yield from _driven(updating, None, to_the_write=True)
    calls = (*adds, *updates)
    bodies = {verb: rows for call in calls for verb, rows in mapping(call.body).items()}
    if len(adds) > 1 or len(updates) > 1 or sum(map(len, bodies.values())) > BATCH:
        raise Invalid(f"{DIALECT.title} takes {BATCH} rows a request, added and updated together")
    if calls:
        halves = yield from _halves(evolve(calls[0], body=bodies))
        if adds:
            _, added = yield from _driven(adding, (halves[0],))
        if updates:
            _, updated = yield from _driven(updating, (halves[1],))
    return added or [], updated or []


def _halves(call: Call) -> Flow[tuple[Reply | CRMError, Reply | CRMError]]:
    try:
        reply: Reply = yield call
    except CRMError as error:
        return error, error
    return wire.apart(reply, (row["id"] for row in call.body.get("update", ())))


def _driven(flow: Flow[T], answer: Any, *, to_the_write: bool = False) -> Flow[tuple[tuple[Call, ...], T | None]]:
    """Run a flow to its end, or to where it would write: then the calls that it waits for are given instead."""
    while True:
        try:
            step: Step = flow.send(answer)
        except StopIteration as stop:
            return (), stop.value
        if to_the_write and isinstance(step, tuple):
            return step, None
        answer = yield step


# ------------------------------------------------------------------------------------------------------------ tasks


def complete(task: Id, result: str) -> Flow[None]:
    """Mark a task done, with a result: two calls, as a result is a note of its own (§12).

    Raises NotFound, Rejected; PartlyDone if the task is done and its result was not written.
    """
    row = yield from _one("tasks", task)
    # §12: the page declares the text as required in an update.
    text = {"text": row["text"]} if row.get("text") else {}
    yield from _amended("tasks", row, {**text, "is_completed": True})
    try:
        yield result_call(row["id"], result)
    except CRMError as error:
        issue = Issue(field="result", rule=f"not done: {error.message}", code=error.code, detail=error.detail)
        raise PartlyDone("the task is done, and its result was not written", [issue], entity=Task(id=task)) from error


# -------------------------------------------------------------------------------------------------------- customers


def customers(ids: Iterable[Id] = ()) -> Flow[tuple[wire.Customer, ...]]:
    """The customers, all or those of these ids, as they are on the wire, with the whole row in ``raw`` (§14)."""
    call, asked = read(f"{API}/customers"), [str(id) for id in ids]
    found: list[wire.Customer] = []
    for at in range(0, len(asked), IDS_A_CALL):
        pairs = tuple(("id[]", id) for id in asked[at : at + IDS_A_CALL])
        found += _customers((yield call.with_query(*pairs)))
    position: int | None = None if asked else PAGING.first
    while position is not None:
        reply: Reply = yield PAGING.at(call, position)
        page = _customers(reply)
        found += page
        position = PAGING.after(position, reply, len(page))
    return tuple(found)


def _customers(reply: Reply) -> list[wire.Customer]:
    rows = wire.rows(reply)
    return [evolve(structured(CONVERTER, canonical(row), wire.Customer, "customer"), raw=row) for row in rows]


def link_customers(to: Ref, ids: Iterable[Id]) -> Flow[None]:
    """Tie customers to a contact or a company (§9, §10). Raises NotFound, Rejected."""
    return _tied(to, {"customers_id": ",".join(map(str, ids))})


def unlink_customers(of: Ref, ids: Iterable[Id]) -> Flow[None]:
    """Take customers off a contact or a company. Raises NotFound, Rejected."""
    return _tied(of, {"unlink": {"customers_id": list(ids)}})


def _tied(of: Ref, change: dict[str, Any]) -> Flow[None]:
    words = {Kind.CONTACT: "contacts", Kind.COMPANY: "companies"}
    if of.kind not in words:
        raise Unsupported(f"customers are tied to contacts and companies, not to a {of.kind}")
    row = yield from _one(words[of.kind], of.id)
    yield from _amended(words[of.kind], row, change)


def _one(word: str, id: Id | None) -> Flow[dict[str, Any]]:
    reply: Reply = yield read(f"{API}/{word}", ("id", str(id)))
    row = wire.one(reply)
    if row is None:
        raise NotFound(f"{DIALECT.title} has none of these {word}: {id}", status=reply.status)
    return mapping(row)


def _amended(word: str, row: dict[str, Any], change: dict[str, Any]) -> Flow[None]:
    """§4: `updated_at` has to grow past what is stored, which was read just now."""
    context = yield Need()
    at = max(int(row.get("updated_at") or 0) + 1, int(context.now.timestamp()))
    yield Call("POST", f"{API}/{word}", body={"update": [{"id": row["id"], "updated_at": at, **change}]})


# --------------------------------------------------------------------------------------------------------- webhooks


def subscriptions() -> Flow[tuple[wire.Subscription, ...]]:
    """The webhooks of the account (§16)."""
    reply: Reply = yield read(f"{API}/webhooks")
    return tuple(structured(CONVERTER, canonical(row), wire.Subscription, "subscription") for row in wire.rows(reply))


def subscribe(url: str, events: Iterable[str]) -> Flow[None]:
    """Have events ("add_lead", "status_lead" …) sent to an address. Asking again changes nothing. Raises Rejected."""
    return _hooked("subscribe", {"url": url, "events": list(events)})


def unsubscribe(url: str, events: Iterable[str] = ()) -> Flow[None]:
    """Have these events, or all, sent to an address no more. Raises Rejected."""
    named = list(events)
    return _hooked("unsubscribe", {"url": url, **({"events": named} if named else {})})


def _hooked(verb: str, hook: dict[str, Any]) -> Flow[None]:
    call = Call("POST", f"{API}/webhooks/{verb}", body={verb: [hook]}, replayable=True)
    reply: Reply = yield call
    for row in map(mapping, wire.rows(reply)):
        if row.get("result") is False:
            said = str(row.get("notice") or "")
            issue = Issue(field="url", rule=said or "refused", detail=said or None)
            raise Rejected(f"amoCRM would not {verb} {hook['url']}", [issue], status=reply.status, detail=said or None)
