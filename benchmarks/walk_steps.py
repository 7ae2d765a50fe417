"""The script of timings/walk_steps.py."""

import script

script.start()
