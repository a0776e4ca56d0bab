"""What is trained: images that are drawn here and a CLIP of two layers, so that a round takes seconds."""

import json
from pathlib import Path

DOMAIN = "squares"  # of its own: a re-adaptation takes its form from the domain
COLORS = {"red square": (200, 40, 40), "blue square": (40, 40, 200)}
LATER = {"green square": (40, 200, 40), "red square": COLORS["red square"]}  # what arrives once the model is live
MODEL: dict[str, dict[str, object]] = {
    "model_cfg": {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
        "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    },
    "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"},
}
PROFILE = """from clipft_tasks.domains import Domain

DOMAIN = Domain({name!r}, "Colored squares", ("a photo of a {{}}.",), "a photo of a {{}}.", capture_share=1.0, defaults={defaults!r})
"""


def images(folder: Path, per_class: int, colors: dict[str, tuple[int, int, int]] = COLORS) -> Path:
    """Noisy squares of two colors, a folder a class; those of a larger number are those of a smaller one and more."""
    import numpy as np
    from PIL import Image

    for place, (label, color) in enumerate(colors.items()):
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


def domain_file(folder: Path) -> Path:
    """Where the file with the domain is."""
    return folder / f"{DOMAIN}.py"


def domain(path: Path, start: Path) -> None:
    """Write the domain, whose runs take seconds and pass the gate."""
    defaults: dict[str, object] = {
        "model.start": str(start), "resolution.train": 32, "resolution.evaluate": [32, 48], "train.epochs": 12, "train.batch": 16,
        "train.learning_rate": 1e-3, "train.checkpoint_seconds": 1, "memory.device": "cpu", "memory.precision": "fp32",
        "evaluate.bootstrap": 100, "gate.rules": ["gain(score) >= -1"],
    }  # fmt: skip
    path.write_text(PROFILE.format(name=DOMAIN, defaults=defaults))


def later(folder: Path) -> Path:
    """Where the images are that arrive once a model is live, a folder a class."""
    return folder / "later"


def forms(folder: Path, number: int) -> dict[str, dict[str, object]]:
    """The DAGs of a round, and what their forms hold; from the second round on there is a version to go back to."""
    found: dict[str, dict[str, object]] = {
        "clipft_dataset": {"domain": DOMAIN, "source": str(folder / f"images-{number}")},
        "clipft_finetune": {"domain": DOMAIN, "dataset": f"{DOMAIN}/v{number}", "train.seed": number},
    }
    return found | ({"clipft_rollback": {"domain": DOMAIN}} if number > 1 else {})


def make(folder: Path, rounds: int) -> None:
    """Domain, start model and sources of all rounds, and what arrives later."""
    domain(domain_file(folder), model(folder / "model"))
    for number in range(1, rounds + 1):
        images(folder / f"images-{number}", 16 + 8 * number)
    images(later(folder), 60, LATER)
