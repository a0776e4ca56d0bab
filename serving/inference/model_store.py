"""The model store: which version of each domain is live, and how another one takes its place.

A version goes live only after it was loaded, warmed up and agreed with its own recorded answers. Requests hold the version
that they began with; the old one disappears when its last request is done.
"""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clipft_tasks import tracking
from clipft_tasks.core.errors import ClipftError, Transient
from clipft_tasks.drift.reference import Reference
from clipft_tasks.model import build, package, recorded_answers
from clipft_tasks.model.clip import Clip
from clipft_tasks.train import microbenchmarks, plan

from .batching import Busy, Engine, encode
from .loaded_model import Live
from .metrics import Metrics
from .shadow import Shadow

log = logging.getLogger("uvicorn.error")


class ModelStore:
    """The live versions of one server process."""

    def __init__(self, engine: Engine, metrics: Metrics, follow: Callable[[Live], None] = lambda live: None) -> None:
        self.engine, self.metrics, self.follow = engine, metrics, follow
        self.live: dict[str, Live] = {}
        self.shadows: dict[str, Shadow] = {}
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
                live, difference = self._whole(domain, version)
            except Exception:
                self.metrics.deployments.labels(domain, "refused").inc()
                raise
            self.live = {**self.live, domain: live}  # one assignment: no request sees anything in between
            self.shadows.pop(domain, None)  # whatever was tried was tried beside another one
            self._announce(live, now)
            return {
                "version": version,
                "replaced": now.version if now else None,
                "load_seconds": time.monotonic() - began,
                "disagreement": difference,
            }

    def shadow(self, domain: str, version: str, share: float, answers: bool) -> Shadow:
        """Try a version beside the live one; the same again goes on counting, another share or mode begins anew.

        Raises: ClipftError when nothing of the domain is live, or the version is live already, or cannot be loaded.
        """
        with self._changing:
            now, tried = self.live.get(domain), self.shadows.get(domain)
            if now is None or now.version == version:
                why = "it is live already" if now else "nothing of the domain is live to compare it with"
                raise ClipftError(f"version {version} of {domain}", f"it cannot be tried: {why}", "Deploy it instead.")
            if tried and (tried.live.version, tried.share, tried.answers) == (version, share, answers):
                tried.renew()
                return tried
            live = tried.live if tried and tried.live.version == version else self._whole(domain, version)[0]
            if live.card.classes != now.card.classes:
                raise ClipftError(
                    f"version {version} of {domain}", "it knows other classes than the live one, so answers cannot be compared",
                    "Deploy it without a trial.",
                )  # fmt: skip
            made = Shadow(live, share, answers)
            self.shadows = {**self.shadows, domain: made}
            return made

    def end_shadow(self, domain: str) -> bool:
        """End a trial, also one that is just being loaded; returns whether there was one."""
        with self._changing:
            return self.shadows.pop(domain, None) is not None

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

    def _whole(self, domain: str, version: str) -> tuple[Live, float]:
        """Load a version; whatever is wrong with its package is a ClipftError."""
        try:
            return self._load(domain, version)
        except (ClipftError, Transient, Busy, TimeoutError):
            raise
        except Exception as error:
            why = f"its package cannot be loaded ({error!r})"
            raise ClipftError(f"version {version} of {domain}", why, "Register the model again.") from error

    def _load(self, domain: str, version: str) -> tuple[Live, float]:
        registered = tracking.resolve_version(f"models:/{tracking.model_name(domain)}/{version}")
        folder = tracking.fetch_package(registered)
        card, recorded = package.read_card(folder), package.read_recorded_answers(folder)
        clip = build.from_folder(folder, source=f"{registered.name}/{version}")
        live = Live(domain, version, clip, card, tracking.lineage(registered), reference=_reference(folder, clip))
        images = recorded_answers.images_of(recorded)

        def warm_and_ask() -> list[list[float]]:
            clip.to(self.engine.device)
            layout = plan.layout_of(self.engine.device.type, clip).value
            clip.model.to(memory_format=microbenchmarks.MEMORY_FORMATS[layout])
            live.temperature_scale  # noqa: B018 - read once here, in the thread that owns the device
            image, text = encode(live, "images", images), encode(live, "texts", recorded.texts)
            if card.classes:
                live.class_texts[tuple(card.classes)] = class_embeddings(live, card.classes)
            return [[float(x) for x in row] for row in live.similarity(image, text)]

        difference = recorded_answers.disagreement(recorded, self.engine.call(warm_and_ask).result(timeout=240))
        if difference > recorded.tolerance:
            raise ClipftError(
                f"version {version} of {domain}",
                f"its answers differ from those recorded at training by {difference:.3f} (limit {recorded.tolerance})",
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
    """Class vectors (n, d) over the package's prompt templates; only in the inference thread."""
    with torch.inference_mode():
        return live.clip.class_embeddings(classes).cpu().numpy()


def _reference(folder: Path, clip: Clip) -> Reference | None:
    """A package's reference. Without a usable one the version still serves, and says that its drift is not measured."""
    try:
        return Reference.load(folder, clip.digest)
    except ClipftError as error:
        log.warning("%s", error)
        return None
