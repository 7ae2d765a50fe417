import script  # of networks/attention.py

script.start()
