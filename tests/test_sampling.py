"""Holds the options of denoising to their order: what is asked for, then the preset, then the bundle."""

from dataclasses import asdict, replace

import pytest

from fashion_rag.errors import InvalidRequest
from fashion_rag.manifest import Manifest, Student
from fashion_rag.request import PLAIN, Shortcuts, Solver
from fashion_rag.sampling import SAMPLING_OPTIONS, Preset, Sampling, resolve_sampling

MANIFEST = Manifest("toy", image_size=(64, 48), num_inference_steps=7, guidance_scale=2.5)
QUICK = Preset(4, shortcuts=Shortcuts(Solver.UNIPC, guidance_end=0.6))


def test_what_is_not_given_is_the_presets_and_else_the_bundles() -> None:
    nothing = dict.fromkeys(SAMPLING_OPTIONS)
    assert resolve_sampling(nothing, MANIFEST) == Sampling(7, 2.5, PLAIN)
    assert resolve_sampling(nothing, MANIFEST, QUICK) == Sampling(4, 2.5, QUICK.shortcuts)


def test_what_is_given_comes_first_whatever_it_is() -> None:
    given = {"steps": 9, "guidance_scale": 0.0} | asdict(PLAIN)
    assert resolve_sampling(given, MANIFEST, QUICK) == Sampling(9, 0.0, PLAIN)
    # What EditRequest is to refuse is handed on to it.
    assert resolve_sampling({"steps": 0}, MANIFEST).num_inference_steps == 0


def test_what_does_not_fit_the_preset_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"guidance_end: got 0\.6"):
        resolve_sampling({"guidance_start": 0.7}, MANIFEST, QUICK)


def test_the_student_has_steps_and_guidance_of_its_own() -> None:
    turbo, with_student = Shortcuts(student=True), replace(MANIFEST, student=Student("0" * 64, num_inference_steps=3))
    assert resolve_sampling({"student": True}, with_student) == Sampling(3, 1.0, turbo)
    assert resolve_sampling({}, with_student, Preset(shortcuts=turbo)) == Sampling(3, 1.0, turbo)
    assert resolve_sampling({"steps": 8}, with_student, Preset(shortcuts=turbo)) == Sampling(8, 1.0, turbo)
    assert resolve_sampling({}, with_student) == Sampling(7, 2.5, PLAIN)
    with pytest.raises(InvalidRequest, match="student: got True; needs a bundle"):
        resolve_sampling({"student": True}, MANIFEST)
    with pytest.raises(InvalidRequest, match=r"solver: got .*unipc.*; must be ddim"):
        resolve_sampling({"student": True}, with_student, QUICK)


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(KeyError, match="solvers"):
        resolve_sampling({"solvers": "ddim"}, MANIFEST)
