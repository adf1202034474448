"""The pair: an encoder, a decoder that reads it through cross-attention, and a projection where their widths differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from seq2seq_jax.config import EncoderDecoderConfig, LossConfig
from seq2seq_jax.models import ties
from seq2seq_jax.models.cache import Cache
from seq2seq_jax.models.inputs import check_encoder_inputs, check_inputs
from seq2seq_jax.models.int8 import quantise
from seq2seq_jax.models.kernels import segment_ids, takes_segment_ids
from seq2seq_jax.models.layers import Dtype, Projection
from seq2seq_jax.models.losses import IGNORED, cross_entropy, label_weights
from seq2seq_jax.models.param_layouts import inputs_first, outputs_first, stack_layers, to_int8, unstack_layers
from seq2seq_jax.models.stack import LayerOutput, OutputFlags
from seq2seq_jax.models.targets import check_ids, decoder_inputs_of_labels, pack_begins
from seq2seq_jax.models.transformer import Transformer, combine_masks


@struct.dataclass
class EncoderDecoderOutput:
    """What a forward pass returns (transformers.Seq2SeqLMOutput); fields that were not asked for are None.

    Attributes:
      logits: float32 [batch, target, vocab_size]. loss: mean over labels that are not -100, weighted if asked for.
      decoder_last_hidden_state: [batch, target, decoder hidden], which the head reads.
      encoder_last_hidden_state: [batch, source, encoder hidden].
      encoder_hidden_states, decoder_hidden_states: num_layers + 1 arrays: each layer's input, then the final states.
      encoder_attentions, decoder_attentions, cross_attentions: per layer, [batch, heads, queries, keys].
    """

    logits: jax.Array | None
    loss: jax.Array | None = None
    decoder_last_hidden_state: jax.Array | None = None
    encoder_last_hidden_state: jax.Array | None = None
    encoder_hidden_states: tuple[jax.Array, ...] | None = None
    decoder_hidden_states: tuple[jax.Array, ...] | None = None
    encoder_attentions: tuple[jax.Array, ...] | None = None
    decoder_attentions: tuple[jax.Array, ...] | None = None
    cross_attentions: tuple[jax.Array, ...] | None = None


@struct.dataclass
class DecodeStep:
    """What the decoder makes of new tokens.

    Attributes:
      logits: float32 [batch, beams, count or 1, padded_vocab_size]. states: [batch, beams, count, hidden], normed.
      attention: float32 [batch, beams, count, source], of the last layer that has cross-attention, the mean over its
        heads; None where no layer has any.
    """

    logits: jax.Array
    states: jax.Array
    attention: jax.Array | None


class EncoderDecoder(nn.Module):
    """An encoder-decoder (transformers.EncoderDecoderModel).

    Parameters are stored once: the tree holds no tied copies, each method fills them in (models/ties.py), and gradients
    of a tied parameter add up.

    Attributes:
      dtype: of the computation. param_dtype: of parameters made by `init`.
      remat: what the backward pass keeps ("none": everything; the names: config.REMATS).
      attention_impl: "xla", or a kernel (models/kernels.py); decoding always takes "xla".
      scan_unroll: layers in one turn of the loop over them.
      unrolled: decoding form, made by `for_decoding`: untied and unstacked parameters, the decoder's kernels as
        [*outputs, *inputs].
      int8: decoding reads the kernels of layers and head as int8, and makes the tokens that meet them int8 too.
    """

    config: EncoderDecoderConfig
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32
    remat: str = "none"
    attention_impl: str = "xla"
    scan_unroll: int = 1
    unrolled: bool = False
    int8: bool = False

    def setup(self):
        c, kw = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        form = {name: getattr(self, name) for name in ("unrolled", "remat", "attention_impl", "scan_unroll")}
        self.encoder = Transformer(c.encoder, **form, **kw)
        self.decoder = Transformer(c.decoder, outputs_first=self.unrolled, **form, **kw)
        if c.has_projection:
            self.enc_to_dec_proj = Projection(
                c.decoder,
                inputs=(c.encoder.hidden_size,),
                outputs=(c.decoder.cross_attention_size,),
                axes=("embed", "norm"),
                **kw,
            )

    @property
    def aliases(self) -> tuple:
        return () if self.unrolled else ties.aliases(self.config)

    @ties.with_ties
    def __call__(
        self,
        input_ids=None,
        attention_mask=None,
        token_type_ids=None,
        position_ids=None,
        decoder_input_ids=None,
        decoder_attention_mask=None,
        decoder_position_ids=None,
        encoder_pack_ids=None,
        decoder_pack_ids=None,
        labels=None,
        loss_weights=None,
        loss_config: LossConfig = LossConfig(),
        encoder_outputs=None,
        inputs_embeds=None,
        decoder_inputs_embeds=None,
        train: bool = False,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        output_logits: bool = True,
    ) -> EncoderDecoderOutput:
        """Logits, and the loss where labels are given.

        Args:
          input_ids: int [batch, source]. attention_mask: [batch, source], true (1) on tokens; None: all are.
          token_type_ids, position_ids: int [batch, source] for the encoder; a RoBERTa's positions count from its pad
            token's id + 1, as in torch.
          decoder_input_ids: int [batch, target]. Without them the labels are shifted right, in each pack, and pads
            among the shifted ids are masked unless decoder_attention_mask says otherwise. The first token of an
            example is never such a pad: a start token that is the pad token is seen, as it is in decoding (torch's
            EncoderDecoderModel hides it here and shows it there).
          encoder_pack_ids, decoder_pack_ids: int [batch, length] for several examples in a row, from 1, and 0 on
            padding: tokens see only tokens of their own pack, on either side, and positions restart with each pack. A
            row may be longer than there are positions, a pack not.
          labels: int [batch, target], -100 where there is nothing to predict.
          loss_weights: of the labels in the loss, see losses.label_weights; None: all weigh alike.
          loss_config: the loss's smoothing and z-loss; its chunks are for `token_losses`.
          encoder_outputs: what the encoder would return (models/inputs.py, last_hidden_state), which is not run then:
            input_ids are not needed and not read.
          inputs_embeds, decoder_inputs_embeds: [batch, length, embedding_size], in place of ids: what stands in for the
            rows of the token table, which torch's class scales or does not (scale_given_embeddings).
          train: dropout acts; needs rngs={"dropout": key}.
          output_logits: without, there are neither logits nor loss (see `token_losses`).

        Raises:
          ValueError: for inputs that do not go together, and ids or positions that there are not. While tracing their
            values are not known: such ids give NaN then.
        """
        c = self.config
        check_ids("labels", labels, c.decoder.vocab_size, allowed=(IGNORED,))
        if (encoder_pack_ids is None) != (decoder_pack_ids is None):
            raise ValueError("packing needs both encoder_pack_ids and decoder_pack_ids; one of them is missing")
        if decoder_input_ids is None and decoder_inputs_embeds is None:
            if labels is None:
                raise ValueError("there is nothing to decode: give decoder_input_ids, or labels to shift")
            if np.ndim(labels) != 2:
                raise ValueError(f"labels has shape {list(np.shape(labels))}; give [batch, target]")
            if decoder_pack_ids is not None and np.shape(decoder_pack_ids) != np.shape(labels):
                shapes = list(np.shape(decoder_pack_ids)), list(np.shape(labels))
                raise ValueError(f"decoder_pack_ids has shape {shapes[0]} and labels {shapes[1]}; make them equal")
            decoder_input_ids = decoder_inputs_of_labels(c, labels, decoder_pack_ids)
            # torch's EncoderDecoderModel makes this mask, its classes of whole models do not.
            if decoder_attention_mask is None and c.is_pair:
                decoder_attention_mask = self._not_padding(decoder_input_ids, decoder_pack_ids)
        target = check_inputs(
            c.decoder,
            "decoder",
            ids=decoder_input_ids,
            embeds=decoder_inputs_embeds,
            attention_mask=decoder_attention_mask,
            position_ids=decoder_position_ids,
            pack_ids=decoder_pack_ids,
        )
        if labels is not None and np.shape(labels) != target:
            raise ValueError(
                f"labels has shape {list(np.shape(labels))}; give it {list(target)}, as the decoder's inputs"
            )
        if output_attentions and self.attention_impl != "xla":
            raise ValueError(f"attention_impl {self.attention_impl!r} returns no attention weights; give 'xla'")

        flags = OutputFlags(train, output_attentions, output_hidden_states)
        states, encoder_layers = self._encoded(
            input_ids,
            attention_mask,
            encoder_outputs,
            inputs_embeds,
            flags,
            position_ids=position_ids,
            token_type_ids=token_type_ids,
            pack_ids=encoder_pack_ids,
        )
        source = states.shape[:2]
        if source[0] != target[0]:
            raise ValueError(f"the decoder has {target[0]} rows and the encoder {source[0]}; give both as many")
        cross_mask = None if attention_mask is None else jnp.asarray(attention_mask).astype(bool)[:, None, None, :]
        if takes_segment_ids(self.attention_impl):
            cross_mask = segment_ids(target, source, attention_mask, decoder_pack_ids, encoder_pack_ids)
        elif encoder_pack_ids is not None:
            same_pack = decoder_pack_ids[:, :, None] == encoder_pack_ids[:, None, :]  # [batch, target, source]
            cross_mask = combine_masks(cross_mask, same_pack[:, None])
        decoded, decoder_layers = self.decoder(
            None if decoder_input_ids is None else jnp.asarray(decoder_input_ids),
            decoder_attention_mask,
            embeds=None if decoder_inputs_embeds is None else jnp.asarray(decoder_inputs_embeds),
            position_ids=decoder_position_ids,
            pack_ids=decoder_pack_ids,
            encoder_states=self._project(states),
            cross_mask=cross_mask,
            flags=flags,
        )
        logits = self.decoder.logits(decoded) if output_logits else None
        loss = None
        if output_logits and labels is not None:
            weights = label_weights(loss_weights, jnp.asarray(labels), decoder_pack_ids)
            loss = cross_entropy(logits, jnp.asarray(labels), weights, loss_config, vocab_size=c.decoder.vocab_size)
        return EncoderDecoderOutput(
            logits=None if logits is None else logits[..., : c.decoder.vocab_size],
            loss=loss,
            decoder_last_hidden_state=decoded,
            encoder_last_hidden_state=states,
            encoder_hidden_states=_hidden(encoder_layers, states) if output_hidden_states and encoder_layers else None,
            decoder_hidden_states=_hidden(decoder_layers, decoded) if output_hidden_states else None,
            encoder_attentions=_each(encoder_layers, "attention") if output_attentions and encoder_layers else None,
            decoder_attentions=_each(decoder_layers, "attention") if output_attentions else None,
            cross_attentions=_each(decoder_layers, "cross_attention") if output_attentions else None,
        )

    @ties.with_ties
    def token_losses(
        self,
        *,
        labels,
        loss_weights=None,
        loss_config: LossConfig = LossConfig(),
        **inputs,
    ):
        """Loss of each target token in nats, times its weight, float32 [batch, target], 0 where the label is -100.

        Args:
          labels, loss_weights, inputs: those of a call.
          loss_config: smoothing, z-loss, and how many logits exist at a time.
        """
        states = self(labels=labels, output_logits=False, **inputs).decoder_last_hidden_state
        losses = self.decoder.head.token_losses(states, jnp.asarray(labels), loss_config)
        weights = label_weights(loss_weights, jnp.asarray(labels), inputs.get("decoder_pack_ids"))
        return losses if weights is None else losses * weights

    @ties.with_ties
    def logits(self, states: jax.Array) -> jax.Array:
        """float32 [..., padded_vocab_size], of the decoder's last states [..., hidden]."""
        return self.decoder.logits(states)

    def _not_padding(self, ids: jax.Array, pack_ids: jax.Array | None) -> jax.Array:
        """bool [batch, target]: which of the decoder's ids its self-attention sees: all but pads, and the first
        of each example in any case."""
        begins = jnp.arange(ids.shape[1])[None] == 0 if pack_ids is None else pack_begins(jnp.asarray(pack_ids))
        return (ids != self.config.pad_token_id) | begins

    def _encoded(
        self, input_ids, attention_mask, encoder_outputs, inputs_embeds, flags: OutputFlags, **more
    ) -> tuple[jax.Array, list[LayerOutput]]:
        """The encoder's states [batch, source, hidden] and what its layers show; nothing of states that are given."""
        given = {"ids": input_ids, "embeds": inputs_embeds, "attention_mask": attention_mask, **more}
        _, states = check_encoder_inputs(self.config.encoder, encoder_outputs, **given)
        if states is not None:
            return jnp.asarray(states).astype(self.dtype), []
        ids, embeds = (None if a is None else jnp.asarray(a) for a in (input_ids, inputs_embeds))
        return self.encoder(ids, attention_mask, embeds=embeds, flags=flags, **more)

    def _project(self, states: jax.Array) -> jax.Array:
        return self.enc_to_dec_proj(states) if self.config.has_projection else states

    @ties.with_ties
    def encode(
        self,
        input_ids=None,
        attention_mask=None,
        token_type_ids=None,
        position_ids=None,
        encoder_outputs=None,
        inputs_embeds=None,
    ) -> jax.Array:
        """Encoder states [batch, source, hidden]; the arguments are those of a call."""
        more = {"token_type_ids": token_type_ids, "position_ids": position_ids}
        return self._encoded(input_ids, attention_mask, encoder_outputs, inputs_embeds, OutputFlags(), **more)[0]

    def init_cache(self, encoder_states: jax.Array, attention_mask: jax.Array, num_beams: int, length: int) -> Cache:
        """A cache for `num_beams` hypotheses a row of up to `length` tokens; the source is projected once, here."""
        return self.empty_cache(self.source_keys_values(encoder_states), attention_mask, num_beams, length)

    def source_keys_values(self, encoder_states: jax.Array) -> tuple:
        """What `Cache.cross` holds, of encoder states [batch, source, hidden]: for each decoder layer keys as
        `cpu.tile_keys` gives them and values [batch, kv heads, source, head_dim], or None."""
        return self.decoder.layers.cross_keys_values(self._project(encoder_states))

    def empty_cache(self, cross: tuple, attention_mask: jax.Array, num_beams: int, length: int) -> Cache:
        """`init_cache` of what `source_keys_values` gives, in place of states; attention_mask [batch, source]."""
        return self.decoder.new_cache(cross, attention_mask, num_beams, length, self.dtype)

    def decode_step(self, tokens: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Logits [batch, beams, padded_vocab_size] after `tokens` [batch, beams, count], and the longer cache."""
        step, cache = self.decode_tokens(tokens, cache)
        return step.logits[:, :, -1], cache

    def decode_tokens(self, tokens: jax.Array, cache: Cache, *, last: bool = True) -> tuple[DecodeStep, Cache]:
        """`decode_step` with all that a search may want; what it does not use is not computed.

        Args:
          tokens: int [batch, beams, count]. last: logits after the last token only.
        """
        states, weights, cache = self.decoder.decode(tokens, cache)
        logits = self.decoder.logits(states[:, :, -1])[:, :, None] if last else self.decoder.logits(states)
        attention = None if weights is None else jnp.mean(weights.astype(jnp.float32), axis=1)
        return DecodeStep(logits, states, attention), cache

    def for_decoding(self) -> EncoderDecoder:
        """The same model in decoding form; its parameters are `decoding_params(params)`."""
        return self.clone(unrolled=True, attention_impl="xla")

    def decoding_params(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Untied and unstacked parameters of the once-stored tree `params`, the decoder's kernels
        [*outputs, *inputs]; tied tables are shared, not copied."""
        full = self._convert(ties.fill(params, ties.aliases(self.config)), unstack_layers)
        decoder = {**full["decoder"], "layers": outputs_first(full["decoder"]["layers"])}
        if self.int8:
            kernel, scale = quantise(decoder["head"]["kernel"], (1,))
            decoder["layers"] = to_int8(decoder["layers"])
            decoder["head"] = {**decoder["head"], "kernel": kernel, "kernel_scale": scale}
            encoder = full["encoder"]
            full["encoder"] = {**encoder, "layers": to_int8(outputs_first(encoder["layers"]))}
        return {**full, "decoder": decoder}

    def training_params(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The inverse of `decoding_params`.

        Raises:
          ValueError: for int8, which forgets what the parameters were.
        """
        if self.int8:
            raise ValueError("int8 kernels cannot be turned back; keep the parameters that they were made of")
        decoder = params["decoder"]
        full = {**params, "decoder": {**decoder, "layers": inputs_first(decoder["layers"])}}
        return ties.strip(self._convert(full, stack_layers), ties.aliases(self.config))

    def _convert(self, params: Mapping[str, Any], convert) -> dict[str, Any]:
        side = lambda name: convert(getattr(self.config, name), params[name]["layers"])
        return {**params, **{name: {**params[name], "layers": side(name)} for name in ("encoder", "decoder")}}

    def parameter_shapes(self) -> Any:
        """The once-stored tree as ShapeDtypeStructs, boxed with their logical axes; nothing is computed."""
        ids, model = jax.ShapeDtypeStruct((1, 1), jnp.int32), self.clone(attention_impl="xla")
        init = lambda a, b: model.init(jax.random.key(0), a, decoder_input_ids=b)["params"]
        return jax.eval_shape(init, ids, ids)


def _hidden(layer_outputs: list[LayerOutput], last: jax.Array) -> tuple[jax.Array, ...]:
    return (*(output.hidden for output in layer_outputs), last)


def _each(layer_outputs: list[LayerOutput], name: str) -> tuple[jax.Array, ...]:
    found = (getattr(output, name) for output in layer_outputs)
    return tuple(weights for weights in found if weights is not None)
