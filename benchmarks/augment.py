"""Throughput of strong views, and of a weak and a strong view together, compared with what you would use without fastssl.

`python benchmarks/augment.py` needs the `bench` extra (kornia). All libraries apply RandAugment with two ops of 14 and Cutout (or their
closest equivalents) to the same uint8 images, on one thread. Times are medians of paired repetitions in one process, without decoding.
"weak+strong" goes from a batch of bytes to both views as batches; the weak view is a padded crop and a flip (for timm, by torchvision on
Pillow images, as most codebases do it). "RandAugment, Cutout" is those two operations alone; for timm, on existing Pillow images and
without converting the result. Ratios say how many times longer the others take. A first
table compares both views with and without `NormalizeBytes`; `--only-pair` prints it alone. The last one starts from JPEG files
(`--only-files`)."""
import tempfile, warnings
warnings.filterwarnings('ignore')
from fastcore.script import call_parse, store_true
from timing import paired
from fastai.vision.all import *
from fastssl.data.augment import Cutout, RandomCropFlip
from fastssl.data.rand_augment import BatchRandAugment
from fastssl.data.native import has_native, use_native
from fastssl.data.normalize import fuse_normalize
from torchvision.transforms import v2

def ours(size):
    crop,ra,cut = RandomCropFlip(pad=size//8),BatchRandAugment(2),Cutout(.5)
    weak,strong,alone = (Pipeline(fs, split_idx=0) for fs in ([crop], [crop, ra, cut], [ra, cut]))
    return (lambda x: (weak(TensorImage(x)), strong(TensorImage(x)))),lambda x: partial(alone, TensorImage(x))

def plain(size):
    "`ours` without compiled kernels"
    both,alone = ours(size)
    def off(f):
        use_native(False)
        f()
        use_native(True)
    return (lambda x: off(partial(both, x))),lambda x: partial(off, alone(x))

def timm_pil(size):
    from timm.data.auto_augment import rand_augment_transform
    from PIL import ImageDraw
    crop,flip,ra = v2.RandomCrop(size, size//8, padding_mode='reflect'),v2.RandomHorizontalFlip(),rand_augment_transform('rand-m9-n2', {})
    def cut(im):
        s,x,y = random.random()*size/2,random.random()*size,random.random()*size
        ImageDraw.Draw(im).rectangle((max(0,x-s/2), max(0,y-s/2), min(size,x+s/2), min(size,y+s/2)), (125,123,114))
        return im
    pil = lambda x: [Image.fromarray(o) for o in x.permute(0,2,3,1).numpy()]
    back = lambda ims: torch.from_numpy(np.stack([np.asarray(o) for o in ims])).permute(0,3,1,2)
    def alone(x):
        ims = pil(x)
        return lambda: [cut(ra(o.copy())) for o in ims]                  # a copy, because Cutout draws in place
    return (lambda x: (back([flip(crop(o)) for o in pil(x)]), back([cut(ra(flip(crop(o)).copy())) for o in pil(x)]))),alone

def torchvision_v2(size):
    "torchvision's v2 on tensors, with separate random parameters per image"
    crop = [v2.RandomCrop(size, size//8, padding_mode='reflect'), v2.RandomHorizontalFlip()]
    ra,cut = v2.RandAugment(2),v2.RandomErasing(1., (.01,.25))
    weak,strong,alone = (v2.Compose(fs) for fs in (crop, [*crop, ra, cut], [ra, cut]))
    each = lambda f, x: torch.stack([f(o) for o in x])
    return (lambda x: (each(weak, x), each(strong, x))),lambda x: partial(each, alone, x)

def kornia_batch(size):
    "kornia on float batches, with separate random parameters per image where kornia supports it"
    import kornia.augmentation as K
    from kornia.augmentation.auto import RandAugment
    crop = [K.RandomCrop((size,size), size//8, padding_mode='reflect'), K.RandomHorizontalFlip()]
    ra,cut = RandAugment(2, 9),K.RandomErasing((.01,.25), p=1.)
    weak,strong,alone = (K.AugmentationSequential(*fs) for fs in (crop, [*crop, ra, cut], [ra, cut]))
    return (lambda x: (weak(f:=x.float()/255), strong(f))),lambda x: lambda: alone(x.float()/255)

makers = {'fastssl':ours, 'fastssl, not compiled':plain, 'timm, Pillow':timm_pil, 'torchvision v2':torchvision_v2, 'kornia':kornia_batch}

def pair(n, size, x, reps):
    "Both views and the conversion alone, with fastai's `IntToFloatTensor` and `Normalize` and with `NormalizeBytes`: µs per image"
    crop,f,norm = RandomCropFlip(pad=size//8),IntToFloatTensor(),Normalize.from_stats(*imagenet_stats, cuda=False)
    pipes = {'conversion':[f, norm], 'weak view':[crop, f, norm], 'strong view':[crop, BatchRandAugment(2), f, Cutout(.5), norm]}
    for what,fs in pipes.items():
        before,after = Pipeline(fs, split_idx=0),Pipeline(fuse_normalize(fs), split_idx=0)
        x = TensorImage(x)
        set_seed(1); a = before(x)
        set_seed(1); b = after(x)
        assert torch.equal(a, b)
        t = paired(dict(before=partial(before, x), after=partial(after, x)), reps)
        us = {k:1e3*v/n for k,v in t.items()}
        print(f'{f"{n} images of {size} px: {what}":<44}{us["before"]:>10.1f}{us["after"]:>10.1f}{us["after"]/us["before"]:>8.2f}', flush=True)

def photo_files(folder, n, size):
    "`n` JPEGs of `size` pixels, parts of two photographs, at a quality of 90"
    import sklearn
    sources = [Image.open(f) for f in sorted((Path(sklearn.__file__).parent/'datasets/images').glob('*.jpg'))]
    rng = np.random.default_rng(0)
    for i in range(n):
        x,y = rng.integers(0, 60, 2)
        sources[i%2].crop((x, y, x+580, y+367)).resize(size, Image.Resampling.LANCZOS).save(folder/f'{i}.jpg', quality=90)
    return [folder/f'{i}.jpg' for i in range(n)]

def from_files(n, reps):
    "From JPEG files to a weak and a strong view of 224 px, normalized: µs per image"
    from fastssl.data.images import open_image
    f,norm = IntToFloatTensor(),Normalize.from_stats(*imagenet_stats, cuda=False)
    views = [Pipeline(fuse_normalize(fs), split_idx=0) for fs in ([RandomCropFlip(28), f, norm], [RandomCropFlip(28), BatchRandAugment(2), f, Cutout(.5), norm])]
    resize,to_tensor = Resize(224),ToTensor()
    def ours(files, fast, native):
        use_native(native)
        x = TensorImage(torch.stack([to_tensor(resize(open_image(o, fast=fast), split_idx=0)) for o in files]))
        return [v(x) for v in views]
    one = v2.Compose([v2.Resize(224), v2.CenterCrop(224)])
    last = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(*imagenet_stats)]
    crop = [v2.RandomCrop(224, 28, padding_mode='reflect'), v2.RandomHorizontalFlip()]
    weak,strong = v2.Compose([*crop, *last]),v2.Compose([*crop, v2.RandAugment(2), v2.RandomErasing(1., (.01,.25)), *last])
    def by_v2(files, read):
        xs = [one(read(o)) for o in files]
        return torch.stack([weak(x) for x in xs]),torch.stack([strong(x) for x in xs])
    from torchvision.io import decode_image
    def pillow(o): return v2.functional.pil_to_tensor(Image.open(o).convert('RGB'))
    def torchvision(o): return decode_image(str(o), mode='RGB')
    print(f'{f"{n} JPEG files to weak + strong, 224 px":<50}{"µs per image":>14}{"v2, Pillow":>12}{"v2, its decoder":>17}')
    for size in ((500,375),(1280,960)):
        with tempfile.TemporaryDirectory() as d:
            files = photo_files(Path(d), n, size)
            fs = {'torchvision v2, Pillow':partial(by_v2, files, pillow), 'torchvision v2, its decoder':partial(by_v2, files, torchvision),
                  'fastssl, as before':partial(ours, files, False, False), 'fastssl, compiled':partial(ours, files, False, True),
                  'fastssl, compiled, fast=224':partial(ours, files, 224, True)}
            t = paired(fs, reps)
            for k,v in t.items():
                print(f'{f"{size[0]} × {size[1]}: {k}":<50}{1e3*v/n:>14.0f}{v/t["torchvision v2, Pillow"]:>12.2f}{v/t["torchvision v2, its decoder"]:>17.2f}', flush=True)

@call_parse
def main(
    reps:int=7, # Repetitions
    only_pair:store_true=False, # Only the table of `NormalizeBytes`
    only_files:store_true=False # Only the table of JPEG files
):
    torch.set_num_threads(1)
    if not has_native(torch.zeros(1,1,256,256).byte()): print("without compiled kernels: pip install 'fastssl[native]'")
    sizes = (448,32),(56,224)
    def smooth_images(n, size):
        set_seed(0)
        smooth = F.interpolate(torch.rand(n,3,size//8,size//8), size=(size,size), mode='bicubic').clamp(0,1)          # images are smooth; noise would not change the times
        return (smooth*255).byte()
    if only_files: return from_files(56, reps)
    print(f'{"µs per image":<44}{"fastai":>10}{"fastssl":>10}{"ratio":>8}')
    for n,size in sizes: pair(n, size, smooth_images(n, size), reps)
    if only_pair: return
    print(f'{"":<34}{"weak+strong":>14}{"images/s":>10}{"ratio":>8}{"RandAugment, Cutout":>24}{"ratio":>8}\n{"":<34}{"µs per image":>14}{"":>18}{"µs per image":>24}')
    for n,size in sizes:
        x = smooth_images(n, size)
        both,alone = {},{}
        for k,mk in makers.items():
            try: b,a = mk(size)
            except ImportError as e: print(f'{k}: not installed ({e})'); continue
            both[k],alone[k] = partial(b, x),a(x)
        tb,ta = paired(both, reps),paired(alone, reps)
        for k in tb:
            b,a = 1e3*tb[k]/n,1e3*ta[k]/n
            print(f'{f"{n} images of {size} px: {k}":<34}{b:>14.1f}{1e6/b:>10.0f}{tb[k]/tb["fastssl"]:>8.1f}{a:>24.1f}{ta[k]/ta["fastssl"]:>8.1f}', flush=True)
    from_files(56, reps)
