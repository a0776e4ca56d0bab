"""Which part of a model a parameter belongs to, told by its name in open_clip, timm and transformers."""

import re

BLOCK = re.compile(r"^(?P<tower>.*?)(?:resblocks|blocks|layers?|stages)\.(?P<depth>\d+)\.")
# What stands between a tower and the shared space: trained first when the heads go first, never decayed by depth.
HEADS = re.compile(r"^(logit_scale|logit_bias)$|(^|\.)(proj|text_projection|head(\.proj)?|ln_post|ln_final|attn_pool)(\.|$)")


def is_head(name: str) -> bool:
    """Whether a parameter belongs to the heads: projections, last norms, temperature and bias."""
    inside = BLOCK.match(name)
    return not inside and bool(HEADS.search(name))
