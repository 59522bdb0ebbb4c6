"""The XML API's shapes, one to one, in its own words.

The vendor's page shows the questions and of the answers one (reference amocrm-xml §5, §6): so an element is looked for
under every name it may have, in any order, and what is not told is told apart from what is empty. An element is the
format's plain tree: ``{"tag", "text", "attributes", "children"}``, tags in lower case, comments passed over.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, TypeAlias, TypeVar

from attrs import fields_dict, frozen

from crmclient.dialect import Made, Receipt, Reply, Row, Tree, array, mapping
from crmclient.entities import Kind, Label
from crmclient.errors import Rejected, Unreadable

T = TypeVar("T")
Element: TypeAlias = dict[str, Any]
Tags: TypeAlias = tuple[str, ...]

API = "/private/api"

# seed: "ELEMENT_TYPE=1 for contacts, 2 for deals".
ELEMENTS: Mapping[Kind, int] = {Kind.CONTACT: 1, Kind.DEAL: 2}
KINDS: Mapping[int, Kind] = {number: kind for kind, number in ELEMENTS.items()}

# seed: "TASK_TYPE => type of problem, maybe CALL / LETTER / MEETING".
TASK_TYPES = ("CALL", "LETTER", "MEETING")

# §4: "locations seen: Work, Mobile (phones), Work (e-mail)"; the others are the later API's. Read in any case.
PHONE_LABELS: Mapping[str, Label] = {
    "Work": Label.WORK,
    "WorkDD": Label.WORK_DIRECT,
    "Mobile": Label.MOBILE,
    "Fax": Label.FAX,
    "Home": Label.HOME,
    "Other": Label.OTHER,
}
EMAIL_LABELS: Mapping[str, Label] = {"Work": Label.WORK, "Private": Label.PRIVATE, "Other": Label.OTHER}
SHORT_LABELS: Mapping[str, str] = {"mob": "mobile", "priv": "private"}


@frozen(kw_only=True)
class Words:
    """The tags of the answers, as no source evidences most of them; all are read.

    What programs read is in §5, the rest is the proposal of §6 and, beside it, the names of the questions.
    """

    contacts: Tags = ("contacts",)
    contact: Tags = ("contact",)
    deals: Tags = ("deals",)
    deal: Tags = ("deal",)
    notes: Tags = ("notes",)
    tasks: Tags = ("tasks",)
    users: Tags = ("users",)
    name: Tags = ("name", "person_name")
    position: Tags = ("position", "person_position")
    company: Tags = ("company",)
    is_company: Tags = ("is_company",)
    phones: Tags = ("phones", "phone_numbers")
    emails: Tags = ("emails", "email_addresses")
    webs: Tags = ("webs", "web_addresses")
    addresses: Tags = ("addresses",)
    messengers: Tags = ("messengers", "instant_messengers")
    location: Tags = ("location",)
    protocol: Tags = ("protocol",)
    tags: Tags = ("tags",)
    user: Tags = ("user", "main_user", "main_user_id")
    price: Tags = ("price",)
    status: Tags = ("status", "status_id")
    body: Tags = ("body", "text")
    end_date: Tags = ("end_date",)
    task_type: Tags = ("task_type",)
    completed: Tags = ("completed",)
    element_id: Tags = ("element_id", "task_object")
    element_type: Tags = ("element_type",)
    date_create: Tags = ("date_create",)
    date_modify: Tags = ("date_modify",)
    error: Tags = ("error",)
    error_code: Tags = ("error_code",)


USUAL = Words()

# --------------------------------------------------------------------------------------------------------- elements


def children(element: Tree) -> Sequence[Element]:
    """What is in an element; nothing is in what is none."""
    return array(mapping(element).get("children"))


def child(element: Tree, tags: Tags) -> Element | None:
    """The child under the likeliest of these tags."""
    found = children(element)
    for tag in tags:
        for each in found:
            if each["tag"] == tag:
                return each
    return None


def find(root: Tree, tags: Tags) -> Element | None:
    """The outermost element of these tags, wherever it is (§6)."""
    level: Sequence[Element] = children(root)
    while level:
        for element in level:
            if element["tag"] in tags:
                return element
        level = [below for element in level for below in children(element)]
    return None


def told(element: Tree, tags: Tags) -> str | None:
    """The text of a child or, as with Bitrix's ``ID="1"``, of an attribute; an empty one is None."""
    found = child(element, tags)
    if found is not None:
        return found["text"] or None
    attributes = mapping(mapping(element).get("attributes"))
    return next((attributes[tag] for tag in tags if attributes.get(tag)), None)


# ---------------------------------------------------------------------------------------------------------- scalars


def number(text: str | None) -> int | None:
    """An id; '' and '0' are both said for none (§4)."""
    if text is not None and not re.fullmatch(r"[0-9]{1,18}", text, re.ASCII):
        raise ValueError(f"{text!r:.80} is no number")
    return int(text or 0) or None


def amount(text: str | None) -> Decimal | None:
    """§7.22: "number" only. Blanks may part the thousands; a comma with one or two digits after it is the point."""
    digits = re.sub(r"[\s\u00a0\u202f]", "", text or "")
    if not digits:
        return None
    if not re.fullmatch(r"-?[0-9]{1,20}(\.[0-9]{1,10}|,[0-9]{1,2})?", digits, re.ASCII):
        raise ValueError(f"{text!r:.80} is no amount")
    return Decimal(digits.replace(",", "."))


# §7.5: "DD.MM.YYYY HH: MI: SS" and, in the same sentence, "01/14/2011 2:00:00": with slashes the month is first.
_MOMENT = re.compile(r"(\d{1,2})([./])(\d{1,2})\2(\d{4})(?:\s+(\d{1,2}):\s*(\d{1,2})(?::\s*(\d{1,2}))?)?", re.ASCII)


def moment(text: str | None) -> datetime | None:
    """A time of the account's clock, without its zone; a date of zeros is an empty one."""
    if text is None or not text.strip("0.:/ "):
        return None
    found = _MOMENT.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r:.80} is no time like DD.MM.YYYY HH:MM:SS")
    first, second = int(found[1]), int(found[3])
    day, month = (second, first) if found[2] == "/" else (first, second)
    hour, minute, second = (int(part or 0) for part in found.groups()[4:])
    return datetime(int(found[4]), month, day, hour, minute, second)


def flag(text: str | None) -> bool:
    # §5: <is_company> holds "something containing 1" for companies.
    return text is not None and (text.lower() in ("true", "y", "yes") or "1" in text)


# ----------------------------------------------------------------------------------------------------------- shapes


@frozen(kw_only=True)
class Named:
    """Another row: a company, a user, a status, a linked deal. Its id or its name may be all that is told."""

    id: int | None = None
    name: str | None = None


@frozen
class Entry:
    """A phone, an e-mail, a web page, an address or a messenger; ``label`` is the location or protocol, verbatim."""

    value: str
    label: str = ""


@frozen(kw_only=True)
class _Told:
    """``told`` names the sections that the row has, empty or not."""

    id: int
    user: Named | None
    told: frozenset[str]


@frozen(kw_only=True)
class Contact(_Told):
    name: str | None
    position: str | None
    company: Named | None
    phones: Sequence[Entry]
    emails: Sequence[Entry]
    webs: Sequence[Entry]
    addresses: Sequence[Entry]
    messengers: Sequence[Entry]
    tags: Sequence[str]
    deals: Sequence[Named]
    date_create: datetime | None
    date_modify: datetime | None


@frozen(kw_only=True)
class Deal(_Told):
    name: str | None
    price: Decimal | None
    status: Named | None
    contacts: Sequence[Named]
    tags: Sequence[str]
    date_create: datetime | None
    date_modify: datetime | None


@frozen(kw_only=True)
class Note(_Told):
    body: str | None
    element_id: int | None
    element_type: int | None
    date_create: datetime | None


@frozen(kw_only=True)
class Task(_Told):
    body: str | None
    end_date: datetime | None
    task_type: str | None
    completed: bool
    element_id: int | None
    element_type: int | None


def contact(row: Element, words: Words) -> Contact:
    return _read(
        "contact",
        row,
        lambda: Contact(
            **_common(row, words),
            name=told(row, words.name),
            position=told(row, words.position),
            company=named(child(row, words.company)),
            phones=entries(child(row, words.phones), words.location),
            emails=entries(child(row, words.emails), words.location),
            webs=entries(child(row, words.webs), ()),
            addresses=entries(child(row, words.addresses), ()),
            messengers=entries(child(row, words.messengers), words.protocol),
            tags=_tags(child(row, words.tags)),
            deals=_all_named(child(row, words.deals)),
            date_create=moment(told(row, words.date_create)),
            date_modify=moment(told(row, words.date_modify)),
        ),
    )


def deal(row: Element, words: Words) -> Deal:
    return _read(
        "deal",
        row,
        lambda: Deal(
            **_common(row, words),
            name=told(row, words.name),
            price=amount(told(row, words.price)),
            status=named(child(row, words.status)),
            contacts=_all_named(child(row, words.contacts)),
            tags=_tags(child(row, words.tags)),
            date_create=moment(told(row, words.date_create)),
            date_modify=moment(told(row, words.date_modify)),
        ),
    )


def note(row: Element, words: Words) -> Note:
    return _read(
        "note",
        row,
        lambda: Note(
            **_common(row, words),
            body=told(row, words.body),
            element_id=number(told(row, words.element_id)),
            element_type=number(told(row, words.element_type)),
            date_create=moment(told(row, words.date_create)),
        ),
    )


def task(row: Element, words: Words) -> Task:
    return _read(
        "task",
        row,
        lambda: Task(
            **_common(row, words),
            body=told(row, words.body),
            end_date=moment(told(row, words.end_date)),
            task_type=told(row, words.task_type),
            completed=flag(told(row, words.completed)),
            element_id=number(told(row, words.element_id)),
            element_type=number(told(row, words.element_type)),
        ),
    )


def _read(what: str, row: Element, made: Callable[[], T]) -> T:
    try:
        return made()
    except ValueError as wrong:
        raise Unreadable(f"{what} {told(row, ('id',))} has another shape than expected: {wrong}", raw=row) from None


def _common(row: Element, words: Words) -> dict[str, Any]:
    id = number(told(row, ("id",)))
    if id is None:
        raise ValueError("it has no id")
    sections = (name for name in fields_dict(Words) if child(row, getattr(words, name)) is not None)
    return {"id": id, "user": named(child(row, words.user)), "told": frozenset(sections)}


def named(element: Element | None) -> Named | None:
    """``<user><id/><name/></user>``, or an id or a name alone; of a user it is the second child that is the name (§5)."""
    if element is None:
        return None
    id, text = told(element, ("id",)), element["text"]
    if id is None and not children(element):
        id, text = (text, "") if text.isascii() and text.isdecimal() else (None, text)
    others = (each["text"] for each in children(element) if each["tag"] != "id")
    found = Named(id=number(id), name=told(element, ("name",)) or next(others, text) or None)
    return found if found != Named() else None


def _all_named(element: Element | None) -> tuple[Named, ...]:
    return tuple(found for each in children(element) if (found := named(each)) is not None)


def _tags(element: Element | None) -> tuple[str, ...]:
    """One element a tag, or the comma string of the questions."""
    inner = [told(each, ("name",)) or each["text"] for each in children(element)]
    words = inner or (element or {"text": ""})["text"].split(",")
    return tuple(word.strip() for word in words if word.strip())


def entries(section: Element | None, labels: Tags) -> tuple[Entry, ...]:
    """§4, paired items: a value opens an entry, a label completes the last, be it in the same item or in the next.

    The value is the first child that is no label (§5 knows of a phone no more). An empty one is dropped.
    """
    found: list[Entry] = []
    for item in children(section):
        parts = children(item) or (item,)
        values = [part["text"] for part in parts if part["tag"] not in labels]
        label = next((part["text"] for part in parts if part["tag"] in labels), "")
        if values:
            found.append(Entry(values[0], label))
        elif found:
            found[-1] = Entry(found[-1].value, label)
    return tuple(entry for entry in found if entry.value)


# -------------------------------------------------------------------------------------------------------- envelopes


def rows(reply: Reply, section: Tags) -> Sequence[Element]:
    """The rows of a list or of a section of a detail; paging tags may stand among them (§6), but a row has an inside.

    A search that found nothing may leave the section out (§5).
    """
    found = find(reply.body, section)
    if found is None:
        paging_only = {each["tag"] for each in children(reply.body)} <= {"onpage", "totalpages", "currpage"}
        if not mapping(reply.body) or not paging_only:
            raise _other_than(f"a list was due, with <{section[0]}>", reply)
    return [row for row in children(found) if children(row) or row["attributes"]]


def one(reply: Reply, tags: Tags) -> Element:
    """The card of a detail page."""
    found = find(reply.body, tags)
    if found is None:
        raise _other_than(f"<{tags[0]}> was due", reply)
    return found


def _other_than(due: str, reply: Reply) -> Unreadable:
    tags = [each["tag"] for each in children(reply.body)]
    return Unreadable(f"{due}, and there came {tags or 'nothing'}", status=reply.status)


def pages(reply: Reply) -> int | None:
    """seed: "Information on pages contained in the XML-tags <onpage>, <totalpages> and <currpage>"."""
    text = str(mapping(find(reply.body, ("totalpages",))).get("text"))
    return int(text) if text.isascii() and text.isdecimal() else None


def written(reply: Reply, sent: Sequence[Row]) -> tuple[Receipt[Any]]:
    """§5: of a write's answer only <result> is known; the id may come beside it (§6)."""
    result = find(reply.body, ("result",))
    if result is None:
        raise _other_than("a <result> was due", reply)
    if result["text"].lower() in ("false", "0"):
        raise Rejected("the write was refused, without a reason", status=reply.status)
    try:
        id = sent[0].id if sent[0].id is not None else number(told(reply.body, ("id",)) or told(result, ("id",)))
    except ValueError as wrong:
        raise Unreadable(f"the new row's id: {wrong}", status=reply.status) from None
    return (Made(id=id),)
