"""A toy vendor for tests of the session: a dialect of one kind of row, and a server that answers what a test says."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeAlias

import httpx
from attrs import define, evolve, field, frozen

from crmclient import Banned, Contact, CRMError, Rate, Secret, Unreadable, Verb, connect
from crmclient.auth import Bearer
from crmclient.client import Client
from crmclient.clock import FakeClock
from crmclient.dialect import (
    ALL,
    Call,
    Context,
    Dialect,
    Flow,
    Getting,
    Listing,
    Made,
    Reply,
    Resource,
    Token,
    Unparsed,
    Writing,
    at_path,
    by_status,
    mapping,
    read,
)
from crmclient.formats import Json
from crmclient.paging import PageNumber
from crmclient.tokens import MemoryTokens

BASE = "http://127.0.0.1:9/api"
ORIGIN = "http://127.0.0.1:9"

# ------------------------------------------------------------------------------------------------------ a toy dialect


def judge(call: Call, reply: Reply) -> CRMError | None:
    if reply.status == 403 and isinstance(reply.body, Unparsed):
        return Banned("blocked", status=403)
    return by_status(call, reply)


def decode(row: Any, context: Context) -> Contact:
    if not isinstance(row.get("name"), str):
        raise Unreadable(f"contact {row.get('id')} has no name", raw=row)
    return Contact(id=row["id"], name=row["name"], raw=row)


def made(reply: Reply, rows: Any) -> tuple[Made[Any], ...]:
    id = mapping(reply.body).get("id")
    if id is None:
        raise Unreadable("the answer to a create holds no id")
    return (Made(id=id),)


def rows(reply: Reply) -> list[Any]:
    return [] if reply.body is None else mapping(reply.body)["rows"]


def account() -> Flow[str]:
    reply: Reply = yield read("/account")
    return str(mapping(reply.body)["name"])


CONTACTS = Resource(
    entity=Contact,
    vendor="contacts",
    decode=decode,
    encode=lambda contact, fields, context: {"name": contact.name},
    fields={"name": ALL},
    routes={
        Verb.LIST: Listing(call=read("/contacts"), rows=rows),
        Verb.GET: Getting(
            call=lambda id, target: read(at_path("/contacts/{id}", id=id)), row=lambda reply: mapping(reply.body)
        ),
        Verb.CREATE: Writing(method="POST", path=lambda row: "/contacts", unwrap=made),
    },
)

BY_LINK = PageNumber(size=2, next_link=lambda reply: mapping(reply.body).get("next"))
BY_TOTAL = PageNumber(size=2, pages=lambda reply: mapping(reply.body).get("total"))
FAST = Rate(1000, 1)
SEVEN = Rate(7, 1)

TOY = Dialect(
    name="toy",
    title="Toy",
    host=None,
    format=Json(),
    paging=BY_LINK,
    rate=(FAST,),
    auth=(Bearer(),),
    judge=judge,
    settings={"account": account},
    resources={Contact: CONTACTS},
)


@frozen
class Login:
    """Credentials of a scheme that can renew."""

    user: str = "u"


@frozen(kw_only=True)
class Renewing:
    credentials: type[Any] = Login

    def sign(self, call: Call, token: Token) -> Call:
        return evolve(call, headers={**call.headers, "X-Token": token.access.reveal()})

    def at_hand(self, credentials: Login) -> Token | None:
        return None

    def obtain(self, credentials: Login) -> Flow[Token]:
        reply: Reply = yield Call("POST", "/login", body={"user": credentials.user}, signed=False)
        return Token(access=Secret(mapping(reply.body)["token"]), refresh=Secret("r"))

    def renew(self, credentials: Login, token: Token) -> Flow[Token]:
        return self.obtain(credentials)


# -------------------------------------------------------------------------------------------------------- a toy server

Answer: TypeAlias = httpx.Response | Exception


def answer(status: int = 200, body: Any = None, *, headers: Mapping[str, str] | None = None) -> httpx.Response:
    """An answer as it comes off a wire: a stream that nobody has read yet."""
    content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    kind = {} if isinstance(body, bytes) or body is None else {"content-type": "application/json"}
    return httpx.Response(status, headers={**kind, **(headers or {})}, stream=httpx.ByteStream(content))


def page(ids: Iterable[int], following: str | None = None, **more: Any) -> httpx.Response:
    return answer(body={"rows": [{"id": id, "name": f"n{id}"} for id in ids], "next": following, **more})


@define
class Server:
    """Answers with what a test says, after ``latency`` seconds, and remembers who asked what and when."""

    clock: FakeClock
    respond: Callable[[httpx.Request], Answer | Awaitable[Answer]] | None = None
    script: list[Answer] = field(factory=list)
    latency: float = 0.0
    requests: list[httpx.Request] = field(factory=list)
    times: list[float] = field(factory=list)
    ended: list[httpx.Request] = field(factory=list)
    within: int = 0
    most_within: int = 0

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        self.times.append(self.clock.monotonic())
        self.within += 1
        self.most_within = max(self.most_within, self.within)
        try:
            if self.latency:
                await self.clock.sleep(self.latency)
            given = self.script.pop(0) if self.script else None
            if given is None and self.respond is not None:
                given = self.respond(request)
                if not isinstance(given, httpx.Response | Exception):
                    given = await given
            if given is None:
                given = answer(body={"id": 1, "name": "n1"})
            if isinstance(given, Exception):
                raise given
            self.ended.append(request)
            return given
        finally:
            self.within -= 1

    @property
    def paths(self) -> list[str]:
        return [f"{request.method} {request.url.path.removeprefix('/api')}" for request in self.requests]

    def listing(self, pages: int, *, linked: bool = True, size: int = 2) -> None:
        """Serve so many pages, told by a next link or by a total; past the end comes an empty one."""

        def respond(request: httpx.Request) -> httpx.Response:
            n = int(request.url.params["page"])
            if n > pages:
                return answer(204)
            following = f"{BASE}/contacts?page={n + 1}" if linked and n < pages else None
            return page(range((n - 1) * size, n * size), following, **({} if linked else {"total": pages}))

        self.respond = respond


def client(server: Server, dialect: Dialect = TOY, **given: Any) -> Client:
    settings = {"credentials": "tok", "base_url": BASE, "clock": server.clock, "transport": httpx.MockTransport(server)}
    return connect(dialect, **(settings | given))


async def renewing(server: Server, **given: Any) -> Client:
    """A client whose token in the store is called old."""
    tokens = MemoryTokens()
    await tokens.save("toy-127.0.0.1:9", Token(access=Secret("old"), refresh=Secret("r")))
    return client(server, evolve(TOY, auth=(Renewing(),)), credentials=Login(), tokens=tokens, **given)


def others() -> set[asyncio.Task[Any]]:
    return {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}


async def settle() -> None:
    for _ in range(50):
        await asyncio.sleep(0)
