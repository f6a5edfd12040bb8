"""Presets: named compositions of parts, data only. Parts and presets of one's own come by entry
points.

A package adds a part with the entry-point group `batchgen.parts` (name "slot.part") and a preset
with
`batchgen.presets` (an object with the fields of `Preset`). `--set slot.option=value` changes one
option.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from batchgen.errors import UserError
from batchgen.oneline import named
from batchgen.policy.base import SLOTS, Part
from batchgen.policy.options import read_config

PARTS: dict[str, dict[str, str]] = {
    "recovery": {
        "rehome": "recovery:Rehome",
        "cheapest": "recovery:Cheapest",
        "recompute": "recovery:Recompute",
    },
    "phase": {
        "mixed": "phase:Mixed",
        "gathered": "phase:Gathered",
        "prefill-first": "phase:PrefillFirst",
        "refill-node": "phase:RefillNode",
        "refill-lockstep": "phase:RefillLockstep",
    },
    "memory": {
        "nothing": "memory:NothingYields",
        "recompute-newest": "memory:RecomputeNewest",
        "retract-least-decoded": "memory:RetractLeastDecoded",
        "suspend-most-decoded": "memory:SuspendMostDecoded",
    },
    "order": {
        "arrival": "order:Arrival",
        "longest": "order:LongestFirst",
        "shortest": "order:ShortestFirst",
        "by-prompt": "order:ByPrompt",
        "longest-prefix": "order:LongestPrefix",
        "depth-first": "planned:DepthFirst",
        "prefix-groups": "planned:PrefixGroups",
        "blend": "planned:Blend",
        "heavy-first": "planned:HeavyFirst",
    },
    "admission": {
        "whole-batch": "admission:WholeBatch",
        "worst-case": "admission:WorstCase",
        "fits-now": "admission:FitsNow",
        "fits-rest": "admission:FitsRest",
        "fits-peak": "admission:FitsPeak",
        "lazy-pages": "admission:LazyPages",
    },
    "batching": {
        "static": "batching:StaticPrompts",
        "whole": "batching:WholePrompts",
        "chunks": "batching:Chunks",
        "paced": "batching:PacedChunks",
    },
    "placement": {"round-robin": "placement:RoundRobin", "least-work": "placement:LeastWork"},
    "tail": {"run-out": "tail:RunOut", "partition": "tail:Partition"},
    "predictor": {
        "none": "predictor:NoPrediction",
        "mean-seen": "predictor:MeanSeen",
        "asked-length": "predictor:AskedLength",
        "own-length": "predictor:OwnLength",
        "oracle": "predictor:Oracle",
        "ranker": "predictor:Ranker",
    },
}
"""slot -> part name -> "module:class" under batchgen.policy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A composition: a part name per slot, options per slot, and static sizes.

    `page_tokens`: grain of KV accounting. `max_num_seqs` and `token_budget` are per rank;
    0 = the machine's default. `fallback` names the part of a slot that takes over when the backend
    lacks what the chosen one needs. `plan`: options of the plan. `costs`: constants of
    `batchgen.cost.efficiency` that are the system's own. `source` says where it comes from.
    """

    name: str
    parts: Mapping[str, str]
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    page_tokens: int = 64
    boundary: int = 64
    token_budget: int = 0
    max_num_seqs: int = 0
    prefix_cache: bool = False
    fallback: Mapping[str, str] = field(default_factory=dict)
    plan: Mapping[str, Any] = field(default_factory=dict)
    costs: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""


NEUTRAL = {
    "recovery": "rehome",
    "phase": "mixed",
    "memory": "recompute-newest",
    "order": "arrival",
    "admission": "fits-now",
    "batching": "chunks",
    "placement": "round-robin",
    "tail": "run-out",
    "predictor": "none",
}


def _parts(**chosen: str) -> dict[str, str]:
    return {**NEUTRAL, **chosen}


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            name="static",
            parts=_parts(memory="nothing", admission="whole-batch", batching="static"),
            fallback={"batching": "whole"},
            source="batching before Orca: a batch runs to its last row",
        ),
        Preset(
            name="orca",
            parts=_parts(memory="nothing", admission="worst-case", batching="whole"),
            page_tokens=16,
            source="Orca, OSDI 2022, algorithm 1",
        ),
        Preset(
            name="vllm",
            parts=_parts(),
            page_tokens=16,
            prefix_cache=True,
            source="vLLM V1 scheduler defaults for offline use",
        ),
        Preset(
            name="batchgen",
            parts=_parts(
                recovery="cheapest",
                phase="refill-node",
                memory="suspend-most-decoded",
                admission="lazy-pages",
                placement="least-work",
                tail="partition",
            ),
            prefix_cache=True,
            fallback={"tail": "run-out"},
            source="BatchGen, OSDI 2026, sections 2.6, 3.1 and 5.3",
        ),
        Preset(
            name="sarathi",
            parts=_parts(),
            options={"admission": {"watermark": 0.01}},
            page_tokens=16,
            token_budget=2048,
            max_num_seqs=128,
            source="Sarathi-Serve, OSDI 2024, algorithm 3; budget without a strict latency target",
        ),
        Preset(
            name="sglang",
            parts=_parts(
                phase="prefill-first",
                memory="retract-least-decoded",
                order="longest-prefix",
                admission="fits-rest",
            ),
            options={"admission": {"ratio": 0.7}},
            page_tokens=16,
            token_budget=8192,
            prefix_cache=True,
            source="SGLang's scheduler: lpm, retraction, new-token ratio at its start",
        ),
        Preset(
            name="batchllm",
            parts=_parts(order="prefix-groups"),
            page_tokens=16,
            max_num_seqs=4096,
            prefix_cache=True,
            source="BatchLLM, MLSys 2026: prefix clustering, batches bounded by KV memory",
        ),
        Preset(
            name="blendserve",
            parts=_parts(order="blend", admission="fits-peak", predictor="asked-length"),
            page_tokens=16,
            max_num_seqs=4096,
            prefix_cache=True,
            costs={"attention_theta": 0.3},
            source="BlendServe, ASPLOS 2026, section 5; overlap of NanoFlow, OSDI 2025",
        ),
        Preset(
            name="best",
            parts=_parts(
                recovery="cheapest",
                phase="refill-lockstep",
                memory="suspend-most-decoded",
                order="heavy-first",
                admission="lazy-pages",
                batching="paced",
                placement="least-work",
                tail="partition",
                predictor="own-length",
            ),
            prefix_cache=True,
            fallback={"tail": "run-out"},
            costs={"attention_theta": 0.3},
            source="density and sharing of BlendServe, tails of BatchGen (docs/best.md)",
        ),
    )
}


CAPABILITIES = frozenset({"host", "switch", "prefix", "padding", "lengths"})
"""All that a backend may have; the simulator has it, true lengths of outputs with --oracle only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A preset made real: one part object per slot. Parts hold no state, so engines share them."""

    preset: Preset
    parts: Mapping[str, Part]

    def __getitem__(self, slot: str) -> Any:
        return self.parts[slot]


def installed(group: str) -> dict[str, Any]:
    from importlib.metadata import entry_points  # 20 ms: only when a policy is built

    return {point.name: point for point in entry_points(group=group)}


def _load(point: Any, name: str) -> Any:
    """What an entry point of another package names; its modules may raise anything."""
    try:
        return point.load()
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise UserError(
            f"entry point {name} cannot be loaded ({named(error)})",
            remedy="mend or uninstall its package",
        ) from None


def preset_names() -> list[str]:
    """Built-in presets first, then systems of the catalog, then those of installed packages."""
    from batchgen.catalog.systems import system_names

    own = [*PRESETS, *system_names()]
    return [*own, *sorted(set(installed("batchgen.presets")) - set(own))]


def find_preset(name: str) -> Preset:
    """A preset by name, or of a data file by its path; raises UserError that names the close
    ones."""
    if name in PRESETS:
        return PRESETS[name]
    from batchgen.catalog.systems import find_system, is_file, system_names

    if is_file(name) or name in system_names():
        return find_system(name)[0]
    plugins = installed("batchgen.presets")
    if name in plugins:
        preset = _load(plugins[name], f"batchgen.presets:{name}")
        if not isinstance(preset, Preset):
            raise UserError(
                f"entry point batchgen.presets:{name} is a {type(preset).__name__}",
                remedy="it must load a batchgen.policy.presets.Preset",
            )
        return preset
    close = difflib.get_close_matches(name, preset_names(), n=2, cutoff=0.7)
    hint = f"did you mean {' or '.join(close)}" if close else "choose one of"
    raise UserError(
        f"unknown policy '{name}'",
        remedy=hint if close else f"{hint} {', '.join(preset_names())}",
        code="unknown_policy",
    )


def label_of(policy: str) -> str:
    """What a run under a policy is called: its name, that of the data file where it is a path."""
    from batchgen.catalog.systems import is_file

    return find_preset(policy).name if is_file(policy) else policy


def part_class(slot: str, name: str) -> type[Part]:
    """The class of a built-in or installed part; raises UserError for an unknown one."""
    builtin = PARTS[slot].get(name)
    if builtin is not None:
        module, _, cls = builtin.partition(":")
        found: type[Part] = getattr(importlib.import_module(f"batchgen.policy.{module}"), cls)
        return found
    plugin = installed("batchgen.parts").get(f"{slot}.{name}")
    if plugin is None:
        raise UserError(
            f"unknown {slot} part '{name}'",
            remedy=f"choose one of {', '.join(PARTS[slot])} or install one as {slot}.{name}",
            code="unknown_part",
        )
    loaded = _load(plugin, f"batchgen.parts:{slot}.{name}")
    if not (isinstance(loaded, type) and issubclass(loaded, Part)):
        raise UserError(f"entry point batchgen.parts:{slot}.{name} is not a Part class")
    return loaded


def part_config(
    slot: str, name: str, cls: type[Part], options: Mapping[str, Any], texts: Mapping[str, str]
) -> Any:
    """The `Config` of a part: a preset's options, then those given as text. Raises UserError."""
    return read_config(slot, name, cls.Config, options, texts)


def build_policy(
    preset: Preset,
    overrides: Mapping[str, str] | None = None,
    capabilities: frozenset[str] = CAPABILITIES,
) -> Policy:
    """Make the parts of a preset. `overrides` maps "slot.option" (or "slot.part") to text.

    Raises UserError for an unknown slot, part or option, and for a part that needs what the backend
    lacks, unless the preset names another for that slot (`fallback`).
    """
    chosen = dict(preset.parts)
    options: dict[str, dict[str, Any]] = {
        slot: dict(preset.options.get(slot, {})) for slot in SLOTS
    }
    texts: dict[str, dict[str, str]] = {slot: {} for slot in SLOTS}
    for key, text in (overrides or {}).items():
        slot, _, option = key.partition(".")
        if slot in ("plan", "cost"):
            continue  # sizes of the plan and constants of costs, not of a part
        if slot not in SLOTS or not option:
            raise UserError(
                f"--set {key}={text}: no such part",
                remedy=f"parts are {', '.join(SLOTS)}, plan and cost",
            )
        if option == "part":
            if text != chosen[slot]:
                options[slot] = {}  # the preset's are those of its own part
            chosen[slot] = text
        else:
            texts[slot][option] = text
    parts: dict[str, Part] = {}
    for slot in SLOTS:
        cls = part_class(slot, chosen[slot])
        if (
            cls.needs - capabilities
            and chosen[slot] == preset.parts[slot]
            and slot in preset.fallback
        ):
            cls = part_class(slot, preset.fallback[slot])
            texts[slot] = {}
            options[slot] = {}
        missing = cls.needs - capabilities
        if missing:
            told = "lengths" in missing
            give = "give --oracle to `batchgen sim`" if told else "choose a backend that has it"
            raise UserError(
                f"policy {preset.name}: {slot} part {chosen[slot]} needs "
                + ", ".join(sorted(missing)),
                remedy=f"{give} or another part with --set {slot}.part={NEUTRAL[slot]}",
                code="capability",
            )
        config = part_config(slot, chosen[slot], cls, options[slot], texts[slot])
        parts[slot] = cls(config)
    return Policy(preset=preset, parts=parts)
