"""The export of a bundle's networks as ONNX files. Called by `fashion-rag export onnx`, and by `backend.py`."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import nn

from export.modules import ModuleSpec, blank_inputs, module_specs
from export.onnx_files import OnnxFiles, find_onnx, onnx_path, shapes, write_manifest
from export.onnx_module import OnnxModule
from export.parity import Parity, compare, outputs
from fashion_rag.artifacts import cache_folder, sha256, write_json
from fashion_rag.atomic_files import locked, written_aside
from fashion_rag.bundle import Bundle
from fashion_rag.errors import ArtifactError

PARITY_FILE = "parity.json"
# From 21 on, group normalisation is one operator, which ONNX Runtime splits on a CPU into more and slower operators.
OPSET = 20
# An example of 1 row would make the number of rows a constant.
EXAMPLE_ROWS = 2
# From 64 rows on, upsampling in diffusers first copies its input, but a trace is the same for all numbers of rows.
MAX_ROWS = 63
# A protobuf file holds at most 2 GB, and while it is written or read, it is in memory several times. Larger weights
# get a file of their own, where they are written one by one, and which ONNX Runtime maps.
MAX_INLINE_BYTES = 100_000_000


def export_onnx(
    bundle: Bundle, out: Path, dtype: torch.dtype = torch.float32, progress: Callable[[], None] | None = None
) -> list[Parity]:
    """Write all networks of `bundle` to `out` as ONNX files, and return how much each differs from PyTorch.

    A file can be run with any number of rows. dtype: of the weights, float32 or float16; inputs and outputs stay
    float32. progress: called after each module. Raises ArtifactError, leaving `out` as it was, if a module differs by
    more than its tolerance.

    ONNX Runtime is measured on the CPU, where it computes most of a float16 file in float32. So for float16 the parity
    shows that the file is right, but not how much half precision differs on a GPU.
    """
    written: dict[str, OnnxFiles] = {}
    parities = []
    with written_aside(out) as new:
        for spec in module_specs(bundle).values():
            module = spec.load(bundle, torch.float32)
            expected = list(outputs(spec, module))
            written[spec.name] = write_onnx(module.to(dtype), spec, spec.weights(bundle), new)
            # Freed before ONNX Runtime loads the same weights. It needs the collector, as exported modules are cyclic.
            del module
            gc.collect()
            compiled = OnnxModule(onnx_path(new, spec), spec, torch.get_num_threads())
            parities.append(compare(spec, expected, outputs(spec, compiled), dtype))
            del compiled
            if progress is not None:
                progress()
        write_manifest(new, written)
        run_by = f"ONNX Runtime {onnxruntime.__version__}, CPU"
        write_json(new / PARITY_FILE, {"run_by": run_by, "modules": [asdict(parity) for parity in parities]})
    return parities


def cached_onnx(bundle: Bundle, progress: Callable[[], None] | None = None) -> Path:
    """Return the folder in the user's cache with the networks of `bundle` in float32. They are exported if missing.

    If several processes ask at once, one exports and the others wait. Raises as `export_onnx`.
    """
    specs = module_specs(bundle).values()
    contents = [[OPSET, spec.weights(bundle), shapes(spec.inputs), shapes(spec.outputs)] for spec in specs]
    digest = hashlib.sha256(json.dumps(contents).encode()).hexdigest()[:16]
    folder = cache_folder() / f"onnx-{digest}"
    if not _has_all(folder, bundle):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_suffix(".lock")):
            if not _has_all(folder, bundle):
                export_onnx(bundle, folder, progress=progress)
    return folder


def _has_all(folder: Path, bundle: Bundle) -> bool:
    """Return whether `folder` has sound files of all networks of `bundle`."""
    try:
        for spec in module_specs(bundle).values():
            find_onnx(folder, bundle, spec)
    except ArtifactError:
        return False
    return True


def write_onnx(module: nn.Module, spec: ModuleSpec, weights: str, folder: Path) -> OnnxFiles:
    """Write the files of one module to `folder`, and return them.

    Weights of more than MAX_INLINE_BYTES get a file of their own.

    module: of one floating-point dtype, which the files have, too. weights: as `ModuleSpec.weights` returns it.
    """
    # Imported here, because only the export needs it, and replicas import this module.
    import onnx

    dtype = next(module.parameters()).dtype
    examples = blank_inputs(spec, EXAMPLE_ROWS)
    batch = torch.export.Dim("batch", max=MAX_ROWS)
    # torch.onnx.export would try other ways if this one fails, and then might make the number of rows a constant.
    exported = torch.export.export(module, examples, dynamic_shapes=tuple({0: batch} for _ in examples), strict=False)
    program: Any = torch.onnx.export(
        exported, input_names=list(spec.inputs), output_names=list(spec.outputs), opset_version=OPSET, verbose=False
    )
    _forget_origin(program.model)
    path = onnx_path(folder, spec)
    num_bytes = sum(weight.nbytes for weight in module.state_dict().values())
    program.save(path, external_data=num_bytes > MAX_INLINE_BYTES)
    onnx.checker.check_model(path)
    return OnnxFiles(
        files={file.name: sha256(file) for file in sorted(folder.glob(f"{path.name}*"))},
        weights=weights,
        dtype=str(dtype).removeprefix("torch."),
        opset=OPSET,
        torch=torch.__version__,
        inputs=shapes(spec.inputs),
        outputs=shapes(spec.outputs),
    )


def _forget_origin(model: Any) -> None:
    """Remove the stack traces, which hold paths of this machine and are about a tenth of a small file."""
    for part in (model, model.graph, *model.graph.all_nodes()):
        part.metadata_props.clear()
