"""Handles of stages that share a process, for their callers: they are used like the handles of deployments.

The ingress has some, so this module imports nothing that networks need. `stages.py` has the process.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

from ray import ObjectRef
from ray.serve.handle import DeploymentHandle


@dataclass(frozen=True)
class StageHandle:
    """A handle of one of the stages, which is used like the handle of a deployment of its own.

    handle: that of `Stages`.
    """

    handle: DeploymentHandle
    stage: str

    def __getattr__(self, method: str) -> "_RemoteMethod":
        # Pickle asks an object that has no fields yet for methods such as `__setstate__`.
        if method.startswith("_"):
            raise AttributeError(method)
        return _RemoteMethod(self, method)


@dataclass(frozen=True)
class _RemoteMethod:
    """A method of a stage in another process."""

    of: StageHandle
    name: str

    def remote(self, *args: Any) -> Any:
        """Call the method, and return the response as that of a deployment's handle."""
        return self.of.handle.call.remote(self.of.stage, self.name, *args)


@dataclass(frozen=True)
class StageHere:
    """What stands for the handle of a stage in the same process."""

    stage: Any

    def __getattr__(self, method: str) -> "_LocalMethod":
        return _LocalMethod(getattr(self.stage, method))


@dataclass(frozen=True)
class _LocalMethod:
    """A method of a stage in the same process."""

    method: Any

    def remote(self, *args: Any) -> asyncio.Task[Any]:
        """Call the method, and return its task, which can be awaited and cancelled like a handle's response."""
        return asyncio.create_task(self._called(args))

    async def _called(self, args: tuple[Any, ...]) -> Any:
        # A replica receives what references stand for.
        received = [await arg if isinstance(arg, ObjectRef) else arg for arg in args]
        return await self.method(*received)
