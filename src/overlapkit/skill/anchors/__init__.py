"""Code anchors: queries for places in source, answered with the lines of a checkout."""
