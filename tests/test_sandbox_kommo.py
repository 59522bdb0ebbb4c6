"""The Kommo sandbox does what the reference says the service does; plain httpx is the judge, our client is not here."""

import base64
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl

import httpx
import pytest
from attrs import frozen

from crmclient.clock import FakeClock
from crmclient.sandbox.server import Running, in_process, serve
from crmclient.sandbox.world import World, populate
from crmclient_kommo.sandbox import FACE, HOOKS, NOTE_TYPES, Grants, delivered, grants, trash


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
    def grants(self) -> Grants:
        return grants(self.run.account)

    def field(self, entity: str, name: str) -> dict[str, Any]:
        return next(row for row in self.world.select("field", where={"entity": entity}) if row["name"] == name)

    def stage(self, pipeline: int, place: int) -> int:
        return self.world.select("stage", where={"pipeline_id": pipeline}, order="sort")[place]["id"]

    async def get(self, path: str, **params: Any) -> httpx.Response:
        return await self.http.get(f"/api/v4/{path}", params=params or None)

    async def post(self, path: str, body: Any) -> httpx.Response:
        return await self.http.post(f"/api/v4/{path}", json=body)

    async def patch(self, path: str, body: Any) -> httpx.Response:
        return await self.http.patch(f"/api/v4/{path}", json=body)

    async def made(self, path: str, row: dict[str, Any]) -> int:
        answer = await self.post(path, [row])
        assert answer.status_code == 200, answer.text
        return answer.json()["_embedded"][path.rsplit("/", 1)[-1]][0]["id"]

    async def token(self, **body: Any) -> httpx.Response:
        card = self.grants.integration
        given = {"client_id": card.client_id, "client_secret": card.client_secret, "redirect_uri": card.redirect_uri}
        return await self.http.post("/oauth2/access_token", json=given | body)

    async def pair(self) -> dict[str, Any]:
        answer = await self.token(grant_type="authorization_code", code=self.grants.mint_code())
        return answer.json()

    async def renew(self, refresh: str) -> httpx.Response:
        return await self.token(grant_type="refresh_token", refresh_token=refresh)

    async def status_with(self, token: str, **headers: str) -> int:
        answer = await self.http.get("/api/v4/account", headers={"Authorization": f"Bearer {token}", **headers})
        return answer.status_code


@asynccontextmanager
async def shop(*, limits: bool = False, contacts: int = 0, **switches: Any) -> AsyncGenerator[Shop]:
    clock = FakeClock()
    with World(clock=clock) as world:
        if contacts:
            populate(world, contacts=contacts, companies=3, deals=contacts, tasks=contacts, notes=contacts)
        named = {name.replace("_", "-"): value for name, value in switches.items()}
        run = in_process(FACE, world, switches=named, limits=limits)
        bearer = {"Authorization": f"Bearer {run.credentials['token']}"}
        async with httpx.AsyncClient(transport=run.transport(), base_url=run.origin, headers=bearer) as http:
            yield Shop(run, http, clock)


def issues(answer: httpx.Response) -> list[tuple[str, str, str]]:
    """(request_id, code, path) of everything that was refused."""
    assert answer.status_code == 400, answer.text
    body = answer.json()
    assert (body["title"], body["type"], body["detail"]) == (
        "Bad Request",
        "https://httpstatus.es/400",
        "Request validation failed",
    )
    return [
        (entry["request_id"], error["code"], error["path"])
        for entry in body["validation-errors"]
        for error in entry["errors"]
    ]


# --- OAuth (§1) ------------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_code_is_exchanged_once_for_a_pair() -> None:
    async with shop() as it:
        code = it.run.credentials["code"]
        answer = await it.token(grant_type="authorization_code", code=code)
        pair = answer.json()
        assert answer.status_code == 200
        assert (pair["token_type"], pair["expires_in"]) == ("Bearer", 86400)
        assert pair["server_time"] == int(it.clock.now().timestamp())
        assert await it.status_with(pair["access_token"]) == 200
        again = await it.token(grant_type="authorization_code", code=code)
        assert (again.status_code, again.json()["hint"]) == (400, "Authorization code has been revoked")
        assert again.json()["type"] == "https://developers.amocrm.ru/v3/errors/OAuthProblemJson"


@pytest.mark.asyncio
async def test_a_code_dies_after_twenty_minutes() -> None:
    async with shop() as it:
        it.clock.advance(20 * 60)
        answer = await it.token(grant_type="authorization_code", code=it.run.credentials["code"])
        assert (answer.status_code, answer.json()["hint"]) == (400, "Authorization code has expired")


@pytest.mark.parametrize(
    "wrong, hint",
    [
        ({"client_id": "nobody"}, "Check the `client_id` parameter"),
        ({"client_secret": "guess"}, "Check the `client_secret` parameter"),
        ({"redirect_uri": "https://elsewhere.example"}, "Redirect URI is not associated with client"),
        ({"code": "garbage"}, "Cannot decrypt the authorization code"),
    ],
)
@pytest.mark.asyncio
async def test_the_token_endpoint_says_what_is_wrong_in_a_hint(wrong: dict[str, str], hint: str) -> None:
    async with shop() as it:
        given = {"grant_type": "authorization_code", "code": it.grants.mint_code()} | wrong
        answer = await it.token(**given)
        body = answer.json()
        assert (answer.status_code, body["hint"], body["status"]) == (400, hint, 400)
        assert "error" not in body


@pytest.mark.asyncio
async def test_an_access_token_lives_a_day_and_its_claims_can_be_read() -> None:
    async with shop() as it:
        token = (await it.pair())["access_token"]
        claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
        assert claims["account_id"] == it.world.account["id"]
        assert claims["exp"] == int(it.clock.now().timestamp()) + 86400
        assert "subdomain" not in claims
        it.clock.advance(86399)
        assert await it.status_with(token) == 200
        it.clock.advance(1)
        assert await it.status_with(token) == 401


@pytest.mark.asyncio
async def test_the_old_refresh_token_works_until_the_new_one_is_used() -> None:
    async with shop() as it:
        first = (await it.pair())["refresh_token"]
        second = (await it.renew(first)).json()["refresh_token"]
        assert second != first
        # The answer with `second` may have been lost: the old one is good for another.
        third = (await it.renew(first)).json()["refresh_token"]
        assert (await it.renew(third)).status_code == 200
        dead = await it.renew(first)
        assert (dead.status_code, dead.json()["hint"]) == (401, "Token has been revoked")
        assert (it.grants.refreshes, it.grants.refused_refreshes) == (3, 1)


@pytest.mark.asyncio
async def test_strict_rotation_takes_a_refresh_token_once() -> None:
    async with shop(strict_rotation=True) as it:
        first = (await it.pair())["refresh_token"]
        assert (await it.renew(first)).status_code == 200
        assert (await it.renew(first)).status_code == 401


@pytest.mark.asyncio
async def test_a_refresh_leaves_the_old_access_token_alive_unless_switched() -> None:
    for kills, status in ((False, 200), (True, 401)):
        async with shop(refresh_kills_access=kills) as it:
            pair = await it.pair()
            await it.renew(pair["refresh_token"])
            assert await it.status_with(pair["access_token"]) == status


@pytest.mark.asyncio
async def test_a_refresh_token_lives_three_months() -> None:
    async with shop() as it:
        refresh = (await it.pair())["refresh_token"]
        it.clock.advance(90 * 86400)
        assert (await it.renew(refresh)).status_code == 401


@pytest.mark.asyncio
async def test_tests_can_expire_and_revoke_what_was_issued() -> None:
    async with shop() as it:
        pair, other = await it.pair(), await it.pair()
        it.grants.expire_access(pair["access_token"])
        it.grants.revoke_access(other["access_token"])
        it.grants.revoke_refresh(pair["refresh_token"])
        assert await it.status_with(pair["access_token"]) == 401
        assert await it.status_with(other["access_token"]) == 401
        assert (await it.renew(pair["refresh_token"])).status_code == 401
        assert await it.status_with(it.grants.mint_long_lived()) == 200
        it.grants.disable()
        assert await it.status_with(it.run.credentials["token"]) == 401
        assert (await it.renew(other["refresh_token"])).status_code == 401


@pytest.mark.asyncio
async def test_a_refresh_token_tells_where_its_account_lives() -> None:
    async with shop() as it:
        refresh = (await it.pair())["refresh_token"]
        answer = await it.http.get("/oauth2/account/current/subdomain", headers={"X-Refresh-Token": refresh})
        assert answer.json()["domain"] == "roga.kommo.com"
        assert (await it.http.get("/oauth2/account/current/subdomain")).status_code == 401


@pytest.mark.asyncio
async def test_an_unknown_token_is_told_so_in_the_language_of_its_host() -> None:
    for profile, detail in (("kommo", "Invalid user name or password"), ("amo", "Неверный логин или пароль")):
        async with shop(profile=profile) as it:
            answer = await it.http.get("/api/v4/contacts", headers={"Authorization": "Bearer nothing"})
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json() == {
                "title": "Unauthorized",
                "type": "https://httpstatus.es/401",
                "status": 401,
                "detail": detail,
            }


@pytest.mark.asyncio
async def test_an_admin_may_act_for_another_user_and_only_admins_see_users() -> None:
    async with shop() as it:
        other = next(user for user in it.world.select("user") if not user["admin"])
        token = it.run.credentials["token"]
        acting = {"X-Context-User-ID": str(other["id"])}
        assert (await it.http.get("/api/v4/account", headers=acting)).json()["current_user_id"] == other["id"]
        assert (await it.http.get("/api/v4/users", headers=acting)).status_code == 403
        assert await it.status_with(token, **{"X-Context-User-ID": "1"}) == 401


# --- limits (§2.2) ---------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_the_eighth_call_in_a_second_is_refused_and_counts() -> None:
    async with shop(limits=True) as it:
        assert [(await it.get("account")).status_code for _ in range(7)] == [200] * 7
        refused = await it.get("account")
        assert refused.status_code == 429
        assert refused.json()["retry_after"] == 300
        assert "retry-after" not in refused.headers
        it.clock.advance(0.9)
        assert (await it.get("account")).status_code == 429
        it.clock.advance(1.0)
        assert (await it.get("account")).status_code == 200
        assert it.run.stats.refused == 2


@pytest.mark.asyncio
async def test_ten_violations_ban_every_call_with_html() -> None:
    async with shop(limits=True) as it:
        for _ in range(17):
            await it.get("account")
        it.clock.advance(3600)
        banned = await it.get("account")
        assert (banned.status_code, banned.headers["content-type"]) == (403, "text/html; charset=utf-8")
        assert "x-request-id" not in banned.headers
        assert it.run.stats.banned == 1


@pytest.mark.asyncio
async def test_the_gateway_of_amocrm_ru_refuses_in_html() -> None:
    async with shop(limits=True, profile="amo", ban_after="never") as it:
        answers = [await it.get("account") for _ in range(30)]
        assert {answer.status_code for answer in answers[7:]} == {429}
        assert answers[-1].text.startswith("<html>")


@pytest.mark.asyncio
async def test_integrations_have_seven_each_and_the_account_fifty() -> None:
    async with shop(limits=True, ban_after="never") as it:
        tokens = [it.grants.mint_long_lived(it.grants.add_integration()) for _ in range(8)]
        statuses = [await it.status_with(token) for token in tokens for _ in range(7)]
        assert statuses == [200] * 50 + [429] * 6


@pytest.mark.asyncio
async def test_token_calls_count_towards_the_limit_unless_switched() -> None:
    for counts, last in ((True, 429), (False, 200)):
        async with shop(limits=True, token_calls_count=counts) as it:
            refresh = it.grants.mint_code()
            for _ in range(7):
                await it.get("account")
            assert (await it.token(grant_type="authorization_code", code=refresh)).status_code == last


# --- lists (§3) ------------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_page_is_a_hal_envelope_without_totals() -> None:
    async with shop(contacts=5) as it:
        answer = await it.get("contacts", page=2, limit=2, **{"filter[created_at][from]": 1})
        body = answer.json()
        assert answer.headers["content-type"] == "application/hal+json"
        assert "x-request-id" in answer.headers
        assert set(body) == {"_page", "_links", "_embedded"}
        assert set(body["_links"]) == {"self", "next", "first", "prev"}
        following = body["_links"]["next"]["href"]
        assert following.startswith("http://localhost/api/v4/contacts?page=3&limit=2&filter%5Bcreated_at%5D")
        last = (await it.http.get(following)).json()
        assert len(last["_embedded"]["contacts"]) == 1
        assert "next" not in last["_links"]


@pytest.mark.asyncio
async def test_nothing_is_204_with_an_empty_body() -> None:
    async with shop() as it:
        for path in (
            "contacts",
            "leads",
            "tasks",
            "leads/notes",
            "leads/tags",
            "contacts/7",
            "tasks/7",
            "leads/7/notes",
        ):
            answer = await it.get(path)
            assert (path, answer.status_code, answer.content) == (path, 204, b"")
        for path in ("users/7", "leads/pipelines/7", "leads/custom_fields/7", "nowhere"):
            answer = await it.get(path)
            assert (path, answer.status_code, answer.json()["status"]) == (path, 404, 404)
        assert (await it.get("nowhere")).json()["detail"] == "Cannot GET http://localhost/api/v4/nowhere"


@pytest.mark.asyncio
async def test_fifty_is_the_default_and_more_than_250_is_250() -> None:
    async with shop(contacts=260) as it:
        counts = [
            len((await it.get("contacts", **query)).json()["_embedded"]["contacts"]) for query in ({}, {"limit": 500})
        ]
        assert counts == [50, 250]
        # The one method with a lower top.
        for place in range(60):
            it.world.add("field", {"entity": "deal", "name": f"f{place}", "type": "text"})
        body = (await it.get("leads/custom_fields", limit=250)).json()
        assert (len(body["_embedded"]["custom_fields"]), body["_total_items"], body["_page_count"]) == (50, 64, 2)


@pytest.mark.asyncio
async def test_the_default_order_is_by_update_and_only_probed_orders_work() -> None:
    async with shop() as it:
        base = int(it.clock.now().timestamp())
        rows = [("b", 30, 3), ("c", 10, 2), ("a", 20, 1)]
        for name, updated, created in rows:
            it.world.add("contact", {"name": name, "updated_at": base + updated, "created_at": base + created})

        async def names(**query: str) -> str:
            return "".join(row["name"] for row in (await it.get("contacts", **query)).json()["_embedded"]["contacts"])

        assert await names() == "cab"
        assert await names(**{"order[id]": "asc"}) == "bca"
        assert await names(**{"order[name]": "desc"}) == "cba"
        assert await names(**{"order[created_at]": "asc"}) == "cab"
        assert await names(**{"order[id]": "sideways"}) == "cab"


@pytest.mark.asyncio
async def test_filters_narrow_and_unknown_ones_are_ignored_with_200() -> None:
    async with shop(contacts=20) as it:
        total = it.world.count("deal")
        lead = it.world.select("deal", order="updated_at")[3]

        async def ids(**query: Any) -> list[int]:
            answer = await it.get("leads", limit=250, **query)
            return [] if answer.status_code == 204 else [row["id"] for row in answer.json()["_embedded"]["leads"]]

        assert await ids(**{"filter[id]": lead["id"]}) == [lead["id"]] == await ids(**{"filter[id][]": lead["id"]})
        since = {"filter[updated_at][from]": lead["updated_at"], "filter[updated_at][to]": lead["updated_at"]}
        assert lead["id"] in await ids(**since)
        assert len(await ids(**{"filter[updated_at][from]": lead["updated_at"]})) == total - 3
        stage = {
            "filter[statuses][0][pipeline_id]": lead["pipeline_id"],
            "filter[statuses][0][status_id]": lead["stage_id"],
        }
        same = {"pipeline_id": lead["pipeline_id"], "stage_id": lead["stage_id"]}
        assert len(await ids(**stage)) == it.world.count("deal", same)
        owned = await ids(
            **{"filter[responsible_user_id][0]": lead["owner"], "filter[pipeline_id]": lead["pipeline_id"]}
        )
        assert len(owned) == it.world.count("deal", {"owner": lead["owner"], "pipeline_id": lead["pipeline_id"]})
        assert len(await ids(**{"filter[nonsense]": 1, "whatever": 2})) == total
        assert await ids(**{"filter[id]": 1}) == []


@pytest.mark.asyncio
async def test_without_the_paid_option_entity_filters_do_nothing() -> None:
    async with shop(contacts=6, api_filter=False) as it:
        first = it.world.select("contact")[0]["id"]
        answer = await it.get("contacts", **{"filter[id]": first})
        assert len(answer.json()["_embedded"]["contacts"]) == 6
        assert (await it.get("account", **{"with": "is_api_filter_enabled"})).json()["is_api_filter_enabled"] is False
        task = it.world.select("task")[0]["id"]
        assert len((await it.get("tasks", **{"filter[id]": task})).json()["_embedded"]["tasks"]) == 1


@pytest.mark.asyncio
async def test_custom_field_filters_go_by_enum_id_value_and_range() -> None:
    async with shop() as it:
        source, discount = it.field("contact", "Источник"), it.field("contact", "Скидка, %")
        phone = it.field("contact", "Телефон")
        enum = source["enums"][1]
        values = [
            {"field_id": source["id"], "values": [{"enum_id": enum["id"]}]},
            {"field_id": discount["id"], "values": [{"value": 12}]},
            {"field_code": "PHONE", "values": [{"value": "+7900"}]},
        ]
        id = await it.made("contacts", {"name": "x", "custom_fields_values": values})
        await it.made("contacts", {"name": "y"})
        for query in (
            {f"filter[custom_fields_values][{source['id']}][]": enum["id"]},
            {f"filter[custom_fields_values][{discount['id']}][from]": 10},
            {f"filter[custom_fields_values][{phone['id']}]": "+7900"},
        ):
            found = (await it.get("contacts", **query)).json()["_embedded"]["contacts"]
            assert [row["id"] for row in found] == [id]


@pytest.mark.asyncio
async def test_tasks_and_notes_have_filters_of_their_own() -> None:
    async with shop() as it:
        person = await it.made("contacts", {"name": "x"})
        await it.made("tasks", {"text": "a", "complete_till": 1, "entity_id": person, "entity_type": "contacts"})
        done = await it.made("tasks", {"text": "b", "complete_till": 1, "is_completed": True, "task_type_id": 2})

        async def tasks(**query: Any) -> list[str]:
            answer = await it.get("tasks", **query)
            return [] if answer.status_code == 204 else [row["text"] for row in answer.json()["_embedded"]["tasks"]]

        assert await tasks(**{"filter[is_completed]": 1}) == ["b"] == await tasks(**{"filter[task_type][]": 2})
        assert await tasks(**{"filter[entity_type]": "contacts", "filter[entity_id][]": person}) == ["a"]
        assert await tasks(**{"filter[entity_id][]": person}) == ["a", "b"]
        moment = int(it.clock.now().timestamp())
        assert await tasks(**{"filter[updated_at]": moment}) == []
        assert await tasks(**{"filter[updated_at]": moment - 1}) == ["a", "b"]
        assert (await it.get(f"tasks/{done}")).json()["result"] == []
        await it.post("contacts/notes", [{"entity_id": person, "note_type": "common", "params": {"text": "n"}}])
        sms = {"entity_id": person, "note_type": "sms_in", "params": {"text": "s", "phone": "1"}}
        await it.post("contacts/notes", [sms])
        found = (await it.get("contacts/notes", **{"filter[note_type][]": "sms_in"})).json()["_embedded"]["notes"]
        assert [note["params"] for note in found] == [{"text": "s", "phone": "1"}]


@pytest.mark.asyncio
async def test_query_finds_names_phones_and_emails() -> None:
    async with shop() as it:
        phone = {"field_code": "PHONE", "values": [{"value": "+7 900 123"}]}
        await it.made("contacts", {"name": "Ёлкин", "custom_fields_values": [phone]})
        await it.made("contacts", {"name": "Other"})
        for query in ("ёлк", "+7 900"):
            assert len((await it.get("contacts", query=query)).json()["_embedded"]["contacts"]) == 1


@pytest.mark.asyncio
async def test_a_trashed_lead_is_gone_unless_asked_for() -> None:
    async with shop(contacts=3) as it:
        lead, person = it.world.select("deal")[0]["id"], it.world.select("contact")[0]["id"]
        it.world.update("deal", lead, {"deleted": True})
        it.world.update("contact", person, {"deleted": True})
        assert (await it.get(f"leads/{lead}")).status_code == 204
        assert len((await it.get("leads")).json()["_embedded"]["leads"]) == 2
        found = (await it.get("leads", **{"with": "only_deleted"})).json()["_embedded"]["leads"]
        assert [(row["id"], row["name"], row["status_id"], row["is_deleted"]) for row in found] == [
            (lead, None, None, True)
        ]
        # A live probe: a trashed contact says it is not deleted.
        assert (await it.get(f"contacts/{person}", **{"with": "only_deleted"})).json()["is_deleted"] is False


@pytest.mark.asyncio
async def test_pipelines_ignore_page_and_limit() -> None:
    async with shop() as it:
        body = (await it.get("leads/pipelines", page=9, limit=1)).json()
        assert body["_total_items"] == len(body["_embedded"]["pipelines"]) == 2
        statuses = body["_embedded"]["pipelines"][0]["_embedded"]["statuses"]
        assert [status["type"] for status in statuses] == [1, 0, 0, 0, 0, 0, 0]
        assert [status["id"] for status in statuses[-2:]] == [142, 143]
        main = body["_embedded"]["pipelines"][0]["id"]
        assert (await it.get(f"leads/pipelines/{main}/statuses")).json()["_total_items"] == 7
        assert (await it.get(f"leads/pipelines/{main}/statuses/142")).json()["pipeline_id"] == main


@pytest.mark.asyncio
async def test_the_account_shows_what_with_asks_for() -> None:
    async with shop() as it:
        plain = (await it.get("account")).json()
        assert "_embedded" not in plain
        assert plain["currency"] == "RUB"
        body = (await it.get("account", **{"with": "task_types,datetime_settings,version,nonsense"})).json()
        assert set(body["_embedded"]) == {"task_types", "datetime_settings"}
        assert body["_embedded"]["datetime_settings"]["timezone_offset"] == "+03:00"
        assert body["version"] == 16


@pytest.mark.asyncio
async def test_a_next_link_on_the_last_page_is_a_switch() -> None:
    async with shop(contacts=2, next_on_last_page=True) as it:
        body = (await it.get("contacts")).json()
        assert (await it.http.get(body["_links"]["next"]["href"])).status_code == 204


@pytest.mark.asyncio
async def test_a_page_of_contacts_asks_the_database_a_fixed_number_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    async with shop(contacts=200) as it:
        asked: list[str] = []
        select = it.world.select

        def counted(kind: str, **how: Any) -> list[dict[str, Any]]:
            asked.append(kind)
            return select(kind, **how)

        monkeypatch.setattr(it.world, "select", counted)
        await it.get("contacts", limit=10, **{"with": "leads"})
        few = len(asked)
        await it.get("contacts", limit=200, **{"with": "leads"})
        assert len(asked) - few == few < 8


# --- batches (§5) ----------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_batch_answers_ids_under_request_ids() -> None:
    async with shop() as it:
        answer = await it.post("leads", [{"name": "a"}, {"name": "b", "request_id": "mine"}])
        rows = answer.json()["_embedded"]["leads"]
        assert answer.status_code == 200
        assert [row["request_id"] for row in rows] == ["0", "mine"]
        assert set(rows[0]) == {"id", "request_id", "_links"}
        assert rows[0]["_links"]["self"]["href"] == f"http://localhost/api/v4/leads/{rows[0]['id']}"
        changed = await it.patch("contacts", [{"id": await it.made("contacts", {"name": "c"}), "name": "d"}])
        assert set(changed.json()["_embedded"]["contacts"][0]) == {"id", "name", "updated_at", "_links"}
        one = await it.patch(f"leads/{rows[0]['id']}", {"price": 5})
        assert set(one.json()) == {"id", "updated_at", "_links"}


@pytest.mark.asyncio
async def test_shuffled_answers_still_carry_their_request_ids() -> None:
    async with shop(shuffle_answers=True) as it:
        answer = await it.post("contacts", [{"name": str(place)} for place in range(20)])
        rows = answer.json()["_embedded"]["contacts"]
        assert [row["request_id"] for row in rows] != [str(place) for place in range(20)]
        for row in rows:
            assert (await it.get(f"contacts/{row['id']}")).json()["name"] == row["request_id"]


@pytest.mark.asyncio
async def test_one_bad_row_refuses_the_whole_batch() -> None:
    async with shop() as it:
        answer = await it.post("contacts", [{"name": "good"}, {"name": "bad", "group_id": 1}, {"nmae": "worse"}])
        assert issues(answer) == [("1", "FieldNotExpected", "group_id"), ("2", "FieldNotExpected", "nmae")]
        assert it.world.count("contact") == 0


@pytest.mark.asyncio
async def test_shapes_that_are_no_batch_are_refused() -> None:
    async with shop() as it:
        assert (await it.post("leads", {"name": "bare"})).status_code == 400
        empty = await it.http.post("/api/v4/leads", content=b"")
        assert (empty.status_code, empty.json()["detail"]) == (400, "Request data can not be empty")
        many = await it.post("leads", [{"name": "x"}] * 251)
        assert (many.status_code, many.json()["detail"]) == (422, "Limit 250 per page")
        assert many.json()["title"] == "Unprocessable Entity"
        assert it.world.count("deal") == 0
        assert len((await it.post("leads", [{"name": "x"}] * 250)).json()["_embedded"]["leads"]) == 250


@pytest.mark.asyncio
async def test_the_seeds_forms_are_taken_when_switched_on() -> None:
    async with shop(accept_seed_forms=True) as it:
        person = await it.post("contacts", {"name": "Иван"})
        id = person.json()["_embedded"]["contacts"][0]["id"]
        lead = await it.post("leads", {"name": "x", "contacts": [{"id": id}]})
        made = lead.json()["_embedded"]["leads"][0]["id"]
        assert it.world.select("deal")[0]["contacts"] == [{"id": id, "main": True}]
        assert (await it.get(f"leads/{made}", **{"with": "contacts"})).json()["_embedded"]["contacts"][0]["is_main"]


WRONG_LEADS: list[tuple[dict[str, Any], str, str]] = [
    ({"price": "12"}, "InvalidType", "price"),
    ({"price": True}, "InvalidType", "price"),
    ({"responsible_user_id": 1}, "NotSupportedChoice", "responsible_user_id"),
    ({"pipeline_id": 1}, "NotSupportedChoice", "pipeline_id"),
    ({"status_id": 1}, "NotSupportedChoice", "status_id"),
    ({"loss_reason_id": 1}, "NotSupportedChoice", "loss_reason_id"),
    ({"_embedded": {"contacts": [{"id": 1}]}}, "NotSupportedChoice", "_embedded.contacts.0.id"),
    ({"_embedded": {"companies": [{"id": 1}]}}, "NotSupportedChoice", "_embedded.companies.0.id"),
    ({"_embedded": {"loss_reason": []}}, "FieldNotExpected", "_embedded.loss_reason"),
    (
        {"_embedded": {"tags": [{"name": "a", "request_id": "0"}]}},
        "FieldNotExpected",
        "_embedded.tags.0.request_id",
    ),
    ({"_embedded": {"tags": [{"id": 1}]}}, "NotSupportedChoice", "_embedded.tags.0.id"),
    ({"tags_to_add": [{}]}, "FieldMissing", "tags_to_add.0.name"),
    ({"tags_to_delete": [{"name": "x"}]}, "FieldNotExpected", "tags_to_delete"),
    ({"is_deleted": False}, "FieldNotExpected", "is_deleted"),
    (
        {"custom_fields_values": [{"field_id": 1, "values": []}]},
        "NotSupportedChoice",
        "custom_fields_values.0.field_id",
    ),
    ({"custom_fields_values": [{"values": []}]}, "FieldMissing", "custom_fields_values.0.field_id"),
]


@pytest.mark.parametrize("row, code, path", WRONG_LEADS)
@pytest.mark.asyncio
async def test_a_wrong_lead_is_refused_by_code_and_path(row: dict[str, Any], code: str, path: str) -> None:
    async with shop() as it:
        assert issues(await it.post("leads", [{"request_id": "r", **row}])) == [("r", code, path)]
        assert it.world.count("deal") == 0


@pytest.mark.asyncio
async def test_patching_what_is_not_there_is_no_valid_choice() -> None:
    async with shop() as it:
        assert issues(await it.patch("leads/7", {"price": 1})) == [("0", "NotSupportedChoice", "id")]
        assert issues(await it.patch("leads", [{"price": 1}])) == [("0", "FieldMissing", "id")]
        id = await it.made("leads", {"name": "x"})
        it.world.update("deal", id, {"deleted": True})
        assert issues(await it.patch("leads", [{"id": id, "price": 1}])) == [("0", "NotSupportedChoice", "id")]


@pytest.mark.asyncio
async def test_what_cannot_be_deleted_is_refused_in_its_own_way() -> None:
    async with shop(contacts=2) as it:
        note = it.world.select("note")[0]
        type = {"contact": "contacts", "deal": "leads"}[note["target_kind"]]
        for path in (
            "leads",
            f"{type}/{note['target_id']}/notes/{note['id']}",
            f"contacts/{it.world.select('contact')[0]['id']}",
        ):
            answer = await it.http.delete(f"/api/v4/{path}")
            assert (answer.status_code, answer.content) == (405, b"")
        answer = await it.http.delete(f"/api/v4/tasks/{it.world.select('task')[0]['id']}")
        assert (answer.status_code, answer.json()["detail"]) == (403, "Invalid scope")
        assert (await it.http.delete("/api/v4/calls/1")).status_code == 404


@pytest.mark.parametrize(
    "body",
    [b"[", b"null", b'[{"name": NaN}]', b'[{"name": "\\ud800"}]', b"[" * 100_000, b"\xff"],
)
@pytest.mark.asyncio
async def test_a_body_that_cannot_be_read_is_as_good_as_none(body: bytes) -> None:
    async with shop() as it:
        answer = await it.http.post("/api/v4/contacts", content=body)
        assert (answer.status_code, answer.json()["detail"]) == (400, "Request data can not be empty")


@pytest.mark.asyncio
async def test_numbers_beyond_sense_are_answered_not_crashed_on() -> None:
    async with shop(contacts=1) as it:
        big = 10**30
        assert (await it.get(f"contacts/{big}")).status_code == 204
        assert (await it.get("contacts", page=big)).status_code == 204
        assert (await it.get("contacts", limit=-1, page=-5, **{"filter[updated_at][from]": -big})).status_code == 200
        assert issues(await it.post("leads", [{"price": big}])) == [("0", "InvalidType", "price")]
        day = {"field_id": it.field("contact", "Дата первой покупки")["id"], "values": [{"value": 10**17}]}
        answer = await it.post("contacts", [{"custom_fields_values": [day]}])
        assert issues(answer) == [("0", "InvalidType", "custom_fields_values.0.values.0.value")]


# --- leads -----------------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_new_lead_gets_what_was_left_out() -> None:
    async with shop() as it:
        main = it.world.select("pipeline", where={"main": True})[0]["id"]
        lead = (await it.get(f"leads/{await it.made('leads', {})}")).json()
        assert lead["name"] == f"Lead #{lead['id']}"
        assert (lead["price"], lead["pipeline_id"], lead["status_id"]) == (0, main, it.stage(main, 1))
        assert lead["responsible_user_id"] == lead["created_by"] == it.world.admin["id"]
        assert (lead["custom_fields_values"], lead["closed_at"], lead["is_deleted"]) == (None, None, False)
        assert lead["_embedded"] == {"tags": [], "companies": []}
        assert set(lead) == {
            *("id", "name", "price", "responsible_user_id", "group_id", "status_id", "pipeline_id", "loss_reason_id"),
            *("source_id", "created_by", "updated_by", "created_at", "updated_at", "closed_at", "closest_task_at"),
            *("is_deleted", "custom_fields_values", "score", "account_id", "labor_cost", "_links", "_embedded"),
        }


@pytest.mark.asyncio
async def test_won_and_lost_stay_in_the_leads_pipeline_and_set_closed_at() -> None:
    async with shop() as it:
        second = it.world.select("pipeline", order="sort")[1]["id"]
        id = await it.made("leads", {"pipeline_id": second})
        it.clock.advance(60)
        await it.patch(f"leads/{id}", {"status_id": 142})
        lead = (await it.get(f"leads/{id}")).json()
        assert (lead["pipeline_id"], lead["status_id"]) == (second, 142)
        assert lead["closed_at"] == lead["updated_at"] == int(it.clock.now().timestamp())
        await it.patch(f"leads/{id}", {"status_id": it.stage(second, 1)})
        assert (await it.get(f"leads/{id}")).json()["closed_at"] is None


@pytest.mark.asyncio
async def test_a_status_must_be_of_the_pipeline() -> None:
    async with shop() as it:
        first, second = [row["id"] for row in it.world.select("pipeline", order="sort")]
        alien = it.stage(second, 2)
        answer = await it.post("leads", [{"pipeline_id": first, "status_id": alien}])
        assert issues(answer) == [("0", "NotSupportedChoice", "status_id")]
        id = await it.made("leads", {"status_id": alien})
        assert (await it.get(f"leads/{id}")).json()["pipeline_id"] == second


@pytest.mark.asyncio
async def test_a_lead_is_made_with_its_people_and_patched_without_them() -> None:
    async with shop() as it:
        anna, boris = await it.made("contacts", {"name": "A"}), await it.made("contacts", {"name": "B"})
        firm = await it.made("companies", {"name": "F"})
        people = [{"id": anna}, {"id": boris, "is_main": True}]
        id = await it.made("leads", {"_embedded": {"contacts": people, "companies": [{"id": firm}]}})
        inside = (await it.get(f"leads/{id}", **{"with": "contacts,loss_reason"})).json()["_embedded"]
        assert [(each["id"], each["is_main"]) for each in inside["contacts"]] == [(anna, False), (boris, True)]
        assert inside["companies"][0]["id"] == firm
        assert inside["loss_reason"] == []
        refused = await it.patch(f"leads/{id}", {"_embedded": {"contacts": people}})
        assert issues(refused) == [("0", "FieldNotExpected", "_embedded.contacts")]
        of_person = (await it.get(f"contacts/{anna}", **{"with": "leads"})).json()["_embedded"]
        assert [each["id"] for each in of_person["leads"]] == [id]


@pytest.mark.asyncio
async def test_history_can_be_written_and_a_robot_is_zero() -> None:
    async with shop() as it:
        id = await it.made("leads", {"created_at": 100, "created_by": 0, "updated_at": 200})
        lead = (await it.get(f"leads/{id}")).json()
        assert (lead["created_at"], lead["created_by"], lead["updated_at"]) == (100, 0, 200)


@pytest.mark.asyncio
async def test_a_float_price_needs_the_switch() -> None:
    async with shop() as it:
        assert issues(await it.post("leads", [{"price": 1.5}])) == [("0", "InvalidType", "price")]
    async with shop(minor_units=True) as it:
        lead = (await it.get(f"leads/{await it.made('leads', {'price': 1.5})}")).json()
        assert (lead["price"], lead["price_with_minor_units"]) == (1, 1.5)


@pytest.mark.asyncio
async def test_complex_creation_answers_a_bare_array_and_links_everybody() -> None:
    async with shop() as it:
        model = {"name": "deal", "_embedded": {"contacts": [{"first_name": "Ann"}], "companies": [{"name": "Firm"}]}}
        answer = await it.post("leads/complex", [model])
        (row,) = answer.json()
        assert (row["request_id"], row["merged"]) == (["0"], False)
        person = (await it.get(f"contacts/{row['contact_id']}", **{"with": "leads"})).json()
        assert person["name"] == "Ann"
        assert person["_embedded"]["companies"][0]["id"] == row["company_id"]
        assert person["_embedded"]["leads"][0]["id"] == row["id"]
        known = await it.post("leads/complex", [{"_embedded": {"contacts": [{"id": row["contact_id"]}]}}])
        assert known.json()[0]["contact_id"] == row["contact_id"]
        wrong = await it.post("leads/complex", [{"_embedded": {"contacts": [{"responsible_user_id": 1}]}}])
        assert issues(wrong) == [("0", "NotSupportedChoice", "_embedded.contacts.0.responsible_user_id")]


# --- contacts, tags, custom fields -----------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_contact_reads_as_the_service_shows_one() -> None:
    async with shop() as it:
        id = await it.made("contacts", {"name": "Only a name"})
        contact = (await it.get(f"contacts/{id}")).json()
        assert (contact["first_name"], contact["last_name"]) == ("", "")
        assert contact["_embedded"] == {"tags": [], "companies": []}
        parts = await it.made("contacts", {"first_name": "Ann", "last_name": "Lee"})
        assert (await it.get(f"contacts/{parts}")).json()["name"] == "Ann Lee"
        firm = await it.made("companies", {"name": "F"})
        assert set((await it.get(f"companies/{firm}")).json()["_embedded"]) == {"tags"}


@pytest.mark.asyncio
async def test_phones_are_a_custom_field_with_enum_codes() -> None:
    async with shop() as it:
        field = it.field("contact", "Телефон")
        home = next(enum for enum in field["enums"] if enum["value"] == "HOME")
        values = [{"value": "1"}, {"value": "2", "enum_code": "MOB"}, {"value": "3", "enum_id": home["id"]}]
        mail = {"field_code": "EMAIL", "values": [{"value": "a@b.example", "enum_code": "PRIV"}]}
        post = {"field_code": "POSITION", "values": [{"value": "CEO"}]}
        fields = [{"field_id": field["id"], "values": values}, mail, post]
        id = await it.made("contacts", {"name": "x", "custom_fields_values": fields})
        row = it.world.get("contact", id)
        assert row is not None
        assert [(phone["value"], phone["label"]) for phone in row["phones"]] == [
            ("1", "work"),
            ("2", "mobile"),
            ("3", "home"),
        ]
        assert (row["emails"][0]["label"], row["position"]) == ("private", "CEO")
        shown = {each["field_code"]: each for each in (await it.get(f"contacts/{id}")).json()["custom_fields_values"]}
        assert [value["enum_code"] for value in shown["PHONE"]["values"]] == ["WORK", "MOB", "HOME"]
        assert shown["PHONE"]["values"][2] == {"value": "3", "enum_id": home["id"], "enum_code": "HOME"}
        assert set(shown["PHONE"]) == {"field_id", "field_name", "field_code", "field_type", "is_computed", "values"}
        await it.patch(f"contacts/{id}", {"custom_fields_values": [{"field_code": "PHONE", "values": None}]})
        left = (await it.get(f"contacts/{id}")).json()["custom_fields_values"]
        assert [each["field_code"] for each in left] == ["POSITION", "EMAIL"]


@pytest.mark.parametrize("words", [True, False])
@pytest.mark.asyncio
async def test_writing_back_what_was_read_is_refused(words: bool) -> None:
    async with shop(field_words=words) as it:
        source = it.field("contact", "Источник")
        item = {"field_id": source["id"], "values": [{"enum_id": source["enums"][0]["id"]}]}
        id = await it.made("contacts", {"name": "x", "custom_fields_values": [item]})
        read = (await it.get(f"contacts/{id}")).json()["custom_fields_values"]
        at = "custom_fields_values.0"
        about = () if words else ("field_name", "field_type", "is_computed")
        assert issues(await it.patch(f"contacts/{id}", {"custom_fields_values": read})) == [
            ("0", "FieldNotExpected", f"{at}.{key}") for key in (*about, "values.0.enum_code")
        ]


@pytest.mark.asyncio
async def test_values_come_back_as_the_service_gives_them() -> None:
    async with shop() as it:
        box = it.world.add("field", {"entity": "contact", "name": "box", "type": "checkbox"})
        day = it.field("contact", "Дата первой покупки")["id"]
        time = it.world.add("field", {"entity": "contact", "name": "time", "type": "date_time"})
        number, choice = it.field("contact", "Скидка, %")["id"], it.field("contact", "Источник")["id"]
        street = it.world.add("field", {"entity": "contact", "name": "where", "type": "smart_address"})
        written = {
            box: [{"value": False}],
            day: [{"value": 1634601600}],
            time: [{"value": "2021-10-19T00:00:00+00:00"}],
            number: [{"value": 7.5}],
            choice: [{"value": "Звонок"}],
            street: [{"value": "Main St", "enum_id": 1}, {"value": "Oslo", "enum_code": "city"}],
        }
        fields = [{"field_id": id, "values": values} for id, values in written.items()]
        id = await it.made("contacts", {"name": "x", "custom_fields_values": fields})
        read = (await it.get(f"contacts/{id}")).json()["custom_fields_values"]
        shown = {each["field_id"]: each["values"] for each in read}
        assert shown[box] == [{"value": False}]
        # Sent as midnight UTC, it comes back as midnight in Moscow: the numbers of issue 402.
        assert shown[day] == [{"value": 1634590800}]
        assert shown[time] == [{"value": 1634601600}]
        assert shown[number] == [{"value": "7.5"}]
        assert (shown[choice][0]["value"], shown[choice][0]["enum_code"]) == ("Звонок", None)
        assert [line["enum_code"] for line in shown[street]] == ["address_line_1", "city"]


@pytest.mark.parametrize(
    "name, value, code, key",
    [
        ("Источник", {"value": "звонок"}, "NotSupportedChoice", "value"),
        ("Источник", {"enum_id": 1}, "NotSupportedChoice", "enum_id"),
        ("Телефон", {"value": "1", "enum_code": "PRIV"}, "NotSupportedChoice", "enum_code"),
        ("Телефон", {"value": "1", "enum_code": None}, "FieldNotExpected", "enum_code"),
        ("Телефон", {"value": 79001234567}, "InvalidType", "value"),
        ("Скидка, %", {"value": "many"}, "InvalidType", "value"),
        ("Дата первой покупки", {"value": -1}, "InvalidType", "value"),
        ("Город", {}, "FieldMissing", "value"),
        ("Город", {"value": "x", "extra": 1}, "FieldNotExpected", "extra"),
    ],
)
@pytest.mark.asyncio
async def test_a_wrong_value_is_refused_by_code_and_path(name: str, value: dict[str, Any], code: str, key: str) -> None:
    async with shop() as it:
        item = {"field_id": it.field("contact", name)["id"], "values": [value]}
        answer = await it.post("contacts", [{"custom_fields_values": [item]}])
        assert issues(answer) == [("0", code, f"custom_fields_values.0.values.0.{key}")]


@pytest.mark.asyncio
async def test_tags_replace_add_and_go() -> None:
    async with shop() as it:
        made = await it.post("leads/tags", [{"name": "hot", "color": "EBEBEB"}, {"name": "cold", "request_id": "r"}])
        hot, cold = made.json()["_embedded"]["tags"]
        assert (made.json()["_total_items"], hot["color"], hot["request_id"], cold["request_id"]) == (
            2,
            "EBEBEB",
            "0",
            "r",
        )
        again = (await it.post("leads/tags", [{"name": "hot"}])).json()["_embedded"]["tags"][0]
        assert again["id"] == hot["id"]
        id = await it.made("leads", {"tags_to_add": [{"id": hot["id"]}, {"name": "new"}]})

        async def tags() -> list[str]:
            return [tag["name"] for tag in (await it.get(f"leads/{id}")).json()["_embedded"]["tags"]]

        assert await tags() == ["hot", "new"]
        await it.patch(f"leads/{id}", {"tags_to_add": [{"name": "cold"}], "tags_to_delete": [{"id": hot["id"]}]})
        assert await tags() == ["new", "cold"]
        await it.patch(f"leads/{id}", {"price": 1})
        assert await tags() == ["new", "cold"]
        await it.patch(f"leads/{id}", {"_embedded": {"tags": [{"name": "only"}]}})
        assert await tags() == ["only"]
        await it.patch(f"leads/{id}", {"_embedded": {"tags": None}})
        assert await tags() == []
        assert (await it.get("contacts/tags")).status_code == 204


@pytest.mark.asyncio
async def test_custom_fields_are_made_changed_and_removed() -> None:
    async with shop() as it:
        enums = [{"value": "a", "sort": 1}, {"value": "b", "sort": 2}]
        answer = await it.post("leads/custom_fields", [{"name": "f", "type": "select", "enums": enums, "code": "MINE"}])
        field = answer.json()["_embedded"]["custom_fields"][0]
        assert (answer.status_code, field["code"], field["is_deletable"], field["request_id"]) == (
            201,
            "MINE",
            True,
            "0",
        )
        kept = field["enums"][0]
        changed = await it.patch(
            f"leads/custom_fields/{field['id']}",
            {"enums": [{"id": kept["id"], "value": "A", "sort": 1}, {"value": "b", "sort": 2}]},
        )
        after = changed.json()["enums"]
        assert changed.status_code == 201
        assert after[0]["id"] == kept["id"]
        assert after[1]["id"] != field["enums"][1]["id"]
        assert (await it.http.delete(f"/api/v4/leads/custom_fields/{field['id']}")).status_code == 204
        assert (await it.http.delete(f"/api/v4/leads/custom_fields/{field['id']}")).status_code == 404
        missing = await it.post("leads/custom_fields", [{"type": "select"}])
        assert issues(missing) == [("0", "FieldMissing", "name"), ("0", "FieldMissing", "enums")]
        bare = await it.post("contacts/custom_fields", {"name": "one", "type": "text"})
        assert (bare.status_code, bare.json()["entity_type"]) == (201, "contacts")
        phone = it.field("contact", "Телефон")["id"]
        assert (await it.http.delete(f"/api/v4/contacts/custom_fields/{phone}")).status_code == 422


# --- tasks and notes -------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_task_is_completed_with_its_result() -> None:
    async with shop() as it:
        lead = await it.made("leads", {})
        due = int(datetime(2026, 4, 1, tzinfo=UTC).timestamp())
        task = {"text": "call", "complete_till": due, "entity_id": lead, "entity_type": "leads"}
        id = await it.made("tasks", task)
        assert (await it.get(f"leads/{lead}")).json()["closest_task_at"] == due
        answer = await it.patch(f"tasks/{id}", {"is_completed": True, "result": {"text": "done"}})
        assert set(answer.json()) == {"id", "updated_at", "request_id", "_links"}
        shown = (await it.get(f"tasks/{id}")).json()
        assert (shown["is_completed"], shown["result"], shown["task_type_id"]) == (True, {"text": "done"}, 1)
        assert (await it.get(f"leads/{lead}")).json()["closest_task_at"] is None


@pytest.mark.asyncio
async def test_a_wrong_task_is_refused() -> None:
    async with shop() as it:
        assert issues(await it.post("tasks", [{}])) == [
            ("0", "FieldMissing", "text"),
            ("0", "FieldMissing", "complete_till"),
        ]
        wrong = {"text": "x", "complete_till": 1, "entity_id": 7, "entity_type": "leads", "task_type_id": 99}
        assert issues(await it.post("tasks", [wrong])) == [
            ("0", "NotSupportedChoice", "task_type_id"),
            ("0", "NotSupportedChoice", "entity_id"),
        ]


_PARAMS: dict[str, dict[str, Any]] = {
    "call": {"uniq": "u", "duration": 60, "source": "ATC", "link": "https://x.example", "phone": "+7900"},
    "service": {"service": "bot", "text": "hello"},
    "cashier": {"status": "shown", "text": "paid"},
    "geo": {"text": "here", "address": "Main St", "longitude": "53.7", "latitude": "91.4"},
    "sms": {"text": "hi", "phone": "+7900"},
    "file": {"file_uuid": "f", "version_uuid": "v", "file_name": "a.png"},
}
_GOOD = {
    "common": {"text": "note"},
    "call_in": _PARAMS["call"],
    "call_out": _PARAMS["call"] | {"call_responsible": "Ann", "call_status": 4},
    "service_message": _PARAMS["service"],
    "extended_service_message": _PARAMS["service"],
    "message_cashier": _PARAMS["cashier"],
    "geolocation": _PARAMS["geo"],
    "sms_in": _PARAMS["sms"],
    "sms_out": _PARAMS["sms"],
    "attachment": _PARAMS["file"],
}


@pytest.mark.asyncio
async def test_every_writable_note_type_is_taken_and_read_back() -> None:
    assert _GOOD.keys() == NOTE_TYPES.keys()
    async with shop() as it:
        lead = await it.made("leads", {})
        rows = [{"entity_id": lead, "note_type": type, "params": params} for type, params in _GOOD.items()]
        answer = await it.post("leads/notes", rows)
        made = answer.json()["_embedded"]["notes"]
        assert set(made[0]) == {"id", "entity_id", "request_id", "_links"}
        assert made[0]["_links"]["self"]["href"].endswith(f"/api/v4/leads/{lead}/notes/{made[0]['id']}")
        for each, (type, params) in zip(made, _GOOD.items(), strict=True):
            note = (await it.get(f"leads/{lead}/notes/{each['id']}")).json()
            assert (note["note_type"], note["entity_id"]) == (type, lead)
            assert note["params"].items() >= params.items()
        assert (await it.get(f"leads/notes/{made[0]['id']}")).json()["params"] == {"text": "note"}
        attached = (await it.get(f"leads/notes/{made[-1]['id']}")).json()["params"]
        assert (attached["is_drive_attachment"], attached["original_name"]) == (True, "a.png")


@pytest.mark.asyncio
async def test_a_wrong_note_is_refused() -> None:
    async with shop() as it:
        lead = await it.made("leads", {})
        common = {"note_type": "common", "params": {"text": "x"}}
        assert issues(await it.post("leads/notes", [common])) == [("0", "FieldMissing", "entity_id")]
        assert (await it.post(f"leads/{lead}/notes", [common])).status_code == 200
        wrong: list[tuple[dict[str, Any], str, str]] = [
            ({"note_type": "mail_message", "params": {}}, "NotSupportedChoice", "note_type"),
            ({"note_type": "amomail_message", "params": {}}, "NotSupportedChoice", "note_type"),
            ({"note_type": "common", "params": {}}, "FieldMissing", "params.text"),
            ({"note_type": "common", "params": {"text": 1}}, "InvalidType", "params.text"),
            ({"note_type": "common", "params": {"text": "x", "y": 1}}, "FieldNotExpected", "params.y"),
            (
                {"note_type": "message_cashier", "params": {"status": "?", "text": "x"}},
                "NotSupportedChoice",
                "params.status",
            ),
            ({"note_type": "common"}, "FieldMissing", "params"),
            ({**common, "text": "x"}, "FieldNotExpected", "text"),
        ]
        for row, code, path in wrong:
            assert issues(await it.post(f"leads/{lead}/notes", [row])) == [("0", code, path)]
        assert issues(await it.post("leads/7/notes", [common])) == [("0", "NotSupportedChoice", "entity_id")]


@pytest.mark.asyncio
async def test_a_note_is_edited_and_pinned() -> None:
    async with shop() as it:
        lead = await it.made("leads", {})
        common = {"note_type": "common", "params": {"text": "x"}, "created_at": 100}
        id = await it.made(f"leads/{lead}/notes", common)
        assert (await it.get(f"leads/notes/{id}")).json()["created_at"] == 100
        await it.patch(f"leads/{lead}/notes/{id}", {"note_type": "common", "params": {"text": "y"}})
        assert (await it.post(f"leads/{lead}/notes/{id}/pin", {})).status_code == 204
        note = (await it.get(f"leads/notes/{id}", **{"with": "is_pinned"})).json()
        assert (note["params"], note["is_pinned"]) == ({"text": "y"}, True)
        assert (await it.get(f"contacts/notes/{id}")).status_code == 204
    async with shop(note_created_at=False) as it:
        lead = await it.made("leads", {})
        assert issues(await it.post(f"leads/{lead}/notes", [common])) == [("0", "FieldNotExpected", "created_at")]


# --- links (§4.13) ---------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_people_and_firms_are_linked_and_unlinked() -> None:
    async with shop() as it:
        lead, firm = await it.made("leads", {}), await it.made("companies", {"name": "F"})
        anna, boris = await it.made("contacts", {"name": "A"}), await it.made("contacts", {"name": "B"})

        async def links() -> list[tuple[str, int, Any]]:
            answer = await it.get(f"leads/{lead}/links")
            rows: list[Any] = [] if answer.status_code == 204 else answer.json()["_embedded"]["links"]
            return [(row["to_entity_type"], row["to_entity_id"], row["metadata"]) for row in rows]

        assert await links() == []
        body = [
            {"to_entity_id": anna, "to_entity_type": "contacts"},
            {"to_entity_id": boris, "to_entity_type": "contacts", "metadata": {"is_main": True}},
            {"to_entity_id": firm, "to_entity_type": "companies"},
        ]
        answer = await it.post(f"leads/{lead}/link", body)
        assert answer.json()["_total_items"] == 3
        assert answer.json()["_embedded"]["links"][1] == {
            "entity_id": lead,
            "entity_type": "leads",
            "to_entity_id": boris,
            "to_entity_type": "contacts",
            "metadata": {"main_contact": True},
        }
        assert sorted(await links(), key=str) == sorted(
            [
                ("contacts", boris, {"main_contact": True}),
                ("contacts", anna, {"main_contact": False}),
                ("companies", firm, None),
            ],
            key=str,
        )
        assert (await it.post(f"leads/{lead}/unlink", [body[1]])).status_code == 204
        assert ("contacts", anna, {"main_contact": True}) in await links()
        mass = await it.post(
            "contacts/link", [{"entity_id": anna, "to_entity_id": firm, "to_entity_type": "companies"}]
        )
        assert mass.status_code == 200
        row = it.world.get("contact", anna)
        assert row is not None
        assert (row["company_id"], row["company"]) == (firm, "F")
        listed = await it.get("leads/links", **{"filter[entity_id][]": lead})
        assert {each["entity_id"] for each in listed.json()["_embedded"]["links"]} == {lead}
        members = (await it.get(f"companies/{firm}", **{"with": "contacts,leads"})).json()["_embedded"]
        assert [each["id"] for each in members["contacts"] + members["leads"]] == [anna, lead]


@pytest.mark.asyncio
async def test_a_link_to_nothing_or_the_wrong_way_round_is_refused() -> None:
    async with shop() as it:
        lead, person = await it.made("leads", {}), await it.made("contacts", {"name": "A"})
        answer = await it.post(f"leads/{lead}/link", [{"to_entity_id": 7, "to_entity_type": "contacts"}])
        assert issues(answer) == [("0", "NotSupportedChoice", "to_entity_id")]
        # The lead's side has to be called from the lead.
        answer = await it.post(f"contacts/{person}/link", [{"to_entity_id": lead, "to_entity_type": "leads"}])
        assert issues(answer) == [("0", "NotSupportedChoice", "to_entity_type")]
        answer = await it.post("leads/link", [{"to_entity_id": person, "to_entity_type": "contacts"}])
        assert issues(answer) == [("0", "FieldMissing", "entity_id")]


# --- pipelines (§4.9) ------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_pipeline_comes_with_its_system_stages() -> None:
    async with shop() as it:
        stages = [{"id": 142, "name": "Yes!"}, {"name": "Start", "sort": 20, "color": "#fffeb2"}]
        row = {"name": "P", "sort": 5, "is_main": False, "is_unsorted_on": True, "_embedded": {"statuses": stages}}
        answer = await it.post("leads/pipelines", [row])
        made = answer.json()["_embedded"]["pipelines"][0]
        assert (answer.status_code, made["request_id"]) == (200, "0")
        names = [status["name"] for status in made["_embedded"]["statuses"]]
        assert names == ["Incoming leads", "Start", "Yes!", "Closed - lost"]
        path = f"leads/pipelines/{made['id']}"
        assert (await it.patch(path, {"name": "Q", "is_main": True})).json()["is_main"] is True
        assert it.world.count("pipeline", {"main": True}) == 1
        added = await it.post(f"{path}/statuses", [{"name": "Middle", "sort": 30}])
        middle = added.json()["_embedded"]["statuses"][0]["id"]
        lead = await it.made("leads", {"status_id": middle})
        full = await it.http.delete(f"/api/v4/{path}")
        assert (full.status_code, full.json()["detail"]) == (422, "Only pipelines without leads can be deleted")
        assert (await it.http.delete(f"/api/v4/{path}/statuses/{middle}")).status_code == 204
        assert (await it.get(f"leads/{lead}")).json()["status_id"] == made["_embedded"]["statuses"][1]["id"]
        assert (await it.http.delete(f"/api/v4/{path}/statuses/142")).status_code == 422


@pytest.mark.asyncio
async def test_deleting_a_missing_pipeline_is_400_without_a_request_id() -> None:
    async with shop() as it:
        answer = await it.http.delete("/api/v4/leads/pipelines/7")
        assert answer.status_code == 400
        (entry,) = answer.json()["validation-errors"]
        assert set(entry) == {"errors"}
        assert (entry["errors"][0]["code"], entry["errors"][0]["path"]) == ("NotSupportedChoice", "id")


# --- webhooks (§4.12, §7) --------------------------------------------------------------------------------------------

URL = "https://example.com/hook/secret"


async def _ended(it: Shop, destination: str) -> httpx.Response:
    return await it.http.request("DELETE", "/api/v4/webhooks", json={"destination": destination})


@pytest.mark.asyncio
async def test_a_destination_is_subscribed_once_and_ended_by_its_name() -> None:
    async with shop() as it:
        assert (await it.get("webhooks")).status_code == 204
        answer = await it.post("webhooks", {"destination": URL, "settings": ["add_lead", "add_lead"]})
        made = answer.json()
        # The live answer has an object here, the list a list.
        assert (answer.status_code, made["settings"], made["disabled"]) == (201, {"add_lead": 1}, False)
        again = await it.post("webhooks", {"destination": URL, "settings": ["add_task"], "sort": 3})
        assert (again.json()["id"], again.json()["sort"]) == (made["id"], 3)
        listed = (await it.get("webhooks")).json()
        assert (listed["_total_items"], listed["_embedded"]["webhooks"][0]["settings"]) == (1, ["add_task"])
        assert (await it.get("webhooks", **{"filter[destination]": "https://other.example/"})).status_code == 204
        assert (await it.http.delete(f"/api/v4/webhooks/{made['id']}")).status_code == 404
        assert (await _ended(it, URL)).status_code == 204
        assert (await _ended(it, URL)).status_code == 404


@pytest.mark.asyncio
async def test_a_wrong_subscription_is_refused() -> None:
    assert len(HOOKS) == 32
    async with shop() as it:
        for body, status in (
            ({"destination": URL}, 400),
            ({"settings": ["add_lead"]}, 400),
            ({"destination": URL, "settings": ["add_leed"]}, 400),
            ({"destination": URL, "settings": ["add_lead"], "secret": "x"}, 400),
            ([{"destination": URL, "settings": ["add_lead"]}], 400),
            ({"destination": "ftp://example.com/x", "settings": ["add_lead"]}, 422),
            ({"destination": "https://пример.рф/x", "settings": ["add_lead"]}, 422),
            ({"destination": "https://example.com", "settings": ["add_lead"]}, 422),
        ):
            assert (await it.post("webhooks", body)).status_code == status, body
        other = next(user for user in it.world.select("user") if not user["admin"])
        acting = {"X-Context-User-ID": str(other["id"])}
        assert (await it.http.get("/api/v4/webhooks", headers=acting)).status_code == 403
    async with shop(profile="amo") as it:
        body = {"destination": "https://example.com", "settings": ["add_lead"]}
        assert (await it.post("webhooks", body)).status_code == 201


class Mailbox:
    """Where hooks arrive instead of going out."""

    def __init__(self, it: Shop, status: int | None = None) -> None:
        self.it, self.status = it, status
        self.headers: dict[str, str] = {}
        self._sent: list[bytes] = []
        it.run.account.issued["deliver"] = self._take

    async def _take(self, url: str, headers: Any, body: bytes) -> int | None:
        assert url == URL
        self.headers = dict(headers)
        self._sent.append(body)
        return self.status

    async def bodies(self) -> list[dict[str, str]]:
        """What came since the last look, each as pairs."""
        await delivered(self.it.run.account)
        sent, self._sent = self._sent, []
        return [dict(parse_qsl(body.decode(), keep_blank_values=True, strict_parsing=True)) for body in sent]


async def mailbox(it: Shop, *settings: str, status: int | None = None) -> Mailbox:
    assert (await it.post("webhooks", {"destination": URL, "settings": [*settings]})).status_code == 201
    return Mailbox(it, status)


@pytest.mark.asyncio
async def test_a_new_lead_is_told_as_php_would() -> None:
    async with shop() as it:
        box = await mailbox(it, "add_lead")
        one, two = (await it.post("leads", [{"name": "a & b", "price": 5, "tags_to_add": [{"name": "t"}]}, {}])).json()[
            "_embedded"
        ]["leads"]
        (body,) = await box.bodies()
        assert list(body)[:3] == ["account[subdomain]", "account[id]", "account[_links][self]"]
        assert body["account[_links][self]"] == "https://roga.kommo.com"
        head = "leads[add][0]"
        assert (body[f"{head}[id]"], body[f"{head}[name]"], body[f"{head}[price]"]) == (str(one["id"]), "a & b", "5")
        assert body[f"{head}[tags][0][name]"] == "t"
        assert body[f"{head}[last_modified]"] == body[f"{head}[updated_at]"]
        assert body["leads[add][1][id]"] == str(two["id"])
        assert box.headers["User-Agent"] == "amoCRM-Webhooks/3.0"
        assert box.headers["Content-Type"] == "application/x-www-form-urlencoded"
        assert len(box.headers["X-Amocrm-Requestid"]) == 36
        await it.made("contacts", {"name": "A"})
        assert await box.bodies() == []


@pytest.mark.asyncio
async def test_a_changed_lead_is_told_by_what_changed() -> None:
    async with shop() as it:
        pipeline = it.world.select("pipeline")[0]["id"]
        first, second = it.stage(pipeline, 1), it.stage(pipeline, 2)
        other = next(user["id"] for user in it.world.select("user") if not user["admin"])
        lead = await it.made("leads", {"status_id": first, "pipeline_id": pipeline})
        box = await mailbox(it, "update_lead", "status_lead", "responsible_lead", "delete_lead", "restore_lead")
        await it.patch(f"leads/{lead}", {"status_id": second, "pipeline_id": pipeline, "responsible_user_id": other})
        update, status, responsible = await box.bodies()
        assert update["leads[update][0][old_status_id]"] == str(first)
        assert status["leads[status][0][status_id]"] == str(second)
        assert "leads[status][0][old_responsible_user_id]" not in status
        assert responsible["leads[responsible][0][old_responsible_user_id]"] == str(it.world.admin["id"])
        await it.patch(f"leads/{lead}", {"name": "b"})
        (update,) = await box.bodies()
        assert "leads[update][0][old_status_id]" not in update
        await it.patch(f"leads/{lead}", {"name": "b"})
        assert await box.bodies() == []
        trash(it.run.account, "leads", lead)
        (gone,) = await box.bodies()
        assert {key for key in gone if key.startswith("leads")} == {
            "leads[delete][0][id]",
            "leads[delete][0][status_id]",
            "leads[delete][0][pipeline_id]",
        }
        assert (await it.get(f"leads/{lead}")).status_code == 204
        trash(it.run.account, "leads", lead, restore=True)
        (back,) = await box.bodies()
        assert back["leads[restore][0][name]"] == "b"


@pytest.mark.asyncio
async def test_people_and_firms_come_under_one_root() -> None:
    async with shop() as it:
        box = await mailbox(it, "add_contact", "add_company", "responsible_contact", "update_company", "delete_contact")
        phones = [{"field_code": "PHONE", "values": [{"value": "+7900", "enum_code": "MOB"}]}]
        anna = await it.made("contacts", {"name": "A", "custom_fields_values": phones})
        firm = await it.made("companies", {"name": "F"})
        person, company = await box.bodies()
        assert (person["contacts[add][0][type]"], company["contacts[add][0][type]"]) == ("contact", "company")
        assert person["contacts[add][0][custom_fields][0][code]"] == "PHONE"
        assert person["contacts[add][0][custom_fields][0][values][0][value]"] == "+7900"
        assert int(person["contacts[add][0][custom_fields][0][values][0][enum]"]) > 0
        # There is no action of their own for a new owner.
        other = next(user["id"] for user in it.world.select("user") if not user["admin"])
        await it.patch(f"contacts/{anna}", {"responsible_user_id": other})
        (body,) = await box.bodies()
        assert body["contacts[update][0][old_responsible_user_id]"] == str(it.world.admin["id"])
        await it.patch(f"contacts/{anna}", {"name": "B"})
        assert await box.bodies() == []
        lead = await it.made("leads", {"_embedded": {"companies": [{"id": firm}]}})
        await it.patch(f"companies/{firm}", {"name": "G"})
        (body,) = await box.bodies()
        assert body[f"contacts[update][0][linked_leads_id][{lead}][ID]"] == str(lead)
        trash(it.run.account, "contacts", anna)
        (gone,) = await box.bodies()
        assert (gone["contacts[delete][0][id]"], gone["contacts[delete][0][type]"]) == (str(anna), "contact")
        assert len([key for key in gone if key.startswith("contacts")]) == 2


@pytest.mark.asyncio
async def test_values_of_fields_have_five_shapes_in_a_hook() -> None:
    async with shop() as it:
        box = await mailbox(it, "add_lead")
        ids = {
            type: it.world.add("field", {"entity": "deal", "name": type, "type": type, "sort": 900 + place, **more})
            for place, (type, more) in enumerate(
                {
                    "text": {},
                    "select": {"enums": [{"id": 1, "value": "A", "sort": 1, "code": None}]},
                    "date": {},
                    "radiobutton": {"enums": [{"id": 2, "value": "B", "sort": 1, "code": None}]},
                    "birthday": {},
                    "checkbox": {},
                }.items()
            )
        }
        values: dict[str, Any] = {"text": "x", "select": "A", "date": 1729717200, "radiobutton": "B"}
        values |= {"birthday": 316472400, "checkbox": True}
        customs = [{"field_id": ids[type], "values": [{"value": value}]} for type, value in values.items()]
        await it.made("leads", {"custom_fields_values": customs})
        (body,) = await box.bodies()
        head = "leads[add][0][custom_fields]"
        shapes = {key.removeprefix(head): value for key, value in body.items() if head in key and "[values]" in key}
        assert shapes == {
            "[0][values][0][value]": "x",
            "[1][values][0][value]": "A",
            "[1][values][0][enum]": "1",
            "[2][values][0]": "1729717200",
            "[3][values][value]": "B",
            "[3][values][enum]": "2",
            "[4][values][0][value]": "12.01.1980",
            "[5][values][0][value]": "1",
        }


@pytest.mark.asyncio
async def test_a_task_is_told_in_the_singular_and_a_note_two_levels_deep() -> None:
    async with shop() as it:
        box = await mailbox(it, "add_task", "update_task", "note_lead", "note_company")
        lead, firm = await it.made("leads", {}), await it.made("companies", {"name": "F"})
        body = {"text": "call", "complete_till": 1759438740, "entity_id": lead, "entity_type": "leads"}
        task = await it.made("tasks", body)
        (told,) = await box.bodies()
        assert (told["task[add][0][element_type]"], told["task[add][0][status]"]) == ("2", "0")
        assert told["task[add][0][complete_till]"] == "2025-10-02 20:59:00"
        assert told["task[add][0][complete_before]"] == "1759438740"
        await it.patch(f"tasks/{task}", {"is_completed": True, "result": {"text": "done"}})
        (told,) = await box.bodies()
        assert (told["task[update][0][action_close]"], told["task[update][0][status]"]) == ("1", "1")
        assert told["task[update][0][result][text]"] == "done"
        call = {"uniq": "u", "duration": 1, "source": "s", "link": "l", "phone": "+7900"}
        rows: list[dict[str, Any]] = [
            {"entity_id": lead, "note_type": "common", "params": {"text": "hi"}},
            {"entity_id": lead, "note_type": "call_in", "params": call},
            {
                "entity_id": lead,
                "note_type": "attachment",
                "params": {"file_uuid": "f", "version_uuid": "v", "file_name": "a.png"},
            },
        ]
        await it.post("leads/notes", rows)
        (told,) = await box.bodies()
        assert (told["leads[note][0][note][note_type]"], told["leads[note][0][note][text]"]) == ("4", "hi")
        assert json.loads(told["leads[note][0][note][metadata]"])["event_source"]["type"] == 1
        assert json.loads(told["leads[note][1][note][text]"])["UNIQ"] == "u"
        assert told["leads[note][2][note][attachement]"] == "drive/f/v/a.png"
        await it.post(f"companies/{firm}/notes", [{"note_type": "common", "params": {"text": "hi"}}])
        (told,) = await box.bodies()
        assert (told["contacts[note][0][type]"], told["contacts[note][0][note][element_type]"]) == ("company", "3")
        at = datetime.fromtimestamp(int(told["contacts[note][0][note][created_at]"]) + 3 * 3600, UTC)
        assert told["contacts[note][0][note][date_create]"] == at.strftime("%Y-%m-%d %H:%M:%S")


@pytest.mark.asyncio
async def test_links_and_complex_leads_are_told_too() -> None:
    async with shop() as it:
        box = await mailbox(it, "add_lead", "add_contact", "update_lead")
        rows = [{"name": "L", "_embedded": {"contacts": [{"name": "A"}]}}]
        made = (await it.post("leads/complex", rows)).json()[0]
        assert len(await box.bodies()) == 2
        other = await it.made("contacts", {"name": "B"})
        await box.bodies()
        await it.post(f"leads/{made['id']}/link", [{"to_entity_id": other, "to_entity_type": "contacts"}])
        (body,) = await box.bodies()
        assert body["leads[update][0][id]"] == str(made["id"])


@pytest.mark.asyncio
async def test_a_hook_that_fails_too_often_is_switched_off() -> None:
    async with shop() as it:
        box = await mailbox(it, "add_lead", status=500)
        for place in range(102):
            await it.made("leads", {})
            assert len(await box.bodies()) == (place <= 100)
        (hook,) = (await it.get("webhooks")).json()["_embedded"]["webhooks"]
        assert hook["disabled"] is True

        async def dead(url: str, headers: Any, body: bytes) -> int:
            raise OSError(url)

        assert (await it.post("webhooks", {"destination": URL, "settings": ["add_lead"]})).json()["disabled"] is False
        it.run.account.issued["deliver"] = dead
        await it.made("leads", {})
        await delivered(it.run.account)


# --- users, roles, what can only be read (§4.10, §4.14-§4.16) --------------------------------------------------------


@pytest.mark.asyncio
async def test_users_are_made_by_admins_ten_at_most() -> None:
    async with shop() as it:
        row = {"name": "New", "email": "n@x.example", "password": "Secret12", "rights": {"is_admin": True}}
        answer = await it.post("users", [row])
        made = answer.json()["_embedded"]["users"][0]
        assert (answer.status_code, made["request_id"], made["rights"]["is_admin"]) == (201, "0", True)
        assert issues(await it.post("users", [{"name": "New", "password": "weak"}])) == [
            ("0", "FieldMissing", "email"),
            ("0", "NotSupportedChoice", "password"),
        ]
        assert (await it.post("users", [row] * 11)).status_code == 422


@pytest.mark.asyncio
async def test_events_are_a_log_of_what_was_written() -> None:
    async with shop() as it:
        lead = await it.made("leads", {"name": "a"})
        it.clock.advance(10)
        await it.patch(f"leads/{lead}", {"price": 5, "tags_to_add": [{"name": "t"}]})
        person = await it.made("contacts", {"name": "A"})
        await it.post(f"leads/{lead}/link", [{"to_entity_id": person, "to_entity_type": "contacts"}])
        task = await it.made("tasks", {"text": "a", "complete_till": 5})
        await it.patch(f"tasks/{task}", {"is_completed": True, "text": "b"})
        await it.post(f"leads/{lead}/notes", [{"note_type": "common", "params": {"text": "hi"}}])
        rows = (await it.get("events")).json()["_embedded"]["events"]
        assert [(row["type"], row["entity_type"]) for row in reversed(rows)] == [
            ("lead_added", "lead"),
            ("sale_field_changed", "lead"),
            ("entity_tag_added", "lead"),
            ("contact_added", "contact"),
            ("entity_linked", "lead"),
            ("entity_linked", "contact"),
            ("task_added", "task"),
            ("task_text_changed", "task"),
            ("task_completed", "task"),
            ("common_note_added", "lead"),
        ]
        assert len({row["id"] for row in rows}) == len(rows)
        assert all(len(row["id"]) == 26 and row["id"].islower() for row in rows)
        one = (await it.get(f"events/{rows[0]['id']}")).json()
        assert one["_embedded"]["entity"]["_links"]["self"]["href"].endswith(f"/api/v4/leads/{lead}")
        assert (await it.get("events/01nothing")).status_code == 204

        async def asked(**filters: Any) -> int:
            answer = await it.get("events", **{f"filter[{name}]": value for name, value in filters.items()})
            return 0 if answer.status_code == 204 else len(answer.json()["_embedded"]["events"])

        assert await asked(type="lead_added,contact_added") == 2
        assert await asked(entity="task") == 3
        assert await asked(entity="lead", entity_id=str(lead)) == 5
        assert await asked(created_by="7") == 0
        assert await asked(created_at=str(rows[-1]["created_at"])) == 9
        assert (await it.get("events", **{"filter[created_at][to]": rows[-1]["created_at"]})).json()["_embedded"][
            "events"
        ] == rows[-1:]


@pytest.mark.asyncio
async def test_catalogs_incoming_leads_and_roles_are_there_to_be_read() -> None:
    async with shop() as it:
        catalogs = (await it.get("catalogs")).json()["_embedded"]["catalogs"]
        elements = (await it.get(f"catalogs/{catalogs[0]['id']}/elements")).json()["_embedded"]["elements"]
        assert [row["name"] for row in elements] == ["Телефон", "Чехол"]
        assert elements[0]["custom_fields_values"][1]["field_type"] == "price"
        assert (await it.get(f"catalogs/{catalogs[1]['id']}/elements")).status_code == 204
        assert (await it.get("catalogs/7/elements")).status_code == 404
        found = await it.get(f"catalogs/{catalogs[0]['id']}/elements", query="чех")
        assert len(found.json()["_embedded"]["elements"]) == 1
        rows = (await it.get("leads/unsorted", **{"filter[category][]": "sip"})).json()["_embedded"]["unsorted"]
        assert [row["category"] for row in rows] == ["sip"]
        assert 56 <= len(rows[0]["uid"]) <= 60
        assert (await it.get(f"leads/unsorted/{rows[0]['uid']}")).json()["source_name"] == "UIS"
        assert (await it.get("leads/unsorted/nothing")).status_code == 404
        roles = (await it.get("roles", **{"with": "users"})).json()
        assert (roles["_total_items"], roles["_embedded"]["roles"][0]["_embedded"]) == (1, {"users": []})


@pytest.mark.asyncio
async def test_an_element_is_linked_with_its_catalog_and_quantity() -> None:
    async with shop() as it:
        lead = await it.made("leads", {})
        tie: dict[str, Any] = {"to_entity_id": 525439, "to_entity_type": "catalog_elements"}
        assert issues(await it.post(f"leads/{lead}/link", [tie])) == [("0", "FieldMissing", "metadata.catalog_id")]
        wrong = {**tie, "to_entity_id": 7, "metadata": {"catalog_id": 4521}}
        assert issues(await it.post(f"leads/{lead}/link", [wrong])) == [("0", "NotSupportedChoice", "to_entity_id")]
        tie["metadata"] = {"catalog_id": 4521, "quantity": 2}
        answer = await it.post(f"leads/{lead}/link", [tie])
        assert answer.json()["_embedded"]["links"][0]["metadata"] == {"quantity": 2, "catalog_id": 4521}
        shown = (await it.get(f"leads/{lead}", **{"with": "catalog_elements"})).json()
        assert shown["_embedded"]["catalog_elements"][0]["id"] == 525439
        assert (await it.post(f"leads/{lead}/unlink", [tie])).status_code == 204
        assert (await it.get(f"leads/{lead}/links")).status_code == 204


@pytest.mark.asyncio
async def test_tags_of_leads_are_renamed_and_no_others() -> None:
    async with shop() as it:
        lead = await it.made("leads", {"tags_to_add": [{"name": "old"}]})
        tag = (await it.get("leads/tags")).json()["_embedded"]["tags"][0]
        answer = await it.patch("leads/tags", [{"id": tag["id"], "name": "new"}])
        assert answer.json()["_embedded"]["tags"][0] == {**tag, "name": "new", "request_id": "0"}
        assert (await it.get(f"leads/{lead}")).json()["_embedded"]["tags"][0]["name"] == "new"
        assert issues(await it.patch("leads/tags", [{"id": 7, "name": "x"}])) == [("0", "NotSupportedChoice", "id")]
        assert (await it.patch("contacts/tags", [{"id": 7, "name": "x"}])).status_code == 405


# --- the face --------------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_every_switch_has_its_reason_and_every_choice_starts() -> None:
    for name, switch in FACE.switches.items():
        assert "§" in switch.why, name
        assert switch.default in switch.choices
        for choice in switch.choices:
            chosen: dict[str, Any] = {name: choice}
            async with shop(**chosen) as it:
                assert (await it.get("account")).status_code == 200


@pytest.mark.asyncio
async def test_the_other_side_of_the_smaller_switches() -> None:
    async with shop(empty_links_204=False, json_405=True, empty_fields_list=True, strictly_after=False) as it:
        lead = await it.made("leads", {})
        links = await it.get(f"leads/{lead}/links")
        assert (links.status_code, links.json()["_total_items"], links.json()["_embedded"]) == (200, 0, {"links": []})
        assert (await it.http.delete("/api/v4/leads")).json()["detail"] == "Method Not Allowed"
        assert (await it.get(f"leads/{lead}")).json()["custom_fields_values"] == []
        await it.made("tasks", {"text": "a", "complete_till": 1})
        at = int(it.clock.now().timestamp())
        assert (await it.get("tasks", **{"filter[updated_at]": at})).status_code == 200
    async with shop(unchecked_omitted=True, bare_field_create=False) as it:
        assert (await it.post("leads/custom_fields", {"name": "x", "type": "text"})).status_code == 400
        box = it.world.add("field", {"entity": "deal", "name": "box", "type": "checkbox"})
        lead = await it.made("leads", {"custom_fields_values": [{"field_id": box, "values": [{"value": False}]}]})
        assert (await it.get(f"leads/{lead}")).json()["custom_fields_values"] is None


@pytest.mark.parametrize("lag", ["3", "60s"])
@pytest.mark.asyncio
async def test_a_lagging_index_hides_what_is_new_from_query_and_filters_but_not_from_lists(lag: str) -> None:
    async with shop(index_lag=lag) as it:
        old, at = await it.made("contacts", {"name": "Ivan", "created_at": 1}), int(it.clock.now().timestamp())
        it.clock.advance(60)
        for _ in range(3):
            await it.get("account")
        # What it says of its own age deceives nobody.
        new = await it.made("contacts", {"name": "Ivan", "created_at": 1})
        note = await it.made(f"contacts/{new}/notes", {"note_type": "common", "params": {"text": "a"}})

        async def found(**params: Any) -> list[int]:
            answer = await it.get("contacts", **params)
            return [] if answer.status_code == 204 else [row["id"] for row in answer.json()["_embedded"]["contacts"]]

        if lag == "3":
            # The note was the first request after it; here are the second and the third.
            assert await found(query="Ivan") == [old]
            assert await found(query="Ivan") == [old]
        else:
            it.clock.advance(59)
            assert await found(query="Ivan") == [old]
            assert await found(**{"filter[updated_at][from]": at}) == [old]
            assert await found(**{"filter[id][]": new}) == [new]
            assert await found() == [old, new]
            assert (await it.get("contacts/notes", **{"filter[note_type]": "common"})).status_code == 204
            assert (await it.get("contacts/notes")).json()["_embedded"]["notes"][0]["id"] == note
            assert (await it.get(f"contacts/{new}")).status_code == 200
            it.clock.advance(1)
        assert await found(query="Ivan") == [old, new]


@pytest.mark.asyncio
async def test_filters_that_are_not_heeded_give_every_row_with_200() -> None:
    async with shop(ignore_filters=True, contacts=5) as it:
        for path, params in (
            ("contacts", {"query": "nobody"}),
            ("contacts", {"filter[id][]": 1}),
            ("leads", {"filter[name]": "x"}),
            ("tasks", {"filter[is_completed]": 1}),
        ):
            assert len((await it.get(path, **params)).json()["_embedded"][path]) == 5
        notes = (await it.get("leads/notes", **{"filter[updated_at]": 2**31})).json()["_embedded"]["notes"]
        assert len(notes) == it.world.count("note", {"target_kind": "deal"}) > 0


@pytest.mark.asyncio
async def test_the_script_is_six_lines_with_the_credential_in_it() -> None:
    async with shop() as it:
        lines = it.run.script.splitlines()
        assert len(lines) == 6
        assert f'connect("kommo", base_url="{it.run.origin}", credentials="{it.run.credentials["token"]}")' in lines[3]
        compile(it.run.script, "script", "exec")


@pytest.mark.e2e
@pytest.mark.asyncio
async def test_it_serves_over_real_http() -> None:
    clock = FakeClock()
    with World(clock=clock) as world:
        populate(world, contacts=30)
        async with serve(FACE, world) as run, httpx.AsyncClient(base_url=run.base_url) as http:
            bearer = {"Authorization": f"Bearer {run.credentials['token']}"}
            first = await http.get("/api/v4/contacts?limit=20", headers=bearer)
            following = first.json()["_links"]["next"]["href"]
            assert following.startswith(run.origin)
            assert len((await http.get(following, headers=bearer)).json()["_embedded"]["contacts"]) == 10
            empty = await http.get("/api/v4/leads", headers=bearer)
            assert (empty.status_code, empty.content) == (204, b"")
