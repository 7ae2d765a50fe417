"""The script of networks/methods.py."""

import script

script.start()
