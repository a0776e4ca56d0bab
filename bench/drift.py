"""False alarms, sensitivity and cost of drift detection: python -m bench.drift [--peers PYTHON]

The starter, fine-tuned on monocrystalline elpv; undrifted traffic is its test split (modules that training never saw), shifted
traffic the same images changed, or others. Then drawings of molecules alike. `--peers` names a Python that has evidently and alibi-detect (they need older
packages than ours: `uv venv peers; uv pip install evidently==0.7.23 alibi-detect==0.13.0 tensorflow-cpu==2.15.1
tensorflow-probability==0.23.0`); both then see the same embeddings at their defaults.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from clipft_tasks.core.settings import settings

if TYPE_CHECKING:
    from clipft_tasks.data.versioning import Dataset
    from clipft_tasks.drift.reference import ImageRows, Reference
    from clipft_tasks.model.clip import Clip
    from clipft_tasks.spec import RunSpec

SIDE, EPOCHS = 128, 3
WINDOWS = 200  # undrifted
EACH = 40  # windows of each shift
SIZE = 64  # rows of a window: the least that says anything
STEP = 4  # requests between two looks, in the count until an alert

SHIFTS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "blur, 1 px": lambda p: p.filter(ImageFilter.GaussianBlur(1)),
    "blur, 3 px": lambda p: p.filter(ImageFilter.GaussianBlur(3)),
    "10% darker": lambda p: ImageEnhance.Brightness(p).enhance(0.9),
    "30% darker": lambda p: ImageEnhance.Brightness(p).enhance(0.7),
    "30% brighter": lambda p: ImageEnhance.Brightness(p).enhance(1.3),
    "turned by 5°": lambda p: p.rotate(5),
    "turned by 15°": lambda p: p.rotate(15),
    "camera of 100 px": lambda p: p.resize((100, 100)),
    "camera of 400x300 px": lambda p: p.resize((400, 300)),
}


@dataclass
class Watched:
    """A model that was fine-tuned on a data set, its reference, and its eye."""

    dataset: "Dataset"
    spec: "RunSpec"
    clip: "Clip"
    reference: "Reference"
    rows: "Callable[[list[Image.Image]], ImageRows]"

    @classmethod
    def trained(cls, domain_name: str, source: str, epochs: int) -> "Watched":
        """The starter, fine-tuned by the ordinary stages."""
        from clipft_tasks.data import versioning
        from clipft_tasks.data.images import square
        from clipft_tasks.domains import get_domain
        from clipft_tasks.drift.build_reference import build_reference
        from clipft_tasks.drift.image_statistics import appearance
        from clipft_tasks.drift.reference import ImageRows
        from clipft_tasks.model import build
        from clipft_tasks.model.held_out import HeldOut
        from clipft_tasks.spec import RunSpec
        from clipft_tasks.stages import ingest, version
        from clipft_tasks.train import launch, plan, start_defaults

        domain = get_domain(domain_name)
        spec = RunSpec.from_flat(
            {
                "domain": domain_name,
                "source": source,
                "train.epochs": epochs,
                "resolution.train": SIDE,
                "train.checkpoint_seconds": 1e9,
            }
        )
        made = version.run(spec, ingest.run(spec).staging)
        dataset = versioning.fetch(versioning.find(made.dataset, domain_name))
        clip = build.load("starter")
        spec = start_defaults.settle(spec, clip)
        build.prepare(clip, spec)
        decided = plan.make(spec, clip, len(dataset.split("train")))
        folder = settings().folder("bench", domain_name)
        launch.train(
            launch.Job(spec=spec, plan=decided, start="starter", dataset=dataset.version.tag, key="bench", folder=folder),
            clip,
            lambda rows: None,
        )
        with torch.inference_mode():
            of_classes = clip.class_embeddings(dataset.classes).numpy()

        def rows(images: list[Image.Image]) -> ImageRows:
            squares = torch.from_numpy(np.stack([square(p, SIDE, clip.aspect) for p in images]))
            with torch.inference_mode():
                image = torch.cat([clip.encode_images(squares[i : i + 64]) for i in range(0, len(squares), 64)]).numpy()
            return ImageRows(image, np.stack([appearance(p) for p in images]), clip.similarity.compare(image, of_classes))

        return cls(
            dataset, spec, clip, build_reference(clip, dataset, domain, SIDE, "bench", HeldOut.of(clip, dataset, SIDE)), rows
        )

    def plain(self) -> list[Image.Image]:
        """The images of the test split, which no training saw."""
        return [self.clip.open_image(self.dataset.image_bytes(r)).rgb for r in self.dataset.split("test").itertuples()]


def cells() -> tuple["Reference", dict[str, "ImageRows"], dict[str, np.ndarray]]:
    """elpv: the reference, image rows by kind of traffic, and text embeddings by kind."""
    from sklearn.datasets import load_sample_images

    from clipft_tasks.data.readers import open_source

    watched = Watched.trained("industrial", "elpv:mono", EPOCHS)
    test, plain, rows = watched.dataset.split("test"), watched.plain(), watched.rows
    found = {"undrifted": rows(plain)} | {name: rows([change(p) for p in plain]) for name, change in SHIFTS.items()}
    poly = list(open_source("elpv:poly", watched.spec.data).rows())
    random.Random(0).shuffle(poly)
    found["polycrystalline cells"] = rows([watched.clip.open_image(r.image_bytes()).rgb for r in poly[:252]])
    defective = [p for p, label in zip(plain, test["label"], strict=True) if label.startswith("defective")]
    found["defective cells only"] = rows(defective)
    rng = random.Random(0)
    scenes = [Image.fromarray(i) for i in load_sample_images().images]
    crops = [(s, rng.randrange(s.width - 200), rng.randrange(s.height - 200)) for s in (rng.choice(scenes) for _ in range(252))]
    found["no cells at all"] = rows([s.crop((x, y, x + 200, y + 200)) for s, x, y in crops])
    captions = test["caption"].tolist()
    spanish = [
        c.replace("an electroluminescence image of a", "una imagen de electroluminiscencia de una célula solar")
        .replace("defective", "defectuosa")
        .replace("functional", "funcional")
        .replace("monocrystalline solar cell", "monocristalina")
        for c in captions
    ]
    with torch.inference_mode():
        texts = {
            kind: watched.clip.encode_texts(t).numpy()
            for kind, t in (("undrifted texts", captions), ("texts in Spanish", spanish))
        }
    return watched.reference, found, texts


def molecules() -> dict[str, Any]:
    """Drawings of molecules, whose groups are scaffolds: alarms of undrifted windows, and of some that changed."""
    watched = Watched.trained("scientific", "molecules:1500", 2)
    plain, rng = watched.plain(), np.random.default_rng(0)
    changes: dict[str, Callable[[Image.Image], Image.Image]] = {"undrifted": lambda p: p} | {
        n: SHIFTS[n] for n in ("blur, 3 px", "30% darker", "turned by 15°", "camera of 100 px")
    }
    changes["white on black"] = ImageOps.invert
    out = {}
    print(f"\nMolecules: reference of {len(watched.reference.rows)} drawings\n\n| traffic | alarms |\n|---|---|")
    for name, change in changes.items():
        seen, count = watched.rows([change(p) for p in plain]), WINDOWS if name == "undrifted" else EACH
        windows = [seen.take(rng.choice(len(seen), SIZE, replace=False)) for _ in range(count)]
        out[name] = sum(ours(watched.reference, w)[0] > 1 for w in windows) / count
        print(f"| {name} ({count} windows) | {out[name]:.1%} |", flush=True)
    return out


def ours(reference: "Reference", rows: "ImageRows", text: np.ndarray | None = None) -> tuple[float, float]:
    """The worst signal of a window, and seconds to measure it."""
    from clipft_tasks.drift.window import Window

    window = Window(reference)
    window.add_images(rows.image, rows.appearance, rows.similarity)
    if text is not None:
        window.add_texts(text)
    began = time.perf_counter()
    metrics = window.measure()
    return metrics.worst[1], time.perf_counter() - began


def until_alert(reference: "Reference", before: "ImageRows", shifted: "ImageRows", seed: int) -> int | None:
    """Requests of the new kind until a window that was full of the old kind alarms; None when it never does."""
    from clipft_tasks.drift.window import Window

    rng = np.random.default_rng(seed)
    window = Window(reference)
    old = rng.integers(0, len(before), window.size)
    window.add_images(before.image[old], before.appearance[old], before.similarity[old])
    order = rng.permutation(len(shifted))
    for start in range(0, len(order), STEP):
        part = order[start : start + STEP]
        window.add_images(shifted.image[part], shifted.appearance[part], shifted.similarity[part])
        if window.measure(permutations=200).worst[1] > 1:
            return start + len(part)
    return None


PEERS = """
import json, sys, time, warnings, logging
warnings.filterwarnings("ignore"); logging.disable(logging.CRITICAL)
import numpy as np, pandas as pd
from alibi_detect.cd import MMDDrift
from evidently.legacy.metrics import EmbeddingsDriftMetric
from evidently.legacy.pipeline.column_mapping import ColumnMapping
from evidently.legacy.report import Report
data = np.load(sys.argv[1]); reference = data["reference"]; out = {}
detector = MMDDrift(reference); detector.predict(data["w0"])
columns = [f"e{i}" for i in range(reference.shape[1])]
old = pd.DataFrame(reference, columns=columns)
def evidently(window):
    report = Report(metrics=[EmbeddingsDriftMetric("e")])
    report.run(reference_data=old, current_data=pd.DataFrame(window, columns=columns), column_mapping=ColumnMapping(embeddings={"e": columns}))
    found = report.as_dict()["metrics"][0]["result"]
    return bool(found["drift_detected"]), float(found["drift_score"])
evidently(data["w0"])
for name in [n for n in data.files if n != "reference"]:
    began = time.perf_counter(); found = detector.predict(data[name])["data"]; seconds = time.perf_counter() - began
    began = time.perf_counter(); detected, score = evidently(data[name]); slow = time.perf_counter() - began
    out[name] = {"alibi": [bool(found["is_drift"]), float(found["distance"]), seconds], "evidently": [detected, score, slow]}
print("RESULT" + json.dumps(out))
"""


def peers(python: str, reference: "Reference", windows: dict[str, list[np.ndarray]]) -> dict[str, dict[str, list[list[float]]]]:
    """What alibi-detect's MMD and Evidently's embedding drift say of the same windows: by traffic, by peer, (alarm, score, seconds)."""
    arrays = {f"w{i}": w for i, w in enumerate(w for found in windows.values() for w in found)}
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder, "w.npz"), allow_pickle=False, reference=reference.rows.image, **arrays)
        env = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
        done = subprocess.run(
            [python, "-c", PEERS, str(Path(folder, "w.npz"))], capture_output=True, text=True, env=env, check=False
        )
    if "RESULT" not in done.stdout:
        raise SystemExit(done.stderr[-3000:])
    said = iter(json.loads(done.stdout.rsplit("RESULT", 1)[1]).values())
    out: dict[str, dict[str, list[list[float]]]] = {}
    for name, found in windows.items():
        answers = [next(said) for _ in found]
        out[name] = {peer: [a[peer] for a in answers] for peer in ("alibi", "evidently")}
    return out


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--peers", default="", help="a Python with evidently and alibi-detect")
    parser.add_argument("--peer-windows", type=int, default=3, help="windows of each kind of traffic that the peers see")
    asked = parser.parse_args()
    reference, found, texts = cells()
    rng = np.random.default_rng(0)
    drawn = {
        name: [rng.choice(len(rows), SIZE, replace=False) for _ in range(WINDOWS if name == "undrifted" else EACH)]
        for name, rows in found.items() if len(rows) >= SIZE
    }  # fmt: skip
    metrics: dict[str, Any] = {"limits": reference.limits}
    results = {name: [ours(reference, found[name].take(i)) for i in picks] for name, picks in drawn.items()}
    seconds = float(np.median([s for r in results.values() for _, s in r]))
    metrics["seconds_per_window"] = seconds
    metrics["false_alarms"] = sum(worst > 1 for worst, _ in results["undrifted"])
    print(f"{os.cpu_count()} cores; reference of {len(reference.rows)} images, windows of {SIZE}")
    print(f"\nUndrifted: {metrics['false_alarms']} of {WINDOWS} windows alarm.")
    for name, text in texts.items():
        picks = [rng.choice(len(text), SIZE, replace=False) for _ in range(EACH)]
        plain = found["undrifted"].take(drawn["undrifted"][0])
        metrics[name] = float(np.mean([ours(reference, plain, text[p])[0] > 1 for p in picks]))
        print(f"{name}: {metrics[name]:.0%} of {EACH} windows alarm.")

    beside = {}
    if asked.peers:
        some = {
            name: [found[name].image[i] for i in picks[: asked.peer_windows * (3 if name == "undrifted" else 1)]]
            for name, picks in drawn.items()
        }
        beside = peers(asked.peers, reference, some)
    print("\n| traffic | alarms | requests until alert (median of 5) |" + (" alibi-detect MMD | Evidently |" if beside else ""))
    print("|---|---|---|" + ("---|---|" if beside else ""))
    for name, outcome in results.items():
        rate = float(np.mean([worst > 1 for worst, _ in outcome]))
        waits = [] if name == "undrifted" else [until_alert(reference, found["undrifted"], found[name], s) for s in range(5)]
        wait = sorted(w if w is not None else 10**6 for w in waits)[2] if waits else None
        shown = "" if wait is None else "never" if wait == 10**6 else str(wait)
        line = f"| {name} | {rate:.0%} | {shown} |"
        metrics[name] = {"alarms": rate, "requests_until_alert": None if wait in (None, 10**6) else wait}
        if beside:
            for peer in ("alibi", "evidently"):
                share = float(np.mean([a[0] for a in beside[name][peer]]))
                metrics[name][peer] = share
                line += f" {share:.0%} |"
        print(line, flush=True)
    if beside:
        for peer in ("alibi", "evidently"):
            cost = float(np.median([a[2] for r in beside.values() for a in r[peer]]))
            # Equal false alarms: a peer's threshold is the highest score that it gave undrifted windows.
            top = max(a[1] for a in beside["undrifted"][peer])
            caught = {n: float(np.mean([a[1] > top for a in r[peer]])) for n, r in beside.items() if n != "undrifted"}
            metrics[f"{peer}_seconds_per_window"] = cost
            metrics[f"{peer}_at_no_false_alarm"] = caught
            mean = float(np.mean(list(caught.values())))
            print(
                f"{peer}: {1000 * cost:.0f} ms a window, {cost / seconds:.0f} times ours; at no false alarm it sees {mean:.0%} of shifted windows."
            )
    mine = float(np.mean([metrics[n]["alarms"] for n in results if n != "undrifted"]))
    print(f"clipft: {1000 * seconds:.1f} ms a window; it sees {mine:.0%} of shifted windows.")
    print(json.dumps(metrics | {"molecules": molecules()}))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:
        os.environ["CLIPFT_HOME"] = home
        settings.cache_clear()
        main()
        sys.stdout.flush()
