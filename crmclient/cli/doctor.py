"""What is wrong with an account, in words, and what to do about it: found by doing what any client of it does."""

import asyncio
import os
import warnings
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import click
from attrs import asdict, frozen

from crmclient import flows
from crmclient.auth import AccessToken, Login
from crmclient.cli.login import first_page, listed, whose
from crmclient.cli.terminal import account_options, harmless, json_line
from crmclient.client import Client, InsecureTransport
from crmclient.clock import SYSTEM_CLOCK, Clock
from crmclient.dialect import Context, Filter, Flow, MissingPart, Need, Token
from crmclient.errors import (
    AccountMoved,
    AuthFailed,
    Banned,
    CRMError,
    Misconfigured,
    NotFound,
    OriginRefused,
    RateLimited,
    ReauthorizationRequired,
    TokenStoreFailed,
    TransportError,
    Unavailable,
    Unreadable,
)
from crmclient.profiles import (
    Credentials,
    Environ,
    Profile,
    config_file,
    connected,
    credentials,
    find,
    load,
    variable,
)
from crmclient.retry import Retry
from crmclient.tokens import FileTokens, TokenExposed, TokenNotSaved

# An answer is dated to the second and takes a while to come; a clock that is worse than this is wrong.
_CLOCK: Final = timedelta(seconds=30)
# Nobody has changed a row so long from now.
_FUTURE: Final = timedelta(days=3650)


@frozen(kw_only=True)
class Finding:
    """One thing that was looked at. ``then`` is the next step, where ``said`` does not name it; ``error`` its class."""

    about: str
    well: bool
    said: str
    then: str | None = None
    error: str | None = None


@frozen(kw_only=True)
class Diagnosis:
    """What was found of one account."""

    profile: str
    dialect: str | None = None
    address: str | None = None
    findings: tuple[Finding, ...]

    @property
    def well(self) -> bool:
        return all(finding.well for finding in self.findings)


@click.command("doctor")
@click.argument("where", required=False)
@account_options
@click.option("--json", "as_json", is_flag=True, help="A line of JSON for each account.")
def doctor(where: str | None, account: str | None, base_url: str | None, as_json: bool) -> None:
    """Say what is wrong with WHERE, and what to do: a profile, or a dialect's name with --account or --base-url.

    Without WHERE every profile is looked at. Nothing is written to the account, nobody is asked anything, and no secret
    is shown. Ends with 0 if all is well, with 1 if not.

    \b
    crmclient doctor
    crmclient doctor acme --json
    """  # noqa: D301  (\b keeps click from joining lines)
    diagnoses = [asyncio.run(diagnosed(each)) for each in _meant(where, account, base_url)]
    for diagnosis in diagnoses:
        click.echo(json_line({**asdict(diagnosis), "well": diagnosis.well}) if as_json else in_words(diagnosis))
    if not all(diagnosis.well for diagnosis in diagnoses):
        raise click.exceptions.Exit(1)


def _meant(where: str | None, account: str | None, base_url: str | None) -> Sequence[Profile | Diagnosis]:
    if where is None and (account is not None or base_url is not None):
        raise click.UsageError("--account and --base-url go with a dialect's name")
    try:
        if where is not None:
            return [find(where, account=account, base_url=base_url)]
        file = config_file()
        known = load(file) if file is not None else {}
        if not known:
            raise Misconfigured(
                "there are no profiles: write crmclient.toml, or name a dialect with --account or --base-url"
            )
        return list(known.values())
    except Misconfigured as wrong:
        return [Diagnosis(profile=where or "", findings=(_configuration(wrong),))]


def in_words(diagnosis: Diagnosis) -> str:
    """A diagnosis for people."""
    at = f": {diagnosis.dialect} at {diagnosis.address}" if diagnosis.address else ""
    lines = [f"{diagnosis.profile or 'crmclient'}{at}"]
    for finding in diagnosis.findings:
        lines.append(f"  {'well' if finding.well else 'SICK'}  {finding.about:<13} {finding.said}")
        if finding.then:
            lines.append(f"        {'next:':<13} {finding.then}")
    return "\n".join(harmless(line) for line in lines)


# ------------------------------------------------------------------------------------------------------- one account


async def diagnosed(
    profile: Profile | Diagnosis, *, environ: Environ = os.environ, clock: Clock = SYSTEM_CLOCK, **more: Any
) -> Diagnosis:
    """Look at one account from the inside out: its profile, its tokens, its credentials, its server."""
    if isinstance(profile, Diagnosis):
        return profile
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            title, address = profile.speaks.title, profile.address
        except Misconfigured as wrong:
            return Diagnosis(profile=profile.name, findings=(_configuration(wrong),))
        # Whoever holds the lock for longer than this hangs, and that is an answer too.
        store = FileTokens(profile.tokens, clock=clock, patience=10.0)
        stored, findings = await _kept(profile, store, clock)
        try:
            given = credentials(profile, stored, environ=environ)
        except (Misconfigured, ReauthorizationRequired) as wrong:
            # Where the store has failed, that is why.
            if all(each.well for each in findings):
                findings.append(
                    Finding(about="credentials", well=False, said=wrong.message, error=type(wrong).__name__)
                )
        else:
            if isinstance(given, AccessToken):
                # What signs by itself asks the store nothing.
                findings = [each for each in findings if each.well or each.error is None]
            # Once more, because a command just before this one may have used up the pace.
            settings = {"retry": Retry(attempts=2), **more}
            async with connected(profile, given, tokens=store, read_only=True, clock=clock, **settings) as crm:
                findings += await _asked(crm, profile, given, clock)
    findings += [found for each in warned if (found := _warned(each.message)) is not None]
    return Diagnosis(profile=profile.name, dialect=title, address=address, findings=tuple(findings))


def _configuration(wrong: Misconfigured) -> Finding:
    return Finding(about="configuration", well=False, said=wrong.message, error=type(wrong).__name__)


def _warned(message: Warning | str) -> Finding | None:
    name = type(message).__name__
    if isinstance(message, TokenNotSaved):
        then = "make room, or let this user write there; until then every process has to log in by itself"
        return Finding(about="tokens", well=False, said=str(message), then=then, error=name)
    if isinstance(message, TokenExposed):
        then = "if others use this machine, have the vendor revoke the token, and log in again"
        return Finding(about="tokens", well=False, said=str(message), then=then, error=name)
    if isinstance(message, InsecureTransport):
        then = "use https in base_url, or a tunnel that ends on this machine"
        return Finding(about="address", well=False, said=str(message), then=then, error=name)
    return None


# ------------------------------------------------------------------------------------------------------- its tokens


async def _kept(profile: Profile, store: FileTokens, clock: Clock) -> tuple[Token | None, list[Finding]]:
    """The stored token, and whether the next one could be kept: what is there is written once more to see."""
    key, stored = profile.stored_as, None
    try:
        stored = await store.load(key)
        if stored is None:
            return None, []
        spending = await store.marked(key)
        async with store.lock(key):
            # Another process may have renewed it meanwhile.
            stored = await store.load(key) or stored
            await store.save(key, stored)
    except (TokenStoreFailed, OSError) as wrong:
        said = wrong.message if isinstance(wrong, CRMError) else f"{profile.tokens}: {wrong.strerror}"
        then = f"mend it, or keep tokens elsewhere (tokens = … in the profile) and run `crmclient login {profile.name}`"
        return stored, [Finding(about="tokens", well=False, said=said, then=then, error=type(wrong).__name__)]
    findings = [Finding(about="tokens", well=True, said=_life(stored, profile.tokens, clock))]
    if spending is not None and spending.concerns(stored) and spending.at is not None:
        findings.append(
            Finding(
                about="tokens",
                well=False,
                said=f"its refresh token was spent at {_at(spending.at)}, and no answer came: it may not work again",
                then=f"if the next renewal fails, run `crmclient login {profile.name}`",
            )
        )
    return stored, findings


def _life(token: Token, folder: Path, clock: Clock) -> str:
    kind = "a session" if token.renewable else "a token"
    if token.expires_at is None:
        return f"{kind} is kept in {folder}; nobody knows when it ends"
    ends = "ended" if token.expires_at <= clock.now() else "ends"
    then = "is renewed then" if token.refresh is not None or token.renewable else "cannot be renewed"
    return f"{kind} is kept in {folder}; it {ends} at {_at(token.expires_at)} and {then}"


def _at(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


# ------------------------------------------------------------------------------------------------------- its server


async def _asked(crm: Client, profile: Profile, given: Credentials, clock: Clock) -> list[Finding]:
    findings: list[Finding] = []
    try:
        who = "; ".join(" ".join(line.split()) for line in (await whose(crm))[1:])
    except CRMError as error:
        findings.append(_diagnosed(error, profile, given))
        if isinstance(error, TransportError):
            return findings
    else:
        findings.append(Finding(about="server", well=True, said=who))
    findings += await _timed(crm, clock)
    if findings[0].well:
        findings += await _filtered(crm, clock)
        findings += await _zoned(crm, profile)
    return findings


async def _timed(crm: Client, clock: Clock) -> list[Finding]:
    """Its time as its answers tell it, against ours."""
    context = await crm.run(_context())
    if context.now is None:
        return []
    ahead = clock.now() - context.now
    if abs(ahead) <= _CLOCK:
        return [Finding(about="clock", well=True, said="this machine's clock agrees with the server's")]
    said = f"this machine's clock is {_span(abs(ahead))} {'ahead of' if ahead > timedelta() else 'behind'} the server's"
    then = "set it (NTP): tokens are renewed and changes are looked for by it"
    return [Finding(about="clock", well=False, said=said, then=then)]


def _context() -> Flow[Context]:
    return (yield Need())


def _span(time: timedelta) -> str:
    return (
        f"{time.total_seconds():.0f} s"
        if time < timedelta(minutes=2)
        else str(timedelta(seconds=round(time.total_seconds())))
    )


async def _filtered(crm: Client, clock: Clock) -> list[Finding]:
    """Whether the server filters: some are paid for that, and give all rows where they are not, with a 200."""
    entity = next((entity for entity, route in listed(crm) if "updated_since" in route.filters), None)
    if entity is None:
        return []
    word = crm.dialect.resource(entity).vendor
    try:
        found = await first_page(crm, entity, Filter(updated_since=clock.now() + _FUTURE))
    except CRMError as error:
        return [Finding(about="filters", well=False, said=str(error), error=type(error).__name__)]
    if not found:
        return [Finding(about="filters", well=True, said="the server filters what it lists")]
    said = f"the server ignores filters: asked for {word} changed ten years from now, it gave {found}"
    then = "have filters of the API switched on for this account (a paid option); until then all rows are read for each"
    return [Finding(about="filters", well=False, said=said, then=then)]


async def _zoned(crm: Client, profile: Profile) -> list[Finding]:
    """Whether times can be read: a dialect may tell them by the account's clock, and never say where that hangs."""
    if profile.zone is not None or "account" in crm.dialect.settings:
        return []
    entity, _ = next(listed(crm))
    resource, walk = crm.dialect.resource(entity), flows.listing(crm.dialect, entity)
    try:
        rows = walk.rows(walk.first, await crm.call(walk.call(walk.first)))[:1]
        without, told = (
            {name for row in rows for name in resource.decode(row, Context(given_zone=zone)).unread}
            for zone in (None, UTC)
        )
    except (CRMError, MissingPart):
        return []
    if without == told:
        return []
    lost = ", ".join(sorted(without - told))
    said = f"nobody tells the account's time zone: no times are read ({lost} of {resource.vendor}, say)"
    return [Finding(about="zone", well=False, said=said, then='write zone = "Europe/Moscow", say, into the profile')]


def _diagnosed(error: CRMError, profile: Profile, given: Credentials) -> Finding:
    """What a failure means for a person."""
    about, then = next((_NEXT[kind] for kind in type(error).__mro__ if kind in _NEXT), ("server", None))
    if isinstance(error, AuthFailed) and not isinstance(error, ReauthorizationRequired):
        about, then = _unwelcome(error, profile, given)
    if isinstance(error, AccountMoved):
        then = f'write account = "{error.host}" into the profile, and run `crmclient login {profile.name}`'
    said = str(error).replace("\n", "; ")
    then = then and then.format(name=profile.name, pace=profile.pace)
    return Finding(about=about, well=False, said=said, then=then, error=type(error).__name__)


_ELSEWHERE: Final = (
    "check account or base_url: that host answers, and not as this API does; a login page may be in between"
)
_NEXT: Final[dict[type[Any], tuple[str, str | None]]] = {
    Banned: (
        "ban",
        "stop every program that uses this account, and write to the vendor's support: only they can lift it. It is kept "
        "in mind for an hour; once it is lifted, remove what {pace} holds",
    ),
    RateLimited: ("pace", "see which other programs use this account, and try again later"),
    Unavailable: ("server", "it is the vendor's to mend: try again later"),
    TransportError: ("network", "check the address, this machine's network, and its proxies (HTTPS_PROXY)"),
    OriginRefused: ("address", _ELSEWHERE),
    NotFound: ("address", _ELSEWHERE),
    Unreadable: ("address", _ELSEWHERE),
    ReauthorizationRequired: ("tokens", "grant access again: `crmclient login {name}`"),
    TokenStoreFailed: ("tokens", "mend it, or keep tokens elsewhere (tokens = … in the profile)"),
    Misconfigured: ("configuration", None),
}


def _unwelcome(error: AuthFailed, profile: Profile, given: Credentials) -> tuple[str, str]:
    if error.status == 402:
        return "subscription", "have the account's subscription paid"
    if error.status == 403:
        return "rights", "give the user, or the integration, the right; or use the credentials of one that has it"
    if isinstance(given, Login):
        key = variable(profile.name, "HASH" if given.hash is not None else "PASSWORD")
        return (
            "credentials",
            f"check login = … of the profile and {key}; a few wrong ones more, and a captcha is asked for",
        )
    if isinstance(given, AccessToken):
        return "credentials", (
            f"make a new token in the vendor's settings and set {variable(profile.name, 'TOKEN')}, "
            f"or run `crmclient login {profile.name}`"
        )
    secret = variable(profile.name, "CLIENT_SECRET")
    return "credentials", f"check client_id, redirect_uri and {secret}; then run `crmclient login {profile.name}`"
