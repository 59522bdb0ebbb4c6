"""The legacy XML API's side, the ``/private/api/*.php`` pages, of which only the questions are documented.

Sources: ``seed`` is the vendor's page, ``§n`` a section of the reference ``amocrm-xml.md`` written from it and from
published programs, ``DECISIONS`` the project's decisions where all are silent. Of the answers almost nothing is known:
their vocabulary is the proposal of §6, and whatever else they might be is a switch, so that a client can be tried
against that too. It shares no line with our own codec.
"""

import random
import re
import secrets
import xml.etree.ElementTree as ET  # written only, never parsed
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Final, TypeAlias, cast
from urllib.parse import parse_qsl
from zoneinfo import ZoneInfo

from attrs import define, field, frozen
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from crmclient.sandbox.server import LAGS, Account, App, Face, Setting, SlidingLimit, Switch, Verdict
from crmclient.sandbox.world import Condition, Contains, Not, Row, World

Pairs: TypeAlias = list[tuple[str, str]]
Tree: TypeAlias = "str | dict[str, Tree]"
Given: TypeAlias = Mapping[str, Tree]
Node: TypeAlias = "tuple[str, str | list[Node]]"

PREFIX: Final = "/private/api/"
# "A cookie session follows; 15 minutes" (§2).
SESSION: Final = 15 * 60
COOKIE: Final = "session_id"
# PHP's own bound is 64 levels and 1000 fields; nothing in §4 is deeper than four.
DEPTH: Final = 8
FIELDS: Final = 1000

_ON: Final = (False, True)

SWITCHES: Final[Mapping[str, Switch]] = {
    # coming in
    "wrong-login": Switch("200", ("200", "401"), "§7.19: the status of a failed login; the body is known"),
    "not-logged-in": Switch("401", ("401", "200"), "§2: what other pages answer when not logged in is unknown"),
    "session": Switch("from-login", ("from-login", "sliding"), "§2: 15 minutes, of the session or of its idleness"),
    "credentials-per-call": Switch(True, _ON, "§7.16: live clients send USER_LOGIN with every call, the seed does not"),
    "password-login": Switch(True, _ON, "§7.17: USER_PASSWORD is in the seed, live clients all send USER_HASH"),
    "bearer": Switch(False, _ON, "§1: contact_search.php was seen to take an OAuth token in the 2020s"),
    "get-reads": Switch("all", ("all", "search", "none"), "§7.18: the seed says POST; GET was seen on contact_search"),
    "rate": Switch("none", ("none", "7"), "§7.20: no limit is stated; the later API has 7 a second"),
    # questions
    "serialize": Switch(False, _ON, "§7.15: whether the server read PHP's serialize() in one field"),
    "rows-name": Switch(
        "both", ("both", "ELEMENT_CONT", "ELEMENT_COUNT"), "§7.1: the seed's name or the live client's"
    ),
    "rows": Switch("30", ("30", "10", "100"), "§3: unasked it is the user's own setting of the list"),
    "rows-at-most": Switch("any", ("any", "100", "500"), "§3: how many rows may be asked for is not said"),
    "ignore-filters": Switch(False, _ON, "§3: what a SEARCH that is not heeded gets; every row, as from the list"),
    "index-lag": Switch("none", LAGS, "§3: how soon SEARCH finds a new row is not said"),
    "many-searches": Switch("last", ("last", "any"), "§3: several SEARCH were seen in one query; PHP keeps the last"),
    "slash-dates": Switch(True, _ON, "§7.5: the seed's example is month first, with slashes and a one-digit hour"),
    "zone": Switch("account", ("account", "utc"), "§7.5: whose time END_DATE is in is not said"),
    "task-link": Switch("both", ("both", "ID", "TASK_OBJECT"), "§7.6: the object of a new task, seed or live client"),
    "complete-task": Switch(False, _ON, "§7.8: COMPLETE_TASK for COMPLATE_TASK, which is the wire's spelling"),
    "required": Switch("task", ("task", "all", "none"), "DECISIONS: a new task's four; of names nothing is said"),
    "price": Switch("number", ("number", "integer"), "§7.22: 'price (number)'"),
    # what writing does
    "left-out": Switch("erase", ("erase", "keep"), "§7.10: keys left out of EDIT are presumably erased"),
    "task-left-out": Switch("keep", ("keep", "erase"), "DECISIONS: EDIT_TASK without TASK_OBJECT keeps its link"),
    "linked-contact": Switch("replace", ("replace", "add"), "§7.12: what one id does to a deal of several contacts"),
    "company-by-name": Switch("find-or-make", ("find-or-make", "name-only"), "§7.14: a company's name without its id"),
    "cascade": Switch(True, _ON, "DECISIONS: notes and tasks of a deleted contact or deal go too"),
    "unknown-id": Switch("error", ("error", "404", "silence"), "§7.11: an unknown id is an error or silence"),
    "unknown-reference": Switch("error", ("error", "ignore"), "§7.11: an unknown user, stage, company or contact"),
    "error-status": Switch("200", ("200", "400"), "§6: errors come with 200; yii's program lists 400 too"),
    # answers
    "id-in-answer": Switch(True, _ON, "§5: of write answers only <result> is known"),
    "list-form": Switch("full", ("full", "short"), "§6: lists of contacts may give id to phones and user only"),
    "companies": Switch("search", ("search", "everywhere", "nowhere"), "§7.14: where companies come as contacts"),
    "search-paging": Switch(True, _ON, "§3: paging tags in a search are inferred from 'similar to the list'"),
    "beyond-last": Switch("last", ("last", "first", "empty"), "§6: a page beyond the last, as Bitrix did or not"),
    "order": Switch("id", ("id", "newest"), "§6: the order of a list is not stated"),
    "empties": Switch("missing", ("missing", "blank"), "§6: position, company and end_date may be absent or empty"),
    "phone-tag": Switch("number", ("number", "value", "phone", "tel"), "§5: of a phone only its first child is known"),
    "item-tag": Switch("named", ("named", "item"), "§5: the tags of the items of phones are unknown"),
    "user-name": Switch("name", ("name", "title"), "§5: of a user only that the second child is the name"),
    "id-form": Switch("child", ("child", "attribute"), "§6: <id> was seen in a contact; Bitrix likes ID='1'"),
    "tag-case": Switch("lower", ("lower", "upper"), "§1, §6: the case of the tags nobody has shown"),
    "comments": Switch(False, _ON, "§2: the seed prints a comment inside a value"),
    "child-order": Switch("fixed", ("fixed", "shuffled"), "§5: only id and name are known to come first"),
}


class Refusal(Exception):
    """A request that is answered with an error inside the answer (§6)."""

    def __init__(self, message: str, code: int = 400) -> None:
        super().__init__(message)
        self.message = message
        self.code = code


class NotThere(Refusal):
    """The request is about a row nobody has."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} not found", 404)


@frozen
class Ask:
    """A request that may come in: who asks, and the fields as PHP would see them."""

    account: Account
    me: Row
    form: Given
    words: Sequence[str]
    """Every SEARCH of the request, in order."""

    @property
    def world(self) -> World:
        return self.account.world

    def switch(self, name: str) -> Setting:
        return self.account.switches[name]


# --- who may come in -------------------------------------------------------------------------------------------------


@define
class Logins:
    """The account's passwords, keys and sessions; what a test turns to spoil a client's login."""

    account: Account
    count: int = 0
    """How often auth.php let somebody in."""
    refused: int = 0
    """How often a login or a key was wrong, on whatever page."""
    sessions: dict[str, tuple[int, float]] = field(factory=dict[str, tuple[int, float]])
    """By cookie: whose it is, and until when in the clock's monotonic seconds."""
    tokens: dict[str, int] = field(factory=dict[str, int])
    _words: dict[int, tuple[str, str]] = field(factory=dict[int, tuple[str, str]])

    def of(self, user_id: int | None = None) -> Mapping[str, str]:
        """A user's login, password and key; without a user the admin's."""
        user = self.account.world.admin if user_id is None else self.account.world.row("user", user_id)
        if user["id"] not in self._words:
            self._words[user["id"]] = (secrets.token_urlsafe(9), secrets.token_hex(16))
        password, key = self._words[user["id"]]
        return {"login": user["email"], "hash": key, "password": password}

    def change(self, user_id: int | None = None) -> Mapping[str, str]:
        """A new password and with it a new key (seed: "a new key is generated each time the password is changed").

        Sessions live on; nothing says they end.
        """
        id = self.account.world.admin["id"] if user_id is None else user_id
        self._words.pop(id, None)
        return self.of(id)

    def expire(self) -> None:
        """All sessions are over, whatever the time."""
        self.sessions.clear()

    def issue_token(self, user_id: int | None = None) -> str:
        """What OAuth would have given; only contact_search.php takes it, and only behind its switch."""
        token = secrets.token_hex(32)
        self.tokens[token] = self.account.world.admin["id"] if user_id is None else user_id
        return token

    def check(self, form: Given) -> Row | None:
        """The user whose login and key, or password, these are."""
        for user in self.account.world.select("user", where={"email": _text(form, "USER_LOGIN"), "active": True}):
            known = self.of(user["id"])
            if form.get("USER_HASH") == known["hash"]:
                return user
            if self.account.switches["password-login"] and form.get("USER_PASSWORD") == known["password"]:
                return user
        self.refused += 1
        return None

    def open(self, user: Row) -> str:
        self.count += 1
        session = secrets.token_hex(16)
        self.sessions[session] = (user["id"], self.account.clock.monotonic() + SESSION)
        return session

    def holder(self, session: str | None) -> Row | None:
        """The user of a session that is not over."""
        id, until = self.sessions.get(session or "", (0, 0.0))
        now = self.account.clock.monotonic()
        if session is None or until <= now:
            return None
        if self.account.switches["session"] == "sliding":
            self.sessions[session] = (id, now + SESSION)
        return self.account.world.get("user", id)


def logins(account: Account) -> Logins:
    """The one desk of this account."""
    return cast(Logins, account.issued.setdefault("logins", Logins(account)))


# --- fields as PHP sees them -----------------------------------------------------------------------------------------

_BRACKETS: Final = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])*)")
_BOUNDARY: Final = re.compile(r'boundary=(?:"([^"]+)"|([^\s;]+))', re.IGNORECASE)
_PART_NAME: Final = re.compile(
    r'^content-disposition:\s*form-data;(?:.*;)?\s*name="([^"]*)"', re.IGNORECASE | re.MULTILINE
)


def _pairs(encoded: str) -> Pairs:
    try:
        return parse_qsl(encoded, keep_blank_values=True, errors="replace", max_num_fields=FIELDS)
    except ValueError as error:
        raise Refusal(f"More than {FIELDS} fields") from error


async def _posted(request: Request) -> Pairs:
    """A body in either of the forms §1 has; of any other PHP makes no fields."""
    kind = request.headers.get("content-type", "")
    body = await request.body()
    if kind.startswith("application/x-www-form-urlencoded"):
        return _pairs(body.decode(errors="replace"))
    found = _BOUNDARY.search(kind) if kind.startswith("multipart/form-data") else None
    return [] if found is None else _parts(body, (found[1] or found[2]).encode())


def _parts(body: bytes, boundary: bytes) -> Pairs:
    # Starlette reads multipart only with python-multipart, and the little that is needed is short. Files are ignored.
    pairs: Pairs = []
    for part in (b"\r\n" + body).split(b"\r\n--" + boundary)[1:]:
        head, _, value = part.partition(b"\r\n\r\n")
        name = _PART_NAME.search(head.decode(errors="replace"))
        if name is not None and b"filename=" not in head:
            pairs.append((name[1], value.decode(errors="replace")))
    if len(pairs) > FIELDS:
        raise Refusal(f"More than {FIELDS} fields")
    return pairs


def _tree(pairs: Iterable[tuple[str, str]]) -> dict[str, Tree]:
    """``a[b][c]=d`` as nested arrays; ``a[]=d`` takes the next number; the later of two takes the place."""
    tree: dict[str, Tree] = {}
    for name, value in pairs:
        found = _BRACKETS.fullmatch(name)
        path = [name] if found is None else [found[1], *re.findall(r"\[([^\[\]]*)\]", found[2])]
        if len(path) > DEPTH:
            raise Refusal(f"Fields are nested deeper than {DEPTH}")
        place = tree
        for key in path[:-1]:
            inner = place.get(key or _next(place))
            if not isinstance(inner, dict):
                inner = place[key or _next(place)] = {}
            place = inner
        place[path[-1] or _next(place)] = value
    return tree


def _next(place: Given) -> str:
    return str(max((int(key) + 1 for key in place if re.fullmatch(r"\d{1,9}", key, re.ASCII)), default=0))


_SERIALIZED: Final = re.compile(rb'a:(?P<size>\d{1,6}):\{|s:(?P<length>\d{1,9}):"|i:(?P<number>-?\d{1,19});')


def _unserialized(data: bytes) -> Tree:
    """PHP's serialize() of arrays, strings and integers; anything else, objects above all, is refused (§7.15)."""
    tree, end = _value(data, 0, DEPTH)
    if end != len(data):
        raise Refusal("Not a serialized array")
    return tree


def _value(data: bytes, at: int, depth: int) -> tuple[Tree, int]:
    found = _SERIALIZED.match(data, at)
    if found is None or not depth:
        raise Refusal("Not a serialized array")
    at = found.end()
    if found["number"] is not None:
        return found["number"].decode(), at
    if found["length"] is not None:
        end = at + int(found["length"])
        if data[end : end + 2] != b'";':
            raise Refusal("Not a serialized array")
        return data[at:end].decode(errors="replace"), end + 2
    tree: dict[str, Tree] = {}
    for _ in range(int(found["size"])):
        key, at = _value(data, at, 1)
        if not isinstance(key, str):
            raise Refusal("Not a serialized array")
        tree[key], at = _value(data, at, depth - 1)
    if data[at : at + 1] != b"}":
        raise Refusal("Not a serialized array")
    return tree, at + 1


# --- values that come in ---------------------------------------------------------------------------------------------


def _text(given: Given, key: str) -> str:
    value = given.get(key, "")
    if not isinstance(value, str):
        raise Refusal(f"{key} must be a string")
    return value


def _number(given: Given, key: str) -> int | None:
    """An id, or None where it is left empty; '' and '0' are both sent for none (§4)."""
    text = _text(given, key).strip()
    if not re.fullmatch(r"\d{0,18}", text, re.ASCII):
        raise Refusal(f"{key} must be a number")
    return int(text or 0) or None


def _reference(ask: Ask, given: Given, key: str, kind: str) -> int | None:
    """The id of another row, which must be there."""
    id = _number(given, key)
    if id is None or _there(ask, kind, id) is not None:
        return id
    if ask.switch("unknown-reference") == "error":
        raise Refusal(f"{key}: there is no {kind} {id}")
    return None


def _there(ask: Ask, kind: str, id: int) -> Row | None:
    row = ask.world.get(kind, id)
    return None if row is None or row.get("deleted") else row


def _found(ask: Ask, kind: str, key: str = "ID") -> Row:
    """The row the request is about."""
    id = _number(ask.form, key)
    if id is None:
        raise Refusal(f"{key} is required")
    row = _there(ask, kind, id)
    if row is None:
        raise NotThere(kind.capitalize())
    return row


# "DD.MM.YYYY HH: MI: SS (eg, 01/14/2011 2:00:00)" (seed): the blanks and the slashes are in its own words.
_MOMENT: Final = re.compile(r"(\d{1,2})([./])(\d{1,2})\2(\d{4}) +(\d{1,2}): ?(\d{1,2}): ?(\d{1,2})", re.ASCII)


def _zone(ask: Ask) -> ZoneInfo:
    return ZoneInfo("UTC" if ask.switch("zone") == "utc" else str(ask.world.account["zone"]))


def _moment(ask: Ask, given: Given, key: str) -> int | None:
    text = _text(given, key).strip()
    if not text:
        return None
    found = _MOMENT.fullmatch(text)
    if found is None or (found[2] == "/" and not ask.switch("slash-dates")):
        raise Refusal(f"{key} must be DD.MM.YYYY HH:MM:SS")
    first, second, year, *clock = (int(found[n]) for n in (1, 3, 4, 5, 6, 7))
    day, month = (second, first) if found[2] == "/" else (first, second)
    try:
        moment = datetime(year, month, day, *clock, tzinfo=_zone(ask))
    except ValueError as error:
        raise Refusal(f"{key} must be DD.MM.YYYY HH:MM:SS") from error
    if not 1970 < year < 2100:
        raise Refusal(f"{key}: the year {year} is out of bounds")
    return int(moment.timestamp())


@frozen
class Items:
    """One of the lists of a contact: its key and words in a question (§4), its words in an answer (§6)."""

    key: str
    column: str
    value: str
    label: str | None
    tags: tuple[str, str]
    places: tuple[str, ...] = ()
    """The world's labels, where they are a closed list."""

    def read(self, ask: Ask, given: Given, old: Row | None) -> Row:
        return {self.column: [self._stored(value, label) for value, label in self._entries(given) if value]}

    def _entries(self, given: Given) -> list[tuple[str, str]]:
        # §4, paired items: the value opens an entry, the label completes the last open one; so a label may stand in
        # the same item or in the next. A map instead of a list of maps (addresses) is its own only item.
        sent = given.get(self.key) or {}
        if isinstance(sent, str):
            raise Refusal(f"{self.key} must be an array")
        entries: list[tuple[str, str]] = []
        for item in [sent] if self.value in sent else sent.values():
            if not isinstance(item, dict):
                raise Refusal(f"{self.key} must be an array of arrays")
            if self.value in item:
                entries.append((_text(item, self.value).strip(), ""))
            if self.label is not None and self.label in item and entries:
                entries[-1] = (entries[-1][0], _text(item, self.label).strip())
        return entries

    def _stored(self, value: str, label: str) -> Row:
        if self.label is None:
            return {"value": value}
        place = _SENT.get(label.lower(), label.lower()) or "work"
        if not self.places or place in self.places:
            return {"value": value, "label": place if self.places else label}
        # A word nobody has seen is kept beside the world's own.
        return {"value": value, "label": "other", "location": label}

    def node(self, ask: Ask, row: Row) -> Node:
        list_tag, item_tag = self.tags
        value_tag = str(ask.switch("phone-tag")) if self.column == "phones" else self.value
        shown: list[Node] = []
        for item in row.get(self.column, ()):
            inner: list[Node] = [(value_tag, str(item["value"]))]
            label = str(item.get("location") or item.get("label") or "")
            if self.label is not None and label:
                inner.append((self.label, _SHOWN.get(label, label.capitalize()) if label in self.places else label))
            shown.append(("item" if ask.switch("item-tag") == "item" else item_tag, inner))
        return list_tag, shown


# §4: Work and Mobile are seen; the others are the later API's WORK, WORKDD, MOB, FAX, HOME, OTHER.
_PHONE_PLACES: Final = ("work", "workdd", "mobile", "fax", "home", "other")
_EMAIL_PLACES: Final = ("work", "private", "other")
_SENT: Final = {"mob": "mobile", "priv": "private"}
_SHOWN: Final = {"workdd": "WorkDD"}

PHONES: Final = Items("phone_numbers", "phones", "number", "location", ("phones", "phone"), _PHONE_PLACES)
ITEMS: Final = (
    PHONES,
    Items("email_addresses", "emails", "address", "location", ("emails", "email"), _EMAIL_PLACES),
    Items("web_addresses", "urls", "url", None, ("webs", "web")),
    Items("addresses", "addresses", "street", None, ("addresses", "address")),
    Items("instant_messengers", "messengers", "address", "protocol", ("messengers", "messenger")),
)

Reader: TypeAlias = Callable[[Ask, Given, "Row | None"], Row]


def _structure(ask: Ask, name: str) -> Given:
    """``contact`` or ``deal``, the inner ``contact_data`` laid flat: no two keys are the same."""
    value = ask.form.get(name, "")
    if isinstance(value, str) and value and ask.switch("serialize"):
        value = _unserialized(value.encode())
    if not isinstance(value, dict):
        raise Refusal(f"{name} must be an array")
    data = value.get("contact_data", "")
    return {**value, **data} if isinstance(data, dict) else value


def _read(ask: Ask, given: Given, table: Mapping[tuple[str, ...], Reader], old: Row | None) -> Row:
    """The neutral row of a structure. Edit "must pass all … regardless of whether the field has changed" (seed)."""
    keep = old is not None and ask.switch("left-out") == "keep"
    row: Row = {"updated_by": ask.me["id"]}
    for keys, read in table.items():
        if not keep or any(key in given for key in keys):
            row |= read(ask, given, old)
    return row


def _named(key: str, more: Row) -> Reader:
    def read(ask: Ask, given: Given, old: Row | None) -> Row:
        name = _text(given, key)
        if old is None and not name.strip() and ask.switch("required") == "all":
            raise Refusal(f"{key} is required")
        return {} if old is not None and old["name"] == name else {"name": name, **more}

    return read


def _owner(ask: Ask, given: Given, old: Row | None) -> Row:
    return {"owner": _reference(ask, given, "main_user_id", "user") or ask.me["id"]}


def _tags(ask: Ask, given: Given, old: Row | None) -> Row:
    # "тег, тег2, тег3" (§4): a comma string; blanks inside a tag are its own.
    names = (name.strip() for name in _text(given, "tags").split(","))
    return {"tags": list(dict.fromkeys(name for name in names if name))}


# --- values that go out ----------------------------------------------------------------------------------------------


def _when(ask: Ask, epoch: int) -> str:
    return datetime.fromtimestamp(epoch, _zone(ask)).strftime("%d.%m.%Y %H:%M:%S")


def _optional(ask: Ask, tag: str, content: "str | list[Node] | None") -> list[Node]:
    if content:
        return [(tag, content)]
    return [(tag, "")] if ask.switch("empties") == "blank" else []


def _named_node(tag: str, row: Row, name: str = "name") -> Node:
    return tag, [("id", str(row["id"])), (name, row["name"])]


def _user(ask: Ask, row: Row) -> list[Node]:
    user = ask.world.get("user", row["owner"]) if row["owner"] is not None else None
    return [] if user is None else [_named_node("user", user, str(ask.switch("user-name")))]


def _tag_nodes(row: Row) -> Node:
    return "tags", [("tag", name) for name in row["tags"]]


def _dates(ask: Ask, row: Row) -> list[Node]:
    return [("date_create", _when(ask, row["created_at"])), ("date_modify", _when(ask, row["updated_at"]))]


def _written(ask: Ask, id: int) -> list[Node]:
    return [("result", "true"), *([("id", str(id))] if ask.switch("id-in-answer") else [])]


_NOT_XML: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# Documented, or seen by a program that reads it (§2, §3, §5): these are lower case whatever the others are.
_SEEN: Final = frozenset(
    ("root", "auth", "result", "onpage", "totalpages", "currpage", "contacts", "contact", "id", "name")
) | {"company", "is_company", "phones", "user"}
# A phone's first child is its number and a user's second the name (§5): their order is known.
_SHUFFLED: Final = frozenset(("root", "contact", "deal", "note", "task"))


def _xml(account: Account, nodes: list[Node]) -> str:
    root = _element(account.switches, ("root", nodes))
    ET.indent(root, "\t")
    # A carriage return that is not written as a reference comes out of any parser as a line feed.
    text = ET.tostring(root, encoding="unicode").replace("\r", "&#13;")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def _element(switches: Mapping[str, Setting], node: Node) -> ET.Element:
    tag, content = node
    element = ET.Element(tag.upper() if switches["tag-case"] == "upper" and tag not in _SEEN else tag)
    if isinstance(content, str):
        element.text = _NOT_XML.sub("", content)
        if switches["comments"]:
            element.text += " "
            element.append(ET.Comment(" (or another otherwise) "))
        return element
    children = list(content)
    if switches["id-form"] == "attribute" and tag != "root" and children and children[0][0] == "id":
        element.set("ID", str(children.pop(0)[1]))
    if switches["child-order"] == "shuffled" and tag in _SHUFFLED:
        random.Random(str(children)).shuffle(children)
    element.extend(_element(switches, child) for child in children)
    return element


# --- lists and searches ----------------------------------------------------------------------------------------------

Source: TypeAlias = "tuple[str, Sequence[Mapping[str, Condition]]]"
Show: TypeAlias = Callable[[Ask, Row, bool], Node]
_ALL: Final[Sequence[Mapping[str, Condition]]] = ({"deleted": False},)


def _asked(ask: Ask, *keys: str) -> int | None:
    """The first of these parameters that is a number above zero; anything else is as if it had not come."""
    numbers = (int(text) for key in keys if re.fullmatch(r"\d{1,9}", text := _text(ask.form, key).strip(), re.ASCII))
    return next((number for number in numbers if number), None)


def _listed(ask: Ask, tag: str, sources: Sequence[Source], show: Show, *, paging: bool = True) -> list[Node]:
    names = ("ELEMENT_CONT", "ELEMENT_COUNT") if ask.switch("rows-name") == "both" else (str(ask.switch("rows-name")),)
    size = _asked(ask, *names) or int(ask.switch("rows"))
    if ask.switch("rows-at-most") != "any":
        size = min(size, int(ask.switch("rows-at-most")))
    counts = [ask.world.count(kind, where) for kind, where in sources]
    pages = max(1, -(-sum(counts) // size))
    page = _asked(ask, "PAGEN_1") or 1
    if page > pages and ask.switch("beyond-last") != "empty":
        # DECISIONS: Bitrix repeats the last page.
        page = pages if ask.switch("beyond-last") == "last" else 1
    skip, short = (page - 1) * size, ask.switch("list-form") == "short"
    nodes: list[Node] = []
    for (kind, where), count in zip(sources, counts, strict=True):
        # One kind after the other, each in order: a page may end one and begin the next.
        if skip < count and len(nodes) < size:
            newest = ask.switch("order") == "newest"
            room = size - len(nodes)
            rows = ask.world.select(kind, where=where, descending=newest, limit=room, offset=skip)
            nodes += [show(ask, row, short) for row in rows]
        skip = max(0, skip - count)
    marks: list[Node] = [("onpage", str(size)), ("totalpages", str(pages)), ("currpage", str(page))]
    return [*(marks if paging else []), (tag, nodes)]


def _words(ask: Ask) -> list[str]:
    words = [] if ask.switch("ignore-filters") else [word.strip() for word in ask.words]
    return words[-1:] if ask.switch("many-searches") == "last" else words


def _matching(ask: Ask, kind: str, word: str) -> list[Mapping[str, Condition]]:
    """Rows found by a word: names, companies, e-mails, phones as written or by their digits, tags (seed, §5)."""
    if not word:
        return list(_ALL)
    found: list[dict[str, Condition]] = [{"search": Contains(word)}]
    digits = re.sub(r"\D", "", word)
    if digits and re.fullmatch(r"\+?[\d\s()-]{3,}", word, re.ASCII):
        found.append({"search": Contains(digits)})
    folded = word.casefold()
    tags = {tag["name"] for tag in ask.world.select("tag", where={"entity": kind}) if folded in tag["name"].casefold()}
    if tags:
        tagged = ask.world.select(kind, where={"tags": Not("[]")})
        found.append({"id": [row["id"] for row in tagged if tags.intersection(row["tags"])]})
    return [{**condition, "deleted": False, **_indexed(ask)} for condition in found]


def _indexed(ask: Ask) -> Mapping[str, Condition]:
    return ask.account.indexed(ask.switch("index-lag"))


def list_contacts(ask: Ask) -> list[Node]:
    everywhere = ask.switch("companies") == "everywhere"
    return _listed(ask, "contacts", [("contact", _ALL), *([("company", _ALL)] if everywhere else [])], _contact)


def search_contacts(ask: Ask) -> list[Node]:
    kinds = ("contact",) if ask.switch("companies") == "nowhere" else ("contact", "company")
    sources: list[Source] = []
    for kind in kinds:
        sources.append((kind, [condition for word in _words(ask) for condition in _matching(ask, kind, word)] or _ALL))
    return _listed(ask, "contacts", sources, _contact, paging=bool(ask.switch("search-paging")))


def list_deals(ask: Ask) -> list[Node]:
    return _listed(ask, "deals", [("deal", _ALL)], _deal)


def search_deals(ask: Ask) -> list[Node]:
    # "an associated e-mail, name, company name, etc." (seed): by the contacts and companies of a deal too.
    found: list[Mapping[str, Condition]] = []
    for word in _words(ask):
        found += _matching(ask, "deal", word)
        if word:
            for kind, key in (("contact", "contact"), ("company", "company_id")):
                ids = [row["id"] for row in ask.world.select(kind, where=_matching(ask, kind, word))]
                found.append({key: ids, "deleted": False, **_indexed(ask)})
    return _listed(ask, "deals", [("deal", found or _ALL)], _deal, paging=bool(ask.switch("search-paging")))


# --- contacts --------------------------------------------------------------------------------------------------------


def _contact(ask: Ask, row: Row, short: bool) -> Node:
    # Both kinds of cards come as <contact> (§5); a company has neither position nor company nor messengers.
    person = "company" in row
    employer: list[Node] = []
    if row.get("company_id") is not None:
        employer.append(("id", str(row["company_id"])))
    if row.get("company"):
        employer.append(("name", row["company"]))
    head: list[Node] = [
        *(("id", str(row["id"])), ("name", row["name"])),
        *_optional(ask, "position", row.get("position")),
        *_optional(ask, "company", employer),
        ("is_company", "0" if person else "1"),
    ]
    if short:
        return "contact", [*head, PHONES.node(ask, row), *_user(ask, row)]
    deals = ask.world.select("deal", where={"contact" if person else "company_id": row["id"], "deleted": False})
    return "contact", [
        *head,
        *(items.node(ask, row) for items in ITEMS),
        *(_tag_nodes(row), *_user(ask, row), *_dates(ask, row)),
        ("deals", [_named_node("deal", deal) for deal in deals]),
    ]


def _company(ask: Ask, given: Given, old: Row | None) -> Row:
    """The id if it is known, else the name, by which a company is found or made (DECISIONS)."""
    id = _reference(ask, given, "person_company_id", "company")
    name = _text(given, "person_company_name").strip()
    if id is not None:
        return {"company_id": id, "company": ask.world.row("company", id)["name"]}
    if not name or ask.switch("company-by-name") == "name-only":
        return {"company_id": None, "company": name or None}
    known = ask.world.select("company", where={"name": name, "deleted": False}, limit=1)
    made = {"name": name, "owner": ask.me["id"], "created_by": ask.me["id"]}
    return {"company_id": known[0]["id"] if known else ask.world.add("company", made), "company": name}


_CONTACT: Final[Mapping[tuple[str, ...], Reader]] = {
    ("person_name",): _named("person_name", {"first_name": "", "last_name": ""}),
    ("person_position",): lambda ask, given, old: {"position": _text(given, "person_position") or None},
    ("person_company_name", "person_company_id"): _company,
    ("main_user_id",): _owner,
    ("tags",): _tags,
    **{(items.key,): items.read for items in ITEMS},
}


def get_contact(ask: Ask) -> list[Node]:
    try:
        return _detail(ask, "contact", _contact)
    except NotThere:
        if ask.switch("companies") != "everywhere":
            raise
        return _detail(ask, "company", _contact)


def _detail(ask: Ask, kind: str, show: Show) -> list[Node]:
    """All there is of one card: "complete information on the contact, related notes, and the tasks for users" (seed)."""
    row = _found(ask, kind)
    about = {"target_kind": kind, "target_id": row["id"]}
    users: list[Node] = [
        ("user", [("id", str(user["id"])), (str(ask.switch("user-name")), user["name"]), ("login", user["email"])])
        for user in ask.world.select("user")
    ]
    return [
        show(ask, row, False),
        ("notes", [_note(ask, note) for note in ask.world.select("note", where=about)]),
        ("tasks", [_task(ask, task) for task in ask.world.select("task", where=about)]),
        ("users", users),
    ]


def _adding(kind: str, table: Mapping[tuple[str, ...], Reader]) -> "Handler":
    def add(ask: Ask) -> list[Node]:
        row = {**_read(ask, _structure(ask, kind), table, None), "created_by": ask.me["id"]}
        return _written(ask, ask.world.add(kind, row))

    return add


def _editing(kind: str, table: Mapping[tuple[str, ...], Reader]) -> "Handler":
    def edit(ask: Ask) -> list[Node]:
        old = _found(ask, kind)
        ask.world.update(kind, old["id"], _read(ask, _structure(ask, kind), table, old))
        return _written(ask, old["id"])

    return edit


def _deleting(kind: str) -> "Handler":
    def delete(ask: Ask) -> list[Node]:
        id = _found(ask, kind)["id"]
        if ask.switch("cascade") and kind in ELEMENTS.values():
            for satellite in ("note", "task"):
                for row in ask.world.select(satellite, where={"target_kind": kind, "target_id": id}):
                    ask.world.delete(satellite, row["id"])
        ask.world.delete(kind, id)
        return _written(ask, id)

    return delete


# --- deals -----------------------------------------------------------------------------------------------------------


def _deal(ask: Ask, row: Row, short: bool) -> Node:
    # Deals have one form: their list comes "with contacts, users, and tags" (seed).
    stage = ask.world.get("stage", (row["pipeline_id"], row["stage_id"]))
    members = sorted(row["contacts"], key=lambda link: not link["main"])
    people = [ask.world.get("contact", link["id"]) for link in members]
    return "deal", [
        *(("id", str(row["id"])), ("name", row["name"]), ("price", str(row["price"]))),
        ("status", [("id", str(row["stage_id"])), *([("name", stage["name"])] if stage else [])]),
        *_user(ask, row),
        _tag_nodes(row),
        ("contacts", [_named_node("contact", person) for person in people if person is not None]),
        *_dates(ask, row),
    ]


def _status(ask: Ask, given: Given, old: Row | None) -> Row:
    """The API knows stages and no pipelines: the deal's own pipeline first, else the main one, else any."""
    main = ask.world.select("pipeline", where={"main": True})[0]["id"]
    home = main if old is None else old["pipeline_id"]
    id = _number(given, "status_id")
    stages = [] if id is None else ask.world.select("stage", where={"id": id})
    if id is not None and not stages and ask.switch("unknown-reference") == "error":
        raise Refusal(f"status_id: there is no status {id}")
    if not stages:
        stages = ask.world.select("stage", where={"pipeline_id": home, "type": "open"}, order="sort")[:1]
    stage = min(stages, key=lambda stage: (stage["pipeline_id"] != home, stage["pipeline_id"] != main))
    closed = (old or {}).get("closed_at") or int(ask.account.clock.now().timestamp())
    ended = stage["type"] in ("won", "lost")
    return {"pipeline_id": stage["pipeline_id"], "stage_id": stage["id"], "closed_at": closed if ended else None}


def _price(ask: Ask, given: Given, old: Row | None) -> Row:
    text = _text(given, "price").strip() or "0"
    fraction = r"(\.\d{1,4})?" if ask.switch("price") == "number" else ""
    if not re.fullmatch(r"-?\d{1,15}" + fraction, text, re.ASCII):
        raise Refusal("price must be a number")
    exact = Decimal(text)
    return {"price": int(exact) if exact == int(exact) else text}


def _linked_contact(ask: Ask, given: Given, old: Row | None) -> Row:
    id = _reference(ask, given, "linked_contact", "contact")
    if id is None:
        return {"contacts": []}
    kept: list[Row] = old["contacts"] if old is not None and ask.switch("linked-contact") == "add" else []
    others = [{**link, "main": False} for link in kept if link["id"] != id]
    return {"contacts": [{"id": id, "main": True}, *others]}


_DEAL: Final[Mapping[tuple[str, ...], Reader]] = {
    ("name",): _named("name", {}),
    ("status_id",): _status,
    ("price",): _price,
    ("main_user_id",): _owner,
    ("tags",): _tags,
    ("linked_contact",): _linked_contact,
}


def get_deal(ask: Ask) -> list[Node]:
    return _detail(ask, "deal", _deal)


# --- notes and tasks -------------------------------------------------------------------------------------------------

# "1 for contacts, 2 for deals" (seed).
ELEMENTS: Final[Mapping[str, str]] = {"1": "contact", "2": "deal"}
# CALL, LETTER, MEETING are the later API's 1, 3, 2 (§7.21); the world has no row for a letter.
TASK_TYPES: Final[Mapping[str, int]] = {"CALL": 1, "MEETING": 2, "LETTER": 3}


def _element_nodes(row: Row) -> list[Node]:
    types = [number for number, kind in ELEMENTS.items() if kind == row["target_kind"]]
    return [("element_id", str(row["target_id"])), *[("element_type", number) for number in types]]


def _note(ask: Ask, row: Row) -> Node:
    created = ("date_create", _when(ask, row["created_at"]))
    return "note", [("id", str(row["id"])), ("body", row["text"]), *_element_nodes(row), created, *_user(ask, row)]


def _task(ask: Ask, row: Row) -> Node:
    words = [word for word, id in TASK_TYPES.items() if id == row["type_id"]]
    return "task", [
        *(("id", str(row["id"])), ("body", row["text"])),
        *_optional(ask, "end_date", None if row["due"] is None else _when(ask, row["due"])),
        ("task_type", words[0] if words else str(row["type_id"])),
        ("completed", "1" if row["done"] else "0"),
        *_element_nodes(row),
        *_user(ask, row),
    ]


def _target(ask: Ask, key: str) -> Row:
    kind = ELEMENTS.get(_text(ask.form, "ELEMENT_TYPE").strip())
    if kind is None:
        raise Refusal("ELEMENT_TYPE must be 1 for contacts or 2 for deals")
    return {"target_kind": kind, "target_id": _found(ask, kind, key)["id"]}


def _body(ask: Ask) -> str:
    body = _text(ask.form, "BODY")
    if not body.strip() and ask.switch("required") == "all":
        raise Refusal("BODY is required")
    return body


def add_note(ask: Ask) -> list[Node]:
    row = {"text": _body(ask), **_target(ask, "ID"), "owner": ask.me["id"], "created_by": ask.me["id"]}
    return _written(ask, ask.world.add("note", row))


def edit_note(ask: Ask) -> list[Node]:
    old = _found(ask, "note")
    ask.world.update("note", old["id"], {"text": _body(ask), "updated_by": ask.me["id"]})
    return _written(ask, old["id"])


def _task_type(ask: Ask, given: Given, old: Row | None) -> Row:
    word = _text(given, "TASK_TYPE").strip() or "CALL"
    if word not in TASK_TYPES:
        raise Refusal("TASK_TYPE must be CALL, LETTER or MEETING")
    return {"type_id": TASK_TYPES[word]}


_TASK: Final[Mapping[tuple[str, ...], Reader]] = {
    ("BODY",): lambda ask, given, old: {"text": _text(given, "BODY")},
    ("END_DATE",): lambda ask, given, old: {"due": _moment(ask, given, "END_DATE")},
    ("MAIN_USER",): lambda ask, given, old: {"owner": _reference(ask, given, "MAIN_USER", "user") or ask.me["id"]},
    ("TASK_TYPE",): _task_type,
}


def add_task(ask: Ask) -> list[Node]:
    # DECISIONS: these four are required, the link is not.
    for (key,) in _TASK:
        if not _text(ask.form, key).strip() and ask.switch("required") != "none":
            raise Refusal(f"{key} is required")
    row = {**_read(ask, ask.form, _TASK, None), "created_by": ask.me["id"]}
    # The seed links by ID, the live client by TASK_OBJECT (§7.6).
    keys = ("TASK_OBJECT", "ID") if ask.switch("task-link") == "both" else (str(ask.switch("task-link")),)
    linked = [key for key in keys if _number(ask.form, key) is not None]
    return _written(ask, ask.world.add("task", {**row, **(_target(ask, linked[0]) if linked else {})}))


def edit_task(ask: Ask) -> list[Node]:
    old = _found(ask, "task")
    row = _read(ask, ask.form, _TASK, old)
    if _number(ask.form, "TASK_OBJECT") is not None:
        row |= _target(ask, "TASK_OBJECT")
    elif "TASK_OBJECT" in ask.form or ask.switch("task-left-out") == "erase":
        row |= {"target_kind": None, "target_id": None}
    ask.world.update("task", old["id"], row)
    return _written(ask, old["id"])


def complete_task(ask: Ask) -> list[Node]:
    old = _found(ask, "task")
    ask.world.update("task", old["id"], {"done": True, "updated_by": ask.me["id"]})
    return _written(ask, old["id"])


# --- the face --------------------------------------------------------------------------------------------------------

Handler: TypeAlias = Callable[[Ask], list[Node]]

READING: Final[Mapping[str, Handler]] = {
    "contacts.php": list_contacts,
    "contact_search.php": search_contacts,
    "contact_detail.php": get_contact,
    "deals.php": list_deals,
    "deal_search.php": search_deals,
    "deal_detail.php": get_deal,
}
WRITING: Final[Mapping[str, Mapping[str, Handler]]] = {
    "contact_add.php": {"ADD_PERSON": _adding("contact", _CONTACT), "EDIT": _editing("contact", _CONTACT)},
    "contact_delete.php": {"DELETE": _deleting("contact")},
    "deal_add.php": {"ADD": _adding("deal", _DEAL), "EDIT": _editing("deal", _DEAL)},
    "deal_delete.php": {"DELETE": _deleting("deal")},
    "note_add.php": {"ADD_NOTE": add_note, "EDIT_NOTE": edit_note, "NOTE_DELETE": _deleting("note")},
    "task_add.php": {
        "ADD_TASK": add_task,
        "EDIT_TASK": edit_task,
        "TASK_DELETE": _deleting("task"),
        "COMPLATE_TASK": complete_task,
        "COMPLETE_TASK": complete_task,
    },
}
"""The whole of §3, besides auth.php."""


@frozen
class _Door:
    account: Account
    logins: Logins
    limit: SlidingLimit | None

    def endpoint(self, page: str) -> Callable[[Request], Awaitable[Response]]:
        async def answered(request: Request) -> Response:
            if self.limit is not None and self.limit.arrive() is not Verdict.WELCOME:
                return _html(429)
            try:
                query, posted = _pairs(request.url.query), await _posted(request)
                # Reading pages and auth.php take the query too (§1, §2), as PHP's $_REQUEST does.
                pairs = [*query, *posted] if self._reads_query(page) else posted
                form = _tree(pairs)
                if page == "auth.php":
                    return self._log_in(form)
                me = self._who(page, request, form)
                if me is None:
                    return self._outside(int(self.account.switches["not-logged-in"]))
                words = [value for key, value in pairs if key in ("SEARCH", "SEARCH[]")]
                return self._answer(200, self._answered(page, Ask(self.account, me, form, words)))
            except Refusal as refusal:
                return self._refused(refusal)

        return answered

    def _reads_query(self, page: str) -> bool:
        allowed = self.account.switches["get-reads"]
        return page == "auth.php" or (
            page in READING and (allowed == "all" or (allowed == "search" and page == "contact_search.php"))
        )

    def _log_in(self, form: Given) -> Response:
        user = self.logins.check(form)
        if user is None:
            return self._outside(int(self.account.switches["wrong-login"]))
        answer = self._answer(200, [("auth", "true")])
        answer.set_cookie(COOKIE, self.logins.open(user), httponly=True, samesite=None)
        return answer

    def _who(self, page: str, request: Request, form: Given) -> Row | None:
        switches = self.account.switches
        if "USER_LOGIN" in form and switches["credentials-per-call"]:
            return self.logins.check(form)
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if switches["bearer"] and page == "contact_search.php" and scheme.lower() == "bearer":
            return self.account.world.get("user", self.logins.tokens.get(token, 0))
        return self.logins.holder(request.cookies.get(COOKIE))

    def _answered(self, page: str, ask: Ask) -> list[Node]:
        if page in READING:
            return READING[page](ask)
        action = _text(ask.form, "ACTION")
        handler = WRITING[page].get(action)
        if handler is None or (action == "COMPLETE_TASK" and not ask.switch("complete-task")):
            raise Refusal(f"Unknown ACTION {action}")
        with ask.world.transaction():
            return handler(ask)

    def _refused(self, refusal: Refusal) -> Response:
        nodes: list[Node] = [("error", refusal.message), ("error_code", str(refusal.code))]
        if not isinstance(refusal, NotThere):
            return self._answer(int(self.account.switches["error-status"]), nodes)
        match self.account.switches["unknown-id"]:
            case "silence":
                return self._answer(200, [])
            case "404":
                return self._answer(404, nodes)
            case _:
                return self._answer(200, nodes)

    def _outside(self, status: int) -> Response:
        return self._answer(status, [("auth", "false")])

    def _answer(self, status: int, nodes: list[Node]) -> Response:
        return Response(_xml(self.account, nodes), status, media_type="text/xml")


def _html(status: int) -> Response:
    # What stands before PHP answers in HTML: a wrong path is a 404 (§1), and nothing is known of its body.
    words = {404: "Not Found", 405: "Not Allowed", 429: "Too Many Requests", 500: "Internal Server Error"}
    title = f"{status} {words.get(status, '')}".strip()
    return HTMLResponse(f"<html><head><title>{title}</title></head><body><h1>{title}</h1></body></html>", status)


def build(account: Account) -> App:
    """The pages over this account."""
    limited = account.limits and account.switches["rate"] == "7"
    door = _Door(account, logins(account), SlidingLimit(7, 1, account.clock) if limited else None)

    async def refused(_: Request, error: Exception) -> Response:
        return _html(error.status_code if isinstance(error, HTTPException) else 500)

    pages = ("auth.php", *READING, *WRITING)
    routes = [Route(PREFIX + page, door.endpoint(page), methods=["GET", "POST"]) for page in pages]
    return Starlette(routes=routes, exception_handlers={HTTPException: refused, 500: refused})


def credentials(account: Account) -> Mapping[str, str]:
    return logins(account).of()


def script(base_url: str, credentials: Mapping[str, str]) -> str:
    """Six lines that list contacts."""
    login = f'Login("{credentials["login"]}", hash="{credentials["hash"]}")'
    return f"""import asyncio
from crmclient import connect
from crmclient.auth import Login
async def main(crm):
    async with crm: print([contact.name async for contact in crm.contacts.list()][:5])
asyncio.run(main(connect("amoxml", base_url="{base_url}", credentials={login})))
"""


FACE: Final = Face(
    name="amoxml",
    title="legacy amoCRM XML API",
    switches=SWITCHES,
    build=build,
    credentials=credentials,
    script=script,
)
