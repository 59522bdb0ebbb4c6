"""Kommo / amoCRM API v4 as a value. Sources: reference kommo-v4, sections named beside each rule."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeAlias

from attrs import evolve

from crmclient import entities, vocabulary
from crmclient.auth import Bearer, OAuth2
from crmclient.dialect import (
    ALL,
    COMPLETE,
    CREATE,
    READ,
    UPDATE,
    Call,
    Context,
    Dialect,
    Filter,
    Flow,
    FollowUp,
    Getting,
    Listing,
    Made,
    Narrow,
    Nested,
    NewestFirst,
    Rate,
    Receipt,
    Reply,
    Resource,
    Row,
    Survives,
    Unparsed,
    Verb,
    Writing,
    array,
    at_path,
    by_status,
    mapping,
    read,
    row_number,
)
from crmclient.entities import Id, Kind, Link, Ref
from crmclient.errors import (
    AuthFailed,
    Banned,
    CRMError,
    Invalid,
    Issue,
    NotFound,
    RateLimited,
    ReauthorizationRequired,
    Rejected,
    Unavailable,
    Unreadable,
    Unsupported,
)
from crmclient.flows import everything, settled
from crmclient.formats import Json
from crmclient.paging import PageNumber, Unpaged
from crmclient_kommo import codec, wire
from crmclient_kommo.webhooks import WEBHOOK
from crmclient_kommo.wire import API, TYPES

# §3.1, §3.6: the default order is by updated_at and shifts under edits; by id it stands still.
PAGING = PageNumber(page="page", limit="limit", size=250, order=(("order[id]", "asc"),), next_link=wire.next_link)
# §3.6: rows can be had by falling ids too.
NEWEST = NewestFirst(paging=evolve(PAGING, order=(("order[id]", "desc"),)))

# §2.3: a write takes 250 rows; 50 are advised, or a 504 may come.
BATCH, ADVISED = 250, 50


# ------------------------------------------------------------------------------------------------------- the judge

_TRANSIENT = "Возникла системная ошибка"  # §2.4: a 400 that is really transient


def judge(call: Call, reply: Reply) -> CRMError | None:
    """§2.2, §2.4: the status first; HTML is the gateway's, JSON the application's."""
    verdict = by_status(call, reply)
    if verdict is None:
        return None
    said = mapping(reply.body)
    # §1.4: the token endpoint tells its reason in `hint`, not in an OAuth `error`.
    code, detail = said.get("hint") or said.get("title"), said.get("detail")
    vendor: dict[str, Any] = {
        "status": reply.status,
        "request_id": reply.request_id,
        "code": code if isinstance(code, str) else None,
        "detail": detail if isinstance(detail, str) else None,
    }
    if reply.status == 429:
        # §2.2: no Retry-After is documented anywhere; the seconds stand in the body.
        asked = said.get("retry_after")
        after = float(asked) if isinstance(asked, int) and 0 < asked < 10**6 else None
        known = verdict.after if isinstance(verdict, RateLimited) else None
        return RateLimited("too many requests", after=known or after, **vendor)
    if reply.status == 403 and isinstance(reply.body, Unparsed):
        return Banned(
            "the account or this address is blocked for too many requests; only the vendor can lift it", **vendor
        )
    if reply.status == 402:
        return AuthFailed("the account is not paid", **vendor)
    if reply.status == 400 and call.signed:
        return _bad_request(call, said, vendor)
    verdict.code, verdict.detail = vendor["code"], vendor["detail"]
    return verdict


def _bad_request(call: Call, said: Mapping[str, Any], vendor: dict[str, Any]) -> CRMError:
    complaints = said.get("validation-errors")
    if not complaints:
        errors = array(said.get("errors"))
        if errors and mapping(errors[0]).get("code") == 226:
            return NotFound("the row is deleted", **vendor)  # §2.4
        if str(vendor["detail"] or "").startswith(_TRANSIENT):
            return Unavailable("the server failed for the moment", **vendor)
        return Rejected(f"{call.method} {call.path} was refused", **vendor)
    issues = [
        Issue(
            rule=_rule(mapping(each)),
            code=_text(mapping(each).get("code")),
            detail=_text(mapping(each).get("detail")),
            path=_text(mapping(each).get("path")),
            field=_text(mapping(each).get("path")),
            row=row_number(mapping(complaint).get("request_id")),
        )
        for complaint in array(complaints)
        for each in array(mapping(complaint).get("errors"))
    ]
    # §3.2, §5: so the one row that an address names is said to be missing. Of a batch, the row's own complaint says it.
    alone = call.method == "DELETE" or (call.method == "PATCH" and isinstance(call.body, Mapping))
    if alone and [(issue.code, issue.path) for issue in issues] == [("NotSupportedChoice", "id")]:
        return NotFound(f"{call.method} {call.path}: no such thing", **vendor)
    return Rejected(f"{call.method} {call.path} was refused", issues, **vendor)


_RULES = {
    "NotSupportedChoice": "the account has no such value here",
    "FieldNotExpected": "this may not be sent",
    "FieldMissing": "this is required",
    "InvalidType": "this is of the wrong type",
}


def _rule(complaint: Mapping[str, Any]) -> str:
    return _RULES.get(str(complaint.get("code")), _text(complaint.get("detail")) or "refused")


def _text(said: object) -> str | None:
    return said if isinstance(said, str) else None


def refused_token(verdict: CRMError) -> CRMError:
    """§1.4: what a refusal of the token endpoint means for the caller."""
    hint = verdict.code or ""
    vendor: dict[str, Any] = {"status": verdict.status, "code": verdict.code, "detail": verdict.detail}
    if verdict.status == 401:
        return ReauthorizationRequired(
            "the refresh token was used already or revoked, or the integration was switched off: log in again", **vendor
        )
    if "authorization code" in hint.lower():
        return ReauthorizationRequired(
            "the authorization code was used already, is older than 20 minutes or is no code: get a new one", **vendor
        )
    if "Invalid account" in hint:
        return AuthFailed("the integration was granted in another account than this host's", **vendor)
    if verdict.status == 404:
        # §1.4: what the vendor's own client takes for an account that was renamed or moved.
        return AuthFailed("no account answers at this host any more: it was renamed, moved or closed", **vendor)
    return AuthFailed("client_id, client_secret or redirect_uri is not the integration's", **vendor)


# -------------------------------------------------------------------------------------------------------- envelopes


def _listing(word: str, filters: Mapping[str, Narrow], *query: tuple[str, str]) -> Listing:
    trusted = frozenset({"text"} & set(filters))
    return Listing(call=read(f"{API}/{word}", *query), rows=wire.rows(word), filters=filters, trusted=trusted)


def _getting(word: str, *query: tuple[str, str]) -> Getting:
    def call(id: Id, target: Ref | None) -> Call:
        return read(at_path(f"{API}/{word}/{{id}}", id=id), *query)

    return Getting(call=call, row=wire.one)


# §4.8: what may be read inside a value and not written.
_UNSENT_INSIDE: Mapping[str, tuple[str, ...]] = {
    "file": ("is_deleted",),
    "items": ("is_discount_recalculated", "is_total_sum_recalculated", "total_sum"),
}


def sendable(row: Mapping[str, Any], *embedded: str) -> dict[str, Any]:
    """The row without what may be read and not written (FieldNotExpected, §4.8), and with only these embedded."""
    sent = dict(row)
    if "custom_fields_values" in sent:
        sent["custom_fields_values"] = [_sendable_field(custom) for custom in sent["custom_fields_values"]]
    inside = {name: part for name, part in mapping(sent.pop("_embedded", None)).items() if name in embedded}
    return {**sent, **({"_embedded": inside} if inside else {})}


def _sendable_field(custom: Mapping[str, Any]) -> dict[str, Any]:
    # field_id or field_code, and the id where both are known.
    named = "field_code" if custom.get("field_id") is None else "field_id"
    unsent = _UNSENT_INSIDE.get(str(custom.get("field_type")))
    values = custom["values"]
    if unsent and values:
        kept = [{name: part for name, part in mapping(each["value"]).items() if name not in unsent} for each in values]
        values = [{"value": each} for each in kept]
    return {named: custom.get(named), "values": values}


def _numbered(*embedded: str) -> Callable[[Sequence[Row]], list[dict[str, Any]]]:
    """§5: a collection takes an array, and tells its answers apart by request_id."""

    def wrap(rows: Sequence[Row]) -> list[dict[str, Any]]:
        return [{**sendable(row.wire, *embedded), "request_id": str(row.request_id)} for row in rows]

    return wrap


def _with_ids(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """§4.1, §4.2: of what a row embeds an update takes only the tags; whom it is tied to is told afterwards."""
    return [{"id": row.id, **sent} for row, sent in zip(rows, _numbered("tags")(rows), strict=True)]


# What of a row is a tie: the neutral field, and the vendor's word for what it leads to.
_TIES = (("contacts", "contacts"), ("company", "companies"))
_STAMPS = frozenset({"updated_at", "updated_by"})


def _tie(type: str) -> Callable[[Sequence[Row]], list[FollowUp]]:
    """§4.13: ties rows once they are written, and unties what is no longer asked for, 250 a request.

    What an updated row was tied to is known from its reading, or from what was last written; one that was built by hand
    is tied to what it names, and untied from nothing. Tying again changes nothing. A tie dates the row anew (§6), so who
    changed it and when is told once more where it was given.
    """

    def then(rows: Sequence[Row]) -> list[FollowUp]:
        steps: list[FollowUp] = []
        tied: set[int] = set()
        for name, word in _TIES:
            for doing, ties in zip(("link", "unlink"), _changed_ties(rows, name, word), strict=True):
                numbers = [number for number, _ in ties]
                for at, call in enumerate(wire.tie_calls(doing, type, [tie for _, tie in ties])):
                    here = numbers[at * wire.TIES_A_CALL : (at + 1) * wire.TIES_A_CALL]
                    steps.append(FollowUp(call=call, field=name, rows=tuple(dict.fromkeys(here))))
                    tied.update(here)
        dated = [row for row in rows if row.number in tied and not _STAMPS.isdisjoint(row.wire)]
        for at in range(0, len(dated), BATCH):
            here = dated[at : at + BATCH]
            body = [
                {
                    "id": row.id,
                    **{name: row.wire[name] for name in row.wire if name in _STAMPS},
                    "request_id": str(place),
                }
                for place, row in enumerate(here)
            ]
            call = Call("PATCH", f"{API}/{type}", body=body, replayable=True)
            steps.append(FollowUp(call=call, field="updated_at", rows=tuple(row.number for row in here)))
        return steps

    return then


def _changed_ties(rows: Sequence[Row], name: str, word: str) -> tuple[list[Any], list[Any]]:
    made: list[tuple[int, dict[str, Any]]] = []
    ended: list[tuple[int, dict[str, Any]]] = []
    for row in rows:
        embedded = mapping(row.wire.get("_embedded"))
        if word in embedded:
            before = {} if row.whole else _ties_before(row.entity, name, word)
            now = {each["id"]: bool(each.get("is_main")) for each in embedded[word]}
            new = {id: main for id, main in now.items() if id not in before or (main and not before[id])}
            made += [(row.number, wire.tie(row.id, word, id, main=main)) for id, main in new.items()]
            ended += [(row.number, wire.tie(row.id, word, id)) for id in before if id not in now]
    return made, ended


def _ties_before(entity: Any, name: str, word: str) -> dict[Any, bool]:
    """Whom a row was tied to, by id, and whether as the main one."""
    if entity.written is not None:
        held: Any = getattr(entity.written, name)
        links: Sequence[Link] = held if name == "contacts" else (held,) if held else ()
        return {link.ref.id: link.main for link in links}
    read = array(mapping(mapping(entity.raw).get("_embedded")).get(word))
    return {each.get("id"): bool(each.get("is_main")) for each in map(mapping, read)}


_Then: TypeAlias = Callable[[Sequence[Row]], Sequence[FollowUp]]


def _creating(word: str, *embedded: str, then: _Then | None = None) -> Writing:
    return Writing(
        method="POST",
        path=lambda row: f"{API}/{word}",
        wrap=_numbered(*embedded),
        unwrap=wire.created(word),
        batch=BATCH,
        advised_batch=ADVISED,
        atomic=True,
        then=then,
    )


def _updating(word: str, then: _Then | None = None) -> Writing:
    return Writing(
        method="PATCH",
        path=lambda row: f"{API}/{word}",
        wrap=_with_ids,
        unwrap=wire.updated(word),
        batch=BATCH,
        advised_batch=ADVISED,
        atomic=True,
        then=then,
        # Where only ties change, they are all there is to say.
        says=lambda row: then is None or bool(sendable(row.wire, "tags")),
    )


# ---------------------------------------------------------------------------------------------------------- filters


def _since(field: str, name: str) -> Narrow:
    def narrow(call: Call, asked: Filter) -> Call:
        moment: datetime = getattr(asked, name)
        return call.with_query((f"filter[{field}][from]", str(int(moment.timestamp()))))

    return narrow


# So many numbers in brackets are what an address of 8 kB holds.
IDS_A_CALL = 200


def _ids(call: Call, asked: Filter) -> Call:
    """Of more ids than an address holds none is asked for: all rows are read, and those are kept here."""
    if len(asked.ids) > IDS_A_CALL:
        return call
    return call.with_query(*((f"filter[id][{place}]", str(id)) for place, id in enumerate(asked.ids)))


def _by(field: str, name: str) -> Narrow:
    def narrow(call: Call, asked: Filter) -> Call:
        return call.with_query((f"filter[{field}][0]", str(getattr(asked, name).id)))

    return narrow


def _stage(call: Call, asked: Filter) -> Call:
    """§3.5: both keys are mandatory; a stage without its pipeline is looked for here."""
    if asked.stage is None or asked.pipeline is None:
        return call
    return call.with_query(
        ("filter[statuses][0][pipeline_id]", str(asked.pipeline.id)),
        ("filter[statuses][0][status_id]", str(asked.stage.id)),
    )


def _target(call: Call, asked: Filter) -> Call:
    """§3.5: entity_id needs entity_type."""
    if asked.target is None or asked.target.kind not in TYPES:
        return call
    return call.with_query(
        ("filter[entity_type]", TYPES[asked.target.kind]), ("filter[entity_id][0]", str(asked.target.id))
    )


def _query(call: Call, asked: Filter) -> Call:
    """§3.4: full-text over filled fields; what it matched only the server knows."""
    return call.with_query(("query", asked.text or ""))


_CARD_FILTERS: Mapping[str, Narrow] = {
    "updated_since": _since("updated_at", "updated_since"),
    "created_since": _since("created_at", "created_since"),
    "ids": _ids,
    "owner": _by("responsible_user_id", "owner"),
    "text": _query,
}

# --------------------------------------------------------------------------------------------------------- resources

_WHO_AND_WHEN: Mapping[str, Survives] = {
    "owner": ALL,
    "created_by": ALL,
    "updated_by": ALL,
    "created_at": ALL,
    "updated_at": ALL,
}
_CARD: Mapping[str, Survives] = {"name": ALL, "tags": ALL, "fields": ALL, "deleted": READ, **_WHO_AND_WHEN}
_REACHABLE: Mapping[str, Survives] = {"phones": ALL, "emails": ALL}
# What codec.surviving_… keeps to, in words.
_CARD_LIMITS: Mapping[str, str] = {
    "phones": "phones with a label of the vendor's list",
    "emails": "e-mails with a label of the vendor's list",
    "fields": "each under its field's id or code, with values of the type that is said of it, a moment with its zone",
}

_NAMES = {
    "name": "name",
    "first_name": "first_name",
    "last_name": "last_name",
    "price": "price",
    "status_id": "stage",
    "pipeline_id": "pipeline",
    "responsible_user_id": "owner",
    "created_by": "created_by",
    "updated_by": "updated_by",
    "created_at": "created_at",
    "updated_at": "updated_at",
    "closed_at": "closed_at",
    "text": "text",
    "complete_till": "due",
    "task_type_id": "type",
    "entity_id": "target",
    "entity_type": "target",
    "is_completed": "done",
    "result": "result",
    "duration": "duration",
    "note_type": "kind",
    "params": "params",
    "id": "id",
}
_EMBEDDED = {"tags": "tags", "contacts": "contacts", "companies": "company"}
_CODES = {codec.PHONE: "phones", codec.EMAIL: "emails", codec.POSITION: "position"}


def _neutral(path: str, row: Mapping[str, Any]) -> str | None:
    """§5: `path` is dotted and relative to the row, as in custom_fields_values.0.values.0.enum_code."""
    first, *rest = path.split(".")
    if first == "custom_fields_values":
        customs = array(row.get(first))
        place = int(rest[0]) if rest and rest[0].isdecimal() else len(customs)
        code = mapping(customs[place]).get("field_code") if place < len(customs) else None
        return _CODES.get(str(code), "fields")
    if first == "_embedded" and rest:
        return _EMBEDDED.get(rest[0])
    if first == "params" and rest == ["text"]:
        return "text"
    return _NAMES.get(first)


CONTACTS = Resource(
    entity=entities.Contact,
    vendor="contacts",
    evidence=NEWEST,
    decode=codec.decode_contact,
    encode=codec.encode_contact,
    check=codec.check_card,
    surviving=codec.surviving_contact,
    limits={
        **_CARD_LIMITS,
        "company": "a company by its id: make it first",
    },
    names=_neutral,
    fields={
        **_CARD,
        **_REACHABLE,
        "first_name": ALL,
        "last_name": ALL,
        "position": ALL,
        "company": ALL,
        "deals": READ,
    },
    routes={
        Verb.LIST: _listing("contacts", _CARD_FILTERS),
        Verb.GET: _getting("contacts", ("with", "leads")),
        # §4.2: of what a contact embeds only tags may be written.
        Verb.CREATE: _creating("contacts", "tags", then=_tie("contacts")),
        Verb.UPDATE: _updating("contacts", _tie("contacts")),
    },
)

COMPANIES = Resource(
    entity=entities.Company,
    vendor="companies",
    evidence=NEWEST,
    decode=codec.decode_company,
    encode=codec.encode_company,
    check=codec.check_card,
    surviving=codec.surviving_company,
    limits=_CARD_LIMITS,
    names=_neutral,
    fields={**_CARD, **_REACHABLE, "contacts": READ, "deals": READ},
    routes={
        Verb.LIST: _listing("companies", _CARD_FILTERS),
        Verb.GET: _getting("companies", ("with", "contacts,leads")),
        Verb.CREATE: _creating("companies", "tags"),
        Verb.UPDATE: _updating("companies"),
    },
)

LEADS = Resource(
    entity=entities.Deal,
    vendor="leads",
    evidence=NEWEST,
    decode=codec.decode_deal,
    encode=codec.encode_deal,
    beside=("loss_reason_id",),
    check=codec.check_card,
    surviving=codec.surviving_deal,
    limits={
        **_CARD_LIMITS,
        "price": "a whole number in the account's own currency",
        "contacts": "contacts by their ids",
        "company": "a company by its id: make it first",
    },
    names=_neutral,
    fields={
        **_CARD,
        "price": ALL,
        "pipeline": ALL,
        "stage": ALL,
        "outcome": READ,
        "closed_at": ALL,
        "contacts": ALL,
        "company": ALL,
    },
    routes={
        Verb.LIST: _listing(
            "leads",
            {**_CARD_FILTERS, "pipeline": _by("pipeline_id", "pipeline"), "stage": _stage},
            ("with", "contacts"),
        ),
        Verb.GET: _getting("leads", ("with", "contacts")),
        Verb.CREATE: _creating("leads", "tags", "contacts", "companies"),
        Verb.UPDATE: _updating("leads", _tie("leads")),
    },
)

TASKS = Resource(
    entity=entities.Task,
    vendor="tasks",
    evidence=NEWEST,
    decode=codec.decode_task,
    encode=codec.encode_task,
    surviving=codec.surviving_task,
    limits={
        "target": "a task hangs on a contact, a company or a lead, by its id",
        "duration": "whole seconds, more than none",
    },
    names=_neutral,
    # §4.4: "text: required on create; complete_till: required on create".
    required=("text", "due"),
    fields={
        **_WHO_AND_WHEN,
        "text": ALL,
        "type": ALL,
        "due": ALL,
        "duration": ALL,
        "done": ALL | COMPLETE,
        "result": READ | UPDATE | COMPLETE,
        "target": ALL,
    },
    routes={
        Verb.LIST: _listing(
            "tasks",
            {
                "updated_since": _since("updated_at", "updated_since"),
                "ids": _ids,
                "owner": _by("responsible_user_id", "owner"),
                "target": _target,
            },
        ),
        Verb.GET: _getting("tasks"),
        Verb.CREATE: _creating("tasks"),
        Verb.UPDATE: _updating("tasks"),
        # Completing again with the same result changes nothing.
        Verb.COMPLETE: Writing(
            method="PATCH",
            path=lambda row: at_path(f"{API}/tasks/{{id}}", id=row.id),
            unwrap=lambda reply, rows: (Made(id=rows[0].id),),
            replayable=True,
        ),
    },
)


def _notes_of(target: Ref) -> Call:
    return read(at_path(f"{API}/{TYPES[target.kind]}/{{id}}/notes", id=target.id), _PINNED)


# §3.3: else none says whether it is.
_PINNED = ("with", "is_pinned")


def _one_note(id: Id, target: Ref | None) -> Call:
    if target is None or target.kind not in TYPES:
        raise Unsupported("Kommo reads one note only under what it hangs on: give target=Ref(Kind.…, id)")
    return read(at_path(f"{API}/{TYPES[target.kind]}/{{target}}/notes/{{id}}", target=target.id, id=id))


def _notes_path(row: Row) -> str:
    if row.target is None or row.target.kind not in TYPES:
        raise Invalid("a note needs a target", [Issue(field="target", rule="the contact, company or lead it is of")])
    return f"{API}/{TYPES[row.target.kind]}/notes"


def _target_kind(row: Row) -> Kind | None:
    return row.target.kind if row.target else None


NOTES = Resource(
    entity=entities.Note,
    vendor="notes",
    evidence=NEWEST,
    decode=codec.decode_note,
    encode=codec.encode_note,
    beside=("is_pinned",),
    surviving=codec.surviving_note,
    limits={
        "target": "a note hangs on a contact, a company or a lead, by its id",
        "kind": "a kind that can be written",
        "raw_kind": "a kind that can be written, where the model has no name for it",
        "params": "a note of this kind goes as a text, which has no params",
    },
    names=_neutral,
    required=("target",),
    fields={
        "kind": READ | CREATE,
        "raw_kind": READ | CREATE,
        "text": ALL,
        "params": ALL,
        "target": READ | CREATE,
        "owner": ALL,
        "created_by": ALL,
        "updated_by": READ,
        # The vendor's SDK sends it, its page does not list it (§4.5).
        "created_at": READ | CREATE,
        "updated_at": READ,
    },
    routes={
        Verb.LIST: Listing(
            nested=Nested(
                parents=tuple(TYPES), every=lambda kind: read(f"{API}/{TYPES[kind]}/notes", _PINNED), of=_notes_of
            ),
            rows=wire.rows("notes"),
            filters={"updated_since": _since("updated_at", "updated_since"), "ids": _ids},
        ),
        Verb.GET: Getting(call=_one_note, row=wire.one),
        Verb.CREATE: Writing(
            method="POST",
            # §4.5: else each may start what a Digital Pipeline does on notes and calls: mails to customers, say.
            quiet=lambda row: {**row, "is_need_to_trigger_digital_pipeline": False},
            path=_notes_path,
            wrap=_numbered(),
            unwrap=wire.created("notes"),
            batch=BATCH,
            advised_batch=ADVISED,
            atomic=True,
            group_by=_target_kind,
        ),
        Verb.UPDATE: Writing(
            method="PATCH",
            path=_notes_path,
            wrap=_with_ids,
            unwrap=wire.updated("notes"),
            batch=BATCH,
            advised_batch=ADVISED,
            atomic=True,
            group_by=_target_kind,
        ),
    },
)

USERS = Resource(
    entity=vocabulary.User,
    vendor="users",
    decode=codec.decode_user,
    fields={"name": READ, "email": READ, "active": READ, "admin": READ},
    routes={Verb.LIST: _listing("users", {}), Verb.GET: _getting("users")},
)


def _known(decode: Callable[[Any, Context], Any], names: Sequence[str]) -> Callable[[Row, Any], dict[str, Any]]:
    """§5: the account's words are answered whole, with the ids of what is in them."""

    def known(row: Row, answer: Any) -> dict[str, Any]:
        kind = getattr(row.entity, "entity", None)
        made = decode(answer, Context(parent=Ref(kind, None) if kind else None))
        return {name: getattr(made, name) for name in names}

    return known


def _made_words(word: str, known: Callable[[Row, Any], dict[str, Any]]) -> Any:
    """§4.7, §5: an array is answered by an array, in any order; one made thing may come bare."""
    matched = wire.created(word)

    def unwrap(reply: Reply, sent: Sequence[Row]) -> tuple[Receipt[Any], ...]:
        body = mapping(reply.body)
        if "_embedded" not in body or word not in mapping(body["_embedded"]):
            bare = [{**body, "request_id": str(sent[0].request_id)}] if len(sent) == 1 else []
            reply = evolve(reply, body={"_embedded": {word: bare}})
        answers = {str(mapping(each).get("request_id")): each for each in wire.rows(word)(reply)}
        return tuple(
            evolve(receipt, known=known(row, answers[str(row.request_id)])) if isinstance(receipt, Made) else receipt
            for row, receipt in zip(sent, matched(reply, sent), strict=True)
        )

    return unwrap


def _new_pipelines(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """§4.9: a sort, whether it is the main one, and whether incoming leads are on, are due."""
    due = {"is_main": False, "is_unsorted_on": True}
    # Each number in turn: in an account's order new ones come last.
    return [{"sort": 1000 + 10 * row.number, **due, **row.wire, "request_id": str(row.request_id)} for row in rows]


_WHOLE_PIPELINE = _known(codec.decode_pipeline, ("sort", "main", "stages"))

PIPELINES = Resource(
    entity=vocabulary.Pipeline,
    vendor="pipelines",
    decode=codec.decode_pipeline,
    encode=codec.encode_pipeline,
    required=("name",),
    # §4.9: stages are made along with their pipeline; later each has a call of its own, in extras.
    fields={"name": ALL, "sort": ALL, "main": ALL, "archived": READ, "stages": READ | CREATE},
    routes={
        Verb.CREATE: Writing(
            method="POST",
            path=lambda row: f"{API}/leads/pipelines",
            wrap=_new_pipelines,
            unwrap=_made_words("pipelines", _WHOLE_PIPELINE),
            batch=50,
            atomic=True,
        ),
        Verb.UPDATE: Writing(
            method="PATCH",
            path=lambda row: at_path(f"{API}/leads/pipelines/{{id}}", id=row.id),
            unwrap=lambda reply, rows: (Made(id=rows[0].id, known=_WHOLE_PIPELINE(rows[0], reply.body)),),
        ),
        # §3.1: /leads/pipelines ignores page and limit and returns everything.
        Verb.LIST: Listing(call=read(f"{API}/leads/pipelines"), rows=wire.rows("pipelines"), paging=Unpaged()),
        Verb.GET: _getting("leads/pipelines"),
        # §4.9: refused while it has leads, or is the last one.
        Verb.DELETE: Writing(
            method="DELETE",
            path=lambda row: at_path(f"{API}/leads/pipelines/{{id}}", id=row.id),
            wrap=lambda rows: None,
            unwrap=lambda reply, rows: (Made(id=rows[0].id),),
        ),
    },
)


# §2.3: custom_fields come "up to 50" a page.
_FIELDS_A_PAGE = PageNumber(page="page", limit="limit", size=50, next_link=wire.next_link)


def _fields_under(kind: Kind) -> Call:
    return read(f"{API}/{TYPES[kind]}/custom_fields")


def _fields_of(target: Ref) -> Call:
    raise Unsupported(f"custom fields belong to a kind of rows, not to one {target.kind}")


def _fields_path(row: Row) -> str:
    return f"{API}/{TYPES[_whose(row)]}/custom_fields"


def _field_path(row: Row) -> str:
    return at_path(f"{_fields_path(row)}/{{id}}", id=row.id)


def _whose(row: Row) -> Kind:
    """Which rows a custom field or a tag is of: each kind has its own."""
    kind = row.entity.entity if row.entity is not None else row.target.kind if row.target is not None else None
    if kind is None or kind not in TYPES:
        issue = Issue(
            field="entity" if row.entity is not None else "target", rule="contacts, companies or deals have it"
        )
        raise Invalid("whose it is: give target=Ref(Kind.DEAL, None), say", [issue])
    return kind


FIELDS = Resource(
    entity=vocabulary.Field,
    vendor="custom fields",
    decode=codec.decode_field,
    encode=codec.encode_definition,
    required=("entity", "name"),
    fields={
        "entity": READ | CREATE,
        "code": ALL,
        "name": ALL,
        "type": READ | CREATE,
        "raw_type": READ | CREATE,
        "options": ALL,
    },
    routes={
        Verb.CREATE: Writing(
            method="POST",
            path=_fields_path,
            wrap=lambda rows: [{**row.wire, "request_id": str(row.request_id)} for row in rows],
            unwrap=_made_words("custom_fields", _known(codec.decode_field, ("code", "type", "raw_type", "options"))),
            batch=BATCH,
            advised_batch=ADVISED,
            atomic=True,
            group_by=_whose,
        ),
        # §4.7: options sent replace those there are.
        Verb.UPDATE: Writing(
            method="PATCH",
            path=_field_path,
            unwrap=lambda reply, rows: (
                Made(id=rows[0].id, known=_known(codec.decode_field, ("code", "options"))(rows[0], reply.body)),
            ),
        ),
        Verb.DELETE: Writing(
            method="DELETE",
            path=_field_path,
            wrap=lambda rows: None,
            unwrap=lambda reply, rows: (Made(id=rows[0].id),),
        ),
        Verb.LIST: Listing(
            nested=Nested(parents=tuple(TYPES), every=_fields_under, of=_fields_of),
            rows=wire.rows("custom_fields"),
            paging=_FIELDS_A_PAGE,
        ),
    },
)


def _tags_of(target: Ref) -> Call:
    raise Unsupported(f"tags belong to a kind of rows, not to one {target.kind}: one row's are in its own `tags`")


TAGS = Resource(
    entity=vocabulary.KnownTag,
    vendor="tags",
    decode=codec.decode_tag,
    encode=codec.encode_tag,
    required=("entity", "name"),
    fields={"entity": READ | CREATE, "name": ALL, "color": READ | CREATE},
    routes={
        Verb.LIST: Listing(
            nested=Nested(parents=tuple(TYPES), every=lambda kind: read(f"{API}/{TYPES[kind]}/tags"), of=_tags_of),
            rows=wire.rows("tags"),
            # §3.4.
            filters={"ids": _ids, "text": _query},
            # No source tells in which order tags come, nor that they can be put into one.
            paging=PageNumber(page="page", limit="limit", size=250, next_link=wire.next_link),
        ),
        # §4.6: one whose name is known keeps its id.
        Verb.CREATE: Writing(
            method="POST",
            path=lambda row: f"{API}/{TYPES[_whose(row)]}/tags",
            wrap=lambda rows: [{**row.wire, "request_id": str(row.request_id)} for row in rows],
            unwrap=_made_words("tags", _known(codec.decode_tag, ("name", "color"))),
            batch=BATCH,
            advised_batch=ADVISED,
            atomic=True,
            replayable=True,
            group_by=_whose,
        ),
        Verb.UPDATE: Writing(
            method="PATCH",
            path=lambda row: f"{API}/leads/tags",
            wrap=lambda rows: [{"id": row.id, **row.wire, "request_id": str(row.request_id)} for row in rows],
            unwrap=wire.created("tags"),
            batch=BATCH,
            advised_batch=ADVISED,
            atomic=True,
        ),
    },
)


def _address(given: object) -> str:
    """§4.12: there is no route with the number of a subscription, whatever some texts say."""
    if isinstance(given, str) and given.startswith(("http://", "https://")):
        return given
    raise ValueError(f"Kommo knows a subscription by its address, http…, not by {given!r}")


def _subscribed(reply: Reply, rows: Sequence[Row]) -> tuple[Receipt[Any], ...]:
    made = codec.decode_subscription(reply.body, Context())
    return (Made(id=made.id, known={"events": made.events, "active": made.active}),)


# §4.12: subscribing an address again changes its settings and keeps its number, so it may be repeated, and is its update.
_SUBSCRIBING = Writing(method="POST", path=lambda row: f"{API}/webhooks", unwrap=_subscribed, replayable=True)

WEBHOOKS = Resource(
    entity=vocabulary.Subscription,
    vendor="webhooks",
    decode=codec.decode_subscription,
    encode=codec.encode_subscription,
    id=_address,
    required=("url", "events"),
    fields={"url": ALL, "events": ALL, "active": READ},
    routes={
        Verb.LIST: Listing(call=read(f"{API}/webhooks"), rows=wire.rows("webhooks"), paging=Unpaged()),
        Verb.GET: Getting(
            call=lambda id, target: read(f"{API}/webhooks", ("filter[destination]", str(id))),
            row=lambda reply: next(iter(wire.rows("webhooks")(reply)), None),
        ),
        Verb.CREATE: _SUBSCRIBING,
        Verb.UPDATE: _SUBSCRIBING,
        Verb.DELETE: Writing(
            method="DELETE",
            path=lambda row: f"{API}/webhooks",
            wrap=lambda rows: {"destination": rows[0].id},
            unwrap=lambda reply, rows: (Made(id=rows[0].id),),
        ),
    },
)

# ---------------------------------------------------------------------------------------------------------- settings


def _account_call() -> Call:
    return read(f"{API}/account", ("with", "datetime_settings,task_types,is_api_filter_enabled"))


def _account() -> Flow[vocabulary.Account]:
    reply: Reply = yield _account_call()
    return codec.decode_account(reply.body)


def _me() -> Flow[vocabulary.User]:
    account = yield from settled(lambda context: context.part("account"))
    id = mapping(account.raw).get("current_user_id")
    if not isinstance(id, int):
        raise Unreadable("the account does not name its current_user_id")
    try:
        reply: Reply = yield read(at_path(f"{API}/users/{{id}}", id=id))
    except AuthFailed as refusal:
        if refusal.status != 403:
            raise
        # §4.10: users are shown to admins only; whose token it is, the account has told.
        return vocabulary.User(id=id)
    return (yield from settled(lambda context: codec.decode_user(reply.body, context)))


def _pipelines() -> Flow[tuple[vocabulary.Pipeline, ...]]:
    return everything(DIALECT, vocabulary.Pipeline)


def _task_types() -> Flow[tuple[vocabulary.TaskType, ...]]:
    """They come with the account (§4.13): no request of their own."""
    account = yield from settled(lambda context: context.part("account"))
    return codec.decode_task_types(account.raw)


def _users() -> Flow[tuple[vocabulary.User, ...]]:
    return everything(DIALECT, vocabulary.User)


def _definitions(kind: Kind) -> Callable[[], Flow[Mapping[Id, vocabulary.Field]]]:
    """The custom fields of one kind of rows, by id."""

    def definitions() -> Flow[Mapping[Id, vocabulary.Field]]:
        found: dict[Id, vocabulary.Field] = {}
        position: int | str | None = _FIELDS_A_PAGE.first
        while position is not None:
            reply: Reply = yield _FIELDS_A_PAGE.at(_fields_under(kind), position)
            rows = wire.rows("custom_fields")(reply)
            for row in rows:
                field = yield from settled(lambda context, row=row: codec.decode_field(row, context), Ref(kind, None))
                found[field.id or 0] = field
            position = _FIELDS_A_PAGE.after(position, reply, len(rows))
        return found

    return definitions


DIALECT = Dialect(
    name="kommo",
    title="Kommo",
    host="https://{account}.kommo.com",
    # §2.1: *.amocrm.ru, and the older *.amocrm.com.
    domains=("kommo.com", "amocrm.ru", "amocrm.com"),
    format=Json(accept="application/hal+json, application/problem+json, application/json"),
    paging=PAGING,
    # §2.2.
    rate=(Rate(7, 1), Rate(50, 1, scope="account")),
    # §1.1.
    auth=(
        OAuth2(
            path="/oauth2/access_token",
            refused=refused_token,
            consent="https://www.{domain}/oauth?mode=popup",
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
        **{f"fields:{kind}": _definitions(kind) for kind in TYPES},
    },
    resources={
        resource.entity: resource
        for resource in (CONTACTS, COMPANIES, LEADS, TASKS, NOTES, USERS, PIPELINES, FIELDS, TAGS, WEBHOOKS)
    },
)
