"""Seconds and bytes, on random weights and images."""
