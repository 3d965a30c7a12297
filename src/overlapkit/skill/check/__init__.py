"""Skills and docs against a checkout: anchors, links, frontmatter and promised counts."""
