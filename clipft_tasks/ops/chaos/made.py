"""What is trained: images that are drawn here and a CLIP of two layers, so that a round takes seconds."""

import json
from pathlib import Path

DOMAIN = "general"
COLORS = {"red square": (200, 40, 40), "blue square": (40, 40, 200)}
MODEL: dict[str, dict[str, object]] = {
    "model_cfg": {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
        "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    },
    "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"},
}


def images(folder: Path, per_class: int) -> Path:
    """Noisy squares of two colors, a folder a class; those of a larger number are those of a smaller one and more."""
    import numpy as np
    from PIL import Image

    for place, (label, color) in enumerate(COLORS.items()):
        (folder / label).mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            rng = np.random.default_rng(number + 10_000 * place)
            noise = np.kron(rng.integers(0, 90, (16, 16, 3)), np.ones((3, 3, 1), dtype=int))
            Image.fromarray((noise + color - 45).clip(0, 255).astype(np.uint8)).save(folder / label / f"{number:03d}.png")
    return folder


def model(folder: Path) -> Path:
    """A package folder with random weights, always the same."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    made = open_clip.CLIP(**MODEL["model_cfg"])
    save_file({name: value.contiguous() for name, value in made.state_dict().items()}, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps(MODEL))
    return folder


def forms(folder: Path, number: int) -> tuple[dict[str, object], dict[str, object]]:
    """What the forms of `clipft_dataset` and `clipft_finetune` of a round hold."""
    start = str(folder / "model")
    data: dict[str, object] = {"domain": DOMAIN, "source": str(folder / f"images-{number}"), "model.start": start}
    training: dict[str, object] = {
        "domain": DOMAIN, "dataset": f"{DOMAIN}/v{number}", "model.start": start, "resolution.train": 32,
        "resolution.evaluate": [32, 48], "train.epochs": 12, "train.batch": 16, "train.learning_rate": 1e-3,
        "train.checkpoint_seconds": 1, "train.seed": number, "memory.device": "cpu", "memory.precision": "fp32",
        "evaluate.bootstrap": 100, "gate.rules": ["gain(score) >= -1"],
    }  # fmt: skip
    return data, training


def make(folder: Path, rounds: int) -> None:
    """Sources and start model of all rounds."""
    model(folder / "model")
    for number in range(1, rounds + 1):
        images(folder / f"images-{number}", 16 + 8 * number)
