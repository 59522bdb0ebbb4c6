"""What Kommo can do and the neutral client does not name, as flows for ``crm.run``."""

from collections.abc import Iterable
from typing import Any

from crmclient.dialect import Flow, Reply
from crmclient.entities import Ref
from crmclient.errors import Invalid
from crmclient_kommo import wire
from crmclient_kommo.wire import TYPES


def link(ties: Iterable[tuple[Ref, Ref]]) -> Flow[None]:
    """Tie rows together, many a request: ``await crm.run(kommo.link([(contact.ref, company.ref)]))``.

    Tying a tied pair again changes nothing. Allowed are lead-contact, lead-company and contact-company (§4.13).
    Raises Rejected, with the vendor's complaint, if any of a request's ties is refused.
    """
    by_type: dict[str, list[dict[str, Any]]] = {}
    for one, other in ties:
        if one.kind not in TYPES or other.kind not in TYPES:
            raise Invalid(f"Kommo links contacts, companies and leads, not a {one.kind} and a {other.kind}")
        by_type.setdefault(TYPES[one.kind], []).append(wire.tie(one.id, TYPES[other.kind], other.id))
    for type, rows in by_type.items():
        for call in wire.tie_calls("link", type, rows):
            _: Reply = yield call
