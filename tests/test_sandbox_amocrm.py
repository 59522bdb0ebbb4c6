"""The amoCRM sandbox does what the reference says API v2 does; plain httpx is the judge, our client is not here."""

import ast
import json
import re
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
from attrs import frozen

from crmclient.clock import FakeClock
from crmclient.sandbox.server import Running, in_process, serve
from crmclient.sandbox.world import World, populate
from crmclient_amocrm import sandbox
from crmclient_amocrm.sandbox import FACE, SWITCHES, Logins, limit, logins

AUTH = "/private/api/auth.php"
OLDER = "Last modified date is older than in database"


@frozen
class Shop:
    """A furnished account, somebody who may do everything in it, and the clock."""

    run: Running
    http: httpx.AsyncClient
    clock: FakeClock

    @property
    def world(self) -> World:
        return self.run.world

    @property
    def logins(self) -> Logins:
        return logins(self.run.account)

    @property
    def now(self) -> int:
        return int(self.clock.now().timestamp())

    def field(self, entity: str, name: str) -> dict[str, Any]:
        return next(row for row in self.world.select("field", where={"entity": entity}) if row["name"] == name)

    def stage(self, pipeline: int, place: int) -> int:
        return self.world.select("stage", where={"pipeline_id": pipeline}, order="sort")[place]["id"]

    async def get(self, path: str, **params: Any) -> httpx.Response:
        return await self.http.get(f"/api/v2/{path}", params=params or None)

    async def items(self, path: str, **params: Any) -> list[dict[str, Any]]:
        answer = await self.get(path, **params)
        if answer.status_code == 204:
            assert answer.content == b""
            return []
        assert answer.status_code == 200, answer.text
        return answer.json()["_embedded"]["items"]

    async def one(self, path: str, id: int, **params: Any) -> dict[str, Any]:
        (item,) = await self.items(path, id=id, **params)
        return item

    async def post(self, path: str, **body: Any) -> httpx.Response:
        return await self.http.post(f"/api/v2/{path}", json=body)

    async def outcome(self, path: str, **body: Any) -> tuple[list[dict[str, Any]], Any]:
        answer = await self.post(path, **body)
        assert answer.status_code == 200, answer.text
        inside = answer.json()["_embedded"]
        return inside["items"], inside.get("errors")

    async def add(self, path: str, **row: Any) -> int:
        items, errors = await self.outcome(path, add=[row])
        assert errors is None, errors
        return items[0]["id"]

    async def refused(self, path: str, **row: Any) -> str:
        items, errors = await self.outcome(path, add=[row])
        assert items == []
        return errors["add"]["0"]

    async def update(self, path: str, id: int, *, after: int = 60, **row: Any) -> dict[str, Any]:
        items, errors = await self.outcome(path, update=[{"id": id, "updated_at": self.now + after, **row}])
        assert errors is None, errors
        return items[0]

    async def login(self, **query: Any) -> httpx.Response:
        form = {"USER_LOGIN": self.run.credentials["login"], "USER_HASH": self.run.credentials["hash"]}
        return await self.http.post(AUTH, params={"type": "json", **query}, data=form)

    @asynccontextmanager
    async def nobody(self) -> AsyncGenerator["Shop"]:
        """The same account seen by somebody who has no token."""
        async with httpx.AsyncClient(transport=self.run.transport(), base_url=self.http.base_url) as http:
            yield Shop(self.run, http, self.clock)


@asynccontextmanager
async def shop(
    *, limits: bool = False, contacts: int = 0, origin: str = "http://localhost", **switches: Any
) -> AsyncGenerator[Shop]:
    clock = FakeClock()
    with World(clock=clock) as world:
        if contacts:
            populate(world, contacts=contacts, companies=3, deals=contacts, tasks=contacts, notes=contacts)
        named = {name.replace("_", "-"): value for name, value in switches.items()}
        run = in_process(FACE, world, switches=named, limits=limits)
        bearer = {"Authorization": f"Bearer {run.credentials['token']}"}
        async with httpx.AsyncClient(transport=run.transport(), base_url=origin, headers=bearer) as http:
            yield Shop(run, http, clock)


def code(answer: httpx.Response, status: int = 400) -> str:
    """error_code of a request that was refused as a whole; it is a string."""
    assert answer.status_code == status, answer.text
    told = answer.json()["response"]
    assert set(told) - {"auth"} == {"error", "error_code", "ip", "domain", "server_time"}
    return told["error_code"]


def values(item: dict[str, Any]) -> dict[str, Any]:
    fields: list[dict[str, Any]] = item["custom_fields"] or []
    return {field["name"]: field["values"] for field in fields}


# --- coming in (§2) --------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_login_answers_with_the_account_and_leaves_a_cookie_that_opens_the_api() -> None:
    async with shop() as it, it.nobody() as they:
        answer = await they.login()
        told = answer.json()["response"]
        home = it.world.account
        assert (answer.status_code, told["auth"], told["server_time"]) == (200, True, it.now)
        assert told["accounts"] == [
            {"id": home["id"], "name": home["name"], "subdomain": "roga", "language": "ru", "timezone": home["zone"]}
        ]
        assert told["user"] == {"id": it.world.admin["id"], "language": "ru"}
        lines = answer.headers.get_list("set-cookie")
        assert re.fullmatch(r"session_id=[0-9a-f]{32}; Path=/", lines[0])
        assert lines[1].startswith("BITRIX_SM_LOGIN=olga%40roga.example;")
        assert (await they.get("account")).json()["current_user"] == it.world.admin["id"]
        assert it.logins.count == 1


@pytest.mark.parametrize("where", ["form", "json", "query", "get"])
@pytest.mark.asyncio
async def test_login_and_key_come_in_a_form_in_json_or_in_the_query(where: str) -> None:
    async with shop() as it, it.nobody() as they:
        given = {"USER_LOGIN": it.run.credentials["login"], "USER_HASH": it.run.credentials["hash"]}
        match where:
            case "form":
                answer = await they.http.post(f"{AUTH}?type=json", data=given)
            case "json":
                answer = await they.http.post(f"{AUTH}?type=json", json=given)
            case "query":
                answer = await they.http.post(AUTH, params={"type": "json", **given})
            case _:
                answer = await they.http.get(AUTH, params={"type": "json", **given})
        assert answer.json()["response"]["auth"] is True


@pytest.mark.asyncio
async def test_type_json_counts_only_in_the_query() -> None:
    async with shop() as it, it.nobody() as they:
        given = {"USER_LOGIN": it.run.credentials["login"], "USER_HASH": it.run.credentials["hash"], "type": "json"}
        answer = await they.http.post(AUTH, data=given)
        assert answer.headers["content-type"].startswith("text/xml")
        assert "<root><auth>true</auth></root>" in answer.text
        assert (await they.get("account")).status_code == 200


@pytest.mark.asyncio
async def test_a_wrong_key_is_401_in_json_and_an_answer_that_says_false_in_xml() -> None:
    async with shop() as it, it.nobody() as they:
        wrong = {"USER_LOGIN": it.run.credentials["login"], "USER_HASH": "0"}
        answer = await they.http.post(f"{AUTH}?type=json", data=wrong)
        assert code(answer, 401) == "110"
        assert answer.json()["response"]["auth"] is False
        assert answer.json()["response"]["domain"] == "localhost"
        as_xml = await they.http.post(AUTH, data=wrong)
        assert (as_xml.status_code, "<auth>false</auth>" in as_xml.text) == (200, True)
        assert "set-cookie" not in as_xml.headers
        assert (it.logins.count, it.logins.refused) == (0, 2)


@pytest.mark.asyncio
async def test_the_cookie_may_be_for_the_parent_domain() -> None:
    async with shop(cookie_domain="parent", origin="http://roga.amocrm.test") as it, it.nobody() as they:
        answer = await they.login()
        assert "Domain=.amocrm.test" in answer.headers["set-cookie"]
        assert (await they.get("account")).status_code == 200


@pytest.mark.asyncio
async def test_a_session_ends_fifteen_minutes_after_the_login_however_busy_it_was() -> None:
    async with shop() as it, it.nobody() as they:
        await they.login()
        it.clock.advance(899)
        assert (await they.get("account")).status_code == 200
        it.clock.advance(1)
        assert code(await they.get("account"), 401) == "110"
        await they.login()
        assert (await they.get("account")).status_code == 200
        it.logins.expire()
        assert (await they.get("account")).status_code == 401
        assert it.logins.count == 2


@pytest.mark.asyncio
async def test_a_session_may_slide() -> None:
    async with shop(session="sliding") as it, it.nobody() as they:
        await they.login()
        for _ in range(3):
            it.clock.advance(800)
            assert (await they.get("account")).status_code == 200


@pytest.mark.asyncio
async def test_a_dead_session_may_be_told_in_the_other_bodies() -> None:
    async with shop(dead_session="problem") as it, it.nobody() as they:
        answer = await they.get("contacts")
        assert (answer.status_code, answer.headers["content-type"]) == (401, "application/problem+json")
        assert set(answer.json()) == {"title", "type", "status", "detail"}
        assert (answer.json()["title"], answer.json()["status"]) == ("Unauthorized", 401)
    async with shop(dead_session="401") as it, it.nobody() as they:
        assert code(await they.get("contacts"), 401) == "401"


@pytest.mark.asyncio
async def test_tokens_expire_and_are_revoked() -> None:
    async with shop() as it, it.nobody() as they:
        token = it.logins.issue_token(seconds=86400)
        headers = {"Authorization": f"Bearer {token}"}
        assert (await they.http.get("/api/v2/account", headers=headers)).status_code == 200
        it.clock.advance(86400)
        assert (await they.http.get("/api/v2/account", headers=headers)).status_code == 401
        assert (await it.get("account")).status_code == 200
        it.logins.revoke_token(it.run.credentials["token"])
        assert code(await it.get("account"), 401) == "110"


@pytest.mark.asyncio
async def test_login_and_key_may_sign_every_call_and_do_not_come_back_in_a_link() -> None:
    async with shop(contacts=1) as it, it.nobody() as they:
        signed = {"USER_LOGIN": it.run.credentials["login"], "USER_HASH": it.run.credentials["hash"]}
        answer = await they.get("contacts", limit_rows=1, **signed)
        assert answer.json()["_links"]["self"]["href"] == "/api/v2/contacts?limit_rows=1&entity=contacts"
        it.logins.rotate()
        assert code(await they.get("contacts", **signed), 401) == "110"
    async with shop(credentials_per_call=False) as it, it.nobody() as they:
        signed = {"USER_LOGIN": it.run.credentials["login"], "USER_HASH": it.run.credentials["hash"]}
        assert (await they.get("contacts", **signed)).status_code == 401


@pytest.mark.asyncio
async def test_several_failed_logins_bring_the_captcha_and_a_person_solves_it() -> None:
    async with shop(captcha_after="3") as it, it.nobody() as they:
        for _ in range(3):
            wrong = await they.http.post(f"{AUTH}?type=json", data={"USER_LOGIN": "x", "USER_HASH": "y"})
            assert code(wrong, 401) == "110"
        assert code(await they.login(), 401) == "111"
        it.logins.solve_captcha()
        assert (await they.login()).status_code == 200


@pytest.mark.asyncio
async def test_a_user_who_is_switched_off_is_told_so() -> None:
    async with shop() as it, it.nobody() as they:
        it.world.update("user", it.world.admin["id"], {"active": False})
        assert code(await they.login(), 401) == "112"


@pytest.mark.asyncio
async def test_an_ended_subscription_is_402() -> None:
    async with shop(subscription="ended") as it:
        assert code(await it.get("contacts"), 402) == "402"


# --- limits (§3) -----------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_the_eighth_call_within_a_second_meets_the_gateway_and_refused_calls_count() -> None:
    async with shop(limits=True) as it:
        assert [(await it.get("account")).status_code for _ in range(7)] == [200] * 7
        answer = await it.get("account")
        assert (answer.status_code, answer.headers["content-type"]) == (429, "text/html; charset=utf-8")
        assert "429 Too Many Requests" in answer.text
        assert "retry-after" not in answer.headers
        it.clock.advance(0.9)
        assert (await it.get("account")).status_code == 429
        it.clock.advance(1.0)
        assert (await it.get("account")).status_code == 200


@pytest.mark.asyncio
async def test_ten_violations_ban_from_everything_until_somebody_lifts_it() -> None:
    async with shop(limits=True) as it:
        for _ in range(17):
            await it.get("account")
        it.clock.advance(3600)
        for path in ("/api/v2/account", AUTH, "/nowhere"):
            answer = await it.http.get(path)
            assert (answer.status_code, "403 Forbidden" in answer.text) == (403, True)
        assert (it.run.stats.refused, it.run.stats.banned) == (10, 3)
        limit(it.run.account).lift()
        assert (await it.get("account")).status_code == 200


@pytest.mark.asyncio
async def test_the_older_limit_is_one_a_second() -> None:
    async with shop(limits=True, rate="1", logins_count=False) as it:
        assert (await it.login()).status_code == 200
        assert [(await it.get("account")).status_code for _ in range(2)] == [200, 429]


# --- shapes (§4, §8; the samples were looked at, these are our own) ---------------------------------------------------

CARD = {
    *("id", "name", "responsible_user_id", "created_by", "created_at", "updated_at", "account_id", "updated_by"),
    *("group_id", "closest_task_at", "tags", "custom_fields", "_links"),
}
CONTACT = CARD | {"first_name", "last_name", "company", "leads", "customers"}
COMPANY = CARD | {"leads", "contacts", "customers"}
LEAD = CARD | {
    *("pipeline_id", "status_id", "is_deleted", "main_contact", "company", "closed_at", "contacts", "sale"),
    *("loss_reason_id", "pipeline"),
}


def link(href: str) -> dict[str, Any]:
    return {"self": {"href": f"/api/v2/{href}", "method": "get"}}


@pytest.mark.asyncio
async def test_a_contact_looks_as_real_ones_do() -> None:
    async with shop() as it:
        firm = await it.add("companies", name="ООО Ромашка")
        phone = it.field("contact", "Телефон")
        work = next(enum["id"] for enum in phone["enums"] if enum["value"] == "WORK")
        lead = await it.add("leads", name="Сделка")
        id = await it.add(
            "contacts",
            name="Иван Петров",
            company_id=str(firm),
            leads_id=[str(lead)],
            tags="важный, доставка",
            created_at="1509051600",
            updated_at="1509051601",
            custom_fields=[{"id": str(phone["id"]), "values": [{"value": "89990123456", "enum": "WORK"}]}],
        )
        me = it.world.admin["id"]
        shown = await it.one("contacts", id)
        tags = shown.pop("tags")
        assert [tag["name"] for tag in tags] == ["важный", "доставка"]
        assert shown == {
            "id": id,
            "name": "Иван Петров",
            "first_name": "",
            "last_name": "",
            "responsible_user_id": me,
            "created_by": me,
            "created_at": 1509051600,
            "updated_at": 1509051601,
            "account_id": it.world.account["id"],
            "updated_by": me,
            "group_id": 0,
            "company": {"id": firm, "name": "ООО Ромашка", "_links": link(f"companies?id={firm}")},
            "leads": {"id": [lead], "_links": link(f"leads?id={lead}")},
            "closest_task_at": 0,
            "custom_fields": [
                {
                    "id": phone["id"],
                    "name": "Телефон",
                    "type_id": 8,
                    "code": "PHONE",
                    "values": [{"value": "89990123456", "enum": work}],
                    "is_system": True,
                }
            ],
            "customers": {},
            "_links": link(f"contacts?id={id}"),
        }


@pytest.mark.asyncio
async def test_what_is_empty_is_an_empty_object_and_zero() -> None:
    async with shop() as it:
        contact = await it.one("contacts", await it.add("contacts", name="A"))
        assert set(contact) == CONTACT
        for key in ("company", "leads", "customers", "tags", "custom_fields"):
            assert contact[key] == {}
        company = await it.one("companies", await it.add("companies", name="A"))
        assert set(company) == COMPANY
        assert (company["contacts"], company["leads"]) == ({}, {})
        lead = await it.one("leads", await it.add("leads", name="A"))
        assert set(lead) == LEAD
        assert (lead["main_contact"], lead["contacts"], lead["company"]) == ({}, {}, {})
        assert (lead["sale"], lead["closed_at"], lead["loss_reason_id"], lead["is_deleted"]) == (0, 0, 0, False)
        assert lead["pipeline"] == {"id": lead["pipeline_id"], "_links": link(f"pipelines?id={lead['pipeline_id']}")}
        task = await it.one("tasks", await it.add("tasks", text="A"))
        assert (task["element_type"], task["element_id"], task["result"], task["complete_till_at"]) == (0, 0, {}, 0)


@pytest.mark.asyncio
async def test_the_page_has_other_shapes_and_each_is_a_switch() -> None:
    old: dict[str, Any] = {"empties": "brackets", "names": "never", "enum_form": "string", "type_id": False}
    async with shop(**old, main_contact="missing", unlinked_task="missing", closest_task="year-zero") as it:
        phone = it.field("contact", "Телефон")
        fields = [{"id": phone["id"], "values": [{"value": "1", "enum": "MOB"}]}]
        contact = await it.one("contacts", await it.add("contacts", name="A", custom_fields=fields))
        assert set(contact) == CONTACT - {"first_name", "last_name"}
        assert (contact["tags"], contact["company"], contact["closest_task_at"]) == ([], [], -62169993017)
        (shown,) = contact["custom_fields"]
        assert set(shown) == {"id", "name", "code", "values", "is_system"}
        assert isinstance(shown["values"][0]["enum"], str)
        assert "main_contact" not in await it.one("leads", await it.add("leads", name="A"))
        assert "element_type" not in await it.one("tasks", await it.add("tasks", text="A"))


@pytest.mark.asyncio
async def test_answers_are_hal_with_the_time_and_escaped_as_php_does() -> None:
    async with shop(contacts=2) as it:
        answer = await it.get("contacts")
        assert answer.headers["content-type"] == "application/hal+json"
        assert answer.headers["runtime-timestamp"] == str(it.now)
        assert b"\\/api\\/v2\\/contacts" in answer.content
        assert answer.content.isascii()
        assert answer.json()["_links"]["self"] == {"href": "/api/v2/contacts", "method": "get"}


@pytest.mark.asyncio
async def test_a_populated_account_reads_whole_and_never_asks_once_a_row() -> None:
    async with shop(contacts=500) as it:
        asked: list[str] = []
        it.world._db.set_trace_callback(asked.append)  # pyright: ignore[reportPrivateUsage]
        for path, keys in (("contacts", CONTACT), ("companies", COMPANY), ("leads", LEAD)):
            del asked[:]
            items = await it.items(path)
            assert all(set(item) == keys for item in items)
            assert len(asked) < 30
        del asked[:]
        assert len(await it.items("tasks")) == len(await it.items("notes", type="all")) == 500
        assert len(asked) < 15


# --- lists (§3) ------------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_pages_go_on_by_offset_until_204() -> None:
    async with shop(contacts=7) as it:
        ids = [item["id"] for item in await it.items("contacts")]
        assert ids == sorted(ids)
        pages = [await it.items("contacts", limit_rows=3, limit_offset=offset) for offset in (0, 3, 6, 9)]
        assert [len(page) for page in pages] == [3, 3, 1, 0]
        assert [item["id"] for page in pages for item in page] == ids
        assert len(await it.items("contacts", limit_offset=5)) == 7
        assert len((await it.http.get("/api/v2/contacts/")).json()["_embedded"]["items"]) == 7


@pytest.mark.asyncio
async def test_no_more_than_five_hundred_rows_come() -> None:
    async with shop() as it:
        it.world.add_many("contact", [{"name": str(n)} for n in range(501)])
        assert len(await it.items("contacts")) == len(await it.items("contacts", limit_rows=1000)) == 500
    async with shop(default_rows="50") as it:
        it.world.add_many("contact", [{"name": str(n)} for n in range(51)])
        assert (len(await it.items("contacts")), len(await it.items("contacts", limit_rows=500))) == (50, 51)


@pytest.mark.asyncio
async def test_ids_come_as_an_array_or_with_commas_and_silence_everything_else() -> None:
    async with shop(contacts=5) as it:
        first, second, *_ = [item["id"] for item in await it.items("contacts")]
        for asked in ({"id": f"{first},{second}"}, {"id[]": [first, second]}, {"id[0]": first, "id[1]": second}):
            assert [item["id"] for item in await it.items("contacts", **asked)] == [first, second]
        assert len(await it.items("contacts", id=f"{first},{second}", limit_rows=1, query="nobody")) == 2
        assert (await it.get("contacts", id=1)).status_code == 204


@pytest.mark.asyncio
async def test_an_empty_account_is_204_everywhere() -> None:
    async with shop() as it:
        for path in ("contacts", "companies", "leads", "tasks", "notes?type=lead", "customers", "webhooks"):
            answer = await it.get(path)
            assert (answer.status_code, answer.content) == (204, b"")
            assert "runtime-timestamp" in answer.headers


@pytest.mark.parametrize("form", ["%s UTC", "%s", "%s +0000", "%s GMT"])
@pytest.mark.parametrize("path", ["contacts", "companies", "leads", "notes", "tasks"])
@pytest.mark.asyncio
async def test_if_modified_since_is_strictly_later_in_every_form_it_was_seen_in(path: str, form: str) -> None:
    async with shop() as it:
        lead = await it.add("leads", name="L", updated_at=1)
        row: dict[str, Any] = {"name": "A", "text": "A", "element_id": lead, "element_type": 2, "note_type": 4}
        older, newer = [await it.add(path, **row, updated_at=stamp) for stamp in (1501571243, 1501571244)]
        # Mon, 01 Aug 2017 is what the page prints; it was a Tuesday.
        headers = {"If-Modified-Since": form % "Mon, 01 Aug 2017 07:07:23"}
        asked = {"type": "lead"} if path == "notes" else {}
        answer = await it.http.get(f"/api/v2/{path}", params=asked, headers=headers)
        assert [item["id"] for item in answer.json()["_embedded"]["items"]] == [newer]
        narrowed = await it.http.get(f"/api/v2/{path}", params={**asked, "id": older}, headers=headers)
        assert narrowed.status_code == 204


@pytest.mark.asyncio
async def test_a_date_nobody_can_read_is_refused_or_passed_over() -> None:
    headers = {"If-Modified-Since": "2017-08-01T07:07:23Z"}
    async with shop(contacts=1) as it:
        assert code(await it.http.get("/api/v2/contacts", headers=headers)) == "400"
    async with shop(contacts=1, unread_date="ignore") as it:
        assert (await it.http.get("/api/v2/contacts", headers=headers)).status_code == 200


@pytest.mark.asyncio
async def test_contacts_are_found_by_words_by_phone_and_by_whose_they_are() -> None:
    async with shop() as it:
        phone = it.field("contact", "Телефон")["id"]
        fields = [{"id": phone, "values": [{"value": "+7 (999) 012-34-56", "enum": "WORK"}]}]
        other = it.world.select("user")[1]["id"]
        ivan = await it.add("contacts", name="Иван", custom_fields=fields, responsible_user_id=other)
        await it.add("contacts", name="Пётр")
        for asked in (
            {"query": "иВАн"},
            {"query": "89990123456"},
            {"query": "012-34-56"},
            {"responsible_user_id": other},
            {"responsible_user_id[]": other},
        ):
            assert [item["id"] for item in await it.items("contacts", **asked)] == [ivan]
        assert await it.items("contacts", query="nobody") == []


@pytest.mark.asyncio
async def test_tasks_come_newest_first_and_the_rest_oldest_first() -> None:
    async with shop(contacts=3) as it:
        tasks = [item["id"] for item in await it.items("tasks")]
        leads = [item["id"] for item in await it.items("leads")]
        assert (tasks, leads) == (sorted(tasks, reverse=True), sorted(leads))
    async with shop(contacts=3, order="newest") as it:
        leads = [item["id"] for item in await it.items("leads")]
        assert leads == sorted(leads, reverse=True)


@pytest.mark.asyncio
async def test_leads_are_filtered_as_the_page_says() -> None:
    async with shop() as it:
        _, second = [row["id"] for row in it.world.select("pipeline", order="sort")]
        new = await it.add("leads", name="new", created_at=100, updated_at=200)
        won = await it.add("leads", name="won", status_id=142, created_at=300, updated_at=400)
        far = await it.add("leads", name="far", status_id=it.stage(second, 1), created_at=500, updated_at=600)
        await it.add("tasks", text="T", element_id=new, element_type=2)
        await it.add("tasks", text="T", element_id=far, element_type=2, is_completed=1)

        async def found(**asked: Any) -> list[int]:
            return [item["id"] for item in await it.items("leads", **asked)]

        assert await found(**{"status[]": [142, it.stage(second, 1)]}) == [won, far]
        assert await found(**{"filter[active]": 1}) == [new, far]
        assert await found(**{"filter[active]": 1, "status": "142"}) == []
        assert await found(**{"filter[date_create][from]": 300, "filter[date_create][to]": 300}) == [won]
        assert await found(**{"filter[date_modify][from]": 400}) == [won, far]
        assert await found(**{"filter[tasks]": 1}) == [won, far]
        assert await found(**{"filter[tasks]": 2}) == [new]
        assert code(await it.get("leads", **{"filter[date_create][from]": "01.01.2020"})) == "400"
        it.world.update("deal", far, {"deleted": True, "updated_at": 700})
        assert await found() == [new, won]
        (gone,) = await it.items("leads", **{"with": "only_deleted"})
        assert gone == {"id": far, "updated_at": 700, "updated_by": it.world.admin["id"], "is_deleted": True}


@pytest.mark.asyncio
async def test_with_adds_what_it_names_to_leads() -> None:
    async with shop() as it:
        reason = it.world.select("loss_reason")[0]
        id = await it.add("leads", name="A", status_id=143)
        it.world.update("deal", id, {"loss_reason_id": reason["id"]})
        shown = await it.one("leads", id, **{"with": "is_price_modified_by_robot,loss_reason_name"})
        assert (shown["is_price_modified_by_robot"], shown["loss_reason_name"]) == (False, reason["name"])
        assert (shown["loss_reason_id"], shown["closed_at"]) == (reason["id"], it.now)


@pytest.mark.asyncio
async def test_tasks_are_filtered_as_the_page_says() -> None:
    async with shop() as it:
        second = it.world.select("pipeline", order="sort")[1]["id"]
        contact = await it.add("contacts", name="A")
        lead = await it.add("leads", name="A", status_id=it.stage(second, 1))
        call = await it.add("tasks", text="a", element_id=contact, element_type=1, task_type=1, created_at=100)
        meet = await it.add("tasks", text="b", element_id=lead, element_type=2, task_type=2, is_completed=True)

        async def found(**asked: Any) -> list[int]:
            return [item["id"] for item in await it.items("tasks", **asked)]

        assert await found() == [meet, call]
        assert await found(type="contact") == [call]
        assert await found(element_id=lead) == [meet]
        assert await found(**{"filter[status][]": 0}) == [call]
        assert await found(**{"filter[task_type][]": 2}) == [meet]
        assert await found(**{"filter[date_create][to]": 100}) == [call]
        assert await found(**{"filter[created_by][]": 1}) == []
        assert await found(**{f"filter[pipe][{second}][]": it.stage(second, 1)}) == [meet]
        assert await found(**{f"filter[pipe][{second}][]": it.stage(second, 1), "type": "contact"}) == []


@pytest.mark.asyncio
async def test_a_list_of_notes_must_say_of_what() -> None:
    async with shop() as it:
        contact, lead = await it.add("contacts", name="A"), await it.add("leads", name="A")
        of_contact = await it.add("notes", text="a", note_type=4, element_id=contact, element_type=1)
        of_lead = await it.add("notes", text="b", note_type=4, element_id=lead, element_type=2)
        assert code(await it.get("notes")) == "221"
        assert code(await it.get("notes", id=of_lead)) == "221"
        assert [item["id"] for item in await it.items("notes", type="lead")] == [of_lead]
        assert [item["id"] for item in await it.items("notes", type="contact", element_id=contact)] == [of_contact]
        assert [item["id"] for item in await it.items("notes", type="all", note_type=4)] == [of_contact, of_lead]
        assert await it.items("notes", type="lead", note_type="25") == []
    async with shop(notes_type_all=False) as it:
        assert code(await it.get("notes", type="all")) == "221"


# --- writes (§4) -----------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_added_and_updated_rows_come_in_one_list_with_their_request_ids() -> None:
    async with shop() as it:
        id = await it.add("contacts", name="A", updated_at=100)
        answer = await it.post(
            "contacts",
            add=[{"name": "B"}, {"name": "C", "request_id": "mine"}],
            update=[{"id": str(id), "updated_at": "101"}, {"id": id, "updated_at": 102, "request_id": 7}],
        )
        assert answer.json()["_links"] == {"self": {"href": "/api/v2/contacts", "method": "post"}}
        items = answer.json()["_embedded"]["items"]
        assert [item["request_id"] for item in items] == [0, "mine", id, 7]
        assert [item.get("updated_at") for item in items] == [None, None, 101, 102]
        assert [item["_links"] for item in items] == [link(f"contacts?id={item['id']}") for item in items]
        assert "errors" not in answer.json()["_embedded"]
    async with shop(request_id="none", updated_at_in_answer=False, links_key="_link") as it:
        answer = await it.post("contacts", add=[{"name": "A"}])
        assert "_link" in answer.json()
        assert set(answer.json()["_embedded"]["items"][0]) == {"id", "_link"}


@pytest.mark.asyncio
async def test_php_style_forms_are_taken_too() -> None:
    async with shop() as it:
        lead, phone = await it.add("leads", name="L"), it.field("contact", "Телефон")["id"]
        form = {
            "add[0][name]": "Иван",
            "add[0][leads_id][0]": lead,
            "add[0][custom_fields][0][id]": phone,
            "add[0][custom_fields][0][values][0][value]": "1",
            "add[0][custom_fields][0][values][0][enum]": "MOB",
            "add[1][name]": "Пётр",
        }
        answer = await it.http.post("/api/v2/contacts", data=form)
        ivan, petr = answer.json()["_embedded"]["items"]
        shown = await it.one("contacts", ivan["id"])
        assert (shown["name"], shown["leads"]["id"]) == ("Иван", [lead])
        assert values(shown)["Телефон"][0]["value"] == "1"
        assert it.world.row("contact", ivan["id"])["phones"] == [{"value": "1", "label": "mobile"}]
        assert it.world.row("contact", petr["id"])["name"] == "Пётр"


@pytest.mark.asyncio
async def test_an_update_must_be_strictly_newer_and_its_time_is_kept() -> None:
    async with shop() as it:
        id = await it.add("contacts", name="A", updated_at=1000)
        for stamp in (999, 1000):
            items, errors = await it.outcome("contacts", update=[{"id": id, "updated_at": stamp, "name": "B"}])
            assert (items, errors) == ([], {"update": {str(id): OLDER}})
        # Milliseconds are taken, and block every honest update after them.
        await it.update("contacts", id, name="B", after=1619342253000 - it.now)
        shown = await it.one("contacts", id)
        assert (shown["name"], shown["updated_at"]) == ("B", 1619342253000)
        _, errors = await it.outcome("contacts", update=[{"id": id, "updated_at": it.now}])
        assert errors == {"update": {str(id): OLDER}}


@pytest.mark.asyncio
async def test_a_row_just_made_cannot_be_updated_within_its_second() -> None:
    async with shop() as it:
        id = await it.add("contacts", name="A", created_at=100)
        assert (await it.one("contacts", id))["updated_at"] == it.now
        _, errors = await it.outcome("contacts", update=[{"id": id, "updated_at": it.now}])
        assert errors == {"update": {str(id): OLDER}}
    async with shop(updated_at_of_add="created") as it:
        assert (await it.one("contacts", await it.add("contacts", name="A", created_at=100)))["updated_at"] == 100


@pytest.mark.asyncio
async def test_one_refused_row_does_not_stop_the_others() -> None:
    async with shop() as it:
        items, errors = await it.outcome("leads", add=[{"name": "A"}, {"sale": 5}, "row", {"name": "B"}])
        assert (len(items), it.world.count("deal")) == (2, 2)
        assert list(errors["add"]) == ["1", "2"]


@pytest.mark.parametrize(
    "shape, expected",
    [
        ("map", {"update": {"5": "Element not found"}}),
        ("list", {"update": [{"code": 217, "message": "Element not found"}]}),
        ("calls", [{"msg": "Element not found", "code": 217, "item": {"id": 5, "updated_at": 1}}]),
    ],
)
@pytest.mark.asyncio
async def test_refused_rows_are_told_in_three_shapes(shape: str, expected: Any) -> None:
    async with shop(errors_shape=shape) as it:
        items, errors = await it.outcome("leads", update=[{"id": 5, "updated_at": 1}])
        assert (items, errors) == ([], expected)


@pytest.mark.asyncio
async def test_a_refused_new_row_may_be_named_by_its_request_id() -> None:
    async with shop(add_error_key="request-id") as it:
        _, errors = await it.outcome("leads", add=[{"request_id": 41}, {}])
        assert errors == {"add": {"41": "name is required", "1": "name is required"}}


@pytest.mark.parametrize(
    "path, body, expected",
    [
        ("contacts", {}, "206"),
        ("contacts", {"remove": []}, "207"),
        ("contacts", {"add": []}, "201"),
        ("contacts", {"update": []}, "208"),
        ("leads", {}, "214"),
        ("leads", {"delete": [1]}, "215"),
        ("leads", {"add": []}, "213"),
        ("tasks", {}, "228"),
        ("tasks", {"add": []}, "227"),
        ("notes", {}, "222"),
        ("notes", {"update": []}, "224"),
    ],
)
@pytest.mark.asyncio
async def test_a_request_without_rows_has_the_code_of_its_table(path: str, body: Any, expected: str) -> None:
    async with shop() as it:
        assert code(await it.post(path, **body)) == expected
    async with shop(error_body="problem") as it:
        answer = await it.post(path, **body)
        assert (answer.status_code, answer.json()["title"], answer.json()["status"]) == (400, "Error", 400)


@pytest.mark.parametrize(
    "path, expected", [("contacts", 209), ("companies", 209), ("leads", 217), ("tasks", 231), ("notes", 225)]
)
@pytest.mark.asyncio
async def test_an_update_without_id_or_time_has_its_code(path: str, expected: int) -> None:
    async with shop(errors_shape="list") as it:
        for row in ({"updated_at": 1}, {"id": 1}):
            _, errors = await it.outcome(path, update=[row])
            assert [error["code"] for error in errors["update"]] == [expected]


@pytest.mark.asyncio
async def test_more_than_five_hundred_rows_are_refused_whole() -> None:
    async with shop() as it:
        answer = await it.post("contacts", add=[{"name": "A"}] * 400, update=[{"id": 1}] * 101)
        assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")
        assert it.world.count("contact") == 0
        assert (await it.post("contacts", add=[{"name": "A"}] * 500)).status_code == 200


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[1]", b'{"add": NaN}', b"[" * 100_000, b'{"add":["\\ud800"]}'])
@pytest.mark.asyncio
async def test_a_body_that_is_not_json_is_102(content: bytes) -> None:
    async with shop() as it:
        assert code(await it.http.post("/api/v2/contacts", content=content)) == "102"


@pytest.mark.asyncio
async def test_what_is_not_there_is_104_and_a_wrong_verb_405() -> None:
    async with shop() as it:
        assert code(await it.get("nothing"), 404) == "104"
        assert (await it.http.delete("/api/v2/contacts")).status_code == 405
        assert code(await it.http.post("/ajax/leads/multiple/delete/", data={"ACTION": "DELETE"}), 404) == "104"


# --- links, tags, statuses (§9, §10, §11) ----------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_links_are_added_from_either_side_and_unlinked() -> None:
    async with shop() as it:
        first, second = await it.add("leads", name="L"), await it.add("leads", name="M")
        contact = await it.add("contacts", name="A", leads_id=[first])
        await it.update("contacts", contact, leads_id=[second])
        assert (await it.one("contacts", contact))["leads"]["id"] == [first, second]
        other = await it.add("contacts", name="B")
        await it.update("leads", first, contacts_id=str(other))
        lead = await it.one("leads", first)
        assert lead["contacts"] == {
            "id": [contact, other],
            "_links": link(f"contacts?id={contact},{other}"),
        }
        assert lead["main_contact"] == {"id": contact, "_links": link(f"contacts?id={contact}")}
        await it.update("leads", first, after=120, unlink={"contacts_id": [contact]})
        assert (await it.one("leads", first))["main_contact"]["id"] == other
        await it.update("contacts", contact, after=120, unlink={"leads_id": [second, first]})
        assert (await it.one("contacts", contact))["leads"] == {}


@pytest.mark.asyncio
async def test_a_company_gathers_contacts_and_leads() -> None:
    async with shop() as it:
        contact, lead = await it.add("contacts", name="A"), await it.add("leads", name="L")
        firm = await it.add("companies", name="F", contacts_id=f"{contact}", leads_id=[lead])
        shown = await it.one("companies", firm)
        assert (shown["contacts"]["id"], shown["leads"]["id"]) == ([contact], [lead])
        assert (await it.one("contacts", contact))["company"]["name"] == "F"
        assert (await it.one("leads", lead))["company"] == {
            "id": firm,
            "name": "F",
            "_links": link(f"companies?id={firm}"),
        }
        await it.update("contacts", contact, unlink={"company_id": firm})
        assert (await it.one("contacts", contact))["company"] == {}
        assert it.world.row("contact", contact)["company"] is None


@pytest.mark.asyncio
async def test_company_name_makes_a_company_and_links_it() -> None:
    async with shop() as it:
        first, second = [await it.one("contacts", await it.add("contacts", name="A", company_name="F")) for _ in "ab"]
        assert (first["company"]["name"], second["company"]["name"]) == ("F", "F")
        assert first["company"]["id"] != second["company"]["id"]
    async with shop(company_name="find-or-make") as it:
        first, second = [await it.one("contacts", await it.add("contacts", name="A", company_name="F")) for _ in "ab"]
        assert first["company"] == second["company"]


NOWHERE: list[tuple[str, dict[str, Any], str]] = [
    ("contacts", {"leads_id": [1]}, "lead 1 not found"),
    ("contacts", {"company_id": 1}, "company 1 not found"),
    ("contacts", {"customers_id": "1,2"}, "customer 1 not found"),
    ("companies", {"contacts_id": "1"}, "contact 1 not found"),
    ("leads", {"contacts_id": 1}, "contact 1 not found"),
    ("contacts", {"responsible_user_id": 1}, "user 1 not found"),
    ("contacts", {"created_by": 1}, "user 1 not found"),
    ("contacts", {"custom_fields": [{"id": 1, "values": []}]}, "field 1 not found"),
    ("contacts", {"tags": [1]}, "tag 1 not found"),
    ("contacts", {"created_at": "yesterday"}, "created_at must be an integer"),
    ("contacts", {"name": " "}, "name is required"),
    ("contacts", {"name": ["A"]}, "name must be a string"),
    ("leads", {"status_id": 1}, "status 1 not found"),
    ("leads", {"pipeline_id": 1}, "pipeline 1 not found"),
    ("leads", {"sale": "99.5"}, "sale must be an integer"),
    ("leads", {"sale": 99.5}, "sale must be an integer"),
    ("leads", {"catalog_elements_id": {"1": {"2": 3}}}, "catalog not found"),
    ("tasks", {"element_id": 1}, "element_type is required"),
    ("tasks", {"element_id": 1, "element_type": 4}, "element_type: 4"),
    ("tasks", {"element_id": 1, "element_type": 1}, "contact 1 not found"),
    ("tasks", {"task_type": 77}, "task type 77 not found"),
    ("tasks", {"is_completed": "false"}, "is_completed must be a boolean"),
    ("notes", {"note_type": 4, "text": "A"}, "element_id and element_type are required"),
    ("notes", {"note_type": 4, "text": "A", "element_id": 1, "element_type": 2}, "lead 1 not found"),
    ("notes", {"note_type": 1, "text": "A", "element_id": 1, "element_type": 2}, "1 cannot be added"),
    ("notes", {"note_type": 4, "text": "A", "element_id": 1, "element_type": 4}, "element_type: 4"),
    ("customers", {"next_date": None}, "next_date is required"),
]


@pytest.mark.parametrize("path, row, mentions", NOWHERE)
@pytest.mark.asyncio
async def test_what_points_nowhere_or_is_of_the_wrong_type_refuses_its_row(path: str, row: Any, mentions: str) -> None:
    async with shop() as it:
        assert mentions in await it.refused(path, **{"name": "A", **row})
        assert all(it.world.count(kind) == 0 for kind in ("contact", "company", "deal", "task", "note", "record"))


@pytest.mark.asyncio
async def test_a_lead_has_at_most_forty_contacts() -> None:
    async with shop(errors_shape="list") as it:
        ids = it.world.add_many("contact", [{"name": str(n)} for n in range(41)])
        _, errors = await it.outcome("leads", add=[{"name": "A", "contacts_id": ids}])
        assert errors["add"][0]["code"] == 330
        await it.add("leads", name="A", contacts_id=ids[:40])


@pytest.mark.asyncio
async def test_tags_come_as_words_or_as_ids_and_replace() -> None:
    async with shop() as it:
        id = await it.add("leads", name="A", tags="pencil, buy,pencil")
        tags = (await it.one("leads", id))["tags"]
        assert [tag["name"] for tag in tags] == ["pencil", "buy"]
        await it.update("leads", id, tags=[tags[1]["id"]])
        assert (await it.one("leads", id))["tags"] == [tags[1]]
        await it.update("leads", id, after=61, name="B")
        assert (await it.one("leads", id))["tags"] == [tags[1]]
        await it.update("leads", id, after=62, tags="")
        assert (await it.one("leads", id))["tags"] == {}


@pytest.mark.asyncio
async def test_won_and_lost_are_in_every_pipeline_and_close_a_lead() -> None:
    async with shop() as it:
        main, second = [row["id"] for row in it.world.select("pipeline", order="sort")]
        id = await it.add("leads", name="A", sale="5000")
        lead = await it.one("leads", id)
        assert (lead["pipeline_id"], lead["status_id"], lead["sale"]) == (main, it.stage(main, 1), 5000)
        assert (await it.one("leads", await it.add("leads", name="A", status_id=142)))["pipeline_id"] == main
        await it.update("leads", id, status_id=it.stage(second, 2))
        assert (await it.one("leads", id))["pipeline_id"] == second
        it.clock.advance(5)
        await it.update("leads", id, after=61, status_id="143")
        lead = await it.one("leads", id)
        assert (lead["pipeline_id"], lead["status_id"], lead["closed_at"]) == (second, 143, it.now)
        await it.update("leads", id, after=62, status_id=143, pipeline_id=main)
        assert (await it.one("leads", id))["pipeline_id"] == main
        await it.update("leads", id, after=63, pipeline_id=second)
        lead = await it.one("leads", id)
        assert (lead["status_id"], lead["closed_at"]) == (it.stage(second, 1), 0)
        assert "status" in await it.refused("leads", name="A", status_id=it.stage(main, 1), pipeline_id=second)


@pytest.mark.asyncio
async def test_a_pipeline_without_a_status_may_be_ignored_or_refused() -> None:
    for choice, errors in (("ignore", False), ("refuse", True)):
        async with shop(pipeline_alone=choice) as it:
            main, second = [row["id"] for row in it.world.select("pipeline", order="sort")]
            id = await it.add("leads", name="A")
            _, found = await it.outcome("leads", update=[{"id": id, "updated_at": it.now + 1, "pipeline_id": second}])
            assert bool(found) is errors
            assert (await it.one("leads", id))["pipeline_id"] == main


@pytest.mark.asyncio
async def test_the_nearest_open_task_shows_on_its_card() -> None:
    async with shop() as it:
        id = await it.add("contacts", name="A")
        for due, done in ((300, 0), (200, 0), (100, 1)):
            await it.add("tasks", text="T", element_id=id, element_type=1, complete_till=due, is_completed=done)
        assert (await it.one("contacts", id))["closest_task_at"] == 200


@pytest.mark.asyncio
async def test_linking_leaves_the_other_end_its_time_unless_told() -> None:
    for touch in (False, True):
        async with shop(links_touch=touch) as it:
            lead = await it.add("leads", name="L", updated_at=100)
            await it.add("contacts", name="A", leads_id=[lead])
            assert (await it.one("leads", lead))["updated_at"] == (it.now if touch else 100)


@pytest.mark.asyncio
async def test_halves_of_a_name_are_kept_and_a_new_name_empties_them() -> None:
    async with shop() as it:
        id = await it.add("contacts", name="Иван Петров", first_name="Иван", last_name="Петров")
        shown = await it.one("contacts", id)
        assert (shown["first_name"], shown["last_name"]) == ("Иван", "Петров")
        await it.update("contacts", id, first_name="Пётр")
        assert (await it.one("contacts", id))["name"] == "Пётр Петров"
        await it.update("contacts", id, after=61, name="Пётр")
        shown = await it.one("contacts", id)
        assert (shown["name"], shown["first_name"], shown["last_name"]) == ("Пётр", "", "")


# --- custom fields (§7) ----------------------------------------------------------------------------------------------


def made_field(it: Shop, entity: str, type: str, *texts: str, code: str | None = None) -> dict[str, Any]:
    enums = [{"id": it.world.next_id(), "value": text, "code": None, "sort": 1} for text in texts]
    field = {"entity": entity, "name": type, "type": type, "enums": enums, "code": code}
    return it.world.row("field", it.world.add("field", field))


TYPES: list[tuple[str, Any, Any]] = [
    ("text", [{"value": "test"}], [{"value": "test"}]),
    ("text", [{"value": 5}], [{"value": "5"}]),
    ("numeric", [{"value": 111}], [{"value": "111"}]),
    ("numeric", [{"value": "7.50"}], [{"value": "7.50"}]),
    ("checkbox", [{"value": "1"}], [{"value": "1"}]),
    ("checkbox", [{"value": 0}], None),
    ("date", [{"value": "2020-04-17"}], [{"value": "2020-04-17 00:00:00"}]),
    ("date", [{"value": "17.04.2020"}], [{"value": "2020-04-17 00:00:00"}]),
    ("date", [{"value": "2020-04-17 00:00:00"}], [{"value": "2020-04-17 00:00:00"}]),
    ("birthday", [{"value": "1899-12-31"}], [{"value": "1899-12-31 00:00:00"}]),
    ("date_time", [{"value": "2020-04-24 22:45:00"}], [{"value": "2020-04-24 22:45:00"}]),
    ("url", [{"value": "https://a.b/?c"}], [{"value": "https://a.b/?c"}]),
    ("textarea", [{"value": "a\nb"}], [{"value": "a\nb"}]),
    ("streetaddress", [{"value": "улица"}], [{"value": "улица"}]),
    ("org_legal_name", [{"value": "ООО"}], [{"value": "ООО"}]),
    (
        "smart_address",
        [{"value": "Москва", "subtype": "city"}, {"value": "RU", "subtype": "country"}],
        [{"value": "Москва", "subtype": "city"}, {"value": "RU", "subtype": "country"}],
    ),
    ("text", [{"value": ""}], None),
    ("text", [], None),
]


@pytest.mark.parametrize("type, sent, shown", TYPES)
@pytest.mark.asyncio
async def test_a_field_comes_back_in_its_own_form(type: str, sent: Any, shown: Any) -> None:
    async with shop() as it:
        field = made_field(it, "deal", type)
        id = await it.add("leads", name="A", custom_fields=[{"id": field["id"], "values": sent}])
        assert values(await it.one("leads", id)).get(type) == shown


@pytest.mark.asyncio
async def test_choices_are_sent_by_enum_id_and_come_back_with_their_text() -> None:
    async with shop() as it:
        one, many = made_field(it, "deal", "select", "a", "b"), made_field(it, "deal", "multiselect", "c", "d", "e")
        fields = [
            {"id": one["id"], "values": [{"value": str(one["enums"][1]["id"])}]},
            {"id": many["id"], "values": [str(enum["id"]) for enum in many["enums"][1:]]},
        ]
        shown = values(await it.one("leads", await it.add("leads", name="A", custom_fields=fields)))
        assert shown["select"] == [{"value": "b", "enum": one["enums"][1]["id"]}]
        assert shown["multiselect"] == [{"value": enum["value"], "enum": enum["id"]} for enum in many["enums"][1:]]


@pytest.mark.asyncio
async def test_the_seeds_own_forms_are_taken_only_when_told() -> None:
    for told in (False, True):
        async with shop(accept_seed_forms=told, subtype_form="numbers") as it:
            one, many = made_field(it, "deal", "select", "a"), made_field(it, "deal", "multiselect", "c")
            address = made_field(it, "deal", "smart_address")
            for field, value in (
                (one, {"value": "a", "enum": one["enums"][0]["id"]}),
                (many, {"value": "c", "enum": many["enums"][0]["id"]}),
                (address, {"value": "RU", "subtype": "6"}),
            ):
                row = {"name": "A", "custom_fields": [{"id": field["id"], "values": [value]}]}
                items, errors = await it.outcome("leads", add=[row])
                assert (len(items), errors is None) == (int(told), told)
                if told:
                    (shown,) = values(await it.one("leads", items[0]["id"])).values()
                    assert shown == [value]


@pytest.mark.asyncio
async def test_a_legal_entity_is_an_object_with_every_key() -> None:
    async with shop() as it:
        field = made_field(it, "deal", "legal_entity")
        sent = {"id": field["id"], "values": [{"value": {"name": "Организация", "vat_id": "77"}}]}
        (shown,) = values(await it.one("leads", await it.add("leads", name="A", custom_fields=[sent])))["legal_entity"]
        assert (shown["value"]["name"], shown["value"]["vat_id"], shown["value"]["kpp"]) == ("Организация", "77", None)
        assert len(shown["value"]) == 13


@pytest.mark.parametrize(
    "type, value",
    [
        ("numeric", {"value": "many"}),
        ("checkbox", {"value": "да"}),
        ("date", {"value": 1587070800}),
        ("date", {"value": "2020-02-30"}),
        ("select", {"value": "1"}),
        ("select", {"value": "a"}),
        ("multiselect", {"value": "a"}),
        ("multitext", {"value": "1", "enum": "NONE"}),
        ("smart_address", {"value": "RU", "subtype": "planet"}),
        ("smart_address", {"value": "RU"}),
        ("legal_entity", {"value": "ООО"}),
        ("text", "bare"),
        ("text", {"enum": 1}),
    ],
)
@pytest.mark.asyncio
async def test_a_value_the_field_cannot_have_refuses_the_row(type: str, value: Any) -> None:
    async with shop() as it:
        field = made_field(it, "deal", type, "a")
        assert "custom_fields" in await it.refused(
            "leads", name="A", custom_fields=[{"id": field["id"], "values": [value]}]
        )
        assert it.world.count("deal") == 0


@pytest.mark.asyncio
async def test_a_field_is_replaced_alone_and_an_address_whole() -> None:
    async with shop() as it:
        text, address = made_field(it, "contact", "text"), made_field(it, "contact", "smart_address")
        lines = [{"value": "ул. Ленина", "subtype": "address_line_1"}, {"value": "Москва", "subtype": "city"}]
        fields = [{"id": text["id"], "values": [{"value": "a"}]}, {"id": address["id"], "values": lines}]
        id = await it.add("contacts", name="A", custom_fields=fields)
        await it.update("contacts", id, custom_fields=[{"id": address["id"], "values": lines[:1]}])
        assert values(await it.one("contacts", id)) == {"text": [{"value": "a"}], "smart_address": lines[:1]}


@pytest.mark.asyncio
async def test_phones_messengers_and_the_position_are_parts_of_the_card() -> None:
    async with shop() as it:
        im = made_field(it, "contact", "multitext", "SKYPE", "ICQ", "OTHER", code="IM")
        phone, email, position = (it.field("contact", name) for name in ("Телефон", "Email", "Должность"))
        mobile = next(enum["id"] for enum in phone["enums"] if enum["value"] == "MOB")
        fields = [
            {"id": phone["id"], "values": [{"value": "1", "enum": mobile}, {"value": "2", "enum": "WORKDD"}]},
            {"id": email["id"], "values": [{"value": "a@b", "enum": "PRIV"}]},
            {"id": im["id"], "values": [{"value": "example", "enum": "SKYPE"}]},
            {"id": position["id"], "values": [{"value": "CEO"}]},
        ]
        id = await it.add("contacts", name="A", custom_fields=fields)
        row = it.world.row("contact", id)
        assert row["phones"] == [{"value": "1", "label": "mobile"}, {"value": "2", "label": "workdd"}]
        assert row["emails"] == [{"value": "a@b", "label": "private"}]
        assert (row["messengers"], row["position"]) == ([{"value": "example", "label": "skype"}], "CEO")
        shown = values(await it.one("contacts", id))
        assert shown["Телефон"][0] == {"value": "1", "enum": mobile}
        assert shown["multitext"] == [{"value": "example", "enum": im["enums"][0]["id"]}]
        assert shown["Должность"] == [{"value": "CEO"}]


@pytest.mark.asyncio
async def test_dates_are_midnights_of_the_accounts_zone() -> None:
    for zone, midnight in (("account", 1587070800), ("utc", 1587081600)):
        async with shop(zone=zone) as it:
            field = made_field(it, "deal", "date")
            sent = [{"id": field["id"], "values": [{"value": "2020-04-17"}]}]
            id = await it.add("leads", name="A", custom_fields=sent)
            assert it.world.row("deal", id)["fields"] == {str(field["id"]): [{"value": midnight}]}


# --- tasks, notes, customers (§12, §13, §14) -------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_task_takes_its_date_under_either_name_and_shows_one() -> None:
    async with shop() as it:
        contact = await it.add("contacts", name="A")
        for key in ("complete_till", "complete_till_at"):
            row = {
                "element_id": str(contact),
                "element_type": "1",
                "task_type": "3",
                "text": "Позвонить",
                key: "1508706000",
            }
            id = await it.add("tasks", **row)
            shown = await it.one("tasks", id)
            me = it.world.admin["id"]
            assert shown == {
                "id": id,
                "responsible_user_id": me,
                "created_by": me,
                "created_at": it.now,
                "updated_at": it.now,
                "account_id": it.world.account["id"],
                "group_id": 0,
                "element_type": 1,
                "element_id": contact,
                "is_completed": False,
                "task_type": 3,
                "complete_till_at": 1508706000,
                "text": "Позвонить",
                "result": {},
                "_links": link(f"tasks?id={id}"),
            }
        await it.update("tasks", id, is_completed=True)
        shown = await it.one("tasks", id)
        assert (shown["is_completed"], shown["element_id"], shown["text"]) == (True, contact, "Позвонить")


@pytest.mark.asyncio
async def test_a_note_of_type_13_is_the_result_of_its_task() -> None:
    for closes in (False, True):
        async with shop(task_result_closes=closes) as it:
            task = await it.add("tasks", text="T")
            note = await it.add("notes", note_type=13, element_type=4, element_id=task, text="Готово")
            shown = await it.one("tasks", task)
            assert shown["result"] == {"id": note, "text": "Готово", "_links": link(f"notes?id={note}&type=task")}
            assert shown["is_completed"] is closes
            assert [item["id"] for item in await it.items("notes", type="task")] == [note]


@pytest.mark.asyncio
async def test_an_updated_task_may_have_to_repeat_its_text() -> None:
    async with shop(task_text="required") as it:
        id = await it.add("tasks", text="T")
        _, errors = await it.outcome("tasks", update=[{"id": id, "updated_at": it.now + 1, "is_completed": 1}])
        assert errors == {"update": {str(id): "text is required"}}


NOTES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"note_type": "4", "text": "Примечание"}, {"note_type": 4, "text": "Примечание", "is_editable": True}),
    (
        {"note_type": 25, "text": "lost", "params": {"text": "T", "service": "S"}},
        {"note_type": 25, "params": {"text": "T", "service": "S"}, "is_editable": False},
    ),
    (
        {"note_type": 102, "params": {"text": "T", "phone": "7"}},
        {"note_type": 102, "params": {"text": "T", "phone": "7"}, "is_editable": False},
    ),
    (
        {"note_type": 10, "params": {"UNIQ": "u", "PHONE": "7", "DURATION": "58", "SRC": "asterisk", "call_status": 4}},
        {
            "note_type": 10,
            "params": {"UNIQ": "u", "PHONE": "7", "DURATION": 58, "SRC": "asterisk", "call_status": 4},
            "is_editable": False,
        },
    ),
]


@pytest.mark.parametrize("sent, expected", NOTES)
@pytest.mark.asyncio
async def test_notes_of_every_kind_come_back(sent: dict[str, Any], expected: dict[str, Any]) -> None:
    async with shop() as it:
        lead = await it.add("leads", name="L")
        answer = await it.post("notes", add=[{"element_id": lead, "element_type": 2, "created_at": 5, **sent}])
        (item,) = answer.json()["_embedded"]["items"]
        id = item["id"]
        assert item["_links"] == link(f"notes?id={id}&type=lead")
        me = it.world.admin["id"]
        assert await it.one("notes", id, type="lead") == {
            "id": id,
            "responsible_user_id": me,
            "created_by": me,
            "created_at": 5,
            "updated_at": it.now,
            "account_id": it.world.account["id"],
            "group_id": 0,
            "element_id": lead,
            "element_type": 2,
            "attachment": "",
            "_links": link(f"notes?id={id}&type=lead"),
            **expected,
        }
        row = {"id": id, "updated_at": it.now + 1, "text": "новый"}
        _, errors = await it.outcome("notes", update=[row])
        assert (errors is None) is expected["is_editable"]


@pytest.mark.asyncio
async def test_a_call_that_came_through_another_dialect_shows_with_capitals() -> None:
    async with shop() as it:
        lead = await it.add("leads", name="L")
        params = {"phone": "7", "duration": 5, "source": "ATC"}
        it.world.add("note", {"kind": "call_out", "params": params, "target_kind": "deal", "target_id": lead})
        (note,) = await it.items("notes", type="lead")
        assert (note["note_type"], note["params"]) == (11, {"PHONE": "7", "DURATION": 5, "SRC": "ATC"})
        assert "text" not in note


@pytest.mark.asyncio
async def test_customers_are_made_read_linked_changed_and_deleted() -> None:
    async with shop() as it:
        contact, firm = await it.add("contacts", name="A"), await it.add("companies", name="F")
        row = {"name": "К", "next_date": "1508878800", "next_price": "5000", "tags": "a,b", "company_id": firm}
        id = await it.add("customers", **row, contacts_id=[str(contact)])
        shown = await it.one("customers", id)
        assert (shown["next_date"], shown["next_price"], shown["periodicity"]) == (1508878800, 5000, 0)
        assert (shown["main_contact"]["id"], shown["company"]["id"]) == (contact, firm)
        assert [tag["name"] for tag in shown["tags"]] == ["a", "b"]
        assert (await it.one("contacts", contact))["customers"]["id"] == [id]
        await it.update("customers", id, next_price=7, unlink={"contacts_id": [contact]})
        shown = await it.one("customers", id)
        assert (shown["next_price"], shown["contacts"], shown["name"]) == (7, {}, "К")
        assert await it.items("customers", **{"filter[next_date][from]": 1508878801}) == []
        assert (
            len(await it.items("customers", **{"filter[date][type]": "create", "filter[date][from]": "20.03.2026"}))
            == 1
        )
        assert await it.items("customers", **{"filter[date][type]": "create", "filter[date][to]": "03/19/2026"}) == []
        items, _ = await it.outcome("customers", delete=[str(id), "1"])
        assert items == {"deleted": [{"id": id, "name": "К"}]}
        assert await it.items("customers") == []
    async with shop(customers=False) as it:
        assert code(await it.get("customers")) == "426"


# --- the account and its settings (§6, §15, §16) ---------------------------------------------------------------------

EVERYTHING = "custom_fields,users,pipelines,groups,note_types,task_types"


@pytest.mark.asyncio
async def test_the_account_has_the_parts_that_were_asked_for() -> None:
    async with shop() as it:
        bare = (await it.get("account")).json()
        assert (bare["id"], bare["timezone"], bare["timezone_offset"]) == (
            it.world.account["id"],
            "Europe/Moscow",
            "+03:00",
        )
        assert bare["date_pattern"]["date_time"] == "d.m.Y H:i"
        assert bare["_embedded"] == {}
        some = (await it.get("account", **{"with": "users,groups"})).json()
        assert set(some["_embedded"]) == {"users", "groups"}


@pytest.mark.asyncio
async def test_the_account_of_2020_keys_everything_by_id() -> None:
    async with shop() as it:
        inside = (await it.get("account", **{"with": EVERYTHING})).json()["_embedded"]
        for part in ("users", "pipelines", "note_types", "task_types"):
            assert all(key == str(each["id"]) for key, each in inside[part].items())
        me = inside["users"][str(it.world.admin["id"])]
        assert (me["login"], me["is_admin"], me["is_free"]) == ("olga@roga.example", True, False)
        assert me["rights"]["lead_add"] == "A"
        assert inside["groups"] == [{"id": 0, "name": "Отдел продаж"}]
        assert inside["note_types"]["4"] == {"id": 4, "code": "COMMON", "is_editable": True}
        phone = it.field("contact", "Телефон")
        shown = inside["custom_fields"]["contacts"][str(phone["id"])]
        assert shown["enums"] == {str(enum["id"]): enum["value"] for enum in phone["enums"]}
        assert {key: shown[key] for key in ("field_type", "code", "is_multiple", "is_system", "params")} == {
            "field_type": 8,
            "code": "PHONE",
            "is_multiple": True,
            "is_system": True,
            "params": {},
        }
        assert inside["custom_fields"]["customers"] == []
        (main,) = [each for each in inside["pipelines"].values() if each["is_main"]]
        assert main["statuses"]["142"] == {
            "id": 142,
            "name": "Успешно реализовано",
            "color": "#CCFF66",
            "sort": 10000,
            "is_editable": False,
        }
        assert main["_links"] == link(f"pipelines?id={main['id']}")


@pytest.mark.asyncio
async def test_the_account_of_the_page_has_lists() -> None:
    async with shop(account_shape="doc2017") as it:
        inside = (await it.get("account", **{"with": EVERYTHING})).json()["_embedded"]
        assert isinstance(inside["users"], dict)
        assert inside["note_types"][3] == {"id": 4, "name": "", "code": "COMMON", "editable": "Y"}
        assert set(inside["task_types"][0]) == {"id", "name"}
        phone = next(field for field in inside["custom_fields"]["contacts"] if field["name"] == "Телефон")
        assert set(phone["enums"][0]) == {"id", "value"}
        assert "code" not in phone
        assert {stage["editable"] for each in inside["pipelines"].values() for stage in each["statuses"].values()} == {
            "Y",
            "N",
        }


@pytest.mark.asyncio
async def test_free_users_show_when_asked_for() -> None:
    async with shop() as it:
        free = it.world.add("user", {"name": "F", "email": "f@roga.example", "extra": {"free": True}})
        users = (await it.get("account", **{"with": "users"})).json()["_embedded"]["users"]
        assert str(free) not in users
        users = (await it.get("account", **{"with": "users", "free_users": "Y"})).json()["_embedded"]["users"]
        assert users[str(free)]["is_free"] is True


@pytest.mark.asyncio
async def test_pipelines_come_as_an_object() -> None:
    async with shop() as it:
        answer = (await it.get("pipelines")).json()
        ids = [str(row["id"]) for row in it.world.select("pipeline", order="sort")]
        assert list(answer["_embedded"]["items"]) == ids
        one = (await it.get("pipelines", id=ids[1])).json()
        assert one["_links"]["self"]["href"] == f"/api/v2/pipelines?id={ids[1]}"
        assert list(one["_embedded"]["items"]) == [ids[1]]
        assert (await it.get("pipelines", id=1)).status_code == 204


@pytest.mark.asyncio
async def test_custom_fields_are_added_and_deleted_by_their_origin() -> None:
    async with shop() as it:
        row = {"name": "Цвет", "type": "5", "element_type": "2", "origin": "mine", "enums": ["чёрный", "белый"]}
        id = await it.add("fields", **row)
        field = (await it.get("account", **{"with": "custom_fields"})).json()["_embedded"]["custom_fields"]["leads"][
            str(id)
        ]
        assert (field["field_type"], list(field["enums"].values())) == (5, ["чёрный", "белый"])
        assert field["is_editable"] is False
        wrongs: list[dict[str, Any]] = [
            {"origin": None},
            {"type": 16},
            {"type": 99},
            {"element_type": 4},
            {"enums": []},
        ]
        for wrong in wrongs:
            await it.refused("fields", **{**row, **wrong})
        _, errors = await it.outcome("fields", delete=[{"id": id, "origin": "theirs"}])
        assert list(errors["delete"]) == [str(id)]
        items, errors = await it.outcome("fields", delete=[{"id": str(id), "origin": "mine"}])
        assert ([item["id"] for item in items], errors) == ([id], None)
        assert it.world.get("field", id) is None


@pytest.mark.asyncio
async def test_webhooks_are_subscribed_listed_and_unsubscribed() -> None:
    async with shop() as it:
        hook = {"url": "https://example.com/hook", "events": ["add_lead", "note_customer"]}
        answer = await it.http.post(
            "/api/v2/webhooks/subscribe", json={"subscribe": [hook, {**hook, "events": ["no"]}]}
        )
        assert answer.json()["_links"]["self"] == {"href": "/api/v2/webhooks/subscribe", "method": "post"}
        assert answer.json()["_embedded"]["items"] == [
            {"url": hook["url"], "result": True},
            {"url": hook["url"], "result": False, "notice": "Unknown event"},
        ]
        form = {"subscribe[0][url]": hook["url"], "subscribe[0][events][0]": "add_task"}
        await it.http.post("/api/v2/webhooks/subscribe", data=form)
        (shown,) = await it.items("webhooks")
        assert shown == {"id": shown["id"], "url": hook["url"], "events": ["add_lead", "note_customer", "add_task"]}
        body = {"unsubscribe": [{"events": ["add_lead"]}]}
        await it.http.post("/api/v2/webhooks/unsubscribe", json=body)
        assert (await it.items("webhooks"))[0]["events"] == ["note_customer", "add_task"]
        await it.http.post("/api/v2/webhooks/unsubscribe", json={"unsubscribe": [{"url": hook["url"]}]})
        assert await it.items("webhooks") == []
        it.world.add_many("webhook", [{"url": f"https://a/{n}", "events": ["add_lead"]} for n in range(100)])
        (item,), _ = await it.outcome("webhooks/subscribe", subscribe=[hook])
        assert item["result"] is False


@pytest.mark.asyncio
async def test_the_interfaces_own_calls_delete_behind_a_switch() -> None:
    async with shop(ajax_delete=True) as it:
        contact, firm = await it.add("contacts", name="A"), await it.add("companies", name="F")
        lead = await it.add("leads", name="L", contacts_id=contact, company_id=firm)
        task = await it.add("tasks", text="T")
        for path, id in (("contacts", contact), ("companies", firm), ("tasks", task)):
            form = urlencode({"ACTION": "DELETE", "ID[]": id})
            headers = {"Content-Type": "application/x-www-form-urlencoded", "X-Requested-With": "XMLHttpRequest"}
            answer = await it.http.post(f"/ajax/{path}/multiple/delete/", content=form, headers=headers)
            assert answer.json() == {"status": "success"}
            assert await it.items(path) == []
        shown = await it.one("leads", lead)
        assert (shown["contacts"], shown["company"]) == ({}, {})
        _, errors = await it.outcome("contacts", update=[{"id": contact, "updated_at": it.now + 100}])
        assert errors == {"update": {str(contact): "Element not found"}}


@pytest.mark.asyncio
async def test_a_query_does_not_find_what_its_index_has_not_got_round_to() -> None:
    async with shop(index_lag="5s") as it:
        id = await it.add("contacts", name="Ivan")
        assert await it.items("contacts", query="Ivan") == []
        assert [row["id"] for row in await it.items("contacts")] == [id]
        assert (await it.one("contacts", id))["name"] == "Ivan"
        it.clock.advance(5)
        assert [row["id"] for row in await it.items("contacts", query="Ivan")] == [id]


@pytest.mark.asyncio
async def test_filters_that_are_not_heeded_give_every_row_with_200() -> None:
    async with shop(ignore_filters=True, contacts=4) as it:
        assert len(await it.items("contacts", query="nobody", responsible_user_id=1)) == 4
        assert len(await it.items("leads", **{"filter[active]": 1, "status": 1})) == it.world.count("deal")
        later = {"If-Modified-Since": "Fri, 01 Jan 2100 00:00:00 GMT"}
        assert len((await it.http.get("/api/v2/contacts", headers=later)).json()["_embedded"]["items"]) == 4
        (first, *_) = it.world.select("contact")
        assert (await it.one("contacts", first["id"]))["id"] == first["id"]


# --- the face --------------------------------------------------------------------------------------------------------


def test_every_switch_says_why_and_names_where_the_reference_is_silent() -> None:
    for name, switch in SWITCHES.items():
        assert switch.default in switch.choices, name
        assert len(switch.choices) > 1, name
        assert "§" in switch.why, name
        assert name in Path(sandbox.__file__).read_text().partition("class Refusal")[2], name


def test_the_face_shares_nothing_with_the_adapter() -> None:
    tree = ast.parse(Path(sandbox.__file__).read_text())
    modules = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    ours = {name for name in modules if name.startswith("crmclient")}
    assert ours == {"crmclient.sandbox.server", "crmclient.sandbox.world"}
    assert {name.partition(".")[0] for name in modules - ours} <= {"attrs", "starlette"} | set(sys.stdlib_module_names)


@pytest.mark.asyncio
async def test_a_failure_of_the_sandbox_itself_is_a_500_in_the_problem_body() -> None:
    async with shop(contacts=1) as it:
        it.world._db.execute('DROP TABLE "contact"')  # pyright: ignore[reportPrivateUsage]
        transport = httpx.ASGITransport(it.run.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url=it.http.base_url, headers=it.http.headers) as http:
            answer = await http.get("/api/v2/contacts")
        assert (answer.status_code, answer.json()["status"]) == (500, 500)


@pytest.mark.asyncio
async def test_credentials_and_script_are_ready_to_use() -> None:
    async with shop() as it:
        given = it.run.credentials
        assert set(given) == {"login", "hash", "token"}
        text = it.run.script
        assert len(text.strip().splitlines()) == 6
        compile(text, "script", "exec")
        assert f'connect("amocrm", base_url="http://localhost", credentials="{given["token"]}")' in text


@pytest.mark.e2e
@pytest.mark.asyncio
async def test_it_serves_over_real_http_with_a_session() -> None:
    with World(clock=FakeClock()) as world:
        populate(world, contacts=3)
        async with serve(FACE, world, limits=False) as running:
            async with httpx.AsyncClient(base_url=running.base_url) as http:
                given = {"USER_LOGIN": running.credentials["login"], "USER_HASH": running.credentials["hash"]}
                assert (await http.get("/api/v2/contacts")).status_code == 401
                assert (await http.post(f"{AUTH}?type=json", data=given)).status_code == 200
                answer = await http.get("/api/v2/contacts", params={"limit_rows": 2})
                assert len(json.loads(answer.content)["_embedded"]["items"]) == 2
                made = await http.post("/api/v2/contacts", json={"add": [{"name": "Иван"}]})
                assert made.status_code == 200
                assert world.count("contact") == 4
