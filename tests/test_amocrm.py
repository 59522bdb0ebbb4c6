"""amoCRM v2: the adapter over canned replies in the shapes the reference gathered, and over its sandbox."""

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import pytest
from attrs import evolve, frozen

import crmclient_amocrm as amocrm
from crmclient import (
    AmbiguousWrite,
    AuthFailed,
    Banned,
    Client,
    Company,
    Contact,
    Deal,
    Email,
    FieldType,
    FieldValue,
    Invalid,
    Kind,
    Label,
    Link,
    Login,
    MemoryTokens,
    Money,
    NotApplied,
    Note,
    NotFound,
    Outcome,
    PartlyDone,
    Phone,
    RateLimited,
    Ref,
    Refused,
    Rejected,
    Retry,
    Tag,
    Task,
    Unavailable,
    Unreadable,
    Unsupported,
    Verb,
    connect,
)
from crmclient.clock import FakeClock
from crmclient.dialect import Call, Context, Reply
from crmclient.sandbox.server import Running, in_process
from crmclient.sandbox.world import World, populate
from crmclient.vocabulary import Field, Subscription
from crmclient_amocrm import DIALECT, codec, wire
from crmclient_amocrm.dialect import judge
from crmclient_amocrm.sandbox import FACE, logins

NOW = datetime(2026, 3, 20, 10, 15, tzinfo=UTC)
T = int(NOW.timestamp())
MOSCOW = ZoneInfo("Europe/Moscow")

# --- the account, in the two shapes of §6 -----------------------------------------------------------------------------

PHONES = {"11": "WORK", "12": "WORKDD", "13": "MOB", "14": "FAX", "15": "HOME", "16": "OTHER"}
EMAILS = {"21": "WORK", "22": "PRIV", "23": "OTHER"}


def defined(id: int, name: str, type: int, code: str = "", enums: dict[str, str] | None = None) -> dict[str, Any]:
    row = {"id": id, "name": name, "field_type": type, "sort": id, "code": code, "is_system": bool(code), "params": {}}
    return {**row, "is_multiple": type == 8, "is_editable": True, **({"enums": enums} if enums else {})}


SYSTEM = [
    defined(1, "Должность", 1, "POSITION"),
    defined(2, "Телефон", 8, "PHONE", PHONES),
    defined(3, "Email", 8, "EMAIL", EMAILS),
    defined(4, "Мгн. сообщения", 8, "IM", {"31": "SKYPE", "32": "OTHER"}),
]
OWN = [
    defined(101, "text", 1),
    defined(102, "number", 2),
    defined(103, "bool", 3),
    defined(104, "list", 4, enums={"41": "A", "42": "Б"}),
    defined(105, "multilist", 5, enums={"51": "one", "52": "two", "53": "three"}),
    defined(106, "date", 6),
    defined(107, "link", 7),
    defined(109, "textarea", 9),
    defined(110, "switcher", 10, enums={"61": "on", "62": "off"}),
    defined(111, "street", 11),
    defined(113, "address", 13),
    defined(114, "birthday", 14),
    defined(115, "org", 15),
    defined(116, "items", 16),
    defined(117, "legal name", 17),
    defined(119, "datetime", 19),
]
ACCOUNT = {
    "_links": {"self": {"href": "/api/v2/account", "method": "get"}},
    "id": 77,
    "name": "Рога",
    "subdomain": "roga",
    "currency": "RUB",
    "timezone": "Europe/Moscow",
    "timezone_offset": "+03:00",
    "language": "ru",
    "current_user": 5,
    "_embedded": {
        "users": {
            "5": {"id": 5, "name": "Анна", "last_name": "Петрова", "login": "anna@roga.example", "is_admin": True},
            "6": {"id": 6, "name": "Пётр", "last_name": "", "login": "petr@roga.example", "is_active": False},
        },
        "custom_fields": {
            "contacts": {str(row["id"]): row for row in SYSTEM},
            "leads": {str(row["id"]): row for row in OWN},
            "companies": {str(row["id"]): row for row in (*SYSTEM[1:3], defined(7, "Web", 7, "WEB"))},
            "customers": [],
        },
    },
}
PIPELINE = {
    "id": 900,
    "name": "Воронка",
    "sort": 1,
    "is_main": True,
    "statuses": {
        "142": {"id": 142, "name": "Успех", "color": "#CCFF66", "sort": 10000, "is_editable": False},
        "143": {"id": 143, "name": "Отказ", "color": "#D5D8DB", "sort": 11000, "is_editable": False},
        "905": {"id": 905, "name": "Неразобранное", "color": "#c1c1c1", "sort": 10, "is_editable": False},
        "910": {"id": 910, "name": "Договор", "color": "#ffff99", "sort": 30, "is_editable": True},
        "909": {"id": 909, "name": "Контакт", "color": "#99ccff", "sort": 20, "is_editable": True},
    },
}


def paged(account: dict[str, Any]) -> dict[str, Any]:
    """The account as the page of 2017 shows it: lists, and neither codes nor params."""

    def older(row: dict[str, Any]) -> dict[str, Any]:
        kept = {name: part for name, part in row.items() if name not in ("code", "params", "enums")}
        enums = [{"id": int(id), "value": value} for id, value in row.get("enums", {}).items()]
        return {**kept, **({"enums": enums} if enums else {})}

    groups = account["_embedded"]["custom_fields"]
    lists = {group: [older(row) for row in wire.listed(rows)] for group, rows in groups.items()}
    return {**account, "_embedded": {**account["_embedded"], "custom_fields": lists}}


def context(account: dict[str, Any] = ACCOUNT) -> Context:
    rows = wire.definitions(Reply(200, body=account))
    fields = [codec.decode_field(row, Context()) for row in rows]
    parts: dict[str, Any] = {
        f"fields:{kind}": {field.id: field for field in fields if field.entity is kind} for kind in wire.GROUPS.values()
    }
    pipelines = (codec.decode_pipeline(PIPELINE, Context()),)
    return Context({**parts, "account": codec.decode_account(account), "pipelines": pipelines}, now=NOW)


def custom(id: int, *values: Any, **more: Any) -> dict[str, Any]:
    return {"id": id, "name": f"field {id}", "values": list(values), "is_system": False, **more}


def contact_row(**changes: Any) -> dict[str, Any]:
    """A contact as in 2019-2021, its links empty."""
    who = {"responsible_user_id": 5, "created_by": 0, "updated_by": 5, "account_id": 77, "group_id": 0}
    row = {"id": 46925315, "name": "Иван Петров", "first_name": "", "last_name": "", **who}
    row |= {"created_at": T - 900, "updated_at": T - 600, "company": {}, "leads": {}, "customers": {}}
    return {**row, "closest_task_at": 0, "tags": {}, "custom_fields": {}, **changes}


def lead_row(**changes: Any) -> dict[str, Any]:
    row = {"id": 26331366, "name": "Сделка", "responsible_user_id": 5, "created_by": 5, "updated_by": 5}
    row |= {"created_at": T - 900, "updated_at": T - 600, "status_id": 909, "pipeline_id": 900, "sale": 5000}
    row |= {"is_deleted": False, "closed_at": 0, "main_contact": {}, "company": {}, "contacts": {}, "tags": {}}
    return {**row, "custom_fields": {}, "pipeline": {"id": 900, "_links": {}}, **changes}


def listed(*rows: dict[str, Any]) -> httpx.Response:
    return httpx.Response(200, json={"_links": {}, "_embedded": {"items": list(rows)}}) if rows else httpx.Response(204)


def answered(*items: dict[str, Any], errors: Any = None) -> httpx.Response:
    inside = {"items": list(items), **({"errors": errors} if errors is not None else {})}
    return httpx.Response(200, json={"_link": {"self": {"href": "/api/v2/…", "method": "post"}}, "_embedded": inside})


# --- canned replies ---------------------------------------------------------------------------------------------------


@frozen
class Canned:
    """A client of a server that answers as it is told, and everything that it was asked."""

    crm: Client
    asked: list[httpx.Request]
    clock: FakeClock

    @property
    def bodies(self) -> list[Any]:
        return [json.loads(request.content) for request in self.asked if request.method == "POST"]


@asynccontextmanager
async def canned(answer: Callable[[httpx.Request], httpx.Response], **options: Any) -> AsyncGenerator[Canned]:
    asked: list[httpx.Request] = []

    def serve(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        if request.url.path == "/api/v2/account":
            return httpx.Response(200, json=ACCOUNT)
        if request.url.path == "/api/v2/pipelines":
            return httpx.Response(200, json={"_embedded": {"items": {"900": PIPELINE}}})
        return answer(request)

    clock = FakeClock(NOW)
    given = {"credentials": "token", "rate": (), "retry": Retry(attempts=1), **options}
    async with connect(DIALECT, "roga", transport=httpx.MockTransport(serve), clock=clock, **given) as crm:
        yield Canned(crm, asked, clock)


async def created(answer: httpx.Response, count: int = 3) -> list[Any]:
    async with canned(lambda request: answer) as server:
        return await server.crm.contacts.create_many([Contact(name=f"N{n}") for n in range(count)])


def kinds(receipts: list[Any]) -> list[str]:
    return [type(receipt).__name__ for receipt in receipts]


ADDED, UPDATED = 1_000_000, 2_000_000

# ============================================================================================ reading: the shapes of §8


@pytest.mark.parametrize("empty", [{}, [], None, ...], ids=["braces", "brackets", "null", "missing"])
def test_all_the_empties_are_one(empty: Any) -> None:
    holes = ("company", "leads", "customers", "tags", "custom_fields")
    row = contact_row(**dict.fromkeys(holes, empty))
    row = {name: part for name, part in row.items() if part is not ...}
    contact = codec.decode_contact(row, context())
    assert (contact.company, contact.deals, contact.tags, contact.fields) == (None, (), (), ())
    assert contact.raw is row


@pytest.mark.parametrize("none", [0, -62169993017, None, 1619342253000], ids=["0", "year 0", "null", "milliseconds"])
def test_what_is_no_moment_is_none(none: int | None) -> None:
    assert codec.decode_deal(lead_row(closed_at=none), context()).closed_at is None


def test_a_contact_of_2021_is_read_whole() -> None:
    row = contact_row(
        first_name="Иван",
        company={"id": 8, "name": "Завод", "_links": {}},
        leads={"id": [1, 2], "_links": {}},
        tags=[{"id": 61881, "name": "важный"}],
        custom_fields=[
            custom(2, {"value": "+7 917", "enum": 13}, {"value": "112", "enum": 99}, type_id=8, code="PHONE"),
            custom(3, {"value": "a@b.example", "enum": 22}, type_id=8, code="EMAIL"),
            custom(1, {"value": "инженер"}, type_id=1, code="POSITION"),
            custom(4, {"value": "ivan", "enum": 31}, type_id=8, code="IM"),
        ],
    )
    contact = codec.decode_contact(row, context())
    assert (contact.name, contact.first_name, contact.last_name) == ("Иван Петров", "Иван", None)
    assert contact.phones == (Phone("+7 917", label=Label.MOBILE), Phone("112", label=Label.OTHER, raw_label="99"))
    assert contact.emails == (Email("a@b.example", label=Label.PRIVATE),)
    assert contact.position == "инженер"
    assert contact.company == Link(Ref(Kind.COMPANY, 8))
    assert contact.deals == (Link(Ref(Kind.DEAL, 1)), Link(Ref(Kind.DEAL, 2)))
    assert contact.tags == (Tag("важный"),)
    assert contact.created_by == Ref(Kind.USER, 0)
    (messenger,) = contact.fields
    assert (messenger.type, messenger.values) == (FieldType.MULTITEXT, ({"value": "ivan", "enum": "SKYPE"},))


def test_a_contact_of_the_page_of_2017_is_read_by_what_the_account_says() -> None:
    row = contact_row(
        custom_fields=[custom(2, {"value": "8999", "enum": "12"}), custom(1, {"value": "Менеджер"})], tags=[]
    )
    del row["first_name"], row["last_name"]
    contact = codec.decode_contact(row, context(paged(ACCOUNT)))
    assert contact.phones == (Phone("8999", label=Label.WORK_DIRECT),)
    assert contact.position == "Менеджер"


def test_a_company_has_contacts_in_place_of_a_company() -> None:
    row = contact_row(contacts={"id": [87], "_links": {}}, leads={"id": [24]})
    row["custom_fields"] = [custom(7, {"value": "http://example.com"}, code="WEB", type_id=7)]
    company = codec.decode_company(row, context())
    assert company.contacts == (Link(Ref(Kind.CONTACT, 87)),)
    assert company.deals == (Link(Ref(Kind.DEAL, 24)),)
    assert [(value.code, value.values) for value in company.fields] == [("WEB", ("http://example.com",))]


def test_a_lead_of_the_page_of_2017_tells_its_pipeline_in_an_object_and_a_company_without_a_name() -> None:
    row = lead_row(company={"id": 1099427, "name": None, "_links": {}}, main_contact={"id": 12, "_links": {}})
    row["contacts"] = {"id": [11, 12], "_links": {}}
    del row["pipeline_id"], row["updated_by"]
    deal = codec.decode_deal(row, context())
    assert (deal.pipeline, deal.stage, deal.outcome) == (Ref(Kind.PIPELINE, 900), Ref(Kind.STAGE, 909), Outcome.OPEN)
    assert deal.company == Link(Ref(Kind.COMPANY, 1099427))
    assert [(link.ref.id, link.main) for link in deal.contacts] == [(11, False), (12, True)]
    assert deal.price == Money(5000)


# Of every type of field: how it is read, and what is sent for it.
EVERY_TYPE: list[tuple[int, list[Any], tuple[Any, ...], list[Any]]] = [
    (101, [{"value": "test"}], ("test",), [{"value": "test"}]),
    (102, [{"value": "111"}], (Decimal(111),), [{"value": "111"}]),
    (102, [{"value": "000123"}], ("000123",), [{"value": "000123"}]),
    (103, [{"value": "1"}], (True,), [{"value": "1"}]),
    (104, [{"value": "Б", "enum": 42}], ("Б",), [{"value": "42"}]),
    (105, [{"value": "two", "enum": "52"}, {"value": "three", "enum": 53}], ("two", "three"), ["52", "53"]),
    (106, [{"value": "2020-04-17 00:00:00"}], (date(2020, 4, 17),), [{"value": "2020-04-17"}]),
    (106, [{"value": "14.06.2014"}], (date(2014, 6, 14),), [{"value": "2014-06-14"}]),
    (107, [{"value": "https://x.example"}], ("https://x.example",), [{"value": "https://x.example"}]),
    (109, [{"value": "a\nb"}], ("a\nb",), [{"value": "a\nb"}]),
    (110, [{"value": "on", "enum": 61}], ("on",), [{"value": "61"}]),
    (111, [{"value": "ул. Ленина\n1"}], ("ул. Ленина\n1",), [{"value": "ул. Ленина\n1"}]),
    (
        113,
        [{"value": "Мира, 3", "subtype": "1"}, {"value": "Москва", "subtype": "city"}, {"value": "RU", "subtype": "6"}],
        ({"line1": "Мира, 3", "city": "Москва", "country": "RU"},),
        [
            {"value": "Мира, 3", "subtype": "address_line_1"},
            {"value": "Москва", "subtype": "city"},
            {"value": "RU", "subtype": "country"},
        ],
    ),
    (114, [{"value": "1968-02-20 00:00:00"}], (date(1968, 2, 20),), [{"value": "1968-02-20"}]),
    (
        115,
        [{"value": {"name": "Организация", "vat_id": None}}],
        ({"name": "Организация", "vat_id": None},),
        [{"value": {"name": "Организация", "vat_id": None}}],
    ),
    (117, [{"value": "ООО Рога"}], ("ООО Рога",), [{"value": "ООО Рога"}]),
    (
        119,
        [{"value": "2020-04-24 22:45:00"}],
        (datetime(2020, 4, 24, 19, 45, tzinfo=UTC),),
        [{"value": "2020-04-24 22:45:00"}],
    ),
]


@pytest.mark.parametrize("id, given, values, sent", EVERY_TYPE, ids=lambda part: part if isinstance(part, int) else "")
@pytest.mark.asyncio
async def test_a_value_of_every_type_is_read_and_sent(
    id: int, given: list[Any], values: tuple[Any, ...], sent: list[Any]
) -> None:
    deal = codec.decode_deal(lead_row(custom_fields=[custom(id, *given)]), context())
    assert [value.values for value in deal.fields] == [values]
    async with canned(lambda request: answered({"id": 1, "request_id": ADDED + 1})) as server:
        await server.crm.deals.create(Deal(name="D", fields=deal.fields))
    assert server.bodies[-1]["add"][0]["custom_fields"] == [{"id": id, "values": sent}]


@pytest.mark.parametrize(
    "id, given",
    [(102, "много"), (106, "вчера"), (119, "2020-13-01"), (116, {"catalog": 1})],
    ids=["number", "date", "datetime", "items"],
)
def test_a_value_that_is_not_of_its_type_is_kept_as_it_came(id: int, given: Any) -> None:
    deal = codec.decode_deal(lead_row(custom_fields=[custom(id, {"value": given})]), context())
    assert [value.values for value in deal.fields] == [(given,)]


def test_a_field_the_account_does_not_tell_of_is_read_as_some_other_and_is_not_written() -> None:
    deal = codec.decode_deal(lead_row(custom_fields=[custom(4711, {"value": "x"})]), context())
    assert [value.type for value in deal.fields] == [FieldType.OTHER]
    assert codec.surviving_deal(deal).fields == ()


def test_a_task_is_read_with_what_it_is_about_and_its_result() -> None:
    row = {"id": 93, "responsible_user_id": 5, "created_by": 5, "created_at": T, "updated_at": T, "task_type": 1}
    row |= {"element_type": 3, "element_id": 8, "complete_till_at": T + 60, "text": "Позвонить", "is_completed": True}
    task = codec.decode_task({**row, "result": {"id": 7, "text": "Дозвонился", "_links": {}}}, context())
    assert (task.target, task.done, task.result) == (Ref(Kind.COMPANY, 8), True, "Дозвонился")
    assert task.due == NOW + timedelta(minutes=1)
    for nothing in ([], {}, None):
        assert codec.decode_task({**row, "result": nothing}, context()).result is None
    # A customer's task, and one about nothing.
    assert codec.decode_task({**row, "element_type": 12}, context()).target is None
    assert codec.decode_task({**row, "element_type": 0, "element_id": 0}, context()).target is None


@pytest.mark.parametrize(
    "number, more, kind, raw_kind, text, params",
    [
        (1, {"text": "Добавлен новый объект"}, "other", "1", "Добавлен новый объект", {}),
        (4, {"text": "Примечание"}, "text", None, "Примечание", {}),
        (10, {"params": {"UNIQ": "a", "DURATION": 30}}, "call_in", None, None, {"UNIQ": "a", "DURATION": 30}),
        (25, {"params": {"text": "Система", "service": "x"}}, "service", None, "Система", {"service": "x"}),
        (99, {"params": {"TEXT": "Большими"}}, "other", "99", "Большими", {}),
        (102, {"text": "", "params": {"text": "СМС", "phone": "7"}}, "sms_in", None, "СМС", {"phone": "7"}),
        (13, {"text": "Готово", "element_type": 4}, "other", "13", "Готово", {}),
    ],
)
def test_a_note_of_every_kind_is_read(
    number: int, more: dict[str, Any], kind: str, raw_kind: str | None, text: str | None, params: dict[str, Any]
) -> None:
    row = {"id": 3321308, "element_id": 1090344, "element_type": 2, "attachment": "", "note_type": number, **more}
    note = codec.decode_note(row, context())
    assert (note.kind, note.raw_kind, note.text, note.params) == (kind, raw_kind, text, params)
    assert note.target == Ref(Kind.TASK if number == 13 else Kind.DEAL, 1090344)


def test_the_unsorted_stage_is_the_one_that_cannot_be_edited() -> None:
    pipeline = codec.decode_pipeline(PIPELINE, Context())
    outcomes = [Outcome.UNSORTED, Outcome.OPEN, Outcome.OPEN, Outcome.WON, Outcome.LOST]
    assert [stage.outcome for stage in pipeline.stages] == outcomes
    assert [stage.id for stage in pipeline.stages] == [905, 909, 910, 142, 143]
    statuses = [
        {**row, "is_editable": None, "editable": "YN"[not row["is_editable"]]} for row in PIPELINE["statuses"].values()
    ]  # type: ignore[attr-defined]
    assert codec.decode_pipeline({**PIPELINE, "statuses": statuses}, Context()) == pipeline


@pytest.mark.parametrize("shape", [ACCOUNT, paged(ACCOUNT)], ids=["recorded", "the page"])
def test_the_account_is_read_in_both_its_shapes(shape: dict[str, Any]) -> None:
    fields = [codec.decode_field(row, Context()) for row in wire.definitions(Reply(200, body=shape))]
    by_code = {(field.entity, field.code): field for field in fields if field.code}
    assert {code for kind, code in by_code if kind is Kind.CONTACT} == {"POSITION", "PHONE", "EMAIL", "IM"}
    assert [option.id for option in by_code[Kind.COMPANY, "PHONE"].options] == [11, 12, 13, 14, 15, 16]
    assert sum(field.entity is Kind.DEAL for field in fields) == len(OWN)
    assert codec.decode_account(shape).zone == MOSCOW


def test_a_zone_nobody_knows_by_name_is_known_by_its_offset() -> None:
    zone = codec.decode_account({**ACCOUNT, "timezone": "Asia/Nowhere", "timezone_offset": "+04:00"}).zone
    assert NOW.astimezone(zone).utcoffset() == timedelta(hours=4)


def test_a_row_of_another_shape_says_where_and_keeps_the_row() -> None:
    row = contact_row(created_at="yesterday")
    with pytest.raises(Unreadable, match="created_at") as refusal:
        codec.decode_contact(row, context())
    assert refusal.value.raw == row


@pytest.mark.parametrize(
    ("id", "value"),
    [(2, {"value": "112", "enum": {"id": 11}}), (2, {"value": {"a": 1}}), (4, {"value": "x", "enum": [31]})],
)
def test_a_custom_field_of_another_shape_says_so_and_keeps_the_row(id: int, value: Any) -> None:
    row = contact_row(custom_fields=[custom(id, value)])
    with pytest.raises(Unreadable, match="contact 46925315") as refusal:
        codec.decode_contact(row, context())
    assert refusal.value.raw == row


@pytest.mark.parametrize("row", [contact_row(custom_fields=5), contact_row(tags="a,b"), contact_row(leads={"id": "x"})])
def test_what_should_be_a_list_and_is_none_says_so(row: dict[str, Any]) -> None:
    with pytest.raises(Unreadable, match="another shape"):
        codec.decode_contact(row, context())


def test_a_number_that_would_fill_the_memory_stays_a_text() -> None:
    (value,) = codec.decode_deal(lead_row(custom_fields=[custom(102, {"value": "1e999999999"})]), context()).fields
    assert value.values == ("1e999999999",)


@pytest.mark.asyncio
async def test_one_reading_of_the_account_serves_all_kinds_of_fields() -> None:
    def serve(request: httpx.Request) -> httpx.Response:
        word = request.url.path.rsplit("/", 1)[-1]
        if int(request.url.params["limit_offset"]):
            return listed()
        customs = [custom(101 if word == "leads" else 2, {"value": "x", "enum": 11})]
        return listed((lead_row if word == "leads" else contact_row)(custom_fields=customs))

    async with canned(serve) as server:
        for rows in (server.crm.contacts, server.crm.companies, server.crm.deals):
            assert len([row async for row in rows.list()]) == 1
    assert [request.url.path for request in server.asked].count("/api/v2/account") == 1


# ====================================================================================================== what is asked


@pytest.mark.asyncio
async def test_a_list_is_read_by_offset_until_the_204() -> None:
    def serve(request: httpx.Request) -> httpx.Response:
        offset = int(request.url.params["limit_offset"])
        return listed(*(contact_row(id=id) for id in range(offset + 1, min(offset + 500, 502) + 1)))

    async with canned(serve) as server:
        rows = [row.id async for row in server.crm.contacts.list(prefetch=1)]
    assert rows == list(range(1, 503))
    assert [dict(request.url.params) for request in server.asked] == [
        {"limit_rows": "500", "limit_offset": offset} for offset in ("0", "500", "1000")
    ]


@pytest.mark.asyncio
async def test_ids_are_asked_for_in_portions_because_beside_them_the_offset_is_ignored() -> None:
    def serve(request: httpx.Request) -> httpx.Response:
        assert "limit_offset" not in request.url.params
        ids = [int(id) for id in request.url.params.get_list("id[]")]
        return listed(*(contact_row(id=id) for id in ids if id > 200))

    async with canned(serve) as server:
        rows = [row.id async for row in server.crm.contacts.list(ids=[*range(1, 451), 450])]
    # That nobody has the first two hundred is no end.
    assert rows == list(range(201, 451))
    assert [len(request.url.params.get_list("id[]")) for request in server.asked] == [200, 200, 50]


@pytest.mark.asyncio
async def test_what_is_ignored_beside_ids_is_looked_at_here_and_not_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    async with canned(lambda request: listed(contact_row(id=1), contact_row(id=2, responsible_user_id=7))) as server:
        rows = [row.id async for row in server.crm.contacts.list(ids=[1, 2], owner=Ref(Kind.USER, 7))]
    assert (rows, caplog.messages) == ([2], [])
    assert "responsible_user_id" not in server.asked[0].url.params


@pytest.mark.asyncio
async def test_ids_and_a_text_at_once_are_not_asked_for() -> None:
    async with canned(lambda request: listed()) as server:
        with pytest.raises(Unsupported, match="ignores a text"):
            _ = [row async for row in server.crm.contacts.list(ids=[1], text="Иван")]
    assert server.asked == []


@pytest.mark.asyncio
async def test_changed_since_is_a_header_a_second_earlier_because_the_server_means_later() -> None:
    async with canned(lambda request: listed()) as server:
        since = datetime(2017, 8, 1, 10, 7, 24, 500_000, tzinfo=MOSCOW)
        _ = [row async for row in server.crm.deals.list(updated_since=since)]
        stage, owner = Ref(Kind.STAGE, 142), Ref(Kind.USER, 5)
        _ = [row async for row in server.crm.deals.list(stage=stage, owner=owner, text="нож")]
        _ = [row async for row in server.crm.tasks.list(target=Ref(Kind.COMPANY, 8))]
        _ = [row async for row in server.crm.notes.list(target=Ref(Kind.DEAL, 9))]
    page = {"limit_rows": "500", "limit_offset": "0"}
    assert server.asked[0].headers["if-modified-since"] == "Tue, 01 Aug 2017 07:07:23 UTC"
    asked = [dict(request.url.params) for request in server.asked[1:]]
    assert asked == [
        page | {"status[]": "142", "responsible_user_id": "5", "query": "нож"},
        page | {"type": "company", "element_id": "8"},
        page | {"type": "lead", "element_id": "9"},
    ]


@pytest.mark.asyncio
async def test_notes_are_listed_under_each_kind_and_one_is_read_with_the_kind() -> None:
    async with canned(lambda request: listed()) as server:
        _ = [row async for row in server.crm.notes.list()]
        with pytest.raises(NotFound):
            await server.crm.notes.get(5, target=Ref(Kind.CONTACT, 1))
        with pytest.raises(Unsupported, match="target="):
            await server.crm.notes.get(5)
    assert [request.url.params["type"] for request in server.asked] == ["contact", "lead", "company", "contact"]


# ============================================================================================== what is sent to create


@pytest.mark.asyncio
async def test_a_new_contact_is_sent_in_the_shapes_of_the_page() -> None:
    async with canned(lambda request: answered({"id": 1099235, "request_id": ADDED + 1})) as server:
        made = await server.crm.contacts.create(
            Contact(
                name="Александр Крылов",
                position="Менеджер",
                phones=["89990123456", Phone("8999", label=Label.MOBILE)],
                emails=[Email("a@b.example", label=Label.PRIVATE)],
                company=30615,
                deals=[45615, 43510],
                tags=["важный", "доставка"],
                owner=5,
                created_at=NOW - timedelta(days=1),
            )
        )
    (row,) = server.bodies[0]["add"]
    assert row == {
        "name": "Александр Крылов",
        "responsible_user_id": 5,
        "created_at": T - 86400,
        "updated_at": T,
        "leads_id": [45615, 43510],
        "company_id": 30615,
        "tags": "важный,доставка",
        "custom_fields": [
            {"id": 1, "values": [{"value": "Менеджер"}]},
            {"id": 2, "values": [{"value": "89990123456", "enum": 11}, {"value": "8999", "enum": 13}]},
            {"id": 3, "values": [{"value": "a@b.example", "enum": 22}]},
        ],
        "request_id": ADDED + 1,
    }
    assert (made.id, made.updated_at) == (1099235, NOW)


@pytest.mark.asyncio
async def test_a_company_by_name_is_made_along_with_the_contact() -> None:
    async with canned(lambda request: answered({"id": 1, "request_id": ADDED + 1})) as server:
        await server.crm.contacts.create(Contact(name="N", company="ООО Ромашка"))
        await server.crm.companies.create(Company(name="C", contacts=[7, 8], deals=[9]))
    assert server.bodies[0]["add"][0]["company_name"] == "ООО Ромашка"
    assert server.bodies[1]["add"][0]["contacts_id"] == "7,8"
    assert server.bodies[1]["add"][0]["leads_id"] == [9]


@pytest.mark.asyncio
async def test_the_main_contact_of_a_new_lead_goes_first() -> None:
    async with canned(lambda request: answered({"id": 1, "request_id": ADDED + 1})) as server:
        contacts = [Link(Ref(Kind.CONTACT, 7)), Link(Ref(Kind.CONTACT, 8), main=True)]
        await server.crm.deals.create(Deal(name="D", price=105, contacts=contacts, pipeline=900, stage=142))
    (row,) = server.bodies[0]["add"]
    assert row["contacts_id"] == [8, 7]
    assert (row["sale"], row["status_id"], row["pipeline_id"]) == (105, 142, 900)


@pytest.mark.parametrize(
    "row, field, rule",
    [
        (Contact(name="N", tags=["a,b"]), "tags", "none holds a comma.*'a,b'"),
        (Deal(name="D", price="10.50"), "price", "a whole number"),
        (Deal(name="D", stage=142), "stage", "say which, with pipeline="),
        (Deal(name="D", contacts=range(1, 42)), "contacts", "at most 40"),
        (
            Deal(name="D", fields=[FieldValue("В", field=Ref(Kind.FIELD, 104))]),
            "fields",
            "no option 'В'; it has 'A', 'Б'",
        ),
        (Deal(name="D", fields=[FieldValue("x", code="WEB")]), "fields", "no field of code 'WEB'"),
        (Deal(name="D", company="ООО Ромашка"), "company", "make it first"),
        (Note(text="x", target=Ref(Kind.TASK, 5)), "target", "hangs on a contact"),
    ],
)
@pytest.mark.asyncio
async def test_what_the_vendor_cannot_take_is_refused_with_the_field_and_the_rule(
    row: Any, field: str, rule: str
) -> None:
    async with canned(lambda request: answered()) as server:
        with pytest.raises(Invalid, match=rule) as refusal:
            await server.crm.of(type(row)).create(row)
    assert [issue.field for issue in refusal.value.issues] == [field]
    assert server.bodies == []


@pytest.mark.asyncio
async def test_a_lead_sent_to_a_pipeline_starts_at_its_first_open_stage() -> None:
    async with canned(lambda request: answered({"id": 1, "request_id": ADDED + 1})) as server:
        await server.crm.deals.create(Deal(name="D", pipeline=900))
    assert (server.bodies[0]["add"][0]["pipeline_id"], server.bodies[0]["add"][0]["status_id"]) == (900, 909)


@pytest.mark.parametrize(
    "note, sent",
    [
        (Note(text="Привет"), {"note_type": 4, "text": "Привет"}),
        (
            Note(kind="sms_out", text="СМС", params={"phone": "7"}),
            {"note_type": 103, "params": {"text": "СМС", "phone": "7"}},
        ),
        (
            Note(kind="service", text="С", params={"service": "x"}),
            {"note_type": 25, "params": {"text": "С", "service": "x"}},
        ),
        (
            Note(kind="call_in", params={"UNIQ": "a", "PHONE": "7"}),
            {"note_type": 10, "params": {"UNIQ": "a", "PHONE": "7"}},
        ),
    ],
    ids=lambda part: getattr(part, "kind", ""),
)
@pytest.mark.asyncio
async def test_a_note_is_sent_with_its_text_where_its_kind_keeps_it(note: Note, sent: dict[str, Any]) -> None:
    async with canned(lambda request: answered({"id": 1, "request_id": ADDED + 1})) as server:
        await server.crm.notes.create(evolve(note, kind=codec.NoteKind(note.kind), target=Ref(Kind.CONTACT, 3)))
    (row,) = server.bodies[0]["add"]
    assert row == {**sent, "element_id": 3, "element_type": 1, "updated_at": T, "request_id": ADDED + 1}


def test_a_note_only_the_server_writes_is_carried_as_a_text() -> None:
    note = Note(kind=codec.NoteKind.MAIL, params={"thread": 5}, target=Ref(Kind.DEAL, 1))
    assert codec.surviving_note(note) == Note(text="mail", target=Ref(Kind.DEAL, 1))


# ============================================================================================== what is sent to update


def reading(row: dict[str, Any], reply: httpx.Response | None = None) -> Callable[[httpx.Request], httpx.Response]:
    def serve(request: httpx.Request) -> httpx.Response:
        return listed(row) if request.method == "GET" else reply or answered({"id": row["id"]})

    return serve


@pytest.mark.asyncio
async def test_an_update_grows_past_what_is_stored_and_again_past_itself() -> None:
    async with canned(reading(contact_row(updated_at=T + 3600))) as server:
        contact = await server.crm.contacts.get(46925315)
        contact = await server.crm.contacts.update(evolve(contact, name="Иван II"))
        assert contact.updated_at == NOW + timedelta(seconds=3601)
        contact = await server.crm.contacts.update(evolve(contact, name="Иван III"))
    assert [body["update"][0] for body in server.bodies] == [
        {"id": 46925315, "name": "Иван II", "updated_at": T + 3601, "request_id": UPDATED + 1},
        {"id": 46925315, "name": "Иван III", "updated_at": T + 3602, "request_id": UPDATED + 1},
    ]


@pytest.mark.asyncio
async def test_an_update_of_a_row_somebody_stored_milliseconds_in_exceeds_them() -> None:
    async with canned(reading(contact_row(updated_at=1619342253000))) as server:
        contact = await server.crm.contacts.get(46925315)
        assert contact.updated_at is None
        await server.crm.contacts.update(evolve(contact, name="Иван II"))
    assert server.bodies[0]["update"][0]["updated_at"] == 1619342253001


@pytest.mark.asyncio
async def test_a_row_is_changed_after_it_was_made_within_the_same_second() -> None:
    async with canned(lambda request: answered({"id": 8})) as server:
        made = await server.crm.contacts.create(Contact(name="N"))
        await server.crm.contacts.update(evolve(made, name="M"))
    first, second = server.bodies
    assert (first["add"][0]["updated_at"], second["update"][0]["updated_at"]) == (T, T + 1)


@pytest.mark.asyncio
async def test_links_are_added_by_id_and_taken_away_by_unlink() -> None:
    row = contact_row(company={"id": 8, "name": "Завод"}, leads={"id": [1, 2]})
    async with canned(reading(row)) as server:
        contact = await server.crm.contacts.get(46925315)
        changed = await server.crm.contacts.update(
            evolve(contact, deals=[Ref(Kind.DEAL, 2), Ref(Kind.DEAL, 3)], company=None)
        )
        await server.crm.contacts.update(evolve(changed, deals=(), company=Link(Ref(Kind.COMPANY, 9))))
    first, second = (body["update"][0] for body in server.bodies)
    assert (first["leads_id"], first["unlink"]) == ([3], {"leads_id": [1], "company_id": 8})
    assert (second["company_id"], second["unlink"]) == (9, {"leads_id": [2, 3]})
    assert "leads_id" not in second


@pytest.mark.asyncio
async def test_links_of_a_row_that_was_not_read_can_be_added_and_not_emptied() -> None:
    async with canned(lambda request: answered({"id": 5})) as server:
        await server.crm.contacts.update(Contact(id=5, deals=[7]))
        with pytest.raises(Invalid, match="read the row first"):
            await server.crm.contacts.update(Contact(id=5), clear={"deals"})
    assert server.bodies[0]["update"][0]["leads_id"] == [7]


@pytest.mark.asyncio
async def test_the_main_contact_stays_as_long_as_it_is_linked() -> None:
    async with canned(reading(lead_row(contacts={"id": [1, 2]}, main_contact={"id": 1}))) as server:
        deal = await server.crm.deals.get(26331366)
        other = [Link(Ref(Kind.CONTACT, 1)), Link(Ref(Kind.CONTACT, 2), main=True)]
        with pytest.raises(Invalid, match="contact 1 stays the main one"):
            await server.crm.deals.update(evolve(deal, contacts=other))
        await server.crm.deals.update(evolve(deal, contacts=other[1:]))
    assert server.bodies[0]["update"][0]["unlink"] == {"contacts_id": [1]}


@pytest.mark.asyncio
async def test_only_the_custom_fields_that_changed_are_sent_and_the_ones_that_went_are_emptied() -> None:
    customs = [custom(101, {"value": "old"}), custom(102, {"value": "1"}), custom(115, {"value": {"name": "О"}})]
    async with canned(reading(lead_row(custom_fields=customs))) as server:
        deal = await server.crm.deals.get(26331366)
        text, _, org = deal.fields
        await server.crm.deals.update(evolve(deal, fields=(evolve(text, values=("new",)), org)))
        await server.crm.deals.update(deal, clear={"fields"})
    first, second = (body["update"][0]["custom_fields"] for body in server.bodies)
    assert first == [{"id": 101, "values": [{"value": "new"}]}, {"id": 102, "values": []}]
    assert [each["id"] for each in second] == [101, 102, 115]
    assert all(each["values"] == [] for each in second)


@pytest.mark.asyncio
async def test_a_box_is_unticked_by_sending_nothing_in_it() -> None:
    async with canned(reading(lead_row(custom_fields=[custom(103, {"value": "1"})]))) as server:
        deal = await server.crm.deals.get(26331366)
        await server.crm.deals.update(evolve(deal, fields=[evolve(deal.fields[0], values=(False,))]))
    assert server.bodies[0]["update"][0]["custom_fields"] == [{"id": 103, "values": []}]


@pytest.mark.asyncio
async def test_a_closed_lead_keeps_its_stage_in_another_pipeline_and_an_open_one_starts_anew() -> None:
    for status, sent in ((142, 142), (777, 909)):
        async with canned(reading(lead_row(status_id=status, pipeline_id=800))) as server:
            deal = await server.crm.deals.get(26331366)
            await server.crm.deals.update(evolve(deal, pipeline=Ref(Kind.PIPELINE, 900)))
        row = server.bodies[0]["update"][0]
        assert (row["pipeline_id"], row["status_id"]) == (900, sent)


# ================================================================================================= mixed and bad answers


@pytest.mark.asyncio
async def test_rows_are_known_by_request_id_whatever_their_order() -> None:
    rows = [{"id": 10 * n, "request_id": ADDED + n} for n in (3, 1, 2)]
    assert [receipt.made().id for receipt in await created(answered(*rows))] == [10, 20, 30]


@pytest.mark.parametrize("unsaid", [{"request_id": 0}, {}], ids=["0", "none"])
@pytest.mark.asyncio
async def test_rows_are_known_by_place_only_when_the_counts_agree_and_nothing_failed(unsaid: dict[str, Any]) -> None:
    rows = [{"id": id, **unsaid} for id in (10, 20, 30)]
    assert [receipt.made().id for receipt in await created(answered(*rows))] == [10, 20, 30]
    assert kinds(await created(answered(*rows[:2]))) == ["Unknown"] * 3
    assert kinds(await created(answered(*rows[:2], errors={"add": {"1": "no"}}))) == ["Unknown", "Refused", "Unknown"]


@pytest.mark.parametrize(
    "errors",
    [
        {"add": {"1": "Entity not found"}},
        {"add": {str(ADDED + 2): "Entity not found"}},
        {"add": [{"code": 263, "message": "Entity not found"}]},
        [{"msg": "Entity not found", "code": 263, "item": {"request_id": ADDED + 2}}],
        [{"msg": "Entity not found", "code": 263, "item": {"name": "N1"}}],
    ],
    ids=["by place", "by request", "list", "calls", "calls without request"],
)
@pytest.mark.asyncio
async def test_errors_inside_a_200_are_read_in_all_shapes(errors: Any) -> None:
    rows = [{"id": 20, "request_id": ADDED + 1}, {"id": 30, "request_id": ADDED + 3}]
    made, refused, other = await created(answered(*rows, errors=errors))
    assert (made.id, other.id) == (20, 30)
    assert isinstance(refused, Refused)
    assert isinstance(refused.error, Rejected)
    (issue,) = refused.error.issues
    assert (issue.row, issue.field, issue.rule, issue.detail) == (1, "id", "there is no such row", "Entity not found")


@pytest.mark.asyncio
async def test_a_list_of_errors_that_does_not_add_up_leaves_the_rows_unknown() -> None:
    errors = {"add": [{"code": 205, "message": "x"}]}
    assert kinds(await created(answered({"id": 1, "request_id": ADDED + 1}, errors=errors))) == [
        "Made",
        "Unknown",
        "Unknown",
    ]
    assert kinds(await created(answered({"id": 1}, {"id": 2}, errors=errors))) == ["Unknown"] * 3


@pytest.mark.parametrize(
    "reply",
    [httpx.Response(200, json={"_links": {}}), httpx.Response(204), httpx.Response(200, text="<html>")],
    ids=["no rows", "204", "html"],
)
@pytest.mark.asyncio
async def test_an_answer_that_tells_nothing_leaves_every_row_unknown(reply: httpx.Response) -> None:
    receipts = await created(reply)
    assert kinds(receipts) == ["Unknown"] * 3
    with pytest.raises(AmbiguousWrite):
        receipts[0].made()


@pytest.mark.asyncio
async def test_updates_are_known_by_their_ids_and_never_by_place() -> None:
    stale = "Last modified date is older than in database"
    reply = answered({"id": 30, "updated_at": T + 5}, {"id": 10}, errors={"update": {"1": stale, "20": stale}})
    async with canned(lambda request: reply) as server:
        rows = [Contact(id=id, name="N") for id in (10, 20, 30, 40)]
        receipts = await server.crm.contacts.update_many(rows)
    assert kinds(receipts) == ["Made", "Refused", "Made", "Unknown"]
    assert receipts[2].made().updated_at == NOW + timedelta(seconds=5)
    refusal = receipts[1].error  # type: ignore[union-attr]
    assert isinstance(refusal, Rejected)
    (issue,) = refusal.issues
    assert (issue.field, issue.detail, issue.row) == ("updated_at", stale, 1)
    assert "read it again" in issue.rule


@pytest.mark.asyncio
async def test_the_same_row_twice_is_told_apart_by_request_id_or_unknown() -> None:
    rows = [Contact(id=10, name="N"), Contact(id=10, name="M")]
    reply = answered({"id": 10, "request_id": UPDATED + 1}, errors={"update": {"11": "x"}})
    async with canned(lambda request: reply) as server:
        assert kinds(await server.crm.contacts.update_many(rows)) == ["Made", "Unknown"]
    async with canned(lambda request: answered({"id": 10})) as server:
        assert kinds(await server.crm.contacts.update_many(rows)) == ["Unknown", "Unknown"]


@pytest.mark.asyncio
async def test_one_answer_to_adds_and_updates_is_told_to_each() -> None:
    """The id of an updated row, and the request id of a new one, may stand anywhere in it."""
    reply = answered(
        {"id": 20, "request_id": 20, "updated_at": T},
        {"id": 501, "request_id": ADDED + 2},
        {"id": 500, "request_id": ADDED + 1},
        errors={"update": {"30": "Last modified date is older than in database"}, "add": {"2": "no such user"}},
    )
    async with canned(lambda request: reply) as server:
        new = [Contact(name=f"N{n}") for n in range(3)]
        old = [Contact(id=20, name="A"), Contact(id=30, name="B"), Contact(id=40, name="C")]
        added, updated = await server.crm.run(amocrm.write(Contact, add=new, update=old))
    assert len(server.bodies) == 1
    assert {verb: len(rows) for verb, rows in server.bodies[0].items()} == {"add": 3, "update": 3}
    assert kinds(added) == ["Made", "Made", "Refused"]
    assert [receipt.made().id for receipt in added[:2]] == [500, 501]
    assert kinds(updated) == ["Made", "Refused", "Unknown"]


@pytest.mark.parametrize("loose", [[], [{"msg": "whose?", "code": 244}]])
@pytest.mark.asyncio
async def test_a_bare_list_of_errors_is_told_to_the_rows_it_names(loose: list[Any]) -> None:
    told = [{"msg": "no such user", "code": 244, "item": {"request_id": ADDED + 1}}, *loose]
    reply = answered({"id": 20}, {"id": 500, "request_id": ADDED + 2}, errors=told)
    async with canned(lambda request: reply) as server:
        new, old = [Contact(name="N"), Contact(name="M")], [Contact(id=20, name="A"), Contact(id=30, name="B")]
        added, updated = await server.crm.run(amocrm.write(Contact, add=new, update=old))
    assert (kinds(added), kinds(updated)) == (["Refused", "Made"], ["Made", "Unknown"])


@pytest.mark.asyncio
async def test_the_only_row_of_a_mixed_answer_is_not_taken_for_the_other() -> None:
    async with canned(lambda request: answered({"id": 20})) as server:
        flow = amocrm.write(Contact, add=[Contact(name="N")], update=[Contact(id=20, name="A")])
        added, updated = await server.crm.run(flow)
    assert (kinds(added), kinds(updated)) == (["Unknown"], ["Made"])


@pytest.mark.asyncio
async def test_a_mixed_request_checks_its_rows_and_counts_them_together() -> None:
    async with canned(lambda request: answered({"id": 7, "request_id": ADDED + 2})) as server:
        added, updated = await server.crm.run(amocrm.write(Contact, add=[Contact(id=3, name="N"), Contact(name="M")]))
        assert (kinds(added), updated) == (["Refused", "Made"], [])
        many = [Contact(name="N")] * 300
        with pytest.raises(Invalid, match="500 rows a request"):
            await server.crm.run(
                amocrm.write(Contact, add=many, update=[Contact(id=n, name="N") for n in range(1, 300)])
            )
        assert await server.crm.run(amocrm.write(Contact)) == ([], [])
    assert len(server.bodies) == 1


@pytest.mark.asyncio
async def test_a_mixed_request_that_is_refused_is_refused_for_both_halves() -> None:
    said = {"response": {"error": "нет прав", "error_code": "244", "server_time": T}}
    async with canned(lambda request: httpx.Response(400, json=said)) as server:
        flow = amocrm.write(Contact, add=[Contact(name="N")], update=[Contact(id=20, name="A")])
        (added,), (updated,) = await server.crm.run(flow)
    assert isinstance(added, NotApplied)
    assert isinstance(updated, NotApplied)


# ==================================================================================================== whole requests


def told(status: int, body: Any) -> Any:
    return judge(Call("POST", "/api/v2/contacts"), Reply(status, body=body))


def response(code: object, text: str = "почему") -> dict[str, Any]:
    return {"response": {"error": text, "error_code": code, "ip": "203.0.113.10", "server_time": T}}


def problem(status: int, detail: str) -> dict[str, Any]:
    return {"title": "Error", "type": "http://www.w3.org/…", "status": status, "detail": detail}


@pytest.mark.parametrize(
    "status, body, error, code, words",
    [
        (401, response("110"), AuthFailed, "110", "the session has ended"),
        (401, response(110), AuthFailed, "110", "the session has ended"),
        (401, response("111"), AuthFailed, "111", "captcha"),
        (401, response("112"), AuthFailed, "112", "switched off"),
        (401, response("101"), AuthFailed, "101", "no such account"),
        (401, response("401"), AuthFailed, "401", "not on this server"),
        (401, problem(401, ""), AuthFailed, None, "not accepted"),
        (401, None, AuthFailed, None, "not accepted"),
        (403, response("113"), AuthFailed, "113", "list of allowed"),
        (403, response("403"), Banned, "403", "blocked"),
        (402, response("402"), AuthFailed, None, "subscription"),
        (400, response("244"), AuthFailed, "244", "not allowed"),
        (400, response("288"), AuthFailed, "288", "not allowed"),
        (400, response("225"), NotFound, "225", "not there"),
        (400, response("231"), NotFound, "231", "not there"),
        (400, response("226"), Rejected, "226", "no such row to hang it on"),
        (400, response("204"), Rejected, "204", "no such custom field"),
        (400, response("219"), Unavailable, "219", "for the moment"),
        (400, problem(400, "bad"), Rejected, None, "was refused"),
        (200, response("110"), AuthFailed, "110", "the session has ended"),
        (200, {"status": "fail", "error": "почему", "error_code": 400}, Rejected, "400", "was refused"),
        (429, None, RateLimited, None, "too many"),
        (504, None, Unavailable, None, "failed"),
    ],
)
def test_a_whole_request_is_judged_by_its_status_and_its_code(
    status: int, body: Any, error: type[Exception], code: str | None, words: str
) -> None:
    verdict = told(status, body)
    assert type(verdict) is error
    assert words in str(verdict)
    assert (verdict.status, verdict.code if status != 402 else None) == (status, code)


def test_a_code_for_nothing_found_is_an_empty_list() -> None:
    assert told(400, response("2002")) is None
    assert wire.rows(Reply(200, body=response("2002"))) == ()


@pytest.mark.parametrize("status, error", [(403, Banned), (429, RateLimited), (502, Unavailable)])
@pytest.mark.asyncio
async def test_html_is_judged_by_its_status(status: int, error: type[Exception]) -> None:
    page = httpx.Response(status, text="<html><title>nginx</title></html>", headers={"content-type": "text/html"})
    async with canned(lambda request: page) as server:
        with pytest.raises(error):
            await server.crm.contacts.get(5)


@pytest.mark.asyncio
async def test_a_request_refused_as_a_whole_is_one_rows_fault_only_when_it_is_alone() -> None:
    refusal = httpx.Response(400, json=response("204", "нет поля"))
    (receipt,) = await created(refusal, count=1)
    assert isinstance(receipt, Refused)
    assert [issue.field for issue in receipt.error.issues] == ["fields"]  # type: ignore[attr-defined]
    assert kinds(await created(refusal)) == ["NotApplied"] * 3


# ================================================================================================ extras, canned


@pytest.mark.asyncio
async def test_a_task_is_completed_with_a_result_in_two_calls() -> None:
    async with canned(lambda request: answered({"id": 93})) as server:
        await server.crm.tasks.complete(93, result="Дозвонился")
    update, note = server.bodies
    assert update == {"update": [{"id": 93, "updated_at": T, "is_completed": True, "request_id": UPDATED + 1}]}
    assert note == {"add": [{"element_id": 93, "element_type": 4, "note_type": 13, "text": "Дозвонился"}]}


@pytest.mark.asyncio
async def test_a_row_built_by_hand_learns_from_its_refusal_what_it_has_to_exceed() -> None:
    refusals = iter([{"update": {"93": "Last modified date is older than in database"}}])

    def serve(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return listed({"id": 93, "updated_at": T + 50, "text": "Позвонить", "is_completed": False})
        refusal = next(refusals, None)
        return answered(errors=refusal) if refusal else answered({"id": 93})

    async with canned(serve) as server:
        await server.crm.tasks.complete(93)
    first, again = server.bodies
    assert first["update"][0]["updated_at"] == T
    assert again == {
        "update": [
            {"id": 93, "updated_at": T + 51, "text": "Позвонить", "is_completed": True, "request_id": UPDATED + 1}
        ]
    }
    assert [request.url.query.decode() for request in server.asked if request.method == "GET"] == ["id=93"]


@pytest.mark.parametrize("stored", [httpx.Response(204), httpx.Response(500), httpx.Response(200, json={})])
@pytest.mark.asyncio
async def test_a_row_that_cannot_be_read_stays_refused_and_is_not_sent_again(stored: httpx.Response) -> None:
    def serve(request: httpx.Request) -> httpx.Response:
        stale = {"update": {"8": "Last modified date is older than in database"}}
        return stored if request.method == "GET" else answered({"id": 9}, errors=stale)

    async with canned(serve) as server:
        receipts = await server.crm.contacts.update_many([Contact(id=8, name="N"), Contact(id=9, name="M")])
    assert kinds(receipts) == ["Refused", "Made"]
    assert len(server.bodies) == 1


@pytest.mark.asyncio
async def test_a_result_that_was_not_written_is_told_though_the_answer_is_a_200() -> None:
    def serve(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/notes"):
            return answered(errors={"add": {"0": "Element not found"}})
        return answered({"id": 93, "request_id": (UPDATED if b'"update"' in request.content else ADDED) + 1})

    async with canned(serve) as server:
        with pytest.raises(PartlyDone) as partly:
            await server.crm.tasks.complete(93, result="Дозвонился")
        assert [issue.field for issue in partly.value.issues] == ["result"]
        with pytest.raises(PartlyDone) as partly:
            await server.crm.tasks.create(Task(text="Позвонить", done=True, result="Дозвонился"))
        assert partly.value.entity.id == 93


# ================================================================================================== over the sandbox


@frozen
class Shop:
    """A furnished account, our client in it, and the vendor's side."""

    crm: Client
    run: Running
    clock: FakeClock

    @property
    def world(self) -> World:
        return self.run.world


@asynccontextmanager
async def shop(
    *, rows: int = 40, limits: bool = False, switches: dict[str, Any] | None = None, login: bool = False, **options: Any
) -> AsyncGenerator[Shop]:
    clock = FakeClock()
    with World(clock=clock) as world:
        populate(world, contacts=rows, companies=rows, deals=rows, tasks=rows, notes=rows)
        running = in_process(FACE, world, clock=clock, switches=switches or {}, limits=limits)
        known = running.credentials
        credentials = Login(known["login"], hash=known["hash"]) if login else known["token"]
        async with connect(
            DIALECT,
            base_url=running.base_url,
            credentials=credentials,
            transport=running.transport(),
            clock=clock,
            **({"rate": ()} | options),
        ) as crm:
            yield Shop(crm, running, clock)


SWITCHES: list[dict[str, Any]] = [
    {},
    {"empties": "brackets", "main-contact": "missing", "closest-task": "year-zero", "names": "never"},
    {"type-id": False, "enum-form": "string", "links-key": "_link", "entity-in-href": False},
    {"account-shape": "doc2017", "unlinked-task": "missing", "names": "filled"},
]


@pytest.mark.parametrize("switches", SWITCHES, ids=["recorded", "brackets", "before 2021", "the page"])
@pytest.mark.asyncio
async def test_the_same_account_reads_the_same_in_every_shape(switches: dict[str, Any]) -> None:
    async def everything(**given: Any) -> list[Any]:
        async with shop(switches=given) as account:
            crm = account.crm
            collections: list[Any] = [crm.contacts, crm.companies, crm.deals, crm.tasks, crm.notes, crm.pipelines]
            return [[row async for row in rows.list()] for rows in collections]

    usual, other = await everything(), await everything(**switches)
    if switches.get("names") == "never":
        usual[0] = [evolve(row, first_name=None, last_name=None) for row in usual[0]]
    assert other == usual
    assert all(usual)


OTHERWISE = [
    pytest.param({name: choice}, id=f"{name}={choice}")
    for name, switch in FACE.switches.items()
    for choice in switch.choices
    # An account that is not paid for is told of elsewhere.
    if choice != switch.default and name != "subscription"
]


@pytest.mark.parametrize("switches", OTHERWISE)
@pytest.mark.asyncio
async def test_whatever_the_service_decides_rows_are_made_changed_and_found(switches: dict[str, Any]) -> None:
    """DECISIONS: a client never breaks when the real service decides otherwise."""
    async with shop(switches=switches, login=True) as account:
        crm = account.crm
        firm = await crm.companies.create(Company(name="Завод", phones=["112"]))
        receipts = await crm.contacts.create_many(
            [Contact(name=f"N{n}", company=firm, tags=["a", "b"], emails=["n@x.example"]) for n in range(3)]
        )
        people = [receipt.made() for receipt in receipts]
        (source,) = [field async for field in crm.fields.list() if field.name == "Способ оплаты"]
        paid = FieldValue("Карта", field=source.ref, name=source.name, type=FieldType.SELECT)
        deal = await crm.deals.create(Deal(name="D", price=10, contacts=people[:2], fields=[paid]))
        (pipeline, *_) = [pipeline async for pipeline in crm.pipelines.list()]
        await crm.deals.update(evolve(deal, stage=Ref(Kind.STAGE, 142), pipeline=pipeline, contacts=people[1:]))
        task = await crm.tasks.create(Task(text="Позвонить", target=deal))
        # Within the second in which it was made: by its id alone nobody knows what has to be exceeded.
        await crm.tasks.complete(task.id or 0, result="Дозвонился")
        note = await crm.notes.create(Note(text="Привет", target=people[0]))
        await crm.notes.update(evolve(note, text="Пока"))
        read = await crm.deals.get(deal.id or 0)
        assert [link.ref.id for link in read.contacts] == [person.id for person in people[1:]]
        assert (read.outcome, read.fields) == (Outcome.WON, (paid,))
        assert (await crm.tasks.get(task.id or 0)).done
        assert (await crm.contacts.get(people[0].id or 0)).tags == (Tag("a"), Tag("b"))
        assert [row.text async for row in crm.notes.list(ids=[note.id or 0])] == ["Пока"]
        assert len([row async for row in crm.contacts.list()]) == 43
        with pytest.raises(Rejected):
            await crm.contacts.create(Contact(name="N", owner=999))


@pytest.mark.asyncio
async def test_a_login_is_exchanged_for_a_session_that_is_renewed_once_it_is_over() -> None:
    async with shop(login=True) as account:
        desk = logins(account.run.account)
        assert len([row async for row in account.crm.contacts.list()]) == 40
        assert desk.count == 1
        desk.expire()
        await account.crm.contacts.create(Contact(name="N"))
        account.clock.advance(16 * 60)
        assert (await account.crm.me()).email == account.run.credentials["login"]
        assert desk.count == 3


@pytest.mark.asyncio
async def test_two_users_of_an_account_who_share_a_store_never_share_a_session() -> None:
    """§2: "Rights are those of the user whose key is used"."""
    asked_as: list[str] = []

    def serve(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("auth.php"):
            login = json.loads(request.content)["USER_LOGIN"]
            told = {"set-cookie": f"session_id={login.partition('@')[0]}; path=/"}
            return httpx.Response(200, json={"response": {"auth": True}}, headers=told)
        asked_as.append(request.headers["cookie"])
        return httpx.Response(204)

    tokens = MemoryTokens()
    for login in ("olga@roga.example", "ivan@roga.example", "olga@roga.example"):
        given = {"credentials": Login(login, hash="h"), "tokens": tokens, "transport": httpx.MockTransport(serve)}
        async with connect("amocrm", "roga", **given) as crm:
            assert [row async for row in crm.tasks.list()] == []
    assert asked_as == ["session_id=olga", "session_id=ivan", "session_id=olga"]


@pytest.mark.parametrize("form", ["110", "401", "problem"])
@pytest.mark.asyncio
async def test_a_dead_session_is_known_in_every_form(form: str) -> None:
    async with shop(login=True, switches={"dead-session": form}) as account:
        await account.crm.contacts.create(Contact(name="N"))
        logins(account.run.account).expire()
        await account.crm.contacts.create(Contact(name="M"))
        assert account.world.count("contact") == 42


@pytest.mark.asyncio
async def test_a_wrong_key_is_told_once_and_not_tried_again() -> None:
    async with shop(login=True) as account:
        logins(account.run.account).rotate()
        with pytest.raises(AuthFailed) as refusal:
            await account.crm.contacts.create(Contact(name="N"))
        assert refusal.value.code == "110"
        assert logins(account.run.account).refused == 1


@pytest.mark.asyncio
async def test_the_account_its_users_and_its_words_are_read() -> None:
    async with shop() as account:
        assert (await account.crm.account()).zone == MOSCOW
        me = await account.crm.me()
        assert (me.admin, me.email) == (True, account.run.credentials["login"])
        fields = [row async for row in account.crm.fields.list()]
        assert {field.entity for field in fields} == {Kind.CONTACT, Kind.COMPANY, Kind.DEAL}
        pipelines = [row async for row in account.crm.pipelines.list()]
        assert [stage.outcome for stage in pipelines[0].stages][-2:] == [Outcome.WON, Outcome.LOST]
        assert await account.crm.pipelines.get(pipelines[0].id or 0) == pipelines[0]
        assert [each.id for each in await account.crm.setting("task_types")] == [1, 2]


def furnished(world: World) -> dict[str, Field]:
    """Custom fields of the types the usual account has none of."""
    kinds = {"flag": "checkbox", "many": "multiselect", "radio": "radiobutton", "born": "birthday", "at": "date_time"}
    kinds |= {"where": "smart_address", "street": "streetaddress", "org": "legal_entity"}
    found: dict[str, Field] = {}
    for place, (name, type) in enumerate(kinds.items()):
        choices = type in ("multiselect", "radiobutton")
        enums = (
            [{"id": world.next_id(), "value": text, "code": None, "sort": 1} for text in ("a", "b")] if choices else []
        )
        id = world.add("field", {"entity": "deal", "name": name, "type": type, "sort": 90 + place, "enums": enums})
        found[name] = Field(id=id, entity=Kind.DEAL, name=name)
    return found


@pytest.mark.parametrize("form", ["names", "numbers"])
@pytest.mark.asyncio
async def test_a_value_of_every_type_that_was_written_is_read_back(form: str) -> None:
    async with shop(switches={"subtype-form": form}) as account:
        fields = furnished(account.world)
        contents: dict[str, tuple[FieldType, tuple[Any, ...]]] = {
            "flag": (FieldType.BOOL, (True,)),
            "many": (FieldType.MULTISELECT, ("a", "b")),
            "radio": (FieldType.RADIO, ("b",)),
            "born": (FieldType.BIRTHDAY, (date(1968, 2, 20),)),
            "at": (FieldType.DATETIME, (datetime(2026, 1, 1, 12, 30, tzinfo=UTC),)),
            "where": (FieldType.ADDRESS, ({"line1": "Мира, 3", "city": "Москва", "postcode": "101010"},)),
            "street": (FieldType.STREET, ("ул. Ленина, 1",)),
            "org": (FieldType.LEGAL, ({"name": "ООО", "vat_id": "7701"},)),
        }
        values = tuple(
            FieldValue(content, field=fields[name].ref, name=name, type=type)
            for name, (type, content) in contents.items()
        )
        made = await account.crm.deals.create(Deal(name="D", fields=values))
        read = await account.crm.deals.get(made.id or 0)
        org = read.fields[-1].values[0]
        assert isinstance(org, dict)
        assert (org["name"], org["vat_id"], org["kpp"]) == ("ООО", "7701", None)
        assert read.fields[:-1] == values[:-1]
        # All emptied, the others left as they are.
        await account.crm.deals.update(read, clear={"fields"})
        emptied = await account.crm.deals.get(made.id or 0)
        assert (emptied.fields, emptied.name) == ((), "D")


@pytest.mark.asyncio
async def test_rows_refused_among_others_are_named_in_every_shape() -> None:
    for shape in ("map", "list", "calls"):
        for key in ("index", "request-id"):
            async with shop(switches={"errors-shape": shape, "add-error-key": key}) as account:
                rows = [Contact(name=f"N{n}", owner=999 if n in (1, 3) else None) for n in range(5)]
                receipts = await account.crm.contacts.create_many(rows)
                assert kinds(receipts) == ["Made", "Refused", "Made", "Refused", "Made"]
                assert account.world.count("contact") == 43


@pytest.mark.parametrize("said", ["given", "none"])
@pytest.mark.asyncio
async def test_a_stale_row_is_refused_and_goes_through_once_it_is_read_again(said: str) -> None:
    async with shop(switches={"request-id": said}) as account:
        contact, *_ = [row async for row in account.crm.contacts.list()]
        account.world.update("contact", contact.id or 0, {"updated_at": int(account.clock.now().timestamp()) + 500})
        with pytest.raises(Rejected, match="read it again") as refusal:
            await account.crm.contacts.update(evolve(contact, name="Иван II"))
        assert [issue.field for issue in refusal.value.issues] == ["updated_at"]
        again = await account.crm.contacts.get(contact.id or 0)
        await account.crm.contacts.update(evolve(again, name="Иван II"))
        assert account.world.row("contact", contact.id or 0)["name"] == "Иван II"


@pytest.mark.parametrize("shape", ["map", "list", "calls"])
@pytest.mark.asyncio
async def test_rows_built_by_hand_exceed_what_is_stored_whatever_it_is(shape: str) -> None:
    async with shop(switches={"errors-shape": shape}) as account:
        people = [row async for row in account.crm.contacts.list()][:3]
        ahead = int(account.clock.now().timestamp()) + 500
        for row in people[:2]:
            account.world.update("contact", row.id or 0, {"updated_at": ahead})
        before = account.run.stats.requests
        changes = [Contact(id=row.id, name=f"N{place}") for place, row in enumerate(people)]
        receipts = await account.crm.contacts.update_many(changes)
        assert account.run.stats.requests == before + 3
        assert kinds(receipts) == ["Made"] * 3
        stored = [account.world.row("contact", row.id or 0) for row in people]
        assert [row["name"] for row in stored] == ["N0", "N1", "N2"]
        assert [row["updated_at"] for row in stored[:2]] == [ahead + 1, ahead + 1]
        assert receipts[1].made().updated_at == datetime.fromtimestamp(ahead + 1, UTC)


@pytest.mark.asyncio
async def test_links_are_made_and_taken_away_from_either_side() -> None:
    async with shop() as account:
        crm = account.crm
        firm = await crm.companies.create(Company(name="Завод"))
        people = [await crm.contacts.create(Contact(name=f"N{n}", company=firm)) for n in range(2)]
        main, other = (Link(person.ref, main=place == 0) for place, person in enumerate(people))
        deal = await crm.deals.create(Deal(name="D", contacts=(main, other), company=Link(firm.ref)))
        read = await crm.companies.get(firm.id or 0)
        assert [link.ref.id for link in read.contacts] == [person.id for person in people]
        assert [link.ref.id for link in read.deals] == [deal.id]
        assert (await crm.deals.get(deal.id or 0)).contacts == (main, other)
        await crm.companies.update(evolve(read, contacts=(), deals=()))
        await crm.deals.update(evolve(deal, contacts=(other,)))
        assert (await crm.contacts.get(people[0].id or 0)).company is None
        person = await crm.contacts.get(people[1].id or 0)
        assert [link.ref.id for link in person.deals] == [deal.id]
        left = await crm.deals.get(deal.id or 0)
        assert ([link.main for link in left.contacts], left.company) == ([True], None)


@pytest.mark.asyncio
async def test_a_task_made_done_has_its_result_and_one_is_completed_with_it() -> None:
    async with shop(switches={"task-text": "required"}) as account:
        made = await account.crm.tasks.create(Task(text="Позвонить", done=True, result="Дозвонился"))
        assert (await account.crm.tasks.get(made.id or 0)).result == "Дозвонился"
        task = await account.crm.tasks.create(Task(text="Написать"))
        await account.crm.tasks.complete(task.id or 0, result="Написал")
        read = await account.crm.tasks.get(task.id or 0)
        assert (read.done, read.result, read.text) == (True, "Написал", "Написать")
        (note,) = await account.crm.run(amocrm.task_notes(task.id or 0))
        assert (note.text, note.raw_kind, note.target) == ("Написал", "13", task.ref)
        with pytest.raises(NotFound, match="there is no such row"):
            await account.crm.tasks.complete(999_999, result="x")
        with pytest.raises(NotFound):
            await account.crm.contacts.update(Contact(id=999_999, name="N"))


@pytest.mark.asyncio
async def test_adds_and_updates_go_in_one_request() -> None:
    async with shop() as account:
        contacts = [row async for row in account.crm.contacts.list()]
        before = account.run.stats.requests
        changed = [evolve(row, name=f"{row.name} II") for row in contacts[:3]]
        changed[1] = evolve(changed[1], owner=Ref(Kind.USER, 999))
        new = [Contact(name="N"), Contact(name="M", company=Ref(Kind.COMPANY, 999_999))]
        added, updated = await account.crm.run(amocrm.write(Contact, add=new, update=changed))
        assert account.run.stats.requests == before + 1
        assert (kinds(added), kinds(updated)) == (["Made", "Refused"], ["Made", "Refused", "Made"])
        assert account.world.row("contact", contacts[2].id or 0)["name"] == changed[2].name


@pytest.mark.asyncio
async def test_customers_are_read_and_tied_and_untied() -> None:
    async with shop() as account:
        crm = account.crm
        body = {"add": [{"name": f"C{n}", "next_date": T, "next_price": n} for n in range(3)]}
        reply = await crm.call(Call("POST", "/api/v2/customers", body=body))
        ids = [item["id"] for item in wire.rows(reply)]
        person = await crm.contacts.create(Contact(name="N"))
        await crm.run(amocrm.link_customers(person.ref, ids[:2]))
        customers = await crm.run(amocrm.customers())
        assert [customer.name for customer in customers] == ["C0", "C1", "C2"]
        assert customers[0].contacts == wire.LinkedMany(id=[person.id])  # type: ignore[list-item]
        await crm.run(amocrm.unlink_customers(person.ref, ids[:1]))
        (first, third) = await crm.run(amocrm.customers([ids[0], ids[2]]))
        assert (first.contacts, third.next_price, first.raw["name"]) == (None, 2, "C0")
        with pytest.raises(Rejected):
            await crm.run(amocrm.link_customers(person.ref, [999_999]))
        with pytest.raises(Unsupported):
            await crm.run(amocrm.link_customers(Ref(Kind.DEAL, 1), ids))


@pytest.mark.asyncio
async def test_webhooks_are_subscribed_listed_and_unsubscribed() -> None:
    async with shop() as account:
        crm, url = account.crm, "https://hooks.example/amo"
        made = await crm.webhooks.create(Subscription(url=url, events=["add_lead", "status_lead"]))
        (hook,) = [hook async for hook in crm.webhooks.list()]
        assert (made.id, hook.id, hook.events) == (url, url, ("add_lead", "status_lead"))
        await crm.run(amocrm.unsubscribe(url, ["add_lead"]))
        assert [hook.events async for hook in crm.webhooks.list()] == [("status_lead",)]
        await crm.webhooks.create(Subscription(url=url, events=["add_task"]))
        assert [hook.events async for hook in crm.webhooks.list()] == [("status_lead", "add_task")]
        await crm.webhooks.delete(url)
        assert [hook async for hook in crm.webhooks.list()] == []
        for refused in (
            crm.webhooks.create(Subscription(url=url, events=["no_such"])),
            crm.webhooks.delete(url),
            crm.run(amocrm.unsubscribe(url, ["add_lead"])),
        ):
            with pytest.raises(Rejected, match=r"Unknown event|Webhook not found"):
                await refused
        before = account.run.stats.requests
        with pytest.raises(Invalid, match="by its address"):
            await crm.webhooks.delete(5)
        assert account.run.stats.requests == before


@pytest.mark.asyncio
async def test_an_answer_that_does_not_name_the_address_leaves_the_webhook_unknown() -> None:
    async with canned(lambda request: answered({"url": "https://other.example/", "result": True})) as server:
        with pytest.raises(AmbiguousWrite):
            await server.crm.webhooks.create(Subscription(url="https://hooks.example/amo", events=["add_lead"]))
    assert server.bodies == [{"subscribe": [{"url": "https://hooks.example/amo", "events": ["add_lead"]}]}]


@pytest.mark.asyncio
async def test_the_vendors_pace_is_kept_and_a_ban_stops_everything() -> None:
    async with shop(limits=True, rate=DIALECT.rate) as account:
        receipts = await account.crm.contacts.create_many([Contact(name="N") for _ in range(30)], batch=1)
        assert kinds(receipts) == ["Made"] * 30
        assert account.crm.spent.rate_limited == 0
    async with shop(limits=True, switches={"ban-after": "3"}, retry=Retry(attempts=1)) as account:
        receipts = await account.crm.contacts.create_many([Contact(name="N") for _ in range(40)], batch=1)
        assert isinstance(receipts[-1], NotApplied)
        assert isinstance(receipts[-1].error, Banned)


def test_nothing_is_deleted_because_the_api_has_no_method_for_it() -> None:
    deleted = {entity for entity, verbs in DIALECT.capabilities.items() if Verb.DELETE in verbs}
    assert deleted == {Subscription}
