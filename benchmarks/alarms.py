"""False and true alarms of `PoolReport`: does it speak on runs that are broken on purpose, and keep quiet on runs that work?

`python benchmarks/alarms.py [DATA]` trains each run of `runs` and appends it to `benchmarks/alarms.csv`: the lines that it should print,
those that it printed, its accuracy, and that of its control, supervised training of the same network on the same labels for as many
steps. Runs that work are those of the tutorials and of the README's demonstration, on splits 0 and 1; the photographs need DATA (as in
`photos.py`; split 0). A second call continues where the first stopped, `--runs few,photo` picks runs by a part of their names,
`--summary` prints the table. Broken runs are what people do by accident: a threshold that nothing reaches, or everything, a rate far too
high, a pool without the classes, twenty items to validate on."""
import argparse, io, warnings
from contextlib import redirect_stdout
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple
warnings.filterwarnings('ignore')
from fastai.vision.all import *
from fastssl.all import *
from fastssl.cli.demo import demo_methods, digits_learner
import methods, photos
from rows import append

file = Path(__file__).with_suffix('.csv')
kinds = ('pool unused','pool taken whole','few classes','labels memorized','below the probe','small validation set','few steps',
         'nothing to learn')

class Run(NamedTuple):
    learner:Callable            # split → learner
    lr:float = 2e-2
    n_epoch:int = 10
    expected:tuple = ()         # kinds of lines that it should print; a run that works prints none
    allowed:tuple = ()          # kinds that are right too
    control:str = None          # name of the run whose accuracy is compared
    works:bool = True
    splits:tuple = (0,1)

# ------ data

plain = Normalize.from_stats([.3],[.37])
def digits(split, steps=500, **kw): return digits_dls(seed=split, n_steps=steps//10, **{**dict(uratio=4), **kw})

def arrays(X, y, pool, valid, steps):
    "Digits `X` with labels `y`, any `pool`"
    known = np.concatenate([y, np.full(len(pool), -1)])
    tfms = [RandomCropFlip(pad=1, flip=False), plain]
    X = np.concatenate([X, pool])
    return SSLDataLoaders.from_arrays(X, known, valid=valid, vocab=list(range(10)), bs=40, uratio=4, n_steps=steps//10, batch_tfms=tfms)

def with_pool(split, make_pool, steps=200):
    "Four labels per class, and `make_pool(images, labels, generator)` as the pool"
    X,y = digits_data()
    rng = np.random.default_rng(split)
    order = rng.permutation(len(y))
    test,rest = order[:450],order[450:]
    lab,pool = few_labels(y[rest], n_per_class=4, seed=split)
    lab,pool = rest[lab],rest[pool]
    return arrays(X[lab], y[lab], make_pool(X[pool], y[pool], rng), (X[test], y[test]), steps)

def noise(X, y, rng): return rng.integers(0, 256, X.shape).astype(np.uint8)
def one_class(X, y, rng): return X[y==3]
def ones_and_sevens(X, y, rng): return X[(y==1)|(y==7)]

# ------ learners

def cnn(dls, *cbs, forward='auto', **kw):
    learn = ssl_learner(dls, tiny_cnn(n_channels(dls), nf=16), cbs=list(cbs), metrics=accuracy, **kw)
    learn.ssl_step.forward = forward
    return learn
def fixmatch(data, *args, **kw): return lambda split: cnn(data(split), FixMatchCallback(*args, **kw))
def supervised(data): return lambda split: cnn(data(split), SSLStep())

class OneClass(SSLCallback):
    "Pulls all predictions on the pool to the class 3"
    weight = 20.
    def unsup_loss(self, b): return -b.u.weak.log_softmax(1)[:,3].mean()

class Joint(SSLCallback):
    "The target goes through the network, without a loss"
    def unsup_loss(self, b): return 0.*b.u.weak.sum()

def domains(split): return photo_digits_dls(split, n_steps=60)
def ten_labels(split): return digits_dls(10, split, n_test=400, size=16, uratio=4, n_steps=25)
def fifteen_labels(split):
    X,y = digits_data(16)
    X,y = X[:1200],y[:1200]
    lab,pool = few_labels(y, n_per_class=15, seed=split)
    known = np.full(len(y), -1)
    known[lab] = y[lab]
    return SSLDataLoaders.from_arrays(X, known, valid_pct=.2, seed=split, vocab=list(range(10)), bs=40, uratio=4, n_steps=25,
                                      labels=y[pool], batch_tfms=[RandomCropFlip(pad=2, flip=False), plain])

def photo_learner(make, steps=36, labels=4):
    def learner(split):
        dls = photos.data(args.data, 'photo', labels, split, 64, steps//6)
        return ssl_learner(dls, photos.body(len(dls.vocab)), metrics=accuracy, cbs=make())
    return learner

@lru_cache(1)
def photo_features(split, labels=4):
    dls = photos.data(args.data, 'photo', labels, split, 64, 6)
    learn = ssl_learner(dls, photos.body(len(dls.vocab)), cbs=SSLStep(), init_head=None)
    return dls,cache_features(learn)
def photo_head(split, **kw):
    dls,f = photo_features(split)
    return ssl_head_learner(dls, photos.body(len(dls.vocab)), features=f, metrics=accuracy, **kw)

# ------ runs that work

def target(make): return lambda split: cnn(domains(split), make(), forward='joint')
def with_chosen(name):
    make = methods.candidates[name][methods.chosen.get(name, 0)]
    return lambda split: cnn(digits(split), *L(make()), forward='joint')
runs = {f'choose_method: {m}': Run(with_chosen(m), control='choose_method: supervised') for m in methods.candidates}
runs.update({f'demonstration: {m}': Run(partial(digits_learner, m), 2e-2, 1, control='demonstration: supervised') for m in demo_methods})
targets = {
    'source': lambda: SSLStep(),
    'joint': Joint,
    'MDD': lambda: MDDCallback(2, max_iters=.3),
    'FixMatch': lambda: FixMatchCallback(.95, SchedRampUp(0., 1.)),
    'MCC': lambda: MCCCallback(1., SchedRampUp(0., 1.))}
runs.update({f'adaptation: {m}': Run(target(make), 1e-2, control='adaptation: source') for m,make in targets.items()})
runs.update({
    'ten_labels_a_class: supervised': Run(supervised(ten_labels), 1e-2, 8),
    'ten_labels_a_class: FixMatch': Run(fixmatch(ten_labels, .8), 1e-2, 8, control='ten_labels_a_class: supervised'),
    'missing_labels: FlexMatch': Run(
        lambda s: cnn(fifteen_labels(s), FlexMatchCallback(threshold=.8), ema=.98), 1e-2, 8, ('small validation set',)),
    'photographs: supervised': Run(photo_learner(SSLStep), 1e-3, 6, splits=(0,)),
    'photographs: FixMatch': Run(photo_learner(FixMatchCallback), 1e-3, 6, control='photographs: supervised', splits=(0,)),
    'photographs: the head': Run(photo_head, None, 4, control='photographs: supervised', splits=(0,)),
    })

# ------ broken runs: 200 steps, if nothing else is said

short,shorter = partial(digits, steps=200),partial(digits, steps=100)
one_label = partial(digits, steps=200, n_per_class=1)
memorized = partial(digits, steps=300, n_per_class=1, batch_tfms=[plain])
one_pass = partial(digits_dls, uratio=7)
def method(data, make, **kw): return lambda split: cnn(data(split), make(), **kw)
def broken(learner, *expected, lr=2e-2, allowed=(), control='control: four labels', n_epoch=10, splits=(0,1)):
    return Run(learner, lr, n_epoch, expected, allowed, control, False, splits)
of_one_label = partial(broken, control='control: one label')
of_photos = partial(broken, control='photographs: supervised', splits=(0,), allowed=('few classes','pool taken whole'))
runs.update({
    'control: four labels': Run(supervised(short)),
    'control: one label': Run(supervised(one_label)),
    'broken: threshold .99 in 100 steps': broken(fixmatch(shorter, .99), 'pool unused', lr=1e-3),
    'broken: UDA, threshold .99 in 100 steps': broken(method(shorter, lambda: UDACallback(.99)), 'pool unused', lr=1e-3),
    'broken: PseudoLabel, threshold .999': broken(method(short, lambda: PseudoLabelCallback(.999, 1.)), 'pool unused', lr=3e-3),
    'broken: threshold 0, one label': of_one_label(fixmatch(one_label, 1e-6, 1.), allowed=('pool taken whole',)),
    'broken: threshold 0, weight 10, one label': of_one_label(
        fixmatch(one_label, 1e-6, 10.), 'pool taken whole', allowed=('few classes',)),
    'broken: threshold 0, rate too low': broken(
        fixmatch(short, 1e-6, 1.), 'pool taken whole', lr=1e-4, allowed=('few classes',)),
    'broken: MCC of weight 30, one label': of_one_label(method(one_label, lambda: MCCCallback(weight=30.))),
    'broken: all to one class': broken(method(short, OneClass), 'few classes'),
    'broken: rate of 10': broken(fixmatch(short), 'few classes', lr=10., allowed=('pool taken whole',)),
    'broken: rate of 10, threshold .8': broken(fixmatch(short, .8), 'few classes', 'pool unused', lr=10.),
    'broken: pool of noise': broken(method(partial(with_pool, make_pool=noise), FixMatchCallback), 'few classes'),
    'broken: pool of one class': broken(method(partial(with_pool, make_pool=one_class), FixMatchCallback), 'few classes'),
    'broken: pool of two classes': broken(fixmatch(partial(with_pool, make_pool=ones_and_sevens), .8), 'few classes'),
    'broken: 20 items to validate on': broken(fixmatch(partial(short, n_test=20), .8), 'small validation set'),
    'broken: labels memorized': of_one_label(fixmatch(memorized, .9999999), 'labels memorized', 'pool unused'),
    'broken: Π model without augmentation': broken(method(partial(short, batch_tfms=[plain]), PiModelCallback), 'nothing to learn'),
    'broken: five steps per epoch': broken(lambda s: cnn(one_pass(seed=s), FixMatchCallback()), 'few steps'),
    'broken: photographs, rate of .1': of_photos(photo_learner(FixMatchCallback, 18), 'below the probe', lr=.1),
    'broken: photographs, rate of 1 for the head': of_photos(partial(photo_head, lr=1.), 'below the probe', lr=None, n_epoch=4),
    })

def train(name, split):
    "Kinds of lines that the run printed, and its accuracy in percent"
    r = runs[name]
    set_seed(split, reproducible=True)
    out = io.StringIO()
    with redirect_stdout(out):
        learn = r.learner(split)
        with quiet(learn): learn.fit_one_cycle(r.n_epoch, r.lr)
    said = [line.split(': ')[1] for line in out.getvalue().splitlines() if line.startswith('PoolReport: ')]
    print(out.getvalue(), end='')
    acc = learn.recorder.values[-1][learn.recorder.metric_names.index('accuracy')-1]
    return said,round(100*float(acc), 1),len(learn.ssl_step.history['sup_loss'])

def done():
    "All runs so far"
    if not file.exists(): return pd.DataFrame(columns=['run','split','expected','spoken','accuracy'])
    return pd.read_csv(file, keep_default_na=False).drop_duplicates(['run','split'], keep='last')
def run(name, split):
    said,acc,steps = train(name, split)
    known,control = done(),runs[name].control
    of_control = known.accuracy[(known.run==control)&(known.split==split)&(known.run!=name)]
    expected,spoken = (' + '.join(o) for o in (runs[name].expected, said))
    append(file, run=name, split=split, steps=steps, expected=expected, spoken=spoken, accuracy=acc,
           control=of_control.iloc[0] if len(of_control) else '')

def summary():
    "Each kind of line: runs that should have it, and those in which it spoke; then runs that work and what was said of them"
    df = done()
    df = df[df.run.isin(runs)]
    spoken,expected = (df[c].map(lambda o: set(o.split(' + '))-{''}) for c in ('spoken','expected'))
    allowed = df.run.map(lambda n: set(runs[n].allowed))
    print('| line | runs that should print it | printed it | printed in others |\n|---|---|---|---|')
    for k in kinds:
        should,did = expected.map(lambda o: k in o),spoken.map(lambda o: k in o)
        wrong = did&~should&~allowed.map(lambda o: k in o)
        print(f'| {k} | {should.sum()} | {(should&did).sum()} | {wrong.sum()} |')
    works = df.run.map(lambda n: runs[n].works)
    alarmed = works&pd.Series([bool(s-e) for e,s in zip(expected, spoken)], df.index)
    silent = ~works&(spoken.map(len)==0)
    print(f'\n{works.sum()} runs that work: {alarmed.sum()} with a false alarm')
    print(f'{(~works).sum()} broken runs: {silent.sum()} without a line')
    missed = [bool(e-s) for e,s in zip(expected, spoken)]
    for title,rows in (('False alarms', alarmed), ('Missed', pd.Series(missed, df.index))):
        if rows.any(): print(f'\n{title}:\n'+df[rows].to_string(index=False))

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('data', nargs='?')
    p.add_argument('--runs', default='', help='parts of names, separated by commas')
    p.add_argument('--summary', action='store_true')
    args = p.parse_args()
    torch.set_num_threads(1)
    have = set(zip(done().run, done().split))
    parts = args.runs.split(',')
    for name in [] if args.summary else [n for n in runs if any(o in n for o in parts)]:
        if 'photographs' in name and not args.data: continue
        for split in runs[name].splits:
            if (name,split) not in have: run(name, split)
    summary()
