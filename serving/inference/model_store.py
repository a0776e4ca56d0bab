"""The model store: which version of each domain is live, and how another one takes its place.

A version goes live only after it was loaded, warmed up and agreed with its own recorded answers. Requests hold the version
that they began with; the old one disappears when its last request is done.
"""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from clipft_tasks import tracking
from clipft_tasks.contracts.calibration import Calibration
from clipft_tasks.contracts.serving import LoadResult, ModelInfo, TowerBackend
from clipft_tasks.core.errors import ClipftError, TransientError
from clipft_tasks.drift.reference import Reference
from clipft_tasks.model import build, package, recorded_answers
from clipft_tasks.model.clip import Clip
from clipft_tasks.model.folding import fold_batch_norms
from clipft_tasks.model.layout import move_to

from .backend_choice import BackendChoice
from .batching import Engine, encode
from .errors import QueueFullError
from .loaded_model import LoadedModel
from .metrics import Metrics
from .trial import Trial

log = logging.getLogger("uvicorn.error")


class ModelStore:
    """The live versions of one server process.

    Args:
        backends: chooses what runs the towers of each version that is loaded.
        on_live: called with each version that goes live.
    """

    def __init__(
        self,
        engine: Engine,
        metrics: Metrics,
        backends: BackendChoice,
        on_live: Callable[[LoadedModel], None] = lambda model: None,
    ) -> None:
        self.engine, self.metrics, self.backends, self.on_live = engine, metrics, backends, on_live
        self.live: dict[str, LoadedModel] = {}
        self.held: dict[str, str] = {}  # versions that stay live whatever the registry says, by domain
        self.trials: dict[str, Trial] = {}
        self.is_starting = True  # until the registry was looked at for the first time
        self.problem = ""  # why the registry could not be read, for /readyz
        self._changing = threading.RLock()

    @property
    def versions(self) -> dict[str, str]:
        """The live version of each domain."""
        return {domain: model.version for domain, model in self.live.items()}

    def get(self, domain: str) -> LoadedModel | None:
        """The live version of a domain; of the only one when `domain` is empty."""
        if not domain and len(self.live) == 1:
            return next(iter(self.live.values()))
        return self.live.get(domain)

    def describe(self) -> list[ModelInfo]:
        """The live versions, for `/v1/models`."""
        return [
            ModelInfo(
                id=model.domain,
                created=int(model.since),
                domain=model.domain,
                version=model.version,
                since=model.since,
                side=model.side,
                classes=model.classes,
                similarity=model.clip.similarity.name,
                dimensions=model.dimensions,
                lineage=model.lineage,
                backends={
                    kind: TowerBackend(
                        backend=found.decision.value, why=found.decision.reason, measured=found.decision.measured
                    )
                    for kind, found in model.backends.items()
                },
            )
            for model in self.live.values()
        ]

    def load(self, domain: str, version: str, hold: bool = False) -> LoadResult:
        """Make a registered version live.

        Args:
            hold: until another is loaded by a request it stays live, whatever the registry says.
        Raises:
            ClipftError: it is not registered, cannot be loaded, or does not give its recorded answers. The old one stays.
        """
        with self._changing:
            now = self.live.get(domain)
            if now and now.version == version:
                self._hold(domain, version if hold else "")
                return LoadResult(version=version, replaced=None, load_seconds=0.0, disagreement=0.0)
            began = time.monotonic()
            try:
                model, difference = self._open(domain, version)
            except Exception:
                self.metrics.deployments.labels(domain, "refused").inc()
                raise
            self._hold(domain, version if hold else "")
            self.live = {**self.live, domain: model}  # one assignment: no request sees anything in between
            self.trials.pop(domain, None)  # whatever was tried was compared with another champion
            self._announce(model, now)
            return LoadResult(
                version=version,
                replaced=now.version if now else None,
                load_seconds=time.monotonic() - began,
                disagreement=difference,
            )

    def restore(self, domain: str, before: LoadedModel | None, held: str) -> None:
        """Undo a load: what answered before answers again, as it was, or nothing where it was the first. `held`: as before."""
        with self._changing:
            now = self.live.get(domain)
            self._hold(domain, held)
            self.live = {other: model for other, model in self.live.items() if other != domain} | (
                {domain: before} if before else {}
            )
            self.trials.pop(domain, None)
            if before:
                self._announce(before, now)
            elif now:
                self._unannounce(now)

    def _hold(self, domain: str, version: str) -> None:
        held = {other: number for other, number in self.held.items() if other != domain}
        self.held = held | ({domain: version} if version else {})

    def start_trial(self, domain: str, version: str, share: float, answers: bool) -> Trial:
        """Compare a version with the live one; the same again goes on counting, another share or mode begins anew.

        Raises: ClipftError when nothing of the domain is live, or the version is live already, or cannot be loaded.
        """
        with self._changing:
            now, tried = self.live.get(domain), self.trials.get(domain)
            if now is None or now.version == version:
                why = "it is live already" if now else "nothing of the domain is live to compare it with"
                raise ClipftError(
                    f"version {version} of {domain}",
                    f"it cannot be tried: {why}",
                    "Deploy it instead.",
                    code="rollout.live_already" if now else "rollout.nothing_live",
                )
            if tried and (tried.model.version, tried.share, tried.answers) == (version, share, answers):
                tried.renew()
                return tried
            model = tried.model if tried and tried.model.version == version else self._open(domain, version)[0]
            if model.classes != now.classes:
                raise ClipftError(
                    f"version {version} of {domain}", "it knows other classes than the live one, so answers cannot be compared",
                    "Deploy it without a trial.", code="rollout.other_classes",
                )  # fmt: skip
            trial = Trial(model, share, answers)
            self.trials = {**self.trials, domain: trial}
            return trial

    def end_trial(self, domain: str) -> bool:
        """End a trial, also one that is just being loaded; returns whether there was one."""
        with self._changing:
            return self.trials.pop(domain, None) is not None

    def follow_registry(self) -> None:
        """Make the registry's champions live. What cannot be loaded is left as it is, and `problem` says why."""
        try:
            self._follow_registry()
        finally:
            self.is_starting = False

    def _follow_registry(self) -> None:
        with self._changing:  # or a version that is loaded meanwhile would be undone by what was read before
            try:
                champions = tracking.champions()
            except Exception as error:  # the registry may be away for a while; what is live goes on answering
                self.problem = f"the registry cannot be read: {error}"
                return
            self.problem = ""
            for domain, version in champions.items():
                model = self.live.get(domain)
                if domain in self.held:
                    continue
                if model is None or model.version != version:
                    try:
                        self.load(domain, version)
                    except Exception as error:
                        self.problem = f"version {version} of {domain} cannot be made live: {error}"

    def _open(self, domain: str, version: str) -> tuple[LoadedModel, float]:
        """Load a version and check it; whatever is wrong with its package is a ClipftError."""
        try:
            return self._load_and_check(domain, version)
        except (ClipftError, TransientError, QueueFullError, TimeoutError):
            raise
        except Exception as error:
            why = f"its package cannot be loaded ({error!r})"
            raise ClipftError(
                f"version {version} of {domain}", why, "Register the model again.", code="package.invalid"
            ) from error

    def _load_and_check(self, domain: str, version: str) -> tuple[LoadedModel, float]:
        """The model on its device, warm, and its largest difference from the answers recorded at training."""
        registered = tracking.resolve_version(f"models:/{tracking.model_name(domain)}/{version}")
        folder = tracking.fetch_package(registered)
        card, recorded = package.read_card(folder), package.read_recorded_answers(folder)
        clip = build.from_folder(folder, source=f"{registered.name}/{version}")
        model = LoadedModel(
            domain=domain,
            version=version,
            clip=clip,
            side=card.resolutions.serve,
            classes=card.classes,
            dimensions=sorted(d for d in card.dimensions if d <= clip.embed_dim),
            lineage=tracking.lineage(registered),
            reference=_reference(folder, clip),
        )
        model.calibration, model.uncalibrated = _calibration(folder, card.classes)
        images = recorded_answers.images_of(recorded)
        log.info("batch norms of %s folded: %s", clip.source, fold_batch_norms(clip, images))

        def warm_and_ask() -> list[list[float]]:
            move_to(self.engine.device.type, clip)
            model.temperature_scale  # noqa: B018 - read once here, in the thread that owns the device
            image, text = encode(model, images), encode(model, clip.tokenize(recorded.texts).numpy())
            if model.classes:
                model.class_embeddings = model.embed_classes(model.classes)
            return [[float(x) for x in row] for row in model.similarity(image, text)]

        difference = recorded_answers.disagreement(recorded, self.engine.call(warm_and_ask).result(timeout=240))
        if difference > recorded.tolerance:
            raise ClipftError(
                f"version {version} of {domain}",
                f"its answers differ from those recorded at training by {difference:.3f} (limit {recorded.tolerance})",
                "Another device or library version? Evaluate the version here before you raise the tolerance.",
                code="package.other_answers",
            )
        self.backends.choose_for(model, images, recorded.texts)
        return model, difference

    def _unannounce(self, model: LoadedModel) -> None:
        self.metrics.model.remove(
            model.domain, model.version, model.lineage.get("run_id", ""), model.lineage.get("dataset", "")
        )

    def _announce(self, model: LoadedModel, before: LoadedModel | None) -> None:
        if before:
            self._unannounce(before)
        self.metrics.model.labels(
            model.domain, model.version, model.lineage.get("run_id", ""), model.lineage.get("dataset", "")
        ).set(1)
        self.metrics.loaded.labels(model.domain).set(model.since)
        self.metrics.deployments.labels(model.domain, "live").inc()
        log.warning(
            "version %s of %s is live%s", model.version, model.domain, f", after version {before.version}" if before else ""
        )
        self.on_live(model)


def _calibration(folder: Path, classes: list[str]) -> tuple[Calibration | None, str]:
    """A package's calibration, or why there is none. Without one the version still serves, and its answers say so."""
    found = package.read_calibration(folder)
    if found is None:
        return None, "The model package has no calibration: no validation row had a label, or an earlier release made it."
    if found.classes != classes or found.prompts != list(package.read_preprocessing(folder).prompts):
        return None, "The model package's calibration was measured with other classes or prompts."
    return found, ""


def _reference(folder: Path, clip: Clip) -> Reference | None:
    """A package's reference. Without a usable one the version still serves, and says that its drift is not measured."""
    try:
        return Reference.load(folder, clip.digest)
    except ClipftError as error:
        log.warning("%s", error)
        return None
