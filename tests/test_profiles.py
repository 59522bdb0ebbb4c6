"""An account has a name in a file, and its secrets are anywhere but there."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from attrs import evolve

from crmclient import AccessToken, Misconfigured, OAuthApp, ReauthorizationRequired, Secret, UnknownDialect
from crmclient.auth import Login, LoginNames, SessionLogin
from crmclient.clock import FakeClock
from crmclient.dialect import Token
from crmclient.profiles import Profile, connected, credentials, find, load, opened, stored_token, token_folder, variable
from crmclient.registry import dialect
from crmclient.sandbox.server import face, in_process
from crmclient.sandbox.world import World, populate

OAUTH = """
[profiles.acme]
dialect = "kommo"
account = "acme"
client_id = "id"
redirect_uri = "https://x.example/oauth"
"""


def written(folder: Path, text: str, name: str = "crmclient.toml") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def environ(folder: Path, **more: str) -> dict[str, str]:
    return {"XDG_CONFIG_HOME": str(folder / "config"), "XDG_STATE_HOME": str(folder / "state"), **more}


def at_home(folder: Path, text: str) -> Path:
    return written(folder / "config" / "crmclient", text)


# ---------------------------------------------------------------------------------------------------------- finding


def test_this_folders_file_comes_before_the_users_and_the_chosen_one_before_both(tmp_path: Path) -> None:
    at_home(tmp_path, '[profiles.a]\ndialect = "kommo"\naccount = "home"\n')
    assert find("a", environ=environ(tmp_path), cwd=tmp_path).account == "home"
    written(tmp_path, '[profiles.a]\ndialect = "kommo"\naccount = "here"\n')
    assert find("a", environ=environ(tmp_path), cwd=tmp_path).account == "here"
    chosen = written(tmp_path, '[profiles.a]\ndialect = "kommo"\naccount = "chosen"\n', "other.toml")
    assert find("a", environ=environ(tmp_path, CRMCLIENT_CONFIG=str(chosen)), cwd=tmp_path).account == "chosen"


def test_a_chosen_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match=r"CRMCLIENT_CONFIG names .*gone\.toml"):
        find("a", environ=environ(tmp_path, CRMCLIENT_CONFIG=str(tmp_path / "gone.toml")))


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    written(tmp_path, OAUTH)
    with pytest.raises(Misconfigured) as told:
        find("acne", environ=environ(tmp_path), cwd=tmp_path)
    for known in ("acne", "acme", "electrum", "kommo", "crmclient.toml"):
        assert known in str(told.value)


def test_a_dialects_name_stands_for_a_profile(tmp_path: Path) -> None:
    given = find("kommo", account="acme", environ=environ(tmp_path), cwd=tmp_path)
    assert given.address == "https://acme.kommo.com"
    assert given.stored_as == "kommo-acme.kommo.com"
    assert given.tokens == tmp_path / "state" / "crmclient" / "tokens"
    users = [
        Profile(name=login, dialect="amocrm", account="acme", login=login)
        for login in ("olga@x.example", "ivan@x.example")
    ]
    assert len({user.stored_as for user in users}) == 2
    with pytest.raises(Misconfigured, match="not both"):
        find("kommo", account="acme", base_url="http://127.0.0.1:1", environ=environ(tmp_path), cwd=tmp_path)


def test_a_profile_is_not_sent_elsewhere_with_an_option(tmp_path: Path) -> None:
    written(tmp_path, OAUTH)
    with pytest.raises(Misconfigured, match="--base-url"):
        find("acme", base_url="https://elsewhere.example", environ=environ(tmp_path), cwd=tmp_path)


def test_a_relative_token_folder_is_relative_to_its_file(tmp_path: Path) -> None:
    file = written(tmp_path / "conf", '[profiles.a]\ndialect = "kommo"\naccount = "a"\ntokens = "kept"\n')
    assert load(file)["a"].tokens == tmp_path / "conf" / "kept"


def test_tokens_are_kept_in_the_users_state_by_default() -> None:
    assert token_folder({}) == Path("~/.local/state/crmclient/tokens").expanduser()


# ------------------------------------------------------------------------------------------------- what is refused


def test_a_wrong_profile_stops_only_what_uses_it(tmp_path: Path) -> None:
    written(tmp_path, OAUTH + '[profiles.sick]\ndialect = "kommo"\ntoken = "hunter2"\n')
    assert find("acme", environ=environ(tmp_path), cwd=tmp_path).account == "acme"
    with pytest.raises(Misconfigured, match="'sick': token is a secret"):
        find("sick", environ=environ(tmp_path), cwd=tmp_path)


@pytest.mark.parametrize(("name", "first"), [("amoxml", "write login = "), ("kommo", "set CRMCLIENT_A_TOKEN")])
def test_without_credentials_it_says_first_what_the_dialect_takes(tmp_path: Path, name: str, first: str) -> None:
    with pytest.raises(Misconfigured) as told:
        credentials(Profile(name="a", dialect=name, account="acme"), None, environ=environ(tmp_path))
    assert f"there are no credentials for a: {first}" in str(told.value)
    assert ("CRMCLIENT_A_HASH" in str(told.value)) == (name == "amoxml")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('acount = "x"', "unknown key 'acount'"),
        ('base_url = "http://127.0.0.1"', "not both"),
        ('zone = "Mars/Olympus"', "Mars/Olympus"),
        ("zone = 3", "zone is a text"),
        ('zone = ""', "zone is a text"),
        ("[profiles.acme.more]", "unknown key 'more'"),
    ],
)
def test_a_wrong_key_is_named_with_its_file_and_profile(tmp_path: Path, line: str, said: str) -> None:
    file = written(tmp_path, OAUTH + line + "\n")
    with pytest.raises(Misconfigured) as told:
        load(file)
    assert str(file) in str(told.value)
    assert "acme" in str(told.value)
    assert said in str(told.value)


@pytest.mark.parametrize(
    "key", ["token", "access_token", "refresh_token", "client_secret", "password", "hash", "api_key"]
)
def test_a_secret_in_the_file_is_refused_and_not_repeated(tmp_path: Path, key: str) -> None:
    file = written(tmp_path, OAUTH + f'{key} = "hunter2"\n')
    with pytest.raises(Misconfigured) as told:
        load(file)
    assert key in str(told.value)
    assert "CRMCLIENT_ACME_" in str(told.value)
    assert "crmclient login acme" in str(told.value)
    assert "hunter2" not in str(told.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[profiles.a\n", "no TOML"),
        ('[profile.a]\ndialect = "kommo"\n', "'profile'"),
        ("profiles = 3\n", "tables"),
        ("[profiles]\na = 3\n", "a table"),
        ('[profiles.a]\naccount = "x"\n', "lacks its dialect"),
        ('[profiles.a-b]\ndialect = "kommo"\n[profiles.a_b]\ndialect = "kommo"\n', "CRMCLIENT_A_B_TOKEN"),
    ],
)
def test_a_file_that_makes_no_sense_says_why(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(Misconfigured, match=said):
        load(written(tmp_path, text))


def test_bytes_that_are_no_text_are_said(tmp_path: Path) -> None:
    file = tmp_path / "crmclient.toml"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(Misconfigured, match="UTF-8"):
        load(file)


def test_an_unknown_dialect_lists_the_installed_ones(tmp_path: Path) -> None:
    with pytest.raises(UnknownDialect, match="electrum"):
        load(written(tmp_path, '[profiles.a]\ndialect = "komo"\n'))


# ---------------------------------------------------------------------------------------------------------- secrets

PROFILE = Profile(name="acme", dialect="kommo", account="acme", client_id="id", redirect_uri="https://x.example/oauth")


def stored(hours: float, refresh: str | None = "r") -> Token:
    now = datetime.now(UTC)
    return Token(
        access=Secret("stored"),
        refresh=Secret(refresh) if refresh else None,
        issued_at=now,
        expires_at=now + timedelta(hours=hours),
    )


def test_the_profiles_own_variable_comes_before_the_one_for_all() -> None:
    both = {"CRMCLIENT_TOKEN": "all", "CRMCLIENT_ACME_TOKEN": "own"}
    assert credentials(PROFILE, None, environ=both) == AccessToken("own")
    assert credentials(PROFILE, None, environ={"CRMCLIENT_TOKEN": "all"}) == AccessToken("all")
    assert variable("my shop-2", "TOKEN") == "CRMCLIENT_MY_SHOP_2_TOKEN"


def test_a_long_lived_token_that_was_stored_is_used_as_it_is() -> None:
    long_lived = Token(access=Secret("stored"))
    assert credentials(PROFILE, long_lived, environ={}) == AccessToken("stored")


def test_with_the_client_secret_the_stored_token_can_be_renewed() -> None:
    given = credentials(PROFILE, stored(1), environ={"CRMCLIENT_ACME_CLIENT_SECRET": "s"})
    assert isinstance(given, OAuthApp)
    assert given.client_secret == Secret("s")


def test_without_it_the_stored_token_is_used_while_it_lives() -> None:
    assert credentials(PROFILE, stored(1), environ={}) == AccessToken("stored")
    with pytest.raises(Misconfigured, match="CRMCLIENT_ACME_CLIENT_SECRET"):
        credentials(PROFILE, stored(-1), environ={})
    asked = credentials(PROFILE, stored(-1), environ={}, ask=lambda question: "typed")
    assert isinstance(asked, OAuthApp)


def test_an_integration_nobody_logged_in_to_says_how() -> None:
    with pytest.raises(ReauthorizationRequired, match="crmclient login acme"):
        credentials(PROFILE, None, environ={})


def test_without_anything_it_is_said_what_to_set_and_a_person_is_asked() -> None:
    electrum = Profile(name="electrum", dialect="electrum", base_url="http://127.0.0.1:1")
    with pytest.raises(Misconfigured, match="CRMCLIENT_ELECTRUM_TOKEN"):
        credentials(electrum, None, environ={"CRMCLIENT_TOKEN": " "})
    assert credentials(electrum, None, environ={}, ask=lambda question: "typed") == AccessToken("typed")


def test_a_login_comes_with_its_key_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    names = LoginNames(login="l", hash="h", password="p")
    scheme = SessionLogin(path="/auth", names=names, accepted=lambda reply: True)
    monkeypatch.setattr("crmclient.profiles.dialect_named", lambda name: evolve(dialect("kommo"), auth=(scheme,)))
    profile = evolve(PROFILE, login="me@acme.example")
    assert profile.address == "https://acme.kommo.com"
    given = credentials(profile, stored(1, None), environ={"CRMCLIENT_ACME_HASH": "k"})
    assert given == Login("me@acme.example", hash="k")
    given = credentials(profile, None, environ={"CRMCLIENT_PASSWORD": "p"})
    assert given == Login("me@acme.example", password="p")
    assert credentials(profile, None, environ={}, ask=lambda question: "k") == Login("me@acme.example", hash="k")
    with pytest.raises(Misconfigured, match="CRMCLIENT_ACME_HASH"):
        credentials(profile, None, environ={})
    with pytest.raises(Misconfigured, match="login ="):
        credentials(PROFILE, None, environ={})


@pytest.mark.parametrize("dialect", ["amocrm", "amoxml"])
def test_a_profile_that_names_a_login_comes_in_with_it_where_a_token_would_do_too(dialect: str) -> None:
    profile = evolve(PROFILE, dialect=dialect, login="me@acme.example")
    both = {"CRMCLIENT_ACME_HASH": "k", "CRMCLIENT_TOKEN": "of another account"}
    assert credentials(profile, None, environ=both) == Login("me@acme.example", hash="k")
    assert credentials(evolve(profile, login=None), None, environ=both) == AccessToken("of another account")
    session = evolve(stored(1, None), renewable=True)
    with pytest.raises(Misconfigured, match="login ="):
        credentials(evolve(profile, login=None), session, environ={})


# ------------------------------------------------------------------------------------------------------- connecting


@pytest.mark.asyncio
async def test_a_profile_becomes_a_client_that_reads(tmp_path: Path) -> None:
    clock = FakeClock()
    with World(clock=clock) as world:
        populate(world, contacts=3)
        sandbox = in_process(face("electrum"), world)
        text = f'[profiles.shop]\ndialect = "electrum"\nbase_url = "{sandbox.base_url}"\nzone = "Asia/Almaty"\n'
        profile = load(written(tmp_path, text), environ(tmp_path))["shop"]
        assert await stored_token(profile) is None
        token = AccessToken(sandbox.credentials["token"])
        async with connected(profile, token, transport=sandbox.transport(), clock=clock) as crm:
            assert len([contact async for contact in crm.contacts.list()]) == 3


@pytest.mark.parametrize("dialect", ["amocrm", "amoxml"])
@pytest.mark.asyncio
async def test_a_login_of_a_profile_reads_and_its_session_is_kept(dialect: str, tmp_path: Path) -> None:
    clock = FakeClock()
    with World(clock=clock) as world:
        populate(world, contacts=3)
        sandbox = in_process(face(dialect), world, clock=clock)
        known = sandbox.credentials
        text = f'[profiles.shop]\ndialect = "{dialect}"\nbase_url = "{sandbox.base_url}"\nlogin = "{known["login"]}"\n'
        home = environ(tmp_path, CRMCLIENT_SHOP_HASH=known["hash"])
        profile = load(written(tmp_path, text), home)["shop"]
        for _ in range(2):
            given = credentials(profile, await stored_token(profile), environ=home)
            async with connected(profile, given, transport=sandbox.transport(), clock=clock) as crm:
                assert len([contact async for contact in crm.contacts.list()]) == 3
        logins = sum(count for call, count in sandbox.stats.calls.items() if call.endswith("/auth.php"))
        assert logins == 1


def test_all_profiles_of_a_host_share_the_pace_of_an_account(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = OAUTH + OAUTH.replace("acme]", "again]") + 'tokens = "elsewhere"\n'
    home = environ(tmp_path)
    acme, again = load(written(tmp_path, text), home).values()
    assert acme.pace == again.pace == tmp_path / "state" / "crmclient" / "pace"
    assert acme.tokens != again.tokens
    connected(acme, AccessToken("t"))
    assert acme.pace.is_dir()
    (tmp_path / "file").write_text("")
    connected(evolve(acme, pace=tmp_path / "file" / "pace"), AccessToken("t"))
    assert "are not known" in caplog.text


@pytest.mark.asyncio
async def test_a_program_opens_a_profile_by_its_name(tmp_path: Path) -> None:
    at_home(tmp_path, OAUTH)
    variables = environ(tmp_path, CRMCLIENT_ACME_TOKEN="t")
    async with opened("acme", read_only=True, environ=variables, cwd=tmp_path) as crm:
        assert crm.base_url == "https://acme.kommo.com"
        assert "t" not in repr(crm).split()


def test_profiles_need_no_command_line() -> None:
    # httpx loads click where it finds it, so it is made not to be found.
    program = "import sys; sys.modules.update(click=None, rich=None); import crmclient.profiles"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
