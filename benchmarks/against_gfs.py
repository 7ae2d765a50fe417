"""The script of paper/against_gfs.py."""

import script

script.start()
