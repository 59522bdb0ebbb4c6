"""The contract held against API v2: one answer that mixes rows made, rows refused and rows it does not mention.

A few routes of that dialect, written as its adapter would, over canned answers in the shapes the reference gathered.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from attrs import evolve
from canned import NOW, Server

from crmclient import Contact, Made, Refused, Rejected, Unknown, Verb, flows
from crmclient.auth import Bearer
from crmclient.dialect import (
    ALL,
    READ,
    Call,
    Context,
    Dialect,
    Listing,
    Rate,
    Receipt,
    Reply,
    Resource,
    Row,
    Writing,
    array,
    by_status,
    mapping,
    read,
)
from crmclient.errors import AmbiguousWrite, Issue
from crmclient.formats import Json
from crmclient.paging import Offset

PATH = "/api/v2/contacts"


def rows(reply: Reply) -> Sequence[Any]:
    return array(mapping(mapping(reply.body).get("_embedded")).get("items"))


def refusals(reply: Reply, verb: str, sent: Sequence[Row]) -> dict[str, tuple[str | None, str]]:
    """Three shapes (reference §4), each as `row key -> (code, text)`; the key is a row's index, request id or id."""
    errors: Any = mapping(mapping(reply.body).get("_embedded")).get("errors")
    told = errors.get(verb) if isinstance(errors, dict) else errors
    if isinstance(told, dict):
        return {str(key): (None, str(text)) for key, text in told.items()}
    found: dict[str, tuple[str | None, str]] = {}
    for each in map(mapping, array(told)):
        where = mapping(each.get("item")).get("request_id", "?" if len(sent) > 1 else sent[0].request_id)
        found[str(where)] = (str(each["code"]), str(each.get("message") or each.get("msg")))
    return found


def outcome(verb: str) -> Any:
    def unwrap(reply: Reply, sent: Sequence[Row]) -> Sequence[Receipt[Any]]:
        """By request id, unique and never 0; by place only when the counts agree and nothing failed; else unknown."""
        items, refused = [mapping(each) for each in rows(reply)], refusals(reply, verb, sent)
        echoed = {str(item.get("request_id")): item.get("id") for item in items if item.get("request_id")}
        by_id = {item.get("id") for item in items}
        aligned = len(items) == len(sent) and not refused and not echoed
        found: list[Receipt[Any]] = []
        for place, row in enumerate(sent):
            complaint = refused.get(str(row.request_id)) or refused.get(str(row.id)) or refused.get(str(place))
            id = echoed.get(str(row.request_id))
            if id is None and verb == "update" and row.id in by_id:
                id = row.id
            if id is None and aligned:
                id = items[place].get("id")
            if isinstance(id, int):
                told = row.wire.get("updated_at")
                found.append(Made(id=id, known={"updated_at": datetime.fromtimestamp(told, UTC)} if told else {}))
            elif complaint:
                code, text = complaint
                found.append(Refused(error=Rejected(text, [Issue(rule=text, code=code, row=row.number)], code=code)))
            else:
                found.append(Unknown(error=AmbiguousWrite("the answer does not mention the row")))
        return found

    return unwrap


def posted(verb: str) -> Any:
    return lambda rows: {verb: [{**row.wire, "request_id": row.request_id} for row in rows]}


def decode(row: Any, context: Context) -> Contact:
    return Contact(id=row["id"], name=row["name"], updated_at=datetime.fromtimestamp(row["updated_at"], UTC), raw=row)


def encode(contact: Contact, fields: frozenset[str], context: Context) -> dict[str, Any]:
    found: dict[str, Any] = {"name": contact.name} if "name" in fields else {}
    if contact.id is not None:
        # `updated_at` must grow, by the server's clock and past what is stored (DESIGN §4).
        assert context.now is not None
        stored = int(contact.updated_at.timestamp()) if contact.updated_at else 0
        found |= {"id": contact.id, "updated_at": max(stored + 1, int(context.now.timestamp()))}
    return found


V2 = Dialect(
    name="v2",
    title="V2",
    host=None,
    format=Json(),
    paging=Offset(limit="limit_rows", offset="limit_offset", size=2),
    rate=(Rate(7, 1),),
    auth=(Bearer(),),
    judge=by_status,
    resources={
        Contact: Resource(
            entity=Contact,
            vendor="contacts",
            decode=decode,
            encode=encode,
            fields={"name": ALL, "updated_at": READ},
            routes={
                Verb.LIST: Listing(call=read(PATH), rows=rows),
                Verb.CREATE: Writing(
                    method="POST",
                    path=lambda row: PATH,
                    wrap=posted("add"),
                    unwrap=outcome("add"),
                    batch=500,
                    advised_batch=250,
                ),
                Verb.UPDATE: Writing(
                    method="POST",
                    path=lambda row: PATH,
                    wrap=posted("update"),
                    unwrap=outcome("update"),
                    batch=500,
                    advised_batch=250,
                ),
            },
        )
    },
)


def answer(items: list[Mapping[str, Any]], errors: Any = None) -> Reply:
    return Reply(200, body={"_embedded": {"items": items, **({"errors": errors} if errors else {})}})


def create(reply: Reply, count: int = 3) -> list[Receipt[Contact]]:
    server = Server(V2, lambda call: reply)
    return server.run(flows.create_many(V2, Contact, [Contact(name=f"N{n}") for n in range(count)]))


def kinds(receipts: list[Receipt[Contact]]) -> list[str]:
    return [type(receipt).__name__ for receipt in receipts]


def test_a_mixed_answer_gives_each_row_what_became_of_it() -> None:
    made, refused, unknown = create(answer([{"id": 11, "request_id": 1}], {"add": {"1": "no such user"}}))
    assert isinstance(made, Made)
    assert (made.id, made.made().name) == (11, "N0")
    assert isinstance(refused, Refused)
    assert [str(issue) for issue in refused.error.issues] == ["row 1: no such user"]  # type: ignore[attr-defined]
    assert isinstance(unknown, Unknown)
    with pytest.raises(AmbiguousWrite):
        unknown.made()


def test_the_order_of_the_answer_does_not_matter() -> None:
    receipts = create(answer([{"id": 30, "request_id": 3}, {"id": 10, "request_id": 1}, {"id": 20, "request_id": 2}]))
    assert [receipt.made().id for receipt in receipts] == [10, 20, 30]


def test_place_counts_when_the_counts_agree_and_nothing_failed() -> None:
    receipts = create(answer([{"id": 10, "request_id": 0}, {"id": 20, "request_id": 0}, {"id": 30, "request_id": 0}]))
    assert [receipt.made().id for receipt in receipts] == [10, 20, 30]


def test_place_does_not_count_when_a_row_is_missing() -> None:
    assert kinds(create(answer([{"id": 10, "request_id": 0}, {"id": 20, "request_id": 0}]))) == ["Unknown"] * 3


@pytest.mark.parametrize(
    "errors",
    [
        {"add": {"1": "Entity not found"}},
        {"add": [{"code": 263, "message": "Entity not found", "item": {"request_id": 1}}]},
        [{"msg": "Entity not found", "code": 263, "item": {"request_id": 1}}],
    ],
    ids=["map", "list", "calls"],
)
def test_errors_inside_a_200_are_read_in_all_three_shapes(errors: Any) -> None:
    receipts = create(answer([{"id": 20, "request_id": 2}, {"id": 30, "request_id": 3}], errors))
    assert kinds(receipts) == ["Refused", "Made", "Made"]


def test_a_body_that_is_no_answer_leaves_every_row_unknown() -> None:
    assert kinds(create(Reply(200, body={"response": {}}))) == ["Unknown"] * 3


def test_an_update_carries_an_updated_at_that_grows_past_the_stored_one() -> None:
    stored = {"id": 5, "name": "Ivan", "updated_at": int((NOW + timedelta(hours=1)).timestamp())}
    calls: list[Call] = []

    def serve(call: Call) -> Reply:
        calls.append(call)
        return answer([{"id": 5, "updated_at": 1}]) if call.method == "POST" else answer([stored])

    server = Server(V2, serve)
    contact = decode(stored, Context())
    server.run(flows.update(V2, evolve(contact, name="Ivan II")))
    (sent,) = calls[-1].body["update"]
    assert sent == {"id": 5, "name": "Ivan II", "updated_at": stored["updated_at"] + 1, "request_id": 1}


def test_a_second_update_within_the_second_grows_past_the_first() -> None:
    calls: list[Call] = []

    def serve(call: Call) -> Reply:
        calls.append(call)
        return answer([{"id": 5, "request_id": 1}])

    server = Server(V2, serve)
    once = server.run(flows.update(V2, Contact(id=5, name="Ivan II")))
    server.run(flows.update(V2, evolve(once, name="Ivan III")))
    first, second = (call.body["update"][0]["updated_at"] for call in calls)
    assert (first, second) == (int(NOW.timestamp()), int(NOW.timestamp()) + 1)


def test_a_stale_update_is_refused_in_the_words_of_the_server() -> None:
    refusal = {"update": {"5": "Last modified date is older than in database"}}
    server = Server(V2, lambda call: answer([], refusal))
    with pytest.raises(Rejected, match="Last modified date is older"):
        server.run(flows.update(V2, Contact(id=5, name="Ivan")))


def test_a_listing_by_offset_ends_with_the_204() -> None:
    pages = {"0": [{"id": 1, "name": "A", "updated_at": 1}, {"id": 2, "name": "B", "updated_at": 1}], "2": []}

    def serve(call: Call) -> Reply:
        found = pages[dict(call.query)["limit_offset"]]
        return answer(found) if found else Reply(204)

    server = Server(V2, serve)
    assert [row.id for row in server.walk(flows.listing(V2, Contact))] == [1, 2]
    assert len(server.calls) == 2
