"""Every exception type of the project. `serve/errors.py` maps each to its HTTP status."""


class FashionRAGError(Exception):
    """Base of all errors that this project raises on purpose."""


class InvalidRequest(FashionRAGError):
    """The caller sent something that cannot be served; the message names field, value and rule."""

    def __init__(self, field: str, value: object, rule: str) -> None:
        # All arguments, so that the error survives pickling on its way from a replica.
        super().__init__(field, value, rule)
        self.field = field
        self.value = value
        self.rule = rule

    def __str__(self) -> str:
        shown = repr(self.value)
        if len(shown) > 80:
            shown = shown[:77] + "..."
        return f"{self.field}: got {shown}; {self.rule}"


class Overloaded(FashionRAGError):
    """The service is full; the caller may try again after `retry_after_s` seconds."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message, retry_after_s)
        self.message = message
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return self.message


class DeadlineExceeded(FashionRAGError):
    """The edit cannot, or could not, be finished before its deadline."""


class ArtifactError(FashionRAGError):
    """A bundle, checkpoint, engine or index on disk is missing, damaged or of the wrong kind."""
