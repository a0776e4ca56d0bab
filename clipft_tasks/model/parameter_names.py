"""Which part of a model a parameter belongs to, told by its name in open_clip, timm and transformers."""

import re

BLOCK = re.compile(r"^(?P<tower>.*?)(?:resblocks|blocks|layers?|stages)\.(?P<depth>\d+)\.")
POSITIONS = re.compile(r"positional_embedding|position_embedding|pos_embed")
# What stands between a tower's blocks and the shared space: trained first when the heads go first, never decayed by depth.
HEADS = re.compile(
    r"^(logit_scale|logit_bias|text_projection)$"
    r"|^(visual\.|text\.)?(proj|text_projection|ln_post|ln_final|attn_pool|attnpool|head)(\.|$)"
    r"|^visual\.trunk\.(norm|fc_norm|conv_head|bn2|attn_pool|head)\."
    r"|^text\.transformer\.(pooler|final_layer_norm)\."
)


def is_head(name: str) -> bool:
    """Whether a parameter belongs to the heads: projections, last norms, temperature and bias."""
    return not BLOCK.match(name) and bool(HEADS.search(name))


def tower_of(name: str) -> str:
    """`visual` or `text`."""
    return "visual" if name.startswith("visual.") else "text"
