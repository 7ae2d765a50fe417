"""Texts as tokens, by a tokenizer that belongs to the weights."""

import functools
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32

from ispasp_jax.errors import InputError

#: Tokens of the longest text, where nobody says otherwise and texts are as long.
LONGEST = 128
#: Words and pieces that a vocabulary of the data's own has at most.
WORDS = 4096
#: The tokens that a classifier of texts needs; padding is the first of all.
SPECIAL = PADDING, UNKNOWN, FIRST, SEPARATOR, MASK = (
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
)

#: A text, or two.
Words = tuple[str, ...]


class Text(NamedTuple):
    """How texts become inputs of a network; it belongs to the weights.

    Attributes:
      length: tokens of an input; longer texts are cut, shorter ones padded.
      tokenizer: a tokenizer.json, as Hugging Face's tokenizers write it.
    """

    length: int
    tokenizer: str

    @property
    def shape(self) -> tuple[int]:
        """(tokens,) of the network's input."""
        return (self.length,)

    @property
    def sum(self) -> str:
        """A checksum of the tokenizer."""
        return f"{zlib.crc32(self.tokenizer.encode()):08x}"


def library() -> Any:
    """The package tokenizers.

    Raises:
      InputError: it is not there.
    """
    try:
        import tokenizers  # an extra
    except ImportError as error:
        raise InputError(
            "texts need the package tokenizers; run pip install 'ispasp_jax[text]'."
        ) from error
    return tokenizers


def learned(texts: Sequence[Words]) -> str:
    """A tokenizer.json in BERT's manner, its vocabulary from these texts."""
    kit = library()
    own = kit.Tokenizer(kit.models.WordPiece(unk_token=UNKNOWN))
    own.normalizer = kit.normalizers.BertNormalizer(lowercase=True)
    own.pre_tokenizer = kit.pre_tokenizers.BertPreTokenizer()
    trainer = kit.trainers.WordPieceTrainer(
        vocab_size=WORDS, special_tokens=[*SPECIAL], show_progress=False
    )
    own.train_from_iterator((text for pair in texts for text in pair), trainer)
    ends = [(name, own.token_to_id(name)) for name in (SEPARATOR, FIRST)]
    own.post_processor = kit.processors.BertProcessing(*ends)
    return own.to_str()


@functools.lru_cache(maxsize=8)
def _opened(tokenizer: str, length: int | None) -> Any:
    """The tokenizer, that does not pad and cuts what is longer."""
    try:
        result = library().Tokenizer.from_str(tokenizer)
    except InputError:
        raise
    except Exception as error:  # Rust's, of any kind
        raise InputError(
            f"the tokenizer cannot be read ({_first(error)}); expected a "
            "tokenizer.json of Hugging Face's tokenizers."
        ) from error
    result.no_padding()
    result.no_truncation()
    if length is not None:
        result.enable_truncation(length)
    return result


def fitting(tokenizer: str, texts: Sequence[Words]) -> int:
    """The length of the longest of these texts, a multiple of 8; LONGEST at most."""
    most = max(map(len, _encoded(tokenizer, texts)), default=1)
    return min(-(-most // 8) * 8, LONGEST)


def special(prep: Text) -> dict[str, int]:
    """What a network is told of the tokens: how many there are, which is padding and
    which separates texts.

    Raises:
      InputError: the tokenizer has no such tokens.
    """
    own = _opened(prep.tokenizer, None)
    result = {"padding": PADDING, "separator": SEPARATOR}
    places = {option: own.token_to_id(name) for option, name in result.items()}
    if None in places.values():
        raise InputError(
            f"the tokenizer has no {PADDING} or no {SEPARATOR}; give one of BERT's."
        )
    return {"vocabulary": own.get_vocab_size(), **places}


def tokens(prep: Text, texts: Sequence[Words]) -> Int32[np.ndarray, "n t"]:
    """The inputs of a network; a text that is too long is cut, of two the longer one
    first."""
    padding = special(prep)["padding"]
    result = np.full((len(texts), prep.length), padding, np.int32)
    for row, ids in enumerate(_encoded(prep.tokenizer, texts, prep.length)):
        result[row, : len(ids)] = ids
    return result


def real(prep: Text, inputs: Int32[np.ndarray, "n t"]) -> Bool[np.ndarray, "n t"]:
    """Which tokens are no padding."""
    return inputs != special(prep)["padding"]


def _encoded(
    tokenizer: str, texts: Sequence[Words], length: int | None = None
) -> list[list[int]]:
    given = [text if len(text) > 1 else "".join(text) for text in texts]
    own = _opened(tokenizer, length)
    return [each.ids for each in own.encode_batch(given)]


def _first(error: Exception) -> str:
    return str(error).partition("\n")[0][:200] or type(error).__name__
