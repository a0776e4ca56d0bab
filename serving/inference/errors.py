"""Why a request has no answer. `error_handlers` says how each is answered over HTTP."""

from collections.abc import Mapping

SHOWN = 200  # characters of a text that may come from a request


class RequestRejectedError(Exception):
    """A request that cannot be answered as it is: status and detail of the answer, and the reason that is counted.

    Args:
        index: of the image or text that is to blame, where one is; the detail begins with its number.
        code: default: by reason and status.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        reason: str = "",
        *,
        headers: Mapping[str, str] | None = None,
        index: int | None = None,
        code: str = "",
    ) -> None:
        self.code = code
        self.status, self.detail, self.reason, self.headers, self.index = status, detail, reason, dict(headers or {}), index
        super().__init__(detail)


class QueueFullError(Exception):
    """As much waits as may wait, what waited did so for too long, or the server is ending: try again in a moment."""

    def __init__(self, why: str = "As much waits already as may wait") -> None:
        self.why = why
        super().__init__(why)


class ClientGoneError(Exception):
    """The client hung up before it had sent the whole request."""


class NonFiniteOutputError(Exception):
    """A model computed NaN or infinity. No answer is made of that."""


class UnknownAnswerError(Exception):
    """Feedback about an answer that this replica does not remember."""


def shortened(text: str, most: int = SHOWN) -> str:
    """A text as an answer or a log may show it."""
    return text if len(text) <= most else f"{text[:most]}… ({len(text):,} characters)"
