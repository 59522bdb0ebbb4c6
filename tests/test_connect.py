"""connect() says what is missing, in words, before anything is sent; and importing crmclient costs next to nothing."""

import importlib
import json
import subprocess
import sys
import types
import warnings
from typing import Any

import httpx
import pytest

import crmclient
from crmclient import Contact, Misconfigured, OAuthApp, Rate, Secret, UnknownDialect, connect, dialect_names
from crmclient.client import InsecureTransport
from crmclient.dialect import Dialect
from crmclient.registry import dialect

CANARY = "CANARY-7f3a"
APP = OAuthApp(client_id="id", client_secret=CANARY, redirect_uri="https://x.test", code=CANARY)


def refusing(request: httpx.Request) -> httpx.Response:
    raise AssertionError("connect() sent something")


# ------------------------------------------------------------------------------------------------------- clear errors


def test_an_unknown_dialect_is_told_together_with_the_known_ones():
    with pytest.raises(UnknownDialect) as told:
        connect("komo", account="acme", credentials="t")
    assert "'komo'" in str(told.value)
    assert dialect_names()
    for name in dialect_names():
        assert name in str(told.value)


@pytest.mark.parametrize("name", dialect_names())
def test_an_installed_dialect_answers_to_its_name(name):
    assert dialect(name).name == name
    assert isinstance(dialect(name), Dialect)
    assert connect(name, base_url="https://x.test", credentials="t").dialect is dialect(name)


@pytest.mark.parametrize("name, kinds", [("kommo", ["OAuthApp", "AccessToken"]), ("electrum", ["AccessToken"])])
def test_missing_credentials_are_told_by_their_kinds(name, kinds):
    with pytest.raises(Misconfigured, match="needs credentials") as told:
        connect(name, base_url="https://x.test")
    for kind in kinds:
        assert kind in str(told.value)


@pytest.mark.parametrize("credentials", [b"token", 7, ("user", "password"), {"token": "t"}, object()])
def test_credentials_of_the_wrong_type_are_told_by_their_type(credentials):
    with pytest.raises(Misconfigured, match=f"not {type(credentials).__name__}"):
        connect("kommo", account="acme", credentials=credentials)


def test_credentials_a_dialect_does_not_take_are_refused_without_being_shown():
    with pytest.raises(Misconfigured, match="takes AccessToken, not OAuthApp") as told:
        connect("electrum", base_url="https://x.test", credentials=APP)
    assert CANARY not in str(told.value)


@pytest.mark.parametrize("token", ["", Secret("")])
def test_an_empty_token_is_told(token):
    with pytest.raises(Misconfigured, match="token is empty"):
        connect("kommo", account="acme", credentials=token)


def test_a_vendor_without_a_public_host_needs_a_base_url():
    with pytest.raises(Misconfigured, match="base_url"):
        connect("electrum", credentials="t")
    with pytest.raises(Misconfigured, match="base_url"):
        connect("electrum", account="acme", credentials="t")


@pytest.mark.parametrize("account", [None, ""])
def test_a_vendor_with_a_public_host_needs_an_account(account):
    with pytest.raises(Misconfigured, match="needs an account"):
        connect("kommo", account=account, credentials="t")


@pytest.mark.parametrize(
    "account",
    [
        "acme.evil.test",
        "acme.kommo.com.evil.test",
        "evil.test/acme.kommo.com",
        "acme@evil.test",
        "acme/",
        "acme:8080",
        "acme#",
        "a b",
        "-acme",
        "acme.",
        "acme\n",
        "https://acme.kommo.com",
        "..",
        "acme.sub.kommo.com",
        "аcme",
    ],
)
def test_fault_105_an_account_that_would_lead_elsewhere_is_refused(account):
    with pytest.raises(Misconfigured, match="no account of Kommo"):
        connect("kommo", account=account, credentials="t")


@pytest.mark.parametrize(
    "account, address",
    [
        ("acme", "https://acme.kommo.com"),
        ("acme.kommo.com", "https://acme.kommo.com"),
        ("acme.amocrm.ru", "https://acme.amocrm.ru"),
        ("ACME.Kommo.com", "https://ACME.Kommo.com"),
    ],
)
def test_an_account_is_its_subdomain_or_its_whole_host(account, address):
    assert connect("kommo", account=account, credentials="t").base_url.lower() == address.lower()


@pytest.mark.parametrize(
    "address",
    [
        f"https://user:{CANARY}@x.test",
        f"https://{CANARY}@x.test",
        f"https://x.test?token={CANARY}",
        f"https://x.test/#{CANARY}",
        f"htps://user:{CANARY}@x.test",
        f"https://user:{CANARY}@x.test:99999",
        f"x.test?token={CANARY}",
        f"https://user:{CANARY}@",
    ],
)
def test_a_base_url_that_holds_a_secret_is_refused_and_not_shown(address):
    with pytest.raises(Misconfigured, match="base_url") as told:
        connect("electrum", base_url=address, credentials="t")
    assert CANARY not in str(told.value)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "x.test",
        "/api",
        "ftp://x.test",
        "file:///etc/passwd",
        "https://",
        "https://:80",
        "http://[::1",
        "http://x:0",
        "http://1270.0.0.1",
    ],
)
def test_a_base_url_that_is_none_is_refused(address):
    with pytest.raises(Misconfigured, match="base_url"):
        connect("electrum", base_url=address, credentials="t")


@pytest.mark.parametrize("address", ["https://x.test\n.evil.test", "https://x\0.test", "https://x\t.test"])
def test_a_base_url_with_control_characters_is_refused_at_once(address):
    with pytest.raises(Misconfigured, match="base_url"):
        connect("electrum", base_url=address, credentials="t")


@pytest.mark.parametrize("limit, seconds", [(0, 1), (-1, 1), (7, 0), (7, -1), (7, float("nan"))])
def test_a_rate_that_is_none_is_refused_at_once(limit, seconds):
    with pytest.raises((Misconfigured, ValueError)):
        connect("kommo", account="acme", credentials="t", rate=Rate(limit, seconds))


# ---------------------------------------------------------------------------------------------------------- plain http


@pytest.mark.parametrize("host", ["x.test", "10.0.0.1", "127.0.0.1.evil.test", "127.evil.test", "localhost.evil.test"])
def test_a_token_over_plain_http_to_another_machine_warns(host):
    with pytest.warns(InsecureTransport, match="plain http") as told:
        connect("electrum", base_url=f"http://{host}:8080", credentials=CANARY)
    assert CANARY not in str(told[0].message)
    assert told[0].filename == __file__, "the warning points into the library and not at whoever called"


@pytest.mark.parametrize(
    "address",
    ["https://x.test", "http://127.0.0.1:80", "http://localhost:8080", "http://LOCALHOST", "http://[::1]:8080"],
)
def test_tls_and_loopback_do_not_warn(address):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        connect("electrum", base_url=address, credentials="t")


# ------------------------------------------------------------------------------------------------------- no I/O at all


def test_connect_touches_neither_the_network_nor_an_event_loop(monkeypatch):
    import socket

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("connect() touched the network")

    for name in ("socket", "getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    crm = connect("kommo", account="acme", credentials=APP, transport=httpx.MockTransport(refusing))
    assert CANARY not in repr(crm)
    assert "acme.kommo.com" in repr(crm)


# ------------------------------------------------------------------------------------------------------------- imports

HEAVY = ["httpx", "cattrs", "click", "rich", "starlette", "uvicorn", "filelock"]
OWN = ["crmclient.sandbox", "crmclient.cli", "crmclient.session", "crmclient.client"]


def modules_after(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def test_fault_149_150_importing_crmclient_imports_nothing_heavy_and_no_adapter():
    loaded = modules_after("import crmclient; crmclient.Contact(name='x'); crmclient.Rate(7, 1)")
    heavy = [name for name in loaded if name.partition(".")[0] in HEAVY or name.startswith(tuple(OWN))]
    adapters = [name for name in loaded if name.startswith("crmclient_")]
    assert (sorted(heavy), adapters) == ([], [])


def test_naming_one_dialect_imports_no_other_and_no_sandbox():
    loaded = modules_after("import crmclient; crmclient.connect('kommo', account='a', credentials='t')")
    adapters = {name.partition(".")[0] for name in loaded if name.startswith("crmclient_")}
    assert adapters == {"crmclient_kommo"}
    assert not [name for name in loaded if name.partition(".")[0] in ("starlette", "uvicorn")]
    assert not [name for name in loaded if "sandbox" in name and name.startswith("crmclient")]


def test_whatever_is_public_is_in_all_and_whatever_is_in_all_is_there():
    for name in crmclient.__all__:
        assert getattr(crmclient, name) is not None
    offered = {
        name
        for name, value in vars(crmclient).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType) and name not in ("TYPE_CHECKING", "Any")
    }
    assert offered - {"import_module"} <= set(crmclient.__all__)
    assert set(crmclient._LATER) <= set(crmclient.__all__)
    assert len(set(crmclient.__all__)) == len(crmclient.__all__)


def test_every_error_can_be_caught_by_a_public_name():
    errors = importlib.import_module("crmclient.errors")
    known = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, Exception) and not name.startswith("_")
    }
    assert known <= set(crmclient.__all__)


def test_what_connect_takes_and_what_it_warns_with_are_public():
    assert {"Limits", "Retry", "InsecureTransport"} <= set(crmclient.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Kontakt'"):
        crmclient.Kontakt


def test_a_star_import_brings_what_is_promised():
    found: dict[str, Any] = {}
    exec("from crmclient import *", found)
    assert set(crmclient.__all__) <= set(found)
    assert found["Contact"] is Contact
