#!/bin/sh
# Builds one fuzz target with the stable compiler and runs it: fuzz/run.sh <target> [libFuzzer options].
set -eu
cd "$(dirname "$0")"
target=$1
shift
# The coverage that libFuzzer reads; what cargo-fuzz sets, less the sanitizer, which needs a nightly compiler.
RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 --cfg fuzzing"
export RUSTFLAGS
# Naming the host's triple keeps the flags from build scripts, which are not linked with libFuzzer.
host=$(rustc -vV | sed -n 's/^host: //p')
cargo build --release --target "$host" --bin "$target"
mkdir -p "corpus/$target" "artifacts/$target"
seeds=
if [ -d "seeds/$target" ]; then seeds="seeds/$target"; fi
# New inputs go into the first folder; the seeds are only read.
exec "target/$host/release/$target" -rss_limit_mb=512 -artifact_prefix="artifacts/$target/" "$@" "corpus/$target" $seeds
