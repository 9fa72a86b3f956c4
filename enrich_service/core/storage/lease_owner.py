"""The name by which a process owns leases in the database."""

import os
import secrets
import socket


def new_lease_owner() -> str:
    """Host, process id and a random part, since a container may have the same of both again."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
