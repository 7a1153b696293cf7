"""Writes a bundle's networks as ONNX files. `fashion-rag export onnx` calls it; `onnx_files.py` finds them again."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx
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
# From 21 on group normalisation is one operator, which ONNX Runtime takes apart on a CPU into more and slower ones.
OPSET = 20
# A batch of 1 would be taken for a constant.
EXAMPLE_ROWS = 2
# From 64 rows on upsampling in diffusers copies its input first, which a trace cannot leave open.
MAX_ROWS = 63
# A protobuf file holds at most 2 GB, and is in memory several times over while it is written or read. Weights in a
# file of their own are written one by one, and ONNX Runtime maps them.
MAX_INLINE_BYTES = 100_000_000


def export_onnx(
    bundle: Bundle, out: Path, dtype: torch.dtype = torch.float32, progress: Callable[[], None] | None = None
) -> list[Parity]:
    """Return how far each module in `out`, now holding all of `bundle` as ONNX files, is from PyTorch.

    One file serves any number of rows. dtype: of the weights, float32 or float16; inputs and outputs stay float32.
    `progress` is called once a module. Raises ArtifactError, leaving `out` as it was, if a module is too far off.

    ONNX Runtime measures on the CPU, where it computes most of a float16 file in float32. So for float16 the parity
    tells that the file is right, and not how far half precision is off on a GPU.
    """
    written: dict[str, OnnxFiles] = {}
    parities = []
    with written_aside(out) as new:
        for spec in module_specs(bundle).values():
            module = spec.load(bundle, torch.float32)
            expected = list(outputs(spec, module))
            written[spec.name] = write_onnx(module.to(dtype), spec, spec.weights(bundle), new)
            # Not beside the network that ONNX Runtime makes of the same weights. What is exported refers to itself.
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
    """Return the folder in the user's cache with the networks of `bundle` in float32; exported now unless they are
    there.

    Of several processes that ask at once, one exports and the others wait for it. Raises as `export_onnx`.
    """
    specs = module_specs(bundle).values()
    what = [[OPSET, spec.weights(bundle), shapes(spec.inputs), shapes(spec.outputs)] for spec in specs]
    digest = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]
    folder = cache_folder() / f"onnx-{digest}"

    def sound() -> bool:
        try:
            for spec in specs:
                find_onnx(folder, bundle, spec)
        except ArtifactError:
            return False
        return True

    if not sound():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_suffix(".lock")):
            if not sound():
                export_onnx(bundle, folder, progress=progress)
    return folder


def write_onnx(module: nn.Module, spec: ModuleSpec, weights: str, folder: Path) -> OnnxFiles:
    """Write the files of one module into `folder`; weights of more than MAX_INLINE_BYTES lie in a file of their own.

    module: of one floating-point dtype, which the files have too. weights: as `ModuleSpec.weights` says.
    """
    dtype = next(module.parameters()).dtype
    examples = blank_inputs(spec, EXAMPLE_ROWS)
    batch = torch.export.Dim("batch", max=MAX_ROWS)
    # Not left to torch.onnx.export, which tries other ways if this one fails, and then may keep the batch constant.
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
    """Take out the stack traces, which hold paths of this machine and are about a tenth of a small file."""
    for part in (model, model.graph, *model.graph.all_nodes()):
        part.metadata_props.clear()
