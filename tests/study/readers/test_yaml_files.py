"""YAML that is read for what it says, or refused in one sentence."""

import time
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldmprobe_core.errors import UserError
from ldmprobe_core.study.loading import parse_study
from ldmprobe_core.study.readers.yaml_files import MAX_DEPTH, read_yaml

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sampling: {steps: 3}\nname: a\nsampling: {batch: 2}\n", "f, line 3: key 'sampling' is"),
        (
            "sampling:\n  steps: 3\n  steps: 4\n",
            r"f, line 3: key 'steps' is given twice \(first on",
        ),
        ("prompts: {items: [{a: 1, a: 2}]}", "line 1: key 'a' is given twice"),
        ("a: {<<: {b: 1, b: 2}}", "line 1: key 'b' is given twice"),
        ("a:\n  <<: {b: 1}\n  <<: {b: 2}", "line 3: key '<<' is given twice .first on line 2"),
        ("a:\n  <<: [{b: 1}, 2]", "line 2: '<<' needs a mapping, but this is none. Fix: give"),
        (BOMB, "aliases expand to more than"),
        ("a: &a [*a]", "an alias refers to a value that contains it"),
        ("[" * (MAX_DEPTH + 1), f"nested more than {MAX_DEPTH} levels"),
        ("{a: " * 5000, "nested more than"),
        ("a: [1,\nb: 2", "not valid YAML"),
        ("a: 2026-99-99", "cannot be read"),
        ("a: " + "9" * 5000, "cannot be read"),
        ("a: 1\nb: 0x" + "f" * 4500, "f, line 2: a whole number of more than 1024 bits. Fix:"),
        ("a: 010", r"f, line 1: YAML does not read '010' as a decimal number\. Fix: write"),
        ("a: -007", "'-007' as a decimal number"),
        ("a: 1:30", "'1:30' as a decimal number"),
        ("a: 1:30.5", "'1:30.5' as a decimal number"),
        ("? [a, b]\n: 1", "not valid YAML"),
        ("a: !!python/object/apply:os.system [ls]", "not valid YAML"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
    ],
)
def test_read_yaml_refuses_with_line_and_reason(text, words):
    with pytest.raises(UserError, match=words):
        read_yaml(text.encode(), "f")


def test_read_yaml_names_the_byte_that_is_not_utf8():
    with pytest.raises(UserError, match=r"f, line 2: byte 0xe9 is not UTF-8"):
        read_yaml("a: 1\nname: café".encode("latin-1"), "f")


def test_read_yaml_refuses_a_file_that_is_too_large():
    with pytest.raises(UserError, match="too many for a study"):
        read_yaml(b"#" * (5 << 20), "f")


def test_read_yaml_keeps_aliases_merges_and_a_byte_order_mark():
    text = "\ufeffbase: &b {steps: 3, batch: 2}\nsampling:\n  <<: *b\n  batch: 4\nagain: [*b, *b]\n"
    base = {"steps": 3, "batch": 2}
    assert read_yaml(text.encode(), "f") == {
        "base": base,
        "sampling": {"steps": 3, "batch": 4},
        "again": [base, base],
    }
    assert read_yaml(b"", "f") is None
    assert read_yaml(b"# nothing", "f") is None


@pytest.mark.parametrize("merged", [
    "[{s: 3, t: 1}, {s: 4, u: 2}]", "[ {s: 3,t: 1},{s: 4,u: 2} ]", "[*a, *b]",
    "[*a, {s: 4, <<: *b}]", "[{<<: [*a, *b]}, *b, *a]", "{<<: *a, u: 2}",
])  # fmt: skip
def test_read_yaml_keeps_the_first_of_equal_keys_that_are_merged(merged):
    """As YAML's page on the merge key has it; repeated, since strings may share memory or not."""
    for n in range(20):
        text = f"x{n}: [&a {{s: 3, t: 1}}, &b {{s: 4, u: 2}}]\nc: {{<<: {merged}, t: {n}}}\n"
        assert read_yaml(text.encode(), "f")["c"] == {"s": 3, "t": n, "u": 2}


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("-0", 0), ("1_000", 1000), ("0x1F", 31), ("0.5", 0.5), ("-00.5", -0.5),
     ("'010'", "010"), ("0b11", 3), (".5", 0.5), ("1.5e+3", 1500.0)],
)  # fmt: skip
def test_read_yaml_reads_numbers_as_they_are_written(text, value):
    assert read_yaml(text.encode(), "f") == value


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.one_of(
        st.binary(max_size=400),
        st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")),
        st.text(alphabet="ab:-[]{}&*!|>'\"#%@`,? \n\t~0123.<", max_size=80).map(str.encode),
        st.sampled_from([b"name: x\n", b"sampling:\n", b"prompts: {items: ["]).flatmap(
            lambda start: st.binary(max_size=60).map(lambda rest: start + rest)
        ),
    )
)
def test_read_yaml_of_any_bytes_is_a_study_or_one_sentence(data):
    started = time.process_time()
    with suppress(UserError):
        content = read_yaml(data, "f")
        if isinstance(content, dict):
            parse_study(content)
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-7", 1e-7), ("1e-07", 1e-7), ("-2E3", -2e3), (".5e1", 5.0), ("1.e+2", 100.0),
     ("'1e5'", "1e5"),
     ("1e", "1e"), ("e5", "e5"), ("1e5x", "1e5x")],
)  # fmt: skip
def test_read_yaml_reads_numbers_with_exponents_as_json_does(text, value):
    assert read_yaml(f"a: {text}".encode(), "f") == {"a": value}
