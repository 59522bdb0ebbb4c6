"""One asyncio client for people who live between CRMs: neutral entities, four vendors' dialects behind adapters.

::

    from crmclient import Contact, connect

    async with connect("kommo", account="acme", credentials=token) as crm:
        me = await crm.contacts.create(Contact(name="Ivan", phones=["+79991234567"]))

Importing this package is cheap: what needs httpx, cattrs or an adapter is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from crmclient.dialect import (
    START,
    Cursor,
    Filter,
    Made,
    NotApplied,
    Page,
    Rate,
    Receipt,
    Refused,
    Secret,
    Unknown,
    Verb,
)
from crmclient.entities import (
    Company,
    Contact,
    Deal,
    Email,
    FieldType,
    FieldValue,
    Kind,
    Label,
    Link,
    Money,
    Note,
    NoteKind,
    Outcome,
    Phone,
    Ref,
    Tag,
    Task,
    evolve,
    origin,
)
from crmclient.errors import (
    AccountMoved,
    AmbiguousWrite,
    AuthFailed,
    Banned,
    ClientClosed,
    ConnectionLost,
    CRMError,
    DeadlineExceeded,
    IncompleteRead,
    Invalid,
    Issue,
    Misconfigured,
    NotFound,
    OriginRefused,
    PartlyDone,
    RateLimited,
    ReadOnly,
    ReauthorizationRequired,
    Rejected,
    TokenStoreCorrupt,
    TokenStoreFailed,
    TransportError,
    Unavailable,
    UnknownDialect,
    Unreachable,
    Unreadable,
    Unsupported,
    UsageError,
)
from crmclient.vocabulary import Account, Field, KnownTag, Option, Pipeline, Stage, Subscription, TaskType, User

if TYPE_CHECKING:
    from crmclient.auth import AccessToken, Login, LoginEachCall, OAuthApp
    from crmclient.client import Client, Collection, InsecureTransport, Together, connect
    from crmclient.pacing import FilePacer, bulk
    from crmclient.registry import dialect_names
    from crmclient.retry import Retry
    from crmclient.session import Limits
    from crmclient.tokens import FileTokens, MemoryTokens

# What costs an import of httpx or cattrs comes when it is asked for.
_LATER = {
    "AccessToken": "auth",
    "Client": "client",
    "Collection": "client",
    "FilePacer": "pacing",
    "FileTokens": "tokens",
    "InsecureTransport": "client",
    "Limits": "session",
    "Login": "auth",
    "LoginEachCall": "auth",
    "MemoryTokens": "tokens",
    "OAuthApp": "auth",
    "Retry": "retry",
    "Together": "client",
    "bulk": "pacing",
    "connect": "client",
    "dialect_names": "registry",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'crmclient' has no attribute {name!r}")
    return getattr(import_module(f"crmclient.{_LATER[name]}"), name)


__all__ = [
    "START",
    "AccessToken",
    "Account",
    "AccountMoved",
    "AmbiguousWrite",
    "AuthFailed",
    "Banned",
    "CRMError",
    "Client",
    "ClientClosed",
    "Collection",
    "Company",
    "ConnectionLost",
    "Contact",
    "Cursor",
    "DeadlineExceeded",
    "Deal",
    "Email",
    "Field",
    "FieldType",
    "FieldValue",
    "FilePacer",
    "FileTokens",
    "Filter",
    "IncompleteRead",
    "InsecureTransport",
    "Invalid",
    "Issue",
    "Kind",
    "KnownTag",
    "Label",
    "Limits",
    "Link",
    "Login",
    "LoginEachCall",
    "Made",
    "MemoryTokens",
    "Misconfigured",
    "Money",
    "NotApplied",
    "NotFound",
    "Note",
    "NoteKind",
    "OAuthApp",
    "Option",
    "OriginRefused",
    "Outcome",
    "Page",
    "PartlyDone",
    "Phone",
    "Pipeline",
    "Rate",
    "RateLimited",
    "ReadOnly",
    "ReauthorizationRequired",
    "Receipt",
    "Ref",
    "Refused",
    "Rejected",
    "Retry",
    "Secret",
    "Stage",
    "Subscription",
    "Tag",
    "Task",
    "TaskType",
    "Together",
    "TokenStoreCorrupt",
    "TokenStoreFailed",
    "TransportError",
    "Unavailable",
    "Unknown",
    "UnknownDialect",
    "Unreachable",
    "Unreadable",
    "Unsupported",
    "UsageError",
    "User",
    "Verb",
    "bulk",
    "connect",
    "dialect_names",
    "evolve",
    "origin",
]
