"""The words of timm, Lightning, Hydra, transformers and W&B lead to the setting that says the same here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from neumann.config import other_words
from neumann.config.compose import Composer, composing
from neumann.errors import UserError

CONF = Path(__file__).resolve().parents[2] / "conf"


@pytest.fixture(scope="module")
def composer() -> Iterator[Composer]:
    """One composer for all words, so that each file is read once."""
    with composing() as made:
        yield made


def told(composer: Composer, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        composer.compose(list(overrides))
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("words", "key"),
    [
        ("learning_rate=0.1 lr=0.1 base_lr=0.1 learning-rate=0.1 LR=0.1 trainer.lr=1 schedule.lr=1", "optimizer.lr"),
        ("optimizer.learning_rate=0.1", "optimizer.lr"),
        ("weight_decay=0 wd=0 optimizer.wd=0 weight-decay=0", "optimizer.weight_decay"),
        ("bs=8 batch_size=8 batch-size=8 train_batch_size=8 data.batch_size=8 trainer.batch_size=8", "batch.size"),
        ("momentum=0.9 mom=0.9", "optimizer.momentum"),
        ("opt=adam optim=adam optimizer_name=adam", "optimizer"),
        ("scheduler=cosine sched=cosine lr_scheduler=cosine", "schedule"),
        ("warmup_epochs=3 warmup=3 schedule.warmup=3 schedule.warmup_epochs=1", "timing.ramp"),
        ("dataset=digits data.dataset=digits datamodule=digits", "data"),
        ("epochs=3 n_epochs=3 num_epochs=3 max_epochs=3 trainer.epochs=3 num_train_epochs=3", "trainer.max_epochs"),
        ("max_steps=9 iterations=9 trainer.max_steps=9 fast_dev_run=true debug=true", "trainer.max_epochs"),
        ("eval_every=2 val_check_interval=2", "trainer.check_val_every_n_epoch"),
        ("log_every_n_steps=2 log_interval=2 trainer.log_interval=2", "trainer.log_every_n_steps"),
        ("precision=16 amp=true fp16=true mixed_precision=bf16", "trainer.precision"),
        ("device=cuda accelerator=cuda use_cuda=true", "trainer.accelerator"),
        ("nodes=2 num_nodes=2 nnodes=2", "trainer.num_nodes"),
        ("deterministic=true", "trainer.deterministic"),
        ("random_seed=3 seed_everything=3 seeds=3 trainer.seed=3 data.seed=3", "seed"),
        ("smoothing=0.1 label_smoothing=0.1", "recipe.label_smoothing"),
        ("ema=true model_ema=true ema_decay=0.99 optimizer.weight_average=0.9", "recipe.weight_average"),
        ("log_dir=x logdir=x output_dir=x default_root_dir=x save_dir=x trainer.default_root_dir=x", "output"),
        ("run_name=x task_name=x logger.name=x", "name"),
        ("exp_name=x group=x", "study"),
        ("wandb=true report_to=wandb trainer.logger=false", "logger"),
        ("offline=true wandb_mode=offline", "logger.mode"),
        ("project=x wandb_project=x logger.project_name=x", "logger.project"),
        ("entity=x wandb_entity=x", "logger.entity"),
        ("tag=x tags=[x]", "logger.tags"),
        ("jobs=2 n_jobs=2 parallel=2", "launch.parallel"),
        ("threads=2 num_threads=2", "launch.threads"),
        ("aug=crop augment=crop transforms=crop hflip=0.5 mixup=0.2", "data.augmentation"),
        ("nesterov=true nag=true", "optimizer=nesterov"),
        ("pretrained=true model.pretrained=true", "+model.kwargs.pretrained=true"),
        ("dropout=0.1 model.dropout=0.1 drop_rate=0.1", "+model.kwargs.drop_rate=SHARE"),
        ("arch=resnet18 backbone=resnet18 model_name=resnet18 model.arch=x", "model=timm model.name=NAME"),
        ("accumulate_grad_batches=4 grad_accum_steps=4 trainer.accumulate_grad_batches=4", "batch.max_per_device"),
        ("scale_lr=true lr_base_scale=sqrt", "recipe.lr_scaling"),
        ("save_top_k=1 save_checkpoint=true", "checkpoint"),
        ("torch_compile=true trainer.compile=true compile=true", "model.compile"),
        ("memory_format=channels_last channels_last=true", "model.channels_last"),
        ("initial_checkpoint=x.pth weights=x.pth model.weights=x.pth", "model.checkpoint"),
    ],
    ids=lambda value: value.partition(" ")[0],
)
def test_a_word_leads_to_the_key(composer: Composer, words: str, key: str) -> None:
    for word in words.split():
        assert f"'{key}'" in told(composer, word), word


@pytest.mark.parametrize(
    ("words", "key", "choice"),
    [
        (
            "workers=2 num_workers=2 data.num_workers=2 trainer.num_workers=2",
            "data.workers",
            "data=cifar10, cifar100, fake",
        ),
        (
            "img_size=32 input_size=32 resize=32 data.img_size=32",
            "data.image_size",
            "data=cifar10, cifar100, fake",
        ),
        ("root=x data_dir=x data_path=x data.path=x", "data.root", "data=cifar10, cifar100"),
        ("val_split=0.1", "data.val_fraction", "data=cifar10, cifar100"),
        ("eps=1e-8", "optimizer.eps", "optimizer=adam"),
        ("betas=[0.9,0.99] beta1=0.9", "optimizer.betas", "optimizer=adam"),
        ("time=60 max_time=60", "launch.time", "launch=slurm"),
        ("partition=gpu queue=gpu", "launch.partition", "launch=slurm"),
    ],
    ids=lambda value: value.partition(" ")[0],
)
def test_a_word_for_a_key_of_another_option_names_both(composer: Composer, words: str, key: str, choice: str) -> None:
    for word in words.split():
        message = told(composer, word)
        assert f"'{key}' of {choice}" in message, word
        assert ("has no setting" if "." in word.partition("=")[0] else "no setting or group") in message


def test_where_the_option_has_the_key_only_the_key_is_named(composer: Composer) -> None:
    message = told(composer, "data=image_folder", "data.root=/x", "num_workers=2")
    assert message == "there is no setting or group 'num_workers': did you mean 'data.workers'?"


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["gpus=2"], "'trainer.devices' is how many devices train a run, and 'launch.devices'"),
        (["devices=2"], "'trainer.devices' or 'launch.devices'"),
        (["resume=true"], "the same command goes on from a run's last checkpoint"),
        (["gradient_clip_val=1"], "gradients are not clipped"),
        (["trainer.accumulate_grad_batches=4"], "'batch.size' images over all devices"),
        (["strategy=ddp"], "'trainer.devices'"),
        (["loss=ce"], "'recipe.label_smoothing'"),
        (["patience=3"], "'trainer.max_epochs'"),
        (["num_classes=10"], "follows from the data"),
        (["n_trials=16"], "hydra/sweeper=optuna hydra.sweeper.n_trials=16"),
        (["budget=small"], "neumann study, --budget NAME"),
        (["config_dir=x"], "--config-dir FOLDER"),
        (["min_lr=0"], "ends at a rate of zero"),
        # what an option of the group has and the chosen one lacks
        (["optimizer.name=Adagrad"], "is a setting of optimizer=timm, torch"),
        (["optimizer.nesterov=true"], "choose from alpha, beta"),
        (["optimizer.nesterov=true"], "is a setting of optimizer=nesterov"),
        (["optimizer=sgd", "optimizer.alpha=0"], "is a setting of optimizer=neumann, neumann_literal, rmsprop"),
        (["data.root=/x"], "is a setting of data=cifar10, cifar100, fashion_mnist, image_folder, imagenet, mnist"),
        (["schedule.name=cosine"], "schedule=OPTION, which is one of constant, cosine"),
        # names of options
        (["model=resnet34"], "did you mean 'resnet32'? (any model of timm is model=timm model.name=resnet34)"),
        (["model=vit_tiny_patch16_224"], "model=timm model.name=vit_tiny_patch16_224"),
        (["optimizer=Adam"], "'adam'"),
        (["optimizer=SGD"], "'sgd'"),
        (["optimizer=momentum"], "optimizer=sgd"),
        (["optimizer=adagrad"], "optimizer=torch optimizer.name=adagrad or optimizer=timm optimizer.name=adagrad"),
        (["schedule=none"], "did you mean schedule=constant?"),
        (["schedule=CosineAnnealingLR"], "did you mean schedule=cosine?"),
        (["data=svhn"], "data=image_folder data.root=FOLDER"),
        (["data=FashionMNIST"], "did you mean data=fashion_mnist data.root=FOLDER?"),
        (["data=imagenet1k"], "did you mean data=imagenet data.root=FOLDER?"),
        (["data=synthetic"], "did you mean data=fake?"),
        (["data=cifar10"], "data=cifar10 needs data.root"),
        (["data=my_photos"], "data=image_folder data.root=FOLDER"),
        (["logger=false"], "did you mean logger=none?"),
        (["logger=tensorboard"], "measurements.jsonl"),
        (["trainer=gpu"], "did you mean trainer.accelerator=gpu?"),
        (["checkpoint=best"], "judged at its last step"),
        (["launch=submitit_slurm"], "did you mean launch=slurm?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_here_instead_is_said(composer: Composer, overrides: list[str], part: str) -> None:
    assert part in told(composer, *overrides)


def test_a_word_that_means_nothing_here_lists_what_there_is(composer: Composer) -> None:
    assert "choose from ablation, batch, checkpoint" in told(composer, "flux_capacitor=1")


def test_the_table_names_settings_that_exist_and_no_word_twice(composer: Composer) -> None:
    text = [word for words in other_words._KEYS.values() for word in words.split()]
    text += [word for words in other_words._SENTENCES.values() for word in words.split()]
    assert sorted(text) == sorted(set(text))
    config, _ = composer.compose([])
    assert not set(text) & set(config)  # a word of ours would never be looked up
    for key in other_words._KEYS:
        section, _, name = key.partition(".")
        if "=" in key:
            continue
        there = [list(OmegaConf.load(path)) for path in (CONF / section).glob("*.yaml")]
        there += [list(config[section])] if name else [[section]] if section in config else []
        assert any((name or section) in keys for keys in there), key
    for group, options in other_words._OPTIONS.items():
        for said in options.values():
            choice = said.partition(" ")[0]
            assert choice.partition("=")[2] in composer.groups[group] or "." in choice
