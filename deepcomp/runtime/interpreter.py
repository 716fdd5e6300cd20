"""A module that runs a graph: what `deepcomp.load` returns.

It looks like the network it was made from where that matters: the same names in its state dict,
the same inputs and outputs, parameters that move to a device and that gradients reach. It differs
in that there is no code: each call runs the graph's nodes one after another, every one of them an
operation of the fixed list in `deepcomp.model.ops`.

A graph is a network in inference. In train mode batch normalisations alone do as in training: they
normalise by the batch and update their running statistics, with the momentum in the graph. One that
counts batches instead (`momentum=None`) cannot be written down: it is 0 there, and counts as torch's usual 0.1, since
statistics that stayed would be of another network. Dropout has gone with the capture.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import register_pytree_node

from deepcomp.errors import FormatError, InputError
from deepcomp.model import ops
from deepcomp.model.graph import Graph, Input, Node, Stored, Value, misfit, references, transform
from deepcomp.runtime import limits

__all__ = ["Interpreter", "Outputs", "Program", "Role", "blamed", "trace"]

Role: TypeAlias = Literal["parameter", "buffer", "constant"]

MAX_MODULES = 1 << 17  # in the tree of names; deep names in a small file could ask for millions
_MOMENTUM = 0.1  # of batch normalisations whose own cannot be written down
MAX_ELEMENTS = 1 << 31  # of one intermediate result; a graph of a few bytes can ask for any number
_CHECKED = 64  # kinds of runs whose results are known to stay below
_BATCH = 13  # of a trace: a prime, so that few other sizes are multiples of it


class Outputs(dict[str, Any]):
    """Named outputs, as `out["logits"]` or `out.logits`."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no output {name!r}, there are: {', '.join(self)}") from None


# Tracers (`torch.export`, `torch.func`) take outputs apart and put them together again.
register_pytree_node(
    Outputs,
    lambda outputs: (list(outputs.values()), list(outputs)),
    lambda values, names: Outputs(zip(names, values, strict=True)),
    serialized_type_name="deepcomp.Outputs",
)


class Interpreter(nn.Module):
    """The network of a graph, in eval mode to begin with.

    Parameters
    ----------
    graph : Graph
    names : sequence of str
        Names of the tensors that the graph refers to by number.
    tensors : iterable of (str, Tensor, role)
        Every tensor of the network. A "parameter" trains if it is of a floating-point type, a
        "buffer" is in the state dict, a "constant" is not. The same tensor under two names is tied.
    max_elements : int, optional
        What any one intermediate result may hold.

    Raises
    ------
    FormatError
        If a name cannot be the path of a tensor in a module, comes twice, or has no tensor.
    """

    def __init__(
        self,
        graph: Graph,
        names: Sequence[str],
        tensors: Iterable[tuple[str, Tensor, Role]],
        max_elements: int = MAX_ELEMENTS,
    ) -> None:
        super().__init__()
        modules = itertools.count()
        homes: dict[str, _Home] = {}
        parameters: dict[int, tuple[Tensor, nn.Parameter]] = {}  # the tensor is kept, or its id may be given away
        for name, tensor, role in tensors:
            if role == "parameter":
                made = nn.Parameter(tensor, requires_grad=tensor.is_floating_point() or tensor.is_complex())
                tensor = parameters.setdefault(id(tensor), (tensor, made))[1]
            homes[name] = _register(self, name, tensor, role, modules)
        missing = [name for name in names if name not in homes]
        if missing:
            raise FormatError(f"graph: no tensor named {missing[0]!r}")
        operations = [ops.find(node.op) for node in graph.nodes]
        places = [homes[name] for name in names]
        norms = _norms(graph, places)
        results = range(len(graph.inputs), len(graph.inputs) + len(graph.nodes))
        held = {entry.index for entry in references(graph.outputs) if isinstance(entry, Value)}
        schedule = _schedule(graph, results, held)
        self._dcz = Program(graph, operations, places, norms, schedule, max_elements)
        self.eval()

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Any:
        """Run the network.

        Parameters
        ----------
        *args, **kwargs : Tensor
            Inputs, by position or by the names they had in the original network.

        Returns
        -------
        Tensor, or tuples, lists and `Outputs` of tensors
            Nested as the original's.

        Raises
        ------
        InputError
            If the inputs do not fit, or an operation fails.
        """
        program = self._dcz
        return _Run(program, _bind(program.graph.inputs, args, kwargs)).finish()

    def forks(
        self, places: Collection[int], *args: Tensor, **kwargs: Tensor
    ) -> Generator[tuple[int, Callable[[], Any]], None, None]:
        """Run, and stop before some nodes, each time with what runs the rest of the network.

        So changes of a parameter can be tried, as many as one likes, while all that comes before its first use is
        computed once.

        Parameters
        ----------
        places : collection of int
            Of nodes; those that no output needs are left out.
        *args, **kwargs : Tensor
            As for `forward`.

        Yields
        ------
        int, and a callable
            The place, and what returns the outputs as `forward` does, with the parameters as they are when it is
            called; to be called before the next place is asked for.

        Raises
        ------
        InputError
            See `forward`.
        """
        program = self._dcz
        run = _Run(program, _bind(program.graph.inputs, args, kwargs))
        for number, (place, spent) in enumerate(program.schedule):
            if place in places:
                yield place, partial(run.finish, number)
            run.step(place)
            run.forget(spent)

    def observe(
        self, values: Iterable[Value], *args: Tensor, **kwargs: Tensor
    ) -> Generator[tuple[Value, Any], Any, None]:
        """Run as far as some values need, and give each of them out as soon as it is there.

        Nothing is held that no later operation needs, so a network can be looked at in the memory
        it takes to run it. To stop early is to stop computing. What is sent back to the generator takes
        the place of the value it has just given out.

        Parameters
        ----------
        values : iterable of Value
            Inputs or results of nodes.
        *args, **kwargs : Tensor
            As for `forward`.

        Yields
        ------
        Value, and what it holds
            In the order they are computed.

        Raises
        ------
        InputError
            See `forward`.
        """
        program = self._dcz
        wanted = {value.index for value in values}
        inputs = _bind(program.graph.inputs, args, kwargs)
        run = _Run(program, inputs, frozenset(wanted))
        for index in range(len(inputs)):
            if index in wanted:
                run.put(index, (yield Value(index), run.values[index]))
        for place, spent in _schedule(program.graph, wanted, set()):
            run.step(place)
            index = len(inputs) + place
            if index in wanted:
                run.put(index, (yield Value(index), run.values[index]))
            run.forget(spent)
        program.remember(run.key)

    def substitute(self, place: int, call: Callable[..., Any]) -> None:
        """Let something else run in the place of a node from now on, called with the same arguments."""
        self._dcz.own[place] = call

    def extra_repr(self) -> str:
        """The inputs and the number of operations."""
        graph = self._dcz.graph
        return f"{', '.join(map(_describe, graph.inputs))}; {len(graph.nodes)} operations"


def trace(graph: Graph, names: Sequence[str], tensors: Mapping[str, Tensor]) -> list[Any]:
    """What every input and node of a graph holds, for a batch of 13, without computing it.

    Parameters
    ----------
    graph : Graph
    names : sequence of str
        Names of the tensors that the graph refers to by number.
    tensors : mapping of str to Tensor
        Only shapes and dtypes are looked at.

    Returns
    -------
    list
        Tensors on the `meta` device, sizes, or lists of tensors, as `Value` numbers them.

    Raises
    ------
    InputError
        If an operation fails, or its result's shape depends on values.
    """
    everything = tuple(map(Value, range(len(graph.inputs) + len(graph.nodes))))
    blank = {name: torch.empty_like(tensors[name], device="meta") for name in names}
    whole = Graph(graph.inputs, graph.nodes, everything)
    network = Interpreter(whole, names, [(name, tensor, "buffer") for name, tensor in blank.items()])
    shapes = [[_BATCH if size is None else size for size in entry.shape] for entry in graph.inputs]
    inputs = [torch.empty(s, dtype=e.dtype, device="meta") for s, e in zip(shapes, graph.inputs, strict=True)]
    return list(network(*inputs))


class _Part(nn.Module):
    """A node of the tree of names."""


@dataclass(frozen=True)
class _Home:
    """Where a tensor lives: looked up at each call, as moving or parametrizing a module replaces it."""

    module: nn.Module
    name: str

    def tensor(self) -> Tensor:
        found: Tensor | None = self.module._parameters.get(self.name)
        if found is None:
            found = self.module._buffers.get(self.name)
        if found is None:
            parametrizations: Any = self.module._modules["parametrizations"]
            found = parametrizations[self.name]()
        assert isinstance(found, Tensor)
        return found


@dataclass
class Program:
    """What the interpreter runs; apart from the module, whose attributes are the network's.

    Another runtime may hold values in a form of its own: `own` has what runs in the place of operations,
    by the place of the node, on values as they are held; `readers` make tensors of these, by the number of
    the value, for all other operations and for the caller.
    """

    graph: Graph
    operations: list[ops.Operation]
    homes: list[_Home]
    norms: dict[int, nn.Module]
    schedule: list[tuple[int, tuple[int, ...]]]
    max_elements: int
    checked: set[tuple[Any, ...]] = field(default_factory=set)
    own: dict[int, Callable[..., Any]] = field(default_factory=dict)
    readers: dict[int, Callable[[Any], Any]] = field(default_factory=dict)

    def learns(self, place: int) -> bool:
        """Whether a node is a batch normalisation in train mode."""
        return place in self.norms and self.norms[place].training

    def remember(self, run: tuple[Any, ...]) -> None:
        """Note that no result of runs like this one is too large."""
        if not torch.compiler.is_compiling() and run not in self.checked:
            if len(self.checked) == _CHECKED:
                self.checked.clear()
            self.checked.add(run)


class _Run:
    """One run of a program, as far as some values need (all if not given): what there is so far."""

    def __init__(self, program: Program, inputs: list[Tensor], wanted: frozenset[int] | None = None) -> None:
        self.program = program
        self.first = len(inputs)
        self.values: list[Any] = [*inputs, *([None] * len(program.graph.nodes))]
        self.device = _device(inputs, program.homes)
        shapes = tuple([(entry.shape, entry.dtype) for entry in inputs])
        self.key = (shapes, wanted)
        self.trusted = torch.compiler.is_compiling() or not program.checked.isdisjoint({self.key, (shapes, None)})

    def held(self, entry: Stored | Value) -> Any:
        return self.values[entry.index] if isinstance(entry, Value) else self.program.homes[entry.index].tensor()

    def find(self, entry: Stored | Value) -> Any:
        """What a value is to those who do not know how it is held."""
        found, readers = self.held(entry), self.program.readers
        return readers[entry.index](found) if isinstance(entry, Value) and entry.index in readers else found

    def put(self, index: int, entry: Any) -> None:
        """Let something else stand for a value, if it is anything."""
        self.values[index] = self.values[index] if entry is None else entry

    def step(self, place: int) -> None:
        """Run one node."""
        program = self.program
        node, operation = program.graph.nodes[place], program.operations[place]
        own = program.own.get(place)
        find = self.held if own else self.find
        try:
            operands, options = transform(node.args, find), transform(node.kwargs, find)
            limits.check_recurrent(operation, operands)
            if not self.trusted:
                limits.check_size(operation, operands, options, program.max_elements)
            if operation.makes:
                options["device"] = self.device
            call = own or (_normalize if program.learns(place) else operation.call)
            self.values[self.first + place] = call(*operands, **options)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise blamed(error, place, node) from error

    def forget(self, spent: Sequence[int]) -> None:
        for index in spent:
            self.values[index] = None

    def finish(self, start: int = 0) -> Any:
        """The outputs, by the nodes from a place of the schedule on; the run itself stays where it is."""
        run, program = copy(self), self.program
        run.values = [*self.values]
        for place, spent in program.schedule[start:]:
            run.step(place)
            run.forget(spent)
        program.remember(run.key)
        return _named(transform(program.graph.outputs, run.find))


def blamed(error: Exception, place: int, node: Node) -> InputError:
    """An error of an operation as one line that names it."""
    reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return InputError(f"operation {place} of the network, {node.op}: {reason}")


def _register(root: nn.Module, name: str, tensor: Tensor, role: Role, modules: Iterator[int]) -> _Home:
    """Give a tensor its place in the tree of names; `modules` counts those made on the way."""
    if reason := misfit(name):
        raise FormatError(f"{name[:200]!r} is a tensor's name {reason}")
    *path, leaf = name.split(".")
    module = root
    for part in path:
        if part in module._parameters or part in module._buffers:
            raise FormatError(f"{name!r} goes through a tensor of the name {part!r}")
        if part not in module._modules:
            if next(modules) >= MAX_MODULES:
                raise FormatError(f"more than {MAX_MODULES} parts in the names of the tensors")
            module._modules[part] = _Part()  # `add_module` refuses names that our own methods have
        below = module._modules[part]
        assert below is not None
        module = below
    if leaf in module._parameters or leaf in module._buffers or leaf in module._modules:
        raise FormatError(f"two tensors or parts of the name {name!r}")
    if role == "parameter":
        assert isinstance(tensor, nn.Parameter)
        module._parameters[leaf] = tensor
    else:
        module._buffers[leaf] = tensor
        module._non_persistent_buffers_set |= {leaf} if role == "constant" else set()
    return _Home(module, leaf)


def _norms(graph: Graph, homes: Sequence[_Home]) -> dict[int, nn.Module]:
    """Batch normalisations with running statistics, and the parts whose mode says what they do.

    Statistics that are not buffers (inputs or results in a hostile file) are never written to.
    """
    found = {}
    for place, node in enumerate(graph.nodes):
        statistics = node.args[3:5] if node.op == "batch_norm" else ()
        owners = [homes[entry.index] for entry in statistics if isinstance(entry, Stored)]
        if len(owners) == 2 and all(home.name in home.module._buffers for home in owners):
            found[place] = owners[0].module
    return found


def _normalize(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, *settings: Any
) -> Tensor:
    """`batch_norm` as in training, which updates `mean` and `var`."""
    _, momentum, eps, _ = settings
    return functional.batch_norm(x, mean, var, weight, bias, True, momentum or _MOMENTUM, eps)


def _schedule(graph: Graph, wanted: Collection[int], held: set[int]) -> list[tuple[int, tuple[int, ...]]]:
    """The nodes that the `wanted` values need, and for each the values that nothing needs after it.

    Values `held` are needed to the end.
    """
    first, needed, schedule = len(graph.inputs), set(held), []
    for place in range(len(graph.nodes) - 1, -1, -1):
        node, made = graph.nodes[place], first + place
        if made in needed or made in wanted:
            used = {entry.index for entry in references((node.args, node.kwargs)) if isinstance(entry, Value)}
            schedule.append((place, tuple(sorted((used | {made}) - needed))))
            needed |= used
    return schedule[::-1]


def _bind(expected: Sequence[Input], args: Sequence[Tensor], kwargs: Mapping[str, Tensor]) -> list[Tensor]:
    """The inputs in order, checked against what the graph was made for."""
    names = [entry.name for entry in expected]
    given = dict(zip(names, args, strict=False))
    twice = [name for name in kwargs if name in given or name not in names]
    if len(args) > len(names) or twice or len(given) + len(kwargs) < len(names):
        found = f"{len(args)} inputs by position, {', '.join(kwargs) or 'none'} by name"
        raise InputError(f"{found} found; {', '.join(map(_describe, expected))} expected")
    given |= kwargs
    for entry in expected:
        tensor = given[entry.name]
        if not isinstance(tensor, Tensor):
            raise InputError(f"input {entry.name!r}: {type(tensor).__name__} found, a tensor expected")
        if len(tensor.shape) != len(entry.shape) or any(
            size is not None and size != found for size, found in zip(entry.shape, tensor.shape, strict=True)
        ):
            raise InputError(f"input {entry.name!r}: shape {tuple(tensor.shape)} found, {_describe(entry)} expected")
    return [given[name] for name in names]


def _describe(entry: Input) -> str:
    sizes = ", ".join("*" if size is None else str(size) for size in entry.shape)
    return f"{entry.name}: {str(entry.dtype).removeprefix('torch.')}[{sizes}]"


def _device(inputs: Sequence[Tensor], homes: Sequence[_Home]) -> torch.device:
    """Where tensors made from numbers alone belong."""
    if inputs or homes:
        return (inputs[0] if inputs else homes[0].tensor()).device
    return torch.device("cpu")


def _named(outputs: Any) -> Any:
    """Mappings as `Outputs`, at any depth."""
    if isinstance(outputs, dict):
        return Outputs({name: _named(item) for name, item in outputs.items()})
    if isinstance(outputs, tuple | list):
        return type(outputs)([_named(item) for item in outputs])
    return outputs
