"""pytest fixtures for whoever tests code that speaks to a CRM: a sandbox without a socket, its faults, its time.

Nothing is used unless a test names it::

    @pytest.mark.asyncio
    async def test_my_sync_survives_a_lost_answer(crm_sandbox, crm_faults):
        sandbox = crm_sandbox("mine", contacts=30)
        crm_faults.add("drop-after POST *contacts")
        async with sandbox.connect() as crm:
            ...
        assert sandbox.world.count("contact") == 31

Needs ``pip install 'crmclient[sandbox]'``. An ``async`` test needs pytest-asyncio, or anyio's plugin on asyncio.
"""

from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING, Any, Protocol
from zoneinfo import ZoneInfo

import pytest
from attrs import NOTHING, fields_dict, frozen

from crmclient.clock import FakeClock
from crmclient.dialect import Dialect
from crmclient.errors import Misconfigured

if TYPE_CHECKING:
    from crmclient.client import Client
    from crmclient.sandbox.faults import Faults
    from crmclient.sandbox.server import Running, Setting, Stats
    from crmclient.sandbox.world import World


def credentials_of(dialect: Dialect, told: Mapping[str, str]) -> Any:
    """What a sandbox has issued, as the dialect wants it: a token, or else what one of its schemes takes."""
    if "token" in told:
        return told["token"]
    for scheme in dialect.auth:
        parts = fields_dict(scheme.credentials)
        due = [name for name, part in parts.items() if part.default is NOTHING]
        # What may be left out are other ways to say the same: a hash, or a password.
        others = [name for name in parts if name in told and name not in due]
        if set(due) <= set(told):
            return scheme.credentials(**{name: told[name] for name in (*due, *others[:1])})
    raise Misconfigured(f"{dialect.title}: of {', '.join(told)} no credentials can be made")


@frozen
class Sandboxed:
    """One vendor's account, served without a socket."""

    dialect: Dialect
    running: "Running"
    clock: FakeClock

    @property
    def world(self) -> "World":
        """The account's rows, as the vendor holds them."""
        return self.running.world

    @property
    def stats(self) -> "Stats":
        """What arrived, and how it was answered."""
        return self.running.stats

    def connect(self, **options: Any) -> "Client":
        """A client of it; options are those of ``crmclient.connect``."""
        from crmclient.client import connect

        given: dict[str, Any] = {
            "base_url": self.running.base_url,
            "credentials": credentials_of(self.dialect, self.running.credentials),
            "transport": self.running.transport(),
            "clock": self.clock,
        }
        if "account" not in self.dialect.settings:
            # Nobody tells such a client the account's zone but its user.
            given["zone"] = ZoneInfo(self.world.account["zone"])
        return connect(self.dialect, **given | options)


class Sandboxes(Protocol):
    """Opens the sandbox of a dialect, with so many rows; a test may open several."""

    def __call__(
        self,
        dialect: str,
        *,
        switches: "Mapping[str, Setting] | None" = None,
        limits: bool = True,
        contacts: int = 0,
        companies: int = 0,
        deals: int = 0,
        tasks: int = 0,
        notes: int = 0,
        seed: int = 1,
    ) -> Sandboxed: ...


@pytest.fixture
def crm_clock() -> FakeClock:
    """Time that stands still while anybody works, for the sandboxes and the clients of this test."""
    return FakeClock()


@pytest.fixture
def crm_faults() -> "Faults":
    """What is to go wrong in the sandboxes of this test: ``crm_faults.add("drop-after POST *")``, then ``.done``."""
    from crmclient.sandbox.faults import Faults

    return Faults()


@pytest.fixture
def crm_sandbox(crm_clock: FakeClock, crm_faults: "Faults") -> Generator[Sandboxes]:
    """Opens sandboxes: ``crm_sandbox("mine", contacts=30)``. Their accounts are gone with the test."""
    from crmclient.registry import dialect as dialect_named
    from crmclient.sandbox.server import face, in_process
    from crmclient.sandbox.world import World, populate

    worlds: list[World] = []

    def opened(
        dialect: str,
        *,
        switches: "Mapping[str, Setting] | None" = None,
        limits: bool = True,
        contacts: int = 0,
        companies: int = 0,
        deals: int = 0,
        tasks: int = 0,
        notes: int = 0,
        seed: int = 1,
    ) -> Sandboxed:
        world = World(clock=crm_clock)
        worlds.append(world)
        populate(world, contacts=contacts, companies=companies, deals=deals, tasks=tasks, notes=notes, seed=seed)
        running = in_process(face(dialect), world, switches=switches, clock=crm_clock, limits=limits, faults=crm_faults)
        return Sandboxed(dialect_named(dialect), running, crm_clock)

    try:
        yield opened
    finally:
        for world in worlds:
            world.close()
