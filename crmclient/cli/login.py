"""A secret is typed or piped in, spent at the account's own host, and kept where the other commands find it."""

import asyncio
import hmac
import secrets
import sys
import webbrowser
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any, Final
from urllib.parse import parse_qs, urlencode, urlsplit

import click
from attrs import define, evolve, field, frozen

from crmclient import flows
from crmclient.auth import AccessToken, OAuth2, OAuthApp
from crmclient.cli.terminal import account_options, ask, harmless, say
from crmclient.client import Client
from crmclient.clock import SYSTEM_CLOCK, Clock, SystemClock
from crmclient.dialect import Dialect, Filter, Listing, Secret, Token, Verb
from crmclient.entities import Company, Contact, Deal, Task
from crmclient.errors import AuthFailed, CRMError, Misconfigured, OriginRefused, TokenStoreFailed
from crmclient.profiles import Credentials, Profile, connected, credentials, find, secret, variable
from crmclient.session import is_loopback
from crmclient.tokens import Spending, TokenStore


@frozen(kw_only=True)
class Grant:
    """What a redirect brings back: a code, and the host of the account where access was granted."""

    code: Secret
    host: str | None = None


def granted(pasted: str, spoken: Dialect, state: str | None = None) -> Grant:
    """A bare code, or the whole address the browser was sent to.

    ``state`` is what this login has sent along; an address that brings back another is the answer to something else.
    Raises OriginRefused where the address names a host that is not the vendor's: the code would be spent there.
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
    if state is not None and not _same(query.get("state", [state])[0], state):
        raise AuthFailed("that address is not the answer to this login: it brings back another state; begin again")
    if "error" in query:
        raise AuthFailed(f"access was not granted: {harmless(query['error'][0])[:100]}")
    if not query.get("code"):
        raise Misconfigured(
            "that address holds no code; paste the one the browser was sent to after access was granted"
        )
    # Bare, as was seen; a scheme is taken off where there is one.
    referer = query.get("referer", [""])[0].strip().lower().removeprefix("https://").rstrip("/")
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


def _same(found: str, sent: str) -> bool:
    return hmac.compare_digest(found.encode(errors="replace"), sent.encode())


# ------------------------------------------------------------------------------------------------------- the landing

_PAGES: Final = {
    200: "Access is granted, and crmclient has the code. This page can be closed.",
    400: "This is not the answer that crmclient waits for.",
    403: "crmclient does not take this answer; its terminal says why. This page can be closed.",
    404: "There is nothing here but the answer to a login.",
    405: "Only a browser's GET is answered here.",
    410: "crmclient has its answer already. This page can be closed.",
}
_REASONS: Final = {200: "OK", 400: "Bad Request", 403: "Forbidden", 404: "Not Found", 405: "No", 410: "Gone"}
# A browser sends its request at once, and a code is a thousand letters.
_HEAD: Final = 16 << 10
_PATIENCE: Final = 10.0


@define(eq=False)
class Landing:
    """Where the browser comes back to: this machine, at the redirect address of the integration, for one answer.

    The first answer with the right ``state`` is taken, whatever it says; what comes before it or after it is not.
    """

    redirect_uri: str
    spoken: Dialect
    state: str = field(factory=lambda: secrets.token_urlsafe(32), repr=False)
    _answer: Grant | CRMError | None = None
    _answered: asyncio.Event = field(factory=asyncio.Event)
    _told: bool = False

    @staticmethod
    def fits(redirect_uri: str) -> bool:
        """Whether a browser on this machine can come back to it: plain http, this machine, and a port."""
        try:
            parts = urlsplit(redirect_uri)
            return parts.scheme == "http" and is_loopback(parts.hostname) and bool(parts.port)
        except ValueError:
            return False

    async def wait(self, seconds: float, clock: Clock = SYSTEM_CLOCK) -> Grant:
        """The grant. TimeoutError where nobody came; OSError where the port cannot be listened on.

        Raises AuthFailed where access was not granted, OriginRefused where it was granted at a foreign host.
        """
        parts = urlsplit(self.redirect_uri)
        # "localhost" may be both; the address that is listened on is never anything but this machine.
        host = "::1" if parts.hostname == "::1" else "127.0.0.1"
        server = await asyncio.start_server(self._visited, host, parts.port, limit=_HEAD)
        waits = [asyncio.create_task(each) for each in (clock.sleep(seconds), self._answered.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            server.close()
            for task in waits:
                task.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        if self._answer is None:
            raise TimeoutError(f"nobody came back to {self.redirect_uri} within {seconds:g} seconds")
        if isinstance(self._answer, CRMError):
            raise self._answer
        return self._answer

    async def _visited(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_PATIENCE):
                # The whole head is read: a connection closed on what was not read is a reset, and no page is shown.
                head = await reader.readuntil(b"\r\n\r\n")
                status = self._judged(head.split(b"\r\n", 1)[0].decode("ascii", "replace"))
                writer.write(_page(status))
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # whoever that was, it was no browser with an answer
        finally:
            writer.close()
            if self._answer is not None:
                # Only now: whoever waits for it takes the page away with the loop.
                self._answered.set()

    def _judged(self, line: str) -> int:
        """What a request is answered with. The answer is kept before its page is sent: the code works once."""
        method, _, rest = line.partition(" ")
        target = rest.partition(" ")[0]
        path, _, query = target.partition("?")
        if path != (urlsplit(self.redirect_uri).path or "/"):
            return 404
        if method != "GET":
            return 405
        try:
            states = parse_qs(query).get("state", [""])
        except ValueError:
            return 400
        if len(states) != 1 or not _same(states[0], self.state):
            if not self._told:
                self._told = True
                say("somebody came back with another state: that is no answer to this login, which still waits")
            return 400
        if self._answer is not None:
            return 410
        try:
            self._answer = granted(f"{self.redirect_uri.partition('?')[0]}?{query}", self.spoken)
        except Misconfigured:
            return 400
        except CRMError as refusal:
            self._answer = refusal
            return 403
        return 200


def _page(status: int) -> bytes:
    body = f"{_PAGES[status]}\n".encode()
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\nCache-Control: no-store\r\nReferrer-Policy: no-referrer\r\n"
        "X-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


def consent_address(profile: Profile, client_id: str, state: str) -> str | None:
    """Where a person grants access, if the dialect tells."""
    scheme = next((each for each in profile.speaks.auth if isinstance(each, OAuth2)), None)
    if scheme is None or scheme.consent is None:
        return None
    domains = profile.speaks.domains
    host = urlsplit(profile.address).hostname or "" if profile.account or profile.base_url else ""
    domain = next((each for each in domains if host.endswith(f".{each}")), domains[0] if domains else "")
    page = scheme.consent.format(domain=domain)
    return f"{page}{'&' if '?' in page else '?'}{urlencode({'client_id': client_id, 'state': state})}"


def _shown(address: str, browser: bool) -> None:
    say(f"Grant access here, in a browser on this machine:\n  {address}")
    # A browser of the terminal would take it from us.
    if browser and sys.stdin.isatty() and type(_browser()) not in (type(None), webbrowser.GenericBrowser):
        webbrowser.open(address)


def _browser() -> webbrowser.BaseBrowser | None:
    try:
        return webbrowser.get()
    except webbrowser.Error:
        return None


def _came_back(landing: Landing, seconds: float) -> Grant | None:
    """The grant, or None where it has to be pasted after all."""
    try:
        return asyncio.run(landing.wait(seconds))
    except TimeoutError as wrong:
        told = str(wrong)
    except OSError as wrong:
        told = f"{urlsplit(landing.redirect_uri).netloc} cannot be listened on ({wrong.strerror or wrong})"
    if ask() is None:
        raise Misconfigured(f"{told}; grant access and pipe the code in with --code-stdin")
    say(f"{told}: paste the address the browser was sent to")
    return None


class _NewLogin:
    """A token store that forgets what was stored before, so that the new code is spent; a new token is kept at once."""

    def __init__(self, store: TokenStore) -> None:
        self._store = store
        self.saved = False

    def lock(self, account: str) -> AbstractAsyncContextManager[object]:
        return self._store.lock(account)

    async def load(self, account: str) -> Token | None:
        return await self._store.load(account) if self.saved else None

    async def save(self, account: str, token: Token) -> None:
        await self._store.save(account, token)
        self.saved = True

    async def mark(self, account: str, spending: Spending | None) -> None:
        await self._store.mark(account, spending)

    async def marked(self, account: str) -> Spending | None:
        return await self._store.marked(account)


@click.command("login")
@click.argument("where")
@account_options
@click.option("--client-id", metavar="ID", help="The integration's, where no profile says it.")
@click.option("--redirect-uri", metavar="URL", help="The integration's, letter by letter.")
@click.option("--long-lived", is_flag=True, help="A token made in the vendor's settings instead of a code.")
@click.option("--code-stdin", is_flag=True, help="Read the code (or the long-lived token) from stdin.")
@click.option("--paste", is_flag=True, help="Paste the code; do not wait for the browser to come back to this machine.")
@click.option("--browser/--no-browser", default=True, help="Open the page where access is granted.")
@click.option("--wait", default=300.0, type=click.FloatRange(1, 3600), help="Seconds to wait for the browser.")
def login(
    where: str,
    account: str | None,
    base_url: str | None,
    client_id: str | None,
    redirect_uri: str | None,
    long_lived: bool,
    code_stdin: bool,
    paste: bool,
    browser: bool,
    wait: float,
) -> None:
    """Get a token for WHERE, check it by reading the account, and keep it for the other commands.

    With a redirect address on this machine (http://127.0.0.1:PORT/…) it waits for the browser to come back with the
    code. Else, and with --paste, it asks for the code, and for the client secret, without an echo. The code may be
    pasted as it is, or as the whole address the browser was sent to.

    \b
    crmclient login acme
    crmclient login kommo --account acme --long-lived
    """  # noqa: D301  (\b keeps click from joining lines)
    profile = find(where, account=account, base_url=base_url)
    profile = evolve(
        profile, client_id=client_id or profile.client_id, redirect_uri=redirect_uri or profile.redirect_uri
    )
    if profile.logs_in:
        if long_lived or code_stdin:
            raise Misconfigured(f"{profile.name} comes in with a login and its key: no code and no token")
        told = asyncio.run(_tried(profile, credentials(profile, None, ask=ask())))
    elif long_lived or not profile.takes(OAuthApp):
        _ = profile.address  # says what is missing before anybody is asked for anything
        given = _typed(profile, "TOKEN", "Token", code_stdin)
        told = asyncio.run(_kept(profile, given))
    else:
        profile, app = _asked(profile, code_stdin, paste=paste, browser=browser, wait=wait)
        told = asyncio.run(_exchanged(profile, app))
    for line in told:
        click.echo(harmless(line))


def _asked(profile: Profile, code_stdin: bool, *, paste: bool, browser: bool, wait: float) -> tuple[Profile, OAuthApp]:
    """The profile with the account where access was granted, and what to come in with."""
    client_id, redirect_uri = profile.client_id, profile.redirect_uri
    if client_id is None or redirect_uri is None:
        raise Misconfigured(
            f"logging in to {profile.name} takes the integration's client_id and redirect_uri: write them into its "
            "profile, or give --client-id and --redirect-uri; a long-lived token needs neither (--long-lived)"
        )
    app_secret = secret(profile.name, "CLIENT_SECRET") or _typed(profile, "CLIENT_SECRET", "Client secret", False)
    landing = Landing(redirect_uri, profile.speaks)
    # What is piped in was granted before: it answers to a state of somebody else's.
    state, grant = None if code_stdin else landing.state, None
    page = None if state is None else consent_address(profile, client_id, state)
    waits = page is not None and not paste and Landing.fits(redirect_uri)
    if page is not None and (waits or ask() is not None):
        _shown(page, browser)
    if waits:
        grant = _came_back(landing, wait)
    if grant is None:
        pasted = _typed(profile, None, "Code, or the address the browser was sent to", code_stdin)
        grant = granted(pasted.reveal(), profile.speaks, state)
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
    store = _NewLogin(profile.store)
    async with connected(profile, app, tokens=store, read_only=True) as crm:
        told = await whose(crm)
    if not store.saved:
        raise TokenStoreFailed(
            f"the code was spent, and its token cannot be kept in {profile.tokens}: see to that first"
        )
    lines = [*told, f"The token is kept in {profile.tokens} and renewed from there."]
    if secret(profile.name, "CLIENT_SECRET") is None:
        lines.append(f"Renewing takes the client secret: set {variable(profile.name, 'CLIENT_SECRET')}.")
    return lines


async def _tried(profile: Profile, given: Credentials) -> list[str]:
    async with connected(profile, given, tokens=_NewLogin(profile.store), read_only=True) as crm:
        return await whose(crm)


async def _kept(profile: Profile, given: Secret) -> list[str]:
    async with connected(profile, AccessToken(given), read_only=True) as crm:
        told = await whose(crm)
    key, store = profile.stored_as, profile.store
    async with store.lock(key):
        await store.save(key, Token(access=given, issued_at=SystemClock().now()))
    return [*told, f"The token is kept in {profile.tokens}; nobody renews it."]


def listed(crm: Client) -> Iterator[tuple[type[Any], Listing]]:
    """The rows that are listed by a call of their own."""
    for entity in (Deal, Contact, Company, Task):
        route = crm.dialect.route(entity, Verb.LIST) if crm.can(entity, Verb.LIST) else None
        if isinstance(route, Listing) and route.call is not None:
            yield entity, route


async def first_page(crm: Client, entity: type[Any], asked: Filter) -> int:
    """How many rows the server gives on the first page, whatever we make of them."""
    walk = flows.listing(crm.dialect, entity, asked)
    return len(walk.rows(walk.first, await crm.call(walk.call(walk.first))))


async def whose(crm: Client) -> list[str]:
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
        entity, _ = next(listed(crm))
        await first_page(crm, entity, Filter())
        parts.append((crm.dialect.resource(entity).vendor, "can be read"))
    return told + [f"{name + ':':<10} {part}" for name, part in parts if part]
