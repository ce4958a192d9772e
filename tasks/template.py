"""Prompt templates, rendered: names, conditions and a few filters, in Jinja's words and in bounded time.

Owns what a template may say. Each of its parts runs at most once, so a template cannot loop, call or reach into a value;
values are never read as template. Does not know where a template or its values come from.

Source: Jinja, "Sandbox": "The sandbox alone is no solution for perfect security", hence the short list below.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from jinja2 import StrictUndefined, Template, TemplateError, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from agent_exec.contract.agent import PromptTemplate
from agent_exec.contract.model import Scalar
from agent_exec.errors import PromptInvalid

#: The longest text a template may make.
MAX_RENDERED_CHARS = 256_000

#: All that a template may consist of.
ALLOWED = (
    nodes.Template,
    nodes.Output,
    nodes.TemplateData,
    nodes.Name,
    nodes.Const,
    nodes.Filter,
    nodes.Test,
    nodes.If,
    nodes.CondExpr,
    nodes.Compare,
    nodes.Operand,
    nodes.And,
    nodes.Or,
    nodes.Not,
)
FILTERS = frozenset({"default", "lower", "upper", "title", "capitalize", "trim", "int", "round", "length"})
TESTS = frozenset({"defined", "undefined", "none", "true", "false", "string", "number"})

_environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True)
_environment.globals.clear()


def render(template: PromptTemplate, *, values: Mapping[str, Scalar] | None = None) -> str:
    """Return the template with its variables, over which `values` win.

    Raises:
        PromptInvalid: says what the template may not do, or which variable it lacks.
    """
    try:
        parts, size = [], 0
        for part in _compiled(template.template).generate({**template.variables, **(values or {})}):
            size += len(part)
            if size > MAX_RENDERED_CHARS:
                raise PromptInvalid(f"The prompt template makes more than {MAX_RENDERED_CHARS} characters.")
            parts.append(part)
    except TemplateError as error:
        raise PromptInvalid(f"The prompt template does not render: {error}. Mend the agent's system_prompt.") from None
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise PromptInvalid(
            f"The prompt template does not render ({type(error).__name__}). Mend the agent's system_prompt."
        ) from None
    return "".join(parts)


@lru_cache(maxsize=256)
def _compiled(text: str) -> Template:
    parsed = _environment.parse(text)
    _check(parsed)
    return _environment.from_string(parsed)


def _check(template: nodes.Template) -> None:
    for node in template.find_all(nodes.Node):
        if not isinstance(node, ALLOWED):
            raise _forbidden(type(node).__name__.lower(), node.lineno)
        if isinstance(node, nodes.Filter) and node.name not in FILTERS:
            raise _forbidden(f"the filter '{node.name}'", node.lineno)
        if isinstance(node, nodes.Test) and node.name not in TESTS:
            raise _forbidden(f"the test '{node.name}'", node.lineno)


def _forbidden(what: str, line: int) -> PromptInvalid:
    return PromptInvalid(
        f"The prompt template uses {what} in line {line}; it may use names, conditions and the filters "
        f"{', '.join(sorted(FILTERS))}."
    )
