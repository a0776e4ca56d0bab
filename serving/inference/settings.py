"""How one server process behaves. Where its neighbors are stands in `clipft_tasks.core.settings`."""

from typing import get_args

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from clipft_tasks.core.settings import EnvironmentSettings
from clipft_tasks.drift.thresholds import WINDOW_MIN_ROWS, WINDOW_ROWS, WINDOW_SECONDS
from clipft_tasks.spec import DeviceName


class ServingSettings(EnvironmentSettings):
    """From `CLIPFT_SERVING_<NAME>`."""

    model_config = SettingsConfigDict(env_prefix="CLIPFT_SERVING_", extra="ignore")

    device: str = Field("auto", description=f"auto, {', '.join(get_args(DeviceName))}")
    backend: str = Field("auto", description="what runs the towers: auto (the fastest that agrees), torch, openvino, onnx")
    max_batch: int = Field(32, ge=1, description="images or texts per forward pass")
    max_wait_ms: float = Field(4.0, ge=0, description="how long a lone request waits for company, at most, where a batch pays")
    max_requests: int = Field(1024, ge=1, description="requests being answered before more are answered 503")
    address_rate: float = Field(
        100, gt=0, description="requests a second of one address while others ask, too; beyond it, slower and then 429"
    )
    address_burst: int = Field(400, ge=1, description="requests that one address may send at once, after a pause")
    max_queue: int = Field(512, ge=1, description="jobs waiting before requests are answered 503")
    max_queue_items: int = Field(2048, ge=1, description="images and texts of all requests before more are answered 503")
    queue_seconds: float = Field(10, gt=0, description="longest wait for the model before a request is answered 503")
    deadline_seconds: float = Field(30, gt=0, description="longest time for a request's answer before it is 503")
    max_items: int = Field(64, ge=1, description="images or texts in one request")
    max_inputs: int = Field(2048, ge=1, description="texts and images in one request for /v1/embeddings; embedded in parts")
    max_bulk: int = Field(4, ge=1, description="bulk requests that are answered at a time")
    max_classes: int = Field(1000, ge=2, description="classes of the caller's own in one request")
    max_explained: int = Field(8, ge=1, description="images, and texts, in one request for heatmaps")
    max_body_mb: float = Field(48, gt=0, description="size of one request")
    max_bodies_mb: float = Field(192, gt=0, description="size of all large requests that are being read and answered")
    body_seconds: float = Field(10, gt=0, description="longest pause within a body; 50 kB a second are asked beyond it")
    max_image_mb: float = Field(16, gt=0, description="size of one image file")
    max_pixels: int = Field(25_000_000, gt=0, description="pixels of one image")
    max_request_pixels: int = Field(200_000_000, gt=0, description="pixels of the large images of one request")
    max_queue_pixels: int = Field(
        400_000_000, gt=0, description="pixels of large images that wait before more are answered 503"
    )
    max_text: int = Field(4000, ge=1, description="characters of one text")
    remember: bool = Field(True, description="whether embeddings of texts are remembered, 16 MiB of them a version")
    poll_seconds: float = Field(15, ge=0, description="seconds between looks at the registry; 0 never looks")
    drain_seconds: float = Field(
        1, ge=0, description="seconds for which /readyz is 503 before the port closes, when the server is told to end"
    )
    end_when_stuck: bool = Field(
        False, description="whether the process ends when one of its threads has ended or hangs, for what starts it anew"
    )
    open: bool = Field(True, description="whether anybody may infer; false: only who shows a key (`clipft key`) or the token")
    cors: str = Field("", description="origins whose pages may ask from a browser, separated by commas; * for all; empty: none")
    peers: str = Field(
        "", description="host:port of all replicas (a name with an address for each); empty: this is the only one"
    )
    drift: bool = Field(True, description="whether windows of the traffic are kept and measured at all")
    drift_seconds: float = Field(5, ge=0, description="seconds between measurements of the windows; 0 measures when asked")
    window: int = Field(WINDOW_ROWS, ge=16, description="images, and texts, that a window holds")
    window_rate: float = Field(
        5, gt=0, description="images a second that a window takes in, after a burst that fills it; others are answered only"
    )
    window_least: int = Field(WINDOW_MIN_ROWS, ge=16, description="rows below which a window says nothing")
    window_minutes: float = Field(WINDOW_SECONDS / 60, gt=0, description="age at which a row leaves the window")
    window_kept: bool = Field(True, description="whether windows are kept on disk and go on after a restart")
    capture: float | None = Field(None, ge=0, le=1, description="share of requests kept for labeling; unset: the domain's")
    capture_mb: float = Field(500, ge=0, description="most space of captured images per domain; the oldest go first")
    capture_days: float = Field(30, gt=0, description="age at which a captured image is deleted")
