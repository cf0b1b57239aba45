"""From a composed configuration to built objects: the classes that may be named, and the keys that exist."""

from pathlib import Path

CONF = Path(__file__).parents[3] / "conf"
"""The folder of configuration files."""
