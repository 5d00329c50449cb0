"""What distillation costs compared with ordinary training, and what a store of soft targets costs on disk and in memory.

`python benchmarks/distill.py` prints medians of paired repetitions in one process, on one thread: a student's step with saved logits and
with an online teacher, compared with the same step on labels alone; saving logits, compared with a bare prediction loop. Then the time to
read a random row, bytes per row, and opening a store of 1.28 million rows and 1,000 classes (its logits a sparse file, its keys real)."""
import subprocess, sys, tempfile, warnings
warnings.filterwarnings('ignore')
import timm
from fastcore.script import call_parse
from timing import paired
from fastai.vision.all import *
from fastssl.all import *

def row(what, ours, other): print(f'{what:<72}{ours:>10.2f}{other:>10.2f}{ours/other:>8.3f}', flush=True)

def image_files(path, n, size, seed=0):
    "`n` PNG files of noise in ten folders"
    rng = np.random.default_rng(seed)
    files = [path/f'c{i%10}'/f'{i}.png' for i in range(n)]
    for f in files:
        f.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.kron(rng.integers(0, 256, (size//8,size//8,3)), np.ones((8,8,1))).astype(np.uint8)).save(f)
    return files

def data(files, block, get_y, bs):
    return DataBlock((ImageBlock, block), get_y=get_y, splitter=IndexSplitter(range(bs)), batch_tfms=[Normalize.from_stats(*imagenet_stats)]).dataloaders(files, bs=bs, num_workers=0)

def steps(tmp, reps):
    vocab = [f'c{i}' for i in range(10)]
    for name,size,n,bs,student,teacher in (('tiny CNN, 32 px', 32, 320, 32, lambda: tiny_cnn(3, nf=8), lambda: tiny_cnn(3)),
                                           ('MobileNetV3 small, 64 px', 64, 96, 32, lambda: timm.create_model('mobilenetv3_small_100', num_classes=10), lambda: timm.create_model('resnet18', num_classes=10)),
                                           ('ResNet-18 of ResNet-34, 64 px', 64, 96, 32, lambda: timm.create_model('resnet18', num_classes=10), lambda: timm.create_model('resnet34', num_classes=10))):
        files = image_files(tmp/name, n+bs, size)
        plain = data(files, CategoryBlock(vocab), parent_label, bs)
        t = Learner(plain, teacher(), loss_func=CrossEntropyLossFlat())
        soft = save_soft_targets(t, files, tmp/f'{name}.soft', progress=False)
        saved = data(files, SoftCategoryBlock(soft), soft.labeller(parent_label), bs)
        net = student()
        mk = lambda dls, cbs=None: Learner(dls, deepcopy(net), cbs=cbs, opt_func=partial(OptimWrapper, opt=torch.optim.SGD))
        learns = dict(plain=mk(plain), saved=mk(saved), online=mk(plain, DistillCallback(t)))
        def fit(l):
            with quiet(l): l.fit(1, 1e-3)
        for l in learns.values(): l.add_cb(NoValidation())
        r = paired({k:partial(fit, l) for k,l in learns.items()}, reps)
        k = n//bs
        row(f'step, {name}: saved logits, labels alone', r['saved']/k, r['plain']/k)
        row(f'step, {name}: online teacher, labels alone', r['online']/k, r['plain']/k)
        row(f'step, {name}: online teacher, saved logits', r['online']/k, r['saved']/k)

class NoValidation(Callback):
    "Skips validation, which is not part of the comparison"
    def before_validate(self): raise CancelValidException

def saving(tmp, reps):
    for name,size,n,net in (('ResNet-18, 64 px', 64, 512, timm.create_model('resnet18', num_classes=1000)), ('tiny CNN, 32 px', 32, 2048, tiny_cnn(3))):
        files,i = image_files(tmp/f's{size}', n, size),iter(range(size*1000, 10**6))
        vocab = list(range(1000 if '18' in name else 10))
        dls = DataBlock((ImageBlock, CategoryBlock(vocab)), get_y=lambda f: 0, batch_tfms=[Normalize.from_stats(*imagenet_stats)]).dataloaders(files, bs=64, num_workers=0)
        learn = Learner(dls, net, loss_func=CrossEntropyLossFlat())
        def bare():
            model = learn.model.eval()
            with torch.no_grad(): return torch.cat([model(xb) for xb, in dls.test_dl(files)])
        r = paired(dict(ours=lambda: save_soft_targets(learn, files, tmp/f'save{next(i)}', chunk=256, progress=False), bare=bare), reps, time.perf_counter, min)
        row(f'saving {n} rows, {name}: save_soft_targets, bare loop', r['ours'], r['bare'])
        print(f'{"":<4}speed of saving: {r["bare"]/r["ours"]:.3f} of the bare loop')

def big_store(path, n, c):
    "A store of `n` rows and `c` classes whose logits are a sparse file"
    keys = [f'train/n{i%1000:08d}/n{i%1000:08d}_{i}.JPEG' for i in range(n)]
    w = StoreWriter(path, keys, ItemKey('parts:3'), list(range(c)))
    shard = w._shard_at(0)
    f = shard.files['logits.npy']
    f.truncate(f.tell()+n*c*2)
    shard.rows = n
    w.close()
    return keys

def store(tmp, n):
    print()
    for kw in (dict(dtype='float32'), dict(dtype='float16'), dict(topk=10)):
        z = np.random.default_rng(0).normal(0, 3, (512,1000))
        s = SoftTargets.from_dict({f'{i}.png':o for i,o in enumerate(z)}, path=tmp/f"b{kw}", **kw)
        size = sum(f.stat().st_size for f in s.path.iterdir() if f.name in ('logits.npy','classes.npy'))/512
        print(f"bytes per row of 1,000 classes, {kw}: {size:.0f}; {size*n/1e9:.2f} GB for {n/1e6:.2f} million rows")
    keys = big_store(tmp/'big', n, 1000)
    code = f"""
import os, time, numpy as np
from fastssl.distill.store import SoftTargets
def rss(): return int(open('/proc/self/statm').read().split()[1])*os.sysconf('SC_PAGE_SIZE')/2**20
before,start = rss(),time.perf_counter()
s = SoftTargets.load({str(tmp/'big')!r})
print(f'open {{len(s):,}} x 1000: {{1e3*(time.perf_counter()-start):.1f}} ms, {{rss()-before:.1f}} MB')
keys = ['train/n%08d/n%08d_%d.JPEG'%(i%1000,i%1000,i) for i in np.random.default_rng(0).integers(0, len(s), 20000)]
for k in keys[:2000]: s[k]
for what in ('first read', 'read before'):
    start,cpu = time.perf_counter(),time.process_time()
    for k in keys[2000:]: s[k]
    print(f'a random row, {{what}}: {{1e6*(time.process_time()-cpu)/18000:.1f}} µs of CPU, {{1e6*(time.perf_counter()-start)/18000:.1f}} µs')
print(f'after 20,000 rows: {{rss()-before:.1f}} MB')
"""
    print(subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS':'1'}).stdout, end='')

@call_parse
def main(
    reps:int=7, # Repetitions
    rows:int=1_281_167 # Rows of the large store
):
    torch.set_num_threads(1)
    print(f'{"":<72}{"first":>10}{"second":>10}{"ratio":>8}\n{"milliseconds":<72}')
    with tempfile.TemporaryDirectory() as d:
        set_seed(0)
        steps(Path(d), reps)
        saving(Path(d), reps)
        store(Path(d), rows)
