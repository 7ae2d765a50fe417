"""What every test runs under: eight CPU devices, and jaxtyping's annotations checked at
run time in the library's core. `strict` adds strict dtype promotion, which optax and so
the training steps do not stand.
"""

import atexit
import os
import shutil
import tempfile

#: Most of the tests' time is compilation, so XLA's and LLVM's optimisers rest.
FLAGS = (
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
)
if "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = " ".join((*FLAGS, os.environ.get("XLA_FLAGS", "")))

# Eight devices on few cores: a program is dispatched when the one before is done, or
# their threads can starve each other in a sum over devices.
os.environ.setdefault("JAX_CPU_ENABLE_ASYNC_DISPATCH", "false")

#: What one file has compiled, another need not; of all workers of a run.
if "ISPASP_TESTS_PROGRAMS" not in os.environ:
    os.environ["ISPASP_TESTS_PROGRAMS"] = tempfile.mkdtemp(prefix="ispasp-tests-")
    atexit.register(shutil.rmtree, os.environ["ISPASP_TESTS_PROGRAMS"], True)

import hypothesis  # noqa: E402
import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_compilation_cache_dir", os.environ["ISPASP_TESTS_PROGRAMS"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)

#: Where a wrong shape or dtype is an error. The hook has to come before the imports.
CHECKED = ("selection", "graph", "walk", "budget", "models", "pruning")
jaxtyping.install_import_hook(
    [f"ispasp_jax.{module}" for module in CHECKED], "checking.typechecked"
)

hypothesis.settings.register_profile(
    "tests",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("tests")


@pytest.fixture
def strict():
    """No implicit promotion of dtypes."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(autouse=True, scope="module")
def programs():
    """A file's compiled programs go with it: each holds pages of memory that a process
    has a limited number of."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def data_folder():
    """The folder that ISPASP_DATA names, for tests on real weights and images."""
    folder = os.environ.get("ISPASP_DATA")
    if not folder:
        pytest.skip("ISPASP_DATA is not set: it names the folder of weights and images")
    if not os.path.isdir(folder):
        pytest.skip(f"ISPASP_DATA is {folder!r}, which is not a folder")
    return folder


@pytest.fixture
def unchecked():
    """Annotations as users have them: nothing looks at them at run time."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
