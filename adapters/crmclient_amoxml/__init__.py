"""Legacy amoCRM XML API: a login instead of a token, PHP-style forms in, XML out, no page for tasks and notes."""

from crmclient_amoxml.dialect import DIALECT, speaking
from crmclient_amoxml.extras import companies, users
from crmclient_amoxml.wire import Words

__all__ = ["DIALECT", "Words", "companies", "speaking", "users"]
