"""A secret is typed or piped in, spent at the account's own host, and kept where the other commands find it."""

import asyncio
import sys
from contextlib import AbstractAsyncContextManager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import click
from attrs import evolve, frozen

from crmclient.auth import AccessToken, OAuthApp
from crmclient.cli.terminal import account_options, ask, harmless, say
from crmclient.client import Client
from crmclient.clock import SystemClock
from crmclient.dialect import Dialect, Secret, Token
from crmclient.errors import AuthFailed, Misconfigured, OriginRefused
from crmclient.profiles import Credentials, Profile, connected, credentials, find, secret, variable
from crmclient.tokens import TokenStore


@frozen(kw_only=True)
class Grant:
    """What a redirect brings back: a code, and the host of the account where access was granted."""

    code: Secret
    host: str | None = None


def granted(pasted: str, spoken: Dialect) -> Grant:
    """A bare code, or the whole address the browser was sent to.

    Raises OriginRefused where that names a host that is not the vendor's: the code would be spent there.
    """
    text = pasted.strip()
    if "://" not in text and "code=" not in text and "error=" not in text:
        if not text or any(letter.isspace() for letter in text):
            raise Misconfigured("that is neither a code nor the address the browser was sent to")
        return Grant(code=Secret(text))
    try:
        query = parse_qs(urlsplit(text).query or text.partition("?")[2] or text)
    except ValueError:
        raise Misconfigured("that address cannot be read; paste the whole of it, or the code alone") from None
    if "error" in query:
        raise AuthFailed(f"access was not granted: {harmless(query['error'][0])[:100]}")
    if not query.get("code"):
        raise Misconfigured(
            "that address holds no code; paste the one the browser was sent to after access was granted"
        )
    referer = query.get("referer", [""])[0].strip().lower()
    if not referer:
        return Grant(code=Secret(query["code"][0]))
    return Grant(code=Secret(query["code"][0]), host=_vendors(referer, spoken))


def _vendors(referer: str, spoken: Dialect) -> str:
    """The host, if it is one account's of this vendor and nothing else."""
    name, _, domain = referer.partition(".")
    if domain not in spoken.domains or not name.replace("-", "").isalnum() or not name.isascii():
        known = ", ".join(f"*.{domain}" for domain in spoken.domains) or "none"
        raise OriginRefused(
            f"the address says that access was granted at {harmless(referer)[:100]!r}, which is no host of "
            f"{spoken.title} ({known}); the code was not sent there"
        )
    return referer


class _NewLogin:
    """A token store that forgets what was stored before, so that the new code is spent; a new token is kept at once."""

    def __init__(self, store: TokenStore) -> None:
        self._store = store
        self._saved = False

    def lock(self, account: str) -> AbstractAsyncContextManager[object]:
        return self._store.lock(account)

    async def load(self, account: str) -> Token | None:
        return await self._store.load(account) if self._saved else None

    async def save(self, account: str, token: Token) -> None:
        await self._store.save(account, token)
        self._saved = True


@click.command("login")
@click.argument("where")
@account_options
@click.option("--client-id", metavar="ID", help="The integration's, where no profile says it.")
@click.option("--redirect-uri", metavar="URL", help="The integration's, letter by letter.")
@click.option("--long-lived", is_flag=True, help="A token made in the vendor's settings instead of a code.")
@click.option("--code-stdin", is_flag=True, help="Read the code (or the long-lived token) from stdin.")
def login(
    where: str,
    account: str | None,
    base_url: str | None,
    client_id: str | None,
    redirect_uri: str | None,
    long_lived: bool,
    code_stdin: bool,
) -> None:
    """Get a token for WHERE, check it by reading the account, and keep it for the other commands.

    Asks for the client secret and the code without an echo. The code may be pasted as it is, or as the whole address
    the browser was sent to.

    \b
    crmclient login acme
    crmclient login kommo --account acme --long-lived
    """  # noqa: D301  (\b keeps click from joining lines)
    profile = find(where, account=account, base_url=base_url)
    profile = evolve(
        profile, client_id=client_id or profile.client_id, redirect_uri=redirect_uri or profile.redirect_uri
    )
    if not profile.takes(AccessToken) and not profile.takes(OAuthApp):
        if long_lived or code_stdin:
            raise Misconfigured(f"{profile.speaks.title} takes a login with its key, no code and no token")
        told = asyncio.run(_tried(profile, credentials(profile, None, ask=ask())))
    elif long_lived or not profile.takes(OAuthApp):
        _ = profile.address  # says what is missing before anybody is asked for anything
        given = _typed(profile, "TOKEN", "Token", code_stdin)
        told = asyncio.run(_kept(profile, given))
    else:
        profile, app = _asked(profile, code_stdin)
        told = asyncio.run(_exchanged(profile, app))
    for line in told:
        click.echo(harmless(line))


def _asked(profile: Profile, code_stdin: bool) -> tuple[Profile, OAuthApp]:
    """The profile with the account where access was granted, and what to come in with."""
    client_id, redirect_uri = profile.client_id, profile.redirect_uri
    if client_id is None or redirect_uri is None:
        raise Misconfigured(
            f"logging in to {profile.name} takes the integration's client_id and redirect_uri: write them into its "
            "profile, or give --client-id and --redirect-uri; a long-lived token needs neither (--long-lived)"
        )
    app_secret = secret(profile.name, "CLIENT_SECRET") or _typed(profile, "CLIENT_SECRET", "Client secret", False)
    pasted = _typed(profile, None, "Code, or the address the browser was sent to", code_stdin)
    grant = granted(pasted.reveal(), profile.speaks)
    if grant.host is not None and profile.base_url is None:
        if profile.account is None:
            profile = evolve(profile, account=grant.host)
        elif urlsplit(profile.address).netloc.lower() != grant.host:
            raise OriginRefused(
                f"access was granted at {grant.host}, and {profile.name} is at {urlsplit(profile.address).netloc}: "
                f"the code was not sent. If {grant.host} is meant, say so: account = {grant.host!r}"
            )
    app = OAuthApp(client_id=client_id, client_secret=app_secret, redirect_uri=redirect_uri, code=grant.code)
    return profile, app


def _typed(profile: Profile, kind: str | None, question: str, from_stdin: bool) -> Secret:
    """A secret from stdin where that was asked for, else from the environment, else from a person at a terminal."""
    if from_stdin:
        piped = sys.stdin.readline().strip()
        if not piped:
            raise Misconfigured(f"stdin held nothing, and --code-stdin reads it there: {question.lower()}")
        return Secret(piped)
    found = secret(profile.name, kind) if kind else None
    if found is not None:
        return found
    asks = ask()
    if asks is not None:
        return Secret(asks(f"{question} ({profile.name})"))
    otherwise = f"set {variable(profile.name, kind)}" if kind else "pipe it in with --code-stdin"
    if kind == "TOKEN":
        otherwise += " or pipe it in with --code-stdin"
    raise Misconfigured(f"there is no terminal to ask for the {question.lower()}: {otherwise}")


async def _exchanged(profile: Profile, app: OAuthApp) -> list[str]:
    async with connected(profile, app, tokens=_NewLogin(profile.store), read_only=True) as crm:
        told = await _account(crm)
    lines = [*told, f"The token is kept in {profile.tokens} and renewed from there."]
    if secret(profile.name, "CLIENT_SECRET") is None:
        lines.append(f"Renewing takes the client secret: set {variable(profile.name, 'CLIENT_SECRET')}.")
    return lines


async def _tried(profile: Profile, given: Credentials) -> list[str]:
    async with connected(profile, given, tokens=_NewLogin(profile.store), read_only=True) as crm:
        return await _account(crm)


async def _kept(profile: Profile, given: Secret) -> list[str]:
    async with connected(profile, AccessToken(given), read_only=True) as crm:
        told = await _account(crm)
    key, store = profile.stored_as, profile.store
    async with store.lock(key):
        await store.save(key, Token(access=given, issued_at=SystemClock().now()))
    return [*told, f"The token is kept in {profile.tokens}; nobody renews it."]


async def _account(crm: Client) -> list[str]:
    """Whose token it is, as far as the dialect tells: reading it is what proves the token."""
    told: list[str] = [f"{crm.dialect.title} at {crm.base_url}"]
    parts: list[tuple[str, Any]] = []
    if "account" in crm.dialect.settings:
        account = await crm.account()
        parts += [("account", account.name), ("subdomain", account.subdomain), ("currency", account.currency)]
    if "me" in crm.dialect.settings:
        me = await crm.me()
        named = " ".join(str(part) for part in (me.name, f"<{me.email}>" if me.email else None) if part)
        parts += [("user", named or me.id)]
    if not parts:
        say(f"{crm.dialect.title} tells neither its account nor its user: the token was not tried")
    return told + [f"{name + ':':<10} {part}" for name, part in parts if part]
