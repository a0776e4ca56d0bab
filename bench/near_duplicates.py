"""What the search for near-duplicates finds, and what it takes for one without being asked: python -m bench.near_duplicates

Every fifth image of a source once more, re-encoded, cropped, turned: the share that is joined with its original, at the domain's
limit and where its augmentation allows other orientations; the share that goes to the side of its original, since it is joined with it
or clearly resembles it; and the share that resembles another image instead. Beside it, pairs among the source's own images, and the seconds that ten
thousand frames of a camera that does not move take. One minute on one core. The last line is JSON.
"""

import argparse
import io
import json
import time
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from clipft_tasks.data.images import open_image, perceptual_hash
from clipft_tasks.data.readers import open_source
from clipft_tasks.data.resemblance import resembling
from clipft_tasks.data.splits import components, near_duplicates
from clipft_tasks.domains import get_domain
from clipft_tasks.spec import RunSpec

SOURCES = {"elpv:mono": "industrial", "molecules:1000": "scientific"}
EVERY = 5


def encoded(quality: int) -> Callable[[Image.Image], Image.Image]:
    def encode(image: Image.Image) -> Image.Image:
        out = io.BytesIO()
        image.save(out, "JPEG", quality=quality)
        return Image.open(out).convert("RGB")

    return encode


def cropped(share: float) -> Callable[[Image.Image], Image.Image]:
    return lambda image: ImageOps.crop(image, round(share * min(image.size)))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG at quality 50": encoded(50),
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC),
    "20% brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "20% more contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.2),
    "cropped by 1% a side": cropped(0.01),
    "rotated by 1 degree": lambda image: image.rotate(1, Image.Resampling.BICUBIC, fillcolor=image.getpixel((0, 0))),
    "mirrored": ImageOps.mirror,
    "a quarter turn": lambda image: image.transpose(Image.Transpose.ROTATE_90),
}


def found(hashes: list[str], changed: list[str], bits: int, domain: str) -> dict[str, float]:
    """Shares of changed images: joined with their original, on its side since they resemble it or are joined, and resembling another."""
    augment = get_domain(domain).augment
    joined = [bool(near_duplicates([hashes[EVERY * i], b], bits, augment)) for i, b in enumerate(changed)]
    both = hashes + changed
    component = components(len(both), near_duplicates(both, bits, augment), [""] * len(both))
    pairs = dict(resembling(both, component, range(len(hashes), len(both)), augment))
    like = [pairs.get(len(hashes) + i, -1) for i in range(len(changed))]
    right = [same or other == EVERY * i for i, (same, other) in enumerate(zip(joined, like, strict=True))]
    wrong = [
        other >= 0 and other % len(hashes) != EVERY * i and not same
        for i, (same, other) in enumerate(zip(joined, like, strict=True))
    ]
    return {name: sum(values) / len(changed) for name, values in (("joined", joined), ("found", right), ("wrong", wrong))}


def frames(count: int) -> float:
    """Seconds for hashes that differ from one scene in three bits each."""
    rng = np.random.default_rng(0)
    bits = np.repeat(rng.integers(0, 2, (1, 256)).astype(np.uint8), count, axis=0)
    for row in bits:
        row[rng.choice(256, 3, replace=False)] ^= 1
    hashes = [row.tobytes().hex() for row in np.packbits(bits, axis=1)]
    began = time.perf_counter()
    pairs = near_duplicates(hashes, 12)
    assert len(pairs) == count - 1
    resembling(hashes, np.arange(count), range(count))  # as if none of them was joined
    return time.perf_counter() - began


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    out: dict[str, dict[str, float]] = {}
    for source, name in SOURCES.items():
        domain, spec = get_domain(name), RunSpec.from_flat({"domain": name, "source": source})
        images = [
            open_image(row.image_bytes(), gray_bits=domain.gray_bits).rgb for row in open_source(source, spec.data).rows()
        ]
        hashes = [perceptual_hash(image).hex() for image in images]
        row: dict[str, float] = {"images": len(images), "bits": domain.near_duplicate_bits}
        pairs = near_duplicates(hashes, domain.near_duplicate_bits, domain.augment)
        component = components(len(hashes), pairs, [""] * len(hashes))
        alone = resembling(hashes, component, range(len(hashes)), domain.augment)
        row |= {"pairs among them": len(pairs), "that resemble another": len(alone) / len(hashes)}
        print(
            f"{source} in {name}, within {domain.near_duplicate_bits} bits: {len(pairs)} pairs among {len(images)}; "
            f"{len(alone)} resemble another"
        )
        for what, change in CHANGES.items():
            changed = [perceptual_hash(change(image)).hex() for image in images[::EVERY]]
            shares = found(hashes, changed, domain.near_duplicate_bits, name)
            print(f"  {what:<24}", *(f"{kind} {share:4.0%}" for kind, share in shares.items()), flush=True)
            row |= {f"{what}: {kind}": share for kind, share in shares.items()}
        out[source] = row
    out["ten thousand frames"] = {"seconds": round(frames(10_000), 2)}
    print(f"ten thousand frames: {out['ten thousand frames']['seconds']} s")
    print(json.dumps(out))


if __name__ == "__main__":
    main()
