"""Tasks on files with answers that can be checked, and the check of somebody's answers."""
