"""File access: atomic writes, allowed paths, and one module per file format."""
