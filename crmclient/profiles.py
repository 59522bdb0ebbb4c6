"""An account has a name in a file and its secrets elsewhere: in the environment, behind a prompt or in the token store.

::

    # crmclient.toml, in this folder or in ~/.config/crmclient/
    [profiles.acme]
    dialect = "…"
    account = "acme"

``CRMCLIENT_CONFIG`` names another file. ``CRMCLIENT_ACME_TOKEN`` or ``CRMCLIENT_ACME_CLIENT_SECRET``, else
``CRMCLIENT_TOKEN`` or ``CRMCLIENT_CLIENT_SECRET``, hold the secrets; a profile that holds one is refused. A profile with
``login = "…"`` comes in with ``CRMCLIENT_ACME_HASH`` (the API key) or ``CRMCLIENT_ACME_PASSWORD``.
"""

import logging
import os
import re
import tomllib
import warnings
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from attrs import field, frozen

from crmclient.auth import AccessToken, Login, OAuthApp
from crmclient.client import Client, InsecureTransport, connect
from crmclient.clock import SystemClock
from crmclient.dialect import Dialect, Secret, Token
from crmclient.errors import Misconfigured, ReauthorizationRequired, UnknownDialect
from crmclient.pacing import FilePacer
from crmclient.registry import dialect as dialect_named
from crmclient.registry import dialect_names
from crmclient.tokens import FileTokens, TokenStore, stored_as

Environ: TypeAlias = Mapping[str, str]
Credentials: TypeAlias = AccessToken | OAuthApp | Login
Ask: TypeAlias = Callable[[str], str]
"""Asks a person for a secret, without an echo. Given only where there is a person to ask."""

FILE: Final = "crmclient.toml"

_log = logging.getLogger("crmclient.profiles")

_KEYS: Final = ("dialect", "account", "base_url", "zone", "client_id", "redirect_uri", "login", "tokens")
# Whatever is spelt like one of these is taken for a secret, and told so, before it is taken for a misspelling.
_SECRETS: Final = re.compile(
    r"token|.*_token|.*secret.*|.*password.*|code|.*api_?key|.*hash|credentials", re.IGNORECASE
)
# A token with less life than this is not worth beginning a command with.
_SOON: Final = timedelta(minutes=5)


@frozen(kw_only=True)
class Profile:
    """One account: which dialect, where, and where its tokens are kept. It holds no secret."""

    name: str
    dialect: str
    account: str | None = None
    base_url: str | None = None
    zone: str | None = None
    client_id: str | None = None
    redirect_uri: str | None = None
    login: str | None = None
    tokens: Path = field(factory=lambda: token_folder(os.environ))
    # Where the processes of this host that use the account tell each other what they send.
    pace: Path = field(factory=lambda: pace_folder(os.environ))

    @property
    def speaks(self) -> Dialect:
        """Raises UnknownDialect, which lists the known ones."""
        return dialect_named(self.dialect)

    @property
    def store(self) -> FileTokens:
        return FileTokens(self.tokens)

    @property
    def stored_as(self) -> str:
        """The name this account's token is kept under. Raises Misconfigured where the account is not named."""
        return stored_as(self.speaks.name, urlsplit(self.address).netloc, self.login if self.logs_in else None)

    @property
    def address(self) -> str:
        """The base address, checked as ``connect`` checks it."""
        with warnings.catch_warnings():
            # Nothing is sent here: whoever connects in earnest is warned then.
            warnings.simplefilter("ignore", InsecureTransport)
            never_sent = AccessToken("-") if self.takes(AccessToken) else Login("-", hash="-")
            return connect(self.speaks, self.account, base_url=self.base_url, credentials=never_sent).base_url

    def takes(self, kind: type[Credentials]) -> bool:
        """Whether the dialect comes in with credentials of this kind."""
        return any(issubclass(kind, scheme.credentials) for scheme in self.speaks.auth)

    @property
    def logs_in(self) -> bool:
        """Whether it comes in with a login: it names one, or its dialect takes nothing else."""
        return self.takes(Login) and (self.login is not None or not (self.takes(AccessToken) or self.takes(OAuthApp)))


# --------------------------------------------------------------------------------------------------- finding one


def find(
    where: str,
    *,
    account: str | None = None,
    base_url: str | None = None,
    environ: Environ = os.environ,
    cwd: Path | None = None,
) -> Profile:
    """The profile of this name; or, for a dialect's name, the account that ``account`` or ``base_url`` says.

    Raises Misconfigured, which lists what is known.
    """
    named = account is not None or base_url is not None
    if named and where in dialect_names():
        _one_place(f"{where}:", account, base_url)
        return Profile(
            name=where,
            dialect=where,
            account=account,
            base_url=base_url,
            tokens=token_folder(environ),
            pace=pace_folder(environ),
        )
    file = config_file(environ, cwd)
    known = {} if file is None else _tables(file)
    if file is not None and where in known:
        if named:
            raise Misconfigured(
                f"profile {where} says in {file} where its account is; --account and --base-url go with a dialect's name"
            )
        # What is wrong with another stops nobody here.
        return _profile(file, where, known[where], environ)
    if where in dialect_names():
        return Profile(name=where, dialect=where, tokens=token_folder(environ), pace=pace_folder(environ))
    profiles = (
        f"{', '.join(known) or 'none'} (in {file})" if file else f"none (there is no {FILE} here or in ~/.config)"
    )
    raise Misconfigured(
        f"there is no profile and no dialect {where!r}; profiles: {profiles}; dialects: {', '.join(dialect_names())}"
    )


def config_file(environ: Environ = os.environ, cwd: Path | None = None) -> Path | None:
    """The file profiles come from: the one ``CRMCLIENT_CONFIG`` names, else this folder's, else the user's."""
    chosen = environ.get("CRMCLIENT_CONFIG")
    if chosen:
        file = Path(chosen).expanduser()
        if not file.is_file():
            raise Misconfigured(f"CRMCLIENT_CONFIG names {file}, and there is no such file")
        return file
    home = Path(environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser()
    candidates = ((cwd or Path.cwd()) / FILE, home / "crmclient" / FILE)
    return next((file for file in candidates if file.is_file()), None)


def token_folder(environ: Environ = os.environ) -> Path:
    """Where tokens are kept unless a profile says otherwise."""
    return _state(environ) / "tokens"


def pace_folder(environ: Environ = os.environ) -> Path:
    """Where the pace of each account is kept: one place for all profiles, as two may name one account."""
    return _state(environ) / "pace"


def _state(environ: Environ) -> Path:
    return Path(environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "crmclient"


def load(file: Path, environ: Environ = os.environ) -> dict[str, Profile]:
    """All profiles of a file. Raises Misconfigured with the file, the profile and the key that are wrong."""
    return {name: _profile(file, name, table, environ) for name, table in _tables(file).items()}


def _tables(file: Path) -> dict[str, Any]:
    """The profiles of a file as they stand there, by name."""
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as wrong:
        raise Misconfigured(f"{file} cannot be read: {getattr(wrong, 'strerror', None) or 'it is no UTF-8'}") from None
    except tomllib.TOMLDecodeError as wrong:
        raise Misconfigured(f"{file} is no TOML: {wrong}") from None
    tables = content.pop("profiles", {})
    for key in content:
        raise Misconfigured(f"{file}: unknown key {key!r} at the top; accounts are tables [profiles.NAME]")
    if not isinstance(tables, dict):
        raise Misconfigured(f"{file}: profiles are tables [profiles.NAME]")
    named: dict[str, Any] = tables  # pyright: ignore[reportUnknownVariableType]
    spelt: dict[str, str] = {}
    for name in named:
        other = spelt.setdefault(variable(name, "TOKEN"), name)
        if other != name:
            raise Misconfigured(
                f"{file}: profiles {other!r} and {name!r} would share the variable {variable(name, 'TOKEN')}; rename one"
            )
    return named


def _profile(file: Path, name: str, table: Any, environ: Environ) -> Profile:
    where = f"{file}: profile {name!r}:"
    if not isinstance(table, dict):
        raise Misconfigured(f"{where} a profile is a table [profiles.{name}]")
    given: dict[str, Any] = table  # pyright: ignore[reportUnknownVariableType]
    for key, content in given.items():
        if key in _KEYS:
            if not isinstance(content, str) or not content:
                raise Misconfigured(f"{where} {key} is a text that is not empty")
        elif _SECRETS.fullmatch(key):
            # The content is not shown: it is what must not be seen.
            kinds = {"secret": "CLIENT_SECRET", "hash": "HASH", "password": "PASSWORD"}
            kind = next((kind for word, kind in kinds.items() if word in key.lower()), "TOKEN")
            raise Misconfigured(
                f"{where} {key} is a secret, and secrets do not belong in a file: remove it and set "
                f"{variable(name, kind)} in the environment, or run `crmclient login {name}`"
            )
        else:
            raise Misconfigured(f"{where} unknown key {key!r}; known are {', '.join(_KEYS)}")
    if "dialect" not in given:
        raise Misconfigured(f"{where} it lacks its dialect, one of {', '.join(dialect_names())}")
    if given["dialect"] not in dialect_names():
        raise UnknownDialect(
            f"{where} there is no dialect {given['dialect']!r}; installed are: {', '.join(dialect_names())}"
        )
    _one_place(where, given.get("account"), given.get("base_url"))
    _zone(where, given.get("zone"))
    # A relative folder is relative to the file that names it, wherever the command is started.
    tokens = file.parent / Path(given["tokens"]).expanduser() if "tokens" in given else token_folder(environ)
    plain: dict[str, str] = {key: given[key] for key in given if key != "tokens"}
    return Profile(name=name, tokens=tokens, pace=pace_folder(environ), **plain)


def _one_place(where: str, account: str | None, base_url: str | None) -> None:
    if account is not None and base_url is not None:
        raise Misconfigured(f"{where} give account or base_url, not both")


def _zone(where: str, name: str | None) -> ZoneInfo | None:
    try:
        return None if name is None else ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise Misconfigured(f"{where} {name!r} is no time zone that this machine knows") from None


# ------------------------------------------------------------------------------------------------------- secrets


def variable(name: str, kind: str) -> str:
    """The environment variable of a profile's secret: ``CRMCLIENT_ACME_TOKEN``."""
    return f"CRMCLIENT_{re.sub('[^A-Z0-9]', '_', name.upper())}_{kind}"


def secret(name: str, kind: str, environ: Environ = os.environ) -> Secret | None:
    """A secret from the environment: the profile's own, else the one for all."""
    found = environ.get(variable(name, kind)) or environ.get(f"CRMCLIENT_{kind}")
    return Secret(found.strip()) if found and found.strip() else None


def credentials(
    profile: Profile, stored: Token | None, *, environ: Environ = os.environ, ask: Ask | None = None
) -> Credentials:
    """What to sign with: a token of the environment; what ``crmclient login`` has stored; or what a person types.

    Raises ReauthorizationRequired or Misconfigured, which say what to set or to run.
    """
    if profile.logs_in:
        return _login(profile, environ, ask)
    token = secret(profile.name, "TOKEN", environ)
    if token is not None and profile.takes(AccessToken):
        return AccessToken(token)
    # The session of a login is no token: it signs by its cookies, and ends.
    if stored is not None and stored.refresh is None and not stored.renewable:
        return AccessToken(stored.access)
    if profile.takes(OAuthApp) and (stored is not None or profile.client_id):
        return _app(profile, stored, environ, ask)
    if ask is not None and profile.takes(AccessToken):
        return AccessToken(ask(f"Token of {profile.name}"))
    ways = [f"set {variable(profile.name, 'TOKEN')} or CRMCLIENT_TOKEN", f"run `crmclient login {profile.name}`"]
    if profile.takes(Login):
        key = f"write login = … into its profile in {FILE} and set {variable(profile.name, 'HASH')}"
        ways.insert(len(ways) if profile.takes(OAuthApp) else 0, key)
    raise Misconfigured(f"there are no credentials for {profile.name}: {', or '.join(ways)}")


def _login(profile: Profile, environ: Environ, ask: Ask | None) -> Login:
    """A user's login, with the key that the vendor calls a hash, or with a password."""
    name = profile.name
    if profile.login is None:
        raise Misconfigured(f"{profile.speaks.title} takes a login: write login = … into a profile of {FILE}")
    key, password = (secret(name, kind, environ) for kind in ("HASH", "PASSWORD"))
    if key is None and password is None:
        if ask is None:
            raise Misconfigured(
                f"there is no key or password of {profile.login}: "
                f"set {variable(name, 'HASH')} or {variable(name, 'PASSWORD')}"
            )
        key = Secret(ask(f"API key of {profile.login} ({name})"))
    return Login(profile.login, hash=key) if key is not None else Login(profile.login, password=password)


def _app(profile: Profile, stored: Token | None, environ: Environ, ask: Ask | None) -> Credentials:
    """An integration, which can renew; without its secret, the stored token while it lives."""
    name, known = profile.name, profile.client_id is not None and profile.redirect_uri is not None
    app_secret = secret(name, "CLIENT_SECRET", environ)
    if stored is None:
        raise ReauthorizationRequired(f"nobody has logged in to {name} yet: run `crmclient login {name}`")
    lives = stored.expires_at is not None and stored.expires_at - _SOON > SystemClock().now()
    if app_secret is None and lives and profile.takes(AccessToken):
        return AccessToken(stored.access)
    if app_secret is None and known and ask is not None:
        app_secret = Secret(ask(f"Client secret of {name}"))
    if app_secret is not None and profile.client_id is not None and profile.redirect_uri is not None:
        return OAuthApp(client_id=profile.client_id, client_secret=app_secret, redirect_uri=profile.redirect_uri)
    lacks = [] if known else [f"client_id and redirect_uri in a profile of {FILE}"]
    lacks += [] if app_secret is not None else [f"{variable(name, 'CLIENT_SECRET')} in the environment"]
    raise Misconfigured(
        f"the stored token of {name} has expired, and renewing it takes {' and '.join(lacks)}; "
        f"or run `crmclient login {name}` again"
    )


# ------------------------------------------------------------------------------------------------------- connecting


async def stored_token(profile: Profile) -> Token | None:
    """What ``crmclient login`` has stored for this account, if anything."""
    return await profile.store.load(profile.stored_as)


def connected(
    profile: Profile,
    given: Credentials,
    *,
    tokens: TokenStore | None = None,
    read_only: bool = False,
    **more: Any,
) -> Client:
    """A client of this account. Like ``connect`` it does not touch the network.

    It shares the account's limits with every other client of a profile on this host, unless ``more`` brings a pacer, a
    clock or a transport of its own.
    """
    if not {"pacer", "clock", "transport"} & more.keys() and _can_be_made(profile.pace):
        more["pacer"] = FilePacer(profile.pace)
    return connect(
        profile.speaks,
        profile.account,
        base_url=profile.base_url,
        credentials=given,
        tokens=tokens or profile.store,
        zone=_zone(f"profile {profile.name!r}:", profile.zone),
        read_only=read_only,
        **more,
    )


def _can_be_made(folder: Path) -> bool:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as wrong:
        # A home that cannot be written to is no reason to do nothing: only the pace is not shared.
        _log.warning("%s: %s: other processes of this account are not known", folder, wrong.strerror)
        return False
    return True


@asynccontextmanager
async def opened(
    where: str, *, read_only: bool = False, environ: Environ = os.environ, cwd: Path | None = None
) -> AsyncGenerator[Client]:
    """A client of a profile, for programs: nobody is asked anything.

    ``async with opened("acme") as crm: …``
    """
    profile = find(where, environ=environ, cwd=cwd)
    given = credentials(profile, await stored_token(profile), environ=environ)
    async with connected(profile, given, read_only=read_only) as crm:
        yield crm
