"""Electrum CRM's side of REST v2, as its page and our decisions have it; it shares no line with our own codec.

Sources: ``seed`` is the vendor's page, ``§n`` a section of the reference ``electrum-v2.md`` written from it, and
``DECISIONS`` the project's decisions where both are silent. Each of those is a switch, so that a client can be tried
against the other answers too. Webhooks are not sent: they are set up in the vendor's interface, not in the API.
"""

import json
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from math import ceil
from typing import Any, Final, TypeAlias, cast

from attrs import frozen
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from crmclient.sandbox.server import Account, App, Face, FixedMinute, SlidingLimit, Switch, Verdict
from crmclient.sandbox.world import Condition, Row, Where, World

Answer: TypeAlias = tuple[int, Any]

# The example's base address, http://localhost:8080/api/v2 (§1).
PREFIX: Final = "/api/v2"
# "Лимит 100/мин" (§1); "Список-запросы возвращают до 100 записей" (§3).
LIMIT: Final = 100
PAGE: Final = 100

SWITCHES: Final[Mapping[str, Switch]] = {
    "stage-form": Switch("slug", ("slug", "id"), "§6 leaves open whether a stage is named by slug or by id"),
    "deal-name-key": Switch("name", ("name", "title"), "§6: a deal's name is a guess by analogy, it may be its title"),
    "task-title-key": Switch("title", ("title", "text", "name"), "§6: no field of a task is evidenced"),
    "task-due-key": Switch("due_date", ("due_date", "due_at", "deadline"), "§6: no field of a task is evidenced"),
    "required": Switch(
        "contact", ("contact", "all"), "§6: nothing says which fields besides a contact's name must come"
    ),
    "absent-status": Switch(
        "404", ("404", "405"), "§6: GET /deals/{id} and GET, PUT, DELETE /tasks/{id} are not listed"
    ),
    "list-items": Switch("full", ("full", "reduced"), "§6: no list item is shown; the answer to a create is reduced"),
    "full-create": Switch(False, (False, True), "§4 shows id, name and created_at; others may answer with the whole"),
    "strict-put": Switch(False, (False, True), "§6: PUT by the book replaces, the deals row reads like a merge"),
    "pipeline-without-stage": Switch("first", ("first", "refuse"), "a deal moved to a pipeline without naming a stage"),
    "empties": Switch("null", ("null", "missing", "blank"), "§6: how an empty field is shown is unknown"),
    "delete-status": Switch("200", ("200", "200-empty", "204"), "§6: 204 is not in the table of codes"),
    "complete-answer": Switch("task", ("task", "empty"), "§6: what completing a task answers is not shown"),
    "repeat-complete": Switch("ok", ("ok", "refuse"), "§6: completing a completed task"),
    "validation-error": Switch("bad_request", ("bad_request", "validation_error"), "§6: only the 404 error is shown"),
    "retry-after-header": Switch(False, (False, True), "§6: Retry-After is not mentioned"),
    "limit-window": Switch("fixed", ("fixed", "sliding"), "§6: 100 a minute, of the clock or of any sixty seconds"),
    "limit-scope": Switch("token", ("token", "account"), "§6: whose hundred it is"),
    "per-page-default": Switch("100", ("100", "50", "20"), "§6: lists return up to 100; how many unasked is not said"),
    "per-page-over": Switch("clamp", ("clamp", "refuse"), "§6: what a per_page over 100 gets"),
    "order": Switch("id", ("id", "newest"), "§6: the order of a list is not stated"),
    "bare-vocabulary": Switch(False, (False, True), "§6: users and pipelines may come without data and meta"),
    "wrap-single": Switch(False, (False, True), "§6: the create answer is bare; a single entity might be in data"),
    "money": Switch(
        "number", ("number", "integer"), "§6: the example's amount is an integer; fractions are not mentioned"
    ),
    "plan": Switch("pro", ("pro", "basic"), "§1: the API is for Про and Корпоративный; a lower plan likely gets 403"),
}


class Refusal(Exception):
    """A request that is answered with one of the page's error codes."""

    def __init__(self, status: int, message: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers


# §2 shows not_found; the other words are DECISIONS'.
_WORDS: Final[Mapping[int, str]] = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    429: "too_many_requests",
    500: "server_error",
}


@frozen
class Ask:
    """A request that may come in: who asks, of which row, with what."""

    account: Account
    me: Row
    id: int
    query: Mapping[str, str]
    body: Mapping[str, Any]

    @property
    def world(self) -> World:
        return self.account.world

    def switch(self, name: str) -> str | bool:
        return self.account.switches[name]


# --- tokens ----------------------------------------------------------------------------------------------------------


def issue_token(account: Account, user_id: int | None = None) -> str:
    """Настройки → API → Создать токен. Without a user it is the admin's."""
    token = secrets.token_hex(20)
    _tokens(account)[token] = account.world.admin["id"] if user_id is None else user_id
    return token


def revoke_token(account: Account, token: str) -> None:
    """A token can be revoked at any time (seed); from then on it is answered with 401."""
    del _tokens(account)[token]


def _tokens(account: Account) -> dict[str, int]:
    return cast("dict[str, int]", account.issued.setdefault("tokens", {}))


# --- the door: token, plan, limit, body, errors ----------------------------------------------------------------------

Handler: TypeAlias = Callable[[Ask], Answer]


@frozen
class _Door:
    account: Account
    limits: dict[str, FixedMinute | SlidingLimit]

    def endpoint(self, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
        async def answered(request: Request) -> Response:
            try:
                token, me = self._who(request)
                self._count(token)
                raw = await request.body()
                body: Mapping[str, Any] = _parsed(raw) if request.method in ("POST", "PUT") else {}
                id = int(request.path_params.get("id", 0))
                ask = Ask(self.account, me, id, request.query_params, body)
                if request.method == "GET":
                    status, content = handler(ask)
                else:
                    with self.account.world.transaction():
                        status, content = handler(ask)
            except Refusal as refusal:
                return self.refused(refusal.status, refusal.message, refusal.headers)
            return Response(status_code=status) if content is None else JSONResponse(content, status)

        return answered

    def refused(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
        # Three keys for every code (§2 shows them for 404, DECISIONS for the rest).
        word = str(self.account.switches["validation-error"]) if status == 400 else _WORDS[status]
        return JSONResponse({"error": word, "message": message, "status": status}, status, headers)

    def _who(self, request: Request) -> tuple[str, Row]:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        tokens = _tokens(self.account)
        if scheme.lower() != "bearer" or token not in tokens:
            raise Refusal(401, "Неверный или отсутствующий токен")
        if self.account.switches["plan"] == "basic":
            raise Refusal(403, "API доступен на тарифах «Про» и «Корпоративный»")
        me = self.account.world.get("user", tokens[token])
        if me is None:
            raise Refusal(401, "Пользователь токена удалён")
        return token, me

    def _count(self, token: str) -> None:
        if not self.account.limits:
            return
        key = token if self.account.switches["limit-scope"] == "token" else ""
        limit = self.limits.get(key)
        if limit is None:
            clock = self.account.clock
            fixed = self.account.switches["limit-window"] == "fixed"
            limit = self.limits[key] = FixedMinute(LIMIT, clock) if fixed else SlidingLimit(LIMIT, 60, clock)
        if limit.arrive() is not Verdict.WELCOME:
            after = {"Retry-After": str(ceil(limit.wait()))} if self.account.switches["retry-after-header"] else None
            raise Refusal(429, "Превышен лимит запросов: 100 в минуту", headers=after)


def _parsed(raw: bytes) -> Mapping[str, Any]:
    if not raw:
        return {}
    try:
        body = json.loads(raw.decode(), parse_float=Decimal, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, "Тело запроса — не JSON") from error
    if not isinstance(body, dict):
        raise Refusal(400, "Тело запроса должно быть объектом JSON")
    return cast("dict[str, Any]", body)


def _no_constant(word: str) -> object:
    raise ValueError(f"{word} is not JSON")


# --- values that come in ---------------------------------------------------------------------------------------------


def _text(body: Mapping[str, Any], key: str) -> str | None:
    value = body.get(key)
    if value is None:
        return None
    if not isinstance(value, str):
        raise Refusal(400, f"Поле {key} должно быть строкой")
    if any("\ud800" <= sign <= "\udfff" for sign in value):
        raise Refusal(400, f"Поле {key} содержит недопустимые символы")
    return value


def _named(body: Mapping[str, Any], key: str, *, required: bool) -> str | None:
    value = _text(body, key)
    if required and not (value or "").strip():
        raise Refusal(400, f"Поле {key} обязательно")
    return value


def _integer(body: Mapping[str, Any], key: str) -> int | None:
    value = body.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise Refusal(400, f"Поле {key} должно быть целым числом")
    return value


def _row_id(ask: Ask, key: str, kind: str, what: str) -> int | None:
    """The id of a row that must be there."""
    id = _integer(ask.body, key)
    if id is not None and ask.world.get(kind, id) is None:
        raise Refusal(400, f"Поле {key}: {what} с ID {id} не существует")
    return id


def _strings(body: Mapping[str, Any], key: str) -> list[str]:
    value = body.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise Refusal(400, f"Поле {key} должно быть списком строк")
    listed = [_text({key: item}, key) for item in cast("list[object]", value)]
    if None in listed:
        raise Refusal(400, f"Поле {key} должно быть списком строк")
    return list(dict.fromkeys(item for item in listed if item is not None))


def _amount(ask: Ask) -> int | str:
    value = ask.body.get("amount")
    if value is None:
        return 0
    if isinstance(value, Decimal) and ask.switch("money") == "number" and value.is_finite() and abs(value) < 10**15:
        return str(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**15:
        return value
    raise Refusal(400, "Поле amount должно быть числом")


def _moment(body: Mapping[str, Any], key: str) -> int | None:
    value = _text(body, key)
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError as error:
        raise Refusal(400, f"Поле {key} должно быть датой ISO 8601") from error
    # "ISO 8601 UTC with Z" (§1): a time without its offset could be anybody's.
    if moment.tzinfo is None:
        raise Refusal(400, f"Поле {key} должно быть датой ISO 8601 с часовым поясом")
    return int(moment.timestamp())


# --- values that go out ----------------------------------------------------------------------------------------------


def _iso(epoch: int | None) -> str | None:
    return None if epoch is None else datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _shown(ask: Ask, entity: Row) -> Row:
    """Empty fields as the switch has them. What is never empty is never touched."""
    match ask.switch("empties"):
        case "missing":
            return {key: value for key, value in entity.items() if value is not None}
        case "blank":
            return {key: "" if value is None else value for key, value in entity.items()}
        case _:
            return entity


def _single(ask: Ask, status: int, entity: Row) -> Answer:
    return status, {"data": entity} if ask.switch("wrap-single") else entity


def _reduced(entity: Row) -> Row:
    # §4: "answer id, name, created_at"; a task has no name but its title.
    return {key: value for key, value in entity.items() if key in ("id", "name", "title", "text", "created_at")}


def _created(ask: Ask, entity: Row) -> Answer:
    return _single(ask, 201, entity if ask.switch("full-create") else _reduced(entity))


def _deleted(ask: Ask) -> Answer:
    match ask.switch("delete-status"):
        case "204":
            return 204, None
        case "200-empty":
            return 200, None
        case _:
            return 200, {}


def _page_number(ask: Ask, key: str, default: int, least: int) -> int:
    text = ask.query.get(key)
    if text is None:
        return default
    if not re.fullmatch(r"\d{1,18}", text, re.ASCII) or int(text) < least:
        raise Refusal(400, f"Параметр {key} должен быть целым числом не меньше {least}")
    return int(text)


def _listed(ask: Ask, kind: str, where: Where | None, show: Callable[[Ask, Row], Row]) -> Answer:
    page = _page_number(ask, "page", 1, 1)
    size = _page_number(ask, "per_page", int(ask.switch("per-page-default")), 0)
    if size > PAGE:
        if ask.switch("per-page-over") == "refuse":
            raise Refusal(400, f"Параметр per_page не может быть больше {PAGE}")
        size = PAGE
    total = ask.world.count(kind, where)
    offset = (page - 1) * size
    newest = ask.switch("order") == "newest"
    rows = ask.world.select(kind, where=where, descending=newest, limit=size, offset=offset) if offset < total else []
    items = [show(ask, row) for row in rows]
    if ask.switch("list-items") == "reduced" and kind in ("contact", "deal", "task"):
        items = [_reduced(item) for item in items]
    if ask.switch("bare-vocabulary") and kind in ("user", "pipeline"):
        return 200, items
    # §3: 26 = ceil(1284 / 50).
    meta = {"page": page, "per_page": size, "total": total, "total_pages": -(-total // size) if size else 0}
    return 200, {"data": items, "meta": meta}


def _found(ask: Ask, kind: str, what: str) -> Row:
    row = ask.world.get(kind, ask.id)
    if row is None or row.get("deleted"):
        raise Refusal(404, f"{what} с ID {ask.id} не найден{'а' if what.endswith('а') else ''}")
    return row


def _given(ask: Ask, *keys: str) -> bool:
    """Whether a field is to be written: it came, or PUT replaces and what did not come is emptied."""
    return bool(ask.switch("strict-put")) or any(key in ask.body for key in keys)


def _changes(ask: Ask, reading: Mapping[str, Callable[[], Row]]) -> Row:
    """The neutral changes of a PUT, one reader for each of the vendor's keys."""
    changes: Row = {}
    for key, read in reading.items():
        if _given(ask, key):
            changes |= read()
    return changes


# --- contacts --------------------------------------------------------------------------------------------------------


def _contact(ask: Ask, row: Row) -> Row:
    # DECISIONS: id name phone email company tags[] created_at updated_at; one phone and one e-mail (§7).
    return _shown(
        ask,
        {
            "id": row["id"],
            "name": row["name"],
            "phone": row["phones"][0]["value"] if row["phones"] else None,
            "email": row["emails"][0]["value"] if row["emails"] else None,
            "company": row["company"],
            "tags": row["tags"],
            "created_at": _iso(row["created_at"]),
            "updated_at": _iso(row["updated_at"]),
        },
    )


def _contact_reading(ask: Ask) -> dict[str, Callable[[], Row]]:
    def values(key: str) -> list[Row]:
        value = _text(ask.body, key)
        return [{"value": value, "label": "work"}] if value else []

    return {
        "name": lambda: {"name": _named(ask.body, "name", required=True), "first_name": "", "last_name": ""},
        "phone": lambda: {"phones": values("phone")},
        "email": lambda: {"emails": values("email")},
        "company": lambda: {"company": _text(ask.body, "company") or None},
        "tags": lambda: {"tags": _strings(ask.body, "tags")},
    }


def list_contacts(ask: Ask) -> Answer:
    return _listed(ask, "contact", {"deleted": False}, _contact)


def get_contact(ask: Ask) -> Answer:
    return _single(ask, 200, _contact(ask, _found(ask, "contact", "Контакт")))


def create_contact(ask: Ask) -> Answer:
    row: Row = {"owner": ask.me["id"], "created_by": ask.me["id"]}
    for read in _contact_reading(ask).values():
        row |= read()
    return _created(ask, _contact(ask, ask.world.row("contact", ask.world.add("contact", row))))


def update_contact(ask: Ask) -> Answer:
    _found(ask, "contact", "Контакт")
    row = ask.world.update("contact", ask.id, {**_changes(ask, _contact_reading(ask)), "updated_by": ask.me["id"]})
    return _single(ask, 200, _contact(ask, row))


def delete_contact(ask: Ask) -> Answer:
    _found(ask, "contact", "Контакт")
    _release_tasks(ask, "contact")
    ask.world.delete("contact", ask.id)
    return _deleted(ask)


def _release_tasks(ask: Ask, kind: str) -> None:
    """A task outlives what it was about."""
    for task in ask.world.select("task", where={"target_kind": kind, "target_id": ask.id}):
        ask.world.update("task", task["id"], {"target_kind": None, "target_id": None})


# --- deals -----------------------------------------------------------------------------------------------------------


def _deal(ask: Ask, row: Row) -> Row:
    # DECISIONS: id name amount pipeline_id stage assigned_to contact_id created_at updated_at.
    main = [link["id"] for link in row["contacts"] if link["main"]] or [link["id"] for link in row["contacts"]]
    return _shown(
        ask,
        {
            "id": row["id"],
            str(ask.switch("deal-name-key")): row["name"],
            "amount": _number(row["price"]),
            "pipeline_id": row["pipeline_id"],
            "stage": _stage_name(ask, row["pipeline_id"], row["stage_id"]),
            "assigned_to": row["owner"],
            "contact_id": main[0] if main else None,
            "created_at": _iso(row["created_at"]),
            "updated_at": _iso(row["updated_at"]),
        },
    )


def _number(price: int | str) -> int | float:
    exact = Decimal(price)
    return int(exact) if exact == exact.to_integral_value() else float(exact)


def _stage_name(ask: Ask, pipeline_id: int, stage_id: int) -> str | int:
    if ask.switch("stage-form") == "id":
        return stage_id
    stage = ask.world.get("stage", (pipeline_id, stage_id))
    return stage_id if stage is None else cast(str, stage["slug"])


def _stages(world: World, pipeline_id: int) -> list[Row]:
    """A pipeline's stages in order; DECISIONS know open, won and lost ones."""
    stages = world.select("stage", where={"pipeline_id": pipeline_id}, order="sort")
    return [stage for stage in stages if stage["type"] != "unsorted"]


def _stage_key(ask: Ask) -> str:
    return "id" if ask.switch("stage-form") == "id" else "slug"


def _place(ask: Ask, old: Row | None) -> Row:
    """Where a deal stands after this request: the pipeline named, or its own, or the main one; then the stage in it."""
    world = ask.world
    pipeline_id = _row_id(ask, "pipeline_id", "pipeline", "воронка")
    moved = pipeline_id is not None and (old is None or pipeline_id != old["pipeline_id"])
    if pipeline_id is None:
        main = world.select("pipeline", where={"main": True})[0]["id"]
        pipeline_id = cast(int, main if old is None else old["pipeline_id"])
    stages = _stages(world, pipeline_id)
    wanted = _integer(ask.body, "stage") if _stage_key(ask) == "id" else _text(ask.body, "stage")
    if wanted is not None:
        found = [stage for stage in stages if stage[_stage_key(ask)] == wanted]
        if not found:
            raise Refusal(400, f"Поле stage: в воронке {pipeline_id} нет стадии {wanted}")
        stage = found[0]
    elif old is not None and not moved:
        return {}
    elif old is not None and ask.switch("pipeline-without-stage") == "refuse":
        raise Refusal(400, "Поле stage обязательно при смене воронки")
    else:
        stage = stages[0]
    ended = stage["type"] in ("won", "lost")
    closed = (old or {}).get("closed_at") or int(ask.account.clock.now().timestamp())
    # A deal is won or lost by its stage (DECISIONS).
    return {"pipeline_id": pipeline_id, "stage_id": stage["id"], "closed_at": closed if ended else None}


def _deal_reading(ask: Ask) -> dict[str, Callable[[], Row]]:
    key = str(ask.switch("deal-name-key"))

    def contacts() -> Row:
        id = _row_id(ask, "contact_id", "contact", "контакт")
        return {"contacts": [] if id is None else [{"id": id, "main": True}]}

    def owner() -> Row:
        return {"owner": _row_id(ask, "assigned_to", "user", "пользователь") or ask.me["id"]}

    required = ask.switch("required") == "all"
    return {
        key: lambda: {"name": _named(ask.body, key, required=required) or ""},
        "amount": lambda: {"price": _amount(ask)},
        "assigned_to": owner,
        "contact_id": contacts,
    }


def list_deals(ask: Ask) -> Answer:
    # "фильтры: pipeline_id, stage, assigned_to" (seed).
    where: dict[str, Condition] = {"deleted": False}
    for key, column in (("pipeline_id", "pipeline_id"), ("assigned_to", "owner")):
        if key in ask.query:
            where[column] = _page_number(ask, key, 0, 0)
    if "stage" not in ask.query:
        return _listed(ask, "deal", where, _deal)
    named: int | str = _page_number(ask, "stage", 0, 0) if _stage_key(ask) == "id" else ask.query["stage"]
    stages = ask.world.select("stage", where={_stage_key(ask): named})
    if "pipeline_id" in where:
        stages = [stage for stage in stages if stage["pipeline_id"] == where["pipeline_id"]]
    places = [{**where, "pipeline_id": stage["pipeline_id"], "stage_id": stage["id"]} for stage in stages]
    return _listed(ask, "deal", places, _deal)


def create_deal(ask: Ask) -> Answer:
    row: Row = {"created_by": ask.me["id"], **_place(ask, None)}
    for read in _deal_reading(ask).values():
        row |= read()
    return _created(ask, _deal(ask, ask.world.row("deal", ask.world.add("deal", row))))


def update_deal(ask: Ask) -> Answer:
    old = _found(ask, "deal", "Сделка")
    changes = {**_changes(ask, _deal_reading(ask)), **_place(ask, None if ask.switch("strict-put") else old)}
    row = ask.world.update("deal", ask.id, {**changes, "updated_by": ask.me["id"]})
    return _single(ask, 200, _deal(ask, row))


def delete_deal(ask: Ask) -> Answer:
    _found(ask, "deal", "Сделка")
    _release_tasks(ask, "deal")
    ask.world.delete("deal", ask.id)
    return _deleted(ask)


# --- tasks -----------------------------------------------------------------------------------------------------------


def _task(ask: Ask, row: Row) -> Row:
    # DECISIONS: id title description due_date assigned_to contact_id deal_id completed completed_at created_at
    # updated_at. The world knows one target; of a task on a deal the contact beside it is in extra.
    target = {row["target_kind"]: row["target_id"]}
    beside = row["extra"].get("contact_id")
    if beside is not None and ask.world.get("contact", beside) is None:
        beside = None
    return _shown(
        ask,
        {
            "id": row["id"],
            str(ask.switch("task-title-key")): row["text"],
            "description": row["extra"].get("description"),
            str(ask.switch("task-due-key")): _iso(row["due"]),
            "assigned_to": row["owner"],
            "contact_id": target.get("contact", beside),
            "deal_id": target.get("deal"),
            "completed": row["done"],
            "completed_at": _iso(row["extra"].get("completed_at", row["updated_at"])) if row["done"] else None,
            "created_at": _iso(row["created_at"]),
            "updated_at": _iso(row["updated_at"]),
        },
    )


def list_tasks(ask: Ask) -> Answer:
    return _listed(ask, "task", None, _task)


def create_task(ask: Ask) -> Answer:
    contact_id = _row_id(ask, "contact_id", "contact", "контакт")
    deal_id = _row_id(ask, "deal_id", "deal", "сделка")
    extra: Row = {"description": _text(ask.body, "description")}
    row: Row = {
        "text": _named(ask.body, str(ask.switch("task-title-key")), required=ask.switch("required") == "all") or "",
        "due": _moment(ask.body, str(ask.switch("task-due-key"))),
        "owner": _row_id(ask, "assigned_to", "user", "пользователь") or ask.me["id"],
        "created_by": ask.me["id"],
        "extra": extra,
    }
    if deal_id is not None:
        row |= {"target_kind": "deal", "target_id": deal_id}
        extra["contact_id"] = contact_id
    elif contact_id is not None:
        row |= {"target_kind": "contact", "target_id": contact_id}
    return _created(ask, _task(ask, ask.world.row("task", ask.world.add("task", row))))


def complete_task(ask: Ask) -> Answer:
    row = _found(ask, "task", "Задача")
    if row["done"] and ask.switch("repeat-complete") == "refuse":
        raise Refusal(400, f"Задача с ID {ask.id} уже выполнена")
    if not row["done"]:
        now = int(ask.account.clock.now().timestamp())
        change = {"done": True, "updated_by": ask.me["id"], "extra": {**row["extra"], "completed_at": now}}
        row = ask.world.update("task", ask.id, change)
    return (200, None) if ask.switch("complete-answer") == "empty" else _single(ask, 200, _task(ask, row))


# --- users and pipelines ---------------------------------------------------------------------------------------------


def _user(ask: Ask, row: Row) -> Row:
    return _shown(ask, {key: row[key] for key in ("id", "name", "email", "role")})


def list_users(ask: Ask) -> Answer:
    return _listed(ask, "user", None, _user)


def get_me(ask: Ask) -> Answer:
    return _single(ask, 200, _user(ask, ask.me))


def _pipeline(ask: Ask, row: Row) -> Row:
    # DECISIONS: id name stages[]; a stage is id name type sort. Its id is what a deal's stage holds: the slug, unless
    # stage-form is id.
    stages = [
        {"id": stage[_stage_key(ask)], "name": stage["name"], "type": stage["type"], "sort": stage["sort"]}
        for stage in _stages(ask.world, row["id"])
    ]
    return {"id": row["id"], "name": row["name"], "stages": stages}


def list_pipelines(ask: Ask) -> Answer:
    return _listed(ask, "pipeline", {"archived": False}, _pipeline)


# --- the face --------------------------------------------------------------------------------------------------------

ENDPOINTS: Final[tuple[tuple[str, str, Handler], ...]] = (
    ("GET", "/contacts", list_contacts),
    ("GET", "/contacts/{id:int}", get_contact),
    ("POST", "/contacts", create_contact),
    ("PUT", "/contacts/{id:int}", update_contact),
    ("DELETE", "/contacts/{id:int}", delete_contact),
    ("GET", "/deals", list_deals),
    ("POST", "/deals", create_deal),
    ("PUT", "/deals/{id:int}", update_deal),
    ("DELETE", "/deals/{id:int}", delete_deal),
    ("GET", "/tasks", list_tasks),
    ("POST", "/tasks", create_task),
    ("PUT", "/tasks/{id:int}/complete", complete_task),
    ("GET", "/users", list_users),
    ("GET", "/users/me", get_me),
    ("GET", "/pipelines", list_pipelines),
)
"""The whole of §4."""

_KNOWN: Final = re.compile(PREFIX + r"/(contacts(/\d+)?|deals(/\d+)?|tasks(/\d+(/complete)?)?|users(/me)?|pipelines)")


def build(account: Account) -> App:
    """The API over this account."""
    door = _Door(account, {})

    async def absent(request: Request) -> Response:
        # DECISIONS: methods the page does not list do not exist; §6 allows 405 as well.
        path = request.url.path

        def refuse(_: Ask) -> Answer:
            if account.switches["absent-status"] == "405" and _KNOWN.fullmatch(path):
                raise Refusal(405, f"Метод {request.method} не поддерживается")
            raise Refusal(404, f"Метод {request.method} {path} не найден")

        return await door.endpoint(refuse)(request)

    async def refused(_: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        return door.refused(status, "Внутренняя ошибка сервера" if status == 500 else "Запрос не поддерживается")

    routes = [Route(PREFIX + path, door.endpoint(handler), methods=[method]) for method, path, handler in ENDPOINTS]
    every = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
    return Starlette(
        routes=[*routes, Route("/{rest:path}", absent, methods=every)],
        exception_handlers={HTTPException: refused, 500: refused},
    )


def credentials(account: Account) -> Mapping[str, str]:
    return {"token": issue_token(account)}


def script(base_url: str, credentials: Mapping[str, str]) -> str:
    """Six lines that list contacts."""
    return f"""import asyncio
from crmclient import connect
async def main():
    async with connect("electrum", base_url="{base_url}", credentials="{credentials["token"]}") as crm:
        print([contact.name async for contact in crm.contacts.list()][:5])
asyncio.run(main())
"""


FACE: Final = Face(
    name="electrum",
    title="Electrum CRM REST v2",
    switches=SWITCHES,
    build=build,
    credentials=credentials,
    script=script,
    prefix=PREFIX,
)
