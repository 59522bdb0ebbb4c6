"""How a call is signed and a token renewed: schemes are values, a renewal is a flow, and neither keeps a secret itself."""

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl, urlencode

from attrs import evolve, field, frozen

from crmclient.dialect import Call, Context, Flow, Need, Pairs, Reply, Secret, Token, mapping
from crmclient.errors import (
    AuthFailed,
    CRMError,
    Misconfigured,
    NotFound,
    ReauthorizationRequired,
    Rejected,
    Unreadable,
)


def _secret(given: "str | Secret") -> Secret:
    return Secret(given)


def _maybe_secret(given: "str | Secret | None") -> Secret | None:
    return None if given is None else Secret(given)


@frozen
class AccessToken:
    """Credentials: a token that was made in the vendor's settings and is used as it is."""

    token: Secret = field(converter=_secret)


@frozen(kw_only=True)
class OAuthApp:
    """Credentials: an OAuth2 integration. Tokens come from the store; ``code`` is spent once where the store has none."""

    client_id: str
    client_secret: Secret = field(converter=_secret)
    redirect_uri: str
    code: Secret | None = field(default=None, converter=_maybe_secret)


@frozen
class Login:
    """Credentials: a user's login with their API key (``hash``), or with their password, for a session of cookies."""

    login: str
    hash: Secret | None = field(default=None, kw_only=True, converter=_maybe_secret)
    password: Secret | None = field(default=None, kw_only=True, converter=_maybe_secret)

    def __attrs_post_init__(self) -> None:
        if not self.login or bool(self.hash) == bool(self.password):
            raise Misconfigured("a login comes with a hash or with a password: one of them")


@frozen
class LoginEachCall(Login):
    """Credentials: the same, sent with every call instead of being exchanged for a session."""


def _bearer(call: Call, token: Token) -> Call:
    return evolve(call, headers={**call.headers, "Authorization": f"Bearer {token.access.reveal()}"})


@frozen(kw_only=True)
class Bearer:
    """``Authorization: Bearer …`` with a token that nobody renews."""

    credentials: type[Any] = AccessToken

    def sign(self, call: Call, token: Token) -> Call:
        return _bearer(call, token)

    def at_hand(self, credentials: AccessToken) -> Token | None:
        return Token(access=credentials.token)

    def obtain(self, credentials: AccessToken) -> Flow[Token]:
        raise AuthFailed("this token cannot be renewed")
        yield

    def renew(self, credentials: AccessToken, token: Token) -> Flow[Token]:
        raise AuthFailed("the token was not accepted, and a token made by hand cannot be renewed: make a new one")
        yield


@frozen(kw_only=True)
class OAuth2:
    """Authorization code and a rotating refresh token, with a JSON body and Bearer calls.

    ``refused`` says what the judge's verdict on a refusal means here; ReauthorizationRequired ends a session.
    ``lifetime`` stands in where an answer tells no ``expires_in``. ``consent`` is the page where a person
    grants access, with ``{domain}`` for the account's one of the vendor's domains. A renewal is not sent again by the
    session: the keeper asks once more, because it knows what to make of a refusal then.
    """

    path: str
    refused: Callable[[CRMError], CRMError]
    lifetime: timedelta = timedelta(days=1)
    consent: str | None = None
    credentials: type[Any] = OAuthApp

    def sign(self, call: Call, token: Token) -> Call:
        return _bearer(call, token)

    def at_hand(self, credentials: OAuthApp) -> Token | None:
        return None

    def obtain(self, credentials: OAuthApp) -> Flow[Token]:
        if credentials.code is None:
            raise ReauthorizationRequired(
                "there is no token for this account yet: run `crmclient login`, or give a code"
            )
        return (yield from self._ask(credentials, None, grant_type="authorization_code", code=credentials.code))

    def renew(self, credentials: OAuthApp, token: Token) -> Flow[Token]:
        if token.refresh is None:
            raise ReauthorizationRequired("the token has expired and came without a refresh token: log in again")
        return (
            yield from self._ask(credentials, token.refresh, grant_type="refresh_token", refresh_token=token.refresh)
        )

    def _ask(self, credentials: OAuthApp, refresh: Secret | None, **grant: str | Secret) -> Flow[Token]:
        try:
            # No local holds a secret in the open: error trackers collect the locals of every frame.
            reply: Reply = yield Call("POST", self.path, body=_revealed(credentials, grant), signed=False)
        except (AuthFailed, Rejected, NotFound) as refusal:
            raise self.refused(refusal) from refusal
        context: Context = yield Need()
        assert context.now is not None  # noqa: S101  the driver always tells the time
        return self._token(reply, refresh, context.now)

    def _token(self, reply: Reply, refresh: Secret | None, now: datetime) -> Token:
        body: dict[str, Any] = mapping(reply.body)
        access = body.get("access_token")
        if not isinstance(access, str) or not access:
            # Not the body: whatever it holds may be a secret.
            raise Unreadable("the token answer holds no access_token", status=reply.status, request_id=reply.request_id)
        given = body.get("refresh_token")
        lifetime = _lifetime(body.get("expires_in"), self.lifetime)
        return Token(
            access=Secret(access),
            refresh=Secret(given) if isinstance(given, str) and given else refresh,
            issued_at=now,
            expires_at=now + lifetime,
        )


def _revealed(credentials: OAuthApp, grant: Mapping[str, str | Secret]) -> dict[str, str]:
    asked = {
        "client_id": credentials.client_id,
        "client_secret": credentials.client_secret,
        "redirect_uri": credentials.redirect_uri,
        **grant,
    }
    return {name: part.reveal() if isinstance(part, Secret) else part for name, part in asked.items()}


def _lifetime(given: object, otherwise: timedelta) -> timedelta:
    """``expires_in`` as a number or as digits; the vendor's usual lifetime where it is missing or no lifetime at all."""
    try:
        seconds = int(str(given))
    except ValueError:
        return otherwise
    return timedelta(seconds=seconds) if 0 < seconds < 10**9 else otherwise


@frozen
class LoginNames:
    """The names a vendor's form has for a login and what comes with it."""

    login: str
    hash: str
    password: str

    def form(self, credentials: Login) -> dict[str, str]:
        if credentials.hash is not None:
            return {self.login: credentials.login, self.hash: credentials.hash.reveal()}
        assert credentials.password is not None  # noqa: S101  one of the two, as Login has checked
        return {self.login: credentials.login, self.password: credentials.password.reveal()}


@frozen(kw_only=True)
class SessionLogin:
    """A login that is answered with cookies, which sign the calls until the session ends, counted from the login.

    ``accepted`` reads the answer, which may say no inside a 200.
    """

    path: str
    names: LoginNames
    accepted: Callable[[Reply], bool]
    query: Pairs = ()
    lifetime: timedelta = timedelta(minutes=15)
    credentials: type[Any] = Login

    def sign(self, call: Call, token: Token) -> Call:
        return evolve(call, headers={**call.headers, "Cookie": token.access.reveal()})

    def at_hand(self, credentials: Login) -> Token | None:
        return None

    def obtain(self, credentials: Login) -> Flow[Token]:
        # Logging in again does no harm; trying a wrong key again does: it ends in a captcha.
        call = Call("POST", self.path, self.query, body=self.names.form(credentials), signed=False, replayable=True)
        reply: Reply = yield call
        if not self.accepted(reply):
            raise AuthFailed("the login, or its key or password, is wrong", status=reply.status)
        if not reply.cookies:
            raise Unreadable("the login was accepted and no session came with it", status=reply.status)
        context: Context = yield Need()
        assert context.now is not None  # noqa: S101  the driver always tells the time
        session = "; ".join(f"{name}={part}" for name, part in reply.cookies.items())
        return Token(
            access=Secret(session), renewable=True, issued_at=context.now, expires_at=context.now + self.lifetime
        )

    def renew(self, credentials: Login, token: Token) -> Flow[Token]:
        return self.obtain(credentials)


@frozen(kw_only=True)
class LoginInBody:
    """The login in the body of every call: no session, and nothing to renew."""

    names: LoginNames
    credentials: type[Any] = LoginEachCall

    def sign(self, call: Call, token: Token) -> Call:
        return evolve(call, body={**dict(parse_qsl(token.access.reveal())), **(call.body or {})})

    def at_hand(self, credentials: LoginEachCall) -> Token | None:
        return Token(access=Secret(urlencode(self.names.form(credentials))))

    def obtain(self, credentials: LoginEachCall) -> Flow[Token]:
        raise AuthFailed("the login goes with every call; there is nothing to obtain")
        yield

    def renew(self, credentials: LoginEachCall, token: Token) -> Flow[Token]:
        raise AuthFailed("the login, or its key or password, was not accepted")
        yield
