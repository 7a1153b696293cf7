"""How many edits may be in one ingress replica, over all and for each API key. The ingress holds places here."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from fashion_rag.errors import Overloaded
from serve import metrics
from serve.config import IngressSettings


class RateLimited(Overloaded):
    """The API key has as many edits in flight as it may."""


class Door:
    """Counts the edits inside. `settings` may be replaced at any time; whoever is inside stays."""

    def __init__(self, settings: IngressSettings) -> None:
        self.settings = settings
        self.num_edits = 0
        self._of_key: Counter[str] = Counter()

    @contextmanager
    def hold(self, key_name: str | None, num_edits: int) -> Iterator[None]:
        """Counts `num_edits` while the block runs. Raises Overloaded, or RateLimited, where they are too many.

        key_name: whose they are, where there are API keys.
        """
        self._check(key_name, num_edits)
        self.num_edits += num_edits
        if key_name is not None:
            self._of_key[key_name] += num_edits
        try:
            yield
        finally:
            self.num_edits -= num_edits
            if key_name is not None:
                self._of_key[key_name] -= num_edits

    def _check(self, key_name: str | None, num_edits: int) -> None:
        settings = self.settings
        if key_name is not None and self._of_key[key_name] + num_edits > settings.max_edits_per_key:
            message = f"the API key {key_name} may have {settings.max_edits_per_key} edits in flight"
            raise _refused(RateLimited(message, settings.retry_after_s))
        if self.num_edits + num_edits > settings.max_edits:
            message = f"{self.num_edits} edits are in flight; there may be {settings.max_edits}"
            raise _refused(Overloaded(message, settings.retry_after_s))


def _refused(error: Overloaded) -> Overloaded:
    metrics.refusals().inc(tags={"stage": "ingress"})
    return error
