import script  # of networks/after_pruning.py

script.start()
