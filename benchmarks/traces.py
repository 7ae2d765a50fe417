import script  # of paper/traces.py

script.start()
