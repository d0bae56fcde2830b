#!/usr/bin/env bash
# Installs what the tests need, by the ordinary clients; says nothing and does nothing where all is there.
#
#   tests/real/setup.sh [test|bench]
#
# test:  curl, Node.js, redis-server, a virtual environment under target/, the JavaScript clients
# bench: nginx and wrk, which benches/overhead compares with and measures by; valgrind for instruction counts
set -euo pipefail
cd "$(dirname "$0")/../.."
target="${CARGO_TARGET_DIR:-target}"

# packages COMMAND=PACKAGE...: asks the system's package manager only for what is missing.
packages() {
  local missing=()
  for pair in "$@"; do
    command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}")
  done
  ((${#missing[@]})) || return 0
  echo "setup: installing ${missing[*]}" >&2
  local as_root=()
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || { echo "setup: not root, and no sudo: install ${missing[*]} and come again" >&2; exit 1; }
    as_root=(sudo)
  fi
  command -v apt-get >/dev/null || { echo "setup: no apt-get here: install ${missing[*]} by hand and come again" >&2; exit 1; }
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# unchanged STAMP FILE...: whether STAMP holds the checksum of the files; `stamp` writes it.
checksum() { cat "$@" | sha256sum; }
unchanged() { [ -f "$1" ] && [ "$(cat "$1")" = "$(checksum "${@:2}")" ]; }
stamp() { checksum "${@:2}" >"$1"; }

python_environment() {
  local venv="$target/venv" wanted=(tests/real/requirements.txt tests/real/requirements-nodeps.txt)
  if unchanged "$venv/.stamp" "${wanted[@]}"; then return; fi
  echo "setup: Python packages into $venv (about a minute)" >&2
  rm -rf "$venv"
  mkdir -p "$target"
  # Debian keeps the part that `venv` needs in a package of its own.
  python3 -m venv "$venv" 2>/dev/null || { packages "no-such-command=python3-venv"; python3 -m venv "$venv"; }
  local pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check)
  "${pip[@]}" -r "${wanted[0]}"
  "${pip[@]}" --no-deps -r "${wanted[1]}"
  stamp "$venv/.stamp" "${wanted[@]}"
}

node_packages() {
  local here=tests/real/node
  if unchanged "$here/node_modules/.stamp" "$here/package-lock.json"; then return; fi
  echo "setup: JavaScript packages into $here/node_modules" >&2
  (cd "$here" && npm ci --silent --no-audit --no-fund --ignore-scripts)
  stamp "$here/node_modules/.stamp" "$here/package-lock.json"
}

case "${1:-test}" in
  test)
    packages curl=curl python3=python3 node=nodejs npm=npm redis-server=redis-server
    python_environment
    node_packages
    ;;
  bench)
    # Not in the path of every user: /usr/sbin is where Debian keeps it.
    PATH="$PATH:/usr/sbin" packages nginx=nginx-light wrk=wrk valgrind=valgrind python3=python3
    ;;
  *)
    echo "usage: tests/real/setup.sh [test|bench]" >&2
    exit 64
    ;;
esac
