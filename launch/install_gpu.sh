#!/usr/bin/env bash
# Makes the environment of a CUDA cluster: the pins of requirements-gpu.txt, TransformerEngine's torch extension, this project.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
    cat <<'END'
usage: launch/install_gpu.sh [--te-wheel FILE] [FOLDER, .venv if not given]

Makes FOLDER, an environment of Python 3.12 with all that requirements-gpu.txt pins and this project, 10 GB in all: 10 minutes of
downloading and unpacking, and 15 of compiling. No GPU and no driver are needed, so a login node will do.

TransformerEngine's torch extension is on no index as a binary: it is compiled here, for this torch, by CUDA 13's nvcc. On a cluster
`module load cuda` brings that; CUDA_HOME says where it is, if `which nvcc` doesn't. The wheel is kept in FOLDER/wheels: copy it, and

  launch/install_gpu.sh --te-wheel transformer_engine_torch-...whl      takes it instead: no compiler, no toolkit

  NVTE_CUDA_ARCHS="90;100"   for which GPUs to compile (90: Hopper, 100: Blackwell); 90 if not given
  MAX_JOBS=8                 compilers side by side, 2 GB each; 4 if not given
  PYTHON=/path/python3.12    the interpreter

At the end everything is imported once, and `python -m megatron_nft.doctor` looks at the machine. What that says does not undo the
installation: without GPUs it misses the driver.

Exit status: 0 installed, 1 a step failed (it is the last that is named), 2 wrong arguments or no Python 3.12 or toolkit.
END
}

die() { echo "install_gpu: $*" >&2; exit 2; }
wheel='' venv=''
while (($#)); do
    case $1 in
        -h | --help) usage; exit ;;
        --te-wheel) wheel=${2:?--te-wheel FILE}; shift ;;
        --te-wheel=*) wheel=${1#*=} ;;
        -*) die "no such option: $1; see launch/install_gpu.sh --help" ;;
        *) [[ -z $venv ]] || die "one FOLDER, not two: $venv and $1"; venv=$1 ;;
    esac
    shift
done
venv=${venv:-.venv}
stamp=$venv/.installed
wanted=$(cat requirements-gpu.txt pyproject.toml launch/install_gpu.sh | sha256sum)
if [[ -f $stamp && $(<"$stamp") == "$wanted" ]]; then
    echo "install_gpu: $venv is up to date"
    exit
fi

pin() { sed -n "s/^$1\(\[.*\]\)\?==\([^ ]*\).*/\2/p" requirements-gpu.txt; }
torch=$(pin torch) te=$(pin transformer-engine)
is_312() { [[ $("$1" -c 'import sys; print(*sys.version_info[:2], sep=".")' 2>/dev/null) == 3.12 ]]; }
python=${PYTHON:-python3.12}
[[ -n ${PYTHON:-} ]] || is_312 "$python" || python=python3
is_312 "$python" || die "$python is no Python 3.12, for which the wheels of requirements-gpu.txt are: set PYTHON to one"
if [[ -n $wheel ]]; then
    [[ -f $wheel ]] || die "--te-wheel $wheel: there is no such file"
    [[ ${wheel##*/} == "transformer_engine_torch-$te-cp312-"* ]] ||
        die "--te-wheel ${wheel##*/} is not transformer_engine_torch-$te-cp312-..., which requirements-gpu.txt pins"
else
    if [[ -z ${CUDA_HOME:-} ]]; then
        nvcc=$(command -v nvcc) || nvcc=
        for CUDA_HOME in ${nvcc:+"$(dirname "$(dirname "$(readlink -f "$nvcc")")")"} /usr/local/cuda; do
            [[ -f $CUDA_HOME/include/cuda_runtime_api.h ]] && break  # a wrapper in /usr/local/bin is no toolkit
        done
        [[ -n $nvcc || -x $CUDA_HOME/bin/nvcc ]] ||
            die "no nvcc to compile TransformerEngine's extension with: module load cuda, set CUDA_HOME, or give --te-wheel FILE"
    fi
    [[ -x $CUDA_HOME/bin/nvcc && -f $CUDA_HOME/include/cuda_runtime_api.h ]] ||
        die "CUDA_HOME = $CUDA_HOME has no bin/nvcc and include/cuda_runtime_api.h; set it to the folder of a CUDA 13 toolkit"
    "$CUDA_HOME/bin/nvcc" --version | grep -q 'release 13' ||
        die "$CUDA_HOME/bin/nvcc is of another CUDA than torch $torch, which is built for 13; set CUDA_HOME to a CUDA 13 toolkit"
fi

start=$SECONDS
say() { echo "install_gpu: $* (after $((SECONDS - start)) s)"; }
say "making $venv with $("$python" --version)"
[[ -x $venv/bin/python ]] || "$python" -m venv "$venv" || die "$python can't make a virtual environment"
pip=("$venv/bin/python" -m pip --disable-pip-version-check)
rest=$venv/requirements-without-te.txt
grep -v '^transformer-engine' requirements-gpu.txt >"$rest"
say "installing torch $torch and what its neighbours need, 9 GB"
"${pip[@]}" install --quiet -r "$rest"
if [[ -z $wheel ]]; then
    site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    # The toolkit's headers come first: those of the wheels, where NCCL's and cuDNN's are, lack some of them.
    include=$CUDA_HOME/include
    for package in cu13 cudnn nccl; do include+=:$site/nvidia/$package/include; done
    say "compiling TransformerEngine's torch extension with $CUDA_HOME"
    env PATH="$venv/bin:$CUDA_HOME/bin:$PATH" CUDA_HOME="$CUDA_HOME" CPATH="$include" NVTE_FRAMEWORK=pytorch \
        NVTE_CUDA_ARCHS="${NVTE_CUDA_ARCHS:-90}" MAX_JOBS="${MAX_JOBS:-4}" NVTE_BUILD_THREADS_PER_JOB=1 \
        "${pip[@]}" wheel --quiet --no-deps --no-build-isolation "transformer-engine-torch==$te" -w "$venv/wheels"
    wheel=$(ls "$venv/wheels/transformer_engine_torch-$te-"*.whl)
    say "compiled $wheel"
fi
say "installing TransformerEngine $te and the project"
"${pip[@]}" install --quiet --no-deps "$wheel"
"${pip[@]}" install --quiet --no-build-isolation -r requirements-gpu.txt
"${pip[@]}" install --quiet --no-build-isolation --no-deps -e .
"${pip[@]}" check
say "importing everything once"
"$venv/bin/python" -W ignore -c 'import torch, transformer_engine.pytorch, megatron.core, vllm, ray, megatron_nft' >/dev/null || {
    echo "install_gpu: the import above failed; undefined symbols in transformer_engine_torch: its wheel is for another torch" \
        "than $torch, leave --te-wheel out" >&2
    exit 1
}
echo "$wanted" >"$stamp"
say "done: $venv has $(du -sh "$venv" | cut -f1)"
"$venv/bin/python" -m megatron_nft.doctor || echo "install_gpu: installed; what doctor FAILs is this machine's"
