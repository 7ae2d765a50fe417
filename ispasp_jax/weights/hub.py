"""The Hugging Face Hub, which is used only where weights are given as hf:REPO."""

# huggingface_hub is an extra.
# pyright: reportMissingImports=false

import math
import os
import socket
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ispasp_jax import json_text
from ispasp_jax.errors import InputError
from ispasp_jax.weights import descriptions

#: Seconds to wait for the Hub to answer before it is taken to be out of reach; the
#: package's own attempts take 23 s to fail.
PATIENCE = 3.0


def fetch(source: str) -> tuple[Path, dict[str, Any]]:
    """The Hub's model.safetensors as a local file, and what its config.json says.

    Args:
      source: hf:REPO[@REVISION]. Without a revision, what the cache has is used.

    Raises:
      InputError: no huggingface_hub, no network, or no such file on the Hub.
    """
    path, config = _files(source)
    try:
        about = json_text.read(config) if config else {}
    except (OSError, InputError) as error:
        raise InputError(
            f"weights {source}: its config.json is {error}; delete {config} so that it "
            "is fetched again."
        ) from error
    words, said = None, preprocessing(about, f"weights {source}")
    if "vocab_size" in about:
        words = _asked(source, descriptions.TOKENIZER, needed=False)
    if words is not None:
        said["tokenizer"] = words.read_text("utf-8")
    return path, said


def folder(source: str) -> Path | None:
    """The Hub's model folder as a local one, where this package has written it; None
    where the repository is another library's.

    Args:
      source: as `fetch` takes it.

    Raises:
      InputError: as of `fetch`.
    """
    path, config = _files(source)
    if config is None or not descriptions.is_ours(config):
        return None
    _asked(source, descriptions.PROGRAM)  # beside, where it was saved with one
    if "tokenizer" in (json_text.read(config).get("preprocessing") or ()):
        _asked(source, descriptions.TOKENIZER)
    return path.parent


def _files(source: str) -> tuple[Path, Path | None]:
    """model.safetensors, and config.json where the Hub has one."""
    path = _asked(source, descriptions.ARRAYS)
    if path is None:
        raise InputError(
            f"weights {source}: the repository has no model.safetensors; name one that "
            "has, such as timm's, or download and convert its weights yourself."
        )
    return path, _asked(source, descriptions.CONFIG, needed=False)


def _asked(source: str, name: str, needed: bool = True) -> Path | None:
    """A file of hf:REPO[@REVISION], or None where it has none of that name; of one
    that is not needed, where there is no network either."""
    repo, _, revision = source.removeprefix("hf:").partition("@")
    try:
        from huggingface_hub import errors
    except ImportError as error:
        raise InputError(
            f"weights {source}: the package huggingface_hub is not installed; "
            "pip install 'ispasp_jax[hub]', or download model.safetensors yourself and "
            "give its path."
        ) from error
    try:
        return _find(name, repo, revision or None)
    except Exception as error:  # ours, or of the HTTP library beneath, of any kind
        if not needed and isinstance(error, errors.LocalEntryNotFoundError):
            return None
        raise InputError(f"weights {source}: {_said(error, repo)}") from error


def _find(name: str, repo: str, revision: str | None) -> Path | None:
    """A repository's file, or None where it has none of that name."""
    import huggingface_hub
    from huggingface_hub import constants, errors

    def download(**options) -> Path:
        return Path(
            huggingface_hub.hf_hub_download(repo, name, revision=revision, **options)
        )

    try:
        return download(local_files_only=True)
    except errors.LocalEntryNotFoundError:
        if constants.HF_HUB_OFFLINE or not _reachable(constants.ENDPOINT):
            raise
    try:
        return download()
    except errors.LocalEntryNotFoundError:
        raise  # the connection failed
    except errors.EntryNotFoundError:
        return None


def _said(error: Exception, repo: str) -> str:
    """What a failed download comes to, and what to do."""
    from huggingface_hub import errors

    if isinstance(error, errors.HFValidationError):
        return (
            f"{repo!r} is no name of a repository; expected "
            "hf:OWNER/NAME[@REVISION], such as hf:timm/resnet34.tv_in1k."
        )
    if isinstance(error, errors.LocalEntryNotFoundError):
        return (
            "the Hub cannot be reached and its cache has no model.safetensors of this "
            "repository; connect (and unset HF_HUB_OFFLINE), or download the file "
            "elsewhere and give its path."
        )
    unknown = errors.RepositoryNotFoundError, errors.RevisionNotFoundError
    if isinstance(error, unknown):
        return (
            "the Hub has no such repository or revision, or it is private; check the "
            "name, or log in with `hf auth login`."
        )
    reason = str(error).strip().partition("\n")[0]
    return (
        f"the download failed ({reason}); try again, or download model.safetensors "
        "yourself and give its path."
    )


def _reachable(endpoint: str) -> bool:
    proxies = ("https_proxy", "http_proxy", "all_proxy")
    if any(os.environ.get(name) or os.environ.get(name.upper()) for name in proxies):
        return True  # a direct connection would tell nothing
    url = urllib.parse.urlsplit(endpoint)
    port = url.port or (80 if url.scheme == "http" else 443)
    try:
        socket.create_connection((url.hostname, port), PATIENCE).close()
        return True
    except OSError:
        return False


def preprocessing(config: Any, source: str) -> dict[str, Any]:
    """What timm's config.json says of inputs and outputs, in our words.

    `resize`, the shorter side in pixels before the centre crop, is
    floor(image_size / crop_pct), as timm computes it.

    Raises:
      InputError: it says what cannot be.
    """
    try:
        result = _translated(config)
        return descriptions.checked(result)
    except (InputError, TypeError, ValueError, AttributeError, ArithmeticError) as e:
        why = str(e).removesuffix(".")
    except (KeyError, IndexError):
        why = "an input_size without numbers"
    raise InputError(
        f"{source}: its config.json cannot be followed ({why}); put that right, or "
        "give the weights without it."
    )


def _translated(config: Mapping[str, Any]) -> dict[str, Any]:
    given = {**config, **config.get("pretrained_cfg", {})}
    # The top level is what was trained; pretrained_cfg may tell of an earlier training.
    for key in ("num_classes", "architecture"):
        given[key] = config.get(key, given.get(key))
    result = {
        key: given.get(key) for key in ("architecture", "num_classes", "interpolation")
    }
    for key in ("mean", "std"):
        result[key] = None if given.get(key) is None else tuple(given[key])
    if given.get("input_size") is not None:
        result["image_size"] = given["input_size"][-1]
        if given.get("crop_pct"):
            result["resize"] = math.floor(result["image_size"] / given["crop_pct"])
    return {key: value for key, value in result.items() if value is not None}
