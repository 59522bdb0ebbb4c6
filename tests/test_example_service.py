"""The example is run as it would be served, with the sandbox behind it and no socket anywhere."""

import importlib.util
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType

import httpx
import pytest

from crmclient import Misconfigured, connect
from crmclient.clock import FakeClock
from crmclient.sandbox.server import Running, face, in_process
from crmclient.sandbox.world import World, populate

pytestmark = pytest.mark.asyncio
FILE = Path(__file__).parent.parent / "examples" / "service.py"


@pytest.fixture(scope="module")
def service() -> ModuleType:
    spec = importlib.util.spec_from_file_location("example_service", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@asynccontextmanager
async def running(service: ModuleType, name: str = "electrum") -> AsyncIterator[tuple[httpx.AsyncClient, Running]]:
    clock = FakeClock()
    world = World(clock=clock)
    populate(world, contacts=3, seed=1)
    sandbox = in_process(face(name), world)
    opened = []

    def client():
        opened.append(
            connect(
                name,
                base_url=sandbox.base_url,
                credentials=sandbox.credentials["token"],
                transport=sandbox.transport(),
                clock=clock,
            )
        )
        return opened[-1]

    app = service.app(client)
    async with app.router.lifespan_context(app) as state:
        # httpx starts no lifespan; what it would hand to requests is handed over here.
        async def served(scope, receive, send):
            await app({**scope, "state": dict(state)}, receive, send)

        transport = httpx.ASGITransport(served)
        async with httpx.AsyncClient(transport=transport, base_url="http://service.test") as http:
            yield http, sandbox
    assert len(opened) == 1
    world.close()


async def test_a_contact_is_made_and_read_back(service: ModuleType) -> None:
    async with running(service) as (http, sandbox):
        made = await http.post("/contacts", json={"name": "Ivan", "phones": ["+79991234567"], "tags": ["new"]})
        assert made.status_code == 201
        read = await http.get(made.headers["location"])
        assert read.status_code == 200
        assert read.json()["name"] == "Ivan"
        assert read.json()["phones"] == [{"value": "+79991234567", "label": "work"}]
        assert sandbox.world.count("contact") == 4


async def test_errors_become_statuses_that_say_whose_fault_it_is(service: ModuleType) -> None:
    async with running(service) as (http, sandbox):
        absent = await http.get("/contacts/99999999")
        assert (absent.status_code, absent.json()["error"]) == (404, "NotFound")
        assert (await http.get("/contacts/nobody")).status_code == 422
        lacking = await http.post("/contacts", json={"phones": ["1"]})
        assert lacking.status_code == 422
        assert lacking.json()["issues"][0]["field"] == "name"
        position = await http.post("/contacts", json={"name": "x", "position": "boss"})
        assert position.status_code == 501
        for wrong in ({"id": 5, "name": "x"}, [1], {"name": 5}, {"tags": [1]}):
            assert (await http.post("/contacts", json=wrong)).status_code == 422
        assert (await http.post("/contacts", content=b"{")).status_code == 400
        assert sandbox.world.count("contact") == 3


async def test_a_refused_token_is_not_the_callers_fault_and_is_not_shown(service: ModuleType) -> None:
    async with running(service) as (http, sandbox):
        token = sandbox.credentials["token"]
        sandbox.account.issued["tokens"].clear()
        answer = await http.get("/contacts/1")
        assert answer.status_code == 502
        assert token not in answer.text


async def test_health_says_what_was_spent_and_asks_nobody(service: ModuleType) -> None:
    async with running(service, "kommo") as (http, sandbox):
        health = await http.get("/health")
        assert health.json()["dialect"] == "kommo"
        assert health.json()["spent"]["requests"] == 0
        assert sandbox.stats.requests == 0


async def test_the_environment_configures_it(service: ModuleType) -> None:
    environ = {"CRMCLIENT_DIALECT": "kommo", "CRMCLIENT_ACCOUNT": "acme", "CRMCLIENT_TOKEN": "t"}
    assert service.from_environment(environ).base_url == "https://acme.kommo.com"
    with pytest.raises(Misconfigured, match="base_url"):
        service.from_environment({"CRMCLIENT_DIALECT": "electrum", "CRMCLIENT_TOKEN": "t"})
