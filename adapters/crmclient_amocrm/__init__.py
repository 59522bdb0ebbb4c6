"""amoCRM API v2 (HAL JSON): a login or a token, errors inside a 200, and an updated_at that has to grow."""

from crmclient_amocrm.dialect import DIALECT
from crmclient_amocrm.extras import (
    customers,
    link_customers,
    task_notes,
    unlink_customers,
    unsubscribe,
    write,
)

__all__ = [
    "DIALECT",
    "customers",
    "link_customers",
    "task_notes",
    "unlink_customers",
    "unsubscribe",
    "write",
]
