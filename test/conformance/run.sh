#!/usr/bin/env bash
# Runs Connect's conformance suite against the transport, with its own gRPC path on and off.
#
#   run.sh [flags of connectconformance, for example --run 'gRPC Unexpected Requests/**' --trace -v]
#
#   OWN_PATH     on, off, or both (default)
#   DEAF         1: the handlers overlook their deadlines
#   PARALLEL     calls at once per server (default 4)
#   MAX_SERVERS  servers at once (default 1)
#   LIMIT        seconds for one pass (default 600)
#
# Needs Go: the suite's protos and its runner come from its Go module. Both are kept in build/conformance.
set -euo pipefail

SUITE=connectrpc.com/conformance
SUITE_VERSION=v1.0.7

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
cache=$root/build/conformance
export PATH="$root/node_modules/.bin:$PATH"
mkdir -p "$cache"

command -v go > /dev/null || { echo "conformance: Go is not installed, skipped"; exit 0; }

runner=$cache/bin/connectconformance
if [ "$("$runner" --version 2> /dev/null)" != "connectconformance $SUITE_VERSION" ]; then
  GOBIN=$cache/bin nice -n 10 go install "$SUITE/cmd/connectconformance@$SUITE_VERSION"
fi
wanted="$SUITE_VERSION $(protoc-gen-es --version 2>&1)"
if [ "$(cat "$cache/gen/.of" 2> /dev/null)" != "$wanted" ]; then
  rm -rf "$cache/gen"
  protos=$(go mod download -json "$SUITE@$SUITE_VERSION" |
    node -e 'process.stdout.write(JSON.parse(require("fs").readFileSync(0, "utf8")).Dir)')/proto
  buf generate "$protos" -o "$cache" --template \
    '{"version":"v2","plugins":[{"local":"protoc-gen-es","out":"gen","opt":["target=js+dts","import_extension=js"]}]}'
  echo "$wanted" > "$cache/gen/.of"
fi
tsc -p "$here"

failed=0
for own_path in on off; do
  case ${OWN_PATH:-both} in both | "$own_path") ;; *) continue ;; esac
  log=$cache/last-run-$own_path.txt
  status=0
  OWN_PATH=$own_path nice -n 5 timeout "${LIMIT:-600}" "$runner" --mode server --conf "$here/config-full.yaml" \
    -p "${PARALLEL:-4}" --max-servers "${MAX_SERVERS:-1}" "$@" -- node "$here/server.ts" > "$log" 2>&1 || status=$?
  echo "own path $own_path:"
  grep -E '^FAILED: ' "$log" | sed 's/^FAILED: /  failed: /; s/:$//' | sort | sed -n 1,40p || true
  grep -A3 '^Total cases' "$log" | sed 's/^/  /' || tail -n 4 "$log"
  [ "$status" = 0 ] || { failed=1; echo "  status $status; reasons in $log"; }
done
exit "$failed"
