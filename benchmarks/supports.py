"""The script of paper/supports.py."""

import script

script.start()
