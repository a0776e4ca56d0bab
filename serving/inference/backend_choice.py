"""Which backend runs the towers of each loaded version: chosen in a thread of its own, while torch answers already.

Exporting and comparing take from seconds to a minute; no deployment and no request waits for that.
"""

import logging
import queue
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from clipft_tasks.core.decision import Decision
from clipft_tasks.devices.hardware import use_threads
from clipft_tasks.model.backends import choice
from clipft_tasks.model.backends.base import TOWERS, TowerKind
from clipft_tasks.model.backends.choice import Choice

from .loaded_model import LoadedModel

log = logging.getLogger("uvicorn.error")


@dataclass(frozen=True)
class _Waiting:
    model: "weakref.ref[LoadedModel]"  # one that is replaced meanwhile need not be kept for this
    images: np.ndarray
    texts: Sequence[str]


class BackendChoice:
    """What runs towers in one server process.

    Args:
        wanted: auto, torch, or the name of a backend.
        threads: that a backend may use.
        lanes: of the engine, each of which may ask for a forward pass.
    Raises: ClipftError where a backend is wanted that there is not or that is not installed.
    """

    def __init__(self, wanted: str, threads: int, lanes: int = 1) -> None:
        choice.available(wanted)
        self.wanted, self.threads, self.lanes = wanted, threads, lanes
        self._waiting: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="backends", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def choose_for(self, model: LoadedModel, images: np.ndarray, texts: Sequence[str]) -> None:
        """Let the fastest backend that agrees with torch run a version's towers, as soon as it is known.

        Args:
            images, texts: that the package recorded answers for; images are uint8 (n, 3, s, s).
        """
        model.backends = dict.fromkeys(TOWERS, Choice(Decision(choice.TORCH, "the others are not compared yet"), "comparing"))
        self._waiting.put(_Waiting(weakref.ref(model), images, texts))

    def close(self) -> None:
        self._is_closed = True
        self._waiting.put(None)

    def _run(self) -> None:
        use_threads(self.threads)
        while (waiting := self._waiting.get()) is not None:
            for kind in TOWERS:
                model = waiting.model()
                if model is None or self._is_closed:
                    break
                self._choose(model, kind, waiting)
                del model

    def _choose(self, model: LoadedModel, kind: TowerKind, waiting: _Waiting) -> None:
        clip = model.clip
        try:
            samples = choice.samples_of(clip, kind, model.side, waiting.images, waiting.texts)
            chosen = choice.choose(clip, kind, model.side, samples, self.wanted, self.threads, self.lanes)
        except Exception as error:  # torch runs every tower, so nothing here is worth an answer
            log.exception("no backend can be chosen for the %s tower of %s", kind, clip.source)
            chosen = Choice(Decision(choice.TORCH, f"the others cannot be compared ({error})"), "failed")
        if chosen.runner and kind == "image":
            clip.image_runners = {model.side: chosen.runner}
        elif chosen.runner:
            clip.text_runner = chosen.runner
        model.backends = model.backends | {kind: chosen}
        log.warning("%s tower of %s: %s %s", kind, clip.source, chosen.decision, chosen.decision.measured or "")


class BackendCollector(Collector):
    """`clipft_backend_info`: 1 for what runs each tower of each live version, and why in one word.

    Args:
        live: the live versions by domain.
    """

    def __init__(self, live: Callable[[], Mapping[str, LoadedModel]]) -> None:
        self._live = live

    def collect(self) -> Iterator[Metric]:
        labels = ["domain", "version", "tower", "backend", "reason"]
        info = GaugeMetricFamily("clipft_backend_info", "1 for what runs a tower of the live version, and why.", labels=labels)
        for model in self._live().values():
            for kind, chosen in model.backends.items():
                info.add_metric([model.domain, model.version, kind, chosen.decision.value, chosen.outcome], 1)
        yield info
