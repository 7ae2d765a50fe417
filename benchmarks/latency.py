import script  # of timings/latency.py

script.start()
