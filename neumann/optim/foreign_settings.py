"""Names of settings that other optimizers have, as they are given for a parameter group."""

from __future__ import annotations

# words of other frameworks for what has another name here; written without _ and -
OTHER_WORDS = {
    "learningrate": "lr",
    "lrate": "lr",
    "stepsize": "lr",
    "eta": "lr",
    "wd": "weight_decay",
    "weightdecay": "weight_decay",
    "l2": "weight_decay",
    "lambda": "weight_decay",
    "mom": "momentum",
    "mu": "momentum",
    "beta1": "momentum",
    "beta2": "momentum",
}
# settings of the optimizers of torch 2.15 and timm 1.0.31; rho and adaptive are left out, since SAM, which wraps an
# optimizer, keeps them in its groups, and so is differentiable, which torch adds to every group that it loads
# fmt: off
SETTINGS = frozenset((
    "adamw_lr", "adjust_lr_fn", "algo", "alpha", "always_adapt", "amsgrad", "avg_conv_kernel", "beta2_cap",
    "beta2_decay", "betas", "betas_1d", "bias_correction", "capturable", "caution", "centered", "clip_exp",
    "clip_threshold", "clipping_threshold", "conv_mode", "corrected_weight_decay", "d", "dampening",
    "decay_offset", "decay_rate", "decoupled", "decoupled_decay", "decoupled_weight_decay",
    "degenerated_to_sgd", "delta", "deterministic", "eps", "eps_scale", "etas",
    "fallback_lr_scale", "fixed_decay", "flatten", "flatten_end_dim", "flatten_start_dim", "foreach", "fused",
    "gamma", "grad_averaging", "hessian_power", "history_size", "initial_accumulator_value", "lambd",
    "line_search_fn", "lr", "lr_1d_factor", "lr_decay", "lr_in_momentum", "mars_type", "max_eval",
    "max_grad_norm", "max_iter", "max_size_triangular", "maximize", "memory_save_mode",
    "min_dim_size_to_factor", "min_ndim_triangular", "momentum", "momentum_decay", "momentum_dtype",
    "momentum_into_precond_update", "mu_dtype", "n_samples", "nesterov", "no_prox", "normalize_spatial",
    "ns_coefficients", "ns_steps", "optimize_1d", "precond_dtype", "precond_init_scale", "precond_lr",
    "preconditioner_update_probability", "rectify", "safety_factor", "scale_eps", "scale_parameter",
    "schedule_decay", "step_sizes", "stochastic_weight_decay", "t0", "tolerance_change", "tolerance_grad",
    "trust_clip", "trust_coeff", "unscaled_wd", "update_each", "verbose", "warmup_init", "wd_ratio",
    "weight_decay",
))
# fmt: on


def meant(key: str) -> str | None:
    """Return our name for what other frameworks call ``key``, or None where it is no such word."""
    return OTHER_WORDS.get(key.lower().replace("_", "").replace("-", ""))
