"""The build of TensorRT engines from exported ONNX files. Called by `fashion-rag export tensorrt`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from export.buckets import rows_of
from export.engines import PORTABLE, EngineKey, get_or_build, use_engines
from export.flavours import TENSORRT, TENSORRT_RTX, Flavour, make_log
from export.modules import ModuleSpec, module_specs
from export.onnx_files import find_onnx, onnx_path
from export.runtime import ENGINES_FOLDER
from fashion_rag.atomic_files import locked, write_whole
from fashion_rag.bundle import Bundle
from fashion_rag.errors import ArtifactError

TIMINGS_FILE = "timings.cache"  # in the folder of the engines

# Called with the network and what is done with it, the number of steps done, and the number of all steps.
BuildProgress = Callable[[str, int, int], None]


def export_tensorrt(
    bundle: Bundle, folder: Path, flavour: Flavour, targets: Sequence[str] = (), progress: BuildProgress | None = None
) -> dict[str, Path]:
    """Return the engines of all networks of `bundle`, by name. Those that are missing are built now.

    folder: written by `fashion-rag export onnx`; the engines get a folder in it. targets: as `build_targets` returns
    them. Raises ArtifactError as `find_onnx` and `build_engine`.
    """
    engines = {}
    for name, spec in module_specs(bundle).items():
        rows = rows_of(spec)
        key = EngineKey.of(spec, find_onnx(folder, bundle, spec), rows, flavour, "+".join(targets) or PORTABLE)
        build = partial(
            build_engine,
            onnx_path(folder, spec),
            spec,
            rows,
            flavour=flavour,
            targets=targets,
            progress=progress,
            timing_cache=folder / ENGINES_FOLDER / TIMINGS_FILE,
        )
        engines[name] = get_or_build(folder / ENGINES_FOLDER, key, build)
    use_engines(folder / ENGINES_FOLDER, engines)
    return engines


def build_targets(flavour: Flavour, wanted: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the compute capabilities, such as "9.0", that an engine is built for; none make a portable engine.

    `tensorrt` builds for the GPU of this machine only. TensorRT for RTX builds for the `wanted` capabilities without a
    GPU, if it has names for them. Another capability can only be built for alone, on a machine with such a GPU. Raises
    ArtifactError for capabilities that cannot be built for here.
    """
    capability = current_capability()
    got = f"architecture: got {_listed(wanted)}; {flavour.name} {flavour.version} builds for"
    this_gpu = f"the GPU of this machine, which is {capability or 'absent'}"
    if flavour.name == TENSORRT:
        if capability is None or set(wanted) - {capability}:
            raise ArtifactError(f"{got} {this_gpu}")
        return (capability,)
    named = [_capability(name) for name in flavour.api.ComputeCapability.__members__ if name.startswith("SM")]
    if set(wanted) - set(named) and list(wanted) != [capability]:
        raise ArtifactError(f"{got} {_listed(named)}, or else only for {this_gpu}")
    return tuple(wanted)


def current_capability() -> str | None:
    """Return the compute capability of this machine's first GPU, as "9.0"; None without one."""
    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability(0)
    return f"{major}.{minor}"


def build_engine(
    path: Path,
    spec: ModuleSpec,
    rows: Sequence[int],
    flavour: Flavour,
    targets: Sequence[str] = (),
    progress: BuildProgress | None = None,
    timing_cache: Path | None = None,
) -> memoryview:
    """Return the engine of the ONNX file `path`, which takes many minutes for a real network.

    spec: the network in the file. rows: the batch sizes, rising; the engine runs calls of exactly these sizes.
    targets: as `build_targets` returns them.
    progress: called from inside TensorRT after every step; an exception that it raises ends the build.
    timing_cache: the file of `tensorrt`'s timings, which make later builds faster. TensorRT for RTX has none.

    Raises ArtifactError with TensorRT's own message if the build fails, and for a file whose inputs and outputs are not
    those of `spec`. After a failed build, TensorRT for RTX needs a new process, or later builds may fail, too.
    """
    if not rows or list(rows) != sorted(set(rows)) or rows[0] < 1:
        raise ArtifactError(f"rows: got {list(rows)}; must rise from 1 or more")
    api = flavour.api
    log = make_log(api)
    builder = api.Builder(log)
    network = builder.create_network(1 << int(api.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = api.OnnxParser(network, log)
    if not parser.parse_from_file(str(path)):
        raise ArtifactError(f"{path}: {_last(log)}")
    _check_inputs_and_outputs(api, network, spec, path)
    config = _configure(builder, network, rows, flavour=flavour, targets=targets)
    monitor = _monitor(api, spec.name, progress or (lambda phase, done, total: None))
    config.progress_monitor = monitor
    timings = _timings(config, timing_cache) if timing_cache and flavour.name == TENSORRT else None
    memory = builder.build_serialized_network(network, config)
    if monitor.raised:
        raise monitor.raised
    if memory is None:
        raise ArtifactError(f"{path}: {flavour.name} {flavour.version} cannot build {spec.name}: {_last(log)}")
    if timings and timing_cache:
        with locked(timing_cache.with_name(f"{timing_cache.name}.lock")):
            write_whole(timing_cache, memoryview(timings.serialize()).cast("B"))
    return memoryview(memory).cast("B")


def _configure(builder: Any, network: Any, rows: Sequence[int], *, flavour: Flavour, targets: Sequence[str]) -> Any:
    """Return the configuration of a build, with an optimisation profile for each batch size."""
    api = flavour.api
    config = builder.create_builder_config()
    # TF32 is on by default, and would compute what the file calls float32 with less precision.
    config.clear_flag(api.BuilderFlag.TF32)
    if flavour.name == TENSORRT_RTX:
        # Nothing is allocated while an engine runs, so that its calls can be captured as CUDA graphs.
        config.set_flag(api.BuilderFlag.REQUIRE_USER_ALLOCATION)
        config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            known = api.ComputeCapability.__members__.get("SM" + target.replace(".", ""))
            config.set_compute_capability(known or api.ComputeCapability.CURRENT, index)
    for num_rows in rows:
        profile = builder.create_optimization_profile()
        for tensor in _inputs(network):
            shape = (num_rows, *tuple(tensor.shape)[1:])
            profile.set_shape(tensor.name, shape, shape, shape)
        config.add_optimization_profile(profile)
    return config


def _timings(config: Any, path: Path) -> Any:
    """Return the timings that the build uses and adds to.

    They begin with those in the file `path`, if that exists and is of this GPU and TensorRT.
    """
    timings = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    if not config.set_timing_cache(timings, ignore_mismatch=False):
        timings = config.create_timing_cache(b"")
        config.set_timing_cache(timings, ignore_mismatch=False)
    return timings


def _monitor(api: Any, name: str, progress: BuildProgress) -> Any:
    """Return a monitor for TensorRT that calls `progress`. An exception ends the build and is kept in `raised`."""

    class Monitor(api.IProgressMonitor):
        def __init__(self) -> None:
            api.IProgressMonitor.__init__(self)
            self.totals: dict[str, int] = {}
            self.raised: BaseException | None = None

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.totals[phase_name] = num_steps
            self.report(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self.report(phase_name, step + 1)
            return self.raised is None

        def phase_finish(self, phase_name: str) -> None:
            self.report(phase_name, self.totals[phase_name])

        def report(self, phase: str, done: int) -> None:
            # No exception may pass through TensorRT. Ctrl-C is raised here, too, as builds happen outside Python.
            try:
                if self.raised is None:
                    progress(f"{name}: {phase}", done, self.totals[phase])
            except BaseException as error:
                self.raised = error

    return Monitor()


def _check_inputs_and_outputs(api: Any, network: Any, spec: ModuleSpec, path: Path) -> None:
    """Raise ArtifactError unless the inputs and outputs of the parsed network are those of `spec`."""
    dtypes = {api.float32: torch.float32, api.float16: torch.float16, api.int64: torch.int64}
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    for kind, parsed, wanted in (("input", _inputs(network), spec.inputs), ("output", outputs, spec.outputs)):
        got = {tensor.name: (tuple(tensor.shape), dtypes.get(tensor.dtype, tensor.dtype)) for tensor in parsed}
        # TensorRT writes -1 for a dimension that is dynamic.
        expected = {name: ((-1, *tensor.shape), tensor.dtype) for name, tensor in wanted.items()}
        if got != expected:
            raise ArtifactError(f"{path}: {kind}s of {spec.name} are {got}, must be {expected}")


def _inputs(network: Any) -> list[Any]:
    return [network.get_input(index) for index in range(network.num_inputs)]


def _capability(name: str) -> str:
    """Return the compute capability that TensorRT calls `name`, as "12.0" for "SM120"."""
    return f"{name[2:-1]}.{name[-1]}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def _last(log: Any) -> str:
    """Return the last error that TensorRT has logged."""
    return log.errors[-1] if log.errors else "no reason given"
