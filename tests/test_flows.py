"""What a user asks becomes the right calls in the right order, and what became of each row is told; the vendor is a toy."""

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import parse_qsl

import httpx
import pytest
from attrs import evolve, frozen
from toy import BASE, TOY, Server, answer, client, settle

from crmclient import (
    AuthFailed,
    Deal,
    Invalid,
    Kind,
    Note,
    NotFound,
    PartlyDone,
    Ref,
    Rejected,
    Unreadable,
    Unsupported,
    Verb,
)
from crmclient.clock import FakeClock
from crmclient.dialect import (
    ALL,
    Call,
    Context,
    Dialect,
    Flow,
    FollowUp,
    Getting,
    Listing,
    Made,
    Merging,
    Refused,
    Reply,
    Resource,
    Row,
    Unknown,
    Writing,
    array,
    at_path,
    mapping,
    read,
)
from crmclient.flows import everything, settled
from crmclient.paging import PageNumber, Unpaged
from crmclient.vocabulary import Field, Pipeline, Stage, User

pytestmark = pytest.mark.asyncio

# ------------------------------------------------------------------------------------------ a toy with ties and words


def decode_deal(row: Any, context: Context) -> Deal:
    return Deal(id=row["id"], name=row.get("name"), contacts=row.get("contacts", ()), raw=row)


def encode_deal(deal: Deal, fields: frozenset[str], context: Context) -> dict[str, Any]:
    wired: dict[str, Any] = {"name": deal.name, "contacts": [link.ref.id for link in deal.contacts]}
    wired["stage"] = deal.stage and deal.stage.id
    wired["pipeline"] = deal.pipeline and deal.pipeline.id
    return {name: wired[name] for name in sorted(fields)}


def ties(rows: Sequence[Row]) -> list[FollowUp]:
    """One call a row and direction: the old ones go first, then the new ones come."""
    steps: list[FollowUp] = []
    for row in rows:
        now = row.wire.get("contacts")
        if now is None:
            continue
        before = [link.ref.id for link in row.before.contacts] if row.before is not None else []
        for word, ids in (("unlink", set(before) - set(now)), ("link", set(now) - set(before))):
            if ids:
                call = Call("POST", f"/deals/{row.id}/{word}", body=sorted(ids))
                steps.append(FollowUp(call=call, field="contacts", rows=(row.number,)))
    return steps


def made_many(reply: Reply, rows: Sequence[Row]) -> tuple[Made[Any], ...]:
    return tuple(Made(id=each["id"]) for each in array(mapping(reply.body).get("made")))


def done(reply: Reply, rows: Sequence[Row]) -> tuple[Made[Any], ...]:
    return tuple(Made(id=row.id) for row in rows)


def without_ties(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [{name: part for name, part in row.wire.items() if name != "contacts"} for row in rows]


DEALS = Resource(
    entity=Deal,
    vendor="deals",
    decode=decode_deal,
    encode=encode_deal,
    fields={"name": ALL, "contacts": ALL, "stage": ALL, "pipeline": ALL},
    routes={
        Verb.GET: Getting(
            call=lambda id, target: read(at_path("/deals/{id}", id=id)), row=lambda reply: mapping(reply.body)
        ),
        Verb.CREATE: Writing(
            method="POST", path=lambda row: "/deals", wrap=without_ties, unwrap=made_many, batch=10, then=ties
        ),
        Verb.UPDATE: Writing(
            method="PATCH",
            path=lambda row: "/deals",
            wrap=without_ties,
            unwrap=done,
            batch=10,
            then=ties,
            says=lambda row: row.wire.keys() != {"contacts"},
        ),
    },
)


def notes_path(row: Row) -> str:
    if row.target is None:
        raise Invalid("a note needs a target", [])
    return f"/{row.target.kind}/notes"


NOTES = Resource(
    entity=Note,
    vendor="notes",
    decode=lambda row, context: Note(id=row["id"], text=row["text"], target=context.parent, raw=row),
    encode=lambda note, fields, context: {"text": note.text},
    fields={"text": ALL},
    routes={Verb.UPDATE: Writing(method="PATCH", path=notes_path, unwrap=done, group_by=notes_path)},
)


def decode_pipeline(row: Any, context: Context) -> Pipeline:
    stages = tuple(Stage(id=id, name=f"s{id}") for id in row.get("stages", ()))
    return Pipeline(id=row["id"], name=row["name"], stages=stages, raw=row)


def words(entity: type[Any], path: str, decode: Callable[[Any, Context], Any], *names: str) -> Resource[Any]:
    """Routes for a word of the account: listed whole, written one by one."""
    return Resource(
        entity=entity,
        vendor=path,
        decode=decode,
        encode=lambda word, fields, context: {name: getattr(word, name) for name in sorted(fields)},
        fields=dict.fromkeys(names, ALL),
        routes={
            Verb.LIST: Listing(call=read(f"/{path}"), rows=lambda reply: mapping(reply.body)["rows"], paging=Unpaged()),
            Verb.CREATE: Writing(method="POST", path=lambda row: f"/{path}", unwrap=made_many),
            Verb.UPDATE: Writing(method="PATCH", path=lambda row: f"/{path}/{row.id}", unwrap=done),
            Verb.DELETE: Writing(
                method="DELETE", path=lambda row: f"/{path}/{row.id}", wrap=lambda rows: None, unwrap=done
            ),
        },
    )


def decode_user(row: Any, context: Context) -> User:
    return User(id=row["id"], name=row["name"], raw=row)


def decode_field(row: Any, context: Context) -> Field:
    return Field(id=row["id"], entity=Kind.DEAL, name=row["name"], raw=row)


PIPELINES = words(Pipeline, "pipelines", decode_pipeline, "name")
USERS = words(User, "users", decode_user, "name", "active")
FIELDS = words(Field, "fields", decode_field, "entity", "name")


def pipelines() -> Flow[tuple[Pipeline, ...]]:
    return everything(BUSY, Pipeline)


BUSY = evolve(
    TOY,
    settings={"pipelines": pipelines},
    resources={each.entity: each for each in (DEALS, NOTES, PIPELINES, USERS, FIELDS)},
)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def server(clock: FakeClock) -> Server:
    made = Server(clock)
    made.respond = shop({})
    return made


def shop(faults: dict[str, httpx.Response | Callable[[], httpx.Response]]) -> Callable[[httpx.Request], httpx.Response]:
    """Makes what is asked for, but for the paths that have a fault."""
    numbers = iter(range(1, 1000))

    def respond(request: httpx.Request) -> httpx.Response:
        path = request.url.path.removeprefix("/api")
        if path in faults:
            fault = faults[path]
            return fault if isinstance(fault, httpx.Response) else fault()
        if request.method == "GET":
            rows = {"/pipelines": [{"id": 1, "name": "Main", "stages": [11, 12]}, {"id": 2, "name": "B", "stages": []}]}
            return answer(body={"rows": rows.get(path, [])})
        sent = json.loads(request.content or b"[]")
        return answer(body={"made": [{"id": next(numbers)} for _ in (sent if isinstance(sent, list) else [sent])]})

    return respond


def busy(server: Server, dialect: Dialect = BUSY) -> Any:
    return client(server, dialect)


def bodies(server: Server) -> list[Any]:
    return [json.loads(request.content) for request in server.requests if request.content]


# -------------------------------------------------------------------------------------------------- what follows a row


async def test_a_tie_that_failed_is_not_claimed_and_is_what_the_next_update_sends(server):
    server.respond = shop({"/deals/1/link": lambda: answer(400, {})})
    async with busy(server) as crm:
        with pytest.raises(PartlyDone) as told:
            await crm.deals.create(Deal(name="A", contacts=[7, 8]))
        deal = told.value.entity
        assert (deal.id, deal.name, deal.contacts) == (1, "A", ())
        assert [(issue.field, issue.row) for issue in told.value.issues] == [("contacts", 0)]
        assert "not done" in told.value.issues[0].rule
        server.respond = shop({})
        tied = await crm.deals.update(evolve(deal, contacts=[7, 8]))
        assert [link.ref.id for link in tied.contacts] == [7, 8]
        assert await crm.deals.update(tied) == tied
    assert server.paths == ["POST /deals", "POST /deals/1/link", "POST /deals/1/link"]


async def test_of_an_update_what_failed_is_told_as_it_was_read(server):
    row = {"id": 5, "name": "A", "contacts": [1]}
    server.respond = shop({"/deals/5": answer(body=row), "/deals/5/unlink": lambda: answer(400, {})})
    async with busy(server) as crm:
        read_deal = await crm.deals.get(5)
        with pytest.raises(PartlyDone) as told:
            await crm.deals.update(evolve(read_deal, name="B", contacts=[2]))
    assert (told.value.entity.name, told.value.entity.contacts) == ("B", read_deal.contacts)
    # The new one is not tied where the old one could not be untied.
    assert server.paths == ["GET /deals/5", "PATCH /deals", "POST /deals/5/unlink"]


async def test_what_a_row_built_by_hand_was_tied_to_is_not_known_after_a_failure(server):
    server.respond = shop({"/deals/5/link": lambda: answer(400, {})})
    async with busy(server) as crm:
        with pytest.raises(PartlyDone) as told:
            await crm.deals.update(Deal(id=5, name="B", contacts=[2]))
    assert "contacts" in told.value.entity.unread


async def test_steps_of_one_row_go_one_after_the_other_and_rows_side_by_side(server, clock):
    server.latency = 1.0
    deals = [
        Deal(id=id, contacts=[1], raw={"id": id, "contacts": [1]}, written=Deal(id=id, contacts=[1]))
        for id in (5, 6, 7)
    ]
    async with busy(server) as crm:
        receipts = await crm.deals.update_many([evolve(deal, contacts=[2]) for deal in deals])
    assert [type(receipt) for receipt in receipts] == [Made] * 3
    assert sorted(server.paths[:3]) == [f"POST /deals/{id}/unlink" for id in (5, 6, 7)]
    assert sorted(server.paths[3:]) == [f"POST /deals/{id}/link" for id in (5, 6, 7)]
    assert server.times == [0.0] * 3 + [1.0] * 3


async def test_steps_that_share_no_row_do_not_wait_for_each_other_to_be_of_one_kind(server, clock):
    server.latency = 1.0
    known = Deal(id=5, contacts=[1])
    moving = evolve(known, written=known, raw={"id": 5}, contacts=[2])
    async with busy(server) as crm:
        await crm.deals.update_many([Deal(id=4, contacts=[1]), moving, Deal(id=6, contacts=[1])])
    assert dict(zip(server.paths, server.times, strict=True)) == {
        "POST /deals/4/link": 0.0,
        "POST /deals/5/unlink": 0.0,
        "POST /deals/6/link": 0.0,
        "POST /deals/5/link": 1.0,
    }


async def test_an_update_of_ties_alone_sends_nothing_else(server):
    async with busy(server) as crm:
        receipts = await crm.deals.update_many([Deal(id=5, contacts=[1]), Deal(id=6, name="B", contacts=[2])])
    assert [receipt.made().id for receipt in receipts] == [5, 6]
    assert server.paths == ["PATCH /deals", "POST /deals/5/link", "POST /deals/6/link"]
    assert bodies(server)[0] == [{"name": "B"}]


@pytest.mark.parametrize(
    "fault, receipt, error",
    [(400, Refused, Rejected), (404, Refused, NotFound), (503, Unknown, None)],
)
async def test_an_update_of_ties_alone_that_failed_is_not_said_to_be_written(server, fault, receipt, error):
    server.respond = shop({"/deals/5/link": lambda: answer(fault, {})})
    async with busy(server) as crm:
        (told,) = await crm.deals.update_many([Deal(id=5, contacts=[1])])
    assert isinstance(told, receipt)
    assert error is None or isinstance(told.error, error)
    if error is Rejected:
        assert [(issue.field, issue.row) for issue in told.error.issues] == [("contacts", 0)]


# ------------------------------------------------------------------------------------------------------ paths, batches


async def test_a_row_that_has_no_path_is_refused_and_the_others_are_updated(server):
    target = Ref(Kind.DEAL, 1)
    async with busy(server) as crm:
        receipts = await crm.notes.update_many(
            [Note(id=1, text="a", target=target), Note(id=2, text="b"), Note(id=3, text="c", target=target)]
        )
    assert [type(receipt) for receipt in receipts] == [Made, Refused, Made]
    assert "Note" in str(receipts[1].error)
    assert server.paths == ["PATCH /deal/notes"] * 2


async def test_a_batch_is_bounded_on_update_too_and_nothing_is_sent(server):
    async with busy(server) as crm:
        with pytest.raises(Invalid, match="1 to 10 deals a request, not 11") as told:
            await crm.deals.update_many([Deal(id=5, name="A")], batch=11)
    assert [issue.field for issue in told.value.issues] == ["batch"]
    assert server.requests == []


def merging(lacks: Callable[[Any, Any], Sequence[str]]) -> Dialect:
    """The toy whose edit of a deal sends everything, laid over what the deal came with."""
    write = Writing(method="PUT", path=lambda row: f"/deals/{row.id}", unwrap=done)
    routes = {**DEALS.routes, Verb.UPDATE: Merging(write=write, whole=dict, lacks=lacks)}
    return evolve(BUSY, resources={**BUSY.resources, Deal: evolve(DEALS, routes=routes)})


async def test_an_edit_that_sends_everything_lacks_nothing_that_it_brings_itself(server):
    def lacks(reading: Any, change: Any) -> list[str]:
        return [name for name in ("name", "contacts") if name not in reading and name not in change]

    async with busy(server, merging(lacks)) as crm:
        await crm.deals.update(Deal(id=5, contacts=[2], raw={"id": 5, "contacts": [1]}, name="new"))
        with pytest.raises(Invalid, match="1 to 1 deals"):
            await crm.deals.update_many([Deal(id=5, name="x", raw={"id": 5})], batch=2)
    assert bodies(server) == [{"id": 5, "contacts": [2], "name": "new"}]


# ------------------------------------------------------------------------------------------------ the account's words


@pytest.mark.parametrize(
    "word, change",
    [
        (Pipeline(name="Sales"), {"name": "Sold"}),
        (User(name="Anna"), {"active": False}),
        (Field(entity=Kind.DEAL, name="Size"), {"name": "Length"}),
    ],
    ids=lambda each: type(each).__name__,
)
async def test_words_of_the_account_are_made_changed_and_deleted_like_rows(server, word, change):
    async with busy(server) as crm:
        rows = crm.of(type(word))
        made = await rows.create(word)
        assert made == evolve(word, id=1)
        assert await rows.update(made) == made
        changed = await rows.update(evolve(made, **change))
        assert await rows.update(changed) == changed
        await rows.delete(changed.id)
        (receipt,) = await rows.create_many([word])
        assert receipt.made().id is not None
    assert [path.split()[0] for path in server.paths] == ["POST", "PATCH", "DELETE", "POST"]
    assert bodies(server)[1] == change


async def test_a_new_user_who_is_not_active_is_sent_as_such(server):
    async with busy(server) as crm:
        await crm.users.create_many([User(name="A", active=False), User(name="B", active=True)])
    assert bodies(server) == [{"active": False, "name": "A"}, {"name": "B"}]


async def test_what_of_a_word_a_dialect_cannot_carry_is_told(server):
    async with busy(server) as crm:
        kept, gone = crm.carried(Pipeline(id=3, name="A", sort=5, stages=(Stage(id=1),), raw={"id": 3}))
        assert (kept, kept.raw, gone) == (Pipeline(name="A"), None, {"sort", "stages"})
        with pytest.raises(Unsupported, match=r"Pipeline\.sort"):
            await crm.pipelines.create(Pipeline(name="A", sort=5))
        with pytest.raises(Unsupported, match=r"User\.admin"):
            await crm.users.create(User(name="A", admin=True))
    assert server.requests == []


WRITES = {
    "create": lambda rows: rows.create(User(name="A")),
    "update": lambda rows: rows.update(User(id=7, name="B")),
    "delete": lambda rows: rows.delete(7),
}


@pytest.mark.parametrize("status", [200, 400, 503])
@pytest.mark.parametrize("write", WRITES)
async def test_after_a_word_was_written_the_words_are_read_again(server, write, status):
    async with busy(server) as crm:
        assert len(await crm.setting("pipelines")) == 2
        if status != 200:
            server.respond = shop({"/users": lambda: answer(status, {}), "/users/7": lambda: answer(status, {})})
        await asyncio.gather(WRITES[write](crm.users), return_exceptions=True)
        await crm.setting("pipelines")
        await crm.setting("pipelines")
    assert server.paths.count("GET /pipelines") == 2


async def test_rows_are_no_words_and_make_nobody_read_the_settings_again(server):
    async with busy(server) as crm:
        await crm.setting("pipelines")
        await crm.deals.create(Deal(name="A"))
        await crm.setting("pipelines")
    assert server.paths.count("GET /pipelines") == 1


async def test_words_that_were_being_read_while_one_was_written_are_read_once_more(server, clock):
    async def respond(request: httpx.Request) -> httpx.Response:
        await clock.sleep(3.0 if request.method == "GET" else 1.0)
        return shop({})(request)

    server.respond = respond
    async with busy(server) as crm:
        reading = asyncio.create_task(crm.setting("pipelines"))
        await settle()
        await crm.users.create(User(name="A"))
        await reading
    assert server.paths == ["GET /pipelines", "POST /users", "GET /pipelines"]


# -------------------------------------------------------------------------------------------------------- settings


async def test_a_stage_of_another_pipeline_is_refused_and_no_deal_is_sent(server):
    async with busy(server) as crm:
        with pytest.raises(Invalid) as told:
            await crm.deals.create(Deal(name="A", pipeline=2, stage=11))
        await crm.deals.create(Deal(name="A", pipeline=1, stage=11))
        await crm.deals.create(Deal(name="A", pipeline=3, stage=11))  # what it does not know, it leaves to the server
    (issue,) = told.value.issues
    assert (issue.field, issue.row) == ("stage", 0)
    assert "11 is no stage of the pipeline 2 (B)" in issue.rule
    assert server.paths == ["GET /pipelines", "POST /deals", "POST /deals"]


async def test_a_stage_that_was_added_since_is_found_before_it_is_refused(server, clock):
    async with busy(server) as crm:
        await crm.deals.create(Deal(name="A", pipeline=1, stage=11))
        grown = answer(body={"rows": [{"id": 1, "name": "Main", "stages": [11, 12, 13]}]})
        server.respond = shop({"/pipelines": grown})
        clock.advance(61)
        await crm.deals.create(Deal(name="A", pipeline=1, stage=13))
    assert server.paths == ["GET /pipelines", "POST /deals", "GET /pipelines", "POST /deals"]


async def test_a_part_one_may_not_read_is_done_without_and_not_asked_for_again(server):
    server.respond = shop({"/pipelines": lambda: answer(403, {})})
    async with busy(server) as crm:
        for _ in range(3):
            await crm.deals.create(Deal(name="A", pipeline=2, stage=11))
        with pytest.raises(AuthFailed):
            await crm.setting("pipelines")
    assert server.paths == ["GET /pipelines", *["POST /deals"] * 3, "GET /pipelines"]


async def test_a_part_one_cannot_do_without_raises_each_time_and_is_had_once_it_may_be_read(server):
    server.respond = shop({"/pipelines": lambda: answer(403, {})})

    def flow() -> Flow[int]:
        return settled(lambda context: len(context.part("pipelines")))

    async with busy(server) as crm:
        for _ in range(2):
            with pytest.raises(AuthFailed):
                await crm.run(flow())
        server.respond = shop({})
        assert await crm.run(flow()) == 2


@pytest.mark.parametrize("status", [401, 402, 500])
async def test_only_a_lack_of_rights_makes_a_part_absent(server, status):
    server.respond = shop({"/pipelines": lambda: answer(status, {})})
    async with busy(server) as crm:
        (receipt,) = await asyncio.gather(
            crm.deals.create(Deal(name="A", pipeline=2, stage=11)), return_exceptions=True
        )
    assert isinstance(receipt, Exception)
    assert "POST /deals" not in server.paths


async def test_where_no_account_tells_its_zone_the_way_to_give_one_is_said(server):
    async with busy(server) as crm:
        with pytest.raises(Unsupported, match=r"Toy does not tell its account.*connect\(zone=…\)"):
            await crm.run(settled(lambda context: context.zone))


# ----------------------------------------------------------------------------------------------- listings that go round


@frozen(kw_only=True)
class ByToken:
    """Pages that name the next one, as they like."""

    first: str = "a"

    def at(self, call: Call, position: int | str) -> Call:
        return call.with_query(("from", str(position)))

    def after(self, position: int | str, reply: Reply, count: int) -> str | None:
        return mapping(reply.body).get("next")

    def ahead(self, position: int | str, n: int) -> None:
        return None

    def last(self, reply: Reply) -> None:
        return None


def round_and_round(places: dict[str, str]) -> Callable[[httpx.Request], httpx.Response]:
    def respond(request: httpx.Request) -> httpx.Response:
        place = dict(parse_qsl(request.url.query.decode()))["from"]
        return answer(body={"rows": [{"id": ord(place), "name": place}], "next": places.get(place)})

    return respond


def listed_by(paging: Any) -> Dialect:
    def all_users() -> Flow[tuple[User, ...]]:
        return everything(dialect, User)

    users = evolve(USERS, routes={**USERS.routes, Verb.LIST: evolve(USERS.routes[Verb.LIST], paging=paging)})
    dialect = evolve(BUSY, resources={**BUSY.resources, User: users}, settings={"users": all_users})
    return dialect


READERS = {
    "a walk": lambda crm: everybody(crm),
    "a settings part": lambda crm: crm.setting("users"),
}


async def everybody(crm: Any) -> list[Any]:
    return [user.name async for user in crm.users.list()]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("places", [{"a": "b", "b": "a"}, {"a": "b", "b": "c", "c": "b"}, {"a": "a"}])
async def test_a_listing_that_leads_back_to_where_it_was_raises(server, reader, places):
    server.respond = round_and_round(places)
    async with busy(server, listed_by(ByToken())) as crm:
        with pytest.raises(Unreadable, match="does not go on"):
            await READERS[reader](crm)
    assert len(server.requests) == len(places)


@pytest.mark.parametrize("reader", READERS)
async def test_pages_that_come_again_under_other_numbers_raise(server, reader):
    def respond(request: httpx.Request) -> httpx.Response:
        number = int(request.url.params["page"])
        rows = [{"id": 2 * (number % 2) + each, "name": "n"} for each in (1, 2)]
        return answer(body={"rows": rows, "next": f"{BASE}/users?page={number + 1}"})

    server.respond = respond
    paging = PageNumber(size=2, next_link=lambda reply: mapping(reply.body).get("next"))
    async with busy(server, listed_by(paging)) as crm:
        with pytest.raises(Unreadable, match="does not go on"):
            await READERS[reader](crm)
    assert len(server.requests) <= 4


async def test_a_listing_may_be_as_long_as_it_likes_and_end(server):
    server.respond = round_and_round({chr(at): chr(at + 1) for at in range(97, 122)})
    async with busy(server, listed_by(ByToken())) as crm:
        assert len(await everybody(crm)) == 26
        assert len(await crm.setting("users")) == 26


async def test_a_page_of_which_nothing_is_shown_is_the_last_only_where_the_total_says_so():
    paging = PageNumber(size=2, pages=lambda reply: mapping(reply.body).get("total"))
    told, untold = Reply(200, body={"total": 3}), Reply(200, body={})
    assert [paging.after(at, told, 0) for at in (1, 2, 3)] == [2, 3, None]
    assert [paging.after(at, told, 2) for at in (1, 2, 3)] == [2, 3, None]
    assert [paging.after(1, untold, count) for count in (2, 0)] == [2, None]
    assert paging.after(1, Reply(200, body={"total": 0}), 0) is None
