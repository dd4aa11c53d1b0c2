"""What runs again and again on a GPU, as a CUDA graph: all its kernels by one launch.

A graph is the kernels of one call, with the memory that they read and write: a later replay reads
the same places, and no line of Python runs again. So what varies has to lie in tensors that are
written in place, and nothing may look at a number.
"""

import gc
import threading
import warnings
import weakref
from collections import Counter
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.graph import increment_version

#: How often a function is called before it is captured: kernels are compiled, memory is laid out.
FIRST_CALLS = 3


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


class Beside:
    """What is computed on a stream of its own, beside the current one's work."""

    def __init__(self, device: torch.device):
        self.stream, self.main = _stream(device), torch.cuda.current_stream(device)
        self.stream.wait_stream(self.main)

    def compute(self, function: Callable) -> tuple[object, torch.cuda.Event]:
        """``function()``, and the event that it is done."""
        with torch.cuda.stream(self.stream):
            return function(), self.stream.record_event()

    def wait(self, value: Tensor, done: torch.cuda.Event) -> None:
        """The current stream, which is to use a value, waits for it, and for no later one."""
        current = torch.cuda.current_stream(value.device)
        current.wait_event(done)
        value.record_stream(current)  # until then its memory is nobody else's

    def join(self) -> None:
        self.main.wait_stream(self.stream)


#: Torch captures one at a time.
_CAPTURE = threading.Lock()


class Graph:
    """One function as a CUDA graph.

    Args:
        device: a GPU.
        after: the graph whose memory this one goes on with, and which is replayed before it.
    """

    beside = Beside
    #: Whether the last :meth:`call` waited for a number of the GPU.
    looked = False

    def __init__(self, device: torch.device, after: "Graph | None" = None):
        self.stream = after.stream if after else torch.cuda.Stream(device)
        self.pool = after.pool if after else torch.cuda.graph_pool_handle()

    def call(self, function: Callable) -> object:
        """``function()``, as it is, on the stream that it is captured on."""
        current, mode = (
            torch.cuda.current_stream(self.stream.device),
            torch.cuda.get_sync_debug_mode(),
        )
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                result = function()
            finally:
                torch.cuda.set_sync_debug_mode(mode)
        current.wait_stream(self.stream)
        said = [str(one.message) for one in caught]
        self.looked = any("called a synchronizing" in text for text in said)
        for text, one in zip(said, caught, strict=True):
            if "called a synchronizing" not in text and "Synchronization debug" not in text:
                warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
        return result

    def record(self, function: Callable) -> object:
        """Capture ``function()``; its result is filled by each :meth:`replay`."""
        graph, collects = torch.cuda.CUDAGraph(), gc.isenabled()
        gc.collect()
        gc.disable()  # a graph that is freed while another is captured breaks that
        try:
            # Of this thread: others may load data meanwhile.
            mode = {"capture_error_mode": "thread_local"}
            with (
                _CAPTURE,
                torch.cuda.stream(self.stream),
                torch.cuda.graph(graph, self.pool, self.stream, **mode),
            ):
                result = function()
        except Exception:
            del graph
            self._give_up()
            raise
        finally:
            if collects:
                gc.enable()
        self.replay = graph.replay
        return result

    def _give_up(self) -> None:
        """After a capture that failed: allocator and generator as outside of one."""
        try:
            torch._C._cuda_endAllocateToPool(self.stream.device_index, self.pool)
        except (AttributeError, RuntimeError):
            pass  # torch did it
        generator = torch.cuda.default_generators[self.stream.device_index]
        generator.graphsafe_set_state(generator.clone_state())

    @staticmethod
    def capturing() -> bool:
        return torch.cuda.is_current_stream_capturing()


#: Where there are graphs.
GRAPHS: dict[str, type[Graph]] = {"cuda": Graph}


def capturing(device: torch.device) -> bool:
    """Whether what is launched now becomes part of a graph."""
    return device.type in GRAPHS and GRAPHS[device.type].capturing()


# --- A whole step --------------------------------------------------------------------------------


class _Whole(threading.local):
    """Whether a :class:`Captured` is at work in this thread."""

    within = False


WHOLE = _Whole()


class Captured:
    """``function``, on a GPU by one launch a call, after a few calls as it is; elsewhere as it is.

        step = Captured(step)
        for images, labels in batches:
            loss = step(images, labels)

    The first :data:`FIRST_CALLS` calls with arguments of one form run as they are. Then the
    function is captured; from now on a call copies its tensors over those that were captured, and
    replays. It gives the same tensors each time, overwritten by the next call. Calls with arguments
    of another form (shape, dtype, strides, another value of what is no tensor), as the last,
    smaller batch, run as they are.

    The function's Python runs no more. So what it reads besides its arguments stays where it is and
    is written in place: the optimizer's rate is a tensor; autocast, ``precompute`` and
    ``zero_grad(set_to_none=True)`` are within; Adam is ``capturable``. Where the model's or the
    optimizer's tensors become others, or ``model.train()`` was called, make a new one. A
    parameter's ``grad`` is that of the last call that ran as it is.

    A function that waits for a number of the GPU, or cannot be captured, is said so once, by a
    warning, and runs as it is from then on. Copies and pickles hold the function alone.

    Args:
        function: of tensors on one device, none of which requires a gradient, and of what can be
            hashed.
    """

    def __init__(self, function: Callable):
        self.function = function
        self._calls, self._form, self._refused = Counter(), None, False
        self._graph: Graph | None = None

    def __call__(self, *args: object) -> object:
        given = [x for x in args if isinstance(x, Tensor)]
        fits = given and given[0].device.type in GRAPHS and not any(x.requires_grad for x in given)
        if self._refused or not fits:
            return self.function(*args)
        form = _form(args)
        if form == self._form:
            for own, x in zip(self._given, given, strict=True):
                own.copy_(x)
            self._graph.replay()
            return self._result
        within, WHOLE.within = WHOLE.within, True
        try:
            if self._form:
                return self.function(*args)
            if self._calls[form] < FIRST_CALLS:
                return self._first(form, args)
            return self._capture(form, args)
        finally:
            WHOLE.within = within

    def _first(self, form: tuple, args: tuple) -> object:
        self._graph = self._graph or GRAPHS[form[-1].type](form[-1])
        result = self._graph.call(lambda: self.function(*args))
        self._calls[form] += 1
        if self._graph.looked and self._calls[form] == FIRST_CALLS:
            self._refuse("it waits for a number of the GPU")
        return result

    def _capture(self, form: tuple, args: tuple) -> object:
        own = [x.clone() if isinstance(x, Tensor) else x for x in args]
        try:
            self._result = self._graph.record(lambda: self.function(*own))
        except Exception as error:
            self._refuse(reason(error))
            return self.function(*args)
        self._given, self._form = [x for x in own if isinstance(x, Tensor)], form
        self._graph.replay()
        return self._result

    def _refuse(self, why: str) -> None:
        name = getattr(self.function, "__qualname__", type(self.function).__name__)
        warnings.warn(f"{name} is not captured as a CUDA graph: {why}", stacklevel=4)
        self._refused, self._graph = True, None

    def __reduce__(self):
        return Captured, (self.function,)


def _form(args: tuple) -> tuple:
    """Of arguments all but the numbers in their tensors; last the device."""
    tensors = [x for x in args if isinstance(x, Tensor)]
    return (
        *(x if not isinstance(x, Tensor) else None for x in args),
        *((x.shape, x.dtype, x.stride(), x.device) for x in tensors),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        tensors[0].device,
    )


def reason(error: BaseException) -> str:
    """The first line of what failed first."""
    while error.__context__:
        error = error.__context__
    return next(iter(str(error).splitlines()), type(error).__name__)


# --- A function of parameters, and its gradients -------------------------------------------------


class Use:
    """One call of a :class:`Replayed`, up to its backward pass."""

    done = False

    def __init__(self, of: "Replayed"):
        self.number, self.versions = of.calls, of.versions()


class Replayed:
    """``function`` of ``parameters`` by one graph, and its gradients by another.

    The results are the same tensors at every call, which overwrites them, and autograd knows:
    whoever needs the earlier ones for a backward pass gets an error. Gradients are new tensors.

    Args:
        function: of a list of tensors, in the place of the parameters; it gives a list of tensors
            and writes to nothing.
        parameters: on one device, of one dtype; they stay where they are.

    Raises:
        RuntimeError: it waits for a number of the GPU.
    """

    def __init__(self, function: Callable[[list[Tensor]], list[Tensor]], parameters: list[Tensor]):
        self.function, self.parameters = function, parameters
        self.calls, self._last = 0, lambda: None
        self._lock = threading.Lock()
        device = parameters[0].device
        self._forward = GRAPHS[device.type](device)
        self._backward = GRAPHS[device.type](device, self._forward)
        # Not the parameters themselves, whose hooks would be captured.
        own = [p.detach().requires_grad_(p.requires_grad) for p in parameters]
        with torch.enable_grad(), torch.autocast(device.type, enabled=False):
            for _ in range(FIRST_CALLS):
                self._of = self._backward.call(lambda: self._try(own))
            if self._backward.looked:
                raise RuntimeError("it waits for a number of the GPU")
            results = self._forward.record(lambda: self._results(own))
            self.results = [y.detach() for y in results]
            self._differentiable = [y.requires_grad for y in results]
            self._given = [torch.empty_like(y) for y in self.results]
            self._lay_out()
            if any(self._differentiable):
                self._backward.record(lambda: self._differentiate(own, results))

    def _results(self, own: list[Tensor]) -> list[Tensor]:
        """Those of the function, none of them in a parameter's memory."""
        places = {x.untyped_storage().data_ptr() for x in own}
        results = self.function(own)
        return [y.clone() if y.untyped_storage().data_ptr() in places else y for y in results]

    def _try(self, own: list[Tensor]) -> list[list[bool]]:
        """Of each result which parameters it is a function of."""
        of = []
        for y in self._results(own):
            inputs = [x for x in own if x.requires_grad]
            found = [None] * len(inputs)
            if y.requires_grad:
                options = {"retain_graph": True, "allow_unused": True}
                found = torch.autograd.grad(y, inputs, torch.ones_like(y), **options)
            found = iter(found)
            of.append([x.requires_grad and next(found) is not None for x in own])
        return of

    def _lay_out(self) -> None:
        """The gradients' places, one after the other in one tensor."""
        self._asked = [i for i, uses in enumerate(zip(*self._of, strict=True)) if any(uses)]
        total, self._places = 0, []
        for i in self._asked:
            like = torch.empty_like(self.parameters[i], device="meta")
            self._places.append((like.shape, like.stride(), total))
            total += -(-like.numel() // 64) * 64  # as aligned as tensors of their own
        self._flat = self.parameters[0].new_zeros(total)

    def _differentiate(self, own: list[Tensor], results: list[Tensor]) -> None:
        found = torch.autograd.grad(
            [y for y in results if y.requires_grad],
            [own[i] for i in self._asked],
            [g for y, g in zip(results, self._given, strict=True) if y.requires_grad],
            retain_graph=True,  # what is kept of the forward pass serves every backward pass
        )
        torch._foreach_copy_([self._flat.as_strided(*p) for p in self._places], found)

    def versions(self) -> list[int]:
        return [p._version for p in self.parameters]

    def take(self) -> bool:
        """Whether the results are free, nobody's who still needs them; until :meth:`give_back`."""
        if not self._lock.acquire(blocking=False):
            return False
        use = self._last()
        if use is None or use.done:
            return True
        self._lock.release()
        return False

    def give_back(self) -> None:
        self._lock.release()

    def __call__(self) -> tuple[Tensor, ...]:
        self.calls += 1
        increment_version(self.results)
        self._forward.replay()
        return _Replay.apply(self, *self.parameters)

    def backward(self, given: tuple[Tensor | None, ...]) -> list[Tensor | None]:
        known = [(own, g) for own, g in zip(self._given, given, strict=True) if g is not None]
        torch._foreach_copy_(*(list(x) for x in zip(*known, strict=True)))
        if len(known) < len(given):
            torch._foreach_zero_([x for x, g in zip(self._given, given, strict=True) if g is None])
        self._backward.replay()
        flat, found = self._flat.clone(), [None] * len(self.parameters)
        for i, place in zip(self._asked, self._places, strict=True):
            if any(of[i] and g is not None for of, g in zip(self._of, given, strict=True)):
                found[i] = flat.as_strided(*place)
        return found

    def backward_again(self, given: tuple[Tensor | None, ...]) -> list[Tensor | None]:
        """The gradients in operations that can be differentiated."""
        own = [p.view_as(p) for p in self.parameters]
        pairs = zip(self._results(own), given, strict=True)
        pairs = [(y, g) for y, g in pairs if g is not None and y.requires_grad]
        results, given = zip(*pairs, strict=True)
        asked = [own[i] for i in self._asked]
        options = {"create_graph": True, "allow_unused": True}
        found, grads = [None] * len(own), torch.autograd.grad(results, asked, given, **options)
        for i, gradient in zip(self._asked, grads, strict=True):
            found[i] = gradient
        return found


class _Replay(Function):
    """A call of a :class:`Replayed`."""

    @staticmethod
    def forward(ctx, replayed, *parameters):
        ctx.replayed, ctx.use = replayed, Use(replayed)
        replayed._last = weakref.ref(ctx.use)
        ctx.set_materialize_grads(False)
        results = tuple(y.detach() for y in replayed.results)
        pairs = zip(results, replayed._differentiable, strict=True)
        ctx.mark_non_differentiable(*(y for y, differentiable in pairs if not differentiable))
        return results

    @staticmethod
    def backward(ctx, *given):
        replayed, use = ctx.replayed, ctx.use
        if (use.number, use.versions) != (replayed.calls, replayed.versions()):
            raise RuntimeError(
                "excited weights were computed anew, or what they are computed of was written to, "
                "before their backward pass: call backward within precompute, or right after it"
            )
        use.done = True
        if torch.is_grad_enabled():
            return None, *replayed.backward_again(given)
        return None, *replayed.backward(given)
