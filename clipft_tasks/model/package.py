"""The model package: the folder that is registered, served and reopened. Safetensors and JSON, no pickles.

    open_clip_config.json      architecture and preprocessing, as open_clip writes it
    open_clip_model.safetensors
    config.json, tokenizer*    of a transformers text tower, when the model has one
    similarity.safetensors     what the similarity learned, when it learns something; the card names it
    card.json                  domain, data version, resolutions, objective, scores, lineage
    reference.safetensors, .json  what the model was made for: what drift is measured against
    probe.json                 images, texts and the answers this model gave: what a deployment must reproduce

Plain open_clip opens it: `open_clip.create_model_and_transforms("local-dir:" + folder)`. A transformers text tower is
looked up at the relative name ".", so for those models the working directory must be the package.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import open_clip
from safetensors.torch import load_file, save_file

from ..core.errors import ClipftError
from .clip import Clip
from .similarity import Similarity
from .similarity import make as make_similarity

WEIGHTS = "open_clip_model.safetensors"
SIMILARITY = "similarity.safetensors"
CONFIG = "open_clip_config.json"
TOKENIZER_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json")


def open_folder(folder: Path, *, weights: bool = True) -> tuple[Any, Any]:
    """The model and tokenizer of a package (or of the starter), on the CPU in fp32 and in eval mode.

    Raises:
        ClipftError: when the folder is not a package, its weights may not be read, or do not fit its configuration.
    """
    config = read_config(folder)
    weights_file = folder / WEIGHTS
    if weights and weights_file.exists() and not os.access(weights_file, os.R_OK):  # safetensors would say that it is not there
        raise ClipftError(f"model package {folder}", f"{WEIGHTS} may not be read by this user", f"chmod a+r {weights_file}")
    overrides: dict[str, Any] = {}
    text = config["model_cfg"]["text_cfg"]
    if text.get("hf_model_name") == ".":
        overrides["text_cfg"] = text | {"hf_model_name": str(folder), "hf_model_pretrained": False}
    if not weights:  # open_clip warns on the root logger that there are none
        logging.disable(logging.WARNING)
    try:
        model = open_clip.create_model(f"local-dir:{folder}", load_weights=weights, **overrides)
        tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    except (OSError, ValueError, RuntimeError) as error:
        raise ClipftError(f"model package {folder}", str(error).splitlines()[0], "Register the model again.") from error
    finally:
        logging.disable(logging.NOTSET)
    return model.eval(), tokenizer


def open_similarity(folder: Path, width: int) -> Similarity:
    """The similarity that a package's card names, with what it learned; cosine where no card says another.

    Raises: ClipftError: when what it learned is not there.
    """
    card = folder / "card.json"
    name = json.loads(card.read_text()).get("similarity", "cosine") if card.exists() else "cosine"
    found = make_similarity(name, width)
    found.fitted = True
    if found.state_dict():
        try:
            found.load_state_dict(load_file(folder / SIMILARITY))
        except (OSError, RuntimeError) as error:
            why = f"{SIMILARITY} does not hold what {name} learned ({error})"
            raise ClipftError(f"model package {folder}", why, "Register the model again.") from error
    return found


def read_config(folder: Path) -> dict[str, Any]:
    """open_clip's configuration of a package: `model_cfg` and `preprocess_cfg`."""
    try:
        return json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise ClipftError(f"model package {folder}", f"{CONFIG} cannot be read ({error})", "Point at a package.") from error


def weights_digest(path: Path) -> str:
    """sha256 of a weights file: the identity of a model."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass
class Package:
    """What goes into a package beside the weights."""

    model_cfg: dict[str, Any]
    preprocess_cfg: dict[str, Any]
    card: dict[str, Any] = field(default_factory=dict)
    probe: dict[str, Any] = field(default_factory=dict)
    reference: Callable[[Path, str], None] | None = None  # writes its files, given folder and digest of the weights
    tokenizer_from: Path | None = None  # folder with the files of a transformers tokenizer


def write_package(folder: Path, clip: Clip, parts: Package) -> Path:
    """Write a package whole or not at all: built beside its place, then renamed."""
    building = folder.with_name(folder.name + ".building")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    state = {k: v.detach().cpu().contiguous() for k, v in clip.model.state_dict().items()}
    save_file(state, building / WEIGHTS, metadata={"format": "pt"})
    if learned := {k: v.detach().cpu().contiguous() for k, v in clip.similarity.state_dict().items()}:
        save_file(learned, building / SIMILARITY, metadata={"format": "pt"})
    _write_json(building / CONFIG, {"model_cfg": parts.model_cfg, "preprocess_cfg": parts.preprocess_cfg})
    _write_json(building / "card.json", parts.card)
    _write_json(building / "probe.json", parts.probe)
    if parts.reference:
        parts.reference(building, weights_digest(building / WEIGHTS))
    if parts.tokenizer_from:
        for name in TOKENIZER_FILES:
            if (parts.tokenizer_from / name).exists():
                shutil.copyfile(parts.tokenizer_from / name, building / name)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(building, folder)
    return folder


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False))
