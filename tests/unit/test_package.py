"""What a model package that cannot be opened is said to lack."""

import os

import pytest

from clipft_tasks.core.errors import ClipftError
from clipft_tasks.model import package


def test_weights_that_may_not_be_read_are_said_to_be_so_with_the_way_out(tiny, monkeypatch):
    package.open_folder(tiny)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may read everything, so the answer is given
    with pytest.raises(ClipftError, match=r"may not be read by this user.*chmod a\+r .*open_clip_model\.safetensors"):
        package.open_folder(tiny)
    package.open_folder(tiny, weights=False)
