"What happens to runs that outgrow one machine: `python benchmarks/scale.py --distributed [METHOD … | --throughput]` `--pool [SIZE …]` or `--linear [MILLIONS]`"
import runpy, sys
from pathlib import Path

parts = {
    '--distributed':'scale_distributed.py',     # N processes equal one; bytes; time per step
    '--pool':'scale_pool.py',                   # step, start of an epoch and memory by the size of the pool
    '--linear':'scale_linear.py'}               # what is linear in the size of the pool: keys, labels, arrays

if __name__=='__main__':
    asked = [parts[a] for a in sys.argv[1:] if a in parts]
    if not asked: sys.exit(f'usage: python benchmarks/scale.py [{" | ".join(parts)}]')
    for name in asked: runpy.run_path(str(Path(__file__).parent/name), run_name='__main__')
