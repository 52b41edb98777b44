"""The command line: penstock run, methods, check, doctor."""

from __future__ import annotations

from penstock.cli.app import app, main

__all__ = ["app", "main"]
