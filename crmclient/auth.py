"""How a call is signed and a token renewed: schemes are values, a renewal is a flow, and neither keeps a secret itself."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from attrs import evolve, field, frozen

from crmclient.dialect import Call, Context, Flow, Need, Reply, Secret, Token, mapping
from crmclient.errors import AuthFailed, CRMError, ReauthorizationRequired, Rejected, Unreadable


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
    ``lifetime`` stands in where an answer tells no ``expires_in``. ``grace``: the old refresh token works until the new
    one is first used, so a renewal whose answer was lost is asked for again with it.
    """

    path: str
    refused: Callable[[CRMError], CRMError]
    lifetime: timedelta = timedelta(days=1)
    grace: bool = False
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
        return (
            yield from self._ask(credentials, None, grant_type="authorization_code", code=credentials.code.reveal())
        )

    def renew(self, credentials: OAuthApp, token: Token) -> Flow[Token]:
        if token.refresh is None:
            raise ReauthorizationRequired("the token has expired and came without a refresh token: log in again")
        asked = {"grant_type": "refresh_token", "refresh_token": token.refresh.reveal()}
        return (yield from self._ask(credentials, token.refresh, **asked))

    def _ask(self, credentials: OAuthApp, refresh: Secret | None, **grant: str) -> Flow[Token]:
        body = {
            "client_id": credentials.client_id,
            "client_secret": credentials.client_secret.reveal(),
            "redirect_uri": credentials.redirect_uri,
            **grant,
        }
        replayable = self.grace and refresh is not None
        try:
            reply: Reply = yield Call("POST", self.path, body=body, signed=False, replayable=replayable)
        except (AuthFailed, Rejected) as refusal:
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


def _lifetime(given: object, otherwise: timedelta) -> timedelta:
    """``expires_in`` as a number or as digits; the vendor's usual lifetime where it is missing or no lifetime at all."""
    try:
        seconds = int(str(given))
    except ValueError:
        return otherwise
    return timedelta(seconds=seconds) if 0 < seconds < 10**9 else otherwise
