"""The commands train.py and prune.py: flags -> functions."""
