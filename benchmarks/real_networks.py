import script  # of networks/real_networks.py

script.start()
