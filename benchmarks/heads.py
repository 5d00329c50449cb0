"""Photographs and a frozen body: what labels alone can do, and what semi-supervised training of the head adds.

`python benchmarks/heads.py DATA FEATURES --sets photo,art,sketch,flowers --labels 1,2,4,8,16 --splits 0,1,2,3,4` appends to `benchmarks/heads.csv`, one line per split. The features of all images of a set, in four views, come from
`cache_features` and are kept in the folder FEATURES; data, body, sizes of pool and validation set as in `photos.py`. Columns: accuracy on the validation set of the regression (`probe`), of label propagation on features averaged over
views, of the probe with propagation (the start of the head) and of `ssl_head_learner` as it is without an argument; `agreement` and the accuracy on the pool show what the gate knows. `--summary` prints the table."""
import warnings
from pathlib import Path
warnings.filterwarnings('ignore')
from fastai.vision.all import *
from fastssl.all import *
from photos import body, folders
from rows import append, each, photo_options

file = Path(__file__).with_suffix('.csv')

def block(splitter, size):
    return DataBlock((ImageBlock, CategoryBlock), get_y=parent_label, splitter=splitter, item_tfms=Resize(size), batch_tfms=RandomCropFlip(pad=.125))

def features(root, cache, name, size):
    "Features of all images of a set in four views, their classes and files"
    files = sorted(get_image_files(Path(root)/folders[name]))
    dls = block(RandomSplitter(.3, seed=0), size).dataloaders(files[::10], bs=16, val_bs=100, num_workers=0)
    dls.add_unlabeled(files, labels=[parent_label(f) for f in files], n_steps=6, seed=0)
    learn = ssl_learner(dls, body(len(dls.vocab)), cbs=SSLStep(), init_head=None)
    return cache_features(learn, Path(cache)/f'f_{name}_{size}').pool,dls.pool.labels,files

def run(name, x, y, files, labels, split, size):
    order = np.random.default_rng(split).permutation(len(files))
    n_valid = min(len(files)//5, 300)
    valid,rest = order[:n_valid],order[n_valid:]
    lab,pool = few_labels([parent_label(files[i]) for i in rest], n_per_class=labels, seed=split)
    lab,pool = rest[lab],rest[pool][:1500]
    f = ProbeFeatures(x[lab], y[lab], x[pool], list(range(len(pool))), x[valid,0], y[valid])
    items = [files[i] for i in [*lab, *valid]]
    set_seed(split)                                  # of the loaders' order
    dls = block(IndexSplitter(range(len(lab), len(items))), size).dataloaders(items, bs=16, num_workers=0)
    dls.add_unlabeled([files[i] for i in pool], n_steps=6, seed=split)
    set_seed(split, reproducible=True)
    learn = ssl_head_learner(dls, body(len(dls.vocab)), features=f, metrics=accuracy)
    table = learn.whole.baselines(features=f._replace(labeled=f.labeled.float(), pool=f.pool.float(), valid=f.valid.float())).accuracy
    with quiet(learn), redirect_stdout(io.StringIO()): learn.fit_one_cycle(4)
    percent = lambda a: round(100*float(a), 1)
    pool_right = (learn.probe.logits(f.pool[:,0].float()).argmax(1)==y[pool]).float().mean()
    append(file, set=name, labels=labels, split=split, size=size, probe=percent(table['probe']), propagation=percent(table['propagation']), both=percent(table['probe + propagation']), head=percent(learn.validate()[1]),
           agreement=round(learn.probe.agreement, 3), open=int(learn.probe.agreement>=learn.ssl_step.gate), pool_right=percent(pool_right), expected=percent(learn.probe.expected_accuracy), n_valid=n_valid)

def summary():
    df = pd.read_csv(file)
    mean = df.groupby(['size','set','labels'])[['probe','propagation','both','head','agreement','open','pool_right','expected']].mean().round(2)
    print(mean.to_string())
    for row in ('propagation','both','head'):
        d = df[row]-df.probe
        print(f'{row}: {d.mean():+.1f} points over the probe in the mean; more than 2 points below it in {int((d<-2).sum())} of {len(d)} splits')

if __name__=='__main__':
    p = photo_options(__doc__, sets='photo,art,sketch,flowers', labels='1,2,4,8,16', splits='0,1,2,3,4')
    p.add_argument('features', nargs='?')
    a = p.parse_args()
    torch.set_num_threads(1)
    if a.summary: summary()
    else:
        for name in each(a.sets, str):
            x,y,files = features(a.data, a.features, name, a.size)
            for n in each(a.labels):
                for split in each(a.splits): run(name, x, y, files, n, split, a.size)
