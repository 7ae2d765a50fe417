import script  # of paper/supports.py

script.start()
