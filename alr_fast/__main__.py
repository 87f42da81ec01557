"""python -m alr_fast: versions, build and machine, for a bug report."""

import platform

import torch

from alr_fast import __version__
from alr_fast._C import build_info
from alr_fast._operators import HAS_CUDA
from alr_fast.utils.machine import processor


def main() -> None:
    """Prints versions, build and machine, one fact per line."""
    build = build_info()
    cuda = build["cuda_version"]
    in_use = build["cpu_isa_in_use"]
    isas = [f"{isa} (in use)" if isa == in_use else isa for isa in build["cpu_isas_compiled"]]
    facts = {
        "alr_fast": f"{__version__}, built by {build['compiler']}, "
        f"torch {build['torch_built_with']}",
        "CUDA kernels": f"CUDA {cuda}, {build['cuda_architectures']}" if cuda else "not built",
        "CUDA loaded": "yes" if HAS_CUDA else "no",
        "CPU kernels": ", ".join(isas),
        "torch": f"{torch.__version__} (CUDA {torch.version.cuda}), {torch.get_num_threads()} "
        "threads",
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "Python": f"{platform.python_version()} on {platform.platform()}",
        "processor": processor(),
    }
    for name, fact in facts.items():
        print(f"{name + ':':<14}{fact}")


if __name__ == "__main__":
    main()
