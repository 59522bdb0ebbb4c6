"""Kommo and amoCRM, API v4: OAuth2 with a rotating refresh token, pages of 250, 7 requests a second."""

from crmclient_kommo.dialect import DIALECT
from crmclient_kommo.extras import link

__all__ = ["DIALECT", "link"]
