"""Names, groups and algorithms, on random gradients: stacked arrays against one array per layer."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from configs import bertsum, rothe
from seq2seq_jax.config import GroupConfig, LayerSettings, OptimizerConfig, TrainConfig, from_mapping
from seq2seq_jax.models.encoder_decoder import EncoderDecoder
from seq2seq_jax.models.param_layouts import scan_plan, unstack_layers
from seq2seq_jax.pretrained.pair import from_encoder_decoder_configs
from seq2seq_jax.training.configs import train_config
from seq2seq_jax.training.groups import assign_groups, check_unfreezing
from seq2seq_jax.training.optimizers import optimizer
from seq2seq_jax.training.parameter_names import depth_factor, parameter_names
from seq2seq_jax.training.schedules import learning_rate
from tests.weights.checkpoints import BERT, TOKENS

STEPS = 3


@pytest.fixture(scope="module")
def pair():
    """Four layers in the encoder, two in the decoder; the kernels are too small for adafactor to factor any."""
    encoder, decoder = {**BERT, "num_hidden_layers": 4}, {**BERT, "num_hidden_layers": 2}
    return from_encoder_decoder_configs(encoder, decoder, **TOKENS)


def part(params, *wanted):
    """A smaller tree, quicker to compile; the layers' arrays are whole."""
    flat = flatten_dict(params, sep="/")
    return unflatten_dict({p: x for p, x in flat.items() if re.search("|".join(wanted), p)}, sep="/")


def gradients(params, seed=0):
    rng = np.random.default_rng(seed)
    return [
        jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), jnp.float32), params) for _ in range(STEPS)
    ]


def by_name(config, tree):
    """{name: array} with one array per layer."""
    out = {}
    flat = {path: np.asarray(x) for path, x in flatten_dict(tree, sep="/").items()}
    for path, names in parameter_names(config, flat).items():
        out |= {names: flat[path]} if isinstance(names, str) else dict(zip(names, flat[path], strict=True))
    return out


def trained(config, pair_config, params, grads):
    """Parameters by name after the steps, with their groups' gradient mask; and the last state."""
    groups = assign_groups(config, pair_config, params, 10)
    tx = optimizer(config, groups)

    @jax.jit
    def run(params):
        state = tx.init(params)
        for count, grad in enumerate(grads):
            updates, state = tx.update(groups.mask_gradients(grad, jnp.asarray(count)), state, params)
            params = optax.apply_updates(params, updates)
        return params, state

    params, state = run(params)
    return by_name(pair_config, params), state


def alone(tx, params, grads):
    """What optax makes of arrays of their own."""

    @jax.jit
    def run(params):
        state = tx.init(params)
        for grad in grads:
            updates, state = tx.update({name: grad[name] for name in params}, state, params)
            params = optax.apply_updates(params, updates)
        return params

    return run(params)


def test_names(pair):
    """Each is where `unstack_layers` puts its layer, also where the layers' pattern has a period, a head and a tail."""
    patterned = tuple(LayerSettings(window=w) for w in (7, None, 3, None, 3, None, 5))
    config = pair.config
    encoder = dataclasses.replace(config.encoder, num_layers=7, layer_pattern=patterned)
    config = dataclasses.replace(config, encoder=encoder)
    assert scan_plan(encoder) == (1, 2, 2)
    shapes = flatten_dict(jax.tree.map(lambda x: x.value.shape, EncoderDecoder(config).parameter_shapes(),
                                       is_leaf=lambda x: hasattr(x, "names")), sep="/")  # fmt: skip
    rng = np.random.default_rng(0)
    flat = {path: rng.standard_normal(shape) for path, shape in shapes.items()}
    named, tree = by_name(config, unflatten_dict(flat, sep="/")), unflatten_dict(flat, sep="/")
    for side in ("encoder", "decoder"):
        layers = unstack_layers(getattr(config, side), tree[side].pop("layers"))
        for path, value in flatten_dict(layers, sep="/").items():
            name = f"{side}.layers.{path.removeprefix('layers_').replace('/', '.')}"
            np.testing.assert_array_equal(named.pop(name), value, err_msg=name)
    for path in flatten_dict(tree, sep="/"):
        named.pop(path.replace("/", "."))
    assert not named and "decoder.embeddings.token.embedding" in by_name(config, unflatten_dict(flat, sep="/"))


GROUPS = (
    {"match": r"encoder\.layers\.[01]\.", "freeze": True},
    {"match": r"encoder\.layers\.2\.", "learning_rate": 3e-2, "schedule": "constant"},
    {"match": r"encoder\.", "learning_rate_scale": 0.5, "weight_decay": 0.3},
    {"match": r"\.bias$", "weight_decay": 0.0, "warmup_steps": 2},
    {"match": ".*"},
)
PARTS = ("self.*query/kernel", "mlp/up/bias", "decoder/embeddings/token/", "head/bias")


def expected_rule(name):
    """(index of the group, weight decay, schedule) by hand."""
    linear = dict(schedule="linear", warmup_steps=0)
    if re.match(r"encoder\.layers\.[01]\.", name):
        return None
    if name.startswith("encoder.layers.2."):
        return 0.1, OptimizerConfig(learning_rate=3e-2, schedule="constant")
    if name.startswith("encoder."):
        return 0.3, OptimizerConfig(learning_rate=5e-3, **linear)
    if name.endswith(".bias"):
        return 0.0, OptimizerConfig(learning_rate=1e-2, warmup_steps=2)
    return 0.1, OptimizerConfig(learning_rate=1e-2, **linear)


def grouped(**changes):
    values = {"learning_rate": 1e-2, "weight_decay": 0.1, "clip_norm": None, "groups": GROUPS}
    return OptimizerConfig(**{**values, **changes})


def test_groups_are_unstacked_adamw(pair):
    params = part(pair.params, *PARTS)
    grads = gradients(params)
    ours, state = trained(grouped(), pair.config, params, grads)
    before, named = by_name(pair.config, params), [by_name(pair.config, g) for g in grads]
    rules = {}
    for name in before:
        rules.setdefault(expected_rule(name), []).append(name)
    assert len(rules) == 5
    for name in rules.pop(None):
        np.testing.assert_array_equal(ours[name], before[name], err_msg=name)
    for (decay, schedule), names in rules.items():
        tx = optax.adamw(learning_rate(schedule, 10), weight_decay=decay)
        for name, value in alone(tx, {name: before[name] for name in names}, named).items():
            np.testing.assert_allclose(ours[name], value, rtol=2e-5, atol=1e-7, err_msg=name)
    # Frozen layers inside the stacked array have empty moments.
    moments = flatten_dict(state.arrays, sep="/")["encoder/layers/stacked/block_0/mlp/up/bias"].mu
    assert not moments[:2].any() and moments[2:].all()


@pytest.mark.parity
def test_groups_are_torch_adamw(pair):
    torch = pytest.importorskip("torch")
    params = part(pair.params, *PARTS)
    grads = gradients(params)
    ours, _ = trained(grouped(clip_norm=3.0), pair.config, params, grads)
    before = by_name(pair.config, params)
    tensors = {n: torch.nn.Parameter(torch.tensor(x)) for n, x in before.items() if expected_rule(n) is not None}
    rules = {name: expected_rule(name) for name in tensors}
    theirs = torch.optim.AdamW(
        [{"params": [tensor], "weight_decay": rules[name][0], "name": name} for name, tensor in tensors.items()]
    )
    for count, grad in enumerate(grads):
        for name, value in by_name(pair.config, grad).items():
            if name in tensors:
                tensors[name].grad = torch.tensor(value)
        torch.nn.utils.clip_grad_norm_(tensors.values(), 3.0)
        for group in theirs.param_groups:
            group["lr"] = float(learning_rate(rules[group["name"]][1], 10)(count))
        theirs.step()
    for name, tensor in tensors.items():
        np.testing.assert_allclose(ours[name], tensor.detach().numpy(), rtol=2e-5, atol=1e-6, err_msg=name)


def unstacked(name, shape):
    """optax's own optimizer of one layer's array, settings of `grouped` written out."""
    schedule = learning_rate(OptimizerConfig(learning_rate=1e-2), 10)
    decayed = lambda tx: optax.chain(tx, optax.add_decayed_weights(0.1), optax.scale_by_learning_rate(schedule))
    if name == "lion":
        return optax.lion(schedule, 0.9, 0.999, weight_decay=0.1)
    if name == "adafactor":
        parts = optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0), optax.scale_by_param_block_rms()
        return decayed(optax.chain(*parts))
    axes = {(12, 3, 4): ((0,), (2,)), (3, 4, 12): ((1,), (2,)), (12, 20): (0, 1)}.get(shape)
    if axes is None:  # biases, norms, the embedding table
        return optax.adamw(schedule, weight_decay=0.1)
    numbers = optax.contrib.MuonDimensionNumbers(*axes)
    specs = lambda params: jax.tree.map(lambda _: numbers, params)
    return optax.contrib.muon(schedule, weight_decay=0.1, muon_weight_dimension_numbers=specs, consistent_rms=0.2)


@pytest.mark.parametrize("name", ["adafactor", "lion", "muon"])
def test_algorithms_are_their_unstacked_runs(pair, name):
    params = part(pair.params, "encoder/.*(query|out|mlp/up)/", "encoder/embeddings/token/")
    grads = gradients(params)
    config = grouped(name=name, groups=())
    ours, _ = trained(config, pair.config, params, grads)
    before, named = by_name(pair.config, params), [by_name(pair.config, g) for g in grads]
    for key, value in ours.items():
        assert np.abs(value - before[key]).max() > 1e-5, key
    shapes = {x.shape for x in before.values()} if name == "muon" else {None}
    for shape in shapes:
        chosen = {key: x for key, x in before.items() if shape in (None, x.shape) and not re.search("[12]", key)}
        for key, value in alone(unstacked(name, shape), chosen, named).items():
            np.testing.assert_allclose(ours[key], value, rtol=1e-4, atol=2e-6, err_msg=key)


def test_clipping_by_0_is_none(pair):
    """As in transformers' max_grad_norm."""
    params = part(pair.params, "head/bias")
    grads = gradients(params)
    ours, none, one = (
        trained(grouped(clip_norm=norm, groups=()), pair.config, params, grads)[0]["decoder.head.bias"]
        for norm in (0.0, None, 1e-9)
    )
    np.testing.assert_array_equal(ours, none)
    assert np.abs(none - one).max() > 1e-3, "clipping acts"


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion", "muon"])
def test_a_step_that_is_not_good_changes_nothing(pair, name):
    params = part(pair.params, "encoder/.*mlp/up/")
    tx = optimizer(grouped(name=name, groups=()), assign_groups(grouped(name=name, groups=()), pair.config, params, 10))
    wrong, right = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), params), jax.tree.map(jnp.ones_like, params)
    _, before = jax.jit(tx.update)(right, tx.init(params), params)
    updates, after = jax.jit(tx.update)(wrong, before, params, good=jnp.asarray(False))
    assert not any(np.any(x) for x in jax.tree.leaves(updates))
    jax.tree.map(np.testing.assert_array_equal, after, before)


def test_adafactor_factors_attention_kernels_over_all_heads(pair):
    wide = {"encoder": {"layers": {"stacked": {"block_0": {"self_attention": {
        "query": {"kernel": jnp.ones((4, 128, 2, 64))}, "out": {"kernel": jnp.ones((4, 2, 64, 128))}}}}}}}  # fmt: skip
    config = grouped(name="adafactor", groups=())
    state = optimizer(config, assign_groups(config, pair.config, wide, 10)).init(wide)
    for found in flatten_dict(state.arrays, sep="/").values():
        assert found[0].v_row.shape == found[0].v_col.shape == (4, 128), found[0]


def test_layer_decay(pair):
    factor = lambda name: round(depth_factor(pair.config, name, 0.5), 6)
    assert [factor(f"encoder.layers.{i}.mlp.up.bias") for i in range(4)] == [1 / 16, 1 / 8, 1 / 4, 1 / 2]
    assert factor("decoder.layers.1.mlp.up.bias") == factor("lora.decoder.layers.1.mlp.up.kernel.a") == 0.5
    assert factor("encoder.embeddings.token.embedding") == 1 / 32 and factor("decoder.embeddings.norm.scale") == 1 / 8
    assert factor("decoder.head.bias") == factor("encoder.final_norm.scale") == factor("enc_to_dec_proj.bias") == 1
    params = part(pair.params, "mlp/up/bias", "head/bias")
    config = grouped(name="lion", weight_decay=0.0, schedule="constant", layer_decay=0.5, groups=())
    ours, _ = trained(config, pair.config, params, gradients(params)[:1])
    before = by_name(pair.config, params)
    for name, value in ours.items():
        np.testing.assert_allclose(np.abs(value - before[name]).max(), 1e-2 * factor(name), rtol=1e-3, err_msg=name)


def test_unfreezing(pair):
    """Before its step a layer stays, with empty moments; then it begins as if the run began."""
    rules = (
        {"match": r"encoder\.layers\.3\.", "unfreeze_step": 2},
        {"match": r"encoder\.layers\.2\."},
        {"match": ".*"},
    )
    params = part(pair.params, "encoder/.*mlp/up/bias", "head/bias")
    config, grads = grouped(groups=rules), gradients(params)
    name, before = "encoder.layers.3.mlp.up.bias", by_name(pair.config, params)
    ours, state = trained(config, pair.config, params, grads[:2])
    np.testing.assert_array_equal(ours[name], before[name])
    adam = state.arrays["encoder"]["layers"]["stacked"]["block_0"]["mlp"]["up"]["bias"]
    assert not adam.mu[3].any() and not adam.nu[3].any() and list(adam.count) == [2, 2, 2, 0] and adam.mu[:3].all()
    ours, _ = trained(config, pair.config, params, grads)
    rate = float(learning_rate(OptimizerConfig(learning_rate=1e-2), 10)(2))
    named = [by_name(pair.config, grads[2])]
    expected = alone(optax.adamw(rate, weight_decay=0.1), {name: before[name]}, named)
    np.testing.assert_allclose(ours[name], expected[name], rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"groups": ({"match": "encoder"},)},
            r"parameter decoder\.\S+ is matched by none of optimizer\.groups; add a la",
        ),
        ({"groups": ({"match": ".*"}, {"match": "encoder"})}, r"groups\[1\] \('encoder'\) gets no parameter"),
        ({"groups": ({"match": "encodr"}, {"match": ".*"})}, r"groups\[0\] \('encodr'\) gets no parameter"),
        ({"freeze": (".*/embeding",), "groups": ()}, r"freeze '\.\*\\\\\.embeding' matches no parameter"),
        ({"freeze": (".*",), "groups": ()}, "leave nothing to train"),
        (
            {"groups": ({"match": r"encoder\.layers\.1\.", "optimizer": "lion"}, {"match": ".*"})},
            r"the layers of encoder/layers/stacked/\S+ are stored as one array, and .* adamw and lion; give",
        ),
    ],
)
def test_groups_that_do_not_fit(pair, changes, message):
    with pytest.raises(ValueError, match=message):
        assign_groups(grouped(**changes), pair.config, pair.params, 10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"groups": ({"match": "a", "weight_deca": 1},)},
            r"groups\[0\]\.weight_deca is unknown: did you mean 'weight_d",
        ),
        ({"groups": ({"learning_rate": 1.0},)}, r"groups\[0\]\.match is missing"),
        ({"groups": ({"match": "a("},)}, r"'a\(' is no regular expression"),
        ({"groups": ({"match": "a", "optimizer": "lio"},)}, "'lio' is unknown: did you mean 'lion'"),
        ({"groups": ({"match": "a", "learning_rate": 1.0, "learning_rate_scale": 1.0},)}, "has both learning_rate and"),
        ({"groups": ({"match": "a", "freeze": True, "unfreeze_step": 3},)}, "has both freeze and unfreeze_step"),
        ({"groups": ({"match": "a", "unfreeze_step": -3},)}, r"unfreeze_step is -3; give a whole number from 0"),
        ({"groups": ({"match": "a", "schedule": "noam"},)}, "schedule is noam and warmup_steps 0"),
        ({"name": "adam"}, "optimizer.name 'adam' is unknown: did you mean 'adamw'"),
        ({"layer_decay": 1.5}, r"layer_decay is 1\.5"),
        ({"skip_above": 5.0}, "skip_above is given and max_skipped is 0"),
        ({"b2": 1.0}, r"optimizer\.b2 is 1\.0"),
        ({"clip_norm": -1.0}, r"clip_norm is -1\.0; give a number above 0, or 0 for no clipping"),
        ({"eps": 0.0}, r"optimizer\.eps is 0\.0; give a number above 0"),
        ({"weight_decay": -0.1}, r"optimizer\.weight_decay is -0\.1; give a number from 0 up"),
        ({"groups": ({"match": "a", "weight_decay": -0.1},)}, r"groups\['a'\]\.weight_decay is -0\.1; give"),
        (
            {"groups": ({"match": "a", "freeze": True, "weight_decay": 0.0, "optimizer": "lion"},)},
            r"groups\['a'\] has both freeze and weight_decay, optimizer; what is frozen is not updated",
        ),
        (
            {"groups": ({"match": "a", "name": "low"}, {"match": "b", "name": "low"})},
            "2 groups whose metrics would be called 'low' .*; give each a name",
        ),
        ({"groups": ({"match": "a"}, {"match": "b", "name": "a"})}, "2 groups whose metrics would be called 'a'"),
    ],
)
def test_settings_that_are_wrong(changes, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**changes)


@pytest.mark.parametrize("name", ["learning_rate", "learning_rate_scale", "warmup_steps", "schedule"])
def test_a_frozen_group_has_no_rate(name):
    value = "constant" if name == "schedule" else 1
    with pytest.raises(ValueError, match=f"has both freeze and {name};"):
        GroupConfig("a", freeze=True, **{name: value})


def test_a_group_that_would_never_be_trained():
    config = OptimizerConfig(groups=({"match": "encoder", "unfreeze_step": 3}, {"match": ".*"}))
    check_unfreezing(config, 4)  # its last step trains them
    with pytest.raises(ValueError, match=r"groups\['encoder'\]\.unfreeze_step is 3, and the run has 3 steps.*=True"):
        check_unfreezing(config, 3)


def test_groups_in_a_config():
    """Groups come through an ml_collections config, as a tuple of mappings."""
    config = train_config({"encoder": "a", "decoder": "b", "data": {"train": "c"}, "num_steps": 1})
    config.optimizer.groups = ({"match": "encoder", "learning_rate": 1e-3}, {"match": ".*"})
    made = from_mapping(TrainConfig, config.to_dict()).optimizer.groups
    assert [group.match for group in made] == ["encoder", ".*"] and made[0].learning_rate == 1e-3


def test_noam():
    """Liu & Lapata 2019: lr * min(step^-0.5, step * warmup^-1.5), step counted from 1."""
    rate = learning_rate(OptimizerConfig(learning_rate=2e-3, schedule="noam", warmup_steps=20000), 200000)
    for step in (1, 100, 20000, 20001, 200000):
        expected = 2e-3 * min(step**-0.5, step * 20000**-1.5)
        assert float(rate(jnp.asarray(step - 1))) == pytest.approx(expected, rel=1e-5), step
        assert float(rate(step - 1)) == pytest.approx(expected, rel=1e-5), step


def test_configs_of_papers():
    made = {}
    for name, recipe in (("bertsum", bertsum), ("rothe", rothe)):
        config = recipe.get_config()
        config.update({"encoder": "a", "decoder": "b"})
        config.data.train = "c"
        made[name] = from_mapping(TrainConfig, config.to_dict())
    encoder, decoder = made["bertsum"].optimizer.groups
    assert (encoder.match, encoder.learning_rate, encoder.warmup_steps) == (r"encoder\.", 2e-3, 20000)
    assert (decoder.match, decoder.learning_rate, decoder.warmup_steps) == (".*", 0.1, 10000)
    assert made["bertsum"].optimizer.schedule == "noam"
    # The peak, at the end of 40,000 steps of warm-up: 0.05 / sqrt(768) / sqrt(40000).
    rate = learning_rate(made["rothe"].optimizer, made["rothe"].num_steps)
    assert float(rate(39999)) == pytest.approx(0.05 / 768**0.5 / 200, rel=1e-5)
