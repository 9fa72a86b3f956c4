"""Background runs: leases, pages of items, worker pools."""
