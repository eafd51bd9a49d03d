#!/usr/bin/env bash
# Installs what the demo and the tests need. It asks for nothing, changes
# nothing where all is there, and says what is missing where it can't help.
set -euo pipefail

packages=(
  gcc libc6-dev git make          # the race detector, and this Makefile
  openssh-client openssh-server   # real ssh and sshd
  systemd-container mmdebstrap    # machines: nspawn on a Debian root file system
  iproute2 dbus                   # network namespaces; systemd inside the machines
  shellcheck zip                  # lint; the size of the Lambda's package
)

say() { printf 'setup: %s\n' "$*" >&2; }

need_go() {
  command -v go >/dev/null && return
  say "Go is missing: install Go 1.26 or later from https://go.dev/dl and put it on the PATH"
  exit 1
}

missing_packages() {
  local p
  for p in "${packages[@]}"; do
    dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || echo "$p"
  done
}

install_packages() {
  local missing sudo=()
  mapfile -t missing < <(missing_packages)
  [ "${#missing[@]}" -eq 0 ] && return
  [ "$(id -u)" -eq 0 ] || sudo=(sudo)
  say "installing ${missing[*]}"
  "${sudo[@]}" apt-get -qq update
  # Our tests start their own sshd on loopback. The package would start one on
  # port 22 of all addresses, now and at every boot: keep it from both.
  "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive SYSTEMD_OFFLINE=1 \
    apt-get -qq -y --no-install-recommends install "${missing[@]}" >/dev/null
  case " ${missing[*]} " in
    *' openssh-server '*) "${sudo[@]}" env SYSTEMD_OFFLINE=1 systemctl --quiet disable ssh.service ;;
  esac
}

install_python_tools() {
  local missing=()
  command -v moto_server >/dev/null || missing+=('moto[server]>=5,<6')
  command -v cfn-lint >/dev/null || missing+=('cfn-lint>=1.51,<2')
  [ "${#missing[@]}" -eq 0 ] && return
  say "installing ${missing[*]}"
  python3 -m pip install --quiet "${missing[@]}" && return
  say "could not install ${missing[*]} with pip: install moto 5 (moto_server) and cfn-lint 1.51 by hand and put them on the PATH"
  exit 1
}

command -v dpkg-query >/dev/null || {
  say "the demo and the whole-path tests run on Debian; on other systems use 'make unit'"
  exit 1
}
need_go
install_packages
install_python_tools
