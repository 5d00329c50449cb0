"""Mutual mean-teaching on digits whose classes have no labels: clusters and retrieval, before and after.

`python benchmarks/mutual.py` prints mean ± sd over splits. Digits 0–4 have labels, 5–9 are the pool. Each digit lies somewhere on a canvas
of 10×10 pixels, so that pixels alone say little. NMI compares 5 clusters of the pool, found by k-means in the features, with the true
digits. mAP is measured on 300 other digits of 5–9, each as a query among the others."""
import tempfile, warnings
warnings.filterwarnings('ignore')
from fastcore.script import call_parse
from fastai.vision.all import *
from fastssl.all import *

settings = {
    'mutual mean-teaching':              dict(),
    'clusters, no mutual teaching':      dict(soft_ce=0., soft_triplet=0.),
    'labels alone':                      dict(pretrain=24),
    'mutual mean-teaching, 5 clusters':  dict(n_clusters=5)}

def scores(features, truth, valid, valid_truth): return 100*clustering_nmi(kmeans_labels(np.asarray(features), 5), truth),100*retrieval_map(valid, valid_truth)

def run(seed, epochs=24, **kw):
    "Scores of the features after 8 epochs on the labels, and at the end"
    set_seed(seed, reproducible=True)
    dls = unseen_digits_dls(seed, uratio=4, n_steps=25)
    cb = MutualMeanTeachingCallback(**{**dict(n_clusters=15, pretrain=8, decay=.95), **kw})
    learn = ssl_learner(dls, [tiny_cnn(nf=16), tiny_cnn(nf=16)], cbs=cb, path=tempfile.mkdtemp())
    res,truth = [],tensor([o[1] for o in dls.valid_ds.items])
    for n,fit in ((8, learn.fit), (epochs-8, learn.fit_flat_cos)):
        with quiet(learn): fit(n, 3e-3)
        res.append(scores(cb.embed(), dls.pool.labels, cb.embed(dls.valid), truth))
    return res

def pixels(seed):
    dls = unseen_digits_dls(seed)
    flat = lambda xs: np.stack([np.asarray(x).ravel()/255. for x in xs]).astype(np.float32)
    x,v = flat(dls.pool.items),flat([o[0] for o in dls.valid_ds.items])
    return scores(x, dls.pool.labels, tensor(v-x.mean(0)), tensor([o[1] for o in dls.valid_ds.items]))

@call_parse
def main(
    seeds:int=5, # Splits
    first:int=0 # The first split
):
    torch.set_num_threads(1)
    splits = range(first, first+seeds)
    print(f'digits 5–9 without labels, 0–4 with; 600 steps, splits {first}–{first+seeds-1}; in %\n{"":<36}{"NMI":>14}{"mAP":>14}')
    ms = lambda v: f'{np.mean(v):.1f} ± {np.std(v, ddof=1):.1f}' if len(v)>1 else f'{v[0]:.1f}'
    line = lambda name, rows: print(f'{name:<36}' + ''.join(f'{ms(c):>14}' for c in zip(*rows)), flush=True)
    line('pixels', [pixels(s) for s in splits])
    for i,(n,kw) in enumerate(settings.items()):
        res = [run(s, **kw) for s in splits]
        if not i: line('labels alone, 200 steps', [r[0] for r in res])
        line(n, [r[1] for r in res])
