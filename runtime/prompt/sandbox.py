"""Rendering untrusted chat templates: Jinja's sandbox, with limits on work, size and time.

The sandbox keeps a template from reaching Python; it does not keep it from looping for a year or from asking for a
terabyte. So a rendering has a budget of characters, and whatever makes something is charged for it: each iteration the
length of the template, each operator, filter and call the size of what it makes and of what it is given. A few filters
and methods remain, those that cannot make much out of little, and so do numbers that fit 63 bits. Filter and call
blocks and inheritance are refused when the template is compiled.

What transformers adds to Jinja is there: `break` and `continue`, `generation` blocks (which mark what a model is
trained to say, and write what is in them), and its own `tojson`.
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NoReturn

from jinja2 import Environment, Template, TemplateError, nodes
from jinja2.compiler import CodeGenerator
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.nodes import EvalContext
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

BUDGET = 1 << 24  # characters in all; the longest conversations that fit a model's context take a tenth
MAX_VALUE = 1 << 20
MAX_SECONDS = 10.0
_ITEM = 8  # what an item of a list costs, in characters
_ITERATION = 256  # what an iteration of a loop and a call cost at least
_FILTERS = (
    "abs capitalize count d default dictsort e escape first float format int items join last length list lower map max "
    "min reject rejectattr replace reverse round safe select selectattr sort string sum title tojson trim unique upper"
)
_METHODS = {
    str: "strip lstrip rstrip split rsplit splitlines partition startswith endswith lower upper title capitalize find "
    "rfind index count replace join removeprefix removesuffix isdigit isalpha isspace isupper islower",
    dict: "get items keys values",
    list: "index count",
    tuple: "index count",
    LoopContext: "changed cycle",
}
_STATEMENTS = (
    nodes.Output,
    nodes.For,
    nodes.Break,
    nodes.Continue,
    nodes.If,
    nodes.Assign,
    nodes.AssignBlock,
    nodes.Macro,
    nodes.Scope,
)
_MAX_INDENT = 64  # of a level in JSON
_WIDE = re.compile(r"\d{4}|\*")  # in a % pattern: a width of thousands, or one that is an argument
_LARGEST_NUMBER = 1 << 63


class TemplateRefusal(TemplateError):
    """A template's own objection to a conversation (raise_exception)."""


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """An environment for one template at a time; `render` runs it within the limits. Not thread-safe.

    functions: what templates may call by name, besides range, namespace and dict.
    """

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, functions: Mapping[str, Callable[..., Any]]) -> None:
        extensions = [LoopControlExtension, _GenerationBlocks]
        super().__init__(trim_blocks=True, lstrip_blocks=True, finalize=self._printed, extensions=extensions)
        self._left = BUDGET
        self._deadline = 0.0
        self._iteration = _ITERATION
        self.globals = {name: self.globals[name] for name in ("range", "namespace", "dict")} | dict(functions)
        known = self.filters | {"tojson": self._tojson}
        self.filters = {name: self._charged_filter(name, known[name]) for name in _FILTERS.split()}
        self.filters["iterations of a loop"] = self._iterations
        self.filters["value of a variable"] = self._charged
        self.code_generator_class = _Guarded

    def from_string(self, source: Any, *arguments: Any, **options: Any) -> Template:
        self._begin(len(source))  # constants are folded when the template is compiled
        return super().from_string(source, *arguments, **options)

    def render(self, template: Template, context: Mapping[str, Any]) -> str:
        """What the template writes; TemplateError beyond the limits, besides whatever templates raise."""
        self._begin(self._iteration)
        return "".join(template.generate(context))

    def call(self, context: Any, obj: Any, /, *arguments: Any, **options: Any) -> Any:
        self._spend(self._iteration)
        if not isinstance(obj, Undefined) and not self._is_known(obj):
            raise SecurityError(f"{getattr(obj, '__name__', type(obj).__name__)} may not be called")
        self._charged((arguments, options))
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, str):
            _check_growth(obj.__name__, [owner, *arguments, *options.values()])
        return self._charged(super().call(context, obj, *arguments, **options))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            _check_growth("format", [left])
            self._charged((left, right))
        elif operator != "+":
            if operator == "**" or not all(isinstance(value, int | float) for value in (left, right)):
                raise SecurityError(f"the operator {operator} is not allowed (** never, others for numbers only)")
        elif not isinstance(left, int | float):
            self._charged((left, right))
        return self._charged(super().call_binop(context, operator, left, right))

    def _begin(self, iteration: int) -> None:
        self._iteration = max(iteration, _ITERATION)
        self._left = BUDGET
        self._deadline = time.monotonic() + MAX_SECONDS

    def _spend(self, amount: int) -> None:
        self._left -= amount
        if self._left < 0:
            raise TemplateError(f"it takes more than {BUDGET:,} characters of work")
        if time.monotonic() > self._deadline:
            raise TemplateError(f"it takes more than {MAX_SECONDS:g} s")

    def _charged(self, value: Any) -> Any:
        """The value itself, its size paid for."""
        if isinstance(value, int) and not -_LARGEST_NUMBER <= value < _LARGEST_NUMBER:
            raise TemplateError("a number does not fit 64 bits")
        if (size := _size(value, MAX_VALUE)) > MAX_VALUE:
            raise TemplateError(f"a value has more than {MAX_VALUE:,} characters")
        self._spend(size)
        return value

    def _printed(self, value: Any) -> Any:
        return self._charged(value)

    def _iterations(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self._spend(self._iteration)
            yield item

    def _tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """transformers' filter of this name, which escapes no HTML; charged piece by piece, as indents make much."""
        if (indent if isinstance(indent, int) else len(indent or "")) > _MAX_INDENT:
            raise TemplateError(f"tojson indents by {_MAX_INDENT} characters at most")
        encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        parts = []
        for part in encoder.iterencode(value):
            self._spend(len(part))
            parts.append(part)
        return "".join(parts)

    def _charged_filter(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)  # which also tells Jinja whether the filter wants the environment
        def charged(*arguments: Any, **options: Any) -> Any:
            values = [each for each in arguments if not isinstance(each, Environment | Context | EvalContext)]
            self._charged((values, options))
            values += options.values()
            _check_growth(name, [*values[1::-1], *values[2:]] if name == "join" else values)
            return self._charged(function(*arguments, **options))

        return charged

    def _is_known(self, obj: Any) -> bool:
        if isinstance(obj, Macro | LoopContext) or any(obj is known for known in self.globals.values()):
            return True
        owner = getattr(obj, "__self__", None)
        names = next((names for kind, names in _METHODS.items() if isinstance(owner, kind)), "")
        return getattr(obj, "__name__", None) in names.split()


class _GenerationBlocks(Extension):
    """`{% generation %}…{% endgeneration %}` writes what is in it; as in transformers, names set in it end with it."""

    tags = {"generation"}  # noqa: RUF012 (as Jinja declares it)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _Guarded(CodeGenerator):
    """Compiles a template with the charges in it."""

    def visit_Template(self, node: nodes.Template, frame: Any = None) -> None:
        for statement in node.find_all(nodes.Stmt):
            if not isinstance(statement, _STATEMENTS):
                self.fail(f"{type(statement).__name__} statements are not allowed in chat templates", statement.lineno)
        for concat in list(node.find_all(nodes.Concat)):
            concat.nodes = [_filtered(part, "string") for part in concat.nodes]
        for loop in list(node.find_all(nodes.For)):
            loop.iter = _filtered(loop.iter, "iterations of a loop")
        for assignment in list(node.find_all(nodes.Assign)):
            assignment.node = _filtered(assignment.node, "value of a variable")
        for block in list(node.find_all(nodes.AssignBlock)):
            if _times_written(block, block.target) > 1:
                self.fail("a set block that writes its own variable twice grows without bound", block.lineno)
            block.filter = _filtered(block.filter, "value of a variable", block)
        super().visit_Template(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Any) -> None:
        """`a ~ b` as a sum of strings, which is charged."""
        total, *parts = node.nodes
        for part in parts:
            total = nodes.Add(total, part, lineno=node.lineno, environment=self.environment)
        self.visit(total, frame)


def _filtered(value: nodes.Node | None, name: str, owner: nodes.Node | None = None) -> nodes.Filter:
    """A value through one of our filters; without one, what the block `owner` has written."""
    place = value or owner
    assert place is not None
    return nodes.Filter(value, name, [], [], None, None, lineno=place.lineno, environment=place.environment)


def _times_written(block: nodes.AssignBlock, target: nodes.Node) -> int:
    own = {name.name for name in (target, *target.find_all(nodes.Name)) if isinstance(name, nodes.Name)}
    outputs = [part for output in block.find_all(nodes.Output) for part in output.nodes]
    names = [name for part in outputs for name in (part, *part.find_all(nodes.Name)) if isinstance(name, nodes.Name)]
    return sum(name.name in own for name in names)


def _size(value: Any, limit: int) -> int:
    """Characters of a string; of a list or mapping the sum over its items, counted no further than the limit."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        value = [*value.keys(), *value.values()]
    if not isinstance(value, list | tuple):
        return 1
    total = _ITEM
    for item in value:
        total += _ITEM + _size(item, limit - total)
        if total > limit:
            break
    return total


def _check_growth(name: str, values: list[Any]) -> None:
    """TemplateError where a value would grow too much. values: text, old, new; or separator, items; or pattern."""
    if name == "replace" and len(values) > 2:
        text, old, new = (str(value) for value in values[:3])
        grown = text.count(old) * len(new)
    elif name == "format" and values:
        grown = MAX_VALUE + 1 if _WIDE.search(str(values[0])) else 0
    elif name == "join" and len(values) > 1:
        items = values[1]
        grown = len(str(values[0])) * (len(items) if hasattr(items, "__len__") else MAX_VALUE // _ITEM)
    else:
        return
    if grown > MAX_VALUE:
        raise TemplateError(f"{name} would make a value of more than {MAX_VALUE:,} characters")


def refuse(message: str) -> NoReturn:
    """What templates call as raise_exception."""
    raise TemplateRefusal(str(message)[:1000])
