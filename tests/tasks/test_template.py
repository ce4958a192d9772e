"""Prompt templates: what they may say, and what never runs (faults B15, S31, S32)."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_exec.contract.agent import PromptTemplate
from agent_exec.errors import PromptInvalid
from tasks.template import MAX_RENDERED_CHARS, render


def test_names_conditions_and_filters() -> None:
    template = PromptTemplate(
        template="You are {{ persona | title }}.{% if terse is defined and terse %} Be brief.{% endif %}",
        variables={"persona": "a clerk"},
    )
    assert render(template) == "You are A Clerk."
    assert render(template, values={"persona": "an aide", "terse": True}) == "You are An Aide. Be brief."


@pytest.mark.parametrize(
    "text",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ x|attr('format') }}",
        "{% for i in range(10**9) %}x{% endfor %}",
        "{{ 'a' * 10**9 }}",
        "{{ x ~ x }}",
        "{{ x() }}",
        "{{ self }}{{ x['a'] }}",
        "{% set y = 1 %}",
        "{% macro m() %}{% endmacro %}",
        "{% include 'x' %}",
        "{{ missing }}",
        "{{ x | round(99999999) }}",
        "{{ unclosed",
        "{{ x is sameas x }}",
        "{{ " + "(" * 5_000 + "x" + ")" * 5_000 + " }}",
    ],
)
def test_what_a_template_may_not_do_is_an_error_that_says_so_at_once(text: str) -> None:
    """S30, S31: nothing of the process is within its reach, and so no secret."""
    began = time.perf_counter()
    with pytest.raises(PromptInvalid, match="prompt template"):
        render(PromptTemplate(template=text, variables={"x": "v"}))
    assert time.perf_counter() - began < 1


@pytest.mark.parametrize("text", ["%(x)s", "{0.__globals__}", "${x}", "#{x}", "{ x }"])
def test_other_languages_are_only_text(text: str) -> None:
    assert render(PromptTemplate(template=text, variables={"x": "v"})) == text


def test_the_text_made_is_bounded() -> None:
    template = PromptTemplate(template="{{ x }}" * 9, variables={"x": "y" * (MAX_RENDERED_CHARS // 8)})
    with pytest.raises(PromptInvalid, match=str(MAX_RENDERED_CHARS)):
        render(template)


@given(st.text(max_size=200))
def test_a_value_is_never_read_as_template(value: str) -> None:
    assert render(PromptTemplate(template="<{{ x }}>"), values={"x": value}) == f"<{value}>"
    tricky = f"{{{{ y }}}}{value}{{% raw %}}"
    assert render(PromptTemplate(template="{{ x }}"), values={"x": tricky}) == tricky
