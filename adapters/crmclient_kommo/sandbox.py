"""Kommo v4 as the reference tells it, never as our codec expects it: what a client has to survive is done here.

Sections (§) are those of ``reference/kommo-v4.md``; [EMU] marks what no source says and this server had to decide.
"""

import asyncio
import base64
import json
import random
import re
import secrets
import uuid
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeAlias, cast
from urllib.parse import quote_plus, urlsplit
from zoneinfo import ZoneInfo

from attrs import Factory, define, frozen
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from crmclient.clock import Clock
from crmclient.sandbox.server import LAGS, Account, App, Face, SlidingLimit, Switch, Verdict
from crmclient.sandbox.world import LOST, WON, Condition, Contains, Range, Row, World

Json: TypeAlias = Any

_ON: Final = (True, False)
SWITCHES: Final[Mapping[str, Switch]] = {
    "profile": Switch("kommo", ("kommo", "amo"), "§2.2, §1.8: 429 and 401 as Kommo prints them, or as amocrm.ru sends"),
    "retry-after": Switch("300", ("300", "1"), "§2.2: the seconds in the body of a 429; Kommo's page prints 300"),
    "ban-after": Switch("10", ("10", "3", "never"), "§2.2: 'repeated violation' bans; how many that is nobody says"),
    "token-calls-count": Switch(True, _ON, "§2.2: whether token calls count towards the seven is not documented"),
    "strict-rotation": Switch(False, _ON, "§1.3: amocrm.ru ends a refresh token at once, Kommo when its heir is used"),
    "refresh-kills-access": Switch(False, _ON, "§1.3, §9: whether a refresh ends the old access token is unknown"),
    "accept-seed-forms": Switch(False, _ON, "§5, §10: one object for an array, links at the top of a lead"),
    "bare-field-create": Switch(True, _ON, "§4.7: Kommo prints a bare model for one created custom field"),
    "shuffle-answers": Switch(False, _ON, "§5: no source promises the order of a batch's answer"),
    "api-filter": Switch(True, _ON, "§3.5: entity filters are an option; without it presumably ignored with 200"),
    "ignore-filters": Switch(False, _ON, "§3.5: a filter that is not heeded is a 200 with every row; here none is"),
    "index-lag": Switch("none", LAGS, "§3.5: how soon query and filters find a new row is not said"),
    "strictly-after": Switch(True, _ON, "§3.5: filter[updated_at]=n is 'after' n; whether n belongs is not said"),
    "next-on-last-page": Switch(False, _ON, "§3.1: some methods give a next link on every page"),
    "empty-links-204": Switch(True, _ON, "§3.1, §4.13: an empty list is 204; for links nobody looked"),
    "json-405": Switch(False, _ON, "§2.4: probes saw an empty 405, Kommo's page prints a JSON body"),
    "note-created-at": Switch(True, _ON, "§4.5: the SDK sends created_at with notes, the page does not list it"),
    "field-words": Switch(
        True, _ON, "§4.8: amocrm-api sends field_name with values, and only enum_code is ever refused"
    ),
    "minor-units": Switch(False, _ON, "§4.1: SDK 1.16 sends a float price and reads price_with_minor_units"),
    "unchecked-omitted": Switch(False, _ON, "§4.8: whether an unchecked box is false or left out is unverified"),
    "empty-fields-list": Switch(False, _ON, "§8.19: no field values are null on amocrm.ru and [] on Kommo's pages"),
}

# --- who may call (§1) -----------------------------------------------------------------------------------------------


@frozen
class Integration:
    """What the integration's card in the account shows."""

    client_id: str
    client_secret: str
    redirect_uri: str


@define
class _Leave:
    """A code, an access or a refresh token: whose it is, until when, and whether it was ended before its time."""

    client_id: str
    user: int
    until: float
    ended: bool = False
    heir_of: str | None = None
    access: str = ""


class BadGrant(Exception):
    """The token endpoint's refusal: a hint, and a status that need not be RFC 6749's. §1.4"""

    def __init__(self, hint: str, status: int = 400) -> None:
        super().__init__(hint)
        self.hint = hint
        self.status = status


@define
class Grants:
    """The account's integrations, the leave each was given, and what a test may do to it."""

    clock: Clock
    account_id: int
    user: int
    strict_rotation: bool = False
    refresh_kills_access: bool = False
    # §1.3: a code lives 20 minutes, an access token 24 hours, a refresh token three months.
    code_seconds: float = 20 * 60
    access_seconds: float = 24 * 3600
    refresh_seconds: float = 90 * 86400
    refreshes: int = 0
    refused_refreshes: int = 0
    integrations: dict[str, Integration] = Factory(dict[str, Integration])
    _codes: dict[str, _Leave] = Factory(dict[str, _Leave])
    _accesses: dict[str, _Leave] = Factory(dict[str, _Leave])
    _renewals: dict[str, _Leave] = Factory(dict[str, _Leave])

    def add_integration(self) -> Integration:
        card = Integration(str(uuid.uuid4()), secrets.token_urlsafe(48), "https://integration.example/oauth")
        self.integrations[card.client_id] = card
        return card

    @property
    def integration(self) -> Integration:
        """The first one, made when it is first asked for."""
        return next(iter(self.integrations.values()), None) or self.add_integration()

    def mint_code(self, integration: Integration | None = None, *, user: int | None = None) -> str:
        """A one-time authorization code, as the consent page would send it to the redirect URI."""
        code = "def502" + secrets.token_hex(220)
        self._codes[code] = self._leave(integration, user, self.code_seconds)
        return code

    def mint_long_lived(
        self, integration: Integration | None = None, *, user: int | None = None, seconds: float = 5 * 365 * 86400
    ) -> str:
        """A token of a private integration: no refresh, from a day to five years. §1.6"""
        leave = self._leave(integration, user, seconds)
        token = self._signed(leave, grant_type="")
        self._accesses[token] = leave
        return token

    def expire_access(self, token: str) -> None:
        self._accesses[token].until = self._now()

    def revoke_access(self, token: str) -> None:
        self._accesses[token].ended = True

    def revoke_refresh(self, token: str) -> None:
        self._renewals[token].ended = True

    def disable(self, integration: Integration | None = None) -> None:
        """Disabling an integration ends all its tokens. §1.6"""
        gone = (integration or self.integration).client_id
        for leave in (*self._codes.values(), *self._accesses.values(), *self._renewals.values()):
            leave.ended = leave.ended or leave.client_id == gone

    def bearer(self, token: str) -> tuple[str, int] | None:
        """The integration and the user a token speaks for, or None if it does not."""
        leave = self._accesses.get(token)
        if leave is None or leave.ended or leave.until <= self._now():
            return None
        return leave.client_id, leave.user

    def knows_refresh(self, token: str) -> bool:
        leave = self._renewals.get(token)
        return leave is not None and not leave.ended and leave.until > self._now()

    def integration_of(self, token: str) -> str:
        """Whose calls these are for the limit's sake, even when the token is dead."""
        leave = self._accesses.get(token)
        return leave.client_id if leave else ""

    def exchange(self, asked: Mapping[str, Json]) -> Row:
        """Answer POST /oauth2/access_token or raise ``BadGrant``."""
        card = self.integrations.get(str(asked.get("client_id")))
        if card is None:
            raise BadGrant("Check the `client_id` parameter")
        if asked.get("client_secret") != card.client_secret:
            raise BadGrant("Check the `client_secret` parameter")
        # §1.1: redirect_uri is due in both grants and must be the registered one.
        if asked.get("redirect_uri") != card.redirect_uri:
            raise BadGrant("Redirect URI is not associated with client")
        match asked.get("grant_type"):
            case "authorization_code":
                return self._first_pair(card, str(asked.get("code")))
            case "refresh_token":
                return self._next_pair(card, str(asked.get("refresh_token")))
            case _:
                raise BadGrant("Check the `grant_type` parameter")  # [EMU]

    def _first_pair(self, card: Integration, code: str) -> Row:
        leave = self._codes.get(code)
        if leave is None or leave.client_id != card.client_id:
            raise BadGrant("Cannot decrypt the authorization code")
        if leave.until <= self._now():
            raise BadGrant("Authorization code has expired")
        if leave.ended:
            raise BadGrant("Authorization code has been revoked")
        leave.ended = True
        return self._pair(leave, None)

    def _next_pair(self, card: Integration, token: str) -> Row:
        leave = self._renewals.get(token)
        if leave is None or leave.client_id != card.client_id or leave.until <= self._now() or leave.ended:
            # Only the reused and the revoked are attested; garbage and the expired are taken for the same. [EMU]
            self.refused_refreshes += 1
            raise BadGrant("Token has been revoked", 401)
        self.refreshes += 1
        if self.refresh_kills_access:
            self._accesses[leave.access].ended = True
        leave.ended = self.strict_rotation
        # §1.3, Kommo's grace: the old one works until the new one is first used, and that is now.
        ancestor = leave.heir_of
        while ancestor is not None:
            self._renewals[ancestor].ended = True
            ancestor = self._renewals[ancestor].heir_of
        return self._pair(leave, token)

    def _pair(self, given: _Leave, heir_of: str | None) -> Row:
        card = self.integrations[given.client_id]
        access = self._leave(card, given.user, self.access_seconds)
        token = self._signed(access, grant_type="authorization_code")
        self._accesses[token] = access
        refresh = "def502" + secrets.token_hex(480 + secrets.randbelow(20))
        self._renewals[refresh] = self._leave(card, given.user, self.refresh_seconds)
        self._renewals[refresh].heir_of = heir_of
        self._renewals[refresh].access = token
        return {
            "token_type": "Bearer",
            "expires_in": int(self.access_seconds),
            "server_time": int(self._now()),
            "access_token": token,
            "refresh_token": refresh,
        }

    def _leave(self, card: Integration | None, user: int | None, seconds: float) -> _Leave:
        return _Leave((card or self.integration).client_id, self.user if user is None else user, self._now() + seconds)

    def _signed(self, leave: _Leave, *, grant_type: str) -> str:
        """A JWT whose claims a client may read (§1.5). Nobody can check its signature: the key is not published."""
        now = int(self._now())
        jti = secrets.token_hex(40)
        claims = {
            "aud": leave.client_id,
            "jti": jti,
            "iat": now,
            "nbf": now,
            "exp": int(leave.until),
            "sub": str(leave.user),
            "grant_type": grant_type,
            "account_id": self.account_id,
            "base_domain": "kommo.com",
            "version": 2,
            "scopes": ["crm", "files", "files_delete", "notifications", "push_notifications"],
            "hash_uuid": str(uuid.uuid4()),
            "api_domain": "api-c.kommo.com",
        }
        parts = [{"typ": "JWT", "alg": "RS256", "jti": jti}, claims]
        sealed = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts]
        return ".".join([*sealed, secrets.token_urlsafe(256)])

    def _now(self) -> float:
        return self.clock.now().timestamp()


# --- what the server says when it says no (§2.4, §5) -----------------------------------------------------------------

# Not http.HTTPStatus: its word for 422 changed between Python versions.
_TITLES: Final = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    422: "Unprocessable Entity",
    429: "Too Many Requests",
}
_DETAILS: Final = {
    "NotSupportedChoice": "The value you selected is not a valid choice.",
    "FieldNotExpected": "This field was not expected.",
    "FieldMissing": "This field is missing.",
}
_GATEWAY: Final = (
    "<html>\r\n<head><title>{0}</title></head>\r\n<body>\r\n"
    "<center><h1>{0}</h1></center>\r\n<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"
)


class Refused(Exception):
    """The call is over and this is its answer."""

    def __init__(self, answer: Response) -> None:
        super().__init__(answer.status_code)
        self.answer = answer


def _hal(body: Json, status: int = 200) -> Response:
    return JSONResponse(body, status, media_type="application/hal+json")


def _problem(status: int, detail: str, **more: Json) -> Response:
    body = {"title": _TITLES[status], "type": f"https://httpstatus.es/{status}", "status": status, "detail": detail}
    return JSONResponse(body | more, status, media_type="application/problem+json")


def _gateway(status: int) -> Response:
    """The gateway speaks: HTML, and no X-Request-Id. §2.2"""
    return HTMLResponse(_GATEWAY.format(f"{status} {_TITLES[status]}"), status)


def _nothing() -> Response:
    return Response(status_code=204)


def _invalid(entries: Sequence[Row]) -> Response:
    body = {"validation-errors": entries, "title": "Bad Request", "type": "https://httpstatus.es/400", "status": 400}
    return JSONResponse(body | {"detail": "Request validation failed"}, 400, media_type="application/problem+json")


@frozen
class Complaints:
    """What is wrong with one row; ``at`` gives the same list with a longer path."""

    found: list[Row] = Factory(list[Row])
    prefix: str = ""

    def at(self, step: str | int) -> "Complaints":
        return Complaints(self.found, f"{self.prefix}.{step}" if self.prefix else str(step))

    def say(self, code: str) -> None:
        self.found.append({"code": code, "path": self.prefix, "detail": _DETAILS[code]})

    def mistyped(self, type: str) -> None:
        self.found.append(
            {"code": "InvalidType", "path": self.prefix, "detail": f"This value should be of type {type}."}
        )

    def unexpected(self, row: Mapping[str, Json], allowed: Iterable[str]) -> None:
        known = set(allowed)
        for key in row:
            if key not in known:
                self.at(key).say("FieldNotExpected")


# PHP's and SQLite's largest integer; what is beyond is no integer to either.
_BIGGEST: Final = 2**63 - 1
# The last second of the year 9999.
_LATEST: Final = 253402300799


def _is(value: Json, type: str) -> bool:
    match type:
        case "int":
            return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _BIGGEST
        case "float":
            return isinstance(value, (int, float)) and not isinstance(value, bool)
        case "bool":
            return isinstance(value, bool)
        case "string":
            return isinstance(value, str)
        case "array":
            return isinstance(value, (list, dict))
        case _:
            raise ValueError(type)


def _no_constant(name: str) -> Json:
    raise ValueError(f"{name} is not JSON")


def _read(body: bytes) -> Json:
    """The body as PHP reads JSON: NaN, a lone surrogate and a bottomless nest are none.

    What an unreadable body gets is not documented; here it is as good as an empty one. [EMU]
    """
    try:
        tree = json.loads(body, parse_constant=_no_constant)
        if b"\\u" in body:
            json.dumps(tree, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return tree


# --- the query string (§3) -------------------------------------------------------------------------------------------


def _tree(pairs: Iterable[tuple[str, str]]) -> Row:
    """PHP's brackets: ``filter[id][]=1&filter[at][from]=2`` -> {"filter": {"id": {"0": "1"}, "at": {"from": "2"}}}."""
    root: Row = {}
    for key, value in pairs:
        steps = [key.partition("[")[0], *re.findall(r"\[([^\[\]]*)\]", key)]
        node = root
        for step in steps[:-1]:
            inner = node.get(step or str(len(node)))
            if not isinstance(inner, dict):
                inner = node[step or str(len(node))] = {}
            node = cast(Row, inner)
        node[steps[-1] or str(len(node))] = value
    return root


def _many(node: Json) -> list[str]:
    """``filter[id]=5`` and ``filter[id][]=5`` are the same (§3.5)."""
    if isinstance(node, dict):
        return [value for value in cast(Row, node).values() if isinstance(value, str)]
    return [node] if isinstance(node, str) else []


def _number(text: Json) -> int:
    """As PHP casts: digits in front, else 0. [EMU]"""
    found = re.match(r"\s*-?[0-9]{1,19}", text) if isinstance(text, str) else None
    return max(-_BIGGEST, min(_BIGGEST, int(found[0]))) if found else 0


def _span(node: Json) -> Range:
    """``[from]`` and ``[to]``, either of which may be left out."""
    ends = cast(Row, node) if isinstance(node, dict) else {}
    return Range(*(_number(ends[end]) if end in ends else None for end in ("from", "to")))


# --- the entities, as one table (§3.3, §3.5, §3.6, §4) ---------------------------------------------------------------


@frozen
class Column:
    """A key a client may write: the world's key for it, and what is asked of the value."""

    key: str
    type: str
    null: bool = False
    among: str | None = None
    robot: bool = False
    required: bool = False


_WHO: Final = {
    "responsible_user_id": Column("owner", "int", among="user"),
    "created_by": Column("created_by", "int", among="user", robot=True),
    "updated_by": Column("updated_by", "int", among="user", robot=True),
    "created_at": Column("created_at", "int"),
    "updated_at": Column("updated_at", "int"),
}


@frozen
class Spec:
    """What differs between leads, contacts, companies and tasks."""

    kind: str
    columns: Mapping[str, Column]
    orders: Mapping[str, str]
    many: Mapping[str, str]
    spans: Mapping[str, str]
    # Keys of _embedded that may be written, by verb; a card has tags and custom fields, a task has neither.
    embedded: Mapping[str, tuple[str, ...]] = Factory(dict[str, tuple[str, ...]])
    others: tuple[str, ...] = ()
    updated: tuple[str, ...] = ("id", "updated_at")
    paid_filter: bool = True


_CARD_KEYS: Final = ("custom_fields_values", "tags_to_add", "_embedded", "request_id")
_CARD_MANY: Final = {
    "id": "id",
    "name": "name",
    "created_by": "created_by",
    "updated_by": "updated_by",
    "responsible_user_id": "owner",
}
_CARD_SPANS: Final = {"created_at": "created_at", "updated_at": "updated_at"}
_TAGS_ONLY: Final = {"POST": ("tags",), "PATCH": ("tags",)}

SPECS: Final[Mapping[str, Spec]] = {
    "leads": Spec(
        kind="deal",
        columns={
            "name": Column("name", "string", null=True),
            "price": Column("price", "int"),
            "loss_reason_id": Column("loss_reason_id", "int", null=True, among="loss_reason"),
            "closed_at": Column("closed_at", "int", null=True),
            **_WHO,
        },
        # What the live probe found to work, not what the page lists (§3.6); so for the others.
        orders={"id": "id", "updated_at": "updated_at", "created_at": "created_at"},
        many={**_CARD_MANY, "pipeline_id": "pipeline_id"},
        spans={**_CARD_SPANS, "price": "price", "closed_at": "closed_at"},
        embedded={"POST": ("tags", "contacts", "companies", "source"), "PATCH": ("tags",)},
        others=(*_CARD_KEYS, "pipeline_id", "status_id", "visitor_uid"),
    ),
    "contacts": Spec(
        kind="contact",
        columns={
            "name": Column("name", "string"),
            "first_name": Column("first_name", "string"),
            "last_name": Column("last_name", "string"),
            **_WHO,
        },
        orders={"id": "id", "updated_at": "updated_at", "name": "name"},
        many=_CARD_MANY,
        spans=_CARD_SPANS,
        embedded=_TAGS_ONLY,
        others=_CARD_KEYS,
        updated=("id", "name", "updated_at"),
    ),
    "companies": Spec(
        kind="company",
        columns={"name": Column("name", "string"), **_WHO},
        orders={"id": "id", "updated_at": "updated_at", "name": "name"},
        many=_CARD_MANY,
        spans=_CARD_SPANS,
        embedded=_TAGS_ONLY,
        others=_CARD_KEYS,
        updated=("id", "name", "updated_at"),
    ),
    "tasks": Spec(
        kind="task",
        columns={
            "text": Column("text", "string", required=True),
            "complete_till": Column("due", "int", required=True),
            "task_type_id": Column("type_id", "int", among="task_type"),
            "duration": Column("duration", "int"),
            "is_completed": Column("done", "bool"),
            **_WHO,
        },
        orders={"id": "id", "created_at": "created_at", "complete_till": "due"},
        many={
            "id": "id",
            "responsible_user_id": "owner",
            "task_type": "type_id",
            "task_type_id": "type_id",
            "created_by": "created_by",
        },
        spans={},
        others=("entity_id", "entity_type", "result", "request_id"),
        updated=("id", "updated_at", "request_id"),
        paid_filter=False,
    ),
}
CARDS: Final = ("leads", "contacts", "companies")
_TYPE_OF: Final = {spec.kind: type for type, spec in SPECS.items()}
_NOTE_ORDERS: Final = {"id": "id", "updated_at": "updated_at"}

# §4.13; the side of the lead has to be called from the lead.
_PAIRS: Final = {"leads": ("contacts", "companies"), "contacts": ("companies",), "companies": ("contacts", "leads")}

# Custom fields that are parts of the card in the world. §4.2
_PARTS: Final = {
    "PHONE": "phones",
    "EMAIL": "emails",
    "IM": "messengers",
    "WEB": "urls",
    "ADDRESS": "addresses",
    "POSITION": "position",
}
_LABELS: Final = {
    "WORK": "work",
    "WORKDD": "workdd",
    "MOB": "mobile",
    "FAX": "fax",
    "HOME": "home",
    "PRIV": "private",
    "OTHER": "other",
}
_CODES: Final = {label: code for code, label in _LABELS.items()}

_CHOICES: Final = ("select", "radiobutton", "multiselect", "category")
_ADDRESS_LINES: Final = ("address_line_1", "address_line_2", "city", "state", "zip", "country")
# §4.7: what can exist on leads, contacts and companies.
_ANYWHERE: Final = (
    *("text", "numeric", "checkbox", "select", "multiselect", "date", "date_time", "url", "textarea", "radiobutton"),
    *("streetaddress", "smart_address", "birthday", "legal_entity", "monetary", "file"),
)
_FIELD_TYPES: Final = {
    "leads": (*_ANYWHERE, "tracking_data", "chained_list"),
    "contacts": (*_ANYWHERE, "multitext"),
    "companies": (*_ANYWHERE, "multitext"),
}

# §4.5: what may be written, and of which type each parameter is; a star means it is due.
_CALL: Final = {
    "uniq": "string*",
    "duration": "int*",
    "source": "string*",
    "link": "string*",
    "phone": "string*",
    "call_responsible": "any",
    "call_result": "string",
    "call_status": "int",
}
NOTE_TYPES: Final[Mapping[str, Mapping[str, str]]] = {
    "common": {"text": "string*"},
    "call_in": _CALL,
    "call_out": _CALL,
    "service_message": {"service": "string*", "text": "string*"},
    "extended_service_message": {"service": "string*", "text": "string*"},
    "message_cashier": {"status": "string*", "text": "string*"},
    "geolocation": {"text": "string*", "address": "string*", "longitude": "string*", "latitude": "string*"},
    "sms_in": {"text": "string*", "phone": "string*"},
    "sms_out": {"text": "string*", "phone": "string*"},
    "attachment": {"file_uuid": "string*", "version_uuid": "string", "file_name": "string*"},
}
_CASHIER: Final = ("created", "shown", "canceled")
# §4.9
_COLORS: Final = frozenset(
    re.findall(
        "#[0-9a-f]{6}",
        "#fffeb2 #fffd7f #fff000 #ffeab2 #ffdc7f #ffce5a #ffdbdb #ffc8c8 #ff8f92 #d6eaff #c1e0ff"
        "#98cbff #ebffb1 #deff81 #87f2c0 #f9deff #f3beff #ccc8f9 #eb93ff #f2f3f4 #e6e8ea",
    )
)
_RIGHTS: Final = ("view", "edit", "add", "delete", "export")


# --- who is told of what was done (§4.14, §7) ------------------------------------------------------------------------

Deliver: TypeAlias = Callable[[str, Mapping[str, str], bytes], Awaitable["int | None"]]
"""Sends a hook and says how it was answered; None is as good as 200. ``Account.issued["deliver"]`` is the one used."""

# §7.1, amocrm.ru's 31 and Kommo's add_message.
HOOKS: Final = frozenset(
    f"{action}_{kind}"
    for action, kinds in (
        ("responsible", "lead contact company customer task"),
        ("restore", "lead contact company"),
        ("add", "lead contact company customer talk task chat_template_review message"),
        ("update", "lead contact company customer talk task"),
        ("delete", "lead contact company customer task"),
        ("status", "lead"),
        ("note", "lead contact company customer"),
    )
    for kind in kinds.split()
)
_EVENT_OF: Final = {"deal": "lead", "contact": "contact", "company": "company", "task": "task"}
_ELEMENTS: Final = {"contact": 1, "deal": 2, "company": 3}
# §4.5: hooks know notes by number; what a number is not known for is a system note. [EMU]
_NOTE_NUMBERS: Final = {"common": 4, "attachment": 5, "call_in": 10, "call_out": 11, "sms_in": 102, "sms_out": 103}
_NOTE_EVENTS: Final = {
    "common": "common_note_added",
    "call_in": "incoming_call",
    "call_out": "outgoing_call",
    "sms_in": "incoming_sms",
    "sms_out": "outgoing_sms",
    "attachment": "attachment_note_added",
    "geolocation": "geo_note_added",
    "message_cashier": "message_to_cashier_note_added",
}
# §4.14: what an event tells of a change, by the world's key.
_CHANGES: Final[Mapping[str, tuple[str, Callable[[Row], Row]]]] = {
    "name": ("name_field_changed", lambda row: {"name_field_value": {"name": row["name"]}}),
    "price": ("sale_field_changed", lambda row: {"sale_field_value": {"sale": row["price"]}}),
    "stage_id": (
        "lead_status_changed",
        lambda row: {"lead_status": {"id": row["stage_id"], "pipeline_id": row["pipeline_id"]}},
    ),
    "owner": ("entity_responsible_changed", lambda row: {"responsible_user": {"id": row["owner"]}}),
    "text": ("task_text_changed", lambda row: {"task": {"text": row["text"]}}),
    "due": ("task_deadline_changed", lambda row: {"task_deadline": {"timestamp": row["due"]}}),
    "type_id": ("task_type_changed", lambda row: {"task_type": {"id": row["type_id"]}}),
}
# The log keeps this many at least.
_KEPT_EVENTS: Final = 10_000
_BASE32: Final = "0123456789abcdefghjkmnpqrstvwxyz"


def _ulid(at: int, number: int) -> str:
    """§4.14: 26 lower-case characters, the time in front."""
    value = (at << 80) + number
    return "".join(_BASE32[value >> 5 * place & 31] for place in reversed(range(26)))


def _form(name: str, part: Json) -> Iterable[tuple[str, str]]:
    """§7.2, PHP's http_build_query: nulls are left out, all values are strings."""
    if isinstance(part, dict):
        for key, each in cast(Row, part).items():
            yield from _form(f"{name}[{key}]", each)
    elif isinstance(part, list):
        for place, each in enumerate(cast(list[Json], part)):
            yield from _form(f"{name}[{place}]", each)
    elif part is not None:
        yield name, str(int(part) if isinstance(part, bool) else part)


async def _post(url: str, headers: Mapping[str, str], body: bytes) -> int:
    import httpx

    # §7.3: two seconds.
    async with httpx.AsyncClient(timeout=2.0) as http:
        return (await http.post(url, headers=dict(headers), content=body)).status_code


@frozen
class Envelope:
    """One delivery in the making: rows of one family and action for one subscription."""

    hook: int
    root: str
    action: str


class Desk:
    """The account's own log of what was done, and the hooks it sends of it.

    Only what goes through this API and ``trash`` is told. One attempt is made a delivery: §7.3's repetitions wait for
    minutes and are left out; more than a hundred failures switch a hook off.
    """

    def __init__(self, account: Account, domain: str) -> None:
        self.world: World = account.world
        self.clock = account.clock
        self.domain = domain
        self.account = account
        self.log: list[Row] = account.issued.setdefault("events", [])
        self.tasks: set[asyncio.Task[None]] = account.issued.setdefault("deliveries", set())
        self._number = 0
        self._hooks: list[Row] | None = None
        self._outbox: dict[Envelope, dict[int, Row]] = {}

    def tell(self, user: int, kind: str, old: Row | None, new: Row) -> None:
        """A row was made, or changed from ``old`` to ``new``; a trashed one says so in ``deleted``."""
        if kind == "note":
            self._note(user, new, old is None)
            return
        word = _EVENT_OF[kind]
        if old is None:
            self._log(user, f"{word}_added", kind, new["id"], after=[] if kind == "task" else self._sign())
            self._enclose(kind, new["id"], {f"add_{word}": ("add", {})})
            return
        gone = [row.get("deleted", False) for row in (old, new)]
        if gone[0] != gone[1]:
            action = "delete" if gone[1] else "restore"
            self._log(user, f"{word}_{action}d", kind, new["id"])
            self._enclose(kind, new["id"], {f"{action}_{word}": (action, {})})
            return
        changed = {key for key in new if new[key] != old.get(key)} - {"updated_at", "updated_by"}
        for key, (type, told) in _CHANGES.items():
            if key in changed and (key != "name" or kind != "task"):
                self._log(user, type, kind, new["id"], [told(old)], [told(new)])
        for added, names in (("added", (old, new)), ("deleted", (new, old))):
            tags = [tag for tag in names[1].get("tags", ()) if tag not in names[0].get("tags", ())]
            if tags:
                said = [{"tag": {"name": tag}} for tag in tags]
                self._log(user, f"entity_tag_{added}", kind, new["id"], after=said)
        if "done" in changed and new["done"]:
            self._log(user, "task_completed", kind, new["id"])
        for id in sorted({*old.get("fields", ()), *new.get("fields", ())}):
            values = [[_field_event(id, each) for each in row["fields"].get(id, ())] for row in (old, new)]
            if values[0] != values[1]:
                self._log(user, f"custom_field_{id}_value_changed", kind, new["id"], *values)
        self._changed(kind, word, old, new, changed)

    def _changed(self, kind: str, word: str, old: Row, new: Row, changed: set[str]) -> None:
        if not changed:
            return
        handed: Row = {"old_responsible_user_id": old["owner"]} if "owner" in changed else {}
        moved: Row = {"old_status_id": old["stage_id"]} if "stage_id" in changed else {}
        if kind == "task":
            closed = "done" in changed and new["done"]
            handed |= {"action_close": int(closed), "old_text": old["text"], "modified_by": new["updated_by"]}
        told: dict[str, tuple[str, Row]] = {f"update_{word}": ("update", handed | moved)}
        if moved:
            told["status_lead"] = ("status", moved)
        if "owner" in changed:
            # §7.2: only leads have an action of their own for it.
            told[f"responsible_{word}"] = ("responsible" if kind == "deal" else "update", handed | moved)
        self._enclose(kind, new["id"], told)

    def _note(self, user: int, row: Row, new: bool) -> None:
        if new:
            type = _NOTE_EVENTS.get(row["kind"], "service_note_added")
            said = [{"note": {"id": row["id"]}}]
            self._log(user, type, row["target_kind"], row["target_id"], after=said)
            word = _EVENT_OF[row["target_kind"]]
            self._enclose("note", row["id"], {f"note_{word}": ("note", {})})

    def linked(self, user: int, kind: str, id: int, to: str, to_id: int, ended: bool) -> None:
        """§4.14, seen from both ends."""
        for one, one_id, other, other_id in ((kind, id, to, to_id), (to, to_id, kind, id)):
            said = [{"unlink" if ended else "link": {"entity": {"type": _EVENT_OF[other], "id": other_id}}}]
            self._log(user, f"entity_{'un' if ended else ''}linked", one, one_id, after=said)

    def _sign(self) -> list[Row]:
        return [{"note": {"id": self._number + 1}}]

    def _log(
        self,
        user: int,
        type: str,
        kind: str,
        id: int,
        before: Sequence[Row] = (),
        after: Sequence[Row] = (),
    ) -> None:
        at = int(self.clock.now().timestamp())
        self._number += 1
        if len(self.log) >= 2 * _KEPT_EVENTS:
            del self.log[:_KEPT_EVENTS]
        event: Row = {"id": _ulid(at, self._number), "type": type, "entity_id": id, "entity_type": _EVENT_OF[kind]}
        event |= {"created_by": user, "created_at": at, "value_after": list(after), "value_before": list(before)}
        self.log.append(event)

    # What is sent.

    def _enclose(self, kind: str, id: int, told: Mapping[str, tuple[str, Row]]) -> None:
        if self._hooks is None:
            self._hooks = self.world.select("webhook", where={"active": True})
        for hook in self._hooks:
            for code, (action, more) in told.items():
                if code in hook["events"]:
                    root = self._root(kind, id)
                    place = self._outbox.setdefault(Envelope(hook["id"], root, action), {})
                    if id not in place:
                        place[id] = self._row(kind, id, action, more)

    def _root(self, kind: str, id: int) -> str:
        """§7.2: companies come as contacts, a task is singular, a note comes under what it hangs on."""
        of = self.world.row("note", id)["target_kind"] if kind == "note" else kind
        return {"deal": "leads", "task": "task"}.get(of, "contacts")

    def _row(self, kind: str, id: int, action: str, more: Row) -> Row:
        row = self.world.row(kind, id)
        type: Row = {"type": kind} if kind in ("contact", "company") else {}
        if action == "delete":
            stage = {"status_id": row["stage_id"], "pipeline_id": row["pipeline_id"]} if kind == "deal" else {}
            return {"id": id, **stage, **type}
        if kind == "note":
            above = row["target_kind"]
            return {"note": self._note_row(row)} | ({"type": above} if above != "deal" else {})
        if kind == "task":
            return self._task_row(row) | more
        who: Row = {
            "responsible_user_id": row["owner"],
            "last_modified": row["updated_at"],
            "modified_user_id": row["updated_by"],
            "created_user_id": row["created_by"],
            "date_create": row["created_at"],
        }
        inside: Row = {"tags": self._tags(kind, row), "account_id": self.world.account["id"]}
        inside["custom_fields"] = list(self._customs(kind, row))
        times: Row = {"created_at": row["created_at"], "updated_at": row["updated_at"], **type}
        if kind == "deal":
            head = {"id": id, "name": row["name"], "status_id": row["stage_id"], "price": int(row["price"] or 0)}
            return head | who | {"pipeline_id": row["pipeline_id"]} | inside | more | times
        where: Mapping[str, Condition] = {"deleted": False} | (
            {"contact": id} if kind == "contact" else {"company_id": id}
        )
        leads = {str(lead["id"]): {"ID": lead["id"]} for lead in self.world.select("deal", where=where)}
        firm = {"company_name": row.get("company"), "linked_company_id": row.get("company_id")}
        head = {"id": id, "name": row["name"], **(firm if row.get("company_id") else {})}
        return head | who | inside | {"linked_leads_id": leads} | more | times

    def _tags(self, kind: str, row: Row) -> list[Row]:
        return [{"id": self.world.tag_id(kind, name), "name": name} for name in row["tags"]]

    def _customs(self, kind: str, row: Row) -> Iterable[Row]:
        """§7.2: five shapes of values."""
        for field in self.world.select("field", where={"entity": kind}, order="sort"):
            shape = _shape(field)
            items = [shape.read(item) for item in shape.items(row)]
            if not items:
                continue
            values: Json = [_hook_value(item, field["type"], self.world.account["zone"]) for item in items]
            if field["type"] == "radiobutton":
                values = values[0]
            yield {"id": field["id"], "name": field["name"], "values": values, "code": field["code"]}

    def _task_row(self, row: Row) -> Row:
        def told(at: int | None) -> str:
            return datetime.fromtimestamp(at or 0, UTC).strftime("%Y-%m-%d %H:%M:%S")

        result = {"id": row["id"], "text": row["result"]} if row["result"] else None
        return {
            "id": row["id"],
            "element_id": row["target_id"],
            "element_type": _ELEMENTS.get(row["target_kind"] or ""),
            "task_type": row["type_id"],
            "date_create": told(row["created_at"]),
            "text": row["text"],
            "status": int(row["done"]),
            "account_id": self.world.account["id"],
            "created_user_id": row["created_by"],
            "last_modified": told(row["updated_at"]),
            "responsible_user_id": row["owner"],
            "complete_till": told(row["due"]),
            "result": result,
            "created_at": row["created_at"],
            "updated_at": row["updated_at"],
            "complete_before": row["due"],
        }

    def _note_row(self, row: Row) -> Row:
        def told(at: int) -> str:
            # §7.2: the texts of notes are three hours ahead.
            return (datetime.fromtimestamp(at, UTC) + timedelta(hours=3)).strftime("%Y-%m-%d %H:%M:%S")

        params, text = row["params"], row["text"]
        if row["kind"] in ("call_in", "call_out"):
            text = json.dumps({key.upper(): part for key, part in params.items()}, ensure_ascii=False)
        drive = ("drive", params.get("file_uuid"), params.get("version_uuid"), params.get("file_name"))
        author = self.world.row("user", row["created_by"])["name"] if row["created_by"] else ""
        source = {"event_source": {"id": row["created_by"], "author_name": author, "type": 1}}
        return {
            "text": text or (params.get("file_name") or ""),
            "attachement": "/".join(map(str, drive)) if row["kind"] == "attachment" else "",
            "date_create": told(row["created_at"]),
            "note_type": _NOTE_NUMBERS.get(row["kind"], 25),
            "element_type": _ELEMENTS[row["target_kind"]],
            "element_id": row["target_id"],
            "catalog_id": 0,
            "group_id": 0,
            "timestamp_x": told(row["updated_at"]),
            "account_id": self.world.account["id"],
            "metadata": json.dumps(source, ensure_ascii=False),
            "created_by": row["created_by"],
            "modified_by": row["updated_by"],
            "main_user_id": row["owner"],
            "id": row["id"],
            "created_at": row["created_at"],
            "updated_at": row["updated_at"],
        }

    def send(self) -> None:
        """Send what was enclosed, one POST a subscription, family and action, without waiting for the answers."""
        outbox, self._outbox, self._hooks = self._outbox, {}, None
        subdomain = self.world.account["subdomain"]
        own = {"subdomain": subdomain, "id": self.world.account["id"]}
        own["_links"] = {"self": f"https://{subdomain}.{self.domain}"}
        for envelope, rows in outbox.items():
            family = {envelope.action: list(rows.values())}
            pairs = [*_form("account", own), *_form(envelope.root, family)]
            body = "&".join(f"{quote_plus(name)}={quote_plus(value)}" for name, value in pairs)
            task = asyncio.get_running_loop().create_task(self._deliver(envelope.hook, body.encode()))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def _deliver(self, id: int, body: bytes) -> None:
        headers = {
            "Content-Type": "application/x-www-form-urlencoded",
            "User-Agent": "amoCRM-Webhooks/3.0",
            "X-Amocrm-Requestid": str(uuid.uuid4()),
            "Accept-Encoding": "gzip",
        }
        hook = self.world.get("webhook", id)
        if hook is None:
            return
        send = cast(Deliver, self.account.issued.get("deliver", _post))
        try:
            status = await send(hook["url"], headers, body)
        except Exception:
            status = 0  # whatever kept it from being delivered counts as a failure, as an answer of 500 does
        if status is not None and not 100 <= status < 300 and (hook := self.world.get("webhook", id)):
            # §7.3, without its two hours.
            failed = hook["extra"].get("failed", 0) + 1
            extra = hook["extra"] | {"failed": failed}
            self.world.update(
                "webhook", id, {"active": failed <= 100, "extra": extra, "updated_at": hook["updated_at"]}
            )


def _field_event(id: str, item: Row) -> Row:
    text = str(item.get("value", ""))
    told: Row = {"field_id": int(id), "field_type": 1, "enum_id": item.get("enum_id"), "text": text}
    return {"custom_field_value": told}


def _hook_value(item: Row, type: str, zone: str) -> Json:
    value = item.get("value")
    match type:
        case "date" | "date_time":
            return value
        case "birthday":
            day = (_EPOCH + timedelta(seconds=cast(int, value))).astimezone(ZoneInfo(zone))
            return {"value": day.strftime("%d.%m.%Y")}
        case _ if item.get("enum_id") is not None:
            return {"value": value, "enum": item["enum_id"]}
        case _:
            return {"value": value} if "value" in item else item


async def delivered(account: Account) -> None:
    """Wait until all hooks that are on their way have been answered."""
    while tasks := account.issued.get("deliveries"):
        await asyncio.gather(*tasks)
        # Of tasks that have ended Python 3.12 gathers at once; what takes them off the list needs its turn.
        await asyncio.sleep(0)


def trash(account: Account, type: str, *ids: int, restore: bool = False) -> None:
    """What a person may do in the interface and no client over the API: put leads, contacts or companies in the trash."""
    kind, desk = SPECS[type].kind, cast(Desk, account.issued["desk"])
    user = account.world.admin["id"]
    for id in ids:
        old = account.world.row(kind, id)
        desk.tell(user, kind, old, account.world.update(kind, id, {"deleted": not restore, "updated_by": user}))
    desk.send()


# --- a call and a page -----------------------------------------------------------------------------------------------


@frozen
class Call:
    """A request that was let in: who calls, what for, and with what."""

    method: str
    origin: str
    path: str
    pairs: Sequence[tuple[str, str]]
    asked: Row
    extras: frozenset[str]
    ids: Mapping[str, Json]
    user: Row
    body: bytes

    @property
    def filter(self) -> Row:
        given = self.asked.get("filter")
        return cast(Row, given) if isinstance(given, dict) else {}

    def href(self, tail: str) -> str:
        return f"{self.origin}/api/v4/{tail}"

    def link(self, tail: str) -> Row:
        return {"self": {"href": self.href(tail)}}

    def here(self, **changes: int) -> str:
        """The address asked, with its query repeated and these parameters set. §3.1"""
        pairs = [(key, str(changes.pop(key)) if key in changes else value) for key, value in self.pairs]
        pairs += [(key, str(value)) for key, value in changes.items()]
        query = "&".join(f"{quote_plus(key)}={quote_plus(value)}" for key, value in pairs)
        return f"{self.origin}{self.path}" + (f"?{query}" if query else "")


def _window(call: Call, top: int) -> tuple[int, int]:
    page, limit = _number(call.asked.get("page")), _number(call.asked.get("limit"))
    # Pages nobody has are far beyond the end, and far is enough.
    return min(max(1, page), 10**9), min(top, limit if limit > 0 else 50)


Handler: TypeAlias = Callable[[Call], Response]


@define
class Sheet:
    """What the rows of one page need besides themselves, read in one go for all of them."""

    shapes: list["Shape"]
    tags: dict[str, Row]
    closest: dict[int, int]
    linked: dict[str, dict[int, list[Row]]] = Factory(dict[str, dict[int, list[Row]]])


class Kommo:
    """One account behind its API."""

    def __init__(self, account: Account) -> None:
        self.world: World = account.world
        self.clock = account.clock
        self.on = account.switches
        self.account = account
        self.grants = grants(account)
        self.account_id = cast(int, self.world.account["id"])
        self.zone = ZoneInfo(cast(str, self.world.account["zone"]))
        self.dice = random.Random(1)
        self.amo = self.on["profile"] == "amo"
        self.desk = account.issued["desk"] = Desk(account, "amocrm.ru" if self.amo else "kommo.com")
        self.shelf: Mapping[str, list[Row]] = account.issued.setdefault("shelf", _shelf(self._now(), self.world))
        self._limits: dict[str, SlidingLimit] = account.issued.setdefault("limits", {})
        # §2.2: fifty a second for all integrations of the account together.
        self._shared: SlidingLimit = account.issued.setdefault("shared limit", SlidingLimit(50, 1.0, self.clock))

    # --- the door ----------------------------------------------------------------------------------------------------

    def app(self) -> App:
        api: Sequence[tuple[str, Mapping[str, Handler]]] = (
            ("/account", {"GET": self.show_account}),
            ("/users", {"GET": self.list_users, "POST": self.create_users}),
            ("/users/{id:int}", {"GET": self.get_user}),
            ("/roles", {"GET": self.list_roles}),
            ("/events", {"GET": self.list_events}),
            ("/events/{uid}", {"GET": self.get_event}),
            ("/catalogs", {"GET": self.list_catalogs}),
            ("/catalogs/{catalog:int}/elements", {"GET": self.list_elements}),
            ("/webhooks", {"GET": self.list_hooks, "POST": self.subscribe, "DELETE": self.unsubscribe}),
            ("/leads/unsorted", {"GET": self.list_unsorted}),
            ("/leads/unsorted/{uid}", {"GET": self.get_unsorted}),
            ("/leads/loss_reasons", {"GET": self.list_loss_reasons}),
            ("/leads/complex", {"POST": self.create_complex}),
            ("/leads/pipelines", {"GET": self.list_pipelines, "POST": self.create_pipelines}),
            (
                "/leads/pipelines/{pipeline:int}",
                {"GET": self.get_pipeline, "PATCH": self.update_pipeline, "DELETE": self.delete_pipeline},
            ),
            (
                "/leads/pipelines/{pipeline:int}/statuses",
                {"GET": self.list_statuses, "POST": self.create_statuses},
            ),
            (
                "/leads/pipelines/{pipeline:int}/statuses/{id:int}",
                {"GET": self.get_status, "PATCH": self.update_status, "DELETE": self.delete_status},
            ),
            *self._routes_of("tasks", CARDS),
        )
        everything = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
        routes = [
            Route("/oauth2/access_token", self.exchange, methods=["POST"]),
            Route("/oauth2/account/current/subdomain", self.whereabouts, methods=["GET"]),
            *(Route(f"/api/v4{path}", self._guarded(verbs), methods=everything) for path, verbs in api),
            Route("/{rest:path}", self._guarded({}, known=False), methods=everything),
        ]
        app = Starlette(routes=routes)
        app.router.redirect_slashes = False
        return app

    def _routes_of(self, task: str, cards: Sequence[str]) -> Iterable[tuple[str, Mapping[str, Handler]]]:
        for type in (*cards, task):
            if type != task:
                # §4.6: the SDK renames tags of leads; no page tells of it.
                renaming: dict[str, Handler] = {"PATCH": self.update_tags} if type == "leads" else {}
                yield f"/{type}/tags", {"GET": self.list_tags, "POST": self.create_tags, **renaming}
                yield (
                    f"/{type}/custom_fields",
                    {"GET": self.list_fields, "POST": self.create_fields, "PATCH": self.update_fields},
                )
                yield (
                    f"/{type}/custom_fields/{{id:int}}",
                    {"GET": self.get_field, "PATCH": self.update_fields, "DELETE": self.delete_field},
                )
                for under in ("notes", "{entity:int}/notes"):
                    yield (
                        f"/{type}/{under}",
                        {"GET": self.list_notes, "POST": self.create_notes, "PATCH": self.update_notes},
                    )
                    yield f"/{type}/{under}/{{id:int}}", {"GET": self.get_note, "PATCH": self.update_notes}
                    yield f"/{type}/{under}/{{id:int}}/pin", {"POST": self.pin_note}
                    yield f"/{type}/{under}/{{id:int}}/unpin", {"POST": self.pin_note}
                for under in ("", "{entity:int}/"):
                    yield f"/{type}/{under}links", {"GET": self.list_links}
                    yield f"/{type}/{under}link", {"POST": self.link}
                    yield f"/{type}/{under}unlink", {"POST": self.link}
            yield f"/{type}", {"GET": self.list_rows, "POST": self.create_rows, "PATCH": self.update_rows}
            one: dict[str, Handler] = {"GET": self.get_row, "PATCH": self.update_rows}
            # §4.20: what cannot be deleted is refused in two ways.
            yield f"/{type}/{{id:int}}", one | ({"DELETE": self.refuse_scope} if type == task else {})

    def _guarded(self, verbs: Mapping[str, Handler], *, known: bool = True) -> Callable[[Request], Awaitable[Response]]:
        async def guarded(request: Request) -> Response:
            body = await request.body()
            try:
                answer = self._answer(request, body, verbs, known)
            except Refused as refused:
                answer = refused.answer
            self.desk.send()
            if not isinstance(answer, HTMLResponse):
                answer.headers["X-Request-Id"] = str(uuid.uuid4())  # §2.1
            return answer

        return guarded

    def _answer(self, request: Request, body: bytes, verbs: Mapping[str, Handler], known: bool) -> Response:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        self._pace(self.grants.integration_of(token))
        caller = self.grants.bearer(token)
        if caller is None:
            raise self._unauthorized()
        user = self._acting(request, self.world.get("user", caller[1]))
        address = f"{request.url.scheme}://{request.url.netloc}"
        if not known:
            raise Refused(_problem(404, f"Cannot {request.method} {request.url}"))
        handler = verbs.get(request.method)
        if handler is None:
            json_body = _problem(405, "Method Not Allowed")
            raise Refused(json_body if self.on["json-405"] else Response(status_code=405))
        path = request.url.path
        named = {name: min(_BIGGEST, id) if _is(id, "int") else id for name, id in request.path_params.items()}
        ids = {"type": path.split("/")[3], **named}
        pairs = request.query_params.multi_items()
        asked = _tree(pairs)
        extras = frozenset(str(asked.get("with", "")).split(","))
        return handler(Call(request.method, address, path, pairs, asked, extras, ids, user, body))

    def _acting(self, request: Request, user: Row | None) -> Row:
        """An admin's token may act for another user; for an unknown one the call is refused. §1.6"""
        other = request.headers.get("x-context-user-id")
        if user is not None and other is not None:
            user = self.world.get("user", _number(other)) if user["admin"] else None
        if user is None:
            raise self._unauthorized()
        return user

    def _pace(self, integration: str) -> None:
        """§2.2: seven in any second for an integration, refused ones counted; who goes on is banned from everything."""
        if not self.account.limits:
            return
        patience = None if self.on["ban-after"] == "never" else int(str(self.on["ban-after"]))
        own = self._limits.get(integration)
        if own is None:
            own = self._limits[integration] = SlidingLimit(7, 1.0, self.clock, violations=patience)
        verdict = own.arrive()
        if verdict is Verdict.BANNED:
            self.account.stats.banned += 1
            raise Refused(_gateway(403))
        if Verdict.REFUSED in (verdict, self._shared.arrive()):
            if self.amo:
                raise Refused(_gateway(429))
            detail = "You have sent too many requests in a given amount of time. Please try again later."
            raise Refused(_problem(429, detail, retry_after=int(str(self.on["retry-after"]))))

    def _unauthorized(self) -> Refused:
        return Refused(_problem(401, "Неверный логин или пароль" if self.amo else "Invalid user name or password"))

    async def exchange(self, request: Request) -> Response:
        asked = _read(await request.body())
        fields = cast(Row, asked) if isinstance(asked, dict) else {}
        try:
            if self.on["token-calls-count"]:
                self._pace(str(fields.get("client_id")))
            return JSONResponse(self.grants.exchange(fields))
        except Refused as refused:
            return refused.answer
        except BadGrant as bad:
            told = {
                "hint": bad.hint,
                "title": "Некорректный запрос",
                "type": "https://developers.amocrm.ru/v3/errors/OAuthProblemJson",
                "status": bad.status,
                "detail": "В запросе отсутствует ряд параметров или параметры невалидны",
            }
            return JSONResponse(told, bad.status)

    async def whereabouts(self, request: Request) -> Response:
        """§1.1: where the account of a refresh token lives now."""
        if not self.grants.knows_refresh(request.headers.get("x-refresh-token", "")):
            return self._unauthorized().answer
        account = self.world.account
        top = "ru" if self.amo else "com"
        domain = f"{account['subdomain']}.{'amocrm' if self.amo else 'kommo'}.{top}"
        return JSONResponse(
            {"id": account["id"], "subdomain": account["subdomain"], "domain": domain, "top_level_domain": top}
        )

    def refuse_scope(self, call: Call) -> Response:
        return _problem(403, "Invalid scope")

    def _admins_only(self, call: Call) -> None:
        if not call.user["admin"]:
            raise Refused(_problem(403, "Forbidden"))

    def _now(self) -> int:
        return int(self.clock.now().timestamp())

    # --- lists -------------------------------------------------------------------------------------------------------

    def _paged(
        self,
        call: Call,
        key: str,
        fetch: Callable[[int, int], list[Row]],
        show: Callable[[list[Row]], list[Row]],
        *,
        top: int = 250,
        total: int | None = None,
    ) -> Response:
        """An envelope without totals unless they are given; nothing on the page is 204. §3.1

        A limit over the top is clamped; an absurd page or limit is the default. [EMU]
        """
        page, limit = _window(call, top)
        rows = fetch(limit + 1, (page - 1) * limit)
        if not rows:
            return _nothing()
        links = {"self": {"href": call.here(page=page, limit=limit)}}
        if len(rows) > limit or self.on["next-on-last-page"]:
            links["next"] = {"href": call.here(page=page + 1, limit=limit)}
        if page > 1:
            links["first"] = {"href": call.here(page=1, limit=limit)}
            links["prev"] = {"href": call.here(page=page - 1, limit=limit)}
        body: Row = {"_page": page, "_links": links, "_embedded": {key: show(rows[:limit])}}
        if total is not None:
            pages = -(-total // limit)
            if pages > 1:
                links["last"] = {"href": call.here(page=pages, limit=limit)}
            body = {"_total_items": total, "_page": page, "_page_count": pages} | body
        return _hal(body)

    def _ordered(self, call: Call, orders: Mapping[str, str]) -> tuple[str, bool]:
        """§3.6: anything unknown silently falls back to updated_at ascending."""
        given = call.asked.get("order")
        for name, way in (cast(Row, given) if isinstance(given, dict) else {}).items():
            if name in orders and way in ("asc", "desc"):
                return orders[name], way == "desc"
        return "updated_at", False

    def list_rows(self, call: Call) -> Response:
        spec = SPECS[call.ids["type"]]
        where, keep = self._conditions(call, spec)
        order, descending = self._ordered(call, spec.orders)
        if call.ids["type"] in CARDS:
            where = [{"deleted": "only_deleted" in call.extras, **each} for each in where]

        def fetch(limit: int, offset: int) -> list[Row]:
            if keep is None:
                return self.world.select(
                    spec.kind, where=where, order=order, descending=descending, limit=limit, offset=offset
                )
            rows = self.world.select(spec.kind, where=where, order=order, descending=descending)
            return list(filter(keep, rows))[offset : offset + limit]

        return self._paged(call, call.ids["type"], fetch, lambda rows: self._shown(call, rows))

    def get_row(self, call: Call) -> Response:
        spec = SPECS[call.ids["type"]]
        row = self.world.get(spec.kind, call.ids["id"])
        # §3.2: a missing one is 204, and a trashed one is missing unless only_deleted asks for it.
        if row is None or row.get("deleted", False) is not ("only_deleted" in call.extras and "deleted" in row):
            return _nothing()
        return _hal(self._shown(call, [row])[0])

    def _conditions(self, call: Call, spec: Spec) -> tuple[list[Mapping[str, Condition]], Callable[[Row], bool] | None]:
        """§3.5: alternatives for the world, and what only a look at each row can tell. Unknown names are ignored."""
        where: dict[str, Condition] = {}
        asked = self._heeded(call) if self.on["api-filter"] or not spec.paid_filter else {}
        for name, node in asked.items():
            if name in spec.spans:
                where[spec.spans[name]] = _span(node)
            elif name in spec.many:
                texts = _many(node)
                where[spec.many[name]] = texts if name == "name" else [_number(text) for text in texts]
        query = call.asked.get("query")
        if spec.kind != "task" and isinstance(query, str) and query and not self.on["ignore-filters"]:
            where["search"] = Contains(query)
        where |= self._indexed({*asked, *where})
        if spec.kind == "task":
            where |= self._task_conditions(asked)
        if "closest_task_at" in asked and spec.kind != "task":
            span = _span(asked["closest_task_at"])
            near = self._closest(spec.kind, None)
            low, high = cast("tuple[int | None, int | None]", (span.low, span.high))
            where_ids = [
                id for id, due in near.items() if (low is None or due >= low) and (high is None or due <= high)
            ]
            given = where.get("id")
            where["id"] = [id for id in where_ids if not isinstance(given, list) or id in given]
        alternatives: list[Mapping[str, Condition]] = [where]
        stages = asked.get("statuses")
        if spec.kind == "deal" and isinstance(stages, dict):
            pairs = [cast(Row, stage) for stage in cast(Row, stages).values() if isinstance(stage, dict)]
            # Both keys are mandatory; what a half pair does is not said: it is passed over. [EMU]
            full = [pair for pair in pairs if "pipeline_id" in pair and "status_id" in pair]
            alternatives = [
                {**where, "pipeline_id": _number(pair["pipeline_id"]), "stage_id": _number(pair["status_id"])}
                for pair in full
            ] or alternatives
        wanted = asked.get("custom_fields_values")
        if spec.kind == "task" or not isinstance(wanted, dict):
            return alternatives, None
        fields = {str(field["id"]): field for field in self._fields(spec.kind)}
        tests = [(fields[id], node) for id, node in cast(Row, wanted).items() if id in fields]
        return alternatives, lambda row: all(_holds(field, node, row) for field, node in tests)

    def _heeded(self, call: Call) -> Row:
        return {} if self.on["ignore-filters"] else call.filter

    def _indexed(self, asked: Collection[str]) -> Mapping[str, Condition]:
        """Who asks for more than ids asks an index, which may be behind."""
        return self.account.indexed(self.on["index-lag"]) if {*asked} - {"id"} else {}

    def _task_conditions(self, asked: Row) -> dict[str, Condition]:
        where = self._after(asked)
        if "is_completed" in asked:
            where["done"] = [bool(_number(text)) for text in _many(asked["is_completed"])]
        kinds = [SPECS[type].kind for type in _many(asked.get("entity_type")) if type in CARDS]
        if "entity_type" in asked:
            where["target_kind"] = kinds
            if "entity_id" in asked:  # It needs the type; alone it is passed over.
                where["target_id"] = [_number(text) for text in _many(asked["entity_id"])]
        return where

    def _after(self, asked: Row) -> dict[str, Condition]:
        """updated_at of tasks and notes: a number is 'after', or from and to. §3.5"""
        node = asked.get("updated_at")
        if isinstance(node, dict):
            return {"updated_at": _span(cast(Row, node))}
        return {} if node is None else {"updated_at": Range(_number(node) + bool(self.on["strictly-after"]))}

    # --- rows as they are shown --------------------------------------------------------------------------------------

    def _shown(self, call: Call, rows: list[Row]) -> list[Row]:
        type = call.ids["type"]
        if type == "tasks":
            return [self._task(call, row) for row in rows]
        sheet = self._sheet(call, type, rows)
        return [self._card(call, type, row, sheet) for row in rows]

    def _fields(self, kind: str) -> list[Row]:
        return self.world.select("field", where={"entity": kind}, order="sort")

    def _closest(self, kind: str, ids: list[int] | None) -> dict[int, int]:
        """§6: the earliest open task of each."""
        where: dict[str, Condition] = {"target_kind": kind, "done": False, "due": Range()}
        tasks = self.world.select("task", where=where if ids is None else where | {"target_id": ids}, order="due")
        return {task["target_id"]: task["due"] for task in reversed(tasks)}

    def _sheet(self, call: Call, type: str, rows: list[Row]) -> Sheet:
        kind = SPECS[type].kind
        ids = [cast(int, row["id"]) for row in rows]
        names = {name for row in rows for name in row["tags"]}
        tags = {tag["name"]: tag for tag in self.world.select("tag", where={"entity": kind, "name": names})}
        sheet = Sheet([_shape(field) for field in self._fields(kind)], tags, self._closest(kind, ids))
        if type == "contacts" and "leads" in call.extras:
            sheet.linked["leads"] = self._holders("deal", "contact", ids)
        if type == "companies":
            for name, holder in (("contacts", "contact"), ("leads", "deal")):
                if name in call.extras:
                    sheet.linked[name] = self._holders(holder, "company_id", ids)
        return sheet

    def _holders(self, kind: str, key: str, ids: list[int]) -> dict[int, list[Row]]:
        found: dict[int, list[Row]] = {}
        for row in self.world.select(kind, where={key: ids, "deleted": False}):
            of = [link["id"] for link in row["contacts"]] if key == "contact" else [row[key]]
            for id in of:
                found.setdefault(id, []).append(row)
        return found

    def _card(self, call: Call, type: str, row: Row, sheet: Sheet) -> Row:
        id = row["id"]
        links = call.link(f"{type}/{id}")
        if row["deleted"] and type == "leads":  # §4.1
            shown = {"id": id, "name": None, "price": None, "status_id": None, "is_deleted": True}
            return shown | {
                "updated_by": row["updated_by"],
                "updated_at": row["updated_at"],
                "account_id": self.account_id,
                "_links": links,
            }
        shown = {"id": id, "name": row["name"]}
        if type == "leads":
            shown["price"] = int(row["price"] or 0)
            if self.on["minor-units"]:
                shown["price_with_minor_units"] = row["price"] or 0
        if type == "contacts":
            shown |= {"first_name": row["first_name"] or "", "last_name": row["last_name"] or ""}
        shown |= {"responsible_user_id": row["owner"], "group_id": 0}
        if type == "leads":
            shown |= {
                "status_id": row["stage_id"],
                "pipeline_id": row["pipeline_id"],
                "loss_reason_id": row["loss_reason_id"],
                "source_id": None,
            }
        shown |= {key: row[key] for key in ("created_by", "updated_by", "created_at", "updated_at")}
        if type == "leads":
            shown["closed_at"] = row["closed_at"]
        shown["closest_task_at"] = sheet.closest.get(id)
        # §3.3, a live probe: trashed contacts and companies still say false.
        shown["is_deleted"] = False
        if type == "contacts":
            shown["is_unsorted"] = False
        shown["custom_fields_values"] = self._values(row, sheet.shapes)
        if type == "leads":
            shown |= {"score": None, "labor_cost": None}
            if "is_price_modified_by_robot" in call.extras:
                shown["is_price_modified_by_robot"] = False
        shown |= {"account_id": self.account_id, "_links": links}
        shown["_embedded"] = self._embedded(call, type, row, sheet)
        return shown

    def _embedded(self, call: Call, type: str, row: Row, sheet: Sheet) -> Row:
        # §3.3: tags always, and the company of a lead or contact always.
        inside: Row = {"tags": [self._tag(type, sheet.tags[name]) for name in row["tags"] if name in sheet.tags]}
        if type in ("leads", "contacts"):
            firm = row["company_id"]
            inside["companies"] = [] if firm is None else [{"id": firm, "_links": call.link(f"companies/{firm}")}]
        if type == "leads" and "contacts" in call.extras:
            inside["contacts"] = [
                {"id": each["id"], "is_main": each["main"], "_links": call.link(f"contacts/{each['id']}")}
                for each in row["contacts"]
            ]
        if type == "leads" and "loss_reason" in call.extras:
            reason = row["loss_reason_id"] and self.world.get("loss_reason", row["loss_reason_id"])
            inside["loss_reason"] = [self._loss_reason(call, reason)] if reason else []
        for name, found in sheet.linked.items():
            inside[name] = [
                {"id": each["id"], "_links": call.link(f"{name}/{each['id']}")} for each in found.get(row["id"], ())
            ]
        if "catalog_elements" in call.extras:
            elements = row["extra"].get("elements", ())
            inside["catalog_elements"] = [
                {"id": each["id"], "metadata": {"quantity": each["quantity"], "catalog_id": each["catalog_id"]}}
                for each in elements
            ]
        if "customers" in call.extras and type != "leads":
            inside["customers"] = []
        return inside

    def _tag(self, type: str, tag: Row) -> Row:
        """§4.6: a colour is for leads only."""
        return {"id": tag["id"], "name": tag["name"], "color": tag["extra"].get("color") if type == "leads" else None}

    def _values(self, row: Row, shapes: Sequence["Shape"]) -> list[Row] | None:
        shown: list[Row] = []
        for shape in shapes:
            values = [shape.read(item) for item in shape.items(row)]
            if shape.box and self.on["unchecked-omitted"]:
                values = [value for value in values if value["value"]]
            if values:
                shown.append({**shape.head, "values": values})
        return shown or ([] if self.on["empty-fields-list"] else None)

    def _task(self, call: Call, row: Row) -> Row:
        return {
            "id": row["id"],
            **{key: row[key] for key in ("created_by", "updated_by", "created_at", "updated_at")},
            "responsible_user_id": row["owner"],
            "group_id": 0,
            "entity_id": row["target_id"],
            "entity_type": _TYPE_OF.get(row["target_kind"] or ""),
            "duration": row["duration"] or 0,
            "is_completed": row["done"],
            "task_type_id": row["type_id"],
            "text": row["text"],
            # §4.4: PHP's empty array where there is no result.
            "result": {"text": row["result"]} if row["result"] else [],
            # A Kommo task always has a date; a world that another dialect filled may not. [EMU]
            "complete_till": row["due"] or 0,
            "account_id": self.account_id,
            "_links": call.link(f"tasks/{row['id']}"),
        }

    # --- rows as they are written (§5) -------------------------------------------------------------------------------

    def _rows(self, call: Call, *, bare: bool = False) -> list[Json]:
        """The array of the body, or the one object where the address names one or ``bare`` allows it."""
        body = _read(call.body)
        if not body:
            raise Refused(_problem(400, "Request data can not be empty"))
        single = call.method == "PATCH" and "id" in call.ids
        if isinstance(body, dict) and (single or bare or self.on["accept-seed-forms"]):
            return [body]
        if not isinstance(body, list) or single:
            complaints = Complaints()
            complaints.mistyped("array")
            raise Refused(_invalid([{"errors": complaints.found}]))
        rows = cast(list[Json], body)
        if len(rows) > 250:
            raise Refused(_problem(422, "Limit 250 per page"))  # §2.4
        return rows

    def _judged(self, rows: Sequence[Json], judge: Callable[[Row, Complaints], Row | None]) -> list[tuple[Json, Row]]:
        """All or nothing (§5): the request ids with what each row means, or one answer with everything wrong."""
        drafts: list[tuple[Json, Row]] = []
        entries: list[Row] = []
        for place, row in enumerate(rows):
            complaints = Complaints()
            draft: Row | None = None
            name: Json = str(place)
            if isinstance(row, dict):
                given = cast(Row, row)
                name = given.get("request_id", name)
                if "request_id" in given and not (_is(name, "string") or _is(name, "int")):
                    complaints.at("request_id").mistyped("string")
                draft = judge(given, complaints)
            else:
                complaints.mistyped("array")
            if complaints.found:
                entries.append({"request_id": name, "errors": complaints.found})
            drafts.append((name, draft or {}))
        if entries:
            raise Refused(_invalid(entries))
        return drafts

    def _batch(self, call: Call, key: str, items: list[Row], *, status: int = 200, total: bool = False) -> Response:
        if self.on["shuffle-answers"]:
            self.dice.shuffle(items)
        body: Row = {"_total_items": len(items)} if total else {}
        tail = call.path.removeprefix("/api/v4/")
        return _hal(body | {"_links": call.link(tail), "_embedded": {key: items}}, status)

    def create_rows(self, call: Call) -> Response:
        type = call.ids["type"]
        kind = SPECS[type].kind
        drafts = self._judged(self._rows(call), lambda row, wrong: self._drafted(call, type, row, None, wrong))
        with self.world.transaction():
            ids = [self._add(kind, draft) for _, draft in drafts]
        for id, (_, draft) in zip(ids, drafts, strict=True):
            self.desk.tell(call.user["id"], kind, None, {**draft, "id": id})
        items = [
            {"id": id, "request_id": name, "_links": call.link(f"{type}/{id}")}
            for id, (name, _) in zip(ids, drafts, strict=True)
        ]
        return self._batch(call, type, items)

    def _new(self, call: Call, kind: str, draft: Row) -> int:
        id = self._add(kind, draft)
        self.desk.tell(call.user["id"], kind, None, {**draft, "id": id})
        return id

    def _add(self, kind: str, draft: Row) -> int:
        draft.pop("id", None)
        if kind == "deal" and not draft.get("name"):
            id = self.world.next_id()
            draft |= {"id": id, "name": f"Сделка #{id}" if self.amo else f"Lead #{id}"}  # [EMU], §4.1
        return self.world.add(kind, draft)

    def update_rows(self, call: Call) -> Response:
        type, spec = call.ids["type"], SPECS[call.ids["type"]]

        def judge(row: Row, wrong: Complaints) -> Row | None:
            old = self._old(call, spec.kind, row, wrong)
            return None if old is None else self._drafted(call, type, row, old, wrong)

        drafts = self._judged(self._rows(call), judge)
        before = [self.world.row(spec.kind, draft["id"]) for _, draft in drafts]
        changed = self.world.update_many(spec.kind, [(draft.pop("id"), draft) for _, draft in drafts])
        for old, new in zip(before, changed, strict=True):
            self.desk.tell(call.user["id"], spec.kind, old, new)
        items: list[Row] = []
        for row, (name, _) in zip(changed, drafts, strict=True):
            told = {"request_id": name, "_links": call.link(f"{type}/{row['id']}"), **row}
            items.append({key: told[key] for key in (*spec.updated, "_links")})
        return _hal(items[0]) if "id" in call.ids else self._batch(call, type, items)

    def _old(self, call: Call, kind: str, row: Row, wrong: Complaints) -> Row | None:
        """The row a PATCH means, by the address or by its id; one that is gone is no valid choice (§5, [EMU])."""
        id = call.ids.get("id", row.get("id"))
        if id is None:
            wrong.at("id").say("FieldMissing")
            return None
        if not _is(id, "int"):
            wrong.at("id").mistyped("int")
            return None
        old = self.world.get(kind, id)
        if old is None or old.get("deleted"):
            wrong.at("id").say("NotSupportedChoice")
            return None
        return old

    def _drafted(self, call: Call, type: str, row: Row, old: Row | None, wrong: Complaints) -> Row:
        """What the world is told of a row written to it; ``old`` is what a PATCH changes."""
        spec = SPECS[type]
        verb = "POST" if old is None else "PATCH"
        if type == "leads" and self.on["accept-seed-forms"]:
            row = _seed_lead(row)
        allowed = (*spec.columns, *spec.others, *(("id", "tags_to_delete") if old else ()))
        wrong.unexpected(row, allowed)
        now = self._now()
        draft: Row = {"updated_by": call.user["id"], "updated_at": now}
        if old is None:
            draft |= {"owner": call.user["id"], "created_by": call.user["id"], "created_at": now}
        else:
            draft["id"] = old["id"]
        draft |= self._columns(spec.columns, row, wrong)
        if old is None:
            for name, column in spec.columns.items():
                if column.required and name not in row:
                    wrong.at(name).say("FieldMissing")
        if type == "tasks":
            draft |= self._task_draft(row, wrong)
            return draft
        if type == "leads":
            draft |= self._stage_draft(row, old, wrong)
        if type == "contacts":
            parts = [draft.get(key, (old or {}).get(key, "")) for key in ("first_name", "last_name")]
            if "name" not in row and ("first_name" in row or "last_name" in row):
                draft["name"] = " ".join(filter(None, parts))  # [EMU]
        if row.get("custom_fields_values") is not None:
            draft |= self._fields_draft(spec.kind, row["custom_fields_values"], old, wrong.at("custom_fields_values"))
        inside = row.get("_embedded")
        if inside is not None and not isinstance(inside, dict):
            wrong.at("_embedded").mistyped("array")
            inside = None
        embedded = cast(Row, inside or {})
        wrong.at("_embedded").unexpected(embedded, spec.embedded[verb])
        draft |= self._tags_draft(spec.kind, row, embedded, old, wrong)
        if type == "leads" and old is None:
            draft |= self._members(embedded, wrong.at("_embedded"))
        return draft

    def _columns(self, columns: Mapping[str, Column], row: Row, wrong: Complaints) -> Row:
        draft: Row = {}
        for name, column in columns.items():
            if name not in row:
                continue
            value = row[name]
            type = "float" if name == "price" and self.on["minor-units"] else column.type
            if value is None and column.null:
                draft[column.key] = None
            elif not _is(value, type):
                wrong.at(name).mistyped(type)
            elif (
                column.among
                and not (column.robot and value == 0)
                and self.world.get(column.among, cast(int, value)) is None
            ):
                wrong.at(name).say("NotSupportedChoice")
            else:
                draft[column.key] = value
        return draft

    def _task_draft(self, row: Row, wrong: Complaints) -> Row:
        draft: Row = {}
        if row.get("result") is not None:
            given = row["result"]
            text = cast(Row, given).get("text") if isinstance(given, dict) else None
            if not isinstance(text, str):
                wrong.at("result").at("text").say("FieldMissing")
            draft["result"] = text
        if "entity_id" not in row and "entity_type" not in row:
            return draft
        id, type = row.get("entity_id"), row.get("entity_type")
        if id is None and type is None:
            return draft | {"target_kind": None, "target_id": None}
        if not isinstance(type, str):
            wrong.at("entity_type").say("FieldMissing")
        elif type not in CARDS:
            wrong.at("entity_type").say("NotSupportedChoice")
        elif not self._alive(SPECS[type].kind, id):
            wrong.at("entity_id").say("NotSupportedChoice")
        else:
            draft |= {"target_kind": SPECS[type].kind, "target_id": id}
        return draft

    def _alive(self, kind: str, id: Json) -> bool:
        row = self.world.get(kind, id) if _is(id, "int") else None
        return row is not None and not row.get("deleted")

    def _stage_draft(self, row: Row, old: Row | None, wrong: Complaints) -> Row:
        """§4.1, §4.9: a status must be of the pipeline; 142 and 143 are in every one and stay in the lead's own."""
        draft: Row = {}
        for key in ("pipeline_id", "status_id"):
            if key in row and not _is(row[key], "int"):
                wrong.at(key).mistyped("int")
                return draft
        stage, pipeline = cast("int | None", row.get("status_id")), cast("int | None", row.get("pipeline_id"))
        if pipeline is not None and self.world.get("pipeline", pipeline) is None:
            wrong.at("pipeline_id").say("NotSupportedChoice")
            return draft
        if old is not None and stage is None and pipeline is None:
            return draft
        if stage is None:
            pipeline = self._main_pipeline() if pipeline is None else pipeline
            # Moved to another pipeline without a stage: a closed lead stays closed, others begin anew. [EMU]
            closed = old is not None and old["stage_id"] in (WON, LOST)
            stage = cast(int, old["stage_id"]) if old is not None and closed else self._first_stage(pipeline)
        elif pipeline is None and stage in (WON, LOST):
            pipeline = self._main_pipeline() if old is None else cast(int, old["pipeline_id"])
        elif pipeline is None:
            found = [each for each in self.world.select("stage") if each["id"] == stage]
            if not found:
                wrong.at("status_id").say("NotSupportedChoice")
                return draft
            pipeline = cast(int, found[0]["pipeline_id"])
        if self.world.get("stage", (pipeline, stage)) is None:
            wrong.at("status_id").say("NotSupportedChoice")
            return draft
        draft |= {"pipeline_id": pipeline, "stage_id": stage}
        was_closed = old is not None and old["stage_id"] in (WON, LOST)
        if "closed_at" not in row and was_closed is not (stage in (WON, LOST)):
            draft["closed_at"] = None if was_closed else self._now()
        return draft

    def _main_pipeline(self) -> int:
        return cast(int, self.world.select("pipeline", where={"main": True}, limit=1)[0]["id"])

    def _stages(self, pipeline: int) -> list[Row]:
        return self.world.select("stage", where={"pipeline_id": pipeline}, order="sort")

    def _first_stage(self, pipeline: int) -> int:
        return next(cast(int, stage["id"]) for stage in self._stages(pipeline) if stage["type"] != "unsorted")

    def _members(self, embedded: Row, wrong: Complaints) -> Row:
        """The contacts and the company a lead is made with."""
        draft: Row = {}
        for name, kind in (("contacts", "contact"), ("companies", "company")):
            if embedded.get(name) is None:
                continue
            links: list[Row] = []
            for place, item in self._items(embedded[name], wrong.at(name)):
                item.unexpected(place, ("id", "is_main") if kind == "contact" else ("id",))
                if "id" not in place:
                    item.at("id").say("FieldMissing")
                elif not self._alive(kind, place["id"]):
                    item.at("id").say("NotSupportedChoice")
                else:
                    links.append({"id": place["id"], "main": bool(place.get("is_main"))})
            if kind == "contact":
                draft["contacts"] = _one_main(links)
            elif len(links) > 1:
                wrong.at(name).at(1).say("FieldNotExpected")  # §6: a lead has at most one company.
            elif links:
                draft["company_id"] = links[0]["id"]
        source = embedded.get("source")
        if isinstance(source, dict):
            wrong.at("source").unexpected(cast(Row, source), ("external_id", "type"))
            draft["extra"] = {"source": source}
        elif source is not None:
            wrong.at("source").mistyped("array")
        return draft

    def _items(self, given: Json, wrong: Complaints) -> Iterable[tuple[Row, Complaints]]:
        if not isinstance(given, list):
            wrong.mistyped("array")
            return
        for place, item in enumerate(cast(list[Json], given)):
            if isinstance(item, dict):
                yield cast(Row, item), wrong.at(place)
            else:
                wrong.at(place).mistyped("array")

    def _tags_draft(self, kind: str, row: Row, embedded: Row, old: Row | None, wrong: Complaints) -> Row:
        """§6: _embedded.tags replaces (null and [] empty), tags_to_add and tags_to_delete change what is there."""
        names: list[str] = list(old["tags"]) if old else []
        before = list(names)
        if "tags" in embedded:
            names = self._tag_names(kind, embedded["tags"] or [], wrong.at("_embedded").at("tags"))
        if row.get("tags_to_add"):
            names += self._tag_names(kind, row["tags_to_add"], wrong.at("tags_to_add"))
        if row.get("tags_to_delete"):
            gone = self._tag_names(kind, row["tags_to_delete"], wrong.at("tags_to_delete"))
            names = [name for name in names if name not in gone]
        names = list(dict.fromkeys(names))
        return {"tags": names} if names != before else {}

    def _tag_names(self, kind: str, given: Json, wrong: Complaints) -> list[str]:
        names: list[str] = []
        for item, here in self._items(given, wrong):
            here.unexpected(item, ("id", "name"))
            if _is(item.get("id"), "int"):
                tag = self.world.get("tag", item["id"])
                if tag is None or tag["entity"] != kind:
                    here.at("id").say("NotSupportedChoice")
                else:
                    names.append(tag["name"])
            elif isinstance(item.get("name"), str):
                names.append(item["name"])
            else:
                here.at("name").say("FieldMissing")
        return names

    def _fields_draft(self, kind: str, given: Json, old: Row | None, wrong: Complaints) -> Row:
        """§4.8: a field that is there has its whole set replaced, the others stay, null or [] empties."""
        fields = self._fields(kind)
        values: Row = dict(old["fields"]) if old else {}
        draft: Row = {}
        for item, here in self._items(given, wrong):
            words = ("field_name", "field_type", "is_computed") if self.on["field-words"] else ()
            here.unexpected(item, ("field_id", "field_code", "values", *words))
            key = "field_id" if item.get("field_id") is not None else "field_code"
            if item.get(key) is None:
                here.at("field_id").say("FieldMissing")
                continue
            field = next((each for each in fields if each[key.removeprefix("field_")] == item[key]), None)
            if field is None:
                here.at(key).say("NotSupportedChoice")
                continue
            if "values" not in item:
                here.at("values").say("FieldMissing")
                continue
            stored = [
                stored
                for value, place in self._items(item["values"] or [], here.at("values"))
                if (stored := self._stored(field, value, place)) is not None
            ]
            if field["type"] in ("select", "radiobutton") and len(stored) > 1:
                here.at("values").at(1).say("FieldNotExpected")
            part = _PARTS.get(field["code"] or "")
            if part is None:
                values = {id: kept for id, kept in values.items() if id != str(field["id"])}
                if stored:
                    values[str(field["id"])] = stored
            else:
                draft[part] = (stored[0]["value"] if stored else None) if part == "position" else stored
        return draft | {"fields": values}

    def _stored(self, field: Row, item: Row, wrong: Complaints) -> Row | None:
        """One value as the world keeps it, or None and a complaint."""
        type = field["type"]
        if type == "chained_list":
            wrong.unexpected(item, ("catalog_id", "catalog_element_id"))
            return dict(item)
        wrong.unexpected(item, ("value", "enum_id", "enum_code"))
        for key in ("enum_id", "enum_code"):
            if key in item and item[key] is None:
                wrong.at(key).say("FieldNotExpected")  # §4.8, §8.1
                return None
        if type in _CHOICES:
            return _choice(field, item, wrong)
        if "value" not in item:
            wrong.at("value").say("FieldMissing")
            return None
        value = item["value"]
        here = wrong.at("value")
        match type:
            case "numeric" | "monetary":
                if not _is(value, "float") and not (_is(value, "string") and re.fullmatch(r"-?\d+(\.\d+)?", value)):
                    return here.mistyped("numeric")
                return {"value": value if _is(value, "int") else str(value)}
            case "checkbox":
                return {"value": bool(value)} if _is(value, "bool") or value in (0, 1) else here.mistyped("bool")
            case "date" | "birthday" | "date_time":
                moment = _moment(value)
                if moment is None:
                    return here.mistyped("int")
                return {"value": moment if type == "date_time" else self._midnight(moment)}
            case "multitext":
                if not _is(value, "string"):
                    return here.mistyped("string")
                return _labelled(field, item, wrong)
            case "smart_address":
                return _address_line(item, wrong)
            case "legal_entity" | "file":
                return {"value": value} if isinstance(value, dict) else here.mistyped("array")
            case _:
                return {"value": value} if _is(value, "string") else here.mistyped("string")

    def _midnight(self, moment: int) -> int:
        """§4.8, §8.8: a date is the midnight of the account's zone."""
        local = (_EPOCH + timedelta(seconds=moment)).astimezone(self.zone)
        return int(local.replace(hour=0, minute=0, second=0, microsecond=0).timestamp())

    def create_complex(self, call: Call) -> Response:
        """§4.19: a lead with one contact and one company, each an id or a whole model. Answer: a bare array."""
        rows = self._rows(call)
        if len(rows) > 50:
            raise Refused(_problem(422, "Limit 50 per page"))  # The limit is documented, its refusal is not. [EMU]

        def judge(row: Row, wrong: Complaints) -> Row:
            inside = cast(Row, row["_embedded"]) if isinstance(row.get("_embedded"), dict) else {}
            parts: Row = {}
            for name in ("contacts", "companies"):
                for place, (model, here) in enumerate(
                    self._items(inside.get(name) or [], wrong.at("_embedded").at(name))
                ):
                    if place:
                        here.say("FieldNotExpected")
                    elif "id" in model and self._alive(SPECS[name].kind, model["id"]):
                        parts[name] = {"id": model["id"]}
                    elif "id" in model:
                        here.at("id").say("NotSupportedChoice")
                    else:
                        model = {key: value for key, value in model.items() if key != "is_main"}
                        parts[name] = self._drafted(call, name, model, None, here)
            rest = {key: value for key, value in inside.items() if key not in ("contacts", "companies", "metadata")}
            lead = self._drafted(call, "leads", {**row, "_embedded": rest}, None, wrong)
            if inside.get("metadata") is not None:
                metadata = cast(Row, inside["metadata"]) if isinstance(inside["metadata"], dict) else {}
                if metadata.get("category") not in ("sip", "forms"):
                    wrong.at("_embedded").at("metadata").at("category").say("NotSupportedChoice")
                # status_id is ignored: an incoming lead stands before all stages.
                waiting = [each for each in self._stages(lead.get("pipeline_id", 0)) if each["type"] == "unsorted"]
                lead |= {"stage_id": waiting[0]["id"]} if waiting else {}
                parts["metadata"] = metadata
            return {"lead": lead, **parts}

        answers: list[Row] = []
        drafts = self._judged(rows, judge)
        with self.world.transaction():
            for name, draft in drafts:
                made: dict[str, int | None] = {}
                for type in ("contacts", "companies"):
                    part = cast("Row | None", draft.get(type))
                    known = None if part is None else part.get("id")
                    made[type] = known if part is None or known else self._new(call, SPECS[type].kind, part)
                person, firm = made["contacts"], made["companies"]
                lead = draft["lead"] | {"company_id": firm}
                lead["contacts"] = [{"id": person, "main": True}] if person else []
                id = self._new(call, "deal", lead)
                if "metadata" in draft:
                    # §8.11: the company of an incoming lead is lost.
                    self.world.update("deal", id, {"company_id": None})
                    self._wait(lead["pipeline_id"], draft["metadata"], {"leads": id, "contacts": person})
                if person and firm and not {"id"} & (draft["contacts"].keys() | draft["companies"].keys()):
                    self._join(call, "contacts", person, "companies", firm, main=False)
                answers.append(
                    {"id": id, "contact_id": person, "company_id": firm, "request_id": [str(name)], "merged": False}
                )
        if self.on["shuffle-answers"]:
            self.dice.shuffle(answers)
        return _hal(answers)

    def _wait(self, pipeline: int, metadata: Row, ids: Mapping[str, int | None]) -> None:
        """Among the incoming leads."""
        inside = {word: [{"id": id}] if id else list[Row]() for word, id in ids.items()} | {"companies": list[Row]()}
        waiting = _incoming(pipeline, self.account_id, self._now(), secrets.token_hex(29), "API", metadata, inside)
        self.shelf["unsorted"].append(waiting)

    # --- notes (§4.5) ------------------------------------------------------------------------------------------------

    def _of(self, call: Call) -> tuple[str, str, int | None]:
        """Entity type, kind and the one entity the address names, if it names one."""
        type = cast(str, call.ids["type"])
        return type, SPECS[type].kind, call.ids.get("entity")

    def list_notes(self, call: Call) -> Response:
        _, kind, entity = self._of(call)
        asked = self._heeded(call)
        where: dict[str, Condition] = {"target_kind": kind, **self._after(asked), **self._indexed(asked)}
        if "id" in asked:
            where["id"] = [_number(text) for text in _many(asked["id"])]
        if "entity_id" in asked:
            where["target_id"] = [_number(text) for text in _many(asked["entity_id"])]
        if "note_type" in asked:
            where["kind"] = _many(asked["note_type"])
        if entity is not None:
            where["target_id"] = entity
        order, descending = self._ordered(call, _NOTE_ORDERS)

        def fetch(limit: int, offset: int) -> list[Row]:
            return self.world.select(
                "note", where=where, order=order, descending=descending, limit=limit, offset=offset
            )

        return self._paged(call, "notes", fetch, lambda rows: [self._note(call, row) for row in rows])

    def get_note(self, call: Call) -> Response:
        row = self._found_note(call)
        return _nothing() if row is None else _hal(self._note(call, row))

    def _found_note(self, call: Call) -> Row | None:
        _, kind, entity = self._of(call)
        row = self.world.get("note", call.ids["id"])
        if row is None or row["target_kind"] != kind or entity not in (None, row["target_id"]):
            return None
        return row

    def _note(self, call: Call, row: Row) -> Row:
        params = dict(row["params"])
        if row["text"] or "text" in NOTE_TYPES.get(row["kind"], {"text": ""}):
            params = {"text": row["text"], **params}
        if row["kind"] == "attachment":
            name = params.get("file_name", "")
            params |= {"original_name": name, "is_drive_attachment": True, "text": name}
        shown = {
            "id": row["id"],
            "entity_id": row["target_id"],
            **{key: row[key] for key in ("created_by", "updated_by", "created_at", "updated_at")},
            "responsible_user_id": row["owner"],
            "group_id": 0,
            "note_type": row["kind"],
            "params": params,
            "account_id": self.account_id,
        }
        if "is_pinned" in call.extras:
            shown["is_pinned"] = bool(row["extra"].get("pinned"))
        return shown | {"_links": call.link(self._note_place(row))}

    def _note_place(self, row: Row) -> str:
        return f"{_TYPE_OF[row['target_kind']]}/{row['target_id']}/notes/{row['id']}"

    def create_notes(self, call: Call) -> Response:
        drafts = self._judged(self._rows(call), lambda row, wrong: self._note_draft(call, row, None, wrong))
        ids = self.world.add_many("note", [draft for _, draft in drafts])
        for id, (_, draft) in zip(ids, drafts, strict=True):
            self.desk.tell(call.user["id"], "note", None, {**draft, "id": id})
        items = [
            {
                "id": id,
                "entity_id": draft["target_id"],
                "request_id": name,
                "_links": call.link(self._note_place({**draft, "id": id})),
            }
            for id, (name, draft) in zip(ids, drafts, strict=True)
        ]
        return self._batch(call, "notes", items)

    def update_notes(self, call: Call) -> Response:
        def judge(row: Row, wrong: Complaints) -> Row | None:
            old = self._old(call, "note", row, wrong)
            if old is None:
                return None
            if old["target_kind"] != self._of(call)[1]:
                wrong.at("id").say("NotSupportedChoice")
                return None
            return self._note_draft(call, row, old, wrong)

        drafts = self._judged(self._rows(call), judge)
        changed = self.world.update_many("note", [(draft.pop("id"), draft) for _, draft in drafts])
        items: list[Row] = [
            {
                "id": row["id"],
                "entity_id": row["target_id"],
                "updated_at": row["updated_at"],
                "_links": call.link(self._note_place(row)),
            }
            for row in changed
        ]
        return _hal(items[0]) if "id" in call.ids else self._batch(call, "notes", items)

    def _note_draft(self, call: Call, row: Row, old: Row | None, wrong: Complaints) -> Row:
        _, kind, entity = self._of(call)
        columns = {key: _WHO[key] for key in ("responsible_user_id", "created_by")}
        if self.on["note-created-at"]:
            columns |= {key: _WHO[key] for key in ("created_at", "updated_at", "updated_by")}
        others = ("entity_id", "note_type", "params", "request_id", "is_need_to_trigger_digital_pipeline")
        wrong.unexpected(row, (*columns, *others, *(("id",) if old else ())))
        now = self._now()
        draft: Row = {"updated_by": call.user["id"], "updated_at": now}
        if old is None:
            draft |= {"owner": call.user["id"], "created_by": call.user["id"], "created_at": now, "target_kind": kind}
            draft["target_id"] = entity if entity is not None else row.get("entity_id")
            if draft["target_id"] is None:
                wrong.at("entity_id").say("FieldMissing")
            elif not self._alive(kind, draft["target_id"]):
                wrong.at("entity_id").say("NotSupportedChoice")
            for key in ("note_type", "params"):
                if key not in row:
                    wrong.at(key).say("FieldMissing")
        else:
            draft["id"] = old["id"]
        draft |= self._columns(columns, row, wrong)
        type = row.get("note_type", old and old["kind"])
        params = NOTE_TYPES.get(type) if isinstance(type, str) else None
        if ("note_type" in row or "params" in row) and (params is None or (old and type != old["kind"])):
            wrong.at("note_type").say("NotSupportedChoice")
        elif params is not None and "params" in row:
            draft |= {"kind": type} | _note_params(cast(str, type), params, row["params"], wrong.at("params"))
        return draft

    def pin_note(self, call: Call) -> Response:
        row = self._found_note(call)
        if row is None:
            return _problem(404, "Not found")
        extra = row["extra"] | {"pinned": not call.path.endswith("unpin")}
        self.world.update("note", row["id"], {"extra": extra, "updated_at": row["updated_at"]})
        return _nothing()

    # --- links (§4.13) -----------------------------------------------------------------------------------------------

    def _links_of(self, type: str, id: int) -> list[Row]:
        row = self.world.get(SPECS[type].kind, id)
        if row is None or row["deleted"]:
            return []
        found: list[tuple[str, int, Row | None]] = []
        if type == "leads":
            found += [("contacts", each["id"], {"main_contact": each["main"]}) for each in row["contacts"]]
        if type != "companies" and row["company_id"] is not None:
            found.append(("companies", row["company_id"], None))
        if type == "companies":
            for other in ("contacts", "leads"):
                holders = self._holders(SPECS[other].kind, "company_id", [id]).get(id, ())
                found += [(other, each["id"], None) for each in holders]
        for each in row["extra"].get("elements", ()):
            found.append(("catalog_elements", each["id"], {key: each[key] for key in ("quantity", "catalog_id")}))
        return [{"to_entity_id": to, "to_entity_type": kind, "metadata": meta} for kind, to, meta in found]

    def list_links(self, call: Call) -> Response:
        type, _, entity = self._of(call)
        if entity is None and "entity_id" not in call.filter:
            wrong = Complaints()
            wrong.at("filter").at("entity_id").say("FieldMissing")
            return _invalid([{"errors": wrong.found}])
        ids = [entity] if entity is not None else [_number(text) for text in _many(call.filter["entity_id"])]
        links: list[Row] = []
        for id in ids:
            whose = {} if entity is not None else {"entity_id": id, "entity_type": type}
            links += [whose | link for link in self._links_of(type, id)]
        to_id, to_type = call.filter.get("to_entity_id"), call.filter.get("to_entity_type")
        if to_id is not None and to_type is not None:
            links = [
                each for each in links if (each["to_entity_id"], each["to_entity_type"]) == (_number(to_id), to_type)
            ]
        total = len(links)
        page, limit = _window(call, 250)
        links = links[(page - 1) * limit : page * limit]
        if not links and self.on["empty-links-204"]:
            return _nothing()
        address = {"self": {"href": call.here(page=page, limit=limit)}}
        return _hal({"_total_items": total, "_links": address, "_embedded": {"links": links}})

    def link(self, call: Call) -> Response:
        type, kind, entity = self._of(call)
        due = (
            ("to_entity_id", "to_entity_type")
            if entity is not None
            else ("entity_id", "to_entity_id", "to_entity_type")
        )

        def judge(row: Row, wrong: Complaints) -> Row | None:
            wrong.unexpected(row, (*due, "metadata"))
            missing = [key for key in due if row.get(key) is None]
            for key in missing:
                wrong.at(key).say("FieldMissing")
            if missing:
                return None
            id = entity if entity is not None else row["entity_id"]
            to = row["to_entity_type"]
            if not self._alive(kind, id):
                wrong.at("entity_id").say("NotSupportedChoice")
            meta = cast(Row, row["metadata"]) if isinstance(row.get("metadata"), dict) else {}
            if to == "catalog_elements":
                if "catalog_id" not in meta:
                    wrong.at("metadata").at("catalog_id").say("FieldMissing")
                elif not self._element(meta["catalog_id"], row["to_entity_id"]):
                    wrong.at("to_entity_id").say("NotSupportedChoice")
            elif to not in _PAIRS[type]:
                wrong.at("to_entity_type").say("NotSupportedChoice")
            elif not self._alive(SPECS[to].kind, row["to_entity_id"]):
                wrong.at("to_entity_id").say("NotSupportedChoice")
            meta = row.get("metadata")
            if meta is not None and not isinstance(meta, dict):
                wrong.at("metadata").mistyped("array")
            known = cast(Row, meta) if isinstance(meta, dict) else {}
            wrong.at("metadata").unexpected(known, ("is_main", "updated_by", "quantity", "catalog_id", "price_id"))
            return {"id": id, "to": to, "to_id": row["to_entity_id"], "main": bool(known.get("is_main")), "meta": known}

        drafts = self._judged(self._rows(call), judge)
        with self.world.transaction():
            for _, draft in drafts:
                join = self._part if call.path.endswith("unlink") else self._join
                if draft["to"] == "catalog_elements":
                    self._put(call, kind, draft, ended=call.path.endswith("unlink"))
                    continue
                join(call, type, draft["id"], draft["to"], draft["to_id"], main=draft["main"])
        if call.path.endswith("unlink"):
            return _nothing()
        items = [
            {"entity_id": draft["id"], "entity_type": type, **link}
            for _, draft in drafts
            for link in self._links_of(type, draft["id"])
            if (link["to_entity_type"], link["to_entity_id"]) == (draft["to"], draft["to_id"])
        ]
        tail = re.sub("link$", "links", call.path.removeprefix("/api/v4/"))
        return _hal({"_total_items": len(items), "_links": call.link(tail), "_embedded": {"links": items}})

    def _element(self, catalog: Json, id: Json) -> Row | None:
        return next((row for row in self.shelf["elements"] if (row["catalog_id"], row["id"]) == (catalog, id)), None)

    def _put(self, call: Call, kind: str, draft: Row, *, ended: bool) -> None:
        """Into a card's catalog elements, or out of them."""
        row = self.world.row(kind, draft["id"])
        left = [each for each in row["extra"].get("elements", ()) if each["id"] != draft["to_id"]]
        meta = draft["meta"]
        new: Row = {"id": draft["to_id"], "quantity": meta.get("quantity", 1), "catalog_id": meta.get("catalog_id")}
        now = {"updated_by": call.user["id"], "updated_at": self._now()}
        elements = left if ended else [*left, new]
        changed = self.world.update(kind, row["id"], {"extra": row["extra"] | {"elements": elements}, **now})
        self.desk.tell(call.user["id"], kind, row, changed)

    def _join(self, call: Call, type: str, id: int, to: str, to_id: int, *, main: bool) -> None:
        """Linking what is linked changes nothing but who is the main one. §6"""
        if type == "companies":
            return self._join(call, to, to_id, type, id, main=False)
        row = cast(Row, self.world.get(SPECS[type].kind, id))
        if to == "companies":
            firm = cast(Row, self.world.get("company", to_id))
            change: Row = {"company_id": to_id} | ({"company": firm["name"]} if type == "contacts" else {})
        else:
            links = [each for each in row["contacts"] if not (main and each["id"] == to_id)]
            if main:
                links = [{"id": to_id, "main": True}, *({**each, "main": False} for each in links)]
            elif all(each["id"] != to_id for each in links):
                links.append({"id": to_id, "main": False})
            change = {"contacts": _one_main(links)}
        if any(row[key] != value for key, value in change.items()):
            self._tie(call, row, SPECS[type].kind, change, SPECS[to].kind, to_id, ended=False)
        return None

    def _tie(self, call: Call, row: Row, kind: str, change: Row, to: str, to_id: int, *, ended: bool) -> None:
        user = call.user["id"]
        new = self.world.update(kind, row["id"], change | {"updated_by": user, "updated_at": self._now()})
        self.desk.tell(user, kind, row, new)
        self.desk.linked(user, kind, row["id"], to, to_id, ended)

    def _part(self, call: Call, type: str, id: int, to: str, to_id: int, *, main: bool) -> None:
        if type == "companies":
            return self._part(call, to, to_id, type, id, main=main)
        row = cast(Row, self.world.get(SPECS[type].kind, id))
        if to == "companies":
            here = row["company_id"] == to_id
            change: Row = {"company_id": None} | ({"company": None} if type == "contacts" else {}) if here else {}
        else:
            left = [each for each in row["contacts"] if each["id"] != to_id]
            change = {"contacts": _one_main(left)} if left != row["contacts"] else {}
        if change:
            self._tie(call, row, SPECS[type].kind, change, SPECS[to].kind, to_id, ended=True)
        return None

    # --- tags and custom fields (§4.6, §4.7) -------------------------------------------------------------------------

    def list_tags(self, call: Call) -> Response:
        type, kind, _ = self._of(call)
        where: dict[str, Condition] = {"entity": kind}
        if "id" in call.filter:
            where["id"] = [_number(text) for text in _many(call.filter["id"])]
        if "name" in call.filter:
            where["name"] = _many(call.filter["name"])
        query = call.asked.get("query")
        if isinstance(query, str) and query and "name" not in where:
            where["name"] = Contains(query)

        def fetch(limit: int, offset: int) -> list[Row]:
            return self.world.select("tag", where=where, limit=limit, offset=offset)

        return self._paged(call, "tags", fetch, lambda rows: [self._tag(type, row) for row in rows])

    def create_tags(self, call: Call) -> Response:
        type, kind, _ = self._of(call)

        def judge(row: Row, wrong: Complaints) -> Row:
            wrong.unexpected(row, ("name", "color", "request_id"))
            if not row.get("name"):
                wrong.at("name").say("FieldMissing")
            elif not isinstance(row["name"], str):
                wrong.at("name").mistyped("string")
            color = row.get("color")
            if color is not None and not (isinstance(color, str) and re.fullmatch("[0-9A-Fa-f]{6}", color)):
                wrong.at("color").say("NotSupportedChoice")
            return row

        items: list[Row] = []
        drafts = self._judged(self._rows(call), judge)
        with self.world.transaction():
            for name, row in drafts:
                known = self.world.count("tag", {"entity": kind, "name": row["name"]})
                id = self.world.tag_id(kind, row["name"])
                if not known and row.get("color"):
                    self.world.update("tag", id, {"extra": {"color": row["color"].upper()}})
                items.append(self._tag(type, cast(Row, self.world.get("tag", id))) | {"request_id": name})
        return self._batch(call, "tags", items, total=True)

    def update_tags(self, call: Call) -> Response:
        _, kind, _ = self._of(call)

        def judge(row: Row, wrong: Complaints) -> Row | None:
            wrong.unexpected(row, ("id", "name", "color", "request_id"))
            old = self._old(call, "tag", row, wrong)
            if not _is(row.get("name"), "string"):
                wrong.at("name").say("FieldMissing")
            return None if old is None else {"old": old, "name": row.get("name")}

        items: list[Row] = []
        drafts = self._judged(self._rows(call), judge)
        with self.world.transaction():
            for name, draft in drafts:
                old = draft["old"]
                held = [row for row in self.world.select(kind) if old["name"] in row["tags"]]
                changed = self.world.update("tag", old["id"], {"name": draft["name"]})
                for row in held:
                    tags = [draft["name"] if tag == old["name"] else tag for tag in row["tags"]]
                    self.world.update(kind, row["id"], {"tags": tags, "updated_at": row["updated_at"]})
                items.append(self._tag("leads", changed) | {"request_id": name})
        return self._batch(call, "tags", items, total=True)

    def list_fields(self, call: Call) -> Response:
        _, kind, _ = self._of(call)
        where: dict[str, Condition] = {"entity": kind}
        if "id" in call.filter:
            where["id"] = [_number(text) for text in _many(call.filter["id"])]
        if "type" in call.filter:
            where["type"] = _many(call.filter["type"])
        order, descending = self._ordered(call, {"sort": "sort", "id": "id"})
        order = "sort" if order == "updated_at" else order

        def fetch(limit: int, offset: int) -> list[Row]:
            return self.world.select(
                "field", where=where, order=order, descending=descending, limit=limit, offset=offset
            )

        total = self.world.count("field", where)
        # §2.3: a page of fields has up to fifty.
        return self._paged(
            call, "custom_fields", fetch, lambda rows: [self._field(call, row) for row in rows], top=50, total=total
        )

    def _field(self, call: Call, row: Row) -> Row:
        type = _TYPE_OF[row["entity"]]
        own = row["code"] in _PARTS
        enums = [{key: enum[key] for key in ("id", "value", "sort", "code")} for enum in row["enums"]]
        shown = {
            "id": row["id"],
            "name": row["name"],
            "type": row["type"],
            "account_id": self.account_id,
            "code": row["code"],
            "sort": row["sort"],
            "is_api_only": False,
            "enums": enums or None,
            "group_id": None,
            "required_statuses": [],
            "is_deletable": not own,
            "is_predefined": own,
            "entity_type": type,
            "tracking_callback": None,
            "remind": None,
            "triggers": [],
            "currency": None,
            "hidden_statuses": [],
            "chained_lists": None,
        }
        if type == "leads":
            shown["is_computed"] = False
        return shown | row["extra"] | {"_links": call.link(f"{type}/custom_fields/{row['id']}")}

    def _found_field(self, call: Call) -> Row:
        row = self.world.get("field", call.ids["id"])
        if row is None or row["entity"] != self._of(call)[1]:
            raise Refused(_problem(404, "Not found"))
        return row

    def get_field(self, call: Call) -> Response:
        return _hal(self._field(call, self._found_field(call)))

    def create_fields(self, call: Call) -> Response:
        self._admins_only(call)
        single = bool(self.on["bare-field-create"]) and call.body.lstrip().startswith(b"{")
        drafts = self._judged(
            self._rows(call, bare=single), lambda row, wrong: self._field_draft(call, row, None, wrong)
        )
        ids = self.world.add_many("field", [draft for _, draft in drafts])
        items: list[Row] = []
        for id, (name, _) in zip(ids, drafts, strict=True):
            items.append(self._field(call, cast(Row, self.world.get("field", id))) | {"request_id": name})
        if single:
            del items[0]["request_id"]
            return _hal(items[0], 201)
        return self._batch(call, "custom_fields", items, status=201, total=True)

    def update_fields(self, call: Call) -> Response:
        self._admins_only(call)
        if "id" in call.ids:
            self._found_field(call)

        def judge(row: Row, wrong: Complaints) -> Row | None:
            old = self._old(call, "field", row, wrong)
            if old is not None and old["entity"] != self._of(call)[1]:
                wrong.at("id").say("NotSupportedChoice")
                return None
            return None if old is None else self._field_draft(call, row, old, wrong)

        drafts = self._judged(self._rows(call), judge)
        changed = self.world.update_many("field", [(draft.pop("id"), draft) for _, draft in drafts])
        items = [self._field(call, row) | {"request_id": name} for row, (name, _) in zip(changed, drafts, strict=True)]
        return (
            _hal(items[0], 201)
            if "id" in call.ids
            else self._batch(call, "custom_fields", items, status=201, total=True)
        )

    def _field_draft(self, call: Call, row: Row, old: Row | None, wrong: Complaints) -> Row:
        type, kind, _ = self._of(call)
        more = ("is_api_only", "group_id", "required_statuses", "remind", "currency", "settings", "is_visible")
        more += ("is_required", "hidden_statuses", "chained_lists", "tracking_callback")
        allowed = ("name", "code", "sort", "enums", "request_id", *more, *(("id",) if old else ("type",)))
        wrong.unexpected(row, allowed)
        columns = {
            "name": Column("name", "string", required=True),
            "code": Column("code", "string", null=True),
            "sort": Column("sort", "int"),
        }
        draft = self._columns(columns, row, wrong)
        what = cast("str | None", old["type"] if old else row.get("type"))
        if old is None:
            draft |= {"entity": kind, "type": what}
            for key in ("name", "type"):
                if row.get(key) is None:
                    wrong.at(key).say("FieldMissing")
            if what is not None and what not in _FIELD_TYPES[type]:
                wrong.at("type").say("NotSupportedChoice")
            draft.setdefault("sort", 500 + self.world.count("field", {"entity": kind}))
            if what == "monetary" and not row.get("currency"):
                wrong.at("currency").say("FieldMissing")
        else:
            draft["id"] = old["id"]
        if what in ("select", "multiselect", "radiobutton") and old is None and not row.get("enums"):
            wrong.at("enums").say("FieldMissing")
        if row.get("enums") is not None:
            draft["enums"] = self._enums(row["enums"], old, wrong.at("enums"))
        extra = {key: row[key] for key in more if key in row}
        return draft | {"extra": (old["extra"] if old else {}) | extra}

    def _enums(self, given: Json, old: Row | None, wrong: Complaints) -> list[Row]:
        """§4.7: the list is replaced; a row without its id gets a new one, and the old id is lost."""
        known = {enum["id"] for enum in old["enums"]} if old else set[int]()
        enums: list[Row] = []
        for enum, here in self._items(given, wrong):
            here.unexpected(enum, ("id", "value", "sort", "code"))
            for key, type in (("value", "string"), ("sort", "int")):
                if key not in enum:
                    here.at(key).say("FieldMissing")
                elif not _is(enum[key], type):
                    here.at(key).mistyped(type)
            if "id" in enum and enum["id"] not in known:
                here.at("id").say("NotSupportedChoice")
            kept = {"value": enum.get("value"), "sort": enum.get("sort"), "code": enum.get("code")}
            enums.append({"id": enum.get("id") or self.world.next_id(), **kept})
        return enums

    def delete_field(self, call: Call) -> Response:
        self._admins_only(call)
        row = self._found_field(call)
        if row["code"] in _PARTS:
            return _problem(422, "Custom field can not be deleted")  # [EMU]: is_deletable is false.
        self.world.delete("field", row["id"])
        return _nothing()

    # --- pipelines and statuses (§4.9) -------------------------------------------------------------------------------

    def list_pipelines(self, call: Call) -> Response:
        """§3.1: page and limit are ignored, everything comes back."""
        items = [self._pipeline(call, row) for row in self.world.select("pipeline", order="sort")]
        link = {"self": {"href": call.here()}}
        return _hal({"_total_items": len(items), "_links": link, "_embedded": {"pipelines": items}})

    def _pipeline(self, call: Call, row: Row) -> Row:
        stages = self._stages(row["id"])
        return {
            "id": row["id"],
            "name": row["name"],
            "sort": row["sort"],
            "is_main": row["main"],
            "is_unsorted_on": row["extra"].get("unsorted_on", any(stage["type"] == "unsorted" for stage in stages)),
            "is_archive": row["archived"],
            "account_id": self.account_id,
            "_links": call.link(f"leads/pipelines/{row['id']}"),
            "_embedded": {"statuses": [self._status(call, stage) for stage in stages]},
        }

    def _status(self, call: Call, row: Row) -> Row:
        pipeline = row["pipeline_id"]
        shown = {
            "id": row["id"],
            "name": row["name"],
            "sort": row["sort"],
            "is_editable": row["editable"],
            "pipeline_id": pipeline,
            "color": row["color"],
            "type": 1 if row["type"] == "unsorted" else 0,
            "account_id": self.account_id,
            "_links": call.link(f"leads/pipelines/{pipeline}/statuses/{row['id']}"),
        }
        return shown | ({"descriptions": row["extra"].get("descriptions", [])} if "descriptions" in call.extras else {})

    def _found_pipeline(self, call: Call) -> Row:
        row = self.world.get("pipeline", call.ids["pipeline"])
        if row is None:
            raise Refused(_problem(404, "Not found"))
        return row

    def _found_status(self, call: Call) -> Row:
        row = self.world.get("stage", (call.ids["pipeline"], call.ids["id"]))
        if row is None:
            raise Refused(_problem(404, "Not found"))
        return row

    def get_pipeline(self, call: Call) -> Response:
        return _hal(self._pipeline(call, self._found_pipeline(call)))

    def list_statuses(self, call: Call) -> Response:
        items = [self._status(call, stage) for stage in self._stages(self._found_pipeline(call)["id"])]
        return _hal({"_total_items": len(items), "_embedded": {"statuses": items}})

    def get_status(self, call: Call) -> Response:
        return _hal(self._status(call, self._found_status(call)))

    def create_pipelines(self, call: Call) -> Response:
        self._admins_only(call)

        def judge(row: Row, wrong: Complaints) -> Row:
            wrong.unexpected(row, (*_PIPELINE, "_embedded", "request_id"))
            draft = self._columns(_PIPELINE, row, wrong)
            for name in _PIPELINE:
                if name not in row:
                    wrong.at(name).say("FieldMissing")
            inside = cast(Row, row["_embedded"]) if isinstance(row.get("_embedded"), dict) else {}
            stages: list[Row] = []
            for stage, here in self._items(inside.get("statuses") or [], wrong.at("_embedded").at("statuses")):
                ending = stage.get("id") in (WON, LOST)
                here.unexpected(stage, ("id", "name") if ending else ("name", "sort", "color"))
                stages.append(
                    {"id": stage["id"], **self._status_draft(stage, here, ending)}
                    if ending
                    else self._status_draft(stage, here, ending)
                )
            return draft | {"stages": stages}

        drafts = self._judged(self._rows(call), judge)
        if self.world.count("pipeline") + len(drafts) > 50:
            raise Refused(_problem(422, "Limit 50 pipelines"))  # §2.3; the words are ours. [EMU]
        items: list[Row] = []
        with self.world.transaction():
            for name, draft in drafts:
                row = self._add_pipeline(draft)
                items.append(self._pipeline(call, row) | {"request_id": name})
        return self._batch(call, "pipelines", items, total=True)

    def _status_draft(self, row: Row, wrong: Complaints, partial: bool) -> Row:
        draft = self._columns(_STATUS, row, wrong)
        for name in ("name", "sort"):
            if name not in row and not partial:
                wrong.at(name).say("FieldMissing")
        if row.get("color") is not None and row["color"] not in _COLORS:
            wrong.at("color").say("NotSupportedChoice")
        return draft

    def _add_pipeline(self, draft: Row) -> Row:
        stages = cast(list[Row], draft.pop("stages"))
        unsorted_on = draft.pop("unsorted_on")
        id = self.world.add("pipeline", {**draft, "main": False, "extra": {"unsorted_on": unsorted_on}})
        if draft["main"]:
            self._make_main(id)
        renamed = {stage["id"]: stage["name"] for stage in stages if "id" in stage and "name" in stage}
        system: list[Row] = [
            {
                "name": "Неразобранное" if self.amo else "Incoming leads",
                "type": "unsorted",
                "sort": 10,
                "color": "#c1c1c1",
            },
            {"id": WON, "name": "Closed - won", "type": "won", "sort": 10000, "color": "#CCFF66"},
            {"id": LOST, "name": "Closed - lost", "type": "lost", "sort": 11000, "color": "#D5D8DB"},
        ]
        own = [stage for stage in stages if "id" not in stage] or [{"name": "Initial contact", "sort": 20}]
        for stage in system:
            name = renamed.get(stage.get("id"), stage["name"])
            self.world.add("stage", {**stage, "name": name, "pipeline_id": id, "editable": False})
        for stage in own:
            self.world.add("stage", {"color": "#fffeb2", **stage, "pipeline_id": id})
        return cast(Row, self.world.get("pipeline", id))

    def _make_main(self, id: int) -> None:
        for row in self.world.select("pipeline", where={"main": True}):
            self.world.update("pipeline", row["id"], {"main": False})
        self.world.update("pipeline", id, {"main": True})

    def update_pipeline(self, call: Call) -> Response:
        self._admins_only(call)
        row = self._found_pipeline(call)
        draft = self._one(call, lambda given, wrong: self._partial(_PIPELINE, given, wrong))
        with self.world.transaction():
            if draft.pop("main", False):
                self._make_main(row["id"])
            if "unsorted_on" in draft:
                draft["extra"] = row["extra"] | {"unsorted_on": draft.pop("unsorted_on")}
            row = self.world.update("pipeline", row["id"], draft)
        return _hal(self._pipeline(call, row))

    def _partial(self, columns: Mapping[str, Column], row: Row, wrong: Complaints) -> Row:
        wrong.unexpected(row, (*columns, "request_id"))
        return self._columns(columns, row, wrong)

    def _one(self, call: Call, judge: Callable[[Row, Complaints], Row]) -> Row:
        """The one object a PATCH of a pipeline or status takes."""
        rows = self._rows(call, bare=True)
        return self._judged(rows[:1], judge)[0][1]

    def delete_pipeline(self, call: Call) -> Response:
        self._admins_only(call)
        id = call.ids["pipeline"]
        if self.world.get("pipeline", id) is None:
            wrong = Complaints()
            wrong.at("id").say("NotSupportedChoice")  # §3.2: 400, not 404.
            return _invalid([{"errors": wrong.found}])
        if self.world.count("deal", {"pipeline_id": id, "deleted": False}) or self.world.count("pipeline") == 1:
            return _problem(422, "Only pipelines without leads can be deleted")
        with self.world.transaction():
            for stage in self._stages(id):
                self.world.delete("stage", (id, stage["id"]))
            self.world.delete("pipeline", id)
        return _nothing()

    def create_statuses(self, call: Call) -> Response:
        self._admins_only(call)
        pipeline = self._found_pipeline(call)["id"]

        def judge(row: Row, wrong: Complaints) -> Row:
            wrong.unexpected(row, (*_STATUS, "request_id"))
            return self._status_draft(row, wrong, False)

        drafts = self._judged(self._rows(call), judge)
        if len(self._stages(pipeline)) + len(drafts) > 100:
            raise Refused(_problem(422, "Limit 100 statuses"))  # §2.3; the words are ours. [EMU]
        ids = self.world.add_many("stage", [{**draft, "pipeline_id": pipeline} for _, draft in drafts])
        items = [
            self._status(call, cast(Row, self.world.get("stage", (pipeline, id)))) | {"request_id": name}
            for id, (name, _) in zip(ids, drafts, strict=True)
        ]
        return self._batch(call, "statuses", items, total=True)

    def update_status(self, call: Call) -> Response:
        self._admins_only(call)
        row = self._found_status(call)

        def judge(given: Row, wrong: Complaints) -> Row:
            # Won and lost may be renamed (§4.9), the unsorted one may not be touched.
            allowed = _STATUS if row["editable"] else {"name": _STATUS["name"]} if row["type"] != "unsorted" else {}
            wrong.unexpected(given, (*allowed, "request_id"))
            return self._status_draft(given, wrong, True)

        draft = self._one(call, judge)
        return _hal(self._status(call, self.world.update("stage", (row["pipeline_id"], row["id"]), draft)))

    def delete_status(self, call: Call) -> Response:
        """§4.9: its leads move to the first stage."""
        self._admins_only(call)
        row = self._found_status(call)
        pipeline = row["pipeline_id"]
        others = [stage for stage in self._stages(pipeline) if stage["editable"] and stage["id"] != row["id"]]
        if not row["editable"] or not others:
            return _problem(422, "Status can not be deleted")  # [EMU]
        with self.world.transaction():
            leads = self.world.select("deal", where={"pipeline_id": pipeline, "stage_id": row["id"]})
            self.world.update_many("deal", [(lead["id"], {"stage_id": others[0]["id"]}) for lead in leads])
            self.world.delete("stage", (pipeline, row["id"]))
        return _nothing()

    # --- users, loss reasons, the account (§4.10, §4.11) -------------------------------------------------------------

    def list_users(self, call: Call) -> Response:
        self._admins_only(call)

        def fetch(limit: int, offset: int) -> list[Row]:
            return self.world.select("user", limit=limit, offset=offset)

        total = self.world.count("user")
        return self._paged(call, "users", fetch, lambda rows: [self._user(call, row) for row in rows], total=total)

    def get_user(self, call: Call) -> Response:
        self._admins_only(call)
        row = self.world.get("user", call.ids["id"])
        return _problem(404, "Not found") if row is None else _hal(self._user(call, row))

    def _user(self, call: Call, row: Row) -> Row:
        rights: Row = {name: dict.fromkeys(_RIGHTS, "A") for name in CARDS}
        rights |= {"tasks": {"edit": "A", "delete": "A"}, "mail_access": row["admin"], "catalog_access": row["admin"]}
        rights |= {"status_rights": None, "is_admin": row["admin"], "is_free": False, "is_active": row["active"]}
        shown: Row = {"id": row["id"], "name": row["name"], "email": row["email"]}
        shown |= {"lang": self.world.account["language"], "rights": rights | {"group_id": None, "role_id": None}}
        shown |= {name: None for name in ("uuid", "amojo_id", "user_rank", "phone_number") if name in call.extras}
        inside = {f"{name}s": list[Row]() for name in ("role", "group") if name in call.extras}
        return shown | {"_links": call.link(f"users/{row['id']}")} | ({"_embedded": inside} if inside else {})

    def create_users(self, call: Call) -> Response:
        """§4.10: at most ten at once."""
        self._admins_only(call)
        rows = self._rows(call)
        if len(rows) > 10:
            raise Refused(_problem(422, "Limit 10 per request"))  # The limit is documented, its refusal is not. [EMU]

        def judge(row: Row, wrong: Complaints) -> Row:
            wrong.unexpected(row, ("name", "email", "password", "lang", "rights", "request_id"))
            known = {"name": "[\\w .@-]{1,50}", "email": "[^@ ]+@[^@ ]+", "password": _PASSWORD}
            for key, shape in known.items():
                if row.get(key) is None:
                    wrong.at(key).say("FieldMissing")
                elif not _is(row[key], "string"):
                    wrong.at(key).mistyped("string")
                elif not re.fullmatch(shape, row[key]):
                    wrong.at(key).say("NotSupportedChoice")  # [EMU]
            rights = cast(Row, row["rights"]) if isinstance(row.get("rights"), dict) else {}
            return {"name": row.get("name"), "email": row.get("email"), "admin": rights.get("is_admin") is True}

        drafts = self._judged(rows, judge)
        ids = self.world.add_many("user", [draft for _, draft in drafts])
        items = [
            self._user(call, self.world.row("user", id)) | {"request_id": name}
            for id, (name, _) in zip(ids, drafts, strict=True)
        ]
        return self._batch(call, "users", items, status=201, total=True)

    # --- what can only be read here: roles, catalogs, incoming leads, events (§4.10, §4.14-§4.16) --------------------

    def _shown_of(self, call: Call, word: str, rows: Sequence[Row], *, total: bool = False, top: int = 250) -> Response:
        """A page of rows that are kept as they are shown."""

        def show(page: list[Row]) -> list[Row]:
            tail = call.path.removeprefix("/api/v4/")
            return [{**row, "_links": call.link(f"{tail}/{row.get('id', row.get('uid'))}")} for row in page]

        def fetch(limit: int, offset: int) -> list[Row]:
            return list(rows[offset : offset + limit])

        return self._paged(call, word, fetch, show, top=top, total=len(rows) if total else None)

    def list_roles(self, call: Call) -> Response:
        self._admins_only(call)
        users = {"_embedded": {"users": list[Row]()}} if "users" in call.extras else {}
        return self._shown_of(call, "roles", [{**row, **users} for row in self.shelf["roles"]], total=True)

    def list_catalogs(self, call: Call) -> Response:
        return self._shown_of(call, "catalogs", self.shelf["catalogs"])

    def list_elements(self, call: Call) -> Response:
        catalog = call.ids["catalog"]
        if catalog not in [row["id"] for row in self.shelf["catalogs"]]:
            return _problem(404, "Not found")
        rows = [row for row in self.shelf["elements"] if row["catalog_id"] == catalog]
        if "id" in call.filter:
            rows = [row for row in rows if str(row["id"]) in _many(call.filter["id"])]
        query = str(call.asked.get("query", "")).casefold()
        return self._shown_of(call, "elements", [row for row in rows if query in row["name"].casefold()])

    def list_unsorted(self, call: Call) -> Response:
        rows = self.shelf["unsorted"]
        for name in ("uid", "category", "pipeline_id"):
            if name in call.filter:
                rows = [row for row in rows if str(row[name]) in _many(call.filter[name])]
        return self._shown_of(call, "unsorted", rows)

    def get_unsorted(self, call: Call) -> Response:
        row = next((row for row in self.shelf["unsorted"] if row["uid"] == call.ids["uid"]), None)
        return _problem(404, "Not found") if row is None else _hal(row)

    def list_events(self, call: Call) -> Response:
        """§3.5, §4.14. Newest first; no source says so. [EMU]"""
        rows: Sequence[Row] = self.desk.log[::-1]
        keys = {
            "id": "id",
            "type": "type",
            "entity": "entity_type",
            "entity_id": "entity_id",
            "created_by": "created_by",
        }
        for name, key in keys.items():
            if name in call.filter:
                wanted = {each for text in _many(call.filter[name]) for each in text.split(",")}
                rows = [row for row in rows if str(row[key]) in wanted]
        if "created_at" in call.filter:
            node = call.filter["created_at"]
            span = _span(node) if isinstance(node, dict) else Range(_number(node) + 1)
            low, high = cast("tuple[int | None, int | None]", (span.low, span.high))
            rows = [
                row
                for row in rows
                if (low is None or row["created_at"] >= low) and (high is None or row["created_at"] <= high)
            ]
        # §2.3, §8.19: a hundred on amocrm.ru.
        return self._shown_of(call, "events", [self._event(call, row) for row in rows], top=100 if self.amo else 250)

    def get_event(self, call: Call) -> Response:
        row = next((row for row in self.desk.log if row["id"] == call.ids["uid"]), None)
        return _nothing() if row is None else _hal(self._event(call, row))

    def _event(self, call: Call, row: Row) -> Row:
        place = {"company": "companies"}.get(row["entity_type"], f"{row['entity_type']}s")
        entity: Row = {"id": row["entity_id"], "_links": call.link(f"{place}/{row['entity_id']}")}
        return {**row, "account_id": self.account_id, "_embedded": {"entity": entity}}

    # --- subscriptions (§4.12) ---------------------------------------------------------------------------------------

    def _hook(self, row: Row, settings: Json) -> Row:
        return {
            "id": row["id"],
            "destination": row["url"],
            "created_at": row["created_at"],
            "updated_at": row["updated_at"],
            "account_id": self.account_id,
            "created_by": row["created_by"],
            "sort": row["extra"].get("sort", 0),
            "disabled": not row["active"],
            "settings": settings,
        }

    def list_hooks(self, call: Call) -> Response:
        self._admins_only(call)
        rows = self.world.select("webhook")
        if "destination" in call.filter:
            rows = [row for row in rows if row["url"] in _many(call.filter["destination"])]
        items = [self._hook(row, row["events"]) for row in rows]
        return _hal({"_total_items": len(items), "_embedded": {"webhooks": items}}) if items else _nothing()

    def subscribe(self, call: Call) -> Response:
        """One object; the same destination changes its hook. The live answer has ``settings`` as an object."""
        self._admins_only(call)
        given = _read(call.body)
        wrong = Complaints()
        if not isinstance(given, dict):
            raise Refused(_problem(400, "Request data can not be empty"))
        asked = cast(Row, given)
        wrong.unexpected(asked, ("destination", "settings", "sort"))
        url, codes = asked.get("destination"), asked.get("settings")
        if not isinstance(url, str):
            wrong.at("destination").say("FieldMissing")
        if not isinstance(codes, list) or not codes:
            wrong.at("settings").say("FieldMissing")
        else:
            for place, code in enumerate(cast(list[Json], codes)):
                if code not in HOOKS:
                    wrong.at("settings").at(place).say("NotSupportedChoice")
        if wrong.found:
            return _invalid([{"errors": wrong.found}])
        url, codes = cast(str, url), list(dict.fromkeys(cast(list[str], codes)))
        parts = urlsplit(url)
        # Cyrillic domains are refused; on Kommo so is an address without a path.
        if parts.scheme not in ("http", "https") or not parts.netloc.isascii() or not (parts.path or self.amo):
            return _problem(422, "Invalid URL")
        known = next((row for row in self.world.select("webhook") if row["url"] == url), None)
        change: Row = {"events": codes, "active": True, "extra": {"sort": asked.get("sort", 0)}}
        if known is not None:
            row = self.world.update("webhook", known["id"], change | {"updated_at": self._now()})
        elif self.world.count("webhook") >= 100:
            return _problem(422, "Limit 100 webhooks")  # §2.3; the words are ours. [EMU]
        else:
            who = {"created_by": call.user["id"], "created_at": self._now(), "updated_at": self._now()}
            row = self.world.row("webhook", self.world.add("webhook", {"url": url, **change, **who}))
        return _hal(self._hook(row, dict.fromkeys(codes, 1)), 201)

    def unsubscribe(self, call: Call) -> Response:
        """By the destination: there is no address with an id."""
        self._admins_only(call)
        given = _read(call.body)
        url = cast(Row, given).get("destination") if isinstance(given, dict) else None
        known = next((row for row in self.world.select("webhook") if row["url"] == url), None)
        if known is None:
            return _problem(404, "Not found")
        self.world.delete("webhook", known["id"])
        return _nothing()

    def _loss_reason(self, call: Call, row: Row) -> Row:
        shown = {key: row[key] for key in ("id", "name", "sort", "created_at", "updated_at")}
        return shown | {"_links": call.link(f"leads/loss_reasons/{row['id']}")}

    def list_loss_reasons(self, call: Call) -> Response:
        def fetch(limit: int, offset: int) -> list[Row]:
            return self.world.select("loss_reason", order="sort", limit=limit, offset=offset)

        return self._paged(call, "loss_reasons", fetch, lambda rows: [self._loss_reason(call, row) for row in rows])

    def show_account(self, call: Call) -> Response:
        row = self.world.account
        symbol = {"RUB": "₽", "USD": "$", "EUR": "€"}.get(row["currency"], row["currency"])
        shown: Row = {
            "id": row["id"],
            "name": row["name"],
            "subdomain": row["subdomain"],
            "created_at": row["created_at"],
            "created_by": 0,
            "updated_at": row["created_at"],
            "updated_by": 0,
            "current_user_id": call.user["id"],
            "country": "RU" if row["zone"] == "Europe/Moscow" else "US",
            "currency": row["currency"],
            "currency_symbol": symbol,
            "customers_mode": "unavailable",
            "is_unsorted_on": True,
            "mobile_feature_version": 0,
            "is_loss_reason_enabled": True,
            "is_helpbot_enabled": False,
            "is_technical_account": False,
            "contact_name_display_order": 1,
        }
        parts: Row = {
            "amojo_id": str(uuid.uuid5(uuid.NAMESPACE_URL, str(row["id"]))),
            "drive_url": f"https://drive-{'b.amocrm.ru' if self.amo else 'c.kommo.com'}",
            "version": 16,
            "is_api_filter_enabled": self.on["api-filter"],
            "entity_names": {},
            "invoices_settings": {"lang": row["language"], "invoices_catalog_id": None},
        }
        shown |= {name: part for name, part in parts.items() if name in call.extras}
        offset = datetime.fromtimestamp(self._now(), self.zone).strftime("%z")
        types = self.world.select("task_type")
        inside: Row = {
            "amojo_rights": {"can_direct": True, "can_create_groups": True},
            "users_groups": [{"id": 0, "name": "Отдел продаж", "uuid": None}],
            "task_types": [
                {"id": each["id"], "name": each["name"], "color": None, "icon_id": None, "code": each["code"]}
                for each in types
            ],
            "datetime_settings": {
                "date_pattern": "d.m.Y H:i",
                "short_date_pattern": "d.m.Y",
                "short_time_pattern": "H:i",
                "date_format": "d.m.Y",
                "time_format": "H:i:s",
                "timezone": row["zone"],
                "timezone_offset": f"{offset[:3]}:{offset[3:]}",
            },
        }
        inside = {name: part for name, part in inside.items() if name in call.extras}
        return _hal(shown | {"_links": {"self": {"href": call.here()}}} | ({"_embedded": inside} if inside else {}))


_PIPELINE: Final = {
    "name": Column("name", "string"),
    "sort": Column("sort", "int"),
    "is_main": Column("main", "bool"),
    "is_unsorted_on": Column("unsorted_on", "bool"),
}
_STATUS: Final = {
    "name": Column("name", "string"),
    "sort": Column("sort", "int"),
    "color": Column("color", "string"),
}


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
# §4.10: six letters or more, a digit, a small and a capital one.
_PASSWORD: Final = r"(?=.*\d)(?=.*[a-z])(?=.*[A-Z]).{6,}"


def _incoming(
    pipeline: int, account: int, now: int, uid: str, source: str, metadata: Row, inside: Mapping[str, Json]
) -> Row:
    """§4.15."""
    told = {key: part for key, part in metadata.items() if key != "category"}
    head: Row = {"uid": uid, "source_uid": None, "source_name": source, "category": metadata.get("category")}
    tail: Row = {"pipeline_id": pipeline, "created_at": now, "account_id": account}
    return {**head, **tail, "metadata": told, "_embedded": inside}


def _shelf(now: int, world: World) -> Mapping[str, list[Row]]:
    """A few rows of what can only be read here."""
    account, admin = world.account["id"], world.admin["id"]
    pipeline = world.select("pipeline", where={"main": True}, limit=1)[0]["id"]
    who: Row = {"created_by": admin, "updated_by": admin, "created_at": now, "updated_at": now, "account_id": account}

    def catalog(id: int, name: str, type: str, sort: int) -> Row:
        can = {"can_add_elements": True, "can_show_in_cards": False, "can_link_multiple": True}
        own = {"can_be_deleted": type == "regular", "sdk_widget_code": None}
        return {"id": id, "name": name, "type": type, "sort": sort, **who, **can, **own}

    def value(id: int, name: str, code: str, type: str, **item: Json) -> Row:
        return {"field_id": id, "field_name": name, "field_code": code, "field_type": type, "values": [item]}

    def element(id: int, name: str, price: str, group: str) -> Row:
        values = [
            value(271207, "Артикул", "SKU", "text", value=f"sku-{id}"),
            value(271211, "Цена", "PRICE", "price", value=price),
            value(271213, "Группа", "GROUP", "category", value=group, enum_id=10663),
            value(271215, "Поставщик", "SUPPLIER", "supplier", value={"entity_id": 521717}),
        ]
        return {"id": id, "name": name, "catalog_id": 4521, "is_deleted": False, "custom_fields_values": values, **who}

    def incoming(uid: str, category: str, source: str, metadata: Row) -> Row:
        inside: Row = {"contacts": list[Row](), "companies": list[Row](), "leads": list[Row]()}
        return _incoming(pipeline, account, now, uid, source, {"category": category, **metadata}, inside)

    rights: Row = {name: dict.fromkeys(_RIGHTS, "A") for name in CARDS}
    rights |= {"tasks": {"edit": "A", "delete": "A"}, "mail_access": False, "catalog_access": False}
    return {
        "catalogs": [catalog(4521, "Товары", "products", 10), catalog(4589, "Поставщики", "regular", 20)],
        "elements": [element(525439, "Телефон", "12.50", "Телефоны"), element(525441, "Чехол", "3", "Аксессуары")],
        "roles": [{"id": 107995, "name": "Отдел продаж", "rights": rights | {"status_rights": None}}],
        "unsorted": [
            incoming("98fb033cefde74f5de1a5d3980a2a2d108037" + "0" * 19, "sip", "UIS", {"phone": "79990001122"}),
            incoming("3cbd1de2ebfbd152fd6a465cd3e586cbdba6827" + "0" * 17, "forms", "Сайт", {"form_id": "f1"}),
        ],
    }


# --- values and links, one at a time (§4.8) --------------------------------------------------------------------------


@frozen
class Shape:
    """How one custom field is read off a row, decided once a page."""

    head: Row
    key: str
    part: str | None
    box: bool
    read: Callable[[Row], Row]

    def items(self, row: Row) -> Sequence[Row]:
        """The world's values, wherever it keeps them."""
        if self.part is None:
            return cast(Sequence[Row], row["fields"].get(self.key, ()))
        if self.part == "position":
            return [{"value": row["position"]}] if row.get("position") else ()
        return cast(Sequence[Row], row.get(self.part) or ())


def _shape(field: Row) -> Shape:
    head: Row = {
        "field_id": field["id"],
        "field_name": field["name"],
        "field_code": field["code"],
        "field_type": field["type"],
        "is_computed": False,
    }
    part = _PARTS.get(field["code"] or "")
    return Shape(head, str(field["id"]), part, field["type"] == "checkbox", _reader(field, part is not None))


def _reader(field: Row, own: bool) -> Callable[[Row], Row]:
    enums = cast(list[Row], field["enums"])
    by_id = {enum["id"]: enum for enum in enums}
    by_code = {enum["value"]: enum["id"] for enum in enums}

    def multitext(item: Row) -> Row:
        # A card's own phones have the world's labels; other fields keep the enum. Without either it is WORK.
        code = _CODES.get(item.get("label") or "work", "OTHER") if own else None
        if code not in by_code:
            code = "OTHER" if own else by_id.get(item.get("enum_id"), {"value": "WORK"})["value"]
        return {"value": item["value"], "enum_id": by_code.get(code), "enum_code": code}

    def choice(item: Row) -> Row:
        enum = by_id.get(item.get("enum_id"))
        value, code = (enum["value"], enum["code"]) if enum else (item["value"], None)
        return {"value": value, "enum_id": item.get("enum_id"), "enum_code": code}

    def text(item: Row) -> Row:
        return {"value": str(item["value"])}  # Whatever was sent as a number, a string comes back.

    def address(item: Row) -> Row:
        return {**item, "enum_code": _ADDRESS_LINES[item["enum_id"] - 1]}

    kinds: Mapping[str, Callable[[Row], Row]] = {
        "multitext": multitext,
        "numeric": text,
        "monetary": text,
        "smart_address": address,
        **dict.fromkeys(_CHOICES, choice),
    }
    return kinds.get(field["type"], lambda item: {"value": item["value"]} if "value" in item else dict(item))


def _named(field: Row, item: Row, wrong: Complaints) -> Row | None:
    """The enum an item names by id or code, with a complaint if there is no such."""
    key = "enum_id" if "enum_id" in item else "enum_code"
    for enum in field["enums"]:
        if item[key] in ([enum["id"]] if key == "enum_id" else [enum["code"], enum["value"]]):
            return enum
    wrong.at(key).say("NotSupportedChoice")
    return None


def _choice(field: Row, item: Row, wrong: Complaints) -> Row | None:
    if "enum_id" in item or "enum_code" in item:
        enum = _named(field, item, wrong)
    else:
        # By text it has to be the text exactly. §8.7
        enum = next((enum for enum in field["enums"] if enum["value"] == item.get("value")), None)
        if enum is None:
            wrong.at("value").say("NotSupportedChoice" if "value" in item else "FieldMissing")
    return {"value": enum["value"], "enum_id": enum["id"]} if enum else None


def _labelled(field: Row, item: Row, wrong: Complaints) -> Row | None:
    """A phone or an e-mail; without an enum it is WORK."""
    enum: Row | None = field["enums"][0] if field["enums"] else None
    if "enum_id" in item or "enum_code" in item:
        enum = _named(field, item, wrong)
        if enum is None:
            return None
    if field["code"] in _PARTS:
        return {"value": item["value"], "label": _LABELS.get(enum["value"], "other") if enum else "work"}
    return {"value": item["value"]} | ({"enum_id": enum["id"]} if enum else {})


def _address_line(item: Row, wrong: Complaints) -> Row | None:
    if item.get("enum_code") in _ADDRESS_LINES:
        return {"value": item["value"], "enum_id": _ADDRESS_LINES.index(item["enum_code"]) + 1}
    if item.get("enum_id") in range(1, 7):
        return {"value": item["value"], "enum_id": item["enum_id"]}
    wrong.at("enum_id" if "enum_id" in item else "enum_code").say("NotSupportedChoice")
    return None


def _moment(value: Json) -> int | None:
    """Unix seconds, not negative (§4.8), or RFC-3339 text."""
    if _is(value, "int"):
        return value if 0 <= value <= _LATEST else None
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return None
    return int(moment.timestamp()) if moment.tzinfo else None


def _one_main(links: list[Row]) -> list[Row]:
    """§6: exactly one is the main one; if none is, the first becomes it."""
    main = next((each["id"] for each in links if each["main"]), links[0]["id"] if links else None)
    return [{"id": id, "main": id == main} for id in dict.fromkeys(each["id"] for each in links)]


def _note_params(type: str, known: Mapping[str, str], given: Json, wrong: Complaints) -> Row:
    if not isinstance(given, dict):
        wrong.mistyped("array")
        return {}
    params = cast(Row, given)
    wrong.unexpected(params, known)
    for name, wanted in known.items():
        if name not in params:
            if wanted.endswith("*"):
                wrong.at(name).say("FieldMissing")
        elif wanted != "any" and not _is(params[name], wanted.rstrip("*")):
            wrong.at(name).mistyped(wanted.rstrip("*"))
    if type == "message_cashier" and params.get("status") not in _CASHIER:
        wrong.at("status").say("NotSupportedChoice")
    if "call_status" in params and params["call_status"] not in range(1, 8):
        wrong.at("call_status").say("NotSupportedChoice")
    return {"text": params.get("text", ""), "params": {key: params[key] for key in params if key != "text"}}


def _holds(field: Row, node: Json, row: Row) -> bool:
    """§3.5: enum ids for choices, 1 and 0 for a box, from and to for numbers and dates, else the value."""
    items = _shape(field).items(row)
    if isinstance(node, dict) and {"from", "to"} & cast(Row, node).keys():
        ends = cast(Row, node)
        low, high = float(ends.get("from", "-inf")), float(ends.get("to", "inf"))
        return any(low <= float(item["value"]) <= high for item in items)
    key = "enum_id" if field["type"] in _CHOICES else "value"
    texts = {str(int(item[key]) if isinstance(item[key], bool) else item[key]) for item in items}
    return not texts.isdisjoint(_many(node))


def _seed_lead(row: Row) -> Row:
    """§10: the seed links contacts and companies at the top of a lead."""
    links = {name: row[name] for name in ("contacts", "companies") if name in row}
    if not links:
        return row
    rest = {key: value for key, value in row.items() if key not in links}
    return rest | {"_embedded": cast(Row, row.get("_embedded") or {}) | links}


# --- the face --------------------------------------------------------------------------------------------------------


def grants(account: Account) -> Grants:
    """Where an account's tokens are kept: a test expires, revokes and counts them here."""
    if "grants" not in account.issued:
        account.issued["grants"] = Grants(
            account.clock,
            account.world.account["id"],
            account.world.admin["id"],
            strict_rotation=bool(account.switches["strict-rotation"]),
            refresh_kills_access=bool(account.switches["refresh-kills-access"]),
        )
    return cast(Grants, account.issued["grants"])


def _build(account: Account) -> App:
    return Kommo(account).app()


def _credentials(account: Account) -> Mapping[str, str]:
    issued = grants(account)
    card = issued.integration
    return {
        "token": issued.mint_long_lived(),
        "client_id": card.client_id,
        "client_secret": card.client_secret,
        "redirect_uri": card.redirect_uri,
        "code": issued.mint_code(),
    }


def _script(base_url: str, credentials: Mapping[str, str]) -> str:
    return (
        "import asyncio\n"
        "from crmclient import connect\n"
        "async def main():\n"
        f'    async with connect("kommo", base_url="{base_url}", credentials="{credentials["token"]}") as crm:\n'
        "        print([contact.name async for contact in crm.contacts.list()][:5])\n"
        "asyncio.run(main())\n"
    )


FACE: Final = Face(
    name="kommo",
    title="Kommo API v4",
    switches=SWITCHES,
    build=_build,
    credentials=_credentials,
    script=_script,
)
