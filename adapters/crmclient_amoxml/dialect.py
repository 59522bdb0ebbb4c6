"""The legacy amoCRM XML API as a value. Sources: the vendor's page (seed) and reference amocrm-xml, sections named."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from attrs import evolve, frozen

from crmclient import entities
from crmclient.auth import Bearer, LoginInBody, LoginNames, SessionLogin
from crmclient.dialect import (
    ALL,
    COMPLETE,
    CREATE,
    READ,
    Call,
    Dialect,
    Filter,
    Flow,
    Getting,
    Listing,
    Merging,
    Narrow,
    Nested,
    Rate,
    Reply,
    Resource,
    Row,
    Sought,
    Verb,
    Writing,
    by_status,
    mapping,
)
from crmclient.entities import Kind, Ref
from crmclient.errors import AuthFailed, CRMError, NotFound, Rejected
from crmclient.formats import FormsInXmlOut
from crmclient.paging import PageNumber
from crmclient.vocabulary import Field, TaskType
from crmclient_amoxml import codec, wire
from crmclient_amoxml.wire import API, ELEMENTS, USUAL, Element, Words

# §2: USER_HASH is the key of the user's profile; it changes with the password.
NAMES = LoginNames("USER_LOGIN", "USER_HASH", "USER_PASSWORD")

PAGES = {Kind.CONTACT: "contact", Kind.DEAL: "deal"}

# ----------------------------------------------------------------------------------------------------------- paging


@frozen(kw_only=True)
class Pages(PageNumber):
    """The end is <totalpages>. Companies that come among the contacts are rows of the page, though not of the listing.

    §3: that a search tells its pages is inferred; where it does not, a page that is not full is the last.
    """

    listed: Callable[[Reply], int]

    def after(self, position: int | str, reply: Reply, count: int) -> int | None:
        there = self.listed(reply)
        if wire.pages(reply) is None and there < self.size:
            return None
        return super().after(position, reply, there)


def paging(words: Words) -> Pages:
    """§7.1, §7.2: the seed says ELEMENT_CONT and names no page, live clients say ELEMENT_COUNT and PAGEN_1."""
    return Pages(
        page="PAGEN_1",
        limit=("ELEMENT_CONT", "ELEMENT_COUNT"),
        size=100,
        in_body=True,
        pages=wire.pages,
        listed=lambda reply: len(wire.rows(reply, words.contacts + words.deals)),
    )


# -------------------------------------------------------------------------------------------------------- the judge


def judge(words: Words, call: Call, reply: Reply) -> CRMError | None:
    """§2, §6: the body first, because it may say no inside a 200; then the status."""
    verdict = by_status(call, reply)
    if not mapping(reply.body):
        return verdict
    if (wire.told(reply.body, ("auth",)) or "").lower() == "false":
        # §2: 200 or 401, for a wrong key or for a session that is over; 401 is what it means.
        return AuthFailed("the login, its key or its password was not accepted, or the session is over", status=401)
    said, code = wire.told(reply.body, words.error), wire.told(reply.body, words.error_code)
    if verdict is not None and not isinstance(verdict, Rejected | NotFound):
        verdict.code, verdict.detail = code, said
        return verdict
    vendor: dict[str, Any] = {"status": reply.status, "request_id": reply.request_id, "code": code, "detail": said}
    if wire.child(reply.body, words.error) is not None:
        nobody = code == "404" or any(word in (said or "").casefold() for word in ("not found", "не найден"))
        # What is not there when a row is added is what it points at, and that is the row's fault.
        adds = str(mapping(call.body).get("ACTION")).startswith("ADD")
        error = NotFound if (nobody or isinstance(verdict, NotFound)) and not adds else Rejected
        return error(f"{call.method} {call.path} was refused", **vendor)
    if verdict is None and call.path.endswith("_detail.php") and not wire.children(reply.body):
        return NotFound(f"{call.method} {call.path} shows nothing", **vendor)  # §7.11: an error or silence
    return verdict


def accepted(reply: Reply) -> bool:
    return (wire.told(reply.body, ("auth",)) or "").lower() == "true"


# -------------------------------------------------------------------------------------------------------- envelopes


def page(name: str, **fields: Any) -> Call:
    """Reading is a POST here (seed); it is safe all the same."""
    return Call("POST", f"{API}/{name}.php", body=fields, safe=True, replayable=True)


def detail(ref: Ref) -> Call:
    return page(f"{PAGES[ref.kind]}_detail", ID=ref.id)


def _search(name: str) -> Narrow:
    """seed: "request to the page contact_search.php and the parameter to pass the word SEARCH"."""

    def narrow(call: Call, asked: Filter) -> Call:
        return evolve(call, path=f"{API}/{name}.php", body={**call.body, "SEARCH": asked.text})

    return narrow


def _writing(
    name: str,
    action: str,
    fields: Callable[[Row], Mapping[str, Any]] = lambda row: {},
    *,
    replayable: bool = False,
    find: Callable[[Any], Filter | None] | None = None,
) -> Writing:
    """A form with its ACTION and, for a row that is there already, its ID."""

    def wrap(rows: Sequence[Row]) -> dict[str, Any]:
        (row,) = rows
        return {"ACTION": action, **({"ID": row.id} if row.id is not None else {}), **fields(row)}

    path = f"{API}/{name}.php"
    return Writing(
        method="POST", path=lambda row: path, wrap=wrap, unwrap=wire.written, replayable=replayable, find=find
    )


def _by_word(row: entities.Contact | entities.Deal) -> Filter | None:
    """seed: "any keyword or (e-mail, name, company name, etc.)"; an e-mail is one word, and nobody else's."""
    words = [*(email.value for email in getattr(row, "emails", ())), row.name]
    words += [phone.value for phone in getattr(row, "phones", ())]
    word = next((word for word in words if word and word.strip()), None)
    return Filter(text=word) if word is not None else None


def _by_card(row: entities.Note | entities.Task) -> Filter | None:
    """A note or a task stands on the card of what it hangs on."""
    return Filter(target=row.target)


def task_types() -> Flow[tuple[TaskType, ...]]:
    """seed: "type of problem, maybe CALL / LETTER / MEETING": no page lists them, and none has to."""
    yield from ()
    codes = {"CALL": "FOLLOW_UP"}
    return tuple(TaskType(id=word, name=word.title(), code=codes.get(word, word)) for word in wire.TASK_TYPES)


def fields() -> Flow[Mapping[str, Field]]:
    """The sections of a contact's form that the model has no fields of its own for, by code: they are three and fixed."""
    yield from ()
    return {code: Field(entity=Kind.CONTACT, code=code, type=type) for code, type in codec.CODES.items()}


def _under(key: str) -> Callable[[Row], Mapping[str, Any]]:
    return lambda row: {key: row.wire}


def _plain(row: Row) -> Mapping[str, Any]:
    return row.wire


def _new_task(row: Row) -> Mapping[str, Any]:
    """§7.6: a new task's object is ID in the seed and TASK_OBJECT in a live client. Both are said."""
    return {**row.wire, "ID": row.wire["TASK_OBJECT"]}


def _old_task(row: Row) -> Mapping[str, Any]:
    """An edit names the object too: what it does without one is not known (DECISIONS: keeps it)."""
    return {**codec.linked(row.target), **row.wire}


def is_person(words: Words, row: Element) -> bool:
    """§5: companies come as <contact> too, with <is_company>1</is_company>."""
    return not wire.flag(wire.told(row, words.is_company))


# ------------------------------------------------------------------------------------------------------ the dialect

# What codec.surviving_… keeps to, in words.
SAYABLE = "a text without control characters, which XML cannot say"
TAGS = "tags travel as one text parted by commas, so none holds a comma, nor what XML cannot say"


def speaking(words: Words) -> Dialect:
    """The dialect with other tags for what no source evidences: what your account really answers."""

    def people(reply: Reply) -> list[Element]:
        return [row for row in wire.rows(reply, words.contacts) if is_person(words, row)]

    def person(reply: Reply) -> Element | None:
        row = wire.one(reply, words.contact)
        return row if is_person(words, row) else None

    one_contact = Getting(call=lambda id, target: detail(Ref(Kind.CONTACT, id)), row=person)
    one_deal = Getting(
        call=lambda id, target: detail(Ref(Kind.DEAL, id)), row=lambda reply: wire.one(reply, words.deal)
    )
    contacts = Resource(
        entity=entities.Contact,
        vendor="contacts",
        evidence=Sought(),
        decode=partial(codec.decode_contact, words),
        encode=codec.encode_contact,
        surviving=codec.surviving_contact,
        limits={
            "name": SAYABLE,
            "position": SAYABLE,
            "phones": "phones with a number and a label of the vendor's list",
            "emails": "e-mails with an address and a label of the vendor's list",
            "company": "a company by its id or its name, and no main one",
            "tags": TAGS,
            "fields": "web pages, addresses and messengers alone, by the codes WEB, ADDRESS and IM",
        },
        fields={
            "name": ALL,
            "position": ALL,
            "phones": ALL,
            "emails": ALL,
            "company": ALL,
            "tags": ALL,
            "fields": ALL,
            "owner": ALL,
            "deals": READ,
            "created_at": READ,
            "updated_at": READ,
        },
        routes={
            Verb.LIST: Listing(
                call=page("contacts"),
                rows=people,
                filters={"text": _search("contact_search")},
                trusted=frozenset({"text"}),
            ),
            Verb.GET: one_contact,
            Verb.CREATE: _writing("contact_add", "ADD_PERSON", _under("contact"), find=_by_word),
            Verb.UPDATE: Merging(
                read=one_contact,
                whole=partial(codec.whole_contact, words),
                lacks=partial(codec.contact_lacks, words),
                write=_writing("contact_add", "EDIT", _under("contact")),
            ),
            Verb.DELETE: _writing("contact_delete", "DELETE"),
        },
    )
    deals = Resource(
        entity=entities.Deal,
        vendor="deals",
        evidence=Sought(),
        decode=partial(codec.decode_deal, words),
        encode=codec.encode_deal,
        surviving=codec.surviving_deal,
        limits={
            "name": SAYABLE,
            "contacts": "one contact, which is the main one, by its id",
            "price": "an amount in the account's own currency",
            "tags": TAGS,
        },
        fields={
            "name": ALL,
            "price": ALL,
            "stage": ALL,
            "contacts": ALL,
            "tags": ALL,
            "owner": ALL,
            "created_at": READ,
            "updated_at": READ,
        },
        routes={
            Verb.LIST: Listing(
                call=page("deals"),
                rows=lambda reply: wire.rows(reply, words.deals),
                filters={"text": _search("deal_search")},
                trusted=frozenset({"text"}),
            ),
            Verb.GET: one_deal,
            Verb.CREATE: _writing("deal_add", "ADD", _under("deal"), find=_by_word),
            Verb.UPDATE: Merging(
                read=one_deal,
                whole=partial(codec.whole_deal, words),
                lacks=partial(codec.deal_lacks, words),
                write=_writing("deal_add", "EDIT", _under("deal")),
            ),
            Verb.DELETE: _writing("deal_delete", "DELETE"),
        },
    )
    # seed: "For a list of the notes on an object (contact or deal), you must request a detailed page on the object."
    notes = Resource(
        entity=entities.Note,
        vendor="notes",
        evidence=Sought(),
        decode=partial(codec.decode_note, words),
        encode=codec.encode_note,
        surviving=codec.surviving_note,
        limits={
            "text": SAYABLE,
            "target": "a note hangs on a contact or a deal",
        },
        required=("text", "target"),
        fields={"text": ALL, "target": READ | CREATE, "owner": READ, "created_at": READ},
        routes={
            Verb.LIST: Listing(
                rows=lambda reply: wire.rows(reply, words.notes), nested=Nested(parents=tuple(ELEMENTS), of=detail)
            ),
            Verb.CREATE: _writing("note_add", "ADD_NOTE", _plain, find=_by_card),
            Verb.UPDATE: _writing("note_add", "EDIT_NOTE", _plain),
            Verb.DELETE: _writing("note_add", "NOTE_DELETE"),
        },
    )
    tasks = Resource(
        entity=entities.Task,
        vendor="tasks",
        evidence=Sought(),
        decode=partial(codec.decode_task, words),
        encode=codec.encode_task,
        surviving=codec.surviving_task,
        limits={
            "text": SAYABLE,
            "target": "a task hangs on a contact or a deal",
            "type": f"a task is a {', '.join(wire.TASK_TYPES)}",
        },
        # seed: of the parameters only the object is "not required"; and without it no page shows the task again.
        required=("text", "due", "owner", "type", "target"),
        fields={"text": ALL, "due": ALL, "owner": ALL, "type": ALL, "target": ALL, "done": READ | COMPLETE},
        routes={
            Verb.LIST: Listing(
                rows=lambda reply: wire.rows(reply, words.tasks), nested=Nested(parents=tuple(ELEMENTS), of=detail)
            ),
            Verb.CREATE: _writing("task_add", "ADD_TASK", _new_task, find=_by_card),
            # One task cannot be read alone: what it was read with is laid under the change.
            Verb.UPDATE: Merging(
                whole=partial(codec.whole_task, words),
                lacks=partial(codec.task_lacks, words),
                write=_writing("task_add", "EDIT_TASK", _old_task),
            ),
            Verb.DELETE: _writing("task_add", "TASK_DELETE"),
            # Spelled so in the seed and in live clients. Completing again changes nothing.
            Verb.COMPLETE: _writing("task_add", "COMPLATE_TASK", replayable=True),
        },
    )
    return Dialect(
        name="amoxml",
        title="amoCRM XML",
        # seed: "the exact address of your account"; §1: .ru in live clients, .com too.
        host="https://{account}.amocrm.ru",
        domains=("amocrm.ru", "amocrm.com"),
        format=FormsInXmlOut(),
        paging=paging(words),
        # §7.20: no limit is stated; the later API's is assumed.
        rate=(Rate(7, 1),),
        # LoginEachCall is a Login too, so its scheme is asked first. §1: a token is taken by contact_search.php alone.
        auth=(
            LoginInBody(names=NAMES),
            SessionLogin(path=f"{API}/auth.php", names=NAMES, accepted=accepted),
            Bearer(),
        ),
        judge=partial(judge, words),
        # No page tells it; a request here holds one row.
        quarantine=60.0,
        zoned=True,
        settings={"task_types": task_types, f"fields:{Kind.CONTACT}": fields},
        resources={resource.entity: resource for resource in (contacts, deals, notes, tasks)},
    )


DIALECT = speaking(USUAL)
