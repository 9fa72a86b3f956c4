"""Kills, full disks, cut wires, made-up requests."""
