"""A user's own run, small enough to be trained here."""
