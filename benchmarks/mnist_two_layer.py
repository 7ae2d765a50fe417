"""The script of paper/mnist_two_layer.py."""

import script

script.start()
