"""Electrum CRM, REST v2: Bearer token, pages of 100, 100 requests a minute, no public host."""

from crmclient_electrum.dialect import DIALECT, speaking
from crmclient_electrum.wire import Words

__all__ = ["DIALECT", "Words", "speaking"]
