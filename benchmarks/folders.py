"""Tasks that no default was chosen on, as folders of images: what does a user get by default, compared with what labels alone can do?

`python benchmarks/folders.py FOLDER --labels 4 --splits 0,1` takes a folder with one folder of images per class, keeps `labels` items per class, up to 2,000 others for the pool and a fifth, at most 600, for
validation, trains each row, and appends a line per run to `benchmarks/folders.csv`. `--net lite0` is `tf_efficientnet_lite0` with ImageNet weights at 64 px as in `photos.py`, 36 steps at 1e-3;
`--net small` is a ResNet of 78,000 parameters from scratch at 32 px with `aug_transforms()`, 500 steps at 1e-2. Nothing is chosen on these sets. `--summary` prints the table."""
import argparse, warnings
from pathlib import Path
warnings.filterwarnings('ignore')
from fastai.vision.all import *
from fastssl.all import *
from methods import small_resnet
from photos import body, rows
from rows import append, each, summary

file = Path(__file__).with_suffix('.csv')
Net = namedtuple('Net', 'make size steps epochs lr tfms')
nets = dict(lite0=Net(body, 64, 36, 6, 1e-3, lambda: RandomCropFlip(pad=.125)), small=Net(small_resnet, 32, 500, 10, 1e-2, aug_transforms))

def data(folder, labels, split, net, classes=()):
    files = sorted(get_image_files(folder, folders=classes))
    files = [files[i] for i in np.random.default_rng(split).permutation(len(files))]
    n_valid = min(600, len(files)//5)
    valid,rest = files[:n_valid],files[n_valid:]
    lab,pool = few_labels([parent_label(f) for f in rest], n_per_class=labels, seed=split)
    lab,pool = [rest[i] for i in lab],[rest[i] for i in pool][:2000]
    splitter = IndexSplitter(range(len(lab), len(lab)+n_valid))
    block = DataBlock((ImageBlock, CategoryBlock), get_y=parent_label, splitter=splitter, item_tfms=Resize(net.size), batch_tfms=net.tfms())
    dls = block.dataloaders(lab+valid, bs=16, val_bs=200, num_workers=0)
    return dls.add_unlabeled(pool, labels=[parent_label(f) for f in pool], n_steps=net.steps//net.epochs, in_memory=True, seed=split)

def run(folder, labels, split, name, row, classes=()):
    net = nets[name]
    set_seed(split)                                  # of the loaders' order
    dls = data(folder, labels, split, net, classes)
    set_seed(split, reproducible=True)
    learn = ssl_learner(dls, net.make(len(dls.vocab)), metrics=accuracy, cbs=rows[row]())
    probe = vars(learn).get('probe')
    with quiet(learn): learn.fit_one_cycle(net.epochs, net.lr)
    h = learn.recorder.ssl
    def late(name):
        values = h.get(name, [])
        return round(float(np.nanmean(values[-max(1, len(values)//5):])), 3) if values else ''
    says = [m.split(':')[0] for m in learn.pool_report.messages] if hasattr(learn, 'pool_report') else []
    append(file, set='_'.join([folder.name, *classes]), classes=len(dls.vocab), labels=labels, split=split, net=name, steps=net.steps, row=row, accuracy=round(100*learn.validate()[1], 1), probe=round(100*probe.valid_accuracy, 1) if probe else '',
           expected=round(100*probe.expected_accuracy, 1) if probe else '', kept=late('kept'), right=late('pseudo_acc'), n_valid=len(dls.valid_ds), says=' + '.join(says), device=default_device().type)

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('folder', nargs='?', type=Path)
    p.add_argument('--classes', default='', help='use these folders alone')
    p.add_argument('--net', default='lite0', choices=list(nets))
    p.add_argument('--labels', default='4')
    p.add_argument('--splits', default='0,1')
    p.add_argument('--rows', default='supervised,both_views,fixmatch')
    p.add_argument('--summary', action='store_true')
    a = p.parse_args()
    torch.set_num_threads(1)
    if a.summary: summary(file, 'set', ['net','labels','steps','classes'])
    else:
        for labels in each(a.labels):
            for split in each(a.splits):
                for row in each(a.rows, str): run(a.folder, labels, split, a.net, row, each(a.classes, str) if a.classes else ())
