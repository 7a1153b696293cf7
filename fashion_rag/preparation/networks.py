"""The networks of a bundle that a preparation needs. They are loaded where they are used, and not before."""

from __future__ import annotations

from functools import partial

from fashion_rag.bundle import Bundle
from fashion_rag.catalogue.category import CategoryChooser, best_fit, category_from_words
from fashion_rag.errors import InvalidRequest
from fashion_rag.person.reading import read_photos
from fashion_rag.preparation.pictures import Read
from fashion_rag.preparation.run import Networks


def networks_of(bundle: Bundle, device: str) -> Networks:
    """Return the networks of a bundle, which must have a human parser and a pose estimator.

    Raises InvalidRequest for a bundle without.
    """
    if not bundle.has_pose_estimator:
        rule = "must have a human parser and a pose estimator; `fashion-rag bundle add` puts them in"
        raise InvalidRequest("bundle", str(bundle.path), rule)
    return Networks(
        load=partial(load_reader, bundle, device),
        fingerprint=bundle.fingerprint("parser", "pose"),
        choose_category=WordsChooser(bundle),
    )


def load_reader(bundle: Bundle, device: str) -> Read:
    """Return what reads photos, with the networks of the bundle on a device."""
    parser, pose_estimator = bundle.load_parser(device), bundle.load_pose_estimator(device)
    return partial(read_photos, parser, pose_estimator, shape=bundle.manifest.image_size)


class WordsChooser:
    """Chooses the category of a caption by its words. The encoder is loaded for the first caption that needs it."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self._chooser: CategoryChooser | None = None

    def __call__(self, caption: str) -> str:
        """Return the category of a caption. Raises InvalidRequest, naming the candidates, if it is not clear."""
        named = category_from_words(caption)
        if named is not None:
            return named
        if self._chooser is None:
            self._chooser = CategoryChooser(self.bundle.load_retrieval_encoder())
        return best_fit(self._chooser.likeness([caption])[0]).category
