"""The profile of Big Red 200, as far as a cluster of make-believe GPUs can try it."""

import pytest


@pytest.mark.slow
def test_big_red_200_is_understood_by_sbatch_and_the_scripts(runs, cluster):
    modules = runs.folder / "modules"
    line = """
        . slurm/sites/bigred200.env
        module() { echo "$*" >>"$MODULES"; }
        export -f module
        exec sbatch --parsable "$@"
    """
    environment = runs.environment | {
        "SBATCH_ACCOUNT": "r00000",
        "SBATCH_CPUS_PER_GPU": "2",  # the nodes here are small
        "SBATCH_MEM_PER_GPU": "1G",
        "MODULES": str(modules),
    }
    del environment["OMP_NUM_THREADS"], environment["WANDB_MODE"]
    options = ("--ntasks-per-node=2", "--gpus-per-node=2", f"--output={runs.folder}/%x-%j.out")
    what = ("slurm/train.sbatch", "experiment=demo/vqvae", "debug=fast", "run.id=there", "trainer=cpu")
    out = cluster.call("bash", "-c", line, "sbatch", *options, *what, environment=environment)
    job = out.split()[-1]
    done = cluster.finish(job)
    assert (done["Account"], done["Partition"], done["TimeLimit"]) == ("r00000", "gpu", "12:00:00")
    log = cluster.log(job)
    assert "1 x 2 processes of 2 cores on node" in log
    assert "site bigred200" in log
    assert "fabric: " in log
    assert modules.read_text() == "load python/gpu/3.11.5\nload cudatoolkit/12.6\n"
    assert (runs.outputs / "demo/vqvae/there/checkpoints/last.ckpt").exists()
