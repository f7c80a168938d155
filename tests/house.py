#!/usr/bin/env python3
"""What holds for the arrangement of the code, by the imports of src/ without its tests:

- no cycle between the top-level names, and none of more than three files;
- no file above 600 lines, of tests/ and benches/ neither;
- the library has no other `pub mod` than `cli` and `internals`.

Prints what breaks, and ends with 1.
"""

import re
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "src"
LONGEST, LARGEST_CYCLE, PUBLIC = 600, 3, {"cli", "internals"}


def code(path):
    """The text without comments and without its tests, which come last."""
    text = re.sub(r"//[^\n]*", "", path.read_text())
    return re.split(r"(?m)^#\[cfg\(test\)\]\n(?:pub(?:\(crate\))? )?mod \w+ \{", text)[0]


def expand(tree):
    """`a::{b, c::d}` as `a::b` and `a::c::d`."""
    tree = tree.strip()
    at = tree.find("{")
    if at < 0:
        return [tree]
    parts, depth, part = [], 0, ""
    for char in tree[at + 1 : tree.rindex("}")]:
        depth += {"{": 1, "}": -1}.get(char, 0)
        if char == "," and depth == 0:
            parts.append(part)
            part = ""
        else:
            part += char
    return [tree[:at] + path for part in [*parts, part] if part.strip() for path in expand(part)]


def imports(modules):
    """Which module names what of which other."""
    found = defaultdict(set)
    for module, text in modules.items():
        trees = re.findall(r"(?m)^\s*(?:pub(?:\([^)]*\))? )?use ([\w:{},\s*]+);", text)
        uses = [path for tree in trees for path in expand(re.sub(r"\s+(?:as \w+)?", "", tree))]
        uses += re.findall(r"\b(?:crate|super|self)(?:::\w+)+", text)
        for path in uses:
            names, here = path.split("::"), module.split("::")
            if names[0] == "crate":
                names = names[1:]
            elif names[0] in ("super", "self"):
                while names[0] == "super":
                    here, names = here[:-1], names[1:]
                names = here + (names[1:] if names[0] == "self" else names)
            else:
                continue
            while names and "::".join(names) not in modules:
                names.pop()
            if names and "::".join(names) != module:
                found[module].add("::".join(names))
    return found


def cycles(edges):
    """Groups of names that reach each other."""

    def reachable(start):
        seen, todo = set(), [start]
        while todo:
            for name in edges.get(todo.pop(), ()):
                if name not in seen:
                    seen.add(name)
                    todo.append(name)
        return seen

    reach = {name: reachable(name) for name in list(edges)}
    groups = {frozenset(other for other in reach[name] if name in reach.get(other, ())) for name in reach if name in reach[name]}
    return sorted(sorted(group) for group in groups)


def main():
    files = {path: path.relative_to(SRC).with_suffix("") for path in SRC.rglob("*.rs")}
    modules = {
        "::".join(name.parts): code(path)
        for path, name in files.items()
        if name.name not in ("main", "lib", "internals") and name.name != "tests"
    }
    by_file = imports(modules)
    by_name = defaultdict(set)
    for module, others in by_file.items():
        top = module.split("::")[0]
        by_name[top] |= {other.split("::")[0] for other in others} - {top}
    faults = [f"a cycle of top-level names: {', '.join(cycle)}" for cycle in cycles(by_name)]
    faults += [
        f"a cycle of {len(cycle)} files: {', '.join(cycle)}" for cycle in cycles(by_file) if len(cycle) > LARGEST_CYCLE
    ]
    for path in sorted(path for folder in ("src", "tests", "benches") for path in (ROOT / folder).rglob("*.rs")):
        lines = len(path.read_text().splitlines())
        if lines > LONGEST:
            faults.append(f"{path.relative_to(ROOT)} has {lines} lines, more than {LONGEST}")
    public = set(re.findall(r"(?m)^pub mod (\w+)", (SRC / "lib.rs").read_text()))
    if public != PUBLIC:
        faults.append(f"the library's public modules are {', '.join(sorted(public))}, not {', '.join(sorted(PUBLIC))}")
    print("\n".join(faults) if faults else f"{len(modules)} files: no cycle of names, none of more than {LARGEST_CYCLE} files")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
