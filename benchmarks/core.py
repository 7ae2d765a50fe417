import script  # of timings/core.py

script.start()
