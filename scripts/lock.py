"""Writes requirements.lock from pyproject.toml: every dependency pinned, every wheel's hash, no index address.

One file, two parts: what the product runs on, then (after the marker line) what its tests and checks need on top.
`make run` installs the first part alone. Needs `uv` on the PATH or in the environment that runs this.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
MARKER = "# ---- tests and checks only, from here on ----"


def compile_lock(target: Path, *extra: str) -> dict[str, str]:
    """Resolves pyproject.toml and returns {package: its lines}; raises CalledProcessError when nothing satisfies it."""
    command = [sys.executable, "-m", "uv", "pip", "compile", str(ROOT / "pyproject.toml"), *extra]
    command += ["--universal", "--python-version", "3.11", "--generate-hashes", "--no-annotate", "--no-header"]
    command += ["--no-emit-index-url", "--no-emit-find-links", "--quiet", "--upgrade", "-o", str(target)]
    subprocess.run(command, check=True, cwd=ROOT)
    entries: dict[str, str] = {}
    name = ""
    for line in target.read_text().splitlines():
        if not line.startswith(" "):
            name = line.split("==")[0] + line.partition(";")[2].rstrip(" \\")
        entries[name] = entries.get(name, "") + line + "\n"
    return entries


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder, "whole.txt")
        everything = compile_lock(whole, "--group", "dev")
        product = compile_lock(Path(folder, "product.txt"), "--constraint", str(whole))
    only_tests = {name: lines for name, lines in everything.items() if lines not in product.values()}
    LOCK.write_text("".join(product.values()) + MARKER + "\n" + "".join(only_tests.values()))
    print(f"{LOCK.name}: {len(product)} packages for the product, {len(only_tests)} more for tests")


if __name__ == "__main__":
    main()
