"""BERT and ViT for Hugging Face's own classes: model.safetensors with its names, and
the widths in config.json, as far as its classes can have them.

They have one number of neurons for all layers ("intermediate_size"). Heads that are
gone are named in "pruned_heads", which transformers reads up to version 4.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from ispasp_jax import files, models
from ispasp_jax.data import Text
from ispasp_jax.errors import InputError
from ispasp_jax.graph import modules
from ispasp_jax.graph.by_hand import leaves
from ispasp_jax.models.bert import BERT
from ispasp_jax.models.vit import ViT
from ispasp_jax.weights import layouts, names, tensors
from ispasp_jax.weights.descriptions import ARRAYS, CONFIG, TOKENIZER
from ispasp_jax.weights.model import Model


def save_transformers(folder: str | os.PathLike, model: Model) -> None:
    """Writes a folder for `from_pretrained` of BertForSequenceClassification or
    ViTForImageClassification.

    Args:
      folder: a new one.
      model: a BERT or a ViT, cut or not.

    Raises:
      InputError: another network, widths that those classes cannot have, or a folder
        that is there.
    """
    if Path(folder).exists():
        raise InputError(f"{folder} is there already; give a new folder.")
    config, arrays = _config(model), _arrays(model)
    with files.new_folder(folder) as new:
        (new / CONFIG).write_text(json.dumps(config, indent=1) + "\n")
        tensors.write(new / ARRAYS, arrays, {"format": "pt"})
        if isinstance(model.preprocessing, Text):
            (new / TOKENIZER).write_text(model.preprocessing.tokenizer, "utf-8")


def _config(model: Model) -> dict[str, Any]:
    network, params = modules.whole(model.network), model.variables["params"]
    if isinstance(network, BERT):
        layers = [params[f"bert.encoder.layer.{i}"] for i in range(network.depth)]
        neurons = [layer["intermediate.dense"] for layer in layers]
        heads = [layer["attention.self"] for layer in layers]
        pooled = params["bert.pooler.dense"]["kernel"].shape
        if pooled[1] != network.width:
            raise _unsuited(model, "its pooler is narrower")
        own = {
            "architectures": ["BertForSequenceClassification"],
            "model_type": "bert",
            "vocab_size": network.vocabulary,
            "max_position_embeddings": network.positions,
            "type_vocab_size": 2,
            "pad_token_id": network.padding,
            "layer_norm_eps": 1e-12,
        }
    elif isinstance(network, ViT) and network.pooling == "token":
        layers = [params[f"blocks.{i}"] for i in range(network.depth)]
        neurons = [layer["mlp"]["fc1"] for layer in layers]
        heads = [layer["attn"] for layer in layers]
        own = {
            "architectures": ["ViTForImageClassification"],
            "model_type": "vit",
            "image_size": model.input_shape[0],
            "num_channels": model.input_shape[2],
            "patch_size": network.patch,
            "layer_norm_eps": 1e-6,
        }
    else:
        raise _unsuited(model, "it is neither a BERT nor a ViT that reads its token")
    classes = {str(i): f"LABEL_{i}" for i in range(model.num_classes)}
    return {
        **own,
        "hidden_act": "gelu",
        "hidden_size": network.width,
        "num_hidden_layers": network.depth,
        "num_attention_heads": network.heads,
        "intermediate_size": _neurons(model, neurons),
        "pruned_heads": _gone(model, heads, network),
        "id2label": classes,
        "label2id": {name: int(i) for i, name in classes.items()},
    }


def _neurons(model: Model, layers: list[Any]) -> int:
    widths = [layer["kernel"].shape[1] for layer in layers]
    if len({*widths}) != 1:
        raise _unsuited(
            model,
            f"its layers have {', '.join(map(str, widths))} neurons, and there is one "
            "number for all",
        )
    return widths[0]


def _gone(model: Model, layers: list[Any], network: Any) -> dict[str, list[int]]:
    """The heads that are gone by layer; which they were does not matter any more."""
    result = {}
    for place, layer in enumerate(layers):
        _, left, width = layer["value"]["kernel"].shape
        narrow = {width, layer["key"]["kernel"].shape[2]}
        if narrow != {network.width // network.heads}:
            raise _unsuited(model, "its heads are narrower")
        if left < network.heads:
            result[str(place)] = [*range(left, network.heads)]
    return result


def _unsuited(model: Model, why: str) -> InputError:
    return InputError(
        f"{model.name} cannot be one of transformers' networks: {why}; save it as a "
        "model folder, or prune it otherwise."
    )


def _arrays(model: Model) -> Mapping[str, Any]:
    """By the names of transformers' files."""
    variables = jax.device_get(model.variables)
    arrays = names.to_torchvision(variables)
    network = modules.whole(model.network)
    if isinstance(network, BERT):
        return arrays
    shapes = {
        layouts.name(path): layouts.torch_shape(path, array.shape)
        for path, array in leaves(variables)
    }
    theirs = {ours: name for name, ours in models.aliases(network).items()}
    result = {}
    for name, array in layouts.apart(arrays, shapes).items():
        layer, _, leaf = name.rpartition(".")
        result[theirs.get(name) or f"{theirs[layer]}.{leaf}"] = array
    return result
