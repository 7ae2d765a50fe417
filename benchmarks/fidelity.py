import script  # of networks/fidelity.py

script.start()
