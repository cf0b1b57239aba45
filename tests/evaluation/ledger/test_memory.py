import pytest
import torch

from trilemma.evaluation.ledger.memory import measure_peak_memory

MIB = 2**20


def hold(num):
    """Hold 64 MiB an image, touched so that the kernel must give them, and let them go."""
    torch.ones(num * 64 * MIB, dtype=torch.uint8)


def test_the_resident_peak_of_a_draw_is_seen_and_forgotten_before_the_next():
    large = measure_peak_memory(hold, 3, device="cpu")
    if large is None:
        pytest.skip("this kernel does not tell a process its peak memory")
    small = measure_peak_memory(hold, 1, device="cpu")
    assert (large.measure, large.batch_size, small.batch_size) == ("resident", 3, 1)
    assert 190 * MIB < large.peak_bytes - large.before_bytes < 240 * MIB
    assert 62 * MIB < small.peak_bytes - small.before_bytes < 110 * MIB


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
