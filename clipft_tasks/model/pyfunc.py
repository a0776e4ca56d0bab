"""The registered model as `mlflow.pyfunc` loads it. A script of its own, copied beside each model that is logged: it needs
open_clip, and clipft only for a model that compares by something else than cosines and for gray deeper than 8 bits.

Input: a table with a column `image` (bytes, base64 text or a path) and/or `text`. Output: a table with the embeddings
(`image_embedding`, `text_embedding`; unit vectors for cosines) and, when a row has both, their `similarity`. Of a model whose classes
were fitted to a few images also `class_similarity` with each, in the order of the card, and the best one as `label`.
"""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path

import mlflow
import mlflow.pyfunc
import open_clip
import pandas as pd
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image, ImageOps
from safetensors.torch import load_file
from torch.nn.functional import normalize


class ClipModel(mlflow.pyfunc.PythonModel):  # type: ignore[name-defined, misc]
    """Opens the model package that was logged beside it."""

    def load_context(self, context):  # type: ignore[no-untyped-def]
        folder = Path(context.artifacts["package"]).resolve()
        config = json.loads((folder / "open_clip_config.json").read_text())
        card = json.loads((folder / "card.json").read_text())
        text = config["model_cfg"]["text_cfg"]
        local = {"text_cfg": text | {"hf_model_name": str(folder)}} if text.get("hf_model_name") == "." else {}
        side, stored = card["resolutions"]["serve"], config["model_cfg"]["vision_cfg"].get("image_size")
        # Some towers keep the grid that they were built with: open_clip maps it to another side when it is told one.
        resized = {"force_image_size": side} if stored not in (side, [side, side]) else {}
        self.model = open_clip.create_model(f"local-dir:{folder}", **resized, **local).eval()
        self.tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
        preprocess = PreprocessCfg(**{**config["preprocess_cfg"], "size": side})
        self.transform = image_transform_v2(preprocess, is_train=False)
        self.decode = decoder(folder)
        self.classes, learned = card["classes"], folder / "classes.safetensors"
        self.learned = load_file(learned)["embeddings"] if learned.exists() else None
        self.similarity = None
        if card.get("similarity", "cosine") != "cosine":
            try:
                from clipft_tasks.model.package import open_similarity
            except ImportError as error:
                raise RuntimeError(f"this model compares by {card['similarity']}: install clipft[model]") from error
            self.similarity = open_similarity(folder, card["embed_dim"])

    def predict(self, context, model_input: pd.DataFrame, params=None) -> pd.DataFrame:  # type: ignore[no-untyped-def]
        out = {}
        with torch.inference_mode():
            if "image" in model_input:
                images = torch.stack([self.transform(self.decode(as_bytes(x))) for x in model_input["image"]])
                features = self.model.encode_image(images, normalize=False)
                out["image_embedding"] = (
                    self.similarity.embed_image(features) if self.similarity else normalize(features, dim=-1)
                )
                if self.learned is not None:
                    scores = out["image_embedding"] @ self.learned.T
                    labels = [self.classes[best] for best in scores.argmax(dim=1).tolist()]
            if "text" in model_input:
                tokens = self.tokenizer(model_input["text"].tolist())
                features = self.model.encode_text(tokens, normalize=False)
                out["text_embedding"] = self.similarity.embed_text(features) if self.similarity else normalize(features, dim=-1)
            if len(out) == 2:
                pairs = out["image_embedding"], out["text_embedding"]
                alike = self.similarity(*pairs).diagonal() if self.similarity else (pairs[0] * pairs[1]).sum(1)
        if not out:
            raise ValueError("the input has neither a column 'image' nor a column 'text'")
        table = {name: value.tolist() for name, value in out.items()}
        if "image_embedding" in out and self.learned is not None:
            table |= {"class_similarity": scores.tolist(), "label": labels}
        if len(out) == 2:
            table["similarity"] = alike.tolist()
        return pd.DataFrame(table)


def as_bytes(value: bytes | str) -> bytes:
    """An image file's bytes, from what a table holds: themselves, a path, or base64."""
    if isinstance(value, bytes):
        return value
    return Path(value).read_bytes() if len(value) < 4096 and Path(value).is_file() else base64.b64decode(value)


def decoder(folder: Path) -> Callable[[bytes], Image.Image]:
    """What turns an image file's bytes into RGB: clipft's own where it is installed, as its server does it."""
    try:
        from clipft_tasks.model.package import image_decoder
    except ImportError:
        return decode_without_clipft
    return image_decoder(folder)


def decode_without_clipft(data: bytes) -> Image.Image:
    """The same pixels as clipft's decoder gives. Raises ValueError for what only that one can read."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.mode.startswith("I") or image.mode == "F":
        raise ValueError(
            f"an image of mode {image.mode}: gray deeper than 8 bits is read by clipft alone, install clipft[model]"
        )
    if image.mode in ("RGBA", "LA", "PA") or (image.mode == "P" and "transparency" in image.info):
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


mlflow.models.set_model(ClipModel())
