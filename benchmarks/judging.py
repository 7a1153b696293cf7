"""What the benchmarks of the demo model's pictures share: agreement by case, and the change against another set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fashion_rag.catalogue.retrieval_encoder import RetrievalEncoder
from fashion_rag.demo.model.evaluate import HeldOutCase
from fashion_rag.demo.world.agreement import read_edit
from fashion_rag.demo.world.draw import render_garment

SEED = 7
RESAMPLES = 2000
MEASURES = ("colour", "pattern", "clip_i")


def judge(
    pictures: Sequence[NDArray[np.uint8]], cases: Sequence[HeldOutCase], encoder: RetrievalEncoder
) -> dict[str, Any]:
    """Return, as a list over the cases, whether colour and pattern agree with the target, and CLIP-I.

    pictures: the edited photo of each case, uint8 [H, W, 3]. "patterned" says which targets have a pattern.
    """
    edits, shop = [], []
    for picture, case in zip(pictures, cases, strict=True):
        edits.append(read_edit(picture, case.request.mask, case.person, case.target))
        shop.append(Image.fromarray(render_garment(case.target, (picture.shape[0], picture.shape[1]))))
    likeness = (encoder.encode_images([edit.cut_out for edit in edits]) * encoder.encode_images(shop)).sum(axis=1)
    return {
        "colour": [edit.has_colour for edit in edits],
        "pattern": [edit.reading.pattern == case.target.pattern for edit, case in zip(edits, cases, strict=True)],
        "clip_i": likeness.tolist(),
        "patterned": [case.target.pattern != "plain" for case in cases],
    }


def changes(judged: Mapping[str, Any], plain: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return for each of MEASURES its mean, its change against `plain`, and the change's 95 % interval over the cases.

    judged, plain: what `judge` returns for the same cases. The pattern is that of patterned targets only, because the
    pattern of plain garments says little.
    """
    rng = np.random.default_rng(SEED)
    patterned = np.array(judged["patterned"])
    summary = {}
    for name in MEASURES:
        chosen = patterned if name == "pattern" else np.ones_like(patterned)
        own = np.array(judged[name], dtype=float)[chosen]
        differences = own - np.array(plain[name], dtype=float)[chosen]
        means = rng.choice(differences, (RESAMPLES, len(differences))).mean(axis=1)
        interval = [float(bound) for bound in np.percentile(means, [2.5, 97.5])]
        summary[name] = {"mean": float(own.mean()), "change": float(differences.mean()), "interval": interval}
    return summary
