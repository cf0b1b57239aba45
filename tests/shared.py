"""What is expensive to make, made once for all processes that run tests."""

import json
import os

from filelock import FileLock


def once(tmp_path_factory, name, make):
    """Give the folder `name`, which `make(folder)` fills; with pytest-xdist the first worker that asks makes it and the others wait."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder, done = base / f"shared-{name}", base / f"shared-{name}.done"
    with FileLock(base / f"shared-{name}.lock"):
        if not done.exists():
            folder.mkdir(exist_ok=True)
            make(folder)
            done.write_text(json.dumps(name))
    return folder
