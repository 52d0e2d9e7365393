#!/bin/sh
# Compiles the models of this folder with atc of Huawei's CANN toolkit. Made by npukit @VERSION@.
#   sh compile.sh [NAME...]     all models, or these: @NAMES@
# The OMs, atc's output and their checksums go to the folder out. Exit status: 0 done, 1 atc failed,
# 2 this folder is damaged or lies badly, 3 CANN is missing. ASCEND_SET_ENV may name CANN's set_env.sh.
set -u

die() {
  status=$1
  shift
  printf 'compile.sh: %s\n' "$*" >&2
  exit "$status"
}

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P) || exit 2

# atc takes letters, digits, '_', '-', '.' and Chinese characters in paths, links followed.
odd=$(printf '%s' "$here" | LC_ALL=C tr -d 'A-Za-z0-9._/\200-\377-')
[ -z "$odd" ] || die 2 "atc cannot work in $here: move this folder to a path without '$odd'"

# --- CANN's environment: its set_env.sh is written for bash, which atc itself needs too
if ! command -v atc >/dev/null 2>&1; then
  [ -z "${NPUKIT_BUNDLE_ENV:-}" ] || die 3 "$NPUKIT_BUNDLE_ENV was sourced, and there is still no atc: mend CANN"
  for script in "${ASCEND_SET_ENV:-}" "${ASCEND_TOOLKIT_HOME:-}/set_env.sh" "${ASCEND_TOOLKIT_HOME:-}/../set_env.sh" \
    /usr/local/Ascend/ascend-toolkit/set_env.sh /usr/local/Ascend/cann/set_env.sh \
    "${HOME:-}/Ascend/ascend-toolkit/set_env.sh" "${HOME:-}/Ascend/cann/set_env.sh"; do
    if [ -f "$script" ]; then
      command -v bash >/dev/null 2>&1 || die 3 "bash is missing, which CANN needs"
      NPUKIT_BUNDLE_ENV=$script
      export NPUKIT_BUNDLE_ENV
      exec bash -c 'set_env=$1; script=$2; shift 2; . "$set_env"; exec sh "$script" "$@"' bash "$script" "$0" "$@"
    fi
  done
  die 3 "CANN was not found: install its toolkit and kernels, source its set_env.sh, or set ASCEND_SET_ENV to it"
fi
if [ ! -d /usr/local/Ascend/driver ] && [ -n "${ASCEND_TOOLKIT_HOME:-}" ]; then
  # No NPU here: the stand-in libraries for compiling come last.
  LD_LIBRARY_PATH=${LD_LIBRARY_PATH:-}:$ASCEND_TOOLKIT_HOME/$(uname -m)-linux/devlib
  export LD_LIBRARY_PATH
fi

# --- the files as they were written
if command -v sha256sum >/dev/null 2>&1; then sums='sha256sum'; else sums='shasum -a 256'; fi
(cd "$here" && $sums -c SHA256SUMS) >/dev/null 2>&1 || {
  (cd "$here" && $sums -c SHA256SUMS 2>&1) | grep -v ': OK$' >&2
  die 2 'files of this folder are missing or damaged: copy it again'
}

mkdir -p "$here/out" || die 2 "cannot write into $here"
[ -w "$here/out" ] || die 2 "cannot write into $here/out"
for file in "${ASCEND_TOOLKIT_HOME:-}/version.cfg" "${ASCEND_TOOLKIT_HOME:-}"/*-linux/ascend_toolkit_install.info; do
  [ -f "$file" ] && sed -n -e 's/^toolkit_running_version=\[.*:\(.*\)\]$/\1/p' -e 's/^version=//p' "$file" |
    head -n 1 >"$here/out/cann.txt" && break
done

failed=''
wanted=" $* "
compile() {
  name=$1
  shift
  case $wanted in
  '  ' | *" $name "*) ;;
  *) return ;;
  esac
  printf 'compile.sh: %s: atc runs; this may take minutes to hours\n' "$name"
  cd "$here/$name" || exit 2
  rm -f "../out/$name.om" "../out/$name"_linux_*.om
  { atc "$@" && echo 0 >"../out/$name.status" || echo "$?" >"../out/$name.status"; } 2>&1 | tee "../out/$name.log"
  status=$(cat "../out/$name.status")
  rm -f "../out/$name.status"
  om=''
  for file in "../out/$name.om" "../out/$name"_linux_*.om; do
    [ -f "$file" ] && om=$file && break
  done
  if [ "$status" != 0 ]; then
    reason="atc ended with status $status"
  elif ! grep -q 'ATC run success' "../out/$name.log"; then
    reason='atc did not say that it succeeded'
  elif [ -z "$om" ]; then
    reason='atc wrote no OM'
  elif [ "$(head -c 4 "$om")" != IMOD ]; then
    reason='what atc wrote is no OM'
  else
    printf 'compile.sh: %s: done, %s bytes: out/%s\n' "$name" "$(wc -c <"$om" | tr -d ' ')" "$(basename "$om")"
    return
  fi
  [ -z "$om" ] || rm -f "$om"
  printf 'compile.sh: %s: FAILED, %s; see out/%s.log\n' "$name" "$reason" "$name" >&2
  failed="$failed $name"
}

@JOBS@
cd "$here/out" || exit 2
find . -type f \( -name '*.om' -o -path './weight/*' \) -exec $sums {} + | sed 's|  \./|  |' >SHA256SUMS
[ -z "$failed" ] || die 1 "failed:$failed"
printf 'compile.sh: all done. Take the folder out back, then for each:\n'
printf '  npukit compile out/NAME.om --from-bundle THIS_FOLDER -o NAME.om\n'
