"""Ask an index of advisories about the pinned packages: `make audit`.

Exits with 1 if a package has a known vulnerability. Where no index can be reached, it prints that nothing was audited.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

PIP_AUDIT = "pip-audit==2.10.1"
PINNED = Path(__file__).with_name("dev.txt")


def main() -> None:
    """Print the vulnerabilities, and what could not be audited."""
    # The pinned list is complete and has hashes, so nothing needs to be resolved or downloaded.
    options = ("--require-hashes", "--disable-pip", "--progress-spinner", "off", "--format", "json", "--desc", "off")
    command = ["uv", "tool", "run", "--quiet", PIP_AUDIT, "--requirement", str(PINNED), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    if not done.stdout.startswith("{"):
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        sys.exit(f"nothing was audited: pip-audit failed ({reason}); is an index of advisories reachable?")
    packages = json.loads(done.stdout)["dependencies"]
    audited = [package for package in packages if "skip_reason" not in package]
    if not audited:
        print(f"nothing was audited: no index of advisories knows any of the {len(packages)} packages")
        return
    found = [(package, problem) for package in audited for problem in package["vulns"]]
    for package, problem in found:
        fixed = ", ".join(problem["fix_versions"]) or "no version"
        print(f"{package['name']} {package['version']}: {problem['id']}, fixed in {fixed}")
    print(f"{len(audited)} of {len(packages)} packages audited, {len(found)} vulnerabilities")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
