"""Teacher and student networks, and what they run on."""
