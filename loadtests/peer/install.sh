#!/usr/bin/env bash
# Builds the server that ours is compared with, and the tool that makes its tables, from source: install.sh DIRECTORY.
# Needs Go. What is there already is left as it is.
set -euo pipefail

version=v1.32.1
directory=${1:?"usage: install.sh DIRECTORY"}
mkdir -p "$directory"
directory=$(cd "$directory" && pwd)

if [ "$(cat "$directory/version" 2>/dev/null)" = "$version" ]; then
    exit 0
fi
GOBIN=$directory CGO_ENABLED=0 go install \
    "go.temporal.io/server/cmd/server@$version" \
    "go.temporal.io/server/cmd/tools/cassandra@$version"
echo "$version" >"$directory/version"
