"""The registered model as `mlflow.pyfunc` loads it. A script of its own: it needs open_clip, not clipft.

Input: a table with a column `image` (bytes, base64 text or a path) and/or `text`. Output: a table with the unit embeddings
(`image_embedding`, `text_embedding`) and, when a row has both, their cosine `similarity`.
"""

import base64
import io
import json
from pathlib import Path

import mlflow
import mlflow.pyfunc
import open_clip
import pandas as pd
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image


class ClipModel(mlflow.pyfunc.PythonModel):  # type: ignore[name-defined]
    """Opens the model package that was logged beside it."""

    def load_context(self, context):  # type: ignore[no-untyped-def]
        folder = Path(context.artifacts["package"]).resolve()
        config = json.loads((folder / "open_clip_config.json").read_text())
        side = json.loads((folder / "card.json").read_text())["resolutions"]["serve"]
        text = config["model_cfg"]["text_cfg"]
        local = {"text_cfg": text | {"hf_model_name": str(folder)}} if text.get("hf_model_name") == "." else {}
        self.model = open_clip.create_model(f"local-dir:{folder}", **local).eval()
        self.tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
        preprocess = PreprocessCfg(**{**config["preprocess_cfg"], "size": side})
        self.transform = image_transform_v2(preprocess, is_train=False)

    def predict(self, context, model_input: pd.DataFrame, params=None) -> pd.DataFrame:  # type: ignore[no-untyped-def]
        out = {}
        with torch.inference_mode():
            if "image" in model_input:
                pictures = torch.stack([self.transform(self._open(x)) for x in model_input["image"]])
                out["image_embedding"] = self.model.encode_image(pictures, normalize=True)
            if "text" in model_input:
                tokens = self.tokenizer(model_input["text"].tolist())
                out["text_embedding"] = self.model.encode_text(tokens, normalize=True)
        if not out:
            raise ValueError("the input has neither a column 'image' nor a column 'text'")
        table = {name: value.tolist() for name, value in out.items()}
        if len(out) == 2:
            table["similarity"] = (out["image_embedding"] * out["text_embedding"]).sum(1).tolist()
        return pd.DataFrame(table)

    @staticmethod
    def _open(value: bytes | str) -> Image.Image:
        if isinstance(value, str):
            value = Path(value).read_bytes() if len(value) < 4096 and Path(value).is_file() else base64.b64decode(value)
        return Image.open(io.BytesIO(value)).convert("RGB")


mlflow.models.set_model(ClipModel())
