"""The script of networks/after_pruning.py."""

import script

script.start()
