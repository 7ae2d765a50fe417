import script  # of paper/mnist_two_layer.py

script.start()
