"""One asyncio client for people who live between CRMs."""
