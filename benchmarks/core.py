"""The script of timings/core.py."""

import script

script.start()
