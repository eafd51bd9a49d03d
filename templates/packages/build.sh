#!/usr/bin/env bash
# Builds the deb and rpm packages of one version: templates/packages/build.sh VERSION FOLDER ARCH...
# "make packages" builds what goes into them first. The packages and all files in them have the
# time in SOURCE_DATE_EPOCH, or that of the last commit.
set -euo pipefail
cd "$(dirname "$0")/../.."

export VERSION=$1
folder=$2
stage=bin/packages/stage # as in nfpm.yaml
shift 2
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}

# licenses prints the licenses of everything that the program links.
licenses() {
  cat LICENSE
  printf '\nThe program contains Go'\''s standard library and these modules, under their own licenses.\n'
  GOOS=linux go list -deps -f '{{with .Module}}{{if not .Main}}{{.Path}} {{.Version}} {{.Dir}}{{end}}{{end}}' ./cloudinit |
    LC_ALL=C sort -u |
    { printf 'Go %s %s\n' "$(go env GOVERSION)" "$(go env GOROOT)"; cat; } |
    while read -r path version dir; do
      for file in "$dir"/LICENSE* "$dir"/COPYING* "$dir"/NOTICE*; do
        [ ! -f "$file" ] || { printf '\n--- %s %s: %s\n\n' "$path" "$version" "${file##*/}"; cat "$file"; }
      done
    done
}

rm -rf "$stage" "$folder"/*.deb "$folder"/*.rpm
mkdir -p "$stage/man" "$stage/units" "$folder"
for page in bin/man/hallmark*.8; do
  gzip --no-name --best --stdout "$page" >"$stage/man/${page##*/}.gz"
done
for unit in hallmark.service hallmark.timer hallmark-renew.timer; do
  sed 's|^ExecStart=/usr/local/bin/|ExecStart=/usr/bin/|' "templates/systemd/$unit" >"$stage/units/$unit"
done
bin/hallmark completion bash >"$stage/hallmark.bash"
bin/hallmark completion zsh >"$stage/_hallmark"
bin/hallmark completion fish >"$stage/hallmark.fish"
licenses >"$stage/copyright"
gzip --no-name --best --stdout CHANGELOG.md >"$stage/changelog.gz"

for ARCH in "$@"; do
  export ARCH
  cp "packer-plugin/programs/hallmark-linux-$ARCH" "$stage/hallmark"
  for format in deb rpm; do
    bin/nfpm package --config templates/packages/nfpm.yaml --packager "$format" --target "$folder/"
  done
done
