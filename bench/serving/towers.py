"""The towers that are served, registered in homes of their own, and what clients send."""

import base64
import copy
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

TOWERS = {"EfficientNet-Lite0 at 224 px": "starter", "ViT-B-32 (random weights)": "ViT-B-32"}
SMALL: dict[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 64, "layers": 4, "width": 128, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}  # a tower for who only wants to see that everything runs
DOMAIN = "general"
BODIES = 64  # different ones; clients take turns


def write_home(home: Path, tower: str) -> Path:
    """A home whose champion is a tower; made in a process of its own. Returns its package."""
    package = home / "package"
    if not (package / "card.json").exists():
        env = os.environ | {"CLIPFT_HOME": str(home), "HF_HUB_OFFLINE": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
        subprocess.run([sys.executable, "-m", "bench.serving.towers", tower, str(package)], env=env, check=True)
    return package


def register(tower: str, package: Path) -> None:
    """Write a tower as a package and make it the champion of the registry of this process's home."""
    import mlflow
    import open_clip
    import torch

    from clipft_tasks import tracking
    from clipft_tasks.contracts.model_card import ModelCard, Resolutions, Tokenizer
    from clipft_tasks.domains import get_domain
    from clipft_tasks.model import build, recorded_answers
    from clipft_tasks.model.clip import Clip, OpenClipConfig
    from clipft_tasks.model.package import preprocessing_of, write_package

    if tower == "starter":
        clip = build.load(tower, domain=DOMAIN)
    else:
        torch.manual_seed(0)
        preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
        known: dict[str, Any] = SMALL if tower == "small" else open_clip.get_model_config(tower)
        config: OpenClipConfig = {"model_cfg": known, "preprocess_cfg": preprocess}
        tokenizer = open_clip.SimpleTokenizer(context_length=known["text_cfg"]["context_length"])
        clip = Clip(open_clip.CLIP(**copy.deepcopy(known)).eval(), tokenizer, config, tower, "0" * 64)
        clip.preprocessing = preprocessing_of(get_domain(DOMAIN))
    images = np.random.default_rng(0).integers(0, 256, (2, 3, clip.side, clip.side), dtype=np.uint8)
    card = ModelCard(
        domain=DOMAIN, dataset="bench/v1", revision="0" * 40, classes=[], start=tower, embed_dim=clip.embed_dim,
        resolutions=Resolutions(train=[clip.side], serve=clip.side, evaluated=[clip.side]),
        tokenizer=Tokenizer(name=type(clip.tokenizer).__name__, context_length=clip.context_length), run_id="r", key="k",
    )  # fmt: skip
    write_package(package, clip, card, recorded_answers.record(clip, images, ["a photo of a cat", "a photo of a dog"]))
    tracking.client()  # says to MLflow where everything is
    mlflow.set_experiment(experiment_id=tracking.get_or_create_experiment("bench"))
    with mlflow.start_run() as run:
        mlflow.set_tag("clipft.model_uri", tracking.log_model(package))
    version, _ = tracking.register(DOMAIN, run.info.run_id, {}, "for a benchmark", tracking.digests(package))
    tracking.promote(DOMAIN, str(version.version))


def photo(number: int) -> bytes:
    """A JPEG of 640x480 with edges and noise, as large as a photo."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((640, 480), Image.Resampling.BICUBIC)
    noisy = np.asarray(coarse, dtype=int) + rng.integers(-20, 21, (480, 640, 1))
    out = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=85)
    return out.getvalue()


def images() -> list[str]:
    return [base64.b64encode(photo(number)).decode() for number in range(BODIES)]


def texts(repeated: bool) -> list[str]:
    """Captions: each new, or the same few again and again."""
    count = 8 if repeated else 100_000
    return [f"a photo of thing number {number}, seen from the side on a gray table" for number in range(count)]


def written(folder: Path, name: str, items: list[dict[str, object]]) -> Path:
    """Bodies as a file, one a line."""
    path = folder / f"{name}.jsonl"
    path.write_text("\n".join(map(json.dumps, items)))
    return path


if __name__ == "__main__":
    register(sys.argv[1], Path(sys.argv[2]))
