"""Words that users of timm, Lightning, Hydra, transformers and W&B type, and what says the same here.

`neumann.config.keys` asks this table before it looks for a word that is spelt alike: ``workers`` is spelt like
``sweeps`` and means ``data.workers``.
"""

from __future__ import annotations

_KEYS = {  # our setting or group: the words of others for it
    "optimizer.lr": "learning_rate base_lr initial_lr init_lr start_lr max_lr blr lr0 lrate eta",
    "optimizer.weight_decay": "wd weightdecay l2 l2_reg decay regularization",
    "optimizer.momentum": "mom mu opt_momentum",
    "optimizer.eps": "eps epsilon opt_eps adam_epsilon",
    "optimizer.betas": "betas opt_betas beta1 beta2 adam_beta1 adam_beta2",
    "recipe.lr_scaling": "lr_base_scale scale_lr auto_scale_lr",
    "optimizer": "opt optim optimiser optimizer_name opt_name",
    "schedule": "sched scheduler lr_scheduler lr_schedule lr_scheduler_type lr_policy lr_decay decay_type",
    "timing.ramp": "warmup warm_up warmup_epochs warmup_ratio lr_warmup_epochs rampup linear_warmup",
    "schedule.ramp_steps": "warmup_steps warmup_iters num_warmup_steps lr_warmup_steps",
    "schedule.factor": "decay_rate lr_gamma",
    "timing.decay_every": "decay_epochs",
    "data": "dataset datasets dataset_name datamodule dm train_dataset",
    "data.root": "root data_dir data_path data_root dataroot data_folder dataset_dir dataset_path train_dir train_data "
    "path img_dir image_folder imagefolder",
    "data.image_size": "img_size imgsz input_size image_size resolution resize crop_size size image_height",
    "data.channels": "channels in_chans in_channels input_channels num_channels",
    "data.workers": "workers num_workers nworkers n_workers nw dataloader_num_workers loader_workers",
    "data.augmentation": "aug augs augment augmentations transform transforms train_transform hflip vflip crop aa "
    "auto_augment autoaugment randaugment rand_augment color_jitter reprob mixup cutmix",
    "data.download": "dataset_download",
    "data.val_fraction": "val_split val_size val_ratio valid_size valid_split validation_split validation_size",
    "data.test_fraction": "test_split test_size test_ratio",
    "data.mean": "normalize mean",
    "data.std": "std",
    "batch.size": "bs bsz batchsize batch_size mini_batch_size minibatch_size train_batch_size total_batch_size "
    "global_batch_size train_bs per_gpu_batch_size per_device_train_batch_size batch_size_per_gpu",
    "trainer.max_epochs": "epoch epochs ep n_epochs nepochs num_epochs num_train_epochs max_epoch total_epochs "
    "train_epochs",
    "trainer.check_val_every_n_epoch": "val_every eval_every check_val_every val_check_interval val_interval val_freq "
    "eval_freq eval_interval eval_steps evaluate_every validate_every",
    "trainer.log_every_n_steps": "log_every log_interval log_steps logging_steps log_freq logging_interval",
    "trainer.track_grad_norm": "grad_norm log_grad_norm",
    "trainer.accelerator": "device cuda use_cuda no_cuda cpu gpu_type use_gpu use_cpu mps tpu platform",
    "trainer.num_nodes": "nodes nnodes num_machines n_nodes",
    "trainer.precision": "amp use_amp fp16 bf16 half mixed_precision dtype amp_dtype autocast",
    "trainer.deterministic": "cudnn_deterministic use_deterministic_algorithms reproducible",
    "seed": "seeds random_seed manual_seed rng rng_seed global_seed random_state seed_everything",
    "recipe.label_smoothing": "smoothing label_smooth ls",
    "recipe.weight_average": "ema use_ema model_ema ema_decay model_ema_decay ema_rate swa polyak averaging",
    "output": "out out_dir outdir output_dir log_dir logdir logging_dir save_dir root_dir default_root_dir result_dir "
    "results_dir work_dir workdir run_dir checkpoint_dir ckpt_dir weights_save_path",
    "name": "run_name run_id task_name job_name wandb_name id",
    "study": "experiment experiment_name exp exp_name exp_id group wandb_group sweep_name",
    "logger": "wandb use_wandb log_wandb log_to_wandb loggers report_to tensorboard tb",
    "logger.mode": "wandb_mode wandb_offline offline online",
    "logger.project": "project_name wandb_project",
    "logger.entity": "team wandb_entity wandb_team",
    "logger.tags": "tag wandb_tags",
    "launch": "launcher cluster slurm",
    "launch.parallel": "jobs n_jobs njobs num_jobs max_parallel n_parallel parallelism concurrency",
    "launch.threads": "num_threads n_threads torch_threads omp_num_threads cpus num_cpus",
    "launch.partition": "partition queue",
    "launch.time": "time timeout max_time walltime time_limit",
    "launch.mem": "mem memory",
    "checkpoint": "ckpt save save_model save_checkpoint save_checkpoints save_last save_every save_top_k save_best "
    "checkpoint_hist enable_checkpointing keep checkpointing",
    "optimizer=nesterov": "nesterov nag",
    "model=timm model.name=NAME": "arch architecture net network backbone encoder model_name timm_model",
    "+model.kwargs.pretrained=true": "pretrained finetune fine_tune",
    "model.checkpoint": "initial_checkpoint init_checkpoint pretrained_path weights checkpoint_path load_weights "
    "init_weights",
    "model.compile": "compile torch_compile torchcompile compile_model jit",
    "model.channels_last": "channels_last memory_format",
    "+model.kwargs.drop_rate=SHARE": "drop dropout drop_rate dropout_rate",
    "+model.kwargs.drop_path_rate=SHARE": "drop_path drop_path_rate stochastic_depth",
    "+model.kwargs.width=N": "width hidden hidden_size",
}
_SENTENCES = {  # what is here instead, where no setting says the same: the words of others for it
    "'trainer.devices' is how many devices train a run, and 'launch.devices' which GPUs several runs share": "gpu gpus "
    "gpu_id gpu_ids num_gpus n_gpus ngpus n_gpu num_devices n_devices device_ids cuda_visible_devices nproc_per_node "
    "world_size tpu_cores num_processes",
    "the horizon is 'trainer.max_epochs', in epochs, of which fractions are allowed": "steps max_steps num_steps "
    "n_steps train_steps num_train_steps iters iterations max_iters num_iterations fast_dev_run limit_train_batches "
    "debug",
    "several devices train by DDP, set 'trainer.devices'": "strategy ddp distributed distributed_backend "
    "sync_batchnorm sync_bn fsdp dist_backend parallel_strategy",
    "gradients are not clipped, and of the files here optimizer=lamb alone has optimizer.max_grad_norm": "clip "
    "clip_grad grad_clip gradient_clip gradient_clip_val gradient_clipping clip_norm clip_mode max_grad_norm max_norm",
    "a step takes 'batch.size' images over all devices, and accumulates them above 'batch.max_per_device'": "accum "
    "grad_accum accumulate_grad_batches grad_accum_steps gradient_accumulation gradient_accumulation_steps accum_iter",
    "the same command goes on from a run's last checkpoint, and so does neumann runs resume RUN": "resume resume_from "
    "resume_from_checkpoint ckpt_path auto_resume restart start_epoch load_checkpoint",
    "a finished run is not trained again, study=NEW makes a new one": "overwrite force rerun",
    "every run trains to its horizon, 'trainer.max_epochs', so that runs can be compared": "early_stopping early_stop "
    "patience monitor",
    "the loss is cross-entropy, and 'recipe.label_smoothing' softens its targets": "loss loss_fn criterion objective",
    "the number of classes follows from the data": "num_classes n_classes nb_classes classes",
    "the order of the batches follows from 'seed'": "shuffle drop_last pin_memory sampler",
    "schedule=cosine ends at a rate of zero": "min_lr lr_min eta_min final_lr end_lr",
    "cuDNN's benchmark mode cannot be chosen": "benchmark cudnn_benchmark",
    "Lightning's callbacks and profilers are not set here, neumann.optim works in a Trainer of your own": "callback "
    "callbacks profiler",
    "what is printed follows from the terminal": "verbose verbosity quiet silent progress_bar enable_progress_bar "
    "enable_model_summary log_level",
    "write it as --config-dir FOLDER, without '='": "config_dir conf_dir config_path",
    "a file of settings is chosen in its group, such as optimizer=sgd, from conf/ or a --config-dir": "config cfg conf "
    "config_name config_file",
    "several runs are neumann train -m with lists, such as seed=0,1": "multirun sweep grid hparams_search",
    "it is given with a search, neumann train -m hydra/sweeper=optuna hydra.sweeper.n_trials=16": "n_trials trials "
    "num_trials max_trials n_iter",
    "write it as an argument of neumann study, --budget NAME": "budget",
    "write it as an argument of neumann study, --plan": "plan dry_run dryrun",
}

_OPTIONS = {  # by group, the words of others for an option: what to write
    "optimizer": {
        "momentum": "optimizer=sgd",
        "heavy_ball": "optimizer=sgd",
        "heavyball": "optimizer=sgd",
        "nag": "optimizer=nesterov",
        "adam_w": "optimizer=adamw",
        "rmsproptf": "optimizer=rmsprop",
    },
    "schedule": {
        **dict.fromkeys(("none", "null", "off", "false", "no", "flat", "const", "fixed"), "schedule=constant"),
        **dict.fromkeys(("step", "steplr", "multistep", "multisteplr", "exp", "decay"), "schedule=exponential"),
        **dict.fromkeys(("cos", "cosineannealinglr", "warmup_cosine", "onecycle", "onecyclelr"), "schedule=cosine"),
    },
    "trainer": {
        **dict.fromkeys(("cpu", "gpu"), "trainer.accelerator={0}"),
        **dict.fromkeys(("cuda",), "trainer.accelerator=gpu"),
        **dict.fromkeys(("ddp", "multi_gpu", "distributed"), "trainer.devices=2"),
    },
    "logger": {
        **dict.fromkeys(("false", "off", "no", "null", "disabled"), "logger=none"),
        **dict.fromkeys(("true", "on", "yes", "wb", "weights_and_biases"), "logger=wandb"),
        **dict.fromkeys(("online", "offline"), "logger.mode={0}"),
    },
    "checkpoint": {
        **dict.fromkeys(("false", "off", "no", "null"), "checkpoint=none"),
        **dict.fromkeys(("true", "on", "yes", "all"), "checkpoint=last"),
    },
    "launch": {
        **dict.fromkeys(("basic", "joblib", "multiprocessing", "submitit_local"), "launch=local"),
        **dict.fromkeys(("submitit", "submitit_slurm", "cluster", "sbatch"), "launch=slurm"),
    },
    "data": {
        **dict.fromkeys(("svhn", "imagefolder", "folder", "custom"), "data=image_folder data.root=FOLDER"),
        **dict.fromkeys(("cifar", "cifar_10"), "data=cifar10 data.root=FOLDER"),
        **dict.fromkeys(("cifar_100",), "data=cifar100 data.root=FOLDER"),
        **dict.fromkeys(("fashionmnist", "fmnist"), "data=fashion_mnist data.root=FOLDER"),
        **dict.fromkeys(("imagenet1k", "ilsvrc", "ilsvrc2012"), "data=imagenet data.root=FOLDER"),
        **dict.fromkeys(("fakedata", "synthetic", "random", "noise", "dummy"), "data=fake"),
    },
}
# What else a group takes, with the option that was asked for; printed where no option is spelt like it
_ANY_OTHER = {
    "model": "any model of timm is model=timm model.name={0}",
    "optimizer": "any other is optimizer=torch optimizer.name={0} or optimizer=timm optimizer.name={0}",
    "data": "any folder of class folders of images is data=image_folder data.root=FOLDER",
    "logger": "measurements.jsonl in the run's folder has what is measured",
    "checkpoint": "a run is judged at its last step, so no best checkpoint is kept",
}


def _by_word(table: dict[str, str]) -> dict[str, str]:
    return {word: said for said, words in table.items() for word in words.split()}


KEY_OF = _by_word(_KEYS)
SENTENCE_OF = _by_word(_SENTENCES)


def plain(word: str) -> str:
    """Return ``word`` as the tables write it: in small letters, with underscores."""
    return word.lower().replace("-", "_")


def option_meant(group: str, option: str) -> str | None:
    """Return what to write for an option's name elsewhere, None where it is not known."""
    said = _OPTIONS.get(group, {}).get(plain(option))
    return said.format(plain(option)) if said else None


def any_other(group: str, option: str) -> str | None:
    """Return what else ``group`` takes, told for the ``option`` that was asked for; None for nothing."""
    said = _ANY_OTHER.get(group)
    return said.format(option) if said else None
