"""Start a run's processes, from the notebook."""

from signal import SIGTERM

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main


def torchrun(run: str, processes: int) -> None:
    """``torchrun -m study.train`` on this machine, to its end.

    Raises:
        RuntimeError: a process failed or was killed, and the others were ended.
    """
    try:
        main(["--standalone", f"--nproc-per-node={processes}", "-m", "study.train", run])
    except ChildFailedError as error:
        # One that was told to end did so because of another.
        rank, failure = min(
            error.failures.items(), key=lambda f: (f[1].exitcode == -SIGTERM, f[1].timestamp)
        )
        if isinstance(failure.message, dict):  # of an exception: "ValueError: …"
            reason = failure.message["message"].partition(": ")[2]
        else:
            reason = f"it was killed ({failure.signal_name()})"
            reason += ", as the system does when memory runs out"
        raise RuntimeError(
            f"{run}: process {rank + 1} of {processes} failed, and the others were ended: {reason}"
        ) from None
