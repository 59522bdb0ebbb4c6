"""amoCRM API v2 as a value. Sources: reference amocrm-v2, sections named beside each rule."""

from collections.abc import Iterable, Mapping, Sequence
from email.utils import format_datetime
from typing import Any

from attrs import evolve

from crmclient import entities, vocabulary
from crmclient.auth import Bearer, LoginNames, SessionLogin
from crmclient.dialect import (
    ALL,
    CREATE,
    READ,
    Call,
    ChangedSince,
    Dialect,
    Filter,
    Flow,
    FollowUp,
    Getting,
    Listing,
    Mending,
    Narrow,
    Nested,
    Rate,
    Reply,
    Resource,
    Row,
    Survives,
    Unparsed,
    Verb,
    Writing,
    by_status,
    mapping,
    read,
)
from crmclient.dialect import COMPLETE as COMPLETES
from crmclient.entities import Id, Kind, Ref
from crmclient.errors import (
    AuthFailed,
    Banned,
    CRMError,
    NotFound,
    RateLimited,
    Rejected,
    Unavailable,
    Unsupported,
)
from crmclient.flows import everything, settled
from crmclient.formats import Json
from crmclient.paging import Offset, Portions, Unpaged
from crmclient_amocrm import codec, wire
from crmclient_amocrm.codec import seconds_before
from crmclient_amocrm.webhooks import WEBHOOK
from crmclient_amocrm.wire import API, TYPES

# §3: "at most 500 rows"; a walk ends with the 204 that follows the last row.
PAGING = Offset(limit="limit_rows", offset="limit_offset", size=500)
# §3: If-Modified-Since; an order that is promised there is none.
CHANGED = ChangedSince()

# §3: a write takes 500 rows; 250 are advised, or a 504 may come.
BATCH, ADVISED = 500, 250


# ------------------------------------------------------------------------------------------------------- the judge

# §5. 401 is the answer of a server on which the account is not kept.
_LOGINS = {
    "110": "the login, or its key or password, is wrong, or the session has ended",
    "111": "too many failed logins: log in with a browser and solve the captcha",
    "112": "the user is switched off, or does not belong to the account",
    "113": "this address is not on the account's list of allowed ones",
    "101": "there is no such account",
    "401": "the account is not on this server",
}
_NO_RIGHTS = ("202", "244", "288")


def judge(call: Call, reply: Reply) -> CRMError | None:
    """§3, §4, §5: the status first, as a body may be HTML or of any of three forms; then the code, also in a 200."""
    said = wire.complaint(reply)
    verdict = by_status(call, reply)
    if said is not None and said.code == wire.NOTHING_FOUND:
        return None
    if verdict is None:
        return _refused_alone(call, reply) if said is None else _by_code(call, said, _vendor(reply, said))
    if isinstance(reply.body, Unparsed) and reply.status == 403:
        return _banned(_vendor(reply, said))
    if said is not None and (reply.status in (400, 401) or (reply.status == 403 and said.code is not None)):
        return _by_code(call, said, _vendor(reply, said))
    verdict.code, verdict.detail = (said.code, said.text or None) if said is not None else (None, None)
    if reply.status == 402:
        verdict.message = "the account's subscription has ended"
    return verdict


def _vendor(reply: Reply, said: wire.Complaint | None) -> dict[str, Any]:
    return {
        "status": reply.status,
        "request_id": reply.request_id,
        "code": said.code if said else None,
        "detail": (said.text or None) if said else None,
    }


def _banned(vendor: dict[str, Any]) -> CRMError:
    return Banned("the account or this address is blocked for too many requests; only the vendor can lift it", **vendor)


def _by_code(call: Call, said: wire.Complaint, vendor: dict[str, Any]) -> CRMError:
    code, status = said.code or "", vendor["status"]
    # 101 has no HTTP status in the other group: an account that is not there has no rows either.
    if code in _LOGINS:
        return AuthFailed(_LOGINS[code], **vendor)
    if status == 401:
        return AuthFailed("the credentials were not accepted", **vendor)
    if code == "403":
        return _banned(vendor)
    if code == "429":
        return RateLimited("too many requests", **vendor)
    if code == "402":
        return AuthFailed("this has to be paid for first", **vendor)
    if code in _NO_RIGHTS or status == 403:
        return AuthFailed(f"{call.method} {call.path} is not allowed to these credentials", **vendor)
    if code in wire.NO_ROWS:
        return NotFound("the row is not there", **vendor)
    if code == "219":
        return Unavailable("the search failed for the moment", **vendor)
    return Rejected(f"{call.method} {call.path} was refused", [wire.issue(said)] if said.code else (), **vendor)


def _refused_alone(call: Call, reply: Reply) -> CRMError | None:
    """Rows that were sent without a request id are not told one by one: an error of theirs is the whole call's."""
    for verb in ("add", "update"):
        sent = [mapping(each) for each in wire.listed(mapping(call.body).get(verb))]
        told = wire.complaints(reply, verb) if sent and not any("request_id" in row for row in sent) else []
        if told:
            issues = [wire.issue(each) for each in told]
            return Rejected(issues[0].rule, issues, **_vendor(reply, told[0]))
    return None


def accepted(reply: Reply) -> bool:
    """§2: `"auth": true`, or false inside a 200."""
    return mapping(mapping(reply.body).get("response")).get("auth") is True


# -------------------------------------------------------------------------------------------------------- envelopes


def _listing(word: str, filters: Mapping[str, Narrow]) -> Listing:
    trusted = frozenset({"text"} & set(filters))
    return Listing(call=read(f"{API}/{word}"), rows=wire.rows, filters=filters, trusted=trusted, paged=_portions)


def _getting(word: str) -> Getting:
    def call(id: Id, target: Ref | None) -> Call:
        return read(f"{API}/{word}", ("id", str(id)))

    return Getting(call=call, row=wire.one)


# By key of a row as it is read: the key it is written with (§9, §10, §11).
_LINKED = {"leads": "leads_id", "contacts": "contacts_id"}
_NEUTRAL = {"leads": "deals", "contacts": "contacts"}


def _sendable(row: Row) -> dict[str, Any]:
    """The row as it is written, which is not as it is read: §9 to §13."""
    sent = {
        name: part for name, part in row.wire.items() if name not in ("company", "main_contact", "result", *_LINKED)
    }
    if "tags" in sent:
        sent["tags"] = ",".join(tag["name"] for tag in sent["tags"])
    if "custom_fields" in sent:
        sent["custom_fields"] = [_sendable_field(custom) for custom in sent["custom_fields"]]
    return sent | _links(row)


def _sendable_field(custom: Mapping[str, Any]) -> dict[str, Any]:
    """§7: a choice is sent as the id of its option, a multiple one as bare ids, a date without its time."""
    type, values = custom["type_id"], custom["values"]
    if type == 5:
        values = [str(each.get("enum", each["value"])) for each in values]
    elif type in (4, 10):
        values = [{"value": str(each.get("enum", each["value"]))} for each in values]
    elif type in (6, 14):
        values = [{"value": each["value"].removesuffix(" 00:00:00")} for each in values]
    return {"id": custom["id"], "values": values}


def _links(row: Row) -> dict[str, Any]:
    """Links are added by `…_id` and taken away by `unlink`: what is new, and what is gone (§9)."""
    sent: dict[str, Any] = {}
    gone: dict[str, Any] = {}
    for name, key in _LINKED.items():
        if name in row.wire:
            before, after = _ids_before(row, name), mapping(row.wire[name]).get("id", ())
            main = mapping(row.wire.get("main_contact")).get("id")
            # The first one becomes the main one.
            added = sorted((id for id in after if id not in before), key=lambda id: id != main)
            removed = [id for id in before if id not in after]
            if added:
                # §10: "contacts_id (comma string)"; elsewhere it is an array.
                textual = isinstance(row.entity, entities.Company) and name == "contacts"
                sent[key] = ",".join(map(str, added)) if textual else added
            if removed:
                gone[key] = removed
    if "company" in row.wire:
        company, before = mapping(row.wire["company"]), _company_before(row)
        if company.get("id") is not None:
            sent["company_id"] = company["id"]
        elif company.get("name"):
            sent["company_name"] = company["name"]
        elif before is not None:
            gone["company_id"] = before
    return {**sent, **({"unlink": gone} if gone else {})}


def _ids_before(row: Row, name: str) -> list[Any]:
    if row.whole:
        return []
    if row.entity.written is not None:
        return [link.ref.id for link in getattr(row.entity.written, _NEUTRAL[name])]
    return wire.listed(mapping(mapping(row.entity.raw).get(name)).get("id"))


def _company_before(row: Row) -> Any:
    if row.whole:
        return None
    if row.entity.written is not None:
        company = row.entity.written.company
        return company.ref.id if company is not None else None
    return mapping(mapping(row.entity.raw).get("company")).get("id")


def _added(rows: Sequence[Row]) -> dict[str, Any]:
    return {"add": [{**_sendable(row), "request_id": wire.request_id("add", row)} for row in rows]}


def _changed(rows: Sequence[Row]) -> dict[str, Any]:
    return {"update": [{"id": row.id, **_sendable(row), "request_id": wire.request_id("update", row)} for row in rows]}


def _changed_notes(rows: Sequence[Row]) -> dict[str, Any]:
    """§13: of a note its text can be changed, and that is sent as such."""
    texts = [evolve(row, wire=_text_alone(row.wire)) for row in rows]
    return _changed(texts)


def _text_alone(wired: Mapping[str, Any]) -> dict[str, Any]:
    inside = mapping(wired.get("params")).get("text")
    kept = {name: part for name, part in wired.items() if name not in ("note_type", "params")}
    return kept if inside is None else {**kept, "text": inside}


def _creating(word: str) -> Writing:
    return Writing(
        method="POST",
        path=lambda row: f"{API}/{word}",
        wrap=_added,
        unwrap=wire.created,
        batch=BATCH,
        advised_batch=ADVISED,
    )


def _updating(word: str) -> Writing:
    return Writing(
        method="POST",
        path=lambda row: f"{API}/{word}",
        wrap=_changed,
        unwrap=wire.updated,
        batch=BATCH,
        advised_batch=ADVISED,
    )


def _mending(word: str, needed: tuple[str, ...] = ()) -> Mending:
    """§4: a row built by hand does not know the updated_at it has to exceed; §12: nor the text that a task must have.

    A row that was read and changed by somebody since stays refused: it is for the caller to look at it again.
    """

    def wanted(row: Row, refusal: CRMError) -> bool:
        named = {issue.field for issue in refusal.issues} if isinstance(refusal, Rejected) else set[str]()
        by_hand = row.entity.raw is None and row.entity.written is None
        lacking = None in named and any(name not in row.wire for name in needed)
        return lacking or ("updated_at" in named and by_hand)

    def stored(rows: Sequence[Row]) -> Call:
        return read(f"{API}/{word}", ("id", ",".join(str(row.id) for row in rows)))

    def mended(rows: Sequence[Row], reply: Reply) -> list[Row]:
        there = {str(each.get("id")): each for each in map(mapping, wire.rows(reply))}
        found: list[Row] = []
        for row in rows:
            old = there.get(str(row.id), {})
            stamp = wire.number(old.get("updated_at"))
            if isinstance(stamp, int):
                known = {name: old.get(name) for name in needed}
                at = max(stamp + 1, row.wire.get("updated_at", 0))
                found.append(evolve(row, wire={**known, **row.wire, "updated_at": at}))
        return found

    return Mending(wanted=wanted, read=stored, mended=mended)


# ---------------------------------------------------------------------------------------------------------- filters

# A query of so many ids is well below the 8 kB a request line may have.
IDS_A_CALL = 200


def _portions(asked: Filter) -> Portions | None:
    """§9: beside `id` all else is ignored, limit_offset too, so a page is so many of the ids asked for."""
    ids = tuple(dict.fromkeys(map(str, asked.ids)))
    return Portions(name="id[]", given=ids, size=IDS_A_CALL) if ids else None


def _ids(call: Call, asked: Filter) -> Call:
    """The paging has put them there."""
    return call


def _updated_since(call: Call, asked: Filter) -> Call:
    """§3: `If-Modified-Since: Mon, 01 Aug 2017 07:07:23 UTC`."""
    assert asked.updated_since is not None  # noqa: S101  that is why this is called
    text = format_datetime(seconds_before(asked.updated_since), usegmt=True).replace("GMT", "UTC")
    return evolve(call, headers={**call.headers, "If-Modified-Since": text})


def _owner(call: Call, asked: Filter) -> Call:
    """§9: beside `id` it is ignored, as the stage and the target are: these are then looked at here."""
    if asked.ids or asked.owner is None:
        return call
    return call.with_query(("responsible_user_id", str(asked.owner.id)))


def _stage(call: Call, asked: Filter) -> Call:
    """§11: `status`, an array; 142 and 143 are in every pipeline, and which one is looked at here."""
    if asked.ids or asked.stage is None:
        return call
    return call.with_query(("status[]", str(asked.stage.id)))


def _target(call: Call, asked: Filter) -> Call:
    """§12: `element_id` of a `type`."""
    if asked.ids or asked.target is None or asked.target.kind not in TYPES:
        return call
    return call.with_query(("type", TYPES[asked.target.kind]), ("element_id", str(asked.target.id)))


def _query(call: Call, asked: Filter) -> Call:
    """§9: over filled fields, phones loosely; what it matched only the server knows."""
    if asked.ids:
        raise Unsupported("amoCRM v2 ignores a text beside ids: ask for one of the two")
    return call.with_query(("query", asked.text or ""))


_FILTERS: Mapping[str, Narrow] = {"updated_since": _updated_since, "ids": _ids, "owner": _owner}
_CARD_FILTERS: Mapping[str, Narrow] = {**_FILTERS, "text": _query}

# --------------------------------------------------------------------------------------------------------- resources

_WHO_AND_WHEN: Mapping[str, Survives] = {
    "owner": ALL,
    "created_by": READ | CREATE,
    "created_at": ALL,
    # §4: an update dates itself.
    "updated_at": READ | CREATE,
}
_CARD: Mapping[str, Survives] = {"name": ALL, "tags": ALL, "fields": ALL, "updated_by": READ, **_WHO_AND_WHEN}
_REACHABLE: Mapping[str, Survives] = {"phones": ALL, "emails": ALL}
# What codec.surviving_… keeps to, in words.
_CARD_LIMITS: Mapping[str, str] = {
    "phones": "phones with a label of the vendor's list",
    "emails": "e-mails with a label of the vendor's list",
    "tags": "tags travel as one text parted by commas, so none holds a comma, is empty or comes twice",
    "fields": "each under its field's id, with as many values as the field's type takes, a moment with its zone",
}

CONTACTS = Resource(
    entity=entities.Contact,
    vendor="contacts",
    evidence=CHANGED,
    decode=codec.decode_contact,
    encode=codec.encode_contact,
    surviving=codec.surviving_contact,
    limits={
        **_CARD_LIMITS,
        "company": "a company by its id or its name",
        "deals": "leads by their ids; which is the main one is not kept",
    },
    required=("name",),
    fields={
        **_CARD,
        **_REACHABLE,
        "first_name": ALL,
        "last_name": ALL,
        "position": ALL,
        "company": ALL,
        "deals": ALL,
    },
    routes={
        Verb.LIST: _listing("contacts", _CARD_FILTERS),
        Verb.GET: _getting("contacts"),
        Verb.CREATE: _creating("contacts"),
        Verb.UPDATE: evolve(_updating("contacts"), mending=_mending("contacts")),
    },
)

COMPANIES = Resource(
    entity=entities.Company,
    vendor="companies",
    evidence=CHANGED,
    decode=codec.decode_company,
    encode=codec.encode_company,
    surviving=codec.surviving_company,
    limits={
        **_CARD_LIMITS,
        "contacts": "contacts by their ids; which is the main one is not kept",
        "deals": "leads by their ids; which is the main one is not kept",
    },
    required=("name",),
    fields={**_CARD, **_REACHABLE, "contacts": ALL, "deals": ALL},
    routes={
        Verb.LIST: _listing("companies", _CARD_FILTERS),
        Verb.GET: _getting("companies"),
        Verb.CREATE: _creating("companies"),
        Verb.UPDATE: evolve(_updating("companies"), mending=_mending("companies")),
    },
)

LEADS = Resource(
    entity=entities.Deal,
    vendor="leads",
    evidence=CHANGED,
    decode=codec.decode_deal,
    encode=codec.encode_deal,
    beside=("loss_reason_id",),
    surviving=codec.surviving_deal,
    limits={
        **_CARD_LIMITS,
        "price": "a whole number in the account's own currency",
        "stage": "142 and 143 are stages of every pipeline: say which, with pipeline=",
        "contacts": "contacts by their ids",
        "company": "a company by its id: make it first",
    },
    required=("name",),
    fields={
        **_CARD,
        # §11: the page does not list it among what may be added.
        "created_by": READ,
        "price": ALL,
        "pipeline": ALL,
        "stage": ALL,
        "outcome": READ,
        "closed_at": READ,
        "contacts": ALL,
        "company": ALL,
        "deleted": READ,
    },
    routes={
        # §11 knows no filter by pipeline.
        Verb.LIST: _listing("leads", {**_CARD_FILTERS, "stage": _stage}),
        Verb.GET: _getting("leads"),
        Verb.CREATE: _creating("leads"),
        Verb.UPDATE: evolve(_updating("leads"), mending=_mending("leads")),
    },
)


def _results(rows: Sequence[Row]) -> list[FollowUp]:
    """§12: a task's result is a note of type 13 on the task; one a call, so that one failing is not told of others."""
    said = [row for row in rows if mapping(row.wire.get("result")).get("text")]
    return [
        FollowUp(call=_result(row.id, row.wire["result"]["text"]), field="result", rows=(row.number,)) for row in said
    ]


def _result(task: Id | None, text: str) -> Call:
    note = {"element_id": task, "element_type": wire.ELEMENTS[Kind.TASK], "note_type": wire.TASK_RESULT, "text": text}
    return Call("POST", f"{API}/notes", body={"add": [note]})


_CHANGED_TASKS = evolve(_updating("tasks"), mending=_mending("tasks", ("text",)))

TASKS = Resource(
    entity=entities.Task,
    vendor="tasks",
    evidence=CHANGED,
    decode=codec.decode_task,
    encode=codec.encode_task,
    surviving=codec.surviving_task,
    limits={
        "target": "a task hangs on a contact, a company or a lead, by its id",
    },
    required=("text",),
    fields={
        **_WHO_AND_WHEN,
        "text": ALL,
        "type": ALL,
        "due": ALL,
        "done": ALL | COMPLETES,
        # A result once given cannot be taken back.
        "result": READ | CREATE | COMPLETES,
        # §12 does not say how an update takes a task off what it is about.
        "target": READ | CREATE,
    },
    routes={
        Verb.LIST: _listing("tasks", {**_FILTERS, "target": _target}),
        Verb.GET: _getting("tasks"),
        Verb.CREATE: evolve(_creating("tasks"), then=_results, redates=True),
        Verb.UPDATE: _CHANGED_TASKS,
        Verb.COMPLETE: evolve(_CHANGED_TASKS, batch=1, advised_batch=None, then=_results),
    },
)


def _notes_under(kind: Kind, *query: tuple[str, str]) -> Call:
    """§13: `type` is required, else 221."""
    return read(f"{API}/notes", ("type", TYPES[kind]), *query)


def _notes_of(target: Ref) -> Call:
    return _notes_under(target.kind, ("element_id", str(target.id)))


def _one_note(id: Id, target: Ref | None) -> Call:
    if target is None or target.kind not in TYPES:
        raise Unsupported(
            "amoCRM v2 reads one note only with the kind of what it hangs on: give target=Ref(Kind.…, id)"
        )
    return _notes_under(target.kind, ("id", str(id)))


NOTES = Resource(
    entity=entities.Note,
    vendor="notes",
    evidence=CHANGED,
    decode=codec.decode_note,
    encode=codec.encode_note,
    surviving=codec.surviving_note,
    limits={
        "target": "a note hangs on a contact, a company or a lead, by its id",
        "kind": "a kind that is not the server's own to write",
        "raw_kind": "a kind that is not the server's own to write",
        "params": "a text has no params, and another note's own text is not among them",
    },
    required=("target",),
    fields={
        # §13: an update takes a text and nothing else.
        **dict.fromkeys(_WHO_AND_WHEN, READ | CREATE),
        "kind": READ | CREATE,
        "raw_kind": READ,
        "text": ALL,
        "params": READ | CREATE,
        "target": READ | CREATE,
    },
    routes={
        Verb.LIST: Listing(
            nested=Nested(parents=tuple(TYPES), every=_notes_under, of=_notes_of),
            rows=wire.rows,
            filters={"updated_since": _updated_since, "ids": _ids},
            paged=_portions,
        ),
        Verb.GET: Getting(call=_one_note, row=wire.one),
        Verb.CREATE: _creating("notes"),
        Verb.UPDATE: evolve(_updating("notes"), wrap=_changed_notes),
    },
)


def _account_with(*parts: str) -> Call:
    # §6: free users are shown only when asked for, and own rows as others do.
    free = (("free_users", "Y"),) if "users" in parts else ()
    return read(f"{API}/account", ("with", ",".join(parts)), *free)


USERS = Resource(
    entity=vocabulary.User,
    vendor="users",
    decode=codec.decode_user,
    fields={"name": READ, "email": READ, "active": READ, "admin": READ},
    routes={Verb.LIST: Listing(call=_account_with("users"), rows=wire.part("users"), paging=Unpaged())},
)

PIPELINES = Resource(
    entity=vocabulary.Pipeline,
    vendor="pipelines",
    decode=codec.decode_pipeline,
    fields={"name": READ, "sort": READ, "main": READ, "stages": READ},
    routes={
        Verb.LIST: Listing(call=read(f"{API}/pipelines"), rows=wire.rows, paging=Unpaged()),
        Verb.GET: _getting("pipelines"),
    },
)

FIELDS = Resource(
    entity=vocabulary.Field,
    vendor="custom fields",
    decode=codec.decode_field,
    fields={"entity": READ, "code": READ, "name": READ, "type": READ, "raw_type": READ, "options": READ},
    routes={Verb.LIST: Listing(call=_account_with("custom_fields"), rows=wire.definitions, paging=Unpaged())},
)


def _address(given: object) -> str:
    if isinstance(given, str) and given.startswith(("http://", "https://")):
        return given
    raise ValueError(f"amoCRM v2 knows a webhook by its address, http…, not by {given!r}")


def _hooking(verb: str) -> Writing:
    """§16: `subscribe` adds events to those of an address; `unsubscribe` without events ends all of it. Both repeat."""
    return Writing(
        method="POST",
        path=lambda row: f"{API}/webhooks/{verb}",
        wrap=lambda rows: {verb: [{**row.wire, "url": row.wire.get("url", row.id)} for row in rows]},
        unwrap=wire.hooked,
        replayable=True,
    )


WEBHOOKS = Resource(
    entity=vocabulary.Subscription,
    vendor="webhooks",
    decode=codec.decode_subscription,
    encode=codec.encode_subscription,
    id=_address,
    required=("url", "events"),
    fields={"url": READ | CREATE, "events": READ | CREATE},
    routes={
        Verb.LIST: Listing(call=read(f"{API}/webhooks"), rows=wire.rows, paging=Unpaged()),
        Verb.CREATE: _hooking("subscribe"),
        Verb.DELETE: _hooking("unsubscribe"),
    },
)

# ---------------------------------------------------------------------------------------------------------- settings


def _account() -> Flow[vocabulary.Account]:
    reply: Reply = yield read(f"{API}/account")
    return codec.decode_account(reply.body)


def _me() -> Flow[vocabulary.User]:
    account = yield from settled(lambda context: context.part("account"))
    id = mapping(account.raw).get("current_user")
    users: Iterable[vocabulary.User] = yield from settled(lambda context: context.part("users"))
    return next((user for user in users if user.id == id), vocabulary.User(id=id))


def _pipelines() -> Flow[tuple[vocabulary.Pipeline, ...]]:
    return everything(DIALECT, vocabulary.Pipeline)


def _task_types() -> Flow[tuple[vocabulary.TaskType, ...]]:
    reply: Reply = yield _account_with("task_types")
    return tuple(codec.decode_task_type(row) for row in wire.part("task_types")(reply))


def _users() -> Flow[tuple[vocabulary.User, ...]]:
    return everything(DIALECT, vocabulary.User)


def _fields() -> Flow[tuple[vocabulary.Field, ...]]:
    return everything(DIALECT, vocabulary.Field)


def _fields_of(kind: Kind) -> Any:
    """By id. One request serves the three kinds."""

    def fields() -> Flow[Mapping[Any, vocabulary.Field]]:
        every = yield from settled(lambda context: context.part("fields"))
        return {field.id: field for field in every if field.entity is kind}

    return fields


DIALECT = Dialect(
    name="amocrm",
    title="amoCRM v2",
    host="https://{account}.amocrm.ru",
    # §1.
    domains=("amocrm.ru", "amocrm.com"),
    format=Json(accept="application/hal+json, application/problem+json, application/json"),
    paging=PAGING,
    # §3.
    rate=(Rate(7, 1), Rate(50, 1, scope="account")),
    auth=(
        # §2: type=json counts in the query only; without it the answer is XML.
        SessionLogin(
            path="/private/api/auth.php",
            query=(("type", "json"),),
            names=LoginNames("USER_LOGIN", "USER_HASH", "USER_PASSWORD"),
            accepted=accepted,
        ),
        Bearer(),
    ),
    judge=judge,
    # No page tells it; a gateway gives up after a minute.
    quarantine=90.0,
    warnings=(
        "deals that are made in a stage may start what its Digital Pipeline does, mails to customers among it, and no page "
        "tells whether it does anything: switch it off while rows are moved",
    ),
    webhook=WEBHOOK,
    settings={
        "account": _account,
        "me": _me,
        "pipelines": _pipelines,
        "users": _users,
        "task_types": _task_types,
        "fields": _fields,
        **{f"fields:{kind}": _fields_of(kind) for kind in wire.GROUPS.values()},
    },
    resources={
        resource.entity: resource
        for resource in (CONTACTS, COMPANIES, LEADS, TASKS, NOTES, USERS, PIPELINES, FIELDS, WEBHOOKS)
    },
)
