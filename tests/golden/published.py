"""How published.json came about: logits of timm's and Hugging Face's own networks on
weights and inputs that are drawn by their names.

    pip install torch timm transformers
    python tests/golden/published.py

Made with torch 2.13.0, timm 1.0.31, transformers 5.24.0.
"""

import json
import zlib
from pathlib import Path

import numpy as np

PLACE = Path(__file__).with_suffix(".json")

SIDE, PATCH, WIDTH, HEADS, DEPTH, CLASSES = 8, 4, 12, 3, 2, 5
WORDS, POSITIONS, SEPARATOR = 20, 16, 3
#: Two texts, one, none of one token alone; zeros are padding.
TOKENS = [
    [2, 7, 9, 3, 11, 4, 3, 0],
    [2, 5, 19, 8, 6, 3, 0, 0],
    [2, 12, 13, 3, 14, 15, 16, 3],
    [2, 3, 0, 0, 0, 0, 0, 0],
]


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """An array of the name's own random numbers; scales about one."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    scale = "norm" in name.lower() and name.endswith("weight")
    return (rng.normal(size=shape) * 0.3 + scale).astype(np.float32)


def images() -> np.ndarray:
    """(n, height, width, channels)."""
    return draw("images", (3, SIDE, SIDE, 3))


def main() -> None:
    import timm
    import torch
    import transformers

    def logits(network, names, *given, **named):
        state = network.state_dict()
        drawn = {key: draw(names(key), tuple(a.shape)) for key, a in state.items()}
        network.load_state_dict({key: torch.tensor(a) for key, a in drawn.items()})
        with torch.no_grad():
            made = network.eval()(*given, **named)
        return getattr(made, "logits", made).tolist()

    pixels = torch.tensor(images().transpose(0, 3, 1, 2).copy())
    result = {}
    for pooling in ("token", "avg"):
        network = timm.models.VisionTransformer(
            img_size=SIDE, patch_size=PATCH, embed_dim=WIDTH, depth=DEPTH,
            num_heads=HEADS, num_classes=CLASSES, global_pool=pooling,
        )  # fmt: skip
        result[f"timm {pooling}"] = logits(network, str, pixels)
    sizes = {
        "hidden_size": WIDTH,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": HEADS,
        "intermediate_size": 4 * WIDTH,
        "num_labels": CLASSES,
    }
    config = transformers.ViTConfig(image_size=SIDE, patch_size=PATCH, **sizes)
    network = transformers.ViTForImageClassification(config)
    result["vit"] = logits(network, _as_in_files, pixels)
    config = transformers.BertConfig(
        vocab_size=WORDS, max_position_embeddings=POSITIONS, **sizes
    )
    network = transformers.BertForSequenceClassification(config)
    tokens = torch.tensor(TOKENS)
    ends = (tokens == SEPARATOR).long()
    second = ((ends.cumsum(1) > ends) & (tokens != 0)).long()
    result["bert"] = logits(
        network, str, tokens, attention_mask=tokens != 0, token_type_ids=second
    )
    PLACE.write_text(json.dumps(result, indent=1) + "\n")


def _as_in_files(name: str) -> str:
    """The name that a file has for one of the fifth version's."""
    for new, old in {
        "vit.layers.": "vit.encoder.layer.",
        "attention.q_proj": "attention.attention.query",
        "attention.k_proj": "attention.attention.key",
        "attention.v_proj": "attention.attention.value",
        "attention.o_proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }.items():
        name = name.replace(new, old)
    return name


if __name__ == "__main__":
    main()
