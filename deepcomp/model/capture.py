"""A network written down as a `Graph`: `torch.export` traces it, this file tidies what it saw.

The trace keeps PyTorch's own operations (`conv2d`, `batch_norm`, `lstm`, …), so that later steps can
recognise them. Taken out are what does nothing in inference (dropout, casts to the same dtype,
copies, assertions), what repeats (the same operation on the same values), and what says where to
run rather than what (devices, memory layouts). In-place operations become pure ones. The first
dimension of the inputs, the batch, stays free.
"""

from __future__ import annotations

import inspect
import io
import logging
import operator
import sys
import warnings
from collections import defaultdict, namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind, OutputKind

from deepcomp.errors import CaptureError
from deepcomp.model import ops
from deepcomp.model.evaluate import evaluating
from deepcomp.model.graph import Argument, Graph, Input, Node, Stored, Structure, Value, misfit

__all__ = ["Captured", "capture"]

_SIZES = {
    operator.getitem: "getitem", operator.add: "int.add", operator.sub: "int.sub", operator.mul: "int.mul",
    operator.floordiv: "int.floordiv", operator.mod: "int.mod", operator.neg: "int.neg",
    torch.sym_max: "int.max", torch.sym_min: "int.min",
}  # fmt: skip

# Values are copied wherever they would be written to, so copies and views are all the same here.
_COPIES = {"alias", "clone", "contiguous", "detach", "lift", "lift_fresh", "lift_fresh_copy"}
_DROPOUTS = {"alpha_dropout", "dropout", "feature_alpha_dropout", "feature_dropout"}
_CASTS = {"_to_copy", "to.device", "to.dtype", "to.dtype_layout", "to.other", "to.prim_Device", "type_as"}

# Other names for operations on the list. `reshape` is a `view` that never depends on the strides,
# which may differ from machine to machine.
_SYNONYMS = {
    "view": "reshape", "_unsafe_view": "reshape", "view_as": "reshape_as", "clip": "clamp", "concat": "cat",
    "concatenate": "cat", "absolute": "abs", "negative": "neg", "moveaxis.int": "movedim.int", "fix": "trunc",
    "moveaxis.intlist": "movedim.intlist", "swapdims": "swapaxes", "split.sizes": "split_with_sizes",
    "unsafe_split.Tensor": "split.Tensor", "unsafe_chunk": "chunk", "unsafe_split_with_sizes": "split_with_sizes",
    "true_divide.Tensor": "div.Tensor", "divide.Tensor": "div.Tensor", "multiply.Tensor": "mul.Tensor",
    "subtract.Tensor": "sub.Tensor", "__and__.Tensor": "bitwise_and.Tensor", "__and__.Scalar": "bitwise_and.Scalar",
    "__or__.Tensor": "bitwise_or.Tensor", "__or__.Scalar": "bitwise_or.Scalar",
    "__xor__.Tensor": "bitwise_xor.Tensor", "__xor__.Scalar": "bitwise_xor.Scalar",
    "empty.memory_format": "zeros", "empty_like": "zeros_like", "new_empty": "new_zeros",
}  # fmt: skip
_PLACEMENT = {"device", "implicit", "layout", "memory_format", "non_blocking", "pin_memory"}
# They choose between kernels, or between kinds of gradients, but not between results
_SPEED = {"cudnn_enable": True, "cudnn_enabled": True, "sparse": False}


@dataclass(frozen=True)
class Captured:
    """What `capture` found.

    Attributes
    ----------
    graph : Graph
    names : list of str
        Names of the tensors that the graph refers to by number, as in the module's state dict.
    constants : dict of str to Tensor
        Those of `names` that are not in the state dict: buffers that are not saved, and tensors
        made once by the code of the network.
    """

    graph: Graph
    names: list[str]
    constants: dict[str, Tensor]


def capture(module: nn.Module, example_inputs: Tensor | Sequence[Tensor] | Mapping[str, Tensor]) -> Captured:
    """The operations of a network in inference, with a free batch size.

    Parameters
    ----------
    module : nn.Module
        Left as it was: weights, gradients, training flags.
    example_inputs : Tensor, sequence of tensors, or mapping of names to tensors
        What `module` is called with, by position or by keyword. The first dimension of the first is
        the batch; other inputs share it where their first dimension has the same size. Their values
        do not matter, only shapes and dtypes.

    Raises
    ------
    CaptureError
        If the network cannot be traced, needs an operation that is not on the list, writes to its
        buffers, or works for one batch size only.
    """
    examples, batch = _examples(module, example_inputs)
    saved = list(module.state_dict())
    for name in [*saved, *(name for name, _ in module.named_buffers())]:
        if reason := misfit(name):
            raise CaptureError(f"{name[:200]!r} is a tensor's name {reason}")
    with evaluating(module), _open_attention(), _quiet(), torch.random.fork_rng(devices=[]):
        program = _export(module, examples, batch)
        return _Translation(program, list(_named(examples)), saved, batch).result()


def _examples(
    module: nn.Module, inputs: Tensor | Sequence[Tensor] | Mapping[str, Tensor]
) -> tuple[inspect.BoundArguments, int]:
    """The arguments of `forward`, and the size of the first dimension that is the batch.

    A batch of one would be traced as the constant 1, so it is doubled.
    """
    named = dict(inputs) if isinstance(inputs, Mapping) else {}
    plain = () if named else (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    try:
        bound = inspect.signature(module.forward).bind(*plain, **named)
    except TypeError as error:
        raise CaptureError(f"example inputs: {type(module).__name__} cannot be called with them: {error}") from None
    found = _named(bound)
    for name, entry in found.items():
        if not isinstance(entry, Tensor):
            raise CaptureError(f"example input {name!r}: {type(entry).__name__} found, a tensor expected")
        if entry.numel() == 0:
            raise CaptureError(f"example input {name!r}: a tensor of shape {tuple(entry.shape)} has no elements")
    batch = next((entry.shape[0] for entry in found.values() if entry.ndim), None)
    if batch is None:
        raise CaptureError("example inputs: no tensor with a batch dimension")

    def prepare(entry: Tensor) -> Tensor:
        doubled = batch == 1 and entry.ndim > 0 and entry.shape[0] == 1
        return torch.cat([entry.detach()] * 2) if doubled else entry.detach()

    bound.arguments = {name: _each(entry, prepare) for name, entry in bound.arguments.items()}
    return bound, max(batch, 2)


def _each(argument: Any, change: Callable[[Any], Any]) -> Any:
    """`change` applied to an argument, or to each of those that `*args` or `**kwargs` took."""
    if isinstance(argument, tuple):
        return tuple(map(change, argument))
    if isinstance(argument, dict):
        return {name: change(entry) for name, entry in argument.items()}
    return change(argument)


def _named(bound: inspect.BoundArguments) -> dict[str, Any]:
    """The inputs by name, in the order of the parameters of `forward`."""
    found: dict[str, Any] = {}
    for name, argument in bound.arguments.items():
        if isinstance(argument, tuple):
            found |= {f"{name}_{number}": entry for number, entry in enumerate(argument)}
        else:
            found |= argument if isinstance(argument, dict) else {name: argument}
    return found


@contextmanager
def _open_attention() -> Iterator[None]:
    """Without torch's fast path, which is one opaque operation for a whole encoder layer."""
    fused = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings or log lines of the tracer: what matters of them becomes a `CaptureError`."""
    level = logging.root.manager.disable
    try:
        logging.disable(logging.CRITICAL)
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _export(module: nn.Module, examples: inspect.BoundArguments, batch: int) -> torch.export.ExportedProgram:
    """The traced network, without in-place operations."""

    def free(entry: Tensor) -> dict[int, Any]:
        return {0: torch.export.Dim.AUTO} if entry.ndim and entry.shape[0] == batch else {}

    shapes = {name: _each(argument, free) for name, argument in examples.arguments.items()}
    try:
        program = torch.export.export(module, examples.args, examples.kwargs, dynamic_shapes=shapes, strict=False)
        if any(_writes(node) for node in _all_nodes(program)):
            program = program.run_decompositions({})
    except Exception as error:
        first, *_ = str(error).strip().splitlines() or [type(error).__name__]
        raise CaptureError(f"{type(module).__name__} cannot be traced: {first.split('. ')[0][:200]}") from error
    for output in program.graph_signature.output_specs:
        if output.kind in (OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION):
            raise CaptureError(f"{type(module).__name__} writes to {output.target} when it is called")
    return program


def _all_nodes(program: torch.export.ExportedProgram) -> Iterator[fx.Node]:
    for part in program.graph_module.modules():
        if isinstance(part, fx.GraphModule):
            yield from part.graph.nodes


def _writes(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


class _Translation:
    """From a traced program to a `Captured`: one pass over its nodes in the order they run."""

    def __init__(self, program: torch.export.ExportedProgram, inputs: list[str], saved: list[str], batch: int) -> None:
        self.program = program
        self.saved = set(saved)
        self.batch = batch
        self.input_names = inputs
        self.tensors: list[str] = []
        self.constants: dict[str, Tensor] = {}
        self.inputs: list[Input] = []
        self.nodes: list[Node] = []
        self.known: dict[str, Value] = {}

    def result(self) -> Captured:
        module = self.program.graph_module
        placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
        specs = zip(placeholders, self.program.graph_signature.input_specs, strict=True)
        leaves = self.run(module, [self.placeholder(node, spec) for node, spec in specs])
        kinds = [spec.kind for spec in self.program.graph_signature.output_specs]
        outputs = [leaf for leaf, kind in zip(leaves, kinds, strict=True) if kind == OutputKind.USER_OUTPUT]
        structure = _structure(self.program.call_spec.out_spec, iter(outputs))
        graph = Graph(tuple(self.inputs), tuple(self.nodes), structure).replace({})
        used = graph.stored()
        numbers = {old: new for new, old in enumerate(used)}
        graph = graph.map(lambda entry: Stored(numbers[entry.index]) if isinstance(entry, Stored) else entry)
        names = [self.tensors[index] for index in used]
        graph.to_bytes()  # raises where something does not fit
        return Captured(graph, names, {name: self.constants[name] for name in names if name in self.constants})

    def placeholder(self, node: fx.Node, spec: Any) -> Argument:
        """What a placeholder of the trace stands for: an input, a saved tensor, or a constant."""
        if spec.kind == InputKind.USER_INPUT:
            return self.input(node)
        if spec.kind not in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            raise CaptureError(f"{spec.target} is a {spec.kind.name}, a tensor expected")
        name = spec.target
        if name not in self.saved:
            value = {**self.program.state_dict, **self.program.constants}[name]
            while name in self.saved or any(saved.startswith(f"{name}.") for saved in self.saved):
                name += "_"
            self.constants[name] = value.detach()
        self.tensors.append(name)
        return Stored(len(self.tensors) - 1)

    def input(self, node: fx.Node) -> Value:
        from torch.fx.experimental.symbolic_shapes import is_concrete_int  # imports sympy

        found = node.meta["val"]
        name = self.input_names[len(self.inputs)]
        shape = tuple(int(size) if is_concrete_int(size) else None for size in found.shape)
        if shape and shape[0] == self.batch:
            raise CaptureError(f"the batch size of input {name!r} is fixed by the network, any size expected")
        self.inputs.append(Input(name, found.dtype, shape))
        return Value(len(self.inputs) - 1)

    def run(self, module: fx.GraphModule, arguments: list[Argument]) -> Sequence[Any]:
        """Translate a traced function, inlining those it calls; what it returns."""
        graph = module.graph
        for node in reversed(graph.nodes):
            if node.op == "call_function" and not node.users:
                graph.erase_node(node)
        found: dict[fx.Node, Any] = {}
        given = iter(arguments)
        for node in graph.nodes:
            if node.op == "placeholder":
                found[node] = next(given)
            elif node.op == "get_attr":
                found[node] = module.get_submodule(str(node.target))
            elif node.op == "output":
                return tuple(_filled(node.args[0], found))
            else:
                args, kwargs = _filled(node.args, found), _filled(node.kwargs, found)
                found[node] = self.call(node, args, {k: v for k, v in kwargs.items() if k not in _PLACEMENT})
        raise AssertionError("a traced function ends in its output")

    def call(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What one traced call becomes: usually a node, sometimes nothing or several."""
        if node.target is operator.getitem and isinstance(args[0], tuple):
            return args[0][args[1]]
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            return self.inline(node, args)
        name = _name(node)
        if name in _COPIES or (name in _DROPOUTS and args[2] is False):
            return args[0]
        if name in _CASTS:
            return self.cast(node, args[0], _traced(node.args[0]).dtype, _traced(node).dtype)
        if name == "slice.Tensor":
            args = (*args[:2], *_bounds(args[2:]))
            if args[2:] == (None, None, 1):
                return args[0]
        if name == "slice_scatter":
            args = (*args[:3], *_bounds(args[3:]))
            if args[3:] == (None, None, 1):
                return args[1]
        if name == "copy":  # of the second operand, into the shape and dtype of the first
            source = self.cast(node, args[1], _traced(node.args[1]).dtype, _traced(node.args[0]).dtype)
            return self.emit(node, "expand_as", (source, args[0]), {})
        if name == "_native_batch_norm_legit_no_training":
            return (self.emit(node, "batch_norm", (*args[:5], False, *args[5:], True), {}),)
        if name == "_weight_norm":  # v g / |v|, the norm over all dimensions but one
            direction, magnitude, kept = (*args, 0)[:3]
            rest = tuple([d for d in range(_traced(node.args[0]).ndim) if d != kept])
            norm = self.emit(node, "linalg_vector_norm", (direction, 2, rest, True), {})
            return self.emit(node, "mul.Tensor", (direction, self.emit(node, "div.Tensor", (magnitude, norm), {})), {})
        return self.emit(node, _SYNONYMS.get(name, name), args, kwargs)

    def cast(self, node: fx.Node, value: Any, found: torch.dtype, wanted: torch.dtype) -> Any:
        return value if found == wanted else self.emit(node, "to.dtype", (value, wanted), {})

    def inline(self, node: fx.Node, args: tuple[Any, ...]) -> Any:
        """The body of a block that turns gradients or automatic casts off."""
        match str(node.target), args:
            case "wrap_with_set_grad_enabled", (_, fx.GraphModule() as body, *rest):
                return self.run(body, rest)
            case "wrap_with_autocast", (_, _, False, _, fx.GraphModule() as body, *rest):
                return self.run(body, rest)
        raise CaptureError(f"{node.target} is not on the list of operations{_place(node)}")

    def emit(self, node: fx.Node, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
        """Add a call to the graph, or find the same one made before."""
        try:
            operation = ops.find(name)
        except KeyError:
            raise CaptureError(f"{_spelled(node)} is not on the list of operations{_place(node)}") from None
        try:
            bound = operation.bind(args, kwargs)
        except ValueError as error:
            raise CaptureError(f"{error}{_place(node)}") from None
        if bound.get("train") is False:
            bound["dropout"] = 0.0  # between the layers of a recurrent network, in training only
        bound |= {key: value for key, value in _SPEED.items() if key in bound}
        call = Node(name, *operation.shorten(bound))
        key = repr(call)  # where equality would confuse 1, 1.0 and True
        if key not in self.known:
            self.nodes.append(call)
            self.known[key] = Value(len(self.inputs) + len(self.nodes) - 1)
        return self.known[key]


def _filled(structure: Any, found: Mapping[fx.Node, Any]) -> Any:
    """A copy of traced arguments with nodes replaced by what they became, and lists by tuples."""
    if isinstance(structure, fx.Node):
        return found[structure]
    if isinstance(structure, Mapping):
        return {key: _filled(item, found) for key, item in structure.items()}
    if isinstance(structure, tuple | list):
        return tuple([_filled(item, found) for item in structure])
    return structure


def _bounds(found: Sequence[Any]) -> tuple[Any, Any, Any]:
    """Start, end and step of a slice, None where it goes all the way."""
    given: list[Any] = [*found, *(None, None, 1)[len(found) :]]
    start, end, step = given
    return None if start == 0 else start, None if end == sys.maxsize else end, step


def _name(node: fx.Node) -> str:
    """The name of the called operation as `ops` would spell it."""
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target).removeprefix("aten.").removesuffix(".default")
    target: Any = node.target
    return _SIZES.get(target, "")


def _spelled(node: fx.Node) -> str:
    target: Any = node.target
    return str(target) if isinstance(target, torch._ops.OpOverload) else getattr(target, "__name__", str(target))


def _place(node: fx.Node) -> str:
    """Which part of the network a node came from, for messages."""
    path, _ = [*node.meta.get("nn_module_stack", {"": ("", "")}).values()][-1]
    return f" (used in {path})" if path else ""


def _traced(node: Any) -> Tensor:
    """The tensor that stood for a node's result in the trace: shape and dtype, no values."""
    tensor: Tensor = node.meta["val"]
    return tensor


def _structure(spec: Any, leaves: Iterator[Argument]) -> Structure:
    """The outputs in the nesting of a pytree specification."""
    if spec.is_leaf():
        return next(leaves)
    items = [_structure(child, leaves) for child in spec.children()]
    if spec.type is namedtuple:  # a function; the class is the context
        return dict(zip(spec.context._fields, items, strict=True))
    if issubclass(spec.type, tuple):
        return tuple(items)
    if issubclass(spec.type, list):
        return items
    keys = spec.context[1] if issubclass(spec.type, defaultdict) else spec.context
    keys = list(keys) if isinstance(keys, list | tuple) else [None]
    if len(keys) != len(items) or not all(isinstance(key, str) for key in keys):
        raise CaptureError(f"an output is a {spec.type.__name__}; a tensor, tuple, list or mapping expected")
    return dict(zip(keys, items, strict=True))
