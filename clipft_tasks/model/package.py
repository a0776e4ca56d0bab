"""The model package: the folder that is registered, served and reopened. Safetensors and JSON, no pickles.

    open_clip_config.json      architecture, and what open_clip knows of preprocessing (size, aspect, mean, deviation)
    open_clip_model.safetensors
    config.json, tokenizer*    of a transformers text tower, when the model has one
    similarity.safetensors     what the similarity learned, when it learns something; the card names it
    classes.safetensors        embeddings of the card's classes that were fitted to a few images, where they were
    preprocessing.json         the rest of preprocessing: how deep gray is read, how classes are worded
    card.json                  format, domain, data version, resolutions, objective, scores, lineage
    calibration.json           how sure its answers may be; none where no validation row has a label
    reference.safetensors, .json  what the model was made for: what drift is measured against
    recorded_answers.json      images, texts and the answers this model gave: what a deployment must reproduce
    README.md                  the card for people, as the Hugging Face hub shows it

Whoever opens a package needs nothing else: no domain file of the reading process changes what the model answers. Packages
from before formats were numbered have no `preprocessing.json` (their domain's file says it, with a warning) and call their
recorded answers `probe.json`.

Plain open_clip opens it: `open_clip.create_model_and_transforms("local-dir:" + folder)`. A transformers text tower is
looked up at the relative name ".", so for those models the working directory must be the package.
"""

import copy
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import open_clip
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..contracts.base import VersionedRecord
from ..contracts.calibration import Calibration
from ..contracts.model_card import ModelCard
from ..contracts.preprocessing import Preprocessing
from ..contracts.recorded_answers import RecordedAnswers
from ..core.console import say
from ..core.errors import ClipftError
from ..core.files import atomic_folder
from ..data.images import open_image
from ..domains import Domain, get_domain
from .clip import Clip, OpenClipConfig, Tokenizer
from .hub_card import README, readme
from .image_tower import OpenClipModule
from .similarity import Similarity
from .similarity import make as make_similarity

WEIGHTS = "open_clip_model.safetensors"
SIMILARITY = "similarity.safetensors"
CONFIG = "open_clip_config.json"
CLASSES = "classes.safetensors"
CARD = "card.json"
PREPROCESSING = "preprocessing.json"
CALIBRATION = "calibration.json"
RECORDED_ANSWERS = "recorded_answers.json"
RECORDED_ANSWERS_BEFORE = "probe.json"  # its name before formats were numbered
# Of a transformers text tower, and of transformers' tokenizers, which write their vocabulary in files of several names.
TOKENIZER_FILES = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "merges.txt", "special_tokens_map.json",
    "added_tokens.json", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model",
)  # fmt: skip

R = TypeVar("R", bound=VersionedRecord)


def open_folder(folder: Path, *, weights: bool = True) -> tuple[OpenClipModule, Tokenizer]:
    """The model and tokenizer of a package (or of the starter), on the CPU in fp32 and in eval mode.

    Raises:
        ClipftError: when the folder is not a package, its weights may not be read, or do not fit its configuration.
    """
    config = read_config(folder)
    weights_file = folder / WEIGHTS
    if weights and weights_file.exists() and not os.access(weights_file, os.R_OK):  # safetensors would say that it is not there
        raise ClipftError(
            f"model package {folder}",
            f"{WEIGHTS} may not be read by this user",
            f"chmod a+r {weights_file}",
            code="package.not_readable",
        )
    text = config["model_cfg"]["text_cfg"]
    local = {"hf_model_name": str(folder), "hf_model_pretrained": False}
    overrides = {"text_cfg": text | local} if text.get("hf_model_name") == "." else {}
    if not weights:  # open_clip warns on the root logger that there are none
        logging.disable(logging.WARNING)
    try:
        model = open_clip.create_model(f"local-dir:{folder}", load_weights=weights, **overrides)
        tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    except (OSError, ValueError, RuntimeError) as error:
        raise ClipftError(
            f"model package {folder}", str(error).splitlines()[0], "Register the model again.", code="package.invalid"
        ) from error
    finally:
        logging.disable(logging.NOTSET)
    return model.eval(), tokenizer


def open_similarity(folder: Path, width: int) -> Similarity:
    """The similarity that a package's card names, with what it learned; cosine where there is no card.

    Raises: ClipftError: when what it learned is not there.
    """
    name = read_card(folder).similarity if (folder / CARD).exists() else "cosine"
    found = make_similarity(name, width)
    found.fitted = True
    if found.state_dict():
        try:
            found.load_state_dict(load_file(folder / SIMILARITY))
        except (OSError, RuntimeError) as error:
            why = f"{SIMILARITY} does not hold what {name} learned ({error})"
            raise ClipftError(f"model package {folder}", why, "Register the model again.", code="package.invalid") from error
    return found


def read_config(folder: Path) -> OpenClipConfig:
    """open_clip's configuration of a package."""
    try:
        config: OpenClipConfig = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise ClipftError(
            f"model package {folder}", f"{CONFIG} cannot be read ({error})", "Point at a package.", code="package.invalid"
        ) from error
    return config


def read_card(folder: Path) -> ModelCard:
    """A package's card. Raises ClipftError where it is missing, broken, or of a newer release."""
    return _read(folder, CARD, ModelCard)


def read_recorded_answers(folder: Path) -> RecordedAnswers:
    """What a package's model answered when it was packaged. Raises ClipftError as `read_card`."""
    before = (folder / RECORDED_ANSWERS_BEFORE).exists() and not (folder / RECORDED_ANSWERS).exists()
    return _read(folder, RECORDED_ANSWERS_BEFORE if before else RECORDED_ANSWERS, RecordedAnswers)


def read_calibration(folder: Path) -> Calibration | None:
    """How sure a package's answers may be; None where it has none. Raises ClipftError as `read_card`."""
    return _read(folder, CALIBRATION, Calibration) if (folder / CALIBRATION).exists() else None


def read_learned(folder: Path) -> dict[str, torch.Tensor]:
    """Embeddings (d,) of the classes that a package's model was fitted to, by name; {} where its prompts word them.

    Raises: ClipftError as `read_card`, and where they are not those of the card's classes.
    """
    if not (folder / CLASSES).exists():
        return {}
    card = read_card(folder)
    try:
        found = load_file(folder / CLASSES)["embeddings"]
        if found.shape != (len(card.classes), card.embed_dim):
            raise ValueError(f"of shape {tuple(found.shape)}, for {len(card.classes)} classes")
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
        why = f"{CLASSES} does not hold an embedding of each class ({error})"
        raise ClipftError(f"model package {folder}", why, "Register the model again.", code="package.invalid") from error
    return dict(zip(card.classes, found, strict=True))


def read_preprocessing(folder: Path) -> Preprocessing:
    """How a package's model wants its images read and its classes worded.

    A package from before formats were numbered does not say: then it is what its domain's file says today, with a warning.

    Raises: ClipftError as `read_card`.
    """
    if (folder / PREPROCESSING).exists() or "format" in _json(folder, CARD):
        return _read(folder, PREPROCESSING, Preprocessing)
    card = read_card(folder)
    say(
        f"Warning: the package of {card.domain} in {folder} is from a release that did not pack its preprocessing: gray depth and "
        f"prompts are those of the domain {card.domain} as it is today. Register the model again to keep them with it."
    )
    return preprocessing_of(get_domain(card.domain))


def preprocessing_of(domain: Domain) -> Preprocessing:
    """What a model that is made for a domain is trained with, hence packed with."""
    return Preprocessing(gray_bits=domain.gray_bits, prompts=domain.prompts)


def image_decoder(folder: Path) -> Callable[[bytes], Image.Image]:
    """A function from an image file's bytes to RGB, as the package's model wants it; what `mlflow.pyfunc` calls.

    The function raises BadImageError. Scripts that were logged with models import this by name: it stays.
    """
    gray_bits = read_preprocessing(folder).gray_bits
    return lambda data: open_image(data, gray_bits=gray_bits).rgb


def weights_digest(path: Path) -> str:
    """sha256 of a weights file: the identity of a model."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_package(
    folder: Path,
    clip: Clip,
    card: ModelCard,
    recorded: RecordedAnswers,
    reference: Callable[[Path, str], None] | None = None,
    calibration: Calibration | None = None,
) -> Path:
    """Write a package whole or not at all.

    Args:
        reference: writes the reference's files, given the folder and the digest of the weights.
    Raises: ClipftError where the model was prepared for no domain, so that its preprocessing is not known.
    """
    preprocessing = clip.prepared()
    with atomic_folder(folder) as building:
        write_model(building, clip)
        if learned := {k: v.detach().cpu().contiguous() for k, v in clip.similarity.state_dict().items()}:
            save_file(learned, building / SIMILARITY, metadata={"format": "pt"})
        if clip.learned:
            fitted = torch.stack([clip.learned[name] for name in card.classes]).detach().cpu().contiguous()
            save_file({"embeddings": fitted}, building / CLASSES, metadata={"format": "pt"})
        records = {CARD: card, PREPROCESSING: preprocessing, RECORDED_ANSWERS: recorded, CALIBRATION: calibration}
        for name, record in records.items():
            if record:
                (building / name).write_text(json.dumps(record.to_json(), indent=1, sort_keys=True, ensure_ascii=False))
        (building / README).write_text(readme(card, f"clipft-{card.domain}"), "utf-8")
        if reference:
            reference(building, weights_digest(building / WEIGHTS))
    return folder


def write_model(folder: Path, clip: Clip) -> None:
    """What open_clip needs of a package, into a folder: weights, configuration, and the tokenizer where it is not open_clip's own."""
    state = {k: v.detach().cpu().contiguous() for k, v in clip.model.state_dict().items()}
    save_file(_untied(state), folder / WEIGHTS, metadata={"format": "pt"})
    config = copy.deepcopy(clip.config)
    text = config["model_cfg"]["text_cfg"]
    if (inner := getattr(clip.tokenizer, "tokenizer", None)) is not None:  # of transformers
        inner.save_pretrained(folder)
    if "hf_model_name" in text:
        clip.model.text.config.save_pretrained(folder)
        text |= {"hf_model_name": ".", "hf_tokenizer_name": ".", "hf_model_pretrained": False}
    for name in TOKENIZER_FILES:  # as they came, where they came as files
        if clip.folder and (clip.folder / name).exists():
            shutil.copyfile(clip.folder / name, folder / name)
    (folder / CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True, ensure_ascii=False))


def _untied(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of which no two share memory, which safetensors would refuse: a tower may use one under two names."""
    seen: set[int] = set()
    out = {}
    for name, value in state.items():
        out[name] = value.clone() if value.data_ptr() in seen else value
        seen.add(value.data_ptr())
    return out


def _read(folder: Path, name: str, kind: type[R]) -> R:
    return kind.from_json(_json(folder, name), str(folder / name))


def _json(folder: Path, name: str) -> Any:  # whatever stands in the file; `from_json` checks it
    try:
        return json.loads((folder / name).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ClipftError(
            f"model package {folder}", f"{name} cannot be read ({error})", "Register the model again.", code="package.invalid"
        ) from error
