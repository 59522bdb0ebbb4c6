"""What amoCRM v2 can do and the neutral client does not name, as flows for ``crm.run``."""

from collections.abc import Iterable
from typing import Any, TypeVar

from attrs import evolve

from crmclient import flows
from crmclient.dialect import Call, Flow, Made, Need, Receipt, Reply, Row, Step, mapping, read
from crmclient.entities import Entity, Id, Kind, Note, Ref
from crmclient.errors import CRMError, Invalid, NotFound, Unsupported
from crmclient.serial import structured
from crmclient_amocrm import wire
from crmclient_amocrm.codec import decode_note
from crmclient_amocrm.dialect import BATCH, DIALECT, IDS_A_CALL, PAGING
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


# ------------------------------------------------------------------------------------------------------------ notes


def task_notes(task: Id) -> Flow[tuple[Note, ...]]:
    """The notes on a task: its results, of type 13 (§13). The neutral task tells its last one."""
    walk, found = read(f"{API}/notes", ("type", "task"), ("element_id", str(task))), list[Note]()
    position: int | None = PAGING.first
    while position is not None:
        reply: Reply = yield PAGING.at(walk, position)
        rows = wire.rows(reply)
        found += yield from flows.settled(lambda context, rows=rows: [decode_note(row, context) for row in rows])
        position = PAGING.after(position, reply, len(rows))
    return tuple(found)


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


def unsubscribe(url: str, events: Iterable[str]) -> Flow[None]:
    """Have these events sent to an address no more (§16); ``crm.webhooks.delete(url)`` ends all. Raises Rejected."""
    body = {"unsubscribe": [{"url": url, "events": list(events)}]}
    reply: Reply = yield Call("POST", f"{API}/webhooks/unsubscribe", body=body, replayable=True)
    (receipt,) = wire.hooked(reply, [Row(number=0, wire={"url": url}, entity=None)])
    if not isinstance(receipt, Made):
        raise receipt.error
