"""What Kommo can do and the neutral client does not name, as flows for ``crm.run``."""

from collections.abc import Iterable, Sequence
from typing import Any

from crmclient.dialect import Call, Flow, Reply
from crmclient.entities import Ref
from crmclient.errors import Invalid
from crmclient_kommo.wire import API, TYPES

# §2.3: at most 250 rows a write.
LINKS_A_CALL = 250


def link(ties: Iterable[tuple[Ref, Ref]]) -> Flow[None]:
    """Tie rows together, many a request: ``await crm.run(kommo.link([(contact.ref, company.ref)]))``.

    Tying a tied pair again changes nothing. Allowed are lead-contact, lead-company and contact-company (§4.13).
    Raises Rejected, with the vendor's complaint, if any of a request's ties is refused.
    """
    for call in link_calls(list(ties)):
        _: Reply = yield call


def link_calls(ties: Sequence[tuple[Ref, Ref]]) -> list[Call]:
    """The calls of ``link``, one a kind and 250 ties."""
    by_type: dict[str, list[dict[str, Any]]] = {}
    for one, other in ties:
        if one.kind not in TYPES or other.kind not in TYPES:
            raise Invalid(f"Kommo links contacts, companies and leads, not a {one.kind} and a {other.kind}")
        row = {"entity_id": one.id, "to_entity_id": other.id, "to_entity_type": TYPES[other.kind]}
        by_type.setdefault(TYPES[one.kind], []).append(row)
    return [
        Call("POST", f"{API}/{type}/link", body=rows[at : at + LINKS_A_CALL], replayable=True)
        for type, rows in by_type.items()
        for at in range(0, len(rows), LINKS_A_CALL)
    ]
