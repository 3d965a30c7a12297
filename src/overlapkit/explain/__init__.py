"""What communication overlap a configuration really gets, and why."""
