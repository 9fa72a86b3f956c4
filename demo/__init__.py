"""The demo: a rendered world, its teacher, recorded descriptions, and the whole way through."""
