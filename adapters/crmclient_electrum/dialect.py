"""Electrum CRM REST v2 as a value. Sources: the vendor's page (seed) and reference electrum-v2, sections named."""

from collections.abc import Mapping
from typing import Any

from crmclient import entities, vocabulary
from crmclient.auth import Bearer
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
    LastPages,
    Listing,
    Made,
    Merging,
    Rate,
    Receipt,
    Reply,
    Resource,
    Row,
    Verb,
    Writing,
    at_path,
    by_status,
    mapping,
    read,
)
from crmclient.errors import AuthFailed, CRMError, Rejected, Unreadable
from crmclient.flows import everything, settled
from crmclient.formats import Json
from crmclient.paging import PageNumber
from crmclient_electrum import codec, wire
from crmclient_electrum.webhooks import WEBHOOK
from crmclient_electrum.wire import Words

# §3: "Lists return up to 100"; "?page=2&per_page=50" with `meta.total_pages`.
PAGING = PageNumber(page="page", limit="per_page", size=100, pages=wire.pages)


def judge(call: Call, reply: Reply) -> CRMError | None:
    """§2: the status says what; the body's three keys `error message status` say why, in Russian."""
    verdict = by_status(call, reply)
    if verdict is None:
        return None
    said = mapping(reply.body)
    verdict.code = _text(said.get("error"))
    verdict.detail = _text(said.get("message"))
    if isinstance(verdict, AuthFailed) and reply.status == 403:
        verdict.message = "not enough rights, or the account's plan has no API"
    if isinstance(verdict, Rejected):
        verdict.message = f"{call.method} {call.path} was refused"
    return verdict


def _text(said: object) -> str | None:
    return said if isinstance(said, str) else None


def _made(reply: Reply, rows: Any) -> tuple[Receipt[Any]]:
    """§4: the answer to a create is 201 with `id` and a few more."""
    id = wire.one(reply).get("id")
    if not isinstance(id, int) or isinstance(id, bool):
        raise Unreadable("the answer to a create holds no id", status=reply.status)
    return (Made(id=id),)


def _done(reply: Reply, rows: Any) -> tuple[Receipt[Any]]:
    """An update, a completion or a deletion: the status has said it; §6 leaves the body open."""
    return (Made(id=rows[0].id),)


def _at(template: str) -> Any:
    def path(row: Row) -> str:
        return at_path(template, id=row.id)

    return path


def _by(key: str, name: str) -> Any:
    def narrow(call: Call, asked: Filter) -> Call:
        return call.with_query((key, str(getattr(asked, name).id)))

    return narrow


def _creating(path: str) -> Writing:
    return Writing(method="POST", path=lambda row: path, unwrap=_made)


# §6: "PUT: replace or merge" is open, so the whole known row is sent.
_CONTACT_KEYS = ("name", "phone", "email", "company", "tags")


def _whole_contact(reading: Any) -> dict[str, Any]:
    return {key: reading[key] for key in _CONTACT_KEYS if reading.get(key) is not None}


def _whole_deal(words: Words) -> Any:
    def whole(reading: Any) -> dict[str, Any]:
        known = wire.canonical("deal", reading)
        keys = {"name": words.deal_name, "amount": "amount", "pipeline_id": "pipeline_id", "stage": "stage"}
        keys |= {"assigned_to": "assigned_to", "contact_id": "contact_id"}
        return {key: known[name] for name, key in keys.items() if known.get(name) is not None}

    return whole


def _deal_lacks(reading: Any, change: Mapping[str, Any]) -> tuple[str, ...]:
    """A list item may be a reduced one (§6), and one deal cannot be read: then nobody knows the rest of it."""
    return tuple(key for key in ("amount", "pipeline_id", "stage") if reading.get(key) is None and key not in change)


def _pipelines() -> Flow[tuple[vocabulary.Pipeline, ...]]:
    return everything(DIALECT, vocabulary.Pipeline)


def _me() -> Flow[vocabulary.User]:
    reply: Reply = yield read("/users/me")
    row = wire.one(reply)
    return (yield from settled(lambda context: codec.decode_user(row, context)))


def speaking(words: Words) -> Dialect:
    """The dialect with other names for what no source evidences: what your installation really says."""
    one_contact = Getting(call=lambda id, target: read(at_path("/contacts/{id}", id=id)), row=wire.one)
    contacts = Resource(
        entity=entities.Contact,
        vendor="contacts",
        evidence=LastPages(),
        decode=codec.decode_contact,
        encode=codec.encode_contact,
        surviving=codec.surviving_contact,
        limits={
            "phones": "one phone, without a label",
            "emails": "one e-mail, without a label",
            "company": "a company by its name: it is no row of its own",
        },
        required=("name",),
        fields={
            "name": ALL,
            "phones": ALL,
            "emails": ALL,
            "company": ALL,
            "tags": ALL,
            "created_at": READ,
            "updated_at": READ,
        },
        routes={
            Verb.LIST: Listing(call=read("/contacts"), rows=wire.rows),
            Verb.GET: one_contact,
            Verb.CREATE: _creating("/contacts"),
            Verb.UPDATE: Merging(
                read=one_contact,
                whole=_whole_contact,
                lacks=lambda reading, change: (),
                write=Writing(method="PUT", path=_at("/contacts/{id}"), unwrap=_done),
            ),
            Verb.DELETE: Writing(method="DELETE", path=_at("/contacts/{id}"), wrap=lambda rows: None, unwrap=_done),
        },
    )
    deals = Resource(
        entity=entities.Deal,
        vendor="deals",
        evidence=LastPages(),
        decode=codec.decode_deal,
        encode=codec.encode_deal(words),
        surviving=codec.surviving_deal,
        limits={
            "contacts": "one contact, which is the main one, by its id",
            "price": "an amount in the account's own currency",
        },
        fields={
            "name": ALL,
            "price": ALL,
            "pipeline": ALL,
            "stage": ALL,
            "outcome": READ,
            "contacts": ALL,
            "owner": ALL,
            "created_at": READ,
            "updated_at": READ,
        },
        routes={
            # §4: "filters pipeline_id, stage, assigned_to".
            Verb.LIST: Listing(
                call=read("/deals"),
                rows=wire.rows,
                filters={
                    "pipeline": _by("pipeline_id", "pipeline"),
                    "stage": _by("stage", "stage"),
                    "owner": _by("assigned_to", "owner"),
                },
            ),
            Verb.CREATE: _creating("/deals"),
            Verb.UPDATE: Merging(
                whole=_whole_deal(words),
                lacks=_deal_lacks,
                write=Writing(method="PUT", path=_at("/deals/{id}"), unwrap=_done),
            ),
            Verb.DELETE: Writing(method="DELETE", path=_at("/deals/{id}"), wrap=lambda rows: None, unwrap=_done),
        },
    )
    tasks = Resource(
        entity=entities.Task,
        vendor="tasks",
        evidence=LastPages(),
        decode=codec.decode_task,
        encode=codec.encode_task(words),
        surviving=codec.surviving_task,
        limits={
            "target": "a task hangs on a deal or a contact",
        },
        fields={
            "text": READ | CREATE,
            "due": READ | CREATE,
            "target": READ | CREATE,
            "owner": READ | CREATE,
            "done": READ | COMPLETE,
            "created_at": READ,
            "updated_at": READ,
        },
        routes={
            Verb.LIST: Listing(call=read("/tasks"), rows=wire.rows),
            Verb.CREATE: _creating("/tasks"),
            # Completing again changes nothing, so a lost answer may be asked for again (DECISIONS: 200 with the task).
            Verb.COMPLETE: Writing(
                method="PUT",
                path=_at("/tasks/{id}/complete"),
                wrap=lambda rows: None,
                unwrap=_done,
                replayable=True,
            ),
        },
    )
    users = Resource(
        entity=vocabulary.User,
        vendor="users",
        decode=codec.decode_user,
        fields={"name": READ, "email": READ, "admin": READ},
        routes={Verb.LIST: Listing(call=read("/users"), rows=wire.rows)},
    )
    pipelines = Resource(
        entity=vocabulary.Pipeline,
        vendor="pipelines",
        decode=codec.decode_pipeline,
        fields={"name": READ, "stages": READ},
        routes={Verb.LIST: Listing(call=read("/pipelines"), rows=wire.rows)},
    )
    return Dialect(
        name="electrum",
        title="Electrum",
        # §1: the example's base is http://localhost:8080/api/v2; no public host is named.
        host=None,
        format=Json(),
        paging=PAGING,
        # §1: "100 requests a minute, else 429". Whether the minute slides is open; any sixty seconds satisfies both.
        rate=(Rate(100, 60),),
        auth=(Bearer(),),
        judge=judge,
        # No page tells it; a request here holds one row.
        quarantine=30.0,
        webhook=WEBHOOK,
        settings={"pipelines": _pipelines, "me": _me},
        resources={resource.entity: resource for resource in (contacts, deals, tasks, users, pipelines)},
    )


DIALECT = speaking(Words())
