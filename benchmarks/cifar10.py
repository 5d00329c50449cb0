"""FixMatch in an ordinary fastai `Learner` on CIFAR-10 images: 1,000 labelled, 9,000 unlabelled, 2,000 held out, a small ResNet.

`python benchmarks/cifar10.py cifar10_train.npz` prints, for each epoch, the losses, the share of the pool that is kept, the accuracy of its pseudo-labels and of the held-out images, beside
the supervised control (same network, labelled images, weak augmentation, steps). The archive holds JPEG files: `jpeg` (bytes), `offset`, `label`, `classes`."""
import io, sys, warnings
warnings.filterwarnings('ignore')
from fastcore.script import call_parse
from fastai.vision.all import *
from fastssl.all import *

def load(path, n, seed):
    "`n` images and labels of the archive at `path`, drawn at random"
    z = np.load(path)
    jpeg,offset,label = z['jpeg'],z['offset'],z['label']
    idx = np.random.default_rng(seed).permutation(len(label))[:n]
    return np.stack([np.asarray(Image.open(io.BytesIO(jpeg[offset[i]:offset[i+1]].tobytes()))) for i in idx]),label[idx].astype(int),list(z['classes'])

def small_resnet(c):
    return nn.Sequential(ConvLayer(3,16), ResBlock(1,16,16), ResBlock(1,16,32,stride=2), ResBlock(1,32,64,stride=2), ResBlock(1,64,64), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64,c))

def train(cbs, X, y, c, steps, bs, uratio, lr, seed):
    "Columns of a table, a row an epoch"
    set_seed(seed, reproducible=True)
    lab,unl,test = slice(0,1000),slice(1000,10000),slice(10000,None)
    known = y[:10000].copy(); known[unl] = -1
    dls = SSLDataLoaders.from_arrays(X[:10000], known, valid=(X[test],y[test]), bs=bs, val_bs=500, uratio=uratio, n_steps=steps//10, labels=y[unl], vocab=range(c),
                                     batch_tfms=[RandomCropFlip(), Normalize.from_stats(*cifar_stats)])
    learn = Learner(dls, small_resnet(c), loss_func=CrossEntropyLossFlat(), metrics=accuracy, cbs=cbs)
    with quiet(learn): learn.fit_one_cycle(10, lr)
    cols = {k:[f'{np.nanmean(o):.3f}' for o in np.array_split(v, 10)] for k,v in learn.recorder.ssl.items()}
    return {**cols, 'accuracy':[f'{v[2]:.3f}' for v in learn.recorder.values]}

@call_parse
def main(
    path:str, # The archive
    steps:int=400, # Steps of training, in ten epochs
    bs:int=32, # Labelled rows of a step
    uratio:int=4, # Unlabelled rows for each of them
    threshold:float=.8, # Of the pseudo-labels: a few hundred steps make no model that is .95 sure
    lr:float=3e-3, # Highest learning rate of the cycle
    seed:int=0 # Of images, order and network
):
    torch.set_num_threads(1)
    X,y,classes = load(path, 12000, seed)
    for name,cbs in (('supervised', UnlabeledBatch()), ('FixMatch', FixMatchCallback(threshold))):
        start = time.time()
        cols = train(cbs, X, y, len(classes), steps, bs, uratio, lr, seed)
        print(f'\n{name}: {steps} steps, {time.time()-start:.0f} s\n' + pd.DataFrame(cols).rename_axis('epoch').to_string(), flush=True)
