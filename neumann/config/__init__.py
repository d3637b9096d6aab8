"""The configuration of a run, composed from YAML, strictly checked, resolved and signed. Never imports torch."""

from neumann.config.from_overrides import MakeSpecs, make_spec, make_specs, making_specs, unread_scales
from neumann.config.from_record import load_spec
from neumann.config.launch_settings import LaunchConfig, LocalLaunchConfig, SlurmLaunchConfig
from neumann.config.schema import RunConfig
from neumann.config.signature import NOT_SIGNED, RESULTS_VERSION, why_not_tuned
from neumann.config.spec import RunSpec
from neumann.config.surroundings import ignored_variables

__all__ = [
    "NOT_SIGNED",
    "RESULTS_VERSION",
    "LaunchConfig",
    "LocalLaunchConfig",
    "MakeSpecs",
    "RunConfig",
    "RunSpec",
    "SlurmLaunchConfig",
    "ignored_variables",
    "load_spec",
    "make_spec",
    "make_specs",
    "making_specs",
    "unread_scales",
    "why_not_tuned",
]
