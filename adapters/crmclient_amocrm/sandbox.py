"""amoCRM's side of API v2, as its pages and the programs that lived on it have it; it shares no line with our own codec.

Sources: ``seed`` is the vendor's page on contacts, ``§n`` a section of the reference ``amocrm-v2.md``, ``DECISIONS`` the
project's decisions where both are silent, and [EMU] what even those leave to this server. What the reference leaves open
is a switch, so that a client can be tried against the other answers too. Webhooks are kept but not sent.
"""

import json
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final, TypeAlias, cast
from urllib.parse import parse_qsl, quote, urlencode
from zoneinfo import ZoneInfo

from attrs import define, evolve, field, frozen
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from crmclient.sandbox.server import LAGS, Account, App, Face, Setting, SlidingLimit, Switch, Verdict
from crmclient.sandbox.world import KINDS, LOST, WON, Condition, Contains, Not, Range, Row, World

Answer: TypeAlias = Row | None
"""The tree of a 200, or None: nothing found, which is a 204 without a body (§3)."""

# "15 minutes" (§2); "at most 500 rows", "at most 500 entities per request" (§3); "≤40" contacts of a lead (§11).
SESSION: Final = 15 * 60
ROWS: Final = 500
CONTACTS: Final = 40
WEBHOOKS: Final = 100
# What customers are in the world, which has no such kind.
CUSTOMER: Final = "amocrm customer"

_ON: Final = (False, True)
SWITCHES: Final[Mapping[str, Switch]] = {
    # coming in
    "dead-session": Switch("110", ("110", "401", "problem"), "§2: the body of a 401 was seen in three forms"),
    "session": Switch("from-login", ("from-login", "sliding"), "§2: 15 minutes, of the session or of its idleness"),
    "cookie-domain": Switch("host", ("host", "parent"), "§2: the cookie was seen for the whole of amocrm.ru"),
    "credentials-per-call": Switch(True, _ON, "§2: some live clients sign every call with login and key in the query"),
    "xml-failure": Switch("200", ("200", "401"), "§2: a failed login without type=json 'can be' HTTP 200"),
    "account-id": Switch("int", ("int", "string"), "§2: a string in the auth answer of 2016, a number in 2020"),
    "captcha-after": Switch("10", ("10", "3", "never"), "§5: 111 comes 'after several' failed logins"),
    # limits
    "rate": Switch("7", ("7", "1"), "§3: seven a second in the text of 2020, one in the older one"),
    "ban-after": Switch("10", ("10", "3", "never"), "§3: 'repeated abuse' bans; how often that is nobody says"),
    "logins-count": Switch(True, _ON, "§3: whether auth.php counts towards the limit is not said"),
    "subscription": Switch("paid", ("paid", "ended"), "§3: 402 thirty days after the subscription ended"),
    "customers": Switch(True, _ON, "§5: customers may be switched off, code 426"),
    # errors
    "errors-shape": Switch("map", ("map", "list", "calls"), "§4: refused rows were seen in three shapes"),
    "add-error-key": Switch("index", ("index", "request-id"), "§4: the key of a refused new row is one of these"),
    "error-body": Switch("response", ("response", "problem"), "§4: a refused request was seen in two bodies"),
    # questions
    "default-rows": Switch("500", ("500", "50"), "§3: how many rows come unasked is undocumented"),
    "order": Switch("mixed", ("mixed", "oldest", "newest"), "§3: undocumented; DECISIONS: tasks newest first"),
    "unread-date": Switch("refuse", ("refuse", "ignore"), "§3: what an If-Modified-Since nobody can read gets"),
    "ignore-filters": Switch(False, _ON, "§3: what a filter that is not heeded gets; a 200 with every row, as in v4"),
    "index-lag": Switch("none", LAGS, "§9: how soon query finds a new row is not said"),
    "query-phones": Switch("loose", ("loose", "exact"), "§9: a search for a phone may or may not heed its form"),
    "notes-type-all": Switch(True, _ON, "§13: type=all is not documented, a live client uses it"),
    "without-tasks": Switch("no-open", ("no-open", "none"), "§11: filter[tasks]=1: without an open task, or any"),
    # writes
    "request-id": Switch("given", ("given", "none"), "§4: 0 or the id when not sent, or no key at all (2021)"),
    "updated-at-in-answer": Switch(True, _ON, "§4: a real answer of 2021 has it, the pages do not"),
    "updated-at-of-add": Switch("now", ("now", "created"), "§9: what a new row's updated_at is when not sent"),
    "links-touch": Switch(False, _ON, "§4: whether linking changes updated_at of the row at the other end"),
    "company-name": Switch("make", ("make", "find-or-make"), "§9: company_name creates; one of that name may be there"),
    "pipeline-alone": Switch("first", ("first", "ignore", "refuse"), "§11: a lead's pipeline_id without a status_id"),
    "closed-at": Switch("now", ("now", "updated_at"), "§11: which time a lead closed by its status gets"),
    "task-text": Switch("optional", ("optional", "required"), "§12: 'required' in an update, a live client omits it"),
    "task-result-closes": Switch(False, _ON, "§12: whether a result note completes its task"),
    "accept-seed-forms": Switch(False, _ON, "§7: a choice as value and enum, an address line by number, as the seed"),
    "zone": Switch("account", ("account", "utc"), "§19: whose time date fields are in"),
    "ajax-delete": Switch(False, _ON, "§17: undocumented calls of the interface that delete"),
    # answers
    "empties": Switch("braces", ("braces", "brackets"), "§8: {} in real answers, [] on the pages"),
    "links-key": Switch("_links", ("_links", "_link"), "§4: answers to writes have _link on some pages"),
    "entity-in-href": Switch(True, _ON, "§4: real hrefs of filtered lists carry &entity=, the pages' do not"),
    "names": Switch("always", ("always", "filled", "never"), "§9: first_name and last_name are on some rows only"),
    "main-contact": Switch("empty", ("empty", "missing"), "§8: what a lead without contacts has for it"),
    "closest-task": Switch("zero", ("zero", "year-zero"), "§8: 0, and -62169993017 was seen"),
    "type-id": Switch(True, _ON, "§7: custom fields have it by 2021"),
    "enum-form": Switch("int", ("int", "string"), "§7: a string on the pages of 2017"),
    "subtype-form": Switch("names", ("names", "numbers"), "§7: numbers on the pages of 2017"),
    "unlinked-task": Switch("zero", ("zero", "missing"), "§12: element_type of a task about nothing"),
    "task-duration": Switch(False, _ON, "§12: one live client reads duration"),
    "account-shape": Switch("real2020", ("real2020", "doc2017"), "§6: maps in a recording, lists on the page"),
}


class Refusal(Exception):
    """A request that is answered with an error: one of §5's codes, or none where the table has none."""

    def __init__(self, status: int, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code


class Wrong(Exception):
    """One row of a request is refused; the others still go in (§4)."""

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code


class Gateway(Exception):
    """The gateway answers, not the API: HTML (§3)."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@frozen
class Ask:
    """A request that may come in: who asks, what for, and with what."""

    account: Account
    home: Row
    """The account's own row."""
    me: Row
    path: str
    query: str
    """As it came, without credentials."""
    asked: Mapping[str, Any]
    since: int | None
    body: Mapping[str, Any]

    @property
    def world(self) -> World:
        return self.account.world

    @property
    def now(self) -> int:
        return int(self.account.clock.now().timestamp())

    @property
    def extras(self) -> frozenset[str]:
        return frozenset(_texts(self.asked.get("with")))

    @property
    def empty(self) -> Any:
        """What PHP makes of an empty array (§8)."""
        return {} if self.switch("empties") == "braces" else []

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo("UTC" if self.switch("zone") == "utc" else str(self.home["zone"]))

    def switch(self, name: str) -> Setting:
        return self.account.switches[name]


# --- who may come in (§2) --------------------------------------------------------------------------------------------


@define
class Logins:
    """The account's keys, sessions and tokens; what a test turns to spoil a client's login, and counts."""

    account: Account
    count: int = 0
    """How often auth.php let somebody in."""
    refused: int = 0
    """How often a login or key was wrong, on whatever page."""
    failures: int = 0
    """Of those, how many since the last right one: several bring the captcha, code 111."""
    sessions: dict[str, tuple[int, float]] = field(factory=dict[str, tuple[int, float]])
    """By cookie: whose it is, and until when in the clock's monotonic seconds."""
    tokens: dict[str, tuple[int, float]] = field(factory=dict[str, tuple[int, float]])
    """By OAuth access token, likewise."""
    _hashes: dict[int, str] = field(factory=dict[int, str])

    def of(self, user_id: int | None = None) -> Mapping[str, str]:
        """A user's login and key, as on the profile page; without a user the admin's."""
        user = self.account.world.admin if user_id is None else self.account.world.row("user", user_id)
        return {"login": user["email"], "hash": self._hashes.setdefault(user["id"], secrets.token_hex(16))}

    def rotate(self, user_id: int | None = None) -> Mapping[str, str]:
        """A new key, as after a change of password (§2). Sessions live on; nothing says they end."""
        id = self.account.world.admin["id"] if user_id is None else user_id
        self._hashes.pop(id, None)
        return self.of(id)

    def expire(self) -> None:
        """All sessions are over, whatever the time."""
        self.sessions.clear()

    def issue_token(self, user_id: int | None = None, *, seconds: float = 5 * 365 * 86400) -> str:
        """What OAuth would have given; it works on every method of /api/v2 (§2)."""
        token = secrets.token_hex(32)
        id = self.account.world.admin["id"] if user_id is None else user_id
        self.tokens[token] = (id, self._now() + seconds)
        return token

    def revoke_token(self, token: str) -> None:
        del self.tokens[token]

    def solve_captcha(self) -> None:
        """What a person does in a browser after too many failed logins."""
        self.failures = 0

    def check(self, login: object, key: object) -> Row:
        """The user whose login and key these are."""
        patience = self.account.switches["captcha-after"]
        if patience != "never" and self.failures >= int(patience):
            raise Refusal(401, "Превышено количество попыток входа, авторизуйтесь через браузер", 111)
        found = self.account.world.select("user", where={"email": login}) if isinstance(login, str) else []
        for user in found:
            if key == self.of(user["id"])["hash"]:
                if not user["active"]:
                    raise Refusal(401, "Пользователь выключен или не состоит в аккаунте", 112)
                self.failures = 0
                return user
        self.refused += 1
        self.failures += 1
        raise _unauthorized()

    def open(self, user: Row) -> str:
        self.count += 1
        session = secrets.token_hex(16)
        self.sessions[session] = (user["id"], self._now() + SESSION)
        return session

    def in_session(self, session: str) -> Row:
        """The user of a session that is not over."""
        user = self._holder(self.sessions, session)
        if self.account.switches["session"] == "sliding":
            self.sessions[session] = (user["id"], self._now() + SESSION)
        return user

    def bearer(self, token: str) -> Row:
        return self._holder(self.tokens, token)

    def _holder(self, kept: Mapping[str, tuple[int, float]], word: str) -> Row:
        id, until = kept.get(word, (0, 0.0))
        user = self.account.world.get("user", id) if until > self._now() else None
        if user is None:
            raise _unauthorized()
        return user

    def _now(self) -> float:
        return self.account.clock.monotonic()


def _unauthorized() -> Refusal:
    return Refusal(401, "Неверный логин или пароль", 110)


def logins(account: Account) -> Logins:
    """The one desk of this account: a test expires, revokes and counts here."""
    return cast(Logins, account.issued.setdefault("logins", Logins(account)))


def limit(account: Account) -> SlidingLimit:
    """The one limit of this account; support lifts its ban with ``lift()``."""
    if "limit" not in account.issued:
        patience = account.switches["ban-after"]
        violations = None if patience == "never" else int(patience)
        account.issued["limit"] = SlidingLimit(int(account.switches["rate"]), 1.0, account.clock, violations=violations)
    return cast(SlidingLimit, account.issued["limit"])


# --- the door: limit, login, body, errors ----------------------------------------------------------------------------

Handler: TypeAlias = Callable[[Ask], Answer]
Verbs: TypeAlias = Mapping[str, Handler]

_TITLES: Final = {
    400: "Error",
    401: "Unauthorized",
    402: "Payment Required",
    404: "Not Found",
    405: "Method Not Allowed",
    500: "Internal Server Error",
}
_GATEWAY: Final = (
    "<html>\r\n<head><title>{0}</title></head>\r\n<body>\r\n<center><h1>{0}</h1></center>\r\n"
    "<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"
)
_GATEWAY_TITLES: Final = {403: "403 Forbidden", 429: "429 Too Many Requests"}
_RFC: Final = "http://www.w3.org/Protocols/rfc2616/rfc2616-sec10.html"
_SECRETS: Final = ("USER_LOGIN", "USER_HASH")


@frozen
class _Door:
    account: Account

    def endpoint(self, verbs: Verbs, *, known: bool = True) -> Callable[[Request], Awaitable[Response]]:
        async def answered(request: Request) -> Response:
            raw = await request.body()
            try:
                self._count()
                response = self._answered(request, raw, verbs, known)
            except Refusal as refusal:
                response = self.refused(request, refusal)
            except Wrong as wrong:  # Of a request that has no rows.
                response = self.refused(request, Refusal(400, wrong.message, wrong.code or 400))
            except Gateway as gateway:
                return HTMLResponse(_GATEWAY.format(_GATEWAY_TITLES[gateway.status]), gateway.status)
            response.headers["Runtime-Timestamp"] = str(self._now())  # seed
            return response

        return answered

    async def login(self, request: Request) -> Response:
        """auth.php: JSON only when the query says so, else XML (§2)."""
        raw = await request.body()
        as_json = request.query_params.get("type") == "json"
        try:
            if self.account.switches["logins-count"]:
                self._count()
            given: Row = dict(request.query_params)
            if request.method == "POST":
                given |= _posted(request.headers.get("content-type", ""), raw)
            user = logins(self.account).check(*(given.get(name) for name in _SECRETS))
        except Gateway as gateway:
            return HTMLResponse(_GATEWAY.format(_GATEWAY_TITLES[gateway.status]), gateway.status)
        except Refusal as refusal:
            if as_json:
                return _said(self._told(request, refusal, {"auth": False}), refusal.status, "application/json")
            return _xml(False, int(self.account.switches["xml-failure"]))
        response = _said(self._welcome(user), 200, "application/json") if as_json else _xml(True, 200)
        host = request.url.hostname or ""
        domain = None
        if self.account.switches["cookie-domain"] == "parent" and not re.fullmatch(r"[\d.]+|localhost", host):
            # roga.amocrm.ru gives amocrm.ru; a name of two labels has no parent that a cookie could be for.
            domain = "." + (host.partition(".")[2] if host.count(".") > 1 else host)
        cookies = {"session_id": logins(self.account).open(user), "BITRIX_SM_LOGIN": quote(user["email"])}
        for name, value in cookies.items():
            response.set_cookie(name, value, path="/", domain=domain, samesite=None)
        return response

    def refused(self, request: Request, refusal: Refusal) -> Response:
        """One of the two bodies of §4; a 401's own form is DECISIONS'."""
        switches = self.account.switches
        form = str(switches["error-body"])
        if refusal.code == 110 and switches["dead-session"] != "110":
            form = "problem" if switches["dead-session"] == "problem" else "response"
            refusal = Refusal(401, refusal.message, 401)
        if form == "response" and refusal.code is not None:
            return _said(self._told(request, refusal), refusal.status)
        told = {"title": _TITLES[refusal.status], "type": _RFC, "status": refusal.status, "detail": refusal.message}
        return _said(told, refusal.status, "application/problem+json")

    def _answered(self, request: Request, raw: bytes, verbs: Verbs, known: bool) -> Response:
        me = self._who(request)
        if self.account.switches["subscription"] == "ended":
            raise Refusal(402, "Подписка закончилась", 402)
        if not known:
            raise Refusal(404, "Запрашиваемый метод API не найден", 104)
        handler = verbs.get(request.method)
        if handler is None:
            raise Refusal(405, f"Метод {request.method} не поддерживается")
        query = [(key, value) for key, value in request.query_params.multi_items() if key not in _SECRETS]
        body = _posted(request.headers.get("content-type", ""), raw) if request.method == "POST" else {}
        shown = request.url.query if len(query) == len(request.query_params.multi_items()) else urlencode(query)
        path = request.url.path.rstrip("/")
        home = self.account.world.account
        ask = Ask(self.account, home, me, path, shown, _tree(query), self._since(request), body)
        if request.method == "GET":
            answer = handler(ask)
        else:
            with self.account.world.transaction():
                answer = handler(ask)
        return Response(status_code=204) if answer is None else _said(answer)

    def _who(self, request: Request) -> Row:
        desk = logins(self.account)
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return desk.bearer(token)
        login, key = (request.query_params.get(name) for name in _SECRETS)
        if login is not None and self.account.switches["credentials-per-call"]:
            return desk.check(login, key)
        return desk.in_session(request.cookies.get("session_id", ""))

    def _count(self) -> None:
        """§3, DECISIONS: refused calls count too; who goes on is out until somebody lifts it."""
        if not self.account.limits:
            return
        match limit(self.account).arrive():
            case Verdict.WELCOME:
                return
            case Verdict.REFUSED:
                raise Gateway(429)
            case Verdict.BANNED:
                self.account.stats.banned += 1
                raise Gateway(403)

    def _since(self, request: Request) -> int | None:
        text = request.headers.get("if-modified-since")
        moment = None if text is None else _http_date(text)
        if text is not None and moment is None and self.account.switches["unread-date"] == "refuse":
            raise Refusal(400, "If-Modified-Since: D, d M Y H:i:s, UTC", 400)
        return moment

    def _told(self, request: Request, refusal: Refusal, more: Mapping[str, Any] | None = None) -> Row:
        # error_code is a string (§2).
        told: Row = {**(more or {}), "error": refusal.message, "error_code": str(refusal.code)}
        told |= {"ip": request.client.host if request.client else "", "domain": request.url.hostname or ""}
        return {"response": told | {"server_time": self._now()}}

    def _welcome(self, user: Row) -> Row:
        account = self.account.world.account
        id = account["id"]
        known = {
            "id": str(id) if self.account.switches["account-id"] == "string" else id,
            **{key: account[key] for key in ("name", "subdomain", "language")},
            "timezone": account["zone"],
        }
        who = {"id": user["id"], "language": account["language"]}
        return {"response": {"auth": True, "accounts": [known], "user": who, "server_time": self._now()}}

    def _now(self) -> int:
        return int(self.account.clock.now().timestamp())


def _said(tree: Row, status: int = 200, kind: str = "application/hal+json") -> Response:
    """As PHP's json_encode writes: a backslash before every slash, non-ASCII as escapes (§1)."""
    text = json.dumps(tree, separators=(",", ":")).replace("/", "\\/")
    return Response(text, status, media_type=kind)


def _xml(auth: bool, status: int) -> Response:
    text = f'<?xml version="1.0" encoding="UTF-8"?>\n<root><auth>{str(auth).lower()}</auth></root>\n'
    return Response(text, status, media_type="text/xml")


# --- what comes in, as PHP sees it -----------------------------------------------------------------------------------

_BIGGEST: Final = 2**63 - 1
_DEPTH: Final = 16


def _posted(kind: str, raw: bytes) -> Row:
    """A body in either of the forms of §1, told apart by its Content-Type alone. [EMU]"""
    if not raw.strip():
        return {}
    try:
        if kind.startswith("application/x-www-form-urlencoded"):
            return _tree(parse_qsl(raw.decode(), keep_blank_values=True))
        body = json.loads(raw, parse_constant=_no_constant)
        if b"\\u" in raw:
            json.dumps(body, ensure_ascii=False).encode()  # PHP takes no lone surrogate, and neither does SQLite.
    except (ValueError, RecursionError) as error:
        raise Refusal(400, "POST-параметры должны передаваться в формате JSON", 102) from error
    if not isinstance(body, dict):
        raise Refusal(400, "POST-параметры должны передаваться в формате JSON", 102)
    return cast(Row, body)


def _no_constant(word: str) -> object:
    raise ValueError(f"{word} is not JSON")


def _tree(pairs: Iterable[tuple[str, str]]) -> Row:
    """PHP's brackets: ``add[0][name]=A&id[]=1`` -> {"add": {"0": {"name": "A"}}, "id": {"0": "1"}}."""
    root: Row = {}
    for key, value in pairs:
        steps = [key.partition("[")[0], *re.findall(r"\[([^\[\]]*)\]", key)][:_DEPTH]
        node = root
        for step in steps[:-1]:
            inner = node.get(step or str(len(node)))
            if not isinstance(inner, dict):
                inner = node[step or str(len(node))] = {}
            node = cast(Row, inner)
        node[steps[-1] or str(len(node))] = value
    return root


def _listed(value: Any) -> list[Any] | None:
    """A list, or the object that PHP makes of an array whose keys have gaps; None if it is neither."""
    if isinstance(value, dict):
        return list(cast(Row, value).values())
    return cast("list[Any]", value) if isinstance(value, list) else None


def _mapping(value: Any) -> Row:
    return cast(Row, value) if isinstance(value, dict) else {}


def _texts(value: Any) -> list[str]:
    """An argument that is an array or separated by commas (§1)."""
    given = _listed(value)
    if given is None:
        given = str(value).split(",") if value is not None else []
    return [str(each).strip() for each in given if str(each).strip()]


def _cast(value: Any) -> int:
    """As PHP casts: digits in front, else 0. [EMU]"""
    found = re.match(r"\s*-?[0-9]{1,18}", value) if isinstance(value, str) else None
    return int(found[0]) if found else 0


def _numbers(value: Any) -> list[int]:
    return [_cast(text) for text in _texts(value)]


def _span(asked: Mapping[str, Any], name: str) -> Range | None:
    """``[from]`` and ``[to]`` in epoch seconds; anything else would be passed over silently, so it is refused. [EMU]"""
    ends = _mapping(asked.get(name))
    for end in ("from", "to"):
        if not re.fullmatch(r"\d{0,15}", str(ends.get(end, "")), re.ASCII):
            raise Refusal(400, f"filter[{name}][{end}] must be a timestamp", 400)
    low, high = (int(ends[end]) if ends.get(end) else None for end in ("from", "to"))
    return None if low is None and high is None else Range(low, high)


_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_HTTP_DATE: Final = re.compile(
    r"[A-Z][a-z]{2}, (\d{1,2}) ([A-Z][a-z]{2}) (\d{4}) (\d\d):(\d\d):(\d\d)(?: (?:UTC|GMT|([+-])(\d\d):?(\d\d)))?"
)


def _http_date(text: str) -> int | None:
    """The three forms of §3: UTC, no zone, +0000. The day of the week is not looked at: the page's own is wrong."""
    found = _HTTP_DATE.fullmatch(text.strip())
    if found is None or found[2] not in _MONTHS:
        return None
    day, year, hour, minute, second = (int(found[n]) for n in (1, 3, 4, 5, 6))
    try:
        moment = datetime(year, _MONTHS.index(found[2]) + 1, day, hour, minute, second, tzinfo=UTC)
    except ValueError:
        return None
    away = timedelta(hours=int(found[8] or 0), minutes=int(found[9] or 0))
    return int((moment + (away if found[7] == "-" else -away)).timestamp())


# --- values of a row that is written ---------------------------------------------------------------------------------


def _text(_: Ask, name: str, value: Any) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise Wrong(f"{name} must be a string")
    return value


def _name(ask: Ask, name: str, value: Any) -> str:
    text = _text(ask, name, value)
    if not text.strip():
        raise Wrong(f"{name} is required")
    return text


def _whole(_: Ask, name: str, value: Any) -> int:
    """Numbers may be sent as strings (§1)."""
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,18}", value.strip(), re.ASCII):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > _BIGGEST:
        raise Wrong(f"{name} must be an integer")
    return value


def _moment(ask: Ask, name: str, value: Any) -> int:
    """Epoch seconds; that they are seconds is not looked at: milliseconds were taken (§4)."""
    moment = _whole(ask, name, value)
    if moment < 0:
        raise Wrong(f"{name} must be a timestamp")
    return moment


def _due(ask: Ask, name: str, value: Any) -> int | None:
    return _moment(ask, name, value) or None


def _flag(_: Ask, name: str, value: Any) -> bool:
    # PHP takes the text "false" for true; a client that sends it is wrong either way. [EMU]
    if value in (True, 1, "1"):
        return True
    if value in (False, 0, "0", ""):
        return False
    raise Wrong(f"{name} must be a boolean")


def _user(ask: Ask, name: str, value: Any) -> int:
    id = _whole(ask, name, value)
    if ask.world.get("user", id) is None and not (id == 0 and name == "created_by"):  # 0 is a robot's (samples).
        raise Wrong(f"{name}: user {id} not found")
    return id


def _task_type(ask: Ask, name: str, value: Any) -> int:
    id = _whole(ask, name, value)
    # 1 call, 2 meeting, 3 letter; custom ones too (§12).
    if id not in (1, 2, 3) and ask.world.get("task_type", id) is None:
        raise Wrong(f"{name}: task type {id} not found")
    return id


def _ids(ask: Ask, name: str, value: Any) -> list[int]:
    """One id, an array of them or a string with commas (§9, §11); empty ones and 0 are nobody. [EMU]"""
    given = _listed(value)
    if given is None:
        given = value.split(",") if isinstance(value, str) else [value]
    ids = [_whole(ask, name, each) for each in given if each not in (None, "")]
    return [id for id in dict.fromkeys(ids) if id]


def _tags(ask: Ask, kind: str, value: Any) -> list[str]:
    """A string with commas names tags, an array gives ids of tags there are (§9, §11); either replaces (DECISIONS)."""
    given = _listed(value)
    if given is None:
        texts = [text.strip() for text in _text(ask, "tags", value).split(",")]
        return list(dict.fromkeys(filter(None, texts)))
    names: list[str] = []
    for id in _ids(ask, "tags", given):
        tag = ask.world.get("tag", id)
        if tag is None or tag["entity"] != kind:
            raise Wrong(f"tags: tag {id} not found")
        names.append(tag["name"])
    return list(dict.fromkeys(names))


# --- the world's rows ------------------------------------------------------------------------------------------------

_RECORD: Final = frozenset(KINDS["record"]) - {"extra"}
_CUSTOMER: Final[Row] = {
    "owner": None,
    "tags": [],
    "fields": {},
    "contacts": [],
    "company_id": None,
    "next_price": 0,
    "next_date": None,
    "periodicity": 0,
    "period_id": 0,
}


def _unpacked(record: Row) -> Row:
    return {**_CUSTOMER, **record["extra"], **{key: record[key] for key in record if key != "extra"}}


def _found(ask: Ask, kind: str, id: int) -> Row | None:
    """A row that is not in the trash; a customer is a record, unpacked."""
    row = ask.world.get("record" if kind == "customer" else kind, id)
    if row is None or row.get("deleted") or (kind == "customer" and row["family"] != CUSTOMER):
        return None
    return _unpacked(row) if kind == "customer" else row


def _add(ask: Ask, kind: str, draft: Row) -> int:
    if kind != "customer":
        return ask.world.add(kind, draft)
    return ask.world.add("record", {**_packed(ask, draft), "family": CUSTOMER})


def _change(ask: Ask, kind: str, id: int, draft: Row) -> None:
    if kind == "customer":
        draft = _packed(ask, {**(_found(ask, kind, id) or {}), **draft})
    ask.world.update("record" if kind == "customer" else kind, id, draft)


def _packed(ask: Ask, row: Row) -> Row:
    for tag in row.get("tags", ()):
        ask.world.tag_id("customer", tag)
    rest = {key: value for key, value in row.items() if key not in _RECORD and key != "id"}
    return {**{key: value for key, value in row.items() if key in _RECORD or key == "id"}, "extra": rest}


def _customers(ask: Ask) -> list[Row]:
    return [_unpacked(row) for row in ask.world.select("record", where={"family": CUSTOMER, "deleted": False})]


# --- links: which row keeps them, whoever is written (§9, §10, §11, §14) ---------------------------------------------

_KEEPS: Final = {
    ("deal", "contact"): "contacts",
    ("deal", "company"): "company_id",
    ("contact", "company"): "company_id",
    ("customer", "contact"): "contacts",
    ("customer", "company"): "company_id",
}


@frozen
class Link:
    """One end of a link that a request makes or takes away."""

    kind: str
    id: int
    on: bool


def _link(ask: Ask, kind: str, id: int, link: Link) -> None:
    holder, held = (kind, id), (link.kind, link.id)
    if (kind, link.kind) not in _KEEPS:
        holder, held = held, holder
    column = _KEEPS[holder[0], held[0]]
    row = _found(ask, *holder)
    if row is None:
        return
    if column == "contacts":
        kept = [each for each in row["contacts"] if each["id"] != held[1] or link.on]
        if link.on and all(each["id"] != held[1] for each in kept):
            kept.append({"id": held[1], "main": False})
        # The first one is the main one; v2 has no way to say so. [EMU]
        main = next((each["id"] for each in kept if each["main"]), kept[0]["id"] if kept else None)
        change: Row = {"contacts": [{"id": each["id"], "main": each["id"] == main} for each in kept]}
    elif link.on or row["company_id"] == held[1]:
        change = {"company_id": held[1] if link.on else None}
    else:
        return
    if all(row[key] == value for key, value in change.items()):
        return
    if holder[0] == "contact":
        firm = _found(ask, *held) if link.on else None
        change["company"] = firm["name"] if firm else None
    touched = holder[1] != id and ask.switch("links-touch")
    _change(ask, *holder, change | {"updated_at": max(ask.now, row["updated_at"]) if touched else row["updated_at"]})


# --- custom fields (§7) ----------------------------------------------------------------------------------------------

_TYPES: Final = {
    1: "text",
    2: "numeric",
    3: "checkbox",
    4: "select",
    5: "multiselect",
    6: "date",
    7: "url",
    8: "multitext",
    9: "textarea",
    10: "radiobutton",
    11: "streetaddress",
    13: "smart_address",
    14: "birthday",
    15: "legal_entity",
    16: "items",
    17: "org_legal_name",
    19: "date_time",
}
# What other dialects know and this one does not is shown as text. [EMU]
_NUMBERS: Final = {type: number for number, type in _TYPES.items()} | {"monetary": 2}
_CHOICES: Final = ("select", "radiobutton", "multiselect")
_LINES: Final = ("address_line_1", "address_line_2", "city", "state", "zip", "country")
_LEGAL: Final = (
    *("name", "entity_type", "vat_id", "tax_registration_reason_code", "address", "kpp", "external_uid"),
    *("line1", "line2", "city", "state", "zip", "country"),
)
# Custom fields that are parts of the card in the world.
_PARTS: Final = {
    "PHONE": "phones",
    "EMAIL": "emails",
    "IM": "messengers",
    "WEB": "urls",
    "ADDRESS": "addresses",
    "POSITION": "position",
}
_LABELS: Final = {"MOB": "mobile", "PRIV": "private"}
_WORDS: Final = {label: word for word, label in _LABELS.items()}


@frozen
class Shape:
    """How one custom field is read off a row, decided once a page."""

    head: Row
    tail: Row
    id: str
    part: str | None
    read: Callable[[Row], Row | None]

    def values(self, row: Row) -> list[Row]:
        kept: Any = row.get(self.part) if self.part else row["fields"].get(self.id)
        if self.part == "position":
            kept = [{"value": kept}] if kept else ()
        return [value for item in kept or () if (value := self.read(item)) is not None]


def _shapes(ask: Ask, kind: str) -> list[Shape]:
    return [_shape(ask, field) for field in ask.world.select("field", where={"entity": kind}, order="sort")]


def _shape(ask: Ask, field: Row) -> Shape:
    head: Row = {"id": field["id"], "name": field["name"]}
    if ask.switch("type-id"):
        head["type_id"] = _NUMBERS.get(field["type"], 1)
    if field["code"]:
        head["code"] = field["code"]
    part = _PARTS.get(field["code"] or "")
    return Shape(head, {"is_system": bool(field["code"])}, str(field["id"]), part, _reader(ask, field))


def _reader(ask: Ask, field: Row) -> Callable[[Row], Row | None]:
    """What a value of this field looks like, from the world's form of it."""
    enums = cast(list[Row], field["enums"])
    ids = {str(enum["value"]).upper(): enum["id"] for enum in enums}
    as_text, numbers, zone = ask.switch("enum-form") == "string", ask.switch("subtype-form") == "numbers", ask.zone

    def with_enum(value: Any, id: int | None) -> Row:
        return {"value": value} | ({} if id is None else {"enum": str(id) if as_text else id})

    def labelled(item: Row) -> Row:
        label = str(item.get("label") or "work")
        return with_enum(
            item["value"], item.get("enum_id") or ids.get(_WORDS.get(label, label.upper()), ids.get("OTHER"))
        )

    def choice(item: Row) -> Row:
        text = next((enum["value"] for enum in enums if enum["id"] == item.get("enum_id")), item["value"])
        return with_enum(text, item.get("enum_id"))

    def line(item: Row) -> Row:
        place = item["enum_id"]
        return {"value": item["value"], "subtype": str(place) if numbers else _LINES[place - 1]}

    def checkbox(item: Row) -> Row | None:
        return {"value": "1"} if item["value"] else None  # Absent when unset (§7).

    kinds: Mapping[str, Callable[[Row], Row | None]] = {
        **dict.fromkeys(_CHOICES, choice),
        **dict.fromkeys(("date", "birthday", "date_time"), lambda item: {"value": _wall(item["value"], zone)}),
        "multitext": labelled,
        "smart_address": line,
        "checkbox": checkbox,
        "legal_entity": lambda item: {"value": {**dict.fromkeys(_LEGAL), **item["value"]}},
    }
    return kinds.get(field["type"], lambda item: {"value": str(item.get("value", ""))})


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_FURTHEST: Final = 253402214400  # The last day of the year 9999: a day's room for any zone.


def _wall(epoch: int, zone: ZoneInfo) -> str:
    """``Y-m-d H:i:s`` on the account's clock (§1)."""
    moment = _EPOCH + timedelta(seconds=min(int(epoch), _FURTHEST))
    return moment.astimezone(zone).isoformat(" ", "seconds")[:19]


_DATE: Final = re.compile(
    r"(?:(\d{4})-(\d\d)-(\d\d)|(\d\d)\.(\d\d)\.(\d{4}))(?:[ T](\d\d):(\d\d)(?::(\d\d))?)?", re.ASCII
)


def _date(ask: Ask, value: Any, *, timed: bool) -> int:
    """``2017-10-26`` or ``14.06.2014`` (§7), with a time or without."""
    found = _DATE.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None:
        raise Wrong("a date is Y-m-d or d.m.Y")
    year, month, day = (int(found[n]) for n in ((1, 2, 3) if found[1] else (6, 5, 4)))
    clock = [int(found[n] or 0) for n in (7, 8, 9)] if timed else [0, 0, 0]
    try:
        if not 1000 < year < 9999:
            raise ValueError(year)
        return int(datetime(year, month, day, *clock, tzinfo=ask.zone).timestamp())
    except ValueError as error:
        raise Wrong(f"no such date {value}") from error


def _fields(ask: Ask, spec: "Spec", given: Any, old: Row | None) -> Row:
    """What is sent replaces the values of that field only; the others stay (§7)."""
    code = spec.codes.add_field if old is None else spec.codes.update_field
    known = {field["id"]: field for field in ask.world.select("field", where={"entity": spec.kind})}
    values: Row = dict(old["fields"]) if old else {}
    draft: Row = {}
    listed = _listed(given)
    if listed is None:
        raise Wrong("custom_fields must be an array", code)
    for item in map(_mapping, listed):
        field = known.get(_whole(ask, "custom_fields id", item.get("id")))
        if field is None:
            raise Wrong(f"custom_fields: field {item.get('id')} not found", code)
        sent = _listed(item.get("values"))
        if sent is None:
            raise Wrong(f"custom_fields: field {field['id']} has no values", 238)
        try:
            stored = [value for each in sent if (value := _stored(ask, field, each)) is not None]
        except Wrong as wrong:
            raise Wrong(f"custom_fields: field {field['id']}: {wrong.message}", wrong.code or code) from None
        if len(stored) > 1 and field["type"] not in ("multitext", "multiselect", "smart_address"):
            raise Wrong(f"custom_fields: field {field['id']} takes one value", code)  # [EMU]
        part = _PARTS.get(field["code"] or "")
        if part is None:
            values = {id: kept for id, kept in values.items() if id != str(field["id"])}
            values |= {str(field["id"]): stored} if stored else {}
        else:
            draft[part] = (stored[0]["value"] if stored else None) if part == "position" else stored
    return draft | {"fields": values}


def _stored(ask: Ask, field: Row, sent: Any) -> Row | None:
    """One value as the world keeps it; an empty one empties (§7)."""
    type = field["type"]
    item = _mapping(sent)
    if sent == "" or ("value" in item and item["value"] in ("", None)):
        return None
    if type == "multiselect":
        # Plain enum ids (seed); with --accept-seed-forms also what the seed's answers show.
        plain = item.get("enum") if item and ask.switch("accept-seed-forms") else sent
        if isinstance(plain, (dict, list)) or plain is None:
            raise Wrong("takes plain enum ids")
        return _chosen(ask, field, plain)
    if "value" not in item:
        raise Wrong("takes objects with a value", 238)
    value = item["value"]
    match type:
        case "select" | "radiobutton":
            return _chosen(ask, field, item["enum"] if "enum" in item and ask.switch("accept-seed-forms") else value)
        case "multitext":
            return _labelled(ask, field, _text(ask, "value", value), item.get("enum"))
        case "numeric" | "monetary":
            if isinstance(value, bool) or not re.fullmatch(r"-?\d{1,30}(\.\d{1,30})?", str(value), re.ASCII):
                raise Wrong("takes a number")
            return {"value": value if isinstance(value, int) and abs(value) <= _BIGGEST else str(value)}
        case "checkbox":
            return {"value": True} if _flag(ask, "value", value) else None
        case "date" | "birthday" | "date_time":
            return {"value": _date(ask, value, timed=type == "date_time")}
        case "smart_address":
            line = str(item.get("subtype"))
            if line.isdecimal() and ask.switch("accept-seed-forms") and 1 <= int(line) <= 6:
                line = _LINES[int(line) - 1]
            if line not in _LINES:
                raise Wrong(f"an address has no line {line}")
            return {"value": _text(ask, "value", value), "enum_id": _LINES.index(line) + 1}
        case "legal_entity":
            given = _mapping(value)
            if not given.get("name"):
                raise Wrong("takes an object with a name")
            return {"value": {key: given.get(key) for key in _LEGAL}}
        case "items":
            raise Wrong("there are no catalogs")
        case _:
            return {"value": _text(ask, "value", value)}


def _chosen(ask: Ask, field: Row, given: Any) -> Row:
    id = _whole(ask, "enum", given)
    found = next((enum for enum in field["enums"] if enum["id"] == id), None)
    if found is None:
        raise Wrong(f"there is no enum {id}")
    return {"value": found["value"], "enum_id": id}


def _labelled(ask: Ask, field: Row, value: str, given: Any) -> Row:
    """A phone, an e-mail or a messenger; the enum is its word or its id (§7), and the first one when not sent. [EMU]"""
    enums = cast(list[Row], field["enums"])
    found = [enum for enum in enums if given is None or str(given) in (str(enum["id"]), enum["value"])]
    if not found and (given is not None or enums):
        raise Wrong(f"there is no enum {given}")
    if field["code"] not in _PARTS:
        return {"value": value, **({"enum_id": found[0]["id"]} if found else {})}
    word = str(found[0]["value"]) if found else "WORK"
    return {"value": value, "label": _LABELS.get(word, word.lower())}


# --- the entities, as one table --------------------------------------------------------------------------------------


@frozen
class Column:
    """A key a client may write: the world's key for it, and how the value is read."""

    key: str
    read: Callable[[Ask, str, Any], Any]
    required: bool = False


@frozen
class Codes:
    """§5's codes for this entity; where the table has none it is 400."""

    empty: int
    method: int
    add_empty: int
    update_empty: int
    keys: int
    absent: int
    add: int = 400
    update: int = 400
    add_field: int = 400
    update_field: int = 400


@frozen
class Spec:
    """What differs between the entities that POST {"add", "update"} writes."""

    path: str
    kind: str
    element: int
    word: str
    codes: Codes
    columns: Mapping[str, Column]
    links: Mapping[str, str] = {}
    """By key of a row: what it links to."""
    newest_first: bool = False


_WHO: Final = {
    "responsible_user_id": Column("owner", _user),
    "created_by": Column("created_by", _user),
    "created_at": Column("created_at", _moment),
    "updated_at": Column("updated_at", _moment),
}
_OF_CONTACTS: Final = Codes(
    206, 207, 201, 208, keys=209, absent=212, add=205, update=212, add_field=204, update_field=211
)

CONTACTS_SPEC: Final = Spec(
    path="contacts",
    kind="contact",
    element=1,
    word="contact",
    codes=_OF_CONTACTS,
    columns={
        "name": Column("name", _name, required=True),
        "first_name": Column("first_name", _text),
        "last_name": Column("last_name", _text),
        **_WHO,
    },
    links={"leads_id": "deal", "customers_id": "customer", "company_id": "company"},
)
LEADS_SPEC: Final = Spec(
    path="leads",
    kind="deal",
    element=2,
    word="lead",
    codes=Codes(214, 215, 213, 216, keys=217, absent=217, add_field=240, update_field=240),
    columns={"name": Column("name", _name, required=True), "sale": Column("price", _whole), **_WHO},
    links={"contacts_id": "contact", "company_id": "company"},
)
COMPANIES_SPEC: Final = Spec(
    path="companies",
    kind="company",
    element=3,
    word="company",
    codes=_OF_CONTACTS,  # §5 has no group of their own.
    columns={"name": Column("name", _name, required=True), **_WHO},
    links={"leads_id": "deal", "contacts_id": "contact", "customers_id": "customer"},
)
CUSTOMERS_SPEC: Final = Spec(
    path="customers",
    kind="customer",
    element=12,
    word="customer",
    codes=Codes(400, 400, 400, 400, keys=400, absent=400),
    columns={
        "name": Column("name", _text),
        "next_date": Column("next_date", _moment, required=True),
        "next_price": Column("next_price", _whole),
        "periodicity": Column("periodicity", _whole),
        "period_id": Column("period_id", _whole),
        **_WHO,
    },
    links={"contacts_id": "contact", "company_id": "company"},
)
TASKS_SPEC: Final = Spec(
    path="tasks",
    kind="task",
    element=4,
    word="task",
    codes=Codes(228, 229, 227, 230, keys=231, absent=231),
    columns={
        "text": Column("text", _text),
        "task_type": Column("type_id", _task_type),
        # The page's table has the one, its example the other (§12).
        "complete_till": Column("due", _due),
        "complete_till_at": Column("due", _due),
        "is_completed": Column("done", _flag),
        **_WHO,
    },
    newest_first=True,
)
NOTES_SPEC: Final = Spec(
    path="notes",
    kind="note",
    element=0,
    word="note",
    codes=Codes(222, 223, 218, 224, keys=225, absent=225),
    columns=_WHO,
)
CARDS: Final = (CONTACTS_SPEC, LEADS_SPEC, COMPANIES_SPEC, CUSTOMERS_SPEC)
SPECS: Final = (*CARDS, TASKS_SPEC, NOTES_SPEC)
_OF_KIND: Final = {spec.kind: spec for spec in SPECS}
_BY_ELEMENT: Final = {spec.element: spec for spec in SPECS if spec.element}
_BY_WORD: Final = {spec.word: spec for spec in _BY_ELEMENT.values()}

# §6, §13; what a note of a kind that only other dialects know is shown as is 99. [EMU]
_NOTE_CODES: Final = {
    1: "DEAL_CREATED",
    2: "CONTACT_CREATED",
    3: "DEAL_STATUS_CHANGED",
    4: "COMMON",
    5: "ATTACHEMENT",
    6: "CALL",
    7: "MAIL_MESSAGE",
    8: "MAIL_MESSAGE_ATTACHMENT",
    9: "EXTERNAL_ATTACH",
    10: "CALL_IN",
    11: "CALL_OUT",
    12: "COMPANY_CREATED",
    13: "TASK_RESULT",
    17: "CHAT",
    99: "MAX_SYSTEM",
    101: "DROPBOX",
    102: "SMS_IN",
    103: "SMS_OUT",
}
_NOTES: Final = {
    4: "common",
    5: "attachment",
    10: "call_in",
    11: "call_out",
    13: "task_result",
    25: "service_message",
    102: "sms_in",
    103: "sms_out",
}
_NOTE_NUMBERS: Final = {kind: number for number, kind in _NOTES.items()}
_ADDABLE: Final = (4, 10, 11, 13, 25, 102, 103)
# The params of a call are in capitals on the wire (§13), in the world in small letters.
_CALL: Final = {
    "UNIQ": "uniq",
    "LINK": "link",
    "PHONE": "phone",
    "DURATION": "duration",
    "SRC": "source",
    "FROM": "from",
}
_CALL_BACK: Final = {small: capital for capital, small in _CALL.items()}


# --- lists (§3, §9 to §14) -------------------------------------------------------------------------------------------


def _self(href: str, method: str = "get", *, key: str = "_links") -> Row:
    return {key: {"self": {"href": f"/api/v2/{href}", "method": method}}}


def _envelope(ask: Ask, items: Any) -> Answer:
    """§4: the href repeats the query, on filtered lists of contacts and leads with the entity behind it."""
    path = ask.path.removeprefix("/api/v2/")
    href = f"{path}?{ask.query}" if ask.query else path
    if ask.query and path in ("contacts", "leads") and ask.switch("entity-in-href"):
        href += f"&entity={path}"
    return {**_self(href), "_embedded": {"items": items}} if items else None


def _window(ask: Ask) -> tuple[int, int]:
    """limit_offset counts only beside limit_rows (seed); an id makes both nothing (seed)."""
    rows = _cast(ask.asked.get("limit_rows"))
    if "id" in ask.asked or rows <= 0:
        return (ROWS if "id" in ask.asked else int(ask.switch("default-rows"))), 0
    return min(rows, ROWS), min(max(0, _cast(ask.asked.get("limit_offset"))), 10**9)


# What narrows a list, as If-Modified-Since does; ids name rows, and without a type notes are refused.
_FILTERS: Final = ("query", "filter", "responsible_user_id", "status", "element_id", "note_type")


def _listing(spec: Spec) -> Handler:
    def listed(ask: Ask) -> Answer:
        limit, offset = _window(ask)
        if ask.switch("ignore-filters"):
            heeded = {name: told for name, told in ask.asked.items() if name not in _FILTERS}
            ask = evolve(ask, asked=heeded, since=None)
        where = _WHERES[spec.kind](ask)
        if ask.since is not None:
            # Changed LATER than that (seed); it narrows a list of ids too (DECISIONS).
            where = [{**each, "updated_at": _later(each.get("updated_at"), ask.since)} for each in where]
        newest = spec.newest_first if ask.switch("order") == "mixed" else ask.switch("order") == "newest"
        rows = ask.world.select(spec.kind, where=where, descending=newest, limit=limit, offset=offset)
        return _envelope(ask, _SHOWS[spec.kind](ask, rows))

    return listed


def _later(given: Condition, since: int) -> Range:
    low = given.low if isinstance(given, Range) and isinstance(given.low, int) else 0
    return Range(max(low, since + 1), given.high if isinstance(given, Range) else None)


def _owned(ask: Ask, where: dict[str, Condition]) -> dict[str, Condition]:
    if "responsible_user_id" in ask.asked:
        where["owner"] = _numbers(ask.asked["responsible_user_id"])
    return where


def _searched(ask: Ask, where: dict[str, Condition]) -> list[Mapping[str, Condition]]:
    query = str(ask.asked.get("query") or "").strip()
    if not query:
        return [where]
    where = {**where, **ask.account.indexed(ask.switch("index-lag"))}
    found: list[Mapping[str, Condition]] = [{**where, "search": Contains(query)}]
    digits = re.sub(r"\D", "", query)
    if ask.switch("query-phones") == "loose" and len(digits) > 4 and re.fullmatch(r"[\d\s()+.-]+", query):
        # 8 and +7 are the same number: its last ten digits tell.
        found.append({**where, "search": Contains(digits[-10:])})
    return found


def _cards_where(ask: Ask) -> list[Mapping[str, Condition]]:
    if "id" in ask.asked:
        return [{"deleted": False, "id": _numbers(ask.asked["id"])}]
    return _searched(ask, _owned(ask, {"deleted": False}))


def _leads_where(ask: Ask) -> list[Mapping[str, Condition]]:
    trash = "only_deleted" in ask.extras
    if "id" in ask.asked:
        return [{"deleted": trash, "id": _numbers(ask.asked["id"])}]
    where = _owned(ask, {"deleted": trash})
    asked = _mapping(ask.asked.get("filter"))
    if "status" in ask.asked:
        where["stage_id"] = _numbers(ask.asked["status"])
    for name, column in (("date_create", "created_at"), ("date_modify", "updated_at")):
        span = _span(asked, name)
        if span is not None:
            where[column] = span
    busy: set[int] = set()
    tasks = _cast(asked.get("tasks"))
    if tasks in (1, 2):
        every = tasks == 1 and ask.switch("without-tasks") == "none"
        about: dict[str, Condition] = {"target_kind": "deal"} if every else {"target_kind": "deal", "done": False}
        busy = {task["target_id"] for task in ask.world.select("task", where=about)}
        where["id"] = Not(list(busy)) if tasks == 1 else list(busy)
    if _cast(asked.get("active")) == 1:
        stages = where.get("stage_id")
        ends = [WON, LOST]
        where["stage_id"] = [id for id in stages if id not in ends] if isinstance(stages, list) else Not(ends)
    return _searched(ask, where)


def _tasks_where(ask: Ask) -> list[Mapping[str, Condition]]:
    if "id" in ask.asked:
        return [{"id": _numbers(ask.asked["id"])}]
    where = _owned(ask, {})
    asked = _mapping(ask.asked.get("filter"))
    if "type" in ask.asked:
        where["target_kind"] = [spec.kind for word in _texts(ask.asked["type"]) if (spec := _BY_WORD.get(word))]
    if "element_id" in ask.asked:
        where["target_id"] = _numbers(ask.asked["element_id"])
    for name, column in (("date_create", "created_at"), ("date_modify", "updated_at")):
        span = _span(asked, name)
        if span is not None:
            where[column] = span
    for name, column in (("created_by", "created_by"), ("task_type", "type_id")):
        if name in asked:
            where[column] = _numbers(asked[name])
    if "status" in asked:
        where["done"] = [bool(number) for number in _numbers(asked["status"])]
    if "pipe" not in asked:
        return [where]
    # filter[pipe][pipeline][]=status: tasks of leads that stand there (§12).
    places: list[Mapping[str, Condition]] = [
        {"deleted": False, "pipeline_id": _cast(pipeline), "stage_id": _numbers(stages)}
        for pipeline, stages in _mapping(asked["pipe"]).items()
    ]
    leads: list[int] = [lead["id"] for lead in ask.world.select("deal", where=places)]
    kinds, ids = where.get("target_kind", ["deal"]), where.get("target_id", leads)
    if not isinstance(kinds, list) or "deal" not in kinds or not isinstance(ids, list):
        return []
    about: list[int] = [id for id in leads if id in ids]
    return [{**where, "target_kind": "deal", "target_id": about}]


def _notes_where(ask: Ask) -> list[Mapping[str, Condition]]:
    words = _texts(ask.asked.get("type"))
    specs = [_BY_WORD[word] for word in words if word in _BY_WORD]
    if words == ["all"] and ask.switch("notes-type-all"):
        specs = list(_BY_ELEMENT.values())
    if not specs:
        raise Refusal(400, "Для списка примечаний требуется указание типа", 221)
    where: dict[str, Condition] = {"target_kind": [spec.kind for spec in specs]}
    if "id" in ask.asked:
        return [{**where, "id": _numbers(ask.asked["id"])}]
    if "element_id" in ask.asked:
        where["target_id"] = _numbers(ask.asked["element_id"])
    if "note_type" in ask.asked:
        where["kind"] = [_NOTES[number] for number in _numbers(ask.asked["note_type"]) if number in _NOTES]
    return [where]


def list_customers(ask: Ask) -> Answer:
    """Few, so they are filtered here and not in SQL (§14)."""
    _customers_on(ask)
    rows = _customers(ask)
    limit, offset = _window(ask)
    if "id" in ask.asked:
        ids = _numbers(ask.asked["id"])
        rows = [row for row in rows if row["id"] in ids]
    else:
        asked = _mapping(ask.asked.get("filter"))
        dated = _mapping(asked.get("date"))
        column = "created_at" if dated.get("type") == "create" else "updated_at"
        low, high = (_day(ask, dated.get(end)) for end in ("from", "to"))
        rows = [row for row in rows if (low or 0) <= row[column] and (high is None or row[column] < high + 86400)]
        span = _span(asked, "next_date")
        if span is not None:
            least, most = cast("int | None", span.low), cast("int | None", span.high)
            rows = [row for row in rows if (least or 0) <= row["next_date"] <= (_BIGGEST if most is None else most)]
        if "main_user" in asked:
            users = _numbers(asked["main_user"])
            rows = [row for row in rows if row["owner"] in users]
    if ask.switch("order") == "newest":
        rows.reverse()
    return _envelope(ask, _show_cards(CUSTOMERS_SPEC, ask, rows[offset : offset + limit]))


def _customers_on(ask: Ask) -> None:
    if not ask.switch("customers"):
        raise Refusal(400, "Функционал покупателей выключен", 426)


def _day(ask: Ask, text: Any) -> int | None:
    """The table says MM/DD/YYYY, the example is 10.10.2017 (§14): both."""
    if text in (None, ""):
        return None
    found = re.fullmatch(r"(\d\d)([./])(\d\d)\2(\d{4})", str(text), re.ASCII)
    day, month = (0, 0) if found is None else (found[1], found[3]) if found[2] == "." else (found[3], found[1])
    try:
        return int(datetime(int(found[4]) if found else 0, int(month), int(day), tzinfo=ask.zone).timestamp())
    except ValueError as error:
        raise Refusal(400, "filter[date]: d.m.Y or m/d/Y", 400) from error


# --- rows as they are shown ------------------------------------------------------------------------------------------


@define
class Sheet:
    """What the rows of one page need besides themselves, read in one go for all of them."""

    shapes: list[Shape]
    tags: dict[str, int]
    closest: dict[int, int]
    firms: dict[int, str]
    linked: dict[str, dict[int, list[int]]]


def _sheet(ask: Ask, kind: str, rows: Sequence[Row]) -> Sheet:
    world = ask.world
    ids = [cast(int, row["id"]) for row in rows]
    names = {name for row in rows for name in row["tags"]}
    tags = {tag["name"]: tag["id"] for tag in world.select("tag", where={"entity": kind, "name": names})}
    open_tasks: dict[str, Condition] = {"target_kind": kind, "target_id": ids, "done": False, "due": Range()}
    # The earliest is written last and stays.
    closest = {
        task["target_id"]: task["due"] for task in world.select("task", where=open_tasks, order="due", descending=True)
    }
    firm_ids = {row["company_id"] for row in rows if row.get("company_id")}
    firms = {firm["id"]: firm["name"] for firm in world.select("company", where={"id": firm_ids, "deleted": False})}
    linked: dict[str, dict[int, list[int]]] = {}
    if kind in ("contact", "company"):
        linked["customers"] = _holders(_customers(ask), kind, set(ids))
        key = "contact" if kind == "contact" else "company_id"
        linked["leads"] = _holders(world.select("deal", where={key: ids, "deleted": False}), kind, set(ids))
    if kind == "company":
        people = world.select("contact", where={"company_id": ids, "deleted": False})
        linked["contacts"] = _holders(people, kind, set(ids))
    return Sheet(_shapes(ask, kind), tags, closest, firms, linked)


def _holders(rows: Iterable[Row], kind: str, ids: set[int]) -> dict[int, list[int]]:
    """Of each of these ids, the rows that link to it."""
    found: dict[int, list[int]] = {}
    for row in rows:
        ends = [link["id"] for link in row["contacts"]] if kind == "contact" else [row["company_id"]]
        for id in ends:
            if id in ids:
                found.setdefault(id, []).append(row["id"])
    return found


def _links_to(ask: Ask, path: str, ids: Sequence[int]) -> Any:
    return {"id": list(ids), **_self(f"{path}?id={','.join(map(str, ids))}")} if ids else ask.empty


def _head(ask: Ask, row: Row) -> Row:
    return {
        "responsible_user_id": row["owner"],
        "created_by": row["created_by"],
        "created_at": row["created_at"],
        "updated_at": row["updated_at"],
        "account_id": ask.home["id"],
    }


def _show_cards(spec: Spec, ask: Ask, rows: list[Row]) -> list[Row]:
    if spec is LEADS_SPEC and "only_deleted" in ask.extras:
        keys = ("id", "updated_at", "updated_by")
        return [{**{key: row[key] for key in keys}, "is_deleted": True} for row in rows]
    sheet = _sheet(ask, spec.kind, rows)
    return [_card(spec, ask, row, sheet) for row in rows]


def _card(spec: Spec, ask: Ask, row: Row, sheet: Sheet) -> Row:
    shown: Row = {"id": row["id"], "name": row["name"]}
    if spec is CONTACTS_SPEC:
        names = {key: row[key] or "" for key in ("first_name", "last_name")}
        if ask.switch("names") == "always" or (ask.switch("names") == "filled" and any(names.values())):
            shown |= names
    shown |= _head(ask, row)
    if spec is LEADS_SPEC:
        shown |= {"pipeline_id": row["pipeline_id"], "status_id": row["stage_id"]}
    shown |= {"updated_by": row["updated_by"]}
    if spec in (LEADS_SPEC, CUSTOMERS_SPEC):
        main = next((link["id"] for link in row["contacts"] if link["main"]), None)
        shown["is_deleted"] = False
        if main is not None:
            shown["main_contact"] = {"id": main, **_self(f"contacts?id={main}")}
        elif ask.switch("main-contact") == "empty":
            shown["main_contact"] = ask.empty
    if spec is not CUSTOMERS_SPEC:
        shown["group_id"] = 0
    firm = row.get("company_id")
    company = (
        {"id": firm, "name": sheet.firms[firm], **_self(f"companies?id={firm}")} if firm in sheet.firms else ask.empty
    )
    if spec is LEADS_SPEC:
        shown |= {"company": company, "closed_at": row["closed_at"] or 0}
    elif spec is CONTACTS_SPEC:
        shown["company"] = company
    if spec in (CONTACTS_SPEC, COMPANIES_SPEC):
        shown["leads"] = _links_to(ask, "leads", sheet.linked["leads"].get(row["id"], ()))
    shown["closest_task_at"] = sheet.closest.get(row["id"], 0 if ask.switch("closest-task") == "zero" else -62169993017)
    if spec is LEADS_SPEC and "is_price_modified_by_robot" in ask.extras:
        shown["is_price_modified_by_robot"] = False
    shown["tags"] = [{"id": sheet.tags[name], "name": name} for name in row["tags"] if name in sheet.tags] or ask.empty
    fields = ((shape, shape.values(row)) for shape in sheet.shapes)
    shown["custom_fields"] = [
        {**shape.head, "values": values, **shape.tail} for shape, values in fields if values
    ] or ask.empty
    if spec in (LEADS_SPEC, CUSTOMERS_SPEC):
        shown["contacts"] = _links_to(ask, "contacts", [link["id"] for link in row["contacts"]])
    elif spec is COMPANIES_SPEC:
        shown["contacts"] = _links_to(ask, "contacts", sheet.linked["contacts"].get(row["id"], ()))
    if spec is LEADS_SPEC:
        shown |= {"sale": int(Decimal(row["price"] or 0)), "loss_reason_id": row["loss_reason_id"] or 0}
        if "loss_reason_name" in ask.extras and row["loss_reason_id"]:
            reason = ask.world.get("loss_reason", row["loss_reason_id"])
            shown["loss_reason_name"] = reason["name"] if reason else ""
        shown["pipeline"] = {"id": row["pipeline_id"], **_self(f"pipelines?id={row['pipeline_id']}")}
    elif spec is CUSTOMERS_SPEC:
        shown |= {"company": company}
        shown |= {key: row[key] for key in ("next_price", "period_id", "periodicity", "next_date")}
    else:
        shown["customers"] = _links_to(ask, "customers", sheet.linked["customers"].get(row["id"], ()))
    return shown | _self(f"{spec.path}?id={row['id']}")


def _show_tasks(ask: Ask, rows: list[Row]) -> list[Row]:
    return [_task(ask, row) for row in rows]


def _task(ask: Ask, row: Row) -> Row:
    shown = {"id": row["id"], **_head(ask, row), "group_id": 0}
    spec = _OF_KIND.get(row["target_kind"] or "")
    if spec is not None or ask.switch("unlinked-task") == "zero":
        shown |= {"element_type": spec.element if spec else 0, "element_id": row["target_id"] if spec else 0}
    shown |= {"is_completed": row["done"], "task_type": row["type_id"], "complete_till_at": row["due"] or 0}
    shown |= {"text": row["text"], "result": ask.empty}
    if row["result"]:
        # A result that came through another dialect has no note; it lends the task's id. [EMU]
        note = row["extra"].get("result_note", row["id"])
        shown["result"] = {"id": note, "text": row["result"], **_self(f"notes?id={note}&type=task")}
    if ask.switch("task-duration"):
        shown["duration"] = row["duration"] or 0
    return shown | _self(f"tasks?id={row['id']}")


def _show_notes(ask: Ask, rows: list[Row]) -> list[Row]:
    return [_note(ask, row) for row in rows]


def _note(ask: Ask, row: Row) -> Row:
    number = _NOTE_NUMBERS.get(row["kind"], 99)
    spec = _OF_KIND[row["target_kind"]]
    shown = {"id": row["id"], **_head(ask, row), "group_id": 0, "is_editable": number == 4}
    shown |= {"element_id": row["target_id"], "element_type": spec.element, "attachment": "", "note_type": number}
    if number in (10, 11):
        shown["params"] = {_CALL_BACK.get(key, key): value for key, value in row["params"].items()}
    elif number in (25, 102, 103):
        # §13: a note of type 25 has no text beside its params.
        shown["params"] = {"text": row["text"], **row["params"]}
    if number not in (25, 102, 103) and (row["text"] or number not in (10, 11)):
        shown["text"] = row["text"]
    return shown | _self(_note_href(row["id"], spec))


def _note_href(id: int, spec: Spec) -> str:
    return f"notes?id={id}&type={spec.word}"


_SHOWS: Final[Mapping[str, Callable[[Ask, list[Row]], list[Row]]]] = {
    "contact": lambda ask, rows: _show_cards(CONTACTS_SPEC, ask, rows),
    "company": lambda ask, rows: _show_cards(COMPANIES_SPEC, ask, rows),
    "deal": lambda ask, rows: _show_cards(LEADS_SPEC, ask, rows),
    "task": _show_tasks,
    "note": _show_notes,
}
_WHERES: Final[Mapping[str, Callable[[Ask], list[Mapping[str, Condition]]]]] = {
    "contact": _cards_where,
    "company": _cards_where,
    "deal": _leads_where,
    "task": _tasks_where,
    "note": _notes_where,
}


# --- rows as they are written (§4) -----------------------------------------------------------------------------------


@frozen
class Failed:
    """A row that did not go in, and why."""

    verb: str
    key: str
    wrong: Wrong
    row: Any


def _writing(spec: Spec) -> Handler:
    def written(ask: Ask) -> Answer:
        if spec is CUSTOMERS_SPEC:
            _customers_on(ask)
            if "delete" in ask.body:
                return _deleted(ask)
        adds, updates = _batch(ask, spec.codes, ("add", "update"))
        failed: list[Failed] = []
        items = _each(ask, failed, "add", adds, lambda row: _create(ask, spec, row), spec.codes.add)
        items += _each(ask, failed, "update", updates, lambda row: _update(ask, spec, row), spec.codes.update)
        return _outcome(ask, items, failed)

    return written


def _batch(ask: Ask, codes: Codes, verbs: tuple[str, str]) -> tuple[list[Any], list[Any]]:
    """The rows of a request, or one of §5's codes for all of it."""
    if not ask.body:
        raise Refusal(400, "Пустой запрос", codes.empty)
    given = {verb: _listed(ask.body[verb]) for verb in verbs if verb in ask.body}
    if not given:
        raise Refusal(400, "Неверный запрашиваемый метод", codes.method)
    if not any(given.values()):
        verb = next(iter(given))
        raise Refusal(400, f"{verb}: пустой массив", codes.add_empty if verb == "add" else codes.update_empty)
    first, second = (given.get(verb) or [] for verb in verbs)
    if len(first) + len(second) > ROWS:
        # §3, DECISIONS: the number is documented, its refusal is not.
        raise Refusal(400, f"Не более {ROWS} сущностей в одном запросе")
    return first, second


def _each(
    ask: Ask, failed: list[Failed], verb: str, rows: Sequence[Any], do: Callable[[Row], Row], code: int = 400
) -> list[Row]:
    """When one row fails the others still go in (§4)."""
    items: list[Row] = []
    for place, row in enumerate(rows):
        try:
            if not isinstance(row, dict):
                raise Wrong("the row must be an array")
            items.append(do(cast(Row, row)))
        except Wrong as wrong:
            name = "id" if verb != "add" else "request_id" if ask.switch("add-error-key") == "request-id" else ""
            known = _mapping(row).get(name)
            failed.append(
                Failed(verb, str(place if known is None else known), Wrong(wrong.message, wrong.code or code), row)
            )
    return items


def _outcome(ask: Ask, items: Any, failed: Sequence[Failed]) -> Answer:
    inside: Row = {"items": items}
    verbs = dict.fromkeys(each.verb for each in failed)
    match ask.switch("errors-shape") if failed else None:
        case None:
            pass
        case "map":
            inside["errors"] = {verb: {f.key: f.wrong.message for f in failed if f.verb == verb} for verb in verbs}
        case "list":
            inside["errors"] = {
                verb: [{"code": f.wrong.code, "message": f.wrong.message} for f in failed if f.verb == verb]
                for verb in verbs
            }
        case _:
            inside["errors"] = [{"msg": f.wrong.message, "code": f.wrong.code, "item": f.row} for f in failed]
    links = _self(ask.path.removeprefix("/api/v2/"), "post", key=str(ask.switch("links-key")))
    return {**links, "_embedded": inside}


def _item(ask: Ask, row: Row, id: int, href: str, *, unsaid: int, stamp: int | None = None) -> Row:
    """request_id is echoed; what it is when not sent is DECISIONS'."""
    item: Row = {"id": id}
    if row.get("request_id") is not None:
        item["request_id"] = row["request_id"]
    elif ask.switch("request-id") == "given":
        item["request_id"] = unsaid
    if stamp is not None and ask.switch("updated-at-in-answer"):
        item["updated_at"] = stamp
    return item | _self(href, key=str(ask.switch("links-key")))


def _create(ask: Ask, spec: Spec, row: Row) -> Row:
    me, now = ask.me["id"], ask.now
    draft: Row = {"owner": me, "created_by": me, "created_at": now} | _draft(ask, spec, row, None)
    if "updated_at" not in draft:
        draft["updated_at"] = now if ask.switch("updated-at-of-add") == "now" else draft["created_at"]
    links = _links(ask, spec, row, None)
    id = _add(ask, spec.kind, draft)
    _settle(ask, spec, id, row, draft, links)
    href = _note_href(id, _OF_KIND[draft["target_kind"]]) if spec is NOTES_SPEC else f"{spec.path}?id={id}"
    return _item(ask, row, id, href, unsaid=0)


def _update(ask: Ask, spec: Spec, row: Row) -> Row:
    if row.get("id") is None or row.get("updated_at") is None:
        raise Wrong("id and updated_at are required", spec.codes.keys)
    id, stamp = _whole(ask, "id", row["id"]), _moment(ask, "updated_at", row["updated_at"])
    old = _found(ask, spec.kind, id)
    if old is None:
        raise Wrong("Element not found", spec.codes.absent)
    if stamp <= old["updated_at"]:  # DECISIONS: strictly newer, and what is stored is the client's.
        raise Wrong("Last modified date is older than in database")
    draft = _draft(ask, spec, row, old)
    links = _links(ask, spec, row, old)
    _change(ask, spec.kind, id, draft)
    _settle(ask, spec, id, row, {**old, **draft}, links)
    href = _note_href(id, _OF_KIND[old["target_kind"]]) if spec is NOTES_SPEC else f"{spec.path}?id={id}"
    return _item(ask, row, id, href, unsaid=id, stamp=stamp)


def _draft(ask: Ask, spec: Spec, row: Row, old: Row | None) -> Row:
    """What the world is told; null is as good as not sent. [EMU]"""
    draft: Row = {"updated_by": ask.me["id"]}
    for name, column in spec.columns.items():
        if row.get(name) is not None:
            draft[column.key] = column.read(ask, name, row[name])
        elif column.required and old is None:
            raise Wrong(f"{name} is required")
    if spec is TASKS_SPEC:
        return draft | _task_draft(ask, row, old)
    if spec is NOTES_SPEC:
        return draft | _note_draft(ask, row, old)
    if spec is CONTACTS_SPEC:
        halves = [draft.get(key, (old or {}).get(key)) for key in ("first_name", "last_name")]
        if {"first_name", "last_name"}.isdisjoint(draft):
            # A new name leaves the halves empty, as many real rows have them (§9). [EMU]
            renamed = "name" in draft and (old is None or draft["name"] != old["name"])
            draft |= {"first_name": "", "last_name": ""} if renamed else {}
        elif "name" not in draft:
            draft["name"] = " ".join(filter(None, halves))  # [EMU]
    if spec is LEADS_SPEC:
        draft |= _stage(ask, row, old, draft)
    if row.get("catalog_elements_id"):
        raise Wrong("catalog_elements_id: catalog not found", 282)  # There are no catalogs here.
    if row.get("tags") is not None:
        draft["tags"] = _tags(ask, spec.kind, row["tags"])
    if row.get("custom_fields") is not None:
        draft |= _fields(ask, spec, row["custom_fields"], old)
    return draft


def _links(ask: Ask, spec: Spec, row: Row, old: Row | None) -> list[Link]:
    """What is linked and unlinked; an id nobody has refuses the row (DECISIONS)."""
    unlink = _mapping(row.get("unlink")) if old is not None else {}
    links: list[Link] = []
    for key, kind in spec.links.items():
        links += [Link(kind, id, False) for id in _ids(ask, f"unlink {key}", unlink.get(key))]
    for key, kind in spec.links.items():
        ids = _ids(ask, key, row.get(key))
        if key == "company_id" and len(ids) > 1:
            raise Wrong("company_id must be an integer")
        for id in ids:
            other = _found(ask, kind, id)
            if other is None:
                raise Wrong(f"{key}: {_OF_KIND[kind].word} {id} not found")
            if kind == "deal" and spec is CONTACTS_SPEC and old is None and len(other["contacts"]) >= CONTACTS:
                raise Wrong("Too many linked contacts", 330)
        links += [Link(kind, id, True) for id in ids]
    if spec is LEADS_SPEC:
        members = {each["id"] for each in old["contacts"]} if old else set[int]()
        for link in links:
            if link.kind == "contact":
                (members.add if link.on else members.discard)(link.id)
        if len(members) > CONTACTS:
            raise Wrong("Too many linked contacts", 330)
    return links


def _settle(ask: Ask, spec: Spec, id: int, row: Row, draft: Row, links: Sequence[Link]) -> None:
    """What follows a row that went in: its links, a new company, a task's result."""
    for link in links:
        _link(ask, spec.kind, id, link)
    name = row.get("company_name")
    if spec is CONTACTS_SPEC and name and not row.get("company_id"):
        firm: Row = {"name": str(name), "owner": draft["owner"], "created_by": ask.me["id"], "updated_by": ask.me["id"]}
        known = ask.world.select("company", where={"name": firm["name"], "deleted": False}, limit=1)
        find = known and ask.switch("company-name") == "find-or-make"
        _link(ask, "contact", id, Link("company", known[0]["id"] if find else _add(ask, "company", firm), True))
    if spec is NOTES_SPEC and draft["kind"] == "task_result":
        task = ask.world.row("task", draft["target_id"])
        change = {"result": draft["text"], "extra": {**task["extra"], "result_note": id}}
        closed = task["done"] or ask.switch("task-result-closes")
        ask.world.update("task", task["id"], {**change, "done": closed, "updated_at": task["updated_at"]})


def _stage(ask: Ask, row: Row, old: Row | None, draft: Row) -> Row:
    """A status belongs to one pipeline, 142 and 143 to all: DECISIONS, the main one on add, the lead's own on update."""
    stage = _whole(ask, "status_id", row["status_id"]) if row.get("status_id") is not None else None
    pipeline = _whole(ask, "pipeline_id", row["pipeline_id"]) if row.get("pipeline_id") is not None else None
    if pipeline is not None and ask.world.get("pipeline", pipeline) is None:
        raise Wrong(f"pipeline_id: pipeline {pipeline} not found")
    if stage is None:
        if old is not None and pipeline in (None, old["pipeline_id"]):
            return {}
        if old is not None and ask.switch("pipeline-alone") != "first":
            if ask.switch("pipeline-alone") == "refuse":
                raise Wrong("status_id is required with pipeline_id")
            return {}
        pipeline = _main_pipeline(ask) if pipeline is None else pipeline
        stages = ask.world.select("stage", where={"pipeline_id": pipeline, "editable": True}, order="sort", limit=1)
        stage = cast(int, stages[0]["id"]) if stages else WON
    elif pipeline is None and stage in (WON, LOST):
        pipeline = _main_pipeline(ask) if old is None else cast(int, old["pipeline_id"])
    elif pipeline is None:
        found = ask.world.select("stage", where={"id": stage}, limit=1)
        pipeline = cast(int, found[0]["pipeline_id"]) if found else 0
    if ask.world.get("stage", (pipeline, stage)) is None:
        raise Wrong(f"status_id: status {stage} not found")
    place: Row = {"pipeline_id": pipeline, "stage_id": stage}
    if stage not in (WON, LOST):
        return place | {"closed_at": None, "loss_reason_id": None}
    closed = old["closed_at"] if old and old["stage_id"] in (WON, LOST) else None
    asked = draft.get("updated_at") if ask.switch("closed-at") == "updated_at" else None
    return place | {"closed_at": closed or asked or ask.now}


def _main_pipeline(ask: Ask) -> int:
    return cast(int, ask.world.select("pipeline", where={"main": True}, limit=1)[0]["id"])


def _task_draft(ask: Ask, row: Row, old: Row | None) -> Row:
    if old is not None and row.get("text") is None and ask.switch("task-text") == "required":
        raise Wrong("text is required")
    id, element = (row.get(key) or None for key in ("element_id", "element_type"))
    if id is None:
        return {}  # A task may be about nothing (§12); an update without it keeps what it is about.
    if element is None:
        raise Wrong("element_type is required", 235)
    return _target(ask, id, element, {1: 236, 2: 237}, (1, 2, 3, 12), wrong=235)


def _target(ask: Ask, id: Any, element: Any, codes: Mapping[int, int], among: Sequence[int], *, wrong: int) -> Row:
    number = _whole(ask, "element_type", element)
    if number not in among:
        raise Wrong(f"element_type: {number} is none", wrong)
    spec, place = _BY_ELEMENT[number], _whole(ask, "element_id", id)
    if _found(ask, spec.kind, place) is None:
        raise Wrong(f"element_id: {spec.word} {place} not found", codes.get(number, codes.get(0)))
    return {"target_kind": spec.kind, "target_id": place}


def _note_draft(ask: Ask, row: Row, old: Row | None) -> Row:
    text = None if row.get("text") is None else _text(ask, "text", row["text"])
    if old is not None:
        if old["kind"] != "common":
            raise Wrong("The note is not editable")  # is_editable of §6 and §13.
        return {} if text is None else {"text": text}
    number = _whole(ask, "note_type", row.get("note_type"))
    if number not in _ADDABLE:
        raise Wrong(f"note_type: {number} cannot be added")
    if not row.get("element_id") or not row.get("element_type"):
        raise Wrong("element_id and element_type are required", 232)
    # 13 is a task's result and nothing else is a task's (§13).
    among = (4,) if number == 13 else (1, 2, 3, 12)
    codes = {0: 226, 1: 233, 2: 234}
    draft = _target(ask, row["element_id"], row["element_type"], codes, among, wrong=232)
    draft["kind"] = _NOTES[number]
    params = dict(_mapping(row.get("params")))
    if number in (4, 13):
        if not text:
            raise Wrong("text is required")
        return draft | {"text": text}
    if number in (10, 11):
        named = {_CALL.get(key.upper(), key): value for key, value in params.items()}
        if str(named.get("duration", "")).isdecimal():
            named["duration"] = int(named["duration"])
        return draft | {"text": text or "", "params": named}
    # The text of the note itself is ignored (§13).
    return draft | {"text": _name(ask, "params text", params.pop("text", "")), "params": params}


def _deleted(ask: Ask) -> Answer:
    """Customers go to the trash and are named (§4, §14); ids nobody has are passed over. [EMU]"""
    gone: list[Row] = []
    for id in _ids(ask, "delete", ask.body["delete"]):
        row = _found(ask, "customer", id)
        if row is not None:
            ask.world.update("record", id, {"deleted": True})
            gone.append({"id": id, "name": row["name"]})
    return _outcome(ask, {"deleted": gone}, ())


# --- the account and its parts (§6, §15) -----------------------------------------------------------------------------


def get_account(ask: Ask) -> Answer:
    offset = ask.account.clock.now().astimezone(ask.zone).strftime("%z")
    parts = {name: _PARTS_OF_ACCOUNT[name](ask) for name in _PARTS_OF_ACCOUNT if name in ask.extras}
    return {
        **_self(f"account?{ask.query}" if ask.query else "account"),
        **{key: ask.home[key] for key in ("id", "name", "subdomain", "currency")},
        "timezone": ask.home["zone"],
        "timezone_offset": f"{offset[:3]}:{offset[3:]}",
        "language": ask.home["language"],
        "date_pattern": {"date": "d.m.Y", "time": "H:i", "date_time": "d.m.Y H:i", "time_full": "H:i:s"},
        "current_user": ask.me["id"],
        "_embedded": parts or ask.empty,
    }


def _keyed(rows: Iterable[Row]) -> Row:
    return {str(row["id"]): row for row in rows}


def _as_page(ask: Ask) -> bool:
    return ask.switch("account-shape") == "doc2017"


def _users(ask: Ask) -> Any:
    free = ask.asked.get("free_users") == "Y"
    return _keyed(_user_shown(ask, user) for user in ask.world.select("user") if free or not user["extra"].get("free"))


_DEEDS: Final = ("add", "view", "edit", "delete", "export")


def _user_shown(ask: Ask, user: Row) -> Row:
    # A allowed, M own only, D denied (§6); nothing here is refused for want of rights.
    letters = dict.fromkeys(_DEEDS, "A") if user["admin"] else {**dict.fromkeys(_DEEDS, "M"), "add": "A", "delete": "D"}
    rights: Row = {"mail": "A", "incoming_leads": letters["view"], "catalogs": letters["view"]}
    rights |= {f"{what}_{deed}": letters[deed] for what in ("lead", "contact", "company") for deed in _DEEDS}
    rights |= {"task_edit": letters["edit"], "task_delete": letters["delete"]}
    unsorted = ask.world.select("stage", where={"type": "unsorted"})
    by_stage = {deed: letters[deed] for deed in ("view", "edit", "delete", "export")}
    leads = {str(stage["pipeline_id"]): {str(stage["id"]): by_stage} for stage in unsorted}
    return {
        "id": user["id"],
        "name": user["name"],
        "last_name": "",
        "login": user["email"],
        "language": ask.home["language"],
        "group_id": 0,
        "is_active": user["active"],
        "is_free": bool(user["extra"].get("free")),
        "is_admin": user["admin"],
        "phone_number": "",
        "rights": rights | {"by_status": {"leads": leads}},
    }


def _custom_fields(ask: Ask) -> Any:
    groups: Row = {}
    for spec in (CONTACTS_SPEC, LEADS_SPEC, COMPANIES_SPEC, CUSTOMERS_SPEC):
        fields = ask.world.select("field", where={"entity": spec.kind}, order="sort")
        shown = [_field_shown(ask, each) for each in fields]
        groups[spec.path] = shown if _as_page(ask) else _keyed(shown) or []  # PHP's empty array (§6).
    return groups


def _field_shown(ask: Ask, field: Row) -> Row:
    extra, system = field["extra"], bool(field["code"])
    shown: Row = {"id": field["id"], "name": field["name"], "field_type": _NUMBERS.get(field["type"], 1)}
    shown["sort"] = field["sort"]
    if not _as_page(ask):
        shown["code"] = field["code"] or ""
    shown |= {"is_multiple": field["type"] == "multitext", "is_system": system}
    shown["is_editable"] = extra.get("is_editable", True)
    if not _as_page(ask):
        shown |= {"is_required": extra.get("is_required", False), "is_deletable": extra.get("is_deletable", True)}
        shown |= {"is_visible": extra.get("is_visible", True), "params": {}}
    if field["enums"]:
        as_list = [{"id": enum["id"], "value": enum["value"]} for enum in field["enums"]]
        shown["enums"] = as_list if _as_page(ask) else {str(enum["id"]): enum["value"] for enum in as_list}
    return shown


def _note_types(ask: Ask) -> Any:
    if _as_page(ask):
        return [
            {"id": id, "name": "", "code": code, "editable": "Y" if id == 4 else "N"}
            for id, code in _NOTE_CODES.items()
        ]
    return _keyed({"id": id, "code": code, "is_editable": id == 4} for id, code in _NOTE_CODES.items())


def _task_types(ask: Ask) -> Any:
    types = [{"id": row["id"], "name": row["name"]} for row in ask.world.select("task_type")]
    return types if _as_page(ask) else _keyed({**each, "color": None, "icon_id": 0} for each in types)


def _pipelines(ask: Ask) -> Any:
    return _keyed(_pipeline(ask, row) for row in ask.world.select("pipeline", where={"archived": False}, order="sort"))


def _pipeline(ask: Ask, row: Row) -> Row:
    page = _as_page(ask) and ask.path.endswith("account")
    stages = sorted(ask.world.select("stage", where={"pipeline_id": row["id"]}), key=lambda stage: stage["id"])
    statuses = [
        {
            **{key: stage[key] for key in ("id", "name", "color", "sort")},
            **({"editable": "Y" if stage["editable"] else "N"} if page else {"is_editable": stage["editable"]}),
        }
        for stage in stages
    ]
    shown = {"id": row["id"], "name": row["name"], "sort": row["sort"], "is_main": row["main"]}
    return {**shown, "statuses": _keyed(statuses), **({} if page else _self(f"pipelines?id={row['id']}"))}


_PARTS_OF_ACCOUNT: Final[Mapping[str, Callable[[Ask], Any]]] = {
    "users": _users,
    "custom_fields": _custom_fields,
    "note_types": _note_types,
    "groups": lambda ask: [{"id": 0, "name": "Отдел продаж"}],
    "task_types": _task_types,
    "pipelines": _pipelines,
}


def list_pipelines(ask: Ask) -> Answer:
    shown = _pipelines(ask)
    ids = _texts(ask.asked.get("id"))
    return _envelope(ask, {id: each for id, each in shown.items() if not ids or id in ids})


# --- custom fields, webhooks, and what the interface deletes by (§16, §17) -------------------------------------------

_OF_FIELDS: Final = Codes(103, 103, 103, 103, keys=400, absent=204)


def write_fields(ask: Ask) -> Answer:
    adds, deletes = _batch(ask, _OF_FIELDS, ("add", "delete"))
    failed: list[Failed] = []
    items = _each(ask, failed, "add", adds, lambda row: _add_field(ask, row))
    items += _each(ask, failed, "delete", deletes, lambda row: _delete_field(ask, row))
    return _outcome(ask, items, failed)


def _add_field(ask: Ask, row: Row) -> Row:
    for key in ("name", "origin", "type", "element_type"):
        if row.get(key) in (None, ""):
            raise Wrong(f"{key} is required")
    number, element = _whole(ask, "type", row["type"]), _whole(ask, "element_type", row["element_type"])
    if number not in _TYPES or number == 16:
        raise Wrong(f"type: {number} cannot be added")
    if element not in (1, 2, 3, 12):
        raise Wrong(f"element_type: {element} not found")
    kind = _BY_ELEMENT[element].kind
    texts = [_name(ask, "enums", text) for text in _listed(row.get("enums")) or ()]
    if _TYPES[number] in _CHOICES and not texts:
        raise Wrong("enums are required")
    enums = [{"id": ask.world.next_id(), "value": text, "code": None, "sort": n + 1} for n, text in enumerate(texts)]
    flags = {
        key: _flag(ask, key, row[key])
        for key in ("is_editable", "is_required", "is_deletable", "is_visible")
        if row.get(key) is not None
    }
    draft = {"entity": kind, "name": _name(ask, "name", row["name"]), "type": _TYPES[number], "enums": enums}
    # Users cannot edit what an integration made (§16).
    extra = {"is_editable": False, **flags, "origin": _name(ask, "origin", row["origin"])}
    id = ask.world.add("field", {**draft, "sort": 500 + ask.world.count("field", {"entity": kind}), "extra": extra})
    return _item(ask, row, id, f"fields?id={id}", unsaid=0)


def _delete_field(ask: Ask, row: Row) -> Row:
    id = _whole(ask, "id", row.get("id"))
    field = ask.world.get("field", id)
    if field is None:
        raise Wrong(f"field {id} not found", 204)
    if field["extra"].get("origin") in (None, "") or field["extra"]["origin"] != row.get("origin"):
        raise Wrong(f"field {id} is not of this origin")
    ask.world.delete("field", id)
    return _item(ask, row, id, f"fields?id={id}", unsaid=id)


_EVENTS: Final = frozenset(
    [
        f"{deed}_{what}"
        for deed in ("add", "update", "delete", "responsible")
        for what in ("lead", "contact", "company", "customer", "task")
    ]
    + [f"{deed}_{what}" for deed in ("restore", "note") for what in ("lead", "contact", "company")]
    + ["status_lead", "note_customer"]
)


def _hooks(ask: Ask, verb: str, do: Callable[[str, list[str]], str | None]) -> Answer:
    rows = _listed(ask.body.get(verb))
    if not rows:
        raise Refusal(400, f"{verb}: пустой массив", 103)
    items: list[Row] = []
    for row in map(_mapping, rows):
        url, events = str(row.get("url") or ""), _texts(row.get("events"))
        notice = do(url, events)
        items.append({"url": url, "result": notice is None, **({"notice": notice} if notice else {})})
    return _outcome(ask, items, ())


def subscribe(ask: Ask) -> Answer:
    def one(url: str, events: list[str]) -> str | None:
        if not re.match(r"https?://\S", url):
            return "Wrong url"
        if not events or not _EVENTS.issuperset(events):
            return "Unknown event"
        known = ask.world.select("webhook", where={"url": url, "active": True}, limit=1)
        if known:
            ask.world.update("webhook", known[0]["id"], {"events": list(dict.fromkeys(known[0]["events"] + events))})
        elif ask.world.count("webhook", {"active": True}) >= WEBHOOKS:
            return f"At most {WEBHOOKS} webhooks"
        else:
            ask.world.add("webhook", {"url": url, "events": events, "created_by": ask.me["id"]})
        return None

    return _hooks(ask, "subscribe", one)


def unsubscribe(ask: Ask) -> Answer:
    """Without events the whole webhook; without a url, as in the page's example, these events of all. [EMU]"""

    def one(url: str, events: list[str]) -> str | None:
        where: dict[str, Condition] = {"active": True, **({"url": url} if url else {})}
        found = ask.world.select("webhook", where=where) if url or events else []
        for hook in found:
            left = [event for event in hook["events"] if events and event not in events]
            if left:
                ask.world.update("webhook", hook["id"], {"events": left})
            else:
                ask.world.delete("webhook", hook["id"])
        return None if found else "Webhook not found"

    return _hooks(ask, "unsubscribe", one)


def list_webhooks(ask: Ask) -> Answer:
    rows = ask.world.select("webhook", where={"active": True})
    return _envelope(ask, [{"id": row["id"], "url": row["url"], "events": row["events"]} for row in rows])


def _ajax(spec: Spec) -> Handler:
    def multiple(ask: Ask) -> Answer:
        if ask.body.get("ACTION") != "DELETE":
            raise Refusal(400, "ACTION", 103)
        for id in _ids(ask, "ID", ask.body.get("ID")):
            if _found(ask, spec.kind, id) is not None:
                _erase(ask, spec.kind, id)
        return {"status": "success"}

    return multiple


def _erase(ask: Ask, kind: str, id: int) -> None:
    """Cards go to the trash and out of others' links; tasks and notes are gone."""
    if kind in ("task", "note"):
        ask.world.delete(kind, id)
        return
    ask.world.update(kind, id, {"deleted": True, "updated_by": ask.me["id"]})
    ends = {"contact": {"contact": id}, "company": {"company_id": id}}.get(kind, {})
    for holder in ("deal", "contact") if ends else ():
        if "contact" in ends and holder == "contact":
            continue
        for row in ask.world.select(holder, where=ends):
            _link(ask, holder, row["id"], Link(kind, id, False))
    for row in _customers(ask) if ends else ():
        _link(ask, "customer", row["id"], Link(kind, id, False))


# --- the face --------------------------------------------------------------------------------------------------------

API: Final[Mapping[str, Verbs]] = {
    "/api/v2/account": {"GET": get_account},
    **{
        f"/api/v2/{spec.path}": {"GET": _listing(spec), "POST": _writing(spec)}
        for spec in SPECS
        if spec is not CUSTOMERS_SPEC
    },
    "/api/v2/customers": {"GET": list_customers, "POST": _writing(CUSTOMERS_SPEC)},
    "/api/v2/pipelines": {"GET": list_pipelines},
    "/api/v2/fields": {"POST": write_fields},
    "/api/v2/webhooks": {"GET": list_webhooks},
    "/api/v2/webhooks/subscribe": {"POST": subscribe},
    "/api/v2/webhooks/unsubscribe": {"POST": unsubscribe},
}
"""Every method is there with a trailing slash too (§1)."""

AJAX: Final[Mapping[str, Verbs]] = {
    f"/ajax/{spec.path}/multiple/delete": {"POST": _ajax(spec)} for spec in SPECS if spec is not CUSTOMERS_SPEC
}


def build(account: Account) -> App:
    """The API over this account."""
    door = _Door(account)
    every = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
    known = {**API, **(AJAX if account.switches["ajax-delete"] else {})}
    routes = [Route("/private/api/auth.php", door.login, methods=["GET", "POST"])]
    for path, verbs in known.items():
        routes += [Route(path + end, door.endpoint(verbs), methods=every) for end in ("", "/")]

    async def refused(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        return door.refused(request, Refusal(status, "Запрос не поддерживается"))

    return Starlette(
        routes=[*routes, Route("/{rest:path}", door.endpoint({}, known=False), methods=every)],
        exception_handlers={HTTPException: refused, 500: refused},
    )


def credentials(account: Account) -> Mapping[str, str]:
    return {**logins(account).of(), "token": logins(account).issue_token()}


def script(base_url: str, credentials: Mapping[str, str]) -> str:
    """Six lines that list contacts."""
    return f"""import asyncio
from crmclient import connect
async def main():
    async with connect("amocrm", base_url="{base_url}", credentials="{credentials["token"]}") as crm:
        print([contact.name async for contact in crm.contacts.list()][:5])
asyncio.run(main())
"""


FACE: Final = Face(
    name="amocrm",
    title="amoCRM API v2",
    switches=SWITCHES,
    build=build,
    credentials=credentials,
    script=script,
)
