"""The clipft server, asked over HTTP: every request is a method, every answer a record."""

import time
from collections.abc import Mapping, Sequence
from typing import TypeVar
from urllib.parse import quote

import httpx
from pydantic import TypeAdapter, ValidationError

from ..contracts.drift import Capture, DriftSnapshot, WindowRows
from ..contracts.serving import (
    CaptureLabel,
    CaptureShare,
    LoadResult,
    ModelInfo,
    ModelList,
    RememberedAnswer,
    ReplicaState,
    Similarities,
    TrialEnd,
    TrialReport,
)
from ..core.console import say
from ..core.errors import ClipftError, TransientError
from ..core.settings import settings

T = TypeVar("T")
LOADING = 300.0  # seconds that a version may take until it is live on every replica


class ServerRefusalError(ClipftError):
    """The server refused a request (4xx), with `status`, its own reason and, where it names one, its own code."""

    def __init__(self, status: int, what: str, why: str, *, code: str = "") -> None:
        self.status = status
        super().__init__(what, why, code=code or "server.refused")


class ServerClient:
    """Asks the server with the token that lets it change state, and marks what it asks as no traffic: no drift is measured on it.

    Every method raises TransientError where the server does not answer or is not ready (5xx), and ServerRefusalError where it refuses
    (4xx).

    Args:
        url: of the server; default: that of the settings.
        timeout: seconds that an answer may take, but for versions that are loaded.
    """

    def __init__(self, url: str = "", timeout: float = 30.0) -> None:
        self.url, self.timeout = (url or settings().server_url).rstrip("/"), timeout

    # Models

    def models(self) -> list[ModelInfo]:
        """The live version of each domain."""
        return self._read(ModelList, self._send("GET", "/v1/models")).data

    def load(self, domain: str, version: str) -> LoadResult:
        """Make a version live on every replica; returns when it is."""
        return self._read(LoadResult, self._send("PUT", f"/v1/models/{domain}", {"version": version}, LOADING))

    def replicas(self) -> list[ReplicaState]:
        """What is live where."""
        return self._read(list[ReplicaState], self._send("GET", "/v1/replicas"))

    def wait_for_version(self, domain: str, version: str, seconds: float = 60) -> int:
        """Wait until every replica that answers has this version live; returns how many there are.

        Raises: TransientError when one still answers with another version after `seconds`.
        """
        until = time.monotonic() + seconds
        while True:
            serving = [r for r in self.replicas() if r.live]  # one without any gets no traffic
            others = {r.address or "the one that answers": r.live.get(domain) for r in serving if r.live.get(domain) != version}
            if serving and not others:
                if len(serving) > 1:
                    say(f"All {len(serving)} replicas answer with version {version}.")
                return len(serving)
            if time.monotonic() > until:
                raise TransientError(
                    f"Not every replica answers with version {version} of {domain}: {others or 'none is ready'}."
                )
            time.sleep(0.5)

    def similarity(self, domain: str, images: Sequence[str], texts: Sequence[str]) -> tuple[list[list[float]], str]:
        """Similarity of images (files in base64) with texts, (n, m), and the version that answered."""
        body = {"domain": domain, "images": [{"base64": image} for image in images], "texts": list(texts)}
        answer = self._send("POST", "/v1/similarity", body)
        return self._read(Similarities, answer).similarity, answer.headers.get("x-clipft-model-version", "")

    # Trials on live traffic

    def trial(self, domain: str, version: str, share: float, answers: bool) -> TrialReport:
        """Begin a trial of a version, or go on with the same one; returns how it fares.

        Args:
            share: of the classify requests that it sees.
            answers: whether it answers them (a canary), or is asked after the champion answered (a shadow).
        """
        body = {"version": version, "share": share, "answers": answers}
        return self._read(TrialReport, self._send("PUT", f"/v1/shadows/{domain}", body, LOADING))

    def end_trial(self, domain: str) -> bool:
        """End a trial; returns whether there was one."""
        return self._read(TrialEnd, self._send("DELETE", f"/v1/shadows/{domain}")).ended

    # Drift and captures

    def drift(self, domain: str) -> DriftSnapshot:
        """How far the live version's window is from its reference, measured now."""
        return DriftSnapshot.from_json(self._send("GET", f"/v1/drift/{domain}").json(), f"of {domain}")

    def window(self, domain: str) -> WindowRows:
        """The images of every replica's window."""
        return self._read(WindowRows, self._send("GET", f"/v1/windows/{domain}"))

    def captures(self, domain: str) -> list[Capture]:
        """What is kept of a domain's traffic, oldest first."""
        return self._read(list[Capture], self._send("GET", f"/v1/captures/{domain}"))

    def captured_image(self, domain: str, capture: str) -> bytes:
        """A captured image, as it was sent."""
        return self._send("GET", f"/v1/captures/{domain}/{capture}").content

    def label_capture(self, domain: str, capture: str, label: str) -> CaptureLabel:
        """Say what a captured image shows."""
        return self._read(CaptureLabel, self._send("PUT", f"/v1/captures/{domain}/{capture}", {"label": label}))

    def answer(self, answer: str) -> RememberedAnswer:
        """Which version gave an answer, by its `X-Clipft-Answer-Id`."""
        return self._read(RememberedAnswer, self._send("GET", f"/v1/answers/{quote(answer, safe='')}"))

    def forget(self, answer: str) -> None:
        """Delete whatever is kept of an answer, on every replica."""
        self._send("DELETE", f"/v1/answers/{quote(answer, safe='')}")

    def delete_capture(self, domain: str, capture: str) -> None:
        """Delete a captured image, on every replica."""
        self._send("DELETE", f"/v1/captures/{domain}/{capture}")

    def set_capture_share(self, domain: str, share: float | None) -> CaptureShare:
        """Keep this share of requests until the server restarts; None: what the domain's profile says."""
        return self._read(CaptureShare, self._send("PUT", f"/v1/captures/{domain}", {"share": share}))

    def _send(self, method: str, path: str, body: Mapping[str, object] | None = None, timeout: float = 0) -> httpx.Response:
        token = settings().server_token
        headers = {"X-Clipft-Internal": "1"} | ({"Authorization": f"Bearer {token.get_secret_value()}"} if token else {})
        try:
            response = httpx.request(
                method, self.url + path, json=body, headers=headers, timeout=timeout or self.timeout, trust_env=False
            )
        except httpx.TransportError as error:
            raise TransientError(f"The server at {self.url} does not answer: {error!r}.") from error
        if response.status_code >= 500:
            raise TransientError(f"The server at {self.url} answered {response.status_code}: {response.text[:500]}")
        if response.status_code >= 400:
            is_json = "json" in response.headers.get("content-type", "")
            said = response.json() if is_json else {}
            why = f"{method} {path} was refused: {said.get('detail', response.text)}"
            raise ServerRefusalError(response.status_code, f"the server at {self.url}", why, code=said.get("code", ""))
        return response

    def _read(self, what: type[T], response: httpx.Response) -> T:
        try:
            return TypeAdapter(what).validate_json(response.content)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise ClipftError(
                f"the server at {self.url}",
                f"its answer to {response.request.url.path} is none of this release ({place}: {first['msg']})",
                "Run the same release on both sides.",
                code="server.other_release",
            ) from None
