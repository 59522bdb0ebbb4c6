"""Every installed dialect keeps what the contract promises; a new one is examined without a new line here."""

from crmclient.testing.conformance import examined

globals().update(examined())
