#!/bin/sh
# Installs a released `kiln`.
#
#   KILN_BASE_URL=https://github.com/OWNER/REPOSITORY/releases/download sh install.sh 0.1.0
#
# Downloads the archive for this machine and SHA256SUMS from $KILN_BASE_URL/vVERSION/, compares the digest, and only then
# unpacks anything. Nothing that is downloaded runs before. These settings are read from the environment:
#
#   KILN_BASE_URL      where the releases are; needed
#   KILN_VERSION       the version, where no argument gives it
#   KILN_SHA256        the archive's digest, where you have it from elsewhere: then SHA256SUMS is not trusted
#   KILN_INSTALL_DIR   where `kiln` goes; $HOME/.local/bin unless given
set -eu

fail() {
    printf 'install.sh: %s\n' "$1" >&2
    exit 1
}

# The latter for macOS and BSD, on which nobody needs to look at an archive for Linux, but may.
digest() {
    if command -v sha256sum >/dev/null 2>&1; then
        sha256sum "$1" | cut -d ' ' -f 1
    elif command -v shasum >/dev/null 2>&1; then
        shasum -a 256 "$1" | cut -d ' ' -f 1
    else
        fail 'neither sha256sum nor shasum is here to check what is downloaded'
    fi
}

download() {
    if command -v curl >/dev/null 2>&1; then
        # A redirect may not leave HTTPS.
        curl --fail --silent --show-error --location --proto-redir '=https' --retry 3 --output "$2" "$1"
    elif command -v wget >/dev/null 2>&1; then
        wget --quiet --tries=3 --output-document="$2" "$1"
    else
        fail 'neither curl nor wget is here to download with'
    fi || fail "can't download $1"
}

target() {
    [ "$(uname -s)" = Linux ] || fail "there is no kiln for $(uname -s), only for Linux"
    case "$(uname -m)" in
        x86_64 | amd64) echo x86_64-unknown-linux-musl ;;
        aarch64 | arm64) echo aarch64-unknown-linux-musl ;;
        *) fail "there is no kiln for $(uname -m), only for x86_64 and aarch64" ;;
    esac
}

main() {
    version=${1:-${KILN_VERSION:-}}
    version=${version#v}
    base=${KILN_BASE_URL:-}
    [ -n "$base" ] || fail 'KILN_BASE_URL is not set: it says where the releases are'
    [ -n "$version" ] || fail 'give a version: sh install.sh 0.1.0'
    case "$version" in
        *[!0-9A-Za-z.+-]*) fail "\`$version\` is no version" ;;
    esac
    folder=${KILN_INSTALL_DIR:-$HOME/.local/bin}
    name=kiln-$version-$(target)

    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    trap 'exit 130' INT TERM
    from=${base%/}/v$version
    download "$from/$name.tar.gz" "$scratch/$name.tar.gz"
    expected=${KILN_SHA256:-}
    if [ -z "$expected" ]; then
        download "$from/SHA256SUMS" "$scratch/SHA256SUMS"
        expected=$(awk -v name="$name.tar.gz" '$2 == name { print $1 }' "$scratch/SHA256SUMS")
        [ -n "$expected" ] || fail "$from/SHA256SUMS does not list $name.tar.gz"
    fi
    found=$(digest "$scratch/$name.tar.gz")
    [ "$found" = "$expected" ] ||
        fail "$name.tar.gz is not what was published: its SHA-256 is $found, $expected was expected; nothing was installed"

    tar -xzf "$scratch/$name.tar.gz" -C "$scratch" "$name/kiln"
    mkdir -p "$folder"
    # Next to the old one first, so that it is replaced in one step.
    cp "$scratch/$name/kiln" "$folder/.kiln.$$"
    chmod 755 "$folder/.kiln.$$"
    mv "$folder/.kiln.$$" "$folder/kiln"
    printf 'installed kiln %s as %s\n' "$version" "$folder/kiln" >&2
    case ":$PATH:" in
        *":$folder:"*) ;;
        *) printf 'note: %s is not in PATH\n' "$folder" >&2 ;;
    esac
}

# Only when the last line has arrived: a download that was cut off does nothing.
main "$@"
