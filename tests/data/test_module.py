"""build(): decoding, the cache, preprocessing, unreadable images, and life inside Lightning."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from neumann.cache_folder import cache_folder
from neumann.data import augment, facts, resident, shared_memory
from neumann.data.batches import StreamBatches, TensorBatches
from neumann.data.eight_bits import as_eight_bits
from neumann.data.module import IMAGENET, build
from neumann.errors import UserError


def module_of(root: Path, batch_size: int = 8, **more):
    data = {"kind": "image_folder", "root": str(root), "workers": 0} | more
    return build(data, facts(data), batch_size=batch_size, seed=3)


def whole(loader):
    batches = list(loader)
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def whole_epoch(module):
    for loader in (module.train_dataloader(), module.val_dataloader(), module.test_dataloader()):
        list(loader)


FIXED = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]}


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA"])
@pytest.mark.parametrize("channels", [1, 3])
def test_streams_and_tensors_give_the_same_native_images(make_folder, mode, channels):
    root = make_folder({"cat": 9, "dog": 9}, mode=mode)
    fixed = {name: values[:channels] for name, values in FIXED.items()}
    resident_, streamed = (module_of(root, in_memory=kind, channels=channels, **fixed) for kind in (True, False))
    assert isinstance(resident_.test_dataloader(), TensorBatches)
    assert isinstance(streamed.test_dataloader(), StreamBatches)
    for split in ("val", "test", "train"):
        loaders = [getattr(module, f"{split}_dataloader")() for module in (resident_, streamed)]
        (x, y), (x2, y2) = (whole(loader) for loader in loaders)
        assert torch.equal(x, x2)
        assert torch.equal(y, y2)
    path = root / resident_.facts.examples.paths[resident_.facts.examples.test[0]]
    pixels = np.asarray(Image.open(path).convert("RGBA").convert("RGB" if channels == 3 else "L")).reshape(
        16, 16, channels
    )
    wanted = (pixels.transpose(2, 0, 1) / 255 - np.reshape(fixed["mean"], (-1, 1, 1))) / np.reshape(
        fixed["std"], (-1, 1, 1)
    )
    assert np.allclose(whole(resident_.test_dataloader())[0][0], wanted, atol=1e-5)


def test_mixed_sizes_are_scaled_and_cut_as_torchvision_does(make_folder):
    root = make_folder({"cat": 9, "dog": 9}, size=[(40, 60), (33, 21)], suffix=".jpg")
    reference = v2.Compose([v2.Resize(32), v2.CenterCrop(28), v2.PILToTensor()])
    resident_, streamed = (module_of(root, in_memory=kind, image_size=28, **FIXED) for kind in (True, False))
    assert torch.equal(whole(resident_.test_dataloader())[0], whole(streamed.test_dataloader())[0])
    for index, path in enumerate(resident_.facts.examples.paths):
        theirs = reference(Image.open(root / path).convert("RGB")).int()
        assert (resident_._pixels.images[index].int() - theirs).abs().max() <= 1
    assert next(iter(module_of(root, image_size=[20, 36]).train_dataloader()))[0].shape == (8, 3, 20, 36)


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    pixels = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(pixels).save(tmp_path / "deep.png")
    with Image.open(tmp_path / "deep.png") as image:
        assert np.array_equal(np.asarray(as_eight_bits(image, 1)), pixels >> 8)


def test_mean_and_std_are_the_training_splits(make_folder):
    root = make_folder({"cat": 30, "dog": 20})
    module = module_of(root)
    examples = module.facts.examples
    pixels = np.stack([np.asarray(Image.open(root / examples.paths[index])) for index in examples.train]) / 255
    assert module.mean == pytest.approx(pixels.mean((0, 1, 2)))
    assert module.std == pytest.approx(pixels.std((0, 1, 2)))
    assert (module_of(root, in_memory=False).mean, module_of(root, in_memory=False).std) == IMAGENET
    grey = module_of(root, in_memory=False, channels=1)
    assert (len(grey.mean), len(grey.std)) == (1, 1)
    assert module_of(root, **FIXED).mean == tuple(FIXED["mean"])


def test_a_constant_channel_does_not_divide_by_zero():
    pixels = resident.measure(torch.zeros(4, 1, 2, 2, dtype=torch.uint8))
    assert pixels.mean_and_std(np.arange(4), 255) == ((0.0,), (1.0,))


# The cache -----------------------------------------------------------------------------------------------------------


def decoded_files():
    return sorted((cache_folder() / "decoded").glob("*.pt"))


def test_a_set_is_decoded_once_wherever_it_lies(make_folder, monkeypatch, tmp_path):
    root = make_folder({"cat": 9, "dog": 9})
    before = whole(module_of(root, workers=2, **FIXED).test_dataloader())[0]
    assert len(decoded_files()) == 1
    shutil.copytree(root, tmp_path / "copy")
    with monkeypatch.context() as patch:
        patch.setattr(resident, "_decode", lambda *_: pytest.fail("decoded again"))
        assert torch.equal(whole(module_of(tmp_path / "copy", val_fraction=0.3, **FIXED).test_dataloader())[0], before)
    module_of(root, image_size=8)
    module_of(root, channels=1)
    assert len(decoded_files()) == 3


def test_runs_started_together_decode_once(make_folder, monkeypatch):
    data = {"kind": "image_folder", "root": str(make_folder({"cat": 9, "dog": 9})), "workers": 0}
    found, decode, calls = facts(data), resident._decode, []
    monkeypatch.setattr(resident, "_decode", lambda *given: (calls.append(1), time.sleep(0.1), decode(*given))[2])
    built = []
    threads = [threading.Thread(target=lambda: built.append(build(data, found, batch_size=4, seed=0))) for _ in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert all(torch.equal(one._pixels.images, built[0]._pixels.images) for one in built)
    assert len(built) == 3


@pytest.mark.parametrize("damage", ["short", "empty", "garbage", "flipped"])
def test_a_damaged_cache_costs_one_notice(make_folder, caplog, damage):
    root = make_folder({"cat": 9, "dog": 9})
    before = whole(module_of(root).test_dataloader())[0]
    (kept,) = decoded_files()
    content = bytearray(kept.read_bytes())
    at = content.index(bytes(module_of(root)._pixels.images[3].numpy().tobytes()[:64]))
    flipped = bytes([*content[:at], content[at] ^ 1, *content[at + 1 :]])
    kept.unlink()
    kept.write_bytes({"short": content[:-100], "empty": b"", "garbage": b"x" * 500, "flipped": flipped}[damage])
    with caplog.at_level(logging.WARNING):
        assert torch.equal(whole(module_of(root).test_dataloader())[0], before)
        assert torch.equal(whole(module_of(root).test_dataloader())[0], before)
    assert [record.getMessage().count("are damaged") for record in caplog.records] == [1]
    assert "\n" not in caplog.text.strip()


def test_an_unwritable_cache_costs_one_notice(make_folder, monkeypatch, caplog, tmp_path):
    root = make_folder({"cat": 9, "dog": 9})
    data = {"kind": "image_folder", "root": str(root), "workers": 0}
    found = facts(data)
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("NEUMANN_CACHE", str(tmp_path / "file" / "cache"))
    assert len(whole(build(data, found, batch_size=4, seed=0).test_dataloader())[1]) == found.test_count
    assert [record.getMessage().count("cannot be written") for record in caplog.records] == [1]
    assert not list(tmp_path.rglob(".*pt-*"))


def test_an_edit_behind_names_and_sizes_is_decoded_again(make_folder, monkeypatch):
    monkeypatch.setattr("neumann.data.scan.CONTENT_LIMIT", 100)
    root = make_folder({"cat": 9, "dog": 9}, suffix=".bmp")
    before = module_of(root)
    file = root / before.facts.examples.paths[before.facts.examples.test[0]]
    file.write_bytes(file.read_bytes()[:-16] + bytes(16))
    after = module_of(root)
    assert after.facts.fingerprint == before.facts.fingerprint
    assert not torch.equal(whole(after.test_dataloader())[0], whole(before.test_dataloader())[0])


# Unreadable images ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_truncated_images_are_named_before_training(make_folder, workers):
    root = make_folder({"cat": 9, "dog": 9}, suffix=".jpg", size=(40, 40))
    for name in ("cat/003.jpg", "dog/001.jpg"):
        (root / name).write_bytes((root / name).read_bytes()[:-400])
    with pytest.raises(UserError) as error:
        module_of(root, workers=workers)
    text = str(error.value)
    assert text.startswith(f"'{root / 'cat' / '003.jpg'}' is not a readable image (")
    assert text.endswith("2 of the 18 image files cannot be read")
    assert "\n" not in text
    assert not decoded_files()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_names_the_image_that_cannot_be_decoded(make_folder, workers):
    root = make_folder({"cat": 9, "dog": 9}, suffix=".jpg", size=(40, 40))
    module = module_of(root, batch_size=2, in_memory=False, workers=workers)
    (root / "dog" / "001.jpg").write_bytes((root / "dog" / "001.jpg").read_bytes()[:-400])  # after the scan
    with pytest.raises(UserError) as error:
        whole_epoch(module)
    assert str(error.value).startswith(f"'{root / 'dog' / '001.jpg'}' is not a readable image (")
    assert "\n" not in str(error.value)


# Shared memory -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_batches_that_have_no_room_in_shared_memory_are_refused(make_folder, monkeypatch):
    """In a container of Docker's, which has 64 MB, the first batches would wait for ever."""
    root = make_folder({"cat": 9, "dog": 9})
    monkeypatch.setattr(shared_memory, "free", lambda: 64e6)
    streamed = {"in_memory": False, "image_size": 1000, "workers": 2}
    module_of(root, batch_size=2, **streamed).check_shared_memory(1)  # 2 streams of 5 batches of 6 MB: 60 MB
    for more, processes in (({"batch_size": 3}, 1), ({"batch_size": 2}, 2), ({"batch_size": 2, "workers": 3}, 1)):
        with pytest.raises(UserError, match=r"data\.workers=.* /dev/shm, which has 64 MB free where \d+ are needed"):
            module_of(root, **(streamed | more)).check_shared_memory(processes)
    module_of(root, **(streamed | {"workers": 0})).check_shared_memory(1)
    module_of(root, workers=2, in_memory=True).check_shared_memory(1000)


def test_fewer_processes_decode_where_shared_memory_is_short(make_folder, monkeypatch, caplog):
    root = make_folder({"cat": 9, "dog": 9})
    wanted = whole(module_of(root, workers=0).test_dataloader())[0]
    made = []
    monkeypatch.setattr(resident, "DataLoader", lambda *a, **k: made.append(k["num_workers"]) or DataLoader(*a, **k))
    monkeypatch.setattr(shared_memory, "free", lambda: 3 * resident.CHUNK * 3 * 16 * 16)
    (kept,) = decoded_files()
    kept.unlink()
    assert torch.equal(whole(module_of(root, workers=8).test_dataloader())[0], wanted)
    assert made == [1]
    assert "so 1 processes decode, not 8" in caplog.text
    assert shared_memory.fitting(8, 1 << 40) == 0


def test_the_room_in_shared_memory_is_the_systems(monkeypatch, tmp_path):
    found = os.statvfs(tmp_path)
    monkeypatch.setattr(shared_memory, "PLACE", str(tmp_path))
    assert shared_memory.free() == pytest.approx(found.f_bavail * found.f_frsize, rel=0.1)
    monkeypatch.setattr(shared_memory, "PLACE", str(tmp_path / "none"))
    assert shared_memory.free() == float("inf")


# Lightning -----------------------------------------------------------------------------------------------------------


class Recorder(pl.LightningModule):
    """A linear model that remembers what it was trained and validated on."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            self.layer = torch.nn.Linear(features, classes)
        self.seen: list[bytes] = []
        self.evaluated = {"val": 0, "test": 0}

    def training_step(self, batch, _):
        images, labels = batch
        self.seen.append(images.double().sum((1, 2, 3)).numpy().tobytes())
        return torch.nn.functional.cross_entropy(self.layer(images.flatten(1)), labels)

    def validation_step(self, batch, _):
        self.evaluated["val"] += len(batch[1])

    def test_step(self, batch, number):
        self.evaluated["test"] += len(batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class SaveEverywhere(pl.Callback):
    """Saves a checkpoint after every batch, validation and epoch, with the number of batches seen by then."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.saved = folder, []

    def save(self, trainer, module):
        if not trainer.sanity_checking:
            path = self.folder / f"{len(self.saved)}.ckpt"
            trainer.save_checkpoint(path)
            self.saved.append((path, len(module.seen)))

    def on_train_batch_end(self, trainer, module, *_):
        self.save(trainer, module)

    def on_validation_end(self, trainer, module):
        self.save(trainer, module)

    def on_train_epoch_end(self, trainer, module):
        self.save(trainer, module)


def trainer_of(**more):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return pl.Trainer(accelerator="cpu", max_epochs=3, enable_model_summary=False, **quiet, **more)


@pytest.mark.medium
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [{}, {"val_check_interval": 2}, {"limit_train_batches": 3}])
def test_lightning_resumes_at_the_next_batch_wherever_it_stopped(tmp_path, options):
    data = {"kind": "digits", "augmentation": "crop"}
    found = facts(data)

    def fit(callbacks=(), checkpoint=None):
        model = Recorder(64, 10)
        trainer = trainer_of(callbacks=list(callbacks), **options)
        module = build(data, found, batch_size=250, seed=3)
        trainer.fit(model, module, ckpt_path=checkpoint, weights_only=True)
        return model

    saver = SaveEverywhere(tmp_path)
    uninterrupted = fit([saver])
    assert len(set(uninterrupted.seen)) == 3 * options.get("limit_train_batches", 4)
    assert {seen for _, seen in saver.saved} == set(range(1, len(uninterrupted.seen) + 1))
    for path, seen in saver.saved:
        assert fit(checkpoint=path).seen == uninterrupted.seen[seen:], path.name


def test_a_streamed_crop_is_torchvisions_of_the_file_mirrored_where_its_row_says(make_folder):
    root = make_folder({"cat": 20, "dog": 20}, size=[(24, 32), (40, 20)])
    loader = module_of(root, in_memory=False, augmentation="random_resized_crop", image_size=16).train_dataloader()
    images = (whole(loader)[0] * torch.tensor(loader.finish.std)[:, None, None]).add(
        torch.tensor(loader.finish.mean)[:, None, None]
    )
    places = np.concatenate(loader.plan.batches(0))
    table = augment.draw("random_resized_crop", len(loader.plan.indices), loader.finish.seed, 0)
    assert {bool(flip) for flip in table[places, 0] < 0.5} == {False, True}
    for place, image in zip(places, images, strict=True):
        file = Image.open(loader._files.source.path(loader.plan.indices[place]))
        box = augment.crop_boxes(table[place][None], file.height, file.width)[0]
        expected = v2.functional.pil_to_tensor(
            v2.functional.resized_crop(file, *box[:4].tolist(), size=[16, 16], antialias=True)
        )
        expected = expected.flip(2) if table[place, 0] < 0.5 else expected
        assert torch.equal((image * 255).round().byte(), expected)


@pytest.mark.medium
@pytest.mark.filterwarnings("ignore")
def test_lightning_trains_and_tests_from_a_stream(make_folder):
    root = make_folder({"cat": 20, "dog": 20}, suffix=".jpg")
    module = module_of(root, in_memory=False, augmentation="random_resized_crop", workers=2)
    model = Recorder(3 * 16 * 16, 2)
    trainer = trainer_of(num_sanity_val_steps=0)
    trainer.fit(model, module)
    trainer.test(model, module)
    assert len(set(model.seen)) == 3 * (module.facts.train_count // 8)
    assert model.evaluated == {"val": 3 * module.facts.validation_count, "test": module.facts.test_count}


@pytest.mark.medium
def test_batches_follow_the_trainers_device_and_processes():
    data = {"kind": "digits"}
    module = build(data, facts(data), batch_size=50, seed=3, device="cpu")
    alone = module.train_dataloader()

    class Strategy:
        root_device = torch.device("meta")

    class Trainer:
        strategy, global_rank, world_size = Strategy(), 1, 2

    module.trainer = Trainer()
    attached = module.train_dataloader()
    assert attached.device.type == "meta"
    assert (attached.plan.rank, attached.plan.world_size) == (1, 2)
    assert len(attached) == len(alone) // 2
    assert next(iter(attached))[0].device.type == "meta"
    assert sum(len(y) for _, y in module.val_dataloader()) == 150


def test_ctrl_c_leaves_the_decoding_workers_alone(make_folder) -> None:
    """A terminal sends it to them too; a run that means to finish its step must not lose them."""
    root = make_folder({"a": 40, "b": 40})
    batches = module_of(root, batch_size=4, in_memory=False, workers=1).train_dataloader()
    assert isinstance(batches, StreamBatches)
    rest = iter(batches)
    next(rest)
    (worker,) = batches._loader._iterator._workers  # type: ignore[union-attr]
    os.kill(worker.pid, signal.SIGINT)
    time.sleep(0.2)
    assert len(list(rest)) == len(batches) - 1
    assert worker.is_alive()
