import script  # of networks/signs.py

script.start()
