"""What a file says of its network: config.json of a model folder, and the header of
weights for PyTorch. A stranger may have written it, so it is checked before anything
that it names is imported, traced or allocated.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ispasp_jax import data, json_text, models
from ispasp_jax.data import Inputs
from ispasp_jax.errors import InputError
from ispasp_jax.graph import Plan, Traced
from ispasp_jax.graph.widths import first
from ispasp_jax.weights.tensors import printable, some

CONFIG, ARRAYS, PROGRAM = "config.json", "model.safetensors", "model.stablehlo"
TOKENIZER = "tokenizer.json"
FILES = CONFIG, ARRAYS, PROGRAM, TOKENIZER
FORMAT = 1

#: The largest that a file may name: pixels of a side, channels or classes, entries of
#: a list, and a mean (an image's values are 0 to 1).
PIXELS, CHANNELS, ENTRIES, LEVEL = 2**14, 2**24, 2**10, 1e6

_OURS = f"expected a {CONFIG} written by ispasp_jax.save, train.py or prune.py"


class Description(NamedTuple):
    """A network in words.

    Attributes:
      name: of the architecture.
      num_classes: length of the logits.
      options: of the architecture.
      widths: channels by group.
      preprocessing: how images become inputs; None where nobody said.
    """

    name: str
    num_classes: int
    options: dict[str, Any]
    widths: dict[str, int]
    preprocessing: Inputs | None

    def network(self) -> Any:
        """The architecture, at its own widths.

        Raises:
          InputError: it has no such options.
        """
        if own := {"name", "num_classes"} & self.options.keys():
            raise InputError(f"{some(sorted(own))} among the options")
        return models.create(self.name, self.num_classes, **self.options)


def plan(traced: Traced, widths: Mapping[str, int]) -> Plan:
    """The plan that leaves these widths, which are never above the architecture's.

    Raises:
      InputError: it has no such groups or channels.
    """
    unknown = sorted(set(widths) - set(traced))
    if unknown:
        raise InputError(f"it gives widths for {some(unknown)}, which do not exist")
    for group, width in widths.items():
        if width > traced[group].width:
            raise InputError(
                f"it gives {group} {width} channels, and the architecture has "
                f"{traced[group].width}"
            )
    cut = {group: n for group, n in widths.items() if n < traced[group].width}
    if sum(traced[group].width for group in cut) > CHANNELS:
        raise InputError(f"its groups have more than {CHANNELS} channels")
    return first(traced, cut)


def read(path: Path) -> dict[str, Any]:
    """A model folder's config.json.

    Raises:
      InputError: there is none, or it is not of this format.
    """
    try:
        config = json_text.read(path)
    except OSError as error:
        raise InputError(
            f"{path.parent} is not a model folder ({path.name}: {error.strerror}); "
            "expected one written by ispasp_jax.save, train.py or prune.py."
        ) from error
    except InputError as error:
        raise InputError(f"{path} is {error}; {_OURS}.") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise InputError(f"{path} is not of format {FORMAT}; {_OURS} of this version.")
    return config


def is_ours(path: Path) -> bool:
    """Whether a config.json is a model folder's, and not another library's.

    Raises:
      InputError: it is there and is not JSON.
    """
    try:
        config = json_text.read(path)
    except OSError:
        return False
    except InputError as error:
        raise InputError(f"{path} is {error}; {_OURS}, or none.") from error
    return isinstance(config, dict) and {"format", "widths"} <= config.keys()


def described(config: Mapping[str, Any], path: Path) -> Description:
    """What a config of `read` says.

    Raises:
      InputError: something is missing or cannot be.
    """
    try:
        name, count = config["model"], config["num_classes"]
        options, widths = config["options"], config["widths"]
        fields = config["preprocessing"]
        nobody_said = fields is None and "program" in config
        if not nobody_said and not isinstance(fields, dict):
            raise InputError("preprocessing is no object")
        about = Description(name, count, options, widths, None)
        checked({**(fields or {}), **about._asdict()})
        return about._replace(preprocessing=fields and data.from_json(fields))
    except KeyError as error:
        raise InputError(
            f"{path} is not a model's config ({error} is missing); {_OURS}."
        ) from error
    except InputError as error:
        why = str(error).removesuffix(".")
        raise InputError(f"{path} is not a model's config ({why}); {_OURS}.") from error


def allow(name: str, architecture: str | None, path: Path) -> None:
    """Raises InputError unless the architecture is of the registry or the caller's.

    Args:
      name: what the file names.
      architecture: what the caller names, if anything.
      path: of the file.
    """
    if architecture is not None and name != architecture:
        raise InputError(
            f"{path.parent} holds a {printable(name)}, not a {architecture}; name the "
            "one that it holds, if you trust it, or give another folder."
        )
    if architecture is None and name not in models.MODELS:
        raise InputError(
            f"{path} names {printable(name)!r}, which is none of this package's "
            "architectures: its code would run here, so it is used only where you "
            "name it yourself (architecture=...), and only if you trust it."
        )


def checked(about: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says, as it is.

    Args:
      about: any of Description's and preprocessing's fields ("model" or "name"); other
        keys are left alone.

    Raises:
      InputError: a value is of another kind, or beyond what a network can be.
    """
    for key, (fits, expected) in _EXPECTED.items():
        if key in about and not fits(about[key]):
            raise InputError(f"{key} is {_shown(about[key])}, expected {expected}")
    return dict(about)


def _is_whole(value: Any, most: int, least: int = 1) -> bool:
    return type(value) is int and least <= value <= most


def _is_level(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= LEVEL


def _is_option(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return len(value) <= ENTRIES and all(map(_is_plain, value))
    return _is_plain(value)


def _is_plain(value: Any) -> bool:
    if type(value) in (int, float):
        return abs(value) <= CHANNELS
    return value is None or isinstance(value, bool | str)


def _are_named(value: Any, fits) -> bool:
    return (
        isinstance(value, dict)
        and len(value) <= ENTRIES
        and all(isinstance(key, str) and fits(v) for key, v in value.items())
    )


def _are_levels(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_level, value))


_NAME = (lambda v: isinstance(v, str), "an architecture's name")
_SIDE = (lambda v: _is_whole(v, PIXELS), f"a number of pixels from 1 to {PIXELS}")
_LEVELS = (_are_levels, f"a list of numbers up to {LEVEL:g}")
_EXPECTED = {
    "model": _NAME,
    "name": _NAME,
    "architecture": _NAME,
    "interpolation": (lambda v: isinstance(v, str), "the name of a filter"),
    "num_classes": (
        lambda v: _is_whole(v, CHANNELS),
        f"a whole number from 1 to {CHANNELS}",
    ),
    "options": (
        lambda v: _are_named(v, _is_option),
        f"an object of words, numbers up to {CHANNELS} and lists of them",
    ),
    "widths": (
        lambda v: _are_named(v, lambda width: _is_whole(width, CHANNELS, 0)),
        f"an object of whole numbers, none below 0 or above {CHANNELS}",
    ),
    "image_size": _SIDE,
    "resize": (lambda v: v is None or _is_whole(v, PIXELS), _SIDE[1] + " or null"),
    "mean": _LEVELS,
    "std": (lambda v: _are_levels(v) and min(v, default=1) >= 1 / LEVEL, _LEVELS[1]),
}


def _shown(value: Any) -> str:
    """A value that somebody else chose, shortened."""
    if type(value) is int and abs(value) > 10**40:
        return "a number of more than 40 digits"
    return printable(repr(value))
