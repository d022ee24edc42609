#!/bin/sh
# Says what of the system's tools is there; installs what is missing as root where apt is. Never fails: what stays missing
# costs the tests that need it, and those say so.
set -u
missing=""
look() { # command, package, what needs it
  if command -v "$1" >/dev/null 2>&1; then
    echo "found    $1"
  else
    echo "missing  $1 (package $2): $3"
    missing="$missing $2"
  fi
}
look cc build-essential "compiles the native library; nothing runs without it"
look git git "the release and the check of the contracts"
look go golang "the conformance suite and the Go example (1.26 or newer)"
look python3 python3 "the Python example"
look chromium chromium "tests of the API in a browser"
look h2load nghttp2-client "the sharpest load generator for benchmarks"
[ -n "$missing" ] || exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq >/dev/null 2>&1
  for package in $missing; do
    if apt-get install -y -qq --no-install-recommends "$package" >/dev/null 2>&1; then
      echo "installed $package"
    else
      echo "could not install $package"
    fi
  done
else
  echo "install the missing ones with your system's package manager"
fi
exit 0
