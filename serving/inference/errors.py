"""Why a request has no answer. `error_handlers` says how each is answered over HTTP."""


class RequestRejectedError(Exception):
    """A request that cannot be answered as it is: status and detail of the answer, and the reason that is counted."""

    def __init__(self, status: int, detail: str, reason: str = "") -> None:
        self.status, self.detail, self.reason = status, detail, reason
        super().__init__(detail)


class QueueFullError(Exception):
    """As many jobs wait for the inference thread as may wait, or it is ending."""


class NonFiniteOutputError(Exception):
    """A model computed NaN or infinity. No answer is made of that."""


class UnknownAnswerError(Exception):
    """Feedback about an answer that this replica does not remember."""
