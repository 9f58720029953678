"""The version of fastmlp, as pyproject.toml states it."""

VERSION = "0.1.0"
