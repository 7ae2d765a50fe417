import script  # of timings/walk_steps.py

script.start()
