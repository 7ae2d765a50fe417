"""Files for other runtimes that a run leaves beside its result."""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ispasp_jax import export
from ispasp_jax.export import onnx_file
from ispasp_jax.report import say
from ispasp_jax.weights import Model

#: What each format's file is called.
NAMES = {"onnx": "model.onnx", "stablehlo": "model.exported.stablehlo"}


def write(
    formats: Iterable[str], dense: Model, pruned: Model, folder: Path, batch_size: int
) -> list[dict[str, Any]]:
    """Writes the pruned network in every format; what report.json says of each.

    Args:
      formats: of NAMES.
      dense: the network before, for the latency in the same runtime.
      pruned: what is written.
      folder: where.
      batch_size: images a pass when latency is measured.

    Raises:
      InputError: it cannot be written so, or a package is missing.
    """
    result = []
    for name in formats:
        path = folder / NAMES[name]
        if name == "onnx":
            made: Any = export.onnx(pruned, path)
            more = {"nodes": made.nodes, "latency_ms": _times(dense, path, batch_size)}
        else:
            made = export.stablehlo(pruned, path)
            more = {"platforms": list(made.platforms)}
        difference = made.largest_difference
        say(f"{path.name}: largest difference to the network in JAX {difference:.1g}")
        result.append(
            {
                "format": name,
                "file": path.name,
                "bytes": path.stat().st_size,
                "largest_difference": difference,
                **more,
            }
        )
    return result


def _times(dense: Model, path: Path, batch_size: int) -> dict[str, float]:
    """Milliseconds of a batch in onnxruntime, dense and pruned in turns."""
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder) / "dense.onnx"
        export.onnx(dense, before)
        inputs = dense.traced.inputs
        times = onnx_file.latencies([before, path], inputs, batch_size)
    return dict(zip(("dense", "pruned"), times, strict=True))
