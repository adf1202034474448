"""Pretrained pairs: from two checkpoints, from one, from configs."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh
from safetensors.numpy import load_file

from seq2seq_jax.config import EncoderDecoderConfig, GenerationConfig
from seq2seq_jax.decoding.generate import GenerateOutput, compile_generate, generate
from seq2seq_jax.families import registry
from seq2seq_jax.models.encoder_decoder import EncoderDecoder
from seq2seq_jax.models.layers import Dtype
from seq2seq_jax.pretrained import orbax
from seq2seq_jax.pretrained.saving import ASIDE, EXTRAS
from seq2seq_jax.text.tokenizer_files import plain_strings
from seq2seq_jax.weights import hf_config, initialization
from seq2seq_jax.weights.files import Checkpoint, local_directory, read_json
from seq2seq_jax.weights.gguf_files import find_gguf, open_checkpoint, read_config
from seq2seq_jax.weights.loading import Loader, Side
from seq2seq_jax.weights.report import Report
from seq2seq_jax.weights.soundness import check_not_quantised
from seq2seq_jax.weights.state_dicts import rooted


@dataclass(frozen=True)
class Pretrained:
    """A model with its parameters and all that is needed to use it and to write it back.

    Attributes:
      model: the linen module. params: its once-stored parameters.
      generation_config: the checkpoint's own way of generating.
      report: what became of every tensor.
      aside: tensors that no forward pass reads, by torch name. dtypes: the source's dtype of each torch tensor.
      generation_source: the generation_config.json that generation_config came from.
    """

    model: EncoderDecoder
    params: Mapping[str, Any]
    generation_config: GenerationConfig = field(default_factory=GenerationConfig)
    report: Report = field(default_factory=Report)
    aside: Mapping[str, np.ndarray] = field(default_factory=dict)
    dtypes: Mapping[str, str] = field(default_factory=dict)
    generation_source: Mapping[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> EncoderDecoderConfig:
        return self.model.config

    def generate(self, input_ids=None, attention_mask=None, generation_config=None, **options) -> GenerateOutput:
        """`seq2seq_jax.generate` with this pair's model, parameters and generation_config."""
        settings = self.generation_config if generation_config is None else generation_config
        return generate(self.model, self.params, input_ids, attention_mask, settings, **options)

    def compile_generate(self, shape: tuple[int, int], generation_config=None, **options) -> None:
        """`seq2seq_jax.decoding.generate.compile_generate` with the same."""
        settings = self.generation_config if generation_config is None else generation_config
        compile_generate(self.model, self.params, shape, settings, **options)

    def for_decoding(self) -> Pretrained:
        """The pair for use alone: its parameters are in the form that `generate` wants, which else makes and keeps a
        second copy of them, with `quantize` as int8. To train, save, resize or quantise, take the pair that it was made
        of; of this one the last three raise ValueError."""
        if self.model.unrolled:
            return self
        return self.replace(model=self.model.for_decoding(), params=self.model.decoding_params(self.params))

    def check_stored(self, purpose: str) -> None:
        """Raises ValueError if parameters in decoding form were to be put to `purpose`."""
        if self.model.unrolled:
            raise ValueError(f"this pair is in decoding form, which {purpose}; take the pair it was made of")

    def replace(self, **changes: Any) -> Pretrained:
        """A copy with fields replaced, such as `params` after training."""
        return dataclasses.replace(self, **changes)


def quantize(pretrained: Pretrained) -> Pretrained:
    """The pair, decoding with int8: kernels of all layers and the head, one scale an output, and the tokens that meet
    them, one scale a token. Parameters, training and saving are as before; outputs may differ a little.
    """
    pretrained.check_stored("has the kernels that it has")
    return pretrained.replace(model=pretrained.model.clone(int8=True))


def from_pretrained(
    path_or_id: str | os.PathLike,
    *,
    dtype: Dtype = jnp.float32,
    param_dtype: Dtype = jnp.float32,
    mesh: Mesh | None = None,
    params_directory: str | os.PathLike | None = None,
    generation_config: GenerationConfig | Mapping[str, Any] | Any = None,
) -> Pretrained:
    """Loads a pair that torch's EncoderDecoderModel, `save_pretrained` or `save_orbax` wrote, or a whole
    sequence-to-sequence model of a class of its own (BART, T5 ...).

    Args:
      path_or_id: a directory, or a hub id.
      params_directory: a checkpoint of a run (`<workdir>/checkpoints/<step>`), if `path_or_id` is the run's `model/`.
      dtype: of the computation. param_dtype: of the parameters.
      mesh: each device gets its part of the parameters only.
      generation_config: in place of the directory's generation_config.json (its token ids fill what this leaves out): a
        GenerationConfig, a mapping with such a file's fields, or a transformers.GenerationConfig. What a file says is
        read as transformers 5 acts on it; what is left out or read otherwise stands in the report.

    Raises:
      FileNotFoundError, ValueError: naming the file, tensor or field at fault and what to do.
    """
    directory = local_directory(path_or_id)
    hf = read_config(directory)
    report = Report()
    generation, generation_source = hf_config.merged_generation(
        hf, directory / "generation_config.json", generation_config, report
    )
    orbax_params = params_directory is not None or (directory / orbax.PARAMS).is_dir()
    checkpoint = None if orbax_params else open_checkpoint(directory, report.note)
    config = _pair_config(hf, mesh, directory)
    if checkpoint is not None:
        checkpoint = _rooted(checkpoint, hf, _own_sides(config, checkpoint), "pair", report)
        hf = _with_head_of(hf, checkpoint)
        config = _pair_config(hf, mesh, directory)
    config = dataclasses.replace(config, **hf_config.pair_tokens(config, hf, generation, report))
    model = EncoderDecoder(config, dtype=dtype, param_dtype=param_dtype)
    if checkpoint is None:
        params = orbax.restore_params(Path(params_directory or directory), model, mesh=mesh, dtype=param_dtype)
        extras = read_json(directory / EXTRAS)
        for path in flatten_dict(params, sep="/"):
            report.add(path.split("/")[0], path, "copied")
        aside = load_file(directory / ASIDE) if (directory / ASIDE).exists() else {}
        return Pretrained(model, params, generation, report, aside, extras["dtypes"], generation_source)
    stray = [n for n in checkpoint if not n.startswith(("encoder.", "decoder.", "enc_to_dec_proj."))]
    if stray and config.is_pair:
        raise ValueError(f"{directory}: nothing is known about the tensor {stray[0]!r} in an encoder-decoder pair")

    def new_value(path, shape, read):
        if path == "decoder/head/bias" and not config.is_pair:  # older files may lack final_logits_bias
            return np.zeros(shape, np.float32), "zero"
        return None

    loader = Loader(model, _own_sides(config, checkpoint), report, new_value, compare_ties=True)
    params = loader.load(mesh, param_dtype)
    return Pretrained(model, params, generation, report, loader.aside, loader.dtypes, generation_source)


def from_encoder_decoder_pretrained(
    encoder: str | os.PathLike,
    decoder: str | os.PathLike,
    *,
    tie_encoder_decoder: bool | str | tuple = False,
    cross_attention_init: str | None = None,
    head_init: str = "normal",
    seed: int = 0,
    decoder_start_token_id: int | None = None,
    pad_token_id: int | None = None,
    eos_token_id: int | tuple[int, ...] | None = None,
    dtype: Dtype = jnp.float32,
    param_dtype: Dtype = jnp.float32,
    mesh: Mesh | None = None,
    **overrides: Any,
) -> Pretrained:
    """Joins a pretrained encoder and a pretrained decoder (EncoderDecoderModel.from_encoder_decoder_pretrained).

    Args:
      encoder, decoder: directories or hub ids of the two checkpoints, or GGUF files of language models; whole
        sequence-to-sequence checkpoints give their half.
      tie_encoder_decoder: False, True (all that both sides have is stored once, from the encoder), "embeddings", or
        aliases.
      cross_attention_init: how absent cross-attention begins: "normal" (torch's), "zero", "self_attention",
        "identity", or "aligned" (identity across different widths and vocabularies); None: "normal" where torch's
        class has cross-attention or its norms stand behind, else "zero".
      head_init: how an absent head transform begins: "normal" or "identity".
      seed: of the random ones.
      decoder_start_token_id, pad_token_id, eos_token_id: None: from the decoder's config.json, else its tokenizer.
      overrides: encoder_<field> and decoder_<field>, Hugging Face's names; also encoder_num_hidden_layers (the first
        layers), encoder_keep_layers (their numbers), encoder_max_position_embeddings (the table is resized), and the
        same for the decoder.
    """
    report = Report()
    paths = {"encoder": local_directory(encoder), "decoder": local_directory(decoder)}
    hf = {role: read_config(path) for role, path in paths.items()}
    options = hf_config.split_overrides(overrides)
    checkpoints, keeps, depths = {}, {}, {}
    for role, source in hf.items():
        side, checkpoint = hf_config.side_from_hf(source, role), open_checkpoint(paths[role], report.note)
        depths[role] = side.stored_layers
        alone = {role: Side(role, side, checkpoint, "", tuple(range(depths[role])))}
        checkpoints[role] = _rooted(checkpoint, source, alone, role, report)
        source = _with_head_of(source, checkpoints[role]) if role == "decoder" else source
        hf[role], keeps[role] = hf_config.overridden(source, role, options[role], depths[role])
    tokens = (decoder_start_token_id, pad_token_id, eos_token_id)
    config = new_pair(hf["encoder"], hf["decoder"], tie_encoder_decoder, mesh, tokens, paths["decoder"], report)
    natural = registry.family_of(hf["decoder"]).torch_cross or config.decoder.norm_position == "post"
    method = cross_attention_init or ("normal" if natural else "zero")
    initialization.check_choices(config, method, head_init)

    sides = {}
    for role, side in hf_config.sides(config):
        cut, resize = len(keeps[role]) < depths[role], hf_config.resizes(options[role])
        sides[role] = Side(role, side, checkpoints[role], "", keeps[role], cut=cut, resize=resize)
    model = EncoderDecoder(config, dtype=dtype, param_dtype=param_dtype)

    choices = {"seed": seed, "cross_attention_init": method, "head_init": head_init}

    def new_value(path, shape, read):
        if not initialization.MAY_BE_NEW.match(path):
            return None
        return initialization.new_value(path, shape, config.decoder, read=read, **choices)

    loader = Loader(model, sides, report, new_value, compare_ties=False)
    if method == "aligned":
        choices.update(alignment=_alignment(loader, paths, report), projected=config.has_projection)
    params = loader.load(mesh, param_dtype)
    new_head = [entry.name for entry in report.of("initialised", "decoder") if entry.name.startswith("decoder/head/")]
    if new_head:
        report.note(f"{paths['decoder']} has no whole language-model head; {', '.join(new_head)} begin untrained")
    return Pretrained(model, params, GenerationConfig(), report, loader.aside, loader.dtypes)


def from_encoder_decoder_configs(
    encoder_config: Mapping[str, Any] | str | os.PathLike,
    decoder_config: Mapping[str, Any] | str | os.PathLike,
    *,
    tie_encoder_decoder: bool | str | tuple = False,
    seed: int = 0,
    decoder_start_token_id: int | None = None,
    pad_token_id: int | None = None,
    eos_token_id: int | tuple[int, ...] | None = None,
    dtype: Dtype = jnp.float32,
    param_dtype: Dtype = jnp.float32,
    mesh: Mesh | None = None,
) -> Pretrained:
    """A pair with random weights (EncoderDecoderConfig.from_encoder_decoder_configs).

    Args:
      encoder_config, decoder_config: config.json contents, with at least `model_type`, or paths to such files; fields
        left out have the torch class's defaults.
    """
    given = (encoder_config, decoder_config)
    hf = [registry.with_model_type(c) if isinstance(c, Mapping) else hf_config.read_config(Path(c)) for c in given]
    report = Report()
    tokens = (decoder_start_token_id, pad_token_id, eos_token_id)
    config = new_pair(*hf, tie_encoder_decoder, mesh, tokens, None, report)
    sides = {r: Side(r, c, None, "", tuple(range(c.stored_layers))) for r, c in hf_config.sides(config)}
    model = EncoderDecoder(config, dtype=dtype, param_dtype=param_dtype)

    def new_value(path, shape, read):
        side = config.encoder if path.startswith("encoder/") else config.decoder
        return initialization.random_value(seed, path, shape, side), "normal"

    loader = Loader(model, sides, report, new_value, compare_ties=False)
    params = loader.load(mesh, param_dtype)
    return Pretrained(model, params, GenerationConfig(), report)


def _alignment(loader: Loader, paths: Mapping[str, Path], report: Report) -> initialization.Alignment:
    """The map between the sides' token embeddings, from their tokenizers' strings."""
    tables, strings = [], []
    for role, side in loader.sides.items():
        if side.config.embedding_size != side.config.hidden_size:
            raise ValueError(
                f"cross_attention_init='aligned' needs token embeddings as wide as the states, and the {role}'s are"
                f" {side.config.embedding_size}, not {side.config.hidden_size}; use 'identity' or 'normal'"
            )
        tables.append(loader.token_table(role).astype(np.float32))
        strings.append(plain_strings(paths[role], side.config.source, side.config.vocab_size))
    config = loader.model.config
    intercept = config.has_projection or config.decoder.attention_bias
    alignment = initialization.align(*tables, *strings, intercept=intercept)
    report.note(f"cross-attention is aligned by {alignment.shared} strings that both vocabularies hold")
    return alignment


def _pair_config(hf: Mapping[str, Any], mesh: Mesh | None, directory: Path) -> EncoderDecoderConfig:
    try:
        return hf_config.pair_from_hf(hf, mesh)
    except ValueError as error:
        raise ValueError(f"{find_gguf(directory) or directory / 'config.json'}: {error}") from None


def _own_sides(config: EncoderDecoderConfig, checkpoint: Any) -> dict[str, Side]:
    """Both sides of a pair's own file, or of a whole model's."""
    out = {}
    for role, side in hf_config.sides(config):
        outer, keep = f"{role}." if config.is_pair else "", tuple(range(side.stored_layers))
        out[role] = Side(role, side, checkpoint, outer, keep, whole=not config.is_pair)
    return out


def _rooted(checkpoint: Any, hf: Mapping[str, Any], sides: Mapping[str, Side], part: str, report: Report) -> Any:
    """The checkpoint of `sides`, not quantised, by names without what its writer put in front."""
    check_not_quantised(checkpoint, hf, checkpoint.directory)
    wanted = [name for side in sides.values() for name in side.wanted()]
    what = f"{hf['model_type']} {part}"
    elsewhere = sides[part].elsewhere if part in sides else ()
    return rooted(checkpoint, wanted, what, part, report, elsewhere)


def _with_head_of(hf: Mapping[str, Any], checkpoint: Checkpoint) -> dict[str, Any]:
    """config.json, saying of a head that is tied by the file (see Family.head_by_file) what the file says."""
    outer = "decoder." if {"encoder", "decoder"} <= hf.keys() else ""
    side = dict(hf["decoder"] if outer else hf)
    if side.get("model_type") not in registry.BY_MODEL_TYPE or not registry.family_of(side).head_by_file:
        return dict(hf)
    head = f"{outer}lm_head.weight"
    tables = [n for n in (f"{outer}shared.weight", f"{outer}decoder.embed_tokens.weight") if n in checkpoint]
    own = head in checkpoint and tables and not np.array_equal(checkpoint.read(head), checkpoint.read(tables[0]))
    if side["model_type"] != "mt5":
        side.setdefault("scale_decoder_outputs", side.get("tie_word_embeddings") is not False)
    side["tie_word_embeddings"] = not own
    return {**hf, "decoder": side} if outer else side


def new_pair(encoder, decoder, tie, mesh, tokens, directory, report) -> EncoderDecoderConfig:
    """The config of a pair that did not exist before."""
    top = {"model_type": hf_config.PAIR_TYPES[0], "is_encoder_decoder": True, "encoder": encoder, "decoder": decoder}
    config = hf_config.pair_from_hf(top, mesh, tie=tie)
    found = hf_config.derive_tokens(registry.with_defaults(decoder), directory, *tokens, report)
    return dataclasses.replace(config, **found)
