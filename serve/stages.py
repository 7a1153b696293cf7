"""The deployment that runs four stages in one process: the retriever, the parser, the conditioner and the VAE.

A process that imports PyTorch, Ray and Serve takes seconds to start and hundreds of megabytes, whatever it then does.
So on a machine that has one replica of each stage anyway, `graph.build` has them share a process. The stages are the
same objects as in replicas of their own, and their callers call them in the same way, through the handles of
`handles.py`.
"""

import inspect
from typing import Any

from ray import serve as ray_serve

from export.runtime import Runtime
from serve.conditioner import Conditioner
from serve.config import StagesSettings
from serve.handles import StageHere
from serve.parser import Parser
from serve.retriever import Retriever
from serve.vae import VAE


@ray_serve.deployment
class Stages:
    """The four stages, each of which works on its own batches."""

    def __init__(self, runtime: Runtime, catalogue: str) -> None:
        """Load the stages one after the other."""
        retriever = Retriever.func_or_class(runtime, catalogue)
        self.stages: dict[str, Any] = {
            "retriever": retriever,
            "parser": Parser.func_or_class(runtime),
            "conditioner": Conditioner.func_or_class(runtime, StageHere(retriever)),
            "vae": VAE.func_or_class(runtime),
        }

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take on new StagesSettings."""
        settings = StagesSettings.from_args(user_config)
        for name, stage in self.stages.items():
            taken_on = stage.reconfigure(getattr(settings, name).to_args())
            if inspect.isawaitable(taken_on):
                await taken_on

    def check_health(self) -> None:
        """Raise RuntimeError if the replica should be replaced, for one of the stages that check that."""
        for stage in self.stages.values():
            if hasattr(stage, "check_health"):
                stage.check_health()

    async def call(self, stage: str, method: str, *args: Any) -> Any:
        """Return what a method of a stage returns. Raises what it raises."""
        return await getattr(self.stages[stage], method)(*args)
