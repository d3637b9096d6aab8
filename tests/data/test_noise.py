"""data=fake: noise is a function of seed and number, held and streamed alike, and has a name of its own."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pytest
import torch

from neumann.config import make_spec
from neumann.data import facts, noise
from neumann.data.batches import StreamBatches, TensorBatches
from neumann.data.module import build

SMALL = {"kind": "fake", "image_size": 16, "train_count": 12, "validation_count": 4, "test_count": 5, "workers": 0}


def module_of(**more):
    data = SMALL | more
    return build(data, facts(data), batch_size=4, seed=3)


def test_the_noise_is_the_same_for_good_and_uniform():
    one = noise.image(7, seed=3, shape=(3, 5, 4))
    assert hashlib.sha256(one.tobytes()).hexdigest().startswith("33ae90ded1ea77ec")
    many = np.stack([noise.image(index, seed=3, shape=(1, 32, 32)) for index in range(200)])
    assert np.bincount(many.ravel(), minlength=256) == pytest.approx(800, abs=6 * 800**0.5)
    assert many.mean() / 255 == pytest.approx(noise.MEAN, abs=0.005)
    assert many.std() / 255 == pytest.approx(noise.STD, abs=0.005)
    others = [one, *(noise.image(index, seed=seed, shape=(3, 5, 4)) for index, seed in ((8, 3), (7, 4), (3, 7)))]
    assert all(not np.array_equal(a, b) for a, b in itertools.combinations(others, 2))


def test_facts_are_what_was_asked_for():
    found = facts(SMALL | {"image_size": [16, 24], "channels": 5, "num_classes": 3})
    assert (found.train_count, found.validation_count, found.test_count) == (12, 4, 5)
    assert (found.image_size, found.channels, found.num_classes, found.in_memory) == ((16, 24), 5, 3, True)
    assert found.examples.labels.tolist() == [number % 3 for number in range(21)]
    assert sorted(np.concatenate([found.examples.train, found.examples.validation, found.examples.test])) == [
        *range(21)
    ]
    changes = ({"noise_seed": 1}, {"channels": 1}, {"image_size": [24, 16]}, {"num_classes": 4}, {"train_count": 13})
    others = [facts(SMALL | {"image_size": [16, 24], "channels": 5, "num_classes": 3} | more) for more in changes]
    assert len({found.fingerprint, *(other.fingerprint for other in others)}) == 6


@pytest.mark.parametrize("augmentation", ["none", "crop_flip"])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_held_and_streamed_noise_are_the_same(augmentation, channels):
    held, streamed = (module_of(in_memory=kind, augmentation=augmentation, channels=channels) for kind in (True, False))
    assert isinstance(held.train_dataloader(), TensorBatches)
    assert isinstance(streamed.train_dataloader(), StreamBatches)
    for split, count in (("train", 12), ("val", 4), ("test", 5)):
        passes = [list(getattr(module, f"{split}_dataloader")()) for module in (held, streamed)]
        (images, labels), (others, their_labels) = (map(torch.cat, zip(*batches, strict=True)) for batches in passes)
        assert torch.equal(images, others)
        assert torch.equal(labels, their_labels)
        assert len(labels) == count
    raw = (next(iter(held.test_dataloader()))[0] * noise.STD + noise.MEAN) * 255
    assert raw[0].round().byte().numpy().tobytes() == noise.image(16, seed=0, shape=(channels, 16, 16)).tobytes()


def test_a_resized_crop_of_streamed_noise_is_its_own_in_every_epoch():
    loader = module_of(in_memory=False, augmentation="random_resized_crop").train_dataloader()
    first, second = ([images for images, _ in loader] for _ in range(2))
    assert first[0].shape == (4, 3, 16, 16)
    assert not torch.equal(torch.cat(first).sort().values, torch.cat(second).sort().values)


def test_a_set_of_imagenets_size_is_made_image_by_image():
    data = {"kind": "fake", "image_size": 224, "num_classes": 1000, "train_count": 1_281_167, "workers": 0}
    found = facts(data)
    assert not found.in_memory
    images, labels = next(iter(build(data, found, batch_size=2, seed=0).train_dataloader()))
    assert images.shape == (2, 3, 224, 224)
    assert labels.max() < 1000


def test_noise_is_signed_by_what_it_follows_from():
    one = make_spec(["data=fake"])
    assert one.name == "fake-small_cnn-neumann-s0"
    assert make_spec(["data=fake", "data.workers=0"]).signature == one.signature
    assert (
        len(
            {make_spec(["data=fake", word]).signature for word in ("data.noise_seed=1", "data.channels=1")}
            | {one.signature}
        )
        == 3
    )
