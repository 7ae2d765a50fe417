"""The script of paper/synthetic_decay.py."""

import script

script.start()
