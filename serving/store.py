"""The model store: which version of each domain is live, and how another one takes its place.

A version goes live only after it was loaded, warmed up and agreed with its own recorded answers. Requests hold the version
that they began with; the old one disappears when its last request is done.
"""

import base64
import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clipft_tasks import tracking
from clipft_tasks.data.pictures import open_picture, square
from clipft_tasks.domains import get_domain
from clipft_tasks.drift.reference import Reference
from clipft_tasks.errors import ClipftError, Transient
from clipft_tasks.model import build, probe
from clipft_tasks.model.clip import Clip
from clipft_tasks.train import plan, probes

from .engine import Busy, Engine, encode
from .metrics import Metrics

log = logging.getLogger("uvicorn.error")


@dataclass
class Live:
    """A version that answers."""

    domain: str
    version: str
    clip: Clip
    card: dict[str, Any]
    lineage: dict[str, str]
    since: float = field(default_factory=time.time)
    class_texts: dict[tuple[str, ...], np.ndarray] = field(default_factory=dict)
    reference: Reference | None = None

    @property
    def side(self) -> int:
        return int(self.card["resolutions"]["serve"])

    @property
    def own_class_texts(self) -> np.ndarray | None:
        """Class vectors (c, d) of the classes that the model was trained on; None when it has none to tell apart."""
        return self.class_texts.get(tuple(self.card["classes"])) if len(self.card["classes"]) > 1 else None

    @cached_property
    def temperature_scale(self) -> float:
        """What a cosine is multiplied with before a softmax: the model's learned inverse temperature."""
        return float(self.clip.model.logit_scale.detach().exp())

    @property
    def headers(self) -> dict[str, str]:
        """Where an answer comes from."""
        return {
            "X-Clipft-Domain": self.domain,
            "X-Clipft-Model-Version": self.version,
            "X-Clipft-Run-Id": self.lineage.get("run_id", ""),
            "X-Clipft-Dataset": self.lineage.get("dataset", ""),
            "X-Clipft-Dag-Run": self.lineage.get("dag_run", ""),
        }


class ModelStore:
    """The live versions of one server process."""

    def __init__(self, engine: Engine, metrics: Metrics, follow: Callable[[Live], None] = lambda live: None) -> None:
        self.engine, self.metrics, self.follow = engine, metrics, follow
        self.live: dict[str, Live] = {}
        self.problem = ""  # why the registry could not be read, for /readyz
        self._changing = threading.RLock()

    def get(self, domain: str) -> Live | None:
        """The live version of a domain; of the only one when `domain` is empty."""
        if not domain and len(self.live) == 1:
            return next(iter(self.live.values()))
        return self.live.get(domain)

    def deploy(self, domain: str, version: str) -> dict[str, Any]:
        """Make a registered version live; returns version, replaced, load_seconds, disagreement.

        Raises:
            ClipftError: it is not registered, cannot be loaded, or does not give its recorded answers. The old one stays.
        """
        with self._changing:
            now = self.live.get(domain)
            if now and now.version == version:
                return {"version": version, "replaced": None, "load_seconds": 0.0, "disagreement": 0.0}
            began = time.monotonic()
            try:
                live, difference = self._load(domain, version)
            except Exception as error:
                self.metrics.deployments.labels(domain, "refused").inc()
                if isinstance(error, (ClipftError, Transient, Busy, TimeoutError)):
                    raise
                why = f"its package cannot be loaded ({error!r})"
                raise ClipftError(f"version {version} of {domain}", why, "Register the model again.") from error
            self.live = {**self.live, domain: live}  # one assignment: no request sees anything in between
            self._announce(live, now)
            return {
                "version": version,
                "replaced": now.version if now else None,
                "load_seconds": time.monotonic() - began,
                "disagreement": difference,
            }

    def refresh(self) -> None:
        """Make the registry's champions live. What cannot be loaded is left as it is, and said."""
        with self._changing:  # or a version that is deployed meanwhile would be undone by what was read before
            self._refresh()

    def _refresh(self) -> None:
        try:
            champions = tracking.champions()
        except Exception as error:  # the registry may be away for a while; what is live goes on answering
            self.problem = f"the registry cannot be read: {error}"
            return
        self.problem = ""
        for domain, version in champions.items():
            live = self.live.get(domain)
            if live is None or live.version != version:
                try:
                    self.deploy(domain, version)
                except Exception as error:
                    self.problem = f"version {version} of {domain} cannot be made live: {error}"

    def _load(self, domain: str, version: str) -> tuple[Live, float]:
        registered = tracking.version_of(f"models:/{tracking.model_name(domain)}/{version}")
        folder = tracking.fetch_package(registered)
        card = json.loads((folder / "card.json").read_text())
        recorded = json.loads((folder / "probe.json").read_text())
        clip = build.from_folder(folder, source=f"{registered.name}/{version}")
        live = Live(domain, version, clip, card, tracking.lineage(registered), reference=_reference(folder, clip))
        pictures = np.stack(
            [square(open_picture(base64.b64decode(p)).rgb, recorded["side"], clip.aspect) for p in recorded["pictures"]]
        )

        def warm_and_ask() -> list[list[float]]:
            clip.to(self.engine.device)
            layout = plan.layout_of(self.engine.device.type, clip).value
            clip.model.to(memory_format=probes.MEMORY_FORMATS[layout])
            live.temperature_scale  # noqa: B018 - read once here, in the thread that owns the device
            images, texts = encode(live, "images", pictures), encode(live, "texts", recorded["texts"])
            if card["classes"]:
                live.class_texts[tuple(card["classes"])] = class_embeddings(live, card["classes"])
            return [[float(x) for x in row] for row in images @ texts.T]

        difference = probe.disagreement(recorded, self.engine.call(warm_and_ask).result(timeout=240))
        if difference > recorded["tolerance"]:
            raise ClipftError(
                f"version {version} of {domain}",
                f"its answers differ from those recorded at training by {difference:.3f} (limit {recorded['tolerance']})",
                "Another device or library version? Evaluate the version here before you raise the tolerance.",
            )
        return live, difference

    def _announce(self, live: Live, before: Live | None) -> None:
        if before:
            self.metrics.model.remove(
                before.domain, before.version, before.lineage.get("run_id", ""), before.lineage.get("dataset", "")
            )
        self.metrics.model.labels(
            live.domain, live.version, live.lineage.get("run_id", ""), live.lineage.get("dataset", "")
        ).set(1)
        self.metrics.loaded.labels(live.domain).set(live.since)
        self.metrics.deployments.labels(live.domain, "live").inc()
        self.follow(live)


def class_embeddings(live: Live, classes: list[str]) -> np.ndarray:
    """Class vectors (n, d) over the domain's prompt templates; only in the inference thread."""
    with torch.inference_mode():
        return live.clip.class_embeddings(classes, get_domain(live.domain).prompts).cpu().numpy()


def _reference(folder: Path, clip: Clip) -> Reference | None:
    """A package's reference. Without a usable one the version still serves, and says that its drift is not measured."""
    try:
        return Reference.load(folder, clip.digest)
    except ClipftError as error:
        log.warning("%s", error)
        return None
