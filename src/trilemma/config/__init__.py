"""From a composed configuration to built objects: which classes may be named, which keys exist."""

from pathlib import Path

CONF = Path(__file__).parents[3] / "conf"
"""The folder of configuration files."""
