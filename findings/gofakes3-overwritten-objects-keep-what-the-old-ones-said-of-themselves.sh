#!/usr/bin/env bash
# github.com/johannesboyne/gofakes3 v1.2.0 (Go module proxy; its s3mem backend) and boto3 1.44.8 (PyPI). Needs go.
#
# A PUT to a key that is there replaces the object and all that was said of it. gofakes3 carries each header of the old object that
# the new one does not have over to it: a plain object that is put over one with `Content-Encoding: gzip` and metadata says that it
# is gzip, and has that metadata, and no PUT gets rid of them. The checksum that AWS's SDKs send with each PUT unasked stays so too:
# an object that a multipart upload then puts in its place has the old one's CRC32, and boto3 cannot read it. A test of a sender
# that rewrites its objects (a manifest, a compacted file that grew beyond the size of one part) fails where the real store works,
# or passes where a forgotten header would be missed in production.
#
# Seen: `after a plain PUT: gzip {'events': '10'}; after a multipart upload: FlexibleChecksumError; of a new key: 6 bytes`
set -euo pipefail

folder=$(mktemp -d)
store=''
trap 'kill -9 $store 2>/dev/null || true; chmod -R u+w "$folder"; rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet boto3==1.44.8
mkdir store
cat >store/go.mod <<'MOD'
module finding

go 1.23

require github.com/johannesboyne/gofakes3 v1.2.0
MOD
cat >store/main.go <<'GO'
package main

import (
	"log"
	"net/http"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
)

func main() {
	log.Fatal(http.ListenAndServe("127.0.0.1:29661", gofakes3.New(s3mem.New()).Server()))
}
GO
export GOFLAGS=-mod=mod GOPATH="$folder/go" GOTOOLCHAIN=local
(cd store && go mod tidy && go build -o store .) >log 2>&1 || { cat log; exit 1; }
store/store >log 2>&1 &
store=$!

cat >finding.py <<'PYTHON'
import time
import boto3, botocore.exceptions
from botocore.config import Config

s3 = boto3.client("s3", endpoint_url="http://127.0.0.1:29661", region_name="us-east-1", aws_access_key_id="finding",
                  aws_secret_access_key="finding", config=Config(s3={"addressing_style": "path"}))
deadline = time.monotonic() + 30
while True:
    try:
        s3.create_bucket(Bucket="events")
        break
    except botocore.exceptions.EndpointConnectionError:
        assert time.monotonic() < deadline, "the store does not start"
        time.sleep(0.5)


def multipart(key):
    upload = {"Bucket": "events", "Key": key, "UploadId": s3.create_multipart_upload(Bucket="events", Key=key)["UploadId"]}
    tag = s3.upload_part(**upload, PartNumber=1, Body=b"second")["ETag"]
    s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": tag}]})
    try:
        return f"{len(s3.get_object(Bucket='events', Key=key)['Body'].read())} bytes"
    except botocore.exceptions.BotoCoreError as error:
        return type(error).__name__


s3.put_object(Bucket="events", Key="a", Body=b"first", ContentEncoding="gzip", Metadata={"events": "10"})
s3.put_object(Bucket="events", Key="a", Body=b"plain")
plain = s3.head_object(Bucket="events", Key="a")
left = f"{plain.get('ContentEncoding')} {({name.lower(): value for name, value in plain['Metadata'].items()})}"
over, new = multipart("a"), multipart("new")
print(f"after a plain PUT: {left}; after a multipart upload: {over}; of a new key: {new}")
assert left == "gzip {'events': '10'}", "a PUT replaces them now"
assert over == "FlexibleChecksumError" and new == "6 bytes", "a multipart upload replaces them now"
PYTHON
env/bin/python finding.py
