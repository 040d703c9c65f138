#!/bin/bash
# Cut a run, and query its shards as an array job of AWS Batch, which starts when the run is cut:
#
#   aws batch register-job-definition --cli-input-json file://cut.json
#   aws batch register-job-definition --cli-input-json file://shard.json
#   ./submit.sh QUEUE 4
#
# The number is at least that of the shards, which auditor cut prints; an index beyond them does nothing. An array has at least 2.
set -euo pipefail
queue=$1 shards=$2
cut=$(aws batch submit-job --job-name auditor-cut --job-queue "$queue" --job-definition auditor-cut --query jobId --output text)
aws batch submit-job --job-name auditor-shards --job-queue "$queue" --job-definition auditor-shard \
    --array-properties "size=$shards" --depends-on "jobId=$cut" --query jobId --output text
