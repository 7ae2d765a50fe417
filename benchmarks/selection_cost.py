"""The script of timings/selection_cost.py."""

import script

script.start()
