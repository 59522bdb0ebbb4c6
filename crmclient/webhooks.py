"""What a vendor sends by itself, as values: a delivery is verified, then read into events, and neither does any I/O.

A delivery is a hint. Its entities are the ones the API gives, but partly: ``unread`` names all that it did not bring, and
what matters is read again from the API before it is acted upon.
"""

import hmac
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, TypeVar

from attrs import evolve, field, frozen

from crmclient.dialect import Context, Secret, Tree, Unparsed, array, mapping
from crmclient.entities import Entity, Id, Kind, Ref, field_names
from crmclient.errors import AuthFailed, Unreadable
from crmclient.formats import Json, in_order, is_indexed, php_tree

E = TypeVar("E", bound=Entity)
T = TypeVar("T")

# ---------------------------------------------------------------------------------------------------- what is told


class Action(StrEnum):
    """What happened to a row. Won and lost are changes of stage too; ``OTHER`` keeps the vendor's word in ``word``."""

    ADDED = "added"
    UPDATED = "updated"
    DELETED = "deleted"
    RESTORED = "restored"
    STAGE_CHANGED = "stage_changed"
    WON = "won"
    LOST = "lost"
    COMPLETED = "completed"
    RESPONSIBLE_CHANGED = "responsible_changed"
    OTHER = "other"


@frozen(kw_only=True)
class Event:
    """One thing that happened to one row. ``word`` is the vendor's own name of it, ``raw`` the row as it was sent.

    ``kind``, ``ref`` and ``entity`` are None for rows that have no neutral kind (a chat message, an incoming lead).
    ``extra`` tells what was before, as far as it came: ``old_stage``, ``old_pipeline`` and ``old_owner`` are Refs,
    ``old_text`` is a str. ``at`` is when it happened, or None where the vendor does not tell. A row that cannot be read
    has no entity, and ``problem`` says why.
    """

    action: Action
    word: str
    kind: Kind | None = None
    ref: Ref | None = None
    entity: Entity | None = None
    account: Id | None = None
    at: datetime | None = None
    extra: Mapping[str, Any] = field(factory=dict[str, Any])
    problem: Unreadable | None = field(default=None, eq=False)
    raw: Any = field(default=None, eq=False, repr=False)


def partial(entity: E, brought: Iterable[str], raw: Any) -> E:
    """The entity as a delivery told it: the neutral fields it did not bring are unread, not empty.

    A delivery's row has another shape than the API's, so an update is compared with the entity itself, as it was told.
    """
    missing = frozenset(field_names(type(entity))) - frozenset(brought)
    told = evolve(entity, raw=raw, unread=missing, written=None)
    return evolve(told, written=told)


# -------------------------------------------------------------------------------------------------- what arrives


@frozen(kw_only=True)
class Delivery:
    """One request as it arrived, before anything of it is believed. Header names are lower case."""

    method: str
    path: str = ""
    query: Mapping[str, str] = field(factory=dict[str, str], repr=False)
    headers: Mapping[str, str] = field(factory=dict[str, str], repr=False)
    body: bytes = field(default=b"", repr=False)

    @property
    def media_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


def _secrets(given: str | Secret | Iterable[str | Secret] | None) -> tuple[Secret, ...]:
    if given is None:
        return ()
    each = (given,) if isinstance(given, str | Secret) else given
    return tuple(Secret(one) for one in each)


@frozen(kw_only=True)
class Secrets:
    """What proves a delivery: several of each while one is being replaced by another.

    ``token`` stands in the address the vendor was given; ``signing`` is what the vendor signs with.
    """

    token: tuple[Secret, ...] = field(default=(), converter=_secrets)
    signing: tuple[Secret, ...] = field(default=(), converter=_secrets)


@frozen(kw_only=True)
class Webhook:
    """How one dialect's deliveries are verified and read: two pure functions.

    ``verify`` raises AuthFailed, without saying what was wrong. ``read`` raises Unreadable for a delivery that is none;
    one bad row of many becomes an event with its ``problem``.
    """

    verify: Callable[[Delivery, Secrets], None]
    read: Callable[[Delivery, Context], tuple[Event, ...]]


# ---------------------------------------------------------------------------------------------------- verifying


def _same(given: Iterable[bytes], expected: Iterable[bytes]) -> bool:
    """Whether any of these is any of those; all are compared, each in constant time."""
    against = [each for each in expected if each]
    found = [hmac.compare_digest(one, each) for one in given for each in against]
    return any(found)


def by_token(delivery: Delivery, secrets: Secrets) -> None:
    """For vendors that sign nothing: a secret token is the last step of the path, or ``token`` in the query.

    Raises AuthFailed without it.
    """
    last = delivery.path.rstrip("/").rpartition("/")[2]
    given = [each.encode("utf-8", "surrogatepass") for each in (last, delivery.query.get("token", ""))]
    if not _same(given, [secret.reveal().encode() for secret in secrets.token]):
        raise AuthFailed("the delivery does not prove where it comes from")


def by_hmac_sha256(signature: str | None, message: str, secrets: Secrets) -> None:
    """The signature in lower-case hex, over the message, with any of the signing secrets. Raises AuthFailed otherwise."""
    expected = [
        hmac.new(secret.reveal().encode(), message.encode("utf-8", "surrogatepass"), "sha256").hexdigest().encode()
        for secret in secrets.signing
        if secret
    ]
    if not _same([(signature or "").encode("utf-8", "surrogatepass")], expected):
        raise AuthFailed("the delivery does not prove where it comes from")


# ------------------------------------------------------------------------------------------------------ reading


_JSON = Json()
_FORM = "application/x-www-form-urlencoded"


def json_of(delivery: Delivery, *, depth: int = 16, size: int = 1 << 20) -> dict[str, Any]:
    """The object in a JSON body. Raises Unreadable for anything else, and for what is too long or too deep."""
    _posted(delivery, "application/json")
    if len(delivery.body) > size:
        raise Unreadable(f"a delivery of {len(delivery.body)} bytes; at most {size} are read")
    tree = _JSON.decode(delivery.body, "application/json")
    if isinstance(tree, Unparsed):
        raise Unreadable(f"the delivery is {tree.reason}")
    if not isinstance(tree, dict):
        raise Unreadable("the delivery is no JSON object")
    level: list[Any] = [tree]
    for _ in range(depth):
        level = [below for part in level for below in _below(part)]
        if not level:
            return mapping(tree)  # pyright: ignore[reportUnknownArgumentType]
    raise Unreadable(f"the delivery is nested deeper than {depth}")


def _below(part: Any) -> list[Any]:
    return [each for each in (*mapping(part).values(), *array(part)) if isinstance(each, dict | list)]


def form_of(delivery: Delivery, also_parents: Iterable[tuple[str, ...]] = ()) -> dict[str, Any]:
    """What a PHP-style form holds; ``php_tree`` says what it refuses. Raises Unreadable."""
    _posted(delivery, _FORM)
    return php_tree(delivery.body, also_parents=also_parents)


def _posted(delivery: Delivery, media_type: str) -> None:
    if delivery.method != "POST":
        raise Unreadable(f"a delivery comes by POST, not by {delivery.method[:20]}")
    if delivery.media_type != media_type:
        raise Unreadable(f"a delivery of {media_type} was due, not of {delivery.media_type[:80] or 'no type'}")
    if delivery.headers.get("content-encoding", "identity") != "identity":
        raise Unreadable("the delivery is compressed")


def rows_of(families: Tree) -> Iterator[tuple[str, str, Any]]:
    """The rows of ``{family: {action: [row, …], …}, …}``: family, action and row, each list in its order.

    A row may stand there without a list around it, and an action without a family, which is then ``""``.
    """
    for family, actions in mapping(families).items():
        if not isinstance(actions, dict | list):
            continue
        if is_indexed(actions):
            yield from (("", family, row) for row in in_order(actions))
            continue
        for action, listed in mapping(actions).items():
            rows = in_order(listed) if is_indexed(listed) else (listed,)
            yield from ((family, action, row) for row in rows)


# ------------------------------------------------------------------------------------------------------ lifting


@frozen
class Word:
    """How one word of a delivery's row is read: as which of the API's, by what, and which neutral fields it brings."""

    to: str
    read: Callable[[Any], Any]
    brings: tuple[str, ...] = ()


def lifted(row: Mapping[str, Any], words: Mapping[str, Word]) -> tuple[dict[str, Any], set[str]]:
    """A delivery's row in the API's words, and the neutral fields it brings. What is empty there is left out.

    Where two words are the same one, the later in ``words`` wins. Raises Unreadable for a value of the wrong kind.
    """
    found: dict[str, Any] = {}
    brought: set[str] = set()
    for name, word in words.items():
        if name not in row:
            continue
        brought.update(word.brings)
        if row[name] is None or row[name] == "":
            continue
        try:
            found[word.to] = word.read(row[name])
        except (TypeError, ValueError) as wrong:
            raise Unreadable(f"{name}: {wrong}", raw=row) from None
    return found, brought


_WHOLE = re.compile(r"-?[0-9]{1,19}", re.ASCII)
_AMOUNT = re.compile(r"-?[0-9]{1,19}(\.[0-9]{1,9})?", re.ASCII)


def whole(given: object) -> int:
    """A whole number, or its digits: in a form everything is text. TypeError otherwise."""
    if isinstance(given, int) and not isinstance(given, bool):
        return given
    if isinstance(given, str) and _WHOLE.fullmatch(given):
        return int(given)
    raise TypeError(f"expected a whole number, got {given!r:.80}")


def amount(given: object) -> Decimal:
    """A number, or its digits. TypeError otherwise."""
    if isinstance(given, int | Decimal) and not isinstance(given, bool):
        return Decimal(given)
    if isinstance(given, str) and _AMOUNT.fullmatch(given):
        return Decimal(given)
    raise TypeError(f"expected an amount, got {given!r:.80}")


def text(given: object) -> str:
    """A text, and nothing else. TypeError otherwise."""
    if isinstance(given, str):
        return given
    raise TypeError(f"expected a text, got {given!r:.80}")


def label(given: object) -> int | str:
    """A number or a text: an option by its id or its name. TypeError otherwise."""
    if isinstance(given, int | str) and not isinstance(given, bool):
        return given
    raise TypeError(f"expected a number or a text, got {given!r:.80}")


def anything(given: T) -> T:
    """What the API's own codec will judge."""
    return given
