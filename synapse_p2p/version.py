"""The release. The package is built with this number: see `[tool.hatch.version]`."""

VERSION = "3.0.0.dev0"
