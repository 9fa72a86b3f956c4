"""Fault injection: kills, full disks, network failures, generated requests."""
