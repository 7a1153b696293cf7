"""The bundle that training starts from, completed where it lacks a part, and the trained bundle. Called by `run`."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import torch
from torch import nn
from transformers import CLIPVisionConfig

from fashion_rag.artifacts import MANIFEST_FILE, joint_sha256, read_config, write_json
from fashion_rag.atomic_files import written_aside
from fashion_rag.bundle import OPTIONAL_WEIGHTS, STUDENT, WEIGHTS, Bundle
from fashion_rag.manifest import Manifest, Student
from fashion_rag.models.adapter import InversionAdapter, new_adapter, new_adapter_sizes
from fashion_rag.models.pretrained import CONFIG_FILE, read_adapter, read_unet, read_vision_encoder
from fashion_rag.models.unet import IN_CHANNELS, widen_conv_in
from fashion_rag.weights import hollow, no_keys, write_state


def open_base(path: Path, work: Path, seed: int) -> Bundle:
    """Return the bundle in `path` if it is whole, else a copy in `work` that has what the bundle lacks.

    The copy is made once, by one process at a time. A UNet that does not have 27 input channels, such as Stable
    Diffusion 2 inpainting's with 9, is widened. A missing inversion adapter is replaced by a new one with random
    weights from `seed`. Raises ArtifactError for anything else that is missing or does not fit.
    """
    unet, adapter = path / "unet", path / "inversion_adapter"
    is_narrow = read_config(unet / CONFIG_FILE).get("in_channels") != IN_CHANNELS
    if not is_narrow and adapter.exists():
        return Bundle.open(path)
    weights = [path / part / name for part, name in WEIGHTS.items() if (path / part).exists()]
    digest = joint_sha256(weights)
    completed = work / f"base-{digest[:16]}-{seed}"
    if not completed.exists():
        with written_aside(completed) as new:
            shutil.copytree(path, new, dirs_exist_ok=True)
            if is_narrow:
                _widen(new / "unet")
            if not adapter.exists():
                _write_new_adapter(new, seed)
    return Bundle.open(completed)


def _widen(folder: Path) -> None:
    """Give the UNet in `folder` the input channels that it lacks."""
    unet = read_unet(folder)
    widen_conv_in(unet)
    unet.save_config(folder)
    write_state(folder / WEIGHTS["unet"], unet.state_dict())


def adapter_of(path: Path) -> InversionAdapter:
    """Return the adapter that training the bundle in `path` starts from, without weights, for its sizes alone."""
    vision_config = _vision_config(path)
    if (path / "inversion_adapter").exists():
        return read_adapter(path / "inversion_adapter", vision_config, wanted=no_keys)
    with hollow():
        return InversionAdapter(vision_config, **new_adapter_sizes(vision_config, *_text_sizes(path)))


def _vision_config(path: Path) -> CLIPVisionConfig:
    return read_vision_encoder(path / "vision_encoder", wanted=no_keys).config


def _text_sizes(path: Path) -> tuple[int, int]:
    """Return the text width and the number of pseudo-words of the bundle in `path`."""
    text_width: int = read_config(path / "text_encoder" / CONFIG_FILE)["hidden_size"]
    return text_width, Manifest.read(path / MANIFEST_FILE).num_pseudo_words


def _write_new_adapter(folder: Path, seed: int) -> None:
    vision_config, text_sizes = _vision_config(folder), _text_sizes(folder)
    adapter = new_adapter(vision_config, *text_sizes, seed)
    (folder / "inversion_adapter").mkdir()
    write_json(folder / "inversion_adapter" / CONFIG_FILE, new_adapter_sizes(vision_config, *text_sizes))
    write_state(folder / "inversion_adapter" / WEIGHTS["inversion_adapter"], adapter.state_dict())


def write_student(
    teacher: Bundle, student: nn.Module, out: Path, num_steps: int, dtype: torch.dtype = torch.float32
) -> Bundle:
    """Write the teacher's bundle with its student, a `UNet`, to `out`, and return it.

    All files but the manifest and those of the student are the teacher's to the byte, so that its catalogues, and
    networks that were compiled for it, can still be used.
    """
    with written_aside(out) as new:
        shutil.copytree(teacher.path, new, dirs_exist_ok=True)
        (new / STUDENT).mkdir(exist_ok=True)
        shutil.copyfile(teacher.path / "unet" / CONFIG_FILE, new / STUDENT / CONFIG_FILE)
        state = {name.removeprefix("unet."): tensor for name, tensor in student.state_dict().items()}
        write_state(new / STUDENT / OPTIONAL_WEIGHTS[STUDENT], state, dtype)
        described = Student(teacher.fingerprint("unet"), num_steps)
        dataclasses.replace(teacher.manifest, student=described).write(new / MANIFEST_FILE)
    return Bundle.open(out)


def write_trained(
    base: Bundle, network: nn.ModuleDict, out: Path, name: str, dtype: torch.dtype = torch.float32
) -> Bundle:
    """Write the trained bundle to `out`, and return it.

    Its UNet and adapter come from `network`, as `objective.networks` makes it, and are stored as `dtype`. All other
    files are copied from `base`, so that they are the same to the byte and catalogues built with `base` can still be
    searched. A student of the base is left out, because it is none of the new UNet.
    """
    with written_aside(out) as new:
        shutil.copytree(base.path, new, dirs_exist_ok=True, ignore=shutil.ignore_patterns(STUDENT))
        for part, key in (("unet", "unet.unet."), ("inversion_adapter", "adapter.")):
            state = network.state_dict()
            trained = {full.removeprefix(key): tensor for full, tensor in state.items() if full.startswith(key)}
            write_state(new / part / WEIGHTS[part], trained, dtype)
        dataclasses.replace(base.manifest, name=name, untrained=False, student=None).write(new / MANIFEST_FILE)
    return Bundle.open(out)
