"""Settings, database and errors, used by every capability."""
