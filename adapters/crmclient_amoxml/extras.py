"""What the XML API tells and the neutral client does not name, as flows for ``crm.run``."""

from crmclient import entities, vocabulary
from crmclient.dialect import Flow, Reply
from crmclient.entities import Ref
from crmclient_amoxml import wire
from crmclient_amoxml.dialect import detail, is_person, page, paging
from crmclient_amoxml.wire import USUAL, Words

__all__ = ["companies", "users"]


def companies(text: str, words: Words = USUAL) -> Flow[tuple[entities.Company, ...]]:
    """The companies among what a search finds: ``await crm.run(amoxml.companies("Ромашка"))``.

    There is no page of companies; a search shows them beside the contacts, as ``<contact>`` with ``is_company`` (§5).
    """
    pages, found = paging(words), list[entities.Company]()
    position: int | None = pages.first
    while position is not None:
        reply: Reply = yield pages.at(page("contact_search", SEARCH=text), position)
        rows = wire.rows(reply, words.contacts)
        for row in rows:
            if not is_person(words, row):
                read = wire.contact(row, words)
                found.append(entities.Company(id=read.id, name=read.name, raw=row))
        position = pages.after(position, reply, len(rows))
    return tuple(found)


def users(target: Ref, words: Words = USUAL) -> Flow[tuple[vocabulary.User, ...]]:
    """The users named on the detail page of a contact or a deal: there is no page of users, and tasks need one (§3)."""
    reply: Reply = yield detail(target)
    found = [(row, wire.named(row), wire.told(row, ("login",))) for row in wire.rows(reply, words.users)]
    return tuple(
        vocabulary.User(id=user.id, name=user.name, email=login, raw=row)
        for row, user, login in found
        if user is not None
    )
