"""A job array with one run for each line of a file."""

import json

COMMON = ("experiment=demo/vqvae", "debug=fast")


def test_one_element_of_six_fails_and_is_submitted_alone(runs, cluster):
    lines = runs.folder / "rates.txt"
    bad = runs.folder / "warm.ckpt"
    lines.write_text(
        "# learning rates\n"
        "optimizer.lr=1e-3\n"
        "optimizer.lr=2e-3\n"
        "\n"
        "optimizer.lr=3e-3 seed=1\n"
        f"optimizer.lr=4e-3 'init_from={bad}'\n"  # not there yet
        "optimizer.lr=5e-3\n"
        "optimizer.lr=6e-3\n"
    )
    logs = f"--output={runs.folder}/%x-%A_%a.out"
    array = runs.sbatch(logs, "--array=0-5%3", "slurm/sweep.sbatch", str(lines), *COMMON)
    for index in (0, 1, 2, 4, 5):
        cluster.finish(f"{array}_{index}")
    assert cluster.wait_for(f"{array}_3", "FAILED")["ExitCode"] == "2:0"
    assert str(bad) in cluster.log(f"{array}_3")
    folder = runs.outputs / "demo/vqvae"
    records = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/run.json")}
    assert {name for name, record in records.items() if record["status"] == "finished"} == {
        f"rates-{index}" for index in (0, 1, 2, 4, 5)
    }
    config = (folder / "rates-2/config.yaml").read_text()
    assert "lr: 0.003" in config
    assert "\nseed: 1\n" in config

    bad.write_bytes((folder / "rates-0/checkpoints/last.ckpt").read_bytes())
    again = runs.sbatch(logs, "--array=3", "slurm/sweep.sbatch", str(lines), *COMMON)
    cluster.finish(f"{again}_3")
    assert json.loads((folder / "rates-3/run.json").read_text())["status"] == "finished"

    whole = runs.sbatch(logs, "--array=2", "slurm/sweep.sbatch", str(lines), *COMMON)  # an element that is finished
    cluster.finish(f"{whole}_2")
    assert "Finished already" in cluster.log(f"{whole}_2")
