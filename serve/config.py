"""What an operator may set. `ServeConfig` is fixed while a graph runs; the settings of each deployment may change.

The settings are the `user_config` of their deployments. A Serve config file that changes nothing else reaches the
running replicas without a restart. `graph.build` gives each deployment its defaults.
"""

import dataclasses
import math
import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, TypeAdapter, ValidatorFunctionWrapHandler, WrapValidator

from export.runtime import Backend, Precision, Runtime
from fashion_rag.catalogue.versions import missing_catalogue
from fashion_rag.data.image import MAX_PIXELS
from fashion_rag.denoising.scheduler import Limits
from fashion_rag.errors import InvalidRequest
from fashion_rag.request import Shortcuts, Solver
from fashion_rag.sampling import SHORTCUT_OPTIONS, Preset

ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://[^\s/?#,@]+")


def _read_preset(value: Any, validate: ValidatorFunctionWrapHandler) -> Preset:
    """Return a preset, whose shortcuts may also stand beside its steps and guidance scale: {steps: 8, solver: unipc}.

    Raises ValueError for what is outside its range.
    """
    if isinstance(value, dict):
        shortcuts = {name: option for name, option in value.items() if name in SHORTCUT_OPTIONS}
        others = {name: option for name, option in value.items() if name not in SHORTCUT_OPTIONS}
        value = {"shortcuts": shortcuts} | others
        if shortcuts and "shortcuts" in others:
            raise ValueError(f"shortcuts: must not be given beside {', '.join(shortcuts)}")
    try:
        preset: Preset = validate(value)
    except InvalidRequest as error:
        raise ValueError(str(error)) from error
    return preset


PresetInFile = Annotated[Preset, WrapValidator(_read_preset)]

# The stage in which the bundle's student denoises, where it is served.
STUDENT_DENOISER = "student_denoiser"


class Config:
    """The base of configurations, which are frozen dataclasses that check their fields."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    @classmethod
    def from_args(cls, args: dict[str, Any]) -> Self:
        """Return the configuration that a part of a Serve config file, or of the arguments of `serve run`, describes.

        Values may be strings.

        Raises pydantic.ValidationError, a ValueError, for unknown keys, wrong types and values outside their ranges.
        """
        return TypeAdapter(cls).validate_python(args)

    def to_args(self) -> dict[str, Any]:
        """Return what `from_args` reads."""
        return dataclasses.asdict(self)  # type: ignore[call-overload]

    def _at_least(self, lowest: float, *names: str) -> None:
        """Raise ValueError if a field of these names is below `lowest`, or no finite number."""
        for name in names:
            if not lowest <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: got {getattr(self, name)}; must be a number from {lowest} on")


@dataclass(frozen=True)
class IngressSettings(Config):
    """The settings of an ingress replica.

    max_edits: edits in flight; when there are as many, the next is refused before its body is read. max_edits_per_key:
    edits in flight of one API key, together with the bodies that it is sending. max_uploads: bodies that are read at
    once. upload_s: how long a body may take, within deadline_s. upload_stall_s: how long a body may take to bring
    64 KiB. retry_after_s: how long a refused caller is asked to wait. deadline_s: the longest time that an edit may
    take, and the default for callers who name no deadline. max_pixels: pixels of an uploaded picture. presets: sampling
    options by the name under which callers may ask for them; those of the student are offered where it is served.
    """

    # As many as a denoiser takes on by default, and some more that are on the way to it or back.
    max_edits: int = 24
    max_edits_per_key: int = 24
    max_uploads: int = 128
    upload_s: float = 120.0
    upload_stall_s: float = 20.0
    retry_after_s: float = 5.0
    deadline_s: float = 300.0
    max_pixels: int = MAX_PIXELS
    # Chosen by benchmarks/frontier.py.
    presets: dict[str, PresetInFile] = field(
        default_factory=lambda: {
            "fast": Preset(steps=10, shortcuts=Shortcuts(Solver.UNIPC)),
            "balanced": Preset(steps=20, shortcuts=Shortcuts(Solver.DPMPP_2M)),
            "exact": Preset(steps=50),
            "turbo": Preset(shortcuts=Shortcuts(student=True)),
        }
    )

    def __post_init__(self) -> None:
        self._at_least(1, "max_edits", "max_edits_per_key", "max_uploads", "retry_after_s", "max_pixels")
        self._at_least(0.001, "deadline_s", "upload_s", "upload_stall_s")


@dataclass(frozen=True)
class BatchSettings(Config):
    """The settings of the VAE. max_batch: requests in one call of a network."""

    max_batch: int = 8

    def __post_init__(self) -> None:
        self._at_least(1, "max_batch")


@dataclass(frozen=True)
class RetrieverSettings(BatchSettings):
    """The settings of the retriever. refresh_s: how often it looks for a new version, or changes, of the catalogue."""

    refresh_s: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(0.01, "refresh_s")


@dataclass(frozen=True)
class ConditionerSettings(BatchSettings):
    """The settings of the conditioner.

    cache_bytes: bytes of pseudo-words that are kept; those of a garment take 64 KiB at full size.
    """

    cache_bytes: int = 256 * 1024**2

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(0, "cache_bytes")


@dataclass(frozen=True)
class ParserSettings(BatchSettings):
    """The settings of the parser. cache_bytes: bytes of what was read in photos that are kept; 192 KiB a photo."""

    cache_bytes: int = 64 * 1024**2

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(0, "cache_bytes")


@dataclass(frozen=True)
class DenoiserSettings(Limits, Config):
    """The settings of the denoiser, most of which `Limits` describes.

    margin_s: is left for decoding and the way back, or as much as these have taken lately where that is more.
    results_bytes: bytes of latents that are kept to answer the same edit again, at full size 48 KiB an edit; 0 = none.
    pin_cores: whether the threads of each denoiser stay on cores of their own, `num_threads` of them, on one NUMA node.
    """

    margin_s: float = 0.5
    slack: float = 0.1
    results_bytes: int = 0
    pin_cores: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(0, "results_bytes")


@dataclass(frozen=True)
class StagesSettings(Config):
    """The settings of the stages that share a process, which each of them has for itself otherwise."""

    retriever: RetrieverSettings = RetrieverSettings()
    parser: ParserSettings = ParserSettings()
    conditioner: ConditionerSettings = ConditionerSettings()
    vae: BatchSettings = BatchSettings()


@dataclass(frozen=True)
class ServeConfig(Config):
    """The configuration of a graph.

    bundle: a folder, at the same path on every node. catalogue: such a folder, or a URL of fsspec. backend, precision,
    compiled: what runs the networks, as in `Runtime`. num_threads: threads of a replica. replica_cpus: cores that Ray
    reserves for each replica; with the default all six fit two cores. replica_gpus: the share of a GPU that Ray
    reserves for each replica that runs networks; with 0 they see no GPU. api_keys: a file with a key a line; without it
    and without FASHION_RAG_API_KEYS in the environment of the ingress, everyone may use the server. catalogue_keys: the
    same, with FASHION_RAG_CATALOGUE_KEYS, for those who may change the catalogue; without keys, nobody may. drain_s:
    how long a replica that is to stop may finish what it has; it should be at least the time of the longest edit.
    wait_s: how long a replica waits at its start for a bundle, a catalogue or compiled networks that are not there yet;
    `/readyz` names them.

    allow_origins: origins whose pages may use the server, such as https://shop.example; `*` stands for all; none by
    default. untrained: whether a bundle may be served that is marked as untrained. one_process: whether the retriever,
    the parser, the conditioner and the VAE share a process, which saves memory and time at the start. They then scale
    as one. student: whether the bundle's student is served, by denoisers of its own, beside the UNet. These two are
    decided by `app.local_config` where they are not given.

    max_replicas: replicas of a deployment; with more than one, each deployment scales by its load. target_load: how
    much of what a denoiser can do may arrive at it before another is started. upscale_delay_s, downscale_delay_s: how
    long a load must last before the number of replicas changes.

    Raises ValueError, naming the field, for anything outside its range.
    """

    bundle: str
    catalogue: str
    backend: Backend | Literal["auto"] = "auto"
    precision: Precision | Literal["auto"] = "auto"
    compiled: str | None = None
    num_threads: int = 1
    replica_cpus: float = 0.2
    replica_gpus: float = 0.0
    api_keys: str | None = None
    catalogue_keys: str | None = None
    drain_s: float = 300.0
    wait_s: float = 0.0
    allow_origins: tuple[str, ...] = ()
    untrained: bool = False
    one_process: bool = False
    student: bool = False
    max_replicas: int = 1
    target_load: float = 0.7
    upscale_delay_s: float = 10.0
    downscale_delay_s: float = 300.0
    ingress: IngressSettings = IngressSettings()
    denoiser: DenoiserSettings = DenoiserSettings()
    conditioner: ConditionerSettings = ConditionerSettings()
    retriever: RetrieverSettings = RetrieverSettings()
    parser: ParserSettings = ParserSettings()
    vae: BatchSettings = BatchSettings()

    def __post_init__(self) -> None:
        for name in ("bundle", "catalogue"):
            if not getattr(self, name):
                raise ValueError(f"{name}: got ''; must be a folder")
        for origin in self.allow_origins:
            if not ORIGIN.fullmatch(origin):
                raise ValueError(f"allow_origins: got {origin!r}; must be * or SCHEME://HOST[:PORT], without a path")
        self._at_least(1, "num_threads", "max_replicas")
        if not 0 < self.target_load <= 1:
            raise ValueError(f"target_load: got {self.target_load}; must be more than 0 and at most 1")
        self._at_least(0.01, "replica_cpus", "drain_s")
        self._at_least(0, "replica_gpus", "wait_s", "upscale_delay_s", "downscale_delay_s")

    @property
    def runtime(self) -> Runtime:
        """Return what runs the networks."""
        return Runtime(self.bundle, self.backend, self.precision, self.compiled, self.num_threads, self.wait_s)

    def missing(self) -> list[str]:
        """Return the files that the graph opens at its start and that are not there yet."""
        return self.runtime.missing() + missing_catalogue(self.catalogue)
