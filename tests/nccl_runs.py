"""Two processes that NCCL connects equal one process with the joint batch: `python tests/nccl_runs.py [METHOD …]` prints a line for each method, and fails if one differs.

Both processes share one GPU, and NCCL takes them for two machines. Without a GPU, gloo connects them as in `test_distributed.py`."""
import os, sys
os.environ['PYTORCH_NVML_BASED_CUDA_CHECK'] = '1'
import torch
gpu = torch.cuda.is_available()
visible = os.environ.get('CUDA_VISIBLE_DEVICES')
os.environ['CUDA_VISIBLE_DEVICES'] = ''                 # fastai takes a GPU when it is imported, and then forked processes cannot use it
from test_distributed import *

def take_gpu():
    "In a forked process: data and models go to the GPU from now on"
    if visible is None: os.environ.pop('CUDA_VISIBLE_DEVICES', None)
    else: os.environ['CUDA_VISIBLE_DEVICES'] = visible
    default_device(True)

def on_gpu(make):
    "`make` with data and network on the GPU, if there is one"
    def _make(cb):
        learn = make(cb)
        if gpu: take_gpu()
        learn.dls.to(default_device())
        learn.model.to(default_device())
        return learn
    return _make

def with_norms(f): return trained(on_gpu(lambda cb: learner([*L(f()), cb], partial(tiny_cnn, nf=4))), noop)      # fastai makes them SyncBatchNorm
runs = {k:trained(on_gpu(f)) for k,f in makers.items()}
if gpu:
    sees_rows = dict(supervised=SSLStep, fixmatch=lambda: FixMatchCallback(low, teacher_decay=.9), **{k:METHODS[k] for k in ('freematch','meanteacher','mcc')}, ema=VARIANTS['ema'])
    runs.update({f'{k}, batch norms':with_norms(f) for k,f in sees_rows.items()})

def differences(run):
    "Largest difference of a gradient over the largest gradient, and largest difference of a weight"
    (one,),two = (in_processes(run, n, gpu=gpu, timeout=120) for n in (1,2))
    largest = max(g.abs().max() for g in one.gs)
    assert largest>1e-3
    gaps = [(a-b).abs().max()/largest for o in two for a,b in zip(one.gs, o.gs, strict=True)]
    return float(max(gaps)),float(max((o.weights-one.weights).abs().max() for o in two))

if __name__=='__main__':
    fastssl.semi.mixmatch.mix_rows = mixed
    torch.randn_like = lambda x: (x.as_subclass(Tensor)*37).sin()+.5
    failed,names = [],sys.argv[1:] or list(runs)
    print(f'{"NCCL" if gpu else "gloo"}: method, gradients, weights', flush=True)
    for name in names:
        try: grad,weight = differences(runs[name])
        except RuntimeError as e: grad,weight = math.inf,str(e)[-1500:]
        if grad>1e-5: failed.append(name)
        print(f'{name:28} {grad:.0e} {weight if grad==math.inf else f"{weight:.0e}"}{"  FAILED" if name in failed else ""}', flush=True)
    print(f'{len(failed)} of {len(names)} failed {" ".join(failed)}')
    sys.exit(bool(failed))
