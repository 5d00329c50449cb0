"""Every method on the same split, steps and network: accuracy, accuracy of its pseudo-labels, cost of a step.

`python benchmarks/methods.py` runs scikit-learn's digits (four labels per class, 450 held out, steps of 40 labeled and 160 unlabeled rows,
24,000 parameters). `--images cifar10_train.npz` (JPEG files as `jpeg`, `offset`, `label`, `classes`), or a folder with one folder per
class, runs 32-pixel images. Each run appends a line to `--csv`; a second call continues where the first stopped, and the table is printed
from that file. `--tune` runs the candidate settings of each method on other splits (100 and up). The settings in `chosen` come from there:
nothing is chosen on the splits that are reported. Times are CPU times of the whole fit without validation, on one thread, as ratios to
`supervised` on the same split."""
import io, sys, warnings
warnings.filterwarnings('ignore')
from fastcore.script import call_parse, store_true
from fastai.vision.all import *
from fastssl.all import *
from timing import CPUTime

ramp = lambda w: SchedRampUp(0., w)
candidates = dict(
    supervised=[lambda: SSLStep()],
    both_views=[lambda: SupStrongCallback()],
    ema_supervised=[lambda: [SSLStep(), EMACallback(d)] for d in (.97,.99)],
    pseudo_label=[lambda t=t, w=w: PseudoLabelCallback(t, w) for t,w in ((.95,1.), (.8,1.), (.95,ramp(1.)))],
    pi_model=[lambda w=w: PiModelCallback(weight=ramp(w)) for w in (1.,5.,20.)],
    mean_teacher=[lambda d=d, w=w: MeanTeacherCallback(d, weight=ramp(w)) for d,w in ((.97,1.), (.97,5.), (.97,20.))],
    self_ensemble=[lambda d=d, w=w: SelfEnsembleCallback(.8, weight=w, teacher_decay=d) for d,w in ((.97,3.), (.97,10.))],
    vat=[lambda e=e, w=w: VATCallback(e, w) for e,w in ((.1,.3), (.3,1.), (.1,1.))],
    mcc=[lambda t=t, w=w: MCCCallback(t, w) for t,w in ((2.5,1.), (1.,1.), (2.5,ramp(1.)))],
    mixmatch=[lambda w=w: MixMatchCallback(weight=ramp(w)) for w in (1.,5.,20.)],
    uda=[lambda t=t: UDACallback(t) for t in (.8,.6)],
    fixmatch=[lambda t=t: FixMatchCallback(t) for t in (.8,)],
    flexmatch=[lambda t=t: FlexMatchCallback(t) for t in (.8,.9)],
    freematch=[lambda m=m: FreeMatchCallback(m) for m in (.95,.98)],
    softmatch=[lambda m=m: SoftMatchCallback(decay=m) for m in (.95,.98)],
    adamatch=[lambda t=t, m=m: AdaMatchCallback(t, m) for t,m in ((.95,.97), (.9,.97))],
    dash=[lambda w=w, g=g: DashCallback(w, g) for w,g in ((.1,1.27), (.1,1.1))],
    defixmatch=[lambda w=w: DeFixMatchCallback(threshold=.8, weight=w) for w in (.5,1.)],
    dst=[lambda n=n: DSTCallback(.7, max_iters=n) for n in (100,1000)],
    self_tuning=[lambda m=m, w=w: SelfTuningCallback(decay=m, weight=w) for m,w in ((.97,1.), (.97,.2))],
)
chosen = dict(pseudo_label=2, mean_teacher=2, vat=1, mcc=2, mixmatch=1, uda=1, flexmatch=1, freematch=1, dash=1)     # best mean on splits 100–102 (100–101 for the last three), if it is not the first candidate

def archive(path, n, seed):
    "`n` random images and labels from the archive or folder at `path`, and the classes"
    path,rng = Path(path),np.random.default_rng(seed)
    if path.is_dir():
        files = get_image_files(path); files = [files[i] for i in rng.permutation(len(files))[:n]]
        names = [f.parent.name for f in files]; classes = sorted(set(names))
        return np.stack([np.asarray(Image.open(f).convert('RGB').resize((32,32))) for f in files]),np.array([classes.index(o) for o in names]),classes
    z = np.load(path); jpeg,offset,label = z['jpeg'],z['offset'],z['label']
    idx = rng.permutation(len(label))[:n]
    return np.stack([np.asarray(Image.open(io.BytesIO(jpeg[offset[i]:offset[i+1]].tobytes()))) for i in idx]),label[idx].astype(int),list(z['classes'])

def image_dls(path, n_per_class, seed, steps, bs=32, uratio=4, n_pool=9000, n_test=2000):
    X,y,classes = archive(path, n_pool+n_test, seed)
    X,y,valid = X[n_test:],y[n_test:],(X[:n_test],y[:n_test])
    lab,unl = few_labels(y, n_per_class=n_per_class, seed=seed)
    known = np.full(len(y), -1); known[lab] = y[lab]
    return SSLDataLoaders.from_arrays(X, known, valid=valid, bs=bs, val_bs=500, uratio=uratio, n_steps=steps//10, labels=y[unl], vocab=range(len(classes)), batch_tfms=[RandomCropFlip(), Normalize.from_stats(*cifar_stats)])

def small_resnet(c): return nn.Sequential(ConvLayer(3,16), ResBlock(1,16,16), ResBlock(1,16,32,stride=2), ResBlock(1,32,64,stride=2), ResBlock(1,64,64), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64,c))

def run(make, images, labels, split, steps, lr):
    "Accuracy in percent, accuracy and kept share of the last tenth's pseudo-labels, milliseconds per step"
    set_seed(split, reproducible=True)
    dls = image_dls(images, labels, split, steps) if images else digits_dls(labels, split, n_steps=max(1, steps//10), uratio=4)
    net = small_resnet(get_c(dls)) if images else tiny_cnn(nf=16)
    learn = ssl_learner(dls, net, cbs=[*L(make()), CPUTime()], metrics=accuracy)
    learn.ssl_step.forward = 'joint'                        # as when methods.csv was made
    with quiet(learn): learn.fit_one_cycle(10, lr)
    h = learn.recorder.ssl
    last = lambda k: np.nanmean(h[k][-steps//10:]) if k in h else np.nan
    return 100*float(learn.recorder.values[-1][2]),100*last('pseudo_acc'),last('kept'),1000*learn.cpu_time.s/steps

def label_spreading(labels, split):
    from fastssl.cli.demo import digits_accuracy
    return digits_accuracy('LabelSpreading', split, n_per_class=labels)

def table(df):
    "Print mean ± sd of each method"
    base = df[df.method=='supervised'].set_index('split').ms
    pm = lambda s, d=1: f'{s.mean():.{d}f} ± {s.std():.{d}f}' if s.notna().all() else ''
    print(f"\n{'method':<16}{'accuracy %':>14}{'over supervised':>17}{'pseudo-labels %':>18}{'kept':>7}{'step':>7}   splits")
    sup = df[df.method=='supervised'].set_index('split').accuracy
    for (m,i),d in df.groupby(['method','candidate'], sort=False):
        s = d.set_index('split'); up = (s.accuracy-sup.reindex(s.index)).mean(); r = (s.ms/base.reindex(s.index)).median()
        print(f"{m+(f'[{i}]' if df.candidate.nunique()>1 else ''):<16}{pm(s.accuracy):>14}{up:>+17.1f}{pm(s.pseudo):>18}{'' if s.kept.isna().any() else f'{s.kept.mean():.2f}':>7}{'' if s.ms.isna().any() else f'{r:.2f}x':>7}   {len(s)}")

@call_parse
def main(
    methods:str=','.join(candidates), # Methods, separated by commas
    labels:int=4, # Labels per class
    splits:int=5, # Number of splits, starting at 0, or at 100 with --tune
    steps:int=500, # Training steps, in ten epochs
    lr:float=2e-2, # Highest learning rate of the cycle
    images:str=None, # Archive or folder of images; default: the digits
    csv:str='methods.csv', # File of the recorded runs
    tune:store_true=False # Run all candidates, on other splits
):
    torch.set_num_threads(1)
    path = Path(csv); cols = 'data,labels,steps,lr,method,candidate,split,accuracy,pseudo,kept,ms'.split(',')
    done = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=cols)
    key = [Path(images).name if images else 'digits', labels, steps, lr]
    todo = [(m,i,s) for s in range(100*tune, 100*tune+splits) for m in methods.split(',') for i in (range(len(candidates[m])) if tune else [chosen.get(m,0)])]
    if not images and not tune: todo += [('LabelSpreading',0,s) for s in range(splits)]
    same = done[(done[cols[:4]]==key).all(axis=1)] if len(done) else done
    have = set(map(tuple, same[['method','candidate','split']].values))
    for m,i,s in progress_bar([t for t in todo if t not in have], leave=False) if sys.stdout.isatty() else [t for t in todo if t not in have]:
        r = (label_spreading(labels, s), np.nan, np.nan, np.nan) if m=='LabelSpreading' else run(candidates[m][i], images, labels, s, steps, lr)
        done = pd.concat([done, pd.DataFrame([[*key, m, i, s, *r]], columns=cols)], ignore_index=True)
        done.to_csv(path, index=False)
        print(f'{m}[{i}] split {s}: {r[0]:.1f}', flush=True)
    df = done[(done[cols[:4]]==key).all(axis=1)]
    want = set(todo)
    table(df[[t in want for t in map(tuple, df[['method','candidate','split']].values)]])
