"""The flag --config of the scripts that train: a recipe, and overrides of its fields."""

import importlib.util
import sys
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

sys.path.insert(1, str(Path(__file__).resolve().parent.parent))  # recipes import each other as configs.<name>


class _RecipeParser(flags.ArgumentParser):
    """Reads FILE or FILE:VARIANT, and says in one line what is wrong with it."""

    def parse(self, path: str) -> ConfigDict:
        file, colon, variant = path.partition(":")
        if not Path(file).is_file():
            raise ValueError(f"there is no file {file}; give a recipe, such as configs/common.py")
        spec = importlib.util.spec_from_file_location("recipe", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise ValueError(f"{file} has no function get_config; see configs/common.py")
        return module.get_config(variant) if colon else module.get_config()

    def flag_type(self) -> str:
        return "recipe"


def define() -> flags.FlagHolder:
    """Defines --config and --config.<field>; a holder of the ConfigDict."""
    holder = config_flags.DEFINE_config_file(
        "config", None, "A file with get_config(), and behind a colon its variant; --config.FIELD=VALUE overrides it."
    )
    flags.FLAGS["config"].parser = _RecipeParser()
    return holder


def overridden() -> frozenset[str]:
    """Names of the fields that flags set."""
    return frozenset(flags.FLAGS["config"].override_values)
