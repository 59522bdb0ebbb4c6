"""The XML adapter over its sandbox: every page and ACTION of the seed, both logins, and the answers nobody has shown."""

import warnings
from asyncio import sleep
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cache
from urllib.parse import parse_qsl
from zoneinfo import ZoneInfo

import httpx
import pytest

from crmclient import (
    AmbiguousWrite,
    AuthFailed,
    Company,
    Contact,
    Deal,
    Email,
    FieldType,
    FieldValue,
    Filter,
    IncompleteRead,
    Invalid,
    Kind,
    Label,
    Limits,
    Link,
    Made,
    Money,
    Note,
    NotFound,
    PartlyDone,
    Phone,
    ReadOnly,
    Ref,
    Rejected,
    Task,
    Unavailable,
    Unreadable,
    Unsupported,
    Verb,
    connect,
    evolve,
)
from crmclient.auth import Login, LoginEachCall
from crmclient.client import InsecureTransport
from crmclient.clock import FakeClock
from crmclient.dialect import Call, Context, Reply
from crmclient.formats import FormsInXmlOut
from crmclient.sandbox.server import in_process
from crmclient.sandbox.world import World, populate
from crmclient_amoxml import DIALECT, Words, companies, speaking, users, wire
from crmclient_amoxml.sandbox import FACE, logins

MOSCOW = ZoneInfo("Europe/Moscow")
NINE_IN_MOSCOW = datetime(2026, 4, 1, 6, 0, tzinfo=UTC)
CALL = Ref(Kind.TASK_TYPE, "CALL")


class Wire(httpx.AsyncBaseTransport):
    """What went over it, as (page, fields), the last word on what was sent; and, if asked, another answer."""

    def __init__(self, running):
        self._inner = running.transport()
        self.sent = []
        self.instead = {}
        self.at_once = self.most_at_once = 0

    async def handle_async_request(self, request):
        page = request.url.path.rpartition("/")[2]
        assert request.method == "POST"
        assert not request.url.query
        self.sent.append((page, dict(parse_qsl(request.content.decode(), keep_blank_values=True))))
        if page in self.instead:
            status, body = self.instead[page]
            return httpx.Response(status, stream=httpx.ByteStream(body.encode()), headers={"content-type": "text/xml"})
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await sleep(0)
            return await self._inner.handle_async_request(request)
        finally:
            self.at_once -= 1

    def pages(self):
        return [page for page, _ in self.sent]

    def fields(self, page):
        return [fields for each, fields in self.sent if each == page]


class Account:
    def __init__(self, crm, running, wire):
        self.crm, self.running, self.wire = crm, running, wire
        self.world, self.desk = running.world, logins(running.account)
        self.admin = Ref(Kind.USER, self.world.admin["id"])

    async def all(self, collection, **asked):
        return [row async for row in collection.list(**asked)]

    async def task(self, about, **changes):
        given = {"text": "Позвонить", "due": NINE_IN_MOSCOW, "owner": self.admin, "type": CALL, "target": about}
        return await self.crm.tasks.create(Task(**{**given, **changes}))


def key_login(given):
    return Login(given["login"], hash=given["hash"])


@asynccontextmanager
async def opened(
    *, world=None, login=key_login, zone=MOSCOW, dialect=DIALECT, read_only=False, rate=(), limits=None, **switches
):
    """A client of a sandbox in process; switches are written with underscores."""
    world = world or World(clock=FakeClock())
    given = {name.replace("_", "-"): value for name, value in switches.items()}
    running = in_process(FACE, world, switches=given, clock=world.clock)
    over = Wire(running)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InsecureTransport)
        crm = connect(
            dialect,
            base_url=running.base_url,
            credentials=login(running.credentials),
            zone=zone,
            transport=over,
            clock=world.clock,
            rate=rate,
            read_only=read_only,
            limits=limits,
        )
    async with crm:
        yield Account(crm, running, over)


@cache
def peopled(contacts=103, deals=6):
    """An account as accounts are, for reading only."""
    world = World(clock=FakeClock())
    populate(world, contacts=contacts, companies=10, deals=deals, tasks=20, notes=20)
    return world


def answer(xml, status=200):
    body = FormsInXmlOut().decode(f"<root>{xml}</root>".encode(), "text/xml")
    return Reply(status, body=body)


def row(xml):
    return answer(xml).body["children"][0]


def decoded(entity, xml, zone=MOSCOW, dialect=DIALECT):
    return dialect.resource(entity).decode(row(xml), Context(given_zone=zone))


IVAN = Contact(
    name="Иван Петров",
    position="Менеджер",
    company="ООО Ромашка",
    phones=["+7 495 123-45-67", Phone("+7 499 891-01-11", label=Label.MOBILE)],
    emails=["maks@qsoftus.com"],
    tags=["демо", "второй тег"],
)

# ------------------------------------------------------------------------------------------------------- coming in


@pytest.mark.parametrize("scheme", [Login, LoginEachCall])
@pytest.mark.parametrize("key", ["hash", "password"])
@pytest.mark.asyncio
async def test_a_login_by_key_or_password_comes_in_by_a_session_or_with_every_call(scheme, key):
    async with opened(login=lambda given: scheme(given["login"], **{key: given[key]})) as account:
        made = await account.crm.contacts.create(Contact(name="A"))
        assert (await account.crm.contacts.get(made.id)).name == "A"
        credentials = {"USER_LOGIN", f"USER_{key.upper()}"}
        if scheme is Login:
            assert account.wire.pages() == ["auth.php", "contact_add.php", "contact_detail.php"]
            assert [credentials <= set(fields) for _, fields in account.wire.sent] == [True, False, False]
        else:
            assert account.wire.pages() == ["contact_add.php", "contact_detail.php"]
            assert all(credentials <= set(fields) for _, fields in account.wire.sent)


@pytest.mark.parametrize("status", ["401", "200"])
@pytest.mark.asyncio
async def test_a_session_that_is_over_is_opened_again_once_and_the_call_is_sent_again(status):
    async with opened(not_logged_in=status) as account:
        made = await account.crm.contacts.create(Contact(name="A"))
        account.desk.expire()
        made = await account.crm.contacts.create(Contact(name="B"))
        assert account.world.row("contact", made.id)["name"] == "B"
        assert account.world.count("contact") == 2
        assert (account.desk.count, account.crm.spent.renewals) == (2, 1)


@pytest.mark.asyncio
async def test_a_session_is_opened_anew_before_its_fifteen_minutes_are_over():
    async with opened() as account:
        await account.all(account.crm.contacts)
        account.world.clock.advance(16 * 60)
        await account.all(account.crm.contacts)
        assert account.wire.pages() == ["auth.php", "contacts.php", "auth.php", "contacts.php"]
        assert account.running.stats.statuses == {200: 4}


@pytest.mark.parametrize("status", ["200", "401"])
@pytest.mark.parametrize("scheme", [Login, LoginEachCall])
@pytest.mark.asyncio
async def test_a_wrong_key_is_an_authentication_error_and_is_tried_once(scheme, status):
    async with opened(
        login=lambda given: scheme(given["login"], hash="wrong"), wrong_login=status, not_logged_in=status
    ) as account:
        with pytest.raises(AuthFailed, match="its password"):
            await account.all(account.crm.contacts)
        assert len(account.wire.sent) == 1
        with pytest.raises(AuthFailed):
            await account.crm.contacts.create(Contact(name="A"))
        assert account.world.count("contact") == 0


@pytest.mark.asyncio
async def test_a_key_that_was_changed_ends_in_an_authentication_error_not_in_a_loop():
    async with opened() as account:
        await account.all(account.crm.contacts)
        account.desk.expire()
        account.desk.change()
        with pytest.raises(AuthFailed):
            await account.all(account.crm.contacts)
        assert account.desk.refused == 1


@pytest.mark.asyncio
async def test_a_token_is_taken_by_the_search_of_contacts_alone():
    world = World(clock=FakeClock())
    world.add("contact", {"name": "Иван"})
    async with opened(world=world, bearer=True, login=lambda given: "set below") as account:
        pass
    token = account.desk.issue_token()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InsecureTransport)
        crm = connect(
            DIALECT, base_url=account.running.base_url, credentials=token, transport=Wire(account.running), rate=()
        )
    async with crm:
        assert [row.name async for row in crm.contacts.search("Иван")] == ["Иван"]
        with pytest.raises(AuthFailed):
            await crm.deals.get(1)


def test_an_account_is_a_subdomain_or_a_host_of_either_domain():
    login = Login("a@b.example", hash="x")
    assert connect(DIALECT, "acme", credentials=login).base_url == "https://acme.amocrm.ru"
    assert connect(DIALECT, "acme.amocrm.com", credentials=login).base_url == "https://acme.amocrm.com"


# ------------------------------------------------------------------------------------------------ lists and searches


@pytest.mark.asyncio
async def test_lists_are_walked_to_their_last_page_and_not_beyond():
    async with opened(world=peopled(103, 101)) as account:
        people, deals = await account.all(account.crm.contacts), await account.all(account.crm.deals)
        assert sorted(row.id for row in people) == sorted(row["id"] for row in account.world.select("contact"))
        assert sorted(row.id for row in deals) == sorted(row["id"] for row in account.world.select("deal"))
        assert account.wire.fields("contacts.php") == [
            {"PAGEN_1": str(page), "ELEMENT_CONT": "100", "ELEMENT_COUNT": "100"} for page in (1, 2)
        ]
        assert len(account.wire.fields("deals.php")) == 2


@pytest.mark.parametrize("name", ["ELEMENT_CONT", "ELEMENT_COUNT"])
@pytest.mark.asyncio
async def test_the_number_of_rows_is_understood_under_either_of_its_names(name):
    async with opened(world=peopled(), rows_name=name) as account:
        await account.all(account.crm.contacts)
        assert len(account.wire.fields("contacts.php")) == 2


@pytest.mark.parametrize("beyond", ["last", "first", "empty"])
@pytest.mark.parametrize("tells", [True, False])
@pytest.mark.asyncio
async def test_a_search_is_a_page_of_its_own_and_ends_whether_or_not_it_tells_its_pages(tells, beyond):
    world = World(clock=FakeClock())
    for number in range(130):
        world.add("contact", {"name": f"Иван {number}"})
        world.add("contact", {"name": f"Пётр {number}"})
    stage = world.select("stage", where={"type": "open"})[0]
    world.add("deal", {"name": "Сделка Ивана", "pipeline_id": stage["pipeline_id"], "stage_id": stage["id"]})
    async with opened(world=world, search_paging=tells, beyond_last=beyond) as account:
        found = [contact.name async for contact in account.crm.contacts.search("Иван")]
        assert sorted(found) == sorted(f"Иван {number}" for number in range(130))
        assert [deal.name async for deal in account.crm.deals.search("Ивана")] == ["Сделка Ивана"]
        assert not [deal async for deal in account.crm.deals.search("нет такой")]
        assert [fields["PAGEN_1"] for fields in account.wire.fields("contact_search.php")] == ["1", "2"]
        assert account.wire.fields("deal_search.php")[0]["SEARCH"] == "Ивана"
        assert "contacts.php" not in account.wire.pages()


@pytest.mark.asyncio
async def test_what_only_the_server_knows_it_matched_is_not_checked_again():
    world = World(clock=FakeClock())
    id = world.add("contact", {"name": "A", "tags": ["vip"]})
    async with opened(world=world) as account:
        assert [contact.id async for contact in account.crm.contacts.search("vip")] == [id]


@pytest.mark.parametrize("where", ["search", "everywhere"])
@pytest.mark.asyncio
async def test_companies_among_the_contacts_are_passed_over_even_where_they_fill_a_page(where):
    world = World(clock=FakeClock())
    world.add_many("contact", [{"name": f"Ромашка {number}"} for number in range(3)])
    world.add_many("company", [{"name": f"ООО Ромашка {number}"} for number in range(250)])
    async with opened(world=world, companies=where) as account:
        assert len([contact async for contact in account.crm.contacts.search("Ромашка")]) == 3
        assert len(await account.all(account.crm.contacts)) == 3
        found = await account.crm.run(companies("Ромашка"))
        assert sorted(row.name for row in found) == sorted(f"ООО Ромашка {number}" for number in range(250))
        with pytest.raises(NotFound):
            await account.crm.contacts.get(found[0].id)
        with pytest.raises(Unsupported, match="no company rows"):
            await account.crm.companies.get(found[0].id)
        assert not account.crm.can(Company, Verb.LIST)


@pytest.mark.asyncio
async def test_filters_the_server_has_not_are_applied_here():
    async with opened(world=peopled(103, 101)) as account:
        every = await account.all(account.crm.deals)
        stage, since = every[0].stage, sorted(deal.updated_at for deal in every)[-10]
        assert await account.all(account.crm.deals, stage=stage) == [deal for deal in every if deal.stage == stage]
        assert len(await account.all(account.crm.deals, updated_since=since)) == 10
        with pytest.raises(Unsupported, match="pipeline"):
            await account.all(account.crm.deals, pipeline=Ref(Kind.PIPELINE, 1))


# ---------------------------------------------------------------------------------------------------------- contacts


@pytest.mark.asyncio
async def test_a_contact_is_written_in_the_forms_of_the_seed_and_comes_back_equal():
    async with opened() as account:
        made = await account.crm.contacts.create(evolve(IVAN, owner=account.admin))
        (sent,) = account.wire.fields("contact_add.php")
        assert sent == {
            "ACTION": "ADD_PERSON",
            "contact[person_name]": "Иван Петров",
            "contact[person_position]": "Менеджер",
            "contact[person_company_name]": "ООО Ромашка",
            "contact[person_company_id]": "",
            "contact[contact_data][phone_numbers][0][number]": "+7 495 123-45-67",
            "contact[contact_data][phone_numbers][1][location]": "Work",
            "contact[contact_data][phone_numbers][2][number]": "+7 499 891-01-11",
            "contact[contact_data][phone_numbers][3][location]": "Mobile",
            "contact[contact_data][email_addresses][0][address]": "maks@qsoftus.com",
            "contact[contact_data][email_addresses][1][location]": "Work",
            "contact[main_user_id]": str(account.admin.id),
            "contact[tags]": "демо,второй тег",
        }
        read = await account.crm.contacts.get(made.id)
        company = Ref(Kind.COMPANY, account.world.select("company")[0]["id"])
        assert read == evolve(
            made, company=Link(company, name="ООО Ромашка"), created_at=read.created_at, updated_at=read.updated_at
        )
        assert read.created_at == account.world.clock.now()
        assert read.unread == frozenset()
        assert read.raw["tag"] == "contact"


@pytest.mark.asyncio
async def test_an_edit_sends_everything_the_unnamed_too_and_changes_one_thing():
    world = World(clock=FakeClock())
    id = world.add(
        "contact",
        {
            "name": "Иван",
            "phones": [{"value": "1", "label": "other", "location": "Дача"}, {"value": "2", "label": "home"}],
            "urls": [{"value": "http://a.example"}],
            "addresses": [{"value": "Ленина, 1"}, {"value": "Мира, 2"}],
            "messengers": [{"value": "ivan", "label": "Skype"}],
            "owner": world.select("user")[-1]["id"],
        },
    )
    before = world.row("contact", id)
    async with opened(world=world) as account:
        contact = await account.crm.contacts.get(id)
        assert contact.phones == (Phone("1", label=Label.OTHER, raw_label="Дача"), Phone("2", label=Label.HOME))
        changed = await account.crm.contacts.update(evolve(contact, position="CEO"))
        assert account.wire.pages()[-2:] == ["contact_detail.php", "contact_add.php"]
        assert changed.position == "CEO"
        after = world.row("contact", id)
        assert {key for key in after if after[key] != before[key]} <= {"position", "updated_at", "updated_by"}
        assert after["position"] == "CEO"
        count = len(account.wire.sent)
        await account.crm.contacts.update(changed)
        assert len(account.wire.sent) == count


@pytest.mark.parametrize("left_out", ["erase", "keep"])
@pytest.mark.asyncio
async def test_a_field_is_emptied_on_purpose_whatever_a_key_left_out_does(left_out):
    async with opened(left_out=left_out) as account:
        made = await account.crm.contacts.create(IVAN)
        await account.crm.contacts.update(made, clear={"phones", "emails", "company", "position", "tags"})
        assert await account.crm.contacts.get(made.id) == Contact(
            id=made.id,
            name="Иван Петров",
            owner=account.admin,
            created_at=(at := account.world.clock.now()),
            updated_at=at,
        )


@pytest.mark.asyncio
async def test_a_company_is_changed_by_name_or_by_id():
    async with opened() as account:
        other = account.world.add("company", {"name": "АО Вектор"})
        contact = await account.crm.contacts.get((await account.crm.contacts.create(IVAN)).id)
        await account.crm.contacts.update(evolve(contact, company=Ref(Kind.COMPANY, other)))
        assert (await account.crm.contacts.get(contact.id)).company == Link(Ref(Kind.COMPANY, other), name="АО Вектор")
        await account.crm.contacts.update(evolve(contact, company="Новая"))
        assert (await account.crm.contacts.get(contact.id)).company.name == "Новая"


@pytest.mark.asyncio
async def test_a_contact_is_deleted_and_then_it_is_not_found():
    async with opened() as account:
        made = await account.crm.contacts.create(IVAN)
        await account.crm.contacts.delete(made.id)
        assert account.wire.sent[-1] == ("contact_delete.php", {"ACTION": "DELETE", "ID": str(made.id)})
        for again in (account.crm.contacts.delete(made.id), account.crm.contacts.get(made.id)):
            with pytest.raises(NotFound):
                await again
        with pytest.raises(NotFound):
            await account.crm.contacts.update(evolve(made, name="B"))


@pytest.mark.asyncio
async def test_short_rows_leave_fields_unread_and_an_edit_from_one_erases_nothing():
    async with opened(list_form="short") as account:
        made = await account.crm.contacts.create(IVAN)
        (short,) = await account.all(account.crm.contacts)
        assert short.unread == {"emails", "tags", "deals", "fields", "created_at", "updated_at"}
        assert (short.phones, short.position) == (IVAN.phones, IVAN.position)
        await account.crm.contacts.update(evolve(short, name="Пётр"))
        read = await account.crm.contacts.get(made.id)
        assert (read.name, read.emails, read.tags) == ("Пётр", IVAN.emails, IVAN.tags)


@pytest.mark.asyncio
async def test_an_edit_is_refused_where_the_detail_lacks_what_it_would_erase():
    async with opened() as account:
        made = await account.crm.contacts.create(IVAN)
        short = f"<root><contact><id>{made.id}</id><name>Иван</name><phones/><user><id>1</id></user></contact></root>"
        account.wire.instead["contact_detail.php"] = (200, short)
        with pytest.raises(IncompleteRead) as refused:
            await account.crm.contacts.update(evolve(made, name="Пётр"))
        assert refused.value.sections == ("emails", "webs", "addresses", "messengers", "tags")
        assert account.world.row("contact", made.id)["name"] == "Иван Петров"


@pytest.mark.parametrize("text", ["hot, urgent", "a,b"])
@pytest.mark.asyncio
async def test_a_tag_with_a_comma_is_refused_by_field_and_what_could_be_kept_and_nothing_is_sent(text):
    async with opened() as account:
        kept, lost = account.crm.carried(Deal(name="A", tags=[text]))
        assert (kept.tags[0].name, lost) == (text.replace(",", ";"), {"tags"})
        for collection, entity in ((account.crm.contacts, Contact), (account.crm.deals, Deal)):
            with pytest.raises(Invalid, match=r"tags: .* none holds a comma, .*not Tag\("):
                await collection.create(entity(name="A", tags=[text]))
        assert not account.wire.sent


CARD = [
    FieldValue(["http://a.example", "http://b.example/?q=ё&x"], code="WEB", type=FieldType.URL),
    FieldValue(["Москва, ул. Ленина, 1"], code="ADDRESS", type=FieldType.STREET),
    FieldValue([{"value": "ivan", "enum": "Skype"}, "ivan2"], code="IM", type=FieldType.MULTITEXT),
]


@pytest.mark.asyncio
async def test_web_pages_addresses_and_messengers_are_written_in_the_forms_of_the_seed_and_come_back():
    async with opened() as account:
        made = await account.crm.contacts.create(Contact(name="Иван", fields=CARD))
        (sent,) = account.wire.fields("contact_add.php")
        data = "contact[contact_data]"
        assert {name: text for name, text in sent.items() if name.startswith(data)} == {
            f"{data}[web_addresses][0][url]": "http://a.example",
            f"{data}[web_addresses][1][url]": "http://b.example/?q=ё&x",
            f"{data}[addresses][street]": "Москва, ул. Ленина, 1",
            f"{data}[instant_messengers][0][address]": "ivan",
            f"{data}[instant_messengers][1][protocol]": "Skype",
            f"{data}[instant_messengers][2][address]": "ivan2",
        }
        read = await account.crm.contacts.get(made.id)
        assert read.fields == made.fields == tuple(CARD)
        row = account.world.row("contact", made.id)
        assert [url["value"] for url in row["urls"]] == list(CARD[0].values)

        # Another address goes to both forms of a list; what is not touched stays.
        streets = evolve(CARD[1], values=("Мира, 2", "Мира, 3"))
        changed = await account.crm.contacts.update(evolve(read, fields=[CARD[0], streets]))
        read = await account.crm.contacts.get(made.id)
        assert read.fields == changed.fields == (CARD[0], streets)
        await account.crm.contacts.update(evolve(read, name="Пётр"))
        assert (await account.crm.contacts.get(made.id)).fields == (CARD[0], streets)
        # By hand, only what is named is written.
        await account.crm.contacts.update(Contact(id=made.id, fields=[evolve(CARD[0], values=["http://c.example"])]))
        read = await account.crm.contacts.get(made.id)
        assert [value.values for value in read.fields] == [("http://c.example",), streets.values]
        await account.crm.contacts.update(read, clear={"fields"})
        assert (await account.crm.contacts.get(made.id)).fields == ()


@pytest.mark.asyncio
async def test_fields_of_a_short_row_are_not_taken_for_empty():
    async with opened(list_form="short") as account:
        made = await account.crm.contacts.create(Contact(name="Иван", fields=CARD[:2]))
        (short,) = await account.all(account.crm.contacts)
        assert (short.fields, "fields" in short.unread) == ((), True)
        await account.crm.contacts.update(evolve(short, fields=[CARD[2]]))
        assert (await account.crm.contacts.get(made.id)).fields == tuple(CARD)


@pytest.mark.parametrize(
    "field",
    [
        FieldValue(["x"], code="BIRTHDAY"),
        FieldValue(["x"], field=Ref(Kind.FIELD, 5)),
        FieldValue(["x"], field=Ref(Kind.FIELD, 5), code="WEB"),
        FieldValue([" "], code="WEB"),
        FieldValue(["http://a.example\x01"], code="WEB"),
        FieldValue([{"line1": "Ленина, 1", "city": "Москва"}], code="ADDRESS", type=FieldType.ADDRESS),
        FieldValue([{"value": "ivan", "enum": "Skype", "more": "x"}], code="IM"),
        FieldValue([{"enum": "Skype"}], code="IM"),
        FieldValue([{"value": "x"}], code="WEB"),
        FieldValue([Decimal(5)], code="IM"),
    ],
    ids=lambda field: f"{field.code or field.field.id}: {field.values[0]!r}",
)
@pytest.mark.asyncio
async def test_there_are_no_custom_fields_beside_these_three_and_nothing_is_sent(field):
    async with opened() as account:
        kept, lost = account.crm.carried(Contact(name="A", fields=[CARD[0], field]))
        assert (kept.fields, lost) == ((CARD[0],), {"fields"})
        with pytest.raises(Invalid, match="fields: "):
            await account.crm.contacts.create(Contact(name="A", fields=[field]))
        with pytest.raises(Unsupported, match=r"Deal\.fields"):
            await account.crm.deals.create(Deal(name="A", fields=[CARD[0]]))
        assert not account.wire.sent


@pytest.mark.asyncio
async def test_what_xml_cannot_say_is_refused_because_it_could_never_be_read_again():
    async with opened() as account:
        with pytest.raises(Invalid, match=r"name: a text without control characters.*not 'A\\x01'"):
            await account.crm.contacts.create(Contact(name="A\x01"))
        with pytest.raises(Invalid, match="text: "):
            await account.crm.notes.create(Note(text="A\x00", target=Ref(Kind.CONTACT, 1)))
        assert not account.wire.sent


@pytest.mark.asyncio
async def test_what_the_xml_api_has_no_field_for_is_refused_and_nothing_is_sent():
    async with opened() as account:
        with pytest.raises(Unsupported, match=r"Contact\.first_name"):
            await account.crm.contacts.create(Contact(name="A", first_name="B"))
        with pytest.raises(Invalid, match="emails"):
            await account.crm.contacts.create(Contact(name="A", emails=[Email("a@b.example", label=Label.FAX)]))
        with pytest.raises(Invalid, match="phones"):
            await account.crm.contacts.create(Contact(name="A", phones=["1", " "]))
        assert not account.wire.sent


# ------------------------------------------------------------------------------------------------------------- deals


@pytest.mark.asyncio
async def test_a_deal_is_written_in_the_form_of_the_seed_and_comes_back_equal():
    async with opened() as account:
        person = await account.crm.contacts.create(Contact(name="Иван"))
        stage = Ref(Kind.STAGE, account.world.select("stage", where={"type": "won"})[0]["id"])
        given = Deal(
            name="Сделка", stage=stage, price="15000.50", owner=account.admin, tags=["тег", "тег2"], contacts=[person]
        )
        made = await account.crm.deals.create(given)
        assert account.wire.fields("deal_add.php") == [
            {
                "ACTION": "ADD",
                "deal[name]": "Сделка",
                "deal[status_id]": str(stage.id),
                "deal[price]": "15000.50",
                "deal[main_user_id]": str(account.admin.id),
                "deal[tags]": "тег,тег2",
                "deal[linked_contact]": str(person.id),
            }
        ]
        read = await account.crm.deals.get(made.id)
        assert read == evolve(made, created_at=read.created_at, updated_at=read.updated_at)
        assert (await account.crm.contacts.get(person.id)).deals == (Link(made.ref),)
        await account.crm.deals.update(evolve(read, price=Money(Decimal("1E+3"))))
        assert account.wire.sent[-1][1]["deal[price]"] == "1000"
        again = await account.crm.deals.get(made.id)
        assert again == evolve(read, price=1000)
        await account.crm.deals.update(again, clear={"contacts", "tags", "price"})
        assert await account.crm.deals.get(made.id) == evolve(again, contacts=(), tags=(), price=0)
        await account.crm.deals.delete(made.id)
        with pytest.raises(NotFound):
            await account.crm.deals.get(made.id)


@pytest.mark.asyncio
async def test_an_edit_of_a_deal_with_several_contacts_is_refused_as_it_can_name_but_one():
    async with opened() as account:
        stage = account.world.select("stage", where={"type": "open"})[0]
        people = [account.world.add("contact", {"name": name}) for name in "AB"]
        links = [{"id": id, "main": not place} for place, id in enumerate(people)]
        place = {"pipeline_id": stage["pipeline_id"], "stage_id": stage["id"]}
        id = account.world.add("deal", {"name": "D", **place, "contacts": links, "owner": account.admin.id})
        deal = await account.crm.deals.get(id)
        assert [link.ref.id for link in deal.contacts] == people
        with pytest.raises(IncompleteRead, match="contacts besides the first"):
            await account.crm.deals.update(evolve(deal, name="E"))
        assert account.world.row("deal", id)["name"] == "D"
        await account.crm.deals.update(evolve(deal, name="E"), overwrite=True)
        assert [link["id"] for link in account.world.row("deal", id)["contacts"]] == people[:1]


@pytest.mark.asyncio
async def test_of_two_contacts_a_new_deal_keeps_one_and_says_so_beforehand():
    deal = Deal(name="D", contacts=[5, Link(Ref(Kind.CONTACT, 6), main=True)], price=Money(1, currency="RUB"))
    async with opened() as account:
        with pytest.raises(Invalid, match="contacts"):
            await account.crm.deals.create(deal)
        kept, lost = account.crm.carried(deal)
        assert kept.contacts == (Link(Ref(Kind.CONTACT, 6), main=True),)
        assert (kept.price, lost) == (Money(1), {"contacts", "price"})
        assert not account.wire.sent


# ----------------------------------------------------------------------------------------------------- notes, tasks


@pytest.mark.asyncio
async def test_notes_are_written_and_read_through_what_they_hang_on():
    async with opened() as account:
        person = await account.crm.contacts.create(Contact(name="Иван"))
        deal = await account.crm.deals.create(Deal(name="D"))
        notes = [await account.crm.notes.create(Note(text=f"О {row.id}", target=row)) for row in (person, deal)]
        assert account.wire.fields("note_add.php") == [
            {"ACTION": "ADD_NOTE", "BODY": f"О {row.id}", "ID": str(row.id), "ELEMENT_TYPE": kind}
            for row, kind in ((person, "1"), (deal, "2"))
        ]
        at = account.world.clock.now()
        read = await account.all(account.crm.notes)
        assert read == [evolve(note, created_at=at, owner=account.admin) for note in notes]
        assert await account.all(account.crm.notes, target=deal.ref) == read[1:]

        await account.crm.notes.update(evolve(read[0], text="Новый\nтекст"))
        assert account.wire.sent[-1][1] == {"ACTION": "EDIT_NOTE", "ID": str(notes[0].id), "BODY": "Новый\nтекст"}
        await account.crm.notes.delete(notes[1].id)
        assert account.wire.sent[-1][1] == {"ACTION": "NOTE_DELETE", "ID": str(notes[1].id)}
        assert [note.text for note in await account.all(account.crm.notes)] == ["Новый\nтекст"]
        with pytest.raises(NotFound):
            await account.crm.notes.delete(notes[1].id)
        with pytest.raises(Unsupported, match="cannot get notes"):
            await account.crm.notes.get(notes[0].id)
        with pytest.raises(Unsupported, match="contact, deal"):
            await account.all(account.crm.notes, target=Ref(Kind.COMPANY, 5))
        with pytest.raises(Invalid, match="target"):
            await account.crm.notes.create(Note(text="Ни о чём"))
        with pytest.raises(Rejected, match="Contact not found"):
            await account.crm.notes.create(Note(text="О ком?", target=Ref(Kind.CONTACT, 999)))


@pytest.mark.parametrize("link", ["both", "ID", "TASK_OBJECT"])
@pytest.mark.asyncio
async def test_a_task_is_added_edited_completed_and_deleted(link):
    async with opened(task_link=link) as account:
        person = await account.crm.contacts.create(Contact(name="Иван"))
        made = await account.task(person)
        assert account.wire.sent[-1] == (
            "task_add.php",
            {
                "ACTION": "ADD_TASK",
                "BODY": "Позвонить",
                "END_DATE": "01.04.2026 09:00:00",
                "MAIN_USER": str(account.admin.id),
                "TASK_TYPE": "CALL",
                "ID": str(person.id),
                "TASK_OBJECT": str(person.id),
                "ELEMENT_TYPE": "1",
            },
        )
        (read,) = await account.all(account.crm.tasks, target=person.ref)
        assert read == made

        for task in (made, read):
            await account.crm.tasks.update(evolve(task, text="Встретиться", type=Ref(Kind.TASK_TYPE, "MEETING")))
            assert account.wire.sent[-1][1] == {
                "ACTION": "EDIT_TASK",
                "ID": str(made.id),
                "BODY": "Встретиться",
                "END_DATE": "01.04.2026 09:00:00",
                "MAIN_USER": str(account.admin.id),
                "TASK_TYPE": "MEETING",
                "TASK_OBJECT": str(person.id),
                "ELEMENT_TYPE": "1",
            }
        await account.crm.tasks.complete(made.id)
        assert account.wire.sent[-1][1] == {"ACTION": "COMPLATE_TASK", "ID": str(made.id)}
        (read,) = await account.all(account.crm.tasks)
        assert (read.done, read.text, read.due, read.target) == (True, "Встретиться", NINE_IN_MOSCOW, person.ref)
        with pytest.raises(Unsupported, match="result"):
            await account.crm.tasks.complete(made.id, result="Договорились")
        await account.crm.tasks.delete(made.id)
        assert account.wire.sent[-1][1] == {"ACTION": "TASK_DELETE", "ID": str(made.id)}
        assert await account.all(account.crm.tasks) == []


@pytest.mark.parametrize("left_out", ["keep", "erase"])
@pytest.mark.asyncio
async def test_a_task_moves_to_another_row_and_keeps_it_in_later_edits(left_out):
    async with opened(task_left_out=left_out) as account:
        person = await account.crm.contacts.create(Contact(name="Иван"))
        deal = await account.crm.deals.create(Deal(name="D"))
        task = await account.crm.tasks.update(evolve(await account.task(person), target=deal))
        await account.crm.tasks.update(evolve(task, text="Другое"))
        (read,) = await account.all(account.crm.tasks)
        assert (read.target, read.text) == (deal.ref, "Другое")
        with pytest.raises(Invalid, match="target: a task about nothing"):
            await account.crm.tasks.update(read, clear={"target"})


@pytest.mark.asyncio
async def test_a_task_built_by_hand_is_not_edited_as_everything_else_of_it_would_go():
    async with opened() as account:
        made = await account.task(await account.crm.contacts.create(Contact(name="Иван")))
        with pytest.raises(IncompleteRead):
            await account.crm.tasks.update(Task(id=made.id, text="Другое"))
        with pytest.raises(IncompleteRead, match="end_date, user"):
            short = f"<task><id>{made.id}</id><body>x</body><task_type>CALL</task_type></task>"
            await account.crm.tasks.update(evolve(decoded(Task, short), text="Другое"))
        assert account.world.row("task", made.id)["text"] == "Позвонить"


@pytest.mark.parametrize("missing", ["text", "due", "owner", "type", "target"])
@pytest.mark.asyncio
async def test_a_new_task_lacks_nothing_the_seed_asks_for_and_is_about_something(missing):
    async with opened() as account:
        with pytest.raises(Invalid, match=f"Task lacks {missing}"):
            await account.task(Ref(Kind.CONTACT, 1), **{missing: None})
        assert not account.wire.sent


@pytest.mark.asyncio
async def test_a_task_is_of_one_of_three_types_and_about_a_contact_or_a_deal():
    async with opened() as account:
        with pytest.raises(Invalid, match="type: "):
            await account.task(Ref(Kind.CONTACT, 1), type=Ref(Kind.TASK_TYPE, 1))
        with pytest.raises(Invalid, match="target"):
            await account.task(Ref(Kind.COMPANY, 1))
        assert not account.wire.sent


@pytest.mark.asyncio
async def test_the_three_types_of_task_are_told_without_asking_and_each_is_taken():
    async with opened() as account:
        types = await account.crm.setting("task_types")
        assert [(type.id, type.name) for type in types] == [
            ("CALL", "Call"),
            ("LETTER", "Letter"),
            ("MEETING", "Meeting"),
        ]
        assert not account.wire.sent
        person = await account.crm.contacts.create(Contact(name="Иван"))
        made = [await account.task(person, type=type) for type in types]
        assert [task.type for task in made] == [task.type for task in await account.all(account.crm.tasks)]


@pytest.mark.asyncio
async def test_a_due_date_without_a_zone_is_refused_and_says_what_to_give():
    async with opened(zone=None) as account:
        with pytest.raises(Invalid, match=r"due: .*connect\(zone=") as refused:
            await account.task(Ref(Kind.CONTACT, 1))
        assert refused.value.issues[0].field == "due"
        assert not account.wire.sent
        with pytest.raises(ValueError, match="no time zone"):
            Task(text="A", due=datetime(2026, 4, 1, 9, 0))


@pytest.mark.asyncio
async def test_without_a_zone_everything_but_the_times_is_read_and_a_task_keeps_its_due_date():
    async with opened() as account:
        person = await account.crm.contacts.create(IVAN)
        task = await account.task(person)
    async with opened(zone=None, world=account.world) as account:
        (read,) = await account.all(account.crm.contacts)
        assert (read.name, read.created_at) == ("Иван Петров", None)
        assert read.unread == {"created_at", "updated_at"}
        (task,) = await account.all(account.crm.tasks)
        assert (task.due, "due" in task.unread) == (None, True)
        await account.crm.tasks.update(evolve(task, text="Другое"))
        row = account.world.row("task", task.id)
        assert (row["text"], row["due"]) == ("Другое", int(NINE_IN_MOSCOW.timestamp()))


@pytest.mark.asyncio
async def test_the_users_a_detail_names_are_to_be_had():
    async with opened() as account:
        person = await account.crm.contacts.create(Contact(name="Иван"))
        found = await account.crm.run(users(person.ref))
        assert [(user.id, user.name, user.email) for user in found] == [
            (user["id"], user["name"], user["email"]) for user in account.world.select("user")
        ]


# ----------------------------------------------------------------------------------------- each card is opened once


def cards(account):
    return [(page, fields["ID"]) for page, fields in account.wire.sent if page.endswith("_detail.php")]


@pytest.mark.parametrize("list_form", ["full", "short"])
@pytest.mark.asyncio
async def test_contacts_deals_tasks_and_notes_come_in_one_walk_and_each_card_is_opened_once(list_form):
    async with opened(world=peopled(), list_form=list_form) as account:
        apart = {entity: await account.all(account.crm.of(entity)) for entity in (Deal, Task, Note)}
        assert len(cards(account)) == 2 * (103 + 6)
        account.wire.sent.clear()
        found = [row async for row in account.crm.together(Contact, Deal, Task, Note)]
        assert len(cards(account)) == len(set(cards(account))) == 103 + 6
        assert len(account.wire.sent) == 103 + 6 + 2 + 1
        for entity, rows in apart.items():
            assert [row for row in found if isinstance(row, entity)] == rows
        # Contacts and deals are given as their cards tell them, whatever the list left out.
        people = [row for row in found if isinstance(row, Contact)]
        assert len(people) == 103
        assert not any(row.unread for row in people)
        assert people[-1] == await account.crm.contacts.get(people[-1].id)


@pytest.mark.asyncio
async def test_tasks_and_notes_come_in_one_walk_without_what_they_hang_on():
    async with opened(world=peopled(20, 15)) as account:
        tasks, notes = await account.all(account.crm.tasks), await account.all(account.crm.notes)
        account.wire.sent.clear()
        found = [row async for row in account.crm.together(Task, Note)]
        assert sorted(found, key=repr) == sorted([*tasks, *notes], key=repr)
        assert len(cards(account)) == len(set(cards(account))) == 20 + 15


@pytest.mark.asyncio
async def test_one_request_tells_a_card_with_its_tasks_and_notes():
    async with opened() as account:
        person = await account.crm.contacts.create(IVAN)
        task = await account.task(person)
        note = await account.crm.notes.create(Note(text="О", target=person))
        read = await account.crm.contacts.get(person.id)
        account.wire.sent.clear()
        card = account.crm.together(Contact, Task, Note, target=person.ref)
        assert await card.cost() == 1
        account.wire.sent.clear()
        assert [row.ref for row in [row async for row in card]] == [read.ref, task.ref, note.ref]
        assert account.wire.pages() == ["contact_detail.php"]
        with pytest.raises(NotFound):
            [row async for row in account.crm.together(Contact, Task, target=Ref(Kind.CONTACT, 999))]
        with pytest.raises(Unsupported, match="contact, deal"):
            account.crm.together(Task, target=Ref(Kind.COMPANY, 5))


@pytest.mark.asyncio
async def test_cards_are_opened_side_by_side_and_within_the_pace():
    async with opened(world=peopled(20, 15), rate=None) as account:
        at = account.world.clock.monotonic()
        assert len([row async for row in account.crm.together(Contact, Deal, Task, Note)]) > 35
        assert account.wire.most_at_once > 3
        assert account.running.stats.worst(1.0) <= 7
        # One after the other with an answer each would do too; slower than the pace allows would not.
        assert account.world.clock.monotonic() - at <= (account.running.stats.requests / 7) * 1.1 + 1


@pytest.mark.asyncio
async def test_of_many_pages_only_the_one_in_hand_is_opened():
    async with opened(world=peopled()) as account:
        async for page in account.crm.together(Contact, Task, prefetch=1).pages():
            assert len(page.items) >= 100
            assert account.wire.pages().count("contacts.php") == 1
            assert len(cards(account)) == 100
            break


@pytest.mark.asyncio
async def test_a_card_that_went_while_it_was_walked_takes_its_rows_with_it():
    async with opened() as account:
        people = [await account.crm.contacts.create(Contact(name=name)) for name in "AB"]
        for person in people:
            await account.task(person)
        listed = [Contact(id=person.id, name=person.name) for person in people]
        gone = "".join(f"<contact><id>{person.id}</id><name>{person.name}</name></contact>" for person in listed)
        account.wire.instead["contacts.php"] = (200, f"<root><contacts>{gone}</contacts></root>")
        await account.crm.contacts.delete(people[0].id)
        found = [row async for row in account.crm.together(Contact, Task)]
        assert [(type(row), row.id) for row in found[:1]] == [(Contact, people[1].id)]
        assert [row.target for row in found[1:]] == [people[1].ref]


@pytest.mark.asyncio
async def test_a_card_that_cannot_be_read_is_told_with_its_kind_and_the_walk_goes_on():
    async with opened() as account:
        await account.crm.contacts.create(IVAN)
        deal = await account.crm.deals.create(Deal(name="D"))
        note = await account.crm.notes.create(Note(text="О", target=deal))
        card = "<contact><id>1</id><name>A</name></contact>"
        bad = [
            "<root><people/></root>",
            f"<root>{card}<tasks><task><id>x</id></task></tasks><notes/></root>",
            f"<root>{card}<notes/></root>",
            "<html>",
        ]
        for body in bad:
            account.wire.instead["contact_detail.php"] = (200, body)
            with pytest.raises(Unreadable):
                [row async for row in account.crm.together(Contact, Deal, Task, Note)]
            told = {}
            walk = account.crm.together(Contact, Deal, Task, Note, on_bad=told.__setitem__)
            found = [row async for row in walk]
            ((kind, error),) = told.items()
            assert kind is (Task if "<task>" in body else Contact)
            assert isinstance(error, Unreadable)
            assert [type(row) for row in found] == [Contact, Deal, Note]
            assert found[-1].ref == note.ref


@pytest.mark.parametrize(
    "switches",
    [{}, {"companies": "everywhere"}, {"beyond_last": "empty"}, {"rows_at_most": "100"}, {"list_form": "short"}],
    ids=str,
)
@pytest.mark.asyncio
async def test_what_a_walk_through_cards_costs_is_told_to_the_request(switches):
    async with opened(world=peopled(), **switches) as account:
        await account.crm.contacts.get(account.world.select("contact")[0]["id"])  # signs in
        walks = (
            account.crm.together(Contact, Deal, Task, Note),
            account.crm.together(Contact, Deal),
            account.crm.together(Task),
            account.crm.together(Task, Note),
        )
        # Each opens the same cards, whatever is picked of them: as the account is made otherwise, one of these is enough.
        for walk in walks[: 2 if switches else 4]:
            before = account.crm.spent.requests
            told = await walk.cost()
            asked = account.crm.spent.requests - before
            assert [row async for row in walk]
            assert account.crm.spent.requests - before - asked == told
            # It lists what would be opened, and opens nothing.
            assert asked <= 4
        assert await account.crm.tasks.cost() == await account.crm.together(Task).cost() == 2 + 1 + 103 + 6


# ---------------------------------------------------------------------------------- the answers nobody has ever shown

ALIKE = [
    {"phone_tag": "value"},
    {"phone_tag": "phone"},
    {"phone_tag": "tel"},
    {"item_tag": "item"},
    {"user_name": "title"},
    {"id_form": "attribute"},
    {"tag_case": "upper"},
    {"comments": True},
    {"child_order": "shuffled"},
    {"empties": "blank"},
    {"beyond_last": "empty"},
    {"order": "newest"},
    {"companies": "everywhere"},
    {"companies": "nowhere"},
    {"get_reads": "none"},
    {"rows_at_most": "100", "rows": "10"},
    {"credentials_per_call": False, "session": "sliding"},
    {"comments": True, "child_order": "shuffled", "id_form": "attribute", "tag_case": "upper", "phone_tag": "tel"},
]


async def whole(account):
    collections = (account.crm.contacts, account.crm.deals, account.crm.notes, account.crm.tasks)
    return [sorted(await account.all(collection), key=lambda row: row.id) for collection in collections]


_plain: list = []


@pytest.mark.parametrize("switches", ALIKE, ids=str)
@pytest.mark.asyncio
async def test_an_account_reads_the_same_in_whatever_words_order_and_case_it_answers(switches):
    if not _plain:
        async with opened(world=peopled(12, 11)) as account:
            _plain.extend(await whole(account))
    async with opened(world=peopled(12, 11), **switches) as account:
        assert await whole(account) == _plain


@pytest.mark.parametrize("switches", [each for each in ALIKE if "companies" not in each], ids=str)
@pytest.mark.asyncio
async def test_an_account_is_written_the_same_in_whatever_words_it_answers(switches):
    async with opened(**switches) as account:
        made = await account.crm.contacts.create(IVAN)
        await account.crm.contacts.update(evolve(made, position="CEO"))
        read = await account.crm.contacts.get(made.id)
        assert (read.phones, read.tags, read.position, read.owner) == (IVAN.phones, IVAN.tags, "CEO", account.admin)
        task = await account.task(read)
        (task,) = await account.all(account.crm.tasks)
        await account.crm.tasks.update(evolve(task, due=NINE_IN_MOSCOW + timedelta(days=1)))
        assert account.world.row("task", task.id)["due"] == int(NINE_IN_MOSCOW.timestamp()) + 86_400


@pytest.mark.parametrize("list_form", ["full", "short"])
@pytest.mark.asyncio
async def test_a_row_made_without_an_id_told_is_looked_up_at_once_and_never_sent_again(list_form):
    async with opened(id_in_answer=False, list_form=list_form) as account:
        account.world.add("contact", {"name": IVAN.name, "emails": [{"value": "maks@qsoftus.com", "label": "work"}]})
        person = await account.crm.contacts.create(evolve(IVAN, owner=account.admin))
        assert account.wire.pages().count("contact_add.php") == 1
        assert account.world.row("contact", person.id)["position"] == IVAN.position
        stage = Ref(Kind.STAGE, account.world.select("stage", where={"type": "open"})[0]["id"])
        deal = await account.crm.deals.create(Deal(name="D", price="10.50", contacts=[person], stage=stage))
        task, note = await account.task(deal), await account.crm.notes.create(Note(text="О", target=person))
        for made, kind in ((deal, "deal"), (task, "task"), (note, "note")):
            assert [row["id"] for row in account.world.select(kind)] == [made.id]
        # What was found is as good as what was told.
        await account.crm.tasks.update(evolve(task, text="Другое"))
        assert account.world.row("task", task.id)["text"] == "Другое"
        assert (await account.crm.contacts.update(evolve(person, position="CEO"))).id == person.id


@pytest.mark.asyncio
async def test_of_several_rows_that_say_what_was_sent_none_is_taken_for_the_new_one():
    async with opened(id_in_answer=False) as account:
        account.world.add("contact", {"name": "Иван"})
        receipts = await account.crm.contacts.create_many([Contact(name="Иван"), Contact(name="Пётр")])
        assert [(type(each), each.id is None) for each in receipts] == [(Made, True), (Made, False)]
        (issue,) = receipts[0].issues
        assert (issue.field, issue.row, issue.rule) == ("id", 0, "the answer told none, and 2 rows say what was sent")
        with pytest.raises(PartlyDone, match="3 rows say what was sent") as partly:
            await account.crm.contacts.create(Contact(name="Иван"))
        assert partly.value.entity.name == "Иван"
        assert account.wire.pages().count("contact_add.php") == account.world.count("contact") - 1 == 3


@pytest.mark.parametrize(
    "body, why",
    [
        ("<root><contacts/></root>", "no rows say what was sent"),
        ("<root><error>нет</error></root>", "looking for it failed"),
        ("<root><contacts><contact><id>x</id></contact></contacts></root>", "looking for it failed"),
    ],
)
@pytest.mark.asyncio
async def test_a_row_that_is_not_found_again_is_made_all_the_same_and_says_so(body, why):
    async with opened(id_in_answer=False) as account:
        account.wire.instead["contact_search.php"] = (200, body)
        (receipt,) = await account.crm.contacts.create_many([Contact(name="A")])
        assert isinstance(receipt, Made)
        assert receipt.id is receipt.made().id is None
        assert why in receipt.issues[0].rule
        assert account.wire.pages().count("contact_add.php") == account.world.count("contact") == 1


@pytest.mark.asyncio
async def test_a_row_with_nothing_to_be_looked_for_by_is_not_guessed_among_all():
    async with opened(id_in_answer=False) as account:
        (receipt,) = await account.crm.deals.create_many([Deal(price=5)])
        assert (receipt.id, "nothing to be looked for by" in receipt.issues[0].rule) == (None, True)
        assert account.wire.pages() == ["auth.php", "deal_add.php"]


@pytest.mark.asyncio
async def test_a_row_is_not_looked_for_through_more_than_ten_pages():
    async with opened(id_in_answer=False) as account:
        account.world.add_many("contact", [{"name": f"Иван {number}"} for number in range(1001)])
        (receipt,) = await account.crm.contacts.create_many([Contact(name="Иван")])
        assert (receipt.id, "too many rows" in receipt.issues[0].rule) == (None, True)
        assert account.wire.pages().count("contact_search.php") == 10


def test_both_forms_of_paired_items_are_read_and_an_item_alone_too():
    for phones in (
        "<phone><number>1</number></phone><phone><location>Home</location></phone><phone><number>2</number></phone>",
        "<phone><location>Home</location><number>1</number></phone><phone><number>2</number></phone>",
        "<item><x>1</x><location>HOME</location></item><item>2</item><item><number/><location>Fax</location></item>",
        "<number>1</number><location>home</location><number>2</number>",
    ):
        contact = decoded(Contact, f"<contact><id>1</id><name>A</name><phones>{phones}</phones></contact>")
        assert contact.phones == (Phone("1", label=Label.HOME), Phone("2"))


@pytest.mark.parametrize(
    "text",
    ["14.01.2011 02:00:00", "01/14/2011 2:00:00", "14.01.2011 2: 00: 00", "14.01.2011 02:00", "14.1.2011  02:00:00"],
)
def test_a_time_is_read_in_both_of_the_seeds_notations(text):
    task = decoded(Task, f"<task><id>1</id><end_date>{text}</end_date></task>")
    assert task.due == datetime(2011, 1, 13, 23, 0, tzinfo=UTC)


@pytest.mark.parametrize("text", ["", "00.00.0000 00:00:00"])
def test_an_empty_time_is_none(text):
    assert decoded(Task, f"<task><id>1</id><end_date>{text}</end_date></task>").due is None


@pytest.mark.parametrize(
    "text, amount",
    [("15000", "15000"), ("1 000,50", "1000.50"), ("-3.5", "-3.5"), ("1\u00a0000 000", "1000000"), ("", None)],
)
def test_a_price_is_read_with_blanks_and_either_point(text, amount):
    price = decoded(Deal, f"<deal><id>1</id><price>{text}</price></deal>").price
    assert price == (None if amount is None else Money(amount))


@pytest.mark.parametrize(
    "entity, xml",
    [
        (Deal, "<deal><id>1</id><price>1,000</price></deal>"),
        (Deal, "<deal><id>1</id><price>много</price></deal>"),
        (Task, "<task><id>1</id><end_date>завтра</end_date></task>"),
        (Task, "<task><id>1</id><end_date>31.02.2011 00:00:00</end_date></task>"),
        (Contact, "<contact><name>A</name></contact>"),
        (Contact, "<contact><id>x</id></contact>"),
    ],
)
def test_what_cannot_be_understood_is_not_guessed_and_is_handed_over(entity, xml):
    with pytest.raises(Unreadable) as bad:
        decoded(entity, xml)
    assert bad.value.raw == row(xml)


def test_names_alone_and_the_words_of_the_questions_are_read_too():
    contact = decoded(
        Contact,
        "<contact><id>1</id><person_name>A</person_name><company>Acme</company><main_user_id>7</main_user_id>"
        "<email_addresses><item>a@b.example</item></email_addresses><tags>x, y</tags><color>red</color></contact>",
    )
    assert (contact.name, contact.company, contact.owner) == (
        "A",
        Link(Ref(Kind.COMPANY, None), name="Acme"),
        Ref(Kind.USER, 7),
    )
    assert ([email.value for email in contact.emails], [tag.name for tag in contact.tags]) == (
        ["a@b.example"],
        ["x", "y"],
    )
    assert wire.child(contact.raw, ("color",))["text"] == "red"


@pytest.mark.asyncio
async def test_paging_may_be_told_anywhere_and_is_no_row():
    async with opened() as account:
        paging = "<onpage>100</onpage><totalpages>1</totalpages><currpage>1</currpage>"
        account.wire.instead["contacts.php"] = (200, f"<root><contacts>{paging}<contact ID='5'/></contacts></root>")
        assert [contact.id for contact in await account.all(account.crm.contacts)] == [5]


@pytest.mark.asyncio
async def test_what_an_account_really_answers_can_be_told_to_the_adapter():
    dialect = speaking(Words(position=("post",), contacts=("people",), contact=("person",)))
    assert decoded(Contact, "<person><id>1</id><post>CEO</post></person>", dialect=dialect).position == "CEO"
    async with opened(dialect=dialect) as account:
        account.wire.instead["contacts.php"] = (200, "<root><people><person><id>5</id></person></people></root>")
        assert [contact.id for contact in await account.all(account.crm.contacts)] == [5]


# ------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize("status", ["200", "400"])
@pytest.mark.asyncio
async def test_an_error_inside_an_answer_is_a_refusal_with_the_vendors_words(status):
    async with opened(error_status=status) as account:
        with pytest.raises(Rejected) as refused:
            await account.crm.contacts.create(Contact(name="A", owner=Ref(Kind.USER, 999)))
        assert refused.value.code == "400"
        assert "there is no user 999" in str(refused.value)


@pytest.mark.parametrize("how", ["error", "404", "silence"])
@pytest.mark.asyncio
async def test_a_row_that_is_not_there_is_not_found_in_whatever_way_it_is_told(how):
    async with opened(unknown_id=how) as account:
        for reading in (
            account.crm.contacts.get(999),
            account.crm.deals.get(999),
            account.crm.contacts.update(Contact(id=999, name="A")),
            account.all(account.crm.notes, target=Ref(Kind.DEAL, 999)),
        ):
            with pytest.raises(NotFound):
                await reading
        # Silence may be anything: then it is said that nobody knows.
        with pytest.raises(AmbiguousWrite if how == "silence" else NotFound):
            await account.crm.contacts.delete(999)


@pytest.mark.parametrize(
    "status, body, error",
    [
        (200, "<html><body>Maintenance</body></html>", Unreadable),
        (200, "", Unreadable),
        (200, "<root><people/></root>", Unreadable),
        (200, "<root><contacts>", Unreadable),
        (200, "<!DOCTYPE a [<!ENTITY b 'c'>]><root/>", Unreadable),
        (404, "<html><h1>404</h1></html>", NotFound),
        (403, "<html><h1>403</h1></html>", AuthFailed),
        (502, "<html><h1>502</h1></html>", Unavailable),
        (301, "", Unreadable),
    ],
)
@pytest.mark.asyncio
async def test_what_is_no_answer_is_judged_by_its_status(status, body, error):
    async with opened() as account:
        account.wire.instead["contacts.php"] = (status, body)
        with pytest.raises(error):
            await account.all(account.crm.contacts)


HUGE = {
    "deeper than 64": "<root>" + "<a>" * 64 + "</a>" * 64 + "</root>",
    "more than 64 attributes": "<root><contacts " + " ".join(f'a{n}="1"' for n in range(65)) + "/></root>",
    "more than 1000 elements": "<root><contacts>" + "<contact/>" * 1000 + "</contacts></root>",
    "larger than 100000 bytes": f"<root><contacts>{' ' * 100_000}</contacts></root>",
    "declares a document type": "<!DOCTYPE root SYSTEM 'http://evil.example/x.dtd'><root><contacts/></root>",
}


@pytest.mark.parametrize("why", HUGE)
@pytest.mark.asyncio
async def test_an_answer_is_bounded_in_depth_nodes_attributes_and_bytes_and_declares_nothing(why):
    dialect = evolve(DIALECT, format=FormsInXmlOut(nodes=1000))
    async with opened(dialect=dialect, limits=Limits(body=100_000)) as account:
        account.wire.instead["contacts.php"] = (200, HUGE[why])
        with pytest.raises(Unreadable, match=why):
            await account.all(account.crm.contacts)
        # What a write was answered with is no reason to write again.
        account.wire.instead["contact_add.php"] = (200, HUGE[why])
        with pytest.raises(AmbiguousWrite):
            await account.crm.contacts.create(Contact(name="A"))
        assert account.wire.pages().count("contact_add.php") == 1


@pytest.mark.parametrize("body", ["", "<root/>", "<html/>", "<root><result>true</result><id>x</id></root>"])
@pytest.mark.asyncio
async def test_a_write_that_is_answered_with_neither_result_nor_error_is_unknown_and_not_repeated(body):
    async with opened() as account:
        account.wire.instead["contact_add.php"] = (200, body)
        with pytest.raises(AmbiguousWrite):
            await account.crm.contacts.create(IVAN)
        assert account.wire.pages().count("contact_add.php") == 1


def test_a_result_that_says_no_is_a_refusal():
    with pytest.raises(Rejected):
        wire.written(answer("<result>false</result>"), [])


@pytest.mark.asyncio
async def test_a_search_that_found_nothing_may_answer_with_nothing():
    async with opened() as account:
        account.wire.instead["contact_search.php"] = (200, "<root/>")
        assert not [contact async for contact in account.crm.contacts.search("A")]


@pytest.mark.asyncio
async def test_reading_pages_are_posts_and_a_read_only_client_may_send_them():
    async with opened(read_only=True) as account:
        assert await account.all(account.crm.contacts) == []
        with pytest.raises(ReadOnly):
            await account.crm.contacts.create(IVAN)


def test_what_the_seed_cannot_do_is_told_beforehand():
    verbs = {entity.__name__: set(verbs) for entity, verbs in DIALECT.capabilities.items()}
    all_but_complete = set(Verb) - {Verb.COMPLETE}
    assert verbs == {
        "Contact": all_but_complete,
        "Deal": all_but_complete,
        "Note": all_but_complete - {Verb.GET},
        "Task": set(Verb) - {Verb.GET},
    }


def test_the_contacts_page_is_asked_in_the_body_and_a_search_changes_the_page():
    listing = DIALECT.resource(Contact).routes[Verb.LIST]
    asked = listing.filters["text"](listing.call, Filter(text="Иван"))
    assert asked == Call("POST", "/private/api/contact_search.php", body={"SEARCH": "Иван"}, safe=True, replayable=True)
