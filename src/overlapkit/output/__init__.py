"""How every command writes: numbers with units, tables, files, pages, progress, schemas."""
