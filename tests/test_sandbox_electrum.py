"""The sandbox answers as the vendor's page has it, and as our decisions have it where the page is silent."""

import ast
import asyncio
import builtins
import json
import socket
import sys
from contextlib import asynccontextmanager
from datetime import timedelta
from importlib.metadata import EntryPoint
from pathlib import Path

import httpx
import pytest

from crmclient.clock import FakeClock
from crmclient.sandbox import server
from crmclient.sandbox.server import Account, NoSuchFace, PortInUse, faces, in_process, serve
from crmclient.sandbox.world import World, populate
from crmclient_electrum import sandbox
from crmclient_electrum.sandbox import FACE, SWITCHES, issue_token, revoke_token


@asynccontextmanager
async def opened(*, world=None, limits=False, token=None, **switches):
    """A client of a sandbox in process; switches are written with underscores."""
    given = {name.replace("_", "-"): value for name, value in switches.items()}
    running = in_process(FACE, world or World(clock=FakeClock()), switches=given, limits=limits)
    headers = {"Authorization": f"Bearer {token or running.credentials['token']}"}
    transport = running.transport()
    async with httpx.AsyncClient(transport=transport, base_url=running.base_url, headers=headers) as http:
        yield http, running


def peopled(**numbers):
    world = World(clock=FakeClock())
    populate(world, **numbers)
    return world


def assert_error(answer, status, word, *, mentions=""):
    assert answer.status_code == status
    body = answer.json()
    assert set(body) == {"error", "message", "status"}
    assert (body["error"], body["status"]) == (word, status)
    assert any("а" <= letter <= "я" for letter in body["message"].lower())
    assert mentions in body["message"]


# --- contacts


@pytest.mark.asyncio
async def test_the_contact_of_the_seed_is_created_as_the_seed_shows():
    body = {
        "name": "Иван Петров",
        "phone": "+79991234567",
        "email": "ivan@company.ru",
        "company": "ООО Рога и Копыта",
        "tags": ["Новый", "Тёплый"],
    }
    async with opened() as (http, running):
        answer = await http.post("/contacts", json=body)
        assert answer.status_code == 201
        made = answer.json()
        assert made == {"id": made["id"], "name": "Иван Петров", "created_at": "2026-03-20T10:15:00Z"}
        read = (await http.get(f"/contacts/{made['id']}")).json()
        assert read == {**body, **made, "updated_at": "2026-03-20T10:15:00Z"}
        row = running.world.row("contact", made["id"])
        assert (row["company"], row["company_id"]) == ("ООО Рога и Копыта", None)
        assert row["owner"] == running.world.admin["id"]


@pytest.mark.asyncio
async def test_create_answers_with_the_whole_when_told_to():
    async with opened(full_create=True, wrap_single=True) as (http, _):
        made = (await http.post("/contacts", json={"name": "A"})).json()["data"]
        assert set(made) == {"id", "name", "phone", "email", "company", "tags", "created_at", "updated_at"}
        assert (await http.get(f"/contacts/{made['id']}")).json() == {"data": made}


@pytest.mark.parametrize(
    "body, mentions",
    [
        ({}, "name"),
        ({"name": None}, "name"),
        ({"name": "  "}, "name"),
        ({"name": 5}, "name"),
        ({"name": "A", "phone": 79991234567}, "phone"),
        ({"name": "A", "email": ["a@b"]}, "email"),
        ({"name": "A", "company": {"name": "B"}}, "company"),
        ({"name": "A", "tags": "VIP"}, "tags"),
        ({"name": "A", "tags": ["VIP", 1]}, "tags"),
        ({"name": "A", "tags": [None]}, "tags"),
        ({"name": "\ud800"}, "name"),
        (["name"], "объект"),
    ],
)
@pytest.mark.asyncio
async def test_a_contact_with_a_missing_name_or_a_wrong_type_is_refused_and_nothing_is_written(body, mentions):
    async with opened() as (http, running):
        answer = await http.post("/contacts", content=json.dumps(body))
        assert_error(answer, 400, "bad_request", mentions=mentions)
        assert running.world.count("contact") == 0


@pytest.mark.parametrize("content", [b"{", b"\xff", b'{"name": NaN}', b"[" * 100_000])
@pytest.mark.asyncio
async def test_a_body_that_is_not_json_is_refused(content):
    async with opened(validation_error="validation_error") as (http, _):
        assert_error(await http.post("/contacts", content=content), 400, "validation_error", mentions="JSON")


@pytest.mark.asyncio
async def test_what_the_page_does_not_name_is_lost():
    async with opened(full_create=True) as (http, _):
        made = (await http.post("/contacts", json={"name": "A", "id": 1, "created_at": "x", "position": "CEO"})).json()
        assert made["id"] != 1
        assert "position" not in made


@pytest.mark.asyncio
async def test_put_merges():
    async with opened() as (http, running):
        id = (await http.post("/contacts", json={"name": "A", "phone": "1", "tags": ["x"]})).json()["id"]
        running.account.clock.advance(60)
        answer = await http.put(f"/contacts/{id}", json={"phone": None, "email": "a@b"})
        assert answer.status_code == 200
        assert answer.json() == {
            "id": id,
            "name": "A",
            "phone": None,
            "email": "a@b",
            "company": None,
            "tags": ["x"],
            "created_at": "2026-03-20T10:15:00Z",
            "updated_at": "2026-03-20T10:16:00Z",
        }
        assert_error(await http.put(f"/contacts/{id}", json={"name": ""}), 400, "bad_request", mentions="name")
        assert_error(await http.put("/contacts/1", json={"name": "B"}), 404, "not_found", mentions="Контакт с ID 1 не")


@pytest.mark.asyncio
async def test_strict_put_replaces():
    async with opened(strict_put=True) as (http, _):
        id = (await http.post("/contacts", json={"name": "A", "phone": "1", "tags": ["x"]})).json()["id"]
        read = (await http.put(f"/contacts/{id}", json={"name": "B"})).json()
        assert (read["name"], read["phone"], read["tags"]) == ("B", None, [])
        assert_error(await http.put(f"/contacts/{id}", json={"phone": "1"}), 400, "bad_request", mentions="name")


@pytest.mark.asyncio
async def test_a_contact_has_one_phone_and_a_new_one_takes_its_place():
    world = World(clock=FakeClock())
    id = world.add(
        "contact", {"name": "A", "phones": [{"value": "1", "label": "work"}, {"value": "2", "label": "fax"}]}
    )
    async with opened(world=world) as (http, _):
        assert (await http.get(f"/contacts/{id}")).json()["phone"] == "1"
        assert (await http.put(f"/contacts/{id}", json={"phone": None})).json()["phone"] is None
        assert (await http.get(f"/contacts/{id}")).json()["phone"] is None


@pytest.mark.parametrize("form, status, content", [("200", 200, b"{}"), ("200-empty", 200, b""), ("204", 204, b"")])
@pytest.mark.asyncio
async def test_what_is_deleted_is_gone(form, status, content):
    async with opened(delete_status=form) as (http, running):
        id = (await http.post("/contacts", json={"name": "A"})).json()["id"]
        deal = (await http.post("/deals", json={"contact_id": id})).json()["id"]
        task = (await http.post("/tasks", json={"contact_id": id})).json()["id"]
        answer = await http.delete(f"/contacts/{id}")
        assert (answer.status_code, answer.content) == (status, content)
        assert_error(await http.delete(f"/contacts/{id}"), 404, "not_found")
        assert_error(await http.get(f"/contacts/{id}"), 404, "not_found", mentions=f"Контакт с ID {id} не найден")
        [shown] = (await http.get("/deals")).json()["data"]
        assert (shown["id"], shown["contact_id"]) == (deal, None)
        [shown] = (await http.get("/tasks")).json()["data"]
        assert (shown["id"], shown["contact_id"]) == (task, None)
        assert running.world.count("contact") == 0


@pytest.mark.parametrize("form, phone", [("null", None), ("blank", ""), ("missing", "nothing")])
@pytest.mark.asyncio
async def test_empty_fields_are_shown_as_the_switch_has_them(form, phone):
    async with opened(empties=form, full_create=True) as (http, _):
        made = (await http.post("/contacts", json={"name": "A"})).json()
        assert made.get("phone", "nothing") == phone
        assert made["tags"] == []


# --- paging


@pytest.mark.asyncio
async def test_a_list_says_which_page_of_how_many_it_is():
    async with opened(world=peopled(contacts=130, companies=5, as_rows=False)) as (http, _):
        seen = []
        for page in (1, 2, 3):
            body = (await http.get("/contacts", params={"page": page, "per_page": 50})).json()
            assert body["meta"] == {"page": page, "per_page": 50, "total": 130, "total_pages": 3}
            seen += [item["id"] for item in body["data"]]
        assert len(seen) == 130
        assert seen == sorted(seen)


@pytest.mark.parametrize(
    "query, size, count",
    [({}, 100, 100), ({"per_page": 500}, 100, 100), ({"page": 3}, 100, 0), ({"per_page": 0}, 0, 0)],
)
@pytest.mark.asyncio
async def test_pages_have_at_most_a_hundred_rows_and_the_ones_beyond_the_end_none(query, size, count):
    async with opened(world=peopled(contacts=130)) as (http, _):
        body = (await http.get("/contacts", params=query)).json()
        assert len(body["data"]) == count
        assert body["meta"]["per_page"] == size
        assert body["meta"]["total"] == 130


@pytest.mark.parametrize("query", [{"page": 0}, {"page": "x"}, {"page": -1}, {"per_page": "1.5"}, {"per_page": "²"}])
@pytest.mark.asyncio
async def test_a_page_that_is_no_number_is_refused(query):
    async with opened() as (http, _):
        assert_error(await http.get("/contacts", params=query), 400, "bad_request", mentions=next(iter(query)))


@pytest.mark.asyncio
async def test_lists_have_their_other_answers_behind_switches():
    switches = {"per_page_over": "refuse", "per_page_default": "20", "order": "newest", "list_items": "reduced"}
    async with opened(world=peopled(contacts=30), **switches) as (http, _):
        assert_error(await http.get("/contacts?per_page=101"), 400, "bad_request", mentions="per_page")
        items = (await http.get("/contacts")).json()["data"]
        assert len(items) == 20
        assert items[0]["id"] > items[1]["id"]
        assert set(items[0]) == {"id", "name", "created_at"}


# --- deals


async def _pipelines(http):
    return (await http.get("/pipelines")).json()["data"]


@pytest.mark.asyncio
async def test_a_deal_stands_in_the_first_open_stage_of_the_main_pipeline_unless_told_otherwise():
    async with opened(full_create=True) as (http, running):
        main, other = await _pipelines(http)
        made = (await http.post("/deals", json={"name": "D"})).json()
        assert made == {
            "id": made["id"],
            "name": "D",
            "amount": 0,
            "pipeline_id": main["id"],
            "stage": "new",
            "assigned_to": running.world.admin["id"],
            "contact_id": None,
            "created_at": "2026-03-20T10:15:00Z",
            "updated_at": "2026-03-20T10:15:00Z",
        }
        elsewhere = {"name": "D", "amount": 250000, "pipeline_id": other["id"], "stage": "demo"}
        made = (await http.post("/deals", json=elsewhere)).json()
        assert elsewhere.items() <= made.items()


@pytest.mark.asyncio
async def test_a_deal_is_won_or_lost_by_its_stage_and_keeps_its_amount():
    async with opened() as (http, running):
        id = (await http.post("/deals", json={"name": "D", "amount": 100})).json()["id"]
        read = (await http.put(f"/deals/{id}", json={"stage": "won"})).json()
        assert (read["stage"], read["amount"]) == ("won", 100)
        row = running.world.row("deal", id)
        assert row["stage_id"] == 142
        assert row["closed_at"] == int(running.account.clock.now().timestamp())
        await http.put(f"/deals/{id}", json={"stage": "negotiation"})
        assert running.world.row("deal", id)["closed_at"] is None


@pytest.mark.asyncio
async def test_a_deal_moved_to_another_pipeline_begins_there():
    async with opened() as (http, _):
        _, other = await _pipelines(http)
        id = (await http.post("/deals", json={"stage": "decision"})).json()["id"]
        read = (await http.put(f"/deals/{id}", json={"pipeline_id": other["id"]})).json()
        assert (read["pipeline_id"], read["stage"]) == (other["id"], "new")
    async with opened(pipeline_without_stage="refuse") as (http, _):
        _, other = await _pipelines(http)
        id = (await http.post("/deals", json={})).json()["id"]
        moved = await http.put(f"/deals/{id}", json={"pipeline_id": other["id"]})
        assert_error(moved, 400, "bad_request", mentions="stage")


@pytest.mark.parametrize(
    "body",
    [
        {"pipeline_id": 1},
        {"pipeline_id": "1"},
        {"stage": "demo"},
        {"stage": "unsorted"},
        {"stage": 142},
        {"contact_id": 1},
        {"contact_id": 10**30},
        {"assigned_to": 1},
        {"assigned_to": True},
        {"amount": "100"},
        {"amount": True},
        {"amount": 10**20},
        {"name": 1},
    ],
)
@pytest.mark.asyncio
async def test_a_deal_that_points_nowhere_is_refused(body):
    async with opened() as (http, running):
        assert_error(await http.post("/deals", json=body), 400, "bad_request", mentions=next(iter(body)))
        id = (await http.post("/deals", json={})).json()["id"]
        assert_error(await http.put(f"/deals/{id}", json=body), 400, "bad_request", mentions=next(iter(body)))
        assert running.world.count("deal") == 1


@pytest.mark.asyncio
async def test_amounts_keep_their_fractions_unless_only_integers_are_taken():
    async with opened(full_create=True) as (http, running):
        made = await http.post("/deals", content=b'{"amount": 10.10}')
        assert made.json()["amount"] == 10.1
        assert running.world.row("deal", made.json()["id"])["price"] == "10.10"
        assert b'"amount":5,' in (await http.post("/deals", content=b'{"amount": 5.0}')).content
    async with opened(money="integer") as (http, _):
        assert_error(await http.post("/deals", json={"amount": 1.5}), 400, "bad_request", mentions="amount")


@pytest.mark.asyncio
async def test_deals_are_filtered_by_pipeline_stage_and_user_and_by_nothing_else():
    world = peopled(contacts=20, deals=200)
    rows = world.select("deal")
    pipeline, user = world.select("pipeline")[1]["id"], world.select("user")[2]["id"]
    async with opened(world=world) as (http, _):

        async def ids(**query):
            body = (await http.get("/deals", params={**query, "per_page": 100})).json()
            pages = [
                await http.get("/deals", params={**query, "page": n + 1}) for n in range(body["meta"]["total_pages"])
            ]
            return [item["id"] for page in pages for item in page.json()["data"]]

        def expected(test):
            return [row["id"] for row in rows if test(row)]

        assert await ids(pipeline_id=pipeline) == expected(lambda row: row["pipeline_id"] == pipeline)
        assert await ids(assigned_to=user) == expected(lambda row: row["owner"] == user)
        assert await ids(stage="won") == expected(lambda row: row["stage_id"] == 142)
        won_there = expected(lambda row: row["stage_id"] == 142 and row["pipeline_id"] == pipeline)
        assert won_there
        assert await ids(stage="won", pipeline_id=pipeline) == won_there
        assert await ids(stage="nowhere") == []
        assert await ids(pipeline_id=1) == []
        assert await ids(contact_id=1, updated_since="2026-01-01") == expected(lambda row: True)
        assert_error(await http.get("/deals?pipeline_id=x"), 400, "bad_request", mentions="pipeline_id")


@pytest.mark.asyncio
async def test_stages_go_by_id_when_told_to():
    async with opened(stage_form="id", full_create=True) as (http, _):
        main, _ = await _pipelines(http)
        first, second, *_, won, lost = main["stages"]
        assert (won["id"], lost["id"]) == (142, 143)
        made = (await http.post("/deals", json={"stage": second["id"]})).json()
        assert made["stage"] == second["id"]
        assert_error(await http.post("/deals", json={"stage": "new"}), 400, "bad_request", mentions="stage")
        assert (await http.get("/deals", params={"stage": first["id"]})).json()["data"] == []
        assert (await http.get("/deals", params={"stage": second["id"]})).json()["data"] == [made]


@pytest.mark.asyncio
async def test_a_strict_put_of_a_deal_begins_from_nothing():
    async with opened(strict_put=True) as (http, _):
        id = (await http.post("/deals", json={"name": "D", "amount": 5, "stage": "won"})).json()["id"]
        read = (await http.put(f"/deals/{id}", json={"name": "E"})).json()
        assert (read["name"], read["amount"], read["stage"]) == ("E", 0, "new")


@pytest.mark.parametrize(
    "method, path", [("GET", "/deals/{}"), ("GET", "/tasks/{}"), ("PUT", "/tasks/{}"), ("DELETE", "/tasks/{}")]
)
@pytest.mark.parametrize("status, word", [("404", "not_found"), ("405", "method_not_allowed")])
@pytest.mark.asyncio
async def test_what_the_page_does_not_list_is_not_there(method, path, status, word):
    async with opened(absent_status=status) as (http, _):
        deal = (await http.post("/deals", json={})).json()["id"]
        task = (await http.post("/tasks", json={})).json()["id"]
        url = path.format(deal if "deals" in path else task)
        assert_error(await http.request(method, url, content=b"{}"), int(status), word)
        assert_error(await http.request(method, "/companies"), 404, "not_found")


@pytest.mark.asyncio
async def test_paths_outside_the_api_answer_in_the_same_three_keys():
    async with opened() as (http, running):
        assert_error(await http.get(f"{running.origin}/"), 404, "not_found")
        assert_error(await http.get("/contacts/abc"), 404, "not_found")
        assert_error(await http.get(f"/contacts/{10**30}"), 404, "not_found")
        assert_error(await http.request("BREW", "/contacts"), 405, "method_not_allowed")


# --- tasks


@pytest.mark.asyncio
async def test_a_task_is_created_listed_and_completed():
    async with opened(full_create=True) as (http, running):
        contact = (await http.post("/contacts", json={"name": "A"})).json()["id"]
        deal = (await http.post("/deals", json={"name": "D"})).json()["id"]
        body = {
            "title": "Перезвонить",
            "description": "до обеда",
            "due_date": "2026-03-21T09:00:00Z",
            "assigned_to": running.world.select("user")[1]["id"],
            "contact_id": contact,
            "deal_id": deal,
        }
        made = (await http.post("/tasks", json=body)).json()
        stamps = {"created_at": "2026-03-20T10:15:00Z", "updated_at": "2026-03-20T10:15:00Z"}
        assert made == {**body, **stamps, "id": made["id"], "completed": False, "completed_at": None}
        assert (await http.get("/tasks")).json()["data"] == [made]
        running.account.clock.advance(60)
        answer = await http.put(f"/tasks/{made['id']}/complete")
        assert answer.status_code == 200
        later = {"completed_at": "2026-03-20T10:16:00Z", "updated_at": "2026-03-20T10:16:00Z"}
        assert answer.json() == {**made, **later, "completed": True}
        running.account.clock.advance(60)
        again = await http.put(f"/tasks/{made['id']}/complete", json={})
        assert again.status_code == 200
        assert again.json() == answer.json()
        assert_error(await http.put("/tasks/1/complete"), 404, "not_found", mentions="Задача с ID 1 не найдена")


@pytest.mark.asyncio
async def test_the_contact_beside_a_tasks_deal_goes_when_the_contact_does():
    async with opened() as (http, _):
        contact = (await http.post("/contacts", json={"name": "A"})).json()["id"]
        deal = (await http.post("/deals", json={})).json()["id"]
        await http.post("/tasks", json={"contact_id": contact, "deal_id": deal})
        await http.delete(f"/contacts/{contact}")
        [task] = (await http.get("/tasks")).json()["data"]
        assert (task["contact_id"], task["deal_id"]) == (None, deal)
        await http.delete(f"/deals/{deal}")
        [task] = (await http.get("/tasks")).json()["data"]
        assert task["deal_id"] is None


@pytest.mark.parametrize(
    "body",
    [
        {"title": 1},
        {"due_date": "tomorrow"},
        {"due_date": "2026-03-21T09:00:00"},
        {"due_date": 1774001700},
        {"deal_id": 1},
        {"contact_id": 1},
        {"assigned_to": 1},
        {"description": []},
    ],
)
@pytest.mark.asyncio
async def test_a_task_that_makes_no_sense_is_refused(body):
    async with opened() as (http, running):
        assert_error(await http.post("/tasks", json=body), 400, "bad_request", mentions=next(iter(body)))
        assert running.world.count("task") == 0


@pytest.mark.asyncio
async def test_a_task_speaks_its_other_names_when_told_to():
    switches = {
        "task_title_key": "text",
        "task_due_key": "deadline",
        "complete_answer": "empty",
        "repeat_complete": "refuse",
    }
    async with opened(required="all", **switches) as (http, _):
        assert_error(await http.post("/tasks", json={"title": "T"}), 400, "bad_request", mentions="text")
        made = await http.post("/tasks", json={"text": "T", "deadline": "2026-03-21T12:00:00+03:00"})
        assert set(made.json()) == {"id", "text", "created_at"}
        [task] = (await http.get("/tasks")).json()["data"]
        assert task["deadline"] == "2026-03-21T09:00:00Z"
        assert (await http.put(f"/tasks/{task['id']}/complete")).content == b""
        assert_error(await http.put(f"/tasks/{task['id']}/complete"), 400, "bad_request")
        assert_error(await http.post("/deals", json={}), 400, "bad_request", mentions="name")


# --- users and pipelines


@pytest.mark.asyncio
async def test_users_and_pipelines_are_lists_like_the_others():
    async with opened() as (http, running):
        users = (await http.get("/users")).json()
        assert users["meta"] == {"page": 1, "per_page": 100, "total": 3, "total_pages": 1}
        assert set(users["data"][0]) == {"id", "name", "email", "role"}
        assert (await http.get("/users/me")).json() == users["data"][0]
        main = (await http.get("/pipelines")).json()["data"][0]
        assert set(main) == {"id", "name", "stages"}
        assert main["stages"][0] == {"id": "new", "name": "Первичный контакт", "type": "open", "sort": 20}
        assert [stage["type"] for stage in main["stages"]] == ["open", "open", "open", "open", "won", "lost"]
        anna = running.world.select("user")[2]["id"]
        headers = {"Authorization": f"Bearer {issue_token(running.account, anna)}"}
        assert (await http.get("/users/me", headers=headers)).json()["id"] == anna
        made = await http.post("/contacts", json={"name": "A"}, headers=headers)
        assert running.world.row("contact", made.json()["id"])["owner"] == anna
    async with opened(bare_vocabulary=True) as (http, _):
        assert len((await http.get("/users")).json()) == 3


# --- tokens and limits


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer nobody"}, {"Authorization": "Basic {token}"}])
@pytest.mark.asyncio
async def test_a_missing_or_wrong_token_is_answered_with_401(header):
    async with opened() as (http, running):
        del http.headers["Authorization"]
        sent = {name: value.format(token=running.credentials["token"]) for name, value in header.items()}
        assert_error(await http.get("/contacts", headers=sent), 401, "unauthorized", mentions="токен")


@pytest.mark.asyncio
async def test_a_revoked_token_is_answered_with_401():
    async with opened() as (http, running):
        assert (await http.get("/users/me")).status_code == 200
        revoke_token(running.account, running.credentials["token"])
        assert_error(await http.get("/users/me"), 401, "unauthorized")


@pytest.mark.asyncio
async def test_a_lower_plan_has_no_api():
    async with opened(plan="basic") as (http, _):
        assert_error(await http.get("/contacts"), 403, "forbidden", mentions="Про")


@pytest.mark.asyncio
async def test_the_hundred_and_first_request_of_a_minute_is_refused_and_the_next_minute_begins_anew():
    async with opened(limits=True) as (http, running):
        running.account.clock.advance(30)
        answers = [await http.get("/users/me") for _ in range(101)]
        assert {answer.status_code for answer in answers[:100]} == {200}
        assert_error(answers[100], 429, "too_many_requests", mentions="100")
        assert "retry-after" not in answers[100].headers
        running.account.clock.advance(30)
        assert (await http.get("/users/me")).status_code == 200
        assert running.stats.refused == 1
        assert running.stats.requests == 102
        assert running.stats.worst(60) == 102
        assert running.stats.over(100, 60) == 2
        assert running.stats.calls == {"GET /api/v2/users/me": 102}


@pytest.mark.asyncio
async def test_the_limit_is_a_tokens_own_and_says_when_to_come_back_behind_switches():
    async with opened(limits=True, retry_after_header=True) as (http, running):
        running.account.clock.advance(20)
        answers = [await http.get("/users/me") for _ in range(101)]
        assert answers[100].headers["retry-after"] == "40"
        other = {"Authorization": f"Bearer {issue_token(running.account)}"}
        assert (await http.get("/users/me", headers=other)).status_code == 200
    async with opened(limits=True, limit_scope="account", limit_window="sliding") as (http, running):
        running.account.clock.advance(30)
        for _ in range(100):
            await http.get("/users/me")
        running.account.clock.advance(59)
        other = {"Authorization": f"Bearer {issue_token(running.account)}"}
        assert (await http.get("/users/me", headers=other)).status_code == 429
        running.account.clock.advance(1)
        assert (await http.get("/users/me")).status_code == 200


@pytest.mark.asyncio
async def test_a_failure_of_the_sandbox_itself_is_a_500_with_the_three_keys():
    world = World(clock=FakeClock())
    running = in_process(FACE, world)
    headers = {"Authorization": f"Bearer {running.credentials['token']}"}
    transport = httpx.ASGITransport(running.app, raise_app_exceptions=False)
    world.close()
    async with httpx.AsyncClient(transport=transport, base_url=running.base_url, headers=headers) as http:
        assert_error(await http.get("/users/me"), 500, "server_error")


# --- the server


@pytest.mark.asyncio
async def test_it_serves_over_real_http_and_is_gone_afterwards():
    tasks = asyncio.all_tasks()
    async with serve(FACE, peopled(contacts=3)) as running:
        assert running.base_url.startswith("http://127.0.0.1:")
        assert running.base_url.endswith("/api/v2")
        headers = {"Authorization": f"Bearer {running.credentials['token']}"}
        async with httpx.AsyncClient(base_url=running.base_url, headers=headers) as http:
            answers = await asyncio.gather(*(http.get("/contacts") for _ in range(20)))
            assert [answer.json()["meta"]["total"] for answer in answers] == [3] * 20
            assert answers[0].headers["content-type"] == "application/json"
        assert running.stats.requests == 20
        port = int(running.origin.rpartition(":")[2])
    assert asyncio.all_tasks() == tasks
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
    async with serve(FACE, World(clock=FakeClock()), port=port) as again:
        assert again.origin == running.origin


def test_the_listener_says_it_is_tcp_so_that_asyncio_does_not_delay_small_answers():
    with server._listen(0) as listener:
        assert listener.proto == socket.IPPROTO_TCP


@pytest.mark.asyncio
async def test_a_port_that_is_taken_is_named():
    async with serve(FACE, World(clock=FakeClock())) as running:
        port = int(running.origin.rpartition(":")[2])
        with pytest.raises(PortInUse, match=str(port)) as caught:
            async with serve(FACE, World(clock=FakeClock()), port=port):
                pass
    assert isinstance(caught.value, OSError)
    assert caught.value.port == port


@pytest.mark.asyncio
async def test_it_leaves_when_it_is_cancelled_with_a_connection_open():
    before = asyncio.all_tasks()
    serving = asyncio.Event()

    async def hold():
        async with serve(FACE, World(clock=FakeClock())) as running:
            async with httpx.AsyncClient(base_url=running.base_url) as http:
                await http.get("/contacts")
                serving.set()
                await asyncio.Event().wait()

    holding = asyncio.create_task(hold())
    await serving.wait()
    holding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await holding
    assert asyncio.all_tasks() == before


@pytest.mark.asyncio
async def test_an_error_in_the_block_comes_out_as_it_is():
    with pytest.raises(ZeroDivisionError):
        async with serve(FACE, World(clock=FakeClock())):
            _ = 1 / 0


@pytest.mark.asyncio
async def test_without_uvicorn_it_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "uvicorn":
            raise ModuleNotFoundError("No module named 'uvicorn'", name="uvicorn")
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "uvicorn", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'crmclient\[sandbox\]'"):
        async with serve(FACE, World(clock=FakeClock())):
            pass


def test_faces_are_found_by_name_and_an_unknown_name_lists_the_known():
    assert server.face("electrum") is FACE
    with pytest.raises(NoSuchFace, match=r"no sandbox 'acme'; there are .*electrum"):
        server.face("acme")


def test_every_face_that_is_installed_is_listed(monkeypatch):
    point = EntryPoint("electrum", "crmclient_electrum.sandbox:FACE", server.GROUP)
    monkeypatch.setattr(server, "entry_points", lambda group: (point,))
    assert faces() == {"electrum": FACE}


def test_without_starlette_a_face_says_what_to_install(monkeypatch):
    point = EntryPoint("acme", "starlette.nothing_like_this:FACE", server.GROUP)
    monkeypatch.setattr(server, "entry_points", lambda group: (point,))
    monkeypatch.setitem(sys.modules, "starlette", None)
    with pytest.raises(ImportError, match=r"pip install 'crmclient\[sandbox\]'"):
        server.face("acme")


def test_an_entry_point_that_is_no_face_is_refused(monkeypatch):
    point = EntryPoint("odd", "crmclient_electrum.sandbox:PREFIX", server.GROUP)
    monkeypatch.setattr(server, "entry_points", lambda group: (point,))
    with pytest.raises(TypeError, match="not a Face"):
        server.face("odd")


# --- switches and the script


def test_an_unknown_switch_or_value_is_refused_with_the_known_ones():
    world = World(clock=FakeClock())
    with pytest.raises(ValueError, match="no switch 'strict'; there are stage-form"):
        Account.open(FACE, world, switches={"strict": True})
    with pytest.raises(ValueError, match="one of 'slug', 'id'"):
        Account.open(FACE, world, switches={"stage-form": "name"})
    with pytest.raises(ValueError, match="one of False, True"):
        Account.open(FACE, world, switches={"strict-put": 1})
    opened = Account.open(FACE, world, switches={"strict-put": True})
    assert opened.switches == {**{name: switch.default for name, switch in SWITCHES.items()}, "strict-put": True}


def test_every_switch_has_a_reason_and_its_default_among_its_choices():
    for name, switch in SWITCHES.items():
        assert switch.default in switch.choices, name
        assert len(set(switch.choices)) > 1, name
        assert switch.why, name


def test_every_switch_is_asked_for_somewhere():
    source = Path(sandbox.__file__).read_text()
    for name in SWITCHES:
        assert source.count(f'"{name}"') > 1, name


def test_the_script_is_six_lines_of_python_that_name_the_address_and_the_token():
    running = in_process(FACE, World(clock=FakeClock()))
    lines = running.script.splitlines()
    assert len(lines) == 6
    ast.parse(running.script)
    assert f'base_url="{running.base_url}", credentials="{running.credentials["token"]}"' in running.script


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
async def test_a_populated_account_reads_completely_and_in_the_pages_own_words():
    world = peopled(contacts=250, companies=30, deals=80, tasks=80, as_rows=False)
    async with opened(world=world) as (http, running):
        running.account.clock.step(timedelta(days=1))
        for kind, count in (("contacts", 250), ("deals", 80), ("tasks", 80)):
            pages = [(await http.get(f"/{kind}?page={page}")).json() for page in (1, 2, 3)]
            items = [item for page in pages for item in page["data"]]
            assert len({item["id"] for item in items}) == count == pages[0]["meta"]["total"]
            assert all(item["created_at"].endswith("Z") for item in items)
        assert (
            len(
                {
                    item["company"]
                    for page in (1, 2, 3)
                    for item in (await http.get(f"/contacts?page={page}")).json()["data"]
                }
                - {None}
            )
            == 30
        )
