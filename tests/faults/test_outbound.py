"""F. What goes out: no secret to another host, no id out of its place. The rows are those of the fault catalogue."""

import html
import io
import json
import logging
import pickle
import traceback
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, quote_plus, unquote

import httpx
import pytest
from toy import BASE, TOY, Server, client, renewing

from crmclient import (
    Contact,
    CRMError,
    Invalid,
    Login,
    LoginEachCall,
    Misconfigured,
    Note,
    OAuthApp,
    Secret,
    Verb,
    connect,
    dialect_names,
)
from crmclient.client import Client
from crmclient.clock import FakeClock
from crmclient.dialect import Call, read
from crmclient.testing.faults import RawServer, http
from crmclient.testing.plugin import Sandboxes

IDS = ["1/../../oauth2/access_token", "..%2f", "1?x=1", "1#f", ".", "..", "", "1\r\nHost: evil", "1\x00", "1/2", "１"]


@pytest.fixture
def server() -> Server:
    return Server(FakeClock())


@pytest.mark.asyncio
@pytest.mark.parametrize("name", dialect_names())
async def test_fault_106_an_id_stays_one_segment_or_nothing_is_sent(crm_sandbox: Sandboxes, name) -> None:
    sandbox = crm_sandbox(name, limits=False, contacts=2)
    inner, paths = sandbox.running.transport(), list[str]()

    async def noted(request: httpx.Request) -> httpx.Response:
        paths.append(request.url.raw_path.decode())
        return await inner.handle_async_request(request)

    async with sandbox.connect(transport=httpx.MockTransport(noted)) as crm:
        collection = crm.contacts
        for id in IDS:
            for verb in (Verb.GET, Verb.UPDATE, Verb.DELETE):
                if not crm.can(Contact, verb):
                    continue
                before = len(paths)
                with pytest.raises(CRMError) as told:
                    match verb:
                        case Verb.GET:
                            await collection.get(id)
                        case Verb.UPDATE:
                            await collection.update(Contact(id=id, name="x"))
                        case _:
                            await collection.delete(id)
                if not isinstance(told.value, Invalid):
                    assert all(unquote(path).count("..") == 0 for path in paths[before:])
                assert not [path for path in paths[before:] if "oauth2" in path or "x=1" in path]


@pytest.mark.asyncio
@pytest.mark.parametrize("header", ["tok\r\nX-Evil: 1", "tok\n", "tok\x00", "tök", "tok\u2028"])
async def test_fault_107_no_header_breaks_out_of_its_line(server, header) -> None:
    with pytest.raises(CRMError) as told:
        async with client(server, credentials=header) as crm:
            await crm.contacts.get(1)
    assert header not in f"{told.value}{told.value!r}"
    assert server.requests == []


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "call",
    [
        read("/x\r\nX-Evil: 1"),
        read("/x\x00"),
        read("/half\ud800"),
        read("/" + "a" * 70_000),
        read("/x", ("text", "half\ud800")),
        Call("GET / HTTP/1.1\r\nX-Evil: 1", "/x"),
        Call("", "/x"),
        Call("POST", "/x", headers={"X\r\nX-Evil": "1"}),
        Call("POST", "/x", headers={"X Evil": "1"}),
        Call("POST", "/x", headers={"": "1"}),
        Call("POST", "/x", headers={"Ключ": "1"}),
        Call("POST", "/x", headers={"host": "evil.test"}),
        Call("POST", "/x", headers={"Content-Length": "3"}, body={"a": "GET /evil HTTP/1.1"}),
        Call("POST", "/x", headers={"Transfer-Encoding": "chunked"}, body={"a": 1}),
    ],
    ids=lambda call: f"{call.method[:10]!r} {call.path[:10]!r} {call.query} {dict(call.headers)}",
)
async def test_fault_107_what_would_break_a_request_in_two_is_refused_before_anything_is_sent(server, call) -> None:
    async with client(server) as crm:
        with pytest.raises((Invalid, Misconfigured)):
            await crm.call(call)
    assert server.requests == []


@pytest.mark.asyncio
async def test_fault_107_line_ends_in_a_query_stay_in_their_value(server) -> None:
    async with client(server) as crm:
        await crm.call(read("/x", ("text", "a\r\nX-Evil: 1\x00")))
    assert server.requests[0].url.raw_path == b"/api/x?text=a%0D%0AX-Evil%3A+1%00"


@pytest.mark.asyncio
@pytest.mark.parametrize("write", [str, html.escape, quote, quote_plus, lambda text: json.dumps(text)[1:-1]])
async def test_fault_111_a_secret_is_found_in_whatever_writing_it_is_echoed(server, write) -> None:
    token = 'to"k<e>n&/of + mine'
    server.respond = lambda request: httpx.Response(
        200, headers={"content-type": "text/html"}, stream=httpx.ByteStream(f"<p>{write(token)}</p>".encode())
    )
    async with client(server, credentials=token) as crm:
        with pytest.raises(CRMError) as told:
            await crm.contacts.get(1)
    assert write(token) not in f"{told.value}{vars(told.value)}"
    assert "<p>…</p>" in repr(vars(told.value))


@pytest.mark.e2e
@pytest.mark.asyncio
@pytest.mark.parametrize("status", [302, 307, 308])
async def test_fault_104_neither_the_key_nor_the_body_follows_a_redirect(status) -> None:
    async with RawServer().running() as evil:
        away = http("", status, headers={"Location": f"{evil.origin}/steal"})
        async with RawServer(always=away).running() as server:
            async with connect(TOY, base_url=server.origin, credentials="CANARY") as crm:
                for call in (crm.contacts.get(1), crm.contacts.create(Contact(name="Ivan"))):
                    with pytest.raises(CRMError):
                        await call
        assert evil.connections == 0


@pytest.mark.parametrize("account", ["evil.test", "acme.kommo.com.evil.test", "acme.kommo.com@evil.test", "127.0.0.1"])
def test_fault_105_an_account_is_within_its_vendors_domains(account) -> None:
    with pytest.raises(Misconfigured):
        connect("kommo", account=account, credentials="t")


# ----------------------------------------------------------------------------------------------------------- a canary

CANARY = "CANARY-7f3a"


class Everything(logging.Handler):
    """Whatever is logged by anybody, at any level, with its arguments."""

    def __init__(self) -> None:
        super().__init__(level=0)
        self.text = io.StringIO()

    def emit(self, record: logging.LogRecord) -> None:
        self.text.write(f"{record.getMessage()} {record.__dict__!r}\n")


@pytest.fixture
def logged() -> Iterator[Everything]:
    root, handler = logging.getLogger(), Everything()
    level, others = root.level, [logging.getLogger(name) for name in ("httpx", "httpcore", "crmclient")]
    levels = [each.level for each in others]
    root.addHandler(handler)
    for each in (root, *others):
        each.setLevel(1)
    try:
        yield handler
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        for each, before in zip(others, levels, strict=True):
            each.setLevel(before)


CREDENTIALS: dict[str, Any] = {
    "electrum": CANARY,
    "kommo": CANARY,
    "kommo, an app": OAuthApp(
        client_id="id", client_secret=CANARY, redirect_uri="https://my.test/back", code=f"{CANARY}-code"
    ),
    "amocrm": Login("me@my.test", hash=CANARY),
    "amocrm, a token": CANARY,
    "amoxml": Login("me@my.test", hash=CANARY),
    "amoxml, each call": LoginEachCall("me@my.test", hash=CANARY),
    "amoxml, a password": LoginEachCall("me@my.test", password=CANARY),
}
ANSWERS = {
    "a 401": httpx.Response(401, json={"title": CANARY}),
    "a 400 that echoes": httpx.Response(400, json={"detail": f"bad token {CANARY}", "title": CANARY}),
    "a page that echoes": httpx.Response(200, text=f"<html>{CANARY}</html>"),
    "a 500 that echoes": httpx.Response(500, text=CANARY),
    "a 403": httpx.Response(403, text=f"<html>{CANARY}"),
    "broken": httpx.ReadError(f"reset by {CANARY}"),
    "a redirect with it": httpx.Response(302, headers={"location": f"/login?token={CANARY}"}),
    "a cookie with it": httpx.Response(200, json={}, headers={"set-cookie": f"session_id={CANARY}"}),
}


def locals_of(error: BaseException) -> str:
    """A traceback as error reporters show it, with the locals of every frame of ours."""
    told = traceback.TracebackException.from_exception(error, capture_locals=True)
    each: traceback.TracebackException | None = told
    while each is not None:
        each.stack = traceback.StackSummary.from_list([frame for frame in each.stack if "crmclient" in frame.filename])
        each = each.__cause__ or each.__context__
    return "".join(told.format())


@pytest.mark.asyncio
@pytest.mark.parametrize("what", ANSWERS)
@pytest.mark.parametrize("who", CREDENTIALS)
async def test_fault_108_109_111_a_canary_among_the_credentials_is_seen_nowhere(who, what, logged) -> None:
    given = ANSWERS[what]

    def respond(request: httpx.Request) -> httpx.Response:
        if isinstance(given, Exception):
            raise given
        return httpx.Response(given.status_code, headers=given.headers, stream=httpx.ByteStream(given.content))

    happened: list[Any] = []
    name = who.partition(",")[0]
    crm: Client = connect(
        name,
        base_url="https://crm.test",
        credentials=CREDENTIALS[who],
        transport=httpx.MockTransport(respond),
        clock=FakeClock(),
        hooks=happened.append,
    )
    seen: list[str] = []
    async with crm:
        for call in (anext(aiter(crm.contacts.pages())), crm.contacts.create(Contact(name="Ivan"))):
            try:
                await call
            except CRMError as error:
                seen += [str(error), repr(error), repr(vars(error)), locals_of(error)]
                pickle.dumps(error)
                cause = error.__cause__
                while cause is not None:
                    seen += [str(cause), repr(vars(cause))]
                    cause = cause.__cause__
            except StopAsyncIteration:
                pass
        seen += [repr(crm), repr(crm.spent), repr(happened), logged.text.getvalue()]
    seen.append(repr(CREDENTIALS[who]) if who not in ("electrum", "kommo", "amocrm, a token") else "")
    showing = [text for text in seen if CANARY in text]
    assert not showing, showing[0][max(0, showing[0].index(CANARY) - 300) :][:400]


def test_fault_109_a_secret_is_not_pickled_and_does_not_show_itself() -> None:
    hidden = Secret(CANARY)
    with pytest.raises(TypeError):
        pickle.dumps(hidden)
    assert CANARY not in f"{hidden} {hidden!r} {[hidden]} {hidden!s:>40}"


@pytest.mark.asyncio
async def test_a_token_sent_to_another_origin_by_a_dialects_own_call_is_refused(server) -> None:
    async with await renewing(server) as crm:
        for path in ("//evil.test/x", "http://evil.test/x", "x", "@evil.test"):
            with pytest.raises(CRMError):
                await crm.call(read(path))
    assert {request.url.host for request in server.requests} <= {httpx.URL(BASE).host}


# ------------------------------------------------------------------------------------------------- forms and documents

NASTY = ["a&b=c", "x[add][0]=1", "</name><id>1</id>", "'\"<>&;", "a\tb", "Ё" * 50, "%00", "=cmd()", "]]>"]


@pytest.mark.asyncio
@pytest.mark.parametrize("name", dialect_names())
async def test_fault_112_113_what_a_person_types_comes_back_as_it_was_and_changes_nothing_else(
    crm_sandbox: Sandboxes, name
) -> None:
    sandbox = crm_sandbox(name, limits=False, contacts=1)
    before = sandbox.world.select("contact")
    async with sandbox.connect(rate=()) as crm:
        for text in NASTY:
            made = await crm.contacts.create(Contact(name=text))
            assert made.id is not None
            assert (await crm.contacts.get(made.id)).name == text
            if crm.can(Note, Verb.CREATE):
                note = await crm.notes.create(Note(text=text, target=made.ref))
                found = [each async for each in crm.notes.list(target=made.ref)]
                assert [each.text for each in found if each.id == note.id] == [text]
    assert sandbox.world.count("contact") == 1 + len(NASTY)
    assert sandbox.world.select("contact")[:1] == before


@pytest.mark.asyncio
@pytest.mark.parametrize("control", ["\x00", "\x08", "\x1b[31m", "\ud800"])
async def test_fault_113_what_no_document_can_hold_is_refused_before_it_is_sent(
    crm_sandbox: Sandboxes, control
) -> None:
    sandbox = crm_sandbox("amoxml")
    async with sandbox.connect() as crm:
        with pytest.raises(Invalid):
            await crm.contacts.create(Contact(name=f"a{control}b"))
    assert sandbox.world.count("contact") == 0
