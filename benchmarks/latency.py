"""The script of timings/latency.py."""

import script

script.start()
