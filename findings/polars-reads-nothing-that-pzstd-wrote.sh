#!/usr/bin/env bash
# polars 2.1.0 (PyPI) and pzstd 1.5.4 (Debian package zstd); beside them duckdb 2.0.1 and pyarrow 26.0.1 (PyPI).
#
# pzstd, the parallel compressor that comes with zstd, puts a skippable frame with the size of the next one before each frame, as
# the format allows: its files begin with one. polars looks for compression by the first four bytes and knows the number of an
# ordinary zstd frame alone. So it takes the compressed bytes themselves for NDJSON, by whatever name the file goes, and fails with
# an error about UTF-8 in line 0, which sends one to look for a broken event. The same file behind an ordinary frame is read whole,
# skippable frames and all, so that it depends on what an archive begins with; DuckDB and pyarrow read both.
#
# Seen: `polars: stream did not contain valid UTF-8 at line 0; duckdb: 1000 rows; pyarrow: 1000 rows; behind an ordinary frame:
# polars: 2000 rows`
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
command -v pzstd >/dev/null || apt-get install -y -qq zstd >log 2>&1
python3 -m venv env
env/bin/pip install --quiet polars==2.1.0 duckdb==2.0.1 pyarrow==26.0.1
seq 1000 | sed 's/.*/{"n":&,"event":"clicked"}/' >events.ndjson
pzstd --quiet --keep events.ndjson
zstd --quiet events.ndjson -o ordinary.zst
cat ordinary.zst events.ndjson.zst >behind.ndjson.zst
cat >finding.py <<'PYTHON'
import duckdb, polars, pyarrow.json


def outcome(read):
    try:
        return f"{read()} rows"
    except Exception as error:
        return str(error).splitlines()[0]


ndjson = outcome(lambda: polars.scan_ndjson("events.ndjson.zst").collect().height)
assert ndjson == outcome(lambda: polars.read_ndjson("events.ndjson.zst").height), "read and scan differ"
behind = outcome(lambda: polars.scan_ndjson("behind.ndjson.zst").collect().height)
arrow = outcome(lambda: pyarrow.json.read_json("events.ndjson.zst").num_rows)
duck = outcome(lambda: duckdb.sql("SELECT count(*) FROM read_json('events.ndjson.zst')").fetchall()[0][0])
print(f"polars: {ndjson}; duckdb: {duck}; pyarrow: {arrow}; behind an ordinary frame: polars: {behind}")
assert "UTF-8" in ndjson, "polars reads it otherwise now"
assert (duck, arrow, behind) == ("1000 rows", "1000 rows", "2000 rows"), "the others differ now"
PYTHON
env/bin/python finding.py
