"""Tests which stages the denoiser asks for an edit, in which order, and with what, on stages that note their calls."""

import asyncio
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray import ObjectRef

from fashion_rag.errors import InvalidRequest
from fashion_rag.person.completion import CategoryChoice, Found
from fashion_rag.request import PLAIN, EditRequest, Window
from serve import preparation
from serve.messages import Chosen, Conditioned, EncodedPerson, FoundInPhoto, Job
from serve.preparation import Preparation, Preparer, with_category
from tests.serve.pictures import mask, photo
from tests.serve.standin import Answer

SHAPE = (64, 48)
GIVEN = CategoryChoice("dresses")
CHOSEN = CategoryChoice("upper_body", 0.9)


def found(choice: CategoryChoice) -> Found:
    return Found(choice, Window(0, 0, 80, 60), None, None)


class Call(Answer):
    """A call of a stage, which notes whether it was cancelled."""

    cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Stages:
    """Stands for the handles of all stages. Calls are noted as they begin and end; some may fail, or never end."""

    def __init__(self, fails: str = "", hangs: str = "") -> None:
        self.fails, self.hangs = fails, hangs
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.arguments: dict[str, tuple[Any, ...]] = {}
        self.calls: dict[str, Call] = {}

    def handle(self, **methods: Callable[..., Any]) -> Any:
        return SimpleNamespace(**{name: SimpleNamespace(remote=self._remote(name, methods[name])) for name in methods})

    def _remote(self, name: str, method: Callable[..., Any]) -> Callable[..., Call]:
        def remote(*arguments: Any) -> Call:
            self.begun.append(name)
            self.arguments[name] = arguments
            self.calls[name] = Call(self._answer(name, method(*arguments)))
            return self.calls[name]

        return remote

    async def _answer(self, name: str, answer: Any) -> Any:
        await asyncio.sleep(0)
        if name == self.hangs:
            await asyncio.Event().wait()
        if name == self.fails:
            raise InvalidRequest("image", name, "must not fail")
        self.ended.append(name)
        return answer

    def preparer(self) -> Preparer:
        conditioned, encoded = cast(Any, SimpleNamespace()), cast(Any, SimpleNamespace())
        return Preparer(
            retriever=self.handle(choose=lambda request: Chosen(CHOSEN, {"category": 1.0})),
            parser=self.handle(find=lambda request, choice: FoundInPhoto(found(choice), {"parse": 2.0})),
            conditioner=self.handle(
                condition=lambda request, choice, job: Conditioned(conditioned, (), "v", {"condition": 3.0})
            ),
            vae=self.handle(encode=lambda request, found: EncodedPerson(encoded, encoded, {"encode": 4.0})),
            shape=SHAPE,
        )


def reference(request: EditRequest) -> ObjectRef[EditRequest]:
    """Return what stands for the request in shared memory."""

    class Reference:
        def __await__(self) -> Any:
            async def read() -> EditRequest:
                return request

            return read().__await__()

    return cast(Any, Reference())


def job(choice: CategoryChoice | None, is_read: bool, known: Found | None) -> Job:
    request = EditRequest(image=photo(), mask=mask(), prompt="a red dress")
    return Job(reference(request), choice, is_read, known, 4, 1.0, PLAIN, math.inf, 0.0, frozenset())


def prepared(stages: Stages, asked: Job) -> Preparation:
    return asyncio.run(stages.preparer().prepare(asked))


def test_an_edit_with_nothing_to_find_makes_two_calls() -> None:
    stages, known = Stages(), found(GIVEN)
    asked = job(GIVEN, is_read=False, known=known)
    preparation = prepared(stages, asked)
    assert sorted(stages.begun) == ["condition", "encode"]
    assert stages.arguments["condition"] == (asked.request, GIVEN, asked)
    assert stages.arguments["encode"] == (asked.request, known)
    assert preparation.found is known
    assert preparation.timings_s == {"condition": 3.0, "encode": 4.0}


def test_a_category_is_chosen_first_and_every_stage_is_told() -> None:
    stages = Stages()
    preparation = prepared(stages, job(None, is_read=True, known=None))
    assert stages.begun[0] == stages.ended[0] == "choose"
    assert stages.arguments["find"][1] is stages.arguments["condition"][1] is CHOSEN
    assert stages.arguments["encode"][1] is preparation.found
    assert preparation.found.choice is CHOSEN
    assert list(preparation.timings_s) == ["category", "parse", "condition", "encode"]


def test_the_photo_is_read_while_the_garments_are_conditioned() -> None:
    stages = Stages(hangs="condition")

    async def steps() -> None:
        preparing = asyncio.create_task(stages.preparer().prepare(job(GIVEN, is_read=True, known=None)))
        while "encode" not in stages.ended:
            await asyncio.sleep(0)
        assert stages.begun == ["condition", "find", "encode"]
        preparing.cancel()
        await asyncio.wait([preparing])

    asyncio.run(steps())
    assert stages.calls["condition"].cancelled


def test_without_a_parser_only_the_category_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked_of_find: list[Any] = []

    def find(request: EditRequest, choice: CategoryChoice, shape: tuple[int, int], reading: None) -> Found:
        asked_of_find.append((request.prompt, choice, shape, reading))
        return found(choice)

    monkeypatch.setattr(preparation, "find", find)
    stages = Stages()
    made = prepared(stages, job(None, is_read=False, known=None))
    assert sorted(stages.begun) == ["choose", "condition", "encode"]
    assert asked_of_find == [("a red dress", CHOSEN, SHAPE, None)]
    assert stages.arguments["encode"][1] is made.found
    assert list(made.timings_s) == ["category", "condition", "encode"]


@pytest.mark.parametrize(("fails", "never_begun"), [("choose", "condition"), ("find", "encode")])
def test_a_stage_that_refuses_ends_the_edit(fails: str, never_begun: str) -> None:
    stages = Stages(fails=fails, hangs="condition")
    with pytest.raises(InvalidRequest, match=fails):
        prepared(stages, job(None, is_read=True, known=None))
    assert never_begun not in stages.begun
    if "condition" in stages.calls:
        assert stages.calls["condition"].cancelled


@pytest.mark.parametrize("hangs", ["choose", "find", "condition", "encode"])
def test_a_caller_who_leaves_ends_the_calls(hangs: str) -> None:
    stages = Stages(hangs=hangs)

    async def leave() -> None:
        preparing = asyncio.create_task(stages.preparer().prepare(job(None, is_read=True, known=None)))
        while hangs not in stages.begun:
            await asyncio.sleep(0)
        preparing.cancel()
        await asyncio.wait([preparing])
        assert preparing.cancelled()

    asyncio.run(leave())
    assert stages.calls[hangs].cancelled


def test_a_request_takes_on_the_category_that_was_chosen() -> None:
    request = EditRequest(image=photo(), prompt="a red dress")
    assert with_category(request, CHOSEN).category == "upper_body"
    given = EditRequest(image=photo(), prompt="a red dress", category="dresses")
    assert with_category(given, GIVEN) is given
