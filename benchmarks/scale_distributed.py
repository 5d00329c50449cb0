"`scale.py --distributed`: N processes against one process with the joint batch: equality, bytes, time per step"
import os, sys, time
from pathlib import Path
os.environ.setdefault('OMP_NUM_THREADS', '1')
root = Path(__file__).parent.parent
sys.path[:0] = [str(root), str(root/'tests')]
import warnings; warnings.simplefilter('ignore')
from test_distributed import *
import fastssl.training.distributed as D, fastssl.training.sync_gradients as S

class StepTimes(Callback):
    "CPU seconds from step to step: other work on the machine disturbs them least"
    order = 100
    def __init__(self): self.t = []
    def after_batch(self):
        if self.training: self.t.append(time.process_time())
    def after_train(self): self.seconds = np.diff(self.t)

def counted(make):
    "`trained`, with the bytes and the messages of each step: gradients, and the rest"
    def run():
        sent = dict(bytes=0, messages=0)
        def counting(f):
            def _f(x):
                sent['bytes'] += x.numel()*x.element_size()
                sent['messages'] += 1
                return f(x)
            return _f
        cb = Gradients()
        learn = make(cb)
        deterministic(learn.model)
        keep = {}
        class Watch(Callback):
            "Counts from the first step on: what a fit exchanges at its start is left out"
            order = 1000
            def before_batch(self):
                if self.training and not keep: keep.update(start=dict(sent), sync=self.learn.sync_gradients)
            def after_batch(self): keep['end'] = dict(sent)
        learn.add_cb(Watch())
        D.gathered = counting(D.gathered)
        D.summed = S.summed = counting(D.summed)
        with together(learn): fit(learn, 1)
        if num_distrib()<2: return cb.gs
        n = 3
        total = (keep['end']['bytes']-keep['start']['bytes'])/n
        return cb.gs,keep['sync'].n_bytes/n,total,(keep['end']['messages']-keep['start']['messages'])/n
    return run

def equality(names):
    fastssl.semi.mixmatch.mix_rows = mixed
    draw,torch.randn_like = torch.randn_like,lambda x: (x.as_subclass(Tensor)*37).sin()+.5
    print('Largest difference of a gradient in six steps, over the largest gradient; bytes that a process sends per step\n')
    print('| method | difference | gradients, KiB | means, rows and flags, KiB | messages |\n|---|---|---|---|---|')
    for name in names:
        (one,),two = in_processes(trained(makers[name]), 1),in_processes(trained(makers[name]))
        largest = max(g.abs().max() for g in one.gs)
        gap = max((a-b).abs().max()/largest for o in two for a,b in zip(one.gs, o.gs))
        _,grads,other,n = in_processes(counted(makers[name]))[0]
        print(f'| {name} | {gap:.0e} | {grads/1024:.1f} | {other/1024:.2f} | {n:.0f} |', flush=True)
    torch.randn_like = draw

def timed(arch, size, bs, steps):
    "Seconds per step of FixMatch: raw images, weak and strong views, joint forward pass"
    def run():
        k = n_processes()
        set_seed(0)
        X = np.random.randint(256, size=(200,size,size,3)).astype(np.uint8)
        y = np.where(np.arange(200)<60, np.arange(200)%10, -1)
        dls = SSLDataLoaders.from_arrays(X, y, bs=bs//k, uratio=3, n_steps=steps, in_memory=True, seed=0, valid_pct=.2)
        learn = ssl_learner(dls, arch, cbs=[FixMatchCallback(), (cb:=StepTimes())], pretrained=False, path=PATH)
        with together(learn): fit(learn)
        return cb.seconds
    return run

def throughput(repeats=3):
    print('\nCPU seconds per step and process of FixMatch, one thread per process: one process with the whole batch, two with half of it each; median of all steps\n')
    print('| model | rows per step | one process | two processes | speed |\n|---|---|---|---|---|')
    for arch,size,bs,steps in (('resnet18',32,16,12), ('resnet18',64,16,8)):
        one,two = [],[]
        for _ in range(repeats):
            one += [t for s in in_processes(timed(arch, size, bs, steps), 1, timeout=300) for t in s]
            two += [t for s in in_processes(timed(arch, size, bs, steps), 2, timeout=300) for t in s]
        a,b = np.median(one),np.median(two)
        print(f'| {arch}, {size} px | {bs}+{3*bs} | {a:.3f} | {b:.3f} | {a/b:.2f}× |', flush=True)

if __name__=='__main__':
    args = [a for a in sys.argv[1:] if not a.startswith('--')]
    if '--throughput' not in sys.argv: equality(args or makers)
    if not args: throughput()
