"""The script of networks/real_networks.py."""

import script

script.start()
