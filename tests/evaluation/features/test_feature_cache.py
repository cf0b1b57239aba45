import logging

import pytest
import torch

from trilemma.evaluation.features.cache import cached_embed, images_sha256


@pytest.fixture
def forbidden(monkeypatch):
    """Makes an extractor that must not be asked."""

    def forbid(extractor):
        def fail(images):
            raise AssertionError("the images were embedded again")

        monkeypatch.setattr(extractor, "embed", fail)

    return forbid


def test_the_second_time_reads(extractor, images, tmp_path, forbidden):
    first = cached_embed(extractor, images, tmp_path)
    forbidden(extractor)
    second = cached_embed(extractor, images.clone(), tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_other_images_and_other_order_are_other_entries(extractor, images, tmp_path):
    cached_embed(extractor, images, tmp_path)
    changed = images.clone()
    changed[0, 0, 0, 0] ^= 1
    for other in (changed, images.flip(0), images[:-1]):
        assert torch.equal(cached_embed(extractor, other, tmp_path).features, extractor.features(other))
    assert len(list(tmp_path.glob("*.safetensors"))) == 4


def test_without_a_folder_nothing_is_kept(extractor, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert torch.equal(cached_embed(extractor, images, None).features, extractor.features(images))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[:-1] + bytes([b[-1] ^ 1])])
def test_a_damaged_file_is_computed_anew_and_loudly(extractor, images, tmp_path, damage, caplog, forbidden):
    expected = cached_embed(extractor, images, tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(damage(path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        repaired = cached_embed(extractor, images, tmp_path)
    assert "damaged" in caplog.text
    assert torch.equal(repaired.features, expected.features)
    forbidden(extractor)
    assert torch.equal(cached_embed(extractor, images, tmp_path).logits, expected.logits)


def test_shape_is_part_of_the_content():
    images = torch.arange(16, dtype=torch.uint8)
    assert images_sha256(images.view(1, 1, 4, 4)) != images_sha256(images.view(1, 1, 2, 8))
    assert images_sha256(images.view(1, 1, 4, 4)) == images_sha256(images.view(1, 4, 4, 1).permute(0, 3, 1, 2))
