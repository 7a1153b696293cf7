"""How many edits, and bodies on their way in, one ingress replica may have, over all and for each API key.

The ingress holds places here. The place of an edit is taken when its body is here, so that slow senders take none.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from fashion_rag.errors import Overloaded
from serve import metrics
from serve.config import IngressSettings


class RateLimited(Overloaded):
    """The API key has as many edits in flight as it may."""


class Admission:
    """Counts the bodies that are being read and the edits inside. `settings` may be replaced at any time; whoever is
    inside stays.

    Of one API key both count together: its slow senders take places from itself alone.
    """

    def __init__(self, settings: IngressSettings) -> None:
        self.settings = settings
        self.num_edits = 0
        self.num_uploads = 0
        self._of_key: Counter[str] = Counter()

    @contextmanager
    def upload(self, key_name: str | None) -> Iterator[None]:
        """Count one body while the block reads it.

        Raises Overloaded, or RateLimited, where bodies or edits are too many: what would be refused is not read.
        """
        self._check(key_name, 1)
        if self.num_uploads >= self.settings.max_uploads:
            message = f"{self.num_uploads} bodies are being read; there may be {self.settings.max_uploads}"
            raise _refused(Overloaded(message, self.settings.retry_after_s))
        self.num_uploads += 1
        self._count(key_name, 1)
        try:
            yield
        finally:
            self.num_uploads -= 1
            self._count(key_name, -1)

    @contextmanager
    def hold(self, key_name: str | None, num_edits: int) -> Iterator[None]:
        """Count `num_edits` while the block runs. Raises Overloaded, or RateLimited, where they are too many.

        key_name: whose they are, where there are API keys.
        """
        self._check(key_name, num_edits)
        self.num_edits += num_edits
        self._count(key_name, num_edits)
        try:
            yield
        finally:
            self.num_edits -= num_edits
            self._count(key_name, -num_edits)

    def _count(self, key_name: str | None, number: int) -> None:
        if key_name is not None:
            self._of_key[key_name] += number

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
