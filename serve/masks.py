"""The course of a request for a mask alone. The ingress calls it.

The parser reads the photo, and the mask is made here, as the parser makes it for an edit.
"""

import asyncio

import ray
from ray.serve.handle import DeploymentHandle

from fashion_rag.errors import InvalidRequest
from fashion_rag.person.completion import CategoryChoice, complete, find
from fashion_rag.person.reading import PhotoReading
from fashion_rag.person.regions import worn_category
from fashion_rag.request import EditRequest
from serve import tracing
from serve.calls import answer
from serve.http.mask_reply import MaskReply, mask_reply
from serve.messages import Chosen
from serve.tracing import Kind


class MaskFinder:
    """Finds masks with the parser, and their categories, where only words are given, with the retriever."""

    def __init__(self, parser: DeploymentHandle, retriever: DeploymentHandle, shape: tuple[int, int]) -> None:
        """Take the handles of the stages, and the (height, width) of the model's pictures."""
        self.parser = parser
        self.retriever = retriever
        self.shape = shape

    async def reply(self, request: EditRequest, has_words: bool) -> MaskReply:
        """Return the reply with the mask that an edit of this request would have.

        has_words: whether the request's words are the caller's. Without them and a category, the mask is for the
        largest garment that is worn. Raises InvalidRequest if the photo does not show what it must.
        """
        with tracing.span("put request", Kind.HANDOVER):
            shared = await asyncio.to_thread(ray.put, request)
        reading: PhotoReading = await answer("parse", lambda: self.parser.read.remote(shared), request.deadline_unix_s)
        if request.category is not None:
            choice = CategoryChoice(request.category)
        elif has_words:
            chosen: Chosen = await answer(
                "category", lambda: self.retriever.choose.remote(shared), request.deadline_unix_s
            )
            choice = chosen.choice
        else:
            choice = _worn(reading)
        return await asyncio.to_thread(self._reply, request, choice, reading)

    def _reply(self, request: EditRequest, choice: CategoryChoice, reading: PhotoReading) -> MaskReply:
        found = find(request, choice, self.shape, reading)
        return mask_reply(complete(request, found), found, reading)


def _worn(reading: PhotoReading) -> CategoryChoice:
    """Return the category of the largest garment that is worn. Raises InvalidRequest if none is to be seen."""
    category = worn_category(reading)
    if category is None and reading.num_persons == 0:
        raise InvalidRequest("image", "a photo that shows nobody", "must show a person")
    if category is None:
        raise InvalidRequest("image", "a person who wears no garment that is known", "must come with a category")
    return CategoryChoice(category)
