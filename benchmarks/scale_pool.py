"Step time, start of an epoch and memory by the size of the pool: `python benchmarks/scale.py --pool [SIZE …] [--rounds N]`"
import argparse, gc, io, subprocess, sys, time, warnings
from contextlib import redirect_stdout
warnings.simplefilter('ignore')

SIZES = [10**k for k in range(3, 9)]
STEPS = 37                          # of 112 rows per epoch: one block of the pool's order, which is computed 4,096 rows at a time

def learner(n):
    "FixMatch with a pool of `n` items that are made when they are read; `learn.cpu` holds the CPU seconds of the last epoch's training"
    import torch
    from fastai.vision.all import Callback, CrossEntropyLossFlat, DataLoaders, Learner, TfmdDL, nn, set_seed
    from fastssl.data.loaders import UnlabeledDL
    from fastssl.semi.fixmatch import FixMatchCallback

    class Made(torch.utils.data.Dataset):
        "Item i is a vector that depends on i alone"
        def __init__(self, n): self.n = n
        def __len__(self): return self.n
        def __getitem__(self, i): return (torch.sin(torch.arange(64)*(i%997+1.)),)
    class Start(Callback):
        order = -100
        def before_epoch(self): self.learn.cpu = -time.process_time()
    class End(Callback):
        order = 100
        def after_train(self): self.learn.cpu += time.process_time()
    set_seed(0)
    x = torch.stack([Made(10)[i][0] for i in range(10)]).repeat(8, 1)
    labeled = [(o, i%10) for i,o in enumerate(x)]
    train,valid = (TfmdDL(labeled, bs=16, shuffle=s, num_workers=0) for s in (True,False))
    dls = DataLoaders(train, valid, device=torch.device('cpu'))
    dls.c = 10
    dls.unlabeled = UnlabeledDL.create(train, Made(n), bs=112, n_steps=STEPS, seed=1)
    dls.unlabeled.view_tfms = dict(strong=lambda *xb: tuple(o+.1*torch.randn_like(o) for o in xb))
    net = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    return Learner(dls, net, loss_func=CrossEntropyLossFlat(), cbs=[FixMatchCallback(.5), Start(), End()])

def fit(learn, epochs=1):
    "Train; what `PoolReport` says of so short a fit is not shown"
    with redirect_stdout(io.StringIO()), learn.no_bar(), learn.no_logging(): learn.fit(epochs, 1e-3)

def epoch_start(learn):
    "CPU seconds until the first batch's indices are there"
    from fastssl.data.epoch import EpochDL
    t = time.process_time()
    dl = EpochDL.create(learn.dls.train, learn.dls.unlabeled)
    next(iter(dl.get_idxs())), next(iter(learn.dls.unlabeled.get_idxs()))
    return time.process_time()-t

def memory(n):
    "MiB that a learner and ten epochs add to a process which has trained before"
    import psutil
    fit(learner(1000))
    before = psutil.Process().memory_info().rss
    fit(learner(n), 10)
    return (psutil.Process().memory_info().rss-before)/2**20

def in_turn(sizes, rounds):
    """(CPU seconds per step, and until an epoch starts) of each size in each round.

    In a round, each size trains one epoch, in random order and without garbage collection, so that a busy machine slows all of them down"""
    import random
    import numpy as np
    learners = {n:learner(n) for n in sizes}
    for learn in learners.values(): fit(learn)
    steps,starts = ({n:[] for n in sizes} for _ in range(2))
    gc.disable()
    for k in range(rounds):
        for n in random.Random(k).sample(sizes, len(sizes)):
            fit(learners[n])
            steps[n].append(learners[n].cpu/STEPS)
            starts[n].append(epoch_start(learners[n]))
            gc.collect()
    return [{n:np.array(v) for n,v in o.items()} for o in (steps, starts)]

def median_and_error(a):
    "The median of `a`, and its standard error as of normal noise, by the median deviation"
    import numpy as np
    m = np.median(a)
    return m,1.2533*1.4826*np.median(np.abs(a-m))/len(a)**.5

if __name__=='__main__':
    p = argparse.ArgumentParser()
    p.add_argument('sizes', nargs='*', type=lambda s: int(float(s)))
    p.add_argument('--rounds', type=int, default=60)
    p.add_argument('--memory', action='store_true', help='print the MiB of the first size alone')
    p.add_argument('--pool', action='store_true', help='as scale.py passes it')
    args = p.parse_args()
    if args.memory: print(memory(args.sizes[0]))
    else:
        import numpy as np
        sizes = args.sizes or SIZES
        steps,starts = in_turn(sizes, args.rounds)
        print(f'| items | step, ms of CPU | of {sizes[0]:,} items, ± standard error | start of an epoch, ms of CPU | ten epochs add, MiB |\n|---|---|---|---|---|')
        for n in sizes:
            res = subprocess.run([sys.executable, __file__, '--memory', str(n)], capture_output=True, text=True)
            if res.returncode: sys.exit(res.stderr)
            ratio,error = median_and_error(steps[n]/steps[sizes[0]])
            ms,start = 1e3*np.median(steps[n]),1e3*np.median(starts[n])
            print(f'| {n:,} | {ms:.2f} | {ratio:.3f} ± {error:.3f} | {start:.2f} | {float(res.stdout.split()[-1]):.0f} |', flush=True)
