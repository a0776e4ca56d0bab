"""Whether heatmaps show what an answer rests on: deletion and insertion on solar cells, and what a heatmap costs.

Deletion blurs the hottest places of a cell first, step by step; the probability of the answered class should fall soon. Insertion
starts from the blurred cell and brings the hottest places back; it should rise soon (Petsiuk et al. 2018,
https://arxiv.org/abs/1806.07421). `faithfulness` is the area under insertion less that under deletion. Two towers: the starter's
convolutions, as they are, and a small vision transformer that is trained here on the other cells; for the latter also attention
rollout (Abnar and Zuidema 2020, https://arxiv.org/abs/2005.00928).

    python -m bench.heatmaps                            # eleven minutes on one core
    python -m bench.heatmaps --cells 16 --epochs 1      # to see it work

To expect: better than places in random order and, for the transformer, than rollout, beyond chance; at most twice a forward pass.
The last line is JSON.
"""

import argparse
import io
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import open_clip
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.nn import functional

from clipft_tasks.data.images import square
from clipft_tasks.data.readers.elpv import Elpv
from clipft_tasks.model import attention, build
from clipft_tasks.model.clip import Clip
from clipft_tasks.model.heatmap import heatmaps
from clipft_tasks.spec import DataSpec

STEPS = 10
CLASSES = ["defective solar cell", "functional solar cell"]
VIT = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 128, "layers": 6, "width": 128, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
Order = Callable[[Tensor, np.ndarray], list[np.ndarray]]  # images (n, 3, s, s), answers (n,) -> heat of each image's places


@dataclass(frozen=True)
class Tower:
    """A model that answers.

    Attributes:
        texts: embeddings of the classes (2, d).
        seconds_forward, seconds_heatmap: of one image.
    """

    clip: Clip
    side: int
    texts: Tensor

    def probabilities(self, images: Tensor) -> np.ndarray:
        """uint8 (n, 3, s, s) -> (n, 2)."""
        with torch.inference_mode():
            scores = torch.cat([self.clip.similarity(self.clip.encode_images(some), self.texts) for some in images.split(32)])
            return torch.softmax(scores * self.clip.model.logit_scale.exp(), dim=1).numpy()

    def heat(self, images: Tensor, answers: np.ndarray) -> list[np.ndarray]:
        """What the product shows."""
        return [row[0] for row in heatmaps(self.clip, images, self.texts, [[int(a)] for a in answers])]


def cells(crystal: str) -> tuple[list[Image.Image], np.ndarray, np.ndarray]:
    """Photos, whether each is functional, and its group's number."""
    source = list(Elpv.open(crystal, DataSpec()).rows())
    images = [Image.open(io.BytesIO(row.image_bytes())).convert("RGB") for row in source]
    groups = np.unique([row.group for row in source], return_inverse=True)[1]
    return images, np.array([CLASSES.index(row.label) for row in source]), groups


def squares(images: Sequence[Image.Image], side: int) -> Tensor:
    return torch.from_numpy(np.stack([square(image, side) for image in images]))


def starter() -> Tower:
    clip = build.load("starter", domain="industrial")
    clip.model.eval()
    with torch.inference_mode():
        return Tower(clip, 224, clip.class_embeddings(CLASSES))


def transformer(images: list[Image.Image], labels: np.ndarray, epochs: int) -> Tower:
    """A small vision transformer whose features are trained towards one direction a class."""
    torch.manual_seed(0)
    config = {"model_cfg": VIT, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    clip = Clip(open_clip.CLIP(**VIT), open_clip.SimpleTokenizer(context_length=16), config, "small", "")  # type: ignore[arg-type]
    texts = functional.normalize(torch.randn(2, VIT["embed_dim"]), dim=1)  # type: ignore[call-overload]
    side = 128
    seen, truth = squares(images, side), torch.from_numpy(labels)
    weights = 1 / torch.bincount(truth).float()
    optimizer = torch.optim.AdamW(clip.model.visual.parameters(), lr=1e-3, weight_decay=0.05)
    batches = len(seen) // 32
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=epochs * batches)
    for epoch in range(epochs):
        for rows in torch.randperm(len(seen))[: batches * 32].split(32):
            batch = seen[rows]
            batch = batch.flip(-1) if torch.rand(()) < 0.5 else batch
            batch = torch.rot90(batch, int(torch.randint(4, ())), (-2, -1))
            embeddings = functional.normalize(clip.image_features(clip.normalize(batch)), dim=1)
            loss = functional.cross_entropy(embeddings @ texts.T * 14, truth[rows], weight=weights)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        print(f"  epoch {epoch + 1} of {epochs}: loss {loss.item():.3f}", flush=True)
    clip.model.eval()
    return Tower(clip, side, texts)


def rollout(tower: Tower, images: Tensor, answers: np.ndarray) -> list[np.ndarray]:
    """Attention of all layers multiplied up, of the class token: the same whatever the text is."""
    layers: list[Tensor] = []

    def attend(own: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, *args: object, **more: object) -> Tensor:
        layers.append(torch.softmax(query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5, dim=-1).mean(dim=1))
        return own(query, key, value, *args, **more)

    with torch.inference_mode(), attention.instead(attend):
        tower.clip.encode_images(images)
    joined = torch.eye(layers[0].shape[-1])
    for layer in layers:
        joined = (layer + torch.eye(layer.shape[-1])) / 2 @ joined
    rows, columns = tower.clip.tower.places(tower.side) or (0, 0)
    return list(joined[:, 0, 1:].reshape(-1, rows, columns).numpy())


def at_random(rng: np.random.Generator, grid: tuple[int, ...], images: Tensor, answers: np.ndarray) -> list[np.ndarray]:
    return [rng.random(grid) for _ in images]


def faithfulness(tower: Tower, images: Tensor, blurred: Tensor, answers: np.ndarray, heat: list[np.ndarray]) -> np.ndarray:
    """Areas (n, 2) under deletion and insertion."""
    areas = np.zeros((len(images), 2))
    rank = torch.from_numpy(np.stack([(-one).argsort(axis=None).argsort().reshape(one.shape) for one in heat]))
    shares = np.linspace(0, 1, STEPS + 1)
    for share in shares:
        hot = (rank < share * rank[0].numel())[:, None].float()
        mask = functional.interpolate(hot, size=images.shape[-2:], mode="nearest") > 0
        for kind, mixed in enumerate((torch.where(mask, blurred, images), torch.where(mask, images, blurred))):
            areas[:, kind] += tower.probabilities(mixed)[np.arange(len(images)), answers] / len(shares)
    return areas


def cost(tower: Tower, image: Tensor, rounds: int) -> tuple[float, float]:
    """Median seconds of a forward pass and of a heatmap of one image, in turns."""
    seconds: list[list[float]] = [[], []]
    calls: list[Callable[[], object]] = [partial(tower.probabilities, image), partial(tower.heat, image, np.zeros(1, int))]
    for _ in range(rounds):
        for kind, call in enumerate(calls):
            began = time.perf_counter()
            call()
            seconds[kind].append(time.perf_counter() - began)
    return float(np.median(seconds[0][2:])), float(np.median(seconds[1][2:]))


def interval(values: np.ndarray) -> list[float]:
    """95% of the mean over cells, by bootstrap."""
    rng = np.random.default_rng(0)
    means = [values[rng.integers(0, len(values), len(values))].mean() for _ in range(2000)]
    return [round(float(x), 4) for x in np.quantile(means, [0.025, 0.975])]


def measured(name: str, tower: Tower, images: list[Image.Image], methods: dict[str, Order], rounds: int) -> dict[str, object]:
    sharp = squares(images, tower.side)
    blurred = squares([i.filter(ImageFilter.GaussianBlur(i.width / 12)) for i in images], tower.side)
    answers = tower.probabilities(sharp).argmax(axis=1)
    areas = {method: faithfulness(tower, sharp, blurred, answers, order(sharp, answers)) for method, order in methods.items()}
    gains = {method: found[:, 1] - found[:, 0] for method, found in areas.items()}
    forward, heatmap = cost(tower, sharp[:1], rounds)
    print(f"\n{name}, {len(images)} cells of {tower.side} px\n{'':12} deletion  insertion  faithfulness")
    for method, found in areas.items():
        print(f"{method:12} {found[:, 0].mean():8.3f} {found[:, 1].mean():10.3f} {gains[method].mean():13.3f}")
    print(f"a heatmap takes {heatmap / forward:.2f} times a forward pass ({1000 * forward:.1f} ms)")
    return {
        "faithfulness": {method: round(float(gain.mean()), 4) for method, gain in gains.items()},
        "better_by": {m: interval(gains["heatmap"] - gain) for m, gain in gains.items() if m != "heatmap"},
        "cost": round(heatmap / forward, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=12, help="of the vision transformer")
    options = parser.parse_args()
    images, labels, groups = cells("all")
    is_test = groups % 4 == 0
    picked = np.flatnonzero(is_test)[np.linspace(0, is_test.sum() - 1, options.cells).astype(int)]
    shown = [images[i] for i in picked]
    rng = np.random.default_rng(0)
    found: dict[str, object] = {}
    first = starter()
    methods: dict[str, Order] = {"heatmap": first.heat, "random": partial(at_random, rng, (7, 7))}
    found["starter"] = measured("starter", first, shown, methods, rounds=12)

    train = np.flatnonzero(~is_test)
    second = transformer([images[i] for i in train], labels[train], options.epochs)
    right = (second.probabilities(squares(shown, second.side)).argmax(axis=1) == labels[picked]).mean()
    print(f"the vision transformer is right about {right:.2f} of the cells")
    methods = {
        "heatmap": second.heat,
        "random": partial(at_random, rng, (8, 8)),
        "rollout": partial(rollout, second),
    }
    found["transformer"] = measured("vision transformer", second, shown, methods, rounds=40) | {
        "accuracy": round(float(right), 3)
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
