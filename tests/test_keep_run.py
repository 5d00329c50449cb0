"A run that is killed with SIGKILL and started again ends as the run that nobody disturbed, bit for bit"
import pytest
from killed_runs import *

def test_every_registered_method_is_here():
    tested = {m.func if isinstance(m, partial) else m if isinstance(m, type) else type(m()) for m in methods.values()}
    assert not {name for name,m in registered_methods.items() if m.cls not in tested}

def everything(method):
    "All of averaged weights, MixUp and accumulation that the method allows"
    return first(extra for extra in ('all','mixup','accumulation','ema') if runs_with(method, extra))

seeds = {method:i for i,method in enumerate(methods)}

@pytest.fixture(scope='module')
def folder(tmp_path_factory): return tmp_path_factory.mktemp('runs')

@pytest.mark.parametrize('method', methods)
def test_every_method(method, folder):
    "A kill in a step, the validation or the write, another for each method; every other run saves within epochs"
    seed = seeds[method]
    kill = ('step','write','validation')[seed%3]
    case = Case(method, everything(method), folder, every=2 if seed%2 else None)
    killed,kept,differ = case.compare(kill, seed)
    assert killed and not differ, (kill, kept, differ)

@pytest.mark.parametrize('extra,kill,every', [
    ('ema','swap',None), ('workers','step',3), ('workers','validation',None), ('trackers','step',1), ('trackers','write',None), ('mixup','time',1), ('accumulation','step',1)])
def test_with_others(extra, kill, every, folder):
    killed,kept,differ = Case('flexmatch', extra, folder, every).compare(kill, 3)
    assert killed and not differ, (kept, differ)

def test_killed_twenty_times(folder):
    n,differ = Case('freematch', 'all', folder, every=1).compare_killed_often(20, 0)
    assert n==20 and not differ, differ
    kept = folder/"freematch_all_1"/"often_0"/"run"/"fit_0"
    assert len(list(kept.iterdir()))==3                       # nothing is left of the writes that were cut off

def test_the_comparison_can_fail(folder):
    "Another seed is another result, and a resumed run without its generators is another run"
    case = Case('fixmatch', 'ema', folder, every=2)
    whole = case.whole()
    def other():
        learn = build('fixmatch', 'ema', folder/'other')
        torch.rand(1)
        with quiet(learn): learn.fit_one_cycle(n_epoch, 1e-2)
        torch.save(result(learn), folder/'other.pkl')
    assert in_process(other)==0
    assert differences(whole, torch.load(folder/'other.pkl', weights_only=False))

def test_saved_models_are_whole(folder):
    "`SaveModelCallback` and `learn.save` are killed while they write: there is a readable checkpoint, if there was one"
    def run(n):
        learn = build('fixmatch', 'ema', folder/'models')
        write,count = torch.save,[]
        def half(state, f, **kw):
            write(state, f, **kw)
            count.append(1)
            if len(count)==n:
                os.truncate(f, os.path.getsize(f)//2)
                die()
        torch.save = half
        with quiet(learn): learn.fit(3, cbs=SaveModelCallback(every_epoch=False, monitor='valid_loss', comp=lambda a, b: True, with_opt=True))
    file = folder/'models'/'models'/'model.pth'
    assert in_process(partial(run, 1))==-9 and not file.exists()
    for n in (2,3):
        assert in_process(partial(run, n))==-9
        assert set(torch.load(file, weights_only=False))=={'model','opt'}

def test_born_again(folder):
    "Generations that are finished are restored, the one that was interrupted goes on"
    def run(keep, kill_at, out):
        learn = build('fixmatch', 'alone', folder/'parents')
        learn.remove_cbs(learn._grab_cbs(SSLCallback))
        seen = []
        def train(l):
            one_batch = l.one_batch
            def _one_batch(i, b):
                seen.append(l.training)
                if sum(seen)==kill_at: die()
                one_batch(i, b)
            l.one_batch = _one_batch
            with quiet(l): l.fit_one_cycle(2, 1e-2)
        with quiet(learn): learn.fit(1, 1e-2)
        res = born_again(learn, train, 2, keep=keep)
        torch.save(dict(w=[weights(l.model) for l in res], steps=sum(seen)), folder/out)
    assert in_process(partial(run, None, None, 'whole.pt'))==0
    whole = torch.load(folder/'whole.pt')
    assert in_process(partial(run, folder/'born', whole['steps']-1, 'none.pt'))==-9
    assert in_process(partial(run, folder/'born', None, 'resumed.pt'))==0
    resumed = torch.load(folder/'resumed.pt')
    assert all(map(torch.equal, whole['w'], resumed['w'])) and 0<resumed['steps']<whole['steps']/2

def test_the_command(folder):
    "`fastssl_train --resume` and `fastssl_distill --resume` go on, and write what the undisturbed command writes"
    from fastssl.cli.train import fastssl_train
    from fastssl.cli.student import distill_folder
    X,y = digits_data()
    images = folder/'images'
    for i in range(60):
        to = images/('labeled' if i<30 else 'pool')/(str(y[i]%2) if i<30 else '')
        to.mkdir(parents=True, exist_ok=True)
        PILImage.create(np.stack([X[i]]*3, -1)).save(to/f'{i}.png')
    def train(out, resume, kill_at):
        kill_in_nth_step(kill_at)
        fastssl_train(str(images/'labeled'), str(images/'pool'), arch='resnet18', no_pretrained=True, size=32, epochs=2, bs=8, uratio=2, valid_pct=.3, num_workers=0, out=str(folder/out), resume=resume)
    def distill(out, resume, kill_at):
        kill_in_nth_step(kill_at)
        distill_folder(folder/'a.pkl', images, 'resnet18', folder/out, epochs=2, bs=16, pretrained=False, num_workers=0, resume=resume)
    for command,a,b in ((train, 'a.pkl', 'b.pkl'), (distill, 'c.pkl', 'd.pkl')):
        keep = str(folder/f'kept_{b}')
        assert in_process(partial(command, a, None, None))==0
        assert in_process(partial(command, b, keep, 5))==-9
        assert not (folder/b).exists()
        assert in_process(partial(command, b, keep, None))==0
        wa,wb = (weights(load_learner(folder/o).model) for o in (a, b))
        assert torch.equal(wa, wb)
