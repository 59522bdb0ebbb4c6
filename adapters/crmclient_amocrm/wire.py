"""amoCRM's shapes of API v2, one to one, in its own words. Sources: reference amocrm-v2, sections named beside each rule."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from attrs import evolve, field, frozen

from crmclient.dialect import Made as Written
from crmclient.dialect import Receipt, Refused, Reply, Row, Unknown, array, is_mapping, mapping
from crmclient.entities import Kind, Label, NoteKind
from crmclient.errors import AmbiguousWrite, Issue, NotFound, Rejected, Unreadable
from crmclient.serial import strict

CONVERTER = strict()

API = "/api/v2"

# §12, §13: `type=` of a list, and `element_type` of a row. 12 is a customer, which the model does not name.
TYPES: Mapping[Kind, str] = {Kind.CONTACT: "contact", Kind.DEAL: "lead", Kind.COMPANY: "company"}
ELEMENTS: Mapping[Kind, int] = {Kind.CONTACT: 1, Kind.DEAL: 2, Kind.COMPANY: 3, Kind.TASK: 4}
KINDS: Mapping[int, Kind] = {number: kind for kind, number in ELEMENTS.items()}

# §6: the groups of custom fields in the account.
GROUPS: Mapping[str, Kind] = {"contacts": Kind.CONTACT, "companies": Kind.COMPANY, "leads": Kind.DEAL}

# §6: "Phone enums: WORK, WORKDD, MOB, FAX, HOME, OTHER; e-mail: WORK, PRIV, OTHER".
LABELS: Mapping[str, Mapping[str, Label]] = {
    "PHONE": {
        "WORK": Label.WORK,
        "WORKDD": Label.WORK_DIRECT,
        "MOB": Label.MOBILE,
        "FAX": Label.FAX,
        "HOME": Label.HOME,
        "OTHER": Label.OTHER,
    },
    "EMAIL": {"WORK": Label.WORK, "PRIV": Label.PRIVATE, "OTHER": Label.OTHER},
}

# §6, §13. What is not here keeps the vendor's number in `raw_kind`.
NOTE_KINDS: Mapping[int, NoteKind] = {
    4: NoteKind.TEXT,
    5: NoteKind.FILE,
    7: NoteKind.MAIL,
    10: NoteKind.CALL_IN,
    11: NoteKind.CALL_OUT,
    25: NoteKind.SERVICE,
    102: NoteKind.SMS_IN,
    103: NoteKind.SMS_OUT,
}
# §13: these may be added; 13 too, but it is a task's result and is written with the task.
ADDABLE = (4, 10, 11, 25, 102, 103)
TASK_RESULT = 13
# §13: "25: {text, service}, text of the note ignored; 102/103: {text, phone}".
TEXT_IN_PARAMS = (25, 102, 103)


@frozen(kw_only=True)
class Tag:
    id: int | None = None
    name: str | None = None


@frozen(kw_only=True)
class Linked:
    """One row that is tied to this one; a company comes with its name, which may be null (§8)."""

    id: int | None = None
    name: str | None = None


@frozen(kw_only=True)
class LinkedMany:
    id: list[int] | None = None


@frozen(kw_only=True)
class CustomField:
    """§7. ``values`` stay as they came: their shape follows from the type, which the row tells since 2021 only."""

    id: int
    name: str | None = None
    code: str | None = None
    type_id: int | None = None
    values: list[Any] | None = None


@frozen(kw_only=True)
class CustomFields:
    custom_fields: list[CustomField] | None = None


@frozen(kw_only=True)
class _Owned:
    id: int
    responsible_user_id: int | None = None
    created_by: int | None = None
    updated_by: int | None = None
    created_at: int | None = None
    updated_at: int | None = None


@frozen(kw_only=True)
class Contact(_Owned):
    """§9; companies (§10) are the same with contacts in place of a company, and without first and last name."""

    name: str | None = None
    first_name: str | None = None
    last_name: str | None = None
    company: Linked | None = None
    contacts: LinkedMany | None = None
    leads: LinkedMany | None = None
    tags: list[Tag] | None = None
    custom_fields: list[CustomField] | None = None


@frozen(kw_only=True)
class Lead(_Owned):
    """§11. The page of 2017 has no ``pipeline_id``, only ``pipeline``."""

    name: str | None = None
    sale: int | None = None
    status_id: int | None = None
    pipeline_id: int | None = None
    pipeline: Linked | None = None
    closed_at: int | None = None
    is_deleted: bool | None = None
    main_contact: Linked | None = None
    contacts: LinkedMany | None = None
    company: Linked | None = None
    tags: list[Tag] | None = None
    custom_fields: list[CustomField] | None = None


@frozen(kw_only=True)
class Result:
    text: str | None = None


@frozen(kw_only=True)
class Task(_Owned):
    """§12: "complete_till or complete_till_at"; a task about nothing has element 0 or none."""

    text: str | None = None
    task_type: int | None = None
    complete_till: int | None = None
    complete_till_at: int | None = None
    element_id: int | None = None
    element_type: int | None = None
    is_completed: bool | None = None
    result: Result | None = None


@frozen(kw_only=True)
class Note(_Owned):
    """§13: "text or params"; real keys of params may be in capitals."""

    element_id: int | None = None
    element_type: int | None = None
    note_type: int | None = None
    text: str | None = None
    params: Any = None


@frozen(kw_only=True)
class User:
    """§6."""

    id: int
    name: str | None = None
    last_name: str | None = None
    login: str | None = None
    is_active: bool | None = None
    is_admin: bool | None = None


@frozen(kw_only=True)
class Status:
    """§6, §11: 142 is won and 143 lost in every pipeline; ``editable`` is "Y" or "N" on the account's page."""

    id: int
    name: str | None = None
    sort: int | None = None
    color: str | None = None
    is_editable: bool | None = None
    editable: str | None = None


@frozen(kw_only=True)
class Pipeline:
    """§15."""

    id: int
    name: str | None = None
    sort: int | None = None
    is_main: bool | None = None
    statuses: list[Status] | None = None


@frozen(kw_only=True)
class Enum:
    id: int
    value: str


@frozen(kw_only=True)
class TaskType:
    """§6."""

    id: int
    name: str | None = None


@frozen(kw_only=True)
class FieldDefinition:
    """§6: ``code`` is "" where there is none, and missing on the page of 2017; enums are a map there and a list here."""

    id: int
    name: str | None = None
    code: str | None = None
    field_type: int | None = None
    is_system: bool | None = None
    enums: list[Enum] | None = None


@frozen(kw_only=True)
class Account:
    """§6."""

    id: int
    name: str | None = None
    subdomain: str | None = None
    currency: str | None = None
    timezone: str | None = None
    timezone_offset: str | None = None
    current_user: int | None = None


@frozen(kw_only=True)
class Customer(_Owned):
    """§14. Read by a flow of ``extras``; ``raw`` is the row as it came."""

    name: str | None = None
    next_price: int | None = None
    next_date: int | None = None
    periodicity: int | None = None
    period_id: int | None = None
    is_deleted: bool | None = None
    main_contact: Linked | None = None
    contacts: LinkedMany | None = None
    company: Linked | None = None
    tags: list[Tag] | None = None
    custom_fields: list[CustomField] | None = None
    raw: Any = field(default=None, eq=False, repr=False)


@frozen(kw_only=True)
class Subscription:
    """§16."""

    id: int | None = None
    url: str | None = None
    events: list[str] | None = None


# --------------------------------------------------------------------------------------------------------- leniency

_OBJECTS = ("company", "contacts", "leads", "customers", "main_contact", "pipeline", "result")
_LISTS = ("tags", "custom_fields", "statuses", "values", "events")


def listed(tree: Any) -> list[Any]:
    """PHP has one array: ``{}``, ``[]``, null and nothing are one empty (§8), and a map by id is a list (§6)."""
    if is_mapping(tree):
        return list(tree.values())
    return [*array(tree)]


def canonical(row: Any) -> Any:
    """The row with its empties as one: an empty object None, an empty list a list; the rest is the converter's to judge."""
    if not is_mapping(row):
        return row
    found: dict[str, Any] = dict(row)
    for name in _OBJECTS:
        if not found.get(name):
            found[name] = None
        elif isinstance(found[name], Mapping) and isinstance(found[name].get("id"), Mapping):
            found[name] = {**found[name], "id": listed(found[name]["id"])}
    for name in _LISTS:
        if name in found and (not found[name] or isinstance(found[name], Mapping)):
            found[name] = listed(found[name])
    if isinstance(found.get("custom_fields"), list):
        found["custom_fields"] = [canonical(each) for each in found["custom_fields"]]
    if "enums" in found:
        found["enums"] = _enums(found["enums"])
    return found


def _enums(tree: Any) -> list[Any]:
    """``{"211979": "WORK"}`` in a recording, ``[{"id": 3685087, "value": "WORK"}]`` on the page (§6)."""
    if not is_mapping(tree):
        return listed(tree)
    return [{"id": number(id), "value": value} for id, value in tree.items()]


def number(given: object) -> Any:
    """Digits as a number: an enum is an int in real data and a string on the page of 2017 (§7)."""
    if isinstance(given, str) and given.isascii() and given.isdecimal() and len(given) < 19:
        return int(given)
    return given


# "closest_task_at 0 when none, and -62169993017 (year zero) seen" (§8); a client's milliseconds were stored too (§4).
_YEAR_10000 = 253_402_300_800


def moment(epoch: object) -> datetime | None:
    """Unix seconds; 0, the year zero and what lies behind the calendar are no moment."""
    if isinstance(epoch, int) and not isinstance(epoch, bool) and 0 < epoch < _YEAR_10000:
        return datetime.fromtimestamp(epoch, UTC)
    return None


# ------------------------------------------------------------------------------------------------------- envelopes


def rows(reply: Reply) -> Sequence[Any]:
    """The rows of a list, ``_embedded.items``, a list or a map by id; a 204 without a body is an empty one (§3, §4)."""
    said = complaint(reply)
    if reply.body is None or (said is not None and said.code == NOTHING_FOUND):
        return ()
    embedded = mapping(reply.body).get("_embedded")
    if not isinstance(embedded, dict) or "items" not in embedded:
        raise Unreadable("a list was due, with its rows in _embedded.items", status=reply.status)
    return listed(embedded["items"])


def one(reply: Reply) -> Any | None:
    """A single row is a list of one; a 204 says there is none (§3)."""
    found = rows(reply)
    if len(found) > 1:
        raise Unreadable(f"one row was due, and {len(found)} came", status=reply.status)
    return found[0] if found else None


def part(word: str) -> Callable[[Reply], Sequence[Any]]:
    """The rows of a part of the account (§6)."""

    def found(reply: Reply) -> Sequence[Any]:
        return listed(mapping(mapping(reply.body).get("_embedded")).get(word))

    return found


def definitions(reply: Reply) -> Sequence[Any]:
    """The custom fields of the account, each under the group that says whose they are: the row itself does not (§6)."""
    groups = mapping(mapping(mapping(reply.body).get("_embedded")).get("custom_fields"))
    return [{"group": group, "definition": each} for group in GROUPS for each in listed(groups.get(group))]


# --------------------------------------------------------------------------------------------------- errors in bodies

NOTHING_FOUND = "2002"  # §5


@frozen(kw_only=True)
class Complaint:
    """An error as a body tells it. ``key`` names the row, where the body does."""

    text: str
    code: str | None = None
    key: str | None = None


def complaint(reply: Reply) -> Complaint | None:
    """The error of a whole request, in the three bodies of §4; None where there is none."""
    body = mapping(reply.body)
    response = mapping(body.get("response"))
    if "error" in response or "error_code" in response:
        return Complaint(text=_said(response.get("error")), code=_code(response.get("error_code")))
    if body.get("status") == "fail":
        return Complaint(text=_said(body.get("error")), code=_code(body.get("error_code")))
    if "title" in body and "detail" in body:
        return Complaint(text=_said(body.get("detail")) or _said(body.get("title")))
    return None


def complaints(reply: Reply, verb: str) -> list[Complaint]:
    """The errors of single rows inside a 200, in the three shapes of §4.

    1. ``{"update": {"<id>": "text"}}``, 2. ``{"add": [{"code", "message"}]}``, 3. ``[{"msg", "code", "item": {…}}]``.
    """
    errors: Any = mapping(mapping(reply.body).get("_embedded")).get("errors")
    told: Any = mapping(errors).get(verb) if isinstance(errors, dict) else errors
    if is_mapping(told):
        return [_one_of(str(key), each) for key, each in told.items()]
    return [_one_of(None, each) for each in listed(told)]


def _one_of(key: str | None, told: Any) -> Complaint:
    said = mapping(told)
    sent = mapping(said.get("item")).get("request_id")
    text = _said(said.get("message") or said.get("msg") or (told if isinstance(told, str) else None))
    return Complaint(text=text, code=_code(said.get("code")), key=_said(sent) or key)


def _said(given: object) -> str:
    return str(given) if isinstance(given, str | int) else ""


def _code(given: object) -> str | None:
    """A string in the recordings, a number on the pages (§2)."""
    return str(given) if isinstance(given, str | int) and given != "" else None


# What §5 says in English, and the neutral field it is about.
RULES: Mapping[str, tuple[str, str | None]] = {
    "204": ("the account has no such custom field", "fields"),
    "211": ("the account has no such custom field", "fields"),
    "240": ("the account has no such custom field", "fields"),
    "238": ("a custom field has no value", "fields"),
    "212": ("the row was not updated", None),
    "217": ("id and updated_at are needed", "id"),
    "225": ("there is no such note", "id"),
    "231": ("there is no such task", "id"),
    "226": ("there is no such row to hang it on", "target"),
    "232": ("what it hangs on is missing or of the wrong kind", "target"),
    "233": ("there is no such contact", "target"),
    "234": ("there is no such lead", "target"),
    "235": ("what it hangs on is missing or of the wrong kind", "target"),
    "236": ("there is no such contact", "target"),
    "237": ("there is no such lead", "target"),
    "330": ("too many rows are linked", None),
}
# §4: the text is all that shape 1 tells.
_STALE = "last modified date is older"
_ABSENT = ("element not found", "entity not found")
_NO_ROW = "there is no such row"
# §5: of notes, of tasks, of catalogs.
NO_ROWS = ("225", "231", "282")


def issue(told: Complaint, row: int | None = None) -> Issue:
    rule, about = RULES.get(told.code or "", (told.text or "refused", None))
    if told.text.lower().startswith(_STALE):
        rule, about = "the row was changed after it was read, or its updated_at lies ahead: read it again", "updated_at"
    elif told.text.lower().rstrip(".") in _ABSENT:
        rule, about = _NO_ROW, "id"
    return Issue(rule=rule, field=about, code=told.code, detail=told.text or None, row=row)


# ------------------------------------------------------------------------------------------- what became of each row

# §4: a refused new row is named by its place, or by its request id; a refused update by its id. So that none of these
# can be taken for another, request ids begin far above any place (0..499), and those of updates above those of adds.
ADDED, UPDATED = 1_000_000, 2_000_000


def request_id(verb: str, row: Row) -> int:
    return (ADDED if verb == "add" else UPDATED) + row.request_id


def created(reply: Reply, sent: Sequence[Row]) -> tuple[Receipt[Any], ...]:
    """By request id; by place only when the counts agree and nothing failed; else unknown (§4)."""
    items = _items(reply)
    told = complaints(reply, "add")
    made = _echoed("add", items, sent)
    if not made and not told and len(items) == len(sent):
        made = {row.number: item for row, item in zip(sent, items, strict=True)}
    places = {str(place): row.number for place, row in enumerate(sent)}
    names = {**places, **{str(request_id("add", row)): row.number for row in sent}}
    return _receipts(reply, sent, made, _refused(told, names, sent, made))


def updated(reply: Reply, sent: Sequence[Row]) -> tuple[Receipt[Any], ...]:
    """By request id where it comes back with the row's own id, else by the id; never by place (§4)."""
    items = _items(reply)
    told = complaints(reply, "update")
    own = {row.number: row.id for row in sent}
    made = {at: item for at, item in _echoed("update", items, sent).items() if item.get("id") == own[at]}
    for row in sent:
        of_this_id = [item for item in items if item.get("id") == row.id]
        if row.number not in made and len(of_this_id) == 1 and list(own.values()).count(row.id) == 1:
            made[row.number] = of_this_id[0]
    names = {
        **{str(request_id("update", row)): row.number for row in sent},
        **{str(row.id): row.number for row in sent},
    }
    receipts = _receipts(reply, sent, made, _refused(told, names, sent, made))
    return tuple(_absent(each) for each in receipts)


def _absent(receipt: Receipt[Any]) -> Receipt[Any]:
    """A row that is not there cannot be changed, which is told as by everybody else."""
    if not isinstance(receipt, Refused) or not isinstance(receipt.error, Rejected):
        return receipt
    said = receipt.error
    if all(each.rule != _NO_ROW for each in said.issues) and said.code not in NO_ROWS:
        return receipt
    vendor: dict[str, Any] = {name: getattr(said, name) for name in ("status", "request_id", "code", "detail")}
    return Refused(error=NotFound(_NO_ROW, **vendor))


def _items(reply: Reply) -> list[dict[str, Any]]:
    """Sent was a write, so an answer without rows is told of the rows and not of the answer: each is unknown."""
    return [mapping(each) for each in listed(mapping(mapping(reply.body).get("_embedded")).get("items"))]


def _echoed(verb: str, items: Iterable[dict[str, Any]], sent: Sequence[Row]) -> dict[int, dict[str, Any]]:
    by_request = {str(item.get("request_id")): item for item in items}
    named = {row.number: by_request.get(str(request_id(verb, row))) for row in sent}
    return {at: item for at, item in named.items() if item is not None}


def _refused(
    told: Sequence[Complaint], names: Mapping[str, int], sent: Sequence[Row], made: Mapping[int, Any]
) -> dict[int, Complaint]:
    refused = {names[each.key]: each for each in told if each.key is not None and each.key in names}
    # Shape 2 names no row: if as many were refused as are left, these are the ones, in their order.
    loose = [each for each in told if each.key is None]
    left = [row.number for row in sent if row.number not in made and row.number not in refused]
    return refused | (dict(zip(left, loose, strict=True)) if len(left) == len(loose) else {})


def _receipts(
    reply: Reply, sent: Sequence[Row], made: Mapping[int, dict[str, Any]], refused: Mapping[int, Complaint]
) -> tuple[Receipt[Any], ...]:
    vendor: dict[str, Any] = {"status": reply.status, "request_id": reply.request_id}
    found: list[Receipt[Any]] = []
    for row in sent:
        item, told = made.get(row.number, {}), refused.get(row.number)
        id = item.get("id")
        if isinstance(id, int) and not isinstance(id, bool):
            # §4: the stored updated_at is the client's, and the next one must be greater.
            at = moment(item.get("updated_at")) or moment(row.wire.get("updated_at"))
            found.append(Written(id=id, known={"updated_at": at} if at else {}))
        elif told is not None:
            why = issue(told, row.number)
            error = Rejected("the row was refused", [why], code=told.code, detail=told.text or None, **vendor)
            found.append(Refused(error=error))
        else:
            said = "the answer to the batch does not name this row: it is unknown whether it was applied"
            found.append(Unknown(error=AmbiguousWrite(said, **vendor)))
    return tuple(found)


_NOBODYS = {"item": {"request_id": "?"}}


def hooked(reply: Reply, sent: Sequence[Row]) -> tuple[Receipt[Any], ...]:
    """§16: ``{"url", "result", "notice"}`` for each address; an answer that does not name one leaves it unknown."""
    told = {str(item.get("url")): item for item in _items(reply)}
    return tuple(_hooked(reply, row, told.get(str(row.wire.get("url", row.id)), {})) for row in sent)


def _hooked(reply: Reply, row: Row, item: dict[str, Any]) -> Receipt[Any]:
    vendor: dict[str, Any] = {"status": reply.status, "request_id": reply.request_id}
    if item.get("result") is True:
        return Written(id=str(item["url"]))
    if item.get("result") is False:
        said = _said(item.get("notice")) or None
        why = Issue(rule=said or "refused", field="url", detail=said, row=row.number)
        return Refused(error=Rejected("the webhook was refused", [why], detail=said, **vendor))
    return Unknown(error=AmbiguousWrite("the answer does not name this address", **vendor))


def apart(reply: Reply, changed: Iterable[object]) -> tuple[Reply, Reply]:
    """The two halves of an answer in which adds and updates are mixed (§4): the rows of these ids are the updated ones.

    A bare list of errors names a row only with the row itself; what else it says leaves the rows it may mean unknown.
    """
    ids = set(changed)
    body = mapping(reply.body)
    embedded = mapping(body.get("_embedded"))
    items = _items(reply)
    errors = embedded.get("errors")
    if not isinstance(errors, dict):
        named = [each for each in listed(errors) if _one_of(None, each).key is not None]
        errors = named + [_NOBODYS] * (len(named) < len(listed(errors)))

    def half(kept: list[Any]) -> Reply:
        return evolve(reply, body={**body, "_embedded": {**embedded, "items": kept, "errors": errors}})

    old = [item for item in items if isinstance(item.get("id"), int) and item["id"] in ids]
    return half([item for item in items if item not in old]), half(old)
