"""The script of render.py."""

import script

script.start()
