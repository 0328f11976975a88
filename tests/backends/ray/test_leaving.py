"""Ray ends while the report is written, and the rest of the process goes on."""

from tests.support import ROOT, forked


def test_the_garbage_collector_frees_nothing_of_ray_while_ray_ends():
    """Ray ends the process if a reference to one of its objects is freed while it shuts down in another thread."""
    program = """
import gc
import ray
from raysweep import space
from raysweep.backends.ray import cluster

class Cycle:
    def __init__(self):
        self.itself, self.reference = self, ray.put(1)

    def __del__(self):
        freed.append(ray.is_initialized())

freed = []
cluster.connect(None, space.build({}, {}, "test").resources)
for _ in range(1000):
    Cycle()
before = len(freed)
with cluster.leaving():
    while ray.is_initialized():
        gc.collect()
    assert len(freed) == before
gc.collect()
assert len(freed) == 1000
assert not gc.get_freeze_count()
print("the end")
"""
    process = forked.run("-c", program, cwd=ROOT)
    assert (process.returncode, process.stdout) == (0, "the end\n"), process.stderr
