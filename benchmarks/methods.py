import script  # of networks/methods.py

script.start()
