"""What senders are made of, by the package clients, each into a folder of its own below the root; the machine itself is left alone.

Versions are pinned here, or in the files beside a sender (package.json, pom.xml, go.mod). Debian's packages are those of the
machine's own release: they are unpacked, not installed, so that no daemon is started and no file of the machine changes.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ATTEMPTS = 3


class Unavailable(Exception):
    """What a sender is made of cannot be had here: it is not run."""


def program(name, package):
    """A program of the machine."""
    if found := shutil.which(name):
        return found
    raise Unavailable(f"there is no {name} here: apt-get install {package}")


def client(command, **options):
    """Runs a package client; its cache makes the next attempt go on where this one broke off."""
    for attempt in range(1, ATTEMPTS + 1):
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
        if done.returncode == 0:
            return done.stdout.decode(errors="replace")
        if attempt < ATTEMPTS:
            time.sleep(2**attempt)
    said = done.stdout.decode(errors="replace")
    raise Unavailable(f"{' '.join(map(str, command[:4]))} … failed with {done.returncode}: {said[-2000:].strip()}")


def made(root, name, of, make):
    """The folder that `make` has filled: once for each content of `of`, and by one process at a time."""
    digest = hashlib.sha256(repr(of).encode()).hexdigest()[:12]
    root.mkdir(parents=True, exist_ok=True)
    folder = root / f"{name}-{digest}"
    with open(root / f".{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            print(f"{name}: fetching what it is made of into {folder}", file=sys.stderr, flush=True)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            # What has this file is whole: one that was killed leaves nothing that looks so.
            (folder / "complete").touch()
    return folder


def pip(root, name, packages):
    """A folder for PYTHONPATH."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--root-user-action", "ignore"]
    return made(root, name, packages, lambda folder: client([*command, "--target", folder, *packages]))


def npm(root, name, source):
    """A folder with node_modules, as `package.json` says."""
    program("npm", "npm")
    wanted = source / "package.json"

    def make(folder):
        shutil.copy(wanted, folder)
        client(["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"], cwd=folder)

    return made(root, name, wanted.read_bytes(), make)


def maven(root, name, source):
    """A class path of what `pom.xml` asks for."""
    program("javac", "default-jdk-headless"), program("mvn", "maven")
    pom = source / "pom.xml"

    def make(folder):
        shutil.copy(pom, folder)
        client(["mvn", "-q", "-B", "dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={folder}/libs"], cwd=folder)

    return f"{made(root, name, pom.read_bytes(), make)}/libs/*"


def go(root, name, source, block=None):
    """A program, compiled: `source` with its go.mod, and a block of the guide as block.go."""
    program("go", "golang-go")
    files = [file for file in sorted(source.iterdir()) if file.suffix in (".go", ".mod", ".sum")]

    def make(folder):
        for file in files:
            shutil.copy(file, folder)
        if block:
            (folder / "block.go").write_text(block)
        client(["go", "build", "-o", "sender", "."], cwd=folder, env={**os.environ, "GOFLAGS": "-mod=readonly", "CGO_ENABLED": "0"})

    return made(root, name, [[file.read_bytes() for file in files], block], make) / "sender"


def debian(root, name, packages):
    """A folder with what these packages and those they need hold, as far as the machine lacks it."""
    program("apt-get", "apt"), program("dpkg-deb", "dpkg")

    def make(folder):
        archives = folder / "archives"
        (archives / "partial").mkdir(parents=True)
        apt = ["apt-get", "-qq", "-o", f"Dir::Cache::archives={archives}", "-o", "Debug::NoLocking=1"]
        # `install` with --download-only leaves out what is installed; a package that is installed itself is asked for again.
        client([*apt, "install", "--download-only", "--reinstall", "--yes", "--no-install-recommends", *packages])
        for package in archives.glob("*.deb"):
            client(["dpkg-deb", "-x", package, folder])
        shutil.rmtree(archives)

    return made(root, name, packages, make)


def debian_source(root, name, package, build):
    """A folder in which `build` has built something of a Debian package's source."""
    program("apt-get", "apt"), program("dpkg-source", "dpkg-dev"), program("make", "build-essential")

    def make(folder):
        lists = folder / "lists"
        (lists / "partial").mkdir(parents=True)
        sources = folder / "sources.list.d"
        sources.mkdir()
        for file in Path("/etc/apt/sources.list.d").glob("*.sources"):
            # Mirrors need not have the sources of security updates.
            suites = [suite for suite in file.read_text().split("\n\n") if "-security" not in suite]
            (sources / file.name).write_text("\n\n".join(suites).replace("Types: deb\n", "Types: deb-src\n"))
        apt = ["apt-get", "-qq", "-o", f"Dir::State::lists={lists}", "-o", "Dir::Etc::sourcelist=/dev/null"]
        apt += ["-o", f"Dir::Etc::sourceparts={sources}", "-o", "Debug::NoLocking=1"]
        client([*apt, "update"], cwd=folder)
        client([*apt, "source", package], cwd=folder)
        build(folder, next(path for path in folder.glob(f"{package}-*") if path.is_dir()))
        shutil.rmtree(lists)

    return made(root, name, package, make)
