"""The XML sandbox takes what the seed and its published clients send, and answers in the words we proposed."""

import ast
import itertools
import re
import xml.etree.ElementTree as ET
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from crmclient.clock import FakeClock
from crmclient.sandbox.server import in_process, serve
from crmclient.sandbox.world import LOST, WON, World, populate
from crmclient_amoxml import sandbox
from crmclient_amoxml.sandbox import FACE, ITEMS, PREFIX, READING, SWITCHES, WRITING, logins

PERSON = {
    "contact[person_name]": "Иван Петров",
    "contact[person_position]": "Менеджер",
    "contact[person_company_name]": "ООО Ромашка",
    "contact[person_company_id]": "",
    "contact[contact_data][phone_numbers][0][number]": "+70000000001",
    "contact[contact_data][phone_numbers][1][location]": "Work",
    "contact[contact_data][phone_numbers][2][number]": "+74998910111",
    "contact[contact_data][phone_numbers][3][location]": "Mobile",
    "contact[contact_data][email_addresses][0][address]": "user@example.com",
    "contact[contact_data][email_addresses][1][location]": "Work",
    "contact[contact_data][web_addresses][0][url]": "http://www.example.com",
    "contact[contact_data][addresses][street]": "Москва, ул. Ленина, 1",
    "contact[contact_data][instant_messengers][0][address]": "imaddr",
    "contact[contact_data][instant_messengers][1][protocol]": "Skype",
    "contact[tags]": "демо, второй тег",
}


class Caller:
    """A program of 2013: credentials in every call, PHP's forms, and an XML tree back."""

    def __init__(self, http, running, login):
        self.http = http
        self.running = running
        self.login = login
        self.world = running.world
        self.desk = logins(running.account)

    async def send(self, page, form=None, *, status=200, login=None, **fields):
        given = self.login if login is None else login
        answer = await self.http.post(PREFIX + page, data={**given, **(form or {}), **fields})
        assert answer.status_code == status, answer.text
        return ET.fromstring(answer.text)

    async def add(self, form=None, **fields):
        return int(
            (await self.send("contact_add.php", {**(form or PERSON), **fields}, ACTION="ADD_PERSON")).findtext("id")
        )

    async def refused(self, page, form=None, *, status=200, **fields):
        root = await self.send(page, form, status=status, **fields)
        assert root.find("result") is None
        return root.findtext("error")


@asynccontextmanager
async def opened(*, world=None, limits=True, **switches):
    """A caller of a sandbox in process; switches are written with underscores."""
    given = {name.replace("_", "-"): value for name, value in switches.items()}
    running = in_process(FACE, world or World(clock=FakeClock()), switches=given, limits=limits)
    login = {"USER_LOGIN": running.credentials["login"], "USER_HASH": running.credentials["hash"]}
    async with httpx.AsyncClient(transport=running.transport(), base_url=running.base_url) as http:
        yield Caller(http, running, login)


def peopled(**numbers):
    world = World(clock=FakeClock())
    populate(world, **numbers)
    return world


def deal_form(**fields):
    return {f"deal[{key}]": str(value) for key, value in fields.items()}


def bargain(world, **row):
    """A deal as the world would have one, on the first stage there is."""
    stage = world.select("stage", where={"type": "open"})[0]
    return world.add("deal", {"name": "D", "pipeline_id": stage["pipeline_id"], "stage_id": stage["id"], **row})


def ids(root, path):
    return [int(found.text) for found in root.findall(path)]


def plain(element):
    """An element as tag and text or children."""
    return (element.tag, [plain(child) for child in element]) if len(element) else (element.tag, element.text or "")


# --- coming in


@pytest.mark.parametrize("key", ["hash", "password"])
@pytest.mark.parametrize("how", ["data", "params", "files"])
@pytest.mark.asyncio
async def test_a_login_by_key_or_password_in_a_form_a_query_or_multipart_opens_a_session(key, how):
    async with opened() as crm:
        fields = {"USER_LOGIN": crm.login["USER_LOGIN"], f"USER_{key.upper()}": crm.running.credentials[key]}
        given = {how: {name: (None, value) for name, value in fields.items()} if how == "files" else fields}
        answer = await crm.http.post(PREFIX + "auth.php", **given)
        assert answer.status_code == 200
        assert answer.text == '<?xml version="1.0" encoding="UTF-8"?>\n<root>\n\t<auth>true</auth>\n</root>\n'
        assert answer.headers["content-type"] == "text/xml; charset=utf-8"
        assert (crm.desk.count, crm.desk.refused) == (1, 0)
        assert (await crm.http.get(PREFIX + "contacts.php")).status_code == 200


@pytest.mark.parametrize("switch, status", [("200", 200), ("401", 401)])
@pytest.mark.asyncio
async def test_a_wrong_login_is_told_in_the_body(switch, status):
    async with opened(wrong_login=switch) as crm:
        for wrong in (
            {},
            {"USER_LOGIN": "x"},
            {**crm.login, "USER_HASH": "x"},
            {"USER_LOGIN": crm.login["USER_LOGIN"]},
        ):
            root = await crm.send("auth.php", wrong, login={}, status=status)
            assert plain(root) == ("root", [("auth", "false")])
        assert (crm.desk.count, crm.desk.refused) == (0, 4)
        assert not crm.http.cookies


@pytest.mark.parametrize("switch, status", [("401", 401), ("200", 200)])
@pytest.mark.parametrize("page", [*READING, *WRITING])
@pytest.mark.asyncio
async def test_every_other_page_keeps_out_who_is_not_logged_in(page, switch, status):
    async with opened(not_logged_in=switch) as crm:
        for login in ({}, {**crm.login, "USER_HASH": "old"}):
            root = await crm.send(page, login=login, status=status)
            assert plain(root) == ("root", [("auth", "false")])


@pytest.mark.asyncio
async def test_a_session_lasts_fifteen_minutes_from_the_login():
    async with opened() as crm:
        await crm.send("auth.php")
        for _ in range(2):
            crm.running.account.clock.advance(449)
            await crm.send("contacts.php", login={})
        crm.running.account.clock.advance(2)
        await crm.send("contacts.php", login={}, status=401)


@pytest.mark.asyncio
async def test_a_sliding_session_lives_as_long_as_it_is_used():
    async with opened(session="sliding") as crm:
        await crm.send("auth.php")
        for _ in range(4):
            crm.running.account.clock.advance(899)
            await crm.send("contacts.php", login={})
        crm.running.account.clock.advance(900)
        await crm.send("contacts.php", login={}, status=401)


@pytest.mark.asyncio
async def test_sessions_can_be_expired_and_passwords_changed_with_their_keys():
    async with opened() as crm:
        await crm.send("auth.php")
        crm.desk.expire()
        await crm.send("contacts.php", login={}, status=401)
        old = crm.desk.of()
        new = crm.desk.change()
        assert old["login"] == new["login"]
        assert not {old["hash"], old["password"]} & {new["hash"], new["password"]}
        assert (await crm.send("auth.php")).findtext("auth") == "false"
        assert (await crm.send("auth.php", USER_HASH=new["hash"])).findtext("auth") == "true"
        assert crm.desk.count == 2


@pytest.mark.asyncio
async def test_credentials_come_with_every_call_or_not_as_the_switches_say():
    async with opened(credentials_per_call=False) as crm:
        await crm.send("contacts.php", status=401)
        await crm.send("auth.php")
        await crm.send("contacts.php")
    async with opened(password_login=False) as crm:
        by_password = {"USER_LOGIN": crm.login["USER_LOGIN"], "USER_PASSWORD": crm.running.credentials["password"]}
        assert (await crm.send("auth.php", login=by_password)).findtext("auth") == "false"
        assert (await crm.send("auth.php")).findtext("auth") == "true"


@pytest.mark.asyncio
async def test_what_is_written_is_written_by_the_one_who_logged_in():
    async with opened() as crm:
        anna = crm.world.select("user")[-1]
        known = crm.desk.of(anna["id"])
        crm.login = {"USER_LOGIN": known["login"], "USER_PASSWORD": known["password"]}
        row = crm.world.row("contact", await crm.add())
        assert row["owner"] == row["created_by"] == row["updated_by"] == anna["id"]
        assert crm.world.row("company", row["company_id"])["created_by"] == anna["id"]


@pytest.mark.asyncio
async def test_a_bearer_token_is_taken_by_the_search_of_contacts_alone_and_behind_its_switch():
    for switch, statuses in ((True, (200, 401, 401)), (False, (401, 401, 401))):
        async with opened(bearer=switch) as crm:
            token = crm.desk.issue_token()
            asked = (("contact_search.php", token), ("contacts.php", token), ("contact_search.php", "x"))
            for (page, given), status in zip(asked, statuses, strict=True):
                answer = await crm.http.get(PREFIX + page, headers={"Authorization": f"Bearer {given}"})
                assert answer.status_code == status


@pytest.mark.parametrize("switch, taken", [("all", 6), ("search", 1), ("none", 0)])
@pytest.mark.asyncio
async def test_reading_pages_take_get_as_the_switch_says(switch, taken):
    async with opened(get_reads=switch) as crm:
        answers = [await crm.http.get(PREFIX + page, params=crm.login) for page in READING]
        assert sum(answer.status_code == 200 for answer in answers) == taken


@pytest.mark.asyncio
async def test_a_writing_page_reads_no_query():
    async with opened() as crm:
        answer = await crm.http.get(PREFIX + "contact_add.php", params={**crm.login, **PERSON, "ACTION": "ADD_PERSON"})
        assert answer.status_code == 401
        await crm.send("auth.php")
        answer = await crm.http.get(PREFIX + "contact_add.php", params={**PERSON, "ACTION": "ADD_PERSON"})
        assert "Unknown ACTION" in answer.text
        assert crm.world.count("contact") == 0


@pytest.mark.asyncio
async def test_no_limit_is_enforced_unless_it_is_seven_a_second():
    async with opened() as crm:
        assert [(await crm.send("contacts.php")).tag for _ in range(30)] == ["root"] * 30
    async with opened(rate="7") as crm:
        for _ in range(7):
            await crm.send("contacts.php")
        answer = await crm.http.post(PREFIX + "contacts.php", data=crm.login)
        assert answer.status_code == 429
        assert answer.headers["content-type"].startswith("text/html")
        crm.running.account.clock.advance(1)
        await crm.send("contacts.php")
        assert crm.running.stats.refused == 1


@pytest.mark.asyncio
async def test_a_wrong_path_or_method_is_answered_in_html():
    async with opened() as crm:
        for method, path, status in (("POST", "companies.php", 404), ("PUT", "contacts.php", 405)):
            answer = await crm.http.request(method, PREFIX + path)
            assert answer.status_code == status
            assert "<h1>" in answer.text


# --- contacts


@pytest.mark.asyncio
async def test_the_contact_of_the_seed_comes_back_whole():
    async with opened() as crm:
        id = await crm.add()
        row = crm.world.row("contact", id)
        admin = crm.world.admin
        assert row["phones"] == [
            {"value": "+70000000001", "label": "work"},
            {"value": "+74998910111", "label": "mobile"},
        ]
        contact = (await crm.send("contact_detail.php", ID=str(id))).find("contact")
        assert plain(contact) == (
            "contact",
            [
                ("id", str(id)),
                ("name", "Иван Петров"),
                ("position", "Менеджер"),
                ("company", [("id", str(row["company_id"])), ("name", "ООО Ромашка")]),
                ("is_company", "0"),
                (
                    "phones",
                    [
                        ("phone", [("number", "+70000000001"), ("location", "Work")]),
                        ("phone", [("number", "+74998910111"), ("location", "Mobile")]),
                    ],
                ),
                ("emails", [("email", [("address", "user@example.com"), ("location", "Work")])]),
                ("webs", [("web", [("url", "http://www.example.com")])]),
                ("addresses", [("address", [("street", "Москва, ул. Ленина, 1")])]),
                ("messengers", [("messenger", [("address", "imaddr"), ("protocol", "Skype")])]),
                ("tags", [("tag", "демо"), ("tag", "второй тег")]),
                ("user", [("id", str(admin["id"])), ("name", admin["name"])]),
                ("date_create", "20.03.2026 13:15:00"),
                ("date_modify", "20.03.2026 13:15:00"),
                ("deals", ""),
            ],
        )


@pytest.mark.asyncio
async def test_the_answer_is_indented_as_the_programs_that_cut_it_with_split_expect():
    async with opened() as crm:
        await crm.add()
        answer = await crm.http.get(PREFIX + "contact_search.php", params={**crm.login, "SEARCH": "+70000000001"})
        assert answer.text.startswith('<?xml version="1.0" encoding="UTF-8"?>\n<root>\n\t<onpage>30</onpage>\n')
        name = answer.text.expandtabs(0).split("</id>\n<name>")[1].split("</name>")[0]
        assert name == "Иван Петров"
        assert ET.fromstring(answer.text).find("contacts/contact/phones")[0][0].text == "+70000000001"


PHONES_SENT = [
    ({"[0][number]": "1", "[1][location]": "Work", "[2][number]": "2", "[3][location]": "Home"}, ["1 Work", "2 Home"]),
    ({"[0][number]": "1", "[0][location]": "Fax", "[1][number]": "2", "[1][location]": "MOB"}, ["1 Fax", "2 Mobile"]),
    ({"[0][location]": "Fax", "[0][number]": "1"}, ["1 Fax"]),
    ({"[][number]": "1", "[a][location]": "Other"}, ["1 Other"]),
    ({"[0][location]": "Home", "[1][number]": "1"}, ["1 Work"]),
    ({"[0][number]": "", "[1][location]": "Home", "[2][number]": "2"}, ["2 Work"]),
    ({"[0][number]": "1", "[1][number]": "", "[2][location]": "Home"}, ["1 Work"]),
    ({"[0][number]": "1", "[1][location]": "Work", "[2][location]": "workdd"}, ["1 WorkDD"]),
    ({"[number]": "1", "[location]": "Home"}, ["1 Home"]),
    ({"[0][number]": "1", "[1][location]": "Дача"}, ["1 Дача"]),
    ({"[0][color]": "red"}, []),
    ({"": ""}, []),
]


@pytest.mark.parametrize("sent, shown", PHONES_SENT)
@pytest.mark.asyncio
async def test_paired_phones_are_read_in_every_form_that_was_ever_sent(sent, shown):
    async with opened() as crm:
        form = {f"contact[contact_data][phone_numbers]{key}": value for key, value in sent.items()}
        root = await crm.send("contact_detail.php", ID=str(await crm.add({"contact[person_name]": "A", **form})))
        assert [f"{phone[0].text} {phone[1].text}" for phone in root.findall("contact/phones/phone")] == shown


@pytest.mark.asyncio
async def test_addresses_come_as_a_map_or_as_a_list():
    async with opened() as crm:
        key = "contact[contact_data][addresses]"
        for sent, streets in (
            ({f"{key}[street]": "A"}, ["A"]),
            ({f"{key}[0][street]": "A", f"{key}[1][street]": "B"}, ["A", "B"]),
        ):
            root = await crm.send("contact_detail.php", ID=str(await crm.add(sent)))
            assert [street.text for street in root.findall("contact/addresses/address/street")] == streets


@pytest.mark.asyncio
async def test_multipart_is_read_like_a_form():
    async with opened() as crm:
        fields = {**crm.login, **PERSON, "ACTION": "ADD_PERSON", "contact[person_name]": "Две\r\nстроки --x"}
        parts = {name: (None, value) for name, value in fields.items()}
        parts["upload"] = ("a.txt", b"\r\n--\xff", "text/plain")
        answer = await crm.http.post(PREFIX + "contact_add.php", files=parts)
        row = crm.world.row("contact", int(ET.fromstring(answer.text).findtext("id")))
        assert row["name"] == "Две\r\nстроки --x"
        assert [phone["label"] for phone in row["phones"]] == ["work", "mobile"]


def serialized(value):
    match value:
        case dict():
            return f"a:{len(value)}:{{{''.join(serialized(key) + serialized(item) for key, item in value.items())}}}"
        case int():
            return f"i:{value};"
        case _:
            return f's:{len(value.encode())}:"{value}";'


@pytest.mark.asyncio
async def test_a_serialized_array_is_read_behind_its_switch():
    contact = {
        "person_name": 'Иван "; Петров',
        "contact_data": {"phone_numbers": {0: {"number": "+70000000001"}, 1: {"location": "Home"}}},
        "main_user_id": 0,
        "tags": "демо",
    }
    async with opened(serialize=True) as crm:
        row = crm.world.row("contact", await crm.add({"contact": serialized(contact)}))
        assert (row["name"], row["tags"]) == ('Иван "; Петров', ["демо"])
        assert row["phones"] == [{"value": "+70000000001", "label": "home"}]
    async with opened() as crm:
        assert "must be an array" in await crm.refused(
            "contact_add.php", ACTION="ADD_PERSON", contact=serialized(contact)
        )


@pytest.mark.parametrize(
    "data",
    [
        'O:8:"stdClass":0:{}',
        'a:1:{s:1:"a";O:8:"stdClass":0:{}}',
        "a:1:{i:0;b:1;}",
        "a:1:{i:0;d:0.5;}",
        "a:2:{i:0;i:1;}",
        'a:1:{i:0;s:99:"a";}',
        "a:0:{}x",
        "a:1:{a:0:{}i:1;}",
        "a:1:{i:0;" * 50,
        'C:1:"A":0:{}',
        "a:1:{",
    ],
)
@pytest.mark.asyncio
async def test_objects_and_torn_arrays_are_refused(data):
    async with opened(serialize=True) as crm:
        error = await crm.refused("contact_add.php", ACTION="ADD_PERSON", contact=data)
        assert error == "Not a serialized array"
        assert crm.world.count("contact") == 0


@pytest.mark.asyncio
async def test_forms_too_deep_or_too_many_are_refused():
    async with opened() as crm:
        assert "deeper" in await crm.refused("contact_add.php", {"contact" + "[a]" * 8: "x"}, ACTION="ADD_PERSON")
        many = {f"contact[a][{n}]": "x" for n in range(1000)}
        assert "More than 1000" in await crm.refused("contact_add.php", many, ACTION="ADD_PERSON")
        files = {name: (None, value) for name, value in many.items()}
        answer = await crm.http.post(PREFIX + "contact_add.php", data=crm.login, files=files)
        assert "More than 1000" in answer.text


@pytest.mark.asyncio
async def test_an_array_where_a_string_belongs_is_refused_and_a_string_where_an_array():
    async with opened() as crm:
        for form in (
            {"contact[person_name][0]": "A"},
            {"contact[tags][]": "A"},
            {"contact[contact_data][phone_numbers]": "+7"},
            {"contact[contact_data][phone_numbers][]": "+7"},
            {"contact": "A"},
            {},
        ):
            assert " must be a" in await crm.refused("contact_add.php", form, ACTION="ADD_PERSON")
        assert crm.world.count("contact") == 0


@pytest.mark.asyncio
async def test_edit_erases_every_key_left_out():
    async with opened() as crm:
        id = await crm.add()
        root = await crm.send("contact_add.php", {"contact[person_name]": "Иван"}, ACTION="EDIT", ID=str(id))
        assert plain(root) == ("root", [("result", "true"), ("id", str(id))])
        row = crm.world.row("contact", id)
        assert row["name"] == "Иван"
        assert [row[items.column] for items in ITEMS] == [[]] * 5
        assert (row["position"], row["company"], row["company_id"], row["tags"]) == (None, None, None, [])
        await crm.send("contact_add.php", {"contact[tags]": "демо"}, ACTION="EDIT", ID=str(id))
        assert crm.world.row("contact", id)["name"] == ""


@pytest.mark.asyncio
async def test_edit_keeps_what_is_left_out_behind_its_switch_and_empties_what_is_sent_empty():
    async with opened(left_out="keep") as crm:
        id = await crm.add()
        before = crm.world.row("contact", id)
        form = {"contact[person_position]": "", "contact[contact_data][email_addresses]": ""}
        await crm.send("contact_add.php", form, ACTION="EDIT", ID=str(id))
        assert crm.world.row("contact", id) == {**before, "position": None, "emails": []}


@pytest.mark.asyncio
async def test_a_contact_read_and_written_back_is_the_same_and_keeps_what_the_page_cannot_say():
    world = peopled(contacts=40, companies=5)
    async with opened(world=world) as crm:
        for before in world.select("contact"):
            contact = (await crm.send("contact_detail.php", ID=str(before["id"]))).find("contact")
            form = {
                "contact[person_name]": contact.findtext("name"),
                "contact[person_position]": contact.findtext("position", ""),
                "contact[person_company_id]": contact.findtext("company/id", ""),
                "contact[main_user_id]": contact.findtext("user/id"),
                "contact[tags]": ",".join(tag.text for tag in contact.findall("tags/tag")),
            }
            for items in ITEMS:
                for n, item in enumerate(contact.find(items.tags[0])):
                    keys = (items.value, items.label)
                    for k, child in enumerate(item):
                        form[f"contact[contact_data][{items.key}][{2 * n + k}][{keys[k]}]"] = child.text
            await crm.send("contact_add.php", form, ACTION="EDIT", ID=str(before["id"]))
            changed = ("updated_at", "updated_by")
            after = world.row("contact", before["id"])
            assert {k: v for k, v in after.items() if k not in changed} == {
                k: v for k, v in before.items() if k not in changed
            }


@pytest.mark.asyncio
async def test_a_company_is_found_by_its_id_or_exact_name_and_else_made():
    async with opened() as crm:
        known = crm.world.add("company", {"name": "Вектор"})
        sent = [
            ({"person_company_id": str(known)}, known, "Вектор"),
            ({"person_company_name": "Вектор", "person_company_id": "0"}, known, "Вектор"),
            ({"person_company_name": "Другое", "person_company_id": str(known)}, known, "Вектор"),
            ({"person_company_name": "Вектор-2"}, None, "Вектор-2"),
        ]
        for form, company_id, name in sent:
            row = crm.world.row("contact", await crm.add({f"contact[{key}]": value for key, value in form.items()}))
            assert row["company"] == name
            assert row["company_id"] == (company_id or crm.world.select("company")[-1]["id"])
        assert crm.world.count("company") == 2
    async with opened(company_by_name="name-only") as crm:
        row = crm.world.row("contact", await crm.add())
        assert (row["company"], row["company_id"], crm.world.count("company")) == ("ООО Ромашка", None, 0)


@pytest.mark.asyncio
async def test_deleting_a_contact_takes_its_notes_and_tasks_and_leaves_its_deals():
    for switch, left in ((True, 0), (False, 1)):
        async with opened(cascade=switch) as crm:
            id = await crm.add()
            deal = bargain(crm.world, contacts=[{"id": id, "main": True}])
            for kind in ("note", "task"):
                crm.world.add(kind, {"target_kind": "contact", "target_id": id})
                crm.world.add(kind, {"target_kind": "deal", "target_id": deal})
            await crm.send("contact_delete.php", ACTION="DELETE", ID=str(id))
            assert crm.world.get("contact", id) is None
            assert crm.world.row("deal", deal)["contacts"] == []
            assert (crm.world.count("note"), crm.world.count("task")) == (1 + left, 1 + left)


@pytest.mark.asyncio
async def test_a_person_needs_a_name_only_behind_the_switch():
    async with opened() as crm:
        assert crm.world.row("contact", await crm.add({"contact[tags]": "a"}))["name"] == ""
    async with opened(required="all") as crm:
        assert await crm.refused("contact_add.php", {"contact[tags]": "a"}, ACTION="ADD_PERSON") == (
            "person_name is required"
        )
        assert await crm.refused("note_add.php", ACTION="ADD_NOTE", ID="1", ELEMENT_TYPE="1") == "BODY is required"


@pytest.mark.parametrize("action", ["", "ADD", "add_person", "DELETE"])
@pytest.mark.asyncio
async def test_an_action_of_another_spelling_or_page_is_refused(action):
    async with opened() as crm:
        assert await crm.refused("contact_add.php", PERSON, ACTION=action) == f"Unknown ACTION {action}"


# --- unknown ids and references

ABSENT = [
    ("contact_detail.php", {}),
    ("deal_detail.php", {}),
    ("contact_add.php", {"ACTION": "EDIT", **PERSON}),
    ("contact_delete.php", {"ACTION": "DELETE"}),
    ("deal_add.php", {"ACTION": "EDIT", **deal_form(name="D")}),
    ("deal_delete.php", {"ACTION": "DELETE"}),
    ("note_add.php", {"ACTION": "ADD_NOTE", "BODY": "a", "ELEMENT_TYPE": "1"}),
    ("note_add.php", {"ACTION": "EDIT_NOTE", "BODY": "a"}),
    ("note_add.php", {"ACTION": "NOTE_DELETE"}),
    ("task_add.php", {"ACTION": "EDIT_TASK"}),
    ("task_add.php", {"ACTION": "TASK_DELETE"}),
    ("task_add.php", {"ACTION": "COMPLATE_TASK"}),
]


@pytest.mark.parametrize("page, form", ABSENT)
@pytest.mark.asyncio
async def test_an_unknown_id_is_an_error_inside_a_200_or_what_the_switch_says(page, form):
    async with opened() as crm:
        root = await crm.send(page, form, ID="999999")
        assert [child.tag for child in root] == ["error", "error_code"]
        assert root.findtext("error").endswith(" not found")
        assert root.findtext("error_code") == "404"
        for wrong in ("", "0", "abc", "-1", "9" * 30):
            assert await crm.refused(page, form, ID=wrong) in ("ID is required", "ID must be a number")
    async with opened(unknown_id="404") as crm:
        assert (await crm.refused(page, form, ID="999999", status=404)).endswith(" not found")
    async with opened(unknown_id="silence") as crm:
        assert plain(await crm.send(page, form, ID="999999")) == ("root", "")


@pytest.mark.parametrize(
    "page, action, key",
    [
        ("contact_add.php", "ADD_PERSON", "contact[main_user_id]"),
        ("contact_add.php", "ADD_PERSON", "contact[person_company_id]"),
        ("deal_add.php", "ADD", "deal[main_user_id]"),
        ("deal_add.php", "ADD", "deal[linked_contact]"),
        ("deal_add.php", "ADD", "deal[status_id]"),
    ],
)
@pytest.mark.asyncio
async def test_an_unknown_reference_is_refused_or_ignored(page, action, key):
    async with opened() as crm:
        assert "there is no" in await crm.refused(page, {key: "999999"}, ACTION=action)
        assert crm.world.count("contact") + crm.world.count("deal") == 0
    async with opened(unknown_reference="ignore") as crm:
        assert (await crm.send(page, {key: "999999"}, ACTION=action)).findtext("result") == "true"
    async with opened(error_status="400") as crm:
        await crm.refused(page, {key: "999999"}, ACTION=action, status=400)


# --- lists and searches


@pytest.mark.parametrize("page, tag", [("contacts.php", "contacts/contact"), ("deals.php", "deals/deal")])
@pytest.mark.asyncio
async def test_lists_are_read_page_by_page_to_the_last_and_the_last_comes_again(page, tag):
    world = peopled(contacts=65, deals=65)
    async with opened(world=world) as crm:
        read = []
        for number in range(1, 6):
            root = await crm.send(page, PAGEN_1=str(number))
            shown = [root.findtext(name) for name in ("onpage", "totalpages", "currpage")]
            assert shown == ["30", "3", str(min(number, 3))]
            read.append(ids(root, f"{tag}/id"))
        assert [len(each) for each in read] == [30, 30, 5, 5, 5]
        assert read[2] == read[3] == read[4]
        whole = [id for each in read[:3] for id in each]
        assert whole == [row["id"] for row in world.select(page.partition("s.")[0])]


@pytest.mark.asyncio
async def test_a_page_beyond_the_last_is_what_the_switch_says():
    for switch, page, count in (("first", "1", 30), ("empty", "9", 0)):
        async with opened(world=peopled(contacts=35), beyond_last=switch) as crm:
            root = await crm.send("contacts.php", PAGEN_1="9")
            assert (root.findtext("currpage"), len(root.findall("contacts/contact"))) == (page, count)


@pytest.mark.parametrize(
    "switches, form, count",
    [
        ({}, {}, 30),
        ({}, {"ELEMENT_CONT": "7"}, 7),
        ({}, {"ELEMENT_COUNT": "8"}, 8),
        ({}, {"ELEMENT_COUNT": "abc"}, 30),
        ({}, {"ELEMENT_CONT": "0", "ELEMENT_COUNT": "8"}, 8),
        ({}, {"ELEMENT_COUNT": "10000"}, 120),
        ({}, {"PAGEN_1": "-1"}, 30),
        ({"rows_name": "ELEMENT_CONT"}, {"ELEMENT_COUNT": "8"}, 30),
        ({"rows_name": "ELEMENT_COUNT"}, {"ELEMENT_CONT": "8"}, 30),
        ({"rows": "10"}, {}, 10),
        ({"rows_at_most": "100"}, {"ELEMENT_COUNT": "10000"}, 100),
    ],
)
@pytest.mark.asyncio
async def test_the_number_of_rows_goes_by_either_name(switches, form, count):
    async with opened(world=peopled(contacts=120), **switches) as crm:
        assert len((await crm.send("contacts.php", form)).findall("contacts/contact")) == count


@pytest.mark.asyncio
async def test_an_empty_account_has_one_empty_page():
    async with opened() as crm:
        for page, tag in (("contacts.php", "contacts"), ("deals.php", "deals")):
            marks = [("onpage", "30"), ("totalpages", "1"), ("currpage", "1")]
            assert plain(await crm.send(page)) == ("root", [*marks, (tag, "")])


@pytest.mark.asyncio
async def test_lists_give_the_full_form_or_the_short():
    world = peopled(contacts=3, companies=3, deals=3)
    async with opened(world=world, order="newest") as crm:
        root = await crm.send("contacts.php")
        detail = await crm.send("contact_detail.php", ID=root.findtext("contacts/contact/id"))
        assert plain(root.find("contacts/contact")) == plain(detail.find("contact"))
        assert ids(root, "contacts/contact/id") == [row["id"] for row in world.select("contact", descending=True)]
    async with opened(world=world, list_form="short") as crm:
        for contact in (await crm.send("contacts.php")).findall("contacts/contact"):
            tags = [child.tag for child in contact if child.tag != "position"]
            assert tags == ["id", "name", "company", "is_company", "phones", "user"]
        assert (await crm.send("deals.php")).find("deals/deal/contacts") is not None


@pytest.mark.asyncio
async def test_a_search_finds_names_mails_companies_tags_and_phones_by_their_digits():
    async with opened() as crm:
        id = await crm.add()
        company = crm.world.row("contact", id)["company_id"]
        await crm.add(
            {
                "contact[person_name]": "Anna",
                "contact[contact_data][phone_numbers][0][number]": "8 (999) 123-45-67",
                "contact[tags]": "VIP, Тёплый",
            }
        )
        anna = crm.world.select("contact")[-1]["id"]
        for word, found in (
            ("петров", [id]),
            ("user@example", [id]),
            ("Ромашка", [id, company]),
            ("ВТОРОЙ тег", [id]),
            ("+70000000001", [id]),
            ("тёплый", [anna]),
            ("89991234567", [anna]),
            ("(999) 123-45", [anna]),
            ("vip", [anna]),
            ("нет такого", []),
            ("---", []),
            ("%", []),
        ):
            root = await crm.send("contact_search.php", SEARCH=word)
            assert ids(root, "contacts/contact/id") == found, word
        crm.world.update("contact", anna, {"deleted": True})
        assert ids(await crm.send("contact_search.php", SEARCH="vip"), "contacts/contact/id") == []


@pytest.mark.asyncio
async def test_companies_come_as_contacts_where_the_switch_has_them():
    for switch, searched, listed, detailed in (
        ("search", 1, 0, "Contact not found"),
        ("everywhere", 1, 1, None),
        ("nowhere", 0, 0, "Contact not found"),
    ):
        async with opened(companies=switch) as crm:
            company = crm.world.add("company", {"name": "Вектор", "phones": [{"value": "+7", "label": "work"}]})
            deal = bargain(crm.world, company_id=company)
            root = await crm.send("contact_search.php", SEARCH="вектор")
            assert ids(root, "contacts/contact/id") == [company] * searched
            if searched:
                assert root.findtext("contacts/contact/is_company") == "1"
                assert ids(root, "contacts/contact/deals/deal/id") == [deal]
            assert ids(await crm.send("contacts.php"), "contacts/contact/id") == [company] * listed
            assert (await crm.send("contact_detail.php", ID=str(company))).findtext("error") == detailed


@pytest.mark.asyncio
async def test_a_search_pages_over_contacts_and_then_companies():
    world = World(clock=FakeClock())
    world.add_many("company", [{"name": f"Альфа {n}"} for n in range(7)])
    world.add_many("contact", [{"name": f"Альфа {n}"} for n in range(5)])
    async with opened(world=world) as crm:
        read = [
            [row.findtext("is_company") for row in root.findall("contacts/contact")]
            for page in (1, 2, 3, 4)
            for root in [await crm.send("contact_search.php", SEARCH="Альфа", ELEMENT_COUNT="4", PAGEN_1=str(page))]
        ]
        assert read == [["0"] * 4, ["0", "1", "1", "1"], ["1"] * 4, ["1"] * 4]
    async with opened(world=world, search_paging=False) as crm:
        assert [child.tag for child in await crm.send("contact_search.php", SEARCH="x")] == ["contacts"]


@pytest.mark.asyncio
async def test_of_several_searches_the_last_counts_or_any():
    for switch, count in (("last", 1), ("any", 2)):
        async with opened(many_searches=switch) as crm:
            for name in ("Анна", "Борис", "Вера"):
                await crm.add({"contact[person_name]": name})
            query = [*crm.login.items(), ("SEARCH", "Анна"), ("SEARCH", "Вера")]
            answer = await crm.http.get(PREFIX + "contact_search.php", params=query)
            assert len(ET.fromstring(answer.text).findall("contacts/contact")) == count


@pytest.mark.asyncio
async def test_a_deal_is_found_by_its_name_tags_contacts_and_company():
    async with opened() as crm:
        contact = await crm.add()
        company = crm.world.add("company", {"name": "Север"})
        form = deal_form(name="Поставка", tags="срочно", linked_contact=contact)
        deal = int((await crm.send("deal_add.php", form, ACTION="ADD")).findtext("id"))
        other = bargain(crm.world, name="Другая", company_id=company)
        for word, found in (
            ("поставка", [deal]),
            ("Срочно", [deal]),
            ("user@example.com", [deal]),
            ("Петров", [deal]),
            ("север", [other]),
            ("", [deal, other]),
            ("ничего", []),
        ):
            assert ids(await crm.send("deal_search.php", SEARCH=word), "deals/deal/id") == found, word


# --- deals


@pytest.mark.asyncio
async def test_the_deal_of_the_seed_comes_back_whole():
    async with opened() as crm:
        contact = await crm.add()
        user = crm.world.select("user")[1]
        form = deal_form(
            name="Сделка", status_id=WON, price=15000, main_user_id=user["id"], tags="тег, тег2", linked_contact=contact
        )
        id = int((await crm.send("deal_add.php", form, ACTION="ADD")).findtext("id"))
        expected = [
            ("id", str(id)),
            ("name", "Сделка"),
            ("price", "15000"),
            ("status", [("id", "142"), ("name", "Успешно реализовано")]),
            ("user", [("id", str(user["id"])), ("name", user["name"])]),
            ("tags", [("tag", "тег"), ("tag", "тег2")]),
            ("contacts", [("contact", [("id", str(contact)), ("name", "Иван Петров")])]),
            ("date_create", "20.03.2026 13:15:00"),
            ("date_modify", "20.03.2026 13:15:00"),
        ]
        root = await crm.send("deal_detail.php", ID=str(id))
        assert plain(root.find("deal")) == ("deal", expected)
        assert [child.tag for child in root] == ["deal", "notes", "tasks", "users"]
        assert plain((await crm.send("deals.php")).find("deals/deal")) == ("deal", expected)
        assert plain((await crm.send("contact_detail.php", ID=str(contact))).find("contact/deals")) == (
            "deals",
            [("deal", [("id", str(id)), ("name", "Сделка")])],
        )
        assert crm.world.row("deal", id)["closed_at"] == int(crm.running.account.clock.now().timestamp())


@pytest.mark.asyncio
async def test_a_status_means_the_stage_of_the_deals_own_pipeline():
    async with opened() as crm:
        main, partners = crm.world.select("pipeline")
        stages = crm.world.select("stage", where={"pipeline_id": partners["id"], "type": "open"}, order="sort")
        first = crm.world.select("stage", where={"pipeline_id": main["id"], "type": "open"}, order="sort")[0]
        id = int((await crm.send("deal_add.php", deal_form(name="D"), ACTION="ADD")).findtext("id"))
        for status, pipeline, stage in (
            (None, main, first["id"]),
            (stages[1]["id"], partners, stages[1]["id"]),
            (LOST, partners, LOST),
            ("", partners, stages[0]["id"]),
        ):
            if status is not None:
                await crm.send("deal_add.php", deal_form(name="D", status_id=status), ACTION="EDIT", ID=str(id))
            row = crm.world.row("deal", id)
            assert (row["pipeline_id"], row["stage_id"]) == (pipeline["id"], stage)
            assert (row["closed_at"] is not None) == (stage == LOST)


@pytest.mark.parametrize(
    "price, number, integer",
    [
        ("", 0, 0),
        ("15000", 15000, 15000),
        ("15000.50", "15000.50", None),
        ("15000.00", 15000, None),
        ("-5", -5, -5),
        ("15 000", None, None),
        ("15,5", None, None),
        ("1e3", None, None),
        ("9" * 16, None, None),
    ],
)
@pytest.mark.asyncio
async def test_a_price_is_a_number(price, number, integer):
    for switch, stored in (("number", number), ("integer", integer)):
        async with opened(price=switch) as crm:
            root = await crm.send("deal_add.php", deal_form(name="D", price=price), ACTION="ADD")
            assert root.findtext("error") == (None if stored is not None else "price must be a number")
            assert [row["price"] for row in crm.world.select("deal")] == ([] if stored is None else [stored])


@pytest.mark.asyncio
async def test_the_one_linked_contact_replaces_all_or_joins_them():
    for switch, left in (("replace", ["c"]), ("add", ["c", "a", "b"])):
        async with opened(linked_contact=switch) as crm:
            a, b, c = [await crm.add({"contact[person_name]": name}) for name in "abc"]
            deal = bargain(crm.world, contacts=[{"id": a, "main": True}, {"id": b, "main": False}])
            await crm.send("deal_add.php", deal_form(name="D", linked_contact=c), ACTION="EDIT", ID=str(deal))
            root = await crm.send("deal_detail.php", ID=str(deal))
            assert [name.text for name in root.findall("deal/contacts/contact/name")] == left
            await crm.send("deal_add.php", deal_form(name="D"), ACTION="EDIT", ID=str(deal))
            assert crm.world.row("deal", deal)["contacts"] == []


# --- notes and tasks


def task_form(**fields):
    return {"BODY": "Позвонить", "END_DATE": "14.01.2011 02:00:00", "TASK_TYPE": "CALL", **fields}


@pytest.mark.parametrize("element, kind", [("1", "contact"), ("2", "deal")])
@pytest.mark.asyncio
async def test_notes_and_tasks_live_in_the_detail_of_what_they_are_about(element, kind):
    async with opened() as crm:
        me = crm.world.admin
        about = await crm.add() if kind == "contact" else bargain(crm.world)
        there = {"ID": str(about), "ELEMENT_TYPE": element}
        note = (await crm.send("note_add.php", {"BODY": "Текст\nдва", **there}, ACTION="ADD_NOTE")).findtext("id")
        form = task_form(MAIN_USER=str(me["id"]), **there)
        task = (await crm.send("task_add.php", form, ACTION="ADD_TASK")).findtext("id")
        crm.world.add("note", {"text": "чужая"})
        root = await crm.send(f"{kind}_detail.php", ID=str(about))
        user = ("user", [("id", str(me["id"])), ("name", me["name"])])
        place = [("element_id", str(about)), ("element_type", element)]
        created = ("date_create", "20.03.2026 13:15:00")
        assert plain(root.find("notes")) == (
            "notes",
            [("note", [("id", note), ("body", "Текст\nдва"), *place, created, user])],
        )
        due = [("end_date", "14.01.2011 02:00:00"), ("task_type", "CALL"), ("completed", "0")]
        assert plain(root.find("tasks")) == (
            "tasks",
            [("task", [("id", task), ("body", "Позвонить"), *due, *place, user])],
        )
        users = [tuple(child.text for child in row) for row in root.findall("users/user")]
        assert users == [(str(row["id"]), row["name"], row["email"]) for row in crm.world.select("user")]
        await crm.send("note_add.php", ACTION="EDIT_NOTE", ID=note, BODY="Новый")
        assert crm.world.row("note", int(note))["text"] == "Новый"
        await crm.send("task_add.php", ACTION="COMPLATE_TASK", ID=task)
        assert (await crm.send(f"{kind}_detail.php", ID=str(about))).findtext("tasks/task/completed") == "1"
        await crm.send("note_add.php", ACTION="NOTE_DELETE", ID=note)
        await crm.send("task_add.php", ACTION="TASK_DELETE", ID=task)
        root = await crm.send(f"{kind}_detail.php", ID=str(about))
        assert len(root.find("notes")) == len(root.find("tasks")) == 0


@pytest.mark.asyncio
async def test_an_object_without_its_type_is_refused():
    async with opened() as crm:
        id, me = str(await crm.add()), str(crm.world.admin["id"])
        for element in ({}, {"ELEMENT_TYPE": "3"}, {"ELEMENT_TYPE": ""}):
            assert "ELEMENT_TYPE" in await crm.refused(
                "note_add.php", {"BODY": "a", **element}, ACTION="ADD_NOTE", ID=id
            )
            form = task_form(MAIN_USER=me, ID=id, **element)
            assert "ELEMENT_TYPE" in await crm.refused("task_add.php", form, ACTION="ADD_TASK")
        assert crm.world.count("note") + crm.world.count("task") == 0


@pytest.mark.parametrize("missing", ["BODY", "END_DATE", "MAIN_USER", "TASK_TYPE"])
@pytest.mark.asyncio
async def test_a_new_task_needs_its_four_fields(missing):
    async with opened() as crm:
        form = {**task_form(MAIN_USER=str(crm.world.admin["id"])), missing: ""}
        assert await crm.refused("task_add.php", form, ACTION="ADD_TASK") == f"{missing} is required"
    async with opened(required="none") as crm:
        await crm.send("task_add.php", form, ACTION="ADD_TASK")
        (task,) = crm.world.select("task")
        assert (task["target_kind"], task["owner"]) == (None, crm.world.admin["id"])


@pytest.mark.parametrize("word, type_id", [("CALL", 1), ("MEETING", 2), ("LETTER", 3)])
@pytest.mark.asyncio
async def test_the_three_types_of_tasks_come_back_as_sent(word, type_id):
    async with opened() as crm:
        id = str(await crm.add())
        form = task_form(MAIN_USER=str(crm.world.admin["id"]), TASK_TYPE=word, ID=id, ELEMENT_TYPE="1")
        await crm.send("task_add.php", form, ACTION="ADD_TASK")
        assert crm.world.select("task")[0]["type_id"] == type_id
        assert (await crm.send("contact_detail.php", ID=id)).findtext("tasks/task/task_type") == word
        assert "TASK_TYPE" in await crm.refused("task_add.php", {**form, "TASK_TYPE": "call"}, ACTION="ADD_TASK")


MOMENTS = [
    ("14.01.2011 02:00:00", datetime(2011, 1, 13, 23, tzinfo=UTC)),
    ("01/14/2011 2:00:00", datetime(2011, 1, 13, 23, tzinfo=UTC)),
    ("14.01.2011 02: 00: 00", datetime(2011, 1, 13, 23, tzinfo=UTC)),
    ("14.07.2011 02:00:00", datetime(2011, 7, 13, 22, tzinfo=UTC)),
    ("31.12.2026 23:59:59", datetime(2026, 12, 31, 20, 59, 59, tzinfo=UTC)),
    ("14/01/2011 02:00:00", None),
    ("14.01/2011 02:00:00", None),
    ("2011-01-14 02:00:00", None),
    ("30.02.2011 02:00:00", None),
    ("14.01.2011 25:00:00", None),
    ("14.01.2011", None),
    ("14.01.0001 00:00:00", None),
    ("14.01.9999 00:00:00", None),
    ("вчера", None),
]


@pytest.mark.parametrize("sent, moment", MOMENTS)
@pytest.mark.asyncio
async def test_a_date_is_in_the_accounts_zone_day_first_with_dots_or_month_first_with_slashes(sent, moment):
    async with opened() as crm:
        form = task_form(MAIN_USER=str(crm.world.admin["id"]), END_DATE=sent)
        root = await crm.send("task_add.php", form, ACTION="ADD_TASK")
        assert (root.find("error") is None) == (moment is not None)
        assert [row["due"] for row in crm.world.select("task")] == ([moment.timestamp()] if moment else [])


@pytest.mark.asyncio
async def test_dates_in_utc_and_slashes_refused_behind_their_switches():
    async with opened(zone="utc", slash_dates=False) as crm:
        id = str(await crm.add())
        form = task_form(MAIN_USER=str(crm.world.admin["id"]), ID=id, ELEMENT_TYPE="1")
        await crm.send("task_add.php", form, ACTION="ADD_TASK")
        assert crm.world.select("task")[0]["due"] == datetime(2011, 1, 14, 2, tzinfo=UTC).timestamp()
        root = await crm.send("contact_detail.php", ID=id)
        assert root.findtext("tasks/task/end_date") == "14.01.2011 02:00:00"
        assert root.findtext("contact/date_create") == "20.03.2026 10:15:00"
        form["END_DATE"] = "01/14/2011 2:00:00"
        assert "END_DATE" in await crm.refused("task_add.php", form, ACTION="ADD_TASK")


@pytest.mark.parametrize(
    "switch, sent, linked",
    [
        ("both", "ID", True),
        ("both", "TASK_OBJECT", True),
        ("ID", "TASK_OBJECT", False),
        ("TASK_OBJECT", "ID", False),
        ("ID", "ID", True),
    ],
)
@pytest.mark.asyncio
async def test_a_new_task_is_linked_by_either_name(switch, sent, linked):
    async with opened(task_link=switch) as crm:
        id = await crm.add()
        form = task_form(MAIN_USER=str(crm.world.admin["id"]), ELEMENT_TYPE="1", **{sent: str(id)})
        await crm.send("task_add.php", form, ACTION="ADD_TASK")
        assert crm.world.select("task")[0]["target_id"] == (id if linked else None)


@pytest.mark.asyncio
async def test_a_task_edited_without_its_object_keeps_it_and_loses_everything_else_left_out():
    for switch, kept in (("keep", True), ("erase", False)):
        async with opened(task_left_out=switch) as crm:
            contact, deal = await crm.add(), bargain(crm.world)
            owner = crm.world.select("user")[1]["id"]
            row = {"text": "A", "type_id": 3, "due": 1, "owner": owner, "done": True}
            task = crm.world.add("task", {**row, "target_kind": "contact", "target_id": contact})
            await crm.send("task_add.php", ACTION="EDIT_TASK", ID=str(task), BODY="B")
            after = crm.world.row("task", task)
            assert (after["text"], after["due"], after["type_id"], after["done"]) == ("B", None, 1, True)
            assert after["owner"] == crm.world.admin["id"]
            assert (after["target_kind"], after["target_id"]) == (("contact", contact) if kept else (None, None))
            form = task_form(MAIN_USER=str(owner), TASK_OBJECT=str(deal), ELEMENT_TYPE="2")
            await crm.send("task_add.php", form, ACTION="EDIT_TASK", ID=str(task))
            after = crm.world.row("task", task)
            assert (after["target_kind"], after["target_id"], after["owner"]) == ("deal", deal, owner)
            await crm.send("task_add.php", {**form, "TASK_OBJECT": ""}, ACTION="EDIT_TASK", ID=str(task))
            assert crm.world.row("task", task)["target_kind"] is None


@pytest.mark.asyncio
async def test_a_task_is_completed_in_the_wires_own_spelling():
    for switch, done in ((False, False), (True, True)):
        async with opened(complete_task=switch) as crm:
            task = crm.world.add("task", {"text": "A"})
            await crm.send("task_add.php", ACTION="COMPLETE_TASK", ID=str(task))
            assert crm.world.row("task", task)["done"] is done
            for _ in range(2):
                await crm.send("task_add.php", ACTION="COMPLATE_TASK", ID=str(task))
            assert crm.world.row("task", task)["done"] is True


# --- the vocabulary of answers


@pytest.mark.asyncio
async def test_a_write_may_be_answered_without_the_id():
    async with opened(id_in_answer=False) as crm:
        root = await crm.send("contact_add.php", PERSON, ACTION="ADD_PERSON")
        assert plain(root) == ("root", [("result", "true")])
        assert crm.world.count("contact") == 1


@pytest.mark.asyncio
async def test_empty_fields_are_missing_or_blank():
    for switch, tags in (("missing", set()), ("blank", {"position", "company"})):
        async with opened(empties=switch) as crm:
            contact = (await crm.send("contact_detail.php", ID=str(await crm.add({"contact[tags]": ""})))).find(
                "contact"
            )
            assert {child.tag for child in contact} & {"position", "company"} == tags


async def shown(**switches):
    async with opened(**switches) as crm:
        id = str(await crm.add())
        await crm.send("note_add.php", ACTION="ADD_NOTE", BODY="a", ID=id, ELEMENT_TYPE="1")
        root = await crm.send("contact_detail.php", ID=id)
        assert "true" in (await crm.send("auth.php")).findtext("auth")
        return root, id


@pytest.mark.asyncio
async def test_tags_nobody_has_seen_go_by_other_names():
    root, _ = await shown(phone_tag="tel", item_tag="item", user_name="title")
    assert [child.tag for child in root.find("contact/phones/item")] == ["tel", "location"]
    assert [child.tag for child in root.find("contact/user")] == ["id", "title"]
    assert [item.tag for item in root.find("contact/emails")] == ["item"]
    assert root.find("contact/emails/item/address") is not None


@pytest.mark.asyncio
async def test_tags_nobody_has_seen_are_in_capitals_and_those_seen_are_not():
    root, _ = await shown(tag_case="upper")
    tags = {element.tag for element in root.iter()}
    assert {"root", "contact", "id", "name", "company", "is_company", "phones", "user"} <= tags
    assert {"PHONE", "NUMBER", "EMAILS", "TAG", "DATE_CREATE", "NOTES", "BODY", "LOGIN"} <= tags


@pytest.mark.asyncio
async def test_ids_may_be_attributes():
    root, id = await shown(id_form="attribute")
    assert root.find("contact").attrib == {"ID": id}
    assert root.find("contact/id") is None
    assert root.find("contact/user").get("ID") == root.find("notes/note/user").get("ID")


@pytest.mark.asyncio
async def test_comments_stand_inside_values_as_the_seed_prints():
    async with opened(comments=True) as crm:
        answer = await crm.http.post(PREFIX + "auth.php", data=crm.login)
        assert "<auth>true <!--" in answer.text
        root = await crm.send("contact_detail.php", ID=str(await crm.add()))
        assert root.findtext("contact/name").strip() == "Иван Петров"
        assert root.find("contact/phones/phone").findtext("location").strip() == "Work"


@pytest.mark.asyncio
async def test_children_may_come_in_any_order_but_phones_and_users():
    (plainly, _), (root, _) = await shown(), await shown(child_order="shuffled")
    assert sorted(child.tag for child in root.find("contact")) == sorted(child.tag for child in plainly.find("contact"))
    assert [child.tag for child in root.find("contact")] != [child.tag for child in plainly.find("contact")]
    assert [child.tag for child in root.find("contact/phones/phone")] == ["number", "location"]
    assert [child.tag for child in root.find("contact/user")] == ["id", "name"]


@pytest.mark.asyncio
async def test_text_is_escaped_and_what_xml_cannot_hold_is_dropped():
    async with opened() as crm:
        name = " <b>\"Tom\" & 'Jerry'</b>\r\n\t🦄 ]]> \x00\x0b\x1b\ufffe"
        id = str(await crm.add({"contact[person_name]": name}))
        assert crm.world.row("contact", int(id))["name"] == name
        root = await crm.send("contact_detail.php", ID=id)
        assert root.findtext("contact/name") == name.translate(dict.fromkeys([0, 0x0B, 0x1B, 0xFFFE]))


@pytest.mark.asyncio
async def test_a_search_does_not_find_what_its_index_has_not_got_round_to():
    async with opened(index_lag="3") as crm:
        id = await crm.add()

        async def found(page, **fields):
            return [
                row.findtext("id") for tag in ("contact", "deal") for row in (await crm.send(page, **fields)).iter(tag)
            ]

        # By name and by tag: three requests do not find it, the fourth does.
        assert await found("contact_search.php", SEARCH="Петров") == []
        assert await found("contact_search.php", SEARCH="второй тег") == []
        assert await found("contacts.php") == [str(id)]
        assert await found("contact_search.php", SEARCH="второй тег") == [str(id)]
        deal = bargain(crm.world, name="New", contacts=[{"id": id, "main": True}])
        # Nor by its contact, which the index knows.
        assert await found("deal_search.php", SEARCH="Петров") == []
        assert str(deal) in await found("deals.php")


@pytest.mark.asyncio
async def test_a_search_that_is_not_heeded_gives_every_row():
    async with opened(world=peopled(contacts=6, companies=2, deals=5), ignore_filters=True) as crm:
        assert len((await crm.send("contact_search.php", SEARCH="nobody")).findall("contacts/contact")) == 8
        assert len((await crm.send("deal_search.php", SEARCH="nobody")).findall("deals/deal")) == 5


# --- switches, script, the face

VOCABULARY = ("phone-tag", "item-tag", "user-name", "id-form", "tag-case", "comments", "child-order", "empties")


@pytest.mark.parametrize("pair", list(itertools.combinations(VOCABULARY, 2)))
@pytest.mark.asyncio
async def test_the_vocabularies_go_together(pair):
    switches = {name.replace("-", "_"): SWITCHES[name].choices[-1] for name in pair}
    async with opened(world=peopled(contacts=25, companies=5, deals=10, tasks=10, notes=10), **switches) as crm:
        for kind, count in (("contact", 25), ("deal", 10)):
            root = await crm.send(f"{kind}s.php", ELEMENT_COUNT="100")
            (listed,) = (child for child in root if child.tag.lower() == f"{kind}s")
            assert [child.tag.lower() for child in listed] == [kind] * count


def test_every_switch_has_a_reason_and_its_default_among_its_choices():
    for name, switch in SWITCHES.items():
        assert switch.default in switch.choices, name
        assert len(set(switch.choices)) > 1, name
        assert re.match(r"§\d|DECISIONS", switch.why), name


def test_every_switch_is_asked_for_somewhere():
    source = Path(sandbox.__file__).read_text()
    for name in SWITCHES:
        assert source.count(f'"{name}"') > 1, name


def test_the_script_is_six_lines_of_python_that_name_the_address_and_the_login():
    running = in_process(FACE, World(clock=FakeClock()))
    assert len(running.script.splitlines()) == 6
    ast.parse(running.script)
    login, key = running.credentials["login"], running.credentials["hash"]
    assert (
        f'connect("amoxml", base_url="{running.base_url}", credentials=Login("{login}", hash="{key}"))'
        in running.script
    )


def test_the_sandbox_shares_no_line_with_the_codec():
    imported = set()
    for node in ast.walk(ast.parse(Path(sandbox.__file__).read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module)
    ours = {name for name in imported if name.startswith("crmclient")}
    assert ours == {"crmclient.sandbox.server", "crmclient.sandbox.world"}


@pytest.mark.asyncio
async def test_it_serves_over_real_http_with_a_cookie():
    async with serve(FACE, peopled(contacts=31), switches={"rate": "7"}, limits=False) as running:
        async with httpx.AsyncClient(base_url=running.base_url, trust_env=False) as http:
            login = {"USER_LOGIN": running.credentials["login"], "USER_PASSWORD": running.credentials["password"]}
            assert "<auth>true</auth>" in (await http.post(PREFIX + "auth.php", data=login)).text
            for page, count in ((1, 30), (2, 1)):
                answer = await http.post(PREFIX + "contacts.php", data={"PAGEN_1": page})
                assert len(ET.fromstring(answer.content).findall("contacts/contact")) == count
            logins(running.account).expire()
            assert (await http.post(PREFIX + "contacts.php")).status_code == 401
        assert running.stats.calls[f"POST {PREFIX}contacts.php"] == 3
