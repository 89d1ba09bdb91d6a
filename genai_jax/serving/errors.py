"""What a client is told when it does not get what it asked for: OpenAI's error object."""

from typing import Any


class ApiError(Exception):
    """A request that is not answered.

    Attributes:
        message: The rule, what was received, and a fix.
        status: Of HTTP.
        param: The field at fault, if one is.
        code: A name for the fault, where OpenAI has one.
        retry_after: Seconds after which it may be worth asking again; 0 says nothing of it.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        retry_after: int = 0,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.param = param
        self.code = code
        self.retry_after = retry_after

    def as_object(self) -> dict[str, Any]:
        """Give the body of the answer."""
        kind = _KINDS.get(self.status, "invalid_request_error")
        return {
            "error": {
                "message": self.message,
                "type": "server_error" if self.status >= 500 else kind,
                "param": self.param,
                "code": self.code,
            }
        }


_KINDS = {401: "authentication_error", 429: "rate_limit_error"}


def server_error() -> ApiError:
    """Say that it is our fault, and nothing of what went wrong: that stands in the log."""
    return ApiError(
        "the server failed; its log says why. Other requests may still be answered.",
        status=500,
        code="internal_error",
    )


def shutting_down() -> ApiError:
    """Say that nothing more is answered."""
    return ApiError(
        "the server is shutting down, and has ended what was under way.",
        status=503,
        code="shutting_down",
        retry_after=10,
    )


def timed_out(seconds: float) -> ApiError:
    """Say that time ran out before there was anything to answer with."""
    return ApiError(
        f"a request must be answered within {seconds:g} s, and nothing was written by then. Ask "
        "again when fewer others do, or for less.",
        status=503,
        code="timeout",
        retry_after=5,
    )
