"""The machine itself: driver, memory, shared memory, disk, and variables that change what torch and vLLM do."""

from collections.abc import Iterator

from megatron_nft.doctor.findings import Finding, fail, ok, warn
from megatron_nft.doctor.machine import Machine

GIB, MIB = 1 << 30, 1 << 20
OLDEST_DRIVER = {12: (525, 60), 13: (580, 65)}
"""CUDA's major version -> NVIDIA's oldest Linux driver for it."""
LEAST_MEMORY, ENOUGH_MEMORY = 5 * GIB, 8 * GIB
"""The quickstart peaks at 4.1 GiB."""
LEAST_SHARED_MEMORY, ENOUGH_SHARED_MEMORY = 320 * MIB, 2 * GIB
"""Ray's object store takes 256 MiB, the weight buckets of the quickstart two times 4; NCCL and larger models more."""
LEAST_DISK, ENOUGH_DISK = 2 * GIB, 20 * GIB
ENOUGH_OPEN_FILES = 4096
ALLOCATOR_VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")


def check_driver(machine: Machine) -> Iterator[Finding]:
    """NVIDIA's driver, against the CUDA that torch was built for."""
    cuda, driver = machine.torch_cuda, machine.driver
    if driver is None and machine.is_for_gpus:
        reason = "the installed packages are for GPUs, and this machine has none, as login nodes have none"
        yield warn("driver", "no NVIDIA driver", reason, "run it on a node with GPUs, too")
        return
    if driver is None:
        built = f" (torch is built for CUDA {cuda[0]}.{cuda[1]}, and runs on CPUs, too)" if cuda else ""
        yield ok("driver", f"no NVIDIA driver: CPU only{built}")
        return
    value = f"{driver[0]}.{driver[1]:02d}, {machine.num_gpus} GPUs"
    if cuda is None:
        reason = "there are GPUs, and the installed torch is a CPU build, or missing"
        yield warn("driver", value, reason, "launch/install_gpu.sh installs what GPUs need")
        return
    oldest = OLDEST_DRIVER.get(cuda[0])
    if oldest and driver < oldest:
        reason = f"torch is built for CUDA {cuda[0]}.{cuda[1]}, which needs driver {oldest[0]}.{oldest[1]} or later"
        yield fail("driver", value, reason, "update the driver, or install a torch for an older CUDA")
    elif machine.num_gpus == 0:
        reason = "the driver is there, and no GPU"
        yield warn("driver", value, reason, "ask the job or the container for GPUs (--gpus-per-node, --gpus all)")
    else:
        yield ok("driver", f"{value}; torch for CUDA {cuda[0]}.{cuda[1]}")


def check_allocator(machine: Machine) -> Iterator[Finding]:
    """expandable_segments: older vLLMs refuse them; newer ones switch them off around their own pool, and CUDA IPC
    handles of such memory, which colocated weight sync sends, open several times slower (vLLM's own figure is 9)."""
    vllm = machine.package("vllm")
    copes = vllm is not None and (vllm / "device_allocator/alloc_conf.py").is_file()
    for name in ALLOCATOR_VARIABLES:
        setting = machine.environment.get(name, "")
        if "expandable_segments:true" in setting.replace(" ", "").lower():
            remedy = f"unset {name}, or take expandable_segments out of it"
            if copes:
                reason = "colocated weight sync (CUDA IPC) is several times slower with expandable segments"
                yield warn("allocator", f"{name}={setting}", reason, remedy)
            else:
                reason = (
                    "the memory pool of such a vLLM refuses expandable segments: engines can neither sleep nor wake"
                )
                yield fail("allocator", f"{name}={setting}", reason, remedy)
            return
    set_ones = [f"{name}={machine.environment[name]}" for name in ALLOCATOR_VARIABLES if name in machine.environment]
    yield ok("allocator", ", ".join(set_ones) or "torch's defaults")


def check_threads(machine: Machine) -> Iterator[Finding]:
    """OpenMP: processes that spin on, or are bound to, the same cores."""
    environment, clean = machine.environment, True
    threads = environment.get("OMP_NUM_THREADS", "")
    if threads and (not threads.isdigit() or int(threads) < 1):
        clean = False
        yield fail("threads", f"OMP_NUM_THREADS={threads}", "it must be a number above 0", "export OMP_NUM_THREADS=1")
    elif threads and int(threads) > machine.cores:
        clean = False
        reason = f"this process has {machine.cores} cores; threads that wait for one spin, and everything is slow"
        yield warn("threads", f"OMP_NUM_THREADS={threads}", reason, "export OMP_NUM_THREADS=1")
    for name, bad in (("OMP_PROC_BIND", ("true", "close", "spread", "master")), ("OMP_WAIT_POLICY", ("active",))):
        if environment.get(name, "").lower() in bad:
            clean = False
            reason = "all ranks and engines of the machine would wait on the same cores"
            yield warn("threads", f"{name}={environment[name]}", reason, f"unset {name}")
    if clean:
        yield ok("threads", f"OMP_NUM_THREADS {threads or 'unset'}, {machine.cores} cores")


def check_memory(machine: Machine) -> Iterator[Finding]:
    """Host memory that is free, within the container's limit."""
    if (free := machine.free_memory) is None:
        yield warn("memory", "unknown", f"{machine.proc}/meminfo can't be read", "look at it by hand")
        return
    value, remedy = f"{free / GIB:.1f} GiB free", "end other processes, or raise the job's or container's limit"
    if free < LEAST_MEMORY:
        yield fail("memory", value, "the smallest run takes 4.1 GiB", remedy)
    elif free < ENOUGH_MEMORY:
        yield warn("memory", value, "the quickstart runs in it, little else does", remedy)
    else:
        yield ok("memory", value)


def check_shared_memory(machine: Machine) -> Iterator[Finding]:
    """/dev/shm: Ray's object store and weight buckets are there. Containers have 64 MiB unless told otherwise."""
    if not machine.shared_memory.is_dir():
        yield fail("shared memory", f"no {machine.shared_memory}", "Ray and weight sync need it", "mount a tmpfs there")
        return
    free = machine.disk_usage(machine.shared_memory)[2]
    value, remedy = f"{free / GIB:.2f} GiB free", "docker run --shm-size=8g, or remount it: -o remount,size=8g"
    if free < LEAST_SHARED_MEMORY:
        yield fail("shared memory", value, "Ray's object store takes 256 MiB, weight buckets come on top", remedy)
    elif free < ENOUGH_SHARED_MEMORY:
        yield warn("shared memory", value, "NCCL and weight buckets of larger models need more", remedy)
    else:
        yield ok("shared memory", value)


def check_disk(machine: Machine) -> Iterator[Finding]:
    """Free space where runs go by default."""
    free = machine.disk_usage(machine.disk)[2]
    value, remedy = f"{free / GIB:.1f} GiB free in {machine.disk}", "make room, or set run.dir to another disk"
    if free < LEAST_DISK:
        yield fail("disk", value, "logs and one small model don't fit", remedy)
    elif free < ENOUGH_DISK:
        yield warn("disk", value, "an exported 7B model takes 15 GiB", remedy)
    else:
        yield ok("disk", value)


def check_open_files(machine: Machine) -> Iterator[Finding]:
    """Ray holds a socket per worker and more."""
    value = f"at most {machine.open_files}"
    if machine.open_files < ENOUGH_OPEN_FILES:
        yield warn("open files", value, "Ray with many workers needs more", f"ulimit -n {16 * ENOUGH_OPEN_FILES}")
    else:
        yield ok("open files", value)


def check_proxy(machine: Machine) -> Iterator[Finding]:
    """gRPC, and so Ray, sends even local calls through http_proxy."""
    environment = {name.lower(): value for name, value in machine.environment.items()}
    proxy = environment.get("http_proxy") or environment.get("grpc_proxy")
    if proxy and not {"127.0.0.1", "localhost", "*"} & set(environment.get("no_proxy", "").replace(" ", "").split(",")):
        reason = "Ray's calls between processes of this machine would go to the proxy"
        yield warn("proxy", proxy, reason, "export no_proxy=localhost,127.0.0.1,<this cluster's network>")
    else:
        yield ok("proxy", "none for local addresses" if proxy else "none")
