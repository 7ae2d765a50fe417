import script  # of timings/selection_cost.py

script.start()
