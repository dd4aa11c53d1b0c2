"""Run a notebook by papermill, in the environment's own kernel, and show how far it is."""

import os
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from study.files import root

FULL = "the disk is full: free some space, then the same command goes on; nothing was lost"
#: Papermill's notes of when a notebook and each of its cells ran.
TIMES = {"papermill", "execution", "ExecuteTime"}
#: Its tag of the cell that it adds.
INJECTED = "injected-parameters"


def execute(
    notebook: Path,
    executed: Path,
    parameters: dict,
    title: str,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run a notebook through papermill; its kernel's progress shows on the terminal.

    The executed notebook holds no time and nothing drawn, so equal outputs are equal files.

    Args:
        notebook: what is run, in its own folder.
        executed: where it is written with its outputs.
        parameters: values for its cell tagged ``parameters``.
        title: what the progress is shown under.
        environment: variables that the kernel gets beside this process's own.

    Raises:
        ValueError: a parameter that the notebook has not.
        RuntimeError: a cell failed, and the executed notebook keeps the traceback; or the kernel
            was killed.
    """
    # Kernels of other environments may be named python3 too.
    os.environ.pop("JUPYTER_PATH", None)
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    import papermill
    from nbclient.exceptions import DeadKernelError

    # papermill takes an unknown parameter for a warning and goes on with the default.
    known = papermill.inspect_notebook(str(notebook))
    for parameter in parameters:
        if parameter not in known:
            raise ValueError(
                f"{notebook.name} has no parameter {parameter!r} in its parameters cell"
            )
    executed.parent.mkdir(parents=True, exist_ok=True)
    where = executed.relative_to(root())
    with tempfile.TemporaryDirectory() as folder:
        progress = Path(folder) / "progress"
        # Shares of `make` are watched by it, through the file that it names.
        os.environ.setdefault("WEXLIB_PROGRESS", str(progress))
        os.environ.update(environment or {})
        with Watch([progress], lambda lines: f"{title}  {lines[0]}"):
            try:
                papermill.execute_notebook(
                    str(notebook),
                    str(executed),
                    parameters=parameters,
                    kernel_name="python3",
                    cwd=str(notebook.parent),
                    start_timeout=300,
                    progress_bar=False,
                    request_save_on_cell_execute=False,
                    autosave_cell_every=0,
                    shutdown_kernel="immediate",
                    extra_arguments=["--IPKernelApp.log_level=ERROR"],
                )
            except papermill.PapermillExecutionError as error:
                reason = FULL if "No space left on device" in error.evalue else error.evalue
                raise RuntimeError(f"{reason} (traceback: {where})") from None
            except DeadKernelError:
                raise RuntimeError(
                    f"{title}: its kernel was killed, as the system does when memory runs out: "
                    "free memory, or take a smaller batch or fewer runs at a time; the same "
                    "command goes on from the last finished epoch"
                ) from None
    _forget_chance(executed)


def _forget_chance(executed: Path) -> None:
    """Take out what is another one at each run, or by another Python, and is no output."""
    import nbformat

    content = nbformat.read(executed, as_version=4)
    for part in (content, *content.cells):
        for key in TIMES:
            part.metadata.pop(key, None)
    for cell in content.cells:
        if INJECTED in cell.metadata.get("tags", []):
            cell.id = INJECTED  # papermill's is drawn
        if cell.cell_type == "code":
            cell.outputs = _joined(cell.outputs)
    content.metadata.get("language_info", {}).pop("version", None)
    nbformat.write(content, executed)


def _joined(outputs: list) -> list:
    """What was printed in a row as one output: in how many it comes is a matter of time."""
    joined = []
    for output in outputs:
        last = joined[-1] if joined else {}
        if output.output_type == "stream" and last.get("name") == output.name:
            last["text"] += output.text
        else:
            joined.append(output)
    return joined


class Watch:
    """Show what progress files hold: one line that updates, or, not on a terminal, its changes."""

    def __init__(self, files: list[Path], text: Callable[[list[str]], str]) -> None:
        self.files, self.text = files, text
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._loop, daemon=True)

    def __enter__(self) -> "Watch":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()
        if sys.stderr.isatty():
            print(file=sys.stderr)

    def _loop(self) -> None:
        shown, wait = None, 0.5 if sys.stderr.isatty() else 10
        while not self.done.wait(wait):
            lines = [f.read_text() if f.is_file() else "starting" for f in self.files]
            text = self.text(lines)
            if text != shown:
                end = "" if sys.stderr.isatty() else "\n"
                print(f"\r\033[K{text}" if not end else text, end=end, file=sys.stderr, flush=True)
                shown = text
