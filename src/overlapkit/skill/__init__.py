"""The skill and pages of the documentation, rendered from templates and the source."""
