"""What all pages share: their style, their safety, bars and timelines."""
