"""What a run is: composed from YAML, strictly checked, resolved and signed. Never imports torch."""

from neumann.config.schema import LaunchConfig, LocalLaunchConfig, RunConfig, SlurmLaunchConfig
from neumann.config.spec import NOT_SIGNED, RESULTS_VERSION, RunSpec, load_spec, make_spec, make_specs, making_specs

__all__ = [
    "NOT_SIGNED",
    "RESULTS_VERSION",
    "LaunchConfig",
    "LocalLaunchConfig",
    "RunConfig",
    "RunSpec",
    "SlurmLaunchConfig",
    "load_spec",
    "make_spec",
    "make_specs",
    "making_specs",
]
