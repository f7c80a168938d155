#!/usr/bin/env python3
"""Has programs that are not ours read the documents of running listeners.

    run.py validate URL…     is each document valid OpenAPI? (openapi-spec-validator; part of `./dev test e2e openapi`)
    run.py fuzz URL…         does each listener answer what its document says, whatever it is sent? (schemathesis, some minutes)

URL is that of a listener, such as http://127.0.0.1:8080. The packages come by pip, into a folder below --root (by default
target/openapi of this checkout). Exits with 1 when something fails, with 77 when the packages cannot be had.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
PACKAGES = {"validate": "openapi-spec-validator==0.9.0", "fuzz": "schemathesis==4.32.5"}
UNAVAILABLE = 77
PATIENCE = 60

VALIDATE = """import json, sys
from openapi_spec_validator import OpenAPIV31SpecValidator
errors = list(OpenAPIV31SpecValidator(json.load(sys.stdin)).iter_errors())
sys.exit("\\n".join(f"{'/'.join(map(str, error.absolute_path))}: {error.message[:500]}" for error in errors) or 0)
"""


def install(package, root):
    """The folder of the package. By its name Hypothesis knows that what is in it is not ours: else its words are tried as values."""
    folder = root / package.replace("==", "-") / "site-packages"
    if (folder / "complete").exists():
        return folder
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--root-user-action", "ignore"]
    for _ in range(4):
        # Into a folder of its own, so that one that is killed leaves nothing that looks whole.
        shutil.rmtree(folder, ignore_errors=True)
        if subprocess.run([*pip, "--target", folder, package]).returncode == 0:
            (folder / "complete").touch()
            return folder
    print(f"{package} cannot be installed: pip says why above")
    sys.exit(UNAVAILABLE)


def validate(url, environment):
    with urllib.request.urlopen(f"{url}/openapi.json", timeout=PATIENCE) as answer:
        document = answer.read()
    done = subprocess.run([sys.executable, "-c", VALIDATE], env=environment, input=document, timeout=PATIENCE)
    print(f"{url}: {json.loads(document)['info']['title']}, {len(document)} bytes", flush=True)
    return done.returncode == 0


def fuzz(url, environment, seed, key=None):
    # schemathesis.toml says what it is to check.
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", "--url", url]
    command += ["--max-examples", "200", "--seed", seed, "--no-color"]
    if key:
        # Both: what it makes up for one of them would be another key beside the right one.
        command += ["--header", f"Authorization: Bearer {key}", "--header", f"X-Api-Key: {key}"]
    # What it remembers goes beside its packages.
    environment["HYPOTHESIS_STORAGE_DIRECTORY"] = str(Path(environment["PYTHONPATH"]).parent / "hypothesis")
    return subprocess.run(command, env=environment, cwd=CHECKOUT).returncode == 0


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--root", type=Path, default=CHECKOUT / "target/openapi")
    options.add_argument("--key", help="to fuzz with, of a daemon whose listeners both have it (http.auth, admin.auth)")
    options.add_argument("--seed", default="1", help="of what is made up (default: 1)")
    options.add_argument("what", choices=PACKAGES)
    options.add_argument("urls", nargs="+", metavar="URL")
    chosen = options.parse_args()
    packages = install(PACKAGES[chosen.what], chosen.root.absolute())
    environment = {**os.environ, "PYTHONPATH": str(packages)}
    more = {"key": chosen.key, "seed": chosen.seed} if chosen.what == "fuzz" else {}
    run = {"validate": validate, "fuzz": fuzz}[chosen.what]
    passed = sum(run(url.rstrip("/"), environment, **more) for url in chosen.urls)
    print(f"{passed} passed, {len(chosen.urls) - passed} failed")
    sys.exit(passed != len(chosen.urls))


if __name__ == "__main__":
    main()
