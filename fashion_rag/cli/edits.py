"""The command that edits a photo without a server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fashion_rag.cli.base import (
    BundleOption,
    CacheIntervalOption,
    DeviceOption,
    GuidanceEndOption,
    GuidanceStartOption,
    GuidedOption,
    SolverOption,
    StudentOption,
    UntrainedOption,
    guided_part,
    progress,
)
from fashion_rag.cli.checks import (
    PICTURE_SUFFIXES,
    check_bundle,
    check_catalogue,
    check_category,
    check_device,
    check_file,
    check_out_file,
)
from fashion_rag.errors import InvalidRequest
from fashion_rag.manifest import DEMO_BUNDLE, has_parser
from fashion_rag.request import MAX_GARMENTS, PLAIN, EditRequest, EditResult, Template
from fashion_rag.sampling import resolve_sampling

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fashion_rag.data.image import OpenedPhoto


def edit(
    image: Annotated[Path, typer.Option(help="Photo of the person.")],
    prompt: Annotated[str, typer.Option(help="What to wear, in a shopper's words.")],
    out: Annotated[Path, typer.Option(help="Picture to write.")] = Path("edited.png"),
    mask: Annotated[
        Path | None,
        typer.Option(
            help="Picture of the photo's size; white is repainted.", show_default="what the bundle's parser finds"
        ),
    ] = None,
    mask_type: Annotated[
        Literal["bounding_box", "mask"], typer.Option(help="Without --mask: find the garment's box, or its outline.")
    ] = "bounding_box",
    save_mask: Annotated[Path | None, typer.Option(help="Picture to write the mask to.")] = None,
    category: Annotated[
        str | None,
        typer.Option(help="dresses, upper_body or lower_body.", show_default="what the prompt speaks of"),
    ] = None,
    catalogue: Annotated[str | None, typer.Option(help="Where to look for garments.")] = None,
    num_garments: Annotated[
        int | None, typer.Option(help="How many garments to look for, 0 to 3.", show_default="1 in a catalogue, else 0")
    ] = None,
    garment: Annotated[list[Path] | None, typer.Option(help="A garment's picture instead; may be repeated.")] = None,
    keypoints: Annotated[
        Path | None,
        typer.Option(
            help="OpenPose points as JSON, see the README.", show_default="what the bundle's pose estimator finds"
        ),
    ] = None,
    template: Annotated[Template, typer.Option(help="How text and garments make the prompt.")] = Template.GARMENTS,
    seed: Annotated[int, typer.Option(help="Same seed, same picture.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.", show_default="the bundle's")] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="Classifier-free guidance.", show_default="the bundle's")
    ] = None,
    solver: SolverOption = PLAIN.solver,
    guidance_start: GuidanceStartOption = PLAIN.guidance_start,
    guidance_end: GuidanceEndOption = PLAIN.guidance_end,
    guided: GuidedOption = None,
    cache_interval: CacheIntervalOption = PLAIN.cache_interval,
    student: StudentOption = PLAIN.student,
    device: DeviceOption = "cpu",
    bundle: BundleOption = DEMO_BUNDLE,
    untrained: UntrainedOption = False,
) -> None:
    """Edit one photo here, without a server. A photo and a prompt are enough if the bundle has a human parser."""
    garments = garment or []
    if category is not None:
        check_category("category", category)
    for option, path in (("image", image), ("mask", mask), ("keypoints", keypoints)):
        check_file(option, path)
    for path in garments:
        check_file("garment", path)
    check_out_file("out", out, PICTURE_SUFFIXES)
    check_out_file("save-mask", save_mask, PICTURE_SUFFIXES)
    sampling_options = {
        "steps": steps,
        "guidance_scale": guidance_scale,
        "solver": solver,
        "cache_interval": cache_interval,
        "student": student,
    } | guided_part(guided, guidance_start, guidance_end)
    manifest = check_bundle(bundle)
    manifest.check_trained(bundle, untrained)
    sampling = resolve_sampling(sampling_options, manifest)
    if num_garments is None:
        num_garments = 1 if catalogue else 0
    if not garments and catalogue is None and num_garments and template is not Template.CAPTION:
        raise InvalidRequest("num_garments", num_garments, "must be 0 without --catalogue or --garment")
    if len(garments) > MAX_GARMENTS:
        raise InvalidRequest("garment", len(garments), f"must be given at most {MAX_GARMENTS} times")
    check_catalogue(catalogue)

    from fashion_rag.data.image import open_image, open_photo

    photo = open_photo(image)
    area = _mask(mask, photo, bundle)

    from fashion_rag.catalogue.garments import Garment
    from fashion_rag.data.pose import parse_keypoints
    from fashion_rag.pipeline import Pipeline

    check_device(device)
    request = EditRequest(
        image=photo.pixels,
        mask=area,
        mask_type=mask_type,
        prompt=prompt,
        category=category,
        keypoints=parse_keypoints(keypoints.read_text(), photo.pixels.shape[:2]) if keypoints else None,
        num_garments=num_garments,
        template=template,
        seed=seed,
        num_inference_steps=sampling.num_inference_steps,
        guidance_scale=sampling.guidance_scale,
        shortcuts=sampling.shortcuts,
        icc_profile=photo.icc_profile,
    )
    given = []
    for path in garments:
        given.append(Garment(path.stem, category or "", "", path, opened=open_image(path, field="garment")))
    pipeline = Pipeline.load(bundle, None if given else catalogue, device)
    with progress("editing", request.num_inference_steps) as advance:
        result = pipeline(request, given or None, advance)
    _write(result, out, save_mask)


def _mask(mask: Path | None, photo: OpenedPhoto, bundle: Path) -> NDArray[np.uint8] | None:
    """Return the mask in the file, else the transparent part of the photo, else None, for a parser to find it.

    Raises InvalidRequest if there is nothing, and the bundle has no parser.
    """
    from fashion_rag.data.image import open_mask

    if mask is not None:
        return open_mask(mask)
    if photo.hole is None and not has_parser(bundle):
        rule = "must be given, or the photo be transparent where to repaint: the bundle has no human parser to find it"
        raise InvalidRequest("mask", None, rule, "missing_required_parameter")
    return photo.hole


def _write(result: EditResult, out: Path, save_mask: Path | None) -> None:
    """Write the edited photo, and the mask if a file for it is given, and print what the photo was made with."""
    import numpy as np
    from PIL import Image

    out.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"icc_profile": result.icc_profile} if result.icc_profile else {}
    Image.fromarray(result.image).save(out, **options)
    if save_mask is not None:
        save_mask.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.where(result.mask, 255, 0).astype(np.uint8)).save(save_mask)
    for warning in result.warnings:
        typer.echo(f"warning: {warning}", err=True)
    category = result.category
    if result.category_confidence is not None:
        category += f" ({result.category_confidence:.0%} sure)"
    garments = ", ".join(result.garment_ids) or "none"
    typer.echo(f"{out}: category {category}, garments {garments}, seed {result.seed}")
