#!/usr/bin/env bash
# duckdb 2.0.1 (PyPI), read_json of newline-delimited JSON.
#
# Two writers that spell a field of a nested object differently (`userId` and `userid`, one event each) make a file of events that
# read_json does not read: "Duplicate name ... in struct auto-detected in JSON, try ignore_errors=true", an error that names no
# line. At the top level of events the same two names are no trouble: they become columns `userId` and `userid_1`. And with the
# option that the message advises, the file is read and the values of the second spelling are gone: NULL, for events that are
# right, and without a word. `field_appearance_threshold=1` (an object becomes a MAP where its fields come and go) reads them all.
#
# Seen: `top level: [(1, None), (None, 2)]; nested: Not implemented Error: Duplicate name "userid" in struct auto-detected in JSON,
# try ignore_errors=true; with what it advises: [({'userId': 1},), ({'userId': None},)]; as maps: [({'userId': 1},), ({'userid': 2},)]`
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet duckdb==2.0.1
printf '%s\n' '{"userId":1}' '{"userid":2}' >flat.ndjson
printf '%s\n' '{"context":{"userId":1}}' '{"context":{"userid":2}}' >nested.ndjson
cat >finding.py <<'PYTHON'
import duckdb


def read(file, options=""):
    try:
        return str(duckdb.sql(f"SELECT * FROM read_json('{file}.ndjson'{options})").fetchall())
    except duckdb.Error as error:
        return str(error).splitlines()[0]


flat, nested, advised = read("flat"), read("nested"), read("nested", ", ignore_errors=true")
maps = read("nested", ", field_appearance_threshold=1")
print(f"top level: {flat}; nested: {nested}; with what it advises: {advised}; as maps: {maps}")
assert flat == "[(1, None), (None, 2)]", "the top level differs now"
assert "Duplicate name" in nested and "try ignore_errors=true" in nested, "nested ones are read now"
assert advised == "[({'userId': 1},), ({'userId': None},)]", "the second value is kept now"
assert maps == "[({'userId': 1},), ({'userid': 2},)]", "maps differ now"
PYTHON
env/bin/python finding.py
