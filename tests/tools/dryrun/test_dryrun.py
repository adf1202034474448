"""The dry run: its FLOPs against XLA's, where things lie against real arrays, what it reports and refuses."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import datasets
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from seq2seq_jax.config import REMATS, TrainConfig, from_mapping
from seq2seq_jax.data.encoding import EncodedPairs
from seq2seq_jax.data.pipeline import batches
from seq2seq_jax.data.plan import BatchPlan
from seq2seq_jax.parallel.mesh import make_mesh
from seq2seq_jax.training.flops import RECOMPUTED, StepFlops, step_flops
from seq2seq_jax.training.setup import abstract_state, make_training
from seq2seq_jax.weights.params import abstract_params
from tools.dryrun import chips, mesh_search, report
from tools.dryrun import compile as dryrun
from tools.dryrun.cost import Cost

ROOT = Path(__file__).parents[3]
HELD = (
    "scripts/dryrun.py",
    "the state lies where a run's does",
    "decoding parameters lie where a search's do",
    "exchanges of the cache are counted",
    "all legal meshes",
    "what does not divide is refused",
)
BERT = {"model_type": "bert", "vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
BERT |= {"intermediate_size": 48}
LLAMA = {"model_type": "llama", "vocab_size": 80, "hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
LLAMA |= {"num_key_value_heads": 2, "intermediate_size": 96, "head_dim": 12, "tie_word_embeddings": True}


def process(command, **environment):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", **environment}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=3000)
    return done.returncode, done.stdout, done.stdout + done.stderr[-3000:]


@pytest.fixture(scope="module")
def eight_devices(tmp_path_factory):
    """What the checks said, and the figures of the script's --output."""
    output = tmp_path_factory.mktemp("dryrun") / "figures.json"
    _, out, said = process([sys.executable, str(ROOT / "tests/tools/dryrun/dryrun_checks.py"), str(output)])
    return said, out, json.loads(output.read_text()) if output.exists() else {}


@pytest.mark.slow
@pytest.mark.parametrize("check", HELD)
def test_eight_devices(eight_devices, check):
    assert f"held: {check}" in eight_devices[0], eight_devices[0]


@pytest.mark.slow
def test_flops_agree(eight_devices):
    """Those by shapes, and XLA's for the compiled step of 8 devices, whose loops run twice."""
    train = eight_devices[2]["train"]
    # XLA counts element-wise FLOPs too, half as many at this size. A loop counted once would be below 1.
    assert 1 < train["compiled_flops_all_chips"] / train["flops_all_chips"] < 1.6
    assert train["model_flops_all_chips"] < 0.8 * train["flops_all_chips"]


@pytest.mark.slow
def test_report(eight_devices):
    _, out, figures = eight_devices
    assert figures["mesh"] == {"replica": 1, "data": 2, "fsdp": 2, "tensor": 2} and figures["chips"] == 8
    assert figures["parameters"] == figures["trained_parameters"] > 30000
    train, search = figures["train"], figures["decode"]
    assert (train["dtype"], search["dtype"]) == ("bfloat16", "float32")  # the config's, and evaluation's
    assert train["batch"] == {"rows": 16, "source": 16, "target": 8}
    held = train["bytes"]
    # A quarter of the kernels and tables, and of their two moments; what is small is whole.
    assert figures["parameters"] < held["parameters"] < 2 * figures["parameters"]
    assert 2 * held["parameters"] < held["optimizer state"] < 2.02 * held["parameters"]  # and counts of updates
    batch = 4 * (2 * 16 + 8) * 4
    assert held["arguments"] == pytest.approx(3 * held["parameters"] + batch, rel=0.02)
    assert held["donated"] == pytest.approx(held["outputs"], rel=0.02) and held["temporaries"] > 0
    assert held["peak"] == held["arguments"] + held["outputs"] - held["donated"] + held["temporaries"]
    assert train["fits"] and train["bound"]["seconds"] == max(train["seconds"].values())
    chip = chips.CHIPS["v5e"]
    assert train["seconds"]["compute"] == pytest.approx(train["flops"] / chip.flops)
    assert train["seconds"]["memory"] == pytest.approx(train["bytes_moved"] / chip.bandwidth)
    assert train["seconds"]["network"] == pytest.approx(train["bytes_sent"] / chip.network)
    bound = train["bound"]["seconds"]
    assert train["mfu_bound"] == pytest.approx(train["model_flops_all_chips"] / bound / (8 * chip.flops))
    assert train["tokens_per_second_bound"] == pytest.approx(16 * (16 + 8) / bound)
    assert {"all-gather", "all-reduce"} <= train["collectives"].keys()
    assert train["bytes_sent"] == pytest.approx(sum(c["bytes_sent"] for c in train["collectives"].values()))

    assert search["batch"] == {"rows": 12, "source": 16, "beams": 2, "capacity": 32}
    # Keys and values of 2 layers: 3 rows, half of the heads, 8 features; 32 x 2 written positions, 16 of the source.
    cache = 2 * 2 * 4 * 3 * 2 * 8 * (2 * 32 + 16)
    small = 3 * 16 + 3 * 2 * 32 * 4 + 4  # mask, ancestry, index
    assert search["bytes"]["cache"] == cache + small
    assert search["cache_gathers"] == 0 and search["flops"] > 0
    assert search["seconds_before_the_first_step"]["compute"] > search["seconds"]["compute"]
    for line in ("mesh ", "MFU bound", "bound by network", "optimizer state", "a chip: fits", "cache exchanged"):
        assert line in out, out
    computed = [line.split()[2:] for line in out.splitlines() if "computed in" in line]
    assert [words[0] for words in computed] == ["bfloat16,", "float32,"]


def config_of(**values):
    data = {"train": "x", "max_source_length": 16, "max_target_length": 8}
    return from_mapping(TrainConfig, {"encoder": "x", "decoder": "x", "data": data, "num_steps": 1, **values})


def product_flops(jaxpr):
    """FLOPs of the matrix products of a jaxpr, those in a scan as often as it runs."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.size
            total += 2 * out * np.prod([left[axis] for axis in contracted])
        inner = sum(product_flops(sub) for sub in jax.extend.core.jaxprs_in_params(equation.params))
        total += inner * equation.params.get("length", 1)
    return total


MORE_STEPS = [
    (BERT, {"optimizer": {"freeze": ("encoder",)}}),
    (BERT, {"batch": {"size": 8, "accumulation": 2}, "remat": "dots_with_no_batch_dims"}),
    (LLAMA, {"remat": "save_attention_out"}),
    (LLAMA, {"remat": "save_mlp"}),
]


@pytest.mark.parametrize(
    "decoder, values",
    [
        (LLAMA, {"remat": "full"}),
        (BERT, {"optimizer": {"freeze": (r".*\.layers",)}, "warm_start": {"tie_encoder_decoder": "embeddings"}}),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE_STEPS),
    ],
)
def test_flops_of_the_traced_step(decoder, values):
    """The products that jax traces: other families, frozen parameters, policies, accumulation."""
    config, mesh = config_of(**{"batch": {"size": 8}, "dropout": 0.0, **values}), make_mesh()
    model = dryrun.abstract_model(config, BERT, decoder, mesh, jnp.float32)
    params = abstract_params(model, mesh, jnp.float32)
    training = make_training(config, model, params, 1)
    batch = {"input_ids": (8, 16), "attention_mask": (8, 16), "labels": (8, 8)}
    batch = {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name, shape in batch.items()}
    counted = product_flops(jax.make_jaxpr(training.train_step)(abstract_state(training, params), batch).jaxpr)
    flops = step_flops(training.model, training.groups.frozen, 8, 16, 8)
    assert counted == pytest.approx(flops.done, rel=0.02)
    assert (flops.done > flops.useful) == ("remat" in values)


def test_compute_is_bound_by_what_kernels_do_too():
    chip = chips.CHIPS["v5e"]
    shapes = StepFlops(useful=8 * 2 * chip.flops, done=8 * 3 * chip.flops)  # three seconds of 8 chips

    def bound(kernels):
        return dryrun.TrainReport(None, "", {}, shapes, Cost(flops=chip.flops, kernels=kernels), None).bounds(chip, 8)

    assert [bound(kernels).compute for kernels in (0, 1)] == [1.0, 3.0]


@pytest.fixture
def traced(monkeypatch):
    """Batch and program of each training step, which is traced and not compiled."""
    given = []

    def trace(step, mesh, state, batch):
        given.append((batch, str(step.trace(state, batch).jaxpr)))
        raise dryrun.DoesNotFit("")

    monkeypatch.setattr(dryrun, "_compiled", trace)
    return given


def dry_trained(config):
    mesh = make_mesh()
    return dryrun.dry_train(config, dryrun.abstract_model(config, BERT, BERT, mesh, jnp.float32), mesh)


@pytest.mark.parametrize("batch", [{}, {"packing": True}, {"packing": True, "pack_source_length": 40}])
def test_the_batch_is_the_runs(traced, batch):
    config = config_of(batch={"size": 2, **batch})
    dry_trained(config)
    lengths = np.array([16, 5, 9]), np.array([8, 3, 2])
    ids = [[np.ones(n, int).tolist() for n in side] for side in lengths]
    rows = datasets.Dataset.from_dict(dict(zip(("input_ids", "labels"), ids)))
    encoded = EncodedPairs(rows, rows, np.arange(3), *lengths, None, "")
    run = next(batches(encoded, BatchPlan(*lengths, config.batch, seed=0), 0, 1, source_pad_id=0)).arrays
    described = lambda arrays: {name: (x.shape, x.dtype) for name, x in arrays.items()}
    assert described(traced[0][0]) == described(run)


FLOAT32 = pytest.param("float32", set(), marks=pytest.mark.slow)
FLOAT16 = pytest.param("float16", {"f16"}, marks=pytest.mark.slow)


@pytest.mark.parametrize("dtype, short", [FLOAT32, ("bfloat16", {"bf16"}), FLOAT16])
def test_the_step_has_the_configs_dtype(traced, dtype, short):
    assert dry_trained(config_of(dtype=dtype)).dtype == dtype
    assert set(re.findall(r"\b(b?f16)\[", traced[0][1])) == short


@pytest.mark.slow
def test_what_a_step_holds(traced):
    """Moving averages and adapters too, which are all that is trained."""
    plain = dry_trained(config_of()).held
    assert dry_trained(config_of(ema_decay=0.9)).held == {**plain, "averages": plain["parameters"]}
    config = config_of(lora={"rank": 2})
    adapters = dry_trained(config).held["parameters"] - plain["parameters"]
    devices, chip = jax.devices()[:1], chips.CHIPS["v5e"]
    counted = report.report(config, (BERT, BERT), devices, chip, "one CPU", parts=())
    # Queries and values of 3 layers, of the encoder's one and the decoder's two blocks: 32 to 2 and 2 to 32 numbers.
    assert counted["trained_parameters"] == adapters / 4 == 3 * 3 * 2 * (2 * 32 * 2)
    assert counted["parameters"] == (plain["parameters"] + adapters) / 4


@pytest.mark.parametrize(
    "values, says",
    [
        ({"mesh": {"mode": "pmap"}}, "mesh.mode is 'pmap'.* give mesh.mode=jit"),
        ({"attention_impl": "splash"}, "'splash' needs a tpu, and these devices are of a cpu"),
    ],
)
def test_what_is_not_compiled_is_refused(values, says):
    common = (config_of(**values), (BERT, BERT), jax.devices()[:1], chips.CHIPS["v5e"])
    with pytest.raises(ValueError, match=says):
        report.report(*common, "one CPU")
    with pytest.raises(ValueError, match=says):
        mesh_search.search(*common, 1)


def test_examples_longer_than_the_model_are_refused():
    data = {"train": "x", "max_source_length": 520, "max_target_length": 8}
    with pytest.raises(ValueError, match="520 tokens is longer than the 512 positions"):
        dry_trained(config_of(data=data, batch={"size": 2, "packing": True}))


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--devices=2", "--search=1", "--parts=decode"], "--parts is decode; give --parts=train"),
        (["--topology=v5e:2x2", "--chip=v5p"], "--chip=v5p is for --devices"),
        (["--devices", "1", "--parts=none"], "--parts has none"),
    ],
)
def test_flags_that_do_not_agree(flags, says):
    code, _, said = process([sys.executable, "scripts/dryrun.py", "--config=configs/common.py", *flags])
    assert code != 0 and says in said


@pytest.mark.slow
def test_dtype_in_place_of_a_runs(tmp_path):
    output, small = tmp_path / "figures.json", json.dumps({**BERT, "num_hidden_layers": 1})
    flags = [
        "--devices=1",
        "--dtype=bfloat16",
        "--config.data.max_source_length=16",
        "--config.generation.max_length=8",
    ]
    flags += ["--config.data.max_target_length=8", f"--encoder_config={small}", f"--decoder_config={small}"]
    code, _, said = process(
        [sys.executable, "scripts/dryrun.py", "--config=configs/common.py", *flags, f"--output={output}"]
    )
    assert code == 0, said
    figures = json.loads(output.read_text())
    assert [figures[part]["dtype"] for part in ("train", "decode")] == ["bfloat16", "bfloat16"]
    halved = figures["decode"]["bytes"]["parameters"] / figures["train"]["bytes"]["parameters"]
    assert 0.5 <= halved < 0.6  # a tied table is given twice


def test_every_remat_policy_has_its_flops():
    assert set(RECOMPUTED) == set(REMATS)


def test_bounds():
    chip = chips.CHIPS["v5p"]
    found = dryrun.bounds(Cost(flops=459e12, bytes=2 * 2765e9), chip)
    assert tuple(found) == (1.0, 2.0, 0.0) and found.greatest == 2.0 and found.limit == "memory"


def test_out_of_memory():
    said = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm."
    assert dryrun.DoesNotFit(said).needed == 20.5 * 2**30
    assert dryrun.DoesNotFit("RESOURCE_EXHAUSTED").needed is None


@pytest.mark.parametrize(
    "name, says",
    [("v5e", "v5e:16x16"), ("v5f:2x2", "did you mean 'v5"), ("v5e:2x2x2", "2 axes"), ("v6e:32x32", "at most 256"),
     ("v5e:2xn", "CHIP:AxB"), ("v5p:0x2x2", "v5p:4x4x4")],
)  # fmt: skip
def test_bad_topologies(name, says):
    with pytest.raises(ValueError, match=says) as error:
        chips.tpu_devices(name)
    assert repr(name) in str(error.value)


LIBTPU_ERRORS = {
    "JAX TPU support not installed; cannot generate TPU topology.": (ModuleNotFoundError, r"pip install 'jax\[tpu\]'"),
    "ABORTED: Internal error when accessing libtpu multi-process lockfile.": (
        RuntimeError,
        "another process uses libtpu",
    ),
}


@pytest.mark.parametrize("error", LIBTPU_ERRORS)
def test_libtpu_is_missing_or_in_use(monkeypatch, error):
    def fail(**_):
        raise RuntimeError(error)

    monkeypatch.setattr(chips.topologies, "get_topology_desc", fail)
    kind, says = LIBTPU_ERRORS[error]
    with pytest.raises(kind, match=says):
        chips.tpu_devices("v5e:2x4")


def test_unknown_chips_and_missing_devices():
    with pytest.raises(ValueError, match="chip 'v5' is unknown: did you mean"):
        chips.chip_named("v5")
    with pytest.raises(ValueError, match="xla_force_host_platform_device_count=99"):
        chips.cpu_devices(99)


SMALL = [
    "--config=configs/common.py", "--config.data.max_source_length=128", "--config.data.max_target_length=64",
    "--config.batch.size=32", "--config.batch.buckets=1", "--config.remat=full", "--config.dropout=0.0",
    "--config.generation.max_length=64", "--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2",
]  # fmt: skip
SMALL += ["--config.dtype=bfloat16"]
SMALL += [f"--{role}_config={json.dumps({**BERT, 'vocab_size': 1000})}" for role in ("encoder", "decoder")]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install 'jax[tpu]'")
@pytest.mark.parametrize("attention", ["xla", "splash"])
def test_tpu_slice(tmp_path, attention):
    output = tmp_path / "figures.json"
    flags = [*SMALL, f"--config.attention_impl={attention}", "--config.data.max_target_length=128"]
    code, out, said = process(
        [sys.executable, "scripts/dryrun.py", *flags, "--topology=v5e:2x4", f"--output={output}"], XLA_FLAGS=""
    )
    assert code == 0, said
    figures = json.loads(output.read_text())
    train, search = figures["train"], figures["decode"]
    assert (train["dtype"], search["dtype"]) == ("bfloat16", "float32") and figures["chips"] == 8
    if attention == "xla":
        assert 1 < train["compiled_flops_all_chips"] / train["flops_all_chips"] < 1.6
        assert train["custom_kernels"] == 0
    else:
        # Of 9 blocks of attention, forward, once more (remat) and twice backward.
        assert train["custom_kernels"] == 36
    for part, kinds in ((train, ("parameters", "optimizer state")), (search, ("parameters", "cache"))):
        assert part["fits"] and all(part["bytes"][kind] > 0 for kind in (*kinds, "arguments", "peak"))
    assert search["cache_gathers"] == 0 and "cache exchanged" in out
    assert all(search["seconds"][name] > 0 for name in ("compute", "memory", "network"))


@pytest.mark.slow
def test_search_of_meshes(tmp_path):
    output = tmp_path / "figures.json"
    code, out, said = process(
        [sys.executable, "scripts/dryrun.py", *SMALL, "--devices=4", "--search=2", f"--output={output}"]
    )
    assert code == 0, said
    rows = json.loads(output.read_text())
    assert [row["compiled"] for row in rows] == [True, True, *[False] * (len(rows) - 2)]
    assert rows[0]["seconds"]["greatest"] <= rows[1]["seconds"]["greatest"] and rows[0]["peak_bytes"] > 0
    assert "MFU %" in out and "compiling 2" in said
