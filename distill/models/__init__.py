"""Teacher and student networks, devices and precision."""
