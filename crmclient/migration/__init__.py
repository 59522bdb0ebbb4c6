"""Whole accounts from one dialect into another: planned before, compared after. No vendor is named here."""
