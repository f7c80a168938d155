#!/usr/bin/env bash
# moto 5.2.5 and boto3 1.44.8 (PyPI), ListObjects (the first version) and ListObjectsV2 of moto's S3.
#
# A listing with a delimiter gives each common prefix ("folder") once, and it counts for MaxKeys as a key does. moto's ListObjects
# pages the keys alone and puts all common prefixes on each page: boto3's paginator gives each hour of an archive as many times as
# there are pages, and each page is larger than MaxKeys. Where there are prefixes alone, there is one page of them, however many. A
# reader that walks hours with `list_objects` reads each hour again and again under test, and what it does where prefixes go over a
# page's end is not tested at all. moto's ListObjectsV2 does it right.
#
# Seen: `ListObjects: 4 pages, hour=00/ 4 times, up to 5 of MaxKeys 2, 3 prefixes alone: 1 page; ListObjectsV2: 5 pages, hour=00/
# once, up to 2 of MaxKeys 2, 3 prefixes alone: 2 pages`
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet 'moto[s3]==5.2.5' boto3==1.44.8
cat >finding.py <<'PYTHON'
import boto3
from moto import mock_aws


@mock_aws
def main():
    s3 = boto3.client("s3", region_name="us-east-1", aws_access_key_id="finding", aws_secret_access_key="finding")
    s3.create_bucket(Bucket="archive")
    for hour in range(3):
        for place in "mixed/", "prefixes/":
            s3.put_object(Bucket="archive", Key=f"{place}hour={hour:02}/events.ndjson.zst", Body=b"")
    for n in range(7):
        s3.put_object(Bucket="archive", Key=f"mixed/manifest-{n}.json", Body=b"")

    def pages(operation, prefix):
        listing = s3.get_paginator(operation).paginate(Bucket="archive", Prefix=prefix, Delimiter="/",
                                                       PaginationConfig={"PageSize": 2})
        return [[each["Key"] for each in page.get("Contents", [])] + [each["Prefix"] for each in page.get("CommonPrefixes", [])]
                for page in listing]

    outcomes = []
    for operation in "list_objects", "list_objects_v2":
        mixed = pages(operation, "mixed/")
        times = sum(page.count("mixed/hour=00/") for page in mixed)
        outcomes.append((len(mixed), times, max(map(len, mixed)), len(pages(operation, "prefixes/"))))
    said = [f"{count} pages, hour=00/ {'once' if times == 1 else f'{times} times'}, up to {most} of MaxKeys 2, 3 prefixes alone: "
            f"{alone} page{'s' if alone > 1 else ''}" for count, times, most, alone in outcomes]
    print(f"ListObjects: {said[0]}; ListObjectsV2: {said[1]}")
    assert outcomes == [(4, 4, 5, 1), (5, 1, 2, 2)], "it is otherwise now"


main()
PYTHON
env/bin/python finding.py
