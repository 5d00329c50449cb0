"""Speedrun of semi-supervised learning: least time to an accuracy from a few labels. One flat file; it does not use fastssl.

`python benchmarks/speedrun.py` runs the category *digits*: scikit-learn's 8×8 digits, 4 labels per class, 450 held out, on five splits with
two seeds each, and appends each run to `speedrun.csv`. Rules and records are in `records.md`. The settings were chosen on splits 100 to 102;
nothing was chosen on the splits that are reported, 200 to 204. `speedrun_library.py` is the same run by the library.

A run spreads the labels over the graph of nearest neighbors and trains a small network on the result, on turned, scaled, moved and cut images.
After each quarter the labels are spread again, over the network's features. The average of the weights is what is tested."""
import argparse, csv, datetime, json, math, time
from pathlib import Path
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

here = Path(__file__).parent
settings = dict(steps=280, n_unlabeled=128, lr=.02, decay=.97, width=24, n_neighbors=6)
background = -.3/.37                                    # level of the pixels around a digit, normalized

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
    "Write the indices of test and labeled digits by split: `speedrun_splits.json` was made by it"
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

def cut(x):
    "A random pixel of each image is background, or none"
    n,size = len(x),x.shape[-1]
    at = torch.randint(0, size, (2,n,1), device=x.device)
    i = torch.arange(size, device=x.device)
    inside = i==at
    return x.masked_fill((inside[0][:,:,None]&inside[1][:,None])[:,None], background)

def weak(x): return warp(x, 0., 0., 0., .6)
def strong(x): return cut(warp(x, .3, .2, .25, 1.))

# ------ labels of neighbors

def propagate(x, y, pool, k, alpha=.99):
    "Probabilities of the pool's classes, squared: labels spread over the graph of the `k` nearest neighbors (Zhou et al. 2004)"
    x = torch.cat([x, pool]).flatten(1)
    near = torch.cdist(x, x).topk(k+1, largest=False)
    w = x.new_zeros(len(x), len(x)).scatter_(1, near.indices, (-(near.values/near.values[:,-1:])**2).exp())
    w = (w+w.T).fill_diagonal_(0)
    s = w.sum(1).rsqrt()
    given = F.one_hot(y, 10).to(x.dtype)
    given = torch.cat([given, given.new_zeros(len(pool), 10)])
    q = torch.linalg.solve(torch.eye(len(x), device=x.device)-alpha*w*s[:,None]*s, given)[len(y):].clamp(min=1e-9)
    for _ in range(5):                                  # classes of one size
        q = q/q.sum(0)
        q = q/q.sum(1, keepdim=True)
    return q**2/(q**2).sum(1, keepdim=True)

# ------ network

def network(width, n_out=10):
    "Four convolutions with batch norm"
    def conv(ni, nf, stride=1): return [nn.Conv2d(ni, nf, 3, stride, 1, bias=False), nn.BatchNorm2d(nf), nn.ReLU(inplace=True)]
    w = width
    return nn.Sequential(*conv(1, w), *conv(w, 2*w, 2), *conv(2*w, 2*w), *conv(2*w, 2*w, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2*w, n_out))

@torch.no_grad()
def features(net, x):
    net.eval()
    f = F.normalize(net[:-1](x))
    net.train()
    return f

@torch.no_grad()
def refresh_norms(net, x):
    "Batch statistics of `x` as running statistics"
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = None                           # the mean over all batches that follow
            m.reset_running_stats()
    net.train()(x)
    net.eval()

# ------ the run

def run(split, seed, device='cpu', **kw):
    "Accuracy in percent on the test images, and seconds from data in memory to the last weights: CPU time, on a GPU wall time"
    o = argparse.Namespace(**{**settings, **kw})
    x,y,pool,test_x,test_y = (t.to(device) for t in digits(split))
    torch.manual_seed(seed)
    clock = time.process_time if str(device)=='cpu' else time.perf_counter
    start = clock()
    net = network(o.width).to(device).train()
    params = list(net.parameters())
    average = [p.detach().clone() for p in params]
    opt = torch.optim.AdamW(params, lr=o.lr, betas=(.9,.99), eps=1e-5, weight_decay=.01, foreach=True)
    rows = torch.cat([torch.randperm(len(pool)) for _ in range(math.ceil(o.steps*o.n_unlabeled/len(pool)))]).to(device)
    for step in range(o.steps):
        if step==0: soft = propagate(x, y, pool, o.n_neighbors)
        elif step%math.ceil(o.steps/4)==0: soft = propagate(features(net, x), y, features(net, pool), o.n_neighbors)
        pct = step/o.steps
        for g in opt.param_groups: g['lr'] = o.lr*min(1, 10*pct+.1)*(1-pct)
        i = rows[step*o.n_unlabeled:(step+1)*o.n_unlabeled]
        loss = F.cross_entropy(net(weak(x)), y)+F.cross_entropy(net(strong(pool[i])), soft[i])
        loss.backward()
        opt.step()
        opt.zero_grad()
        decay = min(o.decay, (1+step)/(10+step))
        with torch.no_grad(): torch._foreach_lerp_(average, params, 1-decay)
    with torch.no_grad(): torch._foreach_copy_(params, average)
    refresh_norms(net, pool)
    seconds = clock()-start
    with torch.no_grad(): right = (net(test_x).argmax(1)==test_y).float().mean().item()
    return 100*right,seconds

def log_runs(name, f, splits, seeds, category='digits'):
    "Run `f(split, seed)` for all, append to `speedrun.csv`, and print the means"
    file,res = here/'speedrun.csv',[]
    new = not file.exists()
    with file.open('a', newline='') as out:
        w = csv.writer(out)
        if new: w.writerow('date,category,file,split,seed,accuracy,seconds'.split(','))
        for split in splits:
            for seed in seeds:
                acc,seconds = f(split, seed)
                res.append((acc, seconds))
                w.writerow([datetime.date.today(), category, name, split, seed, round(acc, 2), round(seconds, 2)])
                print(f'split {split}, seed {seed}: {acc:.2f} %, {seconds:.2f} s', flush=True)
    acc,seconds = np.array(res).T
    print(f'{name}, {len(res)} runs: {acc.mean():.2f} % (least {acc.min():.2f}, standard error {acc.std(ddof=1)/len(acc)**.5:.2f}), {seconds.mean():.2f} s')

def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--splits', default='200,201,202,203,204')
    p.add_argument('--seeds', default='0,1')
    a = p.parse_args()
    torch.set_num_threads(1)
    return [[int(o) for o in s.split(',')] for s in (a.splits, a.seeds)]

if __name__=='__main__': log_runs('speedrun.py', run, *arguments())
