"""Runs that are killed with SIGKILL and started again, compared bit by bit with runs that nobody disturbed.

`python benchmarks/resume.py` prints a table: a row per registered method, a column per kind of kill, and in each cell how many of its runs
were equal / killed. Each method runs alone, with averaged weights, MixUp, gradient accumulation, all three, trackers, and two worker
processes, as far as it allows them. Then one run that is killed often, and what a save costs."""
import os, sys, tempfile, warnings
warnings.filterwarnings('ignore')
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parent.parent/'tests'))
from fastcore.script import call_parse
from killed_runs import *

columns = 'step','validation','write','swap','time'

def allowed(kill, extra): return kill!='swap' or extra not in ('alone','mixup','accumulation')

def row(method, seeds, folder):
    "Kind of kill → [equal, killed]"
    count,bad = {kill:[0,0] for kill in columns},[]
    for extra in extras:
        if not runs_with(method, extra): continue
        for seed in seeds:
            number = 100*seed+sum(map(ord, method+extra))
            case = Case(method, extra, folder, every=(None,1,2,3)[number%4])
            for kill in columns:
                if not allowed(kill, extra): continue
                killed,kept,differ = case.compare(kill, number)
                if not killed: continue
                count[kill][1] += 1
                if differ: bad.append((extra, kill, seed, differ))
                else: count[kill][0] += 1
    return count,bad

def cost_of_a_save(folder):
    "Milliseconds of a save, and of a training step, of a network of 11 million parameters"
    set_seed(0)
    learn = ssl_learner(mk_dls(n_steps=4, n_test=20), create_cnn_model(resnet18, 10, n_in=1, pretrained=False), cbs=[FixMatchCallback(.1), EMACallback()], path=folder)
    times = dict(save=[], step=[])
    def timed(name, f):
        def _f(*args, **kw):
            start = time.perf_counter()
            f(*args, **kw)
            times[name].append(1000*(time.perf_counter()-start))
        return _f
    keep = KeepRun(folder/'cost', every=1)
    keep._save,learn._do_one_batch = timed('save', keep._save),timed('step', learn._do_one_batch)
    with quiet(learn): learn.fit(2, 1e-3, cbs=keep)
    size = sum(f.stat().st_size for f in (folder/'cost').rglob('*') if f.is_file())
    return np.median(times['save']),np.median(times['step']),size/2**20

@call_parse
def main(
    seeds:int=1, # Kills of each kind, per method and company
    only:str='', # Methods, separated by commas; default: all
    kills:int=20 # Kills of the run that is killed often
):
    torch.set_num_threads(1)
    start,total = time.time(),[0,0]
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp)
        print(f'| equal / killed | {" | ".join(columns)} |\n|{"---|"*(len(columns)+1)}', flush=True)
        for method in only.split(',') if only else methods:
            count,bad = row(method, range(seeds), folder)
            print(f'| {method} | {" | ".join(f"{a} / {b}" for a,b in count.values())} |', flush=True)
            for o in bad: print('DIFFERS', method, *o, flush=True)
            total = [t+sum(c[i] for c in count.values()) for i,t in enumerate(total)]
        n,differ = Case('freematch', 'all', folder, every=1).compare_killed_often(kills, 0)
        print(f'\n{total[0]} of {total[1]} runs equal; one run killed {n} times: {differ or "equal"}; {time.time()-start:.0f} s')
        save,step,size = cost_of_a_save(folder)
        print(f'ResNet-18 with averaged weights: {save:.0f} ms per save, {step:.0f} ms per training step, {size:.0f} MiB')
