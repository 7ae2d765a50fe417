import script  # of render.py

script.start()
