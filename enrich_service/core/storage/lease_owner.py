"""The name of a process as the owner of leases in the database."""

import os
import secrets
import socket


def new_lease_owner() -> str:
    """Host, process id and a random part: a restarted container may reuse the first two."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
