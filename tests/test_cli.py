"""The command line is used as people and scripts use it: its words, its streams, its exit codes."""

import asyncio
import json
import os
import pty
import re
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from attrs import evolve
from click.testing import CliRunner, Result

from crmclient import AuthFailed, Misconfigured, OriginRefused, Secret
from crmclient.cli import COMMANDS, commands
from crmclient.cli.dialects import letters
from crmclient.cli.login import Landing, _asked, consent_address, granted  # pyright: ignore[reportPrivateUsage]
from crmclient.cli.read import ENTITIES
from crmclient.cli.sandbox import opened_world
from crmclient.cli.terminal import harmless, json_line
from crmclient.clock import FakeClock, SystemClock
from crmclient.dialect import ALL, COMPLETE, CREATE, READ, UPDATE
from crmclient.profiles import Profile
from crmclient.registry import dialect
from crmclient.sandbox.server import Running, face, served
from crmclient.sandbox.world import World, populate

KOMMO = dialect("kommo")


@pytest.fixture(autouse=True)
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nobody's own profiles, tokens or secrets are in the way."""
    for name in [name for name in os.environ if name.startswith("CRMCLIENT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def invoke(*words: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(commands(), list(words), input=stdin, catch_exceptions=False)


def run(*words: str, **more: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "crmclient", *words],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **more},
        timeout=60,
    )


# ------------------------------------------------------------------------------------------------------- the front


def test_help_names_every_command_and_loads_none_of_them() -> None:
    program = (
        "import sys\nfrom crmclient.cli import main\nsys.argv = ['crmclient', '--help']\n"
        "try: main()\nexcept SystemExit as end: assert not end.code\n"
        "assert not {'httpx', 'rich.table', 'crmclient.client', 'crmclient.cli.demo'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(name in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str) -> None:
    done = invoke(name, "--help")
    assert done.exit_code == 0
    assert "Usage:" in done.stdout
    assert "\\b" not in done.stdout


@pytest.mark.parametrize("name", ["list", "get", "export"])
def test_every_kind_of_row_that_can_be_asked_for_is_in_the_help(name: str) -> None:
    told = " ".join(invoke(name, "--help").stdout.split())
    assert f"ENTITY is {', '.join(tuple(ENTITIES)[:-1])} or {tuple(ENTITIES)[-1]}" in told


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_fault_149_without_its_extra_it_says_what_to_install(missing: str) -> None:
    program = f"import sys; sys.modules[{missing!r}] = None; from crmclient.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "pip install 'crmclient[cli]'" in done.stderr


def test_nonsense_is_a_usage_error() -> None:
    assert invoke("frobnicate").exit_code == 2
    assert invoke("list", "kommo", "people").exit_code == 2
    assert invoke("list", "kommo", "deals", "--updated-since", "yesterday").exit_code == 2
    assert invoke("get", "kommo", "notes", "1", "--target", "deal").exit_code == 2


def test_fault_115_nothing_from_outside_steers_the_terminal() -> None:
    assert harmless("a\x1b[31mb\x07\x9bc\u202ed\x7f\n") == "a␛[31mb␇\ufffdc\ufffdd␡⏎"
    assert harmless("one\ntwo", lines=True) == "one\ntwo"
    assert harmless("Zoë 🦄 محمد 👨‍👩‍👧") == "Zoë 🦄 محمد 👨‍👩‍👧"
    line = json_line({"name": "\x9b\u202e\ud800Ж\n"})
    assert line == '{"name": "\\u009b\\u202e\\ud800Ж\\n"}'
    assert json.loads(line) == {"name": "\x9b\u202e\ud800Ж\n"}


# --------------------------------------------------------------------------------------------------------- dialects


def test_dialects_are_shown_as_they_are() -> None:
    shown = json.loads(invoke("dialects", "--json").stdout)
    assert {"electrum", "kommo"} <= shown.keys()
    for name, told in shown.items():
        spoken = dialect(name)
        for entity, verbs in spoken.capabilities.items():
            assert set(told["entities"][entity.__name__]["verbs"]) == {str(verb) for verb in verbs}
    table = invoke("dialects").stdout
    assert "Contact" in table
    assert "electrum" in table
    assert "company rw" in invoke("dialects", "--fields").stdout.replace("\n", " ")


def test_a_field_is_told_in_letters() -> None:
    assert [letters(through) for through in (ALL, READ, READ | CREATE, CREATE, UPDATE, READ | COMPLETE)] == [
        "rw",
        "r",
        "rc",
        "c",
        "u",
        "rd",
    ]


# ---------------------------------------------------------------------------------------------------- the sandbox


def test_an_unknown_sandbox_or_switch_lists_the_known_ones() -> None:
    for words, known in (
        (("nothing",), "electrum"),
        (("kommo", "--switch", "no=1"), "shuffle-answers"),
        (("kommo", "--switch", "profile=x"), "amo"),
        (("kommo", "--switch", "shuffle-answers=maybe"), "true"),
        (("electrum", "--accept-seed-forms"), "stage-form"),
    ):
        done = invoke("sandbox", *words)
        assert done.exit_code == 1
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
        assert known in done.stderr


def test_switches_are_listed_with_their_reasons() -> None:
    shown = invoke("sandbox", "electrum", "--list-switches").stdout
    assert "stage-form" in shown
    assert "§6" in shown


def test_fault_146_a_port_in_use_is_one_line() -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = invoke("sandbox", "electrum", "--rows", "0", "--port", str(port))
    assert done.exit_code == 1
    assert done.stderr == f"error: port {port} is in use; choose another, or 0 for any free one\n"


def test_an_account_in_a_file_is_filled_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "account.db"
    with opened_world(file, 5, 1) as world:
        assert world.count("contact") == 5
        world.add("contact", {"name": "mine"})
    with opened_world(file, None, 1) as world:
        assert world.count("contact") == 6
    with opened_world(file, 9, 1) as world:
        assert world.count("contact") == 6
    assert "taken as it is" in capsys.readouterr().err


def test_a_file_that_is_no_account_is_left_alone(tmp_path: Path) -> None:
    letter, other = tmp_path / "letter.txt", tmp_path / "other.db"
    letter.write_text("Dear John, this is no database at all, and it is longer than a header.\n" * 20)
    with closing(sqlite3.connect(other)) as db:
        db.execute("CREATE TABLE counter (last)")
    for file in (letter, other):
        before = file.read_bytes()
        done = invoke("sandbox", "electrum", "--db", str(file))
        assert done.exit_code == 1
        assert str(file) in done.stderr
        assert file.read_bytes() == before


def test_a_file_half_filled_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("crmclient.cli.sandbox.populate", interrupted)
    done = invoke("sandbox", "electrum", "--db", str(tmp_path / "account.db"))
    assert done.exit_code == 130
    assert not list(tmp_path.glob("account.db*"))


@pytest.mark.e2e
@pytest.mark.parametrize("name", ["electrum", "kommo"])
def test_a_sandbox_prints_a_script_that_runs(name: str, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "crmclient", "sandbox", name, "--rows", "7"]
    sandbox = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert sandbox.stdout is not None
        said = ""
        while "asyncio.run(main())" not in said:
            line = sandbox.stdout.readline()
            assert line, said
            said += line
        pasted = tmp_path / "pasted.py"
        pasted.write_text(said[said.index("import asyncio") :], encoding="utf-8")
        assert len(pasted.read_text().splitlines()) == 6
        done = subprocess.run([sys.executable, str(pasted)], capture_output=True, text=True, check=True)
        assert done.stdout.count("'") + done.stdout.count('"') >= 10
        (base_url,) = re.findall(r"base address: (\S+)", said)
        (token,) = re.findall(r"^token: (\S+)", said, re.MULTILINE)
        listed = run("list", name, "contacts", "--base-url", base_url, CRMCLIENT_TOKEN=token)
        assert len(listed.stdout.splitlines()) == 7
    finally:
        sandbox.send_signal(signal.SIGINT)
        _, err = sandbox.communicate(timeout=20)
    assert sandbox.returncode == 130
    assert "Traceback" not in err


# ---------------------------------------------------------------------------------------------------------- reading


@pytest.fixture(scope="module")
def electrum() -> Iterator[Running]:
    with World(clock=SystemClock()) as world:
        populate(world, contacts=120, companies=5, deals=9, tasks=5, seed=1, as_rows=False)
        world.add("contact", {"name": "\x1b]0;owned\x07\x1b[31mred", "phones": [{"value": "+7", "label": "work"}]})
        with served(face("electrum"), world) as running:
            yield running


@pytest.fixture
def reading(electrum: Running, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("CRMCLIENT_TOKEN", electrum.credentials["token"])
    return ["--base-url", electrum.base_url]


@pytest.mark.e2e
def test_machines_get_json_lines_of_all_rows(reading: list[str]) -> None:
    done = invoke("list", "electrum", "contacts", *reading)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 121
    assert rows[-1]["name"] == "\x1b]0;owned\x07\x1b[31mred"
    assert "raw" not in rows[0]
    assert "\x1b" not in done.stdout
    (raw,) = invoke("list", "electrum", "contacts", "--limit", "1", "--raw", *reading).stdout.splitlines()
    assert json.loads(raw)["raw"]["id"] == rows[0]["id"]


@pytest.mark.e2e
def test_people_get_a_table_and_are_told_what_it_leaves_out(reading: list[str]) -> None:
    done = invoke("list", "electrum", "contacts", "--table", *reading)
    assert len(done.stdout.splitlines()) == 51
    assert "the first 50 rows" in done.stderr
    last = invoke("list", "electrum", "contacts", "--table", "--text", "owned", *reading)
    assert "␛]0;owned" in last.stdout
    assert "\x1b" not in last.stdout
    deals = invoke("list", "electrum", "deals", "--table", *reading)
    ids = [json.loads(line)["id"] for line in invoke("list", "electrum", "deals", *reading).stdout.splitlines()]
    assert all(str(id) in deals.stdout for id in ids)


@pytest.mark.e2e
def test_filters_are_the_same_words_everywhere(electrum: Running, reading: list[str]) -> None:
    deals = electrum.world.select("deal")
    owner = deals[0]["owner"]
    done = invoke("list", "electrum", "deals", "--owner", str(owner), *reading)
    assert len(done.stdout.splitlines()) == sum(deal["owner"] == owner for deal in deals)
    none = invoke("list", "electrum", "deals", "--updated-since", "2099-01-01", *reading)
    assert (none.exit_code, none.stdout) == (0, "")
    refused = invoke("list", "electrum", "contacts", "--owner", "1", *reading)
    assert refused.exit_code == 1
    assert "error: Electrum contacts cannot be filtered by owner" in refused.stderr


@pytest.mark.e2e
def test_one_row_is_shown(electrum: Running, reading: list[str]) -> None:
    id = electrum.world.select("contact", limit=1)[0]["id"]
    assert json.loads(invoke("get", "electrum", "contacts", str(id), *reading).stdout)["id"] == id
    assert str(id) in invoke("get", "electrum", "contacts", str(id), "--table", *reading).stdout
    for wrong, said in (("99999999", "не найден"), ("a/../b", "positive whole number")):
        done = invoke("get", "electrum", "contacts", wrong, *reading)
        assert done.exit_code == 1
        assert said in done.stderr
        assert done.stdout == ""


@pytest.mark.e2e
def test_a_reader_that_has_enough_is_no_error(electrum: Running, reading: list[str]) -> None:
    line = (
        f"{sys.executable} -m crmclient list electrum contacts {' '.join(reading)} | head -1; echo ${{PIPESTATUS[0]}}"
    )
    done = subprocess.run(["/bin/bash", "-c", line], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "0"


@pytest.mark.e2e
def test_a_profile_says_where_and_the_environment_says_how(electrum: Running, tmp_path: Path) -> None:
    (tmp_path / "crmclient.toml").write_text(
        f'[profiles.shop]\ndialect = "electrum"\nbase_url = "{electrum.base_url}"\n'
    )
    done = run("list", "shop", "users", CRMCLIENT_SHOP_TOKEN=electrum.credentials["token"], CRMCLIENT_TOKEN="wrong")
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 3)
    refused = run("list", "shop", "users", CRMCLIENT_SHOP_TOKEN="sesame-open")
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: ")
    assert "sesame-open" not in refused.stderr + refused.stdout
    nothing = run("list", "shop", "users")
    assert nothing.returncode == 1
    assert "CRMCLIENT_SHOP_TOKEN" in nothing.stderr


# ------------------------------------------------------------------------------------------------------------ login


def test_a_code_is_taken_bare_or_from_the_address() -> None:
    assert granted(" def502abc \n", KOMMO).code == Secret("def502abc")
    whole = "https://me.example/oauth?code=def502abc&referer=acme.kommo.com&state=1&from_widget=1"
    assert granted(whole, KOMMO).code == Secret("def502abc")
    assert granted(whole, KOMMO).host == "acme.kommo.com"
    assert granted("?code=c&referer=acme.amocrm.ru", KOMMO).host == "acme.amocrm.ru"
    assert "def502abc" not in repr(granted(whole, KOMMO))


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "kommo.com",
        "kommo.com.evil.example",
        "acme.kommo.com.evil.example",
        "a.b.kommo.com",
        "evilkommo.com",
        "acme.kommo.com:8080",
        "acme@evil.kommo.com",
        "acme.kommo.com/../evil",
        "аcme.kommo.com",
    ],
)
def test_a_code_is_not_spent_at_a_host_that_is_not_the_vendors(host: str) -> None:
    with pytest.raises(OriginRefused, match="no host of Kommo"):
        granted(f"https://me.example/?code=c&referer={host}", KOMMO)


def test_an_address_without_a_code_says_so() -> None:
    with pytest.raises(Misconfigured, match="no code"):
        granted("https://me.example/?state=1", KOMMO)
    with pytest.raises(AuthFailed, match="access_denied"):
        granted("https://me.example/?error=access_denied", KOMMO)
    for nothing in ("", "two words"):
        with pytest.raises(Misconfigured):
            granted(nothing, KOMMO)


REDIRECT = "http://127.0.0.1:{port}/oauth"


def free_port() -> int:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


async def visited(port: int, target: str, method: str = "GET") -> tuple[int, str]:
    """What a browser would see; it is there before the server is."""
    for _ in range(1000):
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            break
        except OSError:
            await asyncio.sleep(0)
    writer.write(f"{method} {target} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    answer = (await reader.read()).decode()
    writer.close()
    return int(answer.split()[1]), answer


@pytest.mark.asyncio
async def test_fault_085_the_landing_takes_one_code_with_its_own_state_of_an_account_of_the_vendors(
    capsys: pytest.CaptureFixture[str],
) -> None:
    port = free_port()
    landing = Landing(REDIRECT.format(port=port), KOMMO)
    waiting = asyncio.create_task(landing.wait(3600))
    right = f"/oauth?code=def502abc&state={landing.state}&referer=acme.kommo.com"
    for target, method, status in (
        (f"/oauth?code=evil&state={landing.state[:-1]}&referer=acme.kommo.com", "GET", 400),
        (f"/oauth?code=evil&state={landing.state}&state=x", "GET", 400),
        ("/oauth?code=evil&referer=acme.kommo.com", "GET", 400),
        ("/oauth?code=evil&state=%D0%96", "GET", 400),
        (f"/oauth?state={landing.state}", "GET", 400),
        (right.replace("/oauth", "/other"), "GET", 404),
        (right, "POST", 405),
        ("/favicon.ico", "GET", 404),
    ):
        assert (await visited(port, target, method))[0] == status, target
        assert not waiting.done()
    idle = await asyncio.open_connection("127.0.0.1", port)  # browsers open such ones, just in case
    status, page = await visited(port, right)
    assert (status, "def502abc" in page, "no-store" in page) == (200, False, True)
    grant = await waiting
    assert (grant.code, grant.host) == (Secret("def502abc"), "acme.kommo.com")
    # Nobody listens any more, and the answer stays what it was.
    with pytest.raises(OSError):
        await asyncio.open_connection("127.0.0.1", port)
    assert landing._judged(f"GET {right.replace('abc', 'xyz')} HTTP/1.1") == 410  # pyright: ignore[reportPrivateUsage]
    idle[1].close()
    said = capsys.readouterr()
    assert said.err.count("another state") == 1
    assert "def502abc" not in said.out + said.err


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ("code=c&referer=evil.example", OriginRefused),
        ("code=c&referer=acme.kommo.com.evil.example", OriginRefused),
        ("error=access_denied", AuthFailed),
    ],
)
@pytest.mark.asyncio
async def test_fault_085_an_answer_of_a_foreign_host_or_a_refusal_ends_the_login(
    query: str, error: type[Exception]
) -> None:
    port = free_port()
    landing = Landing(REDIRECT.format(port=port), KOMMO)
    waiting = asyncio.create_task(landing.wait(3600))
    status, page = await visited(port, f"/oauth?{query}&state={landing.state}")
    assert (status, "evil" in page) == (403, False)
    with pytest.raises(error):
        await waiting


def test_fault_085_a_pasted_address_with_another_state_is_not_taken() -> None:
    address = "https://me.example/?code=c&referer=acme.kommo.com"
    assert granted(f"{address}&state=mine", KOMMO, "mine").host == "acme.kommo.com"
    assert granted(address, KOMMO, "mine").code == Secret("c")
    for state in ("yours", "Ж"):
        with pytest.raises(AuthFailed, match="another state"):
            granted(f"{address}&state={state}&state=mine", KOMMO, "mine")


def test_fault_085_a_state_is_compared_in_constant_time_and_kept_out_of_sight(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return False  # whatever they are: nothing else decides

    monkeypatch.setattr("hmac.compare_digest", compare)
    landing = Landing(REDIRECT.format(port=1), KOMMO)
    assert landing._judged(f"GET /oauth?code=c&state={landing.state} HTTP/1.1") == 400  # pyright: ignore[reportPrivateUsage]
    assert compared == [(landing.state.encode(), landing.state.encode())]
    assert landing.state not in repr(landing)
    assert len(landing.state) >= 43
    assert Landing(landing.redirect_uri, KOMMO).state != landing.state


@pytest.mark.asyncio
async def test_a_landing_nobody_comes_to_ends_and_a_port_in_use_says_so() -> None:
    port = free_port()
    with pytest.raises(TimeoutError, match=rf"127.0.0.1:{port}/oauth within 300 seconds"):
        await Landing(REDIRECT.format(port=port), KOMMO).wait(300, FakeClock())
    with closing(socket.socket()) as taken, pytest.raises(OSError, match="in use"):
        taken.bind(("127.0.0.1", port))
        taken.listen()
        await Landing(REDIRECT.format(port=port), KOMMO).wait(300, FakeClock())


def test_where_the_browser_cannot_come_back_the_code_is_pasted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRMCLIENT_CLIENT_SECRET", "s-e-c-r-e-t")
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        redirect = REDIRECT.format(port=taken.getsockname()[1])
        words = ("login", "kommo", "--account", "acme", "--client-id", "i", "--redirect-uri", redirect)
        done = invoke(*words)
        assert done.exit_code == 1
        for told in (
            "https://www.kommo.com/oauth?mode=popup&client_id=i&state=",
            "cannot be listened on",
            "--code-stdin",
        ):
            assert told in done.stderr
        asked: list[str] = []
        monkeypatch.setattr("crmclient.cli.login.ask", lambda: lambda question: asked.append(question) or "pasted")
        opened: list[str] = []
        monkeypatch.setattr("webbrowser.open", opened.append)
        whose = Profile(name="acme", dialect="kommo", account="acme", client_id="i", redirect_uri=redirect)
        _, app = _asked(whose, False, paste=False, browser=True, wait=1)
    assert (app.code, len(asked), opened) == (Secret("pasted"), 1, [])  # no terminal, so no browser either


@pytest.mark.asyncio
async def test_the_landing_outlives_visitors_that_are_no_browsers() -> None:
    port = free_port()
    landing = Landing(REDIRECT.format(port=port), KOMMO)
    waiting = asyncio.create_task(landing.wait(3600))
    for noise in (b"", b"\x16\x03\x01" * 9 + b"\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"x" * (1 << 17)):
        await visited(port, "/favicon.ico")
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(noise)
        writer.write_eof()
        with suppress(OSError):
            await reader.read()
        writer.close()
    assert (await visited(port, f"/oauth?code=c&state={landing.state}"))[0] == 200
    assert (await waiting).code == Secret("c")


@pytest.mark.parametrize(
    "redirect",
    [
        "https://127.0.0.1:8000/",
        "http://me.example:8000/",
        "http://127.0.0.1/",
        "http://0.0.0.0:80/",
        "r",
        "http://[::",
    ],
)
def test_a_redirect_address_elsewhere_is_not_listened_on(redirect: str) -> None:
    assert not Landing.fits(redirect)
    assert Landing.fits("http://localhost:8000/oauth")


def test_the_page_where_access_is_granted_is_the_vendors_own() -> None:
    acme = Profile(name="acme", dialect="kommo", account="acme.amocrm.ru")
    page = consent_address(acme, "the id", "s&t")
    assert page == "https://www.amocrm.ru/oauth?mode=popup&client_id=the+id&state=s%26t"
    assert "//www.kommo.com/oauth?" in (consent_address(Profile(name="k", dialect="kommo"), "i", "s") or "")
    assert consent_address(Profile(name="e", dialect="electrum", base_url="http://127.0.0.1:1"), "i", "s") is None


@pytest.fixture
def kommo() -> Iterator[Running]:
    with World(clock=SystemClock()) as world:
        populate(world, contacts=3)
        with served(face("kommo"), world) as running:
            yield running


def profile(folder: Path, kommo: Running) -> None:
    card = kommo.credentials
    (folder / "crmclient.toml").write_text(
        f'[profiles.roga]\ndialect = "kommo"\nbase_url = "{kommo.base_url}"\n'
        f'client_id = "{card["client_id"]}"\nredirect_uri = "{card["redirect_uri"]}"\n'
    )


@pytest.mark.e2e
def test_a_login_is_kept_and_found_again(kommo: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile(tmp_path, kommo)
    card = kommo.credentials
    monkeypatch.setenv("CRMCLIENT_ROGA_CLIENT_SECRET", card["client_secret"])
    pasted = f"{card['redirect_uri']}?code={card['code']}&referer=roga.kommo.com\n"
    done = invoke("login", "roga", "--code-stdin", stdin=pasted)
    assert done.exit_code == 0, done.output
    for told in ("Рога и Копыта", "roga", "RUB", "olga@roga.example"):
        assert told in done.stdout
    for hidden in (card["client_secret"], card["code"]):
        assert hidden not in done.output
    (kept,) = (tmp_path / "state" / "crmclient" / "tokens").glob("*.json")
    assert kept.stat().st_mode & 0o777 == 0o600
    assert len(invoke("list", "roga", "contacts").stdout.splitlines()) == 3
    # Without the secret the token serves while it lives.
    monkeypatch.delenv("CRMCLIENT_ROGA_CLIENT_SECRET")
    assert len(invoke("list", "roga", "contacts").stdout.splitlines()) == 3


@pytest.mark.e2e
def test_a_browser_that_comes_back_logs_in(kommo: Running, tmp_path: Path) -> None:
    profile(tmp_path, kommo)
    card, port = kommo.credentials, free_port()
    file, redirect = tmp_path / "crmclient.toml", REDIRECT.format(port=port)
    file.write_text(file.read_text().replace(card["redirect_uri"], redirect))
    registered = kommo.account.issued["grants"].integrations
    registered[card["client_id"]] = evolve(registered[card["client_id"]], redirect_uri=redirect)
    words = [sys.executable, "-m", "crmclient", "login", "roga", "--wait", "60"]
    variables = {**os.environ, "CRMCLIENT_CLIENT_SECRET": card["client_secret"]}
    login = subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables
    )
    assert login.stderr is not None
    said = login.stderr.readline() + login.stderr.readline()
    (state,) = re.findall(r"https://www\.kommo\.com/oauth\?.*state=(\S+)", said)
    status, _ = asyncio.run(visited(port, f"/oauth?code={card['code']}&state={state}&referer=roga.kommo.com"))
    assert status == 200
    out, err = login.communicate(timeout=30)
    assert (login.returncode, "Рога и Копыта" in out) == (0, True), err
    assert card["client_secret"] not in out + err + said


@pytest.mark.e2e
@pytest.mark.parametrize("name", ["amocrm", "amoxml"])
def test_a_login_with_its_key_reads_from_the_command_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with World(clock=SystemClock()) as world:
        populate(world, contacts=4)
        with served(face(name), world) as running:
            card = running.credentials
            (tmp_path / "crmclient.toml").write_text(
                f'[profiles.shop]\ndialect = "{name}"\nbase_url = "{running.base_url}"\n'
                f'zone = "Europe/Moscow"\nlogin = "{card["login"]}"\n'
            )
            nothing = invoke("list", "shop", "contacts")
            assert (nothing.exit_code, "CRMCLIENT_SHOP_HASH" in nothing.stderr) == (1, True)
            # A token that lies about is not taken for the key of the login that the profile names.
            monkeypatch.setenv("CRMCLIENT_TOKEN", "of-another-account")
            monkeypatch.setenv("CRMCLIENT_SHOP_HASH", card["hash"])
            done = invoke("login", "shop")
            assert (done.exit_code, card["hash"] in done.output) == (0, False), done.output
            assert len(invoke("list", "shop", "contacts").stdout.splitlines()) == 4
            well = invoke("doctor", "shop")
            assert well.exit_code == 0, well.output
            assert sum(count for call, count in running.stats.calls.items() if call.endswith("auth.php")) == 1
            monkeypatch.setenv("CRMCLIENT_SHOP_HASH", "wrong-key")
            assert invoke("login", "shop").exit_code == 1
            sick = invoke("doctor", "shop", "--json")
            assert (sick.exit_code, "wrong-key" in sick.output) == (0, False)  # the session still lives


@pytest.mark.e2e
def test_a_spent_code_is_refused_and_the_old_token_stays(
    kommo: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile(tmp_path, kommo)
    monkeypatch.setenv("CRMCLIENT_CLIENT_SECRET", kommo.credentials["client_secret"])
    code = kommo.credentials["code"] + "\n"
    assert invoke("login", "roga", "--code-stdin", stdin=code).exit_code == 0
    again = invoke("login", "roga", "--code-stdin", stdin=code)
    assert again.exit_code == 1
    assert "Authorization code has been revoked" in again.stderr
    assert len(invoke("list", "roga", "contacts").stdout.splitlines()) == 3


@pytest.mark.e2e
@pytest.mark.parametrize("name", ["electrum", "kommo"])
def test_a_long_lived_token_is_tried_kept_and_found_again(name: str, tmp_path: Path) -> None:
    with World(clock=SystemClock()) as world, served(face(name), world) as running:
        where = ["--base-url", running.base_url]
        refused = invoke("login", name, *where, "--long-lived", "--code-stdin", stdin="wrong-token\n")
        assert refused.exit_code == 1
        assert "wrong-token" not in refused.output
        assert not list(tmp_path.rglob("*.json"))
        token = running.credentials["token"]
        done = invoke("login", name, *where, "--long-lived", "--code-stdin", stdin=token + "\n")
        assert done.exit_code == 0, done.output
        assert "Ольга Смирнова" in done.stdout
        assert token not in done.output
        assert len(invoke("list", name, "users", *where).stdout.splitlines()) == 3


def test_what_login_lacks_is_said_before_anybody_is_asked() -> None:
    for words, said in (
        (("kommo", "--account", "acme"), "--client-id"),
        (("kommo", "--account", "acme", "--long-lived"), "CRMCLIENT_KOMMO_TOKEN"),
        (("kommo", "--long-lived"), "needs an account"),
        (("electrum",), "base_url"),
        (("electrum", "--base-url", "http://127.0.0.1:1", "--code-stdin"), "stdin held nothing"),
        (("kommo", "--account", "acme", "--client-id", "i", "--redirect-uri", "r"), "CRMCLIENT_KOMMO_CLIENT_SECRET"),
    ):
        done = invoke("login", *words)
        assert done.exit_code == 1
        assert said in done.stderr
        assert done.stdout == ""


def test_access_granted_in_another_account_is_not_taken_for_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRMCLIENT_CLIENT_SECRET", "s")
    words = ("login", "kommo", "--account", "acme", "--client-id", "i", "--redirect-uri", "r", "--code-stdin")
    done = invoke(*words, stdin="https://me.example/?code=c&referer=other.kommo.com\n")
    assert done.exit_code == 1
    assert "other.kommo.com" in done.stderr
    assert "acme.kommo.com" in done.stderr


@pytest.mark.e2e
@pytest.mark.skipif(os.name == "nt", reason="there are no such terminals there")
def test_fault_145_what_is_typed_is_not_echoed(electrum: Running) -> None:
    main, terminal = pty.openpty()
    words = [sys.executable, "-m", "crmclient", "login", "electrum", "--base-url", electrum.base_url]
    login = subprocess.Popen(words, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True)
    os.close(terminal)
    seen = b""
    while b"Token (electrum): " not in seen:
        seen += os.read(main, 4096)
    os.write(main, electrum.credentials["token"].encode() + b"\n")
    while True:
        try:
            more = os.read(main, 4096)
        except OSError:  # the other side is closed
            break
        if not more:
            break
        seen += more
    assert login.wait(timeout=20) == 0
    os.close(main)
    assert "Ольга Смирнова" in seen.decode()
    assert electrum.credentials["token"] not in seen.decode()
