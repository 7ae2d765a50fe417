"""A model's function as a StableHLO file: it is called and differentiated without the
code that it came from, for any batch, on any of the platforms.

    function(arrays by key path, *inputs) -> what the model gives

A file from elsewhere is a program; it may do arithmetic alone. Calls out of it (a
custom call that jax does not vouch for) are refused when it is read.
"""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax import export
from jax._src import config
from jaxtyping import Array, ArrayLike

from ispasp_jax.errors import InputError
from ispasp_jax.graph import key_path
from ispasp_jax.weights.tensors import is_key, printable

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")

#: Custom calls that are arithmetic: compiler annotations, and the linear algebra and
#: random bits that jax keeps stable.
_CALL = re.compile(r'custom_call(?:\s+@|.{0,200}?call_target_name = ")([\w.$]+)', re.S)
_KNOWN = re.compile(
    r"Sharding|SPMDFullToShardShape|SPMDShardToFullShape|annotate_device_placement|"
    r"cu_threefry2x32\w*|(blas|lapack|cusolver|cublas|hipsolver|hipblas)_\w+|ducc_fft|"
    r"dynamic_ducc_fft|mhlo\.topk|mhlo\.erf|chlo\.\w+|stablehlo\.dynamic_\w+|"
    r"shape_assertion|Qr|ProductOfElementaryHouseholderReflectors|LuDecomposition|"
    r"ApproxTopK|tpu_custom_call_none"
)


@dataclasses.dataclass(frozen=True, eq=False)
class Stored:
    """A function as a program.

    Attributes:
      exported: the program.
    """

    exported: export.Exported

    def apply(self, variables: Mapping[str, ArrayLike], *inputs: Any) -> Any:
        """What the model gives.

        Args:
          variables: its arrays by key path.
          *inputs: a batch of any size.
        """
        return self.exported.call(dict(variables), *inputs)

    __call__ = apply

    @property
    def inputs(self) -> list[tuple[tuple[int | None, ...], Any]]:
        """Shape and dtype of the inputs, None for the batch."""
        avals = self.exported.in_avals
        count = len(self.variables)
        return [
            (tuple(s if isinstance(s, int) else None for s in a.shape), a.dtype)
            for a in avals[count:]
        ]

    @property
    def num_classes(self) -> int:
        """Length of what it gives, of a classifier its logits."""
        return int(self.exported.out_avals[0].shape[-1])

    def write(self, path: Path) -> None:
        """Writes it to a file, with its derivative."""
        with _nameless():
            path.write_bytes(self.exported.serialize(vjp_order=1))

    @property
    def variables(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of the arrays that it takes."""
        (arrays, *_), _ = jax.tree.unflatten(
            self.exported.in_tree, self.exported.in_avals
        )
        return {n: jax.ShapeDtypeStruct(a.shape, a.dtype) for n, a in arrays.items()}


def stored(
    function: Callable[..., Any],
    variables: Any,
    *inputs: Any,
    platforms: Sequence[str] = PLATFORMS,
    batch: int | None = None,
) -> Stored:
    """A model's function as a program.

    Args:
      function: of (variables, *inputs), pure.
      variables: arrays or shapes.
      *inputs: shapes; of the first dimension any size will do later.
      platforms: where it is to run, by jax's names.
      batch: examples a pass; None: any.

    Raises:
      InputError: it cannot be traced for such a batch.
    """
    pairs, tree = jax.tree_util.tree_flatten_with_path(variables)
    held = {key_path(where): leaf for where, leaf in pairs}
    arrays = {n: _shape(leaf) for n, leaf in held.items() if not is_key(leaf)}

    def by_path(given: Mapping[str, Array], *inputs: Any) -> Any:
        leaves = [given.get(name, leaf) for name, leaf in held.items()]
        return function(jax.tree.unflatten(tree, leaves), *inputs)

    size = export.symbolic_shape("batch")[0] if batch is None else batch
    sized = [jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype) for x in inputs]
    try:
        whole = export.export(jax.jit(by_path), platforms=platforms)
        with _nameless():
            return Stored(whole(arrays, *sized))
    except Exception as error:  # of many kinds: the model's own code
        why = str(error).strip().partition("\n")[0].removesuffix(".")
        raise InputError(
            f"the model cannot be written for a batch of {batch or 'any size'} "
            f"({why:.200}); its "
            "arrays can be, and its own code runs them."
        ) from error


def _nameless() -> contextlib.AbstractContextManager:
    """Inside it, programs do not say in which files of this machine their equations
    were written: that is nobody's business where the program goes.
    """
    return config.hlo_source_file_canonicalization_regex(".*")


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jax.numpy.shape(leaf), jax.dtypes.result_type(leaf))


def read(path: Path) -> Stored:
    """A function from a file.

    Raises:
      InputError: it is no such file, or it calls out.
    """
    expected = "expected one that ispasp_jax has written"
    try:
        exported = export.deserialize(bytearray(path.read_bytes()))
        text = exported.mlir_module()
    except Exception as error:  # of many kinds: flatbuffers, MLIR
        raise InputError(f"{path} is no StableHLO program; {expected}.") from error
    calls = {name for name in _CALL.findall(text) if not _KNOWN.fullmatch(name)}
    if calls:
        raise InputError(
            f"{path} calls {', '.join(map(printable, sorted(calls)))}, which is no "
            f"arithmetic; {expected}."
        )
    return Stored(exported)
