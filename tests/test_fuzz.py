"""Whatever a server says, a dialect reads it or raises an error of ours. More of it: nox -s fuzz."""

import os
import random

import pytest

from crmclient import Unreadable, dialect_names
from crmclient.testing.fuzz import Answer, fuzz, play, recorded, spoiled
from crmclient.testing.plugin import Sandboxes

HOW_MANY = int(os.environ.get("CRMCLIENT_FUZZ", "2000"))

pytestmark = pytest.mark.asyncio


@pytest.mark.parametrize("name", dialect_names())
async def test_spoiled_answers_are_read_or_refused_and_break_nothing(crm_sandbox: Sandboxes, name: str) -> None:
    sandbox = crm_sandbox(name, contacts=2, companies=2, deals=1, tasks=2, notes=2, limits=False)
    conversations = await recorded(sandbox)
    assert len(conversations) >= 8, "too little of the dialect is played"
    for conversation in conversations:
        if not conversation.name.endswith(".complete"):  # a task can be done once
            play(sandbox.dialect, conversation, conversation.answers)
    broken = list(fuzz(sandbox.dialect, conversations, range(HOW_MANY)))
    told = "\n".join(f"{each.conversation} seed {each.seed}: {each.error}" for each in broken[:20])
    assert not broken, f"{len(broken)} of {HOW_MANY}:\n{told}"


async def test_the_fuzz_bites(crm_sandbox: Sandboxes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most spoiled answers differ and many are refused; and what is no error of ours is told."""
    sandbox = crm_sandbox("kommo", contacts=3, limits=False)
    [listing] = [each for each in await recorded(sandbox) if each.name == "Contact.list"]
    refused = different = 0
    for seed in range(300):
        worse = spoiled(listing.answers[0], random.Random(seed))
        different += worse.content != listing.answers[0].content
        try:
            play(sandbox.dialect, listing, [worse])
        except Unreadable:
            refused += 1
        except Exception:
            pass
    assert different > 200
    assert refused > 100

    def fail(content: bytes, kind: str) -> object:
        raise KeyError("not ours")

    broken = type("Broken", (), {"decode": staticmethod(fail)})
    from attrs import evolve

    spoken = evolve(sandbox.dialect, format=broken())
    assert len(list(fuzz(spoken, [listing], range(5)))) == 5
    assert Answer(200, {}, b"") != listing.answers[0]
