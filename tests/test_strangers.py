"""Clients nobody here wrote, unmodified but for where they connect: our sandboxes answer the way a stranger expects.

`pip install aioamocrm amocrm-api amocrm==0.7.7` beside ours; what is not installed is skipped. The last two are both the
package `amocrm` and overwrite each other's `amocrm/__init__.py`; nothing here needs it, whosever it is.

Where a stranger cannot do a thing against our sandbox, the test says whose fault it is and by which evidence.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pytest
from attrs import frozen

from crmclient.clock import Clock, SystemClock
from crmclient.sandbox.server import Face, Running, Setting, serve
from crmclient.sandbox.world import World, populate
from crmclient_kommo.sandbox import FACE, Grants, grants

pytestmark = pytest.mark.e2e


def needs(distribution: str, exactly: str = "") -> pytest.MarkDecorator:
    """Skip unless it is installed, and say why."""
    try:
        found = version(distribution)
    except PackageNotFoundError:
        wanted = f"{distribution}=={exactly}" if exactly else distribution
        return pytest.mark.skip(reason=f"not installed: pip install {wanted}")
    return pytest.mark.skipif(bool(exactly) and found != exactly, reason=f"{distribution} is {found}, not {exactly}")


class Stopwatch(SystemClock):
    """The date is the machine's; the seconds that a limit counts pass only while somebody waits for them.

    So it does not matter how fast a machine is. No sleep ends early: each is a little longer than was asked.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        self.seconds += seconds + 1e-6
        await asyncio.sleep(0)


@asynccontextmanager
async def served(
    face: Face,
    *,
    contacts: int = 30,
    limits: bool = False,
    switches: Mapping[str, Setting] | None = None,
    clock: Clock | None = None,
) -> AsyncGenerator[Running]:
    """On the system's clock: strangers read a token's times by theirs."""
    with World(clock=clock or SystemClock()) as world:
        populate(world, contacts=contacts, companies=3, deals=10, tasks=10, notes=20)
        async with serve(face, world, limits=limits, switches=switches) as running:
            yield running


def phone_of(row: dict[str, Any]) -> list[str]:
    return [phone["value"] for phone in row["phones"]]


# --- aioamocrm: asyncio, httpx, pydantic; API v4 ---------------------------------------------------------------------


@frozen
class Guest:
    """aioamocrm, let in by an authorization code."""

    amo: Any
    storage: Any
    run: Running

    @property
    def grants(self) -> Grants:
        return grants(self.run.account)

    async def held(self) -> Any:
        return await self.storage.load()


@asynccontextmanager
async def guest(clock: Stopwatch | None = None, **shape: Any) -> AsyncGenerator[Guest]:
    import aioamocrm

    pace = aioamocrm.RateLimiter(7, clock=clock.monotonic, sleep=clock.sleep) if clock else 7
    async with served(FACE, clock=clock, **shape) as running:
        card = grants(running.account).integration
        storage = aioamocrm.MemoryTokenStorage()
        auth = aioamocrm.OAuth2(card.client_id, card.client_secret, card.redirect_uri, storage)
        async with aioamocrm.AmoCRMClient(base_url=running.base_url, auth=auth, rate_limit=pace) as amo:
            await amo.exchange_code(running.credentials["code"])
            yield Guest(amo, storage, running)


@needs("aioamocrm")
@pytest.mark.asyncio
async def test_aioamocrm_comes_in_with_a_long_lived_token() -> None:
    import aioamocrm

    async with served(FACE) as running:
        auth = aioamocrm.LongLivedToken(running.credentials["token"])
        async with aioamocrm.AmoCRMClient(base_url=running.base_url, auth=auth) as amo:
            account = await amo.account.get(with_=["task_types", "users_groups", "datetime_settings", "amojo_id"])
            assert (account.id, account.name) == (running.world.account["id"], running.world.account["name"])
            assert account.subdomain == running.world.account["subdomain"]
            assert account.embedded["datetime_settings"]["timezone"] == running.world.account["zone"]
            assert account.current_user_id == running.world.admin["id"]
            me = await amo.users.get(account.current_user_id)
            assert me.email == running.world.admin["email"]
            assert [user.name async for user in amo.users.iterate(with_=["role", "group"])] == [
                user["name"] for user in running.world.select("user")
            ]


@needs("aioamocrm")
@pytest.mark.asyncio
async def test_aioamocrm_trades_a_code_once_and_is_told_why_not_twice() -> None:
    from aioamocrm import AuthError

    async with guest() as it:
        first = await it.held()
        assert (await it.amo.account.get()).id == it.run.world.account["id"]
        assert first.token_type == "Bearer"
        assert 86300 < first.expires_at - datetime.now().timestamp() <= 86400
        with pytest.raises(AuthError) as refused:
            await it.amo.exchange_code(it.run.credentials["code"])
        assert (refused.value.status_code, refused.value.body["hint"]) == (400, "Authorization code has been revoked")


@needs("aioamocrm")
@pytest.mark.asyncio
async def test_aioamocrm_renews_a_dead_access_token_and_goes_on() -> None:
    async with guest() as it:
        before = await it.held()
        it.grants.expire_access(before.access_token)
        contacts = await asyncio.gather(*(it.amo.contacts.get_page(limit=5) for _ in range(3)))
        after = await it.held()
        assert [len(page) for page in contacts] == [5, 5, 5]
        # How many had left with the dead one before the first was told so is a matter of speed; one renewal serves all.
        assert it.grants.refreshes == 1
        assert 1 <= it.run.stats.statuses[401] <= 3
        assert after.access_token != before.access_token
        assert after.refresh_token != before.refresh_token


@needs("aioamocrm")
@pytest.mark.asyncio
async def test_aioamocrm_renews_before_the_token_ends() -> None:
    async with guest() as it:
        it.grants.access_seconds = 30  # within its margin of a minute
        await it.amo.exchange_code(it.grants.mint_code())
        it.grants.access_seconds = 86400
        await it.amo.account.get()
        assert (it.grants.refreshes, it.run.stats.statuses[401]) == (1, 0)


@needs("aioamocrm")
@pytest.mark.asyncio
async def test_aioamocrm_is_told_when_its_refresh_token_is_dead() -> None:
    from aioamocrm import AuthError

    async with guest() as it:
        held = await it.held()
        it.grants.expire_access(held.access_token)
        it.grants.revoke_refresh(held.refresh_token)
        with pytest.raises(AuthError) as refused:
            await it.amo.account.get()
        assert (refused.value.status_code, refused.value.body["hint"]) == (401, "Token has been revoked")


@needs("aioamocrm")
@pytest.mark.asyncio
async def test_aioamocrm_lists_all_contacts_and_what_is_in_them() -> None:
    async with guest(contacts=600) as it:
        rows = {row["id"]: row for row in it.run.world.select("contact")}
        found = [contact async for contact in it.amo.contacts.iterate(with_=["leads"])]
        assert len(found) == len(rows) == 600
        assert {contact.id for contact in found} == set(rows)
        for contact in found:
            row = rows[contact.id]
            assert contact.name == row["name"]
            assert contact.field_values("PHONE") == phone_of(row)
            assert contact.field_value("POSITION") == (row["position"] or None)
            assert sorted(tag.name for tag in contact.embedded.tags) == sorted(row["tags"])
            assert [company.id for company in contact.embedded.companies] == [row["company_id"]] * bool(
                row["company_id"]
            )
        assert it.run.stats.calls["GET /api/v4/contacts"] == 3


@needs("aioamocrm")
@pytest.mark.asyncio
async def test_aioamocrm_filters_orders_and_searches() -> None:
    async with guest(contacts=60) as it:
        ids = [row["id"] for row in it.run.world.select("contact")][:3]
        some = await it.amo.contacts.get_page(filter={"id": ids}, order={"id": "desc"})
        assert [contact.id for contact in some] == sorted(ids, reverse=True)
        newest = max(row["updated_at"] for row in it.run.world.select("contact"))
        assert len(await it.amo.contacts.get_page(filter={"updated_at": {"from": newest + 1000}})) == 0
        name = next(row["last_name"] for row in it.run.world.select("contact") if row["last_name"])
        assert {contact.last_name for contact in await it.amo.contacts.get_page(query=name)} >= {name}
        assert not (await it.amo.contacts.get_page(page=2)).has_next


@needs("aioamocrm")
@pytest.mark.asyncio
async def test_aioamocrm_creates_reads_and_updates() -> None:
    from aioamocrm import Contact, Lead, Tag

    async with guest() as it:
        ann, bob = Contact(name="Анна Ким", first_name="Анна"), Contact(name="Bob")
        ann.set_field("PHONE", "+7 912 000-00-01", enum_code="MOB")
        ann.embedded.tags.append(Tag(name="из формы"))
        refs = await it.amo.contacts.create([ann, bob])
        assert [ref.request_id for ref in refs] == ["0", "1"]
        read = await it.amo.contacts.get(refs[0].id)
        assert (read.name, read.field_value("PHONE", enum_code="MOB")) == ("Анна Ким", "+7 912 000-00-01")
        assert [tag.name for tag in read.embedded.tags] == ["из формы"]
        change = Contact(id=read.id, name="Анна Ли")
        change.set_field("EMAIL", "anna@mail.example")
        [done] = await it.amo.contacts.update([change])
        assert done.id == read.id
        again = await it.amo.contacts.get(read.id)
        assert (again.name, again.field_value("EMAIL")) == ("Анна Ли", "anna@mail.example")
        assert again.field_value("PHONE") == "+7 912 000-00-01"

        [pipeline, *_] = await it.amo.pipelines.list()
        [lead] = await it.amo.leads.create([Lead(name="Заказ", price=5000, pipeline_id=pipeline.id)])
        await it.amo.leads.update([Lead(id=lead.id, status_id=142)])
        assert (await it.amo.leads.get(lead.id)).status_id == 142
        await it.amo.leads.link(lead.id, "contacts", read.id, metadata={"is_main": True})
        [link] = await it.amo.leads.links(lead.id)
        assert (link.to_entity_type, link.to_entity_id) == ("contacts", read.id)
        assert (await it.amo.leads.get(lead.id, with_=["contacts"])).embedded.contacts[0].is_main
        await it.amo.leads.unlink(lead.id, "contacts", read.id)
        assert await it.amo.leads.links(lead.id) == []


@needs("aioamocrm")
@pytest.mark.asyncio
async def test_aioamocrm_makes_a_lead_with_its_contact_in_one_call() -> None:
    from aioamocrm import Contact, Embedded, Lead

    async with guest() as it:
        lead = Lead(name="Сайт", embedded=Embedded(contacts=[Contact(name="Ева")]))
        [made] = await it.amo.leads.create_complex([lead])
        assert it.run.world.row("contact", made.contact_id)["name"] == "Ева"
        assert (made.merged, it.run.world.row("deal", made.id)["name"]) == (False, "Сайт")


@needs("aioamocrm")
@pytest.mark.asyncio
async def test_aioamocrm_keeps_notes_and_tasks() -> None:
    from aioamocrm import Note, Task

    async with guest() as it:
        owner = it.run.world.select("contact")[0]["id"]
        [made] = await it.amo.contacts.notes.create([Note.common(owner, "Перезвонить после 18:00")])
        note = await it.amo.contacts.notes.get(made.id, entity_id=owner)
        assert (made.entity_id, note.text, note.note_type) == (owner, "Перезвонить после 18:00", "common")
        assert made.id in [each.id async for each in it.amo.contacts.notes.iterate(entity_id=owner)]
        every = [each.id async for each in it.amo.contacts.notes.iterate()]
        assert sorted(every) == sorted(
            row["id"] for row in it.run.world.select("note", where={"target_kind": "contact"})
        )

        till = int(datetime.now().timestamp()) + 3600
        task = Task(text="Позвонить", complete_till=till, entity_id=owner, entity_type="contacts", task_type_id=1)
        [ref] = await it.amo.tasks.create([task])
        assert (await it.amo.tasks.get(ref.id)).result is None
        assert (await it.amo.tasks.complete(ref.id, result="Договорились")).id == ref.id
        done = await it.amo.tasks.get(ref.id)
        assert (done.is_completed, done.result.text) == (True, "Договорились")
        mine = [each.id async for each in it.amo.tasks.iterate(filter={"entity_type": "contacts", "entity_id": owner})]
        assert ref.id in mine


@needs("aioamocrm")
@pytest.mark.asyncio
async def test_aioamocrm_understands_what_is_refused() -> None:
    from aioamocrm import NotFoundError, ValidationError

    async with guest() as it:
        with pytest.raises(NotFoundError):
            await it.amo.contacts.get(999_999_999)
        bad = {"name": "x", "custom_fields_values": [{"field_id": 1, "values": [{"value": "y"}]}]}
        with pytest.raises(ValidationError) as refused:
            await it.amo.contacts.create([{"name": "good"}, bad])
        issue = refused.value.errors[0]
        assert (issue.request_id, issue.code) == ("1", "NotSupportedChoice")
        assert issue.path == "custom_fields_values.0.field_id"
        assert "good" not in {row["name"] for row in it.run.world.select("contact")}


@needs("aioamocrm")
@pytest.mark.asyncio
async def test_aioamocrm_reads_the_definitions_of_fields_and_the_pipelines() -> None:
    async with guest() as it:
        fields = [field async for field in it.amo.contacts.custom_fields.iterate()]
        assert {field.id for field in fields} == {
            row["id"] for row in it.run.world.select("field", where={"entity": "contact"})
        }
        phone = next(field for field in fields if field.code == "PHONE")
        assert (phone.type, (await it.amo.contacts.custom_fields.get(phone.id)).name) == ("multitext", phone.name)
        assert phone.enum_id("WORK") is not None
        for pipeline in await it.amo.pipelines.list():
            kept = it.run.world.select("stage", where={"pipeline_id": pipeline.id}, order="sort")
            assert {stage.id for stage in pipeline.statuses} == {row["id"] for row in kept}
            assert pipeline.status(142) is not None
            assert {stage.id for stage in await it.amo.pipelines.statuses(pipeline.id)} == {row["id"] for row in kept}


@needs("aioamocrm")
@pytest.mark.asyncio
async def test_aioamocrm_cannot_write_back_all_that_it_has_read() -> None:
    """Its fault, and it says so itself: "build partial models". `group_id` is read-only (§4.1), `is_unsorted` not even in
    the table (§4.2). It drops a custom field's name and type but sends `is_computed`, of which nobody knows (§4.8), and
    the company, which only a link changes (§4.2, §4.13).
    """
    from aioamocrm import ValidationError

    async with guest() as it:
        [contact, *_] = await it.amo.contacts.get_page(limit=1)
        with pytest.raises(ValidationError) as refused:
            await it.amo.contacts.update([contact])
        told = {issue.path.rpartition(".")[2] for issue in refused.value.errors}
        assert {"group_id", "is_unsorted"} <= told <= {"group_id", "is_unsorted", "is_computed", "companies"}
        assert {issue.code for issue in refused.value.errors} == {"FieldNotExpected"}


@needs("aioamocrm")
@pytest.mark.asyncio
async def test_aioamocrm_at_its_own_pace_is_never_refused() -> None:
    async with guest(Stopwatch(), limits=True, switches={"token-calls-count": False}) as it:
        for _ in range(15):
            assert len(await it.amo.contacts.get_page(limit=1)) == 1
        assert (it.run.stats.refused, it.run.stats.banned) == (0, 0)
        assert it.run.stats.over(7, 1) == 1  # the code it came in with, which this server does not count


@needs("aioamocrm")
@pytest.mark.asyncio
async def test_aioamocrm_does_not_pace_its_token_calls_and_a_write_may_pay_for_it() -> None:
    """Its fault if token calls count (§2.2: nobody says): a code and seven calls are eight within a second."""
    from aioamocrm import Contact, RateLimitError

    async with guest(Stopwatch(), limits=True, switches={"token-calls-count": True}) as it:
        for _ in range(6):
            await it.amo.contacts.create([Contact(name="Hasty")])
        with pytest.raises(RateLimitError) as refused:
            await it.amo.contacts.create([Contact(name="Hasty")])
        assert refused.value.body["retry_after"] == 300
        assert refused.value.retry_after is None  # it looks for a header, which is documented nowhere (§2.2)
        assert len([contact async for contact in it.amo.contacts.iterate(query="Hasty")]) == 6


# --- amocrm-api: requests; API v4 on amocrm.ru -----------------------------------------------------------------------

# It reads a token's times with what Python 3.12 deprecates.
_UTC = pytest.mark.filterwarnings("ignore:datetime.datetime.utc:DeprecationWarning")


@pytest.fixture
def led_here(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Whatever `requests` sends to an account on amocrm.ru arrives at the sandbox: amocrm-api knows no other host."""
    adapters = pytest.importorskip("requests.adapters")
    send = adapters.HTTPAdapter.send

    def to(running: Running) -> None:
        def led(self: Any, request: Any, **more: Any) -> Any:
            assert request.url.startswith("https://sandbox.amocrm.ru/")
            request.url = request.url.replace("https://sandbox.amocrm.ru", running.origin, 1)
            return send(self, request, **more)

        monkeypatch.setattr(adapters.HTTPAdapter, "send", led)

    return to


def amocrm_api(running: Running, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let in by an authorization code. Its token manager is one for the whole process and keeps its first storage."""
    import amocrm.v2
    from amocrm.v2 import tokens

    card, manager = grants(running.account).integration, tokens.default_token_manager
    monkeypatch.setattr(manager, "_storage", None)
    manager(card.client_id, card.client_secret, "sandbox", card.redirect_uri, storage=tokens.MemoryTokensStorage())
    manager.init(code=running.credentials["code"])
    return amocrm.v2


@needs("amocrm-api")
@_UTC
@pytest.mark.asyncio
async def test_amocrm_api_comes_in_and_lists_all_contacts(led_here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async with served(FACE, contacts=600) as running:
        led_here(running)

        def visit() -> tuple[Any, list[Any]]:
            v2 = amocrm_api(running, monkeypatch)
            from amocrm.v2.account import Account, AccountInteraction, get_account_info

            # Its fault: this asks its AccountInteraction for get_all(), which that has not; nothing is sent.
            with pytest.raises(AttributeError, match="get_all"):
                get_account_info()
            include = ["task_types", "users_groups", "version"]
            return Account(AccountInteraction().get(include=include)), list(v2.Contact.objects.all())

        account, contacts = await asyncio.to_thread(visit)
        rows = {row["id"]: row for row in running.world.select("contact")}
        assert (account.name, account.subdomain) == (running.world.account["name"], running.world.account["subdomain"])
        assert {contact.id: contact.name for contact in contacts} == {id: row["name"] for id, row in rows.items()}
        for contact in contacts:
            assert sorted(tag.name for tag in contact.tags) == sorted(rows[contact.id]["tags"])
        assert running.stats.calls["GET /api/v4/contacts"] == 3


@needs("amocrm-api")
@_UTC
@pytest.mark.asyncio
async def test_amocrm_api_creates_updates_links_and_notes(led_here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async with served(FACE) as running:
        led_here(running)

        def visit() -> tuple[int, int]:
            v2 = amocrm_api(running, monkeypatch)
            contact = v2.Contact(name="Пётр")
            contact.tags.append("новый")
            contact.save()
            fresh = v2.Contact.objects.get(contact.id)
            assert [tag.name for tag in fresh.tags] == ["новый"]
            fresh.last_name = "Первый"
            fresh.save()
            fresh.notes.objects.create(note_type="common", params={"text": "Примечание"})
            assert [note.text for note in fresh.notes.objects.all()] == ["Примечание"]
            fresh.company = v2.Company(name="Рога")
            lead = v2.Lead.objects.get(v2.Lead.objects.create(name="Сделка", price=10).id)
            lead.contacts.append(fresh, main=True)
            assert (lead.status.name, lead.responsible_user.name) != ("", "")
            return fresh.id, lead.id

        contact, lead = await asyncio.to_thread(visit)
        row = running.world.row("contact", contact)
        assert row["last_name"] == "Первый"
        assert running.world.row("company", row["company_id"])["name"] == "Рога"
        assert running.world.row("deal", lead)["contacts"] == [{"id": contact, "main": True}]


@needs("amocrm-api")
@_UTC
@pytest.mark.asyncio
async def test_amocrm_api_sets_a_custom_field(led_here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It sends `field_name` with every custom field, and after a reading `field_type` too. The service does not mind:
    the refusals quoted in its issues 68, 112 and 116 name `…values.0.enum_code` alone, of bodies in which this same code
    had put the name and the type of every field.
    """
    async with served(FACE) as running:
        led_here(running)

        def visit() -> int:
            v2 = amocrm_api(running, monkeypatch)
            from amocrm.v2 import custom_field

            class Contact(v2.Contact):
                phone = custom_field.ContactPhoneField("Phone", enum_code="MOB")

            contact = Contact(name="Пётр")
            contact.phone = "+7 900 000-00-00"
            contact.save()
            assert Contact.objects.get(contact.id).phone == "+7 900 000-00-00"
            return contact.id

        contact = await asyncio.to_thread(visit)
        assert phone_of(running.world.row("contact", contact)) == ["+7 900 000-00-00"]


@needs("amocrm-api")
@_UTC
@pytest.mark.asyncio
async def test_amocrm_api_reads_the_times_in_the_token_and_renews_it(
    led_here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(FACE) as running:
        led_here(running)
        issued = grants(running.account)
        issued.access_seconds = -1  # born dead: it looks at `exp` in the token and never waits for a 401

        def visit() -> Any:
            v2 = amocrm_api(running, monkeypatch)
            issued.access_seconds = 86400
            return list(v2.Pipeline.objects.all())

        pipelines = await asyncio.to_thread(visit)
        assert {each.id for each in pipelines} == {row["id"] for row in running.world.select("pipeline")}
        assert (issued.refreshes, running.stats.statuses[401]) == (1, 0)


@needs("amocrm-api")
@_UTC
@pytest.mark.asyncio
async def test_amocrm_api_has_no_pace_and_learns_the_limit_by_its_exceptions(
    led_here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its fault: §2.2 allows seven a second, and it neither waits nor asks again. All here is within one second."""
    async with served(FACE, limits=True, switches={"token-calls-count": False}, clock=Stopwatch()) as running:
        led_here(running)

        def visit() -> None:
            v2 = amocrm_api(running, monkeypatch)
            from amocrm.v2.exceptions import AmoApiException

            for _ in range(7):
                v2.Contact.objects.get(query="")
            with pytest.raises(AmoApiException, match="Wrong status 429"):
                v2.Contact.objects.get(query="")

        await asyncio.to_thread(visit)
        assert running.stats.refused == 1


# --- amocrm 0.7.7: requests, 2017; auth.php with an XML answer, then /private/api/v2/json -----------------------------


def amocrm_077(running: Running, key: str | None = None) -> Any:
    from amocrm.conf import settings
    from amocrm.manager import Manager

    settings.USER_DOMAIN = running.origin
    settings.USER_LOGIN = running.credentials["login"]
    settings.USER_HASH = key or running.credentials["hash"]
    return Manager()


def old_face(name: str) -> Face:
    return pytest.importorskip(f"crmclient_{name}.sandbox", reason=f"the {name} sandbox is not there").FACE


@needs("amocrm", "0.7.7")
@pytest.mark.parametrize("face", ["amocrm", "amoxml"])
@pytest.mark.asyncio
async def test_amocrm_077_logs_in_by_auth_php_and_reads_the_xml(face: str) -> None:
    """It sends `type=json` in the body, where it has no effect, and parses XML (amocrm-v2 §2)."""
    async with served(old_face(face)) as running:
        manager = amocrm_077(running)
        answer = await asyncio.to_thread(manager.auth)
        assert answer.headers["content-type"].startswith("text/xml")
        assert manager.cookies["session_id"]


@needs("amocrm", "0.7.7")
@pytest.mark.parametrize("face", ["amocrm", "amoxml"])
@pytest.mark.asyncio
async def test_amocrm_077_sees_that_a_login_failed(face: str) -> None:
    """Either by the status or by the lack of cookies: it looks at `<auth>` only when there is a cookie."""
    async with served(old_face(face)) as running:
        from amocrm.exceptions import ResponseError

        with pytest.raises(ResponseError, match=r"Status code is 401|Cookies are empty|XML has no 'true'"):
            await asyncio.to_thread(amocrm_077(running, key="0" * 32).auth)


@needs("amocrm", "0.7.7")
@pytest.mark.asyncio
async def test_amocrm_077_finds_nothing_beyond_the_door() -> None:
    """Neither's fault: it speaks `/private/api/v2/json/*`, the elder sibling of the v2 that is emulated here.

    The reference lists it as "v2json" and has only its pipelines (amocrm-v2, sources and §7): a method that is not there
    is a 404 with code 104, for a stranger as for anybody.
    """
    async with served(old_face("amocrm")) as running:
        from requests import HTTPError

        manager = amocrm_077(running)
        await asyncio.to_thread(manager.auth)
        for ask in (manager.get_account_info, manager.get_contacts, manager.get_leads):
            with pytest.raises(HTTPError, match="404") as refused:
                await asyncio.to_thread(ask)
            assert refused.value.response.json()["response"]["error_code"] == "104"
