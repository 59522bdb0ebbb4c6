"""What Kommo can do and the neutral client does not name, as flows: ``await crm.run(kommo.roles())``.

What a flow raises besides what is said at it: Invalid (nothing was sent), Rejected with the vendor's issues (``row`` counts
from 0 in what was given), AuthFailed where only an admin may, AmbiguousWrite where the answer was lost.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, TypeAlias

from attrs import evolve, field, frozen

from crmclient.dialect import (
    Call,
    Context,
    Cursor,
    Flow,
    Need,
    Reply,
    Secret,
    array,
    at_path,
    is_mapping,
    mapping,
    read,
)
from crmclient.entities import Company, Contact, Deal, Entity, FieldValue, Id, Kind, Note, Ref, filled
from crmclient.errors import AmbiguousWrite, CRMError, Invalid, Issue, NotFound
from crmclient.flows import carried, encoded, settled
from crmclient.paging import Trail
from crmclient.serial import structured
from crmclient.vocabulary import Field, Pipeline, Stage, User
from crmclient_kommo import codec, wire
from crmclient_kommo.dialect import DIALECT, sendable
from crmclient_kommo.wire import API, CONVERTER, KINDS, TYPES, moment

# ------------------------------------------------------------------------------------------------- reading anything


def read_rows(
    path: str,
    word: str | None = None,
    *,
    with_: Iterable[str] = (),
    query: Mapping[str, Any] | None = None,
    limit: int = 250,
    page: int = 1,
    most: int | None = None,
) -> Flow[tuple[dict[str, Any], ...]]:
    """The rows of any list, as they came: for every ``with``, ``filter``, ``query`` and ``order`` of the vendor's.

    ``await crm.run(kommo.read_rows("leads", with_=("loss_reason",), query={"filter": {"price": {"from": 100}}}))``
    ``path`` follows ``/api/v4/``; ``word`` is the key in ``_embedded`` where it is not the path's last part. Maps and lists
    in ``query`` become brackets. The whole list is read and held, from ``page`` on and until there are ``most`` rows: of a
    long one take some pages at a time. An unknown parameter is ignored by the server without a word (§3.6).
    https://www.amocrm.ru/developers/content/crm_platform/filters-api
    """
    pairs = tuple(_brackets(query or {})) + _with(with_)
    return _pages(path, word or path.strip("/").rpartition("/")[2], pairs, limit=limit, page=page, most=most)


def read_row(path: str, *, with_: Iterable[str] = (), query: Mapping[str, Any] | None = None) -> Flow[dict[str, Any]]:
    """One thing, as it came: ``kommo.read_row("account", with_=("task_types", "amojo_id"))``. Raises NotFound.

    https://www.amocrm.ru/developers/content/crm_platform/account-info
    """
    reply: Reply = yield read(f"{API}/{path}", *_brackets(query or {}), *_with(with_))
    if reply.body is None:
        raise NotFound(f"Kommo has no {path}", status=reply.status)
    return mapping(reply.body)


def _with(extras: Iterable[str]) -> tuple[tuple[str, str], ...]:
    asked = ",".join((extras,) if isinstance(extras, str) else extras)
    return (("with", asked),) if asked else ()


def _brackets(tree: Mapping[str, Any], above: str = "") -> Iterable[tuple[str, str]]:
    """§3.5: ``{"filter": {"id": [1, 2]}}`` is filter[id][0]=1&filter[id][1]=2."""
    for key, part in tree.items():
        name = f"{above}[{key}]" if above else key
        if is_mapping(part):
            yield from _brackets(part, name)
        elif isinstance(part, list | tuple):
            yield from _brackets({str(place): each for place, each in enumerate(part)}, name)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        elif isinstance(part, datetime):
            yield name, str(_seconds(part))
        elif part is not None:
            yield name, str(int(part) if isinstance(part, bool) else part)


def _seconds(at: datetime | None) -> int | None:
    if at is not None and at.tzinfo is None:
        raise Invalid("a time has no time zone: write datetime(…, tzinfo=UTC) or a ZoneInfo")
    return int(at.timestamp()) if at is not None else None


def _pages(
    path: str,
    word: str,
    query: Iterable[tuple[str, str]] = (),
    *,
    limit: int = 250,
    page: int = 1,
    most: int | None = None,
) -> Flow[tuple[dict[str, Any], ...]]:
    """§3.1: page after page to a 204, or to a page that has no next one and, where the vendor counts, completes them.

    Raises Unreadable where a page comes that has been before: such a list has no end.
    """
    if page < 1 or limit < 1 or (most is not None and most < 0):
        raise Invalid(f"pages and rows are counted from 1, not from {page}, {limit} or {most}")
    asked = read(f"{API}/{path}", *query)
    found: list[dict[str, Any]] = []
    trail, first = Trail(), page
    while most is None or len(found) < most:
        reply: Reply = yield asked.with_query(("page", str(page)), ("limit", str(limit)))
        rows = [mapping(row) for row in wire.rows(word)(reply)]
        trail.step(Cursor(page), rows, None)
        found += rows
        total = mapping(reply.body).get("_total_items")
        counted = first == 1 and isinstance(total, int) and len(found) < total
        if not rows or (wire.next_link(reply) is None and not counted):
            break
        page += 1
    return tuple(found[:most])


def _typed(rows: Iterable[dict[str, Any]], kind: type[Any], what: str) -> Iterable[tuple[Any, dict[str, Any]]]:
    return ((structured(CONVERTER, row, kind, what), row) for row in rows)


# ------------------------------------------------------------------------------------------------- writing anything


def _written(method: str, path: str, word: str, rows: Sequence[dict[str, Any]], most: int = 250) -> Flow[list[Any]]:
    """§5: an array goes, an array comes, in any order; one made thing may come bare (§4.7)."""
    if len(rows) > most:
        raise Invalid(f"Kommo takes {most} {word} a request, not {len(rows)}")
    if not rows:
        return []
    sent = [{**row, "request_id": str(number + 1)} for number, row in enumerate(rows)]
    reply = yield from _telling(Call(method, f"{API}/{path}", body=sent))
    body = mapping(reply.body)
    answers = [mapping(each) for each in array(mapping(body.get("_embedded")).get(word))] or [body]
    named = {str(each.get("request_id", len(rows) == 1 and "1")): each for each in answers}
    if not all(isinstance(mapping(named.get(row["request_id"])).get("id"), int) for row in sent):
        said = f"the answer does not name what was made of {word}: look before repeating it"
        raise AmbiguousWrite(said, status=reply.status, request_id=reply.request_id)
    return [named[row["request_id"]] for row in sent]


def _telling(call: Call) -> Flow[Reply]:
    """Change the account's own words; what was known of them is read again when it is needed."""
    try:
        reply: Reply = yield call
    except CRMError:
        yield Need(fresh=0.0)  # it may have been done all the same
        raise
    yield Need(fresh=0.0)
    return reply


def _changed(before: Any, now: Any, names: Iterable[str]) -> frozenset[str]:
    """What differs from the reading; of one built by hand, what it holds."""
    held = filled(now) if before is None else {name for name in names if getattr(before, name) != getattr(now, name)}
    return frozenset(held) & frozenset(names)


def _id(given: Any, kind: Kind | None = None) -> Id:
    """An id from a row, a Ref or an id."""
    found = given.id if hasattr(given, "id") else given
    if found is None or (isinstance(given, Ref) and kind is not None and given.kind is not kind):
        raise Invalid(f"{given!r} is no {kind or 'row'} with an id")
    return found


def _type(kind: Kind) -> str:
    if kind not in TYPES:
        raise Invalid(f"Kommo keeps this for contacts, companies and leads, not for a {kind}")
    return TYPES[kind]


# ------------------------------------------------------------------------------------------------------------ links


@frozen
class Point:
    """An end of a link that is no neutral kind: ``Point("customers", 5)``, ``Point("catalog_elements", 7, catalog=3)``."""

    type: str
    id: int
    catalog: int | None = None


End: TypeAlias = Ref | Entity | Point


@frozen(kw_only=True)
class Tie:
    """One link. ``main`` is of a lead's contact; ``quantity`` and ``price`` (a price's id) of a catalog's element."""

    one: Ref | Point = field(kw_only=False, converter=lambda given: _end(given))
    other: Ref | Point = field(kw_only=False, converter=lambda given: _end(given))
    main: bool = False
    quantity: Decimal | None = None
    price: int | None = None


def _end(given: End) -> Ref | Point:
    return given.ref if isinstance(given, Entity) else given


# §4.13: which may be linked, from which side. The lead's side has to be called from the lead.
_PAIRS: Mapping[str, tuple[str, ...]] = {
    "leads": ("contacts", "companies", "catalog_elements"),
    "contacts": ("companies", "customers", "catalog_elements"),
    "companies": ("contacts", "leads", "customers", "catalog_elements"),
    "customers": ("contacts", "companies", "catalog_elements"),
}


def link(ties: Iterable[Tie | tuple[End, End]]) -> Flow[None]:
    """Tie rows together, many a request: ``await crm.run(kommo.link([(contact, company), Tie(deal, contact, main=True)]))``.

    Either side may come first. Tying a tied pair again changes nothing but who is the main one. Raises Invalid for a pair
    that cannot be, and Rejected if any of a request's ties is refused; then none of that request is made.
    https://www.amocrm.ru/developers/content/crm_platform/entity-links-api
    """
    return _tie("link", ties)


def unlink(ties: Iterable[Tie | tuple[End, End]]) -> Flow[None]:
    """Part rows again; parting what is not tied changes nothing. Shapes and errors as ``link`` has them."""
    return _tie("unlink", ties)


def _tie(doing: str, ties: Iterable[Tie | tuple[End, End]]) -> Flow[None]:
    by_type: dict[str, list[dict[str, Any]]] = {}
    for given in ties:
        tie = given if isinstance(given, Tie) else Tie(*given)
        one, other = tie.one, tie.other
        if _word(other) not in _PAIRS.get(_word(one), ()):
            one, other = other, one
        (type, id), (to_type, to_id) = _address(one), _address(other)
        if to_type not in _PAIRS.get(type, ()):
            raise Invalid(f"Kommo does not link {type} and {to_type}")
        catalog = other.catalog if isinstance(other, Point) else None
        if to_type == "catalog_elements" and catalog is None:
            raise Invalid("an element is linked with its catalog: Point('catalog_elements', id, catalog=…)")
        said = {"quantity": tie.quantity, "price_id": tie.price, "catalog_id": catalog}
        by_type.setdefault(type, []).append(wire.tie(id, to_type, to_id, main=tie.main, **said))
    for type, rows in by_type.items():
        for call in wire.tie_calls(doing, type, rows):
            _: Reply = yield call


def _word(end: Ref | Point) -> str:
    return end.type if isinstance(end, Point) else TYPES.get(end.kind, end.kind)


def _address(end: Ref | Point) -> tuple[str, Any]:
    if isinstance(end, Ref) and (end.kind not in TYPES or end.id is None):
        raise Invalid(f"Kommo links contacts, companies, leads, customers and elements that have an id, not {end}")
    return _word(end), end.id


def links(*ends: End) -> Flow[tuple[Tie, ...]]:
    """All that rows are tied to, a request a kind of row: ``await crm.run(kommo.links(deal, other_deal))``.

    https://www.amocrm.ru/developers/content/crm_platform/entity-links-api
    """
    by_type: dict[str, list[Any]] = {}
    for end in ends:
        type, id = _address(_end(end))
        by_type.setdefault(type, []).append(id)
    found: list[Tie] = []
    for type, ids in by_type.items():
        # 50 ids a request keep the address short.
        for at in range(0, len(ids), 50):
            query = _brackets({"filter": {"entity_id": ids[at : at + 50]}})
            rows = yield from _pages(f"{type}/links", "links", query)
            found += [_read_tie(*each) for each in _typed(rows, wire.Tie, "link")]
    return tuple(found)


def _read_tie(read: wire.Tie, row: dict[str, Any]) -> Tie:
    said = read.metadata or wire.TieMetadata()
    return Tie(
        _point(read.entity_type, read.entity_id, None),
        _point(read.to_entity_type, read.to_entity_id, said.catalog_id),
        main=said.main_contact or False,
        quantity=said.quantity,
        price=said.price_id,
    )


def _point(type: str, id: int, catalog: int | None) -> Ref | Point:
    return Ref(KINDS[type], id) if type in KINDS else Point(type, id, catalog)


# --------------------------------------------------------------------------------------------- leads with their people


@frozen(kw_only=True)
class Complex:
    """A lead with one contact and one company, each new or known. ``metadata`` makes it an incoming lead (§4.19)."""

    deal: Deal = field(kw_only=False)
    contact: Contact | Ref | None = None
    company: Company | Ref | None = None
    metadata: Mapping[str, Any] | None = None


@frozen(kw_only=True)
class ComplexMade:
    """What became of it. ``merged``: the vendor's duplicate control took an old lead instead."""

    deal: Ref
    contact: Ref | None
    company: Ref | None
    merged: bool
    raw: Any = field(default=None, eq=False, repr=False)


# §2.3.
_COMPLEX, _VALUES = 50, 40


def complex_leads(rows: Iterable[Complex | Deal]) -> Flow[tuple[ComplexMade, ...]]:
    """Make up to 50 leads at once, each with its contact and company; all are made or none.

    ``await crm.run(kommo.complex_leads([kommo.Complex(Deal(name="…"), contact=Contact(name="…"))]))``
    A contact and a company that are both new are linked to each other. Raises Invalid for what a create would refuse, for
    more than 50 leads and for more than 40 custom fields of one row.
    https://www.amocrm.ru/developers/content/crm_platform/leads-api
    """
    given = [each if isinstance(each, Complex) else Complex(each) for each in rows]
    if len(given) > _COMPLEX:
        raise Invalid(f"Kommo takes {_COMPLEX} complex leads a request, not {len(given)}")
    if not given:
        return ()
    sent: list[dict[str, Any]] = []
    for number, each in enumerate(given):
        sent.append({**(yield from _complex_row(each)), "request_id": str(number + 1)})
    reply: Reply = yield Call("POST", f"{API}/leads/complex", body=sent)
    # A bare array; models generated from the vendor's page expect an envelope (§4.19).
    answers = array(reply.body) or array(mapping(mapping(reply.body).get("_embedded")).get("leads"))
    named = {str(id): mapping(row) for row in answers for id in _each(mapping(row).get("request_id"))}
    if not all(isinstance(mapping(named.get(row["request_id"])).get("id"), int) for row in sent):
        raise AmbiguousWrite("the answer does not name every lead: look before repeating it", status=reply.status)
    return tuple(
        ComplexMade(
            deal=Ref(Kind.DEAL, row["id"]),
            contact=_ref(Kind.CONTACT, row.get("contact_id")),
            company=_ref(Kind.COMPANY, row.get("company_id")),
            merged=bool(row.get("merged")),
            raw=row,
        )
        for row in (named[each["request_id"]] for each in sent)
    )


def _each(given: Any) -> Sequence[Any]:
    return array(given) or (given,)


def _ref(kind: Kind, id: Any) -> Ref | None:
    return Ref(kind, id) if isinstance(id, int) and id else None


def _complex_row(given: Complex) -> Flow[dict[str, Any]]:
    people: list[Contact | Ref] = [given.contact] if given.contact else [each.ref for each in given.deal.contacts]
    firm = given.company or (given.deal.company.ref if given.deal.company else None)
    if len(people) > 1:
        raise Invalid("a complex lead has one contact: link the others afterwards")
    row = yield from _model(evolve(given.deal, contacts=(), company=None))
    inside = dict(mapping(row.pop("_embedded", None)))
    for word, part in (("contacts", people[0] if people else None), ("companies", firm)):
        if part is not None:
            inside[word] = [({"id": _id(part)} if isinstance(part, Ref) else (yield from _model(part)))]
    if given.metadata is not None:
        inside["metadata"] = dict(given.metadata)
    return {**row, **({"_embedded": inside} if inside else {})}


def _model(entity: Deal | Contact | Company) -> Flow[dict[str, Any]]:
    """A new row as its own create would send it."""
    if entity.id is not None:
        raise Invalid(f"{entity.KIND} {entity.id} has an id already: give its ref")
    kept, lost = carried(DIALECT, entity)
    beside = {"company"} & filled(entity)
    if lost | beside:
        issues = [Issue(field=name, rule="Kommo cannot take it here") for name in sorted(lost | beside)]
        raise Invalid(f"this {entity.KIND} says more than a complex lead can keep", issues)
    resource = DIALECT.resource(type(kept))
    row = yield from settled(lambda context: encoded(resource, kept, filled(kept), context))
    if len(array(row.get("custom_fields_values"))) > _VALUES:
        raise Invalid(f"a complex lead takes {_VALUES} custom fields of a {entity.KIND}")
    return sendable(row, "tags")


# ---------------------------------------------------------------------------------------------- pipelines and stages


def switch_unsorted(pipeline: Pipeline | Ref | Id, *, on: bool) -> Flow[Pipeline]:
    """Have a pipeline take incoming leads, or take none; all else of it is `crm.pipelines`. Raises NotFound. Admins only.

    https://www.amocrm.ru/developers/content/crm_platform/leads_pipelines
    """
    path = at_path(f"{API}/leads/pipelines/{{id}}", id=_id(pipeline, Kind.PIPELINE))
    reply = yield from _telling(Call("PATCH", path, body={"is_unsorted_on": on}))
    return (yield from settled(lambda context: codec.decode_pipeline(reply.body, context)))


def _stages_path(pipeline: Pipeline | Ref | Id) -> str:
    return at_path("leads/pipelines/{id}/statuses", id=_id(pipeline, Kind.PIPELINE))


def _stage_path(pipeline: Pipeline | Ref | Id, stage: Stage | Ref | Id) -> str:
    template = "/leads/pipelines/{pipeline}/statuses/{id}"
    return API + at_path(template, pipeline=_id(pipeline, Kind.PIPELINE), id=_id(stage, Kind.STAGE))


def stages(pipeline: Pipeline | Ref | Id, *, with_: Iterable[str] = ()) -> Flow[tuple[Stage, ...]]:
    """A pipeline's stages; ``with_=("descriptions",)`` brings the hints for the staff in ``raw``. Raises NotFound.

    https://www.amocrm.ru/developers/content/crm_platform/leads_pipelines
    """
    rows = yield from _pages(_stages_path(pipeline), "statuses", _with(with_))
    return tuple(codec.decode_stage(row) for row in rows)


def create_stages(pipeline: Pipeline | Ref | Id, stages: Iterable[Stage]) -> Flow[tuple[Stage, ...]]:
    """Add stages to a pipeline; each needs a name, and a colour only of ``kommo.COLORS``. Admins only.

    https://www.amocrm.ru/developers/content/crm_platform/leads_pipelines
    """
    rows = [codec.encode_stage(stage, place) for place, stage in enumerate(stages)]
    made = yield from _written("POST", _stages_path(pipeline), "statuses", rows)
    return tuple(codec.decode_stage(row) for row in made)


def update_stage(pipeline: Pipeline | Ref | Id, stage: Stage) -> Flow[Stage]:
    """Change a stage's name, sort or colour: what differs from its reading. Won and lost can only be renamed.

    Raises NotFound. Admins only.
    https://www.amocrm.ru/developers/content/crm_platform/leads_pipelines
    """
    before = codec.decode_stage(stage.raw) if stage.raw is not None else None
    row = {name: getattr(stage, name) for name in _changed(before, stage, ("name", "sort", "color"))}
    if not row:
        return stage
    row |= {"color": codec.stage_color(stage.color)} if "color" in row else {}
    reply = yield from _telling(Call("PATCH", _stage_path(pipeline, stage), body=row))
    return codec.decode_stage(reply.body)


def delete_stage(pipeline: Pipeline | Ref | Id, stage: Stage | Ref | Id) -> Flow[None]:
    """Delete a stage; its leads move to the pipeline's first. Raises NotFound. Admins only.

    https://www.amocrm.ru/developers/content/crm_platform/leads_pipelines
    """
    yield from _telling(Call("DELETE", _stage_path(pipeline, stage)))


@frozen(kw_only=True)
class LossReason:
    """Why a lead was lost."""

    id: int
    name: str | None = None
    sort: int = 0
    raw: Any = field(default=None, eq=False, repr=False)


def loss_reasons() -> Flow[tuple[LossReason, ...]]:
    """Why leads were lost, in the account's words. A lead's own: ``read_rows("leads", with_=("loss_reason",))``.

    No page of the vendor's is about this call; its PHP library makes it.
    https://github.com/amocrm/amocrm-api-php/blob/master/src/AmoCRM/EntitiesServices/Leads/LossReasons.php
    """
    rows = yield from _pages("leads/loss_reasons", "loss_reasons")
    return tuple(
        LossReason(id=read.id, name=read.name, sort=read.sort or 0, raw=row)
        for read, row in _typed(rows, wire.LossReason, "loss reason")
    )


# ---------------------------------------------------------------------------------------------------- custom fields


def field_of(kind: Kind, id: Field | Ref | Id) -> Flow[Field]:
    """One definition. Raises NotFound.

    https://www.amocrm.ru/developers/content/crm_platform/custom-fields
    """
    reply: Reply = yield read(_field_path(kind, id))
    return (yield from settled(lambda context: codec.decode_field(reply.body, context), Ref(kind, None)))


def _field_path(kind: Kind, id: Field | Ref | Id) -> str:
    return at_path(f"{API}/{_type(kind)}/custom_fields/{{id}}", id=_id(id, Kind.FIELD))


def create_fields(fields: Iterable[Field], **vendor: Any) -> Flow[tuple[Field, ...]]:
    """Make custom fields, of one kind of rows a request; ``vendor`` goes along with each, in the vendor's words.

    ``await crm.run(kommo.create_fields([Field(entity=Kind.DEAL, name="Fee", type=FieldType.MONEY)], currency="EUR"))``
    A name and a type are due, options for selects, ``currency`` for money, ``chained_lists`` for chained lists. A code that
    exists already makes a second field. Admins only.
    https://www.amocrm.ru/developers/content/crm_platform/custom-fields
    """
    given = list(fields)
    made: dict[int, Field] = {}
    for kind in dict.fromkeys(each.entity for each in given):
        numbers = [number for number, each in enumerate(given) if each.entity is kind]
        rows = [_field_row(given[number], vendor) for number in numbers]
        answers = yield from _written("POST", f"{_type(kind)}/custom_fields", "custom_fields", rows)
        made.update(zip(numbers, (yield from _read_fields(answers, kind)), strict=True))
    return tuple(made[number] for number in range(len(given)))


def _field_row(given: Field, vendor: Mapping[str, Any]) -> dict[str, Any]:
    if given.id is not None:
        raise Invalid(f"custom field {given.id} has an id already: update it, or make it with id=None")
    return {**codec.encode_definition(given, filled(given), Context()), **vendor}


def _read_fields(rows: Sequence[Any], kind: Kind) -> Flow[list[Field]]:
    return (yield from settled(lambda ctx: [codec.decode_field(row, ctx) for row in rows], Ref(kind, None)))


def update_field(given: Field, **vendor: Any) -> Flow[Field]:
    """Change a custom field's name, code or options: what differs from its reading, and ``vendor`` beside it.

    The options replace those there are; one that goes without its id loses it, and with it every row's choice of it.
    Raises NotFound. Admins only.
    https://www.amocrm.ru/developers/content/crm_platform/custom-fields
    """
    before = None
    if given.raw is not None:
        (before,) = yield from _read_fields([given.raw], given.entity)
    row = {**codec.encode_field(given, _changed(before, given, ("name", "code", "options"))), **vendor}
    if not row:
        return given
    reply = yield from _telling(Call("PATCH", _field_path(given.entity, given), body=row))
    (made,) = yield from _read_fields([reply.body], given.entity)
    return made


# -------------------------------------------------------------------------------------------------- users and roles


@frozen(kw_only=True)
class NewUser:
    """A person to let in. ``rights`` in the vendor's words: A all, G group, M own, D denied."""

    name: str
    email: str
    password: Secret = field(converter=Secret)
    lang: str | None = None
    rights: Mapping[str, Any] | None = None


def create_users(users: Iterable[NewUser]) -> Flow[tuple[User, ...]]:
    """Let up to ten people in. A password has six letters or more, a digit, a small and a capital one among them.

    A name has at most 50 letters and no signs but ``.@-_``. Off in accounts of more than 100 users. Admins only.
    https://www.amocrm.ru/developers/content/crm_platform/users-api
    """
    rows: list[dict[str, Any]] = []
    for each in users:
        known = {"name": each.name, "email": each.email, "password": each.password.reveal(), "lang": each.lang}
        rows.append({name: part for name, part in {**known, "rights": each.rights}.items() if part is not None})
    made = yield from _written("POST", "users", "users", rows, most=10)
    return (yield from settled(lambda context: tuple(codec.decode_user(row, context) for row in made)))


@frozen(kw_only=True)
class Role:
    """A set of rights that users share, in the vendor's words. ``users`` are there if they were asked for."""

    id: int
    name: str | None = None
    rights: Mapping[str, Any] = field(factory=dict[str, Any])
    users: tuple[Ref, ...] = ()
    raw: Any = field(default=None, eq=False, repr=False)


def roles(*, with_: Iterable[str] = ("users",)) -> Flow[tuple[Role, ...]]:
    """The account's roles. Admins only.

    https://www.amocrm.ru/developers/content/crm_platform/users-api
    """
    rows = yield from _pages("roles", "roles", _with(with_))
    return tuple(
        Role(
            id=read.id,
            name=read.name,
            rights=mapping(row.get("rights")),
            users=_embedded_refs(Kind.USER, row, "users"),
            raw=row,
        )
        for read, row in _typed(rows, wire.Named, "role")
    )


def _embedded_refs(kind: Kind, row: Mapping[str, Any], word: str) -> tuple[Ref, ...]:
    return tuple(
        Ref(kind, mapping(each)["id"])
        for each in array(mapping(row.get("_embedded")).get(word))
        if isinstance(mapping(each).get("id"), int)
    )


# ------------------------------------------------------------------------------------------- events, incoming leads


@frozen(kw_only=True)
class Event:
    """What happened in the account. ``before`` and ``after`` are in the vendor's words (§4.14)."""

    id: str
    type: str
    at: datetime | None = None
    by: Ref | None = None
    about: Ref | None = None
    before: tuple[Mapping[str, Any], ...] = ()
    after: tuple[Mapping[str, Any], ...] = ()
    raw: Any = field(default=None, eq=False, repr=False)


# §4.14: in events the vendor's words are singular.
_SINGULAR: Mapping[str, Kind] = {
    "lead": Kind.DEAL,
    "contact": Kind.CONTACT,
    "company": Kind.COMPANY,
    "task": Kind.TASK,
}


def events(
    *,
    types: Iterable[str] = (),
    about: Ref | Iterable[Ref] = (),
    kinds: Iterable[Kind] = (),
    by: Iterable[Ref] = (),
    since: datetime | None = None,
    until: datetime | None = None,
    query: Mapping[str, Any] | None = None,
    with_: Iterable[str] = (),
    page: int = 1,
    most: int | None = 10_000,
) -> Flow[tuple[Event, ...]]:
    """What happened, oldest or newest first as the vendor pleases, from ``page`` (of a hundred) on, at most ``most`` events.

    ``types`` are the vendor's (lead_status_changed …), ``about`` up to ten rows of one kind, ``by`` up to ten users.
    ``query`` is added as it is: ``{"filter": {"value_after": {"leads_statuses": [{"pipeline_id": 1, "status_id": 142}]}}}``
    https://www.amocrm.ru/developers/content/crm_platform/events-and-notes
    """
    rows_of = (about,) if isinstance(about, Ref) else tuple(about)
    asked_kinds = tuple(dict.fromkeys((*kinds, *(ref.kind for ref in rows_of))))
    users = [ref.id for ref in by]
    if len(rows_of) > 10 or len(users) > 10 or (rows_of and len(asked_kinds) != 1):
        raise Invalid("events are asked about ten rows of one kind, and of ten users, at most")
    words = {kind: word for word, kind in _SINGULAR.items()}
    unknown = [kind for kind in asked_kinds if kind not in words]
    if unknown:
        raise Invalid(f"Kommo has no events of a {unknown[0]}")
    # §3.5: the vendor's own library joins these with commas.
    filters = {
        "type": ",".join(types) or None,
        "entity": ",".join(words[kind] for kind in asked_kinds) or None,
        "entity_id": ",".join(str(ref.id) for ref in rows_of) or None,
        "created_by": ",".join(map(str, users)) or None,
        "created_at": {"from": _seconds(since), "to": _seconds(until)},
    }
    pairs = (*_brackets({"filter": filters}), *_brackets(query or {}), *_with(with_))
    # §2.3: a page of events has up to 100.
    rows = yield from _pages("events", "events", pairs, limit=100, page=page, most=most)
    return tuple(_read_event(*each) for each in _typed(rows, wire.Event, "event"))


def _read_event(read: wire.Event, row: Any) -> Event:
    kind = _SINGULAR.get(read.entity_type or "")
    return Event(
        id=read.id,
        type=read.type,
        at=moment(read.created_at),
        by=None if read.created_by is None else Ref(Kind.USER, read.created_by),
        about=Ref(kind, read.entity_id) if kind and read.entity_id else None,
        before=tuple(mapping(each) for each in array(read.value_before)),
        after=tuple(mapping(each) for each in array(read.value_after)),
        raw=row,
    )


@frozen(kw_only=True)
class Unsorted:
    """An incoming lead that nobody has taken yet. Its rows are not in their lists until somebody does."""

    uid: str
    category: str
    source_name: str | None = None
    source_uid: str | None = None
    pipeline: Ref | None = None
    created_at: datetime | None = None
    metadata: Mapping[str, Any] = field(factory=dict[str, Any])
    deals: tuple[Ref, ...] = ()
    contacts: tuple[Ref, ...] = ()
    companies: tuple[Ref, ...] = ()
    raw: Any = field(default=None, eq=False, repr=False)


def unsorted(
    *, uids: Iterable[str] = (), categories: Iterable[str] = (), pipeline: Ref | Id | None = None
) -> Flow[tuple[Unsorted, ...]]:
    """All incoming leads, which somebody takes sooner or later; ``categories`` are sip, mail, forms and chats.

    https://www.amocrm.ru/developers/content/crm_platform/unsorted-api
    """
    asked = {"uid": [*uids] or None, "category": [*categories] or None}
    asked |= {} if pipeline is None else {"pipeline_id": _id(pipeline, Kind.PIPELINE)}
    rows = yield from _pages("leads/unsorted", "unsorted", _brackets({"filter": asked}))
    return tuple(_read_unsorted(*each) for each in _typed(rows, wire.Unsorted, "incoming lead"))


def _read_unsorted(read: wire.Unsorted, row: dict[str, Any]) -> Unsorted:
    return Unsorted(
        uid=read.uid,
        category=read.category or "",
        source_name=read.source_name,
        source_uid=read.source_uid,
        pipeline=_ref(Kind.PIPELINE, read.pipeline_id),
        created_at=moment(read.created_at),
        metadata=mapping(read.metadata),
        deals=_embedded_refs(Kind.DEAL, row, "leads"),
        contacts=_embedded_refs(Kind.CONTACT, row, "contacts"),
        companies=_embedded_refs(Kind.COMPANY, row, "companies"),
        raw=row,
    )


# --------------------------------------------------------------------------------------------------------- catalogs


@frozen(kw_only=True)
class Catalog:
    """A list of the account's own: ``type`` is regular, products or invoices."""

    id: int
    name: str | None = None
    type: str | None = None
    sort: int = 0
    raw: Any = field(default=None, eq=False, repr=False)


@frozen(kw_only=True)
class Element:
    """A row of a catalog. Its fields are read as a card's are."""

    id: int
    catalog: int
    name: str | None = None
    fields: tuple[FieldValue, ...] = ()
    created_at: datetime | None = None
    updated_at: datetime | None = None
    deleted: bool = False
    raw: Any = field(default=None, eq=False, repr=False)

    @property
    def point(self) -> Point:
        """What a link leads to: ``kommo.Tie(deal, element.point, quantity=Decimal(2))``."""
        return Point("catalog_elements", self.id, self.catalog)


def catalogs() -> Flow[tuple[Catalog, ...]]:
    """The account's lists. The definitions of their fields: ``read_rows(f"catalogs/{id}/custom_fields", limit=50)``.

    https://www.amocrm.ru/developers/content/crm_platform/catalogs-api
    """
    rows = yield from _pages("catalogs", "catalogs")
    return tuple(
        Catalog(id=read.id, name=read.name, type=read.type, sort=read.sort or 0, raw=row)
        for read, row in _typed(rows, wire.Catalog, "catalog")
    )


def elements(
    catalog: Catalog | int,
    *,
    text: str | None = None,
    ids: Iterable[int] = (),
    with_: Iterable[str] = (),
    page: int = 1,
    most: int | None = None,
) -> Flow[tuple[Element, ...]]:
    """The rows of a catalog, all of them or from ``page`` (of 250) on ``most``; ``text`` is searched for by the vendor.

    https://www.amocrm.ru/developers/content/crm_platform/catalogs-api
    """
    path = at_path("catalogs/{id}/elements", id=_id(catalog))
    pairs = (*_brackets({"query": text, "filter": {"id": [*ids] or None}}), *_with(with_))
    rows = yield from _pages(path, "elements", pairs, page=page, most=most)
    found: list[Element] = []
    for read_one, row in _typed(rows, wire.Element, "element"):
        values = yield from settled(lambda context, row=row: codec.field_values(row, context))
        found.append(
            Element(
                id=read_one.id,
                catalog=read_one.catalog_id or int(_id(catalog)),
                name=read_one.name,
                fields=values,
                created_at=moment(read_one.created_at),
                updated_at=moment(read_one.updated_at),
                deleted=read_one.is_deleted or False,
                raw=row,
            )
        )
    return tuple(found)


# ------------------------------------------------------------------------------------------------------------ notes


def pin_note(note: Note) -> Flow[None]:
    """Pin a note to the top of its card. It must know its target and its id.

    ``read_rows("leads/notes", with_=("is_pinned",))`` tells which are.
    https://www.amocrm.ru/developers/content/crm_platform/events-and-notes
    """
    return _pin(note, "pin")


def unpin_note(note: Note) -> Flow[None]:
    """Unpin a note."""
    return _pin(note, "unpin")


def _pin(note: Note, word: str) -> Flow[None]:
    if note.target is None or note.target.kind not in TYPES:
        raise Invalid("a note is pinned under what it hangs on: give it a target")
    path = at_path(f"{API}/{TYPES[note.target.kind]}/{{target}}/notes/{{id}}/{word}", target=note.target.id, id=note.id)
    yield Call("POST", path, replayable=True)
