"""Tools beside the product, outside the wheel: benchmarks and the dry run. Nothing in `seq2seq_jax` imports them."""
