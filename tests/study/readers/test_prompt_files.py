"""Prompt files: columns, encodings, splits, and mistakes with their line."""

import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldmprobe_core.errors import UserError
from ldmprobe_core.study.loading import parse_study
from ldmprobe_core.study.readers.prompt_files import encoding_notes, read_rows
from ldmprobe_core.study.samples import make_samples, resolve_inputs


def samples_of(files, **parts):
    study = resolve_inputs(parse_study({"prompts": {"files": files, **parts}}))
    return make_samples(study)


def test_prompt_file_with_all_columns(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text(
        "seed,prompt,split,class\n"
        '7,"a lemon, on a table",train,lemon\n'
        "8,an orange,validation,orange\n"
        "9,a red car,test,\n"
        '10,"a ""quoted"" cup",train,cup\n'
        "\n"
        '11,"two\nlines",test,x\n'
    )
    found = samples_of(str(path))
    assert [(s.prompt, s.seed, s.split, s.category) for s in found] == [
        ("a lemon, on a table", 7, "train", "lemon"),
        ("an orange", 8, "validation", "orange"),
        ("a red car", 9, "test", None),
        ('a "quoted" cup', 10, "train", "cup"),
        ("two\nlines", 11, "test", "x"),
    ]


def test_prompt_files_of_the_paper(tmp_path):
    """Its column names, ISO-8859-1, several quotes in a row, train and test apart."""
    train, test = tmp_path / "train.csv", tmp_path / "test.csv"
    rows = ['0,"""Caf\xe9"" by night",11', '0,"""Caf\xe9"" by night",12', "1,A boat,13",
            "2,A dog,14", "3,A bridge,15"]  # fmt: skip
    train.write_bytes(("prompt_inds,prompts,seeds\r\n" + "\r\n".join(rows)).encode("iso-8859-1"))
    test.write_bytes(b'prompt_inds,prompts,seeds\r\n4,"A ""big"" """"cat""""",21\r\n5,A cow,22\r\n')
    found = samples_of({"train": str(train), "test": str(test)})
    assert [s.prompt for s in found[:2]] == ['"Caf\xe9" by night'] * 2
    assert found[5].prompt == 'A "big" ""cat""'
    assert [s.split for s in found[5:]] == ["test", "test"]
    assert {s.split for s in found[:5]} == {"train", "validation"}
    assert found[0].split == found[1].split  # one prompt, one split
    assert [s.seed for s in found] == [11, 12, 13, 14, 15, 21, 22]


def test_prompt_file_without_splits_is_split_at_random(tmp_path):
    path = tmp_path / "all.csv"
    path.write_text("\ufeffprompt,seed\n" + "".join(f"p{i},{i}\n" for i in range(20)), "utf-8")
    found = samples_of(str(path))
    counts = {name: sum(s.split == name for s in found) for name in ("train", "validation", "test")}
    assert counts == {"train": 9, "validation": 3, "test": 8}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prompt\na\n", ["line 1", "no column 'seed'", "prompt"]),
        ("text,seed\na,1\n", ["line 1", "no column 'prompt'"]),
        ("prompt,seed,colour\na,1,red\n", ["line 1", "'colour'"]),
        ("prompt,seed,seed\na,1,2\n", ["line 1", "twice"]),
        ("prompt,seed\na,1\n  ,2\n", ["line 3", "prompt is empty"]),
        ("prompt,seed\na,1\nb,two\n", ["line 3", "'two'"]),
        ("prompt,seed\na,1\nb,1.5\n", ["line 3", "'1.5'"]),
        ("prompt,seed\na,1\nb,-1\n", ["line 3", "'-1'"]),
        ("prompt,seed\na,1\nb,\n", ["line 3", "seed is ''"]),
        ("prompt,seed\na,1\nb,99999999999999999999\n", ["line 3", "999"]),
        ('prompt,seed\n"a\nb",1\na,2\n"a\nb",1\n', ["line 5", "already given in", "line 2"]),
        ("prompt,seed,split\na,1,train\na,2,test\n", ["line 3", "test", "line 2", "train"]),
        ("prompt,seed,split\na,1,dev\n", ["line 2", "'dev'"]),
        ("prompt,seed\na, with a comma,1\n", ["line 2"]),
        ("prompt,seed\n", ["no rows"]),
        ("prompt\tseed\na\t1\n", ["line 1", "separated by tabs"]),
        ("prompt;seed\na;1\n", ["line 1", "separated by semicolons"]),
        ("prompt|seed\na|1\n", ["line 1", "separated by vertical bars"]),
        ("sep=;\nprompt;seed\na;1\n", ["line 1", "separator (sep=), not the columns"]),
        ("sep=,\nprompt,seed\na,1\n", ["line 1", "separator (sep=), not the columns"]),
        ("prompt,seed\na;1\n", ["line 2", "1 fields for 2 columns", "by commas"]),
        ("prompt,seed\na\t1\n", ["line 2", "1 fields for 2 columns", "by commas"]),
        ('prompt,seed\n"a,1\nb"x,2\n', ["line 3", "not CSV"]),
        ("prompt,seed\n" + "a" * 140_000 + ",1\n", ["line 2", "more than 131072 characters"]),
        ('prompt,seed\na,1\n"b,2\nc,3\n', ["line 4", "not CSV"]),
        ("prompt,seed\ra,1\rb,two\r", ["line 3", "'two'"]),
        ("prompt,seed\na,9223372036854775808\n", ["line 2", "from 0 to 9223372036854775807"]),
        (f"prompt,seed\na,{'9' * 5000}\n", ["line 2", "seed is '999"]),
        ("", ["no column 'prompt'"]),
    ],
)
def test_prompt_file_mistake_is_named_with_its_line(tmp_path, text, words):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        samples_of(str(path))
    message = str(caught.value)
    assert "bad.csv" in message
    for word in words:
        assert word in message


def test_mistakes_of_several_prompt_files_together(tmp_path):
    train, test = tmp_path / "train.csv", tmp_path / "test.csv"
    train.write_text("prompt,seed\na,1\nb,2\nc,3\n")
    test.write_text("prompt,seed\nd,1\nb,3\n")
    with pytest.raises(UserError, match=r"test\.csv, line 3.*'b'.*train\.csv, line 3"):
        samples_of({"train": str(train), "test": str(test)})
    test.write_text("prompt,seed,split\nd,1,test\n")
    with pytest.raises(UserError, match=r"has a column split, but .* assigns all its rows to test"):
        samples_of({"train": str(train), "test": str(test)})
    with pytest.raises(UserError, match="give one path, or the keys train and test"):
        parse_study({"prompts": {"files": {"train": "x"}}})
    with pytest.raises(UserError, match="items and files"):
        parse_study({"prompts": {"files": "x", "items": ["a"]}})
    with pytest.raises(UserError, match=r"none\.csv cannot be read"):
        samples_of(str(tmp_path / "none.csv"))
    with pytest.raises(UserError, match=r"samples is 7.*3 rows"):
        samples_of(str(train), samples=7)


def test_hash_is_of_the_contents_of_prompt_files_not_of_their_paths(tmp_path):
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    for path in (one, two):
        path.write_text("prompt,seed\na,1\nb,2\nc,3\n")
    first, second = (
        resolve_inputs(parse_study({"prompts": {"files": str(p)}})) for p in (one, two)
    )
    assert first.hash == second.hash
    assert resolve_inputs(first) == first
    one.write_text("prompt,seed\na,1\nb,2\nc,4\n")
    with pytest.raises(UserError, match=r"prompts\.files has changed"):
        resolve_inputs(first)
    assert resolve_inputs(parse_study({"prompts": {"files": str(one)}})).hash != second.hash
    assert read_rows({"all": str(one)})[2].seed == 4


def test_quotes_after_a_comma_and_a_space_are_no_part_of_the_prompt(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('seed, prompt, class\n1, "a cat, a ""big"" one", "cat"\n2, a dog, dog\n')
    rows = read_rows({"all": str(path)})
    assert [(row.prompt, row.seed, row.category) for row in rows] == [
        ('a cat, a "big" one', 1, "cat"),
        ("a dog", 2, "dog"),
    ]


@pytest.mark.parametrize(
    ("line", "prompt"),
    [
        ('1, "The Scream" by Munch,art', '"The Scream" by Munch'),
        ('1, "Day" and "Night",art', '"Day" and "Night"'),
        ('1,The "Scream",art', 'The "Scream"'),
        ('1, a 5" cup,art', 'a 5" cup'),
    ],
)
def test_quotes_around_a_part_of_a_prompt_belong_to_it(tmp_path, line, prompt):
    """The fields of the other lines, quoted after a space, are read as ever."""
    path = tmp_path / "a.csv"
    path.write_text(f'seed,prompt,class\n0, "a, b", art\n{line}\n2, "a\nb",art\n')
    rows = read_rows({"all": str(path)})
    assert [(row.prompt, row.seed, row.category) for row in rows] == [
        ("a, b", 0, "art"),
        (prompt, 1, "art"),
        ("a\nb", 2, "art"),
    ]
    assert [row.where for row in rows] == [f"{path}, line {n}" for n in (2, 3, 4)]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ('1, "a cup\n2, "a mug"x', "line 3: not CSV"),  # not closed, up to the next one
        ('1, "a cup', "line 2: not CSV"),
        ('1, "a cup"", a mug', "line 2: not CSV"),
        ('1, "a cup, red" on a table', "line 2: not CSV"),  # a comma within the quotes
        ('1,"The Scream" by Munch', "line 2: not CSV"),  # by CSV's rules, the quotes are its own
        ('1,"a, b" ,', "line 2: not CSV .*let a comma follow the last quote at once"),
    ],
)
def test_quotes_that_may_mean_several_things_are_refused(tmp_path, lines, words):
    path = tmp_path / "a.csv"
    path.write_text(f"seed,prompt,class\n{lines}\n")
    with pytest.raises(UserError, match=words):
        read_rows({"all": str(path)})


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_prompt_file_of_any_line_ends_is_read_right(tmp_path, end):
    path = tmp_path / "a.csv"
    path.write_bytes(end.join(["prompt,seed", "a,1", "b,2", '"c, d",3', ""]).encode())
    assert [(s.prompt, s.seed) for s in samples_of(str(path))] == [("a", 1), ("b", 2), ("c, d", 3)]


def test_encoding_notes_tell_of_files_in_windows_1252(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"prompt,seed\nthe cat\x92s hat,1\n")
    (note,) = encoding_notes({"all": str(path)})
    assert note.endswith("a.csv is not UTF-8 and is read as Windows-1252, such as "
                         "'the cat\u2019s hat,1' on line 2")  # fmt: skip
    path.write_text("prompt,seed\nthe caf\xe9,1\n", "utf-8")
    assert encoding_notes({"all": str(path)}) == ()


def test_paths_of_unknown_users_are_refused():
    for content, key in (
        ({"prompts": {"files": "~no-such-user-here/a.csv"}}, "prompts.files"),
        ({"source": "images", "images": {"folder": "~no-such-user-here/a"}}, "images.folder"),
    ):
        with pytest.raises(UserError, match=f"{key}: '~no-such-user-here.*unknown user"):
            resolve_inputs(parse_study(content))


_CELLS = st.one_of(
    st.sampled_from(["prompt", "seed", "split", "class", "train", "test", "1", '"', "a", "", "é"]),
    st.text(max_size=5),
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.tuples(
            st.lists(st.lists(_CELLS, max_size=4), max_size=5),
            st.sampled_from([",", ";", "\t"]),
            st.sampled_from(["\n", "\r\n", "\r"]),
            st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252", "utf-16-le"]),
            st.booleans(),
        ),
    )
)
def test_prompt_file_of_any_bytes_is_rows_or_one_sentence(tmp_path_factory, data):
    if isinstance(data, tuple):
        lines, comma, end, encoding, header = data
        lines = [["prompt", "seed"], *lines] if header else lines
        text = end.join(comma.join(line) for line in lines)
        data = text.encode(encoding, "replace")
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(data)
    try:
        rows = read_rows({"all": str(path)})
    except UserError as error:
        assert "any.csv" in str(error)  # noqa: PT017  (either outcome is right)
        assert "Fix: " in str(error)  # noqa: PT017
        return
    assert rows
    assert all(row.prompt.strip() and 0 <= row.seed < 2**63 for row in rows)


@pytest.mark.parametrize("data", [b'"' * 4_000_000, b"\xe9" * 4_000_000, b"a,\r" * 1_000_000])
def test_large_file_that_is_no_prompt_file_is_refused_within_a_second(tmp_path, data):
    (tmp_path / "a.csv").write_bytes(data)
    start = time.process_time()
    with pytest.raises(UserError, match=r"a\.csv"):
        read_rows({"all": str(tmp_path / "a.csv")})
    assert time.process_time() - start < 1


@pytest.mark.timeout(60)
def test_prompt_file_that_is_a_pipe_a_device_or_a_folder_is_refused(tmp_path):
    """A pipe can be read only once, and a device may never end."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(UserError, match=r"prompts\.files: .* is not a file\. Fix: give a CSV"):
            samples_of(str(path))


def test_read_rows_of_a_first_line_with_a_line_end_is_one_line(tmp_path):
    path = tmp_path / "prompts.csv"
    path.write_text('"a red\ncone",1,test\na blue cube,2,train\n')
    with pytest.raises(UserError) as refusal:
        read_rows({"all": str(path)})
    assert "no column 'prompt' among ['a red\\ncone', '1', 'test']. Fix: " in str(refusal.value)
    assert str(refusal.value).isprintable()
