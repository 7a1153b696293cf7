"""What an operator may set of the graph. Read by `app.build`; host and port belong to `app.run`."""

from dataclasses import dataclass
from typing import Any

from pydantic import ConfigDict, TypeAdapter


@dataclass(frozen=True)
class ServeConfig:
    """The settings of one graph.

    bundle, catalogue: folders, the same path on every node. replica_cpus: what Ray reserves for each of the five
    replicas; the default lets all of them onto two cores. num_threads: of PyTorch, in a replica. max_edits: edits in
    flight, more are refused. retry_after_s: what a refused caller is told to wait. deadline_s: an edit's.
    max_pixels: of an uploaded picture.

    Raises ValueError, naming the field, for anything outside its range.
    """

    bundle: str
    catalogue: str
    replica_cpus: float = 0.2
    num_threads: int = 1
    max_edits: int = 8
    retry_after_s: int = 5
    deadline_s: float = 300.0
    max_pixels: int = 32_000_000

    __pydantic_config__ = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        for name in ("bundle", "catalogue"):
            if not getattr(self, name):
                raise ValueError(f"{name}: got ''; must be a folder")
        for name in ("num_threads", "max_edits", "retry_after_s", "max_pixels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}; must be at least 1")
        for name in ("replica_cpus", "deadline_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: got {getattr(self, name)}; must be more than 0")

    @classmethod
    def from_args(cls, args: dict[str, Any]) -> "ServeConfig":
        """The config in the `args` of a Serve config file or `serve run`, whose values may be strings.

        Raises pydantic.ValidationError, a ValueError, for unknown keys and wrong types too.
        """
        return TypeAdapter(cls).validate_python(args)
