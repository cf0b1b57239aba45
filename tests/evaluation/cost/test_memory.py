import json
import subprocess
import sys

import pytest
import torch

from trilemma.evaluation.cost.memory import measure_peak_memory

MIB = 2**20


# In a process of its own: an allocator that has worked for other tests keeps freed memory, which no draw then asks for again.
DRAWS = """
import json, torch
from trilemma.evaluation.cost.memory import measure_peak_memory

def hold(num):
    torch.ones(num * 64 * 2**20, dtype=torch.uint8)  # touched, so that the kernel must give it

peaks = [measure_peak_memory(hold, num, device="cpu") for num in (3, 1)]
print(json.dumps([None if p is None else [p.measure, p.batch_size, p.peak_bytes - p.before_bytes] for p in peaks]))
"""


def test_the_resident_peak_of_a_draw_is_seen_and_forgotten_before_the_next():
    done = subprocess.run([sys.executable, "-c", DRAWS], capture_output=True, text=True, check=True)
    large, small = json.loads(done.stdout)
    if large is None:
        pytest.skip("this kernel does not tell a process its peak memory")
    assert (large[:2], small[:2]) == (["resident", 3], ["resident", 1])
    assert 190 * MIB < large[2] < 240 * MIB
    assert 62 * MIB < small[2] < 110 * MIB


def test_sizes_are_read_in_bytes(tmp_path):
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n")
    (tmp_path / "clear_refs").touch()

    def draw(num):
        status.write_text("VmHWM:\t    4096 kB\nVmRSS:\t    1024 kB\n")

    peak = measure_peak_memory(draw, 2, device="cpu", proc=tmp_path)
    assert (peak.before_bytes, peak.peak_bytes) == (MIB, 4 * MIB)
    assert (tmp_path / "clear_refs").read_text() == "5"


def test_where_nothing_tells_it_there_is_no_number(tmp_path):
    drawn = []
    assert measure_peak_memory(drawn.append, 1, device="cpu", proc=tmp_path / "none") is None
    (tmp_path / "status").write_text("VmRSS:\t    1024 kB\n")
    assert measure_peak_memory(drawn.append, 1, device="cpu", proc=tmp_path) is None
    assert measure_peak_memory(drawn.append, 1, device="mps") is None
    assert not drawn


def test_an_error_of_the_draw_is_not_taken_for_a_missing_measure():
    def draw(num):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        measure_peak_memory(draw, 1, device="cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_allocated_peak_on_cuda():
    kept = torch.ones(8 * MIB, dtype=torch.uint8, device="cuda")

    def draw(num):
        torch.ones(num * 64 * MIB, dtype=torch.uint8, device="cuda")

    draw(9)  # a peak of before
    peak = measure_peak_memory(draw, 2, device="cuda")
    assert peak.measure == "allocated"
    assert peak.before_bytes >= kept.numel()
    assert peak.peak_bytes - peak.before_bytes == 128 * MIB
