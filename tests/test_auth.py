"""A code is spent once, and a secret is shown to nobody: not in a repr, a log, an error, a traceback or a pickle."""

import asyncio
import json
import logging
import pickle
import traceback

import httpx
import pytest
from attrs import evolve, frozen
from tokenshop import APP, BASE, TOKEN, Vendor, at, shop, stale, told_of

from crmclient import (
    AuthFailed,
    Contact,
    CRMError,
    MemoryTokens,
    Misconfigured,
    ReauthorizationRequired,
    Secret,
    connect,
)
from crmclient.auth import AccessToken, Bearer, Login, LoginEachCall, LoginInBody, LoginNames
from crmclient.clock import FakeClock
from crmclient.dialect import Call, Token, read
from crmclient.registry import dialect
from crmclient.serial import to_tree

# ------------------------------------------------------------------------------------------------------ coming in


@pytest.mark.asyncio
async def test_a_code_is_spent_once_and_the_token_kept_for_the_next_client():
    async with shop() as given:
        async with given.client(given.grants.mint_code()) as crm:
            await crm.account()
            await crm.me()
        assert given.token_calls == 1
        async with given.client() as crm:
            await crm.account()
        assert given.token_calls == 1


@pytest.mark.asyncio
async def test_without_a_token_and_a_code_a_person_is_asked_and_nothing_is_sent():
    async with shop() as given, given.client() as crm:
        with pytest.raises(ReauthorizationRequired, match="crmclient login"):
            await crm.account()
        assert given.wire.events == []


@pytest.mark.asyncio
async def test_a_spent_code_is_not_hammered():
    async with shop() as given:
        code = given.grants.mint_code()
        async with given.client(code, tokens=MemoryTokens()) as crm:
            await crm.account()
        async with given.client(code, tokens=MemoryTokens()) as crm:
            told = await asyncio.gather(*(crm.account() for _ in range(10)), return_exceptions=True)
            assert {type(error) for error in told} == {ReauthorizationRequired}
            with pytest.raises(ReauthorizationRequired):
                await crm.account()
        assert given.token_calls == 2


# ------------------------------------------------------------------------------------------------ nothing shows a secret


def test_a_secret_shows_itself_only_when_asked():
    secret = Secret("CANARY")
    shown = [repr(secret), str(secret), f"{secret}", "%s %r" % (secret, secret), repr([secret]), repr({secret: secret})]  # noqa: UP031
    shown += [repr(AccessToken(secret)), repr(TOKEN), repr(APP), str(to_tree(TOKEN)), repr(Login("u", hash=secret))]
    shown += [repr(LoginEachCall("u", password="CANARY"))]
    assert "CANARY" not in " ".join(shown)
    assert secret.reveal() == "CANARY"
    assert Secret(secret) == secret == Secret("CANARY") != "CANARY"
    assert hash(secret) == hash(Secret("CANARY"))
    assert bool(secret) is True
    assert bool(Secret("")) is False


@pytest.mark.parametrize(
    "value", [Secret("CANARY"), AccessToken("CANARY"), APP, TOKEN], ids=lambda value: type(value).__name__
)
def test_a_secret_is_not_pickled(value):
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="not pickled"):
            pickle.dumps(value, protocol)
    with pytest.raises(TypeError):
        json.dumps(value)


def test_a_secret_does_not_stand_in_a_traceback_that_shows_locals():
    def use(secret: Secret) -> None:
        held = {"secret": secret, "app": APP, "token": TOKEN}
        raise RuntimeError(f"{len(held)} {secret}")

    def shown(canary: str) -> str:
        try:
            use(Secret(canary))
        except RuntimeError as error:
            canary = ""
            return "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
        return ""

    told = shown("CANARY")
    assert "Secret(…)" in told
    assert "CANARY" not in told


@pytest.mark.asyncio
async def test_no_repr_of_what_a_client_is_made_of_shows_a_token():
    clock = FakeClock()
    store = await stale(clock)
    vendor = Vendor([{"access_token": "CANARY-new", "refresh_token": "CANARY-newer"}])
    async with at(vendor, clock, store) as crm:
        await crm.call(read("/x"))
        session = crm._session
        parts = [crm, session, session._setup, session._keeper, store, session._setup.credentials, crm.contacts]
        parts += [session._keeper.held, crm.spent, session._http, session._pacer]
        assert "CANARY" not in " ".join(f"{part!r} {part}" for part in parts)


def test_a_signed_call_does_not_show_what_it_was_signed_with():
    token = Token(access=Secret("CANARY"))
    signed = Bearer().sign(read("/x"), token)
    assert signed.headers["Authorization"] == "Bearer CANARY"
    assert "CANARY" not in f"{signed!r} {signed}"
    names = LoginNames("USER_LOGIN", "USER_HASH", "USER_PASSWORD")
    scheme = LoginInBody(names=names)
    login = scheme.at_hand(LoginEachCall("u", hash="CANARY"))
    assert login is not None
    assert "CANARY" not in repr(scheme.sign(Call("POST", "/x"), login))


ECHOES = {
    "an HTML page": lambda sent: (200, f"<html>you sent {sent}</html>"),
    "broken JSON": lambda sent: (200, f'{{"you sent": "{sent}'),
    "a JSON error": lambda sent: (400, json.dumps({"title": "Bad", "detail": f"token {sent} is odd", "hint": sent})),
    "a validation error": lambda sent: (
        400,
        json.dumps(
            {"validation-errors": [{"request_id": "0", "errors": [{"code": sent, "path": "name", "detail": sent}]}]}
        ),
    ),
    "a 401": lambda sent: (401, json.dumps({"title": sent, "detail": f"the token {sent} has expired"})),
    "a 500": lambda sent: (500, json.dumps({"detail": sent})),
    "an odd list": lambda sent: (200, json.dumps({"_embedded": {"contacts": sent}})),
}


@pytest.mark.asyncio
@pytest.mark.parametrize("length", [20, 1000])
@pytest.mark.parametrize("how", ECHOES)
@pytest.mark.parametrize("write", [False, True])
async def test_fault_111_a_server_that_echoes_the_token_does_not_get_it_into_an_error(how, length, write):
    token = "CANARY" * (length // 6)

    def echo(request: httpx.Request) -> httpx.Response:
        status, text = ECHOES[how](request.headers["authorization"].removeprefix("Bearer "))
        return httpx.Response(status, stream=httpx.ByteStream(text.encode()))

    transport = httpx.MockTransport(echo)
    async with connect("kommo", base_url=BASE, credentials=token, transport=transport, clock=FakeClock()) as crm:
        with pytest.raises(CRMError) as told:
            if write:
                await crm.contacts.create(Contact(name="Ivan"))
            else:
                await anext(aiter(crm.contacts.pages()))
    assert "CANARY" not in told_of(told.value)


@pytest.mark.asyncio
@pytest.mark.parametrize("status", [401, 500])
async def test_fault_109_a_traceback_that_shows_locals_shows_no_token(status):
    """Error trackers collect the locals of every frame; of ours none may hold a credential in the open."""

    def fail(request: httpx.Request) -> httpx.Response:
        return httpx.Response(status, stream=httpx.ByteStream(b"{}"))

    clock = FakeClock()
    store = await stale(clock)
    wire = httpx.MockTransport(fail)
    shown = ""
    for credentials in ("CANARY-by-hand", APP):
        async with connect(
            "kommo", base_url=BASE, credentials=credentials, tokens=store, transport=wire, clock=clock
        ) as crm:
            with pytest.raises(CRMError) as told:
                await crm.account()
        found = traceback.TracebackException.from_exception(told.value, capture_locals=True)
        shown += "".join(
            line for line in found.format() if "/crmclient/" in line
        )  # frames of ours; httpx's own are cut off by `from None`
    assert shown
    assert "CANARY" not in shown


@pytest.mark.asyncio
async def test_a_token_no_header_may_hold_stands_in_no_local_either():
    transport = httpx.MockTransport(lambda request: httpx.Response(200))
    async with connect("kommo", base_url=BASE, credentials="CANARY\nX: 1", transport=transport) as crm:
        with pytest.raises(Misconfigured) as told:
            await crm.account()
    found = traceback.TracebackException.from_exception(told.value, capture_locals=True)
    assert not [line for line in found.format() if "/crmclient/" in line and "CANARY" in line]


@pytest.mark.asyncio
async def test_fault_108_no_secret_gets_into_a_log_at_any_level(caplog):
    caplog.set_level(logging.DEBUG)
    for name in ("httpx", "httpcore", "crmclient", "asyncio", "filelock"):
        caplog.set_level(logging.DEBUG, logger=name)
    async with shop() as given:
        code = given.grants.mint_code()
        secrets = {code, given.grants.integration.client_secret}
        async with given.client(code) as crm:
            await crm.account()
            first = await given.held()
            given.grants.revoke_access(first.access.reveal())
            await crm.me()
            second = await given.held()
            secrets |= {first.access.reveal(), first.refresh.reveal()}
            secrets |= {second.access.reveal(), second.refresh.reveal()}
            given.grants.disable()
            with pytest.raises(AuthFailed):
                await crm.call(read("/api/v4/account"))
    told = "\n".join(f"{record.getMessage()} {record.args!r} {record.exc_text}" for record in caplog.records)
    assert "access_token" in told or "HTTP Request" in told, "nothing was logged at all: this test sees nothing"
    assert not [secret[:12] for secret in secrets if secret in told]


@frozen(kw_only=True)
class InQuery(Bearer):
    """As the legacy API of one vendor wants it: the key in the address."""

    def sign(self, call: Call, token: Token) -> Call:
        return call.with_query(("USER_HASH", token.access.reveal()))


@pytest.mark.asyncio
@pytest.mark.parametrize("fails", [False, True])
async def test_fault_108_a_key_in_the_address_gets_neither_into_a_log_nor_into_an_error(caplog, fails):
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, logger="httpx")

    def handler(request: httpx.Request) -> httpx.Response:
        if fails:
            raise httpx.ReadError(f"reset while talking to {request.url}")
        return httpx.Response(200, stream=httpx.ByteStream(b'{"id":1}'))

    spoken = evolve(dialect("kommo"), auth=(InQuery(),))
    transport = httpx.MockTransport(handler)
    shown = ""
    async with connect(spoken, base_url=BASE, credentials="CANARY-hash", transport=transport, clock=FakeClock()) as crm:
        try:
            await crm.call(read("/x"))
        except CRMError as error:
            shown = told_of(error)
    shown += "\n".join(f"{record.getMessage()} {record.args!r}" for record in caplog.records)
    assert "CANARY" not in shown


@pytest.mark.asyncio
async def test_a_vendors_cookie_signs_nothing_unless_a_scheme_says_so():
    seen: list[str | None] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("cookie"))
        return httpx.Response(200, headers={"set-cookie": "s=1; Path=/"}, stream=httpx.ByteStream(b'{"id":1}'))

    transport = httpx.MockTransport(handler)
    async with connect("kommo", base_url=BASE, credentials="t", transport=transport, clock=FakeClock()) as crm:
        await crm.call(read("/x"))
        await crm.call(read("/x"))
    assert seen == [None, None]
