import script  # of networks/peers.py

script.start()
