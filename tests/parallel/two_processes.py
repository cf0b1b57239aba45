"""Two processes on this machine, as a launcher would start them."""

import os
import socket
import traceback

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from trilemma.quiet import quieten


def in_two_processes(work, folder):
    """Call work(rank, folder) in each; what goes wrong in one is raised here."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = mp.get_context("spawn")
    processes = [context.Process(target=_run, args=(work, rank, str(folder), port)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    errors = [path.read_text() for rank in range(2) if (path := folder / f"error-{rank}.txt").exists()]
    assert not errors, "\n".join(errors)
    assert [process.exitcode for process in processes] == [0, 0]


def _run(work, rank, folder, port):
    names = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ.update({name: str(value) for name, value in names.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="test")
    torch.set_num_threads(1)
    quieten()
    try:
        work(rank, folder)
    except BaseException:
        with open(f"{folder}/error-{rank}.txt", "w") as file:
            file.write(f"process {rank}: {traceback.format_exc()}")
        os._exit(1)  # the other one may wait for this one in a collective
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
