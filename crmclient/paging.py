"""Where a listing goes on is a value computed from a value: no paging object remembers anything, a walk's Trail does."""

from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

from attrs import define, evolve, field, frozen

from crmclient.dialect import Call, Cursor, Pairs, Reply
from crmclient.errors import OriginRefused, Unreadable


@frozen(kw_only=True)
class Unpaged:
    """The whole list comes at once."""

    @property
    def first(self) -> int:
        return 1

    def at(self, call: Call, position: int | str) -> Call:
        return call

    def after(self, position: int | str, reply: Reply, count: int) -> None:
        return None

    def ahead(self, position: int | str, n: int) -> None:
        return None

    def last(self, reply: Reply) -> int:
        return 1


@frozen(kw_only=True)
class PageNumber:
    """Pages counted from 1.

    A short page is not the last page. The end is what the vendor says it is: ``next_link(reply)`` is None, or
    ``pages(reply)`` pages were read; without either, an empty page. A next link is an end sign and nothing else:
    it is checked for its origin and never followed.
    """

    page: str = "page"
    limit: str | tuple[str, ...] = "limit"
    size: int
    order: Pairs = ()
    next_link: Callable[[Reply], str | None] | None = None
    pages: Callable[[Reply], int | None] | None = None
    in_body: bool = False

    @property
    def first(self) -> int:
        return 1

    def at(self, call: Call, position: int | str) -> Call:
        limits = (self.limit,) if isinstance(self.limit, str) else self.limit
        pairs = ((self.page, str(position)), *((name, str(self.size)) for name in limits), *self.order)
        return _placed(call, pairs, self.in_body)

    def after(self, position: int | str, reply: Reply, count: int) -> int | None:
        if self.next_link is None and self.pages is not None and (total := self.pages(reply)) is not None:
            # So many there are, and one of them may show nothing: what is on it is of another kind, say.
            return int(position) + 1 if int(position) < total else None
        if count == 0:
            return None
        if self.next_link is not None:
            link = self.next_link(reply)
            if link is None:
                return None
            same_origin(link, reply.origin)
        return int(position) + 1

    def ahead(self, position: int | str, n: int) -> int:
        return int(position) + n

    def last(self, reply: Reply) -> int | None:
        return self.pages(reply) if self.pages is not None else None


@frozen(kw_only=True)
class Offset:
    """Rows skipped from 0. The end is an empty answer."""

    limit: str
    offset: str
    size: int
    in_body: bool = False

    @property
    def first(self) -> int:
        return 0

    def at(self, call: Call, position: int | str) -> Call:
        return _placed(call, ((self.limit, str(self.size)), (self.offset, str(position))), self.in_body)

    def after(self, position: int | str, reply: Reply, count: int) -> int | None:
        return None if count == 0 else int(position) + self.size

    def ahead(self, position: int | str, n: int) -> int:
        return int(position) + n * self.size

    def last(self, reply: Reply) -> None:
        return None


@frozen(kw_only=True)
class Portions:
    """So many of the given values a call, each as a pair of this name: for a vendor that pages no list of ids."""

    name: str
    given: tuple[str, ...]
    size: int

    @property
    def first(self) -> int:
        return 0

    def at(self, call: Call, position: int | str) -> Call:
        start = int(position) * self.size
        return call.with_query(*((self.name, each) for each in self.given[start : start + self.size]))

    def after(self, position: int | str, reply: Reply, count: int) -> int | None:
        return int(position) + 1 if int(position) < self.last(reply) else None

    def ahead(self, position: int | str, n: int) -> int:
        return int(position) + n

    def last(self, reply: Reply) -> int:
        return max(0, len(self.given) - 1) // self.size


@define
class Trail:
    """The pages that one walk has seen: a listing that leads back to one of them would run for ever."""

    _places: set[Cursor] = field(factory=set[Cursor])
    _pages: set[int] = field(factory=set[int])

    def step(self, at: Cursor, rows: Sequence[Any], following: Cursor | None) -> None:
        """Note a page and where it leads. Raises Unreadable where that has been before, or the page itself."""
        self._places.add(at)
        if following in self._places:
            raise Unreadable(f"the listing does not go on: after {at.at} comes {following.at} once more")
        if rows:
            # Its ends tell a page; all of it would cost more than reading it.
            page = hash((at.part, len(rows), repr(rows[0]), repr(rows[-1])))
            if page in self._pages:
                raise Unreadable(f"the listing does not go on: the page at {at.at} is one that has been before")
            self._pages.add(page)


def same_origin(link: str, origin: str) -> None:
    """Raise OriginRefused for a link that leads to another scheme, host or port. A path alone leads nowhere else."""
    try:
        there = urlsplit(link)
        port = there.port
    except ValueError:
        raise Unreadable(f"the answer's next link is no address: {link[:100]!r}") from None
    if not there.scheme and not there.netloc and link.startswith("/"):
        return
    here = urlsplit(origin)
    default = {"http": 80, "https": 443}
    mine = (here.scheme, (here.hostname or "").lower(), here.port or default.get(here.scheme))
    theirs = (there.scheme, (there.hostname or "").lower(), port or default.get(there.scheme))
    if mine != theirs or there.username or there.password:
        shown = f"{there.scheme}://{there.hostname}" if there.hostname else link[:100]
        raise OriginRefused(f"the answer's next link leads to {shown}, not to {origin}; the credentials stay here")


def _placed(call: Call, pairs: Pairs, in_body: bool) -> Call:
    if not in_body:
        return call.with_query(*pairs)
    body: dict[str, Any] = {**(call.body or {}), **dict(pairs)}
    return evolve(call, body=body)
