"""Recipes: each module's `get_config` gives the ConfigDict of a run. They derive from configs/common.py."""
