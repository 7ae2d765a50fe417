import script  # of timings/export_latency.py

script.start()
