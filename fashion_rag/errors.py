"""Every exception type of the project. `serve/http/errors.py` maps each to its HTTP status."""


class FashionRAGError(Exception):
    """Base of all errors that this project raises on purpose."""


class InvalidRequest(FashionRAGError):
    """The caller sent something that cannot be served; the message names field, value and rule.

    code: the kind of fault, for programs: `invalid_value`, or a narrower one of OpenAI's API, such as
    `missing_required_parameter`, `unknown_parameter`, `unsupported_value` and `model_not_found`.
    """

    def __init__(self, field: str, value: object, rule: str, code: str = "invalid_value") -> None:
        # All arguments, so that the error survives pickling on its way from a replica.
        super().__init__(field, value, rule, code)
        self.field = field
        self.value = value
        self.rule = rule
        self.code = code

    def __str__(self) -> str:
        try:
            shown = repr(self.value)
        except ValueError:
            # Python prints no whole number of more than 4300 digits.
            shown = "a number of thousands of digits"
        if len(shown) > 80:
            shown = shown[:77] + "..."
        return f"{self.field}: got {shown}; {self.rule}"


class NotFound(FashionRAGError):
    """The address names something that this server does not have; `field` is the part of the address that names it."""

    def __init__(self, field: str, message: str, code: str = "not_found") -> None:
        super().__init__(field, message, code)
        self.field = field
        self.message = message
        self.code = code

    def __str__(self) -> str:
        return self.message


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
