"""What is not done, and the status it is answered with."""

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
    "gone": 499,  # the client hung up: nobody reads this
    "crash": 500,
    "upstream": 502,
    "no_answer": 503,
    "draining": 503,
    "timeout": 504,
}
MEANING = {
    400: "The request is not what the schema says.",
    401: "The key is missing or wrong.",
    403: "The Host or Origin header is not of this server.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body is neither multipart/form-data nor application/json.",
    422: "The picture, a box or a task cannot be used, for the reason given.",
    429: "Too many requests, of this client or of all: come back after Retry-After seconds.",
    500: "A fault of the gateway. Its log has more under the request's id.",
    502: "The model's server does not answer as it should.",
    503: "No answer now: the gateway stops, or the model's server gave none.",
    504: "The model took too long.",
}


class Refusal(Exception):  # noqa: N818 (not always an error: a gateway may be busy)
    """An answer that is no analysis. `reason` is one of STATUS, the message is for the client."""

    def __init__(
        self, reason: str, message: str, *, retry_after_s: int | None = None, close: bool = False
    ) -> None:
        super().__init__(message)
        self.reason, self.status, self.message = reason, STATUS[reason], message
        self.retry_after_s, self.close = retry_after_s, close

    @property
    def headers(self) -> Mapping[str, str]:
        found = {}
        if self.retry_after_s is not None:
            found["Retry-After"] = str(self.retry_after_s)
        if self.status == 401:
            found["WWW-Authenticate"] = "Bearer"
        if self.close:
            found["Connection"] = "close"
        return found
