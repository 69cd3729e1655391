"""Each preset is valid, names its sources, and survives a round trip through TOML."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import graphopt.targets.loader as loader
from graphopt.targets import Target, list_targets, resolve_target, validate_target
from graphopt.targets.schema import ROLES

PRESETS = sorted(Path(loader.__file__).with_name("presets").glob("*.toml"))
NAMES = [path.stem for path in PRESETS]
REQUIRED = {
    "apple-m4",
    "arm64-cpu",
    "cpu",
    "ethos-u55",
    "gpu",
    "hexagon-v73",
    "jetson-orin-nano",
    "nvidia-h200",
    "nvidia-l4",
    "raspberry-pi-5",
    "stm32f446",
    "stm32h743",
}


def test_all_promised_presets_are_there() -> None:
    assert set(NAMES) >= REQUIRED


@pytest.mark.parametrize("path", PRESETS, ids=NAMES)
def test_preset_has_no_problems(path: Path) -> None:
    assert validate_target(path) == []


@pytest.mark.parametrize("path", PRESETS, ids=NAMES)
def test_preset_is_named_after_its_file(path: Path) -> None:
    table = tomllib.loads(path.read_text("utf-8"))
    expected = table.get("alias_of", path.stem)
    assert resolve_target(path.stem).name == expected


@pytest.mark.parametrize("name", NAMES)
def test_preset_states_its_sources(name: str) -> None:
    target = resolve_target(name)
    assert target.source
    assert target.description
    for pool in target.pools:
        assert pool.source, pool.name
        assert any("alignment" in source for source in pool.source), pool.name


@pytest.mark.parametrize("name", NAMES)
def test_preset_round_trips_through_toml(name: str, tmp_path: Path) -> None:
    target = resolve_target(name)
    path = tmp_path / "copy.toml"
    path.write_text(target.to_toml(), "utf-8")
    copy = resolve_target(path)
    assert copy == target
    assert copy.digest() == target.digest()
    assert copy.to_toml() == target.to_toml()


@pytest.mark.parametrize("name", NAMES)
def test_every_role_has_a_pool_that_may_hold_it(name: str) -> None:
    target = resolve_target(name)
    for role in ROLES:
        pool = target.pool_for(role)
        assert pool.access == "rw" or role == "weight"


def test_digests_tell_presets_apart() -> None:
    digests = {resolve_target(name).digest() for name in NAMES if name != "gpu"}
    assert len(digests) == len(NAMES) - 1


def test_gpu_is_an_alias_that_keeps_the_concrete_name() -> None:
    assert resolve_target("gpu") == resolve_target("nvidia-l4")
    assert resolve_target("gpu").name == "nvidia-l4"


def test_host_targets_leave_inputs_and_outputs_to_the_caller() -> None:
    cpu = resolve_target("cpu")
    assert cpu.runtime.executes_with == "onnxruntime"
    assert not cpu.runtime.io_in_arena
    assert cpu.pools[0].limit_bytes is None
    assert cpu.pools[0].alignment == 64


def test_stm32h743_plans_into_its_largest_block() -> None:
    target = resolve_target("stm32h743")
    sizes = {pool.name: pool.size_bytes for pool in target.pools}
    assert sizes == {
        "axi-sram": 512 << 10,
        "d2-sram": 288 << 10,
        "dtcm": 128 << 10,
        "sram4": 64 << 10,
        "flash": 2 << 20,
    }
    assert target.pool_for("activation").name == "axi-sram"
    assert target.pool_for("weight").name == "flash"
    assert target.runtime.io_in_arena


def test_stm32f446_is_one_block_and_flash() -> None:
    target = resolve_target("stm32f446")
    assert [(p.name, p.limit_bytes) for p in target.pools] == [
        ("sram", 128 << 10),
        ("flash", 512 << 10),
    ]


def test_a_model_larger_than_vtcm_is_not_refused() -> None:
    assert resolve_target("hexagon-v73").pool_for("activation").limit_bytes is None


def test_list_is_sorted_and_marks_aliases() -> None:
    summaries = list_targets()
    assert [s.name for s in summaries] == sorted(NAMES)
    by_name = {s.name: s for s in summaries}
    assert by_name["gpu"].alias_of == "nvidia-l4"
    assert by_name["gpu"].pools == by_name["nvidia-l4"].pools
    assert by_name["nvidia-l4"].alias_of is None
    assert by_name["stm32f446"].pools == "sram 128.00 KiB, flash 512.00 KiB read-only"
    assert by_name["cpu"].pools == "dram not bounded"
    assert all(s.description and s.kind for s in summaries)


def test_a_target_resolves_to_itself() -> None:
    target = resolve_target("cpu")
    assert isinstance(target, Target)
    assert resolve_target(target) is target


def test_digest_does_not_depend_on_the_hash_seed() -> None:
    code = "from graphopt.targets import resolve_target as r; print(r('stm32h743').digest())"
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert digests == {resolve_target("stm32h743").digest() + "\n"}


def test_importing_the_package_does_not_import_pydantic() -> None:
    code = (
        "import sys, graphopt.targets as t; assert 'pydantic' not in sys.modules; "
        "assert 'resolve_target' in dir(t); t.Target; assert 'pydantic' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_attribute_of_the_package() -> None:
    import graphopt.targets

    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = graphopt.targets.nothing
