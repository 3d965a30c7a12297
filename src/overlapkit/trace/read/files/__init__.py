"""Which files hold traces, and their bytes: folders, archives, compression, other formats."""
