"""Error reasons and their HTTP status codes."""

from __future__ import annotations

from collections.abc import Mapping

STATUS = {
    "malformed": 400,
    "unauthorized": 401,
    "host": 403,
    "not_found": 404,
    "method": 405,
    "slow": 408,
    "too_large": 413,
    "media_type": 415,
    "link": 422,
    "picture": 422,
    "box": 422,
    "task": 422,
    "detector": 422,
    "model": 422,
    "rate": 429,
    "busy": 429,
    "gone": 499,  # the client has disconnected: this is only logged
    "crash": 500,
    "upstream": 502,
    "no_answer": 503,
    "draining": 503,
    "timeout": 504,
}
DESCRIPTIONS = {
    400: "The request does not match the schema.",
    401: "The key is missing or wrong.",
    403: "The Host or Origin header does not belong to this server.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body is neither multipart/form-data nor application/json.",
    422: "The picture, a box or a task cannot be used, for the reason given.",
    429: "Too many requests, of this client or in total: retry after Retry-After seconds.",
    500: "An internal error. The gateway's log has details under the request's id.",
    502: "The model's server returned an unusable reply.",
    503: "No answer now: the gateway is shutting down, or the model's server gave none.",
    504: "The model took too long.",
}


class RequestError(Exception):
    """An error response.

    Args:
        reason: A key of STATUS.
        message: Cause and fix, for the client.
        retry_after_s: The Retry-After header.
        close: Whether the connection is closed.
    """

    def __init__(
        self, reason: str, message: str, *, retry_after_s: int | None = None, close: bool = False
    ) -> None:
        super().__init__(message)
        self.reason, self.status, self.message = reason, STATUS[reason], message
        self.retry_after_s, self.close = retry_after_s, close

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers of the response."""
        headers = {}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(self.retry_after_s)
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if self.close:
            headers["Connection"] = "close"
        return headers
