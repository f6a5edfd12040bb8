"""Systems and clusters as data files: all of the catalog, copies of a user, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

import batchgen.catalog
from batchgen.catalog.systems import (
    cluster_names,
    find_cluster,
    find_system,
    system_names,
)
from batchgen.cli import main
from batchgen.cost.efficiency import efficiency_of
from batchgen.errors import DataError, UserError
from batchgen.hardware import load_gpu
from batchgen.planning import plan_options
from batchgen.policy.presets import (
    NEUTRAL,
    PARTS,
    PRESETS,
    Preset,
    build_policy,
    find_preset,
    preset_names,
)
from batchgen.report.record import RunRecord
from batchgen.sim.run import describe_policy, simulate
from batchgen.simjob import SimJob

CATALOG = Path(batchgen.catalog.__file__).parent


@pytest.mark.parametrize("name", system_names())
def test_a_system_is_a_policy_a_plan_and_at_most_two_constants(name: str) -> None:
    preset, constants = find_system(name)
    assert preset.name == name
    assert find_preset(name) is preset
    assert name in preset_names()
    build_policy(preset)
    options = plan_options({}, preset.plan)
    efficiency = efficiency_of({}, preset.costs)
    assert len(constants) <= 2
    for key, constant in constants.items():
        assert constant.range[0] < constant.value < constant.range[1]
        assert constant.meaning
        assert constant.source
        where, _, option = key.rpartition(".")
        assert getattr(options if where else efficiency, option) == constant.value
        # One --set replaces it.
        low = constant.range[0]
        changed = {key: f"{low:.0f}"} if where else {f"cost.{key}": str(low)}
        if where:
            assert getattr(plan_options(changed, preset.plan), option) == low
        else:
            assert getattr(efficiency_of(changed, preset.costs), option) == low


@pytest.mark.parametrize("name", cluster_names())
def test_a_cluster_is_machines_and_at_most_three_constants(name: str) -> None:
    cluster = find_cluster(name)
    assert cluster.name == name
    load_gpu(cluster.gpu)
    assert len(cluster.constants) <= 3
    efficiency = efficiency_of({}, cluster.costs)
    for key, constant in cluster.constants.items():
        assert constant.range[0] < constant.value < constant.range[1]
        assert getattr(efficiency, key) == constant.value


def _run(tmp_path: Path, policy: str, gpus: int, **changes: str) -> RunRecord:
    """Sixty rows of 300 to 713 prompt tokens on engines of one GPU."""
    path = tmp_path / "load.jsonl"
    rows = [{"prompt_tokens": 300 + 7 * n, "output_tokens": 40 + n} for n in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    machine = {"model": "llama-3.1-8b", "gpu": "h100", "gpus": gpus, "layout": "tp1"}
    options = tuple((key.replace("__", "."), value) for key, value in changes.items())
    return simulate(SimJob(trace=str(path), policy=policy, overrides=options, **machine))


def test_disagg_prefills_on_one_engine_and_decodes_on_the_others(tmp_path: Path) -> None:
    record = _run(tmp_path, "disagg", 3)
    steps, rows = record.steps, record.rows
    first = steps["engine"] == 0
    assert steps["prompt_tokens"][~first].sum() == 0
    assert steps["prompt_tokens"][first].sum() == rows["prompt_tokens"].sum()
    # The last pass of a prompt gives its first token; every other comes after the hand-over.
    assert steps["output_tokens"][first].sum() == len(rows["engine"])
    assert set(rows["engine"].tolist()) == {1, 2}
    assert (rows["migrations"] == 1).all()


def test_nanoflow_fills_passes_of_fixed_size_and_overlaps(tmp_path: Path) -> None:
    record = _run(tmp_path, "nanoflow", 1)
    steps, rows = record.steps, record.rows
    tokens = (steps["prompt_tokens"] + steps["output_tokens"]) / steps["passes"]
    assert tokens.max() <= 2048 + 60  # a prompt's last chunk counts its first token too
    prompts = np.flatnonzero(steps["prompt_tokens"])
    assert (tokens[prompts[:-1]] >= 2048).all()  # prompts fill exactly what decodes leave
    serial = _run(tmp_path, "nanoflow", 1, cost__attention_theta="1", cost__theta="1")
    assert rows["end_ps"].max() < serial.rows["end_ps"].max()


def test_a_system_on_a_base_differs_in_what_it_says() -> None:
    base, other = find_system("sglang-opt")[0], find_system("sglang-default")[0]
    assert base.parts == other.parts
    assert base.costs == other.costs
    assert base.plan["memory_fraction"] == 0.95
    assert other.plan["memory_fraction"] == 0.9
    ours = find_system("batchgen-osdi26")[0]
    assert ours.parts == PRESETS["batchgen"].parts
    assert ours.prefix_cache
    # The same links between nodes, though the GPUs come with faster ones.
    rates = [
        load_gpu(cluster.gpu).inter_bytes_per_s * cluster.costs["network"]
        for cluster in map(find_cluster, ("h20-ib", "h200-ib"))
    ]
    assert rates[0] == pytest.approx(rates[1])


ABLATIONS = [name for name in system_names() if name.startswith(("batchgen-no-", "batchgen-in-"))]


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_is_batchgen_but_for_one_thing(name: str) -> None:
    """One part, one option of a part, or one size of the plan; a run says its own name."""
    whole, without = PRESETS["batchgen"], find_preset(name)
    assert len(_differences(whole, without)) == 1
    same = ("page_tokens", "boundary", "token_budget", "max_num_seqs", "prefix_cache", "costs")
    assert all(getattr(without, field) == getattr(whole, field) for field in same)
    assert without.fallback == whole.fallback
    if without.parts == whole.parts and not without.plan:  # an option: not what it is by default
        assert describe_policy(build_policy(without)) != describe_policy(build_policy(whole))


def test_each_part_that_batchgen_chose_has_an_ablation() -> None:
    whole = PRESETS["batchgen"]
    found = {next(iter(_differences(whole, find_preset(name)))) for name in ABLATIONS}
    chosen = {slot for slot, part in whole.parts.items() if part != NEUTRAL[slot]}
    assert found == {*chosen, "placement.steal", "plan.b_moe"}
    assert len(found) == len(ABLATIONS)


def _differences(one: Preset, other: Preset) -> set[str]:
    """Slots with another part, options of parts and of the plan with other values."""
    slots = {slot for slot in PARTS if one.parts[slot] != other.parts[slot]}
    pairs = [
        (f"{where}.", ours, theirs)
        for where, ours, theirs in (
            *((slot, one.options.get(slot, {}), other.options.get(slot, {})) for slot in PARTS),
            ("plan", one.plan, other.plan),
        )
    ]
    return slots | {
        where + key
        for where, ours, theirs in pairs
        for key in ours.keys() | theirs.keys()
        if ours.get(key) != theirs.get(key)
    }


def test_a_copy_of_a_file_is_the_same_system(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text((CATALOG / "systems" / "sglang-opt.yaml").read_text())
    assert find_preset(str(mine)) == find_preset("sglang-opt")
    machines = tmp_path / "machines.yml"
    machines.write_text((CATALOG / "clusters" / "h20-ib.yaml").read_text())
    assert find_cluster(str(machines)) == find_cluster("h20-ib")


def test_a_file_that_changes_is_read_again(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    for fraction in (0.8, 0.7):
        mine.write_text(GOOD + f"base: sglang-opt\nplan: {{memory_fraction: {fraction}}}")
        assert find_preset(str(mine)).plan["memory_fraction"] == fraction


GOOD = "name: mine\nsource: me\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "is not valid YAML"),
        ("just text", "Expected `object`"),
        ("name: mine", "missing required field `source`"),
        (GOOD + "partz: {}", "unknown field `partz`"),
        ('name: "a\\e[31m"\nsource: me', "field 'name': must be printable text"),
        ('name: "a\\nb"\nsource: me', "field 'name': must be printable text"),
        ('name: " "\nsource: me', "field 'name': must be printable text"),
        (GOOD + "parts: {fase: mixed}", "no such slot 'fase'"),
        (GOOD + "base: nothing", "unknown system 'nothing'"),
        (
            GOOD + "constants: {step_s: {value: 2, range: [0, 1], meaning: m, source: s}}",
            "lies outside its range",
        ),
        (
            GOOD + "constants: {order.x: {value: 1, range: [0, 1], meaning: m, source: s}}",
            "must be of costs, or plan.NAME",
        ),
        (GOOD + "constants: {step_s: 1}", "Expected `object`"),
        (GOOD + "page_tokens: 0", "field 'page_tokens': must lie from 1"),
        (GOOD + "boundary: -3", "field 'boundary': must lie from 1"),
        (GOOD + "token_budget: 9999999999999", "field 'token_budget'"),
        (GOOD + "max_num_seqs: -1", "field 'max_num_seqs'"),
        (GOOD + "plan: {depth: [2]}", "field 'plan.depth': must be a plain value"),
        (GOOD + 'base: "a\\0.yaml"', "cannot read"),
        (GOOD + "page_tokens: 2026-13-45", "is not valid YAML"),
        (GOOD + "parts: " + "[" * 5000, "is not valid YAML"),
        (
            GOOD + "constants: {step_s: {value: .inf, range: [0, .inf], meaning: m, source: s}}",
            "lies outside its range",
        ),
    ],
)
def test_a_file_that_is_no_system_is_refused_in_one_line(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises((DataError, UserError), match=re.escape(message)) as caught:
        find_system(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("watermark", "message"),
    [("abc", "not a valid float"), ("[1]", "not a plain value"), ("2", "out of range")],
)
def test_options_of_a_file_are_read_like_those_of_the_command_line(
    tmp_path: Path, watermark: str, message: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD + "base: vllm\noptions: {admission: {watermark: '0.5'}}")
    assert build_policy(find_preset(str(path)))["admission"].config.watermark == 0.5
    other = tmp_path / "other.yaml"
    other.write_text(GOOD + f"base: vllm\noptions: {{admission: {{watermark: {watermark}}}}}")
    with pytest.raises(UserError, match=message):
        build_policy(find_preset(str(other)))


def of(key: str, value: object) -> str:
    return f"constants: {{{key}: {{value: {value}, range: [0, 1.0e+18], meaning: m, source: s}}}}"


@pytest.mark.parametrize(
    ("text", "field", "why"),
    [
        (of("step_s", 11), "constants.step_s", "11.0: out of range; give a finite number from 0"),
        (of("steps", 1), "constants.steps", "costs have no such constant; known: grouped"),
        (of("gemm", 1), "constants.gemm", "costs have no such constant"),
        (of("plan.depth", 3), "constants.plan.depth", "3: out of range; give an integer from 1"),
        (of("plan.deep", 1), "constants.plan.deep", "the plan has no such option; known: token"),
        (of("disk_read_bytes_per_s", 27), "constants.disk_read_bytes_per_s", "27.0: out of range"),
        ("costs: {theta: 2}", "costs.theta", "2: out of range"),
        ("costs: {theta: x}", "costs.theta", "x: not a valid float"),
        ("costs: {exchange: post}", "costs.exchange", "post: no such choice; choose one of"),
        ("plan: {weights: tape}", "plan.weights", "tape: no such choice"),
        ("plan: {token_budget: 0}", "plan.token_budget", "0: out of range"),
        ("parts: {order: none}", "parts.order", "unknown order part 'none'"),
        (
            "base: vllm\noptions: {admission: {watermark: 2}}",
            "options.admission.watermark",
            "2: out of range",
        ),
        ("base: vllm\noptions: {admission: {x: 2}}", "options.admission.x", "has no such option"),
    ],
)
def test_a_value_that_cannot_be_is_one_of_a_field_of_the_file(
    tmp_path: Path, text: str, field: str, why: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD + text)
    with pytest.raises(DataError) as caught:
        find_system(str(path))
    assert str(caught.value).startswith(f"{path}: field '{field}': ")
    assert why in str(caught.value)
    assert "--set" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("host_link", 3, "3.0: out of range"),
        (
            "node_host_bytes_per_s",
            256,
            "256.0: out of range; give bytes per second, 0 or from 1e+06",
        ),
        ("hostlink", 1, "costs have no such constant"),
    ],
)
def test_the_same_of_a_cluster(tmp_path: Path, key: str, value: int, why: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD + "base: h20-ib\n" + of(key, value))
    with pytest.raises(DataError, match=re.escape(f"{path}: field 'constants.{key}': {why}")):
        find_cluster(str(path))
    path.write_text(GOOD + "base: h20-ib\n" + of("node_host_bytes_per_s", 0))
    assert find_cluster(str(path)).costs["node_host_bytes_per_s"] == 0


def test_bases_that_go_in_a_circle_are_refused(tmp_path: Path) -> None:
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text(GOOD + f"base: {two}")
    two.write_text(GOOD + f"base: {one}")
    for find in (find_system, find_cluster):
        with pytest.raises(DataError, match="stands on itself"):
            find(str(one))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cluster", "h21"], "unknown cluster 'h21'; choose one of a5000-pc, h20-ib, h200-ib"),
        (["--cluster", "none.yaml"], "cannot read 'none.yaml'"),
        (["--cluster", "h20-ib", "--gpu", "h20"], "--gpu and --cluster are both given"),
        (["--policy", "none.yaml"], "cannot read 'none.yaml'"),
    ],
)
def test_the_command_refuses_what_is_not_there(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "x.jsonl"
    trace.write_text('{"prompt_tokens": 5, "output_tokens": 5}')
    assert main(["sim", "--trace", str(trace), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_system_of_a_file_runs_under_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine, trace, out = tmp_path / "a.yaml", tmp_path / "x.jsonl", tmp_path / "out"
    mine.write_text(GOOD + "base: sglang-opt")
    trace.write_text('{"prompt_tokens": 50, "output_tokens": 500}\n' * 40)
    arguments = ["--cluster", "h20-ib", "--gpus", "16", "--layout", "dpa16+ep16", "--json"]
    run = ["sim", "--trace", str(trace), *arguments]
    found = []
    for more in (
        ["--policy", str(mine), "--out", str(out), "--log", "full"],
        ["--policy", "sglang-opt"],
        ["--policy", "sglang-opt", "--set", "cost.step_s=0.012"],
    ):
        assert main([*run, *more]) == 0
        found.append(json.loads(capsys.readouterr().out)["runs"][0])
    assert found[0]["policy"] == "mine"
    assert found[0]["bct_s"] == found[1]["bct_s"]
    # 501 passes or so, each 8 ms longer.
    assert found[2]["bct_s"] - found[1]["bct_s"] == pytest.approx(
        0.004 * found[1]["passes"], rel=1e-6
    )
    assert main(["validate", "replay", str(out / "mine")]) == 0


def test_an_option_that_a_file_misspells_is_not_called_one_of_set() -> None:
    with pytest.raises(UserError, match=r"^plan\.engine_tokens: the plan has no such option"):
        plan_options({}, {"engine_tokens": 8192})
    with pytest.raises(UserError, match=r"^--set plan\.engine_tokens: the plan has no"):
        plan_options({"plan.engine_tokens": "8192"})
