"""How every command writes: numbers with units, tables, files written whole, pages, progress."""
