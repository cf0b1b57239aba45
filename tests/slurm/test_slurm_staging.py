"""Data on the node's own disk, for as long as the job lasts."""

import json
import tarfile

import numpy as np
import pytest
from PIL import Image


@pytest.mark.slow
def test_data_are_brought_to_the_node_and_taken_away(runs, cluster):
    draw = np.random.default_rng(0)
    folder = runs.folder / "images"
    for label in ("cats", "dogs"):
        (folder / label).mkdir(parents=True)
        for index in range(40):
            image = Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8))
            image.save(folder / label / f"{index}.png")
    archive = runs.folder / "images.tar"
    with tarfile.open(archive, "w") as packed:
        packed.add(folder, "pets")
    local = runs.folder / "local"
    local.mkdir()
    job = runs.train(
        "experiment=images/vqvae",
        "debug=fast",
        "data.root=${paths.data_dir}/pets",
        "data.size=16",
        "run.id=staged",
        options=("--nodes=1",),
        TRILEMMA_STAGE=str(archive),
        TRILEMMA_LOCAL=str(local),
    )
    cluster.finish(job)
    assert f"staged on {cluster.host}: " in cluster.log(job)
    run_dir = runs.outputs / "images/vqvae/staged"
    assert json.loads((run_dir / "run.json").read_text())["status"] == "finished"
    assert f"root: {local}/trilemma-root-{job}/pets" in (run_dir / "config.yaml").read_text()
    assert list(local.iterdir()) == []
