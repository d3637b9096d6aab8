import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.medium

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


@pytest.mark.slow
def test_the_one_import_registers_with_timm_and_brings_in_nothing_else_of_the_project():
    code = LIST_MODULES.replace(
        "import neumann.optim", "import neumann.optim.timm, timm.optim as t; t.get_optimizer_info('neumann')"
    )
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    loaded = json.loads(output)
    assert "timm.optim" in loaded
    assert {name.split(".")[1] for name in loaded if name.startswith("neumann.")} == {"optim"}


def test_the_base_class_for_lightning_needs_no_lightning():
    code = LIST_MODULES.replace("import neumann.optim", "import neumann.optim.lightning")
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    loaded = json.loads(output)
    assert "neumann.optim.lightning" in loaded
    assert {name.split(".")[0] for name in loaded} - {"neumann", "torch"} - set(sys.stdlib_module_names) == set()
