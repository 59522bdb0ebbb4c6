"""Rows to try a dialect with: what they point at is taken from the account itself, never invented.

``full`` fills every field the model has; ``sample`` is what of it a dialect says it carries; ``entities`` is a
Hypothesis strategy of the same. Nothing here names a dialect, and hypothesis is imported only by the strategy.
"""

from collections.abc import Iterable, Mapping
from contextlib import aclosing
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, TypeVar

from attrs import evolve, frozen

from crmclient import flows
from crmclient.client import Client
from crmclient.dialect import Dialect, Verb
from crmclient.entities import (
    Company,
    Contact,
    Deal,
    Email,
    Entity,
    FieldContent,
    FieldType,
    FieldValue,
    Kind,
    Label,
    Link,
    Money,
    Note,
    NoteKind,
    Outcome,
    Phone,
    Ref,
    Tag,
    Task,
    field_names,
)
from crmclient.vocabulary import Field, Pipeline, User

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

E = TypeVar("E", bound=Entity)

ENTITIES: Final[tuple[type[Entity], ...]] = (Contact, Company, Deal, Task, Note)
VOCABULARY: Final[tuple[type[Any], ...]] = (User, Pipeline, Field)

VARIANTS: Final = 4
"""How many different full rows of a kind there are: one alone cannot fill fields that exclude each other."""

_ENOUGH: Final = 40


# ------------------------------------------------------------------------------------------------- an account's words


@frozen(kw_only=True)
class Words:
    """What an account has that a new row can point at. ``places`` are (pipeline, stage), those of closed deals first."""

    users: tuple[Ref, ...] = ()
    places: tuple[tuple[Ref | None, Ref], ...] = ()
    contacts: tuple[Ref, ...] = ()
    companies: tuple[Ref, ...] = ()
    deals: tuple[Ref, ...] = ()
    task_types: tuple[Ref, ...] = ()
    fields: tuple[Field, ...] = ()
    notes: tuple[Note, ...] = ()

    def fields_of(self, kind: Kind) -> tuple[Field, ...]:
        return tuple(field for field in self.fields if field.entity is kind)


async def words_of(crm: Client) -> Words:
    """Read what there is to point at, as far as the dialect can list it."""
    people, deals = await _some(crm, Contact), await _some(crm, Deal)
    tasks, notes = await _some(crm, Task), await _some(crm, Note)
    pipelines = await _some(crm, Pipeline)
    owned: list[Entity] = [*people, *deals, *tasks]
    users = [user.ref for user in await _some(crm, User)] or [row.owner for row in owned if row.owner]
    known = [(pipeline.ref, stage) for pipeline in pipelines for stage in pipeline.stages]
    ended = {Outcome.WON: 0, Outcome.LOST: 1}
    # Stable: within won, lost and the others the account's own order stays.
    known.sort(key=lambda place: ended.get(place[1].outcome, 2))
    places: list[tuple[Ref | None, Ref]] = [(pipeline, stage.ref) for pipeline, stage in known]
    # Where nobody lists the stages, they are where deals are.
    places = places or list(dict.fromkeys((deal.pipeline, deal.stage) for deal in deals if deal.stage))
    return Words(
        users=_different(users),
        places=tuple(places),
        contacts=tuple(row.ref for row in people),
        companies=tuple(row.ref for row in await _some(crm, Company)),
        deals=tuple(row.ref for row in deals),
        task_types=_different(task.type for task in tasks if task.type),
        fields=tuple(await _some(crm, Field) or await _told(crm)),
        notes=tuple(notes),
    )


async def _told(crm: Client) -> list[Field]:
    """The fields that settings tell, where no page lists them."""
    parts = [part for part in crm.dialect.settings if part.startswith("fields:")]
    return [field for part in parts for field in (await crm.setting(part)).values()]


async def _some(crm: Client, entity: type[Any]) -> list[Any]:
    found: list[Any] = []
    if crm.can(entity, Verb.LIST):
        async with aclosing(crm.of(entity).pages()) as pages:  # closed here, where the loop still runs
            async for page in pages:
                found += page.items
                if len(found) >= _ENOUGH:
                    break
    return found


def _different(refs: Iterable[Ref]) -> tuple[Ref, ...]:
    return tuple(dict.fromkeys(refs))


# ---------------------------------------------------------------------------------------------------------- full rows


def full(entity: type[E], words: Words, number: int = 0) -> E:
    """A row with every field of the model filled, where the account has what it points at.

    Rows of different numbers differ in every field that can be told apart.
    """
    made: Any = _MAKERS[entity](words, number)
    return evolve(made, **_who_and_when(words, number))


def sample(dialect: Dialect, entity: type[E], words: Words, number: int = 0, verb: Verb = Verb.CREATE) -> E:
    """A row with every field filled that the dialect says survives the verb."""
    return flows.carried(dialect, full(entity, words, number), verb)[0]


def otherwise(row: Entity, name: str, words: Words) -> dict[str, Any]:
    """Another content for a field, with what cannot be told without it: a stage goes with its pipeline."""
    held: Any = row
    if name == "stage":
        stages = [stage for pipeline, stage in words.places if pipeline == held.pipeline and stage != held.stage]
        return {"stage": stages[0]}
    others: list[Any] = [full(type(row), words, number) for number in range(VARIANTS)]
    for other in others:
        if getattr(other, name) and getattr(other, name) != getattr(held, name):
            return {each: getattr(other, each) for each in ((name, "stage") if name == "pipeline" else (name,))}
    if isinstance(getattr(held, name), bool):
        return {name: not getattr(held, name)}
    raise LookupError(f"the account has no other {name} for a {type(row).__name__}")


def _who_and_when(words: Words, number: int) -> dict[str, Any]:
    made = datetime(2025, 3, 9, 7, 30, 15, tzinfo=UTC) + timedelta(days=number)
    return {
        "owner": _nth(words.users, number + 1),
        "created_by": _nth(words.users, number + 2),
        "updated_by": _nth(words.users, number),
        "created_at": made,
        "updated_at": made + timedelta(hours=5),
        "deleted": True,
    }


def _contact(words: Words, number: int) -> Contact:
    company = _nth(words.companies, number) or Ref(Kind.COMPANY, None)
    return Contact(
        name=f"Иван Петров-Łukasik {number}",
        first_name=f"Иван {number}",
        last_name=f"Петров-Łukasik {number}",
        position=f"Директор № {number}",
        phones=(Phone(f"+7 (999) 123-45-{60 + number}"), Phone(f"+4915{number}", label=Label.MOBILE)),
        emails=(Email(f"ivan{number}@company.example"), Email(f"i{number}@home.example", label=Label.PRIVATE)),
        company=Link(company, name=f"ООО «Рога и Копыта» {number}"),
        deals=(Link(deal),) if (deal := _nth(words.deals, number)) else (),
        tags=_tags(number),
        fields=_fields(words, Kind.CONTACT, number),
    )


def _company(words: Words, number: int) -> Company:
    return Company(
        name=f"АО «Вектор & Ко» {number}",
        phones=(Phone(f"+7 812 000-00-{10 + number}"), Phone(f"8800{number}", label=Label.FAX)),
        emails=(Email(f"info{number}@firm.example"),),
        contacts=_links(words.contacts, number)[:1],
        deals=_links(words.deals, number)[:1],
        tags=_tags(number),
        fields=_fields(words, Kind.COMPANY, number),
    )


def _deal(words: Words, number: int) -> Deal:
    pipeline, stage = _place(words, number)
    company = _nth(words.companies, number)
    return Deal(
        name=f"Поставка <срочно> № {number}",
        price=Money(Decimal(125_000 + number)),
        pipeline=pipeline,
        stage=stage,
        outcome=Outcome.WON,
        closed_at=datetime(2025, 11, 2, 16, 45, tzinfo=UTC) + timedelta(days=number),
        contacts=_links(words.contacts, number),
        company=Link(company) if company else None,
        tags=_tags(number),
        fields=_fields(words, Kind.DEAL, number),
    )


def _place(words: Words, number: int) -> tuple[Ref | None, Ref | None]:
    """A closed place, in a pipeline of its own for each of the first numbers where there are several."""
    pipelines = tuple(dict.fromkeys(pipeline for pipeline, _ in words.places))
    pipeline = _nth(pipelines, number)
    places = [stage for each, stage in words.places if each == pipeline]
    # Won for the even, lost for the odd: `places` begins with them.
    return pipeline, _nth(places, number % 2)


def _task(words: Words, number: int) -> Task:
    return Task(
        text=f"Перезвонить\nи уточнить реквизиты {number}",
        type=_nth(words.task_types, number),
        due=datetime(2026, 4, 1, 9, 0, tzinfo=UTC) + timedelta(hours=number),
        duration=timedelta(minutes=30 + number),
        done=True,
        result=f"Договорились {number}",
        target=_target(words, number),
    )


def _note(words: Words, number: int) -> Note:
    plain = Note(text=f"Просил перезвонить <b>завтра</b> № {number}", target=_target(words, number))
    told = [note for note in words.notes if note.params and note.text and note.kind is not NoteKind.OTHER]
    other = [note for note in words.notes if note.kind is NoteKind.OTHER]
    like = (told[:1], told[:1], other[:1])[number] if number < 3 else ()
    for note in like:
        params = {
            key: f"{part}{number}" if isinstance(part, str) and number == 1 else part
            for key, part in note.params.items()
        }
        plain = evolve(plain, kind=note.kind, raw_kind=note.raw_kind, params=params)
    return plain


def _target(words: Words, number: int) -> Ref | None:
    return _nth((*words.deals[:1], *words.contacts[:1], *words.companies[:1]), number)


_MAKERS: Final[Mapping[type[Entity], Any]] = {
    Contact: _contact,
    Company: _company,
    Deal: _deal,
    Task: _task,
    Note: _note,
}


def _nth(given: Any, number: int) -> Any:
    return given[number % len(given)] if given else None


def _links(refs: tuple[Ref, ...], number: int) -> tuple[Link, ...]:
    """Two rows, the first of them the main one."""
    return tuple(Link(ref, main=place == 0) for place, ref in enumerate(refs[2 * number : 2 * number + 2]))


def _tags(number: int) -> tuple[Tag, ...]:
    return (Tag(f"Новый {number}"), Tag("R&D; a+b=c"))


def _fields(words: Words, kind: Kind, number: int) -> tuple[FieldValue, ...]:
    """A value for each custom field that the model has no field of its own for."""
    found = [(field, _content(field, number)) for field in words.fields_of(kind)]
    return tuple(_value(field, content) for field, content in found if content)


def _value(field: Field, content: Iterable[FieldContent]) -> FieldValue:
    ref = field.ref if field.id is not None else None
    return FieldValue(tuple(content), field=ref, code=field.code, name=field.name, type=field.type)


def _content(field: Field, number: int) -> tuple[FieldContent, ...]:
    options = tuple(option.value for option in field.options)
    contents: Mapping[FieldType, tuple[FieldContent, ...]] = {
        FieldType.TEXT: (f"Казань {number}",),
        FieldType.TEXTAREA: (f"ул. Ленина, д. {number}\nкв. 7",),
        FieldType.NUMBER: (Decimal(12 + number),),
        FieldType.BOOL: (number % 2 == 0,),
        FieldType.SELECT: tuple(filter(None, (_nth(options, number),))),
        FieldType.RADIO: tuple(filter(None, (_nth(options, number),))),
        FieldType.MULTISELECT: options[:2],
        FieldType.DATE: (date(2025, 7, 1 + number),),
        FieldType.BIRTHDAY: (date(1968, 2, 20 + number),),
        FieldType.DATETIME: (datetime(2025, 7, 1 + number, 12, 30, tzinfo=UTC),),
        FieldType.URL: (f"https://firm{number}.example/?q=a&b",),
    }
    # A position is a custom field for some vendors, and for the model it is none.
    return () if field.code == "POSITION" else contents.get(field.type, ())


# --------------------------------------------------------------------------------------------------------- strategies


def anything(entity: type[E], words: Words, *, wild: bool = False) -> "SearchStrategy[E]":
    """Any row the model can hold. A ``wild`` one has custom fields that no account has, and links by a name alone."""
    from hypothesis import strategies as st

    texts = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=30)
    lines = st.text(st.characters(exclude_categories=("Cs", "Cc"), include_characters="\n"), min_size=1, max_size=60)
    ids = st.integers(1, 2**53)
    moments = st.datetimes(datetime(1971, 1, 1), datetime(2099, 1, 1), timezones=st.just(UTC))

    def ref(kind: Kind) -> Any:
        return st.builds(Ref, st.just(kind), ids)

    def labelled(part: Any) -> Any:
        known = st.sampled_from([label for label in Label if label is not Label.OTHER])
        return st.one_of(
            st.builds(part, texts, label=known),
            st.builds(part, texts, label=st.just(Label.OTHER), raw_label=st.sampled_from([None, "SKYPE"])),
        )

    def many(part: Any, most: int = 3) -> Any:
        return st.lists(part, max_size=most).map(tuple)

    def links(kind: Kind) -> Any:
        # One row is linked once, and one link at most is the main one.
        known = st.one_of(ref(kind), st.just(Ref(kind, None))) if wild else ref(kind)
        linked = st.lists(known, max_size=3, unique=True)
        return linked.flatmap(
            lambda refs: st.integers(0, len(refs)).map(
                lambda main: tuple(Link(each, main=place == main) for place, each in enumerate(refs))
            )
        )

    def value(field: Field) -> Any:
        contents: Mapping[FieldType, Any] = {
            FieldType.NUMBER: st.decimals(-(10**9), 10**9, places=2).map(_tidy),
            FieldType.BOOL: st.booleans(),
            FieldType.DATE: st.dates(date(1970, 1, 3), date(2099, 1, 1)),
            FieldType.BIRTHDAY: st.dates(date(1900, 1, 2), date(2099, 1, 1)),
            FieldType.DATETIME: moments,
        }
        options = [option.value for option in field.options]
        content = contents.get(field.type, st.sampled_from(options) if options else texts)

        def held(part: Any) -> FieldValue:
            return _value(field, (part,))

        return content.map(held)

    def fields(kind: Kind) -> Any:
        known: list[Field] = [field for field in words.fields_of(kind) if _content(field, 0)]

        def kept(values: tuple[FieldValue | None, ...]) -> tuple[FieldValue, ...]:
            return tuple(value for value in values if value is not None)

        # Each field at most once, in the account's order.
        chosen: Any = st.tuples(*(maybe(value(field)) for field in known))
        return many(strange) if wild else chosen.map(kept)

    def maybe(part: Any) -> Any:
        return st.one_of(st.none(), part)

    contents = st.one_of(texts, st.booleans(), st.dates(), moments, st.decimals(-99, 99, places=1))
    strange = st.builds(
        FieldValue,
        st.lists(contents, max_size=2).map(tuple),
        field=maybe(ref(Kind.FIELD)),
        code=maybe(texts),
        name=maybe(texts),
        type=st.sampled_from(FieldType),
    )
    plain_params = st.dictionaries(
        texts.filter(lambda key: key != "text"), st.one_of(texts, st.integers(0, 9999)), max_size=3
    )
    kinds = st.one_of(
        st.sampled_from([(kind, None) for kind in NoteKind if kind is not NoteKind.OTHER]),
        texts.map(lambda word: (NoteKind.OTHER, f"x_{word}")),
    )
    targets = st.one_of(ref(Kind.CONTACT), ref(Kind.COMPANY), ref(Kind.DEAL))
    named = maybe(texts)
    money = st.builds(
        Money, st.decimals(0, 10**12, places=2).map(_tidy), currency=st.sampled_from([None, "RUB", "EUR"])
    )
    company = st.one_of(ref(Kind.COMPANY).map(Link), texts.map(lambda word: Link(Ref(Kind.COMPANY, None), name=word)))
    card: dict[str, Any] = {"name": named, "tags": many(texts.map(Tag)), "fields": fields(entity.KIND)}
    reachable: dict[str, Any] = {"phones": many(labelled(Phone)), "emails": many(labelled(Email))}
    person = {"first_name": named, "last_name": named, "position": named, "company": maybe(company)}
    own: Mapping[type[Entity], dict[str, Any]] = {
        Contact: {**card, **reachable, **person, "deals": links(Kind.DEAL)},
        Company: {**card, **reachable, "contacts": links(Kind.CONTACT), "deals": links(Kind.DEAL)},
        Deal: {
            **card,
            "price": maybe(money),
            "pipeline": maybe(ref(Kind.PIPELINE)),
            "stage": maybe(ref(Kind.STAGE)),
            "closed_at": maybe(moments),
            "contacts": links(Kind.CONTACT),
            "company": maybe(company),
        },
        Task: {
            "text": maybe(lines),
            "type": maybe(ref(Kind.TASK_TYPE)),
            "due": maybe(moments),
            "duration": maybe(st.timedeltas(timedelta(0), timedelta(days=2))),
            "done": st.booleans(),
            "result": maybe(lines),
            "target": maybe(targets),
        },
        Note: {"kinds": kinds, "text": maybe(lines), "params": plain_params, "target": targets},
    }
    common = {
        "owner": maybe(ref(Kind.USER)),
        "created_by": maybe(ref(Kind.USER)),
        "updated_by": maybe(ref(Kind.USER)),
        "created_at": maybe(moments),
        "updated_at": maybe(moments),
    }

    def build(content: dict[str, Any]) -> E:
        if "kinds" in content:
            content["kind"], content["raw_kind"] = content.pop("kinds")
        return entity(**content)

    return st.fixed_dictionaries({**common, **own[entity]}).map(build)


def _tidy(amount: Decimal) -> Decimal:
    """Without trailing noughts, which are no part of a number."""
    return amount.quantize(Decimal(1)) if amount == amount.to_integral_value() else amount.normalize()


def differing(one: Any, other: Any, names: Iterable[str] | None = None) -> dict[str, tuple[Any, Any]]:
    """Where two rows differ, field by field: empty is what a law wants."""
    asked = field_names(one.__class__) if names is None else sorted(names)
    found = {name: (getattr(one, name), getattr(other, name)) for name in asked}
    return {name: pair for name, pair in found.items() if pair[0] != pair[1] and not _called_alike(*pair)}


def _called_alike(one: Any, other: Any) -> bool:
    """A row known by its name alone, and the row of that name."""
    if not isinstance(one, Link) or not isinstance(other, Link):
        return False
    return None in (one.ref.id, other.ref.id) and one.name is not None and one.name == other.name
