"""Runs the real `temporal` CLI: TEMPORAL_CLI names it, or the path has it. Tests are skipped where there is none."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from typing import Any

import pytest


class Cli:
    def __init__(self, address: str) -> None:
        self.address = address
        self.binary = os.environ.get("TEMPORAL_CLI") or shutil.which("temporal")
        if not self.binary:
            pytest.skip("there is no temporal CLI")

    async def run(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, output and errors of a command."""
        environment = {**os.environ, "TEMPORAL_ADDRESS": self.address, "NO_COLOR": "1"}
        process = await asyncio.create_subprocess_exec(
            self.binary or "temporal",
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
        )
        output, errors = await process.communicate()
        assert process.returncode is not None
        return process.returncode, output.decode(), errors.decode()

    async def text(self, *arguments: str) -> str:
        code, output, errors = await self.run(*arguments)
        assert code == 0, f"temporal {' '.join(arguments)}: {errors or output}"
        return output

    async def json(self, *arguments: str) -> Any:
        return json.loads(await self.text(*arguments, "--output", "json"))
