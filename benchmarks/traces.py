"""The script of paper/traces.py."""

import script

script.start()
