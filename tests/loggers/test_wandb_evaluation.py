import pytest
from PIL import Image

from trilemma.loggers.wandb import WandbLogger
from trilemma.loggers.wandb_evaluation import evaluation_metrics, log_evaluation
from wandb_server import history, nowhere, records, summary  # noqa: F401

ROW = {
    "protocol": {
        "data": "mnist",
        "num_images": 2000,
        "sampler": {"_target_": "trilemma.samplers.categorical.ancestral.Ancestral", "num_steps": 25},
        "guidance": {"_target_": "trilemma.samplers.guidance.ClassifierFree", "scale": 2},
        "machine": {"cpu": "CANARY"},
    },
    "metrics": {"FD[mnist-1]": 1.25, "class_share/0": 0.1, "worst": "inf"},
    "floor": {"FD[mnist-1]": 0.18},
    "ledger": {"evaluations": 50, "latency": {"seconds": 0.5, "device": "cpu"}},
    "samples_sha256": "0" * 64,
}
METRICS = {
    "eval/FD[mnist-1]": 1.25,
    "eval/class_share/0": 0.1,
    "eval/worst": float("inf"),
    "eval/floor/FD[mnist-1]": 0.18,
    "eval/ledger/evaluations": 50.0,
    "eval/ledger/latency/seconds": 0.5,
    "eval/num_steps": 25.0,
    "eval/guidance_scale": 2.0,
}


def test_names_of_the_numbers():
    assert evaluation_metrics(ROW) == METRICS
    bare = {"protocol": {"sampler": {}, "guidance": {}}, "metrics": {"psnr": 24.0}}
    assert evaluation_metrics(bare) == {"eval/psnr": 24.0}


@pytest.mark.usefixtures("nowhere")
def test_an_evaluation_is_a_run_of_its_own(tmp_path):
    grid, file = Image.new("RGB", (4, 4), (1, 2, 3)), tmp_path / "curve.png"
    Image.new("L", (2, 2), 9).save(file)
    grid.save(tmp_path / "grid.png")
    log = WandbLogger(project="p", save_dir=str(tmp_path), group="g", run_id="g/r-steps25", job_type="evaluate")
    log_evaluation(log, ROW, {"samples": tmp_path / "grid.png", "curve": file, "other": tmp_path / "none.png"})
    (segment,) = (tmp_path / "wandb").glob("offline-run-*-g-r-steps25")
    content = summary(segment)
    assert content["state"] == "finished"
    assert {name: content["summary"][name] for name in METRICS if name != "eval/worst"} == {
        name: value for name, value in METRICS.items() if name != "eval/worst"
    }
    assert float(content["summary"]["eval/worst"]) == float("inf")
    assert content["config"]["sampler"] == {"class": "Ancestral", "num_steps": 25}
    assert "CANARY" not in str(records(segment))
    (run,) = [r["run"] for r in records(segment) if r["type"] == "run"]
    assert (run["run_group"], run["job_type"]) == ("g", "evaluate")
    (row,) = history(segment)
    assert Image.open(segment / "files" / row["eval/samples.path"]).tobytes() == grid.tobytes()
    assert Image.open(segment / "files" / row["eval/curve.path"]).getpixel((0, 0)) == 9
