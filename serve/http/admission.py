"""Limits the edits and bodies that one ingress replica has at a time, in all and for each API key.

The ingress counts an edit from when its body has been read, so that a slow sender does not keep others out.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from fashion_rag.errors import Overloaded
from serve import metrics
from serve.config import IngressSettings


class RateLimited(Overloaded):
    """The API key has as many edits in flight as it may have."""


class Admission:
    """Counts the bodies that are being read and the edits in flight, and refuses what is beyond the limits.

    `settings` may be replaced at any time; what is counted already stays. The bodies and the edits of one API key count
    together, so that its slow senders are at the expense of that key alone.
    """

    def __init__(self, settings: IngressSettings) -> None:
        self.settings = settings
        self.num_edits = 0
        self.num_uploads = 0
        self._count_by_key: Counter[str] = Counter()

    @contextmanager
    def upload(self, key_name: str | None) -> Iterator[None]:
        """Count one body while the block reads it.

        key_name: the name of the caller's API key, where there are keys. Raises Overloaded or RateLimited if there are
        too many bodies, or so many edits that the body would be read in vain.
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
        """Count `num_edits` while the block runs.

        key_name: the name of the caller's API key, where there are keys. Raises Overloaded or RateLimited if there are
        too many edits.
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
            self._count_by_key[key_name] += number

    def _check(self, key_name: str | None, num_edits: int) -> None:
        """Raise Overloaded or RateLimited unless so many edits more may come in."""
        settings = self.settings
        if key_name is not None and self._count_by_key[key_name] + num_edits > settings.max_edits_per_key:
            message = f"the API key {key_name} may have {settings.max_edits_per_key} edits in flight"
            raise _refused(RateLimited(message, settings.retry_after_s))
        if self.num_edits + num_edits > settings.max_edits:
            message = f"{self.num_edits} edits are in flight; there may be {settings.max_edits}"
            raise _refused(Overloaded(message, settings.retry_after_s))


def _refused(error: Overloaded) -> Overloaded:
    """Count a refusal, and return its error."""
    metrics.refusals().inc(tags={"stage": "ingress"})
    return error
