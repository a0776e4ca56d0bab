"""How an inference request is answered: by which version, from what, and what else is done with the answer.

Side effects (windows, captures, metrics) never fail an answer: what goes wrong there is logged and counted.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from clipft_tasks.contracts.serving import Heatmap
from clipft_tasks.data.images import square
from clipft_tasks.drift.image_statistics import appearance

from .admission import Admission
from .batching import Engine
from .captures import Captures
from .decoding import Decoder
from .errors import NonFiniteOutputError, QueueFullError, RequestRejectedError, shortened
from .heatmaps import Heatmaps
from .loaded_model import LoadedModel, Ranking
from .metrics import Metrics
from .model_store import ModelStore
from .monitor import Monitor
from .resizing import resized
from .tokenizing import TokenizerThread
from .tracing import Tracing
from .trial import Trial

log = logging.getLogger("uvicorn.error")
CLASSES_AT_ONCE = 32  # of a caller's own, embedded over the prompts


@dataclass(frozen=True)
class TextEmbeddings:
    """Attributes:
    vectors: embeddings (n, d).
    tokens: of each text; one more than the context where there are more than that.
    context: tokens that the model reads of one.
    """

    vectors: np.ndarray
    tokens: list[int]
    context: int

    @property
    def truncated(self) -> list[int]:
        """The numbers, from 1, of texts of which only the beginning was seen."""
        return [n for n, count in enumerate(self.tokens, 1) if count > self.context]


class InferenceService:
    """Everything between a request's body and the answer's.

    In all methods `images` are files as they were sent, and `is_traffic` is whether the request is to be watched and sampled, or
    is the pipeline's own. All raise RequestRejectedError, QueueFullError and NonFiniteOutputError.
    """

    def __init__(
        self,
        admission: Admission,
        decoder: Decoder,
        tokenizer: TokenizerThread,
        engine: Engine,
        store: ModelStore,
        monitor: Monitor,
        captures: Captures,
        metrics: Metrics,
        tracing: Tracing,
    ) -> None:
        self.admission, self.decoder, self.tokenizer = admission, decoder, tokenizer
        self.engine, self.store = engine, store
        self.monitor, self.captures, self.metrics, self.tracing = monitor, captures, metrics, tracing
        self._heatmaps = Heatmaps(admission, decoder, engine)
        self._comparing: set[asyncio.Task[None]] = set()

    def find_model(self, domain: str, version: str = "") -> LoadedModel:
        """The version that answers for a domain; domain "" is the only live one.

        Args:
            version: that must answer: the live one, or a canary that is being tried. A shadow answers nobody.
        """
        model = self.store.get(domain)
        if model is not None and version and model.version != version:
            trial = self.store.trials.get(model.domain)
            if trial is not None and trial.answers and trial.model.version == version:
                return trial.model
            live = " and ".join([model.version, *([trial.model.version] if trial and trial.answers else [])])
            why = f"Version {shortened(version, 20)} of {model.domain} does not answer here; version {live} does."
            raise RequestRejectedError(409, f"{why} Leave `version` out for whichever is live.", "other_version")
        if model is None:
            live = ", ".join(sorted(self.store.live)) or "none"
            if not domain and self.store.live:
                raise RequestRejectedError(
                    400, f"Several domains are live ({live}): say which one in `domain`.", code="request.no_domain"
                )
            status = 404 if self.store.live and not self.store.is_starting else 503
            why = f"No model of {shortened(domain, 64) or 'any domain'} is live (live: {live})."
            raise RequestRejectedError(status, why, code="request.no_model")
        return model

    async def embed_images(
        self, model: LoadedModel, images: Sequence[bytes], is_traffic: bool, dimensions: int | None = None
    ) -> np.ndarray:
        """Embeddings (n, d) of images, or their first `dimensions`."""
        cut = self._cut(model, dimensions)
        image, statistics = await self._embed_images(model, images, is_traffic)
        if is_traffic:
            with self._side_effect(model, "window"):
                self.monitor.add_images(model, image, statistics)
        return cut(image)

    async def embed_texts(
        self, model: LoadedModel, texts: list[str], is_traffic: bool, dimensions: int | None = None
    ) -> TextEmbeddings:
        """Embeddings of texts, or their first `dimensions`."""
        cut = self._cut(model, dimensions)
        text = await self._embed_texts(model, texts)
        if is_traffic:
            with self._side_effect(model, "window"):
                self.monitor.add_texts(model, text.vectors)
        return replace(text, vectors=cut(text.vectors))

    async def similarity(
        self, model: LoadedModel, images: Sequence[bytes], texts: list[str], is_traffic: bool, paired: bool = False
    ) -> tuple[np.ndarray, list[int]]:
        """Similarity of every image with every text, (n, m), and the numbers of truncated texts.

        Args:
            paired: the n-th text belongs to the n-th image.
        """
        self.admission.check_texts(texts)
        images_task = asyncio.create_task(self._embed_images(model, images, is_traffic))
        texts_task = asyncio.create_task(self._embed_texts(model, texts))
        try:
            (image, statistics), text = await asyncio.gather(images_task, texts_task)
        finally:  # where one fails, the other is taken back
            images_task.cancel()
            texts_task.cancel()
        scores = _finite(model, model.similarity(image, text.vectors), "similarity")
        if is_traffic:
            with self._side_effect(model, "window"):
                self.monitor.add_images(model, image, statistics)
                self.monitor.add_texts(model, text.vectors)
                if paired:
                    self.monitor.add_pairs(model, np.diag(scores))
                self.metrics.observe_scores(model.domain, model.version, scores)
        return scores, text.truncated

    async def classify(
        self,
        model: LoadedModel,
        images: Sequence[bytes],
        answer_id: str,
        is_traffic: bool,
        classes: list[str] | None = None,
        is_pinned: bool = False,
    ) -> Ranking:
        """Classes of images, the caller's or the model's own. While a canary is tried, it may answer instead of `model`.

        Args:
            is_pinned: the caller asked for this version, so no other answers.
        """
        wanted = classes or model.classes
        if classes:
            self.admission.check_texts(classes, "classes")
        if len(wanted) < 2:
            raise RequestRejectedError(422, "This model was trained without classes: send at least two in `classes`.")
        trial = self.store.trials.get(model.domain) if is_traffic and classes is None and not is_pinned else None
        if trial is None:
            ranking = await self._rank(model, images, wanted, is_traffic)
        else:
            ranking = await self._rank_in_trial(trial, model, images, wanted)
        model = ranking.model
        if is_traffic:
            own = ranking.scores if wanted == model.classes else None
            with self._side_effect(model, "window"):
                self.monitor.add_images(model, ranking.image, ranking.appearance, own)
                self.metrics.observe_scores(model.domain, model.version, ranking.scores)
        if classes is None:
            with self._side_effect(model, "feedback"):
                self.monitor.remember_answer(model, answer_id, ranking.labels)
            if is_traffic:
                for label in ranking.labels:
                    self.metrics.predictions.labels(model.domain, model.version, label).inc()
                with self._side_effect(model, "captures"):
                    self.captures.sample(answer_id, ranking, images)
        return ranking

    async def explain_classes(self, ranking: Ranking, images: Sequence[bytes]) -> list[Heatmap]:
        """Which places of each image speak for its label rather than for the other classes. Nothing of it is watched or kept."""
        model, classes = ranking.model, ranking.classes
        texts = model.class_embeddings if classes == model.classes else None
        if texts is None:
            texts = await self._embed_classes(model, classes)
        maps = await self._heatmaps.of(model, images, classes, texts, [[best] for best in ranking.best.tolist()])
        return [one for (one,) in maps]

    async def explain_texts(self, model: LoadedModel, images: Sequence[bytes], texts: list[str]) -> list[list[Heatmap]]:
        """Which places of each image speak for each text rather than for the others. Nothing of it is watched or kept."""
        self._heatmaps.check("texts", len(texts))
        embedded = await self._embed_texts(model, texts)
        return await self._heatmaps.of(model, images, texts, embedded.vectors, [list(range(len(texts)))] * len(images))

    async def _rank_in_trial(self, trial: Trial, champion: LoadedModel, images: Sequence[bytes], classes: list[str]) -> Ranking:
        """The champion's answer, or that of a canary in its share of the requests."""
        drawn, began = trial.draw(), time.perf_counter()
        if drawn and trial.answers:
            try:
                ranking = await self._rank(trial.model, images, classes, is_traffic=True)
                trial.record_canary_latency(time.perf_counter() - began)
                return ranking
            except (RequestRejectedError, QueueFullError):
                raise
            except Exception:  # the champion answers instead, so no caller sees it
                log.exception("version %s, a canary of %s, failed", trial.model.version, champion.domain)
                trial.record_error()
                began = time.perf_counter()
        ranking = await self._rank(champion, images, classes, is_traffic=True)
        seconds = time.perf_counter() - began
        if drawn and not trial.answers:
            task = asyncio.create_task(self._compare(trial, images, ranking, seconds))
            self._comparing.add(task)
            task.add_done_callback(self._comparing.discard)
        else:
            trial.record_champion_latency(seconds)
        return ranking

    async def _compare(self, trial: Trial, images: Sequence[bytes], champion: Ranking, champion_seconds: float) -> None:
        """Ask the challenger what the champion has answered already."""
        began = time.perf_counter()
        try:
            challenger = await self._rank(trial.model, images, champion.classes, is_traffic=False)
            trial.record_comparison(champion.best, challenger.best, champion_seconds, time.perf_counter() - began)
        except QueueFullError:
            pass  # the callers come first
        except Exception:
            log.exception("version %s in the shadow of %s failed", trial.model.version, trial.model.domain)
            trial.record_error()

    async def _rank(self, model: LoadedModel, images: Sequence[bytes], classes: list[str], is_traffic: bool) -> Ranking:
        texts = model.class_embeddings if classes == model.classes else None
        if texts is None:  # classes of the caller's own
            texts = await self._embed_classes(model, classes)
        image, statistics = await self._embed_images(model, images, is_traffic)
        scores = _finite(model, model.similarity(image, texts), "similarity")
        return Ranking(model, classes, image, statistics, scores)

    async def _embed_images(
        self, model: LoadedModel, images: Sequence[bytes], is_traffic: bool
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Embeddings (n, d) of images, and their image statistics (n, 5) where the window samples this request."""
        self.admission.check_items("images", len(images))
        sampled = is_traffic and self.monitor.should_sample(model, len(images))

        def decode(image: bytes) -> tuple[np.ndarray, np.ndarray | None]:
            rgb = model.clip.open_image(image, self.decoder.limits).rgb
            return square(rgb, model.side, model.clip.aspect, resized), appearance(rgb) if sampled else None

        with self.admission.working(len(images)):
            with self.tracing.step("decode", {"images": len(images)}):
                decoded = await self.decoder.decode(images, decode)
            squares, statistics = zip(*decoded, strict=True)
            with self.tracing.step("encode", {"images": len(images)}):
                embeddings = _finite(model, await self.engine.encode(model, np.stack(squares)), "embedding")
        return embeddings, np.stack(statistics) if sampled else None

    async def _embed_texts(self, model: LoadedModel, texts: list[str]) -> TextEmbeddings:
        """Embeddings of texts; those asked for before are remembered, and the same text twice is embedded once."""
        self.admission.check_texts(texts)
        if not self.admission.options.remember:
            return await self._encode_texts(model, texts)
        memory = model.known_texts
        found = memory.found(texts)
        tokens = {text: memory.tokens(text) for text in found}
        missing = [text for text in dict.fromkeys(texts) if text not in found]
        self._count_remembered("texts", len(found), len(missing))
        if missing:
            new = await self._encode_texts(model, missing)
            vectors, counts = (dict(zip(missing, values, strict=True)) for values in (new.vectors, new.tokens))
            memory.keep(vectors, counts)
            found, tokens = found | vectors, tokens | counts
        vectors_of = np.stack([found[text] for text in texts])
        return TextEmbeddings(vectors_of, [tokens[text] for text in texts], model.clip.context_length)

    async def _encode_texts(self, model: LoadedModel, texts: Sequence[str]) -> TextEmbeddings:
        with self.admission.working(len(texts)):
            with self.tracing.step("tokenize", {"texts": len(texts)}):
                tokens = await self.tokenizer.tokenize(model.clip, texts)
            with self.tracing.step("encode", {"texts": len(texts)}):
                vectors = _finite(model, await self.engine.encode(model, tokens.ids), "embedding")
        return TextEmbeddings(vectors, tokens.counts, model.clip.context_length)

    async def _embed_classes(self, model: LoadedModel, classes: list[str]) -> np.ndarray:
        """Embeddings (c, d) of classes of the caller's own over the package's prompts; those asked before are remembered."""
        found = model.learned_classes(classes)
        found |= model.known_classes.found([name for name in classes if name not in found])
        missing = [name for name in classes if name not in found]
        self._count_remembered("classes", len(found), len(missing))
        for start in range(0, len(missing), CLASSES_AT_ONCE):  # whoever asks again after a deadline goes on from there
            some = missing[start : start + CLASSES_AT_ONCE]
            embedded = await self._encode_texts(model, model.prompts_of(some))
            new = dict(zip(some, model.mean_over_prompts(embedded.vectors, len(some)), strict=True))
            model.known_classes.keep(new)
            found |= new
        return np.stack([found[name] for name in classes])

    def _count_remembered(self, kind: str, found: int, missing: int) -> None:
        self.metrics.remembered.labels(kind, "found").inc(found)
        self.metrics.remembered.labels(kind, "embedded").inc(missing)

    def _cut(self, model: LoadedModel, dimensions: int | None) -> Callable[[np.ndarray], np.ndarray]:
        """What shortens embeddings as asked; rejected when the model was not trained for that length."""
        self.check_dimensions(model, dimensions)
        if dimensions is None or dimensions == model.clip.embed_dim:
            return lambda embeddings: embeddings
        return lambda embeddings: _finite(model, model.cut(embeddings, dimensions), "embedding")

    @staticmethod
    def check_dimensions(model: LoadedModel, dimensions: int | None) -> None:
        """Raises RequestRejectedError for embeddings of a length that the model was not trained for."""
        if dimensions not in (None, model.clip.embed_dim, *model.dimensions):
            lengths = ", ".join(map(str, model.dimensions)) or "no other length"
            why = f"Version {model.version} of {model.domain} was not trained for embeddings of {dimensions} dimensions; allowed: {lengths}."
            raise RequestRejectedError(422, f"{why} Leave `dimensions` out for all {model.clip.embed_dim}.", "dimensions")

    @contextmanager
    def _side_effect(self, model: LoadedModel, what: str) -> Iterator[None]:
        """Around whatever else is done with an answer: it may fail, the answer may not."""
        try:
            yield
        except Exception:
            log.exception("%s: an answer of %s version %s was not noted", what, model.domain, model.version)
            self.metrics.side_effect_failures.labels(model.domain, what).inc()


def _finite(model: LoadedModel, numbers: np.ndarray, what: str) -> np.ndarray:
    """The numbers, if they are finite. Raises NonFiniteOutputError."""
    if not np.isfinite(numbers).all():
        item = int(np.flatnonzero(~np.isfinite(numbers).all(axis=1))[0]) + 1
        raise NonFiniteOutputError(
            f"Version {model.version} of {model.domain} gave NaN or infinity as {what} of item {item}, so there is no answer."
        )
    return numbers
