"""Whatever ails an account, it is said in words, with the next step, with an exit code, and without a secret."""

import errno
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from attrs import evolve
from click.testing import CliRunner, Result

from crmclient import Retry, Secret
from crmclient.cli import commands
from crmclient.cli.doctor import Diagnosis, Finding, diagnosed, in_words
from crmclient.clock import FakeClock, SystemClock
from crmclient.dialect import Token
from crmclient.profiles import Profile
from crmclient.sandbox.server import Running, face, in_process, served
from crmclient.sandbox.world import World, populate
from crmclient.tokens import Files, Spending

CANARY = "canary-0123456789"


class Ward:
    """An account of a sandbox, a profile of it, and a place for its tokens."""

    def __init__(self, folder: Path, dialect: str, world: World, **switches: Any) -> None:
        self.clock = world.clock
        self.run = in_process(face(dialect), world, switches={k.replace("_", "-"): v for k, v in switches.items()})
        self.environ: dict[str, str] = {}
        self.profile = Profile(name="acme", dialect=dialect, base_url=self.run.base_url, tokens=folder / "tokens")
        self.transport: httpx.AsyncBaseTransport | None = self.run.transport()

    def with_token(self, token: str | None = None) -> "Ward":
        self.environ["CRMCLIENT_ACME_TOKEN"] = token or self.run.credentials["token"]
        return self

    def with_login(self, key: str | None = None) -> "Ward":
        self.profile = evolve(self.profile, login=self.run.credentials["login"])
        self.environ["CRMCLIENT_ACME_HASH"] = key or self.run.credentials["hash"]
        return self

    async def with_stored(self, *, hours: float, refresh: str | None = CANARY) -> Token:
        """An integration that has logged in before: a token that lives so long from now."""
        card = self.run.credentials
        self.profile = evolve(self.profile, client_id=card["client_id"], redirect_uri=card["redirect_uri"])
        self.environ["CRMCLIENT_ACME_CLIENT_SECRET"] = card["client_secret"]
        token = Token(
            access=Secret(card["token"]),
            refresh=Secret(refresh) if refresh else None,
            issued_at=self.clock.now() - timedelta(hours=24),
            expires_at=self.clock.now() + timedelta(hours=hours),
        )
        async with self.profile.store.lock(self.profile.stored_as):
            await self.profile.store.save(self.profile.stored_as, token)
        return token

    async def seen(self, **more: Any) -> Diagnosis:
        given = {"clock": self.clock, "environ": self.environ} | more
        diagnosis = await diagnosed(self.profile, transport=self.transport, **given)
        shown = in_words(diagnosis) + repr(diagnosis)
        secrets = [
            *self.environ.values(),
            *(
                self.run.credentials[name]
                for name in ("token", "hash", "client_secret")
                if name in self.run.credentials
            ),
        ]
        assert not [secret for secret in (CANARY, *secrets) if secret in shown]
        return diagnosis


class Altered(httpx.AsyncBaseTransport):
    """A sandbox's answers, with something done to each."""

    def __init__(self, inner: httpx.AsyncBaseTransport, change: Callable[[httpx.Response], httpx.Response]) -> None:
        self._inner, self._change = inner, change

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await self._inner.handle_async_request(request)
        await response.aread()
        return self._change(response)


@pytest.fixture
def world() -> Iterator[World]:
    with World(clock=FakeClock()) as world:
        populate(world, contacts=5, companies=2, deals=4, tasks=2, notes=2)
        yield world


def sick(diagnosis: Diagnosis) -> Finding:
    """The only thing that is wrong."""
    assert not diagnosis.well
    (found,) = [finding for finding in diagnosis.findings if not finding.well]
    return found


# -------------------------------------------------------------------------------------------------------------- well


@pytest.mark.parametrize(
    ("dialect", "looked_at"),
    [
        ("electrum", ["server", "clock"]),
        ("kommo", ["server", "clock", "filters"]),
        ("amocrm", ["server", "clock", "filters"]),
        ("amoxml", ["server", "clock"]),
    ],
)
@pytest.mark.asyncio
async def test_an_account_that_is_well_is_said_to_be_well(
    dialect: str, looked_at: list[str], tmp_path: Path, world: World
) -> None:
    ward = Ward(tmp_path, dialect, world)
    ward = ward.with_login() if "login" in ward.run.credentials else ward.with_token()
    ward.profile = evolve(ward.profile, zone="Europe/Moscow")
    diagnosis = await ward.seen()
    assert diagnosis.well, in_words(diagnosis)
    assert [finding.about for finding in diagnosis.findings] == looked_at
    assert "SICK" not in in_words(diagnosis)


@pytest.mark.asyncio
async def test_a_stored_token_says_how_long_it_lives_and_is_left_as_it_was(tmp_path: Path, world: World) -> None:
    ward = Ward(tmp_path, "kommo", world)
    token = await ward.with_stored(hours=20)
    diagnosis = await ward.seen()
    assert diagnosis.well, in_words(diagnosis)
    (kept, *_) = diagnosis.findings
    assert f"{token.expires_at:%Y-%m-%d %H:%M:%S} UTC and is renewed then" in kept.said
    assert await ward.profile.store.load(ward.profile.stored_as) == token
    assert ward.run.stats.statuses.total() == ward.run.stats.statuses[200] + ward.run.stats.statuses[204]


# -------------------------------------------------------------------------------------------------------------- sick


@pytest.mark.asyncio
async def test_a_spent_refresh_token_is_told_with_its_time(tmp_path: Path, world: World) -> None:
    ward = Ward(tmp_path, "kommo", world)
    token = await ward.with_stored(hours=-1)
    spent = ward.clock.now() - timedelta(minutes=30)
    await ward.profile.store.mark(ward.profile.stored_as, Spending.of(token, at=spent))
    diagnosis = await ward.seen()
    before, after = [finding for finding in diagnosis.findings if not finding.well]
    for finding in (before, after):
        assert f"spent at {spent:%Y-%m-%d %H:%M:%S} UTC" in finding.said
        assert "`crmclient login acme`" in (finding.then or "")
    assert (after.about, after.error) == ("tokens", "ReauthorizationRequired")


@pytest.mark.asyncio
async def test_a_refresh_token_that_is_refused_asks_for_a_new_grant(tmp_path: Path, world: World) -> None:
    ward = Ward(tmp_path, "kommo", world)
    await ward.with_stored(hours=-1)
    found = sick(await ward.seen())
    assert (found.about, found.error) == ("tokens", "ReauthorizationRequired")
    assert "`crmclient login acme`" in (found.then or "")


@pytest.mark.asyncio
async def test_a_ban_says_to_stop_and_whom_to_write_to(tmp_path: Path, world: World) -> None:
    ward = Ward(tmp_path, "kommo", world, ban_after="3").with_token()
    signed = {"Authorization": f"Bearer {ward.run.credentials['token']}"}
    async with httpx.AsyncClient(transport=ward.run.transport(), headers=signed) as hammer:
        for _ in range(20):
            await hammer.get(f"{ward.run.base_url}/api/v4/account")
    found = sick(await ward.seen())
    assert (found.about, found.error) == ("ban", "Banned")
    assert "support" in (found.then or "")


@pytest.mark.parametrize(("hours", "word"), [(2, "2:00:00 ahead of"), (-2, "2:00:00 behind"), (0.02, "72 s ahead of")])
@pytest.mark.asyncio
async def test_a_clock_that_is_wrong_is_measured(hours: float, word: str, tmp_path: Path, world: World) -> None:
    ward = Ward(tmp_path, "electrum", world).with_token()
    date = format_datetime(ward.clock.now(), usegmt=True)

    def dated(response: httpx.Response) -> httpx.Response:
        response.headers["Date"] = date
        return response

    ward.transport = Altered(ward.run.transport(), dated)
    assert (await ward.seen()).well
    ours = FakeClock(ward.clock.now() + timedelta(hours=hours))
    found = sick(await ward.seen(clock=ours))
    assert found.about == "clock"
    assert f"this machine's clock is {word} the server's" in found.said
    assert "NTP" in (found.then or "")


@pytest.mark.asyncio
async def test_filters_that_are_not_paid_for_are_found_out(tmp_path: Path, world: World) -> None:
    found = sick(await Ward(tmp_path, "kommo", world, api_filter=False).with_token().seen())
    assert found.about == "filters"
    assert "gave 4" in found.said
    assert "paid option" in (found.then or "")


@pytest.mark.asyncio
async def test_a_zone_that_nobody_tells_is_asked_for(tmp_path: Path, world: World) -> None:
    ward = Ward(tmp_path, "amoxml", world).with_login()
    found = sick(await ward.seen())
    assert found.about == "zone"
    assert "created_at, updated_at of deals" in found.said
    assert "zone = " in (found.then or "")
    ward.profile = evolve(ward.profile, zone="Europe/Moscow")
    assert (await ward.seen()).well


@pytest.mark.asyncio
async def test_a_host_of_somebody_else_is_told(tmp_path: Path, world: World) -> None:
    ward = Ward(tmp_path, "kommo", world).with_token()
    for page in (
        httpx.Response(200, html="<title>Log in to the hotel's network</title>"),
        httpx.Response(404, json={"error": "no such path"}),
        httpx.Response(302, headers={"Location": "https://portal.example/"}),
    ):
        ward.transport = httpx.MockTransport(lambda request, page=page: page)
        found = sick(await ward.seen())
        assert found.about == "address", found
        assert "base_url" in (found.then or "")


@pytest.mark.asyncio
async def test_an_account_that_has_moved_is_told_by_name_and_not_followed(tmp_path: Path, world: World) -> None:
    ward = Ward(tmp_path, "kommo", world).with_token()
    asked: list[str] = []

    def moved(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.host)
        return httpx.Response(301, headers={"Location": "https://renamed.kommo.com/api/v4/account"})

    ward.transport = httpx.MockTransport(moved)
    found = sick(await ward.seen())
    assert (found.about, found.error) == ("address", "AccountMoved")
    assert 'account = "renamed.kommo.com"' in (found.then or "")
    assert set(asked) == {"localhost"}


@pytest.mark.asyncio
async def test_a_server_that_cannot_be_reached_is_told(tmp_path: Path, world: World) -> None:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ward = Ward(tmp_path, "electrum", world).with_token()
    ward.profile = evolve(ward.profile, base_url=f"http://127.0.0.1:{port}/api/v2")
    ward.transport = None
    diagnosis = await ward.seen(clock=SystemClock(), retry=Retry(attempts=1))
    found = sick(diagnosis)
    assert (found.about, found.error) == ("network", "Unreachable")
    assert str(port) in found.said
    assert diagnosis.findings == (found,)


@pytest.mark.asyncio
async def test_a_token_that_is_wrong_is_told_with_where_it_comes_from(tmp_path: Path, world: World) -> None:
    found = sick(await Ward(tmp_path, "electrum", world).with_token(CANARY).seen())
    assert (found.about, found.error) == ("credentials", "AuthFailed")
    assert "CRMCLIENT_ACME_TOKEN" in (found.then or "")


@pytest.mark.parametrize("dialect", ["amocrm", "amoxml"])
@pytest.mark.asyncio
async def test_a_login_that_is_wrong_is_tried_once(dialect: str, tmp_path: Path, world: World) -> None:
    ward = Ward(tmp_path, dialect, world).with_login(CANARY)
    found = sick(await ward.seen())
    assert found.about == "credentials"
    assert "CRMCLIENT_ACME_HASH" in (found.then or "")
    assert ward.run.stats.requests == 1


@pytest.mark.asyncio
async def test_a_client_secret_that_is_wrong_is_told(tmp_path: Path, world: World) -> None:
    ward = Ward(tmp_path, "kommo", world)
    await ward.with_stored(hours=-1)
    ward.environ["CRMCLIENT_ACME_CLIENT_SECRET"] = f"{CANARY}-secret"
    found = sick(await ward.seen())
    assert found.about in ("credentials", "tokens")
    assert "client_secret" in found.said


@pytest.mark.asyncio
async def test_missing_credentials_are_told_without_asking_anybody(tmp_path: Path, world: World) -> None:
    ward = Ward(tmp_path, "electrum", world)
    diagnosis = await ward.seen()
    assert sick(diagnosis).about == "credentials"
    assert "CRMCLIENT_ACME_TOKEN" in sick(diagnosis).said
    assert ward.run.stats.requests == 0


@pytest.mark.asyncio
async def test_a_subscription_that_has_ended_and_a_server_that_is_down_are_told(tmp_path: Path, world: World) -> None:
    ended = Ward(tmp_path, "amocrm", world, subscription="ended").with_token()
    assert sick(await ended.seen()).about == "subscription"
    down = Ward(tmp_path, "electrum", world).with_token()
    down.transport = httpx.MockTransport(lambda request: httpx.Response(503))
    assert (sick(await down.seen()).about, sick(await down.seen()).error) == ("server", "Unavailable")


@pytest.mark.parametrize("ail", ["damaged", "no folder", "a link"])
@pytest.mark.asyncio
async def test_a_store_that_cannot_be_used_is_told(ail: str, tmp_path: Path, world: World) -> None:
    ward = Ward(tmp_path, "kommo", world)
    await ward.with_stored(hours=20)
    (file,) = (tmp_path / "tokens").glob("*.json")
    if ail == "damaged":
        file.write_text(f'{{"access": "{CANARY}')
    elif ail == "a link":
        file.rename(tmp_path / "elsewhere")
        file.symlink_to(tmp_path / "elsewhere")
    else:
        (tmp_path / "file").write_text("")
        ward.profile = evolve(ward.profile, tokens=tmp_path / "file" / "tokens")
    found = sick(await ward.seen())
    assert found.about == "tokens"
    assert "TokenStore" in (found.error or "")
    assert str(tmp_path) in found.said


@pytest.mark.asyncio
async def test_a_store_that_could_not_keep_the_next_token_is_told_while_this_one_still_works(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ward = Ward(tmp_path, "kommo", world)
    token = await ward.with_stored(hours=20)

    def full(files: Files, handle: int, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Files, "write", full)
    diagnosis = await ward.seen()
    found = sick(diagnosis)
    assert (found.about, found.error) == ("tokens", "TokenStoreFailed")
    assert "No space left" in found.said
    assert [finding.about for finding in diagnosis.findings if finding.well] == ["server", "clock", "filters"]
    assert await ward.profile.store.load(ward.profile.stored_as) == token


@pytest.mark.asyncio
async def test_a_store_that_is_not_needed_ails_nobody(tmp_path: Path, world: World) -> None:
    ward = Ward(tmp_path, "electrum", world).with_token()
    (tmp_path / "tokens").write_text("")
    assert (await ward.seen()).well


@pytest.mark.asyncio
async def test_what_others_could_read_is_told(tmp_path: Path, world: World) -> None:
    ward = Ward(tmp_path, "kommo", world)
    await ward.with_stored(hours=20)
    (file,) = (tmp_path / "tokens").glob("*.json")
    file.chmod(0o644)
    found = sick(await ward.seen())
    assert (found.about, found.error) == ("tokens", "TokenExposed")
    assert "revoke" in (found.then or "")
    open_road = Ward(tmp_path, "electrum", world).with_token()
    open_road.profile = evolve(open_road.profile, base_url="http://crm.example/api/v2")
    assert sick(await open_road.seen()).error == "InsecureTransport"


# ------------------------------------------------------------------------------------------------------- the command


@pytest.fixture(autouse=True)
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("CRMCLIENT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)


def invoke(*words: str) -> Result:
    return CliRunner().invoke(commands(), ["doctor", *words], catch_exceptions=False)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "there are no profiles"),
        (("nobody",), "there is no profile and no dialect 'nobody'"),
        (("electrum",), "no public host"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_a_diagnosis_too(words: tuple[str, ...], said: str) -> None:
    done = invoke(*words)
    assert (done.exit_code, said in done.stdout) == (1, True)
    (line,) = invoke(*words, "--json").stdout.splitlines()
    told = json.loads(line)
    assert (told["well"], told["findings"][0]["about"]) == (False, "configuration")


def test_an_address_without_a_dialect_is_a_usage_error() -> None:
    assert invoke("--base-url", "http://127.0.0.1:1").exit_code == 2


@pytest.mark.e2e
def test_every_profile_is_looked_at_and_one_that_is_sick_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with World(clock=SystemClock()) as world, served(face("electrum"), world) as running:
        assert isinstance(running, Running)
        table = f'dialect = "electrum"\nbase_url = "{running.base_url}"\n'
        (tmp_path / "crmclient.toml").write_text(f"[profiles.one]\n{table}[profiles.two]\n{table}")
        token = running.credentials["token"]
        monkeypatch.setenv("CRMCLIENT_ONE_TOKEN", token)
        monkeypatch.setenv("CRMCLIENT_TWO_TOKEN", CANARY)
        well = invoke("one")
        assert (well.exit_code, "SICK" in well.stdout) == (0, False)
        both = invoke("--json")
        assert both.exit_code == 1
        assert [(told["profile"], told["well"]) for told in map(json.loads, both.stdout.splitlines())] == [
            ("one", True),
            ("two", False),
        ]
        assert not {CANARY, token} & set((both.output + well.output).replace('"', " ").split())
