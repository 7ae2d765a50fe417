import script  # of paper/against_gfs.py

script.start()
