"""Which part of a model a parameter belongs to, told by its name in open_clip, timm and transformers."""

import re

# Blocks as open_clip, timm and transformers name them (T5: `encoder.block.3.layer.1`, the sublayer is not the depth), and the
# stages of a ResNet (`layer1.0`).
BLOCK = re.compile(r"^.*?(?:(?:resblocks|blocks?|layers?|stages)\.(?P<depth>\d+)|(?<=\.)layer(?P<stage>[1-4])\.\d+)\.")
POSITIONS = re.compile(r"positional_embedding|position_embedding|pos_embed")
# What stands between a tower's blocks and the shared space: trained first when the heads go first, never decayed by depth.
HEADS = re.compile(
    r"^(logit_scale|logit_bias|text_projection)$"
    r"|^(visual\.|text\.)?(proj|text_projection|ln_post|ln_final|attn_pool|attnpool|head)(\.|$)"
    r"|^visual\.trunk\.(norm|fc_norm|conv_head|bn2|attn_pool|head)\."
    r"|^text\.transformer\.(pooler|final_layer_norm)\."
)
DECODER = "text_decoder."  # CoCa's: no embedding passes through it


def is_head(name: str) -> bool:
    """Whether a parameter belongs to the heads: projections, last norms, temperature and bias."""
    return not BLOCK.match(name) and bool(HEADS.search(name))


def depth_of(name: str) -> int | None:
    """The block or stage that a parameter belongs to, counted from 0 at the input; None outside of the blocks."""
    inside = BLOCK.match(name)
    if inside is None:
        return None
    return int(inside["depth"]) if inside["depth"] else int(inside["stage"]) - 1


def tower_of(name: str) -> str:
    """`visual` or `text`."""
    return "visual" if name.startswith("visual.") else "text"
