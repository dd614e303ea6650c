#!/bin/sh
# Installs a QEMU that serves vhost-user under emulation (8.0 or newer): from the machine's own Debian source, or from
# the backports beside it, at the same address and with the same key.
set -eu
export DEBIAN_FRONTEND=noninteractive
apt() { apt-get -q -o DPkg::Lock::Timeout=300 "$@" < /dev/null; }
suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
list=/etc/apt/sources.list.d/vmrouter-backports
apt update
offered=$(apt-cache policy qemu-system-x86 | sed -n 's/.*Candidate: [0-9]*:\{0,1\}\([0-9]*\)\..*/\1/p')
if [ "${offered:-0}" -ge 8 ]; then
  apt install -y --no-install-recommends qemu-system-x86
  exit
fi
if ! grep -rqs "^[^#]*$suite-backports" /etc/apt/sources.list /etc/apt/sources.list.d; then
  stanza=$(cat /etc/apt/sources.list.d/*.sources 2> /dev/null | awk -v suite="$suite" 'BEGIN { RS = ""; FS = "\n" }
    {
      found = 0
      for (i = 1; i <= NF; i++) if ($i ~ "^Suites:(.* )?" suite "( |$)") found = 1
      if (!found) next
      for (i = 1; i <= NF; i++) {
        if ($i ~ /^Suites:/) print "Suites: " suite "-backports"
        else if ($i !~ /^#/) print $i
      }
      exit
    }')
  line=$(awk -v suite="$suite" '$1 == "deb" {
      for (i = 2; i <= NF; i++) if ($i == suite) { $i = suite "-backports"; print; exit }
    }' /etc/apt/sources.list 2> /dev/null || true)
  if [ -n "$stanza" ]; then
    echo "$stanza" > "$list.sources"
  elif [ -n "$line" ]; then
    echo "$line" > "$list.list"
  else
    echo "no Debian source for $suite to derive backports from" >&2
    exit 1
  fi
  apt update
fi
apt install -y --no-install-recommends -t "$suite-backports" qemu-system-x86
