"""Operators: what they make of statements, and what they leave alone."""

from __future__ import annotations

import ast
import textwrap

import pytest

from tests.mutants.mutant import mutants, mutated


def made_of(source):
    """What becomes of each statement, by operator."""
    source = textwrap.dedent(source)
    found = mutants("m.py", source)
    for mutant in found:
        text = mutated("m.py", source, mutant.id)
        compile(text, "m.py", "exec")
        assert text != ast.unparse(ast.parse(source)), f"{mutant.id} changes nothing"
    assert len({m.id for m in found}) == len({m.key for m in found}) == len(found)
    return {(m.key.operator, m.key.becomes) for m in found}


@pytest.mark.parametrize(
    ("statement", "operator", "becomes"),
    [
        ("a = b == c", "compare", "a = b != c"),
        ("a = b < c", "compare", "a = b <= c"),
        ("a = b >= c", "compare", "a = b > c"),
        ("a = b is None", "compare", "a = b is not None"),
        ("a = b not in c", "compare", "a = b in c"),
        ("a = b and c", "and-or", "a = b or c"),
        ("a = b and c and d", "operand", "a = b and d"),
        ("a = os.O_RDONLY | os.O_CLOEXEC", "operand", "a = os.O_RDONLY"),
        ("a = not b", "unary", "a = b"),
        ("a = -b", "unary", "a = b"),
        ("a = b + c", "arithmetic", "a = b - c"),
        ("a += b", "arithmetic", "a -= b"),
        ("a += b", "removal", "pass"),
        ("a = True", "constant", "a = False"),
        ("a = b[0]", "number", "a = b[1]"),
        ("a = b[c:d]", "slice", "a = b[c + 1:d]"),
        ("a = b[c:d]", "slice", "a = b[c:d - 1]"),
        ("a = b[:2]", "number", "a = b[:1]"),
        ("a = b if c else d", "condition", "a = b if not c else d"),
        ("a = [b for b in c if d]", "filter", "a = [b for b in c]"),
        ("a = min(b, c)", "function", "a = max(b, c)"),
        ("a = sorted(b, key=c)", "function", "a = list(b)"),
        ("a = Fingerprint.of(model=b, dtype=c)", "keyword", "a = Fingerprint.of(dtype=c)"),
        ("a = {'b': c, 'd': e}", "element", "a = {'d': e}"),
        ("a = (b, c) != (d, e)", "element", "a = (c,) != (e,)"),
        ("f(b)", "removal", "pass"),
        ("raise Error('text')", "removal", "pass"),
        ("del a[b]", "removal", "pass"),
        ("if a: f()", "condition", "if not a:"),
        ("while a: f()", "condition", "while not a:"),
        ("for a in b:\n    if c: continue\n    f(a)", "loop", "break"),
        ("for a in b:\n    if c: break\n    f(a)", "loop", "continue"),
        ("try: f()\nexcept OSError: g()", "handler", "raise"),
        ("try: f()\nexcept (KeyError, OSError): g()", "element", "except (OSError,):"),
        ("counters.add('name', 2, reason='text')", "number", "counters.add('name', 3, reason='text')"),
        ("a: Annotated[int, Meta(ge=1, le=9)]", "keyword", "a: Annotated[int, Meta(le=9)]"),
    ],
)
def test_what_becomes_of_a_statement(statement, operator, becomes):
    assert (operator, becomes) in made_of(statement)


@pytest.mark.parametrize(
    ("returns", "value", "others"),
    [
        ("bool", "a.b", {"return True", "return False"}),
        ("int", "a.b", {"return 0"}),
        ("bytes", "a.b", {"return b''"}),
        ("tuple[int, ...]", "a.b", {"return ()"}),
        ("dict[str, int]", "a.b", {"return {}"}),
        ("A | None", "a.b", {"return None"}),
        ("A | None", "None", set()),
    ],
)
def test_what_is_returned_instead(returns, value, others):
    found = made_of(f"def f(a) -> {returns}:\n    return {value}")
    assert {becomes for operator, becomes in found if operator == "returned"} == others


def test_an_early_return_is_left_out_and_the_last_one_is_not():
    found = made_of("def f(a):\n    if a:\n        return\n    g()\n    return")
    assert ("removal", "pass") in found
    assert len(mutants("m.py", "def f(a):\n    return")) == 0


def test_statements_change_places_where_their_order_may_matter():
    found = made_of(
        """
        def f(self, slots):
            self.generations.raise_slots(slots)
            self.registry.take_down(slots)
            taken = self.take()
            use(taken)
            a, b = 1, 2
        """
    )
    swaps = {becomes for operator, becomes in found if operator == "swap"}
    raised, down = "self.generations.raise_slots(slots)", "self.registry.take_down(slots)"
    assert swaps == {f"{down}\n{raised}", f"taken = self.take()\n{down}"}


def test_what_is_skipped():
    source = '''
        """A docstring."""
        import a
        from b import c
        Views = list[tuple[int, int]]
        __all__ = ["a", "c"]

        class A(Base, frozen=True):
            """Another."""

            b: tuple[int, str]

            def _check(self):
                if self.b == 1:
                    raise AssertionError(1 + 2)

            @decorated(1)
            def c(self, d: dict[str, int]) -> tuple[int, int]:
                assert d == 1
                _log.warning("%d", 1 + 1)
                ...
    '''
    assert made_of(source) == set()
    found = made_of("def f(a):\n    raise Error(f'{a + 1} is wrong', 1)")
    assert found == {("removal", "pass")}
    found = made_of("def f(a):\n    counters.add('name', reason='a' + b, detail=1 + 1)")
    assert found == {("removal", "pass")}
    assert made_of("a = zip(b, c, strict=True)") == set()
    found = made_of("a = Thread(target=f, name='kvmarket' + b, daemon=True)")
    assert found == {("keyword", "a = Thread(name='kvmarket' + b, daemon=True)")}


def test_a_mutant_keeps_its_name_when_other_statements_move():
    function = "def f(a):\n    if a < 1:\n        return 2\n    g(a)\n    g(a)\n"
    before, after = mutants("m.py", function), mutants("m.py", f"import b\n\n\n{function}    h(a)\n")
    names = {m.key for m in before}
    assert names < {m.key for m in after}
    assert {m.id for m in before}.isdisjoint(m.id for m in after)
    assert [m.key.which for m in before if m.key.statement == "g(a)"] == [1, 2]


def test_places_and_lines_of_mutants():
    source = "def f(a):\n    if (a <\n            1):\n        return 2\n    return 3\n"
    compare = next(m for m in mutants("m.py", source) if m.key.operator == "compare")
    assert (compare.id, compare.lines, compare.key.function) == ("m.py:2:8:compare:1", range(2, 4), "f")
    with pytest.raises(KeyError):
        mutated("m.py", source, "m.py:2:8:compare:2")
    assert mutated("m.py", source, "") == ast.unparse(ast.parse(source))
