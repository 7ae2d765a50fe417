"""Weights: files of anybody's, their names, and the folders that a network is saved in.

files         safetensors, torch, msgpack, Orbax and the Hub to arrays by name
names         torchvision's and timm's names to variables, and back
layouts       torch's order of axes, and heads in one matrix
transformers  folders for Hugging Face's own classes
folders       a model folder: config, arrays, program; `load` and `save`
descriptions  what config.json may say
tensors       arrays to be trusted, or refused
stablehlo     a network that runs without its code
"""

from ispasp_jax.weights.files import read
from ispasp_jax.weights.folders import Model, load, save
from ispasp_jax.weights.names import (
    classes,
    save_safetensors,
    to_torchvision,
    to_tree,
    to_variables,
)
from ispasp_jax.weights.transformers import save_transformers

__all__ = [
    "Model",
    "classes",
    "load",
    "read",
    "save",
    "save_safetensors",
    "save_transformers",
    "to_torchvision",
    "to_tree",
    "to_variables",
]
