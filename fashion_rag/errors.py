"""Every exception type of the project. `serve/app.py` maps each to its HTTP status."""


class FashionRAGError(Exception):
    """Base of all errors that this project raises on purpose."""


class InvalidRequest(FashionRAGError):
    """The caller sent something that cannot be served; the message names field, value and rule."""

    def __init__(self, field: str, value: object, rule: str) -> None:
        shown = repr(value)
        if len(shown) > 80:
            shown = shown[:77] + "..."
        super().__init__(f"{field}: got {shown}; {rule}")
        self.field = field
        self.rule = rule


class Overloaded(FashionRAGError):
    """The service is full; the caller may try again after `retry_after_s` seconds."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(FashionRAGError):
    """The edit cannot, or could not, be finished before its deadline."""


class ArtifactError(FashionRAGError):
    """A bundle, checkpoint, engine or index on disk is missing, damaged or of the wrong kind."""
