import script  # of paper/synthetic_decay.py

script.start()
