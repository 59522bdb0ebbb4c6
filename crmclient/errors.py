"""Every error says what the caller can do about it, and names the entity, the field and the rule.

::

    CRMError
    ├── UsageError                 the call was wrong; nothing was sent
    │   ├── Unsupported            the dialect has no such thing
    │   ├── Invalid                a value breaks a rule (issues say which)
    │   ├── IncompleteRead         the dialect must send everything and this reading lacks a part
    │   ├── ReadOnly               a write through a client opened with read_only=True
    │   ├── Misconfigured          connect() lacks something or was told nonsense
    │   │   ├── UnknownDialect
    │   │   └── TokenStoreFailed   tokens cannot be read, locked or kept there
    │   │       └── TokenStoreCorrupt
    │   └── ClientClosed           the client was closed
    ├── TransportError             no answer came
    │   ├── Unreachable            and nothing was sent: safe to repeat
    │   └── ConnectionLost         and something was sent
    ├── DeadlineExceeded           the time you gave it is over; a write that had left is an AmbiguousWrite instead
    ├── Unreadable                 an answer came that is not what was due (HTML, empty, cut, of another shape)
    ├── OriginRefused              an answer points to another host; the credentials did not go there
    │   └── AccountMoved           the account answers at another host for good; connect to that one
    ├── RateLimited                too fast; ``after`` seconds
    ├── Banned                     the vendor blocks the account or this address; stop
    ├── Unavailable                the vendor is down (5xx)
    ├── AuthFailed                 the credentials were not accepted, or lack the right
    │   └── ReauthorizationRequired    a person has to grant access again
    ├── NotFound                   no such row
    ├── Rejected                   the vendor refused the row (issues say why)
    ├── PartlyDone                 the row was written, something asked for beside it was not
    └── AmbiguousWrite             a write may or may not have been applied: look before repeating
"""

from collections.abc import Iterable
from copy import copy
from typing import Any, Self

from attrs import frozen


@frozen(kw_only=True)
class Issue:
    """One complaint about one row.

    ``field`` is the neutral name where it is known, else the vendor's path; ``rule`` our English sentence;
    ``code`` and ``detail`` are the vendor's own words, verbatim; ``row`` counts from 0 in what the caller gave.
    """

    rule: str
    field: str | None = None
    code: str | None = None
    detail: str | None = None
    path: str | None = None
    row: int | None = None

    def __str__(self) -> str:
        where = f"row {self.row}: " if self.row is not None else ""
        what = f"{self.field}: " if self.field else ""
        said = f" ({self.code}: {self.detail})" if self.code and self.detail and self.detail != self.rule else ""
        return f"{where}{what}{self.rule}{said}"


class CRMError(Exception):
    """The root. ``status``, ``request_id``, ``code`` and ``detail`` are the vendor's, where there was an answer."""

    def __reduce__(self) -> Any:
        # A subclass takes more than the message; what an error knows is all in its attributes.
        return _revived, (type(self), self.args, self.__dict__)

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        request_id: str | None = None,
        code: str | None = None,
        detail: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.request_id = request_id
        self.code = code
        self.detail = detail

    def again(self) -> Self:
        """The same error for another caller: one exception raised many times drags all their frames along."""
        copied = copy(self)
        copied.__traceback__ = copied.__context__ = None
        return copied

    def __str__(self) -> str:
        said = f"; the server said: {self.detail}" if self.detail and self.detail not in self.message else ""
        parts = [f"{self.message}{said}"]
        known = [
            f"{name} {value}"
            for name, value in (("HTTP", self.status), ("code", self.code), ("request", self.request_id))
            if value is not None
        ]
        if known:
            parts.append(f"[{', '.join(known)}]")
        return " ".join(parts)


def _revived(kind: type[CRMError], args: tuple[Any, ...], known: dict[str, Any]) -> CRMError:
    made = kind.__new__(kind, *args)
    made.__dict__.update(known)
    return made


class UsageError(CRMError):
    """The call was wrong; nothing was sent."""


class Unsupported(UsageError):
    """The dialect has no such thing. Ask beforehand with ``crm.can(Note, Verb.DELETE)``."""


class _WithIssues(CRMError):
    def __init__(self, message: str, issues: Iterable[Issue] = (), **vendor: Any) -> None:
        super().__init__(message, **vendor)
        self.issues = tuple(issues)

    def __str__(self) -> str:
        told = super().__str__()
        return told if not self.issues else told + "".join(f"\n  {issue}" for issue in self.issues)


class Invalid(_WithIssues, UsageError):
    """A value breaks a rule that is known before sending."""


class IncompleteRead(UsageError):
    """The dialect's edit must send everything, and what was read lacks ``sections``; ``overwrite=True`` goes on anyway."""

    def __init__(self, message: str, sections: Iterable[str]) -> None:
        super().__init__(message)
        self.sections = tuple(sections)


class ReadOnly(UsageError):
    """The client was opened with read_only=True."""


class Misconfigured(UsageError):
    """connect() lacks something or was told nonsense."""


class UnknownDialect(Misconfigured):
    """No dialect of that name is installed."""


class TokenStoreFailed(Misconfigured):
    """The token store cannot be read, locked or written to. No token was spent: there would be nowhere to keep the next."""


class TokenStoreCorrupt(TokenStoreFailed):
    """What the store holds is no token. It is left as it is; the next token that is kept moves it aside."""


class ClientClosed(UsageError):
    """The client was closed, or never opened, or belongs to another event loop."""


class TransportError(CRMError):
    """No answer came."""


class Unreachable(TransportError):
    """The connection was not made, so nothing was sent: safe to repeat, a create too.

    Not ``passing``: repeating helps nobody, as the server's certificate is not trusted.
    """

    passing = True


class ConnectionLost(TransportError):
    """Something was sent and no whole answer came back.

    ``reused``: it went over a connection that had been idle, which the server may have closed at that very moment.
    """

    def __init__(self, message: str, *, reused: bool = False, **vendor: Any) -> None:
        super().__init__(message, **vendor)
        self.reused = reused


class DeadlineExceeded(CRMError):
    """The time given to a call is over: what it was waiting for (``phase``), ``elapsed`` seconds, how many ``attempts``.

    Nothing of a write had been applied: one that had left raises AmbiguousWrite. ``__cause__`` is the last failure.
    """

    def __init__(self, message: str, *, phase: str, elapsed: float, attempts: int, **vendor: Any) -> None:
        super().__init__(message, **vendor)
        self.phase, self.elapsed, self.attempts = phase, elapsed, attempts


class Unreadable(CRMError):
    """An answer came that is not what was due. ``preview`` is its beginning; ``raw`` the row, when it is one row's fault.

    ``passing``: it is of a kind that passes (a maintenance page, a cut answer), and reads were tried again.
    """

    def __init__(
        self, message: str, *, preview: str | None = None, raw: Any = None, passing: bool = False, **vendor: Any
    ) -> None:
        super().__init__(message, **vendor)
        self.preview = preview
        self.raw = raw
        self.passing = passing

    def __str__(self) -> str:
        told = super().__str__()
        return f"{told} It begins: {self.preview!r}" if self.preview else told


class OriginRefused(CRMError):
    """An answer points to another host. Nothing was sent there."""


class AccountMoved(OriginRefused):
    """The account answers at ``host`` now, for good. Nothing was sent there: connect to it, or log in again at it."""

    def __init__(self, message: str, *, host: str, **vendor: Any) -> None:
        super().__init__(message, **vendor)
        self.host = host


class RateLimited(CRMError):
    """Too fast. ``after`` is how many seconds the server asked for, or None."""

    def __init__(self, message: str, *, after: float | None = None, **vendor: Any) -> None:
        super().__init__(message, **vendor)
        self.after = after


class Banned(CRMError):
    """The vendor blocks every call of the account or of this address. Only its support can lift that; do not hammer."""


class Unavailable(CRMError):
    """The vendor is down or overloaded (5xx)."""


class AuthFailed(CRMError):
    """The credentials were not accepted, or lack the right to do this.

    ``account`` is whose they are: the name under which its tokens are kept.
    """

    account: str | None = None


class ReauthorizationRequired(AuthFailed):
    """The tokens are spent: a person has to grant access again (``crmclient login``)."""


class NotFound(CRMError):
    """No such row."""


class Rejected(_WithIssues):
    """The vendor refused the row or the batch; nothing of it was applied unless a receipt says otherwise."""


class PartlyDone(_WithIssues):
    """The row was written (``entity`` has its id); what ``issues`` name beside it, a link say, was not.

    In ``entity`` that field is as it was before: ``update(evolve(error.entity, contacts=…))`` tries it again.
    """

    def __init__(self, message: str, issues: Iterable[Issue], *, entity: Any) -> None:
        super().__init__(message, issues)
        self.entity = entity


class AmbiguousWrite(CRMError):
    """A write was sent and its outcome is unknown. Look before repeating: repeating blindly makes duplicates."""
