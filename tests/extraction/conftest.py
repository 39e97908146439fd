"""A folder of photos and a small model."""

import pytest

from tests.comparison.zoo import timm_vit
from tests.extraction.photographs import make_folder


@pytest.fixture
def photos(tmp_path):
    return make_folder(tmp_path / "photos", 21)


@pytest.fixture
def vision():
    return timm_vit()
