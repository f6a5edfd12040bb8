"""Command lines that mean nothing: words missing, doubled, misspelt, too long, out of place."""

from __future__ import annotations

from random import Random

from drawing import NUMBERS, TEXTS, lines
from trying import Case, Place

LINES = lines(
    r"""
sim --trace t.jsonl SIM
sim --trace t.jsonl SIM --compare vllm,orca
sim --trace t.jsonl SIM --policy batchgen --set plan.depth=2
sim --trace t.jsonl SIM --devices d.jsonl --without-faults
sim --trace t.jsonl --model deepseek-r1 --cluster h20-ib --gpus 16 --layout dpa16+ep16
sim --trace t.jsonl SIM --arrivals batch --costs measured --log off --progress off
exec --model m -i in.jsonl -o o.jsonl --threads 1
exec --model m -i in.jsonl --dry-run --json
exec --model m -i in.jsonl -o o.jsonl --resume never --order input --log off
exec --model m -i t.jsonl -o o.jsonl --prompt-column x --prompt-template '{x}' --chat --system s
exec --model m -i in.jsonl -o o.jsonl --input-format jsonl --output-format auto --max-errors 5%
exec --model m -i in.jsonl -o o.jsonl --policy vllm --dtype float32 --device cpu --shard 1/2
plan --trace t.jsonl LLAMA --workers 1 --deadline 1h --among h100 --price h100=2
sweep s.yaml --out o.jsonl --workers 1
trace generate -o o.jsonl -n 9 --prompt-tokens constant:9 --output-tokens constant:3
trace import t.jsonl -o o.jsonl --format auto --name x --source s --licence l
trace stats t.jsonl --json
trace devices generate -o o.jsonl --gpus 16 --kinds failures,spread --name x
trace devices import d.jsonl -o o.jsonl --format auto
trace devices rates --json
model show llama-3.1-8b
model list --json
model hardware
model init o.jsonl --arch qwen3 --size tiny
validate replay run/batchgen --no-fresh
validate input in.jsonl --json
validate agreement --model m -i in.jsonl --policies vllm --gpu h100
validate prediction --model m -i in.jsonl --profile p.json
job status a.jsonl
job results a.jsonl --order input --only all
report run --json
policy list --json
policy check order.arrival --cases 1 --case {}
bench --only nothing
bench bound --model llama-3.1-8b --seats 4 --tflops 1 --gb-per-s 9 --prompt-tokens 5
bench blend --rows 40 --only 1.4:0.35
bench published --only none-has-this
bench tune --only none-has-this
"""
)
GROUPS = ("trace", "devices", "model", "validate", "job", "policy", "bench", "sim", "exec", "plan")
FLAGS = (
    *(
        "--debug",
        "--debg",
        "--debugg",
        "--debug=1",
        "--debug=",
        "--de",
        "-debug",
        "--DEBUG",
        "--no-debug",
    ),
    *("--help", "--hlep", "--version", "--verson", "-h", "-?", "--", "---", "-", "--json", "--jsn"),
    *(
        "--force",
        "--no-force",
        "--force=yes",
        "--set",
        "--set=",
        "--set=x",
        "--install-completion=x",
    ),
    *(
        "--nothing",
        "--nothing=5",
        "-x",
        "-xyz",
        "--\u00e9",
        "--trace",
        "-o",
        "-i",
        "--out",
        "--model",
    ),
)
SETTINGS = (
    *(
        "plan.depth",
        "order.part",
        "admission.part",
        "cost.engine",
        "plan.weights",
        "plan.attention",
    ),
    *(
        "plan.",
        ".depth",
        "plan.depth.x",
        "plan depth",
        "Plan.Depth",
        "nothing.part",
        "order.nothing",
    ),
    *(
        "placement.steal",
        "memory.part",
        "tail.min_gain",
        "plan.prefix_cache",
        "plan.layout",
        "cost.part",
    ),
)
LAYOUTS = (
    *(
        "tp2+dp2",
        "tp2,tp2",
        "tp2+",
        "+tp2",
        "tp",
        "2",
        "tp-2",
        "tp2.5",
        "pp2+dpa2",
        "ep2",
        "tp3",
        "tp2 dp1",
    ),
    *(
        "tp2;dp1",
        "xp2",
        "tp2+ep99",
        "dp2+pp64",
        "tp99",
        "TP2",
        "t p 2",
        "tp2+pp2,dp2+ep2",
        "rule",
        "best",
    ),
    *("tp02", "tp2" * 500, "tp2+" * 500, ",", "+", "dpa2", "dpa2+ep2", "tp\u0662"),
)


def draw(rng: Random, place: Place) -> Case:
    """A good line with one to three mistakes."""
    words = list(rng.choice(LINES))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at = rng.randrange(len(words) + 1)
        what = rng.random()
        odd = rng.choice((*TEXTS, *NUMBERS))
        if what < 0.12 and len(words) > 1:
            del words[min(at, len(words) - 1)]
        elif what < 0.22:
            words.insert(at, rng.choice(FLAGS))
        elif what < 0.5 and len(words) > 2:
            words[rng.randrange(1, len(words))] = odd
        elif what < 0.56:
            words.insert(at, odd)
        elif what < 0.64:
            one = rng.randrange(len(words))
            words[one] = words[one][:-1] + rng.choice(("", "x", words[one][-1:] * 2))
        elif what < 0.7:
            rng.shuffle(words)
        elif what < 0.74:
            words = words[: rng.randrange(len(words))]
        elif what < 0.78:
            words += words
        elif what < 0.82:
            words = [rng.choice(GROUPS), *words[1:]]
        elif what < 0.92:
            equals = rng.choice(("=", "=", "=", "", "==", " = "))
            words += ["--set", f"{rng.choice(SETTINGS)}{equals}{odd}"]
        else:
            words += [f"--layout={rng.choice(LAYOUTS)}"]
    words = [word.replace("\0", "") for word in words]
    # Any word may have become the name of an output, and that is no harm.
    return Case(argv=tuple(words), outputs=("*",))
