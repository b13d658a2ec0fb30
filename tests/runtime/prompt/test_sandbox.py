"""Chat templates that loop, grow or reach for what they should not: stopped within limits, and the honest ones run."""

from __future__ import annotations

import time
from typing import Any

import jinja2
import pytest

from vl3edge.runtime.prompt.sandbox import MAX_SECONDS, TemplateSandbox, refuse

GROWN = "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(16) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}"
DOUBLE = "{% set a = ['x'] %}{% set b = ['x'] %}" + "{% set a = [a, a] %}{% set b = [b, b] %}" * 60
TREE = "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% else %}xxxx{% endif %}{% endmacro %}{{ f(40) }}"
ARGS = (
    "{% macro f(a, n) %}{% if n %}{{ f([a, a], n - 1) }}{% else %}{{ a|string }}{% endif %}{% endmacro %}{{ f(1, 60) }}"
)
BOMBS = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops over a list": "{% set l = range(9999)|list %}{% for a in l %}{% for b in l %}{% endfor %}{% endfor %}",
    "recursive loop": "{% set l = range(1000)|list %}{% for a in l recursive %}{{ loop(l) }}{% endfor %}",
    "long string": "{{ 'a' * 10000000000 }}",
    "long list": "{{ [1] * 10000000000 }}",
    "power": "{{ 10 ** 10 ** 10 }}",
    "squares": "{% set ns = namespace(n=3) %}{% for i in range(100) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "doubling by ~": "{% set a = 'xxxxxxxx' %}" + "{% set a = a ~ a %}" * 60,
    "doubling by +": "{% set a = 'xxxxxxxx' %}" + "{% set a = a + a %}" * 60,
    "one long sum": GROWN + "{{ " + " ~ ".join(["ns.s"] * 400) + " }}",
    "lists of lists": DOUBLE + "{{ a }}",
    "compared": DOUBLE + "{{ a == b }}",
    "mappings": "{% set ns = namespace(d={}) %}{% for i in range(60) %}{% set ns.d = {1: ns.d, 2: ns.d} %}{% endfor %}",
    "endless macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "tree of macros": TREE,
    "growing arguments": ARGS,
    "macro that writes": "{% macro f() %}{% for i in range(99999) %}"
    + "x" * 9999
    + "{% endfor %}{% endmacro %}{{ f() }}",
    "much output": "{% for i in range(99999) %}" + "x" * 9999 + "{% endfor %}",
    "long values written": GROWN + "{% for i in range(99999) %}{{ ns.s }}{% endfor %}",
    "padding": "{{ 'a'.ljust(10000000000) }}",
    "padding filter": "{{ 'a'|center(10000000000) }}",
    "format": "{{ '{:>10000000000}'.format(1) }}",
    "format by %": "{{ '%010000000000d' % 1 }}",
    "format filter": "{{ '%010000000000d'|format(1) }}",
    "format of a width": "{{ '%*d' % (10000000000, 1) }}",
    "replace": GROWN + "{{ ns.s.replace('a', ns.s) }}",
    "replace filter": GROWN + "{{ ns.s|replace('a', ns.s) }}",
    "replace nothing": GROWN + "{{ ns.s|replace('', ns.s) }}",
    "join": GROWN + "{{ ns.s.join(range(99999)|map('string')) }}",
    "join filter": GROWN + "{{ range(99999)|join(ns.s) }}",
    "join option": GROWN + "{{ range(99999)|join(d=ns.s) }}",
    "set block": "{% set a %}{{ a }}{{ a }}{% endset %}",
    "set blocks of each other": "{% set a %}xxxxxxxx{% endset %}"
    + "{% set b %}{{ a }}{{ a }}{% endset %}{% set a %}{{ b }}{{ b }}{% endset %}" * 40,
    "set block of a namespace": "{% set n = namespace(s='xxxxxxxx') %}{% for i in range(99) %}"
    + "{% set n.s %}{{ n.s }}{{ n.s }}{% endset %}{% endfor %}",
    "set block with a filter": GROWN + "{% set a | replace('a', ns.s) %}{{ ns.s }}{% endset %}",
    "wide indent": "{{ [1]|tojson(indent=10000000000) }}",
    "wide indent of spaces": GROWN + "{{ [[[1]]]|tojson(indent=ns.s) }}",
    "deep indents": "{% set n = namespace(v=[1]) %}{% for i in range(300) %}{% set n.v = [n.v, 1, 1, 1] %}{% endfor %}"
    + "{% for i in range(99) %}{{ n.v|tojson(indent=64)|length }}{% endfor %}",
    "wide separators": GROWN + "{{ range(99999)|list|tojson(separators=(ns.s, ns.s)) }}",
    "mapped to JSON": DOUBLE + "{{ [a]|map('tojson')|list }}",
    "loop that never ends well": "{% for a in range(99999) %}{% for b in range(99999) %}{% if b > 9999 %}{% break %}"
    + "{% endif %}{% endfor %}{% continue %}{% endfor %}",
    "generation in loops": "{% for a in range(99999) %}{% generation %}"
    + "x" * 9999
    + "{% endgeneration %}{% endfor %}",
    "include in generation": "{% generation %}{% include '/etc/passwd' %}{% endgeneration %}",
    "call block": "{% macro f() %}{{ caller() }}{% endmacro %}{% call f() %}x{% endcall %}",
    "filter block": "{% filter upper %}a{% endfilter %}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import '/etc/passwd' as x %}",
    "inheritance": "{% block a %}{{ self.a() }}{% endblock %}",
    "lorem ipsum": "{{ lipsum(100000) }}",
    "classes": "{{ ''.__class__.__mro__ }}",
    "attributes": "{{ ''|attr('__class__') }}",
    "code of a macro": "{% macro f() %}{% endmacro %}{{ f._func.__globals__ }}",
    "batches": "{{ range(10)|batch(10000000000, 'x')|list }}",
    "deep": "{{ " + "[" * 999 + "]" * 999 + " }}",
    "deeper": "{{ " + "(" * 20000 + ")" * 20000 + " }}",
    "changing what it is given": "{{ messages.append(1) }}",
}


@pytest.fixture
def sandbox() -> TemplateSandbox:
    return TemplateSandbox({"raise_exception": refuse})


def render(sandbox: TemplateSandbox, source: str, **context: Any) -> str:
    return sandbox.render(sandbox.from_string(source), context)


@pytest.mark.parametrize("name", BOMBS)
def test_stopped(sandbox: TemplateSandbox, name: str) -> None:
    begin = time.monotonic()
    with pytest.raises((jinja2.TemplateError, RecursionError)):
        render(sandbox, BOMBS[name], messages=[])
    assert time.monotonic() - begin < MAX_SECONDS
    assert render(sandbox, "{{ 'still usable' }}") == "still usable"


def test_time_is_limited(sandbox: TemplateSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10_000))
    monkeypatch.setattr("vl3edge.runtime.prompt.sandbox.time.monotonic", lambda: next(clock))
    with pytest.raises(jinja2.TemplateError, match="more than 10 s"):
        render(sandbox, "{% for i in range(100) %}{{ i }}{% endfor %}")


HONEST = {
    "{{ a ~ 1 ~ none ~ 2.5 }}": "x1None2.5",
    "{{ 'Time %.1fs:' | format(2.25) + 'x' }}{{ '%03d|%s' % (7, 'y') }}": "Time 2.2s:x007|y",
    "{{ 'a' + 'b' }}{{ 1 + 2 }}{{ [1] + [2] }}{{ 7 % 4 }}{{ 2 * 3 }}": "ab3[1, 2]36",
    "{% set n = namespace(k=0) %}{% for i in range(3) %}{% set n.k = n.k + i %}{% endfor %}{{ n.k }}": "3",
    "{% for m in ms %}{{ loop.index }}{{ m.role }}{% if not loop.last %},{% endif %}{% endfor %}": "1u,2v",
    "{% for m in ms if m.role == 'v' %}{{ m['role'] }}{{ loop.length }}{% else %}none{% endfor %}": "v1",
    "{% for m in [] %}{% else %}none{% endfor %}": "none",
    "{% macro f(x, y=2) %}{{ x }}{{ y }}{% endmacro %}{{ f(1) }}{{ f(3, y=4) }}": "1234",
    "{{ missing|default('d') }}{{ missing is defined }}{{ '' or 'e' }}": "dFalsee",
    "{{ ' a '.strip() }}{{ 'a,b'.split(',')[-1] }}{{ 'abc'.startswith('ab') }}": "abTrue",
    "{{ 'a-b'.replace('-', '+') }}{{ ms|length }}{{ ms|map(attribute='role')|join('/') }}": "a+b2u/v",
    "{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}": "a1",
    "{{ ms|selectattr('role', 'equalto', 'u')|list|length }}{{ ms[::-1][0].role }}": "1v",
    "{{ 'x' if ms is iterable and a is string else 'y' }}": "x",
    "{% for t in [1.0, 2.25] %}{{ t|round(1) }} {% endfor %}": "1.0 2.2 ",
    "{{ 'a\n' }}{{- 'b' -}}  \n c": "a\nbc",
}


@pytest.mark.parametrize("source", HONEST)
def test_honest_templates_write_what_jinja_writes(sandbox: TemplateSandbox, source: str) -> None:
    context = {"a": "x", "ms": [{"role": "u"}, {"role": "v"}]}
    plain = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(source).render(context)
    assert render(sandbox, source, **context) == plain == HONEST[source]


def test_long_conversations_are_within_the_limits(sandbox: TemplateSandbox) -> None:
    source = (
        "{% for m in ms %}{% set text = m.content|trim %}{{ '<|im_start|>' + m.role + '\n' + text + '<|im_end|>\n' }}"
        "{% for t in times %}{{ 'Time ' ~ t ~ 's:' }}{% endfor %}{% endfor %}"
    )
    messages = [{"role": "user", "content": "word " * 300} for _ in range(100)]  # 37,500 tokens or so
    text = render(sandbox, source, ms=messages, times=[float(k) for k in range(180)])
    assert text.count("word") == 30_000


def test_what_a_template_says_itself(sandbox: TemplateSandbox) -> None:
    with pytest.raises(jinja2.TemplateError, match="no system messages"):
        render(sandbox, "{{ raise_exception('no system messages') }}")
