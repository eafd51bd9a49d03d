#!/usr/bin/env bash
# Installs what the demo and the tests need. It asks no questions, changes nothing if
# everything is there, and names what it cannot install.
set -euo pipefail

packages=(
  ca-certificates                 # TLS roots, for this script and the tests
  gcc libc6-dev git make          # the race detector, and this Makefile
  openssh-client openssh-server   # real ssh and sshd
  systemd-container mmdebstrap    # machines: nspawn on a Debian root file system
  debian-archive-keyring          # on Ubuntu: Debian's keys
  iproute2 dbus                   # network namespaces; systemd inside the machines
  qemu-system-x86 e2fsprogs       # a machine with its own kernel, for SELinux
  shellcheck zip                  # lint; the size of the Lambda's package
  rpm ansible-core                # the packages and the playbook for existing machines
  openjdk-17-jre-headless         # DynamoDB Local
)

# AWS's DynamoDB Local, from an npm package with a pinned version and hash.
# e2e/fake/dynamodb looks for it in this folder.
dynamodb_version=2.9.30
dynamodb_sha512=c5379e44bbf311fab2779961ddb1f8734907bd21c79a6843e590ec1c5280439836665e89aa515dbad6908422c7cf1129e91cb5a3b4c1ea7888a17b9002749ec1
dynamodb_local=${XDG_CACHE_HOME:-$HOME/.cache}/hallmark/dynamodb-local-$dynamodb_version

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
  # Debian's npm needs hundreds of packages. Install it only if there is no npm. Another
  # npm brings its own node.
  command -v npm >/dev/null || packages+=(npm)
  command -v node >/dev/null || packages+=(nodejs)
  mapfile -t missing < <(missing_packages)
  [ "${#missing[@]}" -eq 0 ] && return
  [ "$(id -u)" -eq 0 ] || sudo=(sudo)
  say "installing ${missing[*]}"
  "${sudo[@]}" apt-get -qq update
  # Our tests start their own sshd on loopback. Keep the package from starting one on
  # port 22 of all addresses, now and at every boot.
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
  command -v aws >/dev/null || missing+=('awscli>=1.40,<2') # older ones know no AWS_ENDPOINT_URL
  [ "${#missing[@]}" -eq 0 ] && return
  say "installing ${missing[*]}"
  python3 -m pip install --quiet "${missing[@]}" && return
  say "could not install ${missing[*]} with pip: install moto 5 (moto_server), cfn-lint 1.51 and the AWS CLI by hand and put them on the PATH"
  exit 1
}

install_dynamodb_local() {
  local dir=$dynamodb_local.partial
  [ -f "$dynamodb_local/DynamoDBLocal.jar" ] && return
  say "installing DynamoDB Local"
  rm -rf "$dir" && mkdir -p "$dir"
  (
    cd "$dir"
    npm pack --silent "amplify-dynamodb-simulator@$dynamodb_version" >/dev/null 2>&1 || {
      say "could not fetch amplify-dynamodb-simulator@$dynamodb_version with npm: see 'npm config get registry'"
      exit 1
    }
    sha512sum --check --quiet <<<"$dynamodb_sha512  amplify-dynamodb-simulator-$dynamodb_version.tgz"
    tar -xzf "amplify-dynamodb-simulator-$dynamodb_version.tgz" --strip-components 2 package/emulator
    rm "amplify-dynamodb-simulator-$dynamodb_version.tgz"
  )
  mv "$dir" "$dynamodb_local"
}

command -v dpkg-query >/dev/null || {
  say "the demo and the whole-path tests run on Debian; on other systems use 'make unit'"
  exit 1
}
need_go
install_packages
install_python_tools
install_dynamodb_local
