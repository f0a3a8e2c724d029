#!/usr/bin/env python3
"""Writes jinja_cases.jsonl: templates, variables, and what jinja2 makes of them: by hand, then random ones.

Usage: make_jinja_cases.py > jinja_cases.jsonl   (needs the Python package jinja2, 3.1)
"""
import json
import random

from transformers_jinja import environment

VARIABLES = {
    "s": "Hello World", "e": "", "u": "Grüße 🙂 ümlaut", "w": "  two  words \n", "n": 7, "z": 0, "m": -3, "f": 2.5,
    "t": True, "no": False, "nil": None, "l": [3, 1, 2], "ls": ["b", "A", "c", "a"], "el": [], "q": "it's \"q\" \\ \t",
    "d": {"b": 1, "a": "x", "items": [1], "nested": {"k": [True, None, 1.0]}}, "ed": {},
    "ms": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo", "tool_calls": []},
           {"role": "user", "content": " bye "}],
    "lines": "one\ntwo\n\nfour",
}

HAND = r"""
plain text
{{ s }}
{{ s }}{{ e }}|{{ undefined_name }}|
{{ nil }} {{ t }} {{ n }} {{ f }} {{ l }} {{ d }} {{ ls }} {{ q }} {{ [q] }}
{{ (1,) }} {{ (1, 2) }} {{ () }} {{ [] }} {{ {} }} {{ {'a': 1, "b": [2]} }}
{{ 1 + 2 * 3 - 4 }} {{ 7 // 2 }} {{ -7 // 2 }} {{ 7 % 3 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 2 ** 10 }} {{ 2 ** -1 }} {{ -2 ** 2 }}
{{ 7.5 // 2 }} {{ -7.5 % 2 }} {{ 1e20 }} {{ 1e15 }} {{ 1e16 }} {{ 0.1 + 0.2 }} {{ 1e-5 }} {{ 0.0001 }} {{ 123456789.125 }}
{{ 1_000 }} {{ 1.5e3 }} {{ true + 1 }} {{ True }} {{ false }} {{ none }} {{ None }}
{{ 'a' ~ 1 ~ nil ~ undefined_name ~ 2.0 }}
{{ 'a' 'b' "c" }} {{ 'tab\tnew\\n \x41 \u00e9 \U0001F642 \q \101' }}
{{ "it's" }} {{ 'say "x"' }}
{{ s[0] }} {{ s[-1] }} {{ s[1:4] }} {{ s[:-1] }} {{ s[::-1] }} {{ s[::2] }} {{ u[6] }} {{ u[-6:] }} {{ s[99] }} {{ s[5:2] }}
{{ l[0] }} {{ l[-1] }} {{ l[1:] }} {{ l[::-1] }} {{ l[:0] }} {{ l[10:] }} {{ l[-2:] }} {{ l[2:0:-1] }} {{ (1,2,3)[1:] }}
{{ d.a }} {{ d['a'] }} {{ d.missing }} {{ d.missing is defined }} {{ d['items'] }} {{ d.items is callable }} {{ d.nested.k[1] }}
{{ ms[0].role }} {{ ms[-1]['content'] }} {{ ms.0.role }} {{ ms|length }} {{ ms[1:]|length }}
{{ nil.foo is defined }} {{ n.foo is defined }} {{ s.foo is undefined }}
{{ undefined_name.foo }}
{{ undefined_name['foo'] }}
{{ undefined_name + 1 }}
{{ undefined_name() }}
{{ 1 + 'a' }}
{{ 'a' + 1 }}
{{ 'a' < 1 }}
{{ 1 // 0 }}
{{ 5 in 5 }}
{{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }} {{ 1 == 1.0 }} {{ 1 == true }} {{ 'a' == "a" }} {{ [1] == [1] }} {{ (1,) == [1] }} {{ {'a':1} == {'a':1.0} }}
{{ 'a' < 'b' }} {{ 'Z' < 'a' }} {{ [1,2] < [1,3] }} {{ 2 >= 2 }} {{ 2 != 2 }} {{ nil == none }} {{ undefined_name == undefined_other }}
{{ 'ell' in s }} {{ 'x' not in s }} {{ 1 in l }} {{ 9 in l }} {{ 'a' in d }} {{ 'z' not in d }} {{ 'a' in undefined_name }}
{{ not t }} {{ not e }} {{ t and s }} {{ e and s }} {{ e or s }} {{ z or nil }} {{ not not 1 }} {{ not 1 == 2 }}
{{ 'y' if t else 'n' }} {{ 'y' if no else 'n' }} {{ 'y' if no }} {{ 1 if no else 2 if no else 3 }}
{{ s if s is defined and s|length > 3 else 'short' }}
{{ n is number }} {{ n is integer }} {{ f is float }} {{ t is number }} {{ t is integer }} {{ t is boolean }} {{ nil is none }} {{ s is string }}
{{ d is mapping }} {{ l is mapping }} {{ l is iterable }} {{ s is iterable }} {{ n is iterable }} {{ l is sequence }} {{ d is sequence }} {{ nil is sequence }}
{{ 3 is odd }} {{ 3 is even }} {{ 9 is divisibleby 3 }} {{ 9 is divisibleby(2) }} {{ 3 is eq 3 }} {{ 3 is ne(3) }} {{ 3 is lt 4 }} {{ 3 is ge 4 }} {{ 3 is in [3] }}
{{ t is true }} {{ no is false }} {{ 1 is true }} {{ s is not none }} {{ x is not defined }} {{ 'ABC' is upper }} {{ 'abc' is lower }}
{{ -n }} {{ +n }} {{ -f }} {{ --n }} {{ - -n|abs }} {{ (-n)|abs }} {{ -7|abs }}
{{ s|upper }} {{ s|lower }} {{ u|upper }} {{ 'hello big-world (x)'|title }} {{ 'hELLO'|capitalize }} {{ w|trim }}| {{ 'xxaxx'|trim('x') }}
{{ s|length }} {{ u|length }} {{ l|count }} {{ d|length }} {{ undefined_name|length }}
{{ l|first }} {{ l|last }} {{ s|first }} {{ s|last }} {{ el|first }} {{ l|sort }} {{ ls|sort }} {{ ls|sort(reverse=true) }} {{ ls|sort(case_sensitive=true) }}
{{ l|join }} {{ l|join(', ') }} {{ ms|join('-', attribute='role') }} {{ ms|map(attribute='content')|join('|') }} {{ s|list }} {{ d|list }}
{{ ls|map('upper')|list }} {{ l|map('string')|join('+') }} {{ ms|map(attribute='tool_calls', default='none')|list }}
{{ l|select('odd')|list }} {{ l|reject('odd')|list }} {{ [0,1,'']|select|list }} {{ ms|selectattr('role','equalto','user')|list|length }}
{{ ms|selectattr('tool_calls','defined')|list|length }} {{ ms|rejectattr('role','==','user')|map(attribute='content')|first }} {{ ms|selectattr('content')|list|length }}
{{ l|max }} {{ l|min }} {{ l|sum }} {{ el|sum }} {{ [1.5,2]|sum }} {{ [1,1,2,'A','a']|unique|list }} {{ l|reverse|list }} {{ s|reverse }}
{{ undefined_name|default('x') }} {{ e|default('x') }} {{ e|default('x', true) }} {{ e|d('y', boolean=true) }} {{ nil|default('x') }}
{{ '42'|int }} {{ '42.7'|int }} {{ 'x'|int }} {{ 'x'|int(9) }} {{ 3.9|int }} {{ '3.5'|float }} {{ 'x'|float }} {{ true|int }} {{ ' 7 '|int }}
{{ 2.5|round }} {{ 3.5|round }} {{ 2.678|round(2) }} {{ 2.1|round(0,'ceil') }} {{ 2.9|round(method='floor') }} {{ 5|round }} {{ -1.5|round }}
{{ s|replace('l','L') }} {{ s|replace('l','L',1) }} {{ s|replace('','-') }} {{ 'aaa'|replace('aa','b') }}
{{ d|items|list }} {{ d|dictsort }} {{ {'b':1,'A':2}|dictsort(true) }} {{ {'b':1,'A':2}|dictsort(by='value') }} {{ ed|items|list }}
{{ d|tojson }} {{ u|tojson }} {{ u|tojson(ensure_ascii=true) }} {{ q|tojson }} {{ [1.0, 1e30, nil, true]|tojson }} {{ {}|tojson }} {{ []|tojson(indent=2) }}
{{ d|tojson(indent=2) }} {{ d|tojson(sort_keys=true) }} {{ d|tojson(separators=(',', ':')) }} {{ {1: 2, none: 3}|tojson }} {{ d|tojson(indent=4, separators=[', ', ' = ']) }}
{{ lines|indent }}|{{ lines|indent(2, true) }}|{{ lines|indent(2, blank=true) }}|{{ lines|indent('> ') }}|{{ 'a\n'|indent }}|{{ ''|indent }}|
{{ '%s is %d, %.2f %5s|%-5s|%05d %x %%'|format('a', 3, 1.005, 'b', 'c', 42, 255) }} {{ '%s' % s }} {{ '%s-%s' % (1, 2) }}
{{ 'a{}b{}'.format(1, 'x') }} {{ '{0}{1}{0}'.format('a','b') }} {{ '{k}{{}}'.format(k=3) }}
{{ s.upper() }} {{ s.lower() }} {{ s.title() }} {{ "they're bill's"|title }} {{ "they're bill's".title() }} {{ 'x'.capitalize() }}
{{ w.strip() }}|{{ w.lstrip() }}|{{ w.rstrip() }}|{{ 'xyhixy'.strip('xy') }} {{ 'abc'.lstrip('ab') }} {{ w.rstrip('\n') }}|
{{ s.split() }} {{ s.split('o') }} {{ s.split('o', 1) }} {{ w.split() }} {{ 'a,b,,c'.split(',') }} {{ ''.split(',') }} {{ ''.split() }} {{ 'a b c'.split(none, 1) }} {{ 'a b c'.rsplit(' ', 1) }} {{ 'abc'.rsplit('x', 1) }}
{{ lines.splitlines() }} {{ 'a\r\nb\n'.splitlines() }} {{ 'a\nb'.splitlines(true) }}
{{ s.startswith('He') }} {{ s.endswith('x') }} {{ s.startswith(('x','H')) }} {{ s.find('o') }} {{ s.rfind('o') }} {{ s.find('zz') }} {{ u.find('🙂') }} {{ s.count('l') }} {{ s.index('W') }}
{{ s.replace('l', 'LL') }} {{ s.replace('o', '0', 1) }} {{ ','.join(['a','b']) }} {{ '-'.join('abc') }} {{ '12'.isdigit() }} {{ 'ab'.isalpha() }} {{ 'a1'.isalnum() }} {{ ' \t'.isspace() }} {{ ''.isdigit() }} {{ 'aB'.isupper() }}
{{ 'prefix-x'.removeprefix('prefix-') }} {{ 'x.py'.removesuffix('.py') }} {{ '7'.zfill(3) }} {{ '-7'.zfill(4) }} {{ 'a'.ljust(3) }}|{{ 'a'.rjust(3, '.') }} {{ 'a'.center(4, '*') }} {{ 'ab'.center(5, '*') }} {{ 'a=b=c'.partition('=') }} {{ 'a=b=c'.rpartition('=') }} {{ 'abc'.partition('x') }}
{{ d.get('a') }} {{ d.get('zz') }} {{ d.get('zz', 5) }} {{ d.keys()|list }} {{ d.values()|list|length }} {{ d.items()|list|length }} {{ l.index(1) }} {{ l.count(3) }}
{{ range(3)|list }} {{ range(1, 4)|list }} {{ range(5, 0, -2)|list }} {{ range(0)|list }}
{{ dict(a=1, b='x') }} {{ [1,2] + [3] }} {{ 'ab' * 3 }} {{ 2 * [1] }} {{ (1,) + (2,) }} {{ 'x' * 0 }}|{{ 'x' * -1 }}|
{{ strftime_now('%Y-%m-%d') }} {{ strftime_now('%d %b %Y') }} {{ strftime_now('%A, %B %-d %H:%M:%S %p %I %j %y %a') }}
{{ raise_exception('no ' ~ n) }}
{{ 1, 2 }} {{ (1) }} {{ ((1, 2), [3]) }}
{{ ns is defined }}{% set ns = namespace(a=1, b='x') %}{{ ns.a }}{% set ns.a = ns.a + 1 %}{{ ns.a }}{{ ns.b }}{{ ns.c is defined }}
{% set x = 5 %}{{ x }}{% for i in [1,2] %}{% set x = i %}{{ x }}{% endfor %}{{ x }}
{% set x = 1 %}{% for i in [1,2] %}{{ x }}{% set x = 2 %}{{ x }}{% endfor %}{{ x }}
{% set x = 1 %}{% if true %}{% set x = 2 %}{% endif %}{{ x }}
{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set (c, d2) = [3, 4] %}{{ c + d2 }}
{% set x %}block {{ n }}{% endset %}[{{ x }}]{% set y | upper | replace('K', '!') %}block{% endset %}[{{ y }}]
{% for i in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.revindex }}{{ loop.revindex0 }}{{ i }};{% endfor %}
{% for i in l %}{{ loop.previtem }}<{{ i }}>{{ loop.nextitem }}{{ loop.cycle('a', 'b') }}{{ loop.changed(i > 1) }}{{ loop.depth }}{{ loop.depth0 }} {% endfor %}
{% for i in [] %}x{% else %}empty{% endfor %}{% for i in undefined_name %}x{% else %}none{% endfor %}
{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}{% for k in d %}{{ k }}{% endfor %}{% for c in u %}{{ c }}.{% endfor %}
{% for m in ms if m.role == 'user' %}{{ loop.index }}/{{ loop.length }}{{ m.content }}{% else %}-{% endfor %}
{% for i in range(10) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 5 %}{% break %}{% endif %}{{ i }}{% endfor %}
{% for i in range(3) %}{% for j in range(3) %}{% if j == 1 %}{% break %}{% endif %}{{ i }}{{ j }}{{ loop.depth }} {% endfor %}{% endfor %}
{% for a in 1, 2, 3 %}{{ a }}{% endfor %}{% for a, b in [(1, 2), (3, 4)] %}{{ a }}{{ b }}{% endfor %}
{% for a, b in [(1, 2, 3)] %}{{ a }}{% endfor %}
{% if e %}1{% elif n > 5 %}2{% elif t %}3{% else %}4{% endif %}{% if no %}x{% endif %}
{% macro hi(name, greeting='Hello', n=2) %}{{ greeting }} {{ name }}{{ n }}{% endmacro %}{{ hi('A') }} {{ hi('B', greeting='Hi') }} {{ hi(name='C', n=1) }} {{ hi() }}
{% macro a(x) %}{% if x > 0 %}{{ x }}{{ a(x - 1) }}{% endif %}{% endmacro %}{{ a(5) }}{{ a(2)|length }}
{% set outer = 1 %}{% macro m() %}{{ outer }}{% set outer = 2 %}{{ outer }}{% endmacro %}{{ m() }}{{ outer }}{% set outer = 3 %}{{ m() }}
{% macro m(x) %}x{% endmacro %}{{ m(1, 2) }}
{% macro m(x) %}x{% endmacro %}{{ m(y=2) }}
{% macro m() %}[{{ caller() }}]{% endmacro %}{% call m() %}inside {{ n }}{% endcall %}
{% macro m(l) %}{% for i in l %}{{ caller(i) }}{% endfor %}{% endmacro %}{% call(x) m([1,2]) %}<{{ x }}>{% endcall %}
{% with a = 1, b = n %}{{ a + b }}{% endwith %}{{ a is defined }}
{% filter upper %}shout {{ s }}{% endfilter %}{% filter replace('a', 'b') | upper %}banana{% endfilter %}
{% generation %}words {{ s }}{% endgeneration %}!
{# comment #}a{#- c -#} b {# multi
line #}
x
{% raw %}{{ not }} {% this %}{% endraw %} {%- raw -%}  {{ a }}  {%- endraw -%}  z
"""

WHITESPACE = [
    "a\n{% if true %}\nb\n{% endif %}\nc\n", "a\n  {% if true %}\n  b\n  {% endif %}\nc", "a {% if true %} b {% endif %} c",
    "a\n  {%- if true -%}\n  b\n  {%- endif -%}\nc", "  {{ s }}  \n", "  {{- s -}}  \nx", "a\n\n{{ s }}\n\nb\n\n", "{% if true %}\n\nx{% endif %}\n\n\n",
    "a  {%+ if true %}b{%+ endif %}", "a\n  {%+ if true %}b\n  {%+ endif %}", "{% if true +%}\nx{% endif +%}\ny", "{# c #}\nx\n  {# d #}\n  y {# e #}\nz",
    "a\r\nb\rc\n", "x\n{#- c #}\ny", "x {#- c -#}\n y", "\n\n{% set a = 1 %}\n\n{{ a }}", "{%if true%}{{s}}{%endif%}", "{{'}}'}}{{ '{%' }}{{ {'a':{'b':1}} }}",
    "{%- for i in [1,2] %}\n  {{- i }}\n{%- endfor %}\n", "{%- for i in [1,2] -%}\n  {{ i }}\n{% endfor -%}\n", "\t{% if true %}x{% endif %}\t\n", "a\n {% if true %} {% if true %}b{% endif %}{% endif %}",
    "   {% if true %}first line{% endif %}", "{{ s }}{% if true %}\n  {% endif %}\n", "{% raw %}\n a {% endraw %}\nb", "a\n  {% raw %}x{% endraw %}", "x{{ '\\n' }}  {% if true %}y{% endif %}",
    "{{ s -}}   \n\n {% if true %}y{% endif %}", "{% for i in [1] %}{% endfor -%}   \n\n x", "é\u00a0{%- if true %}x{% endif %}", "{{ [1,\n2,\n3] }}\n",
]

REFUSED = [
    "{{ s", "{% if %}", "{% if t %}", "{% endif %}", "{{ s | nosuch }}", "{{ s is nosuch }}", "{{ nosuch(1) }}", "{{ s.nosuch() }}", "{% include 'x' %}",
    "{% block a %}{% endblock %}", "{{ 1 + }}", "{{ ) }}", "{% for x %}{% endfor %}", "{% for in y %}{% endfor %}", "{{ 'abc }}", "{# abc", "{% raw %} x",
    "{% set = 3 %}", "{% macro %}{% endmacro %}", "{{ a b }}", "{{ s|trim(1, 2, 3) }}", "{{ s|replace('a') }}", "{{ d[ }}", "{{ 5x }}", "{% break %}", "{% import 'x' as y %}", "{% extends 'x' %}", "{{ s | tojson(nosuch=1) }}",
]


class Maker:
    """Random expressions over VARIABLES, most of which mean something."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def pick(self, *choices):
        return self.random.choice(choices)

    def text(self, depth):
        p, r = self.pick, self.random
        if depth <= 0:
            return p("s", "e", "u", "w", "q", "lines", "'x'", '"a b"', "ms[0].content", "d.a", "'Üß'", "'a,b,c'")
        d = depth - 1
        return p(
            lambda: f"({self.text(d)} + {self.text(d)})", lambda: f"({self.text(d)} ~ {self.any(d)})",
            lambda: f"{self.text(d)}[{r.randint(-4, 4)}:{p('', r.randint(-4, 6))}{p('', ':' + str(p(-2, -1, 1, 2, 3)))}]",
            lambda: f"{self.text(d)}|{p('upper', 'lower', 'trim', 'title', 'capitalize', 'reverse', 'string')}",
            lambda: f"({self.text(d)}).{p('strip()', 'lstrip()', 'rstrip()', 'upper()', 'lower()', 'title()', 'capitalize()', 'zfill(9)', 'center(12)', 'ljust(12)')}",
            lambda: f"{self.text(d)}|replace({self.text(0)}, {self.text(0)})", lambda: f"({self.text(d)} * {r.randint(-1, 3)})",
            lambda: f"({self.text(d)} if {self.truth(d)} else {self.text(d)})", lambda: f"{self.list(d)}|join({self.text(0)})",
            lambda: f"{self.any(d)}|tojson", lambda: f"{self.any(d)}|string", lambda: f"({self.list(d)}|map('string')|join('-'))",
            lambda: f"{self.text(d)}|indent({r.randint(0, 5)}, {p('true', 'false')}, {p('true', 'false')})", lambda: f"{self.any(d)}|default({self.text(0)}, {p('true', 'false')})",
            lambda: f"('%s|%5s' % ({self.any(d)}, {self.text(d)}))",
        )()

    def number(self, depth):
        p, r = self.pick, self.random
        if depth <= 0:
            return p("n", "z", "m", "f", "1", "2", "0.5", "t", str(r.randint(-9, 99)))
        d = depth - 1
        return p(
            lambda: f"({self.number(d)} {p('+', '-', '*', '//', '%', '/')} {self.number(d)})", lambda: f"-{self.number(0)}", lambda: f"{self.text(d)}|length",
            lambda: f"{self.list(d)}|length", lambda: f"({self.text(d)}).count({self.text(0)})" if depth > 1 else "s.count('l')", lambda: f"({self.text(d)}).find({self.text(0)})",
            lambda: f"({self.number(d)})|abs", lambda: f"({self.number(d)})|int", lambda: f"({self.number(d)})|float", lambda: f"[{self.number(d)}, {self.number(d)}]|{p('max', 'min', 'sum')}",
            lambda: f"({self.number(d)} if {self.truth(d)} else {self.number(d)})", lambda: f"({self.number(d)})|round({r.randint(0, 3)})",
        )()

    def truth(self, depth):
        p = self.pick
        if depth <= 0:
            return p("t", "no", "e", "s", "n", "z", "nil", "el", "l", "undefined_name")
        d = depth - 1
        return p(
            lambda: f"({self.number(d)} {p('==', '!=', '<', '<=', '>', '>=')} {self.number(d)})", lambda: f"({self.text(d)} {p('==', '!=', '<', '>')} {self.text(d)})",
            lambda: f"({self.text(d)} {p('in', 'not in')} {self.text(d)})", lambda: f"({self.any(d)} {p('in', 'not in')} {self.list(d)})",
            lambda: f"({self.any(d)} is {p('', 'not ')}{p('defined', 'none', 'string', 'number', 'mapping', 'iterable', 'sequence', 'boolean', 'integer', 'float', 'true', 'false')})",
            lambda: f"(not {self.truth(d)})", lambda: f"({self.truth(d)} {p('and', 'or')} {self.truth(d)})", lambda: f"({self.text(d)}).{p('startswith', 'endswith')}({self.text(0)})",
            lambda: f"({self.any(d)} == {self.any(d)})",
        )()

    def list(self, depth):
        p, r = self.pick, self.random
        if depth <= 0:
            return p("l", "ls", "el", "ms", "[1, 2]", "['x']", "(1, 'y')", "d.nested.k", "range(4)|list")
        d = depth - 1
        return p(
            lambda: f"[{self.any(d)}, {self.any(d)}]", lambda: f"{self.list(d)}[{r.randint(-3, 3)}:]", lambda: f"{self.list(d)}[::{p(-1, 1, 2)}]", lambda: f"({self.text(d)}).split({p('', self.text(0))})",
            lambda: f"{self.list(d)}|reverse|list", lambda: f"{self.text(d)}|list", lambda: f"({self.text(d)}).splitlines()", lambda: f"{p('d', 'ed')}|{p('items', 'dictsort')}|list",
            lambda: f"{self.list(d)}|select('{p('defined', 'string', 'number', 'none')}')|list", lambda: f"{self.list(d)}|map('{p('string', 'tojson', 'list')}')|list" if depth > 1 else "ls|map('upper')|list",
            lambda: f"ms|{p('selectattr', 'rejectattr')}('role', '{p('eq', 'ne', 'equalto', 'in')}', {self.text(0)})|map(attribute='content')|list", lambda: f"{p('l', 'ls')}|{p('sort', 'unique')}|list",
        )()

    def any(self, depth):
        return self.pick(self.text, self.text, self.number, self.truth, self.list)(depth)

    def statement(self, depth):
        p = self.pick
        if depth <= 0:
            return p(lambda: "{{ " + self.any(2) + " }}", lambda: " text\n", lambda: "{{- " + self.text(1) + " -}}", lambda: "{{ x }}", lambda: "  ")()
        d = depth - 1
        body = lambda: self.statement(d) + self.statement(d)
        tag = lambda text: p("{%", "{%-", "{%+", "{%") + " " + text + " " + p("%}", "-%}", "%}")
        return p(
            lambda: tag(f"if {self.truth(2)}") + body() + tag("else") + body() + tag("endif"), lambda: tag(f"for x in {self.list(1)}") + "{{ loop.index }}" + body() + tag("endfor"),
            lambda: tag(f"set x = {self.any(2)}") + body(), lambda: tag("set x") + body() + tag("endset") + "{{ x }}", lambda: tag("macro mm(x)") + body() + tag("endmacro") + "{{ mm(" + self.any(1) + ") }}",
            lambda: body(), lambda: tag(f"for x in {self.list(1)} if {self.truth(1)}") + body() + tag("else") + "none" + tag("endfor"), lambda: "{% filter upper %}" + body() + "{% endfilter %}",
        )()


def main():
    env = environment()

    def case(template, kind):
        line = {"kind": kind, "template": template}
        try:
            line["text"] = env.from_string(template).render(**VARIABLES)
        except Exception as error:  # noqa: BLE001: any failure is the expected result
            line["error"] = type(error).__name__ + ": " + str(error)
        if " at 0x" in line.get("text", ""):  # the address of a Python object
            return
        print(json.dumps(line))

    print(json.dumps({"variables": VARIABLES}))
    for template in HAND.strip("\n").split("\n"):
        case(template.replace("\\r\\n", "\\r\\n"), "hand")
    for template in WHITESPACE:
        case(template, "whitespace")
    for template in REFUSED:
        print(json.dumps({"kind": "refused", "template": template}))
    maker = Maker(1)
    for i in range(1500):
        case("{{ " + maker.any(3) + " }}", "random")
    for i in range(500):
        case(maker.statement(3), "random")


main()
