"""Embedded servers that speak the vendors' APIs from an account kept in SQLite."""
