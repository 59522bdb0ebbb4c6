"""The session sends what is due, once where twice would do harm, and tells what became of it; the vendor here is a toy."""

import asyncio
import gc
import gzip
import json
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import respx
from attrs import define, evolve
from toy import (
    BASE,
    BY_TOTAL,
    CONTACTS,
    FAST,
    SEVEN,
    TOY,
    Server,
    answer,
    client,
    decode,
    others,
    page,
    renewing,
    settle,
)

from crmclient import (
    AmbiguousWrite,
    AuthFailed,
    Banned,
    ClientClosed,
    Contact,
    CRMError,
    Misconfigured,
    OriginRefused,
    Rate,
    RateLimited,
    ReadOnly,
    Unavailable,
    Unreadable,
    Unsupported,
    connect,
)
from crmclient.clock import FakeClock
from crmclient.dialect import (
    Call,
    Context,
    Cursor,
    Flow,
    Need,
    Page,
    Reply,
    mapping,
    read,
)
from crmclient.errors import ConnectionLost, Unreachable
from crmclient.pacing import SharedPacers
from crmclient.session import Limits

pytestmark = pytest.mark.asyncio


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def server(clock: FakeClock) -> Server:
    return Server(clock)


# -------------------------------------------------------------------------------------------------------- what is sent


async def test_a_call_goes_to_the_base_address_signed_and_with_its_query(server):
    async with client(server) as crm:
        await crm.call(read("/contacts", ("query", "Иван & Co"), ("page", "2")))
    (sent,) = server.requests
    assert str(sent.url) == f"{BASE}/contacts?query=%D0%98%D0%B2%D0%B0%D0%BD+%26+Co&page=2"
    assert sent.headers["authorization"] == "Bearer tok"
    assert sent.headers["accept-encoding"] == "gzip"
    assert sent.headers["user-agent"].startswith("crmclient/")


async def test_a_call_that_fetches_a_credential_carries_none(server):
    async with client(server) as crm:
        await crm.call(Call("POST", "/login", body={"user": "u"}, signed=False))
    assert "authorization" not in server.requests[0].headers
    assert server.requests[0].content == b'{"user":"u"}'


async def test_respx_and_the_default_transport_see_the_same_request(clock):
    with respx.mock() as mocked:
        route = mocked.get(f"{BASE}/contacts/1").respond(json={"id": 1, "name": "n1"})
        async with connect(TOY, base_url=BASE, credentials="tok", clock=clock) as crm:
            assert (await crm.contacts.get(1)).name == "n1"
    assert route.calls.last.request.headers["authorization"] == "Bearer tok"


async def test_a_transport_whose_answers_are_already_read_is_understood(clock):
    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"id": 1, "name": "n1"})  # read at once, as mocks and recorders do

    async with connect(TOY, base_url=BASE, credentials="t", clock=clock, transport=httpx.MockTransport(handler)) as crm:
        assert (await crm.contacts.get(1)).name == "n1"


@pytest.mark.parametrize("path", ["//evil.test/x", "http://evil.test/x", "contacts", "@evil.test/x", ""])
async def test_fault_106_a_path_that_leads_elsewhere_is_refused_before_anything_is_sent(server, path):
    async with client(server) as crm:
        with pytest.raises(OriginRefused):
            await crm.call(read(path))
    assert server.requests == []


@pytest.mark.parametrize("token", ["a\r\nX-Evil: 1", "a\0", "töken", "tok\n"])
async def test_fault_107_a_token_no_header_may_hold_is_refused_without_being_shown(server, token):
    async with client(server, credentials=token) as crm:
        with pytest.raises(Misconfigured) as refused:
            await crm.contacts.get(1)
    assert server.requests == []
    assert token.strip() not in str(refused.value)


async def test_no_request_is_sent_where_a_dialect_has_no_route(server):
    async with client(server) as crm:
        with pytest.raises(Unsupported):
            await crm.contacts.delete(1)
        with pytest.raises(Unsupported):
            await crm.setting("moon phase")
    assert server.requests == []


# ------------------------------------------------------------------------------------------------- sending once more

LOST = {
    "503": lambda: answer(503, b"busy"),
    "500 with HTML": lambda: answer(500, b"<html>"),
    "504": lambda: answer(504),
    "connection reset": lambda: httpx.ReadError("reset"),
    "broken pipe": lambda: httpx.WriteError("pipe"),
    "no answer": lambda: httpx.ReadTimeout("timeout"),
    "cut body": lambda: httpx.RemoteProtocolError("peer closed connection without sending complete message body"),
    "cut gzip": lambda: answer(200, gzip.compress(b'{"id":1,"name":"n"}')[:-12], headers={"content-encoding": "gzip"}),
}


@pytest.mark.parametrize("fault", LOST)
async def test_a_read_is_sent_again_when_the_server_fails_or_the_connection_is_lost(server, fault):
    server.script = [LOST[fault](), LOST[fault]()]
    async with client(server) as crm:
        assert (await crm.contacts.get(1)).id == 1
        assert crm.spent.retries == 2
    assert len(server.requests) == 3


@pytest.mark.parametrize("fault", LOST)
async def test_a_create_is_never_sent_again_when_its_fate_is_unknown(server, fault):
    server.script = [LOST[fault]()]
    async with client(server) as crm:
        with pytest.raises(AmbiguousWrite) as told:
            await crm.contacts.create(Contact(name="Ivan"))
        assert isinstance(told.value.__cause__, ConnectionLost | Unavailable)
    assert server.paths == ["POST /contacts"]


async def test_a_read_gives_up_after_three_tries_with_waits_between_them(server, clock):
    server.respond = lambda request: answer(503)
    async with client(server) as crm:
        with pytest.raises(Unavailable) as told:
            await crm.contacts.get(1)
    assert told.value.status == 503
    assert len(server.requests) == 3
    assert server.times == sorted(set(server.times)), "the tries came without a wait between them"


@pytest.mark.parametrize("fault", [httpx.ConnectError("refused"), httpx.ConnectTimeout("late"), httpx.PoolTimeout("")])
async def test_a_create_that_never_left_is_sent_again(server, fault):
    server.script = [fault]
    async with client(server) as crm:
        assert (await crm.contacts.create(Contact(name="Ivan"))).id == 1
    assert server.paths == ["POST /contacts"] * 2


async def test_a_server_that_is_not_there_is_unreachable_and_the_error_names_it(server):
    server.respond = lambda request: httpx.ConnectError("refused")
    async with client(server) as crm:
        with pytest.raises(Unreachable, match=r"127\.0\.0\.1:9"):
            await crm.contacts.create(Contact(name="Ivan"))
    assert len(server.requests) == 3


@pytest.mark.parametrize("status", [400, 404, 409, 422])
async def test_fault_055_what_the_server_refuses_is_not_sent_again(server, status):
    server.respond = lambda request: answer(status, {"error": "no"})
    async with client(server) as crm:
        with pytest.raises(CRMError) as told:
            await crm.contacts.get(1)
    assert told.value.status == status
    assert len(server.requests) == 1


async def test_fault_053_in_an_outage_retries_stop_when_their_quota_is_spent(server):
    server.respond = lambda request: answer(503)
    async with client(server) as crm:
        for _ in range(200):
            with pytest.raises(Unavailable):
                await crm.contacts.get(1)
        assert crm.spent.retries == 100  # 500 / 5, and no success gives any back
    assert len(server.requests) == 300


async def test_an_error_inside_the_transport_that_is_not_ours_never_reaches_the_caller_bare(server):
    server.script = [answer(302, headers={"location": "http://[::1"})]  # httpx fails to parse it before we see it
    async with client(server) as crm:
        with pytest.raises(CRMError):
            await crm.contacts.create(Contact(name="Ivan"))
    assert len(server.requests) == 1


# -------------------------------------------------------------------------------------------------------- too fast: 429


async def test_a_429_pauses_the_whole_account_and_is_sent_again(server, clock):
    server.script = [answer(429, headers={"retry-after": "5"})]
    async with client(server) as crm:
        first = asyncio.create_task(crm.contacts.get(1))
        await settle()
        assert crm.spent.rate_limited == 1
        await asyncio.gather(first, *(crm.contacts.get(n) for n in range(2, 7)))
    assert len(server.requests) == 7
    assert server.times[0] == 0.0
    assert min(server.times[1:]) >= 5.0


async def test_a_create_refused_by_429_was_not_applied_and_is_sent_again(server, clock):
    server.script = [answer(429, headers={"retry-after": "2"})]
    async with client(server) as crm:
        assert (await crm.contacts.create(Contact(name="Ivan"))).id == 1
    assert server.paths == ["POST /contacts"] * 2
    assert server.times[1] >= 2.0


async def test_a_429_that_does_not_end_is_raised_with_what_the_server_asked_for(server):
    server.respond = lambda request: answer(429, headers={"retry-after": "3"})
    async with client(server) as crm:
        with pytest.raises(RateLimited) as told:
            await crm.contacts.get(1)
    assert told.value.after == 3.0
    assert len(server.requests) == 3


async def test_a_wait_longer_than_patience_is_raised_at_once_and_still_kept_by_the_next_call(server, clock):
    server.script = [answer(429, headers={"retry-after": "300"})]
    async with client(server) as crm:
        with pytest.raises(RateLimited) as told:
            await crm.contacts.get(1)
        assert (told.value.after, clock.monotonic()) == (300.0, 0.0)
        await crm.contacts.get(1)
    assert server.times[1] >= 300.0


@pytest.mark.parametrize("header", ["abc", "-5", "nan", "1e9", "", "Wed, 21 Oct 2026 07:28:00 GMT", "9" * 30, "1, 2"])
async def test_a_nonsense_retry_after_is_a_short_wait_of_our_own(server, header):
    server.script = [answer(429, headers={"retry-after": header})]
    async with client(server) as crm:
        await crm.contacts.get(1)
    assert 1.0 <= server.times[1] <= 20.0


async def test_a_429_to_a_call_whose_caller_has_gone_still_pauses_the_account(server, clock):
    server.latency = 1.0
    server.script = [answer(429, headers={"retry-after": "5"})]
    async with client(server) as crm:
        call = asyncio.create_task(crm.contacts.get(1))
        await settle()
        call.cancel()
        await clock.sleep(2)
        await crm.contacts.get(2)
    assert server.times[1] >= 6.0


# ------------------------------------------------------------------------------------------------------ 401 and the ban


def by_token(**status: int) -> Callable[[httpx.Request], httpx.Response]:
    def respond(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/login"):
            return answer(body={"token": "new"})
        return answer(status.get(request.headers["x-token"], 200), {"id": 1, "name": "n1"})

    return respond


@pytest.mark.parametrize("write", [False, True])
async def test_after_a_401_the_token_is_renewed_once_and_the_call_goes_again(server, write):
    server.respond = by_token(old=401)
    async with await renewing(server) as crm:
        await (crm.contacts.create(Contact(name="Ivan")) if write else crm.contacts.get(1))
        assert crm.spent.renewals == 1
    call = "POST /contacts" if write else "GET /contacts/1"
    assert server.paths == [call, "POST /login", call]
    assert [request.headers.get("x-token") for request in server.requests] == ["old", None, "new"]


async def test_a_401_with_a_fresh_token_fails_and_does_not_renew_again(server):
    server.respond = by_token(old=401, new=401)
    async with await renewing(server) as crm:
        with pytest.raises(AuthFailed) as told:
            await crm.contacts.get(1)
    assert told.value.status == 401
    assert server.paths == ["GET /contacts/1", "POST /login", "GET /contacts/1"]


async def test_a_403_is_a_matter_of_rights_and_renews_nothing(server):
    server.respond = by_token(old=403)
    async with await renewing(server) as crm:
        with pytest.raises(AuthFailed):
            await crm.contacts.get(1)
    assert server.paths == ["GET /contacts/1"]


async def test_a_token_made_by_hand_that_is_refused_is_auth_failed_with_what_the_server_said(server):
    server.respond = lambda request: answer(401, {"error": "no"}, headers={"x-request-id": "req-7"})
    async with client(server) as crm:
        with pytest.raises(AuthFailed) as told:
            await crm.contacts.get(1)
    assert len(server.requests) == 1
    assert (told.value.status, told.value.request_id) == (401, "req-7")


BAN = b"<html><body>Your IP is blocked</body></html>"


async def test_after_a_ban_page_nothing_is_sent_any_more(server):
    server.respond = lambda request: answer(403, BAN, headers={"content-type": "text/html"})
    async with client(server) as crm:
        with pytest.raises(Banned):
            await crm.contacts.get(1)
        for _ in range(3):
            with pytest.raises(Banned):
                await crm.contacts.get(2)
        with pytest.raises(Banned):
            await crm.contacts.create(Contact(name="Ivan"))
    assert len(server.requests) == 1


async def test_a_ban_stops_those_who_wait_for_their_turn(server):
    server.latency = 0.2
    server.respond = lambda request: answer(403, BAN)
    async with client(server, rate=Rate(1, 1)) as crm:
        told = await asyncio.gather(*(crm.contacts.get(n) for n in range(1, 21)), return_exceptions=True)
    assert {type(error) for error in told} == {Banned}
    assert len(server.requests) == 1


async def test_a_ban_raised_a_hundred_times_does_not_grow(server):
    server.respond = lambda request: answer(403, BAN)
    frames: list[int] = []
    async with client(server) as crm:
        for _ in range(100):
            try:
                await crm.contacts.get(1)
            except Banned as banned:
                depth, at = 0, banned.__traceback__
                while at is not None:
                    depth, at = depth + 1, at.tb_next
                frames.append(depth)
    assert max(frames) < 40, f"one exception is raised over and over and drags {max(frames)} frames with it"


# ---------------------------------------------------------------------------------------------- answers that are not due

GARBAGE = {
    "HTML": (b"<html>maintenance</html>", {"content-type": "text/html"}),
    "HTML labelled JSON": (b"\n <!DOCTYPE html><p>hi", {"content-type": "application/json"}),
    "HTML behind a BOM": (b"\xef\xbb\xbf<html>", {}),
    "an empty body": (b"", {}),
    "blanks": (b" \r\n ", {}),
    "cut JSON": (b'{"id":1,"na', {}),
    "JSON and then more": (b'{"id":1} {"id":2}', {}),
    "200,000 brackets": (b"[" * 200_000, {}),
    "NaN": (b'{"id":NaN}', {}),
    "an integer of 5,000 digits": (b'{"id":' + b"9" * 5000 + b"}", {}),
    "an exponent of twenty digits": (b'{"id":1e99999999999999999999}', {}),
    "no UTF-8": (b'{"name":"\xff\xfe"}', {}),
    "gzip twice": (gzip.compress(gzip.compress(b'{"id":1}')), {"content-encoding": "gzip, gzip"}),
    "gzip once more than told": (gzip.compress(gzip.compress(b'{"id":1}')), {"content-encoding": "gzip"}),
    "brotli nobody asked for": (b"\x0b\x02", {"content-encoding": "br"}),
    "no gzip at all": (b"abcd", {"content-encoding": "gzip"}),
}


@pytest.mark.parametrize("what", GARBAGE)
async def test_fault_021_022_029_030_032_033_an_answer_that_is_not_what_was_due_is_unreadable(server, what):
    body, headers = GARBAGE[what]
    server.respond = lambda request: answer(200, body, headers=headers)
    async with client(server) as crm:
        with pytest.raises(Unreadable) as told:
            await crm.contacts.get(1)
        assert told.value.status == 200
        server.respond = None
        assert (await crm.contacts.get(1)).id == 1, "the client cannot be used any more"


@pytest.mark.parametrize("what", GARBAGE)
async def test_a_create_answered_with_garbage_is_ambiguous_and_sent_once(server, what):
    body, headers = GARBAGE[what]
    server.respond = lambda request: answer(200, body, headers=headers)
    async with client(server) as crm:
        with pytest.raises(AmbiguousWrite):
            await crm.contacts.create(Contact(name="Ivan"))
    assert len(server.requests) == 1


async def test_gzip_is_read(server):
    body = gzip.compress(json.dumps({"id": 1, "name": "ы" * 100_000}).encode())
    server.script = [answer(200, body, headers={"content-encoding": "gzip"})]
    async with client(server) as crm:
        assert len((await crm.contacts.get(1)).name) == 100_000


@pytest.mark.parametrize("coding", ["br", "deflate", "gzip, gzip", "gzip, identity", "zstd"])
async def test_fault_026_027_only_the_coding_that_was_offered_is_taken(server, coding):
    server.respond = lambda request: answer(200, b'{"id":1,"name":"n1"}', headers={"content-encoding": coding})
    async with client(server) as crm:
        with pytest.raises(Unreadable, match="only gzip was offered"):
            await crm.contacts.get(1)


@define
class Endless(httpx.AsyncByteStream):
    """Bytes for as long as somebody reads, up to a bound that no test should reach."""

    chunk: bytes
    first: bytes = b""
    most: int = 2_000
    pulled: int = 0
    closed: bool = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self.first:
            yield self.first
        while self.pulled < self.most:
            self.pulled += 1
            yield self.chunk

    async def aclose(self) -> None:
        self.closed = True


async def test_fault_028_an_answer_larger_than_the_limit_is_cut_off_while_it_comes(server):
    endless = Endless(b"x" * 1000)
    server.script = [httpx.Response(200, stream=endless)]
    async with client(server, limits=Limits(body=10_000)) as crm:
        with pytest.raises(Unreadable, match="larger than 10000"):
            await crm.contacts.get(1)
    assert endless.pulled == 11
    assert endless.closed


async def test_fault_025_a_gzip_bomb_is_stopped_while_it_is_inflated(server):
    bomb = gzip.compress(bytes(64 << 20), 1)
    server.script = [answer(200, bomb, headers={"content-encoding": "gzip"})]
    async with client(server, limits=Limits(body=4 << 20)) as crm:
        with pytest.raises(Unreadable, match="larger than"):
            await crm.contacts.get(1)


async def test_an_answer_that_goes_on_after_its_gzip_has_ended_is_bounded_too(server):
    endless = Endless(b"x" * 1000, gzip.compress(b'{"id":1,"name":"n1"}'))
    server.script = [httpx.Response(200, headers={"content-encoding": "gzip"}, stream=endless)]
    async with client(server, limits=Limits(body=10_000)) as crm:
        with pytest.raises(CRMError):
            await crm.contacts.get(1)
    assert endless.pulled < 20, f"{endless.pulled} chunks were taken in after the end"


async def test_what_follows_the_end_of_a_gzip_is_not_dropped_in_silence(server):
    body = gzip.compress(b'{"id":1,"name":"n1"}') + gzip.compress(b'{"id":2,"name":"n2"}')
    server.respond = lambda request: answer(200, body, headers={"content-encoding": "gzip"})
    async with client(server) as crm:
        with pytest.raises(Unreadable):
            await crm.contacts.get(1)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_fault_104_a_redirect_is_not_followed(server, status):
    server.respond = lambda request: answer(status, headers={"location": "http://evil.test/login"})
    async with client(server) as crm:
        with pytest.raises(Unreadable, match="redirect") as told:
            await crm.contacts.get(1)
        assert told.value.status == status
        with pytest.raises(CRMError):
            await crm.contacts.create(Contact(name="Ivan"))
    assert [request.url.host for request in server.requests] == ["127.0.0.1"] * 2


async def test_a_server_whose_clock_is_wrong_by_millennia_does_no_harm(server, clock):
    server.respond = lambda request: answer(
        body={"id": 1, "name": "n1"}, headers={"date": "Fri, 31 Dec 9999 23:59:59 GMT"}
    )
    async with client(server) as crm:
        await crm.contacts.get(1)
        clock.advance(60)
        assert (await crm.contacts.get(1)).id == 1


@pytest.mark.parametrize(
    "date",
    [
        "Fri, 31 Dec 9999 23:59:59 GMT",
        "Mon, 01 Jan 0001 00:00:00 +1400",
        "Sat, 21 Nov 2026 99999999999:00:00 GMT",
        "Sat, 21 Nov 99999999999999 10:00:00 GMT",
        "soon",
    ],
)
async def test_a_date_that_is_none_is_left_alone_and_breaks_no_later_call(server, clock, date):
    server.script = [answer(body={"id": 1, "name": "n1"}, headers={"date": date})]
    async with client(server) as crm:
        await crm.contacts.get(1)
        clock.advance(60)
        assert (await crm.contacts.get(1)).id == 1


async def test_codecs_are_told_the_servers_time(server, clock):
    told: list[datetime | None] = []

    def decode_and_tell(row: Any, context: Context) -> Contact:
        told.append(context.now)
        return decode(row, context)

    theirs = clock.now() + timedelta(hours=2)
    server.respond = lambda request: answer(
        body={"id": 1, "name": "n1"}, headers={"date": theirs.strftime("%a, %d %b %Y %H:%M:%S GMT")}
    )
    dialect = evolve(TOY, resources={Contact: evolve(CONTACTS, decode=decode_and_tell)})
    async with client(server, dialect) as crm:
        await crm.contacts.get(1)
    assert told == [theirs.replace(tzinfo=UTC)]


# ----------------------------------------------------------------------------------------------------- where it goes on

ELSEWHERE = [
    "http://evil.test/api/contacts?page=2",
    "//evil.test/contacts?page=2",
    "https://127.0.0.1:9/api/contacts?page=2",
    "http://127.0.0.1:10/api/contacts?page=2",
    "http://127.0.0.1/api/contacts?page=2",
    "http://127.0.0.1:9@evil.test/api",
    "http://user:pass@127.0.0.1:9/api/contacts?page=2",
    "http://127.0.0.1.evil.test:9/api/contacts",
    "http://127.0.0.1.:9/api/contacts",
    "ftp://127.0.0.1:9/api/contacts",
    "http://[::1",
    "http://127.0.0.1:99999/",
    "\\\\evil.test\\x",
]


@pytest.mark.parametrize("link", ELSEWHERE)
async def test_fault_102_103_a_next_link_to_another_host_is_refused_before_any_further_request(server, link):
    server.respond = lambda request: page([1, 2], link)
    async with client(server, rate=SEVEN) as crm:
        with pytest.raises((OriginRefused, Unreadable)):
            async for _ in crm.contacts.list():
                pass
        await settle()
    assert len(server.requests) == 1
    assert {request.url.host for request in server.requests} == {"127.0.0.1"}


@pytest.mark.parametrize("link", ["/api/contacts?page=2", "HTTP://127.0.0.1:9/api/contacts?page=2", f"{BASE}/x?y=z"])
async def test_a_next_link_of_our_own_host_is_an_end_sign_and_is_not_followed(server, link):
    server.script = [page([1, 2], link), page([3])]
    async with client(server) as crm:
        assert [row.id async for row in crm.contacts.list()] == [1, 2, 3]
    assert [request.url.params["page"] for request in server.requests] == ["1", "2"]
    assert [request.url.path for request in server.requests] == ["/api/contacts"] * 2


async def test_fault_046_a_page_that_comes_again_raises(server):
    server.respond = lambda request: page([1, 2], f"{BASE}/contacts?page=2")
    async with client(server) as crm:
        with pytest.raises(Unreadable, match="does not go on"):
            async for _ in crm.contacts.list(prefetch=1):
                pass
    assert 2 <= len(server.requests) <= 3


# --------------------------------------------------------------------------------------------------------- reading ahead


async def numbers(pages: AsyncIterator[Page[Contact]]) -> list[Any]:
    return [page.cursor.at async for page in pages]


async def test_pages_read_ahead_come_in_order_whatever_order_they_arrive_in(server, clock):
    server.listing(30)
    inner = server.respond
    assert inner is not None

    async def late(request: httpx.Request) -> Any:
        await clock.sleep(1.0 if int(request.url.params["page"]) % 3 == 1 else 0.3)
        return inner(request)

    server.respond = late
    async with client(server, rate=SEVEN) as crm:
        assert [row.id async for row in crm.contacts.list()] == list(range(60))
    assert server.most_within > 1, "nothing was read ahead"


async def test_reading_ahead_uses_the_pace_that_is_allowed(server, clock):
    server.listing(70)
    server.latency = 1.0
    async with client(server, rate=SEVEN) as crm:
        assert await numbers(crm.contacts.pages()) == list(range(1, 71))
    # Ten seconds at 7 a second and full use; a sequential walk needs seventy.
    assert clock.monotonic() < 14.0


async def test_reading_ahead_is_bounded_by_the_window(server, clock):
    server.listing(60)
    server.latency = 60.0
    async with client(server, rate=FAST, limits=Limits(prefetch=5)) as crm:
        await numbers(crm.contacts.pages())
    assert 1 < server.most_within <= 5


async def test_a_caller_who_is_slow_is_not_run_away_from(server, clock):
    server.listing(60)
    server.latency = 1.0
    async with client(server, rate=SEVEN) as crm, aclosing(crm.contacts.pages(prefetch=4)) as pages:
        async for page in pages:
            await clock.sleep(30)
            assert len(server.requests) <= int(page.cursor.at) + 4
            if page.cursor.at == 20:
                break


async def test_prefetch_one_is_one_request_at_a_time(server):
    server.listing(20)
    server.latency = 1.0
    async with client(server, rate=SEVEN) as crm:
        assert await numbers(crm.contacts.pages(prefetch=1)) == list(range(1, 21))
    assert server.most_within == 1
    assert len(server.requests) == 20


async def test_prefetch_one_asks_for_nothing_before_it_is_wanted(server, clock):
    server.listing(20)
    async with client(server, rate=SEVEN) as crm, aclosing(crm.contacts.pages(prefetch=1)) as pages:
        assert (await anext(pages)).cursor.at == 1
        await clock.sleep(30)
        assert len(server.requests) == 1, "the next page was read before anybody asked for it"


@pytest.mark.parametrize("prefetch", [0, -1])
async def test_a_window_of_nothing_is_refused(server, prefetch):
    async with client(server) as crm:
        with pytest.raises(Misconfigured, match="prefetch"):
            await numbers(crm.contacts.pages(prefetch=prefetch))
    assert server.requests == []


async def test_a_listing_of_one_page_costs_one_request(server):
    server.listing(1)
    server.latency = 1.0
    async with client(server, rate=SEVEN) as crm:
        for _ in range(3):
            assert await numbers(crm.contacts.pages()) == [1]
    assert len(server.requests) == 3


async def test_the_first_page_is_read_alone(server):
    server.listing(9)
    server.latency = 1.0
    async with client(server, rate=SEVEN) as crm:
        await numbers(crm.contacts.pages())
    assert server.times[0] == 0.0
    assert server.times[1] >= 1.0


@pytest.mark.parametrize("prefetch", [2, 4, 8])
async def test_an_end_told_only_by_the_last_page_costs_less_than_a_window(server, prefetch):
    server.listing(20)
    server.latency = 1.0
    async with client(server, rate=SEVEN) as crm:
        await numbers(crm.contacts.pages(prefetch=prefetch))
        await settle()
    assert 20 <= len(server.requests) < 20 + prefetch


async def test_an_end_told_beforehand_costs_nothing(server):
    server.listing(20, linked=False)
    server.latency = 1.0
    async with client(server, evolve(TOY, paging=BY_TOTAL), rate=SEVEN) as crm:
        assert await numbers(crm.contacts.pages()) == list(range(1, 21))
    assert len(server.requests) == 20


async def test_an_iteration_that_is_abandoned_leaves_no_task(server, clock):
    server.listing(40)
    server.latency = 1.0
    async with client(server, rate=SEVEN) as crm:
        async for row in crm.contacts.list():
            if row.id == 15:
                break
        await settle()
        await clock.sleep(5)  # what was on the wire may end
        await settle()
        assert others() == set()
        sent = len(server.requests)
        await clock.sleep(30)
        assert len(server.requests) == sent
        server.respond = None
        assert (await crm.contacts.get(1)).id == 1


async def test_pages_that_wait_for_their_turn_are_not_read_once_nobody_wants_them(server, clock):
    server.listing(100)
    server.latency = 4.0
    async with client(server, rate=Rate(2, 1)) as crm:
        async with aclosing(crm.contacts.pages()) as pages:
            async for page in pages:
                if page.cursor.at == 3:
                    break
        sent = len(server.requests)
        assert sent < 3 + 8, "all of the window is on the wire: this test sees nothing"
        await clock.sleep(60)
        assert len(server.requests) == sent


async def test_an_iterating_task_that_is_cancelled_leaves_no_task(server, clock):
    server.listing(400)
    server.latency = 1.0
    async with client(server, rate=SEVEN) as crm:
        reader = asyncio.create_task(numbers(crm.contacts.pages()))
        await clock.sleep(5.5)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        await clock.sleep(5)
        await settle()
        assert others() == set()


async def test_a_reader_cancelled_at_any_moment_leaves_no_page_half_read(server):
    """Not even one whose answer has come and that nobody has taken yet."""

    def needs_the_account(row: Any, context: Context) -> Contact:
        return evolve(decode(row, context), name=str(context.part("account")))

    server.listing(2)
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, told: complaints.append(told))
    dialect = evolve(TOY, resources={Contact: evolve(CONTACTS, decode=needs_the_account)})
    for moment in range(60):
        async with client(server, dialect, rate=Rate(1, 1), pacer=SharedPacers()) as crm:
            reader = asyncio.create_task(numbers(crm.contacts.pages()))
            for _ in range(moment):
                await asyncio.sleep(0)
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
        await settle()
    del reader
    gc.collect()
    assert len(server.requests) > 20
    assert complaints == []


async def test_an_error_inside_a_page_read_ahead_surfaces_in_its_place(server, clock):
    server.listing(20)
    inner = server.respond
    assert inner is not None

    async def broken(request: httpx.Request) -> Any:
        if request.url.params["page"] == "6":
            return answer(400, {"error": "no"})  # faster than the pages before it
        await clock.sleep(1.0)
        return inner(request)

    server.respond = broken
    seen: list[Any] = []
    async with client(server, rate=SEVEN) as crm:
        with pytest.raises(CRMError) as told:
            async for page in crm.contacts.pages():
                seen.append(page.cursor.at)
        assert told.value.status == 400
        await clock.sleep(5)
        await settle()
        assert others() == set()
    assert seen == [1, 2, 3, 4, 5]


async def test_fault_037_a_row_that_cannot_be_read_does_not_kill_its_page(server):
    server.script = [answer(body={"rows": [{"id": 1, "name": "a"}, {"id": 2}, {"id": 3, "name": "c"}]})]
    bad: list[Unreadable] = []
    async with client(server) as crm:
        assert [row.id async for row in crm.contacts.list(on_bad=bad.append)] == [1, 3]
        assert [error.raw for error in bad] == [{"id": 2}]
        server.script = [answer(body={"rows": [{"id": 1, "name": "a"}, {"id": 2}]})]
        with pytest.raises(Unreadable):
            [row async for row in crm.contacts.list()]


async def test_a_walk_goes_on_from_a_kept_cursor_and_an_ended_one_stays_ended(server):
    server.listing(6)
    async with client(server) as crm:
        async with aclosing(crm.contacts.pages()) as pages:
            kept = [await anext(pages), await anext(pages)][-1].next
        assert kept == Cursor(3)
        assert await numbers(crm.contacts.pages(kept)) == [3, 4, 5, 6]
        assert await numbers(crm.contacts.pages(None)) == []


# ------------------------------------------------------------------------------------------------------------- settings


async def test_a_part_of_the_settings_is_read_once_by_twenty_tasks(server):
    server.latency = 1.0
    server.respond = lambda request: answer(body={"name": "acme"})
    async with client(server) as crm:
        assert set(await asyncio.gather(*(crm.setting("account") for _ in range(20)))) == {"acme"}
        assert await crm.setting("account") == "acme"
    assert server.paths == ["GET /account"]


async def test_a_part_that_codecs_need_is_read_once_for_many_pages_side_by_side(server):
    def needs_the_account(row: Any, context: Context) -> Contact:
        return evolve(decode(row, context), name=f"{context.part('account')} {row['id']}")

    server.listing(10)
    inner = server.respond
    assert inner is not None
    server.respond = lambda request: (
        answer(body={"name": "acme"}) if request.url.path.endswith("/account") else inner(request)
    )
    server.latency = 1.0
    dialect = evolve(TOY, resources={Contact: evolve(CONTACTS, decode=needs_the_account)})
    async with client(server, dialect, rate=SEVEN) as crm:
        assert [row.name async for row in crm.contacts.list()] == [f"acme {n}" for n in range(20)]
    assert Counter(server.paths)["GET /account"] == 1


async def test_a_part_whose_reader_was_cancelled_is_read_by_the_next(server, clock):
    server.latency = 1.0
    server.respond = lambda request: answer(body={"name": "acme"})
    async with client(server) as crm:
        first = asyncio.create_task(crm.setting("account"))
        second = asyncio.create_task(crm.setting("account"))
        await clock.sleep(0.5)
        first.cancel()
        assert await second == "acme"


async def test_a_part_that_could_not_be_read_is_asked_for_again(server):
    server.script = [answer(400, {}), answer(body={"name": "acme"})]
    async with client(server) as crm:
        with pytest.raises(CRMError):
            await crm.setting("account")
        assert await crm.setting("account") == "acme"


# ------------------------------------------------------------------------------------------- read-only, closed, cancelled


async def test_a_read_only_client_reads_and_does_not_write(server):
    async with client(server, read_only=True) as crm:
        assert (await crm.contacts.get(1)).id == 1
        with pytest.raises(ReadOnly, match="read_only"):
            await crm.contacts.create(Contact(name="Ivan"))
        for method in ("POST", "PATCH", "PUT", "DELETE"):
            with pytest.raises(ReadOnly):
                await crm.call(Call(method, "/contacts"))
    assert server.paths == ["GET /contacts/1"]


async def test_a_read_only_client_may_still_renew_its_token(server):
    server.respond = by_token(old=401)
    async with await renewing(server, read_only=True) as crm:
        assert (await crm.contacts.get(1)).id == 1


async def test_a_closed_client_says_so_and_sends_nothing(server):
    crm = client(server)
    await crm.contacts.get(1)
    await crm.aclose()
    await crm.aclose()
    for use in (lambda: crm.contacts.get(1), lambda: numbers(crm.contacts.pages()), lambda: crm.setting("account")):
        with pytest.raises(ClientClosed):
            await use()
    assert len(server.requests) == 1


async def test_a_call_that_waits_for_its_turn_when_the_client_is_closed_says_so(server, clock):
    crm = client(server, rate=Rate(1, 10))
    await crm.contacts.get(1)
    waiting = asyncio.create_task(crm.contacts.get(2))
    await settle()
    await crm.aclose()
    with pytest.raises(ClientClosed):
        await waiting
    assert len(server.requests) == 1


async def test_a_write_that_closing_cuts_off_is_ambiguous_and_not_a_cancellation(server):
    never = asyncio.Event()

    async def hang(request: httpx.Request) -> httpx.Response:
        await never.wait()
        return answer()

    server.respond = hang
    crm = client(server, limits=Limits(read=0.05))
    writing = asyncio.create_task(crm.contacts.create(Contact(name="Ivan")))
    await settle()
    await crm.aclose()
    (told,) = await asyncio.gather(writing, return_exceptions=True)
    assert isinstance(told, AmbiguousWrite), f"the caller, whom nobody cancelled, got {told!r}"
    assert others() == set()


async def test_closing_lets_a_write_in_flight_end(server):
    server.latency = 5.0
    crm = client(server)
    writing = asyncio.create_task(crm.contacts.create(Contact(name="Ivan")))
    await settle()
    await crm.aclose()
    assert (await writing).id == 1
    assert len(server.ended) == 1


async def test_a_ban_told_while_the_client_closes_is_still_a_ban(server):
    server.latency = 1.0
    server.respond = lambda request: answer(403, BAN)
    crm = client(server)
    calling = asyncio.create_task(crm.contacts.get(1))
    await settle()
    await crm.aclose()
    with pytest.raises(Banned):
        await calling


async def test_a_client_belongs_to_one_event_loop(server):
    crm = client(server)
    await crm.contacts.get(1)
    with pytest.raises(ClientClosed, match="event loop"):
        await asyncio.to_thread(asyncio.run, crm.contacts.get(1))
    assert (await crm.contacts.get(1)).id == 1
    assert len(server.requests) == 2
    await crm.aclose()


async def test_a_cancelled_caller_leaves_a_write_in_flight_to_end(server, clock):
    server.latency = 1.0
    async with client(server) as crm:
        writing = asyncio.create_task(crm.contacts.create(Contact(name="Ivan")))
        await clock.sleep(0.5)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        assert server.ended == []
        await clock.sleep(1)
        assert [request.method for request in server.ended] == ["POST"]
        assert (await crm.contacts.get(1)).id == 1
        await settle()
        assert others() == set()


async def test_a_caller_may_be_cancelled_at_any_point_and_the_client_stays_usable(server, clock):
    server.latency = 0.5
    async with client(server, rate=Rate(3, 1)) as crm:
        for turns in range(60):
            call = asyncio.create_task(crm.contacts.create(Contact(name="Ivan")))
            for _ in range(turns):
                await asyncio.sleep(0)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
        assert (await asyncio.wait_for(crm.contacts.get(1), 20)).id == 1
        await clock.sleep(5)
        await settle()
        assert others() == set()
    for at in range(len(server.times) - 3):
        assert server.times[at + 3] - server.times[at] >= 1.0


async def test_calls_side_by_side_are_answered_in_order_and_an_error_stays_with_its_call(server, clock):
    async def respond(request: httpx.Request) -> Any:
        n = int(request.url.path.rsplit("/", 1)[-1])
        await clock.sleep(1.0 / (n + 1))
        return answer(404, {}) if n == 2 else answer(body={"id": n})

    server.respond = respond

    def flow() -> Flow[list[Any]]:
        answers = yield tuple(read(f"/contacts/{n}") for n in range(5))
        return [mapping(each.body)["id"] if isinstance(each, Reply) else type(each).__name__ for each in answers]

    async with client(server) as crm:
        assert await crm.run(flow()) == [0, 1, "NotFound", 3, 4]


async def test_an_error_is_thrown_into_the_flow_where_it_asked(server):
    server.script = [answer(404, {})]

    def flow() -> Flow[str]:
        try:
            yield read("/contacts/1")
        except CRMError as error:
            reply: Reply = yield read("/contacts/2")
            return f"{error.status}, then {mapping(reply.body)['id']}"
        return "nothing was thrown"

    async with client(server) as crm:
        assert await crm.run(flow()) == "404, then 1"


async def test_of_two_flows_that_compute_the_first_ends_first_and_whoever_waits_has_its_turns_meanwhile(server):
    told: list[str] = []

    def flow(name: str) -> Flow[None]:
        for _ in range(3):
            yield Need(turn=True)
            told.append(name)

    async def paced() -> None:
        while told.count("first") < 3:
            told.append("paced")
            await asyncio.sleep(0)

    async with client(server) as crm:
        await asyncio.gather(crm.run(flow("first")), crm.run(flow("second")), paced())
    computed = [name for name in told if name != "paced"]
    assert computed == ["first"] * 3 + ["second"] * 3
    assert told.index("paced") < told.index("second")
    assert told.count("paced") >= 2


async def test_whoever_computes_and_is_cancelled_leaves_the_turn_to_the_next(server):
    told: list[str] = []

    def flow(name: str) -> Flow[None]:
        for _ in range(500):
            yield Need(turn=True)
        told.append(name)

    async with client(server) as crm:
        first = asyncio.create_task(crm.run(flow("first")))
        second = asyncio.create_task(crm.run(flow("second")))
        await settle()
        first.cancel()
        await second
    assert first.cancelled()
    assert told == ["second"]


async def test_a_flow_is_closed_when_its_caller_is_cancelled(server, clock):
    server.latency = 5.0
    closed: list[bool] = []

    def flow() -> Flow[None]:
        try:
            yield read("/contacts/1")
        finally:
            closed.append(True)

    async with client(server) as crm:
        running = asyncio.create_task(crm.run(flow()))
        await clock.sleep(1)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert closed == [True]


@pytest.mark.parametrize("token", ["Ivan", "n", "CANARY-" * 20])
async def test_data_that_holds_what_the_token_is_comes_back_as_it_is(server, token):
    """Errors are kept clear of secrets; rows are the customer's, and a note may well quote a key."""
    name = f"Ivan, who wrote: my key is {token}"
    server.respond = lambda request: (
        answer(body={"id": 1, "name": name})
        if "/contacts/" in request.url.path
        else answer(body={"rows": [{"id": 1, "name": name}], "next": None})
    )
    async with client(server, credentials=token) as crm:
        assert (await crm.contacts.get(1)).name == name
        assert [row.name async for row in crm.contacts.list()] == [name]


async def test_bytes_that_inflate_to_nothing_are_an_empty_answer(server):
    nothing = zlib.compress(b"", wbits=31)
    server.respond = lambda request: answer(200, nothing, headers={"content-encoding": "gzip"})
    async with client(server) as crm:
        with pytest.raises(Unreadable, match="empty"):
            await crm.contacts.get(1)
