"""Rates that were measured on the user's own machine, in place of the law's."""
