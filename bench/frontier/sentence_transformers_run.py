"""CLIP training as sentence-transformers does it, from the same start model; run by the environment that `environment` makes.

python -m bench.frontier.sentence_transformers_run '{"domain", "rows", "epochs", "seed", "side", "folder"}': `rows` is a table of
files and captions, and the trained weights are written to `folder`.
"""

import json
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.parallel_seeds import Run

BATCH = 64
REQUIRED = "sentence-transformers[train]==6.2.0"


def environment(folder: Path) -> Path:
    """The interpreter of an environment that has sentence-transformers, and whatever this one has; this one's, where it has it."""
    name, _, version = REQUIRED.replace("[train]", "").partition("==")
    if any(found.version == version for found in distributions(name=name)):
        return Path(sys.executable)
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        own = next(folder.glob("lib/python*/site-packages"))
        (own / "beside.pth").write_text(sysconfig.get_path("purelib") + "\n")
        subprocess.run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", REQUIRED], check=True)
    return python


def train(ask: "Run") -> None:
    import datasets
    import torch
    from PIL import Image
    from safetensors.torch import save_file
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.base.modules import InputModule
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    from clipft_tasks.data.images import square
    from clipft_tasks.model import build

    clip = build.load("starter", domain=ask["domain"])

    class Towers(InputModule):
        """Both towers of an open_clip model, as one module that tells images from texts."""

        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.model = clip.model

        @property
        def modalities(self) -> list[Any]:
            return ["text", "image"]

        def preprocess(self, inputs: Sequence[object], prompt: str | None = None, **more: object) -> dict[str, Any]:
            if isinstance(inputs[0], str):
                return {"input_ids": clip.tokenize([str(text) for text in inputs]), "modality": "text"}
            images = [image.convert("RGB") for image in inputs if isinstance(image, Image.Image)]
            squares = [torch.from_numpy(square(image, ask["side"], clip.aspect)) for image in images]
            return {"pixel_values": torch.stack(squares), "modality": "image"}

        def forward(self, features: dict[str, Any], **more: object) -> dict[str, Any]:
            if "input_ids" in features:
                found = clip.text_features(features["input_ids"])
            else:
                found = clip.image_features(clip.normalize(features["pixel_values"]))
            return {**features, "sentence_embedding": found}

        def save(self, output_path: str, *given: object, **more: object) -> None:
            pass

    table = json.loads(Path(ask["rows"]).read_text())
    model = SentenceTransformer(modules=[Towers()], device="cpu")
    rows = datasets.Dataset.from_dict({"image": table["file"], "caption": table["caption"]})

    def opened(batch: dict[str, list[str]]) -> Mapping[str, Sequence[object]]:
        return batch | {"image": [Image.open(path) for path in batch["image"]]} if "image" in batch else batch

    arguments = SentenceTransformerTrainingArguments(
        output_dir=ask["folder"], num_train_epochs=ask["epochs"], per_device_train_batch_size=BATCH, seed=ask["seed"],
        save_strategy="no", report_to="none", use_cpu=True, dataloader_drop_last=True, disable_tqdm=True,
    )  # fmt: skip
    trainer = SentenceTransformerTrainer(
        model=model, args=arguments, train_dataset=rows.with_transform(opened), loss=MultipleNegativesRankingLoss(model)
    )
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    save_file(
        {name: value.detach().contiguous() for name, value in clip.model.state_dict().items()}, Path(ask["folder"], "end")
    )
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    train(json.loads(sys.argv[1]))
