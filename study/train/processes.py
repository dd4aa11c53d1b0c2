"""Start a run's processes, from the notebook."""

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
        rank, failure = error.get_first_failure()
        if isinstance(failure.message, dict):  # an exception, "ValueError: …"
            reason = failure.message["message"].partition(": ")[2]
        else:
            reason = f"it ended by {failure.signal_name()}, as when memory runs out"
        raise RuntimeError(
            f"{run}: process {rank + 1} of {processes} failed, and the others were ended: {reason}"
        ) from None
