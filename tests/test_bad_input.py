"Common mistakes in the input, one test each: the message names the mistake, before training wherever possible"
import os, subprocess, sys, warnings
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

def by_table(text, d, encoding='utf-8', **kwargs):
    (d/'t.csv').write_bytes(text.encode(encoding))
    return own_dls(csv=d/'t.csv', **{**kw, **kwargs})
def by_df(df, d, *args, **kwargs): return SSLDataLoaders.from_df(df, d, *args, **{**dict(item_tfms=Resize(16), bs=4, num_workers=0), **kwargs})
names = [f'lab/{c}/{i}.png' for c in 'ab' for i in range(6)],[f'unl/{i}.png' for i in range(10)]
def lines(a='a', b='b', missing='', sep=',', head='file,label\n'): return head+''.join(f'{f}{sep}{a if "/a/" in f else b}\n' for f in names[0])+''.join(f'{f}{sep}{missing}\n' for f in names[1])
def sizes(dls): return len(dls.train_ds)+len(dls.valid_ds),dls.unlabeled.n,[str(o) for o in dls.vocab]

@pytest.mark.parametrize('a,b', [('None','NA'), ('nan','N/A'), ('null','NULL'), ('n/a','#N/A'), ('1.0','2.0'), ('Käfer','雪')])
def test_names_of_classes_in_a_table(d, a, b):
    "Words are words; 1.0 is how pandas writes the class 1"
    want = sorted([a,b]) if a!='1.0' else ['1','2']
    assert sizes(by_table(lines(a, b), d))==(12, 10, want)
    assert sizes(SSLDataLoaders.from_df(d/'t.csv', item_tfms=Resize(16), bs=4, num_workers=0))==(12, 10, want)
    assert sizes(by_df(pd.DataFrame([*zip(names[0], [a]*6+[b]*6), *zip(names[1], [None]*10)]), d))==(12, 10, want)

@pytest.mark.parametrize('kwargs', [dict(head=''), dict(a='a ', b='\tb', missing='  '), dict(sep=';', head='file;label\n'), dict(sep='\t', head=''), dict(sep=' , ')])
def test_forms_of_a_table(d, kwargs): assert sizes(by_table(lines(**kwargs), d))==(12, 10, ['a','b'])

@pytest.mark.parametrize('encoding', ['utf-8-sig','utf-16','utf-16-le','latin-1'])
def test_encodings_of_a_table(d, encoding):
    dls,msgs = caught(lambda: by_table(lines('Käfer'), d, encoding))
    assert sizes(dls)==(12, 10, ['Käfer','b']) and len(msgs)==(encoding=='latin-1')

@pytest.mark.parametrize('missing', [None, np.nan, np.float32('nan'), pd.NA, pd.NaT, '', ' '])
def test_missing_labels(d, missing):
    df = pd.DataFrame([*zip(names[0], 'a'*6+'b'*6), *zip(names[1], [missing]*10)], dtype=object)
    assert sizes(by_df(df, d))==(12, 10, ['a','b'])
    assert sizes(by_df(pd.DataFrame([*zip(names[0], [1]*6+[2]*6), *zip(names[1], [missing]*10)], dtype=object), d))==(12, 10, ['1','2'])
    assert folder_dls(d, labels=[missing]*9+['a']).unlabeled.labels.tolist()==[-1]*9+[0]
    X = np.zeros((4,8,8), np.uint8)
    assert sizes(SSLDataLoaders.from_arrays(X, [1, 2, 1, missing], bs=2))==(3, 1, ['1','2'])

def test_integer_labels(d):
    "A column of integers with gaps is one of floats in pandas"
    df = pd.DataFrame([*zip(names[0], [1]*6+[2]*6), *zip(names[1], [None]*10)])
    assert df[1].dtype=='float64'
    for vocab,want in ((None,[1,2]), ([1,2],[1,2]), (['1','2'],['1','2'])):
        dls = by_df(df, d, vocab=vocab, labels=[1.]*9+['2'])
        assert list(dls.vocab)==want and dls.unlabeled.labels.tolist()==[0]*9+[1]
    with pytest.raises(ValueError, match=r"labels \['2'\] are not in `vocab`"): by_df(df, d, vocab=['1','3'])
    for c,i in (('a',1),('b',2)): picture(d/'val'/str(i)); picture(d/'val'/str(i), '1.png')
    assert len(by_table(lines('1.0', '2.0'), d, valid=d/'val').valid_ds)==4

@pytest.mark.parametrize('path', ['.', 'd'])
def test_absolute_paths(d, path):
    df = pd.DataFrame([*((str(d/f), f[4]) for f in names[0]), *((str(d/f), None) for f in names[1])])
    dls = by_df(df, d if path=='d' else '.')
    assert len(dls.train.one_batch()[0])==4 and len(dls.unlabeled.one_batch()[0])==28
    assert by_table(lines().replace('lab/a', f'{d}/lab/a'), d).train.one_batch()[0].shape==(4,3,16,16)

def test_repeated_and_contradicting_rows(d):
    _,msgs = caught(lambda: by_table(lines()+'lab/a/0.png,a\n./unl/1.png,\n', d))
    assert [m.split(':')[0] for m in msgs]==[f'1 files are there twice in {d/"t.csv"} and are used once']*2 and 'lab/a/0.png' in msgs[0] and 'unl/1.png' in msgs[1]
    for row in ('lab/a/0.png', './lab/a/0.png', str(d/'lab'/'a'/'0.png')):
        with pytest.raises(ValueError, match='1 files have two labels'): by_table(lines()+f'{row},b\n', d)
    (d/'lab'/'a'/'link.png').symlink_to(d/'lab'/'a'/'0.png')
    rows = [*zip(names[0], 'a'*6+'b'*6), *zip(names[1], [None]*10), ('lab/a/link.png','b')]
    with pytest.raises(ValueError, match=f"1 files have two labels in the table: .*0.png is 'a', .*link.png is 'b'"): by_df(pd.DataFrame(rows), d)
    with pytest.raises(ValueError, match="several columns called"): by_table(lines(head='file,file\n'), d)
    with pytest.raises(ValueError, match="2 columns called 'label'"): by_df(pd.DataFrame([(*r, 0) for r in rows], columns=['file','label','label']), d, label_col='label')
    with pytest.raises(ValueError, match="'lab/a/0.png', was taken for one"): by_df(pd.DataFrame(rows[1:], columns=rows[0]), d)

@pytest.mark.parametrize('missing', [None, np.nan, pd.NA, '', 'no', 0])
def test_valid_col(d, missing):
    df = pd.DataFrame([*zip(names[0], 'a'*6+'b'*6, [i%3==0 for i in range(12)]), *zip(names[1], [None]*10, [missing]*10)], dtype=object)
    dls = by_df(df, d, valid_col=2)
    assert (len(dls.train_ds), len(dls.valid_ds), dls.unlabeled.n)==(8, 4, 10)
def test_words_in_valid_col(d):
    df = pd.DataFrame([*zip(names[0], 'a'*6+'b'*6, ['valid','train']*6), *zip(names[1], [None]*10, ['train']*10)], columns=['f','y','part'])
    with pytest.raises(ValueError, match=r"'part' must hold True and False.*the words \['train', 'valid'\]"): by_df(df, d, valid_col='part')
    with pytest.raises(ValueError, match="no row is marked"): by_df(df.assign(part=False), d, valid_col='part')

def test_missing_labels_of_soft_targets(d):
    files = get_image_files(d/'lab')
    soft = SoftTargets.from_dict({f'{f.parent.name}/{f.name}':[3.,0.] for f in files}, vocab=['1','2'])
    for missing in (None, np.nan, np.float32('nan'), pd.NA, pd.NaT, ''):
        block = DataBlock((ImageBlock, SoftCategoryBlock(soft)), get_y=soft.labeller(lambda f: int(f.parent.name=='b')+1 if f.stem in '012' else missing), splitter=IndexSplitter([0]), item_tfms=Resize(16))
        ds = block.datasets(files)
        assert sum(bool(ds[i][1].known) for i in range(12))==6

def nested(d):
    "Classes with sub-folders, and sets inside the labeled root"
    for c in 'ab':
        for i in range(4): picture(d/'root'/c/('monday','tuesday')[i%2], f'{i}.png'); picture(d/'root'/'valid'/c/'wednesday', f'{i}.png')
    for i in range(6): picture(d/'root'/'unlabeled'/'deep', f'{i}.png')
    return d/'root'
def test_sub_folders_and_sets_in_the_labeled_root(d):
    root = nested(d)
    for dls in (own_dls(root, root/'unlabeled', valid=root/'valid', **kw), SSLDataLoaders.from_folder(root, train='.', item_tfms=Resize(16), bs=4, num_workers=0)):
        assert (len(dls.train_ds), len(dls.valid_ds), dls.unlabeled.n, list(dls.vocab))==(8, 8, 6, ['a','b'])
        assert sorted(int(y) for _,y in dls.train_ds)==[0]*4+[1]*4
    dls,msgs = caught(lambda: own_dls(root, d/'unl', **kw))
    assert (len(dls.train_ds)+len(dls.valid_ds), list(dls.vocab))==(8, ['a','b']) and 'unlabeled (not taken for a class' in msgs[0] and 'valid (not taken' in msgs[0]
    dls,_ = caught(lambda: SSLDataLoaders.from_folder(d, train='root', unlabeled='unl', valid_pct=.25, item_tfms=Resize(16), bs=4, num_workers=0))
    assert (len(dls.train_ds), len(dls.valid_ds), list(dls.vocab))==(6, 2, ['a','b'])
    learn = fit(ssl_learner(dls, tiny_cnn(3, 2, nf=4), cbs=FixMatchCallback(.5), path=d))
    again = load_learner(learn.export_plain('plain.pkl'))
    f = dls.train_ds.items[0]
    assert again.dls.test_dl([f], num_workers=0).one_batch()[0].shape==(1,3,16,16)
    train(d, lab='root', unl='unl')
def test_parent_of_the_sets_as_labeled_folder(d):
    nested(d).rename(d/'unused')
    (d/'data').mkdir(); (d/'lab').rename(d/'data'/'train'); (d/'unused'/'valid').rename(d/'data'/'valid')
    with pytest.raises(ValueError, match=r"holds \['train', 'valid'\], which are no classes: .* such as .*train"): own(d, lab='data')

def test_a_class_of_the_validation_set_alone(d):
    for c in 'abc': picture(d/'val'/c); picture(d/'data'/'valid'/c)
    msg = r"validation items have labels \['c'\] that are no classes of the training set, which are \['a', 'b'\]"
    with pytest.raises(ValueError, match=msg): own(d, valid=d/'val')
    (d/'lab').rename(d/'data'/'train'); (d/'unl').rename(d/'data'/'unlabeled')
    with pytest.raises(ValueError, match=msg): SSLDataLoaders.from_folder(d/'data', item_tfms=Resize(16), num_workers=0)
    dls = ImageDataLoaders.from_folder(d/'data', train='train', valid='valid', item_tfms=Resize(16), num_workers=0)
    with pytest.raises(ValueError, match=msg): dls.add_unlabeled(get_image_files(d/'data'/'unlabeled'))
    X = np.zeros((6,8,8), np.uint8)
    with pytest.raises(ValueError, match=msg.replace("'a', 'b'", '1, 2').replace("'c'", "'3'")): SSLDataLoaders.from_arrays(X, [1,2,1,2,-1,-1], valid=(X[:2],[1,3]), bs=2)
    with pytest.raises(ValueError, match='1 validation rows have no label'): SSLDataLoaders.from_arrays(X, [1,2,1,2,-1,-1], valid=(X[:2],[1,-1]), bs=2)

def test_links(d):
    "Loops are not followed; one file under two names is used once, and never to train and to validate"
    for o in ('lab','unl'):
        (d/o/'loop').symlink_to(d/o); (d/o/'up').symlink_to(d)
    (d/'lab'/'a'/'back').symlink_to(d/'lab')
    os.link(d/'lab'/'a'/'0.png', d/'lab'/'a'/'copy.png')
    (d/'unl'/'again.png').symlink_to(d/'unl'/'0.png')
    for mk in (own, folder_dls):
        dls,msgs = caught(lambda: mk(d))
        assert sizes(dls)==(12, 10, ['a','b']) and any('copy.png' in m for m in msgs) and any('again.png' in m for m in msgs)
    for c in 'ab': picture(d/'val'/c)
    (d/'val'/'a'/'seen.png').symlink_to(d/'lab'/'a'/'3.png')
    dls,msgs = caught(lambda: own(d, valid=d/'val'))
    assert (len(dls.train_ds), len(dls.valid_ds))==(11, 3) and any(m.startswith('1 labeled images are in the validation set too') and '3.png' in m for m in msgs)
    (d/'unl'/'leak.png').symlink_to(d/'val'/'b'/'0.png')
    _,msgs = caught(lambda: own(d, valid=d/'val'))
    assert any(m.startswith('1 of 11 unlabeled items are in the validation set too') and 'leak.png' in m for m in msgs)
    (d/'lab'/'b'/'other.png').symlink_to(d/'lab'/'a'/'1.png')
    with pytest.raises(ValueError, match="1 files have two labels.*1.png is 'a', .*other.png is 'b'"): own(d)

def test_no_regular_files(d):
    os.mkfifo(d/'lab'/'a'/'f.png'); os.mkfifo(d/'unl'/'f.png'); (d/'unl'/'null.png').symlink_to(os.devnull)
    for mk in (own, folder_dls):
        dls,msgs = caught(lambda: mk(d))
        assert sizes(dls)==(12, 10, ['a','b']) and 'f.png (a FIFO' in msgs[0] and 'null.png (a FIFO' in msgs[1]
    with pytest.raises(FileNotFoundError, match='1 of 23 files .*f.png'): by_table(lines()+'unl/f.png,\n', d)
    with pytest.raises(UnreadableImage, match='FIFO'): open_image(d/'unl'/'f.png')

def test_large_image(d, monkeypatch):
    "A small file may hold billions of pixels"
    PIL.new('1', (3000,1000)).save(d/'unl'/'large.png')
    monkeypatch.setattr(PIL, 'MAX_IMAGE_PIXELS', 2*10**6)
    with pytest.raises(UnreadableImage, match=r'1 files cannot be read: .*large.png \(.*it has 3000 × 1000 pixels, more than the limit of 2000000 pixels.*--max-pixels'): own(d)
    dls,_ = caught(lambda: own(d, skip_unreadable=True))
    assert dls.unlabeled.n==10
    monkeypatch.setattr(PIL, 'MAX_IMAGE_PIXELS', 10**6)
    with pytest.raises(UnreadableImage, match=r'large.png \(.*it has 3000000 pixels'): own(d)
    assert own(d, max_pixels=4*10**6).unlabeled.n==11

def test_names_that_are_not_utf8(d, capsys):
    "From the folder to the table and the picture, and back through the table"
    odd = os.fsdecode(b'caf\xe9')
    (d/'lab'/'a').rename(d/'lab'/odd); (d/'unl'/'0.png').rename(d/'unl'/f'{odd}.png'); (d/'lab'/'b').rename(d/'lab'/'$b$')
    learn = train(d, out=d/'out'/f'{odd}.pkl')
    assert set(learn.dls.vocab)=={odd,'$b$'} and (d/'out'/f'{odd}_report.png').stat().st_size>10**4
    assert os.fsencode(d/'unl'/f'{odd}.png') in (d/'out'/f'{odd}_pseudo_labels.csv').read_bytes()
    assert 'caf\\udce9.pkl: the model' in capsys.readouterr().out
    text = b'f,y\n'+b''.join(os.fsencode(f'lab/{c}/{i}.png,{c}\n') for c in (odd,'$b$') for i in range(6))+os.fsencode(f'unl/{odd}.png,\n')
    (d/'t.csv').write_bytes(text)
    dls,msgs = caught(lambda: own_dls(csv=d/'t.csv', **kw))
    assert sizes(dls)==(12, 1, ['$b$','café']) and 'is not UTF-8' in msgs[0]
    soft = save_soft_targets(learn, get_image_files(d/'lab'), d/'soft', progress=False)
    soft.verify()
    assert (d/'lab'/odd/'0.png') in soft

@pytest.mark.parametrize('form', ['folder','text','generator','set','series'])
def test_forms_of_a_pool(d, form):
    files = get_image_files(d/'unl').sorted()
    pool = dict(folder=d/'unl', text=str(d/'unl'), generator=(d/'unl').glob('*.png'), set=set(files), series=pd.Series(files))[form]
    dls = ImageDataLoaders.from_folder(d/'lab', valid_pct=.25, item_tfms=Resize(16), bs=4, num_workers=0).add_unlabeled(pool)
    assert sorted(dls.unlabeled.items)==files and len(dls.unlabeled.one_batch()[0])==28
@pytest.mark.parametrize('pool,msg', [(pd.DataFrame(dict(f=['x.png'])), r"such as \[path/name for name in df\['f'\]\]"), ({'a':1}, 'a dict'), (3, 'a int'), ('nowhere', 'is no folder'), (None, 'no unlabeled items')])
def test_what_is_no_pool(d, pool, msg):
    dls = ImageDataLoaders.from_folder(d/'lab', valid_pct=.25, item_tfms=Resize(16), bs=4, num_workers=0)
    with pytest.raises((ValueError,TypeError), match=msg): dls.add_unlabeled(pool)
    assert dls.pool is None
def test_predictions_of_the_pool_itself(d):
    learn = ssl_learner(folder_dls(d), tiny_cnn(3, 2, nf=4), cbs=FixMatchCallback())
    with pytest.raises(ValueError, match=r'get_preds\(dl=dls.pool_dl\(\)\)'): learn.get_preds(dl=learn.dls.unlabeled)

@pytest.mark.parametrize('broken', ['export_plain','pseudo_labels','show_pseudo_labels'])
def test_one_output_fails(d, monkeypatch, broken):
    "The others are written, and the old file stays"
    train(d)
    old = {f.name:f.read_bytes() for f in (d/'out').iterdir()}
    def fails(*args, **kwargs): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(Learner, broken, fails)
    lost = dict(export_plain=['m.pkl','m_best.pkl'], pseudo_labels=['m_pseudo_labels.csv','m_report.png'], show_pseudo_labels=['m_report.png'])[broken]
    with pytest.raises(OSError, match=f'{len(lost)} of 4 files could not be written: .*{lost[-1]} .*No space left'): train(d, seed=1)
    new = {f.name:f.read_bytes() for f in (d/'out').iterdir()}
    assert sorted(new)==sorted(old) and {k for k in old if new[k]==old[k]}==set(lost)

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

@pytest.mark.parametrize('name', ssl_methods())
def test_unknown_argument(name):
    "The message names the method and its arguments, and not the base class that got what was left"
    cls = ssl_methods()[name]
    with pytest.raises(TypeError, match=f"{cls.__name__} has no argument 'treshold'; there are: .*weight"): cls(treshold=.9)
def test_argument_of_the_base_class():
    with pytest.raises(TypeError, match="FreeMatchCallback has no argument 'threshold'"): FreeMatchCallback(threshold=.9)
    with pytest.raises(TypeError, match="AdaMatchCallback has no argument 'align'"): AdaMatchCallback(align=None)

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
    assert sorted(f.name for f in (d/'out').iterdir())==['m.pkl','m_best.pkl','m_history.csv','m_pseudo_labels.csv','m_report.png']
    df = pd.read_csv(d/'out'/'m_pseudo_labels.csv')
    assert len(df)==9 and str(bad) not in set(df.item) and set(df.label)<={'a','b'}
