"""Runs of prune.py on public networks and the digits."""
