"""Kommo v4 in its breadth: every type of field and note both ways, links, and the flows of ``crmclient_kommo``."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from copy import deepcopy
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import pytest
from attrs import evolve, frozen

import crmclient_kommo as kommo
from crmclient import Client, Company, Contact, Deal, Field, Note, Pipeline, Task, connect
from crmclient.clock import FakeClock
from crmclient.dialect import Call, Context, Made, Reply, Row
from crmclient.entities import FieldType, FieldValue, Kind, Link, Money, NoteKind, Phone, Ref, Tag
from crmclient.errors import (
    AmbiguousWrite,
    AuthFailed,
    IncompleteRead,
    Invalid,
    NotFound,
    PartlyDone,
    ReadOnly,
    Rejected,
    Unreadable,
)
from crmclient.flows import carried
from crmclient.sandbox.server import Running, face, in_process
from crmclient.sandbox.world import World
from crmclient.vocabulary import Option, Stage
from crmclient_kommo import codec
from crmclient_kommo.sandbox import grants

MOSCOW = Context(given_zone=ZoneInfo("Europe/Moscow"))
UNDER_A_LEAD = Context(given_zone=ZoneInfo("Europe/Moscow"), parent=Ref(Kind.DEAL, 1))


@frozen
class Trial:
    """A client of a furnished account, and the account."""

    crm: Client
    run: Running
    clock: FakeClock

    @property
    def world(self) -> World:
        return self.run.world

    @property
    def requests(self) -> int:
        return self.run.stats.requests

    @property
    def calls(self) -> dict[str, int]:
        return dict(self.run.stats.calls)

    async def field(self, type: str, entity: Kind = Kind.DEAL, **more: Any) -> Field:
        """A new definition, options and all."""
        options = tuple(Option(value=f"Выбор {n}") for n in (1, 2, 3)) if "enums" in more else ()
        more.pop("enums", None)
        given = Field(entity=entity, name=f"поле {type}", type=FieldType.OTHER, raw_type=type, options=options)
        return (await self.crm.run(kommo.create_fields([given], **more)))[0]


@asynccontextmanager
async def account(*, transport: Any = None, switches: Any = None, **options: Any) -> AsyncGenerator[Trial]:
    clock = FakeClock()
    with World(clock=clock) as world:
        run = in_process(face("kommo"), world, clock=clock, switches=switches, limits=False)
        given = {"credentials": run.credentials["token"], "rate": (), **options}
        through = transport(run) if transport else run.transport()
        async with connect("kommo", base_url=run.base_url, transport=through, clock=clock, **given) as crm:
            yield Trial(crm, run, clock)


class Spoiled(httpx.AsyncBaseTransport):
    """A server whose answers on one path are replaced."""

    def __init__(self, run: Running, path: str, status: int, body: Any) -> None:
        self._inner, self._path, self._answer = run.transport(), path, (status, body)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith(self._path):
            return httpx.Response(self._answer[0], json=self._answer[1])
        return await self._inner.handle_async_request(request)


def spoiled(path: str, body: Any, status: int = 200) -> Any:
    return lambda run: Spoiled(run, path, status, body)


# ------------------------------------------------------------------------------------------- custom fields, as values

ADDRESS = [
    {"value": "ул. Николоямская, 28", "enum_id": 1, "enum_code": "address_line_1"},
    {"value": "стр. 1", "enum_id": 2, "enum_code": "address_line_2"},
    {"value": "Москва", "enum_id": 3, "enum_code": "city"},
    {"value": "МО", "enum_id": 4, "enum_code": "state"},
    {"value": "109004", "enum_id": 5, "enum_code": "zip"},
    {"value": "RU", "enum_id": 6, "enum_code": "country"},
]
LEGAL = {"name": "ООО Рога и копыта", "entity_type": 1, "vat_id": "123123123", "kpp": "231", "external_uid": "u"}
ITEM = {
    "sku": "34N",
    "description": "Товар",
    "unit_price": Decimal("10.5"),
    "quantity": 2,
    "discount": {"type": "amount", "value": 25},
}
FILE = {"file_uuid": "3b454645", "version_uuid": "13db6652", "file_name": "wiki.odt", "file_size": 20763}
LINKED = {"name": "Товар 1", "entity_id": 527597, "entity_type": "catalog_elements", "catalog_id": 6319}
MIDNIGHT = 1634590800  # 2021-10-19 in Moscow

# The type, its values as the server shows them, as the model has them, as they are written.
VALUES: list[tuple[str, list[Any], tuple[Any, ...], list[Any]]] = [
    ("text", [{"value": "да"}], ("да",), [{"value": "да"}]),
    ("textarea", [{"value": "раз\nдва"}], ("раз\nдва",), [{"value": "раз\nдва"}]),
    ("url", [{"value": "https://a.example/?q=1"}], ("https://a.example/?q=1",), [{"value": "https://a.example/?q=1"}]),
    ("streetaddress", [{"value": "Невский, 1"}], ("Невский, 1",), [{"value": "Невский, 1"}]),
    ("tracking_data", [{"value": "utm"}], ("utm",), [{"value": "utm"}]),
    ("numeric", [{"value": "12.50"}], (Decimal("12.50"),), [{"value": "12.50"}]),
    ("numeric", [{"value": "0.0000001"}], (Decimal("1E-7"),), [{"value": "0.0000001"}]),
    ("price", [{"value": "100"}], (Decimal(100),), [{"value": "100"}]),
    ("monetary", [{"value": "99.90"}], (Decimal("99.90"),), [{"value": "99.90"}]),
    ("checkbox", [{"value": True}], (True,), [{"value": True}]),
    ("checkbox", [{"value": False}], (False,), [{"value": False}]),
    ("date", [{"value": MIDNIGHT}], (date(2021, 10, 19),), [{"value": MIDNIGHT}]),
    ("birthday", [{"value": MIDNIGHT}], (date(2021, 10, 19),), [{"value": MIDNIGHT}]),
    (
        "date_time",
        [{"value": 1591965296}],
        (datetime(2020, 6, 12, 12, 34, 56, tzinfo=UTC),),
        [{"value": 1591965296}],
    ),
    ("select", [{"value": "Один", "enum_id": 1, "enum_code": None}], ("Один",), [{"value": "Один"}]),
    ("radiobutton", [{"value": "Два", "enum_id": 2, "enum_code": "two"}], ("Два",), [{"value": "Два"}]),
    ("category", [{"value": "Телефоны", "enum_id": 10663}], ("Телефоны",), [{"value": "Телефоны"}]),
    (
        "multiselect",
        [{"value": "Один", "enum_id": 1}, {"value": "Два", "enum_id": 2}],
        ("Один", "Два"),
        [{"value": "Один"}, {"value": "Два"}],
    ),
    ("multitext", [{"value": "просто"}], ("просто",), [{"value": "просто"}]),
    (
        "multitext",
        [{"value": "ivan", "enum_id": 7, "enum_code": "SKYPE"}],
        ({"value": "ivan", "enum_code": "SKYPE"},),
        [{"value": "ivan", "enum_code": "SKYPE"}],
    ),
    (
        "smart_address",
        ADDRESS,
        (
            {
                "line1": "ул. Николоямская, 28",
                "line2": "стр. 1",
                "city": "Москва",
                "region": "МО",
                "postcode": "109004",
                "country": "RU",
            },
        ),
        [{"value": each["value"], "enum_code": each["enum_code"]} for each in ADDRESS],
    ),
    (
        "smart_address",
        [{"value": "109004", "enum_id": 5}, {"value": "", "enum_code": "city"}],
        ({"postcode": "109004"},),
        [{"value": "109004", "enum_code": "zip"}],
    ),
    ("legal_entity", [{"value": LEGAL}], (LEGAL,), [{"value": LEGAL}]),
    ("payer", [{"value": {"name": "Иван", "type": "individual"}}], ({"name": "Иван", "type": "individual"},), []),
    ("supplier", [{"value": {"entity_id": 521717}}], ({"entity_id": 521717},), [{"value": {"entity_id": 521717}}]),
    ("linked_entity", [{"value": LINKED}], (LINKED,), [{"value": LINKED}]),
    ("items", [{"value": ITEM | {"total_sum": 21}}], (ITEM | {"total_sum": 21},), [{"value": ITEM}]),
    ("file", [{"value": FILE | {"is_deleted": False}}], (FILE | {"is_deleted": False},), [{"value": FILE}]),
    (
        "chained_list",
        [{"catalog_id": 1001, "catalog_element_id": 12235}, {"catalog_id": 1007, "catalog_element_id": 12243}],
        ({"catalog_id": 1001, "catalog_element_id": 12235}, {"catalog_id": 1007, "catalog_element_id": 12243}),
        [{"catalog_id": 1001, "catalog_element_id": 12235}, {"catalog_id": 1007, "catalog_element_id": 12243}],
    ),
]


def holding(type: str, values: Any, **more: Any) -> dict[str, Any]:
    custom = {"field_id": 31, "field_name": "Поле", "field_code": None, "field_type": type, "is_computed": False}
    return {"id": 5, "custom_fields_values": [{**custom, "values": values, **more}]}


@pytest.mark.parametrize("type, shown, neutral, sent", VALUES, ids=[each[0] for each in VALUES])
def test_a_value_of_every_type_is_read_and_written(
    type: str, shown: list[Any], neutral: tuple[Any, ...], sent: list[Any]
) -> None:
    row = holding(type, shown)
    before = deepcopy(row)
    deal = codec.decode_deal(row, MOSCOW)
    assert deal.raw == before
    (value,) = deal.fields
    assert (value.values, value.field, value.name) == (neutral, Ref(Kind.FIELD, 31), "Поле")
    assert value.type is codec.FIELD_TYPES[type]
    wire = codec.encode_deal(evolve(deal, raw=None), frozenset({"fields"}), MOSCOW)
    (written,) = kommo.DIALECT.resource(Deal).routes["update"].wrap([row_of(wire)])[0]["custom_fields_values"]
    assert written == {"field_id": 31, "values": sent or shown}
    assert codec.decode_deal({"id": 5, **wire}, MOSCOW).fields[0].values == neutral


def row_of(wire: dict[str, Any]) -> Any:
    return Row(number=0, wire=wire, entity=None, id=5)


def test_all_types_of_fields_have_a_word_and_every_word_a_type() -> None:
    assert {type for type, *_ in VALUES} == set(codec.FIELD_TYPES)
    assert {*codec.FIELD_WORDS} == {*FieldType} - {FieldType.OTHER}
    assert all(codec.FIELD_TYPES[word] is type for type, word in codec.FIELD_WORDS.items())


@pytest.mark.parametrize(
    "type, shown, read",
    [
        ("checkbox", 1, (True,)),
        ("checkbox", "0", (False,)),
        ("checkbox", "Y", (True,)),
        ("checkbox", "maybe", ()),
        ("numeric", "около 5", ("около 5",)),
        ("numeric", "NaN", ("NaN",)),
        ("date", "1968-02-20T00:00:00+03:00", (date(1968, 2, 20),)),
        ("date", -58935600, (date(1968, 2, 19),)),
        ("date", 10**18, ()),
        ("date", "вчера", ()),
        ("date_time", "1968-02-20T01:02:03Z", (datetime(1968, 2, 20, 1, 2, 3, tzinfo=UTC),)),
        ("text", "", ()),
        ("text", None, ()),
        ("text", {"odd": 1}, ()),
        ("legal_entity", "odd", ()),
    ],
)
def test_what_is_not_of_its_type_is_told_leniently_or_left_to_raw(type: str, shown: Any, read: Any) -> None:
    row = holding(type, [{"value": shown}])
    assert codec.decode_deal(row, MOSCOW).fields[0].values == read


def test_a_type_that_nobody_knows_and_a_field_without_values_harm_nothing() -> None:
    row = holding("hologram", [{"beam": 1}])
    deal = codec.decode_deal(row, MOSCOW)
    assert (deal.fields, deal.raw["custom_fields_values"][0]["values"]) == ((), [{"beam": 1}])
    assert codec.decode_deal(holding("text", None), MOSCOW).fields[0].values == ()
    for nothing in (None, []):
        assert codec.decode_deal({"id": 5, "custom_fields_values": nothing}, MOSCOW).fields == ()


@pytest.mark.parametrize("seconds", [10**18, -(10**18)])
def test_a_time_that_no_calendar_has_is_unreadable(seconds: int) -> None:
    with pytest.raises(Unreadable, match="no time"):
        codec.decode_deal({"id": 5, "created_at": seconds}, MOSCOW)


def test_days_before_1970_go_as_text_in_utc() -> None:
    born = FieldValue((date(1968, 2, 20), date(1901, 1, 1)), field=Ref(Kind.FIELD, 3), type=FieldType.BIRTHDAY)
    (custom,) = codec.encode_field_values([born], MOSCOW)
    # No seconds in the offset: in 1901 Moscow was 2:30:17 ahead.
    assert [each["value"] for each in custom["values"]] == ["1968-02-19T21:00:00+00:00", "1900-12-31T21:29:43+00:00"]
    at = evolve(born, values=(datetime(1968, 2, 20, tzinfo=UTC),), type=FieldType.DATETIME)
    assert codec.encode_field_values([at], MOSCOW)[0]["values"] == [{"value": "1968-02-20T00:00:00+00:00"}]


@pytest.mark.parametrize(
    "type, content",
    [
        (FieldType.TEXT, Decimal(5)),
        (FieldType.TEXT, ""),
        (FieldType.NUMBER, Decimal("NaN")),
        (FieldType.NUMBER, True),
        (FieldType.BOOL, "да"),
        (FieldType.DATE, datetime(2020, 1, 1, tzinfo=UTC)),
        (FieldType.DATE, "2020-01-01"),
        (FieldType.DATETIME, datetime(2020, 1, 1)),
        (FieldType.DATETIME, date(2020, 1, 1)),
        (FieldType.ADDRESS, "Москва"),
        (FieldType.ADDRESS, {"town": "Москва"}),
        (FieldType.LEGAL, {"name": date(2020, 1, 1)}),
        (FieldType.ITEMS, {}),
        (FieldType.MULTITEXT, {"value": "x", "colour": "red"}),
        (FieldType.OTHER, "x"),
    ],
)
@pytest.mark.asyncio
async def test_what_a_field_cannot_hold_is_refused_and_nothing_is_sent(type: FieldType, content: Any) -> None:
    value = FieldValue((content,), code="X", type=type)
    async with account() as it:
        with pytest.raises(Invalid) as refusal:
            await it.crm.deals.create(Deal(fields=(value,)))
        assert [issue.field for issue in refusal.value.issues] == ["fields"]
        assert it.requests == 0
    kept, lost = carried(kommo.DIALECT, Deal(name="a", fields=(value,)))
    assert (kept, lost) == (Deal(name="a"), {"fields"})
    with pytest.raises(Invalid, match="X: "):
        codec.encode_field_values([value], MOSCOW)


@pytest.mark.asyncio
async def test_fields_of_every_type_a_card_has_are_kept_by_an_account() -> None:
    contents: dict[str, tuple[Any, ...]] = {
        "text": ("да",),
        "textarea": ("раз\nдва",),
        "url": ("https://a.example",),
        "streetaddress": ("Невский, 1",),
        "tracking_data": ("utm",),
        "numeric": (Decimal("12.5"),),
        "monetary": (Decimal("99.90"),),
        "checkbox": (True,),
        "date": (date(2021, 10, 19),),
        "birthday": (date(1995, 7, 1),),
        "date_time": (datetime(2020, 6, 12, 12, 34, 56, tzinfo=UTC),),
        "select": ("Выбор 1",),
        "radiobutton": ("Выбор 2",),
        "multiselect": ("Выбор 1", "Выбор 3"),
        "smart_address": ({"line1": "Невский, 1", "city": "Петербург", "country": "RU"},),
        "legal_entity": (LEGAL,),
        "file": (FILE,),
        "chained_list": ({"catalog_id": 1, "catalog_element_id": 2},),
    }
    async with account() as it:
        values: list[FieldValue] = []
        for type, content in contents.items():
            more = {"currency": "EUR"} if type == "monetary" else {}
            field = await it.field(type, **more, **({"enums": True} if "Выбор" in str(content) else {}))
            assert (field.type, field.raw_type, field.entity) == (codec.FIELD_TYPES[type], type, Kind.DEAL)
            values.append(FieldValue(content, field=field.ref, name=field.name, type=field.type))
        made = await it.crm.deals.create(Deal(name="все", fields=values))
        read = await it.crm.deals.get(made.id or 0)
        assert {value.field: value.values for value in read.fields} == {value.field: value.values for value in values}
        # All of it can be made again.
        copy, lost = it.crm.carried(read)
        assert "fields" not in lost
        again = await it.crm.deals.get((await it.crm.deals.create(copy)).id or 0)
        assert again.fields == read.fields


@pytest.mark.asyncio
async def test_an_update_sends_the_fields_that_changed_and_empties_those_that_went() -> None:
    async with account() as it:
        one, two, three = [await it.field(type) for type in ("text", "textarea", "url")]
        values = tuple(FieldValue((f.raw_type or "",), field=f.ref, type=f.type) for f in (one, two, three))
        made = await it.crm.deals.create(Deal(name="a", fields=values))
        read = await it.crm.deals.get(made.id or 0)
        id = read.id or 0
        row = it.world.row("deal", id)
        # Somebody else changes the second meanwhile.
        theirs = {**row["fields"], str(two.id): [{"value": "их"}]}
        it.world.update("deal", id, {"fields": theirs})
        first = FieldValue(("новое",), field=one.ref, type=one.type)
        await it.crm.deals.update(evolve(read, fields=(first, read.fields[1])))
        read = await it.crm.deals.get(id)
        assert [value.values for value in read.fields] == [("новое",), ("их",)]


@pytest.mark.asyncio
async def test_a_field_is_named_by_its_code_as_well_as_by_its_id() -> None:
    async with account() as it:
        field = Field(entity=Kind.DEAL, name="Код", code="MY_CODE", type=FieldType.TEXT)
        (field,) = await it.crm.run(kommo.create_fields([field]))
        made = await it.crm.deals.create(Deal(name="a", fields=(FieldValue("раз", code="MY_CODE"),)))
        read = await it.crm.deals.get(made.id or 0)
        assert (read.fields[0].field, read.fields[0].code) == (field.ref, "MY_CODE")
        await it.crm.deals.update(evolve(read, fields=(FieldValue("два", code="MY_CODE"),)))
        assert (await it.crm.deals.get(made.id or 0)).fields[0].values == ("два",)
        with pytest.raises(Invalid):
            await it.crm.deals.create(Deal(fields=(FieldValue("без имени"),)))


@pytest.mark.asyncio
async def test_an_option_that_is_none_is_left_to_the_server_and_complained_of_by_field() -> None:
    async with account() as it:
        field = await it.field("select", enums=True)
        with pytest.raises(Rejected) as refusal:
            await it.crm.deals.create(Deal(fields=(FieldValue("нет такого", field=field.ref, type=field.type),)))
        (issue,) = refusal.value.issues
        assert (issue.field, issue.code, issue.path) == (
            "fields",
            "NotSupportedChoice",
            "custom_fields_values.0.values.0.value",
        )


# ----------------------------------------------------------------------------------------- rows as the vendor has them

PERSON = {
    "id": 3,
    "name": "Иван Иванов",
    "first_name": "",
    "last_name": "",
    "responsible_user_id": 504141,
    "group_id": 0,
    "created_by": 0,
    "updated_by": 504141,
    "created_at": 1582117331,
    "updated_at": 1590943929,
    "is_deleted": False,
    "is_unsorted": False,
    "closest_task_at": None,
    "custom_fields_values": [
        {
            "field_id": 3,
            "field_name": "Телефон",
            "field_code": "PHONE",
            "field_type": "multitext",
            "values": [
                {"value": "+79001234567", "enum_id": 1, "enum_code": "WORK"},
                {"value": "12", "enum_id": 9, "enum_code": "SATELLITE"},
            ],
        },
        {"field_id": 5, "field_code": "POSITION", "field_type": "text", "values": [{"value": "CEO"}]},
    ],
    "account_id": 28805383,
    "_links": {"self": {"href": "https://example.amocrm.ru/api/v4/contacts/3"}},
    "_embedded": {
        "tags": [{"id": 1, "name": "VIP", "color": None}],
        "leads": [{"id": 1, "_links": {}}],
        "customers": [{"id": 134923, "_links": {}}],
        "catalog_elements": [{"id": 1, "metadata": {"quantity": 10, "catalog_id": 777}}],
        "companies": [{"id": 1, "_links": {}}],
    },
}
LEAD = {
    "id": 3912171,
    "name": "Example",
    "price": 12,
    "responsible_user_id": 504141,
    "group_id": 0,
    "status_id": 143,
    "pipeline_id": 3104455,
    "loss_reason_id": 4203748,
    "source_id": None,
    "created_by": 504141,
    "updated_by": 504141,
    "created_at": 1585299171,
    "updated_at": 1590683337,
    "closed_at": 1590683337,
    "closest_task_at": None,
    "is_deleted": False,
    "custom_fields_values": None,
    "score": None,
    "account_id": 28805383,
    "labor_cost": 81,
    "is_price_modified_by_robot": False,
    "is_price_computed": False,
    "_embedded": {
        "tags": [],
        "catalog_elements": [{"id": 525439, "metadata": {"quantity": 1, "catalog_id": 4521}}],
        "loss_reason": [{"id": 4203748, "name": "Пропала потребность", "sort": 100000}],
        "companies": [{"id": 10971463}],
        "contacts": [{"id": 10971465, "is_main": True}, {"id": 10971466, "is_main": False}],
        "source": {"id": 1, "name": "Сайт"},
    },
}
TRASHED = {
    "id": 33286485,
    "name": None,
    "price": None,
    "status_id": None,
    "is_deleted": True,
    "updated_by": 1,
    "updated_at": 1753171200,
    "account_id": 1,
}
TASK = {
    "id": 7087,
    "created_by": 3987910,
    "updated_by": 0,
    "created_at": 1575364000,
    "updated_at": 1575364851,
    "responsible_user_id": 123123,
    "group_id": 0,
    "entity_id": None,
    "entity_type": None,
    "duration": 0,
    "is_completed": True,
    "task_type_id": 2,
    "text": "Встретиться",
    "result": [],
    "complete_till": 1575665940,
    "account_id": 321321,
}
NOTE = {
    "id": 42709842,
    "entity_id": 26053794,
    "created_by": 939801,
    "updated_by": 939801,
    "created_at": 1548280113,
    "updated_at": 1548280115,
    "responsible_user_id": 939801,
    "group_id": 0,
    "note_type": "attachment",
    "params": {"is_drive_attachment": True, "text": "a.jpg", "original_name": "a.jpg", "file_uuid": "6905"},
    "account_id": 17079858,
}


def test_rows_are_read_without_loss_and_without_touching_what_was_sent() -> None:
    for row, decode in (
        (PERSON, codec.decode_contact),
        (PERSON, codec.decode_company),
        (LEAD, codec.decode_deal),
        (TRASHED, codec.decode_deal),
        (TASK, codec.decode_task),
        (NOTE, codec.decode_note),
    ):
        before = deepcopy(row)
        read: Any = decode(row, UNDER_A_LEAD)
        assert read.raw == row == before
        assert read.id == row["id"]


def test_a_person_is_read_with_all_that_hangs_on_it() -> None:
    person = codec.decode_contact(PERSON, MOSCOW)
    assert (person.name, person.first_name, person.position) == ("Иван Иванов", None, "CEO")
    assert [(phone.value, phone.label, phone.raw_label) for phone in person.phones] == [
        ("+79001234567", "work", None),
        ("12", "other", "SATELLITE"),
    ]
    assert person.company == Link(Ref(Kind.COMPANY, 1))
    assert (person.deals, person.tags) == ((Link(Ref(Kind.DEAL, 1)),), (Tag("VIP"),))
    assert (person.created_by, person.unread, person.fields) == (Ref(Kind.USER, 0), frozenset(), ())


def test_a_lead_is_read_with_whom_it_is_tied_to_and_a_trashed_one_says_so() -> None:
    lead = codec.decode_deal(LEAD, MOSCOW)
    assert (lead.price, lead.outcome, lead.unread) == (Money(12), "lost", frozenset())
    assert lead.contacts == (Link(Ref(Kind.CONTACT, 10971465), main=True), Link(Ref(Kind.CONTACT, 10971466)))
    gone = codec.decode_deal(TRASHED, MOSCOW)
    assert (gone.deleted, gone.name, gone.price, gone.stage) == (True, None, None, None)
    assert gone.unread == {"contacts", "company"}


def test_the_definition_of_a_field_of_every_type_is_read() -> None:
    for word, type in codec.FIELD_TYPES.items():
        row = {"id": 1, "name": "Поле", "type": word, "entity_type": "leads", "enums": None, "nested": None}
        field = codec.decode_field(row, MOSCOW)
        assert (field.type, field.raw_type, field.entity, field.options, field.raw) == (type, word, Kind.DEAL, (), row)
    unknown = codec.decode_field({"id": 1, "type": "hologram"}, UNDER_A_LEAD)
    assert (unknown.type, unknown.raw_type, unknown.entity) == (FieldType.OTHER, "hologram", Kind.DEAL)
    nested = {"id": 1, "type": "category", "nested": [{"id": 5, "parent_id": None, "value": "Телефоны", "sort": 1}]}
    assert codec.decode_field(nested, UNDER_A_LEAD).options == (Option(id=5, value="Телефоны", sort=1),)


# ------------------------------------------------------------------------------------------------------------- notes

CALL = {"uniq": "u", "duration": 5, "source": "PBX", "link": "https://x.example", "phone": "+7900"}
NOTES: dict[str, dict[str, Any]] = {
    "common": {"text": "Привет"},
    "call_in": CALL | {"call_result": "ok", "call_status": 4, "call_responsible": "Ann"},
    "call_out": CALL,
    "service_message": {"service": "Robot", "text": "Сделано"},
    "extended_service_message": {"service": "Robot", "text": "Сделано"},
    "message_cashier": {"status": "shown", "text": "Чек"},
    "geolocation": {"text": "Тут", "address": "Невский", "longitude": "53.7", "latitude": "91.4"},
    "sms_in": {"text": "Жду", "phone": "+7900"},
    "sms_out": {"text": "Едем", "phone": "+7900"},
    "attachment": {"file_uuid": "u", "version_uuid": "v", "file_name": "a.png"},
}
READ_ONLY = {
    "amomail_message": {"thread_id": "1", "subject": "Тема", "from": {"email": "a@b.example"}, "attach_cnt": 0},
    "targeting_in": {"contacts": [1], "campaign": "c", "service": "s"},
    "site_visit": {"url": "https://x.example"},
    "transaction": {"transaction_id": 5},
    "invoice_paid": {"service": "s", "text": "Оплачено", "icon_url": "https://x.example"},
    "zoom_meeting": {"conference": {}, "recordings": {}},
    "ai_result": {"text": "x", "answer_id": "1", "talk_id": 2, "is_error": False},
    "chat": [],
}


def noted(type: str, params: Any) -> Note:
    known = codec.NOTE_KINDS.get(type, NoteKind.OTHER)
    raw_kind = type if known is NoteKind.OTHER else None
    params = dict(params) if isinstance(params, dict) else {}
    return Note(kind=known, raw_kind=raw_kind, text=params.pop("text", None), params=params)


@pytest.mark.asyncio
async def test_notes_of_every_type_are_written_and_read_back() -> None:
    async with account() as it:
        deal = await it.crm.deals.create(Deal(name="a"))
        notes = [evolve(noted(type, params), target=deal.ref) for type, params in NOTES.items()]
        made = [receipt.made() for receipt in await it.crm.notes.create_many(notes)]
        for note, each in zip(notes, made, strict=True):
            read = await it.crm.notes.get(each.id or 0, target=deal.ref)
            assert (read.kind, read.raw_kind, read.target) == (note.kind, note.raw_kind, deal.ref)
            assert read.params.items() >= note.params.items()
            assert note.text in (read.text, None)
        changed = await it.crm.notes.update(evolve(made[0], text="Пока"))
        assert (await it.crm.notes.get(changed.id or 0, target=deal.ref)).text == "Пока"


@pytest.mark.parametrize("type", READ_ONLY)
@pytest.mark.asyncio
async def test_a_note_that_can_only_be_read_is_read_whole_and_refused_unsent(type: str) -> None:
    row = {"id": 9, "entity_id": 1, "note_type": type, "params": READ_ONLY[type]}
    note = codec.decode_note(row, UNDER_A_LEAD)
    assert (note.kind, note.raw_kind, note.raw) == (
        (NoteKind.MAIL, None, row) if type == "amomail_message" else (NoteKind.OTHER, type, row)
    )
    assert {**note.params, **({"text": note.text} if note.text else {})} == dict(READ_ONLY[type])
    async with account() as it:
        with pytest.raises(Invalid) as refusal:
            await it.crm.notes.create(evolve(note, id=None, raw=None))
        assert "kind" in [issue.field for issue in refusal.value.issues]
        with pytest.raises(Invalid, match=type):
            await it.crm.notes.update(evolve(note, text="другое"))
        assert it.requests == 0
    kept, lost = carried(kommo.DIALECT, note)
    assert (kept.kind, kept.text, kept.params) == (NoteKind.TEXT, note.text or type, {})
    assert "kind" in lost or "raw_kind" in lost


@pytest.mark.asyncio
async def test_a_note_needs_a_target_and_its_params() -> None:
    async with account() as it:
        with pytest.raises(Invalid) as refusal:
            await it.crm.notes.create(Note(text="x"))
        assert [issue.field for issue in refusal.value.issues] == ["target"]
        for target in (Ref(Kind.TASK, 1), Ref(Kind.DEAL, None)):
            with pytest.raises(Invalid):
                await it.crm.notes.create(Note(text="x", target=target))
        with pytest.raises(Invalid, match="target"):
            await it.crm.notes.update(Note(id=5, text="x"))
        assert it.requests == 0
        deal = await it.crm.deals.create(Deal(name="a"))
        with pytest.raises(Rejected) as told:
            await it.crm.notes.create(Note(kind=NoteKind.CALL_IN, params={"uniq": "u"}, target=deal.ref))
        assert {issue.field for issue in told.value.issues} == {"params"}


# ----------------------------------------------------------------------------------------------- what is known to fail


@pytest.mark.parametrize("amount", ["10.50", "NaN", "Infinity", "1" * 40 + ".5"])
@pytest.mark.asyncio
async def test_a_price_that_is_no_whole_number_is_refused_and_nothing_is_sent(amount: str) -> None:
    async with account() as it:
        with pytest.raises(Invalid) as refusal:
            await it.crm.deals.create(Deal(price=Money(amount)))
        assert [issue.field for issue in refusal.value.issues] == ["price"]
        assert it.requests == 0


@pytest.mark.asyncio
async def test_a_stage_of_another_pipeline_is_complained_of_as_the_stage() -> None:
    async with account() as it:
        one, other = [pipeline async for pipeline in it.crm.pipelines.list()][:2]
        wrong = Deal(name="a", pipeline=one, stage=other.stages[1])
        with pytest.raises(Rejected) as refusal:
            await it.crm.deals.create(wrong)
        assert [(issue.field, issue.path) for issue in refusal.value.issues] == [("stage", "status_id")]


@pytest.mark.asyncio
async def test_a_link_and_a_task_need_the_id_of_a_row() -> None:
    async with account() as it:
        for row in (
            Deal(contacts=(Link(Ref(Kind.CONTACT, None), name="Иван"),)),
            Deal(company="ООО Рога"),
            Task(text="a", due=it.clock.now(), target=Ref(Kind.DEAL, None)),
        ):
            with pytest.raises(Invalid):
                await it.crm.of(type(row)).create(row)
        assert it.requests == 0


# ------------------------------------------------------------------------------------------------- links on an update


async def people(it: Trial, *names: str) -> list[Contact]:
    return [await it.crm.contacts.create(Contact(name=name)) for name in names]


@pytest.mark.asyncio
async def test_an_update_ties_and_unties_a_deal_and_leaves_who_was_not_named() -> None:
    async with account() as it:
        anna, boris, vera = await people(it, "А", "Б", "В")
        firm, other = [await it.crm.companies.create(Company(name=name)) for name in ("Ф", "Г")]
        made = await it.crm.deals.create(Deal(name="a", contacts=(anna, boris), company=firm))
        read = await it.crm.deals.get(made.id or 0)
        assert read.contacts == (Link(anna.ref, main=True), Link(boris.ref))
        # Somebody else ties a fourth one meanwhile.
        await it.crm.run(kommo.link([(made, vera)]))
        dora = (await people(it, "Д"))[0]
        told = await it.crm.deals.update(evolve(read, contacts=(Link(dora.ref, main=True), boris), company=other))
        assert told.contacts == (Link(dora.ref, main=True), Link(boris.ref))
        read = await it.crm.deals.get(made.id or 0)
        assert {link.ref: link.main for link in read.contacts} == {dora.ref: True, boris.ref: False, vera.ref: False}
        assert read.company == Link(other.ref)
        # What was written is what the next update is compared with.
        await it.crm.deals.update(evolve(told, contacts=(), company=None))
        read = await it.crm.deals.get(made.id or 0)
        assert ([link.ref for link in read.contacts], read.company) == ([vera.ref], None)


@pytest.mark.asyncio
async def test_a_contact_changes_its_company_and_leaves_it() -> None:
    async with account() as it:
        firm, other = [await it.crm.companies.create(Company(name=name)) for name in ("Ф", "Г")]
        made = await it.crm.contacts.create(Contact(name="А", company=firm))
        read = await it.crm.contacts.get(made.id or 0)
        told = await it.crm.contacts.update(evolve(read, company=other))
        assert (await it.crm.contacts.get(made.id or 0)).company == Link(other.ref)
        await it.crm.contacts.update(told, clear={"company"})
        assert (await it.crm.contacts.get(made.id or 0)).company is None


@pytest.mark.asyncio
async def test_who_was_never_read_cannot_be_untied_but_can_be_tied() -> None:
    async with account() as it:
        (anna,) = await people(it, "А")
        made = await it.crm.deals.create(Deal(name="a"))
        before = it.requests
        with pytest.raises(IncompleteRead) as refusal:
            await it.crm.deals.update(Deal(id=made.id), clear={"contacts"})
        assert (refusal.value.sections, it.requests) == (("contacts",), before)
        await it.crm.deals.update(Deal(id=made.id, contacts=(anna,)))
        assert (await it.crm.deals.get(made.id or 0)).contacts == (Link(anna.ref, main=True),)


@pytest.mark.asyncio
async def test_a_tie_that_is_refused_leaves_the_row_changed_and_says_so() -> None:
    async with account() as it:
        made = await it.crm.deals.create(Deal(name="a"))
        with pytest.raises(PartlyDone) as told:
            await it.crm.deals.update(evolve(made, name="b", contacts=(Link(Ref(Kind.CONTACT, 7)),)))
        assert [issue.field for issue in told.value.issues] == ["contacts"]
        assert (await it.crm.deals.get(made.id or 0)).name == "b"


@pytest.mark.asyncio
async def test_many_deals_are_tied_in_one_request_more() -> None:
    async with account() as it:
        (anna,) = await people(it, "А")
        made = [receipt.made() for receipt in await it.crm.deals.create_many([Deal(name=str(n)) for n in range(40)])]
        before = it.requests
        receipts = await it.crm.deals.update_many([evolve(deal, contacts=(anna,)) for deal in made])
        assert all(isinstance(receipt, Made) and not receipt.issues for receipt in receipts)
        assert it.requests - before == 2
        assert it.calls["POST /api/v4/leads/link"] == 1


# ------------------------------------------------------------------------------------------------------ link, unlink


@pytest.mark.asyncio
async def test_rows_are_linked_from_either_side_listed_and_parted() -> None:
    async with account() as it:
        anna, boris = await people(it, "А", "Б")
        firm = await it.crm.companies.create(Company(name="Ф"))
        deal = await it.crm.deals.create(Deal(name="a"))
        ties = [(anna, deal), kommo.Tie(deal, boris, main=True), (firm, deal), (anna.ref, firm.ref)]
        await it.crm.run(kommo.link(ties))
        found = await it.crm.run(kommo.links(deal, anna))
        assert set(found) == {
            kommo.Tie(deal, boris, main=True),
            kommo.Tie(deal, anna),
            kommo.Tie(deal, firm),
            kommo.Tie(anna, firm),
        }
        await it.crm.run(kommo.unlink([(boris, deal), (firm, anna)]))
        await it.crm.run(kommo.unlink([(boris, deal)]))
        found = await it.crm.run(kommo.links(deal, anna))
        assert set(found) == {kommo.Tie(deal, anna, main=True), kommo.Tie(deal, firm)}
        assert await it.crm.run(kommo.links(boris)) == ()
        assert await it.crm.run(kommo.links()) == ()


@pytest.mark.asyncio
async def test_an_element_of_a_catalog_is_linked_with_its_quantity() -> None:
    async with account() as it:
        deal = await it.crm.deals.create(Deal(name="a"))
        phone = (await it.crm.run(kommo.elements(4521)))[0]
        await it.crm.run(kommo.link([kommo.Tie(deal, phone.point, quantity=Decimal(3))]))
        assert await it.crm.run(kommo.links(deal)) == (kommo.Tie(deal, phone.point, quantity=Decimal(3)),)
        (row,) = await it.crm.run(kommo.read_rows("leads", with_=("catalog_elements",)))
        assert row["_embedded"]["catalog_elements"][0]["metadata"] == {"quantity": 3, "catalog_id": 4521}
        await it.crm.run(kommo.unlink([(phone.point, deal)]))
        assert await it.crm.run(kommo.links(deal)) == ()


@pytest.mark.parametrize(
    "tie",
    [
        (Ref(Kind.CONTACT, 1), Ref(Kind.CONTACT, 2)),
        (Ref(Kind.DEAL, 1), Ref(Kind.TASK, 2)),
        (Ref(Kind.DEAL, None), Ref(Kind.CONTACT, 2)),
        (Ref(Kind.DEAL, 1), kommo.Point("customers", 5)),
        (Ref(Kind.DEAL, 1), kommo.Point("catalog_elements", 5)),
    ],
)
@pytest.mark.asyncio
async def test_a_pair_that_cannot_be_linked_is_refused_and_nothing_is_sent(tie: Any) -> None:
    async with account() as it:
        with pytest.raises(Invalid):
            await it.crm.run(kommo.link([(Ref(Kind.DEAL, 1), Ref(Kind.CONTACT, 1)), tie]))
        assert it.requests == 0


@pytest.mark.asyncio
async def test_a_link_to_nobody_is_rejected() -> None:
    async with account() as it:
        deal = await it.crm.deals.create(Deal(name="a"))
        with pytest.raises(Rejected) as refusal:
            await it.crm.run(kommo.link([(deal, Ref(Kind.CONTACT, 7))]))
        assert [issue.path for issue in refusal.value.issues] == ["to_entity_id"]


# ------------------------------------------------------------------------------------------------------ complex leads


@pytest.mark.asyncio
async def test_leads_are_made_with_their_people_in_one_request() -> None:
    async with account(switches={"shuffle-answers": True}) as it:
        (anna,) = await people(it, "А")
        before = it.requests
        made = await it.crm.run(
            kommo.complex_leads(
                [
                    kommo.Complex(
                        Deal(name="новая", price=Money(100), tags=("t",)),
                        contact=Contact(name="Новый", phones=("+7900",)),
                        company=Company(name="Фирма"),
                    ),
                    kommo.Complex(Deal(name="старая"), contact=anna.ref),
                    Deal(name="с именем", contacts=(anna,)),
                    Deal(name="одна"),
                ]
            )
        )
        assert it.requests - before == 1
        deals = [await it.crm.deals.get(each.deal.id or 0) for each in made]
        assert [deal.name for deal in deals] == ["новая", "старая", "с именем", "одна"]
        assert [each.merged for each in made] == [False] * 4
        assert [each.contact for each in made[1:]] == [anna.ref, anna.ref, None]
        person = await it.crm.contacts.get(made[0].contact.id or 0 if made[0].contact else 0)
        assert (person.name, person.phones, person.company) == (
            "Новый",
            (Phone("+7900"),),
            Link(made[0].company or anna.ref),
        )
        assert deals[0].tags == (Tag("t"),)
        assert await it.crm.run(kommo.complex_leads([])) == ()


@pytest.mark.asyncio
async def test_a_complex_lead_with_metadata_waits_among_the_incoming_ones() -> None:
    async with account() as it:
        metadata = {"category": "forms", "form_id": "f7", "form_name": "Сайт"}
        given = kommo.Complex(Deal(name="заявка"), contact=Contact(name="Гость"), metadata=metadata)
        (made,) = await it.crm.run(kommo.complex_leads([given]))
        waiting = [each for each in await it.crm.run(kommo.unsorted()) if made.deal in each.deals]
        assert [(each.category, each.metadata["form_id"], each.contacts) for each in waiting] == [
            ("forms", "f7", (made.contact,))
        ]
        with pytest.raises(Rejected) as refusal:
            await it.crm.run(kommo.complex_leads([evolve(given, metadata={"category": "pigeon"})]))
        assert [issue.path for issue in refusal.value.issues] == ["_embedded.metadata.category"]


@pytest.mark.asyncio
async def test_a_complex_lead_that_breaks_a_rule_is_refused_and_nothing_is_sent() -> None:
    person = Contact(name="А")
    firm = Ref(Kind.COMPANY, 1)
    many = tuple(FieldValue("x", code=f"C{n}") for n in range(41))
    async with account() as it:
        for wrong in (
            [Deal(name="a")] * 51,
            [kommo.Complex(Deal(id=5, name="a"))],
            [kommo.Complex(Deal(name="a"), contact=evolve(person, id=5))],
            [kommo.Complex(Deal(name="a"), contact=evolve(person, company=Link(firm)))],
            [Deal(price=Money("1.5"))],
            [Deal(fields=many)],
            [Deal(contacts=(Link(Ref(Kind.CONTACT, 1)), Link(Ref(Kind.CONTACT, 2))))],
        ):
            with pytest.raises(Invalid):
                await it.crm.run(kommo.complex_leads(wrong))
        assert it.requests == 0
        with pytest.raises(Rejected) as refusal:
            await it.crm.run(kommo.complex_leads([Deal(name="a"), kommo.Complex(Deal(), company=firm)]))
        assert [(issue.row, issue.path) for issue in refusal.value.issues] == [(1, "_embedded.companies.0.id")]


@pytest.mark.asyncio
async def test_an_answer_that_does_not_name_a_complex_lead_leaves_it_unknown() -> None:
    answer = [{"id": 1, "request_id": ["other"], "merged": False}]
    async with account(transport=spoiled("/leads/complex", answer)) as it:
        with pytest.raises(AmbiguousWrite):
            await it.crm.run(kommo.complex_leads([Deal(name="a")]))
    # Models that were generated from the vendor's page expect an envelope.
    answer = {"_embedded": {"leads": [{"id": 1, "contact_id": None, "request_id": ["1"], "merged": True}]}}
    async with account(transport=spoiled("/leads/complex", answer)) as it:
        (made,) = await it.crm.run(kommo.complex_leads([Deal(name="a")]))
        assert made == kommo.ComplexMade(deal=Ref(Kind.DEAL, 1), contact=None, company=None, merged=True)


# ------------------------------------------------------------------------------------------------------- vocabularies


@pytest.mark.asyncio
async def test_pipelines_and_stages_are_made_changed_and_deleted() -> None:
    async with account() as it:
        stages = (Stage(name="Начало", color="#fffeb2"), Stage(id=142, name="Ура"), Stage(name="Середина", sort=50))
        (made,) = await it.crm.run(kommo.create_pipelines([Pipeline(name="Своя", stages=stages)]))
        assert [stage.name for stage in made.stages] == ["Incoming leads", "Начало", "Середина", "Ура", "Closed - lost"]
        changed = await it.crm.run(kommo.update_pipeline(evolve(made, name="Наша")))
        assert (changed.name, changed.sort, len(changed.stages)) == ("Наша", made.sort, 5)
        before = it.requests
        assert await it.crm.run(kommo.update_pipeline(changed)) == changed
        assert it.requests == before
        (late,) = await it.crm.run(kommo.create_stages(changed, [Stage(name="Поздно", sort=60)]))
        late = await it.crm.run(kommo.update_stage(changed, evolve(late, color="#DEFF81")))
        assert (late.name, late.color) == ("Поздно", "#deff81")
        found = await it.crm.run(kommo.stages(changed, with_=("descriptions",)))
        assert (found[3].name, found[3].raw["descriptions"]) == ("Поздно", [])
        await it.crm.run(kommo.delete_stage(changed, late))
        with pytest.raises(NotFound):
            await it.crm.run(kommo.delete_stage(changed, late))
        deal = await it.crm.deals.create(Deal(name="a", pipeline=changed))
        with pytest.raises(Rejected, match="pipelines without leads"):
            await it.crm.run(kommo.delete_pipeline(changed))
        it.world.update("deal", deal.id or 0, {"deleted": True})
        await it.crm.pipelines.delete(changed.id or 0)
        for gone in (it.crm.pipelines.delete(changed.id or 0), it.crm.run(kommo.delete_pipeline(changed.ref))):
            with pytest.raises(NotFound):
                await gone


@pytest.mark.asyncio
async def test_a_stage_of_a_colour_that_is_none_is_refused_and_nothing_is_sent() -> None:
    assert len(set(kommo.COLORS)) == 21
    async with account() as it:
        wrong = Stage(name="a", color="#123456")
        for flow in (
            kommo.create_pipelines([Pipeline(name="a", stages=(wrong,))]),
            kommo.create_stages(5, [wrong]),
            kommo.update_stage(5, evolve(wrong, id=7)),
        ):
            with pytest.raises(Invalid, match="COLORS"):
                await it.crm.run(flow)
        with pytest.raises(Invalid):
            await it.crm.run(kommo.create_pipelines([Pipeline(id=5, name="a")]))
        with pytest.raises(Invalid):
            await it.crm.run(kommo.delete_pipeline(Ref(Kind.STAGE, 5)))
        assert it.requests == 0


@pytest.mark.parametrize("bare", [True, False])
@pytest.mark.asyncio
async def test_custom_fields_are_made_changed_and_deleted(bare: bool) -> None:
    async with account(switches={"bare-field-create": bare}) as it:
        given = [
            Field(entity=Kind.DEAL, name="Тип", type=FieldType.SELECT, options=(Option(value="А"), Option(value="Б"))),
            Field(entity=Kind.CONTACT, name="Город рождения"),
            Field(entity=Kind.DEAL, name="Заметка", type=FieldType.TEXTAREA, code="NOTE"),
        ]
        made = await it.crm.run(kommo.create_fields(given))
        assert [(field.entity, field.name, field.type) for field in made] == [
            (field.entity, field.name, field.type) for field in given
        ]
        select = await it.crm.run(kommo.field_of(Kind.DEAL, made[0]))
        assert (select, made[2].code) == (made[0], "NOTE")
        options = (*select.options[:1], Option(value="В"))
        changed = await it.crm.run(kommo.update_field(evolve(select, name="Вид", options=options)))
        assert (changed.name, [option.value for option in changed.options]) == ("Вид", ["А", "В"])
        assert changed.options[0].id == select.options[0].id
        before = it.requests
        await it.crm.run(kommo.update_field(changed))
        assert it.requests == before
        await it.crm.run(kommo.delete_field(Kind.DEAL, changed))
        for flow in (kommo.delete_field(Kind.DEAL, changed), kommo.field_of(Kind.DEAL, changed.ref)):
            with pytest.raises(NotFound):
                await it.crm.run(flow)


@pytest.mark.asyncio
async def test_a_field_that_was_answered_bare_is_taken_as_the_one_that_was_made() -> None:
    answer = {"id": 1016236, "name": "Client Type", "type": "select", "enums": [{"id": 1, "value": "New", "sort": 500}]}
    async with account(transport=spoiled("/leads/custom_fields", answer, 201)) as it:
        given = Field(entity=Kind.DEAL, name="Client Type", type=FieldType.SELECT, options=(Option(value="New"),))
        (made,) = await it.crm.run(kommo.create_fields([given]))
        assert (made.id, made.options[0].id, made.entity) == (1016236, 1, Kind.DEAL)


@pytest.mark.asyncio
async def test_a_field_of_money_without_a_currency_is_complained_of() -> None:
    async with account() as it:
        money = Field(entity=Kind.DEAL, name="Сбор", type=FieldType.MONEY)
        with pytest.raises(Rejected) as refusal:
            await it.crm.run(kommo.create_fields([money]))
        assert [(issue.row, issue.path) for issue in refusal.value.issues] == [(0, "currency")]
        (made,) = await it.crm.run(kommo.create_fields([money], currency="EUR"))
        assert (made.type, made.raw["currency"]) == (FieldType.MONEY, "EUR")
        with pytest.raises(Invalid):
            await it.crm.run(kommo.create_fields([Field(entity=Kind.TASK, name="a")]))
        with pytest.raises(Invalid):
            await it.crm.run(kommo.create_fields([made]))


@pytest.mark.asyncio
async def test_tags_are_listed_made_and_renamed() -> None:
    async with account() as it:
        made = await it.crm.run(kommo.create_tags(Kind.DEAL, ["раз", Tag("два")], color="#ddebb5"))
        assert await it.crm.run(kommo.create_tags(Kind.DEAL, ["раз"])) == made[:1]
        assert await it.crm.run(kommo.tags(Kind.DEAL)) == made
        assert await it.crm.run(kommo.tags(Kind.DEAL, names=["два"])) == made[1:]
        assert await it.crm.run(kommo.tags(Kind.DEAL, ids=[made[0].id or 0])) == made[:1]
        assert await it.crm.run(kommo.tags(Kind.DEAL, text="дв")) == made[1:]
        assert await it.crm.run(kommo.tags(Kind.CONTACT)) == ()
        deal = await it.crm.deals.create(Deal(name="a", tags=("раз",)))
        (renamed,) = await it.crm.run(kommo.update_tags([evolve(made[0], name="один")]))
        assert renamed.id == made[0].id
        assert (await it.crm.deals.get(deal.id or 0)).tags == (Tag("один"),)
        with pytest.raises(Invalid):
            await it.crm.run(kommo.tags(Kind.TASK))


@pytest.mark.asyncio
async def test_users_are_let_in_and_their_passwords_do_not_show() -> None:
    new = kommo.NewUser(name="Новый Человек", email="new@roga.example", password="Secret12")
    assert "Secret12" not in repr(new)
    async with account() as it:
        (made,) = await it.crm.run(kommo.create_users([evolve(new, rights={"is_admin": True})]))
        assert (made.name, made.admin) == ("Новый Человек", True)
        assert (await it.crm.users.get(made.id or 0)).email == "new@roga.example"
        with pytest.raises(Rejected) as refusal:
            await it.crm.run(kommo.create_users([evolve(new, password="короткий")]))
        assert [issue.path for issue in refusal.value.issues] == ["password"]
        before = it.requests
        with pytest.raises(Invalid, match="10"):
            await it.crm.run(kommo.create_users([new] * 11))
        assert await it.crm.run(kommo.create_users([])) == ()
        assert it.requests == before


@pytest.mark.asyncio
async def test_what_only_an_admin_may_is_told_so_to_others() -> None:
    async with account() as it:
        other = next(user for user in it.world.select("user") if not user["admin"])
        token = grants(it.run.account).mint_long_lived(user=other["id"])
        async with connect(
            "kommo", base_url=it.run.base_url, credentials=token, rate=(), transport=it.run.transport(), clock=it.clock
        ) as crm:
            for flow in (kommo.roles(), kommo.subscriptions(), kommo.delete_pipeline(1)):
                with pytest.raises(AuthFailed):
                    await crm.run(flow)


@pytest.mark.asyncio
async def test_roles_and_loss_reasons_are_read() -> None:
    async with account() as it:
        (role,) = await it.crm.run(kommo.roles())
        assert (role.name, role.rights["leads"]["view"], role.users) == ("Отдел продаж", "A", ())
        reasons = await it.crm.run(kommo.loss_reasons())
        assert [reason.name for reason in reasons] == ["Дорого", "Выбрали других"]


# ----------------------------------------------------------------------------------------------------- subscriptions


@pytest.mark.asyncio
async def test_an_address_is_subscribed_changed_and_unsubscribed() -> None:
    async with account() as it:
        url = "https://example.com/hook/secret"
        assert await it.crm.run(kommo.subscriptions()) == ()
        made = await it.crm.run(kommo.subscribe(url, ["add_lead", "note_lead"]))
        # The answer has an object, the list has a list: they read the same.
        assert (made.destination, made.settings, made.active) == (url, ("add_lead", "note_lead"), True)
        assert await it.crm.run(kommo.subscriptions()) == (made,)
        again = await it.crm.run(kommo.subscribe(url, "add_task", sort=5))
        assert (again.id, again.settings) == (made.id, ("add_task",))
        assert await it.crm.run(kommo.subscriptions(url)) == (again,)
        assert await it.crm.run(kommo.subscriptions("https://example.com/")) == ()
        await it.crm.run(kommo.unsubscribe(url))
        with pytest.raises(NotFound):
            await it.crm.run(kommo.unsubscribe(url))
        with pytest.raises(Rejected) as refusal:
            await it.crm.run(kommo.subscribe(url, ["add_leed"]))
        assert [issue.path for issue in refusal.value.issues] == ["settings.0"]
        before = it.requests
        with pytest.raises(Invalid):
            await it.crm.run(kommo.subscribe(url, []))
        assert it.requests == before


# --------------------------------------------------------------------------------- events, incoming leads, catalogs


@pytest.mark.asyncio
async def test_events_tell_what_was_done_and_are_asked_for_by_what_matters() -> None:
    async with account() as it:
        start = it.clock.now()
        (pipeline, *_) = [each async for each in it.crm.pipelines.list()]
        deal = await it.crm.deals.create(Deal(name="a", pipeline=pipeline, stage=pipeline.stages[1]))
        other = await it.crm.contacts.create(Contact(name="А"))
        it.clock.advance(60)
        await it.crm.deals.update(evolve(deal, stage=pipeline.stages[2], price=Money(5)))
        found = await it.crm.run(kommo.events(about=deal.ref))
        assert {event.type for event in found} == {"lead_added", "lead_status_changed", "sale_field_changed"}
        moved = next(event for event in found if event.type == "lead_status_changed")
        assert moved.about == deal.ref
        assert moved.at == start + timedelta(seconds=60)
        assert moved.by == Ref(Kind.USER, it.world.admin["id"])
        assert moved.before == ({"lead_status": {"id": pipeline.stages[1].id, "pipeline_id": pipeline.id}},)
        assert moved.after == ({"lead_status": {"id": pipeline.stages[2].id, "pipeline_id": pipeline.id}},)
        assert moved.raw["_embedded"]["entity"]["id"] == deal.id
        since = await it.crm.run(kommo.events(since=start + timedelta(seconds=1)))
        assert {event.type for event in since} == {"lead_status_changed", "sale_field_changed"}
        assert len(await it.crm.run(kommo.events(most=1))) == 1
        assert [event.about for event in await it.crm.run(kommo.events(kinds=[Kind.CONTACT]))] == [other.ref]
        asked = kommo.events(types=["lead_added", "contact_added"], by=[Ref(Kind.USER, it.world.admin["id"])])
        assert len(await it.crm.run(asked)) == 2
        assert await it.crm.run(kommo.events(by=[Ref(Kind.USER, 7)])) == ()
        before = it.requests
        for flow in (
            kommo.events(about=[deal.ref, other.ref]),
            kommo.events(about=[deal.ref] * 11),
            kommo.events(kinds=[Kind.NOTE]),
            kommo.events(since=datetime(2026, 1, 1)),
        ):
            with pytest.raises(Invalid):
                await it.crm.run(flow)
        assert it.requests == before


@pytest.mark.asyncio
async def test_incoming_leads_are_read() -> None:
    async with account() as it:
        phone, form = await it.crm.run(kommo.unsorted())
        assert (phone.category, phone.metadata["phone"], phone.deals) == ("sip", "79990001122", ())
        assert await it.crm.run(kommo.unsorted(categories=["forms"])) == (form,)
        assert await it.crm.run(kommo.unsorted(uids=[phone.uid], pipeline=phone.pipeline)) == (phone,)
        assert await it.crm.run(kommo.unsorted(pipeline=7)) == ()


@pytest.mark.asyncio
async def test_catalogs_and_their_elements_are_read_with_fields_of_their_own_types() -> None:
    async with account() as it:
        goods, empty = await it.crm.run(kommo.catalogs())
        assert (goods.name, goods.type, empty.type) == ("Товары", "products", "regular")
        phone, case = await it.crm.run(kommo.elements(goods))
        assert (phone.name, phone.catalog, phone.point) == (
            "Телефон",
            goods.id,
            kommo.Point("catalog_elements", phone.id, goods.id),
        )
        assert [(value.type, value.values) for value in phone.fields] == [
            (FieldType.TEXT, ("sku-525439",)),
            (FieldType.MONEY, (Decimal("12.50"),)),
            (FieldType.SELECT, ("Телефоны",)),
            (FieldType.LINKED, ({"entity_id": 521717},)),
        ]
        assert await it.crm.run(kommo.elements(goods, text="чех")) == (case,)
        assert await it.crm.run(kommo.elements(goods, ids=[phone.id])) == (phone,)
        assert await it.crm.run(kommo.elements(empty)) == ()
        with pytest.raises(NotFound):
            await it.crm.run(kommo.elements(7))


# -------------------------------------------------------------------------------------------------- notes, the rest


@pytest.mark.asyncio
async def test_a_note_is_pinned_and_unpinned() -> None:
    async with account() as it:
        deal = await it.crm.deals.create(Deal(name="a"))
        note = await it.crm.notes.create(Note(text="x", target=deal))
        for flow, pinned in ((kommo.pin_note, True), (kommo.unpin_note, False)):
            await it.crm.run(flow(note))
            (row,) = await it.crm.run(kommo.read_rows("leads/notes", with_=("is_pinned",)))
            assert row["is_pinned"] is pinned
        with pytest.raises(NotFound):
            await it.crm.run(kommo.pin_note(evolve(note, id=7)))
        for wrong in (evolve(note, target=None), evolve(note, id=None)):
            with pytest.raises(Invalid):
                await it.crm.run(kommo.pin_note(wrong))


@pytest.mark.asyncio
async def test_anything_else_is_read_as_it_came() -> None:
    async with account() as it:
        reason = it.world.select("loss_reason")[0]
        made = [r.made() for r in await it.crm.deals.create_many([Deal(name=str(n), price=Money(n)) for n in range(9)])]
        it.world.update("deal", made[5].id or 0, {"loss_reason_id": reason["id"]})
        query = {"filter": {"price": {"from": 5, "to": 6}, "id": [deal.id for deal in made]}, "order": {"id": "desc"}}
        rows = await it.crm.run(kommo.read_rows("leads", with_=("loss_reason", "contacts"), query=query))
        assert [row["name"] for row in rows] == ["6", "5"]
        assert rows[1]["_embedded"]["loss_reason"][0]["name"] == reason["name"]
        every = await it.crm.run(kommo.read_rows("leads", limit=2, query={"order": {"id": "asc"}}))
        assert [row["id"] for row in every] == [deal.id for deal in made]
        assert len(await it.crm.run(kommo.read_rows("leads", limit=2, most=3))) == 3
        since = {"filter": {"updated_at": {"from": it.clock.now() + timedelta(days=1)}}}
        assert await it.crm.run(kommo.read_rows("leads", query=since)) == ()
        shown = await it.crm.run(kommo.read_row("account", with_=("task_types",)))
        assert shown["_embedded"]["task_types"][0]["id"] == 1
        row = await it.crm.run(kommo.read_row(f"leads/{made[0].id}"))
        assert row["name"] == "0"
        with pytest.raises(NotFound):
            await it.crm.run(kommo.read_row("leads/7"))
        with pytest.raises(Unreadable):
            await it.crm.run(kommo.read_rows("account"))


@pytest.mark.asyncio
async def test_a_next_link_on_every_page_does_not_lead_in_circles() -> None:
    async with account(switches={"next-on-last-page": True}) as it:
        await it.crm.deals.create_many([Deal(name=str(n)) for n in range(5)])
        assert len(await it.crm.run(kommo.read_rows("leads", limit=2))) == 5
    links = {"next": {"href": "/api/v4/leads?page=2"}}
    page = {"_links": links, "_embedded": {"leads": [{"id": 1}]}}
    async with account(transport=spoiled("/leads", page)) as it:
        with pytest.raises(Unreadable, match="same page"):
            await it.crm.run(kommo.read_rows("leads"))


def test_brackets_are_what_php_reads() -> None:
    flow = kommo.read_rows("leads", query={"filter": {"id": [1, 2], "done": True, "none": None}}, with_="contacts")
    call = next(flow)
    assert isinstance(call, Call)
    assert call.query[:4] == (
        ("filter[id][0]", "1"),
        ("filter[id][1]", "2"),
        ("filter[done]", "1"),
        ("with", "contacts"),
    )
    assert call.safe
    with pytest.raises(StopIteration) as end:
        flow.send(Reply(204))
    assert end.value.value == ()


def test_what_a_fresh_answer_does_not_name_is_unknown() -> None:
    flow = kommo.create_tags(Kind.DEAL, ["a", "b"])
    call = next(flow)
    assert isinstance(call, Call)
    assert [row["request_id"] for row in call.body] == ["1", "2"]
    with pytest.raises(AmbiguousWrite):
        flow.send(Reply(200, body={"_embedded": {"tags": [{"id": 5, "name": "a", "request_id": "1"}]}}))


@pytest.mark.asyncio
async def test_an_element_that_came_damaged_is_unreadable_with_its_row() -> None:
    page = {"_embedded": {"elements": [{"id": 1, "name": {"odd": 1}}]}}
    async with account(transport=spoiled("/elements", page)) as it:
        with pytest.raises(Unreadable) as told:
            await it.crm.run(kommo.elements(4521))
        assert told.value.raw == {"id": 1, "name": {"odd": 1}}


@pytest.mark.asyncio
async def test_reading_only_writes_nothing() -> None:
    async with account(read_only=True) as it:
        for flow in (kommo.subscribe("https://example.com/x", ["add_lead"]), kommo.create_tags(Kind.DEAL, ["a"])):
            with pytest.raises(ReadOnly):
                await it.crm.run(flow)
        assert await it.crm.run(kommo.tags(Kind.DEAL)) == ()
        assert it.calls == {"GET /api/v4/leads/tags": 1}
