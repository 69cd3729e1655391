"""Finding, merging and judging descriptors: every rule is seen to reject."""

import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from graphopt.errors import OptionError
from graphopt.targets import Problem, Target, resolve_target, validate_target

GOOD = """\
schema_version = 1
name = "board"
kind = "mcu"
[runtime]
executes_with = "none"
io_in_arena = true
[compute]
activation_dtypes = ["int8"]
weight_dtypes = ["int8"]
native_layout = "NHWC"
[[pools]]
name = "sram"
size_bytes = "320KiB"
budget_bytes = 300000
alignment = 16
access = "rw"
volatile = true
holds = ["io", "activation", "state", "scratch"]
[[pools]]
name = "flash"
size_bytes = "1MiB"
alignment = 16
access = "ro"
volatile = false
holds = ["weight"]
"""
# One pool that alone satisfies every rule, for edits that break exactly one.
RAM = """\
[[pools]]
name = "ram"
alignment = 16
access = "rw"
volatile = true
holds = ["weight", "io", "activation", "state", "scratch"]
"""


def written(folder: Path, text: str, name: str = "board.toml") -> Path:
    path = folder / name
    path.write_text(text, "utf-8")
    return path


def edited(old: str, new: str) -> str:
    assert GOOD.count(old) >= 1
    return GOOD.replace(old, new, 1)


def only_problem(folder: Path, text: str) -> Problem:
    path = written(folder, text)
    problems = validate_target(path)
    assert len(problems) == 1, [str(p) for p in problems]
    with pytest.raises(OptionError) as caught:
        resolve_target(path)
    assert caught.value.code == "target-invalid"
    assert str(path) in caught.value.message
    assert problems[0].field in caught.value.message
    assert caught.value.hint == problems[0].hint
    return problems[0]


def test_a_good_file(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    assert validate_target(path) == []
    target = resolve_target(path)
    assert resolve_target(str(path)) == target
    sram, flash = target.pools
    assert (sram.size_bytes, sram.budget_bytes, sram.limit_bytes) == (327_680, 300_000, 300_000)
    assert (flash.budget_bytes, flash.limit_bytes) == (None, 1 << 20)
    assert sram.holds == {"input", "output", "activation", "state", "scratch"}
    assert target.runtime.name == "arena"
    assert target.compute.in_place_ops is None
    assert target.quantization is None
    assert target.overhead.fixed_bytes == 0


@pytest.mark.parametrize(
    ("text", "size"),
    [("65536", 65_536), ('"64KiB"', 65_536), ('"1.5MiB"', 1_572_864), ('"24GB"', 24 * 10**9)],
)
def test_sizes(tmp_path: Path, text: str, size: int) -> None:
    path = written(tmp_path, edited('size_bytes = "1MiB"', f"size_bytes = {text}"))
    assert resolve_target(path).pools[1].size_bytes == size


@pytest.mark.parametrize(
    "text",
    [
        '"many"',
        '"-1KiB"',
        '"0.3B"',
        "0",
        "-5",
        "1.5",
        "true",
        "[]",
        '"16EiB"',
        "9223372036854775808",
        '"' + "9" * 5000 + '"',
        '"' + "9" * 400 + '.5KiB"',
    ],
)
def test_unreadable_sizes(tmp_path: Path, text: str) -> None:
    problem = only_problem(tmp_path, edited('size_bytes = "1MiB"', f"size_bytes = {text}"))
    assert problem.field == "pools[flash].size_bytes"
    assert problem.got
    assert len(problem.got) <= 60
    assert problem.expected


@pytest.mark.parametrize(
    ("old", "new", "field", "hint"),
    [
        ("alignment", "aligment", "pools[sram].aligment", "did you mean 'alignment'?"),
        ("size_bytes", "size", "pools[sram].size", "did you mean 'size_bytes'?"),
        ("io_in_arena", "io_in_arenas", "runtime.io_in_arenas", "did you mean 'io_in_arena'?"),
        ("[compute]", "[computes]", "computes", "did you mean 'compute'?"),
    ],
)
def test_misspelt_keys(tmp_path: Path, old: str, new: str, field: str, hint: str) -> None:
    problems = validate_target(written(tmp_path, edited(old, new)))
    problem = next(p for p in problems if p.field == field)
    assert (problem.message, problem.hint) == ("unknown key", hint)


def test_misspelt_header_key(tmp_path: Path) -> None:
    problem = only_problem(tmp_path, 'extend = "cpu"\n' + GOOD)
    assert (problem.field, problem.hint) == ("extend", "did you mean 'extends'?")


def test_a_key_like_no_other_lists_what_there_is(tmp_path: Path) -> None:
    problem = only_problem(tmp_path, GOOD + "[overhead]\nxyzzy = 1\n")
    assert problem.hint is not None
    assert "fixed_bytes" in problem.hint


@pytest.mark.parametrize(
    ("old", "new", "field", "expected", "hint"),
    [
        ('kind = "mcu"', 'kind = "mpu"', "kind", "'cpu', 'gpu', 'npu' or 'mcu'", "did you mean"),
        ('"NHWC"', '"nhwc"', "compute.native_layout", "'NCHW' or 'NHWC'", "did you mean 'NHWC'?"),
        ('"state"', '"states"', "pools[sram].holds", "'weight'", "did you mean 'state'?"),
        ('["int8"]', '["int9"]', "compute.activation_dtypes", "'float32'", "did you mean 'int"),
        ('["int8"]', "[]", "compute.activation_dtypes", "at least one", None),
        ('["int8"]', '"int8"', "compute.activation_dtypes", "a list", None),
        ("alignment = 16", "alignment = 24", "pools[sram].alignment", "power of two", None),
        ("alignment = 16", "alignment = 0", "pools[sram].alignment", "power of two", None),
        ("alignment = 16", "alignment = -2", "pools[sram].alignment", "power of two", None),
        ("volatile = true", "volatile = 1", "pools[sram].volatile", "true or false", None),
        ('access = "rw"', 'access = "wo"', "pools[sram].access", "'rw' or 'ro'", None),
        ('name = "sram"', 'name = "s ram"', "pools[s ram].name", "letters, digits", None),
        ('name = "board"', 'name = ""', "name", "letters, digits", None),
        ('name = "board"', "name = 3", "name", "letters, digits", None),
        (
            'executes_with = "none"',
            'executes_with = "tvm"',
            "runtime.executes_with",
            "'torch'",
            None,
        ),
        ("volatile = true", "volatile = true\nread_gbps = inf", "pools[sram].read_gbps", "", None),
        ("volatile = true", "volatile = true\nread_gbps = 0", "pools[sram].read_gbps", "", None),
        (
            "volatile = true",
            "volatile = true\nlatency_ns = nan",
            "pools[sram].latency_ns",
            "",
            None,
        ),
        ("[compute]", "max_rank = 0\n[compute]", "runtime.max_rank", "", None),
        (
            'weight_dtypes = ["int8"]',
            'weight_dtypes = ["int8"]\nfused = [""]',
            "compute.fused",
            "",
            None,
        ),
    ],
)
def test_wrong_values(
    tmp_path: Path, old: str, new: str, field: str, expected: str, hint: str | None
) -> None:
    problem = only_problem(tmp_path, edited(old, new))
    assert problem.field == field
    if new == "name = 3":
        assert problem.expected == "text in quotes"
    else:
        assert expected in (problem.expected or "")
    assert problem.got is not None
    if hint is not None:
        assert hint in (problem.hint or "")


def test_missing_field(tmp_path: Path) -> None:
    problem = only_problem(tmp_path, edited('kind = "mcu"\n', ""))
    assert (problem.field, problem.message, problem.hint) == (
        "kind",
        "is missing",
        "add kind = ...",
    )


@pytest.mark.parametrize(
    ("text", "field", "words"),
    [
        (edited('["io", ', "["), "pools", "no pool holds 'input', 'output'"),
        (edited(', "scratch"', ""), "pools", "no pool holds 'scratch'"),
        (edited('["weight"]', '["weight", "state"]'), "pools[flash].holds", "not 'state'"),
        (edited("300000", "327681"), "pools[sram].budget_bytes", "327681 bytes exceed"),
        (GOOD + RAM + RAM, "pools", "2 pools are named 'ram'"),
    ],
)
def test_physics(tmp_path: Path, text: str, field: str, words: str) -> None:
    problem = only_problem(tmp_path, text)
    assert problem.field == field
    assert words in problem.message


def test_no_pool_can_be_written(tmp_path: Path) -> None:
    text = GOOD[: GOOD.index("[[pools]]")] + RAM.replace('"rw"', '"ro"')
    messages = [str(p) for p in validate_target(written(tmp_path, text))]
    assert "pools: no pool can be written" in messages
    assert any(m.startswith("pools[ram].holds: a read-only pool holds weights") for m in messages)


def test_no_pools(tmp_path: Path) -> None:
    head = GOOD[: GOOD.index("[[pools]]")]
    assert only_problem(tmp_path, head).message == "is missing"
    problem = only_problem(tmp_path, "pools = []\n" + head)
    assert problem.expected == "a list with at least one item"


@pytest.mark.parametrize("value", ["3", "[3]", '["sram"]', "{}"])
def test_pools_of_another_shape(tmp_path: Path, value: str) -> None:
    problem = only_problem(tmp_path, f"pools = {value}\n" + GOOD[: GOOD.index("[[pools]]")])
    assert problem.field.startswith("pools")
    assert problem.expected in ("a list", "a table")


def test_all_problems_are_collected(tmp_path: Path) -> None:
    text = GOOD.replace("schema_version = 1\n", "")
    text = text.replace("alignment = 16", "aligment = 16", 1)
    text = text.replace('kind = "mcu"', 'kind = "mpu"')
    text = text.replace('size_bytes = "1MiB"', 'size_bytes = "1MiB"\nbudget_bytes = "2MiB"')
    path = written(tmp_path, text)
    fields = [p.field for p in validate_target(path)]
    # Physics of the pool that parses is judged although another pool does not parse.
    assert sorted(fields) == [
        "kind",
        "pools[flash].budget_bytes",
        "pools[sram].aligment",
        "pools[sram].alignment",
        "schema_version",
    ]
    with pytest.raises(OptionError) as caught:
        resolve_target(path)
    assert "5 problems" in caught.value.message
    assert "did you mean 'alignment'?" in caught.value.message
    assert len(caught.value.details["problems"]) == 5


@pytest.mark.parametrize("value", ["2", "0", '"1"', "true", "1.0"])
def test_schema_version_of_another_kind(tmp_path: Path, value: str) -> None:
    problem = only_problem(tmp_path, edited("schema_version = 1", f"schema_version = {value}"))
    assert (problem.field, problem.expected) == ("schema_version", "1")


def test_schema_version_is_required(tmp_path: Path) -> None:
    problem = only_problem(tmp_path, edited("schema_version = 1\n", ""))
    assert problem.hint == "add schema_version = 1"


@pytest.mark.parametrize(
    "data",
    [b"name = ", b"\xff\xfe", b"a = " + b"9" * 5000, b"a = " + b"[" * 100_000, b"#" * (2 << 20)],
)
def test_not_toml(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(data)
    (problem,) = validate_target(path)
    assert problem.field == ""
    assert "TOML" in problem.message or "not a target descriptor" in problem.message
    with pytest.raises(OptionError, match="is invalid") as caught:
        resolve_target(path)
    assert caught.value.code == "target-invalid"


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    assert resolve_target(written(tmp_path, "\ufeff" + GOOD)).name == "board"


def test_an_empty_file_lists_what_is_missing(tmp_path: Path) -> None:
    fields = {p.field for p in validate_target(written(tmp_path, ""))}
    assert fields == {"schema_version", "name", "kind", "pools", "runtime", "compute"}


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("stm32h745", "did you mean 'stm32h743'?"),
        ("nvidia_l4", "did you mean 'nvidia-l4'?"),
        ("CPU", "did you mean 'cpu'?"),
        ("quantum", "known targets: apple-m4, "),
        ("", "known targets: "),
    ],
)
def test_unknown_names(name: str, hint: str) -> None:
    with pytest.raises(OptionError) as caught:
        resolve_target(name)
    assert caught.value.code == "target-unknown"
    assert hint in (caught.value.hint or "")
    assert "cpu" in caught.value.details["targets"]


def test_what_is_no_target_at_all() -> None:
    wrong: Any = 3
    with pytest.raises(OptionError) as caught:
        resolve_target(wrong)
    assert caught.value.code == "target-unknown"


@pytest.mark.parametrize("name", ["missing.toml", "no/such/file", "nul\0.toml", "."])
def test_unreadable_files(tmp_path: Path, name: str) -> None:
    for call in (lambda: resolve_target(tmp_path / name), lambda: validate_target(tmp_path / name)):
        with pytest.raises(OptionError) as caught:
            call()
        assert caught.value.code == "target-unreadable"


def test_a_preset_wins_over_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, GOOD, "cpu")
    monkeypatch.chdir(tmp_path)
    assert resolve_target("cpu").name == "cpu"
    assert resolve_target(Path("cpu")).name == "board"
    assert resolve_target(os.path.join(".", "cpu")).name == "board"


def test_extends_a_preset(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """\
schema_version = 1
name = "my-board"
extends = "stm32h743"
[runtime]
max_rank = 4
[[pools]]
name = "axi-sram"
budget_bytes = "400KiB"
[[pools]]
name = "sdram"
size_bytes = "32MiB"
alignment = 32
access = "rw"
volatile = true
holds = ["state"]
""",
    )
    base, target = resolve_target("stm32h743"), resolve_target(path)
    assert target.name == "my-board"
    assert target.runtime == base.runtime.model_copy(update={"max_rank": 4})
    assert [p.name for p in target.pools] == [*(p.name for p in base.pools), "sdram"]
    assert target.pools[0] == base.pools[0].model_copy(update={"budget_bytes": 400 << 10})
    assert target.pools[1:-1] == base.pools[1:]
    assert target.digest() != base.digest()
    assert resolve_target(written(tmp_path, target.to_toml(), "flat.toml")) == target


def test_extends_a_file_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "boards"
    folder.mkdir()
    written(folder, GOOD, "base.toml")
    child = 'schema_version = 1\nextends = "base.toml"\nkind = "npu"\n'
    path = written(folder, child, "child.toml")
    monkeypatch.chdir(tmp_path)
    assert resolve_target(path).kind == "npu"
    assert resolve_target(path).name == "board"


def test_extends_an_alias(tmp_path: Path) -> None:
    path = written(tmp_path, 'schema_version = 1\nextends = "gpu"\nname = "mine"\n')
    assert resolve_target(path) == resolve_target("gpu").model_copy(update={"name": "mine"})


def test_lists_replace(tmp_path: Path) -> None:
    text = 'schema_version = 1\nextends = "cpu"\n[compute]\nfused = ["Conv+Relu"]\n'
    target = resolve_target(written(tmp_path, text))
    assert target.compute.fused == ("Conv+Relu",)
    assert target.compute.accumulate == "float32"


def test_a_pool_written_twice_is_not_merged_away(tmp_path: Path) -> None:
    text = 'schema_version = 1\nextends = "cpu"\n' + RAM.replace('"ram"', '"dram"') * 2
    assert "2 pools are named 'dram'" in only_problem(tmp_path, text).message


def test_a_problem_names_the_file_that_caused_it(tmp_path: Path) -> None:
    base = written(tmp_path, edited("alignment = 16", "alignment = 24"), "base.toml")
    child = written(
        tmp_path, 'schema_version = 1\nextends = "base.toml"\nkind = "mpu"\n', "child.toml"
    )
    assert {(p.field, p.file) for p in validate_target(child)} == {
        ("kind", str(child)),
        ("pools[sram].alignment", str(base)),
    }
    with pytest.raises(OptionError, match=r"\(in '.*base\.toml'\)"):
        resolve_target(child)


@pytest.mark.parametrize(
    ("link", "words", "hint"),
    [
        ('"stm32h74"', "names no target", "did you mean 'stm32h743'?"),
        ('"gone.toml"', "cannot read", None),
        ("3", "wrong value", None),
    ],
)
@pytest.mark.parametrize("key", ["extends", "alias_of"])
def test_links_that_lead_nowhere(
    tmp_path: Path, key: str, link: str, words: str, hint: str | None
) -> None:
    # The fields that the base would have given are not reported as missing.
    problem = only_problem(tmp_path, f'schema_version = 1\nname = "x"\n{key} = {link}\n')
    assert problem.field == key
    assert words in problem.message
    assert (hint or "") in (problem.hint or "")


@pytest.mark.parametrize("key", ["extends", "alias_of"])
def test_circles(tmp_path: Path, key: str) -> None:
    written(tmp_path, f'schema_version = 1\n{key} = "b.toml"\n', "a.toml")
    written(tmp_path, f'schema_version = 1\n{key} = "./a.toml"\n', "b.toml")
    problem = only_problem(tmp_path, f'schema_version = 1\n{key} = "a.toml"\n')
    assert problem.field == key
    assert "board.toml -> a.toml -> b.toml -> a.toml" in problem.message


def test_a_file_that_extends_itself(tmp_path: Path) -> None:
    problem = only_problem(tmp_path, 'schema_version = 1\nextends = "board.toml"\n')
    assert "circle" in problem.message


def test_an_alias_takes_no_fields(tmp_path: Path) -> None:
    problem = only_problem(tmp_path, 'schema_version = 1\nalias_of = "cpu"\nkind = "gpu"\n')
    assert problem.field == "kind"
    assert "extends" in (problem.hint or "")


def test_an_alias_may_have_an_alias(tmp_path: Path) -> None:
    path = written(tmp_path, 'schema_version = 1\nalias_of = "gpu"\n')
    assert resolve_target(path).name == "nvidia-l4"


def test_control_characters_are_not_echoed(tmp_path: Path) -> None:
    path = written(tmp_path, '"\\u001b[31m" = 1\n' + edited('"mcu"', '"\\u001b[31m"'))
    with pytest.raises(OptionError) as caught:
        resolve_target(path)
    assert "\x1b" not in str(caught.value)


def test_strings_survive_the_round_trip(tmp_path: Path) -> None:
    target = resolve_target(written(tmp_path, GOOD))
    odd = 'a "b" \\ \t\n\x01\x7f é 😀'
    odd_target = target.model_copy(update={"description": odd, "source": (odd,)})
    copy = resolve_target(written(tmp_path, odd_target.to_toml(), "odd.toml"))
    assert copy == odd_target


def test_optional_parts_survive_the_round_trip(tmp_path: Path) -> None:
    text = (
        GOOD
        + """\
[quantization]
activation = "int8"
weight = "int8"
per_channel = true
symmetric_activation = false
symmetric_weight = true
[sparsity]
structured = ["2:4"]
[overhead]
fixed_bytes = "64KiB"
runtime_copy_of_weights = 1
"""
    ).replace("[compute]", "[compute]\nin_place_ops = []", 1)
    target = resolve_target(written(tmp_path, text))
    assert target.compute.in_place_ops == ()
    assert target.overhead.fixed_bytes == 65_536
    assert resolve_target(written(tmp_path, target.to_toml(), "copy.toml")) == target


def test_digest_ignores_how_the_file_is_written(tmp_path: Path) -> None:
    one = resolve_target(written(tmp_path, GOOD, "one.toml"))
    text = edited(
        '["io", "activation", "state", "scratch"]',
        "["
        + ", ".join(f'"{r}"' for r in ("scratch", "state", "output", "activation", "input"))
        + "]",
    )
    text = "# comment\n" + text.replace('"320KiB"', "327680")
    assert resolve_target(written(tmp_path, text, "two.toml")).digest() == one.digest()
    other = resolve_target(written(tmp_path, edited("300000", "300001"), "three.toml"))
    assert other.digest() != one.digest()


def test_targets_are_frozen_and_checked_when_built_in_code() -> None:
    cpu = resolve_target("cpu")
    with pytest.raises(ValidationError):
        cpu.name = "other"
    with pytest.raises(ValidationError, match="no pool holds"):
        Target.model_validate(
            {
                **dict(cpu),
                "pools": [cpu.pools[0].model_copy(update={"holds": frozenset({"weight"})})],
            }
        )
