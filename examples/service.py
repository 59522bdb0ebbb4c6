"""A small web service over one CRM account: one client for its whole life, and an HTTP status for each kind of error.

    CRMCLIENT_DIALECT=electrum CRMCLIENT_BASE_URL=http://127.0.0.1:8080/api/v2 CRMCLIENT_TOKEN=… \\
        uvicorn --factory service:app

``CRMCLIENT_ACCOUNT`` stands for ``CRMCLIENT_BASE_URL`` where the vendor has a public host.
"""

import os
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from crmclient import (
    AmbiguousWrite,
    Banned,
    Client,
    Contact,
    CRMError,
    Invalid,
    NotFound,
    PartlyDone,
    RateLimited,
    Rejected,
    TransportError,
    Unavailable,
    Unsupported,
    connect,
)
from crmclient.serial import to_tree

# From the narrow to the wide: the first that fits is taken. What is our own trouble with the CRM is a gateway's error.
STATUSES: tuple[tuple[type[CRMError], int], ...] = (
    (NotFound, 404),
    (Invalid, 422),
    (Rejected, 422),
    (Unsupported, 501),
    (RateLimited, 503),
    (Banned, 503),
    (Unavailable, 503),
    (TransportError, 503),
    (AmbiguousWrite, 504),
    (CRMError, 502),
)


def from_environment(environ: Mapping[str, str] = os.environ) -> Client:
    """A client as the environment says. Raises KeyError or Misconfigured, which name what is missing."""
    return connect(
        environ["CRMCLIENT_DIALECT"],
        environ.get("CRMCLIENT_ACCOUNT"),
        base_url=environ.get("CRMCLIENT_BASE_URL"),
        credentials=environ["CRMCLIENT_TOKEN"],
    )


def app(client: Callable[[], Client] = from_environment) -> Starlette:
    """The service. ``client`` is called once, when it starts."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[Mapping[str, Client]]:
        # One client for all requests: they share its connections, its pace and its token.
        async with client() as crm:
            yield {"crm": crm}

    return Starlette(
        lifespan=lifespan,
        routes=[
            Route("/health", health),
            Route("/contacts", create_contact, methods=["POST"]),
            Route("/contacts/{id}", read_contact),
        ],
        exception_handlers={CRMError: told},
    )


def crm_of(request: Request) -> Client:
    return request.state.crm


async def health(request: Request) -> Response:
    """Alive, and what it has cost so far; the CRM is not asked."""
    crm = crm_of(request)
    return JSONResponse({"dialect": crm.dialect.name, "at": crm.base_url, "spent": to_tree(crm.spent)})


async def read_contact(request: Request) -> Response:
    contact = await crm_of(request).contacts.get(request.path_params["id"])
    return JSONResponse(to_tree(contact))


# What may be set from outside: not the id, nor who made it and when.
WRITABLE = frozenset({"name", "first_name", "last_name", "position", "phones", "emails", "tags"})


async def create_contact(request: Request) -> Response:
    try:
        body: Any = await request.json()
    except ValueError:
        return JSONResponse({"error": "Invalid", "message": "the body is no JSON"}, 400)
    if not isinstance(body, dict):
        return JSONResponse({"error": "Invalid", "message": "the body is no object"}, 422)
    given: dict[str, Any] = body  # pyright: ignore[reportUnknownVariableType]
    unknown = sorted(set(given) - WRITABLE)
    if unknown:
        message = f"unknown: {', '.join(unknown)}; known are {', '.join(sorted(WRITABLE))}"
        return JSONResponse({"error": "Invalid", "message": message}, 422)
    wrong = [
        name for name, content in given.items() if not _is_text(content, many=name in ("phones", "emails", "tags"))
    ]
    if wrong:
        message = f"{', '.join(wrong)}: a text, or for phones, emails and tags a list of texts"
        return JSONResponse({"error": "Invalid", "message": message}, 422)
    try:
        contact = await crm_of(request).contacts.create(Contact(**given))
    except PartlyDone as done:
        # The row is there: answering with an error alone would have it made again.
        issues = [to_tree(issue) for issue in done.issues]
        return JSONResponse({**to_tree(done.entity), "not_done": issues}, 201)
    return JSONResponse(to_tree(contact), 201, {"Location": f"/contacts/{contact.id}"})


def _is_text(content: object, *, many: bool) -> bool:
    if many and isinstance(content, list):
        return all(isinstance(each, str) for each in content)  # pyright: ignore[reportUnknownVariableType]
    return isinstance(content, str)


async def told(_: Request, error: Exception) -> Response:
    """A CRM's error as this service's own, with the rows' issues; nothing of the credentials is ever in it."""
    assert isinstance(error, CRMError)  # noqa: S101  it is registered for these alone
    status = next(status for kind, status in STATUSES if isinstance(error, kind))
    body: dict[str, Any] = {"error": type(error).__name__, "message": error.message}
    body |= {name: said for name in ("code", "detail") if (said := getattr(error, name)) is not None}
    if isinstance(error, Invalid | Rejected):
        body["issues"] = [to_tree(issue) for issue in error.issues]
    after = getattr(error, "after", None)
    return JSONResponse(body, status, {"Retry-After": str(int(after) + 1)} if after else None)
