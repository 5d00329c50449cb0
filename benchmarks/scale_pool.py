"Step time, start of an epoch and memory by the size of the pool: `python benchmarks/scale.py --pool [SIZE …]`, each size in a process of its own"
import subprocess, sys, time, warnings
warnings.simplefilter('ignore')

SIZES = [10**k for k in range(3, 9)]

def row(n, steps=100):
    "(CPU seconds of a step, seconds until the first batch's indices are there, MiB that the epochs added) with a pool of `n` items that are made when they are read"
    import psutil, torch
    from fastai.vision.all import Callback, CrossEntropyLossFlat, DataLoaders, Learner, TfmdDL, nn, np, set_seed
    from fastssl.data.loaders import EpochDL, UnlabeledDL
    from fastssl.semi.fixmatch import FixMatchCallback

    class Made(torch.utils.data.Dataset):
        "Item i is a vector that depends on i alone"
        def __init__(self, n): self.n = n
        def __len__(self): return self.n
        def __getitem__(self, i): return (torch.sin(torch.arange(64)*(i%997+1.)),)
    set_seed(0)
    x = torch.stack([Made(10)[i][0] for i in range(10)]).repeat(8, 1)
    labeled = [(o, i%10) for i,o in enumerate(x)]
    train,valid = (TfmdDL(labeled, bs=16, shuffle=s, num_workers=0) for s in (True,False))
    dls = DataLoaders(train, valid, device=torch.device('cpu'))
    dls.c = 10
    dls.unlabeled = UnlabeledDL.create(train, Made(n), bs=112, n_steps=steps, seed=1)
    dls.unlabeled.view_tfms = dict(strong=lambda *xb: tuple(o+.1*torch.randn_like(o) for o in xb))
    starts = []
    for _ in range(20):
        t = time.perf_counter()
        dl = EpochDL.create(train, dls.unlabeled)
        next(iter(dl.get_idxs())), next(iter(dls.unlabeled.get_idxs()))
        starts.append(time.perf_counter()-t)
    class Steps(Callback):
        "The time of each step"
        def __init__(self): self.times = []
        def before_batch(self): self.t = time.process_time()
        def after_batch(self):
            if self.training: self.times.append((self.t, time.process_time()))
    cb = Steps()
    net = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    learn = Learner(dls, net, loss_func=CrossEntropyLossFlat(), cbs=[FixMatchCallback(.5), cb])
    before = psutil.Process().memory_info().rss
    with learn.no_bar(), learn.no_logging(): learn.fit(3, 1e-3)
    ends = [e for _,e in cb.times]
    gaps = np.diff(ends)
    per_epoch = [g for i,g in enumerate(gaps) if (i+1)%steps]       # without the ends of epochs
    return np.median(per_epoch), np.median(starts), (psutil.Process().memory_info().rss-before)/2**20

if __name__=='__main__':
    asked = [int(float(a)) for a in sys.argv[1:] if not a.startswith('-')]
    if '--one' in sys.argv: print('{:.2f} {:.2f} {:.0f}'.format(*(v*k for v,k in zip(row(asked[0]), (1e3,1e3,1)))))
    else:
        print('| items | step, ms of CPU | start of an epoch, ms | memory of the fit, MiB |\n|---|---|---|---|')
        for n in asked or SIZES:
            res = subprocess.run([sys.executable, __file__, '--one', str(n)], capture_output=True, text=True)
            if res.returncode: sys.exit(res.stderr)
            step,start,memory = res.stdout.split()[-3:]
            print(f'| {n:,} | {step} | {start} | {memory} |', flush=True)
