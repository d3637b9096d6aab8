"""Batches: order, augmentation, evaluation, sharding and resume, for tensors and streams alike."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from neumann.data import augment, facts
from neumann.data.batches import ShardPlan, StreamBatches, TensorBatches
from neumann.data.module import build
from neumann.data.splits import order
from neumann.errors import UserError

DIGITS = {"kind": "digits"}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def digits(batch_size=100, seed=3, **more):
    data = DIGITS | more
    return build(data, facts(data), batch_size=batch_size, seed=seed)


def folder(root, batch_size=8, seed=3, **more):
    data = {"kind": "image_folder", "root": str(root), "workers": 0} | more
    return build(data, facts(data), batch_size=batch_size, seed=seed)


def collect(batches):
    """Return the batches of one pass as lists of (image, label) bytes."""
    return [[image.numpy().tobytes() for image in images] for images, _ in batches]


def flatten(passes):
    return [image for batch in passes for image in batch]


@pytest.fixture
def root(make_folder):
    return make_folder({"cat": 25, "dog": 18, "emu": 12}, size=(16, 16))


def test_batches_are_normalised_float32_and_int64_labels():
    images, labels = next(iter(digits().train_dataloader()))
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert images.shape == (100, 1, 8, 8)
    assert labels.shape == (100,)
    module = digits(batch_size=1197)
    ((images, _),) = module.train_dataloader()
    assert images.mean().abs() < 1e-5
    assert abs(images.var(unbiased=False) - 1) < 1e-4
    assert (module.num_classes, module.in_chans, module.image_size) == (10, 1, (8, 8))


def test_labels_belong_to_their_images():
    module = digits()
    whole = {}
    for image, label in zip(module._pixels.images, module.facts.examples.labels, strict=True):
        whole.setdefault(image.numpy().tobytes(), set()).add(int(label))
    for images, labels in module.train_dataloader():
        raw = ((images * module.std[0] + module.mean[0]) * 16).round().to(torch.uint8)
        assert all(int(label) in whole[image.numpy().tobytes()] for image, label in zip(raw, labels, strict=True))


@pytest.mark.parametrize("batch_size", [1197, 100, 7])
def test_an_epoch_drops_only_the_remainder(batch_size):
    plan = digits(batch_size).train_dataloader().plan
    assert len(plan) == 1197 // batch_size
    for epoch in (0, 1, 5):
        seen = np.concatenate(plan.batches(epoch))
        assert len(seen) == len(set(seen)) == len(plan) * batch_size
    assert not np.array_equal(plan.batches(0)[0], plan.batches(1)[0])


def test_order_follows_the_seed_and_nothing_else():
    one, again, other = (flatten(collect(digits(seed=seed).train_dataloader())) for seed in (3, 3, 4))
    assert one == again
    assert one != other
    assert flatten(collect(digits(19).train_dataloader()))[:1100] == one[:1100]
    assert order(5, (1, 2)).tolist() == [1, 3, 0, 4, 2]  # for good: NumPy keeps bit streams


@pytest.mark.parametrize("split", ["val", "test", "predict"])
@pytest.mark.parametrize("batch_size", [1, 7, 300, 1000])
def test_evaluation_counts_every_example_once_in_fixed_order(split, batch_size):
    data = DIGITS
    module = build(data, facts(data), batch_size=10, seed=1, eval_batch_size=batch_size)
    loader = getattr(module, f"{split}_dataloader")()
    indices = module.facts.examples.validation if split == "val" else module.facts.examples.test
    first, second = list(loader), list(loader)
    assert len(first) == len(loader) == math.ceil(300 / batch_size)
    assert torch.equal(
        torch.cat([labels for _, labels in first]), torch.from_numpy(module.facts.examples.labels[indices])
    )
    assert torch.equal(torch.cat([images for images, _ in first]), torch.cat([images for images, _ in second]))


def test_evaluation_starts_at_the_beginning_after_being_cut_short(root):
    for module in (digits(), folder(root, 2, in_memory=False), folder(root, 2, in_memory=False, workers=2)):
        loader = module.val_dataloader()
        next(iter(loader))
        assert sum(len(labels) for _, labels in loader) == len(module.facts.examples.validation)
        assert loader.state_dict()["position"] == 0


def test_too_large_a_batch_names_the_largest():
    with pytest.raises(UserError, match=r"batch\.size is 1198 .* at most 1197$"):
        digits(1198)
    with pytest.raises(UserError, match=r"in each of 4 processes .* at most 299$"):
        ShardPlan(np.arange(1197), 300, seed=0, world_size=4)


# Sharding ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_training_shards_are_parts_of_the_batches_of_one_process(world_size):
    whole = ShardPlan(np.arange(1197), 12 * world_size, seed=5).batches(2)
    shards = [ShardPlan(np.arange(1197), 12, 5, rank, world_size).batches(2) for rank in range(world_size)]
    assert all(len(shard) == len(whole) for shard in shards)
    for step, batch in enumerate(whole):
        assert np.array_equal(np.concatenate([shard[step] for shard in shards]), batch)


@pytest.mark.parametrize(("accumulation", "world_size"), [(1, 1), (5, 1), (2, 2), (3, 4), (60, 1)])
def test_the_examples_of_a_step_do_not_depend_on_micro_batches_nor_on_processes(accumulation, world_size):
    """Each step is the same stretch of the order, in order, and an epoch has whole steps only."""
    size = 60 // (accumulation * world_size)
    whole = ShardPlan(np.arange(1197), 60, seed=5).batches(2)
    plans = [ShardPlan(np.arange(1197), size, 5, rank, world_size, accumulation) for rank in range(world_size)]
    shards = [plan.batches(2) for plan in plans]
    assert {len(plan) for plan in plans} == {len(shard) for shard in shards} == {19 * accumulation}
    for step, batch in enumerate(whole):
        micro = range(step * accumulation, (step + 1) * accumulation)
        assert np.array_equal(np.concatenate([shard[at] for at in micro for shard in shards]), batch)


@pytest.mark.parametrize(
    ("count", "batch_size", "world_size"), [(300, 64, 4), (9, 4, 2), (5, 1, 4), (65, 32, 2), (4, 9, 4)]
)
def test_evaluation_shards_are_a_partition_of_equal_length(count, batch_size, world_size):
    plans = [ShardPlan(np.arange(count), batch_size, None, rank, world_size) for rank in range(world_size)]
    shards = [plan.batches(0) for plan in plans]
    assert {len(shard) for shard in shards} == {len(plans[0])}
    assert all(len(batch) > 0 for shard in shards for batch in shard)
    assert sorted(np.concatenate([batch for shard in shards for batch in shard])) == list(range(count))


def test_a_split_smaller_than_the_processes_is_refused():
    with pytest.raises(UserError, match="3 images cannot be shared by 4 processes"):
        ShardPlan(np.arange(3), 8, None, 0, 4)


# Resume --------------------------------------------------------------------------------------------------------------


def make(kind, root, **more):
    if kind == "digits":
        return digits(200, augmentation="crop", **more)
    return folder(root, in_memory=kind == "tensors", augmentation="crop_flip", workers=2 if kind == "workers" else 0)


@pytest.mark.medium
@pytest.mark.parametrize("kind", ["digits", "tensors", "stream", "workers"])
def test_resume_gives_exactly_the_remaining_batches(kind, root):
    loader = make(kind, root).train_dataloader()
    epochs = []
    for epoch in range(3):
        loader.set_epoch(epoch)
        epochs.append(collect(loader))
    assert epochs[0] != epochs[1]
    length = len(loader)
    for taken in (0, 1, length - 1, length):
        first = make(kind, root).train_dataloader()
        iterator = iter(first)
        for _ in range(taken):
            next(iterator)  # as Lightning does: never past the last batch
        state = first.state_dict()
        assert state == {"epoch": 0, "position": taken, "span": first.plan.span}
        second = make(kind, root).train_dataloader()
        iter(second)  # an iterator made before the state is loaded, and never used
        early = iter(second)
        second.load_state_dict(state)
        if taken < length:
            second.set_epoch(0)
            assert collect(early) == epochs[0][taken:]
        second.set_epoch(1)
        assert second.state_dict()["position"] == 0
        assert collect(second) == epochs[1]
        assert collect(second) == epochs[2]  # a plain loop goes on by itself


def test_set_epoch_leaves_an_epoch_under_way_and_repeats_a_finished_one():
    loader = digits(200).train_dataloader()
    whole = collect(loader)
    loader.set_epoch(0)
    assert collect(loader) == whole
    iterator = iter(loader)
    next(iterator)
    assert loader.state_dict()["epoch"] == 1
    loader.set_epoch(1)
    assert loader.state_dict()["position"] == 1
    loader.set_epoch(0)
    assert collect(loader) == whole


def test_resume_in_the_middle_of_other_batches_is_refused():
    loader = digits(200).train_dataloader()
    next(iter(loader))
    other = digits(100).train_dataloader()
    with pytest.raises(UserError, match=r"1 steps of 200 images .* steps of 100 images"):
        other.load_state_dict(loader.state_dict())
    other.load_state_dict({"epoch": 2, "position": 0, "span": 200})
    assert other.epoch == 2


# Augmentation --------------------------------------------------------------------------------------------------------


@pytest.mark.medium
@pytest.mark.parametrize("name", ["crop", "crop_flip", "random_resized_crop"])
def test_augmentation_is_the_same_for_any_workers_and_batch_size(name, root):
    for in_memory in (True, False):
        base = None
        for workers, batch_size in ((0, 8), (0, 5), (2, 8), (1, 20)):
            module = folder(root, batch_size, augmentation=name, in_memory=in_memory, workers=workers)
            loader = module.train_dataloader()
            kind = TensorBatches if in_memory else StreamBatches
            assert isinstance(loader, kind)
            loader.set_epoch(2)
            images = flatten(collect(loader))
            base = base or images
            shared = min(len(base), len(images))
            assert shared >= 20
            assert images[:shared] == base[:shared]


@pytest.mark.parametrize("name", ["crop", "crop_flip"])
def test_streams_and_tensors_augment_alike(name, root):
    streamed = folder(root, augmentation=name, in_memory=False, mean=[0.5] * 3, std=[0.25] * 3)
    resident = folder(root, augmentation=name, in_memory=True, mean=[0.5] * 3, std=[0.25] * 3)
    assert collect(streamed.train_dataloader()) == collect(resident.train_dataloader())


def test_augmentation_changes_with_epoch_and_seed_and_never_touches_evaluation(root):
    plain = folder(root)
    module = folder(root, augmentation="crop_flip")
    loader = module.train_dataloader()
    first, second = (sorted(flatten(collect(loader))) for _ in range(2))
    assert first != second
    assert collect(module.val_dataloader()) == collect(plain.val_dataloader())
    assert collect(module.test_dataloader()) == collect(plain.test_dataloader())


def test_augmentation_leaves_the_order_alone():
    plain, cropped = digits(), digits(augmentation="crop")
    for (_, labels), (_, same) in zip(plain.train_dataloader(), cropped.train_dataloader(), strict=True):
        assert torch.equal(labels, same)


def test_crop_flip_is_pad_crop_and_mirror():
    images = torch.arange(2 * 3 * 16 * 24).reshape(2, 3, 16, 24).remainder(251).to(torch.uint8)
    boxes = torch.tensor([[0, 5, 16, 24, 0], [4, 1, 16, 24, 1]])
    cut = augment.apply("crop_flip", images, boxes)
    padded = torch.nn.functional.pad(images, (3, 3, 2, 2))
    assert torch.equal(cut[0], padded[0, :, 0:16, 5:29])
    assert torch.equal(cut[1], padded[1, :, 4:20, 1:25].flip(2))


def test_crop_boxes_cover_all_places_and_mirror_half():
    table = augment.draw("crop_flip", 20_000, seed=1, epoch=0)
    boxes = augment.boxes("crop_flip", table, (32, 32))
    for axis in (0, 1):
        assert np.bincount(boxes[:, axis]).tolist() == pytest.approx([20_000 / 9] * 9, rel=0.1)
    assert boxes[:, 4].mean() == pytest.approx(0.5, abs=0.02)
    assert augment.boxes("crop", table, (32, 32))[:, 4].max() == 0
    assert augment.padding(32) == 4
    assert augment.padding(8) == 1
    top_edge = np.full((1, 3), np.nextafter(np.float32(1), np.float32(0)))
    assert augment.boxes("crop", top_edge, (32, 32))[0, :2].tolist() == [8, 8]


@pytest.mark.parametrize(("height", "width"), [(32, 32), (50, 20), (20, 200), (1, 9)])
def test_resized_crop_boxes_lie_inside_and_keep_inceptions_law(height, width):
    table = augment.draw("random_resized_crop", 5_000, seed=1, epoch=0)
    top, left, h, w, _ = augment.crop_boxes(table, height, width).T
    assert min(top.min(), left.min()) >= 0
    assert (top + h).max() <= height
    assert (left + w).max() <= width
    assert min(h.min(), w.min()) >= 1
    if height == width == 32:
        area = h * w / 1024
        assert area.min() < 0.12
        assert area.max() > 0.9
        assert area.mean() == pytest.approx(0.48, abs=0.05)
        assert (w / h).max() < 1.7


def test_resized_crop_of_tensors_is_torchvisions():
    images = torch.randint(0, 256, (40, 3, 24, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    boxes = augment.crop_boxes(augment.draw("random_resized_crop", 40, seed=1, epoch=0), 24, 32)
    ours = augment.apply("random_resized_crop", images, torch.from_numpy(boxes))
    for image, mine, (top, left, h, w, mirrored) in zip(images, ours, boxes.tolist(), strict=True):
        theirs = interpolate(image[None, :, top : top + h, left : left + w].float(), (24, 32), mode="bilinear")[0]
        theirs = theirs.flip(2) if mirrored else theirs
        assert (mine - theirs).abs().max() < 0.01
        also = functional.resized_crop(
            image, top, left, h, w, [24, 32], interpolation=InterpolationMode.BILINEAR, antialias=True
        )
        assert (mine - (also.flip(2) if mirrored else also).float()).abs().max() < 1.01


def test_bicubic_resized_crop_of_tensors_is_torchvisions_image_by_image():
    images = torch.randint(0, 256, (40, 3, 24, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    boxes = augment.crop_boxes(augment.draw("random_resized_crop", 40, seed=1, epoch=0), 24, 32)
    ours = augment.apply("random_resized_crop", images, torch.from_numpy(boxes), "bicubic")
    for image, mine, (top, left, h, w, mirrored) in zip(images, ours, boxes.tolist(), strict=True):
        theirs = functional.resized_crop(
            image.float(), top, left, h, w, [24, 32], interpolation=InterpolationMode.BICUBIC, antialias=True
        ).clamp(0, 255)
        assert (mine - (theirs.flip(2) if mirrored else theirs)).abs().max() < 0.01


def test_crop_flip_is_torchvisions_image_by_image():
    images = torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    boxes = augment.boxes("crop_flip", augment.draw("crop_flip", 40, seed=1, epoch=0), (32, 32))
    ours = augment.apply("crop_flip", images, torch.from_numpy(boxes))
    assert len({tuple(box) for box in boxes.tolist()}) > 30  # drawn for each image
    for image, mine, (top, left, h, w, mirrored) in zip(images, ours, boxes.tolist(), strict=True):
        theirs = functional.crop(functional.pad(image, [4]), top, left, h, w)
        assert torch.equal(mine, functional.horizontal_flip(theirs) if mirrored else theirs)
