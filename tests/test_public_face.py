"""What `import seq2seq_jax` shows, and what it costs."""

import ast
import re
import subprocess
import sys
from importlib import metadata, resources
from pathlib import Path

import seq2seq_jax as s2s

HEAVY = ("datasets", "grain", "optax", "orbax", "pyarrow", "sacrebleu", "safetensors", "tensorboardX", "tokenizers",
         "torch", "transformers")  # fmt: skip


def test_only_public_names_are_shown():
    assert set(dir(s2s)) == {*s2s.__all__, "__version__"}
    assert all(getattr(s2s, name) is not None for name in s2s.__all__)
    assert callable(s2s.families), "the function, not the package of that name"
    assert not hasattr(s2s, "from_pretraind")


def test_type_checkers_see_the_same_names():
    body = ast.parse(Path(s2s.__file__).read_text()).body
    lazy = {
        (node.module.removeprefix("seq2seq_jax."), alias.name)
        for block in body
        if isinstance(block, ast.If)
        for node in block.body
        for alias in node.names
    }
    assert lazy == {(module, name) for module, names in s2s._LAZY.items() for name in names}
    assert (resources.files("seq2seq_jax") / "py.typed").is_file()


def test_version():
    assert re.fullmatch(r"\d+\.\d+\.\d+", s2s.__version__)
    assert metadata.version("seq2seq_jax") == s2s.__version__


def test_the_import_is_light():
    code = f"import sys, jax, flax, seq2seq_jax; print([m for m in {HEAVY} if m in sys.modules and m not in before])"
    code = "import sys, jax, flax; before = set(sys.modules); " + code
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]", out
