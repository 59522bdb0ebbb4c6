"""B. Content: answers that came whole and are not what was due. The rows are those of the fault catalogue."""

import gzip
import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from attrs import evolve
from toy import BY_TOTAL, CONTACTS, ORIGIN, TOY, Server, answer, client, page, renewing

from crmclient import (
    AmbiguousWrite,
    AuthFailed,
    Banned,
    Contact,
    CRMError,
    Made,
    NotApplied,
    NotFound,
    RateLimited,
    Refused,
    Rejected,
    Retry,
    Unknown,
    Unreadable,
    Verb,
    dialect_names,
)
from crmclient.clock import FakeClock
from crmclient.formats import Json
from crmclient.registry import dialect as dialect_named
from crmclient.session import Limits
from crmclient.testing.plugin import Sandboxed, Sandboxes

pytestmark = pytest.mark.asyncio


@pytest.fixture
def server() -> Server:
    return Server(FakeClock())


# ------------------------------------------------------------------------------------------------- whole answers


@pytest.mark.parametrize("kind", ["text/html", "application/json"])
async def test_fault_021_022_a_maintenance_page_passes_and_a_read_is_tried_again(server, kind) -> None:
    page = answer(200, b"<!DOCTYPE html><title>Back soon</title>", headers={"content-type": kind})
    server.script = [page]
    async with client(server) as crm:
        assert (await crm.contacts.get(1)).id == 1
        assert crm.spent.retries == 1


@pytest.mark.parametrize("location", ["/x", "/authors", "https://portal.hotel.test/login", "//evil.test/login", "//["])
async def test_fault_023_a_captive_portal_is_told_and_not_followed(server, location) -> None:
    server.respond = lambda request: answer(302, headers={"location": location})
    async with client(server) as crm:
        with pytest.raises(Unreadable, match="redirect") as told:
            await crm.contacts.get(1)
        assert told.value.status == 302
    assert len(server.requests) == 1


@pytest.mark.parametrize("location", ["/login/?back=1", f"{ORIGIN}/auth", "/Sign-In.php"])
async def test_fault_023_a_redirect_to_the_login_page_is_a_session_that_is_over(server, location) -> None:
    """Logged in again once where that can be done, for a write too: what was not let in was not executed."""

    def respond(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/login"):
            return answer(body={"token": "new"})
        old = request.headers.get("x-token") != "new"
        return answer(302, headers={"location": location}) if old else answer(body={"id": 1, "name": "n"})

    server.respond = respond
    async with await renewing(server) as crm:
        assert (await crm.contacts.create(Contact(name="Ivan"))).id == 1
        assert crm.spent.renewals == 1
    assert server.paths == ["POST /contacts", "POST /login", "POST /contacts"]
    server.requests.clear()
    async with client(server) as crm:
        with pytest.raises(AuthFailed, match="login page"):
            await crm.contacts.get(1)
    server.respond = lambda request: (
        answer(body={"token": "new"})
        if request.url.path.endswith("/login")
        else answer(302, headers={"location": location})
    )
    async with await renewing(server) as crm:
        with pytest.raises(AuthFailed, match="login page"):
            await crm.contacts.get(1)
        assert crm.spent.renewals == 1


@pytest.mark.parametrize("status, body", [(204, None), (202, None), (200, b"")])
async def test_fault_024_nothing_where_a_row_was_due_is_no_row(server, status, body) -> None:
    server.respond = lambda request: answer(status, body)
    async with client(server, retry=Retry(attempts=1)) as crm:
        with pytest.raises(Exception) as told:
            await crm.contacts.get(1)
        assert type(told.value).__module__ == "crmclient.errors"
        with pytest.raises(AmbiguousWrite):
            await crm.contacts.create(Contact(name="Ivan"))


async def test_fault_028_a_page_of_more_rows_than_any_vendor_gives_is_refused(server) -> None:
    server.respond = lambda request: page(range(101))
    async with client(server, limits=Limits(rows=100)) as crm:
        with pytest.raises(Unreadable, match="101 rows"):
            [contact async for contact in crm.contacts.list()]


@pytest.mark.parametrize("id", [2**63, 18446744073709551616, 10**30])
async def test_fault_031_an_id_beyond_64_bits_is_read_exactly(server, id) -> None:
    server.respond = lambda request: answer(200, b'{"id":%d,"name":"n"}' % id)
    async with client(server) as crm:
        found = await crm.contacts.get(1)
        assert found.id == id
        assert type(found.id) is int


async def test_fault_032_numbers_that_are_none_are_not_read() -> None:
    for text in (b"NaN", b"Infinity", b"-Infinity", b"1e400"):
        assert Json().decode(b'{"a":' + text + b"}", "application/json").reason  # an Unparsed has one


async def test_fault_033_a_mark_before_the_text_is_none_of_it_and_other_codings_are_refused() -> None:
    assert Json().decode(b'\xef\xbb\xbf{"a":1}', "application/json") == {"a": 1}
    for content in ('{"a":1}'.encode("utf-16"), b'{"a":"\xff"}'):
        assert Json().decode(content, "application/json").reason


ZEROS = gzip.compress(bytes(32 << 20), 9)
BOMB = gzip.compress(ZEROS, 9)


@pytest.mark.parametrize("coding", ["gzip", "gzip, gzip", "x-gzip, gzip"])
async def test_fault_026_a_bomb_within_a_bomb_costs_no_memory(server, coding) -> None:
    """A few hundred bytes of the wire that would be 32 MiB: one layer is taken off at the most, and that is no answer."""
    assert len(BOMB) < 2_000
    server.script = [answer(body={"id": 1, "name": "n"})]
    server.respond = lambda request: answer(200, BOMB, headers={"content-encoding": coding})
    async with client(server, retry=Retry(attempts=1)) as crm:
        await crm.contacts.get(1)  # what the first request needs is imported
        tracemalloc.start()
        try:
            with pytest.raises(Unreadable):
                await crm.contacts.get(1)
            assert tracemalloc.get_traced_memory()[1] < 4 << 20
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("digits", [4_301, 5_000, 1_000_000])
@pytest.mark.parametrize("place", ['{"id":%s,"name":"n"}', '{"id":1,"name":"n","more":[-%s]}'])
async def test_fault_030_a_number_without_end_is_no_json_and_quickly_told(server, digits, place) -> None:
    server.respond = lambda request: answer(200, (place % ("9" * digits)).encode())
    async with client(server, retry=Retry(attempts=1)) as crm:
        with pytest.raises(Unreadable, match="not JSON"):
            await crm.contacts.get(1)


async def test_fault_034_of_a_key_said_twice_the_last_counts() -> None:
    assert Json().decode(b'{"a":1,"a":2}', "application/json") == {"a": 2}


@pytest.mark.parametrize("kind", ["application/json; charset=cp1251", "text/plain; charset=no-such", ""])
async def test_fault_041_json_is_utf8_whatever_its_label_says(kind) -> None:
    assert Json().decode('{"имя":"Ё"}'.encode(), kind) == {"имя": "Ё"}


# ------------------------------------------------------------------------------------------------------- single rows

MUTATIONS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "null for the name": lambda row: row | {"name": None},
    "a number for the name": lambda row: row | {"name": 1.9},
    "a list for the name": lambda row: row | {"name": ["a", "b"]},
    "a text for the id": lambda row: row | {"id": "abc"},
    "a fraction for the id": lambda row: row | {"id": 1.9},
    "true for the id": lambda row: row | {"id": True},
    "no id": lambda row: {name: part for name, part in row.items() if name != "id"},
    "a text for a flag": lambda row: row | {"is_deleted": "false"},
    "a row that is none": lambda row: "row",
}


def mutated(content: bytes, word: str, mutate: Callable[[dict[str, Any]], Any]) -> bytes:
    tree = json.loads(content)
    rows = tree["_embedded"][word]
    rows[1] = mutate(rows[1])
    return json.dumps(tree).encode()


def meddling(sandbox: Sandboxed, word: str, mutate: Callable[[dict[str, Any]], Any]) -> httpx.MockTransport:
    inner = sandbox.running.transport()

    async def handle(request: httpx.Request) -> httpx.Response:
        response = await inner.handle_async_request(request)
        content = await response.aread()
        if request.method == "GET" and request.url.path.endswith(f"/{word}") and content:
            content = mutated(content, word, mutate)
        return httpx.Response(response.status_code, headers=[("content-type", "application/json")], content=content)

    return httpx.MockTransport(handle)


@pytest.mark.parametrize("what", MUTATIONS)
async def test_fault_035_037_a_value_of_the_wrong_type_is_never_bent_and_harms_no_other_row(
    crm_sandbox: Sandboxes, what
) -> None:
    sandbox = crm_sandbox("kommo", contacts=5)
    async with sandbox.connect(transport=meddling(sandbox, "contacts", MUTATIONS[what])) as crm:
        bad: list[Unreadable] = []
        found = [contact async for contact in crm.contacts.list(on_bad=bad.append)]
    if bad:
        assert len(found) == 4
        assert bad[0].raw is not None
    else:
        # A vendor may leave a name empty; then it is empty, and not a word that looks like one.
        assert what in ("null for the name", "a text for a flag")
        assert len(found) == 5
        assert all(contact.name != "None" for contact in found)
        assert what != "a text for a flag" or not any(contact.raw["is_deleted"] is True for contact in found)


async def test_fault_036_what_nobody_knows_yet_is_kept_and_stops_nothing(crm_sandbox: Sandboxes) -> None:
    def future(row: dict[str, Any]) -> dict[str, Any]:
        new = {"field_id": 9, "field_name": "Hologram", "field_type": "hologram", "values": [{"value": {"depth": 3}}]}
        return row | {"brand_new": {"deep": [1, None]}, "custom_fields_values": [new]}

    sandbox = crm_sandbox("kommo", contacts=3)
    async with sandbox.connect(transport=meddling(sandbox, "contacts", future)) as crm:
        found = [contact async for contact in crm.contacts.list()]
    assert len(found) == 3
    assert found[1].raw["brand_new"] == {"deep": [1, None]}
    assert found[1].raw["custom_fields_values"][0]["values"] == [{"value": {"depth": 3}}]


# -------------------------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("name", dialect_names())
async def test_fault_043_rows_that_are_refused_do_not_hide_those_that_were_made(crm_sandbox: Sandboxes, name) -> None:
    """Three of fifty are what the vendor, or our own check of its rules, does not take."""
    sandbox = crm_sandbox(name)
    bad = (0, 23, 49)
    given = [Contact(name="" if n in bad else f"Row {n}", owner=None) for n in range(50)]
    if "name" not in dialect_named(name).resource(Contact).survivors(Verb.CREATE):
        pytest.skip(f"{name} has no name to refuse")
    async with sandbox.connect() as crm:
        receipts = await crm.contacts.create_many(given)
    assert len(receipts) == 50
    made = {n: receipt.made() for n, receipt in enumerate(receipts) if isinstance(receipt, Made)}
    assert len(made) == sandbox.world.count("contact")
    assert [n for n in range(50) if n not in bad and n not in made] == [], "innocent rows"
    for n, contact in made.items():
        assert contact.name == given[n].name
        row = sandbox.world.get("contact", contact.id)
        assert row is not None
        assert n in bad or row["name"] == f"Row {n}", "a receipt tells another row's id"
    assert all(isinstance(receipts[n], Made | Refused) for n in bad)


# Said with 200 by a vendor whose wire has no other place for it, or by what stands in front of it.
INSIDE = {
    "electrum": ((b'{"error":"unauthorized","message":"no"}', Unreadable), (b"[]", Unreadable)),
    "kommo": ((b'{"error":"x","status":401}', Unreadable), (b'{"detail":"no","status":400}', Unreadable)),
    "amocrm": (
        (b'{"response":{"error":"no","error_code":"110"}}', AuthFailed),
        (b'{"response":{"error":"no","error_code":"403"}}', Banned),
        (b'{"response":{"error":"no","error_code":429}}', RateLimited),
        (b'{"response":{"error":"no","error_code":"244"}}', AuthFailed),
        (b'{"response":{"error":"no","error_code":"999"}}', CRMError),
    ),
    "amoxml": (
        (b"<response><auth>false</auth></response>", AuthFailed),
        (b"<response><error>not found</error><error_code>404</error_code></response>", NotFound),
        (b"<response><error>no</error></response>", Rejected),
    ),
}


@pytest.mark.parametrize("name, body, kind", [(name, *each) for name, told in INSIDE.items() for each in told])
async def test_fault_042_an_error_inside_a_200_is_the_error_it_means(crm_sandbox: Sandboxes, name, body, kind) -> None:
    sandbox = crm_sandbox(name, contacts=1)
    id = sandbox.world.select("contact", limit=1)[0]["id"]
    inner, spoiling = sandbox.running.transport(), False

    async def handle(request: httpx.Request) -> httpx.Response:
        if spoiling:
            return httpx.Response(200, content=body)
        return await inner.handle_async_request(request)

    async with sandbox.connect(transport=httpx.MockTransport(handle), retry=Retry(attempts=1)) as crm:
        await crm.contacts.get(id)
        spoiling = True
        with pytest.raises(kind) as told:
            await crm.contacts.get(id)
        assert type(told.value).__module__ == "crmclient.errors"


async def test_fault_044_an_answer_to_a_batch_is_matched_by_its_request_ids(crm_sandbox: Sandboxes) -> None:
    sandbox = crm_sandbox("kommo")
    inner = sandbox.running.transport()
    spoil: Callable[[list[Any]], list[Any]] = lambda rows: rows  # noqa: E731

    async def handle(request: httpx.Request) -> httpx.Response:
        response = await inner.handle_async_request(request)
        tree = json.loads(await response.aread())
        if request.method == "POST":
            tree["_embedded"]["contacts"] = spoil(tree["_embedded"]["contacts"])
        return httpx.Response(response.status_code, json=tree)

    contacts = [Contact(name=f"Row {n}") for n in range(4)]
    async with sandbox.connect(transport=httpx.MockTransport(handle)) as crm:
        spoil = lambda rows: rows[::-1]  # noqa: E731
        receipts = await crm.contacts.create_many(contacts)
        ids = [receipt.made().id for receipt in receipts]
        assert ids == sorted(ids), "an answer in another order was matched by position"
        spoil = lambda rows: rows[:2]  # noqa: E731
        receipts = await crm.contacts.create_many(contacts)
        assert [type(receipt) for receipt in receipts] == [Made, Made, Unknown, Unknown]
        spoil = lambda rows: [row | {"request_id": "77"} for row in rows]  # noqa: E731
        receipts = await crm.contacts.create_many(contacts)
        assert not any(isinstance(receipt, Made | NotApplied | Refused) for receipt in receipts)


# ---------------------------------------------------------------------------------------------------------------- pages


async def test_fault_045_a_listing_that_grows_while_it_is_read_loses_nobody(crm_sandbox: Sandboxes) -> None:
    """Walked by id, what is new comes last, and an edit moves nobody."""
    sandbox = crm_sandbox("kommo", contacts=600)
    async with sandbox.connect() as crm:
        found: list[Any] = []
        first = [contact async for contact in crm.contacts.list(prefetch=1)]
        async for contact in crm.contacts.list(prefetch=1):
            found.append(contact.id)
            if len(found) == 100:
                await crm.contacts.create(Contact(name="Newcomer"))
                await crm.contacts.update(evolve(first[0], name="Edited"))
                await crm.contacts.update(evolve(first[-1], name="Edited too"))
    assert set(found) >= {contact.id for contact in first}
    assert len(found) == len(set(found))


async def test_fault_046_a_listing_that_never_ends_is_noticed(server) -> None:
    """The same two pages for ever, under ever new numbers."""
    server.respond = lambda request: page(
        range(2) if int(request.url.params["page"]) % 2 else range(2, 4), f"{request.url.copy_set_param('page', 0)}"
    )
    toy = evolve(TOY, paging=BY_TOTAL, resources={Contact: CONTACTS})
    async with client(server, toy) as crm:
        with pytest.raises(Unreadable, match="does not go on"):
            async for _ in crm.contacts.list():
                assert len(server.requests) < 100


async def test_a_token_is_not_renewed_for_an_answer_that_is_none(server) -> None:
    server.script = [answer(200, b"<html>")]
    async with await renewing(server) as crm:
        await crm.contacts.get(1)
        assert crm.spent.renewals == 0
