"""All exception types of the project. `serve/http/errors.py` maps each of them to its HTTP status."""


class FashionRAGError(Exception):
    """The base class of all errors that this project raises on purpose."""


class InvalidRequest(FashionRAGError):
    """An error for a request that cannot be served. The message names field, value and rule.

    code: the kind of fault, for programs. It is `invalid_value`, or a narrower code of OpenAI's API, such as
    `missing_required_parameter`, `unknown_parameter`, `unsupported_value` or `model_not_found`.
    """

    def __init__(self, field: str, value: object, rule: str, code: str = "invalid_value") -> None:
        # Given all arguments, the error survives pickling on its way from a replica.
        super().__init__(field, value, rule, code)
        self.field = field
        self.value = value
        self.rule = rule
        self.code = code

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.field}: is missing; {self.rule}"
        try:
            shown = repr(self.value)
        except ValueError:
            # Python does not print whole numbers of more than 4300 digits.
            shown = "a number of thousands of digits"
        if len(shown) > 80:
            shown = shown[:77] + "..."
        return f"{self.field}: got {shown}; {self.rule}"


class NotFound(FashionRAGError):
    """An error for an address that names something this server does not have.

    field: the part of the address that names it. code: the kind of fault, for programs.
    """

    def __init__(self, field: str, message: str, code: str = "not_found") -> None:
        super().__init__(field, message, code)
        self.field = field
        self.message = message
        self.code = code

    def __str__(self) -> str:
        return self.message


class Overloaded(FashionRAGError):
    """An error for a request that finds the service full. The caller may try again after `retry_after_s` seconds."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message, retry_after_s)
        self.message = message
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return self.message


class DeadlineExceeded(FashionRAGError):
    """An error for an edit that is not, or cannot be, finished before its deadline."""


class ArtifactError(FashionRAGError):
    """An error for a bundle, checkpoint, engine or index on disk that is missing, damaged or of the wrong kind."""
