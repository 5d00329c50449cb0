"Common mistakes in the input, one test each: the message names the mistake, before training wherever possible"
import subprocess, sys, warnings
import numpy as np, pandas as pd, pytest
from PIL import Image as PIL
from helpers import *
from fastssl.cli.workflow import own_dls, ssl_methods, train_own

rng = np.random.default_rng(0)
def picture(folder, name='0.png', mode='RGB', size=(20,16), **kw):
    f = Path(folder)/name
    f.parent.mkdir(parents=True, exist_ok=True)
    a = rng.integers(0, 256, (size[1],size[0],3), dtype=np.uint8)
    im = PIL.fromarray((a[...,0].astype(np.uint16)*257)) if mode=='I;16' else PIL.fromarray(a).convert(mode)
    im.save(f, **kw)
    return f

@pytest.fixture
def d(tmp_path):
    "Two classes of six images each, and ten unlabeled images"
    for c in 'ab':
        for i in range(6): picture(tmp_path/'lab'/c, f'{i}.png')
    for i in range(10): picture(tmp_path/'unl', f'{i}.png')
    return tmp_path
kw = dict(size=16, bs=4, uratio=2, num_workers=0)
def own(d, lab='lab', unl='unl', **kwargs): return own_dls(d/lab, d/unl, **{**kw, **kwargs})
def train(d, lab='lab', unl='unl', **kwargs): return train_own(d/lab, d/unl, **{**dict(arch='test_resnet', pretrained=False, epochs=1, out=d/'out'/'m.pkl', **kw), **kwargs})
def cut(f): f.write_bytes(f.read_bytes()[:200]); return f
def folder_dls(d, **kwargs): return SSLDataLoaders.from_folder(d, train='lab', unlabeled='unl', **{**dict(valid_pct=.4, item_tfms=Resize(16), bs=4, num_workers=0), **kwargs})
def caught(f):
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always')
        res = f()
    return res,[str(o.message) for o in w if o.category is UserWarning]

def test_no_images(d):
    for k in ('lab','unl'):
        (d/'none'/'x').mkdir(parents=True, exist_ok=True)
        with pytest.raises(ValueError, match=r'no images in .*none'): own(d, **{k:'none'})
    with pytest.raises(ValueError, match='no images in .*none'): SSLDataLoaders.from_folder(d, train='lab', unlabeled='none', valid_pct=.2)
    with pytest.raises(FileNotFoundError, match='no folder .*nowhere'): own(d, unl='nowhere')
    with pytest.raises(ValueError, match='no labeled items'): DataBlock((ImageBlock,CategoryBlock), get_items=get_image_files, get_y=parent_label).ssl_dataloaders(d/'none', [1])

def test_no_class_folders(d):
    with pytest.raises(ValueError, match='one folder per class'): own(d, lab='unl', unl='lab')

def test_one_class(d):
    import shutil; shutil.rmtree(d/'lab'/'b')
    with pytest.raises(ValueError, match=r"of one class, \['a'\]"): own(d)
    with pytest.raises(ValueError, match='a classifier needs two'): folder_dls(d)

def test_class_of_few(d):
    "Each class keeps at least one training image"
    for i in range(1,6): (d/'lab'/'b'/f'{i}.png').unlink()
    for o in range(5):
        dls = folder_dls(d, seed=o)
        assert {f.parent.name for f in dls.train_ds.items}=={'a','b'}
    for i in range(1,6): (d/'lab'/'a'/f'{i}.png').unlink()
    with pytest.raises(ValueError, match='no image is left to validate on'): own(d)

@pytest.mark.parametrize('where', ['lab/a/3.png', 'unl/3.png'])
def test_truncated_file(d, where):
    bad = cut(d/where)
    with pytest.raises(UnreadableImage, match=f'1 files cannot be read: {bad}.*--skip-unreadable'): own(d)
    dls,msgs = caught(lambda: own(d, skip_unreadable=True))
    assert [*map(str, dls.unreadable)]==[str(bad)] and len(msgs)==1 and str(bad) in msgs[0]
    assert len(dls.train_ds)+len(dls.valid_ds)+dls.unlabeled.n==21
    learn = ssl_learner(folder_dls(d, seed=1), tiny_cnn(3, 2, nf=4), cbs=FixMatchCallback())
    with pytest.raises(UnreadableImage, match=str(bad)): fit(learn)                      # without the command, files are read when needed
    dls,msgs = caught(lambda: folder_dls(d, skip_unreadable=True))
    assert [*dls.unreadable]==[bad] and len(msgs)==1

def test_truncated_file_in_worker(d):
    bad = cut(d/'unl'/'3.png')
    with pytest.raises(UnreadableImage, match=str(bad)): fit(ssl_learner(folder_dls(d, num_workers=1), tiny_cnn(3, 2, nf=4), cbs=FixMatchCallback()))

def test_no_image_at_all(d):
    (d/'unl'/'notes.png').write_text('shopping list')
    with pytest.raises(UnreadableImage, match=r'notes.png \(.*cannot identify'): own(d)

def test_every_kind_of_image(d):
    "Gray, two colors, RGBA, palette, 16 bits, CMYK, other sizes: all become three channels of bytes"
    for i,m in enumerate(('L','1','RGBA','P','LA','I;16')): picture(d/'unl', f'k{i}.png', m); picture(d/'lab'/'b', f'k{i}.png', m, size=(30,40))
    picture(d/'unl', 'c.jpg', 'CMYK')
    x,idx = own(d, bs=6, uratio=3).unlabeled.one_batch()
    assert x.shape==(18,3,16,16) and x.dtype==torch.uint8
    learn = fit(ssl_learner(folder_dls(d), tiny_cnn(3, 2, nf=4), cbs=FixMatchCallback(.5)))
    assert len(learn.recorder.ssl['kept'])>0

def test_orientation(d):
    ex = PIL.Exif(); ex[0x0112] = 6
    f = picture(d/'unl', 'side.jpg', exif=ex)
    assert PIL.open(f).size==(20,16) and open_image(f).size==(16,20)
    dls = folder_dls(d)
    assert dls.test_dl([f]).dataset[0][0].size==(16,20)

def test_sixteen_bits(d):
    f = picture(d, 'deep.png', 'I;16')
    assert np.array_equal(np.asarray(open_image(f))[...,0], np.asarray(PIL.open(f))>>8)

def test_leak(d):
    dls = folder_dls(d, seed=0)
    _,msgs = caught(lambda: dls.add_unlabeled([*get_image_files(d/'unl'), *map(str, dls.valid_ds.items[:3])]))
    assert len(msgs)==1 and msgs[0].startswith('3 of 13 unlabeled items are in the validation set too') and str(dls.valid_ds.items[0]) in msgs[0]
    _,msgs = caught(lambda: dls.add_unlabeled(get_image_files(d/'unl')))
    assert not msgs
    df = pd.DataFrame([(f'lab/{c}/{i}.png', c, i<2) for c in 'ab' for i in range(6)]+[(f'unl/{i}.png', None, False) for i in range(10)]+[('lab/a/0.png', None, False)], columns=['name','label','is_valid'])
    _,msgs = caught(lambda: SSLDataLoaders.from_df(df, d, valid_col='is_valid', item_tfms=Resize(16), num_workers=0))
    assert len(msgs)==1 and msgs[0].startswith('1 of 11')

def test_no_unlabeled_items(d):
    with pytest.raises(ValueError, match='no unlabeled items'): mk_dls().add_unlabeled([])
    with pytest.raises(ValueError, match='needs unlabeled items, and these data have none'):
        ssl_learner(ImageDataLoaders.from_folder(d/'lab', valid_pct=.2, item_tfms=Resize(16), num_workers=0), tiny_cnn(3, 2, nf=4), cbs=FixMatchCallback())
    with pytest.raises(ValueError, match='two folders, one of labeled and one of unlabeled'): own_dls(d/'lab')
    pd.DataFrame(dict(f=[f'lab/a/{i}.png' for i in range(6)], y=list('aabbab'))).to_csv(d/'t.csv', index=False)
    with pytest.raises(ValueError, match='no unlabeled'): own_dls(csv=d/'t.csv', **kw)

def test_table(d):
    pd.DataFrame(dict(f=['lab/a/0.png','gone.png'], y=['a',None])).to_csv(d/'t.csv', index=False)
    with pytest.raises(FileNotFoundError, match='1 of 2 files in .*t.csv do not exist: .*gone.png'): own_dls(csv=d/'t.csv', **kw)
    pd.DataFrame(dict(f=['lab/a/0.png'], y=[None])).to_csv(d/'t.csv', index=False)
    with pytest.raises(ValueError, match="has a label in its second column, 'y'"): own_dls(csv=d/'t.csv', **kw)
    pd.DataFrame(dict(f=['lab/a/0.png'])).to_csv(d/'t.csv', index=False)
    with pytest.raises(ValueError, match='one column'): own_dls(csv=d/'t.csv', **kw)
    (d/'t.csv').write_text('f,y\n'+''.join(f'lab/{c}/{i}.png,{"ab".index(c)+1}\n' for c in 'ab' for i in range(6))+'unl/0.png,\n')
    assert list(own_dls(csv=d/'t.csv', **kw).vocab)==['1','2']                              # numbers are class names

def test_pool_smaller_than_a_batch(d):
    dls = own(d, bs=4, uratio=7)
    assert dls.unlabeled.n==10<dls.unlabeled.bs==28
    x,idx = dls.unlabeled.one_batch()
    assert len(x)==28 and set(idx.tolist())==set(range(10))
    fit(ssl_learner(dls, tiny_cnn(3, 2, nf=4), cbs=FixMatchCallback()))

def test_hidden_labels_of_other_classes(d):
    with pytest.raises(ValueError, match=r"\['cat'\] are not classes of the labeled data, which are \['a', 'b'\]"): folder_dls(d, labels=lambda f: 'cat')
    with pytest.raises(ValueError, match='2 hidden labels for 10'): folder_dls(d, labels=['a','b'])

def test_unknown_method(d):
    with pytest.raises(ValueError, match="no method 'fixmach'; near it: fixmatch"): train(d, method='fixmach')
    assert 'fixmatch' in ssl_methods() and not (d/'out').exists()
@pytest.mark.parametrize('name', ['freematch','mcc'])
def test_a_threshold_for_a_method_without(d, name):
    with pytest.raises(ValueError, match=f'threshold=0.8: {name} has no threshold to set'): train(d, method=name, threshold=.8)
    assert not (d/'out').exists()
@pytest.mark.parametrize('name', ssl_methods())
def test_every_method_leaves_a_plain_file(d, name):
    "Every method can be exported; a failure after training would be too late"
    set_seed(0)
    from fastssl.export import plain_bytes
    learn = ssl_learner(folder_dls(d, labels=lambda f: 'a'), 'test_resnet', cbs=ssl_methods()[name](), pretrained=False)
    assert len(plain_bytes(learn))>10**4
def test_unknown_arch(d):
    with pytest.raises(ValueError, match="no architecture 'resnet81'; near it:.*resnet18"): train(d, arch='resnet81')
    with pytest.raises(ValueError, match="no timm architecture 'resnet81'; near it:.*resnet18"): ssl_learner(folder_dls(d), 'resnet81')

@pytest.mark.parametrize('name', ssl_methods())
def test_weight_and_threshold(name):
    "Invalid weights and thresholds raise for every method, even one that does not check them"
    cls = ssl_methods()[name]
    for attr,bad,msg in (('weight', -1., 'must not be negative, but it is -1'), ('threshold', 1.5, r'must lie in \(0, 1\], but it is 1.5'), ('threshold', 0., 'but it is 0')):
        if attr=='threshold' and not isinstance(vars(cls()).get('threshold'), float): continue
        with pytest.raises(ValueError, match=msg):
            cb = cls()
            setattr(cb, attr, bad)
            ssl_learner(mk_dls(), tiny_cnn(nf=4), cbs=cb)

def test_nan_loss(d):
    class Breaks(Consistent):
        n = 0
        def unsup_loss(self, b): self.n += 1; return super().unsup_loss(b)*(float('nan') if self.n==5 else 1)
    ends = []
    class End(Callback):
        def after_epoch(self): ends.append(weights(self.model))
    learn = mk([Breaks(), End()])
    with pytest.raises(FloatingPointError, match='^the loss of Breaks is nan in step 1 of epoch 1'): fit(learn, 3)
    close(weights(learn.model), ends[0], 0); assert len(ends)==1
    with pytest.raises(FloatingPointError, match='the supervised loss is'): train(d, lr=1e30)

def test_output_cannot_be_written(d, monkeypatch):
    monkeypatch.setattr('fastssl.cli.workflow.own_dls', lambda *a, **k: pytest.fail('data were read first'))
    (d/'file').write_text('')
    with pytest.raises(OSError, match='m.pkl cannot be written'): train(d, out=d/'file'/'m.pkl')
    with pytest.raises(OSError, match='it is a folder'): train(d, out=d)
def test_disk_full(d, monkeypatch):
    monkeypatch.setattr(Learner, 'fit_one_cycle', lambda *a, **k: pytest.fail('it trained first'))
    monkeypatch.setattr('shutil.disk_usage', lambda o: type('Usage', (), dict(free=2**20)))
    with pytest.raises(OSError, match=r'MiB are needed, 1 MiB are free'): train(d)

def test_weights_cannot_be_downloaded(d, monkeypatch):
    def offline(*args, **kwargs): raise ConnectionError('no network')
    monkeypatch.setattr('timm.create_model', offline)
    with pytest.raises(OSError, match='published weights of test_resnet could not be loaded.*pretrained=False'): train(d, pretrained=True)

def test_numbers(d):
    for bad in (dict(epochs=0), dict(lr=0), dict(size=0), dict(bs=0), dict(uratio=0), dict(valid_pct=0)):
        with pytest.raises(ValueError, match=next(iter(bad))): train(d, **bad)

def command(*args):
    return subprocess.run([Path(sys.executable).with_name('fastssl_train'), *map(str, args)], capture_output=True, text=True)
def test_one_line_on_the_command_line(d):
    bad = cut(d/'unl'/'3.png')
    args = d/'lab', d/'unl', '--arch', 'test_resnet', '--no-pretrained', '--size', 16, '--epochs', 1, '--out', d/'out'/'m.pkl'
    r = command(*args)
    assert r.returncode==1 and r.stdout=='' and r.stderr.count('\n')==1
    assert r.stderr.startswith(f'fastssl_train: 1 files cannot be read: {bad}')
    r = command(*args, '--debug')
    assert r.returncode==1 and 'Traceback' in r.stderr
    r = command(*args, '--skip-unreadable')
    assert r.returncode==0 and f'fastssl_train: warning: 1 files cannot be read and are left out: {bad}' in r.stderr and 'Traceback' not in r.stderr
    assert sorted(f.name for f in (d/'out').iterdir())==['m.pkl','m_pseudo_labels.csv','m_report.png']
    df = pd.read_csv(d/'out'/'m_pseudo_labels.csv')
    assert len(df)==9 and str(bad) not in set(df.item) and set(df.label)<={'a','b'}
