"""Speedrun of semi-supervised learning: least time to an accuracy from a few labels. One flat file; it does not use fastssl.

`python benchmarks/speedrun.py` runs the category *digits*: scikit-learn's 8×8 digits, 4 labels per class, 450 held out, to 97 % on the mean
of the held-out splits. Rules, records and how to enter one: `records.md`. Each run appends a line to `speedrun.csv`. Settings were chosen on
splits 100 to 102; nothing was chosen on the splits that are reported. `speedrun_library.py` is the same run by the library.

A run is FixMatch: the most probable class of a shifted image is the label of the same image turned, scaled and cut, if its probability is at
least a threshold. The network is small, the rate falls linearly, and the average of the weights is what is tested."""
import argparse, csv, datetime, json, math, time
from pathlib import Path
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

here = Path(__file__).parent
settings = dict(steps=250, bs=40, n_unlabeled=128, lr=.02, threshold=.8, decay=.97, width=24, weight=1.,
                label_weight=1., weak=(.1,.05,.05,.6), strong=(.3,.1,.15,1.), cut=3, adam=True, deep=False, prop=0.)

# ------ data

def digits(split):
    "Labeled images and labels, pool, test images and labels: float images n×1×8×8, normalized"
    from sklearn.datasets import load_digits
    X,y = load_digits(return_X_y=True)
    X = (torch.tensor(X, dtype=torch.float32).view(-1,1,8,8)/16-.3)/.37
    y = torch.tensor(y)
    f = json.loads((here/'speedrun_splits.json').read_text())[str(split)]
    test,labeled = f['test'],f['labeled']
    is_pool = torch.ones(len(y), dtype=torch.bool)
    is_pool[test+labeled] = False
    return X[labeled],y[labeled],X[is_pool],X[test],y[test]

def make_splits(splits, n_test=450, per_class=4):
    "Indices of test and labeled digits by split"
    from sklearn.datasets import load_digits
    y,res = load_digits().target,{}
    for s in splits:
        rng = np.random.default_rng(s)
        order = rng.permutation(len(y))
        rest = order[n_test:]
        labeled = [i for c in range(10) for i in rng.permutation(rest[y[rest]==c])[:per_class].tolist()]
        res[s] = dict(test=sorted(order[:n_test].tolist()), labeled=labeled)
    (here/'speedrun_splits.json').write_text(json.dumps(res))

# ------ views

def warp(x, angle, scale, shear, shift):
    "Images turned (radians), scaled and sheared by up to these, moved by up to `shift` pixels; one draw for each image"
    n,size = len(x),x.shape[-1]
    r = torch.rand(5, n, device=x.device)*2-1
    a,s = r[0]*angle,1+r[1]*scale
    m = torch.stack([s*a.cos(), -s*a.sin()+r[2]*shear, r[3]*2*shift/size, s*a.sin(), s*a.cos(), r[4]*2*shift/size], 1)
    return F.grid_sample(x, F.affine_grid(m.view(n,2,3), x.shape, align_corners=False), align_corners=False, padding_mode='border')

def cut(x, side):
    "A square of `side` pixels at a random place of each image is its background"
    n,size = len(x),x.shape[-1]
    at = torch.randint(1-side, size, (2,n,1), device=x.device)
    i = torch.arange(size, device=x.device)
    inside = (i>=at)&(i<at+side)
    return x.masked_fill((inside[0][:,:,None]&inside[1][:,None])[:,None], -.3/.37)


# ------ labels of neighbors

def propagate(lx, ly, pool, k=10, alpha=.99, T=.5):
    "Probabilities of the pool's classes: labels spread over the graph of the `k` nearest neighbors (Zhou et al. 2004)"
    x = torch.cat([lx, pool]).flatten(1)
    d = torch.cdist(x, x)
    near = d.topk(k+1, largest=False)
    w = torch.zeros_like(d).scatter_(1, near.indices, (-(near.values/near.values[:,-1:])**2).exp())
    w = (w+w.T).fill_diagonal_(0)
    s = w.sum(1).rsqrt()
    w = w*s[:,None]*s
    y = torch.zeros(len(x), 10)
    y[torch.arange(len(ly)),ly] = 1
    f = torch.linalg.solve(torch.eye(len(x))-alpha*w, y)[len(lx):].clamp(min=1e-9)
    f = f/f.sum(0)                                      # classes of one size
    return (f/f.sum(1, keepdim=True)).pow(1/T)/(f/f.sum(1, keepdim=True)).pow(1/T).sum(1, keepdim=True)

# ------ network

def network(width=24, n_out=10, deep=False):
    "Four convolutions with batch norm"
    def conv(ni, nf, stride=1): return [nn.Conv2d(ni, nf, 3, stride, 1, bias=False), nn.BatchNorm2d(nf), nn.ReLU(inplace=True)]
    w = width
    return nn.Sequential(*conv(1, w), *conv(w, 2*w, 2), *conv(2*w, 2*w), *(conv(2*w, 2*w, 2) if deep else []), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2*w, n_out))

# ------ the run

def run(split, seed, device='cpu', **kw):
    "Accuracy in percent on the test images, and CPU seconds from data in memory to the last weights"
    o = argparse.Namespace(**{**settings, **kw})
    lx,ly,pool,tx,ty = (t.to(device) for t in digits(split))
    torch.manual_seed(seed)
    start = time.process_time()
    def weak(x): return warp(x, *o.weak)
    def strong(x): return cut(warp(x, *o.strong), o.cut)
    net = network(o.width, deep=o.deep).to(device).train()
    average = [p.detach().clone() for p in net.parameters()]
    params = list(net.parameters())
    if o.adam: opt = torch.optim.AdamW(params, lr=o.lr, betas=(.9,.99), eps=1e-5, weight_decay=.01, foreach=True)
    else: opt = torch.optim.SGD(params, lr=o.lr, momentum=.9, nesterov=True, weight_decay=5e-4, foreach=True)
    if o.prop: prop = propagate(lx, ly, pool)
    rows = torch.cat([torch.randperm(len(pool)) for _ in range(math.ceil(o.steps*o.n_unlabeled/len(pool)))]).to(device)
    for step in range(o.steps):
        pct = step/o.steps
        for g in opt.param_groups: g['lr'] = o.lr*min(1, 10*pct+.1)*(1-pct)
        u = pool[rows[step*o.n_unlabeled:(step+1)*o.n_unlabeled]]
        x = torch.cat([weak(lx), weak(u)])
        out = net(x)
        out_s = net(strong(u))
        with torch.no_grad(): conf,label = out[len(lx):].softmax(1).max(1)
        loss = o.label_weight*F.cross_entropy(out[:len(lx)], ly)
        loss = loss+o.weight*(F.cross_entropy(out_s, label, reduction='none')*(conf>=o.threshold)).mean()
        if pct<o.prop: loss = loss-(prop[rows[step*o.n_unlabeled:(step+1)*o.n_unlabeled]]*out_s.log_softmax(1)).sum(1).mean()
        loss.backward()
        opt.step()
        opt.zero_grad()
        d = min(o.decay, (1+step)/(10+step))
        with torch.no_grad(): torch._foreach_lerp_(average, params, 1-d)
    with torch.no_grad():
        torch._foreach_copy_(params, average)
        for m in net:
            if isinstance(m, nn.BatchNorm2d): m.momentum = None         # the mean over all batches that follow
            if isinstance(m, nn.BatchNorm2d): m.reset_running_stats()
        net(pool)
    seconds = time.process_time()-start
    net.eval()
    with torch.no_grad(): acc = 100*(net(tx).argmax(1)==ty).float().mean().item()
    return acc,seconds
