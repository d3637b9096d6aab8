import json
import subprocess
import sys

LIST_MODULES = """
import json, sys
import torch
before = set(sys.modules)
import neumann.optim
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_the_package_needs_torch_and_nothing_of_the_project():
    output = subprocess.run([sys.executable, "-c", LIST_MODULES], check=True, capture_output=True, text=True).stdout
    loaded = json.loads(output)
    assert "neumann.optim.neumann" in loaded
    ours = {name for name in loaded if name.split(".")[0] == "neumann"}
    assert not {
        name for name in ours if name not in ("neumann", "neumann.optim") and not name.startswith("neumann.optim.")
    }
    outside = {name.split(".")[0] for name in loaded} - {"neumann", "torch"} - set(sys.stdlib_module_names)
    assert outside == set()


def test_every_exported_name_is_there():
    import neumann.optim

    assert all(hasattr(neumann.optim, name) for name in neumann.optim.__all__)
