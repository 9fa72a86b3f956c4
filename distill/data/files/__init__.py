"""Files: replaced atomically, read only where allowed, one module a kind."""
