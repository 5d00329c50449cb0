"Pools in tar files, LitData's shards and files, and Hugging Face datasets train, predict and resume as pools of files do"
import io, pytest, tarfile
import datasets, litdata
from litdata.streaming.writer import BinaryWriter
from helpers import *
from fastai.distributed import *
from fastssl.training.testing import in_processes

X,Y = digits_data()
N = 120
def png(a): f = io.BytesIO(); Image.fromarray(a).save(f, 'png'); return f.getvalue()

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    d = tmp_path_factory.mktemp('digits')
    for i in range(60):
        f = d/'labeled'/f'd{Y[i]}'/f'{i}.png'
        f.parent.mkdir(parents=True, exist_ok=True); Image.fromarray(X[i]).save(f)
    (d/'files').mkdir()
    for i in range(N): Image.fromarray(X[100+i]).save(d/'files'/f'{i:03}.png')
    with tarfile.open(d/'a.tar', 'w') as tar:
        for i in range(N):
            info = tarfile.TarInfo(f'{i:03}.png'); b = png(X[100+i]); info.size = len(b); tar.addfile(info, io.BytesIO(b))
    w = BinaryWriter(str(d/'shards'), chunk_size=25)
    for i in range(N): w[i] = dict(image=png(X[100+i]), label=int(Y[100+i]))
    w.done(); w.merge()
    return d
def hf(): return datasets.Dataset.from_dict(dict(image=[Image.fromarray(x) for x in X[100:100+N]], label=[f'd{y}' for y in Y[100:100+N]]))
SOURCES = dict(files=lambda d: get_image_files(d/'files').sorted(), tar=lambda d: TarFiles(d/'a.tar'), tar_stream=lambda d: Stream(TarFiles(d/'a.tar'), key=lambda i: f'k{i}'),
    shards=lambda d: litdata.StreamingDataset(str(d/'shards')), raw=lambda d: litdata.StreamingRawDataset(str(d/'files'), cache_dir=str(d/'cache')), hf=lambda d: hf())
def data(d, source, block=OpenImageBlock(PILImageBW), num_workers=0, **kw):
    set_seed(0)
    block = DataBlock((block, CategoryBlock), get_y=parent_label, splitter=RandomSplitter(.2, seed=0), batch_tfms=[Normalize.from_stats([.3],[.37])])
    dls = block.dataloaders(get_image_files(d/'labeled').sorted(), bs=8, num_workers=num_workers)
    return dls.add_unlabeled(source(d), uratio=2, n_steps=4, seed=1, strong=lambda x: x*.9, weak=noop, **kw)
def learner(dls, **kw): return mk([FlexMatchCallback(.11, weight=1.), *kw.pop('cbs', [])], no_bn, dls, **kw)
def run(dls):
    learn = fit(learner(dls), 2)
    return weights(learn.model),learn.flex_match.threshold.status.net_outputs,predict_pool(learn),learn

@pytest.mark.parametrize('kind', list(SOURCES)[1:])
@pytest.mark.parametrize('block', [OpenImageBlock(PILImageBW), ImageBlock(PILImageBW)], ids=['open','fastai'])
def test_a_stream_trains_like_files(folder, kind, block):
    want,got = run(data(folder, SOURCES['files'], block)),run(data(folder, SOURCES[kind], block))
    for a,b in zip(want[:3], got[:3]): assert torch.equal(a, b)
    assert (got[1]>=0).sum()>20 and got[3].dls.pool.n==N
    table = got[3].pseudo_labels()
    assert len(table)==N and table['item'].map(str).nunique()==N
    rounds = got[3].self_train(rounds=1, n_epoch=1)
    assert len(rounds)==2

@pytest.mark.parametrize('kind', SOURCES)
def test_workers_and_memory(folder, kind):
    a = run(data(folder, SOURCES['files']))
    b = run(data(folder, SOURCES[kind], num_workers=2))
    assert torch.equal(a[0], b[0]) and torch.equal(a[2], b[2])
    assert torch.equal(data(folder, SOURCES[kind], in_memory=True).pool.tensors[0], data(folder, SOURCES['files'], in_memory=True).pool.tensors[0])

@pytest.mark.parametrize('kind', list(SOURCES)[1:])
def test_soft_targets_of_a_stream(folder, kind, tmp_path):
    learn = run(data(folder, SOURCES[kind]))[3]
    want = save_soft_targets(learn, SOURCES['files'](folder), tmp_path/'files', key='name', progress=False)
    soft = save_soft_targets(learn, SOURCES[kind](folder), tmp_path/'s', progress=False)
    assert torch.equal(soft.logits(), want.logits()) and soft.meta['key']=='str'
    keys = dict(tar='007', tar_stream='k7', shards='7', hf='7').get(kind, str(folder/'files'/'007.png'))
    assert torch.equal(soft[keys], want['007.png'])
    res = soft.check(learn.dls.pool.items)
    assert res['found']==N and not res['missing'] and not res['extra']

def test_hidden_labels(folder):
    dls = data(folder, SOURCES['hf'], labels=hf()['label'])
    assert [dls.vocab[i] for i in dls.pool.labels]==[f'd{y}' for y in Y[100:100+N]]
    learn = fit(learner(dls))
    assert 'truth' in learn.pseudo_labels()

def test_two_processes(folder):
    def train():
        learn = learner(data(folder, SOURCES['shards']))
        with learn.distrib_ctx(sync_bn=False): fit(learn); return predict_pool(learn),learn.flex_match.threshold.status.counts
    a,b = in_processes(train)
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) and len(a[0])==N

def test_an_interrupted_run_goes_on(folder, tmp_path):
    stop = []
    class Stop(Callback):
        order = 99
        def after_epoch(self):
            if self.epoch==1 and stop: raise KeyboardInterrupt
    def run(name):
        learn = learner(data(folder, SOURCES['tar']), cbs=[Stop(), KeepRun(tmp_path/name)])
        fit(learn, 3)
        return weights(learn.model),learn.flex_match.threshold.status.net_outputs
    want = run('a')
    stop.append(1)
    with pytest.raises(KeyboardInterrupt): run('b')
    stop.clear()
    for a,b in zip(run('b'), want): assert torch.equal(a, b)

def test_what_does_not_work_says_so(folder):
    with pytest.raises(ValueError, match='include_labeled: the pool is a stream'): data(folder, SOURCES['tar_stream'], include_labeled=True)
    vectors = DataLoaders(DataLoader(list(zip(torch.randn(20,4), torch.arange(20)%2)), bs=4), DataLoader(list(zip(torch.randn(20,4), torch.arange(20)%2)), bs=4))
    with pytest.raises(TypeError, match='make it with a DataBlock'): vectors.add_unlabeled(SOURCES['tar_stream'](folder))
    with pytest.raises(TypeError, match='streaming=False'): data(folder, lambda d: hf().to_iterable_dataset())
    with pytest.raises(ValueError, match='which are classes|are not classes'): data(folder, SOURCES['hf'], labels=['x']*N)
