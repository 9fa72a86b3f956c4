"""Settings, database and errors: what every capability stands on."""
