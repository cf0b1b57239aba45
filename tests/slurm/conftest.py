"""The cluster, and runs small enough for it."""

import pytest
from cluster import Cluster, missing

from training import Runs


def pytest_collection_modifyitems(items):
    for item in items:
        if "cluster" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slurm)


@pytest.fixture(scope="session")
def cluster():
    """Two nodes, up for as long as the tests last."""
    if reason := missing():
        pytest.skip(reason)
    with Cluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def codec(cluster, tmp_path_factory):
    """A codec of two batches, trained once by the template."""
    pytest.importorskip("mlxtend")
    folder = tmp_path_factory.mktemp("codec")
    runs = Runs(cluster, folder)
    job = runs.train("experiment=demo/vqvae", "debug=fast", "run.id=codec")
    cluster.finish(job)
    return folder / "outputs/demo/vqvae/codec/checkpoints/last.ckpt"


@pytest.fixture
def runs(cluster, codec, tmp_path):
    """What submits runs of a tiny prior, with outputs and logs in a temporary folder."""
    return Runs(cluster, tmp_path, codec)


@pytest.fixture(scope="module")
def module_runs(cluster, codec, tmp_path_factory):
    """The same for runs that the tests of a file share."""
    return Runs(cluster, tmp_path_factory.mktemp("shared"), codec)
