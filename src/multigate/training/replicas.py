"""Models of one kind trained as one: R runs with weights, rows, seeds and learning rates of their own, in one step."""

import copy
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from multigate.errors import ExperimentError
from multigate.experiment import Optimizer
from multigate.training.alike import check_alike, check_in_place, held
from multigate.training.bucket import Bucket
from multigate.training.optimizers import Average
from multigate.training.recorded import Recordings, may_be_recorded
from multigate.training.stacked_batches import rectangular
from multigate.training.stacking import Stacking
from multigate.training.traced import Losses, Tracings

Loss = Callable[..., tuple[Tensor, Tensor]]
"""(module, *batch) -> the losses of its tasks (T,), and what it is trained down, a scalar."""


class Replicas:
    """R modules that differ in their weights alone, as one whose weights have an axis in front. ``step`` trains all.

    Tensors of a batch have that axis too: (R, B, ...), each run its own rows. No run depends on the others: each is
    what it would be alone, but for rounding and for random draws, which are its own but others than alone.
    ``loss(module, *batch)`` is that of one run, written as if there were no other.

    ``rates`` are the learning rates of the runs, that of ``options`` where None; runs of one rate are updated
    together where they are neighbours. ``steps`` are those of the schedule; a constant one needs none.
    ``options.clip`` holds for each run.

    Kept are 4 numbers for each weight of each run (weight, gradient, two moments), and one more with
    ``options.average``; activations are those of R batches.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        loss: Loss,
        options: Optimizer,
        *,
        rates: Sequence[float] | None = None,
        steps: int | None = None,
    ) -> None:
        rates = list(rates) if rates is not None else [options.rate()] * len(modules)
        if not modules or len(rates) != len(modules):
            raise ExperimentError(f"replicas want a learning rate for each module; found {len(rates)}, {len(modules)}")
        if steps is None and options.schedule != "constant":
            raise ExperimentError(
                f"replicas want to know how many steps schedule {options.schedule!r} is spread over; give steps, or "
                "take schedule 'constant'"
            )
        self.loss, self.options, self.steps = loss, options, steps or 1
        self.active = list(range(len(modules)))
        """The runs in the stack, in order: those of the axis in front."""
        self.step_done = 0
        self._plain = copy.deepcopy(modules[0]).to("meta")
        self._template = _Call(rectangular(copy.deepcopy(self._plain)))
        self._rates = dict(enumerate(rates))
        self._stopped: dict[int, dict[str, Tensor]] = {}
        weights = [{name: p for name, p in module.named_parameters() if p.requires_grad} for module in modules]
        frozen = [{name: p for name, p in module.named_parameters() if not p.requires_grad} for module in modules]
        buffers = [kept | dict(module.named_buffers()) for kept, module in zip(frozen, modules, strict=True)]
        check_alike(modules, weights, buffers)
        moving = modules[0].state_dict().keys()
        self.parameters = {
            name: torch.stack([each[name].detach() for each in weights]).requires_grad_() for name in weights[0]
        }
        self.buffers = {
            name: torch.stack([each[name].detach() for each in buffers]) for name in buffers[0] if name in moving
        }
        """Weights that are frozen among them."""
        self._constant = {name: buffer for name, buffer in buffers[0].items() if name not in moving}
        self.average: Average | None = None
        self._tracings = Tracings()
        self._steps: Recordings | _AsItIs
        """How a whole step is called: recorded, on a GPU and where that can be."""
        self._passes: Tracings | _AsItIs
        """How the pass forward and back in it is called: traced, where the step is not recorded."""
        self._build()

    def step(self, *batch: Any) -> Tensor:
        """One step of every run in the stack. Tensors (R, B, ...), nested as you like -> losses (R, T)."""
        for bucket in self._buckets:
            bucket.set_rate(self.step_done, self.steps)
        (losses,) = self._steps.call(self._down, *batch)
        if self.average is not None:
            self.average.update()
        self.step_done += 1
        return losses

    @property
    def recorded(self) -> bool:
        """Whether steps were recorded, as they are on a GPU."""
        return isinstance(self._steps, Recordings) and self._steps.done

    @property
    def seen(self) -> dict[str, int]:
        """How many batches of each shape came. They belong to what is saved: traced steps round otherwise than plain
        ones, so that what goes on is to trace from the same step on."""
        return self._tracings.seen

    def _down(self, *batch: Any) -> tuple[Tensor]:
        """Move all weights; returns the losses (R, T)."""
        weights = list(self.parameters.values())
        losses, gradients = self._passes.call(self._gradients, weights, self.buffers, batch)
        for leaf, gradient in zip(self.parameters.values(), gradients, strict=True):
            leaf.grad = gradient
        if self.options.clip is not None:
            self._clip(self.options.clip)
        for bucket in self._buckets:
            bucket.update(self.parameters)
        return (losses,)

    def _gradients(self, weights: Sequence[Tensor], buffers: Mapping[str, Tensor], batch: tuple[Any, ...]) -> Losses:
        """Losses (R, T) and the gradients of all weights, by calls of torch's operations and nothing else."""
        with torch.enable_grad():
            parameters = dict(zip(self.parameters, weights, strict=True))
            losses, totals = self._stacked(self.loss, parameters, buffers, batch, training=True)
            gradients = torch.autograd.grad(totals.sum(), weights, allow_unused=True)
        # the optimiser reads them as they lie in memory
        return losses.detach(), [None if one is None else one.contiguous() for one in gradients]

    @torch.no_grad()
    def outputs(self, read: Callable[..., Any], *inputs: Any) -> Any:
        """``read(module, *inputs)`` of every run in evaluation mode, inputs and outputs with the axis in front."""
        return self._stacked(read, self.parameters, self.buffers, inputs, training=False)

    def state(self, run: int) -> dict[str, Tensor]:
        """The weights of one run, by name as in ``state_dict``; those it ended with if it has stopped."""
        if run in self._stopped:
            return self._stopped[run]
        at = self.active.index(run)
        return {name: stacked[at].detach() for name, stacked in (self.parameters | self.buffers).items()}

    def averages(self, run: int) -> dict[str, Tensor]:
        """The moving averages of the parameters of a run in the stack; empty where ``options`` ask for none."""
        values = [] if self.average is None else self.average.values
        return {name: value[self.active.index(run)] for name, value in zip(self.parameters, values, strict=False)}

    @torch.no_grad()
    def put(self, run: int, state: Mapping[str, Tensor]) -> None:
        """Give some weights or buffers of a run in the stack, by name, other values."""
        at = self.active.index(run)
        for name, tensor in state.items():
            (self.parameters if name in self.parameters else self.buffers)[name][at] = tensor

    def module(self, run: int) -> nn.Module:
        """One run as an ordinary module with weights of its own."""
        state = self.state(run)
        module = copy.deepcopy(self._plain).to_empty(device=next(iter(state.values())).device)
        module.load_state_dict(state)
        for name, constant in self._constant.items():
            module.get_buffer(name).copy_(constant)
        return module

    @torch.no_grad()
    def stop(self, runs: Sequence[int]) -> None:
        """Take runs out of the stack: their weights stay what they are, and the next batch is without them."""
        self._stopped |= {run: {name: part.clone() for name, part in self.state(run).items()} for run in runs}
        kept = [at for at, run in enumerate(self.active) if run not in runs]
        tensors = self.tensors()
        self.active = [self.active[at] for at in kept]
        if self.active:
            self._put({name: tensor[kept] if tensor.dim() else tensor for name, tensor in tensors.items()})

    def tensors(self) -> dict[str, Tensor]:
        """All that moves, by name: weights, buffers, averages (R, ...), the optimiser's state."""
        found = {f"weight/{name}": leaf.detach() for name, leaf in self.parameters.items()}
        found |= {f"buffer/{name}": buffer for name, buffer in self.buffers.items()}
        if self.average is not None:
            found |= {f"average/{i}": value for i, value in enumerate(self.average.values)}
        states = [bucket.state() for bucket in self._buckets]
        for name, first in states[0].items():
            found[f"optimizer/{name}"] = torch.cat([state[name] for state in states]) if first.dim() else first
        return found

    def restore(
        self,
        tensors: Mapping[str, Tensor],
        active: Sequence[int],
        step_done: int,
        seen: Mapping[str, int] | None = None,
    ) -> None:
        """Put back what ``tensors`` gave when these runs were in the stack, and ``seen``; of runs that had stopped it
        knows none."""
        self.active, self.step_done, self._tracings.seen = list(active), step_done, dict(seen or {})
        if self.active:
            with torch.no_grad():
                self._put(tensors)

    def _put(self, tensors: Mapping[str, Tensor]) -> None:
        self.parameters = {name: tensors[f"weight/{name}"].clone().requires_grad_() for name in self.parameters}
        self.buffers = {name: tensors[f"buffer/{name}"].clone() for name in self.buffers}
        self._build()
        if self.average is not None:
            self.average.steps = self.step_done
            self.average.values = [tensors[f"average/{i}"].clone() for i in range(len(self.average.values))]
        state = {name.removeprefix("optimizer/"): t for name, t in tensors.items() if name.startswith("optimizer/")}
        for bucket in self._buckets:
            bucket.put(state)

    def _build(self) -> None:
        """Optimisers, average and ways to step for the leaves as they are now."""
        self._buckets = []
        start = 0
        for rate, runs in groupby(self._rates[run] for run in self.active):
            stop = start + len(list(runs))
            self._buckets.append(Bucket(self._plain, self.parameters, start, stop, self.options, rate))
            start = stop
        if self.options.average:
            self.average = Average(self.parameters.values(), self.options.average)
        on_a_gpu = next(iter(self.parameters.values())).is_cuda
        if on_a_gpu and may_be_recorded(self._plain):
            self._steps, self._passes = Recordings(), _AsItIs()
        else:
            self._steps, self._passes = _AsItIs(), self._tracings

    def _stacked(
        self,
        function: Callable[..., Any],
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        batch: tuple[Any, ...],
        *,
        training: bool,
    ) -> Any:
        self._template.train(training)

        def one(parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor], batch: tuple[Any, ...]) -> Any:
            tensors = {**parameters, **buffers, **self._constant}
            named = {f"module.{name}": tensor for name, tensor in tensors.items()}
            return functional_call(self._template, named, (function, batch))

        with Stacking():
            return vmap(one, randomness="different")(dict(parameters), dict(buffers), batch)

    @torch.no_grad()
    def _clip(self, most: float) -> None:
        """Scale the gradient of each run to a norm of at most ``most``."""
        gradients = [leaf.grad for leaf in self.parameters.values() if leaf.grad is not None]
        norms = torch.stack(
            [torch.linalg.vector_norm(one.reshape(len(one), -1), dim=1) for one in gradients]
        )  # (weights, R)
        scale = (most / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)).clamp(max=1.0)
        for one in gradients:
            one.mul_(scale.view(-1, *[1] * (one.dim() - 1)))


class _AsItIs:
    """Calls a function neither recorded nor traced."""

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)


class _Call(nn.Module):
    """Calls a function with its module: what ``functional_call``, which knows modules alone, needs to run a loss."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self._looked_at = False

    def forward(self, function: Callable[..., Any], batch: tuple[Any, ...]) -> Any:
        if self._looked_at or not self.training:
            return function(self.module, *batch)
        before = held(self.module)
        result = function(self.module, *batch)
        check_in_place(before, held(self.module))
        self._looked_at = True
        return result
