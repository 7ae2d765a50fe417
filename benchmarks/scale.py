import script  # of timings/scale.py

script.start()
